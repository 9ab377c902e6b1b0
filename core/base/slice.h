#pragma once
// A borrowed run of bytes, not NUL-terminated. The one type that crosses every floor for text and
// bytes; C strings stand only at library borders. Any thread; header only.
#include <stdbool.h>
#include <stddef.h>
#include <string.h>
#include <strings.h>

struct slice {
    const char *ptr;
    size_t len;
};

#define SLICE_LIT(text) ((struct slice){"" text, sizeof(text) - 1})
#define SLICE_CONST(text)                                                                          \
    {                                                                                              \
        "" text, sizeof(text) - 1                                                                  \
    } // an initialiser
#define SLICE_NONE ((struct slice){NULL, 0})
#define SLICE_FMT(s) (int)(s).len, (s).ptr // for "%.*s"

static inline struct slice slice_of(const char *ptr, size_t len)
{
    return (struct slice){ptr, len};
}

static inline struct slice slice_str(const char *text)
{
    return (struct slice){text, text ? strlen(text) : 0};
}

static inline bool slice_eq(struct slice a, struct slice b)
{
    return a.len == b.len && (a.len == 0 || memcmp(a.ptr, b.ptr, a.len) == 0);
}

static inline bool slice_is(struct slice a, const char *text)
{
    return slice_eq(a, slice_str(text));
}

static inline bool slice_is_nocase(struct slice a, const char *text)
{
    return a.len == strlen(text) && (a.len == 0 || strncasecmp(a.ptr, text, a.len) == 0);
}

static inline bool slice_starts(struct slice a, const char *prefix)
{
    size_t len = strlen(prefix);
    return len == 0 || (a.len >= len && memcmp(a.ptr, prefix, len) == 0);
}

static inline bool slice_ends(struct slice a, const char *suffix)
{
    size_t len = strlen(suffix);
    return len == 0 || (a.len >= len && memcmp(a.ptr + a.len - len, suffix, len) == 0);
}

// The part from `from`; empty when from is past the end.
static inline struct slice slice_from(struct slice a, size_t from)
{
    if (from > a.len)
        from = a.len;
    return (struct slice){from ? a.ptr + from : a.ptr, a.len - from};
}

// Without leading and trailing spaces and tabs (RFC 9110 OWS), CR and LF.
struct slice slice_trim(struct slice a);
// Position of the first needle, or -1; an empty needle is at 0.
long slice_find(struct slice hay, struct slice needle);
// Reads an unsigned decimal of the whole slice; GW_EINVAL on anything else, or when above max.
int slice_to_u64(struct slice a, unsigned long long max, unsigned long long *out);
