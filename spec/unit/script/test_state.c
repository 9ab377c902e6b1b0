// The Lua state: sandbox, caps on work and memory, patterns, json and money.
#include "base/clock.h"
#include "base/log.h"
#include "script/lua_json.h"
#include "script/lua_money.h"
#include "script/lua_secret.h"
#include "script/state.h"
#include <check.h>
#include <stdlib.h>

static struct lua_env *env;
static char error[600];

static void set_up(void)
{
    const struct lua_env_options options = {.memory_cap = (size_t)32 << 20,
                                            .instruction_budget = 2000000,
                                            .use_jit = true,
                                            .lua_dir = MOONGATE_SOURCE_DIR "/lua"};
    ck_assert_msg(lua_env_new(&options, &env, error, sizeof error) == 0, "%s", error);
}

static void tear_down(void)
{
    lua_env_free(env);
}

struct chunk {
    const char *text;
    char result[256];
};

static int run_chunk(lua_State *L)
{
    struct chunk *chunk = lua_touserdata(L, 1);
    char why[512];
    lua_settop(L, 0);
    lua_env_push_sandbox(lua_env_of(L), L, "test");
    lua_env_add_module(L, 1, "./part", SLICE_LIT("return { answer = 42 }"), "@test/part.lua");
    if (lua_env_compile(lua_env_of(L), L, slice_str(chunk->text), "@test.lua", false, 1, why,
                        sizeof why) != 0)
        return luaL_error(L, "%s", why);
    lua_call(L, 0, 1);
    chunk->result[0] = '\0';
    if (lua_isstring(L, -1))
        snprintf(chunk->result, sizeof chunk->result, "%s", lua_tostring(L, -1));
    else if (lua_isboolean(L, -1))
        snprintf(chunk->result, sizeof chunk->result, "%s",
                 lua_toboolean(L, -1) ? "true" : "false");
    else
        snprintf(chunk->result, sizeof chunk->result, "%s", luaL_typename(L, -1));
    return 0;
}

static int run(struct chunk *chunk)
{
    error[0] = '\0';
    return lua_env_protect(env, run_chunk, chunk, error, sizeof error);
}

static void expect(const char *text, const char *result)
{
    struct chunk chunk = {.text = text};
    int err = run(&chunk);
    ck_assert_msg(err == 0, "%s: %s", text, error);
    ck_assert_msg(strcmp(chunk.result, result) == 0, "%s gave %s, not %s", text, chunk.result,
                  result);
}

static void expect_error(const char *text, const char *part)
{
    struct chunk chunk = {.text = text};
    ck_assert_msg(run(&chunk) != 0, "%s did not fail but gave %s", text, chunk.result);
    ck_assert_msg(strstr(error, part), "%s failed with \"%s\", not \"%s\"", text, error, part);
    ck_assert_int_eq(lua_gettop(lua_env_state(env)), 0);
}

START_TEST(test_sandbox_hides_what_is_dangerous)
{
    static const char *const NAMES[] = {"io",        "debug",    "package",  "ffi",     "jit",
                                        "dofile",    "loadfile", "newproxy", "setfenv", "getfenv",
                                        "coroutine", "module",   "gcinfo"};
    char text[128];
    for (size_t i = 0; i < sizeof NAMES / sizeof *NAMES; i++) {
        snprintf(text, sizeof text, "return %s", NAMES[i]);
        expect_error(text, "undeclared global");
    }
    expect("return type(os.execute) .. type(os.exit) .. type(os.getenv) .. type(os.remove)",
           "nilnilnilnil");
    expect("return type(string.dump)", "nil");
    expect("return type(os.time())", "number");
    expect("return tostring(getmetatable(''))", "false");
    expect_error("return setmetatable('', {})", "table expected");
    expect_error("x = 1", "assignment to undeclared global 'x'");
    expect_error("collectgarbage('stop')", "only \"count\"");
    expect("return load('\\27LJ') == nil", "true");
    expect_error("load(function() return '' end)", "only a text");
    expect("return load('return 1 + 1')()", "2");
    expect_error("load('y = 1')()", "undeclared global 'y'");
    expect("return require('./part').answer", "42");
    expect_error("require('socket')", "not found");
    expect_error("require('../etc/passwd')", "not found");
}
END_TEST

START_TEST(test_sandboxes_do_not_share_libraries)
{
    expect("string.format = 1 table.insert = nil math.floor = 2 rawset(_G, 'pcall', 3) return 1",
           "1");
    expect("return type(string.format) .. type(table.insert) .. type(math.floor) .. type(pcall)",
           "functionfunctionfunctionfunction");
    expect("string.rep = nil return ('x'):rep(3)", "xxx");
    expect("require('util').map = nil return 1", "1");
    expect("return type(require('util').map)", "function");
}
END_TEST

START_TEST(test_errors_name_file_and_line)
{
    expect_error("\n\nerror('boom')", "test.lua:3: boom");
    expect_error("\nlocal t = nil\nreturn t.x", "test.lua:3:");
    expect_error("return +", "test.lua:1:");
    expect_error("error({})", "not a text");
}
END_TEST

static uint64_t timed_error(const char *text, const char *part)
{
    uint64_t start = clock_boot_ns();
    expect_error(text, part);
    return (clock_boot_ns() - start) / 1000000u;
}

START_TEST(test_endless_loops_end)
{
    static const char *const LOOPS[] = {
        "while true do end",
        "local function f() return f() end f()",
        "while true do pcall(function() while true do end end) end",
        "while true do pcall(pcall, function() while true do end end) end",
        ("xpcall(function() while true do end end, function() while true do end end)\n"
         "while true do end"),
        "while true do xpcall(error, function() while true do end end) end",
        "local t = setmetatable({}, {__index = function() while true do end end}) return t.x",
        "local t = setmetatable({}, {__add = function() while true do end end}) return t + 1",
        "return ('x'):gsub('x', function() while true do end end)",
        "table.sort({3, 2, 1}, function() while true do end end)",
        ("return string.format('%s', setmetatable({}, {__tostring = function() while true do end "
         "end}))"),
        "load('while true do end')()",
        "for _ in function() return 1 end do end",
        "local t = {} t.f = function() return t.f() end pcall(t.f) while true do pcall(t.f) end",
        "while true do ('x'):rep(1000000) end",
        ("local t = {} for i = 1, 50000 do t[i] = i end while true do table.insert(t, 1, 0) "
         "table.remove(t, 1) end"),
        "local t = {} for i = 1, 5000 do t[i] = i end while true do table.sort(t) end",
        "local s = ('x'):rep(100000) while true do s:find('y', 1, true) end",
        "local s = ('x'):rep(100000) while true do s:find('y') end",
    };
    for (size_t i = 0; i < sizeof LOOPS / sizeof *LOOPS; i++) {
        uint64_t took = timed_error(LOOPS[i], "budget used up");
        ck_assert_msg(took < 1000, "%s took %lu ms", LOOPS[i], (unsigned long)took);
        ck_assert(lua_env_was_killed(env));
    }
    expect("return 1", "1"); // the state is as good as before
}
END_TEST

START_TEST(test_patterns_are_bounded)
{
    ck_assert(timed_error("return (('a'):rep(3000)):find(('.-'):rep(20) .. 'b')", "too complex") <
              1000);
    expect_error("return (('a'):rep(50)):match(('a?'):rep(3000))", "longer than");
    expect_error("while true do pcall(string.find, ('a'):rep(3000), ('.-'):rep(20) .. 'b') end",
                 "budget used up");
}
END_TEST

START_TEST(test_patterns_match_like_lua)
{
    expect("return ('hello world'):find('o w')", "5");
    expect("return select(2, ('hello world'):find('o w'))", "7");
    expect("return ('hello'):find('l+')", "3");
    expect("return ('key = value'):match('^(%w+)%s*=%s*(%w+)$')", "key");
    expect("return select(2, ('key = value'):match('^(%w+)%s*=%s*(%w+)$'))", "value");
    expect("return ('  trim  '):match('^%s*(.-)%s*$') .. '|'", "trim|");
    expect("return (('a,b,,c'):gsub(',', ';'))", "a;b;;c");
    expect("return select(2, ('a,b,,c'):gsub(',', ';'))", "3");
    expect("return (('abc'):gsub('%w', '%0%0'))", "aabbcc");
    expect("return (('abc'):gsub('', '-'))", "-a-b-c-");
    expect("return (('hello world'):gsub('o', {o = '0'}))", "hell0 w0rld");
    expect("return (('hello'):gsub('l', function(c) return c:upper() end, 1))", "heLlo");
    expect("return ('THE (quick) fox'):find('%((%a+)%)')", "5");
    expect("return ('x(a(b)c)y'):match('%b()')", "(a(b)c)");
    expect("return ('THE (quick) fox'):gsub('%f[%a]%a+', 'w')", "w (w) w");
    expect("return ('\\0a'):match('%z(.)')", "a");
    expect("return ('abc'):match('()b()')", "2");
    expect("return ('aXb'):match('%u')", "X");
    expect("return ('a-b'):match('[a%-]+')", "a-");
    expect("return ('a]b'):match('[]]')", "]");
    expect("return ('abab'):match('(ab)%1')", "ab");
    expect("local n = 0 for k, v in ('a=1, b=2'):gmatch('(%w+)=(%w+)') do n = n + v end return n",
           "3");
    expect("return tostring(('abc'):match('x'))", "nil");
    expect("return ('abc'):find('b', -2)", "2");
    expect("return tostring(('abc'):find('a', 10))", "nil");
    expect_error("return ('a'):match('(')", "unfinished capture");
    expect_error("return ('a'):match('[a')", "missing ']'");
    expect_error("return ('a'):match('%')", "ends with '%'");
    expect_error("return ('a'):gsub('a', '%2')", "invalid capture index");
    expect_error("return ('a'):rep(1e9)", "too long");
    expect("return ('ab'):rep(3, '-')", "ab-ab-ab");
    expect_error("return string.format('%1000d', 1)", "");
}
END_TEST

START_TEST(test_memory_hogs_end)
{
    static const char *const HOGS[] = {
        "local t = {} while true do t[#t + 1] = {} end",
        "local t = {} while true do t[#t + 1] = function() return t end end",
        "local s = 'x' while true do s = s .. s end",
        "local t = {} for i = 1, 1e9 do t[i] = ('x'):rep(100000) .. i end",
        ("local t = {} while true do pcall(function() while true do t[#t + 1] = ('x'):rep(1e5) .. "
         "#t end end) end"),
    };
    for (size_t i = 0; i < sizeof HOGS / sizeof *HOGS; i++) {
        struct chunk chunk = {.text = HOGS[i]};
        ck_assert_msg(run(&chunk) != 0, "%s", HOGS[i]);
        (void)lua_env_turn_end(env);
        ck_assert_uint_lt(lua_env_memory(env), (size_t)24 << 20);
        expect("local t = {} for i = 1, 1000 do t[i] = {i} end return #t", "1000");
    }
}
END_TEST

START_TEST(test_recursion_ends)
{
    expect_error("local function f() return 1 + f() end return f()", "stack overflow");
    expect_error("local function f(s) return (s:gsub('.', f)) end return f('x')", "");
    expect_error("local t = setmetatable({}, {}) getmetatable(t).__index = function(_, k) return "
                 "t[k .. 'x'] end return t.a",
                 "");
    expect("return 1", "1");
}
END_TEST

START_TEST(test_garbage_is_no_hog)
{
    expect("local n = 0 for i = 1, 2000 do local s = ('x'):rep(20000) .. i n = n + #s end return "
           "n > 0",
           "true");
}
END_TEST

START_TEST(test_json)
{
    expect("return json.encode({1, 2, {a = true}})", "[1,2,{\"a\":true}]");
    expect("return json.encode({})", "{}");
    expect("return json.encode(json.array{})", "[]");
    expect("return json.encode(json.decode('[]'))", "[]");
    expect("return json.encode(json.null)", "null");
    expect("return json.encode(9007199254740992)", "9007199254740992");
    expect("return json.encode(money.usd('0.10'))", "0.1");
    expect("return json.decode('{\"a\":[1,2.5,null]}').a[2]", "2.5");
    expect("return tostring(json.decode('{\"a\":[1,2.5,null]}').a[3] == json.null)", "true");
    expect("return tostring(json.decode('{'))", "nil");
    expect_error("local t = {} t.t = t return json.encode(t)", "deeper");
    expect_error("return json.encode(print)", "cannot be written");
    expect_error("local t = {} for i = 1, 300 do t[i] = ('x'):rep(100000) end return "
                 "json.encode(t)",
                 "");
}
END_TEST

START_TEST(test_money)
{
    expect("return tostring(money.usd('0.1') + money.usd('0.2'))", "0.3");
    expect("return tostring(money.usd('0.1') + money.usd('0.2') == money.usd('0.3'))", "true");
    expect("return tostring(money.usd('1') < money.usd('2'))", "true");
    expect("return tostring(money.scale(money.usd('10'), '0.8'))", "8");
    expect("return tostring(money.scale(money.usd('10'), 500000))", "5");
    expect("return tostring(-money.usd('1.5') * 2)", "-3");
    expect("return money.nano_text(money.usd('1'))", "1000000000");
    expect("return tostring(money.nano('9223372036854775807'))", "9223372036.854775807");
    expect("return select(2, money.parse('abc'))", "not an amount");
    expect_error("return money.nano('9223372036854775807') + money.nano(1)", "out of range");
    expect_error("return money.usd('1') + 1", "money expected");
    expect_error("return money.scale(money.usd('1'), 0.5)", "ppm");
}
END_TEST

static int push_secret(lua_State *L)
{
    struct chunk *chunk = lua_touserdata(L, 1);
    lua_getglobal(L, "tostring");
    lua_secret_push_bytes(L, SLICE_LIT("hush-hush"));
    lua_call(L, 1, 1);
    snprintf(chunk->result, sizeof chunk->result, "%s", lua_tostring(L, -1));
    lua_secret_push_bytes(L, SLICE_LIT("hush-hush"));
    struct buf *out = lua_env_buffer(L, 1000);
    lua_json_encode(L, -2, out);
    return 0;
}

START_TEST(test_secrets_do_not_print)
{
    struct chunk chunk = {0};
    ck_assert_int_ne(lua_env_protect(env, push_secret, &chunk, error, sizeof error), 0);
    ck_assert_str_eq(chunk.result, "[secret]");
    ck_assert(strstr(error, "cannot be written"));
}
END_TEST

START_TEST(test_states_leave_nothing)
{
    for (int i = 0; i < 50; i++) {
        tear_down();
        set_up();
        expect("return require('util').split('a, b', ',')[2]", "b");
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("state");
    TCase *tcase = tcase_create("state");
    tcase_add_checked_fixture(tcase, set_up, tear_down);
    tcase_set_timeout(tcase, 120);
    tcase_add_test(tcase, test_sandbox_hides_what_is_dangerous);
    tcase_add_test(tcase, test_sandboxes_do_not_share_libraries);
    tcase_add_test(tcase, test_errors_name_file_and_line);
    tcase_add_test(tcase, test_endless_loops_end);
    tcase_add_test(tcase, test_patterns_are_bounded);
    tcase_add_test(tcase, test_patterns_match_like_lua);
    tcase_add_test(tcase, test_memory_hogs_end);
    tcase_add_test(tcase, test_recursion_ends);
    tcase_add_test(tcase, test_garbage_is_no_hog);
    tcase_add_test(tcase, test_json);
    tcase_add_test(tcase, test_money);
    tcase_add_test(tcase, test_secrets_do_not_print);
    tcase_add_test(tcase, test_states_leave_nothing);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_set_fork_status(runner, CK_NOFORK);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
