// Answers that plugins make: ctx:stream(fn), ctx:respond{text=…} and {events=…}. The function runs
// in a coroutine; emit{…} becomes neutral events in their proper order (event.h) and waits while
// the client is behind.
#include "base/log.h"
#include "script/runtime.h"
#include <string.h>

struct answer {         // in the exchange's arena
    struct async_op op; // waits for the client
    struct coroutine *co;
    bool has_started, has_open, has_ended;
    enum event_block open;
    uint32_t index;
};

static const char *const BLOCKS[] = {"text", "thinking", "tool", "refusal"};

// ---- order of events

static int deliver(struct ctx *ctx, const struct event *event)
{
    return ctx->generation->script->options.host->on_answer_event(ctx, event);
}

// Each of these gives what deliver said: 0, GW_EAGAIN (taken, wait), GW_ERESET.
static int worse(int a, int b)
{
    return a == GW_ERESET || b == GW_ERESET ? GW_ERESET : (a ? a : b);
}

static int start(struct ctx *ctx, struct answer *answer)
{
    if (answer->has_started)
        return 0;
    answer->has_started = true;
    const struct event event = {.kind = EVENT_START, .model = ctx->model};
    return deliver(ctx, &event);
}

static int close_block(struct ctx *ctx, struct answer *answer)
{
    if (!answer->has_open)
        return 0;
    answer->has_open = false;
    const struct event event = {
        .kind = EVENT_BLOCK_END, .block = answer->open, .index = answer->index++};
    return deliver(ctx, &event);
}

static int open_block(struct ctx *ctx, struct answer *answer, enum event_block block,
                      struct slice id, struct slice name)
{
    int err = start(ctx, answer);
    bool is_new_tool = block == EVENT_BLOCK_TOOL && id.len > 0;
    if (err == GW_ERESET || (answer->has_open && answer->open == block && !is_new_tool))
        return err;
    err = worse(err, close_block(ctx, answer));
    if (err == GW_ERESET)
        return err;
    answer->has_open = true;
    answer->open = block;
    const struct event event = {
        .kind = EVENT_BLOCK_START, .block = block, .index = answer->index, .id = id, .name = name};
    return worse(err, deliver(ctx, &event));
}

static int finish(struct ctx *ctx, struct answer *answer, enum event_finish reason)
{
    int err = worse(start(ctx, answer), close_block(ctx, answer));
    if (err == GW_ERESET)
        return err;
    answer->has_ended = true;
    const struct event event = {.kind = EVENT_FINISH, .finish = reason};
    return worse(err, deliver(ctx, &event));
}

// ---- emit

static struct slice text_field(lua_State *L, const char *name)
{
    lua_getfield(L, 1, name);
    if (lua_isnil(L, -1))
        return SLICE_NONE;
    if (lua_type(L, -1) != LUA_TSTRING)
        async_error(L, "emit: %s is a %s; expected a text", name, luaL_typename(L, -1));
    return lua_env_check_slice(L, -1); // the table keeps it alive
}

static uint64_t count_field(lua_State *L, const char *name)
{
    lua_getfield(L, 1, name);
    lua_Number number = lua_isnil(L, -1) ? 0 : luaL_checknumber(L, -1);
    if (!(number >= 0 && number <= 1e12))
        async_error(L, "emit: %s is out of range", name);
    lua_pop(L, 1);
    return (uint64_t)number;
}

static int emit_usage(lua_State *L, struct ctx *ctx, struct answer *answer)
{
    struct event event = {.kind = EVENT_USAGE};
    event.usage.input = count_field(L, "input");
    event.usage.cache_read = count_field(L, "cache_read");
    event.usage.cache_write_5m = count_field(L, "cache_write_5m");
    event.usage.cache_write_1h = count_field(L, "cache_write_1h");
    event.usage.output = count_field(L, "output");
    event.usage.reasoning = count_field(L, "reasoning");
    event.usage.flags = USAGE_REPORTED;
    return worse(start(ctx, answer), deliver(ctx, &event));
}

static int emit_finish(lua_State *L, struct ctx *ctx, struct answer *answer)
{
    static const char *const REASONS[] = {"stop", "length", "tool", "filter", "stop_sequence"};
    struct slice reason = text_field(L, "reason");
    enum event_finish value = EVENT_FINISH_STOP;
    bool is_known = !reason.ptr;
    for (size_t i = 0; i < sizeof REASONS / sizeof *REASONS && !is_known; i++) {
        value = (enum event_finish)i;
        is_known = slice_is(reason, REASONS[i]);
    }
    if (!is_known)
        async_error(L, "emit: unknown finish reason");
    return finish(ctx, answer, value);
}

static int emit_block(lua_State *L, struct ctx *ctx, struct answer *answer, struct slice kind)
{
    for (size_t i = 0; i < sizeof BLOCKS / sizeof *BLOCKS; i++) {
        if (!slice_is(kind, BLOCKS[i]))
            continue;
        enum event_block block = (enum event_block)i;
        struct slice id = SLICE_NONE, name = SLICE_NONE;
        if (block == EVENT_BLOCK_TOOL) {
            id = text_field(L, "id");
            name = text_field(L, "name");
            if (id.len == 0 && !(answer->has_open && answer->open == block))
                return async_error(L, "emit: a tool call needs an id and a name");
        }
        struct slice text = text_field(L, block == EVENT_BLOCK_TOOL ? "arguments" : "text");
        int err = open_block(ctx, answer, block, id, name);
        if (err == GW_ERESET || text.len == 0)
            return err;
        const struct event event = {
            .kind = EVENT_BLOCK_DELTA, .block = block, .index = answer->index, .text = text};
        return worse(err, deliver(ctx, &event));
    }
    return async_error(L, "emit: unknown kind of event");
}

// upvalue 1: the exchange's object
static int emit(lua_State *L)
{
    struct coroutine *co = async_check(L, "emit");
    struct ctx *ctx = ctx_lua_get(L, lua_upvalueindex(1));
    struct answer *answer = ctx ? ctx->answer : NULL;
    if (!answer || answer->co != co)
        return async_error(L, "emit works in the answer's own function only");
    if (lua_type(L, 1) != LUA_TTABLE)
        return async_error(L, "emit: a table expected");
    if (answer->has_ended)
        return async_error(L, "emit: nothing may follow the finish");
    lua_settop(L, 1);
    struct slice kind = text_field(L, "kind");
    int err;
    if (slice_is(kind, "usage"))
        err = emit_usage(L, ctx, answer);
    else if (slice_is(kind, "finish"))
        err = emit_finish(L, ctx, answer);
    else
        err = emit_block(L, ctx, answer, kind);
    // The exchange may have been cancelled while it took the event.
    if (err == GW_ERESET || co->is_cancelled) {
        co->is_cancelled = true;
        lua_pushboolean(L, 1);
        return 1;
    }
    if (err == GW_EAGAIN)
        return async_wait(L, &answer->op);
    if (err)
        return async_error(L, "emit: events out of order for this call");
    lua_pushboolean(L, 0);
    return 1;
}

// ---- life

static int push_answer(lua_State *L, void *arg)
{
    struct ctx *ctx = arg;
    lua_rawgeti(L, LUA_REGISTRYINDEX, ctx->lua_answer);
    bool is_list = lua_istable(L, -1);
    if (is_list) {
        lua_rawgeti(L, LUA_REGISTRYINDEX, ctx->generation->emit_list_ref);
        lua_insert(L, -2);
    }
    lua_rawgeti(L, LUA_REGISTRYINDEX, ctx->lua_object);
    lua_pushcclosure(L, emit, 1);
    async_wrap(L);
    if (!is_list)
        return 2;
    lua_insert(L, -2);
    return 3;
}

static void fail(struct ctx *ctx)
{
    struct slice message = arena_printf(ctx->arena,
                                        "The gateway's plugin \"%.*s\" failed while it "
                                        "answered.",
                                        SLICE_FMT(ctx->respond.plugin));
    ctx->error = (struct dialect_error){.status = 500,
                                        .code = SLICE_LIT("plugin_error"),
                                        .message = message,
                                        .request_id = ctx->request_id,
                                        .retry_after_ms = -1,
                                        .should_retry = true};
    ctx->generation->script->options.host->on_answer_end(ctx, GW_EINTERNAL);
}

static void on_answer_end(struct coroutine *co, int err)
{
    struct ctx *ctx = co->ctx;
    struct answer *answer = ctx->answer;
    bool was_reset = co->is_cancelled && !co->forced_error;
    answer->co = NULL;
    ctx->answer = NULL;
    if (was_reset) {
        ctx->generation->script->options.host->on_answer_end(ctx, GW_ERESET);
        return;
    }
    if (err) {
        plugin_fault(co->plugin, "stream", false, co->error);
        fail(ctx);
        return;
    }
    err = answer->has_ended ? 0 : finish(ctx, answer, EVENT_FINISH_STOP);
    ctx->generation->script->options.host->on_answer_end(ctx, err == GW_EAGAIN ? 0 : err);
}

static void cancel_wait(struct async_op *op)
{
    (void)op; // flow's writable calls find no coroutine
}

void script_answer_start(struct ctx *ctx)
{
    struct script_generation *generation = ctx->generation;
    struct plugin_rt *plugin = NULL;
    for (size_t i = 0; i < generation->plugin_count; i++)
        if (slice_is(ctx->respond.plugin, generation->plugins[i].name))
            plugin = &generation->plugins[i];
    struct answer *answer = arena_zalloc(ctx->arena, sizeof *answer);
    if (!plugin || !answer || !ctx->lua_answer || ctx_lua_make(ctx) != 0) {
        fail(ctx);
        return;
    }
    answer->op = (struct async_op){.name = "emit", .cancel = cancel_wait};
    const struct co_options options = {
        .plugin = plugin, .what = "stream", .ctx = ctx, .on_end = on_answer_end};
    if (co_prepare(&options, push_answer, ctx, &answer->co) != 0) {
        fail(ctx);
        return;
    }
    ctx->answer = answer;
    co_run(answer->co);
}

void script_answer_writable(struct ctx *ctx)
{
    struct answer *answer = ctx->answer;
    if (answer && answer->op.co)
        async_complete(&answer->op, NULL, NULL);
}

void answer_cancel(struct ctx *ctx)
{
    struct answer *answer = ctx->answer;
    ctx->answer = NULL;
    if (answer && answer->co)
        co_cancel(answer->co);
}
