// docs/plugin-api.md: rendered by lua/docs.lua from lua/api.lua.
#include "base/log.h"
#include "script/plugin.h"

struct docs_call {
    struct buf *out;
    int err;
};

static int render(lua_State *L)
{
    struct docs_call *call = lua_touserdata(L, 1);
    lua_env_require(L, "docs");
    lua_getfield(L, -1, "markdown");
    lua_call(L, 0, 1);
    call->err = buf_append(call->out, lua_env_check_slice(L, -1));
    return 0;
}

int plugin_docs_write(struct buf *out)
{
    struct lua_env_options options = {.memory_cap = (size_t)32 << 20,
                                      .instruction_budget = 50000000};
    struct lua_env *env = NULL;
    char error[512];
    int err = lua_env_new(&options, &env, error, sizeof error);
    if (!err) {
        struct docs_call call = {out, 0};
        err = lua_env_protect(env, render, &call, error, sizeof error);
        lua_env_free(env);
        if (!err)
            return call.err;
    }
    log_event(LOG_ERROR, "plugin_docs", LOG_STR("error", error));
    return err;
}
