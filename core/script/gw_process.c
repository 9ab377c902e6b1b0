// gw.process, gw.conf, gw.plugins.
#include "script/lua_json.h"
#include "script/lua_money.h"
#include "script/runtime.h"
#include "state/conf.h"
#include <stdlib.h>

#define MAX_TEXT ((size_t)32 << 20)

static struct script *check_process(lua_State *L, const char *function)
{
    const struct plugin_rt *plugin = plugin_of(L);
    if (!plugin->def->needs.process)
        gw_refuse(L, function, "process = true");
    return plugin->generation->script;
}

// ---- reload: waits

struct reload_op {
    struct async_op op; // first
    int err;
    struct slice problems;
};

static void cancel_reload(struct async_op *op)
{
    (void)op; // the reload goes on; its answer finds nobody
}

static int push_reload(lua_State *L, void *arg)
{
    const struct reload_op *reload = arg;
    if (reload->err == 0) {
        lua_pushboolean(L, 1);
        lua_env_push_slice(L, reload->problems);
        return 2;
    }
    lua_pushnil(L);
    if (reload->problems.len > 0)
        lua_env_push_slice(L, reload->problems);
    else
        lua_pushstring(L, gw_err_name(reload->err));
    return 2;
}

static void on_reloaded(void *arg, int err, struct slice problems)
{
    struct reload_op *reload = arg;
    reload->err = err;
    reload->problems = problems;
    async_complete(&reload->op, push_reload, reload);
    free(reload);
}

// gw.process.reload() → true, warnings | nil, problems
static int process_reload(lua_State *L)
{
    async_check(L, "gw.process.reload");
    struct script *script = check_process(L, "gw.process.reload");
    const struct script_host *host = script->options.host;
    if (!host->reload)
        return async_error(L, "gw.process.reload is not available here");
    struct reload_op *reload = calloc(1, sizeof *reload);
    if (!reload)
        return async_error(L, "out of memory");
    reload->op = (struct async_op){.name = "reload", .cancel = cancel_reload};
    int err = host->reload(script->options.host_user, on_reloaded, reload);
    if (err) {
        free(reload);
        lua_pushboolean(L, 0);
        lua_pushnil(L);
        lua_pushstring(L, err == GW_EBUSY ? "a reload is running" : gw_err_name(err));
        return 3;
    }
    return async_wait(L, &reload->op);
}

// ---- information

static int push_json(lua_State *L, struct buf *text)
{
    const char *why;
    if (!lua_json_decode(L, buf_slice(text), &why))
        return luaL_error(L, "the host's answer is no JSON");
    buf_free(text);
    return 1;
}

static int process_info(lua_State *L)
{
    struct script *script = check_process(L, "gw.process.info");
    struct buf *out = lua_env_buffer(L, MAX_TEXT);
    if (!script->options.host->process_info ||
        script->options.host->process_info(script->options.host_user, out) != 0)
        return luaL_error(L, "gw.process.info is not available here");
    return push_json(L, out);
}

// gw.process.ready() → {ready = …, reasons = {…}}
static int process_ready(lua_State *L)
{
    struct script *script = check_process(L, "gw.process.ready");
    struct buf *out = lua_env_buffer(L, MAX_TEXT);
    bool is_ready = false;
    if (!script->options.host->process_ready ||
        script->options.host->process_ready(script->options.host_user, out, &is_ready) != 0)
        return luaL_error(L, "gw.process.ready is not available here");
    push_json(L, out);
    if (lua_istable(L, -1)) {
        lua_pushboolean(L, is_ready);
        lua_setfield(L, -2, "ready");
    }
    return 1;
}

static int process_metrics(lua_State *L)
{
    struct script *script = check_process(L, "gw.process.metrics");
    struct buf *out = lua_env_buffer(L, MAX_TEXT);
    if (!script->options.host->process_metrics ||
        script->options.host->process_metrics(script->options.host_user, out) != 0)
        return luaL_error(L, "gw.process.metrics is not available here");
    lua_env_push_slice(L, buf_slice(out));
    buf_free(out);
    return 1;
}

// gw.conf("limits.body_bytes") → value of a public key
static int gw_conf(lua_State *L)
{
    const struct conf *conf = plugin_of(L)->generation->script->options.conf;
    struct slice path = lua_env_check_slice(L, 1);
    const struct conf_key *key = conf_key_find(path);
    if (!key)
        return luaL_error(L, "gw.conf: unknown key '%s'", path.ptr);
    const char *field = (const char *)conf + key->offset;
    switch (key->type) {
    case CONF_TYPE_SECRET: return luaL_error(L, "gw.conf: '%s' is a secret", path.ptr);
    case CONF_TYPE_TEXT: lua_env_push_slice(L, *(const struct slice *)field); break;
    case CONF_TYPE_INT: lua_pushnumber(L, (lua_Number) * (const int64_t *)field); break;
    case CONF_TYPE_MS: lua_pushnumber(L, (lua_Number) * (const int64_t *)field / 1000.0); break;
    case CONF_TYPE_BOOL: lua_pushboolean(L, *(const bool *)field); break;
    case CONF_TYPE_MONEY: lua_money_push(L, *(const int64_t *)field); break;
    case CONF_TYPE_LIST: {
        const struct conf_list *list = (const struct conf_list *)field;
        lua_createtable(L, (int)list->count, 0);
        for (size_t i = 0; i < list->count; i++) {
            lua_env_push_slice(L, list->items[i]);
            lua_rawseti(L, -2, (int)i + 1);
        }
    }
    }
    return 1;
}

// ---- plugins

static void set_text(lua_State *L, const char *name, struct slice text)
{
    lua_env_push_slice(L, text);
    lua_setfield(L, -2, name);
}

static void push_routes(lua_State *L, const struct plugin_def *def)
{
    static const char *const AUTH[] = {"none", "key", "user", "admin", "function"};
    lua_createtable(L, (int)def->route_count, 0);
    for (size_t i = 0; i < def->route_count; i++) {
        lua_createtable(L, 0, 4);
        set_text(L, "method", def->routes[i].method_text);
        set_text(L, "path", def->routes[i].path);
        set_text(L, "auth", slice_str(AUTH[def->routes[i].auth]));
        set_text(L, "about", def->routes[i].about);
        lua_rawseti(L, -2, (int)i + 1);
    }
}

static int gw_plugins(lua_State *L)
{
    const struct script_generation *generation = plugin_of(L)->generation;
    lua_createtable(L, (int)generation->plugin_count, 0);
    for (size_t i = 0; i < generation->plugin_count; i++) {
        const struct plugin_rt *plugin = &generation->plugins[i];
        const struct plugin_def *def = plugin->def;
        lua_createtable(L, 0, 9);
        set_text(L, "name", slice_str(def->name));
        set_text(L, "version", def->version);
        set_text(L, "about", def->about);
        lua_pushboolean(L, plugin->is_off);
        lua_setfield(L, -2, "is_off");
        lua_pushnumber(L, (lua_Number)generation->number);
        lua_setfield(L, -2, "generation");
        push_routes(L, def);
        lua_setfield(L, -2, "routes");
        lua_newtable(L);
        for (int hook = 0, n = 0; hook < SCRIPT_HOOK_COUNT; hook++) {
            if (plugin->hooks[hook] == LUA_NOREF)
                continue;
            lua_pushstring(L, hook_name((enum script_hook)hook));
            lua_rawseti(L, -2, ++n);
        }
        lua_setfield(L, -2, "hooks");
        if (def->config_schema) {
            struct buf *out = lua_env_buffer(L, (size_t)4 << 20);
            struct json_out json;
            const char *why;
            json_begin(&json, out);
            schema_write_json_schema(def->config_schema, &json);
            if (json_end(&json) == 0 && lua_json_decode(L, buf_slice(out), &why))
                lua_setfield(L, -3, "config");
            buf_free(out);
            lua_pop(L, 1);
        }
        lua_rawseti(L, -2, (int)i + 1);
    }
    return 1;
}

void gw_open_process(struct plugin_rt *plugin, lua_State *L)
{
    static const struct gw_function PROCESS[] = {{"reload", process_reload, true},
                                                 {"info", process_info, false},
                                                 {"ready", process_ready, false},
                                                 {"metrics", process_metrics, false}};
    static const struct gw_function TOP[] = {{"conf", gw_conf, false},
                                             {"plugins", gw_plugins, false}};
    lua_newtable(L);
    gw_set_functions(plugin, L, PROCESS, sizeof PROCESS / sizeof *PROCESS);
    lua_setfield(L, -2, "process");
    gw_set_functions(plugin, L, TOP, sizeof TOP / sizeof *TOP);
}
