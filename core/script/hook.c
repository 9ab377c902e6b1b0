// Runs the hooks of an exchange: plugins in order, each call in a coroutine of its own, so that it
// may wait in the middle; price and delta are called directly. What a hook returned is checked
// here: a wrong value is the plugin's error like one that it raised.
#include "base/clock.h"
#include "base/log.h"
#include "script/lua_money.h"
#include "script/runtime.h"
#include <string.h>

static const char *const NAMES[] = {"identify", "admit", "select", "prepare", "reply",
                                    "body",     "delta", "price",  "error",   "finish"};

const char *hook_name(enum script_hook hook)
{
    return NAMES[hook];
}

bool script_has_hook(const struct ctx *ctx, enum script_hook hook)
{
    return ctx->generation && ctx->generation->hook_counts[hook] > 0;
}

bool script_wants_delta(const struct ctx *ctx, enum event_block block)
{
    return ctx->generation && (ctx->generation->wants & (1u << block)) != 0;
}

// ---- results

// What reading a hook's results needs; runs protected on another thread than the coroutine's.
struct hook_result {
    struct ctx *ctx;
    enum script_hook hook;
    lua_State *from;
    bool is_final; // first non-nil wins: no further plugin is asked
    bool is_retry;
    struct slice text; // body: replacement (arena)
    bool has_text;
};

static int64_t candidate_id(lua_State *L, int index)
{
    lua_Number number = 0;
    if (lua_type(L, index) == LUA_TNUMBER) {
        number = lua_tonumber(L, index);
    } else if (lua_istable(L, index)) {
        lua_getfield(L, index, "id");
        number = lua_type(L, -1) == LUA_TNUMBER ? lua_tonumber(L, -1) : 0;
        lua_pop(L, 1);
    }
    if (!(number >= 1 && number <= 9007199254740992.0) || number != (lua_Number)(int64_t)number)
        luaL_error(L, "select returned a list with something that is neither an upstream's id nor "
                      "a view");
    return (int64_t)number;
}

static void take_candidates(lua_State *L, struct hook_result *result)
{
    struct ctx *ctx = result->ctx;
    if (lua_isnil(L, 1))
        return;
    if (!lua_istable(L, 1))
        luaL_error(L, "select returned a %s; expected nil or a list of upstreams",
                   luaL_typename(L, 1));
    int64_t ids[CTX_MAX_CANDIDATES];
    size_t count = lua_objlen(L, 1);
    if (count > CTX_MAX_CANDIDATES)
        count = CTX_MAX_CANDIDATES;
    for (size_t i = 0; i < count; i++) {
        lua_rawgeti(L, 1, (int)i + 1);
        ids[i] = candidate_id(L, lua_gettop(L));
        lua_pop(L, 1);
    }
    memcpy(ctx->candidates, ids, count * sizeof *ids);
    ctx->candidate_count = count;
    result->is_final = true;
}

static void take_reply(lua_State *L, struct hook_result *result)
{
    if (lua_isnil(L, 1))
        return;
    const char *word = lua_type(L, 1) == LUA_TSTRING ? lua_tostring(L, 1) : "";
    if (strcmp(word, "retry") == 0)
        result->is_retry = true;
    else if (strcmp(word, "pass") != 0)
        luaL_error(L, "reply returned a %s; expected nil, \"pass\" or \"retry\"",
                   luaL_typename(L, 1));
    result->is_final = true;
}

static void take_error(lua_State *L, struct ctx *ctx)
{
    if (lua_isnil(L, 1))
        return;
    if (!lua_istable(L, 1))
        luaL_error(L, "error returned a %s; expected nil or a table", luaL_typename(L, 1));
    lua_getfield(L, 1, "status");
    lua_Number status = luaL_optnumber(L, -1, ctx->error.status);
    if (!(status >= 400 && status <= 599))
        luaL_error(L, "error returned a status outside of 400 to 599");
    lua_getfield(L, 1, "code");
    if (lua_isstring(L, -1))
        ctx->error.code = ctx_lua_copy(L, -1, ctx->arena);
    lua_getfield(L, 1, "message");
    if (lua_isstring(L, -1))
        ctx->error.message = ctx_lua_copy(L, -1, ctx->arena);
    lua_getfield(L, 1, "retry_after");
    if (lua_isnumber(L, -1) && lua_tonumber(L, -1) >= 0 && lua_tonumber(L, -1) < 1e8)
        ctx->error.retry_after_ms = (int64_t)(lua_tonumber(L, -1) * 1000);
    ctx->error.status = (int)status;
}

static int read_result(lua_State *L)
{
    struct hook_result *result = lua_touserdata(L, 1);
    struct ctx *ctx = result->ctx;
    lua_settop(L, 0);
    if (lua_gettop(result->from) > 0) {
        lua_settop(result->from, 1);
        lua_xmove(result->from, L, 1);
    } else {
        lua_pushnil(L);
    }
    switch (result->hook) {
    case SCRIPT_IDENTIFY:
        if (lua_isnil(L, 1))
            break;
        if (!lua_isboolean(L, 1) || !lua_toboolean(L, 1))
            return luaL_error(L, "identify returned a %s; expected true or nil",
                              luaL_typename(L, 1));
        if (!ctx->is_identified && !ctx->is_denied)
            return luaL_error(L, "identify returned true without ctx:identify or "
                                 "gw.keys.authenticate");
        result->is_final = true;
        break;
    case SCRIPT_ADMIT:
        if (!lua_isnil(L, 1) && !lua_istable(L, 1))
            return luaL_error(L, "admit returned a %s; expected nil or a table of requirements",
                              luaL_typename(L, 1));
        break;
    case SCRIPT_SELECT: take_candidates(L, result); break;
    case SCRIPT_PREPARE:
        if (!lua_isnil(L, 1))
            return luaL_error(L,
                              "prepare returned a %s; it changes ctx.outgoing and returns "
                              "nothing",
                              luaL_typename(L, 1));
        break;
    case SCRIPT_REPLY: take_reply(L, result); break;
    case SCRIPT_BODY:
        if (lua_isnil(L, 1))
            break;
        if (lua_type(L, 1) != LUA_TSTRING)
            return luaL_error(L, "body returned a %s; expected nil or a text", luaL_typename(L, 1));
        result->text = ctx_lua_copy(L, 1, ctx->arena);
        result->has_text = true;
        break;
    case SCRIPT_ERROR: take_error(L, ctx); break;
    default: break;
    }
    return 0;
}

// ---- the chain

// The first lines of a finished call decide what follows.
enum step { STEP_NEXT, STEP_STOP };

// What an error of a plugin means for this hook.
static bool error_denies(const struct plugin_rt *plugin, enum script_hook hook)
{
    return plugin->denies_on_error && hook != SCRIPT_ERROR && hook != SCRIPT_FINISH;
}

static void deny_for_error(struct ctx *ctx, const struct plugin_rt *plugin)
{
    struct slice message =
        arena_printf(ctx->arena,
                     "The gateway's plugin \"%s\" failed; its operator has to look at "
                     "the log.",
                     plugin->name);
    ctx->is_denied = true;
    ctx->error = (struct dialect_error){.status = 500,
                                        .code = SLICE_LIT("plugin_error"),
                                        .message = message.ptr ? message
                                                               : SLICE_LIT("A plugin "
                                                                           "failed."),
                                        .request_id = ctx->request_id,
                                        .retry_after_ms = -1,
                                        .should_retry = true};
}

static enum step after_error(struct ctx *ctx, struct plugin_rt *plugin, enum script_hook hook,
                             struct slice error)
{
    plugin_fault(plugin, hook_name(hook), true, error);
    if (!error_denies(plugin, hook)) {
        // What a failed skip plugin said before it failed does not count.
        if (hook != SCRIPT_ERROR && hook != SCRIPT_FINISH) {
            ctx->is_denied = false;
            ctx->respond.kind = CTX_ANSWER_NONE;
        }
        return STEP_NEXT;
    }
    ctx->respond.kind = CTX_ANSWER_NONE;
    deny_for_error(ctx, plugin);
    return STEP_STOP;
}

static enum script_outcome outcome_of(const struct ctx *ctx, enum script_hook hook, bool is_retry)
{
    if (hook == SCRIPT_ERROR || hook == SCRIPT_FINISH)
        return SCRIPT_PASS;
    if (ctx->is_denied)
        return SCRIPT_DENIED;
    if (ctx->respond.kind != CTX_ANSWER_NONE)
        return SCRIPT_ANSWERED;
    return is_retry && ctx->can_retry ? SCRIPT_RETRY : SCRIPT_PASS;
}

struct body_call {
    struct ctx *ctx;
    const struct plugin_rt *plugin;
    struct slice text;
};

static int push_hook(lua_State *L, void *arg)
{
    const struct body_call *call = arg;
    lua_rawgeti(L, LUA_REGISTRYINDEX, call->plugin->hooks[call->ctx->pending_hook]);
    lua_rawgeti(L, LUA_REGISTRYINDEX, call->ctx->lua_object);
    lua_rawgeti(L, LUA_REGISTRYINDEX, call->plugin->conf_ref);
    return 3;
}

static enum script_outcome run_from(struct ctx *ctx, enum script_hook hook, size_t index);

// Runs as on_end of a hook's coroutine, maybe while run_from is on the stack below.
static void on_hook_end(struct coroutine *co, int err)
{
    struct ctx *ctx = co->ctx;
    struct plugin_rt *plugin = co->plugin;
    enum script_hook hook = (enum script_hook)ctx->pending_hook;
    struct hook_result result = {.ctx = ctx, .hook = hook, .from = co->thread};
    enum step step = STEP_NEXT;
    bool was_fault = err != 0;
    ctx->pending = NULL;
    if (err) {
        step = after_error(ctx, plugin, hook, co->error);
    } else if (lua_gettop(co->thread) > 0 && !lua_isnil(co->thread, 1)) {
        char error[300];
        if (lua_env_protect(plugin->generation->env, read_result, &result, error, sizeof error)) {
            was_fault = true;
            step = after_error(ctx, plugin, hook, slice_str(error));
        }
    }
    if (!was_fault) {
        plugin->faults = 0;
        if (result.is_final || (hook != SCRIPT_ERROR && hook != SCRIPT_FINISH &&
                                (ctx->is_denied || ctx->respond.kind != CTX_ANSWER_NONE)))
            step = STEP_STOP;
    }
    if (ctx->is_hook_sync) { // run_from goes on
        ctx->hook_step = step;
        ctx->hook_is_retry = result.is_retry;
        ctx->hook_text = result.has_text ? result.text : SLICE_NONE;
        return;
    }
    enum script_outcome outcome = step == STEP_STOP ? outcome_of(ctx, hook, result.is_retry)
                                                    : run_from(ctx, hook, co->index + 1);
    if (outcome != SCRIPT_PENDING)
        plugin->generation->script->options.host->on_hook(ctx, hook, outcome);
}

static enum script_outcome run_from(struct ctx *ctx, enum script_hook hook, size_t index)
{
    struct script_generation *generation = ctx->generation;
    ctx->pending_hook = (uint8_t)hook;
    for (; index < generation->plugin_count; index++) {
        struct plugin_rt *plugin = &generation->plugins[index];
        if (plugin->hooks[hook] == LUA_NOREF || plugin->is_off)
            continue;
        const struct co_options options = {.plugin = plugin,
                                           .what = hook_name(hook),
                                           .ctx = ctx,
                                           .on_end = on_hook_end,
                                           .index = index,
                                           .push_cannot_raise = true};
        struct coroutine *co = NULL;
        ctx->hook_step = STEP_NEXT;
        ctx->hook_is_retry = false;
        ctx->is_hook_sync = true;
        struct body_call call = {ctx, plugin, SLICE_NONE};
        int err = co_prepare(&options, push_hook, &call, &co);
        if (err == 0) {
            co->may_answer = hook <= SCRIPT_BODY;
            ctx->pending = co;
            co_run(co);
        }
        ctx->is_hook_sync = false;
        enum step step = (enum step)ctx->hook_step;
        if (err)
            step = after_error(ctx, plugin, hook,
                               SLICE_LIT("not started: the Lua state is short of memory"));
        else if (ctx->pending)
            return SCRIPT_PENDING;
        if (step == STEP_STOP)
            return outcome_of(ctx, hook, ctx->hook_is_retry);
    }
    return outcome_of(ctx, hook, false);
}

enum script_outcome script_run_hook(struct ctx *ctx, enum script_hook hook)
{
    if (!script_has_hook(ctx, hook))
        return SCRIPT_PASS;
    if (ctx_lua_make(ctx) != 0) {
        if (hook == SCRIPT_ERROR || hook == SCRIPT_FINISH)
            return SCRIPT_PASS;
        deny_for_error(ctx, &ctx->generation->plugins[0]);
        return SCRIPT_DENIED;
    }
    gw_require(!ctx->pending);
    return run_from(ctx, hook, 0);
}

void hook_cancel(struct ctx *ctx)
{
    struct coroutine *co = ctx->pending;
    ctx->pending = NULL;
    if (co)
        co_cancel(co);
}

// ---- body: like the others, with the text handed from plugin to plugin

static int push_body(lua_State *L, void *arg)
{
    const struct body_call *call = arg;
    lua_rawgeti(L, LUA_REGISTRYINDEX, call->plugin->hooks[SCRIPT_BODY]);
    lua_rawgeti(L, LUA_REGISTRYINDEX, call->ctx->lua_object);
    lua_env_push_slice(L, call->text);
    lua_rawgeti(L, LUA_REGISTRYINDEX, call->plugin->conf_ref);
    return 4;
}

static enum script_outcome run_body_from(struct ctx *ctx, size_t index);

static void on_body_end(struct coroutine *co, int err)
{
    struct ctx *ctx = co->ctx;
    struct plugin_rt *plugin = co->plugin;
    bool was_sync = ctx->is_hook_sync;
    ctx->is_hook_sync = true; // on_hook_end then only notes
    on_hook_end(co, err);
    ctx->is_hook_sync = was_sync;
    if (ctx->hook_text.ptr)
        ctx->body_text = ctx->hook_text;
    if (was_sync)
        return;
    enum script_outcome outcome = ctx->hook_step == STEP_STOP ? outcome_of(ctx, SCRIPT_BODY, false)
                                                              : run_body_from(ctx, co->index + 1);
    if (outcome != SCRIPT_PENDING)
        plugin->generation->script->options.host->on_hook(ctx, SCRIPT_BODY, outcome);
}

static enum script_outcome run_body_from(struct ctx *ctx, size_t index)
{
    struct script_generation *generation = ctx->generation;
    ctx->pending_hook = SCRIPT_BODY;
    for (; index < generation->plugin_count; index++) {
        struct plugin_rt *plugin = &generation->plugins[index];
        if (plugin->hooks[SCRIPT_BODY] == LUA_NOREF || plugin->is_off)
            continue;
        const struct co_options options = {
            .plugin = plugin, .what = "body", .ctx = ctx, .on_end = on_body_end, .index = index};
        struct body_call call = {ctx, plugin, ctx->body_text};
        struct coroutine *co = NULL;
        ctx->hook_step = STEP_NEXT;
        ctx->hook_text = SLICE_NONE;
        ctx->is_hook_sync = true;
        int err = co_prepare(&options, push_body, &call, &co);
        if (err == 0) {
            co->may_answer = true;
            ctx->pending = co;
            co_run(co);
        }
        ctx->is_hook_sync = false;
        enum step step = (enum step)ctx->hook_step;
        if (err)
            step = after_error(ctx, plugin, SCRIPT_BODY,
                               SLICE_LIT("not started: the Lua state is short of memory"));
        else if (ctx->pending)
            return SCRIPT_PENDING;
        if (step == STEP_STOP)
            return outcome_of(ctx, SCRIPT_BODY, false);
    }
    return outcome_of(ctx, SCRIPT_BODY, false);
}

enum script_outcome script_run_body(struct ctx *ctx, struct slice body, struct slice *out)
{
    *out = body;
    if (!script_has_hook(ctx, SCRIPT_BODY))
        return SCRIPT_PASS;
    ctx_flag(ctx, "body_hook");
    ctx->body_text = body;
    if (ctx_lua_make(ctx) != 0) {
        deny_for_error(ctx, &ctx->generation->plugins[0]);
        return SCRIPT_DENIED;
    }
    enum script_outcome outcome = run_body_from(ctx, 0);
    *out = ctx->body_text;
    return outcome;
}

// ---- price and delta: direct calls

struct direct_call {
    struct ctx *ctx;
    struct plugin_rt *plugin;
    enum event_block block;
    struct slice text, replaced;
    int verdict;   // delta: as script_run_delta
    bool has_cost; // price: in and out
    int64_t cost_nano;
};

static int call_price(lua_State *L)
{
    struct direct_call *call = lua_touserdata(L, 1);
    lua_rawgeti(L, LUA_REGISTRYINDEX, call->plugin->hooks[SCRIPT_PRICE]);
    lua_rawgeti(L, LUA_REGISTRYINDEX, call->ctx->lua_object);
    if (call->has_cost)
        lua_money_push(L, call->cost_nano);
    else
        lua_pushnil(L);
    lua_rawgeti(L, LUA_REGISTRYINDEX, call->plugin->conf_ref);
    lua_call(L, 3, 1);
    if (lua_isnil(L, -1))
        return 0;
    if (!lua_money_get(L, -1, &call->cost_nano))
        return luaL_error(L, "price returned a %s; expected money or nil", luaL_typename(L, -1));
    if (call->cost_nano < 0)
        return luaL_error(L, "price returned a negative cost");
    call->has_cost = true;
    return 0;
}

static int call_delta(lua_State *L)
{
    static const char *const KINDS[] = {"text", "thinking", "tool", "refusal"};
    struct direct_call *call = lua_touserdata(L, 1);
    lua_rawgeti(L, LUA_REGISTRYINDEX, call->plugin->hooks[SCRIPT_DELTA]);
    lua_rawgeti(L, LUA_REGISTRYINDEX, call->ctx->lua_object);
    lua_pushstring(L, KINDS[call->block]);
    lua_env_push_slice(L, call->text);
    lua_rawgeti(L, LUA_REGISTRYINDEX, call->plugin->conf_ref);
    lua_call(L, 4, 1);
    if (lua_isnil(L, -1)) {
        call->verdict = 0;
    } else if (lua_type(L, -1) == LUA_TSTRING) {
        call->replaced = ctx_lua_copy(L, -1, call->ctx->arena);
        call->verdict = 1;
    } else if (lua_isboolean(L, -1) && !lua_toboolean(L, -1)) {
        call->verdict = 2;
    } else {
        return luaL_error(L, "delta returned a %s; expected nil, a text or false",
                          luaL_typename(L, -1));
    }
    return 0;
}

// 0, or the plugin's fault was counted and the error says what it was.
static int call_direct(struct direct_call *call, lua_CFunction fn, enum script_hook hook)
{
    struct script_generation *generation = call->plugin->generation;
    char error[300];
    // "running" is the plugin, not the coroutine whose C function may be below.
    struct coroutine *outer = lua_env_current(generation->env);
    struct plugin_rt *direct = generation->direct;
    generation->direct = call->plugin;
    lua_env_set_current(generation->env, NULL, outer ? outer->thread : NULL);
    struct watchdog_work before = lua_env_set_work(
        generation->env, (struct watchdog_work){call->plugin->watch_name, hook_name(hook)});
    if (outer)
        outer->growth += lua_env_take_growth(generation->env);
    uint64_t started_ms = clock_coarse_ms();
    int err = lua_env_protect(generation->env, fn, call, error, sizeof error);
    call->plugin->growth += lua_env_take_growth(generation->env);
    (void)lua_env_set_work(generation->env, before);
    uint64_t took_ms = clock_coarse_ms() - started_ms;
    lua_env_set_current(generation->env, outer, outer ? outer->thread : NULL);
    generation->direct = direct;
    int64_t limit = generation->script->options.conf->lua_turn_ms;
    if (limit > 0 && took_ms > (uint64_t)limit)
        log_event(LOG_WARN, "plugin_slow", LOG_STR("plugin", call->plugin->name),
                  LOG_STR("in", hook_name(hook)), LOG_INT("ms", took_ms));
    if (err)
        plugin_fault(call->plugin, hook_name(hook), true, slice_str(error));
    else
        call->plugin->faults = 0;
    return err;
}

int script_run_delta(struct ctx *ctx, enum event_block block, struct slice text, struct slice *out)
{
    struct script_generation *generation = ctx->generation;
    int verdict = 0;
    if (!script_wants_delta(ctx, block))
        return 0;
    if (ctx_lua_make(ctx) != 0) { // no memory: a filter that could not look is no filter
        deny_for_error(ctx, &generation->plugins[0]);
        return 3;
    }
    *out = text;
    for (size_t i = 0; i < generation->plugin_count; i++) {
        struct plugin_rt *plugin = &generation->plugins[i];
        if (plugin->hooks[SCRIPT_DELTA] == LUA_NOREF || plugin->is_off ||
            !(plugin->wants & (1u << block)))
            continue;
        struct direct_call call = {.ctx = ctx, .plugin = plugin, .block = block, .text = *out};
        if (call_direct(&call, call_delta, SCRIPT_DELTA) != 0) {
            if (plugin->denies_on_error) { // what a filter could not look at does not go out
                deny_for_error(ctx, plugin);
                return 3;
            }
            continue;
        }
        if (call.verdict == 2)
            return 2;
        if (call.verdict == 1) {
            *out = call.replaced;
            verdict = 1;
        }
    }
    return verdict;
}

void script_run_price(struct ctx *ctx)
{
    struct script_generation *generation = ctx->generation;
    if (!script_has_hook(ctx, SCRIPT_PRICE) || ctx_lua_make(ctx) != 0)
        return;
    for (size_t i = 0; i < generation->plugin_count; i++) {
        struct plugin_rt *plugin = &generation->plugins[i];
        if (plugin->hooks[SCRIPT_PRICE] == LUA_NOREF || plugin->is_off)
            continue;
        struct direct_call call = {
            .ctx = ctx, .plugin = plugin, .has_cost = ctx->has_cost, .cost_nano = ctx->cost_nano};
        if (call_direct(&call, call_price, SCRIPT_PRICE) != 0) {
            ctx_flag(ctx, "price_failed");
            continue;
        }
        ctx->has_cost = call.has_cost;
        ctx->cost_nano = call.has_cost ? call.cost_nano : 0;
    }
}
