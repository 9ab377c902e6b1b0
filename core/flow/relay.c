// The upstream's answer on its way to the client (DESIGN §4). Events pass as the bytes they came
// in; they are inspected for usage, first meaning and errors, never re-serialised. Until the first
// semantic event everything is held back, so that a failure may still go to another upstream.
#include "base/log.h"
#include "flow/exchange.h"

#define HELD_PREAMBLE_BYTES (64u << 10) // more than this before the first event: commit anyway
#define HELD_EVENT_BYTES (8u << 10)     // an incomplete event held for a splice
#define TURN_BYTES (256u << 10)         // of one stream in one loop turn

static void on_fair_turn(struct loop_task *task)
{
    struct relay *relay = (struct relay *)((char *)task - offsetof(struct relay, resume));
    struct exchange *ex = (struct exchange *)((char *)relay - offsetof(struct exchange, relay));
    if (relay->is_paused && ex->fetch && ex->stream && !http1_is_above_high_water(ex->stream)) {
        relay->is_paused = false;
        fetch_resume(ex->fetch);
    }
}

void relay_init(struct exchange *ex)
{
    loop_task_init(&ex->relay.resume, on_fair_turn);
    buf_init(&ex->relay.held, 0);
    sse_init(&ex->relay.sse, 0);
}

void relay_free(struct exchange *ex)
{
    loop_task_cancel(&ex->relay.resume);
    sse_free(&ex->relay.sse);
    buf_free(&ex->relay.held);
}

void relay_reset(struct exchange *ex)
{
    relay_free(ex);
    memset(&ex->relay, 0, sizeof ex->relay);
    relay_init(ex);
}

void relay_choose_mode(struct exchange *ex, struct slice content_type, bool is_json)
{
    struct relay *relay = &ex->relay;
    bool is_events =
        content_type.len >= 17 && strncasecmp(content_type.ptr, "text/event-stream", 17) == 0;
    bool is_sniffed = ex->ctx.is_stream && !admission_is_media(content_type);
    struct slice coding = attempt_header(ex, "content-encoding");
    // Compressed although nobody asked: it passes as it is, with its header.
    bool is_coded = coding.len > 0 && !slice_is_nocase(coding, "identity");
    // What is not a stream must be one JSON object, whatever its head says.
    bool is_object = !ex->ctx.is_stream && ex->ctx.op != DIALECT_OP_OTHER;
    relay->mode = is_coded               ? RELAY_RAW
                  : is_sniffed           ? RELAY_UNKNOWN // the body's first byte is more honest
                  : is_json || is_object ? RELAY_WHOLE
                  : is_events            ? RELAY_EVENTS
                                         : RELAY_RAW;
    relay->drops_usage_chunk = ex->is_injected;
    relay->has_delta_hook = script_has_hook(&ex->ctx, SCRIPT_DELTA);
    relay->holds_incomplete = relay->drops_usage_chunk || relay->has_delta_hook;
}

// 200 with a JSON body for stream:true (an error, or an upstream that ignores `stream`), and the
// reverse: the first byte that is not white space tells.
void relay_sniff_mode(struct exchange *ex, struct slice bytes)
{
    size_t i = 0;
    while (i < bytes.len && (bytes.ptr[i] == ' ' || bytes.ptr[i] == '\n' || bytes.ptr[i] == '\r' ||
                             bytes.ptr[i] == '\t'))
        i++;
    if (i < bytes.len)
        ex->relay.mode = bytes.ptr[i] == '{' || bytes.ptr[i] == '[' ? RELAY_WHOLE : RELAY_EVENTS;
}

// --- events

// Writes the stream's bytes up to an offset: first what is held, then of the chunk being fed.
static void pass_until(struct exchange *ex, uint64_t offset)
{
    struct relay *relay = &ex->relay;
    if (relay->passed < relay->chunk_start && offset > relay->passed) {
        uint64_t held_end = offset < relay->chunk_start ? offset : relay->chunk_start;
        size_t count = (size_t)(held_end - relay->passed);
        struct slice held = buf_slice(&relay->held);
        (void)!reply_write(ex, slice_of(held.ptr, count));
        buf_consume(&relay->held, count);
        relay->passed = held_end;
    }
    if (offset > relay->passed) {
        size_t from = (size_t)(relay->passed - relay->chunk_start);
        size_t count = (size_t)(offset - relay->passed);
        (void)!reply_write(ex, slice_of(relay->chunk.ptr + from, count));
        relay->passed = offset;
    }
}

static void drop_until(struct relay *relay, uint64_t offset)
{
    if (relay->passed < relay->chunk_start) {
        uint64_t held_end = offset < relay->chunk_start ? offset : relay->chunk_start;
        buf_consume(&relay->held, (size_t)(held_end - relay->passed));
        relay->passed = held_end;
    }
    if (offset > relay->passed)
        relay->passed = offset;
}

static void commit(struct exchange *ex)
{
    struct relay *relay = &ex->relay;
    if (relay->is_committed)
        return;
    relay->is_committed = true;
    ex->first_event_ms = loop_now_ms(ex->flow->options.loop);
    ex->ctx.ttft_ms = (uint32_t)(ex->first_event_ms - ex->ctx.started_boot_ms);
    if (!ex->head_sent && reply_open_stream(ex, 200) != GW_OK)
        return;
    if (ex->state == EXCHANGE_FETCH)
        exchange_set_state(ex, EXCHANGE_RELAY);
    loop_timer_start(&ex->hold_timer, (uint64_t)ex->flow->options.conf->keepalive_ms);
}

// The event again with another text in it: the data's bytes around the text stay.
static void pass_replaced(struct exchange *ex, const struct sse_event *event,
                          const struct dialect_info *info, struct slice text)
{
    struct buf *out = &ex->flow->scratch;
    buf_clear(out);
    int err = GW_OK;
    if (event->name.len)
        err = buf_printf(out, "event: %.*s\n", SLICE_FMT(event->name));
    if (!err)
        err = buf_append_str(out, "data: ");
    if (!err)
        err = buf_append(out, slice_of(event->data.ptr, info->text_start));
    if (!err)
        err = json_quote(out, text);
    if (!err)
        err = buf_append(out, slice_from(event->data, info->text_end));
    if (!err)
        err = buf_append_str(out, "\n\n");
    if (!err)
        (void)!reply_write(ex, buf_slice(out));
}

// Lets delta hooks see the text of an event; true when the event was replaced or dropped.
static bool run_delta_hooks(struct exchange *ex, const struct sse_event *event,
                            const struct dialect_info *info)
{
    if (!script_wants_delta(&ex->ctx, info->block))
        return false;
    struct arena_mark mark = arena_mark(ex->ctx.arena);
    size_t flag_count = ex->ctx.flag_count;
    size_t size = info->text_end - info->text_start + 1;
    char *text = arena_alloc(ex->ctx.arena, size);
    size_t len = 0;
    struct skim_span span = {.type = SKIM_STRING,
                             .has_escapes = info->text_has_escapes,
                             .start = info->text_start,
                             .end = info->text_end};
    struct slice replaced = SLICE_NONE;
    int verdict = 0;
    if (text && skim_string(event->data, &span, text, size, &len) == GW_OK)
        verdict = script_run_delta(&ex->ctx, info->block, slice_of(text, len), &replaced);
    if (verdict == 3) {
        pass_until(ex, event->start);
        ex->relay.border = event->start;
        ex->relay.has_hook_error = true;
    } else if (verdict != 0) {
        pass_until(ex, event->start);
        if (verdict == 1)
            pass_replaced(ex, event, info, replaced);
        drop_until(&ex->relay, event->end);
        ctx_flag(&ex->ctx, "delta_hook");
    }
    // What the exchange keeps stays: the error's text, names of flags.
    if (verdict != 3 && ex->ctx.flag_count == flag_count)
        arena_rewind(ex->ctx.arena, mark);
    return verdict != 0;
}

static int on_event(void *user, const struct sse_event *event)
{
    struct exchange *ex = user;
    struct relay *relay = &ex->relay;
    struct dialect_info info;
    memset(&info, 0, sizeof info);
    dialect_inspect(&ex->reader, event, &info);
    relay->border = event->end;
    if (info.class == DIALECT_EVENT_ERROR) {
        if (!relay->is_committed) {
            relay->has_failed = true;
            ex->ctx.error = info.error;
            return GW_ECANCELLED;
        }
        // Already in the client's dialect: it passes, and the exchange counts as failed.
        relay->has_error_event = true;
        ex->ctx.error = info.error;
        return GW_OK;
    }
    if (info.class != DIALECT_EVENT_NOISE && info.class != DIALECT_EVENT_PREAMBLE)
        commit(ex);
    // An event of which a part went out already (it was too long to hold) passes whole.
    if (info.class == DIALECT_EVENT_USAGE && relay->drops_usage_chunk &&
        relay->passed <= event->start) {
        pass_until(ex, event->start);
        drop_until(relay, event->end);
        return GW_OK;
    }
    if (relay->has_delta_hook && info.has_text && relay->is_committed)
        (void)run_delta_hooks(ex, event, &info);
    return relay->has_hook_error ? GW_ECANCELLED : GW_OK;
}

// The error's texts lie in the reader, which the next attempt begins anew.
static void keep_error(struct exchange *ex)
{
    struct dialect_error *error = &ex->ctx.error;
    struct slice *texts[] = {&error->message, &error->code, &error->type, &error->param};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        if (texts[i]->len)
            *texts[i] = arena_copy(ex->ctx.arena, *texts[i]);
        if (!texts[i]->ptr)
            *texts[i] = SLICE_LIT("");
    }
}

// Bytes of the answer are lost (no memory): only a cut connection tells the client. The exchange
// may be gone when this returns.
static void cut_client(struct exchange *ex)
{
    attempt_cancel(ex, "answer could not be sent");
    exchange_set_state(ex, EXCHANGE_ENDING);
    loop_timer_stop(&ex->hold_timer);
    ex->is_ended = true;
    if (ex->stream)
        http1_abort(ex->stream, "answer could not be sent");
}

static enum fetch_verdict relay_events(struct exchange *ex, struct slice bytes)
{
    struct relay *relay = &ex->relay;
    relay->chunk = bytes;
    relay->chunk_start = relay->received;
    int err = sse_feed(&relay->sse, bytes, on_event, ex);
    relay->received += bytes.len;
    if (relay->has_lost_bytes) {
        cut_client(ex);
        return FETCH_CONSUMED;
    }
    if (relay->has_failed) {
        keep_error(ex);
        attempt_failed(ex, CTX_FAILURE_STREAM, ex->ctx.error.status, "error in stream");
        return FETCH_CONSUMED;
    }
    if (relay->has_hook_error) {
        attempt_cancel(ex, "refused by a plugin");
        exchange_fail_with(ex);
        return FETCH_CONSUMED;
    }
    if (err == GW_ETOOBIG || err == GW_ENOMEM) {
        relay_fail_or_retry(ex, CTX_FAILURE_PROTOCOL,
                            err == GW_ETOOBIG ? "an event is larger than 16 MiB" : "out of memory");
        return FETCH_CONSUMED;
    }
    if (!relay->is_committed && relay->received - relay->passed > HELD_PREAMBLE_BYTES)
        commit(ex);
    if (relay->is_committed) {
        // A filter sees whole events only, however long; for a splice only short ones matter.
        uint64_t limit = relay->has_delta_hook ? SSE_MAX_EVENT : HELD_EVENT_BYTES;
        bool holds = relay->holds_incomplete && !sse_is_at_border(&relay->sse) &&
                     relay->received - relay->border <= limit;
        pass_until(ex, holds ? relay->border : relay->received);
        if (relay->has_lost_bytes) {
            cut_client(ex);
            return FETCH_CONSUMED;
        }
    }
    if (relay->passed < relay->received) {
        uint64_t from = relay->passed > relay->chunk_start ? relay->passed : relay->chunk_start;
        struct slice rest = slice_from(bytes, (size_t)(from - relay->chunk_start));
        if (buf_append(&relay->held, rest) != GW_OK)
            relay_fail_or_retry(ex, CTX_FAILURE_PROTOCOL, "out of memory");
    }
    relay->chunk_start = relay->received;
    return FETCH_CONSUMED;
}

// --- whole answers

static void send_whole(struct exchange *ex, enum script_outcome outcome, struct slice body)
{
    attempt_succeeded(ex);
    if (outcome == SCRIPT_DENIED) {
        exchange_fail_with(ex);
        return;
    }
    if (outcome == SCRIPT_ANSWERED) {
        answer_start(ex);
        return;
    }
    ex->is_success = true;
    struct slice type = attempt_header(ex, "content-type");
    reply_whole(ex, ex->upstream_status, type.ptr ? type : SLICE_LIT("application/json"), body);
}

// An HTML page, half an object, nothing at all: no answer, although the status says so. A client's
// library would fail in ways that tell nobody why.
static bool is_json_object(const struct exchange *ex, struct slice body)
{
    struct slice text = slice_trim(body);
    if (text.len == 0 || text.ptr[0] != '{')
        return false;
    if (ex->reader.has_end) // the dialect has read all of it
        return true;
    struct skim skim;
    return skim_whole(&skim, &(struct skim_spec){.is_lenient = true}, body) != GW_EINVAL;
}

static void relay_whole_end(struct exchange *ex, struct slice body)
{
    struct relay *relay = &ex->relay;
    struct dialect_info info;
    memset(&info, 0, sizeof info);
    bool is_error = false;
    ex->reader.dialect->inspect_body(&ex->reader, body, &info, &is_error);
    if (is_error) {
        ex->ctx.error = info.error;
        keep_error(ex);
        attempt_failed(ex, CTX_FAILURE_STREAM, info.error.status, "error in a 200 answer");
        return;
    }
    if (ex->ctx.op != DIALECT_OP_OTHER && !is_json_object(ex, body)) {
        attempt_failed(ex, CTX_FAILURE_PROTOCOL, ex->upstream_status, "not a JSON object");
        return;
    }
    if (ex->head_sent) { // a stream was promised by the keep-alive head
        attempt_failed(ex, CTX_FAILURE_PROTOCOL, ex->upstream_status, "whole answer to a stream");
        return;
    }
    relay->is_committed = true;
    ex->first_event_ms = loop_now_ms(ex->flow->options.loop);
    ex->ctx.ttft_ms = (uint32_t)(ex->first_event_ms - ex->ctx.started_boot_ms);
    struct slice out = body;
    enum script_outcome outcome = SCRIPT_PASS;
    if (script_has_hook(&ex->ctx, SCRIPT_BODY)) {
        flow_touch(ex->flow);
        outcome = script_run_body(&ex->ctx, body, &out);
    }
    if (outcome == SCRIPT_PENDING) // relay_after_body_hook goes on
        ex->hook_pending = true;
    else
        send_whole(ex, outcome, out);
}

void relay_after_body_hook(struct exchange *ex, enum script_outcome outcome)
{
    send_whole(ex, outcome, ex->ctx.body_text);
}

static enum fetch_verdict relay_whole(struct exchange *ex, struct slice bytes)
{
    struct relay *relay = &ex->relay;
    if (relay->held.len + bytes.len > (uint64_t)ex->flow->options.conf->answer_bytes) {
        attempt_failed(ex, CTX_FAILURE_PROTOCOL, ex->upstream_status, "the answer is too large");
        return FETCH_CONSUMED;
    }
    if (relay->held.len == 0 && ex->upstream_length > 0 &&
        ex->upstream_length <= ex->flow->options.conf->answer_bytes)
        (void)!buf_room(&relay->held, (size_t)ex->upstream_length);
    if (buf_append(&relay->held, bytes) != GW_OK)
        attempt_failed(ex, CTX_FAILURE_PROTOCOL, ex->upstream_status, "out of memory");
    return FETCH_CONSUMED;
}

// --- other content

// False when the attempt has failed.
static bool open_raw(struct exchange *ex)
{
    // A head that a keep-alive comment opened promised events.
    if (ex->head_sent || reply_open_raw(ex) != GW_OK) {
        attempt_failed(ex, CTX_FAILURE_PROTOCOL, ex->upstream_status, "answer of another kind");
        return false;
    }
    ex->relay.is_committed = true;
    ex->first_event_ms = loop_now_ms(ex->flow->options.loop);
    ex->ctx.ttft_ms = (uint32_t)(ex->first_event_ms - ex->ctx.started_boot_ms);
    exchange_set_state(ex, EXCHANGE_RELAY);
    return true;
}

static enum fetch_verdict relay_raw(struct exchange *ex, struct slice bytes)
{
    struct relay *relay = &ex->relay;
    if (!relay->is_committed && !open_raw(ex))
        return FETCH_CONSUMED;
    relay->received += bytes.len;
    (void)!reply_write(ex, bytes);
    if (relay->has_lost_bytes)
        cut_client(ex);
    return FETCH_CONSUMED;
}

// White space may come first: it is kept, because it is part of the answer. False: nothing more to
// do with these bytes.
static bool decide_mode(struct exchange *ex, struct slice bytes)
{
    struct relay *relay = &ex->relay;
    relay_sniff_mode(ex, bytes);
    if (relay->mode == RELAY_UNKNOWN && relay->held.len + bytes.len > HELD_PREAMBLE_BYTES)
        relay->mode = RELAY_EVENTS;
    if (relay->mode == RELAY_UNKNOWN) {
        if (buf_append(&relay->held, bytes) != GW_OK)
            attempt_failed(ex, CTX_FAILURE_PROTOCOL, ex->upstream_status, "out of memory");
        return false;
    }
    if (relay->mode != RELAY_EVENTS || relay->held.len == 0)
        return true;
    struct buf lead = relay->held;
    buf_init(&relay->held, 0);
    (void)relay_events(ex, buf_slice(&lead));
    buf_free(&lead);
    return ex->fetch != NULL;
}

enum fetch_verdict relay_on_body(struct exchange *ex, struct slice bytes)
{
    struct relay *relay = &ex->relay;
    struct loop *loop = ex->flow->options.loop;
    if (ex->stream && http1_is_above_high_water(ex->stream)) {
        relay->is_paused = true; // the client is slow: the same bytes come again
        return FETCH_PAUSE;
    }
    if (relay->turn != loop_turn_count(loop)) {
        relay->turn = loop_turn_count(loop);
        relay->turn_bytes = 0;
    }
    if (relay->turn_bytes > TURN_BYTES) { // others first
        relay->is_paused = true;
        loop_defer(loop, &relay->resume);
        return FETCH_PAUSE;
    }
    relay->turn_bytes += bytes.len;
    if (relay->mode == RELAY_UNKNOWN && !decide_mode(ex, bytes))
        return FETCH_CONSUMED;
    switch (relay->mode) {
    case RELAY_UNKNOWN: return FETCH_CONSUMED;
    case RELAY_WHOLE: return relay_whole(ex, bytes);
    case RELAY_EVENTS: return relay_events(ex, bytes);
    case RELAY_RAW: break;
    }
    return relay_raw(ex, bytes);
}

// --- ends

static void end_stream(struct exchange *ex)
{
    if (ex->relay.has_lost_bytes) {
        ex->is_success = false;
        cut_client(ex);
        return;
    }
    exchange_set_state(ex, EXCHANGE_ENDING);
    loop_timer_stop(&ex->hold_timer);
    ex->is_ended = true;
    if (ex->stream)
        http1_end(ex->stream);
}

void relay_fail(struct exchange *ex, int status, const char *code, const char *message)
{
    ctx_flag(&ex->ctx, "cut");
    exchange_fail(ex, status, code, message);
}

void relay_fail_or_retry(struct exchange *ex, enum ctx_failure failure, const char *reason)
{
    if (!ex->relay.is_committed) {
        attempt_failed(ex, failure, ex->upstream_status, reason);
        return;
    }
    if (ex->fetch)
        fetch_cancel(ex->fetch);
    ex->fetch = NULL;
    attempt_cut(ex, failure, reason);
    bool is_timeout = failure == CTX_FAILURE_TIMEOUT;
    relay_fail(ex, is_timeout ? 504 : 502,
               is_timeout ? "upstream_timeout" : "upstream_disconnected",
               is_timeout ? "The upstream went silent in the middle of the stream."
                          : "The upstream closed the connection in the middle of the stream.");
}

static void events_done(struct exchange *ex)
{
    struct relay *relay = &ex->relay;
    relay->chunk = SLICE_NONE;
    relay->chunk_start = relay->received;
    (void)!sse_finish(&relay->sse, on_event, ex);
    if (relay->has_failed) {
        keep_error(ex);
        attempt_failed(ex, CTX_FAILURE_STREAM, ex->ctx.error.status, "error in stream");
        return;
    }
    if (relay->has_hook_error) {
        attempt_succeeded(ex);
        exchange_fail_with(ex);
        return;
    }
    if (relay->has_error_event) {
        pass_until(ex, relay->received);
        attempt_cut(ex, CTX_FAILURE_STREAM, "error in stream");
        ctx_flag(&ex->ctx, "error_in_stream");
        end_stream(ex);
        return;
    }
    if (!ex->reader.dialect->may_end(&ex->reader)) {
        if (relay->is_committed)
            pass_until(ex, relay->received);
        relay_fail_or_retry(ex, CTX_FAILURE_RESET, "stream ended early");
        return;
    }
    if (!relay->is_committed)
        commit(ex);
    pass_until(ex, relay->received);
    attempt_succeeded(ex);
    ex->is_success = true;
    end_stream(ex);
}

void relay_on_done(struct exchange *ex, int err, const char *detail)
{
    struct relay *relay = &ex->relay;
    const char *reason = detail && detail[0] ? detail : gw_err_name(err);
    if (ex->state == EXCHANGE_REPLY) { // the reply hook still thinks: judged when it has ended
        ex->done_while_reply = true;
        ex->done_err = err;
        return;
    }
    // What comes after the stream's own end, or after an error the client was told, changes
    // nothing.
    bool is_over = relay->mode == RELAY_EVENTS && relay->is_committed &&
                   (relay->has_error_event || ex->reader.has_end);
    if (err != GW_OK && is_over) {
        pass_until(ex, relay->border);
        drop_until(relay, relay->received);
        events_done(ex);
        return;
    }
    if (err != GW_OK) {
        relay_fail_or_retry(ex, err == GW_ETIMEOUT ? CTX_FAILURE_TIMEOUT : CTX_FAILURE_RESET,
                            reason);
        return;
    }
    switch (relay->mode) {
    case RELAY_EVENTS: events_done(ex); return;
    case RELAY_WHOLE: relay_whole_end(ex, buf_slice(&relay->held)); return;
    case RELAY_RAW:
        if (!relay->is_committed && !open_raw(ex))
            return;
        attempt_succeeded(ex);
        ex->is_success = true;
        end_stream(ex);
        return;
    case RELAY_UNKNOWN: break;
    }
    attempt_failed(ex, CTX_FAILURE_RESET, ex->upstream_status, "empty answer");
}

void relay_on_client_writable(struct exchange *ex)
{
    struct relay *relay = &ex->relay;
    if (relay->is_paused && ex->fetch && !ex->hook_pending && ex->state != EXCHANGE_REPLY) {
        relay->is_paused = false;
        fetch_resume(ex->fetch);
    }
}

// Nothing was written for a while: open the head, or send a comment, at a border only.
void relay_on_silence(struct exchange *ex)
{
    const struct conf *conf = ex->flow->options.conf;
    uint64_t now = loop_now_ms(ex->flow->options.loop);
    if (ex->drains) {
        drain_over(ex, "client gone, drain time over");
        return;
    }
    if (ex->answered_early) {
        attempt_end_early(ex);
        return;
    }
    if (!ex->stream || ex->is_ended || ex->state >= EXCHANGE_ERROR || !ex->ctx.is_stream ||
        ex->relay.mode == RELAY_RAW)
        return;
    if (!ex->head_sent) {
        if (ex->relay.mode == RELAY_WHOLE || reply_open_stream(ex, 200) != GW_OK)
            return;
        (void)!reply_write(ex, SLICE_LIT(": keepalive\n\n"));
    } else {
        uint64_t quiet = now - ex->last_write_ms;
        if (quiet < (uint64_t)conf->keepalive_ms) {
            loop_timer_start(&ex->hold_timer, (uint64_t)conf->keepalive_ms - quiet);
            return;
        }
        // Bytes of an event under way have gone out only when the stream is committed.
        const struct relay *relay = &ex->relay;
        bool at_border = !relay->is_committed || relay->passed == relay->border ||
                         relay->passed <= relay->sse.event_start || sse_is_at_border(&relay->sse);
        if (at_border && http1_queued(ex->stream) == 0)
            (void)!reply_write(ex, SLICE_LIT(": keepalive\n\n"));
    }
    loop_timer_start(&ex->hold_timer, (uint64_t)conf->keepalive_ms);
}
