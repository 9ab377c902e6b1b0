// Epoch reclamation. The epoch number rises with every retirement; a reader announces the number it
// saw when its turn began, 0 when it is outside. What was retired at number t may be freed once
// every announced number is above t.
//
// Why that is safe: a reader that announces more than t read a number that the retiring thread
// wrote after it had swapped the pointer, so it sees the new pointer. A reader that read t or less
// and whose announcement the scan missed is ordered by the two full fences: then its load of the
// pointer comes after the swap.
#include "base/epoch.h"
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <time.h>

#define LINE 128 // two cache lines: adjacent ones are fetched together

struct epoch_reader {
    _Alignas(LINE) _Atomic uint64_t seen; // 0: outside
    unsigned depth;                       // the owner's
    struct epoch *epoch;
    atomic_bool is_used;
};

struct retired {
    struct retired *next;
    void *object;
    void (*free_object)(void *object);
    uint64_t at;
};

struct epoch {
    _Alignas(LINE) _Atomic uint64_t now;
    _Alignas(LINE) pthread_mutex_t mutex; // of the list, which is in order of at
    struct retired *first, **last;
    size_t retired_count;
    size_t reader_count;
    struct epoch_reader readers[];
};

// ThreadSanitizer knows no fences. There the exchange in epoch_enter, the addition in epoch_retire
// and the mutex in epoch_reclaim stand in for them, which are full barriers on x86.
#if defined(__SANITIZE_THREAD__)
#define HAS_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define HAS_TSAN 1
#endif
#endif

static inline void full_fence(void)
{
#ifndef HAS_TSAN
    atomic_thread_fence(memory_order_seq_cst);
#endif
}

struct epoch *epoch_new(size_t max_readers)
{
    if (max_readers > 65536)
        return NULL;
    size_t size = sizeof(struct epoch) + max_readers * sizeof(struct epoch_reader);
    struct epoch *epoch = aligned_alloc(LINE, size);
    if (!epoch)
        return NULL;
    if (pthread_mutex_init(&epoch->mutex, NULL) != 0) {
        free(epoch);
        return NULL;
    }
    atomic_init(&epoch->now, 1);
    epoch->first = NULL;
    epoch->last = &epoch->first;
    epoch->retired_count = 0;
    epoch->reader_count = max_readers;
    for (size_t i = 0; i < max_readers; i++) {
        struct epoch_reader *reader = &epoch->readers[i];
        atomic_init(&reader->seen, 0);
        atomic_init(&reader->is_used, false);
        reader->depth = 0;
        reader->epoch = epoch;
    }
    return epoch;
}

static void free_list(struct retired *list)
{
    while (list) {
        struct retired *old = list;
        list = old->next;
        old->free_object(old->object);
        free(old);
    }
}

void epoch_destroy(struct epoch *epoch)
{
    if (!epoch)
        return;
    for (size_t i = 0; i < epoch->reader_count; i++)
        gw_require(atomic_load(&epoch->readers[i].seen) == 0);
    // Freeing an object may retire another.
    while (epoch->first) {
        struct retired *list = epoch->first;
        epoch->first = NULL;
        epoch->last = &epoch->first;
        free_list(list);
    }
    pthread_mutex_destroy(&epoch->mutex);
    free(epoch);
}

struct epoch_reader *epoch_register(struct epoch *epoch)
{
    for (size_t i = 0; i < epoch->reader_count; i++) {
        bool is_used = false;
        if (atomic_compare_exchange_strong(&epoch->readers[i].is_used, &is_used, true))
            return &epoch->readers[i];
    }
    return NULL;
}

void epoch_unregister(struct epoch_reader *reader)
{
    if (!reader)
        return;
    gw_require(reader->depth == 0);
    atomic_store(&reader->is_used, false);
}

void epoch_enter(struct epoch_reader *reader)
{
    if (reader->depth++ > 0)
        return;
    uint64_t now = atomic_load_explicit(&reader->epoch->now, memory_order_acquire);
    atomic_exchange_explicit(&reader->seen, now, memory_order_seq_cst);
    full_fence();
}

void epoch_leave(struct epoch_reader *reader)
{
    gw_require(reader->depth > 0);
    if (--reader->depth == 0)
        atomic_store_explicit(&reader->seen, 0, memory_order_release);
}

int epoch_retire(struct epoch *epoch, void *object, void (*free_object)(void *object))
{
    struct retired *node = malloc(sizeof(*node));
    if (!node)
        return GW_ENOMEM;
    *node = (struct retired){NULL, object, free_object, 0};
    full_fence();
    pthread_mutex_lock(&epoch->mutex);
    node->at = atomic_fetch_add_explicit(&epoch->now, 1, memory_order_seq_cst);
    *epoch->last = node;
    epoch->last = &node->next;
    epoch->retired_count++;
    pthread_mutex_unlock(&epoch->mutex);
    return 0;
}

// The lowest number a reader inside announces; UINT64_MAX: none inside.
static uint64_t oldest_seen(struct epoch *epoch)
{
    uint64_t oldest = UINT64_MAX;
    full_fence();
    for (size_t i = 0; i < epoch->reader_count; i++) {
        uint64_t seen = atomic_load_explicit(&epoch->readers[i].seen, memory_order_seq_cst);
        if (seen && seen < oldest)
            oldest = seen;
    }
    return oldest;
}

size_t epoch_reclaim(struct epoch *epoch)
{
    struct retired *list = NULL;
    pthread_mutex_lock(&epoch->mutex);
    if (epoch->first) {
        uint64_t oldest = oldest_seen(epoch);
        struct retired **end = &epoch->first;
        while (*end && (*end)->at < oldest) {
            end = &(*end)->next;
            epoch->retired_count--;
        }
        if (end != &epoch->first) {
            list = epoch->first;
            epoch->first = *end;
            *end = NULL;
            if (!epoch->first)
                epoch->last = &epoch->first;
        }
    }
    size_t left = epoch->retired_count;
    pthread_mutex_unlock(&epoch->mutex);
    // Outside the lock: a destructor may take long, or retire in turn.
    free_list(list);
    return left;
}

static uint64_t monotonic_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

int epoch_synchronize(struct epoch *epoch, uint32_t timeout_ms)
{
    full_fence();
    uint64_t at = atomic_fetch_add_explicit(&epoch->now, 1, memory_order_seq_cst);
    // Real time even under a test's clock: it is threads that are waited for.
    uint64_t deadline = monotonic_ms() + timeout_ms;
    long pause_ns = 20000;
    while (oldest_seen(epoch) <= at) {
        if (monotonic_ms() >= deadline)
            return GW_ETIMEOUT;
        nanosleep(&(struct timespec){0, pause_ns}, NULL);
        if (pause_ns < 1000000)
            pause_ns *= 2;
    }
    return 0;
}
