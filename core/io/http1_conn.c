// Connections of the HTTP/1.1 server: reading, phases, timers and closing. Everything that may
// close a connection happens at one of three places, none of them below a handler's callback:
// a readable event, an expired timer, or the service at the end of the turn. Callbacks only set
// flags and mark the connection dirty.
#include "io/http1_internal.h"

#include <errno.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#define ROUNDS_PER_SERVICE 32
#define STALL_LOOKS 4 // within the limit of a stalled writer

static void on_poll(uv_poll_t *poll, int status, int events);
static void on_timer(struct loop_timer *timer);
static void on_stall(struct loop_timer *timer);
static void on_eof(struct http1_conn *conn);

// True when the kernel holds bytes of the peer that nobody has read.
bool http1_conn_has_unread(const struct http1_conn *conn)
{
    char byte;
    return recv(conn->fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) > 0;
}

int http1_accept_fd(struct http1_server *server, int fd, bool is_unix, const char *peer_ip,
                    uint32_t listener_tag)
{
    enum http1_refusal why;
    enum http1_seat seat = http1_ips_enter(server, is_unix, listener_tag, peer_ip, &why);
    if (seat == HTTP1_SEAT_NONE) {
        http1_refuse(server, listener_tag, fd, why);
        return GW_EFULL;
    }
    struct http1_conn *conn = calloc(1, sizeof *conn);
    if (!conn || uv_poll_init(loop_uv(server->loop), &conn->poll, fd) != 0) {
        free(conn);
        http1_ips_leave(server->ips, seat, peer_ip);
        http1_refuse(server, listener_tag, fd, HTTP1_REFUSED_FULL);
        return GW_ENOMEM;
    }
    if (!is_unix) {
        int on = 1;
        (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    }
    conn->poll.data = conn;
    conn->server = server;
    conn->fd = fd;
    conn->seat = seat;
    conn->is_unix = is_unix;
    conn->tag = listener_tag;
    conn->is_tls = listener_tag < HTTP1_TAGS && server->tls[listener_tag];
    for (size_t i = 0; peer_ip && peer_ip[i] && i + 1 < sizeof conn->peer_ip; i++)
        conn->peer_ip[i] = peer_ip[i];
    buf_init(&conn->input, 0);
    buf_init(&conn->out, HTTP1_QUEUE_MAX);
    buf_init(&conn->sealed, HTTP1_SEALED_MAX);
    conn->chunk_at = HTTP1_NO_CHUNK;
    conn->phase = conn->is_tls ? HTTP1_HANDSHAKE : HTTP1_IDLE;
    conn->timer_phase = HTTP1_DEAD;
    loop_timer_init(server->loop, &conn->timer, on_timer);
    loop_timer_init(server->loop, &conn->stall, on_stall);
    list_init(&conn->dirty);
    list_push_back(&server->conns, &conn->node);
    server->counters.accepted++;
    server->counters.open++;
    http1_conn_dirty(conn);
    return 0;
}

static void free_conn(uv_handle_t *handle)
{
    free(handle->data);
}

// The stream, if any, has been taken out by the caller.
void http1_conn_close(struct http1_conn *conn, bool with_reset)
{
    if (conn->phase == HTTP1_DEAD)
        return;
    gw_require(!conn->busy);
    struct http1_server *server = conn->server;
    if (conn->is_tls && !with_reset && http1_conn_queued(conn) == 0)
        (void)http1_tls_say_goodbye(conn);
    conn->phase = HTTP1_DEAD;
    if (conn->stream && !conn->stream->is_live) { // its head was still being read
        struct http1_stream *stream = conn->stream;
        conn->stream = NULL;
        http1_stream_close(stream, 0, "");
    }
    gw_require(!conn->stream);
    loop_timer_stop(&conn->timer);
    loop_timer_stop(&conn->stall);
    list_remove(&conn->node);
    list_remove(&conn->dirty);
    buf_free(&conn->input);
    buf_free(&conn->out);
    buf_free(&conn->sealed);
    tls_pipe_free(conn->tls);
    http1_ips_leave(server->ips, conn->seat, conn->peer_ip);
    server->counters.closed++;
    server->counters.open--;
    if (with_reset) {
        struct linger linger = {.l_onoff = 1, .l_linger = 0};
        (void)setsockopt(conn->fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
    }
    uv_close((uv_handle_t *)&conn->poll, free_conn); // takes the descriptor out of epoll now
    close(conn->fd);
}

// Ends the connection under a stream; what is queued is offered to the kernel once, so that the
// client sees all that came before the cut.
void http1_conn_fail(struct http1_conn *conn, int err, const char *reason, bool with_reset)
{
    struct http1_stream *stream = conn->stream;
    bool is_live = stream && stream->is_live;
    if (is_live && err != GW_ERESET && !with_reset && http1_conn_queued(conn) > 0 &&
        http1_conn_flush(conn) != 0)
        with_reset = true;
    // Without a length the end of the connection would pass for the end of the answer.
    if (is_live && stream->head_sent && stream->framing == HTTP1_UNTIL_CLOSE)
        with_reset = true;
    if (is_live)
        conn->stream = NULL;
    conn->is_cut = is_live;
    http1_conn_close(conn, with_reset);
    if (is_live)
        http1_stream_close(stream, err, reason);
}

void http1_conn_dirty(struct http1_conn *conn)
{
    if (list_is_empty(&conn->dirty)) {
        list_push_back(&conn->server->dirty, &conn->dirty);
        loop_defer(conn->server->loop, &conn->server->service_task);
    }
}

// Answers with a refusal and gives the connection up. The handler, if it had the request, is told.
static void conn_refuse(struct http1_conn *conn, int status, const char *message)
{
    struct http1_stream *stream = conn->stream;
    int err = status == 413 ? GW_ETOOBIG : status == 408 ? GW_ETIMEOUT : GW_EPROTO;
    if (status == 408)
        conn->server->counters.timeouts++;
    else
        conn->server->counters.parse_errors++;
    if (stream && stream->head_sent) {
        conn->is_discarding = true; // nothing more is parsed
        stream->is_keep_alive = false;
        if (!stream->is_ended && !stream->abort_err) {
            stream->abort_err = err;
            stream->abort_reason = message;
        }
        http1_conn_dirty(conn);
        return;
    }
    if (stream && !stream->is_live)
        http1_parser_partial(&conn->parser, &stream->request);
    conn->phase = HTTP1_FLUSH;
    conn->discard_left = HTTP1_LINGER_BYTES;
    conn->stream = NULL;
    if (http1_queue_refusal(conn, stream ? &stream->request : NULL, status, message) != 0)
        buf_clear(&conn->out);
    http1_conn_dirty(conn);
    if (stream)
        http1_stream_close(stream, err, message);
}

static bool on_body(void *user, struct slice bytes)
{
    struct http1_conn *conn = user;
    struct http1_stream *stream = conn->stream;
    if (!stream || stream->is_ended) { // answered already: the rest is dropped
        if (bytes.len > conn->discard_left) {
            conn->discard_left = 0;
            conn->is_discarding = true;
            return false;
        }
        conn->discard_left -= (uint32_t)bytes.len;
        return true;
    }
    stream->received += bytes.len;
    conn->server->handler->on_body(stream->user, bytes);
    return !stream->is_paused && !stream->abort_err && !stream->refuse_status;
}

static void end_body(struct http1_conn *conn)
{
    struct http1_stream *stream = conn->stream;
    if (!stream) { // the answer went out before
        conn->phase = HTTP1_IDLE;
        return;
    }
    conn->phase = HTTP1_WAIT;
    stream->expects_continue = false;
    if (!stream->is_ended && !stream->abort_err && !stream->refuse_status)
        conn->server->handler->on_complete(stream->user);
}

static void begin_request(struct http1_conn *conn)
{
    struct http1_stream *stream = conn->stream;
    conn->server->counters.requests++;
    conn->phase = HTTP1_BODY;
    conn->discard_left = HTTP1_SKIP_BYTES;
    stream->is_live = true;
    conn->server->handler->on_request(stream->user, stream);
}

static bool may_parse(const struct http1_conn *conn)
{
    const struct http1_stream *stream = conn->stream;
    if (conn->is_discarding)
        return false;
    switch (conn->phase) {
    case HTTP1_IDLE:
    case HTTP1_HEADING:
    case HTTP1_SKIP: return true;
    case HTTP1_BODY:
        return (!stream->is_paused || stream->is_ended) && !stream->abort_err &&
               !stream->refuse_status;
    default: return false;
    }
}

// Parses as far as it may; gives how many bytes were used. Never closes the connection.
static size_t conn_parse(struct http1_conn *conn, const char *data, size_t len)
{
    size_t used = 0;
    conn->busy++;
    while (may_parse(conn) && (used < len || conn->parser.may_continue)) {
        if (conn->phase == HTTP1_IDLE) {
            conn->stream = http1_stream_new(conn);
            if (!conn->stream) {
                conn_refuse(conn, 503, "out of memory");
                break;
            }
            // The handler's user stands in for the stream's until on_request sets one.
            conn->stream->user = conn->server->user;
            http1_parser_start(&conn->parser, &conn->server->limits, conn->stream->request.arena,
                               on_body, conn);
            conn->phase = HTTP1_HEADING;
            conn->request_count++;
        }
        size_t taken;
        struct http1_stream *stream = conn->stream;
        // While the rest of an answered request is skipped there is no request to fill in.
        struct http1_request *request = stream ? &stream->request : NULL;
        enum http1_parsed event =
            http1_parser_feed(&conn->parser, data + used, len - used, &taken, request);
        used += taken;
        if (event == HTTP1_PARSED_REFUSED ||
            (event == HTTP1_PARSED_HEAD &&
             http1_check_head(&conn->parser, request, &stream->expects_continue) != 0)) {
            if (conn->phase == HTTP1_SKIP)
                conn->is_discarding = true;
            else
                conn_refuse(conn, conn->parser.status, conn->parser.message);
        } else if (event == HTTP1_PARSED_HEAD) {
            bool has_body = stream->request.has_body;
            begin_request(conn);
            if (!has_body)
                end_body(conn);
        } else if (event == HTTP1_PARSED_COMPLETE) {
            end_body(conn);
        } else if (event == HTTP1_PARSED_MORE && !conn->parser.may_continue) {
            break;
        }
    }
    conn->busy--;
    return used;
}

static void conn_linger(struct http1_conn *conn)
{
    if (conn->is_tls && !http1_tls_say_goodbye(conn))
        return;
    bool is_clean = !conn->is_discarding && conn->input.len == 0 && conn->phase == HTTP1_FLUSH &&
                    conn->discard_left == 0 && !http1_conn_has_unread(conn);
    if (is_clean || conn->is_eof || shutdown(conn->fd, SHUT_WR) != 0) {
        http1_conn_close(conn, false);
        return;
    }
    buf_free(&conn->input);
    conn->phase = HTTP1_LINGER;
    conn->discard_left = HTTP1_LINGER_BYTES;
}

// The answer is flushed: the stream ends, and the connection goes on or closes.
static void finish_stream(struct http1_conn *conn)
{
    struct http1_stream *stream = conn->stream;
    bool is_complete = conn->phase == HTTP1_WAIT;
    // During a drain too when the head, sent before, promised it: the client may have its next
    // request on the way. The answer to that one will say that it is the last.
    bool is_kept = stream->is_keep_alive && !conn->is_discarding && !conn->is_eof;
    conn->stream = NULL;
    conn->was_above_high = false;
    if (is_kept) {
        conn->phase = is_complete ? HTTP1_IDLE : HTTP1_SKIP;
    } else {
        conn->phase = HTTP1_FLUSH;
        conn->discard_left = is_complete ? 0 : HTTP1_LINGER_BYTES;
    }
    http1_stream_close(stream, 0, "answered");
}

// Chooses what to wait for: called when nothing more can be done in this turn.
static void conn_update(struct http1_conn *conn)
{
    const struct http1_limits *limits = &conn->server->limits;
    struct http1_stream *stream = conn->stream;
    bool is_paused = conn->phase == HTTP1_BODY && stream->is_paused && !stream->is_ended;
    bool reads = false;
    switch (conn->phase) {
    case HTTP1_IDLE:
    case HTTP1_HANDSHAKE:
    case HTTP1_HEADING:
    case HTTP1_SKIP: reads = true; break;
    case HTTP1_BODY: reads = !is_paused; break;
    case HTTP1_WAIT: reads = conn->input.len < limits->pipelined_bytes; break;
    case HTTP1_FLUSH:
    case HTTP1_LINGER: reads = conn->discard_left > 0; break;
    case HTTP1_DEAD: return;
    }
    if (conn->is_discarding && conn->discard_left == 0)
        reads = false;
    // A timer belongs to one phase of one request; within it only the body's is restarted, on
    // reading.
    if (conn->timer_phase != conn->phase || conn->timer_request != conn->request_count) {
        uint32_t delay = 0;
        switch (conn->phase) {
        case HTTP1_IDLE:
            delay = limits->keep_alive_ms;
            if (conn->server->is_draining && delay > conn->server->drain_idle_ms)
                delay = conn->server->drain_idle_ms;
            break;
        case HTTP1_HANDSHAKE: // from accept on
        case HTTP1_HEADING: delay = limits->header_ms; break;
        case HTTP1_BODY:
        case HTTP1_SKIP: delay = limits->body_idle_ms; break;
        case HTTP1_LINGER: delay = limits->linger_ms; break;
        default: break;
        }
        conn->timer_phase = conn->phase;
        conn->body_window = 0;
        conn->timer_request = conn->request_count;
        if (delay)
            loop_timer_start(&conn->timer, delay);
        else
            loop_timer_stop(&conn->timer);
    }
    if (is_paused)
        loop_timer_stop(&conn->timer);
    else if (conn->phase == HTTP1_BODY && !loop_timer_is_running(&conn->timer))
        loop_timer_start(&conn->timer, limits->body_idle_ms);
    if (http1_conn_queued(conn) > 0 && !loop_timer_is_running(&conn->stall))
        http1_stall_start(conn);

    int mask = http1_conn_queued(conn) > 0 ? UV_WRITABLE : 0;
    if (!conn->is_eof)
        mask |= reads ? UV_READABLE : UV_DISCONNECT;
    if (mask == conn->mask)
        return;
    conn->mask = mask;
    int err = mask ? uv_poll_start(&conn->poll, mask, on_poll) : uv_poll_stop(&conn->poll);
    if (gw_unexpected(err != 0))
        http1_conn_fail(conn, GW_EINTERNAL, "polling failed", true);
}

static bool service_once(struct http1_conn *conn)
{
    if (conn->phase == HTTP1_DEAD)
        return false;
    struct http1_stream *stream = conn->stream;
    if (stream && stream->abort_err) {
        http1_conn_fail(conn, stream->abort_err, stream->abort_reason, false);
        return false;
    }
    if (stream && stream->refuse_status) {
        int status = stream->refuse_status;
        stream->refuse_status = 0;
        conn_refuse(conn, status, stream->refuse_message);
        return true;
    }
    if (stream && stream->expects_continue && conn->phase == HTTP1_BODY && !stream->is_paused) {
        stream->expects_continue = false;
        if (http1_queue_continue(conn) != 0) {
            http1_conn_fail(conn, GW_ENOMEM, "out of memory", false);
            return false;
        }
    }
    if (http1_conn_queued(conn) > 0 && http1_conn_flush(conn) != 0) {
        http1_conn_fail(conn, GW_ERESET, "client disconnected", false);
        return false;
    }
    if (stream && conn->was_above_high &&
        http1_conn_queued(conn) < conn->server->limits.low_water_bytes) {
        conn->was_above_high = false;
        if (!stream->is_ended) {
            conn->busy++;
            conn->server->handler->on_writable(stream->user);
            conn->busy--;
            if (stream->abort_err)
                return true;
        }
    }
    if (http1_conn_queued(conn) == 0 && stream && stream->is_ended) {
        finish_stream(conn); // on_close may have closed this connection too (abort_all, drain)
        if (conn->phase == HTTP1_DEAD)
            return false;
    }
    if (http1_conn_queued(conn) == 0 && conn->phase == HTTP1_FLUSH) {
        conn_linger(conn);
        return false;
    }
    if (conn->phase == HTTP1_SKIP && conn->is_discarding) {
        conn->phase = HTTP1_FLUSH;
        return true;
    }
    if (may_parse(conn) && (conn->input.len > 0 || conn->parser.may_continue)) {
        size_t before = conn->input.len;
        bool may_continue = conn->parser.may_continue;
        size_t used = conn_parse(conn, buf_slice(&conn->input).ptr, conn->input.len);
        buf_consume(&conn->input, used);
        if (conn->input.len == 0)
            buf_free(&conn->input);
        return used > 0 || (may_continue && !conn->parser.may_continue) || before == 0;
    }
    return false;
}

void http1_run_service(struct loop_task *task)
{
    struct http1_server *server = list_entry(task, struct http1_server, service_task);
    struct list batch, *node;
    list_init(&batch);
    list_insert_before(&server->dirty, &batch);
    list_remove(&server->dirty);
    while ((node = list_pop_front(&batch))) {
        struct http1_conn *conn = list_entry(node, struct http1_conn, dirty);
        int rounds = 0;
        while (service_once(conn) && ++rounds < ROUNDS_PER_SERVICE)
            continue;
        if (rounds == ROUNDS_PER_SERVICE)
            http1_conn_dirty(conn); // others first
        else if (conn->is_tls && conn->phase != HTTP1_DEAD && http1_tls_has_ended(conn))
            on_eof(conn); // what came before the goodbye has been served
        if (conn->phase != HTTP1_DEAD)
            conn_update(conn);
    }
}

// ---- events

static void on_eof(struct http1_conn *conn)
{
    conn->is_eof = true;
    struct http1_stream *stream = conn->stream;
    if (stream && stream->is_live && !stream->is_ended) {
        http1_conn_fail(conn, GW_ERESET, "client disconnected", false);
        return;
    }
    // An answer that is complete, or a refusal, is still offered to a half-closed client.
    if ((stream && stream->is_live) || conn->phase == HTTP1_FLUSH)
        http1_conn_dirty(conn);
    else
        http1_conn_close(conn, false);
}

static void on_readable(struct http1_conn *conn)
{
    struct http1_server *server = conn->server;
    if (conn->is_tls && !http1_tls_may_read(conn))
        return;
    ssize_t got = recv(conn->fd, server->read_buf, HTTP1_READ_BYTES, 0);
    if (got < 0) {
        if (errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR)
            http1_conn_fail(conn, GW_ERESET, "client disconnected", false);
        return;
    }
    if (got == 0) {
        on_eof(conn);
        return;
    }
    server->counters.bytes_in += (uint64_t)got;
    http1_conn_dirty(conn);
    if (conn->phase == HTTP1_FLUSH || conn->phase == HTTP1_LINGER || conn->is_discarding) {
        uint32_t dropped = (size_t)got < conn->discard_left ? (uint32_t)got : conn->discard_left;
        conn->discard_left -= dropped;
        return;
    }
    const char *bytes = server->read_buf;
    size_t len = (size_t)got;
    if (conn->is_tls && !http1_tls_open(conn, &bytes, &len))
        return;
    if ((conn->phase == HTTP1_BODY || conn->phase == HTTP1_SKIP) &&
        loop_timer_is_running(&conn->timer)) {
        conn->body_window += (uint32_t)len;
        if (conn->body_window >= server->limits.body_window_bytes) {
            conn->body_window = 0;
            loop_timer_start(&conn->timer, server->limits.body_idle_ms);
        }
    }
    size_t used = 0;
    if (conn->input.len == 0)
        used = conn_parse(conn, bytes, len);
    if (used < len && conn->phase != HTTP1_FLUSH && !conn->is_discarding &&
        buf_append(&conn->input, slice_of(bytes + used, len - used)) != 0)
        http1_conn_fail(conn, GW_ENOMEM, "out of memory", true);
}

static void on_poll(uv_poll_t *poll, int status, int events)
{
    struct http1_conn *conn = poll->data;
    if (status < 0) {
        conn->mask = 0;
        http1_conn_fail(conn, GW_ERESET, "client disconnected", false);
        return;
    }
    if (events & UV_WRITABLE)
        http1_conn_dirty(conn);
    if (events & UV_READABLE)
        on_readable(conn);
    else if (events & UV_DISCONNECT)
        on_eof(conn);
}

// A request that has come and is only not yet read is still answered. In a drain, where the close
// comes early, one that is on its way meets a lingering half and no reset.
static void close_idle(struct http1_conn *conn)
{
    if (conn->input.len > 0 || http1_conn_has_unread(conn)) {
        loop_timer_start(&conn->timer, conn->server->limits.linger_ms);
    } else if (conn->server->is_draining) {
        conn->phase = HTTP1_FLUSH;
        conn->discard_left = HTTP1_LINGER_BYTES;
        http1_conn_dirty(conn);
    } else {
        http1_conn_close(conn, false);
    }
}

static void on_timer(struct loop_timer *timer)
{
    struct http1_conn *conn = list_entry(timer, struct http1_conn, timer);
    switch (conn->phase) {
    case HTTP1_HEADING:
        if (conn->parser.is_started)
            conn_refuse(conn, 408, "the request head took too long");
        else
            http1_conn_close(conn, false); // nothing but an empty line
        break;
    case HTTP1_BODY:
        // Answered, but not yet taken by the client: the write timer watches that.
        if (!conn->stream->is_ended)
            conn_refuse(conn, 408, "the request body stalled");
        break;
    case HTTP1_HANDSHAKE:
        conn->server->counters.timeouts++;
        http1_conn_close(conn, false);
        break;
    case HTTP1_IDLE: close_idle(conn); break;
    case HTTP1_SKIP:
    case HTTP1_LINGER: http1_conn_close(conn, false); break;
    default: break;
    }
}

// Bytes that the kernel holds for the client; it keeps them until they are acknowledged.
static int unsent_bytes(const struct http1_conn *conn)
{
    int count = 0;
    return ioctl(conn->fd, SIOCOUTQ, &count) == 0 ? count : 0;
}

void http1_stall_start(struct http1_conn *conn)
{
    uint32_t limit = conn->server->limits.write_stall_ms;
    conn->stall_since_ms = loop_now_ms(conn->server->loop);
    conn->stall_unsent = unsent_bytes(conn);
    loop_timer_start(&conn->stall, limit / STALL_LOOKS + (limit % STALL_LOOKS != 0));
}

// The kernel asks for more only when a good part of its megabytes is gone: a client may read for
// many minutes before that, so the kernel is asked what it still holds.
static void on_stall(struct loop_timer *timer)
{
    struct http1_conn *conn = list_entry(timer, struct http1_conn, stall);
    const uint32_t limit = conn->server->limits.write_stall_ms;
    uint64_t now = loop_now_ms(conn->server->loop);
    if (http1_conn_queued(conn) == 0)
        return;
    int unsent = unsent_bytes(conn);
    if (unsent < conn->stall_unsent) {
        conn->stall_unsent = unsent;
        conn->stall_since_ms = now;
    }
    if (now - conn->stall_since_ms < limit) {
        uint64_t left = conn->stall_since_ms + limit - now, look = limit / STALL_LOOKS + 1;
        loop_timer_start(&conn->stall, (uint32_t)(left < look ? left : look));
        return;
    }
    conn->server->counters.timeouts++;
    // A reset, so that the kernel's buffer goes too.
    http1_conn_fail(conn, GW_ETIMEOUT, "client stopped reading", true);
}
