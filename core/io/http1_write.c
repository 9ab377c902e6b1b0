// Answers: heads, body framing, the queue and its one write per turn. All body bytes of a turn
// become one chunk: its size line is a slot of fixed width, filled in when the queue is sent.
#include "io/http1_internal.h"

#include "base/clock.h"

#include <errno.h>
#include <stdio.h>
#include <sys/socket.h>
#include <time.h>

#define CHUNK_SLOT 10u // "ffffffff\r\n"
#define CHUNK_END 7u   // "\r\n0\r\n\r\n"
#define SEAL_MOVE_MAX 4096u

static struct slice reason_of(int status)
{
    switch (status) {
    case 200: return SLICE_LIT("OK");
    case 201: return SLICE_LIT("Created");
    case 202: return SLICE_LIT("Accepted");
    case 204: return SLICE_LIT("No Content");
    case 206: return SLICE_LIT("Partial Content");
    case 301: return SLICE_LIT("Moved Permanently");
    case 302: return SLICE_LIT("Found");
    case 303: return SLICE_LIT("See Other");
    case 304: return SLICE_LIT("Not Modified");
    case 307: return SLICE_LIT("Temporary Redirect");
    case 308: return SLICE_LIT("Permanent Redirect");
    case 400: return SLICE_LIT("Bad Request");
    case 401: return SLICE_LIT("Unauthorized");
    case 402: return SLICE_LIT("Payment Required");
    case 403: return SLICE_LIT("Forbidden");
    case 404: return SLICE_LIT("Not Found");
    case 405: return SLICE_LIT("Method Not Allowed");
    case 408: return SLICE_LIT("Request Timeout");
    case 409: return SLICE_LIT("Conflict");
    case 410: return SLICE_LIT("Gone");
    case 412: return SLICE_LIT("Precondition Failed");
    case 413: return SLICE_LIT("Content Too Large");
    case 414: return SLICE_LIT("URI Too Long");
    case 415: return SLICE_LIT("Unsupported Media Type");
    case 417: return SLICE_LIT("Expectation Failed");
    case 422: return SLICE_LIT("Unprocessable Content");
    case 426: return SLICE_LIT("Upgrade Required");
    case 429: return SLICE_LIT("Too Many Requests");
    case 431: return SLICE_LIT("Request Header Fields Too Large");
    case 500: return SLICE_LIT("Internal Server Error");
    case 501: return SLICE_LIT("Not Implemented");
    case 502: return SLICE_LIT("Bad Gateway");
    case 503: return SLICE_LIT("Service Unavailable");
    case 504: return SLICE_LIT("Gateway Timeout");
    case 505: return SLICE_LIT("HTTP Version Not Supported");
    case 529: return SLICE_LIT("Overloaded");
    default: return status < 400 ? SLICE_LIT("OK") : SLICE_LIT("Error");
    }
}

static struct slice date_header(struct http1_server *server)
{
    int64_t second = clock_wall_ms() / 1000;
    if (second != server->date_second) {
        static const char days[][4] = {"Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"};
        static const char months[][4] = {"Jan", "Feb", "Mar", "Apr", "May", "Jun",
                                         "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"};
        time_t seconds = (time_t)second;
        struct tm tm;
        if (!gmtime_r(&seconds, &tm))
            return SLICE_LIT("");
        snprintf(server->date, sizeof server->date, "%s, %02u %s %04u %02u:%02u:%02u GMT",
                 days[(unsigned)tm.tm_wday % 7u], (unsigned)tm.tm_mday % 100u,
                 months[(unsigned)tm.tm_mon % 12u], (unsigned)(tm.tm_year + 1900) % 10000u,
                 (unsigned)tm.tm_hour % 100u, (unsigned)tm.tm_min % 100u,
                 (unsigned)tm.tm_sec % 100u);
        server->date_second = second;
    }
    return slice_str(server->date);
}

// The server's own headers; a handler's copy of them is left out.
static bool is_own_header(struct slice name)
{
    switch (name.len) {
    case 4: return slice_is_nocase(name, "date");
    case 10: return slice_is_nocase(name, "connection") || slice_is_nocase(name, "keep-alive");
    case 14: return slice_is_nocase(name, "content-length");
    case 17: return slice_is_nocase(name, "transfer-encoding");
    default: return false;
    }
}

static bool is_header(const struct http1_header *header)
{
    static const char other[] = "!#$%&'*+-.^_`|~";
    if (header->name.len == 0)
        return false;
    for (size_t i = 0; i < header->name.len; i++) {
        char c = header->name.ptr[i];
        bool is_alnum = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
        if (!is_alnum && (c == 0 || !memchr(other, c, sizeof other - 1)))
            return false;
    }
    for (size_t i = 0; i < header->value.len; i++) {
        unsigned char c = (unsigned char)header->value.ptr[i];
        if ((c < 0x20 && c != '\t') || c == 0x7f)
            return false;
    }
    return true;
}

static char *put(char *at, struct slice text)
{
    memcpy(at, text.ptr, text.len);
    return at + text.len;
}

static char *put_number(char *at, uint64_t number)
{
    char digits[20];
    size_t count = 0;
    do {
        digits[count++] = (char)('0' + number % 10u);
        number /= 10u;
    } while (number);
    while (count)
        *at++ = digits[--count];
    return at;
}

enum connection { CONNECTION_DEFAULT, CONNECTION_KEEP, CONNECTION_CLOSE };

// Writes a whole head; extra is how much body the caller will append at once.
static int put_head(struct http1_conn *conn, int status, const struct http1_header *headers,
                    size_t count, enum http1_framing framing, uint64_t length,
                    enum connection connection, size_t extra)
{
    size_t need = 256;
    for (size_t i = 0; i < count; i++) {
        if (!is_header(&headers[i]))
            return GW_EINVAL;
        need += headers[i].name.len + headers[i].value.len + 4;
    }
    if (need + extra > HTTP1_QUEUE_MAX)
        return GW_ETOOBIG;
    char *start = buf_room(&conn->out, need + extra);
    if (!start)
        return GW_ENOMEM;
    char *at = put(start, SLICE_LIT("HTTP/1.1 "));
    at = put_number(at, (uint64_t)status);
    *at++ = ' ';
    at = put(at, reason_of(status));
    at = put(at, SLICE_LIT("\r\n"));
    for (size_t i = 0; i < count; i++) {
        if (is_own_header(headers[i].name))
            continue;
        at = put(at, headers[i].name);
        at = put(at, SLICE_LIT(": "));
        at = put(at, headers[i].value);
        at = put(at, SLICE_LIT("\r\n"));
    }
    if (framing == HTTP1_LENGTH) {
        at = put(at, SLICE_LIT("content-length: "));
        at = put_number(at, length);
        at = put(at, SLICE_LIT("\r\n"));
    } else if (framing == HTTP1_CHUNKED) {
        at = put(at, SLICE_LIT("transfer-encoding: chunked\r\n"));
    }
    if (connection == CONNECTION_CLOSE)
        at = put(at, SLICE_LIT("connection: close\r\n"));
    else if (connection == CONNECTION_KEEP)
        at = put(at, SLICE_LIT("connection: keep-alive\r\n"));
    at = put(at, SLICE_LIT("date: "));
    at = put(at, date_header(conn->server));
    at = put(at, SLICE_LIT("\r\n\r\n"));
    buf_grew(&conn->out, (size_t)(at - start));
    return 0;
}

static void note_queued(struct http1_conn *conn)
{
    if (http1_conn_queued(conn) >= conn->server->limits.high_water_bytes)
        conn->was_above_high = true;
    http1_conn_dirty(conn);
}

static void fail_answer(struct http1_stream *stream, int err, const char *reason)
{
    if (!stream->abort_err) {
        stream->abort_err = err;
        stream->abort_reason = reason;
    }
    http1_conn_dirty(stream->conn);
}

// May the connection go on after this answer, when part of the body is still to come? Only when
// the rest is known to be small and the client is not waiting for our 100.
static bool may_keep(const struct http1_stream *stream)
{
    const struct http1_conn *conn = stream->conn;
    if (!stream->request.is_keep_alive || conn->server->is_draining || conn->is_discarding ||
        conn->is_eof)
        return false;
    if (conn->phase != HTTP1_BODY)
        return true;
    return stream->request.content_length >= 0 && !stream->expects_continue &&
           (uint64_t)stream->request.content_length - stream->received <= HTTP1_SKIP_BYTES;
}

static int respond_head(struct http1_stream *stream, int status, const struct http1_header *headers,
                        size_t count, int64_t content_length, size_t extra)
{
    struct http1_conn *conn = stream->conn;
    if (!conn || stream->abort_err || stream->refuse_status)
        return GW_ERESET;
    if (stream->head_sent || status < 200 || status > 999 || content_length < -1)
        return GW_EINVAL;
    const struct http1_request *request = &stream->request;
    bool is_bodyless = status == 204 || status == 304;
    enum http1_framing framing = content_length >= 0  ? HTTP1_LENGTH
                                 : request->is_http10 ? HTTP1_UNTIL_CLOSE
                                                      : HTTP1_CHUNKED;
    if (is_bodyless)
        framing = HTTP1_NO_BODY;
    bool is_empty = is_bodyless || request->method == HTTP1_HEAD;
    bool is_keep_alive = may_keep(stream) && (is_empty || framing != HTTP1_UNTIL_CLOSE);
    enum connection connection = !is_keep_alive       ? CONNECTION_CLOSE
                                 : request->is_http10 ? CONNECTION_KEEP
                                                      : CONNECTION_DEFAULT;
    int err = put_head(conn, status, headers, count, framing,
                       content_length >= 0 ? (uint64_t)content_length : 0, connection, extra);
    if (err)
        return err;
    stream->framing = is_empty ? HTTP1_NO_BODY : framing;
    stream->body_left = stream->framing == HTTP1_LENGTH ? (uint64_t)content_length : 0;
    stream->is_keep_alive = is_keep_alive;
    stream->head_sent = true;
    stream->expects_continue = false;
    note_queued(conn);
    return 0;
}

int http1_respond_head(struct http1_stream *stream, int status, const struct http1_header *headers,
                       size_t count, int64_t content_length)
{
    return respond_head(stream, status, headers, count, content_length, 0);
}

int http1_write(struct http1_stream *stream, struct slice bytes)
{
    struct http1_conn *conn = stream->conn;
    if (!conn || stream->abort_err || stream->refuse_status)
        return GW_ERESET;
    if (!stream->head_sent || stream->is_ended)
        return GW_EINVAL;
    if (bytes.len == 0 || stream->framing == HTTP1_NO_BODY)
        return 0;
    if (bytes.len > HTTP1_QUEUE_MAX - CHUNK_SLOT - CHUNK_END ||
        conn->out.len > HTTP1_QUEUE_MAX - CHUNK_SLOT - CHUNK_END - bytes.len)
        return GW_ENOMEM;
    if (stream->framing == HTTP1_LENGTH && bytes.len > stream->body_left) {
        fail_answer(stream, GW_EINTERNAL, "answer longer than its content-length");
        return GW_EINVAL;
    }
    bool is_chunked = stream->framing == HTTP1_CHUNKED;
    // Room for the slot and for what seals the chunk: sealing must not fail.
    char *at = buf_room(&conn->out, bytes.len + (is_chunked ? CHUNK_SLOT + CHUNK_END : 0));
    if (!at)
        return GW_ENOMEM;
    size_t grew = bytes.len;
    if (stream->framing == HTTP1_LENGTH)
        stream->body_left -= bytes.len;
    if (is_chunked && conn->chunk_at == HTTP1_NO_CHUNK) {
        conn->chunk_at = conn->out.len;
        at += CHUNK_SLOT;
        grew += CHUNK_SLOT;
    }
    memcpy(at, bytes.ptr, bytes.len);
    buf_grew(&conn->out, grew);
    stream->body_sent += bytes.len;
    note_queued(conn);
    return 0;
}

void http1_end(struct http1_stream *stream)
{
    struct http1_conn *conn = stream->conn;
    if (!conn || stream->abort_err || stream->refuse_status || stream->is_ended)
        return;
    if (!stream->head_sent) {
        fail_answer(stream, GW_EINTERNAL, "ended without an answer");
        return;
    }
    if (stream->body_left > 0) {
        fail_answer(stream, GW_EINTERNAL, "answer shorter than its content-length");
        return;
    }
    if (stream->framing == HTTP1_CHUNKED) {
        if (conn->chunk_at != HTTP1_NO_CHUNK) {
            conn->chunk_is_last = true;
        } else if (buf_append(&conn->out, SLICE_LIT("0\r\n\r\n")) != 0) {
            fail_answer(stream, GW_ENOMEM, "out of memory");
            return;
        }
    }
    stream->is_ended = true;
    http1_conn_dirty(conn);
}

int http1_respond(struct http1_stream *stream, int status, const struct http1_header *headers,
                  size_t count, struct slice body)
{
    int err = respond_head(stream, status, headers, count, (int64_t)body.len, body.len);
    if (err)
        return err;
    err = http1_write(stream, body);
    if (err)
        return err;
    http1_end(stream);
    return 0;
}

int http1_queue_continue(struct http1_conn *conn)
{
    int err = buf_append_str(&conn->out, "HTTP/1.1 100 Continue\r\n\r\n");
    if (!err)
        http1_conn_dirty(conn);
    return err;
}

int http1_queue_refusal(struct http1_conn *conn, const struct http1_request *request, int status,
                        const char *message)
{
    struct http1_server *server = conn->server;
    struct http1_header headers[18];
    size_t count = 0;
    struct buf body = BUF_INIT(64u * 1024u);
    const char *type = "text/plain; charset=utf-8";
    if (server->handler->render_refusal)
        type = server->handler->render_refusal(server->user, request, status, message, &body);
    else if (buf_printf(&body, "%d %s\n", status, message) != 0)
        buf_clear(&body);
    headers[count++] = (struct http1_header){SLICE_LIT("content-type"), slice_str(type)};
    if (status == 503)
        headers[count++] = (struct http1_header){SLICE_LIT("retry-after"), SLICE_LIT("1")};
    if (server->handler->refusal_headers && request)
        count +=
            server->handler->refusal_headers(server->user, headers + count, 16, request->arena);
    int err =
        put_head(conn, status, headers, count, HTTP1_LENGTH, body.len, CONNECTION_CLOSE, body.len);
    if (!err && !(request && request->method == HTTP1_HEAD))
        err = buf_append(&conn->out, buf_slice(&body));
    buf_free(&body);
    http1_conn_dirty(conn);
    return err;
}

// Gives the open chunk its size line, right-aligned in its slot; what stands before it moves up.
static void seal_chunk(struct http1_conn *conn)
{
    static const char hex[] = "0123456789abcdef";
    size_t size = conn->out.len - conn->chunk_at - CHUNK_SLOT;
    char *end = conn->out.mem + conn->out.off + conn->chunk_at + CHUNK_SLOT;
    end[-1] = '\n';
    end[-2] = '\r';
    size_t unused = CHUNK_SLOT - 2;
    for (char *digit = end - 3; size; size >>= 4, unused--)
        *digit-- = hex[size & 15u];
    char *front = conn->out.mem + conn->out.off;
    memmove(front + unused, front, conn->chunk_at);
    buf_consume(&conn->out, unused);
    int err = buf_append(&conn->out,
                         conn->chunk_is_last ? SLICE_LIT("\r\n0\r\n\r\n") : SLICE_LIT("\r\n"));
    gw_require(err == 0); // http1_write made the room
    conn->chunk_at = HTTP1_NO_CHUNK;
    conn->chunk_is_last = false;
}

size_t http1_conn_sendable(struct http1_conn *conn)
{
    if (conn->chunk_at == HTTP1_NO_CHUNK)
        return conn->out.len;
    // Behind a long queue the chunk stays open, so that nothing large is moved.
    if (conn->chunk_at > SEAL_MOVE_MAX)
        return conn->chunk_at;
    seal_chunk(conn);
    return conn->out.len;
}

void http1_conn_took(struct http1_conn *conn, size_t len)
{
    buf_consume(&conn->out, len);
    if (conn->chunk_at != HTTP1_NO_CHUNK)
        conn->chunk_at -= len;
}

int http1_conn_flush(struct http1_conn *conn)
{
    if (conn->is_tls)
        return http1_tls_flush(conn);
    while (conn->out.len > 0) {
        size_t len = http1_conn_sendable(conn);
        ssize_t sent = send(conn->fd, buf_slice(&conn->out).ptr, len, MSG_NOSIGNAL);
        if (sent < 0) {
            if (errno == EINTR)
                continue;
            return errno == EAGAIN || errno == EWOULDBLOCK ? 0 : GW_ERESET;
        }
        conn->server->counters.bytes_out += (uint64_t)sent;
        http1_conn_took(conn, (size_t)sent);
        if ((size_t)sent < len) {
            http1_stall_start(conn);
            return 0;
        }
        loop_timer_stop(&conn->stall);
    }
    // Memory for answers is held only while there is something to send.
    buf_free(&conn->out);
    loop_timer_stop(&conn->stall);
    return 0;
}

bool http1_head_sent(const struct http1_stream *stream)
{
    return stream->head_sent;
}

size_t http1_queued(const struct http1_stream *stream)
{
    return stream->conn ? http1_conn_queued(stream->conn) : 0;
}

bool http1_is_above_high_water(const struct http1_stream *stream)
{
    return stream->conn &&
           http1_conn_queued(stream->conn) >= stream->conn->server->limits.high_water_bytes;
}

uint64_t http1_body_bytes_sent(const struct http1_stream *stream)
{
    return stream->body_sent;
}

uint64_t http1_bytes_received(const struct http1_stream *stream)
{
    return stream->received;
}
