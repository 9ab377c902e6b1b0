// Origins, sockets and idle connections of the HTTP/1.1 transport: see transport_http1.h.
#include "io/transport_http1.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#define MAX_LOOKED_AT 8

// ---- origins

static bool put_bytes(char *key, size_t size, size_t *at, const void *bytes, size_t len)
{
    if (len > size - *at)
        return false;
    if (len > 0)
        memcpy(key + *at, bytes, len);
    *at += len;
    return true;
}

// NUL separates: no part contains one.
static size_t write_key(const struct fetch *fetch, char *key, size_t size)
{
    struct slice ca_file = fetch->url.is_tls ? slice_str(fetch->ca_file) : SLICE_NONE;
    char flags[] = {(char)('0' + fetch->trust), fetch->url.is_tls ? 's' : 'p',
                    fetch->check_address ? 'c' : 'n'};
    size_t at = 0;
    bool fits = put_bytes(key, size, &at, flags, sizeof flags) &&
                put_bytes(key, size, &at, &fetch->trust_id, sizeof fetch->trust_id) &&
                put_bytes(key, size, &at, &fetch->url.port, sizeof fetch->url.port) &&
                put_bytes(key, size, &at, fetch->url.host.ptr, fetch->url.host.len) &&
                put_bytes(key, size, &at, "", 1) &&
                put_bytes(key, size, &at, ca_file.ptr, ca_file.len);
    return fits ? at : 0;
}

static int new_origin(struct h1_transport *transport, struct fetch *fetch, struct slice key,
                      struct h1_origin **out)
{
    struct h1_origin *origin = calloc(1, sizeof *origin + key.len + 1);
    if (origin == NULL)
        return GW_ENOMEM;
    origin->transport = transport;
    list_init(&origin->idle);
    origin->key_len = key.len;
    memcpy(origin->key, key.ptr, key.len);
    if (fetch->ca_file != NULL && fetch->url.is_tls)
        origin->ca_file = origin->key + key.len - strlen(fetch->ca_file); // the key's last part
    int err = fetch->url.is_tls ? h1_tls_context(origin, fetch) : 0;
    if (err == 0)
        err = map_put(transport->origins, key, origin, NULL);
    if (err) {
        tls_context_unref(origin->tls);
        free(origin);
        return err;
    }
    *out = origin;
    return 0;
}

static int get_origin(struct h1_transport *transport, struct fetch *fetch, struct h1_origin **out)
{
    char key[2048];
    size_t len = write_key(fetch, key, sizeof key);
    if (len == 0)
        return GW_ETOOBIG;
    *out = map_get(transport->origins, slice_of(key, len));
    return *out ? 0 : new_origin(transport, fetch, slice_of(key, len), out);
}

static void origin_release(struct h1_origin *origin)
{
    if (origin->conn_count > 0)
        return;
    map_take(origin->transport->origins, slice_of(origin->key, origin->key_len));
    tls_context_unref(origin->tls);
    free(origin);
}

// ---- sockets

static void on_poll_closed(uv_handle_t *handle)
{
    free(list_entry(handle, struct h1_conn, poll));
}

static void leave_idle(struct h1_conn *conn)
{
    list_remove(&conn->node);
    list_remove(&conn->place);
    conn->origin->idle_count--;
    conn->transport->idle_count--;
}

void h1_conn_close(struct h1_conn *conn)
{
    struct h1_origin *origin = conn->origin;
    if (conn->phase == H1_CLOSED)
        return;
    if (conn->phase == H1_IDLE)
        leave_idle(conn);
    conn->phase = H1_CLOSED;
    list_remove(&conn->place);
    list_remove(&conn->all);
    h1_tls_end(conn);
    buf_wipe(&conn->out);
    buf_free(&conn->kept);
    h1_answer_free(&conn->answer);
    origin->conn_count--;
    origin_release(origin);
    conn->origin = NULL;
    conn->fetch = NULL;
    if (conn->fd < 0) {
        free(conn);
        return;
    }
    // Takes the descriptor out of epoll now: closed first, its number could be another thread's.
    uv_close((uv_handle_t *)&conn->poll, on_poll_closed);
    close(conn->fd);
}

static int new_socket(struct h1_transport *transport, int family)
{
    int type = SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, on = 1;
    int fd = socket(family, type, IPPROTO_TCP);
    if (fd < 0 && (errno == EMFILE || errno == ENFILE) && !list_is_empty(&transport->idle)) {
        h1_conn_close(list_entry(transport->idle.prev, struct h1_conn, place));
        fd = socket(family, type, IPPROTO_TCP);
    }
    if (fd >= 0) {
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
    }
    return fd;
}

// Puts a fresh socket under the connection's poll handle, which knows its descriptor for life.
static int replace_socket(struct h1_conn *conn, int fd)
{
    if (conn->fd >= 0) {
        uv_poll_stop(&conn->poll);
        conn->mask = 0;
        int err = dup3(fd, conn->fd, O_CLOEXEC) < 0 ? GW_EIO : 0;
        close(fd);
        return err;
    }
    if (uv_poll_init_socket(loop_uv(conn->transport->loop), &conn->poll, fd) != 0) {
        close(fd);
        return GW_EIO;
    }
    conn->fd = fd;
    return 0;
}

static socklen_t set_address(union h1_address *to, const struct fetch_address *from, uint16_t port)
{
    memset(to, 0, sizeof *to);
    to->any.sa_family = from->family;
    if (from->family == AF_INET) {
        memcpy(&to->v4.sin_addr, from->bytes, 4);
        to->v4.sin_port = htons(port);
        return sizeof to->v4;
    }
    memcpy(&to->v6.sin6_addr, from->bytes, 16);
    to->v6.sin6_port = htons(port);
    return sizeof to->v6;
}

static void wait_for_connect(struct h1_conn *conn)
{
    struct h1_transport *transport = conn->transport;
    conn->phase = H1_CONNECTING;
    conn->since_ms = loop_now_ms(transport->loop);
    list_remove(&conn->place);
    if (conn->address + 1u < conn->fetch->address_count) {
        list_push_back(&transport->connecting, &conn->place);
        if (!loop_timer_is_running(&transport->attempts))
            loop_timer_start(&transport->attempts, H1_ATTEMPT_MS);
    }
}

int h1_conn_dial(struct h1_conn *conn)
{
    struct fetch *fetch = conn->fetch;
    for (; conn->address < fetch->address_count; conn->address++) {
        const struct fetch_address *address = &fetch->addresses[conn->address];
        socklen_t len = set_address(&conn->peer, address, fetch->dial_port);
        if (!fetch_may_connect(fetch, &conn->peer.any))
            return GW_EDENIED;
        int fd = new_socket(conn->transport, address->family);
        if (fd < 0 && (errno == EAFNOSUPPORT || errno == EPROTONOSUPPORT)) {
            conn->dial_errno = errno;
            continue;
        }
        if (fd < 0) {
            char detail[80];
            snprintf(detail, sizeof detail, "no socket: %s", strerror(errno));
            fetch_note(fetch, GW_EIO, detail);
            return GW_EIO;
        }
        if (replace_socket(conn, fd) != 0) {
            fetch_note(fetch, GW_EIO, "no socket: it cannot be watched");
            return GW_EIO;
        }
        inet_ntop(address->family, address->bytes, conn->peer_ip, sizeof conn->peer_ip);
        if (connect(conn->fd, &conn->peer.any, len) == 0) {
            conn->phase = H1_READY;
            list_remove(&conn->place);
            return 0;
        }
        if (errno == EINPROGRESS || errno == EINTR) {
            wait_for_connect(conn);
            return 0;
        }
        conn->dial_errno = errno;
    }
    char detail[80];
    snprintf(detail, sizeof detail, "could not connect: %s", strerror(conn->dial_errno));
    fetch_note(fetch, GW_ECONNECT, detail);
    return GW_ECONNECT;
}

int h1_conn_dialled(struct h1_conn *conn)
{
    int error = 0;
    socklen_t len = sizeof error;
    if (getsockopt(conn->fd, SOL_SOCKET, SO_ERROR, &error, &len) != 0)
        error = errno;
    if (error != 0) {
        conn->dial_errno = error;
        conn->address++;
        return h1_conn_dial(conn);
    }
    conn->phase = H1_READY;
    list_remove(&conn->place);
    return 0;
}

// An address that does not answer may not use up the time of those behind it.
void h1_on_attempts(struct loop_timer *timer)
{
    struct h1_transport *transport = list_entry(timer, struct h1_transport, attempts);
    uint64_t now = loop_now_ms(transport->loop);
    while (!list_is_empty(&transport->connecting)) {
        struct h1_conn *conn = list_entry(transport->connecting.next, struct h1_conn, place);
        if (now - conn->since_ms < H1_ATTEMPT_MS) {
            loop_timer_start(timer, conn->since_ms + H1_ATTEMPT_MS - now);
            return;
        }
        list_remove(&conn->place);
        if (conn->fetch->is_dead)
            continue; // the sweep of this turn has it
        conn->dial_errno = ETIMEDOUT;
        conn->address++;
        if (h1_conn_dial(conn) != 0) {
            fetch_on_finished(conn->fetch, conn->fetch->err, NULL);
            continue;
        }
        if (conn->phase == H1_READY) {
            list_push_back(&transport->due, &conn->place);
            fetcher_wake(transport->fetcher);
        }
        h1_conn_update(conn);
    }
}

// ---- idle connections

static struct h1_conn *find_idle(struct h1_origin *origin, const struct fetch *fetch)
{
    uint64_t now = loop_now_ms(origin->transport->loop);
    struct list *node, *next;
    int looked = 0;
    list_each_safe(node, next, &origin->idle)
    {
        struct h1_conn *conn = list_entry(node, struct h1_conn, node);
        char byte;
        // One that has rested, or that was never used again, may have been closed since the loop
        // last looked; for others the moment is too short to be worth a system call.
        if ((!conn->is_reused || now - conn->since_ms >= H1_PEEK_MS) &&
            (recv(conn->fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) >= 0 || errno != EAGAIN))
            h1_conn_close(conn);
        else if (fetch_may_reuse(fetch, &conn->peer.any))
            return conn;
        if (++looked == MAX_LOOKED_AT)
            break;
    }
    return NULL;
}

static int new_conn(struct h1_origin *origin, struct fetch *fetch, struct h1_conn **out)
{
    struct h1_conn *conn = calloc(1, sizeof *conn);
    if (conn == NULL)
        return GW_ENOMEM;
    conn->transport = origin->transport;
    conn->origin = origin;
    conn->fd = -1;
    list_init(&conn->node);
    list_init(&conn->place);
    list_push_back(&origin->transport->conns, &conn->all);
    origin->conn_count++;
    conn->fetch = fetch;
    conn->phase = H1_CONNECTING;
    int err = h1_conn_dial(conn);
    if (err) {
        h1_conn_close(conn);
        return err;
    }
    *out = conn;
    return 0;
}

int h1_conn_take(struct h1_transport *transport, struct fetch *fetch, struct h1_conn **out)
{
    struct h1_origin *origin;
    int err = get_origin(transport, fetch, &origin);
    if (err)
        return err;
    // Looking may close the origin's last connection; so may the search for a descriptor.
    origin->conn_count++;
    struct h1_conn *conn = find_idle(origin, fetch);
    if (conn != NULL) {
        leave_idle(conn);
        conn->phase = H1_READY;
        conn->is_reused = true;
        conn->fetch = fetch;
        *out = conn;
    } else {
        err = new_conn(origin, fetch, out);
    }
    origin->conn_count--;
    origin_release(origin);
    return err;
}

void h1_conn_pool(struct h1_conn *conn)
{
    struct h1_transport *transport = conn->transport;
    struct h1_origin *origin = conn->origin;
    h1_answer_free(&conn->answer);
    buf_free(&conn->kept);
    conn->fetch = NULL;
    conn->phase = H1_IDLE;
    conn->idle_reads = 0;
    conn->since_ms = loop_now_ms(transport->loop);
    list_remove(&conn->place);
    list_push_front(&transport->idle, &conn->place);
    list_push_front(&origin->idle, &conn->node);
    origin->idle_count++;
    transport->idle_count++;
    if (origin->idle_count > H1_IDLE_PER_ORIGIN)
        h1_conn_close(list_entry(origin->idle.prev, struct h1_conn, node));
    else if (transport->idle_count > H1_IDLE_ALL)
        h1_conn_close(list_entry(transport->idle.prev, struct h1_conn, place));
    if (!loop_timer_is_running(&transport->sweep))
        loop_timer_start(&transport->sweep, H1_SWEEP_MS);
    h1_conn_update(conn);
}

void h1_on_sweep(struct loop_timer *timer)
{
    struct h1_transport *transport = list_entry(timer, struct h1_transport, sweep);
    uint64_t now = loop_now_ms(transport->loop);
    while (!list_is_empty(&transport->idle)) {
        struct h1_conn *conn = list_entry(transport->idle.prev, struct h1_conn, place);
        if (now - conn->since_ms < H1_IDLE_MS)
            break;
        h1_conn_close(conn);
    }
    if (!list_is_empty(&transport->idle))
        loop_timer_start(timer, H1_SWEEP_MS);
}
