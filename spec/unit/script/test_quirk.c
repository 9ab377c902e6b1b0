// Templates of quirks.
#include "script/quirk.h"
#include <check.h>
#include <stdlib.h>

static struct arena *arena;

static void set_up(void)
{
    arena = arena_new(1024);
}

static void tear_down(void)
{
    arena_free(arena);
}

static const struct {
    const char *template, *model, *config, *want; // want NULL: refused
} cases[] = {
    {"/v1/chat/completions", "m", "", "/v1/chat/completions"},
    {"/d/{model}/chat", "gpt-4o", "", "/d/gpt-4o/chat"},
    {"/d/{model}/chat", "a/b c%?#\303\251", "", "/d/a%2Fb%20c%25%3F%23%C3%A9/chat"},
    {"v={config.api_version}&m={model}", "x", "{\"api_version\":\"2024-10-21\"}",
     "v=2024-10-21&m=x"},
    {"n={config.n}", "x", "{\"n\":12.50}", "n=12.50"},
    {"n={config.n}", "x", "{}", NULL},
    {"n={config.n}", "x", "", NULL},
    {"n={config.n}", "x", "{\"n\":{}}", NULL},
    {"n={config.n}", "x", "not json", NULL},
    {"n={other}", "x", "{}", NULL},
    {"n={model", "x", "{}", NULL},
    {"{model}", "../..", "", "..%2F.."},
    {"/d/{model}/chat", "..", "", NULL},
    {"/d/{model}/chat", ".", "", NULL},
    {"", "x", "", ""},
};

START_TEST(templates_expand)
{
    struct slice out = SLICE_NONE;
    int err = quirk_expand(slice_str(cases[_i].template), slice_str(cases[_i].model),
                           slice_str(cases[_i].config), arena, &out);
    if (cases[_i].want)
        ck_assert_msg(err == 0 && slice_is(out, cases[_i].want), "%s: %d '%.*s'",
                      cases[_i].template, err, out.ptr ? (int)out.len : 0, out.ptr ? out.ptr : "");
    else
        ck_assert_msg(err == GW_EINVAL, "%s: %d", cases[_i].template, err);
}
END_TEST

START_TEST(expansion_is_bounded)
{
    char model[9000];
    struct slice out;
    memset(model, 'a', sizeof model);
    ck_assert_int_eq(
        quirk_expand(SLICE_LIT("/{model}"), slice_of(model, sizeof model), SLICE_NONE, arena, &out),
        GW_ETOOBIG);
}
END_TEST

static Suite *suite(void)
{
    Suite *s = suite_create("quirk");
    TCase *tc = tcase_create("quirk");
    tcase_add_checked_fixture(tc, set_up, tear_down);
    tcase_add_loop_test(tc, templates_expand, 0, (int)(sizeof cases / sizeof cases[0]));
    tcase_add_test(tc, expansion_is_bounded);
    suite_add_tcase(s, tc);
    return s;
}

int main(void)
{
    SRunner *sr = srunner_create(suite());
    srunner_set_fork_status(sr, CK_NOFORK);
    srunner_run_all(sr, CK_ENV);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
