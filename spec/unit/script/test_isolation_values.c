// Wrong values everywhere: what hooks return, what the functions of gw and ctx are given, objects
// of exchanges that ended, waiting where it is not allowed; and the walls of the sandbox.
#include "isolation_rig.h"

// ---- what hooks return

static const char *const VALUES[] = {
    "nil",
    "false",
    "true",
    "0",
    "-1",
    "7",
    "0/0",
    "math.huge",
    "-math.huge",
    "1.5",
    "''",
    "'text'",
    "('x'):rep(1e5)",
    "function() end",
    "{}",
    "{1}",
    "{1, 2, 3}",
    "{0}",
    "{-1}",
    "{0/0}",
    "{'1'}",
    "{{id = 1}}",
    "{{id = 'x'}}",
    "{{}}",
    "{[1e9] = 1}",
    "{status = 'x'}",
    "{status = 99}",
    "{status = 500, code = {}, message = function() end}",
    "{retry_after = -5}",
    "{status = 0/0}",
    "ctx",
    "ctx.gw",
    "ctx.headers",
    "json.null",
    "json.array{}",
    "money.usd('1')",
    "money.nano(-5)",
    ("setmetatable({}, {__index = function() while true do end end, "
     "__len = function() return 1e9 end, __tostring = error})"),
    "setmetatable({1}, {__metatable = false})",
    "CYCLE",
    "HUGE",
    "nil, 1, 2",
    "unpack(HUGE, 1, 200)",
};
#define TOP                                                                                        \
    "local CYCLE = {} CYCLE[1] = CYCLE CYCLE.id = CYCLE local HUGE = {} for i = 1, 20000 do "      \
    "HUGE[i] "                                                                                     \
    "= i end"

static bool is_right(enum script_hook hook, const char *value)
{
    bool is_nil = strcmp(value, "nil") == 0 || strcmp(value, "nil, 1, 2") == 0;
    static const char *const TABLES[] = {"{",     "json.array", "setmetatable",
                                         "CYCLE", "HUGE",       "ctx.gw"};
    bool is_table = false, is_text = value[0] == '\'' || strncmp(value, "('x')", 5) == 0;
    for (size_t i = 0; i < sizeof TABLES / sizeof *TABLES; i++)
        is_table = is_table || strncmp(value, TABLES[i], strlen(TABLES[i])) == 0;
    if (strncmp(value, "unpack", 6) == 0)
        is_table = false; // the first of many is a number
    switch (hook) {
    case SCRIPT_IDENTIFY: return is_nil;
    case SCRIPT_ADMIT: return is_nil || is_table;
    case SCRIPT_SELECT:
        return is_nil || strcmp(value, "{1}") == 0 || strcmp(value, "{1, 2, 3}") == 0 ||
               strcmp(value, "{{id = 1}}") == 0 || strcmp(value, "HUGE") == 0 ||
               (is_table && strncmp(value, "setmetatable({1}", 16) == 0) ||
               strcmp(value, "{}") == 0 || strcmp(value, "{[1e9] = 1}") == 0 ||
               strncmp(value, "{status", 7) == 0 || strncmp(value, "{retry", 6) == 0 ||
               strcmp(value, "ctx.gw") == 0 || strncmp(value, "json.array", 10) == 0 ||
               strncmp(value, "setmetatable({},", 16) == 0;
    case SCRIPT_PREPARE: return is_nil;
    case SCRIPT_REPLY: return is_nil;
    case SCRIPT_BODY: return is_nil || is_text;
    case SCRIPT_DELTA: return is_nil || is_text || strcmp(value, "false") == 0;
    case SCRIPT_PRICE: return is_nil || strcmp(value, "money.usd('1')") == 0;
    case SCRIPT_ERROR:
        return is_nil || (is_table && strncmp(value, "{status = 'x'", 13) != 0 &&
                          strncmp(value, "{status = 99", 12) != 0 &&
                          strncmp(value, "{status = 0/0", 13) != 0 &&
                          strncmp(value, "setmetatable({},", 16) != 0);
    default: return true; // finish: nobody looks
    }
}

static void check_value(enum script_hook hook, const char *value)
{
    static char fields[1000];
    struct slice out;
    snprintf(fields, sizeof fields, "%s hooks = { %s = function(ctx) return %s end }",
             iso_wants(hook), hook_name(hook), value);
    iso_plugins(TOP, fields, "deny");
    iso_log_clear();
    struct ctx *ctx = bench_begin();
    ctx->error = (struct dialect_error){
        .status = 502, .code = SLICE_LIT("c"), .message = SLICE_LIT("m"), .retry_after_ms = -1};
    iso_other_hook = SCRIPT_PREPARE;
    if (hook == SCRIPT_DELTA)
        (void)script_run_delta(ctx, EVENT_BLOCK_TEXT, SLICE_LIT("t"), &out);
    else if (hook == SCRIPT_PRICE)
        script_run_price(ctx);
    else if (hook == SCRIPT_BODY)
        (void)iso_settle(ctx, script_run_body(ctx, SLICE_LIT("b"), &out));
    else if (hook != SCRIPT_SELECT && hook != SCRIPT_PREPARE)
        (void)iso_hook(ctx, hook);
    else { // good must not run behind it
        bench.script->current->plugins[1].is_off = true;
        (void)iso_hook(ctx, hook);
        bench.script->current->plugins[1].is_off = false;
    }
    int lines = iso_log_count("plugin_error", "\"plugin\":\"bad\"");
    iso_check(lines == !is_right(hook, value), "%s returned %s: %d errors", hook_name(hook), value,
              lines);
    char in[40];
    snprintf(in, sizeof in, "%s returned", hook_name(hook));
    if (lines == 1) // names the plugin, the hook and what was wrong
        iso_check(iso_log_count("plugin_error", in) == 1 ||
                      iso_log_count("plugin_error", "number expected") == 1 ||
                      iso_log_count("budget", hook_name(hook)) == 1,
                  "%s returned %s: the error does not say so", hook_name(hook), value);
    bench_end(ctx);
    if (hook != SCRIPT_PREPARE)
        iso_expect_healthy(value);
}

START_TEST(wrong_results)
{
    for (int hook = 0; hook < SCRIPT_HOOK_COUNT; hook++)
        for (size_t i = 0; i < sizeof VALUES / sizeof *VALUES; i++)
            check_value((enum script_hook)hook, VALUES[i]);
}
END_TEST

// ---- what functions are given

// Calls every function of gw, of ctx and of the libraries with each wrong value in each place; what
// raises or gives nil is fine, what waits is cut short by gw.all around it.
static const char EVERYTHING[] =
    "local api = require('api')\n"
    "local function values(ctx)\n"
    "  local cycle = {} cycle.x = cycle\n"
    "  return { false, true, 0, -1, 0/0, 1/0, -1/0, 1.5, 2^53, 2^63, 1e308, '', 'x', '\\0',\n"
    "    ('y'):rep(70000), function() end, {}, { 1 }, cycle, ctx, ctx.gw, ctx.headers,\n"
    "    ctx.outgoing, json.null, money.usd('1'), money.nano(-5), setmetatable({}, {\n"
    "    __index = function() error('index') end, __tostring = error, __call = error }) }\n"
    "end\n"
    "local COUNT = 0\n"
    "local function call(fn, ...)\n"
    "  COUNT = COUNT + 1\n"
    "  pcall(fn, ...)\n"
    "end\n"
    "local SKIP = { ['process.reload'] = true, sleep = true, lock = true, all = true }\n"
    "local function find(root, name)\n"
    "  for part in name:gmatch('[^.]+') do root = root[part] end\n"
    "  return root\n"
    "end\n"
    "local function attack(fn, list, first)\n"
    "  call(fn)\n"
    "  for _, value in ipairs(list) do\n"
    "    call(fn, value)\n"
    "    if first ~= nil then call(fn, first, value) end\n"
    "    call(fn, 'text', value)\n"
    "    call(fn, value, value, value, value)\n"
    "    call(fn, { url = value, sql = value, uid = value, id = value, key = value, name = value,\n"
    "      method = value, headers = value, body = value, json = value, timeout = value, status =\n"
    "      value, events = value, kind = value, user = value, text = value, [1] = value })\n"
    "    if first ~= nil then call(fn, first, 500, value, value, value)\n"
    "      call(fn, first, 'x', value)\n"
    "      call(fn, first, { status = value, json = value, headers = { a = value }, content_type "
    "=\n"
    "        value, events = { value }, key = { id = value }, user = { id = value } }) end\n"
    "  end\n"
    "end\n";

static const char ATTACK_GW[] =
    "needs = { db = true, fetch = {'127.0.0.1:1'}, keys = 'write', upstreams = 'write', logs = "
    "'write', prices = 'write', process = true, secrets = {'S'} }, metrics = { {name = "
    "'text_total', "
    "kind = "
    "'counter', help = 'h', labels = {'a'}} },\n"
    "hooks = { admit = function(ctx) local gw, list = ctx.gw, values(ctx)\n"
    "  local entry = api.gw[ctx.attempt]\n"
    "  local fn = entry and find(gw, entry[1])\n"
    "  if type(fn) ~= 'function' or SKIP[entry[1]] then return end\n"
    "  local jobs = {}\n"
    "  for _, value in ipairs(list) do\n"
    "    gw.all{ function() attack(fn, { value }) end }\n"
    "  end\n"
    "end, price = function() return money.nano(COUNT) end }";

START_TEST(every_function_of_gw_with_wrong_arguments)
{
    log_set_level(LOG_ERROR + 1);
    test_conf_set(bench.store.conf, "lua.instructions", "50000000");
    bench_plugin(EVERYTHING, ATTACK_GW);
    for (int n = 1; n <= 120; n++) {
        struct ctx *ctx = bench_begin();
        ctx->attempt = n;
        (void)iso_hook(ctx, SCRIPT_ADMIT);
        bench_end(ctx);
        bench_turn();
    }
    struct ctx *ctx = bench_begin();
    script_run_price(ctx);
    if (getenv("ISO_TIMES"))
        fprintf(stderr, "%ld calls\n", (long)ctx->cost_nano);
    ck_assert_int_gt(ctx->cost_nano, 5000);
    bench_end(ctx);
    for (int i = 0; i < 20; i++)
        bench_turn();
    ck_assert_uint_eq(bench.script->current->live_count, 0);
}
END_TEST

#define ATTACK_CTX(hook)                                                                           \
#hook " = function(ctx) local list = values(ctx)\n"                                            \
          "  for _, name in ipairs { 'ctx_methods', 'outgoing' } do\n"                             \
          "    local root = name == 'outgoing' and ctx.outgoing or ctx\n"                          \
          "    for _, entry in ipairs(api[name]) do attack(root[entry[1]], list, root) end\n"      \
          "  end\n"                                                                                \
          "  for _, value in ipairs(list) do call(function() return ctx[value] end)\n"             \
          "    call(function() ctx[value] = value end)\n"                                          \
          "    call(function() return ctx.headers[value] end) end\n"                               \
          "end,"

START_TEST(every_method_of_ctx_with_wrong_arguments)
{
    static const enum script_hook HOOKS[] = {SCRIPT_IDENTIFY, SCRIPT_ADMIT,  SCRIPT_PREPARE,
                                             SCRIPT_REPLY,    SCRIPT_FINISH, SCRIPT_ERROR};
    log_set_level(LOG_ERROR + 1);
    test_conf_set(bench.store.conf, "lua.instructions", "50000000");
    bench_plugin(EVERYTHING, "hooks = { " ATTACK_CTX(identify) ATTACK_CTX(admit) ATTACK_CTX(prepare)
                                 ATTACK_CTX(reply) ATTACK_CTX(finish) ATTACK_CTX(error)
                                     ATTACK_CTX(delta) ATTACK_CTX(price) "}, wants = {'text'}");
    struct slice out;
    for (size_t i = 0; i < sizeof HOOKS / sizeof *HOOKS; i++) {
        struct ctx *ctx = bench_begin();
        (void)iso_hook(ctx, HOOKS[i]);
        ck_assert(!ctx->is_denied || ctx->error.status >= 400);
        ck_assert(ctx->respond.kind == CTX_ANSWER_NONE || ctx->respond.status >= 200);
        bench_end(ctx);
    }
    struct ctx *ctx = bench_begin();
    (void)script_run_delta(ctx, EVENT_BLOCK_TEXT, SLICE_LIT("t"), &out);
    script_run_price(ctx);
    ck_assert_int_eq(bench_hook(ctx, SCRIPT_SELECT), SCRIPT_PASS);
    bench_end(ctx);
}
END_TEST

START_TEST(every_library_function_with_wrong_arguments)
{
    test_conf_set(bench.store.conf, "lua.instructions", "90000000");
    bench_plugin(
        EVERYTHING,
        "hooks = { admit = function(ctx) local list = values(ctx)\n"
        "  for _, library in ipairs { string, table, math, bit, os, json, money, log, schema } do\n"
        "    for name, fn in pairs(library) do if type(fn) == 'function' then attack(fn, list, "
        "'x') "
        "attack(fn, list, {3, 1, 2}) end end\n"
        "  end\n"
        "  for _, fn in ipairs { assert, getmetatable, ipairs, next, pairs, pcall, rawequal, "
        "rawget, "
        "rawset, select, setmetatable, tonumber, tostring, type, unpack, xpcall, load, loadstring, "
        "require, print, collectgarbage } do attack(fn, list, {}) attack(fn, list, 'x') end\n"
        "  if COUNT < 5000 then error('only ' .. COUNT) end\n"
        "end }");
    struct ctx *ctx = bench_begin();
    enum script_outcome outcome = iso_hook(ctx, SCRIPT_ADMIT);
    ck_assert_msg(outcome == SCRIPT_PASS, "%s", iso_log_line("plugin_error"));
    bench_end(ctx);
}
END_TEST

// ---- objects of other exchanges, and of none

START_TEST(kept_objects)
{
    iso_plugins(
        "local KEPT = {}",
        "hooks = { admit = function(ctx)\n"
        "  if not KEPT.ctx then KEPT.ctx, KEPT.headers, KEPT.outgoing = ctx, ctx.headers, "
        "ctx.outgoing KEPT.deny, KEPT.vars = ctx.deny, ctx.vars return end\n"
        "  local function raises(text, fn, ...) local ok, why = pcall(fn, ...) assert(not ok "
        "and tostring(why):find(text, 1, true), why) end\n"
        "  if ctx.attempt == 1 then\n" // the other has ended
        "    raises('has ended', function() return KEPT.ctx.model end)\n"
        "    raises('has ended', function() return KEPT.headers.host end)\n"
        "    raises('has ended', function() return KEPT.ctx.vars end)\n"
        "    raises('has ended', KEPT.ctx.body, KEPT.ctx)\n"
        "    raises('has ended', KEPT.deny, KEPT.ctx, 400, 'a', 'b')\n"
        "    raises('has ended', KEPT.outgoing.set_path, KEPT.outgoing, '/x')\n"
        "  else\n" // it lives: it can be read, not answered
        "    assert(KEPT.ctx.model == 'gpt-x' and KEPT.headers['user-agent'] == 'curl/8')\n"
        "    raises('is allowed in', KEPT.ctx.deny, KEPT.ctx, 400, 'a', 'b')\n"
        "    raises('is allowed in', KEPT.ctx.respond, KEPT.ctx, {text = 'x'})\n"
        "    raises('is allowed in', KEPT.ctx.stream, KEPT.ctx, function() end)\n"
        "    raises('is allowed in', KEPT.ctx.identify, KEPT.ctx, {name = 'x'})\n"
        "    raises('prepare hook only', KEPT.outgoing.set_path, KEPT.outgoing, '/x')\n"
        "  end\n"
        "end }",
        "deny");
    struct ctx *first = bench_begin(), *second = bench_begin();
    ck_assert_int_eq(iso_hook(first, SCRIPT_ADMIT), SCRIPT_PASS);
    second->attempt = 2;
    ck_assert_msg(iso_hook(second, SCRIPT_ADMIT) == SCRIPT_PASS, "%s",
                  iso_log_line("plugin_error"));
    ck_assert(!first->is_denied && first->respond.kind == CTX_ANSWER_NONE);
    bench_end(first);
    second->attempt = 1;
    ck_assert_msg(iso_hook(second, SCRIPT_ADMIT) == SCRIPT_PASS, "%s",
                  iso_log_line("plugin_error"));
    // The slot's next owner is not reached by the old object either.
    struct ctx *third = bench_begin();
    third->attempt = 1;
    ck_assert_int_eq(iso_hook(third, SCRIPT_ADMIT), SCRIPT_PASS);
    bench_end(second);
    bench_end(third);
}
END_TEST

// ---- waiting where it is not allowed

#define WAITS "which is not allowed"
static const struct {
    enum script_hook hook;
    const char *code, *error;
} YIELDS[] = {
    {SCRIPT_PRICE, "gw.sleep(0)", WAITS},
    {SCRIPT_DELTA, "gw.sleep(0)", WAITS},
    {SCRIPT_DELTA, "local ok, why = pcall(gw.sleep, 0) error(why, 0)", WAITS},
    {SCRIPT_PRICE, "local ok, why = pcall(gw.fetch, {url = 'http://127.0.0.1/'}) error(why, 0)",
     WAITS},
    {SCRIPT_PRICE, "gw.db.query('SELECT 1')", WAITS},
    {SCRIPT_PRICE, "gw.db.transaction{ {'SELECT 1'} }", WAITS},
    {SCRIPT_PRICE, "gw.all{function() end}", WAITS},
    {SCRIPT_PRICE, "gw.lock('n', 1)", WAITS},
    {SCRIPT_PRICE, "gw.keys.create{ name = 'x' }", WAITS},
    {SCRIPT_ADMIT, "table.sort({2, 1}, function() gw.sleep(0) return true end)", WAITS},
    {SCRIPT_ADMIT, "('x'):gsub('x', function() gw.sleep(0) end)", WAITS},
    {SCRIPT_ADMIT, "('x'):gsub('x', function() gw.all{function() end} end)", WAITS},
    {SCRIPT_ADMIT, "('%s'):format(setmetatable({}, {__tostring = function() gw.sleep(0) end}))",
     WAITS},
    {SCRIPT_ADMIT,
     "table.sort({setmetatable({}, {__lt = function() gw.sleep(0) end}), "
     "setmetatable({}, {})})",
     NULL},
    {SCRIPT_ADMIT, "coroutine.yield()", "coroutine"},
    {SCRIPT_ADMIT, "coroutine.wrap(function() end)()", "coroutine"},
    {SCRIPT_ADMIT, "require('coroutine')", "not found"},
};

START_TEST(waiting_where_it_is_not_allowed)
{
    for (size_t i = 0; i < sizeof YIELDS / sizeof *YIELDS; i++) {
        const struct iso_case one = {YIELDS[i].code, YIELDS[i].code, YIELDS[i].error};
        iso_run(&one, YIELDS[i].hook, false);
    }
}
END_TEST

START_TEST(waiting_in_metamethods_and_protected_calls)
{
    // Where LuaJIT can wait, waiting works: nothing is half done.
    iso_plugins(
        NULL,
        "hooks = { admit = function(ctx) local gw = ctx.gw\n"
        "  local function wait() gw.sleep(0) return 7 end\n"
        "  local t = setmetatable({}, {__index = wait, __add = wait, __call = wait, __concat = "
        "wait, __unm = wait})\n"
        "  assert(t.x == 7 and t + 1 == 7 and t() == 7 and t .. 'x' == 7 and -t == 7)\n"
        "  local ok, value = pcall(wait) assert(ok and value == 7)\n"
        "  ok, value = pcall(function() gw.sleep(0) error('mine', 0) end) assert(not ok and "
        "value == 'mine')\n"
        "  ok, value = xpcall(function() gw.sleep(0) error('x', 0) end, function(why) "
        "gw.sleep(0) return why .. 'y' end) assert(not ok and value == 'xy', value)\n"
        "  for _ in (function() return wait() == 8 or nil end) do end\n"
        "end }",
        "deny");
    struct ctx *ctx = bench_begin();
    ck_assert_int_eq(iso_hook(ctx, SCRIPT_ADMIT), SCRIPT_PASS);
    bench_end(ctx);
}
END_TEST

START_TEST(waiting_in_init_is_refused)
{
    static const char *const CODES[] = {"gw.sleep(0)",
                                        "pcall(gw.sleep, 0) gw.fetch{url = 'http://a/'}",
                                        "gw.db.query('SELECT 1')", "gw.lock('n', 1)"};
    iso_plugins(NULL, "hooks = {}", "deny");
    for (size_t i = 0; i < sizeof CODES / sizeof *CODES; i++) {
        char text[500];
        struct buf problems = BUF_INIT(65536);
        snprintf(text, sizeof text,
                 "return { name = 'bad', version = '1', api = 1, about = 'b', needs = { db = true, "
                 "fetch = true }, init = function(gw) %s end }",
                 CODES[i]);
        bench_write(0, "bad", text);
        ck_assert_int_ne(bench_try(2, &problems), 0);
        ck_assert_msg(slice_find(buf_slice(&problems), SLICE_LIT(WAITS)) >= 0 &&
                          slice_find(buf_slice(&problems), SLICE_LIT("bad/init.lua:1")) >= 0,
                      "%.*s", SLICE_FMT(buf_slice(&problems)));
        buf_free(&problems);
        iso_expect_healthy(CODES[i]);
    }
}
END_TEST

// ---- the sandbox

START_TEST(the_sandbox_holds)
{
    static const char CODE[] =
        "local function absent(name) assert(not pcall(function() return load('return ' .. name)() "
        "end), "
        "name) end\n"
        "for _, name in ipairs { 'ffi', 'io', 'debug', 'package', 'jit', 'coroutine', 'newproxy', "
        "'dofile', 'loadfile', 'getfenv', 'setfenv', 'module', 'gcinfo' } do absent(name) "
        "assert(rawget(_G, name) == nil, name) assert(not pcall(require, name), name) end\n"
        "for _, name in ipairs { 'execute', 'exit', 'getenv', 'remove', 'rename', 'tmpname', "
        "'setlocale', 'difftime' } do assert(os[name] == nil, name) end\n"
        "for _, name in ipairs { 'dump' } do assert(string[name] == nil and ('')[name] == nil, "
        "name) end\n"
        "assert(table.foreach == nil and table.foreachi == nil and math.randomseed == nil)\n"
        // bytecode
        "local ok, why = load('\\27LJ\\2\\2') assert(not ok and why:find('refused'))\n"
        "ok, why = loadstring('\\27Lua') assert(not ok)\n"
        "ok, why = load('\\27LJ', 'x', 'b') assert(not ok)\n"
        "assert(not pcall(load, function() return 'return 1' end))\n"
        // environments
        "assert(getmetatable(_G) == false and not pcall(setmetatable, _G, {}))\n"
        "assert(not pcall(function() undeclared = 1 end) and not pcall(function() return "
        "undeclared "
        "end))\n"
        "assert(load('return _G')() == _G)\n"
        "local own = {} assert(load('x = 1', 'n', 't', own)() == nil and own.x == 1)\n"
        "assert(not pcall(load('return os', 'n', 't', setmetatable({}, {__index = function() "
        "error('x') end}))))\n"
        // metatables of ours and of texts
        "assert(getmetatable('') == false and not pcall(setmetatable, '', {}))\n"
        "assert(not pcall(function() getmetatable('').__index = nil end))\n"
        "string.upper = function() return 'mine' end assert(('x'):upper() == 'X')\n"
        "assert(not pcall(rawset, ctx, 'a', 1) and not pcall(rawget, ctx, 'a'))\n"
        "assert(not pcall(collectgarbage, 'stop') and not pcall(collectgarbage, 'collect'))\n"
        "assert(type(collectgarbage('count')) == 'number')\n"
        "for _, path in ipairs { '../x', '/etc/passwd', './../good/init', 'good.init', 'good', "
        "'lua/api.lua' } do assert(not pcall(require, path), path) end\n"
        // what is written into shared tables stays here
        "string.leak = 1 table.leak = 1 math.leak = 1 bit.leak = 1 os.leak = 1 json.leak = 1 "
        "money.leak "
        "= 1 log.leak = 1 schema.leak = 1 ctx.gw.leak = 1 require('util').leak = 1 "
        "require('api').leak = 1 _G.leak = rawset(_G, 'leak', 1) and 1\n"
        "math.floor = error table.insert = error string.format = error json.encode = error\n";
    static char text[9000];
    snprintf(text, sizeof text, "hooks = { admit = function(ctx) %s end }", CODE);
    bench_write(
        1, "good",
        "return { name = 'good', version = '1', api = 1, about = 'g', hooks = { prepare = "
        "function(ctx) for name, value in pairs { string = string, table = table, math = math, "
        "bit = bit, os = os, json = json, money = money, log = log, schema = schema, gw = "
        "ctx.gw, util = require('util'), api = require('api'), g = _G } do assert(rawget(value, "
        "'leak') == nil, name) end assert(math.floor(1.5) == 1 and ('%d'):format(3) == '3' and "
        "string.format('%d', 3) == '3' and json.encode{1} == '[1]') local t = {} "
        "table.insert(t, 1) assert(t[1] == 1) end } }");
    static char whole[10000];
    snprintf(whole, sizeof whole,
             "return { name = 'bad', version = '1', api = 1, about = 'b', on_error = 'deny', %s }",
             text);
    bench_write(0, "bad", whole);
    bench_flip(2);
    iso_log_clear();
    struct ctx *ctx = bench_begin();
    enum script_outcome outcome = iso_hook(ctx, SCRIPT_ADMIT);
    ck_assert_msg(outcome == SCRIPT_PASS, "%s", iso_log_line("plugin_error"));
    ck_assert_int_eq(iso_hook(ctx, SCRIPT_PREPARE), SCRIPT_PASS);
    bench_end(ctx);
    // Nor in the next generation of the same plugin.
    bench_flip(2);
    ctx = bench_begin();
    ck_assert_int_eq(iso_hook(ctx, SCRIPT_PREPARE), SCRIPT_PASS);
    bench_end(ctx);
}
END_TEST

START_TEST(conf_and_capabilities)
{
    // A plugin without needs gets refusals, and its settings are its own copy.
    bench_plugin(
        "local function refused(fn, ...) local ok, why = pcall(fn, ...) assert(not ok and "
        "why:find('needs', 1, true), why) end",
        "hooks = { admit = function(ctx) local gw = ctx.gw "
        "refused(gw.fetch, {url = 'http://a/'}) refused(gw.db.query, 'SELECT 1') "
        "refused(gw.db.transaction, {{'SELECT 1'}}) refused(gw.keys.create, {}) "
        "refused(gw.keys.list, {}) refused(gw.upstreams.create, {}) refused(gw.upstreams.all) "
        "refused(gw.logs.list, {}) refused(gw.prices.put, {}) refused(gw.process.info) "
        "refused(gw.process.reload) refused(gw.secret, 'X') end }");
    iso_log_clear();
    struct ctx *ctx = bench_begin();
    enum script_outcome outcome = iso_hook(ctx, SCRIPT_ADMIT);
    ck_assert_int_eq(iso_log_count("plugin_error", NULL), 0);
    ck_assert_int_eq(outcome, SCRIPT_PASS);
    bench_end(ctx);
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("values");
    tcase_add_checked_fixture(tcase, iso_up, iso_down);
    tcase_set_timeout(tcase, 240);
    iso_add_heavy(tcase, wrong_results);
    iso_add_heavy(tcase, every_function_of_gw_with_wrong_arguments);
    iso_add_heavy(tcase, every_method_of_ctx_with_wrong_arguments);
    iso_add_heavy(tcase, every_library_function_with_wrong_arguments);
    tcase_add_test(tcase, kept_objects);
    tcase_add_test(tcase, waiting_where_it_is_not_allowed);
    tcase_add_test(tcase, waiting_in_metamethods_and_protected_calls);
    tcase_add_test(tcase, waiting_in_init_is_refused);
    tcase_add_test(tcase, the_sandbox_holds);
    tcase_add_test(tcase, conf_and_capabilities);
    return bench_run(&tcase, 1, "isolation_values");
}
