// The Responses dialect, outgoing: errors, and answers made here: an item's life cycle for each
// block, and the response object that the first and last events carry.
#include "codec/dialect.h"
#include "codec/json.h"
#include <stdio.h>

// ---- errors out ----

int responses_render_error(const struct dialect_error *error, struct buf *out)
{
    return dialect_openai.render_error(error, out);
}

// A code that the clients take as final, unless a retry is what we want (CLIENTS §3).
static const char *final_code(const struct dialect_error *error)
{
    static const char *const FINAL[] = {"invalid_prompt", "insufficient_quota",
                                        "context_length_exceeded", "server_is_overloaded"};
    for (size_t i = 0; i < sizeof(FINAL) / sizeof(FINAL[0]); i++)
        if (slice_is(error->code, FINAL[i]))
            return FINAL[i];
    if (error->status == 402)
        return "insufficient_quota";
    if (error->status == 429)
        return error->should_retry ? "rate_limit_exceeded" : "insufficient_quota";
    return error->status >= 500 ? "server_is_overloaded" : "invalid_prompt";
}

struct response_view {
    const char *id, *model, *status;
    int64_t created_at;
    const struct dialect_error *error; // failed
    const char *reason;                // incomplete
    struct slice output;               // items, comma-separated
    const struct usage *usage;         // NULL: null
};

static void put_usage(struct json_out *json, const struct usage *usage)
{
    uint64_t written = usage->cache_write_5m + usage->cache_write_1h;
    json_object(json);
    json_key(json, "input_tokens");
    json_u64(json, usage_prompt(usage));
    json_key(json, "input_tokens_details");
    json_object(json);
    json_key(json, "cached_tokens");
    json_u64(json, usage->cache_read);
    if (written > 0) {
        json_key(json, "cache_write_tokens");
        json_u64(json, written);
    }
    json_object_end(json);
    json_key(json, "output_tokens");
    json_u64(json, usage_completion(usage));
    json_key(json, "output_tokens_details");
    json_object(json);
    json_key(json, "reasoning_tokens");
    json_u64(json, usage->reasoning);
    json_object_end(json);
    json_key(json, "total_tokens");
    json_u64(json, usage_total(usage));
    json_object_end(json);
}

static void put_null(struct json_out *json, const char *key)
{
    json_key(json, key);
    json_null(json);
}

// The whole response object: strict clients want every required member.
static void put_response(struct json_out *json, const struct response_view *view)
{
    json_object(json);
    json_key(json, "id");
    json_str(json, view->id);
    json_key(json, "object");
    json_str(json, "response");
    json_key(json, "created_at");
    json_i64(json, view->created_at);
    json_key(json, "status");
    json_str(json, view->status);
    json_key(json, "background");
    json_bool(json, false);
    json_key(json, "error");
    if (view->error != NULL) {
        json_object(json);
        json_key(json, "code");
        json_str(json, final_code(view->error));
        json_key(json, "message");
        json_text(json, view->error->message);
        json_object_end(json);
    } else {
        json_null(json);
    }
    json_key(json, "incomplete_details");
    if (view->reason != NULL) {
        json_object(json);
        json_key(json, "reason");
        json_str(json, view->reason);
        json_object_end(json);
    } else {
        json_null(json);
    }
    put_null(json, "instructions");
    put_null(json, "max_output_tokens");
    json_key(json, "model");
    json_str(json, view->model);
    json_key(json, "output");
    json_array(json);
    if (view->output.len > 0)
        json_raw(json, view->output);
    json_array_end(json);
    json_key(json, "parallel_tool_calls");
    json_bool(json, true);
    put_null(json, "previous_response_id");
    json_key(json, "reasoning");
    json_raw(json, SLICE_LIT("{\"effort\":null,\"summary\":null}"));
    json_key(json, "store");
    json_bool(json, false);
    put_null(json, "temperature");
    json_key(json, "text");
    json_raw(json, SLICE_LIT("{\"format\":{\"type\":\"text\"}}"));
    json_key(json, "tool_choice");
    json_str(json, "auto");
    json_key(json, "tools");
    json_raw(json, SLICE_LIT("[]"));
    put_null(json, "top_p");
    json_key(json, "truncation");
    json_str(json, "disabled");
    json_key(json, "usage");
    if (view->usage != NULL)
        put_usage(json, view->usage);
    else
        json_null(json);
    put_null(json, "user");
    json_key(json, "metadata");
    json_raw(json, SLICE_LIT("{}"));
    json_object_end(json);
}

static int begin(struct json_out *json, const char *type, uint64_t sequence, struct buf *out)
{
    int err = buf_printf(out, "event: %s\ndata: ", type);
    json_begin(json, out);
    json_object(json);
    json_key(json, "type");
    json_str(json, type);
    json_key(json, "sequence_number");
    json_u64(json, sequence);
    return err;
}

static int finish(struct json_out *json, int err, struct buf *out)
{
    json_object_end(json);
    int end_err = json_end(json);
    if (err == 0)
        err = end_err;
    return err != 0 ? err : buf_append_str(out, "\n\n");
}

static int put_response_event(const char *type, uint64_t sequence, const struct response_view *view,
                              struct buf *out)
{
    struct json_out json;
    int err = begin(&json, type, sequence, out);
    json_key(&json, "response");
    put_response(&json, view);
    return finish(&json, err, out);
}

static int put_failed(const char *id, const char *model, int64_t created_at, bool has_preamble,
                      uint64_t sequence, const struct dialect_error *error, struct slice output,
                      struct buf *out)
{
    size_t before = out->len;
    struct response_view view = {.id = id[0] != '\0' ? id : "resp_moongate",
                                 .model = model,
                                 .status = "in_progress",
                                 .created_at = created_at};
    int err = 0;
    // The OpenAI SDKs refuse a stream whose first event is not response.created.
    if (!has_preamble)
        err = put_response_event("response.created", sequence++, &view, out);
    view.status = "failed";
    view.error = error;
    view.output = output;
    if (err == 0)
        err = put_response_event("response.failed", sequence, &view, out);
    if (err != 0)
        buf_truncate(out, before);
    return err;
}

int responses_render_stream_error(const struct dialect_reader *reader,
                                  const struct dialect_error *error, struct buf *out)
{
    if (reader == NULL)
        return put_failed("", "", 0, false, 0, error, SLICE_LIT(""), out);
    return put_failed(reader->response_id, reader->model, reader->created_at, reader->has_preamble,
                      reader->has_preamble ? reader->sequence + 1 : 0, error, SLICE_LIT(""), out);
}

// ---- answers out ----

static const char *item_prefix(enum event_block block)
{
    return block == EVENT_BLOCK_TOOL ? "fc" : block == EVENT_BLOCK_THINKING ? "rs" : "msg";
}

// Item ids are made of the response's own: unique, and the same in added, delta and done.
static void item_id(const struct dialect_writer *writer, enum event_block block, char *out,
                    size_t size)
{
    const char *tail = strchr(writer->id, '_');
    snprintf(out, size, "%s_%.40s_%u", item_prefix(block), tail != NULL ? tail + 1 : writer->id,
             writer->index);
}

static void put_part(struct json_out *json, enum event_block block, struct slice text)
{
    json_object(json);
    json_key(json, "type");
    if (block == EVENT_BLOCK_REFUSAL) {
        json_str(json, "refusal");
        json_key(json, "refusal");
        json_text(json, text);
    } else if (block == EVENT_BLOCK_THINKING) {
        json_str(json, "summary_text");
        json_key(json, "text");
        json_text(json, text);
    } else {
        json_str(json, "output_text");
        json_key(json, "annotations");
        json_raw(json, SLICE_LIT("[]"));
        json_key(json, "logprobs");
        json_raw(json, SLICE_LIT("[]"));
        json_key(json, "text");
        json_text(json, text);
    }
    json_object_end(json);
}

static void put_item(struct json_out *json, const struct dialect_writer *writer,
                     enum event_block block, bool is_done, struct slice text)
{
    char id[80];
    item_id(writer, block, id, sizeof(id));
    json_object(json);
    json_key(json, "id");
    json_str(json, id);
    json_key(json, "type");
    if (block == EVENT_BLOCK_TOOL) {
        json_str(json, "function_call");
        json_key(json, "status");
        json_str(json, is_done ? "completed" : "in_progress");
        json_key(json, "call_id");
        json_text(json, writer->tool_id);
        json_key(json, "name");
        json_text(json, writer->tool_name);
        json_key(json, "arguments");
        json_text(json, is_done && text.len == 0 ? SLICE_LIT("{}") : text);
    } else if (block == EVENT_BLOCK_THINKING) {
        json_str(json, "reasoning");
        json_key(json, "summary");
        json_array(json);
        if (is_done && text.len > 0)
            put_part(json, block, text);
        json_array_end(json);
    } else {
        json_str(json, "message");
        json_key(json, "status");
        json_str(json, is_done ? "completed" : "in_progress");
        json_key(json, "role");
        json_str(json, "assistant");
        json_key(json, "content");
        json_array(json);
        if (is_done)
            put_part(json, block, text);
        json_array_end(json);
    }
    json_object_end(json);
}

// The members that all events about one item have.
static int begin_item(struct json_out *json, struct dialect_writer *writer, const char *type,
                      enum event_block block, struct buf *out)
{
    char id[80];
    item_id(writer, block, id, sizeof(id));
    int err = begin(json, type, writer->sequence++, out);
    json_key(json, "item_id");
    json_str(json, id);
    json_key(json, "output_index");
    json_u64(json, writer->index);
    if (block == EVENT_BLOCK_THINKING) {
        json_key(json, "summary_index");
        json_i64(json, 0);
    } else if (block != EVENT_BLOCK_TOOL) {
        json_key(json, "content_index");
        json_i64(json, 0);
    }
    return err;
}

static int put_item_event(struct dialect_writer *writer, const char *type, enum event_block block,
                          bool is_done, struct slice text, struct buf *out)
{
    struct json_out json;
    int err = begin(&json, type, writer->sequence++, out);
    json_key(&json, "output_index");
    json_u64(&json, writer->index);
    json_key(&json, "item");
    put_item(&json, writer, block, is_done, text);
    return finish(&json, err, out);
}

static int put_part_event(struct dialect_writer *writer, enum event_block block, bool is_done,
                          struct slice text, struct buf *out)
{
    bool is_thinking = block == EVENT_BLOCK_THINKING;
    const char *type = is_thinking ? is_done ? "response.reasoning_summary_part.done"
                                             : "response.reasoning_summary_part.added"
                       : is_done   ? "response.content_part.done"
                                   : "response.content_part.added";
    struct json_out json;
    int err = begin_item(&json, writer, type, block, out);
    json_key(&json, "part");
    put_part(&json, block, text);
    return finish(&json, err, out);
}

static int put_text_event(struct dialect_writer *writer, enum event_block block, bool is_done,
                          struct slice text, struct buf *out)
{
    static const char *const TYPES[][2] = {
        [EVENT_BLOCK_TEXT] = {"response.output_text.delta", "response.output_text.done"},
        [EVENT_BLOCK_THINKING] = {"response.reasoning_summary_text.delta",
                                  "response.reasoning_summary_text.done"},
        [EVENT_BLOCK_TOOL] = {"response.function_call_arguments.delta",
                              "response.function_call_arguments.done"},
        [EVENT_BLOCK_REFUSAL] = {"response.refusal.delta", "response.refusal.done"},
    };
    static const char *const FULL_KEYS[] = {[EVENT_BLOCK_TEXT] = "text",
                                            [EVENT_BLOCK_THINKING] = "text",
                                            [EVENT_BLOCK_TOOL] = "arguments",
                                            [EVENT_BLOCK_REFUSAL] = "refusal"};
    struct json_out json;
    int err = begin_item(&json, writer, TYPES[block][is_done], block, out);
    if (block == EVENT_BLOCK_TOOL && is_done) {
        json_key(&json, "name");
        json_text(&json, writer->tool_name);
        if (text.len == 0)
            text = SLICE_LIT("{}");
    }
    json_key(&json, is_done ? FULL_KEYS[block] : "delta");
    json_text(&json, text);
    if (block == EVENT_BLOCK_TEXT) {
        json_key(&json, "logprobs");
        json_raw(&json, SLICE_LIT("[]"));
    }
    return finish(&json, err, out);
}

static int start_block(struct dialect_writer *writer, const struct event *event, struct buf *out)
{
    // The names are needed again when the block ends; the event's slices are borrowed.
    writer->tool_id = SLICE_LIT("");
    writer->tool_name = SLICE_LIT("");
    if (event->block == EVENT_BLOCK_TOOL) {
        writer->tool_id = arena_copy(writer->arena, event->id);
        writer->tool_name = arena_copy(writer->arena, event->name);
        if (writer->tool_id.ptr == NULL || writer->tool_name.ptr == NULL)
            return GW_ENOMEM;
    }
    int err = put_item_event(writer, "response.output_item.added", event->block, false,
                             SLICE_LIT(""), out);
    if (err == 0 && event->block != EVENT_BLOCK_TOOL)
        err = put_part_event(writer, event->block, false, SLICE_LIT(""), out);
    return err;
}

static int end_block(struct dialect_writer *writer, struct buf *out)
{
    enum event_block block = writer->open_block;
    struct slice text = buf_slice(&writer->text);
    int err = 0;
    if (block == EVENT_BLOCK_TOOL && text.len == 0)
        err = put_text_event(writer, block, false, SLICE_LIT("{}"), out);
    if (err == 0)
        err = put_text_event(writer, block, true, text, out);
    if (err == 0 && block != EVENT_BLOCK_TOOL)
        err = put_part_event(writer, block, true, text, out);
    if (err == 0)
        err = put_item_event(writer, "response.output_item.done", block, true, text, out);
    if (err != 0)
        return err;
    struct json_out json;
    size_t before = writer->items.len;
    if (before > 0)
        err = buf_append_char(&writer->items, ',');
    json_begin(&json, &writer->items);
    put_item(&json, writer, block, true, text);
    int end_err = json_end(&json);
    if (err == 0)
        err = end_err;
    if (err != 0)
        buf_truncate(&writer->items, before);
    return err;
}

static const char *incomplete_reason(enum event_finish how)
{
    return how == EVENT_FINISH_LENGTH   ? "max_output_tokens"
           : how == EVENT_FINISH_FILTER ? "content_filter"
                                        : NULL;
}

static struct response_view view_of(const struct dialect_writer *writer, const char *status)
{
    return (struct response_view){.id = writer->id,
                                  .model = writer->model,
                                  .status = status,
                                  .created_at = writer->created_s,
                                  .output = buf_slice(&writer->items)};
}

static struct response_view final_view(const struct dialect_writer *writer, enum event_finish how)
{
    const char *reason = incomplete_reason(how);
    struct response_view view = view_of(writer, reason != NULL ? "incomplete" : "completed");
    view.reason = reason;
    view.usage = &writer->usage;
    return view;
}

static int put_event(struct dialect_writer *writer, const struct event *event, struct buf *out)
{
    struct response_view view;
    int err = 0;
    switch (event->kind) {
    case EVENT_START:
        view = view_of(writer, "in_progress");
        err = put_response_event("response.created", writer->sequence++, &view, out);
        if (err == 0)
            err = put_response_event("response.in_progress", writer->sequence++, &view, out);
        return err;
    case EVENT_BLOCK_START: return start_block(writer, event, out);
    case EVENT_BLOCK_DELTA:
        if (event->text.len == 0)
            return 0;
        err = put_text_event(writer, writer->open_block, false, event->text, out);
        return err != 0 ? err : buf_append(&writer->text, event->text);
    case EVENT_BLOCK_END: return end_block(writer, out);
    case EVENT_FINISH:
        view = final_view(writer, event->finish);
        return put_response_event(view.reason != NULL ? "response.incomplete"
                                                      : "response.completed",
                                  writer->sequence++, &view, out);
    case EVENT_USAGE: return 0;
    case EVENT_ERROR:
        return put_failed(writer->id, writer->model, writer->created_s, writer->has_started,
                          writer->sequence, event->error, buf_slice(&writer->items), out);
    }
    return 0;
}

int responses_emit(struct dialect_writer *writer, const struct event *event, struct buf *out)
{
    size_t before = out->len, text_before = writer->text.len;
    uint64_t sequence = writer->sequence;
    int err = writer->op == DIALECT_OP_RESPONSES ? dialect_check_order(writer, event) : GW_EINVAL;
    if (err != 0)
        return err;
    if (event->kind == EVENT_START)
        dialect_note_start(writer, event, "resp_moongate");
    err = put_event(writer, event, out);
    if (err != 0) {
        buf_truncate(out, before);
        buf_truncate(&writer->text, text_before);
        writer->sequence = sequence;
        return err;
    }
    dialect_note_event(writer, event);
    return 0;
}

int responses_emit_whole(struct dialect_writer *writer, const struct event *events, size_t count,
                         struct buf *out)
{
    // The stream's own path fills items; its bytes are dropped event by event.
    struct buf scratch = BUF_INIT(0);
    int err = count > 0 ? 0 : GW_EINVAL;
    writer->is_whole = true;
    for (size_t i = 0; i < count && err == 0; i++) {
        if (events[i].kind == EVENT_ERROR) {
            buf_free(&scratch);
            return responses_render_error(events[i].error, out);
        }
        buf_clear(&scratch);
        err = responses_emit(writer, &events[i], &scratch);
    }
    buf_free(&scratch);
    if (err == 0 && !writer->has_finished)
        err = GW_EINVAL;
    if (err != 0)
        return err;
    size_t before = out->len;
    struct response_view view = final_view(writer, writer->finish);
    struct json_out json;
    json_begin(&json, out);
    put_response(&json, &view);
    err = json_end(&json);
    if (err != 0)
        buf_truncate(out, before);
    return err;
}
