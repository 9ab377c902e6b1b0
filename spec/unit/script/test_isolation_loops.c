// Every way known to keep a worker busy: each is ended within 50 ms of its budget, as an error of
// its plugin, and what runs beside it does not notice.
#include "isolation_rig.h"

#define BUDGET "budget used up"
#define SWALLOW(code) "while true do pcall(function() " code " end) end"

static const struct iso_case LOOPS[] = {
    {"plain", "while true do end", BUDGET},
    {"repeat", "repeat local x = 1 until false", BUDGET},
    {"for", "for i = 1, math.huge do end", BUDGET},
    {"goto", "::again:: goto again", BUDGET},
    {"tail call", "local function f() return f() end return f()", BUDGET},
    {"mutual tail calls",
     "local f, g f = function() return g() end g = function() return f() end f()", BUDGET},
    {"inside pcall", SWALLOW("while true do end"), BUDGET},
    {"pcall in pcall", SWALLOW(SWALLOW("while true do end")), BUDGET},
    {"pcall of pcall", "while true do pcall(pcall, pcall, function() while true do end end) end",
     BUDGET},
    {"pcall with errors", SWALLOW("error('x')"), BUDGET},
    {"pcall of itself until the stack is full",
     "local function f() while true do pcall(f) end end f()", NULL},
    {"recursion that catches its overflow",
     "local function f() return 1 + f() end while true do pcall(f) end", BUDGET},
    {"xpcall of itself", "local function f() while true do xpcall(f, f) end end f()", NULL},
    {"pcall deep in a recursion",
     "local function f(n) if n == 0 then while true do pcall(error) end end return 1 + f(n - 1) "
     "end for n = 1, 20000 do pcall(f, n) end",
     BUDGET},
    {"loop deep in a recursion",
     "local function f(n) if n == 0 then while true do end end return 1 + "
     "f(n - 1) end for n = 1, 20000 do pcall(f, n) end",
     BUDGET},
    {"xpcall with a looping handler",
     "while true do xpcall(function() error('x') end, function() while true do end end) end",
     BUDGET},
    {"xpcall handlers that raise",
     "local function h() error('y') end while true do xpcall(error, h) end", BUDGET},
    {"__index", "return setmetatable({}, {__index = function() while true do end end}).x", BUDGET},
    {"__index that asks itself",
     "local t = setmetatable({}, {__index = function(t, k) local x = 0 "
     "for i = 1, 100 do x = x + i end return t[k + 1] end}) return t[1]",
     NULL},
    {"__newindex",
     "local t = setmetatable({}, {__newindex = function() while true do end end}) t.x = 1", BUDGET},
    {"__eq",
     "local m = {__eq = function() while true do end end} local x = setmetatable({}, m) == "
     "setmetatable({}, m)",
     BUDGET},
    {"__lt",
     "local m = {__lt = function() while true do end end} local x = setmetatable({}, m) < "
     "setmetatable({}, m)",
     BUDGET},
    {"__le",
     "local m = {__le = function() while true do end end} local x = setmetatable({}, m) <= "
     "setmetatable({}, m)",
     BUDGET},
    {"__concat", "return setmetatable({}, {__concat = function() while true do end end}) .. 'x'",
     BUDGET},
    {"__tostring",
     "return tostring(setmetatable({}, {__tostring = function() while true do end end}))", BUDGET},
    {"__tostring in format",
     "return ('%s'):format(setmetatable({}, {__tostring = function() while true do end end}))",
     BUDGET},
    {"__call", "return setmetatable({}, {__call = function() while true do end end})()", BUDGET},
    {"__len is not asked for tables, __unm is",
     "return -setmetatable({}, {__unm = function() while true do end end})", BUDGET},
    {"__add", "return setmetatable({}, {__add = function() while true do end end}) + 1", BUDGET},
    {"__index in gsub",
     "return ('x'):gsub('x', setmetatable({}, {__index = function() while true do end end}))",
     BUDGET},
    {"gsub callback", "return ('x'):gsub('x', function() while true do end end)", BUDGET},
    {"gsub callback inside pcall", SWALLOW("('x'):gsub('x', function() while true do end end)"),
     BUDGET},
    {"sort callback", "table.sort({3, 2, 1}, function() while true do end end)", BUDGET},
    {"sort with an order that is none",
     "while true do local t = {} for i = 1, 50 do t[i] = i % 7 end pcall(table.sort, t, "
     "function() return true end) end",
     BUDGET},
    {"sort by __lt",
     "local m = {__lt = function() while true do end end} table.sort{setmetatable({}, m), "
     "setmetatable({}, m)}",
     BUDGET},
    {"iterator function", "for x in function() while true do end end do end", BUDGET},
    {"iterator that never ends", "for x in function() return 1 end do end", BUDGET},
    {"gmatch over and over", "while true do for w in ('a b c'):gmatch('%a') do end end", BUDGET},
    {"loaded chunk", "load('while true do end')()", BUDGET},
    {"loadstring in loops", "while true do loadstring('local x = 1')() end", BUDGET},
    {"loaded chunk in another environment", "load('while true do end', 'x', 't', {})()", BUDGET},
    {"required module", "require('./never')", NULL},
    {"tables", "while true do local t = {} end", BUDGET},
    {"closures", "while true do local f = function() return f end end", BUDGET},
    {"texts", "local i = 0 while true do i = i + 1 local s = 'x' .. i end", BUDGET},
    {"vararg", "local function f(...) return select('#', ...) end while true do f(1, 2, 3) end",
     BUDGET},
    {"a loop behind a wait", "gw.sleep(0) while true do end", BUDGET},
    {"a loop in gw.all", "local r = gw.all{function() while true do end end} error(r[1].error)",
     BUDGET},
    {"json of a __index table is raw",
     "while true do gw.json.encode(setmetatable({1, 2}, {__index = "
     "error})) end",
     BUDGET},
};

START_TEST(loops_are_ended)
{
    for (size_t i = 0; i < sizeof LOOPS / sizeof *LOOPS; i++)
        iso_run(&LOOPS[i], SCRIPT_ADMIT, true);
}
END_TEST

#define BIG "local s = ('a'):rep(3e6) "

// Few instructions, each of them dear: the count hook alone would come too late.
static const struct iso_case DEAR[] = {
    {"pathological find",
     "while true do pcall(string.find, ('a'):rep(3000), ('.-'):rep(20) .. 'b') end", NULL},
    {"pathological match", "while true do pcall(string.match, ('a'):rep(1e5), '(.*)(.*)(.*)b') end",
     NULL},
    {"pathological gsub", "while true do pcall(string.gsub, ('a'):rep(3e6), '.-b', '') end", NULL},
    {"a pattern with a set of 4,000 bytes",
     "local set = '[' .. ('b'):rep(4000) .. ']' while true do pcall(string.find, ('a'):rep(3e6), "
     "set .. '*' .. set) end",
     NULL},
    {"a long set in %f",
     "local set = '%f[' .. ('b'):rep(4000) .. ']' while true do pcall(string.find, ('a'):rep(3e6), "
     "set) end",
     NULL},
    {"back references", "while true do pcall(string.find, ('a'):rep(2e6), '^(a*)%1%1%1b') end",
     NULL},
    {"balance", "while true do pcall(string.find, ('('):rep(1e5), '%b()') end", NULL},
    {"plain find in a big subject",
     BIG "local n = ('a'):rep(1e6) .. 'b' while true do s:find(n, 1, "
         "true) end",
     NULL},
    {"gsub to a big result", BIG "while true do s:gsub('a', '%0%0%0%0') end", NULL},
    {"gsub with a C function", BIG "while true do s:gsub('.', string.upper) end", NULL},
    {"gsub of nothing", BIG "while true do s:gsub('', '') end", NULL},
    {"comparing big texts", BIG "local a, b = s .. 'x', s .. 'y' while true do local x = a < b end",
     BUDGET},
    {"numbers from big texts", "local s = (' '):rep(3e6) .. '1' while true do local x = s + 1 end",
     BUDGET},
    {"tonumber of big texts",
     "local s = ('0'):rep(3e6) while true do local x = tonumber(s, 36) end", BUDGET},
    {"upper", BIG "while true do s:upper() end", NULL},
    {"reverse", BIG "while true do s:reverse() end", NULL},
    {"rep", "while true do ('x'):rep(3e6) end", NULL},
    {"format", BIG "while true do ('%s%q'):format(s, 'x') end", NULL},
    {"concat", BIG "while true do local x = s .. s end", NULL},
    {"sub", BIG "local i = 0 while true do i = i + 1 s:sub(i % 7) end", NULL},
    {"byte and char", "local s = ('a'):rep(7000) while true do string.char(s:byte(1, -1)) end",
     NULL},
    {"os.date with a long format", "local f = ('%c'):rep(2e5) while true do pcall(os.date, f) end",
     NULL},
    {"sort of texts with a long common head",
     "local t, s = {}, ('a'):rep(20000) for i = 1, 100 do t[i] = s .. (i * 7919) % 100 end while "
     "true do local c = {} for n = 1, 100 do for i = 1, 100 do c[#c + 1] = t[i] end end "
     "table.sort(c) end",
     NULL},
    {"sort of many",
     "local t = {} for i = 1, 60000 do t[i] = (i * 7919) % 60000 end while true do "
     "table.sort(t) t[1], t[60000] = t[60000], t[1] end",
     NULL},
    {"sort with a C function",
     "local t = {} for i = 1, 20000 do t[i] = i end while true do pcall(table.sort, t, rawequal) "
     "end",
     NULL},
    {"concat of numbers",
     "local t = {} for i = 1, 60000 do t[i] = i + 0.123 end while true do table.concat(t) end",
     NULL},
    {"next in an emptied table",
     "local t = {} for i = 1, 60000 do t['k' .. i] = 1 end table.clear(t) while true do next(t) "
     "end",
     BUDGET},
    {"insert at the front", "local t = {} while true do table.insert(t, 1, 1) end", NULL},
    {"remove from the front",
     "local t = {} for i = 1, 1e5 do t[i] = 1 end while true do "
     "table.remove(t, 1) table.insert(t, 1) end",
     NULL},
    {"table.new", "while true do table.new(1e5, 1e5) end", NULL},
    {"unpack",
     "local t = {} for i = 1, 7000 do t[i] = i end while true do select('#', unpack(t)) "
     "end",
     NULL},
    {"json.encode",
     "local t = {} for i = 1, 50000 do t[i] = 0.1 end while true do "
     "gw.json.encode(t) end",
     NULL},
    {"json.decode of texts",
     "local s = '[\"' .. ('a'):rep(3e6) .. '\"]' while true do gw.json.decode(s) end", NULL},
    {"json.decode of numbers",
     "local s = '[' .. ('1,'):rep(2e5) .. '1]' while true do gw.json.decode(s) end", NULL},
    {"json.decode of members",
     "local p = {} for i = 1, 30000 do p[i] = '\"k' .. i .. '\":0.5' end local s = '{' .. "
     "table.concat(p, ',') .. '}' while true do gw.json.decode(s) end",
     NULL},
    {"json.decode of what is none", "local s = ('['):rep(3e6) while true do gw.json.decode(s) end",
     NULL},
    {"sha256", BIG "while true do gw.crypto.sha256hex(s) end", NULL},
    {"md5 of many parts", BIG "while true do gw.crypto.md5hex(s, s, s, s, s) end", NULL},
    {"hmac", BIG "while true do gw.crypto.hmac_sha256('k', s) end", NULL},
    {"equal", BIG "while true do gw.crypto.equal(s, s) end", NULL},
    {"mask", BIG "while true do gw.crypto.mask(s) end", NULL},
    {"kv", "local s = ('a'):rep(9e5) while true do gw.kv.set('k', s) gw.kv.get('k') end", NULL},
    {"money.parse", "local s = ('0'):rep(3e6) while true do money.parse(s) end", NULL},
    {"load of a big text", "local s = ('x = 1 '):rep(5e4) while true do load(s) end", NULL},
    {"load of deep nesting", "local s = ('('):rep(1e6) while true do load(s) end", NULL},
    {"print", BIG "while true do print(s, s) end", NULL},
    {"log", "local s = ('\\1'):rep(3e6) while true do gw.log.debug('x', {a = s}) end", NULL},
    {"errors with big texts", BIG "while true do pcall(error, s) end", NULL},
    {"ctx.field", "while true do ctx:field('a.b') ctx:json() end", NULL},
    {"ctx tables", "while true do local x, y = ctx.candidates, ctx.tried end", NULL},
    {"flags", "local i = 0 while true do i = i + 1 ctx:flag('f' .. i) end", NULL},
    {"gw.plugins", "while true do gw.plugins() end", NULL},
    {"gw.models", "while true do gw.models.list(ctx) gw.upstreams.candidates(ctx) end", NULL},
    {"spawn", "while true do gw.spawn(function() end) end", NULL},
    {"schema", "local s = schema.text{} while true do s = schema.list{ of = s } end", NULL},
    {"string metatable", "local s = 'x' while true do s:len() end", BUDGET},
};

START_TEST(dear_instructions_are_ended)
{
    for (size_t i = 0; i < sizeof DEAR / sizeof *DEAR; i++)
        iso_run(&DEAR[i], SCRIPT_ADMIT, true);
}
END_TEST

START_TEST(loops_in_every_hook)
{
    static const struct iso_case loop = {"loop", "while true do end", BUDGET};
    static const struct iso_case guarded = {"guarded loop", SWALLOW("while true do end"), BUDGET};
    static const struct iso_case allocating = {
        "allocating loop", "KEPT = {} while true do KEPT[#KEPT + 1] = {} end", NULL};
    for (int i = 0; i < SCRIPT_HOOK_COUNT; i++) {
        enum script_hook hook = (enum script_hook)i;
        iso_run(&loop, hook, true);
        iso_run(&guarded, hook, true);
        iso_run(&allocating, hook, true);
    }
}
END_TEST

static void check_off(enum script_hook hook)
{
    iso_other_hook = hook == SCRIPT_SELECT ? SCRIPT_PREPARE : SCRIPT_SELECT;
    char fields[400];
    snprintf(fields, sizeof fields,
             "%s hooks = { %s = function(ctx) CALLS = CALLS + 1 if CALLS == 3 then "
             "return end while true do end end }",
             iso_wants(hook), hook_name(hook));
    iso_plugins("local CALLS = 0", fields, "skip");
    iso_log_clear();
    for (int n = 1; n <= 8; n++) {
        struct ctx *ctx = bench_begin();
        bool has_flag = hook == SCRIPT_PRICE && n != 3 && n < 7;
        ck_assert_msg(iso_fails(ctx, hook, false) == (hook != SCRIPT_PRICE || has_flag), "call %d",
                      n);
        iso_forgive(ctx);
        bench_end(ctx);
        // Two faults, a good one, three faults: only now.
        ck_assert_msg(iso_bad()->is_off == (n >= 6), "after call %d", n);
    }
    ck_assert_int_eq(iso_log_count("plugin_off", "\"plugin\":\"bad\""), 1);
    ck_assert_int_eq(iso_errors("bad", hook_name(hook)), 5);
    iso_expect_healthy("off");
    // A reload turns it on again.
    bench_flip(2);
    ck_assert(!iso_bad()->is_off);
}

START_TEST(off_after_three_in_a_row)
{
    for (int hook = 0; hook < SCRIPT_HOOK_COUNT; hook++)
        check_off((enum script_hook)hook);
}
END_TEST

START_TEST(a_plugin_that_denies_is_never_off)
{
    // A filter that is skipped would let through what it has to look at.
    iso_plugins(NULL, "hooks = { admit = function() error('x') end }", "deny");
    for (int n = 0; n < 6; n++) {
        struct ctx *ctx = bench_begin();
        ck_assert(iso_fails(ctx, SCRIPT_ADMIT, true));
        bench_end(ctx);
    }
    ck_assert(!iso_bad()->is_off);
}
END_TEST

START_TEST(loops_in_load_and_init)
{
    static const char *const BAD[] = {
        "while true do end return {}",
        "local function f() while true do pcall(f) end end f() return {}",
        "return { name = 'bad', version = '1', api = 1, about = 'b', init = function() while true "
        "do end end }",
        "return { name = 'bad', version = '1', api = 1, about = 'b', init = function() while true "
        "do pcall(function() while true do end end) end end }",
        "local s = schema.text{} while true do s = schema.list{ of = s } end return {}",
        "local s = schema.any{} for i = 1, 5000 do s = schema.list{ of = s } end return { name = "
        "'bad', version = '1', api = 1, about = 'b', config = schema.record{ a = s } }",
        "local s = schema.record{} s.fields = { a = s } return { name = 'bad', version = '1', api "
        "= "
        "1, about = 'b', config = s }",
    };
    iso_plugins(NULL, "hooks = {}", "deny");
    for (size_t i = 0; i < sizeof BAD / sizeof *BAD; i++) {
        struct buf problems = BUF_INIT(65536);
        bench_write(0, "bad", BAD[i]);
        uint64_t number = bench.script->current->number;
        ck_assert_msg(bench_try(2, &problems) != 0, "%s", BAD[i]);
        ck_assert_msg(slice_find(buf_slice(&problems), SLICE_LIT("bad/init.lua")) >= 0, "%s: %.*s",
                      BAD[i], SLICE_FMT(buf_slice(&problems)));
        ck_assert_uint_eq(bench.script->current->number, number);
        buf_free(&problems);
        iso_expect_healthy(BAD[i]);
    }
}
END_TEST

START_TEST(loops_in_a_close_function)
{
    iso_plugins(NULL,
                "close = function() while true do pcall(function() while true do end end) end "
                "end",
                "deny");
    iso_log_clear();
    double start = iso_cpu_ms();
    bench_flip(2);
    bench_turn();
    bench_turn();
    ck_assert_uint_eq(script_generation_count(bench.script), 1);
    ck_assert_int_eq(iso_log_count("\"plugin\":\"bad\"", "\"in\":\"close\""), 1);
#if !defined(MOONGATE_ASAN) && !defined(MOONGATE_TSAN)
    ck_assert(iso_cpu_ms() - start < 400); // two loads are in it
#else
    (void)start;
#endif
    iso_expect_healthy("close");
}
END_TEST

// ---- routes, tasks, spawned functions, answers

static void call_route(const char *path)
{
    struct slice allow;
    struct ctx *other = iso_begin_other();
    struct arena *arena = arena_new(4096);
    struct http1_request head = {
        .method = HTTP1_GET, .method_text = SLICE_LIT("GET"), .path = slice_str(path)};
    const struct script_route *route =
        script_route_find(bench.script, HTTP1_GET, head.path, &allow);
    ck_assert_ptr_nonnull(route);
    const struct script_route_request request = {
        .request = &head, .request_id = SLICE_LIT("r"), .arena = arena};
    struct script_route_call *call;
    int before = bench.route_calls;
    double start = iso_cpu_ms();
    ck_assert_int_eq(script_route_start(bench.script, route, &request, NULL, &call), 0);
    bench_wait(&bench.route_calls, before + 1);
#if !defined(MOONGATE_ASAN) && !defined(MOONGATE_TSAN)
    ck_assert_msg(iso_cpu_ms() - start < 2 * (ISO_BUDGET_MS + ISO_GRACE_MS), "%s: %.1f ms", path,
                  iso_cpu_ms() - start);
#else
    (void)start;
#endif
    iso_end_other(other, path);
    arena_free(arena);
}

START_TEST(loops_in_routes)
{
    iso_plugins(
        NULL,
        "routes = { {'GET', '/loop', function() while true do end end, auth = 'none', about "
        "= 'a'}, {'GET', '/guarded', function() while true do pcall(function() while true "
        "do end end) end end, auth = 'none', about = 'a'}, {'GET', '/auth', function() end, "
        "auth = function() while true do end end, about = 'a'}, {'GET', '/big', function() "
        "local t = {} for i = 1, 1e9 do t[i] = {} end end, auth = 'none', about = 'a'}, "
        "{'GET', '/cycle', function() local t = {} t[1] = t return 200, t end, auth = "
        "'none', about = 'a'}, {'GET', '/number', function() return {} end, auth = 'none', "
        "about = 'a'}, {'GET', '/error', function() error('x') end, auth = 'none', about = "
        "'a'}, {'GET', '/fine', function() return 200, {ok = true} end, auth = 'none', about "
        "= 'a'} }",
        "deny");
    static const char *const PATHS[] = {"/loop",  "/guarded", "/auth", "/big",
                                        "/cycle", "/number",  "/error"};
    for (size_t i = 0; i < sizeof PATHS / sizeof *PATHS; i++) {
        iso_log_clear();
        for (int n = 0; n < 4; n++) { // callers of a route cannot switch a plugin off
            call_route(PATHS[i]);
            ck_assert_msg(bench.route_status == 500, "%s: %d", PATHS[i], bench.route_status);
            ck_assert(strstr(buf_slice(&bench.route_body).ptr, "internal_error"));
        }
        ck_assert_int_eq(iso_log_count("plugin_error", "\"plugin\":\"bad\""), 4);
        call_route("/fine");
        ck_assert_int_eq(bench.route_status, 200);
    }
}
END_TEST

START_TEST(loops_in_render_error)
{
    iso_plugins(NULL,
                "routes = { {'GET', '/error', function() error('x') end, auth = 'none', about = "
                "'a'} }, render_error = function() while true do pcall(function() while true do "
                "end end) end end",
                "deny");
    iso_log_clear();
    call_route("/error");
    ck_assert_int_eq(bench.route_status, 500);
    ck_assert(strstr(buf_slice(&bench.route_body).ptr, "internal_error"));
    ck_assert_int_eq(iso_log_count("\"plugin\":\"bad\"", "\"in\":\"render_error\""), 1);
}
END_TEST

START_TEST(loops_in_tasks_and_spawned_functions)
{
    iso_plugins(NULL,
                "hooks = { finish = function(ctx) ctx.gw.spawn(function() while true do end end) "
                "end }, tasks = { {name = 't', every = 0.1, on = 'worker', run = function() while "
                "true do pcall(function() while true do end end) end end} }",
                "deny");
    iso_log_clear();
    struct ctx *ctx = bench_begin();
    ck_assert_int_eq(bench_hook(ctx, SCRIPT_FINISH), SCRIPT_PASS);
    bench_end(ctx);
    for (int i = 0; i < 2000 && iso_errors("bad", "task") < 2; i++) {
        struct ctx *other = iso_begin_other();
        bench_turn();
        iso_end_other(other, "task");
        usleep(1000);
    }
    ck_assert_int_ge(iso_errors("bad", "task"), 2);
    ck_assert_int_eq(iso_errors("bad", "spawn"), 1);
    ck_assert_int_ge(iso_log_count("\"plugin\":\"bad\"", "\"in\":\"task\""), 2);
    ck_assert_int_eq(iso_log_count("\"plugin\":\"bad\"", "\"in\":\"spawn\""), 1);
}
END_TEST

START_TEST(loops_in_answers)
{
    iso_plugins(
        NULL,
        "hooks = { select = function(ctx) return ctx:stream(function(emit) emit{kind = "
        "'text', text = 'a'} while true do pcall(emit, {}) pcall(emit, {kind = 'text', text "
        "= ''}) end end) end }",
        "deny");
    bench.script->current->plugins[1].is_off = true; // `good` would answer select otherwise
    struct ctx *ctx = bench_begin();
    iso_log_clear();
    ck_assert_int_eq(bench_hook(ctx, SCRIPT_SELECT), SCRIPT_ANSWERED);
    script_answer_start(ctx);
    ck_assert_int_eq(bench.answer_ends, 1);
    ck_assert_int_eq(bench.answer_err, GW_EINTERNAL);
    ck_assert(slice_is(ctx->error.code, "plugin_error"));
    ck_assert_int_eq(iso_log_count("\"plugin\":\"bad\"", "\"in\":\"stream\""), 1);
    bench_end(ctx);
}
END_TEST

START_TEST(no_finaliser_in_lua)
{
    // __gc of tables is never called, userdata cannot be made, and the metatables of ours are
    // locked: no plugin code runs inside the collector, where no hook would fire.
    iso_plugins(NULL,
                "hooks = { admit = function(ctx)\n"
                "  local ran\n"
                "  for i = 1, 200 do\n"
                "    setmetatable({}, {__gc = function() ran = true while true do end end})\n"
                "    local junk = {} for n = 1, 200 do junk[n] = {n} end\n"
                "  end\n"
                "  assert(not ran and newproxy == nil)\n"
                "end }",
                "deny");
    struct ctx *ctx = bench_begin();
    enum script_outcome outcome = bench_hook(ctx, SCRIPT_ADMIT);
    ck_assert_int_eq(outcome, SCRIPT_DENIED); // newproxy: reading an undeclared global raises
    bench_end(ctx);
    iso_plugins(NULL,
                "hooks = { admit = function(ctx)\n"
                "  assert(not pcall(function() return newproxy end))\n"
                "  for _, value in ipairs { money.usd('1'), ctx, ctx.headers, ctx.outgoing, "
                "ctx.gw.crypto.fernet_decrypt(ctx.gw.crypto.fernet_encrypt('x')), 'text' } do\n"
                "    assert(getmetatable(value) == false, type(value))\n"
                "    assert(not pcall(setmetatable, value, {}))\n"
                "  end\n"
                "end }",
                "deny");
    ctx = bench_begin();
    ck_assert_int_eq(bench_hook(ctx, SCRIPT_ADMIT), SCRIPT_PASS);
    bench_end(ctx);
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("loops");
    tcase_add_checked_fixture(tcase, iso_up, iso_down);
    tcase_set_timeout(tcase, 240);
    iso_add_heavy(tcase, loops_are_ended);
    iso_add_heavy(tcase, dear_instructions_are_ended);
    iso_add_heavy(tcase, loops_in_every_hook);
    iso_add_heavy(tcase, off_after_three_in_a_row);
    tcase_add_test(tcase, a_plugin_that_denies_is_never_off);
    iso_add_heavy(tcase, loops_in_load_and_init);
    iso_add_heavy(tcase, loops_in_a_close_function);
    iso_add_heavy(tcase, loops_in_routes);
    iso_add_heavy(tcase, loops_in_render_error);
    iso_add_heavy(tcase, loops_in_tasks_and_spawned_functions);
    iso_add_heavy(tcase, loops_in_answers);
    tcase_add_test(tcase, no_finaliser_in_lua);
    return bench_run(&tcase, 1, "isolation_loops");
}
