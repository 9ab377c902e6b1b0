// Hooks: each one's contract, order, faults, and what they leave of the exchange.
#include "script_test.h"

#define HOOK(name, body) "hooks = { " name " = function(ctx, conf) " body " end }"

static enum script_outcome run_one(const char *fields, enum script_hook hook)
{
    bench_plugin("", fields);
    struct ctx *ctx = bench_begin();
    enum script_outcome outcome = bench_hook(ctx, hook);
    bench_end(ctx);
    return outcome;
}

START_TEST(test_missing_hooks_pass)
{
    bench_plugin("", "hooks = {}");
    struct ctx *ctx = bench_begin();
    for (int hook = 0; hook < SCRIPT_HOOK_COUNT; hook++)
        ck_assert(!script_has_hook(ctx, (enum script_hook)hook));
    ck_assert_int_eq(script_run_hook(ctx, SCRIPT_SELECT), SCRIPT_PASS);
    ck_assert_int_eq(ctx->lua_object, 0); // not even the object is made
    bench_end(ctx);
}
END_TEST

START_TEST(test_ctx_reads_the_exchange)
{
    bench_plugin(
        "", HOOK("admit",
                 "assert(ctx.model == 'gpt-x' and ctx.dialect == 'openai' and ctx.op == 'chat')\n"
                 "assert(ctx.method == 'POST' and ctx.path == '/v1/chat/completions')\n"
                 "assert(ctx.headers['user-agent'] == 'curl/8')\n"
                 "assert(ctx.headers.authorization == nil)\n"
                 "assert(ctx.key == nil and ctx.user == nil and ctx.cost == nil)\n"
                 "assert(ctx:field('n') == 2 and ctx:field('a.b') == 'c')\n"
                 "assert(ctx:field('zzz') == nil and ctx:json().a.b == 'c')\n"
                 "assert(#ctx:body() == ctx.body_size and ctx.is_stream == false)\n"
                 "assert(ctx.gw.plugin == 'p' and ctx.request_id == 'req_1')\n"
                 "assert(not pcall(function() return ctx.nonsense end))\n"
                 "assert(not pcall(function() ctx.model = 1 end))\n"
                 "ctx.vars.n = (ctx.vars.n or 0) + 1\n"
                 "ctx:flag('seen') ctx:flag('seen')\n"
                 "if ctx.vars.n == 2 then ctx:deny(402, 'twice', 'seen twice') end"));
    struct ctx *ctx = bench_begin();
    ck_assert_int_eq(bench_hook(ctx, SCRIPT_ADMIT), SCRIPT_PASS);
    ck_assert_uint_eq(ctx->flag_count, 1);
    ck_assert_int_eq(bench_hook(ctx, SCRIPT_ADMIT), SCRIPT_DENIED);
    ck_assert_int_eq(ctx->error.status, 402);
    ck_assert(slice_is(ctx->error.code, "twice"));
    bench_end(ctx);
}
END_TEST

START_TEST(test_identify)
{
    bench_plugin("", HOOK("identify", "ctx:identify{ name = 'me' } return true"));
    struct ctx *ctx = bench_begin();
    ck_assert_int_eq(bench_hook(ctx, SCRIPT_IDENTIFY), SCRIPT_PASS);
    ck_assert(ctx->is_identified && slice_is(ctx->identity_name, "me"));
    bench_end(ctx);
    ck_assert_int_eq(run_one(HOOK("identify", "return nil"), SCRIPT_IDENTIFY), SCRIPT_PASS);
    ck_assert_int_eq(run_one(HOOK("identify", "ctx:deny(401, 'no', 'no')"), SCRIPT_IDENTIFY),
                     SCRIPT_DENIED);
    // true without having identified anybody is a fault
    ck_assert_int_eq(
        run_one("on_error = 'deny', " HOOK("identify", "return true"), SCRIPT_IDENTIFY),
        SCRIPT_DENIED);
    bench_plugin("", HOOK("identify", "local key, why = ctx.gw.keys.authenticate(ctx)\n"
                                      "assert(key == nil and why == 'invalid', why)"));
    ctx = bench_begin();
    ck_assert_int_eq(bench_hook(ctx, SCRIPT_IDENTIFY), SCRIPT_PASS);
    ck_assert(!ctx->is_identified && !ctx->is_denied);
    bench_end(ctx);
}
END_TEST

START_TEST(test_select)
{
    bench_plugin("", HOOK("select", "return {3, {id = 7}}"));
    struct ctx *ctx = bench_begin();
    ck_assert_int_eq(bench_hook(ctx, SCRIPT_SELECT), SCRIPT_PASS);
    ck_assert_uint_eq(ctx->candidate_count, 2);
    ck_assert_int_eq(ctx->candidates[0], 3);
    ck_assert_int_eq(ctx->candidates[1], 7);
    bench_end(ctx);
    ck_assert_int_eq(run_one(HOOK("select", "ctx:respond{ json = {a = 1} }"), SCRIPT_SELECT),
                     SCRIPT_ANSWERED);
    ck_assert_int_eq(run_one("on_error = 'deny', " HOOK("select", "return 5"), SCRIPT_SELECT),
                     SCRIPT_DENIED);
    ck_assert_int_eq(run_one("on_error = 'deny', " HOOK("select", "return {'x'}"), SCRIPT_SELECT),
                     SCRIPT_DENIED);
    ck_assert_int_eq(run_one("on_error = 'skip', " HOOK("select", "return {0.5}"), SCRIPT_SELECT),
                     SCRIPT_PASS);
    ck_assert_int_eq(
        run_one(HOOK("select", "return ctx.gw.upstreams.candidates(ctx)"), SCRIPT_SELECT),
        SCRIPT_PASS);
}
END_TEST

START_TEST(test_first_answer_wins_and_order_holds)
{
    bench_write(0, "a",
                "return { name = 'a', version = '1', api = 1, about = 'a', hooks = {"
                "select = function(ctx) ctx:flag('a') end,"
                "admit = function(ctx) ctx:flag('a') end } }");
    bench_write(1, "b",
                "return { name = 'b', version = '1', api = 1, about = 'b', hooks = {"
                "select = function(ctx) ctx:flag('b') return {2} end,"
                "admit = function(ctx) ctx:flag('b') ctx:deny(403, 'b', 'b') end } }");
    bench_write(2, "c",
                "return { name = 'c', version = '1', api = 1, about = 'c', hooks = {"
                "select = function(ctx) ctx:flag('c') return {3} end,"
                "admit = function(ctx) ctx:flag('c') end } }");
    bench_flip(3);
    struct ctx *ctx = bench_begin();
    ck_assert_int_eq(bench_hook(ctx, SCRIPT_SELECT), SCRIPT_PASS);
    ck_assert_int_eq(ctx->candidates[0], 2);
    ck_assert_uint_eq(ctx->flag_count, 2);
    ck_assert(slice_is(ctx->flags[0], "a") && slice_is(ctx->flags[1], "b"));
    bench_end(ctx);
    ctx = bench_begin();
    ck_assert_int_eq(bench_hook(ctx, SCRIPT_ADMIT), SCRIPT_DENIED);
    ck_assert(!ctx_has_flag(ctx, "c"));
    bench_end(ctx);
}
END_TEST

START_TEST(test_prepare)
{
    bench_plugin("", HOOK("prepare", "local out = ctx.outgoing\n"
                                     "out:set_field('store', false)\n"
                                     "out:set_field('meta', {a = {1, 2}})\n"
                                     "out:drop_field('x.y')\n"
                                     "out:rename_field('max_tokens', 'max_completion_tokens')\n"
                                     "out:set_header('x-a', 'b') out:set_header('x-c', nil)\n"
                                     "out:set_path('/v2') out:set_query('a=b')\n"
                                     "assert(not pcall(out.set_header, out, 'x', 'a\\r\\nb'))\n"
                                     "assert(not pcall(out.set_path, out, 'no'))"));
    struct ctx *ctx = bench_begin();
    ck_assert_int_eq(bench_hook(ctx, SCRIPT_PREPARE), SCRIPT_PASS);
    ck_assert_uint_eq(ctx->outgoing.edit_count, 4);
    ck_assert(slice_is(ctx->outgoing.edits[0].value, "false"));
    ck_assert(slice_is(ctx->outgoing.edits[1].value, "{\"a\":[1,2]}"));
    ck_assert_int_eq(ctx->outgoing.edits[2].kind, CTX_EDIT_DROP);
    ck_assert(slice_is(ctx->outgoing.edits[3].value, "max_completion_tokens"));
    ck_assert_uint_eq(ctx->outgoing.header_count, 2);
    ck_assert_ptr_null(ctx->outgoing.headers[1].value.ptr);
    ck_assert(slice_is(ctx->outgoing.path, "/v2") && slice_is(ctx->outgoing.query, "a=b"));
    bench_end(ctx);
    ck_assert_int_eq(run_one("on_error = 'deny', " HOOK("prepare", "return 1"), SCRIPT_PREPARE),
                     SCRIPT_DENIED);
    ck_assert_int_eq(
        run_one("on_error = 'deny', " HOOK("admit", "ctx.outgoing:set_path('/x')"), SCRIPT_ADMIT),
        SCRIPT_DENIED);
}
END_TEST

START_TEST(test_reply)
{
    bench_plugin("", HOOK("reply", "if ctx.upstream.status == 503 and ctx.can_retry and\n"
                                   "ctx.upstream.headers['retry-after'] == '1' then\n"
                                   "return 'retry' end"));
    static const struct http1_header head[] = {{{"retry-after", 11}, {"1", 1}}};
    struct ctx *ctx = bench_begin();
    ctx->upstream = (struct ctx_upstream){
        .id = 4, .name = SLICE_LIT("u"), .status = 503, .headers = head, .header_count = 1};
    ctx->can_retry = true;
    ck_assert_int_eq(bench_hook(ctx, SCRIPT_REPLY), SCRIPT_RETRY);
    ctx->can_retry = false;
    ck_assert_int_eq(bench_hook(ctx, SCRIPT_REPLY), SCRIPT_PASS);
    bench_end(ctx);
    ck_assert_int_eq(run_one(HOOK("reply", "return 'pass'"), SCRIPT_REPLY), SCRIPT_PASS);
    ck_assert_int_eq(run_one("on_error = 'deny', " HOOK("reply", "return 'again'"), SCRIPT_REPLY),
                     SCRIPT_DENIED);
}
END_TEST

START_TEST(test_body)
{
    bench_plugin("", "hooks = { body = function(ctx, text, conf) if #text > 3 then "
                     "ctx.gw.sleep(0.002) return text:upper() end end }");
    struct ctx *ctx = bench_begin();
    struct slice out;
    ck_assert_int_eq(script_run_body(ctx, SLICE_LIT("abc"), &out), SCRIPT_PASS);
    ck_assert(slice_is(out, "abc") && ctx_has_flag(ctx, "body_hook"));
    ck_assert_int_eq(script_run_body(ctx, SLICE_LIT("abcd"), &out), SCRIPT_PENDING);
    bench_wait(&bench.hook_calls, 1);
    ck_assert_int_eq(bench.outcome, SCRIPT_PASS);
    ck_assert(slice_is(ctx->body_text, "ABCD"));
    bench_end(ctx);
}
END_TEST

START_TEST(test_delta)
{
    bench_plugin("", "wants = {'text'}, hooks = { delta = function(ctx, kind, text)\n"
                     "if text == 'drop' then return false end\n"
                     "if text == 'bad' then return 7 end\n"
                     "if text == 'wait' then ctx.gw.sleep(1) end\n"
                     "if text == 'up' then return kind .. 'UP' end end }, on_error = 'skip'");
    struct ctx *ctx = bench_begin();
    struct slice out;
    ck_assert(script_wants_delta(ctx, EVENT_BLOCK_TEXT));
    ck_assert(!script_wants_delta(ctx, EVENT_BLOCK_THINKING));
    ck_assert_int_eq(script_run_delta(ctx, EVENT_BLOCK_TEXT, SLICE_LIT("x"), &out), 0);
    ck_assert_int_eq(script_run_delta(ctx, EVENT_BLOCK_TEXT, SLICE_LIT("drop"), &out), 2);
    ck_assert_int_eq(script_run_delta(ctx, EVENT_BLOCK_TEXT, SLICE_LIT("up"), &out), 1);
    ck_assert(slice_is(out, "textUP"));
    ck_assert_int_eq(script_run_delta(ctx, EVENT_BLOCK_TEXT, SLICE_LIT("bad"), &out), 0);
    ck_assert_int_eq(script_run_delta(ctx, EVENT_BLOCK_TEXT, SLICE_LIT("wait"), &out), 0);
    ck_assert_int_eq(script_run_delta(ctx, EVENT_BLOCK_THINKING, SLICE_LIT("up"), &out), 0);
    bench_end(ctx);
}
END_TEST

START_TEST(test_price)
{
    bench_write(0, "a",
                "return { name = 'a', version = '1', api = 1, about = 'a', hooks = { price "
                "= function(ctx, cost) assert(cost == nil) return money.usd('2') end } }");
    bench_write(1, "b",
                "return { name = 'b', version = '1', api = 1, about = 'b', hooks = { price "
                "= function(ctx, cost) return money.scale(cost, '0.5') end } }");
    bench_write(2, "c",
                "return { name = 'c', version = '1', api = 1, about = 'c', on_error = "
                "'skip', hooks = { price = function(ctx, cost) return 5 end } }");
    bench_flip(3);
    struct ctx *ctx = bench_begin();
    script_run_price(ctx);
    ck_assert(ctx->has_cost);
    ck_assert_int_eq(ctx->cost_nano, 1000000000);
    ck_assert(ctx_has_flag(ctx, "price_failed"));
    bench_end(ctx);
}
END_TEST

START_TEST(test_error_and_finish)
{
    bench_plugin("local seen = 0",
                 "hooks = { error = function(ctx, err) assert(ctx.error.status == 502) return { "
                 "status = 503, code = 'later', retry_after = 2 } end, finish = function(ctx) "
                 "seen = seen + 1 ctx:flag('n' .. seen) end }");
    struct ctx *ctx = bench_begin();
    ctx->error.status = 502;
    ctx->error.code = SLICE_LIT("x");
    ck_assert_int_eq(bench_hook(ctx, SCRIPT_ERROR), SCRIPT_PASS);
    ck_assert_int_eq(ctx->error.status, 503);
    ck_assert(slice_is(ctx->error.code, "later"));
    ck_assert_int_eq((int)ctx->error.retry_after_ms, 2000);
    ck_assert_int_eq(bench_hook(ctx, SCRIPT_FINISH), SCRIPT_PASS);
    ck_assert(ctx_has_flag(ctx, "n1"));
    bench_end(ctx);
}
END_TEST

START_TEST(test_faults_deny_or_skip)
{
    ck_assert_int_eq(run_one("on_error = 'deny', " HOOK("admit", "error('x')"), SCRIPT_ADMIT),
                     SCRIPT_DENIED);
    ck_assert_int_eq(run_one("on_error = 'skip', " HOOK("admit", "error('x')"), SCRIPT_ADMIT),
                     SCRIPT_PASS);
    ck_assert_int_eq(
        run_one("on_error = 'skip', " HOOK("admit", "ctx:deny(403, 'a', 'b') error('x')"),
                SCRIPT_ADMIT),
        SCRIPT_PASS);
    ck_assert_int_eq(run_one("on_error = 'deny', " HOOK("admit", "error({})"), SCRIPT_ADMIT),
                     SCRIPT_DENIED);
    struct buf out = BUF_INIT(1 << 20);
    ck_assert_int_eq(stats_render(bench.stats, &out), 0);
    ck_assert_int_eq(buf_append_char(&out, '\0'), 0);
    ck_assert(
        strstr(buf_slice(&out).ptr, "moongate_lua_errors_total{plugin=\"p\",hook=\"admit\"} 4"));
    buf_free(&out);
}
END_TEST

START_TEST(test_three_faults_switch_a_skip_plugin_off)
{
    bench_plugin("local n = 0", "on_error = 'skip', hooks = { admit = function(ctx) n = n + 1 "
                                "ctx:flag('n' .. n) error('x') end }");
    struct ctx *ctx = bench_begin();
    for (int i = 0; i < 6; i++)
        ck_assert_int_eq(bench_hook(ctx, SCRIPT_ADMIT), SCRIPT_PASS);
    ck_assert_uint_eq(ctx->flag_count, 3);
    bench_end(ctx);
    bench_plugin("local n = 0", "on_error = 'deny', hooks = { admit = function(ctx) error('x') "
                                "end }");
    ctx = bench_begin();
    for (int i = 0; i < 6; i++)
        ck_assert_int_eq(bench_hook(ctx, SCRIPT_ADMIT), SCRIPT_DENIED);
    bench_end(ctx);
}
END_TEST

START_TEST(test_ctx_dies_with_its_exchange)
{
    bench_plugin("local kept",
                 "on_error = 'deny', hooks = { finish = function(ctx) kept = ctx end, "
                 "admit = function(ctx) if kept then local ok, why = pcall(function() "
                 "return kept.model end) assert(not ok and why:find('has ended')) "
                 "assert(not pcall(kept.deny, kept, 400, 'a', 'b')) end end }");
    struct ctx *ctx = bench_begin();
    ck_assert_int_eq(bench_hook(ctx, SCRIPT_FINISH), SCRIPT_PASS);
    bench_end(ctx);
    ctx = bench_begin();
    ck_assert_int_eq(bench_hook(ctx, SCRIPT_ADMIT), SCRIPT_PASS);
    bench_end(ctx);
}
END_TEST

START_TEST(test_capabilities)
{
    bench_plugin("", "hooks = { admit = function(ctx) local gw = ctx.gw\n"
                     "local function refused(what, need, fn, ...)\n"
                     "  local ok, why = pcall(fn, ...)\n"
                     "  assert(not ok and why:find(need, 1, true), what .. tostring(why))\n"
                     "end\n"
                     "refused('db', 'db = true', gw.db.query, 'SELECT 1')\n"
                     "refused('keys', 'keys =', gw.keys.list, {})\n"
                     "refused('fetch', 'fetch', gw.fetch, {url = 'http://x.com/'})\n"
                     "refused('secret', 'secrets', gw.secret, 'EPAY_KEY')\n"
                     "refused('process', 'process = true', gw.process.info)\n"
                     "refused('conf', 'secret', gw.conf, 'admin_token')\n"
                     "assert(gw.conf('max_attempts') == 4)\n"
                     "assert(gw.plugins()[1].name == 'p') end }, on_error = 'deny'");
    struct ctx *ctx = bench_begin();
    enum script_outcome outcome = bench_hook(ctx, SCRIPT_ADMIT);
    ck_assert_int_eq(outcome, SCRIPT_PASS);
    bench_end(ctx);
}
END_TEST

START_TEST(test_tools)
{
    bench_plugin("", "on_error = 'deny', metrics = { {name = 'x_total', kind = 'counter', help = "
                     "'X.', labels = {'a'}} }, hooks = { admit = function(ctx) local gw = ctx.gw\n"
                     "assert(gw.kv.set('k', 'v') and gw.kv.get('k') == 'v')\n"
                     "assert(gw.kv.add('k', 'w') == false and gw.kv.incr('n', 2) == 2)\n"
                     "assert(gw.kv.drop('k') and gw.kv.get('k') == nil)\n"
                     "assert(gw.crypto.sha256hex('') == 'e3b0c44298fc1c149afbf4c8996fb92427ae41e4"
                     "649b934ca495991b7852b855')\n"
                     "assert(gw.crypto.md5hex('a', 'bc') == '900150983cd24fb0d6963f7d28e17f72')\n"
                     "assert(gw.crypto.md5hex('abc') == '900150983cd24fb0d6963f7d28e17f72')\n"
                     "assert(#gw.crypto.hmac_sha256('k', 'd') == 64)\n"
                     "assert(#gw.crypto.token(32) == 43 and #gw.crypto.uuid() == 36)\n"
                     "local token = gw.crypto.fernet_encrypt('hush')\n"
                     "local secret = gw.crypto.fernet_decrypt(token)\n"
                     "assert(tostring(secret) == '[secret]' and gw.crypto.equal(secret, 'hush'))\n"
                     "assert(gw.crypto.fernet_decrypt('x') == nil)\n"
                     "assert(gw.random(6) >= 1 and gw.random() < 1 and gw.now() > 1e9)\n"
                     "gw.metrics.add('x_total', {a = 'b'}, 2)\n"
                     "assert(not pcall(gw.metrics.add, 'y_total'))\n"
                     "gw.log.info('hello', {a = 1}) log.info('hello') print('x')\n"
                     "end }");
    struct ctx *ctx = bench_begin();
    ck_assert_int_eq(bench_hook(ctx, SCRIPT_ADMIT), SCRIPT_PASS);
    bench_end(ctx);
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("hook");
    tcase_add_checked_fixture(tcase, bench_up, bench_down);
    tcase_set_timeout(tcase, 120);
    tcase_add_test(tcase, test_missing_hooks_pass);
    tcase_add_test(tcase, test_ctx_reads_the_exchange);
    tcase_add_test(tcase, test_identify);
    tcase_add_test(tcase, test_select);
    tcase_add_test(tcase, test_first_answer_wins_and_order_holds);
    tcase_add_test(tcase, test_prepare);
    tcase_add_test(tcase, test_reply);
    tcase_add_test(tcase, test_body);
    tcase_add_test(tcase, test_delta);
    tcase_add_test(tcase, test_price);
    tcase_add_test(tcase, test_error_and_finish);
    tcase_add_test(tcase, test_faults_deny_or_skip);
    tcase_add_test(tcase, test_three_faults_switch_a_skip_plugin_off);
    tcase_add_test(tcase, test_ctx_dies_with_its_exchange);
    tcase_add_test(tcase, test_capabilities);
    tcase_add_test(tcase, test_tools);
    return bench_run(&tcase, 1, "hook");
}
