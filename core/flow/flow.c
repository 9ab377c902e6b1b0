#include "flow/flow.h"

#include "base/log.h"
#include "flow/exchange.h"

#include <stdlib.h>

#define MAX_EXCHANGES (1u << 20)

static void on_turn_end(struct loop_task *task)
{
    struct flow *flow = (struct flow *)((char *)task - offsetof(struct flow, turn_end));
    if (flow->script)
        script_turn_end(flow->script);
    slab_sweep(flow->exchanges);
    slab_sweep(flow->calls);
}

void flow_touch(struct flow *flow)
{
    loop_defer(flow->options.loop, &flow->turn_end);
}

int flow_new(const struct flow_options *options, struct flow **out)
{
    struct flow *flow = calloc(1, sizeof *flow);
    if (!flow)
        return GW_ENOMEM;
    flow->options = *options;
    list_init(&flow->active);
    list_init(&flow->calls_active);
    buf_init(&flow->scratch, 0);
    overload_watch(flow);
    loop_task_init(&flow->turn_end, on_turn_end);
    flow->exchanges = slab_new(sizeof(struct exchange), MAX_EXCHANGES);
    flow->calls = slab_new(call_size(), MAX_EXCHANGES);
    if (!flow->exchanges || !flow->calls) {
        flow_free(flow);
        return GW_ENOMEM;
    }
    *out = flow;
    return GW_OK;
}

void flow_free(struct flow *flow)
{
    if (!flow)
        return;
    gw_require(list_is_empty(&flow->active));
    overload_unwatch(flow);
    loop_task_cancel(&flow->turn_end);
    slab_destroy(flow->exchanges);
    slab_destroy(flow->calls);
    buf_free(&flow->scratch);
    free(flow);
}

const struct script_host *flow_host(void)
{
    return &FLOW_SCRIPT_HOST;
}

void flow_set_script(struct flow *flow, struct script *script)
{
    flow->script = script;
}

void flow_set_server(struct flow *flow, struct http1_server *server)
{
    flow->server = server;
}

size_t flow_exchange_count(const struct flow *flow)
{
    return flow->active_count;
}

void flow_end_all(struct flow *flow, const char *reason)
{
    struct list *node, *next;
    list_each_safe(node, next, &flow->active)
    {
        struct exchange *ex = list_entry(node, struct exchange, node);
        if (ex->drains && ex->state < EXCHANGE_FINISH) {
            drain_over(ex, "client gone, shutting down");
        } else if (ex->state < EXCHANGE_ERROR) {
            ctx_flag(&ex->ctx, "drained");
            exchange_fail(ex, 503, "shutting_down", reason);
        }
    }
}

void flow_drop_all(struct flow *flow)
{
    struct list *node, *next;
    list_each_safe(node, next, &flow->active)
    {
        struct exchange *ex = list_entry(node, struct exchange, node);
        struct slab_handle handle = ex->ctx.handle;
        if (ex->drains && ex->state < EXCHANGE_FINISH)
            drain_over(ex, "client gone, stopped");
        // Its finish hook may have ended at once, and the exchange with it.
        if (slab_get(flow->exchanges, handle) != ex || ex->state != EXCHANGE_FINISH)
            continue;
        script_cancel(&ex->ctx);
        ex->hook_pending = false;
        finish_after_hook(ex);
    }
}

bool flow_is_awaited(const struct flow *flow)
{
    return flow->awaited > 0;
}

// --- the server's callbacks

static enum visitor visitor_of(const void *stream_user)
{
    return *(const enum visitor *)stream_user;
}

static void on_request(void *user, struct http1_stream *stream)
{
    struct flow *flow = user;
    const struct http1_request *request = http1_request(stream);
    const struct conf *conf = flow->options.conf;
    struct slice path;
    const struct route *route =
        router_match(request->method, request->path, conf->proxy_prefix, &path);
    http1_set_user(stream, NULL);
    if (route->kind == ROUTE_CONTROL) {
        if (request->is_unix)
            control_open(flow, stream);
        else
            builtin_refuse(flow, stream, 404, "not_found", "There is nothing at this path.",
                           SLICE_NONE);
        return;
    }
    if (builtin_serve(flow, stream, route))
        return;
    if (route->kind == ROUTE_MODEL || route->kind == ROUTE_MODELS ||
        route->kind == ROUTE_STATEFUL) {
        if (overload_refuses_call(flow, stream))
            return;
        http1_limit_body(stream, (uint64_t)conf->body_bytes);
        struct exchange *ex = exchange_open(flow, stream, route, path);
        if (ex)
            admission_start(ex);
        else
            builtin_refuse(flow, stream, 503, "overloaded", "The gateway is busy; retry later.",
                           SLICE_NONE);
        return;
    }
    struct slice allow = SLICE_NONE;
    const struct script_route *plugin_route =
        script_route_find(flow->script, request->method, request->path, &allow);
    if (!plugin_route && route->kind == ROUTE_UNKNOWN_V1) // "/v1/x" under any of the mounts
        plugin_route = script_route_find(flow->script, request->method, path, &allow);
    if (!plugin_route && route->kind == ROUTE_NONE) // a surface tells of its own unknown paths
        plugin_route = script_route_missing(flow->script, request->path);
    if (plugin_route) {
        if (!overload_refuses_route(flow, stream, plugin_route))
            call_open(flow, stream, plugin_route);
    } else if (allow.len)
        builtin_refuse(flow, stream, 405, "method_not_allowed",
                       "This path does not take this method.", allow);
    else
        builtin_refuse(flow, stream, 404, "not_found", "There is nothing at this path.",
                       SLICE_NONE);
}

static void on_body(void *stream_user, struct slice bytes)
{
    if (!stream_user)
        return; // answered at once: the rest of the body is of no interest
    switch (visitor_of(stream_user)) {
    case VISITOR_EXCHANGE: admission_on_body(stream_user, bytes); break;
    case VISITOR_CALL: call_on_body(stream_user, bytes); break;
    case VISITOR_CONTROL: control_on_body(stream_user, bytes); break;
    }
}

static void on_complete(void *stream_user)
{
    if (!stream_user)
        return;
    switch (visitor_of(stream_user)) {
    case VISITOR_EXCHANGE: admission_on_complete(stream_user); break;
    case VISITOR_CALL: call_on_complete(stream_user); break;
    case VISITOR_CONTROL: control_on_complete(stream_user); break;
    }
}

static void on_writable(void *stream_user)
{
    if (!stream_user || visitor_of(stream_user) != VISITOR_EXCHANGE)
        return;
    struct exchange *ex = stream_user;
    relay_on_client_writable(ex);
    answer_on_client_writable(ex);
}

static void on_close(void *stream_user, int err, const char *reason)
{
    (void)reason;
    if (!stream_user)
        return;
    switch (visitor_of(stream_user)) {
    case VISITOR_EXCHANGE: exchange_on_client_closed(stream_user, err); break;
    case VISITOR_CALL: call_on_close(stream_user, err); break;
    case VISITOR_CONTROL: control_on_close(stream_user); break;
    }
}

static const char *refusal_code(int status)
{
    switch (status) {
    case 408: return "request_timeout";
    case 413: return "request_too_large";
    case 414: return "uri_too_long";
    case 431: return "headers_too_large";
    case 501: return "not_implemented";
    case 503: return "overloaded";
    default: return "bad_request";
    }
}

static const char *render_refusal(void *user, const struct http1_request *request, int status,
                                  const char *message, struct buf *out)
{
    struct flow *flow = user;
    metrics_request(flow, "refused", request ? request->method_text : SLICE_LIT(""), status, false,
                    0);
    return builtin_render_refusal(flow, request, status, refusal_code(status), message, SLICE_NONE,
                                  out);
}

static size_t refusal_headers(void *user, struct http1_header *out, size_t max, struct arena *arena)
{
    (void)user;
    struct gw_id id;
    char *text = arena_alloc(arena, 37);
    if (max < 3 || !text || id_new(&id) != GW_OK)
        return 0;
    id_format(&id, text);
    out[0] = (struct http1_header){SLICE_LIT("x-request-id"), slice_of(text, 36)};
    out[1] = (struct http1_header){SLICE_LIT("request-id"), slice_of(text, 36)};
    out[2] = (struct http1_header){SLICE_LIT("x-should-retry"), SLICE_LIT("false")};
    return 3;
}

const struct http1_handler *flow_handler(void)
{
    static const struct http1_handler HANDLER = {
        .on_request = on_request,
        .on_body = on_body,
        .on_complete = on_complete,
        .on_writable = on_writable,
        .on_close = on_close,
        .render_refusal = render_refusal,
        .refusal_headers = refusal_headers,
    };
    return &HANDLER;
}
