// What the flow does under overload: watches its loop, asks the rules of overload.c and the memory
// bit, and refuses new work as cheaply as it can: no exchange, no Lua, no journal record; counted,
// and ten lines a second at most in the access log.
#include "base/clock.h"
#include "base/log.h"
#include "flow/exchange.h"

#define LINE_EVERY_MS 100
#define CALM_LOOK_MS 100

static const char *const REASONS[] = {
    [OVERLOAD_CPU] = "overload",
    [OVERLOAD_MEMORY] = "memory",
    [OVERLOAD_BODIES] = "bodies",
    [OVERLOAD_UPSTREAM] = "upstream_busy",
};

static void on_turn(void *user, uint64_t now_ns, uint64_t busy_ns, uint64_t waited_ns)
{
    struct flow *flow = user;
    struct flow_shared *shared = flow->options.shared;
    struct overload *overload = &flow->overload;
    switch (overload_turn(overload, now_ns, busy_ns, waited_ns)) {
    case OVERLOAD_SAME: return;
    case OVERLOAD_BEGINS:
        atomic_fetch_add(&shared->shedding, 1);
        loop_timer_start(&flow->calm, CALM_LOOK_MS);
        log_event(LOG_WARN, "overload", LOG_INT("worker", flow->options.worker),
                  LOG_INT("turn_ms", busy_ns / 1000000u));
        return;
    case OVERLOAD_ENDS:
        atomic_fetch_sub(&shared->shedding, 1);
        log_event(LOG_WARN, "overload_over", LOG_INT("worker", flow->options.worker),
                  LOG_INT("refused", overload->refused));
        return;
    }
}

// The turn that this timer makes has asked overload_turn already.
static void on_calm(struct loop_timer *timer)
{
    struct flow *flow = (struct flow *)((char *)timer - offsetof(struct flow, calm));
    if (flow->overload.is_shedding)
        loop_timer_start(timer, CALM_LOOK_MS);
}

static void count_refused(struct loop_task *task)
{
    struct flow *flow = (struct flow *)((char *)task - offsetof(struct flow, count_refused));
    for (size_t i = 0; i < OVERLOAD_REASONS; i++) {
        if (flow->refused_uncounted[i])
            metrics_rejections(flow, REASONS[i], flow->refused_uncounted[i]);
    }
    uint32_t calls =
        flow->refused_uncounted[OVERLOAD_CPU] + flow->refused_uncounted[OVERLOAD_MEMORY];
    if (calls)
        metrics_refused(flow, calls);
    memset(flow->refused_uncounted, 0, sizeof flow->refused_uncounted);
}

void overload_watch(struct flow *flow)
{
    overload_init(&flow->overload, (uint64_t)flow->options.conf->queue_delay_ms);
    flow->jitter = (uint32_t)clock_boot_ns() ^ (flow->options.worker << 16);
    loop_task_init(&flow->count_refused, count_refused);
    loop_timer_init(flow->options.loop, &flow->calm, on_calm);
    loop_watch(flow->options.loop, on_turn, flow);
}

void overload_unwatch(struct flow *flow)
{
    loop_watch(flow->options.loop, NULL, NULL);
    loop_task_cancel(&flow->count_refused);
    loop_timer_stop(&flow->calm);
    if (flow->overload.is_shedding)
        atomic_fetch_sub(&flow->options.shared->shedding, 1);
}

int64_t overload_retry_ms(struct flow *flow)
{
    flow->jitter = flow->jitter * 1664525u + 1013904223u;
    return 1000 + (int64_t)((flow->jitter >> 8) % 1001u);
}

void overload_count(struct flow *flow, enum overload_reason reason)
{
    flow->refused_uncounted[reason]++;
    loop_defer(flow->options.loop, &flow->count_refused);
}

static bool is_operator(const struct http1_request *request)
{
    return request->is_unix || request->listener_tag == FLOW_LISTENER_ADMIN;
}

static void field(struct json_out *json, const char *name, struct slice text)
{
    json_key(json, name);
    json_text(json, text);
}

// One line stands for all since the last one.
static void write_line(struct flow *flow, const struct http1_request *request, const char *id,
                       const char *reason)
{
    uint64_t now = loop_now_ms(flow->options.loop);
    flow->refused_unlogged++;
    if (!flow->options.conf->access_log || now - flow->refused_logged_ms < LINE_EVERY_MS)
        return;
    struct buf *out = &flow->scratch;
    struct json_out json;
    char time[32];
    buf_clear(out);
    clock_format_iso(clock_wall_ms(), time, sizeof time);
    json_begin(&json, out);
    json_object(&json);
    field(&json, "ts", slice_str(time));
    field(&json, "level", SLICE_LIT("info"));
    field(&json, "event", SLICE_LIT("access"));
    field(&json, "request_id", slice_str(id));
    field(&json, "client_ip", slice_str(request->peer_ip));
    field(&json, "method", request->method_text);
    field(&json, "path", request->path);
    json_key(&json, "status");
    json_i64(&json, 503);
    field(&json, "error_class", SLICE_LIT("overloaded"));
    field(&json, "reason", slice_str(reason));
    json_key(&json, "stands_for");
    json_u64(&json, flow->refused_unlogged);
    json_object_end(&json);
    if (json_end(&json) == GW_OK)
        log_line(buf_slice(out));
    flow->refused_logged_ms = now;
    flow->refused_unlogged = 0;
}

static void refuse(struct flow *flow, struct http1_stream *stream, enum overload_reason reason)
{
    static const char *const MESSAGES[] = {
        [OVERLOAD_CPU] = "The gateway is at its capacity; retry later.",
        [OVERLOAD_MEMORY] = "The gateway is short of memory; retry later.",
    };
    const struct http1_request *request = http1_request(stream);
    struct http1_header headers[16];
    struct buf *out = &flow->scratch;
    struct gw_id id;
    char id_text[37] = "", seconds[8], ms[8];
    size_t count = 0;
    int64_t wait_ms = overload_retry_ms(flow);
    if (id_new(&id) == GW_OK)
        id_format(&id, id_text);
    snprintf(seconds, sizeof seconds, "%d", (int)((wait_ms + 999) / 1000));
    snprintf(ms, sizeof ms, "%d", (int)wait_ms);
    buf_clear(out);
    const char *type = builtin_render_refusal(flow, request, 503, "overloaded", MESSAGES[reason],
                                              slice_str(id_text), out);
    headers[count++] = (struct http1_header){SLICE_LIT("content-type"), slice_str(type)};
    headers[count++] = (struct http1_header){SLICE_LIT("retry-after"), slice_str(seconds)};
    headers[count++] = (struct http1_header){SLICE_LIT("retry-after-ms"), slice_str(ms)};
    headers[count++] = (struct http1_header){SLICE_LIT("x-should-retry"), SLICE_LIT("true")};
    headers[count++] = (struct http1_header){SLICE_LIT("x-request-id"), slice_str(id_text)};
    headers[count++] = (struct http1_header){SLICE_LIT("request-id"), slice_str(id_text)};
    count += reply_cors_headers(flow->options.conf, request, false, headers + count, 16 - count,
                                request->arena);
    int err = http1_respond(stream, 503, headers, count, buf_slice(out));
    overload_count(flow, reason);
    metrics_request(flow, "refused", request->method_text, 503, false, 0);
    write_line(flow, request, id_text, REASONS[reason]);
    if (err)
        http1_abort(stream, "answer could not be sent");
}

bool overload_refuses_call(struct flow *flow, struct http1_stream *stream)
{
    if (is_operator(http1_request(stream)))
        return false;
    if (pressure_is_high(flow->options.shared->pressure)) {
        refuse(flow, stream, OVERLOAD_MEMORY);
        return true;
    }
    struct overload *overload = &flow->overload;
    if (!overload->is_shedding || overload_admit(overload, clock_boot_ns()))
        return false;
    refuse(flow, stream, OVERLOAD_CPU);
    return true;
}

bool overload_refuses_route(struct flow *flow, struct http1_stream *stream,
                            const struct script_route *route)
{
    static const char *const KEPT[] = {"/healthz", "/health", "/api/health", "/readyz", "/metrics"};
    const struct http1_request *request = http1_request(stream);
    if (!pressure_is_high(flow->options.shared->pressure) || is_operator(request) ||
        script_route_is_admin(route))
        return false;
    for (size_t i = 0; i < sizeof KEPT / sizeof *KEPT; i++) {
        if (slice_is(request->path, KEPT[i]))
            return false;
    }
    refuse(flow, stream, OVERLOAD_MEMORY);
    return true;
}
