// Calls of plugin routes: the body is gathered under the route's cap, the handler runs in Lua, its
// answer goes out. No exchange, no upstream, no request_logs row; one access log line.
#include "base/clock.h"
#include "base/log.h"
#include "flow/exchange.h"

#define MAX_HEADERS 48

struct route_call {
    enum visitor visitor;
    struct flow *flow;
    struct http1_stream *stream;
    const struct script_route *route;
    struct script_route_call *running;
    struct buf body;
    char id[37];
    int64_t body_counted;
    bool is_started, is_answered;
    int status;
    uint64_t started_ms;
    struct list node;
};

size_t call_size(void)
{
    return sizeof(struct route_call);
}

static size_t id_headers(struct route_call *call, struct http1_header *headers)
{
    headers[0] = (struct http1_header){SLICE_LIT("x-request-id"), slice_of(call->id, 36)};
    headers[1] = (struct http1_header){SLICE_LIT("request-id"), slice_of(call->id, 36)};
    return 2;
}

static void respond_plain(struct route_call *call, int status, const char *code,
                          const char *message)
{
    struct buf *out = &call->flow->scratch;
    struct http1_header headers[MAX_HEADERS];
    struct json_out json;
    buf_clear(out);
    json_begin(&json, out);
    json_object(&json);
    json_key(&json, "error");
    json_object(&json);
    json_key(&json, "code");
    json_str(&json, code);
    json_key(&json, "message");
    json_str(&json, message);
    json_object_end(&json);
    json_object_end(&json);
    size_t count = id_headers(call, headers);
    headers[count++] =
        (struct http1_header){SLICE_LIT("content-type"), SLICE_LIT("application/json")};
    if (status == 503)
        headers[count++] = (struct http1_header){SLICE_LIT("retry-after"), SLICE_LIT("1")};
    call->is_answered = true;
    call->status = status;
    if (json_end(&json) != GW_OK ||
        http1_respond(call->stream, status, headers, count, buf_slice(out)) != GW_OK)
        http1_abort(call->stream, "answer could not be sent");
}

void call_open(struct flow *flow, struct http1_stream *stream, const struct script_route *route)
{
    struct slab_handle handle;
    struct route_call *call = slab_alloc(flow->calls, &handle);
    struct gw_id id;
    if (!call || id_new(&id) != GW_OK) {
        if (call)
            slab_free(flow->calls, call);
        http1_abort(stream, "out of memory");
        return;
    }
    id_format(&id, call->id);
    call->visitor = VISITOR_CALL;
    call->flow = flow;
    call->stream = stream;
    call->route = route;
    call->started_ms = loop_now_ms(flow->options.loop);
    uint64_t limit = script_route_max_body(route);
    buf_init(&call->body, (size_t)limit);
    list_push_back(&flow->calls_active, &call->node);
    http1_limit_body(stream, limit);
    http1_set_user(stream, call);
}

void call_on_body(struct route_call *call, struct slice bytes)
{
    if (call->is_answered)
        return;
    struct flow_shared *shared = call->flow->options.shared;
    int64_t total = atomic_fetch_add(&shared->body_bytes, (int64_t)bytes.len) + (int64_t)bytes.len;
    call->body_counted += (int64_t)bytes.len;
    bool has_room = total <= call->flow->options.conf->bodies_total_bytes;
    if (!has_room)
        overload_count(call->flow, OVERLOAD_BODIES);
    if (!has_room || buf_append(&call->body, bytes) != GW_OK)
        respond_plain(call, 503, "overloaded", "The gateway is busy; retry later.");
}

void call_on_complete(struct route_call *call)
{
    if (call->is_answered || call->is_started)
        return;
    call->is_started = true;
    const struct http1_request *request = http1_request(call->stream);
    struct script_route_request start = {
        .request = request,
        .body = buf_slice(&call->body),
        .client_ip = client_address(call->flow->options.conf, request, request->arena),
        .request_id = slice_of(call->id, 36),
        .is_control = request->is_unix,
        .arena = request->arena,
    };
    flow_touch(call->flow);
    struct script_route_call *running = NULL;
    int err = script_route_start(call->flow->script, call->route, &start, call, &running);
    if (err)
        respond_plain(call, 500, "internal_error", "The route could not be started; retry later.");
    else if (!call->is_answered)
        call->running = running;
}

void call_on_route(void *route_user, int status, const struct http1_header *headers, size_t count,
                   struct slice body)
{
    struct route_call *call = route_user;
    struct http1_header all[MAX_HEADERS];
    size_t total = id_headers(call, all);
    const struct http1_request *request = http1_request(call->stream);
    call->running = NULL;
    call->is_answered = true;
    call->status = status;
    for (size_t i = 0; i < count && total < MAX_HEADERS - 8; i++)
        all[total++] = headers[i];
    total += reply_cors_headers(call->flow->options.conf, request, false, all + total,
                                MAX_HEADERS - total, request->arena);
    if (http1_respond(call->stream, status, all, total, body) != GW_OK)
        http1_abort(call->stream, "answer could not be sent");
}

static void access_log(struct route_call *call, const struct http1_request *request, uint64_t ms)
{
    if (!call->flow->options.conf->access_log)
        return;
    struct buf *out = &call->flow->scratch;
    struct json_out json;
    char time[32];
    buf_clear(out);
    clock_format_iso(clock_wall_ms(), time, sizeof time);
    json_begin(&json, out);
    json_object(&json);
    json_key(&json, "ts");
    json_str(&json, time);
    json_key(&json, "level");
    json_str(&json, "info");
    json_key(&json, "event");
    json_str(&json, "access");
    json_key(&json, "request_id");
    json_str(&json, call->id);
    json_key(&json, "client_ip");
    json_str(&json, request->peer_ip);
    json_key(&json, "method");
    json_text(&json, request->method_text);
    json_key(&json, "path");
    json_text(&json, request->path);
    json_key(&json, "status");
    json_i64(&json, call->status);
    json_key(&json, "dur_ms");
    json_u64(&json, ms);
    json_object_end(&json);
    if (json_end(&json) == GW_OK)
        log_line(buf_slice(out));
}

void call_on_close(struct route_call *call, int err)
{
    const struct http1_request *request = http1_request(call->stream);
    uint64_t ms = loop_now_ms(call->flow->options.loop) - call->started_ms;
    if (call->running)
        script_route_cancel(call->running);
    if (err && !call->is_answered)
        call->status = 499;
    access_log(call, request, ms);
    metrics_request(call->flow, "plugin", request->method_text, call->status, false, ms);
    if (call->body_counted)
        atomic_fetch_sub(&call->flow->options.shared->body_bytes, call->body_counted);
    buf_free(&call->body);
    list_remove(&call->node);
    slab_free(call->flow->calls, call);
    flow_touch(call->flow);
}
