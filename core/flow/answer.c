// Calls that a plugin answers itself: whole answers, or neutral events that are emitted in the
// client's dialect, as a stream or gathered to one body.
#include "flow/exchange.h"

// "chatcmpl-", "msg_", "resp_", "cmpl-" and the exchange's id: unique and ordered by time.
static void name_answer(struct exchange *ex)
{
    const char *prefix = ex->ctx.dialect == DIALECT_ANTHROPIC   ? "msg_"
                         : ex->ctx.dialect == DIALECT_RESPONSES ? "resp_"
                         : ex->ctx.op == DIALECT_OP_COMPLETIONS ? "cmpl-"
                                                                : "chatcmpl-";
    size_t len = strlen(prefix);
    memcpy(ex->writer.id, prefix, len);
    for (const char *c = ex->ctx.id_text; *c; c++) {
        if (*c != '-')
            ex->writer.id[len++] = *c;
    }
    ex->writer.id[len] = '\0';
}

static void begin_writer(struct exchange *ex)
{
    dialect_writer_init(&ex->writer, ex->ctx.dialect, ex->ctx.op, ex->ctx.arena);
    ex->has_writer = true;
    name_answer(ex);
    ex->writer.include_usage = ex->has_include_usage;
    ex->writer.created_s = ex->ctx.started_wall_ms / 1000;
    size_t len = ex->ctx.model.len < sizeof ex->writer.model - 1 ? ex->ctx.model.len
                                                                 : sizeof ex->writer.model - 1;
    memcpy(ex->writer.model, ex->ctx.model.ptr ? ex->ctx.model.ptr : "", len);
    ex->writer.model[len] = '\0';
}

void answer_start(struct exchange *ex)
{
    const struct ctx_respond *respond = &ex->ctx.respond;
    exchange_set_state(ex, EXCHANGE_ANSWER);
    ctx_flag(&ex->ctx, "plugin_answer");
    if (respond->kind == CTX_ANSWER_WHOLE && ex->head_sent) { // by a keep-alive comment
        exchange_fail(ex, respond->status >= 400 ? respond->status : 502, "plugin_answer",
                      "A plugin answered this call when its stream had already begun.");
        return;
    }
    if (respond->kind == CTX_ANSWER_WHOLE) {
        ex->is_success = respond->status < 400;
        struct slice type =
            respond->content_type.ptr ? respond->content_type : SLICE_LIT("application/json");
        reply_whole(ex, respond->status, type, respond->body);
        return;
    }
    begin_writer(ex);
    script_answer_start(&ex->ctx);
}

void answer_on_client_writable(struct exchange *ex)
{
    if (ex->state == EXCHANGE_ANSWER)
        script_answer_writable(&ex->ctx);
}

static int stream_event(struct exchange *ex, const struct event *event)
{
    struct buf *out = &ex->flow->scratch;
    buf_clear(out);
    int err = ex->writer.dialect->emit(&ex->writer, event, out);
    if (err)
        return err;
    if (!ex->head_sent) {
        err = reply_open_stream(ex, 200);
        if (err)
            return err;
    }
    err = reply_write(ex, buf_slice(out));
    if (err)
        return err;
    return http1_is_above_high_water(ex->stream) ? GW_EAGAIN : GW_OK;
}

// Keeps a copy until all have come.
static int gather_event(struct exchange *ex, const struct event *event)
{
    struct arena *arena = ex->ctx.arena;
    if (ex->answer_count == ex->answer_capacity) {
        size_t capacity = ex->answer_capacity ? ex->answer_capacity * 2 : 16;
        struct event *events = arena_alloc(arena, capacity * sizeof *events);
        if (!events)
            return GW_ENOMEM;
        if (ex->answer_count)
            memcpy(events, ex->answer_events, ex->answer_count * sizeof *events);
        ex->answer_events = events;
        ex->answer_capacity = capacity;
    }
    struct event *copy = &ex->answer_events[ex->answer_count++];
    *copy = *event;
    copy->id = arena_copy(arena, event->id);
    copy->name = arena_copy(arena, event->name);
    copy->model = arena_copy(arena, event->model);
    copy->text = arena_copy(arena, event->text);
    copy->stop_sequence = arena_copy(arena, event->stop_sequence);
    return GW_OK;
}

static struct slice finish_text(enum event_finish finish)
{
    switch (finish) {
    case EVENT_FINISH_LENGTH: return SLICE_LIT("length");
    case EVENT_FINISH_TOOL: return SLICE_LIT("tool");
    case EVENT_FINISH_FILTER: return SLICE_LIT("filter");
    case EVENT_FINISH_STOP_SEQUENCE: return SLICE_LIT("stop_sequence");
    case EVENT_FINISH_STOP: break;
    }
    return SLICE_LIT("stop");
}

int answer_on_event(struct ctx *ctx, const struct event *event)
{
    struct exchange *ex = ctx->exchange;
    if (!ex->stream || ex->state != EXCHANGE_ANSWER)
        return GW_ERESET;
    if (event->kind == EVENT_USAGE) {
        ctx->usage = event->usage;
        ctx->has_usage = true;
    }
    if (event->kind == EVENT_FINISH)
        ctx->finish_reason = finish_text(event->finish);
    if (event->kind == EVENT_BLOCK_DELTA && !ex->first_event_ms) {
        ex->first_event_ms = loop_now_ms(ex->flow->options.loop);
        ctx->ttft_ms = (uint32_t)(ex->first_event_ms - ctx->started_boot_ms);
    }
    return ctx->is_stream ? stream_event(ex, event) : gather_event(ex, event);
}

void answer_on_end(struct ctx *ctx, int err)
{
    struct exchange *ex = ctx->exchange;
    if (ex->state != EXCHANGE_ANSWER)
        return;
    if (err) {
        if (ctx->error.status == 0)
            exchange_fail(ex, 500, "plugin_error", "The plugin that answers this model failed.");
        else
            exchange_fail_with(ex);
        return;
    }
    if (ctx->is_stream) {
        if (!ex->head_sent) {
            exchange_fail(ex, 500, "plugin_error", "The plugin gave no answer.");
            return;
        }
        exchange_set_state(ex, EXCHANGE_ENDING);
        ex->is_success = true;
        ex->is_ended = true;
        if (ex->stream)
            http1_end(ex->stream);
        return;
    }
    struct buf *out = &ex->flow->scratch;
    buf_clear(out);
    int render =
        ex->writer.dialect->emit_whole(&ex->writer, ex->answer_events, ex->answer_count, out);
    if (render) {
        exchange_fail(ex, 500, "plugin_error",
                      "The plugin's answer cannot be expressed by this API.");
        return;
    }
    ex->is_success = true;
    reply_whole(ex, 200, SLICE_LIT("application/json"), buf_slice(out));
}
