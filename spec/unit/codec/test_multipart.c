// The form field that routes an upload: found at any split, never misread.
#include "codec/multipart.h"

#include <check.h>
#include <stdlib.h>

static const char FORM[] = "--b0\r\n"
                           "Content-Disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\n"
                           "Content-Type: audio/wav\r\n\r\n"
                           "RIFF--b0 not a border\r\n--b1\r\n\r\n"
                           "--b0\r\n"
                           "content-disposition: form-data; name=model\r\n\r\n"
                           "whisper-1\r\n"
                           "--b0\r\n"
                           "Content-Disposition: form-data; name=\"empty\"\r\n\r\n"
                           "\r\n"
                           "--b0--\r\n";

START_TEST(boundaries)
{
    struct slice boundary;
    ck_assert_int_eq(multipart_boundary(SLICE_LIT("multipart/form-data; boundary=abc"), &boundary),
                     GW_OK);
    ck_assert(slice_is(boundary, "abc"));
    ck_assert_int_eq(multipart_boundary(
                         SLICE_LIT("Multipart/Form-Data; charset=x; BOUNDARY=\"a b\""), &boundary),
                     GW_OK);
    ck_assert(slice_is(boundary, "a b"));
    ck_assert_int_eq(multipart_boundary(SLICE_LIT("multipart/form-data"), &boundary), GW_EINVAL);
    ck_assert_int_eq(multipart_boundary(SLICE_LIT("multipart/form-data; boundary="), &boundary),
                     GW_EINVAL);
    ck_assert_int_eq(multipart_boundary(SLICE_LIT("application/json; boundary=a"), &boundary),
                     GW_EINVAL);
    ck_assert_int_eq(multipart_boundary(SLICE_LIT("multipart/x; boundary=\"open"), &boundary),
                     GW_EINVAL);
}
END_TEST

START_TEST(the_field_is_found)
{
    struct slice value, body = slice_str(FORM), b0 = SLICE_LIT("b0");
    ck_assert_int_eq(multipart_field(body, b0, "model", &value), GW_OK);
    ck_assert_msg(slice_is(value, "whisper-1"), "%.*s", SLICE_FMT(value));
    ck_assert_int_eq(multipart_field(body, b0, "empty", &value), GW_OK);
    ck_assert_uint_eq(value.len, 0);
    ck_assert_int_eq(multipart_field(body, b0, "absent", &value), GW_ENOTFOUND);
}
END_TEST

// Every shorter body says "more" or already the same value, never another one.
START_TEST(a_part_of_the_body_is_never_misread)
{
    struct slice value;
    bool was_found = false;
    for (size_t len = 0; len < sizeof FORM; len++) {
        char *copy = malloc(len + 1); // exact size: the sanitizer sees a read past the end
        memcpy(copy, FORM, len);
        int err = multipart_field(slice_of(copy, len), SLICE_LIT("b0"), "model", &value);
        ck_assert(err == GW_EAGAIN || err == GW_OK);
        ck_assert(!was_found || err == GW_OK);
        if (err == GW_OK) {
            was_found = true;
            ck_assert(slice_is(value, "whisper-1"));
        }
        free(copy);
    }
    ck_assert(was_found);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("multipart");
    TCase *tests = tcase_create("multipart");
    tcase_add_test(tests, boundaries);
    tcase_add_test(tests, the_field_is_found);
    tcase_add_test(tests, a_part_of_the_body_is_never_misread);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_set_fork_status(runner, CK_NOFORK);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
