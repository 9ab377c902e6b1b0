// lua/api.lua (and so docs/plugin-api.md) says what the host offers: every entry is there, and
// everything that is there has its entry.
#include "unit/script/script_test.h"

START_TEST(gw_is_as_documented)
{
    bench_plugin("local api = require('api')\n"
                 "local function walk(gw)\n"
                 "  local known = {}\n"
                 "  for _, entry in ipairs(api.gw) do\n"
                 "    known[entry[1]] = true\n"
                 "    local value = gw\n"
                 "    for part in entry[1]:gmatch('[^.]+') do value = value[part] end\n"
                 "    if value == nil then error('gw.' .. entry[1] .. ' is not there') end\n"
                 "  end\n"
                 "  for name, value in pairs(gw) do\n"
                 "    if type(value) ~= 'table' and not known[name] then\n"
                 "      error('gw.' .. name .. ' is not documented')\n"
                 "    end\n"
                 "    for inner in pairs(type(value) == 'table' and value or {}) do\n"
                 "      local full = name .. '.' .. inner\n"
                 "      if not known[full] then error('gw.' .. full .. ' is not documented') end\n"
                 "    end\n"
                 "  end\n"
                 "end\n",
                 "init = function(gw) walk(gw) end");
}
END_TEST

START_TEST(ctx_is_as_documented)
{
    bench_plugin("local api = require('api')\n",
                 "hooks = { admit = function(ctx)\n"
                 "  for _, list in ipairs { api.ctx, api.ctx_methods } do\n"
                 "    for _, entry in ipairs(list) do local _ = ctx[entry[1]] end\n"
                 "  end\n"
                 "  for _, entry in ipairs(api.ctx_methods) do\n"
                 "    assert(type(ctx[entry[1]]) == 'function', entry[1])\n"
                 "  end\n"
                 "  for _, entry in ipairs(api.outgoing) do\n"
                 "    assert(type(ctx.outgoing[entry[1]]) == 'function', entry[1])\n"
                 "  end\n"
                 "  assert(not pcall(function() return ctx.no_such_field end))\n"
                 "end }");
    struct ctx *ctx = bench_begin();
    enum script_outcome outcome = bench_hook(ctx, SCRIPT_ADMIT);
    ck_assert_msg(outcome == SCRIPT_PASS, "%.*s", SLICE_FMT(ctx->error.message));
    bench_end(ctx);
}
END_TEST

START_TEST(money_is_as_documented)
{
    bench_plugin("local api = require('api')\n",
                 "init = function()\n"
                 "  local known = {}\n"
                 "  for _, entry in ipairs(api.money) do\n"
                 "    known[entry[1]] = true\n"
                 "    assert(money[entry[1]] ~= nil, entry[1])\n"
                 "  end\n"
                 "  for name in pairs(money) do assert(known[name], name) end\n"
                 "end");
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("api");
    tcase_add_checked_fixture(tcase, bench_up, bench_down);
    tcase_add_test(tcase, gw_is_as_documented);
    tcase_add_test(tcase, ctx_is_as_documented);
    tcase_add_test(tcase, money_is_as_documented);
    return bench_run(&tcase, 1, "api");
}
