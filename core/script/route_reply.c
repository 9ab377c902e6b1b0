// Answers of plugin routes: what a handler returned, and errors in the plugin's own shape.
#include "base/log.h"
#include "script/lua_json.h"
#include "script/route.h"

#define MAX_ANSWER ((size_t)64 << 20)

void route_end(struct script_route_call *call, const struct route_response *response)
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
static void read_values(lua_State *L, struct route_response *response)
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

int route_read_response(lua_State *L)
{
    struct route_response *response = lua_touserdata(L, 1);
    lua_settop(L, 0);
    lua_settop(response->from, 3);
    lua_xmove(response->from, L, 3);
    read_values(L, response);
    return 0;
}

static int call_render_error(lua_State *L)
{
    struct route_response *response = lua_touserdata(L, 1);
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

static void render_default(struct route_response *response)
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

void route_end_problems(struct script_route_call *call, int status, const char *code,
                        const char *message, const struct schema_problem *problems, size_t count)
{
    struct plugin_rt *plugin = call->plugin;
    struct route_response response = {.call = call,
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
        struct watchdog_work before = lua_env_set_work(
            generation->env, (struct watchdog_work){plugin->watch_name, "render_error"});
        struct route_response rendered = response;
        is_rendered = lua_env_protect(generation->env, call_render_error, &rendered, error,
                                      sizeof error) == 0;
        (void)lua_env_set_work(generation->env, before);
        generation->direct = NULL;
        if (is_rendered)
            response = rendered;
        else
            plugin_fault(plugin, "render_error", false, slice_str(error));
    }
    if (!is_rendered)
        render_default(&response);
    route_end(call, &response);
}

void route_end_error(struct script_route_call *call, int status, const char *code,
                     const char *message)
{
    route_end_problems(call, status, code, message, NULL, 0);
}
