#pragma once
// Hash map from byte strings to pointers; SipHash-2-4 under a per-process random key, so peers
// cannot choose collisions. Keys are copied. Not thread-safe.
#include "base/err.h"
#include "base/slice.h"
#include <stdint.h>

struct map;

struct map *map_new(void);                                       // NULL: no memory
void map_free(struct map *map, void (*free_value)(void *value)); // free_value may be NULL
// Puts or replaces; gives the replaced value in *old when old is not NULL.
GW_MUSTCHECK int map_put(struct map *map, struct slice key, void *value, void **old);
void *map_get(const struct map *map, struct slice key); // NULL: absent
void *map_take(struct map *map, struct slice key);      // removes; NULL: absent
size_t map_count(const struct map *map);
// Walks all entries in no particular order; start with *iter = 0. The map must not change.
bool map_next(const struct map *map, size_t *iter, struct slice *key, void **value);

// SipHash-2-4 of bytes under the process key, for other keyed tables.
uint64_t map_hash(struct slice key);
// The hash itself (Aumasson and Bernstein 2012), key as 16 bytes.
uint64_t siphash24(const uint8_t key[16], const void *data, size_t len);
