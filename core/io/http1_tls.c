// The TLS side of the HTTP/1.1 server. A connection reads ciphertext into the worker's buffer and
// opens it into a second one, whole, so that nothing of it is ever left over; from there on all is
// as on a plain connection. Answers stay plaintext in conn->out, where chunks grow; what the socket
// is about to take is sealed into conn->sealed, at most some 64 KiB ahead, and sent with one write.
#include "io/http1_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/socket.h>

#define SEALED_AHEAD (64u * 1024u)
#define HANDSHAKES_PER_TURN 8 // one costs up to a millisecond of a worker that also has streams

int http1_server_use_tls(struct http1_server *server, uint32_t tag, struct tls_server *tls)
{
    gw_require(tag < HTTP1_TAGS);
    if (!server->plain_buf)
        server->plain_buf = malloc(TLS_PLAIN_ROOM(HTTP1_READ_BYTES));
    if (!server->plain_buf)
        return GW_ENOMEM;
    server->tls[tag] = tls;
    return 0;
}

// What is over this turn's measure stays in the socket, which the next turn finds readable again.
bool http1_tls_may_read(struct http1_conn *conn)
{
    struct http1_server *server = conn->server;
    if (conn->phase != HTTP1_HANDSHAKE)
        return true;
    uint64_t turn = loop_turn_count(server->loop);
    if (server->handshake_turn != turn) {
        server->handshake_turn = turn;
        server->handshakes = 0;
    }
    return server->handshakes++ < HANDSHAKES_PER_TURN;
}

// Gives up a connection that has no answer under way; what is in sealed still goes out.
static void give_up(struct http1_conn *conn)
{
    struct http1_stream *stream = conn->stream;
    conn->server->counters.tls_failures++;
    if (stream && stream->is_live) {
        http1_conn_fail(conn, GW_ERESET, "broken TLS of the client", true);
        return;
    }
    conn->phase = HTTP1_FLUSH;
    conn->discard_left = HTTP1_LINGER_BYTES;
    conn->stream = NULL;
    buf_clear(&conn->out);
    conn->chunk_at = HTTP1_NO_CHUNK;
    if (stream)
        http1_stream_close(stream, 0, "");
}

static void refuse_plain(struct http1_conn *conn)
{
    static const char answer[] = "HTTP/1.1 400 Bad Request\r\n"
                                 "content-type: text/plain; charset=utf-8\r\n"
                                 "content-length: 40\r\n"
                                 "connection: close\r\n\r\n"
                                 "this port speaks HTTPS; use an https URL";
    if (buf_append(&conn->sealed, slice_of(answer, sizeof answer - 1)) != 0)
        buf_clear(&conn->sealed);
    give_up(conn);
}

bool http1_tls_open(struct http1_conn *conn, const char **bytes, size_t *len)
{
    struct http1_server *server = conn->server;
    if (!conn->tls) {
        if (**bytes >= 'A' && **bytes <= 'Z') { // a method; TLS starts with a control byte
            refuse_plain(conn);
            return false;
        }
        // Only now: those who connect and say nothing cost no more than on a plain port.
        if (tls_pipe_new_server(server->tls[conn->tag], &conn->tls) != 0) {
            give_up(conn);
            return false;
        }
    }
    struct slice cipher = slice_of(*bytes, *len);
    int err = tls_pipe_read(conn->tls, &cipher, server->plain_buf, TLS_PLAIN_ROOM(HTTP1_READ_BYTES),
                            len, &conn->sealed);
    if (err || gw_unexpected(cipher.len > 0)) {
        give_up(conn);
        return false;
    }
    if (conn->phase == HTTP1_HANDSHAKE && tls_pipe_is_established(conn->tls)) {
        conn->phase = HTTP1_IDLE;
        server->counters.tls_handshakes++;
        server->counters.tls_resumed += tls_pipe_is_resumed(conn->tls);
    }
    *bytes = server->plain_buf;
    return *len > 0;
}

bool http1_tls_has_ended(const struct http1_conn *conn)
{
    return conn->tls && !conn->is_eof && tls_pipe_is_closed(conn->tls);
}

static int seal_some(struct http1_conn *conn)
{
    while (conn->out.len > 0 && conn->sealed.len < SEALED_AHEAD) {
        size_t len = http1_conn_sendable(conn);
        if (len > SEALED_AHEAD)
            len = SEALED_AHEAD;
        // Records of 16 KiB, each with some bytes of its own.
        if (!buf_room(&conn->sealed, len + (len / 16384u + 1) * 64u) ||
            tls_pipe_write(conn->tls, slice_of(buf_slice(&conn->out).ptr, len), &conn->sealed) != 0)
            return GW_ERESET;
        http1_conn_took(conn, len);
    }
    if (conn->out.len == 0)
        buf_free(&conn->out);
    return 0;
}

int http1_tls_flush(struct http1_conn *conn)
{
    for (;;) {
        int err = seal_some(conn);
        if (err)
            return err;
        size_t len = conn->sealed.len;
        if (len == 0)
            break;
        ssize_t sent = send(conn->fd, buf_slice(&conn->sealed).ptr, len, MSG_NOSIGNAL);
        if (sent < 0) {
            if (errno == EINTR)
                continue;
            return errno == EAGAIN || errno == EWOULDBLOCK ? 0 : GW_ERESET;
        }
        conn->server->counters.bytes_out += (uint64_t)sent;
        buf_consume(&conn->sealed, (size_t)sent);
        if ((size_t)sent < len) {
            http1_stall_start(conn);
            return 0;
        }
        loop_timer_stop(&conn->stall);
    }
    buf_free(&conn->sealed);
    loop_timer_stop(&conn->stall);
    return 0;
}

bool http1_tls_say_goodbye(struct http1_conn *conn)
{
    if (!conn->tls || conn->is_cut || tls_pipe_is_close_sent(conn->tls))
        return true;
    tls_pipe_close(conn->tls, &conn->sealed);
    return http1_tls_flush(conn) != 0 || conn->sealed.len == 0;
}

// Before the handshake an alert may go out in the clear; it tells more than a reset.
void http1_tls_refuse_fd(int fd)
{
    static const char alert[] = "\x15\x03\x03\x00\x02\x02\x50"; // fatal, internal_error
    (void)send(fd, alert, sizeof alert - 1, MSG_NOSIGNAL | MSG_DONTWAIT);
}
