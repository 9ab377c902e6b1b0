// Slab: chunks of 64 objects that never move, a free list, and a just-freed list between. What is
// known of a slot stands beside its chunk, so that a chunk without objects can go and come back
// while handles of its former objects stay dead.
#include "base/slab.h"
#include "base/err.h"
#include "base/poison.h"
#include <stdlib.h>
#include <string.h>

#define CHUNK 64u
#define NO_NEXT UINT32_MAX
// A crowd that has gone: of so many slots in memory less than one in FEW_SHARE is used.
#define MANY_SLOTS 1024u
#define FEW_SHARE 4u

enum slot_state { SLOT_FREE, SLOT_LIVE, SLOT_DEAD };

struct slot {
    uint32_t generation, next;
    enum slot_state state;
};

struct chunk {
    char *mem; // each object behind its index; NULL: not in memory
    struct slot *slots;
    uint32_t used; // live or just freed
};

#define PREFIX ((size_t)16) // before each object: its index, and it stays aligned

struct slab {
    struct chunk *chunks;
    size_t chunk_count, chunk_room, chunks_in_memory;
    size_t object_size, stride;
    size_t max_count;
    uint32_t slot_count; // ever used
    uint32_t free, dead; // heads of lists by index
    size_t live;
    size_t peak; // of live ones since memory was given back, and what lived then
};

static struct slot *slot_at(const struct slab *slab, uint32_t index)
{
    return &slab->chunks[index / CHUNK].slots[index % CHUNK];
}

static void *object_at(const struct slab *slab, uint32_t index)
{
    return slab->chunks[index / CHUNK].mem + (index % CHUNK) * slab->stride + PREFIX;
}

static uint32_t index_of(const void *object)
{
    uint32_t index;
    memcpy(&index, (const char *)object - PREFIX, sizeof index);
    return index;
}

struct slab *slab_new(size_t object_size, size_t max_count)
{
    if (object_size == 0 || object_size > SIZE_MAX / CHUNK / 2)
        return NULL;
    struct slab *slab = calloc(1, sizeof(*slab));
    if (!slab)
        return NULL;
    slab->object_size = object_size;
    slab->stride = (PREFIX + object_size + 15) & ~(size_t)15;
    slab->max_count = max_count < NO_NEXT ? max_count : NO_NEXT - 1;
    slab->free = slab->dead = NO_NEXT;
    return slab;
}

static void drop_memory(struct slab *slab, struct chunk *chunk)
{
    if (!chunk->mem)
        return;
    GW_UNPOISON(chunk->mem, CHUNK * slab->stride);
    free(chunk->mem);
    chunk->mem = NULL;
    slab->chunks_in_memory--;
}

static bool ensure_memory(struct slab *slab, struct chunk *chunk)
{
    if (chunk->mem)
        return true;
    chunk->mem = aligned_alloc(16, CHUNK * slab->stride);
    if (!chunk->mem)
        return false;
    GW_POISON(chunk->mem, CHUNK * slab->stride);
    slab->chunks_in_memory++;
    return true;
}

void slab_destroy(struct slab *slab)
{
    if (!slab)
        return;
    for (size_t i = 0; i < slab->chunk_count; i++) {
        drop_memory(slab, &slab->chunks[i]);
        free(slab->chunks[i].slots);
    }
    free(slab->chunks);
    free(slab);
}

static bool add_chunk(struct slab *slab)
{
    if (slab->chunk_count == slab->chunk_room) {
        size_t room = slab->chunk_room ? slab->chunk_room * 2 : 8;
        struct chunk *chunks = realloc(slab->chunks, room * sizeof(*chunks));
        if (!chunks)
            return false;
        slab->chunks = chunks;
        slab->chunk_room = room;
    }
    struct slot *slots = calloc(CHUNK, sizeof(*slots));
    if (!slots)
        return false;
    slab->chunks[slab->chunk_count++] = (struct chunk){.slots = slots};
    return true;
}

void *slab_alloc(struct slab *slab, struct slab_handle *handle)
{
    uint32_t index = slab->free;
    bool is_new = index == NO_NEXT;
    if (is_new) {
        index = slab->slot_count;
        if (index >= slab->max_count)
            return NULL;
        if (index == slab->chunk_count * CHUNK && !add_chunk(slab))
            return NULL;
    }
    struct chunk *chunk = &slab->chunks[index / CHUNK];
    if (!ensure_memory(slab, chunk))
        return NULL;
    struct slot *slot = slot_at(slab, index);
    if (is_new) {
        slab->slot_count++;
        slot->generation = 1;
    } else {
        slab->free = slot->next;
    }
    slot->state = SLOT_LIVE;
    slot->next = NO_NEXT;
    chunk->used++;
    slab->live++;
    char *object = object_at(slab, index);
    GW_UNPOISON(object - PREFIX, PREFIX + slab->object_size);
    memcpy(object - PREFIX, &index, sizeof index);
    memset(object, 0, slab->object_size);
    if (handle)
        *handle = (struct slab_handle){index, slot->generation};
    return object;
}

void slab_free(struct slab *slab, void *object)
{
    if (!object)
        return;
    uint32_t index = index_of(object);
    gw_require(index < slab->slot_count && object_at(slab, index) == object);
    struct slot *slot = slot_at(slab, index);
    gw_require(slot->state == SLOT_LIVE);
    slot->state = SLOT_DEAD;
    if (++slot->generation == 0)
        slot->generation = 1;
    slot->next = slab->dead;
    slab->dead = index;
    slab->live--;
}

// Gives the memory of unused chunks back. Slots in memory come first in the new free list.
static void give_back(struct slab *slab)
{
    slab->free = NO_NEXT;
    for (size_t i = 0; i < slab->chunk_count; i++)
        if (slab->chunks[i].used == 0)
            drop_memory(slab, &slab->chunks[i]);
    for (int in_memory = 0; in_memory < 2; in_memory++) {
        for (uint32_t index = slab->slot_count; index-- > 0;) {
            struct slot *slot = slot_at(slab, index);
            if (slot->state != SLOT_FREE || (slab->chunks[index / CHUNK].mem != NULL) != in_memory)
                continue;
            slot->next = slab->free;
            slab->free = index;
        }
    }
}

void slab_sweep(struct slab *slab)
{
    if (slab->dead == NO_NEXT)
        return;
    while (slab->dead != NO_NEXT) {
        uint32_t index = slab->dead;
        struct slot *slot = slot_at(slab, index);
        slab->dead = slot->next;
        slot->state = SLOT_FREE;
        slot->next = slab->free;
        slab->free = index;
        slab->chunks[index / CHUNK].used--;
        GW_POISON(object_at(slab, index), slab->object_size);
    }
    size_t in_memory = slab->chunks_in_memory * CHUNK;
    if (in_memory > MANY_SLOTS && slab->live < in_memory / FEW_SHARE &&
        slab->live < slab->peak / 2) {
        give_back(slab);
        slab->peak = slab->live;
    } else if (slab->live > slab->peak) {
        slab->peak = slab->live;
    }
}

void *slab_get(const struct slab *slab, struct slab_handle handle)
{
    if (handle.generation == 0 || handle.index >= slab->slot_count)
        return NULL;
    struct slot *slot = slot_at(slab, handle.index);
    if (slot->state != SLOT_LIVE || slot->generation != handle.generation)
        return NULL;
    return object_at(slab, handle.index);
}

size_t slab_count(const struct slab *slab)
{
    return slab->live;
}

size_t slab_bytes(const struct slab *slab)
{
    return slab->chunks_in_memory * CHUNK * slab->stride;
}
