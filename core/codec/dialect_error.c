// Errors: those of upstreams read in any shape, in bodies and in streams, and the types that stand
// for them. An error's text is cleaned before anybody sees it: no markup, no control characters, no
// query strings or keys.
#include "codec/dialect.h"
#include "codec/json.h"
#include <stdlib.h>

#define ERROR_MESSAGE_MAX 512
// Of an HTML page or a text, only this much is looked at.
#define ERROR_TEXT_SCAN 16384

// ---- cleaning an error's text ----

static bool is_token_end(char c)
{
    return (unsigned char)c <= ' ' || c == '"' || c == '\'' || c == '<' || c == '>' || c == '(' ||
           c == ')' || c == '`' || c == ',';
}

static bool is_key_char(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
           c == '-' || c == '*' || c == '.';
}

// A word that looks like a credential or the name of an account: what is kept of it, else 0.
static size_t secret_prefix(struct slice token)
{
    static const char *const PREFIXES[] = {"sk-",  "sk_",   "rk-",  "pk-",   "gsk_",
                                           "xai-", "AIza",  "org-", "proj_", "Bearer-",
                                           "eyJ",  "ya29.", "r8_",  "hf_"};
    for (size_t i = 0; i < sizeof(PREFIXES) / sizeof(PREFIXES[0]); i++) {
        size_t len = strlen(PREFIXES[i]);
        if (token.len >= len + 6 && memcmp(token.ptr, PREFIXES[i], len) == 0)
            return len;
    }
    return 0;
}

struct cleaner {
    char *out;
    size_t size, len;
    bool is_full;
};

static void clean_put(struct cleaner *cleaner, const char *bytes, size_t len)
{
    for (size_t i = 0; i < len && !cleaner->is_full; i++) {
        char c = bytes[i];
        if ((unsigned char)c < ' ' || c == 0x7F)
            c = ' ';
        if (c == ' ' && (cleaner->len == 0 || cleaner->out[cleaner->len - 1] == ' '))
            continue;
        if (cleaner->len + 1 >= cleaner->size) {
            cleaner->is_full = true;
            cleaner->len = dialect_cut(cleaner->out, cleaner->len);
            return;
        }
        cleaner->out[cleaner->len++] = c;
    }
}

static void clean_token(struct cleaner *cleaner, struct slice token)
{
    long scheme = slice_find(token, SLICE_LIT("://"));
    const char *query = memchr(token.ptr, '?', token.len);
    if (scheme >= 0) {
        // user:password@ before the host goes; the query and fragment go.
        const char *host = token.ptr + scheme + 3, *end = token.ptr + token.len;
        const char *stop = host;
        while (stop < end && *stop != '/' && *stop != '?' && *stop != '#')
            stop++;
        const char *at = NULL;
        for (const char *p = host; p < stop; p++)
            if (*p == '@')
                at = p;
        const char *cut = host;
        while (cut < end && *cut != '?' && *cut != '#')
            cut++;
        clean_put(cleaner, token.ptr, (size_t)(host - token.ptr));
        if (at != NULL)
            host = at + 1;
        clean_put(cleaner, host, (size_t)(cut - host));
        return;
    }
    if (query != NULL && memchr(query, '=', (size_t)(token.ptr + token.len - query)) != NULL) {
        clean_put(cleaner, token.ptr, (size_t)(query - token.ptr));
        return;
    }
    // Runs of key characters inside the token ("key=sk-…", "sk-….").
    const char *p = token.ptr, *end = token.ptr + token.len;
    while (p < end) {
        const char *start = p;
        while (p < end && is_key_char(*p))
            p++;
        size_t kept = secret_prefix(slice_of(start, (size_t)(p - start)));
        if (kept > 0) {
            clean_put(cleaner, start, kept);
            clean_put(cleaner, "***", 3);
            if (p[-1] == '.')
                clean_put(cleaner, ".", 1);
        } else {
            clean_put(cleaner, start, (size_t)(p - start));
        }
        if (p < end)
            clean_put(cleaner, p++, 1);
    }
}

// Writes a cleaned copy: one line, no queries, no keys, valid UTF-8 border, NUL-terminated.
static size_t clean_text(struct slice text, char *out, size_t size)
{
    struct cleaner cleaner = {.out = out, .size = size};
    const char *p = text.ptr, *end = text.ptr + text.len;
    bool is_after_bearer = false;
    while (p < end && !cleaner.is_full) {
        const char *start = p;
        while (p < end && !is_token_end(*p))
            p++;
        struct slice token = slice_of(start, (size_t)(p - start));
        if (is_after_bearer && token.len >= 8)
            clean_put(&cleaner, "***", 3);
        else
            clean_token(&cleaner, token);
        if (token.len > 0)
            is_after_bearer = slice_is_nocase(token, "bearer");
        if (p < end)
            clean_put(&cleaner, p++, 1);
    }
    while (cleaner.len > 0 && out[cleaner.len - 1] == ' ')
        cleaner.len--;
    out[cleaner.len] = '\0';
    return cleaner.len;
}

// ---- HTML ----

static long find_nocase(struct slice hay, const char *needle)
{
    size_t len = strlen(needle);
    for (size_t i = 0; i + len <= hay.len; i++)
        if (strncasecmp(hay.ptr + i, needle, len) == 0)
            return (long)i;
    return -1;
}

static size_t html_entity(struct slice rest, char *out)
{
    static const struct {
        const char *name;
        char byte;
    } ENTITIES[] = {{"&amp;", '&'},  {"&lt;", '<'},    {"&gt;", '>'},  {"&quot;", '"'},
                    {"&#39;", '\''}, {"&apos;", '\''}, {"&nbsp;", ' '}};
    for (size_t i = 0; i < sizeof(ENTITIES) / sizeof(ENTITIES[0]); i++)
        if (slice_starts(rest, ENTITIES[i].name)) {
            *out = ENTITIES[i].byte;
            return strlen(ENTITIES[i].name);
        }
    *out = '&';
    return 1;
}

// The text of a page without tags, scripts and styles; at most size bytes.
static size_t html_strip(struct slice html, char *out, size_t size)
{
    size_t len = 0;
    for (size_t i = 0; i < html.len && len + 1 < size;) {
        struct slice rest = slice_from(html, i);
        if (html.ptr[i] == '<') {
            static const char *const SKIPPED[][2] = {
                {"<script", "</script"}, {"<style", "</style"}, {"<!--", "-->"}};
            size_t from = 0;
            for (size_t k = 0; k < 3; k++)
                if (rest.len >= strlen(SKIPPED[k][0]) &&
                    strncasecmp(rest.ptr, SKIPPED[k][0], strlen(SKIPPED[k][0])) == 0) {
                    long close = find_nocase(rest, SKIPPED[k][1]);
                    from = close < 0 ? rest.len : (size_t)close;
                }
            const char *close = memchr(rest.ptr + from, '>', rest.len - from);
            i = close == NULL ? html.len : (size_t)(close - html.ptr) + 1;
            out[len++] = ' ';
        } else if (html.ptr[i] == '&') {
            i += html_entity(rest, &out[len++]);
        } else {
            out[len++] = html.ptr[i++];
        }
    }
    return len;
}

static size_t html_message(struct slice html, char *out, size_t size)
{
    char text[2048];
    long open = find_nocase(html, "<title");
    if (open >= 0) {
        struct slice title = slice_from(html, (size_t)open);
        const char *start = memchr(title.ptr, '>', title.len);
        long close = find_nocase(title, "</title");
        if (start != NULL && close > start - title.ptr) {
            size_t from = (size_t)(start - title.ptr) + 1;
            size_t len =
                html_strip(slice_of(title.ptr + from, (size_t)close - from), text, sizeof(text));
            len = clean_text(slice_of(text, len), out, size);
            if (len > 0)
                return len;
        }
    }
    return clean_text(slice_of(text, html_strip(html, text, sizeof(text))), out, size);
}

// ---- reading errors ----

enum error_path {
    ERR_ERROR,
    ERR_MESSAGE,
    ERR_TYPE,
    ERR_CODE,
    ERR_PARAM,
    ERR_STATUS,
    ERR_STATUS_CODE,
    ERR_DETAILS_CODE,
    ERR_RESPONSE_CODE,
    ERR_RESPONSE_MESSAGE,
    ERR_GROQ,
    ERR_DETAIL,
    ERR_DETAIL_MSG,
    ERR_DETAIL_MESSAGE,
    ERR_DETAIL_ERROR,
    ERR_TOP_MESSAGE,
    ERR_TOP_MSG,
    ERR_TOP_TYPE,
    ERR_TOP_CODE,
    ERR_TOP_PARAM,
    ERR_TOP_TITLE,
    ERR_TOP_DESCRIPTION,
    ERR_ERRORS_MESSAGE,
    ERR_ARRAY_MESSAGE,
    ERR_ARRAY_CODE,
    ERR_ARRAY_STATUS,
};
static const char *const ERROR_PATHS[] = {
    [ERR_ERROR] = "error",
    [ERR_MESSAGE] = "error.message",
    [ERR_TYPE] = "error.type",
    [ERR_CODE] = "error.code",
    [ERR_PARAM] = "error.param",
    [ERR_STATUS] = "error.status",
    [ERR_STATUS_CODE] = "error.status_code",
    [ERR_DETAILS_CODE] = "error.details.error_code",
    [ERR_RESPONSE_CODE] = "response.error.code",
    [ERR_RESPONSE_MESSAGE] = "response.error.message",
    [ERR_GROQ] = "x_groq.error",
    [ERR_DETAIL] = "detail",
    [ERR_DETAIL_MSG] = "detail.0.msg",
    [ERR_DETAIL_MESSAGE] = "detail.message",
    [ERR_DETAIL_ERROR] = "detail.error",
    [ERR_TOP_MESSAGE] = "message",
    [ERR_TOP_MSG] = "msg",
    [ERR_TOP_TYPE] = "type",
    [ERR_TOP_CODE] = "code",
    [ERR_TOP_PARAM] = "param",
    [ERR_TOP_TITLE] = "title",
    [ERR_TOP_DESCRIPTION] = "error_description",
    [ERR_ERRORS_MESSAGE] = "errors.0.message",
    [ERR_ARRAY_MESSAGE] = "0.error.message",
    [ERR_ARRAY_CODE] = "0.error.code",
    [ERR_ARRAY_STATUS] = "0.error.status",
};
#define ERROR_PATH_COUNT (sizeof(ERROR_PATHS) / sizeof(ERROR_PATHS[0]))
_Static_assert(ERROR_PATH_COUNT <= SKIM_MAX_PATHS, "skim takes that many paths");

struct error_words {
    char message[ERROR_MESSAGE_MAX + 1];
    char type[64], code[64], param[64];
    int status; // 0: not told
};

// A word: a string, or a number's text (codes are integers at some providers).
static bool read_word(struct slice json, const struct skim_span *span, char *out, size_t size)
{
    if (span->type == SKIM_NUMBER && span->end - span->start < size) {
        size_t len = (size_t)(span->end - span->start);
        memcpy(out, json.ptr + span->start, len);
        out[len] = '\0';
        return true;
    }
    char raw[256];
    if (!dialect_copy_string(json, span, raw, sizeof(raw)))
        return false;
    return clean_text(slice_str(raw), out, size) > 0;
}

static int read_status(struct slice json, const struct skim_span *span)
{
    char word[64];
    if (!read_word(json, span, word, sizeof(word)))
        return 0;
    char *end;
    long value = strtol(word, &end, 10);
    if (*end == '\0' && value >= 400 && value <= 599)
        return (int)value;
    return dialect_error_status(slice_str(word));
}

static bool read_text(struct slice json, const struct skim_span *span, struct error_words *words)
{
    char raw[4 * ERROR_MESSAGE_MAX];
    return dialect_copy_string(json, span, raw, sizeof(raw)) &&
           clean_text(slice_str(raw), words->message, sizeof(words->message)) > 0;
}

// Reads any JSON shape; false when it is no JSON or holds nothing that tells of an error.
static bool read_error_json(struct slice json, struct error_words *words)
{
    struct skim skim;
    struct skim_spec spec = {
        .paths = ERROR_PATHS, .path_count = ERROR_PATH_COUNT, .is_lenient = true};
    if (skim_whole(&skim, &spec, json) != 0)
        return false;
    const struct skim_span *spans = skim.spans;
    if (skim.root_type == SKIM_STRING) {
        struct skim_span root = {
            .type = SKIM_STRING, .start = skim.root_start, .end = skim.root_end};
        return read_text(json, &root, words);
    }
    static const uint8_t MESSAGES[] = {
        ERR_MESSAGE,        ERR_RESPONSE_MESSAGE, ERR_ARRAY_MESSAGE,   ERR_ERROR,       ERR_DETAIL,
        ERR_DETAIL_MESSAGE, ERR_DETAIL_MSG,       ERR_DETAIL_ERROR,    ERR_TOP_MESSAGE, ERR_TOP_MSG,
        ERR_GROQ,           ERR_ERRORS_MESSAGE,   ERR_TOP_DESCRIPTION, ERR_TOP_TITLE};
    bool is_found = false;
    // {"error":"invalid_grant","error_description":"…"}: the description is the sentence.
    if (spans[ERR_ERROR].type == SKIM_STRING && spans[ERR_TOP_DESCRIPTION].type == SKIM_STRING) {
        is_found = read_text(json, &spans[ERR_TOP_DESCRIPTION], words);
        read_word(json, &spans[ERR_ERROR], words->code, sizeof(words->code));
    } else if (spans[ERR_ERROR].type == SKIM_STRING && spans[ERR_TOP_MESSAGE].type == SKIM_STRING) {
        is_found = read_text(json, &spans[ERR_TOP_MESSAGE], words);
        read_word(json, &spans[ERR_ERROR], words->code, sizeof(words->code));
    }
    for (size_t i = 0; i < sizeof(MESSAGES) && !is_found; i++)
        is_found = read_text(json, &spans[MESSAGES[i]], words);

    // {"detail":{"error":code,"message":…}}
    static const uint8_t CODES[] = {ERR_CODE,       ERR_DETAILS_CODE, ERR_RESPONSE_CODE,
                                    ERR_ARRAY_CODE, ERR_DETAIL_ERROR, ERR_TOP_CODE};
    for (size_t i = 0; i < sizeof(CODES) && words->code[0] == '\0'; i++)
        read_word(json, &spans[CODES[i]], words->code, sizeof(words->code));
    // A top-level type next to an error object is the envelope's ("error").
    if (!read_word(json, &spans[ERR_TYPE], words->type, sizeof(words->type)) &&
        !read_word(json, &spans[ERR_STATUS], words->type, sizeof(words->type)) &&
        !read_word(json, &spans[ERR_ARRAY_STATUS], words->type, sizeof(words->type)) &&
        read_word(json, &spans[ERR_TOP_TYPE], words->type, sizeof(words->type)) &&
        (strcmp(words->type, "error") == 0 || strncmp(words->type, "response.", 9) == 0))
        words->type[0] = '\0';
    if (!read_word(json, &spans[ERR_PARAM], words->param, sizeof(words->param)))
        read_word(json, &spans[ERR_TOP_PARAM], words->param, sizeof(words->param));

    // The words say more than a number: insufficient_quota beside code 400 is a 429.
    static const uint8_t STATUSES[] = {
        ERR_STATUS_CODE,   ERR_STATUS, ERR_CODE,     ERR_ARRAY_CODE, ERR_ARRAY_STATUS,
        ERR_RESPONSE_CODE, ERR_TYPE,   ERR_TOP_CODE, ERR_TOP_TYPE,   ERR_DETAILS_CODE};
    for (size_t i = 0; i < sizeof(STATUSES) && words->status == 0; i++)
        words->status = read_status(json, &spans[STATUSES[i]]);
    return is_found || words->code[0] != '\0' || words->type[0] != '\0';
}

int dialect_error_status(struct slice word)
{
    static const struct {
        const char *word;
        int status;
    } WORDS[] = {
        {"invalid_request_error", 400},
        {"invalid_prompt", 400},
        {"invalid_image", 400},
        {"context_length_exceeded", 400},
        {"content_filter", 400},
        {"content_policy_violation", 400},
        {"tool_use_failed", 400},
        {"unsupported_parameter", 400},
        {"unsupported_value", 400},
        {"missing_required_parameter", 400},
        {"invalid_value", 400},
        {"string_above_max_length", 400},
        {"INVALID_ARGUMENT", 400},
        {"FAILED_PRECONDITION", 400},
        {"authentication_error", 401},
        {"invalid_api_key", 401},
        {"UNAUTHENTICATED", 401},
        {"billing_error", 402},
        {"permission_error", 403},
        {"PERMISSION_DENIED", 403},
        {"not_found_error", 404},
        {"model_not_found", 404},
        {"DeploymentNotFound", 404},
        {"NOT_FOUND", 404},
        {"request_too_large", 413},
        {"rate_limit_error", 429},
        {"rate_limit_exceeded", 429},
        {"insufficient_quota", 429},
        {"usage_limit_reached", 429},
        {"usage_not_included", 429},
        {"tokens", 429},
        {"requests", 429},
        {"too_many_requests", 429},
        {"RESOURCE_EXHAUSTED", 429},
        {"api_error", 500},
        {"server_error", 500},
        {"internal_server_error", 500},
        {"internal_error", 500},
        {"INTERNAL", 500},
        {"server_is_overloaded", 503},
        {"service_unavailable", 503},
        {"slow_down", 503},
        {"overloaded", 503},
        {"over_capacity", 503},
        {"UNAVAILABLE", 503},
        {"timeout_error", 504},
        {"timeout", 504},
        {"DEADLINE_EXCEEDED", 504},
        {"overloaded_error", 529},
    };
    for (size_t i = 0; i < sizeof(WORDS) / sizeof(WORDS[0]); i++)
        if (slice_is(word, WORDS[i].word))
            return WORDS[i].status;
    return 0;
}

void dialect_take_error(struct dialect_reader *reader, struct slice json, struct dialect_info *info)
{
    struct error_words words = {0};
    if (!read_error_json(json, &words) && words.message[0] == '\0') {
        size_t scan = json.len < ERROR_TEXT_SCAN ? json.len : ERROR_TEXT_SCAN;
        clean_text(slice_of(json.ptr, scan), words.message, sizeof(words.message));
    }
    if (words.message[0] == '\0')
        memcpy(words.message, "The upstream reported an error.",
               sizeof("The upstream reported an error."));
    memcpy(reader->error_message, words.message, sizeof(words.message));
    memcpy(reader->error_type, words.type, sizeof(words.type));
    memcpy(reader->error_code, words.code, sizeof(words.code));
    memcpy(reader->error_param, words.param, sizeof(words.param));
    reader->has_error = true;
    info->class = DIALECT_EVENT_ERROR;
    info->error = (struct dialect_error){
        .status = words.status != 0 ? words.status : 502,
        .code = slice_str(reader->error_code),
        .type = slice_str(reader->error_type),
        .param = slice_str(reader->error_param),
        .message = slice_str(reader->error_message),
        .retry_after_ms = -1,
        .should_retry = words.status == 0 || words.status == 429 || words.status >= 500,
    };
    if (slice_is(info->error.code, "insufficient_quota") ||
        slice_is(info->error.type, "insufficient_quota"))
        info->error.should_retry = false;
}

void dialect_read_error(struct slice body, int status, struct arena *arena,
                        struct dialect_error *error)
{
    struct error_words words = {0};
    struct slice trimmed = slice_trim(body);
    *error = (struct dialect_error){.status = status, .retry_after_ms = -1};
    // A JSON text that is no error object ({} and the like) has no message of its own.
    bool is_json =
        trimmed.len > 0 && (*trimmed.ptr == '{' || *trimmed.ptr == '[' || *trimmed.ptr == '"');
    bool is_read = is_json && read_error_json(trimmed, &words);
    struct slice scan = trimmed;
    if (scan.len > ERROR_TEXT_SCAN)
        scan.len = ERROR_TEXT_SCAN;
    if (!is_read && words.message[0] == '\0' && scan.len > 0) {
        if (*scan.ptr == '<')
            html_message(scan, words.message, sizeof(words.message));
        else if (!is_json)
            clean_text(scan, words.message, sizeof(words.message));
    }
    if (error->status == 0)
        error->status = words.status != 0 ? words.status : 502;
    if (words.message[0] != '\0')
        error->message = arena_copy(arena, slice_str(words.message));
    else
        error->message = arena_printf(arena, "The upstream answered with status %d and no message.",
                                      error->status);
    if (error->message.ptr == NULL)
        error->message = SLICE_LIT("The upstream answered with an error.");
    if (words.code[0] != '\0')
        error->code = arena_copy(arena, slice_str(words.code));
    if (words.type[0] != '\0')
        error->type = arena_copy(arena, slice_str(words.type));
    if (words.param[0] != '\0')
        error->param = arena_copy(arena, slice_str(words.param));
    bool is_quota =
        slice_is(error->code, "insufficient_quota") || slice_is(error->type, "insufficient_quota");
    error->should_retry =
        (error->status == 408 || error->status == 429 || error->status >= 500) && !is_quota;
}

struct slice dialect_error_type(enum dialect_id id, int status, struct slice code)
{
    if (id == DIALECT_ANTHROPIC) {
        switch (status) {
        case 401: return SLICE_LIT("authentication_error");
        case 402: return SLICE_LIT("billing_error");
        case 403: return SLICE_LIT("permission_error");
        case 404: return SLICE_LIT("not_found_error");
        case 413: return SLICE_LIT("request_too_large");
        case 429: return SLICE_LIT("rate_limit_error");
        case 408:
        case 504: return SLICE_LIT("timeout_error");
        case 503:
        case 529: return SLICE_LIT("overloaded_error");
        default: return status >= 500 ? SLICE_LIT("api_error") : SLICE_LIT("invalid_request_error");
        }
    }
    if (slice_is(code, "insufficient_quota") || status == 402)
        return SLICE_LIT("insufficient_quota");
    if (slice_is(code, "usage_limit_reached"))
        return SLICE_LIT("usage_limit_reached");
    if (status == 429)
        return SLICE_LIT("rate_limit_exceeded");
    return status >= 500 ? SLICE_LIT("server_error") : SLICE_LIT("invalid_request_error");
}

static void text_or_null(struct json_out *out, struct slice text)
{
    if (text.len > 0)
        json_text(out, text);
    else
        json_null(out);
}

void dialect_openai_error(struct json_out *out, const struct dialect_error *error)
{
    struct slice type = error->type;
    if (type.len == 0)
        type = dialect_error_type(DIALECT_OPENAI, error->status, error->code);
    json_object(out);
    json_key(out, "message");
    json_text(out, error->message);
    json_key(out, "type");
    json_text(out, type);
    json_key(out, "param");
    text_or_null(out, error->param);
    json_key(out, "code");
    text_or_null(out, error->code);
    json_object_end(out);
}
