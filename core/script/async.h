#pragma once
// Coroutines with identity, and what they wait for. One function resumes (async.c); a coroutine has
// at most one pending operation, which has one cleanup. Locks belong to the coroutine and are
// released with it. Worker thread only.
//
//   co = co_start(…)            runs until it ends (on_end was called) or waits
//   in a C function of gw:      async_check(L, "fetch"); … async_wait(L, op)   (the last thing)
//   in the operation's callback: async_complete(op, push, arg)
#include "base/err.h"
#include "base/list.h"
#include "base/slice.h"
#include <lua.h>
#include <stddef.h>
#include <stdint.h>

struct coroutine;
struct ctx;
struct plugin_rt;

enum co_state { CO_FREE, CO_RUNNING, CO_YIELDED, CO_DEAD };

// A thing a coroutine waits for; first member of the operation's own struct.
struct async_op {
    const char *name;
    struct coroutine *co;                // NULL: nobody waits any more
    void (*cancel)(struct async_op *op); // stops it; the memory is the operation's own business
};

// err 0: results lie on co->thread from index 1; else co->error is the text (borrowed).
typedef void (*co_end_cb)(struct coroutine *co, int err);

struct co_lock;

struct coroutine {
    struct list node;
    lua_State *thread;
    int ref;
    enum co_state state;
    uint32_t generation;
    struct plugin_rt *plugin;
    const char *what; // "select", "route", "task expire": for messages
    struct ctx *ctx;  // NULL: none
    co_end_cb on_end;
    void *user;
    size_t index; // the caller's
    struct async_op *op;
    struct co_lock *lock;
    struct slice error;
    const char *forced_error; // co_fail's
    bool is_cancelled, may_answer, is_side;
    int args;       // pushed by co_prepare
    int64_t growth; // memory it allocated and did not free, roughly
};

// Pushes at most 6 values onto L and gives their count. Runs protected.
typedef int (*co_push)(lua_State *L, void *arg);

struct co_options {
    struct plugin_rt *plugin;
    const char *what;
    struct ctx *ctx;
    co_end_cb on_end;
    void *user;
    size_t index;
    bool is_side;           // beside a hook or route: all, spawn
    bool push_cannot_raise; // push only copies registry references, nil, numbers and booleans
};
// Runs the function that push leaves first, with the values after it as arguments. on_end is called
// once, maybe before this returns, unless co_cancel came first. GW_ENOMEM, GW_EBUSY: not started
// (and no on_end). *out (may be NULL) is set before anything runs; on_end clears it if it must.
GW_MUSTCHECK int co_start(const struct co_options *options, co_push push, void *arg,
                          struct coroutine **out);
// The same in two steps: between them the caller may set what the functions it calls look at.
GW_MUSTCHECK int co_prepare(const struct co_options *options, co_push push, void *arg,
                            struct coroutine **out);
void co_run(struct coroutine *co);
// Cancels what it waits for, resumes it once with the error "cancelled", drops it. No on_end.
void co_cancel(struct coroutine *co);
// The running coroutine; NULL inside init, price, delta, close.
struct coroutine *co_running(lua_State *L);

// First thing in a function that may yield: raises when it may not here.
struct coroutine *async_check(lua_State *L, const char *function);
// Last thing: the coroutine waits for op. Returns what the C function has to return.
int async_wait(lua_State *L, struct async_op *op);
// Ends the wait; the coroutine goes on with what push leaves. op->co is NULL afterwards; the caller
// frees op. Nothing happens when nobody waits.
void async_complete(struct async_op *op, co_push push, void *arg);

struct script_generation;
// Cancels all coroutines and frees the pool.
void co_drop_all(struct script_generation *generation);
// The one with the most memory is cancelled with an error its starter sees; false: none.
bool co_kill_greediest(struct script_generation *generation);
// Ends a waiting coroutine with an error that its starter sees (deadlines).
void co_fail(struct coroutine *co, const char *error);

// A C function that yields is reached through a Lua function that turns the first result into the
// error "cancelled". Pushes that function for the C closure at the top (replacing it).
void async_wrap(lua_State *L);
// luaL_error with the position of the plugin's code (skips the wrapper's frame).
int async_error(lua_State *L, const char *format, ...) __attribute__((format(printf, 2, 3)));
