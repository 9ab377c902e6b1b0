// A bad plugin beside a healthy exchange, and generations: what one does must not be seen by the
// other, and nothing may be left.
#include "script_test.h"

static void expect_healthy(void)
{
    struct ctx *ctx = bench_begin();
    ck_assert_int_eq(bench_hook(ctx, SCRIPT_SELECT), SCRIPT_PASS);
    ck_assert_uint_eq(ctx->candidate_count, 1);
    bench_end(ctx);
}

#define GOOD                                                                                       \
    "return { name = 'good', version = '1', api = 1, about = 'g', on_error = 'deny', hooks = { "   \
    "select = function(ctx) local t = {} for i = 1, 100 do t[i] = {i} end ctx.gw.sleep(0) return " \
    "{t[1][1]} end } }"

START_TEST(test_bad_hooks_beside_a_healthy_exchange)
{
    static const char *const BAD[] = {
        "while true do end",
        "while true do pcall(function() while true do end end) end",
        "xpcall(function() while true do end end, function() while true do end end)",
        "return setmetatable({}, {__index = function() while true do end end}).x",
        "('x'):gsub('x', function() while true do end end)",
        "while true do ('x'):rep(1000000) end",
        "while true do pcall(string.find, ('a'):rep(3000), ('.-'):rep(20) .. 'b') end",
        "local t = {} while true do t[#t + 1] = {} end",
        "local t = {} while true do t[#t + 1] = function() return t end end",
        "local s = 'x' while true do s = s .. s end",
        "KEPT = KEPT or {} while true do KEPT[#KEPT + 1] = {} end",
        "local function f() return 1 + f() end f()",
        "error(setmetatable({}, {__tostring = function() error('x') end}))",
        "error()",
        "local t = {} for i = 1, 300 do t[i] = i end return unpack(t)",
        "gw.sleep(0) while true do end",
        "assert(gw.json.decode(('['):rep(100000)))",
        "local t = {} for i = 1, 24 do t = {t, t} end gw.json.encode(t)",
        "require('./missing')",
        "ctx:deny('x')",
        "ctx:respond{}",
        "ctx.outgoing.x()",
        "local a, b = ctx.vars, {} for i = 1, 1e9 do a[i] = b end",
    };
    bench_write(1, "good", GOOD);
    for (size_t i = 0; i < sizeof BAD / sizeof *BAD; i++) {
        char text[2000];
        snprintf(text, sizeof text,
                 "local KEPT\nreturn { name = 'bad', version = '1', api = 1, about = 'b', on_error "
                 "= 'deny', hooks = { admit = function(ctx) local gw = ctx.gw %s end } }",
                 BAD[i]);
        bench_write(0, "bad", text);
        bench_flip(2);
        struct ctx *ctx = bench_begin(), *other = bench_begin();
        ck_assert_int_eq(script_run_hook(other, SCRIPT_SELECT), SCRIPT_PENDING);
        for (int n = 0; n < 3; n++) {
            uint64_t start = clock_boot_ns();
            ck_assert_msg(bench_hook(ctx, SCRIPT_ADMIT) == SCRIPT_DENIED, "%s", BAD[i]);
            uint64_t took_ms = (clock_boot_ns() - start) / 1000000u;
            ck_assert_msg(took_ms < 2000, "%s took %lu ms", BAD[i], (unsigned long)took_ms);
            ck_assert(slice_is(ctx->error.code, "plugin_error"));
            ctx->is_denied = false;
        }
        bench_wait(&bench.hook_calls, 1);
        bench.hook_calls = 0;
        ck_assert_msg(other->candidate_count == 1, "%s", BAD[i]);
        bench_end(ctx);
        bench_end(other);
        bench_turn();
        expect_healthy();
        bench.hook_calls = 0;
    }
}
END_TEST

START_TEST(test_hogs_that_wait_are_ended)
{
    bench_write(0, "bad",
                "return { name = 'bad', version = '1', api = 1, about = 'b', on_error = "
                "'deny', hooks = { admit = function(ctx) local t = {} for i = 1, 20 do "
                "for n = 1, 15 do t[#t + 1] = ('x'):rep(1e5) .. #t end ctx.gw.sleep(0) "
                "end ctx.gw.sleep(60) end } }");
    bench_write(1, "good", GOOD);
    bench_flip(2);
    struct ctx *ctx = bench_begin();
    int before = bench.hook_calls;
    ck_assert_int_eq(script_run_hook(ctx, SCRIPT_ADMIT), SCRIPT_PENDING);
    bench_wait(&bench.hook_calls, before + 1);
    ck_assert_int_eq(bench.outcome, SCRIPT_DENIED);
    bench_end(ctx);
    bench_turn();
    expect_healthy();
}
END_TEST

START_TEST(test_bad_sets_leave_the_old_one)
{
    static const char *const BAD[] = {
        "return {",
        "error('at load')",
        "while true do end",
        "local t = {} while true do t[#t + 1] = {} end",
        "return 5",
        "return { name = 'p', version = '1', api = 1, about = 'x', init = function() error('in "
        "init') end }",
        "return { name = 'p', version = '1', api = 1, about = 'x', init = function() while true do "
        "end end }",
        "return { name = 'p', version = '1', api = 1, about = 'x', hooks = { nosuch = function() "
        "end } }",
    };
    bench_write(0, "p", GOOD);
    bench_plugin("", "hooks = { select = function() return {5} end }");
    for (size_t i = 0; i < sizeof BAD / sizeof *BAD; i++) {
        struct buf problems = BUF_INIT(65536);
        bench_write(0, "p", BAD[i]);
        ck_assert_msg(bench_try(1, &problems) != 0, "%s", BAD[i]);
        ck_assert_msg(slice_find(buf_slice(&problems), SLICE_LIT("init.lua")) >= 0, "%s: %.*s",
                      BAD[i], SLICE_FMT(buf_slice(&problems)));
        buf_free(&problems);
        ck_assert_uint_eq(script_generation_count(bench.script), 1);
        expect_healthy();
    }
}
END_TEST

static void flip_number(int number)
{
    char fields[300];
    snprintf(
        fields, sizeof fields,
        "hooks = { select = function() return {%d} end, admit = function(ctx) ctx.gw.sleep(60) "
        "end, finish = function(ctx) ctx:flag('g%d') end }",
        number, number);
    bench_plugin("", fields);
}

START_TEST(test_exchanges_stay_on_their_generation)
{
    struct ctx *list[8];
    for (int i = 1; i <= 4; i++) {
        flip_number(i);
        list[i] = bench_begin();
    }
    ck_assert_uint_eq(script_generation_count(bench.script), 4);
    for (int i = 1; i <= 4; i++) {
        ck_assert_int_eq(bench_hook(list[i], SCRIPT_SELECT), SCRIPT_PASS);
        ck_assert_int_eq(list[i]->candidates[0], i);
    }
    // The oldest has to go when there are too many: its exchanges end on the newest.
    ck_assert_int_eq(script_run_hook(list[1], SCRIPT_ADMIT), SCRIPT_PENDING);
    flip_number(5);
    ck_assert_int_eq(bench.hook_calls, 0);
    flip_number(6);
    ck_assert_int_eq(bench.hook_calls, 1); // what it waited for was ended
    ck_assert_int_eq(bench.outcome, SCRIPT_DENIED);
    ck_assert_int_eq(bench_hook(list[1], SCRIPT_FINISH), SCRIPT_PASS);
    ck_assert(ctx_has_flag(list[1], "g6"));
    ck_assert_int_eq(bench_hook(list[2], SCRIPT_FINISH), SCRIPT_PASS);
    ck_assert(ctx_has_flag(list[2], "g2"));
    for (int i = 1; i <= 4; i++)
        bench_end(list[i]);
    for (int i = 0; i < 10; i++)
        bench_turn();
    ck_assert_uint_eq(script_generation_count(bench.script), 1);
}
END_TEST

static size_t resident_kib(void)
{
    size_t pages = 0, resident = 0;
    FILE *in = fopen("/proc/self/statm", "r");
    ck_assert_int_eq(fscanf(in, "%zu %zu", &pages, &resident), 2);
    fclose(in);
    return resident * 4;
}

START_TEST(test_a_thousand_generations)
{
    bench_plugin("",
                 "hooks = { select = function(ctx) ctx.gw.sleep(0) return {1} end }, routes = { "
                 "{'GET', '/a', function() return 200 end, auth = 'none', about = 'a'} }");
    struct plugin_set *set = plugin_set_ref(bench.script->current->set);
    struct buf problems = BUF_INIT(65536);
    size_t memory = 0, resident = 0;
    for (int i = 0; i < 1000; i++) {
        ck_assert_int_eq(script_prepare(bench.script, set, &problems), 0);
        struct ctx *ctx = bench_begin();
        ck_assert_int_eq(script_run_hook(ctx, SCRIPT_SELECT), SCRIPT_PENDING);
        script_flip(bench.script); // with a coroutine in flight
        int before = bench.hook_calls;
        bench_wait(&bench.hook_calls, before + 1);
        ck_assert_int_eq(bench.outcome, SCRIPT_PASS);
        bench_end(ctx);
        bench_turn();
        ck_assert_uint_le(script_generation_count(bench.script), 2);
        if (i == 100) {
            memory = script_memory_used(bench.script);
            resident = resident_kib();
        }
    }
    // One fresh state each time; what it holds varies a little with the collector's steps.
    ck_assert_uint_le(script_memory_used(bench.script), memory + memory / 2);
#if !defined(MOONGATE_ASAN)
    ck_assert_uint_le(resident_kib(), resident + 4096);
#else
    (void)resident;
#endif
    buf_free(&problems);
    plugin_set_unref(set);
}
END_TEST

START_TEST(test_discard)
{
    flip_number(1);
    struct buf problems = BUF_INIT(65536);
    for (int i = 0; i < 20; i++) {
        ck_assert_int_eq(script_prepare(bench.script, bench.script->current->set, &problems), 0);
        ck_assert_uint_eq(script_generation_count(bench.script), 2);
        script_discard(bench.script);
    }
    ck_assert_uint_eq(script_generation_count(bench.script), 1);
    buf_free(&problems);
}
END_TEST

START_TEST(test_memory_returns)
{
    bench_plugin("",
                 "hooks = { select = function(ctx) local t = {} for i = 1, 200 do t[i] = "
                 "('y'):rep(1000) .. i end ctx.vars.t = t ctx.gw.sleep(0) return {1} end, finish "
                 "= function(ctx) end }");
    size_t base = 0;
    for (int i = 0; i < 400; i++) {
        struct ctx *ctx = bench_begin();
        ck_assert_int_eq(bench_hook(ctx, SCRIPT_SELECT), SCRIPT_PASS);
        ck_assert_int_eq(bench_hook(ctx, SCRIPT_FINISH), SCRIPT_PASS);
        bench_end(ctx);
        if (i == 100)
            base = script_memory_used(bench.script);
    }
    ck_assert_uint_le(script_memory_used(bench.script), base + ((size_t)4 << 20));
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("isolation");
    tcase_add_checked_fixture(tcase, bench_up, bench_down);
    tcase_set_timeout(tcase, 240);
    tcase_add_test(tcase, test_bad_hooks_beside_a_healthy_exchange);
    tcase_add_test(tcase, test_hogs_that_wait_are_ended);
    tcase_add_test(tcase, test_bad_sets_leave_the_old_one);
    tcase_add_test(tcase, test_exchanges_stay_on_their_generation);
    tcase_add_test(tcase, test_a_thousand_generations);
    tcase_add_test(tcase, test_discard);
    tcase_add_test(tcase, test_memory_returns);
    return bench_run(&tcase, 1, "isolation");
}
