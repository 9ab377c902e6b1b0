// What only the HTTP/1.1 transport of our own promises: how an answer is read under every split,
// how many system calls and turns it takes, and what stays behind.
#include "fetch_kit.h"
#include "io/transport_http1_answer.h"

#include <sys/resource.h>

// ---- the reader alone

struct reading {
    struct arena *arena;
    struct fetch_head head;
    struct buf seen; // what was told, in order
    struct h1_answer answer;
};

static int on_line(void *user, struct slice line)
{
    struct reading *reading = user;
    const char *why;
    int err = fetch_head_line(&reading->head, reading->arena, line, &why);
    if (err == 0 && reading->head.is_final) {
        ck_assert_int_eq(buf_printf(&reading->seen, "%d ", reading->head.status), 0);
        for (size_t i = 0; i < reading->head.count; i++)
            ck_assert_int_eq(buf_printf(&reading->seen, "%.*s=%.*s;",
                                        SLICE_FMT(reading->head.headers[i].name),
                                        SLICE_FMT(reading->head.headers[i].value)),
                             0);
    }
    return err;
}

static void read_piece(struct reading *reading, const char *bytes, size_t len)
{
    if (len == 0 || reading->answer.state > H1_ANSWER_BODY)
        return;
    char *copy = malloc(len); // exactly this piece, and one that may be written to
    memcpy(copy, bytes, len);
    ck_assert_int_eq(buf_append(&reading->seen, h1_answer_feed(&reading->answer, copy, len)), 0);
    free(copy);
}

// Gives all that was told, and how it ended: '+' kept, '.' done, '!' failed with the error.
static void read_pieces(struct buf *seen, struct slice answer, bool is_head, size_t first,
                        size_t second, bool is_closed)
{
    struct reading reading = {.arena = arena_new(4096)};
    fetch_head_init(&reading.head, 0);
    h1_answer_start(&reading.answer, is_head, 65536, on_line, &reading);
    read_piece(&reading, answer.ptr, first);
    read_piece(&reading, answer.ptr + first, second - first);
    bool is_open = reading.answer.state <= H1_ANSWER_BODY;
    read_piece(&reading, answer.ptr + second, answer.len - second);
    // What lies beyond an end that was seen earlier is found on the idle connection.
    bool may_keep = reading.answer.may_keep && (is_open || second == answer.len);
    if (is_closed && reading.answer.state <= H1_ANSWER_BODY)
        h1_answer_end(&reading.answer);
    if (reading.answer.state == H1_ANSWER_FAILED)
        ck_assert_int_eq(buf_printf(&reading.seen, "!%d", reading.answer.err), 0);
    else
        ck_assert_int_eq(buf_append_str(&reading.seen, reading.answer.state < H1_ANSWER_DONE ? "…"
                                                       : may_keep                            ? "+"
                                                                                             : "."),
                         0);
    *seen = reading.seen;
    h1_answer_free(&reading.answer);
    arena_free(reading.arena);
}

static const struct {
    const char *answer, *seen;
    bool is_head;
} answers[] = {
    {"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", "200 content-length=5;hello+", false},
    {"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", "200 content-length=0;+", false},
    {"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nLink: x\r\n\r\nHTTP/1.1 204 No\r\nA: b\r\n"
     "\r\n",
     "204 a=b;+", false},
    {"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n3\r\nabc\r\n004;x=\"y\"\r\ndefg\r\n0\r\n"
     "T: 1\r\n\r\n",
     "200 transfer-encoding=Chunked;abcdefg+", false},
    {"HTTP/1.1 200 OK\r\n\r\nuntil the end", "200 until the end.", false},
    {"HTTP/1.0 200 OK\r\nContent-Length: 2\r\nConnection: keep-alive\r\n\r\nok",
     "200 content-length=2;connection=keep-alive;ok.", false},
    {"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok",
     "200 content-length=2;connection=close;ok.", false},
    {"HTTP/1.1 304 Same\r\nContent-Length: 7\r\n\r\n", "304 content-length=7;+", false},
    {"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n", "200 content-length=7;+", true},
    {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "200 transfer-encoding=chunked;+",
     true},
    {"HTTP/1.1 204 No\r\nContent-Length: 2\r\n\r\n", "204 content-length=2;.", false},
    {"HTTP/1.1 304 Same\r\nTransfer-Encoding: chunked\r\n\r\n", "304 transfer-encoding=chunked;+",
     false},
    {"HTTP/1.1 204 No\r\nTransfer-Encoding: chunked\r\n\r\n", "204 transfer-encoding=chunked;.",
     false},
    {"HTTP/1.1 100 C\r\nContent-Length: 3\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
     "200 content-length=0;+", false},
    {"HTTP/1.1 103 E\r\nTransfer-Encoding: chunked\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n"
     "\r\n",
     "200 content-length=0;+", false},
    {"HTTP/1.1 103 E\r\nConnection: close\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
     "200 content-length=2;ok.", false},
    {"HTTP/1.1 103 E\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n", "200 content-length=2;+",
     true},
    {"HTTP/1.1 200 OK\r\nConnection: upgrade\r\nUpgrade: h2c\r\nContent-Length: 2\r\n\r\nok",
     "200 connection=upgrade;upgrade=h2c;content-length=2;ok+", false},
    // refused, whatever came before
    {"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n", "!-15", false},
    {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", "!-15",
     false},
    {"HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\nok", "!-15", false},
    {"HTTP/1.1 200 OK\r\nA: b\rContent-Length: 2\r\n\r\nok", "!-15", false},
    {"HTTP/1.1 101 Switching\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", "!-15", false},
    {"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "!-15", false},
    {"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok", "!-15", false},
    {"HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nok", "!-15", false},
    {"HTTP/1.1 200 OK\r\nContent-Length: 2 \x0b\r\n\r\nok", "!-15", false},
    {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, identity\r\n\r\n", "!-15", false},
    {"HTTP/1.1 200 OK\r\nTransfer-Encoding: xchunked\r\n\r\n", "!-15", false},
    {"HTTP/1.1 200 OK\nContent-Length: 2\n\nok", "!-15", false},
    {"HTTP/1.1 200 OK\r\nA: b\n\r\n", "!-15", false},
    {"HTTP/1.1 200 OK\r\nA: b\r\n folded\r\n\r\n", "!-15", false},
    {"HTTP/2 200 OK\r\n\r\n", "!-15", false},
    {"HTTP/1.1 99 No\r\n\r\n", "!-15", false},
    {"\r\nHTTP/1.1 200 OK\r\n\r\n", "!-15", false},
    {" HTTP/1.1 200 OK\r\n\r\n", "!-15", false},
    {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n-1\r\n",
     "200 transfer-encoding=chunked;abc!-15", false},
    {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\nabc\r\n0\r\n\r\n",
     "200 transfer-encoding=chunked;!-15", false},
    {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcde\r\n",
     "200 transfer-encoding=chunked;abc!-15", false},
    {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n11111111111111111\r\n",
     "200 transfer-encoding=chunked;!-15", false},
    {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n 3\r\nabc\r\n0\r\n\r\n",
     "200 transfer-encoding=chunked;!-15", false},
    // cut
    {"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhell", "200 content-length=5;hell!-12", false},
    {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
     "200 transfer-encoding=chunked;abc!-12", false},
    {"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n", "!-12", false},
    {"", "!-12", false},
};

START_TEST(every_split_reads_the_same)
{
    struct slice answer = slice_str(answers[_i].answer);
    for (size_t first = 0; first <= answer.len; first++) {
        for (size_t second = first; second <= answer.len; second++) {
            struct buf seen;
            read_pieces(&seen, answer, answers[_i].is_head, first, second, true);
            ck_assert_msg(slice_is(buf_slice(&seen), answers[_i].seen), "%d at %zu %zu: %.*s", _i,
                          first, second, SLICE_FMT(buf_slice(&seen)));
            buf_free(&seen);
        }
    }
}
END_TEST

START_TEST(chunks_of_one_read_are_one_piece)
{
    char text[4096] = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    char expected[2048] = "";
    for (int i = 0; i < 50; i++) {
        char event[32];
        snprintf(event, sizeof event, "data: %d\n\n", i);
        snprintf(text + strlen(text), sizeof text - strlen(text), "%zx\r\n%s\r\n", strlen(event),
                 event);
        strcat(expected, event);
    }
    struct result result;
    struct fetch_request request = kit_get("/");
    kit_start(&result, &request);
    struct peer *peer = kit_accept();
    kit_request(peer);
    kit_say(peer, text);
    KIT_UNTIL(result.body.len == strlen(expected));
    ck_assert_int_eq(result.bodies, 1);
    ck_assert(kit_body_is(&result, expected));
    kit_say(peer, "0\r\n\r\n");
    KIT_UNTIL(result.dones);
    ck_assert_int_eq(result.err, 0);
    kit_end(&result);
    kit_close(peer);
}
END_TEST

START_TEST(limits_of_framing)
{
    // Endless extensions, zeros, trailers and tiny chunks with large extensions end in an error.
    static const char *const endless[] = {";aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
                                          "00000000000000000000",
                                          "1;aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\nx\r\n",
                                          "Trailer: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n"};
    static const char *const begins[] = {"1", "", "", "0\r\n"};
    struct reading reading = {.arena = arena_new(4096)};
    fetch_head_init(&reading.head, 0);
    h1_answer_start(&reading.answer, false, 65536, on_line, &reading);
    const char *head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    read_piece(&reading, head, strlen(head));
    read_piece(&reading, begins[_i], strlen(begins[_i]));
    size_t total = 0;
    while (reading.answer.state == H1_ANSWER_BODY && total < 4 * 1024 * 1024) {
        read_piece(&reading, endless[_i], strlen(endless[_i]));
        total += strlen(endless[_i]);
    }
    ck_assert_int_eq(reading.answer.state, H1_ANSWER_FAILED);
    ck_assert_uint_lt(total, 200 * 1024);
    h1_answer_free(&reading.answer);
    buf_free(&reading.seen);
    arena_free(reading.arena);
}
END_TEST

// ---- connections

START_TEST(thousand_idle_closes_leave_nothing)
{
    enum { COUNT = 1000 };
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    ck_assert_uint_gt(limit.rlim_cur, 2 * COUNT + 100);
    static struct result results[COUNT];
    static int peers[COUNT];
    static const char answer[] = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    struct fetch_request request = kit_get("/");
    int fds = kit_count_fds();
    // In steps, so that the kernel's queue of new connections suffices.
    for (int i = 0; i < COUNT; i += 100) {
        for (int k = i; k < i + 100; k++)
            kit_start(&results[k], &request);
        for (int k = i; k < i + 100; k++) {
            KIT_UNTIL(kit_readable(kit_listener));
            peers[k] = accept4(kit_listener, NULL, NULL, SOCK_CLOEXEC);
            ck_assert_int_ge(peers[k], 0);
        }
    }
    for (int i = 0; i < COUNT; i++) {
        char bytes[1024];
        KIT_UNTIL(kit_readable(peers[i]));
        ck_assert_int_gt(recv(peers[i], bytes, sizeof bytes, 0), 0);
        ck_assert_int_eq(send(peers[i], answer, sizeof answer - 1, 0), sizeof answer - 1);
    }
    for (int i = 0; i < COUNT; i++) {
        KIT_UNTIL(results[i].dones);
        ck_assert_int_eq(results[i].err, 0);
        kit_end(&results[i]);
    }
    ck_assert_uint_eq(fetcher_counters(kit_fetcher)->idle_connections, COUNT);
    for (int i = 0; i < COUNT; i++)
        close(peers[i]);
    KIT_UNTIL(fetcher_counters(kit_fetcher)->idle_connections == 0);
    kit_turns(2);
    ck_assert_int_eq(kit_count_fds(), fds);
    ck_assert(!loop_turn(kit_loop));
    kit_close(kit_warm());
}
END_TEST

START_TEST(paused_takes_no_turns)
{
    struct result result;
    struct fetch_request request = kit_get("/");
    kit_start(&result, &request);
    struct peer *peer = kit_accept();
    kit_request(peer);
    result.pause_all = true;
    kit_say(peer, "HTTP/1.1 200 OK\r\n\r\nfirst");
    KIT_UNTIL(result.is_paused);
    kit_say(peer, "second, unread");
    shutdown(peer->fd, SHUT_WR);
    // Nothing wakes the loop's descriptor while bytes and the end wait in the socket.
    kit_turns(2);
    for (int i = 0; i < 20; i++) {
        struct pollfd ready = {.fd = uv_backend_fd(loop_uv(kit_loop)), .events = POLLIN};
        ck_assert_int_eq(poll(&ready, 1, 1), 0);
        ck_assert(!loop_turn(kit_loop));
    }
    result.pause_all = false;
    fetch_resume(result.fetch);
    KIT_UNTIL(result.dones);
    ck_assert_int_eq(result.err, 0);
    ck_assert(kit_body_is(&result, "firstsecond, unread"));
    kit_end(&result);
    kit_close(peer);
}
END_TEST

START_TEST(no_descriptor_is_an_error)
{
    struct rlimit limit, low;
    getrlimit(RLIMIT_NOFILE, &limit);
    struct result result;
    struct fetch_request request = kit_get("/");
    low = limit;
    low.rlim_cur = 3;
    setrlimit(RLIMIT_NOFILE, &low);
    kit_start(&result, &request);
    for (int i = 0; i < 100 && !result.dones; i++)
        kit_turn();
    setrlimit(RLIMIT_NOFILE, &limit);
    ck_assert_int_eq(result.dones, 1);
    ck_assert_int_eq(result.err, GW_EIO);
    ck_assert_str_eq(result.info.detail, "no socket: Too many open files");
    ck_assert(!loop_turn(kit_loop));

    // An idle connection gives its descriptor to one that is needed.
    struct peer *idle = kit_warm();
    char url[64];
    snprintf(url, sizeof url, "http://127.0.0.1:%u/", kit_port);
    request.url = slice_str(url);
    int fillers[256], filled = 0;
    low.rlim_cur = 256;
    setrlimit(RLIMIT_NOFILE, &low);
    while ((fillers[filled] = dup(kit_listener)) >= 0)
        filled++;
    kit_start(&result, &request);
    KIT_UNTIL(fetcher_counters(kit_fetcher)->idle_connections == 0);
    setrlimit(RLIMIT_NOFILE, &limit);
    while (filled > 0)
        close(fillers[--filled]);
    struct peer *peer = kit_accept();
    kit_request(peer);
    kit_say(peer, "HTTP/1.1 204 No\r\n\r\n");
    KIT_UNTIL(result.dones);
    ck_assert_int_eq(result.err, 0);
    KIT_UNTIL(kit_at_end(idle));
    kit_close(idle);
    kit_close(peer);
}
END_TEST

START_TEST(second_address_after_the_first)
{
    // 127.0.0.2 refuses, 127.0.0.1 answers: both come from one look-up.
    kit_address = "127.0.0.2 127.0.0.1";
    struct result result;
    struct fetch_request request = kit_get("/");
    kit_start(&result, &request);
    struct peer *peer = kit_accept();
    kit_request(peer);
    kit_say(peer, "HTTP/1.1 204 No\r\n\r\n");
    KIT_UNTIL(result.dones);
    ck_assert_int_eq(result.err, 0);
    kit_close(peer);
}
END_TEST

START_TEST(second_address_while_the_first_hangs)
{
    // The first address's queue is full: it says nothing. A second later the other one is tried.
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(kit_port)};
    inet_pton(AF_INET, "127.0.0.2", &address.sin_addr);
    int mute = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), fillers[8];
    ck_assert_int_eq(bind(mute, (struct sockaddr *)&address, sizeof address), 0);
    ck_assert_int_eq(listen(mute, 0), 0);
    for (int i = 0; i < 8; i++) {
        fillers[i] = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        connect(fillers[i], (struct sockaddr *)&address, sizeof address);
    }
    kit_address = "127.0.0.2 127.0.0.1";
    struct result result;
    struct fetch_request request = kit_get("/");
    request.timers.connect_ms = 5000;
    kit_start(&result, &request);
    kit_turns(5);
    ck_assert(!kit_readable(kit_listener));
    kit_skip_ms(1100);
    struct peer *peer = kit_accept();
    kit_request(peer);
    kit_say(peer, "HTTP/1.1 204 No\r\n\r\n");
    KIT_UNTIL(result.dones);
    ck_assert_int_eq(result.err, 0);
    kit_close(peer);
    for (int i = 0; i < 8; i++)
        close(fillers[i]);
    close(mute);
}
END_TEST

START_TEST(early_answer_to_a_body_that_is_not_read)
{
    // The upstream answers and never reads the megabytes: the answer comes through, once.
    static char bytes[8 * 1024 * 1024];
    struct slice body = slice_of(bytes, sizeof bytes);
    struct result result;
    struct fetch_request request = kit_post("/", &body, 1);
    kit_start(&result, &request);
    struct peer *peer = kit_accept();
    kit_turns(5);
    kit_say(peer, "HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno");
    KIT_UNTIL(result.dones);
    ck_assert_int_eq(result.err, 0);
    ck_assert_int_eq(result.status, 413);
    ck_assert(kit_body_is(&result, "no"));
    ck_assert_uint_lt(result.info.bytes_sent, sizeof bytes);
    ck_assert_uint_eq(fetcher_counters(kit_fetcher)->idle_connections, 0);
    kit_end(&result);
    kit_close(peer);
}
END_TEST

START_TEST(idle_connections_close_after_a_minute)
{
    struct peer *peer = kit_warm();
    kit_skip_ms(59000);
    kit_turns(2);
    ck_assert_uint_eq(fetcher_counters(kit_fetcher)->idle_connections, 1);
    kit_exchange(peer); // rested, still good, and young again
    kit_skip_ms(59000);
    kit_turns(2);
    ck_assert_uint_eq(fetcher_counters(kit_fetcher)->idle_connections, 1);
    for (int i = 0; i < 3; i++) {
        kit_skip_ms(10001);
        kit_turns(2);
    }
    ck_assert_uint_eq(fetcher_counters(kit_fetcher)->idle_connections, 0);
    KIT_UNTIL(kit_at_end(peer));
    kit_close(peer);
}
END_TEST

START_TEST(one_turn_reads_no_more_than_its_share)
{
    struct result result;
    struct fetch_request request = kit_get("/");
    kit_start(&result, &request);
    struct peer *peer = kit_accept();
    kit_request(peer);
    kit_say(peer, "HTTP/1.1 200 OK\r\n\r\n.");
    KIT_UNTIL(result.body.len == 1);
    static char block[65536];
    size_t sent = 1;
    for (int stalls = 0; stalls < 10;) {
        ssize_t wrote = send(peer->fd, block, sizeof block, MSG_DONTWAIT);
        if (wrote > 0)
            sent += (size_t)wrote;
        else
            stalls++;
    }
    ck_assert_uint_gt(sent, 1024 * 1024);
    size_t before = 1;
    for (int turns = 0; result.body.len < sent && turns < 1000; turns++) {
        loop_turn(kit_loop);
        ck_assert_uint_le(result.body.len - before, 256 * 1024 + 64 * 1024);
        before = result.body.len;
    }
    ck_assert_uint_eq(result.body.len, sent);
    fetch_cancel(result.fetch);
    kit_turn();
    kit_end(&result);
    kit_close(peer);
}
END_TEST

START_TEST(early_answer_outlives_the_idle_timer)
{
    // The answer is whole; how long the caller goes on writing is its own affair.
    struct result result;
    struct fetch_request request = kit_post("/", NULL, 0);
    request.is_streamed = true;
    request.body_length = -1;
    request.timers.idle_ms = 1000;
    kit_start(&result, &request);
    struct peer *peer = kit_accept();
    KIT_UNTIL(kit_take(peer) && peer->len > 0);
    kit_say(peer, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    KIT_UNTIL(result.body.len == 2);
    kit_skip_ms(5000);
    kit_turns(3);
    ck_assert_int_eq(result.dones, 0);
    ck_assert_int_eq(fetch_write(result.fetch, SLICE_LIT("late")), 0);
    fetch_write_end(result.fetch);
    KIT_UNTIL(result.dones);
    ck_assert_int_eq(result.err, 0);
    kit_end(&result);
    kit_close(peer);
}
END_TEST

START_TEST(early_head_of_a_slow_upload)
{
    // The head comes first, the client takes its time: an upstream that waits for it is not idle.
    struct result result;
    struct fetch_request request = kit_post("/", NULL, 0);
    request.is_streamed = true;
    request.body_length = -1;
    request.timers.idle_ms = 1000;
    kit_start(&result, &request);
    struct peer *peer = kit_accept();
    KIT_UNTIL(kit_take(peer) && peer->len > 0);
    kit_say(peer, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n");
    KIT_UNTIL(result.heads);
    for (int i = 0; i < 5; i++) {
        kit_skip_ms(i % 2 ? 700 : 3000);
        kit_turns(3);
        ck_assert_int_eq(result.dones, 0);
        ck_assert_int_eq(fetch_write(result.fetch, SLICE_LIT("more")), 0);
        kit_turns(3);
    }
    fetch_write_end(result.fetch);
    kit_turns(3);
    kit_skip_ms(700);
    kit_turns(3);
    ck_assert_int_eq(result.dones, 0);
    kit_skip_ms(400); // now it is
    KIT_UNTIL(result.dones);
    ck_assert_int_eq(result.err, GW_ETIMEOUT);
    kit_close(peer);
}
END_TEST

static struct {
    struct loop_task task;
    struct peer *peer;
    struct result result;
    struct fetch_request request;
} unseen;

static void reset_and_start(struct loop_task *task)
{
    (void)task;
    kit_reset(unseen.peer);
    kit_start(&unseen.result, &unseen.request);
}

START_TEST(nothing_sent_is_told)
{
    // Reset after the loop last looked and before the first byte: the upstream saw nothing.
    unseen.peer = kit_warm();
    kit_exchange(unseen.peer);
    struct slice body = SLICE_LIT("pay");
    unseen.request = kit_post("/pay", &body, 1);
    loop_task_init(&unseen.task, reset_and_start);
    loop_defer(kit_loop, &unseen.task);
    KIT_UNTIL(unseen.result.dones);
    ck_assert_int_eq(unseen.result.err, GW_ERESET);
    ck_assert(unseen.result.info.is_reused);
    ck_assert_uint_eq(unseen.result.info.bytes_sent, 0);
    ck_assert(!unseen.result.info.sent_any);
    kit_close(unseen.peer);
}
END_TEST

static void add_tests(TCase *tcase)
{
    tcase_add_loop_test(tcase, every_split_reads_the_same, 0,
                        (int)(sizeof answers / sizeof answers[0]));
    tcase_add_test(tcase, chunks_of_one_read_are_one_piece);
    tcase_add_loop_test(tcase, limits_of_framing, 0, 4);
    tcase_add_test(tcase, thousand_idle_closes_leave_nothing);
    tcase_add_test(tcase, paused_takes_no_turns);
    tcase_add_test(tcase, no_descriptor_is_an_error);
    tcase_add_test(tcase, second_address_after_the_first);
    tcase_add_test(tcase, second_address_while_the_first_hangs);
    tcase_add_test(tcase, early_answer_to_a_body_that_is_not_read);
    tcase_add_test(tcase, idle_connections_close_after_a_minute);
    tcase_add_test(tcase, one_turn_reads_no_more_than_its_share);
    tcase_add_test(tcase, early_answer_outlives_the_idle_timer);
    tcase_add_test(tcase, early_head_of_a_slow_upload);
    tcase_add_test(tcase, nothing_sent_is_told);
}

int main(void)
{
    return kit_main("fetch_http1", add_tests, KIT_HTTP1_ONLY);
}
