#pragma once
// An upstream as people write it (REST, the UPSTREAMS list) and its row: reading and checking the
// JSON object, writing the row. Lane threads and start-up.
#include "base/arena.h"
#include "codec/fernet.h"
#include "state/db.h"
#include <yyjson.h>

enum upstream_field {
    UPSTREAM_NAME = 1 << 0,
    UPSTREAM_PROVIDER = 1 << 1,
    UPSTREAM_BASE_URL = 1 << 2,
    UPSTREAM_API_KEY = 1 << 3,
    UPSTREAM_FORMATS = 1 << 4,
    UPSTREAM_MODELS = 1 << 5,
    UPSTREAM_IS_DEFAULT = 1 << 6,
    UPSTREAM_IS_ACTIVE = 1 << 7,
    UPSTREAM_TIMEOUT = 1 << 8,
    UPSTREAM_WEIGHT = 1 << 9,
    UPSTREAM_PRIORITY = 1 << 10,
    UPSTREAM_PASSTHROUGH = 1 << 11,
    UPSTREAM_DISCONNECT = 1 << 12,
    UPSTREAM_CONFIG = 1 << 13,
    UPSTREAM_CONNECT_MS = 1 << 14,
    UPSTREAM_TLS_MS = 1 << 15,
    UPSTREAM_FIRST_BYTE_MS = 1 << 16,
    UPSTREAM_EVENT_MS = 1 << 17,
    UPSTREAM_MAX_CONCURRENCY = 1 << 18,
};

struct upstream_input {
    uint32_t given; // enum upstream_field
    // Values as they go into the row; NULL kinds for what was null.
    struct db_value name, provider, base_url, formats, models, is_default, is_active, timeout_s,
        weight, priority, passthrough, disconnect, config, connect_ms, tls_ms, first_byte_ms,
        event_ms, max_concurrency;
    struct slice api_key;        // plain; zeroed by upstream_input_wipe
    const char *bad_field, *why; // after GW_EINVAL
};

// Reads the members of an object (text in the arena). skip: a member to be ignored ("uid"), or
// NULL.
GW_MUSTCHECK int upstream_input_read(yyjson_val *object, const char *skip, struct arena *arena,
                                     struct upstream_input *out);
void upstream_input_wipe(struct upstream_input *input);
// Inserts (needs name, provider, base_url) or updates; inside a transaction. Another default is
// cleared first. GW_EEXISTS: the name is taken. Adds the change to the feed.
GW_MUSTCHECK int upstream_row_insert(struct db *db, const struct fernet *fernet,
                                     const struct upstream_input *input, int64_t *id);
GW_MUSTCHECK int upstream_row_update(struct db *db, const struct fernet *fernet, int64_t id,
                                     const struct upstream_input *input);
// changes(kind, id): what is published after the commit.
GW_MUSTCHECK int store_note_change(struct db *db, const char *kind, int64_t id);
// Imports conf's upstreams when the table is empty, in one transaction. error names entry and
// field.
struct conf;
GW_MUSTCHECK int upstream_import(struct db *db, const struct conf *conf,
                                 const struct fernet *fernet, char *error, size_t error_size);
