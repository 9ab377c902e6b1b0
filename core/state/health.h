#pragma once
// Health of upstreams: in flight, latency, breaker and cool-down, in slots that survive catalogue
// swaps. Cool-down only reorders: the last usable candidate is always tried (SURFACES §0.2).
// 429 → its Retry-After (≤ 60 s); five connect errors or 5xx in a row → 10 s, then one probe.
// 400/404/413/422 never count. Any thread; atomics only.
#include "base/err.h"
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct health;
struct health_slot; // one per upstream id

enum health_result {
    HEALTH_OK,
    HEALTH_CLIENT_ERROR, // 400, 404, 413, 422: says nothing of the upstream
    HEALTH_RATE_LIMITED, // 429
    HEALTH_SERVER_ERROR, // 5xx, error inside a stream, cut
    HEALTH_CONNECT_ERROR,
    HEALTH_TIMEOUT,
    HEALTH_AUTH_ERROR, // 401, 403: our key is bad
    HEALTH_CANCELLED,  // the client left: no verdict
};
enum health_circuit { HEALTH_CLOSED, HEALTH_OPEN, HEALTH_HALF_OPEN };

struct health_view {
    uint32_t in_flight;
    uint64_t started, succeeded, failed;
    uint32_t failures_in_row;
    uint32_t latency_ms; // moving average of time to first byte
    enum health_circuit circuit;
    uint64_t cool_until_ms; // boot ms; 0: not cooling
};

struct health *health_new(void);
void health_free(struct health *health);
// The slot of an upstream id, made when absent; lives as long as health. NULL: no memory.
struct health_slot *health_slot_of(struct health *health, int64_t upstream_id);
void health_begin(struct health_slot *slot, uint64_t now_ms);
// The same, unless max calls (0: any number) are in flight: false, and nothing was begun.
GW_MUSTCHECK bool health_try_begin(struct health_slot *slot, uint64_t now_ms, uint32_t max);
bool health_is_full(const struct health_slot *slot, uint32_t max); // 0: never
// latency_ms: time to first byte, 0 when none came. retry_after_ms < 0: none given.
void health_end(struct health_slot *slot, uint64_t now_ms, enum health_result result,
                uint32_t latency_ms, int64_t retry_after_ms);
void health_read(const struct health_slot *slot, uint64_t now_ms, struct health_view *view);
// True when it should be preferred now: closed, or half open and nobody probes yet. Takes nothing:
// the one probe belongs to the exchange that then calls health_begin (or took it before).
bool health_is_usable(struct health_slot *slot, uint64_t now_ms);
// Takes the probe permission; false when another exchange has it or the circuit is open. True and
// nothing taken when it is closed. Given back by health_end, or after 60 s.
bool health_take_probe(struct health_slot *slot, uint64_t now_ms);
