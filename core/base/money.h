#pragma once
// Money is signed 64-bit integer nano-USD (1 USD = 1e9). No floating point, ever. Rates are parts
// per million. Prices are exact decimals of USD per million tokens, held as nano-USD per million
// tokens (so "0.075" is 75,000,000; at most 9 fraction digits). One rounding per call: half
// up, for negative amounts too by size (half away from zero), so that a refund mirrors its charge.
// Pure; any thread. Source: DESIGN §6.
#include "base/err.h"
#include "base/slice.h"
#include <stdint.h>

#define MONEY_USD INT64_C(1000000000)  // nano-USD in a dollar
#define MONEY_QUOTA INT64_C(2000)      // nano-USD in one quota unit
#define MONEY_PPM_ONE INT64_C(1000000) // the rate 1

// Reads "-12.5", "1e-3" or "3" exactly. GW_EINVAL: no number, or more than 9 fraction digits that
// are not zero; GW_ETOOBIG: beyond int64.
GW_MUSTCHECK int money_parse(struct slice text, int64_t *nano);
// Writes the shortest exact decimal ("12.5", "0", "-0.000000001"); size ≥ 24. Returns its length.
size_t money_format(int64_t nano, char *out, size_t size);
// Reads a rate 0..max as ppm exactly. GW_EINVAL: no number, negative, or more than 6 fraction
// digits that are not zero; GW_ETOOBIG: above max.
GW_MUSTCHECK int money_parse_ppm(struct slice text, int64_t max_ppm, int64_t *ppm);

GW_MUSTCHECK int money_add(int64_t a, int64_t b, int64_t *out); // GW_ETOOBIG on overflow
GW_MUSTCHECK int money_sub(int64_t a, int64_t b, int64_t *out);
// round_half_up(nano × ppm / 1e6), 128-bit inside.
GW_MUSTCHECK int money_scale(int64_t nano, int64_t ppm, int64_t *out);

// An exact running sum of count × price before its one rounding.
struct money_sum {
    __int128 micro; // nano-USD × 1e6; the extreme values mean overflow and stay
};
// Adds count tokens at nano_per_million. Negative counts are an error of ours.
void money_sum_add(struct money_sum *sum, uint64_t count, int64_t nano_per_million);
void money_sum_add_nano(struct money_sum *sum, int64_t nano);
// × ppm / 1e6 must stay exact until the end: up to four rates (discounts) are multiplied in here,
// and the only rounding, half up, happens here. GW_ETOOBIG beyond int64; GW_EINVAL: a negative rate
// or more than four.
GW_MUSTCHECK int money_sum_round(const struct money_sum *sum, const int64_t *rates_ppm,
                                 size_t rate_count, int64_t *nano);
