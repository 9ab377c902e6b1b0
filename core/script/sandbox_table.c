// Bounded table functions. What is linear in C is charged to the instruction budget.
#include "script/sandbox.h"
#include "script/state.h"

#define MAX_SORT 100000
#define MAX_CONCAT 1000000
#define MAX_NEW 1000000
#define BYTES_PER_INSTRUCTION 32 // compared in the time of one instruction
#define NUMBER_TEXT_COST 20      // instructions in the time of writing one number

static lua_Integer check_length(lua_State *L)
{
    luaL_checktype(L, 1, LUA_TTABLE);
    return (lua_Integer)lua_objlen(L, 1);
}

static int table_insert(lua_State *L)
{
    lua_Integer len = check_length(L);
    int args = lua_gettop(L);
    if (args == 2) {
        lua_rawseti(L, 1, (int)len + 1);
        return 0;
    }
    if (args != 3)
        return luaL_error(L, "wrong number of arguments to 'insert'");
    lua_Integer at = luaL_checkinteger(L, 2);
    if (at < 1 || at > len + 1)
        return luaL_error(L, "position out of bounds");
    lua_env_charge(L, (uint64_t)(len - at + 1));
    for (lua_Integer i = len; i >= at; i--) {
        lua_rawgeti(L, 1, (int)i);
        lua_rawseti(L, 1, (int)i + 1);
    }
    lua_rawseti(L, 1, (int)at);
    return 0;
}

static int table_remove(lua_State *L)
{
    lua_Integer len = check_length(L);
    lua_Integer at = luaL_optinteger(L, 2, len);
    if (len == 0 || at < 1 || at > len) {
        lua_pushnil(L);
        return 1;
    }
    lua_env_charge(L, (uint64_t)(len - at));
    lua_rawgeti(L, 1, (int)at);
    for (lua_Integer i = at; i < len; i++) {
        lua_rawgeti(L, 1, (int)i + 1);
        lua_rawseti(L, 1, (int)i);
    }
    lua_pushnil(L);
    lua_rawseti(L, 1, (int)len);
    return 1;
}

// upvalue: the library's function
static int call_original(lua_State *L)
{
    int args = lua_gettop(L);
    lua_pushvalue(L, lua_upvalueindex(1));
    lua_insert(L, 1);
    lua_call(L, args, LUA_MULTRET);
    return lua_gettop(L);
}

// Sorting compares each element about 2 log2(len) times, texts byte by byte as long as they agree.
static int table_sort(lua_State *L)
{
    lua_Integer len = check_length(L);
    uint64_t bytes = 0;
    if (len > MAX_SORT)
        return luaL_error(L, "sort of more than %d elements", MAX_SORT);
    lua_env_charge(L, (uint64_t)len * 8);
    for (lua_Integer i = 1; i <= len; i++) {
        lua_rawgeti(L, 1, (int)i);
        if (lua_type(L, -1) == LUA_TSTRING)
            bytes += lua_objlen(L, -1);
        lua_pop(L, 1);
    }
    uint64_t rounds = 2;
    for (lua_Integer n = len; n > 1; n /= 2)
        rounds += 2;
    // A text's length is what a comparison can cost at most; few have long heads in common, which
    // is why the first 64 bytes of each are free.
    uint64_t free_bytes = (uint64_t)len * 64;
    if (bytes > free_bytes)
        lua_env_charge(L, (bytes - free_bytes) / BYTES_PER_INSTRUCTION * rounds);
    return call_original(L);
}

static int table_concat(lua_State *L)
{
    lua_Integer len = check_length(L);
    lua_Integer from = luaL_optinteger(L, 3, 1), to = luaL_optinteger(L, 4, len);
    if (to >= from && (uint64_t)to - (uint64_t)from >= MAX_CONCAT)
        return luaL_error(L, "concat of more than %d elements", MAX_CONCAT);
    uint64_t cost = 0;
    for (lua_Integer i = from; i <= to; i++) {
        lua_rawgeti(L, 1, (int)i);
        cost += lua_type(L, -1) == LUA_TNUMBER ? NUMBER_TEXT_COST : 1;
        lua_pop(L, 1);
        if (cost >= 1000) {
            lua_env_charge(L, cost);
            cost = 0;
        }
    }
    lua_env_charge(L, cost);
    return call_original(L);
}

static int table_new(lua_State *L)
{
    lua_Integer array = luaL_optinteger(L, 1, 0), hash = luaL_optinteger(L, 2, 0);
    if (array < 0 || array > MAX_NEW || hash < 0 || hash > MAX_NEW)
        return luaL_error(L, "table size out of range");
    lua_createtable(L, (int)array, (int)hash);
    return 1;
}

static int table_clear(lua_State *L)
{
    luaL_checktype(L, 1, LUA_TTABLE);
    lua_settop(L, 1);
    uint64_t count = 0;
    lua_pushnil(L);
    while (lua_next(L, 1)) {
        lua_pop(L, 1);
        lua_pushvalue(L, -1);
        lua_pushnil(L);
        lua_rawset(L, 1); // clearing a visited field is allowed
        count++;
    }
    lua_env_charge(L, count / 2);
    return 0;
}

static void wrap(lua_State *L, const char *name, lua_CFunction fn)
{
    lua_getfield(L, -1, name);
    lua_pushcclosure(L, fn, 1);
    lua_setfield(L, -2, name);
}

void sandbox_open_table(lua_State *L)
{
    wrap(L, "sort", table_sort);
    wrap(L, "concat", table_concat);
    static const luaL_Reg functions[] = {
        {"insert", table_insert},
        {"remove", table_remove},
        {"new", table_new},
        {"clear", table_clear},
    };
    for (size_t i = 0; i < sizeof functions / sizeof *functions; i++) {
        lua_pushcfunction(L, functions[i].func);
        lua_setfield(L, -2, functions[i].name);
    }
}
