#pragma once
// What an answer of bench_upstream consists of, made once for each distinct order ("kind=…,…") and
// kept: pieces that are shared by all connections. One thread.
#include "common/http.h"
#include <stdbool.h>
#include <stdint.h>

#define PLAN_DISTINCT 128 // different events of one plan; a longer stream repeats them

enum plan_dialect { PLAN_CHAT, PLAN_MESSAGES };
enum plan_kind { PLAN_UNARY, PLAN_BURST, PLAN_EVENTS, PLAN_IDLE, PLAN_HANG, PLAN_RESET };

struct plan_event {
    char *bytes;            // with its chunk's framing
    uint32_t len, stamp_at; // stamp_at 0: none
};

struct plan {
    char *order;
    enum plan_dialect dialect;
    enum plan_kind kind;
    uint32_t status, piece_bytes; // piece_bytes: unary answers go out so many at a time; 0: whole
    uint64_t delay_ns, gap_ns, hold_ns, events; // hold_ns 0: for ever
    bool is_stamped, closes;
    char *head; // of a stream; the whole of a unary answer or a burst
    size_t head_len;
    struct plan_event list[PLAN_DISTINCT];
    uint32_t distinct;
    char *tail;
    size_t tail_len;
};

#define PLAN_STAMP "@t="
#define PLAN_STAMP_DIGITS 19

extern const char plan_help[];
// The plan of an order; unknown words are an error: NULL.
const struct plan *plan_find(struct span order, enum plan_dialect dialect);
void plan_free_all(void);
