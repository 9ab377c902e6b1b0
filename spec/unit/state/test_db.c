// The SQLite layer: values, rows, errors, statements, file modes, and the guard around plugins.
#include "state/db.h"
#include "state_test.h"

static struct test_dir dir;
static struct db *db;
static struct arena *arena;

static void setup(void)
{
    char error[256] = "";
    test_dir_make(&dir);
    int err = db_open(test_dir_file(&dir, "a.db"), DB_OPEN_CREATE, &db, error, sizeof(error));
    ck_assert_msg(err == 0, "%s", error);
    arena = arena_new(4096);
}

static void teardown(void)
{
    db_close(db);
    arena_free(arena);
    test_dir_clear(dir.path);
}

static int run(const char *sql)
{
    return db_run(db, slice_str(sql), NULL, 0, NULL, 0, NULL);
}

START_TEST(values_and_rows_round_trip)
{
    setup();
    ck_assert_int_eq(run("CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT, c BLOB, d REAL) STRICT"),
                     0);
    struct db_value args[] = {
        DB_INT_VALUE(INT64_MIN),
        DB_TEXT_VALUE(SLICE_LIT("caf\xc3\xa9")),
        DB_BLOB_VALUE(SLICE_LIT("\0\1\2")),
        {.kind = DB_REAL, .real = 0.5},
    };
    ck_assert_int_eq(
        db_run(db, SLICE_LIT("INSERT INTO t VALUES (?, ?, ?, ?)"), args, 4, NULL, 0, NULL), 0);
    ck_assert_int_eq(db_changes(db), 1);
    struct db_value empty[] = {DB_INT_VALUE(5), DB_TEXT_VALUE(SLICE_NONE),
                               DB_BLOB_VALUE(SLICE_NONE), DB_NULL_VALUE};
    ck_assert_int_eq(
        db_run(db, SLICE_LIT("INSERT INTO t VALUES (?, ?, ?, ?)"), empty, 4, NULL, 0, NULL), 0);
    ck_assert_int_eq(db_last_id(db), 5);
    struct db_rows rows;
    ck_assert_int_eq(db_run(db, SLICE_LIT("SELECT a, b, c, d AS last FROM t ORDER BY a"), NULL, 0,
                            arena, 0, &rows),
                     0);
    ck_assert_uint_eq(rows.row_count, 2);
    ck_assert_uint_eq(rows.column_count, 4);
    ck_assert(slice_is(rows.columns[3], "last"));
    ck_assert_int_eq(rows.values[0].integer, INT64_MIN);
    ck_assert(slice_is(rows.values[1].bytes, "caf\xc3\xa9"));
    ck_assert(slice_eq(rows.values[2].bytes, SLICE_LIT("\0\1\2")));
    ck_assert(rows.values[3].real == 0.5);
    ck_assert_int_eq(rows.values[5].kind, DB_TEXT);
    ck_assert_int_eq(rows.values[6].kind, DB_BLOB);
    ck_assert_int_eq(rows.values[7].kind, DB_NULL);
    // The cached statement sees a changed schema.
    ck_assert_int_eq(db_run(db, SLICE_LIT("SELECT * FROM t"), NULL, 0, arena, 0, &rows), 0);
    ck_assert_int_eq(run("ALTER TABLE t ADD COLUMN e INT"), 0);
    ck_assert_int_eq(db_run(db, SLICE_LIT("SELECT * FROM t"), NULL, 0, arena, 0, &rows), 0);
    ck_assert_uint_eq(rows.column_count, 5);
    teardown();
}
END_TEST

START_TEST(errors_have_their_codes)
{
    setup();
    ck_assert_int_eq(run("CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT NOT NULL UNIQUE) STRICT"),
                     0);
    ck_assert_int_eq(run("INSERT INTO t VALUES (1, 'x')"), 0);
    ck_assert_int_eq(run("INSERT INTO t VALUES (1, 'y')"), GW_EEXISTS);
    ck_assert_int_eq(run("INSERT INTO t VALUES (2, 'x')"), GW_EEXISTS);
    ck_assert_int_eq(run("INSERT INTO t VALUES (2, NULL)"), GW_EINVAL);
    ck_assert_int_eq(run("SELEKT 1"), GW_EINVAL);
    ck_assert_ptr_nonnull(strstr(db_error(db), "SELEKT"));
    ck_assert_int_eq(run("SELECT 1; SELECT 2"), GW_EINVAL);
    ck_assert_int_eq(run("SELECT 1;  "), 0);
    ck_assert_int_eq(run(""), GW_EINVAL);
    ck_assert_int_eq(run("SELECT ?"), GW_EINVAL);
    struct db_rows rows;
    ck_assert_int_eq(
        db_run(db,
               SLICE_LIT("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM "
                         "n WHERE i < 11) SELECT i FROM n"),
               NULL, 0, arena, 10, &rows),
        GW_ETOOBIG);
    ck_assert_int_eq(run("PRAGMA max_page_count = 8"), 0);
    int err = 0;
    for (int i = 10; i < 40 && err == 0; i++) {
        struct db_value args[] = {DB_INT_VALUE(i)};
        err = db_run(db, SLICE_LIT("INSERT INTO t VALUES (?1, hex(zeroblob(2000)) || ?1)"), args, 1,
                     NULL, 0, NULL);
    }
    ck_assert_int_eq(err, GW_EFULL);
    teardown();
}
END_TEST

static int add_up(void *user, const struct db_value *values, size_t count)
{
    int64_t *sum = user;
    ck_assert_uint_eq(count, 1);
    *sum += values[0].integer;
    return *sum > 100 ? GW_ECANCELLED : 0;
}

START_TEST(each_row_is_streamed)
{
    setup();
    int64_t sum = 0;
    struct slice sql = SLICE_LIT("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n "
                                 "WHERE i < ?) SELECT i FROM n");
    struct db_value args[] = {DB_INT_VALUE(10)};
    ck_assert_int_eq(db_each(db, sql, args, 1, add_up, &sum), 0);
    ck_assert_int_eq(sum, 55);
    args[0].integer = 1000;
    ck_assert_int_eq(db_each(db, sql, args, 1, add_up, &sum), GW_ECANCELLED);
    teardown();
}
END_TEST

START_TEST(transactions_commit_and_roll_back)
{
    setup();
    ck_assert_int_eq(run("CREATE TABLE t(a INTEGER) STRICT"), 0);
    ck_assert_int_eq(db_begin(db, true), 0);
    ck_assert_int_eq(run("INSERT INTO t VALUES (1)"), 0);
    db_rollback(db);
    db_rollback(db);
    ck_assert_int_eq(db_commit(db), GW_ECANCELLED);
    ck_assert_int_eq(db_begin(db, true), 0);
    ck_assert_int_eq(run("INSERT INTO t VALUES (2)"), 0);
    ck_assert_int_eq(db_commit(db), 0);
    struct db_rows rows;
    ck_assert_int_eq(db_run(db, SLICE_LIT("SELECT a FROM t"), NULL, 0, arena, 0, &rows), 0);
    ck_assert_uint_eq(rows.row_count, 1);
    ck_assert_int_eq(rows.values[0].integer, 2);
    char error[256];
    ck_assert_int_eq(
        db_script(db, "CREATE TABLE u(a); INSERT INTO u VALUES (1); -- end\n", error, 256), 0);
    ck_assert_int_eq(db_script(db, "INSERT INTO u VALUES (2); NONSENSE; ", error, 256), GW_EINVAL);
    ck_assert_ptr_nonnull(strstr(error, "NONSENSE"));
    teardown();
}
END_TEST

START_TEST(files_are_private_and_bad_ones_are_told)
{
    setup();
    struct stat info;
    static const char *const names[] = {"a.db", "a.db-wal", "a.db-shm", "copy.db"};
    char error[256] = "";
    ck_assert_int_eq(run("CREATE TABLE t(a)"), 0);
    ck_assert_int_eq(db_backup(db, test_dir_file(&dir, "copy.db"), error, sizeof(error)), 0);
    for (size_t i = 0; i < 4; i++) {
        ck_assert_int_eq(stat(test_dir_file(&dir, names[i]), &info), 0);
        ck_assert_msg((info.st_mode & 0777) == 0600, "%s %o", names[i], info.st_mode);
    }
    struct db *other = NULL;
    const char *path = test_dir_file(&dir, "none.db");
    ck_assert_int_eq(db_open(path, 0, &other, error, sizeof(error)), GW_EIO);
    ck_assert_ptr_nonnull(strstr(error, "none.db"));
    path = test_dir_file(&dir, "junk.db");
    test_write_file(path, "This is certainly no database, but some text that is long enough.");
    ck_assert_int_eq(db_open(path, DB_OPEN_CREATE, &other, error, sizeof(error)), GW_ECORRUPT);
    ck_assert_ptr_nonnull(strstr(error, "junk.db"));
    path = test_dir_file(&dir, "a.db");
    ck_assert_int_eq(db_open(path, DB_OPEN_READONLY, &other, error, sizeof(error)), 0);
    ck_assert_int_eq(db_run(other, SLICE_LIT("INSERT INTO t VALUES (1)"), NULL, 0, NULL, 0, NULL),
                     GW_EDENIED);
    db_close(other);
    teardown();
}
END_TEST

START_TEST(a_plugin_is_kept_to_its_tables)
{
    setup();
    char error[256];
    ck_assert_int_eq(
        db_script(db,
                  "CREATE TABLE users(id INTEGER PRIMARY KEY, name TEXT, password_hash TEXT);"
                  "CREATE TABLE upstreams(id INTEGER PRIMARY KEY, name TEXT, api_key_enc TEXT);"
                  "CREATE TABLE api_keys(id INTEGER PRIMARY KEY, name TEXT, key_hash BLOB);"
                  "CREATE TABLE changes(seq INTEGER PRIMARY KEY);"
                  "CREATE TABLE leases(name TEXT); CREATE TABLE applied(name TEXT);"
                  "CREATE TABLE p_other_t(a); INSERT INTO users VALUES (1, 'ann', 'secret');",
                  error, sizeof(error)),
        0);
    // In the cache as a trusted statement: it must not serve the plugin.
    ck_assert_int_eq(run("SELECT password_hash FROM users"), 0);
    static const struct {
        const char *sql;
        int err;
    } cases[] = {
        {"CREATE TABLE p_shop_items(id INTEGER PRIMARY KEY, name TEXT UNIQUE) STRICT", 0},
        {"CREATE INDEX p_shop_items_name ON p_shop_items(name)", 0},
        {"INSERT INTO p_shop_items VALUES (1, 'x')", 0},
        {"UPDATE p_shop_items SET name = 'y'", 0},
        {"ALTER TABLE p_shop_items ADD COLUMN price INTEGER NOT NULL DEFAULT 0", 0},
        {"-- a note\n /* and */ ALTER TABLE p_shop_items ADD COLUMN n INTEGER CHECK (n > 0) "
         "DEFAULT 1",
         0},
        {"ALTER TABLE p_shop_items ADD COLUMN m INTEGER CHECK (m > 0) DEFAULT 0", GW_EINVAL},
        {"PRAGMA quick_check", GW_EDENIED},
        {"PRAGMA quick_check(p_shop_items)", GW_EDENIED},
        {"PRAGMA main.quick_check(p_shop_items)", GW_EDENIED},
        {"PRAGMA main.quick_check(users)", GW_EDENIED},
        {"SELECT * FROM pragma_quick_check('p_shop_items', 'main')", GW_EDENIED},
        {"SELECT * FROM pragma_quick_check('users', 'main')", GW_EDENIED},
        {"SELECT * FROM pragma_table_info('users', 'main')", GW_EDENIED},
        {"SELECT i.name, u.name FROM p_shop_items i JOIN users u ON u.id = i.id", 0},
        {"SELECT count(*) FROM users", 0},
        {"DELETE FROM p_shop_items", 0},
        {"SELECT password_hash FROM users", GW_EDENIED},
        {"SELECT * FROM users", GW_EDENIED},
        {"SELECT 1 FROM users WHERE password_hash LIKE 's%'", GW_EDENIED},
        {"SELECT api_key_enc FROM upstreams", GW_EDENIED},
        {"SELECT key_hash FROM api_keys", GW_EDENIED},
        {"SELECT count(*) FROM changes", GW_EDENIED},
        {"SELECT count(*) FROM leases", GW_EDENIED},
        {"SELECT name FROM applied", GW_EDENIED},
        {"SELECT a FROM p_other_t", GW_EDENIED},
        {"UPDATE users SET name = 'x'", GW_EDENIED},
        {"DELETE FROM users", GW_EDENIED},
        {"INSERT INTO upstreams VALUES (1, 'x', 'y')", GW_EDENIED},
        {"INSERT INTO p_other_t VALUES (1)", GW_EDENIED},
        {"CREATE TABLE things(a)", GW_EDENIED},
        {"CREATE TEMP TABLE p_shop_t(a)", GW_EDENIED},
        {"CREATE INDEX p_shop_i ON users(name)", GW_EDENIED},
        {"CREATE INDEX other ON p_shop_items(name)", GW_EDENIED},
        {"CREATE VIEW p_shop_v AS SELECT password_hash FROM users", GW_EDENIED},
        {"CREATE TRIGGER p_shop_g AFTER INSERT ON p_shop_items BEGIN DELETE FROM users; END",
         GW_EDENIED},
        {"ALTER TABLE p_shop_items RENAME TO p_other_x", GW_EDENIED},
        {"ALTER TABLE users ADD COLUMN x", GW_EDENIED},
        {"DROP TABLE users", GW_EDENIED},
        {"ATTACH DATABASE '/tmp/x' AS x", GW_EDENIED},
        {"PRAGMA user_version = 4", GW_EDENIED},
        {"PRAGMA table_info(users)", GW_EDENIED},
        {"BEGIN", GW_EDENIED},
        {"SAVEPOINT a", GW_EDENIED},
        {"VACUUM INTO '/tmp/x'", GW_EDENIED},
        {"ANALYZE", GW_EDENIED},
        {"SELECT load_extension('/tmp/x')", GW_EDENIED},
        {"UPDATE sqlite_schema SET sql = ''", GW_EINVAL}, // refused by SQLite
        {"SELECT zeroblob(100000000)", GW_EDENIED},
        {"DROP INDEX p_shop_items_name", 0},
        {"DROP TABLE p_shop_items", 0},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        db_restrict(db, SLICE_LIT("shop"), 1000);
        int err = run(cases[i].sql);
        db_restrict(db, SLICE_NONE, 0);
        ck_assert_msg(err == cases[i].err, "%s: %d %s", cases[i].sql, err, db_error(db));
    }
    ck_assert_int_eq(run("SELECT password_hash FROM users"), 0);
    struct db_rows rows;
    ck_assert_int_eq(db_run(db, SLICE_LIT("SELECT name FROM users"), NULL, 0, arena, 0, &rows), 0);
    ck_assert(slice_is(rows.values[0].bytes, "ann"));
    teardown();
}
END_TEST

START_TEST(a_plugin_has_a_budget)
{
    setup();
    ck_assert_int_eq(run("CREATE TABLE p_shop_t(a INTEGER)"), 0);
    const char *endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) "
                          "SELECT max(i) FROM n";
    db_restrict(db, SLICE_LIT("shop"), 20);
    ck_assert_int_eq(run(endless), GW_ETIMEOUT);
    db_restrict(db, SLICE_NONE, 0);
    // Waiting for a lock counts too.
    struct db *other = NULL;
    char error[256];
    ck_assert_int_eq(db_open(test_dir_file(&dir, "a.db"), 0, &other, error, sizeof(error)), 0);
    ck_assert_int_eq(db_begin(other, true), 0);
    db_restrict(db, SLICE_LIT("shop"), 20);
    ck_assert_int_eq(run("INSERT INTO p_shop_t VALUES (1)"), GW_EBUSY);
    db_restrict(db, SLICE_NONE, 0);
    db_rollback(other);
    db_close(other);
    ck_assert_int_eq(run("INSERT INTO p_shop_t VALUES (1)"), 0);
    teardown();
}
END_TEST

START_TEST(many_statements_pass_the_cache)
{
    setup();
    for (int turn = 0; turn < 3; turn++) {
        for (int i = 0; i < 300; i++) {
            char sql[64];
            struct db_rows rows;
            int len = snprintf(sql, sizeof(sql), "SELECT %d", i);
            ck_assert_int_eq(db_run(db, slice_of(sql, (size_t)len), NULL, 0, arena, 0, &rows), 0);
            ck_assert_int_eq(rows.values[0].integer, i);
        }
    }
    teardown();
}
END_TEST

TEST_MAIN("db", values_and_rows_round_trip, errors_have_their_codes, each_row_is_streamed,
          transactions_commit_and_roll_back, files_are_private_and_bad_ones_are_told,
          a_plugin_is_kept_to_its_tables, a_plugin_has_a_budget, many_statements_pass_the_cache)
