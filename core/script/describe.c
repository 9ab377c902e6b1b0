// A plugin set as text, for `moongate plugin list` and `plugin test`.
#include "base/buf.h"
#include "script/plugin.h"
#include "script/runtime.h"

static int describe(const struct plugin_def *def, bool is_long, struct buf *out)
{
    static const char *const HOOKS[SCRIPT_HOOK_COUNT] = {"identify", "admit", "select", "prepare",
                                                         "reply",    "body",  "delta",  "price",
                                                         "error",    "finish"};
    int err = buf_printf(out, "%-20s %-8.*s %zu routes, %zu tasks, hooks:", def->name,
                         SLICE_FMT(def->version), def->route_count, def->task_count);
    for (size_t i = 0; i < SCRIPT_HOOK_COUNT && !err; i++) {
        if (def->hooks & 1u << i)
            err = buf_printf(out, " %s", HOOKS[i]);
    }
    if (!err)
        err = buf_printf(out, "%s%s\n", def->hooks ? "" : " none",
                         def->is_trusted ? " (trusted)" : "");
    if (!is_long)
        return err;
    if (!err)
        err = buf_printf(out, "  %.*s\n  folder: %s\n", SLICE_FMT(def->about), def->dir);
    for (size_t i = 0; i < def->route_count && !err; i++)
        err = buf_printf(out, "  %-7.*s %.*s\n", SLICE_FMT(def->routes[i].method_text),
                         SLICE_FMT(def->routes[i].path));
    return err;
}

int plugin_set_describe(const struct plugin_set *set, struct slice only, struct buf *out)
{
    bool is_found = false;
    for (size_t i = 0; i < set->count; i++) {
        const struct plugin_def *def = plugin_set_def(set, i);
        if (only.len && !slice_is(only, def->name))
            continue;
        is_found = true;
        int err = describe(def, only.len != 0, out);
        if (err)
            return err;
    }
    return is_found || only.len == 0 ? GW_OK : GW_ENOTFOUND;
}

void plugin_set_use_conf(struct plugin_set *set, const struct conf *conf)
{
    set->conf = conf;
}

const struct slice *script_models(const struct script *script, size_t *count)
{
    *count = 0;
    return script->current ? plugin_set_models(script->current->set, count) : NULL;
}
