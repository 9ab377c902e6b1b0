#pragma once
// What Lua code sees: the base environment of a state (for lua/) and the plugins' sandboxes made
// from it by an allow-list. Inside a protected call only.
#include <lua.h>

// Fills the globals of a new state: safe libraries, money, json, require.
void sandbox_open_base(lua_State *L, const char *lua_dir);
// find, match, gmatch, gsub, rep (bounded) into the table at the top.
void sandbox_open_string(lua_State *L);
// sort, concat, insert, remove, new, clear (bounded) into the table at the top.
void sandbox_open_table(lua_State *L);
