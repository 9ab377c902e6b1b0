// The writer appends straight to the buf; the parser is yyjson under an allocator that counts.
#include "codec/json.h"
#include "base/money.h"
#include "codec/skim.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_DEPTH 64

// ---- Writer ----

void json_begin(struct json_out *out, struct buf *buf)
{
    *out = (struct json_out){.buf = buf};
}

int json_end(struct json_out *out)
{
    if (!out->err && (out->depth != 0 || out->after_key))
        out->err = GW_EINTERNAL;
    return out->err;
}

static void put(struct json_out *out, const char *bytes, size_t len)
{
    if (!out->err)
        out->err = buf_append(out->buf, slice_of(bytes, len));
}

// The comma that is due before an item or a name.
static void begin_item(struct json_out *out)
{
    if (out->after_key) {
        out->after_key = false;
        return;
    }
    uint64_t bit = (uint64_t)1 << out->depth;
    if (out->depth && (out->has_items & bit))
        put(out, ",", 1);
    out->has_items |= bit;
}

static void open_with(struct json_out *out, const char *bracket)
{
    begin_item(out);
    if (out->depth >= 63) {
        if (!out->err)
            out->err = GW_ETOOBIG;
        return;
    }
    put(out, bracket, 1);
    out->depth++;
    out->has_items &= ~((uint64_t)1 << out->depth);
}

static void close_with(struct json_out *out, const char *bracket)
{
    if (out->depth == 0 || out->after_key) {
        if (!out->err)
            out->err = GW_EINTERNAL;
        return;
    }
    out->depth--;
    put(out, bracket, 1);
}

void json_object(struct json_out *out)
{
    open_with(out, "{");
}

void json_object_end(struct json_out *out)
{
    close_with(out, "}");
}

void json_array(struct json_out *out)
{
    open_with(out, "[");
}

void json_array_end(struct json_out *out)
{
    close_with(out, "]");
}

void json_key_slice(struct json_out *out, struct slice name)
{
    begin_item(out);
    if (!out->err)
        out->err = json_quote(out->buf, name);
    put(out, ":", 1);
    out->after_key = true;
}

void json_key(struct json_out *out, const char *name)
{
    json_key_slice(out, slice_str(name));
}

void json_text(struct json_out *out, struct slice text)
{
    begin_item(out);
    if (!out->err)
        out->err = json_quote(out->buf, text);
}

void json_str(struct json_out *out, const char *text)
{
    if (text)
        json_text(out, slice_str(text));
    else
        json_null(out);
}

void json_i64(struct json_out *out, int64_t value)
{
    begin_item(out);
    if (!out->err)
        out->err = buf_append_i64(out->buf, value);
}

void json_u64(struct json_out *out, uint64_t value)
{
    begin_item(out);
    if (!out->err)
        out->err = buf_append_u64(out->buf, value);
}

void json_bool(struct json_out *out, bool value)
{
    begin_item(out);
    put(out, value ? "true" : "false", value ? 4 : 5);
}

void json_null(struct json_out *out)
{
    begin_item(out);
    put(out, "null", 4);
}

void json_raw(struct json_out *out, struct slice json)
{
    begin_item(out);
    put(out, json.ptr, json.len);
}

void json_money(struct json_out *out, int64_t nano)
{
    char text[32];
    size_t len = money_format(nano, text, sizeof(text));
    begin_item(out);
    put(out, text, len);
}

void json_double(struct json_out *out, double value)
{
    if (!isfinite(value)) {
        json_null(out);
        return;
    }
    char text[40];
    int len = 0;
    for (int digits = 15; digits <= 17; digits++) {
        len = snprintf(text, sizeof(text), "%.*g", digits, value);
        if (strtod(text, NULL) == value)
            break;
    }
    begin_item(out);
    put(out, text, (size_t)len);
}

// Length of the well-formed character of several bytes at p; 0 when there is none.
static size_t wide_length(const unsigned char *p, const unsigned char *end)
{
    unsigned char c = p[0];
    size_t len = c >= 0xc2 && c <= 0xdf   ? 2
                 : (c & 0xf0) == 0xe0     ? 3
                 : c >= 0xf0 && c <= 0xf4 ? 4
                                          : 0;
    if (len == 0 || (size_t)(end - p) < len)
        return 0;
    unsigned char min = c == 0xe0 ? 0xa0 : c == 0xf0 ? 0x90 : 0x80;
    unsigned char max = c == 0xed ? 0x9f : c == 0xf4 ? 0x8f : 0xbf;
    if (p[1] < min || p[1] > max)
        return 0;
    for (size_t i = 2; i < len; i++)
        if ((p[i] & 0xc0) != 0x80)
            return 0;
    return len;
}

static int quote_special(struct buf *buf, unsigned char c)
{
    static const char HEX[] = "0123456789abcdef";
    char text[6] = {'\\', 'u', '0', '0', HEX[c >> 4], HEX[c & 15]};
    size_t len = 2;
    switch (c) {
    case '"':
    case '\\': text[1] = (char)c; break;
    case '\b': text[1] = 'b'; break;
    case '\f': text[1] = 'f'; break;
    case '\n': text[1] = 'n'; break;
    case '\r': text[1] = 'r'; break;
    case '\t': text[1] = 't'; break;
    default: len = 6;
    }
    return buf_append(buf, slice_of(text, len));
}

// The length of the longest beginning that stands for itself in a JSON string (ASCII only).
static size_t plain_length(struct slice text)
{
    const uint64_t ones = UINT64_C(0x0101010101010101), tops = ones << 7;
    size_t at = 0;
    for (; text.len - at >= 8; at += 8) {
        uint64_t v;
        memcpy(&v, text.ptr + at, 8);
        uint64_t quote = v ^ ones * '"', slash = v ^ ones * '\\';
        uint64_t hit =
            ((quote - ones) & ~quote) | ((slash - ones) & ~slash) | v | ((v - ones * 0x20) & ~v);
        if (hit & tops)
            break; // the loop below finds the place
    }
    for (; at < text.len; at++) {
        unsigned char c = (unsigned char)text.ptr[at];
        if (c < 0x20 || c >= 0x80 || c == '"' || c == '\\')
            break;
    }
    return at;
}

static int quote_body(struct buf *buf, struct slice text)
{
    size_t plain = plain_length(text);
    int err = buf_append(buf, slice_of(text.ptr, plain));
    const unsigned char *p = (const unsigned char *)text.ptr + plain;
    const unsigned char *end = (const unsigned char *)text.ptr + text.len;
    while (!err && p < end) {
        const unsigned char *run = p;
        size_t wide = 0;
        for (; p < end; p += wide ? wide : 1) {
            wide = 0;
            if (*p >= 0x80) {
                wide = wide_length(p, end);
                if (!wide)
                    break;
            } else if (*p < 0x20 || *p == '"' || *p == '\\') {
                break;
            }
        }
        if (p > run)
            err = buf_append(buf, slice_of((const char *)run, (size_t)(p - run)));
        if (err || p == end)
            break;
        err = *p >= 0x80 ? buf_append(buf, SLICE_LIT("\xef\xbf\xbd")) : quote_special(buf, *p);
        p++;
    }
    return err;
}

int json_quote(struct buf *buf, struct slice text)
{
    size_t before = buf->len;
    int err = buf_append_char(buf, '"');
    if (!err && text.len)
        err = quote_body(buf, text);
    if (!err)
        err = buf_append_char(buf, '"');
    if (err)
        buf_truncate(buf, before);
    return err;
}

// ---- Parser ----

struct json_doc {
    yyjson_doc *doc;
    size_t used, cap;
};

// Each allocation is preceded by its size, because yyjson's free does not tell it.
#define HEAD 16

static void *counted_malloc(void *ctx, size_t size)
{
    struct json_doc *doc = ctx;
    if (size > doc->cap - doc->used)
        return NULL;
    char *mem = malloc(size + HEAD);
    if (!mem)
        return NULL;
    memcpy(mem, &size, sizeof(size));
    doc->used += size;
    return mem + HEAD;
}

static void counted_free(void *ctx, void *ptr)
{
    struct json_doc *doc = ctx;
    if (!ptr)
        return;
    size_t size;
    memcpy(&size, (char *)ptr - HEAD, sizeof(size));
    doc->used -= size;
    free((char *)ptr - HEAD);
}

static void *counted_realloc(void *ctx, void *ptr, size_t old_size, size_t size)
{
    struct json_doc *doc = ctx;
    (void)old_size;
    if (!ptr)
        return counted_malloc(ctx, size);
    size_t had;
    memcpy(&had, (char *)ptr - HEAD, sizeof(had));
    if (size > had && size - had > doc->cap - doc->used)
        return NULL;
    char *mem = realloc((char *)ptr - HEAD, size + HEAD);
    if (!mem)
        return NULL;
    memcpy(mem, &size, sizeof(size));
    doc->used = doc->used - had + size;
    return mem + HEAD;
}

// Offset of the bracket that opens level MAX_DEPTH + 1, or SIZE_MAX. Cheap, before any memory is
// spent; of texts that are no JSON it may say nothing, the parser refuses those.
static size_t find_too_deep(struct slice text)
{
    size_t depth = 0;
    bool in_string = false;
    for (size_t i = 0; i < text.len; i++) {
        char c = text.ptr[i];
        if (in_string) {
            if (c == '\\')
                i++;
            else if (c == '"')
                in_string = false;
        } else if (c == '"') {
            in_string = true;
        } else if (c == '{' || c == '[') {
            if (++depth > MAX_DEPTH)
                return i;
        } else if ((c == '}' || c == ']') && depth) {
            depth--;
        }
    }
    return SIZE_MAX;
}

int json_parse(struct slice text, size_t memory_cap, struct json_doc **out, const char **error,
               size_t *error_at)
{
    *out = NULL;
    *error = NULL;
    *error_at = 0;
    size_t deep = find_too_deep(text);
    if (deep != SIZE_MAX) {
        *error = "nested too deeply";
        *error_at = deep;
        return GW_ETOOBIG;
    }
    if (text.len == 0) {
        *error = "the text is empty";
        return GW_EINVAL;
    }
    struct json_doc *doc = calloc(1, sizeof(*doc));
    if (!doc) {
        *error = "out of memory";
        return GW_ENOMEM;
    }
    doc->cap = memory_cap;
    yyjson_alc alc = {counted_malloc, counted_realloc, counted_free, doc};
    yyjson_read_err err;
    // Without INSITU the text is only read; yyjson's parameter lacks the const.
    doc->doc = yyjson_read_opts((char *)(uintptr_t)text.ptr, text.len, YYJSON_READ_NUMBER_AS_RAW,
                                &alc, &err);
    if (!doc->doc) {
        bool is_memory = err.code == YYJSON_READ_ERROR_MEMORY_ALLOCATION;
        *error = is_memory ? "the text needs too much memory" : err.msg;
        *error_at = err.pos;
        free(doc);
        return is_memory ? GW_ENOMEM : GW_EINVAL;
    }
    *out = doc;
    return 0;
}

yyjson_val *json_root(const struct json_doc *doc)
{
    return yyjson_doc_get_root(doc->doc);
}

void json_doc_free(struct json_doc *doc)
{
    if (!doc)
        return;
    yyjson_doc_free(doc->doc);
    free(doc);
}

struct slice json_number_text(yyjson_val *val)
{
    if (!yyjson_is_raw(val))
        return slice_of("", 0);
    return slice_of(yyjson_get_raw(val), yyjson_get_len(val));
}

struct slice json_string_slice(yyjson_val *val)
{
    if (!yyjson_is_str(val))
        return SLICE_NONE;
    return slice_of(yyjson_get_str(val), yyjson_get_len(val));
}

int json_get_i64(yyjson_val *val, int64_t *out)
{
    *out = 0;
    struct slice text = json_number_text(val);
    if (text.len == 0)
        return GW_EINVAL;
    bool is_negative = text.ptr[0] == '-';
    struct skim_span span = {.type = SKIM_NUMBER, .start = is_negative, .end = text.len};
    uint64_t value;
    int err = skim_u64(text, &span, &value);
    if (err)
        return err;
    if (value > (uint64_t)INT64_MAX + is_negative)
        return GW_ETOOBIG;
    *out = is_negative ? (int64_t)(0 - value) : (int64_t)value;
    return 0;
}
