// What goes to the client: heads with the ids and CORS fields of every answer, whole answers,
// stream heads, errors in the client's dialect (before and in the stream).
#include "flow/exchange.h"

#define MAX_HEADERS 32

// Upstream headers that clients may see: an allow-list. Rate headers of a shared key, cookies,
// organisation ids and framing stay behind (PROTOCOLS §9, PROMISES T17).
static const char *const PASSED[] = {
    "openai-processing-ms", "openai-version",    "openai-model",    "content-language",
    "content-disposition",  "x-ms-served-model", "content-encoding"};

static bool origin_is_allowed(const struct conf *conf, struct slice origin)
{
    for (size_t i = 0; i < conf->cors_origins.count; i++) {
        struct slice item = conf->cors_origins.items[i];
        if (slice_is(item, "*") || slice_eq(item, origin))
            return true;
    }
    return false;
}

static size_t add(struct http1_header *out, size_t count, size_t max, struct slice name,
                  struct slice value)
{
    if (count < max && value.ptr)
        out[count++] = (struct http1_header){name, value};
    return count;
}

size_t reply_cors_headers(const struct conf *conf, const struct http1_request *request,
                          bool is_preflight, struct http1_header *out, size_t max,
                          struct arena *arena)
{
    struct slice origin = request ? http1_header(request, "origin") : SLICE_NONE;
    if (!origin.ptr || !origin_is_allowed(conf, origin))
        return 0;
    size_t count = 0;
    struct slice copy = arena ? arena_copy(arena, origin) : origin;
    count = add(out, count, max, SLICE_LIT("access-control-allow-origin"), copy);
    count = add(out, count, max, SLICE_LIT("vary"), SLICE_LIT("Origin"));
    if (!is_preflight) {
        count = add(out, count, max, SLICE_LIT("access-control-expose-headers"),
                    SLICE_LIT("request-id, x-request-id, retry-after, retry-after-ms, "
                              "x-should-retry, x-moongate-lossy"));
        return count;
    }
    count = add(out, count, max, SLICE_LIT("access-control-allow-methods"),
                SLICE_LIT("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"));
    struct slice wanted = http1_header(request, "access-control-request-headers");
    count = add(out, count, max, SLICE_LIT("access-control-allow-headers"),
                wanted.ptr ? wanted
                           : SLICE_LIT("authorization, content-type, x-api-key, api-key, "
                                       "anthropic-version, anthropic-beta"));
    return add(out, count, max, SLICE_LIT("access-control-max-age"), SLICE_LIT("600"));
}

size_t reply_headers(struct exchange *ex, struct http1_header *out, size_t max)
{
    size_t count = 0;
    count = add(out, count, max, SLICE_LIT("x-request-id"), ex->ctx.request_id);
    count = add(out, count, max, SLICE_LIT("request-id"), ex->ctx.request_id);
    if (ex->upstream_status >= 200 && ex->upstream_status < 300) {
        for (size_t i = 0; i < sizeof PASSED / sizeof *PASSED; i++)
            count = add(out, count, max, slice_str(PASSED[i]), attempt_header(ex, PASSED[i]));
    }
    count += reply_cors_headers(ex->flow->options.conf, ex->ctx.request, false, out + count,
                                max - count, ex->ctx.arena);
    return count;
}

int reply_open_stream(struct exchange *ex, int status)
{
    if (!ex->stream)
        return GW_ERESET;
    struct http1_header headers[MAX_HEADERS];
    size_t count = reply_headers(ex, headers, MAX_HEADERS - 3);
    count = add(headers, count, MAX_HEADERS, SLICE_LIT("content-type"),
                SLICE_LIT("text/event-stream; charset=utf-8"));
    count = add(headers, count, MAX_HEADERS, SLICE_LIT("cache-control"), SLICE_LIT("no-cache"));
    count = add(headers, count, MAX_HEADERS, SLICE_LIT("x-accel-buffering"), SLICE_LIT("no"));
    int err = http1_respond_head(ex->stream, status, headers, count, -1);
    if (err)
        return err;
    ex->head_sent = true;
    ex->ctx.status = status;
    ex->last_write_ms = loop_now_ms(ex->flow->options.loop);
    return GW_OK;
}

int reply_open_raw(struct exchange *ex)
{
    if (!ex->stream)
        return GW_ERESET;
    struct http1_header headers[MAX_HEADERS];
    size_t count = reply_headers(ex, headers, MAX_HEADERS - 1);
    count = add(headers, count, MAX_HEADERS, SLICE_LIT("content-type"),
                attempt_header(ex, "content-type"));
    int err =
        http1_respond_head(ex->stream, ex->upstream_status, headers, count, ex->upstream_length);
    if (err)
        return err;
    ex->head_sent = true;
    ex->ctx.status = ex->upstream_status;
    return GW_OK;
}

int reply_write(struct exchange *ex, struct slice bytes)
{
    if (!ex->stream || ex->is_ended)
        return GW_ERESET;
    ex->last_write_ms = loop_now_ms(ex->flow->options.loop);
    int err = http1_write(ex->stream, bytes);
    if (err && err != GW_ERESET)
        ex->relay.has_lost_bytes = true;
    return err;
}

static void respond(struct exchange *ex, int status, struct http1_header *headers, size_t count,
                    struct slice body)
{
    loop_timer_stop(&ex->hold_timer);
    exchange_set_state(ex, EXCHANGE_ENDING);
    ex->ctx.status = status;
    ex->is_ended = true;
    if (ex->stream && http1_respond(ex->stream, status, headers, count, body) != GW_OK) {
        ex->is_success = false;
        http1_abort(ex->stream, "answer could not be sent"); // the exchange may be gone now
    }
}

void reply_whole(struct exchange *ex, int status, struct slice content_type, struct slice body)
{
    struct http1_header headers[MAX_HEADERS];
    const struct ctx_respond *respond_with = &ex->ctx.respond;
    // What a plugin said before it failed does not count.
    size_t own = respond_with->kind == CTX_ANSWER_NONE ? 0 : respond_with->header_count;
    size_t count = reply_headers(ex, headers, MAX_HEADERS / 2);
    count = add(headers, count, MAX_HEADERS, SLICE_LIT("content-type"), content_type);
    if (ex->ctx.op == DIALECT_OP_COUNT_TOKENS && ctx_has_flag(&ex->ctx, "estimated"))
        count =
            add(headers, count, MAX_HEADERS, SLICE_LIT("x-moongate-estimated"), SLICE_LIT("true"));
    for (size_t i = 0; i < own; i++)
        count = add(headers, count, MAX_HEADERS, respond_with->headers[i].name,
                    respond_with->headers[i].value);
    respond(ex, status, headers, count, body);
}

// In a stream that has begun there is no status any more: the dialect's own error ends it.
static void end_stream_with_error(struct exchange *ex)
{
    struct buf *out = &ex->flow->scratch;
    const struct dialect *dialect = dialect_get(ex->ctx.dialect);
    buf_clear(out);
    if (!ex->has_reader)
        dialect_reader_init(&ex->reader, ex->ctx.dialect, ex->ctx.op);
    if (!ex->relay.is_committed) // what was held back never reached the client
        ex->reader.has_preamble = false;
    int err = GW_OK;
    bool is_partial = ex->relay.passed != ex->relay.border && ex->relay.is_committed;
    if (is_partial) // closes the event that was cut, so that ours is read on its own
        err = buf_append_str(out, "\n\n");
    if (!err)
        err = dialect->render_stream_error(&ex->reader, &ex->ctx.error, out);
    bool is_events = ex->relay.mode != RELAY_RAW;
    exchange_set_state(ex, EXCHANGE_ENDING);
    loop_timer_stop(&ex->hold_timer);
    if (!ex->stream)
        return;
    if (err || !is_events) { // bytes of unknown kind: only a cut tells that they are incomplete
        ex->is_ended = true;
        http1_abort(ex->stream, "upstream cut");
        return;
    }
    (void)!reply_write(ex, buf_slice(out));
    ex->is_ended = true;
    http1_end(ex->stream);
}

static size_t retry_headers(struct exchange *ex, struct http1_header *headers, size_t count)
{
    const struct dialect_error *error = &ex->ctx.error;
    struct arena *arena = ex->ctx.arena;
    if (error->retry_after_ms >= 0) {
        long long ms = (long long)error->retry_after_ms;
        count = add(headers, count, MAX_HEADERS, SLICE_LIT("retry-after"),
                    arena_printf(arena, "%lld", (ms + 999) / 1000));
        count = add(headers, count, MAX_HEADERS, SLICE_LIT("retry-after-ms"),
                    arena_printf(arena, "%lld", ms));
    }
    return add(headers, count, MAX_HEADERS, SLICE_LIT("x-should-retry"),
               error->should_retry ? SLICE_LIT("true") : SLICE_LIT("false"));
}

void reply_error(struct exchange *ex)
{
    struct dialect_error *error = &ex->ctx.error;
    if (ex->head_sent) {
        end_stream_with_error(ex);
        return;
    }
    if (error->status < 400 || error->status > 599)
        error->status = 500;
    struct http1_header headers[MAX_HEADERS];
    ex->upstream_status = 0; // an error's head carries nothing of the upstream's
    size_t count = reply_headers(ex, headers, MAX_HEADERS - 6);
    count = retry_headers(ex, headers, count);
    if (ex->raw_error.ptr && ex->raw_error_message == error->message.ptr) {
        count = add(headers, count, MAX_HEADERS, SLICE_LIT("content-type"),
                    ex->raw_error_type.ptr ? ex->raw_error_type : SLICE_LIT("application/json"));
        respond(ex, error->status, headers, count, ex->raw_error);
        return;
    }
    struct buf *out = &ex->flow->scratch;
    buf_clear(out);
    const struct dialect *dialect = dialect_get(ex->ctx.dialect);
    if (dialect->render_error(error, out) != GW_OK)
        buf_clear(out);
    count =
        add(headers, count, MAX_HEADERS, SLICE_LIT("content-type"), SLICE_LIT("application/json"));
    respond(ex, error->status, headers, count, buf_slice(out));
}
