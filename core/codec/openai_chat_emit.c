// The OpenAI dialect, outgoing: errors, and answers made here as chat chunks, completion chunks and
// whole bodies (PROTOCOLS §4: role, id, name and finish_reason exactly once).
#include "codec/dialect.h"
#include "codec/json.h"

// ---- errors out ----

int openai_chat_render_error(const struct dialect_error *error, struct buf *out)
{
    size_t before = out->len;
    struct json_out json;
    json_begin(&json, out);
    json_object(&json);
    json_key(&json, "error");
    dialect_openai_error(&json, error);
    json_object_end(&json);
    int err = json_end(&json);
    if (err != 0)
        buf_truncate(out, before);
    return err;
}

int openai_chat_render_stream_error(const struct dialect_reader *reader,
                                    const struct dialect_error *error, struct buf *out)
{
    (void)reader;
    size_t before = out->len;
    int err = buf_append_str(out, "data: ");
    if (err == 0)
        err = openai_chat_render_error(error, out);
    if (err == 0)
        err = buf_append_str(out, "\n\n");
    if (err != 0)
        buf_truncate(out, before);
    return err;
}

// ---- answers out ----

static const char *finish_name(const struct dialect_writer *writer, enum event_finish finish)
{
    switch (finish) {
    case EVENT_FINISH_LENGTH: return "length";
    case EVENT_FINISH_TOOL: return writer->op == DIALECT_OP_COMPLETIONS ? "stop" : "tool_calls";
    case EVENT_FINISH_FILTER: return "content_filter";
    case EVENT_FINISH_STOP:
    case EVENT_FINISH_STOP_SEQUENCE: break;
    }
    return writer->tool_count > 0 ? "tool_calls" : "stop";
}

static void put_usage(struct json_out *json, const struct usage *usage)
{
    uint64_t written = usage->cache_write_5m + usage->cache_write_1h;
    json_object(json);
    json_key(json, "prompt_tokens");
    json_u64(json, usage_prompt(usage));
    json_key(json, "completion_tokens");
    json_u64(json, usage_completion(usage));
    json_key(json, "total_tokens");
    json_u64(json, usage_total(usage));
    json_key(json, "prompt_tokens_details");
    json_object(json);
    json_key(json, "cached_tokens");
    json_u64(json, usage->cache_read);
    json_key(json, "audio_tokens");
    json_u64(json, usage->audio_in);
    if (written > 0) {
        json_key(json, "cache_write_tokens");
        json_u64(json, written);
    }
    json_object_end(json);
    json_key(json, "completion_tokens_details");
    json_object(json);
    json_key(json, "reasoning_tokens");
    json_u64(json, usage->reasoning);
    json_key(json, "audio_tokens");
    json_u64(json, usage->audio_out);
    json_object_end(json);
    json_object_end(json);
}

static void put_head(struct json_out *json, const struct dialect_writer *writer, const char *object)
{
    json_object(json);
    json_key(json, "id");
    json_str(json, writer->id);
    json_key(json, "object");
    json_str(json, object);
    json_key(json, "created");
    json_i64(json, writer->created_s);
    json_key(json, "model");
    json_str(json, writer->model);
}

static const char *chunk_object(const struct dialect_writer *writer)
{
    return writer->op == DIALECT_OP_COMPLETIONS ? "text_completion" : "chat.completion.chunk";
}

// Opens {"…","choices":[{"index":0,"delta":{ and leaves the delta open; close_chunk ends it.
static int open_chunk(struct json_out *json, const struct dialect_writer *writer, struct buf *out)
{
    int err = buf_append_str(out, "data: ");
    json_begin(json, out);
    put_head(json, writer, chunk_object(writer));
    json_key(json, "choices");
    json_array(json);
    json_object(json);
    json_key(json, "index");
    json_i64(json, 0);
    if (writer->op != DIALECT_OP_COMPLETIONS) {
        json_key(json, "delta");
        json_object(json);
    }
    return err;
}

static int close_chunk(struct json_out *json, const struct dialect_writer *writer,
                       const char *finish, struct buf *out)
{
    if (writer->op != DIALECT_OP_COMPLETIONS)
        json_object_end(json);
    json_key(json, "logprobs");
    json_null(json);
    json_key(json, "finish_reason");
    json_str(json, finish);
    json_object_end(json);
    json_array_end(json);
    if (writer->include_usage) {
        json_key(json, "usage");
        json_null(json);
    }
    json_object_end(json);
    int err = json_end(json);
    return err != 0 ? err : buf_append_str(out, "\n\n");
}

static int put_delta(const struct dialect_writer *writer, const char *key, struct slice text,
                     struct buf *out)
{
    struct json_out json;
    int err = open_chunk(&json, writer, out);
    json_key(&json, key);
    json_text(&json, text);
    int close_err = close_chunk(&json, writer, NULL, out);
    return err != 0 ? err : close_err;
}

static int put_tool(const struct dialect_writer *writer, const struct event *start,
                    struct slice arguments, struct buf *out)
{
    struct json_out json;
    int err = open_chunk(&json, writer, out);
    json_key(&json, "tool_calls");
    json_array(&json);
    json_object(&json);
    json_key(&json, "index");
    json_u64(&json, writer->tool_count);
    // id, type and name exactly once: SDKs concatenate repeated strings.
    if (start != NULL) {
        json_key(&json, "id");
        json_text(&json, start->id);
        json_key(&json, "type");
        json_str(&json, "function");
    }
    json_key(&json, "function");
    json_object(&json);
    if (start != NULL) {
        json_key(&json, "name");
        json_text(&json, start->name);
    }
    json_key(&json, "arguments");
    json_text(&json, arguments);
    json_object_end(&json);
    json_object_end(&json);
    json_array_end(&json);
    int close_err = close_chunk(&json, writer, NULL, out);
    return err != 0 ? err : close_err;
}

static int put_finish(const struct dialect_writer *writer, const struct event *event,
                      struct buf *out)
{
    struct json_out json;
    int err = open_chunk(&json, writer, out);
    if (writer->op == DIALECT_OP_COMPLETIONS) {
        json_key(&json, "text");
        json_str(&json, "");
    }
    int next = close_chunk(&json, writer, finish_name(writer, event->finish), out);
    if (err == 0)
        err = next;
    if (writer->include_usage && err == 0) {
        err = buf_append_str(out, "data: ");
        json_begin(&json, out);
        put_head(&json, writer, chunk_object(writer));
        json_key(&json, "choices");
        json_array(&json);
        json_array_end(&json);
        json_key(&json, "usage");
        put_usage(&json, &writer->usage);
        json_object_end(&json);
        next = json_end(&json);
        if (err == 0)
            err = next;
        if (err == 0)
            err = buf_append_str(out, "\n\n");
    }
    return err != 0 ? err : buf_append_str(out, "data: [DONE]\n\n");
}

static int put_chat_event(struct dialect_writer *writer, const struct event *event, struct buf *out)
{
    static const char *const KEYS[] = {[EVENT_BLOCK_TEXT] = "content",
                                       [EVENT_BLOCK_THINKING] = "reasoning_content",
                                       [EVENT_BLOCK_REFUSAL] = "refusal"};
    struct json_out json;
    int err;
    switch (event->kind) {
    case EVENT_START:
        err = open_chunk(&json, writer, out);
        json_key(&json, "role");
        json_str(&json, "assistant");
        json_key(&json, "content");
        json_str(&json, "");
        int close_err = close_chunk(&json, writer, NULL, out);
        return err != 0 ? err : close_err;
    case EVENT_BLOCK_START:
        return event->block == EVENT_BLOCK_TOOL ? put_tool(writer, event, SLICE_LIT(""), out) : 0;
    case EVENT_BLOCK_DELTA:
        if (event->text.len == 0)
            return 0;
        if (writer->open_block == EVENT_BLOCK_TOOL)
            return put_tool(writer, NULL, event->text, out);
        return put_delta(writer, KEYS[writer->open_block], event->text, out);
    case EVENT_BLOCK_END:
        // A call without arguments must still be parseable JSON.
        if (writer->open_block == EVENT_BLOCK_TOOL && writer->block_bytes == 0)
            return put_tool(writer, NULL, SLICE_LIT("{}"), out);
        return 0;
    case EVENT_FINISH: return put_finish(writer, event, out);
    case EVENT_USAGE:
    case EVENT_ERROR: break;
    }
    return 0;
}

static int put_completion_event(struct dialect_writer *writer, const struct event *event,
                                struct buf *out)
{
    if (event->kind == EVENT_BLOCK_START && event->block == EVENT_BLOCK_TOOL)
        return GW_EINVAL;
    // Thinking has no place in this old format; refusals are text.
    if (event->kind == EVENT_BLOCK_DELTA && event->text.len > 0 &&
        writer->open_block != EVENT_BLOCK_THINKING)
        return put_delta(writer, "text", event->text, out);
    return event->kind == EVENT_FINISH ? put_finish(writer, event, out) : 0;
}

static bool can_emit(const struct dialect_writer *writer)
{
    return writer->op == DIALECT_OP_CHAT || writer->op == DIALECT_OP_COMPLETIONS;
}

static const char *id_default(const struct dialect_writer *writer)
{
    return writer->op == DIALECT_OP_COMPLETIONS ? "cmpl-moongate" : "chatcmpl-moongate";
}

int openai_chat_emit(struct dialect_writer *writer, const struct event *event, struct buf *out)
{
    size_t before = out->len;
    int err = can_emit(writer) ? dialect_check_order(writer, event) : GW_EINVAL;
    if (err != 0)
        return err;
    if (event->kind == EVENT_START)
        dialect_note_start(writer, event, id_default(writer));
    if (event->kind == EVENT_ERROR)
        err = openai_chat_render_stream_error(NULL, event->error, out);
    else if (writer->op == DIALECT_OP_COMPLETIONS)
        err = put_completion_event(writer, event, out);
    else
        err = put_chat_event(writer, event, out);
    if (err != 0) {
        buf_truncate(out, before);
        return err;
    }
    dialect_note_event(writer, event);
    return 0;
}

// The text of all blocks of these kinds, joined; *has_any tells whether there was one.
static int join_blocks(const struct event *events, size_t count, uint32_t kinds, struct buf *text,
                       bool *has_any)
{
    enum event_block open = EVENT_BLOCK_TEXT;
    int err = 0;
    buf_clear(text);
    *has_any = false;
    for (size_t i = 0; i < count && err == 0; i++) {
        if (events[i].kind == EVENT_BLOCK_START) {
            open = events[i].block;
            if (kinds >> open & 1)
                *has_any = true;
        } else if (events[i].kind == EVENT_BLOCK_DELTA && (kinds >> open & 1) &&
                   events[i].text.len > 0) {
            err = buf_append(text, events[i].text);
        }
    }
    return err;
}

static int put_joined(struct json_out *json, const char *key, const struct event *events,
                      size_t count, enum event_block kind, bool is_always, struct buf *text)
{
    bool has_any;
    int err = join_blocks(events, count, 1u << kind, text, &has_any);
    if (err != 0 || (!has_any && !is_always))
        return err;
    json_key(json, key);
    if (has_any)
        json_text(json, buf_slice(text));
    else
        json_null(json);
    return 0;
}

static int put_tool_calls(struct json_out *json, const struct event *events, size_t count,
                          struct buf *text)
{
    bool is_open = false;
    int err = 0;
    json_key(json, "tool_calls");
    json_array(json);
    for (size_t i = 0; i < count && err == 0; i++) {
        const struct event *event = &events[i];
        if (event->kind == EVENT_BLOCK_START && event->block == EVENT_BLOCK_TOOL) {
            is_open = true;
            buf_clear(text);
            json_object(json);
            json_key(json, "id");
            json_text(json, event->id);
            json_key(json, "type");
            json_str(json, "function");
            json_key(json, "function");
            json_object(json);
            json_key(json, "name");
            json_text(json, event->name);
        } else if (event->kind == EVENT_BLOCK_DELTA && is_open && event->text.len > 0) {
            err = buf_append(text, event->text);
        } else if (event->kind == EVENT_BLOCK_END && is_open) {
            is_open = false;
            json_key(json, "arguments");
            json_text(json, text->len > 0 ? buf_slice(text) : SLICE_LIT("{}"));
            json_object_end(json);
            json_object_end(json);
        }
    }
    json_array_end(json);
    return err;
}

static int put_message(struct json_out *json, const struct dialect_writer *writer,
                       const struct event *events, size_t count, struct buf *text)
{
    json_key(json, "message");
    json_object(json);
    json_key(json, "role");
    json_str(json, "assistant");
    int err = put_joined(json, "content", events, count, EVENT_BLOCK_TEXT, true, text);
    if (err == 0)
        err =
            put_joined(json, "reasoning_content", events, count, EVENT_BLOCK_THINKING, false, text);
    if (err == 0)
        err = put_joined(json, "refusal", events, count, EVENT_BLOCK_REFUSAL, true, text);
    if (err == 0 && writer->tool_count > 0)
        err = put_tool_calls(json, events, count, text);
    json_object_end(json);
    return err;
}

// Checks the order and gathers ids, usage and finish; gives the ERROR event when there is one.
static int gather(struct dialect_writer *writer, const struct event *events, size_t count,
                  const struct event **error)
{
    *error = NULL;
    for (size_t i = 0; i < count; i++) {
        int err = dialect_check_order(writer, &events[i]);
        if (err != 0)
            return err;
        if (events[i].kind == EVENT_START)
            dialect_note_start(writer, &events[i], id_default(writer));
        if (events[i].kind == EVENT_BLOCK_START && events[i].block == EVENT_BLOCK_TOOL &&
            writer->op == DIALECT_OP_COMPLETIONS)
            return GW_EINVAL;
        if (events[i].kind == EVENT_ERROR)
            *error = &events[i];
        dialect_note_event(writer, &events[i]);
    }
    return writer->has_finished ? 0 : GW_EINVAL;
}

int openai_chat_emit_whole(struct dialect_writer *writer, const struct event *events, size_t count,
                           struct buf *out)
{
    const struct event *error;
    bool is_completion = writer->op == DIALECT_OP_COMPLETIONS;
    int err = can_emit(writer) ? gather(writer, events, count, &error) : GW_EINVAL;
    if (err != 0)
        return err;
    if (error != NULL)
        return openai_chat_render_error(error->error, out);
    size_t before = out->len;
    struct buf text = BUF_INIT(0);
    struct json_out json;
    json_begin(&json, out);
    put_head(&json, writer, is_completion ? "text_completion" : "chat.completion");
    json_key(&json, "choices");
    json_array(&json);
    json_object(&json);
    json_key(&json, "index");
    json_i64(&json, 0);
    if (is_completion) {
        bool has_any;
        err = join_blocks(events, count, 1u << EVENT_BLOCK_TEXT | 1u << EVENT_BLOCK_REFUSAL, &text,
                          &has_any);
        json_key(&json, "text");
        json_text(&json, buf_slice(&text));
    } else {
        err = put_message(&json, writer, events, count, &text);
    }
    json_key(&json, "logprobs");
    json_null(&json);
    json_key(&json, "finish_reason");
    json_str(&json, finish_name(writer, writer->finish));
    json_object_end(&json);
    json_array_end(&json);
    json_key(&json, "usage");
    put_usage(&json, &writer->usage);
    json_object_end(&json);
    int end_err = json_end(&json);
    buf_free(&text);
    if (err == 0)
        err = end_err;
    if (err != 0)
        buf_truncate(out, before);
    return err;
}
