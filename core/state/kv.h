#pragma once
// Shared key-value memory of plugins (gw.kv): striped, bounded, with time to live; lost at restart.
// Keys are namespaced by plugin. No I/O; a stripe's lock is held for one operation. Any thread.
#include "base/buf.h"
#include "base/err.h"
#include "base/slice.h"
#include <stdint.h>

struct kv;

struct kv *kv_new(size_t max_bytes); // all keys and values together; NULL: no memory
void kv_free(struct kv *kv);
// ttl_ms 0: until dropped. GW_EFULL: over the cap after dropping what expired.
GW_MUSTCHECK int kv_set(struct kv *kv, struct slice space, struct slice key, struct slice value,
                        uint64_t ttl_ms);
// Only when absent: GW_EEXISTS.
GW_MUSTCHECK int kv_add(struct kv *kv, struct slice space, struct slice key, struct slice value,
                        uint64_t ttl_ms);
GW_MUSTCHECK int kv_get(struct kv *kv, struct slice space, struct slice key, struct buf *out);
int kv_drop(struct kv *kv, struct slice space, struct slice key); // GW_ENOTFOUND
// Adds to a number (absent = 0); keeps the time to live of an existing one. GW_EINVAL: no number.
GW_MUSTCHECK int kv_incr(struct kv *kv, struct slice space, struct slice key, int64_t by,
                         uint64_t ttl_ms, int64_t *out);
