// Errors read and rendered, and answers made here, in the three dialects. Streams that we emit are
// taken apart the way the SDKs do it: parsed with yyjson and accumulated.
#include "codec/dialect.h"
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <yyjson.h>

static struct arena *arena;
static struct buf out;

static void setup(void)
{
    arena = arena_new(4096);
    buf_init(&out, 0);
}

static void teardown(void)
{
    arena_free(arena);
    buf_free(&out);
}

// The value at a dotted path.
static yyjson_val *at(yyjson_val *val, const char *path)
{
    char copy[256], *save;
    snprintf(copy, sizeof(copy), "%s", path);
    for (char *part = strtok_r(copy, ".", &save); part != NULL && val != NULL;
         part = strtok_r(NULL, ".", &save))
        val = part[0] >= '0' && part[0] <= '9' ? yyjson_arr_get(val, (size_t)atoi(part))
                                               : yyjson_obj_get(val, part);
    return val;
}

static yyjson_doc *parse(struct slice json)
{
    yyjson_doc *doc = yyjson_read(json.ptr, json.len, 0);
    ck_assert_msg(doc != NULL, "not JSON: %.*s", SLICE_FMT(json));
    return doc;
}

#define ck_assert_at_str(root, path, want)                                                         \
    do {                                                                                           \
        const char *text_ = yyjson_get_str(at(root, path));                                        \
        ck_assert_msg(text_ != NULL, "no string at %s", path);                                     \
        ck_assert_str_eq(text_, want);                                                             \
    } while (0)
#define ck_assert_at_int(root, path, want) ck_assert_int_eq(yyjson_get_sint(at(root, path)), want)
#define ck_assert_at_null(root, path)                                                              \
    ck_assert_msg(yyjson_is_null(at(root, path)), "not null: %s", path)

// ---- reading errors ----

static const struct {
    const char *body;
    int status;
    const char *message, *type, *code;
} SHAPES[] = {
    {"{\"error\":{\"message\":\"Bad\",\"type\":\"t\",\"param\":null,\"code\":\"c\"}}", 400, "Bad",
     "t", "c"},
    {"{\"error\":{\"message\":\"Bad\",\"code\":429}}", 429, "Bad", "", "429"},
    {"{\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\",\"message\":\"Overloaded\"}}",
     529, "Overloaded", "overloaded_error", ""},
    {"{\"detail\":\"Not authenticated\"}", 403, "Not authenticated", "", ""},
    {"{\"detail\":[{\"loc\":[\"body\"],\"msg\":\"field required\",\"type\":\"missing\"}]}", 422,
     "field required", "", ""},
    {"{\"detail\":{\"error\":\"not_found\",\"message\":\"No such thing\"}}", 404, "No such thing",
     "", "not_found"},
    {"[{\"error\":{\"code\":429,\"message\":\"Quota\",\"status\":\"RESOURCE_EXHAUSTED\"}}]", 429,
     "Quota", "RESOURCE_EXHAUSTED", "429"},
    {"{\"object\":\"error\",\"message\":\"Bad model\",\"type\":\"invalid_model\",\"code\":1500}",
     400, "Bad model", "invalid_model", "1500"},
    {"{\"error\":\"invalid_grant\",\"error_description\":\"It expired\"}", 400, "It expired", "",
     "invalid_grant"},
    {"{\"error\":\"model not loaded\"}", 500, "model not loaded", "", ""},
    {"{\"message\":\"Forbidden\"}", 403, "Forbidden", "", ""},
    {"\"just text\"", 500, "just text", "", ""},
    {"<html><head><title>502 Bad Gateway</title></head><body><h1>x</h1></body></html>", 502,
     "502 Bad Gateway", "", ""},
    {"  <!DOCTYPE html><style>p{}</style><body><p>Down &amp;\n out</p><script>a<b</script></body>",
     503, "Down & out", "", ""},
    {"upstream connect error\r\n\tor disconnect", 503, "upstream connect error or disconnect", "",
     ""},
    {"", 502, "The upstream answered with status 502 and no message.", "", ""},
    {"{}", 500, "The upstream answered with status 500 and no message.", "", ""},
    {"{\"error\":", 500, "The upstream answered with status 500 and no message.", "", ""},
    {"<html></html>", 500, "The upstream answered with status 500 and no message.", "", ""},
    // What must not be told.
    {"{\"error\":{\"message\":\"GET https://u:pw@h.example/v1?key=AIzaSyXXXX failed\"}}", 500,
     "GET https://h.example/v1 failed", "", ""},
    {"{\"error\":{\"message\":\"Incorrect API key provided: sk-abcdef123456. See "
     "https://x.example/keys\"}}",
     401, "Incorrect API key provided: sk-***. See https://x.example/keys", "", ""},
    {"bad path /v1/models?key=AIzaSyD-123456&alt=sse here", 400, "bad path /v1/models here", "",
     ""},
    {"{\"error\":{\"message\":\"org-aBcDeFgHiJ has no access, Authorization: Bearer "
     "abcdefghijk\"}}",
     403, "org-*** has no access, Authorization: Bearer ***", "", ""},
};

START_TEST(test_read_error_shape)
{
    struct dialect_error error;
    dialect_read_error(slice_str(SHAPES[_i].body), SHAPES[_i].status, arena, &error);
    ck_assert_msg(slice_is(error.message, SHAPES[_i].message), "message: %.*s",
                  SLICE_FMT(error.message));
    ck_assert_msg(slice_is(error.type, SHAPES[_i].type), "type: %.*s", SLICE_FMT(error.type));
    ck_assert_msg(slice_is(error.code, SHAPES[_i].code), "code: %.*s", SLICE_FMT(error.code));
    ck_assert_int_eq(error.status, SHAPES[_i].status);
}
END_TEST

START_TEST(test_read_error_is_cut_at_a_character)
{
    char body[4096] = "{\"error\":{\"message\":\"";
    size_t len = strlen(body);
    body[len++] = 'x';
    for (int i = 0; i < 600; i++) {
        memcpy(body + len, "\xe6\x9c\x88", 3);
        len += 3;
    }
    memcpy(body + len, "\"}}", 3);
    struct dialect_error error;
    dialect_read_error(slice_of(body, len + 3), 400, arena, &error);
    ck_assert_uint_le(error.message.len, 512);
    ck_assert_uint_ge(error.message.len, 509);
    ck_assert_uint_eq((error.message.len - 1) % 3, 0);
}
END_TEST

START_TEST(test_error_types)
{
    static const struct {
        enum dialect_id id;
        int status;
        const char *code, *type;
    } ROWS[] = {
        {DIALECT_ANTHROPIC, 400, "", "invalid_request_error"},
        {DIALECT_ANTHROPIC, 422, "", "invalid_request_error"},
        {DIALECT_ANTHROPIC, 401, "", "authentication_error"},
        {DIALECT_ANTHROPIC, 402, "", "billing_error"},
        {DIALECT_ANTHROPIC, 403, "", "permission_error"},
        {DIALECT_ANTHROPIC, 404, "", "not_found_error"},
        {DIALECT_ANTHROPIC, 413, "", "request_too_large"},
        {DIALECT_ANTHROPIC, 429, "", "rate_limit_error"},
        {DIALECT_ANTHROPIC, 500, "", "api_error"},
        {DIALECT_ANTHROPIC, 502, "", "api_error"},
        {DIALECT_ANTHROPIC, 503, "", "overloaded_error"},
        {DIALECT_ANTHROPIC, 504, "", "timeout_error"},
        {DIALECT_ANTHROPIC, 529, "", "overloaded_error"},
        {DIALECT_OPENAI, 401, "invalid_api_key", "invalid_request_error"},
        {DIALECT_OPENAI, 429, "", "rate_limit_exceeded"},
        {DIALECT_OPENAI, 429, "insufficient_quota", "insufficient_quota"},
        {DIALECT_RESPONSES, 500, "", "server_error"},
    };
    for (size_t i = 0; i < sizeof(ROWS) / sizeof(ROWS[0]); i++)
        ck_assert(slice_is(dialect_error_type(ROWS[i].id, ROWS[i].status, slice_str(ROWS[i].code)),
                           ROWS[i].type));
}
END_TEST

START_TEST(test_error_shapes_are_told_apart)
{
    struct slice openai = SLICE_LIT("{\"error\":{\"message\":\"m\",\"code\":\"401\"}}");
    struct slice claude =
        SLICE_LIT("{\"type\":\"error\",\"error\":{\"type\":\"api_error\",\"message\":\"m\"}}");
    static const char *const NEITHER[] = {"",
                                          "{}",
                                          "{\"detail\":\"x\"}",
                                          "<html>",
                                          "[{\"error\":{\"message\":\"m\"}}]",
                                          "{\"error\":\"m\"}"};
    ck_assert(dialect_openai.is_error_shape(openai));
    ck_assert(dialect_responses.is_error_shape(openai));
    ck_assert(!dialect_openai.is_error_shape(claude));
    ck_assert(dialect_anthropic.is_error_shape(claude));
    ck_assert(!dialect_anthropic.is_error_shape(openai));
    for (size_t i = 0; i < sizeof(NEITHER) / sizeof(NEITHER[0]); i++) {
        ck_assert(!dialect_openai.is_error_shape(slice_str(NEITHER[i])));
        ck_assert(!dialect_anthropic.is_error_shape(slice_str(NEITHER[i])));
    }
}
END_TEST

// ---- rendering errors ----

static const struct dialect_error ERROR = {
    .status = 404,
    .code = {"model_not_found", 15},
    .message = {"No \"such\"\nmodel.", 16},
    .request_id = {"req_1", 5},
};

START_TEST(test_render_error_whole)
{
    ck_assert_int_eq(dialect_openai.render_error(&ERROR, &out), 0);
    ck_assert_str_eq(
        arena_copyz(arena, buf_slice(&out)),
        "{\"error\":{\"message\":\"No \\\"such\\\"\\nmodel.\",\"type\":\"invalid_request_error\","
        "\"param\":null,\"code\":\"model_not_found\"}}");
    buf_clear(&out);
    ck_assert_int_eq(dialect_anthropic.render_error(&ERROR, &out), 0);
    ck_assert_str_eq(
        arena_copyz(arena, buf_slice(&out)),
        "{\"type\":\"error\",\"error\":{\"type\":\"not_found_error\",\"message\":"
        "\"No \\\"such\\\"\\nmodel.\",\"details\":{\"error_code\":\"model_not_found\"}},"
        "\"request_id\":\"req_1\"}");
    struct dialect_error foreign = {.status = 500, .type = SLICE_LIT("server_error")};
    buf_clear(&out);
    ck_assert_int_eq(dialect_anthropic.render_error(&foreign, &out), 0);
    ck_assert_int_ge(slice_find(buf_slice(&out), SLICE_LIT("\"api_error\"")), 0);
    // What we render, we take for our own.
    ck_assert(dialect_anthropic.is_error_shape(buf_slice(&out)));
}
END_TEST

START_TEST(test_render_error_context_length)
{
    struct dialect_error error = {.status = 400,
                                  .code = SLICE_LIT("context_length_exceeded"),
                                  .message = SLICE_LIT("Too many tokens.")};
    ck_assert_int_eq(dialect_anthropic.render_error(&error, &out), 0);
    yyjson_doc *doc = parse(buf_slice(&out));
    ck_assert_at_str(yyjson_doc_get_root(doc), "error.message",
                     "prompt is too long: Too many tokens.");
    yyjson_doc_free(doc);
}
END_TEST

START_TEST(test_render_stream_error)
{
    ck_assert_int_eq(dialect_openai.render_stream_error(NULL, &ERROR, &out), 0);
    struct slice text = buf_slice(&out);
    ck_assert(slice_starts(text, "data: {\"error\":{") && slice_ends(text, "}}\n\n"));
    ck_assert_int_lt(slice_find(text, SLICE_LIT("[DONE]")), 0);
    buf_clear(&out);
    ck_assert_int_eq(dialect_anthropic.render_stream_error(NULL, &ERROR, &out), 0);
    text = buf_slice(&out);
    ck_assert(slice_starts(text, "event: error\ndata: {\"type\":\"error\",") &&
              slice_ends(text, "}\n\n"));
}
END_TEST

// ---- taking our own streams apart ----

struct taken {
    yyjson_doc *docs[64];
    char names[64][64];
    size_t count;
    bool is_done;
    struct dialect_reader reader;
};

static int take_event(void *user, const struct sse_event *event)
{
    struct taken *taken = user;
    struct dialect_info info;
    taken->reader.dialect->inspect(&taken->reader, event, &info);
    ck_assert(event->has_data);
    ck_assert(!taken->is_done);
    if (slice_is(event->data, "[DONE]")) {
        taken->is_done = true;
        return 0;
    }
    ck_assert_uint_lt(taken->count, 64);
    snprintf(taken->names[taken->count], 64, "%.*s", SLICE_FMT(event->name));
    taken->docs[taken->count++] = parse(event->data);
    return 0;
}

static void take(struct taken *taken, enum dialect_id id, enum dialect_op op)
{
    struct sse sse;
    memset(taken, 0, sizeof(*taken));
    dialect_reader_init(&taken->reader, id, op);
    sse_init(&sse, 0);
    ck_assert_int_eq(sse_feed(&sse, buf_slice(&out), take_event, taken), 0);
    ck_assert_uint_eq(sse_pending(&sse), 0);
    sse_free(&sse);
}

static yyjson_val *root(const struct taken *taken, size_t i)
{
    ck_assert_uint_lt(i, taken->count);
    return yyjson_doc_get_root(taken->docs[i]);
}

static void take_free(struct taken *taken)
{
    for (size_t i = 0; i < taken->count; i++)
        yyjson_doc_free(taken->docs[i]);
}

START_TEST(test_responses_stream_error)
{
    static const struct {
        int status;
        const char *code;
        bool should_retry;
        const char *want;
    } CODES[] = {{502, "upstream_cut", true, "server_is_overloaded"},
                 {400, "invalid_prompt", false, "invalid_prompt"},
                 {404, "model_not_found", false, "invalid_prompt"},
                 {429, "insufficient_quota", false, "insufficient_quota"},
                 {402, "", false, "insufficient_quota"},
                 {429, "rate_limit", true, "rate_limit_exceeded"},
                 {429, "daily_limit", false, "insufficient_quota"},
                 {400, "context_length_exceeded", false, "context_length_exceeded"}};
    struct taken taken;
    for (size_t i = 0; i < sizeof(CODES) / sizeof(CODES[0]); i++) {
        struct dialect_error error = {.status = CODES[i].status,
                                      .code = slice_str(CODES[i].code),
                                      .should_retry = CODES[i].should_retry,
                                      .message = SLICE_LIT("m")};
        buf_clear(&out);
        // Nothing was sent: the SDKs want response.created first.
        ck_assert_int_eq(dialect_responses.render_stream_error(NULL, &error, &out), 0);
        take(&taken, DIALECT_RESPONSES, DIALECT_OP_RESPONSES);
        ck_assert_uint_eq(taken.count, 2);
        ck_assert_at_str(root(&taken, 0), "type", "response.created");
        ck_assert_at_int(root(&taken, 0), "sequence_number", 0);
        ck_assert_str_eq(taken.names[1], "response.failed");
        ck_assert_at_int(root(&taken, 1), "sequence_number", 1);
        ck_assert_at_str(root(&taken, 1), "response.status", "failed");
        ck_assert_at_str(root(&taken, 1), "response.object", "response");
        ck_assert_at_str(root(&taken, 1), "response.error.code", CODES[i].want);
        ck_assert(taken.reader.has_error && taken.reader.has_end);
        take_free(&taken);
    }
    struct dialect_reader reader;
    dialect_reader_init(&reader, DIALECT_RESPONSES, DIALECT_OP_RESPONSES);
    struct sse_event created = {
        .has_data = true,
        .data = SLICE_LIT("{\"type\":\"response.created\",\"sequence_number\":41,\"response\":{"
                          "\"id\":\"resp_7\",\"created_at\":1790000000,\"model\":\"m-1\"}}")};
    struct dialect_info info;
    dialect_responses.inspect(&reader, &created, &info);
    buf_clear(&out);
    ck_assert_int_eq(dialect_responses.render_stream_error(&reader, &ERROR, &out), 0);
    take(&taken, DIALECT_RESPONSES, DIALECT_OP_RESPONSES);
    ck_assert_uint_eq(taken.count, 1);
    ck_assert_at_int(root(&taken, 0), "sequence_number", 42);
    ck_assert_at_str(root(&taken, 0), "response.id", "resp_7");
    ck_assert_at_str(root(&taken, 0), "response.model", "m-1");
    ck_assert_at_int(root(&taken, 0), "response.created_at", 1790000000);
    take_free(&taken);
}
END_TEST

// An answer with every kind of block.
static const struct event ANSWER[] = {
    {.kind = EVENT_START, .id = {"x_42", 4}, .model = {"demo", 4}},
    {.kind = EVENT_BLOCK_START, .block = EVENT_BLOCK_THINKING, .index = 0},
    {.kind = EVENT_BLOCK_DELTA, .index = 0, .text = {"hm", 2}},
    {.kind = EVENT_BLOCK_END, .index = 0},
    {.kind = EVENT_BLOCK_START, .block = EVENT_BLOCK_TEXT, .index = 1},
    {.kind = EVENT_BLOCK_DELTA, .index = 1, .text = {"Hel\"", 4}},
    {.kind = EVENT_BLOCK_DELTA, .index = 1, .text = {"", 0}},
    {.kind = EVENT_BLOCK_DELTA, .index = 1, .text = {"lo", 2}},
    {.kind = EVENT_BLOCK_END, .index = 1},
    {.kind = EVENT_BLOCK_START,
     .block = EVENT_BLOCK_TOOL,
     .index = 2,
     .id = {"call_1", 6},
     .name = {"dig", 3}},
    {.kind = EVENT_BLOCK_DELTA, .index = 2, .text = {"{\"a\":", 5}},
    {.kind = EVENT_BLOCK_DELTA, .index = 2, .text = {"1}", 2}},
    {.kind = EVENT_BLOCK_END, .index = 2},
    {.kind = EVENT_USAGE,
     .usage = {.input = 10, .cache_read = 5, .output = 7, .reasoning = 2, .flags = USAGE_REPORTED}},
    {.kind = EVENT_BLOCK_START,
     .block = EVENT_BLOCK_TOOL,
     .index = 3,
     .id = {"call_2", 6},
     .name = {"rest", 4}},
    {.kind = EVENT_BLOCK_END, .index = 3},
    {.kind = EVENT_FINISH, .finish = EVENT_FINISH_TOOL},
};
#define ANSWER_COUNT (sizeof(ANSWER) / sizeof(ANSWER[0]))

static void emit_all(enum dialect_id id, enum dialect_op op, bool include_usage,
                     const struct event *events, size_t count)
{
    struct dialect_writer writer;
    dialect_writer_init(&writer, id, op, arena);
    writer.include_usage = include_usage;
    writer.created_s = 1790000000;
    buf_clear(&out);
    for (size_t i = 0; i < count; i++)
        ck_assert_int_eq(writer.dialect->emit(&writer, &events[i], &out), 0);
    dialect_writer_free(&writer);
}

static yyjson_doc *emit_body(enum dialect_id id, enum dialect_op op, const struct event *events,
                             size_t count)
{
    struct dialect_writer writer;
    dialect_writer_init(&writer, id, op, arena);
    writer.created_s = 1790000000;
    buf_clear(&out);
    ck_assert_int_eq(writer.dialect->emit_whole(&writer, events, count, &out), 0);
    dialect_writer_free(&writer);
    return parse(buf_slice(&out));
}

static void check_usage_back(const struct dialect_reader *reader)
{
    struct usage usage;
    ck_assert(usage_meter_result(&reader->meter, &usage));
    ck_assert_uint_eq(usage.input, 10);
    ck_assert_uint_eq(usage.cache_read, 5);
    ck_assert_uint_eq(usage_completion(&usage), 9);
}

START_TEST(test_emit_chat)
{
    struct taken taken;
    emit_all(DIALECT_OPENAI, DIALECT_OP_CHAT, true, ANSWER, ANSWER_COUNT);
    take(&taken, DIALECT_OPENAI, DIALECT_OP_CHAT);
    ck_assert(taken.is_done);
    char text[64] = "", thinking[64] = "", arguments[2][64] = {"", ""};
    int roles = 0, finishes = 0, ids = 0;
    for (size_t i = 0; i < taken.count; i++) {
        yyjson_val *chunk = root(&taken, i), *delta = at(chunk, "choices.0.delta"), *val;
        ck_assert_str_eq(taken.names[i], ""); // no event names in this dialect
        ck_assert_at_str(chunk, "id", "x_42");
        ck_assert_at_str(chunk, "object", "chat.completion.chunk");
        ck_assert_at_int(chunk, "created", 1790000000);
        ck_assert_at_str(chunk, "model", "demo");
        if (i + 1 < taken.count)
            ck_assert_at_null(chunk, "usage");
        if (at(delta, "role") != NULL) {
            ck_assert_uint_eq(i, 0);
            ck_assert_at_str(delta, "content", "");
            roles++;
        }
        if ((val = at(delta, "content")) != NULL)
            strcat(text, yyjson_get_str(val));
        if ((val = at(delta, "reasoning_content")) != NULL)
            strcat(thinking, yyjson_get_str(val));
        if ((val = at(delta, "tool_calls.0")) != NULL) {
            int index = yyjson_get_int(at(val, "index"));
            ck_assert_int_ge(index, 0);
            ck_assert_int_lt(index, 2);
            strcat(arguments[index], yyjson_get_str(at(val, "function.arguments")));
            ids += at(val, "id") != NULL;
            ck_assert((at(val, "id") == NULL) == (at(val, "function.name") == NULL));
        }
        finishes += yyjson_is_str(at(chunk, "choices.0.finish_reason"));
    }
    ck_assert_str_eq(text, "Hel\"lo");
    ck_assert_str_eq(thinking, "hm");
    ck_assert_str_eq(arguments[0], "{\"a\":1}");
    ck_assert_str_eq(arguments[1], "{}");
    ck_assert_int_eq(roles, 1);
    ck_assert_int_eq(finishes, 1);
    ck_assert_int_eq(ids, 2);
    yyjson_val *last = root(&taken, taken.count - 1);
    ck_assert(yyjson_is_arr(at(last, "choices")));
    ck_assert_uint_eq(yyjson_arr_size(at(last, "choices")), 0);
    ck_assert_at_int(last, "usage.prompt_tokens", 15);
    ck_assert_at_int(last, "usage.completion_tokens", 9);
    ck_assert_at_int(last, "usage.total_tokens", 24);
    ck_assert_at_int(last, "usage.prompt_tokens_details.cached_tokens", 5);
    ck_assert_str_eq(taken.reader.finish, "tool_calls");
    check_usage_back(&taken.reader);
    take_free(&taken);
    // Not asked for: no usage chunk, no usage members.
    emit_all(DIALECT_OPENAI, DIALECT_OP_CHAT, false, ANSWER, ANSWER_COUNT);
    ck_assert_int_lt(slice_find(buf_slice(&out), SLICE_LIT("\"usage\"")), 0);
}
END_TEST

START_TEST(test_emit_chat_whole)
{
    yyjson_doc *doc = emit_body(DIALECT_OPENAI, DIALECT_OP_CHAT, ANSWER, ANSWER_COUNT);
    yyjson_val *body = yyjson_doc_get_root(doc);
    ck_assert_at_str(body, "object", "chat.completion");
    ck_assert_at_str(body, "choices.0.message.role", "assistant");
    ck_assert_at_str(body, "choices.0.message.content", "Hel\"lo");
    ck_assert_at_str(body, "choices.0.message.reasoning_content", "hm");
    ck_assert_at_null(body, "choices.0.message.refusal");
    ck_assert_at_str(body, "choices.0.message.tool_calls.0.function.arguments", "{\"a\":1}");
    ck_assert_at_str(body, "choices.0.message.tool_calls.1.id", "call_2");
    ck_assert_at_str(body, "choices.0.message.tool_calls.1.function.arguments", "{}");
    ck_assert_at_str(body, "choices.0.finish_reason", "tool_calls");
    ck_assert_at_int(body, "usage.total_tokens", 24);
    yyjson_doc_free(doc);
}
END_TEST

static const struct event REFUSAL[] = {
    {.kind = EVENT_START, .model = {"demo", 4}},
    {.kind = EVENT_BLOCK_START, .block = EVENT_BLOCK_REFUSAL, .index = 0},
    {.kind = EVENT_BLOCK_DELTA, .index = 0, .text = {"No.", 3}},
    {.kind = EVENT_BLOCK_END, .index = 0},
    {.kind = EVENT_FINISH, .finish = EVENT_FINISH_STOP},
};

START_TEST(test_emit_refusals)
{
    yyjson_doc *doc = emit_body(DIALECT_OPENAI, DIALECT_OP_CHAT, REFUSAL, 5);
    ck_assert_at_null(yyjson_doc_get_root(doc), "choices.0.message.content");
    ck_assert_at_str(yyjson_doc_get_root(doc), "choices.0.message.refusal", "No.");
    yyjson_doc_free(doc);
    doc = emit_body(DIALECT_ANTHROPIC, DIALECT_OP_MESSAGES, REFUSAL, 5);
    ck_assert_at_str(yyjson_doc_get_root(doc), "content.0.text", "No.");
    ck_assert_at_str(yyjson_doc_get_root(doc), "stop_reason", "refusal");
    yyjson_doc_free(doc);
    doc = emit_body(DIALECT_RESPONSES, DIALECT_OP_RESPONSES, REFUSAL, 5);
    ck_assert_at_str(yyjson_doc_get_root(doc), "output.0.content.0.refusal", "No.");
    ck_assert_at_str(yyjson_doc_get_root(doc), "status", "completed");
    yyjson_doc_free(doc);
    struct taken taken;
    emit_all(DIALECT_OPENAI, DIALECT_OP_CHAT, false, REFUSAL, 5);
    take(&taken, DIALECT_OPENAI, DIALECT_OP_CHAT);
    ck_assert_at_str(root(&taken, 1), "choices.0.delta.refusal", "No.");
    take_free(&taken);
    emit_all(DIALECT_RESPONSES, DIALECT_OP_RESPONSES, false, REFUSAL, 5);
    take(&taken, DIALECT_RESPONSES, DIALECT_OP_RESPONSES);
    ck_assert_str_eq(taken.names[4], "response.refusal.delta");
    ck_assert_str_eq(taken.names[5], "response.refusal.done");
    take_free(&taken);
}
END_TEST

START_TEST(test_emit_completions)
{
    static const struct event EVENTS[] = {
        {.kind = EVENT_START, .id = {"cmpl-1", 6}, .model = {"demo", 4}},
        {.kind = EVENT_BLOCK_START, .block = EVENT_BLOCK_TEXT, .index = 0},
        {.kind = EVENT_BLOCK_DELTA, .index = 0, .text = {"a", 1}},
        {.kind = EVENT_BLOCK_DELTA, .index = 0, .text = {"b", 1}},
        {.kind = EVENT_BLOCK_END, .index = 0},
        {.kind = EVENT_USAGE, .usage = {.input = 1, .output = 2, .flags = USAGE_REPORTED}},
        {.kind = EVENT_FINISH, .finish = EVENT_FINISH_LENGTH},
    };
    struct taken taken;
    emit_all(DIALECT_OPENAI, DIALECT_OP_COMPLETIONS, true, EVENTS, 7);
    take(&taken, DIALECT_OPENAI, DIALECT_OP_COMPLETIONS);
    ck_assert_uint_eq(taken.count, 4);
    ck_assert_at_str(root(&taken, 0), "object", "text_completion");
    ck_assert_at_str(root(&taken, 0), "choices.0.text", "a");
    ck_assert_ptr_null(at(root(&taken, 0), "choices.0.delta"));
    ck_assert_at_str(root(&taken, 2), "choices.0.finish_reason", "length");
    ck_assert_at_int(root(&taken, 3), "usage.total_tokens", 3);
    ck_assert(taken.is_done);
    ck_assert_uint_eq(taken.reader.text_bytes, 2);
    take_free(&taken);
    yyjson_doc *doc = emit_body(DIALECT_OPENAI, DIALECT_OP_COMPLETIONS, EVENTS, 7);
    ck_assert_at_str(yyjson_doc_get_root(doc), "choices.0.text", "ab");
    ck_assert_at_str(yyjson_doc_get_root(doc), "choices.0.finish_reason", "length");
    yyjson_doc_free(doc);
}
END_TEST

START_TEST(test_emit_claude)
{
    struct taken taken;
    emit_all(DIALECT_ANTHROPIC, DIALECT_OP_MESSAGES, false, ANSWER, ANSWER_COUNT);
    take(&taken, DIALECT_ANTHROPIC, DIALECT_OP_MESSAGES);
    ck_assert(!taken.is_done);
    int open = -1, next = 0;
    for (size_t i = 0; i < taken.count; i++) {
        yyjson_val *event = root(&taken, i);
        const char *type = yyjson_get_str(at(event, "type"));
        ck_assert_str_eq(taken.names[i], type); // SDKs dispatch on the name
        ck_assert_int_eq(strcmp(type, "message_start") == 0, i == 0);
        ck_assert_int_eq(strcmp(type, "message_stop") == 0, i + 1 == taken.count);
        if (strcmp(type, "content_block_start") == 0) {
            ck_assert_int_eq(open, -1);
            open = yyjson_get_int(at(event, "index"));
            ck_assert_int_eq(open, next++);
        } else if (strncmp(type, "content_block_", 14) == 0) {
            ck_assert_int_eq(yyjson_get_int(at(event, "index")), open);
            if (strcmp(type, "content_block_stop") == 0)
                open = -1;
        }
    }
    ck_assert_at_str(root(&taken, 0), "message.role", "assistant");
    ck_assert_at_null(root(&taken, 0), "message.stop_reason");
    ck_assert(yyjson_is_arr(at(root(&taken, 0), "message.content")));
    ck_assert(yyjson_is_int(at(root(&taken, 0), "message.usage.output_tokens")));
    ck_assert_at_str(root(&taken, 1), "content_block.type", "thinking");
    ck_assert_at_str(root(&taken, 1), "content_block.signature", "");
    ck_assert_at_str(root(&taken, 2), "delta.thinking", "hm");
    ck_assert_at_str(root(&taken, 4), "content_block.text", "");
    ck_assert_at_str(root(&taken, 5), "delta.text", "Hel\"");
    ck_assert_at_str(root(&taken, 8), "content_block.type", "tool_use");
    ck_assert(yyjson_is_obj(at(root(&taken, 8), "content_block.input")));
    ck_assert_at_str(root(&taken, 8), "content_block.id", "call_1");
    ck_assert_at_str(root(&taken, 9), "delta.partial_json", "{\"a\":");
    yyjson_val *delta = root(&taken, taken.count - 2);
    ck_assert_at_str(delta, "type", "message_delta");
    ck_assert_at_str(delta, "delta.stop_reason", "tool_use");
    ck_assert_at_int(delta, "usage.input_tokens", 10);
    ck_assert_at_int(delta, "usage.cache_read_input_tokens", 5);
    ck_assert_at_int(delta, "usage.output_tokens", 9);
    check_usage_back(&taken.reader);
    take_free(&taken);

    yyjson_doc *doc = emit_body(DIALECT_ANTHROPIC, DIALECT_OP_MESSAGES, ANSWER, ANSWER_COUNT);
    yyjson_val *body = yyjson_doc_get_root(doc);
    ck_assert_at_str(body, "type", "message");
    ck_assert_at_str(body, "content.0.thinking", "hm");
    ck_assert_at_str(body, "content.1.text", "Hel\"lo");
    ck_assert_at_int(body, "content.2.input.a", 1);
    ck_assert_uint_eq(yyjson_obj_size(at(body, "content.3.input")), 0);
    ck_assert_at_str(body, "stop_reason", "tool_use");
    ck_assert_at_null(body, "stop_sequence");
    ck_assert_at_int(body, "usage.output_tokens", 9);
    yyjson_doc_free(doc);
}
END_TEST

START_TEST(test_emit_responses)
{
    static const char *const TYPES[] = {
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.reasoning_summary_part.added",
        "response.reasoning_summary_text.delta",
        "response.reasoning_summary_text.done",
        "response.reasoning_summary_part.done",
        "response.output_item.done",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.output_item.added",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.output_item.done",
        "response.output_item.added",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.output_item.done",
        "response.completed",
    };
    struct taken taken;
    emit_all(DIALECT_RESPONSES, DIALECT_OP_RESPONSES, false, ANSWER, ANSWER_COUNT);
    take(&taken, DIALECT_RESPONSES, DIALECT_OP_RESPONSES);
    ck_assert_uint_eq(taken.count, sizeof(TYPES) / sizeof(TYPES[0]));
    for (size_t i = 0; i < taken.count; i++) {
        ck_assert_at_str(root(&taken, i), "type", TYPES[i]);
        ck_assert_str_eq(taken.names[i], TYPES[i]);
        ck_assert_at_int(root(&taken, i), "sequence_number", (int)i);
    }
    // The same item id in all events of an item; done events carry the full text.
    const char *id = yyjson_get_str(at(root(&taken, 8), "item.id"));
    ck_assert_at_str(root(&taken, 10), "item_id", id);
    ck_assert_at_str(root(&taken, 12), "item_id", id);
    ck_assert_at_str(root(&taken, 14), "item.id", id);
    ck_assert_at_int(root(&taken, 12), "output_index", 1);
    ck_assert_at_str(root(&taken, 12), "text", "Hel\"lo");
    ck_assert_at_str(root(&taken, 13), "part.text", "Hel\"lo");
    ck_assert_at_str(root(&taken, 14), "item.content.0.text", "Hel\"lo");
    ck_assert_at_str(root(&taken, 14), "item.status", "completed");
    ck_assert_at_str(root(&taken, 15), "item.arguments", "");
    ck_assert_at_str(root(&taken, 15), "item.call_id", "call_1");
    ck_assert_at_str(root(&taken, 18), "arguments", "{\"a\":1}");
    ck_assert_at_str(root(&taken, 19), "item.arguments", "{\"a\":1}");
    ck_assert_at_str(root(&taken, 23), "item.arguments", "{}");
    yyjson_val *last = at(root(&taken, 24), "response");
    ck_assert_at_str(last, "status", "completed");
    ck_assert_uint_eq(yyjson_arr_size(at(last, "output")), 4);
    ck_assert_at_str(last, "output.0.summary.0.text", "hm");
    ck_assert_at_str(last, "output.1.content.0.text", "Hel\"lo");
    ck_assert_at_str(last, "output.2.name", "dig");
    ck_assert_at_int(last, "usage.input_tokens", 15);
    ck_assert_at_int(last, "usage.output_tokens_details.reasoning_tokens", 2);
    check_usage_back(&taken.reader);
    ck_assert(taken.reader.dialect->may_end(&taken.reader));
    take_free(&taken);

    yyjson_doc *doc = emit_body(DIALECT_RESPONSES, DIALECT_OP_RESPONSES, ANSWER, ANSWER_COUNT);
    ck_assert_at_str(yyjson_doc_get_root(doc), "object", "response");
    ck_assert_at_str(yyjson_doc_get_root(doc), "output.3.call_id", "call_2");
    ck_assert_at_int(yyjson_doc_get_root(doc), "usage.total_tokens", 24);
    yyjson_doc_free(doc);
}
END_TEST

START_TEST(test_emit_finishes)
{
    static const struct {
        enum event_finish finish;
        const char *chat, *claude, *responses;
    } ROWS[] = {
        {EVENT_FINISH_STOP, "stop", "end_turn", "completed"},
        {EVENT_FINISH_LENGTH, "length", "max_tokens", "max_output_tokens"},
        {EVENT_FINISH_FILTER, "content_filter", "refusal", "content_filter"},
        {EVENT_FINISH_STOP_SEQUENCE, "stop", "stop_sequence", "completed"},
    };
    for (size_t i = 0; i < sizeof(ROWS) / sizeof(ROWS[0]); i++) {
        struct event events[] = {
            {.kind = EVENT_START},
            {.kind = EVENT_FINISH, .finish = ROWS[i].finish, .stop_sequence = SLICE_LIT("END")}};
        struct taken taken;
        emit_all(DIALECT_OPENAI, DIALECT_OP_CHAT, false, events, 2);
        take(&taken, DIALECT_OPENAI, DIALECT_OP_CHAT);
        ck_assert_str_eq(taken.reader.finish, ROWS[i].chat);
        take_free(&taken);
        emit_all(DIALECT_ANTHROPIC, DIALECT_OP_MESSAGES, false, events, 2);
        take(&taken, DIALECT_ANTHROPIC, DIALECT_OP_MESSAGES);
        ck_assert_str_eq(taken.reader.finish, ROWS[i].claude);
        take_free(&taken);
        emit_all(DIALECT_RESPONSES, DIALECT_OP_RESPONSES, false, events, 2);
        take(&taken, DIALECT_RESPONSES, DIALECT_OP_RESPONSES);
        ck_assert_str_eq(taken.reader.finish, ROWS[i].responses);
        take_free(&taken);
    }
}
END_TEST

START_TEST(test_emit_errors_end_the_stream)
{
    static const struct {
        enum dialect_id id;
        enum dialect_op op;
    } ALL[] = {{DIALECT_OPENAI, DIALECT_OP_CHAT},
               {DIALECT_ANTHROPIC, DIALECT_OP_MESSAGES},
               {DIALECT_RESPONSES, DIALECT_OP_RESPONSES}};
    for (int i = 0; i < 3; i++) {
        struct event events[] = {{.kind = EVENT_START}, {.kind = EVENT_ERROR, .error = &ERROR}};
        struct taken taken;
        emit_all(ALL[i].id, ALL[i].op, true, events, 2);
        take(&taken, ALL[i].id, ALL[i].op);
        ck_assert(taken.reader.has_error && !taken.is_done && !taken.reader.has_finish);
        take_free(&taken);
        yyjson_doc *doc = emit_body(ALL[i].id, ALL[i].op, events, 2);
        ck_assert(dialect_get(ALL[i].id)->is_error_shape(buf_slice(&out)));
        yyjson_doc_free(doc);
        // Nothing may follow, and what is out of order writes nothing.
        struct dialect_writer writer;
        dialect_writer_init(&writer, ALL[i].id, ALL[i].op, arena);
        buf_clear(&out);
        struct event delta = {.kind = EVENT_BLOCK_DELTA, .text = SLICE_LIT("x")};
        struct event finish = {.kind = EVENT_FINISH};
        ck_assert_int_eq(writer.dialect->emit(&writer, &delta, &out), GW_EINVAL);
        ck_assert_int_eq(writer.dialect->emit(&writer, &finish, &out), GW_EINVAL);
        ck_assert_uint_eq(out.len, 0);
        ck_assert_int_eq(writer.dialect->emit(&writer, &events[1], &out), 0);
        size_t len = out.len;
        ck_assert_int_eq(writer.dialect->emit(&writer, &events[0], &out), GW_EINVAL);
        ck_assert_uint_eq(out.len, len);
        dialect_writer_free(&writer);
    }
}
END_TEST

START_TEST(test_emit_refuses_what_a_call_cannot_carry)
{
    struct dialect_writer writer;
    buf_clear(&out);
    dialect_writer_init(&writer, DIALECT_OPENAI, DIALECT_OP_EMBEDDINGS, arena);
    ck_assert_int_eq(writer.dialect->emit(&writer, &ANSWER[0], &out), GW_EINVAL);
    ck_assert_int_eq(writer.dialect->emit_whole(&writer, ANSWER, ANSWER_COUNT, &out), GW_EINVAL);
    dialect_writer_init(&writer, DIALECT_OPENAI, DIALECT_OP_COMPLETIONS, arena);
    ck_assert_int_eq(writer.dialect->emit_whole(&writer, ANSWER, ANSWER_COUNT, &out), GW_EINVAL);
    ck_assert_uint_eq(out.len, 0);
}
END_TEST

// A buf with a cap: an event is written whole or not at all, and can be tried again.
START_TEST(test_emit_is_all_or_nothing)
{
    static const struct {
        enum dialect_id id;
        enum dialect_op op;
    } ALL[] = {{DIALECT_OPENAI, DIALECT_OP_CHAT},
               {DIALECT_ANTHROPIC, DIALECT_OP_MESSAGES},
               {DIALECT_RESPONSES, DIALECT_OP_RESPONSES}};
    for (int i = 0; i < 3; i++) {
        emit_all(ALL[i].id, ALL[i].op, true, ANSWER, ANSWER_COUNT);
        struct slice want = arena_copy(arena, buf_slice(&out));
        for (size_t cap = 1; cap < want.len; cap += 7) {
            struct dialect_writer writer;
            struct buf small = BUF_INIT(cap);
            dialect_writer_init(&writer, ALL[i].id, ALL[i].op, arena);
            writer.include_usage = true;
            writer.created_s = 1790000000;
            for (size_t k = 0; k < ANSWER_COUNT; k++) {
                size_t before = small.len;
                int err = writer.dialect->emit(&writer, &ANSWER[k], &small);
                if (err != 0) {
                    ck_assert_int_eq(err, GW_ETOOBIG);
                    ck_assert_uint_eq(small.len, before);
                    small.cap = 0;
                    ck_assert_int_eq(writer.dialect->emit(&writer, &ANSWER[k], &small), 0);
                }
            }
            ck_assert(slice_eq(buf_slice(&small), want));
            buf_free(&small);
            dialect_writer_free(&writer);
        }
    }
}
END_TEST

START_TEST(test_names)
{
    ck_assert_ptr_null(dialect_get(DIALECT_NONE));
    ck_assert_ptr_eq(dialect_get(DIALECT_RESPONSES), &dialect_responses);
    ck_assert_ptr_eq(dialect_by_name(SLICE_LIT("claude")), &dialect_anthropic);
    ck_assert_ptr_eq(dialect_by_name(SLICE_LIT("openai")), &dialect_openai);
    ck_assert_ptr_null(dialect_by_name(SLICE_LIT("grpc")));
    for (int id = 1; id < DIALECT_COUNT; id++) {
        const struct dialect *dialect = dialect_get((enum dialect_id)id);
        ck_assert_ptr_nonnull(dialect);
        ck_assert_int_eq(dialect->id, id);
    }
}
END_TEST

START_TEST(test_long_names_are_cut_safely)
{
    char data[1024];
    char model[400];
    memset(model, 'm', sizeof(model));
    memcpy(model + 126, "\xe6\x9c\x88", 3); // a character across the border at 127
    model[399] = '\0';
    snprintf(data, sizeof(data), "{\"model\":\"%s\",\"choices\":[{\"finish_reason\":\"%s\"}]}",
             model, model);
    struct dialect_reader reader;
    struct dialect_info info;
    struct sse_event event = {.has_data = true, .data = slice_str(data)};
    dialect_reader_init(&reader, DIALECT_OPENAI, DIALECT_OP_CHAT);
    dialect_openai.inspect(&reader, &event, &info);
    ck_assert_uint_eq(strlen(reader.model), 126);
    ck_assert_uint_eq(strlen(reader.finish), 47);
    ck_assert_int_eq(info.class, DIALECT_EVENT_CONTENT);
}
END_TEST

START_TEST(test_other_calls_of_openai)
{
    struct dialect_reader reader;
    struct dialect_info info;
    struct usage usage;
    struct sse_event event = {
        .has_data = true,
        .data = SLICE_LIT("{\"type\":\"transcript.text.done\",\"text\":\"x\",\"usage\":{"
                          "\"input_tokens\":14,\"input_token_details\":{\"audio_tokens\":12},"
                          "\"output_tokens\":3,\"total_tokens\":17}}")};
    dialect_reader_init(&reader, DIALECT_OPENAI, DIALECT_OP_OTHER);
    dialect_openai.inspect(&reader, &event, &info);
    ck_assert_int_eq(info.class, DIALECT_EVENT_CONTENT);
    ck_assert(usage_meter_result(&reader.meter, &usage));
    ck_assert_uint_eq(usage.input, 2);
    ck_assert_uint_eq(usage.audio_in, 12);
    ck_assert_uint_eq(usage.output, 3);
    ck_assert(dialect_openai.may_end(&reader));
    // The same in a chat stream is nothing we know.
    dialect_reader_init(&reader, DIALECT_OPENAI, DIALECT_OP_CHAT);
    dialect_openai.inspect(&reader, &event, &info);
    ck_assert_int_eq(info.class, DIALECT_EVENT_NOISE);
    ck_assert(!dialect_openai.may_end(&reader));
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("dialect");
    TCase *tcase = tcase_create("dialect");
    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_add_loop_test(tcase, test_read_error_shape, 0, (int)(sizeof(SHAPES) / sizeof(SHAPES[0])));
    tcase_add_test(tcase, test_read_error_is_cut_at_a_character);
    tcase_add_test(tcase, test_error_types);
    tcase_add_test(tcase, test_error_shapes_are_told_apart);
    tcase_add_test(tcase, test_render_error_whole);
    tcase_add_test(tcase, test_render_error_context_length);
    tcase_add_test(tcase, test_render_stream_error);
    tcase_add_test(tcase, test_responses_stream_error);
    tcase_add_test(tcase, test_emit_chat);
    tcase_add_test(tcase, test_emit_chat_whole);
    tcase_add_test(tcase, test_emit_refusals);
    tcase_add_test(tcase, test_emit_completions);
    tcase_add_test(tcase, test_emit_claude);
    tcase_add_test(tcase, test_emit_responses);
    tcase_add_test(tcase, test_emit_finishes);
    tcase_add_test(tcase, test_emit_errors_end_the_stream);
    tcase_add_test(tcase, test_emit_refuses_what_a_call_cannot_carry);
    tcase_add_test(tcase, test_emit_is_all_or_nothing);
    tcase_add_test(tcase, test_other_calls_of_openai);
    tcase_add_test(tcase, test_names);
    tcase_add_test(tcase, test_long_names_are_cut_safely);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_set_fork_status(runner, CK_NOFORK);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
