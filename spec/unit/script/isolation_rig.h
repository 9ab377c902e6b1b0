#pragma once
// What the isolation tests share: a plugin "bad" made of a case's code, a plugin "good" that is in
// the middle of its work meanwhile, the log and the metric that must name the bad one, and the CPU
// time that a call took.
#include "script_test.h"
#include <time.h>

#if defined(MOONGATE_ASAN) || defined(MOONGATE_TSAN)
#define ISO_RUNS 1 // of each case; entries have a second there
#else
#define ISO_RUNS 3
#endif
// Lua errors leave frames behind in tsan's own stack, which ends after some ten thousand of them;
// these tests have one thread that matters.
#if defined(MOONGATE_TSAN)
#define ISO_HAS_MANY_ERRORS false
#else
#define ISO_HAS_MANY_ERRORS true
#endif
#define iso_add_heavy(tcase, test)                                                                 \
    do {                                                                                           \
        if (ISO_HAS_MANY_ERRORS)                                                                   \
            tcase_add_test(tcase, test);                                                           \
        else                                                                                       \
            printf("skipped under tsan: " #test "\n");                                             \
    } while (0)
#define ISO_BUDGET_MS 40
#define ISO_GRACE_MS 50 // PROMISES F9

#define ISO_GOOD                                                                                   \
    "return { name = 'good', version = '1', api = 1, about = 'g', on_error = 'deny', hooks = { "   \
    "select = function(ctx) local t = {} for i = 1, 100 do t[i] = {i} end ctx.vars.mine = 7 "      \
    "ctx.gw.sleep(0.001) return {t[ctx.vars.mine - 6][1]} end, prepare = function(ctx) "           \
    "ctx.vars.p = "                                                                                \
    "{5} ctx.gw.sleep(0.001) ctx.outgoing:set_field('n', ctx.vars.p[1]) end } }"

static char iso_log_path[300];
static double iso_started_ms;
static enum script_hook iso_other_hook; // which hook of `good` runs meanwhile
static int iso_failures;                // of this test: a table goes on to its end

#define iso_check(condition, ...)                                                                  \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            iso_failures++;                                                                        \
            fprintf(stderr, "FAILED: " __VA_ARGS__);                                               \
            fputc('\n', stderr);                                                                   \
        }                                                                                          \
    } while (0)

static inline double iso_cpu_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (double)now.tv_sec * 1e3 + (double)now.tv_nsec / 1e6;
}

static inline void iso_up(void)
{
    bench_up();
    iso_failures = 0;
    iso_started_ms = iso_cpu_ms();
    iso_other_hook = SCRIPT_SELECT;
    snprintf(iso_log_path, sizeof iso_log_path, "%s/log", bench.store.dir.path);
    ck_assert_int_eq(log_to_file(iso_log_path), 0);
}

static inline void iso_down(void)
{
    ck_assert_int_eq(log_to_file(NULL), 0);
    log_set_level(LOG_ERROR + 1);
    if (getenv("ISO_TIMES"))
        fprintf(stderr, "test: %.0f ms of CPU time\n", iso_cpu_ms() - iso_started_ms);
    bench_down();
    ck_assert_int_eq(iso_failures, 0);
}

static inline void iso_log_clear(void)
{
    ck_assert_int_eq(truncate(iso_log_path, 0), 0);
}

// How many lines of the log hold this text. Two texts: both in one line.
static inline int iso_log_count(const char *text, const char *also)
{
    static char line[70000];
    int count = 0;
    FILE *in = fopen(iso_log_path, "r");
    ck_assert_ptr_nonnull(in);
    while (fgets(line, sizeof line, in))
        count += strstr(line, text) && (!also || strstr(line, also));
    fclose(in);
    return count;
}

// For messages: the first line with this text.
static inline const char *iso_log_line(const char *text)
{
    static char line[3000];
    FILE *in = fopen(iso_log_path, "r");
    while (in && fgets(line, sizeof line, in) && !strstr(line, text))
        line[0] = '\0';
    if (in)
        fclose(in);
    return line;
}

// moongate_lua_errors_total of this plugin and hook.
static inline int iso_errors(const char *plugin, const char *hook)
{
    char head[200];
    struct buf text = BUF_INIT(1 << 20);
    ck_assert_int_eq(stats_render(bench.stats, &text), 0);
    ck_assert_int_eq(buf_append_char(&text, '\0'), 0);
    int len = snprintf(head, sizeof head, "moongate_lua_errors_total{plugin=\"%s\",hook=\"%s\"} ",
                       plugin, hook);
    const char *at = strstr(buf_slice(&text).ptr, head);
    int count = at ? atoi(at + len) : 0;
    buf_free(&text);
    return count;
}

// plugins: bad (fields of its table, chunk text before it) and good behind it.
static inline void iso_plugins(const char *top, const char *fields, const char *on_error)
{
    static char text[16384];
    int len =
        snprintf(text, sizeof text,
                 "%s\nreturn { name = 'bad', version = '1', api = 1, about = 'b', on_error = "
                 "'%s', needs = { db = true, fetch = {'127.0.0.1'}, keys = 'write' },\n%s }\n",
                 top ? top : "", on_error, fields);
    ck_assert_int_lt(len, (int)sizeof text);
    bench_write(0, "bad", text);
    bench_write(1, "good", ISO_GOOD);
    bench_flip(2);
}

// An exchange of the good plugin that is in its hook.
static inline struct ctx *iso_begin_other(void)
{
    struct ctx *other = bench_begin();
    ck_assert_int_eq(script_run_hook(other, iso_other_hook), SCRIPT_PENDING);
    return other;
}

static inline void iso_end_other(struct ctx *other, const char *name)
{
    for (int i = 0; i < 5000 && other->pending; i++) {
        bench_turn();
        usleep(200);
    }
    bool is_done = iso_other_hook == SCRIPT_SELECT
                       ? other->candidate_count == 1 && other->candidates[0] == 1
                       : other->outgoing.edit_count == 1;
    iso_check(!other->pending && is_done && !other->is_denied,
              "%s: the exchange beside it was harmed", name);
    bench_end(other);
}

static inline void iso_expect_healthy(const char *name)
{
    iso_end_other(iso_begin_other(), name);
}

// What a failed hook must look like to flow.
static inline bool iso_is_plugin_error(const struct ctx *ctx)
{
    return ctx->is_denied && ctx->error.status == 500 && slice_is(ctx->error.code, "plugin_error");
}

static inline void iso_forgive(struct ctx *ctx)
{
    ctx->is_denied = false;
    ctx->error = (struct dialect_error){.retry_after_ms = -1};
}

// As bench_hook, also when other exchanges end meanwhile.
static inline enum script_outcome iso_settle(struct ctx *ctx, enum script_outcome outcome)
{
    for (int i = 0; i < 20000 && ctx->pending; i++) {
        bench_turn();
        usleep(200);
    }
    ck_assert_ptr_null(ctx->pending);
    if (outcome != SCRIPT_PENDING)
        return outcome;
    if (ctx->is_denied)
        return SCRIPT_DENIED;
    return ctx->respond.kind != CTX_ANSWER_NONE ? SCRIPT_ANSWERED : SCRIPT_PASS;
}

static inline enum script_outcome iso_hook(struct ctx *ctx, enum script_hook hook)
{
    return iso_settle(ctx, script_run_hook(ctx, hook));
}

// Runs any hook to its end; true: it failed as a plugin that denies has to.
static inline bool iso_fails(struct ctx *ctx, enum script_hook hook, bool denies)
{
    struct slice out;
    bool has_failed;
    switch (hook) {
    case SCRIPT_PRICE: script_run_price(ctx); return ctx_has_flag(ctx, "price_failed");
    case SCRIPT_DELTA:
        return script_run_delta(ctx, EVENT_BLOCK_TEXT, SLICE_LIT("text"), &out) ==
                   (denies ? 3 : 0) &&
               (!denies || iso_is_plugin_error(ctx));
    case SCRIPT_BODY: {
        enum script_outcome outcome =
            iso_settle(ctx, script_run_body(ctx, SLICE_LIT("body"), &out));
        return denies ? outcome == SCRIPT_DENIED && iso_is_plugin_error(ctx)
                      : outcome == SCRIPT_PASS;
    }
    case SCRIPT_ERROR:
    case SCRIPT_FINISH: return iso_hook(ctx, hook) == SCRIPT_PASS;
    default:
        has_failed = iso_hook(ctx, hook) == (denies ? SCRIPT_DENIED : SCRIPT_PASS);
        return has_failed && (!denies || iso_is_plugin_error(ctx));
    }
}

struct iso_case {
    const char *name, *code; // of the hook's function; gw and ctx are there
    const char *error;       // what the log must say; NULL: anything
};

static inline const char *iso_wants(enum script_hook hook)
{
    return hook == SCRIPT_DELTA ? "wants = {'text'}," : "";
}

static inline struct plugin_rt *iso_bad(void)
{
    return &bench.script->current->plugins[0];
}

// One case in one hook. Three times: the best of the three counts as its time (other processes
// share the machine), each must be far from endless.
static inline void iso_run(const struct iso_case *one, enum script_hook hook, bool is_timed)
{
    static char fields[15000];
    int len = snprintf(fields, sizeof fields,
                       "%s hooks = { %s = function(ctx, a, b) local gw = ctx.gw; %s "
                       "end }",
                       iso_wants(hook), hook_name(hook), one->code);
    ck_assert_int_lt(len, (int)sizeof fields);
    iso_other_hook = hook == SCRIPT_SELECT ? SCRIPT_PREPARE : SCRIPT_SELECT;
    iso_plugins("local KEPT", fields, "deny");
    iso_log_clear();
    int errors = iso_errors("bad", hook_name(hook));
    double best = 1e9;
    for (int n = 0; n < ISO_RUNS; n++) {
        struct ctx *other = iso_begin_other(), *ctx = bench_begin();
        double start = iso_cpu_ms();
        bool has_failed = iso_fails(ctx, hook, true);
        double took = iso_cpu_ms() - start;
        best = took < best ? took : best;
        iso_check(has_failed, "%s in %s: it did not fail as it should", one->name, hook_name(hook));
        iso_forgive(ctx);
        bench_end(ctx);
        iso_end_other(other, one->name);
    }
    if (getenv("ISO_TIMES"))
        fprintf(stderr, "%8.1f ms  %s in %s\n", best, one->name, hook_name(hook));
#if !defined(MOONGATE_ASAN) && !defined(MOONGATE_TSAN)
    if (is_timed)
        iso_check(best <= ISO_BUDGET_MS + ISO_GRACE_MS, "%s in %s: %.1f ms of CPU time", one->name,
                  hook_name(hook), best);
#else
    (void)is_timed;
#endif
    char in[64];
    snprintf(in, sizeof in, "\"in\":\"%s\"", hook_name(hook));
    iso_check(iso_log_count("\"plugin\":\"bad\"", in) == ISO_RUNS, "%s: the log does not name it",
              one->name);
    iso_check(iso_errors("bad", hook_name(hook)) == errors + ISO_RUNS,
              "%s: the metric does not count it", one->name);
    if (one->error)
        iso_check(iso_log_count("plugin_error", one->error) == ISO_RUNS,
                  "%s: the log has no \"%s\": %s", one->name, one->error,
                  iso_log_line("plugin_error"));
    iso_expect_healthy(one->name);
    iso_other_hook = SCRIPT_SELECT;
}
