#pragma once
// What the parts of the HTTP/1.1 server share; nobody else includes this. http1.c is the server and
// its streams, http1_conn.c the connections and their phases, http1_parse.c the incremental parser,
// http1_check.c the rules for a complete head, http1_write.c answers and the queue, http1_tls.c the
// way of bytes under TLS, http1_ips.c the table of peers.
//
// One connection, seen from its phase:
//
//   IDLE → HEAD → BODY → WAIT → IDLE            the common round; WAIT: request complete
//                 BODY → SKIP → IDLE            answered early, the rest of the body is dropped
//   HANDSHAKE → IDLE                            with TLS; a failure goes to FLUSH, for its alert
//   HEAD, BODY, WAIT → FLUSH → LINGER → DEAD    refusal or Connection: close
//   any → DEAD                                  peer gone, abort, timers
#include "io/http1.h"
#include "io/tls.h"

#include <llhttp.h>
#include <uv.h>

// ---- parser: no sockets, no loop

enum http1_parsed {
    HTTP1_PARSED_MORE,     // all bytes used, nothing complete
    HTTP1_PARSED_HEAD,     // the request is filled in; without a body it is also complete
    HTTP1_PARSED_COMPLETE, // the body's last byte was used
    HTTP1_PARSED_STOPPED,  // on_body asked to stop
    HTTP1_PARSED_REFUSED,  // status and message say why; the parser is of no more use
};

struct http1_field; // a header while it is read: offsets, because the text may move

struct http1_parser {
    llhttp_t llhttp;
    const struct http1_limits *limits;
    struct arena *arena;
    bool (*on_body)(void *user, struct slice bytes); // false: stop after these bytes
    void *user;

    const char *feed; // start of the bytes at hand
    uint64_t fed;     // bytes of this head (or of this body) before feed
    char tail[8];     // the last of them: the protocol name has no callback of its own
    char *text;       // target, then names and values
    uint32_t text_len, text_size, target_len;
    struct http1_field *fields;
    uint32_t field_count, field_size, seen_fields;
    uint64_t method_end, target_end; // places in the head
    uint64_t body_bytes, body_limit;
    uint32_t extension_bytes, extension_total, trailer_bytes;
    uint8_t blank_bytes;   // of empty lines before the request line
    uint8_t first_byte;    // of the method
    uint8_t version_bytes; // seen
    bool is_started, is_in_field, is_version_known, is_target_known, is_in_body;
    bool may_continue; // stopped: there may be an event without further bytes
    enum http1_parsed pause;
    int status;
    const char *message;
};

void http1_parser_start(struct http1_parser *parser, const struct http1_limits *limits,
                        struct arena *arena, bool (*on_body)(void *user, struct slice bytes),
                        void *user);
enum http1_parsed http1_parser_feed(struct http1_parser *parser, const char *data, size_t len,
                                    size_t *used, struct http1_request *request);
// What is known of the request when it is refused: method and path.
void http1_parser_partial(struct http1_parser *parser, struct http1_request *request);
int http1_parser_refuse(struct http1_parser *parser, int status, const char *message);
enum http1_method http1_method_of(uint8_t llhttp_method);
// The rules for a whole head; 0, or the parser is refused.
int http1_check_head(struct http1_parser *parser, struct http1_request *request,
                     bool *expects_continue);

// ---- connections

enum http1_phase {
    HTTP1_IDLE,
    HTTP1_HANDSHAKE,
    HTTP1_HEADING, // HEAD is a method
    HTTP1_BODY,
    HTTP1_WAIT,
    HTTP1_SKIP,
    HTTP1_FLUSH,
    HTTP1_LINGER,
    HTTP1_DEAD,
};

enum http1_framing { HTTP1_NO_BODY, HTTP1_LENGTH, HTTP1_CHUNKED, HTTP1_UNTIL_CLOSE };

#define HTTP1_NO_CHUNK SIZE_MAX
#define HTTP1_READ_BYTES (64u * 1024u)
#define HTTP1_LINGER_BYTES (256u * 1024u)
#define HTTP1_SKIP_BYTES (64u * 1024u)
#define HTTP1_QUEUE_MAX (64u * 1024u * 1024u)
#define HTTP1_ARENA_POOL 64
#define HTTP1_TAGS 8
#define HTTP1_SEALED_MAX (512u * 1024u) // 128 KiB of records, and what handshakes and alerts add

// What a connection counts as; NONE is not let in, FREE counts nowhere.
enum http1_seat {
    HTTP1_SEAT_NONE,
    HTTP1_SEAT_FREE,
    HTTP1_SEAT_PUBLIC,
    HTTP1_SEAT_ADDRESS, // and under its peer's address
    HTTP1_SEAT_OPERATOR,
};

struct http1_conn {
    struct http1_server *server;
    struct list node;  // server->conns
    struct list dirty; // server->dirty: has something to do at the end of the turn
    uv_poll_t poll;
    struct loop_timer timer; // of the phase
    struct loop_timer stall; // of the queue: looks several times within the limit
    uint64_t stall_since_ms; // the last progress
    int stall_unsent;        // what the kernel held then
    struct http1_parser parser;
    struct http1_stream *stream; // also while its head is read
    struct buf input;            // read, not parsed
    struct buf out;              // framed; the last chunk may still be open
    struct buf sealed;           // TLS: records on their way to the socket
    struct tls_pipe *tls;        // from the first byte on
    size_t chunk_at;             // where the open chunk's size line will stand, or NO_CHUNK
    bool chunk_is_last;
    bool is_eof, is_unix, was_above_high, is_discarding;
    bool is_tls, is_cut; // cut: the peer must not take the end for a good one
    uint8_t busy;        // inside parse or service: no closing from within
    enum http1_phase phase;
    enum http1_phase timer_phase;
    uint32_t timer_request;
    uint32_t request_count;
    uint32_t tag;
    uint32_t discard_left;
    int fd;
    int mask;
    char peer_ip[46];
    enum http1_seat seat;
    uint32_t body_window; // bytes since the body's timer was started
};

struct http1_stream {
    struct http1_request request;
    struct http1_server *server;
    struct http1_conn *conn; // NULL when closed
    void *user;
    struct list node; // server->freed
    uint64_t received, body_sent, body_left;
    enum http1_framing framing;
    bool is_held; // the handler keeps the memory beyond on_close
    bool is_live; // on_request was called, so on_close will be
    bool head_sent, is_ended, is_keep_alive, is_paused, expects_continue;
    int refuse_status; // at the end of the turn
    const char *refuse_message;
    int abort_err; // at the end of the turn
    const char *abort_reason;
};

#define HTTP1_REFUSED_MAX 64
struct http1_refused { // answered, and not yet closed: a ring
    int fds[HTTP1_REFUSED_MAX];
    uint64_t until_ms[HTTP1_REFUSED_MAX];
    size_t first, count;
    struct loop_timer timer;
};

struct http1_server {
    struct loop *loop;
    struct http1_limits limits;
    const struct http1_handler *handler;
    void *user;
    struct http1_ips *ips;
    struct http1_counters counters;
    struct http1_refused refused;
    struct list conns, dirty, freed;
    struct loop_task service_task, free_task;
    struct arena *arenas[HTTP1_ARENA_POOL];
    size_t arena_count;
    char *read_buf;
    char *plain_buf; // of TLS; made with the first such listener
    struct tls_server *tls[HTTP1_TAGS];
    uint64_t handshake_turn;
    uint32_t handshakes; // of that turn
    int64_t date_second;
    char date[40];
    bool is_draining;
    uint32_t drain_idle_ms;
};

// http1.c
struct http1_stream *http1_stream_new(struct http1_conn *conn); // NULL: no memory
// Calls on_close when the handler knows the stream; the caller has taken it off its connection.
void http1_stream_close(struct http1_stream *stream, int err, const char *reason);

// http1_conn.c
void http1_run_service(struct loop_task *task);
void http1_conn_dirty(struct http1_conn *conn);
void http1_conn_close(struct http1_conn *conn, bool with_reset);
void http1_conn_fail(struct http1_conn *conn, int err, const char *reason, bool with_reset);
bool http1_conn_has_unread(const struct http1_conn *conn);
// Bytes the kernel has not taken yet.
static inline size_t http1_conn_queued(const struct http1_conn *conn)
{
    return conn->out.len + conn->sealed.len;
}

// http1_write.c
// Sends what is queued, once. 0, or GW_ERESET when the peer is gone.
GW_MUSTCHECK int http1_conn_flush(struct http1_conn *conn);
// The queue waits for the client from now on.
void http1_stall_start(struct http1_conn *conn);
// Queues the refusal's head and body. GW_ENOMEM.
GW_MUSTCHECK int http1_queue_refusal(struct http1_conn *conn, const struct http1_request *request,
                                     int status, const char *message);
GW_MUSTCHECK int http1_queue_continue(struct http1_conn *conn);
// How much of out may be taken now; fills in the open chunk's size when that is due.
size_t http1_conn_sendable(struct http1_conn *conn);
void http1_conn_took(struct http1_conn *conn, size_t len);

// http1_tls.c
// False: enough handshakes for this turn.
bool http1_tls_may_read(struct http1_conn *conn);
// From ciphertext to plaintext. False: there is none (yet), or the connection was given up.
bool http1_tls_open(struct http1_conn *conn, const char **bytes, size_t *len);
// True when the peer said close_notify and nobody has acted upon it.
bool http1_tls_has_ended(const struct http1_conn *conn);
GW_MUSTCHECK int http1_tls_flush(struct http1_conn *conn);
// Our close_notify. False: the socket is full, call again.
bool http1_tls_say_goodbye(struct http1_conn *conn);
void http1_tls_refuse_fd(int fd);

// http1_ips.c
// The seat of one more connection, or SEAT_NONE and why.
enum http1_seat http1_ips_enter(struct http1_server *server, bool is_unix, uint32_t tag,
                                const char *peer_ip, enum http1_refusal *why);
void http1_ips_leave(struct http1_ips *ips, enum http1_seat seat, const char *peer_ip);
void http1_ips_refused(struct http1_ips *ips, enum http1_refusal why);

// http1_refuse.c
void http1_refused_init(struct http1_server *server);
void http1_refused_close(struct http1_server *server);
void http1_refuse(struct http1_server *server, uint32_t tag, int fd, enum http1_refusal why);
