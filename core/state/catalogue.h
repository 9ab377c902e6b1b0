#pragma once
// The catalogue: upstreams, aliases and prices, small and swapped whole. Readers take the current
// pointer inside their turn (epoch) and copy what must outlive it. Any thread inside an epoch.
#include "base/arena.h"
#include "base/epoch.h"
#include "base/err.h"
#include "base/slice.h"
#include "codec/dialect.h"
#include "codec/secret.h"
#include "state/health.h"
#include <stdint.h>

struct upstream_model {
    struct slice public_name;   // may hold '*' wildcards
    struct slice upstream_name; // empty: same name
};

struct upstream {
    int64_t id;
    char uid[37];
    struct slice name;
    struct slice provider; // picks the provider plugin and its quirks
    struct slice base_url;
    struct secret *api_key; // NULL: none needed, or undecryptable (then is_broken)
    bool is_broken;         // its key cannot be decrypted: never a candidate
    bool speaks[DIALECT_COUNT];
    const struct upstream_model *models; // count 0: any model
    size_t model_count;
    int64_t weight;   // ≥ 1
    int64_t priority; // higher first
    bool is_default, is_active;
    bool passthrough_all; // routes with state at the provider are passed on
    bool is_user_account; // trust class user, owner_user_id
    int64_t owner_user_id;
    // 0 = the process's default
    uint32_t connect_ms, tls_ms, first_byte_ms, event_ms;
    uint32_t max_concurrency; // calls in flight, all workers; 0: no cap
    bool drains_on_disconnect, has_disconnect_policy;
    struct slice config_json;   // operator's free settings for plugins, "{}" when none
    struct health_slot *health; // survives replacement
    int64_t created_ms, updated_ms;
};

// One version of a model's price: nano-USD per million tokens; < 0: not set.
struct price {
    struct slice model; // pattern
    int64_t version;    // row id: stored in each log row
    int64_t input, output, cache_read, cache_write_5m, cache_write_1h, reasoning, audio_in,
        audio_out, image_in, per_call; // per_call: nano-USD
    int64_t max_output;                // tokens; < 0: unknown
};

struct catalogue {
    uint64_t version;
    struct arena *arena;
    const struct upstream *upstreams; // also inactive ones are left out
    size_t upstream_count;
    const struct price *prices;
    size_t price_count;
};

struct catalogue_ref; // the swappable pointer

struct catalogue_ref *catalogue_ref_new(struct epoch *epoch);
void catalogue_ref_free(struct catalogue_ref *ref);
// Inside an epoch (or on the writer lane).
const struct catalogue *catalogue_get(const struct catalogue_ref *ref);
// Takes `next` (arena-owned); the old one is retired.
GW_MUSTCHECK int catalogue_swap(struct catalogue_ref *ref, struct catalogue *next);

// Reads active upstreams and living prices; decrypts keys (and hides them from the log until the
// catalogue is freed). An upstream whose row cannot be used is logged and broken, never left out.
struct db;
struct fernet;
GW_MUSTCHECK int catalogue_load(struct db *db, const struct fernet *fernet, struct health *health,
                                uint64_t version, struct catalogue **out);
void catalogue_free(struct catalogue *catalogue);

const struct upstream *catalogue_upstream(const struct catalogue *catalogue, int64_t id);
const struct upstream *catalogue_upstream_named(const struct catalogue *catalogue,
                                                struct slice name);
// The upstream's model name for a public one, or ptr NULL when it does not serve it. Exact names
// win over wildcards, among these the longest literal part; "*" in upstream_name takes what the
// pattern's first '*' matched. "demo" is served only by an upstream that names it.
struct slice catalogue_model_for(const struct upstream *upstream, struct slice model,
                                 struct arena *arena);
// The price that matches (longest literal part wins), or NULL.
const struct price *catalogue_price(const struct catalogue *catalogue, struct slice model);
// '*' wildcard match.
bool catalogue_matches(struct slice pattern, struct slice text);
