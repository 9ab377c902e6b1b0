// The upstream's answer on its way to the client: bytes under any split, the injected usage chunk,
// failover before the first event, ends that are none, silence, slow clients.
#include "flow/exchange.h"
#include "flow_rig.h"

static char *read_file(const char *path, size_t *len)
{
    FILE *file = fopen(path, "r");
    ck_assert_msg(file != NULL, "%s", path);
    char *text = malloc(1 << 20);
    *len = fread(text, 1, 1 << 20, file);
    fclose(file);
    return text;
}

// One call whose upstream answers `before` the split and `after` it; the client must get
// `expected`.
static void one_split(const char *path, const char *request, struct slice body, size_t at,
                      struct slice expected)
{
    const struct slice pieces[] = {SLICE_LIT(RIG_EVENTS_HEAD), slice_of(body.ptr, at),
                                   SLICE_LIT(""), slice_from(body, at)};
    rig_says(0, RIG_CLOSE, 4, pieces);
    rig_post(path, request);
    RIG_WAIT(rig.client.is_over);
    bool is_whole;
    struct slice got = rig_body(&is_whole);
    ck_assert_msg(is_whole && slice_eq(got, expected), "split at %zu of %zu: %s", at, body.len,
                  rig_got());
    rig_client_close();
}

static void all_splits(const char *path, const char *request, struct slice body,
                       struct slice expected, size_t step)
{
    for (size_t at = 0; at <= body.len; at += step)
        one_split(path, request, body, at, expected);
    RIG_WAIT(flow_exchange_count(rig.flow) == 0);
    rig_check_clean();
}

START_TEST(events_pass_unchanged_for_all_splits)
{
    static const char body[] =
        "\n: hello\n\n" RIG_ROLE RIG_TEXT("a") ": x\n\n" RIG_STOP RIG_USAGE RIG_DONE;
    rig_up("");
    all_splits(RIG_CHAT_PATH, RIG_CHAT_USAGE, slice_str(body), slice_str(body), 1);
    ck_assert_int_eq(rig_rows("is_success = 1 AND status = 200 AND input = 7 AND output = 3"),
                     (int64_t)sizeof body);
}
END_TEST

START_TEST(injected_usage_is_taken_out_for_all_splits)
{
    static const char body[] = RIG_ROLE RIG_TEXT("a") RIG_STOP ": c\n\n" RIG_USAGE RIG_DONE;
    static const char expected[] = RIG_ROLE RIG_TEXT("a") RIG_STOP ": c\n\n" RIG_DONE;
    rig_up("");
    all_splits(RIG_CHAT_PATH, RIG_CHAT, slice_str(body), slice_str(expected), 1);
    ck_assert_int_ge(slice_find(buf_slice(&rig.up[0].last), SLICE_LIT("\"include_usage\":true")),
                     0);
    ck_assert_int_eq(rig_rows("input = 7 AND output = 3"), (int64_t)sizeof body);
}
END_TEST

START_TEST(fixtures_pass_unchanged)
{
    static const struct {
        const char *file, *path, *request;
        size_t step;
    } rows[] = {
        {"openai/chat/stream-text/response.sse", RIG_CHAT_PATH, RIG_CHAT_USAGE, 5},
        {"openai/chat/stream-bare-cr-bom/response.sse", RIG_CHAT_PATH, RIG_CHAT_USAGE, 3},
        {"openai/chat/stream-multibyte/response.sse", RIG_CHAT_PATH, RIG_CHAT_USAGE, 7},
        {"openai/chat/stream-after-done/response.sse", RIG_CHAT_PATH, RIG_CHAT_USAGE, 7},
        {"openai/chat/stream-big-event/response.sse", RIG_CHAT_PATH, RIG_CHAT_USAGE, 3001},
        {"anthropic/messages/stream-text/response.sse", "/v1/messages", RIG_CHAT, 7},
        {"anthropic/messages/stream-tool-use/response.sse", "/v1/messages", RIG_CHAT, 11},
    };
    rig_up("");
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char path[512];
        size_t len;
        snprintf(path, sizeof path, MOONGATE_SOURCE_DIR "/spec/fixtures/%s", rows[i].file);
        char *text = read_file(path, &len);
        all_splits(rows[i].path, rows[i].request, slice_of(text, len), slice_of(text, len),
                   rows[i].step);
        free(text);
    }
}
END_TEST

START_TEST(a_long_usage_chunk_is_not_cut_in_two)
{
    // Too long to be held back: a part is out when it turns out to be the usage chunk.
    static char event[20000], body[21000];
    rig_up("");
    memset(event, 'x', 12000);
    snprintf(
        body, sizeof body,
        RIG_TEXT("a") "data: {\"choices\":[],\"pad\":\"%.12000s\",\"usage\":{\"prompt_tokens\":"
                      "7,\"completion_tokens\":3,\"total_tokens\":10}}\n\n" RIG_STOP RIG_DONE,
        event);
    struct slice text = slice_str(body);
    one_split(RIG_CHAT_PATH, RIG_CHAT, text, 11000, text);
}
END_TEST

START_TEST(delta_hooks_see_whole_events_for_all_splits)
{
    static const char body[] =
        RIG_ROLE RIG_TEXT("abc") RIG_TEXT("drop") RIG_STOP RIG_USAGE RIG_DONE;
    static const char expected[] = RIG_ROLE RIG_TEXT("ABC") RIG_STOP RIG_DONE;
    rig_prepare();
    rig_start("", "wants = { 'text' },",
              "delta = function(ctx, kind, text) if text == 'drop' then return false end\n"
              "ctx:flag('seen' .. #text) return string.upper(text) end,");
    all_splits(RIG_CHAT_PATH, RIG_CHAT, slice_str(body), slice_str(expected), 1);
    ck_assert_int_eq(rig_rows("flags LIKE '%seen3%'"), (int64_t)sizeof body);
}
END_TEST

START_TEST(delta_hooks_see_events_of_any_length)
{
    static char text[30001], body[32000], expected[32000];
    rig_prepare();
    rig_start("", "wants = { 'text' },",
              "delta = function(ctx, kind, text) return string.upper(text) end,");
    memset(text, 'x', 30000);
    snprintf(
        body, sizeof body,
        RIG_TEXT(
            "a") "data: {\"choices\":[{\"delta\":{\"content\":\"%s\"}}]}\n\n" RIG_STOP RIG_DONE,
        text);
    memset(text, 'X', 30000);
    snprintf(
        expected, sizeof expected,
        RIG_TEXT(
            "A") "data: {\"choices\":[{\"delta\":{\"content\":\"%s\"}}]}\n\n" RIG_STOP RIG_DONE,
        text);
    for (size_t at = 1000; at < 31000; at += 9000)
        one_split(RIG_CHAT_PATH, RIG_CHAT, slice_str(body), at, slice_str(expected));
}
END_TEST

START_TEST(an_error_before_content_goes_to_the_next)
{
    rig_up(RIG_RETRY);
    RIG_SAYS(0, RIG_STAY, RIG_EVENTS_HEAD, RIG_ROLE,
             "data: {\"error\":{\"message\":\"busy\",\"type\":\"server_error\",\"code\":503}}\n\n");
    RIG_SAYS(1, RIG_CLOSE, RIG_EVENTS_HEAD, RIG_ROLE RIG_TEXT("two") RIG_STOP RIG_DONE);
    rig_post(RIG_CHAT_PATH, RIG_CHAT);
    RIG_FINISH();
    bool is_whole;
    ck_assert(slice_is(rig_body(&is_whole), RIG_ROLE RIG_TEXT("two") RIG_STOP RIG_DONE));
    ck_assert(is_whole);
    ck_assert_int_eq(rig.up[0].gone, 1);
    ck_assert_int_eq(rig_rows("is_success = 1 AND attempts LIKE '%error in stream%ok%'"), 1);
    rig_check_clean();
}
END_TEST

START_TEST(the_last_error_in_a_stream_is_told_with_its_texts)
{
    // The texts of the first attempt's error lie in a reader that the second begins anew.
    static const char error[] = "data: {\"error\":{\"message\":\"no such thing\",\"type\":"
                                "\"invalid_request_error\",\"code\":\"bad\",\"param\":\"tools\","
                                "\"status\":400}}\n\n";
    rig_up("");
    RIG_SAYS(0, RIG_CLOSE, RIG_EVENTS_HEAD, error);
    rig_post(RIG_CHAT_PATH, RIG_CHAT);
    RIG_FINISH();
    ck_assert(rig_has("no such thing"));
    ck_assert(!rig_has("[DONE]"));
    ck_assert_int_eq(rig_rows("is_success = 0 AND status >= 400"), 1);
}
END_TEST

START_TEST(an_error_after_content_passes_and_ends)
{
    rig_up(RIG_RETRY);
    RIG_SAYS(0, RIG_RESET, RIG_EVENTS_HEAD, RIG_TEXT("one"),
             "data: {\"error\":{\"message\":\"broke\",\"type\":\"server_error\"}}\n\n", "");
    rig_post(RIG_CHAT_PATH, RIG_CHAT);
    RIG_FINISH();
    bool is_whole;
    struct slice body = rig_body(&is_whole);
    ck_assert(is_whole);
    // Told once, although the connection then broke as well.
    long first = slice_find(body, SLICE_LIT("\"error\""));
    ck_assert_int_ge(first, 0);
    ck_assert_int_lt(slice_find(slice_from(body, (size_t)first + 7), SLICE_LIT("\"error\"")), 0);
    ck_assert(!rig_has("[DONE]"));
    ck_assert_int_eq(rig.up[1].requests, 0);
    ck_assert_int_eq(rig_rows("is_success = 0 AND status = 200 AND flags LIKE '%error_in_stream%'"),
                     1);
    rig_check_clean();
}
END_TEST

static void cut(enum rig_end end, const char *path, const char *request, const char *events,
                const char *told)
{
    RIG_SAYS(0, end, RIG_EVENTS_HEAD, events, "", "");
    rig_post(path, request);
    RIG_FINISH();
    bool is_whole;
    struct slice body = rig_body(&is_whole);
    ck_assert_msg(is_whole && slice_find(body, slice_str(told)) >= 0, "%s", rig_got());
    ck_assert(!rig_has("[DONE]") && !rig_has("message_stop") && !rig_has("response.completed"));
    rig_client_close();
}

START_TEST(a_cut_stream_is_no_end)
{
    static const char claude[] =
        "event: message_start\ndata: "
        "{\"type\":\"message_start\",\"message\":{\"id\":\"m\",\"model\":"
        "\"m\",\"usage\":{\"input_tokens\":5,\"output_tokens\":1}}}\n\n"
        "event: content_block_start\ndata: {\"type\":\"content_block_start\",\"index\":0,"
        "\"content_block\":{\"type\":\"text\",\"text\":\"\"}}\n\n"
        "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":"
        "{\"type\":\"text_delta\",\"text\":\"hi\"}}\n\n";
    rig_up("");
    cut(RIG_RESET, RIG_CHAT_PATH, RIG_CHAT, RIG_TEXT("one"), "data: {\"error\"");
    cut(RIG_CLOSE, RIG_CHAT_PATH, RIG_CHAT, RIG_TEXT("one") "data: {\"choi", "data: {\"error\"");
    cut(RIG_RESET, RIG_CHAT_PATH, RIG_CHAT_USAGE, RIG_TEXT("one") "data: {\"choi",
        "data: {\"choi\n\ndata: {\"error\"");
    cut(RIG_CLOSE, "/v1/messages", RIG_CHAT, claude, "event: error");
    ck_assert_int_eq(rig_rows("is_success = 0 AND flags LIKE '%cut%'"), 4);
    rig_check_clean();
}
END_TEST

START_TEST(what_follows_the_end_changes_nothing)
{
    // [DONE] came; that the connection then breaks is of no interest.
    static const char body[] = RIG_TEXT("one") RIG_STOP RIG_DONE;
    rig_up("");
    RIG_SAYS(0, RIG_RESET,
             "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
             "content-length: 100000\r\n\r\n",
             body, "", "");
    rig_post(RIG_CHAT_PATH, RIG_CHAT);
    RIG_FINISH();
    bool is_whole;
    ck_assert(slice_is(rig_body(&is_whole), body));
    ck_assert(is_whole);
    ck_assert_int_eq(rig_rows("is_success = 1"), 1);
}
END_TEST

START_TEST(silence_opens_the_head_and_failover_stays_possible)
{
    rig_up(RIG_RETRY);
    RIG_SAYS(0, RIG_RESET, RIG_EVENTS_HEAD, RIG_ROLE, "");
    rig.up[0].allowed = 2;
    RIG_SAYS(1, RIG_CLOSE, RIG_EVENTS_HEAD, RIG_ROLE, RIG_TEXT("a") "data: {\"x", "", RIG_DONE);
    rig.up[1].allowed = 2;
    rig_post(RIG_CHAT_PATH, RIG_CHAT);
    RIG_WAIT(rig.up[0].requests == 1);
    rig_turns(20);
    ck_assert_uint_eq(rig.client.in.len, 0);
    rig_advance(15001);
    RIG_WAIT(rig_has(": keepalive\n\n"));
    ck_assert(rig_has("200 OK"));
    rig_advance(15001);
    RIG_WAIT(rig_has(": keepalive\n\n: keepalive\n\n") || rig_has("\r\n: keepalive\n\n"));
    rig.up[0].allowed = SIZE_MAX; // and now it breaks
    RIG_WAIT(rig.up[1].requests == 1);
    rig_turns(20);
    ck_assert(!rig_has("assistant"));
    rig.up[1].allowed = 3; // content and the beginning of an event, which is held back
    RIG_WAIT(rig_has("\"a\""));
    ck_assert(!rig_has("{\"x"));
    rig_turns(5);
    buf_clear(&rig.client.in);
    rig_advance(15001);
    RIG_WAIT(rig_has(": keepalive\n\n"));
    rig.up[1].allowed = 4;
    rig_turns(5);
    rig.up[1].allowed = SIZE_MAX;
    RIG_FINISH();
    ck_assert_int_eq(rig_rows("1"), 1);
    rig_check_clean();
}
END_TEST

START_TEST(no_comment_inside_an_event)
{
    rig_up("");
    RIG_SAYS(0, RIG_CLOSE, RIG_EVENTS_HEAD, RIG_TEXT("a") "data: {\"x", "\":1}\n\n" RIG_DONE);
    rig.up[0].allowed = 2;
    rig_post(RIG_CHAT_PATH, RIG_CHAT_USAGE); // nothing injected: parts of events pass
    RIG_WAIT(rig_has("{\"x"));
    rig_advance(15001);
    rig_turns(20);
    rig_advance(15001);
    rig_turns(20);
    ck_assert(!rig_has("keepalive"));
    rig.up[0].allowed = SIZE_MAX;
    RIG_FINISH();
    bool is_whole;
    (void)rig_body(&is_whole);
    ck_assert(is_whole && !rig_has("keepalive"));
}
END_TEST

START_TEST(all_fail_after_the_head_went_out)
{
    rig_up(RIG_RETRY);
    RIG_SAYS(0, RIG_CLOSE, RIG_JSON_HEAD("500 X"), "{\"error\":{\"message\":\"no\"}}");
    RIG_SAYS(1, RIG_CLOSE, RIG_JSON_HEAD("503 X"), "{\"error\":{\"message\":\"no\"}}");
    rig.up[0].allowed = 0;
    rig_post(RIG_CHAT_PATH, RIG_CHAT);
    RIG_WAIT(rig.up[0].requests == 1);
    rig_advance(15001);
    RIG_WAIT(rig_has("keepalive"));
    rig.up[0].allowed = SIZE_MAX;
    RIG_FINISH();
    bool is_whole;
    struct slice body = rig_body(&is_whole);
    ck_assert(is_whole);
    ck_assert_int_ge(slice_find(body, SLICE_LIT("data: {\"error\"")), 0);
    ck_assert_int_eq(rig_rows("attempts LIKE '%http 500%http 503%'"), 1);
    rig_check_clean();
}
END_TEST

static struct slice long_stream(void)
{
    static char *text;
    static size_t len;
    if (text)
        return slice_of(text, len);
    text = malloc(20u << 20);
    for (int i = 0; len < (16u << 20); i++)
        len += (size_t)sprintf(text + len, RIG_TEXT("%06d %09000d"), i, i);
    len += (size_t)sprintf(text + len, "%s", RIG_STOP RIG_DONE);
    return slice_of(text, len);
}

START_TEST(a_slow_client_pauses_the_upstream)
{
    struct slice body = long_stream();
    const struct slice pieces[] = {SLICE_LIT(RIG_EVENTS_HEAD), body};
    rig_up("");
    rig_says(0, RIG_CLOSE, 2, pieces);
    rig_post(RIG_CHAT_PATH, RIG_CHAT_USAGE);
    rig.client.reads_nothing = true;
    RIG_WAIT(rig.up[0].requests == 1);
    for (int i = 0; i < 2000; i++)
        rig_turn();
    // Kernel buffers take some; the gateway holds no more than its queue and one read.
    size_t offset = 0;
    for (size_t i = 0; i < RIG_CONNS; i++) {
        if (rig.up[0].conns[i].fd >= 0)
            offset = rig.up[0].conns[i].offset;
    }
    ck_assert_msg(offset > 0 && offset < body.len, "%zu of %zu sent", offset, body.len);
    ck_assert_uint_eq(flow_exchange_count(rig.flow), 1);
    rig.client.reads_nothing = false;
    RIG_FINISH();
    bool is_whole;
    struct slice got = rig_body(&is_whole);
    ck_assert(is_whole && slice_eq(got, body));
    rig_check_clean();
}
END_TEST

START_TEST(a_client_that_never_reads_is_cut)
{
    const struct slice pieces[] = {SLICE_LIT(RIG_EVENTS_HEAD), long_stream()};
    rig_up("");
    rig_says(0, RIG_CLOSE, 2, pieces);
    rig_post(RIG_CHAT_PATH, RIG_CHAT_USAGE);
    rig.client.reads_nothing = true;
    RIG_WAIT(rig.up[0].requests == 1);
    // On a busy machine the sockets may still be filling, which is progress: then a minute later.
    for (int tries = 0; tries < 5 && flow_exchange_count(rig.flow) > 0; tries++) {
        for (int i = 0; i < 500; i++)
            rig_turn();
        rig_advance(60001);
        for (int i = 0; i < 50; i++)
            rig_turn();
    }
    RIG_WAIT(flow_exchange_count(rig.flow) == 0);
    RIG_WAIT(rig.up[0].gone == 1);
    ck_assert_int_eq(rig_rows("status = 499 AND is_success = 0 AND output > 0"), 1);
    rig_check_clean();
}
END_TEST

START_TEST(memory_stays_the_same_in_a_long_stream)
{
    // Delta hooks use the exchange's arena for each event; it must be given back.
    rig_prepare();
    rig_start("", "wants = { 'text' },", "delta = function(ctx, kind, text) return text end,");
    const struct slice pieces[] = {SLICE_LIT(RIG_EVENTS_HEAD), long_stream()};
    rig_says(0, RIG_CLOSE, 2, pieces);
    rig_post(RIG_CHAT_PATH, RIG_CHAT_USAGE);
    RIG_WAIT(rig.client.in.len > 1u << 20);
    struct exchange *ex = list_entry(rig.flow->active.next, struct exchange, node);
    size_t used = arena_used(ex->ctx.arena);
    RIG_WAIT(rig.client.in.len > 14u << 20);
    ck_assert_uint_eq(flow_exchange_count(rig.flow), 1);
    ck_assert_uint_lt(arena_used(ex->ctx.arena), used + 32768);
    RIG_FINISH();
    ck_assert_int_eq(rig_rows("is_success = 1"), 1);
}
END_TEST

START_TEST(whole_answers_pass_unchanged_for_all_splits)
{
    static const char body[] = " \n" RIG_ANSWER "\n";
    rig_up("");
    for (size_t at = 0; at < sizeof body; at++) {
        const struct slice pieces[] = {SLICE_LIT(RIG_JSON_HEAD("200 OK")), slice_of(body, at),
                                       SLICE_LIT(""), slice_str(body + at)};
        rig_says(0, RIG_CLOSE, 4, pieces);
        rig_post(RIG_CHAT_PATH, at % 2 ? RIG_CHAT : RIG_CHAT_WHOLE); // JSON for stream:true too
        RIG_WAIT(rig.client.is_over);
        bool is_whole;
        ck_assert(slice_is(rig_body(&is_whole), body));
        rig_client_close();
    }
    ck_assert_int_eq(rig_rows("is_success = 1 AND input = 7"), (int64_t)sizeof body);
}
END_TEST

START_TEST(an_error_in_a_200_answer_goes_to_the_next)
{
    rig_up(RIG_RETRY);
    RIG_SAYS(0, RIG_CLOSE, RIG_JSON_HEAD("200 OK"),
             "{\"error\":{\"message\":\"overloaded\",\"type\":\"server_error\"}}");
    RIG_SAYS(1, RIG_CLOSE, RIG_JSON_HEAD("200 OK"), RIG_ANSWER);
    rig_post(RIG_CHAT_PATH, RIG_CHAT_WHOLE);
    RIG_FINISH();
    ck_assert(rig_has("\"yes\""));
    ck_assert_int_eq(rig_rows("is_success = 1"), 1);
    rig_check_clean();
}
END_TEST

START_TEST(body_hooks_may_wait)
{
    rig_up(
        "body = function(ctx, text) gw.sleep(0.5) return (string.gsub(text, 'yes', 'no!')) end,");
    RIG_SAYS(0, RIG_CLOSE, RIG_JSON_HEAD("200 OK"), RIG_ANSWER);
    rig_post(RIG_CHAT_PATH, RIG_CHAT_WHOLE);
    RIG_WAIT(rig.up[0].requests == 1);
    rig_turns(30);
    ck_assert_uint_eq(rig.client.in.len, 0);
    rig_advance(600);
    RIG_FINISH();
    ck_assert(rig_has("\"no!\"") && !rig_has("\"yes\""));
    ck_assert_int_eq(rig_rows("is_success = 1 AND status = 200"), 1);
    rig_check_clean();
}
END_TEST

START_TEST(body_hooks_may_answer_and_deny)
{
    rig_up("body = function(ctx, text) if ctx.headers['x-deny'] then return ctx:deny(422, 'nope', "
           "'Not this.') end ctx:respond{ status = 200, text = 'mine' } end,");
    RIG_SAYS(0, RIG_CLOSE, RIG_JSON_HEAD("200 OK"), RIG_ANSWER);
    rig_post(RIG_CHAT_PATH, RIG_CHAT_WHOLE);
    RIG_FINISH();
    ck_assert_msg(rig_has("mine") && !rig_has("\"yes\""), "%s", rig_got());
    rig_client_close();
    rig_post_with(RIG_CHAT_PATH, "x-deny: 1\r\n", RIG_CHAT_WHOLE);
    RIG_FINISH();
    ck_assert(rig_has(" 422 ") && rig_has("nope"));
    ck_assert_int_eq(rig_rows("input = 7"), 2); // the upstream was paid either way
    rig_check_clean();
}
END_TEST

START_TEST(other_content_passes_and_a_cut_is_a_cut)
{
    rig_up("");
    RIG_SAYS(0, RIG_CLOSE,
             "HTTP/1.1 200 OK\r\ncontent-type: audio/mpeg\r\ncontent-length: 6\r\n\r\n", "abc",
             "def");
    rig_post("/v1/audio/speech", "{\"model\":\"m\",\"stream\":true,\"input\":\"x\"}");
    RIG_FINISH();
    ck_assert(rig_has("content-type: audio/mpeg") && rig_has("content-length: 6"));
    ck_assert(rig_has("\r\n\r\nabcdef"));
    rig_client_close();
    RIG_SAYS(0, RIG_RESET, "HTTP/1.1 200 OK\r\ncontent-type: audio/mpeg\r\n\r\n", "abc", "", "");
    rig_post("/v1/audio/speech", "{\"model\":\"m\",\"input\":\"x\"}");
    RIG_FINISH();
    bool is_whole;
    (void)rig_body(&is_whole);
    ck_assert(!is_whole);
    ck_assert_int_eq(rig_rows("is_success = 1"), 1);
    ck_assert_int_eq(rig_rows("is_success = 0"), 1);
    rig_check_clean();
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        events_pass_unchanged_for_all_splits,
        injected_usage_is_taken_out_for_all_splits,
        fixtures_pass_unchanged,
        a_long_usage_chunk_is_not_cut_in_two,
        delta_hooks_see_whole_events_for_all_splits,
        delta_hooks_see_events_of_any_length,
        an_error_before_content_goes_to_the_next,
        the_last_error_in_a_stream_is_told_with_its_texts,
        an_error_after_content_passes_and_ends,
        a_cut_stream_is_no_end,
        what_follows_the_end_changes_nothing,
        silence_opens_the_head_and_failover_stays_possible,
        no_comment_inside_an_event,
        all_fail_after_the_head_went_out,
        a_slow_client_pauses_the_upstream,
        a_client_that_never_reads_is_cut,
        memory_stays_the_same_in_a_long_stream,
        whole_answers_pass_unchanged_for_all_splits,
        an_error_in_a_200_answer_goes_to_the_next,
        body_hooks_may_wait,
        body_hooks_may_answer_and_deny,
        other_content_passes_and_a_cut_is_a_cut,
    };
    return rig_main("relay", tests, sizeof tests / sizeof *tests);
}
