// Slab: chunks of 64 objects that never move, a free list, and a just-freed list between.
#include "base/slab.h"
#include "base/err.h"
#include "base/poison.h"
#include <stdlib.h>
#include <string.h>

#define CHUNK 64u
#define NO_NEXT UINT32_MAX

enum slot_state { SLOT_FREE, SLOT_LIVE, SLOT_DEAD };

struct slot {
    uint32_t index, generation, next;
    enum slot_state state;
};
_Static_assert(sizeof(struct slot) == 16, "objects behind it are 16-byte aligned");

struct slab {
    char **chunks;
    size_t chunk_count, chunk_room;
    size_t object_size, stride;
    size_t max_count;
    uint32_t slot_count; // ever used
    uint32_t free, dead; // heads of lists by index
    size_t live;
};

static struct slot *slot_at(const struct slab *slab, uint32_t index)
{
    return (struct slot *)(slab->chunks[index / CHUNK] + (index % CHUNK) * slab->stride);
}

struct slab *slab_new(size_t object_size, size_t max_count)
{
    if (object_size == 0 || object_size > SIZE_MAX / CHUNK / 2)
        return NULL;
    struct slab *slab = calloc(1, sizeof(*slab));
    if (!slab)
        return NULL;
    slab->object_size = object_size;
    slab->stride = (sizeof(struct slot) + object_size + 15) & ~(size_t)15;
    slab->max_count = max_count < NO_NEXT ? max_count : NO_NEXT - 1;
    slab->free = slab->dead = NO_NEXT;
    return slab;
}

void slab_destroy(struct slab *slab)
{
    if (!slab)
        return;
    for (size_t i = 0; i < slab->chunk_count; i++) {
        GW_UNPOISON(slab->chunks[i], CHUNK * slab->stride);
        free(slab->chunks[i]);
    }
    free(slab->chunks);
    free(slab);
}

static bool add_chunk(struct slab *slab)
{
    if (slab->chunk_count == slab->chunk_room) {
        size_t room = slab->chunk_room ? slab->chunk_room * 2 : 8;
        char **chunks = realloc(slab->chunks, room * sizeof(*chunks));
        if (!chunks)
            return false;
        slab->chunks = chunks;
        slab->chunk_room = room;
    }
    char *chunk = aligned_alloc(16, CHUNK * slab->stride);
    if (!chunk)
        return false;
    slab->chunks[slab->chunk_count++] = chunk;
    return true;
}

void *slab_alloc(struct slab *slab, struct slab_handle *handle)
{
    struct slot *slot;
    if (slab->free != NO_NEXT) {
        slot = slot_at(slab, slab->free);
        slab->free = slot->next;
    } else {
        if (slab->slot_count >= slab->max_count)
            return NULL;
        if (slab->slot_count == slab->chunk_count * CHUNK && !add_chunk(slab))
            return NULL;
        slot = slot_at(slab, slab->slot_count);
        slot->index = slab->slot_count++;
        slot->generation = 1;
    }
    slot->state = SLOT_LIVE;
    slot->next = NO_NEXT;
    slab->live++;
    void *object = slot + 1;
    GW_UNPOISON(object, slab->object_size);
    memset(object, 0, slab->object_size);
    if (handle)
        *handle = (struct slab_handle){slot->index, slot->generation};
    return object;
}

void slab_free(struct slab *slab, void *object)
{
    if (!object)
        return;
    struct slot *slot = (struct slot *)object - 1;
    gw_require(slot->state == SLOT_LIVE);
    slot->state = SLOT_DEAD;
    if (++slot->generation == 0)
        slot->generation = 1;
    slot->next = slab->dead;
    slab->dead = slot->index;
    slab->live--;
}

void slab_sweep(struct slab *slab)
{
    while (slab->dead != NO_NEXT) {
        struct slot *slot = slot_at(slab, slab->dead);
        slab->dead = slot->next;
        slot->state = SLOT_FREE;
        slot->next = slab->free;
        slab->free = slot->index;
        GW_POISON(slot + 1, slab->object_size);
    }
}

void *slab_get(const struct slab *slab, struct slab_handle handle)
{
    if (handle.generation == 0 || handle.index >= slab->slot_count)
        return NULL;
    struct slot *slot = slot_at(slab, handle.index);
    if (slot->state != SLOT_LIVE || slot->generation != handle.generation)
        return NULL;
    return slot + 1;
}

size_t slab_count(const struct slab *slab)
{
    return slab->live;
}
