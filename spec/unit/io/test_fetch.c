// Fetches that go well, and their timers. Every test runs over each transport that can do it.
#include "fetch_kit.h"

START_TEST(test_get)
{
    struct result result;
    struct http1_header headers[] = {{SLICE_LIT("X-Key"), SLICE_LIT("a b")},
                                     {SLICE_LIT("X-Empty"), SLICE_LIT("")},
                                     {SLICE_LIT("Connection"), SLICE_LIT("close")},
                                     {SLICE_LIT("Content-Length"), SLICE_LIT("99")},
                                     {SLICE_LIT("Accept-Encoding"), SLICE_LIT("gzip")},
                                     {SLICE_LIT("Expect"), SLICE_LIT("100-continue")}};
    struct fetch_request request = kit_get("/a/../b?q=%2F");
    request.headers = headers;
    request.header_count = 6;
    kit_start(&result, &request);
    struct peer *peer = kit_accept();
    char expected[256];
    snprintf(expected, sizeof expected,
             "GET /a/../b?q=%%2F HTTP/1.1\r\nHost: upstream.test:%u\r\nUser-Agent: "
             "moongate/" MOONGATE_VERSION "\r\nX-Key: a b\r\nX-Empty:\r\n\r\n",
             kit_port);
    ck_assert_str_eq(kit_request(peer), expected);
    kit_say(peer, "HTTP/1.1 103 Early\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Type: a/b\r\n"
                  "X-Thing:  some value \r\nContent-Length: 5\r\n\r\nhello");
    KIT_UNTIL(result.dones);
    ck_assert_int_eq(result.err, 0);
    ck_assert_int_eq(result.heads, 1);
    ck_assert_int_eq(result.status, 200);
    ck_assert_str_eq(result.headers, "content-type=a/b;x-thing=some value;content-length=5;");
    ck_assert(kit_body_is(&result, "hello"));
    ck_assert(result.info.sent_any && result.info.got_head && !result.info.is_reused);
    ck_assert_uint_eq(result.info.bytes_sent, strlen(expected));
    ck_assert_uint_gt(result.info.bytes_received, 5);
    ck_assert_int_eq(kit_lookups, 1);
    kit_end(&result);
    kit_close(peer);
}
END_TEST

START_TEST(test_methods_do_not_leak)
{
    // One connection and one pooled handle: each request must be itself only.
    struct slice body[] = {SLICE_LIT("{\"a\":"), SLICE_LIT(""), SLICE_LIT("1}")};
    struct http1_header header = {SLICE_LIT("X-Once"), SLICE_LIT("1")};
    struct http1_header agent[] = {{SLICE_LIT("user-agent"), SLICE_LIT("me")},
                                   {SLICE_LIT("accept"), SLICE_LIT("text/x")}};
    struct peer *peer = kit_warm();
    const char *text;
    struct result result;
    for (int step = 0; step < 12; step++) {
        struct fetch_request request = kit_get("/g");
        switch (step % 6) {
        case 0:
            request = kit_post("/p", body, 3);
            request.headers = &header;
            request.header_count = 1;
            break;
        case 1: break;
        case 2: request.method = SLICE_LIT("HEAD"); break;
        case 3: request.method = SLICE_LIT("DELETE"); break;
        case 4: request = kit_post("/e", NULL, 0); break;
        case 5:
            request = kit_post("/q", body, 1);
            request.method = SLICE_LIT("PATCH");
            request.headers = agent;
            request.header_count = 2;
            break;
        }
        kit_start(&result, &request);
        text = kit_request(peer);
        char tail[256], expected[512];
        snprintf(tail, sizeof tail,
                 "HTTP/1.1\r\nHost: upstream.test:%u\r\nUser-Agent: moongate/" MOONGATE_VERSION
                 "\r\n",
                 kit_port);
        switch (step % 6) {
        case 0:
            snprintf(expected, sizeof expected,
                     "POST /p %sX-Once: 1\r\nContent-Length: 7\r\n\r\n{\"a\":1}", tail);
            break;
        case 1: snprintf(expected, sizeof expected, "GET /g %s\r\n", tail); break;
        case 2: snprintf(expected, sizeof expected, "HEAD /g %s\r\n", tail); break;
        case 3: snprintf(expected, sizeof expected, "DELETE /g %s\r\n", tail); break;
        case 4:
            snprintf(expected, sizeof expected, "POST /e %sContent-Length: 0\r\n\r\n", tail);
            break;
        case 5:
            snprintf(expected, sizeof expected,
                     "PATCH /q HTTP/1.1\r\nHost: upstream.test:%u\r\nuser-agent: me\r\naccept: "
                     "text/x\r\nContent-Length: 5\r\n\r\n{\"a\":",
                     kit_port);
            break;
        }
        ck_assert_str_eq(text, expected);
        kit_say(peer, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n");
        if (step % 6 != 2)
            kit_say(peer, "ok");
        KIT_UNTIL(result.dones);
        ck_assert_int_eq(result.err, 0);
        ck_assert(kit_body_is(&result, step % 6 == 2 ? "" : "ok"));
        ck_assert(result.info.is_reused);
        kit_end(&result);
    }
    ck_assert_int_eq(kit_accepted, 1);
    ck_assert_uint_eq(fetcher_counters(kit_fetcher)->connections_opened, 1);
    ck_assert_uint_eq(fetcher_counters(kit_fetcher)->connections_reused, 12);
    ck_assert_uint_eq(fetcher_counters(kit_fetcher)->idle_connections, 1);
    ck_assert_uint_eq(fetcher_counters(kit_fetcher)->active, 0);
    ck_assert_int_eq(kit_lookups, 1);
    kit_close(peer);
}
END_TEST

START_TEST(test_stream)
{
    // Chunked, byte by byte, then trailers: nothing is held back and nothing is added.
    const char *answer = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
                         "6\r\ndata: \r\nA;x=y\r\n0123456789\r\n0\r\nX-Trailer: 1\r\n\r\n";
    struct result result;
    struct fetch_request request = kit_get("/s");
    kit_start(&result, &request);
    struct peer *peer = kit_accept();
    kit_request(peer);
    for (const char *at = answer; *at; at++) {
        kit_send(peer, at, 1);
        kit_turns(2);
    }
    KIT_UNTIL(result.dones);
    ck_assert_int_eq(result.err, 0);
    ck_assert_int_eq(result.heads, 1);
    ck_assert_str_eq(result.headers, "transfer-encoding=chunked;");
    ck_assert(kit_body_is(&result, "data: 0123456789"));
    ck_assert_int_ge(result.bodies, 10);
    kit_end(&result);
    kit_exchange(peer); // and the connection is good for another
    kit_close(peer);
}
END_TEST

START_TEST(test_http10_until_close)
{
    struct result result;
    struct fetch_request request = kit_get("/s");
    kit_start(&result, &request);
    struct peer *peer = kit_accept();
    kit_request(peer);
    kit_say(peer, "HTTP/1.0 200 OK\r\n\r\nuntil the end");
    kit_close(peer);
    KIT_UNTIL(result.dones);
    ck_assert_int_eq(result.err, 0);
    ck_assert(kit_body_is(&result, "until the end"));
    kit_end(&result);
}
END_TEST

START_TEST(test_parallel)
{
    // More than one lane; then all are reused.
    struct result results[40];
    struct peer *peers[40];
    for (int round = 0; round < 2; round++) {
        struct fetch_request request = kit_get("/");
        for (int i = 0; i < 40; i++)
            kit_start(&results[i], &request);
        for (int i = 0; i < 40 && round == 0; i++)
            peers[i] = kit_accept();
        for (int i = 0; i < 40; i++) {
            kit_request(peers[i]);
            kit_say(peers[i], "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        }
        for (int i = 0; i < 40; i++) {
            KIT_UNTIL(results[i].dones);
            ck_assert_int_eq(results[i].err, 0);
            ck_assert_int_eq(results[i].info.is_reused, round);
            kit_end(&results[i]);
        }
        ck_assert_uint_eq(fetcher_counters(kit_fetcher)->idle_connections, 40);
    }
    ck_assert_int_eq(kit_accepted, 40);
    ck_assert(!kit_readable(kit_listener));
    // After a minute of rest everything is closed.
    for (int i = 0; i < 8; i++) {
        kit_skip_ms(10001);
        kit_turns(3);
    }
    ck_assert_uint_eq(fetcher_counters(kit_fetcher)->idle_connections, 0);
    for (int i = 0; i < 40; i++) {
        KIT_UNTIL(kit_at_end(peers[i]));
        kit_close(peers[i]);
    }
}
END_TEST

START_TEST(test_invalid)
{
    struct result result = {0};
    struct http1_header bad_headers[] = {{SLICE_LIT("X-A"), SLICE_LIT("a\r\nHost: b")},
                                         {SLICE_LIT("X B"), SLICE_LIT("a")},
                                         {SLICE_LIT(""), SLICE_LIT("a")},
                                         {SLICE_LIT("X-C"), {"a\0b", 3}},
                                         {SLICE_LIT("X:D"), SLICE_LIT("a")}};
    struct slice piece = SLICE_LIT("x");
    for (int i = 0; i < 13; i++) {
        struct fetch_request request = kit_get("/");
        switch (i) {
        case 0: request.url = SLICE_LIT("ftp://a/"); break;
        case 1: request.url = SLICE_LIT("file:///etc/passwd"); break;
        case 2: request.url = SLICE_LIT("http://user@a/"); break;
        case 3: request.method = SLICE_LIT("GET /x HTTP/1.1\r\nA:"); break;
        case 4: request.method = SLICE_LIT(""); break;
        case 5:
            request.method = SLICE_LIT("HEAD");
            request.body = &piece;
            request.body_count = 1;
            break;
        case 6: request.proxy = "socks5://127.0.0.1:1080"; break;
        case 7: request.proxy = "http://127.0.0.1"; break;
        default: request.headers = &bad_headers[i - 8]; request.header_count = 1;
        }
        ck_assert_int_eq(fetch_start(kit_fetcher, &request, &kit_handler, &result, &result.fetch),
                         GW_EINVAL);
    }
    kit_turns(3);
    ck_assert_int_eq(result.dones, 0);
    ck_assert_uint_eq(fetcher_counters(kit_fetcher)->active, 0);
}
END_TEST

START_TEST(test_large_body)
{
    // In pieces and too large for one write; then a small one in pieces on the same handle.
    static char bytes[300000];
    for (size_t i = 0; i < sizeof bytes; i++)
        bytes[i] = (char)('a' + i % 23);
    struct slice pieces[] = {slice_of(bytes, 1), slice_of(bytes + 1, 0),
                             slice_of(bytes + 1, 199999), slice_of(bytes + 200000, 100000)};
    struct slice small[] = {SLICE_LIT("ab"), SLICE_LIT("c")};
    struct peer *peer = kit_warm();
    for (int round = 0; round < 4; round++) {
        bool is_large = round % 2 == 0;
        struct result result;
        struct fetch_request request =
            is_large ? kit_post("/large", pieces, 4) : kit_post("/small", small, 2);
        if (round == 2)
            request.method = SLICE_LIT("PUT");
        kit_start(&result, &request);
        const char *text = kit_request(peer);
        const char *body = strstr(text, "\r\n\r\n") + 4;
        size_t len = peer->len - (size_t)(body - text);
        ck_assert(strncmp(text,
                          round == 2 ? "PUT /large "
                          : is_large ? "POST /large "
                                     : "POST /small ",
                          11) == 0);
        ck_assert(strstr(text, "Content-Type") == NULL);
        if (is_large)
            ck_assert(slice_eq(slice_of(body, len), slice_of(bytes, sizeof bytes)));
        else
            ck_assert(slice_eq(slice_of(body, len), SLICE_LIT("abc")));
        kit_say(peer, "HTTP/1.1 204 No\r\n\r\n");
        KIT_UNTIL(result.dones);
        ck_assert_int_eq(result.err, 0);
        ck_assert(result.info.is_reused);
        ck_assert_uint_eq(result.info.bytes_sent, peer->len);
    }
    kit_close(peer);
}
END_TEST

START_TEST(test_proxy)
{
    char proxy[64];
    snprintf(proxy, sizeof proxy, "http://me:pw@proxy.test:%u", kit_port);
    setenv("http_proxy", "http://127.0.0.1:9", 1); // never used
    setenv("all_proxy", "http://127.0.0.1:9", 1);
    struct result result;
    struct fetch_request request = kit_get("/");
    request.url = SLICE_LIT("http://far.test/x");
    request.proxy = proxy;
    kit_start(&result, &request);
    struct peer *peer = kit_accept();
    const char *text = kit_request(peer);
    ck_assert(strncmp(text, "GET http://far.test/x HTTP/1.1\r\n", 32) == 0);
    ck_assert(strstr(text, "Proxy-Authorization: Basic bWU6cHc=\r\n") != NULL);
    kit_say(peer, "HTTP/1.1 204 No\r\n\r\n");
    KIT_UNTIL(result.dones);
    ck_assert_int_eq(result.err, 0);
    ck_assert_int_eq(kit_lookups, 1); // the proxy's name, nobody else's
    kit_close(peer);
    // The pooled handle forgets the proxy.
    kit_close(kit_warm());
    // Checked names must be known to us and be public.
    request.trust = FETCH_USER;
    kit_start(&result, &request);
    KIT_UNTIL(result.dones);
    ck_assert_int_eq(result.err, GW_EDENIED);
    ck_assert(!kit_readable(kit_listener));
    unsetenv("http_proxy");
    unsetenv("all_proxy");
}
END_TEST

START_TEST(test_timers)
{
    struct result result;
    struct peer *peer = NULL;
    struct slice body = SLICE_LIT("x");
    struct fetch_request request = kit_post("/", &body, 1);
    request.timers = (struct fetch_timers){5000, 6000, 120000, 90000, 0};
    uint64_t limit = 0;
    const char *detail = "";
    switch (_i) {
    case 0:
        kit_lookup_delay_ms = 300;
        limit = 5000;
        detail = "timeout: look-up after 5000 ms";
        break;
    case 1:
        limit = 120000;
        detail = "timeout: first byte after 120000 ms";
        break;
    case 2:
    case 3:
        limit = 90000;
        detail = "timeout: idle after 90000 ms";
        break;
    case 4:
        request.timers.total_ms = 100000;
        limit = 100000;
        detail = "timeout: total after 100000 ms";
        break;
    }
    kit_start(&result, &request);
    if (_i > 0) {
        peer = kit_accept();
        kit_request(peer);
    }
    if (_i == 2 || _i == 3) {
        kit_say(peer, "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n1");
        KIT_UNTIL(result.body.len == 1);
    }
    if (_i == 3) {
        // A stream that moves has no total limit, and a pause does not count as silence.
        for (int i = 0; i < 4; i++) {
            kit_skip_ms(80000);
            kit_turns(3);
            result.pauses = i == 2;
            kit_say(peer, "2");
            if (i == 2) {
                KIT_UNTIL(result.is_paused);
                kit_skip_ms(1000000);
                kit_turns(3);
                ck_assert_int_eq(result.dones, 0);
                fetch_resume(result.fetch);
            }
            KIT_UNTIL(result.body.len == (size_t)i + 2);
        }
    }
    kit_turns(2);
    kit_skip_ms(limit - 1000);
    kit_turns(4);
    ck_assert_int_eq(result.dones, 0);
    kit_skip_ms(1100);
    KIT_UNTIL(result.dones);
    ck_assert_int_eq(result.err, GW_ETIMEOUT);
    ck_assert_str_eq(result.info.detail, detail);
    ck_assert_int_eq(result.info.sent_any, _i > 0);
    if (peer != NULL) {
        KIT_UNTIL(kit_at_end(peer));
        kit_close(peer);
    }
    kit_end(&result);
}
END_TEST

START_TEST(test_connect_timers)
{
    // A full backlog does not answer: TCP hangs. Then one that accepts but speaks no TLS.
    struct result result;
    struct fetch_request request = kit_get("/");
    char url[64];
    request.timers = (struct fetch_timers){5000, 6000, 1, 1, 0};
    if (_i == 0) {
        int fillers[8];
        struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(kit_port)};
        inet_pton(AF_INET, "127.0.0.1", &address.sin_addr);
        listen(kit_listener, 0);
        for (int i = 0; i < 8; i++) {
            fillers[i] = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
            connect(fillers[i], (struct sockaddr *)&address, sizeof address);
        }
        kit_start(&result, &request);
        kit_turns(10);
        kit_skip_ms(4900);
        kit_turns(3);
        ck_assert_int_eq(result.dones, 0);
        kit_skip_ms(200);
        KIT_UNTIL(result.dones);
        ck_assert_str_eq(result.info.detail, "timeout: connect after 5000 ms");
        ck_assert(!result.info.sent_any);
        for (int i = 0; i < 8; i++)
            close(fillers[i]);
    } else {
        snprintf(url, sizeof url, "https://upstream.test:%u/", kit_port);
        request.url = slice_str(url);
        kit_start(&result, &request);
        struct peer *peer = kit_accept();
        kit_turns(10);
        kit_skip_ms(5900);
        kit_turns(3);
        ck_assert_int_eq(result.dones, 0);
        kit_skip_ms(200);
        KIT_UNTIL(result.dones);
        ck_assert_str_eq(result.info.detail, "timeout: TLS handshake after 6000 ms");
        kit_close(peer);
    }
    ck_assert_int_eq(result.err, GW_ETIMEOUT);
}
END_TEST

START_TEST(test_upload_timer)
{
    // The upstream does not read: idle counts. The caller does not write: it does not.
    struct result result;
    struct fetch_request request = kit_post("/up", NULL, 0);
    request.is_streamed = true;
    request.body_length = -1;
    request.timers = (struct fetch_timers){5000, 5000, 10000, 20000, 0};
    kit_start(&result, &request);
    struct peer *peer = kit_accept();
    kit_turns(5);
    kit_skip_ms(100000);
    kit_turns(5);
    ck_assert_int_eq(result.dones, 0);
    static char block[65536];
    for (int stalls = 0; stalls < 100; stalls++) {
        if (fetch_write(result.fetch, slice_of(block, sizeof block)) == 0)
            stalls = 0; // the kernel still took some
        kit_turn();
    }
    kit_skip_ms(19000);
    kit_turns(3);
    ck_assert_int_eq(result.dones, 0);
    kit_skip_ms(2000);
    KIT_UNTIL(result.dones);
    ck_assert_int_eq(result.err, GW_ETIMEOUT);
    ck_assert_str_eq(result.info.detail, "timeout: sending the body after 20000 ms");
    kit_close(peer);
}
END_TEST

static void add_tests(TCase *tcase)
{
    tcase_add_test(tcase, test_get);
    tcase_add_test(tcase, test_methods_do_not_leak);
    tcase_add_test(tcase, test_stream);
    tcase_add_test(tcase, test_http10_until_close);
    tcase_add_test(tcase, test_parallel);
    tcase_add_test(tcase, test_invalid);
    tcase_add_test(tcase, test_large_body);
    tcase_add_test(tcase, test_proxy);
    tcase_add_loop_test(tcase, test_timers, 0, 5);
    tcase_add_loop_test(tcase, test_connect_timers, 0, 2);
    tcase_add_test(tcase, test_upload_timer);
}

int main(void)
{
    return kit_main("fetch", add_tests, KIT_BOTH);
}
