// The base environment and the plugins' sandboxes. A sandbox is a table of its own with copies of
// what the allow-lists name, so a plugin that changes a library changes its own copy only. lua/ is
// read once per process; each sandbox has its own instances of those modules.
#include "script/sandbox.h"
#include "base/clock.h"
#include "base/log.h"
#include "script/lua_json.h"
#include "script/lua_money.h"
#include "script/lua_secret.h"
#include "script/state.h"
#include <dirent.h>
#include <luajit.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_MODULES 64
#define MAX_MODULE_BYTES ((size_t)1 << 20)
#define MAX_DATE_FORMAT 256
#define MAX_LEVELS 1000 // of calls below a pcall
#define HEADROOM 120    // slots of the stack that the count hook and what it calls need, and more
#define SANDBOXES "moongate.sandboxes" // registry: environment → info, weak keys

static const char *const BASE_NAMES[] = {
    "assert",   "error",  "getmetatable", "ipairs",   "next",           "pairs",    "pcall",
    "rawequal", "rawget", "rawset",       "select",   "setmetatable",   "tonumber", "tostring",
    "type",     "unpack", "xpcall",       "_VERSION", "collectgarbage", NULL,
};
static const char *const LIBRARIES[] = {"string", "table", "math", "bit", "os", NULL};
static const char *const REMOVED[] = {
    "dofile",  "loadfile", "newproxy", "gcinfo",     "coroutine", "setfenv",
    "getfenv", "module",   "jit",      "ffi",        "io",        "debug",
    "package", "print",    "load",     "loadstring", NULL,
};

// ---- texts of lua/, read once

struct module {
    char name[64];
    char *text;
    size_t len;
};
static struct {
    pthread_mutex_t lock;
    char *dir;
    struct module modules[MAX_MODULES];
    size_t count;
} library = {.lock = PTHREAD_MUTEX_INITIALIZER};

static void read_module(const char *dir, const char *file)
{
    size_t len = strlen(file);
    if (len < 5 || len > 60 || strcmp(file + len - 4, ".lua") != 0 || library.count == MAX_MODULES)
        return;
    char path[4400];
    snprintf(path, sizeof path, "%s/%s", dir, file);
    FILE *in = fopen(path, "re");
    char *text = in ? malloc(MAX_MODULE_BYTES) : NULL;
    if (text) {
        struct module *module = &library.modules[library.count];
        module->len = fread(text, 1, MAX_MODULE_BYTES, in);
        char *less = realloc(text, module->len + 1);
        module->text = less ? less : text;
        snprintf(module->name, sizeof module->name, "%.*s", (int)(len - 4), file);
        library.count++;
    }
    if (in)
        fclose(in);
}

static void read_library(const char *dir)
{
    pthread_mutex_lock(&library.lock);
    if (!library.dir || strcmp(library.dir, dir) != 0) {
        for (size_t i = 0; i < library.count; i++)
            free(library.modules[i].text);
        library.count = 0;
        free(library.dir);
        library.dir = strdup(dir);
        DIR *folder = opendir(dir);
        struct dirent *entry;
        while (folder && (entry = readdir(folder)))
            read_module(dir, entry->d_name);
        if (folder)
            closedir(folder);
    }
    pthread_mutex_unlock(&library.lock);
}

// Pushes the text of a module of lua/; false (nothing pushed) when there is none.
static bool push_library_text(lua_State *L, const char *name)
{
    // Copied first: a Lua error must not leave the lock held.
    char *copy = NULL;
    size_t len = 0;
    void **guard = lua_env_guard(L, free);
    pthread_mutex_lock(&library.lock);
    for (size_t i = 0; i < library.count && !copy; i++) {
        if (strcmp(library.modules[i].name, name) == 0) {
            len = library.modules[i].len;
            copy = malloc(len + 1);
            if (copy)
                memcpy(copy, library.modules[i].text, len);
        }
    }
    pthread_mutex_unlock(&library.lock);
    if (!copy) {
        lua_pop(L, 1);
        return false;
    }
    *guard = copy;
    lua_pushlstring(L, copy, len);
    *guard = NULL;
    free(copy);
    lua_remove(L, -2);
    return true;
}

// ---- functions with a sandbox's info (upvalue 1) and environment (upvalue 2)

static bool is_trusted(lua_State *L, int info)
{
    lua_getfield(L, info, "trusted");
    bool trusted = lua_toboolean(L, -1);
    lua_pop(L, 1);
    return trusted;
}

// require(name)
static int sandbox_require(lua_State *L)
{
    const char *name = luaL_checkstring(L, 1);
    int info = lua_upvalueindex(1), environment = lua_upvalueindex(2);
    lua_settop(L, 1);
    lua_getfield(L, info, "loaded"); // 2
    lua_getfield(L, 2, name);
    if (!lua_isnil(L, -1)) {
        if (lua_islightuserdata(L, -1))
            return luaL_error(L, "module '%s' requires itself", name);
        return 1;
    }
    lua_settop(L, 2);
    lua_getfield(L, info, "modules"); // 3
    lua_getfield(L, 3, name);         // 4: {text, chunk}
    if (lua_istable(L, 4)) {
        lua_rawgeti(L, 4, 1); // 5
        lua_rawgeti(L, 4, 2); // 6
    } else {
        if (!push_library_text(L, name))
            return luaL_error(L, "module '%s' not found (only lua/ and the plugin's own folder)",
                              name);
        lua_pushfstring(L, "@lua/%s.lua", name);
    }
    char error[512];
    struct lua_env *env = lua_env_of(L);
    if (lua_env_compile(env, L, lua_env_check_slice(L, 5), lua_tostring(L, 6), is_trusted(L, info),
                        environment, error, sizeof error) != 0)
        return luaL_error(L, "%s", error);
    lua_pushlightuserdata(L, env); // in progress
    lua_setfield(L, 2, name);
    lua_pushvalue(L, 1);
    lua_call(L, 1, 1);
    if (lua_isnil(L, -1)) {
        lua_pop(L, 1);
        lua_pushboolean(L, 1);
    }
    lua_pushvalue(L, -1);
    lua_setfield(L, 2, name);
    return 1;
}

// load(text[, name[, mode[, env]]]): text chunks only
static int sandbox_load(lua_State *L)
{
    if (lua_type(L, 1) != LUA_TSTRING)
        return luaL_argerror(L, 1, "only a text can be loaded");
    struct slice text = lua_env_check_slice(L, 1);
    const char *name = luaL_optstring(L, 2, "=(load)");
    int environment = lua_istable(L, 4) ? 4 : lua_upvalueindex(2);
    char error[512];
    lua_env_charge(L, text.len);
    if (lua_env_compile(lua_env_of(L), L, text, name, is_trusted(L, lua_upvalueindex(1)),
                        environment, error, sizeof error) != 0) {
        lua_pushnil(L);
        lua_pushstring(L, error);
        return 2;
    }
    return 1;
}

static int write_log(lua_State *L, enum log_level level)
{
    const char *event = luaL_checkstring(L, 1);
    lua_getfield(L, lua_upvalueindex(1), "name");
    const char *plugin = lua_tostring(L, -1);
    struct buf *out = lua_env_buffer(L, 16384);
    if (lua_istable(L, 2))
        lua_json_encode(L, 2, out);
    if (buf_slice(out).len > 0)
        log_event(level, event, LOG_STR("plugin", plugin), LOG_JSON("fields", buf_slice(out)));
    else
        log_event(level, event, LOG_STR("plugin", plugin));
    buf_free(out);
    return 0;
}

static int log_debug(lua_State *L)
{
    return write_log(L, LOG_DEBUG);
}

static int log_info(lua_State *L)
{
    return write_log(L, LOG_INFO);
}

static int log_warn(lua_State *L)
{
    return write_log(L, LOG_WARN);
}

static int log_error(lua_State *L)
{
    return write_log(L, LOG_ERROR);
}

static int sandbox_print(lua_State *L)
{
    int count = lua_gettop(L);
    luaL_Buffer text;
    lua_getfield(L, lua_upvalueindex(1), "name");
    lua_insert(L, 1);
    luaL_buffinit(L, &text);
    for (int i = 2; i <= count + 1; i++) {
        if (i > 2)
            luaL_addchar(&text, ' ');
        if (lua_isstring(L, i)) {
            lua_pushvalue(L, i);
            luaL_addvalue(&text);
        } else {
            luaL_addstring(&text, luaL_typename(L, i));
        }
    }
    luaL_pushresult(&text);
    size_t len;
    const char *line = lua_tolstring(L, -1, &len);
    log_event(LOG_INFO, "print", LOG_STR("plugin", lua_tostring(L, 1)),
              LOG_SLICE("text", slice_of(line, len > 4096 ? 4096 : len)));
    return 0;
}

// upvalue: the library's function, whose work grows with the format.
static int sandbox_date(lua_State *L)
{
    size_t len;
    luaL_optlstring(L, 1, "%c", &len);
    luaL_argcheck(L, len <= MAX_DATE_FORMAT, 1, "format too long");
    lua_settop(L, 2);
    lua_pushvalue(L, lua_upvalueindex(1));
    lua_insert(L, 1);
    if (lua_isnil(L, 3))
        lua_settop(L, lua_isnil(L, 2) ? 1 : 2);
    lua_call(L, lua_gettop(L) - 1, 1);
    return 1;
}

static int sandbox_collectgarbage(lua_State *L)
{
    const char *what = luaL_optstring(L, 1, "count");
    if (strcmp(what, "count") != 0)
        return luaL_argerror(L, 1, "only \"count\" is allowed");
    lua_pushnumber(L, (lua_Number)lua_env_memory(lua_env_of(L)) / 1024.0);
    return 1;
}

// The host's xpcall would run its handler inside the hook that raised, where nothing can stop it;
// this one calls the handler afterwards (the stack is unwound then). And pcall starts nothing where
// the stack is nearly full: there the count hook finds no room and is not called, so a loop that
// catches its "stack overflow" over and over would never end.
static const char PROTECTED_CALLS[] =
    "local unchecked, check, select = ...\n"
    "local function pcall(...)\n"
    "  check()\n"
    "  return unchecked(...)\n"
    "end\n"
    "local function finish(handler, ok, ...)\n"
    "  if ok then return true, ... end\n"
    "  return false, select(2, pcall(handler, ...))\n"
    "end\n"
    "return pcall, function(fn, handler, ...) return finish(handler, pcall(fn, ...)) end\n";

static int check_headroom(lua_State *L)
{
    lua_Debug ar;
    if (lua_getstack(L, MAX_LEVELS, &ar)) // each pcall on the way costs an unwinding when it ends
        return luaL_error(L, "stack overflow (pcall deeper than %d calls)", MAX_LEVELS);
    luaL_checkstack(L, HEADROOM, "pcall"); // or LuaJIT's own "stack overflow"
    return 0;
}

// ---- strictness

static int strict_read(lua_State *L)
{
    if (lua_type(L, 2) == LUA_TSTRING)
        return luaL_error(L, "undeclared global '%s'", lua_tostring(L, 2));
    return luaL_error(L, "undeclared global");
}

static int strict_write(lua_State *L)
{
    if (lua_type(L, 2) == LUA_TSTRING)
        return luaL_error(L, "assignment to undeclared global '%s'", lua_tostring(L, 2));
    return luaL_error(L, "assignment to undeclared global");
}

static void set_strict(lua_State *L, int environment)
{
    lua_createtable(L, 0, 3);
    lua_pushcfunction(L, strict_read);
    lua_setfield(L, -2, "__index");
    lua_pushcfunction(L, strict_write);
    lua_setfield(L, -2, "__newindex");
    lua_pushboolean(L, 0);
    lua_setfield(L, -2, "__metatable");
    lua_setmetatable(L, environment);
}

// ---- building

static int absolute(lua_State *L, int index)
{
    return index < 0 && index > LUA_REGISTRYINDEX ? lua_gettop(L) + 1 + index : index;
}

// Pushes a new info table for the environment and remembers it.
static void push_info(lua_State *L, int environment, const char *name)
{
    lua_createtable(L, 0, 5);
    lua_pushstring(L, name);
    lua_setfield(L, -2, "name");
    lua_newtable(L);
    lua_setfield(L, -2, "loaded");
    lua_newtable(L);
    lua_setfield(L, -2, "modules");
    if (luaL_newmetatable(L, SANDBOXES)) {
        lua_pushliteral(L, "k");
        lua_setfield(L, -2, "__mode");
        lua_pushvalue(L, -1);
        lua_setmetatable(L, -2);
    }
    lua_pushvalue(L, environment);
    lua_pushvalue(L, -3);
    lua_rawset(L, -3);
    lua_pop(L, 1);
}

static void get_info(lua_State *L, int environment)
{
    luaL_getmetatable(L, SANDBOXES);
    lua_pushvalue(L, environment);
    lua_rawget(L, -2);
    lua_remove(L, -2);
    if (!lua_istable(L, -1))
        luaL_error(L, "not a sandbox");
}

static void set_closure(lua_State *L, int environment, int info, int target, const char *name,
                        lua_CFunction fn)
{
    lua_pushvalue(L, info);
    lua_pushvalue(L, environment);
    lua_pushcclosure(L, fn, 2);
    lua_pushstring(L, name);
    lua_insert(L, -2);
    lua_rawset(L, target);
}

// What both kinds of environments get of their own.
static void add_own(lua_State *L, int environment, int info)
{
    set_closure(L, environment, info, environment, "require", sandbox_require);
    set_closure(L, environment, info, environment, "load", sandbox_load);
    set_closure(L, environment, info, environment, "loadstring", sandbox_load);
    set_closure(L, environment, info, environment, "print", sandbox_print);
    lua_pushliteral(L, "log");
    lua_createtable(L, 0, 4);
    int log = lua_gettop(L);
    set_closure(L, environment, info, log, "debug", log_debug);
    set_closure(L, environment, info, log, "info", log_info);
    set_closure(L, environment, info, log, "warn", log_warn);
    set_closure(L, environment, info, log, "error", log_error);
    lua_rawset(L, environment);
    lua_pushliteral(L, "json");
    lua_json_open(L);
    lua_rawset(L, environment);
    lua_pushliteral(L, "money");
    lua_money_open(L);
    lua_rawset(L, environment);
}

static void open_library(lua_State *L, const char *name, lua_CFunction open)
{
    lua_pushcfunction(L, open);
    lua_pushstring(L, name);
    lua_call(L, 1, 0);
}

static void keep_fields(lua_State *L, const char *library_name, const char *const *names)
{
    lua_newtable(L);
    lua_getglobal(L, library_name);
    for (; *names; names++) {
        lua_getfield(L, -1, *names);
        lua_setfield(L, -3, *names);
    }
    lua_pop(L, 1);
    lua_setglobal(L, library_name);
}

static void seed_random(lua_State *L)
{
    uint32_t seed = 1;
    if (clock_random(&seed, sizeof seed) != 0)
        seed = (uint32_t)clock_boot_ns();
    lua_getglobal(L, "math");
    lua_getfield(L, -1, "randomseed");
    lua_pushnumber(L, (lua_Number)seed);
    lua_call(L, 1, 0);
    lua_pushnil(L);
    lua_setfield(L, -2, "randomseed");
    lua_pop(L, 1);
}

void sandbox_open_base(lua_State *L, const char *lua_dir)
{
    read_library(lua_dir);
    open_library(L, "", luaopen_base);
    open_library(L, LUA_TABLIBNAME, luaopen_table);
    open_library(L, LUA_STRLIBNAME, luaopen_string);
    open_library(L, LUA_MATHLIBNAME, luaopen_math);
    open_library(L, LUA_BITLIBNAME, luaopen_bit);
    open_library(L, LUA_OSLIBNAME, luaopen_os);
    keep_fields(L, "os", (const char *const[]){"time", "date", "clock", NULL});
    lua_getglobal(L, "os");
    lua_getfield(L, -1, "date");
    lua_pushcclosure(L, sandbox_date, 1);
    lua_setfield(L, -2, "date");
    lua_pop(L, 1);
    for (size_t i = 0; REMOVED[i]; i++) {
        lua_pushnil(L);
        lua_setglobal(L, REMOVED[i]);
    }
    lua_getglobal(L, "string");
    lua_pushnil(L);
    lua_setfield(L, -2, "dump");
    sandbox_open_string(L);
    lua_getglobal(L, "table");
    lua_pushnil(L);
    lua_setfield(L, -2, "foreach");
    lua_pushnil(L);
    lua_setfield(L, -2, "foreachi");
    lua_pushnil(L);
    lua_setfield(L, -2, "maxn");
    sandbox_open_table(L);
    lua_pop(L, 2);
    seed_random(L);
    // ("x"):method() reaches a copy that no chunk can reach to change.
    lua_pushliteral(L, "");
    lua_getmetatable(L, -1);
    lua_newtable(L);
    lua_getglobal(L, "string");
    lua_pushnil(L);
    while (lua_next(L, -2)) {
        lua_pushvalue(L, -2);
        lua_insert(L, -2);
        lua_rawset(L, -5);
    }
    lua_pop(L, 1);
    lua_setfield(L, -2, "__index");
    lua_pushboolean(L, 0);
    lua_setfield(L, -2, "__metatable");
    lua_pop(L, 2);
    if (luaL_loadbuffer(L, PROTECTED_CALLS, sizeof PROTECTED_CALLS - 1, "=pcall") != 0)
        lua_error(L);
    luaJIT_setmode(L, -1, LUAJIT_MODE_ALLFUNC | LUAJIT_MODE_OFF);
    lua_getglobal(L, "pcall");
    lua_pushcfunction(L, check_headroom);
    lua_getglobal(L, "select");
    lua_call(L, 3, 2);
    lua_setglobal(L, "xpcall");
    lua_setglobal(L, "pcall");
    lua_pushcfunction(L, sandbox_collectgarbage);
    lua_setglobal(L, "collectgarbage");
    lua_secret_open(L);
    lua_pushvalue(L, LUA_GLOBALSINDEX);
    int environment = lua_gettop(L);
    push_info(L, environment, "lua");
    lua_pushboolean(L, 1);
    lua_setfield(L, -2, "trusted");
    add_own(L, environment, environment + 1);
    lua_settop(L, environment - 1);
}

static void copy_table(lua_State *L, const char *name)
{
    lua_newtable(L);
    lua_getglobal(L, name);
    lua_pushnil(L);
    while (lua_next(L, -2)) {
        lua_pushvalue(L, -2);
        lua_insert(L, -2);
        lua_rawset(L, -5);
    }
    lua_pop(L, 1);
}

void lua_env_push_sandbox(struct lua_env *env, lua_State *L, const char *plugin)
{
    (void)env;
    luaL_checkstack(L, 16, "sandbox");
    lua_createtable(L, 0, 48);
    int environment = lua_gettop(L);
    for (size_t i = 0; BASE_NAMES[i]; i++) {
        lua_getglobal(L, BASE_NAMES[i]);
        lua_setfield(L, environment, BASE_NAMES[i]);
    }
    for (size_t i = 0; LIBRARIES[i]; i++) {
        copy_table(L, LIBRARIES[i]);
        lua_setfield(L, environment, LIBRARIES[i]);
    }
    lua_pushvalue(L, environment);
    lua_setfield(L, environment, "_G");
    push_info(L, environment, plugin);
    add_own(L, environment, environment + 1);
    set_strict(L, environment);
    if (push_library_text(L, "schema")) {
        lua_pop(L, 1);
        lua_pushliteral(L, "schema");
        lua_getfield(L, environment, "require");
        lua_pushliteral(L, "schema");
        lua_call(L, 1, 1);
        lua_rawset(L, environment);
    }
    lua_settop(L, environment);
}

void lua_env_add_module(lua_State *L, int env_index, const char *name, struct slice text,
                        const char *chunk)
{
    env_index = absolute(L, env_index);
    get_info(L, env_index);
    lua_getfield(L, -1, "modules");
    lua_createtable(L, 2, 0);
    lua_env_push_slice(L, text);
    lua_rawseti(L, -2, 1);
    lua_pushstring(L, chunk);
    lua_rawseti(L, -2, 2);
    lua_setfield(L, -2, name);
    lua_pop(L, 2);
}

void lua_env_trust(lua_State *L, int env_index)
{
    env_index = absolute(L, env_index);
    get_info(L, env_index);
    lua_pushboolean(L, 1);
    lua_setfield(L, -2, "trusted");
    lua_pop(L, 1);
}

void lua_env_require(lua_State *L, const char *name)
{
    lua_getglobal(L, "require");
    lua_pushstring(L, name);
    lua_call(L, 1, 1);
}
