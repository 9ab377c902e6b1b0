#pragma once
// One bump allocator per exchange (or per job): everything that lives as long as the exchange is
// allocated here and freed at once. Not thread-safe: it belongs to one thread at a time.
//
//     struct arena *arena = arena_new(4096);
//     char *name = arena_copyz(arena, slice);     // lives until arena_free
//     struct arena_mark m = arena_mark(arena);    // per-event scratch…
//     arena_rewind(arena, m);                     // …is given back: a stream uses constant memory
//
// Each arena has a byte cap (default 64 MiB); past it, or when malloc fails, allocation returns
// NULL. Sizes that come from peers are bounded by the caller first.
#include "base/err.h"
#include "base/slice.h"
#include <stdarg.h>
#include <stdint.h>

struct arena;
struct arena_mark {
    void *block; // current block, place in it, newest own block, bytes handed out by then
    char *next;
    void *large;
    size_t used;
};

// Gives an arena whose first block holds first_size bytes; NULL when out of memory.
struct arena *arena_new(size_t first_size);
void arena_free(struct arena *arena); // NULL is allowed
// Drops everything but the first block: for pooled arenas.
void arena_reset(struct arena *arena);
// From now on bytes are zeroed when they are given back (reset, rewind, free): for arenas that hold
// credentials.
void arena_set_wiped(struct arena *arena);
void arena_set_cap(struct arena *arena, size_t bytes);
// Bytes handed out (each allocation rounded up to 16).
size_t arena_used(const struct arena *arena);

// 16-byte aligned, uninitialised; NULL when over the cap or out of memory.
void *arena_alloc(struct arena *arena, size_t size);
void *arena_zalloc(struct arena *arena, size_t size);
// Copies of bytes; ptr NULL on failure. arena_copyz adds a NUL (not counted).
struct slice arena_copy(struct arena *arena, struct slice src);
char *arena_copyz(struct arena *arena, struct slice src);
// The parts one behind the other; ptr NULL on failure.
struct slice arena_join(struct arena *arena, const struct slice *parts, size_t count);
struct slice arena_printf(struct arena *arena, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
struct slice arena_vprintf(struct arena *arena, const char *format, va_list args);
// Calls fn(arg) when the arena is reset or freed, last added first. GW_ENOMEM on failure. A rewind
// runs none of them: arg must not lie in memory that is rewound.
GW_MUSTCHECK int arena_on_free(struct arena *arena, void (*fn)(void *arg), void *arg);

// Marks nest: rewinding to one makes those taken after it invalid, as does a reset.
struct arena_mark arena_mark(struct arena *arena);
void arena_rewind(struct arena *arena, struct arena_mark mark);
