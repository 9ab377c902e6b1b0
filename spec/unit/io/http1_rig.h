#pragma once
// A rig for tests of the HTTP/1.1 server: one loop under a fake clock, one server, clients on
// socket pairs (bytes arrive at once, so no test waits), and a handler that records what it is
// told and answers as the test says. With rig_use_tls the clients speak TLS: the same tests then
// hold for both, and what they send and see is still plaintext.
#include "base/buf.h"
#include "base/clock.h"
#include "io/http1.h"
#include "io/loop.h"
#include "tls_kit.h"

#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

enum rig_mode {
    RIG_ECHO,      // answers 200 when the request is complete
    RIG_AT_ONCE,   // answers 200 in on_request
    RIG_MANUAL,    // the test answers
    RIG_PAUSE,     // pauses the body in on_request
    RIG_ABORT,     // aborts in on_request
    RIG_LIMIT,     // lowers the body limit to 10 in on_request
    RIG_FORBID,    // answers 403 in on_request
    RIG_PAUSE_EACH // pauses after each piece of the body
};

#define RIG_STREAMS 512
#define RIG_FDS 1024
#define RIG_TAG 3

struct rig_stream {
    struct rig *rig;
    struct http1_stream *stream;
    int completes, closes, writables, err;
    size_t body_len;
    char reason[64];
};

// The client's end of a connection with TLS.
struct rig_peer {
    struct tls_pipe *pipe;
    struct buf out; // records the socket has not taken
};

struct rig {
    struct rig_peer *peers[RIG_FDS]; // by descriptor
    struct loop *loop;
    struct http1_server *server;
    struct http1_handler handler;
    enum rig_mode mode;
    struct rig_stream streams[RIG_STREAMS];
    int stream_count, close_count;
    struct buf body; // of the last request
    char last_target[256];
    char last_headers[2048];
    bool last_is_websocket;
};

static uint64_t rig_now_ms = 1000000;

// What all rigs of a run share when they speak TLS.
static struct tls_kit *rig_kit;
static struct tls_server *rig_tls;
static struct tls_context *rig_client;
static size_t rig_piece; // ciphertext goes out in pieces of so many bytes; 0: as it comes

static uint64_t rig_boot_ns(void)
{
    return rig_now_ms * 1000000u;
}

static int64_t rig_wall_ms(void)
{
    return 1789000000000;
}

static int rig_random(void *out, size_t len)
{
    memset(out, 7, len);
    return 0;
}

static const struct clock_source rig_clock = {
    .wall_ms = rig_wall_ms, .boot_ns = rig_boot_ns, .random = rig_random};

static inline void rig_answer(struct rig_stream *it)
{
    char body[512];
    int len = snprintf(body, sizeof body, "%s %s %zu", http1_request(it->stream)->method_text.ptr,
                       it->rig->last_target, it->body_len);
    ck_assert_int_eq(http1_respond(it->stream, 200, NULL, 0, slice_of(body, (size_t)len)), 0);
}

static void rig_on_request(void *user, struct http1_stream *stream)
{
    struct rig *rig = user;
    ck_assert_int_lt(rig->stream_count, RIG_STREAMS);
    struct rig_stream *it = &rig->streams[rig->stream_count++];
    it->rig = rig;
    it->stream = stream;
    http1_set_user(stream, it);
    const struct http1_request *request = http1_request(stream);
    snprintf(rig->last_target, sizeof rig->last_target, "%.*s", SLICE_FMT(request->target));
    rig->last_is_websocket = request->is_websocket_upgrade;
    size_t at = 0;
    for (size_t i = 0; i < request->header_count && at < sizeof rig->last_headers; i++)
        at += (size_t)snprintf(rig->last_headers + at, sizeof rig->last_headers - at, "%.*s=%.*s;",
                               SLICE_FMT(request->headers[i].name),
                               SLICE_FMT(request->headers[i].value));
    if (at == 0)
        rig->last_headers[0] = '\0';
    buf_clear(&rig->body);
    if (rig->mode == RIG_AT_ONCE)
        rig_answer(it);
    else if (rig->mode == RIG_FORBID)
        ck_assert_int_eq(http1_respond(stream, 403, NULL, 0, SLICE_LIT("no")), 0);
    else if (rig->mode == RIG_PAUSE)
        http1_pause_body(stream);
    else if (rig->mode == RIG_ABORT)
        http1_abort(stream, "test");
    else if (rig->mode == RIG_LIMIT)
        http1_limit_body(stream, 10);
}

static void rig_on_body(void *user, struct slice bytes)
{
    struct rig_stream *it = user;
    ck_assert_int_eq(it->closes, 0);
    ck_assert_uint_gt(bytes.len, 0);
    it->body_len += bytes.len;
    ck_assert_int_eq(buf_append(&it->rig->body, bytes), 0);
    if (it->rig->mode == RIG_PAUSE_EACH)
        http1_pause_body(it->stream);
}

static void rig_on_complete(void *user)
{
    struct rig_stream *it = user;
    ck_assert_int_eq(it->closes, 0);
    ck_assert_int_eq(it->completes++, 0);
    if (it->rig->mode == RIG_ECHO || it->rig->mode == RIG_LIMIT || it->rig->mode == RIG_PAUSE_EACH)
        rig_answer(it);
}

static void rig_on_writable(void *user)
{
    struct rig_stream *it = user;
    ck_assert_int_eq(it->closes, 0);
    it->writables++;
}

static void rig_on_close(void *user, int err, const char *reason)
{
    struct rig_stream *it = user;
    ck_assert_int_eq(it->closes++, 0);
    it->err = err;
    snprintf(it->reason, sizeof it->reason, "%s", reason);
    it->rig->close_count++;
}

static const char *rig_render(void *user, const struct http1_request *request, int status,
                              const char *message, struct buf *out)
{
    (void)user;
    ck_assert_int_eq(buf_printf(out, "refused %d %s %.*s", status, message,
                                request ? (int)request->path.len : 0,
                                request ? request->path.ptr : ""),
                     0);
    return "text/plain";
}

static inline void rig_use_tls(void)
{
    rig_kit = tls_kit_new();
    struct tls_kit_pair pair = tls_kit_issue(rig_kit, "DNS:localhost,IP:127.0.0.1");
    rig_tls = tls_kit_server(&pair);
    rig_client = tls_kit_client(rig_kit);
}

static inline void rig_use_plain(void)
{
    tls_server_free(rig_tls);
    tls_context_unref(rig_client);
    tls_kit_free(rig_kit);
    rig_tls = NULL;
    rig_client = NULL;
    rig_piece = 0;
}

static inline void rig_forget_peer(struct rig *rig, int fd)
{
    struct rig_peer *peer = rig->peers[fd];
    if (!peer)
        return;
    tls_pipe_free(peer->pipe);
    buf_free(&peer->out);
    free(peer);
    rig->peers[fd] = NULL;
}

static inline struct rig *rig_new_with(const struct http1_limits *limits, struct http1_ips *ips)
{
    clock_use(&rig_clock);
    struct rig *rig = calloc(1, sizeof *rig);
    ck_assert_ptr_nonnull(rig);
    rig->handler = (struct http1_handler){.on_request = rig_on_request,
                                          .on_body = rig_on_body,
                                          .on_complete = rig_on_complete,
                                          .on_writable = rig_on_writable,
                                          .on_close = rig_on_close,
                                          .render_refusal = rig_render};
    buf_init(&rig->body, 0);
    ck_assert_int_eq(loop_new(NULL, &rig->loop), 0);
    ck_assert_int_eq(http1_server_new(rig->loop, limits, &rig->handler, rig, ips, &rig->server), 0);
    if (rig_tls)
        ck_assert_int_eq(http1_server_use_tls(rig->server, RIG_TAG, rig_tls), 0);
    return rig;
}

static inline struct rig *rig_new(enum rig_mode mode)
{
    struct http1_limits limits;
    http1_limits_default(&limits);
    struct rig *rig = rig_new_with(&limits, NULL);
    rig->mode = mode;
    return rig;
}

// Forgets the streams so far, so that one rig can serve many short tests.
static inline void rig_reset(struct rig *rig)
{
    memset(rig->streams, 0, sizeof rig->streams);
    rig->stream_count = rig->close_count = 0;
}

static inline void rig_turn(struct rig *rig)
{
    for (int i = 0; i < 4; i++)
        while (loop_turn(rig->loop))
            continue;
}

static inline void rig_pass(struct rig *rig, uint64_t ms)
{
    rig_now_ms += ms;
    rig_turn(rig);
}

static inline void rig_free(struct rig *rig)
{
    http1_server_abort_all(rig->server, "end of test");
    rig_turn(rig);
    for (int i = 0; i < rig->stream_count; i++)
        ck_assert_int_eq(rig->streams[i].closes, 1);
    ck_assert_uint_eq(http1_server_counters(rig->server)->open, 0);
    http1_server_free(rig->server);
    loop_free(rig->loop);
    for (int fd = 0; fd < RIG_FDS; fd++)
        rig_forget_peer(rig, fd);
    buf_free(&rig->body);
    free(rig);
    clock_use(NULL);
}

// Sends all of it, running the loop while the socket is full; stops when the server has closed.
static inline size_t rig_send_raw(struct rig *rig, int fd, struct slice bytes)
{
    size_t sent = 0;
    while (sent < bytes.len) {
        size_t len = bytes.len - sent;
        if (rig_piece && rig->peers[fd] && len > rig_piece)
            len = rig_piece;
        ssize_t n = send(fd, bytes.ptr + sent, len, MSG_NOSIGNAL);
        if (n > 0) {
            sent += (size_t)n;
            if (rig_piece && rig->peers[fd])
                rig_turn(rig);
        } else if (errno == EAGAIN) {
            uint64_t before = http1_server_counters(rig->server)->bytes_in;
            rig_turn(rig);
            if (http1_server_counters(rig->server)->bytes_in == before)
                break; // it does not read any more
        } else {
            break;
        }
    }
    rig_turn(rig);
    return sent;
}

// Sends what the client's pipe has written; false: not all of it.
static inline bool rig_send_records(struct rig *rig, int fd)
{
    struct buf *out = &rig->peers[fd]->out;
    buf_consume(out, rig_send_raw(rig, fd, buf_slice(out)));
    return out->len == 0;
}

static inline size_t rig_send(struct rig *rig, int fd, struct slice bytes)
{
    struct rig_peer *peer = rig->peers[fd];
    if (!peer)
        return rig_send_raw(rig, fd, bytes);
    for (size_t sent = 0; sent < bytes.len;) {
        size_t len = bytes.len - sent < 16384 ? bytes.len - sent : 16384;
        ck_assert_int_eq(tls_pipe_write(peer->pipe, slice_of(bytes.ptr + sent, len), &peer->out),
                         0);
        if (!rig_send_records(rig, fd))
            return sent;
        sent += len;
    }
    return bytes.len;
}

// Without a turn of the loop: it is on its way.
static inline void rig_push(struct rig *rig, int fd, struct slice bytes)
{
    struct rig_peer *peer = rig->peers[fd];
    if (peer) {
        ck_assert_int_eq(tls_pipe_write(peer->pipe, bytes, &peer->out), 0);
        bytes = buf_slice(&peer->out);
    }
    ck_assert_int_eq((int)send(fd, bytes.ptr, bytes.len, 0), (int)bytes.len);
    if (peer)
        buf_clear(&peer->out);
}

static inline void rig_send_text(struct rig *rig, int fd, const char *text)
{
    ck_assert_uint_eq(rig_send(rig, fd, slice_str(text)), strlen(text));
}

static inline void rig_take(struct rig *rig, int fd, struct slice bytes, struct buf *into)
{
    struct rig_peer *peer = rig->peers[fd];
    if (!peer) {
        ck_assert_int_eq(buf_append(into, bytes), 0);
        return;
    }
    char plain[TLS_PLAIN_ROOM(16384)];
    size_t got;
    int err = tls_pipe_read(peer->pipe, &bytes, plain, sizeof plain, &got, &peer->out);
    ck_assert_msg(err == 0, "%s", tls_pipe_error(peer->pipe));
    ck_assert_uint_eq(bytes.len, 0);
    ck_assert_int_eq(buf_append(into, slice_of(plain, got)), 0);
}

// Reads what there is; true when the server has closed its side.
static inline bool rig_recv(struct rig *rig, int fd, struct buf *into)
{
    char bytes[16384];
    for (;;) {
        ssize_t n = recv(fd, bytes, sizeof bytes, 0);
        if (n > 0) {
            rig_take(rig, fd, slice_of(bytes, (size_t)n), into);
            rig_turn(rig);
        } else if (n == 0 || errno == ECONNRESET) {
            return true;
        } else {
            ck_assert_int_eq(errno, EAGAIN);
            return false;
        }
    }
}

// A connection whose client has said nothing yet, also no hello.
static inline int rig_connect_raw(struct rig *rig)
{
    int pair[2];
    ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair), 0);
    ck_assert_int_lt(pair[1], RIG_FDS);
    ck_assert_int_eq(http1_accept_fd(rig->server, pair[0], true, "", RIG_TAG), 0);
    rig_forget_peer(rig, pair[1]);
    rig_turn(rig);
    return pair[1];
}

static inline struct rig_peer *rig_peer_new(struct rig *rig, int fd)
{
    struct rig_peer *peer = calloc(1, sizeof *peer);
    ck_assert_ptr_nonnull(peer);
    ck_assert_int_eq(tls_pipe_new_client(rig_client, "localhost", &peer->pipe), 0);
    rig->peers[fd] = peer;
    return peer;
}

static inline int rig_connect(struct rig *rig)
{
    int fd = rig_connect_raw(rig);
    if (!rig_tls)
        return fd;
    struct rig_peer *peer = rig_peer_new(rig, fd);
    struct buf none = BUF_INIT(0);
    ck_assert_int_eq(tls_pipe_start(peer->pipe, &peer->out), 0);
    for (int i = 0; i < 4; i++) { // the ticket comes last
        ck_assert(rig_send_records(rig, fd));
        ck_assert(!rig_recv(rig, fd, &none));
    }
    ck_assert(tls_pipe_is_established(peer->pipe));
    ck_assert_uint_eq(none.len, 0);
    return fd;
}

// A number at the start of bytes that end without a NUL.
static inline size_t rig_number(const char *ptr, size_t left, int base)
{
    char text[24];
    size_t len = left < sizeof text - 1 ? left : sizeof text - 1;
    memcpy(text, ptr, len);
    text[len] = '\0';
    return strtoul(text, NULL, base);
}

// Reads all answers in bytes into "200 100 404 …"; their bodies, joined by '|', into bodies.
// is_head: answers have no body. Checks the framing; a cut answer ends in "cut".
static inline void rig_statuses(struct slice bytes, bool is_head, char *out, size_t size,
                                struct buf *bodies)
{
    size_t at = 0;
    out[0] = '\0';
    while (bytes.len > 0) {
        long end = slice_find(bytes, SLICE_LIT("\r\n\r\n"));
        if (end < 0 || !slice_starts(bytes, "HTTP/1.1 ")) {
            snprintf(out + at, size - at, "%scut", at ? " " : "");
            return;
        }
        struct slice head = slice_of(bytes.ptr, (size_t)end + 2);
        bytes = slice_from(bytes, (size_t)end + 4);
        int status = (int)rig_number(head.ptr + 9, head.len - 9, 10);
        at += (size_t)snprintf(out + at, size - at, "%s%d", at ? " " : "", status);
        bool has_body = !is_head && status != 100 && status != 204 && status != 304;
        long length_at = slice_find(head, SLICE_LIT("\r\ncontent-length: "));
        bool is_chunked = slice_find(head, SLICE_LIT("\r\ntransfer-encoding: chunked\r\n")) >= 0;
        size_t length_text = (size_t)length_at + 18;
        size_t length = length_at >= 0
                            ? rig_number(head.ptr + length_text, head.len - length_text, 10)
                            : bytes.len;
        bool is_complete = true;
        if (has_body && is_chunked) {
            for (;;) {
                long line = slice_find(bytes, SLICE_LIT("\r\n"));
                is_complete = line > 0;
                if (!is_complete)
                    break;
                size_t chunk = rig_number(bytes.ptr, bytes.len, 16);
                bytes = slice_from(bytes, (size_t)line + 2);
                is_complete = bytes.len >= chunk + 2 && memcmp(bytes.ptr + chunk, "\r\n", 2) == 0;
                if (bodies && bytes.len)
                    ck_assert_int_eq(
                        buf_append(bodies, slice_of(bytes.ptr, is_complete ? chunk : bytes.len)),
                        0);
                if (!is_complete)
                    break;
                bytes = slice_from(bytes, chunk + 2);
                if (chunk == 0)
                    break;
            }
        } else if (has_body) {
            is_complete = bytes.len >= length;
            size_t have = is_complete ? length : bytes.len;
            if (bodies)
                ck_assert_int_eq(buf_append(bodies, slice_of(bytes.ptr, have)), 0);
            bytes = slice_from(bytes, have);
        }
        if (!is_complete) {
            snprintf(out + at, size - at, " cut");
            return;
        }
        if (has_body && bodies)
            ck_assert_int_eq(buf_append_char(bodies, '|'), 0);
    }
}
