// The rules of overload.h. Nothing here knows a clock, a socket or the flow.
#include "flow/overload.h"

#define INTERVAL_NS UINT64_C(100000000)
// The loop finds something ready at once when it waits less than this.
#define IDLE_NS UINT64_C(100000)
#define SLICE_NS UINT64_C(2000000)
#define REFUSAL_NS UINT64_C(8000) // what one costs, about
#define CALLS_PER_TURN 2u

// What opens after the process was asked how much it uses: a worker's epoll, wake-up, signal pipe,
// reserve descriptors; a log file opened anew, a database file.
#define PER_WORKER 8u
#define PER_PROCESS 6u
// Sockets that were refused and are not yet closed (http1_refuse.c): a 32nd of the connections.
#define LINGERING_PER_WORKER 64u

void overload_init(struct overload *overload, uint64_t target_ms)
{
    *overload = (struct overload){.target_ns = target_ms * UINT64_C(1000000)};
}

// Serving gets no less time than the refusals of the turn before took.
static uint64_t next_slice(const struct overload *overload)
{
    uint64_t slice = overload->turn_refused * REFUSAL_NS;
    if (slice > overload->target_ns / 2)
        slice = overload->target_ns / 2;
    return slice < SLICE_NS ? SLICE_NS : slice;
}

// Bursts that come less than 100 ms apart are refused in part each time, however little they cost:
// a loop that has had nothing to do for half of the time does not need that. One with too much to
// do is never idle, because each turn takes up as much as it may.
static bool was_idle(struct overload *overload, uint64_t now_ns, uint64_t waited_ns)
{
    uint64_t window = now_ns - overload->window_ns;
    overload->idle_ns += waited_ns;
    if (window < INTERVAL_NS)
        return false;
    bool was_idle = overload->idle_ns >= window / 2;
    overload->window_ns = now_ns;
    overload->idle_ns = 0;
    return was_idle;
}

enum overload_change overload_turn(struct overload *overload, uint64_t now_ns, uint64_t busy_ns,
                                   uint64_t waited_ns)
{
    overload->turn_ns = now_ns;
    overload->admitted = 0;
    if (overload->target_ns == 0)
        return OVERLOAD_SAME;
    if (overload->is_shedding) {
        if (overload->turn_refused)
            overload->calm_ns = now_ns;
        overload->slice_ns = next_slice(overload);
        overload->turn_refused = 0;
        if (!was_idle(overload, now_ns, waited_ns) && now_ns - overload->calm_ns < INTERVAL_NS)
            return OVERLOAD_SAME;
        overload->is_shedding = false;
        overload->above_ns = 0;
        return OVERLOAD_ENDS;
    }
    if (waited_ns >= IDLE_NS || busy_ns < overload->target_ns) {
        overload->above_ns = 0;
        return OVERLOAD_SAME;
    }
    if (overload->above_ns == 0) {
        overload->above_ns = now_ns;
        return OVERLOAD_SAME;
    }
    // One long turn leaves a queue behind that takes a few more to go.
    uint64_t patience = 3 * overload->target_ns;
    if (now_ns - overload->above_ns < (patience > INTERVAL_NS ? patience : INTERVAL_NS))
        return OVERLOAD_SAME;
    overload->is_shedding = true;
    overload->calm_ns = overload->window_ns = now_ns;
    overload->idle_ns = 0;
    overload->slice_ns = SLICE_NS;
    overload->turn_refused = 0;
    overload->refused = 0;
    return OVERLOAD_BEGINS;
}

bool overload_admit(struct overload *overload, uint64_t now_ns)
{
    if (!overload->is_shedding)
        return true;
    if (overload->admitted < CALLS_PER_TURN || now_ns - overload->turn_ns < overload->slice_ns) {
        overload->admitted++;
        return true;
    }
    overload->refused++;
    overload->turn_refused++;
    return false;
}

uint64_t overload_client_share(const struct overload_descriptors *have)
{
    uint64_t needed =
        have->used + PER_PROCESS + (uint64_t)have->workers * PER_WORKER + have->for_operators;
    uint64_t left = have->limit > needed ? have->limit - needed : 0;
    uint64_t lingering = (uint64_t)have->workers * LINGERING_PER_WORKER;
    if (lingering > left / 16)
        lingering = left / 16;
    uint64_t share = (left - lingering) / 2;
    if (share > have->wanted)
        share = have->wanted;
    return share ? share : 1;
}
