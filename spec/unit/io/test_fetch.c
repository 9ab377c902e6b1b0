#include "fetch_kit.h"

#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>

// ---- plain exchanges

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

START_TEST(test_trust_classes)
{
    static const struct {
        enum fetch_trust trust;
        int64_t id;
        bool check;
    } kinds[] = {{FETCH_OPERATOR, 0, false}, {FETCH_OPERATOR, 0, true}, {FETCH_USER, 1, true},
                 {FETCH_USER, 2, true},      {FETCH_PLUGIN, 1, true},   {FETCH_PLUGIN, 2, true}};
    struct slice rule = SLICE_LIT("127.0.0.0/8");
    struct peer *peers[6];
    struct result result;
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < 6; i++) {
            struct fetch_request request = kit_get("/");
            request.trust = kinds[i].trust;
            request.trust_id = kinds[i].id;
            request.check_address = kinds[i].check;
            request.allowed_private = &rule;
            request.allowed_private_count = 1;
            kit_start(&result, &request);
            if (round == 0)
                peers[i] = kit_accept();
            kit_request(peers[i]);
            kit_say(peers[i], "HTTP/1.1 204 No\r\n\r\n");
            KIT_UNTIL(result.dones);
            ck_assert_int_eq(result.err, 0);
            ck_assert_int_eq(result.info.is_reused, round);
            kit_end(&result);
        }
    }
    // The rule is gone: the pooled connection is no way around the check.
    struct fetch_request request = kit_get("/");
    request.trust = FETCH_USER;
    request.trust_id = 1;
    kit_start(&result, &request);
    KIT_UNTIL(result.dones);
    ck_assert_int_eq(result.err, GW_EDENIED);
    ck_assert(!result.info.sent_any);
    for (int i = 0; i < 6; i++)
        kit_close(peers[i]);
}
END_TEST

// ---- addresses

START_TEST(test_addresses)
{
    static const struct {
        const char *url, *rule;
        enum fetch_trust trust;
        int err;
    } cases[] = {
        {"http://127.0.0.1:%u/", NULL, FETCH_PLUGIN, GW_EDENIED},
        {"http://upstream.test:%u/", NULL, FETCH_USER, GW_EDENIED},
        {"http://[::1]:%u/", NULL, FETCH_USER, GW_EDENIED},
        {"http://[::ffff:127.0.0.1]:%u/", NULL, FETCH_USER, GW_EDENIED},
        {"http://metadata.test:%u/", NULL, FETCH_USER, GW_EDENIED},
        {"http://127.0.0.1:%u/", "10.0.0.0/8", FETCH_PLUGIN, GW_EDENIED},
        {"http://127.0.0.1:%u/", "127.0.0.1:1", FETCH_PLUGIN, GW_EDENIED},
        {"http://8.8.8.8:22/", NULL, FETCH_PLUGIN, GW_EDENIED},
        {"http://unknown.test:%u/", NULL, FETCH_OPERATOR, GW_EDNS},
        {"http://unknown.test:%u/", NULL, FETCH_USER, GW_EDNS},
        {"http://127.0.0.1:%u/", "127.0.0.0/8", FETCH_PLUGIN, 0},
        {"http://upstream.test:%u/", "upstream.test", FETCH_USER, 0},
        {"http://127.0.0.1:%u/", NULL, FETCH_OPERATOR, 0},
        {"http://upstream.test:%u/", NULL, FETCH_OPERATOR, 0},
    };
    char url[128];
    struct slice rule = slice_str(cases[_i].rule);
    snprintf(url, sizeof url, cases[_i].url, kit_port);
    struct fetch_request request = kit_get("/");
    request.url = slice_str(url);
    request.trust = cases[_i].trust;
    request.allowed_private = &rule;
    request.allowed_private_count = cases[_i].rule ? 1 : 0;
    struct result result;
    kit_start(&result, &request);
    if (cases[_i].err == 0) {
        struct peer *peer = kit_accept();
        kit_request(peer);
        kit_say(peer, "HTTP/1.1 204 No\r\n\r\n");
        KIT_UNTIL(result.dones);
        ck_assert_int_eq(result.err, 0);
        kit_close(peer);
    } else {
        KIT_UNTIL(result.dones);
        ck_assert_int_eq(result.err, cases[_i].err);
        ck_assert(!result.info.sent_any);
        ck_assert_str_ne(result.info.detail, "");
        ck_assert(!kit_readable(kit_listener));
    }
}
END_TEST

START_TEST(test_rebinding)
{
    // The name's second answer is private: the new look-up decides, and so does the check of the
    // connection that is in the pool from before.
    struct slice rule = SLICE_LIT("127.0.0.1/32");
    struct fetch_request request = kit_get("/");
    struct result result;
    request.trust = FETCH_USER;
    request.allowed_private = &rule;
    request.allowed_private_count = 1;
    kit_start(&result, &request);
    struct peer *peer = kit_accept();
    kit_request(peer);
    kit_say(peer, "HTTP/1.1 204 No\r\n\r\n");
    KIT_UNTIL(result.dones);
    ck_assert_int_eq(result.err, 0);
    kit_address = "127.0.0.2";
    kit_skip_ms(61000);
    kit_start(&result, &request);
    KIT_UNTIL(result.dones);
    ck_assert_int_eq(result.err, GW_EDENIED);
    ck_assert_int_eq(kit_lookups, 2);
    kit_close(peer);
}
END_TEST

START_TEST(test_new_address)
{
    // A name that moves: new connections go to the new address.
    struct peer *peer = kit_warm();
    kit_close(peer);
    kit_turns(5);
    kit_address = "127.0.0.2"; // nobody listens there on this port
    kit_skip_ms(61000);
    struct fetch_request request = kit_get("/");
    struct result result;
    kit_start(&result, &request);
    KIT_UNTIL(result.dones);
    ck_assert_int_eq(result.err, GW_ECONNECT);
    ck_assert_int_eq(kit_lookups, 2);
}
END_TEST

START_TEST(test_refused)
{
    struct result result;
    struct fetch_request request = kit_get("/");
    close(kit_listener);
    kit_start(&result, &request);
    KIT_UNTIL(result.dones);
    ck_assert_int_eq(result.err, GW_ECONNECT);
    ck_assert(!result.info.sent_any && !result.info.got_head);
    ck_assert_str_ne(result.info.detail, "");
    kit_listen();
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

// ---- what goes wrong on the way

START_TEST(test_no_repeat)
{
    // The upstream reads a request on a reused connection and closes unanswered: libcurl would
    // send it again.
    struct slice body = SLICE_LIT("{\"pay\":1}");
    static char big_bytes[100000];
    struct slice big = slice_of(big_bytes, sizeof big_bytes);
    for (int kind = 0; kind < 6; kind++) {
        struct peer *peer = kit_warm();
        struct fetch_request request = kit_post("/pay", &body, 1);
        if (kind == 1)
            request = kit_get("/pay");
        if (kind == 2)
            request = kit_post("/pay", NULL, 0);
        if (kind >= 4)
            request = kit_post("/pay", &big, 1);
        struct result result;
        kit_start(&result, &request);
        kit_request(peer);
        if (kind == 3 || kind == 5)
            kit_reset(peer);
        kit_close(peer);
        KIT_UNTIL(result.dones);
        ck_assert_int_eq(result.err, GW_ERESET);
        ck_assert(result.info.sent_any && result.info.is_reused && !result.info.got_head);
        kit_turns(10);
        // libcurl may have opened a connection for the repetition; nothing was written to it.
        while (kit_readable(kit_listener)) {
            struct peer *second = kit_accept();
            KIT_UNTIL(kit_at_end(second));
            ck_assert_uint_eq(second->len, 0);
            kit_close(second);
        }
        ck_assert_int_eq(result.dones, 1);
        kit_end(&result);
        ck_assert_uint_eq(fetcher_counters(kit_fetcher)->idle_connections, 0);
    }
    // Nothing of it is left for the next request.
    struct peer *peer = kit_warm();
    kit_exchange(peer);
    kit_close(peer);
}
END_TEST

START_TEST(test_broken_answers)
{
    static const struct {
        const char *answer;
        int err, heads;
        bool is_reset;
    } cases[] = {
        {"", GW_ERESET, 0, false},
        {"", GW_ERESET, 0, true},
        {"HTTP/1.1 200 OK\r\nContent-Le", GW_ERESET, 0, true},
        {"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf", GW_ERESET, 1, false},
        {"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf", GW_ERESET, 1, true},
        {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n", GW_ERESET, 1, false},
        {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n8\r\nhalf", GW_ERESET, 1, false},
        {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n0\r\n", GW_ERESET, 1,
         false},
        {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nhalf", GW_EPROTO, 1, false},
        {"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nhalf.", GW_EPROTO, 0,
         false},
        {"HTTP/1.1 200 OK\r\nContent-Length: 4, 4\r\n\r\nhalf", GW_EPROTO, 0, false},
        {"HTTP/1.1 200 OK\r\nContent-Length: -4\r\n\r\nhalf", GW_EPROTO, 0, false},
        {"HTTP/1.1 200 OK\r\nContent-Length: 0x4\r\n\r\nhalf", GW_EPROTO, 0, false},
        {"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
         GW_EPROTO, 0, false},
        {"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", GW_EPROTO, 0,
         false},
        {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: "
         "chunked\r\n\r\n0\r\n\r\n",
         GW_EPROTO, 0, false},
        {"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", GW_EPROTO, 0, false},
        {"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n", GW_EPROTO, 0, false},
        {"HTTP/1.1 200 OK\r\nBad Name: 1\r\n\r\n", GW_EPROTO, 0, false},
        {"HTTP/1.1 200 OK\r\nName : 1\r\n\r\n", GW_EPROTO, 0, false},
        {"HTTP/1.1 200 OK\r\nNoColon\r\n\r\n", GW_EPROTO, 0, false},
        {"HTTP/1.1 200 OK\r\n: 1\r\n\r\n", GW_EPROTO, 0, false},
        {"HTTP/1.1 200 OK\r\nA: x\ry\r\n\r\n", GW_EPROTO, 0, false},
        {"SSH-2.0-OpenSSH\r\n", GW_EPROTO, 0, false},
        {"HTTP/1.1 abc OK\r\n\r\n", GW_EPROTO, 0, false},
        {"HTTP/1.1 2000 OK\r\n\r\n", GW_EPROTO, 0, false},
    };
    struct result result;
    struct fetch_request request = kit_get("/");
    kit_start(&result, &request);
    struct peer *peer = kit_accept();
    kit_request(peer);
    kit_say(peer, cases[_i].answer);
    kit_turns(3);
    if (cases[_i].is_reset)
        kit_reset(peer);
    else if (cases[_i].err == GW_ERESET || strncmp(cases[_i].answer, "HTTP", 4) != 0)
        shutdown(peer->fd, SHUT_WR);
    KIT_UNTIL(result.dones);
    ck_assert_msg(result.err == cases[_i].err, "%d: got %d %s", _i, result.err, result.info.detail);
    ck_assert_int_eq(result.heads, cases[_i].heads);
    ck_assert_int_eq(result.dones, 1);
    ck_assert_str_ne(result.info.detail, "");
    // The connection is not used again.
    kit_turns(3);
    ck_assert_uint_eq(fetcher_counters(kit_fetcher)->idle_connections, 0);
    if (!cases[_i].is_reset)
        KIT_UNTIL(kit_at_end(peer));
    kit_end(&result);
    kit_close(peer);
}
END_TEST

START_TEST(test_head_limits)
{
    struct result result;
    struct fetch_request request = kit_get("/");
    kit_start(&result, &request);
    struct peer *peer = kit_accept();
    kit_request(peer);
    char line[1100];
    memset(line, 'a', sizeof line);
    memcpy(line, "X-Long: ", 8);
    memcpy(line + sizeof line - 3, "\r\n", 3);
    kit_say(peer, "HTTP/1.1 200 OK\r\n");
    for (int i = 0; i < 70 && !result.dones; i++) {
        kit_say(peer, line);
        kit_turn();
    }
    KIT_UNTIL(result.dones);
    ck_assert_int_eq(result.err, GW_ETOOBIG);
    ck_assert_int_eq(result.heads, 0);
    kit_close(peer);

    kit_start(&result, &request); // endless 1xx
    peer = kit_accept();
    kit_request(peer);
    for (int i = 0; i < 20 && !result.dones; i++) {
        kit_say(peer, "HTTP/1.1 102 Processing\r\n\r\n");
        kit_turn();
    }
    KIT_UNTIL(result.dones);
    ck_assert_int_eq(result.err, GW_EPROTO);
    kit_close(peer);

    request.max_body_bytes = 5;
    for (int size = 5; size <= 6; size++) {
        kit_start(&result, &request);
        peer = kit_accept();
        kit_request(peer);
        kit_say(peer, size == 5 ? "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n12345"
                                : "HTTP/1.1 200 OK\r\n\r\n123456");
        shutdown(peer->fd, SHUT_WR);
        KIT_UNTIL(result.dones);
        ck_assert_int_eq(result.err, size == 5 ? 0 : GW_ETOOBIG);
        kit_end(&result);
        kit_close(peer);
    }
}
END_TEST

START_TEST(test_idle_close)
{
    // Connections that the upstream closes while idle: no spin, no CLOSE_WAIT, no failed request.
    struct fetch_request request = kit_get("/");
    struct result results[3];
    struct peer *peers[3];
    for (int i = 0; i < 3; i++)
        kit_start(&results[i], &request);
    for (int i = 0; i < 3; i++)
        peers[i] = kit_accept();
    for (int i = 0; i < 3; i++) {
        kit_request(peers[i]);
        kit_say(peers[i], "HTTP/1.1 204 No\r\n\r\n");
    }
    for (int i = 0; i < 3; i++)
        KIT_UNTIL(results[i].dones);
    ck_assert_uint_eq(fetcher_counters(kit_fetcher)->idle_connections, 3);
    shutdown(peers[0]->fd, SHUT_WR);
    KIT_UNTIL(fetcher_counters(kit_fetcher)->idle_connections == 2);
    KIT_UNTIL(kit_at_end(peers[0])); // ours is closed as well
    kit_turns(3);
    ck_assert(!loop_turn(kit_loop)); // quiet
    kit_close(peers[0]);
    // Unasked bytes are as good as a close.
    kit_say(peers[1], "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil");
    KIT_UNTIL(fetcher_counters(kit_fetcher)->idle_connections == 1);
    kit_close(peers[1]);
    kit_exchange(peers[2]);
    ck_assert_int_eq(kit_accepted, 3);
    kit_close(peers[2]);
    KIT_UNTIL(fetcher_counters(kit_fetcher)->idle_connections == 0);
    kit_turns(3);
    kit_close(kit_warm());
}
END_TEST

START_TEST(test_idle_close_unseen)
{
    // Closed in the same moment as the next request starts: the loop has had no turn to see it.
    struct peer *peer = kit_warm();
    kit_close(peer);
    struct result result;
    struct fetch_request request = kit_get("/");
    kit_start(&result, &request);
    peer = kit_accept();
    kit_request(peer);
    kit_say(peer, "HTTP/1.1 204 No\r\n\r\n");
    KIT_UNTIL(result.dones);
    ck_assert_int_eq(result.err, 0);
    ck_assert(!result.info.is_reused);
    kit_close(peer);
}
END_TEST

START_TEST(test_poisoned)
{
    // An answer that waits on the pooled connection before its request is written: nobody gets it.
    struct peer *peer = kit_warm();
    kit_say(peer, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil");
    struct result result;
    struct slice body = SLICE_LIT("mine");
    struct fetch_request request = kit_post("/", &body, 1);
    kit_start(&result, &request);
    struct peer *second = kit_accept();
    kit_request(second);
    kit_say(second, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    KIT_UNTIL(result.dones);
    ck_assert_int_eq(result.err, 0);
    ck_assert(kit_body_is(&result, "ok"));
    ck_assert(!result.info.is_reused);
    // (It was reset: there were bytes that we never read.)
    KIT_UNTIL(kit_at_end(peer));
    ck_assert(strstr(peer->in, "mine") == NULL);
    kit_end(&result);
    kit_close(peer);
    kit_close(second);
}
END_TEST

START_TEST(test_excess_bytes)
{
    // More than the announced length: the answer stands, the connection does not.
    struct result result;
    struct fetch_request request = kit_get("/");
    kit_start(&result, &request);
    struct peer *peer = kit_accept();
    kit_request(peer);
    kit_say(peer, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\n\r\nevil");
    KIT_UNTIL(result.dones);
    ck_assert_int_eq(result.err, 0);
    ck_assert(kit_body_is(&result, "ok"));
    kit_end(&result);
    KIT_UNTIL(fetcher_counters(kit_fetcher)->idle_connections == 0);
    kit_close(kit_warm());
    kit_close(peer);
}
END_TEST

// ---- cancel

START_TEST(test_cancel_stages)
{
    struct result result;
    struct peer *peer = NULL;
    struct slice body = SLICE_LIT("x");
    struct fetch_request request = kit_post("/", &body, 1);
    int stage = _i;
    if (stage == 1)
        kit_lookup_delay_ms = 50;
    kit_start(&result, &request);
    struct fetch *fetch = result.fetch;
    if (stage == 1) // while it is looked up
        KIT_UNTIL(kit_lookups == 1);
    if (stage >= 2) {
        peer = kit_accept();
        if (stage >= 3)
            kit_request(peer);
        if (stage == 4)
            kit_say(peer, "HTTP/1.1 200");
        if (stage >= 5)
            kit_say(peer, "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n");
        if (stage >= 6)
            kit_say(peer, "half");
        if (stage == 7)
            result.pause_all = true;
        if (stage == 5)
            KIT_UNTIL(result.heads);
        else if (stage == 6)
            KIT_UNTIL(result.body.len == 4);
        else if (stage == 7)
            KIT_UNTIL(result.is_paused);
        else
            kit_turns(3);
    }
    int bodies = result.bodies, heads = result.heads;
    fetch_cancel(fetch);
    ck_assert_uint_eq(fetcher_counters(kit_fetcher)->cancelled, 1);
    loop_turn(kit_loop);
    ck_assert_uint_eq(fetcher_counters(kit_fetcher)->active, 0);
    if (peer != NULL)
        KIT_UNTIL(kit_at_end(peer)); // closed in that turn
    kit_turns(60);
    ck_assert_int_eq(result.dones, 0);
    ck_assert_int_eq(result.bodies, bodies);
    ck_assert_int_eq(result.heads, heads);
    ck_assert_uint_eq(fetcher_counters(kit_fetcher)->idle_connections, 0);
    kit_end(&result);
    if (peer != NULL)
        kit_close(peer);
    else
        ck_assert(!kit_readable(kit_listener));
}
END_TEST

START_TEST(test_cancel_in_callbacks)
{
    for (int kind = 0; kind < 3; kind++) {
        struct result result, other;
        struct fetch_request request = kit_get("/");
        kit_start(&result, &request);
        struct peer *peer = kit_accept();
        kit_request(peer);
        if (kind == 0)
            result.cancel_in_head = true;
        if (kind == 1)
            result.cancel_in_body = true;
        struct peer *second = NULL;
        if (kind == 2) {
            // Both end in the same turn; the first one's on_done cancels the other.
            kit_start(&other, &request);
            second = kit_accept();
            kit_request(second);
            result.cancel_in_done_of_other = other.cancel_in_done_of_other = true;
            result.other = &other;
            other.other = &result;
            kit_say(second, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        }
        kit_say(peer, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        if (kind < 2) {
            KIT_UNTIL(kit_at_end(peer));
            ck_assert_int_eq(result.heads, 1);
            ck_assert_int_eq(result.bodies, kind);
            ck_assert_int_eq(result.dones, 0);
        } else {
            KIT_UNTIL(result.dones + other.dones);
            kit_turns(5);
            ck_assert_int_eq(result.dones + other.dones, 1);
            kit_close(second);
            kit_end(&other);
        }
        ck_assert_uint_eq(fetcher_counters(kit_fetcher)->active, 0);
        kit_close(peer);
        kit_end(&result);
        kit_turns(5);
    }
}
END_TEST

START_TEST(test_free_while_running)
{
    static struct result results[5];
    struct slice body = SLICE_LIT("x");
    struct fetch_request request = kit_post("/", &body, 1);
    struct peer *peer = kit_warm();
    kit_start(&results[0], &request);
    kit_request(peer);
    kit_start(&results[1], &request); // connecting
    kit_turn();
    kit_lookup_delay_ms = 20;
    request.url = SLICE_LIT("http://elsewhere.test/");
    kit_start(&results[2], &request); // being looked up
    kit_turns(2);
    kit_start(&results[3], &request); // waiting with it
    request.url = SLICE_LIT("http://127.0.0.1:1/");
    kit_start(&results[4], &request); // not yet begun
    fetcher_free(kit_fetcher);
    kit_turns(3);
    for (int i = 0; i < 5; i++)
        ck_assert_int_eq(results[i].dones, 0);
    ck_assert_int_eq(fetcher_new(kit_loop, kit_resolver, &kit_fetcher), 0);
    kit_close(peer);
}
END_TEST

// ---- pause and resume

START_TEST(test_pause)
{
    // Pauses on the first, a middle and the last chunk, by length, chunked and until close, with
    // everything and the FIN already waiting.
    int shape = _i % 3, place = _i / 3;
    static char body[200000];
    for (size_t i = 0; i < sizeof body; i++)
        body[i] = (char)('a' + i % 26);
    struct result result;
    struct fetch_request request = kit_get("/");
    kit_start(&result, &request);
    struct peer *peer = kit_accept();
    kit_request(peer);
    result.pauses = place == 3 ? 8 : 2; // twice each: a resumed chunk may be refused again
    result.pause_from = place == 0 ? 0 : place == 1 ? 100000 : place == 2 ? sizeof body - 16 : 0;
    if (shape == 0)
        kit_say(peer, "HTTP/1.1 200 OK\r\nContent-Length: 200000\r\n\r\n");
    else if (shape == 1)
        kit_say(peer, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n30d40\r\n");
    else
        kit_say(peer, "HTTP/1.1 200 OK\r\n\r\n");
    size_t sent = 0;
    bool is_finished = false;
    int resumes = 0;
    for (int spins = 0; spins < 8000 && !result.dones; spins++) {
        // The last 16 bytes are a chunk of their own, so that there is a last chunk to pause on.
        size_t until = sent < sizeof body - 16 && result.body.len < sizeof body - 16 - 1
                           ? sizeof body - 16
                           : sizeof body;
        if (place == 3)
            until = sizeof body;
        if (sent < until &&
            (until < sizeof body || result.body.len >= sizeof body - 16 || place == 3)) {
            ssize_t wrote = send(peer->fd, body + sent, until - sent, MSG_DONTWAIT);
            if (wrote > 0)
                sent += (size_t)wrote;
        }
        if (sent == sizeof body && !is_finished) {
            if (shape == 1)
                kit_say(peer, "\r\n0\r\n\r\n");
            shutdown(peer->fd, SHUT_WR);
            is_finished = true;
        }
        kit_turn();
        if (result.is_paused) {
            int bodies = result.bodies;
            kit_turns(5);
            ck_assert_int_eq(result.bodies, bodies); // nothing comes while it is paused
            ck_assert_int_eq(result.dones, 0);
            result.is_paused = false;
            resumes++;
            fetch_resume(result.fetch);
            fetch_resume(result.fetch); // twice is once
        }
    }
    ck_assert_int_eq(result.dones, 1);
    ck_assert_int_eq(result.err, 0);
    ck_assert_int_eq(resumes, place == 3 ? 8 : 2);
    ck_assert(slice_eq(buf_slice(&result.body), slice_of(body, sizeof body)));
    kit_end(&result);
    kit_close(peer);
}
END_TEST

START_TEST(test_pause_bounds_memory)
{
    // While it is paused the kernel's buffers fill and the upstream is stopped: nothing is read.
    struct result result;
    struct fetch_request request = kit_get("/");
    kit_start(&result, &request);
    struct peer *peer = kit_accept();
    kit_request(peer);
    int small = 262144;
    setsockopt(peer->fd, SOL_SOCKET, SO_SNDBUF, &small, sizeof small);
    result.pause_all = true;
    kit_say(peer, "HTTP/1.1 200 OK\r\nContent-Length: 25165824\r\n\r\n");
    static char block[65536];
    size_t sent = 0;
    int stalls = 0;
    while (stalls < 50) {
        ssize_t wrote = send(peer->fd, block, sizeof block, MSG_DONTWAIT);
        if (wrote > 0)
            sent += (size_t)wrote;
        else
            stalls++;
        kit_turn();
    }
    ck_assert_int_eq(result.bodies, 1);
    ck_assert_uint_lt(sent, 16 * 1024 * 1024); // socket buffers only
    ck_assert(!loop_turn(kit_loop));           // and no spinning
    result.pause_all = false;
    fetch_resume(result.fetch);
    while (sent < 25165824) {
        size_t len = 25165824 - sent < sizeof block ? 25165824 - sent : sizeof block;
        ssize_t wrote = send(peer->fd, block, len, MSG_DONTWAIT);
        if (wrote > 0)
            sent += (size_t)wrote;
        kit_turn();
    }
    KIT_UNTIL(result.dones);
    ck_assert_int_eq(result.err, 0);
    ck_assert_uint_eq(result.body.len, 25165824);
    kit_end(&result);
    kit_close(peer);
}
END_TEST

START_TEST(test_pause_then_cut)
{
    // A reset that comes while paused is told after the resume, never before, never as a good end.
    struct result result;
    struct fetch_request request = kit_get("/");
    kit_start(&result, &request);
    struct peer *peer = kit_accept();
    kit_request(peer);
    result.pauses = 1;
    kit_say(peer, "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf");
    KIT_UNTIL(result.is_paused);
    kit_reset(peer);
    kit_turns(10);
    ck_assert_int_eq(result.dones, 0);
    fetch_resume(result.fetch);
    KIT_UNTIL(result.dones);
    ck_assert_int_eq(result.err, GW_ERESET);
    ck_assert(kit_body_is(&result, "half"));
    kit_end(&result);
    kit_close(peer);
}
END_TEST

// ---- streamed uploads

START_TEST(test_upload)
{
    bool is_sized = _i == 1;
    struct result result;
    struct fetch_request request = kit_post("/up", NULL, 0);
    request.is_streamed = true;
    request.body_length = is_sized ? 3000000 : -1;
    kit_start(&result, &request);
    static char block[60000];
    size_t queued = 0;
    int full = 0;
    memset(block, 'u', sizeof block);
    struct peer *peer = kit_accept();
    // Nobody reads yet: the queue and the kernel's buffers fill up.
    for (int spins = 0; queued < 3000000 && spins < 20000; spins++) {
        int err = fetch_write(result.fetch, slice_of(block, sizeof block));
        if (err == 0) {
            queued += sizeof block;
            continue;
        }
        ck_assert_int_eq(err, GW_EFULL);
        int writables = result.writables;
        full++;
        for (int i = 0; i < 8000 && result.writables == writables; i++) {
            kit_take(peer);
            kit_turn();
        }
        ck_assert_int_eq(result.writables, writables + 1);
    }
    ck_assert_int_gt(full, 0);
    if (is_sized)
        ck_assert_int_eq(fetch_write(result.fetch, SLICE_LIT("x")), GW_EINVAL);
    fetch_write_end(result.fetch);
    peer->used = 0;
    KIT_UNTIL(kit_has_request(peer));
    ck_assert(strstr(peer->in, "Expect") == NULL);
    ck_assert(strstr(peer->in, is_sized ? "\r\nContent-Length: 3000000\r\n"
                                        : "\r\nTransfer-Encoding: chunked\r\n") != NULL);
    size_t letters = 0;
    for (const char *at = strstr(peer->in, "\r\n\r\n"); at < peer->in + peer->len; at++)
        letters += *at == 'u';
    ck_assert_uint_eq(letters, 3000000);
    kit_say(peer, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    KIT_UNTIL(result.dones);
    ck_assert_int_eq(result.err, 0);
    ck_assert_uint_ge(result.info.bytes_sent, 3000000);
    kit_end(&result);
    kit_exchange(peer);
    kit_close(peer);
}
END_TEST

START_TEST(test_upload_slowly)
{
    struct result result;
    struct fetch_request request = kit_post("/up", NULL, 0);
    request.is_streamed = true;
    request.body_length = -1;
    kit_start(&result, &request);
    struct peer *peer = kit_accept();
    for (int i = 0; i < 5; i++) {
        ck_assert_int_eq(fetch_write(result.fetch, SLICE_LIT("abc")), 0);
        kit_turns(4); // libcurl waits, without spinning, for more
        ck_assert(!loop_turn(kit_loop));
        kit_take(peer);
    }
    ck_assert(strstr(peer->in, "3\r\nabc\r\n3\r\nabc\r\n3\r\nabc\r\n3\r\nabc\r\n3\r\nabc\r\n") !=
              NULL);
    fetch_write_end(result.fetch);
    KIT_UNTIL(kit_has_request(peer));
    kit_say(peer, "HTTP/1.1 204 No\r\n\r\n");
    KIT_UNTIL(result.dones);
    ck_assert_int_eq(result.err, 0);
    kit_close(peer);

    // Shorter than announced: cut, not padded.
    request.body_length = 10;
    kit_start(&result, &request);
    peer = kit_accept();
    ck_assert_int_eq(fetch_write(result.fetch, SLICE_LIT("abc")), 0);
    fetch_write_end(result.fetch);
    KIT_UNTIL(result.dones);
    ck_assert_int_eq(result.err, GW_EINVAL);
    kit_close(peer);
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

START_TEST(test_early_answer)
{
    // The upstream refuses before the body is out: its answer arrives, the connection is not kept.
    struct result result;
    struct fetch_request request = kit_post("/up", NULL, 0);
    request.is_streamed = true;
    request.body_length = -1;
    kit_start(&result, &request);
    struct peer *peer = kit_accept();
    ck_assert_int_eq(fetch_write(result.fetch, SLICE_LIT("abc")), 0);
    kit_turns(5);
    kit_say(peer, "HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno");
    KIT_UNTIL(result.body.len == 2);
    ck_assert_int_eq(result.status, 413);
    if (result.fetch != NULL)
        fetch_write_end(result.fetch);
    KIT_UNTIL(result.dones);
    ck_assert_int_eq(result.err, 0);
    ck_assert_uint_eq(fetcher_counters(kit_fetcher)->idle_connections, 0);
    kit_end(&result);
    kit_close(peer);
}
END_TEST

// ---- timers

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

// ---- a proxy

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

// ---- TLS

static EVP_PKEY *tls_key;
static X509 *tls_cert;
static char tls_ca_path[] = "/tmp/moongate-test-ca-XXXXXX";

// Self-signed, for the name upstream.test only.
static void make_certificate(void)
{
    tls_key = EVP_EC_gen("P-256");
    tls_cert = X509_new();
    X509_set_version(tls_cert, 2);
    ASN1_INTEGER_set(X509_get_serialNumber(tls_cert), 1);
    X509_gmtime_adj(X509_getm_notBefore(tls_cert), -3600);
    X509_gmtime_adj(X509_getm_notAfter(tls_cert), 3600);
    X509_NAME *name = X509_get_subject_name(tls_cert);
    X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_ASC, (const unsigned char *)"test", -1, -1, 0);
    X509_set_issuer_name(tls_cert, name);
    X509_set_pubkey(tls_cert, tls_key);
    X509_EXTENSION *names =
        X509V3_EXT_conf_nid(NULL, NULL, NID_subject_alt_name, "DNS:upstream.test");
    X509_add_ext(tls_cert, names, -1);
    X509_EXTENSION_free(names);
    X509_sign(tls_cert, tls_key, EVP_sha256());
    int fd = mkstemp(tls_ca_path);
    FILE *file = fdopen(fd, "w");
    PEM_write_X509(file, tls_cert);
    fclose(file);
}

static void drop_certificate(void)
{
    unlink(tls_ca_path);
    X509_free(tls_cert);
    EVP_PKEY_free(tls_key);
}

static SSL_CTX *tls_context(int min, int max)
{
    SSL_CTX *context = SSL_CTX_new(TLS_server_method());
    SSL_CTX_set_min_proto_version(context, min);
    SSL_CTX_set_max_proto_version(context, max);
    SSL_CTX_set_security_level(context, 0);
    ck_assert_int_eq(SSL_CTX_use_certificate(context, tls_cert), 1);
    ck_assert_int_eq(SSL_CTX_use_PrivateKey(context, tls_key), 1);
    return context;
}

static SSL *tls_accept(SSL_CTX *context, struct peer *peer)
{
    SSL *ssl = SSL_new(context);
    fcntl(peer->fd, F_SETFL, O_NONBLOCK);
    SSL_set_fd(ssl, peer->fd);
    SSL_set_accept_state(ssl);
    return ssl;
}

static bool tls_is_ready(SSL *ssl)
{
    return SSL_do_handshake(ssl) == 1;
}

static bool tls_has_request(SSL *ssl, struct peer *peer)
{
    int got = SSL_read(ssl, peer->in + peer->len, (int)(sizeof peer->in - 1 - peer->len));
    if (got > 0)
        peer->len += (size_t)got;
    peer->in[peer->len] = '\0';
    return strstr(peer->in, "\r\n\r\n") != NULL;
}

START_TEST(test_tls)
{
    static const struct {
        const char *host;
        bool has_ca;
        int max, err;
    } cases[] = {
        {"upstream.test", true, TLS1_3_VERSION, 0},
        {"upstream.test", true, TLS1_2_VERSION, 0},
        {"upstream.test", false, TLS1_3_VERSION, GW_ETLS}, // self-signed
        {"other.test", true, TLS1_3_VERSION, GW_ETLS},     // not its name
        {"127.0.0.1", true, TLS1_3_VERSION, GW_ETLS},
        {"upstream.test", true, TLS1_1_VERSION, GW_ETLS}, // too old
    };
    char url[128];
    snprintf(url, sizeof url, "https://%s:%u/x", cases[_i].host, kit_port);
    struct result result;
    struct fetch_request request = kit_get("/");
    request.url = slice_str(url);
    request.ca_file = cases[_i].has_ca ? tls_ca_path : NULL;
    SSL_CTX *context = tls_context(TLS1_VERSION, cases[_i].max);
    kit_start(&result, &request);
    struct peer *peer = kit_accept();
    SSL *ssl = tls_accept(context, peer);
    if (cases[_i].err == 0) {
        KIT_UNTIL(tls_is_ready(ssl));
        for (int round = 0; round < 3; round++) { // a late ticket or a reuse changes nothing
            if (round > 0)
                kit_start(&result, &request);
            peer->len = 0;
            KIT_UNTIL(tls_has_request(ssl, peer));
            const char *answer = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
            SSL_write(ssl, answer, (int)strlen(answer));
            KIT_UNTIL(result.dones);
            ck_assert_msg(result.err == 0, "%s", result.info.detail);
            ck_assert_int_eq(result.info.is_reused, round > 0);
            ck_assert(kit_body_is(&result, "ok"));
            kit_end(&result);
        }
        // Without the CA file the pooled connection is not used either.
        request.ca_file = NULL;
        kit_start(&result, &request);
        struct peer *second = kit_accept();
        SSL *other = tls_accept(context, second);
        for (int i = 0; i < 8000 && !result.dones; i++) {
            tls_is_ready(other);
            kit_turn();
        }
        ck_assert_int_eq(result.err, GW_ETLS);
        SSL_free(other);
        kit_close(second);
        // A body that only the end delimits: with close_notify it is whole, without it is cut.
        request.ca_file = tls_ca_path;
        for (int is_cut = 0; is_cut < 2; is_cut++) {
            if (is_cut) {
                SSL_free(ssl);
                kit_close(peer);
            }
            kit_start(&result, &request);
            if (is_cut) {
                peer = kit_accept();
                ssl = tls_accept(context, peer);
                KIT_UNTIL(tls_is_ready(ssl));
            }
            peer->len = 0;
            KIT_UNTIL(tls_has_request(ssl, peer));
            const char *head = "HTTP/1.1 200 OK\r\n\r\nhalf";
            SSL_write(ssl, head, (int)strlen(head));
            KIT_UNTIL(result.body.len == 4);
            if (!is_cut)
                SSL_shutdown(ssl);
            shutdown(peer->fd, SHUT_WR);
            KIT_UNTIL(result.dones);
            ck_assert_int_eq(result.err, is_cut ? GW_ERESET : 0);
            kit_end(&result);
        }
    } else {
        for (int i = 0; i < 8000 && !result.dones; i++) {
            tls_is_ready(ssl);
            kit_turn();
        }
        ck_assert_int_eq(result.err, cases[_i].err);
        ck_assert(!result.info.sent_any);
        ck_assert_str_ne(result.info.detail, "");
        ck_assert_uint_eq(peer->len, 0);
    }
    SSL_free(ssl);
    SSL_CTX_free(context);
    kit_close(peer);
}
END_TEST

START_TEST(test_tls_close)
{
    // How a TLS connection ends: closed in good order while idle, or reset then, or given up by us
    // while the upstream says nothing more. The next request goes well, and the loop is quiet.
    char url[128];
    snprintf(url, sizeof url, "https://upstream.test:%u/x", kit_port);
    struct fetch_request request = kit_get("/");
    request.url = slice_str(url);
    request.ca_file = tls_ca_path;
    SSL_CTX *context = tls_context(TLS1_2_VERSION, TLS1_2_VERSION); // has no tickets that come late
    struct peer *peers[2];
    SSL *ssl[2];
    for (int round = 0; round < 2; round++) {
        struct result result;
        kit_start(&result, &request);
        peers[round] = kit_accept();
        ssl[round] = tls_accept(context, peers[round]);
        KIT_UNTIL(tls_is_ready(ssl[round]));
        KIT_UNTIL(tls_has_request(ssl[round], peers[round]));
        const char *answer =
            _i < 2 ? "HTTP/1.1 204 No\r\n\r\n" : "HTTP/1.1 204 No\r\nConnection: close\r\n\r\n";
        SSL_write(ssl[round], answer, (int)strlen(answer));
        KIT_UNTIL(result.dones);
        ck_assert_int_eq(result.err, 0);
        ck_assert(!result.info.is_reused);
        kit_turns(3);
        ck_assert(!loop_turn(kit_loop));
        if (_i == 0)
            SSL_shutdown(ssl[round]);
        if (_i == 0)
            shutdown(peers[round]->fd, SHUT_WR);
        if (_i == 1)
            kit_reset(peers[round]);
        KIT_UNTIL(fetcher_counters(kit_fetcher)->idle_connections == 0 || _i == 2);
        if (_i != 1)
            KIT_UNTIL(kit_readable(peers[round]->fd)); // our end, or our word of it
        if (_i == 0)
            KIT_UNTIL(kit_at_end(peers[round]));
        kit_turns(3);
        ck_assert(!loop_turn(kit_loop));
    }
    for (int round = 0; round < 2; round++) {
        SSL_free(ssl[round]);
        kit_close(peers[round]);
    }
    kit_turns(10);
    ck_assert_uint_eq(fetcher_counters(kit_fetcher)->idle_connections, 0);
    SSL_CTX_free(context);
}
END_TEST

START_TEST(test_tls_no_ca_file)
{
    struct result result;
    struct fetch_request request = kit_get("/");
    request.url = SLICE_LIT("https://upstream.test/");
    request.ca_file = "/nonexistent/ca.pem";
    kit_start(&result, &request);
    KIT_UNTIL(result.dones);
    ck_assert_int_eq(result.err, GW_ETLS);
}
END_TEST

START_TEST(test_tls_not_tls)
{
    // A plain answer to a TLS hello, and a close during the handshake.
    char url[128];
    snprintf(url, sizeof url, "https://upstream.test:%u/x", kit_port);
    for (int kind = 0; kind < 2; kind++) {
        struct result result;
        struct fetch_request request = kit_get("/");
        request.url = slice_str(url);
        kit_start(&result, &request);
        struct peer *peer = kit_accept();
        KIT_UNTIL(kit_readable(peer->fd));
        if (kind == 0)
            kit_say(peer, "HTTP/1.1 400 Bad Request\r\n\r\n");
        else
            kit_take(peer);
        kit_close(peer);
        KIT_UNTIL(result.dones);
        ck_assert_int_eq(result.err, GW_ETLS);
        ck_assert(!result.info.sent_any);
    }
}
END_TEST

int main(void)
{
    clock_use(&kit_clock);
    gw_require(fetch_global_init() == 0);
    make_certificate();
    Suite *suite = suite_create("fetch");
    TCase *tcase = tcase_create("fetch");
    tcase_set_timeout(tcase, 120);
    tcase_add_checked_fixture(tcase, kit_set_up, kit_tear_down);
    tcase_add_test(tcase, test_get);
    tcase_add_test(tcase, test_methods_do_not_leak);
    tcase_add_test(tcase, test_stream);
    tcase_add_test(tcase, test_http10_until_close);
    tcase_add_test(tcase, test_parallel);
    tcase_add_test(tcase, test_trust_classes);
    tcase_add_loop_test(tcase, test_addresses, 0, 14);
    tcase_add_test(tcase, test_rebinding);
    tcase_add_test(tcase, test_new_address);
    tcase_add_test(tcase, test_refused);
    tcase_add_test(tcase, test_invalid);
    tcase_add_test(tcase, test_no_repeat);
    tcase_add_loop_test(tcase, test_broken_answers, 0, 26);
    tcase_add_test(tcase, test_head_limits);
    tcase_add_test(tcase, test_idle_close);
    tcase_add_test(tcase, test_idle_close_unseen);
    tcase_add_test(tcase, test_poisoned);
    tcase_add_test(tcase, test_excess_bytes);
    tcase_add_loop_test(tcase, test_cancel_stages, 0, 8);
    tcase_add_test(tcase, test_cancel_in_callbacks);
    tcase_add_test(tcase, test_free_while_running);
    tcase_add_loop_test(tcase, test_pause, 0, 12);
    tcase_add_test(tcase, test_pause_bounds_memory);
    tcase_add_test(tcase, test_pause_then_cut);
    tcase_add_loop_test(tcase, test_upload, 0, 2);
    tcase_add_test(tcase, test_upload_slowly);
    tcase_add_test(tcase, test_large_body);
    tcase_add_test(tcase, test_early_answer);
    tcase_add_loop_test(tcase, test_timers, 0, 5);
    tcase_add_loop_test(tcase, test_connect_timers, 0, 2);
    tcase_add_test(tcase, test_upload_timer);
    tcase_add_test(tcase, test_proxy);
    tcase_add_loop_test(tcase, test_tls, 0, 6);
    tcase_add_loop_test(tcase, test_tls_close, 0, 3);
    tcase_add_test(tcase, test_tls_no_ca_file);
    tcase_add_test(tcase, test_tls_not_tls);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_set_fork_status(runner, CK_NOFORK);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    fetch_global_cleanup();
    drop_certificate();
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
