// The life of a call: clients that leave in each state, hooks that wait meanwhile, uploads,
// refusals, retries, drain and stop. After each call nothing may be left of it, and it has one row.
#include "flow_rig.h"

// ---- clients that leave

// Hooks that wait ten seconds where the header x-wait says.
#define WAITING                                                                                    \
    "identify = function(ctx) if ctx.headers['x-wait'] == 'identify' then gw.sleep(10) end "       \
    "ctx:identify{ name = 't' } return true end,\n"                                                \
    "admit = function(ctx) if ctx.headers['x-wait'] == 'admit' then gw.sleep(10) end end,\n"       \
    "select = function(ctx) if ctx.headers['x-wait'] == 'select' then gw.sleep(10) end "           \
    "if ctx.attempt > 1 then return nil end "                                                      \
    "local v = gw.upstreams.candidates(ctx) table.sort(v, function(a, b) "                         \
    "return a.priority > b.priority end) return v end,\n"                                          \
    "prepare = function(ctx) if ctx.headers['x-wait'] == 'prepare' then gw.sleep(10) end end,\n"   \
    "reply = function(ctx) if ctx.headers['x-wait'] == 'reply' then gw.sleep(10) end "             \
    "local r = ctx.headers['x-reply'] if r == 'deny' then ctx:deny(418, 'tea', 'No.') "            \
    "elseif r == 'respond' then ctx:respond{ status = 200, text = 'instead' } "                    \
    "elseif r then return r end end,\n"                                                            \
    "body = function(ctx, t) if ctx.headers['x-wait'] == 'body' then gw.sleep(10) end end,\n"      \
    "error = function(ctx) if ctx.headers['x-wait'] == 'error' then gw.sleep(10) end end,\n"       \
    "finish = function(ctx) if ctx.headers['x-wait'] == 'finish' then gw.sleep(10) end end,\n"

static void wait_in(const char *state)
{
    char header[64];
    snprintf(header, sizeof header, "x-wait: %s\r\n", state);
    rig_post_with(RIG_CHAT_PATH, header, RIG_CHAT_WHOLE);
    RIG_WAIT(flow_exchange_count(rig.flow) == 1);
    rig_turns(30);
    ck_assert_uint_eq(flow_exchange_count(rig.flow), 1);
}

START_TEST(a_client_may_leave_while_a_hook_waits)
{
    static const char *const states[] = {"identify", "admit", "select", "prepare", "reply", "body"};
    rig_up(WAITING);
    RIG_SAYS(0, RIG_CLOSE, RIG_JSON_HEAD("200 OK"), RIG_ANSWER);
    for (size_t i = 0; i < sizeof states / sizeof *states; i++) {
        wait_in(states[i]);
        ck_assert_msg(rig.client.in.len == 0, "%s: %s", states[i], rig_got());
        rig_client_close();
        RIG_WAIT(flow_exchange_count(rig.flow) == 0);
        rig_turns(5);
        rig_check_clean();
        char where[100];
        snprintf(where, sizeof where,
                 "status = 499 AND is_success = 0 AND flags LIKE '%%client_g%%'");
        ck_assert_int_eq(rig_rows(where), (int64_t)i + 1);
    }
    ck_assert_int_eq(rig_rows("attempts LIKE '%client gone%'"), 2); // reply and body
    ck_assert_int_eq(rig_rows("1"), 6);
}
END_TEST

START_TEST(a_client_may_leave_while_the_error_hook_waits)
{
    rig_up(WAITING);
    RIG_SAYS(0, RIG_CLOSE, RIG_JSON_HEAD("400 X"), "{\"error\":{\"message\":\"bad\"}}");
    wait_in("error");
    rig_client_close();
    RIG_WAIT(flow_exchange_count(rig.flow) == 0);
    ck_assert_int_eq(rig_rows("attempts LIKE '%http 400%'"), 1);
    ck_assert_int_eq(rig_rows("1"), 1);
    rig_check_clean();
}
END_TEST

START_TEST(a_finish_hook_that_waits_keeps_the_exchange)
{
    rig_up(WAITING);
    RIG_SAYS(0, RIG_CLOSE, RIG_JSON_HEAD("200 OK"), RIG_ANSWER);
    rig_post_with(RIG_CHAT_PATH, "x-wait: finish\r\n", RIG_CHAT_WHOLE);
    RIG_WAIT(rig.client.is_over);
    rig_turns(10);
    ck_assert_uint_eq(flow_exchange_count(rig.flow), 1);
    ck_assert_int_eq(rig_rows("1"), 0);
    rig_advance(10001);
    RIG_WAIT(flow_exchange_count(rig.flow) == 0);
    ck_assert_int_eq(rig_rows("is_success = 1"), 1);
    rig_check_clean();
}
END_TEST

START_TEST(stop_does_not_wait_for_finish_hooks)
{
    rig_up(WAITING);
    RIG_SAYS(0, RIG_CLOSE, RIG_JSON_HEAD("200 OK"), RIG_ANSWER);
    rig_post_with(RIG_CHAT_PATH, "x-wait: finish\r\n", RIG_CHAT_WHOLE);
    RIG_WAIT(rig.client.is_over);
    rig_turns(10);
    epoch_enter(rig.reader);
    flow_drop_all(rig.flow);
    epoch_leave(rig.reader);
    ck_assert_int_eq(rig_rows("is_success = 1"), 1);
    rig_check_clean();
}
END_TEST

START_TEST(a_client_may_leave_at_each_point_of_a_stream)
{
    rig_up("");
    RIG_SAYS(0, RIG_STAY, RIG_EVENTS_HEAD, RIG_ROLE, RIG_TEXT("one"), RIG_TEXT("two") "data: {",
             RIG_STOP);
    for (size_t allowed = 0; allowed <= 5; allowed++) {
        rig.up[0].allowed = allowed;
        rig_post(RIG_CHAT_PATH, RIG_CHAT);
        RIG_WAIT(rig.up[0].requests == (int)allowed + 1);
        rig_turns(20);
        rig_client_close();
        RIG_WAIT(rig.up[0].gone == (int)allowed + 1); // the upstream's call is cancelled
        RIG_WAIT(flow_exchange_count(rig.flow) == 0);
        rig_check_clean();
    }
    ck_assert_int_eq(rig_rows("status = 499 AND attempts LIKE '%client gone%'"), 6);
    // Once content passed there is usage, estimated.
    ck_assert_int_eq(rig_rows("output > 0 AND flags LIKE '%estimated%'"), 3);
}
END_TEST

START_TEST(a_client_may_leave_in_the_middle_of_its_request)
{
    rig_up("");
    rig_client_open();
    rig_send(
        SLICE_LIT("POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n"
                  "{\"model\""));
    RIG_WAIT(atomic_load(&rig.shared.body_bytes) == 100); // its room is taken at once
    rig_turns(5);
    rig_client_close();
    RIG_WAIT(flow_exchange_count(rig.flow) == 0);
    ck_assert_int_eq(rig_rows("status = 499 AND bytes_in = 8"), 1);
    rig_check_clean();
}
END_TEST

// ---- hooks and upstreams at the same time

START_TEST(the_upstream_may_end_while_a_reply_hook_waits)
{
    static const char *const ends[] = {"pass", "retry", "deny", "respond"};
    static const char *const told[] = {"\"yes\"", "\"yes\"", "tea", "instead"};
    rig_up(WAITING);
    RIG_SAYS(0, RIG_CLOSE, RIG_JSON_HEAD("200 OK"), RIG_ANSWER);
    RIG_SAYS(1, RIG_CLOSE, RIG_JSON_HEAD("200 OK"), RIG_ANSWER);
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++) {
        char headers[100];
        snprintf(headers, sizeof headers, "x-wait: reply\r\nx-reply: %s\r\n", ends[i]);
        rig_post_with(RIG_CHAT_PATH, headers, RIG_CHAT_WHOLE);
        int before = rig.up[0].requests;
        RIG_WAIT(rig.up[0].requests == before + 1);
        rig_turns(30);
        ck_assert_uint_eq(rig.client.in.len, 0);
        for (int k = 0; k < 5 && !rig.client.is_over; k++) {
            rig_advance(10001);
            rig_turns(50);
        }
        RIG_FINISH();
        ck_assert_msg(rig_has(told[i]), "%s: %s", ends[i], rig_got());
        rig_client_close();
        rig_check_clean();
    }
    ck_assert_int_eq(rig_rows("1"), 4);
}
END_TEST

START_TEST(a_refused_answer_leaves_nothing_to_the_next)
{
    // The first answer is complete when the hook refuses it; the second one is then on its way.
    rig_up("reply = function(ctx) if ctx.attempt == 1 then gw.sleep(10) return 'retry' end end,");
    RIG_SAYS(0, RIG_CLOSE,
             "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 0\r\n\r\n");
    RIG_SAYS(1, RIG_CLOSE, RIG_JSON_HEAD("200 OK"), RIG_ANSWER);
    rig.up[1].allowed = 1;
    rig_post(RIG_CHAT_PATH, RIG_CHAT_WHOLE);
    RIG_WAIT(rig.up[0].requests == 1);
    rig_turns(30);
    rig_advance(10001);
    RIG_WAIT(rig.up[1].requests == 1);
    rig_turns(30);
    ck_assert_uint_eq(rig.client.in.len, 0);
    rig.up[1].allowed = SIZE_MAX;
    RIG_FINISH();
    ck_assert_msg(rig_has("\"yes\""), "%s", rig_got());
    ck_assert_int_eq(rig_rows("is_success = 1 AND attempts LIKE '%refused by a plugin%ok%'"), 1);
    rig_check_clean();
}
END_TEST

START_TEST(the_upstream_may_break_while_a_reply_hook_waits)
{
    rig_up(WAITING);
    RIG_SAYS(0, RIG_RESET,
             "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
             "content-length: 5000\r\n\r\n",
             "{", "", "", "", "");
    rig_post_with(RIG_CHAT_PATH, "x-wait: reply\r\n", RIG_CHAT_WHOLE);
    RIG_WAIT(rig.up[0].requests == 1);
    rig_turns(30);
    rig_advance(10001);
    rig_turns(50);
    rig_advance(10001); // the hook is asked again, about the failure
    RIG_FINISH();
    ck_assert_msg(rig_has(" 502 "), "%s", rig_got());
    rig_check_clean();
}
END_TEST

START_TEST(a_plugin_answer_after_the_head_went_out)
{
    // A keep-alive comment promised a stream: a whole answer can only be told as an error.
    rig_up("reply = function(ctx) if ctx.error and ctx.error.kind then ctx:respond{ status = 200, "
           "json = { a = 1 } } end end,");
    RIG_SAYS(0, RIG_CLOSE, RIG_JSON_HEAD("500 X"), "{}");
    rig.up[0].allowed = 0;
    rig_post(RIG_CHAT_PATH, RIG_CHAT);
    RIG_WAIT(rig.up[0].requests == 1);
    rig_advance(15001);
    RIG_WAIT(rig_has("keepalive"));
    rig.up[0].allowed = SIZE_MAX;
    RIG_FINISH();
    bool is_whole;
    struct slice body = rig_body(&is_whole);
    ck_assert_msg(is_whole && slice_find(body, SLICE_LIT("data: {\"error\"")) >= 0, "%s",
                  rig_got());
    rig_check_clean();
}
END_TEST

START_TEST(a_plugin_streams_and_its_client_leaves)
{
    rig_up("select = function(ctx) ctx:stream(function(emit) for i = 1, 1000 do "
           "emit{ kind = 'text', text = 'word ' } gw.sleep(1) end end) end,");
    rig_post(RIG_CHAT_PATH, RIG_CHAT);
    for (int i = 0; i < 3; i++) {
        rig_turns(10);
        rig_advance(1001);
    }
    RIG_WAIT(rig_has("word "));
    rig_client_close();
    RIG_WAIT(flow_exchange_count(rig.flow) == 0);
    ck_assert_int_eq(rig_rows("status = 499 AND flags LIKE '%plugin_answer%'"), 1);
    rig_check_clean();
}
END_TEST

START_TEST(reload_while_a_call_runs)
{
    rig_up(WAITING);
    RIG_SAYS(0, RIG_CLOSE, RIG_EVENTS_HEAD, RIG_TEXT("one"), RIG_TEXT("two"), RIG_STOP RIG_DONE);
    rig.up[0].allowed = 2;
    rig_post(RIG_CHAT_PATH, RIG_CHAT);
    RIG_WAIT(rig_has("one"));
    for (int i = 0; i < 7; i++) { // more than are kept
        rig_flip();
        rig_turns(3);
    }
    rig.up[0].allowed = SIZE_MAX;
    RIG_FINISH();
    ck_assert(rig_has("[DONE]"));
    rig_client_close();
    wait_in("prepare");
    for (int i = 0; i < 7; i++) {
        rig_flip();
        rig_turns(3);
    }
    rig_advance(10001); // the hook goes on in its own generation
    RIG_FINISH();
    ck_assert_int_eq(rig_rows("1"), 2);
    rig_check_clean();
}
END_TEST

// ---- retries

START_TEST(all_candidates_fail)
{
    rig_up(RIG_RETRY);
    RIG_SAYS(0, RIG_RESET, "");
    RIG_SAYS(1, RIG_CLOSE, RIG_JSON_HEAD("429 X"),
             "{\"error\":{\"message\":\"slow down\",\"type\":\"rate_limit\",\"code\":\"rl\"}}");
    rig_post(RIG_CHAT_PATH, RIG_CHAT);
    RIG_FINISH();
    ck_assert_msg(rig_has(" 429 ") && rig_has("slow down") && rig_has("retry-after: 1"), "%s",
                  rig_got());
    ck_assert_int_eq(rig.up[0].requests, 1); // nothing is sent twice
    ck_assert_int_eq(rig.up[1].requests, 1);
    ck_assert_int_eq(rig_rows("status = 429 AND attempts LIKE '%,%'"), 1);
    rig_check_clean();
}
END_TEST

START_TEST(no_more_than_max_attempts)
{
    rig_prepare();
    test_conf_set(rig.store.conf, "max_attempts", "1");
    rig_start("", "", RIG_RETRY);
    RIG_SAYS(0, RIG_CLOSE, RIG_JSON_HEAD("500 X"), "{}");
    rig_post(RIG_CHAT_PATH, RIG_CHAT);
    RIG_FINISH();
    ck_assert(rig_has(" 502 "));
    ck_assert_int_eq(rig.up[1].requests, 0);
    rig_check_clean();
}
END_TEST

START_TEST(select_may_give_nothing)
{
    rig_up("select = function(ctx) if ctx.headers['x-none'] then return {} end "
           "return { 4711 } end,");
    rig_post_with(RIG_CHAT_PATH, "x-none: 1\r\n", RIG_CHAT);
    RIG_FINISH();
    ck_assert_msg(rig_has(" 403 "), "%s", rig_got());
    rig_client_close();
    rig_post(RIG_CHAT_PATH, RIG_CHAT); // an upstream that is not there
    RIG_FINISH();
    ck_assert_msg(rig_has(" 503 ") && rig_has("no_upstream"), "%s", rig_got());
    ck_assert_int_eq(rig_rows("attempts = '[]'"), 2);
    rig_check_clean();
}
END_TEST

START_TEST(an_endless_error_body_is_not_awaited)
{
    static char body[300000];
    memset(body, 'x', sizeof body);
    const struct slice pieces[] = {SLICE_LIT("HTTP/1.1 500 X\r\ncontent-length: 100000000\r\n\r\n"),
                                   slice_of(body, sizeof body)};
    rig_up("");
    rig_says(0, RIG_STAY, 2, pieces);
    rig_post(RIG_CHAT_PATH, RIG_CHAT);
    RIG_FINISH();
    ck_assert(rig_has(" 502 "));
    RIG_WAIT(rig.up[0].gone == 1);
    rig_check_clean();
}
END_TEST

START_TEST(a_failed_attempt_is_not_charged)
{
    // Claude's first event tells the input's tokens; then the call fails before any content.
    rig_up("");
    RIG_SAYS(0, RIG_CLOSE, RIG_EVENTS_HEAD,
             "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"id\":\"m\","
             "\"model\":\"m\",\"usage\":{\"input_tokens\":500,\"output_tokens\":1}}}\n\n",
             "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\","
             "\"message\":\"later\"}}\n\n");
    rig_post("/v1/messages", RIG_CHAT);
    RIG_FINISH();
    ck_assert_msg(rig_has(" 503 ") || rig_has(" 529 "), "%s", rig_got());
    ck_assert_int_eq(rig_rows("is_success = 0 AND input = 0 AND output = 0"), 1);
}
END_TEST

// ---- uploads

static const char FORM_HEAD[] = "--B\r\ncontent-disposition: form-data; name=\"model\"\r\n\r\nm\r\n"
                                "--B\r\ncontent-disposition: form-data; name=\"file\"; filename="
                                "\"a\"\r\n\r\n";
static const char FORM_END[] = "\r\n--B--\r\n";

static void begin_upload(size_t file_len, bool is_chunked)
{
    char head[400];
    rig_client_open();
    int len = snprintf(head, sizeof head,
                       "POST /v1/audio/transcriptions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
                       "content-type: multipart/form-data; boundary=B\r\n");
    if (is_chunked)
        snprintf(head + len, sizeof head - (size_t)len, "transfer-encoding: chunked\r\n\r\n");
    else
        snprintf(head + len, sizeof head - (size_t)len, "content-length: %zu\r\n\r\n",
                 sizeof FORM_HEAD - 1 + file_len + sizeof FORM_END - 1);
    rig_send(slice_str(head));
    if (!is_chunked)
        rig_send(slice_str(FORM_HEAD));
}

static void send_file(size_t len)
{
    static char bytes[1 << 16];
    memset(bytes, 'f', sizeof bytes);
    for (size_t sent = 0; sent < len; sent += sizeof bytes)
        rig_send(slice_of(bytes, len - sent < sizeof bytes ? len - sent : sizeof bytes));
}

START_TEST(an_upload_passes_through)
{
    enum { FILE_LEN = 3 << 20 };
    rig_up("");
    RIG_SAYS(0, RIG_CLOSE, RIG_JSON_HEAD("200 OK"), "{\"text\":\"heard\"}");
    begin_upload(FILE_LEN, false);
    send_file(FILE_LEN);
    rig_send(slice_str(FORM_END));
    RIG_FINISH();
    ck_assert(rig_has("heard"));
    struct slice got = buf_slice(&rig.up[0].last);
    long at = slice_find(got, SLICE_LIT("\r\n\r\n"));
    ck_assert_uint_eq(got.len - (size_t)at - 4,
                      sizeof FORM_HEAD - 1 + FILE_LEN + sizeof FORM_END - 1);
    ck_assert_int_eq(rig_rows("is_success = 1 AND model = 'm' AND bytes_in > 3000000"), 1);
    rig_check_clean();
}
END_TEST

START_TEST(an_upload_waits_for_a_slow_upstream)
{
    enum { FILE_LEN = 24 << 20 };
    rig_up("");
    RIG_SAYS(0, RIG_CLOSE, RIG_JSON_HEAD("200 OK"), "{\"text\":\"heard\"}");
    rig.up[0].reads_nothing = true;
    begin_upload(FILE_LEN, false);
    send_file(FILE_LEN);
    rig_send(slice_str(FORM_END));
    rig_turns(2000);
    ck_assert_uint_gt(rig.client.out.len, 1 << 20); // it is felt back to the client
    ck_assert_int_lt(atomic_load(&rig.shared.body_bytes), 1 << 20);
    rig.up[0].reads_nothing = false;
    RIG_FINISH();
    ck_assert(rig_has("heard"));
    rig_check_clean();
}
END_TEST

START_TEST(the_model_may_be_missing_in_an_upload)
{
    static const char PART[] = "--B\r\ncontent-disposition: form-data; name=\"file\"; "
                               "filename=\"a\"\r\n\r\n";
    char head[300];
    rig_up("");
    rig_client_open();
    snprintf(head, sizeof head,
             "POST /v1/audio/transcriptions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
             "content-type: multipart/form-data; boundary=B\r\ncontent-length: %zu\r\n\r\n",
             strlen(PART) + 200000 + strlen(FORM_END));
    rig_send(slice_str(head));
    rig_send(slice_str(PART));
    send_file(200000);
    rig_turns(50);
    ck_assert(!rig_has(" 400 ")); // it may still come behind the file
    rig_send(slice_str(FORM_END));
    RIG_WAIT(rig_has(" 400 "));
    ck_assert(rig_has("missing_required_parameter"));
    rig_client_close();
    RIG_WAIT(flow_exchange_count(rig.flow) == 0);
    ck_assert_int_eq(rig_rows("status = 400"), 1);
    rig_check_clean();
}
END_TEST

START_TEST(a_client_may_leave_in_the_middle_of_an_upload)
{
    rig_up("");
    begin_upload(1 << 20, false);
    send_file(300000);
    RIG_WAIT(rig.client.out.len == 0);
    rig_turns(50);
    ck_assert_uint_eq(flow_exchange_count(rig.flow), 1);
    rig_client_close();
    RIG_WAIT(flow_exchange_count(rig.flow) == 0);
    RIG_WAIT(rig.up[0].gone == 1);
    ck_assert_int_eq(rig_rows("status = 499 AND attempts LIKE '%client gone%'"), 1);
    rig_check_clean();
}
END_TEST

static void refuse_early(const char *head, const char *body, bool is_chunked)
{
    RIG_SAYS(0, RIG_STAY, head, body);
    rig.up[0].answers_early = true;
    begin_upload(1 << 20, is_chunked);
    if (is_chunked) {
        char line[20];
        snprintf(line, sizeof line, "%zx\r\n", sizeof FORM_HEAD - 1);
        rig_send(slice_str(line));
        rig_send(slice_str(FORM_HEAD));
        rig_send(SLICE_LIT("\r\n"));
    } else {
        send_file(100000);
    }
    int before = rig.up[0].requests;
    RIG_WAIT(rig.up[0].requests == before + 1);
    rig_turns(50);
    rig_advance(1001); // where the text's end cannot be known
    RIG_WAIT(rig_has(" 413 "));
    ck_assert_msg(rig_has("too long"), "%s", rig_got());
    rig_client_close();
    RIG_WAIT(flow_exchange_count(rig.flow) == 0);
    rig_check_clean();
}

START_TEST(an_upstream_may_refuse_an_upload_early)
{
    static const char body[] = "{\"error\":{\"message\":\"too long\"}}";
    char head[200];
    rig_up("");
    snprintf(head, sizeof head,
             "HTTP/1.1 413 X\r\ncontent-type: application/json\r\ncontent-length: %zu\r\n\r\n",
             strlen(body));
    refuse_early(head, body, false);
    refuse_early(head, body, true);
    refuse_early("HTTP/1.1 413 X\r\ncontent-type: application/json\r\n"
                 "transfer-encoding: chunked\r\n\r\n",
                 "22\r\n{\"error\":{\"message\":\"too long\"}} \r\n", false);
    ck_assert_int_eq(rig_rows("status = 413 AND attempts LIKE '%http 413%'"), 3);
}
END_TEST

START_TEST(an_upload_may_fail_while_a_reply_hook_waits)
{
    rig_up(WAITING);
    RIG_SAYS(0, RIG_STAY,
             "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
             "content-length: 500\r\n\r\n",
             "{");
    rig.up[0].answers_early = true;
    rig_client_open();
    rig_send(SLICE_LIT("POST /v1/audio/transcriptions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
                       "x-wait: reply\r\ncontent-type: multipart/form-data; boundary=B\r\n"
                       "content-length: 10000000\r\n\r\n"));
    rig_send(slice_str(FORM_HEAD));
    send_file(100000);
    RIG_WAIT(rig.up[0].requests == 1);
    rig_turns(50);
    epoch_enter(rig.reader);
    flow_end_all(rig.flow, "The gateway shuts down."); // fails it while the hook waits
    epoch_leave(rig.reader);
    RIG_WAIT(rig_has(" 503 "));
    rig_client_close();
    RIG_WAIT(flow_exchange_count(rig.flow) == 0);
    rig_advance(10001);
    rig_turns(10);
    ck_assert_int_eq(rig_rows("status = 503"), 1);
    rig_check_clean();
}
END_TEST

START_TEST(forms_are_no_way_around_metering)
{
    // What is called a form is still read as JSON where tokens are counted.
    rig_up("");
    rig_client_open();
    rig_send(
        SLICE_LIT("POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
                  "content-type: multipart/form-data; boundary=B\r\ncontent-length: 60\r\n\r\n"
                  "--B\r\ncontent-disposition: form-data; name=\"model\"\r\n\r\nm\r\n--B\r\n"));
    RIG_FINISH();
    ck_assert_msg(rig_has(" 400 ") && rig_has("invalid_json"), "%s", rig_got());
    ck_assert_int_eq(rig.up[0].requests, 0);
    rig_check_clean();
}
END_TEST

// ---- refusals

static void refused(const char *request, const char *status, const char *text)
{
    rig_client_open();
    rig_send(slice_str(request));
    RIG_WAIT(rig_has(status));
    ck_assert_msg(rig_has(text), "%s", rig_got());
    rig_client_close();
    RIG_WAIT(flow_exchange_count(rig.flow) == 0);
    rig_check_clean();
}

START_TEST(refusals)
{
    rig_up("identify = function(ctx) if ctx.headers['x-who'] then ctx:identify{ name = 't' } "
           "return true end end,");
#define HEAD(method, path) method " " path " HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
    refused(HEAD("POST", "/v1/chat/completions") "content-length: 2\r\n\r\n{}", " 401 ",
            "invalid_api_key");
    refused(HEAD("POST", "/v1/chat/completions") "x-who: a\r\n\r\n", " 400 ", "invalid_json");
    refused(HEAD("POST", "/v1/chat/completions") "x-who: a\r\ncontent-length: 2\r\n\r\n{}", " 400 ",
            "missing_required_parameter");
    refused(HEAD("POST", "/v1/chat/completions") "x-who: a\r\ncontent-length: 25\r\n\r\n"
                                                 "{\"model\":\"a\",\"Model\":\"b\"}",
            " 400 ", "duplicate_parameter");
    refused(HEAD("POST", "/v1/chat/completions") "x-who: a\r\ncontent-encoding: gzip\r\n"
                                                 "content-length: 2\r\n\r\n{}",
            " 415 ", "unsupported_content_encoding");
    refused(HEAD("GET", "/v1/messages") "\r\n", " 405 ", "allow: OPTIONS, POST");
    refused(HEAD("OPTIONS", "/v1/messages") "\r\n", " 204 ", "allow: OPTIONS, POST");
    refused(HEAD("HEAD", "/v1/models") "x-who: a\r\n\r\n", " 200 ", "content-type");
    refused(HEAD("GET", "/v1/models") "x-who: a\r\n\r\n", " 200 ", "\"object\":\"list\"");
    refused(HEAD("GET", "/v1/files") "x-who: a\r\n\r\n", " 404 ", "keeps state");
    refused(HEAD("GET", "/nothing") "\r\n", " 404 ", "not_found");
    refused(HEAD("GET", "/control/v1/info") "\r\n", " 404 ", "not_found");
    refused("GET /v1/responses HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\n"
            "upgrade: websocket\r\n\r\n",
            " 426 ", "upgrade_required");
    ck_assert_int_eq(rig_rows("status = 401"), 1);
    ck_assert_int_eq(rig_rows("path LIKE '/v1/models%'"), 0);
}
END_TEST

START_TEST(what_the_server_refuses_is_logged_as_it_was_told)
{
    rig_prepare();
    test_conf_set(rig.store.conf, "limits.body_bytes", "2048");
    rig.limits.body_idle_ms = 5000;
    rig_start("", "", "");
    rig_client_open();
    rig_send(SLICE_LIT("POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n"
                       "content-length: 4096\r\n\r\n"));
    RIG_WAIT(rig_has(" 413 "));
    rig_client_close();
    RIG_WAIT(flow_exchange_count(rig.flow) == 0);
    rig_client_open();
    rig_send(SLICE_LIT("POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n"
                       "content-length: 100\r\n\r\n{"));
    RIG_WAIT(atomic_load(&rig.shared.body_bytes) == 100);
    rig_turns(5);
    rig_advance(5001);
    RIG_WAIT(rig_has(" 408 "));
    rig_client_close();
    RIG_WAIT(flow_exchange_count(rig.flow) == 0);
    rig_client_open();
    rig_send(SLICE_LIT("POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n"
                       "transfer-encoding: chunked\r\n\r\n1\r\n{\r\nzz\r\n"));
    RIG_WAIT(rig_has(" 400 "));
    rig_client_close();
    RIG_WAIT(flow_exchange_count(rig.flow) == 0);
    ck_assert_int_eq(rig_rows("status = 413 AND error_code = 'request_too_large'"), 1);
    ck_assert_int_eq(rig_rows("status = 408"), 1);
    ck_assert_int_eq(rig_rows("status = 400"), 1);
    ck_assert_int_eq(rig_rows("1"), 3);
    rig_check_clean();
}
END_TEST

START_TEST(bodies_together_have_a_budget)
{
    rig_prepare();
    test_conf_set(rig.store.conf, "limits.bodies_total_bytes", "1048576");
    rig_start("", "", "");
    atomic_fetch_add(&rig.shared.body_bytes, 1048576 - 10); // what others hold
    rig_post(RIG_CHAT_PATH, RIG_CHAT);
    RIG_FINISH();
    ck_assert_msg(rig_has(" 503 ") && rig_has("overloaded"), "%s", rig_got());
    atomic_fetch_sub(&rig.shared.body_bytes, 1048576 - 10);
    rig_check_clean();
}
END_TEST

START_TEST(pipelined_calls_come_one_after_the_other)
{
    char request[600];
    rig_up("");
    RIG_SAYS(0, RIG_CLOSE, RIG_JSON_HEAD("200 OK"), RIG_ANSWER);
    snprintf(request, sizeof request,
             "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %zu\r\n\r\n%s",
             strlen(RIG_CHAT_WHOLE), RIG_CHAT_WHOLE);
    rig_client_open();
    for (int i = 0; i < 5; i++)
        rig_send(slice_str(request));
    RIG_WAIT(rig.up[0].requests == 5);
    RIG_WAIT(flow_exchange_count(rig.flow) == 0);
    ck_assert_int_eq(rig_rows("is_success = 1"), 5);
    rig_check_clean();
}
END_TEST

// ---- drain

START_TEST(drain_ends_streams_in_their_dialect)
{
    static const char *const paths[] = {RIG_CHAT_PATH, "/v1/messages"};
    static const char *const told[] = {"data: {\"error\"", "event: error"};
    rig_up("");
    for (size_t i = 0; i < 2; i++) {
        RIG_SAYS(
            0, RIG_STAY, RIG_EVENTS_HEAD,
            i ? "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":"
                "0,\"delta\":{\"type\":\"text_delta\",\"text\":\"one\"}}\n\nevent: con"
              : RIG_TEXT("one") "data: {\"ch");
        rig_post(paths[i], RIG_CHAT_USAGE);
        RIG_WAIT(rig_has("one"));
        rig_turns(5);
        epoch_enter(rig.reader);
        flow_end_all(rig.flow, "The gateway shuts down.");
        epoch_leave(rig.reader);
        RIG_FINISH();
        bool is_whole;
        struct slice body = rig_body(&is_whole);
        ck_assert_msg(is_whole && slice_find(body, slice_str(told[i])) >= 0, "%s", rig_got());
        rig_client_close();
    }
    ck_assert_int_eq(rig_rows("is_success = 0 AND flags LIKE '%drained%'"), 2);
    rig_check_clean();
}
END_TEST

START_TEST(drain_reaches_every_state)
{
    static const char *const states[] = {"identify", "admit", "select", "prepare", "reply", "body"};
    rig_up(WAITING);
    RIG_SAYS(0, RIG_CLOSE, RIG_JSON_HEAD("200 OK"), RIG_ANSWER);
    for (size_t i = 0; i < sizeof states / sizeof *states; i++) {
        wait_in(states[i]);
        epoch_enter(rig.reader);
        flow_end_all(rig.flow, "The gateway shuts down.");
        epoch_leave(rig.reader);
        RIG_FINISH();
        ck_assert_msg(rig_has(" 503 ") && rig_has("shutting_down"), "%s: %s", states[i], rig_got());
        rig_client_close();
        rig_check_clean();
    }
    rig_advance(20000);
    rig_turns(10);
    ck_assert_int_eq(rig_rows("status = 503"), 6);
}
END_TEST

// ---- reading on when the client has left

static void leave_while_it_drains(void)
{
    RIG_SAYS(0, RIG_CLOSE, RIG_EVENTS_HEAD, RIG_TEXT("one"), RIG_TEXT("two") RIG_STOP,
             RIG_USAGE RIG_DONE);
    rig.up[0].allowed = 2;
    rig_post(RIG_CHAT_PATH, RIG_CHAT);
    RIG_WAIT(rig_has("one"));
    rig_client_close();
    rig_turns(20);
    ck_assert_uint_eq(flow_exchange_count(rig.flow), 1);
}

START_TEST(the_policy_drain_reads_the_true_usage)
{
    rig_prepare();
    test_conf_set(rig.store.conf, "disconnect", "drain");
    rig_start("", "", "");
    leave_while_it_drains();
    rig.up[0].allowed = SIZE_MAX;
    RIG_WAIT(flow_exchange_count(rig.flow) == 0);
    ck_assert_int_eq(rig_rows("status = 499 AND input = 7 AND output = 3 AND flags LIKE '%drain%'"),
                     1);
    rig_check_clean();
    leave_while_it_drains();
    rig_advance(30001); // not for ever
    RIG_WAIT(flow_exchange_count(rig.flow) == 0);
    RIG_WAIT(rig.up[0].gone == 1);
    ck_assert_int_eq(rig_rows("status = 499"), 2);
    rig_check_clean();
}
END_TEST

START_TEST(stop_ends_what_is_read_on)
{
    rig_prepare();
    test_conf_set(rig.store.conf, "disconnect", "drain");
    rig_start("", "", "");
    leave_while_it_drains();
    epoch_enter(rig.reader);
    flow_end_all(rig.flow, "");
    epoch_leave(rig.reader);
    ck_assert_uint_eq(flow_exchange_count(rig.flow), 0);
    rig_check_clean();
    leave_while_it_drains();
    epoch_enter(rig.reader);
    flow_drop_all(rig.flow);
    epoch_leave(rig.reader);
    rig_check_clean();
    ck_assert_int_eq(rig_rows("status = 499"), 2);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        a_client_may_leave_while_a_hook_waits,
        a_client_may_leave_while_the_error_hook_waits,
        a_finish_hook_that_waits_keeps_the_exchange,
        stop_does_not_wait_for_finish_hooks,
        a_client_may_leave_at_each_point_of_a_stream,
        a_client_may_leave_in_the_middle_of_its_request,
        the_upstream_may_end_while_a_reply_hook_waits,
        a_refused_answer_leaves_nothing_to_the_next,
        the_upstream_may_break_while_a_reply_hook_waits,
        a_plugin_answer_after_the_head_went_out,
        a_plugin_streams_and_its_client_leaves,
        reload_while_a_call_runs,
        all_candidates_fail,
        no_more_than_max_attempts,
        select_may_give_nothing,
        an_endless_error_body_is_not_awaited,
        a_failed_attempt_is_not_charged,
        an_upload_passes_through,
        an_upload_waits_for_a_slow_upstream,
        the_model_may_be_missing_in_an_upload,
        a_client_may_leave_in_the_middle_of_an_upload,
        an_upstream_may_refuse_an_upload_early,
        an_upload_may_fail_while_a_reply_hook_waits,
        forms_are_no_way_around_metering,
        refusals,
        what_the_server_refuses_is_logged_as_it_was_told,
        bodies_together_have_a_budget,
        pipelined_calls_come_one_after_the_other,
        drain_ends_streams_in_their_dialect,
        drain_reaches_every_state,
        the_policy_drain_reads_the_true_usage,
        stop_ends_what_is_read_on,
    };
    return rig_main("exchange", tests, sizeof tests / sizeof *tests);
}
