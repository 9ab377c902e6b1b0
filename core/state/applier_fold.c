// What a batch of facts does to a database: to main.db hourly sums and the totals of keys, to
// logs.db a row for each exchange.
#include "base/map.h"
#include "codec/json.h"
#include "state/applier_impl.h"

#define HOUR_MS 3600000

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
    struct rollup *rollups, *last_rollup; // last: calls of one key often come in a row
    struct key_sum *keys, *last_key;
};

static int check_fact(const struct fact *fact, bool has_crc, enum journal_kind *kind,
                      struct slice *payload)
{
    if (fact->bytes.len < JOURNAL_HEAD + JOURNAL_TAIL)
        return GW_ECORRUPT;
    size_t len = fact->bytes.len - JOURNAL_TAIL;
    const unsigned char *tail = (const unsigned char *)fact->bytes.ptr + len;
    uint32_t crc = (uint32_t)tail[0] | (uint32_t)tail[1] << 8 | (uint32_t)tail[2] << 16 |
                   (uint32_t)tail[3] << 24;
    if (has_crc && crc != journal_crc32(fact->bytes.ptr, len))
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
    struct rollup *last = sums->last_rollup;
    if (last && last->hour_ms == head[0] && last->key_id == head[1] &&
        last->upstream_id == head[2] && slice_eq(last->model, model))
        return last;
    memcpy(key, head, sizeof(head));
    memcpy(key + sizeof(head), model.len ? model.ptr : "", model.len);
    struct slice name = slice_of(key, sizeof(head) + model.len);
    struct rollup *rollup = sums->last_rollup = map_get(sums->rollup_of, name);
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
    if (sums->last_key && sums->last_key->id == id)
        return sums->last_key;
    struct key_sum *sum = sums->last_key = map_get(sums->key_of, name);
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

#define ROW                                                                                        \
    "(?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)"
#define ROWS_4 ROW "," ROW "," ROW "," ROW
#define INTO_LOGS                                                                                  \
    "INTO request_logs (seq, exchange_id, created_ms, key_id, user_id, "                           \
    "upstream_id, key_prefix, request_id, client_ip, user_agent, method, path, dialect, model, "   \
    "upstream_model, status, is_stream, is_success, duration_ms, ttft_ms, bytes_in, bytes_out, "   \
    "finish, error_code, error_message, flags, session, plugin, discounts, attempts, input, "      \
    "cache_read, cache_write_5m, cache_write_1h, audio_in, image_in, output, reasoning, "          \
    "audio_out, server_calls, usage_flags, cost_nano, price_version) VALUES "

// id and attempts live until the row is written, as do the record's texts.
static void fill_row(struct db_value *row, int64_t seq, const struct log_record *record,
                     struct slice id, struct slice attempts)
{
    const struct usage *usage = &record->usage;
    const struct db_value values[] = {
        DB_INT_VALUE(seq),
        DB_BLOB_VALUE(id),
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
        DB_TEXT_VALUE(attempts),
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
    _Static_assert(sizeof(values) == ROW_COLUMNS * sizeof(values[0]), "one value per column");
    memcpy(row, values, sizeof(values));
}

// Writes the rows that have gathered. Many at once roll the whole batch back when one is refused: a
// statement that could be undone alone would keep a copy of each page it changes.
static int write_rows(struct db *db, struct batch *batch)
{
    int err = 0;
    if (batch->row_count == ROW_GROUP)
        err = db_run(
            db, SLICE_LIT("INSERT OR ROLLBACK " INTO_LOGS ROWS_4 "," ROWS_4 "," ROWS_4 "," ROWS_4),
            batch->rows[0], (size_t)ROW_GROUP * ROW_COLUMNS, NULL, 0, NULL);
    for (size_t i = 0; batch->row_count < ROW_GROUP && i < batch->row_count && err == 0; i++)
        err = db_run(db, SLICE_LIT("INSERT " INTO_LOGS ROW), batch->rows[i], ROW_COLUMNS, NULL, 0,
                     NULL);
    batch->row_count = 0;
    return err;
}

static int add_row(struct db *db, struct batch *batch, int64_t seq, const struct log_record *record)
{
    size_t id_len = sizeof(record->id.bytes);
    buf_clear(&batch->scratch);
    int err = attempts_json(record, &batch->scratch);
    if (err == 0)
        err = buf_append(&batch->scratch, slice_of((const char *)record->id.bytes, id_len));
    if (err)
        return err;
    struct slice kept = arena_copy(batch->arena, buf_slice(&batch->scratch));
    if (!kept.ptr)
        return GW_ENOMEM;
    fill_row(batch->rows[batch->row_count++], seq, record, slice_from(kept, kept.len - id_len),
             slice_of(kept.ptr, kept.len - id_len));
    return batch->row_count == ROW_GROUP ? write_rows(db, batch) : 0;
}

int applier_fold(struct journal *journal, struct applier_side *side, struct batch *batch,
                 size_t first, size_t count)
{
    bool is_main = side == &journal->main;
    struct sums sums = {.arena = batch->arena};
    int err = 0;
    if (is_main) {
        sums.rollup_of = map_new();
        sums.key_of = map_new();
        err = sums.rollup_of && sums.key_of ? 0 : GW_ENOMEM;
    }
    for (size_t i = first; i < first + count && err == 0; i++) {
        const struct fact *fact = &batch->facts[i];
        enum journal_kind kind;
        struct slice payload;
        struct log_record record;
        err = check_fact(fact, !batch->is_from_memory, &kind, &payload);
        if (err == 0)
            err = log_record_decode(payload, batch->arena, &record);
        if (err == 0)
            err =
                is_main ? add_record(&sums, &record) : add_row(side->db, batch, fact->seq, &record);
        else if (!is_main && err != GW_ENOMEM)
            err = 0; // unreadable: main.db's quarantine has it
    }
    if (err == 0)
        err = is_main ? write_sums(side->db, &sums) : write_rows(side->db, batch);
    batch->row_count = 0;
    map_free(sums.rollup_of, NULL);
    map_free(sums.key_of, NULL);
    return err;
}
