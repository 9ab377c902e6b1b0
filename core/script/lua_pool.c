// Chunks of a Lua state's pool: opened, emptied, kept for the next size, given back.
#include "script/lua_pool.h"

#define MAX_SPARE 32 // a mebibyte

#ifdef GW_HAS_ASAN
struct lua_chunk *lua_pool_open(struct lua_pool *pool, size_t index)
{
    (void)pool;
    (void)index;
    return NULL;
}

void lua_pool_empty(struct lua_pool *pool, struct lua_chunk *chunk)
{
    (void)pool;
    (void)chunk;
}
#else
struct lua_chunk *lua_pool_open(struct lua_pool *pool, size_t index)
{
    struct lua_chunk *chunk = pool->spare;
    if (pool->max_bytes && pool->bytes + LUA_CHUNK_BYTES > pool->max_bytes)
        return NULL;
    if (chunk) {
        pool->spare = chunk->next;
        pool->spare_count--;
    } else {
        // malloc's own 16 bytes before the next chunk let them lie side by side.
        void *memory;
        if (posix_memalign(&memory, LUA_CHUNK_BYTES, LUA_CHUNK_BYTES - LUA_PIECE) != 0)
            return NULL;
        chunk = memory;
    }
    pool->bytes += LUA_CHUNK_BYTES;
    size_t head = (sizeof *chunk + LUA_PIECE - 1) & ~(LUA_PIECE - 1);
    *chunk = (struct lua_chunk){.fresh = (uint32_t)head,
                                .size = (uint32_t)((index + 1) * LUA_PIECE),
                                .index = (uint32_t)index};
    lua_chunk_link(pool, chunk);
    return chunk;
}

void lua_pool_empty(struct lua_pool *pool, struct lua_chunk *chunk)
{
    if (pool->open[chunk->index] == chunk && !chunk->next)
        return; // the only one with room: it is needed again soon
    lua_chunk_unlink(chunk);
    pool->bytes -= LUA_CHUNK_BYTES;
    if (pool->spare_count >= MAX_SPARE) {
        free(chunk);
        return;
    }
    chunk->next = pool->spare;
    pool->spare = chunk;
    pool->spare_count++;
}
#endif

void lua_pool_free(struct lua_pool *pool)
{
    for (size_t i = 0; i < LUA_SMALL_CLASSES; i++)
        while (pool->open[i]) { // with nothing in them
            struct lua_chunk *chunk = pool->open[i];
            pool->open[i] = chunk->next;
            free(chunk);
        }
    while (pool->spare) {
        struct lua_chunk *chunk = pool->spare;
        pool->spare = chunk->next;
        free(chunk);
    }
}
