#pragma once
// The libcurl transport, shared by its two files: transport_curl.c (one exchange: options,
// callbacks, errors) and transport_lane.c (lanes and sockets). Private to them. Worker thread only.
//
// origin  what may share a connection: trust class and id, address check, scheme, host, port,
//         proxy, CA file. Holds lanes; those with room most recently used first.
// lane    one small curl multi: at most 16 transfers in flight, its own connection pool. libcurl's
//         cost per transfer grows with the busy connections of a multi, hence many small ones.
// sock    one descriptor that libcurl opened, and its uv_poll. Left armed for reading when its
//         transfer ends, so that the next one costs no system call and a close is seen.
// transfer  one pooled easy handle and the fetch that it runs.
#include "base/list.h"
#include "base/map.h"
#include "io/curl_api.h"
#include "io/transport.h"
#include "io/transport_tls.h"
#include <uv.h>

#define LANE_TRANSFERS 16
#define LANE_IDLE_MS 60000
#define ORIGIN_URLS 4

struct url_ref {
    CURLU *handle;
    unsigned references;
    size_t len;
    char text[];
};

struct curl_transport {
    struct fetcher *fetcher;
    struct loop *loop;
    struct map *origins;
    struct list due;     // lanes whose libcurl timer asks to run now
    struct list retired; // lanes to be destroyed at the end of the turn
    struct list lanes;   // all
    struct loop_timer sweep;
    struct sock **socks; // by descriptor
    size_t sock_capacity;
    int dead_fd;       // one end of a closed pair: takes the place of a connection that has died
    struct list spare; // transfers
    size_t spare_count;
    uint32_t idle_count;
};

struct origin {
    struct curl_transport *transport;
    struct list open; // lanes with room, most recently used first
    struct list full;
    size_t lane_count;
    struct url_ref *urls[ORIGIN_URLS]; // the last ones, parsed
    unsigned next_url;
    X509_STORE *store; // for https
    size_t key_len;
    char key[];
};

struct lane {
    struct list node; // of origin->open or ->full
    struct list due, all;
    struct origin *origin;
    struct curl_transport *transport;
    CURLM *multi;
    struct loop_timer timer;
    struct list transfers, idle_socks;
    uint32_t in_flight, idle_count;
    uint32_t new_count; // transfers that have not yet chosen a connection
    bool is_retired;
    uint64_t idle_since_ms;
    // What libcurl's DNS cache of this multi was told; it never looks up by itself.
    struct fetch_address addresses[RESOLVER_MAX_ADDRESSES];
    size_t address_count;
    struct curl_slist resolve;
    char *resolve_text;
};

struct sock {
    uv_poll_t poll;
    struct list node; // of transfer->socks or lane->idle_socks
    struct lane *lane;
    struct transfer *transfer; // NULL: idle
    curl_socket_t fd;
    int local_port; // 0: not yet connected
    int wants;      // CURL_POLL_IN | CURL_POLL_OUT
    int armed;      // UV_READABLE | UV_WRITABLE
    bool is_dead;   // closed by the peer while idle; libcurl has yet to find out
};

struct transfer {
    struct list node; // of lane->transfers or transport->spare
    struct curl_transport *transport;
    struct fetch *fetch;
    struct lane *lane;
    CURL *easy;
    struct url_ref *url;
    SSL *ssl; // a reference, while only the end of the connection delimits the body
    struct list socks;
    unsigned request_count, restart_count;
    bool is_new, has_opened, is_connecting;
    bool is_clean;                     // ended well: the easy handle may serve again
    bool must_restart;                 // the pooled connection was bad and nothing was written
    bool has_custom_method, has_proxy; // options that differ from the pooled state
    char error[CURL_ERROR_SIZE];
};

// transport_lane.c
GW_MUSTCHECK int lane_take(struct curl_transport *transport, const struct fetch *fetch,
                           struct lane **out);
// The list for CURLOPT_RESOLVE when the lane does not know these addresses yet, else *out NULL.
GW_MUSTCHECK int lane_resolve(struct lane *lane, const struct fetch *fetch,
                              struct curl_slist **out);
GW_MUSTCHECK int lane_add(struct lane *lane, struct transfer *transfer);
void lane_remove(struct lane *lane, struct transfer *transfer);
void lane_run_due(struct curl_transport *transport);
void lane_make_due(struct lane *lane);
void lane_free_all(struct curl_transport *transport);
void lane_on_sweep(struct loop_timer *timer);
struct url_ref *origin_url(struct origin *origin, struct slice text);
void url_ref_release(struct url_ref *url);
curl_socket_t sock_open(void *user, curlsocktype purpose, struct curl_sockaddr *address);
int sock_close(void *user, curl_socket_t fd);
// The transfer is about to write its request from this local port: finds the socket. Not 0: it is
// a pooled one with something to read, which must not be used.
GW_MUSTCHECK int sock_take(struct transfer *transfer, int local_port);
bool sock_is_connected(const struct transfer *transfer);

// transport_curl.c
void transfer_settle(struct transfer *transfer);  // it has chosen a connection
void transfer_observe(struct transfer *transfer); // has TCP connected?
void transfer_finish(struct transfer *transfer, CURLcode code);
