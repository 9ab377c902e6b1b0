// The configuration file: run in a restricted state, flattened by lua/conf.lua, set key by key.
#include "script/confload.h"
#include "base/arena.h"
#include "codec/json.h"
#include "script/confload_env.h"
#include "script/plugin_internal.h"
#include "script/state.h"
#include <errno.h>
#include <glob.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define MAX_TEXT ((size_t)1 << 20)
#define MAX_INCLUDES 64
#define MAX_VARIABLES 256
#define STATE_BYTES ((size_t)64 << 20)
#define INCLUDES "moongate.conf.includes"

struct text_file {
    struct slice text;
    const char *label; // as the operator named it
};

struct variable { // one that the file asked for and got
    struct slice name, value;
    const char *source;
};

struct loader {
    struct conf *conf;
    struct arena *arena; // conf's
    struct lua_env *env;
    struct env_file dot_env;
    struct buf *problems;
    struct text_file files[MAX_INCLUDES + 1];
    size_t file_count;
    struct variable variables[MAX_VARIABLES];
    size_t variable_count;
    const char **sources; // by key
    bool is_bad;
};

// ---- problems

__attribute__((format(printf, 3, 4))) static void problem(struct loader *loader, const char *find,
                                                          const char *format, ...)
{
    size_t before = loader->problems->len;
    const char *label = loader->file_count ? loader->files[0].label : loader->conf->file.ptr;
    int line = 0;
    struct slice word = slice_str(find);
    for (int pass = 0; pass < 2 && word.len && !line; pass++) {
        for (size_t i = loader->file_count; i > 0 && !line; i--) {
            line = plugin_find_line(loader->files[i - 1].text, word, pass == 0);
            label = line ? loader->files[i - 1].label : label;
        }
    }
    int err = line ? buf_printf(loader->problems, "%s:%d: ", label, line)
                   : buf_printf(loader->problems, "%s: ", label);
    va_list args;
    va_start(args, format);
    if (!err)
        err = buf_vprintf(loader->problems, format, args);
    va_end(args);
    if (!err)
        err = buf_append_char(loader->problems, '\n');
    if (err)
        buf_truncate(loader->problems, before);
    loader->is_bad = true;
}

// The last part of a dotted path.
static const char *last_part(const char *path)
{
    const char *dot = strrchr(path, '.');
    return dot ? dot + 1 : path;
}

// ---- files

static int read_text(struct arena *arena, const char *path, struct slice *out)
{
    FILE *in = fopen(path, "re");
    if (!in)
        return errno == ENOENT ? GW_ENOTFOUND : GW_EIO;
    char *room = malloc(MAX_TEXT + 1);
    size_t len = room ? fread(room, 1, MAX_TEXT + 1, in) : 0;
    int err = !room ? GW_ENOMEM : ferror(in) ? GW_EIO : len > MAX_TEXT ? GW_ETOOBIG : 0;
    fclose(in);
    if (!err) {
        *out = arena_copy(arena, slice_of(room, len));
        err = out->ptr ? 0 : GW_ENOMEM;
    }
    free(room);
    return err;
}

// The folder of the file: "." when it is the current one, else absolute, so that a path that was
// joined to it once stays as it is.
static int set_folder(struct conf *conf, const char *path)
{
    char copy[PATH_MAX], full[PATH_MAX], here[PATH_MAX];
    conf->file = slice_of(arena_copyz(conf->arena, slice_str(path)), strlen(path));
    if (!conf->file.ptr)
        return GW_ENOMEM;
    const char *slash = strrchr(path, '/');
    size_t len = slash ? (size_t)(slash - path) : 0;
    if (len >= sizeof copy)
        return GW_ETOOBIG;
    memcpy(copy, path, len);
    copy[len] = '\0';
    const char *dir = slash ? (len ? copy : "/") : ".";
    if (realpath(dir, full) && getcwd(here, sizeof here))
        dir = strcmp(full, here) == 0 ? "." : full;
    conf->dir = slice_of(arena_copyz(conf->arena, slice_str(dir)), strlen(dir));
    return conf->dir.ptr ? 0 : GW_ENOMEM;
}

// ---- functions of the file

static struct loader *loader_of(lua_State *L)
{
    return lua_touserdata(L, lua_upvalueindex(1));
}

static struct slice look_up(struct loader *loader, struct slice name)
{
    const char *source = NULL;
    struct slice value = env_get(&loader->dot_env, name, &source);
    if (value.len && loader->variable_count < MAX_VARIABLES) {
        struct variable *variable = &loader->variables[loader->variable_count];
        variable->name = arena_copy(loader->arena, name);
        variable->value = value;
        variable->source = source;
        if (variable->name.ptr)
            loader->variable_count++;
    }
    return value;
}

// env(name[, default])
static int conf_env(lua_State *L)
{
    struct slice value = look_up(loader_of(L), lua_env_check_slice(L, 1));
    lua_settop(L, 2);
    if (value.len)
        lua_env_push_slice(L, value);
    return 1;
}

// secret(name): a value that is masked everywhere; plugins get it as a handle.
static int conf_secret(lua_State *L)
{
    struct slice value = look_up(loader_of(L), lua_env_check_slice(L, 1));
    if (value.len == 0)
        return 0;
    lua_createtable(L, 0, 2);
    lua_pushvalue(L, 1);
    lua_setfield(L, -2, "__secret");
    lua_env_push_slice(L, value);
    lua_setfield(L, -2, "__value");
    return 1;
}

// file(path): a text without its last line end.
static int conf_file(lua_State *L)
{
    struct loader *loader = loader_of(L);
    struct slice path, text;
    if (conf_path(loader->conf, lua_env_check_slice(L, 1), &path) != 0)
        return luaL_error(L, "out of memory");
    int err = read_text(loader->arena, path.ptr, &text);
    if (err)
        return luaL_error(L, "file: %s cannot be read: %s", path.ptr, gw_err_name(err));
    while (text.len && (text.ptr[text.len - 1] == '\n' || text.ptr[text.len - 1] == '\r'))
        text.len--;
    lua_env_push_slice(L, text);
    return 1;
}

static void push_sandbox(struct loader *loader, lua_State *L);

// Runs a file that was read; leaves its table. Raises "file:line: what".
static void run_file(struct loader *loader, lua_State *L, const struct text_file *file)
{
    char error[512], chunk[PATH_MAX + 2];
    snprintf(chunk, sizeof chunk, "@%s", file->label);
    push_sandbox(loader, L);
    int err = lua_env_compile(loader->env, L, file->text, chunk, false, -1, error, sizeof error);
    if (err)
        luaL_error(L, "%s", error);
    lua_remove(L, -2);
    lua_call(L, 0, 1);
}

static struct text_file *add_file(struct loader *loader, const char *label, struct slice text)
{
    if (loader->file_count > MAX_INCLUDES)
        return NULL;
    struct text_file *file = &loader->files[loader->file_count];
    file->label = arena_copyz(loader->arena, slice_str(label));
    file->text = text;
    if (!file->label)
        return NULL;
    loader->file_count++;
    return file;
}

static void free_glob(void *arg)
{
    globfree(arg);
    free(arg);
}

// include(pattern): the tables of the files are laid over the main one, by name.
static int conf_include(lua_State *L)
{
    struct loader *loader = loader_of(L);
    struct slice pattern;
    if (conf_path(loader->conf, lua_env_check_slice(L, 1), &pattern) != 0)
        return luaL_error(L, "out of memory");
    void **guard = lua_env_guard(L, free_glob);
    glob_t *found = calloc(1, sizeof *found);
    if (!found)
        return luaL_error(L, "out of memory");
    *guard = found;
    if (glob(pattern.ptr, 0, NULL, found) != 0)
        return 0; // no match
    for (size_t i = 0; i < found->gl_pathc; i++) {
        struct slice text;
        int err = read_text(loader->arena, found->gl_pathv[i], &text);
        struct text_file *file = err ? NULL : add_file(loader, found->gl_pathv[i], text);
        if (!file)
            return luaL_error(L, "include: %s: %s", found->gl_pathv[i],
                              err ? gw_err_name(err) : "too many files");
        run_file(loader, L, file);
        if (!lua_istable(L, -1))
            return luaL_error(L, "include: %s does not return a table", file->label);
        lua_getfield(L, LUA_REGISTRYINDEX, INCLUDES);
        lua_insert(L, -2);
        lua_rawseti(L, -2, (int)lua_objlen(L, -2) + 1);
        lua_pop(L, 1);
    }
    return 0;
}

static void push_sandbox(struct loader *loader, lua_State *L)
{
    static const struct {
        const char *name;
        lua_CFunction fn;
    } functions[] = {
        {"env", conf_env}, {"secret", conf_secret}, {"file", conf_file}, {"include", conf_include}};
    lua_env_push_sandbox(loader->env, L, "config");
    for (size_t i = 0; i < sizeof functions / sizeof functions[0]; i++) {
        lua_pushstring(L, functions[i].name);
        lua_pushlightuserdata(L, loader);
        lua_pushcclosure(L, functions[i].fn, 1);
        lua_rawset(L, -3);
    }
}

// ---- keys

static size_t key_index(const struct conf_key *key)
{
    size_t count;
    return (size_t)(key - conf_keys(&count));
}

// Where a value of the file came from: the variable the key is known by, else one with this value.
static const char *source_of(struct loader *loader, const struct conf_key *key, struct slice secret,
                             struct slice text)
{
    const struct variable *best = NULL;
    for (size_t i = 0; i < loader->variable_count; i++) {
        const struct variable *variable = &loader->variables[i];
        if (secret.len ? !slice_eq(variable->name, secret) : !slice_eq(variable->value, text))
            continue;
        if (!best || slice_is(variable->name, key->env))
            best = variable;
    }
    if (!best || (!secret.len && text.len < 2 && !slice_is(best->name, key->env)))
        return "file";
    struct slice out =
        arena_printf(loader->arena, "%s %.*s%c", best->source, SLICE_FMT(best->name), '\0');
    return out.ptr ? out.ptr : "file";
}

static void unknown_key(struct loader *loader, const char *path)
{
    const char *near = conf_key_suggest(slice_str(path));
    if (near)
        problem(loader, last_part(path), "unknown key '%s' (did you mean '%s'?)", path, near);
    else
        problem(loader, last_part(path), "unknown key '%s'", path);
}

static bool is_section(const char *path)
{
    size_t count, len = strlen(path);
    const struct conf_key *keys = conf_keys(&count);
    for (size_t i = 0; i < count; i++)
        if (strncmp(keys[i].path, path, len) == 0 && keys[i].path[len] == '.')
            return true;
    return false;
}

// NULL when a value of this Lua type may set the key.
static const char *wrong_type(const struct conf_key *key, const char *kind)
{
    bool is_list = strcmp(kind, "list") == 0 || strcmp(kind, "empty") == 0;
    bool is_boolean = strcmp(kind, "boolean") == 0, is_number = strcmp(kind, "number") == 0;
    switch (key->type) {
    case CONF_TYPE_LIST: return is_boolean || is_number ? "must be a list of texts" : NULL;
    case CONF_TYPE_BOOL: return is_list || is_number ? "must be true or false" : NULL;
    case CONF_TYPE_TEXT: return is_list || is_boolean || is_number ? "must be a text" : NULL;
    case CONF_TYPE_SECRET:
        return is_list || is_boolean || is_number ? "must be a text or secret(\"NAME\")" : NULL;
    default: return is_list || is_boolean ? "must be a number" : NULL;
    }
}

static void set_entry(struct loader *loader, const char *path, const char *kind, struct slice text,
                      struct slice secret)
{
    const struct conf_key *key = conf_key_find(slice_str(path));
    char why[256];
    if (!key) {
        if (strcmp(kind, "empty") != 0 || !is_section(path))
            unknown_key(loader, path);
        return;
    }
    const char *wrong = wrong_type(key, kind);
    if (wrong) {
        problem(loader, last_part(path), "%s %s, not a %s", path, wrong, kind);
        return;
    }
    const char *source = source_of(loader, key, secret, text);
    why[0] = '\0';
    int err = conf_set(loader->conf, key, text, why, sizeof why);
    if (err)
        problem(loader, last_part(path), "%s%s%s%s", *why ? why : gw_err_name(err),
                strcmp(source, "file") == 0 ? "" : " (from ",
                strcmp(source, "file") == 0 ? "" : source, strcmp(source, "file") == 0 ? "" : ")");
    else
        loader->sources[key_index(key)] = source;
}

static struct slice field_slice(lua_State *L, int index, const char *name)
{
    size_t len = 0;
    lua_getfield(L, index, name);
    const char *text = lua_tolstring(L, -1, &len);
    lua_pop(L, 1); // the table keeps it
    return text ? slice_of(text, len) : SLICE_NONE;
}

static void set_entries(struct loader *loader, lua_State *L, int result)
{
    lua_getfield(L, result, "entries");
    size_t count = lua_objlen(L, -1);
    for (size_t i = 1; i <= count; i++) {
        lua_rawgeti(L, -1, (int)i);
        int at = lua_gettop(L);
        set_entry(loader, field_slice(L, at, "path").ptr, field_slice(L, at, "kind").ptr,
                  field_slice(L, at, "text"), field_slice(L, at, "secret"));
        lua_pop(L, 1);
    }
    lua_pop(L, 1);
}

static int copy_plugins(struct loader *loader, lua_State *L, int result)
{
    lua_getfield(L, result, "plugins");
    size_t count = lua_objlen(L, -1);
    if (count > PLUGIN_MAX_COUNT)
        count = PLUGIN_MAX_COUNT + 1; // plugin_set_load refuses it
    struct conf_plugin *plugins = arena_zalloc(loader->arena, (count + 1) * sizeof *plugins);
    if (!plugins)
        return GW_ENOMEM;
    for (size_t i = 0; i < count; i++) {
        lua_rawgeti(L, -1, (int)i + 1);
        int at = lua_gettop(L);
        plugins[i].name = arena_copy(loader->arena, field_slice(L, at, "name"));
        plugins[i].path = arena_copy(loader->arena, field_slice(L, at, "path"));
        plugins[i].settings_json = arena_copy(loader->arena, field_slice(L, at, "settings"));
        lua_getfield(L, at, "trusted");
        plugins[i].is_trusted = lua_toboolean(L, -1);
        lua_settop(L, at - 1);
        if (!plugins[i].name.ptr || !plugins[i].path.ptr || !plugins[i].settings_json.ptr)
            return GW_ENOMEM;
    }
    lua_pop(L, 1);
    loader->conf->plugins = plugins;
    loader->conf->plugin_count = count;
    struct slice upstreams = arena_copy(loader->arena, field_slice(L, result, "upstreams"));
    if (!upstreams.ptr)
        return GW_ENOMEM;
    loader->conf->upstreams_json = upstreams;
    return 0;
}

struct run_call {
    struct loader *loader;
    int err;
};

static int run_all(lua_State *L)
{
    struct run_call *call = lua_touserdata(L, 1);
    struct loader *loader = call->loader;
    lua_settop(L, 0);
    lua_newtable(L);
    lua_setfield(L, LUA_REGISTRYINDEX, INCLUDES);
    lua_env_require(L, "conf"); // 1
    lua_getfield(L, 1, "read"); // 2
    run_file(loader, L, &loader->files[0]);
    lua_getfield(L, LUA_REGISTRYINDEX, INCLUDES);
    lua_call(L, 2, 1); // 2: the result
    lua_getfield(L, 2, "problems");
    for (size_t i = 1; i <= lua_objlen(L, 3); i++) {
        lua_rawgeti(L, 3, (int)i);
        struct slice what = field_slice(L, 4, "what");
        problem(loader, last_part(field_slice(L, 4, "find").ptr), "%.*s", SLICE_FMT(what));
        lua_pop(L, 1);
    }
    set_entries(loader, L, 2);
    call->err = copy_plugins(loader, L, 2);
    return 0;
}

// ---- what the file does not say

static int set_from_env(struct loader *loader, const char *path, const char *name)
{
    const struct conf_key *key = conf_key_find(slice_str(path));
    const char *source = NULL;
    char why[256] = "";
    struct slice value = env_get(&loader->dot_env, slice_str(name), &source);
    if (!key || value.len == 0 || strcmp(loader->sources[key_index(key)], "default") != 0)
        return 0;
    if (conf_set(loader->conf, key, value, why, sizeof why) != 0) {
        problem(loader, NULL, "%s (from %s %s)", why, source, name);
        return 0;
    }
    struct slice text = arena_printf(loader->arena, "%s %s%c", source, name, '\0');
    if (!text.ptr)
        return GW_ENOMEM;
    loader->sources[key_index(key)] = text.ptr;
    return 0;
}

// The required secrets are never wanted in the file: they come from the environment when it is
// silent.
static int set_required(struct loader *loader)
{
    int err = 0;
    if (!loader->conf->encryption_key && loader->conf->encryption_key_file.len == 0) {
        err = set_from_env(loader, "encryption_key", "ENCRYPTION_KEY");
        if (!err)
            err = set_from_env(loader, "encryption_key_file", "ENCRYPTION_KEY_FILE");
    }
    if (!err)
        err = set_from_env(loader, "secret_key", "SECRET_KEY");
    if (!err)
        err = set_from_env(loader, "secret_key", "JWT_SECRET_KEY");
    return err;
}

// plugin_dirs: the file's own (default: "plugins" beside it), then the shipped folder, which lies
// beside lua/.
static int set_plugin_dirs(struct loader *loader)
{
    struct conf *conf = loader->conf;
    size_t count = conf->plugin_dirs.count;
    struct slice *dirs = arena_zalloc(loader->arena, (count + 3) * sizeof *dirs);
    if (!dirs)
        return GW_ENOMEM;
    if (count)
        memcpy(dirs, conf->plugin_dirs.items, count * sizeof *dirs);
    else
        dirs[count++] = SLICE_LIT("plugins");
    char shipped[PATH_MAX], full[PATH_MAX], other[PATH_MAX];
    snprintf(shipped, sizeof shipped, "%s/../plugins", lua_env_find_dir());
    bool is_there = realpath(shipped, full) != NULL;
    for (size_t i = 0; i < count && is_there; i++) {
        struct slice path;
        int err = conf_path(conf, dirs[i], &path);
        if (err)
            return err;
        if (realpath(path.ptr, other) && strcmp(other, full) == 0)
            is_there = false;
    }
    if (is_there) {
        dirs[count] = arena_copy(loader->arena, slice_str(full));
        if (!dirs[count].ptr)
            return GW_ENOMEM;
        count++;
    }
    conf->plugin_dirs = (struct conf_list){dirs, count};
    return 0;
}

static int resolve_path(struct conf *conf, struct slice *path)
{
    return path->len ? conf_path(conf, *path, path) : 0;
}

// ---- the whole

static int load_file(struct loader *loader, const char *path)
{
    struct slice text, dot_env;
    char error[512];
    int err = read_text(loader->arena, path, &text);
    if (err == GW_ENOMEM)
        return err;
    if (err) {
        problem(loader, NULL, "%s",
                err == GW_ENOTFOUND ? "there is no such file" : "the file cannot be read");
        return err;
    }
    if (!add_file(loader, path, text))
        return GW_ENOMEM;
    err = conf_path(loader->conf, SLICE_LIT(".env"), &dot_env);
    if (!err)
        err = env_file_load(dot_env.ptr, loader->arena, &loader->dot_env, loader->problems);
    if (err == GW_ENOMEM)
        return err;
    loader->is_bad = loader->is_bad || err;
    struct lua_env_options options = {.memory_cap = STATE_BYTES, .instruction_budget = 50000000};
    err = lua_env_new(&options, &loader->env, error, sizeof error);
    if (err) {
        problem(loader, NULL, "%s", error);
        return err;
    }
    struct run_call call = {loader, 0};
    err = lua_env_protect(loader->env, run_all, &call, error, sizeof error);
    if (err && (strstr(error, ".lua:") || strstr(error, path))) {
        loader->is_bad = true;
        int full = buf_printf(loader->problems, "%s\n", error); // has file:line
        err = full ? full : err;
    } else if (err) {
        problem(loader, NULL, "%s", error);
    }
    lua_env_free(loader->env);
    loader->env = NULL;
    if (!err)
        err = call.err;
    if (!err)
        err = set_required(loader);
    if (!err)
        err = set_plugin_dirs(loader);
    if (!err)
        err = resolve_path(loader->conf, &loader->conf->control_path);
    if (!err)
        err = resolve_path(loader->conf, &loader->conf->encryption_key_file);
    if (!err)
        err = resolve_path(loader->conf, &loader->conf->tls_cert);
    if (!err)
        err = resolve_path(loader->conf, &loader->conf->tls_key);
    if (!err)
        err = resolve_path(loader->conf, &loader->conf->log_file);
    return err;
}

static int load(const char *path, struct conf **out, const char ***sources, struct buf *problems)
{
    struct loader *loader = calloc(1, sizeof *loader);
    size_t count;
    conf_keys(&count);
    if (!loader)
        return GW_ENOMEM;
    int err = conf_new(&loader->conf);
    if (err)
        goto free_loader;
    loader->problems = problems;
    loader->arena = loader->conf->arena;
    loader->sources = arena_alloc(loader->arena, count * sizeof *loader->sources);
    err = loader->sources ? set_folder(loader->conf, path) : GW_ENOMEM;
    for (size_t i = 0; i < count && loader->sources; i++)
        loader->sources[i] = "default";
    if (!err)
        err = load_file(loader, path);
    if (!err && loader->is_bad)
        err = GW_EINVAL;
    if (err) {
        conf_free(loader->conf);
    } else {
        *out = loader->conf;
        *sources = loader->sources;
    }
free_loader:
    free(loader);
    return err;
}

int confload_file(const char *path, struct conf **out, struct buf *problems)
{
    const char **sources;
    return load(path, out, &sources, problems);
}

// ---- dump

static int dump_plugins(const struct conf *conf, struct buf *out)
{
    int err = buf_append_str(out, "plugins = {");
    for (size_t i = 0; i < conf->plugin_count && !err; i++) {
        const struct conf_plugin *plugin = &conf->plugins[i];
        err = buf_printf(out, "\n  { name = \"%.*s\"", SLICE_FMT(plugin->name));
        if (!err && plugin->path.len)
            err = buf_printf(out, ", path = \"%.*s\"", SLICE_FMT(plugin->path));
        if (!err && plugin->is_trusted)
            err = buf_append_str(out, ", trusted = true");
        if (!err)
            err = buf_append_str(out, " },");
        if (!err && !slice_is(plugin->settings_json, "{}"))
            err = buf_printf(out, " -- settings %.*s", SLICE_FMT(plugin->settings_json));
    }
    return err ? err : buf_append_str(out, conf->plugin_count ? "\n}  # file\n" : "}  # default\n");
}

static int dump_upstreams(const struct conf *conf, struct buf *out)
{
    struct json_doc *doc = NULL;
    const char *why;
    size_t at, count = 0;
    if (conf->upstreams_json.len &&
        json_parse(conf->upstreams_json, (size_t)32 << 20, &doc, &why, &at) == 0)
        count = yyjson_arr_size(json_root(doc));
    json_doc_free(doc);
    // Their keys are secrets: only the number is shown.
    return buf_printf(out, "upstreams = %zu entries  # %s\n", count,
                      conf->upstreams_json.len ? "file" : "default");
}

int confload_dump(const char *path, struct buf *out, struct buf *problems)
{
    struct conf *conf = NULL;
    const char **sources = NULL;
    size_t count;
    const struct conf_key *keys = conf_keys(&count);
    int err = load(path, &conf, &sources, problems);
    if (err)
        return err;
    for (size_t i = 0; i < count && !err; i++) {
        struct slice value;
        err = conf_render(conf, &keys[i], conf->arena, &value);
        if (!err)
            err = buf_printf(out, "%s = %.*s  # %s\n", keys[i].path, SLICE_FMT(value), sources[i]);
    }
    if (!err)
        err = dump_plugins(conf, out);
    if (!err)
        err = dump_upstreams(conf, out);
    conf_free(conf);
    return err;
}
