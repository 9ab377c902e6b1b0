#include "fake.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

void *must(void *memory)
{
    if (!memory) {
        fprintf(stderr, "fake_upstream: out of memory\n");
        exit(1);
    }
    return memory;
}

static void room(struct text *text, size_t more)
{
    if (text->len + more + 1 <= text->capacity)
        return;
    size_t capacity = text->capacity ? text->capacity : 256;
    while (capacity < text->len + more + 1)
        capacity *= 2;
    text->ptr = must(realloc(text->ptr, capacity));
    text->capacity = capacity;
}

void text_add(struct text *text, const void *bytes, size_t len)
{
    room(text, len);
    if (len)
        memcpy(text->ptr + text->len, bytes, len);
    text->len += len;
    text->ptr[text->len] = '\0';
}

void text_addf(struct text *text, const char *format, ...)
{
    va_list args, again;
    va_start(args, format);
    va_copy(again, args);
    int len = vsnprintf(NULL, 0, format, args);
    va_end(args);
    if (len > 0) {
        room(text, (size_t)len);
        vsnprintf(text->ptr + text->len, (size_t)len + 1, format, again);
        text->len += (size_t)len;
    }
    va_end(again);
}

// The length of the valid UTF-8 sequence at bytes, 0 when there is none.
static size_t utf8_len(const unsigned char *bytes, size_t len)
{
    size_t need = bytes[0] < 0x80   ? 1
                  : bytes[0] < 0xc2 ? 0
                  : bytes[0] < 0xe0 ? 2
                  : bytes[0] < 0xf0 ? 3
                  : bytes[0] < 0xf5 ? 4
                                    : 0;
    if (need == 0 || need > len)
        return 0;
    for (size_t i = 1; i < need; i++) {
        if ((bytes[i] & 0xc0) != 0x80)
            return 0;
    }
    bool is_odd = (bytes[0] == 0xe0 && bytes[1] < 0xa0) || (bytes[0] == 0xed && bytes[1] > 0x9f) ||
                  (bytes[0] == 0xf0 && bytes[1] < 0x90) || (bytes[0] == 0xf4 && bytes[1] > 0x8f);
    return is_odd ? 0 : need;
}

void text_json(struct text *text, const char *bytes, size_t len)
{
    text_add(text, "\"", 1);
    for (size_t i = 0; i < len;) {
        unsigned char c = (unsigned char)bytes[i];
        size_t count = utf8_len((const unsigned char *)bytes + i, len - i);
        if (c == '"' || c == '\\')
            text_addf(text, "\\%c", c);
        else if (c < 0x20 || count == 0)
            text_addf(text, "\\u%04x", c);
        else
            text_add(text, bytes + i, count);
        i += count ? count : 1;
    }
    text_add(text, "\"", 1);
}

void text_free(struct text *text)
{
    free(text->ptr);
    memset(text, 0, sizeof *text);
}

long find_bytes(const char *bytes, size_t len, const char *what, size_t what_len)
{
    const char *at = len ? memmem(bytes, len, what, what_len) : NULL;
    return at ? at - bytes : -1;
}

const char *request_header(const struct request *request, const char *name, size_t *len)
{
    size_t name_len = strlen(name);
    for (const char *line = request->headers; line && *line;) {
        const char *end = strchr(line, '\n');
        if (strncmp(line, name, name_len) == 0 && line[name_len] == ':') {
            *len = (size_t)(end - line) - name_len - 2;
            return line + name_len + 2;
        }
        line = end + 1;
    }
    *len = 0;
    return NULL;
}

void request_free(struct request *request)
{
    free(request->method);
    free(request->target);
    free(request->headers);
    free(request->body);
    memset(request, 0, sizeof *request);
}

static char *copy(const char *bytes, size_t len)
{
    char *out = must(malloc(len + 1));
    if (len)
        memcpy(out, bytes, len);
    out[len] = '\0';
    return out;
}

static bool parse_head(const char *bytes, size_t len, struct request *out)
{
    const char *space = memchr(bytes, ' ', len);
    const char *line_end = memmem(bytes, len, "\r\n", 2);
    if (!space || !line_end || space > line_end)
        return false;
    const char *second = memchr(space + 1, ' ', (size_t)(line_end - space - 1));
    if (!second)
        return false;
    out->method = copy(bytes, (size_t)(space - bytes));
    out->target = copy(space + 1, (size_t)(second - space - 1));
    struct text headers = {NULL, 0, 0};
    text_add(&headers, "", 0);
    for (const char *at = line_end + 2; at < bytes + len;) {
        const char *end = memmem(at, (size_t)(bytes + len - at), "\r\n", 2);
        const char *colon = end ? memchr(at, ':', (size_t)(end - at)) : NULL;
        if (!colon)
            break;
        for (const char *c = at; c < colon; c++)
            text_addf(&headers, "%c", *c >= 'A' && *c <= 'Z' ? *c + 32 : *c);
        const char *value = colon + 1;
        while (value < end && *value == ' ')
            value++;
        text_addf(&headers, ": ");
        text_add(&headers, value, (size_t)(end - value));
        text_addf(&headers, "\n");
        at = end + 2;
    }
    out->headers = headers.ptr;
    size_t value_len;
    const char *connection = request_header(out, "connection", &value_len);
    out->is_keep_alive = !connection || strncasecmp(connection, "close", 5) != 0;
    return true;
}

// > 0: bytes of the chunked body consumed, 0 incomplete, < 0 malformed.
static long parse_chunked(const char *bytes, size_t len, struct text *body)
{
    size_t at = 0;
    for (;;) {
        long line = find_bytes(bytes + at, len - at, "\r\n", 2);
        if (line < 0)
            return 0;
        char *end;
        unsigned long size = strtoul(bytes + at, &end, 16);
        if (end == bytes + at || size > 1u << 30)
            return -1;
        at += (size_t)line + 2;
        if (len - at < size + 2)
            return 0;
        text_add(body, bytes + at, size);
        at += size + 2;
        if (size == 0)
            return (long)at;
    }
}

long request_parse(const char *bytes, size_t len, struct request *out, bool *wants_continue)
{
    memset(out, 0, sizeof *out);
    *wants_continue = false;
    long head = find_bytes(bytes, len, "\r\n\r\n", 4);
    if (head < 0)
        return len > 1u << 20 ? -1 : 0;
    size_t body_at = (size_t)head + 4, value_len;
    if (!parse_head(bytes, (size_t)head + 2, out))
        return -1;
    out->head_len = body_at;
    const char *coding = request_header(out, "transfer-encoding", &value_len);
    const char *length = request_header(out, "content-length", &value_len);
    size_t need = length ? strtoul(length, NULL, 10) : 0;
    struct text body = {NULL, 0, 0};
    text_add(&body, "", 0);
    long used = 0;
    if (coding) {
        used = parse_chunked(bytes + body_at, len - body_at, &body);
    } else if (len - body_at >= need) {
        text_add(&body, bytes + body_at, need);
        used = (long)need;
    }
    if (used < 0 || (used == 0 && (coding || need))) {
        const char *expect = request_header(out, "expect", &value_len);
        *wants_continue = used == 0 && expect && strncasecmp(expect, "100-continue", 12) == 0;
        text_free(&body);
        request_free(out);
        return used;
    }
    out->body = body.ptr;
    out->body_len = body.len;
    return (long)body_at + used;
}
