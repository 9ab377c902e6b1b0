// The rules that turn usage objects into buckets.
#include "codec/usage.h"
#include <check.h>
#include <stdio.h>
#include <stdlib.h>

struct row {
    enum usage_rule rule;
    const char *objects[3]; // taken in order
    bool has_usage;
    struct usage want; // flags without USAGE_REPORTED
};

#define O USAGE_RULE_OPENAI
#define X USAGE_RULE_OPENAI_EXCLUSIVE
#define R USAGE_RULE_RESPONSES
#define A USAGE_RULE_ANTHROPIC

static const struct row ROWS[] = {
    {O,
     {"{\"prompt_tokens\":10,\"completion_tokens\":4,\"total_tokens\":14}"},
     true,
     {.input = 10, .output = 4}},
    {O, {"null"}, false, {0}},
    {O, {"{}"}, false, {0}},
    {O, {"[1]"}, false, {0}},
    {O, {"{\"prompt_tokens\":"}, false, {0}},
    {O, {"{\"prompt_tokens\":null}"}, false, {0}},
    {O, {"{\"prompt_tokens\":0,\"completion_tokens\":0,\"total_tokens\":0}"}, true, {0}},
    // cached and written are parts of the prompt
    {O,
     {"{\"prompt_tokens\":100,\"completion_tokens\":1,\"total_tokens\":101,"
      "\"prompt_tokens_details\":{\"cached_tokens\":40,\"cache_write_tokens\":50}}"},
     true,
     {.input = 10, .cache_read = 40, .cache_write_5m = 50, .output = 1}},
    {O,
     {"{\"prompt_tokens\":100,\"completion_tokens\":1,\"prompt_tokens_details\":"
      "{\"cached_tokens\":80,\"cache_write_tokens\":50}}"},
     true,
     {.cache_read = 80, .cache_write_5m = 20, .output = 1, .flags = USAGE_CLAMPED}},
    // flat spellings, and a detail of 0 beside a flat value
    {O,
     {"{\"prompt_tokens\":20,\"completion_tokens\":3,\"cached_tokens\":10}"},
     true,
     {.input = 10, .cache_read = 10, .output = 3}},
    {O,
     {"{\"prompt_tokens\":20,\"completion_tokens\":3,\"num_cached_tokens\":7,"
      "\"prompt_tokens_details\":{\"cached_tokens\":0}}"},
     true,
     {.input = 13, .cache_read = 7, .output = 3}},
    {O,
     {"{\"prompt_cache_hit_tokens\":8,\"prompt_cache_miss_tokens\":5,\"completion_tokens\":2}"},
     true,
     {.input = 5, .cache_read = 8, .output = 2}},
    // reasoning: inside, outside by the numbers, outside by the rule, hidden
    {O,
     {"{\"prompt_tokens\":10,\"completion_tokens\":30,\"total_tokens\":40,"
      "\"completion_tokens_details\":{\"reasoning_tokens\":22}}"},
     true,
     {.input = 10, .output = 8, .reasoning = 22}},
    {O,
     {"{\"prompt_tokens\":10,\"completion_tokens\":30,\"total_tokens\":62,"
      "\"completion_tokens_details\":{\"reasoning_tokens\":22}}"},
     true,
     {.input = 10, .output = 30, .reasoning = 22}},
    {X,
     {"{\"prompt_tokens\":10,\"completion_tokens\":30,"
      "\"completion_tokens_details\":{\"reasoning_tokens\":22}}"},
     true,
     {.input = 10, .output = 30, .reasoning = 22}},
    {X,
     {"{\"prompt_tokens\":10,\"completion_tokens\":30,\"total_tokens\":40,"
      "\"completion_tokens_details\":{\"reasoning_tokens\":22}}"},
     true,
     {.input = 10, .output = 8, .reasoning = 22}},
    {X,
     {"{\"prompt_tokens\":10,\"completion_tokens\":30,\"total_tokens\":40,"
      "\"completion_tokens_details\":{\"reasoning_tokens\":90}}"},
     true,
     {.input = 10, .output = 30, .reasoning = 90, .flags = USAGE_TOTAL_DIFFERS}},
    {O,
     {"{\"prompt_tokens\":10,\"completion_tokens\":30,\"total_tokens\":40,"
      "\"completion_tokens_details\":{\"reasoning_tokens\":90}}"},
     true,
     {.input = 10, .reasoning = 30, .flags = USAGE_CLAMPED}},
    {O,
     {"{\"prompt_tokens\":35,\"completion_tokens\":12,\"total_tokens\":109}"},
     true,
     {.input = 35, .output = 12, .reasoning = 62, .flags = USAGE_TOTAL_DIFFERS}},
    {O,
     {"{\"prompt_tokens\":35,\"completion_tokens\":12,\"total_tokens\":109,"
      "\"completion_tokens_details\":{\"reasoning_tokens\":5}}"},
     true,
     {.input = 35, .output = 7, .reasoning = 67, .flags = USAGE_TOTAL_DIFFERS}},
    {O,
     {"{\"prompt_tokens\":35,\"completion_tokens\":12,\"total_tokens\":20}"},
     true,
     {.input = 35, .output = 12, .flags = USAGE_TOTAL_DIFFERS}},
    {O, {"{\"prompt_tokens\":8,\"total_tokens\":8}"}, true, {.input = 8}},
    {O, {"{\"total_tokens\":8}"}, true, {.input = 8}},
    // audio and images leave input and output
    {O,
     {"{\"prompt_tokens\":50,\"completion_tokens\":40,\"total_tokens\":90,"
      "\"prompt_tokens_details\":{\"audio_tokens\":30,\"image_tokens\":5},"
      "\"completion_tokens_details\":{\"audio_tokens\":25}}"},
     true,
     {.input = 15, .audio_in = 30, .image_in = 5, .output = 15, .audio_out = 25}},
    // the last value present wins per field, nothing is summed
    {O,
     {"{\"prompt_tokens\":6,\"completion_tokens\":1,\"total_tokens\":7}",
      "{\"prompt_tokens\":6,\"completion_tokens\":2,\"total_tokens\":8}",
      "{\"completion_tokens\":9,\"total_tokens\":15}"},
     true,
     {.input = 6, .output = 9}},
    // values that are none
    {O,
     {"{\"prompt_tokens\":-5,\"completion_tokens\":2}"},
     true,
     {.output = 2, .flags = USAGE_CLAMPED}},
    {O,
     {"{\"prompt_tokens\":\"5\",\"completion_tokens\":2}"},
     true,
     {.output = 2, .flags = USAGE_ABSURD}},
    {O,
     {"{\"prompt_tokens\":5.5,\"completion_tokens\":2.0}"},
     true,
     {.output = 2, .flags = USAGE_ABSURD}},
    {O,
     {"{\"prompt_tokens\":18446744073709551617,\"completion_tokens\":2}"},
     true,
     {.output = 2, .flags = USAGE_ABSURD}},
    {O,
     {"{\"prompt_tokens\":1099511627777,\"completion_tokens\":1099511627776}"},
     true,
     {.output = UINT64_C(1) << 40, .flags = USAGE_ABSURD}},
    {O,
     {"{\"prompt_tokens\":7,\"completion_tokens\":2}", "{\"prompt_tokens\":1e30}"},
     true,
     {.input = 7, .output = 2, .flags = USAGE_ABSURD}},
    {O,
     {"{ \"prompt_token\\u0073\" : 3 , \"completion_tokens\":1}"},
     true,
     {.input = 3, .output = 1}},
    // Responses
    {R,
     {"{\"input_tokens\":100,\"input_tokens_details\":{\"cached_tokens\":64},"
      "\"output_tokens\":10,\"output_tokens_details\":{\"reasoning_tokens\":7},"
      "\"total_tokens\":110}"},
     true,
     {.input = 36, .cache_read = 64, .output = 3, .reasoning = 7}},
    // Claude: input excludes the caches
    {A, {"{\"input_tokens\":5,\"output_tokens\":2}"}, true, {.input = 5, .output = 2}},
    {A,
     {"{\"input_tokens\":5,\"cache_read_input_tokens\":70,\"cache_creation_input_tokens\":30,"
      "\"output_tokens\":2}"},
     true,
     {.input = 5, .cache_read = 70, .cache_write_5m = 30, .output = 2}},
    {A,
     {"{\"input_tokens\":5,\"cache_creation_input_tokens\":30,\"cache_creation\":"
      "{\"ephemeral_5m_input_tokens\":10,\"ephemeral_1h_input_tokens\":12},\"output_tokens\":2}"},
     true,
     {.input = 5, .cache_write_5m = 18, .cache_write_1h = 12, .output = 2}},
    {A,
     {"{\"input_tokens\":5,\"cache_creation\":{\"ephemeral_5m_input_tokens\":10,"
      "\"ephemeral_1h_input_tokens\":12},\"output_tokens\":2}"},
     true,
     {.input = 5, .cache_write_5m = 10, .cache_write_1h = 12, .output = 2}},
    {A,
     {"{\"input_tokens\":612,\"cache_read_input_tokens\":55096,\"output_tokens\":88}",
      "{\"input_tokens\":28,\"cache_read_input_tokens\":0,\"output_tokens\":3,"
      "\"output_tokens_details\":{\"thinking_tokens\":2}}"},
     true,
     {.input = 28, .output = 1, .reasoning = 2}},
    {A,
     {"{\"input_tokens\":12,\"output_tokens\":1}", "{\"output_tokens\":6}"},
     true,
     {.input = 12, .output = 6}},
    {A,
     {"{\"input_tokens\":1,\"output_tokens\":2,\"server_tool_use\":{\"web_search_requests\":3}}"},
     true,
     {.input = 1, .output = 2, .server_calls = 3}},
    {A,
     {"{\"input_tokens\":1,\"output_tokens\":2,\"output_tokens_details\":"
      "{\"thinking_tokens\":5}}"},
     true,
     {.input = 1, .reasoning = 2, .flags = USAGE_CLAMPED}},
};

START_TEST(test_row)
{
    const struct row *row = &ROWS[_i];
    struct usage_meter meter;
    struct usage usage;
    usage_meter_init(&meter, row->rule);
    for (int i = 0; i < 3 && row->objects[i] != NULL; i++)
        usage_meter_take(&meter, slice_str(row->objects[i]));
    ck_assert_msg(usage_meter_result(&meter, &usage) == row->has_usage, "row %d", _i);
    if (!row->has_usage)
        return;
    ck_assert_uint_eq(usage.input, row->want.input);
    ck_assert_uint_eq(usage.cache_read, row->want.cache_read);
    ck_assert_uint_eq(usage.cache_write_5m, row->want.cache_write_5m);
    ck_assert_uint_eq(usage.cache_write_1h, row->want.cache_write_1h);
    ck_assert_uint_eq(usage.audio_in, row->want.audio_in);
    ck_assert_uint_eq(usage.image_in, row->want.image_in);
    ck_assert_uint_eq(usage.output, row->want.output);
    ck_assert_uint_eq(usage.reasoning, row->want.reasoning);
    ck_assert_uint_eq(usage.audio_out, row->want.audio_out);
    ck_assert_uint_eq(usage.server_calls, row->want.server_calls);
    ck_assert_uint_eq(usage.flags, row->want.flags | USAGE_REPORTED);
    ck_assert_uint_eq(usage_total(&usage), usage_prompt(&usage) + usage_completion(&usage));
}
END_TEST

// Whatever is reported, no bucket is larger than what its whole can be.
START_TEST(test_random_objects_never_wrap)
{
    static const char *const KEYS[] = {
        "prompt_tokens", "completion_tokens", "total_tokens",     "input_tokens",
        "output_tokens", "cached_tokens",     "reasoning_tokens", "cache_creation_input_tokens"};
    static const char *const VALUES[] = {
        "0",   "1",    "7",  "-3", "1e3", "1099511627776", "\"\"", "null", "9223372036854775808",
        "0.5", "true", "100"};
    uint32_t seed = 12345;
    for (int round = 0; round < 20000; round++) {
        char text[1024];
        size_t len = 0;
        text[len++] = '{';
        for (int i = 0; i < 8; i++) {
            seed = seed * 1664525u + 1013904223u;
            len += (size_t)snprintf(text + len, sizeof(text) - len, "%s\"%s\":%s", i ? "," : "",
                                    KEYS[(seed >> 8) % 8], VALUES[(seed >> 16) % 12]);
        }
        text[len++] = '}';
        struct usage_meter meter;
        struct usage usage;
        usage_meter_init(&meter, (enum usage_rule)(round % 4));
        usage_meter_take(&meter, slice_of(text, len));
        usage_meter_result(&meter, &usage);
        ck_assert_uint_le(usage_total(&usage), UINT64_C(1) << 43);
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("usage");
    TCase *tcase = tcase_create("rules");
    tcase_add_loop_test(tcase, test_row, 0, (int)(sizeof(ROWS) / sizeof(ROWS[0])));
    tcase_add_test(tcase, test_random_objects_never_wrap);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_set_fork_status(runner, CK_NOFORK);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
