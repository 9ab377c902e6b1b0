// Events by shape: what fits is told as a scan would tell it, everything else is scanned.
#include "codec/dialect.h"
#include <check.h>
#include <stdio.h>

// Feeds each event to a reader that scans all and to one that goes by shapes; both must agree.
// Gives how many events the second one did not scan.
static int compare(enum dialect_id id, enum dialect_op op, const char *const *events, size_t count)
{
    struct dialect_reader slow, quick;
    int fitted = 0;
    dialect_reader_init(&slow, id, op);
    dialect_reader_init(&quick, id, op);
    for (size_t i = 0; i < count; i++) {
        struct sse_event event = {.data = slice_str(events[i]), .has_data = true};
        struct dialect_info a, b;
        struct shape_match match;
        fitted += shape_fits(&quick.shape, event.name, event.data, &match);
        slow.dialect->inspect(&slow, &event, &a);
        dialect_inspect(&quick, &event, &b);
        ck_assert_msg(a.class == b.class && a.block == b.block && a.has_text == b.has_text &&
                          a.index == b.index && a.text_start == b.text_start &&
                          a.text_end == b.text_end && a.text_has_escapes == b.text_has_escapes,
                      "%s", events[i]);
        ck_assert_msg(slow.text_bytes == quick.text_bytes && slow.sequence == quick.sequence &&
                          slow.has_finish == quick.has_finish && slow.has_end == quick.has_end &&
                          slow.has_content == quick.has_content &&
                          slow.meter.seen == quick.meter.seen,
                      "%s", events[i]);
    }
    return fitted;
}
#define COMPARE(id, op, events) compare(id, op, events, sizeof(events) / sizeof((events)[0]))

#define CHUNK(content)                                                                             \
    "{\"id\":\"c1\",\"object\":\"chat.completion.chunk\",\"created\":7,\"model\":\"m\","           \
    "\"choices\":[{\"index\":0,\"delta\":{\"content\":\"" content                                  \
    "\"},\"logprobs\":null,\"finish_reason\":null}]}"

START_TEST(test_chat)
{
    static const char *const EVENTS[] = {
        CHUNK("Hello"),
        CHUNK(" world"),
        CHUNK("\\n\\\"quoted\\\"\\\\"),
        CHUNK("\xc3\xa4\xff"),
        CHUNK("x"),
        // Scanned: empty text says nothing, a \u wants decoding, and what only looks alike.
        CHUNK(""),
        CHUNK("\\u00e4"),
        CHUNK("\\x"),
        CHUNK("a\",\"refusal\":\"b"),
        "{\"id\":\"c1\",\"object\":\"chat.completion.chunk\",\"created\":7,\"model\":\"m\","
        "\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}",
        "{\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":2,"
        "\"total_tokens\":5}}",
        "[DONE]",
        CHUNK("after the end"),
    };
    // The \u one becomes the shape of its followers, which is the same.
    ck_assert_int_ge(COMPARE(DIALECT_OPENAI, DIALECT_OP_CHAT, EVENTS), 4);
}
END_TEST

START_TEST(test_chat_padding_and_usage)
{
#define PADDED(content, pad)                                                                       \
    "{\"choices\":[{\"index\":2,\"delta\":{\"content\":\"" content                                 \
    "\"}}],\"usage\":null,\"obfuscation\":\"" pad "\"}"
#define METERED(content, tokens)                                                                   \
    "{\"choices\":[{\"index\":0,\"delta\":{\"content\":\"" content                                 \
    "\"}}],\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":" tokens "}}"
    static const char *const EVENTS[] = {
        PADDED("a", "f3Kq"), PADDED("bc", ""),  PADDED("d", "Zz09xq"), PADDED("e", "\\n"),
        METERED("a", "1"),   METERED("b", "1"), METERED("c", "3"),
    };
    ck_assert_int_eq(COMPARE(DIALECT_OPENAI, DIALECT_OP_CHAT, EVENTS), 2);
}
END_TEST

START_TEST(test_a_finish_beside_text_is_always_scanned)
{
    static const char *const EVENTS[] = {
        "{\"choices\":[{\"delta\":{\"content\":\"a\"},\"finish_reason\":\"stop\"}]}",
        "{\"choices\":[{\"delta\":{\"content\":\"b\"},\"finish_reason\":\"stop\"}]}",
        "{\"choices\":[{\"delta\":{\"content\":\"b\"}},{\"delta\":{\"content\":\"c\"}}]}",
        "{\"choices\":[{\"delta\":{\"content\":\"b\"}},{\"delta\":{\"content\":\"c\"}}]}",
    };
    ck_assert_int_eq(COMPARE(DIALECT_OPENAI, DIALECT_OP_CHAT, EVENTS), 0);
}
END_TEST

START_TEST(test_text_in_two_places_is_counted_whole)
{
    static const char *const EVENTS[] = {
        "{\"choices\":[{\"delta\":{\"content\":\"a\",\"reasoning_content\":\"long thought\"}}]}",
        "{\"choices\":[{\"delta\":{\"content\":\"bcd\",\"reasoning_content\":\"long thought\"}}]}",
        "{\"choices\":[{\"delta\":{\"content\":\"bcd\",\"reasoning_content\":\"another one\"}}]}",
    };
    ck_assert_int_eq(COMPARE(DIALECT_OPENAI, DIALECT_OP_CHAT, EVENTS), 1);
}
END_TEST

START_TEST(test_responses_and_claude)
{
#define DELTA(number, text, pad)                                                                   \
    "{\"type\":\"response.output_text.delta\",\"sequence_number\":" number                         \
    ",\"item_id\":\"msg_1\",\"output_index\":1,\"content_index\":0,\"delta\":\"" text              \
    "\",\"logprobs\":[],\"obfuscation\":\"" pad "\"}"
    static const char *const RESPONSES[] = {
        DELTA("4", "Hi", "abc"),   DELTA("5", " there", ""),
        DELTA("6", "!", "qwertz"), DELTA("12345", "x", "y"),
        DELTA("007", "x", "y"),    DELTA("8.0", "x", "y"),
        DELTA("-9", "x", "y"),     DELTA("1e1", "x", "y"),
        DELTA("", "x", "y"),       DELTA("9999999999999999999", "x", "y"),
        DELTA("0", "x", "y"),
    };
    ck_assert_int_ge(COMPARE(DIALECT_RESPONSES, DIALECT_OP_RESPONSES, RESPONSES), 3);
#define BLOCK(index, kind, text)                                                                   \
    "{\"type\":\"content_block_delta\",\"index\":" index ",\"delta\":{\"type\":\"" kind            \
    "_delta\",\"" kind "\":\"" text "\"}}"
    static const char *const CLAUDE[] = {
        BLOCK("0", "thinking", "hm"), BLOCK("0", "thinking", "hmm\\n"), BLOCK("1", "text", "So"),
        BLOCK("1", "text", " it is"), BLOCK("2", "text", "x"),          BLOCK("2", "text", "y"),
        BLOCK("2", "text", ""),       "{\"type\":\"message_stop\"}",    BLOCK("2", "text", "z"),
    };
    ck_assert_int_ge(COMPARE(DIALECT_ANTHROPIC, DIALECT_OP_MESSAGES, CLAUDE), 3);
}
END_TEST

START_TEST(test_the_name_belongs_to_the_shape)
{
    struct event_shape shape = {0};
    struct shape_match match;
    struct slice data = SLICE_LIT("{\"a\":\"b\"}");
    struct shape_hole hole = {SHAPE_TEXT, 6, 7};
    shape_learn(&shape, SLICE_LIT("delta"), data, &hole, 1);
    ck_assert(shape_fits(&shape, SLICE_LIT("delta"), SLICE_LIT("{\"a\":\"other\"}"), &match));
    ck_assert_uint_eq(match.text_bytes, 5);
    ck_assert(!shape_fits(&shape, SLICE_LIT("error"), data, &match));
    ck_assert(!shape_fits(&shape, SLICE_LIT(""), data, &match));
    ck_assert(!shape_fits(&shape, SLICE_LIT("delta"), SLICE_LIT("{\"a\":\"b\"} "), &match));
    ck_assert(!shape_fits(&shape, SLICE_LIT("delta"), SLICE_LIT("{\"a\":\"b"), &match));
    ck_assert(!shape_fits(&shape, SLICE_LIT("delta"), SLICE_LIT("{\"a\":\"b\\"), &match));
    ck_assert(!shape_fits(&shape, SLICE_LIT("delta"), SLICE_LIT(""), &match));
    // Too long to be kept: the old shape is gone as well.
    static char text[SHAPE_BYTES + 10];
    memset(text, ' ', sizeof(text));
    memcpy(text, data.ptr, data.len);
    shape_learn(&shape, SLICE_LIT("delta"), slice_of(text, sizeof(text)), &hole, 1);
    ck_assert(!shape_fits(&shape, SLICE_LIT("delta"), data, &match));
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("shape");
    TCase *tcase = tcase_create("shape");
    tcase_add_test(tcase, test_chat);
    tcase_add_test(tcase, test_chat_padding_and_usage);
    tcase_add_test(tcase, test_a_finish_beside_text_is_always_scanned);
    tcase_add_test(tcase, test_text_in_two_places_is_counted_whole);
    tcase_add_test(tcase, test_responses_and_claude);
    tcase_add_test(tcase, test_the_name_belongs_to_the_shape);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_set_fork_status(runner, CK_NOFORK);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
