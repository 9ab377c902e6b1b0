// Coroutines: started, resumed and ended here and nowhere else.
#include "script/async.h"
#include "base/clock.h"
#include "base/log.h"
#include "script/runtime.h"
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#define MAX_IDLE 64
#define MAX_LIVE 20000
#define MAX_SIDE 4000 // of one plugin, started by gw.all and gw.spawn
#define MAX_VALUES 6
#define CANCEL_INSTRUCTIONS 100000 // about 1 ms

static void end_coroutine(struct coroutine *co, int status);

struct coroutine *co_running(lua_State *L)
{
    return lua_env_current(lua_env_of(L));
}

// ---- entries

static int make_thread(lua_State *L)
{
    struct coroutine *co = lua_touserdata(L, 1);
    co->thread = lua_newthread(L);
    co->ref = luaL_ref(L, LUA_REGISTRYINDEX);
    return 0;
}

static struct coroutine *take_entry(struct script_generation *generation)
{
    struct list *node = list_pop_front(&generation->idle);
    if (node) {
        generation->idle_count--;
        return list_entry(node, struct coroutine, node);
    }
    struct coroutine *co = calloc(1, sizeof *co);
    if (!co)
        return NULL;
    list_node_init(&co->node);
    if (lua_env_protect(generation->env, make_thread, co, NULL, 0) != 0) {
        free(co);
        return NULL;
    }
    return co;
}

static void free_entry(struct script_generation *generation, struct coroutine *co)
{
    // luaL_unref allocates nothing (state.c made its free list's slot).
    luaL_unref(lua_env_state(generation->env), LUA_REGISTRYINDEX, co->ref);
    free(co);
}

static void recycle(struct coroutine *co, bool is_reusable)
{
    struct script_generation *generation = co->plugin->generation;
    list_remove(&co->node);
    generation->live_count--;
    co->plugin->side_count -= co->is_side;
    co->is_side = false;
    co->generation++;
    co->state = CO_FREE;
    co->ctx = NULL;
    co->on_end = NULL;
    co->user = NULL;
    co->growth = 0;
    co->error = SLICE_NONE;
    co->forced_error = NULL;
    co->is_cancelled = co->may_answer = false;
    if (!is_reusable || generation->idle_count >= MAX_IDLE) {
        free_entry(generation, co);
        return;
    }
    lua_settop(co->thread, 0);
    list_push_front(&generation->idle, &co->node);
    generation->idle_count++;
}

// ---- running

struct push_call {
    co_push push;
    void *arg;
    lua_State *to;
    bool with_flag; // first value: was it cancelled
    int count;
};

static int run_push(lua_State *L)
{
    struct push_call *call = lua_touserdata(L, 1);
    lua_settop(L, 0);
    int count = call->push ? call->push(L, call->arg) : 0;
    if (count > MAX_VALUES)
        return luaL_error(L, "too many values");
    // A coroutine that waits or has not begun has room for these without allocating.
    if (call->with_flag)
        lua_pushboolean(call->to, 0);
    lua_xmove(L, call->to, count);
    call->count = count + call->with_flag;
    return 0;
}

static int no_operation(lua_State *L)
{
    (void)L;
    return 0;
}

static void watch(struct coroutine *co, uint64_t started_ms)
{
    uint64_t took_ms = clock_coarse_ms() - started_ms;
    int64_t limit = co->plugin->generation->script->options.conf->lua_turn_ms;
    if (limit > 0 && took_ms > (uint64_t)limit)
        log_event(LOG_WARN, "plugin_slow", LOG_STR("plugin", co->plugin->name),
                  LOG_STR("in", co->what), LOG_INT("ms", took_ms));
}

static void resume(struct coroutine *co, int args)
{
    struct lua_env *env = co->plugin->generation->env;
    struct coroutine *outer = lua_env_current(env);
    co->state = CO_RUNNING;
    lua_env_begin(env, co->is_cancelled ? CANCEL_INSTRUCTIONS : 0);
    lua_env_set_current(env, co, co->thread);
    (void)lua_env_take_growth(env);
    struct watchdog_work before =
        lua_env_set_work(env, (struct watchdog_work){co->plugin->watch_name, co->what});
    uint64_t started_ms = clock_coarse_ms();
    int status = lua_resume(co->thread, args);
    (void)lua_env_set_work(env, before);
    watch(co, started_ms);
    int64_t growth = lua_env_take_growth(env);
    co->growth += growth;
    co->plugin->growth += growth;
    lua_env_set_current(env, outer, outer ? outer->thread : NULL);
    lua_env_end(env);
    if (outer) // the machine must know again which thread's C function goes on
        (void)lua_cpcall(outer->thread, no_operation, NULL);
    if (status == LUA_YIELD && co->op) {
        co->state = CO_YIELDED;
        return;
    }
    end_coroutine(co, status);
}

struct traceback_call {
    struct coroutine *co;
};

static int log_traceback(lua_State *L)
{
    struct traceback_call *call = lua_touserdata(L, 1);
    luaL_traceback(L, call->co->thread, NULL, 0);
    log_event(LOG_DEBUG, "lua_traceback", LOG_STR("plugin", call->co->plugin->name),
              LOG_STR("traceback", lua_tostring(L, -1)));
    return 0;
}

// Text of an error that is no text: where it was raised.
static struct slice describe_error(struct coroutine *co, char *out, size_t size)
{
    lua_Debug ar = {.currentline = -1};
    int type = lua_gettop(co->thread) > 0 ? lua_type(co->thread, -1) : LUA_TNIL;
    for (int level = 0; level < 8 && lua_getstack(co->thread, level, &ar); level++) {
        lua_getinfo(co->thread, "Sl", &ar);
        if (ar.currentline > 0)
            break;
    }
    snprintf(out, size, "%s:%d: error with a %s value", ar.currentline > 0 ? ar.short_src : "?",
             ar.currentline > 0 ? ar.currentline : 0, lua_typename(co->thread, type));
    return slice_str(out);
}

static void end_coroutine(struct coroutine *co, int status)
{
    int err = 0;
    char where[160];
    if (status != 0) {
        err = status == LUA_ERRMEM ? GW_ENOMEM : GW_EINVAL;
        if (status == LUA_YIELD)
            co->error = SLICE_LIT("yield outside of the host's functions");
        else if (lua_gettop(co->thread) > 0 && lua_type(co->thread, -1) == LUA_TSTRING)
            co->error = lua_env_error_text(co->thread);
        else
            co->error = describe_error(co, where, sizeof where);
        if (log_is_on(LOG_DEBUG) && status != LUA_YIELD) {
            struct traceback_call call = {co};
            lua_env_try(co->plugin->generation->env, log_traceback, &call);
        }
    }
    if (co->forced_error) {
        err = err ? err : GW_ECANCELLED;
        co->error = slice_str(co->forced_error);
    }
    co->state = CO_DEAD;
    co_lock_release(co);
    co_end_cb on_end = co->on_end;
    co->on_end = NULL;
    if (on_end)
        on_end(co, err);
    struct lua_env *env = co->plugin->generation->env;
    recycle(co, status == 0);
    if (status == LUA_ERRMEM)
        lua_env_expect_garbage(env);
    lua_env_relieve(env);
}

int co_prepare(const struct co_options *options, co_push push, void *arg, struct coroutine **out)
{
    struct script_generation *generation = options->plugin->generation;
    if (generation->live_count >= MAX_LIVE)
        return GW_EBUSY;
    // One plugin's forgotten functions must not take the coroutines of everybody's hooks.
    if (options->is_side && options->plugin->side_count >= MAX_SIDE)
        return GW_EBUSY;
    if (lua_env_memory(generation->env) > lua_env_memory_cap(generation->env) / 4 * 3 &&
        lua_env_turn_end(generation->env))
        return GW_ENOMEM; // no new work while this much is in use
    struct coroutine *co = take_entry(generation);
    if (!co)
        return GW_ENOMEM;
    co->plugin = options->plugin;
    co->what = options->what;
    co->ctx = options->ctx;
    co->user = options->user;
    co->index = options->index;
    co->is_side = options->is_side;
    co->plugin->side_count += co->is_side;
    co->generation++;
    list_push_back(&generation->live, &co->node);
    generation->live_count++;
    struct push_call call = {.push = push, .arg = arg, .to = co->thread};
    int err = 0;
    if (options->push_cannot_raise)
        call.count = push(co->thread, arg);
    else
        err = lua_env_protect(generation->env, run_push, &call, NULL, 0);
    if (err) {
        recycle(co, false);
        return err;
    }
    co->on_end = options->on_end;
    co->args = call.count - 1;
    *out = co;
    return 0;
}

void co_run(struct coroutine *co)
{
    resume(co, co->args);
}

int co_start(const struct co_options *options, co_push push, void *arg, struct coroutine **out)
{
    struct coroutine *co;
    int err = co_prepare(options, push, arg, &co);
    if (err)
        return err;
    if (out)
        *out = co;
    co_run(co);
    return 0;
}

// ---- waiting

int async_error(lua_State *L, const char *format, ...)
{
    lua_Debug ar = {.currentline = -1};
    luaL_checkstack(L, 4, "error");
    for (int level = 1; level < 6 && lua_getstack(L, level, &ar); level++) {
        lua_getinfo(L, "Sl", &ar);
        if (ar.currentline > 0 && ar.source[0] != '=')
            break;
        ar.currentline = -1;
    }
    char text[300];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (ar.currentline > 0)
        lua_pushfstring(L, "%s:%d: %s", ar.short_src, ar.currentline, text);
    else
        lua_pushstring(L, text);
    return lua_error(L);
}

struct coroutine *async_check(lua_State *L, const char *function)
{
    struct coroutine *co = co_running(L);
    if (!co || co->thread != L)
        async_error(L, "%s waits, which is not allowed in init, close, price and delta", function);
    if (co->is_cancelled)
        async_error(L, "cancelled");
    if (co->op)
        async_error(L, "%s: something is pending already", function);
    if (!lua_isyieldable(L))
        async_error(L, "%s waits, which is not allowed inside a callback (sort, gsub) of %s",
                    function, co->what);
    return co;
}

int async_wait(lua_State *L, struct async_op *op)
{
    struct coroutine *co = co_running(L);
    co->op = op;
    op->co = co;
    lua_settop(L, 0);
    return lua_yield(L, 0);
}

void async_complete(struct async_op *op, co_push push, void *arg)
{
    struct coroutine *co = op->co;
    if (!co)
        return;
    gw_require(co->op == op && co->state == CO_YIELDED);
    op->co = NULL;
    co->op = NULL;
    struct push_call call = {.push = push, .arg = arg, .to = co->thread, .with_flag = true};
    if (lua_env_protect(co->plugin->generation->env, run_push, &call, NULL, 0) != 0) {
        co->forced_error = "out of memory";
        co->is_cancelled = true;
        lua_pushboolean(co->thread, 1);
        call.count = 1;
    }
    resume(co, call.count);
}

static void abort_wait(struct coroutine *co)
{
    struct async_op *op = co->op;
    co->is_cancelled = true;
    if (co->state != CO_YIELDED)
        return; // it runs: its next wait raises "cancelled"
    co->op = NULL;
    op->co = NULL;
    op->cancel(op);
    lua_pushboolean(co->thread, 1);
    resume(co, 1);
}

void co_cancel(struct coroutine *co)
{
    if (co->state == CO_FREE || co->state == CO_DEAD)
        return;
    co->on_end = NULL;
    abort_wait(co);
}

void co_fail(struct coroutine *co, const char *error)
{
    if (co->state == CO_FREE || co->state == CO_DEAD)
        return;
    co->forced_error = error;
    abort_wait(co);
}

bool co_kill_greediest(struct script_generation *generation)
{
    struct coroutine *worst = NULL;
    struct list *node;
    list_each(node, &generation->live)
    {
        struct coroutine *co = list_entry(node, struct coroutine, node);
        if (co->state == CO_YIELDED && co->growth > 0 && (!worst || co->growth > worst->growth))
            worst = co;
    }
    if (!worst)
        return false;
    log_event(LOG_WARN, "plugin_memory", LOG_STR("plugin", worst->plugin->name),
              LOG_STR("in", worst->what), LOG_INT("bytes", worst->growth));
    lua_env_expect_garbage(generation->env);
    co_fail(worst, "the Lua state is short of memory: the largest coroutine was ended");
    return true;
}

void co_drop_all(struct script_generation *generation)
{
    while (!list_is_empty(&generation->live)) {
        struct coroutine *co = list_entry(generation->live.next, struct coroutine, node);
        gw_require(co->state == CO_YIELDED);
        co_cancel(co);
    }
    struct list *node;
    while ((node = list_pop_front(&generation->idle)))
        free_entry(generation, list_entry(node, struct coroutine, node));
    generation->idle_count = 0;
}

static const char WRAPPER[] = "local raw, error = ...\n"
                              "local function finish(is_cancelled, ...)\n"
                              "  if is_cancelled then error('cancelled', 0) end\n"
                              "  return ...\n"
                              "end\n"
                              "return function(...) return finish(raw(...)) end\n";

void async_wrap(lua_State *L)
{
    int fn = lua_gettop(L);
    if (luaL_loadbuffer(L, WRAPPER, sizeof WRAPPER - 1, "=gw") != 0)
        lua_error(L);
    lua_pushvalue(L, fn);
    lua_getglobal(L, "error");
    lua_call(L, 2, 1);
    lua_replace(L, fn);
}
