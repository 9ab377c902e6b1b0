// Faults below SQLite: a file system layer that counts writes, syncs and truncations of the store's
// files and kills the process at the chosen one, or lets it fail. After a kill at any step each
// acknowledged record is folded exactly once; after a failed sync the journal takes nothing more.
#include "base/buf.h"
#include "base/clock.h"
#include "store_test.h"
#include <signal.h>
#include <sqlite3.h>
#include <sys/wait.h>
#include <time.h>

static sqlite3_vfs *real_vfs;
static sqlite3_vfs shim_vfs;
static _Atomic int64_t steps, kill_at; // kill_at 0: never
static const char *_Atomic failing;    // part of a file's name whose syncs fail; NULL: none

struct shim_file {
    sqlite3_file base;
    bool is_failing_name;
    char name[512];
    sqlite3_file real[];
};

static sqlite3_file *real_of(sqlite3_file *file)
{
    return ((struct shim_file *)file)->real;
}
#define METHODS(file) real_of(file)->pMethods

static void step(void)
{
    if (atomic_fetch_add(&steps, 1) + 1 == atomic_load(&kill_at))
        kill(getpid(), SIGKILL);
}

static int shim_close(sqlite3_file *file)
{
    return METHODS(file)->xClose(real_of(file));
}
static int shim_read(sqlite3_file *file, void *to, int len, sqlite3_int64 at)
{
    return METHODS(file)->xRead(real_of(file), to, len, at);
}
static int shim_write(sqlite3_file *file, const void *from, int len, sqlite3_int64 at)
{
    step();
    return METHODS(file)->xWrite(real_of(file), from, len, at);
}
static int shim_truncate(sqlite3_file *file, sqlite3_int64 size)
{
    step();
    return METHODS(file)->xTruncate(real_of(file), size);
}
static int shim_sync(sqlite3_file *file, int flags)
{
    const char *part = atomic_load(&failing);
    step();
    if (part && strstr(((struct shim_file *)file)->name, part))
        return SQLITE_IOERR_FSYNC;
    return METHODS(file)->xSync(real_of(file), flags);
}
static int shim_size(sqlite3_file *file, sqlite3_int64 *size)
{
    return METHODS(file)->xFileSize(real_of(file), size);
}
static int shim_lock(sqlite3_file *file, int lock)
{
    return METHODS(file)->xLock(real_of(file), lock);
}
static int shim_unlock(sqlite3_file *file, int lock)
{
    return METHODS(file)->xUnlock(real_of(file), lock);
}
static int shim_reserved(sqlite3_file *file, int *out)
{
    return METHODS(file)->xCheckReservedLock(real_of(file), out);
}
static int shim_control(sqlite3_file *file, int op, void *arg)
{
    return METHODS(file)->xFileControl(real_of(file), op, arg);
}
static int shim_sector(sqlite3_file *file)
{
    return METHODS(file)->xSectorSize(real_of(file));
}
static int shim_traits(sqlite3_file *file)
{
    return METHODS(file)->xDeviceCharacteristics(real_of(file));
}
static int shim_shm_map(sqlite3_file *file, int page, int size, int extend, void volatile **out)
{
    return METHODS(file)->xShmMap(real_of(file), page, size, extend, out);
}
static int shim_shm_lock(sqlite3_file *file, int offset, int n, int flags)
{
    return METHODS(file)->xShmLock(real_of(file), offset, n, flags);
}
static void shim_shm_barrier(sqlite3_file *file)
{
    METHODS(file)->xShmBarrier(real_of(file));
}
static int shim_shm_unmap(sqlite3_file *file, int is_delete)
{
    return METHODS(file)->xShmUnmap(real_of(file), is_delete);
}

static const sqlite3_io_methods shim_methods = {
    .iVersion = 2,
    .xClose = shim_close,
    .xRead = shim_read,
    .xWrite = shim_write,
    .xTruncate = shim_truncate,
    .xSync = shim_sync,
    .xFileSize = shim_size,
    .xLock = shim_lock,
    .xUnlock = shim_unlock,
    .xCheckReservedLock = shim_reserved,
    .xFileControl = shim_control,
    .xSectorSize = shim_sector,
    .xDeviceCharacteristics = shim_traits,
    .xShmMap = shim_shm_map,
    .xShmLock = shim_shm_lock,
    .xShmBarrier = shim_shm_barrier,
    .xShmUnmap = shim_shm_unmap,
};

static int shim_open(sqlite3_vfs *vfs, const char *name, sqlite3_file *file, int flags, int *out)
{
    struct shim_file *shim = (struct shim_file *)file;
    (void)vfs;
    snprintf(shim->name, sizeof(shim->name), "%s", name ? name : "");
    int code = real_vfs->xOpen(real_vfs, name, shim->real, flags, out);
    file->pMethods = shim->real->pMethods ? &shim_methods : NULL;
    return code;
}

// Not used under the thread sanitizer: these tests fork.
__attribute__((unused)) static void install(void)
{
    real_vfs = sqlite3_vfs_find(NULL);
    shim_vfs = *real_vfs;
    shim_vfs.zName = "shim";
    shim_vfs.pNext = NULL;
    shim_vfs.szOsFile = (int)sizeof(struct shim_file) + real_vfs->szOsFile;
    shim_vfs.xOpen = shim_open;
    gw_require(sqlite3_vfs_register(&shim_vfs, 1) == SQLITE_OK);
}

static struct test_store test;
static int ack_fd;

static void tell_parent(struct journal_ack *ack, int err)
{
    (void)ack;
    if (err == 0 && write(ack_fd, "x", 1) != 1)
        _exit(3);
}

static int push(int64_t number, struct journal_ack *ack)
{
    struct log_record record = {
        .created_ms = INT64_C(1700000000000),
        .key_id = 1,
        .upstream_id = 1,
        .model = SLICE_LIT("m"),
        .cost_nano = 1,
    };
    struct buf bytes = BUF_INIT(0);
    memcpy(record.id.bytes, &number, sizeof(number));
    // Not ck_assert: also called in forked children, which share Check's message file.
    gw_require(log_record_encode(&record, &bytes) == 0);
    int err = journal_push(store_journal(test.store), JOURNAL_LOG, buf_slice(&bytes), ack);
    buf_free(&bytes);
    return err;
}

// Opens, commits and folds three groups, closes.
static void child_run(int fd, int64_t first, int64_t at)
{
    static struct journal_ack acks[12];
    ack_fd = fd;
    atomic_store(&steps, 0);
    atomic_store(&kill_at, at);
    if (test_store_try(&test, false) != 0)
        _exit(2);
    for (int64_t i = 0; i < 12; i++) {
        acks[i].on_commit = tell_parent;
        if (push(first + i, &acks[i]) != 0)
            _exit(4);
        if (i % 4 == 3 && journal_flush(store_journal(test.store), 60000) != 0)
            _exit(5);
    }
    store_close(test.store);
    _exit(0);
}

// True when the child was killed, false when it came to its end.
static bool run_killed(int64_t first, int64_t at, int64_t *acked)
{
    int fds[2], status = 0;
    char byte;
    ck_assert_int_eq(pipe(fds), 0);
    fflush(NULL);
    pid_t pid = fork();
    ck_assert_int_ge(pid, 0);
    if (pid == 0) {
        close(fds[0]);
        child_run(fds[1], first, at);
    }
    close(fds[1]);
    while (read(fds[0], &byte, 1) == 1)
        (*acked)++;
    close(fds[0]);
    ck_assert_int_eq(waitpid(pid, &status, 0), pid);
    ck_assert_msg(WIFSIGNALED(status) || WEXITSTATUS(status) == 0, "exit %d", WEXITSTATUS(status));
    return WIFSIGNALED(status);
}

static void check_files(int64_t acked)
{
    test_store_open(&test);
    ck_assert_int_eq(journal_flush(store_journal(test.store), 60000), 0);
    int64_t rows = test_query(&test, "main-logs.db", "SELECT count(*) FROM request_logs");
    ck_assert_int_ge(rows, acked);
    ck_assert_int_eq(rows, test_query(&test, "main-logs.db",
                                      "SELECT count(DISTINCT exchange_id) FROM request_logs"));
    ck_assert_int_eq(rows,
                     test_query(&test, "main.db", "SELECT sum(requests) FROM rollups_hourly"));
    ck_assert_int_eq(0, test_query(&test, "main.db", "SELECT count(*) FROM quarantine"));
    test_store_close(&test);
}

START_TEST(a_kill_at_each_step_of_a_run_is_survived)
{
    int64_t acked = 0, first = 0, at = 1;
    test_store_prepare(&test);
    test_store_open(&test);
    test_store_close(&test);
    // The steps of a run differ a little from run to run; each number is tried until a run ends.
    while (run_killed(first, at, &acked)) {
        check_files(acked);
        first += 1000;
        at += 1;
    }
    ck_assert_int_gt(at, 30);
    check_files(acked);
    printf("killed at %lld steps\n", (long long)at - 1);
    test_store_end(&test);
}
END_TEST

START_TEST(a_kill_at_each_step_of_the_first_start_is_survived)
{
    int64_t at = 1, acked = 0;
    for (bool is_killed = true; is_killed; at += 7) {
        acked = 0;
        test_store_prepare(&test);
        is_killed = run_killed(0, at, &acked);
        check_files(acked);
        test_store_end(&test);
    }
    ck_assert_int_gt(at, 100);
    printf("first start killed at every 7th of %lld steps\n", (long long)at);
}
END_TEST

static _Atomic int seen_err;
static void note(struct journal_ack *ack, int err)
{
    (void)ack;
    atomic_store(&seen_err, err);
}

START_TEST(a_failed_sync_is_final)
{
    struct journal_ack ack = {.on_commit = note};
    struct journal_view view;
    char why[200];
    test_store_prepare(&test);
    test_conf_set(test.conf, "durability", "power");
    test_store_open(&test);
    ck_assert_int_eq(push(1, NULL), 0);
    ck_assert_int_eq(journal_flush(store_journal(test.store), 60000), 0);
    atomic_store(&failing, "main-journal.db-wal");
    ck_assert_int_eq(push(2, &ack), 0);
    ck_assert_int_eq(journal_flush(store_journal(test.store), 60000), 0);
    ck_assert_int_eq(atomic_load(&seen_err), GW_EIO);
    ck_assert_int_eq(push(3, NULL), GW_EIO);
    journal_read_view(store_journal(test.store), &view);
    ck_assert(view.is_sick);
    ck_assert(!store_is_healthy(test.store, why, sizeof(why)));
    // Nothing is tried again, although syncs would succeed now.
    atomic_store(&failing, NULL);
    nanosleep(&(struct timespec){1, 200000000}, NULL);
    ck_assert_int_eq(push(4, NULL), GW_EIO);
    test_store_close(&test);
    check_files(1);
    test_store_end(&test);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {a_kill_at_each_step_of_a_run_is_survived,
                                  a_kill_at_each_step_of_the_first_start_is_survived,
                                  a_failed_sync_is_final};
#ifdef MOONGATE_TSAN
    // The thread sanitizer cannot follow a fork that starts threads.
    printf("skipped: 3 tests\n");
    (void)tests;
    return 0;
#else
    install();
    return test_main("faults", tests, sizeof(tests) / sizeof(tests[0]), CK_NOFORK);
#endif
}
