// The Claude Messages dialect. A stream's events are told by `type` in the data; the SSE event name
// is only a hint for data without one. SDKs dispatch on the name, so what goes out always has it.
#include "codec/dialect.h"
#include "codec/json.h"

// ---- reading ----

enum event_path {
    PATH_TYPE,
    PATH_INDEX,
    PATH_TEXT,
    PATH_THINKING,
    PATH_PARTIAL_JSON,
    PATH_STOP_REASON,
    PATH_USAGE,
    PATH_MESSAGE_ID,
    PATH_MESSAGE_MODEL,
    PATH_MESSAGE_USAGE,
    PATH_MESSAGE_STOP,
    PATH_BLOCK_TEXT,
    PATH_BLOCK_THINKING,
    PATH_ERROR,
    PATH_COUNT,
};
static const char *const EVENT_PATHS[] = {
    [PATH_TYPE] = "type",
    [PATH_INDEX] = "index",
    [PATH_TEXT] = "delta.text",
    [PATH_THINKING] = "delta.thinking",
    [PATH_PARTIAL_JSON] = "delta.partial_json",
    [PATH_STOP_REASON] = "delta.stop_reason",
    [PATH_USAGE] = "usage",
    [PATH_MESSAGE_ID] = "message.id",
    [PATH_MESSAGE_MODEL] = "message.model",
    [PATH_MESSAGE_USAGE] = "message.usage",
    [PATH_MESSAGE_STOP] = "message.stop_reason",
    [PATH_BLOCK_TEXT] = "content_block.text",
    [PATH_BLOCK_THINKING] = "content_block.thinking",
    [PATH_ERROR] = "error",
};

static void take_usage(struct dialect_reader *reader, struct slice text,
                       const struct skim_span *span)
{
    if (span->type == SKIM_OBJECT)
        usage_meter_take(&reader->meter, skim_bytes(text, span));
}

static void take_finish(struct dialect_reader *reader, struct slice text,
                        const struct skim_span *span)
{
    if (dialect_copy_string(text, span, reader->finish, sizeof(reader->finish)))
        reader->has_finish = true;
}

static void set_text(struct dialect_reader *reader, struct slice text, const struct skim_span *span,
                     enum event_block block, struct dialect_info *info)
{
    if (span->type != SKIM_STRING || span->end - span->start <= 2)
        return;
    reader->text_bytes += dialect_text_bytes(text, span);
    info->has_text = true;
    info->block = block;
    info->text_start = (size_t)span->start;
    info->text_end = (size_t)span->end;
    info->text_has_escapes = span->has_escapes;
}

static void inspect_typed(struct dialect_reader *reader, struct slice type, struct slice data,
                          const struct skim_span *spans, struct dialect_info *info)
{
    if (slice_is(type, "content_block_delta")) {
        info->class = DIALECT_EVENT_CONTENT;
        set_text(reader, data, &spans[PATH_TEXT], EVENT_BLOCK_TEXT, info);
        set_text(reader, data, &spans[PATH_THINKING], EVENT_BLOCK_THINKING, info);
        set_text(reader, data, &spans[PATH_PARTIAL_JSON], EVENT_BLOCK_TOOL, info);
        info->is_plain = true;
    } else if (slice_is(type, "content_block_start")) {
        info->class = DIALECT_EVENT_CONTENT;
        set_text(reader, data, &spans[PATH_BLOCK_TEXT], EVENT_BLOCK_TEXT, info);
        set_text(reader, data, &spans[PATH_BLOCK_THINKING], EVENT_BLOCK_THINKING, info);
    } else if (slice_is(type, "content_block_stop")) {
        info->class = DIALECT_EVENT_CONTENT;
    } else if (slice_is(type, "message_start")) {
        info->class = DIALECT_EVENT_PREAMBLE;
        reader->has_preamble = true;
        take_usage(reader, data, &spans[PATH_MESSAGE_USAGE]);
        take_finish(reader, data, &spans[PATH_MESSAGE_STOP]);
        dialect_copy_string(data, &spans[PATH_MESSAGE_MODEL], reader->model, sizeof(reader->model));
        dialect_copy_string(data, &spans[PATH_MESSAGE_ID], reader->response_id,
                            sizeof(reader->response_id));
    } else if (slice_is(type, "message_delta")) {
        info->class = DIALECT_EVENT_CONTENT;
        take_usage(reader, data, &spans[PATH_USAGE]);
        take_finish(reader, data, &spans[PATH_STOP_REASON]);
    } else if (slice_is(type, "message_stop")) {
        info->class = DIALECT_EVENT_END;
        reader->has_end = true;
    }
    // ping and what we do not know: liveness.
    if (info->class == DIALECT_EVENT_CONTENT)
        reader->has_content = true;
}

static void anthropic_inspect(struct dialect_reader *reader, const struct sse_event *event,
                              struct dialect_info *info)
{
    struct slice data = event->data;
    *info = (struct dialect_info){.class = DIALECT_EVENT_NOISE};
    if (!event->has_data || reader->has_end)
        return;
    struct skim skim;
    struct skim_spec spec = {.paths = EVENT_PATHS, .path_count = PATH_COUNT, .is_lenient = true};
    if (!dialect_scan(&skim, &spec, data)) {
        if (slice_is(event->name, "error"))
            dialect_take_error(reader, data, info);
        return;
    }
    const struct skim_span *spans = skim.spans;
    uint64_t index;
    if (skim_u64(data, &spans[PATH_INDEX], &index) == 0 && index <= UINT32_MAX)
        info->index = (uint32_t)index;
    char type[64] = "";
    if (!dialect_copy_string(data, &spans[PATH_TYPE], type, sizeof(type)) &&
        event->name.len < sizeof(type)) {
        // Also for an OpenAI-shaped error that a proxy put into the stream.
        struct slice name =
            spans[PATH_ERROR].type == SKIM_OBJECT ? SLICE_LIT("error") : event->name;
        if (name.len > 0)
            memcpy(type, name.ptr, name.len);
        type[name.len] = '\0';
    }
    if (strcmp(type, "error") == 0)
        dialect_take_error(reader, data, info);
    else
        inspect_typed(reader, slice_str(type), data, spans, info);
}

enum body_path { BODY_TYPE, BODY_MODEL, BODY_ID, BODY_USAGE, BODY_STOP, BODY_ERROR, BODY_CONTENT };
static const char *const BODY_PATHS[] = {"type",        "model", "id",     "usage",
                                         "stop_reason", "error", "content"};
// Text bytes of a whole message matter only when it reports no usage; the first blocks suffice.
static const char *const CONTENT_TEXTS[] = {
    "0.text", "0.thinking", "0.input", "1.text", "1.thinking", "1.input",
    "2.text", "2.thinking", "2.input", "3.text", "3.thinking", "3.input",
    "4.text", "4.thinking", "4.input", "5.text", "5.thinking", "5.input",
    "6.text", "6.thinking", "6.input", "7.text", "7.thinking", "7.input"};
#define CONTENT_TEXT_COUNT (sizeof(CONTENT_TEXTS) / sizeof(CONTENT_TEXTS[0]))

static uint64_t content_bytes(struct slice content)
{
    struct skim skim;
    struct skim_spec spec = {
        .paths = CONTENT_TEXTS, .path_count = CONTENT_TEXT_COUNT, .is_lenient = true};
    uint64_t bytes = 0;
    if (skim_whole(&skim, &spec, content) != 0)
        return 0;
    for (size_t i = 0; i < CONTENT_TEXT_COUNT; i++)
        bytes += skim.spans[i].type == SKIM_OBJECT ? skim.spans[i].end - skim.spans[i].start
                                                   : dialect_text_bytes(content, &skim.spans[i]);
    return bytes;
}

static void anthropic_inspect_body(struct dialect_reader *reader, struct slice body,
                                   struct dialect_info *info, bool *is_error)
{
    struct skim skim;
    struct skim_spec spec = {.paths = BODY_PATHS,
                             .path_count = sizeof(BODY_PATHS) / sizeof(BODY_PATHS[0]),
                             .is_lenient = true};
    *info = (struct dialect_info){.class = DIALECT_EVENT_NOISE};
    *is_error = false;
    if (skim_whole(&skim, &spec, body) != 0)
        return;
    const struct skim_span *spans = skim.spans;
    char type[32] = "";
    dialect_copy_string(body, &spans[BODY_TYPE], type, sizeof(type));
    if (strcmp(type, "error") == 0 ||
        (strcmp(type, "message") != 0 &&
         (spans[BODY_ERROR].type == SKIM_OBJECT || spans[BODY_ERROR].type == SKIM_STRING))) {
        *is_error = true;
        dialect_take_error(reader, body, info);
        return;
    }
    dialect_copy_string(body, &spans[BODY_MODEL], reader->model, sizeof(reader->model));
    dialect_copy_string(body, &spans[BODY_ID], reader->response_id, sizeof(reader->response_id));
    take_finish(reader, body, &spans[BODY_STOP]);
    // A count_tokens answer carries input_tokens of a call that was never made.
    if (reader->op != DIALECT_OP_COUNT_TOKENS)
        take_usage(reader, body, &spans[BODY_USAGE]);
    if (spans[BODY_CONTENT].type == SKIM_ARRAY)
        reader->text_bytes += content_bytes(skim_bytes(body, &spans[BODY_CONTENT]));
    info->class = DIALECT_EVENT_CONTENT;
    reader->has_content = true;
    reader->has_end = true;
}

static bool anthropic_may_end(const struct dialect_reader *reader)
{
    // message_delta with its stop_reason carries the last content and the final usage; only the
    // empty message_stop may follow, and the SDKs return the message without it. To call such an
    // end cut would put an error behind a complete answer and make clients repeat tool calls.
    return reader->has_end || reader->has_finish || reader->has_error;
}

static bool anthropic_is_error_shape(struct slice body)
{
    static const char *const PATHS[] = {"type", "error.type", "error.message"};
    struct skim skim;
    struct skim_spec spec = {.paths = PATHS, .path_count = 3, .is_lenient = true};
    char type[16] = "";
    return skim_whole(&skim, &spec, body) == 0 &&
           dialect_copy_string(body, &skim.spans[0], type, sizeof(type)) &&
           strcmp(type, "error") == 0 && skim.spans[1].type == SKIM_STRING &&
           skim.spans[2].type == SKIM_STRING;
}

// ---- errors out ----

// Types the SDKs know; another dialect's word must not come through as one.
static bool is_known_type(struct slice type)
{
    static const char *const TYPES[] = {
        "invalid_request_error", "authentication_error", "billing_error", "permission_error",
        "not_found_error",       "request_too_large",    "api_error",     "rate_limit_error",
        "overloaded_error",      "timeout_error"};
    for (size_t i = 0; i < sizeof(TYPES) / sizeof(TYPES[0]); i++)
        if (slice_is(type, TYPES[i]))
            return true;
    return false;
}

static int anthropic_render_error(const struct dialect_error *error, struct buf *out)
{
    size_t before = out->len;
    struct json_out json;
    struct slice type = error->type;
    if (!is_known_type(type))
        type = dialect_error_type(DIALECT_ANTHROPIC, error->status, error->code);
    json_begin(&json, out);
    json_object(&json);
    json_key(&json, "type");
    json_str(&json, "error");
    json_key(&json, "error");
    json_object(&json);
    json_key(&json, "type");
    json_text(&json, type);
    json_key(&json, "message");
    if (slice_is(error->code, "context_length_exceeded") &&
        !slice_starts(error->message, "prompt is too long")) {
        // Claude Code compacts its history when a message begins so.
        struct buf text = BUF_INIT(0);
        int err = buf_append_str(&text, "prompt is too long: ");
        if (err == 0)
            err = buf_append(&text, error->message);
        json_text(&json, err == 0 ? buf_slice(&text) : SLICE_LIT("prompt is too long"));
        buf_free(&text);
    } else {
        json_text(&json, error->message);
    }
    json_key(&json, "details");
    if (error->code.len > 0) {
        json_object(&json);
        json_key(&json, "error_code");
        json_text(&json, error->code);
        json_object_end(&json);
    } else {
        json_null(&json);
    }
    json_object_end(&json);
    json_key(&json, "request_id");
    if (error->request_id.len > 0)
        json_text(&json, error->request_id);
    else
        json_null(&json);
    json_object_end(&json);
    int err = json_end(&json);
    if (err != 0)
        buf_truncate(out, before);
    return err;
}

static int anthropic_render_stream_error(const struct dialect_reader *reader,
                                         const struct dialect_error *error, struct buf *out)
{
    (void)reader;
    size_t before = out->len;
    int err = buf_append_str(out, "event: error\ndata: ");
    if (err == 0)
        err = anthropic_render_error(error, out);
    if (err == 0)
        err = buf_append_str(out, "\n\n");
    if (err != 0)
        buf_truncate(out, before);
    return err;
}

// ---- answers out ----

static const char *stop_reason(const struct dialect_writer *writer, enum event_finish finish)
{
    switch (finish) {
    case EVENT_FINISH_LENGTH: return "max_tokens";
    case EVENT_FINISH_TOOL: return "tool_use";
    case EVENT_FINISH_FILTER: return "refusal";
    case EVENT_FINISH_STOP_SEQUENCE: return "stop_sequence";
    case EVENT_FINISH_STOP: break;
    }
    if (writer->tool_count > 0)
        return "tool_use";
    return writer->has_refusal ? "refusal" : "end_turn";
}

static void put_usage(struct json_out *json, const struct usage *usage)
{
    json_object(json);
    json_key(json, "input_tokens");
    json_u64(json, usage->input + usage->audio_in + usage->image_in);
    json_key(json, "cache_creation_input_tokens");
    json_u64(json, usage->cache_write_5m + usage->cache_write_1h);
    json_key(json, "cache_read_input_tokens");
    json_u64(json, usage->cache_read);
    if (usage->cache_write_5m + usage->cache_write_1h > 0) {
        json_key(json, "cache_creation");
        json_object(json);
        json_key(json, "ephemeral_5m_input_tokens");
        json_u64(json, usage->cache_write_5m);
        json_key(json, "ephemeral_1h_input_tokens");
        json_u64(json, usage->cache_write_1h);
        json_object_end(json);
    }
    json_key(json, "output_tokens");
    json_u64(json, usage_completion(usage));
    json_object_end(json);
}

static int begin(struct json_out *json, const char *type, struct buf *out)
{
    int err = buf_printf(out, "event: %s\ndata: ", type);
    json_begin(json, out);
    json_object(json);
    json_key(json, "type");
    json_str(json, type);
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

static void put_message_head(struct json_out *json, const struct dialect_writer *writer)
{
    json_key(json, "id");
    json_str(json, writer->id);
    json_key(json, "type");
    json_str(json, "message");
    json_key(json, "role");
    json_str(json, "assistant");
    json_key(json, "model");
    json_str(json, writer->model);
}

static void put_stop(struct json_out *json, const struct dialect_writer *writer,
                     enum event_finish how, struct slice sequence)
{
    json_key(json, "stop_reason");
    json_str(json, stop_reason(writer, how));
    json_key(json, "stop_sequence");
    if (how == EVENT_FINISH_STOP_SEQUENCE && sequence.len > 0)
        json_text(json, sequence);
    else
        json_null(json);
}

// A block as it starts; whole: its text (or arguments) in place of the empty one.
static void put_block(struct json_out *json, enum event_block block, struct slice id,
                      struct slice name, struct slice text)
{
    json_object(json);
    json_key(json, "type");
    switch (block) {
    case EVENT_BLOCK_THINKING:
        json_str(json, "thinking");
        json_key(json, "thinking");
        json_text(json, text);
        // The field must be there; a signature is never invented.
        json_key(json, "signature");
        json_str(json, "");
        break;
    case EVENT_BLOCK_TOOL: {
        json_str(json, "tool_use");
        json_key(json, "id");
        json_text(json, id);
        json_key(json, "name");
        json_text(json, name);
        json_key(json, "input");
        struct skim skim;
        struct skim_spec spec = {0};
        text = slice_trim(text);
        if (text.len == 0) {
            json_raw(json, SLICE_LIT("{}"));
        } else if (skim_whole(&skim, &spec, text) == 0 && skim.root_type == SKIM_OBJECT) {
            json_raw(json, text);
        } else {
            // Cut or malformed arguments: input must be an object, so they travel inside one.
            json_object(json);
            json_key(json, "_raw");
            json_text(json, text);
            json_object_end(json);
        }
        break;
    }
    case EVENT_BLOCK_TEXT:
    case EVENT_BLOCK_REFUSAL:
        json_str(json, "text");
        json_key(json, "text");
        json_text(json, text);
        break;
    }
    json_object_end(json);
}

static int put_event(struct dialect_writer *writer, const struct event *event, struct buf *out)
{
    static const char *const DELTAS[][2] = {
        [EVENT_BLOCK_TEXT] = {"text_delta", "text"},
        [EVENT_BLOCK_THINKING] = {"thinking_delta", "thinking"},
        [EVENT_BLOCK_TOOL] = {"input_json_delta", "partial_json"},
        [EVENT_BLOCK_REFUSAL] = {"text_delta", "text"},
    };
    struct json_out json;
    int err = 0;
    switch (event->kind) {
    case EVENT_START:
        err = begin(&json, "message_start", out);
        json_key(&json, "message");
        json_object(&json);
        put_message_head(&json, writer);
        json_key(&json, "content");
        json_array(&json);
        json_array_end(&json);
        json_key(&json, "stop_reason");
        json_null(&json);
        json_key(&json, "stop_sequence");
        json_null(&json);
        json_key(&json, "usage");
        put_usage(&json, &writer->usage);
        json_object_end(&json);
        return finish(&json, err, out);
    case EVENT_BLOCK_START:
        err = begin(&json, "content_block_start", out);
        json_key(&json, "index");
        json_u64(&json, event->index);
        json_key(&json, "content_block");
        put_block(&json, event->block, event->id, event->name, SLICE_LIT(""));
        return finish(&json, err, out);
    case EVENT_BLOCK_DELTA:
        if (event->text.len == 0)
            return 0;
        err = begin(&json, "content_block_delta", out);
        json_key(&json, "index");
        json_u64(&json, event->index);
        json_key(&json, "delta");
        json_object(&json);
        json_key(&json, "type");
        json_str(&json, DELTAS[writer->open_block][0]);
        json_key(&json, DELTAS[writer->open_block][1]);
        json_text(&json, event->text);
        json_object_end(&json);
        return finish(&json, err, out);
    case EVENT_BLOCK_END:
        err = begin(&json, "content_block_stop", out);
        json_key(&json, "index");
        json_u64(&json, event->index);
        return finish(&json, err, out);
    case EVENT_FINISH:
        err = begin(&json, "message_delta", out);
        json_key(&json, "delta");
        json_object(&json);
        put_stop(&json, writer, event->finish, event->stop_sequence);
        json_object_end(&json);
        json_key(&json, "usage");
        put_usage(&json, &writer->usage);
        err = finish(&json, err, out);
        if (err != 0)
            return err;
        err = begin(&json, "message_stop", out);
        return finish(&json, err, out);
    case EVENT_USAGE: return 0;
    case EVENT_ERROR: return anthropic_render_stream_error(NULL, event->error, out);
    }
    return 0;
}

static int anthropic_emit(struct dialect_writer *writer, const struct event *event, struct buf *out)
{
    size_t before = out->len;
    int err = writer->op == DIALECT_OP_MESSAGES ? dialect_check_order(writer, event) : GW_EINVAL;
    if (err != 0)
        return err;
    if (event->kind == EVENT_START)
        dialect_note_start(writer, event, "msg_moongate");
    err = put_event(writer, event, out);
    if (err != 0) {
        buf_truncate(out, before);
        return err;
    }
    dialect_note_event(writer, event);
    return 0;
}

// Keeps one event of a whole message: block texts gather in writer->text, finished blocks in items.
static int gather(struct dialect_writer *writer, const struct event *event)
{
    int err = dialect_check_order(writer, event);
    if (err == 0 && event->kind == EVENT_START)
        dialect_note_start(writer, event, "msg_moongate");
    if (err == 0 && event->kind == EVENT_BLOCK_START) {
        writer->tool_id = event->id;
        writer->tool_name = event->name;
    }
    if (err == 0 && event->kind == EVENT_BLOCK_DELTA && event->text.len > 0)
        err = buf_append(&writer->text, event->text);
    if (err == 0 && event->kind == EVENT_BLOCK_END) {
        struct slice text = buf_slice(&writer->text);
        // The API has no empty text blocks.
        if (text.len > 0 || writer->open_block == EVENT_BLOCK_TOOL) {
            struct json_out json;
            if (writer->items.len > 0)
                err = buf_append_char(&writer->items, ',');
            json_begin(&json, &writer->items);
            put_block(&json, writer->open_block, writer->tool_id, writer->tool_name, text);
            int end_err = json_end(&json);
            if (err == 0)
                err = end_err;
        }
    }
    if (err == 0)
        dialect_note_event(writer, event);
    return err;
}

static int anthropic_emit_whole(struct dialect_writer *writer, const struct event *events,
                                size_t count, struct buf *out)
{
    const struct event *last = count > 0 ? &events[count - 1] : NULL;
    if (writer->op != DIALECT_OP_MESSAGES)
        return GW_EINVAL;
    writer->is_whole = true;
    for (size_t i = 0; i < count; i++) {
        int err = gather(writer, &events[i]);
        if (err != 0)
            return err;
    }
    if (last == NULL || !writer->has_finished)
        return GW_EINVAL;
    if (last->kind == EVENT_ERROR)
        return anthropic_render_error(last->error, out);
    size_t before = out->len;
    struct json_out json;
    json_begin(&json, out);
    json_object(&json);
    put_message_head(&json, writer);
    json_key(&json, "content");
    json_array(&json);
    if (writer->items.len > 0)
        json_raw(&json, buf_slice(&writer->items));
    json_array_end(&json);
    put_stop(&json, writer, last->finish, last->stop_sequence);
    json_key(&json, "usage");
    put_usage(&json, &writer->usage);
    json_object_end(&json);
    int err = json_end(&json);
    if (err != 0)
        buf_truncate(out, before);
    return err;
}

const struct dialect dialect_anthropic = {
    .id = DIALECT_ANTHROPIC,
    .name = "claude",
    .usage_rule = USAGE_RULE_ANTHROPIC,
    .inspect = anthropic_inspect,
    .inspect_body = anthropic_inspect_body,
    .may_end = anthropic_may_end,
    .is_error_shape = anthropic_is_error_shape,
    .render_error = anthropic_render_error,
    .render_stream_error = anthropic_render_stream_error,
    .emit = anthropic_emit,
    .emit_whole = anthropic_emit_whole,
};
