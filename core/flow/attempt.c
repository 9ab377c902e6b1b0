// One attempt at one upstream, and what follows from its failure. Retries are ours: counted,
// logged, and only while nothing semantic has reached the client.
#include "base/clock.h"
#include "base/log.h"
#include "flow/exchange.h"
#include "state/catalogue.h"
#include "state/health.h"

#define ERROR_BODY_BYTES (256u << 10)
#define RETRY_AFTER_MAX_MS 60000
#define EARLY_ERROR_MS 1000 // for the text of a refusal that came before the upload's end
#define UPLOAD_QUEUE_BYTES (64u << 10) // below it the transport says on_writable

static const char *const FAILURE_CODES[] = {
    [CTX_FAILURE_NONE] = "internal_error",
    [CTX_FAILURE_CONNECT] = "upstream_unreachable",
    [CTX_FAILURE_DNS] = "upstream_unreachable",
    [CTX_FAILURE_TLS] = "upstream_tls_error",
    [CTX_FAILURE_TIMEOUT] = "upstream_timeout",
    [CTX_FAILURE_RESET] = "upstream_disconnected",
    [CTX_FAILURE_PROTOCOL] = "upstream_protocol_error",
    [CTX_FAILURE_STATUS] = "upstream_error",
    [CTX_FAILURE_STREAM] = "upstream_stream_error",
    [CTX_FAILURE_LOCAL] = "overloaded",
};

static enum ctx_failure failure_of(int err)
{
    switch (err) {
    case GW_ECONNECT:
    case GW_EDENIED: return CTX_FAILURE_CONNECT;
    case GW_EDNS: return CTX_FAILURE_DNS;
    case GW_ETLS: return CTX_FAILURE_TLS;
    case GW_ETIMEOUT: return CTX_FAILURE_TIMEOUT;
    case GW_ERESET: return CTX_FAILURE_RESET;
    case GW_EIO:
    case GW_ENOMEM:
    case GW_EFULL: return CTX_FAILURE_LOCAL;
    default: return CTX_FAILURE_PROTOCOL;
    }
}

static enum health_result health_result_of(enum ctx_failure failure, int status)
{
    switch (failure) {
    case CTX_FAILURE_NONE: return HEALTH_OK;
    case CTX_FAILURE_CONNECT:
    case CTX_FAILURE_DNS:
    case CTX_FAILURE_TLS: return HEALTH_CONNECT_ERROR;
    case CTX_FAILURE_TIMEOUT: return HEALTH_TIMEOUT;
    case CTX_FAILURE_LOCAL: return HEALTH_CANCELLED; // says nothing of the upstream
    case CTX_FAILURE_STATUS:
        if (status == 429)
            return HEALTH_RATE_LIMITED;
        if (status == 401 || status == 403)
            return HEALTH_AUTH_ERROR;
        return status >= 500 ? HEALTH_SERVER_ERROR : HEALTH_CLIENT_ERROR;
    case CTX_FAILURE_STREAM:
        if (status == 429)
            return HEALTH_RATE_LIMITED;
        return status >= 400 && status < 500 ? HEALTH_CLIENT_ERROR : HEALTH_SERVER_ERROR;
    default: return HEALTH_SERVER_ERROR;
    }
}

static void close_health(struct exchange *ex, enum health_result result)
{
    if (!ex->health_open)
        return;
    ex->health_open = false;
    health_end(ex->health, loop_now_ms(ex->flow->options.loop), result, ex->attempt_ttfb_ms,
               ex->retry_after_ms);
}

void attempt_record(struct exchange *ex, int status, const char *reason)
{
    struct ctx *ctx = &ex->ctx;
    uint64_t now = loop_now_ms(ex->flow->options.loop);
    if (ctx->attempt_count < CTX_MAX_ATTEMPTS) {
        struct slice text = arena_copy(ctx->arena, slice_str(reason));
        ctx->attempts[ctx->attempt_count++] = (struct ctx_attempt){
            .upstream_id = ctx->upstream.id,
            .status = status,
            .duration_ms = (uint32_t)(now - ex->attempt_started_ms),
            .reason = text.ptr ? text : SLICE_LIT("?"),
        };
    }
    metrics_attempt(ex, status, reason, now - ex->attempt_started_ms);
}

static bool was_tried(const struct ctx *ctx, int64_t upstream_id)
{
    for (size_t i = 0; i < ctx->attempt_count; i++) {
        if (ctx->attempts[i].upstream_id == upstream_id)
            return true;
    }
    return false;
}

// The next candidate after the present one that was not tried and still exists; 0: none.
static int64_t next_candidate(struct exchange *ex)
{
    const struct catalogue *catalogue = catalogue_get(store_catalogue(ex->flow->options.store));
    for (size_t i = 0; i < ex->ctx.candidate_count; i++) {
        int64_t id = ex->ctx.candidates[i];
        if (id == ex->ctx.upstream.id || was_tried(&ex->ctx, id))
            continue;
        const struct upstream *upstream = catalogue_upstream(catalogue, id);
        if (upstream && health_is_full(upstream->health, upstream->max_concurrency))
            ex->met_full = true;
        else if (upstream)
            return id;
    }
    return 0;
}

static bool copy_upstream(struct exchange *ex, const struct upstream *upstream)
{
    struct ctx_upstream *view = &ex->ctx.upstream;
    struct arena *arena = ex->ctx.arena;
    memset(view, 0, sizeof *view);
    view->id = upstream->id;
    memcpy(view->uid, upstream->uid, sizeof view->uid);
    view->name = arena_copy(arena, upstream->name);
    view->provider = arena_copy(arena, upstream->provider);
    struct slice model = catalogue_model_for(upstream, ex->ctx.model, arena);
    view->model = model.ptr ? arena_copy(arena, model) : ex->ctx.model;
    return view->name.ptr && view->provider.ptr;
}

void attempt_next(struct exchange *ex)
{
    struct ctx *ctx = &ex->ctx;
    const struct catalogue *catalogue = catalogue_get(store_catalogue(ex->flow->options.store));
    int64_t id = next_candidate(ex);
    const struct upstream *upstream = id ? catalogue_upstream(catalogue, id) : NULL;
    if (!upstream) {
        if (ctx->error.status == 0 && ex->met_full) {
            overload_count(ex->flow, OVERLOAD_UPSTREAM);
            exchange_fail(ex, 503, "upstream_busy",
                          "All upstreams for this model have as many calls as they may; retry "
                          "later.");
        } else if (ctx->error.status == 0) // none was tried, or they went away meanwhile
            exchange_fail(ex, 503, "no_upstream", "No upstream is available; retry later.");
        else
            exchange_fail_with(ex);
        return;
    }
    memset(&ctx->outgoing, 0, sizeof ctx->outgoing);
    ctx->attempt = (uint32_t)ctx->attempt_count + 1;
    ctx->failure = CTX_FAILURE_NONE;
    ctx->is_denied = false;
    memset(&ctx->error, 0, sizeof ctx->error); // the last attempt's stays in ctx->attempts
    ctx->error.retry_after_ms = -1;
    ex->raw_error = SLICE_NONE;
    ex->upstream_status = 0;
    ex->retry_after_ms = -1;
    ex->attempt_ttfb_ms = 0;
    ex->upstream_length = -1;
    ex->done_while_reply = false;
    relay_reset(ex);
    if (!copy_upstream(ex, upstream)) {
        exchange_fail(ex, 503, "out_of_memory", "The gateway is out of memory; retry later.");
        return;
    }
    ex->quirk = script_quirk(ctx, ctx->upstream.provider);
    dialect_reader_init(&ex->reader, ctx->dialect, ctx->op);
    if (ex->quirk->has_usage_rule)
        usage_meter_init(&ex->reader.meter, ex->quirk->usage_rule);
    ex->has_reader = true;
    exchange_set_state(ex, EXCHANGE_PREPARE);
    exchange_run_hook(ex, SCRIPT_PREPARE);
}

// --- what the transport tells

static bool is_whole_json(struct slice type)
{
    return type.len >= 16 && strncasecmp(type.ptr, "application/json", 16) == 0;
}

static void fail_by_status(struct exchange *ex)
{
    char reason[32];
    snprintf(reason, sizeof reason, "http %d", ex->upstream_status);
    attempt_failed(ex, CTX_FAILURE_STATUS, ex->upstream_status, reason);
}

// The upstream refused an upload before it was complete: the client's bytes are of no use any more,
// and the transport would wait for their end.
static void stop_upload(struct exchange *ex)
{
    ex->answered_early = true;
    if (ex->stream)
        http1_pause_body(ex->stream);
    loop_timer_start(&ex->hold_timer, ex->upstream_length == 0 ? 0 : EARLY_ERROR_MS);
}

void attempt_end_early(struct exchange *ex)
{
    if (ex->fetch && ex->state == EXCHANGE_FETCH)
        fail_by_status(ex);
}

static bool has_control_byte(struct slice value)
{
    for (size_t i = 0; i < value.len; i++) {
        unsigned char c = (unsigned char)value.ptr[i];
        if ((c < 0x20 && c != '\t') || c == 0x7f)
            return true;
    }
    return false;
}

static void on_head(void *user, int status, const struct http1_header *headers, size_t count)
{
    struct exchange *ex = user;
    struct arena *arena = ex->ctx.arena;
    uint64_t now = loop_now_ms(ex->flow->options.loop);
    ex->upstream_status = status;
    ex->attempt_ttfb_ms = (uint32_t)(now - ex->attempt_started_ms);
    ex->upstream_headers = arena_alloc(arena, (count + 1) * sizeof *headers);
    ex->upstream_header_count = 0;
    for (size_t i = 0; i < count && ex->upstream_headers; i++) {
        if (has_control_byte(headers[i].value)) // a strict client would drop the whole answer
            continue;
        struct http1_header copy = {arena_copy(arena, headers[i].name),
                                    arena_copy(arena, headers[i].value)};
        if (copy.name.ptr && copy.value.ptr)
            ex->upstream_headers[ex->upstream_header_count++] = copy;
    }
    ex->ctx.upstream.status = status;
    ex->ctx.upstream.headers = ex->upstream_headers;
    ex->ctx.upstream.header_count = ex->upstream_header_count;
    struct slice type = attempt_header(ex, "content-type");
    struct slice length = attempt_header(ex, "content-length");
    unsigned long long bytes = 0;
    if (length.ptr && slice_to_u64(length, INT64_MAX, &bytes) == GW_OK)
        ex->upstream_length = (int64_t)bytes;
    ex->retry_after_ms = attempt_retry_after(ex);
    if (status < 200 || status >= 300) { // the error body is gathered, then judged in on_done
        if (ex->is_upload && !ex->body_complete)
            stop_upload(ex);
        return;
    }
    relay_choose_mode(ex, type, is_whole_json(type));
    if (!ex->drains && script_has_hook(&ex->ctx, SCRIPT_REPLY)) {
        // This attempt is not among those counted yet.
        ex->ctx.can_retry =
            attempt_can_retry(ex) && next_candidate(ex) != 0 &&
            ex->ctx.attempt_count + 1 < (size_t)ex->flow->options.conf->max_attempts;
        exchange_set_state(ex, EXCHANGE_REPLY);
        exchange_run_hook(ex, SCRIPT_REPLY);
    }
}

static enum fetch_verdict on_body(void *user, struct slice bytes)
{
    struct exchange *ex = user;
    if (ex->drains)
        return drain_on_body(ex, bytes);
    if (ex->hook_pending || ex->state == EXCHANGE_REPLY) {
        ex->relay.is_paused = true;
        return FETCH_PAUSE;
    }
    if (ex->upstream_status >= 200 && ex->upstream_status < 300)
        return relay_on_body(ex, bytes);
    if (ex->relay.held.len + bytes.len > ERROR_BODY_BYTES ||
        buf_append(&ex->relay.held, bytes) != GW_OK) {
        fail_by_status(ex); // enough is known of it; the rest need not come
        return FETCH_CONSUMED;
    }
    if (ex->answered_early && ex->upstream_length >= 0 &&
        ex->relay.held.len >= (uint64_t)ex->upstream_length)
        fail_by_status(ex);
    return FETCH_CONSUMED;
}

static void on_writable(void *user)
{
    struct exchange *ex = user;
    if (ex->stream && !ex->body_complete && !ex->answered_early)
        http1_resume_body(ex->stream);
}

static void on_done(void *user, int err, const struct fetch_info *info)
{
    struct exchange *ex = user;
    ex->fetch = NULL;
    int status = ex->upstream_status;
    if (ex->drains) {
        drain_on_done(ex, err);
        return;
    }
    if (info->sent_any && ex->is_upload && !ex->is_spooled)
        ex->upload_started = true;
    if (status >= 200 && status < 300) {
        relay_on_done(ex, err, info->detail);
        return;
    }
    if (status == 0) {
        attempt_failed(ex, failure_of(err), 0, info->detail[0] ? info->detail : gw_err_name(err));
        return;
    }
    fail_by_status(ex);
}

static const struct fetch_handler HANDLER = {
    .on_head = on_head,
    .on_body = on_body,
    .on_writable = on_writable,
    .on_done = on_done,
};

void attempt_start(struct exchange *ex)
{
    struct flow *flow = ex->flow;
    const struct catalogue *catalogue = catalogue_get(store_catalogue(flow->options.store));
    const struct upstream *upstream = catalogue_upstream(catalogue, ex->ctx.upstream.id);
    ex->attempt_started_ms = loop_now_ms(flow->options.loop);
    if (!upstream) { // deleted while a prepare hook waited
        attempt_record(ex, 0, "upstream removed");
        attempt_next(ex);
        return;
    }
    if (!health_try_begin(upstream->health, ex->attempt_started_ms, upstream->max_concurrency)) {
        ex->met_full = true; // others took the last place meanwhile
        attempt_next(ex);
        return;
    }
    ex->health = upstream->health;
    ex->health_open = true;
    struct fetch_request request;
    int err = request_build(ex, upstream, &request);
    exchange_set_state(ex, EXCHANGE_FETCH);
    ex->drains_on_disconnect = upstream->has_disconnect_policy
                                   ? upstream->drains_on_disconnect
                                   : slice_is(flow->options.conf->disconnect, "drain");
    if (ex->ctx.is_stream && !ex->head_sent && !loop_timer_is_running(&ex->hold_timer))
        loop_timer_start(&ex->hold_timer, (uint64_t)flow->options.conf->hold_head_ms);
    if (!err)
        err = fetch_start(flow->options.fetcher, &request, &HANDLER, ex, &ex->fetch);
    request_forget_secrets(ex);
    if (err) {
        attempt_failed(ex, err == GW_ENOMEM ? CTX_FAILURE_LOCAL : CTX_FAILURE_PROTOCOL, 0,
                       gw_err_name(err));
        return;
    }
    if (ex->is_upload && !ex->is_spooled) {
        // What was read while looking for the model goes first; from now on bytes pass through.
        struct slice pieces[3];
        size_t count = request_upload_pieces(ex, pieces);
        ex->upload_started = true;
        for (size_t i = 0; i < count; i++) {
            if (!attempt_upload(ex, pieces[i]))
                return;
        }
        buf_free(&ex->body);
        admission_release_body(ex); // from here on the transport's queue bounds it
        if (ex->fetch && ex->body_complete)
            fetch_write_end(ex->fetch);
        else if (ex->fetch && ex->stream && fetch_write_queued(ex->fetch) < UPLOAD_QUEUE_BYTES)
            http1_resume_body(ex->stream);
    }
}

bool attempt_upload(struct exchange *ex, struct slice bytes)
{
    if (!ex->fetch || bytes.len == 0 || ex->answered_early)
        return true;
    if (fetch_write(ex->fetch, bytes) != GW_OK) {
        exchange_fail(ex, 502, "upstream_error", "The upstream did not take the upload.");
        return false;
    }
    if (fetch_write_queued(ex->fetch) >= UPLOAD_QUEUE_BYTES && ex->stream)
        http1_pause_body(ex->stream); // until on_writable
    return true;
}

void attempt_cancel(struct exchange *ex, const char *reason)
{
    if (ex->fetch)
        fetch_cancel(ex->fetch);
    ex->fetch = NULL;
    if (!ex->health_open) // none, or its end was told
        return;
    attempt_record(ex, ex->upstream_status, reason);
    close_health(ex, HEALTH_CANCELLED);
}

void attempt_succeeded(struct exchange *ex)
{
    attempt_record(ex, ex->upstream_status, "ok");
    close_health(ex, HEALTH_OK);
}

void attempt_cut(struct exchange *ex, enum ctx_failure failure, const char *reason)
{
    ex->ctx.failure = failure;
    attempt_record(ex, ex->upstream_status, reason);
    close_health(ex, health_result_of(failure, 0));
    log_event(LOG_WARN, "stream_cut", LOG_SLICE("request_id", ex->ctx.request_id),
              LOG_SLICE("upstream", ex->ctx.upstream.name), LOG_STR("reason", reason));
}

// --- failure

// Some upstreams repeat the key they refuse: it stays here, whatever else of the text passes.
static struct slice without_own_key(struct exchange *ex, struct slice text)
{
    const struct catalogue *catalogue = catalogue_get(store_catalogue(ex->flow->options.store));
    const struct upstream *upstream = catalogue_upstream(catalogue, ex->ctx.upstream.id);
    struct slice key =
        upstream && upstream->api_key ? secret_reveal(upstream->api_key) : SLICE_NONE;
    if (key.len < 8 || slice_find(text, key) < 0)
        return text;
    struct slice copy = arena_copy(ex->ctx.arena, text);
    char *bytes = (char *)(uintptr_t)copy.ptr;
    if (!bytes)
        return SLICE_LIT("");
    for (long at; (at = slice_find(copy, key)) >= 0;)
        memset(bytes + at, '*', key.len);
    return copy;
}

// The status and text that the client would be told if this was the last word.
static void describe(struct exchange *ex, enum ctx_failure failure, int status)
{
    struct dialect_error *error = &ex->ctx.error;
    struct arena *arena = ex->ctx.arena;
    struct slice body = without_own_key(ex, buf_slice(&ex->relay.held));
    struct slice name = ex->ctx.upstream.name;
    if (failure != CTX_FAILURE_STREAM) {
        memset(error, 0, sizeof *error);
        if (failure == CTX_FAILURE_STATUS)
            dialect_read_error(body, status, arena, error);
    }
    error->message = without_own_key(ex, error->message);
    error->retry_after_ms = -1;
    error->request_id = ex->ctx.request_id;
    bool is_kept =
        (failure == CTX_FAILURE_STATUS || failure == CTX_FAILURE_STREAM) &&
        (status == 400 || status == 404 || status == 413 || status == 422 || status == 429);
    if (is_kept) {
        error->status = status;
        error->should_retry = status == 429;
        if (status == 429) {
            int64_t wait = ex->retry_after_ms > 0 ? ex->retry_after_ms : 1000;
            error->retry_after_ms = wait > RETRY_AFTER_MAX_MS ? RETRY_AFTER_MAX_MS : wait;
            if (slice_is(error->code, "insufficient_quota"))
                error->should_retry = false;
        }
        const struct dialect *dialect = dialect_get(ex->ctx.dialect);
        if (failure == CTX_FAILURE_STATUS && dialect->is_error_shape(body)) {
            ex->raw_error = arena_copy(arena, body);
            ex->raw_error_message = error->message.ptr;
            ex->raw_error_type = attempt_header(ex, "content-type");
        }
        return;
    }
    error->should_retry = true;
    error->type = SLICE_NONE;
    error->param = SLICE_NONE;
    bool is_overloaded = status == 503 || status == 529;
    error->status = failure == CTX_FAILURE_TIMEOUT || status == 408 || status == 504 ? 504
                    : is_overloaded                                                  ? 503
                                                                                     : 502;
    if (is_overloaded) {
        error->code = SLICE_LIT("upstream_overloaded");
        int64_t wait = ex->retry_after_ms > 0 ? ex->retry_after_ms : 1000;
        error->retry_after_ms = wait > RETRY_AFTER_MAX_MS ? RETRY_AFTER_MAX_MS : wait;
    } else {
        error->code = slice_str(FAILURE_CODES[failure]);
    }
    if (failure == CTX_FAILURE_LOCAL) {
        error->status = 503;
        error->retry_after_ms = overload_retry_ms(ex->flow);
        error->message = SLICE_LIT("The gateway has no socket left for this call; retry later.");
        return;
    }
    // Our own key was refused: the client can do nothing about it and must not see it as its own.
    if (status == 401 || status == 403 || status == 402) {
        error->code = SLICE_LIT("upstream_auth_error");
        error->message = arena_printf(
            arena, "The upstream '%.*s' refused the gateway's own credentials; tell the operator.",
            SLICE_FMT(name));
        error->should_retry = false;
    } else if (failure == CTX_FAILURE_STATUS || failure == CTX_FAILURE_STREAM) {
        error->message =
            error->message.len
                ? arena_printf(arena, "The upstream '%.*s' failed (%d): %.*s", SLICE_FMT(name),
                               status, SLICE_FMT(error->message))
                : arena_printf(arena, "The upstream '%.*s' failed (%d).", SLICE_FMT(name), status);
    } else {
        error->message =
            arena_printf(arena, "The upstream '%.*s' failed: %s.", SLICE_FMT(name),
                         failure == CTX_FAILURE_TIMEOUT   ? "it did not answer in time"
                         : failure == CTX_FAILURE_DNS     ? "its host name was not found"
                         : failure == CTX_FAILURE_TLS     ? "no secure connection could be made"
                         : failure == CTX_FAILURE_CONNECT ? "it could not be reached"
                         : failure == CTX_FAILURE_RESET   ? "it closed the connection"
                                                          : "its answer was malformed");
    }
    if (!error->message.ptr)
        error->message = SLICE_LIT("The upstream failed.");
}

bool attempt_can_retry(struct exchange *ex)
{
    return !ex->relay.is_committed && !ex->upload_started && !ex->client_gone &&
           ex->ctx.attempt_count < (size_t)ex->flow->options.conf->max_attempts;
}

void attempt_failed(struct exchange *ex, enum ctx_failure failure, int status, const char *reason)
{
    if (ex->fetch) {
        fetch_cancel(ex->fetch);
        ex->fetch = NULL;
    }
    attempt_record(ex, status, reason);
    close_health(ex, health_result_of(failure, status));
    log_event(LOG_WARN, "attempt_failed", LOG_SLICE("request_id", ex->ctx.request_id),
              LOG_SLICE("upstream", ex->ctx.upstream.name), LOG_INT("status", status),
              LOG_STR("reason", reason), LOG_INT("attempt", ex->ctx.attempt));
    ex->ctx.failure = failure;
    describe(ex, failure, status);
    ex->ctx.is_denied = false; // the hooks decide; exchange_fail_with says it when they do not
    ex->ctx.can_retry = attempt_can_retry(ex) && next_candidate(ex) != 0;
    exchange_set_state(ex, EXCHANGE_REPLY);
    // Not from inside a transport callback: the next attempt starts another fetch.
    loop_defer(ex->flow->options.loop, &ex->step);
}

void attempt_after_reply(struct exchange *ex, enum script_outcome outcome)
{
    bool has_failed = ex->ctx.failure != CTX_FAILURE_NONE;
    if (outcome == SCRIPT_RETRY && !has_failed && attempt_can_retry(ex)) {
        // A plugin refuses a good head: the call is cancelled and counts as a failed attempt.
        attempt_failed_by_plugin(ex);
        has_failed = true;
    }
    if (outcome == SCRIPT_RETRY && has_failed && attempt_can_retry(ex)) {
        if (next_candidate(ex) != 0) {
            ex->ctx.attempt = (uint32_t)ex->ctx.attempt_count + 1;
            ex->ctx.is_denied = false;
            exchange_set_state(ex, EXCHANGE_SELECT);
            exchange_run_hook(ex, SCRIPT_SELECT);
            return;
        }
        exchange_fail_with(ex);
        return;
    }
    if (outcome == SCRIPT_ANSWERED) {
        attempt_cancel(ex, "replaced by a plugin");
        answer_start(ex);
        return;
    }
    if (outcome == SCRIPT_DENIED || has_failed) {
        exchange_fail_with(ex);
        return;
    }
    exchange_set_state(ex, EXCHANGE_FETCH);
    if (ex->done_while_reply) {
        ex->done_while_reply = false;
        relay_on_done(ex, ex->done_err, "");
        return;
    }
    if (ex->relay.is_paused) {
        ex->relay.is_paused = false;
        if (ex->fetch)
            fetch_resume(ex->fetch);
    }
}

void attempt_failed_by_plugin(struct exchange *ex)
{
    if (ex->fetch)
        fetch_cancel(ex->fetch);
    ex->fetch = NULL;
    attempt_record(ex, ex->upstream_status, "refused by a plugin");
    close_health(ex, HEALTH_CANCELLED);
    ex->ctx.failure = CTX_FAILURE_STATUS;
    describe(ex, CTX_FAILURE_STATUS, 502);
}

struct slice attempt_header(const struct exchange *ex, const char *name)
{
    for (size_t i = 0; i < ex->upstream_header_count; i++) {
        if (slice_is_nocase(ex->upstream_headers[i].name, name))
            return ex->upstream_headers[i].value;
    }
    return SLICE_NONE;
}

// retry-after-ms, retry-after in seconds; -1: none. HTTP dates are rare and read as none.
int64_t attempt_retry_after(const struct exchange *ex)
{
    unsigned long long value;
    struct slice ms = attempt_header(ex, "retry-after-ms");
    if (ms.ptr && slice_to_u64(ms, 86400000, &value) == GW_OK)
        return (int64_t)value;
    struct slice seconds = attempt_header(ex, "retry-after");
    size_t len = 0;
    while (len < seconds.len && seconds.ptr[len] >= '0' && seconds.ptr[len] <= '9')
        len++;
    if (len && slice_to_u64(slice_of(seconds.ptr, len), 86400, &value) == GW_OK)
        return (int64_t)value * 1000;
    return -1;
}
