// Checks beyond one plugin table: settings, secrets, and what plugins of a set mean to each other.
#include "script/plugin_internal.h"
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>

// ---- settings

static void free_doc(void *arg)
{
    json_doc_free(arg);
}

__attribute__((format(printf, 2, 3))) static void add_line(struct buf *problems, const char *format,
                                                           ...)
{
    size_t before = problems->len;
    va_list args;
    va_start(args, format);
    int err = buf_vprintf(problems, format, args);
    va_end(args);
    if (!err)
        err = buf_append_char(problems, '\n');
    if (err)
        buf_truncate(problems, before);
}

static size_t count_secrets(const struct schema_value *value, struct plugin_secret *out)
{
    size_t count = 0;
    if (value->is_null || !value->schema)
        return 0;
    if (value->schema->kind == SCHEMA_SECRET) {
        if (out)
            out->name = value->text;
        return 1;
    }
    for (size_t i = 0; i < value->count; i++) {
        const struct schema_value *inner =
            value->items ? &value->items[i] : &value->members[i].value;
        count += count_secrets(inner, out ? out + count : NULL);
    }
    return count;
}

static int keep_config(struct arena *arena, struct plugin_def *def)
{
    struct buf text = BUF_INIT((size_t)1 << 20);
    struct json_out out;
    json_begin(&out, &text);
    schema_write_value(def->config, &out);
    int err = json_end(&out);
    if (!err) {
        def->config_json = arena_copy(arena, buf_slice(&text));
        err = def->config_json.ptr ? 0 : GW_ENOMEM;
    }
    buf_free(&text);
    size_t count = count_secrets(def->config, NULL);
    struct plugin_secret *secrets = arena_zalloc(arena, (count + 1) * sizeof *secrets);
    if (!secrets)
        return GW_ENOMEM;
    count_secrets(def->config, secrets);
    def->config_secrets = secrets;
    def->config_secret_count = count;
    return err;
}

int plugin_check_settings(const struct conf_plugin *plugin, struct arena *arena,
                          struct plugin_def *def, struct buf *problems)
{
    struct slice text =
        plugin->settings_json.len ? arena_copy(arena, plugin->settings_json) : SLICE_LIT("{}");
    struct json_doc *doc = NULL;
    const char *error = NULL;
    size_t at = 0;
    def->config_json = SLICE_LIT("{}");
    int err = text.ptr ? json_parse(text, (size_t)16 << 20, &doc, &error, &at) : GW_ENOMEM;
    if (err) {
        add_line(problems, "plugin %s: its settings cannot be read: %s", def->name,
                 error ? error : gw_err_name(err));
        return err;
    }
    err = arena_on_free(arena, free_doc, doc);
    if (err) {
        json_doc_free(doc);
        return err;
    }
    if (!def->config_schema) {
        if (yyjson_obj_size(json_root(doc)) == 0)
            return 0;
        yyjson_obj_iter it = yyjson_obj_iter_with(json_root(doc));
        const char *first = yyjson_get_str(yyjson_obj_iter_next(&it));
        add_line(problems, "plugin %s: it takes no settings, but '%s' is given", def->name,
                 first ? first : "?");
        return GW_EINVAL;
    }
    struct schema_result *result = arena_zalloc(arena, sizeof *result);
    if (!result)
        return GW_ENOMEM;
    err = schema_check(def->config_schema, json_root(doc), "", arena, result);
    for (size_t i = 0; i < result->problem_count; i++)
        add_line(problems, "plugin %s: setting '%.*s' %.*s", def->name,
                 SLICE_FMT(result->problems[i].path), SLICE_FMT(result->problems[i].message));
    if (err)
        return err;
    def->config = &result->value;
    return keep_config(arena, def);
}

// ---- secrets

static void free_secret(void *arg)
{
    secret_unref(arg);
}

// A secret that the file sets itself, else the variable.
static int resolve(const struct conf *conf, const struct env_file *env, struct arena *arena,
                   struct plugin_secret *secret)
{
    size_t count;
    const struct conf_key *keys = conf_keys(&count);
    struct secret *found = NULL;
    for (size_t i = 0; i < count && !found; i++) {
        if (keys[i].type == CONF_TYPE_SECRET && slice_is(secret->name, keys[i].env)) {
            found = *(struct secret **)((char *)conf + keys[i].offset);
            if (found)
                secret_ref(found);
        }
    }
    if (!found) {
        struct slice value = env_get(env, secret->name, NULL);
        if (value.len == 0)
            return 0;
        found = secret_new(value);
        if (!found)
            return GW_ENOMEM;
    }
    int err = arena_on_free(arena, free_secret, found);
    if (err) {
        secret_unref(found);
        return err;
    }
    secret->secret = found;
    return 0;
}

// The gateway's own keys go to no plugin.
static bool is_own(struct slice name)
{
    static const char *const names[] = {"ENCRYPTION_KEY", "SECRET_KEY", "JWT_SECRET_KEY",
                                        "ADMIN_TOKEN", "ADMIN_PASSWORD"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (slice_is(name, names[i]))
            return true;
    return false;
}

int plugin_resolve_secrets(const struct conf *conf, const struct env_file *env, struct arena *arena,
                           struct plugin_def *def, struct buf *problems)
{
    const struct plugin_secret *lists[] = {def->needs.secrets, def->config_secrets};
    size_t counts[] = {def->needs.secret_count, def->config_secret_count};
    int result = 0;
    for (size_t k = 0; k < 2; k++) {
        for (size_t i = 0; i < counts[k]; i++) {
            struct plugin_secret *secret = (struct plugin_secret *)&lists[k][i];
            char name[64];
            snprintf(name, sizeof name, "%.*s", SLICE_FMT(secret->name));
            if (is_own(secret->name)) {
                plugin_problem(problems, def, k == 0 ? name : "config",
                               "the secret %s is the gateway's own; no plugin gets it", name);
                result = GW_EINVAL;
                continue;
            }
            int err = resolve(conf, env, arena, secret);
            if (err)
                return err;
            if (!secret->secret && k == 1) {
                add_line(problems, "plugin %s: the settings name the secret $%s, which is not set",
                         def->name, name);
                result = GW_EINVAL;
            }
        }
    }
    return result;
}

// ---- the set

static size_t index_of(const struct plugin_set *set, struct slice name)
{
    for (size_t i = 0; i < set->count; i++)
        if (slice_is(name, set->defs[i].name))
            return i;
    return SIZE_MAX;
}

// after and before are checks: the order itself is the operator's list.
static bool check_order(const struct plugin_set *set, struct buf *problems)
{
    bool is_good = true;
    for (size_t i = 0; i < set->count; i++) {
        const struct plugin_def *def = &set->defs[i];
        for (size_t k = 0; k < def->after_count; k++) {
            size_t other = index_of(set, def->after[k]);
            if (other != SIZE_MAX && other > i) {
                plugin_problem(problems, def, "after",
                               "%s has to come after %.*s in the list of plugins", def->name,
                               SLICE_FMT(def->after[k]));
                is_good = false;
            }
        }
        for (size_t k = 0; k < def->before_count; k++) {
            size_t other = index_of(set, def->before[k]);
            if (other < i) {
                plugin_problem(problems, def, "before",
                               "%s has to come before %.*s in the list of plugins", def->name,
                               SLICE_FMT(def->before[k]));
                is_good = false;
            }
        }
    }
    return is_good;
}

// Equal when both match the same requests: parameters' names do not matter.
static bool same_path(struct slice a, struct slice b)
{
    while (a.len && b.len) {
        const char *a_end = memchr(a.ptr + 1, '/', a.len - 1);
        const char *b_end = memchr(b.ptr + 1, '/', b.len - 1);
        struct slice x = slice_of(a.ptr, a_end ? (size_t)(a_end - a.ptr) : a.len);
        struct slice y = slice_of(b.ptr, b_end ? (size_t)(b_end - b.ptr) : b.len);
        a = slice_from(a, x.len);
        b = slice_from(b, y.len);
        bool is_parameter = slice_starts(x, "/{");
        if (is_parameter != slice_starts(y, "/{") || (!is_parameter && !slice_eq(x, y)))
            return false;
    }
    return a.len == 0 && b.len == 0;
}

struct route_place {
    const struct plugin_def *def;
    const struct plugin_route *route;
};

// Buckets by method, so that large sets compare few pairs.
static bool check_routes(const struct plugin_set *set, struct buf *problems)
{
    size_t count = 0, used = 0;
    bool is_good = true;
    for (size_t i = 0; i < set->count; i++)
        count += set->defs[i].route_count;
    struct route_place *places = arena_alloc(set->arena, (count + 1) * sizeof *places);
    if (!places)
        return false;
    for (size_t i = 0; i < set->count; i++) {
        for (size_t k = 0; k < set->defs[i].route_count; k++) {
            struct route_place here = {&set->defs[i], &set->defs[i].routes[k]};
            for (size_t n = 0; n < used; n++) {
                if (places[n].route->method != here.route->method ||
                    !same_path(places[n].route->path, here.route->path))
                    continue;
                char find[600];
                snprintf(find, sizeof find, "%.*s", SLICE_FMT(here.route->path));
                plugin_problem(problems, here.def, find,
                               "%.*s %s: plugin %s has this route already",
                               SLICE_FMT(here.route->method_text), find, places[n].def->name);
                is_good = false;
                break;
            }
            places[used++] = here;
        }
    }
    return is_good;
}

static bool check_models(const struct plugin_set *set, struct buf *problems)
{
    bool is_good = true;
    for (size_t i = 0; i < set->count; i++) {
        for (size_t k = 0; k < set->defs[i].model_count; k++) {
            for (size_t j = 0; j < i; j++) {
                for (size_t n = 0; n < set->defs[j].model_count; n++) {
                    if (!slice_eq(set->defs[i].models[k].id, set->defs[j].models[n].id))
                        continue;
                    plugin_problem(problems, &set->defs[i], "models",
                                   "the model %.*s is plugin %s's already",
                                   SLICE_FMT(set->defs[i].models[k].id), set->defs[j].name);
                    is_good = false;
                }
            }
        }
    }
    return is_good;
}

static bool check_quirks(const struct plugin_set *set, struct buf *problems)
{
    bool is_good = true;
    for (size_t i = 0; i < set->count; i++) {
        for (size_t k = 0; k < set->defs[i].quirk_count; k++) {
            for (size_t j = 0; j < i; j++) {
                for (size_t n = 0; n < set->defs[j].quirk_count; n++) {
                    struct slice provider = set->defs[i].quirks[k].provider;
                    if (!slice_eq(provider, set->defs[j].quirks[n].provider))
                        continue;
                    plugin_problem(problems, &set->defs[i], "quirks",
                                   "the provider %.*s has quirks of plugin %s already",
                                   SLICE_FMT(provider), set->defs[j].name);
                    is_good = false;
                }
            }
        }
    }
    return is_good;
}

int plugin_check_set(const struct plugin_set *set, struct buf *problems)
{
    bool is_good = check_order(set, problems);
    is_good = check_routes(set, problems) && is_good;
    is_good = check_models(set, problems) && is_good;
    is_good = check_quirks(set, problems) && is_good;
    return is_good ? 0 : GW_EINVAL;
}

// ---- what looks unsafe

static void warn_plugin(const struct plugin_def *def, struct buf *problems)
{
    if (def->is_trusted)
        add_line(
            problems,
            "warning: plugin %s is trusted: its loops are not bounded by the instruction budget",
            def->name);
    if (def->needs.may_fetch_anywhere)
        add_line(problems, "warning: plugin %s may send requests to any public host", def->name);
    for (size_t i = 0; i < def->needs.secret_count; i++)
        if (!def->needs.secrets[i].secret)
            add_line(problems, "warning: plugin %s: the secret %.*s is not set", def->name,
                     SLICE_FMT(def->needs.secrets[i].name));
    for (size_t i = 0; i < def->route_count; i++) {
        const struct plugin_route *route = &def->routes[i];
        if (route->auth == PLUGIN_AUTH_NONE && route->method != HTTP1_GET &&
            route->method != HTTP1_HEAD && route->method != HTTP1_OPTIONS)
            add_line(problems, "warning: %s:%d: %.*s %.*s is open to everybody",
                     def->files[0].chunk + 1, route->line, SLICE_FMT(route->method_text),
                     SLICE_FMT(route->path));
    }
}

void plugin_warn_unsafe(const struct plugin_set *set, struct buf *problems)
{
    const struct conf *conf = set->conf;
    bool has_identify = false;
    for (size_t i = 0; i < set->count; i++) {
        warn_plugin(&set->defs[i], problems);
        has_identify = has_identify || (set->defs[i].hooks & 1u << SCRIPT_IDENTIFY);
    }
    if (!has_identify)
        add_line(problems, "warning: no plugin identifies callers: every model call will be 401");
    if (conf->admin_token && secret_reveal(conf->admin_token).len < 24)
        add_line(problems, "warning: ADMIN_TOKEN is shorter than 24 bytes");
    for (size_t i = 0; i < conf->cors_origins.count; i++)
        if (slice_is(conf->cors_origins.items[i], "*"))
            add_line(problems, "warning: cors_origins = * lets every web site call from browsers");
    for (size_t i = 0; i < conf->trusted_proxies.count; i++)
        if (slice_ends(conf->trusted_proxies.items[i], "/0"))
            add_line(problems, "warning: trusted_proxies believes everybody's X-Forwarded-For");
    if (slice_is(conf->unpriced_models, "free"))
        add_line(problems, "warning: unpriced_models = free: models without a price cost nothing");
    if (slice_is(conf->durability, "process"))
        add_line(problems, "warning: durability = process: a power cut may lose settled calls");
}
