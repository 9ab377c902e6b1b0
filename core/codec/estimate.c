// Estimates of tokens. One pass over the request's bytes, no validation: a body that reaches this
// was scanned before, and a wrong byte can only make the estimate wrong.
#include "codec/estimate.h"

// A string in the body: what it is decides whether its bytes are text.
static bool is_key(struct slice key, const char *name)
{
    return slice_is(key, name);
}

static bool is_base64(struct slice text)
{
    // Enough to tell a file from a sentence; the hold is an estimate, the charge is not.
    if (text.len < 256)
        return false;
    for (size_t i = 0; i < 128; i++) {
        char c = text.ptr[i];
        if (!((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
              c == '+' || c == '/' || c == '-' || c == '_' || c == '\\'))
            return false;
    }
    return true;
}

static bool is_data_uri(struct slice text)
{
    if (!slice_starts(text, "data:"))
        return false;
    struct slice head = text;
    if (head.len > 160)
        head.len = 160;
    return slice_find(head, SLICE_LIT(";base64,")) >= 0;
}

// Length of a string's inside when decoded, roughly: an escape is one byte, \uXXXX three.
static uint64_t decoded_bytes(struct slice inside)
{
    uint64_t bytes = 0;
    const char *at = inside.ptr, *end = inside.ptr + inside.len;
    while (at < end) {
        const char *escape = memchr(at, '\\', (size_t)(end - at));
        if (escape == NULL)
            return bytes + (uint64_t)(end - at);
        bytes += (uint64_t)(escape - at);
        bool is_unicode = escape + 1 < end && escape[1] == 'u';
        bytes += is_unicode ? 3 : 1;
        at = escape + (is_unicode ? 6 : 2);
    }
    return bytes;
}

static bool is_blob(struct slice key, struct slice inside)
{
    if (is_data_uri(inside))
        return true;
    return (is_key(key, "data") || is_key(key, "file_data") || is_key(key, "image_url") ||
            is_key(key, "url")) &&
           is_base64(inside);
}

// Parts are counted by their type member.
static uint64_t part_tokens(struct slice key, struct slice value)
{
    if (!is_key(key, "type"))
        return 0;
    if (slice_is(value, "image") || slice_is(value, "image_url") || slice_is(value, "input_image"))
        return ESTIMATE_IMAGE_TOKENS;
    if (slice_is(value, "document") || slice_is(value, "file") || slice_is(value, "input_file"))
        return ESTIMATE_FILE_TOKENS;
    if (slice_is(value, "input_audio") || slice_is(value, "audio"))
        return ESTIMATE_AUDIO_TOKENS;
    return 0;
}

// The inside of the string whose opening quote is at `at`; *next is past its closing quote.
static struct slice string_at(const char *at, const char *end, const char **next)
{
    const char *start = at + 1, *from = start;
    while (from < end) {
        const char *quote = memchr(from, '"', (size_t)(end - from));
        if (quote == NULL)
            break;
        const char *back = quote;
        while (back > start && back[-1] == '\\')
            back--;
        if (((quote - back) & 1) == 0) {
            *next = quote + 1;
            return slice_of(start, (size_t)(quote - start));
        }
        from = quote + 1;
    }
    *next = end;
    return slice_of(start, (size_t)(end - start));
}

uint64_t estimate_input_tokens(struct slice body)
{
    const char *at = body.ptr, *end = body.ptr + body.len;
    struct slice key = SLICE_NONE;
    uint64_t bytes = 0, tokens = 0;
    while (at < end) {
        if (*at == '"') {
            struct slice inside = string_at(at, end, &at);
            const char *after = at;
            while (after < end &&
                   (*after == ' ' || *after == '\t' || *after == '\n' || *after == '\r'))
                after++;
            if (after < end && *after == ':') {
                key = inside;
                bytes += decoded_bytes(inside);
            } else if (!is_blob(key, inside)) {
                bytes += decoded_bytes(inside);
                tokens += part_tokens(key, inside);
            }
            continue;
        }
        // Numbers and literals count (token arrays of embeddings), punctuation does not.
        if ((*at >= '0' && *at <= '9') || (*at >= 'a' && *at <= 'z') || *at == '-' || *at == '.')
            bytes++;
        at++;
    }
    return tokens + bytes / 3 + (bytes % 3 != 0);
}

uint64_t estimate_output_tokens(uint64_t text_bytes)
{
    return text_bytes / 4 + (text_bytes % 4 != 0);
}
