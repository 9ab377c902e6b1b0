// The normalised plugin table (lua/plugin.lua) to struct plugin_def.
#include "codec/event.h"
#include "script/lua_json.h"
#include "script/plugin_internal.h"
#include <math.h>
#include <stdio.h>
#include <unistd.h>

static const char *const hook_names[SCRIPT_HOOK_COUNT] = {
    [SCRIPT_IDENTIFY] = "identify", [SCRIPT_ADMIT] = "admit", [SCRIPT_SELECT] = "select",
    [SCRIPT_PREPARE] = "prepare",   [SCRIPT_REPLY] = "reply", [SCRIPT_BODY] = "body",
    [SCRIPT_DELTA] = "delta",       [SCRIPT_PRICE] = "price", [SCRIPT_ERROR] = "error",
    [SCRIPT_FINISH] = "finish",
};

struct reader {
    lua_State *L;
    struct arena *arena;
    struct plugin_def *def;
    struct buf *problems;
    bool is_bad;
    bool is_out_of_memory;
};

// Pushes t[name] of the table at index and gives its type.
static int push_field(struct reader *reader, int index, const char *name)
{
    lua_pushstring(reader->L, name);
    lua_rawget(reader->L, index);
    return lua_type(reader->L, -1);
}

static struct slice copy_top(struct reader *reader)
{
    size_t len = 0;
    const char *text =
        lua_type(reader->L, -1) == LUA_TSTRING ? lua_tolstring(reader->L, -1, &len) : NULL;
    struct slice copy = text ? arena_copy(reader->arena, slice_of(text, len)) : SLICE_LIT("");
    if (!copy.ptr) {
        reader->is_out_of_memory = true;
        copy = SLICE_LIT("");
    }
    return copy;
}

static struct slice text_field(struct reader *reader, int index, const char *name)
{
    push_field(reader, index, name);
    struct slice text = copy_top(reader);
    lua_pop(reader->L, 1);
    return text;
}

static bool flag_field(struct reader *reader, int index, const char *name)
{
    push_field(reader, index, name);
    bool is_set = lua_toboolean(reader->L, -1);
    lua_pop(reader->L, 1);
    return is_set;
}

static double number_field(struct reader *reader, int index, const char *name, double absent)
{
    double value =
        push_field(reader, index, name) == LUA_TNUMBER ? lua_tonumber(reader->L, -1) : absent;
    lua_pop(reader->L, 1);
    return value;
}

static void *take(struct reader *reader, size_t count, size_t size)
{
    void *mem = arena_zalloc(reader->arena, (count ? count : 1) * size);
    if (!mem)
        reader->is_out_of_memory = true;
    return mem;
}

// A list of texts.
static const struct slice *texts_field(struct reader *reader, int index, const char *name,
                                       size_t *count)
{
    *count = 0;
    size_t max = push_field(reader, index, name) == LUA_TTABLE ? lua_objlen(reader->L, -1) : 0;
    struct slice *texts = take(reader, max, sizeof *texts);
    for (size_t i = 0; i < max && texts; i++) {
        lua_rawgeti(reader->L, -1, (int)i + 1);
        texts[(*count)++] = copy_top(reader);
        lua_pop(reader->L, 1);
    }
    lua_pop(reader->L, 1);
    return texts;
}

// The value at the top as JSON text.
static struct slice json_top(struct reader *reader)
{
    lua_State *L = reader->L;
    int at = lua_gettop(L);
    struct buf *text = lua_env_buffer(L, (size_t)1 << 20);
    lua_json_encode(L, at, text);
    struct slice copy = arena_copy(reader->arena, buf_slice(text));
    buf_free(text);
    lua_pop(L, 1);
    if (!copy.ptr) {
        reader->is_out_of_memory = true;
        return SLICE_LIT("");
    }
    return copy;
}

static const struct schema *schema_top(struct reader *reader, const char *find, const char *where)
{
    char why[256];
    const struct schema *schema = NULL;
    int err = plugin_compile_schema(reader->L, -1, reader->arena, &schema, why, sizeof why);
    if (err == GW_ENOMEM)
        reader->is_out_of_memory = true;
    if (err == 0)
        return schema;
    reader->is_bad = true;
    // The schema knows its own line.
    if (strstr(why, ".lua:")) {
        char *space = strchr(why, ' ');
        size_t before = reader->problems->len;
        if (buf_printf(reader->problems, "%.*s %s: %s\n", space ? (int)(space - why) : 0, why,
                       where, space ? space + 1 : why) != 0)
            buf_truncate(reader->problems, before);
    } else {
        plugin_problem(reader->problems, reader->def, find, "%s: %s", where, why);
    }
    return NULL;
}

static const struct schema *schema_field_of(struct reader *reader, int index, const char *name,
                                            const char *find, const char *where)
{
    const struct schema *schema = NULL;
    if (push_field(reader, index, name) == LUA_TTABLE)
        schema = schema_top(reader, find, where);
    lua_pop(reader->L, 1);
    return schema;
}

// ---- parts

static void read_needs(struct reader *reader, int index)
{
    struct plugin_needs *needs = &reader->def->needs;
    static const struct {
        const char *name;
        size_t offset;
    } access[] = {{"keys", offsetof(struct plugin_needs, keys)},
                  {"upstreams", offsetof(struct plugin_needs, upstreams)},
                  {"logs", offsetof(struct plugin_needs, logs)},
                  {"prices", offsetof(struct plugin_needs, prices)}};
    push_field(reader, index, "needs");
    int at = lua_gettop(reader->L);
    needs->db = flag_field(reader, at, "db");
    needs->ledger = flag_field(reader, at, "ledger");
    needs->process = flag_field(reader, at, "process");
    for (size_t i = 0; i < sizeof access / sizeof access[0]; i++) {
        struct slice value = text_field(reader, at, access[i].name);
        *(enum plugin_access *)((char *)needs + access[i].offset) =
            slice_is(value, "write")  ? PLUGIN_ACCESS_WRITE
            : slice_is(value, "read") ? PLUGIN_ACCESS_READ
                                      : PLUGIN_ACCESS_NONE;
    }
    int type = push_field(reader, at, "fetch");
    lua_pop(reader->L, 1);
    needs->may_fetch = type != LUA_TNIL;
    needs->fetch_hosts = texts_field(reader, at, "fetch", &needs->fetch_host_count);
    needs->may_fetch_anywhere = needs->may_fetch && needs->fetch_host_count == 0;
    size_t count;
    const struct slice *names = texts_field(reader, at, "secrets", &count);
    struct plugin_secret *secrets = take(reader, count, sizeof *secrets);
    for (size_t i = 0; i < count && secrets; i++)
        secrets[i].name = names[i];
    needs->secrets = secrets;
    needs->secret_count = secrets ? count : 0;
    lua_pop(reader->L, 1);
}

static void read_hooks(struct reader *reader, int index)
{
    push_field(reader, index, "hooks");
    int at = lua_gettop(reader->L);
    for (int i = 0; i < SCRIPT_HOOK_COUNT; i++) {
        if (push_field(reader, at, hook_names[i]) == LUA_TFUNCTION)
            reader->def->hooks |= 1u << i;
        lua_pop(reader->L, 1);
    }
    lua_pop(reader->L, 1);
    size_t count;
    const struct slice *wants = texts_field(reader, index, "wants", &count);
    for (size_t i = 0; i < count; i++) {
        if (slice_is(wants[i], "text"))
            reader->def->wants |= 1u << EVENT_BLOCK_TEXT;
        else if (slice_is(wants[i], "thinking"))
            reader->def->wants |= 1u << EVENT_BLOCK_THINKING;
        else if (slice_is(wants[i], "tool"))
            reader->def->wants |= 1u << EVENT_BLOCK_TOOL;
    }
}

static enum http1_method method_of(struct slice text)
{
    static const struct {
        const char *name;
        enum http1_method method;
    } methods[] = {
        {"GET", HTTP1_GET},         {"HEAD", HTTP1_HEAD},   {"POST", HTTP1_POST},
        {"PUT", HTTP1_PUT},         {"PATCH", HTTP1_PATCH}, {"DELETE", HTTP1_DELETE},
        {"OPTIONS", HTTP1_OPTIONS},
    };
    for (size_t i = 0; i < sizeof methods / sizeof methods[0]; i++)
        if (slice_is(text, methods[i].name))
            return methods[i].method;
    return HTTP1_OTHER;
}

static enum plugin_auth auth_of(struct slice text)
{
    return slice_is(text, "key")     ? PLUGIN_AUTH_KEY
           : slice_is(text, "user")  ? PLUGIN_AUTH_USER
           : slice_is(text, "admin") ? PLUGIN_AUTH_ADMIN
                                     : PLUGIN_AUTH_NONE;
}

// One declared response at the top: a text, a schema, or {about=, schema=}.
static void write_response(struct reader *reader, const char *find, const char *where,
                           struct json_out *out)
{
    lua_State *L = reader->L;
    const struct schema *schema = NULL;
    struct slice about = SLICE_LIT("");
    int at = lua_gettop(L);
    if (lua_type(L, at) == LUA_TSTRING) {
        about = copy_top(reader);
    } else if (lua_istable(L, at)) {
        int type = push_field(reader, at, "__schema");
        lua_pop(L, 1);
        if (type == LUA_TSTRING) {
            schema = schema_top(reader, find, where);
            if (schema)
                about = schema->about;
        } else {
            about = text_field(reader, at, "about");
            schema = schema_field_of(reader, at, "schema", find, where);
        }
    }
    json_object(out);
    json_key(out, "description");
    json_text(out, about.ptr ? about : SLICE_LIT(""));
    if (schema) {
        json_key(out, "content");
        json_object(out);
        json_key(out, "application/json");
        json_object(out);
        json_key(out, "schema");
        schema_write_json_schema(schema, out);
        json_object_end(out);
        json_object_end(out);
    }
    json_object_end(out);
}

static struct slice read_responses(struct reader *reader, int index, const char *find,
                                   const char *where)
{
    lua_State *L = reader->L;
    if (push_field(reader, index, "responses") != LUA_TTABLE) {
        lua_pop(L, 1);
        return SLICE_LIT("");
    }
    int at = lua_gettop(L);
    struct buf *text = lua_env_buffer(L, (size_t)1 << 20);
    struct json_out out;
    json_begin(&out, text);
    json_object(&out);
    for (int status = 100; status < 600; status++) { // by status; keys are numbers or texts
        char name[8];
        lua_rawgeti(L, at, status);
        snprintf(name, sizeof name, "%d", status);
        if (lua_isnil(L, -1)) {
            lua_pop(L, 1);
            push_field(reader, at, name);
        }
        if (!lua_isnil(L, -1)) {
            json_key(&out, name);
            write_response(reader, find, where, &out);
        }
        lua_pop(L, 1);
    }
    json_object_end(&out);
    struct slice copy = SLICE_LIT("");
    if (json_end(&out) == 0)
        copy = arena_copy(reader->arena, buf_slice(text));
    else
        reader->is_out_of_memory = true;
    buf_free(text);
    lua_settop(L, at - 1);
    return copy;
}

static void read_route(struct reader *reader, int index, struct plugin_route *route)
{
    lua_State *L = reader->L;
    char where[700], find[600], part[800];
    route->method_text = text_field(reader, index, "method");
    route->method = method_of(route->method_text);
    route->path = text_field(reader, index, "path");
    snprintf(find, sizeof find, "%.*s", SLICE_FMT(route->path));
    snprintf(where, sizeof where, "%.*s %s", SLICE_FMT(route->method_text), find);
    int auth = push_field(reader, index, "auth");
    route->auth = auth == LUA_TFUNCTION ? PLUGIN_AUTH_FUNCTION : auth_of(copy_top(reader));
    lua_pop(L, 1);
    snprintf(part, sizeof part, "%s params", where);
    route->params = schema_field_of(reader, index, "params", find, part);
    snprintf(part, sizeof part, "%s query", where);
    route->query = schema_field_of(reader, index, "query", find, part);
    snprintf(part, sizeof part, "%s body", where);
    route->body = schema_field_of(reader, index, "body", find, part);
    route->about = text_field(reader, index, "about");
    route->max_body = (uint64_t)number_field(reader, index, "max_body", 0);
    snprintf(part, sizeof part, "%s responses", where);
    route->responses_json = read_responses(reader, index, find, part);
    if (push_field(reader, index, "handler") == LUA_TFUNCTION) {
        lua_Debug info;
        memset(&info, 0, sizeof info);
        if (lua_getinfo(L, ">S", &info))
            route->line = info.linedefined;
    } else {
        lua_pop(L, 1);
    }
}

static void read_task(struct reader *reader, int index, struct plugin_task *task)
{
    task->name = text_field(reader, index, "name");
    task->every_ms = (int64_t)llround(number_field(reader, index, "every", 0) * 1000);
    task->daily_minute = (int)number_field(reader, index, "daily_minute", -1);
    struct slice on = text_field(reader, index, "on");
    task->where = slice_is(on, "worker")    ? PLUGIN_ON_WORKER
                  : slice_is(on, "cluster") ? PLUGIN_ON_CLUSTER
                                            : PLUGIN_ON_PROCESS;
    task->timeout_ms = (int64_t)llround(number_field(reader, index, "timeout", 0) * 1000);
}

static void read_metric(struct reader *reader, int index, struct plugin_metric *metric)
{
    metric->name = text_field(reader, index, "name");
    metric->full_name =
        arena_printf(reader->arena, "moongate_%s_%.*s", reader->def->name, SLICE_FMT(metric->name));
    struct slice kind = text_field(reader, index, "kind");
    metric->kind = slice_is(kind, "gauge")       ? STATS_GAUGE
                   : slice_is(kind, "histogram") ? STATS_HISTOGRAM
                                                 : STATS_COUNTER;
    metric->help = text_field(reader, index, "help");
    const struct slice *labels = texts_field(reader, index, "labels", &metric->label_count);
    struct buf joined = BUF_INIT(4096);
    for (size_t i = 0; i < metric->label_count; i++)
        if (buf_printf(&joined, "%s%.*s", i ? "," : "", SLICE_FMT(labels[i])) != 0)
            reader->is_out_of_memory = true;
    metric->labels = arena_copy(reader->arena, buf_slice(&joined));
    buf_free(&joined);
    if (!metric->full_name.ptr || !metric->labels.ptr)
        reader->is_out_of_memory = true;
}

static void read_model(struct reader *reader, int index, struct plugin_model *model)
{
    model->id = text_field(reader, index, "id");
    model->owned_by = text_field(reader, index, "owned_by");
}

// Calls read_one for each entry of a list; gives the array.
#define READ_LIST(reader, index, name, items, count, max, read_one)                                \
    do {                                                                                           \
        size_t found =                                                                             \
            push_field(reader, index, name) == LUA_TTABLE ? lua_objlen((reader)->L, -1) : 0;       \
        if (found > (max)) {                                                                       \
            plugin_problem((reader)->problems, (reader)->def, name, "more than %d %s", (int)(max), \
                           name);                                                                  \
            (reader)->is_bad = true;                                                               \
            found = 0;                                                                             \
        }                                                                                          \
        (items) = take(reader, found, sizeof *(items));                                            \
        for (size_t n = 0; n < found && (items); n++) {                                            \
            lua_rawgeti((reader)->L, -1, (int)n + 1);                                              \
            read_one(reader, lua_gettop((reader)->L), &(items)[n]);                                \
            lua_pop((reader)->L, 1);                                                               \
        }                                                                                          \
        (count) = (items) ? found : 0;                                                             \
        lua_pop((reader)->L, 1);                                                                   \
    } while (0)

static void read_lists(struct reader *reader, int index)
{
    struct plugin_def *def = reader->def;
    struct plugin_route *routes;
    struct plugin_task *tasks;
    struct plugin_metric *metrics;
    struct plugin_model *models;
    READ_LIST(reader, index, "routes", routes, def->route_count, PLUGIN_MAX_ROUTES, read_route);
    READ_LIST(reader, index, "tasks", tasks, def->task_count, 64, read_task);
    READ_LIST(reader, index, "metrics", metrics, def->metric_count, 128, read_metric);
    READ_LIST(reader, index, "models", models, def->model_count, 1000, read_model);
    def->routes = routes;
    def->tasks = tasks;
    def->metrics = metrics;
    def->models = models;
}

static void free_doc(void *arg)
{
    json_doc_free(arg);
}

static int read_quirks(struct reader *reader, int index)
{
    struct json_doc *doc = NULL;
    const char *error = NULL;
    size_t error_at = 0;
    push_field(reader, index, "quirks");
    struct slice text = json_top(reader);
    lua_pop(reader->L, 1);
    if (reader->is_out_of_memory || slice_is(text, "{}"))
        return 0;
    int err = json_parse(text, (size_t)8 << 20, &doc, &error, &error_at);
    if (!err) {
        err = arena_on_free(reader->arena, free_doc, doc);
        if (err)
            json_doc_free(doc);
    }
    if (!err)
        err = plugin_read_quirks(json_root(doc), reader->arena, reader->def, reader->problems);
    return err;
}

static void read_migrations(struct reader *reader, int index)
{
    struct plugin_def *def = reader->def;
    struct slice name = text_field(reader, index, "migrations");
    if (name.len == 0)
        return;
    while (name.len > 1 && slice_ends(name, "/"))
        name.len--;
    struct slice dir = arena_printf(reader->arena, "%s/%.*s%c", def->dir, SLICE_FMT(name), '\0');
    if (!dir.ptr) {
        reader->is_out_of_memory = true;
    } else if (access(dir.ptr, R_OK | X_OK) != 0) {
        plugin_problem(reader->problems, def, "migrations", "migrations: no folder %.*s in %s",
                       SLICE_FMT(name), def->dir);
        reader->is_bad = true;
    } else {
        def->migrations_dir = dir.ptr;
    }
}

static bool has_function(struct reader *reader, int index, const char *name)
{
    bool is_function = push_field(reader, index, name) == LUA_TFUNCTION;
    lua_pop(reader->L, 1);
    return is_function;
}

int plugin_read_table(lua_State *L, int index, struct arena *arena, struct plugin_def *def,
                      struct buf *problems)
{
    struct reader reader = {.L = L, .arena = arena, .def = def, .problems = problems};
    luaL_checkstack(L, 24, "plugin");
    if (index < 0)
        index = lua_gettop(L) + 1 + index;
    def->version = text_field(&reader, index, "version");
    def->about = text_field(&reader, index, "about");
    def->denies_on_error = slice_is(text_field(&reader, index, "on_error"), "deny");
    def->has_init = has_function(&reader, index, "init");
    def->has_close = has_function(&reader, index, "close");
    def->has_render_error = has_function(&reader, index, "render_error");
    def->after = texts_field(&reader, index, "after", &def->after_count);
    def->before = texts_field(&reader, index, "before", &def->before_count);
    read_needs(&reader, index);
    read_hooks(&reader, index);
    def->config_schema = schema_field_of(&reader, index, "config", "config", "config");
    read_migrations(&reader, index);
    read_lists(&reader, index);
    def->console_json = SLICE_LIT("");
    if (push_field(&reader, index, "console") == LUA_TTABLE)
        def->console_json = json_top(&reader);
    lua_pop(L, 1);
    int err = read_quirks(&reader, index);
    if (reader.is_out_of_memory)
        return GW_ENOMEM;
    return reader.is_bad && !err ? GW_EINVAL : err;
}
