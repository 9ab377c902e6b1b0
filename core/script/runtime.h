#pragma once
// What the files of the running half of the script floor share: one script per worker, its
// generations (a Lua state each), the plugins running in them, coroutines. Begin reading here:
//
//   script.c    life of scripts and generations      hook.c    hooks of an exchange, in order
//   async.c     coroutines, the one resume function  route.c   plugin routes
//   ctx_lua.c   the object `ctx`                     answer.c  answers made by plugins
//   gw*.c       the object `gw`                      task.c    tasks
//
// A generation has a state of its own: dropping it is one lua_close. Worker thread only.
#include "base/list.h"
#include "base/map.h"
#include "script/async.h"
#include "script/plugin.h"
#include "script/script.h"
#include "script/state.h"

#define SCRIPT_MAX_OLD 4
#define PLUGIN_MAX_FAULTS 3
#define SCRIPT_REBUILD_MS 5000 // between two states given up for their memory

struct plugin_rt { // one plugin in one generation
    struct script_generation *generation;
    const struct plugin_def *def;
    const char *name;       // NUL-terminated, of the def or our own
    const char *watch_name; // the same, for the watchdog
    size_t index;
    int table_ref, conf_ref, gw_ref;
    int hooks[SCRIPT_HOOK_COUNT]; // registry references; LUA_NOREF: no such hook
    unsigned wants;               // bit per event_block, for delta
    int render_error_ref, close_ref;
    bool denies_on_error, is_off, was_initialised;
    unsigned faults;   // in a row
    size_t side_count; // live coroutines of gw.all and gw.spawn
    int64_t growth;    // memory its code allocated and did not free, roughly
    int *metrics;      // numbers of def->metrics; NULL: none
};

struct script_task;
struct route_table;

struct script_generation {
    struct list node; // of script->old
    struct script *script;
    struct plugin_set *set;
    struct lua_env *env;
    uint64_t number;
    struct plugin_rt *plugins;
    size_t plugin_count;
    size_t hook_counts[SCRIPT_HOOK_COUNT]; // plugins that have it
    unsigned wants;
    struct route_table *routes;
    struct script_task *tasks;
    size_t task_count;
    struct list bound;   // ctx.script_node of exchanges
    struct list live;    // coroutines that run or wait
    struct list idle;    // pooled ones
    struct list spawned; // functions of gw.spawn that have not begun
    size_t idle_count, live_count, spawned_count;
    struct plugin_rt *direct; // whose price or delta hook, init or close runs
    int emit_list_ref;        // function that emits a list of events
    bool is_closing;          // no exchange is bound to it any more or ever again
};

struct script {
    struct script_options options;
    struct script_generation *current, *prepared;
    struct list old; // oldest first
    size_t old_count;
    uint64_t next_number;
    size_t jobs;       // store jobs in flight that hold memory of ours
    struct list waits; // theirs
    int metric_errors;
    struct map *routes; // name → struct script_route: outlive generations, so that flow may keep
                        // a pointer over a flip
    char allow[96];
    uint64_t rebuilt_ms; // last time a state was given up for its memory; 0: never
    bool has_no_tasks;   // another process runs them now
    bool is_watched;     // we count as one of the watchdog's users
    struct map *flags;   // names of ctx:flag: not in the exchange's arena, which flow rewinds
};

// ---- script.c
struct plugin_rt *plugin_of(lua_State *L); // the plugin whose C closure runs (upvalue 1)
struct script_generation *generation_of(lua_State *L);
struct plugin_rt *plugin_running(lua_State *L); // NULL: none
// A constant of this text that lives as long as the script; NULL: too many different ones.
const char *script_flag_name(struct script *script, struct slice text);
// Counts and logs a fault of a plugin. is_hook: three in a row switch a skip plugin off (callers of
// a route must not be able to do so).
void plugin_fault(struct plugin_rt *plugin, const char *what, bool is_hook, struct slice error);

// ---- ctx_lua.c
void ctx_lua_open(struct script_generation *generation, lua_State *L);
// Makes the exchange's object when it has none. Not inside Lua: protects itself.
int ctx_lua_make(struct ctx *ctx);
void ctx_lua_drop(struct ctx *ctx);
// The exchange of the object at index; raises when it has ended.
struct ctx *ctx_lua_check(lua_State *L, int index);
struct ctx *ctx_lua_get(lua_State *L, int index); // NULL instead of raising
void ctx_lua_add_methods(lua_State *L);           // into the table at the top
void ctx_lua_add_outgoing(lua_State *L);          // likewise
// The function that the chunk `text` (a constant of the program) returns: makes tables of fixed
// fields at a third of what as many lua_setfield cost. Made once per state.
void ctx_lua_push_maker(lua_State *L, const char *text);
void ctx_lua_push_key(lua_State *L, const struct ctx_key *key);
void ctx_lua_push_user(lua_State *L, const struct ctx_user *user);
struct key_entry;
struct user_entry;
// Copy directory entries into the exchange (or a route's arena): 0 or GW_ENOMEM.
GW_MUSTCHECK int ctx_copy_key(struct arena *arena, const struct key_entry *entry,
                              struct ctx_key *out);
GW_MUSTCHECK int ctx_copy_user(struct arena *arena, const struct user_entry *entry,
                               struct ctx_user *out);
// Copies text at index into the exchange's arena; raises.
struct slice ctx_lua_copy(lua_State *L, int index, struct arena *arena);
// Reads {name = value, …} at index into arena headers; raises on bytes that no header may have.
size_t lua_read_headers(lua_State *L, int index, struct arena *arena, struct http1_header **out);

// ---- gw.c
// Pushes the gw table of a plugin. Inside protect.
void gw_push(struct plugin_rt *plugin, lua_State *L);
struct gw_function {
    const char *name;
    lua_CFunction fn;
    bool yields; // wrapped so that a cancelled wait raises "cancelled"
};
// Puts functions (plugin as upvalue 1) into the table at the top.
void gw_set_functions(struct plugin_rt *plugin, lua_State *L, const struct gw_function *functions,
                      size_t count);
void gw_open_async(struct plugin_rt *plugin, lua_State *L);   // sleep, all, lock, spawn
void gw_open_store(struct plugin_rt *plugin, lua_State *L);   // db, keys, upstreams, logs, prices
void gw_open_fetch(struct plugin_rt *plugin, lua_State *L);   // fetch
void gw_open_model(struct plugin_rt *plugin, lua_State *L);   // what an exchange needs, in memory
void gw_open_tools(struct plugin_rt *plugin, lua_State *L);   // kv, crypto, secret, time, metrics
void gw_open_process(struct plugin_rt *plugin, lua_State *L); // process, conf, plugins
void plugin_metrics_register(struct plugin_rt *plugin);
// Raises "gw.X needs … in `needs`".
int gw_refuse(lua_State *L, const char *function, const char *need);

// ---- gw_async.c
void spawn_drop_all(struct script_generation *generation);
void co_lock_release(struct coroutine *co);

// ---- gw_store.c
void store_waits_orphan(struct script *script);

// ---- hook.c
void hook_cancel(struct ctx *ctx);
const char *hook_name(enum script_hook hook);

// ---- route.c
GW_MUSTCHECK int route_table_build(struct script_generation *generation, struct buf *problems);
void route_table_free(struct route_table *table);
void route_table_publish(struct script_generation *generation); // at the flip
void route_names_free(struct script *script);

// ---- answer.c
void answer_cancel(struct ctx *ctx);

// ---- task.c
GW_MUSTCHECK int task_list_build(struct script_generation *generation);
void task_list_start(struct script_generation *generation);
void task_list_stop(struct script_generation *generation);
