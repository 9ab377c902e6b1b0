// Answers that are none although their status says so, and heads that a strict client would not
// take.
#include "flow/exchange.h"
#include "flow_rig.h"

#define PLAIN(type) "HTTP/1.1 200 OK\r\ncontent-type: " type "\r\nconnection: close\r\n\r\n"

static void good_second(void)
{
    RIG_SAYS(1, RIG_CLOSE, RIG_JSON_HEAD("200 OK"), RIG_ANSWER);
}

START_TEST(what_is_no_object_goes_to_the_next)
{
    static const struct {
        const char *head, *body;
    } rows[] = {
        {PLAIN("text/html"), "<html><h1>Bad Gateway</h1></html>"},
        {PLAIN("application/json"), "<html></html>"},
        {PLAIN("application/json"), NULL},
        {PLAIN("application/json"), " \r\n"},
        {PLAIN("application/json"), "{\"choices\":[{\"message\":{\"content\":\"He"},
        {PLAIN("application/json"), "{\"choices\":[]} {}"},
        {PLAIN("application/json"), "\"hello\""},
        {PLAIN("application/json"), "[{\"choices\":[]}]"},
        {PLAIN("text/event-stream"), RIG_ROLE RIG_TEXT("a") RIG_STOP RIG_DONE},
    };
    rig_up(RIG_RETRY);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        if (rows[i].body)
            RIG_SAYS(0, RIG_CLOSE, rows[i].head, rows[i].body);
        else
            RIG_SAYS(0, RIG_CLOSE, rows[i].head);
        good_second();
        rig_post(RIG_CHAT_PATH, RIG_CHAT_WHOLE);
        RIG_FINISH();
        ck_assert_msg(rig_has("200 OK") && rig_has(RIG_ANSWER), "row %zu: %s", i, rig_got());
        rig_client_close();
    }
    rig_check_clean();
}
END_TEST

START_TEST(any_object_passes_whatever_its_type_says)
{
    static const char *const types[] = {"text/plain", "text/html", "application/problem+json",
                                        "application/json; charset=x-unknown"};
    rig_up("");
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        char head[160];
        snprintf(head, sizeof head,
                 "HTTP/1.1 200 OK\r\ncontent-type: %s\r\nconnection: close\r\n\r\n", types[i]);
        RIG_SAYS(0, RIG_CLOSE, head, " \n" RIG_ANSWER "\n");
        rig_post(RIG_CHAT_PATH, RIG_CHAT_WHOLE);
        RIG_FINISH();
        ck_assert_msg(rig_has("200 OK") && rig_has(" \n" RIG_ANSWER "\n"), "%s: %s", types[i],
                      rig_got());
        rig_client_close();
    }
    ck_assert_int_eq(rig_rows("is_success = 1"), (int64_t)(sizeof types / sizeof *types));
    rig_check_clean();
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        what_is_no_object_goes_to_the_next,
        any_object_passes_whatever_its_type_says,
    };
    return rig_main("odd_answers", tests, sizeof tests / sizeof *tests);
}
