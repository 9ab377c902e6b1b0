// The journal's queue and thread. Producers link records into a queue; the thread takes what has
// queued, writes it in one transaction, then tells the acknowledgements and wakes the applier. A
// transaction that fails makes the journal sick: its records are refused, as are all that come.
// After "disk full" the thread tries again once a second whether a page can be written, which is no
// repetition of a failed fsync: that transaction has been rolled back and its records answered.
#include "state/journal.h"
#include "base/clock.h"
#include "base/log.h"
#include "state/journal_impl.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define QUEUE_BYTES_MAX (256u << 20)
#define GROUP_MAX 4096
#define GROUP_BYTES_MAX (8u << 20)
#define VERSION 1
// Records that both databases have are kept until there are this many, then dropped in steps.
#define KEEP_RECORDS 10000
#define DROP_STEP 5000
#define PROBE_MS 1000
// Records that nobody waits for (log rows) let others gather, so that a busy gateway syncs 40 times
// a second instead of as often as the disk can. A record with an acknowledgement ends the wait at
// once.
#define LINGER_MS 25

// CRC-32 (IEEE 802.3), eight bytes a step: each record pays for it on the worker that pushes it.
static uint32_t crc_tables[8][256];
static pthread_once_t crc_once = PTHREAD_ONCE_INIT;

static void make_crc_tables(void)
{
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t crc = i;
        for (int bit = 0; bit < 8; bit++)
            crc = (crc >> 1) ^ (crc & 1 ? 0xedb88320u : 0);
        crc_tables[0][i] = crc;
    }
    for (uint32_t i = 0; i < 256; i++) {
        for (int k = 1; k < 8; k++)
            crc_tables[k][i] =
                (crc_tables[k - 1][i] >> 8) ^ crc_tables[0][crc_tables[k - 1][i] & 255];
    }
}

uint32_t journal_crc32(const void *bytes, size_t len)
{
    const unsigned char *at = bytes;
    uint32_t crc = 0xffffffff;
    pthread_once(&crc_once, make_crc_tables);
    for (; len >= 8; len -= 8, at += 8) {
        uint32_t low = crc ^ ((uint32_t)at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 |
                              (uint32_t)at[3] << 24);
        crc = crc_tables[7][low & 255] ^ crc_tables[6][low >> 8 & 255] ^
              crc_tables[5][low >> 16 & 255] ^ crc_tables[4][low >> 24] ^ crc_tables[3][at[4]] ^
              crc_tables[2][at[5]] ^ crc_tables[1][at[6]] ^ crc_tables[0][at[7]];
    }
    for (; len > 0; len--, at++)
        crc = (crc >> 8) ^ crc_tables[0][(crc ^ *at) & 255];
    return ~crc;
}

int journal_push(struct journal *journal, enum journal_kind kind, struct slice payload,
                 struct journal_ack *ack)
{
    if (payload.len > JOURNAL_PAYLOAD_MAX)
        return GW_ETOOBIG;
    if (atomic_load(&journal->is_sick))
        return GW_EIO;
    size_t len = JOURNAL_HEAD + payload.len + JOURNAL_TAIL;
    size_t cost = sizeof(struct journal_record) + len;
    if (atomic_fetch_add(&journal->queued_bytes, cost) + cost > QUEUE_BYTES_MAX) {
        atomic_fetch_sub(&journal->queued_bytes, cost);
        return GW_EFULL;
    }
    struct journal_record *record = malloc(cost);
    if (!record) {
        atomic_fetch_sub(&journal->queued_bytes, cost);
        return GW_ENOMEM;
    }
    record->next = NULL;
    record->ack = ack;
    record->pushed_ms = clock_boot_ms();
    record->len = len;
    record->bytes[0] = (char)kind;
    record->bytes[1] = VERSION;
    if (payload.len)
        memcpy(record->bytes + JOURNAL_HEAD, payload.ptr, payload.len);
    uint32_t crc = journal_crc32(record->bytes, len - JOURNAL_TAIL);
    for (int i = 0; i < JOURNAL_TAIL; i++)
        record->bytes[len - JOURNAL_TAIL + (size_t)i] = (char)(crc >> (8 * i));
    atomic_fetch_add(&journal->queued_records, 1);
    atomic_fetch_add(&journal->pushed, 1);
    bool must_wake = mpsc_push(&journal->queue, &record->node);
    if (ack)
        sem_post(&journal->hurry);
    if (must_wake)
        sem_post(&journal->wake);
    return 0;
}

static struct journal_record *take_group(struct journal *journal, size_t *count)
{
    struct journal_record *first = NULL, **last = &first;
    size_t bytes = 0;
    *count = 0;
    while (*count < GROUP_MAX && bytes < GROUP_BYTES_MAX) {
        struct mpsc_node *node = mpsc_pop(&journal->queue);
        if (!node)
            break;
        struct journal_record *record = (struct journal_record *)node;
        *last = record;
        last = &record->next;
        bytes += record->len;
        (*count)++;
    }
    return first;
}

static void become_sick(struct journal *journal, int err)
{
    if (err != GW_EFULL && err != GW_EBUSY)
        journal->is_final = true;
    if (!atomic_exchange(&journal->is_sick, true))
        log_event(LOG_ERROR, "journal_sick", LOG_STR("reason", gw_err_name(err)),
                  LOG_STR("error", db_error(journal->db)));
}

static int write_group(struct journal *journal, const struct journal_record *group, int64_t seq)
{
    int err = db_begin(journal->db, true);
    for (; group && err == 0; group = group->next) {
        struct db_value args[] = {
            DB_INT_VALUE(seq++),
            DB_BLOB_VALUE(slice_of(group->bytes, group->len)),
        };
        err = db_run(journal->db, SLICE_LIT("INSERT INTO journal (seq, record) VALUES (?, ?)"),
                     args, 2, NULL, 0, NULL);
    }
    if (err == 0)
        err = db_commit(journal->db);
    if (err)
        db_rollback(journal->db);
    return err;
}

static void finish_group(struct journal *journal, struct journal_record *group, size_t count,
                         int err)
{
    size_t bytes = 0;
    while (group) {
        struct journal_record *record = group;
        group = record->next;
        bytes += sizeof(*record) + record->len;
        if (record->ack)
            record->ack->on_commit(record->ack, err);
        free(record);
    }
    atomic_fetch_sub(&journal->queued_bytes, bytes);
    atomic_fetch_sub(&journal->queued_records, count);
    pthread_mutex_lock(&journal->mutex);
    atomic_fetch_add(&journal->finished, count);
    pthread_cond_broadcast(&journal->changed);
    pthread_mutex_unlock(&journal->mutex);
}

static int64_t applied_by_both(struct journal *journal)
{
    int64_t main_seq = atomic_load(&journal->main.applied_seq);
    int64_t logs_seq = atomic_load(&journal->logs.applied_seq);
    return main_seq < logs_seq ? main_seq : logs_seq;
}

static void commit_group(struct journal *journal, struct journal_record *group, size_t count)
{
    int64_t seq = atomic_load(&journal->committed_seq) + 1;
    int err = GW_EIO;
    atomic_store(&journal->oldest_ms, group->pushed_ms);
    if (!atomic_load(&journal->is_sick)) {
        err = write_group(journal, group, seq);
        if (err)
            become_sick(journal, err);
    }
    if (err == 0) {
        atomic_fetch_add(&journal->commits, 1);
        // Under the mutex, so that the applier that is about to wait does not miss it.
        pthread_mutex_lock(&journal->mutex);
        // The applier has been idle: it is behind from now on, not since its last step.
        if (applied_by_both(journal) >= seq - 1)
            atomic_store(&journal->progress_ms, clock_boot_ms());
        atomic_store(&journal->committed_seq, seq + (int64_t)count - 1);
        pthread_cond_broadcast(&journal->changed);
        pthread_mutex_unlock(&journal->mutex);
    }
    finish_group(journal, group, count, err);
    atomic_store(&journal->oldest_ms, 0);
}

// One step; false when there is nothing to drop.
static bool drop_applied(struct journal *journal)
{
    int64_t until = applied_by_both(journal) - KEEP_RECORDS;
    if (atomic_load(&journal->is_sick) || until - journal->first_seq < DROP_STEP)
        return false;
    struct db_value args[] = {DB_INT_VALUE(journal->first_seq + DROP_STEP)};
    int err =
        db_run(journal->db, SLICE_LIT("DELETE FROM journal WHERE seq < ?"), args, 1, NULL, 0, NULL);
    if (err) {
        become_sick(journal, err);
        return false;
    }
    journal->first_seq += DROP_STEP;
    return true;
}

// Is there room again? Writes and takes back one record of 64 KiB.
static void probe(struct journal *journal)
{
    int err = db_begin(journal->db, true);
    if (err == 0)
        err = db_run(journal->db, SLICE_LIT("INSERT INTO journal VALUES (-1, zeroblob(65536))"),
                     NULL, 0, NULL, 0, NULL);
    if (err == 0)
        err = db_run(journal->db, SLICE_LIT("DELETE FROM journal WHERE seq = -1"), NULL, 0, NULL, 0,
                     NULL);
    if (err == 0)
        err = db_commit(journal->db);
    if (err) {
        db_rollback(journal->db);
        journal->is_final = err != GW_EFULL && err != GW_EBUSY;
        return;
    }
    atomic_store(&journal->is_sick, false);
    log_event(LOG_WARN, "journal_recovered", LOG_INT("seq", atomic_load(&journal->committed_seq)));
}

static void linger(struct journal *journal)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += LINGER_MS * 1000000L;
    if (until.tv_nsec >= 1000000000L) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000L;
    }
    (void)sem_timedwait(&journal->hurry, &until);
    while (sem_trywait(&journal->hurry) == 0)
        ; // all that hurried so far are in the group that follows
}

static void *journal_run(void *arg)
{
    struct journal *journal = arg;
    pthread_setname_np(pthread_self(), "journal");
    for (;;) {
        size_t count = 0;
        struct journal_record *group = take_group(journal, &count);
        if (group) {
            commit_group(journal, group, count);
            (void)drop_applied(journal);
            if (!atomic_load(&journal->is_stopping))
                linger(journal);
            continue;
        }
        if (drop_applied(journal))
            continue;
        bool is_stopping = atomic_load(&journal->is_stopping);
        if (!mpsc_sleep(&journal->queue))
            continue;
        // What was pushed before the stop has been taken above.
        if (is_stopping)
            break;
        struct timespec until;
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_sec += PROBE_MS / 1000;
        if (sem_timedwait(&journal->wake, &until) != 0 && errno == ETIMEDOUT &&
            atomic_load(&journal->is_sick) && !journal->is_final)
            probe(journal);
        else if (!atomic_load(&journal->is_stopping))
            linger(journal);
    }
    return NULL;
}

void journal_read_view(struct journal *journal, struct journal_view *view)
{
    uint64_t now_ms = clock_boot_ms(), oldest_ms = atomic_load(&journal->oldest_ms);
    uint64_t progress_ms = atomic_load(&journal->progress_ms);
    *view = (struct journal_view){
        .queued_records = atomic_load(&journal->queued_records),
        .queued_bytes = atomic_load(&journal->queued_bytes),
        .oldest_ms = oldest_ms && oldest_ms < now_ms ? (uint32_t)(now_ms - oldest_ms) : 0,
        .applied_main_seq = atomic_load(&journal->main.applied_seq),
        .applied_logs_seq = atomic_load(&journal->logs.applied_seq),
        .committed_seq = atomic_load(&journal->committed_seq),
        .quarantined = atomic_load(&journal->quarantined),
        .commits = atomic_load(&journal->commits),
        .is_sick = atomic_load(&journal->is_sick),
    };
    bool is_behind = view->applied_main_seq < view->committed_seq ||
                     view->applied_logs_seq < view->committed_seq;
    if (is_behind && progress_ms < now_ms)
        view->behind_ms = (uint32_t)(now_ms - progress_ms);
}

int journal_flush(struct journal *journal, uint32_t timeout_ms)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += timeout_ms / 1000;
    until.tv_nsec += (long)(timeout_ms % 1000) * 1000000;
    if (until.tv_nsec >= 1000000000) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000;
    }
    uint64_t pushed = atomic_load(&journal->pushed);
    sem_post(&journal->hurry);
    int64_t seq = -1;
    int err = 0;
    pthread_mutex_lock(&journal->mutex);
    for (;;) {
        if (atomic_load(&journal->finished) >= pushed) {
            if (seq < 0)
                seq = atomic_load(&journal->committed_seq);
            if (applied_by_both(journal) >= seq)
                break;
        }
        if (pthread_cond_timedwait(&journal->changed, &journal->mutex, &until) == ETIMEDOUT) {
            err = GW_ETIMEOUT;
            break;
        }
    }
    pthread_mutex_unlock(&journal->mutex);
    return err;
}

static int on_bounds(void *user, const struct db_value *row, size_t count)
{
    int64_t *bounds = user;
    (void)count;
    bounds[0] = row[0].kind == DB_INT ? row[0].integer : 0;
    bounds[1] = row[1].kind == DB_INT ? row[1].integer : 0;
    return 0;
}

static int open_files(struct journal *journal, const struct journal_options *options, char *error,
                      size_t error_size)
{
    int64_t bounds[2] = {0, 0};
    int err = db_open(options->journal_path, options->is_durable ? DB_OPEN_FULL_SYNC : 0,
                      &journal->db, error, error_size);
    if (err)
        return err;
    err = db_each(journal->db, SLICE_LIT("SELECT min(seq), max(seq) FROM journal"), NULL, 0,
                  on_bounds, bounds);
    if (err) {
        snprintf(error, error_size, "%s: %s", options->journal_path, db_error(journal->db));
        return err;
    }
    err = applier_open(journal, options, error, error_size);
    if (err)
        return err;
    // Numbers go on after the highest ever used, also when the journal's file was replaced.
    int64_t main_seq = atomic_load(&journal->main.applied_seq);
    int64_t logs_seq = atomic_load(&journal->logs.applied_seq);
    int64_t last = bounds[1];
    last = main_seq > last ? main_seq : last;
    last = logs_seq > last ? logs_seq : last;
    journal->first_seq = bounds[0] > 0 ? bounds[0] : last + 1;
    atomic_store(&journal->committed_seq, last);
    return 0;
}

static void free_journal(struct journal *journal)
{
    db_close(journal->db);
    applier_close_files(journal);
    sem_destroy(&journal->wake);
    sem_destroy(&journal->hurry);
    pthread_cond_destroy(&journal->changed);
    pthread_mutex_destroy(&journal->mutex);
    free(journal);
}

static void stop_applier(struct journal *journal)
{
    pthread_mutex_lock(&journal->mutex);
    journal->is_applier_stopping = true;
    pthread_cond_broadcast(&journal->changed);
    pthread_mutex_unlock(&journal->mutex);
    pthread_join(journal->applier_thread, NULL);
}

int journal_open(const struct journal_options *options, struct journal **out, char *error,
                 size_t error_size)
{
    struct journal *journal = calloc(1, sizeof(*journal));
    if (!journal) {
        snprintf(error, error_size, "out of memory");
        return GW_ENOMEM;
    }
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&journal->changed, &attributes);
    pthread_condattr_destroy(&attributes);
    pthread_mutex_init(&journal->mutex, NULL);
    sem_init(&journal->wake, 0, 0);
    sem_init(&journal->hurry, 0, 0);
    mpsc_init(&journal->queue);
    int err = open_files(journal, options, error, error_size);
    if (err) {
        free_journal(journal);
        return err;
    }
    atomic_store(&journal->progress_ms, clock_boot_ms());
    if (pthread_create(&journal->applier_thread, NULL, applier_run, journal) != 0) {
        snprintf(error, error_size, "cannot start a thread");
        free_journal(journal);
        return GW_ENOMEM;
    }
    if (pthread_create(&journal->thread, NULL, journal_run, journal) != 0) {
        snprintf(error, error_size, "cannot start a thread");
        stop_applier(journal);
        free_journal(journal);
        return GW_ENOMEM;
    }
    *out = journal;
    return 0;
}

void journal_close(struct journal *journal)
{
    if (!journal)
        return;
    atomic_store(&journal->is_stopping, true);
    sem_post(&journal->hurry);
    sem_post(&journal->wake);
    pthread_join(journal->thread, NULL);
    if (journal_flush(journal, 60000) != 0)
        log_event(LOG_ERROR, "journal_not_applied",
                  LOG_INT("committed_seq", atomic_load(&journal->committed_seq)));
    stop_applier(journal);
    free_journal(journal);
}
