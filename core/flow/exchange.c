#include "flow/exchange.h"

#include "base/clock.h"
#include "base/log.h"

// Legal successors of each state.
#define TO(state) (1u << (state))
static const unsigned SUCCESSORS[] = {
    [EXCHANGE_IDENTIFY] = TO(EXCHANGE_BODY) | TO(EXCHANGE_ANSWER),
    [EXCHANGE_BODY] = TO(EXCHANGE_ADMIT) | TO(EXCHANGE_ENDING),
    [EXCHANGE_ADMIT] = TO(EXCHANGE_SELECT) | TO(EXCHANGE_ANSWER),
    [EXCHANGE_SELECT] = TO(EXCHANGE_PREPARE) | TO(EXCHANGE_ANSWER) | TO(EXCHANGE_ENDING),
    [EXCHANGE_PREPARE] = TO(EXCHANGE_FETCH) | TO(EXCHANGE_ANSWER) | TO(EXCHANGE_REPLY),
    [EXCHANGE_FETCH] =
        TO(EXCHANGE_REPLY) | TO(EXCHANGE_RELAY) | TO(EXCHANGE_ANSWER) | TO(EXCHANGE_ENDING),
    [EXCHANGE_REPLY] = TO(EXCHANGE_FETCH) | TO(EXCHANGE_SELECT) | TO(EXCHANGE_PREPARE) |
                       TO(EXCHANGE_ANSWER) | TO(EXCHANGE_ENDING),
    [EXCHANGE_RELAY] = TO(EXCHANGE_ENDING),
    [EXCHANGE_ANSWER] = TO(EXCHANGE_ENDING),
    [EXCHANGE_ERROR] = TO(EXCHANGE_ENDING),
    [EXCHANGE_ENDING] = 0,
    [EXCHANGE_FINISH] = TO(EXCHANGE_DONE),
    [EXCHANGE_DONE] = 0,
};

void exchange_set_state(struct exchange *ex, enum exchange_state state)
{
    unsigned legal = SUCCESSORS[ex->state];
    if (ex->state < EXCHANGE_ENDING)
        legal |= TO(EXCHANGE_ERROR) | TO(EXCHANGE_FINISH);
    if (ex->state == EXCHANGE_ENDING)
        legal |= TO(EXCHANGE_FINISH);
    gw_require(ex->state == state || (legal & TO(state)) != 0);
    ex->state = state;
}

static void on_hold_timer(struct loop_timer *timer)
{
    struct exchange *ex =
        (struct exchange *)((char *)timer - offsetof(struct exchange, hold_timer));
    relay_on_silence(ex);
}

static void on_step(struct loop_task *task)
{
    struct exchange *ex = (struct exchange *)((char *)task - offsetof(struct exchange, step));
    exchange_run_hook(ex, SCRIPT_REPLY);
}

// A client's own id is echoed and logged when it is harmless text; it is never a key.
static struct slice accept_request_id(const struct http1_request *request)
{
    struct slice id = http1_header(request, "x-request-id");
    if (id.len == 0 || id.len > 128)
        return SLICE_NONE;
    for (size_t i = 0; i < id.len; i++) {
        char c = id.ptr[i];
        bool is_ok = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                     c == '.' || c == '_' || c == '-';
        if (!is_ok)
            return SLICE_NONE;
    }
    return id;
}

struct exchange *exchange_open(struct flow *flow, struct http1_stream *stream,
                               const struct route *route, struct slice path)
{
    struct slab_handle handle;
    struct exchange *ex = slab_alloc(flow->exchanges, &handle);
    if (!ex)
        return NULL;
    const struct http1_request *request = http1_request(stream);
    struct ctx *ctx = &ex->ctx;
    ex->visitor = VISITOR_EXCHANGE;
    ex->flow = flow;
    ex->stream = stream;
    ex->route = route;
    ex->path = path;
    ex->state = EXCHANGE_IDENTIFY;
    ex->upstream_length = -1;
    ex->retry_after_ms = -1;
    // The head's memory outlives the client's connection: finish hooks still read it.
    ctx->arena = request->arena;
    ctx->handle = handle;
    ctx->exchange = ex;
    ctx->request = request;
    if (id_new(&ctx->id) != GW_OK) {
        slab_free(flow->exchanges, ex);
        return NULL;
    }
    id_format(&ctx->id, ctx->id_text);
    struct slice client_id = accept_request_id(request);
    ctx->request_id = client_id.len ? client_id : slice_of(ctx->id_text, 36);
    ctx->client_ip = client_address(flow->options.conf, request, ctx->arena);
    ctx->dialect = route->dialect;
    ctx->op = route->op;
    ctx->started_wall_ms = id_wall_ms(&ctx->id); // which was made just now
    ctx->started_boot_ms = loop_now_ms(flow->options.loop);
    ctx->user.discount_ppm = 1000000;
    ctx->error.retry_after_ms = -1;
    buf_init(&ex->body, 0);
    list_push_back(&flow->active, &ex->node);
    flow->active_count++;
    atomic_fetch_add(&flow->options.shared->exchanges, 1);
    loop_timer_init(flow->options.loop, &ex->hold_timer, on_hold_timer);
    loop_task_init(&ex->step, on_step);
    relay_init(ex);
    script_bind(flow->script, ctx);
    ex->held = stream;
    http1_hold(stream);
    http1_set_user(stream, ex);
    return ex;
}

void exchange_free(struct exchange *ex)
{
    struct flow *flow = ex->flow;
    exchange_set_state(ex, EXCHANGE_DONE);
    loop_timer_stop(&ex->hold_timer);
    loop_task_cancel(&ex->step);
    relay_free(ex);
    if (ex->has_writer)
        dialect_writer_free(&ex->writer);
    buf_free(&ex->body);
    admission_release_body(ex);
    script_release(&ex->ctx);
    list_remove(&ex->node);
    flow->active_count--;
    atomic_fetch_sub(&flow->options.shared->exchanges, 1);
    http1_release(ex->held);
    slab_free(flow->exchanges, ex);
    flow_touch(flow);
}

void exchange_run_hook(struct exchange *ex, enum script_hook hook)
{
    flow_touch(ex->flow);
    enum script_outcome outcome = SCRIPT_PASS;
    if (script_has_hook(&ex->ctx, hook))
        outcome = script_run_hook(&ex->ctx, hook);
    if (outcome == SCRIPT_PENDING) {
        ex->hook_pending = true;
        return;
    }
    exchange_after_hook(ex, hook, outcome);
}

static void on_hook(struct ctx *ctx, enum script_hook hook, enum script_outcome outcome)
{
    struct exchange *ex = ctx->exchange;
    ex->hook_pending = false;
    flow_touch(ex->flow);
    exchange_after_hook(ex, hook, outcome);
}

void exchange_after_hook(struct exchange *ex, enum script_hook hook, enum script_outcome outcome)
{
    switch (hook) {
    case SCRIPT_FINISH: finish_after_hook(ex); return;
    case SCRIPT_ERROR:
        if (outcome == SCRIPT_ANSWERED && !ex->head_sent) {
            ex->ctx.is_denied = false;
            ex->state = EXCHANGE_ANSWER;
            answer_start(ex);
            return;
        }
        reply_error(ex);
        return;
    case SCRIPT_REPLY: attempt_after_reply(ex, outcome); return;
    case SCRIPT_BODY: relay_after_body_hook(ex, outcome); return;
    default: break;
    }
    if (outcome == SCRIPT_DENIED) {
        exchange_fail_with(ex);
        return;
    }
    if (outcome == SCRIPT_ANSWERED) {
        answer_start(ex);
        return;
    }
    switch (hook) {
    case SCRIPT_IDENTIFY: admission_after_identify(ex); break;
    case SCRIPT_ADMIT: admission_after_admit(ex); break;
    case SCRIPT_SELECT: admission_after_select(ex); break;
    case SCRIPT_PREPARE: attempt_start(ex); break;
    default: gw_require(!"hook without a successor"); break;
    }
}

void exchange_fail(struct exchange *ex, int status, const char *code, const char *message)
{
    struct dialect_error *error = &ex->ctx.error;
    memset(error, 0, sizeof *error);
    error->status = status;
    error->code = slice_str(code);
    error->message = slice_str(message);
    error->retry_after_ms = status == 503 || status == 429 ? 1000 : -1;
    error->should_retry = status == 408 || status == 409 || status == 429 || status >= 500;
    exchange_fail_with(ex);
}

void exchange_fail_with(struct exchange *ex)
{
    ex->ctx.is_denied = true;
    ex->ctx.error.request_id = ex->ctx.request_id;
    if (ex->state >= EXCHANGE_ENDING) // already answered: nothing more can be said
        return;
    // Whatever still waits for this exchange (a hook, an answer in progress) is over.
    script_cancel(&ex->ctx);
    ex->hook_pending = false;
    loop_task_cancel(&ex->step);
    loop_timer_stop(&ex->hold_timer);
    attempt_cancel(ex, "failed");
    exchange_set_state(ex, EXCHANGE_ERROR);
    exchange_run_hook(ex, SCRIPT_ERROR);
}

// What the server itself answered with, before any answer of ours: a body that was too large,
// broken or stalled. 0: nothing.
static int refused_status(const struct exchange *ex, int err)
{
    if (http1_head_sent(ex->held))
        return 0;
    switch (err) {
    case GW_ETOOBIG: return 413;
    case GW_ETIMEOUT: return 408;
    case GW_EPROTO: return 400;
    default: return 0;
    }
}

void exchange_on_client_closed(struct exchange *ex, int err)
{
    ex->bytes_in = http1_bytes_received(ex->stream);
    ex->bytes_out = http1_body_bytes_sent(ex->stream);
    ex->stream = NULL;
    if (err != GW_OK) {
        ex->client_gone = true;
        ex->refused_status = refused_status(ex, err);
        if (ex->state < EXCHANGE_ENDING && !ex->refused_status)
            ctx_flag(&ex->ctx, "client_gone");
    }
    loop_timer_stop(&ex->hold_timer);
    loop_task_cancel(&ex->step);
    if (ex->client_gone && drain_start(ex))
        return;
    attempt_cancel(ex, "client gone");
    if (ex->state >= EXCHANGE_FINISH)
        return;
    script_cancel(&ex->ctx);
    ex->hook_pending = false;
    finish_start(ex);
}

static struct ctx *find_ctx(void *user, struct slab_handle handle)
{
    struct flow *flow = user;
    struct exchange *ex = slab_get(flow->exchanges, handle);
    return ex ? &ex->ctx : NULL;
}

static int reload(void *user, void (*done)(void *arg, int err, struct slice problems), void *arg)
{
    struct flow *flow = user;
    struct flow_shared *shared = flow->options.shared;
    return shared->reload ? shared->reload(shared, flow->options.loop, done, arg) : GW_EDENIED;
}

const struct script_host FLOW_SCRIPT_HOST = {
    .on_hook = on_hook,
    .on_answer_event = answer_on_event,
    .on_answer_end = answer_on_end,
    .on_route = call_on_route,
    .find_ctx = find_ctx,
    .reload = reload,
    .process_info = process_info,
    .process_ready = process_ready,
    .process_metrics = process_metrics,
};
