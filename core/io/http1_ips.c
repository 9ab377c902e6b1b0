// How many connections each peer address has, over all workers. IPv6 counts by /64, because one
// host commonly owns that many addresses. Striped; a lock is held for one map operation.
#include "io/http1_internal.h"

#include "base/map.h"

#include <arpa/inet.h>
#include <pthread.h>
#include <stdlib.h>

#define STRIPES 64u

struct stripe {
    pthread_mutex_t lock;
    struct map *counts; // the value is the count itself
};

struct http1_ips {
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

struct ip_key {
    char bytes[8];
    size_t len;
};

static bool key_of(const char *peer_ip, struct ip_key *key)
{
    struct in6_addr six;
    struct in_addr four;
    if (inet_pton(AF_INET, peer_ip, &four) == 1) {
        memcpy(key->bytes, &four, key->len = sizeof four);
        return true;
    }
    if (inet_pton(AF_INET6, peer_ip, &six) == 1) {
        if (IN6_IS_ADDR_V4MAPPED(&six))
            memcpy(key->bytes, six.s6_addr + 12, key->len = 4);
        else
            memcpy(key->bytes, six.s6_addr, key->len = 8);
        return true;
    }
    return false;
}

bool http1_ips_enter(struct http1_ips *ips, const char *peer_ip, uint32_t max)
{
    struct ip_key key;
    if (!ips || !key_of(peer_ip, &key))
        return true;
    struct slice text = slice_of(key.bytes, key.len);
    struct stripe *stripe = &ips->stripes[map_hash(text) % STRIPES];
    pthread_mutex_lock(&stripe->lock);
    uintptr_t count = (uintptr_t)map_get(stripe->counts, text);
    bool is_let_in = count < max && map_put(stripe->counts, text, (void *)(count + 1u), NULL) == 0;
    pthread_mutex_unlock(&stripe->lock);
    return is_let_in;
}

void http1_ips_leave(struct http1_ips *ips, const char *peer_ip)
{
    struct ip_key key;
    if (!ips || !key_of(peer_ip, &key))
        return;
    struct slice text = slice_of(key.bytes, key.len);
    struct stripe *stripe = &ips->stripes[map_hash(text) % STRIPES];
    pthread_mutex_lock(&stripe->lock);
    uintptr_t count = (uintptr_t)map_get(stripe->counts, text);
    // Lowering the count replaces a value in place and cannot fail.
    if (count > 1u)
        gw_require(map_put(stripe->counts, text, (void *)(count - 1u), NULL) == 0);
    else
        map_take(stripe->counts, text);
    pthread_mutex_unlock(&stripe->lock);
}
