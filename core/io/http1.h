#pragma once
// The HTTP/1.1 server side of one connection: llhttp with our own strictness on top (PROMISES §0),
// keep-alive, pipelining (one request at a time; later ones wait unread), chunked bodies,
// Expect: 100-continue, timers, back-pressure, lingering close. It knows nothing of routes, models
// or Lua: it hands streams (one request and its answer) to a handler.
//
// Life of a stream, all on the connection's worker thread:
//   on_request (head complete) → on_body* → on_complete → … http1_respond_* … → on_close (always
//   the last call, exactly once: answer flushed, or client gone, or aborted).
// A handler may answer at any time after on_request; when it answers before the body is complete,
// the rest of the body is drained (bounded) or the connection is closed after a linger: after
// http1_end neither on_body nor on_complete comes. on_complete comes also without a body. Until
// http1_set_user the callbacks get the server's user. A client that closes its side while its
// answer is still being made counts as gone: on_close(GW_ERESET). Where the server itself refuses
// (body too large, broken or stalled), on_close tells GW_ETOOBIG, GW_EPROTO or GW_ETIMEOUT.
// Writes are queued and go out in one write per turn; handlers watch http1_queued and on_writable.
#include "base/arena.h"
#include "base/buf.h"
#include "base/err.h"
#include "base/slice.h"
#include "io/loop.h"
#include <stdint.h>

struct http1_server; // what the connections of one worker share: limits, handler, counters
struct http1_stream;

enum http1_method {
    HTTP1_OTHER, // refused by the server with 501, never reaches a handler
    HTTP1_GET,
    HTTP1_HEAD,
    HTTP1_POST,
    HTTP1_PUT,
    HTTP1_DELETE,
    HTTP1_PATCH,
    HTTP1_OPTIONS,
};

struct http1_header {
    struct slice name; // lower case when received
    struct slice value;
};

struct http1_request {
    struct arena *arena; // freed after on_close; the handler may allocate from it
    enum http1_method method;
    struct slice method_text;
    struct slice target; // as received
    struct slice path;   // raw, up to '?'
    struct slice query;  // without '?'; ptr NULL when absent
    const struct http1_header *headers;
    size_t header_count;
    int64_t content_length; // -1: chunked; 0: no body
    bool has_body;
    bool is_http10;
    bool is_keep_alive;
    bool is_websocket_upgrade; // Upgrade: websocket asked for; body-less; answer 426
    char peer_ip[46];          // numeric address of the socket's peer; "" on a unix socket
    bool is_unix;              // the control socket
    bool is_tls;               // came over TLS
    uint32_t listener_tag;     // as given to listener_open
    uint64_t received_ms;      // loop time when the first byte of the head came
};

struct http1_handler {
    void (*on_request)(void *user, struct http1_stream *stream);
    void (*on_body)(void *stream_user, struct slice bytes);
    void (*on_complete)(void *stream_user);
    void (*on_writable)(void *stream_user); // queue fell below the low-water mark
    void (*on_close)(void *stream_user, int err, const char *reason); // err 0: answered and flushed
    // Renders the body of a refusal the server itself makes (bad request, 408, 413, 414, 417, 431,
    // 501, 503, 505): request may be NULL or partial (path known or empty). Gives the content type
    // (constant).
    const char *(*render_refusal)(void *user, const struct http1_request *request, int status,
                                  const char *message, struct buf *out);
    // May add headers to such a refusal (request ids); may be NULL.
    size_t (*refusal_headers)(void *user, struct http1_header *out, size_t max,
                              struct arena *arena);
};

struct http1_limits {
    uint32_t target_bytes;                // 8 KiB → 414
    uint32_t header_bytes;                // 32 KiB → 431
    uint32_t header_count;                // 100 → 431
    uint32_t chunk_extension_bytes;       // 256 per chunk
    uint32_t chunk_extension_total_bytes; // 16 KiB per body
    uint64_t body_bytes;                  // 32 MiB → 413; a handler may lower it per stream
    uint32_t pipelined_bytes;             // 64 KiB read ahead while an answer is due, then not read
    uint32_t header_ms;                   // 10 s for a head, from its first byte
    uint32_t body_idle_ms;                // 30 s for the next body_window_bytes
    uint32_t body_window_bytes;           // 1 KiB: a body that drips is cut, too
    uint32_t keep_alive_ms;               // 75 s idle
    uint32_t write_stall_ms;              // 60 s without progress, the kernel's queue included
    uint32_t linger_ms;                   // 2 s, and at most 256 KiB read while lingering
    uint32_t high_water_bytes;            // 64 KiB
    uint32_t low_water_bytes;             // 32 KiB
    // Connections: of the whole process when the servers share a table, else of this one.
    uint32_t max_connections;
    uint32_t max_per_ip;    // of one peer address; needs the table
    uint32_t max_operators; // of listeners in operator_tags and unix sockets: beside the others
    uint32_t operator_tags; // bits 1 << listener_tag
};

struct http1_counters {
    uint64_t accepted, closed, refused_limit, parse_errors, requests, timeouts;
    uint64_t bytes_in, bytes_out; // as on the wire
    uint64_t tls_handshakes, tls_resumed, tls_failures;
    uint32_t open;
};

void http1_limits_default(struct http1_limits *limits);
// keeps handler and user. shared_ips: a table shared by all workers (http1_ips_new), or NULL.
struct http1_ips;
struct http1_ips *http1_ips_new(void);
void http1_ips_free(struct http1_ips *ips);
// Peers that match one of these rules (url_rule_matches) have no cap per address: trusted proxies.
// Keeps the rules; before the servers are made.
void http1_ips_exempt(struct http1_ips *ips, const struct slice *rules, size_t count);
enum http1_refusal {
    HTTP1_REFUSED_FULL,     // 503
    HTTP1_REFUSED_ADDRESS,  // 429
    HTTP1_REFUSED_OPERATOR, // 503
    HTTP1_REFUSED_DESCRIPTORS,
    HTTP1_REFUSALS,
};
struct http1_ips_view {
    uint64_t open, operators; // connections
    uint64_t refused[HTTP1_REFUSALS];
};
void http1_ips_read(const struct http1_ips *ips, struct http1_ips_view *view); // any thread
GW_MUSTCHECK int http1_server_new(struct loop *loop, const struct http1_limits *limits,
                                  const struct http1_handler *handler, void *user,
                                  struct http1_ips *shared_ips, struct http1_server **out);
// No connection may be open.
void http1_server_free(struct http1_server *server);
// Connections accepted under this listener tag (0 to 7) speak TLS from now on; keeps tls.
struct tls_server;
GW_MUSTCHECK int http1_server_use_tls(struct http1_server *server, uint32_t tag,
                                      struct tls_server *tls);
// Drain: answers that begin from now on say Connection: close. A connection without a request stays
// for at most idle_ms (and its keep-alive time) to carry one more: a client that has just sent one
// does not see it cut. Again with another time: that one counts.
void http1_server_drain_within(struct http1_server *server, uint32_t idle_ms);
#define HTTP1_DRAIN_IDLE_MS 1500u
void http1_server_drain(struct http1_server *server); // within HTTP1_DRAIN_IDLE_MS
// Cuts everything that is left; on_close is called for each stream.
void http1_server_abort_all(struct http1_server *server, const char *reason);
const struct http1_counters *http1_server_counters(const struct http1_server *server);
// Takes over a connected, non-blocking socket (from the listener). Takes fd also on failure.
GW_MUSTCHECK int http1_accept_fd(struct http1_server *server, int fd, bool is_unix,
                                 const char *peer_ip, uint32_t listener_tag);
// Best effort 503 with Retry-After, or an alert where that listener speaks TLS, then closes fd (the
// listener, out of descriptors).
void http1_refuse_fd(struct http1_server *server, uint32_t listener_tag, int fd);

const struct http1_request *http1_request(const struct http1_stream *stream);
void http1_set_user(struct http1_stream *stream, void *stream_user);
// Keeps the stream's memory (its request and arena) beyond on_close until http1_release; it then
// goes at the end of the turn. For handlers that still work when the client has left.
void http1_hold(struct http1_stream *stream);
void http1_release(struct http1_stream *stream);
struct loop *http1_loop(const struct http1_stream *stream);
// Value of the first such header (name in lower case); ptr NULL when absent.
struct slice http1_header(const struct http1_request *request, const char *name);
size_t http1_header_count(const struct http1_request *request, const char *name);

// Body flow: a paused body is not read from the socket. Lowering the limit answers 413 later.
void http1_pause_body(struct http1_stream *stream);
void http1_resume_body(struct http1_stream *stream);
void http1_limit_body(struct http1_stream *stream, uint64_t bytes);

// Sends the head. content_length -1: chunked for HTTP/1.1, close-delimited for 1.0. Names and
// values are copied; the server adds content-length or transfer-encoding, connection and date.
// A value with CR, LF or NUL is GW_EINVAL. HEAD requests get the head only: later writes are
// swallowed. 204 and 304 have no body.
GW_MUSTCHECK int http1_respond_head(struct http1_stream *stream, int status,
                                    const struct http1_header *headers, size_t count,
                                    int64_t content_length);
// Queues body bytes (copied, or sent at once when the queue is empty at end of turn). GW_ERESET
// when the client is gone (on_close comes, or came), GW_ENOMEM.
GW_MUSTCHECK int http1_write(struct http1_stream *stream, struct slice bytes);
// Ends the answer; on_close follows when it is flushed.
void http1_end(struct http1_stream *stream);
// Head, body and end at once.
GW_MUSTCHECK int http1_respond(struct http1_stream *stream, int status,
                               const struct http1_header *headers, size_t count, struct slice body);
// Cuts the connection without a clean end of the body (RST or missing last chunk): a truncated
// answer must be seen as such. What was queued before is offered to the kernel once. on_close is
// called before it returns… never from inside another callback of the same stream: then at end of
// turn.
void http1_abort(struct http1_stream *stream, const char *reason);
bool http1_head_sent(const struct http1_stream *stream);
size_t http1_queued(const struct http1_stream *stream); // bytes not yet taken by the kernel
bool http1_is_above_high_water(const struct http1_stream *stream);
uint64_t http1_body_bytes_sent(const struct http1_stream *stream); // handed to the queue
uint64_t http1_bytes_received(const struct http1_stream *stream);  // of the request body
