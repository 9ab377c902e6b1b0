// Plugins' shared memory: stripes of chained hash tables, each under a mutex that is held for one
// operation. What has expired is dropped when it is met, a little at each write, and all at once
// when the memory is full.
#include "state/kv.h"
#include "base/clock.h"
#include "base/map.h"
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

#define STRIPES 64
#define BUCKETS_MIN 16
#define OVERHEAD 64 // counted per entry beside its bytes
#define NAME_MAX_LEN 4096
#define VALUE_MAX_LEN (16u << 20)
#define SWEEP_BUCKETS 4
#define SWEEP_PAUSE_MS 10

struct entry {
    struct entry *next;
    uint64_t hash;
    uint64_t expires_ms; // boot; 0: never
    size_t space_len, key_len, value_len;
    char bytes[]; // space, key, value
};

struct stripe {
    pthread_mutex_t mutex;
    struct entry **buckets;
    size_t bucket_count; // power of two
    size_t count;
    size_t cursor; // next bucket to be swept
};

struct kv {
    size_t max_bytes;
    atomic_size_t used;
    _Atomic uint64_t next_sweep_ms;
    struct stripe stripes[STRIPES];
};

struct kv *kv_new(size_t max_bytes)
{
    struct kv *kv = calloc(1, sizeof(*kv));
    if (!kv)
        return NULL;
    kv->max_bytes = max_bytes;
    bool is_good = true;
    for (size_t i = 0; i < STRIPES; i++) {
        struct stripe *stripe = &kv->stripes[i];
        pthread_mutex_init(&stripe->mutex, NULL);
        stripe->bucket_count = BUCKETS_MIN;
        stripe->buckets = calloc(BUCKETS_MIN, sizeof(struct entry *));
        is_good = is_good && stripe->buckets;
    }
    if (!is_good) {
        kv_free(kv);
        return NULL;
    }
    return kv;
}

void kv_free(struct kv *kv)
{
    if (!kv)
        return;
    for (size_t i = 0; i < STRIPES; i++) {
        struct stripe *stripe = &kv->stripes[i];
        for (size_t b = 0; stripe->buckets && b < stripe->bucket_count; b++) {
            while (stripe->buckets[b]) {
                struct entry *entry = stripe->buckets[b];
                stripe->buckets[b] = entry->next;
                free(entry);
            }
        }
        free(stripe->buckets);
        pthread_mutex_destroy(&stripe->mutex);
    }
    free(kv);
}

static size_t cost_of(const struct entry *entry)
{
    return OVERHEAD + entry->space_len + entry->key_len + entry->value_len;
}

static struct slice value_of(const struct entry *entry)
{
    return slice_of(entry->bytes + entry->space_len + entry->key_len, entry->value_len);
}

static void drop_at(struct kv *kv, struct stripe *stripe, struct entry **place)
{
    struct entry *entry = *place;
    *place = entry->next;
    stripe->count--;
    atomic_fetch_sub_explicit(&kv->used, cost_of(entry), memory_order_relaxed);
    free(entry);
}

static bool has_expired(const struct entry *entry, uint64_t now_ms)
{
    return entry->expires_ms && entry->expires_ms <= now_ms;
}

static void sweep(struct kv *kv, struct stripe *stripe, size_t buckets, uint64_t now_ms)
{
    for (size_t i = 0; i < buckets; i++) {
        struct entry **place = &stripe->buckets[stripe->cursor++ & (stripe->bucket_count - 1)];
        while (*place) {
            if (has_expired(*place, now_ms))
                drop_at(kv, stripe, place);
            else
                place = &(*place)->next;
        }
    }
}

static void sweep_all(struct kv *kv, uint64_t now_ms)
{
    // Bounded in rate: full memory must not make each write walk all of it.
    uint64_t next = atomic_load(&kv->next_sweep_ms);
    if (now_ms < next ||
        !atomic_compare_exchange_strong(&kv->next_sweep_ms, &next, now_ms + SWEEP_PAUSE_MS))
        return;
    for (size_t i = 0; i < STRIPES; i++) {
        pthread_mutex_lock(&kv->stripes[i].mutex);
        sweep(kv, &kv->stripes[i], kv->stripes[i].bucket_count, now_ms);
        pthread_mutex_unlock(&kv->stripes[i].mutex);
    }
}

static uint64_t hash_of(struct slice space, struct slice key)
{
    return map_hash(space) * UINT64_C(0x9e3779b97f4a7c15) + map_hash(key);
}

static struct stripe *stripe_of(struct kv *kv, uint64_t hash)
{
    return &kv->stripes[hash >> 58];
}

// The place of the living entry, or of the end of its chain. Locked.
static struct entry **find(struct kv *kv, struct stripe *stripe, uint64_t hash, struct slice space,
                           struct slice key, uint64_t now_ms)
{
    struct entry **place = &stripe->buckets[hash & (stripe->bucket_count - 1)];
    while (*place) {
        struct entry *entry = *place;
        if (entry->hash == hash && slice_eq(slice_of(entry->bytes, entry->space_len), space) &&
            slice_eq(slice_of(entry->bytes + entry->space_len, entry->key_len), key)) {
            if (!has_expired(entry, now_ms))
                return place;
            drop_at(kv, stripe, place);
            continue;
        }
        place = &entry->next;
    }
    return place;
}

static void grow(struct stripe *stripe)
{
    size_t count = stripe->bucket_count * 2;
    struct entry **buckets = calloc(count, sizeof(*buckets));
    if (!buckets)
        return; // longer chains, nothing worse
    for (size_t i = 0; i < stripe->bucket_count; i++) {
        while (stripe->buckets[i]) {
            struct entry *entry = stripe->buckets[i];
            stripe->buckets[i] = entry->next;
            entry->next = buckets[entry->hash & (count - 1)];
            buckets[entry->hash & (count - 1)] = entry;
        }
    }
    free(stripe->buckets);
    stripe->buckets = buckets;
    stripe->bucket_count = count;
}

static bool take_room(struct kv *kv, size_t cost, size_t given_back)
{
    size_t used = atomic_load_explicit(&kv->used, memory_order_relaxed);
    do {
        if (used - given_back + cost > kv->max_bytes)
            return false;
    } while (!atomic_compare_exchange_weak(&kv->used, &used, used + cost));
    return true;
}

// Puts a new entry in place of the one at `place` (if any). Locked. GW_EFULL, GW_ENOMEM.
static int put(struct kv *kv, struct stripe *stripe, struct entry **place, uint64_t hash,
               struct slice space, struct slice key, struct slice value, uint64_t expires_ms)
{
    size_t size = space.len + key.len + value.len;
    if (!take_room(kv, OVERHEAD + size, *place ? cost_of(*place) : 0))
        return GW_EFULL;
    struct entry *entry = malloc(sizeof(*entry) + size);
    if (!entry) {
        atomic_fetch_sub(&kv->used, OVERHEAD + size);
        return GW_ENOMEM;
    }
    *entry = (struct entry){NULL, hash, expires_ms, space.len, key.len, value.len};
    memcpy(entry->bytes, space.len ? space.ptr : "", space.len);
    memcpy(entry->bytes + space.len, key.len ? key.ptr : "", key.len);
    memcpy(entry->bytes + space.len + key.len, value.len ? value.ptr : "", value.len);
    if (*place)
        drop_at(kv, stripe, place);
    entry->next = *place;
    *place = entry;
    if (++stripe->count > stripe->bucket_count * 2)
        grow(stripe);
    return 0;
}

static uint64_t expiry(uint64_t now_ms, uint64_t ttl_ms)
{
    return ttl_ms == 0 ? 0 : ttl_ms > UINT64_MAX - now_ms ? UINT64_MAX : now_ms + ttl_ms;
}

static int set(struct kv *kv, struct slice space, struct slice key, struct slice value,
               uint64_t ttl_ms, bool only_new)
{
    if (space.len > NAME_MAX_LEN || key.len > NAME_MAX_LEN || value.len > VALUE_MAX_LEN)
        return GW_ETOOBIG;
    uint64_t hash = hash_of(space, key), now_ms = clock_boot_ms();
    struct stripe *stripe = stripe_of(kv, hash);
    int err = 0;
    for (int turn = 0; turn < 2; turn++) {
        pthread_mutex_lock(&stripe->mutex);
        sweep(kv, stripe, SWEEP_BUCKETS, now_ms);
        struct entry **place = find(kv, stripe, hash, space, key, now_ms);
        err = only_new && *place
                  ? GW_EEXISTS
                  : put(kv, stripe, place, hash, space, key, value, expiry(now_ms, ttl_ms));
        pthread_mutex_unlock(&stripe->mutex);
        if (err != GW_EFULL || turn)
            break;
        sweep_all(kv, now_ms);
    }
    return err;
}

int kv_set(struct kv *kv, struct slice space, struct slice key, struct slice value, uint64_t ttl_ms)
{
    return set(kv, space, key, value, ttl_ms, false);
}

int kv_add(struct kv *kv, struct slice space, struct slice key, struct slice value, uint64_t ttl_ms)
{
    return set(kv, space, key, value, ttl_ms, true);
}

int kv_get(struct kv *kv, struct slice space, struct slice key, struct buf *out)
{
    uint64_t hash = hash_of(space, key);
    struct stripe *stripe = stripe_of(kv, hash);
    pthread_mutex_lock(&stripe->mutex);
    struct entry **place = find(kv, stripe, hash, space, key, clock_boot_ms());
    int err = *place ? buf_append(out, value_of(*place)) : GW_ENOTFOUND;
    pthread_mutex_unlock(&stripe->mutex);
    return err;
}

int kv_drop(struct kv *kv, struct slice space, struct slice key)
{
    uint64_t hash = hash_of(space, key);
    struct stripe *stripe = stripe_of(kv, hash);
    int err = GW_ENOTFOUND;
    pthread_mutex_lock(&stripe->mutex);
    struct entry **place = find(kv, stripe, hash, space, key, clock_boot_ms());
    if (*place) {
        drop_at(kv, stripe, place);
        err = 0;
    }
    pthread_mutex_unlock(&stripe->mutex);
    return err;
}

static int read_number(struct slice text, int64_t *out)
{
    unsigned long long magnitude = 0;
    bool is_negative = slice_starts(text, "-");
    unsigned long long max = (unsigned long long)INT64_MAX + (is_negative ? 1 : 0);
    if (slice_to_u64(slice_from(text, is_negative), max, &magnitude) != 0)
        return GW_EINVAL;
    *out = is_negative ? (int64_t)(0 - magnitude) : (int64_t)magnitude;
    return 0;
}

int kv_incr(struct kv *kv, struct slice space, struct slice key, int64_t by, uint64_t ttl_ms,
            int64_t *out)
{
    if (space.len > NAME_MAX_LEN || key.len > NAME_MAX_LEN)
        return GW_ETOOBIG;
    uint64_t hash = hash_of(space, key), now_ms = clock_boot_ms();
    struct stripe *stripe = stripe_of(kv, hash);
    int err = 0;
    for (int turn = 0; turn < 2; turn++) {
        int64_t number = 0;
        char text[32];
        pthread_mutex_lock(&stripe->mutex);
        sweep(kv, stripe, SWEEP_BUCKETS, now_ms);
        struct entry **place = find(kv, stripe, hash, space, key, now_ms);
        uint64_t expires_ms = *place ? (*place)->expires_ms : expiry(now_ms, ttl_ms);
        err = *place ? read_number(value_of(*place), &number) : 0;
        if (err == 0 && __builtin_add_overflow(number, by, &number))
            err = GW_ETOOBIG;
        if (err == 0) {
            int len = snprintf(text, sizeof(text), "%lld", (long long)number);
            err = put(kv, stripe, place, hash, space, key, slice_of(text, (size_t)len), expires_ms);
        }
        pthread_mutex_unlock(&stripe->mutex);
        if (err == 0)
            *out = number;
        if (err != GW_EFULL || turn)
            break;
        sweep_all(kv, now_ms);
    }
    return err;
}
