#pragma once
// The HTTP/1.1 transport of our own: sockets, llhttp and tls.h, nothing between. Shared by its
// files: transport_http1.c (the life of an exchange), transport_http1_pool.c (origins, sockets,
// idle connections), transport_http1_send.c (the request), transport_http1_answer.c (reading),
// transport_http1_tls.c (https).
// Private to them. Worker thread only.
//
// origin  what may share a connection: trust class and id, address check, scheme, host, port, CA
//         file. Lives as long as it has connections.
// conn    one socket and the exchange on it. Its read watch stays armed from one exchange to the
//         next: a connection that becomes readable while idle is closed at once.
//
//   CONNECTING → (SHAKING →) READY → BUSY → IDLE → READY → BUSY …
//                                    BUSY → ENDING      answered, the caller's body is still open
#include "base/list.h"
#include "base/map.h"
#include "io/tls.h"
#include "io/transport.h"
#include "io/transport_http1_answer.h"
#include <uv.h>

#define H1_BYTES (64u * 1024u) // one read
#define H1_PLAIN_BYTES TLS_PLAIN_ROOM(H1_BYTES)
#define H1_READ_QUOTA (256u * 1024u) // of one connection in one turn
#define H1_IDLE_MS 60000u            // an idle connection is closed then
#define H1_SWEEP_MS 10000u
#define H1_IDLE_PER_ORIGIN 1024u
#define H1_IDLE_ALL 4096u
#define H1_ATTEMPT_MS 1000u // for one address while there is another one to try
#define H1_PEEK_MS 1000u    // idle longer: look once more whether it was closed

enum h1_phase { H1_CONNECTING, H1_SHAKING, H1_READY, H1_BUSY, H1_ENDING, H1_IDLE, H1_CLOSED };

struct h1_transport {
    struct fetcher *fetcher;
    struct loop *loop;
    struct map *origins;
    struct list conns;      // all
    struct list idle;       // of all origins, the most recently used first
    struct list due;        // to be looked at by run
    struct list connecting; // in the order they began
    struct loop_timer sweep, attempts;
    char *bytes;     // H1_PLAIN_BYTES; whoever uses it is done with it before it returns
    char *cipher;    // H1_BYTES, likewise; NULL: no https yet
    struct buf head; // the request's head or a part of its body, likewise
    struct tls_context *system_tls; // with the system's authorities, made when first needed
    uint32_t idle_count;
};

struct h1_origin {
    struct h1_transport *transport;
    struct list idle; // the most recently used first
    uint32_t idle_count, conn_count;
    struct tls_context *tls; // for https
    const char *ca_file;     // in the key; NULL: the system's
    size_t key_len;
    char key[];
};

union h1_address {
    struct sockaddr any;
    struct sockaddr_in v4;
    struct sockaddr_in6 v6;
};

struct h1_conn {
    uv_poll_t poll;
    struct list all;
    struct list place; // of transport->idle, ->due or ->connecting
    struct list node;  // of origin->idle
    struct h1_transport *transport;
    struct h1_origin *origin;
    struct fetch *fetch; // NULL: idle
    int fd, mask;
    enum h1_phase phase;
    bool is_reused, is_write_broken, is_body_out;
    bool has_sent; // a byte of the request, or of a handshake's rest before it
    uint8_t idle_reads;
    uint8_t address;   // of fetch->addresses, the one being tried
    int dial_errno;    // of the one before
    uint64_t since_ms; // idle or connecting
    uint64_t bytes_sent;
    union h1_address peer;
    char peer_ip[INET6_ADDRSTRLEN];
    struct tls_pipe *tls;
    struct buf out;  // what the socket did not take: of the request, or ciphertext
    struct buf kept; // of the answer's body, what the handler did not take
    struct h1_answer answer;
};

// transport_http1.c
void h1_conn_update(struct h1_conn *conn); // watches what has to be watched
void h1_conn_poll(uv_poll_t *poll, int status, int events);

// transport_http1_pool.c
// A connection for the fetch: a pooled one (READY), or a new one (CONNECTING or READY).
GW_MUSTCHECK int h1_conn_take(struct h1_transport *transport, struct fetch *fetch,
                              struct h1_conn **out);
// Tries the addresses from conn->address on. Not 0: none is left, and the fetch has a note.
GW_MUSTCHECK int h1_conn_dial(struct h1_conn *conn);
GW_MUSTCHECK int h1_conn_dialled(struct h1_conn *conn); // the socket has become writable
void h1_conn_pool(struct h1_conn *conn);                // it is idle now
void h1_conn_close(struct h1_conn *conn);
void h1_on_sweep(struct loop_timer *timer);
void h1_on_attempts(struct loop_timer *timer);

// transport_http1_tls.c
enum h1_read { H1_READ_BYTES, H1_READ_NOTHING, H1_READ_END, H1_READ_CUT };
GW_MUSTCHECK int h1_tls_context(struct h1_origin *origin, struct fetch *fetch);
GW_MUSTCHECK int h1_tls_begin(struct h1_conn *conn); // TCP is there
// Plaintext goes to transport->bytes. *is_drained: the socket had no more.
enum h1_read h1_tls_read(struct h1_conn *conn, size_t *len, bool *is_drained);
bool h1_tls_is_over(const struct h1_conn *conn); // h1_tls_read has an end to tell
bool h1_tls_is_quiet(struct h1_conn *conn);      // what came while idle was nothing but tickets
void h1_tls_end(struct h1_conn *conn);           // says goodbye when that is possible

// transport_http1_send.c
void h1_flush(struct h1_conn *conn);                     // sends conn->out, once
GW_MUSTCHECK int h1_request_begin(struct h1_conn *conn); // writes the head and what it can
// Goes on. Not 0: the fetch has a note (or is dead).
GW_MUSTCHECK int h1_request_send(struct h1_conn *conn);
