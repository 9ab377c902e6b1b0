#include "io/fetch_head.h"

#include <string.h>

#define MAX_INFORMATIONAL 16
#define MAX_HEADERS 512

void fetch_head_init(struct fetch_head *head, uint32_t max_bytes)
{
    *head = (struct fetch_head){.max_bytes = max_bytes ? max_bytes : 64 * 1024};
}

// "HTTP/1.1 200 OK"; the reason is not looked at.
static int read_status(struct fetch_head *head, struct slice line, const char **why)
{
    *why = "malformed status line";
    if (line.len < 12 || !slice_starts(line, "HTTP/1.") ||
        (line.ptr[7] != '0' && line.ptr[7] != '1') || line.ptr[8] != ' ' ||
        (line.len > 12 && line.ptr[12] != ' '))
        return GW_EPROTO;
    int status = 0;
    for (int i = 9; i < 12; i++) {
        if (line.ptr[i] < '0' || line.ptr[i] > '9')
            return GW_EPROTO;
        status = status * 10 + (line.ptr[i] - '0');
    }
    if (status < 100)
        return GW_EPROTO;
    if (status == 101) {
        *why = "the upstream switched protocols unasked";
        return GW_EPROTO;
    }
    if (status < 200 && ++head->informational_count > MAX_INFORMATIONAL) {
        *why = "too many informational answers";
        return GW_EPROTO;
    }
    head->status = status;
    head->has_status = true;
    head->is_http10 = line.ptr[7] == '0';
    head->is_chunked = head->has_length = false;
    head->count = 0;
    return 0;
}

static int read_framing(struct fetch_head *head, struct slice name, struct slice value,
                        const char **why)
{
    if (slice_is(name, "content-length")) {
        unsigned long long length;
        if (slice_to_u64(value, INT64_MAX, &length)) {
            *why = "malformed content-length";
            return GW_EPROTO;
        }
        if (head->has_length && head->length != length) {
            *why = "two different content-lengths";
            return GW_EPROTO;
        }
        head->has_length = true;
        head->length = length;
    } else if (slice_is(name, "transfer-encoding")) {
        if (head->is_chunked || head->is_http10 || !slice_is_nocase(value, "chunked")) {
            *why = "a transfer-encoding other than one chunked";
            return GW_EPROTO;
        }
        head->is_chunked = true;
    }
    if (head->is_chunked && head->has_length) {
        *why = "both content-length and transfer-encoding";
        return GW_EPROTO;
    }
    return 0;
}

static int add_header(struct fetch_head *head, struct arena *arena, struct slice name,
                      struct slice value)
{
    if (head->count >= MAX_HEADERS)
        return GW_ETOOBIG;
    if (head->count == head->capacity) {
        size_t capacity = head->capacity ? head->capacity * 2 : 24;
        struct http1_header *headers = arena_alloc(arena, capacity * sizeof *headers);
        if (headers == NULL)
            return GW_ENOMEM;
        if (head->count)
            memcpy(headers, head->headers, head->count * sizeof *headers);
        head->headers = headers;
        head->capacity = capacity;
    }
    head->headers[head->count++] = (struct http1_header){name, value};
    return 0;
}

static int read_header(struct fetch_head *head, struct arena *arena, struct slice line,
                       const char **why)
{
    size_t colon = 0;
    while (colon < line.len && fetch_is_token_char((unsigned char)line.ptr[colon]))
        colon++;
    if (colon == 0 || colon >= line.len || line.ptr[colon] != ':') {
        *why = colon == 0 && (line.ptr[0] == ' ' || line.ptr[0] == '\t') ? "folded header line"
                                                                         : "malformed header line";
        return GW_EPROTO;
    }
    struct slice value = slice_trim(slice_from(line, colon + 1));
    for (size_t i = 0; i < value.len; i++) {
        unsigned char c = (unsigned char)value.ptr[i];
        if (c == '\0' || c == '\r' || c == '\n') {
            *why = "control character in a header";
            return GW_EPROTO;
        }
    }
    char *copy = arena_alloc(arena, colon + value.len + 1);
    if (copy == NULL) {
        *why = "out of memory";
        return GW_ENOMEM;
    }
    for (size_t i = 0; i < colon; i++) {
        char c = line.ptr[i];
        copy[i] = c >= 'A' && c <= 'Z' ? (char)(c + 32) : c;
    }
    memcpy(copy + colon, value.ptr, value.len);
    struct slice name = slice_of(copy, colon);
    value = slice_of(copy + colon, value.len);
    int err = read_framing(head, name, value, why);
    if (err)
        return err;
    *why = "too many headers";
    return head->status < 200 ? 0 : add_header(head, arena, name, value);
}

int fetch_head_line(struct fetch_head *head, struct arena *arena, struct slice line,
                    const char **why)
{
    *why = "";
    if (line.len > head->max_bytes - head->byte_count) {
        *why = "the answer's head is too big";
        return GW_ETOOBIG;
    }
    head->byte_count += (uint32_t)line.len;
    if (head->is_final)
        return 0; // trailers are dropped
    if (line.len > 0 && line.ptr[line.len - 1] == '\n')
        line.len--;
    if (line.len > 0 && line.ptr[line.len - 1] == '\r')
        line.len--;
    if (!head->has_status)
        return read_status(head, line, why);
    if (line.len > 0)
        return read_header(head, arena, line, why);
    head->has_status = false;
    head->is_final = head->status >= 200;
    return 0;
}
