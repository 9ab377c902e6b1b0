// The methods of `ctx` and of ctx.outgoing.
#include "base/log.h"
#include "script/lua_json.h"
#include "script/runtime.h"
#include "state/directory.h"
#include <string.h>

#define MAX_BODY_TEXT ((size_t)1 << 20)
#define MAX_EDITS 256
#define MAX_HEADERS 64

static int ctx_body(lua_State *L)
{
    const struct ctx *ctx = ctx_lua_check(L, 1);
    if (ctx->body.len > MAX_BODY_TEXT) {
        lua_pushnil(L);
        lua_pushliteral(L, "too large");
        return 2;
    }
    lua_env_push_slice(L, ctx->body);
    return 1;
}

static int ctx_json(lua_State *L)
{
    const struct ctx *ctx = ctx_lua_check(L, 1);
    const char *why = NULL;
    if (ctx->body.len == 0) {
        lua_pushnil(L);
        lua_pushliteral(L, "no body");
        return 2;
    }
    lua_env_charge(L, ctx->body.len / 16);
    if (lua_json_decode(L, ctx->body, &why))
        return 1;
    lua_pushnil(L);
    lua_pushstring(L, why ? why : "invalid JSON");
    return 2;
}

static int ctx_field(lua_State *L)
{
    const struct ctx *ctx = ctx_lua_check(L, 1);
    struct slice path = lua_env_check_slice(L, 2);
    size_t dots = 0;
    for (size_t i = 0; i < path.len; i++)
        dots += path.ptr[i] == '.';
    if (path.len == 0 || path.len > SKIM_MAX_NAME || dots > 16 || memchr(path.ptr, 0, path.len))
        return luaL_argerror(L, 2, "not a path");
    if (ctx->body.len == 0)
        return 0;
    lua_env_charge(L, ctx->body.len / 16);
    const char *paths[] = {path.ptr};
    struct skim_plan plan;
    struct skim skim;
    struct skim_spec spec = {.paths = paths, .path_count = 1, .plan = &plan};
    if (skim_whole(&skim, &spec, ctx->body) != 0)
        return 0;
    const struct skim_span *span = &skim.spans[0];
    const char *why;
    if (span->type == SKIM_ABSENT)
        return 0;
    return lua_json_decode(L, skim_bytes(ctx->body, span), &why) ? 1 : 0;
}

static void check_can_deny(lua_State *L, const struct ctx *ctx, const char *method)
{
    const struct coroutine *co = co_running(L);
    if (!co || co->ctx != ctx || !co->may_answer)
        luaL_error(L, "ctx:%s is allowed in identify, admit, select, prepare, reply and body only",
                   method);
}

static bool get_boolean(lua_State *L, int index, const char *name, bool absent)
{
    lua_getfield(L, index, name);
    bool value = lua_isnil(L, -1) ? absent : lua_toboolean(L, -1);
    lua_pop(L, 1);
    return value;
}

// ctx:deny(status, code, message[, {retry_after, should_retry, param, type}])
static int ctx_deny(lua_State *L)
{
    struct ctx *ctx = ctx_lua_check(L, 1);
    check_can_deny(L, ctx, "deny");
    lua_Integer status = luaL_checkinteger(L, 2);
    luaL_argcheck(L, status >= 400 && status <= 599, 2, "status from 400 to 599 expected");
    struct dialect_error error = {.status = (int)status, .retry_after_ms = -1};
    error.code = ctx_lua_copy(L, 3, ctx->arena);
    error.message = ctx_lua_copy(L, 4, ctx->arena);
    error.request_id = ctx->request_id;
    error.should_retry = status == 429 || status >= 500;
    if (lua_istable(L, 5)) {
        lua_getfield(L, 5, "retry_after");
        if (lua_isnumber(L, -1)) {
            lua_Number seconds = lua_tonumber(L, -1);
            luaL_argcheck(L, seconds >= 0 && seconds <= 86400 * 366, 5, "retry_after out of range");
            error.retry_after_ms = (int64_t)(seconds * 1000);
        }
        lua_getfield(L, 5, "param");
        if (lua_isstring(L, -1))
            error.param = ctx_lua_copy(L, -1, ctx->arena);
        lua_getfield(L, 5, "type");
        if (lua_isstring(L, -1))
            error.type = ctx_lua_copy(L, -1, ctx->arena);
        error.should_retry = get_boolean(L, 5, "should_retry", error.should_retry);
    }
    ctx->error = error;
    ctx->is_denied = true;
    return 0;
}

static bool is_header_text(struct slice text, bool is_name)
{
    for (size_t i = 0; i < text.len; i++) {
        unsigned char byte = (unsigned char)text.ptr[i];
        if (byte == '\r' || byte == '\n' || byte == 0 || (is_name && (byte <= ' ' || byte == ':')))
            return false;
    }
    return !is_name || text.len > 0;
}

size_t lua_read_headers(lua_State *L, int index, struct arena *arena, struct http1_header **out)
{
    *out = NULL;
    if (lua_isnoneornil(L, index))
        return 0;
    luaL_checktype(L, index, LUA_TTABLE);
    if (index < 0)
        index = lua_gettop(L) + 1 + index;
    size_t count = 0, capacity = 0;
    lua_pushnil(L);
    while (lua_next(L, index)) {
        if (lua_type(L, -2) != LUA_TSTRING || !lua_isstring(L, -1))
            luaL_error(L, "headers: names and values are texts");
        if (count == capacity) {
            if (count >= 64)
                luaL_error(L, "headers: more than 64");
            capacity = 64;
            *out = arena_alloc(arena, capacity * sizeof **out);
            if (!*out)
                luaL_error(L, "out of memory for this exchange");
        }
        struct http1_header *header = &(*out)[count];
        header->name = ctx_lua_copy(L, -2, arena);
        lua_pushvalue(L, -1); // a number becomes a text in the copy only
        header->value = ctx_lua_copy(L, -1, arena);
        if (!is_header_text(header->name, true) || !is_header_text(header->value, false) ||
            header->value.len > 8192)
            luaL_error(L, "headers: bytes that no header may have");
        count++;
        lua_pop(L, 2);
    }
    return count;
}

static void read_answer_head(lua_State *L, struct ctx *ctx, struct ctx_respond *respond)
{
    struct http1_header *headers;
    lua_getfield(L, 2, "status");
    respond->status = (int)luaL_optinteger(L, -1, 200);
    if (respond->status < 200 || respond->status > 599)
        luaL_error(L, "respond: status from 200 to 599 expected");
    lua_getfield(L, 2, "headers");
    respond->header_count = lua_read_headers(L, -1, ctx->arena, &headers);
    respond->headers = headers;
    lua_getfield(L, 2, "content_type");
    if (lua_isstring(L, -1))
        respond->content_type = ctx_lua_copy(L, -1, ctx->arena);
    lua_settop(L, 2);
    respond->plugin = slice_str(plugin_running(L)->name);
}

static void keep_answer(lua_State *L, struct ctx *ctx) // pops the function or list
{
    int ref = luaL_ref(L, LUA_REGISTRYINDEX);
    if (ctx->lua_answer)
        luaL_unref(L, LUA_REGISTRYINDEX, ctx->lua_answer);
    ctx->lua_answer = ref;
}

static int ctx_respond_with(lua_State *L)
{
    struct ctx *ctx = ctx_lua_check(L, 1);
    check_can_deny(L, ctx, "respond");
    luaL_checktype(L, 2, LUA_TTABLE);
    lua_settop(L, 2);
    struct ctx_respond respond = {.kind = CTX_ANSWER_WHOLE};
    read_answer_head(L, ctx, &respond);
    lua_getfield(L, 2, "json");   // 3
    lua_getfield(L, 2, "body");   // 4
    lua_getfield(L, 2, "events"); // 5
    lua_getfield(L, 2, "text");   // 6
    if (!lua_isnil(L, 3)) {
        struct buf *out = lua_env_buffer(L, (size_t)16 << 20);
        lua_json_encode(L, 3, out);
        respond.body = arena_copy(ctx->arena, buf_slice(out));
        buf_free(out);
        if (!respond.body.ptr)
            return luaL_error(L, "out of memory for this exchange");
        if (!respond.content_type.ptr)
            respond.content_type = SLICE_LIT("application/json");
    } else if (!lua_isnil(L, 4)) {
        respond.body = ctx_lua_copy(L, 4, ctx->arena);
        if (!respond.content_type.ptr)
            respond.content_type = SLICE_LIT("text/plain; charset=utf-8");
    } else if (lua_istable(L, 5)) {
        respond.kind = CTX_ANSWER_EVENTS;
        lua_pushvalue(L, 5);
        keep_answer(L, ctx);
    } else if (lua_isstring(L, 6)) {
        respond.kind = CTX_ANSWER_EVENTS;
        lua_createtable(L, 1, 0);
        lua_createtable(L, 0, 2);
        lua_pushliteral(L, "text");
        lua_setfield(L, -2, "kind");
        lua_pushvalue(L, 6);
        lua_setfield(L, -2, "text");
        lua_rawseti(L, -2, 1);
        keep_answer(L, ctx);
    } else {
        return luaL_error(L, "respond: text, json, body or events expected");
    }
    ctx->respond = respond;
    return 0;
}

static int ctx_stream(lua_State *L)
{
    struct ctx *ctx = ctx_lua_check(L, 1);
    check_can_deny(L, ctx, "stream");
    luaL_checktype(L, 2, LUA_TFUNCTION);
    lua_settop(L, 2);
    keep_answer(L, ctx);
    ctx->respond = (struct ctx_respond){
        .kind = CTX_ANSWER_EVENTS, .status = 200, .plugin = slice_str(plugin_running(L)->name)};
    return 0;
}

static int ctx_add_flag(lua_State *L)
{
    struct ctx *ctx = ctx_lua_check(L, 1);
    struct slice text = lua_env_check_slice(L, 2);
    if (text.len == 0 || text.len > 64 || memchr(text.ptr, ',', text.len) ||
        memchr(text.ptr, 0, text.len))
        return luaL_argerror(L, 2, "a flag has 1 to 64 bytes and no comma");
    const char *name = script_flag_name(ctx->generation->script, text);
    if (name)
        ctx_flag(ctx, name);
    return 0;
}

static int ctx_log(lua_State *L)
{
    struct ctx *ctx = ctx_lua_check(L, 1);
    static const char *const LEVELS[] = {"debug", "info", "warn", "error", NULL};
    enum log_level level = (enum log_level)luaL_checkoption(L, 2, "info", LEVELS);
    const char *event = luaL_checkstring(L, 3);
    const struct plugin_rt *plugin = plugin_running(L);
    struct buf *out = lua_env_buffer(L, 16384);
    if (lua_istable(L, 4))
        lua_json_encode(L, 4, out);
    else if (buf_append_str(out, "{}") != 0)
        return luaL_error(L, "out of memory");
    log_event(level, event, LOG_STR("plugin", plugin ? plugin->name : ""),
              LOG_STR("exchange", ctx->id_text), LOG_JSON("fields", buf_slice(out)));
    buf_free(out);
    return 0;
}

// Number at field `name` of the table at index; 0 when absent.
static int64_t view_id(lua_State *L, int index, const char *name)
{
    lua_getfield(L, index, name);
    int64_t id = 0;
    if (lua_istable(L, -1)) {
        lua_getfield(L, -1, "id");
        id = (int64_t)lua_tonumber(L, -1);
        lua_pop(L, 1);
        if (id <= 0)
            luaL_error(L, "identify: %s is no view (it has no id)", name);
    }
    lua_pop(L, 1);
    return id;
}

static int ctx_identify(lua_State *L)
{
    struct ctx *ctx = ctx_lua_check(L, 1);
    const struct coroutine *co = co_running(L);
    if (!co || co->ctx != ctx || strcmp(co->what, "identify") != 0)
        return luaL_error(L, "ctx:identify is allowed in the identify hook only");
    luaL_checktype(L, 2, LUA_TTABLE);
    struct directory *directory = store_directory(ctx->generation->script->options.store);
    int64_t key_id = view_id(L, 2, "key"), user_id = view_id(L, 2, "user");
    if (key_id) { // the directory's word counts, not the view's
        const struct key_entry *key = directory_key_by_id(directory, key_id);
        if (!key || ctx_copy_key(ctx->arena, key, &ctx->key) != 0)
            return luaL_error(L, "identify: unknown key");
        if (!user_id)
            user_id = key->user_id;
    }
    if (user_id) {
        const struct user_entry *user = directory_user(directory, user_id);
        if (!user || ctx_copy_user(ctx->arena, user, &ctx->user) != 0)
            return luaL_error(L, "identify: unknown user");
    }
    lua_getfield(L, 2, "name");
    if (lua_isstring(L, -1))
        ctx->identity_name = ctx_lua_copy(L, -1, ctx->arena);
    if (!key_id && !user_id && !ctx->identity_name.ptr)
        return luaL_error(L, "identify: key, user or name expected");
    ctx->is_identified = true;
    return 0;
}

// ---- outgoing

static struct ctx *check_prepare(lua_State *L)
{
    struct ctx *ctx = ctx_lua_check(L, 1);
    const struct coroutine *co = co_running(L);
    if (!co || co->ctx != ctx || strcmp(co->what, "prepare") != 0)
        luaL_error(L, "ctx.outgoing may be changed in the prepare hook only");
    return ctx;
}

static void add_edit(lua_State *L, struct ctx *ctx, enum ctx_edit_kind kind, struct slice path,
                     struct slice value)
{
    struct ctx_outgoing *outgoing = &ctx->outgoing;
    if (path.len == 0 || path.len > SKIM_MAX_NAME)
        luaL_argerror(L, 2, "not a path");
    if (outgoing->edit_count == outgoing->edit_capacity) {
        size_t capacity = outgoing->edit_capacity ? outgoing->edit_capacity * 2 : 8;
        struct ctx_edit *edits =
            capacity > MAX_EDITS ? NULL : arena_alloc(ctx->arena, capacity * sizeof *edits);
        if (!edits) {
            luaL_error(L, "too many edits of one request");
            return;
        }
        if (outgoing->edit_count > 0)
            memcpy(edits, outgoing->edits, outgoing->edit_count * sizeof *edits);
        outgoing->edits = edits;
        outgoing->edit_capacity = capacity;
    }
    outgoing->edits[outgoing->edit_count++] = (struct ctx_edit){kind, path, value};
}

static int outgoing_set_field(lua_State *L)
{
    struct ctx *ctx = check_prepare(L);
    luaL_checkany(L, 3);
    struct slice path = ctx_lua_copy(L, 2, ctx->arena);
    struct buf *out = lua_env_buffer(L, (size_t)8 << 20);
    lua_json_encode(L, 3, out);
    struct slice value = arena_copy(ctx->arena, buf_slice(out));
    buf_free(out);
    if (!value.ptr)
        return luaL_error(L, "out of memory for this exchange");
    add_edit(L, ctx, CTX_EDIT_SET, path, value);
    return 0;
}

static int outgoing_drop_field(lua_State *L)
{
    struct ctx *ctx = check_prepare(L);
    add_edit(L, ctx, CTX_EDIT_DROP, ctx_lua_copy(L, 2, ctx->arena), SLICE_NONE);
    return 0;
}

static int outgoing_rename_field(lua_State *L)
{
    struct ctx *ctx = check_prepare(L);
    struct slice path = ctx_lua_copy(L, 2, ctx->arena);
    add_edit(L, ctx, CTX_EDIT_RENAME, path, ctx_lua_copy(L, 3, ctx->arena));
    return 0;
}

static int outgoing_set_header(lua_State *L)
{
    struct ctx *ctx = check_prepare(L);
    struct ctx_outgoing *outgoing = &ctx->outgoing;
    struct http1_header header = {ctx_lua_copy(L, 2, ctx->arena), SLICE_NONE};
    if (!lua_isnoneornil(L, 3))
        header.value = ctx_lua_copy(L, 3, ctx->arena);
    if (!is_header_text(header.name, true) || !is_header_text(header.value, false))
        return luaL_error(L, "set_header: bytes that no header may have");
    if (outgoing->header_count == outgoing->header_capacity) {
        size_t capacity = outgoing->header_capacity ? outgoing->header_capacity * 2 : 8;
        struct http1_header *headers =
            capacity > 64 ? NULL : arena_alloc(ctx->arena, capacity * sizeof *headers);
        if (!headers)
            return luaL_error(L, "too many headers");
        if (outgoing->header_count > 0)
            memcpy(headers, outgoing->headers, outgoing->header_count * sizeof *headers);
        outgoing->headers = headers;
        outgoing->header_capacity = capacity;
    }
    outgoing->headers[outgoing->header_count++] = header;
    return 0;
}

static struct slice check_target(lua_State *L, struct ctx *ctx, const char *bad)
{
    struct slice text = ctx_lua_copy(L, 2, ctx->arena);
    for (size_t i = 0; i < text.len; i++)
        if ((unsigned char)text.ptr[i] <= ' ' || text.ptr[i] == 0x7f || strchr(bad, text.ptr[i]))
            luaL_argerror(L, 2, "bytes that no target may have");
    return text;
}

static int outgoing_set_path(lua_State *L)
{
    struct ctx *ctx = check_prepare(L);
    struct slice path = check_target(L, ctx, "?#");
    luaL_argcheck(L, path.len > 0 && path.ptr[0] == '/', 2, "a path starts with /");
    ctx->outgoing.path = path;
    return 0;
}

static int outgoing_set_query(lua_State *L)
{
    struct ctx *ctx = check_prepare(L);
    ctx->outgoing.query = check_target(L, ctx, "#");
    return 0;
}

static const luaL_Reg METHODS[] = {
    {"body", ctx_body},
    {"json", ctx_json},
    {"field", ctx_field},
    {"deny", ctx_deny},
    {"respond", ctx_respond_with},
    {"stream", ctx_stream},
    {"flag", ctx_add_flag},
    {"log", ctx_log},
    {"identify", ctx_identify},
    {NULL, NULL},
};
static const luaL_Reg OUTGOING[] = {
    {"set_field", outgoing_set_field},
    {"drop_field", outgoing_drop_field},
    {"rename_field", outgoing_rename_field},
    {"set_header", outgoing_set_header},
    {"set_path", outgoing_set_path},
    {"set_query", outgoing_set_query},
    {NULL, NULL},
};

void ctx_lua_add_methods(lua_State *L)
{
    luaL_register(L, NULL, METHODS);
}

void ctx_lua_add_outgoing(lua_State *L)
{
    luaL_register(L, NULL, OUTGOING);
}
