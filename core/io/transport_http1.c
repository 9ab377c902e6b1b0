// The life of an exchange over HTTP/1.1: taking a connection, the request, reading the answer,
// pausing, and the end. Words and phases: transport_http1.h. What fails here notes why in the fetch
// and ends it with fetch_on_finished, which comes back through h1_stop.
#include "io/transport_http1.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/socket.h>

static void fail(struct h1_conn *conn, int err)
{
    struct fetch *fetch = conn->fetch;
    if (!fetch->is_dead)
        fetch_on_finished(fetch, fetch->err ? fetch->err : err, gw_err_name(err));
}

void h1_conn_update(struct h1_conn *conn)
{
    int mask = 0;
    switch (conn->phase) {
    case H1_CONNECTING: mask = UV_WRITABLE; break;
    case H1_SHAKING:
    case H1_BUSY:
        mask = (conn->fetch->is_paused ? 0 : UV_READABLE) |
               (conn->out.len > 0 && !conn->is_write_broken ? UV_WRITABLE : 0);
        // The part of a body that lies with the caller is not in conn->out.
        if (conn->phase == H1_BUSY && !conn->fetch->is_streamed && !conn->is_body_out &&
            !conn->is_write_broken)
            mask |= UV_WRITABLE;
        break;
    case H1_READY:
    case H1_IDLE: mask = UV_READABLE; break;
    case H1_ENDING:
    case H1_CLOSED: break;
    }
    if (conn->phase == H1_CLOSED || mask == conn->mask)
        return;
    conn->mask = mask;
    int err = mask ? uv_poll_start(&conn->poll, mask, h1_conn_poll) : uv_poll_stop(&conn->poll);
    (void)gw_unexpected(err != 0);
}

// ---- the answer

static int on_line(void *user, struct slice line)
{
    return fetch_on_head_line(((struct h1_conn *)user)->fetch, line);
}

// Takes what the caller still writes of a body that nobody waits for any more.
static void drop_upload(struct h1_conn *conn)
{
    struct fetch *fetch = conn->fetch;
    long len;
    do
        len = fetch_read_body(fetch, conn->transport->bytes, H1_BYTES);
    while (len > 0 && !fetch->is_ended);
    if (!fetch->is_dead && (fetch->is_ended || len == 0))
        fetch_on_finished(fetch, 0, NULL);
}

// After each feeding, once its body bytes are consumed. The connection may be gone afterwards.
static void judge(struct h1_conn *conn)
{
    struct fetch *fetch = conn->fetch;
    const struct h1_answer *answer = &conn->answer;
    if (answer->state == H1_ANSWER_FAILED) {
        fetch_on_finished(fetch, fetch->err ? fetch->err : answer->err, answer->why);
    } else if (answer->state == H1_ANSWER_DONE) {
        // The caller of an open body writes on until it has been told to stop.
        if (fetch->is_streamed && !fetch->is_ended) {
            conn->phase = H1_ENDING;
            fetch->phase = FETCH_OVER; // the upstream has no more to do in time
            drop_upload(conn);
        } else {
            fetch_on_finished(fetch, 0, NULL);
        }
    }
}

// True when reading may go on.
static bool deliver(struct h1_conn *conn, struct slice body)
{
    struct fetch *fetch = conn->fetch;
    switch (fetch_on_bytes(fetch, body)) {
    case FETCH_WENT_ON: break;
    case FETCH_WENT_PAUSED:
        if (conn->kept.len == 0 && buf_append(&conn->kept, body) != 0)
            fail(conn, GW_ENOMEM);
        return false;
    case FETCH_WENT_STOP:
        if (!fetch->is_dead)
            fail(conn, GW_EINTERNAL);
        return false;
    }
    if (conn->answer.state == H1_ANSWER_HEAD || conn->answer.state == H1_ANSWER_BODY)
        return true;
    judge(conn);
    return false;
}

static enum h1_read read_plain(struct h1_conn *conn, size_t *len, bool *is_drained)
{
    ssize_t got = recv(conn->fd, conn->transport->bytes, H1_BYTES, MSG_DONTWAIT);
    *len = got > 0 ? (size_t)got : 0;
    *is_drained = *len < H1_BYTES;
    if (got < 0)
        return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR ? H1_READ_NOTHING
                                                                         : H1_READ_CUT;
    return got == 0 ? H1_READ_END : H1_READ_BYTES;
}

static void read_answer(struct h1_conn *conn)
{
    struct fetch *fetch = conn->fetch;
    size_t len;
    bool is_drained = false;
    // An end that TLS knows of already would not make the socket readable again.
    for (size_t total = 0; (total < H1_READ_QUOTA && !is_drained) || h1_tls_is_over(conn);
         total += len) {
        enum h1_read read =
            conn->tls ? h1_tls_read(conn, &len, &is_drained) : read_plain(conn, &len, &is_drained);
        if (read == H1_READ_NOTHING)
            return;
        if (read != H1_READ_BYTES) {
            if (read == H1_READ_CUT)
                conn->answer.is_until_close = false; // no end, whatever delimits the body
            h1_answer_end(&conn->answer);
            judge(conn);
            return;
        }
        struct slice body = h1_answer_feed(&conn->answer, conn->transport->bytes, len);
        if (fetch->is_dead || !deliver(conn, body))
            return;
    }
}

// ---- the request

static void begin_request(struct h1_conn *conn)
{
    struct fetch *fetch = conn->fetch;
    conn->phase = H1_BUSY;
    conn->bytes_sent = 0;
    conn->has_sent = false;
    h1_answer_start(&conn->answer, strcmp(fetch->method, "HEAD") == 0, fetch->head.max_bytes,
                    on_line, conn);
    int err = fetch_on_request(fetch, conn->peer_ip, conn->is_reused);
    if (err == 0)
        err = h1_request_begin(conn);
    if (err)
        fail(conn, err);
    else
        h1_conn_update(conn);
}

static void go_on_sending(struct h1_conn *conn)
{
    int err = h1_request_send(conn);
    if (err)
        fail(conn, err);
}

// ---- events

// TCP is there: the request, or first a handshake.
static void on_connected(struct h1_conn *conn)
{
    if (conn->origin->tls == NULL) {
        begin_request(conn);
        return;
    }
    fetch_on_connected(conn->fetch);
    int err = h1_tls_begin(conn);
    if (err) {
        fail(conn, err);
        return;
    }
    h1_flush(conn);
    h1_conn_update(conn);
}

static void on_connecting(struct h1_conn *conn)
{
    int err = h1_conn_dialled(conn);
    if (err)
        fail(conn, err);
    else if (conn->phase == H1_READY)
        on_connected(conn);
    else
        h1_conn_update(conn);
}

static void on_shaking(struct h1_conn *conn)
{
    size_t len;
    bool is_drained;
    enum h1_read read = h1_tls_read(conn, &len, &is_drained);
    const char *why = tls_pipe_error(conn->tls);
    if (read == H1_READ_NOTHING) {
        h1_conn_update(conn); // what waited to be sent may be out
        return;
    }
    if (read == H1_READ_BYTES && *why == '\0' && len == 0 && !tls_pipe_is_closed(conn->tls)) {
        if (tls_pipe_is_established(conn->tls)) {
            begin_request(conn); // the handshake's last bytes go with it
            return;
        }
        h1_flush(conn);
        h1_conn_update(conn);
        return;
    }
    h1_flush(conn); // an alert
    if (len > 0)
        why = "bytes before the request";
    else if (*why == '\0')
        why = "the connection closed during the TLS handshake";
    fetch_note(conn->fetch, GW_ETLS, why);
    fail(conn, GW_ETLS);
}

void h1_conn_poll(uv_poll_t *poll, int status, int events)
{
    struct h1_conn *conn = list_entry(poll, struct h1_conn, poll);
    struct fetch *fetch = conn->fetch;
    if (status < 0) {
        conn->mask = 0; // uv has stopped watching; what failed is asked of the socket
        conn->is_write_broken = conn->phase != H1_CONNECTING;
        events = conn->phase == H1_CONNECTING ? UV_WRITABLE : UV_READABLE;
    }
    switch (conn->phase) {
    case H1_IDLE:
        if (status < 0 || conn->tls == NULL || !h1_tls_is_quiet(conn))
            h1_conn_close(conn);
        return;
    case H1_CLOSED:
    case H1_ENDING:
    case H1_READY: return; // taken in this turn: what came is read when the request is out
    default: break;
    }
    if (fetch->is_dead)
        return; // the sweep of this turn closes it
    if (conn->phase == H1_CONNECTING) {
        on_connecting(conn);
        return;
    }
    if (conn->phase == H1_SHAKING) {
        h1_flush(conn);
        on_shaking(conn);
        return;
    }
    if (events & UV_WRITABLE)
        go_on_sending(conn);
    // Ended, cancelled, or paused by what on_writable did.
    if (conn->fetch != fetch || fetch->is_dead)
        return;
    if ((events & UV_READABLE) && !fetch->is_paused)
        read_answer(conn);
    if (conn->fetch == fetch && !fetch->is_dead)
        h1_conn_update(conn);
}

// ---- the transport's table

static int h1_open(struct fetcher *fetcher, struct loop *loop, void **out)
{
    struct h1_transport *transport = calloc(1, sizeof *transport);
    if (transport == NULL)
        return GW_ENOMEM;
    transport->fetcher = fetcher;
    transport->loop = loop;
    list_init(&transport->conns);
    list_init(&transport->idle);
    list_init(&transport->due);
    list_init(&transport->connecting);
    loop_timer_init(loop, &transport->sweep, h1_on_sweep);
    loop_timer_init(loop, &transport->attempts, h1_on_attempts);
    transport->bytes = malloc(H1_PLAIN_BYTES);
    transport->origins = map_new();
    if (transport->bytes == NULL || transport->origins == NULL) {
        free(transport->bytes);
        map_free(transport->origins, NULL);
        free(transport);
        return GW_ENOMEM;
    }
    *out = transport;
    return 0;
}

static void h1_close(void *self)
{
    struct h1_transport *transport = self;
    while (!list_is_empty(&transport->conns))
        h1_conn_close(list_entry(transport->conns.next, struct h1_conn, all));
    loop_timer_stop(&transport->sweep);
    loop_timer_stop(&transport->attempts);
    map_free(transport->origins, NULL);
    buf_wipe(&transport->head);
    tls_context_unref(transport->system_tls);
    free(transport->bytes);
    free(transport->cipher);
    free(transport);
}

static int h1_start(void *self, struct fetch *fetch)
{
    struct h1_transport *transport = self;
    struct h1_conn *conn;
    int err = h1_conn_take(transport, fetch, &conn);
    if (err)
        return err;
    fetch->transfer = conn;
    if (conn->phase == H1_READY) {
        list_push_back(&transport->due, &conn->place);
        fetcher_wake(transport->fetcher);
    } else {
        h1_conn_update(conn);
    }
    return 0;
}

static void h1_run(void *self)
{
    struct h1_transport *transport = self;
    struct list *node;
    while ((node = list_pop_front(&transport->due)) != NULL) {
        struct h1_conn *conn = list_entry(node, struct h1_conn, place);
        if (conn->fetch->is_dead)
            continue;
        if (conn->is_reused)
            begin_request(conn);
        else
            on_connected(conn);
    }
}

static void h1_stop(void *self, struct fetch *fetch)
{
    struct h1_conn *conn = fetch->transfer;
    (void)self;
    fetch->transfer = NULL;
    fetch->info.bytes_sent = conn->bytes_sent;
    fetch->info.sent_any &= conn->has_sent;
    bool is_over = !fetch->is_dead; // else it was cancelled, whatever has been read
    if (is_over && conn->phase == H1_BUSY && conn->answer.state == H1_ANSWER_DONE &&
        conn->answer.may_keep && conn->kept.len == 0 && conn->out.len == 0 && conn->is_body_out &&
        !conn->is_write_broken && !h1_tls_is_over(conn))
        h1_conn_pool(conn);
    else
        h1_conn_close(conn);
}

static void h1_resume(void *self, struct fetch *fetch)
{
    struct h1_conn *conn = fetch->transfer;
    (void)self;
    if (fetch->is_dead)
        return;
    if (conn->phase == H1_ENDING) {
        drop_upload(conn);
        return;
    }
    if (conn->phase != H1_BUSY)
        return; // not yet written: begin_request takes all there is
    if (fetch->is_streamed && !conn->is_body_out && conn->out.len == 0) {
        go_on_sending(conn);
        if (conn->fetch != fetch || fetch->is_dead)
            return;
    }
    if (!fetch->is_paused && conn->kept.len > 0) {
        // Kept apart while it is offered: the handler may refuse it again.
        struct buf kept = conn->kept;
        buf_init(&conn->kept, 0);
        bool goes_on = deliver(conn, buf_slice(&kept));
        buf_free(&kept);
        if (goes_on && h1_tls_is_over(conn))
            read_answer(conn);
        if (conn->fetch != fetch || fetch->is_dead)
            return;
    }
    h1_conn_update(conn);
}

static uint32_t h1_idle_connections(const void *self)
{
    return ((const struct h1_transport *)self)->idle_count;
}

const struct fetch_transport transport_http1 = {
    .name = "http1",
    .open = h1_open,
    .close = h1_close,
    .start = h1_start,
    .stop = h1_stop,
    .resume = h1_resume,
    .run = h1_run,
    .idle_connections = h1_idle_connections,
};
