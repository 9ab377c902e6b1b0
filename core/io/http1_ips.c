// Who may have one more connection: counts over all workers, of the process and of each peer
// address. IPv6 counts by /64, because one host commonly owns that many addresses. Connections of
// the operator (admin listener, control socket) have seats of their own, so that a public flood
// leaves them free. Addresses are striped; a lock is held for one map operation.
#include "io/http1_internal.h"

#include "base/map.h"
#include "codec/url.h"

#include <arpa/inet.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#define STRIPES 64u

struct stripe {
    pthread_mutex_t lock;
    struct map *counts; // the value is the count itself
};

struct http1_ips {
    const struct slice *exempt; // set before the workers start
    size_t exempt_count;
    _Atomic uint64_t open, operators;
    _Atomic uint64_t refused[HTTP1_REFUSALS];
    struct stripe stripes[STRIPES];
};

struct http1_ips *http1_ips_new(void)
{
    struct http1_ips *ips = calloc(1, sizeof *ips);
    if (!ips)
        return NULL;
    for (size_t i = 0; i < STRIPES; i++) {
        pthread_mutex_init(&ips->stripes[i].lock, NULL);
        ips->stripes[i].counts = map_new();
        if (!ips->stripes[i].counts) {
            http1_ips_free(ips);
            return NULL;
        }
    }
    return ips;
}

void http1_ips_free(struct http1_ips *ips)
{
    if (!ips)
        return;
    for (size_t i = 0; i < STRIPES; i++) {
        if (ips->stripes[i].counts) {
            map_free(ips->stripes[i].counts, NULL);
            pthread_mutex_destroy(&ips->stripes[i].lock);
        }
    }
    free(ips);
}

void http1_ips_exempt(struct http1_ips *ips, const struct slice *rules, size_t count)
{
    ips->exempt = rules;
    ips->exempt_count = count;
}

void http1_ips_read(const struct http1_ips *ips, struct http1_ips_view *view)
{
    *view = (struct http1_ips_view){0};
    if (!ips)
        return;
    view->open = atomic_load_explicit(&ips->open, memory_order_relaxed);
    view->operators = atomic_load_explicit(&ips->operators, memory_order_relaxed);
    for (size_t i = 0; i < HTTP1_REFUSALS; i++)
        view->refused[i] = atomic_load_explicit(&ips->refused[i], memory_order_relaxed);
}

void http1_ips_refused(struct http1_ips *ips, enum http1_refusal why)
{
    if (ips)
        atomic_fetch_add_explicit(&ips->refused[why], 1, memory_order_relaxed);
}

struct ip_key {
    char bytes[8];
    size_t len;
    struct sockaddr_storage address;
};

static bool key_of(const char *peer_ip, struct ip_key *key)
{
    struct sockaddr_in *four = (struct sockaddr_in *)(void *)&key->address;
    struct sockaddr_in6 *six = (struct sockaddr_in6 *)(void *)&key->address;
    memset(&key->address, 0, sizeof key->address);
    if (inet_pton(AF_INET, peer_ip, &four->sin_addr) == 1) {
        four->sin_family = AF_INET;
        memcpy(key->bytes, &four->sin_addr, key->len = sizeof four->sin_addr);
        return true;
    }
    if (inet_pton(AF_INET6, peer_ip, &six->sin6_addr) == 1) {
        six->sin6_family = AF_INET6;
        if (IN6_IS_ADDR_V4MAPPED(&six->sin6_addr))
            memcpy(key->bytes, six->sin6_addr.s6_addr + 12, key->len = 4);
        else
            memcpy(key->bytes, six->sin6_addr.s6_addr, key->len = 8);
        return true;
    }
    return false;
}

static struct stripe *stripe_of(struct http1_ips *ips, const struct ip_key *key)
{
    return &ips->stripes[map_hash(slice_of(key->bytes, key->len)) % STRIPES];
}

// A trusted proxy speaks for many people: the cap of one address is not meant for it.
static bool is_exempt(const struct http1_ips *ips, const char *peer_ip, const struct ip_key *key)
{
    for (size_t i = 0; i < ips->exempt_count; i++) {
        if (url_rule_matches(ips->exempt[i], slice_str(peer_ip), 0,
                             (const struct sockaddr *)(const void *)&key->address))
            return true;
    }
    return false;
}

static bool enter_address(struct http1_ips *ips, const struct ip_key *key, uint32_t max)
{
    struct slice text = slice_of(key->bytes, key->len);
    struct stripe *stripe = stripe_of(ips, key);
    pthread_mutex_lock(&stripe->lock);
    uintptr_t count = (uintptr_t)map_get(stripe->counts, text);
    bool is_let_in = count < max && map_put(stripe->counts, text, (void *)(count + 1u), NULL) == 0;
    pthread_mutex_unlock(&stripe->lock);
    return is_let_in;
}

static void leave_address(struct http1_ips *ips, const struct ip_key *key)
{
    struct slice text = slice_of(key->bytes, key->len);
    struct stripe *stripe = stripe_of(ips, key);
    pthread_mutex_lock(&stripe->lock);
    uintptr_t count = (uintptr_t)map_get(stripe->counts, text);
    // Lowering the count replaces a value in place and cannot fail.
    if (count > 1u)
        gw_require(map_put(stripe->counts, text, (void *)(count - 1u), NULL) == 0);
    else
        map_take(stripe->counts, text);
    pthread_mutex_unlock(&stripe->lock);
}

static bool take_seat(_Atomic uint64_t *count, uint32_t max)
{
    if (atomic_fetch_add_explicit(count, 1, memory_order_relaxed) < max)
        return true;
    atomic_fetch_sub_explicit(count, 1, memory_order_relaxed);
    return false;
}

enum http1_seat http1_ips_enter(struct http1_server *server, bool is_unix, uint32_t tag,
                                const char *peer_ip, enum http1_refusal *why)
{
    const struct http1_limits *limits = &server->limits;
    struct http1_ips *ips = server->ips;
    struct ip_key key;
    bool is_operator = is_unix || (tag < 32 && (limits->operator_tags >> tag & 1u));
    if (!ips) {
        *why = HTTP1_REFUSED_FULL;
        return is_operator || server->counters.open < limits->max_connections ? HTTP1_SEAT_FREE
                                                                              : HTTP1_SEAT_NONE;
    }
    if (is_operator) {
        *why = HTTP1_REFUSED_OPERATOR;
        return take_seat(&ips->operators, limits->max_operators) ? HTTP1_SEAT_OPERATOR
                                                                 : HTTP1_SEAT_NONE;
    }
    *why = HTTP1_REFUSED_FULL;
    if (!take_seat(&ips->open, limits->max_connections))
        return HTTP1_SEAT_NONE;
    if (!key_of(peer_ip, &key) || is_exempt(ips, peer_ip, &key))
        return HTTP1_SEAT_PUBLIC;
    if (enter_address(ips, &key, limits->max_per_ip))
        return HTTP1_SEAT_ADDRESS;
    *why = HTTP1_REFUSED_ADDRESS;
    atomic_fetch_sub_explicit(&ips->open, 1, memory_order_relaxed);
    return HTTP1_SEAT_NONE;
}

void http1_ips_leave(struct http1_ips *ips, enum http1_seat seat, const char *peer_ip)
{
    struct ip_key key;
    switch (seat) {
    case HTTP1_SEAT_NONE:
    case HTTP1_SEAT_FREE: return;
    case HTTP1_SEAT_OPERATOR:
        atomic_fetch_sub_explicit(&ips->operators, 1, memory_order_relaxed);
        return;
    case HTTP1_SEAT_ADDRESS:
        if (key_of(peer_ip, &key))
            leave_address(ips, &key);
        break;
    case HTTP1_SEAT_PUBLIC: break;
    }
    atomic_fetch_sub_explicit(&ips->open, 1, memory_order_relaxed);
}
