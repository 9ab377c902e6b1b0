// Prices. A change retires the living version and adds a new one, because log rows name versions.
#include "base/clock.h"
#include "base/money.h"
#include "state/admin_impl.h"
#include "state/upstream_row.h"
#include <stdio.h>

#define MODEL_MAX 256
#define FIELDS 10
#define COLUMNS                                                                                    \
    "id, model, input, output, cache_read, cache_write_5m, cache_write_1h, reasoning, audio_in, "  \
    "audio_out, image_in, per_call, max_output, source, valid_from_ms"

static const char *const fields[FIELDS] = {
    "input",     "output",   "cache_read", "cache_write_5m", "cache_write_1h",
    "reasoning", "audio_in", "audio_out",  "image_in",       "per_call",
};

static void put_row(struct json_out *json, const struct db_value *row)
{
    json_object(json);
    admin_put(json, "version", &row[0]);
    admin_put(json, "model", &row[1]);
    for (size_t i = 0; i < FIELDS; i++) {
        char name[32];
        snprintf(name, sizeof(name), "%s_nano", fields[i]);
        admin_put(json, name, &row[2 + i]);
    }
    admin_put(json, "max_output", &row[2 + FIELDS]);
    admin_put(json, "source", &row[3 + FIELDS]);
    admin_put(json, "valid_from_ms", &row[4 + FIELDS]);
    json_object_end(json);
}

// USD as a decimal text or number, read exactly.
static int read_money(struct admin_job *job, yyjson_val *request, const char *name,
                      struct db_value *out)
{
    yyjson_val *val = yyjson_obj_get(request, name);
    int64_t nano = 0;
    *out = DB_NULL_VALUE;
    if (!val || yyjson_is_null(val))
        return 0;
    struct slice text = yyjson_is_str(val) ? json_string_slice(val) : json_number_text(val);
    if (text.len == 0 || text.len > 64 || money_parse(text, &nano) != 0 || nano < 0)
        return admin_invalid(job, name,
                             "must be a decimal of at least 0 with at most 9 digits "
                             "after the point");
    *out = DB_INT_VALUE(nano);
    return 0;
}

static int read_living(struct db *db, struct admin_job *job, struct slice model,
                       struct db_rows *rows)
{
    struct db_value args[] = {DB_TEXT_VALUE(model)};
    return db_run(
        db, SLICE_LIT("SELECT " COLUMNS " FROM prices WHERE model = ? AND retired_ms IS NULL"),
        args, 1, job->arena, 1, rows);
}

static int retire(struct db *db, int64_t id)
{
    struct db_value args[] = {DB_INT_VALUE(clock_wall_ms()), DB_INT_VALUE(id)};
    return db_run(db, SLICE_LIT("UPDATE prices SET retired_ms = ? WHERE id = ?"), args, 2, NULL, 0,
                  NULL);
}

static bool is_same(const struct db_value *a, const struct db_value *b)
{
    return a->kind == b->kind && a->integer == b->integer && slice_eq(a->bytes, b->bytes);
}

int admin_price_put(struct db *db, struct admin_job *job, yyjson_val *request)
{
    static const char *const names[] = {
        "model",          "input",      "output",   "cache_read", "cache_write_5m",
        "cache_write_1h", "reasoning",  "audio_in", "audio_out",  "image_in",
        "per_call",       "max_output", "source",   NULL,
    };
    struct db_value args[FIELDS + 4];
    struct db_rows rows = {0};
    struct slice model;
    int err = admin_only(job, request, names);
    if (err == 0)
        err = admin_need_text(job, request, "model", MODEL_MAX, &model);
    for (size_t i = 0; i < FIELDS && err == 0; i++)
        err = read_money(job, request, fields[i], &args[1 + i]);
    if (err == 0)
        err = admin_whole(job, request, "max_output", 1, INT64_C(1) << 40, &args[1 + FIELDS]);
    if (err == 0)
        err = admin_text(job, request, "source", 0, 1024, &args[2 + FIELDS]);
    if (err)
        return err;
    bool has_tokens = args[1].kind == DB_INT && args[2].kind == DB_INT;
    if (!has_tokens && args[FIELDS].kind != DB_INT)
        return admin_invalid(job, "input and output, or per_call,", "are needed");
    err = read_living(db, job, model, &rows);
    bool is_unchanged = err == 0 && rows.row_count == 1;
    for (size_t i = 0; i < FIELDS + 2 && is_unchanged; i++)
        is_unchanged = is_same(&rows.values[2 + i], &args[1 + i]);
    if (err == 0 && !is_unchanged) {
        if (rows.row_count)
            err = retire(db, rows.values[0].integer);
        args[0] = DB_TEXT_VALUE(model);
        args[3 + FIELDS] = DB_INT_VALUE(clock_wall_ms());
        if (err == 0)
            err = db_run(db,
                         SLICE_LIT("INSERT INTO prices (model, input, output, cache_read, "
                                   "cache_write_5m, cache_write_1h, reasoning, audio_in, "
                                   "audio_out, image_in, per_call, max_output, source, "
                                   "valid_from_ms) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?)"),
                         args, FIELDS + 4, NULL, 0, NULL);
        if (err == 0)
            err = store_note_change(db, "price", db_last_id(db));
        if (err == 0)
            err = read_living(db, job, model, &rows);
    }
    if (err || rows.row_count == 0)
        return err ? err : GW_EINTERNAL;
    struct buf text = BUF_INIT(0);
    struct json_out json;
    json_begin(&json, &text);
    put_row(&json, rows.values);
    return admin_finish(job, &json);
}

int admin_price_list(struct db *db, struct admin_job *job, yyjson_val *request)
{
    static const char *const names[] = {NULL};
    struct db_rows rows = {0};
    int err = admin_only(job, request, names);
    if (err == 0)
        err = db_run(db,
                     SLICE_LIT("SELECT " COLUMNS " FROM prices WHERE retired_ms IS NULL "
                               "ORDER BY model"),
                     NULL, 0, job->arena, 0, &rows);
    if (err)
        return err;
    struct buf text = BUF_INIT(0);
    struct json_out json;
    json_begin(&json, &text);
    json_object(&json);
    json_key(&json, "items");
    json_array(&json);
    for (size_t i = 0; i < rows.row_count; i++)
        put_row(&json, &rows.values[i * rows.column_count]);
    json_array_end(&json);
    json_object_end(&json);
    return admin_finish(job, &json);
}

int admin_price_delete(struct db *db, struct admin_job *job, yyjson_val *request)
{
    static const char *const names[] = {"model", NULL};
    struct db_rows rows = {0};
    struct slice model;
    int err = admin_only(job, request, names);
    if (err == 0)
        err = admin_need_text(job, request, "model", MODEL_MAX, &model);
    if (err == 0)
        err = read_living(db, job, model, &rows);
    if (err == 0 && rows.row_count == 0)
        err = admin_fail(job, GW_ENOTFOUND, "not_found", "Price not found");
    if (err == 0)
        err = retire(db, rows.values[0].integer);
    if (err == 0)
        err = store_note_change(db, "price", rows.values[0].integer);
    if (err)
        return err;
    struct buf text = BUF_INIT(0);
    struct json_out json;
    json_begin(&json, &text);
    put_row(&json, rows.values);
    return admin_finish(job, &json);
}
