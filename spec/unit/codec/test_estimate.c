#include "codec/estimate.h"
#include <check.h>
#include <stdio.h>
#include <stdlib.h>

static uint64_t of(const char *body)
{
    return estimate_input_tokens(slice_str(body));
}

START_TEST(test_text_is_a_third_of_its_bytes)
{
    ck_assert_uint_eq(of(""), 0);
    ck_assert_uint_eq(of("{}"), 0);
    ck_assert_uint_eq(of("{\"a\":\"bcd\"}"), 2); // 4 bytes
    ck_assert_uint_eq(of("[\"abc\" , \"def\"]"), 2);
    ck_assert_uint_eq(of("{\"a\":12,\"b\":true}"), 3); // 1+2+1+4
    ck_assert_uint_eq(of("[\"\\n\\u6708\\\"\"]"), 2);  // 1+3+1
    ck_assert_uint_eq(of("[\"\\\\\",\"ab\"]"), 1);     // an escaped backslash ends the string
    ck_assert_uint_eq(of("[1,2,3,4,5,6]"), 2);
}
END_TEST

START_TEST(test_files_count_by_fixed_sums)
{
    char blob[4096], body[8192];
    memset(blob, 'A', sizeof(blob) - 1);
    blob[sizeof(blob) - 1] = '\0';
    snprintf(body, sizeof(body),
             "[{\"type\":\"image_url\",\"image_url\":{\"url\":\"data:image/png;base64,%s\"}}]",
             blob);
    uint64_t image = of(body);
    ck_assert_uint_ge(image, ESTIMATE_IMAGE_TOKENS);
    ck_assert_uint_le(image, ESTIMATE_IMAGE_TOKENS + 20);
    snprintf(body, sizeof(body),
             "[{\"type\":\"document\",\"source\":{\"type\":\"base64\",\"data\":\"%s\"}}]", blob);
    ck_assert_uint_ge(of(body), ESTIMATE_FILE_TOKENS);
    ck_assert_uint_le(of(body), ESTIMATE_FILE_TOKENS + 20);
    snprintf(body, sizeof(body),
             "[{\"type\":\"input_audio\",\"input_audio\":{\"data\":\"%s\",\"format\":\"wav\"}}]",
             blob);
    ck_assert_uint_ge(of(body), ESTIMATE_AUDIO_TOKENS);
    ck_assert_uint_le(of(body), ESTIMATE_AUDIO_TOKENS + 20);
    // The same letters as text are text.
    snprintf(body, sizeof(body), "[{\"type\":\"text\",\"text\":\"%s\"}]", blob);
    ck_assert_uint_ge(of(body), 4095 / 3);
}
END_TEST

START_TEST(test_broken_bodies_are_harmless)
{
    static const char *const BODIES[] = {"\"",       "\"\\",        "{\"a\":\"",
                                         "\\\"\\\"", "[\"a\\u12\"", "\"data:;base64,"};
    for (size_t i = 0; i < sizeof(BODIES) / sizeof(BODIES[0]); i++) {
        size_t len = strlen(BODIES[i]);
        char *copy = malloc(len); // exact, so that a sanitizer sees a read behind it
        memcpy(copy, BODIES[i], len);
        ck_assert_uint_le(estimate_input_tokens(slice_of(copy, len)), 20);
        free(copy);
    }
}
END_TEST

START_TEST(test_output_is_a_quarter)
{
    ck_assert_uint_eq(estimate_output_tokens(0), 0);
    ck_assert_uint_eq(estimate_output_tokens(1), 1);
    ck_assert_uint_eq(estimate_output_tokens(4), 1);
    ck_assert_uint_eq(estimate_output_tokens(5), 2);
    ck_assert_uint_eq(estimate_output_tokens(UINT64_MAX), UINT64_MAX / 4 + 1);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("estimate");
    TCase *tcase = tcase_create("estimate");
    tcase_add_test(tcase, test_text_is_a_third_of_its_bytes);
    tcase_add_test(tcase, test_files_count_by_fixed_sums);
    tcase_add_test(tcase, test_broken_bodies_are_harmless);
    tcase_add_test(tcase, test_output_is_a_quarter);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_set_fork_status(runner, CK_NOFORK);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
