#include "flow/probe.h"

#include "flow/exchange.h"
#include "state/catalogue.h"

#include <stdlib.h>

struct probe {
    struct flow *flow;
    struct fetch *fetch;
    struct arena *arena;
    probe_cb on_result;
    void *user;
    uint64_t started_ms;
    int status;
};

static void free_probe(struct probe *probe)
{
    arena_free(probe->arena);
    free(probe);
}

static void on_head(void *user, int status, const struct http1_header *headers, size_t count)
{
    struct probe *probe = user;
    (void)headers;
    (void)count;
    probe->status = status;
}

static enum fetch_verdict on_body(void *user, struct slice bytes)
{
    (void)user;
    (void)bytes;
    return FETCH_CONSUMED;
}

static void on_done(void *user, int err, const struct fetch_info *info)
{
    struct probe *probe = user;
    uint64_t now = loop_now_ms(probe->flow->options.loop);
    struct slice error = SLICE_LIT("");
    if (err && probe->status == 0)
        error = slice_str(info->detail[0] ? info->detail : gw_err_name(err));
    probe->on_result(probe->user, probe->status, (uint32_t)(now - probe->started_ms), error);
    free_probe(probe);
}

static const struct fetch_handler HANDLER = {
    .on_head = on_head, .on_body = on_body, .on_done = on_done};

static int start(struct probe *probe, const struct upstream *upstream)
{
    const struct conf *conf = probe->flow->options.conf;
    struct ctx ctx = {.arena = probe->arena};
    struct http1_header headers[16];
    size_t count = 0;
    struct fetch_request request = {
        .method = SLICE_LIT("GET"),
        .trust = upstream->is_user_account ? FETCH_USER : FETCH_OPERATOR,
        .trust_id = upstream->owner_user_id,
        .check_address = upstream->is_user_account,
        .allowed_private = conf->allowed_private_hosts.items,
        .allowed_private_count = conf->allowed_private_hosts.count,
        .body_length = -1,
        .max_body_bytes = 16u << 20,
        .timers = {.connect_ms = (uint32_t)conf->connect_timeout_ms,
                   .tls_ms = (uint32_t)conf->tls_timeout_ms,
                   .first_byte_ms = 15000,
                   .idle_ms = 15000,
                   .total_ms = 20000},
    };
    script_bind(probe->flow->script, &ctx);
    const struct quirk *quirk = script_quirk(&ctx, upstream->provider);
    for (size_t i = 0; i < quirk->default_header_count && count < 14; i++)
        headers[count++] = quirk->default_headers[i];
    struct slice auth = SLICE_NONE;
    if (upstream->api_key) {
        struct slice key = secret_reveal(upstream->api_key);
        auth =
            arena_printf(probe->arena, "%.*s%.*s", SLICE_FMT(quirk->auth_prefix), SLICE_FMT(key));
        headers[count++] = (struct http1_header){quirk->auth_header, auth};
    }
    request.headers = headers;
    request.header_count = count;
    int err = url_join(upstream->base_url, SLICE_LIT("/v1/models"), SLICE_NONE, probe->arena,
                       &request.url);
    if (!err)
        err = fetch_start(probe->flow->options.fetcher, &request, &HANDLER, probe, &probe->fetch);
    if (auth.ptr)
        secret_zero((void *)(uintptr_t)auth.ptr, auth.len);
    script_release(&ctx);
    return err;
}

void probe_start(struct flow *flow, struct slice upstream_name, probe_cb on_result, void *user,
                 struct probe **out)
{
    *out = NULL;
    const struct catalogue *catalogue = catalogue_get(store_catalogue(flow->options.store));
    const struct upstream *upstream = catalogue_upstream_named(catalogue, upstream_name);
    if (!upstream) {
        on_result(user, 0, 0, SLICE_LIT("there is no active upstream of this name"));
        return;
    }
    struct probe *probe = calloc(1, sizeof *probe);
    struct arena *arena = arena_new(4096);
    if (!probe || !arena) {
        free(probe);
        arena_free(arena);
        on_result(user, 0, 0, SLICE_LIT("out of memory"));
        return;
    }
    arena_set_wiped(arena);
    *probe = (struct probe){.flow = flow,
                            .arena = arena,
                            .on_result = on_result,
                            .user = user,
                            .started_ms = loop_now_ms(flow->options.loop)};
    int err = start(probe, upstream);
    if (err) {
        free_probe(probe);
        on_result(user, 0, 0, slice_str(gw_err_name(err)));
        return;
    }
    *out = probe;
}

void probe_cancel(struct probe *probe)
{
    fetch_cancel(probe->fetch);
    free_probe(probe);
}
