#pragma once
// The directory: client keys and users, up to millions, as a striped hash of immutable entries that
// are replaced one by one and reclaimed by epochs. The request path reads it; it never waits for
// the database. Entries are valid until the reader's end of turn: copy what must live longer.
#include "base/epoch.h"
#include "base/err.h"
#include "base/slice.h"
#include "codec/secret.h"
#include <stdatomic.h>
#include <stdint.h>

struct directory;

// Mutable per-key state; survives replacement of the entry, freed with the key.
struct key_slot {
    _Atomic int64_t last_used_ms;
    _Atomic uint64_t request_count;
};

struct key_entry {
    int64_t id;
    char uid[37];
    struct sha256 hash;
    int64_t user_id;     // 0: none
    bool is_active;      // false: revoked or disabled
    int64_t expires_ms;  // 0: never
    struct slice prefix; // shown part
    struct slice name;
    const int64_t *upstream_ids; // count 0 with has_upstream_list false: all
    size_t upstream_count;
    bool has_upstream_list;
    const struct slice *allowed_models; // patterns; count 0: all
    size_t allowed_model_count;
    int64_t rpm, rpd; // 0: none
    struct key_slot *slot;
};

struct user_entry {
    int64_t id;
    struct slice name;
    struct slice group;
    bool is_active, is_admin;
    int64_t discount_ppm;
};

struct directory *directory_new(struct epoch *epoch);
void directory_free(struct directory *directory);
// Copies the entry (one allocation); replaces the one with the same hash or id. Writer lane, start.
GW_MUSTCHECK int directory_put_key(struct directory *directory, const struct key_entry *entry);
void directory_drop_key(struct directory *directory, int64_t id);
GW_MUSTCHECK int directory_put_user(struct directory *directory, const struct user_entry *entry);
void directory_drop_user(struct directory *directory, int64_t id);
// Inside an epoch; NULL: unknown.
const struct key_entry *directory_key(const struct directory *directory, const struct sha256 *hash);
const struct key_entry *directory_key_by_id(const struct directory *directory, int64_t id);
const struct user_entry *directory_user(const struct directory *directory, int64_t id);
size_t directory_key_count(const struct directory *directory);
