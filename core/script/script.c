// Scripts and generations: build beside the current one, flip, let the old ones run out.
#include "script/script.h"
#include "base/clock.h"
#include "base/log.h"
#include "script/runtime.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAX_FLAG_NAMES 1000

static void free_generation(struct script_generation *generation);

struct plugin_rt *plugin_of(lua_State *L)
{
    return lua_touserdata(L, lua_upvalueindex(1));
}

struct script_generation *generation_of(lua_State *L)
{
    return lua_env_owner(lua_env_of(L));
}

struct plugin_rt *plugin_running(lua_State *L)
{
    const struct coroutine *co = co_running(L);
    return co ? co->plugin : generation_of(L)->direct;
}

void plugin_fault(struct plugin_rt *plugin, const char *what, bool is_hook, struct slice error)
{
    const struct script *script = plugin->generation->script;
    const struct slice labels[] = {slice_str(plugin->name), slice_str(what)};
    if (script->options.shard && script->metric_errors >= 0)
        stats_add(script->options.shard, script->metric_errors, labels, 2, 1);
    plugin->faults += is_hook;
    log_event(LOG_ERROR, "plugin_error", LOG_STR("plugin", plugin->name), LOG_STR("in", what),
              LOG_SLICE("error", error), LOG_INT("in_a_row", plugin->faults));
    if (is_hook && plugin->faults == PLUGIN_MAX_FAULTS && !plugin->denies_on_error) {
        plugin->is_off = true;
        log_event(LOG_ERROR, "plugin_off", LOG_STR("plugin", plugin->name),
                  LOG_STR("why", "three errors in a row; a reload turns it on again"));
    }
}

const char *script_flag_name(struct script *script, struct slice text)
{
    char *name = map_get(script->flags, text);
    if (name || map_count(script->flags) >= MAX_FLAG_NAMES)
        return name;
    name = strndup(text.ptr, text.len);
    if (name && map_put(script->flags, text, name, NULL) != 0) {
        free(name);
        return NULL;
    }
    return name;
}

// ---- building a generation

struct build_call {
    struct script_generation *generation;
    struct plugin_rt *plugin;
    char error[600];
};

// Emits the events of a list: what ctx:respond{text=} and {events=} run as.
static const char EMIT_LIST[] = "local emit, events = ...\n"
                                "for i = 1, #events do emit(events[i]) end\n";

static int open_generation(lua_State *L)
{
    struct script_generation *generation = lua_touserdata(L, 1);
    ctx_lua_open(generation, L);
    if (luaL_loadbuffer(L, EMIT_LIST, sizeof EMIT_LIST - 1, "=gw") != 0)
        return lua_error(L);
    generation->emit_list_ref = luaL_ref(L, LUA_REGISTRYINDEX);
    return 0;
}

static int ref_field(lua_State *L, int table, const char *name)
{
    lua_getfield(L, table, name);
    if (!lua_isfunction(L, -1)) {
        lua_pop(L, 1);
        return LUA_NOREF;
    }
    return luaL_ref(L, LUA_REGISTRYINDEX);
}

static int load_plugin(lua_State *L)
{
    struct build_call *call = lua_touserdata(L, 1);
    struct plugin_rt *plugin = call->plugin;
    struct script_generation *generation = call->generation;
    lua_settop(L, 0);
    if (plugin_load_into(generation->env, L, plugin->def, call->error, sizeof call->error) != 0)
        return luaL_error(L, "%s", call->error);
    luaL_checktype(L, 1, LUA_TTABLE);
    lua_getfield(L, 1, "hooks"); // 2
    for (int hook = 0; hook < SCRIPT_HOOK_COUNT; hook++)
        plugin->hooks[hook] =
            lua_istable(L, 2) ? ref_field(L, 2, hook_name((enum script_hook)hook)) : LUA_NOREF;
    plugin->render_error_ref = ref_field(L, 1, "render_error");
    plugin->close_ref = ref_field(L, 1, "close");
    plugin_push_config(L, plugin->def);
    plugin->conf_ref = luaL_ref(L, LUA_REGISTRYINDEX);
    gw_push(plugin, L);
    plugin->gw_ref = luaL_ref(L, LUA_REGISTRYINDEX);
    lua_pushvalue(L, 1);
    plugin->table_ref = luaL_ref(L, LUA_REGISTRYINDEX);
    return 0;
}

static int init_plugin(lua_State *L)
{
    struct build_call *call = lua_touserdata(L, 1);
    const struct plugin_rt *plugin = call->plugin;
    lua_rawgeti(L, LUA_REGISTRYINDEX, plugin->table_ref);
    lua_getfield(L, -1, "init");
    if (!lua_isfunction(L, -1))
        return 0;
    lua_rawgeti(L, LUA_REGISTRYINDEX, plugin->gw_ref);
    lua_rawgeti(L, LUA_REGISTRYINDEX, plugin->conf_ref);
    lua_call(L, 2, 0);
    return 0;
}

static int close_plugin(lua_State *L)
{
    const struct plugin_rt *plugin = lua_touserdata(L, 1);
    lua_rawgeti(L, LUA_REGISTRYINDEX, plugin->close_ref);
    lua_rawgeti(L, LUA_REGISTRYINDEX, plugin->gw_ref);
    lua_call(L, 1, 0);
    return 0;
}

static void add_problem(struct buf *problems, const char *plugin, const char *error)
{
    bool names_it = strstr(error, ".lua:") && strncmp(error, "lua/", 4) != 0;
    int err = plugin && !names_it ? buf_printf(problems, "%s: %s\n", plugin, error)
                                  : buf_printf(problems, "%s\n", error);
    (void)err;
}

static int build_plugin(struct script_generation *generation, size_t index, struct buf *problems)
{
    struct plugin_rt *plugin = &generation->plugins[index];
    struct build_call call = {.generation = generation, .plugin = plugin};
    char error[600] = "";
    plugin->generation = generation;
    plugin->def = plugin_set_def(generation->set, index);
    plugin->name = plugin->def->name;
    plugin->watch_name = watchdog_name(plugin->name);
    plugin->index = index;
    plugin->denies_on_error = plugin->def->denies_on_error;
    plugin->wants = plugin->def->wants;
    plugin->table_ref = plugin->conf_ref = plugin->gw_ref = LUA_NOREF;
    plugin->render_error_ref = plugin->close_ref = LUA_NOREF;
    for (size_t hook = 0; hook < SCRIPT_HOOK_COUNT; hook++)
        plugin->hooks[hook] = LUA_NOREF;
    plugin_metrics_register(plugin);
    generation->direct = plugin;
    struct watchdog_work before =
        lua_env_set_work(generation->env, (struct watchdog_work){plugin->watch_name, "load"});
    int err = lua_env_protect(generation->env, load_plugin, &call, error, sizeof error);
    if (err == 0) {
        (void)lua_env_set_work(generation->env, (struct watchdog_work){plugin->watch_name, "init"});
        err = lua_env_protect(generation->env, init_plugin, &call, error, sizeof error);
        plugin->was_initialised = err == 0;
    }
    (void)lua_env_set_work(generation->env, before);
    generation->direct = NULL;
    if (err) {
        add_problem(problems, plugin->name, error);
        return err;
    }
    for (size_t hook = 0; hook < SCRIPT_HOOK_COUNT; hook++)
        generation->hook_counts[hook] += plugin->hooks[hook] != LUA_NOREF;
    if (plugin->hooks[SCRIPT_DELTA] != LUA_NOREF)
        generation->wants |= plugin->wants;
    return 0;
}

static int build_generation(struct script *script, struct plugin_set *set, struct buf *problems,
                            struct script_generation **out)
{
    const struct conf *conf = script->options.conf;
    char error[600] = "";
    struct script_generation *generation = calloc(1, sizeof *generation);
    if (!generation)
        return GW_ENOMEM;
    generation->script = script;
    generation->set = plugin_set_ref(set);
    generation->number = ++script->next_number;
    generation->emit_list_ref = LUA_NOREF;
    list_node_init(&generation->node);
    list_init(&generation->bound);
    list_init(&generation->live);
    list_init(&generation->idle);
    list_init(&generation->spawned);
    size_t count = plugin_set_count(set);
    generation->plugins = calloc(count ? count : 1, sizeof *generation->plugins);
    int err = generation->plugins ? 0 : GW_ENOMEM;
    if (!err) {
        const struct lua_env_options options = {
            .memory_cap = (size_t)conf->lua_memory_bytes,
            .instruction_budget = (uint64_t)conf->lua_instructions,
            .use_jit = true,
            .is_watched = true,
        };
        err = lua_env_new(&options, &generation->env, error, sizeof error);
    }
    if (!err) {
        lua_env_set_owner(generation->env, generation);
        err = lua_env_protect(generation->env, open_generation, generation, error, sizeof error);
    }
    if (err)
        add_problem(problems, NULL, *error ? error : gw_err_name(err));
    for (size_t i = 0; i < count && !err; i++) {
        generation->plugin_count = i + 1;
        err = build_plugin(generation, i, problems);
    }
    if (!err)
        err = route_table_build(generation, problems);
    if (!err)
        err = task_list_build(generation);
    if (err) {
        free_generation(generation);
        return err;
    }
    *out = generation;
    return 0;
}

static void free_generation(struct script_generation *generation)
{
    task_list_stop(generation);
    free(generation->tasks);
    if (generation->env) {
        spawn_drop_all(generation);
        co_drop_all(generation);
        for (size_t i = 0; i < generation->plugin_count; i++) {
            struct plugin_rt *plugin = &generation->plugins[i];
            if (!plugin->was_initialised || plugin->close_ref == LUA_NOREF)
                continue;
            char error[300];
            generation->direct = plugin;
            (void)lua_env_set_work(generation->env,
                                   (struct watchdog_work){plugin->watch_name, "close"});
            if (lua_env_protect(generation->env, close_plugin, plugin, error, sizeof error) != 0)
                plugin_fault(plugin, "close", false, slice_str(error));
            generation->direct = NULL;
        }
        spawn_drop_all(generation); // what close spawned
    }
    route_table_free(generation->routes);
    lua_env_free(generation->env);
    for (size_t i = 0; i < generation->plugin_count; i++)
        free(generation->plugins[i].metrics);
    free(generation->plugins);
    plugin_set_unref(generation->set);
    free(generation);
}

// ---- public: life

int script_new(const struct script_options *options, struct script **out)
{
    struct script *script = calloc(1, sizeof *script);
    if (!script)
        return GW_ENOMEM;
    script->options = *options;
    const struct watchdog_options watchdog = {.slow_ms = options->conf->lua_turn_ms,
                                              .stuck_ms = options->conf->lua_stuck_ms};
    script->is_watched = watchdog_start(&watchdog) == 0;
    if (!script->is_watched)
        log_event(LOG_WARN, "watchdog_missing", LOG_STR("why", "no thread could be started"));
    list_init(&script->old);
    list_init(&script->waits);
    script->routes = map_new();
    script->flags = map_new();
    if (!script->routes || !script->flags) {
        map_free(script->routes, NULL);
        map_free(script->flags, NULL);
        if (script->is_watched)
            watchdog_stop();
        free(script);
        return GW_ENOMEM;
    }
    script->metric_errors =
        options->stats ? stats_register(options->stats, STATS_COUNTER, "moongate_lua_errors_total",
                                        "errors raised by plugins", "plugin,hook", NULL, 0)
                       : -1;
    *out = script;
    return 0;
}

void script_free(struct script *script)
{
    if (!script)
        return;
    struct list *node;
    if (script->prepared)
        free_generation(script->prepared);
    if (script->current)
        free_generation(script->current);
    while ((node = list_pop_front(&script->old)))
        free_generation(list_entry(node, struct script_generation, node));
    // Store jobs that nobody waits for still hold memory until their lane answered.
    for (int i = 0; script->jobs > 0 && i < 2000; i++) {
        (void)loop_turn(script->options.loop);
        if (script->jobs > 0)
            usleep(1000);
    }
    store_waits_orphan(script);
    route_names_free(script);
    map_free(script->flags, free);
    if (script->is_watched)
        watchdog_stop();
    free(script);
}

int script_prepare(struct script *script, struct plugin_set *set, struct buf *problems)
{
    script_discard(script);
    return build_generation(script, set, problems, &script->prepared);
}

void script_discard(struct script *script)
{
    if (script->prepared)
        free_generation(script->prepared);
    script->prepared = NULL;
}

// Moves the exchanges of a generation that has to go to the newest; what they wait for is ended as
// a fault of its plugin.
static void rebind_all(struct script_generation *generation)
{
    struct script_generation *newest = generation->script->current;
    while (!list_is_empty(&generation->live)) {
        struct coroutine *co = list_entry(generation->live.next, struct coroutine, node);
        co_fail(co, "cancelled: too many reloads while this ran");
    }
    struct list *node;
    while ((node = list_pop_front(&generation->bound))) {
        struct ctx *ctx = list_entry(node, struct ctx, script_node);
        ctx_lua_drop(ctx);
        ctx->generation = newest;
        list_push_back(&newest->bound, node);
    }
}

static void retire(struct script_generation *generation)
{
    struct script *script = generation->script;
    task_list_stop(generation);
    list_push_back(&script->old, &generation->node);
    script->old_count++;
    if (script->old_count > SCRIPT_MAX_OLD) {
        struct script_generation *oldest =
            list_entry(script->old.next, struct script_generation, node);
        rebind_all(oldest);
        oldest->is_closing = true;
    }
}

void script_flip(struct script *script)
{
    struct script_generation *old = script->current;
    gw_require(script->prepared);
    script->current = script->prepared;
    script->prepared = NULL;
    if (old)
        retire(old);
    route_table_publish(script->current);
    if (!script->has_no_tasks)
        task_list_start(script->current);
}

void script_stop_tasks(struct script *script)
{
    script->has_no_tasks = true;
    if (script->current)
        task_list_stop(script->current);
}

static bool collect(struct script_generation *generation)
{
    return lua_env_turn_end(generation->env) && !co_kill_greediest(generation);
}

static struct plugin_rt *greediest_plugin(const struct script_generation *generation)
{
    struct plugin_rt *worst = NULL;
    for (size_t i = 0; i < generation->plugin_count; i++)
        if (!worst || generation->plugins[i].growth > worst->growth)
            worst = &generation->plugins[i];
    return worst;
}

// The current state is full of what no exchange holds (a plugin's own tables): no plugin could
// work until a reload. A fresh state of the same set takes over; the old one goes with its last
// exchange.
static void rebuild(struct script *script)
{
    const struct script_generation *full = script->current;
    const struct plugin_rt *worst = greediest_plugin(full);
    uint64_t now = clock_boot_ms();
    if (!worst || script->prepared ||
        (script->rebuilt_ms && now - script->rebuilt_ms < SCRIPT_REBUILD_MS))
        return;
    script->rebuilt_ms = now;
    log_event(LOG_ERROR, "plugin_memory", LOG_STR("plugin", worst->name), LOG_STR("in", "state"),
              LOG_INT("bytes", worst->growth), LOG_INT("used", lua_env_memory(full->env)),
              LOG_STR("why", "the Lua state is full of what this plugin keeps; a fresh one "
                             "takes over"));
    struct buf problems = BUF_INIT(4096);
    if (build_generation(script, full->set, &problems, &script->prepared) == 0)
        script_flip(script);
    else
        log_event(LOG_ERROR, "plugin_memory_rebuild_failed",
                  LOG_SLICE("error", slice_trim(buf_slice(&problems))));
    buf_free(&problems);
}

void script_turn_end(struct script *script)
{
    if (script->current && collect(script->current))
        rebuild(script);
    struct list *node, *next;
    list_each_safe(node, next, &script->old)
    {
        struct script_generation *generation = list_entry(node, struct script_generation, node);
        if (list_is_empty(&generation->bound) && list_is_empty(&generation->live) &&
            list_is_empty(&generation->spawned)) {
            list_remove(node);
            script->old_count--;
            free_generation(generation);
            return; // close hooks may have changed the list; the rest next time
        }
        (void)collect(generation);
    }
}

size_t script_memory_used(const struct script *script)
{
    size_t used = script->current ? lua_env_memory(script->current->env) : 0;
    if (script->prepared)
        used += lua_env_memory(script->prepared->env);
    struct list *node;
    list_each(node, &script->old)
    {
        used += lua_env_memory(list_entry(node, struct script_generation, node)->env);
    }
    return used;
}

size_t script_generation_count(const struct script *script)
{
    return script->old_count + (script->current != NULL) + (script->prepared != NULL);
}

// ---- public: exchanges

void script_bind(struct script *script, struct ctx *ctx)
{
    gw_require(script->current);
    ctx->generation = script->current;
    ctx->lua_object = ctx->lua_vars = ctx->lua_answer = 0;
    ctx->pending = ctx->answer = NULL;
    list_push_back(&script->current->bound, &ctx->script_node);
}

void script_release(struct ctx *ctx)
{
    if (!ctx->generation)
        return;
    script_cancel(ctx);
    ctx_lua_drop(ctx);
    list_remove(&ctx->script_node);
    ctx->generation = NULL;
}

void script_cancel(struct ctx *ctx)
{
    hook_cancel(ctx);
    answer_cancel(ctx);
}

const struct quirk *script_quirk(const struct ctx *ctx, struct slice provider)
{
    return plugin_set_quirk(ctx->generation->set, provider);
}
