// gw.fetch: an HTTP request of a plugin, address-checked, to the hosts it declared.
#include "codec/url.h"
#include "io/fetch.h"
#include "script/lua_json.h"
#include "script/lua_secret.h"
#include "script/runtime.h"
#include <stdlib.h>
#include <string.h>

#define DEFAULT_BYTES ((uint64_t)1 << 20)
#define MAX_BYTES ((uint64_t)16 << 20)
#define MAX_SECRETS 8

struct fetch_wait {
    struct async_op op; // first
    struct arena *arena;
    struct fetch *fetch;
    struct buf body;
    uint64_t max_bytes;
    int status, err;
    struct http1_header *headers;
    size_t header_count;
    struct slice secrets[MAX_SECRETS]; // paths
    size_t secret_count;
    char detail[160];
};

static void free_wait(void *arg)
{
    struct fetch_wait *wait = arg;
    if (wait->secret_count > 0)
        buf_wipe(&wait->body);
    else
        buf_free(&wait->body);
    arena_free(wait->arena);
    free(wait);
}

static void cancel_wait(struct async_op *op)
{
    struct fetch_wait *wait = (struct fetch_wait *)op;
    fetch_cancel(wait->fetch);
    free_wait(wait);
}

// ---- what comes back

static void on_head(void *user, int status, const struct http1_header *headers, size_t count)
{
    struct fetch_wait *wait = user;
    wait->status = status;
    wait->headers = arena_alloc(wait->arena, (count ? count : 1) * sizeof *wait->headers);
    if (!wait->headers)
        return;
    for (size_t i = 0; i < count; i++) {
        struct slice name = arena_copy(wait->arena, headers[i].name);
        struct slice value = arena_copy(wait->arena, headers[i].value);
        if (name.ptr && value.ptr)
            wait->headers[wait->header_count++] = (struct http1_header){name, value};
    }
}

static enum fetch_verdict on_body(void *user, struct slice bytes)
{
    struct fetch_wait *wait = user;
    if (!wait->err)
        wait->err = buf_append(&wait->body, bytes);
    return FETCH_CONSUMED;
}

// Like lua_json_push, but strings at the secret paths become handles and never Lua strings.
static void push_hiding(lua_State *L, const struct fetch_wait *wait, yyjson_val *value,
                        const char *path, int depth)
{
    luaL_checkstack(L, 8, "fetch");
    size_t i, max;
    yyjson_val *key, *item;
    char inner[256];
    if (yyjson_is_str(value)) {
        for (size_t n = 0; n < wait->secret_count; n++) {
            if (!slice_is(wait->secrets[n], path))
                continue;
            lua_secret_push_bytes(L, json_string_slice(value));
            return;
        }
    }
    if (!yyjson_is_obj(value) && !yyjson_is_arr(value)) {
        lua_json_push(L, value);
        return;
    }
    if (depth > 32)
        luaL_error(L, "fetch: the answer is nested too deeply");
    const char *dot = *path ? "." : "";
    if (yyjson_is_obj(value)) {
        lua_newtable(L);
        yyjson_obj_foreach(value, i, max, key, item)
        {
            snprintf(inner, sizeof inner, "%s%s%s", path, dot, yyjson_get_str(key));
            lua_pushlstring(L, yyjson_get_str(key), yyjson_get_len(key));
            push_hiding(L, wait, item, inner, depth + 1);
            lua_rawset(L, -3);
        }
    } else {
        lua_newtable(L);
        yyjson_arr_foreach(value, i, max, item)
        {
            snprintf(inner, sizeof inner, "%s%s%zu", path, dot, i);
            push_hiding(L, wait, item, inner, depth + 1);
            lua_rawseti(L, -2, (int)i + 1);
        }
    }
}

static void free_doc(void *doc)
{
    json_doc_free(doc);
}

static int push_failure(lua_State *L, const char *text)
{
    lua_pushnil(L);
    lua_pushstring(L, text);
    return 2;
}

static int push_answer(lua_State *L, void *arg)
{
    const struct fetch_wait *wait = arg;
    if (wait->err)
        return push_failure(L,
                            wait->err == GW_ETOOBIG ? "answer too large" : gw_err_name(wait->err));
    lua_createtable(L, 0, 4);
    lua_pushinteger(L, wait->status);
    lua_setfield(L, -2, "status");
    lua_createtable(L, 0, (int)wait->header_count);
    for (size_t i = 0; i < wait->header_count; i++) {
        lua_env_push_slice(L, wait->headers[i].name);
        lua_env_push_slice(L, wait->headers[i].value);
        lua_rawset(L, -3);
    }
    lua_setfield(L, -2, "headers");
    if (wait->secret_count == 0) {
        lua_env_push_slice(L, buf_slice(&wait->body));
        lua_setfield(L, -2, "body");
        return 1;
    }
    struct json_doc *doc;
    const char *why;
    size_t at;
    void **guard = lua_env_guard(L, free_doc);
    struct slice text = buf_slice(&wait->body);
    if (json_parse(text, text.len * 16 + 65536, &doc, &why, &at) != 0)
        return push_failure(L, "the answer is no JSON, so its secrets cannot be taken out");
    *guard = doc;
    push_hiding(L, wait, json_root(doc), "", 0);
    *guard = NULL;
    json_doc_free(doc);
    lua_setfield(L, -3, "json");
    lua_pop(L, 1);
    return 1;
}

static void on_done(void *user, int err, const struct fetch_info *info)
{
    struct fetch_wait *wait = user;
    (void)info;
    if (!wait->err)
        wait->err = err;
    wait->fetch = NULL;
    async_complete(&wait->op, push_answer, wait);
    free_wait(wait);
}

// ---- the request

static bool host_matches(struct slice rule, const struct url *url)
{
    const char *colon = memrchr(rule.ptr, ':', rule.len);
    if (colon && rule.ptr[rule.len - 1] != ']') {
        unsigned long long port;
        if (slice_to_u64(slice_from(rule, (size_t)(colon - rule.ptr) + 1), 65535, &port) != 0 ||
            port != url->port)
            return false;
        rule.len = (size_t)(colon - rule.ptr);
    }
    if (rule.len > 2 && rule.ptr[0] == '*' && rule.ptr[1] == '.') {
        struct slice tail = slice_from(rule, 1);
        return url->host.len > tail.len &&
               strncasecmp(url->host.ptr + url->host.len - tail.len, tail.ptr, tail.len) == 0;
    }
    return rule.len == url->host.len && strncasecmp(rule.ptr, url->host.ptr, rule.len) == 0;
}

static void check_host(lua_State *L, const struct plugin_rt *plugin, const struct url *url)
{
    const struct plugin_needs *needs = &plugin->def->needs;
    if (!needs->may_fetch)
        gw_refuse(L, "gw.fetch", "fetch = {\"host\"}");
    if (needs->may_fetch_anywhere)
        return;
    for (size_t i = 0; i < needs->fetch_host_count; i++)
        if (host_matches(needs->fetch_hosts[i], url))
            return;
    char need[300];
    snprintf(need, sizeof need, "\"%.*s\" to `fetch`", SLICE_FMT(url->host));
    gw_refuse(L, "gw.fetch to this host", need);
}

// A header's value: a text, a secret, or a list of both that is joined.
static struct slice header_value(lua_State *L, int index, struct arena *arena)
{
    struct slice copy;
    if (!lua_istable(L, index)) {
        if (lua_type(L, index) == LUA_TNUMBER) {
            lua_pushvalue(L, index);
            copy = ctx_lua_copy(L, -1, arena);
            lua_pop(L, 1);
            return copy;
        }
        copy = arena_copy(arena, lua_secret_bytes(L, index));
        if (!copy.ptr)
            async_error(L, "out of memory");
        return copy;
    }
    size_t total = 0, count = lua_objlen(L, index);
    for (size_t i = 1; i <= count; i++) {
        lua_rawgeti(L, index, (int)i);
        total += lua_secret_bytes(L, -1).len;
        lua_pop(L, 1);
    }
    char *text = total > 65536 ? NULL : arena_alloc(arena, total + 1);
    if (!text)
        async_error(L, "gw.fetch: header too long");
    size_t at = 0;
    for (size_t i = 1; i <= count; i++) {
        lua_rawgeti(L, index, (int)i);
        struct slice part = lua_secret_bytes(L, -1);
        memcpy(text + at, part.ptr, part.len);
        at += part.len;
        lua_pop(L, 1);
    }
    return slice_of(text, total);
}

static size_t read_headers(lua_State *L, struct fetch_wait *wait, struct http1_header **out,
                           bool adds_json)
{
    size_t count = 0;
    bool has_type = false;
    *out = arena_alloc(wait->arena, 66 * sizeof **out);
    if (!*out)
        async_error(L, "out of memory");
    lua_getfield(L, 1, "headers");
    if (lua_istable(L, -1)) {
        int table = lua_gettop(L);
        lua_pushnil(L);
        while (lua_next(L, table)) {
            if (count == 64 || lua_type(L, -2) != LUA_TSTRING)
                async_error(L, "gw.fetch: headers are at most 64 named values");
            struct http1_header *header = &(*out)[count++];
            header->name = ctx_lua_copy(L, -2, wait->arena);
            header->value = header_value(L, lua_gettop(L), wait->arena);
            has_type = has_type || slice_is_nocase(header->name, "content-type");
            for (size_t i = 0; i < header->value.len; i++)
                if (strchr("\r\n", header->value.ptr[i])) // also NUL
                    async_error(L, "gw.fetch: bytes that no header may have");
            lua_pop(L, 1);
        }
    }
    lua_pop(L, 1);
    if (adds_json && !has_type)
        (*out)[count++] =
            (struct http1_header){SLICE_LIT("content-type"), SLICE_LIT("application/json")};
    return count;
}

static struct slice read_body(lua_State *L, struct fetch_wait *wait, bool *is_json)
{
    struct slice body = SLICE_NONE;
    *is_json = false;
    lua_getfield(L, 1, "json");
    if (lua_isnil(L, -1)) {
        lua_pop(L, 1);
        lua_getfield(L, 1, "body");
    } else if (!lua_istable(L, -1)) {
        async_error(L, "gw.fetch: json is a %s; expected a table", luaL_typename(L, -1));
    }
    if (lua_istable(L, -1)) {
        struct buf *out = lua_env_buffer(L, (size_t)8 << 20);
        lua_json_encode_revealing(L, -2, out);
        body = arena_copy(wait->arena, buf_slice(out));
        buf_wipe(out);
        lua_pop(L, 1);
        *is_json = true;
    } else if (lua_type(L, -1) == LUA_TSTRING) {
        body = ctx_lua_copy(L, -1, wait->arena);
    } else if (!lua_isnil(L, -1)) {
        async_error(L, "gw.fetch: body is a %s; expected a text or a table", luaL_typename(L, -1));
    }
    lua_pop(L, 1);
    if ((*is_json || body.len) && !body.ptr)
        async_error(L, "out of memory");
    return body;
}

static void read_secret_paths(lua_State *L, struct fetch_wait *wait)
{
    lua_getfield(L, 1, "secret_fields");
    if (lua_istable(L, -1)) {
        size_t count = lua_objlen(L, -1);
        if (count > MAX_SECRETS)
            async_error(L, "gw.fetch: more than %d secret_fields", MAX_SECRETS);
        for (size_t i = 0; i < count; i++) {
            lua_rawgeti(L, -1, (int)i + 1);
            wait->secrets[wait->secret_count++] = ctx_lua_copy(L, -1, wait->arena);
            lua_pop(L, 1);
        }
    }
    lua_pop(L, 1);
}

static double number_field(lua_State *L, const char *name, double absent)
{
    lua_getfield(L, 1, name);
    double value = luaL_optnumber(L, -1, absent);
    lua_pop(L, 1);
    return value;
}

static int gw_fetch(lua_State *L)
{
    static const struct fetch_handler HANDLER = {
        .on_head = on_head, .on_body = on_body, .on_done = on_done};
    async_check(L, "gw.fetch");
    struct plugin_rt *plugin = plugin_of(L);
    struct script *script = plugin->generation->script;
    if (!lua_istable(L, 1))
        return async_error(L, "gw.fetch: a table expected");
    lua_settop(L, 1);
    void **guard = lua_env_guard(L, free_wait);
    struct fetch_wait *wait = calloc(1, sizeof *wait);
    if (wait)
        wait->arena = arena_new(4096);
    if (!wait || !wait->arena) {
        free(wait);
        return async_error(L, "out of memory");
    }
    *guard = wait;
    lua_getfield(L, 1, "url");
    if (lua_type(L, -1) != LUA_TSTRING)
        return async_error(L, "gw.fetch: url expected");
    struct slice url_text = ctx_lua_copy(L, -1, wait->arena);
    lua_pop(L, 1);
    struct url url;
    const char *why = "not a URL";
    if (url_parse(url_text, wait->arena, &url, &why) != 0)
        return async_error(L, "gw.fetch: %s", why);
    check_host(L, plugin, &url);
    lua_getfield(L, 1, "method");
    struct slice method = lua_isstring(L, -1) ? ctx_lua_copy(L, -1, wait->arena) : SLICE_NONE;
    lua_pop(L, 1);
    bool is_json;
    struct slice body = read_body(L, wait, &is_json);
    if (!method.ptr)
        method = body.ptr ? SLICE_LIT("POST") : SLICE_LIT("GET");
    for (size_t i = 0; i < method.len; i++)
        if (method.ptr[i] < 'A' || method.ptr[i] > 'Z' || method.len > 16)
            return async_error(L, "gw.fetch: not a method");
    struct http1_header *headers;
    size_t header_count = read_headers(L, wait, &headers, is_json);
    read_secret_paths(L, wait);
    double timeout = number_field(L, "timeout", 10);
    double max_bytes = number_field(L, "max_bytes", (double)DEFAULT_BYTES);
    if (!(timeout >= 0.01 && timeout <= 600) || !(max_bytes >= 0 && max_bytes <= MAX_BYTES))
        return async_error(L, "gw.fetch: timeout up to 600 s, max_bytes up to 16 MiB");
    wait->max_bytes = (uint64_t)max_bytes;
    buf_init(&wait->body, (size_t)max_bytes + 1);
    wait->op = (struct async_op){.name = "fetch", .cancel = cancel_wait};
    struct slice *piece = arena_alloc(wait->arena, sizeof *piece);
    if (!piece)
        return async_error(L, "out of memory");
    *piece = body;
    const struct conf *conf = script->options.conf;
    const struct fetch_request request = {
        .trust = FETCH_PLUGIN,
        .trust_id = (int64_t)plugin->index + 1,
        .method = method,
        .url = url_text,
        .headers = headers,
        .header_count = header_count,
        .body = piece,
        .body_count = body.len > 0 ? 1 : 0,
        .body_length = (int64_t)body.len,
        .timers = {.connect_ms = (uint32_t)conf->connect_timeout_ms,
                   .tls_ms = (uint32_t)conf->tls_timeout_ms,
                   .total_ms = (uint32_t)(timeout * 1000)},
        .allowed_private = conf->allowed_private_hosts.items,
        .allowed_private_count = conf->allowed_private_hosts.count,
        .check_address = true,
        .max_body_bytes = wait->max_bytes ? wait->max_bytes : 1,
    };
    int err = fetch_start(script->options.fetcher, &request, &HANDLER, wait, &wait->fetch);
    if (err) {
        lua_pushboolean(L, 0);
        return push_failure(L, gw_err_name(err)) + 1; // the guard frees
    }
    *guard = NULL;
    return async_wait(L, &wait->op);
}

void gw_open_fetch(struct plugin_rt *plugin, lua_State *L)
{
    static const struct gw_function FUNCTIONS[] = {{"fetch", gw_fetch, true}};
    gw_set_functions(plugin, L, FUNCTIONS, 1);
}
