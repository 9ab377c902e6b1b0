// The applier: reads the journal after the last record a database has, folds a batch into it and
// moves its mark, all in one transaction. So a crash at any point leaves each record folded once:
// mark and effect are there together or not at all, and the journal keeps what is not marked. The
// mark is read again inside the transaction: should the applier of another process have been there
// (an upgrade, main/upgrade.c), the batch is given up and the next one starts after its mark.
//
// A batch is folded fast, sums first. When one of its records is refused the batch is rolled back
// and folded record by record, each under a savepoint; the bad one goes to quarantine.
#include "base/clock.h"
#include "base/log.h"
#include "state/applier_impl.h"
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

// What a database is given without waiting for more.
#define BATCH_FULL 2000
// Rows must be readable within 200 ms, 25 of which the journal may take.
#define GATHER_LOGS_MS 80
#define GATHER_MAIN_MS 150
#define BATCH_BYTES_MAX (8u << 20)
#define RETRY_MS 250
#define SHARED_LOOK_MS 50 // while another process writes the journal
static int run(struct db *db, const char *sql)
{
    return db_run(db, slice_str(sql), NULL, 0, NULL, 0, NULL);
}

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
    journal->logs.gather_ms = GATHER_LOGS_MS;
    journal->main.gather_ms = GATHER_MAIN_MS;
    int err = db_open(options->journal_path, DB_OPEN_READONLY, &journal->reader, error, error_size);
    if (err == 0)
        err = open_side(&journal->main, "main", options->main_path, flags, options->main_mutex,
                        error, error_size);
    if (err == 0)
        err = open_side(&journal->logs, "logs", options->logs_path, flags, options->logs_mutex,
                        error, error_size);
    // Both keep the page cache of 8 MiB that db_open sets: with 24 MiB for the index by key, rows
    // of 20,000 keys cost 1.7 us less (of 26), those of 1,000 keys nothing, and it is 18 MB
    // resident.
    if (err == 0)
        err = run(journal->logs.db, "PRAGMA wal_autocheckpoint = 4000");
    if (err == 0)
        err = run(journal->main.db, "PRAGMA wal_autocheckpoint = 4000");
    return err;
}

void applier_close_files(struct journal *journal)
{
    db_close(journal->reader);
    db_close(journal->main.db);
    db_close(journal->logs.db);
}

static void add_fact(struct batch *batch, int64_t seq, struct slice bytes)
{
    if (seq > batch->after)
        batch->facts[batch->count++] = (struct fact){seq, bytes};
}

// The records of a row of several, walked twice: numbers go back from the row's. False: not such a
// row, or a damaged one, which then counts as one bad record.
static bool add_group(struct batch *batch, int64_t seq, struct slice row)
{
    size_t count = 0;
    if (row.len < 2 || (unsigned char)row.ptr[0] != JOURNAL_GROUP ||
        row.ptr[1] != JOURNAL_GROUP_VERSION)
        return false;
    for (int round = 0; round < 2; round++) {
        struct slice rest = slice_from(row, 2);
        int64_t at = seq - (int64_t)count;
        while (rest.len) {
            const unsigned char *head = (const unsigned char *)rest.ptr;
            if (rest.len < 4)
                return false;
            size_t len =
                head[0] | (size_t)head[1] << 8 | (size_t)head[2] << 16 | (size_t)head[3] << 24;
            if (len > rest.len - 4)
                return false;
            if (round == 1)
                add_fact(batch, ++at, slice_of(rest.ptr + 4, len));
            else if (++count > JOURNAL_ROW_RECORDS)
                return false;
            rest = slice_from(rest, 4 + len);
        }
    }
    return true;
}

static int on_row(void *user, const struct db_value *row, size_t count)
{
    struct batch *batch = user;
    (void)count;
    if (batch->bytes > BATCH_BYTES_MAX || batch->count >= APPLIER_BATCH_MAX)
        return GW_EAGAIN;
    struct slice bytes = arena_copy(batch->arena, row[1].bytes);
    if (!bytes.ptr)
        return GW_ENOMEM;
    batch->bytes += bytes.len;
    if (!add_group(batch, row[0].integer, bytes))
        add_fact(batch, row[0].integer, bytes);
    return 0;
}

static int read_batch(struct journal *journal, struct batch *batch)
{
    struct db_value args[] = {DB_INT_VALUE(batch->after), DB_INT_VALUE(APPLIER_BATCH_MAX)};
    int err = db_each(journal->reader,
                      SLICE_LIT("SELECT seq, record FROM journal WHERE seq > ? "
                                "ORDER BY seq LIMIT ?"),
                      args, 2, on_row, batch);
    return err == GW_EAGAIN ? 0 : err;
}

// The same from the groups that the journal thread has handed over. False: they do not begin here.
static bool take_handed(struct journal *journal, struct batch *batch)
{
    int64_t last = batch->after;
    pthread_mutex_lock(&journal->mutex);
    const struct journal_group *group = journal->handed_first;
    for (; group && batch->count < APPLIER_BATCH_MAX; group = group->next) {
        if (group->first_seq > last + 1)
            break;
        int64_t seq = group->first_seq;
        if (group->last_seq <= last)
            continue;
        const struct journal_record *record = group->records;
        for (; record && batch->count < APPLIER_BATCH_MAX; record = record->next)
            add_fact(batch, seq++, slice_of(record->bytes, record->len));
        last = group->last_seq;
    }
    pthread_mutex_unlock(&journal->mutex);
    return batch->count > 0;
}

// Frees the groups that both databases have.
static void drop_handed(struct journal *journal)
{
    int64_t main_seq = atomic_load(&journal->main.applied_seq);
    int64_t seq = atomic_load(&journal->logs.applied_seq);
    seq = main_seq < seq ? main_seq : seq;
    for (;;) {
        pthread_mutex_lock(&journal->mutex);
        struct journal_group *group = journal->handed_first;
        if (group && group->last_seq <= seq) {
            journal->handed_first = group->next;
            journal->handed_bytes -= group->bytes;
            if (!group->next)
                journal->handed_last = NULL;
        } else {
            group = NULL;
        }
        pthread_mutex_unlock(&journal->mutex);
        if (!group)
            return;
        journal_free_records(group->records);
        free(group);
    }
}

static bool is_bad_record(int err)
{
    return err == GW_ECORRUPT || err == GW_EINVAL || err == GW_EEXISTS || err == GW_ETOOBIG;
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

static int fold_carefully(struct journal *journal, struct applier_side *side, struct batch *batch)
{
    int err = 0;
    for (size_t i = 0; i < batch->count && err == 0; i++) {
        struct arena_mark mark = arena_mark(batch->arena);
        err = run(side->db, "SAVEPOINT fact");
        if (err == 0)
            err = applier_fold(journal, side, batch, i, 1);
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

static int on_mark(void *user, const struct db_value *row, size_t count)
{
    (void)count;
    *(int64_t *)user = row[0].integer;
    return 0;
}

// Inside the transaction. GW_EAGAIN: another process has moved the mark beyond `after`.
static int check_mark(struct journal *journal, struct applier_side *side, int64_t after)
{
    struct db_value args[] = {DB_TEXT_VALUE(slice_str(side->name))};
    int64_t mark = 0;
    int err = db_each(side->db, SLICE_LIT("SELECT seq FROM applied WHERE name = ?"), args, 1,
                      on_mark, &mark);
    if (err || mark <= after)
        return err;
    pthread_mutex_lock(&journal->mutex); // whoever flushes waits for it
    atomic_store(&side->applied_seq, mark);
    pthread_cond_broadcast(&journal->changed);
    pthread_mutex_unlock(&journal->mutex);
    return GW_EAGAIN;
}

static int apply_batch(struct journal *journal, struct applier_side *side, struct batch *batch)
{
    int64_t last = batch->facts[batch->count - 1].seq, after = atomic_load(&side->applied_seq);
    int err = 0;
    pthread_mutex_lock(side->mutex);
    for (int is_careful = 0; is_careful < 2; is_careful++) {
        err = db_begin(side->db, true);
        if (err == 0)
            err = check_mark(journal, side, after);
        if (err == 0)
            err = is_careful ? fold_carefully(journal, side, batch)
                             : applier_fold(journal, side, batch, 0, batch->count);
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
    int err = 0;
    batch->after = atomic_load(&side->applied_seq);
    batch->count = batch->bytes = 0;
    if (batch->after >= atomic_load(&journal->committed_seq))
        return 0;
    batch->is_from_memory = take_handed(journal, batch);
    if (!batch->is_from_memory)
        err = read_batch(journal, batch);
    if (err == 0 && batch->count == 0) {
        // Behind, yet nothing is there: the journal's file was replaced by an older one.
        atomic_store(&side->applied_seq, atomic_load(&journal->committed_seq));
        return 0;
    }
    if (err == 0)
        err = apply_batch(journal, side, batch);
    arena_reset(batch->arena);
    return err == GW_EAGAIN ? 1 : err ? err : 1;
}

static int on_top(void *user, const struct db_value *row, size_t count)
{
    (void)count;
    if (row[0].kind == DB_INT)
        *(int64_t *)user = row[0].integer;
    return 0;
}

// What another process has committed.
static int look_at_file(struct journal *journal)
{
    int64_t top = 0;
    bool must_look = atomic_exchange(&journal->must_look, false);
    if (!must_look && !atomic_load(&journal->is_shared))
        return 0;
    int err =
        db_each(journal->reader, SLICE_LIT("SELECT max(seq) FROM journal"), NULL, 0, on_top, &top);
    if (err && must_look) // the other process has gone: nobody else would make it look again
        atomic_store(&journal->must_look, true);
    pthread_mutex_lock(&journal->mutex);
    if (top > atomic_load(&journal->committed_seq))
        atomic_store(&journal->committed_seq, top);
    pthread_mutex_unlock(&journal->mutex);
    return err;
}

// How long a database may still wait for more records: 0: none, it is to be given what there is.
// UINT32_MAX: it has everything.
static uint32_t gather_left_ms(struct journal *journal, struct applier_side *side)
{
    int64_t behind = atomic_load(&journal->committed_seq) - atomic_load(&side->applied_seq);
    uint64_t now_ms = clock_boot_ms();
    if (behind <= 0) {
        side->since_ms = 0;
        return UINT32_MAX;
    }
    if (side->since_ms == 0)
        side->since_ms = now_ms;
    uint64_t until_ms = side->since_ms + side->gather_ms;
    if (behind >= BATCH_FULL || now_ms >= until_ms || atomic_load(&journal->flushers) > 0)
        return 0;
    return (uint32_t)(until_ms - now_ms);
}

static void wait_for_work(struct journal *journal, uint32_t at_most_ms)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += at_most_ms / 1000;
    until.tv_nsec += (long)(at_most_ms % 1000) * 1000000;
    if (until.tv_nsec >= 1000000000) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000;
    }
    if (at_most_ms != UINT32_MAX)
        pthread_cond_timedwait(&journal->changed, &journal->mutex, &until);
    else
        pthread_cond_wait(&journal->changed, &journal->mutex);
}

static int step_if_due(struct journal *journal, struct applier_side *side, struct batch *batch)
{
    if (gather_left_ms(journal, side) > 0)
        return 0;
    int result = step(journal, side, batch);
    if (result > 0)
        side->since_ms = 0; // what came meanwhile begins to wait now
    return result;
}

void *applier_run(void *arg)
{
    struct journal *journal = arg;
    struct batch *batch = calloc(1, sizeof(*batch));
    uint64_t next_log_ms = 0;
    gw_require(batch != NULL);
    batch->arena = arena_new(1 << 20);
    gw_require(batch->arena != NULL);
    pthread_setname_np(pthread_self(), "applier");
    for (bool is_stopping = false; !is_stopping;) {
        int look = look_at_file(journal);
        int logs = step_if_due(journal, &journal->logs, batch);
        int main_result = step_if_due(journal, &journal->main, batch);
        int err = logs < 0 ? logs : main_result < 0 ? main_result : look;
        drop_handed(journal);
        if (err && clock_boot_ms() >= next_log_ms) {
            next_log_ms = clock_boot_ms() + 10000;
            log_event(LOG_ERROR, "applier_failed", LOG_STR("database", logs < 0 ? "logs" : "main"),
                      LOG_STR("reason", gw_err_name(err)),
                      LOG_STR("error", db_error(logs < 0 ? journal->logs.db : journal->main.db)));
        }
        pthread_mutex_lock(&journal->mutex);
        is_stopping = journal->is_applier_stopping;
        uint32_t logs_ms = gather_left_ms(journal, &journal->logs);
        uint32_t main_ms = gather_left_ms(journal, &journal->main);
        uint32_t wait_ms = logs_ms < main_ms ? logs_ms : main_ms;
        bool is_behind = wait_ms != UINT32_MAX;
        if (err && (wait_ms < RETRY_MS || look))
            wait_ms = RETRY_MS;
        if (atomic_load(&journal->is_shared) && wait_ms > SHARED_LOOK_MS)
            wait_ms = SHARED_LOOK_MS;
        if (!is_stopping && wait_ms > 0 && (look || !atomic_load(&journal->must_look)))
            wait_for_work(journal, wait_ms);
        if (!is_behind)
            atomic_store(&journal->progress_ms, clock_boot_ms());
        pthread_mutex_unlock(&journal->mutex);
    }
    arena_free(batch->arena);
    buf_free(&batch->scratch);
    free(batch);
    return NULL;
}
