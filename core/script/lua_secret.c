#include "script/lua_secret.h"
#include "script/state.h"

#define MAGIC 0x736563726574u
#define META "moongate.secret"

struct handle {
    uint64_t magic;
    struct secret *secret;
    uint64_t unused; // another size than money's
};

struct secret *lua_secret_get(lua_State *L, int index)
{
    const struct handle *handle = lua_touserdata(L, index);
    if (lua_type(L, index) != LUA_TUSERDATA || lua_objlen(L, index) != sizeof *handle ||
        handle->magic != MAGIC)
        return NULL;
    return handle->secret;
}

static struct handle *push_empty(lua_State *L)
{
    struct handle *handle = lua_newuserdata(L, sizeof *handle);
    handle->magic = MAGIC;
    handle->secret = NULL;
    luaL_getmetatable(L, META);
    lua_setmetatable(L, -2);
    return handle;
}

void lua_secret_push(lua_State *L, struct secret *secret)
{
    push_empty(L)->secret = secret_ref(secret);
}

void lua_secret_push_bytes(lua_State *L, struct slice bytes)
{
    struct handle *handle = push_empty(L);
    handle->secret = secret_new(bytes);
    if (!handle->secret)
        luaL_error(L, "out of memory");
}

struct slice lua_secret_bytes(lua_State *L, int index)
{
    struct secret *secret = lua_secret_get(L, index);
    if (secret)
        return secret_reveal(secret);
    if (lua_type(L, index) != LUA_TSTRING)
        luaL_argerror(L, index, "text or secret expected");
    return lua_env_check_slice(L, index);
}

static int secret_gc(lua_State *L)
{
    struct handle *handle = lua_touserdata(L, 1);
    secret_unref(handle->secret);
    handle->secret = NULL;
    return 0;
}

static int secret_tostring(lua_State *L)
{
    lua_pushliteral(L, "[secret]");
    return 1;
}

void lua_secret_open(lua_State *L)
{
    if (luaL_newmetatable(L, META)) {
        lua_pushcfunction(L, secret_gc);
        lua_setfield(L, -2, "__gc");
        lua_pushcfunction(L, secret_tostring);
        lua_setfield(L, -2, "__tostring");
        lua_pushboolean(L, 0);
        lua_setfield(L, -2, "__metatable");
    }
    lua_pop(L, 1);
}
