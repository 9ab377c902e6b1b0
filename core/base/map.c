// Hash map: open addressing with linear probing; a removal shifts back what follows, so there are
// no tombstones and a map of steady size never grows.
#include "base/map.h"
#include "base/clock.h"
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define MIN_SLOTS ((size_t)8)

struct entry {
    void *value;
    size_t len;
    char key[];
};

struct slot {
    uint64_t hash;
    struct entry *entry; // NULL: free
};

struct map {
    struct slot *slots;
    size_t slot_count; // 0 or a power of two
    size_t count;
};

static uint64_t load_le64(const uint8_t *p)
{
    uint64_t value = 0;
    for (int i = 7; i >= 0; i--)
        value = value << 8 | p[i];
    return value;
}

static inline uint64_t rotl(uint64_t x, int bits)
{
    return x << bits | x >> (64 - bits);
}

static inline void sip_round(uint64_t v[4])
{
    v[0] += v[1];
    v[1] = rotl(v[1], 13) ^ v[0];
    v[0] = rotl(v[0], 32);
    v[2] += v[3];
    v[3] = rotl(v[3], 16) ^ v[2];
    v[0] += v[3];
    v[3] = rotl(v[3], 21) ^ v[0];
    v[2] += v[1];
    v[1] = rotl(v[1], 17) ^ v[2];
    v[2] = rotl(v[2], 32);
}

uint64_t siphash24(const uint8_t key[16], const void *data, size_t len)
{
    const uint8_t *p = data;
    uint64_t k0 = load_le64(key), k1 = load_le64(key + 8);
    uint64_t v[4] = {k0 ^ UINT64_C(0x736f6d6570736575), k1 ^ UINT64_C(0x646f72616e646f6d),
                     k0 ^ UINT64_C(0x6c7967656e657261), k1 ^ UINT64_C(0x7465646279746573)};
    uint64_t last = (uint64_t)len << 56;
    for (size_t left = len; left >= 8; left -= 8, p += 8) {
        uint64_t word = load_le64(p);
        v[3] ^= word;
        sip_round(v);
        sip_round(v);
        v[0] ^= word;
    }
    for (size_t i = 0; i < (len & 7); i++)
        last |= (uint64_t)p[i] << (8 * i);
    v[3] ^= last;
    sip_round(v);
    sip_round(v);
    v[0] ^= last;
    v[2] ^= 0xff;
    for (int i = 0; i < 4; i++)
        sip_round(v);
    return v[0] ^ v[1] ^ v[2] ^ v[3];
}

static uint8_t process_key[16];
static pthread_once_t key_once = PTHREAD_ONCE_INIT;

static void make_key(void)
{
    // A guessable key would let peers choose collisions.
    gw_require(clock_random(process_key, sizeof(process_key)) == 0);
}

uint64_t map_hash(struct slice key)
{
    pthread_once(&key_once, make_key);
    return siphash24(process_key, key.ptr, key.len);
}

struct map *map_new(void)
{
    return calloc(1, sizeof(struct map));
}

void map_free(struct map *map, void (*free_value)(void *value))
{
    if (!map)
        return;
    for (size_t i = 0; i < map->slot_count; i++) {
        struct entry *entry = map->slots[i].entry;
        if (entry && free_value)
            free_value(entry->value);
        free(entry);
    }
    free(map->slots);
    free(map);
}

// The slot of key, or the free slot where it belongs. There is always a free slot.
static struct slot *find(const struct map *map, struct slice key, uint64_t hash)
{
    for (size_t i = hash & (map->slot_count - 1);; i = (i + 1) & (map->slot_count - 1)) {
        struct slot *slot = &map->slots[i];
        if (!slot->entry ||
            (slot->hash == hash && slice_eq(slice_of(slot->entry->key, slot->entry->len), key)))
            return slot;
    }
}

static int grow(struct map *map)
{
    struct map bigger = {.slot_count = map->slot_count ? map->slot_count * 2 : MIN_SLOTS,
                         .count = map->count};
    bigger.slots = calloc(bigger.slot_count, sizeof(*bigger.slots));
    if (!bigger.slots)
        return GW_ENOMEM;
    for (size_t i = 0; i < map->slot_count; i++) {
        struct slot old = map->slots[i];
        if (!old.entry)
            continue;
        size_t at = old.hash & (bigger.slot_count - 1);
        while (bigger.slots[at].entry)
            at = (at + 1) & (bigger.slot_count - 1);
        bigger.slots[at] = old;
    }
    free(map->slots);
    *map = bigger;
    return 0;
}

int map_put(struct map *map, struct slice key, void *value, void **old)
{
    uint64_t hash = map_hash(key);
    if (old)
        *old = NULL;
    if (map->slot_count) {
        struct slot *slot = find(map, key, hash);
        if (slot->entry) {
            if (old)
                *old = slot->entry->value;
            slot->entry->value = value;
            return 0;
        }
    }
    if ((map->count + 1) * 4 > map->slot_count * 3 && grow(map) != 0)
        return GW_ENOMEM;
    if (key.len > SIZE_MAX - sizeof(struct entry))
        return GW_ENOMEM;
    struct entry *entry = malloc(sizeof(*entry) + key.len);
    if (!entry)
        return GW_ENOMEM;
    entry->value = value;
    entry->len = key.len;
    if (key.len)
        memcpy(entry->key, key.ptr, key.len);
    *find(map, key, hash) = (struct slot){hash, entry};
    map->count++;
    return 0;
}

void *map_get(const struct map *map, struct slice key)
{
    if (map->count == 0)
        return NULL;
    struct entry *entry = find(map, key, map_hash(key))->entry;
    return entry ? entry->value : NULL;
}

void *map_take(struct map *map, struct slice key)
{
    if (map->count == 0)
        return NULL;
    struct slot *slot = find(map, key, map_hash(key));
    if (!slot->entry)
        return NULL;
    void *value = slot->entry->value;
    free(slot->entry);
    map->count--;
    size_t mask = map->slot_count - 1;
    size_t hole = (size_t)(slot - map->slots);
    for (size_t i = (hole + 1) & mask; map->slots[i].entry; i = (i + 1) & mask) {
        // An entry may fill the hole unless its home lies after the hole on the way to it.
        size_t home = map->slots[i].hash & mask;
        if (((i - home) & mask) >= ((i - hole) & mask)) {
            map->slots[hole] = map->slots[i];
            hole = i;
        }
    }
    map->slots[hole].entry = NULL;
    return value;
}

size_t map_count(const struct map *map)
{
    return map->count;
}

bool map_next(const struct map *map, size_t *iter, struct slice *key, void **value)
{
    while (*iter < map->slot_count) {
        struct entry *entry = map->slots[(*iter)++].entry;
        if (!entry)
            continue;
        if (key)
            *key = slice_of(entry->key, entry->len);
        if (value)
            *value = entry->value;
        return true;
    }
    return false;
}
