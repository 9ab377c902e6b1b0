// The outgoing request of one attempt: URL, headers, body. The client's bytes stay; what has to
// change (model name, include_usage, a provider's quirks, prepare hooks) becomes splices.
#include "flow/exchange.h"
#include "state/catalogue.h"

// Client headers that go upstream; credentials and hop-by-hop fields never do.
static const struct slice FORWARDED[] = {
    SLICE_CONST("accept"),          SLICE_CONST("content-type"),
    SLICE_CONST("user-agent"),      SLICE_CONST("anthropic-version"),
    SLICE_CONST("anthropic-beta"),  SLICE_CONST("openai-beta"),
    SLICE_CONST("idempotency-key"), SLICE_CONST("x-client-request-id"),
    SLICE_CONST("traceparent"),     SLICE_CONST("tracestate"),
    SLICE_CONST("session-id"),      SLICE_CONST("x-session-affinity"),
    SLICE_CONST("conversation-id"), SLICE_CONST("anthropic-dangerous-direct-browser-access"),
};

// Never sent on, whatever a quirk's forward list says.
static bool is_reserved(struct slice name)
{
    static const char *const RESERVED[] = {"authorization",
                                           "x-api-key",
                                           "api-key",
                                           "cookie",
                                           "host",
                                           "content-length",
                                           "transfer-encoding",
                                           "connection",
                                           "expect",
                                           "accept-encoding",
                                           "proxy-authorization",
                                           "te",
                                           "trailer",
                                           "upgrade",
                                           "keep-alive"};
    for (size_t i = 0; i < sizeof RESERVED / sizeof *RESERVED; i++) {
        if (slice_is_nocase(name, RESERVED[i]))
            return true;
    }
    return false;
}

static struct http1_header *header_find(struct header_list *list, struct slice name)
{
    for (size_t i = 0; i < list->count; i++) {
        if (list->items[i].name.len == name.len &&
            strncasecmp(list->items[i].name.ptr, name.ptr, name.len) == 0)
            return &list->items[i];
    }
    return NULL;
}

static void header_set(struct header_list *list, struct slice name, struct slice value)
{
    struct http1_header *same = header_find(list, name);
    if (same) {
        same->value = value;
        return;
    }
    if (list->count == HEADER_LIST_MAX) {
        list->is_full = true;
        return;
    }
    list->items[list->count++] = (struct http1_header){name, value};
}

static void header_drop(struct header_list *list, struct slice name)
{
    struct http1_header *found = header_find(list, name);
    if (found)
        *found = list->items[--list->count];
}

static bool is_forwarded(const struct quirk *quirk, struct slice name)
{
    for (size_t i = 0; i < sizeof FORWARDED / sizeof *FORWARDED; i++) {
        if (slice_eq(name, FORWARDED[i]))
            return true;
    }
    for (size_t i = 0; i < quirk->forward_count; i++) {
        if (slice_eq(name, quirk->forward[i]))
            return !is_reserved(name);
    }
    return false;
}

// The client's headers that go on, in its order. Several fields of one name (anthropic-beta) become
// one list.
static void forward(struct exchange *ex, struct header_list *list)
{
    const struct http1_request *request = ex->ctx.request;
    for (size_t i = 0; i < request->header_count; i++) {
        const struct http1_header *header = &request->headers[i];
        if (!is_forwarded(ex->quirk, header->name))
            continue;
        struct http1_header *same = header_find(list, header->name);
        if (!same) {
            header_set(list, header->name, header->value);
            continue;
        }
        const struct slice parts[] = {same->value, SLICE_LIT(","), header->value};
        same->value = arena_join(ex->ctx.arena, parts, 3);
    }
}

static int build_headers(struct exchange *ex, const struct upstream *upstream,
                         struct header_list *list)
{
    const struct quirk *quirk = ex->quirk;
    struct arena *arena = ex->ctx.arena;
    forward(ex, list);
    for (size_t i = 0; i < quirk->default_header_count; i++) {
        if (!header_find(list, quirk->default_headers[i].name))
            header_set(list, quirk->default_headers[i].name, quirk->default_headers[i].value);
    }
    if (ex->is_json &&
        ex->route->kind == ROUTE_MODEL) // it was read as JSON, whatever it was called
        header_set(list, SLICE_LIT("content-type"), SLICE_LIT("application/json"));
    for (size_t i = 0; i < quirk->set_header_count; i++)
        header_set(list, quirk->set_headers[i].name, quirk->set_headers[i].value);
    for (size_t i = 0; i < quirk->drop_header_count; i++)
        header_drop(list, quirk->drop_headers[i]);
    const struct ctx_outgoing *outgoing = &ex->ctx.outgoing;
    for (size_t i = 0; i < outgoing->header_count; i++) {
        if (is_reserved(outgoing->headers[i].name))
            continue;
        if (outgoing->headers[i].value.ptr)
            header_set(list, outgoing->headers[i].name, outgoing->headers[i].value);
        else
            header_drop(list, outgoing->headers[i].name);
    }
    if (upstream->api_key) {
        struct slice key = secret_reveal(upstream->api_key);
        const struct slice parts[] = {quirk->auth_prefix, key};
        struct slice value = arena_join(arena, parts, 2);
        if (!value.ptr)
            return GW_ENOMEM;
        ex->auth_value = value;
        header_set(list, quirk->auth_header, value);
    }
    return list->is_full ? GW_EFULL : GW_OK;
}

// All paths whose places an edit may need: the quirk's and the hooks'.
struct edit_paths {
    const char *names[SKIM_MAX_PATHS];
    size_t count;
};

static int path_index(struct edit_paths *paths, struct slice path, struct arena *arena)
{
    for (size_t i = 0; i < paths->count; i++) {
        if (slice_is(path, paths->names[i]))
            return (int)i;
    }
    char *name = paths->count < SKIM_MAX_PATHS ? arena_copyz(arena, path) : NULL;
    if (!name)
        return GW_EFULL;
    paths->names[paths->count] = name;
    return (int)paths->count++;
}

static struct slice parent_of(struct slice path)
{
    for (size_t i = path.len; i > 0; i--) {
        if (path.ptr[i - 1] == '.')
            return slice_of(path.ptr, i - 1);
    }
    return SLICE_NONE;
}

static struct slice leaf_of(struct slice path)
{
    struct slice parent = parent_of(path);
    return parent.ptr ? slice_from(path, parent.len + 1) : path;
}

// Adds a member below its parent; nothing when the parent is not an object.
static int add_below(struct exchange *ex, struct patch *patch, const struct skim *skim,
                     struct edit_paths *paths, struct slice path, struct slice json)
{
    struct slice parent = parent_of(path);
    if (!parent.ptr)
        return patch_add_member(patch, skim->root_start, false, leaf_of(path), json);
    int index = path_index(paths, parent, ex->ctx.arena);
    if (index < 0 || skim->spans[index].type != SKIM_OBJECT)
        return index < 0 ? index : GW_OK;
    return patch_add_member(patch, skim->spans[index].start, skim->spans[index].child_count == 0,
                            leaf_of(path), json);
}

static int quoted(struct arena *arena, struct slice text, struct slice *out)
{
    struct buf buf = BUF_INIT(1u << 20);
    int err = json_quote(&buf, text);
    if (err == GW_OK) {
        *out = arena_copy(arena, buf_slice(&buf));
        err = out->ptr ? GW_OK : GW_ENOMEM;
    }
    buf_free(&buf);
    return err;
}

static int apply_edit(struct exchange *ex, struct patch *patch, const struct skim *skim,
                      struct edit_paths *paths, enum ctx_edit_kind kind, struct slice path,
                      struct slice value)
{
    int index = path_index(paths, path, ex->ctx.arena);
    if (index < 0)
        return index;
    const struct skim_span *span = &skim->spans[index];
    if (kind == CTX_EDIT_DROP)
        return span->type == SKIM_ABSENT ? GW_OK : patch_remove_member(patch, ex->ctx.body, span);
    if (kind == CTX_EDIT_SET)
        return span->type == SKIM_ABSENT ? add_below(ex, patch, skim, paths, path, value)
                                         : patch_set_value(patch, span, value);
    if (span->type == SKIM_ABSENT)
        return GW_OK;
    // A new name for the same value: only the name's bytes change.
    struct slice body = slice_from(ex->ctx.body, (size_t)span->key_start);
    size_t name_len = 1;
    while (name_len < body.len && body.ptr[name_len] != '"')
        name_len += body.ptr[name_len] == '\\' ? 2 : 1;
    struct slice name;
    int err = quoted(ex->ctx.arena, value, &name);
    return err ? err : patch_replace(patch, span->key_start, name_len + 1, name);
}

static int apply_edits(struct exchange *ex, struct patch *patch)
{
    const struct quirk *quirk = ex->quirk;
    const struct ctx_outgoing *outgoing = &ex->ctx.outgoing;
    if (quirk->drop_field_count + quirk->rename_field_count + quirk->default_field_count +
            outgoing->edit_count ==
        0)
        return GW_OK;
    struct arena *arena = ex->ctx.arena;
    struct edit_paths paths = {.count = 0};
    int err = GW_OK;
    // First all paths, then one scan, then the splices.
    for (size_t i = 0; i < quirk->drop_field_count && err >= 0; i++)
        err = path_index(&paths, quirk->drop_fields[i], arena);
    for (size_t i = 0; i < quirk->rename_field_count && err >= 0; i++)
        err = path_index(&paths, quirk->rename_fields[i].path, arena);
    for (size_t i = 0; i < quirk->default_field_count && err >= 0; i++)
        err = path_index(&paths, quirk->default_fields[i].path, arena);
    for (size_t i = 0; i < outgoing->edit_count && err >= 0; i++) {
        err = path_index(&paths, outgoing->edits[i].path, arena);
        struct slice parent = parent_of(outgoing->edits[i].path);
        if (err >= 0 && parent.ptr)
            err = path_index(&paths, parent, arena);
    }
    if (err < 0)
        return err;
    struct skim *skim = arena_alloc(arena, sizeof *skim);
    struct skim_plan *plan = arena_alloc(arena, sizeof *plan);
    if (!skim || !plan)
        return GW_ENOMEM;
    struct skim_spec spec = {.paths = paths.names, .path_count = paths.count, .plan = plan};
    err = skim_whole(skim, &spec, ex->ctx.body);
    for (size_t i = 0; i < quirk->drop_field_count && !err; i++)
        err = apply_edit(ex, patch, skim, &paths, CTX_EDIT_DROP, quirk->drop_fields[i], SLICE_NONE);
    for (size_t i = 0; i < quirk->rename_field_count && !err; i++)
        err = apply_edit(ex, patch, skim, &paths, CTX_EDIT_RENAME, quirk->rename_fields[i].path,
                         quirk->rename_fields[i].value);
    for (size_t i = 0; i < quirk->default_field_count && !err; i++) {
        int index = path_index(&paths, quirk->default_fields[i].path, arena);
        if (index >= 0 && skim->spans[index].type == SKIM_ABSENT)
            err = add_below(ex, patch, skim, &paths, quirk->default_fields[i].path,
                            quirk->default_fields[i].value);
    }
    for (size_t i = 0; i < outgoing->edit_count && !err; i++)
        err = apply_edit(ex, patch, skim, &paths, outgoing->edits[i].kind, outgoing->edits[i].path,
                         outgoing->edits[i].value);
    return err;
}

// include_usage is asked for in every OpenAI stream, for metering; the chunk it brings is taken out
// again when the client did not ask.
static int inject_usage(struct exchange *ex, struct patch *patch)
{
    ex->is_injected = false;
    bool is_openai_stream = ex->ctx.is_stream &&
                            (ex->ctx.op == DIALECT_OP_CHAT || ex->ctx.op == DIALECT_OP_COMPLETIONS);
    if (!is_openai_stream || ex->has_include_usage ||
        ex->quirk->stream_usage != QUIRK_STREAM_USAGE_INJECT)
        return GW_OK;
    ex->is_injected = true;
    const struct skim_span *options = &ex->skim.spans[SPAN_STREAM_OPTIONS];
    const struct skim_span *include = &ex->skim.spans[SPAN_INCLUDE_USAGE];
    if (include->type != SKIM_ABSENT)
        return patch_set_value(patch, include, SLICE_LIT("true"));
    if (options->type == SKIM_OBJECT)
        return patch_add_member(patch, options->start, options->child_count == 0,
                                SLICE_LIT("include_usage"), SLICE_LIT("true"));
    if (options->type == SKIM_NULL)
        return patch_set_value(patch, options, SLICE_LIT("{\"include_usage\":true}"));
    return patch_add_member(patch, ex->skim.root_start, false, SLICE_LIT("stream_options"),
                            SLICE_LIT("{\"include_usage\":true}"));
}

size_t request_upload_pieces(const struct exchange *ex, struct slice pieces[3])
{
    struct slice body = buf_slice(&ex->body);
    if (ex->model_len == 0 || slice_eq(ex->ctx.upstream.model, ex->ctx.model)) {
        pieces[0] = body;
        return 1;
    }
    pieces[0] = slice_of(body.ptr, ex->model_at);
    pieces[1] = ex->ctx.upstream.model;
    pieces[2] = slice_from(body, ex->model_at + ex->model_len);
    return 3;
}

static int build_upload(struct exchange *ex, struct fetch_request *request)
{
    struct slice *pieces = arena_alloc(ex->ctx.arena, 3 * sizeof *pieces);
    if (!pieces)
        return GW_ENOMEM;
    size_t count = request_upload_pieces(ex, pieces);
    int64_t grows = count == 3 ? (int64_t)pieces[1].len - (int64_t)ex->model_len : 0;
    if (ex->is_spooled) {
        request->body = pieces;
        request->body_count = count;
        request->body_length = (int64_t)ex->body.len + grows;
        return GW_OK;
    }
    request->is_streamed = true;
    int64_t length = ex->ctx.request->content_length;
    request->body_length = length < 0 ? -1 : length + grows;
    return GW_OK;
}

static int build_body(struct exchange *ex, struct fetch_request *request)
{
    if (ex->is_upload)
        return build_upload(ex, request);
    if (ex->body.len == 0)
        return GW_OK;
    struct patch patch;
    patch_init(&patch, ex->ctx.arena);
    int err = GW_OK;
    if (ex->route->kind == ROUTE_MODEL) {
        const struct skim_span *model = &ex->skim.spans[SPAN_MODEL];
        if (model->type == SKIM_STRING && !slice_eq(ex->ctx.upstream.model, ex->ctx.model)) {
            struct slice name;
            err = quoted(ex->ctx.arena, ex->ctx.upstream.model, &name);
            if (!err)
                err = patch_set_value(&patch, model, name);
        }
        if (!err)
            err = inject_usage(ex, &patch);
        if (!err)
            err = apply_edits(ex, &patch);
    }
    struct slice *pieces;
    size_t count;
    if (!err)
        err = patch_pieces(&patch, ex->ctx.body, &pieces, &count);
    if (err)
        return err;
    request->body = pieces;
    request->body_count = count;
    request->body_length = (int64_t)patch_length(&patch, ex->ctx.body);
    return GW_OK;
}

static int build_url(struct exchange *ex, const struct upstream *upstream, struct slice *url)
{
    struct arena *arena = ex->ctx.arena;
    struct slice path = ex->path, query = ex->ctx.request->query;
    const struct quirk *quirk = ex->quirk;
    struct slice template = quirk->paths[ex->ctx.op];
    int err = GW_OK;
    if (template.len)
        err = quirk_expand(template, ex->ctx.upstream.model, upstream->config_json, arena, &path);
    if (!err && quirk->query.len) {
        struct slice own;
        err =
            quirk_expand(quirk->query, ex->ctx.upstream.model, upstream->config_json, arena, &own);
        if (!err)
            query = query.ptr && query.len
                        ? arena_printf(arena, "%.*s&%.*s", SLICE_FMT(own), SLICE_FMT(query))
                        : own;
    }
    if (ex->ctx.outgoing.path.ptr)
        path = ex->ctx.outgoing.path;
    if (ex->ctx.outgoing.query.ptr)
        query = ex->ctx.outgoing.query;
    return err ? err : url_join(upstream->base_url, path, query, arena, url);
}

// "600" or "0.5" of x-stainless-timeout, in ms; 0 when absent or absurd.
static uint32_t client_patience_ms(const struct http1_request *request)
{
    struct slice value = http1_header(request, "x-stainless-timeout");
    uint32_t ms = 0, place = 1000; // what a digit at this place stands for; 1000: whole seconds
    for (size_t i = 0; i < value.len; i++) {
        char c = value.ptr[i];
        if (c == '.' && place == 1000 && i > 0)
            place = 100;
        else if (c < '0' || c > '9')
            return 0;
        else if (place == 1000)
            ms = ms * 10 + (uint32_t)(c - '0') * 1000;
        else {
            ms += (uint32_t)(c - '0') * place;
            place /= 10;
        }
        if (ms > 3600u * 1000u)
            return 0;
    }
    return ms;
}

static void set_timers(struct exchange *ex, const struct upstream *upstream,
                       struct fetch_timers *timers)
{
    const struct conf *conf = ex->flow->options.conf;
    timers->connect_ms =
        upstream->connect_ms ? upstream->connect_ms : (uint32_t)conf->connect_timeout_ms;
    timers->tls_ms = upstream->tls_ms ? upstream->tls_ms : (uint32_t)conf->tls_timeout_ms;
    uint32_t patience = client_patience_ms(ex->ctx.request);
    if (upstream->first_byte_ms)
        timers->first_byte_ms = upstream->first_byte_ms;
    else if (ex->ctx.is_stream)
        timers->first_byte_ms = (uint32_t)conf->first_byte_stream_ms;
    else
        timers->first_byte_ms = patience ? patience : (uint32_t)conf->first_byte_unary_ms;
    timers->idle_ms = upstream->event_ms ? upstream->event_ms : (uint32_t)conf->event_timeout_ms;
}

int request_build(struct exchange *ex, const struct upstream *upstream,
                  struct fetch_request *request)
{
    const struct conf *conf = ex->flow->options.conf;
    memset(request, 0, sizeof *request);
    // fetch_start copies them, so that one list serves all exchanges of the worker.
    struct header_list *list = &ex->flow->outgoing_headers;
    list->count = 0;
    list->is_full = false;
    request->body_length = -1;
    int err = build_headers(ex, upstream, list);
    if (!err)
        err = build_url(ex, upstream, &request->url);
    if (!err)
        err = build_body(ex, request);
    if (err)
        return err;
    request->method = ex->ctx.request->method_text;
    request->headers = list->items;
    request->header_count = list->count;
    request->trust = upstream->is_user_account ? FETCH_USER : FETCH_OPERATOR;
    request->trust_id = upstream->is_user_account ? upstream->owner_user_id : 0;
    request->check_address = upstream->is_user_account;
    request->allowed_private = conf->allowed_private_hosts.items;
    request->allowed_private_count = conf->allowed_private_hosts.count;
    set_timers(ex, upstream, &request->timers);
    return GW_OK;
}

void request_forget_secrets(struct exchange *ex)
{
    if (ex->auth_value.ptr)
        secret_zero((void *)(uintptr_t)ex->auth_value.ptr, ex->auth_value.len);
    ex->auth_value = SLICE_NONE;
}
