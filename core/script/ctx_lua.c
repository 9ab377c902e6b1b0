// The object `ctx`: one userdata per exchange holding {script, handle}; every access looks the
// exchange up, so a kept object of a finished exchange raises instead of reading freed memory.
#include "base/log.h"
#include "script/lua_json.h"
#include "script/lua_money.h"
#include "script/runtime.h"
#include "state/directory.h"
#include <string.h>

#define MAGIC 0x637478u
#define META "moongate.ctx"
#define META_HEADERS "moongate.ctx.headers"
#define META_OUTGOING "moongate.ctx.outgoing"

struct object {
    uint64_t magic;
    struct script *script;
    struct slab_handle handle;
    uint64_t part; // headers: 0 request's, 1 upstream's; also another size than money's
};

enum field {
    F_ID = 1,
    F_REQUEST_ID,
    F_METHOD,
    F_PATH,
    F_QUERY,
    F_HEADERS,
    F_CLIENT_IP,
    F_DIALECT,
    F_OP,
    F_MODEL,
    F_STREAM,
    F_MAX_OUTPUT,
    F_IS_PLUGIN_ROUTE,
    F_STARTED_MS,
    F_ATTEMPT,
    F_TRIED,
    F_CAN_RETRY,
    F_CANDIDATES,
    F_KEY,
    F_USER,
    F_UPSTREAM,
    F_USAGE,
    F_COST,
    F_STATUS,
    F_ERROR,
    F_FINISH_REASON,
    F_TTFT_MS,
    F_DURATION_MS,
    F_FLAGS,
    F_VARS,
    F_GW,
    F_BODY_SIZE,
    F_OUTGOING,
    F_IDENTITY,
};
static const char *const FIELD_NAMES[] = {
    NULL,
    "id",
    "request_id",
    "method",
    "path",
    "query",
    "headers",
    "client_ip",
    "dialect",
    "op",
    "model",
    "is_stream",
    "max_output",
    "is_plugin_route",
    "started_ms",
    "attempt",
    "tried",
    "can_retry",
    "candidates",
    "key",
    "user",
    "upstream",
    "usage",
    "cost",
    "status",
    "error",
    "finish_reason",
    "ttft_ms",
    "duration_ms",
    "flags",
    "vars",
    "gw",
    "body_size",
    "outgoing",
    "identity",
};
#define FIELD_COUNT (sizeof FIELD_NAMES / sizeof *FIELD_NAMES)

// ---- objects

static struct object *check_object(lua_State *L, int index)
{
    struct object *object = lua_touserdata(L, index);
    if (lua_type(L, index) != LUA_TUSERDATA || lua_objlen(L, index) != sizeof *object ||
        object->magic != MAGIC)
        luaL_argerror(L, index, "ctx expected (call methods with a colon)");
    return object;
}

static struct ctx *find(const struct object *object)
{
    const struct script_options *options = &object->script->options;
    return options->host->find_ctx(options->host_user, object->handle);
}

struct ctx *ctx_lua_get(lua_State *L, int index)
{
    const struct object *object = lua_touserdata(L, index);
    if (lua_type(L, index) != LUA_TUSERDATA || lua_objlen(L, index) != sizeof *object ||
        object->magic != MAGIC)
        return NULL;
    return find(object);
}

struct ctx *ctx_lua_check(lua_State *L, int index)
{
    struct ctx *ctx = find(check_object(L, index));
    if (!ctx)
        luaL_error(L, "this exchange has ended: ctx cannot be used after finish");
    return ctx;
}

static void push_object(lua_State *L, struct script *script, struct slab_handle handle,
                        const char *meta, uint64_t part)
{
    struct object *object = lua_newuserdata(L, sizeof *object);
    *object = (struct object){MAGIC, script, handle, part};
    luaL_getmetatable(L, meta);
    lua_setmetatable(L, -2);
}

static int make(lua_State *L)
{
    struct ctx *ctx = lua_touserdata(L, 1);
    push_object(L, ctx->generation->script, ctx->handle, META, 0);
    ctx->lua_object = luaL_ref(L, LUA_REGISTRYINDEX);
    return 0;
}

int ctx_lua_make(struct ctx *ctx)
{
    if (ctx->lua_object)
        return 0;
    return lua_env_protect(ctx->generation->env, make, ctx, NULL, 0);
}

void ctx_lua_drop(struct ctx *ctx)
{
    lua_State *L = lua_env_state(ctx->generation->env);
    int *refs[] = {&ctx->lua_object, &ctx->lua_vars, &ctx->lua_answer};
    for (size_t i = 0; i < 3; i++) {
        if (*refs[i])
            luaL_unref(L, LUA_REGISTRYINDEX, *refs[i]);
        *refs[i] = 0;
    }
}

struct slice ctx_lua_copy(lua_State *L, int index, struct arena *arena)
{
    struct slice copy = arena_copy(arena, lua_env_check_slice(L, index));
    if (!copy.ptr)
        luaL_error(L, "out of memory for this exchange");
    return copy;
}

// ---- reading

static void set_slice(lua_State *L, const char *name, struct slice value)
{
    lua_env_push_slice(L, value);
    lua_setfield(L, -2, name);
}

static void set_number(lua_State *L, const char *name, double value)
{
    lua_pushnumber(L, value);
    lua_setfield(L, -2, name);
}

void ctx_lua_push_maker(lua_State *L, const char *text)
{
    lua_pushlightuserdata(L, (void *)(uintptr_t)text);
    lua_rawget(L, LUA_REGISTRYINDEX);
    if (!lua_isnil(L, -1))
        return;
    lua_pop(L, 1);
    if (luaL_loadbuffer(L, text, strlen(text), "=gw") != 0)
        lua_error(L);
    lua_call(L, 0, 1);
    lua_pushlightuserdata(L, (void *)(uintptr_t)text);
    lua_pushvalue(L, -2);
    lua_rawset(L, LUA_REGISTRYINDEX);
}

static const char MAKE_KEY[] =
    "return function(id, uid, name, prefix, user_id)\n"
    "  return { id = id, uid = uid, name = name, prefix = prefix, user_id = user_id }\n"
    "end\n";

void ctx_lua_push_key(lua_State *L, const struct ctx_key *key)
{
    ctx_lua_push_maker(L, MAKE_KEY);
    lua_pushnumber(L, (double)key->id);
    lua_env_push_slice(L, slice_str(key->uid));
    lua_env_push_slice(L, key->name);
    lua_env_push_slice(L, key->prefix);
    if (key->user_id)
        lua_pushnumber(L, (double)key->user_id);
    else
        lua_pushnil(L);
    lua_call(L, 5, 1);
    if (key->has_upstream_list) {
        lua_createtable(L, (int)key->upstream_count, 0);
        for (size_t i = 0; i < key->upstream_count; i++) {
            lua_pushnumber(L, (double)key->upstream_ids[i]);
            lua_rawseti(L, -2, (int)i + 1);
        }
        lua_setfield(L, -2, "upstream_ids");
    }
    if (key->allowed_model_count > 0) {
        lua_createtable(L, (int)key->allowed_model_count, 0);
        for (size_t i = 0; i < key->allowed_model_count; i++) {
            lua_env_push_slice(L, key->allowed_models[i]);
            lua_rawseti(L, -2, (int)i + 1);
        }
        lua_setfield(L, -2, "allowed_models");
    }
}

void ctx_lua_push_user(lua_State *L, const struct ctx_user *user)
{
    lua_createtable(L, 0, 4);
    set_number(L, "id", (double)user->id);
    set_slice(L, "name", user->name);
    set_slice(L, "group", user->group);
    set_number(L, "discount", (double)user->discount_ppm);
}

static void push_usage(lua_State *L, const struct usage *usage)
{
    lua_createtable(L, 0, 14);
    set_number(L, "input", (double)usage->input);
    set_number(L, "cache_read", (double)usage->cache_read);
    set_number(L, "cache_write_5m", (double)usage->cache_write_5m);
    set_number(L, "cache_write_1h", (double)usage->cache_write_1h);
    set_number(L, "audio_in", (double)usage->audio_in);
    set_number(L, "image_in", (double)usage->image_in);
    set_number(L, "output", (double)usage->output);
    set_number(L, "reasoning", (double)usage->reasoning);
    set_number(L, "audio_out", (double)usage->audio_out);
    set_number(L, "prompt", (double)usage_prompt(usage));
    set_number(L, "completion", (double)usage_completion(usage));
    set_number(L, "total", (double)usage_total(usage));
    lua_pushboolean(L, (usage->flags & USAGE_ESTIMATED) != 0);
    lua_setfield(L, -2, "estimated");
}

static void push_upstream(lua_State *L, struct ctx *ctx, struct script *script)
{
    const struct ctx_upstream *upstream = &ctx->upstream;
    lua_createtable(L, 0, 7);
    set_number(L, "id", (double)upstream->id);
    set_slice(L, "uid", slice_str(upstream->uid));
    set_slice(L, "name", upstream->name);
    set_slice(L, "provider", upstream->provider);
    set_slice(L, "model", upstream->model);
    if (upstream->status)
        set_number(L, "status", upstream->status);
    push_object(L, script, ctx->handle, META_HEADERS, 1);
    lua_setfield(L, -2, "headers");
}

static void push_tried(lua_State *L, const struct ctx *ctx)
{
    lua_newtable(L);
    for (size_t i = 0; i < ctx->attempt_count; i++) {
        const struct ctx_attempt *attempt = &ctx->attempts[i];
        lua_pushnumber(L, (double)attempt->upstream_id);
        lua_createtable(L, 0, 3);
        set_number(L, "status", attempt->status);
        set_slice(L, "reason", attempt->reason);
        set_number(L, "duration_ms", attempt->duration_ms);
        lua_rawset(L, -3);
    }
}

static void push_error(lua_State *L, const struct ctx *ctx)
{
    static const char *const KINDS[] = {"none",  "connect",  "dns",    "tls",    "timeout",
                                        "reset", "protocol", "status", "stream", "local"};
    if (ctx->failure == CTX_FAILURE_NONE && ctx->error.status == 0) {
        lua_pushnil(L);
        return;
    }
    lua_createtable(L, 0, 5);
    if (ctx->failure != CTX_FAILURE_NONE)
        set_slice(L, "kind", slice_str(KINDS[ctx->failure]));
    set_number(L, "status", ctx->error.status);
    set_slice(L, "code", ctx->error.code);
    set_slice(L, "message", ctx->error.message);
    if (ctx->error.retry_after_ms >= 0)
        set_number(L, "retry_after_ms", (double)ctx->error.retry_after_ms);
}

static void push_vars(lua_State *L, struct ctx *ctx)
{
    struct plugin_rt *plugin = plugin_running(L);
    if (!plugin)
        luaL_error(L, "ctx.vars belongs to a plugin");
    if (!ctx->lua_vars) {
        lua_newtable(L);
        ctx->lua_vars = luaL_ref(L, LUA_REGISTRYINDEX);
    }
    lua_rawgeti(L, LUA_REGISTRYINDEX, ctx->lua_vars);
    lua_rawgeti(L, -1, (int)plugin->index + 1);
    if (!lua_isnil(L, -1))
        return;
    lua_pop(L, 1);
    lua_newtable(L);
    lua_pushvalue(L, -1);
    lua_rawseti(L, -3, (int)plugin->index + 1);
}

static const char *const DIALECTS[] = {NULL, "openai", "responses", "claude"};
static const char *const OPS[] = {"other",     "chat",     "completions", "embeddings",
                                  "responses", "messages", "count_tokens"};

static void push_optional(lua_State *L, struct slice text)
{
    if (text.ptr && text.len > 0)
        lua_env_push_slice(L, text);
    else
        lua_pushnil(L);
}

static int push_field(lua_State *L, struct ctx *ctx, struct script *script, enum field field)
{
    switch (field) {
    case F_ID: lua_pushstring(L, ctx->id_text); break;
    case F_REQUEST_ID: lua_env_push_slice(L, ctx->request_id); break;
    case F_METHOD:
        lua_env_push_slice(L, ctx->request ? ctx->request->method_text : SLICE_NONE);
        break;
    case F_PATH: lua_env_push_slice(L, ctx->request ? ctx->request->path : SLICE_NONE); break;
    case F_QUERY: push_optional(L, ctx->request ? ctx->request->query : SLICE_NONE); break;
    case F_HEADERS: push_object(L, script, ctx->handle, META_HEADERS, 0); break;
    case F_CLIENT_IP: lua_env_push_slice(L, ctx->client_ip); break;
    case F_DIALECT: lua_pushstring(L, DIALECTS[ctx->dialect]); break;
    case F_OP: lua_pushstring(L, OPS[ctx->op]); break;
    case F_MODEL: push_optional(L, ctx->model); break;
    case F_STREAM: lua_pushboolean(L, ctx->is_stream); break;
    case F_MAX_OUTPUT:
        if (ctx->has_max_output)
            lua_pushnumber(L, (double)ctx->max_output);
        else
            lua_pushnil(L);
        break;
    case F_IS_PLUGIN_ROUTE: lua_pushboolean(L, 0); break;
    case F_STARTED_MS: lua_pushnumber(L, (double)ctx->started_wall_ms); break;
    case F_ATTEMPT: lua_pushinteger(L, ctx->attempt); break;
    case F_TRIED: push_tried(L, ctx); break;
    case F_CAN_RETRY: lua_pushboolean(L, ctx->can_retry); break;
    case F_CANDIDATES:
        lua_createtable(L, (int)ctx->candidate_count, 0);
        for (size_t i = 0; i < ctx->candidate_count; i++) {
            lua_pushnumber(L, (double)ctx->candidates[i]);
            lua_rawseti(L, -2, (int)i + 1);
        }
        break;
    case F_KEY:
        if (ctx->key.id)
            ctx_lua_push_key(L, &ctx->key);
        else
            lua_pushnil(L);
        break;
    case F_USER:
        if (ctx->user.id)
            ctx_lua_push_user(L, &ctx->user);
        else
            lua_pushnil(L);
        break;
    case F_UPSTREAM:
        if (ctx->upstream.id)
            push_upstream(L, ctx, script);
        else
            lua_pushnil(L);
        break;
    case F_USAGE:
        if (ctx->has_usage)
            push_usage(L, &ctx->usage);
        else
            lua_pushnil(L);
        break;
    case F_COST:
        if (ctx->has_cost)
            lua_money_push(L, ctx->cost_nano);
        else
            lua_pushnil(L);
        break;
    case F_STATUS: lua_pushinteger(L, ctx->status); break;
    case F_ERROR: push_error(L, ctx); break;
    case F_FINISH_REASON: push_optional(L, ctx->finish_reason); break;
    case F_TTFT_MS: lua_pushnumber(L, ctx->ttft_ms); break;
    case F_DURATION_MS: lua_pushnumber(L, ctx->duration_ms); break;
    case F_FLAGS:
        lua_createtable(L, (int)ctx->flag_count, 0);
        for (size_t i = 0; i < ctx->flag_count; i++) {
            lua_env_push_slice(L, ctx->flags[i]);
            lua_rawseti(L, -2, (int)i + 1);
        }
        break;
    case F_VARS: push_vars(L, ctx); break;
    case F_GW: {
        struct plugin_rt *plugin = plugin_running(L);
        if (!plugin)
            return luaL_error(L, "ctx.gw belongs to a plugin");
        lua_rawgeti(L, LUA_REGISTRYINDEX, plugin->gw_ref);
        break;
    }
    case F_BODY_SIZE: lua_pushnumber(L, (double)ctx->body.len); break;
    case F_OUTGOING: push_object(L, script, ctx->handle, META_OUTGOING, 0); break;
    case F_IDENTITY: push_optional(L, ctx->identity_name); break;
    default: lua_pushnil(L);
    }
    return 1;
}

// upvalue 1: name → number of a field, or a method
static int ctx_index(lua_State *L)
{
    const struct object *object = check_object(L, 1);
    lua_pushvalue(L, 2);
    lua_rawget(L, lua_upvalueindex(1));
    int type = lua_type(L, -1);
    if (type == LUA_TFUNCTION)
        return 1;
    if (type != LUA_TNUMBER)
        return luaL_error(L, "ctx has no field '%s'",
                          lua_type(L, 2) == LUA_TSTRING ? lua_tostring(L, 2) : "?");
    enum field field = (enum field)lua_tointeger(L, -1);
    struct script *script = object->script;
    return push_field(L, ctx_lua_check(L, 1), script, field);
}

static int ctx_newindex(lua_State *L)
{
    return luaL_error(L, "ctx is read only (field '%s'); use ctx.vars for data of your own",
                      lua_type(L, 2) == LUA_TSTRING ? lua_tostring(L, 2) : "?");
}

static int headers_index(lua_State *L)
{
    const struct object *object = check_object(L, 1);
    struct slice name = lua_env_check_slice(L, 2);
    const struct ctx *ctx = ctx_lua_check(L, 1);
    const struct http1_header *headers;
    size_t count;
    if (object->part == 1) {
        headers = ctx->upstream.headers;
        count = ctx->upstream.header_count;
    } else {
        static const char *const HIDDEN[] = {"authorization", "x-api-key", "api-key", "cookie",
                                             "proxy-authorization"};
        for (size_t i = 0; i < sizeof HIDDEN / sizeof *HIDDEN; i++)
            if (slice_is_nocase(name, HIDDEN[i]))
                return 0;
        headers = ctx->request ? ctx->request->headers : NULL;
        count = ctx->request ? ctx->request->header_count : 0;
    }
    for (size_t i = 0; i < count; i++) {
        if (headers[i].name.len == name.len &&
            strncasecmp(headers[i].name.ptr, name.ptr, name.len) == 0) {
            lua_env_push_slice(L, headers[i].value);
            return 1;
        }
    }
    return 0;
}

// ---- opening

static void close_meta(lua_State *L)
{
    lua_pushcfunction(L, ctx_newindex);
    lua_setfield(L, -2, "__newindex");
    lua_pushboolean(L, 0);
    lua_setfield(L, -2, "__metatable");
    lua_pop(L, 1);
}

void ctx_lua_open(struct script_generation *generation, lua_State *L)
{
    (void)generation;
    luaL_newmetatable(L, META);
    lua_createtable(L, 0, FIELD_COUNT + 16);
    for (size_t i = 1; i < FIELD_COUNT; i++) {
        lua_pushinteger(L, (lua_Integer)i);
        lua_setfield(L, -2, FIELD_NAMES[i]);
    }
    ctx_lua_add_methods(L);
    lua_pushcclosure(L, ctx_index, 1);
    lua_setfield(L, -2, "__index");
    close_meta(L);
    luaL_newmetatable(L, META_HEADERS);
    lua_pushcfunction(L, headers_index);
    lua_setfield(L, -2, "__index");
    close_meta(L);
    luaL_newmetatable(L, META_OUTGOING);
    lua_newtable(L);
    ctx_lua_add_outgoing(L);
    lua_setfield(L, -2, "__index");
    close_meta(L);
}
