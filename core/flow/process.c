// What the process says of itself: readiness with reasons, information, metrics text. Asked by the
// health and metrics plugins (gw.process) and by the control socket.
#include "base/clock.h"
#include "base/log.h"
#include "flow/exchange.h"
#include "state/catalogue.h"

int process_ready(void *user, struct buf *out, bool *is_ready)
{
    struct flow *flow = user;
    struct flow_shared *shared = flow->options.shared;
    char why[200] = "";
    struct json_out json;
    bool is_draining = atomic_load(&shared->is_draining);
    bool is_stored = store_is_healthy(flow->options.store, why, sizeof why);
    const struct catalogue *catalogue = catalogue_get(store_catalogue(flow->options.store));
    size_t own_models = 0;
    (void)script_models(flow->script, &own_models);
    bool has_upstream = catalogue->upstream_count > 0 || own_models > 0;
    *is_ready = !is_draining && is_stored && has_upstream;
    json_begin(&json, out);
    json_object(&json);
    json_key(&json, "ready");
    json_bool(&json, *is_ready);
    json_key(&json, "reasons");
    json_array(&json);
    if (is_draining)
        json_str(&json, "draining");
    if (!is_stored)
        json_str(&json, why[0] ? why : "database");
    if (!has_upstream)
        json_str(&json, "no upstream is configured");
    json_array_end(&json);
    json_object_end(&json);
    return json_end(&json);
}

int process_info(void *user, struct buf *out)
{
    struct flow *flow = user;
    struct flow_shared *shared = flow->options.shared;
    struct journal_view view;
    struct json_out json;
    journal_read_view(store_journal(flow->options.store), &view);
    const struct catalogue *catalogue = catalogue_get(store_catalogue(flow->options.store));
    json_begin(&json, out);
    json_object(&json);
    json_key(&json, "version");
    json_str(&json, MOONGATE_VERSION);
    json_key(&json, "started_ms");
    json_i64(&json, shared->started_wall_ms);
    json_key(&json, "uptime_ms");
    json_i64(&json, clock_wall_ms() - shared->started_wall_ms);
    json_key(&json, "exchanges");
    json_u64(&json, atomic_load(&shared->exchanges));
    json_key(&json, "draining");
    json_bool(&json, atomic_load(&shared->is_draining));
    json_key(&json, "upstreams");
    json_u64(&json, catalogue->upstream_count);
    json_key(&json, "keys");
    json_u64(&json, directory_key_count(store_directory(flow->options.store)));
    json_key(&json, "journal");
    json_object(&json);
    json_key(&json, "queued");
    json_u64(&json, view.queued_records);
    json_key(&json, "committed_seq");
    json_i64(&json, view.committed_seq);
    json_key(&json, "applied_main_seq");
    json_i64(&json, view.applied_main_seq);
    json_key(&json, "applied_logs_seq");
    json_i64(&json, view.applied_logs_seq);
    json_key(&json, "quarantined");
    json_u64(&json, view.quarantined);
    json_key(&json, "sick");
    json_bool(&json, view.is_sick);
    json_object_end(&json);
    json_key(&json, "log_lines_dropped");
    json_u64(&json, log_dropped());
    json_key(&json, "lua_memory_bytes");
    json_u64(&json, script_memory_used(flow->script));
    json_object_end(&json);
    return json_end(&json);
}

static int gauge(struct buf *out, const char *name, const char *help, uint64_t value)
{
    return buf_printf(out, "# HELP %s %s\n# TYPE %s gauge\n%s %llu\n", name, help, name, name,
                      (unsigned long long)value);
}

static int overload_metrics(struct flow_shared *shared, struct buf *out)
{
    static const char *const REASONS[HTTP1_REFUSALS] = {
        [HTTP1_REFUSED_FULL] = "process",
        [HTTP1_REFUSED_ADDRESS] = "address",
        [HTTP1_REFUSED_OPERATOR] = "operator",
        [HTTP1_REFUSED_DESCRIPTORS] = "descriptors",
    };
    struct pressure_view memory;
    struct http1_ips_view connections;
    pressure_read(shared->pressure, &memory);
    http1_ips_read(shared->ips, &connections);
    int64_t bodies = atomic_load(&shared->body_bytes);
    int err = gauge(out, "moongate_memory_pressure", "1 while new calls are refused for memory.",
                    memory.is_high);
    if (!err)
        err = gauge(out, "moongate_memory_resident_bytes", "Memory of the process.",
                    memory.resident_bytes);
    if (!err)
        err = gauge(out, "moongate_memory_cap_bytes", "Its cap.", memory.cap_bytes);
    if (!err)
        err = gauge(out, "moongate_overloaded_workers", "Workers that refuse calls for CPU.",
                    atomic_load(&shared->shedding));
    if (!err)
        err = gauge(out, "moongate_request_bodies_bytes", "Request bodies in flight.",
                    bodies > 0 ? (uint64_t)bodies : 0);
    if (!err)
        err = gauge(out, "moongate_connections", "Client connections.", connections.open);
    if (!err)
        err = gauge(out, "moongate_operator_connections",
                    "Connections of the admin listener and the control socket.",
                    connections.operators);
    if (!err)
        err = buf_append_str(out, "# HELP moongate_connections_refused_total Connections refused, "
                                  "by the limit that was reached.\n"
                                  "# TYPE moongate_connections_refused_total counter\n");
    for (size_t i = 0; i < HTTP1_REFUSALS && !err; i++)
        err = buf_printf(out, "moongate_connections_refused_total{limit=\"%s\"} %llu\n", REASONS[i],
                         (unsigned long long)connections.refused[i]);
    return err;
}

int process_metrics(void *user, struct buf *out)
{
    struct flow *flow = user;
    struct flow_shared *shared = flow->options.shared;
    struct journal_view view;
    journal_read_view(store_journal(flow->options.store), &view);
    int err = stats_render(flow->options.stats, out);
    if (!err)
        err = buf_printf(out,
                         "# HELP moongate_build_info Version of the running binary.\n"
                         "# TYPE moongate_build_info gauge\n"
                         "moongate_build_info{version=\"%s\"} 1\n",
                         MOONGATE_VERSION);
    if (!err)
        err = gauge(out, "moongate_http_inflight_requests", "Exchanges in flight.",
                    atomic_load(&shared->exchanges));
    if (!err)
        err = gauge(out, "moongate_log_queue_depth", "Journal records not yet committed.",
                    view.queued_records);
    if (!err)
        err = gauge(out, "moongate_log_dropped_total", "Log lines lost to a full queue.",
                    log_dropped());
    if (!err)
        err = gauge(out, "moongate_journal_quarantined_total",
                    "Journal records that could not be applied.", view.quarantined);
    if (!err)
        err = gauge(out, "moongate_lua_memory_bytes", "Memory of this worker's Lua state.",
                    script_memory_used(flow->script));
    return err ? err : overload_metrics(shared, out);
}
