#pragma once
// The plugin host as flow and main see it: plugin sets (process-wide, immutable), one script per
// worker with its generations, hooks, routes, answers, tasks. DESIGN §7.
//
// Life: plugin_set_load (helper thread or start) → script_prepare on every worker → all ready →
// script_flip on every worker (one epoch) → plugin_set_unref(old). A failure anywhere discards the
// prepared generations; the old set runs on.
#include "base/arena.h"
#include "base/err.h"
#include "base/slice.h"
#include "codec/event.h"
#include "io/fetch.h"
#include "io/loop.h"
#include "script/ctx.h"
#include "script/quirk.h"
#include "state/conf.h"
#include "state/kv.h"
#include "state/stats.h"
#include "state/store.h"
#include <stdint.h>

struct plugin_set;
struct script;
struct script_generation;

// Reads, compiles and validates every configured plugin in a scratch state: syntax, contract,
// config against its schema, order (after/before), route conflicts, quirks. Off the workers.
// problems gets one "file:line: what" per line, warnings begin with "warning: ".
GW_MUSTCHECK int plugin_set_load(const struct conf *conf, struct plugin_set **out,
                                 struct buf *problems);
struct plugin_set *plugin_set_ref(struct plugin_set *set);
void plugin_set_unref(struct plugin_set *set);
size_t plugin_set_count(const struct plugin_set *set);
// One line per plugin, more of one named plugin (only: its name, or empty for all). GW_ENOTFOUND.
GW_MUSTCHECK int plugin_set_describe(const struct plugin_set *set, struct slice only,
                                     struct buf *out);
// docs/plugin-api.md, from the same table that the host checks itself against.
GW_MUSTCHECK int plugin_docs_write(struct buf *out);
// After a reload the set goes on with the process's configuration; the one it was loaded from may
// then be freed. Before the set is given to a worker.
void plugin_set_use_conf(struct plugin_set *set, const struct conf *conf);
// Applies the plugins' SQL migrations. Off the workers.
GW_MUSTCHECK int plugin_set_migrate(const struct plugin_set *set, struct store *store,
                                    struct buf *problems);
// docs/plugin-api.md and the OpenAPI document, from the same declarations.
GW_MUSTCHECK int plugin_set_openapi(const struct plugin_set *set, struct buf *out);

enum script_hook {
    SCRIPT_IDENTIFY,
    SCRIPT_ADMIT,
    SCRIPT_SELECT,
    SCRIPT_PREPARE,
    SCRIPT_REPLY,
    SCRIPT_BODY,
    SCRIPT_DELTA,
    SCRIPT_PRICE,
    SCRIPT_ERROR,
    SCRIPT_FINISH,
    SCRIPT_HOOK_COUNT,
};

enum script_outcome {
    SCRIPT_PENDING = 1, // the hook yielded: on_hook comes later
    SCRIPT_PASS,     // nobody objected (select: candidates are set; identify: is_identified tells)
    SCRIPT_DENIED,   // ctx->error says how
    SCRIPT_ANSWERED, // ctx->respond is set
    SCRIPT_RETRY,    // reply: next candidate
};

// What flow implements for plugins. user is script_options.host_user.
struct script_host {
    // A hook that yielded has ended.
    void (*on_hook)(struct ctx *ctx, enum script_hook hook, enum script_outcome outcome);
    // One neutral event of a plugin's answer. 0; GW_EAGAIN: taken, but wait for
    // script_answer_writable; GW_ERESET: the client is gone.
    int (*on_answer_event)(struct ctx *ctx, const struct event *event);
    // The answer's function ended: err 0, or it failed (ctx->error is set).
    void (*on_answer_end)(struct ctx *ctx, int err);
    // A plugin route has its response (body, headers: the request's arena), also for errors.
    void (*on_route)(void *route_user, int status, const struct http1_header *headers, size_t count,
                     struct slice body);
    // Looks an exchange up by what Lua holds; NULL when it is gone.
    struct ctx *(*find_ctx)(void *user, struct slab_handle handle);
    // Starts a reload of plugins; done is called on this worker with the problems' text.
    int (*reload)(void *user, void (*done)(void *arg, int err, struct slice problems), void *arg);
    // Process information as JSON (gw.process.info / ready), Prometheus text (metrics).
    int (*process_info)(void *user, struct buf *out);
    int (*process_ready)(void *user, struct buf *out, bool *is_ready);
    int (*process_metrics)(void *user, struct buf *out);
};

struct script_options {
    const struct conf *conf;
    struct loop *loop;
    struct fetcher *fetcher;
    struct store *store;
    struct kv *kv;
    struct stats *stats;
    struct stats_shard *shard;
    uint32_t worker, worker_count;
    const struct script_host *host;
    void *host_user;
};
GW_MUSTCHECK int script_new(const struct script_options *options, struct script **out);
// All exchanges must be gone; runs close hooks.
void script_free(struct script *script);

// Builds a generation beside the current one (runs init). On failure problems says file:line.
GW_MUSTCHECK int script_prepare(struct script *script, struct plugin_set *set,
                                struct buf *problems);
void script_discard(struct script *script); // the prepared one
// The prepared generation becomes current: new exchanges use it, old tasks stop, new ones start,
// old exchanges finish on theirs (at most 4 generations).
void script_flip(struct script *script);
// The current generation starts no task any more: another process runs them from now on.
void script_stop_tasks(struct script *script);
// End-of-turn work: garbage collection by memory level, just-freed coroutines.
void script_turn_end(struct script *script);
size_t script_memory_used(const struct script *script);
size_t script_generation_count(const struct script *script);

// Binds an exchange to the current generation; release when it ends (after finish).
void script_bind(struct script *script, struct ctx *ctx);
void script_release(struct ctx *ctx);
bool script_has_hook(const struct ctx *ctx, enum script_hook hook);
// Runs a hook of all plugins in order. SCRIPT_PENDING: host->on_hook follows. At most one at a
// time per exchange. Not for BODY, DELTA, PRICE.
enum script_outcome script_run_hook(struct ctx *ctx, enum script_hook hook);
// A whole answer through the body hooks; *out is body itself or arena text. SCRIPT_PENDING:
// host->on_hook follows and the text is ctx->body_text then.
enum script_outcome script_run_body(struct ctx *ctx, struct slice body, struct slice *out);
// One text piece through the delta hooks. 0: unchanged; 1: *out replaces it; 2: drop the event;
// 3: a hook failed whose plugin denies then, ctx->error says so and the stream must end.
int script_run_delta(struct ctx *ctx, enum event_block block, struct slice text, struct slice *out);
bool script_wants_delta(const struct ctx *ctx, enum event_block block);
// Sets ctx->has_cost, cost_nano, price_version. Never yields.
void script_run_price(struct ctx *ctx);
// Starts the answer function of CTX_ANSWER_EVENTS; on_answer_event/on_answer_end follow, maybe at
// once.
void script_answer_start(struct ctx *ctx);
void script_answer_writable(struct ctx *ctx);
// Cancels what is pending for this exchange: its coroutine is resumed once with "cancelled", then
// dropped; no callback follows.
void script_cancel(struct ctx *ctx);

// Plugin routes. find: SCRIPT route or NULL; *allow gets a comma list of methods when the path is
// known but not the method (else empty).
struct script_route;
const struct script_route *script_route_find(struct script *script, enum http1_method method,
                                             struct slice path, struct slice *allow);
// For a path that neither flow nor a plugin serves: a route that answers 404 (405 when
// script_route_find gave methods) in the shape of the plugin whose prefix it is under; NULL:
// nobody's.
const struct script_route *script_route_missing(struct script *script, struct slice path);
uint64_t script_route_max_body(const struct script_route *route);
bool script_route_is_admin(const struct script_route *route); // serves admins only
// The route's pattern ("/admin/keys/{uid}") and plugin, for logs; valid as long as the script.
struct slice script_route_pattern(const struct script_route *route);
struct slice script_route_plugin(const struct script_route *route);
struct script_route_call; // one running call
struct script_route_request {
    const struct http1_request *request;
    struct slice body; // complete
    struct slice client_ip, request_id;
    bool is_control; // came by the control socket: admin
    struct arena *arena;
};
// Checks auth and schemas, runs the handler; host->on_route(route_user, …) follows, maybe at once.
// *call is NULL when it was answered at once.
GW_MUSTCHECK int script_route_start(struct script *script, const struct script_route *route,
                                    const struct script_route_request *request, void *route_user,
                                    struct script_route_call **call);
void script_route_cancel(struct script_route_call *call);

// Names of models that plugins of the current generation answer themselves (valid until the flip).
const struct slice *script_models(const struct script *script, size_t *count);

// The quirk of a provider in this exchange's generation; the generic one when unknown.
const struct quirk *script_quirk(const struct ctx *ctx, struct slice provider);
