// Plugin routes: matching, auth, validation, answers, error shapes.
#include "script_test.h"

struct request {
    struct http1_request head;
    struct http1_header headers[4];
    struct arena *arena;
    char method[8];
    const struct script_route *route;
    struct script_route_call *call;
};
static struct request current;

static enum http1_method method_of(const char *method)
{
    static const char *const NAMES[] = {"", "GET", "HEAD", "POST", "PUT", "DELETE", "PATCH"};
    for (int i = 1; i < 7; i++)
        if (strcmp(NAMES[i], method) == 0)
            return (enum http1_method)i;
    return HTTP1_OTHER;
}

static void end_request(void)
{
    arena_free(current.arena);
    memset(&current, 0, sizeof current);
}

// Sends a request; token NULL: none. Gives the status; 0: still running.
static int send_start(const char *method, const char *target, const char *body, const char *token)
{
    end_request();
    current.arena = arena_new(4096);
    const char *mark = strchr(target, '?');
    struct http1_request *head = &current.head;
    head->method = method_of(method);
    head->method_text = slice_str(method);
    head->path = slice_of(target, mark ? (size_t)(mark - target) : strlen(target));
    head->query = mark ? slice_str(mark + 1) : SLICE_NONE;
    head->headers = current.headers;
    current.headers[head->header_count++] =
        (struct http1_header){SLICE_LIT("x-test"), SLICE_LIT("yes")};
    if (token)
        current.headers[head->header_count++] =
            (struct http1_header){SLICE_LIT("x-api-key"), slice_str(token)};
    struct slice allow;
    current.route = script_route_find(bench.script, head->method, head->path, &allow);
    if (!current.route)
        return allow.len ? -405 : -404;
    const struct script_route_request request = {.request = head,
                                                 .body = slice_str(body),
                                                 .client_ip = SLICE_LIT("127.0.0.1"),
                                                 .request_id = SLICE_LIT("req_9"),
                                                 .arena = current.arena};
    int before = bench.route_calls;
    ck_assert_int_eq(
        script_route_start(bench.script, current.route, &request, &current, &current.call), 0);
    if (bench.route_calls == before)
        return 0;
    ck_assert_ptr_null(current.call);
    return bench.route_status;
}

static int request(const char *method, const char *target, const char *body, const char *token)
{
    int before = bench.route_calls;
    int status = send_start(method, target, body, token);
    if (status)
        return status;
    bench_wait(&bench.route_calls, before + 1);
    return bench.route_status;
}

static void expect_body(const char *part)
{
    ck_assert_msg(strstr(buf_slice(&bench.route_body).ptr, part), "%s is not in %s", part,
                  buf_slice(&bench.route_body).ptr);
}

#define ADMIN "an-admin-token-of-length"

START_TEST(test_matching)
{
    bench_plugin("local function say(text) return function(req) return 200, text .. "
                 "(req.params.id or '') end end",
                 "routes = { {'GET', '/x/{id}', say('param '), auth = 'none', about = 'a'},\n"
                 "{'GET', '/x/list', say('list'), auth = 'none', about = 'a'},\n"
                 "{'POST', '/x/list', say('post'), auth = 'none', about = 'a'},\n"
                 "{'GET', '/x/{id}/y', say('y '), auth = 'none', about = 'a', params = "
                 "schema.record{ id = schema.integer{} } } }");
    ck_assert_int_eq(request("GET", "/x/list", "", NULL), 200);
    expect_body("list");
    ck_assert_int_eq(request("GET", "/x/a%2Fb%20c", "", NULL), 200);
    expect_body("param a/b c");
    ck_assert_int_eq(request("HEAD", "/x/7", "", NULL), 200);
    ck_assert_int_eq(request("GET", "/x/5/y", "", NULL), 200);
    expect_body("y 5");
    ck_assert_int_eq(request("GET", "/x/abc/y", "", NULL), 422);
    ck_assert_int_eq(request("DELETE", "/x/list", "", NULL), -405);
    struct slice allow;
    ck_assert_ptr_null(script_route_find(bench.script, HTTP1_DELETE, SLICE_LIT("/x/list"), &allow));
    ck_assert(slice_is(allow, "GET, POST") || slice_is(allow, "POST, GET"));
    ck_assert_int_eq(request("GET", "/x", "", NULL), -404);
    ck_assert_int_eq(request("GET", "/x/", "", NULL), -404);
    ck_assert_int_eq(request("GET", "/x/a%zz", "", NULL), 400);
    ck_assert_int_eq(request("GET", "/nothing/here", "", NULL), -404);
    end_request();
}
END_TEST

START_TEST(test_auth)
{
    bench_plugin(
        "local function who(req) return 200, { kind = req.principal.kind, name = "
        "req.principal.key and req.principal.key.name, x = req.headers['x-test'], hidden = "
        "req.headers['x-api-key'] } end\n"
        "local function check(req, gw) gw.sleep(0.001) if gw.crypto.equal(req.credential or "
        "'', 'magic') then return { kind = 'magician' } end return nil, 403, 'no_magic', "
        "'No.' end",
        "needs = { keys = 'write' }, routes = { {'GET', '/admin', who, auth = 'admin', "
        "about = 'a'}, {'GET', '/key', who, auth = 'key', about = 'a'}, {'GET', '/user', "
        "who, auth = 'user', about = 'a'}, {'GET', '/fn', who, auth = check, about = 'a'},\n"
        "{'POST', '/make', function(req, gw) return 200, gw.keys.create{ name = 'kk', "
        "scheme = 'sk' }.key_value end, auth = 'admin', about = 'a'} }");
    ck_assert_int_eq(request("GET", "/admin", "", NULL), 401);
    ck_assert_int_eq(request("GET", "/admin", "", "wrong"), 401);
    expect_body("\"code\":\"unauthorized\"");
    ck_assert_int_eq(request("GET", "/admin", "", ADMIN), 200);
    expect_body("\"kind\":\"admin\"");
    expect_body("\"x\":\"yes\"");
    ck_assert_ptr_null(strstr(buf_slice(&bench.route_body).ptr, ADMIN));
    ck_assert_int_eq(request("GET", "/key", "", NULL), 401);
    ck_assert_int_eq(request("POST", "/make", "", ADMIN), 200);
    char key[128];
    snprintf(key, sizeof key, "%s", buf_slice(&bench.route_body).ptr);
    bench_turn();
    epoch_enter(bench.reader);
    ck_assert_int_eq(request("GET", "/key", "", key), 200);
    expect_body("\"name\":\"kk\"");
    ck_assert_int_eq(request("GET", "/user", "", key), 403);
    epoch_leave(bench.reader);
    ck_assert_int_eq(request("GET", "/fn", "", "magic"), 200);
    expect_body("magician");
    ck_assert_int_eq(request("GET", "/fn", "", "tragic"), 403);
    expect_body("no_magic");
    end_request();
}
END_TEST

START_TEST(test_validation)
{
    bench_plugin("",
                 "routes = { {'POST', '/v', function(req, gw) gw.sleep(0.001) return 201, { n = "
                 "req.body.n, price = req.body.price + money.usd('1'), page = req.query.page, "
                 "list = req.body.list or json.array{} }, { ['x-a'] = 'b' } end, auth = 'none', "
                 "about = 'a', body = schema.record{ n = schema.integer{ min = 1 }, price = "
                 "schema.decimal{}, list = schema.list{ of = schema.text{}, optional = true } "
                 "}, query = schema.record{ page = schema.integer{ default = 1 } } } }");
    ck_assert_int_eq(request("POST", "/v?page=3", "{\"n\":2,\"price\":0.1}", NULL), 201);
    expect_body("\"n\":2");
    expect_body("\"price\":1.1");
    expect_body("\"page\":3");
    expect_body("\"list\":[]");
    ck_assert(strstr(buf_slice(&bench.route_headers).ptr, "x-a=b"));
    ck_assert(strstr(buf_slice(&bench.route_headers).ptr, "content-type=application/json"));
    ck_assert_int_eq(request("POST", "/v", "{\"n\":2,\"price\":\"3\"}", NULL), 201);
    expect_body("\"page\":1");
    ck_assert_int_eq(request("POST", "/v", "{\"n\":0,\"zzz\":1}", NULL), 422);
    expect_body("validation_error");
    expect_body("body.n");
    expect_body("body.price");
    expect_body("zzz");
    ck_assert_int_eq(request("POST", "/v?page=x", "{\"n\":2,\"price\":1}", NULL), 422);
    ck_assert_int_eq(request("POST", "/v", "{\"n\":", NULL), 400);
    expect_body("invalid_json");
    ck_assert_int_eq(request("POST", "/v", "", NULL), 400);
    end_request();
}
END_TEST

START_TEST(test_render_error_and_faults)
{
    bench_plugin(
        "local function fail() error('inner secret') end",
        "render_error = function(err) if err.code == 'internal_error' and false then end "
        "return err.status, { detail = err.message, n = #err.details, code = err.code }, { "
        "['x-shape'] = 'p' } end,\n"
        "routes = { {'GET', '/p/fail', fail, auth = 'none', about = 'a'}, {'GET', "
        "'/p/loop', function() while true do end end, auth = 'none', about = 'a'},\n"
        "{'GET', '/p/bad', function() return 'x' end, auth = 'none', about = 'a'},\n"
        "{'GET', '/p/bad2', function() return 200, print end, auth = 'none', about = "
        "'a'},\n"
        "{'GET', '/p/bad3', function() return 200, nil, {['x'] = 'a\\r\\nb'} end, auth = "
        "'none', about = 'a'},\n"
        "{'POST', '/p/v', fail, auth = 'none', about = 'a', body = schema.record{ a = "
        "schema.text{} } } }");
    ck_assert_int_eq(request("GET", "/p/fail", "", NULL), 500);
    expect_body("\"code\":\"internal_error\"");
    ck_assert_ptr_null(strstr(buf_slice(&bench.route_body).ptr, "secret"));
    ck_assert(strstr(buf_slice(&bench.route_headers).ptr, "x-shape=p"));
    ck_assert_int_eq(request("GET", "/p/loop", "", NULL), 500);
    ck_assert_int_eq(request("GET", "/p/bad", "", NULL), 500);
    ck_assert_int_eq(request("GET", "/p/bad2", "", NULL), 500);
    ck_assert_int_eq(request("GET", "/p/bad3", "", NULL), 500);
    ck_assert_int_eq(request("POST", "/p/v", "{}", NULL), 422);
    expect_body("\"n\":1");
    const struct script_route *missing = script_route_missing(bench.script, SLICE_LIT("/p/none"));
    ck_assert_ptr_nonnull(missing);
    ck_assert_ptr_null(script_route_missing(bench.script, SLICE_LIT("/q/none")));
    const struct script_route_request call = {
        .request = &current.head, .arena = current.arena, .request_id = SLICE_LIT("r")};
    struct script_route_call *running;
    ck_assert_int_eq(script_route_start(bench.script, missing, &call, NULL, &running), 0);
    ck_assert_int_eq(bench.route_status, 404);
    expect_body("\"code\":\"not_found\"");
    end_request();
}
END_TEST

START_TEST(test_render_error_that_fails)
{
    bench_plugin("", "render_error = function(err) error('x') end, routes = { {'GET', '/e', "
                     "function() error('y') end, auth = 'none', about = 'a'} }");
    ck_assert_int_eq(request("GET", "/e", "", NULL), 500);
    expect_body("{\"error\":{\"code\":\"internal_error\"");
    end_request();
}
END_TEST

START_TEST(test_cancel_and_reload_in_flight)
{
    bench_plugin("",
                 "routes = { {'GET', '/slow', function(req, gw) gw.sleep(0.02) return 200, 'old' "
                 "end, auth = 'none', about = 'a'} }");
    ck_assert_int_eq(send_start("GET", "/slow", "", NULL), 0);
    script_route_cancel(current.call);
    for (int i = 0; i < 50; i++) {
        bench_turn();
        usleep(1000);
    }
    ck_assert_int_eq(bench.route_calls, 0);
    // a call that runs ends on its own generation
    ck_assert_int_eq(send_start("GET", "/slow", "", NULL), 0);
    bench_write(0, "p",
                "return { name = 'p', version = '2', api = 1, about = 'p', routes = { "
                "{'GET', '/fast', function() return 200, 'new' end, auth = 'none', about = "
                "'a'} } }");
    const struct script_route *kept = current.route;
    bench_flip(1);
    ck_assert_uint_eq(script_generation_count(bench.script), 2);
    bench_wait(&bench.route_calls, 1);
    ck_assert_int_eq(bench.route_status, 200);
    expect_body("old");
    bench_turn();
    ck_assert_uint_eq(script_generation_count(bench.script), 1);
    // a route that was found before the flip and is gone after it
    const struct script_route_request call = {
        .request = &current.head, .arena = current.arena, .request_id = SLICE_LIT("r")};
    struct script_route_call *running;
    ck_assert_int_eq(script_route_start(bench.script, kept, &call, NULL, &running), 0);
    ck_assert_int_eq(bench.route_status, 404);
    ck_assert_int_eq(request("GET", "/fast", "", NULL), 200);
    end_request();
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("route");
    tcase_add_checked_fixture(tcase, bench_up, bench_down);
    tcase_set_timeout(tcase, 120);
    tcase_add_test(tcase, test_matching);
    tcase_add_test(tcase, test_auth);
    tcase_add_test(tcase, test_validation);
    tcase_add_test(tcase, test_render_error_and_faults);
    tcase_add_test(tcase, test_render_error_that_fails);
    tcase_add_test(tcase, test_cancel_and_reload_in_flight);
    return bench_run(&tcase, 1, "route");
}
