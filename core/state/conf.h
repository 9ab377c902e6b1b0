#pragma once
// The process's configuration: one immutable struct, filled from gateway.conf.lua by confload
// (script floor), checked against the one table of keys below. The table is the X-macro file
// schema/config_keys.h: path in the Lua table, environment variable, type, default, limits, help.
// From it come this struct, the defaults, the check, `config dump` and docs/config.md.
// Immutable after start; any thread.
#include "base/arena.h"
#include "base/err.h"
#include "base/slice.h"
#include "codec/secret.h"
#include <stdint.h>

struct conf_list {
    const struct slice *items;
    size_t count;
};

// One plugin of the `plugins` list, in order; settings is the plugin's own table as JSON text
// (validated by the plugin host against the plugin's schema).
struct conf_plugin {
    struct slice name;
    struct slice path; // folder; empty: searched in plugin_dirs
    bool is_trusted;   // JIT on
    struct slice settings_json;
};

// One entry of `upstreams` in the file, imported when the database has no upstream (JSON text).
struct conf {
    struct arena *arena;
#define CONF_TEXT(field, path, env, def, help) struct slice field;
#define CONF_INT(field, path, env, def, min, max, help) int64_t field;
#define CONF_MS(field, path, env, def_ms, min_ms, max_ms, help) int64_t field; // seconds in Lua
#define CONF_BOOL(field, path, env, def, help) bool field;
#define CONF_MONEY(field, path, env, def, help) int64_t field;    // nano-USD
#define CONF_LIST(field, path, env, help) struct conf_list field; // texts; comma list in the env
#define CONF_SECRET(field, path, env, help) struct secret *field; // NULL: unset
#include "../../schema/config_keys.h"
#undef CONF_TEXT
#undef CONF_INT
#undef CONF_MS
#undef CONF_BOOL
#undef CONF_MONEY
#undef CONF_LIST
#undef CONF_SECRET
    const struct conf_plugin *plugins;
    size_t plugin_count;
    struct slice upstreams_json; // array, "" when none
    struct slice file;           // path of gateway.conf.lua
    struct slice dir;            // its folder, "." or absolute: relative paths in it start here
};

enum conf_type {
    CONF_TYPE_TEXT,
    CONF_TYPE_INT,
    CONF_TYPE_MS,
    CONF_TYPE_BOOL,
    CONF_TYPE_MONEY,
    CONF_TYPE_LIST,
    CONF_TYPE_SECRET,
};
struct conf_key {
    enum conf_type type;
    const char *path;         // "limits.body_bytes"
    const char *env;          // "" when none
    const char *default_text; // as in the table: milliseconds for times, without quotes
    int64_t min, max;         // milliseconds for times
    const char *help;
    size_t offset; // in struct conf
};
const struct conf_key *conf_keys(size_t *count);
const struct conf_key *conf_key_find(struct slice path);
// The nearest known path ("did you mean"), NULL when nothing is near.
const char *conf_key_suggest(struct slice path);

// Gives a conf with all defaults.
GW_MUSTCHECK int conf_new(struct conf **out);
void conf_free(struct conf *conf);
// Sets one key from text; why (≥ 160 bytes) gets the reason with the limits.
GW_MUSTCHECK int conf_set(struct conf *conf, const struct conf_key *key, struct slice text,
                          char *why, size_t why_size);
// Checks across keys (required secrets, sample secrets, ADMIN_PASSWORD); name gets the variable.
GW_MUSTCHECK int conf_check(const struct conf *conf, char *why, size_t why_size);
// The key ring of ENCRYPTION_KEY or ENCRYPTION_KEY_FILE and the decrypt-only keys. Reads the file:
// at start only.
struct fernet;
GW_MUSTCHECK int conf_make_fernet(const struct conf *conf, struct fernet **out, char *why,
                                  size_t why_size);
// "path = value  # source" with secrets masked is written by confload; this renders one value.
GW_MUSTCHECK int conf_render(const struct conf *conf, const struct conf_key *key,
                             struct arena *arena, struct slice *out);
// A relative path of the file starts in the file's folder (arena of conf, NUL-terminated).
GW_MUSTCHECK int conf_path(const struct conf *conf, struct slice path, struct slice *out);
// sqlite:///relative or sqlite:////absolute, driver suffixes ignored → file path (arena of conf).
GW_MUSTCHECK int conf_database_path(const struct conf *conf, struct slice *main_path, char *why,
                                    size_t why_size);
