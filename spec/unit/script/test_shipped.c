// The shipped plugins in the real runtime: they load together, the demo model answers, the routes
// of health and admin work.
#include "script_test.h"

static void load_shipped(void)
{
    static const char *const NAMES[] = {
        "auth_key", "demo", "select_weighted", "failover", "prices", "provider_generic", "health"};
    size_t count = 0;
    test_conf_set(bench.store.conf, "plugin_dirs", MOONGATE_SOURCE_DIR "/plugins");
    for (size_t i = 0; i < sizeof NAMES / sizeof *NAMES; i++)
        bench.plugins[count++] =
            (struct conf_plugin){.name = slice_str(NAMES[i]), .settings_json = SLICE_LIT("{}")};
    bench_flip(count);
}

START_TEST(test_the_demo_model_answers)
{
    load_shipped();
    struct ctx *ctx = bench_begin();
    ctx->model = SLICE_LIT("demo");
    ctx->body = SLICE_LIT("{\"model\":\"demo\",\"messages\":[{\"role\":\"user\",\"content\":"
                          "\"one two\"}]}");
    ck_assert_int_eq(bench_hook(ctx, SCRIPT_ADMIT), SCRIPT_PASS);
    ck_assert_int_eq(bench_hook(ctx, SCRIPT_SELECT), SCRIPT_ANSWERED);
    script_answer_start(ctx);
    bench_wait(&bench.answer_ends, 1);
    ck_assert_int_eq(bench.answer_err, 0);
    ck_assert(slice_find(buf_slice(&bench.events), SLICE_LIT("two")) > 0);
    ctx->model = SLICE_LIT("other");
    ctx->respond.kind = CTX_ANSWER_NONE;
    enum script_outcome outcome = bench_hook(ctx, SCRIPT_SELECT);
    ck_assert_int_eq(outcome, SCRIPT_PASS);
    ck_assert_uint_eq(ctx->candidate_count, 0);
    ck_assert_int_eq(bench_hook(ctx, SCRIPT_IDENTIFY), SCRIPT_DENIED);
    ck_assert_int_eq(ctx->error.status, 401);
    bench_end(ctx);
}
END_TEST

START_TEST(test_health_answers)
{
    load_shipped();
    struct slice allow;
    struct arena *arena = arena_new(4096);
    struct http1_request head = {
        .method = HTTP1_GET, .method_text = SLICE_LIT("GET"), .path = SLICE_LIT("/healthz")};
    const struct script_route *route =
        script_route_find(bench.script, HTTP1_GET, head.path, &allow);
    ck_assert_ptr_nonnull(route);
    const struct script_route_request request = {
        .request = &head, .request_id = SLICE_LIT("r"), .arena = arena};
    struct script_route_call *call;
    ck_assert_int_eq(script_route_start(bench.script, route, &request, NULL, &call), 0);
    bench_wait(&bench.route_calls, 1);
    ck_assert_int_eq(bench.route_status, 200);
    arena_free(arena);
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("shipped");
    tcase_add_checked_fixture(tcase, bench_up, bench_down);
    tcase_set_timeout(tcase, 120);
    tcase_add_test(tcase, test_the_demo_model_answers);
    tcase_add_test(tcase, test_health_answers);
    return bench_run(&tcase, 1, "shipped");
}
