#include "codec/multipart.h"

// Value of a header parameter (name="value" or name=token), case-insensitive name.
static bool find_parameter(struct slice header, const char *name, struct slice *value)
{
    size_t name_len = strlen(name);
    size_t i = 0;
    while (i < header.len) {
        const char *semicolon = memchr(header.ptr + i, ';', header.len - i);
        if (!semicolon)
            return false;
        i = (size_t)(semicolon - header.ptr) + 1;
        while (i < header.len && (header.ptr[i] == ' ' || header.ptr[i] == '\t'))
            i++;
        if (header.len - i <= name_len || strncasecmp(header.ptr + i, name, name_len) != 0 ||
            header.ptr[i + name_len] != '=')
            continue;
        struct slice rest = slice_from(header, i + name_len + 1);
        if (rest.len && rest.ptr[0] == '"') {
            const char *quote = memchr(rest.ptr + 1, '"', rest.len - 1);
            if (!quote)
                return false;
            *value = slice_of(rest.ptr + 1, (size_t)(quote - rest.ptr - 1));
            return true;
        }
        size_t len = 0;
        while (len < rest.len && rest.ptr[len] != ';' && rest.ptr[len] != ' ')
            len++;
        *value = slice_of(rest.ptr, len);
        return true;
    }
    return false;
}

int multipart_boundary(struct slice content_type, struct slice *boundary)
{
    if (content_type.len < 10 || strncasecmp(content_type.ptr, "multipart/", 10) != 0)
        return GW_EINVAL;
    if (!find_parameter(content_type, "boundary", boundary))
        return GW_EINVAL;
    return boundary->len >= 1 && boundary->len <= 70 ? GW_OK : GW_EINVAL; // RFC 2046 §5.1.1
}

// Position just past the next delimiter line, or -1. Sets is_last for the closing delimiter.
static long next_delimiter(struct slice body, size_t from, struct slice boundary, size_t *start,
                           bool *is_last)
{
    for (size_t i = from; i + 2 + boundary.len <= body.len; i++) {
        const char *dash = memchr(body.ptr + i, '-', body.len - i);
        if (!dash)
            return -1;
        i = (size_t)(dash - body.ptr);
        if (i + 2 + boundary.len > body.len)
            return -1;
        bool at_line = i == 0 || (i >= 2 && body.ptr[i - 1] == '\n' && body.ptr[i - 2] == '\r');
        if (!at_line || body.ptr[i + 1] != '-' ||
            memcmp(body.ptr + i + 2, boundary.ptr, boundary.len) != 0)
            continue;
        size_t end = i + 2 + boundary.len;
        if (end + 2 > body.len)
            return -1;
        *start = i;
        if (body.ptr[end] == '-' && body.ptr[end + 1] == '-') {
            *is_last = true;
            return (long)end + 2;
        }
        while (end < body.len && (body.ptr[end] == ' ' || body.ptr[end] == '\t'))
            end++;
        if (end + 2 > body.len)
            return -1;
        if (body.ptr[end] != '\r' || body.ptr[end + 1] != '\n')
            continue;
        *is_last = false;
        return (long)end + 2;
    }
    return -1;
}

// True when the part's head names the form field.
static bool is_field(struct slice head, const char *name)
{
    size_t i = 0;
    while (i < head.len) {
        struct slice rest = slice_from(head, i);
        long eol = slice_find(rest, SLICE_LIT("\r\n"));
        struct slice line = eol < 0 ? rest : slice_of(rest.ptr, (size_t)eol);
        struct slice value;
        if (line.len > 20 && strncasecmp(line.ptr, "content-disposition:", 20) == 0 &&
            find_parameter(line, "name", &value) && slice_is(value, name))
            return true;
        if (eol < 0)
            return false;
        i += (size_t)eol + 2;
    }
    return false;
}

int multipart_field(struct slice body, struct slice boundary, const char *name, struct slice *value)
{
    size_t start = 0;
    bool is_last = false;
    long pos = next_delimiter(body, 0, boundary, &start, &is_last);
    if (pos < 0)
        return body.len > 4096 ? GW_EINVAL : GW_EAGAIN;
    while (!is_last) {
        struct slice rest = slice_from(body, (size_t)pos);
        long head_end = slice_find(rest, SLICE_LIT("\r\n\r\n"));
        if (head_end < 0)
            return GW_EAGAIN;
        size_t value_start = (size_t)pos + (size_t)head_end + 4;
        long next = next_delimiter(body, value_start, boundary, &start, &is_last);
        if (next < 0)
            return GW_EAGAIN;
        if (is_field(slice_of(rest.ptr, (size_t)head_end), name)) {
            size_t end = start >= value_start + 2 ? start - 2 : value_start;
            *value = slice_of(body.ptr + value_start, end - value_start);
            return GW_OK;
        }
        pos = next;
    }
    return GW_ENOTFOUND;
}
