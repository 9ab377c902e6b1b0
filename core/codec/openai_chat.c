// The OpenAI dialect: Chat Completions, completions, embeddings and whatever else reports usage the
// same way. Providers differ in where they put things, not in the shape, so one reader takes all
// (PROTOCOLS §4, §5, §10).
#include "codec/dialect.h"
#include "codec/json.h"

// ---- reading ----

// One entry of choices. The same list serves a stream's delta and a body's message, and an element
// of its own (choices beyond the first are looked up by a second scan).
enum choice_path {
    CHOICE_FINISH,
    CHOICE_INDEX,
    CHOICE_TEXT,
    CHOICE_DELTA,
    CHOICE_CONTENT,
    CHOICE_REASONING_CONTENT,
    CHOICE_REASONING,
    CHOICE_REASONING_DETAILS,
    CHOICE_TOOL_CALLS,
    CHOICE_ARGUMENTS,
    CHOICE_REFUSAL,
    CHOICE_AUDIO,
    CHOICE_FUNCTION,
    CHOICE_FUNCTION_ARGUMENTS,
    CHOICE_IMAGES,
    CHOICE_EXECUTED_TOOLS,
    CHOICE_ANNOTATIONS,
    CHOICE_PATH_COUNT,
};
#define CHOICE_PATHS(at, delta)                                                                    \
    at "finish_reason", at "index", at "text", at delta, at delta ".content",                      \
        at delta ".reasoning_content", at delta ".reasoning", at delta ".reasoning_details",       \
        at delta ".tool_calls", at delta ".tool_calls.0.function.arguments", at delta ".refusal",  \
        at delta ".audio", at delta ".function_call", at delta ".function_call.arguments",         \
        at delta ".images", at delta ".executed_tools", at delta ".annotations"

enum top_path {
    TOP_MODEL = CHOICE_PATH_COUNT,
    TOP_USAGE,
    TOP_GROQ_USAGE,
    TOP_GROQ_ERROR,
    TOP_ERROR,
    TOP_CHOICES,
    TOP_OBJECT,
    TOP_ARRAY_ERROR,
    TOP_PATH_COUNT,
};
#define TOP_PATHS                                                                                  \
    "model", "usage", "x_groq.usage", "x_groq.error", "error", "choices", "object", "0.error"

static const char *const CHUNK_PATHS[] = {CHOICE_PATHS("choices.0.", "delta"), TOP_PATHS};
static const char *const BODY_PATHS[] = {CHOICE_PATHS("choices.0.", "message"), TOP_PATHS};
static const char *const DELTA_PATHS[] = {CHOICE_PATHS("", "delta")};
static const char *const MESSAGE_PATHS[] = {CHOICE_PATHS("", "message")};
_Static_assert(sizeof(CHUNK_PATHS) / sizeof(CHUNK_PATHS[0]) == TOP_PATH_COUNT, "paths match enum");
_Static_assert(sizeof(DELTA_PATHS) / sizeof(DELTA_PATHS[0]) == CHOICE_PATH_COUNT,
               "paths match enum");
_Static_assert(TOP_PATH_COUNT <= SKIM_MAX_PATHS, "skim takes that many paths");

// Array elements past the first; more than these in one event has not been seen anywhere.
static const char *const CHOICE_ELEMENTS[] = {
    "choices.1",  "choices.2",  "choices.3",  "choices.4",  "choices.5",
    "choices.6",  "choices.7",  "choices.8",  "choices.9",  "choices.10",
    "choices.11", "choices.12", "choices.13", "choices.14", "choices.15"};
static const char *const TOOL_ARGUMENTS[] = {
    "1.function.arguments",  "2.function.arguments",  "3.function.arguments",
    "4.function.arguments",  "5.function.arguments",  "6.function.arguments",
    "7.function.arguments",  "8.function.arguments",  "9.function.arguments",
    "10.function.arguments", "11.function.arguments", "12.function.arguments",
    "13.function.arguments", "14.function.arguments", "15.function.arguments"};
// Mistral: content as a list, thinking as a list in it.
static const char *const CONTENT_TEXTS[] = {"0.text",
                                            "1.text",
                                            "2.text",
                                            "3.text",
                                            "4.text",
                                            "5.text",
                                            "6.text",
                                            "7.text",
                                            "0.thinking.0.text",
                                            "0.thinking.1.text",
                                            "0.thinking.2.text",
                                            "0.thinking.3.text",
                                            "1.thinking.0.text",
                                            "1.thinking.1.text",
                                            "2.thinking.0.text",
                                            "2.thinking.1.text",
                                            "3.thinking.0.text",
                                            "0.refusal"};
static const char *const DETAIL_TEXTS[] = {"0.text", "1.text",    "2.text",
                                           "3.text", "0.summary", "1.summary"};
#define COUNT_OF(array) (sizeof(array) / sizeof((array)[0]))

static bool is_filled_string(const struct skim_span *span)
{
    return span->type == SKIM_STRING && span->end - span->start > 2;
}

static bool is_filled_list(const struct skim_span *span)
{
    return span->type == SKIM_ARRAY && span->child_count > 0;
}

static bool is_error_member(const struct skim_span *span)
{
    return (span->type == SKIM_OBJECT && span->child_count > 0) || is_filled_string(span);
}

// Sums the decoded bytes of the strings at these paths of a value.
static uint64_t sum_texts(struct slice text, const struct skim_span *span, const char *const *paths,
                          size_t count)
{
    struct slice value = skim_bytes(text, span);
    struct skim skim;
    struct skim_spec spec = {.paths = paths, .path_count = count, .is_lenient = true};
    uint64_t bytes = 0;
    if (skim_whole(&skim, &spec, value) != 0)
        return 0;
    for (size_t i = 0; i < count; i++)
        bytes += dialect_text_bytes(value, &skim.spans[i]);
    return bytes;
}

static void set_text(struct dialect_info *info, enum event_block block,
                     const struct skim_span *span, size_t base)
{
    if (info->has_text)
        return;
    info->has_text = true;
    info->block = block;
    info->text_start = base + (size_t)span->start;
    info->text_end = base + (size_t)span->end;
    info->text_has_escapes = span->has_escapes;
}

// Reads one choice (spans in `text`, which lies at `base` of the event). True when it says
// something: text, thinking, a tool call, a refusal, audio, a finish reason.
static bool read_choice(struct dialect_reader *reader, struct slice text,
                        const struct skim_span *spans, size_t base, struct dialect_info *info)
{
    const struct skim_span *content = &spans[CHOICE_CONTENT];
    const struct skim_span *tools = &spans[CHOICE_TOOL_CALLS];
    const struct skim_span *thinking = &spans[CHOICE_REASONING_CONTENT];
    bool is_semantic = false, is_first = !info->has_text;
    if (!is_filled_string(thinking) && !is_filled_list(thinking))
        thinking = &spans[CHOICE_REASONING];

    if (is_filled_string(content)) {
        reader->text_bytes += dialect_text_bytes(text, content);
        set_text(info, EVENT_BLOCK_TEXT, content, base);
        is_semantic = true;
    } else if (is_filled_list(content)) {
        reader->text_bytes += sum_texts(text, content, CONTENT_TEXTS, COUNT_OF(CONTENT_TEXTS));
        is_semantic = true;
    } else if (spans[CHOICE_DELTA].type != SKIM_OBJECT && is_filled_string(&spans[CHOICE_TEXT])) {
        reader->text_bytes += dialect_text_bytes(text, &spans[CHOICE_TEXT]);
        set_text(info, EVENT_BLOCK_TEXT, &spans[CHOICE_TEXT], base);
        is_semantic = true;
    }
    // Reasoning comes under up to three names in one chunk: counted once.
    if (is_filled_string(thinking)) {
        reader->text_bytes += dialect_text_bytes(text, thinking);
        set_text(info, EVENT_BLOCK_THINKING, thinking, base);
        is_semantic = true;
    } else if (is_filled_list(&spans[CHOICE_REASONING_DETAILS])) {
        reader->text_bytes +=
            sum_texts(text, &spans[CHOICE_REASONING_DETAILS], DETAIL_TEXTS, COUNT_OF(DETAIL_TEXTS));
        is_semantic = true;
    }
    if (is_filled_list(tools)) {
        const struct skim_span *arguments = &spans[CHOICE_ARGUMENTS];
        reader->text_bytes += dialect_text_bytes(text, arguments);
        if (is_filled_string(arguments))
            set_text(info, EVENT_BLOCK_TOOL, arguments, base);
        if (tools->child_count > 1)
            reader->text_bytes += sum_texts(text, tools, TOOL_ARGUMENTS, COUNT_OF(TOOL_ARGUMENTS));
        is_semantic = true;
    }
    if (spans[CHOICE_FUNCTION].type == SKIM_OBJECT) {
        const struct skim_span *arguments = &spans[CHOICE_FUNCTION_ARGUMENTS];
        reader->text_bytes += dialect_text_bytes(text, arguments);
        if (is_filled_string(arguments))
            set_text(info, EVENT_BLOCK_TOOL, arguments, base);
        is_semantic = true;
    }
    if (is_filled_string(&spans[CHOICE_REFUSAL])) {
        reader->text_bytes += dialect_text_bytes(text, &spans[CHOICE_REFUSAL]);
        set_text(info, EVENT_BLOCK_REFUSAL, &spans[CHOICE_REFUSAL], base);
        is_semantic = true;
    }
    if (spans[CHOICE_AUDIO].type == SKIM_OBJECT || is_filled_list(&spans[CHOICE_IMAGES]) ||
        is_filled_list(&spans[CHOICE_EXECUTED_TOOLS]) || is_filled_list(&spans[CHOICE_ANNOTATIONS]))
        is_semantic = true;
    // "" is how some providers write null.
    if (dialect_copy_string(text, &spans[CHOICE_FINISH], reader->finish, sizeof(reader->finish))) {
        reader->has_finish = true;
        is_semantic = true;
    }
    if (is_semantic && is_first) {
        uint64_t index;
        if (skim_u64(text, &spans[CHOICE_INDEX], &index) == 0 && index <= UINT32_MAX)
            info->index = (uint32_t)index;
    }
    return is_semantic;
}

// The choices past the first, each by a scan of its own.
static bool read_more_choices(struct dialect_reader *reader, struct slice text,
                              const char *const *paths, struct dialect_info *info)
{
    struct skim list;
    struct skim_spec spec = {
        .paths = CHOICE_ELEMENTS, .path_count = COUNT_OF(CHOICE_ELEMENTS), .is_lenient = true};
    bool is_semantic = false;
    if (skim_whole(&list, &spec, text) != 0)
        return false;
    for (size_t i = 0; i < COUNT_OF(CHOICE_ELEMENTS); i++) {
        if (list.spans[i].type != SKIM_OBJECT)
            continue;
        struct slice element = skim_bytes(text, &list.spans[i]);
        struct skim skim;
        struct skim_spec choice = {
            .paths = paths, .path_count = CHOICE_PATH_COUNT, .is_lenient = true};
        if (skim_whole(&skim, &choice, element) == 0 &&
            read_choice(reader, element, skim.spans, (size_t)list.spans[i].start, info))
            is_semantic = true;
    }
    return is_semantic;
}

static void read_usage(struct dialect_reader *reader, struct slice text,
                       const struct skim_span *spans)
{
    // Groq sends both; they are the same numbers, and nothing is ever summed.
    if (spans[TOP_GROQ_USAGE].type == SKIM_OBJECT)
        usage_meter_take(&reader->meter, skim_bytes(text, &spans[TOP_GROQ_USAGE]));
    if (spans[TOP_USAGE].type == SKIM_OBJECT)
        usage_meter_take(&reader->meter, skim_bytes(text, &spans[TOP_USAGE]));
}

static bool is_object_error(struct slice text, const struct skim_span *span)
{
    return span->type == SKIM_STRING && slice_is(skim_bytes(text, span), "\"error\"");
}

static void openai_inspect(struct dialect_reader *reader, const struct sse_event *event,
                           struct dialect_info *info)
{
    struct slice data = event->data;
    *info = (struct dialect_info){.class = DIALECT_EVENT_NOISE};
    if (!event->has_data || reader->has_end) // SDKs ignore what follows [DONE]
        return;
    while (data.len > 0 && *data.ptr == ' ')
        data = slice_from(data, 1);
    if (slice_starts(data, "[DONE]")) {
        info->class = DIALECT_EVENT_END;
        reader->has_end = true;
        return;
    }
    data = event->data;
    bool is_error = slice_is(event->name, "error");
    struct skim skim;
    struct skim_spec spec = {
        .paths = CHUNK_PATHS, .path_count = TOP_PATH_COUNT, .is_lenient = true};
    if (data.len == 0 || skim_whole(&skim, &spec, data) != 0 || skim.root_type != SKIM_OBJECT) {
        if (is_error)
            dialect_take_error(reader, data, info);
        return;
    }
    const struct skim_span *spans = skim.spans;
    const struct skim_span *choices = &spans[TOP_CHOICES];
    read_usage(reader, data, spans);
    if (reader->model[0] == '\0')
        dialect_copy_string(data, &spans[TOP_MODEL], reader->model, sizeof(reader->model));
    bool is_semantic = choices->type == SKIM_ARRAY && choices->child_count > 0 &&
                       read_choice(reader, data, spans, 0, info);
    if (choices->type == SKIM_ARRAY && choices->child_count > 1 &&
        read_more_choices(reader, data, DELTA_PATHS, info))
        is_semantic = true;
    if (is_error || is_error_member(&spans[TOP_ERROR]) ||
        is_filled_string(&spans[TOP_GROQ_ERROR]) || is_object_error(data, &spans[TOP_OBJECT])) {
        dialect_take_error(reader, data, info);
    } else if (is_semantic) {
        info->class = DIALECT_EVENT_CONTENT;
        reader->has_content = true;
    } else if (choices->type == SKIM_ARRAY && choices->child_count == 0 &&
               spans[TOP_USAGE].type == SKIM_OBJECT) {
        info->class = DIALECT_EVENT_USAGE;
    }
}

static void openai_inspect_body(struct dialect_reader *reader, struct slice body,
                                struct dialect_info *info, bool *is_error)
{
    struct skim skim;
    struct skim_spec spec = {.paths = BODY_PATHS, .path_count = TOP_PATH_COUNT, .is_lenient = true};
    *info = (struct dialect_info){.class = DIALECT_EVENT_NOISE};
    *is_error = false;
    if (skim_whole(&skim, &spec, body) != 0)
        return;
    const struct skim_span *spans = skim.spans;
    const struct skim_span *choices = &spans[TOP_CHOICES];
    bool has_choices = choices->type == SKIM_ARRAY && choices->child_count > 0;
    read_usage(reader, body, spans);
    dialect_copy_string(body, &spans[TOP_MODEL], reader->model, sizeof(reader->model));
    if (!has_choices &&
        (is_error_member(&spans[TOP_ERROR]) || is_error_member(&spans[TOP_ARRAY_ERROR]) ||
         is_object_error(body, &spans[TOP_OBJECT]))) {
        *is_error = true;
        dialect_take_error(reader, body, info);
        return;
    }
    if (has_choices)
        read_choice(reader, body, spans, 0, info);
    if (has_choices && choices->child_count > 1)
        read_more_choices(reader, body, MESSAGE_PATHS, info);
    info->class = DIALECT_EVENT_CONTENT;
    reader->has_content = true;
    reader->has_end = true;
}

static bool openai_may_end(const struct dialect_reader *reader)
{
    // Perplexity, gpustack and others never send [DONE]: a finish reason is enough.
    return reader->has_end || reader->has_finish || reader->has_error;
}

static bool openai_is_error_shape(struct slice body)
{
    static const char *const PATHS[] = {"error", "error.message", "type"};
    struct skim skim;
    struct skim_spec spec = {.paths = PATHS, .path_count = 3, .is_lenient = true};
    if (skim_whole(&skim, &spec, body) != 0)
        return false;
    // Claude's envelope has the same inside.
    return skim.spans[0].type == SKIM_OBJECT && skim.spans[1].type == SKIM_STRING &&
           skim.spans[2].type == SKIM_ABSENT;
}

// ---- errors out ----

static int openai_render_error(const struct dialect_error *error, struct buf *out)
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

static int openai_render_stream_error(const struct dialect_reader *reader,
                                      const struct dialect_error *error, struct buf *out)
{
    (void)reader;
    size_t before = out->len;
    int err = buf_append_str(out, "data: ");
    if (err == 0)
        err = openai_render_error(error, out);
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

static int openai_emit(struct dialect_writer *writer, const struct event *event, struct buf *out)
{
    size_t before = out->len;
    int err = can_emit(writer) ? dialect_check_order(writer, event) : GW_EINVAL;
    if (err != 0)
        return err;
    if (event->kind == EVENT_START)
        dialect_note_start(writer, event, id_default(writer));
    if (event->kind == EVENT_ERROR)
        err = openai_render_stream_error(NULL, event->error, out);
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

static int openai_emit_whole(struct dialect_writer *writer, const struct event *events,
                             size_t count, struct buf *out)
{
    const struct event *error;
    bool is_completion = writer->op == DIALECT_OP_COMPLETIONS;
    int err = can_emit(writer) ? gather(writer, events, count, &error) : GW_EINVAL;
    if (err != 0)
        return err;
    if (error != NULL)
        return openai_render_error(error->error, out);
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

const struct dialect dialect_openai = {
    .id = DIALECT_OPENAI,
    .name = "openai",
    .usage_rule = USAGE_RULE_OPENAI,
    .inspect = openai_inspect,
    .inspect_body = openai_inspect_body,
    .may_end = openai_may_end,
    .is_error_shape = openai_is_error_shape,
    .render_error = openai_render_error,
    .render_stream_error = openai_render_stream_error,
    .emit = openai_emit,
    .emit_whole = openai_emit_whole,
};
