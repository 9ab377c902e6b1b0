// Writing a request: the head is put together in a buffer that all connections share, and goes out
// with the pieces of the body in one system call. Only what the socket does not take is copied.
#include "io/transport_http1.h"

#include <errno.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/uio.h>

#define USER_AGENT "moongate/" MOONGATE_VERSION
#define PIECES 15
#define CHUNK_BYTES (32u * 1024u)
#define RECORD_BYTES (16u * 1024u)
#define SEALED_BYTES (64u * 1024u) // ciphertext in one system call

// ---- the head

static int put(struct buf *buf, const char *name, struct slice value)
{
    int err = buf_append_str(buf, name);
    if (err == 0)
        err = buf_append(buf, value);
    return err ? err : buf_append(buf, SLICE_LIT("\r\n"));
}

static int put_host(struct buf *buf, const struct url *url)
{
    bool is_v6 = memchr(url->host.ptr, ':', url->host.len) != NULL;
    int err = buf_append_str(buf, is_v6 ? "Host: [" : "Host: ");
    if (err == 0)
        err = buf_append(buf, url->host);
    if (err == 0 && is_v6)
        err = buf_append_char(buf, ']');
    if (err == 0 && url->port != (url->is_tls ? 443 : 80)) {
        err = buf_append_char(buf, ':');
        if (err == 0)
            err = buf_append_u64(buf, url->port);
    }
    return err ? err : buf_append(buf, SLICE_LIT("\r\n"));
}

static int put_headers(struct buf *buf, const struct fetch *fetch)
{
    const struct http1_header *host = NULL;
    bool has_agent = false;
    for (size_t i = 0; i < fetch->header_count; i++) {
        const struct http1_header *header = &fetch->headers[i];
        if (header->name.len == 4 && host == NULL && slice_is_nocase(header->name, "host"))
            host = header;
        has_agent |= header->name.len == 10 && slice_is_nocase(header->name, "user-agent");
    }
    int err = host ? put(buf, "Host: ", host->value) : put_host(buf, &fetch->url);
    if (err == 0 && !has_agent)
        err = buf_append(buf, SLICE_LIT("User-Agent: " USER_AGENT "\r\n"));
    for (size_t i = 0; i < fetch->header_count && err == 0; i++) {
        const struct http1_header *header = &fetch->headers[i];
        if (header->name.len == 4 && slice_is_nocase(header->name, "host"))
            continue; // exactly one
        err = buf_append(buf, header->name);
        if (err == 0)
            err = put(buf, header->value.len ? ": " : ":", header->value);
    }
    return err;
}

// At least as much as put_head writes.
static size_t head_size(const struct fetch *fetch)
{
    size_t size = 256 + fetch->url.host.len + fetch->url.path.len + fetch->url.query.len;
    for (size_t i = 0; i < fetch->header_count; i++)
        size += fetch->headers[i].name.len + fetch->headers[i].value.len + 4;
    return size;
}

static int put_head(struct buf *buf, const struct fetch *fetch)
{
    int err = buf_append_str(buf, fetch->method);
    if (err == 0)
        err = buf_append_char(buf, ' ');
    if (err == 0)
        err = buf_append(buf, fetch->url.path);
    if (err == 0 && fetch->url.query.ptr != NULL) {
        err = buf_append_char(buf, '?');
        if (err == 0)
            err = buf_append(buf, fetch->url.query);
    }
    if (err == 0)
        err = buf_append(buf, SLICE_LIT(" HTTP/1.1\r\n"));
    if (err == 0)
        err = put_headers(buf, fetch);
    if (err == 0 && fetch->has_body && fetch->body_length < 0) {
        err = buf_append(buf, SLICE_LIT("Transfer-Encoding: chunked\r\n"));
    } else if (err == 0 && fetch->has_body) {
        err = buf_append_str(buf, "Content-Length: ");
        if (err == 0)
            err = buf_append_i64(buf, fetch->body_length);
        if (err == 0)
            err = buf_append(buf, SLICE_LIT("\r\n"));
    }
    return err ? err : buf_append(buf, SLICE_LIT("\r\n"));
}

// ---- the body

static bool is_body_sent(const struct fetch *fetch)
{
    return fetch->body_length >= 0 && fetch->body_sent == (uint64_t)fetch->body_length;
}

// Takes the next part of a streamed body, framed, into the shared buffer. GW_EAGAIN: there is none
// now.
static int take_upload(struct h1_conn *conn, struct slice *out)
{
    struct fetch *fetch = conn->fetch;
    char *bytes = conn->transport->bytes;
    struct buf *frame = &conn->transport->head;
    long len = fetch_read_body(fetch, bytes, CHUNK_BYTES);
    if (len == FETCH_READ_WAIT)
        return GW_EAGAIN;
    if (len < 0)
        return fetch->is_dead ? GW_ECANCELLED : fetch->err;
    bool is_chunked = fetch->body_length < 0;
    conn->is_body_out = len == 0 || is_body_sent(fetch);
    buf_clear(frame);
    int err = 0;
    if (is_chunked)
        err = buf_printf(frame, "%lx\r\n", len);
    if (err == 0)
        err = buf_append(frame, slice_of(bytes, (size_t)len));
    if (err == 0 && is_chunked)
        err = buf_append(frame, SLICE_LIT("\r\n"));
    *out = buf_slice(frame);
    return err;
}

static size_t fill_pieces(struct fetch *fetch, struct iovec *pieces, size_t max)
{
    size_t count = 0, offset = fetch->body_offset;
    for (size_t i = fetch->body_index; i < fetch->body_count && count < max; i++, offset = 0) {
        struct slice left = slice_from(fetch->body[i], offset);
        if (left.len > 0)
            pieces[count++] = (struct iovec){(void *)left.ptr, left.len};
    }
    return count;
}

static void advance_body(struct fetch *fetch, size_t len)
{
    fetch_on_sent(fetch, len);
    while (fetch->body_index < fetch->body_count) {
        size_t left = fetch->body[fetch->body_index].len - fetch->body_offset;
        if (len < left) {
            fetch->body_offset += len;
            break;
        }
        len -= left;
        fetch->body_index++;
        fetch->body_offset = 0;
    }
}

static ssize_t send_pieces(struct h1_conn *conn, struct iovec *pieces, size_t count)
{
    struct msghdr message = {.msg_iov = pieces, .msg_iovlen = count};
    ssize_t sent;
    do
        sent = sendmsg(conn->fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    while (sent < 0 && errno == EINTR);
    // An answer may have come before the upstream closed: reading decides.
    if (sent < 0 && errno != EAGAIN && errno != EWOULDBLOCK)
        conn->is_write_broken = true;
    conn->has_sent |= sent > 0 && conn->phase == H1_BUSY;
    return sent;
}

void h1_flush(struct h1_conn *conn)
{
    struct slice bytes = buf_slice(&conn->out);
    struct iovec piece = {(void *)bytes.ptr, bytes.len};
    if (bytes.len == 0)
        return;
    ssize_t sent = send_pieces(conn, &piece, 1);
    if (sent > 0)
        buf_consume(&conn->out, (size_t)sent);
    if (conn->out.len == 0)
        buf_free(&conn->out);
}

// Sends once what stands in the head (when there is one, else in conn->out) and in the body's
// pieces. GW_EAGAIN: the socket is full.
static int send_once(struct h1_conn *conn, struct slice *head)
{
    struct fetch *fetch = conn->fetch;
    struct iovec pieces[PIECES + 1];
    struct slice front = head->len > 0 ? *head : buf_slice(&conn->out);
    size_t count = 0;
    if (front.len > 0)
        pieces[count++] = (struct iovec){(void *)front.ptr, front.len};
    if (!fetch->is_streamed)
        count += fill_pieces(fetch, pieces + count, PIECES);
    ssize_t sent = send_pieces(conn, pieces, count);
    if (sent < 0)
        return conn->is_write_broken ? 0 : GW_EAGAIN;
    conn->bytes_sent += (uint64_t)sent;
    size_t of_front = (size_t)sent < front.len ? (size_t)sent : front.len;
    if (head->len > 0)
        *head = slice_from(*head, of_front);
    else if (of_front > 0)
        buf_consume(&conn->out, of_front);
    if ((size_t)sent > of_front)
        advance_body(fetch, (size_t)sent - of_front);
    if (!fetch->is_streamed)
        conn->is_body_out = is_body_sent(fetch);
    return 0;
}

static int send_plain(struct h1_conn *conn, struct slice head)
{
    while (!conn->is_write_broken) {
        if (conn->fetch->is_streamed && head.len == 0 && conn->out.len == 0 && !conn->is_body_out) {
            int err = take_upload(conn, &head);
            if (err)
                return err == GW_EAGAIN ? 0 : err;
        }
        if (head.len == 0 && conn->out.len == 0 && conn->is_body_out)
            break;
        if (send_once(conn, &head) == GW_EAGAIN)
            return head.len > 0 ? buf_append(&conn->out, head) : 0;
    }
    buf_wipe(&conn->out);
    return 0;
}

// ---- the same through TLS: what is sealed waits in conn->out

static int seal(struct h1_conn *conn, struct slice plain)
{
    int err = tls_pipe_write(conn->tls, plain, &conn->out);
    conn->bytes_sent += plain.len;
    if (err)
        fetch_note(conn->fetch, GW_ETLS, tls_pipe_error(conn->tls));
    return err;
}

static int seal_pieces(struct h1_conn *conn)
{
    struct fetch *fetch = conn->fetch;
    struct iovec piece;
    while (conn->out.len < SEALED_BYTES && fill_pieces(fetch, &piece, 1) == 1) {
        size_t len = piece.iov_len < RECORD_BYTES ? piece.iov_len : RECORD_BYTES;
        int err = seal(conn, slice_of(piece.iov_base, len));
        if (err)
            return err;
        advance_body(fetch, len);
    }
    conn->is_body_out = is_body_sent(fetch);
    return 0;
}

static int send_sealed(struct h1_conn *conn, struct slice head)
{
    while (!conn->is_write_broken) {
        int err = 0;
        if (head.len == 0 && conn->out.len == 0 && conn->fetch->is_streamed && !conn->is_body_out)
            err = take_upload(conn, &head);
        if (err)
            return err == GW_EAGAIN ? 0 : err;
        if (head.len > 0)
            err = seal(conn, head);
        head = SLICE_NONE;
        if (err == 0 && !conn->fetch->is_streamed && !conn->is_body_out)
            err = seal_pieces(conn);
        if (err)
            return err;
        h1_flush(conn);
        if (conn->out.len > 0)
            return 0;
        if (conn->is_body_out)
            break;
    }
    return 0;
}

// A small body shares the head's record.
static int join_body(struct fetch *fetch, struct buf *head)
{
    struct iovec piece;
    while (fill_pieces(fetch, &piece, 1) == 1 && head->len + piece.iov_len <= RECORD_BYTES) {
        int err = buf_append(head, slice_of(piece.iov_base, piece.iov_len));
        if (err)
            return err;
        advance_body(fetch, piece.iov_len);
    }
    return 0;
}

int h1_request_begin(struct h1_conn *conn)
{
    struct fetch *fetch = conn->fetch;
    struct buf *head = &conn->transport->head;
    buf_clear(head);
    // Grown now, while nothing is in it: what is left behind by growing is not wiped.
    if (buf_room(head, head_size(fetch) + CHUNK_BYTES + 64) == NULL)
        return GW_ENOMEM;
    int err = put_head(head, fetch);
    if (err == 0 && conn->tls != NULL && !fetch->is_streamed)
        err = join_body(fetch, head);
    size_t len = head->len;
    conn->is_body_out = !fetch->has_body || is_body_sent(fetch);
    if (err == 0)
        err = conn->tls ? send_sealed(conn, buf_slice(head)) : send_plain(conn, buf_slice(head));
    explicit_bzero(head->mem, len); // credentials; off is 0
    return err;
}

int h1_request_send(struct h1_conn *conn)
{
    return conn->tls ? send_sealed(conn, SLICE_NONE) : send_plain(conn, SLICE_NONE);
}
