// From the head of a model call to its candidates: identify, body (gathered and skimmed, or held
// back for an upload), admit, select. Nothing goes upstream from here.
#include "base/log.h"
#include "codec/estimate.h"
#include "codec/multipart.h"
#include "flow/exchange.h"
#include "state/catalogue.h"

#define UPLOAD_PEEK_BYTES (64u << 10) // a form whose model stands here is streamed
#define MODEL_NAME_BYTES 256

const char *const ADMISSION_PATHS[SPAN_COUNT] = {
    [SPAN_MODEL] = "model",
    [SPAN_STREAM] = "stream",
    [SPAN_STREAM_OPTIONS] = "stream_options",
    [SPAN_INCLUDE_USAGE] = "stream_options.include_usage",
    [SPAN_MAX_TOKENS] = "max_tokens",
    [SPAN_MAX_COMPLETION_TOKENS] = "max_completion_tokens",
    [SPAN_MAX_OUTPUT_TOKENS] = "max_output_tokens",
    [SPAN_N] = "n",
    [SPAN_SERVICE_TIER] = "service_tier",
    [SPAN_STORE] = "store",
    [SPAN_BACKGROUND] = "background",
};

static const struct skim_spec BODY_SPEC = {.paths = ADMISSION_PATHS, .path_count = SPAN_COUNT};

bool admission_is_media(struct slice type)
{
    static const char *const PREFIXES[] = {"multipart/", "audio/", "image/", "video/",
                                           "application/octet-stream"};
    for (size_t i = 0; i < sizeof PREFIXES / sizeof *PREFIXES; i++) {
        size_t len = strlen(PREFIXES[i]);
        if (type.len >= len && strncasecmp(type.ptr, PREFIXES[i], len) == 0)
            return true;
    }
    return false;
}

// Counts request bytes in flight against the process's budget, up to what this body holds. False:
// there is no room, nothing was counted and the call has failed.
static bool take_budget(struct exchange *ex, int64_t wanted)
{
    struct flow_shared *shared = ex->flow->options.shared;
    int64_t bytes = wanted - ex->body_counted;
    if (bytes <= 0)
        return true;
    if (atomic_fetch_add(&shared->body_bytes, bytes) + bytes <=
        ex->flow->options.conf->bodies_total_bytes) {
        ex->body_counted = wanted;
        return true;
    }
    atomic_fetch_sub(&shared->body_bytes, bytes);
    overload_count(ex->flow, OVERLOAD_BODIES);
    exchange_fail(ex, 503, "overloaded",
                  "The gateway holds too many request bodies at the moment; retry later.");
    return false;
}

void admission_release_body(struct exchange *ex)
{
    if (ex->body_counted)
        atomic_fetch_sub(&ex->flow->options.shared->body_bytes, ex->body_counted);
    ex->body_counted = 0;
}

void admission_start(struct exchange *ex)
{
    const struct http1_request *request = ex->ctx.request;
    struct slice encoding = http1_header(request, "content-encoding");
    if (encoding.ptr && !slice_is_nocase(encoding, "identity")) {
        exchange_fail(ex, 415, "unsupported_content_encoding",
                      "Send the request body uncompressed, without Content-Encoding.");
        return;
    }
    // What is metered is always read, whatever it is called.
    ex->is_upload = request->has_body && ex->ctx.op == DIALECT_OP_OTHER &&
                    admission_is_media(http1_header(request, "content-type"));
    ex->is_json = request->has_body && !ex->is_upload;
    if (ex->is_json && ex->route->kind == ROUTE_MODEL)
        skim_init(&ex->skim, &BODY_SPEC);
    // Nobody's megabytes are read before we know who sends them.
    http1_pause_body(ex->stream);
    exchange_run_hook(ex, SCRIPT_IDENTIFY);
}

void admission_after_identify(struct exchange *ex)
{
    if (!ex->ctx.is_identified) {
        exchange_fail(ex, 401, "invalid_api_key",
                      "Incorrect API key provided. Send a valid key as 'Authorization: Bearer "
                      "KEY' or 'x-api-key: KEY'.");
        return;
    }
    exchange_set_state(ex, EXCHANGE_BODY);
    if (ex->route->kind == ROUTE_MODELS) {
        builtin_models(ex);
        return;
    }
    if (ex->body_complete) {
        admission_on_complete(ex);
        return;
    }
    // A body that will be gathered is counted before its first byte is asked for. Those without a
    // length, and uploads, are counted as they come.
    if (!ex->is_upload && !take_budget(ex, ex->ctx.request->content_length))
        return;
    http1_resume_body(ex->stream);
}

static void admit(struct exchange *ex)
{
    exchange_set_state(ex, EXCHANGE_ADMIT);
    exchange_run_hook(ex, SCRIPT_ADMIT);
}

// A binary body has no fields: its model is named beside it.
static struct slice named_beside(const struct exchange *ex)
{
    const struct http1_request *request = ex->ctx.request;
    struct slice query = request->query, name, value, decoded;
    while (url_query_next(&query, &name, &value)) {
        if (slice_is(name, "model") && url_decode(value, true, ex->ctx.arena, &decoded) == GW_OK)
            return decoded;
    }
    return http1_header(request, "x-model");
}

static bool take_upload_model(struct exchange *ex)
{
    struct slice boundary, value = SLICE_NONE, body = buf_slice(&ex->body);
    struct slice type = http1_header(ex->ctx.request, "content-type");
    int err = GW_ENOTFOUND;
    if (multipart_boundary(type, &boundary) == GW_OK)
        err = multipart_field(body, boundary, "model", &value);
    if (err == GW_EAGAIN && !ex->body_complete)
        return false;
    if (err == GW_OK && value.len > 0) {
        ex->model_at = (size_t)(value.ptr - body.ptr);
        ex->model_len = value.len;
    } else {
        value = named_beside(ex);
    }
    if (value.len <= MODEL_NAME_BYTES)
        ex->ctx.model = arena_copy(ex->ctx.arena, value);
    return true;
}

// Looks for the form's model in what has come of an upload. It is searched twice: while the first
// 64 KiB come (then the rest is streamed), and when all has come: SDKs put the file first when
// their caller names it first, and such a body is kept whole, under the budget of all bodies.
static void peek_upload(struct exchange *ex)
{
    bool may_look = ex->body_complete || ex->body.len <= UPLOAD_PEEK_BYTES;
    if (!may_look || !take_upload_model(ex))
        return;
    if (ex->ctx.model.len == 0 && ex->route->needs_model) {
        exchange_fail(ex, 400, "missing_required_parameter",
                      "The form needs a field 'model' of at most 256 bytes (or ?model= beside a "
                      "binary body).");
        return;
    }
    ex->upload_ready = true;
    ex->is_spooled = ex->body_complete;
    if (!ex->body_complete)
        http1_pause_body(ex->stream);
    admit(ex);
}

void admission_on_body(struct exchange *ex, struct slice bytes)
{
    if (ex->state >= EXCHANGE_ENDING || ex->state == EXCHANGE_ERROR)
        return;
    if (ex->upload_started) {
        (void)attempt_upload(ex, bytes);
        return;
    }
    if (!take_budget(ex, (int64_t)(ex->body.len + bytes.len)))
        return;
    if (ex->body.len == 0 && ex->ctx.request->content_length > 0 && ex->is_json)
        (void)!buf_room(&ex->body, (size_t)ex->ctx.request->content_length);
    if (buf_append(&ex->body, bytes) != GW_OK) {
        exchange_fail(ex, 503, "out_of_memory", "The gateway is out of memory; retry later.");
        return;
    }
    if (ex->is_json && ex->route->kind == ROUTE_MODEL)
        (void)!skim_feed(&ex->skim, bytes); // the error sticks until skim_finish
    if (ex->is_upload && !ex->upload_ready && ex->state == EXCHANGE_BODY)
        peek_upload(ex);
}

static void fail_body(struct exchange *ex, const char *code, const char *format, const char *what)
{
    struct slice message = arena_printf(ex->ctx.arena, format, what);
    exchange_fail(ex, 400, code, message.ptr ? message.ptr : "Malformed request body.");
}

// Members we act on must be there once: JSON libraries disagree on which of two wins.
static bool check_members(struct exchange *ex)
{
    for (size_t i = 0; i < SPAN_COUNT; i++) {
        const struct skim_span *span = &ex->skim.spans[i];
        if (span->is_duplicate) {
            fail_body(ex, "duplicate_parameter", "The body has '%s' more than once.",
                      ADMISSION_PATHS[i]);
            return false;
        }
        if (span->has_case_twin) {
            fail_body(ex, "duplicate_parameter",
                      "The body has a member that differs from '%s' in upper and lower case only.",
                      ADMISSION_PATHS[i]);
            return false;
        }
    }
    return true;
}

static bool read_model(struct exchange *ex)
{
    const struct skim_span *span = &ex->skim.spans[SPAN_MODEL];
    if (span->type == SKIM_ABSENT || span->type == SKIM_NULL) {
        if (!ex->route->needs_model)
            return true;
        fail_body(ex, "missing_required_parameter", "Missing required parameter: '%s'.", "model");
        return false;
    }
    char *name = arena_alloc(ex->ctx.arena, MODEL_NAME_BYTES);
    size_t len = 0;
    if (!name || span->type != SKIM_STRING ||
        skim_string(buf_slice(&ex->body), span, name, MODEL_NAME_BYTES, &len) != GW_OK ||
        len == 0) {
        fail_body(ex, "invalid_type", "'%s' must be a string of 1 to 255 bytes.", "model");
        return false;
    }
    ex->ctx.model = slice_of(name, len);
    return true;
}

static bool is_flag(const struct skim_span *span)
{
    return span->type == SKIM_ABSENT || span->type == SKIM_NULL || span->type == SKIM_TRUE ||
           span->type == SKIM_FALSE;
}

static bool read_options(struct exchange *ex)
{
    const struct skim_span *spans = ex->skim.spans;
    if (!is_flag(&spans[SPAN_STREAM]) || !is_flag(&spans[SPAN_STORE]) ||
        !is_flag(&spans[SPAN_BACKGROUND])) {
        fail_body(ex, "invalid_type", "'%s' must be true or false.",
                  !is_flag(&spans[SPAN_STREAM])  ? "stream"
                  : !is_flag(&spans[SPAN_STORE]) ? "store"
                                                 : "background");
        return false;
    }
    ex->ctx.is_stream = ex->route->may_stream && spans[SPAN_STREAM].type == SKIM_TRUE;
    ex->has_include_usage = spans[SPAN_INCLUDE_USAGE].type == SKIM_TRUE;
    if (spans[SPAN_STREAM_OPTIONS].type != SKIM_ABSENT &&
        spans[SPAN_STREAM_OPTIONS].type != SKIM_NULL &&
        spans[SPAN_STREAM_OPTIONS].type != SKIM_OBJECT) {
        fail_body(ex, "invalid_type", "'%s' must be an object.", "stream_options");
        return false;
    }
    static const enum exchange_span LIMITS[] = {SPAN_MAX_COMPLETION_TOKENS, SPAN_MAX_OUTPUT_TOKENS,
                                                SPAN_MAX_TOKENS};
    for (size_t i = 0; i < sizeof LIMITS / sizeof *LIMITS; i++) {
        const struct skim_span *span = &spans[LIMITS[i]];
        if (span->type == SKIM_ABSENT || span->type == SKIM_NULL)
            continue;
        uint64_t limit;
        if (skim_u64(buf_slice(&ex->body), span, &limit) != GW_OK) {
            fail_body(ex, "invalid_type", "'%s' must be a whole number that is not negative.",
                      ADMISSION_PATHS[LIMITS[i]]);
            return false;
        }
        if (!ex->ctx.has_max_output || limit < ex->ctx.max_output)
            ex->ctx.max_output = limit;
        ex->ctx.has_max_output = true;
    }
    return true;
}

// The complete JSON body: grammar, the members we act on, their types.
static bool read_body(struct exchange *ex)
{
    if (ex->body.len == 0) {
        fail_body(ex, "invalid_json", "The request needs a JSON object as its body%s.", "");
        return false;
    }
    int err = skim_finish(&ex->skim);
    if (err != GW_OK) {
        struct slice message =
            arena_printf(ex->ctx.arena, "The request body is not valid JSON: %s at byte %llu.",
                         ex->skim.err_text ? ex->skim.err_text : gw_err_name(err),
                         (unsigned long long)ex->skim.err_offset);
        exchange_fail(ex, 400, "invalid_json",
                      message.ptr ? message.ptr : "The request body is not valid JSON.");
        return false;
    }
    if (ex->skim.root_type != SKIM_OBJECT) {
        fail_body(ex, "invalid_json", "The request body must be a JSON object%s.", "");
        return false;
    }
    ex->ctx.body = buf_slice(&ex->body);
    return check_members(ex) && read_model(ex) && read_options(ex);
}

void admission_on_complete(struct exchange *ex)
{
    ex->body_complete = true;
    if (ex->upload_started) {
        if (ex->fetch)
            fetch_write_end(ex->fetch);
        return;
    }
    if (ex->state != EXCHANGE_BODY) // identify still runs, or it is over
        return;
    if (ex->is_upload) {
        if (!ex->upload_ready)
            peek_upload(ex);
        return;
    }
    if (ex->route->kind == ROUTE_MODEL && !read_body(ex))
        return;
    ex->ctx.body = buf_slice(&ex->body);
    admit(ex);
}

// The key's own list of models, before any plugin is asked.
static bool key_may_use_model(const struct ctx *ctx)
{
    if (ctx->key.allowed_model_count == 0 || ctx->model.len == 0)
        return true;
    for (size_t i = 0; i < ctx->key.allowed_model_count; i++) {
        if (catalogue_matches(ctx->key.allowed_models[i], ctx->model))
            return true;
    }
    return false;
}

void admission_after_admit(struct exchange *ex)
{
    if (!key_may_use_model(&ex->ctx)) {
        struct slice message = arena_printf(ex->ctx.arena, "This key may not use the model '%.*s'.",
                                            SLICE_FMT(ex->ctx.model));
        exchange_fail(ex, 403, "model_not_allowed",
                      message.ptr ? message.ptr : "This key may not use this model.");
        return;
    }
    exchange_set_state(ex, EXCHANGE_SELECT);
    exchange_run_hook(ex, SCRIPT_SELECT);
}

// No candidate: says which of the possible reasons it is.
static void fail_without_candidates(struct exchange *ex)
{
    struct ctx *ctx = &ex->ctx;
    const struct catalogue *catalogue = catalogue_get(store_catalogue(ex->flow->options.store));
    bool is_served = false, is_native = false;
    for (size_t i = 0; i < catalogue->upstream_count; i++) {
        const struct upstream *upstream = &catalogue->upstreams[i];
        if (ctx->model.len && !catalogue_model_for(upstream, ctx->model, ctx->arena).ptr)
            continue;
        is_served = true;
        is_native = is_native || upstream->speaks[ctx->dialect];
    }
    if (ctx->op == DIALECT_OP_COUNT_TOKENS) {
        // No upstream counts for us: the documented estimate, so that clients can show a context.
        struct slice body = arena_printf(ctx->arena, "{\"input_tokens\":%llu}",
                                         (unsigned long long)estimate_input_tokens(ctx->body));
        ctx_flag(ctx, "estimated");
        ex->is_success = true;
        reply_whole(ex, 200, SLICE_LIT("application/json"), body);
        return;
    }
    if (ex->route->kind == ROUTE_STATEFUL) {
        exchange_fail(ex, 404, "not_found",
                      "This route keeps state at the provider and is not offered here; an operator "
                      "can pass it on by an upstream with passthrough = \"all\".");
        return;
    }
    if (catalogue->upstream_count == 0) {
        exchange_fail(ex, 503, "no_upstream",
                      "No upstream is configured. Add one: moongate upstream create --help.");
        return;
    }
    struct slice message;
    if (!is_served)
        message = arena_printf(ctx->arena,
                               "The model '%.*s' does not exist or you do not have "
                               "access to it. GET /v1/models lists those you may use.",
                               SLICE_FMT(ctx->model));
    else if (!is_native)
        message = arena_printf(ctx->arena, "No upstream serves the model '%.*s' by this API.",
                               SLICE_FMT(ctx->model));
    else
        message = arena_printf(ctx->arena,
                               "This key may not use an upstream that serves the model '%.*s'.",
                               SLICE_FMT(ctx->model));
    const char *text = message.ptr ? message.ptr : "No upstream for this model.";
    exchange_fail(ex, is_served && is_native ? 403 : 404,
                  is_served && is_native ? "upstream_not_allowed" : "model_not_found", text);
}

void admission_after_select(struct exchange *ex)
{
    if (ex->ctx.candidate_count == 0 && ex->ctx.attempt_count == 0) {
        fail_without_candidates(ex);
        return;
    }
    attempt_next(ex);
}
