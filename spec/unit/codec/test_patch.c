// Splices: exact results for single edits, then every subset of removals and sets over objects of
// up to five members in several spacings, in several orders, against a plainly built object.
#include "codec/patch.h"
#include <check.h>
#include <stdio.h>

static const char *const PATHS[] = {"a", "b", "c", "d", "e"};
static const struct skim_spec SPEC = {.paths = PATHS, .path_count = 5};

static struct arena *arena;
static struct patch patch;
static struct skim skim;
static struct slice body;

static void begin(const char *text)
{
    body = slice_str(text);
    patch_init(&patch, arena);
    ck_assert_int_eq(skim_whole(&skim, &SPEC, body), 0);
}

static void check_result(const char *want)
{
    struct slice result, *pieces;
    size_t count, at = 0;
    ck_assert_int_eq(patch_apply(&patch, body, &result), 0);
    ck_assert_msg(slice_is(result, want), "%.*s, not %s", SLICE_FMT(result), want);
    ck_assert_uint_eq(patch_length(&patch, body), result.len);
    ck_assert_int_eq(patch_pieces(&patch, body, &pieces, &count), 0);
    for (size_t i = 0; i < count; at += pieces[i++].len)
        ck_assert(pieces[i].len > 0 && pieces[i].len <= result.len - at &&
                  memcmp(result.ptr + at, pieces[i].ptr, pieces[i].len) == 0);
    ck_assert_uint_eq(at, result.len);
}

START_TEST(test_single)
{
    static const struct {
        const char *body, *remove, *want;
    } CASES[] = {
        {"{\"a\":1}", "a", "{}"},
        {" { \"a\" : 1 } ", "a", " {  } "},
        {"{\"a\":1,\"b\":2,\"c\":3}", "a", "{\"b\":2,\"c\":3}"},
        {"{\"a\":1,\"b\":2,\"c\":3}", "b", "{\"a\":1,\"c\":3}"},
        {"{\"a\":1,\"b\":2,\"c\":3}", "c", "{\"a\":1,\"b\":2}"},
        {"{\"a\":1,\"b\":2,\"c\":3}", "ab", "{\"c\":3}"},
        {"{\"a\":1,\"b\":2,\"c\":3}", "bc", "{\"a\":1}"},
        {"{\"a\":1,\"b\":2,\"c\":3}", "ca", "{\"b\":2}"},
        {"{\"a\":1,\"b\":2,\"c\":3}", "bac", "{}"},
        {"{\"x\":0 , \"a\" : [1] ,\n \"b\":{}\t}", "b", "{\"x\":0 , \"a\" : [1] \t}"},
        {"{\"x\":0 , \"a\" : [1] ,\n \"b\":{}\t}", "ab", "{\"x\":0 \t}"},
        {"{\"\\u0061\":\",}\",\"y\":1}", "a", "{\"y\":1}"},
    };
    for (size_t i = 0; i < sizeof(CASES) / sizeof(CASES[0]); i++) {
        begin(CASES[i].body);
        for (const char *name = CASES[i].remove; *name; name++)
            ck_assert_int_eq(patch_remove_member(&patch, body, &skim.spans[*name - 'a']), 0);
        check_result(CASES[i].want);
    }
}
END_TEST

START_TEST(test_add)
{
    begin("{}");
    ck_assert_int_eq(patch_add_member(&patch, 0, true, SLICE_LIT("x"), SLICE_LIT("1")), 0);
    check_result("{\"x\":1}");
    ck_assert_int_eq(patch_add_member(&patch, 0, true, SLICE_LIT("y\"\\\n"), SLICE_LIT("2")), 0);
    check_result("{\"x\":1,\"y\\\"\\\\\\u000a\":2}");

    begin(" {\n\"a\":1}");
    ck_assert_int_eq(patch_add_member(&patch, 1, false, SLICE_LIT("x"), SLICE_LIT("1")), 0);
    check_result(" {\"x\":1,\n\"a\":1}");
    // The last member goes: the added one's comma goes too.
    ck_assert_int_eq(patch_remove_member(&patch, body, &skim.spans[0]), 0);
    check_result(" {\"x\":1\n}");

    begin("{ \"a\":1, \"b\":{\"c\":1}, \"z\":0 }");
    ck_assert_int_eq(patch_remove_member(&patch, body, &skim.spans[0]), 0);
    ck_assert_int_eq(
        patch_add_member(&patch, skim.spans[1].start, false, SLICE_LIT("n"), SLICE_LIT("{}")), 0);
    ck_assert_int_eq(patch_add_member(&patch, 0, false, SLICE_LIT("x"), SLICE_LIT("1")), 0);
    check_result("{\"x\":1, \"b\":{\"n\":{},\"c\":1}, \"z\":0 }");
}
END_TEST

START_TEST(test_replace)
{
    begin("{\"a\":1,\"b\":22}");
    check_result("{\"a\":1,\"b\":22}");
    struct slice *pieces;
    size_t count;
    ck_assert_int_eq(patch_pieces(&patch, body, &pieces, &count), 0);
    ck_assert_uint_eq(count, 1);
    ck_assert_ptr_eq(pieces[0].ptr, body.ptr);

    // Unsorted; insertions keep their order and stand before a replacement at the same place.
    ck_assert_int_eq(patch_set_value(&patch, &skim.spans[1], SLICE_LIT("null")), 0);
    ck_assert_int_eq(patch_set_value(&patch, &skim.spans[0], SLICE_LIT("")), 0);
    ck_assert_int_eq(patch_replace(&patch, 5, 0, SLICE_LIT("<")), 0);
    ck_assert_int_eq(patch_replace(&patch, 5, 0, SLICE_LIT(">")), 0);
    ck_assert_int_eq(patch_replace(&patch, 6, 0, SLICE_LIT("|")), 0);
    ck_assert_int_eq(patch_replace(&patch, 14, 0, SLICE_LIT("\n")), 0);
    check_result("{\"a\":<>|,\"b\":null}\n");

    // Overlaps, and what is not in the body.
    begin("{\"a\":1,\"b\":22}");
    ck_assert_int_eq(patch_replace(&patch, 4, 4, SLICE_LIT("x")), 0);
    ck_assert_int_eq(patch_replace(&patch, 7, 3, SLICE_LIT("x")), GW_EINVAL);
    ck_assert_int_eq(patch_replace(&patch, 2, 3, SLICE_LIT("x")), GW_EINVAL);
    ck_assert_int_eq(patch_replace(&patch, 0, 14, SLICE_LIT("x")), GW_EINVAL);
    ck_assert_int_eq(patch_replace(&patch, 4, 4, SLICE_LIT("x")), GW_EINVAL);
    ck_assert_int_eq(patch_replace(&patch, 5, 0, SLICE_LIT("x")), GW_EINVAL);
    ck_assert_int_eq(patch_replace(&patch, UINT64_MAX, 2, SLICE_LIT("x")), GW_EINVAL);
    ck_assert_int_eq(patch_replace(&patch, 8, 0, SLICE_LIT("y")), 0);
    ck_assert_int_eq(patch_replace(&patch, 2, 2, SLICE_LIT("z")), 0);
    check_result("{\"zxyb\":22}");
    ck_assert_int_eq(patch_replace(&patch, 14, 1, SLICE_LIT("y")), 0);
    struct slice result;
    ck_assert_int_eq(patch_pieces(&patch, body, &pieces, &count), GW_EINVAL);
    ck_assert_int_eq(patch_apply(&patch, body, &result), GW_EINVAL);

    // No member: absent, an array's element, a span of another body; twice the same.
    begin("{\"a\":1}");
    ck_assert_int_eq(patch_remove_member(&patch, body, &skim.spans[1]), GW_EINVAL);
    ck_assert_int_eq(patch_set_value(&patch, &skim.spans[1], SLICE_LIT("1")), GW_EINVAL);
    ck_assert_int_eq(patch_remove_member(&patch, SLICE_LIT("{}"), &skim.spans[0]), GW_EINVAL);
    struct skim_span element = {
        .type = SKIM_NUMBER, .key_start = SKIM_NO_KEY, .start = 5, .end = 6};
    ck_assert_int_eq(patch_remove_member(&patch, body, &element), GW_EINVAL);
    ck_assert_int_eq(patch_remove_member(&patch, body, &skim.spans[0]), 0);
    ck_assert_int_eq(patch_remove_member(&patch, body, &skim.spans[0]), GW_EINVAL);
    ck_assert_int_eq(patch_set_value(&patch, &skim.spans[0], SLICE_LIT("1")), GW_EINVAL);
}
END_TEST

// Drops white space outside strings (there is none inside in these tests).
static void squeeze(struct slice text, char *out)
{
    for (size_t i = 0; i < text.len; i++)
        if (!strchr(" \n\t\r", text.ptr[i]))
            *out++ = text.ptr[i];
    *out = 0;
}

START_TEST(test_subsets)
{
    static const char *const SPACES[][5] = {
        // before name, before colon, before value, before comma, inside an empty object
        {"", "", "", "", ""},
        {" ", " ", " ", " ", " "},
        {"\n  ", "", " ", "", "\n"},
        {"", "", "", "\t\r\n", ""},
    };
    static const char *const VALUES[] = {"1", "\"},{\"", "[1,2]", "{\"a\":0,\"b\":1}", "null"};
    struct arena_mark mark = arena_mark(arena);
    for (size_t space = 0; space < 4; space++)
        for (unsigned count = 0; count <= 5; count++)
            // Each member is kept, removed or set: base 3; each with 0, 1 or 2 additions.
            for (unsigned edits = 0, all = count == 5   ? 243
                                           : count == 4 ? 81
                                                        : 27;
                 edits < all; edits++)
                for (unsigned how = 0; how < 6; how++) {
                    const char *const *gap = SPACES[space];
                    char text[512], want[512], got[512];
                    int len = sprintf(text, "%s{%s", gap[0], count ? "" : gap[4]);
                    for (unsigned i = 0; i < count; i++)
                        len += sprintf(text + len, "%s%s\"%s\"%s:%s%s%s", i ? "," : "", gap[0],
                                       PATHS[i], gap[1], gap[2], VALUES[i], gap[3]);
                    sprintf(text + len, "}%s", gap[0]);
                    begin(text);

                    unsigned added = how % 3, digits = edits, kept = 0;
                    char kinds[5] = {0};
                    for (unsigned i = 0; i < 5; i++, digits /= 3)
                        kinds[i] = (char)(digits % 3);
                    len = sprintf(want, "{");
                    for (unsigned i = 0; i < added; i++)
                        len += sprintf(want + len, "%s\"x%u\":0", kept++ ? "," : "", i);
                    for (unsigned i = 0; i < count; i++)
                        if (kinds[i] != 1)
                            len += sprintf(want + len, "%s\"%s\":%s", kept++ ? "," : "", PATHS[i],
                                           kinds[i] == 2 ? "\"new\"" : VALUES[i]);
                    sprintf(want + len, "}");

                    // Forwards or backwards; additions first or last.
                    for (unsigned k = 0; k <= count; k++) {
                        unsigned i = how < 3 ? k : count - k;
                        if (i == count) {
                            for (unsigned n = 0; n < added; n++) {
                                char name[3] = {'x', (char)('0' + n), 0};
                                ck_assert_int_eq(patch_add_member(&patch, skim.root_start,
                                                                  count == 0, slice_str(name),
                                                                  SLICE_LIT("0")),
                                                 0);
                            }
                        } else if (kinds[i] == 1) {
                            ck_assert_int_eq(patch_remove_member(&patch, body, &skim.spans[i]), 0);
                        } else if (kinds[i] == 2) {
                            ck_assert_int_eq(
                                patch_set_value(&patch, &skim.spans[i], SLICE_LIT("\"new\"")), 0);
                        }
                    }
                    struct slice result;
                    ck_assert_int_eq(patch_apply(&patch, body, &result), 0);
                    squeeze(result, got);
                    ck_assert_msg(strcmp(got, want) == 0, "%s gives %.*s, not %s", text,
                                  SLICE_FMT(result), want);
                    arena_rewind(arena, mark);
                }
}
END_TEST

int main(void)
{
    arena = arena_new(65536);
    Suite *suite = suite_create("patch");
    TCase *tcase = tcase_create("patch");
    tcase_add_test(tcase, test_single);
    tcase_add_test(tcase, test_add);
    tcase_add_test(tcase, test_replace);
    tcase_add_test(tcase, test_subsets);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_set_fork_status(runner, CK_NOFORK);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    arena_free(arena);
    return failed ? 1 : 0;
}
