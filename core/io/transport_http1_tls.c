// https for the HTTP/1.1 transport: tls.h between the socket and the answer's reader. A context is
// shared by all connections of this worker with the same authorities.
#include "io/transport_http1.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/socket.h>

#define IDLE_READS_MAX 16 // late tickets of one connection

static struct tls_context *find_context(const struct h1_transport *transport, const char *ca_file)
{
    size_t iter = 0;
    struct slice key;
    void *value;
    while (map_next(transport->origins, &iter, &key, &value)) {
        const struct h1_origin *origin = value;
        if (origin->tls != NULL && slice_eq(slice_str(origin->ca_file), slice_str(ca_file)))
            return tls_context_ref(origin->tls);
    }
    return NULL;
}

int h1_tls_context(struct h1_origin *origin, struct fetch *fetch)
{
    struct h1_transport *transport = origin->transport;
    char error[512] = "";
    if (transport->cipher == NULL && (transport->cipher = malloc(H1_BYTES)) == NULL)
        return GW_ENOMEM;
    struct tls_context **shared = fetch->ca_file ? NULL : &transport->system_tls;
    struct tls_context *found =
        shared ? *shared
               : find_context(transport, fetch->ca_file); // with a reference, if not shared
    if (found == NULL && tls_context_new_client(fetch->ca_file, &found, error, sizeof error) != 0) {
        fetch_note(fetch, GW_ETLS, error);
        return GW_ETLS;
    }
    if (shared != NULL) {
        *shared = found;
        tls_context_ref(found);
    }
    origin->tls = found;
    return 0;
}

int h1_tls_begin(struct h1_conn *conn)
{
    struct fetch *fetch = conn->fetch;
    char host[256];
    size_t len = fetch->url.host.len;
    if (len > 0 && fetch->url.host.ptr[len - 1] == '.')
        len--; // the root's dot is for look-ups only
    if (len >= sizeof host)
        return GW_EINVAL;
    memcpy(host, fetch->url.host.ptr, len);
    host[len] = '\0';
    int err = tls_pipe_new_client(conn->origin->tls, host, &conn->tls);
    if (err == 0)
        err = tls_pipe_start(conn->tls, &conn->out);
    conn->phase = H1_SHAKING;
    return err;
}

enum h1_read h1_tls_read(struct h1_conn *conn, size_t *len, bool *is_drained)
{
    struct h1_transport *transport = conn->transport;
    *len = 0;
    *is_drained = false;
    if (tls_pipe_is_closed(conn->tls))
        return H1_READ_END;
    if (tls_pipe_error(conn->tls)[0] != '\0')
        return H1_READ_CUT;
    ssize_t got = recv(conn->fd, transport->cipher, H1_BYTES, MSG_DONTWAIT);
    if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR))
        return H1_READ_NOTHING;
    if (got <= 0)
        return H1_READ_CUT; // without a goodbye
    struct slice cipher = slice_of(transport->cipher, (size_t)got);
    int err = tls_pipe_read(conn->tls, &cipher, transport->bytes, H1_PLAIN_BYTES, len, &conn->out);
    if (err == 0 && gw_unexpected(cipher.len > 0))
        return H1_READ_CUT;
    // What failed, or the goodbye, is told by the next call, after the bytes before it.
    *is_drained = err == 0 && !tls_pipe_is_closed(conn->tls) && (size_t)got < H1_BYTES;
    return H1_READ_BYTES;
}

bool h1_tls_is_over(const struct h1_conn *conn)
{
    return conn->tls != NULL &&
           (tls_pipe_is_closed(conn->tls) || tls_pipe_error(conn->tls)[0] != '\0');
}

bool h1_tls_is_quiet(struct h1_conn *conn)
{
    size_t len;
    bool is_drained;
    enum h1_read read = h1_tls_read(conn, &len, &is_drained);
    return read == H1_READ_NOTHING || (read == H1_READ_BYTES && len == 0 && is_drained &&
                                       conn->out.len == 0 && ++conn->idle_reads <= IDLE_READS_MAX);
}

void h1_tls_end(struct h1_conn *conn)
{
    if (conn->tls == NULL)
        return;
    if (conn->out.len == 0 && !conn->is_write_broken && tls_pipe_is_established(conn->tls)) {
        tls_pipe_close(conn->tls, &conn->out);
        struct slice bytes = buf_slice(&conn->out);
        if (bytes.len > 0)
            (void)!send(conn->fd, bytes.ptr, bytes.len, MSG_NOSIGNAL | MSG_DONTWAIT);
    }
    tls_pipe_free(conn->tls);
    conn->tls = NULL;
}
