// The OpenAI Responses dialect. Events are told by `type` in the data (the SSE name repeats it);
// the terminal event carries the whole response with its usage. A stream that breaks ends with
// response.failed and a final code: Codex posts the same request five more times otherwise.
#include "codec/dialect.h"

enum event_path {
    PATH_TYPE,
    PATH_SEQUENCE,
    PATH_DELTA,
    PATH_OUTPUT_INDEX,
    PATH_ERROR,
    PATH_RESPONSE_ID,
    PATH_RESPONSE_MODEL,
    PATH_RESPONSE_CREATED,
    PATH_RESPONSE_STATUS,
    PATH_RESPONSE_USAGE,
    PATH_RESPONSE_REASON,
    PATH_OBFUSCATION,
    PATH_COUNT,
};
static const char *const EVENT_PATHS[] = {
    [PATH_TYPE] = "type",
    [PATH_SEQUENCE] = "sequence_number",
    [PATH_DELTA] = "delta",
    [PATH_OUTPUT_INDEX] = "output_index",
    [PATH_ERROR] = "error",
    [PATH_RESPONSE_ID] = "response.id",
    [PATH_RESPONSE_MODEL] = "response.model",
    [PATH_RESPONSE_CREATED] = "response.created_at",
    [PATH_RESPONSE_STATUS] = "response.status",
    [PATH_RESPONSE_USAGE] = "response.usage",
    [PATH_RESPONSE_REASON] = "response.incomplete_details.reason",
    [PATH_OBFUSCATION] = "obfuscation",
};

// What the response object inside an event tells.
static void read_response(struct dialect_reader *reader, struct slice data,
                          const struct skim_span *spans)
{
    uint64_t created;
    if (spans[PATH_RESPONSE_USAGE].type == SKIM_OBJECT)
        usage_meter_take(&reader->meter, skim_bytes(data, &spans[PATH_RESPONSE_USAGE]));
    dialect_copy_string(data, &spans[PATH_RESPONSE_ID], reader->response_id,
                        sizeof(reader->response_id));
    dialect_copy_string(data, &spans[PATH_RESPONSE_MODEL], reader->model, sizeof(reader->model));
    if (skim_u64(data, &spans[PATH_RESPONSE_CREATED], &created) == 0 && created <= INT64_MAX)
        reader->created_at = (int64_t)created;
}

static bool has_part(struct slice type, const char *part)
{
    return slice_find(type, slice_str(part)) >= 0;
}

// The kind of text a *.delta carries; false when its delta is no text (audio, images).
static bool delta_block(struct slice type, enum event_block *block)
{
    if (slice_is(type, "response.output_text.delta") || has_part(type, "transcript"))
        *block = EVENT_BLOCK_TEXT;
    else if (has_part(type, "reasoning"))
        *block = EVENT_BLOCK_THINKING;
    else if (has_part(type, "refusal"))
        *block = EVENT_BLOCK_REFUSAL;
    else if (has_part(type, "audio") || has_part(type, "image"))
        return false;
    else
        *block = EVENT_BLOCK_TOOL; // function, MCP and custom tool arguments, code, patches
    return true;
}

static void read_delta(struct dialect_reader *reader, struct slice type, struct slice data,
                       const struct skim_span *delta, struct dialect_info *info)
{
    if (delta->type != SKIM_STRING || delta->end - delta->start <= 2 ||
        !delta_block(type, &info->block))
        return;
    reader->text_bytes += dialect_text_bytes(data, delta);
    info->has_text = true;
    info->text_start = (size_t)delta->start;
    info->text_end = (size_t)delta->end;
    info->text_has_escapes = delta->has_escapes;
}

static void responses_inspect(struct dialect_reader *reader, const struct sse_event *event,
                              struct dialect_info *info)
{
    struct slice data = event->data;
    *info = (struct dialect_info){.class = DIALECT_EVENT_NOISE};
    // [DONE] is no end of this dialect: one recorded provider adds it after the terminal event.
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
    char name[96] = "";
    struct slice type = event->name;
    if (dialect_copy_string(data, &spans[PATH_TYPE], name, sizeof(name)))
        type = slice_str(name);
    else if (spans[PATH_ERROR].type == SKIM_OBJECT || spans[PATH_ERROR].type == SKIM_STRING)
        type = SLICE_LIT("error"); // a chat-shaped error in this stream
    uint64_t number;
    bool has_sequence = skim_u64(data, &spans[PATH_SEQUENCE], &number) == 0;
    if (has_sequence)
        reader->sequence = number;
    if (skim_u64(data, &spans[PATH_OUTPUT_INDEX], &number) == 0 && number <= UINT32_MAX)
        info->index = (uint32_t)number;

    if (slice_is(type, "error")) {
        dialect_take_error(reader, data, info);
        return;
    }
    if (!slice_starts(type, "response."))
        return; // ping, keepalive, codex.rate_limits, …
    if (slice_is(type, "response.created") || slice_is(type, "response.in_progress") ||
        slice_is(type, "response.queued")) {
        info->class = DIALECT_EVENT_PREAMBLE;
        reader->has_preamble = true;
        read_response(reader, data, spans);
    } else if (slice_is(type, "response.failed")) {
        read_response(reader, data, spans);
        dialect_take_error(reader, data, info);
        reader->has_end = true;
    } else if (slice_is(type, "response.completed") || slice_is(type, "response.incomplete") ||
               slice_is(type, "response.cancelled")) {
        info->class = DIALECT_EVENT_END;
        reader->has_end = true;
        reader->has_finish = true;
        read_response(reader, data, spans);
        if (!dialect_copy_string(data, &spans[PATH_RESPONSE_REASON], reader->finish,
                                 sizeof(reader->finish)))
            dialect_copy_string(data, &spans[PATH_RESPONSE_STATUS], reader->finish,
                                sizeof(reader->finish));
    } else {
        info->class = DIALECT_EVENT_CONTENT;
        reader->has_content = true;
        if (slice_ends(type, ".delta"))
            read_delta(reader, type, data, &spans[PATH_DELTA], info);
        info->is_plain = true;
        if (has_sequence) {
            info->number_start = (size_t)spans[PATH_SEQUENCE].start;
            info->number_end = (size_t)spans[PATH_SEQUENCE].end;
        }
        dialect_note_pad(&spans[PATH_OBFUSCATION], info);
    }
}

enum body_path {
    BODY_ID,
    BODY_MODEL,
    BODY_STATUS,
    BODY_REASON,
    BODY_USAGE,
    BODY_ERROR,
    BODY_OUTPUT,
    BODY_ARRAY_ERROR,
    BODY_COUNT,
};
static const char *const BODY_PATHS[] = {
    [BODY_ID] = "id",         [BODY_MODEL] = "model",
    [BODY_STATUS] = "status", [BODY_REASON] = "incomplete_details.reason",
    [BODY_USAGE] = "usage",   [BODY_ERROR] = "error",
    [BODY_OUTPUT] = "output", [BODY_ARRAY_ERROR] = "0.error",
};
// Text bytes of a whole answer matter only when it reports no usage; the first items suffice.
static const char *const OUTPUT_TEXTS[] = {
    "0.content.0.text",    "0.content.1.text",    "0.arguments",         "0.summary.0.text",
    "0.content.0.refusal", "1.content.0.text",    "1.content.1.text",    "1.arguments",
    "1.summary.0.text",    "1.content.0.refusal", "2.content.0.text",    "2.content.1.text",
    "2.arguments",         "2.summary.0.text",    "2.content.0.refusal", "3.content.0.text",
    "3.content.1.text",    "3.arguments",         "3.summary.0.text",    "3.content.0.refusal",
    "4.content.0.text",    "4.content.1.text",    "4.arguments",         "4.summary.0.text"};
#define OUTPUT_TEXT_COUNT (sizeof(OUTPUT_TEXTS) / sizeof(OUTPUT_TEXTS[0]))

static uint64_t output_bytes(struct slice output)
{
    struct skim skim;
    struct skim_spec spec = {
        .paths = OUTPUT_TEXTS, .path_count = OUTPUT_TEXT_COUNT, .is_lenient = true};
    uint64_t bytes = 0;
    if (skim_whole(&skim, &spec, output) != 0)
        return 0;
    for (size_t i = 0; i < OUTPUT_TEXT_COUNT; i++)
        bytes += dialect_text_bytes(output, &skim.spans[i]);
    return bytes;
}

static void responses_inspect_body(struct dialect_reader *reader, struct slice body,
                                   struct dialect_info *info, bool *is_error)
{
    struct skim skim;
    struct skim_spec spec = {.paths = BODY_PATHS, .path_count = BODY_COUNT, .is_lenient = true};
    *info = (struct dialect_info){.class = DIALECT_EVENT_NOISE};
    *is_error = false;
    if (skim_whole(&skim, &spec, body) != 0)
        return;
    const struct skim_span *spans = skim.spans;
    char status[32] = "";
    bool has_error = spans[BODY_ERROR].type == SKIM_OBJECT || spans[BODY_ERROR].type == SKIM_STRING;
    dialect_copy_string(body, &spans[BODY_STATUS], status, sizeof(status));
    dialect_copy_string(body, &spans[BODY_MODEL], reader->model, sizeof(reader->model));
    dialect_copy_string(body, &spans[BODY_ID], reader->response_id, sizeof(reader->response_id));
    if (spans[BODY_USAGE].type == SKIM_OBJECT)
        usage_meter_take(&reader->meter, skim_bytes(body, &spans[BODY_USAGE]));
    if (spans[BODY_ARRAY_ERROR].type == SKIM_OBJECT ||
        (has_error && (spans[BODY_OUTPUT].type == SKIM_ABSENT || strcmp(status, "failed") == 0))) {
        *is_error = true;
        dialect_take_error(reader, body, info);
        return;
    }
    if (dialect_copy_string(body, &spans[BODY_REASON], reader->finish, sizeof(reader->finish)) ||
        dialect_copy_string(body, &spans[BODY_STATUS], reader->finish, sizeof(reader->finish)))
        reader->has_finish = true;
    if (spans[BODY_OUTPUT].type == SKIM_ARRAY)
        reader->text_bytes += output_bytes(skim_bytes(body, &spans[BODY_OUTPUT]));
    info->class = DIALECT_EVENT_CONTENT;
    reader->has_content = true;
    reader->has_end = true;
}

static bool responses_may_end(const struct dialect_reader *reader)
{
    return reader->has_end || reader->has_error;
}

static bool responses_is_error_shape(struct slice body)
{
    return dialect_openai.is_error_shape(body);
}

const struct dialect dialect_responses = {
    .id = DIALECT_RESPONSES,
    .name = "responses",
    .usage_rule = USAGE_RULE_RESPONSES,
    .inspect = responses_inspect,
    .inspect_body = responses_inspect_body,
    .may_end = responses_may_end,
    .is_error_shape = responses_is_error_shape,
    .render_error = responses_render_error,
    .render_stream_error = responses_render_stream_error,
    .emit = responses_emit,
    .emit_whole = responses_emit_whole,
};
