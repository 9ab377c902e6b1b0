#pragma once
// Secrets in Lua are opaque handles: no function gives their bytes to Lua. Inside a protected call,
// but for lua_secret_get.
#include "codec/secret.h"
#include <lua.h>

void lua_secret_open(lua_State *L); // the metatable
// Pushes a handle with a reference of its own.
void lua_secret_push(lua_State *L, struct secret *secret);
// Pushes a handle of a new secret (copies the bytes).
void lua_secret_push_bytes(lua_State *L, struct slice bytes);
// NULL when the value is no secret. Borrows.
struct secret *lua_secret_get(lua_State *L, int index);
// The bytes of a secret handle or of a text at index; raises on anything else.
struct slice lua_secret_bytes(lua_State *L, int index);
