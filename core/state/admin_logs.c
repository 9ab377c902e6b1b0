// Request logs (on the lanes of logs.db, where main.db is attached as `state`) and rollups. The
// text of a query is put together from constant pieces only, so that each filter can use its index;
// values are always bound.
#include "base/id.h"
#include "state/admin_impl.h"
#include <stdio.h>

#define TOTAL_CAP 100000
// Up to so many rows of a key, user or error are looked at one by one for the other filters.
#define FEW_ROWS 20000
#define PRUNE_STEP 2000
#define ROLLUPS_MAX 20000
#define SECOND_MS INT64_C(1000)

#define COLUMNS                                                                                    \
    "l.seq, l.exchange_id, l.created_ms, l.user_id, k.uid, k.name, l.key_prefix, u.uid, u.name, "  \
    "l.request_id, l.client_ip, l.user_agent, l.method, l.path, l.dialect, l.model, "              \
    "l.upstream_model, l.status, l.is_stream, l.is_success, l.duration_ms, l.ttft_ms, "            \
    "l.bytes_in, l.bytes_out, l.finish, l.error_code, l.error_message, l.flags, l.session, "       \
    "l.plugin, l.discounts, l.attempts, l.input, l.cache_read, l.cache_write_5m, "                 \
    "l.cache_write_1h, l.audio_in, l.image_in, l.output, l.reasoning, l.audio_out, "               \
    "l.server_calls, l.usage_flags, l.cost_nano, l.price_version"
#define JOINS                                                                                      \
    "LEFT JOIN state.api_keys k ON k.id = l.key_id "                                               \
    "LEFT JOIN state.upstreams u ON u.id = l.upstream_id "
#define COLUMN_COUNT 45

// From the third column (created_ms) on, the names in the answer; booleans and JSON apart.
enum column_shape { PLAIN, BOOLEAN, JSON };
static const struct {
    const char *name;
    enum column_shape shape;
} shown[] = {
    {"seq", PLAIN},
    {"id", PLAIN},
    {"created_ms", PLAIN},
    {"user_id", PLAIN},
    {"key_uid", PLAIN},
    {"key_name", PLAIN},
    {"key_prefix", PLAIN},
    {"upstream_uid", PLAIN},
    {"upstream", PLAIN},
    {"request_id", PLAIN},
    {"client_ip", PLAIN},
    {"user_agent", PLAIN},
    {"method", PLAIN},
    {"path", PLAIN},
    {"dialect", PLAIN},
    {"model", PLAIN},
    {"upstream_model", PLAIN},
    {"status", PLAIN},
    {"is_stream", BOOLEAN},
    {"is_success", BOOLEAN},
    {"duration_ms", PLAIN},
    {"ttft_ms", PLAIN},
    {"bytes_in", PLAIN},
    {"bytes_out", PLAIN},
    {"finish", PLAIN},
    {"error_code", PLAIN},
    {"error_message", PLAIN},
    {"flags", PLAIN},
    {"session", PLAIN},
    {"plugin", PLAIN},
    {"discounts", JSON},
    {"attempts", JSON},
    {"input", PLAIN},
    {"cache_read", PLAIN},
    {"cache_write_5m", PLAIN},
    {"cache_write_1h", PLAIN},
    {"audio_in", PLAIN},
    {"image_in", PLAIN},
    {"output", PLAIN},
    {"reasoning", PLAIN},
    {"audio_out", PLAIN},
    {"server_calls", PLAIN},
    {"usage_flags", PLAIN},
    {"cost_nano", PLAIN},
    {"price_version", PLAIN},
};
#define FIRST_INPUT 32 // input … image_in, then output … audio_out
#define FIRST_OUTPUT 38
#define PAST_OUTPUT 41

static int64_t sum_of(const struct db_value *row, size_t from, size_t to)
{
    int64_t sum = 0;
    for (size_t i = from; i < to; i++)
        if (__builtin_add_overflow(sum, row[i].integer, &sum))
            return INT64_MAX;
    return sum;
}

static void put_sum(struct json_out *json, const char *name, int64_t sum)
{
    json_key(json, name);
    json_i64(json, sum);
}

static void put_row(struct json_out *json, const struct db_value *row)
{
    struct gw_id id = {{0}};
    char text[37];
    if (row[1].bytes.len == sizeof(id.bytes))
        memcpy(id.bytes, row[1].bytes.ptr, sizeof(id.bytes));
    id_format(&id, text);
    json_object(json);
    json_key(json, "id");
    json_str(json, text);
    for (size_t i = 2; i < COLUMN_COUNT; i++) {
        if (shown[i].shape == BOOLEAN)
            admin_put_bool(json, shown[i].name, &row[i]);
        else if (shown[i].shape == JSON)
            admin_put_json(json, shown[i].name, &row[i]);
        else
            admin_put(json, shown[i].name, &row[i]);
    }
    int64_t prompt = sum_of(row, FIRST_INPUT, FIRST_OUTPUT);
    int64_t completion = sum_of(row, FIRST_OUTPUT, PAST_OUTPUT);
    put_sum(json, "prompt_tokens", prompt);
    put_sum(json, "completion_tokens", completion);
    put_sum(json, "total_tokens", sum_of(row, FIRST_INPUT, PAST_OUTPUT));
    json_object_end(json);
}

// A query goes one of two ways: by the index of its key, user or error, or through the index that
// holds all that is filtered by in the order of time, which costs 50 ns per row passed over.
struct filter {
    struct slice where; // constant pieces: all of them
    struct db_value args[8];
    size_t count;
    size_t others;      // pieces beside the chosen index's own and created_ms
    const char *index;  // of key, user or error; NULL: none of them is asked for
    struct slice first; // that index's own pieces, with created_ms; their values:
    struct db_value first_args[4];
    size_t first_count;
    bool is_void; // names a key or upstream that does not exist
};

static int put_piece(struct admin_job *job, struct slice *where, const char *piece)
{
    *where = arena_printf(job->arena, "%.*s%s%s", SLICE_FMT(*where),
                          where->len ? " AND " : "WHERE ", piece);
    return where->ptr ? 0 : GW_ENOMEM;
}

// index: that serves this piece; "": created_ms, which all of them serve; NULL: none does.
static int add_piece(struct admin_job *job, struct filter *filter, const char *piece,
                     const char *index, struct db_value value)
{
    if (value.kind == DB_NULL)
        return 0;
    int err = put_piece(job, &filter->where, piece);
    filter->args[filter->count++] = value;
    bool is_range = index && !*index;
    if (index && *index && !filter->index)
        filter->index = index;
    else if (!is_range) {
        filter->others++;
        return err;
    }
    if (err == 0)
        err = put_piece(job, &filter->first, piece);
    filter->first_args[filter->first_count++] = value;
    return err;
}

static int add_uid(struct db *db, struct admin_job *job, struct filter *filter, yyjson_val *request,
                   const char *name, struct slice find, const char *piece, const char *index)
{
    struct db_value uid;
    int64_t id = 0;
    int err = admin_text(job, request, name, 1, 64, &uid);
    if (err || uid.kind == DB_NULL)
        return err;
    err = admin_count(db, find, &uid, 1, &id);
    if (err)
        return err;
    filter->is_void = filter->is_void || id == 0;
    return add_piece(job, filter, piece, index, DB_INT_VALUE(id));
}

static int read_filter(struct db *db, struct admin_job *job, yyjson_val *request,
                       struct filter *filter)
{
    struct db_value start, end, status, model, user;
    *filter = (struct filter){.where = SLICE_LIT(""), .first = SLICE_LIT("")};
    int err = admin_whole(job, request, "start_ms", INT64_MIN, INT64_MAX, &start);
    if (err == 0)
        err = admin_whole(job, request, "end_ms", INT64_MIN, INT64_MAX, &end);
    if (err == 0)
        err = admin_whole(job, request, "status", 0, 999, &status);
    if (err == 0)
        err = admin_whole(job, request, "user_id", 1, INT64_MAX, &user);
    if (err == 0)
        err = admin_text(job, request, "model", 0, 256, &model);
    if (err)
        return err;
    if (model.kind == DB_TEXT && model.bytes.len == 0)
        model = DB_NULL_VALUE;
    err = add_uid(db, job, filter, request, "key_uid",
                  SLICE_LIT("SELECT id FROM state.api_keys WHERE uid = ?"), "l.key_id = ?",
                  "request_logs_key");
    if (err == 0)
        err = add_piece(job, filter, "l.user_id = ?", "request_logs_user", user);
    // The index of errors is a partial one: its condition has to stand in the text.
    bool is_error = status.kind == DB_INT && status.integer >= 400;
    if (err == 0)
        err = add_piece(job, filter, is_error ? "l.status = ? AND l.status >= 400" : "l.status = ?",
                        is_error ? "request_logs_error" : NULL, status);
    if (err == 0)
        err = add_uid(db, job, filter, request, "upstream_uid",
                      SLICE_LIT("SELECT id FROM state.upstreams WHERE uid = ?"),
                      "l.upstream_id = ?", NULL);
    if (err == 0)
        err = add_piece(job, filter, "l.model = ?", NULL, model);
    if (err == 0)
        err = add_piece(job, filter, "l.created_ms >= ?", "", start);
    if (err == 0)
        err = add_piece(job, filter, "l.created_ms <= ?", "", end);
    return err;
}

static int count_rows(struct db *db, struct admin_job *job, const char *index, struct slice where,
                      const struct db_value *args, size_t arg_count, int64_t cap, int64_t *out)
{
    struct db_value values[10];
    struct slice sql = arena_printf(
        job->arena,
        "SELECT count(*) FROM (SELECT 1 FROM request_logs l INDEXED BY %s %.*s LIMIT ?)", index,
        SLICE_FMT(where));
    if (!sql.ptr)
        return GW_ENOMEM;
    for (size_t i = 0; i < arg_count; i++)
        values[i] = args[i];
    values[arg_count] = DB_INT_VALUE(cap + 1);
    return admin_count(db, sql, values, arg_count + 1, out);
}

// Counts up to TOTAL_CAP and says which index the list is to use.
static int count_total(struct db *db, struct admin_job *job, const struct filter *filter,
                       const char **index, int64_t *total)
{
    int64_t few = 0;
    int err = 0;
    *index = filter->index;
    if (filter->index && filter->others) {
        err = count_rows(db, job, filter->index, filter->first, filter->first_args,
                         filter->first_count, FEW_ROWS, &few);
        if (few > FEW_ROWS)
            *index = NULL;
    }
    if (!*index)
        *index = "request_logs_time";
    return err ? err
               : count_rows(db, job, *index, filter->where, filter->args, filter->count, TOTAL_CAP,
                            total);
}

// Pages by number are found inside the index; only the rows shown are read.
static int find_page(struct db *db, struct admin_job *job, const struct filter *filter,
                     const char *index, const struct admin_page *page, struct db_rows *rows)
{
    struct db_value values[10];
    size_t count = filter->count;
    struct slice sql = arena_printf(
        job->arena,
        "SELECT " COLUMNS " FROM (SELECT l.seq AS seq FROM request_logs l INDEXED BY %s %.*s "
        "ORDER BY l.created_ms DESC, l.seq DESC LIMIT ? OFFSET ?) p "
        "CROSS JOIN request_logs l ON l.seq = p.seq " JOINS
        "ORDER BY l.created_ms DESC, l.seq DESC",
        index, SLICE_FMT(filter->where));
    if (!sql.ptr)
        return GW_ENOMEM;
    for (size_t i = 0; i < count; i++)
        values[i] = filter->args[i];
    values[count++] = DB_INT_VALUE(page->limit);
    values[count++] = DB_INT_VALUE(page->offset);
    return db_run(db, sql, values, count, job->arena, 1000, rows);
}

int admin_log_list(struct db *db, struct admin_job *job, yyjson_val *request)
{
    static const char *const names[] = {"page",    "page_size", "key_uid", "upstream_uid",
                                        "user_id", "status",    "model",   "start_ms",
                                        "end_ms",  NULL};
    struct admin_page page;
    struct filter filter = {0};
    struct db_rows rows = {0};
    int64_t total = 0;
    int err = admin_only(job, request, names);
    if (err == 0)
        err = admin_page(job, request, &page);
    if (err == 0)
        err = read_filter(db, job, request, &filter);
    if (err)
        return err;
    if (!filter.is_void) {
        const char *index = NULL;
        err = count_total(db, job, &filter, &index, &total);
        if (err == 0 && (total > page.offset || total > TOTAL_CAP))
            err = find_page(db, job, &filter, index, &page, &rows);
        if (err)
            return err;
    }
    struct buf text = BUF_INIT(0);
    struct json_out json;
    json_begin(&json, &text);
    json_object(&json);
    json_key(&json, "items");
    json_array(&json);
    for (size_t i = 0; i < rows.row_count; i++)
        put_row(&json, &rows.values[i * COLUMN_COUNT]);
    json_array_end(&json);
    json_key(&json, "total");
    json_i64(&json, total > TOTAL_CAP ? TOTAL_CAP : total);
    json_key(&json, "is_total_capped");
    json_bool(&json, total > TOTAL_CAP);
    json_object_end(&json);
    return admin_finish(job, &json);
}

int admin_log_get(struct db *db, struct admin_job *job, yyjson_val *request)
{
    static const char *const names[] = {"id", NULL};
    // The row's time is the id's but for a moment; clocks may have been set meanwhile.
    static const int64_t around_ms[] = {100, 60 * SECOND_MS, 6 * 3600 * SECOND_MS};
    struct db_rows rows = {0};
    struct slice text;
    struct gw_id id;
    int err = admin_only(job, request, names);
    if (err == 0)
        err = admin_need_text(job, request, "id", 64, &text);
    if (err)
        return err;
    bool is_id = id_parse(text, &id) == 0;
    for (size_t i = 0; i < 3 && is_id && err == 0 && rows.row_count == 0; i++) {
        struct db_value args[] = {
            DB_INT_VALUE(id_wall_ms(&id) - around_ms[i]),
            DB_INT_VALUE(id_wall_ms(&id) + around_ms[i]),
            DB_BLOB_VALUE(slice_of((const char *)id.bytes, sizeof(id.bytes))),
        };
        err = db_run(db,
                     SLICE_LIT("SELECT " COLUMNS " FROM request_logs l " JOINS
                               "WHERE l.created_ms >= ? AND "
                               "l.created_ms <= ? AND l.exchange_id = ? LIMIT 1"),
                     args, 3, job->arena, 1, &rows);
    }
    if (err)
        return err;
    if (rows.row_count == 0)
        return admin_fail(job, GW_ENOTFOUND, "not_found", "Log entry not found");
    struct buf out = BUF_INIT(0);
    struct json_out json;
    json_begin(&json, &out);
    put_row(&json, rows.values);
    return admin_finish(job, &json);
}

static void prune_done(struct store_job *job)
{
    struct admin_job *admin = (struct admin_job *)job;
    if (job->err == 0 && admin->has_more) {
        int err = store_submit(admin->store, job);
        if (err == 0)
            return;
        job->err = err;
        snprintf(job->error, sizeof(job->error), "%s", gw_err_name(err));
    }
    admin->final_done(job);
}

int admin_log_prune(struct db *db, struct admin_job *job, yyjson_val *request)
{
    static const char *const names[] = {"before_ms", NULL};
    struct db_value before;
    int err = admin_only(job, request, names);
    if (err == 0)
        err = admin_whole(job, request, "before_ms", INT64_MIN, INT64_MAX, &before);
    if (err == 0 && before.kind == DB_NULL)
        err = admin_invalid(job, "before_ms", "is missing");
    if (err)
        return err;
    if (!job->final_done) {
        job->final_done = job->job.done;
        job->job.done = prune_done;
    }
    struct db_value args[] = {before, DB_INT_VALUE(PRUNE_STEP)};
    err = db_run(db,
                 SLICE_LIT("DELETE FROM request_logs WHERE seq IN (SELECT seq FROM request_logs "
                           "WHERE created_ms < ? ORDER BY created_ms LIMIT ?)"),
                 args, 2, NULL, 0, NULL);
    if (err)
        return err;
    job->has_more = db_changes(db) == PRUNE_STEP;
    job->step_sum += db_changes(db);
    if (job->has_more)
        return 0;
    struct buf text = BUF_INIT(0);
    struct json_out json;
    json_begin(&json, &text);
    json_object(&json);
    json_key(&json, "deleted");
    json_i64(&json, job->step_sum);
    json_object_end(&json);
    return admin_finish(job, &json);
}

#define SUMS                                                                                       \
    "sum(r.requests), sum(r.successes), sum(r.input), sum(r.cache_read), sum(r.cache_write_5m), "  \
    "sum(r.cache_write_1h), sum(r.audio_in), sum(r.image_in), sum(r.output), sum(r.reasoning), "   \
    "sum(r.audio_out), sum(r.server_calls), sum(r.cost_nano), sum(r.duration_ms), "                \
    "sum(r.bytes_in), "                                                                            \
    "sum(r.bytes_out)"
#define RANGE "WHERE r.hour_ms >= ?1 AND r.hour_ms <= ?2 "

int admin_rollup_list(struct db *db, struct admin_job *job, yyjson_val *request)
{
    static const char *const names[] = {"from_ms", "to_ms", "by", NULL};
    static const struct {
        const char *by, *name, *sql;
    } kinds[] = {
        {"hour", "hour_ms",
         "SELECT r.hour_ms, " SUMS " FROM rollups_hourly r " RANGE "GROUP BY 1 ORDER BY 1"},
        {"model", "model",
         "SELECT r.model, " SUMS " FROM rollups_hourly r " RANGE "GROUP BY 1 ORDER BY 2 DESC, 1"},
        {"key", "key_uid",
         "SELECT k.uid, " SUMS
         " FROM rollups_hourly r LEFT JOIN api_keys k ON k.id = r.key_id " RANGE
         "GROUP BY r.key_id ORDER BY 2 DESC, 1"},
        {"upstream", "upstream",
         "SELECT u.name, " SUMS
         " FROM rollups_hourly r LEFT JOIN upstreams u ON u.id = r.upstream_id " RANGE
         "GROUP BY r.upstream_id ORDER BY 2 DESC, 1"},
    };
    static const char *const sums[] = {
        "requests",  "successes",   "input",    "cache_read", "cache_write_5m", "cache_write_1h",
        "audio_in",  "image_in",    "output",   "reasoning",  "audio_out",      "server_calls",
        "cost_nano", "duration_ms", "bytes_in", "bytes_out",
    };
    struct db_value args[2], by;
    struct db_rows rows = {0};
    size_t kind = 0;
    int err = admin_only(job, request, names);
    if (err == 0)
        err = admin_whole(job, request, "from_ms", INT64_MIN, INT64_MAX, &args[0]);
    if (err == 0)
        err = admin_whole(job, request, "to_ms", INT64_MIN, INT64_MAX, &args[1]);
    if (err == 0)
        err = admin_text(job, request, "by", 1, 16, &by);
    if (err)
        return err;
    if (args[0].kind == DB_NULL || args[1].kind == DB_NULL)
        return admin_invalid(job, "from_ms and to_ms", "are needed");
    while (by.kind == DB_TEXT && kind < 4 && !slice_is(by.bytes, kinds[kind].by))
        kind++;
    if (kind == 4)
        return admin_invalid(job, "by", "must be hour, model, key or upstream");
    err = db_run(db, slice_str(kinds[kind].sql), args, 2, job->arena, ROLLUPS_MAX, &rows);
    if (err)
        return err;
    struct buf text = BUF_INIT(0);
    struct json_out json;
    json_begin(&json, &text);
    json_object(&json);
    json_key(&json, "items");
    json_array(&json);
    for (size_t i = 0; i < rows.row_count; i++) {
        const struct db_value *row = &rows.values[i * rows.column_count];
        json_object(&json);
        admin_put(&json, kinds[kind].name, &row[0]);
        for (size_t k = 0; k < 16; k++)
            admin_put(&json, sums[k], &row[1 + k]);
        put_sum(&json, "prompt_tokens", sum_of(row, 3, 9));
        put_sum(&json, "completion_tokens", sum_of(row, 9, 12));
        put_sum(&json, "total_tokens", sum_of(row, 3, 12));
        json_object_end(&json);
    }
    json_array_end(&json);
    json_object_end(&json);
    return admin_finish(job, &json);
}
