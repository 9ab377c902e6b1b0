#pragma once
// The declarative half of the plugin host: what plugin folders say, read once, checked and compiled
// into an immutable, process-wide, reference-counted set. Each worker's generation then runs the
// same source texts in its own state (plugin_load_into) and takes from there the functions only;
// everything that is data (routes, schemas, needs, tasks, metrics, quirks) is read from the set.
// The public part is in script.h. plugin_set_load and what it calls: start-up and helper threads;
// reading a set: any thread that holds a reference.
#include "base/arena.h"
#include "base/err.h"
#include "base/slice.h"
#include "codec/schema.h"
#include "codec/secret.h"
#include "io/http1.h"
#include "script/quirk.h"
#include "script/script.h"
#include "script/state.h"
#include <stdatomic.h>
#include <stdint.h>

#define PLUGIN_MAX_COUNT 256
#define PLUGIN_MAX_ROUTES 1024 // of one plugin
#define PLUGIN_MAX_NAME 40

enum plugin_auth {
    PLUGIN_AUTH_NONE,
    PLUGIN_AUTH_KEY,
    PLUGIN_AUTH_USER,
    PLUGIN_AUTH_ADMIN,
    PLUGIN_AUTH_FUNCTION, // routes[i].auth of the plugin table
};
enum plugin_access { PLUGIN_ACCESS_NONE, PLUGIN_ACCESS_READ, PLUGIN_ACCESS_WRITE };
enum plugin_where { PLUGIN_ON_WORKER, PLUGIN_ON_PROCESS, PLUGIN_ON_CLUSTER };

struct plugin_file {
    struct slice name; // what `require` is given: "./paginate" and also "<plugin>.paginate"
    struct slice text;
    const char *chunk; // "@plugins/demo/paginate.lua"
};

struct plugin_secret {
    struct slice name;     // "EPAY_KEY"
    struct secret *secret; // NULL: not set
};

struct plugin_needs {
    bool db, ledger, process;
    bool may_fetch, may_fetch_anywhere; // fetch = {} or true: any public host
    const struct slice *fetch_hosts;    // "api.x.com", "*.x.com", "host:port"
    size_t fetch_host_count;
    const struct plugin_secret *secrets;
    size_t secret_count;
    enum plugin_access keys, upstreams, logs, prices;
};

struct plugin_route { // index as in the plugin table's routes
    enum http1_method method;
    struct slice method_text;
    struct slice path; // "/admin/keys/{uid}"
    enum plugin_auth auth;
    const struct schema *params, *query, *body; // records; NULL: none declared
    struct slice about;
    struct slice responses_json; // as declared, "" when none
    uint64_t max_body;           // 0: limits.admin_body_bytes
    int line;                    // of the handler
};

struct plugin_task { // index as in the plugin table's tasks
    struct slice name;
    int64_t every_ms; // 0: daily
    int daily_minute; // minutes after midnight UTC; -1: every
    enum plugin_where where;
    int64_t timeout_ms; // 0: none said
};

struct plugin_metric {
    struct slice name;      // as the plugin calls it
    struct slice full_name; // "moongate_<plugin>_<name>"
    enum stats_kind kind;
    struct slice help, labels; // labels: comma list
    size_t label_count;
};

struct plugin_model {
    struct slice id, owned_by;
};

struct plugin_def {
    const char *name, *dir; // NUL-terminated
    struct slice version, about;
    size_t index;
    bool is_trusted;
    bool denies_on_error; // on_error = "deny"
    bool has_init, has_close, has_render_error;
    const struct slice *after, *before; // names of plugins
    size_t after_count, before_count;
    unsigned hooks; // bit per script_hook
    unsigned wants; // bit per event_block, for delta
    struct plugin_needs needs;
    const struct plugin_file *files; // files[0] is init.lua
    size_t file_count;
    const struct schema *config_schema;         // a record; NULL: the plugin has no settings
    const struct schema_value *config;          // validated, defaults filled; NULL without a schema
    struct slice config_json;                   // the same as text, secrets as "$NAME"
    const struct plugin_secret *config_secrets; // what the settings refer to
    size_t config_secret_count;
    const char *migrations_dir; // NULL: none
    const struct plugin_route *routes;
    size_t route_count;
    const struct plugin_task *tasks;
    size_t task_count;
    const struct plugin_metric *metrics;
    size_t metric_count;
    const struct plugin_model *models;
    size_t model_count;
    const struct quirk *quirks;
    size_t quirk_count;
    struct slice console_json; // "" when none
};

struct plugin_set {
    atomic_uint refs;
    struct arena *arena;
    const struct conf *conf; // borrowed: the process's
    struct plugin_def *defs; // in the configured order
    size_t count;
    const struct slice *models; // ids of all plugins
    size_t model_count;
    int64_t loaded_ms; // wall
};

const struct plugin_def *plugin_set_def(const struct plugin_set *set, size_t index);
const struct plugin_def *plugin_set_find(const struct plugin_set *set, struct slice name);
// The quirk of a provider; the generic one when unknown, never NULL. Lives as long as the set.
const struct quirk *plugin_set_quirk(const struct plugin_set *set, struct slice provider);
const struct slice *plugin_set_models(const struct plugin_set *set, size_t *count);
// NULL: not declared in needs.secrets (and not referred to by the settings), or not set.
struct secret *plugin_def_secret(const struct plugin_def *def, struct slice name);

// Runs the plugin's chunk in a fresh sandbox of this state, checks and normalises what it returns
// and leaves that table on the stack: hooks, routes, tasks always are tables (maybe empty),
// routes[i] = {method=, path=, handler=, auth=, …}, tasks[i] = {name=, run=, …}. On failure nothing
// is left and error (≥ 512 bytes) says "plugins/x/init.lua:12: what". Call it inside
// lua_env_protect: running out of memory raises.
GW_MUSTCHECK int plugin_load_into(struct lua_env *env, lua_State *L, const struct plugin_def *def,
                                  char *error, size_t error_size);
// Pushes a checked value: records and maps as tables, lists as json arrays, decimals as money,
// rates as ppm numbers, times and durations as numbers (milliseconds; durations: seconds), null as
// json.null, absent fields as nil, secrets as handles (of def's; nil when not set). Inside protect.
void plugin_push_value(lua_State *L, const struct plugin_def *def,
                       const struct schema_value *value);
// Pushes the settings (`conf`): an empty table without a config schema. Inside protect.
void plugin_push_config(lua_State *L, const struct plugin_def *def);
// Compiles what schema.* made (table at index) to C. why (≥ 160 bytes) says what is wrong with
// which field. Inside protect; raises only when out of Lua memory.
GW_MUSTCHECK int plugin_compile_schema(lua_State *L, int index, struct arena *arena,
                                       const struct schema **out, char *why, size_t why_size);
