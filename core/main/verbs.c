// The verbs of the command line, thin: they build a request, show an answer.
#include "base/clock.h"
#include "main/certificates.h"
#include "main/process.h"
#include "main/tool.h"
#include "script/confload.h"

#include <stdio.h>
#include <stdlib.h>

#define LIST_PAGE 100 // rows of one request

static void field(struct json_out *json, const char *name, const char *value)
{
    if (!value)
        return;
    json_key(json, name);
    json_str(json, value);
}

// "a,b" as an array of texts.
static void list_field(struct json_out *json, const char *name, const char *value)
{
    if (!value)
        return;
    json_key(json, name);
    json_array(json);
    while (*value) {
        size_t len = strcspn(value, ",");
        struct slice item = slice_trim(slice_of(value, len));
        if (item.len)
            json_text(json, item);
        value += len + (value[len] == ',');
    }
    json_array_end(json);
}

static bool number_field(struct json_out *json, const char *name, const char *value)
{
    unsigned long long number;
    if (!value)
        return true;
    if (slice_to_u64(slice_str(value), 1000000, &number) != GW_OK) {
        fprintf(stderr, "moongate: %s must be a whole number\n", name);
        return false;
    }
    json_key(json, name);
    json_u64(json, number);
    return true;
}

static struct slice text_of(yyjson_val *object, const char *name)
{
    struct slice text = json_string_slice(yyjson_obj_get(object, name));
    return text.ptr ? text : SLICE_LIT("");
}

static struct json_doc *parse(struct slice text)
{
    struct json_doc *doc = NULL;
    const char *why;
    size_t at;
    if (json_parse(text, 256u << 20, &doc, &why, &at) == GW_OK)
        return doc;
    fprintf(stderr, "moongate: unreadable answer: %s\n", why);
    return NULL;
}

static void show_time(yyjson_val *value, const char *missing)
{
    int64_t ms;
    char text[32];
    if (!value || json_get_i64(value, &ms) != GW_OK || ms == 0) {
        printf("%-25s", missing);
        return;
    }
    clock_format_iso(ms, text, sizeof text);
    printf("%-25s", text);
}

int verb_run(struct tool *tool)
{
    char error[1024];
    struct process process;
    int err = process_start(&process, tool->conf_path, error, sizeof error);
    if (err) {
        fprintf(stderr, "moongate: %s\n", error);
        upgrade_tell_failure(&process, error);
        process_stop(&process);
        return 1;
    }
    printf("moongate %s listens on %s://%.*s:%u\n", MOONGATE_VERSION,
           process.tls ? "https" : "http", SLICE_FMT(process.conf->host), process.port);
    fflush(stdout);
    int code = process_wait(&process);
    process_stop(&process);
    return code;
}

static bool check_schema(struct tool *tool)
{
    char error[512] = "";
    struct slice path;
    struct fernet *fernet = NULL;
    struct store *store = NULL;
    if (conf_database_path(tool->conf, &path, error, sizeof error) != GW_OK) {
        fprintf(stderr, "%s: %s\n", tool->conf_path, error);
        return false;
    }
    char file[1024];
    snprintf(file, sizeof file, "%.*s", SLICE_FMT(path));
    FILE *there = fopen(file, "r");
    if (!there) {
        printf("schema: no database yet; `moongate run` makes it\n");
        return true;
    }
    fclose(there);
    if (conf_make_fernet(tool->conf, &fernet, error, sizeof error) != GW_OK) {
        fprintf(stderr, "%s: %s\n", tool->conf_path, error);
        return false;
    }
    struct epoch *epoch = epoch_new(4);
    struct store_options options = {.conf = tool->conf,
                                    .fernet = fernet,
                                    .epoch = epoch,
                                    .migrations_dir = home_path("schema"),
                                    .is_tool = true};
    bool is_good = epoch && store_open(&options, &store, error, sizeof error) == GW_OK;
    if (is_good) {
        struct arena *arena = arena_new(4096);
        struct migration_status *rows;
        size_t count, open = 0;
        if (arena && store_migration_status(store, arena, &rows, &count) == GW_OK) {
            for (size_t i = 0; i < count; i++)
                open += !rows[i].is_applied;
            printf("schema: %zu migrations, %zu to be applied\n", count, open);
        }
        arena_free(arena);
        store_close(store);
    } else {
        fprintf(stderr, "%s: %s\n", file, error);
    }
    epoch_destroy(epoch);
    fernet_free(fernet);
    return is_good;
}

int verb_check(struct tool *tool)
{
    char error[512] = "";
    struct buf problems = BUF_INIT(256u << 10);
    struct plugin_set *set = NULL;
    tool_load(tool);
    int err = conf_check(tool->conf, error, sizeof error);
    struct tls_server *tls = NULL;
    if (!err)
        err = certificates_open(tool->conf, &tls, error, sizeof error);
    tls_server_free(tls);
    if (err)
        fprintf(stderr, "%s: %s\n", tool->conf_path, error);
    int plugin_err = plugin_set_load(tool->conf, &set, &problems);
    fprintf(stderr, "%.*s", SLICE_FMT(buf_slice(&problems)));
    buf_free(&problems);
    if (!plugin_err)
        printf("plugins: %zu loaded\n", plugin_set_count(set));
    if (set)
        plugin_set_unref(set);
    bool is_good = !err && !plugin_err && check_schema(tool);
    if (is_good)
        printf("%s: ok\n", tool->conf_path);
    return is_good ? 0 : 1;
}

int verb_migrate(struct tool *tool)
{
    const char *what = tool_word(tool, 0);
    bool is_up = what && strcmp(what, "up") == 0;
    if (!is_up && (!what || strcmp(what, "status") != 0)) {
        fprintf(stderr, "usage: moongate migrate status|up\n");
        return 2;
    }
    char error[512] = "";
    struct fernet *fernet = NULL;
    struct store *store = NULL;
    tool_load(tool);
    if (conf_make_fernet(tool->conf, &fernet, error, sizeof error) != GW_OK) {
        fprintf(stderr, "moongate: %s\n", error);
        return 1;
    }
    struct epoch *epoch = epoch_new(4);
    struct store_options options = {.conf = tool->conf,
                                    .fernet = fernet,
                                    .epoch = epoch,
                                    .migrations_dir = home_path("schema"),
                                    .is_tool = !is_up};
    int err = epoch ? store_open(&options, &store, error, sizeof error) : GW_ENOMEM;
    if (err == GW_EBUSY && is_up)
        fprintf(stderr, "moongate: a gateway is running on this database; it applied its "
                        "migrations when it started\n");
    else if (err)
        fprintf(stderr, "moongate: %s\n", error);
    struct arena *arena = arena_new(4096);
    struct migration_status *rows = NULL;
    size_t count = 0;
    if (!err)
        err = arena ? store_migration_status(store, arena, &rows, &count) : GW_ENOMEM;
    for (size_t i = 0; !err && i < count; i++)
        printf("%-12.*s %-32.*s %s\n", SLICE_FMT(rows[i].set), SLICE_FMT(rows[i].name),
               rows[i].is_applied ? "applied" : "to be applied");
    arena_free(arena);
    if (store)
        store_close(store);
    epoch_destroy(epoch);
    fernet_free(fernet);
    return err ? 1 : 0;
}

int verb_config(struct tool *tool)
{
    const char *what = tool_word(tool, 0);
    if (!what || strcmp(what, "dump") != 0) {
        fprintf(stderr, "usage: moongate config dump\n");
        return 2;
    }
    struct buf out = BUF_INIT(1u << 20), problems = BUF_INIT(64u << 10);
    int err = confload_dump(tool->conf_path, &out, &problems);
    printf("%.*s", SLICE_FMT(buf_slice(&out)));
    fprintf(stderr, "%.*s", SLICE_FMT(buf_slice(&problems)));
    buf_free(&out);
    buf_free(&problems);
    return err ? 1 : 0;
}

static int key_create(struct tool *tool)
{
    const char *name = tool_option(tool, "--name");
    if (!name) {
        fprintf(stderr, "usage: moongate key create --name N [--upstreams a,b] [--json]\n");
        return 2;
    }
    struct buf request = BUF_INIT(1u << 20), answer = BUF_INIT(1u << 20);
    struct json_out json;
    json_begin(&json, &request);
    json_object(&json);
    field(&json, "name", name);
    list_field(&json, "upstreams", tool_option(tool, "--upstreams"));
    list_field(&json, "allowed_models", tool_option(tool, "--models"));
    json_object_end(&json);
    bool is_good = json_end(&json) == GW_OK &&
                   tool_run(tool, "key.create", ADMIN_KEY_CREATE, buf_slice(&request), &answer);
    struct json_doc *doc = is_good ? parse(buf_slice(&answer)) : NULL;
    if (doc) {
        struct slice id = text_of(json_root(doc), "uid");
        struct slice key = text_of(json_root(doc), "key_value");
        if (tool->is_json)
            printf("{\"id\":\"%.*s\",\"key\":\"%.*s\"}\n", SLICE_FMT(id), SLICE_FMT(key));
        else
            printf("id   %.*s\nkey  %.*s\nIt is shown this once only.\n", SLICE_FMT(id),
                   SLICE_FMT(key));
        json_doc_free(doc);
    }
    buf_wipe(&request);
    buf_wipe(&answer);
    return is_good ? 0 : 1;
}

// Walks all pages of a list; rows are shown as lines, or gathered to one JSON object.
static int list_all(struct tool *tool, const char *verb, enum admin_verb number,
                    void (*show)(yyjson_val *row))
{
    size_t shown = 0, in_page = LIST_PAGE;
    bool is_good = true;
    if (tool->is_json)
        printf("{\"items\":[");
    for (int page = 1; is_good && in_page == LIST_PAGE; page++) {
        struct buf request = BUF_INIT(256), answer = BUF_INIT(64u << 20);
        is_good =
            buf_printf(&request, "{\"page\":%d,\"page_size\":%d}", page, LIST_PAGE) == GW_OK &&
            tool_run(tool, verb, number, buf_slice(&request), &answer);
        struct json_doc *doc = is_good ? parse(buf_slice(&answer)) : NULL;
        is_good = doc != NULL;
        yyjson_val *items = doc ? yyjson_obj_get(json_root(doc), "items") : NULL, *row;
        size_t i, max;
        in_page = yyjson_arr_size(items);
        yyjson_arr_foreach(items, i, max, row)
        {
            char *text = tool->is_json ? yyjson_val_write(row, 0, NULL) : NULL;
            if (text)
                printf("%s%s", shown ? "," : "", text);
            else if (!tool->is_json)
                show(row);
            free(text);
            shown++;
        }
        if (doc)
            json_doc_free(doc);
        buf_free(&request);
        buf_free(&answer);
    }
    if (tool->is_json)
        printf("],\"total\":%zu}\n", shown);
    return is_good ? 0 : 1;
}

static void show_key(yyjson_val *row)
{
    printf("%-37.*s %-14.*s %-9s ", SLICE_FMT(text_of(row, "uid")),
           SLICE_FMT(text_of(row, "key_prefix")),
           yyjson_get_bool(yyjson_obj_get(row, "is_active")) ? "active" : "revoked");
    show_time(yyjson_obj_get(row, "created_ms"), "-");
    printf(" %.*s\n", SLICE_FMT(text_of(row, "name")));
}

static void show_upstream(yyjson_val *row)
{
    printf("%-37.*s %-20.*s %-12.*s %-9s %.*s\n", SLICE_FMT(text_of(row, "uid")),
           SLICE_FMT(text_of(row, "name")), SLICE_FMT(text_of(row, "provider")),
           yyjson_get_bool(yyjson_obj_get(row, "is_active")) ? "active" : "inactive",
           SLICE_FMT(text_of(row, "base_url")));
}

static int by_id(struct tool *tool, const char *verb, enum admin_verb number, const char *id,
                 const char *done)
{
    struct buf request = BUF_INIT(4096), answer = BUF_INIT(1u << 20);
    struct json_out json;
    json_begin(&json, &request);
    json_object(&json);
    field(&json, "uid", id);
    json_object_end(&json);
    bool is_good =
        json_end(&json) == GW_OK && tool_run(tool, verb, number, buf_slice(&request), &answer);
    if (is_good)
        printf("%s %s\n", done, id);
    buf_free(&request);
    buf_free(&answer);
    return is_good ? 0 : 1;
}

int verb_key(struct tool *tool)
{
    const char *what = tool_word(tool, 0);
    if (what && strcmp(what, "fernet") == 0) {
        struct buf key = BUF_INIT(128);
        int err = fernet_generate(&key);
        if (!err)
            printf("%.*s\n", SLICE_FMT(buf_slice(&key)));
        buf_wipe(&key);
        return err ? 1 : 0;
    }
    tool_load(tool);
    if (what && strcmp(what, "create") == 0)
        return key_create(tool);
    if (what && strcmp(what, "list") == 0)
        return list_all(tool, "key.list", ADMIN_KEY_LIST, show_key);
    if (what && strcmp(what, "revoke") == 0 && tool_word(tool, 1))
        return by_id(tool, "key.revoke", ADMIN_KEY_REVOKE, tool_word(tool, 1), "revoked");
    fprintf(stderr, "usage: moongate key create --name N [--upstreams a,b] [--json] | list | "
                    "revoke ID | fernet\n");
    return 2;
}

static int upstream_create(struct tool *tool)
{
    const char *key_name = tool_option(tool, "--api-key-env");
    const char *key = key_name ? getenv(key_name) : NULL;
    if (key_name && !key) {
        fprintf(stderr, "moongate: the variable %s is not set\n", key_name);
        return 1;
    }
    struct buf request = BUF_INIT(1u << 20), answer = BUF_INIT(1u << 20);
    struct json_out json;
    json_begin(&json, &request);
    json_object(&json);
    field(&json, "name", tool_option(tool, "--name"));
    field(&json, "provider", tool_option(tool, "--provider"));
    field(&json, "base_url", tool_option(tool, "--base-url"));
    field(&json, "api_key", key);
    list_field(&json, "models", tool_option(tool, "--models"));
    list_field(&json, "formats", tool_option(tool, "--formats"));
    bool is_good = number_field(&json, "weight", tool_option(tool, "--weight")) &&
                   number_field(&json, "priority", tool_option(tool, "--priority"));
    if (tool_has_flag(tool, "--default")) {
        json_key(&json, "is_default");
        json_bool(&json, true);
    }
    json_object_end(&json);
    is_good =
        is_good && json_end(&json) == GW_OK &&
        tool_run(tool, "upstream.create", ADMIN_UPSTREAM_CREATE, buf_slice(&request), &answer);
    struct json_doc *doc = is_good ? parse(buf_slice(&answer)) : NULL;
    if (doc) {
        if (tool->is_json)
            printf("%.*s\n", SLICE_FMT(buf_slice(&answer)));
        else
            printf("id  %.*s\n", SLICE_FMT(text_of(json_root(doc), "uid")));
        json_doc_free(doc);
    }
    buf_wipe(&request);
    buf_wipe(&answer);
    return is_good ? 0 : 1;
}

static int upstream_test(struct tool *tool, const char *name)
{
    struct buf request = BUF_INIT(4096), answer = BUF_INIT(1u << 20);
    struct json_out json;
    json_begin(&json, &request);
    json_object(&json);
    field(&json, "name", name);
    json_object_end(&json);
    bool is_good =
        json_end(&json) == GW_OK && tool_ask(tool, "upstream.test", buf_slice(&request), &answer);
    if (is_good) {
        printf("%.*s\n", SLICE_FMT(buf_slice(&answer)));
        is_good = slice_find(buf_slice(&answer), SLICE_LIT("\"ok\":true")) >= 0;
    }
    buf_free(&request);
    buf_free(&answer);
    return is_good ? 0 : 1;
}

int verb_upstream(struct tool *tool)
{
    const char *what = tool_word(tool, 0);
    tool_load(tool);
    if (what && strcmp(what, "create") == 0)
        return upstream_create(tool);
    if (what && strcmp(what, "list") == 0)
        return list_all(tool, "upstream.list", ADMIN_UPSTREAM_LIST, show_upstream);
    if (what && strcmp(what, "test") == 0 && tool_word(tool, 1))
        return upstream_test(tool, tool_word(tool, 1));
    if (what && strcmp(what, "delete") == 0 && tool_word(tool, 1))
        return by_id(tool, "upstream.delete", ADMIN_UPSTREAM_DELETE, tool_word(tool, 1), "deleted");
    fprintf(stderr, "usage: moongate upstream create --name N --provider P --base-url U "
                    "[--api-key-env VAR] [--models a,b] | list | test NAME | delete ID\n");
    return 2;
}

int verb_plugin(struct tool *tool)
{
    const char *what = tool_word(tool, 0);
    const char *name = tool_word(tool, 1);
    if (what && strcmp(what, "docs") == 0) {
        struct buf docs = BUF_INIT(4u << 20);
        int err = plugin_docs_write(&docs);
        printf("%.*s", SLICE_FMT(buf_slice(&docs)));
        buf_free(&docs);
        return err ? 1 : 0;
    }
    bool is_list = what && strcmp(what, "list") == 0;
    bool is_test = what && strcmp(what, "test") == 0 && name;
    if (!is_list && !is_test) {
        fprintf(stderr, "usage: moongate plugin list | test NAME | docs\n");
        return 2;
    }
    tool_load(tool);
    struct buf problems = BUF_INIT(256u << 10), rows = BUF_INIT(1u << 20);
    struct plugin_set *set = NULL;
    int err = plugin_set_load(tool->conf, &set, &problems);
    fprintf(stderr, "%.*s", SLICE_FMT(buf_slice(&problems)));
    if (!err)
        err = plugin_set_describe(set, is_test ? slice_str(name) : SLICE_NONE, &rows);
    if (err == GW_ENOTFOUND)
        fprintf(stderr, "moongate: no plugin '%s' in the configuration\n", name);
    printf("%.*s", SLICE_FMT(buf_slice(&rows)));
    if (set)
        plugin_set_unref(set);
    buf_free(&problems);
    buf_free(&rows);
    return err ? 1 : 0;
}

static int show(struct tool *tool, const char *verb)
{
    struct buf answer = BUF_INIT(16u << 20);
    tool_load(tool);
    bool is_good = tool_ask(tool, verb, SLICE_LIT("{}"), &answer);
    if (is_good)
        printf("%.*s\n", SLICE_FMT(buf_slice(&answer)));
    if (is_good && strcmp(verb, "health") == 0)
        is_good = slice_find(buf_slice(&answer), SLICE_LIT("\"ready\":true")) >= 0;
    buf_free(&answer);
    return is_good ? 0 : 1;
}

int verb_reload(struct tool *tool)
{
    return show(tool, "reload");
}

int verb_upgrade(struct tool *tool)
{
    return show(tool, "upgrade");
}

int verb_health(struct tool *tool)
{
    return show(tool, "health");
}

int verb_version(struct tool *tool)
{
    if (tool->is_json)
        printf("{\"version\":\"%s\"}\n", MOONGATE_VERSION);
    else
        printf("moongate %s\n", MOONGATE_VERSION);
    return 0;
}
