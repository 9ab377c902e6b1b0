// What is particular to TLS on a client's connection: the handshake's time and share of a turn,
// plain HTTP on the port, close_notify, cuts, ciphertext in the queue, every split of an exchange.
// Everything else is in test_http1*.c, which run over TLS too.
#include "http1_rig.h"

#include "io/http1_internal.h"

#include <dirent.h>

#define H "Host: a\r\n"
#define GET "GET /g HTTP/1.1\r\n" H "\r\n"
#define POST "POST /p HTTP/1.1\r\n" H

static void statuses(struct rig *rig, int fd, const char *expected)
{
    struct buf got = BUF_INIT(0);
    char seen[256];
    bool is_closed = rig_recv(rig, fd, &got);
    rig_statuses(buf_slice(&got), false, seen, sizeof seen - 1, NULL);
    if (is_closed)
        strcat(seen, "x");
    ck_assert_str_eq(seen, expected);
    buf_free(&got);
}

static struct slice ciphertext_of(struct rig *rig, int fd, struct slice plain)
{
    struct rig_peer *peer = rig->peers[fd];
    ck_assert_int_eq(tls_pipe_write(peer->pipe, plain, &peer->out), 0);
    return buf_slice(&peer->out);
}

START_TEST(the_request_knows)
{
    struct rig *rig = rig_new(RIG_MANUAL);
    int fd = rig_connect(rig);
    rig_send_text(rig, fd, GET);
    ck_assert(http1_request(rig->streams[0].stream)->is_tls);
    rig_answer(&rig->streams[0]);
    rig_turn(rig);
    statuses(rig, fd, "200");
    ck_assert_uint_eq(http1_server_counters(rig->server)->tls_handshakes, 1);
    close(fd);
    // Another tag has no TLS.
    int pair[2];
    ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair), 0);
    ck_assert_int_eq(http1_accept_fd(rig->server, pair[0], true, "", RIG_TAG + 1), 0);
    rig_forget_peer(rig, pair[1]);
    rig_send_text(rig, pair[1], GET);
    ck_assert(!http1_request(rig->streams[1].stream)->is_tls);
    close(pair[1]);
    rig_free(rig);
}
END_TEST

// The whole ciphertext of a connection, hello to goodbye, in two pieces cut anywhere, and by ones.
START_TEST(every_split_of_an_exchange)
{
    struct rig *rig = rig_new(RIG_ECHO);
    static const char request[] = POST "Content-Length: 5\r\n\r\nhello" GET;
    size_t longest = 2;
    for (size_t cut = 0; cut < longest; cut++) {
        rig_reset(rig);
        int fd = rig_connect_raw(rig);
        struct rig_peer *peer = rig_peer_new(rig, fd);
        struct buf none = BUF_INIT(0);
        size_t flown = 0; // of this client's bytes
        ck_assert_int_eq(tls_pipe_start(peer->pipe, &peer->out), 0);
        for (int flight = 0; flight < 3; flight++) {
            if (flight == 2) // behind the client's last message of the handshake
                (void)ciphertext_of(rig, fd, slice_str(request));
            struct slice all = buf_slice(&peer->out);
            size_t first = cut >= flown && cut - flown < all.len ? cut - flown : all.len;
            for (size_t at = 0; cut == 0 && at < all.len; at++) // by ones
                ck_assert_uint_eq(rig_send_raw(rig, fd, slice_of(all.ptr + at, 1)), 1);
            if (cut != 0) {
                ck_assert_uint_eq(rig_send_raw(rig, fd, slice_of(all.ptr, first)), first);
                ck_assert_uint_eq(rig_send_raw(rig, fd, slice_from(all, first)), all.len - first);
            }
            flown += all.len;
            buf_clear(&peer->out);
            if (flight < 2)
                ck_assert(!rig_recv(rig, fd, &none));
        }
        if (flown > longest)
            longest = flown;
        ck_assert_uint_eq(none.len, 0);
        statuses(rig, fd, "200 200");
        ck_assert_int_eq(rig->stream_count, 2);
        ck_assert_uint_eq(rig->streams[0].body_len, 5);
        tls_pipe_close(peer->pipe, &peer->out);
        ck_assert(rig_send_records(rig, fd));
        ck_assert(rig_recv(rig, fd, &none));
        ck_assert(tls_pipe_is_closed(peer->pipe)); // the goodbye came back
        close(fd);
        rig_turn(rig);
        ck_assert_uint_eq(http1_server_counters(rig->server)->open, 0);
        buf_free(&none);
    }
    ck_assert_uint_gt(longest, 400);
    rig_free(rig);
}
END_TEST

START_TEST(ends_are_said)
{
    struct rig *rig = rig_new(RIG_ECHO);
    struct buf got = BUF_INIT(0);
    // Connection: close, the idle timer, the drain: a goodbye each time.
    for (int i = 0; i < 3; i++) {
        int fd = rig_connect(rig);
        rig_send_text(rig, fd, i ? GET : "GET / HTTP/1.1\r\n" H "Connection: close\r\n\r\n");
        if (i == 1)
            rig_pass(rig, 76000);
        if (i == 2) {
            http1_server_drain(rig->server);
            rig_pass(rig, 5000);
        }
        ck_assert(rig_recv(rig, fd, &got));
        ck_assert_msg(tls_pipe_is_closed(rig->peers[fd]->pipe), "case %d", i);
        close(fd);
    }
    rig_free(rig);
    // A cut answer has none, whatever its framing.
    rig = rig_new(RIG_MANUAL);
    static const char *const requests[] = {GET, "GET / HTTP/1.0\r\n\r\n"};
    for (int i = 0; i < 4; i++) {
        int fd = rig_connect(rig);
        rig_send_text(rig, fd, requests[i % 2]);
        struct http1_stream *stream = rig->streams[i].stream;
        ck_assert_int_eq(http1_respond_head(stream, 200, NULL, 0, i < 2 ? -1 : 100), 0);
        ck_assert_int_eq(http1_write(stream, SLICE_LIT("part")), 0);
        rig_turn(rig);
        http1_abort(stream, "upstream cut");
        rig_turn(rig);
        (void)rig_recv(rig, fd, &got);
        ck_assert(!tls_pipe_is_closed(rig->peers[fd]->pipe));
        close(fd);
    }
    buf_free(&got);
    rig_free(rig);
}
END_TEST

START_TEST(the_peer_says_goodbye)
{
    struct rig *rig = rig_new(RIG_MANUAL);
    // Idle: we answer in kind.
    int fd = rig_connect(rig);
    struct buf got = BUF_INIT(0);
    tls_pipe_close(rig->peers[fd]->pipe, &rig->peers[fd]->out);
    ck_assert(rig_send_records(rig, fd));
    ck_assert(rig_recv(rig, fd, &got));
    ck_assert(tls_pipe_is_closed(rig->peers[fd]->pipe));
    close(fd);
    rig_turn(rig);
    ck_assert_uint_eq(http1_server_counters(rig->server)->open, 0);
    // While its answer is made: it is gone.
    fd = rig_connect(rig);
    rig_send_text(rig, fd, GET);
    tls_pipe_close(rig->peers[fd]->pipe, &rig->peers[fd]->out);
    ck_assert(rig_send_records(rig, fd));
    ck_assert_int_eq(rig->streams[0].closes, 1);
    ck_assert_int_eq(rig->streams[0].err, GW_ERESET);
    close(fd);
    rig_turn(rig);
    // Together with requests that are answered at once: they are.
    rig->mode = RIG_AT_ONCE;
    rig_reset(rig);
    fd = rig_connect(rig);
    (void)ciphertext_of(rig, fd, SLICE_LIT(GET GET));
    tls_pipe_close(rig->peers[fd]->pipe, &rig->peers[fd]->out);
    ck_assert(rig_send_records(rig, fd));
    statuses(rig, fd, "200 200x");
    close(fd);
    buf_free(&got);
    rig_free(rig);
}
END_TEST

START_TEST(slow_handshakes_are_cut)
{
    struct rig *rig = rig_new(RIG_ECHO);
    // Nothing, half a hello, and a hello without the rest: 10 s from accept for all.
    for (int i = 0; i < 3; i++) {
        int fd = rig_connect_raw(rig);
        struct rig_peer *peer = rig_peer_new(rig, fd);
        ck_assert_int_eq(tls_pipe_start(peer->pipe, &peer->out), 0);
        if (i == 1)
            buf_truncate(&peer->out, peer->out.len / 2);
        if (i > 0)
            ck_assert(rig_send_records(rig, fd));
        struct http1_conn *conn = list_entry(rig->server->conns.next, struct http1_conn, node);
        ck_assert((conn->tls != NULL) == (i > 0)); // silence costs nothing
        rig_pass(rig, 9000);
        ck_assert_uint_eq(http1_server_counters(rig->server)->open, 1);
        rig_pass(rig, 1001);
        ck_assert_uint_eq(http1_server_counters(rig->server)->open, 0);
        close(fd);
    }
    ck_assert_uint_eq(http1_server_counters(rig->server)->timeouts, 3);
    // After it the first request has the time any has.
    int fd = rig_connect(rig);
    rig_pass(rig, 60000);
    rig_send_text(rig, fd, GET);
    statuses(rig, fd, "200");
    close(fd);
    rig_free(rig);
}
END_TEST

static void expect_raw(struct rig *rig, const char *bytes, size_t len, struct buf *got)
{
    int fd = rig_connect_raw(rig);
    buf_clear(got);
    (void)rig_send_raw(rig, fd, slice_of(bytes, len));
    ck_assert(rig_recv(rig, fd, got)); // raw: there is no client's pipe
    close(fd);
    rig_turn(rig);
    ck_assert_uint_eq(http1_server_counters(rig->server)->open, 0);
}

START_TEST(what_is_no_tls)
{
    struct rig *rig = rig_new(RIG_ECHO);
    struct buf got = BUF_INIT(0), bodies = BUF_INIT(0);
    char seen[64];
    static const char *const plain[] = {GET, POST "Content-Length: 100000\r\n\r\nabc",
                                        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "G"};
    for (size_t i = 0; i < 4; i++) {
        buf_clear(&bodies);
        expect_raw(rig, plain[i], strlen(plain[i]), &got);
        rig_statuses(buf_slice(&got), false, seen, sizeof seen, &bodies);
        ck_assert_str_eq(seen, "400");
        ck_assert(slice_is(buf_slice(&bodies), "this port speaks HTTPS; use an https URL|"));
    }
    static const char junk[] = "\x16\x03\x01\x00\x05hello", nothing[32] = {0};
    expect_raw(rig, junk, sizeof junk - 1, &got);
    ck_assert_msg(got.len == 7 && buf_slice(&got).ptr[0] == 0x15, "an alert");
    expect_raw(rig, nothing, sizeof nothing, &got);
    ck_assert_uint_le(got.len, 7);
    ck_assert_int_eq(rig->stream_count, 0);
    ck_assert_uint_eq(http1_server_counters(rig->server)->tls_failures, 6);
    buf_free(&got);
    buf_free(&bodies);
    rig_free(rig);
}
END_TEST

START_TEST(broken_records)
{
    struct rig *rig = rig_new(RIG_MANUAL);
    // Idle, in a head, in a body, while the answer is made: the connection ends, once each.
    static const char *const before[] = {NULL, "GET / HT", POST "Content-Length: 9\r\n\r\nabc",
                                         GET};
    for (int i = 0; i < 4; i++) {
        rig_reset(rig);
        int fd = rig_connect(rig);
        if (before[i])
            rig_send_text(rig, fd, before[i]);
        struct slice record = ciphertext_of(rig, fd, SLICE_LIT("more"));
        ((char *)record.ptr)[7] ^= 1;
        (void)rig_send_raw(rig, fd, record);
        ck_assert_int_eq(rig->stream_count, i > 1);
        if (i > 1) {
            ck_assert_int_eq(rig->streams[0].closes, 1);
            ck_assert_int_eq(rig->streams[0].err, GW_ERESET);
        }
        close(fd);
        rig_turn(rig);
        ck_assert_uint_eq(http1_server_counters(rig->server)->open, 0);
    }
    rig_free(rig);
}
END_TEST

START_TEST(refused_with_an_alert)
{
    struct http1_limits limits;
    http1_limits_default(&limits);
    limits.max_connections = 0;
    struct rig *rig = rig_new_with(&limits, NULL);
    int pair[2];
    char bytes[64];
    ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair), 0);
    ck_assert_int_eq(http1_accept_fd(rig->server, pair[0], false, "::1", RIG_TAG), GW_EFULL);
    ck_assert_int_eq((int)recv(pair[1], bytes, sizeof bytes, 0), 7);
    ck_assert_int_eq(bytes[0], 0x15);
    close(pair[1]);
    rig_free(rig);
}
END_TEST

START_TEST(handshakes_share_a_turn)
{
    struct rig *rig = rig_new(RIG_ECHO);
    int fds[40], busy = rig_connect(rig);
    for (int i = 0; i < 40; i++) {
        fds[i] = rig_connect_raw(rig);
        struct rig_peer *peer = rig_peer_new(rig, fds[i]);
        ck_assert_int_eq(tls_pipe_start(peer->pipe, &peer->out), 0);
    }
    for (int i = 0; i < 40; i++) {
        struct buf *out = &rig->peers[fds[i]]->out;
        ck_assert_int_eq((int)send(fds[i], out->mem + out->off, out->len, 0), (int)out->len);
        buf_clear(out);
    }
    rig_push(rig, busy, SLICE_LIT(GET));
    (void)loop_turn(rig->loop);
    int begun = 0;
    struct list *node;
    list_each(node, &rig->server->conns)
    {
        begun += list_entry(node, struct http1_conn, node)->tls != NULL;
    }
    ck_assert_int_gt(begun, 1);
    ck_assert_int_le(begun, 1 + 8);
    ck_assert_int_eq(rig->stream_count, 1); // who is past the handshake does not wait
    rig_turn(rig);
    struct buf none = BUF_INIT(0);
    for (int round = 0; round < 3; round++)
        for (int i = 0; i < 40; i++) {
            ck_assert(!rig_recv(rig, fds[i], &none));
            ck_assert(rig_send_records(rig, fds[i]));
        }
    ck_assert_uint_eq(http1_server_counters(rig->server)->tls_handshakes, 41);
    for (int i = 0; i < 40; i++)
        close(fds[i]);
    close(busy);
    buf_free(&none);
    rig_free(rig);
}
END_TEST

START_TEST(ciphertext_counts_in_the_queue)
{
    struct rig *rig = rig_new(RIG_MANUAL);
    rig->server->limits.high_water_bytes = 256 * 1024; // more than is sealed ahead
    int fd = rig_connect(rig);
    struct buf got = BUF_INIT(0);
    static char piece[20000];
    memset(piece, 'p', sizeof piece);
    rig_send_text(rig, fd, GET);
    struct http1_stream *stream = rig->streams[0].stream;
    ck_assert_int_eq(http1_respond_head(stream, 200, NULL, 0, -1), 0);
    struct http1_conn *conn = stream->conn;
    while (!http1_is_above_high_water(stream)) {
        ck_assert_int_eq(http1_write(stream, slice_of(piece, sizeof piece)), 0);
        rig_turn(rig);
        ck_assert_uint_eq(http1_queued(stream), conn->out.len + conn->sealed.len);
        ck_assert_uint_le(conn->sealed.len, 140000); // sealed only a little ahead of the socket
    }
    ck_assert_uint_gt(conn->sealed.len, 0);
    ck_assert_uint_gt(conn->out.len, conn->sealed.len / 4);
    http1_end(stream);
    while (!rig->streams[0].closes)
        ck_assert(!rig_recv(rig, fd, &got));
    ck_assert_ptr_null(conn->sealed.mem);
    ck_assert_ptr_null(conn->out.mem);
    close(fd);
    buf_free(&got);
    rig_free(rig);
}
END_TEST

static int open_descriptors(void)
{
    int count = 0;
    DIR *dir = opendir("/proc/self/fd");
    ck_assert_ptr_nonnull(dir);
    while (readdir(dir))
        count++;
    closedir(dir);
    return count;
}

START_TEST(ten_thousand_aborted_handshakes)
{
    struct rig *rig = rig_new(RIG_ECHO);
    int before = open_descriptors();
    int total = 10000;
    for (int i = 0; i < total; i++) {
        int fd = rig_connect_raw(rig);
        struct rig_peer *peer = rig_peer_new(rig, fd);
        ck_assert_int_eq(tls_pipe_start(peer->pipe, &peer->out), 0);
        // Cut in the hello; every tenth waits for the answer and leaves then.
        size_t len = i % 10 ? (size_t)i % (peer->out.len + 1) : peer->out.len;
        if (len)
            (void)!send(fd, peer->out.mem + peer->out.off, len, MSG_NOSIGNAL);
        if (i % 10 == 0 || i % 3)
            rig_turn(rig);
        rig_forget_peer(rig, fd);
        close(fd);
        rig_turn(rig);
        ck_assert_uint_eq(http1_server_counters(rig->server)->open, 0);
    }
    ck_assert_int_eq(open_descriptors(), before);
    ck_assert_uint_eq(http1_server_counters(rig->server)->tls_handshakes, 0);
    rig_free(rig);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("http1_tls");
    TCase *tcase = tcase_create("tls");
    tcase_set_timeout(tcase, 240);
    tcase_add_unchecked_fixture(tcase, rig_use_tls, rig_use_plain);
    tcase_add_test(tcase, the_request_knows);
    tcase_add_test(tcase, every_split_of_an_exchange);
    tcase_add_test(tcase, ends_are_said);
    tcase_add_test(tcase, the_peer_says_goodbye);
    tcase_add_test(tcase, slow_handshakes_are_cut);
    tcase_add_test(tcase, what_is_no_tls);
    tcase_add_test(tcase, broken_records);
    tcase_add_test(tcase, refused_with_an_alert);
    tcase_add_test(tcase, handshakes_share_a_turn);
    tcase_add_test(tcase, ciphertext_counts_in_the_queue);
    tcase_add_test(tcase, ten_thousand_aborted_handshakes);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_set_fork_status(runner, CK_NOFORK);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? 1 : 0;
}
