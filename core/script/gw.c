// The object gw of a plugin: a table of its own, filled by the gw_*.c files.
#include "base/clock.h"
#include "script/runtime.h"

int gw_refuse(lua_State *L, const char *function, const char *need)
{
    return async_error(L, "%s is not allowed: add %s to the plugin's `needs`", function, need);
}

void gw_set_functions(struct plugin_rt *plugin, lua_State *L, const struct gw_function *functions,
                      size_t count)
{
    for (size_t i = 0; i < count; i++) {
        lua_pushlightuserdata(L, plugin);
        lua_pushcclosure(L, functions[i].fn, 1);
        if (functions[i].yields)
            async_wrap(L);
        lua_setfield(L, -2, functions[i].name);
    }
}

static int gw_now(lua_State *L)
{
    lua_pushnumber(L, (lua_Number)clock_wall_ms() / 1000.0);
    return 1;
}

static int gw_now_ms(lua_State *L)
{
    lua_pushnumber(L, (lua_Number)clock_wall_ms());
    return 1;
}

static int gw_boot_ms(lua_State *L)
{
    lua_pushnumber(L, (lua_Number)clock_boot_ms());
    return 1;
}

void gw_push(struct plugin_rt *plugin, lua_State *L)
{
    static const struct gw_function TIME[] = {
        {"now", gw_now, false}, {"now_ms", gw_now_ms, false}, {"boot_ms", gw_boot_ms, false}};
    const struct script_generation *generation = plugin->generation;
    luaL_checkstack(L, 20, "gw");
    lua_createtable(L, 0, 32);
    lua_pushstring(L, plugin->name);
    lua_setfield(L, -2, "plugin");
    lua_pushinteger(L, (lua_Integer)generation->script->options.worker);
    lua_setfield(L, -2, "worker");
    lua_pushliteral(L, MOONGATE_VERSION);
    lua_setfield(L, -2, "version");
    lua_pushnumber(L, (lua_Number)generation->number);
    lua_setfield(L, -2, "generation");
    gw_set_functions(plugin, L, TIME, sizeof TIME / sizeof *TIME);
    gw_open_async(plugin, L);
    gw_open_store(plugin, L);
    gw_open_fetch(plugin, L);
    gw_open_model(plugin, L);
    gw_open_tools(plugin, L);
    gw_open_process(plugin, L);
}
