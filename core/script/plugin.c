// Plugin sets: read, compiled and checked in one scratch state, then immutable.
#include "script/plugin.h"
#include "base/clock.h"
#include "script/plugin_internal.h"
#include <stdio.h>
#include <stdlib.h>

#define SET_ARENA_CAP ((size_t)256 << 20)
#define SCRATCH_INSTRUCTIONS 100000000u

// ---- look-ups

struct plugin_set *plugin_set_ref(struct plugin_set *set)
{
    atomic_fetch_add_explicit(&set->refs, 1, memory_order_relaxed);
    return set;
}

void plugin_set_unref(struct plugin_set *set)
{
    if (!set || atomic_fetch_sub_explicit(&set->refs, 1, memory_order_acq_rel) > 1)
        return;
    arena_free(set->arena);
    free(set);
}

size_t plugin_set_count(const struct plugin_set *set)
{
    return set->count;
}

const struct plugin_def *plugin_set_def(const struct plugin_set *set, size_t index)
{
    gw_require(index < set->count);
    return &set->defs[index];
}

const struct plugin_def *plugin_set_find(const struct plugin_set *set, struct slice name)
{
    for (size_t i = 0; i < set->count; i++)
        if (slice_is(name, set->defs[i].name))
            return &set->defs[i];
    return NULL;
}

const struct quirk *plugin_set_quirk(const struct plugin_set *set, struct slice provider)
{
    const struct quirk *generic = &plugin_generic_quirk;
    for (size_t i = 0; i < set->count; i++) {
        for (size_t k = 0; k < set->defs[i].quirk_count; k++) {
            const struct quirk *quirk = &set->defs[i].quirks[k];
            if (slice_eq(quirk->provider, provider))
                return quirk;
            if (slice_is(quirk->provider, "generic"))
                generic = quirk;
        }
    }
    return generic;
}

const struct slice *plugin_set_models(const struct plugin_set *set, size_t *count)
{
    *count = set->model_count;
    return set->models;
}

struct secret *plugin_def_secret(const struct plugin_def *def, struct slice name)
{
    for (size_t i = 0; i < def->needs.secret_count; i++)
        if (slice_eq(def->needs.secrets[i].name, name))
            return def->needs.secrets[i].secret;
    for (size_t i = 0; i < def->config_secret_count; i++)
        if (slice_eq(def->config_secrets[i].name, name))
            return def->config_secrets[i].secret;
    return NULL;
}

// ---- loading

struct read_call {
    struct lua_env *env;
    struct arena *arena;
    struct plugin_def *def;
    struct buf *problems;
    int err;
};

static int read_one(lua_State *L)
{
    struct read_call *call = lua_touserdata(L, 1);
    lua_settop(L, 0);
    call->err = plugin_run(call->env, L, call->def, call->problems);
    if (call->err == 0)
        call->err = plugin_read_table(L, -1, call->arena, call->def, call->problems);
    return 0;
}

static bool is_plugin_name(struct slice name)
{
    if (name.len == 0 || name.len > PLUGIN_MAX_NAME || name.ptr[0] < 'a' || name.ptr[0] > 'z')
        return false;
    for (size_t i = 0; i < name.len; i++) {
        char c = name.ptr[i];
        if (!((c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_'))
            return false;
    }
    return true;
}

static int load_def(const struct conf *conf, const struct conf_plugin *plugin, struct lua_env *env,
                    const struct env_file *variables, struct arena *arena, struct plugin_def *def,
                    struct buf *problems)
{
    def->name = arena_copyz(arena, plugin->name);
    def->is_trusted = plugin->is_trusted;
    def->config_json = def->console_json = SLICE_LIT("");
    if (!def->name)
        return GW_ENOMEM;
    if (!is_plugin_name(plugin->name)) {
        int err = buf_printf(problems, "%.*s: plugin '%s': not a plugin's name\n",
                             SLICE_FMT(conf->file), def->name);
        return err ? err : GW_EINVAL;
    }
    int err = plugin_read_folder(conf, plugin, arena, def, problems);
    if (err)
        return err;
    char error[512];
    struct read_call call = {env, arena, def, problems, 0};
    err = lua_env_protect(env, read_one, &call, error, sizeof error);
    if (err) {
        plugin_problem(problems, def, "return", "%s", error);
        return err;
    }
    if (call.err)
        return call.err;
    size_t before = problems->len;
    err = plugin_check_settings(plugin, arena, def, problems);
    if (!err)
        err = plugin_resolve_secrets(conf, variables, arena, def, problems);
    if (err == GW_EINVAL && problems->len == before)
        plugin_problem(problems, def, "config", "its settings are not valid");
    return err;
}

static int list_models(struct plugin_set *set)
{
    size_t count = 0;
    for (size_t i = 0; i < set->count; i++)
        count += set->defs[i].model_count;
    struct slice *models = arena_alloc(set->arena, (count + 1) * sizeof *models);
    if (!models)
        return GW_ENOMEM;
    count = 0;
    for (size_t i = 0; i < set->count; i++)
        for (size_t k = 0; k < set->defs[i].model_count; k++)
            models[count++] = set->defs[i].models[k].id;
    set->models = models;
    set->model_count = count;
    return 0;
}

static bool is_listed_twice(const struct conf *conf, size_t index, struct buf *problems)
{
    for (size_t i = 0; i < index; i++) {
        if (!slice_eq(conf->plugins[i].name, conf->plugins[index].name))
            continue;
        size_t before = problems->len;
        if (buf_printf(problems, "%.*s: plugin %.*s is listed twice\n", SLICE_FMT(conf->file),
                       SLICE_FMT(conf->plugins[index].name)) != 0)
            buf_truncate(problems, before);
        return true;
    }
    return false;
}

// All plugins are read, whatever is wrong with one: the operator sees every problem at once.
static int load_defs(struct plugin_set *set, struct lua_env *env, const struct env_file *variables,
                     struct buf *problems)
{
    const struct conf *conf = set->conf;
    int result = 0;
    for (size_t i = 0; i < conf->plugin_count; i++) {
        if (is_listed_twice(conf, i, problems)) {
            result = GW_EINVAL;
            continue;
        }
        struct plugin_def *def = &set->defs[set->count];
        *def = (struct plugin_def){.index = set->count};
        int err = load_def(conf, &conf->plugins[i], env, variables, set->arena, def, problems);
        if (err == GW_ENOMEM)
            return err;
        if (err)
            result = GW_EINVAL;
        else
            set->count++;
    }
    return result;
}

static int load_set(struct plugin_set *set, struct buf *problems)
{
    const struct conf *conf = set->conf;
    struct lua_env_options options = {
        .memory_cap = (size_t)conf->lua_memory_bytes,
        .instruction_budget = SCRATCH_INSTRUCTIONS,
    };
    struct lua_env *env = NULL;
    struct env_file variables = {NULL, 0};
    struct slice dot_env;
    char error[512];
    if (conf->plugin_count > PLUGIN_MAX_COUNT) {
        int full = buf_printf(problems, "%.*s: more than %d plugins\n", SLICE_FMT(conf->file),
                              PLUGIN_MAX_COUNT);
        return full ? full : GW_EINVAL;
    }
    set->defs = arena_zalloc(set->arena, (conf->plugin_count + 1) * sizeof *set->defs);
    if (!set->defs)
        return GW_ENOMEM;
    int err = conf_path(conf, SLICE_LIT(".env"), &dot_env);
    if (!err)
        err = env_file_load(dot_env.ptr, set->arena, &variables, NULL); // confload has told
    if (err == GW_ENOMEM)
        return err;
    err = lua_env_new(&options, &env, error, sizeof error);
    if (err) {
        int full = buf_printf(problems, "lua: %s\n", error);
        return full ? full : err;
    }
    err = load_defs(set, env, &variables, problems);
    lua_env_free(env);
    if (err != GW_ENOMEM) {
        int wrong = plugin_check_set(set, problems);
        err = err ? err : wrong;
    }
    if (!err)
        err = list_models(set);
    if (!err)
        plugin_warn_unsafe(set, problems);
    return err;
}

int plugin_set_load(const struct conf *conf, struct plugin_set **out, struct buf *problems)
{
    struct plugin_set *set = calloc(1, sizeof *set);
    if (!set)
        return GW_ENOMEM;
    atomic_init(&set->refs, 1);
    set->conf = conf;
    set->loaded_ms = clock_wall_ms();
    set->arena = arena_new(65536);
    if (!set->arena) {
        free(set);
        return GW_ENOMEM;
    }
    arena_set_cap(set->arena, SET_ARENA_CAP);
    int err = load_set(set, problems);
    if (err) {
        plugin_set_unref(set);
        return err;
    }
    *out = set;
    return 0;
}

// ---- migrations

int plugin_set_migrate(const struct plugin_set *set, struct store *store, struct buf *problems)
{
    for (size_t i = 0; i < set->count; i++) {
        const struct plugin_def *def = &set->defs[i];
        char error[512] = "";
        if (!def->migrations_dir)
            continue;
        int err = store_migrate_plugin(store, slice_str(def->name), def->migrations_dir, error,
                                       sizeof error);
        if (err) {
            plugin_problem(problems, def, "migrations", "%s", *error ? error : gw_err_name(err));
            return err;
        }
    }
    return 0;
}
