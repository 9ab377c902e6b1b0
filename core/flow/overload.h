#pragma once
// Overload of one worker: a pure rule that says when new model calls are refused so that those that
// run keep their speed. CoDel's idea: a queue that empties now and then is a burst, one that stands
// for a whole interval is too much work. What is watched is how long a turn of the event loop
// takes: what becomes ready meanwhile waits that long, and a turn after which nothing was ready
// shows that the queue was empty.
//
//   overload_turn      as each turn begins, with the cost of the one before (loop_watch)
//   overload_admit     once for each new model call
//
//   normal ──(turns of at least `target`, without a pause, for 3 × target)──▶ shedding
//   shedding ──(100 ms of turns without a refusal, or half idle)──▶ normal
//
// While shedding each turn takes up the calls of its first 2 ms (two at least) and refuses the
// rest: turns stay short, so refusals come fast, and there is always enough to do. When so many are
// refused that this alone makes turns long, serving gets as much time as refusing, half of the
// target at most. Streams that run are never touched. No clock of its own, no memory: worker thread
// only.
#include "base/slice.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct overload {
    uint64_t target_ns; // 0: never sheds
    uint64_t turn_ns;   // start of the present turn
    uint64_t above_ns;  // since when turns take too long; 0: they do not
    uint64_t calm_ns;   // start of the last turn that followed a refusal
    uint64_t slice_ns;  // calls are taken up so long
    uint64_t window_ns; // while shedding: since when idle_ns is counted
    uint64_t idle_ns;
    uint32_t admitted; // in this turn
    bool is_shedding;
    uint64_t turn_refused, refused; // in this turn; since it began to shed
};

enum overload_change { OVERLOAD_SAME, OVERLOAD_BEGINS, OVERLOAD_ENDS };

void overload_init(struct overload *overload, uint64_t target_ms);
enum overload_change overload_turn(struct overload *overload, uint64_t now_ns, uint64_t busy_ns,
                                   uint64_t waited_ns);
// now_ns is only read while shedding (overload->is_shedding): else 0 will do.
bool overload_admit(struct overload *overload, uint64_t now_ns);

// How a process's descriptors are shared out. Clients get at most half of what is left when the
// process itself has what it needs, because each call may need a socket to an upstream as well.
struct overload_descriptors {
    uint64_t limit;         // RLIMIT_NOFILE
    uint64_t used;          // open when asked
    uint32_t workers;       // each opens some for its loop
    uint64_t wanted;        // client connections, as configured
    uint64_t for_operators; // connections of admin and control listeners
};
// Client connections of the process: 1 at least, `wanted` at most.
uint64_t overload_client_share(const struct overload_descriptors *have);

// ---- what flow does with it (overload_refuse.c)
struct flow;
struct http1_stream;
struct script_route;

// Why a call was not taken up; the label of moongate_rejections_total.
enum overload_reason {
    OVERLOAD_CPU,
    OVERLOAD_MEMORY,
    OVERLOAD_BODIES,
    OVERLOAD_UPSTREAM,
    OVERLOAD_REASONS,
};

void overload_watch(struct flow *flow);
void overload_unwatch(struct flow *flow);
// True when it was refused here: 503 with Retry-After in the dialect of the path. Costs no Lua, no
// journal record and no identity.
bool overload_refuses_call(struct flow *flow, struct http1_stream *stream);
// The same for routes of plugins that are not the operator's, under memory pressure only.
bool overload_refuses_route(struct flow *flow, struct http1_stream *stream,
                            const struct script_route *route);
void overload_count(struct flow *flow, enum overload_reason reason);
// 1,000 to 2,000 ms, so that those who were refused together do not come back together.
int64_t overload_retry_ms(struct flow *flow);
