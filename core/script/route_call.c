// One call of a plugin route: who may, what the handler is given, its coroutine. Bodies and queries
// are checked in C before any Lua runs.
#include "base/clock.h"
#include "script/lua_secret.h"
#include "script/route.h"
#include "state/directory.h"

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
        route_end_error(call, 500, "internal_error", "The server could not answer this request.");
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
    route_end_error(call, result.status, code_text ? code_text : "unauthorized",
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
        route_end_error(call, 500, "internal_error", "The server could not answer this request.");
        return;
    }
    if (call->is_authorising) {
        end_authorising(call, co);
        return;
    }
    drop_principal(call);
    struct route_response response = {.call = call, .from = co->thread};
    char error[300];
    if (lua_env_protect(plugin->generation->env, route_read_response, &response, error,
                        sizeof error)) {
        plugin_fault(plugin, "route", false, slice_str(error));
        route_end_error(call, 500, "internal_error", "The server could not answer this request.");
        return;
    }
    route_end(call, &response);
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
        route_end_error(call, 503, "overloaded", "The server is short of memory; try again later.");
    }
}

// Takes the values of {name} segments; false when one is malformed.
static bool read_params(struct script_route_call *call, struct schema_pair *pairs, size_t *count)
{
    struct slice segments[ROUTE_MAX_SEGMENTS];
    size_t total = route_split(call->request.request->path, segments);
    *count = 0;
    for (size_t i = 0; i < total && i < call->entry->segment_count; i++) {
        if (!call->entry->is_param[i])
            continue;
        char *text = arena_alloc(call->request.arena, ROUTE_MAX_SEGMENT);
        size_t len;
        if (!text || !route_decode_segment(segments[i], text, &len))
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
        route_end_problems(call, 422, "validation_error", "The request is not valid.",
                           result->problems, result->problem_count);
    else
        route_end_error(call, 503, "overloaded", "The server is short of memory.");
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
        route_end_problems(call, 400, "invalid_json", "The request body is not valid JSON.",
                           problem, problem ? 1 : 0);
        return GW_EINVAL;
    }
    if (arena_on_free(arena, free_doc, doc) != 0) {
        json_doc_free(doc);
        route_end_error(call, 503, "overloaded", "The server is short of memory.");
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
    struct schema_pair pairs[ROUTE_MAX_SEGMENTS];
    size_t count;
    struct schema_result result = {0};
    if (!read_params(call, pairs, &count)) {
        route_end_error(call, 400, "invalid_path", "The path is not well formed.");
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
            route_end_error(call, 503, "overloaded", "The server is short of memory.");
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
        route_end_error(call, 401, "unauthorized",
                        call->credential.len > 0
                            ? "The admin token is not valid."
                            : "Authentication is required: Authorization: Bearer <admin token>.");
        return GW_EDENIED;
    }
    const struct key_entry *key = find_key(call);
    if (!key || ctx_copy_key(call->request.arena, key, &call->key) != 0) {
        route_end_error(call, 401, "invalid_api_key",
                        "The API key is missing, unknown, expired or revoked.");
        return GW_EDENIED;
    }
    call->principal = SLICE_LIT("key");
    if (auth == PLUGIN_AUTH_USER && !call->key.user_id) {
        route_end_error(call, 403, "user_required", "This key does not belong to a user.");
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
        route_end_error(call, is_method ? 405 : 404, is_method ? "method_not_allowed" : "not_found",
                        is_method ? "This method is not allowed here." : "Not found.");
        return 0;
    }
    if (call->plugin->is_off) {
        route_end_error(call, 503, "plugin_off", "This part of the server is switched off.");
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
