// The OpenAI dialect: Chat Completions, completions, embeddings and whatever else reports usage the
// same way. Providers differ in where they put things, not in the shape, so one reader takes all
// (PROTOCOLS §4, §5, §10).
#include "codec/dialect.h"

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
    TOP_OBFUSCATION,
    TOP_PATH_COUNT,
};
#define TOP_PATHS                                                                                  \
    "model", "usage", "x_groq.usage", "x_groq.error", "error", "choices", "object", "0.error",     \
        "obfuscation"

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
    if (!dialect_scan(&skim, &spec, data)) {
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
        info->is_plain = choices->child_count == 1 && spans[TOP_USAGE].type != SKIM_OBJECT &&
                         spans[TOP_GROQ_USAGE].type != SKIM_OBJECT &&
                         !is_filled_string(&spans[CHOICE_FINISH]);
        dialect_note_pad(&spans[TOP_OBFUSCATION], info);
    } else if (choices->type == SKIM_ARRAY && choices->child_count == 0 &&
               spans[TOP_USAGE].type == SKIM_OBJECT) {
        info->class = DIALECT_EVENT_USAGE;
    } else if (reader->op == DIALECT_OP_OTHER && choices->type == SKIM_ABSENT) {
        // Streams of images, speech and transcripts: every event carries a part of the answer.
        info->class = DIALECT_EVENT_CONTENT;
        reader->has_content = true;
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
    // The streams of other calls have ends of their own that we do not know.
    return reader->has_end || reader->has_finish || reader->has_error ||
           reader->op == DIALECT_OP_OTHER;
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

const struct dialect dialect_openai = {
    .id = DIALECT_OPENAI,
    .name = "openai",
    .usage_rule = USAGE_RULE_OPENAI,
    .inspect = openai_inspect,
    .inspect_body = openai_inspect_body,
    .may_end = openai_may_end,
    .is_error_shape = openai_is_error_shape,
    .render_error = openai_chat_render_error,
    .render_stream_error = openai_chat_render_stream_error,
    .emit = openai_chat_emit,
    .emit_whole = openai_chat_emit_whole,
};
