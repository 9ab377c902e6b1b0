// One Lua state with its memory and instruction budgets. The count hook fires every HOOK_STEP
// instructions; when the budget is used up it is re-armed for every single instruction and raises
// at each, so that any number of pcalls only lets the error pass through.
#include "script/state.h"
#include "base/clock.h"
#include "base/log.h"
#include "script/lua_pool.h"
#include "script/sandbox.h"
#include <luajit.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define HOOK_STEP 1000
// CPU time of one entry: 1 ms for 100,000 instructions of its budget, at least 40 ms. Guards
// against C functions that are dear but return.
#define INSTRUCTIONS_PER_MS 100000u
#if defined(MOONGATE_ASAN) || defined(MOONGATE_TSAN)
#define MIN_CPU_MS 1000u // the sanitizers slow C down, not Lua
#else
#define MIN_CPU_MS 40u
#endif

#define MIN_LARGEST ((size_t)4 << 20)
// Of one entry, looked at every HOOK_STEP instructions: at most about 1 MiB more until then.
#define MAX_C_STACK (256 << 10)

struct lua_env {
    lua_State *L;
    struct lua_pool pool;
    size_t used, cap, reserve;
    size_t live; // what the last collection of turn_end left; 0: it has to look
    uint64_t collect_after_ns;
    size_t volume, volume_cap; // bytes asked for in one entry
    int64_t growth;
    uint64_t default_budget;
    struct lua_env_scope scope;
    unsigned depth; // of nested entries
    uint64_t fail_after;
    bool is_killed, was_collected, use_jit;
    char kill_text[64];
    void *owner, *current;
    lua_State *active;          // the thread whose C function runs now, else L
    struct watchdog_slot *slot; // NULL: unwatched
    char *stack_base;           // of the C stack, when the outermost entry began
    struct lua_env *outer;      // what was running on this thread before the outermost entry
    char *lua_dir;
};

// The state whose code runs on this thread, for the handler of SIGURG.
static _Thread_local struct lua_env *volatile running;

// ---- memory

static void *env_alloc(void *user, void *ptr, size_t old_size, size_t new_size)
{
    struct lua_env *env = user;
    if (!ptr)
        old_size = 0;
    if (new_size == 0) {
        env->used -= old_size;
        env->growth -= (int64_t)old_size;
        lua_pool_release(&env->pool, ptr, old_size);
        return NULL;
    }
    if (new_size > old_size) {
        size_t more = new_size - old_size;
        // C glue outside of an entry may use the reserve.
        size_t limit = env->scope.is_running ? env->cap - env->reserve : env->cap;
        if (env->fail_after > 0 && --env->fail_after == 0)
            return NULL;
        // One huge string or table costs more time than the hook can see.
        if (env->scope.is_running && new_size > MIN_LARGEST && new_size > env->cap / 8)
            return NULL;
        if (more > limit || env->used > limit - more)
            return NULL;
        if (env->scope.is_running) {
            if (env->volume > env->volume_cap)
                return NULL;
            env->volume += new_size;
        }
    }
    // Lua does not expect that less than it has is refused, so the pool's limit is for more only.
    size_t max_bytes = env->pool.max_bytes;
    if (new_size < old_size)
        env->pool.max_bytes = 0;
    void *mem = lua_pool_resize(&env->pool, ptr, old_size, new_size);
    env->pool.max_bytes = max_bytes;
    if (!mem)
        return NULL;
    env->used = env->used - old_size + new_size;
    env->growth += (int64_t)new_size - (int64_t)old_size;
    return mem;
}

static int on_panic(lua_State *L)
{
    struct slice text = lua_env_error_text(L);
    log_event(LOG_ERROR, "lua_panic", LOG_SLICE("error", text));
    gw_require(!"a Lua error outside of a protected call");
    return 0;
}

// ---- budgets

static uint64_t cpu_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static uint64_t wall_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void on_count(lua_State *L, lua_Debug *ar);

int lua_env_kill(lua_State *L, const char *text)
{
    struct lua_env *env = lua_env_of(L);
    if (!env->is_killed) {
        env->is_killed = true;
        snprintf(env->kill_text, sizeof env->kill_text, "%s", text);
    }
    lua_sethook(L, on_count, LUA_MASKCOUNT, 1);
    luaL_where(L, 1);
    lua_pushstring(L, env->kill_text);
    lua_concat(L, 2);
    return lua_error(L);
}

static uint64_t time_limit_ms(uint64_t budget)
{
    uint64_t limit_ms = budget / INSTRUCTIONS_PER_MS;
    return limit_ms < MIN_CPU_MS ? MIN_CPU_MS : limit_ms;
}

// True when this entry took too much CPU time. Measured from the first firing on: most entries are
// shorter and never read a clock. The wall clock (cheap) is asked first.
static bool is_over_time(struct lua_env *env)
{
    struct lua_env_scope *scope = &env->scope;
    uint64_t limit_ms = time_limit_ms(scope->budget);
    if (scope->started_ns == 0) {
        scope->started_ns = wall_now_ns();
        scope->cpu_ns = cpu_now_ns();
        return false;
    }
    if (wall_now_ns() - scope->started_ns < limit_ms * 1000000u)
        return false;
    return cpu_now_ns() - scope->cpu_ns >= limit_ms * 1000000u;
}

static bool is_urged(const struct lua_env *env)
{
    return env->slot && watchdog_is_urged(env->slot);
}

static void on_count(lua_State *L, lua_Debug *ar)
{
    struct lua_env *env = lua_env_of(L);
    if (!env->scope.is_running)
        return;
    const char *why = NULL;
    if (env->is_killed) {
        why = env->kill_text;
    } else {
        env->scope.used += HOOK_STEP;
        if (env->scope.used >= env->scope.budget)
            why = "instruction budget used up";
        else if (is_over_time(env))
            why = "time budget used up";
    }
    if (!why && is_urged(env))
        why = "time budget used up";
    // sort, gsub and format call back into Lua from C: recursion through them fills the C stack
    // long before Lua's.
    if (!why && env->stack_base - (char *)__builtin_frame_address(0) > MAX_C_STACK)
        luaL_error(L, "C stack overflow");
    if (!why) {
        // LuaJIT has no emergency collection: one full one when it gets tight.
        if (!env->was_collected && env->used > env->cap / 4 * 3) {
            env->was_collected = true;
            lua_gc(L, LUA_GCCOLLECT, 0);
        }
        return;
    }
    if (!env->is_killed) {
        env->is_killed = true;
        snprintf(env->kill_text, sizeof env->kill_text, "%s", why);
        lua_sethook(L, on_count, LUA_MASKCOUNT, 1);
    }
    lua_getinfo(L, "Sl", ar);
    if (ar->currentline > 0)
        luaL_error(L, "%s:%d: %s", ar->short_src, ar->currentline, env->kill_text);
    else
        luaL_error(L, "%s", env->kill_text);
}

// The watchdog found this thread's entry over its time: in the handler of its signal. lua_sethook
// may be called there (lj_dispatch.c); the hook is a count hook already, only the count changes.
static void on_urge(void)
{
    struct lua_env *env = running;
    if (env && env->scope.is_running && is_urged(env))
        lua_sethook(env->L, on_count, LUA_MASKCOUNT, 1);
}

void lua_env_begin(struct lua_env *env, uint64_t instructions)
{
    if (env->depth++ > 0)
        return;
    env->scope = (struct lua_env_scope){.budget = instructions ? instructions : env->default_budget,
                                        .is_running = true};
    env->volume = 0;
    env->is_killed = env->was_collected = false;
    env->stack_base = __builtin_frame_address(0);
    lua_sethook(env->L, on_count, LUA_MASKCOUNT, HOOK_STEP);
    if (env->slot) {
        env->outer = running;
        running = env;
        watchdog_enter(env->slot);
    }
}

void lua_env_end(struct lua_env *env)
{
    gw_require(env->depth > 0);
    if (--env->depth > 0)
        return;
    env->scope.is_running = false;
    if (env->slot) {
        watchdog_leave(env->slot);
        running = env->outer;
    }
}

struct watchdog_work lua_env_set_work(struct lua_env *env, struct watchdog_work work)
{
    if (!env->slot)
        return work;
    struct watchdog_work before = watchdog_work_of(env->slot);
    watchdog_set_work(env->slot, work);
    return before;
}

bool lua_env_was_killed(const struct lua_env *env)
{
    return env->is_killed;
}

void lua_env_charge(lua_State *L, uint64_t cost)
{
    struct lua_env *env = lua_env_of(L);
    if (!env->scope.is_running)
        return;
    env->scope.used += cost;
    if (env->scope.used >= env->scope.budget)
        lua_env_kill(L, "instruction budget used up");
    else if (is_urged(env)) // a C function that loops says so by charging
        lua_env_kill(L, "time budget used up");
}

// ---- protected entry

struct slice lua_env_error_text(lua_State *L)
{
    if (lua_gettop(L) > 0 && lua_type(L, -1) == LUA_TSTRING) {
        size_t len;
        const char *text = lua_tolstring(L, -1, &len);
        return slice_of(text, len);
    }
    return SLICE_LIT("the error is not a text");
}

struct protected_call {
    lua_CFunction fn;
    void *arg;
};

static int on_traceback(lua_State *L)
{
    if (lua_type(L, 1) == LUA_TSTRING && log_is_on(LOG_DEBUG)) {
        luaL_traceback(L, L, NULL, 1);
        log_event(LOG_DEBUG, "lua_traceback", LOG_STR("error", lua_tostring(L, 1)),
                  LOG_STR("traceback", lua_tostring(L, -1)));
        lua_settop(L, 1);
    }
    return 1;
}

static int run_protected(lua_State *L)
{
    struct protected_call *call = lua_touserdata(L, 1);
    lua_settop(L, 0);
    lua_pushcfunction(L, on_traceback);
    lua_pushcfunction(L, call->fn);
    lua_pushlightuserdata(L, call->arg);
    if (lua_pcall(L, 1, 0, 1) != 0)
        return lua_error(L);
    return 0;
}

int lua_env_protect(struct lua_env *env, lua_CFunction fn, void *arg, char *error,
                    size_t error_size)
{
    struct protected_call call = {fn, arg};
    lua_State *L = env->active;
    int top = lua_gettop(L);
    lua_env_begin(env, 0);
    // The traceback costs a second protected call: only where it would be logged.
    int status =
        log_is_on(LOG_DEBUG) ? lua_cpcall(L, run_protected, &call) : lua_cpcall(L, fn, arg);
    int err = 0;
    if (status != 0) {
        err = status == LUA_ERRMEM ? GW_ENOMEM : GW_EINVAL;
        if (error) {
            struct slice text = lua_env_error_text(L);
            snprintf(error, error_size, "%.*s", SLICE_FMT(text));
        }
        lua_settop(L, top);
    }
    lua_env_end(env);
    if (err == GW_ENOMEM)
        lua_env_expect_garbage(env);
    lua_env_relieve(env);
    return err;
}

void lua_env_try(struct lua_env *env, lua_CFunction fn, void *arg)
{
    int err = lua_env_protect(env, fn, arg, NULL, 0);
    (void)err;
}

static const char *read_slice(lua_State *L, void *data, size_t *size)
{
    (void)L;
    struct slice *text = data;
    *size = text->len;
    const char *ptr = text->ptr;
    text->len = 0;
    return *size ? ptr : NULL;
}

int lua_env_compile(struct lua_env *env, lua_State *L, struct slice text, const char *name,
                    bool is_trusted, int env_index, char *error, size_t error_size)
{
    if (env_index < 0 && env_index > LUA_REGISTRYINDEX)
        env_index = lua_gettop(L) + 1 + env_index;
    if (text.len && text.ptr[0] == '\x1b') { // LuaJIT's own words name no file
        snprintf(error, error_size, "%s:1: compiled Lua is refused; give its source",
                 name + (name[0] == '@'));
        return GW_EINVAL;
    }
    if (lua_loadx(L, read_slice, &text, name, "t") != 0) {
        struct slice why = lua_env_error_text(L);
        snprintf(error, error_size, "%.*s", SLICE_FMT(why));
        lua_pop(L, 1);
        return GW_EINVAL;
    }
    if (!is_trusted || !env->use_jit)
        luaJIT_setmode(L, -1, LUAJIT_MODE_ALLFUNC | LUAJIT_MODE_OFF);
    lua_pushvalue(L, env_index);
    lua_setfenv(L, -2);
    return 0;
}

// ---- life

static int open_all(lua_State *L)
{
    struct lua_env *env = lua_touserdata(L, 1);
    lua_pushinteger(L, 0); // so that later luaL_unref calls allocate nothing
    luaL_unref(L, LUA_REGISTRYINDEX, luaL_ref(L, LUA_REGISTRYINDEX));
    if (env->use_jit) {
        lua_pushcfunction(L, luaopen_jit);
        lua_pushstring(L, LUA_JITLIBNAME);
        lua_call(L, 1, 0);
    }
    sandbox_open_base(L, env->lua_dir);
    return 0;
}

static bool has_lua(const char *dir)
{
    char path[4200];
    return snprintf(path, sizeof path, "%s/strict.lua", dir) < (int)sizeof path &&
           access(path, R_OK) == 0;
}

const char *lua_env_find_dir(void)
{
    static _Thread_local char found[4096 + 16];
    const char *given = getenv("MOONGATE_LUA_DIR");
    if (given && *given)
        return given;
    char exe[4096];
    ssize_t len = readlink("/proc/self/exe", exe, sizeof exe - 1);
    if (len > 0) {
        exe[len] = '\0';
        for (int level = 0; level < 6; level++) {
            char *slash = strrchr(exe, '/');
            if (!slash)
                break;
            *slash = '\0';
            snprintf(found, sizeof found, "%s/lua", exe);
            if (has_lua(found))
                return found;
        }
    }
    return "lua";
}

int lua_env_new(const struct lua_env_options *options, struct lua_env **out, char *error,
                size_t error_size)
{
    struct lua_env *env = calloc(1, sizeof *env);
    if (!env)
        return GW_ENOMEM;
    env->cap = options->memory_cap;
    env->reserve = options->memory_cap / 16;
    env->volume_cap = options->memory_cap * 4;
    env->pool.max_bytes = options->memory_cap + options->memory_cap / 4 + LUA_POOL_LEAST;
    env->default_budget = options->instruction_budget ? options->instruction_budget : 5000000;
#if !defined(MOONGATE_TSAN)
    env->use_jit = options->use_jit;
#endif
    env->lua_dir = strdup(options->lua_dir ? options->lua_dir : lua_env_find_dir());
    env->L = env->lua_dir ? lua_newstate(env_alloc, env) : NULL;
    if (!env->L) {
        snprintf(error, error_size, "out of memory");
        lua_pool_free(&env->pool);
        free(env->lua_dir);
        free(env);
        return GW_ENOMEM;
    }
    env->active = env->L;
    if (options->is_watched) {
        watchdog_set_urge(on_urge);
        env->slot = watchdog_slot_take((uint32_t)time_limit_ms(env->default_budget));
    }
    lua_atpanic(env->L, on_panic);
    lua_gc(env->L, LUA_GCSETPAUSE, 140);
    lua_gc(env->L, LUA_GCSETSTEPMUL, 300);
    // Plugins' chunks turn the JIT off one by one; here it is off until luaopen_jit.
    int err = lua_env_protect(env, open_all, env, error, error_size);
    if (err) {
        lua_env_free(env);
        return err;
    }
    *out = env;
    return 0;
}

void lua_env_free(struct lua_env *env)
{
    if (!env)
        return;
    env->scope.is_running = false;
    lua_sethook(env->L, NULL, 0, 0);
    lua_close(env->L);
    lua_pool_free(&env->pool);
    watchdog_slot_drop(env->slot);
    free(env->lua_dir);
    free(env);
}

lua_State *lua_env_state(struct lua_env *env)
{
    return env->L;
}

struct lua_env *lua_env_of(lua_State *L)
{
    void *env;
    lua_getallocf(L, &env);
    return env;
}

size_t lua_env_memory(const struct lua_env *env)
{
    return env->used;
}

size_t lua_env_memory_cap(const struct lua_env *env)
{
    return env->cap;
}

void lua_env_set_owner(struct lua_env *env, void *owner)
{
    env->owner = owner;
}

void *lua_env_owner(const struct lua_env *env)
{
    return env->owner;
}

void lua_env_set_current(struct lua_env *env, void *current, lua_State *thread)
{
    env->current = current;
    env->active = thread ? thread : env->L;
}

void *lua_env_current(const struct lua_env *env)
{
    return env->current;
}

int64_t lua_env_take_growth(struct lua_env *env)
{
    int64_t growth = env->growth;
    env->growth = 0;
    return growth;
}

void lua_env_fail_after(struct lua_env *env, uint64_t count)
{
    env->fail_after = count;
}

static int collect(lua_State *L)
{
    lua_gc(L, LUA_GCCOLLECT, 0);
    return 0;
}

bool lua_env_turn_end(struct lua_env *env)
{
    size_t tight = env->cap / 4 * 3;
    if (env->used <= env->cap / 2 && env->pool.bytes <= env->cap + LUA_POOL_LEAST) {
        env->live = 0;
        return false;
    }
    // What is alive costs time with each collection: again only when there is something to find, or
    // an eighth of the time when it is tight.
    uint64_t now_ns = wall_now_ns();
    if (env->live == 0 || env->used >= env->live + env->cap / 16 ||
        (env->used > tight && now_ns >= env->collect_after_ns)) {
        (void)lua_cpcall(env->active, collect, NULL);
        env->live = env->used;
        uint64_t end_ns = wall_now_ns();
        env->collect_after_ns = end_ns + 7 * (end_ns - now_ns);
    }
    // Few objects may hold many chunks: that is no better.
    return env->used > tight || env->pool.bytes > env->cap + LUA_POOL_LEAST;
}

void lua_env_expect_garbage(struct lua_env *env)
{
    env->live = 0;
}

void lua_env_relieve(struct lua_env *env)
{
    if (env->depth == 0 && env->used > env->cap / 4 * 3)
        (void)lua_env_turn_end(env);
}

// ---- tools

static int buffer_gc(lua_State *L)
{
    buf_free(lua_touserdata(L, 1));
    return 0;
}

struct buf *lua_env_buffer(lua_State *L, size_t cap)
{
    struct buf *buf = lua_newuserdata(L, sizeof *buf);
    buf_init(buf, cap);
    if (luaL_newmetatable(L, "moongate.buffer")) {
        lua_pushcfunction(L, buffer_gc);
        lua_setfield(L, -2, "__gc");
    }
    lua_setmetatable(L, -2);
    return buf;
}

struct guard {
    void *value; // first: lua_env_guard gives its address
    void (*fn)(void *);
};

static int guard_gc(lua_State *L)
{
    struct guard *guard = lua_touserdata(L, 1);
    if (guard->value)
        guard->fn(guard->value);
    guard->value = NULL;
    return 0;
}

void **lua_env_guard(lua_State *L, void (*fn)(void *))
{
    struct guard *guard = lua_newuserdata(L, sizeof *guard);
    guard->value = NULL;
    guard->fn = fn;
    if (luaL_newmetatable(L, "moongate.guard")) {
        lua_pushcfunction(L, guard_gc);
        lua_setfield(L, -2, "__gc");
    }
    lua_setmetatable(L, -2);
    return &guard->value;
}

struct slice lua_env_check_slice(lua_State *L, int index)
{
    size_t len;
    const char *text = luaL_checklstring(L, index, &len);
    return slice_of(text, len);
}
