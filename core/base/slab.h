#pragma once
// Fixed-size objects with handles {index, generation}: what Lua and messages hold instead of
// pointers. A freed object goes to a just-freed list and is reused only after slab_sweep at the
// end of the turn, so a stale pointer inside one turn still reads dead, not foreign, memory.
// One thread.
#include <stddef.h>
#include <stdint.h>

struct slab;
struct slab_handle {
    uint32_t index;
    uint32_t generation; // 0 = no object
};

// max_count bounds the objects (a cap chosen by configuration, not by peers). NULL: no memory.
struct slab *slab_new(size_t object_size, size_t max_count);
void slab_destroy(struct slab *slab);
// Gives zeroed memory and its handle; NULL when full or out of memory.
void *slab_alloc(struct slab *slab, struct slab_handle *handle);
void slab_free(struct slab *slab, void *object);
void slab_sweep(struct slab *slab);
// The living object of a handle, else NULL.
void *slab_get(const struct slab *slab, struct slab_handle handle);
size_t slab_count(const struct slab *slab);
// Memory held for objects: what a crowd took is given back when most of it has gone.
size_t slab_bytes(const struct slab *slab);
