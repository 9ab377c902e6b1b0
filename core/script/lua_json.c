#include "script/lua_json.h"
#include "script/lua_money.h"
#include "script/lua_secret.h"
#include "script/state.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define MAX_DEPTH 64
#define MAX_TEXT ((size_t)16 << 20)
#define MAX_DECODE ((size_t)8 << 20) // bytes of text
#define VALUE_COST 4                 // instructions in the time of making one value
#define ARRAY "moongate.array"
#define EXACT 9007199254740992.0 // 2^53

void lua_json_push_null(lua_State *L)
{
    lua_pushlightuserdata(L, NULL);
}

bool lua_json_is_null(lua_State *L, int index)
{
    return lua_islightuserdata(L, index) && !lua_touserdata(L, index);
}

static void set_array(lua_State *L)
{
    luaL_newmetatable(L, ARRAY);
    lua_setmetatable(L, -2);
}

static bool is_marked_array(lua_State *L, int index)
{
    if (!lua_getmetatable(L, index))
        return false;
    luaL_getmetatable(L, ARRAY);
    bool is_array = lua_rawequal(L, -1, -2);
    lua_pop(L, 2);
    return is_array;
}

// ---- encode

static void put_number(struct json_out *out, lua_Number number)
{
    if (number == floor(number) && fabs(number) <= EXACT)
        json_i64(out, (int64_t)number);
    else
        json_double(out, number);
}

static void encode(lua_State *L, int index, struct json_out *out, int depth, bool reveals);

static void encode_table(lua_State *L, int index, struct json_out *out, int depth, bool reveals)
{
    size_t len = lua_objlen(L, index);
    if (len > 0 || is_marked_array(L, index)) {
        json_array(out);
        lua_env_charge(L, len);
        for (size_t i = 1; i <= len; i++) {
            lua_rawgeti(L, index, (int)i);
            encode(L, lua_gettop(L), out, depth, reveals);
            lua_pop(L, 1);
        }
        json_array_end(out);
        return;
    }
    json_object(out);
    lua_pushnil(L);
    while (lua_next(L, index)) {
        lua_env_charge(L, 1);
        size_t name_len;
        char number[32];
        struct slice name;
        if (lua_type(L, -2) == LUA_TSTRING) {
            name.ptr = lua_tolstring(L, -2, &name_len);
            name.len = name_len;
        } else if (lua_type(L, -2) == LUA_TNUMBER) {
            name.len = (size_t)snprintf(number, sizeof number, "%.14g", lua_tonumber(L, -2));
            name.ptr = number;
        } else {
            luaL_error(L, "json: a key is a %s", luaL_typename(L, -2));
            return;
        }
        json_key_slice(out, name);
        encode(L, lua_gettop(L), out, depth, reveals);
        lua_pop(L, 1);
    }
    json_object_end(out);
}

static void encode(lua_State *L, int index, struct json_out *out, int depth, bool reveals)
{
    int64_t nano;
    if (depth >= MAX_DEPTH)
        luaL_error(L, "json: deeper than %d", MAX_DEPTH);
    luaL_checkstack(L, 6, "json");
    switch (lua_type(L, index)) {
    case LUA_TNIL: json_null(out); break;
    case LUA_TBOOLEAN: json_bool(out, lua_toboolean(L, index)); break;
    case LUA_TNUMBER: put_number(out, lua_tonumber(L, index)); break;
    case LUA_TSTRING: {
        size_t len;
        const char *text = lua_tolstring(L, index, &len);
        json_text(out, slice_of(text, len));
        break;
    }
    case LUA_TTABLE: encode_table(L, index, out, depth + 1, reveals); break;
    case LUA_TUSERDATA:
        if (lua_money_get(L, index, &nano))
            json_money(out, nano);
        else if (reveals && lua_secret_get(L, index))
            json_text(out, secret_reveal(lua_secret_get(L, index)));
        else
            luaL_error(L, "json: a secret or host object cannot be written");
        break;
    default:
        if (!lua_json_is_null(L, index))
            luaL_error(L, "json: a %s cannot be written", luaL_typename(L, index));
        json_null(out);
    }
    if (out->err)
        luaL_error(L, out->err == GW_ETOOBIG ? "json: text too long" : "json: out of memory");
}

static void encode_root(lua_State *L, int index, struct buf *out, bool reveals)
{
    if (index < 0 && index > LUA_REGISTRYINDEX)
        index = lua_gettop(L) + 1 + index;
    if (reveals && !buf_room(out, 8192)) // what a buf outgrows is not wiped
        luaL_error(L, "json: out of memory");
    struct json_out json;
    json_begin(&json, out);
    encode(L, index, &json, 0, reveals);
    if (json_end(&json) != 0)
        luaL_error(L, "json: out of memory");
}

void lua_json_encode(lua_State *L, int index, struct buf *out)
{
    encode_root(L, index, out, false);
}

void lua_json_encode_revealing(lua_State *L, int index, struct buf *out)
{
    encode_root(L, index, out, true);
}

static int json_encode(lua_State *L)
{
    luaL_checkany(L, 1);
    lua_settop(L, 1);
    struct buf *out = lua_env_buffer(L, MAX_TEXT);
    lua_json_encode(L, 1, out);
    lua_env_charge(L, buf_slice(out).len / 16);
    lua_env_push_slice(L, buf_slice(out));
    buf_free(out);
    return 1;
}

// ---- decode

static double number_of(yyjson_val *value)
{
    struct slice text = json_number_text(value);
    char copy[64];
    if (text.len == 0 || text.len >= sizeof copy)
        return text.len ? strtod(text.ptr, NULL)
                        : yyjson_get_num(value); // raw texts end at a comma
    memcpy(copy, text.ptr, text.len);
    copy[text.len] = '\0';
    return strtod(copy, NULL);
}

void lua_json_push(lua_State *L, yyjson_val *value)
{
    luaL_checkstack(L, 6, "json");
    lua_env_charge(L, VALUE_COST);
    switch (yyjson_get_type(value)) {
    case YYJSON_TYPE_BOOL: lua_pushboolean(L, yyjson_get_bool(value)); break;
    case YYJSON_TYPE_RAW:
    case YYJSON_TYPE_NUM: lua_pushnumber(L, number_of(value)); break;
    case YYJSON_TYPE_STR: lua_pushlstring(L, yyjson_get_str(value), yyjson_get_len(value)); break;
    case YYJSON_TYPE_ARR: {
        size_t count = yyjson_arr_size(value), i, max;
        lua_createtable(L, (int)count, 0);
        yyjson_val *item;
        yyjson_arr_foreach(value, i, max, item)
        {
            lua_json_push(L, item);
            lua_rawseti(L, -2, (int)i + 1);
        }
        if (count == 0)
            set_array(L);
        break;
    }
    case YYJSON_TYPE_OBJ: {
        size_t i, max;
        lua_createtable(L, 0, (int)yyjson_obj_size(value));
        yyjson_val *key, *item;
        yyjson_obj_foreach(value, i, max, key, item)
        {
            lua_pushlstring(L, yyjson_get_str(key), yyjson_get_len(key));
            lua_json_push(L, item);
            lua_rawset(L, -3);
        }
        break;
    }
    default: lua_json_push_null(L);
    }
}

static void free_doc(void *doc)
{
    json_doc_free(doc);
}

bool lua_json_decode(lua_State *L, struct slice text, const char **why)
{
    size_t at;
    *why = "text too long";
    if (text.len > MAX_DECODE)
        return false;
    void **guard = lua_env_guard(L, free_doc);
    struct json_doc *doc;
    if (json_parse(text, text.len * 16 + 65536, &doc, why, &at) != 0) {
        lua_pop(L, 1);
        return false;
    }
    *guard = doc;
    lua_json_push(L, json_root(doc));
    *guard = NULL;
    json_doc_free(doc);
    lua_remove(L, -2);
    return true;
}

static int json_decode(lua_State *L)
{
    struct slice text = lua_env_check_slice(L, 1);
    const char *why = NULL;
    lua_env_charge(L, text.len / 16);
    if (lua_json_decode(L, text, &why))
        return 1;
    lua_pushnil(L);
    lua_pushstring(L, why ? why : "invalid JSON");
    return 2;
}

static int json_array_mark(lua_State *L)
{
    if (lua_isnoneornil(L, 1))
        lua_newtable(L);
    luaL_checktype(L, -1, LUA_TTABLE);
    set_array(L);
    return 1;
}

void lua_json_open(lua_State *L)
{
    lua_createtable(L, 0, 4);
    lua_pushcfunction(L, json_encode);
    lua_setfield(L, -2, "encode");
    lua_pushcfunction(L, json_decode);
    lua_setfield(L, -2, "decode");
    lua_pushcfunction(L, json_array_mark);
    lua_setfield(L, -2, "array");
    lua_json_push_null(L);
    lua_setfield(L, -2, "null");
}
