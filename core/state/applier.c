// The applier: reads the journal after the last record a database has, folds a batch into it and
// moves its mark, all in one transaction. So a crash at any point leaves each record folded once:
// mark and effect are there together or not at all, and the journal keeps what is not marked.
//
// A batch is folded fast, sums first. When one of its records is refused the batch is rolled back
// and folded record by record, each under a savepoint; the bad one goes to quarantine.
#include "base/arena.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/map.h"
#include "codec/json.h"
#include "state/journal_impl.h"
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define BATCH_MAX 2000
#define BATCH_BYTES_MAX (8u << 20)
#define RETRY_MS 250
#define HOUR_MS 3600000

struct fact {
    int64_t seq;
    struct slice bytes; // kind, version, payload, CRC
};

struct batch {
    struct arena *arena;
    struct fact facts[BATCH_MAX];
    size_t count, bytes;
};

// Sums of one hour, key, upstream and model.
struct rollup {
    struct rollup *next;
    int64_t hour_ms, key_id, upstream_id;
    struct slice model;
    int64_t sums[16];
};

struct key_sum {
    struct key_sum *next;
    int64_t id, requests, tokens, cost_nano, last_ms;
};

struct sums {
    struct arena *arena;
    struct map *rollup_of, *key_of;
    struct rollup *rollups;
    struct key_sum *keys;
};

static int open_side(struct applier_side *side, const char *name, const char *path, int flags,
                     pthread_mutex_t *mutex, char *error, size_t error_size)
{
    side->name = name;
    side->mutex = mutex;
    int err = db_open(path, flags, &side->db, error, error_size);
    if (err)
        return err;
    struct db_value args[] = {DB_TEXT_VALUE(slice_str(name))};
    struct arena *arena = arena_new(512);
    struct db_rows rows = {0};
    err = arena ? db_run(side->db, SLICE_LIT("SELECT seq FROM applied WHERE name = ?"), args, 1,
                         arena, 1, &rows)
                : GW_ENOMEM;
    if (err)
        snprintf(error, error_size, "%s: %s", path, db_error(side->db));
    else
        atomic_store(&side->applied_seq, rows.row_count ? rows.values[0].integer : 0);
    arena_free(arena);
    return err;
}

int applier_open(struct journal *journal, const struct journal_options *options, char *error,
                 size_t error_size)
{
    int flags = options->is_durable ? DB_OPEN_FULL_SYNC : 0;
    int err = db_open(options->journal_path, DB_OPEN_READONLY, &journal->reader, error, error_size);
    if (err == 0)
        err = open_side(&journal->main, "main", options->main_path, flags, options->main_mutex,
                        error, error_size);
    if (err == 0)
        err = open_side(&journal->logs, "logs", options->logs_path, flags, options->logs_mutex,
                        error, error_size);
    return err;
}

void applier_close_files(struct journal *journal)
{
    db_close(journal->reader);
    db_close(journal->main.db);
    db_close(journal->logs.db);
}

static int on_fact(void *user, const struct db_value *row, size_t count)
{
    struct batch *batch = user;
    (void)count;
    if (batch->bytes > BATCH_BYTES_MAX)
        return GW_EAGAIN;
    struct fact *fact = &batch->facts[batch->count];
    fact->seq = row[0].integer;
    fact->bytes = arena_copy(batch->arena, row[1].bytes);
    if (!fact->bytes.ptr)
        return GW_ENOMEM;
    batch->bytes += fact->bytes.len;
    batch->count++;
    return 0;
}

static int read_batch(struct journal *journal, int64_t after, struct batch *batch)
{
    struct db_value args[] = {DB_INT_VALUE(after), DB_INT_VALUE(BATCH_MAX)};
    batch->count = batch->bytes = 0;
    int err = db_each(journal->reader,
                      SLICE_LIT("SELECT seq, record FROM journal WHERE seq > ? "
                                "ORDER BY seq LIMIT ?"),
                      args, 2, on_fact, batch);
    return err == GW_EAGAIN ? 0 : err;
}

static int check_fact(const struct fact *fact, enum journal_kind *kind, struct slice *payload)
{
    if (fact->bytes.len < JOURNAL_HEAD + JOURNAL_TAIL)
        return GW_ECORRUPT;
    size_t len = fact->bytes.len - JOURNAL_TAIL;
    const unsigned char *tail = (const unsigned char *)fact->bytes.ptr + len;
    uint32_t crc = (uint32_t)tail[0] | (uint32_t)tail[1] << 8 | (uint32_t)tail[2] << 16 |
                   (uint32_t)tail[3] << 24;
    if (crc != journal_crc32(fact->bytes.ptr, len))
        return GW_ECORRUPT;
    *kind = (enum journal_kind)(unsigned char)fact->bytes.ptr[0];
    *payload = slice_of(fact->bytes.ptr + JOURNAL_HEAD, len - JOURNAL_HEAD);
    // The ledger's kinds are reserved; until it exists nobody may write them.
    return *kind == JOURNAL_LOG ? 0 : GW_EINVAL;
}

static int64_t clamp(uint64_t value)
{
    return value > INT64_MAX ? INT64_MAX : (int64_t)value;
}

static void add(int64_t *sum, int64_t value)
{
    if (__builtin_add_overflow(*sum, value, sum))
        *sum = value < 0 ? INT64_MIN : INT64_MAX;
}

static struct rollup *rollup_of(struct sums *sums, const struct log_record *record)
{
    struct slice model = record->upstream_id ? record->model : SLICE_LIT("");
    int64_t head[3] = {record->created_ms - record->created_ms % HOUR_MS, record->key_id,
                       record->upstream_id};
    char key[sizeof(head) + 512];
    if (model.len > 512)
        model.len = 512;
    memcpy(key, head, sizeof(head));
    memcpy(key + sizeof(head), model.len ? model.ptr : "", model.len);
    struct slice name = slice_of(key, sizeof(head) + model.len);
    struct rollup *rollup = map_get(sums->rollup_of, name);
    if (rollup)
        return rollup;
    rollup = arena_zalloc(sums->arena, sizeof(*rollup));
    if (!rollup || map_put(sums->rollup_of, name, rollup, NULL) != 0)
        return NULL;
    rollup->hour_ms = head[0];
    rollup->key_id = head[1];
    rollup->upstream_id = head[2];
    rollup->model = model;
    rollup->next = sums->rollups;
    sums->rollups = rollup;
    return rollup;
}

static struct key_sum *key_sum_of(struct sums *sums, int64_t id)
{
    struct slice name = slice_of((const char *)&id, sizeof(id));
    struct key_sum *sum = map_get(sums->key_of, name);
    if (sum)
        return sum;
    sum = arena_zalloc(sums->arena, sizeof(*sum));
    if (!sum || map_put(sums->key_of, name, sum, NULL) != 0)
        return NULL;
    sum->id = id;
    sum->next = sums->keys;
    sums->keys = sum;
    return sum;
}

static int add_record(struct sums *sums, const struct log_record *record)
{
    struct rollup *rollup = rollup_of(sums, record);
    if (!rollup)
        return GW_ENOMEM;
    const struct usage *usage = &record->usage;
    const int64_t values[16] = {
        1,
        record->is_success,
        clamp(usage->input),
        clamp(usage->cache_read),
        clamp(usage->cache_write_5m),
        clamp(usage->cache_write_1h),
        clamp(usage->audio_in),
        clamp(usage->image_in),
        clamp(usage->output),
        clamp(usage->reasoning),
        clamp(usage->audio_out),
        clamp(usage->server_calls),
        record->cost_nano,
        record->duration_ms,
        clamp(record->bytes_in),
        clamp(record->bytes_out),
    };
    for (size_t i = 0; i < 16; i++)
        add(&rollup->sums[i], values[i]);
    if (record->key_id == 0)
        return 0;
    struct key_sum *key = key_sum_of(sums, record->key_id);
    if (!key)
        return GW_ENOMEM;
    key->requests++;
    add(&key->tokens, clamp(usage_total(usage)));
    add(&key->cost_nano, record->cost_nano);
    if (record->created_ms > key->last_ms)
        key->last_ms = record->created_ms;
    return 0;
}

static int write_sums(struct db *db, const struct sums *sums)
{
    int err = 0;
    for (const struct rollup *rollup = sums->rollups; rollup && err == 0; rollup = rollup->next) {
        struct db_value args[20] = {
            DB_INT_VALUE(rollup->hour_ms),
            DB_INT_VALUE(rollup->key_id),
            DB_INT_VALUE(rollup->upstream_id),
            DB_TEXT_VALUE(rollup->model),
        };
        for (size_t i = 0; i < 16; i++)
            args[4 + i] = DB_INT_VALUE(rollup->sums[i]);
        err = db_run(
            db,
            SLICE_LIT("INSERT INTO rollups_hourly (hour_ms, key_id, upstream_id, model, requests, "
                      "successes, input, cache_read, cache_write_5m, cache_write_1h, audio_in, "
                      "image_in, output, reasoning, audio_out, server_calls, cost_nano, "
                      "duration_ms, bytes_in, bytes_out) "
                      "VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?) "
                      "ON CONFLICT (hour_ms, key_id, upstream_id, model) DO UPDATE SET "
                      "requests = requests + excluded.requests, "
                      "successes = successes + excluded.successes, "
                      "input = input + excluded.input, "
                      "cache_read = cache_read + excluded.cache_read, "
                      "cache_write_5m = cache_write_5m + excluded.cache_write_5m, "
                      "cache_write_1h = cache_write_1h + excluded.cache_write_1h, "
                      "audio_in = audio_in + excluded.audio_in, "
                      "image_in = image_in + excluded.image_in, "
                      "output = output + excluded.output, "
                      "reasoning = reasoning + excluded.reasoning, "
                      "audio_out = audio_out + excluded.audio_out, "
                      "server_calls = server_calls + excluded.server_calls, "
                      "cost_nano = cost_nano + excluded.cost_nano, "
                      "duration_ms = duration_ms + excluded.duration_ms, "
                      "bytes_in = bytes_in + excluded.bytes_in, "
                      "bytes_out = bytes_out + excluded.bytes_out"),
            args, 20, NULL, 0, NULL);
    }
    for (const struct key_sum *key = sums->keys; key && err == 0; key = key->next) {
        struct db_value args[] = {
            DB_INT_VALUE(key->requests), DB_INT_VALUE(key->tokens), DB_INT_VALUE(key->cost_nano),
            DB_INT_VALUE(key->last_ms),  DB_INT_VALUE(key->id),
        };
        err = db_run(db,
                     SLICE_LIT("UPDATE api_keys SET request_count = request_count + ?1, "
                               "token_count = token_count + ?2, cost_nano = cost_nano + ?3, "
                               "last_used_ms = max(coalesce(last_used_ms, 0), ?4) WHERE id = ?5"),
                     args, 5, NULL, 0, NULL);
    }
    return err;
}

static int attempts_json(const struct log_record *record, struct buf *out)
{
    struct json_out json;
    json_begin(&json, out);
    json_array(&json);
    for (size_t i = 0; i < record->attempt_count; i++) {
        const struct log_attempt *attempt = &record->attempts[i];
        json_object(&json);
        json_key(&json, "upstream_id");
        json_i64(&json, attempt->upstream_id);
        json_key(&json, "status");
        json_i64(&json, attempt->status);
        json_key(&json, "duration_ms");
        json_i64(&json, attempt->duration_ms);
        json_key(&json, "reason");
        json_text(&json, attempt->reason);
        json_object_end(&json);
    }
    json_array_end(&json);
    return json_end(&json);
}

static struct db_value id_or_null(int64_t id)
{
    return id ? DB_INT_VALUE(id) : DB_NULL_VALUE;
}

static int write_row(struct db *db, int64_t seq, const struct log_record *record)
{
    struct buf attempts = BUF_INIT(0);
    int err = attempts_json(record, &attempts);
    if (err) {
        buf_free(&attempts);
        return err;
    }
    const struct usage *usage = &record->usage;
    const struct db_value args[] = {
        DB_INT_VALUE(seq),
        DB_BLOB_VALUE(slice_of((const char *)record->id.bytes, 16)),
        DB_INT_VALUE(record->created_ms),
        id_or_null(record->key_id),
        id_or_null(record->user_id),
        id_or_null(record->upstream_id),
        DB_TEXT_VALUE(record->key_prefix),
        DB_TEXT_VALUE(record->request_id),
        DB_TEXT_VALUE(record->client_ip),
        DB_TEXT_VALUE(record->user_agent),
        DB_TEXT_VALUE(record->method),
        DB_TEXT_VALUE(record->path),
        DB_TEXT_VALUE(record->dialect),
        DB_TEXT_VALUE(record->model),
        DB_TEXT_VALUE(record->upstream_model),
        DB_INT_VALUE(record->status),
        DB_INT_VALUE(record->is_stream),
        DB_INT_VALUE(record->is_success),
        DB_INT_VALUE(record->duration_ms),
        id_or_null(record->ttft_ms),
        DB_INT_VALUE(clamp(record->bytes_in)),
        DB_INT_VALUE(clamp(record->bytes_out)),
        DB_TEXT_VALUE(record->finish),
        DB_TEXT_VALUE(record->error_code),
        DB_TEXT_VALUE(record->error_message),
        DB_TEXT_VALUE(record->flags),
        DB_TEXT_VALUE(record->session),
        DB_TEXT_VALUE(record->plugin),
        DB_TEXT_VALUE(record->discounts_json),
        DB_TEXT_VALUE(buf_slice(&attempts)),
        DB_INT_VALUE(clamp(usage->input)),
        DB_INT_VALUE(clamp(usage->cache_read)),
        DB_INT_VALUE(clamp(usage->cache_write_5m)),
        DB_INT_VALUE(clamp(usage->cache_write_1h)),
        DB_INT_VALUE(clamp(usage->audio_in)),
        DB_INT_VALUE(clamp(usage->image_in)),
        DB_INT_VALUE(clamp(usage->output)),
        DB_INT_VALUE(clamp(usage->reasoning)),
        DB_INT_VALUE(clamp(usage->audio_out)),
        DB_INT_VALUE(clamp(usage->server_calls)),
        DB_INT_VALUE(usage->flags),
        DB_INT_VALUE(record->cost_nano),
        id_or_null(record->price_version),
    };
    err = db_run(
        db,
        SLICE_LIT("INSERT INTO request_logs (seq, exchange_id, created_ms, key_id, user_id, "
                  "upstream_id, key_prefix, request_id, client_ip, user_agent, method, path, "
                  "dialect, model, upstream_model, status, is_stream, is_success, duration_ms, "
                  "ttft_ms, bytes_in, bytes_out, finish, error_code, error_message, flags, "
                  "session, plugin, discounts, attempts, input, cache_read, cache_write_5m, "
                  "cache_write_1h, audio_in, image_in, output, reasoning, audio_out, "
                  "server_calls, usage_flags, cost_nano, price_version) VALUES "
                  "(?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,"
                  "?,?,?,?)"),
        args, sizeof(args) / sizeof(args[0]), NULL, 0, NULL);
    buf_free(&attempts);
    return err;
}

// Folds some facts. GW_ECORRUPT, GW_EINVAL …: one of them is bad.
static int fold(struct journal *journal, struct applier_side *side, const struct fact *facts,
                size_t count, struct arena *arena)
{
    bool is_main = side == &journal->main;
    struct sums sums = {.arena = arena};
    int err = 0;
    if (is_main) {
        sums.rollup_of = map_new();
        sums.key_of = map_new();
        err = sums.rollup_of && sums.key_of ? 0 : GW_ENOMEM;
    }
    for (size_t i = 0; i < count && err == 0; i++) {
        enum journal_kind kind;
        struct slice payload;
        struct log_record record;
        err = check_fact(&facts[i], &kind, &payload);
        if (err == 0)
            err = log_record_decode(payload, arena, &record);
        if (err == 0)
            err = is_main ? add_record(&sums, &record) : write_row(side->db, facts[i].seq, &record);
        else if (!is_main && err != GW_ENOMEM)
            err = 0; // unreadable: main.db's quarantine has it
    }
    if (err == 0 && is_main)
        err = write_sums(side->db, &sums);
    map_free(sums.rollup_of, NULL);
    map_free(sums.key_of, NULL);
    return err;
}

static bool is_bad_record(int err)
{
    return err == GW_ECORRUPT || err == GW_EINVAL || err == GW_EEXISTS || err == GW_ETOOBIG;
}

static int run(struct db *db, const char *sql)
{
    return db_run(db, slice_str(sql), NULL, 0, NULL, 0, NULL);
}

static int quarantine(struct journal *journal, struct applier_side *side, const struct fact *fact,
                      const char *text)
{
    int64_t kind = fact->bytes.len ? (unsigned char)fact->bytes.ptr[0] : 0;
    struct db_value args[] = {
        DB_INT_VALUE(fact->seq),       DB_INT_VALUE(kind),
        DB_BLOB_VALUE(fact->bytes),    DB_TEXT_VALUE(slice_str(text)),
        DB_INT_VALUE(clock_wall_ms()),
    };
    int err = db_run(side->db,
                     SLICE_LIT("INSERT OR REPLACE INTO quarantine (seq, kind, record, error, "
                               "at_ms) VALUES (?, ?, ?, ?, ?)"),
                     args, 5, NULL, 0, NULL);
    if (err == 0) {
        atomic_fetch_add(&journal->quarantined, 1);
        log_event(LOG_ERROR, "journal_quarantine", LOG_STR("database", side->name),
                  LOG_INT("seq", fact->seq), LOG_INT("kind", kind), LOG_STR("error", text));
    }
    return err;
}

static int fold_carefully(struct journal *journal, struct applier_side *side,
                          const struct batch *batch)
{
    int err = 0;
    for (size_t i = 0; i < batch->count && err == 0; i++) {
        struct arena_mark mark = arena_mark(batch->arena);
        err = run(side->db, "SAVEPOINT fact");
        if (err == 0)
            err = fold(journal, side, &batch->facts[i], 1, batch->arena);
        if (is_bad_record(err)) {
            char text[320];
            // db_error would not survive the next statement.
            snprintf(text, sizeof(text), "%s: %s", gw_err_name(err), db_error(side->db));
            err = run(side->db, "ROLLBACK TO fact");
            if (err == 0)
                err = quarantine(journal, side, &batch->facts[i], text);
        }
        if (err == 0)
            err = run(side->db, "RELEASE fact");
        arena_rewind(batch->arena, mark);
    }
    return err;
}

static int set_mark(struct applier_side *side, int64_t seq)
{
    struct db_value args[] = {DB_TEXT_VALUE(slice_str(side->name)), DB_INT_VALUE(seq)};
    return db_run(side->db,
                  SLICE_LIT("INSERT INTO applied (name, seq) VALUES (?, ?) "
                            "ON CONFLICT (name) DO UPDATE SET seq = excluded.seq"),
                  args, 2, NULL, 0, NULL);
}

static int apply_batch(struct journal *journal, struct applier_side *side,
                       const struct batch *batch)
{
    int64_t last = batch->facts[batch->count - 1].seq;
    int err = 0;
    pthread_mutex_lock(side->mutex);
    for (int is_careful = 0; is_careful < 2; is_careful++) {
        err = db_begin(side->db, true);
        if (err == 0)
            err = is_careful ? fold_carefully(journal, side, batch)
                             : fold(journal, side, batch->facts, batch->count, batch->arena);
        if (err == 0)
            err = set_mark(side, last);
        if (err == 0)
            err = db_commit(side->db);
        if (err == 0)
            break;
        db_rollback(side->db);
        if (!is_bad_record(err))
            break;
    }
    pthread_mutex_unlock(side->mutex);
    if (err)
        return err;
    pthread_mutex_lock(&journal->mutex);
    atomic_store(&side->applied_seq, last);
    atomic_store(&journal->progress_ms, clock_boot_ms());
    pthread_cond_broadcast(&journal->changed);
    pthread_mutex_unlock(&journal->mutex);
    return 0;
}

// Folds one batch into one database. 1: did something; 0: nothing to do.
static int step(struct journal *journal, struct applier_side *side, struct batch *batch)
{
    int64_t applied = atomic_load(&side->applied_seq);
    if (applied >= atomic_load(&journal->committed_seq))
        return 0;
    int err = read_batch(journal, applied, batch);
    if (err == 0 && batch->count == 0) {
        // Behind, yet nothing is there: the journal's file was replaced by an older one.
        atomic_store(&side->applied_seq, atomic_load(&journal->committed_seq));
        return 0;
    }
    if (err == 0)
        err = apply_batch(journal, side, batch);
    arena_reset(batch->arena);
    return err ? err : 1;
}

static void wait_for_work(struct journal *journal, uint32_t at_most_ms)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += (long)at_most_ms * 1000000;
    if (until.tv_nsec >= 1000000000) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000;
    }
    if (at_most_ms)
        pthread_cond_timedwait(&journal->changed, &journal->mutex, &until);
    else
        pthread_cond_wait(&journal->changed, &journal->mutex);
}

void *applier_run(void *arg)
{
    struct journal *journal = arg;
    struct batch *batch = calloc(1, sizeof(*batch));
    uint64_t next_log_ms = 0;
    gw_require(batch != NULL);
    batch->arena = arena_new(1 << 20);
    gw_require(batch->arena != NULL);
    for (bool is_stopping = false; !is_stopping;) {
        int logs = step(journal, &journal->logs, batch);
        int main_result = step(journal, &journal->main, batch);
        int err = logs < 0 ? logs : main_result < 0 ? main_result : 0;
        if (err && clock_boot_ms() >= next_log_ms) {
            next_log_ms = clock_boot_ms() + 10000;
            log_event(LOG_ERROR, "applier_failed", LOG_STR("database", logs < 0 ? "logs" : "main"),
                      LOG_STR("reason", gw_err_name(err)),
                      LOG_STR("error", db_error(logs < 0 ? journal->logs.db : journal->main.db)));
        }
        pthread_mutex_lock(&journal->mutex);
        int64_t committed = atomic_load(&journal->committed_seq);
        bool is_behind = atomic_load(&journal->logs.applied_seq) < committed ||
                         atomic_load(&journal->main.applied_seq) < committed;
        is_stopping = journal->is_applier_stopping;
        if (!is_stopping && err)
            wait_for_work(journal, RETRY_MS);
        else if (!is_stopping && !is_behind)
            wait_for_work(journal, 0);
        if (!is_behind)
            atomic_store(&journal->progress_ms, clock_boot_ms());
        pthread_mutex_unlock(&journal->mutex);
    }
    arena_free(batch->arena);
    free(batch);
    return NULL;
}
