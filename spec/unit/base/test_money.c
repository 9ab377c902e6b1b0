// money: tables, and random cases against other ways of computing the same.
#include "base/money.h"
#include <check.h>
#include <stdio.h>
#include <stdlib.h>

START_TEST(parses)
{
    static const struct {
        const char *text;
        int err;
        int64_t nano;
    } cases[] = {
        {"0", 0, 0},
        {"-0", 0, 0},
        {"-0.000", 0, 0},
        {"3", 0, 3000000000},
        {"-12.5", 0, -12500000000},
        {"1e-3", 0, 1000000},
        {"1E+3", 0, 1000000000000},
        {"0.075", 0, 75000000},
        {"0.000000001", 0, 1},
        {"0.0000000010000", 0, 1},
        {"1e-9", 0, 1},
        {"10e-10", 0, 1},
        {"0.00000001e1", 0, 100},
        {"123456789e-9", 0, 123456789},
        {"007.5", 0, 7500000000},
        {"0e99999999999", 0, 0},
        {"0e-99999999999", 0, 0},
        {"0.0000000000000000000000000000001e31", 0, 1000000000},
        {"100000000000000000000000000000000e-32", 0, 1000000000},
        {"9223372036.854775807", 0, INT64_MAX},
        {"-9223372036.854775808", 0, INT64_MIN},
        {"9223372036.854775808", GW_ETOOBIG, 0},
        {"-9223372036.854775809", GW_ETOOBIG, 0},
        {"1e10", GW_ETOOBIG, 0},
        {"99999999999", GW_ETOOBIG, 0},
        {"1e99999999999", GW_ETOOBIG, 0},
        {"0.0000000001", GW_EINVAL, 0},
        {"1e-10", GW_EINVAL, 0},
        {"1.0000000001", GW_EINVAL, 0},
        {"1e-99999999999", GW_EINVAL, 0},
        {"", GW_EINVAL, 0},
        {"-", GW_EINVAL, 0},
        {"+1", GW_EINVAL, 0},
        {".5", GW_EINVAL, 0},
        {"5.", GW_EINVAL, 0},
        {"1.e3", GW_EINVAL, 0},
        {"1e", GW_EINVAL, 0},
        {"1e-", GW_EINVAL, 0},
        {"1e1.5", GW_EINVAL, 0},
        {"1.2.3", GW_EINVAL, 0},
        {" 1", GW_EINVAL, 0},
        {"1 ", GW_EINVAL, 0},
        {"0x10", GW_EINVAL, 0},
        {"nan", GW_EINVAL, 0},
        {"--1", GW_EINVAL, 0},
        {"1,5", GW_EINVAL, 0},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        int64_t nano = 0;
        int err = money_parse(slice_str(cases[i].text), &nano);
        ck_assert_msg(err == cases[i].err && nano == cases[i].nano, "%s: %d %lld", cases[i].text,
                      err, (long long)nano);
    }
    int64_t nano;
    ck_assert_int_eq(money_parse(SLICE_NONE, &nano), GW_EINVAL);
    ck_assert_int_eq(money_parse(slice_of("1\0002", 3), &nano), GW_EINVAL);
}
END_TEST

START_TEST(formats)
{
    static const struct {
        int64_t nano;
        const char *text;
    } cases[] = {{0, "0"},
                 {1, "0.000000001"},
                 {-1, "-0.000000001"},
                 {12500000000, "12.5"},
                 {100000000000, "100"},
                 {-1000000000, "-1"},
                 {INT64_MAX, "9223372036.854775807"},
                 {INT64_MIN, "-9223372036.854775808"}};
    char out[24];
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        ck_assert_uint_eq(money_format(cases[i].nano, out, sizeof(out)), strlen(cases[i].text));
        ck_assert_str_eq(out, cases[i].text);
    }
}
END_TEST

START_TEST(parses_rates)
{
    static const struct {
        const char *text;
        int64_t max;
        int err;
        int64_t ppm;
    } cases[] = {{"1", 1000000, 0, 1000000},
                 {"0.85", 1000000, 0, 850000},
                 {"0", 0, 0, 0},
                 {"0.000001", 10, 0, 1},
                 {"-0", 10, 0, 0},
                 {"0.0000001", 1000000, GW_EINVAL, 0},
                 {"-0.5", 1000000, GW_EINVAL, 0},
                 {"1.000001", 1000000, GW_ETOOBIG, 0},
                 {"x", 1000000, GW_EINVAL, 0},
                 {"1e30", INT64_MAX, GW_ETOOBIG, 0}};
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        int64_t ppm = 0;
        ck_assert_int_eq(money_parse_ppm(slice_str(cases[i].text), cases[i].max, &ppm),
                         cases[i].err);
        ck_assert_int_eq(ppm, cases[i].ppm);
    }
}
END_TEST

START_TEST(adds_and_scales)
{
    int64_t out = 7;
    ck_assert_int_eq(money_add(INT64_MAX, 1, &out), GW_ETOOBIG);
    ck_assert_int_eq(money_sub(INT64_MIN, 1, &out), GW_ETOOBIG);
    ck_assert_int_eq(out, 7);
    ck_assert_int_eq(money_add(INT64_MAX, INT64_MIN, &out), 0);
    ck_assert_int_eq(out, -1);
    ck_assert_int_eq(money_sub(-5, -7, &out), 0);
    ck_assert_int_eq(out, 2);

    static const struct {
        int64_t nano, ppm;
        int err;
        int64_t result;
    } cases[] = {{10, 50000, 0, 1},   // 0.5 goes up
                 {-10, 50000, 0, -1}, // and away from zero
                 {10, 49999, 0, 0},
                 {-10, 49999, 0, 0},
                 {30, 50000, 0, 2},
                 {-30, 50000, 0, -2},
                 {10, -50000, 0, -1},
                 {-10, -50000, 0, 1},
                 {0, 123, 0, 0},
                 {INT64_MAX, 1000000, 0, INT64_MAX},
                 {INT64_MIN, 1000000, 0, INT64_MIN},
                 {INT64_MAX, 1000001, GW_ETOOBIG, 0},
                 {INT64_MIN, INT64_MIN, GW_ETOOBIG, 0},
                 {INT64_MIN, -1000000, GW_ETOOBIG, 0}};
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        out = 0;
        ck_assert_int_eq(money_scale(cases[i].nano, cases[i].ppm, &out), cases[i].err);
        ck_assert_int_eq(out, cases[i].result);
    }
}
END_TEST

START_TEST(sums_round_once)
{
    struct money_sum sum = {0};
    int64_t nano = 0;
    // 3 + 5 tokens at 0.1 nano each: rounding each would give 0 + 1.
    money_sum_add(&sum, 3, 100000);
    money_sum_add(&sum, 5, 100000);
    ck_assert_int_eq(money_sum_round(&sum, NULL, 0, &nano), 0);
    ck_assert_int_eq(nano, 1);
    // 1,000 tokens at 3 USD/M = 3,000,000 nano, minus 15 %, minus 10 %.
    sum.micro = 0;
    money_sum_add(&sum, 1000, 3 * MONEY_USD);
    const int64_t rates[] = {850000, 900000, 1000000, 1000000, 1000000};
    ck_assert_int_eq(money_sum_round(&sum, rates, 4, &nano), 0);
    ck_assert_int_eq(nano, 2295000);
    ck_assert_int_eq(money_sum_round(&sum, rates, 5, &nano), GW_EINVAL);
    const int64_t negative[] = {-1};
    ck_assert_int_eq(money_sum_round(&sum, negative, 1, &nano), GW_EINVAL);
    // Exactly half, both signs, also through rates.
    sum.micro = 1500000;
    ck_assert_int_eq(money_sum_round(&sum, NULL, 0, &nano), 0);
    ck_assert_int_eq(nano, 2);
    sum.micro = -1500000;
    ck_assert_int_eq(money_sum_round(&sum, NULL, 0, &nano), 0);
    ck_assert_int_eq(nano, -2);
    sum.micro = -8000000;
    const int64_t half[] = {500000, 500000, 250000};
    ck_assert_int_eq(money_sum_round(&sum, half, 3, &nano), 0);
    ck_assert_int_eq(nano, -1);
    sum.micro++;
    ck_assert_int_eq(money_sum_round(&sum, half, 3, &nano), 0);
    ck_assert_int_eq(nano, 0);
    sum.micro = 0;
    money_sum_add_nano(&sum, INT64_MIN);
    ck_assert_int_eq(money_sum_round(&sum, NULL, 0, &nano), 0);
    ck_assert_int_eq(nano, INT64_MIN);
    money_sum_add_nano(&sum, -1);
    ck_assert_int_eq(money_sum_round(&sum, NULL, 0, &nano), GW_ETOOBIG);
}
END_TEST

START_TEST(sums_overflow_sticks)
{
    struct money_sum sum = {0};
    int64_t nano;
    const int64_t zero[] = {0};
    money_sum_add(&sum, UINT64_MAX, INT64_MAX);
    ck_assert_int_eq(money_sum_round(&sum, NULL, 0, &nano), GW_ETOOBIG);
    money_sum_add(&sum, UINT64_MAX, INT64_MAX);
    money_sum_add(&sum, UINT64_MAX, INT64_MIN);
    money_sum_add(&sum, UINT64_MAX, INT64_MIN);
    ck_assert_int_eq(money_sum_round(&sum, zero, 1, &nano), GW_ETOOBIG);
    sum.micro = 0;
    money_sum_add(&sum, UINT64_MAX, INT64_MIN);
    money_sum_add(&sum, UINT64_MAX, INT64_MIN);
    money_sum_add(&sum, UINT64_MAX, INT64_MAX);
    ck_assert_int_eq(money_sum_round(&sum, zero, 1, &nano), GW_ETOOBIG);
    // Huge but whole: four large rates stay exact.
    sum.micro = 1000000;
    const int64_t rates[] = {INT64_MAX, 1, 1000000, 1000000};
    ck_assert_int_eq(money_sum_round(&sum, rates, 4, &nano), 0);
    ck_assert_int_eq(nano, 9223372); // 2^63 / 1e12 = 9223372.04
    const int64_t largest[] = {INT64_MAX, INT64_MAX, INT64_MAX, INT64_MAX};
    ck_assert_int_eq(money_sum_round(&sum, largest, 4, &nano), GW_ETOOBIG);
}
END_TEST

static uint64_t seed = 42;
static uint64_t next_random(void)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return seed;
}

// A number of any size: few and many bits alike.
static int64_t any_int64(void)
{
    return (int64_t)next_random() >> (next_random() % 64);
}

// Half away from zero, on signed numbers and by the remainder: another way than money.c's.
static __int128 divide_half_away(__int128 n, __int128 d)
{
    __int128 q = n / d, r = n % d;
    if (r < 0 ? -r >= d - -r : r >= d - r)
        q += n < 0 ? -1 : 1;
    return q;
}

START_TEST(random_against_int128)
{
    for (int i = 0; i < 200000; i++) {
        int64_t a = any_int64(), b = any_int64(), out;
        char text[24];
        money_format(a, text, sizeof(text));
        ck_assert(money_parse(slice_str(text), &out) == 0 && out == a);

        __int128 want = divide_half_away((__int128)a * b, 1000000);
        bool fits = want >= INT64_MIN && want <= INT64_MAX;
        int err = money_scale(a, b, &out);
        ck_assert(err == (fits ? 0 : GW_ETOOBIG));
        ck_assert(err || out == want);

        // Tokens below 2^33, prices below 2^40, one rate below 2^21: exact in 128 bits.
        struct money_sum sum = {0};
        __int128 exact = 0;
        for (int k = 0; k < 4; k++) {
            uint64_t count = next_random() >> (31 + next_random() % 33);
            int64_t price = (int64_t)(next_random() >> (24 + next_random() % 40));
            if (next_random() % 4 == 0)
                price = -price;
            money_sum_add(&sum, count, price);
            exact += (__int128)count * price;
        }
        int64_t rates[2] = {(int64_t)(next_random() >> 43), (int64_t)(next_random() >> 43)};
        want = divide_half_away(exact * rates[0], 1000000000000);
        fits = want >= INT64_MIN && want <= INT64_MAX;
        err = money_sum_round(&sum, rates, 1, &out);
        ck_assert(err == (fits ? 0 : GW_ETOOBIG));
        ck_assert(err || out == want);
        // A smaller sum leaves room for a second rate.
        sum.micro = exact % ((__int128)1 << 80);
        want = divide_half_away(sum.micro * rates[0] * rates[1], (__int128)1000000000000 * 1000000);
        fits = want >= INT64_MIN && want <= INT64_MAX;
        err = money_sum_round(&sum, rates, 2, &out);
        ck_assert(err == (fits ? 0 : GW_ETOOBIG));
        ck_assert(err || out == want);
    }
}
END_TEST

START_TEST(random_spellings)
{
    // One value written with the point and the exponent moved about reads the same.
    for (int i = 0; i < 20000; i++) {
        int64_t nano = any_int64(), out = 0;
        if (nano == INT64_MIN)
            continue;
        char digits[32], text[64];
        snprintf(digits, sizeof(digits), "%021llu", (unsigned long long)llabs(nano));
        int point = 1 + (int)(next_random() % 20);
        snprintf(text, sizeof(text), "%s%.*s.%se%d", nano < 0 ? "-" : "", point, digits,
                 digits + point, 21 - point - 9);
        ck_assert_msg(money_parse(slice_str(text), &out) == 0 && out == nano, "%s", text);
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("money");
    TCase *tc = tcase_create("all");
    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, parses);
    tcase_add_test(tc, formats);
    tcase_add_test(tc, parses_rates);
    tcase_add_test(tc, adds_and_scales);
    tcase_add_test(tc, sums_round_once);
    tcase_add_test(tc, sums_overflow_sticks);
    tcase_add_test(tc, random_against_int128);
    tcase_add_test(tc, random_spellings);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_set_fork_status(runner, CK_NOFORK);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
