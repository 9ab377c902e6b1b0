// The end of an exchange, whatever it was: usage (reported or estimated), price, finish hooks, the
// journal record that becomes one request_logs row, the access log line.
#include "base/clock.h"
#include "base/log.h"
#include "codec/estimate.h"
#include "flow/exchange.h"

// Only calls that reached a model have usage; a failed attempt has none.
static bool produced_output(const struct exchange *ex)
{
    bool has_failed = ex->ctx.failure != CTX_FAILURE_NONE; // before the commit: nothing was made
    return ex->has_reader && (ex->relay.is_committed || (ex->reader.meter.seen && !has_failed)) &&
           ex->ctx.op != DIALECT_OP_COUNT_TOKENS && ex->upstream_status < 300;
}

static void settle_usage(struct exchange *ex)
{
    struct ctx *ctx = &ex->ctx;
    if (ctx->has_usage || !produced_output(ex))
        return;
    bool is_reported = usage_meter_result(&ex->reader.meter, &ctx->usage);
    bool is_complete = ex->is_success || ex->reader.has_end;
    if (!is_reported) {
        if (ctx->op == DIALECT_OP_OTHER)
            return; // images, audio: nothing that bytes could tell
        memset(&ctx->usage, 0, sizeof ctx->usage);
        ctx->usage.input = estimate_input_tokens(ctx->body);
        ctx->usage.flags |= USAGE_ESTIMATED;
    }
    // A stream that was cut reports at most a placeholder of its output: what passed is counted.
    uint64_t counted = estimate_output_tokens(ex->reader.text_bytes);
    uint64_t reported = usage_completion(&ctx->usage);
    if (!is_complete)
        ctx->usage.flags |= USAGE_PARTIAL;
    if ((!is_reported || !is_complete) && counted > reported) {
        ctx->usage.output += counted - reported;
        ctx->usage.flags |= USAGE_ESTIMATED;
    }
    if (ctx->usage.flags & USAGE_ESTIMATED)
        ctx_flag(ctx, "estimated");
    ctx->has_usage = true;
    if (ex->reader.finish[0] && !ctx->finish_reason.len)
        ctx->finish_reason = arena_copy(ctx->arena, slice_str(ex->reader.finish));
}

void finish_start(struct exchange *ex)
{
    struct ctx *ctx = &ex->ctx;
    exchange_set_state(ex, EXCHANGE_FINISH);
    ctx->duration_ms = (uint32_t)(loop_now_ms(ex->flow->options.loop) - ctx->started_boot_ms);
    settle_usage(ex);
    if (ex->refused_status) {
        ctx->status = ex->refused_status;
        ctx->error.code = ctx->status == 413   ? SLICE_LIT("request_too_large")
                          : ctx->status == 408 ? SLICE_LIT("request_timeout")
                                               : SLICE_LIT("bad_request");
        ctx->error.message = SLICE_LIT("The request's body was refused.");
    } else if (ex->client_gone && !ex->is_success) {
        ctx->status = 499;
        if (!ctx->is_denied) {
            ctx->error.code = SLICE_LIT("client_closed_request");
            ctx->error.message = SLICE_LIT("The client closed the connection.");
        }
    } else if (ex->is_success) {
        ctx->error.code = SLICE_NONE;
        ctx->error.message = SLICE_NONE;
    }
    if (ctx->has_usage && script_has_hook(ctx, SCRIPT_PRICE))
        script_run_price(ctx);
    exchange_run_hook(ex, SCRIPT_FINISH);
}

static struct slice flags_text(struct ctx *ctx)
{
    struct slice text = SLICE_LIT("");
    for (size_t i = 0; i < ctx->flag_count; i++)
        text = i ? arena_printf(ctx->arena, "%.*s,%.*s", SLICE_FMT(text), SLICE_FMT(ctx->flags[i]))
                 : ctx->flags[i];
    return text.ptr ? text : SLICE_LIT("");
}

// A client's own session, for support: the headers agents send.
static struct slice session_of(const struct http1_request *request)
{
    static const char *const NAMES[] = {"x-claude-code-session-id", "session-id",
                                        "x-session-affinity", "x-session-id"};
    for (size_t i = 0; i < sizeof NAMES / sizeof *NAMES; i++) {
        struct slice value = http1_header(request, NAMES[i]);
        if (value.len)
            return value.len > 128 ? slice_of(value.ptr, 128) : value;
    }
    return SLICE_LIT("");
}

static struct slice cut(struct slice text, size_t max)
{
    if (text.len > max)
        text.len = max;
    while (text.len == max && text.len > 0 &&
           ((unsigned char)text.ptr[text.len - 1] & 0xc0) == 0x80)
        text.len--; // not in the middle of a character
    return text;
}

static void fill_record(struct exchange *ex, struct log_record *record,
                        struct log_attempt *attempts)
{
    struct ctx *ctx = &ex->ctx;
    memset(record, 0, sizeof *record);
    record->id = ctx->id;
    record->created_ms = ctx->started_wall_ms;
    record->key_id = ctx->key.id;
    record->user_id = ctx->user.id;
    record->upstream_id = ctx->upstream.id;
    record->request_id = ctx->request_id;
    record->client_ip = ctx->client_ip;
    record->method = ctx->request->method_text;
    record->path = cut(ex->path, 512);
    record->dialect = slice_str(dialect_get(ctx->dialect)->name);
    record->model = ctx->model;
    record->upstream_model = ctx->upstream.model;
    record->finish = ctx->finish_reason;
    record->error_code = ctx->error.code;
    record->error_message = cut(ctx->error.message, 512);
    record->flags = flags_text(ctx);
    record->key_prefix = ctx->key.prefix;
    record->user_agent = cut(http1_header(ctx->request, "user-agent"), 128);
    record->session = session_of(ctx->request);
    record->plugin = ctx->respond.plugin;
    record->status = ctx->status;
    record->duration_ms = ctx->duration_ms;
    record->ttft_ms = ctx->ttft_ms;
    record->is_stream = ctx->is_stream;
    record->is_success = ex->is_success;
    record->bytes_in = ex->bytes_in;
    record->bytes_out = ex->bytes_out;
    record->usage = ctx->usage;
    record->cost_nano = ctx->has_cost ? ctx->cost_nano : 0;
    record->price_version = ctx->price_version;
    for (size_t i = 0; i < ctx->attempt_count; i++)
        attempts[i] = (struct log_attempt){ctx->attempts[i].upstream_id, ctx->attempts[i].status,
                                           ctx->attempts[i].duration_ms, ctx->attempts[i].reason};
    record->attempts = attempts;
    record->attempt_count = ctx->attempt_count;
}

static void write_journal(struct exchange *ex, const struct log_record *record)
{
    struct buf *out = &ex->flow->scratch;
    buf_clear(out);
    int err = log_record_encode(record, out);
    if (!err)
        err =
            journal_push(store_journal(ex->flow->options.store), JOURNAL_LOG, buf_slice(out), NULL);
    if (err)
        log_event(LOG_ERROR, "log_record_lost", LOG_SLICE("request_id", ex->ctx.request_id),
                  LOG_STR("reason", gw_err_name(err)));
}

static void write_attempts(struct json_out *json, const struct log_record *record)
{
    json_key(json, "attempts");
    json_array(json);
    for (size_t i = 0; i < record->attempt_count; i++) {
        json_object(json);
        json_key(json, "upstream_id");
        json_i64(json, record->attempts[i].upstream_id);
        json_key(json, "status");
        json_i64(json, record->attempts[i].status);
        json_key(json, "ms");
        json_i64(json, record->attempts[i].duration_ms);
        json_key(json, "reason");
        json_text(json, record->attempts[i].reason);
        json_object_end(json);
    }
    json_array_end(json);
}

static void text_field(struct json_out *json, const char *name, struct slice value)
{
    if (value.len == 0)
        return;
    json_key(json, name);
    json_text(json, value);
}

static void number_field(struct json_out *json, const char *name, uint64_t value)
{
    json_key(json, name);
    json_u64(json, value);
}

// One line per exchange (OPERATIONS.md); prompts and credentials are never in it.
static void write_access_log(struct exchange *ex, const struct log_record *record)
{
    if (!ex->flow->options.conf->access_log)
        return;
    struct buf *out = &ex->flow->scratch;
    struct json_out json;
    char time[32];
    buf_clear(out);
    clock_format_iso(clock_wall_ms(), time, sizeof time);
    json_begin(&json, out);
    json_object(&json);
    text_field(&json, "ts", slice_str(time));
    text_field(&json, "level", SLICE_LIT("info"));
    text_field(&json, "event", SLICE_LIT("access"));
    text_field(&json, "request_id", record->request_id);
    text_field(&json, "exchange", slice_of(ex->ctx.id_text, 36));
    text_field(&json, "client_ip", record->client_ip);
    text_field(&json, "method", record->method);
    text_field(&json, "path", record->path);
    text_field(&json, "route", slice_str(ex->route->name));
    number_field(&json, "status", (uint64_t)record->status);
    text_field(&json, "dialect", record->dialect);
    number_field(&json, "key_id", (uint64_t)record->key_id);
    text_field(&json, "key_prefix", record->key_prefix);
    text_field(&json, "model_requested", record->model);
    text_field(&json, "model_routed", record->upstream_model);
    text_field(&json, "upstream", ex->ctx.upstream.name);
    write_attempts(&json, record);
    json_key(&json, "stream");
    json_bool(&json, record->is_stream);
    number_field(&json, "ttft_ms", record->ttft_ms);
    number_field(&json, "dur_ms", record->duration_ms);
    number_field(&json, "bytes_in", record->bytes_in);
    number_field(&json, "bytes_out", record->bytes_out);
    json_key(&json, "tokens");
    json_object(&json);
    number_field(&json, "input", record->usage.input);
    number_field(&json, "cache_read", record->usage.cache_read);
    number_field(&json, "cache_write", record->usage.cache_write_5m + record->usage.cache_write_1h);
    number_field(&json, "output", record->usage.output);
    number_field(&json, "reasoning", record->usage.reasoning);
    json_object_end(&json);
    json_key(&json, "cost_nano");
    json_i64(&json, record->cost_nano);
    text_field(&json, "finish_reason", record->finish);
    text_field(&json, "error_class", record->error_code);
    text_field(&json, "flags", record->flags);
    text_field(&json, "session", record->session);
    text_field(&json, "ua", record->user_agent);
    json_object_end(&json);
    if (json_end(&json) == GW_OK)
        log_line(buf_slice(out));
}

void finish_after_hook(struct exchange *ex)
{
    struct log_record record;
    struct log_attempt attempts[CTX_MAX_ATTEMPTS];
    fill_record(ex, &record, attempts);
    if (!ex->is_unlogged)
        write_journal(ex, &record);
    write_access_log(ex, &record);
    metrics_exchange(ex);
    exchange_free(ex);
}
