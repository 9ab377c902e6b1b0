// The writer's exact output, quoting read back by yyjson for seeded random bytes, and the parser's
// limits of memory and depth.
#include "codec/json.h"
#include <check.h>
#include <math.h>
#include <stdlib.h>

START_TEST(test_writer)
{
    struct buf buf = BUF_INIT(0);
    struct json_out out;
    json_begin(&out, &buf);
    json_object(&out);
    json_key(&out, "a");
    json_i64(&out, INT64_MIN);
    json_key(&out, "b");
    json_array(&out);
    json_u64(&out, UINT64_MAX);
    json_bool(&out, true);
    json_bool(&out, false);
    json_null(&out);
    json_object(&out);
    json_object_end(&out);
    json_array(&out);
    json_array_end(&out);
    json_raw(&out, SLICE_LIT("{\"x\": 1}"));
    json_array_end(&out);
    json_key_slice(&out, SLICE_LIT("q\"\n"));
    json_object(&out);
    json_key(&out, "s");
    json_str(&out, "x\\y");
    json_key(&out, "n");
    json_str(&out, NULL);
    json_object_end(&out);
    json_key(&out, "m");
    json_money(&out, -1500000000);
    json_key(&out, "t");
    json_text(&out, SLICE_LIT("\x01\x1f\x7f\b\f\n\r\t/\0\xc3\xa9"));
    json_object_end(&out);
    ck_assert_int_eq(json_end(&out), 0);
    static const char WANT[] = "{\"a\":-9223372036854775808,\"b\":[18446744073709551615,true,false,"
                               "null,{},[],{\"x\": 1}],\"q\\\"\\n\":{\"s\":\"x\\\\y\",\"n\":null},"
                               "\"m\":-1.5,\"t\":\"\\u0001\\u001f\x7f\\b\\f\\n\\r\\t/\\u0000"
                               "\xc3\xa9\"}";
    ck_assert_msg(slice_is(buf_slice(&buf), WANT), "%.*s", SLICE_FMT(buf_slice(&buf)));
    buf_free(&buf);
}
END_TEST

START_TEST(test_double)
{
    static const double VALUES[] = {
        0.0, 1.0, -1.5, 0.1, 1.0 / 3, 1e300, 5e-324, 123456789012345680.0, 0.30000000000000004};
    static const char *const TEXTS[] = {
        "0", "1", "-1.5", "0.1", NULL, NULL, NULL, NULL, "0.30000000000000004"};
    for (size_t i = 0; i < sizeof(VALUES) / sizeof(VALUES[0]); i++) {
        struct buf buf = BUF_INIT(0);
        struct json_out out;
        json_begin(&out, &buf);
        json_double(&out, VALUES[i]);
        ck_assert_int_eq(json_end(&out), 0);
        ck_assert_int_eq(buf_append_char(&buf, 0), 0);
        ck_assert(strtod(buf_slice(&buf).ptr, NULL) == VALUES[i]);
        ck_assert(!TEXTS[i] || strcmp(buf_slice(&buf).ptr, TEXTS[i]) == 0);
        buf_free(&buf);
    }
    struct buf buf = BUF_INIT(0);
    struct json_out out;
    json_begin(&out, &buf);
    json_array(&out);
    json_double(&out, NAN);
    json_double(&out, -INFINITY);
    json_array_end(&out);
    ck_assert_int_eq(json_end(&out), 0);
    ck_assert(slice_is(buf_slice(&buf), "[null,null]"));
    buf_free(&buf);
}
END_TEST

START_TEST(test_writer_errors)
{
    struct buf buf = BUF_INIT(8);
    struct json_out out;
    json_begin(&out, &buf);
    json_array(&out);
    json_str(&out, "longer than eight");
    json_null(&out);
    json_array_end(&out);
    ck_assert_int_eq(json_end(&out), GW_ETOOBIG);
    buf_free(&buf);

    buf_init(&buf, 0);
    json_begin(&out, &buf);
    json_object(&out);
    ck_assert_int_eq(json_end(&out), GW_EINTERNAL); // left open
    json_begin(&out, &buf);
    json_object_end(&out);
    ck_assert_int_eq(json_end(&out), GW_EINTERNAL); // closed once too often
    json_begin(&out, &buf);
    for (int i = 0; i < 70; i++)
        json_array(&out);
    for (int i = 0; i < 70; i++)
        json_array_end(&out);
    ck_assert_int_eq(json_end(&out), GW_ETOOBIG);

    buf_clear(&buf);
    ck_assert_int_eq(buf_append_str(&buf, "kept"), 0);
    buf.cap = 10;
    ck_assert_int_eq(json_quote(&buf, SLICE_LIT("abc\n\n\n")), GW_ETOOBIG);
    ck_assert(slice_is(buf_slice(&buf), "kept"));
    ck_assert_int_eq(json_quote(&buf, SLICE_LIT("ab\n")), 0);
    ck_assert(slice_is(buf_slice(&buf), "kept\"ab\\n\""));
    buf_free(&buf);
}
END_TEST

START_TEST(test_quote)
{
    static const struct {
        struct slice text;
        const char *want;
    } CASES[] = {
        {SLICE_LIT(""), "\"\""},
        {SLICE_LIT("\xc3\xa9\xe4\xb8\xad\xf0\x9f\x98\x80"),
         "\"\xc3\xa9\xe4\xb8\xad\xf0\x9f\x98\x80\""},
        {SLICE_LIT("a\xff"
                   "b"),
         "\"a\xef\xbf\xbd"
         "b\""},
        {SLICE_LIT("\xc3"), "\"\xef\xbf\xbd\""},
        {SLICE_LIT("\xe4\xb8"), "\"\xef\xbf\xbd\xef\xbf\xbd\""},
        {SLICE_LIT("\xed\xa0\x80\xc0\x80"),
         "\"\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\""},
    };
    struct buf buf = BUF_INIT(0);
    for (size_t i = 0; i < sizeof(CASES) / sizeof(CASES[0]); i++) {
        buf_clear(&buf);
        ck_assert_int_eq(json_quote(&buf, CASES[i].text), 0);
        ck_assert_msg(slice_is(buf_slice(&buf), CASES[i].want), "case %zu", i);
    }
    // Whatever the bytes, the result is JSON; ASCII comes back as it was.
    uint64_t state = 88172645463325252u;
    for (int round = 0; round < 5000; round++) {
        char text[48];
        bool is_ascii = round % 2;
        for (size_t i = 0; i < sizeof(text); i++) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            text[i] = (char)(state >> 21 & (is_ascii ? 0x7f : 0xff));
        }
        buf_clear(&buf);
        ck_assert_int_eq(json_quote(&buf, slice_of(text, sizeof(text))), 0);
        struct json_doc *doc;
        const char *error;
        size_t error_at;
        ck_assert_int_eq(json_parse(buf_slice(&buf), 1 << 16, &doc, &error, &error_at), 0);
        struct slice back = json_string_slice(json_root(doc));
        ck_assert_ptr_nonnull(back.ptr);
        ck_assert(!is_ascii || slice_eq(back, slice_of(text, sizeof(text))));
        json_doc_free(doc);
    }
    buf_free(&buf);
}
END_TEST

static int parse(struct slice text, size_t cap, struct json_doc **doc)
{
    const char *error;
    size_t error_at;
    int err = json_parse(text, cap, doc, &error, &error_at);
    ck_assert((err == 0) == (*doc != NULL));
    ck_assert((err == 0) == (error == NULL));
    ck_assert_uint_le(error_at, text.len);
    return err;
}

START_TEST(test_parse)
{
    struct json_doc *doc;
    ck_assert_int_eq(parse(SLICE_LIT("{\"a\":0.10,\"b\":\"x\",\"c\":[1e2,-5]}"), 1 << 16, &doc), 0);
    yyjson_val *root = json_root(doc);
    ck_assert(slice_is(json_number_text(yyjson_obj_get(root, "a")), "0.10"));
    ck_assert(slice_is(json_string_slice(yyjson_obj_get(root, "b")), "x"));
    ck_assert_ptr_null(json_string_slice(yyjson_obj_get(root, "a")).ptr);
    ck_assert_uint_eq(json_number_text(yyjson_obj_get(root, "b")).len, 0);
    ck_assert_uint_eq(json_number_text(NULL).len, 0);
    int64_t value;
    ck_assert_int_eq(json_get_i64(yyjson_arr_get(yyjson_obj_get(root, "c"), 0), &value), 0);
    ck_assert_int_eq(value, 100);
    ck_assert_int_eq(json_get_i64(yyjson_arr_get(yyjson_obj_get(root, "c"), 1), &value), 0);
    ck_assert_int_eq(value, -5);
    ck_assert_int_eq(json_get_i64(yyjson_obj_get(root, "a"), &value), GW_EINVAL);
    ck_assert_int_eq(json_get_i64(yyjson_obj_get(root, "b"), &value), GW_EINVAL);
    ck_assert_int_eq(json_get_i64(NULL, &value), GW_EINVAL);
    json_doc_free(doc);

    static const char *const BAD[] = {"", " ", "{", "[1,]", "nope", "\"\xff\"", "1 2", "\"[[[["};
    for (size_t i = 0; i < sizeof(BAD) / sizeof(BAD[0]); i++)
        ck_assert_int_eq(parse(slice_str(BAD[i]), 1 << 16, &doc), GW_EINVAL);
    json_doc_free(NULL);
}
END_TEST

START_TEST(test_integers)
{
    static const struct {
        const char *text;
        int err;
        int64_t value;
    } CASES[] = {
        {"0", 0, 0},
        {"-0", 0, 0},
        {"-1", 0, -1},
        {"-12.0e1", 0, -120},
        {"9223372036854775807", 0, INT64_MAX},
        {"9223372036854775808", GW_ETOOBIG, 0},
        {"-9223372036854775808", 0, INT64_MIN},
        {"-9223372036854775809", GW_ETOOBIG, 0},
        {"1e400", GW_ETOOBIG, 0},
        {"0.5", GW_EINVAL, 0},
        {"true", GW_EINVAL, 0},
        {"\"1\"", GW_EINVAL, 0},
    };
    for (size_t i = 0; i < sizeof(CASES) / sizeof(CASES[0]); i++) {
        struct json_doc *doc;
        int64_t value = 7;
        ck_assert_int_eq(parse(slice_str(CASES[i].text), 1 << 16, &doc), 0);
        ck_assert_msg(json_get_i64(json_root(doc), &value) == CASES[i].err, "%s", CASES[i].text);
        ck_assert_msg(value == CASES[i].value, "%s", CASES[i].text);
        json_doc_free(doc);
    }
}
END_TEST

START_TEST(test_limits)
{
    struct json_doc *doc;
    char text[200];
    memset(text, '[', 65);
    memset(text + 65, ']', 65);
    ck_assert_int_eq(parse(slice_of(text + 1, 128), 1 << 16, &doc), 0);
    json_doc_free(doc);
    ck_assert_int_eq(parse(slice_of(text, 130), 1 << 16, &doc), GW_ETOOBIG);
    // Brackets in strings do not count.
    memset(text + 1, '[', 120);
    text[0] = text[121] = '"';
    ck_assert_int_eq(parse(slice_of(text, 122), 1 << 16, &doc), 0);
    json_doc_free(doc);

    // A million brackets, or values, cost no more than the cap.
    size_t len = 1 << 20;
    char *big = malloc(len);
    memset(big, '[', len);
    ck_assert_int_eq(parse(slice_of(big, len), 1 << 20, &doc), GW_ETOOBIG);
    for (size_t i = 1; i + 1 < len; i += 2)
        memcpy(big + i, "1,", 2);
    big[len - 2] = ']';
    ck_assert_int_eq(parse(slice_of(big, len - 1), 4 << 20, &doc), GW_ENOMEM);
    memcpy(big, "[\"", 2);
    memset(big + 2, 'x', len - 4);
    memcpy(big + len - 2, "\"]", 2);
    ck_assert_int_eq(parse(slice_of(big, len), 4 << 20, &doc), 0);
    ck_assert_uint_eq(yyjson_get_len(yyjson_arr_get_first(json_root(doc))), len - 4);
    json_doc_free(doc);
    ck_assert_int_eq(parse(slice_of(big, len), len, &doc), GW_ENOMEM);
    free(big);
    // The cap is exact to the byte: some cap is the first that does, and all above it do.
    struct slice small = SLICE_LIT("{\"a\":[1,2,3],\"b\":\"text\"}");
    size_t cap = 0;
    while (parse(small, cap, &doc) == GW_ENOMEM)
        cap++;
    ck_assert_ptr_nonnull(doc);
    ck_assert_uint_gt(cap, small.len);
    ck_assert_uint_lt(cap, 1000);
    json_doc_free(doc);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("json");
    TCase *tcase = tcase_create("json");
    tcase_add_test(tcase, test_writer);
    tcase_add_test(tcase, test_double);
    tcase_add_test(tcase, test_writer_errors);
    tcase_add_test(tcase, test_quote);
    tcase_add_test(tcase, test_parse);
    tcase_add_test(tcase, test_integers);
    tcase_add_test(tcase, test_limits);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_set_fork_status(runner, CK_NOFORK);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? 1 : 0;
}
