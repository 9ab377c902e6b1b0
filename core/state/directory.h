#pragma once
// The directory: client keys and users, up to millions, as a striped hash of immutable entries that
// are replaced one by one and reclaimed by epochs. The request path reads it; it never waits for
// the database. Entries are valid until the reader's end of turn: copy what must live longer.
//
// A million keys should cost 200 MB at most, hash tables included: an entry is one piece of memory
// without pointers into itself, from slabs of the directory's own; texts and lists lie behind it.
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

// What is put in; all is copied. A name may have 64 KiB less one byte, the other texts 255.
struct key_record {
    int64_t id;
    struct slice uid;
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
};

// What is found. Behind it: numbers of upstreams, lengths of models, uid, prefix, name, models.
struct key_entry {
    int64_t id, user_id, expires_ms;
    struct sha256 hash;
    struct key_slot *slot;
    uint32_t rpm, rpd;
    uint16_t upstream_count, allowed_model_count;
    uint16_t name_len;
    uint8_t prefix_len, uid_len; // uid_len 0: a UUID as its 16 bytes
    bool is_active, has_upstream_list;
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
// Makes the tables large enough for so many entries at once. Start.
GW_MUSTCHECK int directory_reserve(struct directory *directory, size_t keys, size_t users);
// Copies the entry; replaces the one with the same hash or id. Writer lane, start. GW_ETOOBIG: a
// text or list that is longer than may be.
GW_MUSTCHECK int directory_put_key(struct directory *directory, const struct key_record *input);
void directory_drop_key(struct directory *directory, int64_t id);
GW_MUSTCHECK int directory_put_user(struct directory *directory, const struct user_entry *entry);
void directory_drop_user(struct directory *directory, int64_t id);
// Inside an epoch; NULL: unknown.
const struct key_entry *directory_key(const struct directory *directory, const struct sha256 *hash);
const struct key_entry *directory_key_by_id(const struct directory *directory, int64_t id);
const struct user_entry *directory_user(const struct directory *directory, int64_t id);
size_t directory_key_count(const struct directory *directory);
// Places looked at by the look-ups and changes of tables so far, and entries moved by their growth:
// counted work, for tests. Writer's.
struct directory_work {
    uint64_t moved, grown;
    size_t longest_probe; // now
};
void directory_read_work(struct directory *directory, struct directory_work *work);

// Parts of an entry; texts borrow from it.
void key_entry_uid(const struct key_entry *entry, char out[37]); // and a NUL; cut to 36
struct slice key_entry_prefix(const struct key_entry *entry);
struct slice key_entry_name(const struct key_entry *entry);
static inline const int64_t *key_entry_upstream_ids(const struct key_entry *entry)
{
    return (const int64_t *)(entry + 1); // upstream_count of them
}
// at < allowed_model_count
struct slice key_entry_model(const struct key_entry *entry, size_t at);
