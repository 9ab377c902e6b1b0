// Cancelling, pausing and streamed uploads.
#include "fetch_kit.h"

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
    kit_new_fetcher();
    kit_close(peer);
}
END_TEST

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

static void add_tests(TCase *tcase)
{
    tcase_add_loop_test(tcase, test_cancel_stages, 0, 8);
    tcase_add_test(tcase, test_cancel_in_callbacks);
    tcase_add_test(tcase, test_free_while_running);
    tcase_add_loop_test(tcase, test_pause, 0, 12);
    tcase_add_test(tcase, test_pause_bounds_memory);
    tcase_add_test(tcase, test_pause_then_cut);
    tcase_add_loop_test(tcase, test_upload, 0, 2);
    tcase_add_test(tcase, test_upload_slowly);
    tcase_add_test(tcase, test_early_answer);
}

int main(void)
{
    return kit_main("fetch_flow", add_tests, KIT_BOTH);
}
