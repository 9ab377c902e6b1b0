// The journal and the applier: each acknowledged record is folded exactly once, also when the
// process is killed at any point; bad records go to quarantine; a full disk makes the journal sick.
#include "base/buf.h"
#include "base/clock.h"
#include "state/journal_impl.h"
#include "store_test.h"
#include <signal.h>
#include <sys/wait.h>
#include <time.h>

static struct test_store test;

static struct log_record record_of(int64_t number)
{
    struct log_record record = {
        .created_ms = INT64_C(1700000000000) + number,
        .key_id = 1 + number % 3,
        .upstream_id = 7,
        .request_id = SLICE_LIT("req"),
        .client_ip = SLICE_LIT("10.0.0.1"),
        .method = SLICE_LIT("POST"),
        .path = SLICE_LIT("/v1/chat/completions"),
        .dialect = SLICE_LIT("openai"),
        .model = SLICE_LIT("gpt-test"),
        .status = 200,
        .duration_ms = 10,
        .is_success = true,
        .usage = {.input = 100, .output = 10, .flags = USAGE_REPORTED},
        .cost_nano = number,
    };
    memcpy(record.id.bytes, &number, sizeof(number));
    return record;
}

static int push(struct journal *journal, int64_t number, struct journal_ack *ack)
{
    struct log_record record = record_of(number);
    struct buf bytes = BUF_INIT(0);
    // Not ck_assert: also called in forked children, which share Check's message file.
    gw_require(log_record_encode(&record, &bytes) == 0);
    int err = journal_push(journal, JOURNAL_LOG, buf_slice(&bytes), ack);
    buf_free(&bytes);
    return err;
}

// The published check value, and every length against the definition, bit by bit.
START_TEST(checksums_are_crc_32)
{
    unsigned char bytes[70];
    ck_assert_uint_eq(journal_crc32("123456789", 9), 0xcbf43926u);
    for (size_t i = 0; i < sizeof bytes; i++)
        bytes[i] = (unsigned char)(i * 151 + 7);
    for (size_t len = 0; len <= sizeof bytes; len++) {
        uint32_t crc = 0xffffffff;
        for (size_t i = 0; i < len * 8; i++) {
            uint32_t bit = (crc ^ (bytes[i / 8] >> (i % 8))) & 1;
            crc = (crc >> 1) ^ (bit ? 0xedb88320u : 0);
        }
        ck_assert_uint_eq(journal_crc32(bytes, len), ~crc);
    }
}
END_TEST

START_TEST(records_round_trip)
{
    struct log_attempt attempts[20];
    char long_text[5000];
    memset(long_text, 'e', sizeof(long_text));
    for (int i = 0; i < 20; i++)
        attempts[i] = (struct log_attempt){i, -i, (uint32_t)i * 100, SLICE_LIT("http 503")};
    struct log_record in = record_of(5), out;
    in.created_ms = -5;
    in.status = INT32_MIN;
    in.cost_nano = INT64_MIN;
    in.bytes_out = UINT64_MAX;
    in.error_message = slice_of(long_text, sizeof(long_text));
    in.user_agent = SLICE_LIT("caf\xc3\xa9");
    in.attempts = attempts;
    in.attempt_count = 20;
    struct buf bytes = BUF_INIT(0);
    struct arena *arena = arena_new(4096);
    ck_assert_int_eq(log_record_encode(&in, &bytes), 0);
    ck_assert_int_eq(log_record_decode(buf_slice(&bytes), arena, &out), 0);
    ck_assert_int_eq(out.created_ms, -5);
    ck_assert_int_eq(out.status, INT32_MIN);
    ck_assert_int_eq(out.cost_nano, INT64_MIN);
    ck_assert_uint_eq(out.bytes_out, UINT64_MAX);
    ck_assert_uint_eq(out.error_message.len, 2048);
    ck_assert(slice_is(out.user_agent, "caf\xc3\xa9"));
    ck_assert(slice_is(out.model, "gpt-test"));
    ck_assert_uint_eq(out.usage.input, 100);
    ck_assert(out.is_success && !out.is_stream);
    ck_assert_uint_eq(out.attempt_count, 16);
    ck_assert_int_eq(out.attempts[15].status, -15);
    ck_assert(slice_is(out.attempts[3].reason, "http 503"));
    // A later version's field is skipped; any cut is an error or a shorter record, never a crash.
    ck_assert_int_eq(buf_append(&bytes, SLICE_LIT("\xc7\x03new")), 0);
    ck_assert_int_eq(log_record_decode(buf_slice(&bytes), arena, &out), 0);
    for (size_t len = 0; len < bytes.len; len++) {
        // A block of its own, so that the address sanitizer sees a read beyond it.
        char *cut = malloc(len + 1);
        memcpy(cut, buf_slice(&bytes).ptr, len);
        int err = log_record_decode(slice_of(cut, len), arena, &out);
        ck_assert(err == 0 || err == GW_ECORRUPT);
        free(cut);
    }
    buf_free(&bytes);
    arena_free(arena);
}
END_TEST

struct counter {
    struct journal_ack ack;
    _Atomic int called;
    int err;
};

static void on_commit(struct journal_ack *ack, int err)
{
    struct counter *counter = (struct counter *)ack;
    counter->err = err;
    atomic_fetch_add(&counter->called, 1);
}

START_TEST(rows_and_rollups_follow_within_200_ms)
{
    test_store_prepare(&test);
    test_store_open(&test);
    test_exec(&test, "main.db",
              "INSERT INTO api_keys (id, uid, key_hash, key_prefix, name, created_ms, updated_ms) "
              "VALUES (2, 'u2', zeroblob(32), 'sk', 'n', 1, 1)");
    struct journal *journal = store_journal(test.store);
    struct counter counter = {.ack = {.on_commit = on_commit}};
    uint64_t start = clock_boot_ms();
    for (int64_t i = 0; i < 9; i++)
        ck_assert_int_eq(push(journal, i, NULL), 0);
    ck_assert_int_eq(push(journal, 9, &counter.ack), 0);
    ck_assert_int_eq(journal_flush(journal, 10000), 0);
    uint64_t took = clock_boot_ms() - start;
#if !defined(MOONGATE_ASAN) && !defined(MOONGATE_TSAN)
    ck_assert_msg(took <= 200, "%llu ms", (unsigned long long)took);
#else
    (void)took;
#endif
    ck_assert_int_eq(atomic_load(&counter.called), 1);
    ck_assert_int_eq(counter.err, 0);
    ck_assert_int_eq(test_query(&test, "main-logs.db", "SELECT count(*) FROM request_logs"), 10);
    ck_assert_int_eq(test_query(&test, "main.db", "SELECT sum(requests) FROM rollups_hourly"), 10);
    ck_assert_int_eq(test_query(&test, "main.db", "SELECT sum(cost_nano) FROM rollups_hourly"), 45);
    ck_assert_int_eq(test_query(&test, "main.db", "SELECT count(*) FROM rollups_hourly"), 3);
    ck_assert_int_eq(
        test_query(&test, "main.db", "SELECT request_count FROM api_keys WHERE id = 2"), 3);
    ck_assert_int_eq(test_query(&test, "main.db", "SELECT token_count FROM api_keys WHERE id = 2"),
                     330);
    struct journal_view view;
    journal_read_view(journal, &view);
    ck_assert_uint_eq(view.queued_records, 0);
    ck_assert_uint_eq(view.queued_bytes, 0);
    ck_assert_int_eq(view.committed_seq, 10);
    ck_assert_int_eq(view.applied_main_seq, 10);
    ck_assert_int_eq(view.applied_logs_seq, 10);
    ck_assert_uint_ge(view.commits, 1);
    char why[200];
    ck_assert_msg(store_is_healthy(test.store, why, sizeof(why)), "%s", why);
    // Opened again, nothing is folded twice and numbers go on.
    test_store_close(&test);
    test_store_open(&test);
    ck_assert_int_eq(push(store_journal(test.store), 10, NULL), 0);
    ck_assert_int_eq(journal_flush(store_journal(test.store), 10000), 0);
    ck_assert_int_eq(test_query(&test, "main-logs.db", "SELECT max(seq) FROM request_logs"), 11);
    ck_assert_int_eq(test_query(&test, "main.db", "SELECT sum(requests) FROM rollups_hourly"), 11);
    test_store_end(&test);
}
END_TEST

START_TEST(a_bad_record_is_quarantined_and_its_group_commits)
{
    test_store_prepare(&test);
    test_store_open(&test);
    struct journal *journal = store_journal(test.store);
    ck_assert_int_eq(push(journal, 1, NULL), 0);
    ck_assert_int_eq(journal_push(journal, JOURNAL_LOG, SLICE_LIT("nonsense"), NULL), 0);
    ck_assert_int_eq(journal_push(journal, JOURNAL_SETTLE, SLICE_LIT("x"), NULL), 0);
    ck_assert_int_eq(journal_push(journal, JOURNAL_LOG, SLICE_NONE, NULL), 0);
    ck_assert_int_eq(push(journal, 2, NULL), 0);
    ck_assert_int_eq(journal_flush(journal, 10000), 0);
    ck_assert_int_eq(test_query(&test, "main.db", "SELECT count(*) FROM quarantine"), 3);
    ck_assert_int_eq(test_query(&test, "main.db", "SELECT sum(requests) FROM rollups_hourly"), 2);
    ck_assert_int_eq(test_query(&test, "main-logs.db", "SELECT count(*) FROM request_logs"), 2);
    struct journal_view view;
    journal_read_view(journal, &view);
    ck_assert_uint_eq(view.quarantined, 3);
    char large[JOURNAL_PAYLOAD_MAX + 1] = "";
    ck_assert_int_eq(journal_push(journal, JOURNAL_LOG, slice_of(large, sizeof(large)), NULL),
                     GW_ETOOBIG);
    // A row that the log database refuses is quarantined there, and only there.
    test_exec(&test, "main-logs.db",
              "CREATE TRIGGER refuse BEFORE INSERT ON request_logs WHEN NEW.cost_nano = 3 BEGIN "
              "SELECT RAISE(ABORT, 'refused'); END");
    ck_assert_int_eq(push(journal, 3, NULL), 0);
    ck_assert_int_eq(push(journal, 4, NULL), 0);
    ck_assert_int_eq(journal_flush(journal, 10000), 0);
    ck_assert_int_eq(test_query(&test, "main-logs.db", "SELECT count(*) FROM quarantine"), 1);
    ck_assert_int_eq(test_query(&test, "main-logs.db", "SELECT count(*) FROM request_logs"), 3);
    ck_assert_int_eq(test_query(&test, "main.db", "SELECT sum(requests) FROM rollups_hourly"), 4);
    test_store_end(&test);
}
END_TEST

// Rows of several records, read from the file by a store that did not write them; one of them is
// damaged and counts as one bad record.
START_TEST(rows_of_several_records_are_read_back)
{
    test_store_prepare(&test);
    test_store_open(&test);
    struct journal *journal = store_journal(test.store);
    ck_assert_int_eq(journal_flush(journal, 10000), 0);
    journal_hand_over(journal); // nobody folds
    struct counter counter = {.ack = {.on_commit = on_commit}};
    for (int round = 0; round < 2; round++) {
        counter.called = 0;
        for (int64_t i = 0; i < 600; i++)
            ck_assert_int_eq(push(journal, round * 600 + i, i == 599 ? &counter.ack : NULL), 0);
        while (atomic_load(&counter.called) == 0)
            sched_yield();
    }
    test_store_close(&test);
    int64_t rows = test_query(&test, "main-journal.db", "SELECT count(*) FROM journal");
    ck_assert_msg(rows >= 6 && rows < 600, "%lld", (long long)rows);
    ck_assert_int_eq(test_query(&test, "main-journal.db", "SELECT max(seq) FROM journal"), 1200);
    ck_assert_int_eq(test_query(&test, "main-logs.db", "SELECT count(*) FROM request_logs"), 0);
    int64_t bad =
        test_query(&test, "main-journal.db", "SELECT max(seq) FROM journal WHERE seq < 1200");
    int64_t before = test_query(&test, "main-journal.db",
                                "SELECT coalesce(max(seq), 0) FROM journal WHERE seq < (SELECT "
                                "max(seq) FROM journal WHERE seq < 1200)");
    test_exec(&test, "main-journal.db",
              "UPDATE journal SET record = CAST(substr(record, 1, length(record) - 3) AS BLOB) "
              "WHERE seq = (SELECT max(seq) FROM journal WHERE seq < 1200)");
    test_store_open(&test);
    journal = store_journal(test.store);
    ck_assert_int_eq(journal_flush(journal, 30000), 0);
    ck_assert_int_eq(test_query(&test, "main-logs.db", "SELECT count(*) FROM request_logs"),
                     1200 - (bad - before));
    ck_assert_int_eq(test_query(&test, "main.db", "SELECT sum(requests) FROM rollups_hourly"),
                     1200 - (bad - before));
    ck_assert_int_eq(test_query(&test, "main.db", "SELECT count(*) FROM quarantine"), 1);
    ck_assert_int_eq(test_query(&test, "main-logs.db", "SELECT max(seq) FROM request_logs"), 1200);
    // Each record kept its number: the n-th pushed has number n and cost n - 1.
    ck_assert_int_eq(test_query(&test, "main-logs.db",
                                "SELECT count(*) FROM request_logs WHERE cost_nano <> seq - 1"),
                     0);
    test_store_end(&test);
}
END_TEST

struct pusher {
    pthread_t thread;
    int64_t first;
    int pushed;
};

static void *push_many(void *arg)
{
    struct pusher *pusher = arg;
    for (int i = 0; i < 3000; i++)
        pusher->pushed += push(store_journal(test.store), pusher->first + i, NULL) == 0;
    return NULL;
}

START_TEST(many_threads_push_and_old_records_are_dropped)
{
    test_store_prepare(&test);
    test_store_open(&test);
    struct pusher pushers[4];
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < 4; i++) {
            pushers[i] = (struct pusher){.first = round * 100000 + i * 10000};
            ck_assert_int_eq(pthread_create(&pushers[i].thread, NULL, push_many, &pushers[i]), 0);
        }
        for (int i = 0; i < 4; i++) {
            pthread_join(pushers[i].thread, NULL);
            ck_assert_int_eq(pushers[i].pushed, 3000);
        }
        ck_assert_int_eq(journal_flush(store_journal(test.store), 100000), 0);
    }
    ck_assert_int_eq(test_query(&test, "main-logs.db", "SELECT count(*) FROM request_logs"), 24000);
    ck_assert_int_eq(test_query(&test, "main.db", "SELECT sum(requests) FROM rollups_hourly"),
                     24000);
    ck_assert_int_eq(
        test_query(&test, "main-logs.db", "SELECT count(DISTINCT exchange_id) FROM request_logs"),
        24000);
    test_store_close(&test);
    // A row may hold several records; its number is the last one's.
    int64_t left =
        test_query(&test, "main-journal.db", "SELECT max(seq) - min(seq) + 1 FROM journal");
    ck_assert_msg(left >= 10000 && left < 20000, "%lld", (long long)left);
    test_store_end(&test);
}
END_TEST

START_TEST(a_full_disk_makes_it_sick_and_room_heals_it)
{
    test_store_prepare(&test);
    test_store_open(&test);
    struct journal *journal = store_journal(test.store);
    struct counter counter = {.ack = {.on_commit = on_commit}};
    // Before anything is pushed the thread uses its connection only for its own statements.
    ck_assert_int_eq(
        db_run(journal->db, SLICE_LIT("PRAGMA max_page_count = 40"), NULL, 0, NULL, 0, NULL), 0);
    char large[50000];
    memset(large, 'x', sizeof(large));
    int err = 0, accepted = 0;
    for (int i = 0; i < 50 && err == 0; i++) {
        counter.called = 0;
        err = journal_push(journal, JOURNAL_LOG, slice_of(large, sizeof(large)), &counter.ack);
        accepted += err == 0;
        ck_assert_int_eq(journal_flush(journal, 10000), 0);
        if (err == 0 && counter.err) // told to the one who waits
            ck_assert_int_eq(counter.err, GW_EFULL);
    }
    ck_assert_int_eq(err, GW_EIO);
    ck_assert_int_lt(accepted, 10);
    struct journal_view view;
    char why[200];
    journal_read_view(journal, &view);
    ck_assert(view.is_sick);
    ck_assert(!store_is_healthy(test.store, why, sizeof(why)));
    ck_assert_ptr_nonnull(strstr(why, "journal"));
    ck_assert_int_eq(view.committed_seq, accepted - 1);
    // Its own probe (once a second) finds room again. Statements of this connection are the journal
    // thread's; it sleeps on a semaphore between probes, so the room is made by another file's.
    test_exec(&test, "main-journal.db", "DELETE FROM journal");
    for (int i = 0; i < 100 && view.is_sick; i++) {
        nanosleep(&(struct timespec){0, 100000000}, NULL);
        journal_read_view(journal, &view);
    }
    ck_assert(!view.is_sick);
    ck_assert_int_eq(push(journal, 1, NULL), 0);
    ck_assert_int_eq(journal_flush(journal, 10000), 0);
    ck_assert_int_eq(test_query(&test, "main-logs.db", "SELECT count(*) FROM request_logs"), 1);
    test_store_end(&test);
}
END_TEST

struct child_ack {
    struct journal_ack ack;
    int64_t number;
};

static int ack_fd;

static void tell_parent(struct journal_ack *ack, int err)
{
    struct child_ack *child = (struct child_ack *)ack;
    if (err == 0 && write(ack_fd, &child->number, sizeof(child->number)) < 0)
        _exit(3);
}

// Pushes until it is killed; each acknowledged number is told through the pipe.
static void child_run(int fd, int64_t first)
{
    static struct child_ack acks[20000];
    ack_fd = fd;
    if (test_store_try(&test, false) != 0)
        _exit(2);
    for (int64_t i = 0; i < 20000; i++) {
        acks[i] = (struct child_ack){{.on_commit = tell_parent}, first + i};
        while (push(store_journal(test.store), first + i, &acks[i].ack) != 0)
            sched_yield();
        if (i % 50 == 49)
            nanosleep(&(struct timespec){0, 300000}, NULL);
    }
    _exit(journal_flush(store_journal(test.store), 60000) ? 4 : 0);
}

START_TEST(a_kill_at_any_point_loses_and_doubles_nothing)
{
    const char *rounds_text = getenv("MOONGATE_KILL_ROUNDS");
    int rounds = rounds_text ? atoi(rounds_text) : 25;
    unsigned seed = 12345;
    int64_t acked = 0;
    test_store_prepare(&test);
    test_store_open(&test);
    test_store_close(&test);
    for (int round = 0; round < rounds; round++) {
        int fds[2];
        ck_assert_int_eq(pipe(fds), 0);
        fflush(NULL);
        pid_t pid = fork();
        ck_assert_int_ge(pid, 0);
        if (pid == 0) {
            close(fds[0]);
            child_run(fds[1], (int64_t)round * 1000000);
        }
        close(fds[1]);
        // Killed after a number of acknowledgements and a moment, both from the seed: in the middle
        // of groups, folds and checkpoints. The first rounds kill during the start.
        int64_t number, until = round < 3 ? 0 : rand_r(&seed) % 3000, got = 0;
        while (got < until && read(fds[0], &number, sizeof(number)) == sizeof(number))
            got++;
        nanosleep(&(struct timespec){0, rand_r(&seed) % 8000000}, NULL);
        kill(pid, SIGKILL);
        while (read(fds[0], &number, sizeof(number)) == sizeof(number))
            got++;
        close(fds[0]);
        int status;
        ck_assert_int_eq(waitpid(pid, &status, 0), pid);
        ck_assert(WIFSIGNALED(status));
        acked += got;
    }
    test_store_open(&test);
    ck_assert_int_eq(journal_flush(store_journal(test.store), 60000), 0);
    int64_t rows = test_query(&test, "main-logs.db", "SELECT count(*) FROM request_logs");
    int64_t distinct =
        test_query(&test, "main-logs.db", "SELECT count(DISTINCT exchange_id) FROM request_logs");
    int64_t rolled = test_query(&test, "main.db", "SELECT sum(requests) FROM rollups_hourly");
    int64_t cost = test_query(&test, "main.db", "SELECT sum(cost_nano) FROM rollups_hourly");
    ck_assert_int_eq(rows, distinct);
    ck_assert_int_eq(rows, rolled);
    ck_assert_int_eq(cost,
                     test_query(&test, "main-logs.db", "SELECT sum(cost_nano) FROM request_logs"));
    // What was acknowledged is there; what was committed but not yet acknowledged may be too.
    ck_assert_msg(rows >= acked, "%lld rows, %lld acknowledged", (long long)rows, (long long)acked);
    // In each round the rows are the first ones without a hole.
    ck_assert_int_eq(test_query(&test, "main-logs.db",
                                "SELECT count(*) FROM (SELECT cost_nano / 1000000 AS round, "
                                "count(*) AS n, max(cost_nano % 1000000) AS last "
                                "FROM request_logs GROUP BY 1) WHERE n <> last + 1"),
                     0);
    ck_assert_int_eq(test_query(&test, "main.db", "SELECT count(*) FROM quarantine"), 0);
    printf("kills: %d, rows: %lld, acknowledged: %lld\n", rounds, (long long)rows,
           (long long)acked);
    test_store_end(&test);
}
END_TEST

START_TEST(a_replaced_journal_continues_the_numbers)
{
    test_store_prepare(&test);
    test_store_open(&test);
    for (int64_t i = 0; i < 5; i++)
        ck_assert_int_eq(push(store_journal(test.store), i, NULL), 0);
    test_store_close(&test);
    ck_assert_int_eq(unlink(test_store_file(&test, "main-journal.db")), 0);
    test_store_open(&test);
    ck_assert_int_eq(push(store_journal(test.store), 5, NULL), 0);
    ck_assert_int_eq(journal_flush(store_journal(test.store), 10000), 0);
    ck_assert_int_eq(test_query(&test, "main-logs.db", "SELECT count(*) FROM request_logs"), 6);
    ck_assert_int_eq(test_query(&test, "main.db", "SELECT sum(requests) FROM rollups_hourly"), 6);
    test_store_end(&test);
}
END_TEST

START_TEST(an_outside_lock_only_delays)
{
    test_store_prepare(&test);
    test_store_open(&test);
    char error[256];
    struct db *other = NULL;
    ck_assert_int_eq(db_open(test_store_file(&test, "main.db"), 0, &other, error, sizeof(error)),
                     0);
    ck_assert_int_eq(db_begin(other, true), 0);
    ck_assert_int_eq(push(store_journal(test.store), 1, NULL), 0);
    ck_assert_int_eq(journal_flush(store_journal(test.store), 300), GW_ETIMEOUT);
    struct journal_view view;
    journal_read_view(store_journal(test.store), &view);
    ck_assert_int_eq(view.committed_seq, 1);
    ck_assert_int_eq(view.applied_logs_seq, 1);
    ck_assert_int_eq(view.applied_main_seq, 0);
    db_rollback(other);
    db_close(other);
    ck_assert_int_eq(journal_flush(store_journal(test.store), 30000), 0);
    ck_assert_int_eq(test_query(&test, "main.db", "SELECT sum(requests) FROM rollups_hourly"), 1);
    test_store_end(&test);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        checksums_are_crc_32,
        records_round_trip,
        rows_and_rollups_follow_within_200_ms,
        a_bad_record_is_quarantined_and_its_group_commits,
        rows_of_several_records_are_read_back,
        many_threads_push_and_old_records_are_dropped,
        a_full_disk_makes_it_sick_and_room_heals_it,
        a_replaced_journal_continues_the_numbers,
        an_outside_lock_only_delays,
        a_kill_at_any_point_loses_and_doubles_nothing,
    };
    size_t count = sizeof(tests) / sizeof(tests[0]);
#ifdef MOONGATE_TSAN
    count--; // the thread sanitizer cannot follow a fork that starts threads
#endif
    return test_main("journal", tests, count, CK_NOFORK);
}
