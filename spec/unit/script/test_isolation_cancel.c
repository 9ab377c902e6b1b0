// Everything a coroutine can wait for, cut short: by a client that goes away, by a reload, by more
// reloads than generations. The code sees "cancelled" once and may not wait again; locks, timers,
// fetches and jobs are gone; a thousand generations leave nothing.
#include "isolation_rig.h"
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <sys/socket.h>

static int silent_fd, silent_port; // takes connections, says nothing

static void up(void)
{
    iso_up();
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof address;
    test_conf_set(bench.store.conf, "allowed_private_hosts", "127.0.0.0/8");
    silent_fd = socket(AF_INET, SOCK_STREAM, 0);
    ck_assert_int_eq(bind(silent_fd, (struct sockaddr *)&address, len), 0);
    ck_assert_int_eq(listen(silent_fd, 128), 0);
    ck_assert_int_eq(getsockname(silent_fd, (struct sockaddr *)&address, &len), 0);
    silent_port = ntohs(address.sin_port);
}

static void down(void)
{
    close(silent_fd);
    iso_down();
}

// What is waited for. `ends`: it comes back by itself when nobody interferes.
static const struct {
    const char *name, *code;
    bool ends;
} WAITS[] = {
    {"sleep", "gw.sleep(60)", false},
    {"short sleep", "gw.sleep(0.01)", true},
    {"fetch", "gw.fetch{url = URL, timeout = 60}", false},
    {"fetch with a body", "gw.fetch{url = URL, method = 'POST', json = {a = 1}, timeout = 60}",
     false},
    {"db.query", "gw.db.query('SELECT 1 AS a')", true},
    {"slow db.query",
     "gw.db.query('WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n "
     "LIMIT 10000000) SELECT count(*) FROM n')",
     true},
    {"db.transaction", "gw.db.transaction{ {'SELECT 1'} }", true},
    {"all",
     "gw.all{function() gw.sleep(60) end, function() gw.fetch{url = URL, timeout = 60} end, "
     "function() gw.db.query('SELECT 1') gw.sleep(60) end, function() gw.lock('inner', 60) "
     "gw.sleep(60) end}",
     false},
    {"all in all",
     "gw.all{function() gw.all{function() gw.sleep(60) end, function() gw.sleep(60) end} "
     "end}",
     false},
    {"keys.list", "gw.keys.list{}", true},
    {"keys.create", "gw.keys.create{name = 'x'}", true},
    {"process.reload", "gw.process.reload()", false},
    {"pcall of sleep", "assert(pcall(gw.sleep, 60))", false},
    {"metamethod", "local x = setmetatable({}, {__index = function() gw.sleep(60) end}).x", false},
};
#define WAIT_COUNT (sizeof WAITS / sizeof *WAITS)

static void load_wait(size_t index)
{
    static char top[600], fields[3000];
    snprintf(top, sizeof top, "local SEEN, URL = {}, 'http://127.0.0.1:%d/'", silent_port);
    snprintf(fields, sizeof fields,
             "hooks = {\n"
             "  admit = function(ctx) local gw = ctx.gw\n"
             "    assert(gw.lock('held', 60))\n"
             "    local ok, why = pcall(function() %s end)\n"
             "    SEEN[#SEEN + 1] = ok and 'fine' or tostring(why):match('%%w*$')\n"
             "    if not ok then\n"
             "      local again, reason = pcall(gw.sleep, 0)\n"
             "      SEEN[#SEEN + 1] = again and 'waited' or tostring(reason):match('%%w*$')\n"
             "      while true do end\n" // and it has to end
             "    end\n"
             "  end,\n"
             // what was seen; and the locks are free
             "  reply = function(ctx) local gw = ctx.gw\n"
             "    for _, name in ipairs { 'held', 'inner' } do local lock = gw.lock(name, 60) "
             "assert(lock, "
             "name) lock:release() end\n"
             "    ctx:flag(#SEEN .. (SEEN[1] or '-') .. (SEEN[2] or '-'))\n"
             "  end },\n"
             "needs = { db = true, process = true, keys = 'write', fetch = {'127.0.0.1:%d'} }",
             WAITS[index].code, silent_port);
    char text[4000];
    snprintf(
        text, sizeof text,
        "%s\nreturn { name = 'bad', version = '1', api = 1, about = 'b', on_error = 'deny', %s }",
        top, fields);
    bench_write(0, "bad", text);
    bench_write(1, "good", ISO_GOOD);
    bench_flip(2);
}

static size_t descriptors(void)
{
    size_t count = 0;
    for (int fd = 0; fd < 1024; fd++)
        count += fcntl(fd, F_GETFD) >= 0;
    return count;
}

static void begin_wait(struct ctx *ctx, const char *name)
{
    ck_assert_msg(script_run_hook(ctx, SCRIPT_ADMIT) == SCRIPT_PENDING, "%s: %s", name,
                  iso_log_line("plugin_error"));
}

static void check_seen(const char *name, const char *flag)
{
    struct ctx *ctx = bench_begin();
    enum script_outcome outcome = iso_hook(ctx, SCRIPT_REPLY);
    iso_check(outcome == SCRIPT_PASS, "%s: %s", name, iso_log_line("plugin_error"));
    iso_check(ctx_has_flag(ctx, flag), "%s: it saw %s", name,
              ctx->flag_count ? ctx->flags[0].ptr : "nothing");
    bench_end(ctx);
}

static void run_cancelled(size_t index, int turns)
{
    const char *name = WAITS[index].name;
    load_wait(index);
    struct script_generation *generation = bench.script->current;
    struct ctx *other = iso_begin_other(), *ctx = bench_begin();
    iso_log_clear();
    bench.reload_done = NULL;
    begin_wait(ctx, name);
    for (int i = 0; i < turns; i++)
        bench_turn();
    if (!ctx->pending) { // it was faster
        bench_end(ctx);
        iso_end_other(other, name);
        return;
    }
    int calls = bench.hook_calls;
    double start = iso_cpu_ms();
    script_cancel(ctx);
    double took = iso_cpu_ms() - start;
    iso_check(!ctx->pending && bench.hook_calls == calls, "%s: it is still told of", name);
    bench_end(ctx);
    // What it must not do any more costs it little: a millisecond's worth of instructions.
    if (getenv("ISO_TIMES"))
        fprintf(stderr, "%8.1f ms  cancel of %s\n", took, name);
    iso_end_other(other, name);
    iso_check(generation->live_count == 0, "%s: %zu coroutines are left", name,
              generation->live_count);
    if (bench.reload_done) // comes when nobody waits any more
        bench.reload_done(bench.reload_arg, 0, SLICE_LIT(""));
    for (int i = 0; i < 3000 && bench.script->jobs > 0; i++) {
        bench_turn();
        usleep(500);
    }
    iso_check(bench.script->jobs == 0, "%s: jobs are left", name);
    iso_check(iso_log_count("plugin_error", NULL) == 0, "%s: counted as a fault: %s", name,
              iso_log_line("plugin_error"));
    check_seen(name, "2cancelledcancelled");
    iso_expect_healthy(name);
}

START_TEST(cancelled_in_each_wait)
{
    size_t before = 0;
    for (size_t i = 0; i < WAIT_COUNT; i++) {
        run_cancelled(i, 0); // before it began
        run_cancelled(i, 3);
        if (i == 2)
            before = descriptors();
    }
    for (int i = 0; i < 20; i++)
        bench_turn();
    iso_check(descriptors() <= before + 4, "descriptors: %zu, then %zu", before, descriptors());
}
END_TEST

START_TEST(cancelled_while_it_waits_for_a_lock)
{
    iso_plugins(
        "local SEEN",
        "hooks = { admit = function(ctx) local gw = ctx.gw if ctx.attempt == 1 then "
        "assert(gw.lock('l', 60)) gw.sleep(60) else local ok, why = pcall(gw.lock, 'l', 60, 60) "
        "SEEN = why end end, reply = function(ctx) local lock = ctx.gw.lock('l', 1) ctx:flag((lock "
        "and 'free' or 'busy') .. tostring(SEEN)) end }",
        "deny");
    struct ctx *holder = bench_begin(), *waiter = bench_begin(), *third = bench_begin();
    waiter->attempt = 2;
    begin_wait(holder, "holder");
    begin_wait(waiter, "waiter");
    bench_turn();
    script_cancel(waiter);
    ck_assert_int_eq(iso_hook(third, SCRIPT_REPLY), SCRIPT_PASS);
    ck_assert(ctx_has_flag(third, "busycancelled"));
    begin_wait(waiter, "waiter"); // again, and now the holder goes
    script_cancel(holder);
    for (int i = 0; i < 3000 && waiter->pending; i++) {
        bench_turn();
        usleep(500);
    }
    ck_assert(!waiter->pending && !waiter->is_denied);
    ck_assert_int_eq(iso_hook(third, SCRIPT_REPLY), SCRIPT_PASS);
    ck_assert(ctx_has_flag(third, "freenil") || third->flag_count == 2);
    bench_end(holder);
    bench_end(waiter);
    bench_end(third);
    ck_assert_uint_eq(bench.script->current->live_count, 0);
}
END_TEST

START_TEST(cancelled_while_an_answer_waits_for_the_client)
{
    iso_plugins(
        "local SEEN = 0",
        "hooks = { identify = function(ctx) return ctx:stream(function(emit) local ok, why = "
        "pcall(function() while true do emit{kind = 'text', text = 'a'} end end) SEEN = SEEN + 1 "
        "pcall(emit, {kind = 'text', text = 'b'}) assert(why == 'cancelled', why) end) end, reply "
        "= "
        "function(ctx) ctx:flag('s' .. SEEN) end }",
        "deny");
    bench.event_result = GW_EAGAIN;
    struct ctx *ctx = bench_begin();
    ck_assert_int_eq(iso_hook(ctx, SCRIPT_IDENTIFY), SCRIPT_ANSWERED);
    script_answer_start(ctx);
    for (int i = 0; i < 5; i++)
        script_answer_writable(ctx);
    script_cancel(ctx);
    ck_assert_int_eq(bench.answer_ends, 0);
    script_answer_writable(ctx);
    bench.event_result = 0;
    bench_end(ctx);
    ctx = bench_begin();
    ck_assert_int_eq(iso_hook(ctx, SCRIPT_REPLY), SCRIPT_PASS);
    ck_assert(ctx_has_flag(ctx, "s1"));
    bench_end(ctx);
    ck_assert_uint_eq(bench.script->current->live_count, 0);
    ck_assert_int_eq(iso_log_count("plugin_error", NULL), 0);
}
END_TEST

START_TEST(cancelled_ones_may_not_go_on)
{
    // The budget of a cancelled coroutine is 1 ms of instructions, whatever it tries.
    static const char *const TRIES[] = {
        "while true do pcall(gw.sleep, 0) end",
        "while true do pcall(gw.fetch, {url = 'http://127.0.0.1/'}) end",
        "for i = 1, 1e9 do end",
        "gw.all{function() gw.sleep(60) end}",
        "error('mine')",
        "gw.spawn(function() gw.spawn(function() end) end)",
    };
    for (size_t i = 0; i < sizeof TRIES / sizeof *TRIES; i++) {
        char fields[600];
        snprintf(fields, sizeof fields,
                 "hooks = { admit = function(ctx) local gw = ctx.gw pcall(gw.sleep, 60) %s end }",
                 TRIES[i]);
        iso_plugins(NULL, fields, "deny");
        struct ctx *ctx = bench_begin();
        begin_wait(ctx, TRIES[i]);
        double start = iso_cpu_ms();
        script_cancel(ctx);
        double took = iso_cpu_ms() - start;
#if !defined(MOONGATE_ASAN) && !defined(MOONGATE_TSAN)
        iso_check(took < 60, "%s: %.1f ms", TRIES[i], took);
#else
        (void)took;
#endif
        bench_end(ctx);
        bench_turn();
        bench_turn();
        bench_turn();
        iso_check(bench.script->current->live_count == 0, "%s", TRIES[i]);
    }
}
END_TEST

// ---- reload

START_TEST(a_reload_while_each_wait_runs)
{
    for (size_t i = 0; i < WAIT_COUNT; i++) {
        const char *name = WAITS[i].name;
        load_wait(i);
        struct ctx *ctx = bench_begin();
        begin_wait(ctx, name);
        bench_flip(2); // the first reload changes nothing for it
        iso_expect_healthy(name);
        if (WAITS[i].ends) {
            for (int n = 0; n < 20000 && ctx->pending; n++) {
                bench_turn();
                usleep(500);
            }
            iso_check(!ctx->pending && !ctx->is_denied, "%s: its end was lost", name);
        } else {
            iso_check(ctx->pending, "%s: the reload ended it", name);
        }
        // More than may live: what waits is ended as a fault of its plugin.
        bool waits = ctx->pending != NULL;
        iso_log_clear();
        struct ctx *held[SCRIPT_MAX_OLD + 1]; // each generation has somebody
        for (int n = 0; n < SCRIPT_MAX_OLD + 1; n++) {
            held[n] = bench_begin();
            bench_flip(2);
            bench_turn();
            iso_check(script_generation_count(bench.script) <= SCRIPT_MAX_OLD + 1,
                      "%s: %zu generations", name, script_generation_count(bench.script));
        }
        iso_check(!ctx->pending, "%s: it waits for ever", name);
        if (waits) {
            iso_check(iso_is_plugin_error(ctx), "%s: no error", name);
            iso_check(iso_log_count("plugin_error", "too many reloads") == 1, "%s: the log", name);
        }
        iso_forgive(ctx);
        ck_assert_int_eq(iso_hook(ctx, SCRIPT_PREPARE),
                         SCRIPT_PASS); // the last hooks run on the newest
        bench_end(ctx);
        for (int n = 0; n < SCRIPT_MAX_OLD + 1; n++)
            bench_end(held[n]);
        if (bench.reload_done)
            bench.reload_done(bench.reload_arg, 0, SLICE_LIT(""));
        bench.reload_done = NULL;
        for (int n = 0; n < 5; n++)
            bench_turn();
        iso_check(script_generation_count(bench.script) == 1, "%s: %zu generations are left", name,
                  script_generation_count(bench.script));
        iso_expect_healthy(name);
    }
}
END_TEST

static size_t resident_kib(void)
{
    size_t pages = 0, resident = 0;
    FILE *in = fopen("/proc/self/statm", "r");
    ck_assert_ptr_nonnull(in);
    ck_assert_int_eq(fscanf(in, "%zu %zu", &pages, &resident), 2);
    fclose(in);
    return resident * 4;
}

START_TEST(a_thousand_reloads_with_everything_in_flight)
{
    static char fields[3000];
    snprintf(
        fields, sizeof fields,
        "hooks = { admit = function(ctx) local gw = ctx.gw local n = ctx.attempt %% 6 if n == 0 "
        "then "
        "gw.sleep(60) elseif n == 1 then gw.fetch{url = 'http://127.0.0.1:%d/', timeout = 60} "
        "elseif n "
        "== 2 then gw.db.query('SELECT 1') gw.sleep(60) elseif n == 3 then gw.all{function() "
        "gw.sleep(60) end} elseif n == 4 then gw.lock('l' .. ctx.attempt, 60) gw.sleep(60) else "
        "gw.keys.list{} gw.sleep(60) end end }, routes = { {'GET', '/r', function() return 200 "
        "end, auth "
        "= 'none', about = 'a'} }, tasks = { {name = 't', every = 60, on = 'worker', run = "
        "function() "
        "end} }, metrics = { {name = 'm_total', kind = 'counter', help = 'h'} }, needs = { db = "
        "true, "
        "keys = 'write', fetch = {'127.0.0.1:%d'} }",
        silent_port, silent_port);
    char text[4000];
    snprintf(text, sizeof text,
             "return { name = 'bad', version = '1', api = 1, about = 'b', on_error = 'deny', %s }",
             fields);
    bench_write(0, "bad", text);
    bench_write(1, "good", ISO_GOOD);
    bench_flip(2);
    log_set_level(LOG_ERROR + 1);
    struct plugin_set *set = plugin_set_ref(bench.script->current->set);
    struct buf problems = BUF_INIT(65536);
    struct ctx *list[8] = {NULL};
    size_t memory = 0, resident = 0, open = 0;
    for (int i = 0; i < 1000; i++) {
        int slot = i % 8;
        if (list[slot]) { // the client goes away, five reloads later it was ended anyway
            if (slot % 2)
                script_cancel(list[slot]);
            bench_end(list[slot]);
        }
        list[slot] = bench_begin();
        list[slot]->attempt = i;
        begin_wait(list[slot], "thousand");
        ck_assert_int_eq(script_prepare(bench.script, set, &problems), 0);
        script_flip(bench.script);
        bench_turn();
        bench_turn();
        ck_assert_uint_le(script_generation_count(bench.script), SCRIPT_MAX_OLD + 1);
        if (i == 200) {
            memory = script_memory_used(bench.script);
            resident = resident_kib();
            open = descriptors();
        }
    }
    iso_check(script_memory_used(bench.script) <= memory + memory / 2, "%zu, then %zu", memory,
              script_memory_used(bench.script));
    iso_check(descriptors() <= open + 8, "descriptors: %zu, then %zu", open, descriptors());
#if !defined(MOONGATE_ASAN) && !defined(MOONGATE_TSAN)
    iso_check(resident_kib() <= resident + 8192, "%zu KiB resident, then %zu", resident,
              resident_kib());
#else
    (void)resident;
#endif
    for (int i = 0; i < 8; i++)
        bench_end(list[i]);
    for (int i = 0; i < 10; i++)
        bench_turn();
    ck_assert_uint_eq(script_generation_count(bench.script), 1);
    iso_expect_healthy("after");
    buf_free(&problems);
    plugin_set_unref(set);
}
END_TEST

START_TEST(reloads_that_fail_leave_the_old_set)
{
    static const struct {
        const char *name, *text, *says;
    } BAD[] = {
        {"syntax", "return {\n  name = 'bad',\n  version = = 1\n}", "bad/init.lua:3"},
        {"load", "local x = nil\nreturn x.y", "bad/init.lua:2"},
        {"init",
         "return { name = 'bad', version = '1', api = 1, about = 'b',\n init = function()\n "
         "error('broke') end }",
         "bad/init.lua:3: broke"},
        {"schema",
         "return { name = 'bad', version = '1', api = 1, about = 'b',\n config = schema.record{ "
         "a = schema.text{ min = 'x' } } }",
         "bad/init.lua"},
        {"a wrong field of a schema",
         "return { name = 'bad', version = '1', api = 1, about = 'b', config = "
         "schema.record{ a = 5 } }",
         "bad/init.lua"},
        {"a migration folder that is not there",
         "return { name = 'bad', version = '1', api = 1, about = 'b', migrations = 'nosuch/' }",
         "bad"},
        {"a loop", "while true do end", "bad/init.lua:1"},
        {"memory", "local t = {} while true do t[#t + 1] = {} end", "bad/init.lua"},
        {"an unknown hook",
         "return { name = 'bad', version = '1', api = 1, about = 'b', hooks = { x = "
         "function() end } }",
         "bad/init.lua"},
        {"another name", "return { name = 'worse', version = '1', api = 1, about = 'b' }",
         "bad/init.lua"},
        {"nothing", "", "bad/init.lua"},
        {"bytecode", "\x1bLJ\x02", "bad/init.lua"},
    };
    iso_plugins(NULL, "hooks = { admit = function(ctx) ctx:flag('old') end }", "deny");
    uint64_t number = bench.script->current->number;
    for (size_t i = 0; i < sizeof BAD / sizeof *BAD; i++) {
        struct buf problems = BUF_INIT(65536);
        bench_write(0, "bad", BAD[i].text);
        struct ctx *other = iso_begin_other(), *ctx = bench_begin();
        iso_check(bench_try(2, &problems) != 0, "%s was taken", BAD[i].name);
        iso_check(slice_find(buf_slice(&problems), slice_str(BAD[i].says)) >= 0, "%s: %.*s",
                  BAD[i].name, SLICE_FMT(buf_slice(&problems)));
        ck_assert_uint_eq(script_generation_count(bench.script), 1);
        ck_assert_uint_eq(bench.script->current->number, number);
        ck_assert_int_eq(iso_hook(ctx, SCRIPT_ADMIT), SCRIPT_PASS);
        iso_check(ctx_has_flag(ctx, "old"), "%s: the old set does not run", BAD[i].name);
        bench_end(ctx);
        iso_end_other(other, BAD[i].name);
        buf_free(&problems);
    }
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("cancel");
    tcase_add_checked_fixture(tcase, up, down);
    tcase_set_timeout(tcase, 240);
    tcase_add_test(tcase, cancelled_in_each_wait);
    tcase_add_test(tcase, cancelled_while_it_waits_for_a_lock);
    tcase_add_test(tcase, cancelled_while_an_answer_waits_for_the_client);
    tcase_add_test(tcase, cancelled_ones_may_not_go_on);
    tcase_add_test(tcase, a_reload_while_each_wait_runs);
    tcase_add_test(tcase, a_thousand_reloads_with_everything_in_flight);
    tcase_add_test(tcase, reloads_that_fail_leave_the_old_set);
    return bench_run(&tcase, 1, "isolation_cancel");
}
