// Slabs of 1 MiB at addresses that are multiples of it, so that a piece's slab is found from its
// address; one list of free pieces per size. Large pieces are linked to be found at the end.
#include "state/directory_memory.h"
#include "base/err.h"
#include "base/poison.h"
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>

#define SLAB_BYTES ((size_t)1 << 20)
#define STEP ((size_t)8)
#define CLASSES 65 // up to 512 bytes
#ifdef GW_HAS_ASAN
#define SMALL_MAX ((size_t)0)
#else
#define SMALL_MAX (STEP * (CLASSES - 1))
#endif

struct slab {
    struct slab *next;
    struct directory_memory *memory;
    size_t class, used;
};

struct large {
    struct large *prev, *next;
    struct directory_memory *memory;
    size_t unused; // keeps what follows at 16 bytes
};

struct piece { // a free one
    struct piece *next;
};

struct directory_memory {
    pthread_mutex_t mutex;
    struct slab *slabs; // all
    struct slab *current[CLASSES];
    struct piece *free[CLASSES];
    struct large *large;
    size_t retired;
    bool is_closed;
};

struct directory_memory *directory_memory_new(void)
{
    struct directory_memory *memory = calloc(1, sizeof(*memory));
    if (memory)
        pthread_mutex_init(&memory->mutex, NULL);
    return memory;
}

static void destroy(struct directory_memory *memory)
{
    while (memory->slabs) {
        struct slab *slab = memory->slabs;
        memory->slabs = slab->next;
        munmap(slab, SLAB_BYTES);
    }
    while (memory->large) {
        struct large *large = memory->large;
        memory->large = large->next;
        free(large);
    }
    pthread_mutex_destroy(&memory->mutex);
    free(memory);
}

void directory_memory_close(struct directory_memory *memory)
{
    if (!memory)
        return;
    pthread_mutex_lock(&memory->mutex);
    memory->is_closed = true;
    bool is_last = memory->retired == 0;
    pthread_mutex_unlock(&memory->mutex);
    if (is_last)
        destroy(memory);
}

// Pages that are not used yet cost nothing.
static struct slab *map_slab(void)
{
    char *start =
        mmap(NULL, 2 * SLAB_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (start == MAP_FAILED)
        return NULL;
    size_t before = (SLAB_BYTES - (uintptr_t)start % SLAB_BYTES) % SLAB_BYTES;
    if (before)
        munmap(start, before);
    munmap(start + before + SLAB_BYTES, SLAB_BYTES - before);
    return (struct slab *)(void *)(start + before);
}

static void *take_small(struct directory_memory *memory, size_t class)
{
    size_t size = class * STEP;
    struct piece *piece = memory->free[class];
    if (piece) {
        memory->free[class] = piece->next;
        return piece;
    }
    struct slab *slab = memory->current[class];
    if (!slab || slab->used + size > SLAB_BYTES) {
        slab = map_slab();
        if (!slab)
            return NULL;
        *slab = (struct slab){memory->slabs, memory, class, sizeof(*slab)};
        memory->slabs = memory->current[class] = slab;
    }
    void *place = (char *)slab + slab->used;
    slab->used += size;
    return place;
}

static void *take_large(struct directory_memory *memory, size_t size)
{
    struct large *large = malloc(sizeof(*large) + size);
    if (!large)
        return NULL;
    *large = (struct large){NULL, memory->large, memory, 0};
    if (memory->large)
        memory->large->prev = large;
    memory->large = large;
    return large + 1;
}

void *directory_memory_take(struct directory_memory *memory, size_t size)
{
    pthread_mutex_lock(&memory->mutex);
    void *piece =
        size <= SMALL_MAX ? take_small(memory, (size + STEP - 1) / STEP) : take_large(memory, size);
    pthread_mutex_unlock(&memory->mutex);
    return piece;
}

static struct slab *slab_of(void *piece)
{
    return (struct slab *)((uintptr_t)piece & ~(uintptr_t)(SLAB_BYTES - 1));
}

// Under the mutex.
static void give_small(struct directory_memory *memory, void *place)
{
    struct piece *piece = place;
    size_t class = slab_of(place)->class;
    piece->next = memory->free[class];
    memory->free[class] = piece;
}

static void give_large(struct directory_memory *memory, void *piece)
{
    struct large *large = (struct large *)piece - 1;
    if (large->prev)
        large->prev->next = large->next;
    else
        memory->large = large->next;
    if (large->next)
        large->next->prev = large->prev;
    free(large);
}

void directory_memory_give(struct directory_memory *memory, void *piece, size_t size)
{
    if (!piece)
        return;
    pthread_mutex_lock(&memory->mutex);
    if (size <= SMALL_MAX)
        give_small(memory, piece);
    else
        give_large(memory, piece);
    pthread_mutex_unlock(&memory->mutex);
}

static void give_retired(struct directory_memory *memory, void *piece, bool is_small)
{
    pthread_mutex_lock(&memory->mutex);
    if (is_small)
        give_small(memory, piece);
    else
        give_large(memory, piece);
    bool is_last = --memory->retired == 0 && memory->is_closed;
    pthread_mutex_unlock(&memory->mutex);
    if (is_last)
        destroy(memory);
}

static void free_small(void *piece)
{
    give_retired(slab_of(piece)->memory, piece, true);
}

static void free_large(void *piece)
{
    give_retired(((struct large *)piece - 1)->memory, piece, false);
}

void directory_memory_retire(struct directory_memory *memory, struct epoch *epoch, void *piece,
                             size_t size)
{
    pthread_mutex_lock(&memory->mutex);
    memory->retired++;
    pthread_mutex_unlock(&memory->mutex);
    if (epoch_retire(epoch, piece, size <= SMALL_MAX ? free_small : free_large) == 0)
        return;
    pthread_mutex_lock(&memory->mutex);
    memory->retired--;
    pthread_mutex_unlock(&memory->mutex);
}
