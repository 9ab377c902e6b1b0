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
        text = i ? arena_join(ctx->arena, (struct slice[]){text, SLICE_LIT(","), ctx->flags[i]}, 3)
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

// The access line is written often: its fields' names are ready text, with the comma before them.
#define NAME(name) SLICE_LIT(",\"" name "\":")

static int text_field(struct buf *out, struct slice name, struct slice value)
{
    if (value.len == 0)
        return GW_OK;
    int err = buf_append(out, name);
    return err ? err : json_quote(out, value);
}

static int number_field(struct buf *out, struct slice name, int64_t value)
{
    int err = buf_append(out, name);
    return err ? err : buf_append_i64(out, value);
}

static int write_attempts(struct buf *out, const struct log_record *record)
{
    int err = buf_append(out, NAME("attempts"));
    for (size_t i = 0; i < record->attempt_count && !err; i++) {
        const struct log_attempt *attempt = &record->attempts[i];
        err = buf_append_str(out, i ? ",{\"upstream_id\":" : "[{\"upstream_id\":");
        if (!err)
            err = buf_append_i64(out, attempt->upstream_id);
        if (!err)
            err = number_field(out, NAME("status"), attempt->status);
        if (!err)
            err = number_field(out, NAME("ms"), attempt->duration_ms);
        if (!err)
            err = buf_append(out, NAME("reason"));
        if (!err)
            err = json_quote(out, attempt->reason);
        if (!err)
            err = buf_append_char(out, '}');
    }
    return err ? err : buf_append_str(out, record->attempt_count ? "]" : "[]");
}

static int write_tokens(struct buf *out, const struct usage *usage)
{
    int err = buf_append_str(out, ",\"tokens\":{\"input\":");
    if (!err)
        err = buf_append_u64(out, usage->input);
    if (!err)
        err = number_field(out, NAME("cache_read"), (int64_t)usage->cache_read);
    if (!err)
        err = number_field(out, NAME("cache_write"),
                           (int64_t)(usage->cache_write_5m + usage->cache_write_1h));
    if (!err)
        err = number_field(out, NAME("output"), (int64_t)usage->output);
    if (!err)
        err = number_field(out, NAME("reasoning"), (int64_t)usage->reasoning);
    return err ? err : buf_append_char(out, '}');
}

// One line per exchange (OPERATIONS.md); prompts and credentials are never in it.
static void write_access_log(struct exchange *ex, const struct log_record *record)
{
    if (!ex->flow->options.conf->access_log)
        return;
    struct buf *out = &ex->flow->scratch;
    char time[32];
    buf_clear(out);
    clock_format_iso(clock_wall_ms(), time, sizeof time);
    const struct {
        struct slice name, value;
    } texts[] = {
        {NAME("request_id"), record->request_id},
        {NAME("exchange"), slice_of(ex->ctx.id_text, 36)},
        {NAME("client_ip"), record->client_ip},
        {NAME("method"), record->method},
        {NAME("path"), record->path},
        {NAME("route"), slice_str(ex->route->name)},
        {NAME("dialect"), record->dialect},
        {NAME("key_prefix"), record->key_prefix},
        {NAME("model_requested"), record->model},
        {NAME("model_routed"), record->upstream_model},
        {NAME("upstream"), ex->ctx.upstream.name},
        {NAME("finish_reason"), record->finish},
        {NAME("error_class"), record->error_code},
        {NAME("flags"), record->flags},
        {NAME("session"), record->session},
        {NAME("ua"), record->user_agent},
    };
    const struct {
        struct slice name;
        int64_t value;
    } numbers[] = {
        {NAME("status"), record->status},
        {NAME("key_id"), record->key_id},
        {NAME("ttft_ms"), record->ttft_ms},
        {NAME("dur_ms"), record->duration_ms},
        {NAME("bytes_in"), (int64_t)record->bytes_in},
        {NAME("bytes_out"), (int64_t)record->bytes_out},
        {NAME("cost_nano"), record->cost_nano},
    };
    int err = buf_append_str(out, "{\"ts\":\"");
    if (!err)
        err = buf_append_str(out, time);
    if (!err)
        err = buf_append_str(out, "\",\"level\":\"info\",\"event\":\"access\"");
    for (size_t i = 0; i < sizeof texts / sizeof *texts && !err; i++)
        err = text_field(out, texts[i].name, texts[i].value);
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers && !err; i++)
        err = number_field(out, numbers[i].name, numbers[i].value);
    if (!err)
        err = write_attempts(out, record);
    if (!err)
        err = buf_append_str(out, record->is_stream ? ",\"stream\":true" : ",\"stream\":false");
    if (!err)
        err = write_tokens(out, &record->usage);
    if (!err)
        err = buf_append_char(out, '}');
    if (!err)
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
