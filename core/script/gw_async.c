// gw.sleep, gw.all, gw.spawn, gw.lock.
#include "base/clock.h"
#include "base/log.h"
#include "script/runtime.h"
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define MAX_SLEEP_S 86400.0
#define MAX_ALL 16
#define MAX_LOCK_NAME 120
#define LOCK_POLL_MS 20
#define MAX_SPAWNED 1000 // functions of one turn

// ---- sleep

struct sleep_op {
    struct async_op op; // first
    struct loop_timer timer;
};

static void on_sleep_over(struct loop_timer *timer)
{
    struct sleep_op *sleep = list_entry(timer, struct sleep_op, timer);
    async_complete(&sleep->op, NULL, NULL);
    free(sleep);
}

static void cancel_sleep(struct async_op *op)
{
    struct sleep_op *sleep = (struct sleep_op *)op;
    loop_timer_stop(&sleep->timer);
    free(sleep);
}

static int gw_sleep(lua_State *L)
{
    async_check(L, "gw.sleep");
    lua_Number seconds = luaL_checknumber(L, 1);
    if (!(seconds >= 0 && seconds <= MAX_SLEEP_S))
        return async_error(L, "gw.sleep: 0 to %d seconds", (int)MAX_SLEEP_S);
    struct sleep_op *sleep = calloc(1, sizeof *sleep);
    if (!sleep)
        return async_error(L, "out of memory");
    sleep->op = (struct async_op){.name = "sleep", .cancel = cancel_sleep};
    struct loop *loop = plugin_of(L)->generation->script->options.loop;
    // The loop's clock is as old as this turn: a sleep is never shorter than asked for.
    uint64_t age_ms = clock_boot_ms() - loop_now_ms(loop);
    loop_timer_init(loop, &sleep->timer, on_sleep_over);
    loop_timer_start(&sleep->timer, (uint64_t)(seconds * 1000) + age_ms);
    return async_wait(L, &sleep->op);
}

// ---- all

struct all_op {
    struct async_op op; // first
    struct loop_task start;
    struct script_generation *generation;
    struct plugin_rt *plugin;
    struct ctx *ctx;
    int functions_ref, results_ref;
    size_t total, left;
    bool is_starting, is_cancelled;
    struct coroutine *children[MAX_ALL];
};

static void free_all(struct all_op *all)
{
    lua_State *L = lua_env_state(all->generation->env);
    luaL_unref(L, LUA_REGISTRYINDEX, all->functions_ref);
    luaL_unref(L, LUA_REGISTRYINDEX, all->results_ref);
    loop_task_cancel(&all->start);
    free(all);
}

static int push_results(lua_State *L, void *arg)
{
    const struct all_op *all = arg;
    lua_rawgeti(L, LUA_REGISTRYINDEX, all->results_ref);
    return 1;
}

struct child_end {
    struct all_op *all;
    struct coroutine *co;
    int err;
};

static int keep_result(lua_State *L)
{
    const struct child_end *end = lua_touserdata(L, 1);
    lua_settop(L, 0);
    lua_rawgeti(L, LUA_REGISTRYINDEX, end->all->results_ref);
    lua_createtable(L, 0, 2);
    lua_pushboolean(L, end->err == 0);
    lua_setfield(L, -2, "ok");
    if (end->err) {
        lua_env_push_slice(L, end->co->error);
        lua_setfield(L, -2, "error");
    } else if (lua_gettop(end->co->thread) > 0) {
        lua_settop(end->co->thread, 1);
        lua_xmove(end->co->thread, L, 1);
        lua_setfield(L, -2, "value");
    }
    lua_rawseti(L, -2, (int)end->co->index + 1);
    return 0;
}

static void finish_all(struct all_op *all)
{
    async_complete(&all->op, push_results, all);
    free_all(all);
}

static void on_child_end(struct coroutine *co, int err)
{
    struct child_end end = {co->user, co, err};
    end.all->children[co->index] = NULL;
    lua_env_try(co->plugin->generation->env, keep_result, &end);
    if (--end.all->left == 0)
        finish_all(end.all);
}

struct child_start {
    const struct all_op *all;
    size_t index;
};

static int push_child(lua_State *L, void *arg)
{
    const struct child_start *start = arg;
    lua_rawgeti(L, LUA_REGISTRYINDEX, start->all->functions_ref);
    lua_rawgeti(L, -1, (int)start->index + 1);
    return 1;
}

static void cancel_all(struct async_op *op)
{
    struct all_op *all = (struct all_op *)op;
    for (size_t i = 0; i < MAX_ALL; i++) {
        struct coroutine *child = all->children[i];
        all->children[i] = NULL;
        if (child)
            co_cancel(child);
    }
    if (all->is_starting)
        all->is_cancelled = true; // start_all is on the stack and frees it
    else
        free_all(all);
}

// Children start at the end of the turn, not while their parent's C function runs.
static void start_all(struct loop_task *task)
{
    struct all_op *all = list_entry(task, struct all_op, start);
    all->is_starting = true;
    all->left = all->total + 1; // one more, so that none is the last one in this loop
    for (size_t i = 0; i < all->total && !all->is_cancelled; i++) {
        const struct co_options options = {.plugin = all->plugin,
                                           .what = "all",
                                           .ctx = all->ctx,
                                           .on_end = on_child_end,
                                           .user = all,
                                           .is_side = true,
                                           .index = i};
        struct child_start start = {all, i};
        if (co_start(&options, push_child, &start, &all->children[i]) != 0) {
            all->children[i] = NULL;
            all->left--;
        }
    }
    all->is_starting = false;
    if (all->is_cancelled)
        free_all(all);
    else if (--all->left == 0)
        finish_all(all);
}

static int gw_all(lua_State *L)
{
    struct coroutine *co = async_check(L, "gw.all");
    struct plugin_rt *plugin = plugin_of(L);
    if (!lua_istable(L, 1))
        return async_error(L, "gw.all: a list of functions expected");
    size_t count = lua_objlen(L, 1);
    if (count == 0 || count > MAX_ALL)
        return async_error(L, "gw.all: 1 to %d functions", MAX_ALL);
    lua_settop(L, 1);
    lua_createtable(L, (int)count, 0); // 2: a copy, so that it cannot change
    for (size_t i = 1; i <= count; i++) {
        lua_rawgeti(L, 1, (int)i);
        if (!lua_isfunction(L, -1))
            return async_error(L, "gw.all: element %d is no function", (int)i);
        lua_rawseti(L, 2, (int)i);
    }
    lua_createtable(L, (int)count, 0); // 3
    void **guard = lua_env_guard(L, free);
    struct all_op *all = calloc(1, sizeof *all);
    if (!all)
        return async_error(L, "out of memory");
    *guard = all;
    lua_pushvalue(L, 3);
    int results_ref = luaL_ref(L, LUA_REGISTRYINDEX);
    lua_pushvalue(L, 2);
    int functions_ref = luaL_ref(L, LUA_REGISTRYINDEX);
    *guard = NULL;
    all->op = (struct async_op){.name = "all", .cancel = cancel_all};
    all->generation = plugin->generation;
    all->plugin = plugin;
    all->ctx = co->ctx;
    all->results_ref = results_ref;
    all->functions_ref = functions_ref;
    all->total = count;
    loop_task_init(&all->start, start_all);
    loop_defer(plugin->generation->script->options.loop, &all->start);
    return async_wait(L, &all->op);
}

// ---- spawn

struct spawn {
    struct loop_task start;
    struct list node;
    struct plugin_rt *plugin;
    int ref;
};

static int push_spawned(lua_State *L, void *arg)
{
    const struct spawn *spawn = arg;
    lua_rawgeti(L, LUA_REGISTRYINDEX, spawn->ref);
    return 1;
}

static void on_spawn_end(struct coroutine *co, int err)
{
    if (err)
        plugin_fault(co->plugin, "spawn", false, co->error);
}

static void drop_spawn(struct spawn *spawn)
{
    luaL_unref(lua_env_state(spawn->plugin->generation->env), LUA_REGISTRYINDEX, spawn->ref);
    loop_task_cancel(&spawn->start);
    list_remove(&spawn->node);
    spawn->plugin->generation->spawned_count--;
    free(spawn);
}

static void start_spawned(struct loop_task *task)
{
    struct spawn *spawn = list_entry(task, struct spawn, start);
    const struct co_options options = {
        .plugin = spawn->plugin, .what = "spawn", .on_end = on_spawn_end, .is_side = true};
    if (co_start(&options, push_spawned, spawn, NULL) != 0)
        plugin_fault(spawn->plugin, "spawn", false, SLICE_LIT("not started: too much is running"));
    drop_spawn(spawn);
}

void spawn_drop_all(struct script_generation *generation)
{
    while (!list_is_empty(&generation->spawned))
        drop_spawn(list_entry(generation->spawned.next, struct spawn, node));
}

static int gw_spawn(lua_State *L)
{
    struct plugin_rt *plugin = plugin_of(L);
    luaL_checktype(L, 1, LUA_TFUNCTION);
    if (plugin->generation->spawned_count >= MAX_SPAWNED)
        return luaL_error(L, "gw.spawn: more than %d functions in one turn", MAX_SPAWNED);
    lua_settop(L, 1);
    int ref = luaL_ref(L, LUA_REGISTRYINDEX);
    struct spawn *spawn = calloc(1, sizeof *spawn);
    if (!spawn) {
        luaL_unref(L, LUA_REGISTRYINDEX, ref);
        return luaL_error(L, "out of memory");
    }
    spawn->plugin = plugin;
    spawn->ref = ref;
    list_push_back(&plugin->generation->spawned, &spawn->node);
    plugin->generation->spawned_count++;
    loop_task_init(&spawn->start, start_spawned);
    loop_defer(plugin->generation->script->options.loop, &spawn->start);
    return 0;
}

// ---- locks: one table for the process

struct co_lock {
    struct list node; // of the table while held
    uint64_t expires_ms;
    uint64_t ticket;
    bool is_held; // under the table's mutex: false after somebody took it over
    char name[MAX_LOCK_NAME + PLUGIN_MAX_NAME + 2];
};

static struct {
    pthread_mutex_t mutex;
    struct list held;
    uint64_t next_ticket;
} locks = {.mutex = PTHREAD_MUTEX_INITIALIZER};

static bool try_lock(struct co_lock *lock, uint64_t ttl_ms)
{
    uint64_t now = clock_boot_ms();
    bool is_free = true;
    pthread_mutex_lock(&locks.mutex);
    if (!locks.held.next)
        list_init(&locks.held);
    struct list *node;
    list_each(node, &locks.held)
    {
        struct co_lock *other = list_entry(node, struct co_lock, node);
        if (strcmp(other->name, lock->name) != 0)
            continue;
        is_free = other->expires_ms <= now;
        if (is_free) {
            other->is_held = false;
            list_remove(&other->node);
        }
        break;
    }
    if (is_free) {
        lock->expires_ms = now + ttl_ms;
        lock->ticket = ++locks.next_ticket;
        lock->is_held = true;
        list_push_back(&locks.held, &lock->node);
    }
    pthread_mutex_unlock(&locks.mutex);
    return is_free;
}

static bool unlock(struct co_lock *lock)
{
    pthread_mutex_lock(&locks.mutex);
    bool was_held = lock->is_held && lock->expires_ms > clock_boot_ms();
    if (lock->is_held)
        list_remove(&lock->node);
    lock->is_held = false;
    pthread_mutex_unlock(&locks.mutex);
    return was_held;
}

void co_lock_release(struct coroutine *co)
{
    if (!co->lock)
        return;
    unlock(co->lock);
    free(co->lock);
    co->lock = NULL;
}

struct lock_op {
    struct async_op op; // first
    struct loop_timer timer;
    struct co_lock *lock;
    uint64_t deadline_ms, ttl_ms;
};

// lock:release() → true while it was still ours. upvalue 1: ticket
static int lock_release(lua_State *L)
{
    struct coroutine *co = co_running(L);
    uint64_t ticket = (uint64_t)lua_tonumber(L, lua_upvalueindex(1));
    if (!co || !co->lock || co->lock->ticket != ticket) {
        lua_pushboolean(L, 0);
        return 1;
    }
    bool was_held = unlock(co->lock);
    free(co->lock);
    co->lock = NULL;
    lua_pushboolean(L, was_held);
    return 1;
}

static int push_lock(lua_State *L, uint64_t ticket)
{
    lua_createtable(L, 0, 1);
    lua_pushnumber(L, (lua_Number)ticket);
    lua_pushcclosure(L, lock_release, 1);
    lua_setfield(L, -2, "release");
    return 1;
}

static int push_taken(lua_State *L, void *arg)
{
    const struct co_lock *lock = arg;
    return push_lock(L, lock->ticket);
}

static int push_busy(lua_State *L, void *arg)
{
    (void)arg;
    lua_pushnil(L);
    lua_pushliteral(L, "busy");
    return 2;
}

static void on_lock_poll(struct loop_timer *timer)
{
    struct lock_op *wait = list_entry(timer, struct lock_op, timer);
    struct co_lock *lock = wait->lock;
    if (try_lock(lock, wait->ttl_ms)) {
        wait->op.co->lock = lock;
        async_complete(&wait->op, push_taken, lock);
    } else if (loop_now_ms(timer->loop) >= wait->deadline_ms) {
        async_complete(&wait->op, push_busy, NULL);
        free(lock);
    } else {
        loop_timer_start(&wait->timer, LOCK_POLL_MS);
        return;
    }
    free(wait);
}

static void cancel_lock(struct async_op *op)
{
    struct lock_op *wait = (struct lock_op *)op;
    loop_timer_stop(&wait->timer);
    free(wait->lock);
    free(wait);
}

// gw.lock(name, ttl_s[, wait_s]) → lock or nil, "busy"
static int gw_lock(lua_State *L)
{
    struct coroutine *co = async_check(L, "gw.lock");
    struct plugin_rt *plugin = plugin_of(L);
    struct slice name = lua_env_check_slice(L, 1);
    lua_Number ttl = luaL_checknumber(L, 2), wait_s = luaL_optnumber(L, 3, 0);
    if (name.len == 0 || name.len > MAX_LOCK_NAME || !(ttl > 0 && ttl <= 3600) ||
        !(wait_s >= 0 && wait_s <= 600))
        return async_error(L, "gw.lock: name, seconds to live (up to 3600), seconds to wait");
    if (co->lock)
        return async_error(L, "gw.lock: locks do not nest");
    lua_pushboolean(L, 0); // the wrapper's flag
    push_lock(L, 0);       // so that nothing can raise once the lock is ours
    lua_pushnil(L);
    lua_pushliteral(L, "busy");
    struct co_lock *lock = calloc(1, sizeof *lock);
    struct lock_op *wait = calloc(1, sizeof *wait);
    if (!lock || !wait) {
        free(lock);
        free(wait);
        return async_error(L, "out of memory");
    }
    list_node_init(&lock->node);
    snprintf(lock->name, sizeof lock->name, "%s %.*s", plugin->name, SLICE_FMT(name));
    uint64_t ttl_ms = (uint64_t)(ttl * 1000);
    if (try_lock(lock, ttl_ms)) {
        free(wait);
        co->lock = lock;
        lua_pop(L, 2);
        lua_getfield(L, -1, "release"); // its ticket
        lua_pushnumber(L, (lua_Number)lock->ticket);
        lua_setupvalue(L, -2, 1);
        lua_pop(L, 1);
        return 2;
    }
    if (wait_s == 0) {
        free(lock);
        free(wait);
        lua_remove(L, -3);
        return 3;
    }
    struct loop *loop = plugin->generation->script->options.loop;
    *wait = (struct lock_op){.op = {.name = "lock", .cancel = cancel_lock},
                             .lock = lock,
                             .ttl_ms = ttl_ms,
                             .deadline_ms = loop_now_ms(loop) + (uint64_t)(wait_s * 1000)};
    loop_timer_init(loop, &wait->timer, on_lock_poll);
    loop_timer_start(&wait->timer, LOCK_POLL_MS);
    return async_wait(L, &wait->op);
}

void gw_open_async(struct plugin_rt *plugin, lua_State *L)
{
    static const struct gw_function FUNCTIONS[] = {{"sleep", gw_sleep, true},
                                                   {"all", gw_all, true},
                                                   {"spawn", gw_spawn, false},
                                                   {"lock", gw_lock, true}};
    gw_set_functions(plugin, L, FUNCTIONS, sizeof FUNCTIONS / sizeof *FUNCTIONS);
}
