#pragma once
// A script with one worker over a real store, loop and fetcher, plugins from inline texts, and a
// host that notes what it was told.
#include "base/clock.h"
#include "base/epoch.h"
#include "base/log.h"
#include "base/slab.h"
#include "io/fetch.h"
#include "io/resolver.h"
#include "script/plugin.h"
#include "script/runtime.h"
#include "script/script.h"
#include "unit/state/store_test.h"
#include <check.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

struct bench {
    struct test_store store;
    struct epoch_reader *reader;
    struct loop *loop;
    struct resolver *resolver;
    struct fetcher *fetcher;
    struct kv *kv;
    struct stats *stats;
    struct script *script;
    struct slab *slab;
    struct conf_plugin plugins[8];
    char names[8][32], texts[8][64];
    // what the host was told
    int hook_calls, answer_ends, answer_err, route_calls, route_status;
    enum script_hook hook;
    enum script_outcome outcome;
    struct buf events; // "text:hello|finish:0|"
    struct buf route_body, route_headers;
    int event_result; // what on_answer_event says
    void (*reload_done)(void *arg, int err, struct slice problems);
    void *reload_arg;
};
static struct bench bench;

static void bench_on_hook(struct ctx *ctx, enum script_hook hook, enum script_outcome outcome)
{
    (void)ctx;
    bench.hook_calls++;
    bench.hook = hook;
    bench.outcome = outcome;
}

static int bench_on_event(struct ctx *ctx, const struct event *event)
{
    static const char *const KINDS[] = {"start", "open",   "delta", "close",
                                        "usage", "finish", "error"};
    (void)ctx;
    ck_assert_int_eq(buf_printf(&bench.events, "%s:%u:%.*s|", KINDS[event->kind], event->index,
                                SLICE_FMT(event->text)),
                     0);
    return bench.event_result;
}

static void bench_on_answer_end(struct ctx *ctx, int err)
{
    (void)ctx;
    bench.answer_ends++;
    bench.answer_err = err;
}

static void bench_on_route(void *user, int status, const struct http1_header *headers, size_t count,
                           struct slice body)
{
    (void)user;
    bench.route_calls++;
    bench.route_status = status;
    buf_clear(&bench.route_body);
    buf_clear(&bench.route_headers);
    ck_assert_int_eq(buf_append(&bench.route_body, body), 0);
    ck_assert_int_eq(buf_append_char(&bench.route_body, '\0'), 0);
    for (size_t i = 0; i < count; i++)
        ck_assert_int_eq(buf_printf(&bench.route_headers, "%.*s=%.*s|", SLICE_FMT(headers[i].name),
                                    SLICE_FMT(headers[i].value)),
                         0);
    ck_assert_int_eq(buf_append_char(&bench.route_headers, '\0'), 0);
}

struct exchange {
    struct ctx ctx; // first
    struct http1_request request;
    struct http1_header headers[8];
};

static struct ctx *bench_find(void *user, struct slab_handle handle)
{
    (void)user;
    struct exchange *exchange = slab_get(bench.slab, handle);
    return exchange ? &exchange->ctx : NULL;
}

static int bench_reload(void *user, void (*done)(void *, int, struct slice), void *arg)
{
    (void)user;
    bench.reload_done = done;
    bench.reload_arg = arg;
    return 0;
}

static int bench_info(void *user, struct buf *out)
{
    (void)user;
    return buf_append_str(out, "{\"pid\":7}");
}

static int bench_ready(void *user, struct buf *out, bool *is_ready)
{
    (void)user;
    *is_ready = true;
    return buf_append_str(out, "{\"reasons\":[]}");
}

static int bench_metrics(void *user, struct buf *out)
{
    (void)user;
    return stats_render(bench.stats, out);
}

static const struct script_host bench_host = {
    .on_hook = bench_on_hook,
    .on_answer_event = bench_on_event,
    .on_answer_end = bench_on_answer_end,
    .on_route = bench_on_route,
    .find_ctx = bench_find,
    .reload = bench_reload,
    .process_info = bench_info,
    .process_ready = bench_ready,
    .process_metrics = bench_metrics,
};

static inline void bench_up(void)
{
    memset(&bench, 0, sizeof bench);
    log_set_level(LOG_ERROR);
    setenv("MOONGATE_LUA_DIR", MOONGATE_SOURCE_DIR "/lua", 1);
    test_store_prepare(&bench.store);
    test_conf_set(bench.store.conf, "lua.memory_bytes", "33554432");
    test_conf_set(bench.store.conf, "lua.instructions", "1000000");
    test_conf_set(bench.store.conf, "admin_token", "an-admin-token-of-length");
    test_conf_set(bench.store.conf, "plugin_dirs", bench.store.dir.path);
    test_store_open(&bench.store);
    bench.reader = epoch_register(bench.store.epoch);
    ck_assert_int_eq(loop_new(bench.reader, &bench.loop), 0);
    ck_assert_int_eq(fetch_global_init(), 0);
    bench.resolver = resolver_new(1, NULL);
    ck_assert_int_eq(fetcher_new(bench.loop, bench.resolver, &bench.fetcher), 0);
    bench.kv = kv_new(1 << 20);
    bench.stats = stats_new(1);
    bench.slab = slab_new(sizeof(struct exchange), 64);
    buf_init(&bench.events, 1 << 20);
    buf_init(&bench.route_body, 1 << 20);
    buf_init(&bench.route_headers, 1 << 16);
    const struct script_options options = {
        .conf = bench.store.conf,
        .loop = bench.loop,
        .fetcher = bench.fetcher,
        .store = bench.store.store,
        .kv = bench.kv,
        .stats = bench.stats,
        .shard = stats_shard_of(bench.stats, 0),
        .worker_count = 1,
        .host = &bench_host,
        .host_user = &bench,
    };
    ck_assert_int_eq(script_new(&options, &bench.script), 0);
}

static inline void bench_down(void)
{
    script_free(bench.script);
    for (int i = 0; i < 50; i++)
        (void)loop_turn(bench.loop);
    slab_destroy(bench.slab);
    stats_free(bench.stats);
    kv_free(bench.kv);
    fetcher_free(bench.fetcher);
    resolver_free(bench.resolver);
    loop_free(bench.loop);
    epoch_unregister(bench.reader);
    buf_free(&bench.events);
    buf_free(&bench.route_body);
    buf_free(&bench.route_headers);
    test_store_end(&bench.store);
    fetch_global_cleanup();
}

static inline void bench_turn(void)
{
    (void)loop_turn(bench.loop);
    script_turn_end(bench.script);
}

// Turns until the flag is at least wanted (5 s at most).
static inline void bench_wait(const int *counter, int wanted)
{
    for (int i = 0; i < 5000 && *counter < wanted; i++) {
        bench_turn();
        if (*counter < wanted)
            usleep(1000);
    }
    ck_assert_int_ge(*counter, wanted);
}

static inline void bench_write(size_t index, const char *name, const char *text)
{
    char path[300];
    snprintf(bench.names[index], sizeof bench.names[index], "%s", name);
    snprintf(path, sizeof path, "%s/%s", bench.store.dir.path, name);
    (void)mkdir(path, 0700);
    snprintf(path, sizeof path, "%s/%s/init.lua", bench.store.dir.path, name);
    FILE *out = fopen(path, "w");
    ck_assert_ptr_nonnull(out);
    fputs(text, out);
    fclose(out);
    bench.plugins[index] = (struct conf_plugin){.name = slice_str(bench.names[index]),
                                                .settings_json = SLICE_LIT("{}")};
}

static inline int bench_try(size_t count, struct buf *problems)
{
    struct plugin_set *set;
    bench.store.conf->plugins = bench.plugins;
    bench.store.conf->plugin_count = count;
    int err = plugin_set_load(bench.store.conf, &set, problems);
    if (err)
        return err;
    err = script_prepare(bench.script, set, problems);
    plugin_set_unref(set);
    if (!err)
        script_flip(bench.script);
    return err;
}

static inline void bench_flip(size_t count)
{
    struct buf problems = BUF_INIT(65536);
    int err = bench_try(count, &problems);
    ck_assert_msg(err == 0, "%.*s", SLICE_FMT(buf_slice(&problems)));
    buf_free(&problems);
}

// One plugin "p" with the given fields of its table (top: chunk text before the table).
static inline void bench_plugin(const char *top, const char *fields)
{
    char text[8192];
    snprintf(
        text, sizeof text,
        "%s\nreturn { name = \"p\", version = \"1.0.0\", api = 1, about = \"A test.\",\n%s }\n",
        top, fields);
    bench_write(0, "p", text);
    bench_flip(1);
}

static inline struct ctx *bench_begin(void)
{
    struct slab_handle handle;
    struct exchange *exchange = slab_alloc(bench.slab, &handle);
    struct ctx *ctx = &exchange->ctx;
    exchange->request = (struct http1_request){.method = HTTP1_POST,
                                               .method_text = SLICE_LIT("POST"),
                                               .path = SLICE_LIT("/v1/chat/completions"),
                                               .headers = exchange->headers,
                                               .header_count = 2};
    exchange->headers[0] = (struct http1_header){SLICE_LIT("user-agent"), SLICE_LIT("curl/8")};
    exchange->headers[1] =
        (struct http1_header){SLICE_LIT("authorization"), SLICE_LIT("Bearer sk-secret")};
    ctx->arena = arena_new(4096);
    ctx->handle = handle;
    ctx->exchange = exchange;
    snprintf(ctx->id_text, sizeof ctx->id_text, "01890000-0000-7000-8000-000000000001");
    ctx->request_id = SLICE_LIT("req_1");
    ctx->request = &exchange->request;
    ctx->client_ip = SLICE_LIT("127.0.0.1");
    ctx->dialect = DIALECT_OPENAI;
    ctx->op = DIALECT_OP_CHAT;
    ctx->model = SLICE_LIT("gpt-x");
    ctx->body = SLICE_LIT("{\"model\":\"gpt-x\",\"n\":2,\"a\":{\"b\":\"c\"}}");
    ctx->attempt = 1;
    ctx->error.retry_after_ms = -1;
    script_bind(bench.script, ctx);
    return ctx;
}

static inline void bench_end(struct ctx *ctx)
{
    struct arena *arena = ctx->arena;
    script_release(ctx);
    slab_free(bench.slab, ctx->exchange);
    arena_free(arena);
    slab_sweep(bench.slab);
}

// Runs a hook to its end, over turns when it waits.
static inline enum script_outcome bench_hook(struct ctx *ctx, enum script_hook hook)
{
    int before = bench.hook_calls;
    enum script_outcome outcome = script_run_hook(ctx, hook);
    if (outcome != SCRIPT_PENDING)
        return outcome;
    bench_wait(&bench.hook_calls, before + 1);
    return bench.outcome;
}

static inline int bench_run(TCase **cases, size_t count, const char *name)
{
    Suite *suite = suite_create(name);
    for (size_t i = 0; i < count; i++)
        suite_add_tcase(suite, cases[i]);
    SRunner *runner = srunner_create(suite);
    srunner_set_fork_status(runner, CK_NOFORK);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
