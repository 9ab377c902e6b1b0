#pragma once
// Between fetch.c and a transport. fetch.c owns what is the same for every transport: the life of a
// fetch, look-ups, address checks, timers, the response head, queues and the calls to the handler.
// A transport owns connections and bytes. Private to fetch*.c and transport*.c. Worker thread only.
//
// A transport may call the fetch_on_… functions from inside its library's callbacks; they may run
// the handler, which may start, resume or cancel any fetch: those calls only queue work and wake
// the fetcher, whose task at the end of the turn calls start, resume, stop and run.
#include "base/buf.h"
#include "base/list.h"
#include "codec/url.h"
#include "io/fetch.h"
#include "io/fetch_head.h"

#define FETCH_SPARE_MAX 64

enum fetch_phase {
    FETCH_LOOKUP,
    FETCH_CONNECT,
    FETCH_TLS,
    FETCH_SEND, // the request's body is not yet out
    FETCH_WAIT, // for the final status line
    FETCH_BODY,
    FETCH_OVER, // answered while the caller still writes, on_done was called, or it was cancelled
};

struct fetch_address {
    uint16_t family;
    uint8_t bytes[16];
};

struct fetch {
    struct list node;     // of fetcher->live or ->spare
    struct list queued;   // of fetcher->starting or ->dead
    struct list resuming; // of fetcher->resuming
    struct fetcher *fetcher;
    struct arena *arena;
    struct fetch_handler handler;
    void *user;
    const struct fetch_carrier *carrier; // from the end of the look-up on
    void *transfer;                      // the transport's, from start to stop
    struct resolver_query *query;
    struct loop_timer timer;

    enum fetch_trust trust;
    int64_t trust_id;
    const char *method;
    struct url url;
    const struct http1_header *headers; // checked, without hop-by-hop ones
    size_t header_count;
    bool has_accept, has_content_type;
    bool has_body;       // also an empty one that is announced
    int64_t body_length; // -1: chunked
    const char *ca_file;
    const char *proxy;      // "http://user:password@host:port" or NULL
    struct slice dial_host; // the proxy's or the URL's
    uint16_t dial_port;
    bool is_dial_literal;
    bool check_address;
    const struct slice *allowed_private;
    size_t allowed_private_count;
    struct fetch_timers timers;
    uint64_t max_body_bytes;

    struct fetch_address *addresses; // in the arena
    size_t address_count;
    bool is_lookup_of_target; // a proxied URL's own host, only to be checked

    const struct slice *body;
    size_t body_count, body_index, body_offset;
    uint64_t body_sent;
    struct slice whole_body; // see fetch_take_body
    bool is_streamed, is_ended, is_upload_waiting, wants_writable;
    struct buf upload;

    struct fetch_head head;
    struct arena_mark head_mark; // its memory is given back when on_head returns
    uint64_t body_received;
    bool is_paused, is_dead;
    enum fetch_phase phase;
    uint64_t started_ms, phase_ms;
    int err; // the first reason, when a callback of the transport stops the transfer
    struct fetch_info info;
};

struct fetch_transport {
    const char *name;
    int (*open)(struct fetcher *fetcher, struct loop *loop, void **out);
    void (*close)(void *self); // nothing runs
    // Takes up a fetch whose addresses are known; calls nothing back. stop follows in any case.
    int (*start)(void *self, struct fetch *fetch);
    // Lets go of it and closes the connection of an unfinished exchange; fills bytes_sent in info.
    void (*stop)(void *self, struct fetch *fetch);
    // The chunk was consumed, or bytes to send have come: goes on reading or asking for them.
    void (*resume)(void *self, struct fetch *fetch);
    void (*run)(void *self); // what start and resume made due; callbacks happen here
    uint32_t (*idle_connections)(const void *self);
};

extern const struct fetch_transport transport_http1, transport_curl;

// A transport that a fetcher has open. Each fetch is given to one of them and stays there.
struct fetch_carrier {
    const struct fetch_transport *transport;
    void *self;
};
// From now on libcurl carries every fetch: for tests and for comparisons.
void fetcher_use_curl(struct fetcher *fetcher);

// between fetch.c and fetch_address.c
bool fetch_read_address(const struct sockaddr *from, struct fetch_address *to);
bool fetch_address_passes(const struct fetch *fetch, const struct sockaddr *address);
// A pooled connection of libcurl was opened for another fetch, perhaps under other rules.
bool fetch_peer_passes(const struct fetch *fetch, const char *ip);
// between fetch.c and fetch_request.c
GW_MUSTCHECK int fetch_copy_request(struct fetch *fetch, const struct fetch_request *request);
struct slice fetch_url_text(struct fetch *fetch);    // in the arena; ptr NULL: no memory
void fetch_on_sent(struct fetch *fetch, size_t len); // bytes of the body went to the transport
#define FETCH_UPLOAD_MAX (1024 * 1024)
#define FETCH_UPLOAD_LOW (64 * 1024)

// ---- called by a transport

void fetcher_wake(struct fetcher *fetcher); // run at the end of this turn
struct fetcher_counters *fetcher_count(struct fetcher *fetcher);
// Whether a socket may be opened to this address: it came from our look-up and passes the rules.
bool fetch_may_connect(struct fetch *fetch, const struct sockaddr *address);
// Whether a pooled connection to this address may serve the fetch. Without an address check any
// may: names whose answers rotate would have no reuse else.
bool fetch_may_reuse(const struct fetch *fetch, const struct sockaddr *address);
void fetch_on_connected(struct fetch *fetch); // TCP is there, TLS begins
// The request is about to be written on a connection with this peer. Not 0: do not.
GW_MUSTCHECK int fetch_on_request(struct fetch *fetch, const char *peer_ip, bool is_reused);
// Fills up to size bytes of the request's body: 0 = the end.
#define FETCH_READ_WAIT (-1)
#define FETCH_READ_STOP (-2)
long fetch_read_body(struct fetch *fetch, char *out, size_t size);
// The whole body in one piece (of the fetch's arena) when it is not streamed and at most max long;
// ptr NULL: read it in parts. fetch_read_body then has nothing more to give.
struct slice fetch_take_body(struct fetch *fetch, size_t max);
// One line of a response head, of any status, or of trailers. Not 0: stop the transfer.
GW_MUSTCHECK int fetch_on_head_line(struct fetch *fetch, struct slice line);
enum fetch_went { FETCH_WENT_ON, FETCH_WENT_PAUSED, FETCH_WENT_STOP };
enum fetch_went fetch_on_bytes(struct fetch *fetch, struct slice bytes);
// Not from inside the library's callbacks. Calls stop, then on_done; the fetch is gone.
void fetch_on_finished(struct fetch *fetch, int err, const char *detail);
// Notes why a callback stops the transfer; the first one stays.
void fetch_note(struct fetch *fetch, int err, const char *detail);
