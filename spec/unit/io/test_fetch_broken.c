// What upstreams do wrong, while they answer and while a connection rests.
#include "fetch_kit.h"

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

static void add_tests(TCase *tcase)
{
    tcase_add_test(tcase, test_no_repeat);
    tcase_add_loop_test(tcase, test_broken_answers, 0, 26);
    tcase_add_test(tcase, test_head_limits);
    tcase_add_test(tcase, test_idle_close);
    tcase_add_test(tcase, test_idle_close_unseen);
    tcase_add_test(tcase, test_poisoned);
    tcase_add_test(tcase, test_excess_bytes);
}

int main(void)
{
    return kit_main("fetch_broken", add_tests, KIT_BOTH);
}
