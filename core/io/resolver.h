#pragma once
// Host names to addresses, off the loops: two threads of our own call getaddrinfo; results are
// cached for the process (60 s good, 5 s bad), looked up in single flight, and address-checked by
// the caller's rule. IP literals and /etc/hosts names answer like any other. A cancelled look-up
// costs nothing: its callback is simply not called. Any thread may ask; the callback is delivered
// on the asking loop.
#include "base/err.h"
#include "base/slice.h"
#include "io/loop.h"
#include <netinet/in.h>

#define RESOLVER_MAX_ADDRESSES 16

struct resolver;
struct resolver_query;

struct resolver_result {
    int err; // GW_EDNS, GW_ETIMEOUT
    size_t count;
    struct sockaddr_storage addresses[RESOLVER_MAX_ADDRESSES]; // port unset; IPv4 and IPv6 mixed
};
typedef void (*resolver_cb)(void *user, const struct resolver_result *result);

// look_up replaces getaddrinfo in tests (NULL: the system's); it runs on a resolver thread.
typedef int (*resolver_lookup_fn)(const char *host, struct resolver_result *result);
struct resolver *resolver_new(size_t threads, resolver_lookup_fn look_up); // NULL: no memory
// Waits for the look-up that a thread is in. No query may be open: those that wait are dropped
// without a callback. After every loop that asked has stopped running.
void resolver_free(struct resolver *resolver);
// A literal or cached name calls back before this returns with *query NULL; else later, and the
// query is gone when the callback begins. GW_EINVAL: not a host name. GW_EFULL: too many names
// are being looked up.
GW_MUSTCHECK int resolver_start(struct resolver *resolver, struct loop *loop, struct slice host,
                                resolver_cb on_result, void *user, struct resolver_query **query);
void resolver_cancel(struct resolver_query *query); // loop thread; the callback will not come

struct resolver_counters {
    uint64_t asked, answered_at_once, look_ups, failed;
};
struct resolver_counters resolver_counters(struct resolver *resolver); // any thread
