// A plugin's chunk in a state: its sandbox, the check of lua/plugin.lua, and the values that cross
// to Lua.
#include "script/lua_json.h"
#include "script/lua_money.h"
#include "script/lua_secret.h"
#include "script/plugin_internal.h"
#include <stdio.h>

static void add_modules(lua_State *L, int sandbox, const struct plugin_def *def)
{
    char name[1200];
    for (size_t i = 1; i < def->file_count; i++) {
        const struct plugin_file *file = &def->files[i];
        snprintf(name, sizeof name, "%.*s", SLICE_FMT(file->name));
        lua_env_add_module(L, sandbox, name, file->text, file->chunk);
        // "./views/list" is "demo.views.list" too.
        snprintf(name, sizeof name, "%s.%.*s", def->name, SLICE_FMT(slice_from(file->name, 2)));
        for (char *c = name; *c; c++)
            if (*c == '/')
                *c = '.';
        lua_env_add_module(L, sandbox, name, file->text, file->chunk);
    }
}

static int report_error(lua_State *L, const struct plugin_def *def, int status,
                        struct buf *problems)
{
    struct slice text = lua_env_error_text(L);
    int err;
    // Lua says file:line itself, unless the error was raised without; a line of lua/ names nobody.
    bool is_of_library = slice_starts(text, "lua/");
    if (!is_of_library &&
        (slice_starts(text, def->files[0].chunk + 1) || slice_find(text, SLICE_LIT(".lua:")) >= 0))
        err = buf_printf(problems, "%.*s\n", (int)(text.len > 600 ? 600 : text.len), text.ptr);
    else
        err = buf_printf(problems, "%s: %.*s\n", def->files[0].chunk + 1,
                         (int)(text.len > 600 ? 600 : text.len), text.ptr);
    if (err)
        return err;
    return status == LUA_ERRMEM ? GW_ENOMEM : GW_EINVAL;
}

// Appends the list of {what=, find=} at the top.
static size_t report_list(lua_State *L, const struct plugin_def *def, struct buf *problems)
{
    size_t count = lua_objlen(L, -1);
    for (size_t i = 1; i <= count; i++) {
        lua_rawgeti(L, -1, (int)i);
        lua_getfield(L, -1, "find");
        lua_getfield(L, -2, "what");
        const char *find = lua_tostring(L, -2), *what = lua_tostring(L, -1);
        plugin_problem(problems, def, find, "%s", what ? what : "?");
        lua_pop(L, 3);
    }
    return count;
}

int plugin_run(struct lua_env *env, lua_State *L, const struct plugin_def *def,
               struct buf *problems)
{
    char error[512];
    luaL_checkstack(L, 20, "plugin");
    int top = lua_gettop(L);
    lua_env_push_sandbox(env, L, def->name);
    int sandbox = top + 1;
    if (def->is_trusted)
        lua_env_trust(L, sandbox);
    add_modules(L, sandbox, def);
    int err = lua_env_compile(env, L, def->files[0].text, def->files[0].chunk, def->is_trusted,
                              sandbox, error, sizeof error);
    if (err) {
        lua_settop(L, top);
        int full = buf_printf(problems, "%s\n", error);
        return full ? full : err;
    }
    lua_pushstring(L, def->name); // chunks get their name, as with require
    int status = lua_pcall(L, 1, 1, 0);
    if (status == 0) {
        lua_env_require(L, "plugin");
        lua_getfield(L, -1, "check");
        lua_pushvalue(L, -3);
        lua_pushstring(L, def->name);
        status = lua_pcall(L, 2, 2, 0);
    }
    if (status != 0) {
        err = report_error(L, def, status, problems);
        lua_settop(L, top);
        return err;
    }
    if (report_list(L, def, problems) > 0 || !lua_istable(L, -2)) {
        lua_settop(L, top);
        return GW_EINVAL;
    }
    lua_pop(L, 1);
    lua_replace(L, top + 1);
    lua_settop(L, top + 1);
    return 0;
}

int plugin_load_into(struct lua_env *env, lua_State *L, const struct plugin_def *def, char *error,
                     size_t error_size)
{
    struct buf *problems = lua_env_buffer(L, 65536);
    int at = lua_gettop(L);
    int err = plugin_run(env, L, def, problems);
    if (err) {
        struct slice text = slice_trim(buf_slice(problems));
        snprintf(error, error_size, "%.*s", SLICE_FMT(text));
    }
    buf_free(problems);
    lua_remove(L, at);
    return err;
}

// ---- values

static void push_members(lua_State *L, const struct plugin_def *def,
                         const struct schema_value *value)
{
    lua_createtable(L, 0, (int)value->count);
    for (size_t i = 0; i < value->count; i++) {
        lua_env_push_slice(L, value->members[i].name);
        plugin_push_value(L, def, &value->members[i].value);
        lua_rawset(L, -3);
    }
}

static void push_items(lua_State *L, const struct plugin_def *def, const struct schema_value *value)
{
    lua_createtable(L, (int)value->count, 0);
    for (size_t i = 0; i < value->count; i++) {
        plugin_push_value(L, def, &value->items[i]);
        lua_rawseti(L, -2, (int)i + 1);
    }
    if (value->count == 0) { // as lua_json_push marks an empty array
        luaL_newmetatable(L, "moongate.array");
        lua_setmetatable(L, -2);
    }
}

void plugin_push_value(lua_State *L, const struct plugin_def *def, const struct schema_value *value)
{
    luaL_checkstack(L, 8, "value");
    if (value->is_null || !value->schema) {
        lua_json_push_null(L);
        return;
    }
    switch (value->schema->kind) {
    case SCHEMA_TEXT:
    case SCHEMA_UUID:
    case SCHEMA_URL: lua_env_push_slice(L, value->text); break;
    case SCHEMA_INTEGER:
    case SCHEMA_RATE:
    case SCHEMA_TIME: lua_pushnumber(L, (lua_Number)value->integer); break;
    case SCHEMA_DURATION: lua_pushnumber(L, (lua_Number)value->integer / 1000.0); break;
    case SCHEMA_NUMBER: lua_pushnumber(L, value->number); break;
    case SCHEMA_BOOLEAN: lua_pushboolean(L, value->is_true); break;
    case SCHEMA_DECIMAL: lua_money_push(L, value->integer); break;
    case SCHEMA_SECRET: {
        struct secret *secret = plugin_def_secret(def, value->text);
        if (secret)
            lua_secret_push(L, secret);
        else
            lua_pushnil(L);
        break;
    }
    case SCHEMA_LIST: push_items(L, def, value); break;
    case SCHEMA_RECORD:
    case SCHEMA_MAP: push_members(L, def, value); break;
    default:
        if (value->any)
            lua_json_push(L, value->any);
        else
            lua_env_push_slice(L, value->text);
    }
}

void plugin_push_config(lua_State *L, const struct plugin_def *def)
{
    if (def->config)
        plugin_push_value(L, def, def->config);
    else
        lua_newtable(L);
}
