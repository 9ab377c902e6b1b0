// Upstreams. Their keys are never shown: the mask is made when the key is stored, and a key that no
// longer decrypts is told as such.
#include "base/clock.h"
#include "state/admin_impl.h"
#include "state/upstream_row.h"

#define COLUMNS                                                                                    \
    "id, uid, name, provider, base_url, api_key_enc, key_mask, formats, models, is_default, "      \
    "is_active, timeout_s, weight, priority, passthrough, disconnect, connect_ms, tls_ms, "        \
    "first_byte_ms, event_ms, config, created_ms, updated_ms, max_concurrency"
enum column {
    C_ID,
    C_UID,
    C_NAME,
    C_PROVIDER,
    C_URL,
    C_KEY,
    C_MASK,
    C_FORMATS,
    C_MODELS,
    C_DEFAULT,
    C_ACTIVE,
    C_TIMEOUT,
    C_WEIGHT,
    C_PRIORITY,
    C_PASSTHROUGH,
    C_DISCONNECT,
    C_CONNECT,
    C_TLS,
    C_FIRST_BYTE,
    C_EVENT,
    C_CONFIG,
    C_CREATED,
    C_UPDATED,
    C_CONCURRENCY,
    C_COUNT
};

static void put_formats(struct json_out *json, struct slice formats)
{
    json_key(json, "formats");
    json_array(json);
    while (formats.len) {
        const char *comma = memchr(formats.ptr, ',', formats.len);
        struct slice name = comma ? slice_of(formats.ptr, (size_t)(comma - formats.ptr)) : formats;
        formats = slice_from(formats, name.len + 1);
        json_text(json, name);
    }
    json_array_end(json);
}

static struct db_value mask_of(struct admin_job *job, const struct db_value *row)
{
    struct buf plain = BUF_INIT(0);
    if (row[C_KEY].kind != DB_TEXT)
        return DB_NULL_VALUE;
    int err = fernet_decrypt(store_fernet(job->store), row[C_KEY].bytes, -1, 0, &plain);
    buf_wipe(&plain);
    return err ? DB_TEXT_VALUE(SLICE_LIT("***error***")) : row[C_MASK];
}

static void put_row(struct admin_job *job, struct json_out *json, const struct db_value *row)
{
    struct db_value mask = mask_of(job, row);
    json_object(json);
    admin_put(json, "id", &row[C_ID]);
    admin_put(json, "uid", &row[C_UID]);
    admin_put(json, "name", &row[C_NAME]);
    admin_put(json, "provider", &row[C_PROVIDER]);
    admin_put(json, "base_url", &row[C_URL]);
    admin_put(json, "api_key_masked", &mask);
    put_formats(json, row[C_FORMATS].bytes);
    admin_put_json(json, "models", &row[C_MODELS]);
    admin_put_bool(json, "is_default", &row[C_DEFAULT]);
    admin_put_bool(json, "is_active", &row[C_ACTIVE]);
    admin_put(json, "timeout", &row[C_TIMEOUT]);
    admin_put(json, "weight", &row[C_WEIGHT]);
    admin_put(json, "priority", &row[C_PRIORITY]);
    admin_put(json, "passthrough", &row[C_PASSTHROUGH]);
    admin_put(json, "disconnect", &row[C_DISCONNECT]);
    admin_put(json, "connect_ms", &row[C_CONNECT]);
    admin_put(json, "tls_ms", &row[C_TLS]);
    admin_put(json, "first_byte_ms", &row[C_FIRST_BYTE]);
    admin_put(json, "event_ms", &row[C_EVENT]);
    admin_put(json, "max_concurrency", &row[C_CONCURRENCY]);
    admin_put_json(json, "config", &row[C_CONFIG]);
    admin_put(json, "created_ms", &row[C_CREATED]);
    admin_put(json, "updated_ms", &row[C_UPDATED]);
    json_object_end(json);
}

static int give_row(struct db *db, struct admin_job *job, int64_t id)
{
    struct db_value args[] = {DB_INT_VALUE(id)};
    struct db_rows rows = {0};
    int err = db_run(db, SLICE_LIT("SELECT " COLUMNS " FROM upstreams WHERE id = ?"), args, 1,
                     job->arena, 1, &rows);
    if (err || rows.row_count == 0)
        return err ? err : GW_ENOTFOUND;
    struct buf text = BUF_INIT(0);
    struct json_out json;
    json_begin(&json, &text);
    put_row(job, &json, rows.values);
    return admin_finish(job, &json);
}

static int find_id(struct db *db, struct admin_job *job, yyjson_val *request, int64_t *id)
{
    struct slice uid;
    int err = admin_need_text(job, request, "uid", 64, &uid);
    if (err)
        return err;
    struct db_value args[] = {DB_TEXT_VALUE(uid)};
    err = admin_count(db, SLICE_LIT("SELECT id FROM upstreams WHERE uid = ?"), args, 1, id);
    if (err == 0 && *id == 0)
        err = admin_fail(job, GW_ENOTFOUND, "not_found", "Upstream not found");
    return err;
}

static int read_input(struct admin_job *job, yyjson_val *request, const char *skip,
                      struct upstream_input *input)
{
    int err = upstream_input_read(request, skip, job->arena, input);
    return err == GW_EINVAL ? admin_invalid(job, input->bad_field, input->why) : err;
}

static int tell_taken(struct admin_job *job, const struct upstream_input *input, int err)
{
    if (err != GW_EEXISTS)
        return err;
    return admin_fail(job, err, "invalid_request", "Upstream with name '%.*s' already exists",
                      SLICE_FMT(input->name.bytes));
}

int admin_upstream_create(struct db *db, struct admin_job *job, yyjson_val *request)
{
    struct upstream_input input;
    int64_t id = 0;
    int err = read_input(job, request, NULL, &input);
    if (err == 0 && !(input.given & UPSTREAM_NAME))
        err = admin_invalid(job, "name", "is missing");
    if (err == 0 && !(input.given & UPSTREAM_PROVIDER))
        err = admin_invalid(job, "provider", "is missing");
    if (err == 0 && !(input.given & UPSTREAM_BASE_URL))
        err = admin_invalid(job, "base_url", "is missing");
    if (err == 0)
        err =
            tell_taken(job, &input, upstream_row_insert(db, store_fernet(job->store), &input, &id));
    upstream_input_wipe(&input);
    return err ? err : give_row(db, job, id);
}

int admin_upstream_list(struct db *db, struct admin_job *job, yyjson_val *request)
{
    static const char *const names[] = {"page", "page_size", NULL};
    struct admin_page page;
    struct db_rows rows = {0};
    int64_t total = 0;
    int err = admin_only(job, request, names);
    if (err == 0)
        err = admin_page(job, request, &page);
    if (err == 0)
        err = admin_count(db, SLICE_LIT("SELECT count(*) FROM upstreams"), NULL, 0, &total);
    if (err)
        return err;
    struct db_value args[] = {DB_INT_VALUE(page.limit), DB_INT_VALUE(page.offset)};
    err = db_run(db,
                 SLICE_LIT("SELECT " COLUMNS " FROM upstreams ORDER BY created_ms DESC, id DESC "
                           "LIMIT ? OFFSET ?"),
                 args, 2, job->arena, 1000, &rows);
    if (err)
        return err;
    struct buf text = BUF_INIT(0);
    struct json_out json;
    json_begin(&json, &text);
    json_object(&json);
    json_key(&json, "items");
    json_array(&json);
    for (size_t i = 0; i < rows.row_count; i++)
        put_row(job, &json, &rows.values[i * C_COUNT]);
    json_array_end(&json);
    json_key(&json, "total");
    json_i64(&json, total);
    json_object_end(&json);
    return admin_finish(job, &json);
}

int admin_upstream_get(struct db *db, struct admin_job *job, yyjson_val *request)
{
    static const char *const names[] = {"uid", NULL};
    int64_t id = 0;
    int err = admin_only(job, request, names);
    if (err == 0)
        err = find_id(db, job, request, &id);
    return err ? err : give_row(db, job, id);
}

int admin_upstream_update(struct db *db, struct admin_job *job, yyjson_val *request)
{
    struct upstream_input input = {0};
    int64_t id = 0;
    int err = find_id(db, job, request, &id);
    if (err == 0)
        err = read_input(job, request, "uid", &input);
    if (err == 0)
        err =
            tell_taken(job, &input, upstream_row_update(db, store_fernet(job->store), id, &input));
    upstream_input_wipe(&input);
    return err ? err : give_row(db, job, id);
}

int admin_upstream_delete(struct db *db, struct admin_job *job, yyjson_val *request)
{
    static const char *const names[] = {"uid", NULL};
    int64_t id = 0;
    int err = admin_only(job, request, names);
    if (err == 0)
        err = find_id(db, job, request, &id);
    if (err)
        return err;
    struct db_value args[] = {DB_INT_VALUE(clock_wall_ms()), DB_INT_VALUE(id)};
    err = db_run(db,
                 SLICE_LIT("UPDATE upstreams SET is_active = 0, is_default = 0, updated_ms = ? "
                           "WHERE id = ?"),
                 args, 2, NULL, 0, NULL);
    if (err == 0)
        err = store_note_change(db, "upstream", id);
    return err ? err : give_row(db, job, id);
}
