// Coroutines: everything that waits, how it ends, and how it is cancelled in the middle.
#include "script_test.h"

static enum script_outcome run_admit(const char *top, const char *body)
{
    char fields[6000];
    snprintf(fields, sizeof fields,
             "on_error = 'deny', needs = { db = true, keys = 'write', upstreams = 'write', logs = "
             "'read', prices = 'write', process = true, fetch = {'127.0.0.1'} },\n"
             "hooks = { admit = function(ctx) local gw = ctx.gw\n%s end }",
             body);
    bench_plugin(top, fields);
    struct ctx *ctx = bench_begin();
    enum script_outcome outcome = bench_hook(ctx, SCRIPT_ADMIT);
    bench_end(ctx);
    return outcome;
}

static size_t live_count(void)
{
    return bench.script->current->live_count;
}

START_TEST(test_sleep)
{
    ck_assert_int_eq(run_admit("", "local t = gw.boot_ms() gw.sleep(0.01) "
                                   "assert(gw.boot_ms() - t >= 9)"),
                     SCRIPT_PASS);
    ck_assert_int_eq(bench.hook_calls, 1);
    ck_assert_int_eq(run_admit("", "gw.sleep(-1)"), SCRIPT_DENIED);
    ck_assert_int_eq(run_admit("", "return pcall(gw.sleep, 0.001) and nil"), SCRIPT_PASS);
    ck_assert_uint_eq(live_count(), 0);
}
END_TEST

START_TEST(test_waiting_where_it_is_not_allowed)
{
    ck_assert_int_eq(run_admit("", "local ok, why = pcall(string.gsub, 'x', 'x', function() "
                                   "gw.sleep(0) end) assert(not ok and why:find('callback'), why)"),
                     SCRIPT_PASS);
    ck_assert_int_eq(run_admit("", "table.sort({2, 1}, function(a, b) local ok, why = "
                                   "pcall(gw.sleep, 0) assert(not ok and why:find('callback')) "
                                   "return a < b end)"),
                     SCRIPT_PASS);
    // through metamethods and pcall it works
    ck_assert_int_eq(run_admit("", "local t = setmetatable({}, {__index = function() gw.sleep(0) "
                                   "return 5 end}) assert(t.x == 5)"),
                     SCRIPT_PASS);
    struct buf problems = BUF_INIT(65536);
    bench_write(0, "q",
                "return { name = 'q', version = '1', api = 1, about = 'q', init = "
                "function(gw) gw.sleep(1) end }");
    ck_assert_int_ne(bench_try(1, &problems), 0);
    ck_assert_int_eq(buf_append_char(&problems, '\0'), 0);
    ck_assert_msg(strstr(buf_slice(&problems).ptr, "not allowed in init"), "%s",
                  buf_slice(&problems).ptr);
    buf_free(&problems);
}
END_TEST

START_TEST(test_all)
{
    ck_assert_int_eq(
        run_admit("", "local r = gw.all{ function() gw.sleep(0.003) return 1 end, function() "
                      "error('x') end, function() return 3 end }\n"
                      "assert(r[1].ok and r[1].value == 1)\n"
                      "assert(not r[2].ok and r[2].error:find('x'))\n"
                      "assert(r[3].value == 3)\n"
                      "local r2 = gw.all{ function() return gw.all{ function() return 7 end "
                      "}[1].value end } assert(r2[1].value == 7)"),
        SCRIPT_PASS);
    ck_assert_int_eq(run_admit("", "gw.all{}"), SCRIPT_DENIED);
    ck_assert_uint_eq(live_count(), 0);
}
END_TEST

START_TEST(test_spawn)
{
    bench_plugin("", "hooks = { admit = function(ctx) local gw = ctx.gw gw.spawn(function() "
                     "gw.sleep(0.002) gw.kv.set('done', 'yes') end) end, select = function(ctx) "
                     "return ctx.gw.kv.get('done') and {1} or nil end }");
    struct ctx *ctx = bench_begin();
    ck_assert_int_eq(bench_hook(ctx, SCRIPT_ADMIT), SCRIPT_PASS);
    bench_end(ctx);
    ctx = bench_begin();
    for (int i = 0; i < 2000 && ctx->candidate_count == 0; i++) {
        bench_turn();
        usleep(500);
        ck_assert_int_eq(bench_hook(ctx, SCRIPT_SELECT), SCRIPT_PASS);
    }
    ck_assert_uint_eq(ctx->candidate_count, 1);
    bench_end(ctx);
}
END_TEST

START_TEST(test_locks)
{
    ck_assert_int_eq(
        run_admit("", "local lock = assert(gw.lock('a', 5))\n"
                      "local r = gw.all{ function() local l, why = gw.lock('a', 5) return l == nil "
                      "and why end, function() local l = gw.lock('b', 1) return l:release() end }\n"
                      "assert(r[1].value == 'busy' and r[2].value == true)\n"
                      "assert(not pcall(gw.lock, 'c', 1))\n"
                      "assert(lock:release() == true and lock:release() == false)\n"
                      "local again = assert(gw.lock('a', 0.005)) gw.sleep(0.01)\n"
                      "assert(gw.all{ function() return gw.lock('a', 5) ~= nil end }[1].value)\n"
                      "assert(again:release() == false)"),
        SCRIPT_PASS);
    // held by nobody after its coroutine ended; waiting works
    ck_assert_int_eq(run_admit("", "assert(gw.lock('z', 60))"), SCRIPT_PASS);
    ck_assert_int_eq(run_admit("", "assert(gw.lock('z', 60))"), SCRIPT_PASS);
    ck_assert_int_eq(run_admit("", "local r = gw.all{ function() local l = gw.lock('w', 5) "
                                   "gw.sleep(0.03) l:release() return 1 end, function() return "
                                   "gw.lock('w', 5, 2) ~= nil end } assert(r[2].value, "
                                   "r[2].error)"),
                     SCRIPT_PASS);
}
END_TEST

START_TEST(test_db)
{
    ck_assert_int_eq(run_admit("", "local rows = assert(gw.db.query('SELECT 1 AS a, ? AS b, ? AS "
                                   "c', 'x', nil)) assert(#rows == 1 and rows[1].a == 1 and "
                                   "rows[1].b == 'x' and rows[1].c == nil)"),
                     SCRIPT_PASS);
    ck_assert_int_eq(run_admit("", "local rows, why = gw.db.query('SELECT * FROM nowhere') "
                                   "assert(rows == nil and why:find('nowhere'), why)"),
                     SCRIPT_PASS);
    ck_assert_int_eq(run_admit("", "local rows, why = gw.db.query('SELECT * FROM client_keys') "
                                   "assert(rows == nil, 'keys are readable')"),
                     SCRIPT_PASS);
    ck_assert_int_eq(run_admit("",
                               "local r, why = gw.db.transaction{ {'UPDATE changes SET id = id', "
                               "expect_rows = 1} } assert(r == nil and type(why) == 'string')"),
                     SCRIPT_PASS);
    ck_assert_int_eq(run_admit("", "gw.db.query('SELECT 1', {})"), SCRIPT_DENIED);
}
END_TEST

START_TEST(test_services)
{
    ck_assert_int_eq(
        run_admit("", "local key, err = gw.keys.create{ name = 'k', scheme = 'sk' }\n"
                      "assert(key, err and err.message) assert(#key.key_value > 20)\n"
                      "local list = assert(gw.keys.list{ page = 1, page_size = 10 })\n"
                      "assert(list.total == 1 and list.items[1].uid == key.uid)\n"
                      "local got = assert(gw.keys.get(key.uid)) assert(got.name == 'k')\n"
                      "assert(gw.keys.revoke(key.uid))\n"
                      "local none, why = gw.keys.get('01890000-0000-7000-8000-000000000009')\n"
                      "assert(none == nil and why.code, 'no code')\n"
                      "local hidden = gw.crypto.fernet_decrypt(gw.crypto.fernet_encrypt('sk-up-"
                      "1234567890'))\n"
                      "local up = assert(gw.upstreams.create{ name = 'u', provider = 'openai', "
                      "base_url = 'http://127.0.0.1:9', api_key = hidden })\n"
                      "assert(not json.encode(gw.upstreams.get(up.uid)):find('up-12', 1, true))\n"
                      "assert(gw.upstreams.all()[1].name == 'u')\n"
                      "assert(gw.upstreams.candidates(ctx)[1].name == 'u')\n"
                      "assert(gw.prices.put{ model = 'gpt-x', input = money.usd('2'), output = "
                      "'8' })\n"
                      "assert(#gw.prices.list().items >= 1 or #gw.prices.list() >= 1)"),
        SCRIPT_PASS);
    bench_plugin("", "hooks = { price = function(ctx) local cost, version = "
                     "ctx.gw.prices.cost(ctx) assert(version > 0) return cost end }");
    struct ctx *ctx = bench_begin();
    ctx->has_usage = true;
    ctx->usage.input = 1000;
    ctx->usage.output = 500;
    bench_turn();
    epoch_enter(bench.reader);
    script_run_price(ctx);
    epoch_leave(bench.reader);
    ck_assert(ctx->has_cost && ctx->price_version > 0);
    ck_assert_int_eq(ctx->cost_nano, 6000000);
    bench_end(ctx);
}
END_TEST

START_TEST(test_fetch_refuses)
{
    ck_assert_int_eq(run_admit("", "local ok, why = pcall(gw.fetch, {url = 'http://other.test/'}) "
                                   "assert(not ok and why:find('other.test', 1, true))\n"
                                   "local r, err = gw.fetch{ url = 'http://127.0.0.1:9/' }\n"
                                   "assert(r == nil and err == 'denied' or err, err)\n"
                                   "assert(not pcall(gw.fetch, {url = 'file:///etc/passwd'}))\n"
                                   "assert(not pcall(gw.fetch, {url = 'http://127.0.0.1/', method "
                                   "= 'A B'}))"),
                     SCRIPT_PASS);
}
END_TEST

START_TEST(test_reload_waits)
{
    bench_plugin("", "needs = { process = true }, hooks = { admit = function(ctx) local ok, text = "
                     "ctx.gw.process.reload() ctx:flag(tostring(ok) .. text) "
                     "assert(ctx.gw.process.info().pid == 7 and ctx.gw.process.ready().ready) "
                     "assert(ctx.gw.process.metrics():find('moongate_')) end }, on_error = 'deny'");
    struct ctx *ctx = bench_begin();
    ck_assert_int_eq(script_run_hook(ctx, SCRIPT_ADMIT), SCRIPT_PENDING);
    bench.reload_done(bench.reload_arg, 0, SLICE_LIT("fine"));
    ck_assert_int_eq(bench.hook_calls, 1);
    ck_assert_int_eq(bench.outcome, SCRIPT_PASS);
    ck_assert(ctx_has_flag(ctx, "truefine"));
    // cancelled: the late answer finds nobody
    ck_assert_int_eq(script_run_hook(ctx, SCRIPT_ADMIT), SCRIPT_PENDING);
    script_cancel(ctx);
    bench.reload_done(bench.reload_arg, 0, SLICE_LIT("late"));
    ck_assert_int_eq(bench.hook_calls, 1);
    bench_end(ctx);
}
END_TEST

START_TEST(test_cancel_in_each_wait)
{
    static const char *const WAITS[] = {
        "gw.sleep(60)",
        "gw.all{ function() gw.sleep(60) end, function() gw.sleep(60) end }",
        "gw.db.query('SELECT 1')",
        "gw.keys.list{}",
        "gw.fetch{ url = 'http://127.0.0.1:9/' }",
        "assert(gw.lock('held', 60)) gw.sleep(60)",
        ("gw.all{ function() gw.lock('v', 60) gw.sleep(60) end, function() gw.lock('v', 60, 60) "
         "end }"),
        "while true do pcall(gw.sleep, 60) end", // ignores it and waits again
        "pcall(gw.sleep, 60) while true do end", // ignores it and runs on
        "gw.spawn(function() gw.sleep(0.001) end) gw.sleep(60)",
    };
    for (size_t i = 0; i < sizeof WAITS / sizeof *WAITS; i++) {
        for (int turns = 0; turns < 3; turns++) {
            char fields[1000];
            snprintf(fields, sizeof fields,
                     "needs = { db = true, keys = 'read', fetch = {'127.0.0.1'} }, hooks = { admit "
                     "= function(ctx) local gw = ctx.gw local ok, why = pcall(function() %s end) "
                     "gw.kv.set('why', tostring(why)) error(why, 0) end }",
                     WAITS[i]);
            bench_plugin("", fields);
            struct ctx *ctx = bench_begin();
            ck_assert_int_eq(script_run_hook(ctx, SCRIPT_ADMIT), SCRIPT_PENDING);
            for (int n = 0; n < turns; n++)
                (void)loop_turn(bench.loop);
            if (bench.hook_calls == 0) {
                script_cancel(ctx);
                struct buf why = BUF_INIT(1000);
                if (kv_get(bench.kv, SLICE_LIT("p"), SLICE_LIT("why"), &why) == 0)
                    ck_assert_msg(slice_is(buf_slice(&why), "cancelled") ||
                                      slice_ends(buf_slice(&why), "cancelled"),
                                  "%s: %.*s", WAITS[i], SLICE_FMT(buf_slice(&why)));
                buf_free(&why);
            }
            bench_end(ctx);
            for (int n = 0; n < 20; n++) {
                bench_turn();
                usleep(200);
            }
            ck_assert_msg(live_count() == 0, "%s left %zu", WAITS[i], live_count());
            bench.hook_calls = 0;
        }
    }
    ck_assert_int_eq(run_admit("", "assert(gw.lock('held', 1)) "), SCRIPT_PASS);
}
END_TEST

START_TEST(test_answers)
{
    bench_plugin("", "hooks = { select = function(ctx) return ctx:stream(function(emit)\n"
                     "emit{kind = 'thinking', text = 'hm'}\n"
                     "emit{kind = 'text', text = 'a'} ctx.gw.sleep(0.001)\n"
                     "emit{kind = 'text', text = 'b'}\n"
                     "emit{kind = 'tool', id = 't1', name = 'f', arguments = '{}'}\n"
                     "emit{kind = 'usage', input = 1, output = 2}\n"
                     "emit{kind = 'finish', reason = 'tool'}\n"
                     "assert(not pcall(emit, {kind = 'text', text = 'late'})) end) end }");
    struct ctx *ctx = bench_begin();
    ck_assert_int_eq(bench_hook(ctx, SCRIPT_SELECT), SCRIPT_ANSWERED);
    ck_assert_int_eq(ctx->respond.kind, CTX_ANSWER_EVENTS);
    script_answer_start(ctx);
    bench_wait(&bench.answer_ends, 1);
    ck_assert_int_eq(bench.answer_err, 0);
    ck_assert_msg(slice_is(buf_slice(&bench.events),
                           "start:0:|open:0:|delta:0:hm|close:0:|open:1:|delta:1:a|delta:1:b|"
                           "close:1:|open:2:|delta:2:{}|usage:0:|close:2:|finish:0:|"),
                  "%.*s", SLICE_FMT(buf_slice(&bench.events)));
    bench_end(ctx);
}
END_TEST

START_TEST(test_answer_lists_and_back_pressure)
{
    bench_plugin("", "hooks = { select = function(ctx) ctx:respond{ text = 'hello' } end }");
    struct ctx *ctx = bench_begin();
    ck_assert_int_eq(bench_hook(ctx, SCRIPT_SELECT), SCRIPT_ANSWERED);
    bench.event_result = GW_EAGAIN;
    script_answer_start(ctx);
    ck_assert_int_eq(bench.answer_ends, 0);
    for (int i = 0; i < 10; i++)
        bench_turn();
    ck_assert_int_eq(bench.answer_ends, 0);
    script_answer_writable(ctx);
    ck_assert_int_eq(bench.answer_ends, 1);
    ck_assert(
        slice_is(buf_slice(&bench.events), "start:0:|open:0:|delta:0:hello|close:0:|finish:0:|"));
    bench_end(ctx);
    // the client is gone
    ctx = bench_begin();
    ck_assert_int_eq(bench_hook(ctx, SCRIPT_SELECT), SCRIPT_ANSWERED);
    bench.event_result = GW_ERESET;
    script_answer_start(ctx);
    ck_assert_int_eq(bench.answer_ends, 2);
    ck_assert_int_eq(bench.answer_err, GW_ERESET);
    bench_end(ctx);
    // cancelled while it waits
    ctx = bench_begin();
    ck_assert_int_eq(bench_hook(ctx, SCRIPT_SELECT), SCRIPT_ANSWERED);
    bench.event_result = GW_EAGAIN;
    script_answer_start(ctx);
    script_cancel(ctx);
    script_answer_writable(ctx);
    ck_assert_int_eq(bench.answer_ends, 2);
    bench_end(ctx);
    ck_assert_uint_eq(live_count(), 0);
}
END_TEST

START_TEST(test_answer_that_fails)
{
    bench_plugin("", "hooks = { select = function(ctx) ctx:stream(function(emit) emit{kind = "
                     "'text', text = 'a'} error('x') end) end }");
    struct ctx *ctx = bench_begin();
    ck_assert_int_eq(bench_hook(ctx, SCRIPT_SELECT), SCRIPT_ANSWERED);
    script_answer_start(ctx);
    ck_assert_int_eq(bench.answer_ends, 1);
    ck_assert_int_eq(bench.answer_err, GW_EINTERNAL);
    ck_assert_int_eq(ctx->error.status, 500);
    bench_end(ctx);
}
END_TEST

START_TEST(test_tasks)
{
    bench_plugin("", "tasks = { {name = 't', every = 0.1, on = 'worker', timeout = 0.3, run = "
                     "function(gw) gw.kv.incr('runs') gw.kv.incr('now') if gw.kv.get('now') ~= '1' "
                     "then gw.kv.set('overlap', 'x') end gw.sleep(gw.kv.get('long') and 60 or "
                     "0.15) gw.kv.incr('now', -1) end} }");
    int64_t runs = 0;
    for (int i = 0; i < 3000 && runs < 3; i++) {
        bench_turn();
        usleep(500);
        ck_assert_int_eq(kv_incr(bench.kv, SLICE_LIT("p"), SLICE_LIT("runs"), 0, 0, &runs), 0);
    }
    ck_assert_int_ge(runs, 3);
    struct buf out = BUF_INIT(1 << 20);
    ck_assert_int_eq(kv_get(bench.kv, SLICE_LIT("p"), SLICE_LIT("overlap"), &out), GW_ENOTFOUND);
    // the deadline ends it
    ck_assert_int_eq(kv_set(bench.kv, SLICE_LIT("p"), SLICE_LIT("long"), SLICE_LIT("1"), 0), 0);
    bool was_ended = false;
    for (int i = 0; i < 3000 && !was_ended; i++) {
        bench_turn();
        usleep(500);
        buf_clear(&out);
        ck_assert_int_eq(stats_render(bench.stats, &out), 0);
        was_ended = slice_find(buf_slice(&out), SLICE_LIT("hook=\"task\"")) >= 0;
    }
    ck_assert(was_ended);
    // and the flip stops it
    bench_plugin("", "hooks = {}");
    for (int i = 0; i < 20; i++)
        bench_turn();
    ck_assert_uint_eq(script_generation_count(bench.script), 1);
    buf_free(&out);
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("async");
    tcase_add_checked_fixture(tcase, bench_up, bench_down);
    tcase_set_timeout(tcase, 120);
    tcase_add_test(tcase, test_sleep);
    tcase_add_test(tcase, test_waiting_where_it_is_not_allowed);
    tcase_add_test(tcase, test_all);
    tcase_add_test(tcase, test_spawn);
    tcase_add_test(tcase, test_locks);
    tcase_add_test(tcase, test_db);
    tcase_add_test(tcase, test_services);
    tcase_add_test(tcase, test_fetch_refuses);
    tcase_add_test(tcase, test_reload_waits);
    tcase_add_test(tcase, test_cancel_in_each_wait);
    tcase_add_test(tcase, test_answers);
    tcase_add_test(tcase, test_answer_lists_and_back_pressure);
    tcase_add_test(tcase, test_answer_that_fails);
    tcase_add_test(tcase, test_tasks);
    return bench_run(&tcase, 1, "async");
}
