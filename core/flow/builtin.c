// Answers that need no plugin: the model list, handshakes, refusals for paths that are none of
// ours. Errors are told in the dialect that the path suggests.
#include "base/clock.h"
#include "flow/exchange.h"
#include "state/catalogue.h"

#include <stdlib.h>

static bool has_wildcard(struct slice name)
{
    return memchr(name.ptr, '*', name.len) != NULL;
}

static bool key_sees(const struct ctx *ctx, const struct upstream *upstream, struct slice model)
{
    bool is_allowed = !ctx->key.has_upstream_list;
    for (size_t i = 0; i < ctx->key.upstream_count && !is_allowed; i++)
        is_allowed = ctx->key.upstream_ids[i] == upstream->id;
    if (!is_allowed)
        return false;
    if (ctx->key.allowed_model_count == 0)
        return true;
    for (size_t i = 0; i < ctx->key.allowed_model_count; i++) {
        if (catalogue_matches(ctx->key.allowed_models[i], model))
            return true;
    }
    return false;
}

struct model_row {
    struct slice id, owner;
    int64_t created_ms;
};
struct model_list {
    struct model_row *rows;
    size_t count, capacity;
};

static void add_row(struct exchange *ex, struct model_list *list, struct model_row row)
{
    for (size_t i = 0; i < list->count; i++) {
        if (slice_eq(list->rows[i].id, row.id))
            return;
    }
    if (list->count == list->capacity) {
        size_t capacity = list->capacity ? list->capacity * 2 : 64;
        struct model_row *rows = arena_alloc(ex->ctx.arena, capacity * sizeof *rows);
        if (!rows)
            return;
        if (list->count)
            memcpy(rows, list->rows, list->count * sizeof *rows);
        list->rows = rows;
        list->capacity = capacity;
    }
    list->rows[list->count++] = row;
}

static int by_id(const void *left, const void *right)
{
    struct slice a = ((const struct model_row *)left)->id;
    struct slice b = ((const struct model_row *)right)->id;
    int order = memcmp(a.ptr, b.ptr, a.len < b.len ? a.len : b.len);
    return order ? order : (a.len > b.len) - (a.len < b.len);
}

static void collect(struct exchange *ex, struct model_list *list)
{
    const struct catalogue *catalogue = catalogue_get(store_catalogue(ex->flow->options.store));
    for (size_t i = 0; i < catalogue->upstream_count; i++) {
        const struct upstream *upstream = &catalogue->upstreams[i];
        for (size_t k = 0; k < upstream->model_count; k++) {
            struct slice name = upstream->models[k].public_name;
            if (!has_wildcard(name) && key_sees(&ex->ctx, upstream, name))
                add_row(ex, list,
                        (struct model_row){name, upstream->provider, upstream->created_ms});
        }
    }
    size_t count = 0;
    const struct slice *own = script_models(ex->flow->script, &count);
    for (size_t i = 0; i < count; i++)
        add_row(ex, list,
                (struct model_row){own[i], SLICE_LIT("moongate"),
                                   ex->flow->options.shared->started_wall_ms});
    if (list->count)
        qsort(list->rows, list->count, sizeof *list->rows, by_id);
}

static void write_model(struct json_out *json, const struct model_row *row, bool is_claude)
{
    char time[32];
    json_object(json);
    json_key(json, "id");
    json_text(json, row->id);
    if (is_claude) {
        clock_format_iso(row->created_ms, time, sizeof time);
        json_key(json, "type");
        json_str(json, "model");
        json_key(json, "display_name");
        json_text(json, row->id);
        json_key(json, "created_at");
        json_str(json, time);
    } else {
        json_key(json, "object");
        json_str(json, "model");
        json_key(json, "created");
        json_i64(json, row->created_ms / 1000);
        json_key(json, "owned_by");
        json_text(json, row->owner);
    }
    json_object_end(json);
}

static void write_list(struct json_out *json, const struct model_list *list, bool is_claude)
{
    json_object(json);
    if (!is_claude) {
        json_key(json, "object");
        json_str(json, "list");
    }
    json_key(json, "data");
    json_array(json);
    for (size_t i = 0; i < list->count; i++)
        write_model(json, &list->rows[i], is_claude);
    json_array_end(json);
    if (is_claude) {
        json_key(json, "has_more");
        json_bool(json, false);
        json_key(json, "first_id");
        if (list->count)
            json_text(json, list->rows[0].id);
        else
            json_null(json);
        json_key(json, "last_id");
        if (list->count)
            json_text(json, list->rows[list->count - 1].id);
        else
            json_null(json);
    }
    json_object_end(json);
}

// GET /v1/models and /v1/models/{id}: the union of what the key may use, in the caller's shape.
void builtin_models(struct exchange *ex)
{
    bool is_claude = http1_header(ex->ctx.request, "anthropic-version").ptr != NULL;
    struct model_list list = {NULL, 0, 0};
    struct json_out json;
    struct buf *out = &ex->flow->scratch;
    struct slice id = slice_from(ex->path, strlen("/v1/models/"));
    ex->is_unlogged = true;
    collect(ex, &list);
    buf_clear(out);
    json_begin(&json, out);
    if (ex->path.len <= strlen("/v1/models/")) {
        write_list(&json, &list, is_claude);
    } else {
        struct slice name;
        const struct model_row *found = NULL;
        if (url_decode(id, false, ex->ctx.arena, &name) == GW_OK) {
            for (size_t i = 0; i < list.count && !found; i++)
                found = slice_eq(list.rows[i].id, name) ? &list.rows[i] : NULL;
        }
        if (!found) {
            struct slice message =
                arena_printf(ex->ctx.arena, "The model '%.*s' does not exist.", SLICE_FMT(id));
            exchange_fail(ex, 404, "model_not_found",
                          message.ptr ? message.ptr : "The model does not exist.");
            return;
        }
        write_model(&json, found, is_claude);
    }
    if (json_end(&json) != GW_OK) {
        exchange_fail(ex, 503, "out_of_memory", "The gateway is out of memory; retry later.");
        return;
    }
    ex->is_success = true;
    reply_whole(ex, 200, SLICE_LIT("application/json"), buf_slice(out));
}

// A refusal without an exchange, in the dialect of the path (plain JSON where there is none).
void builtin_refuse(struct flow *flow, struct http1_stream *stream, int status, const char *code,
                    const char *message, struct slice allow)
{
    const struct http1_request *request = http1_request(stream);
    struct buf *out = &flow->scratch;
    struct http1_header headers[16];
    struct gw_id id;
    char id_text[37] = "";
    size_t count = 0;
    if (id_new(&id) == GW_OK)
        id_format(&id, id_text);
    buf_clear(out);
    const char *type =
        builtin_render_refusal(flow, request, status, code, message, slice_str(id_text), out);
    headers[count++] = (struct http1_header){SLICE_LIT("content-type"), slice_str(type)};
    headers[count++] = (struct http1_header){SLICE_LIT("x-request-id"), slice_str(id_text)};
    headers[count++] = (struct http1_header){SLICE_LIT("request-id"), slice_str(id_text)};
    headers[count++] = (struct http1_header){
        SLICE_LIT("x-should-retry"), status >= 500 ? SLICE_LIT("true") : SLICE_LIT("false")};
    if (allow.len)
        headers[count++] = (struct http1_header){SLICE_LIT("allow"), allow};
    if (status == 503)
        headers[count++] = (struct http1_header){SLICE_LIT("retry-after"), SLICE_LIT("1")};
    if (status == 426)
        headers[count++] = (struct http1_header){SLICE_LIT("upgrade"), SLICE_LIT("HTTP/1.1")};
    count += reply_cors_headers(flow->options.conf, request, false, headers + count, 16 - count,
                                request->arena);
    metrics_request(flow, "refused", request->method_text, status, false, 0);
    if (http1_respond(stream, status, headers, count, buf_slice(out)) != GW_OK)
        http1_abort(stream, "answer could not be sent");
}

const char *builtin_render_refusal(struct flow *flow, const struct http1_request *request,
                                   int status, const char *code, const char *message,
                                   struct slice request_id, struct buf *out)
{
    enum dialect_id id = DIALECT_NONE;
    if (request && request->path.len)
        id = router_error_dialect(request->path, flow->options.conf->proxy_prefix,
                                  http1_header(request, "anthropic-version").ptr != NULL);
    struct dialect_error error = {.status = status,
                                  .code = slice_str(code),
                                  .message = slice_str(message),
                                  .request_id = request_id,
                                  .retry_after_ms = -1};
    const struct dialect *dialect = dialect_get(id == DIALECT_NONE ? DIALECT_OPENAI : id);
    if (dialect->render_error(&error, out) != GW_OK)
        buf_clear(out);
    return "application/json";
}

static struct slice allowed_methods(const struct route *route, struct arena *arena)
{
    static const struct {
        enum http1_method method;
        const char *name;
    } NAMES[] = {{HTTP1_GET, "GET"}, {HTTP1_HEAD, "HEAD"},   {HTTP1_POST, "POST"},
                 {HTTP1_PUT, "PUT"}, {HTTP1_PATCH, "PATCH"}, {HTTP1_DELETE, "DELETE"}};
    struct slice text = SLICE_LIT("OPTIONS");
    for (size_t i = 0; i < sizeof NAMES / sizeof *NAMES; i++) {
        if (router_allows(route, NAMES[i].method))
            text = arena_printf(arena, "%.*s, %s", SLICE_FMT(text), NAMES[i].name);
    }
    return text.ptr ? text : SLICE_LIT("OPTIONS");
}

static void serve_options(struct flow *flow, struct http1_stream *stream, struct slice allow)
{
    const struct http1_request *request = http1_request(stream);
    struct http1_header headers[12];
    size_t count =
        reply_cors_headers(flow->options.conf, request, true, headers, 11, request->arena);
    if (allow.len)
        headers[count++] = (struct http1_header){SLICE_LIT("allow"), allow};
    if (http1_respond(stream, 204, headers, count, SLICE_LIT("")) != GW_OK)
        http1_abort(stream, "answer could not be sent");
}

// A base URL that ends in /v1, given to a client that adds it: tells the right path.
static void refuse_double_v1(struct flow *flow, struct http1_stream *stream)
{
    const struct http1_request *request = http1_request(stream);
    long at = slice_find(request->path, SLICE_LIT("/v1/v1"));
    size_t head = at > 0 ? (size_t)at : 0;
    struct slice rest = slice_from(request->path, head + strlen("/v1"));
    struct slice message =
        arena_printf(request->arena,
                     "The path has /v1 twice: set the client's base URL without the last /v1. The "
                     "right path is %.*s%.*s.",
                     SLICE_FMT(slice_of(request->path.ptr, head)), SLICE_FMT(rest));
    builtin_refuse(flow, stream, 404, "not_found",
                   message.ptr ? message.ptr : "The path has /v1 twice.", SLICE_LIT(""));
}

// With a listener of its own for the operator, the public one tells strangers only whether the
// gateway is ready (SURFACES §0.2 ADMIN_LISTEN). True when it was answered here.
static bool serve_operations(struct flow *flow, struct http1_stream *stream)
{
    const struct http1_request *request = http1_request(stream);
    if (flow->options.conf->admin_listen.len == 0 || request->listener_tag != FLOW_LISTENER_PUBLIC)
        return false;
    if (slice_is(request->path, "/metrics")) {
        builtin_refuse(flow, stream, 404, "not_found", "There is nothing at this path.",
                       SLICE_NONE);
        return true;
    }
    if (!slice_is(request->path, "/readyz"))
        return false;
    bool is_ready = false;
    buf_clear(&flow->scratch);
    if (process_ready(flow, &flow->scratch, &is_ready) != GW_OK)
        is_ready = false;
    struct http1_header type = {SLICE_LIT("content-type"), SLICE_LIT("application/json")};
    struct slice body = is_ready ? SLICE_LIT("{\"status\":\"ready\"}\n")
                                 : SLICE_LIT("{\"status\":\"unavailable\"}\n");
    if (http1_respond(stream, is_ready ? 200 : 503, &type, 1, body) != GW_OK)
        http1_abort(stream, "answer could not be sent");
    return true;
}

// True when the request was answered here.
bool builtin_serve(struct flow *flow, struct http1_stream *stream, const struct route *route)
{
    const struct http1_request *request = http1_request(stream);
    bool is_own = route->kind != ROUTE_NONE;
    if (request->method == HTTP1_OPTIONS) {
        struct slice allow = SLICE_LIT("");
        if (is_own)
            allow = allowed_methods(route, request->arena);
        else
            (void)script_route_find(flow->script, HTTP1_OPTIONS, request->path, &allow);
        serve_options(flow, stream, allow);
        return true;
    }
    if (request->is_websocket_upgrade) {
        builtin_refuse(flow, stream, 426, "upgrade_required",
                       "WebSocket is not offered here; send the same request as POST and read "
                       "server-sent events.",
                       SLICE_LIT(""));
        return true;
    }
    if (serve_operations(flow, stream))
        return true;
    switch (route->kind) {
    case ROUTE_HELLO: {
        struct http1_header type = {SLICE_LIT("content-type"), SLICE_LIT("application/json")};
        if (http1_respond(stream, 200, &type, 1, SLICE_LIT("{\"status\":\"ok\"}\n")) != GW_OK)
            http1_abort(stream, "answer could not be sent");
        return true;
    }
    case ROUTE_DOUBLE_V1: refuse_double_v1(flow, stream); return true;
    case ROUTE_UNKNOWN_V1: return false; // a plugin may have it
    case ROUTE_MODEL:
    case ROUTE_MODELS:
        if (!router_allows(route, request->method)) {
            builtin_refuse(flow, stream, 405, "method_not_allowed",
                           "This path does not take this method.",
                           allowed_methods(route, request->arena));
            return true;
        }
        return false;
    default: return false;
    }
}
