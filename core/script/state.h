#pragma once
// One Lua state: capped allocator, sandbox, protected entry, coroutine pool with identity,
// instruction budgets. Internal to the script floor (its only users are the files of core/script);
// the only header with lua_State in it besides script's internals. Worker thread only, but for the
// scratch states of plugin_set_load and confload, which belong to the thread that made them.
#include "base/err.h"
#include "base/list.h"
#include "base/slice.h"
#include <lauxlib.h>
#include <lua.h>
#include <lualib.h>
#include <stdint.h>

struct lua_env;

struct lua_env_options {
    size_t memory_cap;
    uint64_t instruction_budget; // per resume
    bool use_jit;                // for lua/ (trusted) chunks; plugins run with JIT off
    const char *lua_dir;         // where lua/ lies
};
// A state with the safe libraries and lua/ preloaded. error ≥ 256 bytes.
GW_MUSTCHECK int lua_env_new(const struct lua_env_options *options, struct lua_env **out,
                             char *error, size_t error_size);
void lua_env_free(struct lua_env *env);
lua_State *lua_env_state(struct lua_env *env);
struct lua_env *lua_env_of(lua_State *L); // from any thread of the state
size_t lua_env_memory(const struct lua_env *env);

// Runs fn(L, arg) under a protected call, argument pushing included; fn leaves its results out.
// error gets "file:line: text" without a traceback; traceback goes to the log at debug level.
GW_MUSTCHECK int lua_env_protect(struct lua_env *env, lua_CFunction fn, void *arg, char *error,
                                 size_t error_size);
// Compiles a text chunk (never bytecode) named name; JIT off unless is_trusted; its environment is
// the table at env_index. Leaves the function on the stack.
GW_MUSTCHECK int lua_env_compile(struct lua_env *env, lua_State *L, struct slice text,
                                 const char *name, bool is_trusted, int env_index, char *error,
                                 size_t error_size);
// Pushes a fresh plugin environment: safe globals, strict, read-only base.
void lua_env_push_sandbox(struct lua_env *env, lua_State *L, const char *plugin);
