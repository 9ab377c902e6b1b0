#pragma once
// money.*: nano-USD as an opaque value with C arithmetic. Inside a protected call, but for
// lua_money_get.
#include <lua.h>
#include <stdbool.h>
#include <stdint.h>

// Pushes the money table: parse, usd, zero, nano, scale, nano_text, is.
void lua_money_open(lua_State *L);
void lua_money_push(lua_State *L, int64_t nano);
// False when the value is no money. Never raises.
bool lua_money_get(lua_State *L, int index, int64_t *nano);
