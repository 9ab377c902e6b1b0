#pragma once
// What the files of the admin verbs share. Nobody else includes it.
#include "codec/json.h"
#include "state/admin.h"

typedef int (*admin_work)(struct db *db, struct admin_job *job, yyjson_val *request);

// Each fills job->result_json, or gives an error and its text.
int admin_key_create(struct db *db, struct admin_job *job, yyjson_val *request);
int admin_key_list(struct db *db, struct admin_job *job, yyjson_val *request);
int admin_key_get(struct db *db, struct admin_job *job, yyjson_val *request);
int admin_key_update(struct db *db, struct admin_job *job, yyjson_val *request);
int admin_key_revoke(struct db *db, struct admin_job *job, yyjson_val *request);
int admin_upstream_create(struct db *db, struct admin_job *job, yyjson_val *request);
int admin_upstream_list(struct db *db, struct admin_job *job, yyjson_val *request);
int admin_upstream_get(struct db *db, struct admin_job *job, yyjson_val *request);
int admin_upstream_update(struct db *db, struct admin_job *job, yyjson_val *request);
int admin_upstream_delete(struct db *db, struct admin_job *job, yyjson_val *request);
int admin_log_list(struct db *db, struct admin_job *job, yyjson_val *request);
int admin_log_get(struct db *db, struct admin_job *job, yyjson_val *request);
int admin_log_prune(struct db *db, struct admin_job *job, yyjson_val *request);
int admin_price_put(struct db *db, struct admin_job *job, yyjson_val *request);
int admin_price_list(struct db *db, struct admin_job *job, yyjson_val *request);
int admin_price_delete(struct db *db, struct admin_job *job, yyjson_val *request);
int admin_rollup_list(struct db *db, struct admin_job *job, yyjson_val *request);

// The error of a job: code constant, message formatted. Gives err.
int admin_fail(struct admin_job *job, int err, const char *code, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
int admin_invalid(struct admin_job *job, const char *field, const char *why);
// GW_EINVAL when the request has a member that is not in the list (ended by NULL).
int admin_only(struct admin_job *job, yyjson_val *request, const char *const *names);
// Members; absent and null give DB_NULL. Range and length errors are told by name.
int admin_text(struct admin_job *job, yyjson_val *request, const char *name, size_t min, size_t max,
               struct db_value *out);
int admin_whole(struct admin_job *job, yyjson_val *request, const char *name, int64_t min,
                int64_t max, struct db_value *out);
int admin_bool(struct admin_job *job, yyjson_val *request, const char *name, struct db_value *out);
int admin_need_text(struct admin_job *job, yyjson_val *request, const char *name, size_t max,
                    struct slice *out);
struct admin_page {
    int64_t limit, offset;
};
int admin_page(struct admin_job *job, yyjson_val *request, struct admin_page *out);

// A member of any kind of value; booleans by their own function.
void admin_put(struct json_out *json, const char *name, const struct db_value *value);
void admin_put_bool(struct json_out *json, const char *name, const struct db_value *value);
// Text that holds JSON, null when there is none.
void admin_put_json(struct json_out *json, const char *name, const struct db_value *value);
// Moves the text into the job's arena and frees buf.
int admin_finish(struct admin_job *job, struct json_out *json);
int admin_count(struct db *db, struct slice sql, const struct db_value *args, size_t count,
                int64_t *out);
