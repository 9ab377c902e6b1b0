// A shape is kept as the bytes between the holes; fitting is comparing them and finding the ends of
// the holes, which a quote (of strings) or the first other byte (of numbers) marks.
#include "codec/shape.h"

void shape_learn(struct event_shape *shape, struct slice name, struct slice data,
                 const struct shape_hole *holes, size_t count)
{
    size_t len = name.len, at = 0;
    shape->is_known = false;
    if (count > SHAPE_HOLES || name.len + data.len > SHAPE_BYTES * 8)
        return;
    for (size_t i = 0; i <= count; i++) {
        size_t end = i < count ? holes[i].start : data.len;
        if (end < at || end > data.len || len + (end - at) > SHAPE_BYTES)
            return;
        shape->fixed_len[i] = (uint16_t)(end - at);
        len += end - at;
        if (i < count) {
            shape->kinds[i] = holes[i].kind;
            at = holes[i].end;
        }
    }
    shape->name_len = (uint16_t)name.len;
    shape->hole_count = (uint8_t)count;
    char *out = shape->bytes;
    if (name.len)
        memcpy(out, name.ptr, name.len);
    out += name.len;
    at = 0;
    for (size_t i = 0; i <= count; i++) {
        memcpy(out, data.ptr + at, shape->fixed_len[i]);
        out += shape->fixed_len[i];
        at = i < count ? holes[i].end : at;
    }
    shape->is_known = true;
}

// The end of a string's inside at p, or NULL: not ended, or with an escape of a kind that may not
// be. Counts escapes, each of two bytes for one.
static const char *string_end(const char *p, const char *end, bool may_escape, uint64_t *escapes)
{
    for (;;) {
        const char *quote = memchr(p, '"', (size_t)(end - p));
        if (!quote)
            return NULL;
        const char *slash = memchr(p, '\\', (size_t)(quote - p));
        if (!slash)
            return quote;
        if (!may_escape || end - slash < 2 || !slash[1] || !strchr("\"\\/bfnrt", slash[1]))
            return NULL;
        ++*escapes;
        p = slash + 2;
    }
}

static const char *number_end(const char *p, const char *end, uint64_t *number)
{
    const char *start = p;
    *number = 0;
    while (p < end && *p >= '0' && *p <= '9' && p - start < 19)
        *number = *number * 10 + (uint64_t)(*p++ - '0');
    return p == start || p - start > 18 || (*start == '0' && p - start > 1) ? NULL : p;
}

bool shape_fits(const struct event_shape *shape, struct slice name, struct slice data,
                struct shape_match *match)
{
    if (!shape->is_known || name.len != shape->name_len ||
        (name.len && memcmp(name.ptr, shape->bytes, name.len) != 0))
        return false;
    const char *p = data.ptr, *end = data.ptr + data.len, *fixed = shape->bytes + name.len;
    match->has_escapes = false;
    for (size_t i = 0;; i++) {
        size_t len = shape->fixed_len[i];
        if ((size_t)(end - p) < len || memcmp(p, fixed, len) != 0)
            return false;
        p += len;
        fixed += len;
        if (i == shape->hole_count)
            return p == end;
        uint64_t escapes = 0;
        bool is_text = shape->kinds[i] == SHAPE_TEXT;
        const char *stop = shape->kinds[i] == SHAPE_NUMBER ? number_end(p, end, &match->number)
                                                           : string_end(p, end, is_text, &escapes);
        if (!stop || (is_text && stop == p))
            return false;
        match->holes[i] =
            (struct shape_hole){shape->kinds[i], (size_t)(p - data.ptr), (size_t)(stop - data.ptr)};
        if (is_text) {
            match->text_bytes = (uint64_t)(stop - p) - escapes;
            match->has_escapes = escapes > 0;
        }
        p = stop;
    }
}
