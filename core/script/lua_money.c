#include "script/lua_money.h"
#include "base/money.h"
#include "script/state.h"
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#define MAGIC 0x6d6f6e6579u
#define META "moongate.money"

struct money {
    uint64_t magic; // plugins cannot make userdata, but other host objects have other sizes
    int64_t nano;
};

void lua_money_push(lua_State *L, int64_t nano)
{
    struct money *money = lua_newuserdata(L, sizeof *money);
    money->magic = MAGIC;
    money->nano = nano;
    luaL_getmetatable(L, META);
    lua_setmetatable(L, -2);
}

bool lua_money_get(lua_State *L, int index, int64_t *nano)
{
    const struct money *money = lua_touserdata(L, index);
    if (lua_type(L, index) != LUA_TUSERDATA || lua_objlen(L, index) != sizeof *money ||
        money->magic != MAGIC)
        return false;
    *nano = money->nano;
    return true;
}

static int64_t check(lua_State *L, int index)
{
    int64_t nano = 0;
    if (!lua_money_get(L, index, &nano))
        luaL_argerror(L, index, "money expected");
    return nano;
}

static int fail_range(lua_State *L)
{
    return luaL_error(L, "money: out of range");
}

static int push_checked(lua_State *L, int err, int64_t nano)
{
    if (err)
        return fail_range(L);
    lua_money_push(L, nano);
    return 1;
}

// money.parse("1.5") → money or nil, why. Whole numbers are taken as they are.
static int money_read(lua_State *L)
{
    int64_t nano;
    if (lua_money_get(L, 1, &nano)) {
        lua_settop(L, 1);
        return 1;
    }
    int err = money_parse(lua_env_check_slice(L, 1), &nano);
    if (err == 0) {
        lua_money_push(L, nano);
        return 1;
    }
    lua_pushnil(L);
    lua_pushstring(L, err == GW_ETOOBIG ? "out of range" : "not an amount");
    return 2;
}

static int money_usd(lua_State *L)
{
    int64_t nano;
    if (money_parse(lua_env_check_slice(L, 1), &nano) != 0)
        return luaL_argerror(L, 1, "not an amount of USD");
    lua_money_push(L, nano);
    return 1;
}

static int money_zero(lua_State *L)
{
    lua_money_push(L, 0);
    return 1;
}

// money.nano(count): a whole number or its text.
static int money_nano(lua_State *L)
{
    if (lua_type(L, 1) == LUA_TSTRING) {
        const char *text = lua_tostring(L, 1);
        char *end;
        long long value = strtoll(text, &end, 10);
        if (*text == '\0' || *end != '\0')
            return luaL_argerror(L, 1, "not a whole number");
        lua_money_push(L, value);
        return 1;
    }
    lua_Number number = luaL_checknumber(L, 1);
    if (!(number >= -9007199254740992.0 && number <= 9007199254740992.0) ||
        number != (lua_Number)(int64_t)number)
        return luaL_argerror(L, 1, "not an exact whole number");
    lua_money_push(L, (int64_t)number);
    return 1;
}

// money.scale(m, rate): rate in ppm as a whole number, or as a decimal text ("0.8").
static int money_times_rate(lua_State *L)
{
    int64_t nano = check(L, 1), ppm;
    if (lua_type(L, 2) == LUA_TNUMBER) {
        lua_Number rate = lua_tonumber(L, 2);
        if (!(rate >= 0 && rate <= 1e12) || rate != (lua_Number)(int64_t)rate)
            return luaL_argerror(L, 2, "a rate in ppm is a whole number from 0");
        ppm = (int64_t)rate;
    } else if (money_parse_ppm(lua_env_check_slice(L, 2), INT64_C(1000000000000), &ppm) != 0) {
        return luaL_argerror(L, 2, "not a rate");
    }
    int64_t out;
    int err = money_scale(nano, ppm, &out);
    return push_checked(L, err, out);
}

static int money_nano_text(lua_State *L)
{
    char text[24];
    snprintf(text, sizeof text, "%" PRId64, check(L, 1));
    lua_pushstring(L, text);
    return 1;
}

static int money_is(lua_State *L)
{
    int64_t nano;
    lua_pushboolean(L, lua_money_get(L, 1, &nano));
    return 1;
}

static int meta_add(lua_State *L)
{
    int64_t out = 0;
    int err = money_add(check(L, 1), check(L, 2), &out);
    return push_checked(L, err, out);
}

static int meta_sub(lua_State *L)
{
    int64_t out = 0;
    int err = money_sub(check(L, 1), check(L, 2), &out);
    return push_checked(L, err, out);
}

static int meta_unm(lua_State *L)
{
    int64_t out = 0;
    int err = money_sub(0, check(L, 1), &out);
    return push_checked(L, err, out);
}

static int meta_mul(lua_State *L)
{
    int at = lua_type(L, 1) == LUA_TNUMBER ? 1 : 2;
    lua_Number number = luaL_checknumber(L, at);
    int64_t nano = check(L, 3 - at), out;
    if (!(number >= -9e15 && number <= 9e15) || number != (lua_Number)(int64_t)number)
        return luaL_error(L, "money times a number: only whole numbers (use money.scale)");
    if (__builtin_mul_overflow(nano, (int64_t)number, &out))
        return fail_range(L);
    lua_money_push(L, out);
    return 1;
}

static int meta_eq(lua_State *L)
{
    lua_pushboolean(L, check(L, 1) == check(L, 2));
    return 1;
}

static int meta_lt(lua_State *L)
{
    lua_pushboolean(L, check(L, 1) < check(L, 2));
    return 1;
}

static int meta_le(lua_State *L)
{
    lua_pushboolean(L, check(L, 1) <= check(L, 2));
    return 1;
}

static int meta_tostring(lua_State *L)
{
    char text[32];
    size_t len = money_format(check(L, 1), text, sizeof text);
    lua_pushlstring(L, text, len);
    return 1;
}

void lua_money_open(lua_State *L)
{
    if (luaL_newmetatable(L, META)) {
        static const luaL_Reg meta[] = {
            {"__add", meta_add}, {"__sub", meta_sub},
            {"__unm", meta_unm}, {"__mul", meta_mul},
            {"__eq", meta_eq},   {"__lt", meta_lt},
            {"__le", meta_le},   {"__tostring", meta_tostring},
            {NULL, NULL},
        };
        luaL_register(L, NULL, meta);
        lua_pushboolean(L, 0);
        lua_setfield(L, -2, "__metatable");
    }
    lua_pop(L, 1);
    static const luaL_Reg functions[] = {
        {"parse", money_read},
        {"usd", money_usd},
        {"zero", money_zero},
        {"nano", money_nano},
        {"scale", money_times_rate},
        {"nano_text", money_nano_text},
        {"is", money_is},
        {NULL, NULL},
    };
    lua_newtable(L);
    luaL_register(L, NULL, functions);
}
