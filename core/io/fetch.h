#pragma once
// Outgoing HTTP: one interface and two transports, chosen per fetch: our own for HTTP/1.1, plain
// and over TLS (transport_http1.c), and libcurl's multi for all that goes through a proxy
// (transport_curl.c). Used for upstream calls and for plugin fetches. One fetcher per worker;
// worker thread only.
//
// Life: fetch_start → on_head (final status; 1xx are swallowed) → on_body* → on_done (exactly once,
// unless fetch_cancel was called: then nothing is called any more, in the same turn). Callbacks
// never run inside fetch_start. A callback may cancel its own fetch.
// An answer may come before the request's body is out: when a streamed body is still open then,
// on_done waits for fetch_write_end or fetch_cancel.
//
// Nothing is ever sent twice: a reused connection that closes unanswered is GW_ERESET with
// is_reused, and sent_any says whether a byte had gone out; to try again is the caller's decision.
//
// Back-pressure: on_body answers FETCH_PAUSE when it did not consume the chunk; the same bytes come
// again after fetch_resume (asked at any time outside callbacks; it takes effect at end of turn).
#include "base/arena.h"
#include "base/err.h"
#include "base/slice.h"
#include "io/http1.h"
#include "io/loop.h"
#include "io/resolver.h"
#include <stdint.h>

struct fetcher;
struct fetch;

// Connections are never shared across trust classes: a pooled one bypasses the address check.
enum fetch_trust { FETCH_OPERATOR, FETCH_USER, FETCH_PLUGIN };

struct fetch_timers {    // milliseconds; 0 = none
    uint32_t connect_ms; // name look-up and TCP
    uint32_t tls_ms;
    uint32_t first_byte_ms; // from the request's last byte to the final status line
    // Between two reads of the body, or writes of the request's; not counted while paused, nor
    // while a streamed body waits for its writer.
    uint32_t idle_ms;
    uint32_t total_ms;
};

struct fetch_request {
    enum fetch_trust trust;
    int64_t trust_id;    // FETCH_USER: the user's id; FETCH_PLUGIN: the plugin's number
    struct slice method; // "GET", "POST", …
    struct slice url;    // http or https; anything else is GW_EINVAL
    // Hop-by-hop ones, content-length, expect and accept-encoding are dropped (the transport's), as
    // is host unless trust is FETCH_OPERATOR.
    const struct http1_header *headers;
    size_t header_count;
    const struct slice *body; // pieces, kept until on_done or cancel (caller's arena)
    size_t body_count;
    bool is_streamed;    // the body comes by fetch_write / fetch_write_end instead
    int64_t body_length; // of a streamed body when known, else -1 (chunked)
    struct fetch_timers timers;
    // "http://[user:password@]host:port"; NULL: none (the environment's are never used). With
    // check_address the target's name must also pass our own look-up, but the proxy's answer for
    // it cannot be seen.
    const char *proxy;
    const char *ca_file;                 // NULL: the system's store
    const struct slice *allowed_private; // rules (url_rule_matches) that lift the address check
    size_t allowed_private_count;
    bool check_address;        // refuse private addresses (always for FETCH_USER and FETCH_PLUGIN)
    uint64_t max_body_bytes;   // of the answer; 0 = no limit. Above: GW_ETOOBIG
    uint32_t max_header_bytes; // 0 = 64 KiB
};

enum fetch_verdict { FETCH_CONSUMED, FETCH_PAUSE };

struct fetch_info { // for on_done; times in ms, 0 when it never happened
    bool is_reused; // an idle connection was used
    bool sent_any;  // a byte of the request may have gone out: the upstream may have seen it
    bool got_head;
    // How long each phase took; first_byte from the request's last byte, total from fetch_start.
    uint32_t lookup_ms, connect_ms, tls_ms, first_byte_ms, total_ms;
    uint64_t bytes_sent, bytes_received;
    char detail[160]; // for the log, never for clients: without secrets
};

struct fetch_handler {
    // The headers live until it returns.
    void (*on_head)(void *user, int status, const struct http1_header *headers, size_t count);
    enum fetch_verdict (*on_body)(void *user, struct slice bytes);
    void (*on_writable)(void *user); // streamed request body: the queue fell below 64 KiB
    // err 0: complete. GW_ECONNECT, GW_EDNS, GW_ETLS, GW_ETIMEOUT (info says which phase),
    // GW_ERESET (cut), GW_EPROTO, GW_ETOOBIG, GW_EDENIED (address), GW_EINTERNAL. The fetch is
    // gone when this returns.
    void (*on_done)(void *user, int err, const struct fetch_info *info);
};

struct fetcher_counters {
    uint64_t started, done, cancelled, connections_opened, connections_reused;
    uint32_t active, idle_connections;
};

GW_MUSTCHECK int fetcher_new(struct loop *loop, struct resolver *resolver, struct fetcher **out);
void fetcher_free(struct fetcher *fetcher); // cancels what runs; before loop_free
const struct fetcher_counters *fetcher_counters(const struct fetcher *fetcher);
// Header memory is copied; url copied; body pieces are kept. On an error nothing was started and
// no callback comes.
GW_MUSTCHECK int fetch_start(struct fetcher *fetcher, const struct fetch_request *request,
                             const struct fetch_handler *handler, void *user, struct fetch **out);
void fetch_cancel(struct fetch *fetch);
void fetch_resume(struct fetch *fetch);
// Streamed body: copies into a queue (GW_EFULL above 1 MiB: wait for on_writable).
GW_MUSTCHECK int fetch_write(struct fetch *fetch, struct slice bytes);
void fetch_write_end(struct fetch *fetch);
// Bytes written and not yet taken by the transport; from 64 KiB on, on_writable will come.
size_t fetch_write_queued(const struct fetch *fetch);
// Once per process, before threads and after the last fetcher.
GW_MUSTCHECK int fetch_global_init(void);
void fetch_global_cleanup(void);
