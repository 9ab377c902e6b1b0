// Every allocation of a Lua state fails once in turn, in each kind of work: nothing may end the
// process, leak, or spoil the state for the next exchange. And answers whose events come back to
// the script while its function runs, and fetches over the loopback.
#include "script_test.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sys/socket.h>

static const char PLUGIN[] =
    "needs = { db = true, keys = 'read', fetch = {'127.0.0.1'} }, on_error = 'skip',\n"
    "hooks = { admit = function(ctx) local gw = ctx.gw\n"
    "  ctx.vars.a = { ctx.model, ctx.headers['user-agent'] }\n"
    "  local r = gw.all{ function() gw.sleep(0) return {1} end, function() error('x') end }\n"
    "  local rows = gw.db.query('SELECT 1 AS a, ? AS b', 'x')\n"
    "  local l = gw.lock('n', 1) if l then l:release() end\n"
    "  gw.kv.set('k', json.encode{ a = {1, 2} }) json.decode(gw.kv.get('k'))\n"
    "  ctx:flag('f' .. tostring(money.usd('1') + money.usd('2')))\n"
    "  ctx:json() ctx:field('a.b') ('a b'):gsub('%w', string.upper)\n"
    "end,\n"
    "select = function(ctx) return ctx:stream(function(emit) emit{kind = 'text', text = 'a'} "
    "emit{kind = 'text', text = 'b'} end) end,\n"
    "price = function(ctx) return money.usd('1') end,\n"
    "finish = function(ctx) ctx.gw.spawn(function() ctx.gw.sleep(0) end) end },\n"
    "routes = { {'POST', '/r', function(req, gw) gw.sleep(0) return 200, { n = req.body.n } end, "
    "auth = 'none', about = 'a', body = schema.record{ n = schema.integer{} } } },\n"
    "render_error = function(err) return err.status, { m = err.message } end";

static void run_everything(void)
{
    struct ctx *ctx = bench_begin();
    (void)bench_hook(ctx, SCRIPT_ADMIT);
    ctx->is_denied = false;
    ctx->respond.kind = CTX_ANSWER_NONE;
    if (bench_hook(ctx, SCRIPT_SELECT) == SCRIPT_ANSWERED &&
        ctx->respond.kind == CTX_ANSWER_EVENTS) {
        int before = bench.answer_ends;
        script_answer_start(ctx);
        bench_wait(&bench.answer_ends, before + 1);
    }
    script_run_price(ctx);
    struct slice allow;
    struct http1_request head = {
        .method = HTTP1_POST, .method_text = SLICE_LIT("POST"), .path = SLICE_LIT("/r")};
    const struct script_route *route =
        script_route_find(bench.script, HTTP1_POST, head.path, &allow);
    const struct script_route_request request = {.request = &head,
                                                 .body = SLICE_LIT("{\"n\":1}"),
                                                 .request_id = SLICE_LIT("r"),
                                                 .arena = ctx->arena};
    struct script_route_call *call;
    int before = bench.route_calls;
    ck_assert_int_eq(script_route_start(bench.script, route, &request, NULL, &call), 0);
    bench_wait(&bench.route_calls, before + 1);
    (void)bench_hook(ctx, SCRIPT_FINISH);
    bench_end(ctx);
    for (int i = 0; i < 3; i++)
        bench_turn();
}

START_TEST(test_each_allocation_fails_once)
{
    log_set_level(LOG_ERROR + 1);
    bench_plugin("", PLUGIN);
    run_everything();
    struct script_generation *generation = bench.script->current;
    struct plugin_rt *plugin = &generation->plugins[0];
    int last = 0;
    for (int n = 1; n < 1500; n++) {
        lua_env_fail_after(generation->env, (uint64_t)n);
        run_everything();
        lua_env_fail_after(generation->env, 0);
        buf_clear(&bench.events);
        plugin->is_off = false;
        plugin->faults = 0;
        last = n;
    }
    ck_assert_int_ge(last, 500);
    for (int i = 0; i < 10; i++)
        bench_turn();
    ck_assert_uint_eq(generation->live_count, 0);
    struct ctx *ctx = bench_begin();
    ck_assert_int_eq(bench_hook(ctx, SCRIPT_ADMIT), SCRIPT_PASS);
    ck_assert(ctx_has_flag(ctx, "f3"));
    bench_end(ctx);
}
END_TEST

START_TEST(test_each_allocation_of_a_load_fails_once)
{
    log_set_level(LOG_ERROR + 1);
    bench_plugin("", PLUGIN);
    struct plugin_set *set = plugin_set_ref(bench.script->current->set);
    // The cap grows until a generation fits: every step of building one runs out of memory.
    int64_t cap = bench.store.conf->lua_memory_bytes;
    int failures = 0;
    struct buf problems = BUF_INIT(1 << 20);
    for (int64_t bytes = 20000; bytes < 400000; bytes += 700) {
        bench.store.conf->lua_memory_bytes = bytes;
        failures += script_prepare(bench.script, set, &problems) != 0;
        script_discard(bench.script);
        buf_clear(&problems);
    }
    bench.store.conf->lua_memory_bytes = cap;
    ck_assert_int_ge(failures, 50);
    ck_assert_int_eq(script_prepare(bench.script, set, &problems), 0);
    script_discard(bench.script);
    plugin_set_unref(set);
    buf_free(&problems);
    run_everything();
}
END_TEST

// ---- the host calls back while an answer's function runs

static int nested_calls;

static int nested_event(struct ctx *ctx, const struct event *event)
{
    struct slice out;
    if (event->kind == EVENT_BLOCK_DELTA) {
        ck_assert_int_eq(script_run_delta(ctx, EVENT_BLOCK_TEXT, event->text, &out), 1);
        ck_assert(slice_is(out, "AB"));
        script_run_price(ctx);
        if (++nested_calls == 3) {
            script_cancel(ctx);
            return GW_ERESET;
        }
    }
    return 0;
}

START_TEST(test_host_calls_back_while_an_answer_runs)
{
    struct script_host host = bench_host;
    host.on_answer_event = nested_event;
    bench.script->options.host = &host;
    nested_calls = 0;
    bench_plugin("", "wants = {'text'}, hooks = { delta = function(ctx, kind, text) return "
                     "text:upper() end, price = function() return money.usd('1') end, select = "
                     "function(ctx) ctx:stream(function(emit) for i = 1, 9 do emit{kind = 'text', "
                     "text = 'ab'} ctx:flag('n' .. i) end end) end }");
    struct ctx *ctx = bench_begin();
    ck_assert_int_eq(bench_hook(ctx, SCRIPT_SELECT), SCRIPT_ANSWERED);
    script_answer_start(ctx);
    ck_assert_int_eq(nested_calls, 3);
    ck_assert_uint_eq(ctx->flag_count, 2);
    ck_assert_int_eq(bench.answer_ends, 0); // it was cancelled
    ck_assert(ctx->has_cost);
    bench_end(ctx);
    ck_assert_uint_eq(bench.script->current->live_count, 0);
    bench.script->options.host = &bench_host;
}
END_TEST

// ---- fetch over the loopback

struct server {
    int fd, port;
    pthread_t thread;
    const char *answer; // NULL: says nothing
    char got[4096];
};

static void *serve(void *arg)
{
    struct server *server = arg;
    int fd = accept(server->fd, NULL, NULL);
    size_t len = 0;
    while (len < sizeof server->got - 1) {
        ssize_t n = recv(fd, server->got + len, sizeof server->got - 1 - len, 0);
        if (n <= 0)
            break;
        len += (size_t)n;
        server->got[len] = '\0';
        if (strstr(server->got, "END")) {
            if (server->answer)
                (void)!send(fd, server->answer, strlen(server->answer), MSG_NOSIGNAL);
            break;
        }
    }
    if (!server->answer) // until the client goes away
        while (recv(fd, server->got, 1, 0) > 0)
            continue;
    close(fd);
    return NULL;
}

static void server_start(struct server *server, const char *answer)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof address;
    memset(server, 0, sizeof *server);
    server->answer = answer;
    server->fd = socket(AF_INET, SOCK_STREAM, 0);
    ck_assert_int_eq(bind(server->fd, (struct sockaddr *)&address, len), 0);
    ck_assert_int_eq(listen(server->fd, 1), 0);
    ck_assert_int_eq(getsockname(server->fd, (struct sockaddr *)&address, &len), 0);
    server->port = ntohs(address.sin_port);
    pthread_create(&server->thread, NULL, serve, server);
}

static void server_stop(struct server *server)
{
    pthread_join(server->thread, NULL);
    close(server->fd);
}

static enum script_outcome fetch_from(const struct server *server, const char *body)
{
    char fields[3000];
    snprintf(fields, sizeof fields,
             "needs = { fetch = {'127.0.0.1:%d'} }, on_error = 'deny', hooks = { admit = "
             "function(ctx) local gw = ctx.gw local URL = 'http://127.0.0.1:%d/x' %s end }",
             server->port, server->port, body);
    bench_plugin("", fields);
    struct ctx *ctx = bench_begin();
    enum script_outcome outcome = bench_hook(ctx, SCRIPT_ADMIT);
    bench_end(ctx);
    return outcome;
}

START_TEST(test_fetch)
{
    struct server server;
    test_conf_set(bench.store.conf, "allowed_private_hosts", "127.0.0.0/8");
    server_start(&server, "HTTP/1.1 201 Created\r\nX-A: b\r\nContent-Length: 5\r\nConnection: "
                          "close\r\n\r\nhello");
    ck_assert_int_eq(
        fetch_from(&server, "local token = gw.crypto.fernet_decrypt(gw.crypto.fernet_encrypt('tok'"
                            ")) local r, err = gw.fetch{ url = URL, headers = { authorization = "
                            "{'Bearer ', token} }, body = { a = 1, z = 'END' } } assert(r, err) "
                            "assert(r.status == 201 and r.body == 'hello' and r.headers['x-a'] == "
                            "'b')"),
        SCRIPT_PASS);
    server_stop(&server);
    ck_assert(strstr(server.got, "Bearer tok"));
    ck_assert(strstr(server.got, "POST /x"));
    ck_assert(strcasestr(server.got, "content-type: application/json"));
    server_start(&server, "HTTP/1.1 200 OK\r\nContent-Length: 39\r\nConnection: close\r\n\r\n"
                          "{\"data\":{\"token\":\"hush-hush\",\"id\":\"x\"}}");
    ck_assert_int_eq(
        fetch_from(&server, "local r, err = gw.fetch{ url = URL, body = 'END', secret_fields = "
                            "{'data.token'} } assert(r, err) assert(r.body == nil and "
                            "r.json.data.id == 'x') assert(tostring(r.json.data.token) == "
                            "'[secret]') assert(gw.crypto.equal(r.json.data.token, 'hush-hush'))"),
        SCRIPT_PASS);
    server_stop(&server);
    server_start(&server, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: "
                          "close\r\n\r\nhello");
    ck_assert_int_eq(fetch_from(&server, "local r, err = gw.fetch{ url = URL, body = 'END', "
                                         "max_bytes = 3 } assert(r == nil and err, err)"),
                     SCRIPT_PASS);
    server_stop(&server);
}
END_TEST

START_TEST(test_fetch_cancelled_and_refused)
{
    struct server server;
    test_conf_set(bench.store.conf, "allowed_private_hosts", "127.0.0.0/8");
    server_start(&server, NULL);
    char fields[1000];
    snprintf(fields, sizeof fields,
             "needs = { fetch = {'127.0.0.1'} }, hooks = { admit = function(ctx) ctx.gw.fetch{ url "
             "= 'http://127.0.0.1:%d/', body = 'END', timeout = 30 } end }",
             server.port);
    bench_plugin("", fields);
    struct ctx *ctx = bench_begin();
    ck_assert_int_eq(script_run_hook(ctx, SCRIPT_ADMIT), SCRIPT_PENDING);
    for (int i = 0; i < 2000 && !strstr(server.got, "END"); i++) {
        bench_turn();
        usleep(500);
    }
    script_cancel(ctx);
    bench_end(ctx);
    for (int i = 0; i < 20; i++) {
        bench_turn();
        usleep(500);
    }
    server_stop(&server); // it saw the connection close
    ck_assert_uint_eq(bench.script->current->live_count, 0);
    // private addresses are refused unless the operator allows them
    test_conf_set(bench.store.conf, "allowed_private_hosts", "");
    struct server nobody = {.port = server.port};
    ck_assert_int_eq(fetch_from(&nobody, "local r, err = gw.fetch{ url = URL } assert(r == nil and "
                                         "err == 'denied', err)"),
                     SCRIPT_PASS);
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("failures");
    tcase_add_checked_fixture(tcase, bench_up, bench_down);
    tcase_set_timeout(tcase, 240);
    tcase_add_test(tcase, test_each_allocation_fails_once);
    tcase_add_test(tcase, test_each_allocation_of_a_load_fails_once);
    tcase_add_test(tcase, test_host_calls_back_while_an_answer_runs);
    tcase_add_test(tcase, test_fetch);
    tcase_add_test(tcase, test_fetch_cancelled_and_refused);
    return bench_run(&tcase, 1, "failures");
}
