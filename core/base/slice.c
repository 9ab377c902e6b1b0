// The slice functions that are too long for the header.
#include "base/slice.h"
#include "base/err.h"

static bool is_ows(char byte)
{
    return byte == ' ' || byte == '\t' || byte == '\r' || byte == '\n';
}

struct slice slice_trim(struct slice a)
{
    while (a.len > 0 && is_ows(a.ptr[0])) {
        a.ptr++;
        a.len--;
    }
    while (a.len > 0 && is_ows(a.ptr[a.len - 1]))
        a.len--;
    return a;
}

long slice_find(struct slice hay, struct slice needle)
{
    if (needle.len == 0)
        return 0;
    if (needle.len > hay.len)
        return -1;
    const char *at = memmem(hay.ptr, hay.len, needle.ptr, needle.len);
    return at ? (long)(at - hay.ptr) : -1;
}

int slice_to_u64(struct slice a, unsigned long long max, unsigned long long *out)
{
    unsigned long long value = 0;
    if (a.len == 0)
        return GW_EINVAL;
    for (size_t i = 0; i < a.len; i++) {
        if (a.ptr[i] < '0' || a.ptr[i] > '9')
            return GW_EINVAL;
        if (__builtin_mul_overflow(value, 10ULL, &value) ||
            __builtin_add_overflow(value, (unsigned long long)(a.ptr[i] - '0'), &value))
            return GW_EINVAL;
    }
    if (value > max)
        return GW_EINVAL;
    *out = value;
    return 0;
}
