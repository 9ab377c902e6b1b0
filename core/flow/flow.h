#pragma once
// Flow: the order of a request's life, the only place that knows it. One flow per worker ties the
// HTTP server, the plugin host, the fetcher and the state together. main makes it; everything else
// in this folder is internal (exchange.h).
//
//   router → admission (identify, body, admit, select) → attempt (prepare, fetch, reply) → relay
//          → finish (usage, price, journal, access log)
//
// Worker thread only, but for struct flow_shared, which is shared by all workers (atomics).
#include "base/err.h"
#include "base/pressure.h"
#include "io/fetch.h"
#include "io/http1.h"
#include "io/loop.h"
#include "script/script.h"
#include "state/conf.h"
#include "state/stats.h"
#include "state/store.h"
#include <stdatomic.h>
#include <stdint.h>

struct flow;

// What the workers of a process share. Zeroed by main, lives as long as the process.
struct flow_shared {
    _Atomic int64_t body_bytes; // request bodies in flight, all workers
    _Atomic bool is_draining;
    _Atomic uint64_t exchanges; // in flight
    _Atomic uint32_t shedding;  // workers that refuse calls for want of CPU
    struct pressure *pressure;  // of memory; NULL: nobody watches it
    struct http1_ips *ips;      // counts of connections; NULL: none are kept
    int64_t started_wall_ms;
    // main's: starts a reload; done on the worker that asked (see script_host.reload).
    int (*reload)(struct flow_shared *shared, struct loop *loop,
                  void (*done)(void *arg, int err, struct slice problems), void *arg);
    // main's: starts a successor (main/upgrade.h); text: its process number, or what went wrong.
    int (*upgrade)(struct flow_shared *shared, struct loop *loop,
                   void (*done)(void *arg, int err, struct slice text), void *arg);
    void *main; // main's own
};

struct flow_metrics; // numbers of the registered metrics
// Registers flow's metrics; once per process, before the workers start.
GW_MUSTCHECK int flow_metrics_register(struct stats *stats, struct flow_metrics **out);
void flow_metrics_free(struct flow_metrics *metrics);

struct flow_options {
    const struct conf *conf;
    struct loop *loop;
    struct fetcher *fetcher;
    struct store *store;
    struct stats *stats;
    struct stats_shard *shard;
    const struct flow_metrics *metrics;
    struct flow_shared *shared;
    uint32_t worker;
};
GW_MUSTCHECK int flow_new(const struct flow_options *options, struct flow **out);
void flow_free(struct flow *flow); // no exchange may be left
// The script is made with flow_host() and flow as host_user, then given here.
const struct script_host *flow_host(void);
void flow_set_script(struct flow *flow, struct script *script);
// The server is made with flow_handler() and flow as user.
const struct http1_handler *flow_handler(void);
void flow_set_server(struct flow *flow, struct http1_server *server);
size_t flow_exchange_count(const struct flow *flow);
// End-of-turn work is due: Lua's memory, generations and exchanges that have ended.
void flow_touch(struct flow *flow);
// Ends what is left when the drain time is over: streams get an error in their dialect.
void flow_end_all(struct flow *flow, const char *reason);
// At stop, when no connection is left: finish hooks that still wait are dropped, the rows written.
void flow_drop_all(struct flow *flow);
// True while another thread holds memory of this flow (control calls): its loop must go on.
bool flow_is_awaited(const struct flow *flow);

// Listener tags (http1_request.listener_tag).
enum { FLOW_LISTENER_PUBLIC = 1, FLOW_LISTENER_ADMIN = 2, FLOW_LISTENER_CONTROL = 3 };
