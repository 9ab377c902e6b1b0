// The journal's queue and thread. Producers link records into a queue; the thread takes what has
// queued, writes it in one transaction, then tells the acknowledgements and wakes the applier. A
// transaction that fails makes the journal sick: its records are refused, as are all that come.
// After "disk full" the thread tries again once a second whether a page can be written, which is no
// repetition of a failed fsync: that transaction has been rolled back and its records answered.
#include "state/journal.h"
#include "base/buf.h"
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
#define HANDED_MAX (32u << 20) // bytes of committed groups kept for the applier
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

static int on_top(void *user, const struct db_value *row, size_t count)
{
    (void)count;
    if (row[0].kind == DB_INT)
        *(int64_t *)user = row[0].integer;
    return 0;
}

static char *put_u32(char *out, size_t value)
{
    for (int i = 0; i < 4; i++)
        *out++ = (char)(value >> (8 * i));
    return out;
}

// One row: as many records of the group as it may hold. Moves *group and *seq past them.
static int write_row(struct journal *journal, const struct journal_record **group, int64_t *seq)
{
    const struct journal_record *record = *group;
    struct slice bytes = slice_of(record->bytes, record->len);
    size_t size = 2, count = 0;
    for (; record && count < JOURNAL_ROW_RECORDS; record = record->next, count++) {
        if (count && size + 4 + record->len > JOURNAL_ROW_BYTES)
            break;
        size += 4 + record->len;
    }
    if (count > 1) {
        buf_clear(&journal->row);
        char *at = buf_room(&journal->row, size), *start = at;
        if (!at)
            return GW_ENOMEM;
        *at++ = (char)JOURNAL_GROUP;
        *at++ = JOURNAL_GROUP_VERSION;
        for (record = *group; count-- > 0; record = record->next, ++*seq) {
            at = put_u32(at, record->len);
            memcpy(at, record->bytes, record->len);
            at += record->len;
        }
        bytes = slice_of(start, size);
    } else {
        ++*seq;
    }
    *group = record;
    struct db_value args[] = {
        DB_INT_VALUE(*seq),
        DB_BLOB_VALUE(bytes),
        DB_INT_VALUE(journal->owner),
    };
    return db_run(journal->db,
                  SLICE_LIT("INSERT INTO journal (seq, record, owner) VALUES (?, ?, ?)"), args, 3,
                  NULL, 0, NULL);
}

// The numbers are taken inside the transaction: another process may write here, too. *first gets
// the group's first.
static int write_group(struct journal *journal, const struct journal_record *group, int64_t *first)
{
    int64_t top = 0, seq = atomic_load(&journal->committed_seq);
    int err = db_begin(journal->db, true);
    if (err == 0)
        err =
            db_each(journal->db, SLICE_LIT("SELECT max(seq) FROM journal"), NULL, 0, on_top, &top);
    if (top > seq)
        seq = top;
    *first = seq + 1;
    while (group && err == 0)
        err = write_row(journal, &group, &seq);
    if (err == 0)
        err = db_commit(journal->db);
    if (err)
        db_rollback(journal->db);
    return err;
}

void journal_free_records(struct journal_record *record)
{
    while (record) {
        struct journal_record *next = record->next;
        free(record);
        record = next;
    }
}

// Answers the acknowledgements. Gives the bytes that the queue held.
static size_t answer_group(struct journal_record *group, int err)
{
    size_t bytes = 0;
    for (; group; group = group->next) {
        bytes += sizeof(*group) + group->len;
        if (group->ack)
            group->ack->on_commit(group->ack, err);
    }
    return bytes;
}

// Under the mutex. False: the applier is too far behind, or reads the file anyway.
static bool hand_group(struct journal *journal, struct journal_group *group)
{
    if (!group || atomic_load(&journal->is_handed_over) ||
        journal->handed_bytes + group->bytes > HANDED_MAX ||
        (journal->handed_last && journal->handed_last->last_seq + 1 != group->first_seq))
        return false;
    if (journal->handed_last)
        journal->handed_last->next = group;
    else
        journal->handed_first = group;
    journal->handed_last = group;
    journal->handed_bytes += group->bytes;
    return true;
}

static int64_t applied_by_both(struct journal *journal)
{
    int64_t main_seq = atomic_load(&journal->main.applied_seq);
    int64_t logs_seq = atomic_load(&journal->logs.applied_seq);
    return main_seq < logs_seq ? main_seq : logs_seq;
}

static void commit_group(struct journal *journal, struct journal_record *records, size_t count)
{
    int64_t first = 0;
    int err = GW_EIO;
    atomic_store(&journal->oldest_ms, records->pushed_ms);
    if (!atomic_load(&journal->is_sick)) {
        err = write_group(journal, records, &first);
        if (err)
            become_sick(journal, err);
    }
    size_t bytes = answer_group(records, err);
    struct journal_group *group = err ? NULL : malloc(sizeof(*group));
    bool is_handed = false;
    if (group)
        *group = (struct journal_group){NULL, first, first + (int64_t)count - 1, bytes, records};
    atomic_fetch_sub(&journal->queued_bytes, bytes);
    atomic_fetch_sub(&journal->queued_records, count);
    // Under the mutex, so that the applier that is about to wait does not miss it.
    pthread_mutex_lock(&journal->mutex);
    if (err == 0) {
        atomic_fetch_add(&journal->commits, 1);
        // The applier has been idle: it is behind from now on, not since its last step.
        if (applied_by_both(journal) >= first - 1)
            atomic_store(&journal->progress_ms, clock_boot_ms());
        int64_t last = first + (int64_t)count - 1;
        if (last > atomic_load(&journal->committed_seq)) // another process's may be seen already
            atomic_store(&journal->committed_seq, last);
        is_handed = hand_group(journal, group);
    }
    atomic_fetch_add(&journal->finished, count);
    pthread_cond_broadcast(&journal->changed);
    pthread_mutex_unlock(&journal->mutex);
    if (!is_handed) {
        journal_free_records(records);
        free(group);
    }
    atomic_store(&journal->oldest_ms, 0);
}

// One step; false when there is nothing to drop.
static bool drop_applied(struct journal *journal)
{
    int64_t until = applied_by_both(journal) - KEEP_RECORDS;
    if (atomic_load(&journal->is_sick) || atomic_load(&journal->is_handed_over) ||
        until - journal->first_seq < DROP_STEP)
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
        err = db_run(journal->db,
                     SLICE_LIT("INSERT INTO journal (seq, record) VALUES (-1, zeroblob(65536))"),
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
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += LINGER_MS * 1000000L;
    if (until.tv_nsec >= 1000000000L) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000L;
    }
    (void)sem_clockwait(&journal->hurry, CLOCK_MONOTONIC, &until);
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
        clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_sec += PROBE_MS / 1000;
        if (sem_clockwait(&journal->wake, CLOCK_MONOTONIC, &until) != 0 && errno == ETIMEDOUT &&
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
    bool is_behind =
        !atomic_load(&journal->is_handed_over) && (view->applied_main_seq < view->committed_seq ||
                                                   view->applied_logs_seq < view->committed_seq);
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
    atomic_fetch_add(&journal->flushers, 1);
    pthread_cond_broadcast(&journal->changed);
    for (;;) {
        if (atomic_load(&journal->finished) >= pushed) {
            if (seq < 0)
                seq = atomic_load(&journal->committed_seq);
            if (applied_by_both(journal) >= seq || atomic_load(&journal->is_handed_over))
                break;
        }
        if (pthread_cond_timedwait(&journal->changed, &journal->mutex, &until) == ETIMEDOUT) {
            err = GW_ETIMEOUT;
            break;
        }
    }
    atomic_fetch_sub(&journal->flushers, 1);
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
    // Rows are appended and never read here: a large cache would only keep what is on disk.
    err = db_run(journal->db, SLICE_LIT("PRAGMA cache_size = -2048"), NULL, 0, NULL, 0, NULL);
    if (err == 0)
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
    while (journal->handed_first) {
        struct journal_group *group = journal->handed_first;
        journal->handed_first = group->next;
        journal_free_records(group->records);
        free(group);
    }
    buf_free(&journal->row);
    sem_destroy(&journal->wake);
    sem_destroy(&journal->hurry);
    pthread_cond_destroy(&journal->changed);
    pthread_mutex_destroy(&journal->mutex);
    free(journal);
}

static void end_applier(struct journal *journal)
{
    pthread_mutex_lock(&journal->mutex);
    journal->is_applier_stopping = true;
    pthread_cond_broadcast(&journal->changed);
    pthread_mutex_unlock(&journal->mutex);
}

static void stop_applier(struct journal *journal)
{
    end_applier(journal);
    pthread_join(journal->applier_thread, NULL);
}

void journal_set_shared(struct journal *journal, bool is_shared)
{
    pthread_mutex_lock(&journal->mutex);
    atomic_store(&journal->is_shared, is_shared);
    atomic_store(&journal->must_look, true);
    pthread_cond_broadcast(&journal->changed); // the applier waits anew
    pthread_mutex_unlock(&journal->mutex);
}

void journal_hand_over(struct journal *journal)
{
    atomic_store(&journal->is_handed_over, true);
    end_applier(journal);
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
    journal->owner = options->owner;
    atomic_store(&journal->is_shared, options->is_shared);
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
