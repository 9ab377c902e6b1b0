// Imports the upstreams of the configuration into a database that has none.
#include "base/log.h"
#include "codec/json.h"
#include "state/conf.h"
#include "state/upstream_row.h"
#include <stdio.h>
#include <stdlib.h>

#define ENTRIES_MAX 10000
#define JSON_CAP (64u << 20)

static int import_entry(struct db *db, const struct fernet *fernet, size_t index, yyjson_val *entry,
                        bool *has_default, char *error, size_t error_size)
{
    struct upstream_input input;
    int64_t id = 0;
    struct arena *arena = arena_new(4096);
    if (!arena)
        return GW_ENOMEM;
    int err = upstream_input_read(entry, NULL, arena, &input);
    if (err == GW_EINVAL)
        snprintf(error, error_size, "UPSTREAMS: entry %zu: %.64s %s", index + 1, input.bad_field,
                 input.why);
    if (err == 0 && !(input.given & UPSTREAM_NAME)) {
        snprintf(error, error_size, "UPSTREAMS: entry %zu: name is missing", index + 1);
        err = GW_EINVAL;
    }
    if (err == 0 && !(input.given & UPSTREAM_BASE_URL)) {
        snprintf(error, error_size, "UPSTREAMS: entry %zu: base_url is missing", index + 1);
        err = GW_EINVAL;
    }
    if (err == 0 && !(input.given & UPSTREAM_PROVIDER))
        input.provider = DB_TEXT_VALUE(SLICE_LIT("generic"));
    if (err == 0 && input.is_default.integer) {
        if (*has_default) {
            snprintf(error, error_size, "UPSTREAMS: entry %zu: is_default is set twice", index + 1);
            err = GW_EINVAL;
        }
        *has_default = true;
    }
    if (err == 0)
        err = upstream_row_insert(db, fernet, &input, &id);
    if (err == GW_EEXISTS)
        snprintf(error, error_size, "UPSTREAMS: entry %zu: name is used twice", index + 1);
    else if (err && err != GW_EINVAL)
        snprintf(error, error_size, "UPSTREAMS: entry %zu: %s", index + 1, gw_err_name(err));
    upstream_input_wipe(&input);
    arena_free(arena);
    return err;
}

static int import_list(struct db *db, const struct conf *conf, const struct fernet *fernet,
                       char *error, size_t error_size)
{
    struct json_doc *doc = NULL;
    const char *why = NULL;
    size_t at = 0, i, max;
    yyjson_val *entry;
    bool has_default = false;
    int err = json_parse(conf->upstreams_json, JSON_CAP, &doc, &why, &at);
    if (err) {
        snprintf(error, error_size, "UPSTREAMS: not JSON at byte %zu: %s", at, why ? why : "");
        return err;
    }
    yyjson_val *root = json_root(doc);
    if (!yyjson_is_arr(root) || yyjson_arr_size(root) > ENTRIES_MAX) {
        snprintf(error, error_size, "UPSTREAMS: must be a list of at most %d objects", ENTRIES_MAX);
        err = GW_EINVAL;
    }
    yyjson_arr_foreach(root, i, max, entry)
    {
        if (err == 0)
            err = import_entry(db, fernet, i, entry, &has_default, error, error_size);
    }
    if (err == 0 && max)
        log_event(LOG_INFO, "upstreams_imported", LOG_INT("count", max));
    json_doc_free(doc);
    return err;
}

// UPSTREAM_URL: one default upstream in the OpenAI format.
static int import_url(struct db *db, const struct conf *conf, const struct fernet *fernet,
                      char *error, size_t error_size)
{
    struct slice key = secret_reveal(conf->upstream_api_key);
    struct upstream_input input = {
        .given = UPSTREAM_NAME | UPSTREAM_PROVIDER | UPSTREAM_BASE_URL | UPSTREAM_IS_DEFAULT |
                 (key.len ? UPSTREAM_API_KEY : 0),
        .name = DB_TEXT_VALUE(SLICE_LIT("default")),
        .provider = DB_TEXT_VALUE(SLICE_LIT("generic")),
        .base_url = DB_TEXT_VALUE(conf->upstream_url),
        .is_default = DB_INT_VALUE(1),
        .api_key = key,
    };
    int64_t id = 0;
    int err = upstream_row_insert(db, fernet, &input, &id);
    if (err)
        snprintf(error, error_size, "UPSTREAM_URL: %s", db_error(db));
    return err;
}

static int on_count(void *user, const struct db_value *row, size_t count)
{
    (void)count;
    *(int64_t *)user = row[0].integer;
    return 0;
}

static int has_default_named(struct db *db, int64_t *count)
{
    return db_each(db,
                   SLICE_LIT("SELECT count(*) FROM upstreams WHERE is_default = 1 OR "
                             "name = 'default'"),
                   NULL, 0, on_count, count);
}

int upstream_import(struct db *db, const struct conf *conf, const struct fernet *fernet,
                    char *error, size_t error_size)
{
    int64_t count = 0;
    if (conf->upstreams_json.len == 0 && conf->upstream_url.len == 0)
        return 0;
    error[0] = '\0';
    int err = db_begin(db, true);
    if (err == 0)
        err = db_each(db, SLICE_LIT("SELECT count(*) FROM upstreams"), NULL, 0, on_count, &count);
    bool is_empty = err == 0 && count == 0;
    if (is_empty && conf->upstreams_json.len)
        err = import_list(db, conf, fernet, error, error_size);
    if (is_empty && err == 0 && conf->upstream_url.len) {
        // The list may have a default of its own: then the short form adds nothing.
        err = has_default_named(db, &count);
        if (err == 0 && count == 0)
            err = import_url(db, conf, fernet, error, error_size);
    }
    if (err == 0)
        err = db_commit(db);
    if (err) {
        if (!error[0])
            snprintf(error, error_size, "import of upstreams: %s", db_error(db));
        db_rollback(db);
    }
    return err;
}
