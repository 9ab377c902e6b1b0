#pragma once
// One exchange: a client's call from its head to its log row. Internal to flow. All of it runs on
// the worker's thread. The exchange is a slab object; Lua and late callbacks hold its handle.
//
//   IDENTIFY → BODY → ADMIT → SELECT → PREPARE → FETCH → REPLY ─┬→ RELAY → ENDING → FINISH → DONE
//                                ↑_________ next candidate ______┘
//   ANSWER: a plugin answers instead of an upstream.  ERROR: the error hook runs.
//   Each state but DONE may go to ERROR or FINISH. A client that leaves goes to FINISH at once.
//
// It holds the stream's memory (request, arena) beyond the client's leaving. It owns the body
// buffer and the fetch in progress.
#include "base/buf.h"
#include "base/slab.h"
#include "codec/dialect.h"
#include "codec/json.h"
#include "codec/patch.h"
#include "codec/skim.h"
#include "codec/sse.h"
#include "codec/url.h"
#include "flow/flow.h"
#include "flow/overload.h"
#include "flow/router.h"
#include "script/ctx.h"

struct health_slot;

enum exchange_state {
    EXCHANGE_IDENTIFY,
    EXCHANGE_BODY,
    EXCHANGE_ADMIT,
    EXCHANGE_SELECT,
    EXCHANGE_PREPARE,
    EXCHANGE_FETCH, // no head from the upstream yet, or its answer is still held
    EXCHANGE_REPLY, // reply hooks run
    EXCHANGE_RELAY, // bytes have gone to the client
    EXCHANGE_ANSWER,
    EXCHANGE_ERROR,
    EXCHANGE_ENDING, // the answer is queued, waiting for its flush
    EXCHANGE_FINISH,
    EXCHANGE_DONE,
};

// Paths that the core acts on; the order is that of struct skim's spans.
enum exchange_span {
    SPAN_MODEL,
    SPAN_STREAM,
    SPAN_STREAM_OPTIONS,
    SPAN_INCLUDE_USAGE,
    SPAN_MAX_TOKENS,
    SPAN_MAX_COMPLETION_TOKENS,
    SPAN_MAX_OUTPUT_TOKENS,
    SPAN_N,
    SPAN_SERVICE_TIER,
    SPAN_STORE,
    SPAN_BACKGROUND,
    SPAN_COUNT,
};

// How the upstream's answer goes to the client.
enum relay_mode {
    RELAY_UNKNOWN, // head seen, the first body byte decides
    RELAY_WHOLE,   // gathered, inspected, sent at once
    RELAY_EVENTS,  // server-sent events, inspected while they pass
    RELAY_RAW,     // other content: passed as it comes
};

struct relay {
    enum relay_mode mode;
    struct sse sse;
    struct buf held;        // bytes received and not yet passed on (events mode), or the whole body
    uint64_t received;      // stream offset past the last byte received
    uint64_t passed;        // stream offset up to which bytes were written or dropped
    uint64_t border;        // stream offset of the last event border
    struct slice chunk;     // being fed
    uint64_t chunk_start;   // its stream offset
    bool has_lost_bytes;    // a write failed: only a cut may follow
    bool is_committed;      // the first semantic event has come: no failover any more
    bool holds_incomplete;  // injected usage or delta hooks: incomplete events are held back
    bool drops_usage_chunk; // include_usage was injected and the client did not ask
    bool has_delta_hook;
    bool has_failed;      // an error event came before the commit
    bool has_error_event; // … after it (passed on)
    bool has_hook_error;  // a delta hook failed and its plugin denies; ctx.error says so
    bool is_paused;       // the transport waits for us
    uint64_t turn;        // loop turn of turn_bytes
    size_t turn_bytes;
    struct loop_task resume; // ends a fairness pause
};

// What a stream's user pointer is; the first member of each kind.
enum visitor { VISITOR_EXCHANGE = 1, VISITOR_CALL, VISITOR_CONTROL };

struct exchange {
    enum visitor visitor;
    struct ctx ctx;
    struct flow *flow;
    struct http1_stream *stream; // NULL once the client's side is closed
    struct http1_stream *held;   // the same, kept for its memory until the end
    enum exchange_state state;
    const struct route *route;
    struct slice path; // canonical: prefixes taken off, begins with /v1/
    struct list node;  // flow's list of exchanges

    // Request body.
    struct buf body;
    int64_t body_counted; // bytes counted in flow_shared.body_bytes
    struct skim skim;
    bool is_json, body_complete;
    bool is_upload;             // multipart or binary: streamed to the upstream
    bool is_spooled;            // an upload that is complete: sent like any body, may be retried
    size_t model_at, model_len; // its form field's value; 0: none
    bool upload_started;        // a byte left: never retried
    bool upload_ready;          // model found (or given up): hooks may run
    bool answered_early;        // the upstream refused the upload before its end
    bool has_include_usage;     // the client asked for it
    bool is_injected;           // we added include_usage

    // Attempt.
    struct fetch *fetch;
    struct health_slot *health;
    uint64_t attempt_started_ms;
    uint32_t attempt_ttfb_ms;
    int upstream_status;
    struct http1_header *upstream_headers;
    size_t upstream_header_count;
    int64_t upstream_length; // content-length, -1 unknown
    int64_t retry_after_ms;  // of the upstream's answer, < 0 none
    bool health_open;        // health_begin without its health_end
    bool met_full;           // a candidate had as many calls as it may
    struct dialect_reader reader;
    bool has_reader;
    const struct quirk *quirk;
    struct slice auth_value; // the arena's copy of the upstream key's header
    struct relay relay;
    bool drains_on_disconnect; // policy of the upstream
    bool drains;               // the client has left, the answer is read for its usage
    uint64_t drained_bytes;

    // Answer.
    bool done_while_reply; // the answer was complete before the reply hook ended
    int done_err;
    bool head_sent; // a streaming head went out
    bool is_ended;  // http1_end or respond was called
    bool client_gone;
    struct loop_timer hold_timer; // hold_head, then keep-alive comments
    uint64_t last_write_ms;
    struct dialect_writer writer; // for plugin answers
    bool has_writer;
    struct event *answer_events; // whole answers made of events
    size_t answer_count, answer_capacity;

    int refused_status; // what the server itself told the client (413, 408, 400); 0: nothing
    bool is_success;
    bool is_unlogged; // no request_logs row (models, plugin routes)
    bool hook_pending;
    struct loop_task step;         // runs the reply hooks of a failed attempt at end of turn
    struct slice raw_error;        // an upstream's error body that may pass unchanged
    const char *raw_error_message; // its parsed text: a hook that replaced it wins
    struct slice raw_error_type;   // its content type
    uint64_t bytes_in, bytes_out;  // bodies
    uint64_t first_event_ms;       // boot ms of the first semantic event, 0: none
};

#define HEADER_LIST_MAX 64
struct header_list {
    struct http1_header items[HEADER_LIST_MAX];
    size_t count;
    bool is_full;
};

struct flow {
    struct flow_options options;
    struct script *script;
    struct http1_server *server;
    struct slab *exchanges;
    struct list active;
    size_t active_count;
    struct loop_task turn_end;
    struct slab *calls; // plugin route calls
    struct list calls_active;
    size_t awaited; // control calls that a lane or a reload will answer
    struct buf scratch;
    struct overload overload;
    uint64_t refused_logged_ms; // the last access line of a refusal under overload
    uint64_t refused_unlogged;  // refused since
    uint32_t refused_uncounted[OVERLOAD_REASONS];
    struct loop_task count_refused; // adds them to the metrics, once a turn
    struct loop_timer calm;         // while it sheds: the end is noticed by an idle loop, too
    uint32_t jitter;
    struct header_list outgoing_headers; // of the request that is being built
};

// client.c: the caller's address behind trusted proxies (arena or request memory)
struct slice client_address(const struct conf *conf, const struct http1_request *request,
                            struct arena *arena);

// process.c: what the process says of itself
int process_info(void *user, struct buf *out);
int process_ready(void *user, struct buf *out, bool *is_ready);
int process_metrics(void *user, struct buf *out);

// exchange.c: life cycle
struct exchange *exchange_open(struct flow *flow, struct http1_stream *stream,
                               const struct route *route, struct slice path);
void exchange_free(struct exchange *ex);
void exchange_set_state(struct exchange *ex, enum exchange_state state);
// Goes on after a hook with its outcome (also called at once for hooks that did not yield).
void exchange_after_hook(struct exchange *ex, enum script_hook hook, enum script_outcome outcome);
// Runs a hook and goes on with exchange_after_hook, at once or later.
void exchange_run_hook(struct exchange *ex, enum script_hook hook);
// The client's side is closed (flushed or gone).
void exchange_on_client_closed(struct exchange *ex, int err);
// Ends in failure: error hook, then the dialect's rendering (before or in the stream).
void exchange_fail(struct exchange *ex, int status, const char *code, const char *message);
void exchange_fail_with(struct exchange *ex); // ctx.error is set
extern const struct script_host FLOW_SCRIPT_HOST;

// admission.c
void admission_start(struct exchange *ex);                       // head complete
void admission_on_body(struct exchange *ex, struct slice bytes); // body bytes
void admission_on_complete(struct exchange *ex);
void admission_release_body(struct exchange *ex); // gives back what the body counted for
void admission_after_identify(struct exchange *ex);
void admission_after_admit(struct exchange *ex);
void admission_after_select(struct exchange *ex);
extern const char *const ADMISSION_PATHS[SPAN_COUNT];
bool admission_is_media(struct slice content_type); // binary or multipart: never read as text

// attempt.c
void attempt_next(struct exchange *ex);  // the next candidate, or the final failure
void attempt_start(struct exchange *ex); // after prepare: builds the request and fetches
void attempt_cancel(struct exchange *ex, const char *reason);
// The attempt failed before the commit; detail for the log.
void attempt_failed(struct exchange *ex, enum ctx_failure failure, int status, const char *reason);
void attempt_after_reply(struct exchange *ex, enum script_outcome outcome);
void attempt_record(struct exchange *ex, int status, const char *reason);
// False when the upload has failed: the exchange is being ended.
bool attempt_upload(struct exchange *ex, struct slice bytes);
void attempt_succeeded(struct exchange *ex);
// The rest of an early refusal's text did not come in time.
void attempt_end_early(struct exchange *ex);
// The attempt failed after the commit: recorded, nothing is retried.
void attempt_cut(struct exchange *ex, enum ctx_failure failure, const char *reason);
void attempt_failed_by_plugin(struct exchange *ex);
bool attempt_can_retry(struct exchange *ex);
struct slice attempt_header(const struct exchange *ex, const char *name); // of the answer
int64_t attempt_retry_after(const struct exchange *ex);
// Builds URL, headers, body of the current attempt into an arena; request.c
int request_build(struct exchange *ex, const struct upstream *upstream,
                  struct fetch_request *request);
// An upload's bytes so far, with the upstream's name for the model in it; returns their count.
size_t request_upload_pieces(const struct exchange *ex, struct slice pieces[3]);
// Zeroes the arena's copy of the upstream key, once the transport has its own.
void request_forget_secrets(struct exchange *ex);

// relay.c
void relay_init(struct exchange *ex);
void relay_reset(struct exchange *ex);      // before each attempt
void relay_on_silence(struct exchange *ex); // hold_head, then keep-alive comments
enum fetch_verdict relay_on_body(struct exchange *ex, struct slice bytes);
void relay_on_done(struct exchange *ex, int err, const char *detail);
void relay_on_client_writable(struct exchange *ex);
void relay_after_body_hook(struct exchange *ex, enum script_outcome outcome);
void relay_free(struct exchange *ex);
// The body's first byte tells events from JSON; white space tells nothing.
void relay_sniff_mode(struct exchange *ex, struct slice bytes);
void relay_choose_mode(struct exchange *ex, struct slice content_type, bool is_json);
// A failure of the answer: another attempt before the commit, else the stream's end in-dialect.
void relay_fail_or_retry(struct exchange *ex, enum ctx_failure failure, const char *reason);
// An upstream error after the commit: told in the dialect, the stream ends.
void relay_fail(struct exchange *ex, int status, const char *code, const char *message);

// reply.c: what goes to the client
size_t reply_headers(struct exchange *ex, struct http1_header *out, size_t max);
void reply_error(struct exchange *ex); // renders ctx.error
int reply_open_stream(struct exchange *ex, int status);
int reply_open_raw(struct exchange *ex); // other content, with the upstream's type and length
int reply_write(struct exchange *ex, struct slice bytes);
void reply_whole(struct exchange *ex, int status, struct slice content_type, struct slice body);
size_t reply_cors_headers(const struct conf *conf, const struct http1_request *request,
                          bool is_preflight, struct http1_header *out, size_t max,
                          struct arena *arena);

// drain.c: reading on when the client has left
bool drain_start(struct exchange *ex); // false: the policy or the state says cancel
void drain_over(struct exchange *ex, const char *reason);
enum fetch_verdict drain_on_body(struct exchange *ex, struct slice bytes);
void drain_on_done(struct exchange *ex, int err);

// answer.c: calls answered by a plugin
void answer_start(struct exchange *ex);
void answer_on_client_writable(struct exchange *ex);
int answer_on_event(struct ctx *ctx, const struct event *event);
void answer_on_end(struct ctx *ctx, int err);

// metrics.c
void metrics_attempt(struct exchange *ex, int status, const char *reason, uint64_t ms);
void metrics_exchange(struct exchange *ex);
void metrics_rejections(struct flow *flow, const char *reason, uint32_t count);
void metrics_refused(struct flow *flow, uint32_t count); // calls answered 503 under overload
void metrics_request(struct flow *flow, const char *route, struct slice method, int status,
                     bool is_stream, uint64_t ms);

// finish.c
void finish_start(struct exchange *ex);
void finish_after_hook(struct exchange *ex);

// builtin.c: answers without an exchange
bool builtin_serve(struct flow *flow, struct http1_stream *stream, const struct route *route);
void builtin_models(struct exchange *ex);
void builtin_refuse(struct flow *flow, struct http1_stream *stream, int status, const char *code,
                    const char *message, struct slice allow);
const char *builtin_render_refusal(struct flow *flow, const struct http1_request *request,
                                   int status, const char *code, const char *message,
                                   struct slice request_id, struct buf *out);

// calls.c: plugin routes
struct route_call;
size_t call_size(void);
void call_open(struct flow *flow, struct http1_stream *stream, const struct script_route *route);
void call_on_body(struct route_call *call, struct slice bytes);
void call_on_complete(struct route_call *call);
void call_on_close(struct route_call *call, int err);
void call_on_route(void *route_user, int status, const struct http1_header *headers, size_t count,
                   struct slice body);

// control.c: verbs of the command line, on the control socket only
struct control_call;
void control_open(struct flow *flow, struct http1_stream *stream);
void control_on_body(struct control_call *call, struct slice bytes);
void control_on_complete(struct control_call *call);
void control_on_close(struct control_call *call);
