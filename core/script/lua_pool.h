#pragma once
// Memory of one Lua state. Lua's objects are small and short-lived: they come from chunks of equal
// pieces, one size each; larger ones from malloc. A chunk that has become empty serves any size
// again, so a state whose plugins change their habits does not grow by it. Sanitizers see each
// object by itself. The state's thread only.
#include "base/poison.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define LUA_PIECE ((size_t)16)
#define LUA_SMALL_MAX ((size_t)512)
#define LUA_SMALL_CLASSES (LUA_SMALL_MAX / LUA_PIECE)
#define LUA_CHUNK_BYTES ((size_t)32 << 10) // a chunk lies at a multiple of it

#define LUA_POOL_LEAST (LUA_SMALL_CLASSES * LUA_CHUNK_BYTES) // one chunk of each class

struct lua_piece {
    struct lua_piece *next;
};

struct lua_chunk {
    struct lua_chunk *next, **link; // in its class's list while it has room; next also when spare
    struct lua_piece *free;
    uint32_t fresh; // offset of the part that was never given out
    uint32_t size;  // of a piece
    uint32_t live;
    uint32_t index; // of the class
};

struct lua_pool {
    struct lua_chunk
        *open[LUA_SMALL_CLASSES]; // chunks with room; pieces of (index + 1) * LUA_PIECE
    struct lua_chunk *spare;
    size_t spare_count;
    size_t bytes;     // of chunks in use
    size_t max_bytes; // 0: no limit
};

// A chunk for this class, first in its list; NULL: none to be had.
struct lua_chunk *lua_pool_open(struct lua_pool *pool, size_t index);
void lua_pool_empty(struct lua_pool *pool, struct lua_chunk *chunk); // its last piece came back
// Before the pool's memory goes; all its objects are gone.
void lua_pool_free(struct lua_pool *pool);

#ifdef GW_HAS_ASAN
static inline void lua_pool_release(struct lua_pool *pool, void *ptr, size_t size)
{
    (void)pool;
    (void)size;
    free(ptr);
}

static inline void *lua_pool_resize(struct lua_pool *pool, void *ptr, size_t old_size,
                                    size_t new_size)
{
    (void)pool;
    (void)old_size;
    return realloc(ptr, new_size);
}
#else
static inline bool lua_chunk_has_room(const struct lua_chunk *chunk)
{
    return chunk->free || chunk->fresh + chunk->size <= LUA_CHUNK_BYTES - LUA_PIECE;
}

static inline void lua_chunk_link(struct lua_pool *pool, struct lua_chunk *chunk)
{
    struct lua_chunk **head = &pool->open[chunk->index];
    chunk->next = *head;
    chunk->link = head;
    if (*head)
        (*head)->link = &chunk->next;
    *head = chunk;
}

static inline void lua_chunk_unlink(struct lua_chunk *chunk)
{
    *chunk->link = chunk->next;
    if (chunk->next)
        chunk->next->link = chunk->link;
    chunk->link = NULL;
}

static inline void *lua_pool_take(struct lua_pool *pool, size_t size)
{
    if (size > LUA_SMALL_MAX)
        return malloc(size);
    size_t index = (size - 1) / LUA_PIECE;
    struct lua_chunk *chunk = pool->open[index];
    if (!chunk && !(chunk = lua_pool_open(pool, index)))
        return NULL;
    struct lua_piece *piece = chunk->free;
    chunk->live++;
    if (piece) {
        chunk->free = piece->next;
    } else {
        piece = (struct lua_piece *)(void *)((char *)chunk + chunk->fresh);
        chunk->fresh += chunk->size;
    }
    if (!lua_chunk_has_room(chunk))
        lua_chunk_unlink(chunk);
    return piece;
}

static inline void lua_pool_release(struct lua_pool *pool, void *ptr, size_t size)
{
    if (!ptr)
        return;
    if (size > LUA_SMALL_MAX) {
        free(ptr);
        return;
    }
    struct lua_piece *piece = ptr;
    struct lua_chunk *chunk =
        (struct lua_chunk *)((uintptr_t)ptr & ~((uintptr_t)LUA_CHUNK_BYTES - 1));
    if (!chunk->link) // it was full
        lua_chunk_link(pool, chunk);
    piece->next = chunk->free;
    chunk->free = piece;
    if (--chunk->live == 0)
        lua_pool_empty(pool, chunk);
}

static inline void *lua_pool_resize(struct lua_pool *pool, void *ptr, size_t old_size,
                                    size_t new_size)
{
    if (!ptr)
        return lua_pool_take(pool, new_size);
    if (old_size > LUA_SMALL_MAX && new_size > LUA_SMALL_MAX)
        return realloc(ptr, new_size);
    if (old_size <= LUA_SMALL_MAX && new_size <= LUA_SMALL_MAX &&
        (old_size - 1) / LUA_PIECE == (new_size - 1) / LUA_PIECE)
        return ptr;
    void *out = lua_pool_take(pool, new_size);
    if (out) {
        memcpy(out, ptr, old_size < new_size ? old_size : new_size);
        lua_pool_release(pool, ptr, old_size);
    }
    return out;
}
#endif
