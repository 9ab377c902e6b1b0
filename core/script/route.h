#pragma once
// Plugin routes inside: the table (route.c), one call (route_call.c), its answer (route_reply.c).
// Worker thread only.
#include "script/runtime.h"

#define ROUTE_MAX_SEGMENTS 16
#define ROUTE_MAX_SEGMENT 512

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
    struct slice segments[ROUTE_MAX_SEGMENTS];
    bool is_param[ROUTE_MAX_SEGMENTS];    // segments: the parameter's name
    struct script_route *route, *missing; // missing: the plugin's 404 route
};

struct route_table {
    size_t count;
    size_t first[ROUTE_MAX_SEGMENTS + 2]; // by number of segments
    struct route_entry entries[];
};

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

struct route_response {
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

// Splits "/a/{b}" into segments; 0 when there are too many.
size_t route_split(struct slice path, struct slice *segments);
// Percent-decodes one segment of a request into out (ROUTE_MAX_SEGMENT bytes); false: malformed.
bool route_decode_segment(struct slice segment, char *out, size_t *len);

// Hands the response to the host; the call is over.
void route_end(struct script_route_call *call, const struct route_response *response);
// Ends with an error in the plugin's shape.
void route_end_error(struct script_route_call *call, int status, const char *code,
                     const char *message);
void route_end_problems(struct script_route_call *call, int status, const char *code,
                        const char *message, const struct schema_problem *problems, size_t count);
// lua_CFunction for lua_env_protect: reads a handler's results (arg: struct route_response).
int route_read_response(lua_State *L);
