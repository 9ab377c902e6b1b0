// What happens around requests: keep-alive, pipelining, 100-continue, early answers, lingering,
// back-pressure, disconnects, timers, drain, caps. Time is a number the tests move.
#include "http1_rig.h"

#include "io/http1_internal.h"

#define H "Host: a\r\n"
#define GET "GET /g HTTP/1.1\r\n" H "\r\n"
#define POST "POST /p HTTP/1.1\r\n" H

static struct slice wire(struct buf *got)
{
    return buf_slice(got);
}

// Reads what there is and compares the statuses; "x": closed.
static void expect(struct rig *rig, int fd, bool is_head, const char *expected,
                   const char *expected_bodies)
{
    struct buf got = BUF_INIT(0), bodies = BUF_INIT(0);
    char seen[1024];
    bool is_closed = rig_recv(rig, fd, &got);
    rig_statuses(wire(&got), is_head, seen, sizeof seen - 1, &bodies);
    if (is_closed)
        strcat(seen, "x");
    ck_assert_str_eq(seen, expected);
    if (expected_bodies)
        ck_assert_msg(slice_is(wire(&bodies), expected_bodies), "bodies: %.*s",
                      SLICE_FMT(wire(&bodies)));
    buf_free(&got);
    buf_free(&bodies);
}

static void expect_closed_stream(struct rig *rig, int which, int err, const char *reason)
{
    ck_assert_int_gt(rig->stream_count, which);
    ck_assert_int_eq(rig->streams[which].closes, 1);
    ck_assert_int_eq(rig->streams[which].err, err);
    ck_assert_str_eq(rig->streams[which].reason, reason);
}

static void hang_up(struct rig *rig, int fd)
{
    close(fd);
    rig_turn(rig);
}

static void fill(struct buf *buf, size_t len)
{
    char *at = buf_room(buf, len);
    ck_assert_ptr_nonnull(at);
    for (size_t i = 0; i < len; i++)
        at[i] = (char)('a' + i % 23);
    buf_grew(buf, len);
}

START_TEST(keep_alive)
{
    struct rig *rig = rig_new(RIG_ECHO);
    int fd = rig_connect(rig);
    for (int i = 0; i < 3; i++) {
        rig_send_text(rig, fd, GET);
        expect(rig, fd, false, "200", "GET /g 0|");
        rig_pass(rig, 70000); // less than the 75 s a connection may idle
    }
    expect_closed_stream(rig, 2, 0, "answered");
    rig_pass(rig, 6000);
    expect(rig, fd, false, "x", NULL);
    hang_up(rig, fd);
    rig_free(rig);
}
END_TEST

START_TEST(pipelining_of_100)
{
    struct buf all = BUF_INIT(0), expected = BUF_INIT(0);
    for (int i = 0; i < 100; i++) {
        ck_assert_int_eq(buf_append_str(&all, i % 2 ? GET : POST "Content-Length: 3\r\n\r\nabc"),
                         0);
        ck_assert_int_eq(buf_append_str(&expected, i % 2 ? "GET /g 0|" : "POST /p 3|"), 0);
    }
    ck_assert_int_eq(buf_append_char(&expected, '\0'), 0);
    char statuses[512] = "";
    for (int i = 0; i < 100; i++)
        strcat(statuses, i ? " 200" : "200");
    for (int mode = 0; mode < 2; mode++) {
        struct rig *rig = rig_new(mode ? RIG_ECHO : RIG_MANUAL);
        int fd = rig_connect(rig);
        ck_assert_uint_eq(rig_send(rig, fd, buf_slice(&all)), all.len);
        // By hand: the next request comes only when the answer before it is out.
        for (int i = 0; i < 100 && mode == 0; i++) {
            ck_assert_int_eq(rig->stream_count, i + 1);
            rig_answer(&rig->streams[i]);
            rig_turn(rig);
        }
        expect(rig, fd, false, statuses, expected.mem);
        hang_up(rig, fd);
        rig_free(rig);
    }
    buf_free(&all);
    buf_free(&expected);
}
END_TEST

START_TEST(pipelined_bytes_are_bounded)
{
    struct rig *rig = rig_new(RIG_MANUAL);
    int fd = rig_connect(rig);
    struct buf flood = BUF_INIT(0);
    for (int i = 0; i < 40000; i++)
        ck_assert_int_eq(buf_append_str(&flood, GET), 0);
    ck_assert_uint_lt(rig_send(rig, fd, buf_slice(&flood)), flood.len);
    ck_assert_int_eq(rig->stream_count, 1);
    ck_assert_uint_le(http1_server_counters(rig->server)->bytes_in, 3u * 65536u);
    // Not reading any more, the server still sees the client leave.
    hang_up(rig, fd);
    expect_closed_stream(rig, 0, GW_ERESET, "client disconnected");
    ck_assert_uint_eq(http1_server_counters(rig->server)->open, 0);
    buf_free(&flood);
    rig_free(rig);
}
END_TEST

START_TEST(expect_continue)
{
    struct rig *rig = rig_new(RIG_ECHO);
    int fd = rig_connect(rig);
    rig_send_text(rig, fd, POST "Expect: 100-continue\r\nContent-Length: 2\r\n\r\n");
    expect(rig, fd, false, "100", NULL);
    rig_send_text(rig, fd, "hi" GET);
    expect(rig, fd, false, "200 200", "POST /p 2|GET /g 0|");

    rig->mode = RIG_PAUSE;
    rig_send_text(rig, fd, POST "Expect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n");
    expect(rig, fd, false, "", NULL);
    http1_resume_body(rig->streams[2].stream);
    rig_turn(rig);
    expect(rig, fd, false, "100", NULL);
    rig_send_text(rig, fd, "2\r\nhi\r\n0\r\n\r\n");
    ck_assert_int_eq(rig->streams[2].completes, 1);
    rig_answer(&rig->streams[2]);
    rig_turn(rig);
    expect(rig, fd, false, "200", "POST /p 2|");

    // Refused before the body: no 100, and the connection cannot go on.
    rig->mode = RIG_FORBID;
    rig_send_text(rig, fd, POST "Expect: 100-continue\r\nContent-Length: 2\r\n\r\n");
    expect(rig, fd, false, "403x", "no|");
    hang_up(rig, fd);
    rig_free(rig);
}
END_TEST

START_TEST(head_and_bodyless)
{
    struct rig *rig = rig_new(RIG_ECHO);
    int fd = rig_connect(rig);
    rig_send_text(rig, fd, "HEAD /h HTTP/1.1\r\n" H "\r\nHEAD /h HTTP/1.1\r\n" H "\r\n");
    expect(rig, fd, true, "200 200", NULL);
    rig->mode = RIG_MANUAL;
    rig_send_text(rig, fd, "HEAD /h HTTP/1.1\r\n" H "\r\n");
    struct http1_stream *stream = rig->streams[2].stream;
    ck_assert_int_eq(http1_respond_head(stream, 200, NULL, 0, -1), 0);
    ck_assert(http1_head_sent(stream));
    ck_assert_int_eq(http1_write(stream, SLICE_LIT("swallowed")), 0);
    http1_end(stream);
    rig_turn(rig);
    expect(rig, fd, true, "200", NULL);
    static const int statuses[] = {204, 304};
    for (int i = 0; i < 2; i++) {
        rig_send_text(rig, fd, GET);
        ck_assert_int_eq(
            http1_respond(rig->streams[3 + i].stream, statuses[i], NULL, 0, SLICE_LIT("no")), 0);
        rig_turn(rig);
        expect(rig, fd, false, i ? "304" : "204", NULL);
    }
    hang_up(rig, fd);
    rig_free(rig);
}
END_TEST

START_TEST(answer_bytes)
{
    struct rig *rig = rig_new(RIG_MANUAL);
    int fd = rig_connect(rig);
    struct buf got = BUF_INIT(0);
    rig_send_text(rig, fd, GET);
    struct http1_stream *stream = rig->streams[0].stream;
    struct http1_header headers[] = {
        {SLICE_LIT("content-type"), SLICE_LIT("text/event-stream")},
        {SLICE_LIT("Content-Length"), SLICE_LIT("99")}, // the server's own: left out
        {SLICE_LIT("Connection"), SLICE_LIT("x")},
    };
    struct http1_header bad[] = {{SLICE_LIT("x"), SLICE_LIT("a\r\nb: c")},
                                 {SLICE_LIT("x y"), SLICE_LIT("a")},
                                 {SLICE_LIT("x"), SLICE_LIT("a\0b")},
                                 {SLICE_LIT(""), SLICE_LIT("a")}};
    for (size_t i = 0; i < 4; i++)
        ck_assert_int_eq(http1_respond_head(stream, 200, &bad[i], 1, -1), GW_EINVAL);
    ck_assert_int_eq(http1_respond_head(stream, 101, NULL, 0, -1), GW_EINVAL);
    ck_assert_int_eq(http1_write(stream, SLICE_LIT("early")), GW_EINVAL);
    ck_assert_int_eq(http1_respond_head(stream, 200, headers, 3, -1), 0);
    ck_assert_int_eq(http1_respond_head(stream, 200, NULL, 0, -1), GW_EINVAL);
    ck_assert_int_eq(http1_write(stream, SLICE_LIT("hello ")), 0);
    ck_assert_int_eq(http1_write(stream, SLICE_LIT("world, this")), 0);
    rig_turn(rig);
    ck_assert_int_eq(http1_write(stream, SLICE_LIT("x")), 0);
    rig_turn(rig);
    ck_assert_int_eq(http1_write(stream, SLICE_LIT("0123456789")), 0);
    ck_assert_int_eq(http1_write(stream, SLICE_LIT("")), 0);
    http1_end(stream);
    ck_assert_int_eq(http1_write(stream, SLICE_LIT("late")), GW_EINVAL);
    ck_assert_uint_eq(http1_body_bytes_sent(stream), 28);
    ck_assert_int_eq(rig->streams[0].closes, 0);
    rig_turn(rig);
    expect_closed_stream(rig, 0, 0, "answered");
    ck_assert(!rig_recv(rig, fd, &got));
    const char *expected = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
                           "transfer-encoding: chunked\r\n"
                           "date: Thu, 10 Sep 2026 00:26:40 GMT\r\n\r\n"
                           "11\r\nhello world, this\r\n1\r\nx\r\na\r\n0123456789\r\n0\r\n\r\n";
    ck_assert_msg(slice_is(wire(&got), expected), "%.*s", SLICE_FMT(wire(&got)));
    hang_up(rig, fd);
    buf_free(&got);
    rig_free(rig);
}
END_TEST

START_TEST(wrong_length)
{
    struct rig *rig = rig_new(RIG_MANUAL);
    int fd = rig_connect(rig);
    rig_send_text(rig, fd, GET);
    ck_assert_int_eq(http1_respond_head(rig->streams[0].stream, 200, NULL, 0, 10), 0);
    ck_assert_int_eq(http1_write(rig->streams[0].stream, SLICE_LIT("short")), 0);
    http1_end(rig->streams[0].stream);
    rig_turn(rig);
    expect(rig, fd, false, "200 cutx", "short");
    expect_closed_stream(rig, 0, GW_EINTERNAL, "answer shorter than its content-length");
    hang_up(rig, fd);

    fd = rig_connect(rig);
    rig_send_text(rig, fd, GET);
    ck_assert_int_eq(http1_respond_head(rig->streams[1].stream, 200, NULL, 0, 3), 0);
    ck_assert_int_eq(http1_write(rig->streams[1].stream, SLICE_LIT("long")), GW_EINVAL);
    rig_turn(rig);
    expect_closed_stream(rig, 1, GW_EINTERNAL, "answer longer than its content-length");
    hang_up(rig, fd);
    rig_free(rig);
}
END_TEST

START_TEST(http10_is_close_delimited)
{
    struct rig *rig = rig_new(RIG_MANUAL);
    int fd = rig_connect(rig);
    struct buf got = BUF_INIT(0);
    rig_send_text(rig, fd, "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    struct http1_stream *stream = rig->streams[0].stream;
    ck_assert(http1_request(stream)->is_http10);
    ck_assert_int_eq(http1_respond_head(stream, 200, NULL, 0, -1), 0);
    ck_assert_int_eq(http1_write(stream, SLICE_LIT("plain")), 0);
    http1_end(stream);
    rig_turn(rig);
    ck_assert(rig_recv(rig, fd, &got));
    ck_assert(slice_ends(wire(&got), "\r\n\r\nplain"));
    ck_assert_int_ge((int)slice_find(wire(&got), SLICE_LIT("connection: close\r\n")), 0);
    hang_up(rig, fd);
    // With a length the connection may stay.
    fd = rig_connect(rig);
    rig->mode = RIG_ECHO;
    buf_clear(&got);
    rig_send_text(rig, fd, "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    ck_assert(!rig_recv(rig, fd, &got));
    ck_assert_int_ge((int)slice_find(wire(&got), SLICE_LIT("connection: keep-alive\r\n")), 0);
    hang_up(rig, fd);
    buf_free(&got);
    rig_free(rig);
}
END_TEST

START_TEST(early_answers)
{
    struct rig *rig = rig_new(RIG_FORBID);
    struct buf body = BUF_INIT(0);
    fill(&body, 300000);
    // A small rest is skipped and the connection goes on, however the body arrives.
    int fd = rig_connect(rig);
    rig_send_text(rig, fd, POST "Content-Length: 5\r\n\r\nhello" GET);
    expect(rig, fd, false, "403 403", NULL);
    rig_send_text(rig, fd, POST "Content-Length: 5\r\n\r\n");
    expect(rig, fd, false, "403", NULL);
    expect_closed_stream(rig, 2, 0, "answered");
    rig_send_text(rig, fd, "he");
    rig_send_text(rig, fd, "llo" GET);
    expect(rig, fd, false, "403", NULL);
    for (int i = 0; i < rig->stream_count; i++)
        ck_assert_uint_eq(rig->streams[i].body_len, 0);
    hang_up(rig, fd);
    // A large one is not waited for; the client sends on and still reads the answer.
    rig_reset(rig);
    fd = rig_connect(rig);
    rig_send_text(rig, fd, POST "Content-Length: 200000\r\n\r\n");
    ck_assert_uint_eq(rig_send(rig, fd, slice_of(body.mem, 200000)), 200000);
    expect(rig, fd, false, "403x", "no|");
    expect_closed_stream(rig, 0, 0, "answered");
    ck_assert_uint_eq(http1_server_counters(rig->server)->open, 1); // lingers
    rig_pass(rig, 2001);
    ck_assert_uint_eq(http1_server_counters(rig->server)->open, 0);
    hang_up(rig, fd);
    buf_free(&body);
    rig_free(rig);
}
END_TEST

START_TEST(too_large_body_lingers)
{
    struct rig *rig = rig_new(RIG_LIMIT);
    struct buf body = BUF_INIT(0);
    fill(&body, 1000000);
    // By its length, and by its chunks: the client sends everything before it reads.
    for (int mode = 0; mode < 2; mode++) {
        int fd = rig_connect(rig);
        rig_reset(rig);
        rig_send_text(rig, fd,
                      mode ? POST "Transfer-Encoding: chunked\r\n\r\n186a0\r\n"
                           : POST "Content-Length: 100000\r\n\r\n");
        ck_assert_uint_eq(rig_send(rig, fd, slice_of(body.mem, 100000)), 100000);
        expect(rig, fd, false, "413x", NULL);
        expect_closed_stream(rig, 0, GW_ETOOBIG, "request body too large");
        ck_assert_int_eq(rig->streams[0].completes, 0);
        hang_up(rig, fd);
        ck_assert_uint_eq(http1_server_counters(rig->server)->open, 0);
    }
    // Not for ever: 256 KiB, then nothing is read any more, and after 2 s it is over.
    int fd = rig_connect(rig);
    uint64_t before = http1_server_counters(rig->server)->bytes_in;
    rig_send_text(rig, fd, POST "Content-Length: 1000000\r\n\r\n");
    ck_assert_uint_lt(rig_send(rig, fd, buf_slice(&body)), body.len);
    uint64_t taken = http1_server_counters(rig->server)->bytes_in - before;
    ck_assert_uint_le(taken, HTTP1_LINGER_BYTES + 2 * HTTP1_READ_BYTES);
    expect(rig, fd, false, "413x", NULL);
    rig_pass(rig, 2001);
    ck_assert_uint_eq(http1_server_counters(rig->server)->open, 0);
    hang_up(rig, fd);
    buf_free(&body);
    rig_free(rig);
}
END_TEST

START_TEST(limit_within_is_let_pass)
{
    struct rig *rig = rig_new(RIG_LIMIT);
    int fd = rig_connect(rig);
    rig_send_text(rig, fd, POST "Content-Length: 10\r\n\r\n0123456789");
    rig_send_text(rig, fd,
                  POST "Transfer-Encoding: chunked\r\n\r\n5\r\n01234\r\n5\r\n56789\r\n0\r\n\r\n");
    expect(rig, fd, false, "200 200", "POST /p 10|POST /p 10|");
    rig_send_text(rig, fd,
                  POST "Transfer-Encoding: chunked\r\n\r\n5\r\n01234\r\n6\r\n56789a\r\n0\r\n\r\n");
    expect(rig, fd, false, "413x", NULL);
    hang_up(rig, fd);
    rig_free(rig);
}
END_TEST

START_TEST(back_pressure)
{
    struct rig *rig = rig_new(RIG_MANUAL);
    int fd = rig_connect(rig);
    struct buf got = BUF_INIT(0), sent = BUF_INIT(0), bodies = BUF_INIT(0), piece = BUF_INIT(0);
    fill(&piece, 5000);
    rig_send_text(rig, fd, GET);
    struct rig_stream *it = &rig->streams[0];
    ck_assert_int_eq(http1_respond_head(it->stream, 200, NULL, 0, -1), 0);
    // The handler stops at high water: the client reads nothing, the queue stays bounded.
    for (int i = 0; i < 1000 && !http1_is_above_high_water(it->stream); i++) {
        ck_assert_int_eq(http1_write(it->stream, buf_slice(&piece)), 0);
        ck_assert_int_eq(buf_append(&sent, buf_slice(&piece)), 0);
        rig_turn(rig);
    }
    ck_assert(http1_is_above_high_water(it->stream));
    ck_assert_uint_lt(http1_queued(it->stream), 262144 + 6000);
    ck_assert_int_eq(it->writables, 0);
    rig_turn(rig);
    ck_assert_int_eq(it->writables, 0);
    // Written in many turns while blocked, and in several pieces of odd sizes.
    char small[7000];
    memset(small, 'z', sizeof small);
    for (size_t len = 1; len < sizeof small; len += 613) {
        ck_assert_int_eq(http1_write(it->stream, slice_of(small, len)), 0);
        ck_assert_int_eq(buf_append(&sent, slice_of(small, len)), 0);
        rig_turn(rig);
    }
    ck_assert(!rig_recv(rig, fd, &got)); // runs the loop between its reads
    ck_assert_int_eq(it->writables, 1);
    ck_assert_uint_eq(http1_queued(it->stream), 0);
    http1_end(it->stream);
    rig_turn(rig);
    ck_assert(!rig_recv(rig, fd, &got));
    char seen[64];
    rig_statuses(wire(&got), false, seen, sizeof seen, &bodies);
    ck_assert_str_eq(seen, "200");
    buf_truncate(&bodies, bodies.len - 1);
    ck_assert(slice_eq(buf_slice(&bodies), buf_slice(&sent)));
    hang_up(rig, fd);
    buf_free(&got);
    buf_free(&sent);
    buf_free(&bodies);
    buf_free(&piece);
    rig_free(rig);
}
END_TEST

START_TEST(a_slow_reader_holds_little)
{
    // An upstream that always has its 64 KiB ready, a client that reads little by little: all that
    // is held for it, with one such piece waiting at the fetch, is at most 256 + 64 KiB (and a
    // record's own bytes).
    enum { PIECE = 64 * 1024, MOST = (256 + 64 + 1) * 1024 };
    static char piece[PIECE], bytes[3000];
    struct rig *rig = rig_new(RIG_MANUAL);
    int fd = rig_connect(rig);
    rig_send_text(rig, fd, GET);
    struct http1_stream *stream = rig->streams[0].stream;
    ck_assert_int_eq(http1_respond_head(stream, 200, NULL, 0, -1), 0);
    struct http1_conn *conn = stream->conn;
    size_t written = 0, peak = 0;
    for (int i = 0; i < 4000; i++) {
        if (!conn->was_above_high) {
            ck_assert_int_eq(http1_write(stream, slice_of(piece, PIECE)), 0);
            written += PIECE;
        } else {
            (void)!recv(fd, bytes, sizeof bytes, 0);
        }
        rig_turn(rig);
        size_t held = conn->out.capacity + conn->sealed.capacity;
        peak = held > peak ? held : peak;
    }
    ck_assert_uint_gt(written, 4u << 20); // the kernel takes the first megabytes
    ck_assert_uint_gt(peak, PIECE);
    ck_assert_msg(peak + PIECE <= MOST, "%zu bytes are held", peak + PIECE);
    hang_up(rig, fd);
    rig_free(rig);
}
END_TEST

START_TEST(ended_behind_a_blocked_queue)
{
    struct rig *rig = rig_new(RIG_MANUAL);
    int fd = rig_connect(rig);
    struct buf got = BUF_INIT(0), bodies = BUF_INIT(0), big = BUF_INIT(0);
    fill(&big, 1000000);
    rig_send_text(rig, fd, GET GET);
    struct rig_stream *it = &rig->streams[0];
    ck_assert_int_eq(http1_respond_head(it->stream, 200, NULL, 0, -1), 0);
    ck_assert_int_eq(http1_write(it->stream, buf_slice(&big)), 0);
    rig_turn(rig);
    ck_assert_int_eq(http1_write(it->stream, SLICE_LIT("tail")), 0);
    http1_end(it->stream);
    rig_turn(rig);
    ck_assert_int_eq(it->closes, 0); // not flushed
    ck_assert(!rig_recv(rig, fd, &got));
    expect_closed_stream(rig, 0, 0, "answered");
    char seen[64];
    rig_statuses(wire(&got), false, seen, sizeof seen, &bodies);
    ck_assert_str_eq(seen, "200");
    ck_assert_uint_eq(bodies.len, 1000005);
    ck_assert(slice_ends(buf_slice(&bodies), "tail|"));
    ck_assert_int_eq(rig->stream_count, 2); // the second request had to wait
    hang_up(rig, fd);
    buf_free(&got);
    buf_free(&bodies);
    buf_free(&big);
    rig_free(rig);
}
END_TEST

START_TEST(paused_bodies)
{
    struct rig *rig = rig_new(RIG_PAUSE);
    int fd = rig_connect(rig);
    struct buf body = BUF_INIT(0);
    fill(&body, 600000);
    rig_send_text(rig, fd, POST "Content-Length: 600000\r\n\r\n");
    ck_assert_uint_lt(rig_send(rig, fd, buf_slice(&body)), body.len);
    ck_assert_uint_eq(rig->streams[0].body_len, 0);
    ck_assert_uint_le(http1_server_counters(rig->server)->bytes_in, 2 * HTTP1_READ_BYTES);
    rig_pass(rig, 40000); // the body's idle timer does not count what we do not read
    ck_assert_int_eq(rig->streams[0].closes, 0);
    hang_up(rig, fd);
    expect_closed_stream(rig, 0, GW_ERESET, "client disconnected");

    // Paused after every piece, also after the last: each resume goes on where it stopped.
    rig->mode = RIG_PAUSE_EACH;
    static const char *const requests[] = {
        POST "Content-Length: 5\r\n\r\nhello",
        POST "Transfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n2\r\nll\r\n1\r\no\r\n0\r\n\r\n"};
    for (int i = 0; i < 2; i++) {
        rig_reset(rig);
        fd = rig_connect(rig);
        rig_send_text(rig, fd, requests[i]);
        rig_send_text(rig, fd, GET);
        int resumes = 0;
        for (; rig->streams[0].completes == 0 && resumes < 10; resumes++) {
            http1_resume_body(rig->streams[0].stream);
            rig_turn(rig);
        }
        ck_assert_int_eq(resumes, i ? 3 : 1);
        ck_assert(slice_is(buf_slice(&rig->body), "") || rig->stream_count == 1);
        expect(rig, fd, false, "200 200", "POST /p 5|GET /g 0|");
        hang_up(rig, fd);
    }
    buf_free(&body);
    rig_free(rig);
}
END_TEST

START_TEST(disconnects)
{
    struct rig *rig = rig_new(RIG_MANUAL);
    static const char *const begun[] = {
        GET,                                 // answer pending
        POST "Content-Length: 5\r\n\r\nhel", // body incomplete
        GET GET,                             // another waits
    };
    for (size_t i = 0; i < 3; i++) {
        rig_reset(rig);
        int fd = rig_connect(rig);
        rig_send_text(rig, fd, begun[i]);
        struct http1_stream *stream = rig->streams[0].stream;
        if (i == 0) {
            ck_assert_int_eq(http1_respond_head(stream, 200, NULL, 0, -1), 0);
            rig_turn(rig);
        }
        hang_up(rig, fd);
        ck_assert_int_eq(rig->stream_count, 1);
        expect_closed_stream(rig, 0, GW_ERESET, "client disconnected");
        ck_assert_uint_eq(http1_server_counters(rig->server)->open, 0);
    }
    // Nothing to tell anybody: idle, and in the middle of a head.
    rig_reset(rig);
    hang_up(rig, rig_connect(rig));
    int fd = rig_connect(rig);
    rig_send_text(rig, fd, "GET / HT");
    hang_up(rig, fd);
    ck_assert_int_eq(rig->stream_count, 0);
    ck_assert_uint_eq(http1_server_counters(rig->server)->open, 0);
    // A client that only closes its writing side still gets an answer that is already complete.
    rig->mode = RIG_AT_ONCE;
    fd = rig_connect(rig);
    rig_push(rig, fd, SLICE_LIT(GET));
    ck_assert_int_eq(shutdown(fd, SHUT_WR), 0);
    rig_turn(rig);
    expect(rig, fd, false, "200x", NULL);
    hang_up(rig, fd);
    rig_free(rig);
}
END_TEST

static struct http1_stream *stale_stream;

static void write_after_close(void *user, int err, const char *reason)
{
    ck_assert_int_eq(http1_write(stale_stream, SLICE_LIT("x")), GW_ERESET);
    ck_assert_int_eq(http1_respond(stale_stream, 200, NULL, 0, SLICE_NONE), GW_ERESET);
    http1_end(stale_stream);
    http1_abort(stale_stream, "again");
    http1_pause_body(stale_stream);
    http1_resume_body(stale_stream);
    http1_limit_body(stale_stream, 1);
    ck_assert_uint_eq(http1_queued(stale_stream), 0);
    rig_on_close(user, err, reason);
}

START_TEST(aborts)
{
    struct rig *rig = rig_new(RIG_ABORT);
    int fd = rig_connect(rig);
    rig_send_text(rig, fd, POST "Content-Length: 2\r\n\r\nhi" GET);
    expect(rig, fd, false, "x", NULL);
    ck_assert_int_eq(rig->stream_count, 1);
    ck_assert_uint_eq(rig->streams[0].body_len, 0);
    expect_closed_stream(rig, 0, GW_ECANCELLED, "test");
    hang_up(rig, fd);

    // Outside callbacks on_close comes at once; what was written before is still seen.
    rig->mode = RIG_MANUAL;
    rig->handler.on_close = write_after_close;
    fd = rig_connect(rig);
    rig_send_text(rig, fd, GET);
    stale_stream = rig->streams[1].stream;
    ck_assert_int_eq(http1_respond_head(stale_stream, 200, NULL, 0, -1), 0);
    ck_assert_int_eq(http1_write(stale_stream, SLICE_LIT("part")), 0);
    http1_abort(stale_stream, "upstream cut");
    expect_closed_stream(rig, 1, GW_ECANCELLED, "upstream cut");
    expect(rig, fd, false, "200 cutx", "part");
    hang_up(rig, fd);
    rig->handler.on_close = rig_on_close;

    // Ended without an answer: not a clean end either.
    fd = rig_connect(rig);
    rig_send_text(rig, fd, GET);
    http1_end(rig->streams[2].stream);
    rig_turn(rig);
    expect(rig, fd, false, "x", NULL);
    expect_closed_stream(rig, 2, GW_EINTERNAL, "ended without an answer");
    hang_up(rig, fd);
    rig_free(rig);
}
END_TEST

static struct rig *chain_rig;

static void abort_the_next(void *user, int err, const char *reason)
{
    rig_on_close(user, err, reason);
    int count = chain_rig->stream_count;
    for (int i = 0; i < count; i++)
        if (chain_rig->streams[i].closes == 0)
            http1_abort(chain_rig->streams[i].stream, "chain");
    http1_server_drain(chain_rig->server);
}

START_TEST(on_close_may_abort_others)
{
    struct rig *rig = rig_new(RIG_MANUAL);
    chain_rig = rig;
    rig->handler.on_close = abort_the_next;
    int fds[8];
    for (int i = 0; i < 8; i++) {
        fds[i] = rig_connect(rig);
        if (i != 3)
            rig_send_text(rig, fds[i], GET);
    }
    http1_server_abort_all(rig->server, "all");
    rig_turn(rig);
    ck_assert_int_eq(rig->close_count, 7);
    ck_assert_uint_eq(http1_server_counters(rig->server)->open, 0);
    for (int i = 0; i < 8; i++)
        close(fds[i]);
    rig_free(rig);
}
END_TEST

START_TEST(timers)
{
    struct rig *rig = rig_new(RIG_ECHO);
    // A head: 10 s from its first byte, whatever trickles in.
    int fd = rig_connect(rig);
    rig_pass(rig, 20000);
    for (int i = 0; i < 4; i++) {
        rig_send_text(rig, fd, i ? "a" : "GET /");
        rig_pass(rig, 2400);
        expect(rig, fd, false, "", NULL);
    }
    rig_pass(rig, 500);
    expect(rig, fd, false, "408x", NULL);
    ck_assert_int_eq(rig->stream_count, 0);
    hang_up(rig, fd);
    // An empty line is no request.
    fd = rig_connect(rig);
    rig_send_text(rig, fd, "\r\n");
    rig_pass(rig, 10001);
    expect(rig, fd, false, "x", NULL);
    hang_up(rig, fd);
    // Each request has its own 10 s.
    fd = rig_connect(rig);
    rig_send_text(rig, fd, "GET / HTTP/1.1\r\n");
    rig_pass(rig, 9000);
    rig_send_text(rig, fd, H "\r\nGET /2");
    expect(rig, fd, false, "200", NULL);
    rig_pass(rig, 9000);
    rig_send_text(rig, fd, " HTTP/1.1\r\n" H "\r\n");
    expect(rig, fd, false, "200", NULL);
    hang_up(rig, fd);
    // A body: 30 s for each KiB.
    char kib[1025];
    memset(kib, 'x', 1024);
    kib[1024] = '\0';
    rig_reset(rig);
    fd = rig_connect(rig);
    rig_send_text(rig, fd, POST "Content-Length: 9000\r\n\r\n");
    for (int i = 0; i < 5; i++) {
        rig_pass(rig, 29000);
        rig_send_text(rig, fd, kib);
    }
    expect(rig, fd, false, "", NULL);
    rig_pass(rig, 30001);
    expect(rig, fd, false, "408x", NULL);
    expect_closed_stream(rig, 0, GW_ETIMEOUT, "the request body stalled");
    hang_up(rig, fd);
    // One that drips holds its connection no longer than one that has stopped.
    rig_reset(rig);
    fd = rig_connect(rig);
    rig_send_text(rig, fd, POST "Content-Length: 9000\r\n\r\n");
    for (int i = 0; i < 29; i++) {
        rig_pass(rig, 1000);
        rig_send_text(rig, fd, "x");
    }
    expect(rig, fd, false, "", NULL);
    rig_pass(rig, 1002);
    expect(rig, fd, false, "408x", NULL);
    expect_closed_stream(rig, 0, GW_ETIMEOUT, "the request body stalled");
    hang_up(rig, fd);
    // An answer may take as long as it likes.
    rig->mode = RIG_MANUAL;
    rig_reset(rig);
    fd = rig_connect(rig);
    rig_send_text(rig, fd, GET);
    rig_pass(rig, 3600000);
    rig_answer(&rig->streams[0]);
    rig_turn(rig);
    expect(rig, fd, false, "200", NULL);
    hang_up(rig, fd);
    ck_assert_uint_eq(http1_server_counters(rig->server)->timeouts, 3);
    rig_free(rig);
}
END_TEST

START_TEST(write_stall)
{
    struct rig *rig = rig_new(RIG_MANUAL);
    int fd = rig_connect(rig);
    struct buf big = BUF_INIT(0);
    char bytes[200000];
    fill(&big, 3000000);
    rig_send_text(rig, fd, GET);
    struct rig_stream *it = &rig->streams[0];
    ck_assert_int_eq(http1_respond(it->stream, 200, NULL, 0, buf_slice(&big)), 0);
    rig_turn(rig);
    // Reading slowly is allowed; each byte the kernel takes starts the 60 s anew.
    for (int i = 0; i < 3; i++) {
        rig_pass(rig, 59000);
        ck_assert_int_eq(it->closes, 0);
        ck_assert_int_gt((int)recv(fd, bytes, sizeof bytes, 0), 0);
        rig_turn(rig);
    }
    rig_pass(rig, 59000);
    ck_assert_int_eq(it->closes, 0);
    rig_pass(rig, 1001);
    expect_closed_stream(rig, 0, GW_ETIMEOUT, "client stopped reading");
    ck_assert_uint_eq(http1_server_counters(rig->server)->open, 0);
    hang_up(rig, fd);
    buf_free(&big);
    rig_free(rig);
}
END_TEST

// The kernel holds so much that it asks for nothing more for hours, yet the client reads.
START_TEST(a_client_that_reads_the_kernels_queue_is_not_stalled)
{
    struct rig *rig = rig_new(RIG_MANUAL);
    int fd = rig_connect(rig);
    struct buf big = BUF_INIT(0);
    char bytes[40000];
    fill(&big, 3000000);
    rig_send_text(rig, fd, GET);
    struct rig_stream *it = &rig->streams[0];
    ck_assert_int_eq(http1_respond(it->stream, 200, NULL, 0, buf_slice(&big)), 0);
    rig_turn(rig);
    size_t queued = http1_queued(it->stream);
    for (int i = 0; i < 2; i++) {
        rig_pass(rig, 59000);
        ck_assert_int_eq(it->closes, 0);
        ck_assert_int_gt((int)recv(fd, bytes, sizeof bytes, 0), 0);
    }
    rig_pass(rig, 59000);
    ck_assert_int_eq(it->closes, 0);
    ck_assert_uint_eq(http1_queued(it->stream), queued); // nothing of it by an event
    rig_pass(rig, 60001);
    expect_closed_stream(rig, 0, GW_ETIMEOUT, "client stopped reading");
    hang_up(rig, fd);
    buf_free(&big);
    rig_free(rig);
}
END_TEST

START_TEST(early_answer_read_slowly)
{
    struct rig *rig = rig_new(RIG_MANUAL);
    int fd = rig_connect(rig);
    struct buf big = BUF_INIT(0);
    char bytes[60000];
    fill(&big, 1000000);
    rig_send_text(rig, fd, POST "Content-Length: 500000\r\n\r\nabc");
    struct rig_stream *it = &rig->streams[0];
    ck_assert_int_eq(http1_respond(it->stream, 413, NULL, 0, buf_slice(&big)), 0);
    rig_turn(rig);
    // The client sends no more of its body; only that it reads counts now.
    size_t got = 0;
    for (int i = 0; i < 40; i++) {
        rig_pass(rig, 10000);
        ssize_t n = recv(fd, bytes, sizeof bytes, 0);
        if (n <= 0)
            break;
        got += (size_t)n;
    }
    ck_assert_uint_gt(got, 1000000);
    expect_closed_stream(rig, 0, 0, "answered");
    hang_up(rig, fd);
    buf_free(&big);
    rig_free(rig);
}
END_TEST

START_TEST(drain)
{
    struct rig *rig = rig_new(RIG_MANUAL);
    int idle = rig_connect(rig), fresh = rig_connect(rig), busy = rig_connect(rig),
        coming = rig_connect(rig), late = rig_connect(rig);
    rig->mode = RIG_ECHO;
    rig_send_text(rig, idle, GET);
    expect(rig, idle, false, "200", NULL);
    rig_send_text(rig, coming, GET);
    expect(rig, coming, false, "200", NULL);
    rig_send_text(rig, late, GET);
    expect(rig, late, false, "200", NULL);
    rig->mode = RIG_MANUAL;
    rig_reset(rig);
    rig_send_text(rig, busy, GET);
    // On its way, not yet read, when the drain begins.
    rig_push(rig, coming, SLICE_LIT(GET));
    http1_server_drain(rig->server);
    rig_turn(rig);
    rig_answer(&rig->streams[0]);
    rig_answer(&rig->streams[1]);
    rig_turn(rig);
    expect(rig, busy, false, "200x", NULL);
    expect(rig, coming, false, "200x", NULL);
    // Who has no request gets a moment; what comes within it is answered, and is the last.
    rig_pass(rig, 1000);
    expect(rig, idle, false, "", NULL);
    expect(rig, fresh, false, "", NULL);
    rig->mode = RIG_ECHO;
    rig_send_text(rig, late, GET);
    expect(rig, late, false, "200x", NULL);
    rig_pass(rig, 501);
    expect(rig, idle, false, "x", NULL);
    expect(rig, fresh, false, "x", NULL);
    // What was sent before the close was seen meets no reset.
    if (!rig_tls)
        ck_assert_int_eq((int)send(fresh, GET, sizeof GET - 1, MSG_NOSIGNAL), (int)sizeof GET - 1);
    rig_turn(rig);
    hang_up(rig, idle);
    hang_up(rig, fresh);
    rig_pass(rig, 2001);
    ck_assert_uint_eq(http1_server_counters(rig->server)->open, 0);
    close(busy);
    close(coming);
    close(late);
    rig_free(rig);
}
END_TEST

// With a successor there is no hurry: a connection stays as long as it may idle anyway.
START_TEST(drain_without_hurry)
{
    struct rig *rig = rig_new(RIG_ECHO);
    int one = rig_connect(rig), other = rig_connect(rig);
    rig_send_text(rig, one, GET);
    expect(rig, one, false, "200", NULL);
    rig_send_text(rig, other, GET);
    expect(rig, other, false, "200", NULL);
    http1_server_drain_within(rig->server, UINT32_MAX);
    rig_pass(rig, 70000);
    rig_send_text(rig, one, GET);
    expect(rig, one, false, "200x", NULL);
    expect(rig, other, false, "", NULL);
    rig_pass(rig, 5001);
    expect(rig, other, false, "x", NULL);
    hang_up(rig, one);
    hang_up(rig, other);
    // And then there is.
    int third = rig_connect(rig);
    http1_server_drain_within(rig->server, 200);
    rig_pass(rig, 201);
    expect(rig, third, false, "x", NULL);
    hang_up(rig, third);
    ck_assert_uint_eq(http1_server_counters(rig->server)->open, 0);
    rig_free(rig);
}
END_TEST

// The head of an answer said nothing of a close before the drain began: the client may count on one
// more request, and gets it.
START_TEST(a_drain_keeps_what_a_head_has_promised)
{
    struct rig *rig = rig_new(RIG_MANUAL);
    int fd = rig_connect(rig);
    rig_send_text(rig, fd, GET);
    ck_assert_int_eq(http1_respond_head(rig->streams[0].stream, 200, NULL, 0, -1), 0);
    rig_turn(rig);
    http1_server_drain(rig->server);
    rig_turn(rig);
    http1_end(rig->streams[0].stream);
    rig_turn(rig);
    expect(rig, fd, false, "200", NULL);
    rig->mode = RIG_ECHO;
    rig_send_text(rig, fd, GET);
    expect(rig, fd, false, "200x", NULL);
    hang_up(rig, fd);
    ck_assert_uint_eq(http1_server_counters(rig->server)->open, 0);
    rig_free(rig);
}
END_TEST

static int accept_from(struct rig *rig, const char *ip, int *err)
{
    int pair[2];
    ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair), 0);
    *err = http1_accept_fd(rig->server, pair[0], false, ip, 0);
    rig_turn(rig);
    return pair[1];
}

START_TEST(caps)
{
    struct http1_limits limits;
    http1_limits_default(&limits);
    limits.max_per_ip = 2;
    limits.max_connections = 5;
    struct http1_ips *ips = http1_ips_new();
    struct rig *rig = rig_new_with(&limits, ips);
    static const struct {
        const char *ip;
        int err;
    } steps[] = {
        {"10.0.0.1", 0},           {"10.0.0.1", 0},
        {"10.0.0.1", GW_EFULL},    {"::ffff:10.0.0.1", GW_EFULL}, // the same peer
        {"2001:db8::1", 0},        {"2001:db8::2:1", 0},
        {"2001:db8::3", GW_EFULL},                         // one /64
        {"2001:db8:0:1::3", 0},    {"10.0.0.2", GW_EFULL}, // five connections in all
    };
    int fds[9], err;
    for (size_t i = 0; i < 9; i++) {
        fds[i] = accept_from(rig, steps[i].ip, &err);
        ck_assert_int_eq(err, steps[i].err);
        if (err) {
            struct buf got = BUF_INIT(0);
            ck_assert(rig_recv(rig, fds[i], &got));
            ck_assert(slice_starts(buf_slice(&got), i == 8 ? "HTTP/1.1 503 " : "HTTP/1.1 429 "));
            ck_assert_int_gt((int)slice_find(buf_slice(&got), SLICE_LIT("\r\nretry-after: 1\r\n")),
                             0);
            buf_free(&got);
        }
    }
    ck_assert_uint_eq(http1_server_counters(rig->server)->refused_limit, 4);
    // A place that was left is free again.
    hang_up(rig, fds[0]);
    int again = accept_from(rig, "10.0.0.1", &err);
    ck_assert_int_eq(err, 0);
    close(again);
    for (size_t i = 1; i < 9; i++)
        close(fds[i]);
    rig_turn(rig);
    rig_free(rig);
    http1_ips_free(ips);
}
END_TEST

// Seats of the operator, and peers that speak for many.
START_TEST(caps_and_exceptions)
{
    static const struct slice TRUSTED[] = {{"10.9.0.0/16", 11}};
    struct http1_limits limits;
    http1_limits_default(&limits);
    limits.max_per_ip = 2;
    limits.max_connections = 4;
    limits.max_operators = 2;
    limits.operator_tags = 1u << 2;
    struct http1_ips *ips = http1_ips_new();
    http1_ips_exempt(ips, TRUSTED, 1);
    struct rig *rig = rig_new_with(&limits, ips), *other = rig_new_with(&limits, ips);
    static const struct {
        const char *ip;
        uint32_t tag;
        bool is_other; // another worker's server
        int err;
    } steps[] = {
        {"10.9.1.1", 1, false, 0},        {"10.9.1.1", 1, true, 0},
        {"10.9.1.1", 1, false, 0}, // no cap for a trusted proxy…
        {"10.0.0.1", 1, true, 0},         {"10.0.0.2", 1, false, GW_EFULL}, // …but of the process
        {"10.0.0.1", 2, false, 0},        {"10.0.0.1", 2, true, 0},         // seats of their own
        {"10.0.0.1", 2, false, GW_EFULL},
    };
    enum { COUNT = sizeof steps / sizeof *steps };
    int fds[COUNT];
    for (size_t i = 0; i < COUNT; i++) {
        int pair[2];
        ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair), 0);
        ck_assert_int_eq(http1_accept_fd(steps[i].is_other ? other->server : rig->server, pair[0],
                                         false, steps[i].ip, steps[i].tag),
                         steps[i].err);
        fds[i] = pair[1];
    }
    struct http1_ips_view view;
    http1_ips_read(ips, &view);
    ck_assert_uint_eq(view.open, 4);
    ck_assert_uint_eq(view.operators, 2);
    ck_assert_uint_eq(view.refused[HTTP1_REFUSED_FULL], 1);
    ck_assert_uint_eq(view.refused[HTTP1_REFUSED_OPERATOR], 1);
    ck_assert_uint_eq(view.refused[HTTP1_REFUSED_ADDRESS], 0);
    for (size_t i = 0; i < COUNT; i++)
        close(fds[i]);
    rig_turn(rig);
    rig_turn(other);
    http1_ips_read(ips, &view);
    ck_assert_uint_eq(view.open + view.operators, 0);
    rig_free(other);
    rig_free(rig);
    http1_ips_free(ips);
}
END_TEST

// The answer of a refusal is read by a client whose request comes after it: no reset overtakes it.
START_TEST(refusals_are_not_overtaken)
{
    struct http1_limits limits;
    http1_limits_default(&limits);
    limits.max_connections = 64; // two sockets of refusals are kept
    struct rig *rig = rig_new_with(&limits, NULL);
    int held[64], refused[3], err;
    struct buf got = BUF_INIT(0);
    for (int i = 0; i < 64; i++)
        held[i] = accept_from(rig, "10.0.0.1", &err);
    for (int i = 0; i < 3; i++) {
        refused[i] = accept_from(rig, "10.0.0.1", &err);
        ck_assert_int_eq(err, GW_EFULL);
    }
    // The first was closed to make room: its client's request meets a closed socket.
    ck_assert_int_lt((int)send(refused[0], "GET", 3, MSG_NOSIGNAL), 0);
    for (int i = 1; i < 3; i++)
        ck_assert_int_eq((int)send(refused[i], "GET", 3, MSG_NOSIGNAL), 3);
    rig_pass(rig, 51);
    for (int i = 0; i < 3; i++) {
        buf_clear(&got);
        ck_assert(rig_recv(rig, refused[i], &got)); // whole, with a clean end
        ck_assert(slice_starts(buf_slice(&got), "HTTP/1.1 503 "));
        ck_assert_int_gt((int)slice_find(buf_slice(&got), SLICE_LIT("too_many_connections")), 0);
    }
    ck_assert_int_eq((int)send(refused[1], "GET", 3, MSG_NOSIGNAL), 3);
    rig_pass(rig, 1100); // nobody is waited for longer
    ck_assert_int_lt((int)send(refused[1], "GET", 3, MSG_NOSIGNAL), 0);
    ck_assert_int_lt((int)send(refused[2], "GET", 3, MSG_NOSIGNAL), 0);
    for (int i = 0; i < 64; i++)
        close(held[i]);
    for (int i = 0; i < 3; i++)
        close(refused[i]);
    buf_free(&got);
    rig_turn(rig);
    rig_free(rig);
}
END_TEST

START_TEST(idle_connections_are_small)
{
    struct rig *rig = rig_new(RIG_ECHO);
    int fd = rig_connect(rig);
    rig_send_text(rig, fd, GET);
    expect(rig, fd, false, "200", NULL);
    struct http1_conn *conn = list_entry(rig->server->conns.next, struct http1_conn, node);
    ck_assert_int_eq(conn->phase, HTTP1_IDLE);
    ck_assert_ptr_null(conn->stream);
    ck_assert_ptr_null(conn->input.mem);
    ck_assert_ptr_null(conn->out.mem);
    ck_assert_ptr_null(conn->sealed.mem);
    ck_assert_uint_lt(sizeof *conn, 1536);
    hang_up(rig, fd);
    rig_free(rig);
}
END_TEST

static TCase *make_case(const char *name)
{
    TCase *tcase = tcase_create(name);
    tcase_set_timeout(tcase, 120);
    tcase_add_test(tcase, keep_alive);
    tcase_add_test(tcase, pipelining_of_100);
    tcase_add_test(tcase, pipelined_bytes_are_bounded);
    tcase_add_test(tcase, expect_continue);
    tcase_add_test(tcase, head_and_bodyless);
    tcase_add_test(tcase, answer_bytes);
    tcase_add_test(tcase, wrong_length);
    tcase_add_test(tcase, http10_is_close_delimited);
    tcase_add_test(tcase, early_answers);
    tcase_add_test(tcase, too_large_body_lingers);
    tcase_add_test(tcase, limit_within_is_let_pass);
    tcase_add_test(tcase, back_pressure);
    tcase_add_test(tcase, a_slow_reader_holds_little);
    tcase_add_test(tcase, ended_behind_a_blocked_queue);
    tcase_add_test(tcase, paused_bodies);
    tcase_add_test(tcase, disconnects);
    tcase_add_test(tcase, aborts);
    tcase_add_test(tcase, on_close_may_abort_others);
    tcase_add_test(tcase, timers);
    tcase_add_test(tcase, write_stall);
    tcase_add_test(tcase, a_client_that_reads_the_kernels_queue_is_not_stalled);
    tcase_add_test(tcase, early_answer_read_slowly);
    tcase_add_test(tcase, drain);
    tcase_add_test(tcase, drain_without_hurry);
    tcase_add_test(tcase, a_drain_keeps_what_a_head_has_promised);
    tcase_add_test(tcase, caps);
    tcase_add_test(tcase, caps_and_exceptions);
    tcase_add_test(tcase, refusals_are_not_overtaken);
    tcase_add_test(tcase, idle_connections_are_small);
    return tcase;
}

int main(void)
{
    Suite *suite = suite_create("http1_flow");
    TCase *tls = make_case("flow over TLS");
    tcase_add_unchecked_fixture(tls, rig_use_tls, rig_use_plain);
    suite_add_tcase(suite, make_case("flow"));
    suite_add_tcase(suite, tls);
    SRunner *runner = srunner_create(suite);
    srunner_set_fork_status(runner, CK_NOFORK);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? 1 : 0;
}
