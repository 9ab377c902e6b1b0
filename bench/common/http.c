#include "common/http.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

enum { AT_HEAD, AT_HEAD_GIVEN, AT_BODY, AT_SIZE, AT_EXTENSION, AT_CHUNK, AT_CHUNK_END, AT_TRAILER };

void http_in_init(struct http_in *in, bool is_answer)
{
    *in = (struct http_in){.is_answer = is_answer};
}

static void drop_held(struct http_in *in)
{
    free(in->held);
    in->held = NULL;
    in->held_len = 0;
}

void http_in_free(struct http_in *in)
{
    drop_held(in);
}

struct span http_header(struct span head, const char *name)
{
    size_t len = strlen(name);
    const char *at = head.ptr, *end = head.ptr + head.len;
    while ((at = memchr(at, '\n', (size_t)(end - at))) != NULL) {
        at++;
        if ((size_t)(end - at) <= len || at[len] != ':' || strncasecmp(at, name, len) != 0)
            continue;
        const char *value = at + len + 1, *stop = memchr(value, '\r', (size_t)(end - value));
        while (stop && value < stop && *value == ' ')
            value++;
        if (stop)
            return (struct span){value, (size_t)(stop - value)};
    }
    return (struct span){NULL, 0};
}

static bool has_word(struct span value, const char *word)
{
    size_t len = strlen(word);
    for (size_t i = 0; i + len <= value.len; i++)
        if (strncasecmp(value.ptr + i, word, len) == 0)
            return true;
    return false;
}

// Reads what the head says of the body.
static bool take_head(struct http_in *in, struct span head)
{
    in->left = 0;
    in->is_chunked = in->until_close = false;
    in->status = 0;
    if (in->is_answer) {
        if (head.len < 12 || memcmp(head.ptr, "HTTP/1.", 7) != 0)
            return false;
        in->status = (uint16_t)atoi(head.ptr + 9);
    }
    in->is_last = has_word(http_header(head, "connection"), "close");
    struct span length = http_header(head, "content-length");
    if (has_word(http_header(head, "transfer-encoding"), "chunked"))
        in->is_chunked = true;
    else if (length.len)
        in->left = strtoull(length.ptr, NULL, 10);
    else if (in->is_answer && in->status >= 200 && in->status != 204 && in->status != 304)
        in->until_close = in->is_last = true;
    return true;
}

static enum http_event read_head(struct http_in *in, struct span *input, struct span *out)
{
    while (in->held_len == 0 && input->len && (*input->ptr == '\r' || *input->ptr == '\n')) {
        input->ptr++;
        input->len--;
    }
    if (input->len == 0)
        return HTTP_MORE;
    if (in->held_len == 0) {
        const char *end = memmem(input->ptr, input->len, "\r\n\r\n", 4);
        if (end) {
            *out = (struct span){input->ptr, (size_t)(end - input->ptr) + 4};
            input->ptr += out->len;
            input->len -= out->len;
            return HTTP_HEAD;
        }
    }
    size_t before = in->held_len, take = input->len;
    if (before + take > HTTP_HEAD_MAX)
        take = HTTP_HEAD_MAX - before;
    char *grown = take ? realloc(in->held, before + take) : NULL;
    if (!grown)
        return HTTP_BAD;
    in->held = grown;
    memcpy(in->held + before, input->ptr, take);
    size_t from = before > 3 ? before - 3 : 0;
    const char *end = memmem(in->held + from, before + take - from, "\r\n\r\n", 4);
    if (end) {
        size_t len = (size_t)(end - in->held) + 4;
        take = len - before; // what follows stays input
        in->held_len = (uint32_t)len;
        *out = (struct span){in->held, len};
    } else {
        in->held_len = (uint32_t)(before + take);
    }
    input->ptr += take;
    input->len -= take;
    if (end)
        return HTTP_HEAD;
    return input->len ? HTTP_BAD : HTTP_MORE;
}

static enum http_event give_bytes(struct http_in *in, struct span *input, struct span *out)
{
    size_t take = input->len;
    if (!in->until_close && take > in->left)
        take = (size_t)in->left;
    *out = (struct span){input->ptr, take};
    input->ptr += take;
    input->len -= take;
    if (!in->until_close)
        in->left -= take;
    return HTTP_BODY;
}

static int hex(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c |= 0x20;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

// One byte of the framing of chunks.
static enum http_event frame_byte(struct http_in *in, char c)
{
    switch (in->state) {
    case AT_SIZE:
        if (hex(c) >= 0) {
            in->left = in->left * 16 + (uint64_t)hex(c);
            return in->left >> 40 ? HTTP_BAD : HTTP_MORE;
        }
        in->state = AT_EXTENSION;
        // fall through
    case AT_EXTENSION:
        if (c == '\n')
            in->state = in->left ? AT_CHUNK : AT_TRAILER;
        return HTTP_MORE;
    case AT_CHUNK_END:
        if (c == '\n') {
            in->state = AT_SIZE;
            in->left = 0;
        }
        return c == '\r' || c == '\n' ? HTTP_MORE : HTTP_BAD;
    default: // trailer: left counts the bytes of the line
        if (c == '\n') {
            if (in->left == 0) {
                in->state = AT_HEAD;
                return HTTP_END;
            }
            in->left = 0;
        } else if (c != '\r') {
            in->left++;
        }
        return HTTP_MORE;
    }
}

enum http_event http_in_next(struct http_in *in, struct span *input, struct span *out)
{
    for (;;) {
        switch (in->state) {
        case AT_HEAD: {
            enum http_event event = read_head(in, input, out);
            if (event != HTTP_HEAD)
                return event;
            if (!take_head(in, *out))
                return HTTP_BAD;
            if (in->is_answer && in->status < 200) {
                drop_held(in); // 100 and its kin
                break;
            }
            in->state = AT_HEAD_GIVEN;
            return HTTP_HEAD;
        }
        case AT_HEAD_GIVEN:
            drop_held(in);
            in->state = in->is_chunked ? AT_SIZE : AT_BODY;
            break;
        case AT_BODY:
            if (!in->until_close && in->left == 0) {
                in->state = AT_HEAD;
                return HTTP_END;
            }
            return input->len ? give_bytes(in, input, out) : HTTP_MORE;
        case AT_CHUNK:
            if (in->left) {
                if (input->len == 0)
                    return HTTP_MORE;
                return give_bytes(in, input, out);
            }
            in->state = AT_CHUNK_END;
            break;
        default: {
            if (input->len == 0)
                return HTTP_MORE;
            char c = *input->ptr++;
            input->len--;
            enum http_event event = frame_byte(in, c);
            if (event != HTTP_MORE)
                return event;
        }
        }
    }
}

bool http_in_closed(const struct http_in *in, bool *is_end)
{
    *is_end = in->state == AT_BODY && in->until_close;
    return *is_end || (in->state == AT_HEAD && in->held_len == 0);
}
