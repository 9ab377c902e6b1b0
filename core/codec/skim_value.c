// Reads the values that skim found: strings decoded, whole numbers exact.
#include "codec/skim.h"
#include "codec/skim_text.h"
#include <string.h>

static bool is_inside(struct slice text, const struct skim_span *span)
{
    return span->start <= span->end && span->end <= text.len;
}

static uint32_t read_unit(const unsigned char *p)
{
    uint32_t unit = 0;
    for (int i = 0; i < 4; i++) {
        int digit = hex_of(p[i]);
        if (digit < 0)
            return UINT32_MAX;
        unit = unit << 4 | (uint32_t)digit;
    }
    return unit;
}

int skim_string(struct slice text, const struct skim_span *span, char *out, size_t size,
                size_t *len)
{
    *len = 0;
    if (span->type != SKIM_STRING || !is_inside(text, span) || span->end - span->start < 2)
        return GW_EINVAL;
    const unsigned char *p = (const unsigned char *)text.ptr + span->start + 1;
    const unsigned char *end = (const unsigned char *)text.ptr + span->end - 1;
    size_t at = 0;
    while (p < end) {
        const unsigned char *slash = memchr(p, '\\', (size_t)(end - p));
        size_t plain = (size_t)((slash ? slash : end) - p);
        if (plain > size - at)
            return GW_ETOOBIG;
        if (plain)
            memcpy(out + at, p, plain);
        at += plain;
        p += plain;
        if (!slash)
            break;
        if (end - p < 2)
            return GW_EINVAL;
        char code[4];
        size_t code_len = 1;
        if (p[1] != 'u') {
            code[0] = escape_of(p[1]);
            if (!code[0])
                return GW_EINVAL;
            p += 2;
        } else {
            uint32_t unit = end - p >= 6 ? read_unit(p + 2) : UINT32_MAX;
            if (unit == UINT32_MAX)
                return GW_EINVAL;
            p += 6;
            if (is_high(unit)) {
                uint32_t low =
                    end - p >= 6 && p[0] == '\\' && p[1] == 'u' ? read_unit(p + 2) : UINT32_MAX;
                if (low != UINT32_MAX && is_low(low)) {
                    unit = 0x10000 + ((unit - 0xd800) << 10) + (low - 0xdc00);
                    p += 6;
                } else {
                    unit = 0xfffd;
                }
            } else if (is_low(unit)) {
                unit = 0xfffd;
            }
            code_len = encode_utf8(unit, code);
        }
        if (code_len > size - at)
            return GW_ETOOBIG;
        memcpy(out + at, code, code_len);
        at += code_len;
    }
    if (at < size)
        out[at] = 0;
    *len = at;
    return 0;
}

int skim_u64(struct slice text, const struct skim_span *span, uint64_t *out)
{
    *out = 0;
    if (span->type != SKIM_NUMBER || !is_inside(text, span) || span->start == span->end)
        return GW_EINVAL;
    const char *p = text.ptr + span->start, *end = text.ptr + span->end;
    bool is_negative = *p == '-';
    p += is_negative;
    const char *digits = p;
    int64_t exponent = 0;
    bool is_fraction = false;
    const char *last = NULL; // the last digit that is not zero
    int64_t last_scale = 0;  // the power of ten of that digit, before the exponent
    for (; p < end && (is_digit((unsigned char)*p) || *p == '.'); p++) {
        if (*p == '.') {
            is_fraction = true;
            continue;
        }
        if (is_fraction)
            exponent--;
        if (*p != '0') {
            last = p;
            last_scale = exponent;
        } else if (!is_fraction && last) {
            last_scale++;
        }
    }
    if (!last)
        return p > digits ? 0 : GW_EINVAL; // zero, also -0 and 0e9
    if (is_negative)
        return GW_EINVAL;
    if (p < end) {
        // The scanner has checked that this is e, a sign and digits.
        p++;
        bool is_down = p < end && *p == '-';
        p += p < end && (*p == '-' || *p == '+');
        int64_t value = 0;
        for (; p < end && is_digit((unsigned char)*p); p++)
            if (value < INT64_C(1000000000000))
                value = value * 10 + (*p - '0');
        last_scale += is_down ? -value : value;
    }
    if (last_scale < 0)
        return GW_EINVAL;
    uint64_t value = 0;
    for (const char *d = digits; d <= last; d++) {
        if (*d == '.')
            continue;
        if (__builtin_mul_overflow(value, (uint64_t)10, &value) ||
            __builtin_add_overflow(value, (uint64_t)(*d - '0'), &value))
            return GW_ETOOBIG;
    }
    for (; last_scale > 0; last_scale--)
        if (__builtin_mul_overflow(value, (uint64_t)10, &value))
            return GW_ETOOBIG;
    *out = value;
    return 0;
}
