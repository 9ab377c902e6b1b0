#include "io/tls_memory.h"

#include <openssl/crypto.h>
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

// What a record needs at most, with room for alignment, and at least: smaller ones are other
// things.
#define SLOT_SIZE ((size_t)18 * 1024)
#define SLOT_LEAST ((size_t)16 * 1024)
#define SLOTS ((size_t)16 * 1024)

struct slot {
    struct slot *next;
};

static char *region; // NULL: not in use
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct slot *spare; // the last one given back first: it is warm
static size_t used;        // slots that were ever handed out

static bool is_slot(const void *memory)
{
    return (uintptr_t)memory - (uintptr_t)region < SLOTS * SLOT_SIZE;
}

static void *take_slot(void)
{
    pthread_mutex_lock(&lock);
    struct slot *slot = spare;
    if (slot != NULL)
        spare = slot->next;
    else if (used < SLOTS)
        slot = (void *)(region + used++ * SLOT_SIZE);
    pthread_mutex_unlock(&lock);
    return slot;
}

static void *on_malloc(size_t size, const char *file, int line)
{
    (void)file, (void)line;
    if (size == 0)
        return NULL;
    void *memory = size >= SLOT_LEAST && size <= SLOT_SIZE ? take_slot() : NULL;
    return memory ? memory : malloc(size);
}

static void on_free(void *memory, const char *file, int line)
{
    (void)file, (void)line;
    if (!is_slot(memory)) {
        free(memory);
        return;
    }
    struct slot *slot = memory;
    pthread_mutex_lock(&lock);
    slot->next = spare;
    spare = slot;
    pthread_mutex_unlock(&lock);
}

static void *on_realloc(void *memory, size_t size, const char *file, int line)
{
    if (memory == NULL)
        return on_malloc(size, file, line);
    if (size == 0) {
        on_free(memory, file, line);
        return NULL;
    }
    if (!is_slot(memory))
        return realloc(memory, size);
    if (size <= SLOT_SIZE)
        return memory;
    void *larger = malloc(size);
    if (larger != NULL) {
        memcpy(larger, memory, SLOT_SIZE);
        on_free(memory, file, line);
    }
    return larger;
}

void tls_memory_init(void)
{
// The sanitizers watch OpenSSL by its calls of malloc.
#if !defined(MOONGATE_ASAN) && !defined(MOONGATE_TSAN)
    if (region != NULL)
        return;
    void *fresh = mmap(NULL, SLOTS * SLOT_SIZE, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (fresh == MAP_FAILED)
        return;
    region = fresh;
    if (CRYPTO_set_mem_functions(on_malloc, on_realloc, on_free) != 1) {
        munmap(fresh, SLOTS * SLOT_SIZE);
        region = NULL;
    }
#else
    (void)on_malloc, (void)on_realloc; // the sanitizer shall see each buffer
#endif
}
