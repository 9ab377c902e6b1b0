// Jobs of the admin verbs: which lane, reading the request, what the verbs share.
#include "state/admin.h"
#include "state/admin_impl.h"
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#define REQUEST_MAX (1u << 20)
#define JSON_CAP (16u << 20)

static const struct {
    admin_work work;
    enum store_lane lane;
} verbs[] = {
    [ADMIN_KEY_CREATE] = {admin_key_create, STORE_WRITE},
    [ADMIN_KEY_LIST] = {admin_key_list, STORE_READ_ADMIN},
    [ADMIN_KEY_GET] = {admin_key_get, STORE_READ_ADMIN},
    [ADMIN_KEY_UPDATE] = {admin_key_update, STORE_WRITE},
    [ADMIN_KEY_REVOKE] = {admin_key_revoke, STORE_WRITE},
    [ADMIN_UPSTREAM_CREATE] = {admin_upstream_create, STORE_WRITE},
    [ADMIN_UPSTREAM_LIST] = {admin_upstream_list, STORE_READ_ADMIN},
    [ADMIN_UPSTREAM_GET] = {admin_upstream_get, STORE_READ_ADMIN},
    [ADMIN_UPSTREAM_UPDATE] = {admin_upstream_update, STORE_WRITE},
    [ADMIN_UPSTREAM_DELETE] = {admin_upstream_delete, STORE_WRITE},
    [ADMIN_LOG_LIST] = {admin_log_list, STORE_READ_LOGS},
    [ADMIN_LOG_GET] = {admin_log_get, STORE_READ_LOGS},
    [ADMIN_LOG_PRUNE] = {admin_log_prune, STORE_WRITE_LOGS},
    [ADMIN_PRICE_PUT] = {admin_price_put, STORE_WRITE},
    [ADMIN_PRICE_LIST] = {admin_price_list, STORE_READ_ADMIN},
    [ADMIN_PRICE_DELETE] = {admin_price_delete, STORE_WRITE},
    [ADMIN_ROLLUP_LIST] = {admin_rollup_list, STORE_READ_ADMIN},
};
#define VERB_COUNT (sizeof(verbs) / sizeof(verbs[0]))

static int do_work(struct db *db, struct admin_job *job)
{
    struct json_doc *doc = NULL;
    const char *why = NULL;
    size_t at = 0;
    struct slice text = job->request_json.len ? job->request_json : SLICE_LIT("{}");
    int err = json_parse(text, JSON_CAP, &doc, &why, &at);
    if (err)
        return admin_fail(job, err == GW_ENOMEM ? err : GW_EINVAL, "invalid_request",
                          "the request is not JSON: %s", why ? why : "");
    yyjson_val *request = json_root(doc);
    err = yyjson_is_obj(request)
              ? verbs[job->verb].work(db, job, request)
              : admin_fail(job, GW_EINVAL, "invalid_request", "the request is not an object");
    json_doc_free(doc);
    return err;
}

static int run(struct db *db, struct store_job *job)
{
    struct admin_job *admin = (struct admin_job *)job;
    int err = admin->work(db, admin);
    if (err && admin->error_message.len)
        snprintf(job->error, sizeof(job->error), "%.*s",
                 (int)(admin->error_message.len > 200 ? 200 : admin->error_message.len),
                 admin->error_message.ptr);
    return err;
}

struct admin_job *admin_job_new(struct store *store, enum admin_verb verb,
                                struct slice request_json)
{
    if ((size_t)verb >= VERB_COUNT || request_json.len > REQUEST_MAX)
        return NULL;
    struct arena *arena = arena_new(4096);
    struct admin_job *job = arena ? arena_zalloc(arena, sizeof(*job)) : NULL;
    struct slice copy = job ? arena_copy(arena, request_json) : SLICE_NONE;
    if (!copy.ptr) {
        arena_free(arena);
        return NULL;
    }
    job->arena = arena;
    job->store = store;
    job->verb = verb;
    job->work = do_work;
    job->request_json = copy;
    job->job.run = run;
    job->job.lane = verbs[verb].lane;
    return job;
}

void admin_job_free(struct admin_job *job)
{
    if (!job)
        return;
    // Request and result may hold a key's text.
    secret_zero((void *)job->request_json.ptr, job->request_json.len);
    secret_zero((void *)job->result_json.ptr, job->result_json.len);
    arena_free(job->arena);
}

int admin_fail(struct admin_job *job, int err, const char *code, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    job->error_message = arena_vprintf(job->arena, format, args);
    va_end(args);
    job->error_code = slice_str(code);
    if (!job->error_message.ptr)
        job->error_message = SLICE_LIT("out of memory");
    return err;
}

int admin_invalid(struct admin_job *job, const char *field, const char *why)
{
    return admin_fail(job, GW_EINVAL, "invalid_request", "%s %s", field, why);
}

int admin_only(struct admin_job *job, yyjson_val *request, const char *const *names)
{
    size_t i, max;
    yyjson_val *key, *val;
    yyjson_obj_foreach(request, i, max, key, val)
    {
        struct slice name = json_string_slice(key);
        const char *const *known = names;
        while (*known && !slice_is(name, *known))
            known++;
        if (!*known)
            return admin_fail(job, GW_EINVAL, "invalid_request", "%.*s is unknown",
                              (int)(name.len > 64 ? 64 : name.len), name.ptr);
    }
    return 0;
}

int admin_text(struct admin_job *job, yyjson_val *request, const char *name, size_t min, size_t max,
               struct db_value *out)
{
    yyjson_val *val = yyjson_obj_get(request, name);
    struct slice text = json_string_slice(val);
    *out = DB_NULL_VALUE;
    if (!val || yyjson_is_null(val))
        return 0;
    if (!text.ptr)
        return admin_invalid(job, name, "must be a text");
    if (text.len < min)
        return admin_invalid(job, name, "must not be empty");
    if (text.len > max)
        return admin_fail(job, GW_EINVAL, "invalid_request", "%s is longer than %zu bytes", name,
                          max);
    text = arena_copy(job->arena, text);
    *out = DB_TEXT_VALUE(text);
    return text.ptr ? 0 : GW_ENOMEM;
}

int admin_need_text(struct admin_job *job, yyjson_val *request, const char *name, size_t max,
                    struct slice *out)
{
    struct db_value value;
    int err = admin_text(job, request, name, 1, max, &value);
    if (err == 0 && value.kind == DB_NULL)
        err = admin_invalid(job, name, "is missing");
    *out = value.bytes;
    return err;
}

int admin_whole(struct admin_job *job, yyjson_val *request, const char *name, int64_t min,
                int64_t max, struct db_value *out)
{
    yyjson_val *val = yyjson_obj_get(request, name);
    int64_t number = 0;
    *out = DB_NULL_VALUE;
    if (!val || yyjson_is_null(val))
        return 0;
    if (json_get_i64(val, &number) != 0 || number < min || number > max)
        return admin_fail(job, GW_EINVAL, "invalid_request",
                          "%s must be a whole number from %lld to %lld", name, (long long)min,
                          (long long)max);
    *out = DB_INT_VALUE(number);
    return 0;
}

int admin_bool(struct admin_job *job, yyjson_val *request, const char *name, struct db_value *out)
{
    yyjson_val *val = yyjson_obj_get(request, name);
    *out = DB_NULL_VALUE;
    if (!val || yyjson_is_null(val))
        return 0;
    if (!yyjson_is_bool(val))
        return admin_invalid(job, name, "must be true or false");
    *out = DB_INT_VALUE(yyjson_is_true(val));
    return 0;
}

int admin_page(struct admin_job *job, yyjson_val *request, struct admin_page *out)
{
    struct db_value page, size;
    int err = admin_whole(job, request, "page", 1, 1000000, &page);
    if (err == 0)
        err = admin_whole(job, request, "page_size", 1, 1000, &size);
    if (err)
        return err;
    out->limit = size.kind == DB_INT ? size.integer : 20;
    out->offset = page.kind == DB_INT ? (page.integer - 1) * out->limit : 0;
    return 0;
}

void admin_put(struct json_out *json, const char *name, const struct db_value *value)
{
    json_key(json, name);
    switch (value->kind) {
    case DB_INT: json_i64(json, value->integer); break;
    case DB_REAL: json_double(json, value->real); break;
    case DB_TEXT: json_text(json, value->bytes); break;
    default: json_null(json); break;
    }
}

void admin_put_bool(struct json_out *json, const char *name, const struct db_value *value)
{
    json_key(json, name);
    json_bool(json, value->kind == DB_INT && value->integer);
}

void admin_put_json(struct json_out *json, const char *name, const struct db_value *value)
{
    json_key(json, name);
    if (value->kind == DB_TEXT && value->bytes.len)
        json_raw(json, value->bytes);
    else
        json_null(json);
}

int admin_finish(struct admin_job *job, struct json_out *json)
{
    int err = json_end(json);
    if (err == 0) {
        job->result_json = arena_copy(job->arena, buf_slice(json->buf));
        err = job->result_json.ptr ? 0 : GW_ENOMEM;
    }
    buf_wipe(json->buf);
    return err;
}

static int on_number(void *user, const struct db_value *row, size_t count)
{
    (void)count;
    *(int64_t *)user = row[0].integer;
    return 0;
}

int admin_count(struct db *db, struct slice sql, const struct db_value *args, size_t count,
                int64_t *out)
{
    *out = 0;
    return db_each(db, sql, args, count, on_number, out);
}
