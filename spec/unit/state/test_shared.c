// Two processes on the same files, as in an upgrade: both write one journal, each record is folded
// once whoever folds, each sees the other's changes, and the lock is held until the last has gone.
#include "base/buf.h"
#include "base/clock.h"
#include "state/journal_impl.h"
#include "store_test.h"
#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/wait.h>
#include <time.h>

static struct test_store test; // the folder; its store is the predecessor

static int push(struct store *store, int64_t number, struct journal_ack *ack)
{
    struct log_record record = {
        .created_ms = INT64_C(1700000000000),
        .key_id = 1,
        .upstream_id = 7,
        .model = SLICE_LIT("gpt-test"),
        .status = 200,
        .is_success = true,
        .cost_nano = number,
    };
    struct buf bytes = BUF_INIT(0);
    memcpy(record.id.bytes, &number, sizeof(number));
    // Not ck_assert: also called in forked children and threads.
    gw_require(log_record_encode(&record, &bytes) == 0);
    int err = journal_push(store_journal(store), JOURNAL_LOG, buf_slice(&bytes), ack);
    buf_free(&bytes);
    return err;
}

static int open_with_lock(int lock_fd, struct store **out)
{
    const struct store_options options = {
        .conf = test.conf,
        .fernet = test.fernet,
        .epoch = test.epoch,
        .migrations_dir = MOONGATE_SOURCE_DIR "/schema",
        .lock_fd = &lock_fd,
    };
    *out = NULL;
    return store_open(&options, out, test.error, sizeof(test.error));
}

static struct store *open_successor(void)
{
    struct store *successor;
    store_set_shared(test.store, true);
    int err = open_with_lock(dup(store_lock_fd(test.store)), &successor);
    ck_assert_msg(err == 0, "%d %s", err, test.error);
    return successor;
}

static void await_number(const char *file, const char *sql, int64_t wanted)
{
    int64_t number = -1;
    for (int i = 0; i < 2000 && number != wanted; i++) {
        if (i)
            nanosleep(&(struct timespec){0, 5000000}, NULL);
        number = test_query(&test, file, sql);
    }
    ck_assert_msg(number == wanted, "%s: %lld, not %lld", sql, (long long)number,
                  (long long)wanted);
}

// All rows are there once, rows and sums agree, nothing was quarantined.
static void check_folded(int64_t count)
{
    await_number("main-logs.db", "SELECT count(*) FROM request_logs", count);
    await_number("main.db", "SELECT sum(requests) FROM rollups_hourly", count);
    ck_assert_int_eq(
        test_query(&test, "main-logs.db", "SELECT count(DISTINCT exchange_id) FROM request_logs"),
        count);
    ck_assert_int_eq(test_query(&test, "main.db", "SELECT sum(cost_nano) FROM rollups_hourly"),
                     test_query(&test, "main-logs.db", "SELECT sum(cost_nano) FROM request_logs"));
    ck_assert_int_eq(test_query(&test, "main.db", "SELECT count(*) FROM quarantine"), 0);
    ck_assert_int_eq(test_query(&test, "main-logs.db", "SELECT count(*) FROM quarantine"), 0);
}

struct pusher {
    pthread_t thread;
    struct store *store;
    int64_t first;
    int count;
};

static void *push_many(void *arg)
{
    struct pusher *pusher = arg;
    for (int i = 0; i < pusher->count; i++) {
        gw_require(push(pusher->store, pusher->first + i, NULL) == 0);
        if (i % 20 == 19)
            nanosleep(&(struct timespec){0, 200000}, NULL);
    }
    return NULL;
}

static void push_from(struct pusher *pusher, struct store *store, int64_t first, int count)
{
    *pusher = (struct pusher){.store = store, .first = first, .count = count};
    ck_assert_int_eq(pthread_create(&pusher->thread, NULL, push_many, pusher), 0);
}

START_TEST(two_writers_share_the_numbers)
{
    struct pusher old, new;
    test_store_prepare(&test);
    test_store_open(&test);
    ck_assert_int_eq(push(test.store, 1, NULL), 0);
    struct store *successor = open_successor();
    push_from(&old, test.store, 100000, 2000);
    push_from(&new, successor, 200000, 2000);
    nanosleep(&(struct timespec){0, 5000000}, NULL);
    store_hand_over(test.store); // in the middle of both
    pthread_join(old.thread, NULL);
    pthread_join(new.thread, NULL);
    // The one that drains waits for commits only, and is not ill because it does not fold.
    char why[200];
    ck_assert_int_eq(journal_flush(store_journal(test.store), 10000), 0);
    ck_assert_msg(store_is_healthy(test.store, why, sizeof(why)), "%s", why);
    int64_t first = store_owner_epoch(test.store), second = store_owner_epoch(successor);
    ck_assert_int_gt(second, first);
    test_store_close(&test);
    check_folded(4001); // while still shared: the successor looks by itself
    ck_assert_int_eq(test_query(&test, "main-journal.db", "SELECT max(seq) FROM journal"), 4001);
    ck_assert_int_eq(
        test_query(&test, "main-journal.db", "SELECT count(DISTINCT owner) FROM journal"), 2);
    // Alone again: numbers go on, the lease is the successor's.
    store_set_shared(successor, false);
    ck_assert_int_eq(push(successor, 2, NULL), 0);
    ck_assert_int_eq(journal_flush(store_journal(successor), 10000), 0);
    check_folded(4002);
    ck_assert_int_eq(test_query(&test, "main.db", "SELECT is_held FROM leases"), 1);
    ck_assert_int_eq(test_query(&test, "main.db", "SELECT owner_epoch FROM leases"), second);
    ck_assert_int_eq(
        test_query(&test, "main.db", "SELECT count(*) FROM owners WHERE how = 'stopped'"), 1);
    ck_assert_int_eq(test_query(&test, "main.db", "SELECT owner FROM owners WHERE how IS NULL"),
                     second);
    store_close(successor);
    ck_assert_int_eq(
        test_query(&test, "main.db", "SELECT count(*) FROM owners WHERE how = 'stopped'"), 2);
    test_store_end(&test);
}
END_TEST

// The last record of the one that goes is seen although nothing comes after it.
START_TEST(the_last_record_is_not_forgotten)
{
    test_store_prepare(&test);
    test_store_open(&test);
    struct store *successor = open_successor();
    store_hand_over(test.store);
    for (int64_t i = 0; i < 20; i++) {
        ck_assert_int_eq(push(test.store, i, NULL), 0);
        ck_assert_int_eq(journal_flush(store_journal(test.store), 10000), 0);
        store_set_shared(successor, false);
        check_folded(i + 1);
        store_set_shared(successor, true);
    }
    test_store_close(&test);
    store_close(successor);
    test_store_end(&test);
}
END_TEST

START_TEST(two_appliers_fold_each_record_once)
{
    struct pusher old, new;
    test_store_prepare(&test);
    test_store_open(&test);
    struct store *successor = open_successor();
    push_from(&old, test.store, 100000, 3000);
    push_from(&new, successor, 200000, 3000);
    pthread_join(old.thread, NULL);
    pthread_join(new.thread, NULL);
    ck_assert_int_eq(journal_flush(store_journal(test.store), 60000), 0);
    ck_assert_int_eq(journal_flush(store_journal(successor), 60000), 0);
    check_folded(6000);
    // The successor failed: the other goes on as if it had never been.
    store_close(successor);
    store_set_shared(test.store, false);
    ck_assert_int_eq(push(test.store, 1, NULL), 0);
    ck_assert_int_eq(journal_flush(store_journal(test.store), 10000), 0);
    check_folded(6001);
    test_store_end(&test);
}
END_TEST

START_TEST(the_lock_is_held_until_the_last_has_gone)
{
    struct test_store other = {0};
    test_store_prepare(&test);
    test_store_open(&test);
    struct store *successor = open_successor();
    other = test;
    ck_assert_int_eq(test_store_try(&other, false), GW_EBUSY);
    test_store_close(&test);
    ck_assert_int_eq(test_store_try(&other, false), GW_EBUSY);
    store_close(successor);
    ck_assert_int_eq(test_store_try(&other, false), 0);
    store_close(other.store);
    // A descriptor of another file is no lock.
    struct store *stranger = NULL;
    test_store_open(&test);
    ck_assert_int_eq(open_with_lock(open("/dev/null", O_RDONLY), &stranger), GW_EBUSY);
    test_store_end(&test);
}
END_TEST

static int insert_key(struct db *db, struct store_job *job)
{
    (void)job;
    int err = db_run(db,
                     SLICE_LIT("INSERT INTO api_keys (id, uid, key_hash, key_prefix, name, "
                               "created_ms, updated_ms) VALUES (77, 'u77', zeroblob(32), 'sk', "
                               "'n', 1, 1)"),
                     NULL, 0, NULL, 0, NULL);
    return err ? err
               : db_run(db,
                        SLICE_LIT("INSERT INTO changes (kind, id, at_ms) VALUES ('key', 77, 1)"),
                        NULL, 0, NULL, 0, NULL);
}

static int revoke_key(struct db *db, struct store_job *job)
{
    (void)job;
    int err = db_run(db, SLICE_LIT("UPDATE api_keys SET revoked_ms = 5 WHERE id = 77"), NULL, 0,
                     NULL, 0, NULL);
    return err ? err
               : db_run(db,
                        SLICE_LIT("INSERT INTO changes (kind, id, at_ms) VALUES ('key', 77, 1)"),
                        NULL, 0, NULL, 0, NULL);
}

static bool key_is(struct store *store, bool is_active)
{
    struct epoch_reader *reader = epoch_register(test.epoch);
    epoch_enter(reader);
    const struct key_entry *entry = directory_key_by_id(store_directory(store), 77);
    bool is_so = entry && entry->is_active == is_active;
    epoch_leave(reader);
    epoch_unregister(reader);
    return is_so;
}

static void await_key(struct store *store, bool is_active)
{
    for (int i = 0; i < 2000 && !key_is(store, is_active); i++)
        nanosleep(&(struct timespec){0, 1000000}, NULL);
    ck_assert(key_is(store, is_active));
}

START_TEST(each_sees_the_changes_of_the_other)
{
    test_store_prepare(&test);
    test_store_open(&test);
    struct store *successor = open_successor();
    ck_assert_int_eq(store_run(test.store, STORE_WRITE, insert_key), 0);
    ck_assert(key_is(test.store, true));
    await_key(successor, true);
    store_hand_over(test.store);
    ck_assert_int_eq(store_run(successor, STORE_WRITE, revoke_key), 0);
    ck_assert(key_is(successor, false));
    await_key(test.store, false); // whoever drains still answers requests
    test_store_close(&test);
    store_close(successor);
    test_store_end(&test);
}
END_TEST

START_TEST(an_exclusive_migration_refuses_the_successor)
{
    struct test_dir plugin;
    test_dir_make(&plugin);
    test_store_prepare(&test);
    test_store_open(&test);
    struct store *successor = open_successor();
    test_write_file(test_dir_file(&plugin, "0001_a.sql"),
                    "CREATE TABLE p_a_t (x INTEGER) STRICT;\n");
    test_write_file(test_dir_file(&plugin, "0002_b.sql"), "-- exclusive\nDROP TABLE p_a_t;\n");
    ck_assert_int_eq(store_migrate_plugin(successor, SLICE_LIT("a"), plugin.path, test.error, 256),
                     GW_EBUSY);
    ck_assert_ptr_nonnull(strstr(test.error, "plugin:a/0002_b.sql"));
    store_close(successor);
    store_set_shared(test.store, false);
    ck_assert_int_eq(store_migrate_plugin(test.store, SLICE_LIT("a"), plugin.path, test.error, 256),
                     0);
    test_dir_clear(plugin.path);
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

// The predecessor: pushes until it is killed, hands over at a number.
static void child_run(int fd, int lock_fd, int64_t first, int64_t hand_over_at)
{
    static struct child_ack acks[20000];
    struct store *store;
    ack_fd = fd;
    if (open_with_lock(lock_fd, &store) != 0)
        _exit(2);
    for (int64_t i = 0; i < 20000; i++) {
        acks[i] = (struct child_ack){{.on_commit = tell_parent}, first + i};
        if (i == hand_over_at)
            store_hand_over(store);
        while (push(store, first + i, &acks[i].ack) != 0)
            sched_yield();
        if (i % 50 == 49)
            nanosleep(&(struct timespec){0, 300000}, NULL);
    }
    alarm(60); // its end is the parent's to choose, also when it was quicker
    for (;;)
        pause();
}

START_TEST(a_kill_during_the_drain_loses_and_doubles_nothing)
{
    const char *rounds_text = getenv("MOONGATE_KILL_ROUNDS");
    int rounds = rounds_text ? atoi(rounds_text) : 12;
    unsigned seed = 4711;
    int64_t acked = 0, own = 0;
    test_store_prepare(&test);
    test_store_open(&test);
    test_store_close(&test);
    for (int round = 0; round < rounds; round++) {
        int fds[2];
        ck_assert_int_eq(pipe(fds), 0);
        int lock_fd = open(test_store_file(&test, "main.db.lock"), O_RDWR | O_CLOEXEC);
        ck_assert_int_ge(lock_fd, 0);
        ck_assert_int_eq(flock(lock_fd, LOCK_EX | LOCK_NB), 0);
        int64_t hand_over_at = rand_r(&seed) % 1500, kill_at = rand_r(&seed) % 2500;
        fflush(NULL);
        pid_t pid = fork();
        ck_assert_int_ge(pid, 0);
        if (pid == 0) {
            close(fds[0]);
            child_run(fds[1], lock_fd, (int64_t)round * 1000000, hand_over_at);
        }
        close(fds[1]);
        int64_t number, got = 0;
        ck_assert_int_eq(read(fds[0], &number, sizeof(number)), sizeof(number));
        got++;
        // The successor comes while it pushes, and pushes too.
        struct pusher pusher;
        struct store *successor;
        int err = open_with_lock(lock_fd, &successor);
        ck_assert_msg(err == 0, "%d %s", err, test.error);
        push_from(&pusher, successor, (int64_t)round * 1000000 + 500000, 800);
        while (got < kill_at && read(fds[0], &number, sizeof(number)) == sizeof(number))
            got++;
        kill(pid, SIGKILL);
        while (read(fds[0], &number, sizeof(number)) == sizeof(number))
            got++;
        close(fds[0]);
        int status;
        ck_assert_int_eq(waitpid(pid, &status, 0), pid);
        ck_assert(WIFSIGNALED(status));
        store_set_shared(successor, false);
        pthread_join(pusher.thread, NULL);
        acked += got;
        own += 800;
        ck_assert_int_eq(journal_flush(store_journal(successor), 60000), 0);
        store_close(successor);
    }
    int64_t rows = test_query(&test, "main-logs.db", "SELECT count(*) FROM request_logs");
    check_folded(rows);
    // What was acknowledged is there; what was committed but not yet acknowledged may be too.
    ck_assert_msg(rows >= acked + own, "%lld rows, %lld + %lld", (long long)rows, (long long)acked,
                  (long long)own);
    ck_assert_int_eq(test_query(&test, "main-logs.db",
                                "SELECT count(*) FROM (SELECT cost_nano / 500000 AS part, "
                                "count(*) AS n, max(cost_nano % 500000) AS last "
                                "FROM request_logs GROUP BY 1) WHERE n <> last + 1"),
                     0);
    ck_assert_int_eq(test_query(&test, "main.db", "SELECT count(*) FROM owners WHERE how = 'died'"),
                     0); // nobody knows yet
    test_store_open(&test);
    ck_assert_int_eq(test_query(&test, "main.db", "SELECT count(*) FROM owners WHERE how = 'died'"),
                     rounds);
    printf("kills: %d, rows: %lld, acknowledged: %lld\n", rounds, (long long)rows,
           (long long)(acked + own));
    test_store_end(&test);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        two_writers_share_the_numbers,
        the_last_record_is_not_forgotten,
        two_appliers_fold_each_record_once,
        the_lock_is_held_until_the_last_has_gone,
        each_sees_the_changes_of_the_other,
        an_exclusive_migration_refuses_the_successor,
        a_kill_during_the_drain_loses_and_doubles_nothing,
    };
    size_t count = sizeof(tests) / sizeof(tests[0]);
#ifdef MOONGATE_TSAN
    count--; // the thread sanitizer cannot follow a fork that starts threads
#endif
    return test_main("shared", tests, count, CK_NOFORK);
}
