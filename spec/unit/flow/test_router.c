// Which call a path is: mounts, methods, prefixes, the dialect of refusals.
#include "flow/router.h"

#include <check.h>
#include <stdlib.h>

static const struct {
    enum http1_method method;
    const char *path;
    enum route_kind kind;
    enum dialect_id dialect;
    enum dialect_op op;
    const char *canonical;
} ROWS[] = {
    {HTTP1_POST, "/v1/chat/completions", ROUTE_MODEL, DIALECT_OPENAI, DIALECT_OP_CHAT,
     "/v1/chat/completions"},
    {HTTP1_POST, "/openai/v1/chat/completions", ROUTE_MODEL, DIALECT_OPENAI, DIALECT_OP_CHAT,
     "/v1/chat/completions"},
    {HTTP1_POST, "/proxy/v1/messages", ROUTE_MODEL, DIALECT_ANTHROPIC, DIALECT_OP_MESSAGES,
     "/v1/messages"},
    {HTTP1_POST, "/anthropic/v1/messages", ROUTE_MODEL, DIALECT_ANTHROPIC, DIALECT_OP_MESSAGES,
     "/v1/messages"},
    {HTTP1_POST, "/v1/messages/count_tokens", ROUTE_MODEL, DIALECT_ANTHROPIC,
     DIALECT_OP_COUNT_TOKENS, "/v1/messages/count_tokens"},
    {HTTP1_POST, "/v1/responses", ROUTE_MODEL, DIALECT_RESPONSES, DIALECT_OP_RESPONSES,
     "/v1/responses"},
    {HTTP1_GET, "/v1/responses/resp_1", ROUTE_STATEFUL, DIALECT_OPENAI, DIALECT_OP_OTHER,
     "/v1/responses/resp_1"},
    {HTTP1_GET, "/v1/chat/completions", ROUTE_STATEFUL, DIALECT_OPENAI, DIALECT_OP_OTHER,
     "/v1/chat/completions"},
    {HTTP1_POST, "/v1/files", ROUTE_STATEFUL, DIALECT_OPENAI, DIALECT_OP_OTHER, "/v1/files"},
    {HTTP1_GET, "/v1/models", ROUTE_MODELS, DIALECT_OPENAI, DIALECT_OP_OTHER, "/v1/models"},
    {HTTP1_GET, "/v1/models/gpt-4o", ROUTE_MODELS, DIALECT_OPENAI, DIALECT_OP_OTHER,
     "/v1/models/gpt-4o"},
    {HTTP1_POST, "/v1/models", ROUTE_MODELS, DIALECT_OPENAI, DIALECT_OP_OTHER, "/v1/models"},
    {HTTP1_GET, "/v1/modelsx", ROUTE_UNKNOWN_V1, DIALECT_OPENAI, DIALECT_OP_OTHER, "/v1/modelsx"},
    {HTTP1_POST, "/v1/v1/chat/completions", ROUTE_DOUBLE_V1, DIALECT_OPENAI, DIALECT_OP_OTHER,
     "/v1/v1/chat/completions"},
    {HTTP1_POST, "/v1/nothing", ROUTE_UNKNOWN_V1, DIALECT_OPENAI, DIALECT_OP_OTHER, "/v1/nothing"},
    {HTTP1_HEAD, "/", ROUTE_HELLO, DIALECT_NONE, DIALECT_OP_OTHER, "/"},
    {HTTP1_GET, "/", ROUTE_NONE, DIALECT_NONE, DIALECT_OP_OTHER, "/"},
    {HTTP1_HEAD, "/api/hello", ROUTE_HELLO, DIALECT_NONE, DIALECT_OP_OTHER, "/api/hello"},
    {HTTP1_HEAD, "/anthropic/api/hello", ROUTE_HELLO, DIALECT_NONE, DIALECT_OP_OTHER,
     "/anthropic/api/hello"},
    {HTTP1_POST, "/control/v1/reload", ROUTE_CONTROL, DIALECT_NONE, DIALECT_OP_OTHER,
     "/control/v1/reload"},
    {HTTP1_GET, "/healthz", ROUTE_NONE, DIALECT_NONE, DIALECT_OP_OTHER, "/healthz"},
    {HTTP1_POST, "/proxyx/v1/messages", ROUTE_NONE, DIALECT_NONE, DIALECT_OP_OTHER,
     "/proxyx/v1/messages"},
    {HTTP1_POST, "/admin/keys", ROUTE_NONE, DIALECT_NONE, DIALECT_OP_OTHER, "/admin/keys"},
};

START_TEST(paths_are_routed)
{
    struct slice canonical;
    const struct route *route =
        router_match(ROWS[_i].method, slice_str(ROWS[_i].path), SLICE_LIT("/proxy"), &canonical);
    ck_assert_int_eq(route->kind, ROWS[_i].kind);
    ck_assert_int_eq(route->dialect, ROWS[_i].dialect);
    ck_assert_int_eq(route->op, ROWS[_i].op);
    ck_assert_msg(slice_is(canonical, ROWS[_i].canonical), "%.*s", SLICE_FMT(canonical));
}
END_TEST

START_TEST(methods_are_known)
{
    struct slice canonical;
    const struct route *route =
        router_match(HTTP1_PUT, SLICE_LIT("/v1/messages"), SLICE_LIT("/proxy"), &canonical);
    ck_assert_int_eq(route->kind, ROUTE_MODEL);
    ck_assert(!router_allows(route, HTTP1_PUT));
    ck_assert(router_allows(route, HTTP1_POST));
}
END_TEST

START_TEST(refusals_speak_the_path_s_dialect)
{
    struct slice prefix = SLICE_LIT("/proxy");
    ck_assert_int_eq(router_error_dialect(SLICE_LIT("/v1/messages"), prefix, false),
                     DIALECT_ANTHROPIC);
    ck_assert_int_eq(router_error_dialect(SLICE_LIT("/anthropic/v1/x"), prefix, false),
                     DIALECT_ANTHROPIC);
    ck_assert_int_eq(router_error_dialect(SLICE_LIT("/v1/responses"), prefix, false),
                     DIALECT_RESPONSES);
    ck_assert_int_eq(router_error_dialect(SLICE_LIT("/proxy/v1/chat/completions"), prefix, false),
                     DIALECT_OPENAI);
    ck_assert_int_eq(router_error_dialect(SLICE_LIT("/v1/models"), prefix, true),
                     DIALECT_ANTHROPIC);
    ck_assert_int_eq(router_error_dialect(SLICE_LIT("/v1/models"), prefix, false), DIALECT_OPENAI);
    ck_assert_int_eq(router_error_dialect(SLICE_LIT("/elsewhere"), prefix, false), DIALECT_NONE);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("router");
    TCase *tests = tcase_create("router");
    tcase_add_loop_test(tests, paths_are_routed, 0, (int)(sizeof ROWS / sizeof *ROWS));
    tcase_add_test(tests, methods_are_known);
    tcase_add_test(tests, refusals_speak_the_path_s_dialect);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_set_fork_status(runner, CK_NOFORK);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
