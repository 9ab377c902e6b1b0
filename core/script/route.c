// Plugin routes: which one a path belongs to, who may call it, what it is given. Paths are compared
// segment by segment, fixed segments before parameters. Bodies and queries are checked in C before
// any Lua runs.
#include "base/clock.h"
#include "base/log.h"
#include "codec/url.h"
#include "script/lua_json.h"
#include "script/lua_secret.h"
#include "script/runtime.h"
#include "state/directory.h"
#include <stdlib.h>
#include <string.h>

#define MAX_SEGMENTS 16
#define MAX_SEGMENT 512
#define MAX_ANSWER ((size_t)64 << 20)

// Known to flow; lives as long as the script. entry: what serves it now, NULL when no plugin does.
struct script_route {
    struct slice name, pattern, plugin; // into the bytes behind
    const struct route_entry *entry;
    struct script_generation *generation;
    struct plugin_rt *missing; // a 404 route: whose error shape
    bool is_missing;
    uint64_t max_body;
};

struct route_entry {
    struct plugin_rt *plugin;
    const struct plugin_route *def;
    size_t index; // in the plugin's routes
    size_t segment_count;
    struct slice segments[MAX_SEGMENTS];
    bool is_param[MAX_SEGMENTS];          // segments: the parameter's name
    struct script_route *route, *missing; // missing: the plugin's 404 route
};

struct route_table {
    size_t count;
    size_t first[MAX_SEGMENTS + 2]; // by number of segments
    struct route_entry entries[];
};

// ---- building

// Splits "/a/{b}" into segments; 0 when there are too many.
static size_t split(struct slice path, struct slice *segments)
{
    size_t count = 0;
    if (path.len == 0 || path.ptr[0] != '/')
        return 0;
    for (size_t at = 1;; at++) {
        size_t end = at;
        while (end < path.len && path.ptr[end] != '/')
            end++;
        if (count == MAX_SEGMENTS)
            return 0;
        segments[count++] = slice_of(path.ptr + at, end - at);
        at = end;
        if (end >= path.len)
            return count;
    }
}

static int by_order(const void *left, const void *right)
{
    const struct route_entry *a = left, *b = right;
    if (a->segment_count != b->segment_count)
        return a->segment_count < b->segment_count ? -1 : 1;
    for (size_t i = 0; i < a->segment_count; i++)
        if (a->is_param[i] != b->is_param[i])
            return a->is_param[i] ? 1 : -1;
    if (a->plugin->index != b->plugin->index)
        return a->plugin->index < b->plugin->index ? -1 : 1;
    return a->index < b->index ? -1 : a->index > b->index;
}

static struct script_route *intern(struct script *script, const char *plugin, struct slice method,
                                   struct slice pattern)
{
    char key[1200];
    int len =
        snprintf(key, sizeof key, "%s %.*s %.*s", plugin, SLICE_FMT(method), SLICE_FMT(pattern));
    if (len < 0 || (size_t)len >= sizeof key)
        return NULL;
    struct slice name = slice_of(key, (size_t)len);
    struct script_route *route = map_get(script->routes, name);
    if (route)
        return route;
    route = calloc(1, sizeof *route + (size_t)len + 1);
    if (!route)
        return NULL;
    char *text = (char *)(route + 1);
    memcpy(text, key, (size_t)len);
    route->name = slice_of(text, (size_t)len);
    route->plugin = slice_of(text, strlen(plugin));
    route->pattern = slice_of(text + (size_t)len - pattern.len, pattern.len);
    if (map_put(script->routes, route->name, route, NULL) != 0) {
        free(route);
        return NULL;
    }
    return route;
}

int route_table_build(struct script_generation *generation, struct buf *problems)
{
    size_t count = 0;
    for (size_t i = 0; i < generation->plugin_count; i++)
        count += generation->plugins[i].def->route_count;
    struct route_table *table = calloc(1, sizeof *table + count * sizeof *table->entries);
    if (!table)
        return GW_ENOMEM;
    generation->routes = table;
    for (size_t i = 0; i < generation->plugin_count; i++) {
        struct plugin_rt *plugin = &generation->plugins[i];
        for (size_t n = 0; n < plugin->def->route_count; n++) {
            struct route_entry *entry = &table->entries[table->count++];
            entry->plugin = plugin;
            entry->def = &plugin->def->routes[n];
            entry->index = n;
            entry->segment_count = split(entry->def->path, entry->segments);
            entry->route =
                intern(generation->script, plugin->name, entry->def->method_text, entry->def->path);
            if (entry->segment_count == 0 || !entry->route) {
                (void)!buf_printf(problems, "%s: route %.*s: too long or too many segments\n",
                                  plugin->name, SLICE_FMT(entry->def->path));
                return GW_EINVAL;
            }
            for (size_t s = 0; s < entry->segment_count; s++) {
                struct slice *segment = &entry->segments[s];
                if (segment->len >= 2 && segment->ptr[0] == '{' &&
                    segment->ptr[segment->len - 1] == '}') {
                    entry->is_param[s] = true;
                    *segment = slice_of(segment->ptr + 1, segment->len - 2);
                }
            }
        }
        struct script_route *missing =
            intern(generation->script, plugin->name, SLICE_LIT("*"), SLICE_LIT("*"));
        if (!missing)
            return GW_ENOMEM;
        for (size_t n = table->count - plugin->def->route_count; n < table->count; n++)
            table->entries[n].missing = missing;
    }
    qsort(table->entries, table->count, sizeof *table->entries, by_order);
    size_t at = 0;
    for (size_t length = 0; length <= MAX_SEGMENTS + 1; length++) {
        while (at < table->count && table->entries[at].segment_count < length)
            at++;
        table->first[length] = at;
    }
    return 0;
}

void route_table_free(struct route_table *table)
{
    free(table);
}

void route_table_publish(struct script_generation *generation)
{
    struct script *script = generation->script;
    size_t iter = 0;
    void *value;
    while (map_next(script->routes, &iter, NULL, &value)) {
        struct script_route *route = value;
        route->entry = NULL;
        route->missing = NULL;
        route->generation = NULL;
    }
    for (size_t i = 0; i < generation->routes->count; i++) {
        const struct route_entry *entry = &generation->routes->entries[i];
        entry->route->entry = entry;
        entry->route->generation = generation;
        entry->route->max_body = entry->def->max_body
                                     ? entry->def->max_body
                                     : (uint64_t)script->options.conf->admin_body_bytes;
    }
    for (size_t i = 0; i < generation->plugin_count; i++) {
        struct script_route *route =
            intern(script, generation->plugins[i].name, SLICE_LIT("*"), SLICE_LIT("*"));
        if (!route)
            continue;
        route->is_missing = true;
        route->missing = &generation->plugins[i];
        route->generation = generation;
        route->max_body = 0;
    }
}

void route_names_free(struct script *script)
{
    map_free(script->routes, free);
}

// ---- finding

// Percent-decodes one segment of a request into out; false when malformed.
static bool decode_segment(struct slice segment, char *out, size_t *len)
{
    static const char HEX[] = "0123456789abcdef";
    *len = 0;
    if (segment.len > MAX_SEGMENT)
        return false;
    for (size_t i = 0; i < segment.len; i++) {
        unsigned char byte = (unsigned char)segment.ptr[i];
        if (byte == '%') {
            if (i + 2 >= segment.len)
                return false;
            const char *high = memchr(HEX, segment.ptr[i + 1] | 0x20, 16);
            const char *low = memchr(HEX, segment.ptr[i + 2] | 0x20, 16);
            if (!high || !low)
                return false;
            byte = (unsigned char)((high - HEX) << 4 | (low - HEX));
            if (byte == 0)
                return false;
            i += 2;
        }
        out[(*len)++] = (char)byte;
    }
    return true;
}

static bool matches(const struct route_entry *entry, const struct slice *segments)
{
    char text[MAX_SEGMENT];
    size_t len;
    for (size_t i = 0; i < entry->segment_count; i++) {
        if (entry->is_param[i]) {
            if (segments[i].len == 0)
                return false;
            continue;
        }
        if (slice_eq(entry->segments[i], segments[i]))
            continue;
        if (!memchr(segments[i].ptr, '%', segments[i].len) ||
            !decode_segment(segments[i], text, &len) ||
            !slice_eq(entry->segments[i], slice_of(text, len)))
            return false;
    }
    return true;
}

static void add_method(struct script *script, struct slice method)
{
    size_t len = strlen(script->allow);
    if (strstr(script->allow, "GET") && slice_is(method, "GET"))
        return;
    if (len + method.len + 3 < sizeof script->allow)
        snprintf(script->allow + len, sizeof script->allow - len, "%s%.*s", len ? ", " : "",
                 SLICE_FMT(method));
}

const struct script_route *script_route_find(struct script *script, enum http1_method method,
                                             struct slice path, struct slice *allow)
{
    struct slice segments[MAX_SEGMENTS];
    size_t count = split(path, segments);
    script->allow[0] = '\0';
    *allow = SLICE_LIT("");
    if (count == 0 || !script->current)
        return NULL;
    const struct route_table *table = script->current->routes;
    const struct script_route *head = NULL;
    for (size_t i = table->first[count]; i < table->first[count + 1]; i++) {
        const struct route_entry *entry = &table->entries[i];
        if (!matches(entry, segments))
            continue;
        if (entry->def->method == method)
            return entry->route;
        if (method == HTTP1_HEAD && entry->def->method == HTTP1_GET && !head)
            head = entry->route;
        add_method(script, entry->def->method_text);
    }
    if (head)
        return head;
    *allow = slice_str(script->allow);
    return NULL;
}

const struct script_route *script_route_missing(struct script *script, struct slice path)
{
    struct slice segments[MAX_SEGMENTS];
    size_t count = split(path, segments);
    if (count == 0 || !script->current)
        return NULL;
    // The plugin that shares most leading fixed segments.
    const struct route_table *table = script->current->routes;
    const struct route_entry *best = NULL;
    size_t best_length = 0;
    for (size_t i = 0; i < table->count; i++) {
        const struct route_entry *entry = &table->entries[i];
        size_t same = 0;
        while (same < count && same < entry->segment_count && !entry->is_param[same] &&
               slice_eq(entry->segments[same], segments[same]))
            same++;
        if (same > best_length && entry->plugin->render_error_ref != LUA_NOREF) {
            best = entry;
            best_length = same;
        }
    }
    return best ? best->missing : NULL;
}

uint64_t script_route_max_body(const struct script_route *route)
{
    return route->max_body;
}

struct slice script_route_pattern(const struct script_route *route)
{
    return route->pattern;
}

struct slice script_route_plugin(const struct script_route *route)
{
    return route->plugin;
}

// ---- one call

struct script_route_call {
    struct script *script;
    const struct route_entry *entry; // of the coroutine's generation
    struct plugin_rt *plugin;
    struct script_route_request request;
    void *user;
    struct coroutine *co;
    struct slice principal; // "admin" "control" "key" "none"
    struct ctx_key key;
    struct slice credential;
    const struct schema_value *params, *query, *body;
    bool is_authorising; // the auth function runs
    int principal_ref;   // what an auth function returned
};

struct response {
    struct script_route_call *call;
    lua_State *from; // where the handler's results are; NULL: render_error is called
    int status;
    struct slice code, message; // of the error to render
    const struct schema_problem *problems;
    size_t problem_count;
    struct http1_header *headers;
    size_t header_count;
    struct slice body, content_type;
};

static void end_call(struct script_route_call *call, const struct response *response)
{
    struct script *script = call->script;
    struct arena *arena = call->request.arena;
    size_t count = response->header_count;
    struct http1_header *headers = arena_alloc(arena, (count + 1) * sizeof *headers);
    if (!headers) {
        script->options.host->on_route(call->user, 500, NULL, 0, SLICE_NONE);
        return;
    }
    bool has_type = false;
    for (size_t i = 0; i < count; i++) {
        headers[i] = response->headers[i];
        has_type = has_type || slice_is_nocase(headers[i].name, "content-type");
    }
    if (!has_type && response->content_type.ptr)
        headers[count++] = (struct http1_header){SLICE_LIT("content-type"), response->content_type};
    script->options.host->on_route(call->user, response->status, headers, count, response->body);
}

// status, body, headers from index 1..3 of L into the response.
static void read_values(lua_State *L, struct response *response)
{
    struct arena *arena = response->call->request.arena;
    if (lua_type(L, 1) != LUA_TNUMBER)
        luaL_error(L, "the handler's first result is a %s; expected the status",
                   luaL_typename(L, 1));
    lua_Number status = lua_tonumber(L, 1);
    if (!(status >= 100 && status <= 599))
        luaL_error(L, "the handler's status is outside of 100 to 599");
    response->status = (int)status;
    if (lua_istable(L, 2)) {
        struct buf *out = lua_env_buffer(L, MAX_ANSWER);
        lua_json_encode(L, 2, out);
        response->body = arena_copy(arena, buf_slice(out));
        buf_free(out);
        response->content_type = SLICE_LIT("application/json");
        if (!response->body.ptr)
            luaL_error(L, "out of memory for this answer");
    } else if (lua_type(L, 2) == LUA_TSTRING) {
        response->body = ctx_lua_copy(L, 2, arena);
        response->content_type = SLICE_LIT("text/plain; charset=utf-8");
    } else if (lua_isnil(L, 2)) {
        response->body = SLICE_LIT("");
    } else {
        luaL_error(L, "the handler's second result is a %s; expected a table, a text or nil",
                   luaL_typename(L, 2));
    }
    response->header_count = lua_read_headers(L, 3, arena, &response->headers);
}

static int read_response(lua_State *L)
{
    struct response *response = lua_touserdata(L, 1);
    lua_settop(L, 0);
    lua_settop(response->from, 3);
    lua_xmove(response->from, L, 3);
    read_values(L, response);
    return 0;
}

static int call_render_error(lua_State *L)
{
    struct response *response = lua_touserdata(L, 1);
    lua_settop(L, 0);
    lua_rawgeti(L, LUA_REGISTRYINDEX, response->call->plugin->render_error_ref);
    lua_createtable(L, 0, 5);
    lua_pushinteger(L, response->status);
    lua_setfield(L, -2, "status");
    lua_env_push_slice(L, response->code);
    lua_setfield(L, -2, "code");
    lua_env_push_slice(L, response->message);
    lua_setfield(L, -2, "message");
    lua_createtable(L, (int)response->problem_count, 0);
    for (size_t i = 0; i < response->problem_count; i++) {
        lua_createtable(L, 0, 3);
        lua_env_push_slice(L, response->problems[i].path);
        lua_setfield(L, -2, "path");
        lua_env_push_slice(L, response->problems[i].message);
        lua_setfield(L, -2, "message");
        lua_pushstring(L, response->problems[i].kind);
        lua_setfield(L, -2, "kind");
        lua_rawseti(L, -2, (int)i + 1);
    }
    lua_setfield(L, -2, "details");
    lua_env_push_slice(L, response->call->request.request_id);
    lua_setfield(L, -2, "request_id");
    lua_call(L, 1, 3);
    read_values(L, response);
    return 0;
}

static void render_default(struct response *response)
{
    struct buf text = BUF_INIT(65536);
    struct json_out out;
    json_begin(&out, &text);
    json_object(&out);
    json_key(&out, "error");
    json_object(&out);
    json_key(&out, "code");
    json_text(&out, response->code);
    json_key(&out, "message");
    json_text(&out, response->message);
    if (response->problem_count > 0) {
        json_key(&out, "details");
        json_array(&out);
        for (size_t i = 0; i < response->problem_count; i++) {
            json_object(&out);
            json_key(&out, "path");
            json_text(&out, response->problems[i].path);
            json_key(&out, "message");
            json_text(&out, response->problems[i].message);
            json_key(&out, "kind");
            json_str(&out, response->problems[i].kind);
            json_object_end(&out);
        }
        json_array_end(&out);
    }
    json_object_end(&out);
    json_object_end(&out);
    response->content_type = SLICE_LIT("application/json");
    response->header_count = 0;
    response->body = SLICE_LIT("{\"error\":{\"code\":\"internal_error\"}}");
    if (json_end(&out) == 0) {
        struct slice copy = arena_copy(response->call->request.arena, buf_slice(&text));
        if (copy.ptr)
            response->body = copy;
    }
    buf_free(&text);
}

static void end_with_problems(struct script_route_call *call, int status, const char *code,
                              const char *message, const struct schema_problem *problems,
                              size_t count)
{
    struct plugin_rt *plugin = call->plugin;
    struct response response = {.call = call,
                                .status = status,
                                .code = slice_str(code),
                                .message = slice_str(message),
                                .problems = problems,
                                .problem_count = count};
    bool is_rendered = false;
    if (plugin && plugin->render_error_ref != LUA_NOREF) {
        char error[300];
        struct script_generation *generation = plugin->generation;
        generation->direct = plugin;
        struct response rendered = response;
        is_rendered = lua_env_protect(generation->env, call_render_error, &rendered, error,
                                      sizeof error) == 0;
        generation->direct = NULL;
        if (is_rendered)
            response = rendered;
        else
            plugin_fault(plugin, "render_error", false, slice_str(error));
    }
    if (!is_rendered)
        render_default(&response);
    end_call(call, &response);
}

static void end_with_error(struct script_route_call *call, int status, const char *code,
                           const char *message)
{
    end_with_problems(call, status, code, message, NULL, 0);
}

// ---- what a handler gets

static void push_headers(lua_State *L, const struct http1_request *request)
{
    static const char *const HIDDEN[] = {"authorization", "x-api-key", "api-key", "cookie",
                                         "proxy-authorization"};
    lua_createtable(L, 0, (int)request->header_count);
    for (size_t i = 0; i < request->header_count; i++) {
        const struct http1_header *header = &request->headers[i];
        bool is_hidden = false;
        for (size_t n = 0; n < sizeof HIDDEN / sizeof *HIDDEN; n++)
            is_hidden = is_hidden || slice_is_nocase(header->name, HIDDEN[n]);
        if (is_hidden)
            continue;
        lua_env_push_slice(L, header->name);
        lua_env_push_slice(L, header->value);
        lua_rawset(L, -3);
    }
}

static void push_principal(lua_State *L, const struct script_route_call *call)
{
    if (call->principal_ref != LUA_NOREF) {
        lua_rawgeti(L, LUA_REGISTRYINDEX, call->principal_ref);
        return;
    }
    lua_createtable(L, 0, 3);
    lua_env_push_slice(L, call->principal);
    lua_setfield(L, -2, "kind");
    if (call->key.id) {
        ctx_lua_push_key(L, &call->key);
        lua_setfield(L, -2, "key");
        if (call->key.user_id) {
            lua_pushnumber(L, (lua_Number)call->key.user_id);
            lua_setfield(L, -2, "user_id");
        }
    }
}

static void set_value(lua_State *L, const struct script_route_call *call, const char *name,
                      const struct schema_value *value)
{
    if (value)
        plugin_push_value(L, call->plugin->def, value);
    else
        lua_newtable(L);
    lua_setfield(L, -2, name);
}

static bool is_admin(const struct script_route_call *call)
{
    const struct secret *token = call->script->options.conf->admin_token;
    return token && call->credential.len > 0 &&
           secret_equal(secret_reveal(token), call->credential);
}

static void push_request(lua_State *L, struct script_route_call *call)
{
    const struct http1_request *request = call->request.request;
    lua_createtable(L, 0, 10);
    lua_env_push_slice(L, request->method_text);
    lua_setfield(L, -2, "method");
    lua_env_push_slice(L, request->path);
    lua_setfield(L, -2, "path");
    lua_env_push_slice(L, call->request.client_ip);
    lua_setfield(L, -2, "client_ip");
    lua_env_push_slice(L, call->request.request_id);
    lua_setfield(L, -2, "request_id");
    push_headers(L, request);
    lua_setfield(L, -2, "headers");
    if (call->is_authorising) {
        if (call->credential.len > 0) {
            lua_secret_push_bytes(L, call->credential);
            lua_setfield(L, -2, "credential");
        }
        lua_pushboolean(L, call->request.is_control || is_admin(call));
        lua_setfield(L, -2, "is_admin");
        return;
    }
    set_value(L, call, "params", call->params);
    set_value(L, call, "query", call->query);
    if (call->body)
        set_value(L, call, "body", call->body);
    if (!call->entry->def->body && call->request.body.len > 0) {
        lua_env_push_slice(L, call->request.body);
        lua_setfield(L, -2, "body");
    }
    push_principal(L, call);
    lua_setfield(L, -2, "principal");
}

static int push_handler(lua_State *L, void *arg)
{
    struct script_route_call *call = arg;
    lua_rawgeti(L, LUA_REGISTRYINDEX, call->plugin->table_ref);
    lua_getfield(L, -1, "routes");
    lua_rawgeti(L, -1, (int)call->entry->index + 1);
    lua_getfield(L, -1, call->is_authorising ? "auth" : "handler");
    push_request(L, call);
    lua_rawgeti(L, LUA_REGISTRYINDEX, call->plugin->gw_ref);
    lua_rawgeti(L, LUA_REGISTRYINDEX, call->plugin->conf_ref);
    return 4;
}

// ---- the steps: authorise, check, run

static void run_handler(struct script_route_call *call);

struct auth_result {
    struct script_route_call *call;
    lua_State *from;
    int status;
    struct slice code, message;
};

// principal | nil[, status, code, message]
static int read_auth(lua_State *L)
{
    struct auth_result *result = lua_touserdata(L, 1);
    struct arena *arena = result->call->request.arena;
    lua_settop(L, 0);
    lua_settop(result->from, 4);
    lua_xmove(result->from, L, 4);
    if (lua_istable(L, 1)) {
        lua_pushvalue(L, 1);
        result->call->principal_ref = luaL_ref(L, LUA_REGISTRYINDEX);
        return 0;
    }
    if (lua_toboolean(L, 1))
        return luaL_error(L, "the auth function returned a %s; expected a principal table or nil",
                          luaL_typename(L, 1));
    result->status = (int)luaL_optinteger(L, 2, 401);
    if (result->status < 400 || result->status > 599)
        return luaL_error(L, "the auth function's status is outside of 400 to 599");
    if (lua_isstring(L, 3))
        result->code = ctx_lua_copy(L, 3, arena);
    if (lua_isstring(L, 4))
        result->message = ctx_lua_copy(L, 4, arena);
    return 0;
}

static void drop_principal(struct script_route_call *call)
{
    if (call->principal_ref != LUA_NOREF)
        luaL_unref(lua_env_state(call->plugin->generation->env), LUA_REGISTRYINDEX,
                   call->principal_ref);
    call->principal_ref = LUA_NOREF;
}

static void end_authorising(struct script_route_call *call, struct coroutine *co)
{
    struct auth_result result = {.call = call, .from = co->thread};
    char error[300];
    if (lua_env_protect(co->plugin->generation->env, read_auth, &result, error, sizeof error)) {
        plugin_fault(call->plugin, "auth", false, slice_str(error));
        end_with_error(call, 500, "internal_error", "The server could not answer this request.");
        return;
    }
    call->is_authorising = false;
    if (call->principal_ref != LUA_NOREF) {
        run_handler(call);
        return;
    }
    struct slice code = result.code.ptr ? result.code : SLICE_LIT("unauthorized");
    struct slice message =
        result.message.ptr ? result.message : SLICE_LIT("Authentication is required.");
    char *code_text = arena_copyz(call->request.arena, code);
    char *message_text = arena_copyz(call->request.arena, message);
    end_with_error(call, result.status, code_text ? code_text : "unauthorized",
                   message_text ? message_text : "");
}

static void on_route_end(struct coroutine *co, int err)
{
    struct script_route_call *call = co->user;
    struct plugin_rt *plugin = co->plugin;
    call->co = NULL;
    if (err) {
        plugin_fault(plugin, call->is_authorising ? "auth" : "route", false, co->error);
        drop_principal(call);
        end_with_error(call, 500, "internal_error", "The server could not answer this request.");
        return;
    }
    if (call->is_authorising) {
        end_authorising(call, co);
        return;
    }
    drop_principal(call);
    struct response response = {.call = call, .from = co->thread};
    char error[300];
    if (lua_env_protect(plugin->generation->env, read_response, &response, error, sizeof error)) {
        plugin_fault(plugin, "route", false, slice_str(error));
        end_with_error(call, 500, "internal_error", "The server could not answer this request.");
        return;
    }
    end_call(call, &response);
}

static void start_lua(struct script_route_call *call)
{
    const struct co_options options = {.plugin = call->plugin,
                                       .what = call->is_authorising ? "auth" : "route",
                                       .on_end = on_route_end,
                                       .user = call};
    if (co_start(&options, push_handler, call, &call->co) != 0) {
        call->co = NULL;
        drop_principal(call);
        end_with_error(call, 503, "overloaded", "The server is short of memory; try again later.");
    }
}

// Takes the values of {name} segments; false when one is malformed.
static bool read_params(struct script_route_call *call, struct schema_pair *pairs, size_t *count)
{
    struct slice segments[MAX_SEGMENTS];
    size_t total = split(call->request.request->path, segments);
    *count = 0;
    for (size_t i = 0; i < total && i < call->entry->segment_count; i++) {
        if (!call->entry->is_param[i])
            continue;
        char *text = arena_alloc(call->request.arena, MAX_SEGMENT);
        size_t len;
        if (!text || !decode_segment(segments[i], text, &len))
            return false;
        pairs[(*count)++] = (struct schema_pair){call->entry->segments[i], slice_of(text, len)};
    }
    return true;
}

static void free_doc(void *doc)
{
    json_doc_free(doc);
}

static int keep_value(struct arena *arena, const struct schema_result *result,
                      const struct schema_value **out)
{
    struct schema_value *copy = arena_alloc(arena, sizeof *copy);
    if (!copy)
        return GW_ENOMEM;
    *copy = result->value;
    *out = copy;
    return 0;
}

// Checks one part and remembers it; GW_EINVAL: answered.
static int take(struct script_route_call *call, int err, const struct schema_result *result,
                const struct schema_value **out)
{
    if (err == 0)
        err = keep_value(call->request.arena, result, out);
    if (err == 0)
        return 0;
    if (err == GW_EINVAL)
        end_with_problems(call, 422, "validation_error", "The request is not valid.",
                          result->problems, result->problem_count);
    else
        end_with_error(call, 503, "overloaded", "The server is short of memory.");
    return GW_EINVAL;
}

static int check_body(struct script_route_call *call)
{
    struct arena *arena = call->request.arena;
    const struct schema *schema = call->entry->def->body;
    struct slice body = call->request.body;
    struct schema_result result = {0};
    if (body.len == 0 && schema->is_optional)
        return 0;
    struct json_doc *doc;
    const char *why = NULL;
    size_t at = 0;
    int err = json_parse(body, body.len * 16 + 65536, &doc, &why, &at);
    if (err) {
        struct schema_problem *problem = arena_zalloc(arena, sizeof *problem);
        if (problem) {
            problem->path = SLICE_LIT("body");
            problem->kind = "json";
            problem->message = arena_printf(arena, "%s at byte %zu", why ? why : "no JSON", at);
        }
        end_with_problems(call, 400, "invalid_json", "The request body is not valid JSON.", problem,
                          problem ? 1 : 0);
        return GW_EINVAL;
    }
    if (arena_on_free(arena, free_doc, doc) != 0) {
        json_doc_free(doc);
        end_with_error(call, 503, "overloaded", "The server is short of memory.");
        return GW_EINVAL;
    }
    err = schema_check(schema, json_root(doc), "body", arena, &result);
    return take(call, err, &result, &call->body);
}

// Checks path parameters, query and body; GW_EINVAL: answered.
static int check_input(struct script_route_call *call)
{
    struct arena *arena = call->request.arena;
    const struct plugin_route *def = call->entry->def;
    struct schema_pair pairs[MAX_SEGMENTS];
    size_t count;
    struct schema_result result = {0};
    if (!read_params(call, pairs, &count)) {
        end_with_error(call, 400, "invalid_path", "The path is not well formed.");
        return GW_EINVAL;
    }
    if (def->params) {
        int err = schema_check_pairs(def->params, pairs, count, "path", arena, &result);
        if (take(call, err, &result, &call->params) != 0)
            return GW_EINVAL;
    } else if (count > 0) { // undeclared: texts
        struct schema_value *value = arena_zalloc(arena, sizeof *value);
        struct schema_member *members = arena_zalloc(arena, count * sizeof *members);
        static const struct schema text = {.kind = SCHEMA_TEXT}, record = {.kind = SCHEMA_RECORD};
        if (!value || !members) {
            end_with_error(call, 503, "overloaded", "The server is short of memory.");
            return GW_EINVAL;
        }
        for (size_t i = 0; i < count; i++) {
            members[i].name = pairs[i].name;
            members[i].value = (struct schema_value){.schema = &text, .text = pairs[i].text};
        }
        *value = (struct schema_value){.schema = &record, .members = members, .count = count};
        call->params = value;
    }
    if (def->query) {
        struct slice query = call->request.request->query;
        int err = schema_check_query(def->query, query.ptr ? query : SLICE_LIT(""), "query", arena,
                                     &result);
        if (take(call, err, &result, &call->query) != 0)
            return GW_EINVAL;
    }
    return def->body ? check_body(call) : 0;
}

static void run_handler(struct script_route_call *call)
{
    if (check_input(call) != 0) {
        drop_principal(call);
        return;
    }
    start_lua(call);
}

// The directory's key of the credential, when it may be used now.
static const struct key_entry *find_key(const struct script_route_call *call)
{
    struct sha256 hash;
    if (call->credential.len == 0 || secret_sha256(call->credential, &hash) != 0)
        return NULL;
    const struct key_entry *key =
        directory_key(store_directory(call->script->options.store), &hash);
    if (!key || !key->is_active || (key->expires_ms && key->expires_ms <= clock_wall_ms()))
        return NULL;
    return key;
}

// 0: go on; GW_EDENIED: answered.
static int authorise(struct script_route_call *call)
{
    enum plugin_auth auth = call->entry->def->auth;
    int err = ctx_credential(call->request.request, &call->credential);
    if (err)
        call->credential = SLICE_NONE;
    call->principal = SLICE_LIT("none");
    if (auth == PLUGIN_AUTH_NONE)
        return 0;
    if (auth == PLUGIN_AUTH_FUNCTION) {
        call->is_authorising = true;
        return 0;
    }
    if (auth == PLUGIN_AUTH_ADMIN) {
        call->principal = call->request.is_control ? SLICE_LIT("control") : SLICE_LIT("admin");
        if (call->request.is_control || is_admin(call))
            return 0;
        end_with_error(call, 401, "unauthorized",
                       call->credential.len > 0
                           ? "The admin token is not valid."
                           : "Authentication is required: Authorization: Bearer <admin token>.");
        return GW_EDENIED;
    }
    const struct key_entry *key = find_key(call);
    if (!key || ctx_copy_key(call->request.arena, key, &call->key) != 0) {
        end_with_error(call, 401, "invalid_api_key",
                       "The API key is missing, unknown, expired or revoked.");
        return GW_EDENIED;
    }
    call->principal = SLICE_LIT("key");
    if (auth == PLUGIN_AUTH_USER && !call->key.user_id) {
        end_with_error(call, 403, "user_required", "This key does not belong to a user.");
        return GW_EDENIED;
    }
    return 0;
}

int script_route_start(struct script *script, const struct script_route *route,
                       const struct script_route_request *request, void *route_user,
                       struct script_route_call **call_out)
{
    *call_out = NULL;
    struct script_route_call *call = arena_zalloc(request->arena, sizeof *call);
    if (!call)
        return GW_ENOMEM;
    call->script = script;
    call->request = *request;
    call->user = route_user;
    call->entry = route->entry;
    call->principal_ref = LUA_NOREF;
    call->plugin = route->is_missing ? route->missing : route->entry ? route->entry->plugin : NULL;
    if (!call->entry) {
        bool is_method = route->is_missing && script->allow[0];
        end_with_error(call, is_method ? 405 : 404, is_method ? "method_not_allowed" : "not_found",
                       is_method ? "This method is not allowed here." : "Not found.");
        return 0;
    }
    if (call->plugin->is_off) {
        end_with_error(call, 503, "plugin_off", "This part of the server is switched off.");
        return 0;
    }
    if (authorise(call) != 0)
        return 0;
    if (call->is_authorising)
        start_lua(call);
    else
        run_handler(call);
    *call_out = call->co ? call : NULL;
    return 0;
}

void script_route_cancel(struct script_route_call *call)
{
    struct coroutine *co = call->co;
    call->co = NULL;
    if (co)
        co_cancel(co);
    drop_principal(call);
}
