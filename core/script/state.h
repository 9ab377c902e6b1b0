#pragma once
// One Lua state: capped allocator, sandboxes, protected entry, instruction and CPU budgets.
// Internal to the script floor. Worker thread only, but for the scratch states of plugin_set_load
// and confload, which belong to the thread that made them.
//
// Every entry to Lua is protected: lua_env_protect for direct calls, async.c's one resume function
// for coroutines. A budget begins with each outermost entry; when it is used up the running code is
// killed: the error comes again at every further instruction, so pcall cannot swallow it.
//
// C functions called by Lua hold nothing on the C stack or heap that a Lua error would leak: they
// use userdata (lua_env_buffer), arenas of the exchange, or allocate after the last call that can
// raise.
#include "base/buf.h"
#include "base/err.h"
#include "base/list.h"
#include "base/slice.h"
#include "script/watchdog.h"
#include <lauxlib.h>
#include <lua.h>
#include <lualib.h>
#include <stdint.h>

struct lua_env;

struct lua_env_options {
    size_t memory_cap;
    uint64_t instruction_budget; // per resume
    bool use_jit;                // for trusted chunks; others run with JIT off
    bool is_watched;             // by the watchdog: the states of the workers
    const char *lua_dir;         // where lua/ lies; NULL: lua_env_find_dir()
};
// A state with the safe libraries, money, json and `require` for lua/. error ≥ 256 bytes.
GW_MUSTCHECK int lua_env_new(const struct lua_env_options *options, struct lua_env **out,
                             char *error, size_t error_size);
void lua_env_free(struct lua_env *env);
lua_State *lua_env_state(struct lua_env *env);
struct lua_env *lua_env_of(lua_State *L); // from any thread of the state
size_t lua_env_memory(const struct lua_env *env);
size_t lua_env_memory_cap(const struct lua_env *env);
// The folder of lua/: $MOONGATE_LUA_DIR, or found upwards from the binary, or "lua". Constant.
const char *lua_env_find_dir(void);

// Runs fn(L, arg) under a protected call, argument pushing included: fn is a lua_CFunction that
// finds arg as lightuserdata at index 1 and leaves its results out. A budget begins here unless
// one runs. error (may be NULL) gets "file:line: text" without a traceback.
GW_MUSTCHECK int lua_env_protect(struct lua_env *env, lua_CFunction fn, void *arg, char *error,
                                 size_t error_size);
// The same where a failure changes nothing.
void lua_env_try(struct lua_env *env, lua_CFunction fn, void *arg);
// Compiles a text chunk (never bytecode) named name ("@file" or "=text"); JIT off unless
// is_trusted; its environment is the table at env_index. Leaves the function on the stack. Raises
// no syntax errors: GW_EINVAL and error has "file:line: what". May raise GW_ENOMEM's Lua error:
// call it inside lua_env_protect.
GW_MUSTCHECK int lua_env_compile(struct lua_env *env, lua_State *L, struct slice text,
                                 const char *name, bool is_trusted, int env_index, char *error,
                                 size_t error_size);
// Pushes a fresh plugin environment: safe globals (own copies of the libraries), strict, with its
// own instances of lua/ modules; `schema` is set when lua/schema.lua is there. Inside protect.
void lua_env_push_sandbox(struct lua_env *env, lua_State *L, const char *plugin);
// `require` in the sandbox at env_index finds this text under name ("./module" or "plugin.module").
// Inside protect. chunk as in lua_env_compile.
void lua_env_add_module(lua_State *L, int env_index, const char *name, struct slice text,
                        const char *chunk);
// The sandbox's chunks (also of `load` and `require`) keep the JIT. Inside protect.
void lua_env_trust(lua_State *L, int env_index);
// Reads a file of lua/ and leaves the module's value on the stack; raises. For the host's own use
// in the base environment (lua/plugin.lua and the like).
void lua_env_require(lua_State *L, const char *name);

// ---- budgets (async.c and the direct calls)

struct lua_env_scope { // of an outer entry while an inner one runs
    uint64_t used, budget;
    uint64_t started_ns, cpu_ns;
    bool is_running;
};
// Begins a budget; instructions 0: the env's own. Nested: the outer one goes on counting.
void lua_env_begin(struct lua_env *env, uint64_t instructions);
void lua_env_end(struct lua_env *env);
// Whose code runs from here on, for the watchdog (plugin: of watchdog_name; what: a literal). The
// caller gives back what it got when its call ends.
struct watchdog_work lua_env_set_work(struct lua_env *env, struct watchdog_work work);
// True when the last entry was ended by its budget.
bool lua_env_was_killed(const struct lua_env *env);
// Adds the cost of work done in C, in instructions; raises when the budget is used up.
void lua_env_charge(lua_State *L, uint64_t cost);
// Raises "file:line: text" that pcall cannot hold, until the entry ends.
int lua_env_kill(lua_State *L, const char *text);
// What the error at the top of L is, as text; never raises, borrows from the value.
struct slice lua_env_error_text(lua_State *L);

// Set by async.c: who runs now (NULL: nobody) and what the state belongs to.
void lua_env_set_owner(struct lua_env *env, void *owner);
void *lua_env_owner(const struct lua_env *env);
// thread: where direct calls run meanwhile (NULL: the main one).
void lua_env_set_current(struct lua_env *env, void *current, lua_State *thread);
void *lua_env_current(const struct lua_env *env);
// Bytes allocated less freed since the last call: the running coroutine's share.
int64_t lua_env_take_growth(struct lua_env *env);
// End of turn (or when it is tight): collects when more than half of the cap is used, then again
// after each sixteenth more. True when still above 75 %.
bool lua_env_turn_end(struct lua_env *env);
// Something large was let go: the next turn_end collects.
void lua_env_expect_garbage(struct lua_env *env);
// After an entry that may have filled the state: whoever comes next in this turn must find room,
// and there is no emergency collection.
void lua_env_relieve(struct lua_env *env);

// For tests: the count-th growing allocation from now fails, once. 0: none.
void lua_env_fail_after(struct lua_env *env, uint64_t count);

// ---- small tools for C functions

// A buf that is freed with the Lua value: pushes a userdata and gives its buf (cap bytes).
struct buf *lua_env_buffer(lua_State *L, size_t cap);
// Pushes a userdata that calls fn(*slot) when collected unless *slot was set to NULL.
void **lua_env_guard(lua_State *L, void (*fn)(void *));
struct slice lua_env_check_slice(lua_State *L, int index); // luaL_checklstring
static inline void lua_env_push_slice(lua_State *L, struct slice text)
{
    lua_pushlstring(L, text.ptr ? text.ptr : "", text.len);
}
