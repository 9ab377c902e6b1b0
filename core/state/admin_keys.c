// Client keys. The text of a key leaves once, in the answer to its creation; the row has its hash.
#include "base/clock.h"
#include "base/id.h"
#include "codec/secret.h"
#include "state/admin_impl.h"
#include "state/upstream_row.h"
#include <stdlib.h>

#define UPSTREAMS_MAX 1000
#define MODELS_MAX 1000
#define PREFIX_LEN 12

#define COLUMNS                                                                                    \
    "id, uid, key_prefix, key_display, name, description, scheme, user_id, has_upstream_list, "    \
    "is_active, revoked_ms, expires_ms, allowed_models, rpm, rpd, request_count, token_count, "    \
    "cost_nano, last_used_ms, created_ms, updated_ms"
enum column {
    C_ID,
    C_UID,
    C_PREFIX,
    C_DISPLAY,
    C_NAME,
    C_DESCRIPTION,
    C_SCHEME,
    C_USER,
    C_HAS_LIST,
    C_ACTIVE,
    C_REVOKED,
    C_EXPIRES,
    C_MODELS,
    C_RPM,
    C_RPD,
    C_REQUESTS,
    C_TOKENS,
    C_COST,
    C_LAST_USED,
    C_CREATED,
    C_UPDATED,
    C_COUNT
};

// What create and update have in common.
struct key_input {
    struct db_value name, description, expires_ms, user_id, allowed_models, rpm, rpd, is_active;
    bool has_upstreams, is_list; // given; not null
    int64_t *upstream_ids;
    size_t upstream_count;
};

static bool is_given(yyjson_val *request, const char *name)
{
    return yyjson_obj_get(request, name) != NULL;
}

static int on_id(void *user, const struct db_value *row, size_t count)
{
    (void)count;
    *(int64_t *)user = row[0].integer;
    return 0;
}

// Active upstreams by uid or name; all that are unknown are named together.
static int find_upstreams(struct db *db, struct admin_job *job, yyjson_val *list, bool by_uid,
                          struct key_input *input)
{
    const char *what = by_uid ? "upstream_ids" : "upstreams";
    struct slice sql = by_uid
                           ? SLICE_LIT("SELECT id FROM upstreams WHERE uid = ? AND is_active = 1")
                           : SLICE_LIT("SELECT id FROM upstreams WHERE name = ? AND is_active = 1");
    size_t i, max, bad_count = 0;
    yyjson_val *item;
    struct slice bad = SLICE_LIT("");
    if (!yyjson_is_arr(list) || yyjson_arr_size(list) == 0 || yyjson_arr_size(list) > UPSTREAMS_MAX)
        return admin_invalid(job, what, "must be a list of 1 to 1000 texts");
    input->upstream_ids = arena_alloc(job->arena, yyjson_arr_size(list) * sizeof(int64_t));
    if (!input->upstream_ids)
        return GW_ENOMEM;
    yyjson_arr_foreach(list, i, max, item)
    {
        struct slice text = json_string_slice(item);
        struct db_value args[] = {DB_TEXT_VALUE(text)};
        int64_t id = 0;
        if (!text.ptr || text.len > 64)
            return admin_invalid(job, what, "must be a list of 1 to 1000 texts");
        int err = db_each(db, sql, args, 1, on_id, &id);
        if (err)
            return err;
        if (id) {
            input->upstream_ids[input->upstream_count++] = id;
        } else if (bad_count++ < 20) {
            bad = arena_printf(job->arena, "%.*s%s'%.*s'", SLICE_FMT(bad), bad.len ? ", " : "",
                               SLICE_FMT(text));
            if (!bad.ptr)
                return GW_ENOMEM;
        }
    }
    if (bad_count)
        return admin_fail(job, GW_EINVAL, "invalid_request",
                          by_uid ? "Invalid or inactive upstream IDs: [%.*s]"
                                 : "Invalid or inactive upstreams: [%.*s]",
                          SLICE_FMT(bad));
    return 0;
}

static int read_models(struct admin_job *job, yyjson_val *request, struct key_input *input)
{
    yyjson_val *list = yyjson_obj_get(request, "allowed_models"), *item;
    size_t i, max, len = 0;
    if (!list || yyjson_is_null(list) || (yyjson_is_arr(list) && yyjson_arr_size(list) == 0))
        return 0;
    if (!yyjson_is_arr(list) || yyjson_arr_size(list) > MODELS_MAX)
        return admin_invalid(job, "allowed_models", "must be a list of names");
    yyjson_arr_foreach(list, i, max, item)
    {
        struct slice name = json_string_slice(item);
        if (!name.len || name.len > 256)
            return admin_invalid(job, "allowed_models", "must be a list of names");
    }
    char *text = yyjson_val_write(list, 0, &len);
    struct slice copy = text ? arena_copy(job->arena, slice_of(text, len)) : SLICE_NONE;
    free(text);
    input->allowed_models = DB_TEXT_VALUE(copy);
    return copy.ptr ? 0 : GW_ENOMEM;
}

static int read_input(struct db *db, struct admin_job *job, yyjson_val *request,
                      struct key_input *input)
{
    yyjson_val *uids = yyjson_obj_get(request, "upstream_ids");
    yyjson_val *names = yyjson_obj_get(request, "upstreams");
    *input = (struct key_input){0};
    int err = admin_text(job, request, "name", 1, 255, &input->name);
    if (err == 0)
        err = admin_text(job, request, "description", 0, 4096, &input->description);
    if (err == 0)
        err = admin_whole(job, request, "expires_at_ms", 0, INT64_C(253402300799999),
                          &input->expires_ms);
    if (err == 0)
        err = admin_whole(job, request, "user_id", 1, INT64_MAX, &input->user_id);
    if (err == 0)
        err = admin_whole(job, request, "rpm", 0, 1000000000, &input->rpm);
    if (err == 0)
        err = admin_whole(job, request, "rpd", 0, 1000000000, &input->rpd);
    if (err == 0)
        err = admin_bool(job, request, "is_active", &input->is_active);
    if (err == 0)
        err = read_models(job, request, input);
    input->has_upstreams = uids || names;
    if (err == 0 && uids && !yyjson_is_null(uids)) {
        input->is_list = true;
        err = find_upstreams(db, job, uids, true, input);
    } else if (err == 0 && names && !yyjson_is_null(names)) {
        input->is_list = true;
        err = find_upstreams(db, job, names, false, input);
    }
    return err;
}

static int put_upstreams(struct db *db, int64_t key_id, const struct key_input *input)
{
    struct db_value args[] = {DB_INT_VALUE(key_id), DB_NULL_VALUE, DB_INT_VALUE(clock_wall_ms())};
    int err = db_run(db, SLICE_LIT("DELETE FROM api_key_upstreams WHERE api_key_id = ?"), args, 1,
                     NULL, 0, NULL);
    for (size_t i = 0; i < input->upstream_count && err == 0; i++) {
        args[1] = DB_INT_VALUE(input->upstream_ids[i]);
        err = db_run(db,
                     SLICE_LIT("INSERT OR IGNORE INTO api_key_upstreams (api_key_id, upstream_id, "
                               "created_ms) VALUES (?, ?, ?)"),
                     args, 3, NULL, 0, NULL);
    }
    return err;
}

static int on_upstream(void *user, const struct db_value *row, size_t count)
{
    (void)count;
    json_text(user, row[0].bytes);
    return 0;
}

// key_value: the whole key, only after its creation.
static int put_row(struct db *db, struct json_out *json, const struct db_value *row,
                   struct slice key_value)
{
    struct db_value args[] = {row[C_ID]};
    json_object(json);
    if (key_value.len) {
        json_key(json, "key_value");
        json_text(json, key_value);
    }
    admin_put(json, "id", &row[C_ID]);
    admin_put(json, "uid", &row[C_UID]);
    admin_put(json, "key_prefix", &row[C_PREFIX]);
    admin_put(json, "key_display", &row[C_DISPLAY]);
    admin_put(json, "name", &row[C_NAME]);
    admin_put(json, "description", &row[C_DESCRIPTION]);
    admin_put(json, "scheme", &row[C_SCHEME]);
    admin_put(json, "user_id", &row[C_USER]);
    admin_put_bool(json, "has_upstream_list", &row[C_HAS_LIST]);
    json_key(json, "upstream_ids");
    json_array(json);
    int err = db_each(db,
                      SLICE_LIT("SELECT u.uid FROM api_key_upstreams l JOIN upstreams u ON "
                                "u.id = l.upstream_id WHERE l.api_key_id = ? ORDER BY u.id"),
                      args, 1, on_upstream, json);
    json_array_end(json);
    json_key(json, "upstreams");
    json_array(json);
    if (err == 0)
        err = db_each(db,
                      SLICE_LIT("SELECT u.name FROM api_key_upstreams l JOIN upstreams u ON "
                                "u.id = l.upstream_id WHERE l.api_key_id = ? ORDER BY u.id"),
                      args, 1, on_upstream, json);
    json_array_end(json);
    admin_put_bool(json, "is_active", &row[C_ACTIVE]);
    admin_put(json, "revoked_ms", &row[C_REVOKED]);
    admin_put(json, "expires_ms", &row[C_EXPIRES]);
    admin_put_json(json, "allowed_models", &row[C_MODELS]);
    admin_put(json, "rpm", &row[C_RPM]);
    admin_put(json, "rpd", &row[C_RPD]);
    admin_put(json, "request_count", &row[C_REQUESTS]);
    admin_put(json, "token_count", &row[C_TOKENS]);
    admin_put(json, "cost_nano", &row[C_COST]);
    admin_put(json, "last_used_ms", &row[C_LAST_USED]);
    admin_put(json, "created_ms", &row[C_CREATED]);
    admin_put(json, "updated_ms", &row[C_UPDATED]);
    json_object_end(json);
    return err;
}

// One row by uid. GW_ENOTFOUND.
static int find_row(struct db *db, struct admin_job *job, yyjson_val *request, struct db_rows *rows)
{
    struct slice uid;
    int err = admin_need_text(job, request, "uid", 64, &uid);
    if (err)
        return err;
    struct db_value args[] = {DB_TEXT_VALUE(uid)};
    err = db_run(db, SLICE_LIT("SELECT " COLUMNS " FROM api_keys WHERE uid = ?"), args, 1,
                 job->arena, 1, rows);
    if (err == 0 && rows->row_count == 0)
        err = admin_fail(job, GW_ENOTFOUND, "not_found", "API key not found");
    return err;
}

static int give_row(struct db *db, struct admin_job *job, int64_t id, struct slice key_value)
{
    struct db_value args[] = {DB_INT_VALUE(id)};
    struct db_rows rows = {0};
    struct buf text = BUF_INIT(0);
    struct json_out json;
    json_begin(&json, &text);
    int err = db_run(db, SLICE_LIT("SELECT " COLUMNS " FROM api_keys WHERE id = ?"), args, 1,
                     job->arena, 1, &rows);
    if (err == 0 && rows.row_count == 1) {
        err = put_row(db, &json, rows.values, key_value);
    } else if (err == 0) {
        err = GW_ENOTFOUND;
    }
    int end_err = admin_finish(job, &json);
    return err ? err : end_err;
}

static int read_scheme(struct admin_job *job, yyjson_val *request, struct db_value *name,
                       enum secret_scheme *scheme)
{
    static const char *const names[] = {"auto", "sk", "ahg"};
    int err = admin_text(job, request, "scheme", 1, 16, name);
    if (err == 0 && name->kind == DB_NULL)
        *name = DB_TEXT_VALUE(SLICE_LIT("auto"));
    for (int i = 0; i < 3 && err == 0; i++) {
        if (slice_is(name->bytes, names[i])) {
            *scheme = (enum secret_scheme)i;
            return 0;
        }
    }
    return err ? err : admin_invalid(job, "scheme", "must be auto, sk or ahg");
}

static struct slice display_of(struct admin_job *job, enum secret_scheme scheme, struct slice key)
{
    const char *end = key.ptr + key.len;
    switch (scheme) {
    case SECRET_KEY_SK: // sk-abcd...wxyz
        return arena_printf(job->arena, "%.7s...%.4s", key.ptr, end - 4);
    case SECRET_KEY_AHG: return arena_printf(job->arena, "%.20s...%.8s", key.ptr, end - 8);
    default: return arena_printf(job->arena, "%.*s****", PREFIX_LEN, key.ptr);
    }
}

static int insert_key(struct db *db, struct admin_job *job, const struct key_input *input,
                      struct db_value scheme_name, enum secret_scheme scheme, struct slice key)
{
    struct gw_id random_id;
    struct sha256 hash;
    char uid[37];
    int64_t now_ms = clock_wall_ms();
    int err = id_new_random(&random_id);
    if (err == 0)
        err = secret_sha256(key, &hash);
    if (err)
        return err;
    id_format(&random_id, uid);
    struct slice display = display_of(job, scheme, key);
    if (!display.ptr)
        return GW_ENOMEM;
    struct db_value zero = DB_INT_VALUE(0);
    const struct db_value args[] = {
        DB_TEXT_VALUE(slice_str(uid)),
        input->user_id,
        scheme_name,
        DB_BLOB_VALUE(slice_of((const char *)hash.bytes, sizeof(hash.bytes))),
        DB_TEXT_VALUE(slice_of(key.ptr, PREFIX_LEN)),
        DB_TEXT_VALUE(display),
        input->name,
        input->description,
        DB_INT_VALUE(input->is_active.kind == DB_NULL || input->is_active.integer),
        input->expires_ms,
        DB_INT_VALUE(input->is_list),
        input->rpm.kind == DB_NULL ? zero : input->rpm,
        input->rpd.kind == DB_NULL ? zero : input->rpd,
        input->allowed_models,
        DB_INT_VALUE(now_ms),
        DB_INT_VALUE(now_ms),
    };
    return db_run(db,
                  SLICE_LIT("INSERT INTO api_keys (uid, user_id, scheme, key_hash, key_prefix, "
                            "key_display, name, description, is_active, expires_ms, "
                            "has_upstream_list, rpm, rpd, allowed_models, created_ms, updated_ms) "
                            "VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)"),
                  args, sizeof(args) / sizeof(args[0]), NULL, 0, NULL);
}

static int check_user(struct db *db, struct admin_job *job, const struct key_input *input)
{
    int64_t found = 0;
    if (input->user_id.kind == DB_NULL)
        return 0;
    int err = admin_count(db, SLICE_LIT("SELECT count(*) FROM users WHERE id = ?"), &input->user_id,
                          1, &found);
    return err || found ? err : admin_invalid(job, "user_id", "names no user");
}

int admin_key_create(struct db *db, struct admin_job *job, yyjson_val *request)
{
    static const char *const names[] = {"name",   "description",    "upstream_ids", "upstreams",
                                        "scheme", "expires_at_ms",  "user_id",      "rpm",
                                        "rpd",    "allowed_models", "is_active",    NULL};
    struct key_input input;
    struct db_value scheme_name;
    enum secret_scheme scheme = SECRET_KEY_AUTO;
    int err = admin_only(job, request, names);
    if (err == 0)
        err = read_input(db, job, request, &input);
    if (err == 0 && input.name.kind == DB_NULL)
        err = admin_invalid(job, "name", "is missing");
    if (err == 0)
        err = read_scheme(job, request, &scheme_name, &scheme);
    if (err == 0)
        err = check_user(db, job, &input);
    if (err)
        return err;
    struct buf key = BUF_INIT(0);
    err = secret_new_key(scheme, &key);
    if (err == 0)
        err = insert_key(db, job, &input, scheme_name, scheme, buf_slice(&key));
    int64_t id = db_last_id(db);
    if (err == 0)
        err = put_upstreams(db, id, &input);
    if (err == 0)
        err = store_note_change(db, "key", id);
    if (err == 0)
        err = give_row(db, job, id, buf_slice(&key));
    buf_wipe(&key);
    return err;
}

int admin_key_list(struct db *db, struct admin_job *job, yyjson_val *request)
{
    static const char *const names[] = {"page",      "page_size", "search",
                                        "is_active", "user_id",   NULL};
    struct admin_page page;
    struct db_value search, active, user_id;
    int64_t total = 0;
    int err = admin_only(job, request, names);
    if (err == 0)
        err = admin_page(job, request, &page);
    if (err == 0)
        err = admin_text(job, request, "search", 0, 255, &search);
    if (err == 0)
        err = admin_bool(job, request, "is_active", &active);
    if (err == 0)
        err = admin_whole(job, request, "user_id", 1, INT64_MAX, &user_id);
    if (err)
        return err;
    if (search.kind == DB_TEXT && search.bytes.len == 0)
        search = DB_NULL_VALUE;
    // Only what is asked for stands in the text, so that each combination can use its index: a
    // condition that may be NULL would read a million rows.
    struct slice where = arena_printf(
        job->arena, "%s%s%s", user_id.kind == DB_NULL ? " AND ?1 IS NULL" : " AND user_id = ?1",
        active.kind == DB_NULL ? " AND ?2 IS NULL" : " AND +is_active = ?2",
        search.kind == DB_NULL ? " AND ?3 IS NULL"
                               : " AND (instr(lower(name), lower(?3)) > 0 OR "
                                 "instr(key_prefix, ?3) > 0)");
    struct slice count =
        arena_printf(job->arena, "SELECT count(*) FROM api_keys WHERE 1%.*s", SLICE_FMT(where));
    struct slice list = arena_printf(job->arena,
                                     "SELECT " COLUMNS " FROM api_keys WHERE 1%.*s "
                                     "ORDER BY created_ms DESC, id DESC LIMIT ?4 OFFSET ?5",
                                     SLICE_FMT(where));
    if (!where.ptr || !count.ptr || !list.ptr)
        return GW_ENOMEM;
    const struct db_value args[] = {user_id, active, search, DB_INT_VALUE(page.limit),
                                    DB_INT_VALUE(page.offset)};
    err = admin_count(db, count, args, 3, &total);
    struct db_rows rows = {0};
    if (err == 0)
        err = db_run(db, list, args, 5, job->arena, 1000, &rows);
    struct buf text = BUF_INIT(0);
    struct json_out json;
    json_begin(&json, &text);
    json_object(&json);
    json_key(&json, "items");
    json_array(&json);
    for (size_t i = 0; i < rows.row_count && err == 0; i++)
        err = put_row(db, &json, &rows.values[i * C_COUNT], SLICE_NONE);
    json_array_end(&json);
    json_key(&json, "total");
    json_i64(&json, total);
    json_object_end(&json);
    int end_err = admin_finish(job, &json);
    return err ? err : end_err;
}

int admin_key_get(struct db *db, struct admin_job *job, yyjson_val *request)
{
    static const char *const names[] = {"uid", NULL};
    struct db_rows rows = {0};
    int err = admin_only(job, request, names);
    if (err == 0)
        err = find_row(db, job, request, &rows);
    return err ? err : give_row(db, job, rows.values[C_ID].integer, SLICE_NONE);
}

int admin_key_update(struct db *db, struct admin_job *job, yyjson_val *request)
{
    static const char *const names[] = {
        "uid",     "name", "description", "upstream_ids",   "upstreams", "expires_at_ms",
        "user_id", "rpm",  "rpd",         "allowed_models", "is_active", NULL};
    struct db_rows rows = {0};
    struct key_input input;
    int err = admin_only(job, request, names);
    if (err == 0)
        err = find_row(db, job, request, &rows);
    if (err == 0)
        err = read_input(db, job, request, &input);
    if (err == 0)
        err = check_user(db, job, &input);
    if (err)
        return err;
    int64_t id = rows.values[C_ID].integer;
    if (rows.values[C_REVOKED].kind != DB_NULL && input.is_active.kind == DB_INT &&
        input.is_active.integer)
        return admin_invalid(job, "is_active", "cannot be set: the key has been revoked");
    struct db_value zero = DB_INT_VALUE(0);
    const struct db_value args[] = {
        DB_INT_VALUE(input.name.kind != DB_NULL),
        input.name,
        DB_INT_VALUE(is_given(request, "description")),
        input.description,
        DB_INT_VALUE(is_given(request, "expires_at_ms")),
        input.expires_ms,
        DB_INT_VALUE(is_given(request, "user_id")),
        input.user_id,
        DB_INT_VALUE(is_given(request, "rpm")),
        input.rpm.kind == DB_NULL ? zero : input.rpm,
        DB_INT_VALUE(is_given(request, "rpd")),
        input.rpd.kind == DB_NULL ? zero : input.rpd,
        DB_INT_VALUE(is_given(request, "allowed_models")),
        input.allowed_models,
        DB_INT_VALUE(input.is_active.kind != DB_NULL),
        input.is_active,
        DB_INT_VALUE(input.has_upstreams),
        DB_INT_VALUE(input.is_list),
        DB_INT_VALUE(clock_wall_ms()),
        DB_INT_VALUE(id),
    };
    err = db_run(db,
                 SLICE_LIT("UPDATE api_keys SET name = CASE WHEN ? THEN ? ELSE name END, "
                           "description = CASE WHEN ? THEN ? ELSE description END, "
                           "expires_ms = CASE WHEN ? THEN ? ELSE expires_ms END, "
                           "user_id = CASE WHEN ? THEN ? ELSE user_id END, "
                           "rpm = CASE WHEN ? THEN ? ELSE rpm END, "
                           "rpd = CASE WHEN ? THEN ? ELSE rpd END, "
                           "allowed_models = CASE WHEN ? THEN ? ELSE allowed_models END, "
                           "is_active = CASE WHEN ? THEN ? ELSE is_active END, "
                           "has_upstream_list = CASE WHEN ? THEN ? ELSE has_upstream_list END, "
                           "updated_ms = ? WHERE id = ?"),
                 args, sizeof(args) / sizeof(args[0]), NULL, 0, NULL);
    if (err == 0 && input.has_upstreams)
        err = put_upstreams(db, id, &input);
    if (err == 0)
        err = store_note_change(db, "key", id);
    return err ? err : give_row(db, job, id, SLICE_NONE);
}

int admin_key_revoke(struct db *db, struct admin_job *job, yyjson_val *request)
{
    static const char *const names[] = {"uid", NULL};
    struct db_rows rows = {0};
    int err = admin_only(job, request, names);
    if (err == 0)
        err = find_row(db, job, request, &rows);
    if (err)
        return err;
    int64_t id = rows.values[C_ID].integer;
    struct db_value args[] = {DB_INT_VALUE(clock_wall_ms()), DB_INT_VALUE(id)};
    err = db_run(db,
                 SLICE_LIT("UPDATE api_keys SET is_active = 0, "
                           "revoked_ms = coalesce(revoked_ms, ?1), updated_ms = ?1 WHERE id = ?2"),
                 args, 2, NULL, 0, NULL);
    if (err == 0)
        err = store_note_change(db, "key", id);
    return err ? err : give_row(db, job, id, SLICE_NONE);
}
