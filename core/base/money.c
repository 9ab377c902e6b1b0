// Exact money. Products go through 128 bits; a sum with discounts through a little big integer, so
// that nothing is rounded before the end. Rounding: half away from zero.
#include "base/money.h"
#include <stdio.h>
#include <string.h>

#define MAX_TEXT 4096 // longer texts are no amounts; keeps exponents in an int
#define MAX_EXPONENT 100000
#define MAX_RATES 4
#define LIMBS 8 // 127 bits × four rates of 63 bits, and the half that is added
#define MICRO_MAX ((__int128)(~(unsigned __int128)0 >> 1))
#define MICRO_MIN (-MICRO_MAX - 1)

struct decimal {
    struct slice digits; // with at most one '.' among them
    int digit_count, fraction, exponent;
    bool is_negative;
};

static bool is_digit(char byte)
{
    return byte >= '0' && byte <= '9';
}

static bool read_exponent(struct slice text, int *exponent)
{
    bool is_negative = text.len > 0 && text.ptr[0] == '-';
    size_t i = text.len > 0 && (text.ptr[0] == '-' || text.ptr[0] == '+');
    if (i == text.len)
        return false;
    int value = 0;
    for (; i < text.len; i++) {
        if (!is_digit(text.ptr[i]))
            return false;
        if (value < MAX_EXPONENT)
            value = value * 10 + (text.ptr[i] - '0');
    }
    *exponent = is_negative ? -value : value;
    return true;
}

// The grammar of JSON numbers, but leading zeros are allowed.
static bool split_decimal(struct slice text, struct decimal *out)
{
    memset(out, 0, sizeof(*out));
    if (text.len == 0 || text.len > MAX_TEXT)
        return false;
    if (text.ptr[0] == '-') {
        out->is_negative = true;
        text = slice_from(text, 1);
    }
    size_t i = 0;
    bool has_point = false;
    for (; i < text.len; i++) {
        if (is_digit(text.ptr[i])) {
            out->digit_count++;
            out->fraction += has_point;
        } else if (text.ptr[i] == '.' && !has_point && i > 0) {
            has_point = true;
        } else {
            break;
        }
    }
    if (out->digit_count == 0 || (has_point && out->fraction == 0))
        return false;
    out->digits = slice_of(text.ptr, i);
    if (i == text.len)
        return true;
    if (text.ptr[i] != 'e' && text.ptr[i] != 'E')
        return false;
    return read_exponent(slice_from(text, i + 1), &out->exponent);
}

// Reads text × 10^scale exactly as sign and size.
static int read_scaled(struct slice text, int scale, bool *is_negative, uint64_t *size)
{
    struct decimal number;
    if (!split_decimal(text, &number))
        return GW_EINVAL;
    // The power of ten of each digit of the result; zeros may lie anywhere.
    int power = number.digit_count - 1 - number.fraction + number.exponent + scale;
    unsigned __int128 sum = 0;
    bool is_big = false;
    for (size_t i = 0; i < number.digits.len; i++) {
        if (number.digits.ptr[i] == '.')
            continue;
        unsigned digit = (unsigned)(number.digits.ptr[i] - '0');
        if (digit && power < 0)
            return GW_EINVAL;
        if (digit && power > 19) {
            is_big = true;
        } else if (digit) {
            unsigned __int128 weight = 1;
            for (int p = 0; p < power; p++)
                weight *= 10;
            sum += weight * digit;
        }
        power--;
    }
    if (is_big || sum > UINT64_MAX)
        return GW_ETOOBIG;
    *is_negative = number.is_negative && sum != 0;
    *size = (uint64_t)sum;
    return 0;
}

static int to_signed(bool is_negative, unsigned __int128 size, int64_t *out)
{
    if (size > (unsigned __int128)INT64_MAX + is_negative)
        return GW_ETOOBIG;
    *out = is_negative ? (int64_t)(0 - (uint64_t)size) : (int64_t)size;
    return 0;
}

int money_parse(struct slice text, int64_t *nano)
{
    bool is_negative;
    uint64_t size;
    int err = read_scaled(text, 9, &is_negative, &size);
    return err ? err : to_signed(is_negative, size, nano);
}

int money_parse_ppm(struct slice text, int64_t max_ppm, int64_t *ppm)
{
    bool is_negative;
    uint64_t size;
    int err = read_scaled(text, 6, &is_negative, &size);
    if (err)
        return err;
    if (is_negative)
        return GW_EINVAL;
    if (max_ppm < 0 || size > (uint64_t)max_ppm)
        return GW_ETOOBIG;
    *ppm = (int64_t)size;
    return 0;
}

static uint64_t size_of(int64_t value)
{
    return value < 0 ? 0 - (uint64_t)value : (uint64_t)value;
}

size_t money_format(int64_t nano, char *out, size_t size)
{
    uint64_t whole = size_of(nano) / (uint64_t)MONEY_USD;
    uint64_t fraction = size_of(nano) % (uint64_t)MONEY_USD;
    gw_require(size >= 24);
    int len = snprintf(out, size, "%s%llu.%09llu", nano < 0 ? "-" : "", (unsigned long long)whole,
                       (unsigned long long)fraction);
    while (out[len - 1] == '0')
        len--;
    if (out[len - 1] == '.')
        len--;
    out[len] = '\0';
    return (size_t)len;
}

int money_add(int64_t a, int64_t b, int64_t *out)
{
    int64_t sum;
    if (__builtin_add_overflow(a, b, &sum))
        return GW_ETOOBIG;
    *out = sum;
    return 0;
}

int money_sub(int64_t a, int64_t b, int64_t *out)
{
    int64_t difference;
    if (__builtin_sub_overflow(a, b, &difference))
        return GW_ETOOBIG;
    *out = difference;
    return 0;
}

int money_scale(int64_t nano, int64_t ppm, int64_t *out)
{
    unsigned __int128 product = (unsigned __int128)size_of(nano) * size_of(ppm);
    product = (product + (unsigned)(MONEY_PPM_ONE / 2)) / (unsigned)MONEY_PPM_ONE;
    return to_signed((nano < 0) != (ppm < 0), product, out);
}

static void add_micro(struct money_sum *sum, __int128 micro)
{
    if (sum->micro == MICRO_MAX || sum->micro == MICRO_MIN)
        return;
    __int128 total;
    if (__builtin_add_overflow(sum->micro, micro, &total))
        total = micro < 0 ? MICRO_MIN : MICRO_MAX;
    sum->micro = total;
}

void money_sum_add(struct money_sum *sum, uint64_t count, int64_t nano_per_million)
{
    // Below 2^127: (2^64 - 1) × 2^63. Unsigned, because clang wants a library for the checked
    // product.
    unsigned __int128 product = (unsigned __int128)count * size_of(nano_per_million);
    add_micro(sum, nano_per_million < 0 ? -(__int128)product : (__int128)product);
}

void money_sum_add_nano(struct money_sum *sum, int64_t nano)
{
    add_micro(sum, (__int128)nano * MONEY_PPM_ONE);
}

static void big_multiply(uint64_t big[LIMBS], uint64_t factor)
{
    unsigned __int128 carry = 0;
    for (int i = 0; i < LIMBS; i++) {
        carry += (unsigned __int128)big[i] * factor;
        big[i] = (uint64_t)carry;
        carry >>= 64;
    }
}

static void big_add(uint64_t big[LIMBS], unsigned __int128 value)
{
    unsigned __int128 carry = 0;
    for (int i = 0; i < LIMBS; i++) {
        carry += (unsigned __int128)big[i] + (uint64_t)value;
        big[i] = (uint64_t)carry;
        carry >>= 64;
        value >>= 64;
    }
}

static void big_divide(uint64_t big[LIMBS], uint64_t divisor)
{
    unsigned __int128 rest = 0;
    for (int i = LIMBS - 1; i >= 0; i--) {
        rest = rest << 64 | big[i];
        big[i] = (uint64_t)(rest / divisor);
        rest %= divisor;
    }
}

int money_sum_round(const struct money_sum *sum, const int64_t *rates_ppm, size_t rate_count,
                    int64_t *nano)
{
    if (sum->micro == MICRO_MAX || sum->micro == MICRO_MIN)
        return GW_ETOOBIG;
    if (rate_count > MAX_RATES)
        return GW_EINVAL;
    bool is_negative = sum->micro < 0;
    unsigned __int128 size =
        is_negative ? 0 - (unsigned __int128)sum->micro : (unsigned __int128)sum->micro;
    uint64_t big[LIMBS] = {(uint64_t)size, (uint64_t)(size >> 64)};
    unsigned __int128 half = (unsigned)(MONEY_PPM_ONE / 2);
    for (size_t i = 0; i < rate_count; i++) {
        if (rates_ppm[i] < 0)
            return GW_EINVAL;
        big_multiply(big, (uint64_t)rates_ppm[i]);
        half *= (unsigned)MONEY_PPM_ONE;
    }
    // Floors of floors are the floor of the whole quotient, so only the half must be added before.
    big_add(big, half);
    for (size_t i = 0; i < rate_count + 1; i++)
        big_divide(big, (uint64_t)MONEY_PPM_ONE);
    for (int i = 1; i < LIMBS; i++) {
        if (big[i])
            return GW_ETOOBIG;
    }
    return to_signed(is_negative, big[0], nano);
}
