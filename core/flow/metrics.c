// Flow's metrics (names and labels: docs/operations of the names in OpenMetrics style). Adding is
// lock-free on the worker's own shard.
#include "flow/exchange.h"

#include <stdlib.h>

struct flow_metrics {
    int requests, duration, upstream_requests, upstream_duration, upstream_ttft, retries, tokens,
        cost, rejections;
};

int flow_metrics_register(struct stats *stats, struct flow_metrics **out)
{
    struct flow_metrics *metrics = calloc(1, sizeof *metrics);
    if (!metrics)
        return GW_ENOMEM;
    const struct {
        int *number;
        enum stats_kind kind;
        const char *name, *help, *labels;
    } rows[] = {
        {&metrics->requests, STATS_COUNTER, "moongate_http_requests_total",
         "Requests answered, by route, method and status code.", "route,method,code"},
        {&metrics->duration, STATS_HISTOGRAM, "moongate_http_request_duration_seconds",
         "Time from a request's head to the end of its answer.", "route,stream"},
        {&metrics->upstream_requests, STATS_COUNTER, "moongate_upstream_requests_total",
         "Attempts at upstreams, by result.", "upstream,model,result"},
        {&metrics->upstream_duration, STATS_HISTOGRAM, "moongate_upstream_duration_seconds",
         "Duration of attempts.", "upstream,model"},
        {&metrics->upstream_ttft, STATS_HISTOGRAM, "moongate_upstream_ttft_seconds",
         "Time to the first semantic event of a call.", "upstream,model"},
        {&metrics->retries, STATS_COUNTER, "moongate_upstream_retries_total",
         "Attempts after the first one.", "upstream"},
        {&metrics->tokens, STATS_COUNTER, "moongate_tokens_total", "Tokens by kind.", "model,kind"},
        {&metrics->cost, STATS_COUNTER, "moongate_cost_nano_usd_total",
         "Cost of calls in nano-USD (1 USD = 1e9).", "model"},
        {&metrics->rejections, STATS_COUNTER, "moongate_rejections_total",
         "Calls refused before an upstream was asked, by reason.", "reason"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        *rows[i].number = stats_register(stats, rows[i].kind, rows[i].name, rows[i].help,
                                         rows[i].labels, NULL, 0);
        if (*rows[i].number < 0) {
            free(metrics);
            return GW_EINTERNAL;
        }
    }
    *out = metrics;
    return GW_OK;
}

void flow_metrics_free(struct flow_metrics *metrics)
{
    free(metrics);
}

static struct slice result_of(int status, const char *reason)
{
    if (strcmp(reason, "ok") == 0)
        return SLICE_LIT("ok");
    if (strncmp(reason, "timeout", 7) == 0)
        return SLICE_LIT("timeout");
    if (strcmp(reason, "client gone") == 0)
        return SLICE_LIT("cancelled");
    if (status >= 500)
        return SLICE_LIT("http_5xx");
    if (status >= 400)
        return SLICE_LIT("http_4xx");
    return status == 0 ? SLICE_LIT("connect") : SLICE_LIT("reset");
}

void metrics_attempt(struct exchange *ex, int status, const char *reason, uint64_t ms)
{
    const struct flow_options *options = &ex->flow->options;
    const struct flow_metrics *m = options->metrics;
    const struct slice labels[] = {ex->ctx.upstream.name, ex->ctx.model, result_of(status, reason)};
    stats_add(options->shard, m->upstream_requests, labels, 3, 1);
    stats_observe_ms(options->shard, m->upstream_duration, labels, 2, ms);
    if (ex->ctx.attempt > 1)
        stats_add(options->shard, m->retries, labels, 1, 1);
}

void metrics_request(struct flow *flow, const char *route, struct slice method, int status,
                     bool is_stream, uint64_t ms)
{
    const struct flow_options *options = &flow->options;
    char code[3] = {(char)('0' + status / 100 % 10), (char)('0' + status / 10 % 10),
                    (char)('0' + status % 10)};
    const struct slice labels[] = {slice_str(route), method,
                                   status ? slice_of(code, 3) : SLICE_LIT("0")};
    stats_add(options->shard, options->metrics->requests, labels, 3, 1);
    const struct slice timing[] = {slice_str(route),
                                   is_stream ? SLICE_LIT("true") : SLICE_LIT("false")};
    stats_observe_ms(options->shard, options->metrics->duration, timing, 2, ms);
}

static void add_tokens(struct exchange *ex, const char *kind, uint64_t count)
{
    if (count == 0)
        return;
    const struct slice labels[] = {ex->ctx.model, slice_str(kind)};
    stats_add(ex->flow->options.shard, ex->flow->options.metrics->tokens, labels, 2,
              (int64_t)count);
}

static const char *rejection_of(const struct ctx *ctx)
{
    switch (ctx->status) {
    case 401: return "auth";
    case 402: return "balance";
    case 403: return "policy";
    case 404: return "model";
    case 429: return "rate";
    default: return NULL;
    }
}

void metrics_rejections(struct flow *flow, const char *reason, uint32_t count)
{
    struct slice label = slice_str(reason);
    stats_add(flow->options.shard, flow->options.metrics->rejections, &label, 1, count);
}

void metrics_refused(struct flow *flow, uint32_t count)
{
    // No duration: so many that took no time would hide those that did.
    const struct slice labels[] = {SLICE_LIT("refused"), SLICE_LIT("POST"), SLICE_LIT("503")};
    stats_add(flow->options.shard, flow->options.metrics->requests, labels, 3, count);
}

void metrics_exchange(struct exchange *ex)
{
    const struct flow_options *options = &ex->flow->options;
    const struct ctx *ctx = &ex->ctx;
    if (!ex->refused_status) // the server's own refusals are counted where they are rendered
        metrics_request(ex->flow, ex->route->name, ctx->request->method_text, ctx->status,
                        ctx->is_stream, ctx->duration_ms);
    if (ctx->has_usage) {
        add_tokens(ex, "input", ctx->usage.input + ctx->usage.audio_in + ctx->usage.image_in);
        add_tokens(ex, "cache_read", ctx->usage.cache_read);
        add_tokens(ex, "cache_write", ctx->usage.cache_write_5m + ctx->usage.cache_write_1h);
        add_tokens(ex, "output", ctx->usage.output + ctx->usage.audio_out);
        add_tokens(ex, "reasoning", ctx->usage.reasoning);
    }
    if (ctx->has_cost && ctx->cost_nano > 0)
        stats_add(options->shard, options->metrics->cost, &ctx->model, 1, ctx->cost_nano);
    if (ex->first_event_ms && ctx->upstream.id) {
        const struct slice labels[] = {ctx->upstream.name, ctx->model};
        stats_observe_ms(options->shard, options->metrics->upstream_ttft, labels, 2, ctx->ttft_ms);
    }
    const char *reason = ctx->attempt_count == 0 && ctx->is_denied ? rejection_of(ctx) : NULL;
    if (reason)
        metrics_rejections(ex->flow, reason, 1);
}
