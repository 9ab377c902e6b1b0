#pragma once
// json.* of Lua and the two conversions behind it. Inside a protected call.
#include "base/buf.h"
#include "codec/json.h"
#include <lua.h>

// Pushes the json table: encode, decode, array, null.
void lua_json_open(lua_State *L);
// Appends the value at index as JSON; raises on functions, secrets, cycles and above out's cap.
void lua_json_encode(lua_State *L, int index, struct buf *out);
// The same with secrets as their text: for what goes to the store or to a declared host and never
// back to Lua. The caller wipes out.
void lua_json_encode_revealing(lua_State *L, int index, struct buf *out);
// Pushes a parsed value; null becomes json.null.
void lua_json_push(lua_State *L, yyjson_val *value);
// Parses and pushes; false with a constant text when it is no JSON (nothing pushed).
bool lua_json_decode(lua_State *L, struct slice text, const char **why);
void lua_json_push_null(lua_State *L);
bool lua_json_is_null(lua_State *L, int index);
