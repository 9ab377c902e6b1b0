// Health slots. The circuit is one number, the time at which it may be probed: 0 means closed,
// a time to come open, a time that has passed half open. All transitions are single atomic writes,
// so a slot needs no lock; two results that meet may each be counted, neither can corrupt it.
#include "state/health.h"
#include <pthread.h>
#include <stdlib.h>

#define BUCKETS 256
#define FAILURES_TO_OPEN 5
#define OPEN_MS 10000
#define RETRY_AFTER_MAX_MS 60000
#define RETRY_AFTER_DEFAULT_MS 5000
// A probe whose exchange never ends gives its permission back after this long.
#define PROBE_MS 60000

struct health_slot {
    struct health_slot *next;
    int64_t upstream_id;
    _Atomic uint32_t in_flight, failures_in_row;
    _Atomic uint64_t started, succeeded, failed;
    _Atomic uint32_t latency_16;  // moving average × 16
    _Atomic uint64_t probe_at_ms; // 0: closed
    _Atomic uint64_t probing_until_ms;
    _Atomic uint64_t limited_until_ms; // after a 429
};

struct health {
    pthread_mutex_t mutex; // of the chains; slots are only added
    struct health_slot *buckets[BUCKETS];
};

struct health *health_new(void)
{
    struct health *health = calloc(1, sizeof(*health));
    if (health)
        pthread_mutex_init(&health->mutex, NULL);
    return health;
}

void health_free(struct health *health)
{
    if (!health)
        return;
    for (size_t i = 0; i < BUCKETS; i++) {
        while (health->buckets[i]) {
            struct health_slot *slot = health->buckets[i];
            health->buckets[i] = slot->next;
            free(slot);
        }
    }
    pthread_mutex_destroy(&health->mutex);
    free(health);
}

struct health_slot *health_slot_of(struct health *health, int64_t upstream_id)
{
    struct health_slot **bucket = &health->buckets[(uint64_t)upstream_id % BUCKETS];
    pthread_mutex_lock(&health->mutex);
    struct health_slot *slot = *bucket;
    while (slot && slot->upstream_id != upstream_id)
        slot = slot->next;
    if (!slot) {
        slot = calloc(1, sizeof(*slot));
        if (slot) {
            slot->upstream_id = upstream_id;
            slot->next = *bucket;
            *bucket = slot;
        }
    }
    pthread_mutex_unlock(&health->mutex);
    return slot;
}

bool health_take_probe(struct health_slot *slot, uint64_t now_ms)
{
    uint64_t probe_at = atomic_load(&slot->probe_at_ms);
    if (probe_at == 0)
        return true;
    if (now_ms < probe_at)
        return false;
    uint64_t until = atomic_load(&slot->probing_until_ms);
    return now_ms >= until &&
           atomic_compare_exchange_strong(&slot->probing_until_ms, &until, now_ms + PROBE_MS);
}

bool health_is_usable(struct health_slot *slot, uint64_t now_ms)
{
    if (now_ms < atomic_load(&slot->limited_until_ms))
        return false;
    uint64_t probe_at = atomic_load(&slot->probe_at_ms);
    return probe_at == 0 || (now_ms >= probe_at && now_ms >= atomic_load(&slot->probing_until_ms));
}

bool health_is_full(const struct health_slot *slot, uint32_t max)
{
    return max && atomic_load(&slot->in_flight) >= max;
}

void health_begin(struct health_slot *slot, uint64_t now_ms)
{
    (void)!health_try_begin(slot, now_ms, 0);
}

bool health_try_begin(struct health_slot *slot, uint64_t now_ms, uint32_t max)
{
    uint32_t in_flight = atomic_load(&slot->in_flight);
    do {
        if (max && in_flight >= max)
            return false;
    } while (!atomic_compare_exchange_weak(&slot->in_flight, &in_flight, in_flight + 1));
    atomic_fetch_add(&slot->started, 1);
    // Whoever begins while the circuit is half open is the probe, if there is none yet.
    if (atomic_load(&slot->probe_at_ms))
        (void)health_take_probe(slot, now_ms);
    return true;
}

static void take_latency(struct health_slot *slot, uint32_t latency_ms)
{
    uint32_t old = atomic_load(&slot->latency_16), value;
    uint64_t scaled = (uint64_t)(latency_ms > 10000000 ? 10000000 : latency_ms) * 16;
    do {
        value = old == 0 ? (uint32_t)scaled
                         : (uint32_t)((int64_t)old + ((int64_t)scaled - (int64_t)old) / 8);
    } while (!atomic_compare_exchange_weak(&slot->latency_16, &old, value));
}

static void close_circuit(struct health_slot *slot)
{
    atomic_store(&slot->failures_in_row, 0);
    atomic_store(&slot->probe_at_ms, 0);
    atomic_store(&slot->probing_until_ms, 0);
}

static void count_failure(struct health_slot *slot, uint64_t now_ms)
{
    atomic_fetch_add(&slot->failed, 1);
    uint32_t in_row = atomic_fetch_add(&slot->failures_in_row, 1) + 1;
    uint64_t probe_at = atomic_load(&slot->probe_at_ms);
    // Opens at the fifth failure, and again when the probe fails.
    if (in_row >= FAILURES_TO_OPEN && (probe_at == 0 || now_ms >= probe_at)) {
        atomic_store(&slot->probe_at_ms, now_ms + OPEN_MS);
        atomic_store(&slot->probing_until_ms, 0);
    }
}

void health_end(struct health_slot *slot, uint64_t now_ms, enum health_result result,
                uint32_t latency_ms, int64_t retry_after_ms)
{
    atomic_fetch_sub(&slot->in_flight, 1);
    if (latency_ms)
        take_latency(slot, latency_ms);
    uint64_t probe_at = atomic_load(&slot->probe_at_ms);
    bool is_half_open = probe_at && now_ms >= probe_at;
    switch (result) {
    case HEALTH_OK:
        atomic_fetch_add(&slot->succeeded, 1);
        atomic_store(&slot->limited_until_ms, 0);
        close_circuit(slot);
        break;
    case HEALTH_CLIENT_ERROR:
        // It answered: as a probe that is proof enough.
        if (is_half_open)
            close_circuit(slot);
        break;
    case HEALTH_RATE_LIMITED: {
        int64_t wait_ms = retry_after_ms < 0 ? RETRY_AFTER_DEFAULT_MS : retry_after_ms;
        if (wait_ms > RETRY_AFTER_MAX_MS)
            wait_ms = RETRY_AFTER_MAX_MS;
        atomic_fetch_add(&slot->failed, 1);
        atomic_store(&slot->limited_until_ms, now_ms + (uint64_t)wait_ms);
        if (is_half_open)
            close_circuit(slot);
        break;
    }
    case HEALTH_SERVER_ERROR:
    case HEALTH_CONNECT_ERROR:
    case HEALTH_TIMEOUT:
    case HEALTH_AUTH_ERROR: count_failure(slot, now_ms); break;
    case HEALTH_CANCELLED:
        // No verdict; another may probe.
        if (is_half_open)
            atomic_store(&slot->probing_until_ms, 0);
        break;
    }
}

void health_read(const struct health_slot *slot, uint64_t now_ms, struct health_view *view)
{
    uint64_t probe_at = atomic_load(&slot->probe_at_ms);
    uint64_t limited = atomic_load(&slot->limited_until_ms);
    uint64_t until = probe_at > limited ? probe_at : limited;
    *view = (struct health_view){
        .in_flight = atomic_load(&slot->in_flight),
        .started = atomic_load(&slot->started),
        .succeeded = atomic_load(&slot->succeeded),
        .failed = atomic_load(&slot->failed),
        .failures_in_row = atomic_load(&slot->failures_in_row),
        .latency_ms = (atomic_load(&slot->latency_16) + 8) / 16,
        .circuit = probe_at == 0       ? HEALTH_CLOSED
                   : now_ms < probe_at ? HEALTH_OPEN
                                       : HEALTH_HALF_OPEN,
        .cool_until_ms = until > now_ms ? until : 0,
    };
}
