// Schemas: what each kind takes, all problems at once, defaults, queries, JSON Schema.
#include "codec/schema.h"
#include "codec/schema_text.h"
#include <check.h>
#include <stdio.h>
#include <stdlib.h>

static struct arena *arena;
static struct json_doc *doc;

static void set_up(void)
{
    arena = arena_new(4096);
}

static void tear_down(void)
{
    json_doc_free(doc);
    doc = NULL;
    arena_free(arena);
}

static struct schema *make(enum schema_kind kind)
{
    struct schema *schema = arena_zalloc(arena, sizeof *schema);
    schema->kind = kind;
    return schema;
}

static struct schema *seal(struct schema *schema)
{
    char why[200] = "";
    ck_assert_msg(schema_seal(schema, arena, why, sizeof why) == 0, "%s", why);
    return schema;
}

static struct schema *record(const struct schema_field *fields, size_t count)
{
    struct schema *schema = make(SCHEMA_RECORD);
    struct schema_field *copy = arena_alloc(arena, count * sizeof *copy);
    memcpy(copy, fields, count * sizeof *copy);
    schema->fields = copy;
    schema->field_count = count;
    return seal(schema);
}

static int check(const struct schema *schema, const char *json, struct schema_result *result)
{
    const char *why = NULL;
    size_t at;
    json_doc_free(doc);
    doc = NULL;
    ck_assert_msg(json_parse(slice_str(json), 1 << 20, &doc, &why, &at) == 0, "%s: %s", json, why);
    return schema_check(schema, json_root(doc), "body", arena, result);
}

static void expect_json(const struct schema_value *value, const char *want)
{
    struct buf text = BUF_INIT(0);
    struct json_out out;
    json_begin(&out, &text);
    schema_write_value(value, &out);
    ck_assert_int_eq(json_end(&out), 0);
    ck_assert_msg(slice_is(buf_slice(&text), want), "%.*s is not %s", SLICE_FMT(buf_slice(&text)),
                  want);
    buf_free(&text);
}

static void expect_problem(const struct schema_result *result, const char *path, const char *kind,
                           const char *message)
{
    for (size_t i = 0; i < result->problem_count; i++) {
        const struct schema_problem *problem = &result->problems[i];
        if (slice_is(problem->path, path) && strcmp(problem->kind, kind) == 0 &&
            slice_find(problem->message, slice_str(message)) >= 0)
            return;
    }
    for (size_t i = 0; i < result->problem_count; i++)
        fprintf(stderr, "  %.*s %s %.*s\n", SLICE_FMT(result->problems[i].path),
                result->problems[i].kind, SLICE_FMT(result->problems[i].message));
    ck_abort_msg("no problem %s %s %s", path, kind, message);
}

// One row per case.
static const struct {
    enum schema_kind kind;
    const char *json;
    const char *want; // normalised, NULL: refused
} scalars[] = {
    {SCHEMA_TEXT, "\"a\\u00e9\"", "\"a\303\251\""},
    {SCHEMA_TEXT, "5", NULL},
    {SCHEMA_TEXT, "null", NULL},
    {SCHEMA_TEXT, "\"a\\u0000b\"", NULL},
    {SCHEMA_INTEGER, "12", "12"},
    {SCHEMA_INTEGER, "12.0", "12"},
    {SCHEMA_INTEGER, "-3", "-3"},
    {SCHEMA_INTEGER, "1.5", NULL},
    {SCHEMA_INTEGER, "\"12\"", NULL},
    {SCHEMA_INTEGER, "9007199254740992", "9007199254740992"},
    {SCHEMA_INTEGER, "9007199254740993", NULL},
    {SCHEMA_INTEGER, "99999999999999999999999", NULL},
    {SCHEMA_NUMBER, "1.5e2", "150"},
    {SCHEMA_NUMBER, "1e999", NULL},
    {SCHEMA_NUMBER, "\"1\"", NULL},
    {SCHEMA_BOOLEAN, "true", "true"},
    {SCHEMA_BOOLEAN, "1", NULL},
    {SCHEMA_DECIMAL, "0.1", "0.1"},
    {SCHEMA_DECIMAL, "\"0.000000001\"", "0.000000001"},
    {SCHEMA_DECIMAL, "0.0000000001", NULL},
    {SCHEMA_DECIMAL, "\"abc\"", NULL},
    {SCHEMA_DECIMAL, "9007199254.740993001", "9007199254.740993001"},
    {SCHEMA_DECIMAL, "1e30", NULL},
    {SCHEMA_RATE, "0.85", "0.85"},
    {SCHEMA_RATE, "\"1.25\"", "1.25"},
    {SCHEMA_RATE, "-1", NULL},
    {SCHEMA_DURATION, "1.5", "1.5"},
    {SCHEMA_DURATION, "\"250ms\"", "0.25"},
    {SCHEMA_DURATION, "\"2h\"", "7200"},
    {SCHEMA_DURATION, "\"1.5m\"", "90"},
    {SCHEMA_DURATION, "\"h\"", NULL},
    {SCHEMA_DURATION, "-1", NULL},
    {SCHEMA_DURATION, "1e18", NULL},
    {SCHEMA_TIME, "\"2024-02-29\"", "\"2024-02-29T00:00:00Z\""},
    {SCHEMA_TIME, "\"2024-05-06T07:08:09.123+02:00\"", "\"2024-05-06T05:08:09.123Z\""},
    {SCHEMA_TIME, "\"2024-05-06 07:08\"", "\"2024-05-06T07:08:00Z\""},
    {SCHEMA_TIME, "\"2024-12-31T23:59:59-01:30\"", "\"2025-01-01T01:29:59Z\""},
    {SCHEMA_TIME, "\"9999-12-31T23:59:59Z\"", "\"9999-12-31T23:59:59Z\""},
    {SCHEMA_TIME, "\"2023-02-29\"", NULL},
    {SCHEMA_TIME, "\"2024-13-01\"", NULL},
    {SCHEMA_TIME, "\"2024-05-06T24:00:00Z\"", NULL},
    {SCHEMA_TIME, "\"2024-05-06T\"", NULL},
    {SCHEMA_TIME, "\"1969-12-31\"", NULL},
    {SCHEMA_TIME, "1700000000", NULL},
    {SCHEMA_UUID, "\"0190163D-8694-739B-AEA5-966C26F8AD91\"",
     "\"0190163d-8694-739b-aea5-966c26f8ad91\""},
    {SCHEMA_UUID, "\"0190163d8694739baea5966c26f8ad91\"", NULL},
    {SCHEMA_URL, "\" https://api.x.com/v1 \"", "\"https://api.x.com/v1\""},
    {SCHEMA_URL, "\"ftp://x\"", NULL},
    {SCHEMA_URL, "\"https://user:pw@x.com/\"", NULL},
    {SCHEMA_SECRET, "\"$EPAY_KEY\"", "\"$EPAY_KEY\""},
    {SCHEMA_SECRET, "\"sk-plain\"", NULL},
    {SCHEMA_SECRET, "\"$\"", NULL},
    {SCHEMA_ANY, "{\"a\":[1.50,null,\"x\"]}", "{\"a\":[1.50,null,\"x\"]}"},
};

START_TEST(scalars_take_what_they_should)
{
    struct schema_result result;
    const struct schema *schema = seal(make(scalars[_i].kind));
    int err = check(schema, scalars[_i].json, &result);
    if (!scalars[_i].want) {
        ck_assert_msg(err == GW_EINVAL && result.problem_count == 1, "%s %s: %d",
                      schema_kind_name(scalars[_i].kind), scalars[_i].json, err);
        return;
    }
    ck_assert_msg(err == 0, "%s %s: %d", schema_kind_name(scalars[_i].kind), scalars[_i].json, err);
    expect_json(&result.value, scalars[_i].want);
}
END_TEST

START_TEST(every_problem_is_found)
{
    struct schema_result result;
    struct schema *name = make(SCHEMA_TEXT), *count = make(SCHEMA_INTEGER);
    name->has_min = name->has_max = true;
    name->min = 2;
    name->max = 3;
    count->has_max = true;
    count->max = 10;
    struct schema *list = make(SCHEMA_LIST);
    list->of = seal(count);
    seal(name);
    seal(list);
    const struct schema *schema = record((struct schema_field[]){{SLICE_LIT("name"), name},
                                                                 {SLICE_LIT("models"), list},
                                                                 {SLICE_LIT("weight"), count}},
                                         3);
    ck_assert_int_eq(
        check(schema, "{\"name\":\"\303\251\",\"models\":[1,11,\"x\"],\"wieght\":1}", &result),
        GW_EINVAL);
    ck_assert_uint_eq(result.problem_count, 5);
    expect_problem(&result, "body.name", "length", "at least 2 characters");
    expect_problem(&result, "body.models.1", "range", "at most 10");
    expect_problem(&result, "body.models.2", "type", "whole number");
    expect_problem(&result, "body.wieght", "unknown", "did you mean 'weight'?");
    expect_problem(&result, "body.weight", "missing", "required");
    ck_assert_int_eq(check(schema, "[]", &result), GW_EINVAL);
    expect_problem(&result, "body", "type", "must be an object");
    ck_assert_int_eq(
        check(schema, "{\"name\":\"ab\",\"name\":\"ab\",\"models\":[],\"weight\":1}", &result),
        GW_EINVAL);
    expect_problem(&result, "body.name", "json", "more than once");
    // Three characters of two bytes each fit.
    ck_assert_int_eq(check(schema,
                           "{\"name\":\"\303\251\303\251\303\251\",\"models\":[],\"weight\":1}",
                           &result),
                     0);
}
END_TEST

START_TEST(problems_are_bounded)
{
    struct schema_result result;
    struct schema *list = make(SCHEMA_LIST);
    list->of = seal(make(SCHEMA_INTEGER));
    seal(list);
    char json[2000] = "[";
    for (int i = 0; i < 200; i++)
        strcat(json, i ? ",\"x\"" : "\"x\"");
    strcat(json, "]");
    ck_assert_int_eq(check(list, json, &result), GW_EINVAL);
    ck_assert_uint_eq(result.problem_count, SCHEMA_MAX_PROBLEMS);
    // A list without a limit of its own has one all the same.
    char *long_json = malloc(40000);
    size_t len = 0;
    long_json[len++] = '[';
    for (int i = 0; i < 10001; i++)
        len += (size_t)sprintf(long_json + len, i ? ",1" : "1");
    memcpy(long_json + len, "]", 2);
    ck_assert_int_eq(check(list, long_json, &result), GW_EINVAL);
    expect_problem(&result, "body", "length", "too many items");
    free(long_json);
}
END_TEST

START_TEST(defaults_are_filled_in)
{
    struct schema_result result;
    struct schema *limit = make(SCHEMA_INTEGER), *rate = make(SCHEMA_RATE),
                  *names = make(SCHEMA_LIST), *note = make(SCHEMA_TEXT);
    limit->default_json = SLICE_LIT("50");
    rate->default_json = SLICE_LIT("0.5");
    names->of = seal(make(SCHEMA_TEXT));
    names->default_json = SLICE_LIT("{}"); // an empty Lua table
    note->is_optional = note->is_nullable = true;
    seal(limit);
    seal(rate);
    seal(names);
    seal(note);
    const struct schema *schema = record((struct schema_field[]){{SLICE_LIT("limit"), limit},
                                                                 {SLICE_LIT("names"), names},
                                                                 {SLICE_LIT("note"), note},
                                                                 {SLICE_LIT("rate"), rate}},
                                         4);
    ck_assert_int_eq(check(schema, "{}", &result), 0);
    expect_json(&result.value, "{\"limit\":50,\"names\":[],\"rate\":0.5}");
    ck_assert_int_eq(check(schema, "{\"note\":null,\"limit\":7}", &result), 0);
    expect_json(&result.value, "{\"limit\":7,\"names\":[],\"note\":null,\"rate\":0.5}");
    ck_assert_int_eq(check(schema, "{\"limit\":null}", &result), GW_EINVAL);
    expect_problem(&result, "body.limit", "type", "must not be null");
}
END_TEST

START_TEST(texts_are_trimmed_chosen_and_matched)
{
    struct schema_result result;
    const char *why = NULL;
    struct schema *text = make(SCHEMA_TEXT);
    text->is_trimmed = text->is_empty_null = true;
    ck_assert_int_eq(schema_set_pattern(text, SLICE_LIT("[a-z]{2,4}(-[0-9]+)?"), arena, &why), 0);
    seal(text);
    ck_assert_int_eq(check(text, "\"  ab-12 \"", &result), 0);
    expect_json(&result.value, "\"ab-12\"");
    ck_assert_int_eq(check(text, "\"   \"", &result), 0);
    expect_json(&result.value, "null");
    ck_assert_int_eq(check(text, "\"xab-12\\n\"", &result), 0); // trimmed
    ck_assert_int_eq(check(text, "\"abcde\"", &result), GW_EINVAL);
    expect_problem(&result, "body", "pattern", "must match");
    struct schema *choice = make(SCHEMA_TEXT);
    static const struct slice choices[] = {{"openai", 6}, {"claude", 6}};
    choice->choices = choices;
    choice->choice_count = 2;
    seal(choice);
    ck_assert_int_eq(check(choice, "\"claude\"", &result), 0);
    ck_assert_int_eq(check(choice, "\"Claude\"", &result), GW_EINVAL);
    expect_problem(&result, "body", "enum", "openai, claude");
}
END_TEST

START_TEST(patterns_are_restricted)
{
    static const char *const bad[] = {
        "(", "a\\1", "\\d+", "[[:alpha:]]", "a{300}", "((a{99}){99}){99}", "a{x}",
    };
    const char *why = NULL;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        ck_assert_msg(schema_set_pattern(make(SCHEMA_TEXT), slice_str(bad[i]), arena, &why) ==
                          GW_EINVAL,
                      "%s", bad[i]);
    // Alternatives are anchored as a whole, and a long text is no endless match.
    struct schema *schema = make(SCHEMA_TEXT);
    ck_assert_int_eq(schema_set_pattern(schema, SLICE_LIT("a|(b|b)*c"), arena, &why), 0);
    char text[5000];
    memset(text, 'b', sizeof text);
    ck_assert(schema_match(schema->compiled, SLICE_LIT("a")));
    ck_assert(!schema_match(schema->compiled, SLICE_LIT("ax")));
    ck_assert(!schema_match(schema->compiled, slice_of(text, 4000)));
    text[3999] = 'c';
    ck_assert(schema_match(schema->compiled, slice_of(text, 4000)));
    ck_assert(!schema_match(schema->compiled, slice_of(text, 5000)));
}
END_TEST

START_TEST(queries_are_typed_from_text)
{
    struct schema_result result;
    struct schema *limit = make(SCHEMA_INTEGER), *since = make(SCHEMA_TIME),
                  *on = make(SCHEMA_BOOLEAN), *ids = make(SCHEMA_LIST), *name = make(SCHEMA_TEXT);
    limit->default_json = SLICE_LIT("50");
    limit->has_min = true;
    limit->min = 1;
    since->is_optional = on->is_optional = ids->is_optional = name->is_optional = true;
    ids->of = seal(make(SCHEMA_INTEGER));
    seal(limit);
    seal(since);
    seal(on);
    seal(ids);
    seal(name);
    const struct schema *schema = record((struct schema_field[]){{SLICE_LIT("ids"), ids},
                                                                 {SLICE_LIT("limit"), limit},
                                                                 {SLICE_LIT("name"), name},
                                                                 {SLICE_LIT("on"), on},
                                                                 {SLICE_LIT("since"), since}},
                                         5);
    ck_assert_int_eq(schema_check_query(schema,
                                        SLICE_LIT("ids=1&ids=2&name=a%20b+c%zz&on=yes&"
                                                  "since=2024-05-06T07:08:09+00:00"),
                                        "query", arena, &result),
                     0);
    expect_json(&result.value, "{\"ids\":[1,2],\"limit\":50,\"name\":\"a b c%zz\",\"on\":true,"
                               "\"since\":\"2024-05-06T07:08:09Z\"}");
    ck_assert_int_eq(schema_check_query(schema, SLICE_LIT(""), "query", arena, &result), 0);
    ck_assert_int_eq(schema_check_query(schema,
                                        SLICE_LIT("limit=0&on=maybe&lmit=3&ids=1&ids=x&name=%ff&"
                                                  "since=x&&"),
                                        "query", arena, &result),
                     GW_EINVAL);
    expect_problem(&result, "query.limit", "range", "at least 1");
    expect_problem(&result, "query.on", "type", "true or false");
    expect_problem(&result, "query.lmit", "unknown", "did you mean 'limit'?");
    expect_problem(&result, "query.ids.1", "type", "whole number");
    expect_problem(&result, "query.name", "format", "UTF-8");
    expect_problem(&result, "query.since", "format", "ISO 8601");
    ck_assert_int_eq(
        schema_check_query(schema, SLICE_LIT("limit=1&limit=2"), "query", arena, &result),
        GW_EINVAL);
    expect_problem(&result, "query.limit", "type", "more than once");
    ck_assert_int_eq(schema_check_query(schema, SLICE_LIT("limit="), "query", arena, &result),
                     GW_EINVAL);
}
END_TEST

START_TEST(bad_schemas_do_not_seal)
{
    char why[200];
    struct schema *schema = make(SCHEMA_INTEGER);
    schema->has_min = schema->has_max = true;
    schema->min = 2;
    schema->max = 1;
    ck_assert_int_eq(schema_seal(schema, arena, why, sizeof why), GW_EINVAL);
    schema = make(SCHEMA_INTEGER);
    schema->default_json = SLICE_LIT("\"x\"");
    ck_assert_int_eq(schema_seal(schema, arena, why, sizeof why), GW_EINVAL);
    ck_assert_str_eq(why, "the default must be a whole number");
    schema = make(SCHEMA_LIST);
    ck_assert_int_eq(schema_seal(schema, arena, why, sizeof why), GW_EINVAL);
    schema = seal(make(SCHEMA_TEXT));
    for (int i = 0; i < SCHEMA_MAX_DEPTH - 1; i++) {
        struct schema *outer = make(SCHEMA_LIST);
        outer->of = schema;
        schema = seal(outer);
    }
    struct schema *deepest = make(SCHEMA_LIST);
    deepest->of = schema;
    ck_assert_int_eq(schema_seal(deepest, arena, why, sizeof why), GW_EINVAL);
}
END_TEST

START_TEST(json_schema_is_written)
{
    struct schema *name = make(SCHEMA_TEXT), *price = make(SCHEMA_DECIMAL), *any = make(SCHEMA_ANY);
    name->has_max = true;
    name->max = 10;
    name->is_nullable = true;
    name->about = SLICE_LIT("who");
    price->default_json = SLICE_LIT("\"1.5\"");
    any->is_optional = true;
    seal(name);
    seal(price);
    seal(any);
    const struct schema *schema = record((struct schema_field[]){{SLICE_LIT("any"), any},
                                                                 {SLICE_LIT("name"), name},
                                                                 {SLICE_LIT("price"), price}},
                                         3);
    struct buf text = BUF_INIT(0);
    struct json_out out;
    json_begin(&out, &text);
    schema_write_json_schema(schema, &out);
    ck_assert_int_eq(json_end(&out), 0);
    ck_assert_int_eq(buf_append_char(&text, '\0'), 0);
    ck_assert_str_eq(
        buf_slice(&text).ptr,
        "{\"type\":\"object\",\"properties\":{\"any\":{},\"name\":{\"type\":[\"string\",\"null\"],"
        "\"maxLength\":10,\"description\":\"who\"},\"price\":{\"type\":[\"number\",\"string\"],"
        "\"pattern\":\"^-?[0-9]+(\\\\.[0-9]+)?$\",\"default\":1.5}},\"required\":[\"name\"],"
        "\"additionalProperties\":false}");
    buf_free(&text);
}
END_TEST

static Suite *suite(void)
{
    Suite *s = suite_create("schema");
    TCase *tc = tcase_create("schema");
    tcase_add_checked_fixture(tc, set_up, tear_down);
    tcase_add_loop_test(tc, scalars_take_what_they_should, 0,
                        (int)(sizeof scalars / sizeof scalars[0]));
    tcase_add_test(tc, every_problem_is_found);
    tcase_add_test(tc, problems_are_bounded);
    tcase_add_test(tc, defaults_are_filled_in);
    tcase_add_test(tc, texts_are_trimmed_chosen_and_matched);
    tcase_add_test(tc, patterns_are_restricted);
    tcase_add_test(tc, queries_are_typed_from_text);
    tcase_add_test(tc, bad_schemas_do_not_seal);
    tcase_add_test(tc, json_schema_is_written);
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
