// skim against yyjson over tricky texts in several surroundings and over seeded mutations, at every
// 2-way split; then what yyjson cannot tell: limits, offsets of errors, the reading of values.
#include "codec/skim.h"
#include "fuzz/skim_check.h"
#include <check.h>

static const struct slice VALUES[] = {
#define T(text) {"" text, sizeof(text) - 1},
    // Numbers.
    T("0") T("-0") T("1") T("-1") T("10") T("01") T("-01") T("00") T("-") T("--1") T("+1") T(".5")
        T("1.") T("1.5") T("1.05") T("0.0") T("-0.0") T("1.e5") T("1.5.5") T("1..5") T("1e")
            T("1e5") T("1E5") T("1e+5") T("1e-5") T("1e+") T("1e-") T("1e05") T("1e5.5") T("1ee5")
                T("1e5e5") T("0e0") T("0E-0") T("0e") T("0x10") T("1a") T("1 2") T("1-") T("1_000")
                    T("1,000") T("-a") T("- 1") T("-.5") T("1e999") T("-1e999") T("1e-999")
                        T("1e99999999999999999999999") T("18446744073709551615")
                            T("18446744073709551616") T("-9223372036854775809")
                                T("123456789012345678901234567890123456789012345678901234567890")
                                    T("0.000000000000000000000000000000000000000000000001") T("1\0")
                                        T("\0001") T("NaN") T("nan") T("Infinity") T("-Infinity")
                                            T("inf") T("0b1") T("1f") T("\xef\xbc\x91")
    // Literals.
    T("true") T("false") T("null") T("True") T("NULL") T("tru") T("fals") T("nul") T("truee")
        T("nulll") T("falsey") T("t") T("n") T("true false") T("undefined") T("nu\0l")
    // Strings.
    T("\"\"") T("\"a\"") T("\"") T("\"a") T("'a'") T("a\"") T("\"a\"\"") T("\"a\" \"b\"") T(
        "\"\\\"\"") T("\"\\\\\"") T("\"\\/\"") T("\"\\b\\f\\n\\r\\t\"") T("\"\\a\"") T("\"\\v\"")
        T("\"\\0\"") T("\"\\x41\"") T("\"\\'\"") T("\"\\\"") T("\"\\") T("\"\\\n\"") T(
            "\"\\\0\"") T("\"\\U0041\"") T("\"\\u0041\"") T("\"\\u00Af\"") T("\"\\u004\"")
            T("\"\\u00g0\"") T("\"\\u\"") T("\"\\u004") T("\"\\u00 41\"") T("\"\\u-041\"") T(
                "\"\\uHffd\"") T("\"\\u0000\"")
                T("\"\\uffff\"") T("\"\\ud83d\\ude00\"") T("\"\\uD83D\\uDE00\"") T("\"\\ud800\"") T(
                    "\"\\udc00\"") T("\"\\ud800a\"") T("\"\\ud800\\n\"") T("\"\\ud800\\\\\"")
                    T("\"\\ud800\\\"\"") T("\"\\ud800\\u0041\"") T("\"\\ud800\\ud800\"") T(
                        "\"\\ud800\\ud800\\udc00\"") T("\"\\udc00\\ud800\"") T("\"\\udc00\\udc00\"")
                        T("\"\\ud800\\udc0\"") T("\"\\ud800\\u\"") T("\"\\ud800\\x\"") T(
                            "\"\\ud800\\") T("\"\\ud800\\u")
                            T("\"\\ud800") T("\"\\udbff\\udfff\"") T("\"\\ud800\\udbff\"") T(
                                "\"\\ud800\\ue000\"") T("\"\\ud800 \\udc00\"")
                                T("\"\\ud7ff\"") T("\"\\ue000\"") T(
                                    "\"\x01\"") T("\"\x1f\"")
                                    T("\"\x7f\"") T("\"\0\"") T(
                                        "\"a\tb\"") T("\"a\nb\"") T("\"a\rb\"")
                                        T("\"\x20\"") T("\"0123456789abcde\"") T(
                                            "\"0123456789abcdef\"") T("\"0123456789abcdef0\"")
                                            T("\"0123456789abcdef\x01\"") T(
                                                "\"0123456789abcde\\n0123456789abcdef0123456789abcd"
                                                "ef\"")
                                                T("\"0123456789abcdef0123456789abc\xc3\xa9\xe4\xb8"
                                                  "\xad\xf0\x9f\x98\x80 and more text here\"")
    // UTF-8.
    T("\"\xc2\x80\"") T("\"\xdf\xbf\"") T("\"\xe0\xa0\x80\"") T("\"\xef\xbf\xbf\"")
        T("\"\xf0\x90\x80\x80\"") T("\"\xf4\x8f\xbf\xbf\"") T("\"\xc0\x80\"") T("\"\xc1\xbf\"")
            T("\"\xe0\x80\x80\"") T("\"\xe0\x9f\xbf\"") T("\"\xed\x9f\xbf\"") T("\"\xed\xa0\x80\"")
                T("\"\xed\xbf\xbf\"") T("\"\xee\x80\x80\"") T("\"\xf0\x80\x80\x80\"")
                    T("\"\xf0\x8f\xbf\xbf\"") T("\"\xf4\x90\x80\x80\"") T("\"\xf5\x80\x80\x80\"")
                        T("\"\xf8\x88\x80\x80\x80\"") T("\"\x80\"") T("\"\xbf\"") T("\"\xfe\"")
                            T("\"\xff\"") T("\"\xc3\"") T("\"\xe2\x82\"") T("\"\xf0\x9f\x98\"")
                                T("\"\xc3\xc3\xa9\"") T("\"\xe2\x82\x41\"") T("\"\xe2\"\"")
                                    T("\"\xc3") T("\"\xe2\x82") T("\"\xff") T("\"\xc3\0\"")
                                        T("\"\xe2\\n\"") T("\"\xc3\xa9\xc3\xa9\xc3\xa9\"")
                                            T("\"\xe4\xb8\xad\xe6\x96\x87\xe5\xad\x97\xc3\x28\"")
                                                T("\"\xed\xa0\xbd\xed\xb8\x80\"")
    // Arrays and objects.
    T("[]") T("[ ]") T("[\n]") T("[1]") T("[1,2]") T("[1 ,\t2\r\n]") T("[,]") T("[1,]") T("[,1]")
        T("[1,,2]") T("[1 2]") T("[") T("[1") T("[1,") T("]") T("[]]") T("[[]") T("[1}") T("[:]")
            T("[\"a\":1]") T("{}") T("{ }") T("{\"a\":1}") T("{\"a\" : 1}")
                T("{\"a\"\n:\t1 , \"b\":2}") T("{\"a\":1,}") T("{,}") T("{,\"a\":1}")
                    T("{\"a\":1,,\"b\":2}") T("{\"a\"}") T("{\"a\":}") T("{\"a\",1}")
                        T("{\"a\":1 \"b\":2}") T("{a:1}") T("{1:1}") T("{'a':1}") T("{null:1}")
                            T("{[]:1}") T("{\"a\"::1}") T("{") T("{\"") T("{\"a") T("{\"a\"")
                                T("{\"a\":") T("{\"a\":1") T("{\"a\":1,") T("}") T("{}}") T("{{}}")
                                    T("{\"a\":1]") T("{\"a\":{}") T("{\"\":1}") T("{\"\xff\":1}")
                                        T("{\"\\ud800\":1}") T("{\"\x01\":1}") T("{\"a\":1/**/}")
                                            T("[1//\n]") T("[[[[[[[[]]]]]]]]")
                                                T("{\"a\":{\"b\":{\"c\":{\"d\":{}}}}}")
                                                    T("[{\"a\":[{\"b\":[]}]}]")
    // Around the value.
    T("") T(" ") T("\t\r\n ") T(" 1 ") T("\n[]\n") T("[]\0") T("{}\f") T("\v1") T("\xc2\xa0"
                                                                                  "1")
        T("\xef\xbb\xbf{}") T("\xef\xbb\xbf") T("[]\xef\xbb\xbf") T("\xff\xfe[\0]\0") T("[] []")
            T("{} 1") T("#") T("/**/1") T("1;") T("\x1e{}")
    // Paths, duplicates, twins.
    T("{\"model\":\"m\",\"stream\":true,\"stream_options\":{\"include_usage\":false}}") T(
        "{\"model\":1,\"model\":2}") T("{\"model\":1,\"Model\":2}") T("{\"MODEL\":2}")
        T("{\"mod\\u0065l\":1}") T("{\"model\":1,\"mod\\u0065l\":2}") T("{\"mod\\u0045l\":1}") T(
            "{\"\\u006d\\u006f\\u0064\\u0065\\u006c\":[1,2,3]}")
            T("{\"models\":1,\"mode\":2,\"xmodel\":3}") T("{\"a\":{\"b\":1},\"a\":{}}") T(
                "{\"a\":{\"b\":1,\"b\":2}}") T("{\"a\":{\"B\":1},\"A\":{\"b\":1}}")
                T("{\"a\":{\"b\":{\"c\":1,\"C\":2}},\"a\":1}") T(
                    "{\"a\":1,\"a\":{\"b\":{\"c\":{\"c\":1}}}}") T("{\"a\":[{\"b\":1},2]}")
                    T("{\"a\":{\"0\":1,\"1\":[2]}}") T("{\"a\":[[],{}]}") T("[{\"b\":1}]") T(
                        "{\"choices\":[{\"delta\":{\"content\":\"x\\n\"}}],\"usage\":{\"total\":"
                        "1}}") T("{\"b\":{\"a\":1,\"model\":2},\"n\":{\"n\":1,\"N\":2}}")
                        T("{\"\xc3\xa9\":1,\"\\u00e9\":2}") T("{\"\\u00E9\":1}")
                            T("{\"\xc3\x89\":1}") T("{\"\\ud800\":1,\"\\ufffd\":2}") T(
                                "{\"mod\\u0000el\":1}") T("{\"[\":1,\"{\":2,\"a{\":3}")
                                T("{\"m\\odel\":1}") T("{\"\\u004d\\u006f\\u0064el\":\"\\u0041\"}")
                                    T("{\"stream_options\":{\"include_usage\":1,\"Include_Usage\":"
                                      "2,\"include_usage\":3}}")
                                        T("{\"a_name_longer_than_any_component_of_a_path_"
                                          "0123456789012345678901234567890123456789"
                                          "01234567890123456789012345678901234567890123456789012345"
                                          "67890123456789\":1,\"a\":2}")
                                            T("{\"a_name_longer_than_any_component_of_a_path_"
                                              "\\u0030\\u0031234567890123456789012345678901"
                                              "0123456789012345678901234567890123456789012345678901"
                                              "234567890123456789\":1,\"b\":2}")
#undef T
};
#define VALUE_COUNT (sizeof(VALUES) / sizeof(VALUES[0]))

// Each text alone and inside other texts: at the end of input differs from before a bracket.
static const char *const AROUND[][2] = {
    {"", ""},     {"[", "]"}, {"{\"a\":", "}"}, {"{\"model\":1,\"a\":[0,", ",2],\"n\":3}"},
    {"{", ":1}"},
};
#define AROUND_COUNT (sizeof(AROUND) / sizeof(AROUND[0]))

static void check_text(const char *text, size_t len, bool all_splits, size_t seed)
{
    // An exact copy, so that a sanitizer sees reads beyond the text.
    char *copy = malloc(len ? len : 1);
    memcpy(copy, text, len);
    for (int is_lenient = 0; is_lenient < 2; is_lenient++) {
        const char *wrong = skim_check(copy, len, is_lenient, all_splits, seed);
        ck_assert_msg(!wrong, "%s: %.*s (lenient %d)", wrong, (int)len, copy, is_lenient);
    }
    free(copy);
}

static size_t surround(size_t value, size_t around, char *out)
{
    size_t before = strlen(AROUND[around][0]), after = strlen(AROUND[around][1]);
    memcpy(out, AROUND[around][0], before);
    memcpy(out + before, VALUES[value].ptr, VALUES[value].len);
    memcpy(out + before + VALUES[value].len, AROUND[around][1], after + 1);
    return before + VALUES[value].len + after;
}

START_TEST(test_table)
{
    char text[512];
    for (size_t i = 0; i < VALUE_COUNT; i++)
        for (size_t k = 0; k < AROUND_COUNT; k++)
            check_text(text, surround(i, k, text), true, i);
}
END_TEST

static uint64_t random_state;

static uint64_t random_next(uint64_t below)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (random_state >> 11) % below;
}

START_TEST(test_mutations)
{
    static const char BYTES[] =
        "{}[]:,\"\\ \n0123456789eE+-.truefalsnu/dDcC\x01\x80\xc3\xe2\xed\xf0\xff";
    char text[1024], other[512];
    size_t accepted = 0;
    random_state = UINT64_C(0x9e3779b97f4a7c15);
    for (int round = 0; round < 60000; round++) {
        size_t len = surround(random_next(VALUE_COUNT), random_next(AROUND_COUNT), text);
        for (uint64_t n = random_next(3); n > 0; n--) {
            size_t at = random_next(len + 1);
            switch (random_next(4)) {
            case 0: // overwrite
                if (at < len)
                    text[at] = BYTES[random_next(sizeof(BYTES) - 1)];
                break;
            case 1: // insert
                memmove(text + at + 1, text + at, len - at);
                text[at] = BYTES[random_next(sizeof(BYTES) - 1)];
                len++;
                break;
            case 2: // remove
                if (at < len)
                    memmove(text + at, text + at + 1, --len - at);
                break;
            default: { // put another value in
                size_t more = surround(random_next(VALUE_COUNT), 0, other);
                if (len + more > sizeof(text) - 8)
                    break;
                memmove(text + at + more, text + at, len - at);
                memcpy(text + at, other, more);
                len += more;
            }
            }
        }
        text[len] = 0;
        check_text(text, len, len < 48 && round % 4 == 0, random_next(1u << 20));
        struct skim skim;
        accepted += skim_whole(&skim, &(struct skim_spec){0}, slice_of(text, len)) == 0;
    }
    // Both verdicts have to be common, or the comparison says little.
    ck_assert_uint_gt(accepted, 6000);
    ck_assert_uint_lt(accepted, 54000);
}
END_TEST

START_TEST(test_spans)
{
    static const char *const PATHS[] = {"model", "stream_options.include_usage", "messages",
                                        "absent", "messages.1.role"};
    static const char TEXT[] =
        "{ \"messages\" : [ {\"role\":\"a\"} , {\"role\":\"b\\\"\"} ],"
        "\"mod\\u0065l\" :\t\"gpt\" , \"stream_options\":{\"include_usage\":true}}";
    struct slice text = slice_str(TEXT);
    struct skim skim;
    ck_assert_int_eq(skim_whole(&skim, &(struct skim_spec){.paths = PATHS, .path_count = 5}, text),
                     0);
    ck_assert(skim.root_type == SKIM_OBJECT && skim.root_start == 0 && skim.root_end == text.len);
    ck_assert(slice_is(skim_bytes(text, &skim.spans[0]), "\"gpt\""));
    ck_assert_int_eq(strncmp(TEXT + skim.spans[0].key_start, "\"mod\\u0065l\"", 12), 0);
    ck_assert(slice_is(skim_bytes(text, &skim.spans[1]), "true"));
    ck_assert(skim.spans[1].type == SKIM_TRUE);
    ck_assert(skim.spans[2].type == SKIM_ARRAY && skim.spans[2].child_count == 2);
    ck_assert(skim.spans[3].type == SKIM_ABSENT);
    ck_assert(slice_is(skim_bytes(text, &skim.spans[4]), "\"b\\\"\"") && skim.spans[4].has_escapes);
    for (int i = 0; i < 5; i++)
        ck_assert(!skim.spans[i].is_duplicate && !skim.spans[i].has_case_twin);
}
END_TEST

START_TEST(test_duplicates)
{
    static const char *const PATHS[] = {"model", "stream_options.include_usage"};
    static const struct {
        const char *text;
        bool duplicate[2], twin[2];
    } CASES[] = {
        {"{\"model\":1,\"x\":2}", {0, 0}, {0, 0}},
        {"{\"model\":1,\"mod\\u0065l\":2}", {1, 0}, {0, 0}},
        {"{\"model\":1,\"modEl\":2}", {0, 0}, {1, 0}},
        {"{\"m\\u004fdel\":1,\"model\":2}", {0, 0}, {1, 0}},
        {"{\"MODEL\":1}", {0, 0}, {1, 0}},
        {"{\"x\":{\"model\":1},\"model\":{\"Model\":2,\"model\":3}}", {0, 0}, {0, 0}},
        {"{\"stream_options\":{},\"stream_options\":{\"include_usage\":1}}", {0, 1}, {0, 0}},
        {"{\"stream_options\":{\"include_usage\":1,\"include_usage\":1}}", {0, 1}, {0, 0}},
        {"{\"Stream_options\":{}}", {0, 0}, {0, 1}},
        {"{\"stream_options\":{\"include_usagE\":1}}", {0, 0}, {0, 1}},
        {"{\"stream_options\":[{\"include_usage\":1},{\"include_usage\":1}]}", {0, 0}, {0, 0}},
        {"{\"mod\\u212al\":1,\"model\":1,\"modem\":1,\"mode|\":1}", {0, 0}, {0, 0}},
        // _ and DEL differ in the same bit as letters of different case do.
        {"{\"stream\x7foptions\":1}", {0, 0}, {0, 0}},
    };
    for (size_t i = 0; i < sizeof(CASES) / sizeof(CASES[0]); i++) {
        struct skim skim;
        ck_assert_int_eq(skim_whole(&skim, &(struct skim_spec){.paths = PATHS, .path_count = 2},
                                    slice_str(CASES[i].text)),
                         0);
        for (int k = 0; k < 2; k++) {
            ck_assert_msg(skim.spans[k].is_duplicate == CASES[i].duplicate[k], "%s", CASES[i].text);
            ck_assert_msg(skim.spans[k].has_case_twin == CASES[i].twin[k], "%s", CASES[i].text);
        }
    }
    // The last one's place is kept, and nothing of the one before.
    struct skim skim;
    struct slice text = SLICE_LIT("{\"stream_options\":{\"include_usage\":1},\"model\":1,"
                                  "\"stream_options\":{},\"model\":22}");
    ck_assert_int_eq(skim_whole(&skim, &(struct skim_spec){.paths = PATHS, .path_count = 2}, text),
                     0);
    ck_assert(slice_is(skim_bytes(text, &skim.spans[0]), "22"));
    ck_assert(skim.spans[1].type == SKIM_ABSENT && skim.spans[1].is_duplicate);
}
END_TEST

START_TEST(test_limits)
{
    char text[600];
    struct skim skim;
    struct skim_spec spec = {0};
    for (size_t depth = 60; depth < 70; depth++) {
        memset(text, '[', depth);
        memset(text + depth, ']', depth);
        int err = skim_whole(&skim, &spec, slice_of(text, depth * 2));
        ck_assert_int_eq(err, depth <= 64 ? 0 : GW_ETOOBIG);
        if (err) {
            ck_assert_uint_eq(skim.err_offset, 64);
            ck_assert_ptr_nonnull(skim.err_text);
        }
    }
    spec.max_depth = 2;
    ck_assert_int_eq(skim_whole(&skim, &spec, SLICE_LIT("{\"a\":[]}")), 0);
    ck_assert_int_eq(skim_whole(&skim, &spec, SLICE_LIT("{\"a\":[{}]}")), GW_ETOOBIG);
    spec.max_members = 3;
    ck_assert_int_eq(skim_whole(&skim, &spec, SLICE_LIT("[{\"a\":1,\"b\":2},{\"c\":1}]")), 0);
    ck_assert_int_eq(skim_whole(&skim, &spec, SLICE_LIT("[{\"a\":1,\"b\":2},{\"c\":1,\"d\":1}]")),
                     GW_ETOOBIG);
    // Errors stick and say where.
    skim_init(&skim, &(struct skim_spec){0});
    ck_assert_int_eq(skim_feed(&skim, SLICE_LIT("[1,")), 0);
    ck_assert_int_eq(skim_feed(&skim, SLICE_LIT("2x]")), GW_EINVAL);
    ck_assert_uint_eq(skim.err_offset, 4);
    ck_assert_int_eq(skim_feed(&skim, SLICE_LIT("]")), GW_EINVAL);
    ck_assert_int_eq(skim_finish(&skim), GW_EINVAL);
    skim_init(&skim, &(struct skim_spec){0});
    ck_assert_int_eq(skim_feed(&skim, SLICE_LIT("[12")), 0);
    ck_assert_int_eq(skim_finish(&skim), GW_EINVAL);
    ck_assert_uint_eq(skim.err_offset, 3);
}
END_TEST

static int read_u64(const char *text, uint64_t *value)
{
    // Not NUL-terminated in the way of the reader.
    struct skim_span span = {.type = SKIM_NUMBER, .start = 0, .end = strlen(text)};
    return skim_u64(slice_str(text), &span, value);
}

START_TEST(test_u64)
{
    static const struct {
        const char *text;
        int err;
        uint64_t value;
    } CASES[] = {
        {"0", 0, 0},
        {"-0", 0, 0},
        {"0.000", 0, 0},
        {"0e99999999999999999999", 0, 0},
        {"12", 0, 12},
        {"12.0", 0, 12},
        {"1.2e1", 0, 12},
        {"120e-1", 0, 12},
        {"0.0012E+4", 0, 12},
        {"1200.00e-2", 0, 12},
        {"100000000000000000000000000e-26", 0, 1},
        {"18446744073709551615", 0, UINT64_MAX},
        {"18446744073709551616", GW_ETOOBIG, 0},
        {"1e19", 0, UINT64_C(10000000000000000000)},
        {"1e20", GW_ETOOBIG, 0},
        {"1e99999999999999999999", GW_ETOOBIG, 0},
        {"1.5", GW_EINVAL, 0},
        {"1e-1", GW_EINVAL, 0},
        {"1e-99999999999999999999", GW_EINVAL, 0},
        {"-1", GW_EINVAL, 0},
    };
    for (size_t i = 0; i < sizeof(CASES) / sizeof(CASES[0]); i++) {
        uint64_t value = 77;
        ck_assert_msg(read_u64(CASES[i].text, &value) == CASES[i].err, "%s", CASES[i].text);
        ck_assert_msg(value == CASES[i].value, "%s", CASES[i].text);
    }
    uint64_t value;
    struct skim_span span = {.type = SKIM_STRING, .end = 1};
    ck_assert_int_eq(skim_u64(SLICE_LIT("1"), &span, &value), GW_EINVAL);
    span = (struct skim_span){0};
    ck_assert_int_eq(skim_u64(SLICE_LIT("1"), &span, &value), GW_EINVAL);
}
END_TEST

START_TEST(test_string)
{
    static const struct {
        const char *json;
        struct slice text;
    } CASES[] = {
        {"\"\"", SLICE_LIT("")},
        {"\"abc\"", SLICE_LIT("abc")},
        {"\"\\\"\\\\\\/\\b\\f\\n\\r\\t\"", SLICE_LIT("\"\\/\b\f\n\r\t")},
        {"\"\\u0041\\u00e9\\u4e2d\\ud83d\\ude00\\u0000\"",
         SLICE_LIT("A\xc3\xa9\xe4\xb8\xad\xf0\x9f\x98\x80\0")},
        {"\"\\ud83d\"", SLICE_LIT("\xef\xbf\xbd")},
        {"\"x\\ude00y\\ud83d\\n\"", SLICE_LIT("x\xef\xbf\xbdy\xef\xbf\xbd\n")},
    };
    for (size_t i = 0; i < sizeof(CASES) / sizeof(CASES[0]); i++) {
        struct slice text = slice_str(CASES[i].json);
        struct skim_span span = {.type = SKIM_STRING, .end = text.len};
        size_t want = CASES[i].text.len, len;
        char out[64];
        ck_assert_int_eq(skim_string(text, &span, out, want, &len), 0);
        ck_assert(slice_eq(slice_of(out, len), CASES[i].text));
        for (size_t size = 0; size < want; size++)
            ck_assert_int_eq(skim_string(text, &span, out, size, &len), GW_ETOOBIG);
        memset(out, 'x', sizeof(out));
        ck_assert_int_eq(skim_string(text, &span, out, sizeof(out), &len), 0);
        ck_assert_int_eq(out[len], 0);
    }
    struct skim_span span = {.type = SKIM_STRING, .start = 1, .end = 9};
    size_t len;
    char out[8];
    ck_assert_int_eq(skim_string(SLICE_LIT("\"ab\""), &span, out, 8, &len), GW_EINVAL);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("skim");
    TCase *tcase = tcase_create("skim");
    tcase_set_timeout(tcase, 240);
    tcase_add_test(tcase, test_table);
    tcase_add_test(tcase, test_mutations);
    tcase_add_test(tcase, test_spans);
    tcase_add_test(tcase, test_duplicates);
    tcase_add_test(tcase, test_limits);
    tcase_add_test(tcase, test_u64);
    tcase_add_test(tcase, test_string);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_set_fork_status(runner, CK_NOFORK);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? 1 : 0;
}
