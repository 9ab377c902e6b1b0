// log: text, secrets, queue, files. Lines are read back from a pipe or a file.
#include "base/clock.h"
#include "base/log_parts.h"
#include <check.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

static int64_t fixed_wall_ms(void)
{
    return 0;
}
static uint64_t fixed_boot_ns(void)
{
    return 0;
}
static int no_random(void *out, size_t len)
{
    memset(out, 0, len);
    return 0;
}
static const struct clock_source fixed = {fixed_wall_ms, fixed_boot_ns, no_random};

static struct slice hidden(struct buf *out, const char *line)
{
    buf_clear(out);
    ck_assert_int_eq(log_hide_in(slice_str(line), out), 0);
    return buf_slice(out);
}

START_TEST(escapes)
{
    static const struct {
        struct slice in;
        const char *out;
    } cases[] = {
        {{"plain ~", 7}, "plain ~"},
        {{"\"\\/", 3}, "\\\"\\\\/"},
        {{"\n\r\t\0\x1f\x7f", 6}, "\\n\\r\\t\\u0000\\u001f\\u007f"},
        {{"\x1b[31m", 5}, "\\u001b[31m"},
        {{"\xc2\x9b", 2}, "\\u009b"},
        {{"\xc2\xa0\xc3\xa9\xe4\xb8\xad\xf0\x9f\x98\x80", 11},
         "\xc2\xa0\xc3\xa9\xe4\xb8\xad\xf0\x9f\x98\x80"},
        {{"\xe2\x80\xa8", 3}, "\\u2028"},
        {{"\x80", 1}, "\\ufffd"},
        {{"\xc0\xaf", 2}, "\\ufffd\\ufffd"},
        {{"\xed\xa0\x80", 3}, "\\ufffd\\ufffd\\ufffd"},
        {{"\xf0\x9f\x98", 3}, "\\ufffd"},
        {{"\xf0\x9f\x98x", 4}, "\\ufffdx"},
        {{"\xe4\xb8\"", 3}, "\\ufffd\\\""},
        {{"\xf4\x90\x80\x80", 4}, "\\ufffd\\ufffd\\ufffd\\ufffd"},
        {{"\xff\xfe", 2}, "\\ufffd\\ufffd"},
    };
    struct buf out = BUF_INIT(0);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        buf_clear(&out);
        ck_assert_int_eq(log_escape(&out, cases[i].in), 0);
        ck_assert_msg(slice_is(buf_slice(&out), cases[i].out), "case %zu: %.*s", i,
                      SLICE_FMT(buf_slice(&out)));
    }
    buf_free(&out);
}
END_TEST

START_TEST(event_text)
{
    struct buf out = BUF_INIT(0);
    clock_use(&fixed);
    const struct log_field fields[] = {
        LOG_STR("s", "a\"b"),          LOG_STR("none", NULL),
        LOG_SLICE("e", SLICE_LIT("")), LOG_INT("i", -5),
        LOG_BOOL("b", true),           LOG_JSON("j", SLICE_LIT("{\n\"x\":1}")),
        LOG_JSON("nj", SLICE_NONE),    {LOG_KIND_END, NULL, {NULL, 0}, 0}};
    ck_assert_int_eq(log_format_event(&out, LOG_WARN, "it_\n", fields), 0);
    clock_use(NULL);
    ck_assert_msg(
        slice_is(buf_slice(&out),
                 "{\"ts\":\"1970-01-01T00:00:00.000Z\",\"level\":\"warn\",\"event\":\"it_\\n\","
                 "\"s\":\"a\\\"b\",\"none\":null,\"e\":\"\",\"i\":-5,\"b\":true,"
                 "\"j\":{ \"x\":1},\"nj\":null}\n"),
        "%.*s", SLICE_FMT(buf_slice(&out)));
    // A field that does not fit is left out whole; later ones still stand.
    char *big = malloc(LOG_EVENT_MAX);
    memset(big, 'x', LOG_EVENT_MAX);
    const struct log_field wide[] = {LOG_SLICE("big", slice_of(big, LOG_EVENT_MAX)),
                                     LOG_INT("after", 1),
                                     {LOG_KIND_END, NULL, {NULL, 0}, 0}};
    buf_free(&out);
    ck_assert_int_eq(log_format_event(&out, LOG_INFO, "e", wide), 0);
    ck_assert(slice_ends(buf_slice(&out), ",\"after\":1,\"truncated\":true}\n"));
    ck_assert_int_eq(slice_find(buf_slice(&out), SLICE_LIT("xx")), -1);
    buf_free(&out);
    ck_assert_int_eq(log_format_line(&out, slice_of(big, LOG_LINE_MAX + 1)), GW_ETOOBIG);
    free(big);
    buf_free(&out);
}
END_TEST

START_TEST(secrets_are_replaced)
{
    static const struct {
        const char *in, *out;
    } cases[] = {
        {"", ""},
        {"short", "short"},
        {"sk-proj-AAAA1111", "[secret]"},
        {"x sk-proj-AAAA1111 y sk-proj-AAAA1111", "x [secret] y [secret]"},
        {"sk-proj-AAAA1111sk-proj-BBBB2222", "[secret][secret]"},
        {"sk-proj-AAAA111", "sk-proj-AAAA111"},
        // A secret that begins another, one that ends another, one that overlaps another.
        {"sk-proj-AAAA1111-longer", "[secret]"},
        {"sk-proj-AAAA1111-long", "[secret]-long"},
        {"<<sk-proj-BBBB2222>>", "<<[secret]>>"},
        {"1111-longer-tail", "[secret]"},
        {"sk-proj-AAAA1111-longer-tail", "[secret]"},
        {"zzzzzzzzzzzz", "[secret]"},
        // Escaped by our encoder, and by one that escapes "/".
        {"{\"k\":\"quo\\\"te/secret\"}", "{\"k\":\"[secret]\"}"},
        {"{\"k\":\"quo\\\"te\\/secret\"}", "{\"k\":\"[secret]\"}"},
    };
    static const char *const secrets[] = {"sk-proj-AAAA1111", "sk-proj-AAAA1111-longer",
                                          "sk-proj-BBBB2222", "BBBB2222",
                                          "1111-longer-tail", "zzzzzzzz",
                                          "quo\"te/secret"};
    struct buf out = BUF_INIT(0);
    for (size_t i = 0; i < sizeof(secrets) / sizeof(secrets[0]); i++)
        ck_assert_int_eq(log_hide_secret(slice_str(secrets[i])), 0);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
        ck_assert_msg(slice_is(hidden(&out, cases[i].in), cases[i].out), "%s: %.*s", cases[i].in,
                      SLICE_FMT(buf_slice(&out)));
    // Registered twice, forgotten twice; forgetting what is unknown does nothing.
    ck_assert_int_eq(log_hide_secret(slice_str(secrets[0])), 0);
    log_forget_secret(slice_str(secrets[0]));
    ck_assert(slice_is(hidden(&out, secrets[0]), "[secret]"));
    log_forget_secret(SLICE_LIT("never seen before"));
    for (size_t i = 0; i < sizeof(secrets) / sizeof(secrets[0]); i++)
        log_forget_secret(slice_str(secrets[i]));
    for (size_t i = 0; i < sizeof(secrets) / sizeof(secrets[0]); i++)
        ck_assert(slice_is(hidden(&out, secrets[i]), secrets[i]));
    ck_assert_int_eq(log_hide_secret(SLICE_LIT("1234567")), GW_EINVAL);
    buf_free(&out);
}
END_TEST

START_TEST(secrets_are_bounded)
{
    struct buf out = BUF_INIT(0);
    char key[40];
    for (int i = 0; i < 4096; i++) {
        snprintf(key, sizeof(key), "sk-proj-%08x", (unsigned)i * 2654435761u);
        ck_assert_int_eq(log_hide_secret(slice_str(key)), 0);
    }
    ck_assert_int_eq(log_hide_secret(SLICE_LIT("one too many")), GW_EFULL);
    ck_assert_int_eq(log_hide_secret(slice_str(key)), 0); // known already
    log_forget_secret(slice_str(key));
    for (int i = 0; i < 4096; i++) {
        snprintf(key, sizeof(key), "sk-proj-%08x", (unsigned)i * 2654435761u);
        ck_assert(slice_is(hidden(&out, key), "[secret]"));
        if (i % 2)
            log_forget_secret(slice_str(key));
    }
    for (int i = 0; i < 4096; i++) {
        snprintf(key, sizeof(key), "sk-proj-%08x", (unsigned)i * 2654435761u);
        ck_assert(slice_is(hidden(&out, key), i % 2 ? key : "[secret]"));
        log_forget_secret(slice_str(key));
    }
    ck_assert(slice_is(hidden(&out, "one too many"), "one too many"));
    buf_free(&out);
}
END_TEST

// Reads until end of file.
static void read_all(int fd, struct buf *out)
{
    for (;;) {
        char *room = buf_room(out, 65536);
        ssize_t got = read(fd, room, 65536);
        ck_assert_int_ge(got, 0);
        if (got == 0)
            return;
        buf_grew(out, (size_t)got);
    }
}

static void read_file(const char *path, struct buf *out)
{
    int fd = open(path, O_RDONLY);
    ck_assert_int_ge(fd, 0);
    buf_clear(out);
    read_all(fd, out);
    close(fd);
}

enum { THREADS = 3, LINES = 2000 };

static void *write_lines(void *arg)
{
    char text[64];
    int thread = *(int *)arg;
    for (int i = 0; i < LINES; i++) {
        int len = snprintf(text, sizeof(text), "{\"t\":%d,\"n\":%d}", thread, i);
        log_line(slice_of(text, (size_t)len));
    }
    return NULL;
}

START_TEST(threads_write_in_order)
{
    char path[] = "/tmp/moongate-log-XXXXXX";
    int fd = mkstemp(path), numbers[THREADS];
    pthread_t threads[THREADS];
    uint64_t dropped = log_dropped();
    ck_assert_int_eq(log_start(fd, LOG_INFO), 0);
    ck_assert_int_eq(log_start(fd, LOG_INFO), GW_EBUSY);
    for (int i = 0; i < THREADS; i++) {
        numbers[i] = i;
        ck_assert_int_eq(pthread_create(&threads[i], NULL, write_lines, &numbers[i]), 0);
    }
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    log_stop();
    log_stop();
    ck_assert_uint_eq(log_dropped(), dropped);
    FILE *file = fopen(path, "r");
    int next[THREADS] = {0}, thread, number, lines = 0;
    while (fscanf(file, "{\"t\":%d,\"n\":%d}\n", &thread, &number) == 2) {
        ck_assert_int_eq(number, next[thread]++);
        lines++;
    }
    ck_assert(feof(file));
    ck_assert_int_eq(lines, THREADS * LINES);
    fclose(file);
    close(fd);
    unlink(path);
}
END_TEST

START_TEST(levels_secrets_and_restart)
{
    int ends[2];
    struct buf out = BUF_INIT(0);
    ck_assert_int_eq(pipe(ends), 0);
    ck_assert_int_eq(log_hide_secret(SLICE_LIT("top-secret-key")), 0);
    for (int round = 0; round < 2; round++) {
        ck_assert_int_eq(log_start(ends[1], LOG_WARN), 0);
        log_event(LOG_INFO, "not_shown", LOG_INT("n", 1));
        log_event(LOG_WARN, "shown", LOG_STR("key", "a top-secret-key b"));
        log_set_level(LOG_DEBUG);
        ck_assert(log_is_on(LOG_DEBUG) && log_level_get() == LOG_DEBUG);
        log_event(LOG_DEBUG, "debugging", LOG_BOOL("ok", false));
        log_line(SLICE_LIT("{\"a\":\"top-secret-key\",\n\"b\":2}"));
        log_stop();
    }
    log_forget_secret(SLICE_LIT("top-secret-key"));
    log_set_level(LOG_INFO);
    close(ends[1]);
    read_all(ends[0], &out);
    close(ends[0]);
    size_t lines = 0;
    for (size_t i = 0; i < out.len; i++)
        lines += buf_slice(&out).ptr[i] == '\n';
    ck_assert_uint_eq(lines, 6);
    ck_assert_int_eq(slice_find(buf_slice(&out), SLICE_LIT("not_shown")), -1);
    ck_assert_int_eq(slice_find(buf_slice(&out), SLICE_LIT("top-secret-key")), -1);
    ck_assert_int_ge(slice_find(buf_slice(&out), SLICE_LIT("\"key\":\"a [secret] b\"")), 0);
    ck_assert(slice_ends(buf_slice(&out), "{\"a\":\"[secret]\", \"b\":2}\n"));
    buf_free(&out);
}
END_TEST

START_TEST(blocked_pipe_blocks_no_caller)
{
    // Nobody reads the pipe: the queue fills, lines are dropped and counted, callers and log_stop
    // come back.
    int ends[2];
    uint64_t dropped = log_dropped();
    static const char line[] = "{\"text\":\"0123456789012345678901234567890123456789\"}";
    ck_assert_int_eq(pipe(ends), 0);
    ck_assert_int_eq(log_start(ends[1], LOG_INFO), 0);
    for (int i = 0; i < 60000; i++)
        log_line(slice_str(line));
    // 16,384 queued, and what the pipe, one batch and one drain have taken.
    ck_assert_uint_gt(log_dropped() - dropped, 60000 - 16384 - 2 * 65536 / 50 - 4096);
    log_stop();
    uint64_t lost = log_dropped() - dropped;
    close(ends[1]);
    struct buf out = BUF_INIT(0);
    read_all(ends[0], &out);
    uint64_t whole = 0;
    for (size_t i = 0; i < out.len; i++)
        whole += buf_slice(&out).ptr[i] == '\n';
    // Every line is either whole in the pipe or counted.
    ck_assert_uint_gt(whole, 0);
    ck_assert_uint_eq(whole + lost, 60000);
    buf_free(&out);
    close(ends[0]);
}
END_TEST

// Two processes may share a pipe (an upgrade): what is written at once ends with a line.
START_TEST(a_full_pipe_cuts_no_line)
{
    int ends[2];
    char bytes[4097];
    ck_assert_int_eq(pipe(ends), 0);
    ck_assert_int_eq(fcntl(ends[1], F_SETPIPE_SZ, 4096), 4096);
    ck_assert_int_eq(log_start(ends[1], LOG_INFO), 0);
    for (int i = 0; i < 300; i++)
        log_event(LOG_INFO, "shared", LOG_INT("number", i));
    size_t total = 0, lines = 0;
    while (lines < 300) { // each read empties the pipe's one page
        ssize_t got = read(ends[0], bytes, sizeof bytes);
        ck_assert_int_gt(got, 0);
        ck_assert_msg(bytes[got - 1] == '\n', "a line is cut after %zu bytes", total + (size_t)got);
        ck_assert(bytes[0] == '{');
        for (ssize_t i = 0; i < got; i++)
            lines += bytes[i] == '\n';
        total += (size_t)got;
    }
    log_stop();
    close(ends[0]);
    close(ends[1]);
}
END_TEST

START_TEST(byte_bound)
{
    // Few but long lines: the bytes bound the queue.
    int ends[2];
    size_t size = 200 * 1024;
    char *line = malloc(size);
    memset(line, 'x', size);
    uint64_t dropped = log_dropped();
    ck_assert_int_eq(pipe(ends), 0);
    ck_assert_int_eq(log_start(ends[1], LOG_INFO), 0);
    for (int i = 0; i < 100; i++)
        log_line(slice_of(line, size));
    ck_assert_uint_ge(log_dropped() - dropped, 100 - 8 * 1024 / 200 - 3);
    log_stop();
    free(line);
    close(ends[0]);
    close(ends[1]);
}
END_TEST

START_TEST(closed_pipe_raises_no_signal)
{
    int ends[2];
    // SIGPIPE would kill the test program. The thread, then callers themselves.
    signal(SIGPIPE, SIG_DFL);
    uint64_t dropped = log_dropped();
    ck_assert_int_eq(pipe(ends), 0);
    close(ends[0]);
    ck_assert_int_eq(log_start(ends[1], LOG_INFO), 0);
    log_line(SLICE_LIT("{}"));
    log_stop();
    ck_assert_uint_ge(log_dropped() - dropped, 1);
    int saved = dup(STDERR_FILENO);
    dup2(ends[1], STDERR_FILENO);
    dropped = log_dropped();
    log_line(SLICE_LIT("{}"));
    dup2(saved, STDERR_FILENO);
    ck_assert_uint_eq(log_dropped() - dropped, 1);
    sigset_t pending;
    sigpending(&pending);
    ck_assert_int_eq(sigismember(&pending, SIGPIPE), 0);
    close(saved);
    close(ends[1]);
}
END_TEST

START_TEST(files_and_reopen)
{
    char dir[] = "/tmp/moongate-log-XXXXXX", path[64], moved[64];
    struct buf out = BUF_INIT(0);
    ck_assert_ptr_nonnull(mkdtemp(dir));
    snprintf(path, sizeof(path), "%s/a.log", dir);
    snprintf(moved, sizeof(moved), "%s/a.log.1", dir);
    ck_assert_int_eq(log_to_file("/nowhere/at/all"), GW_EIO);
    for (int round = 0; round < 2; round++) {
        // Once written by callers themselves, once by the thread.
        ck_assert_int_eq(log_to_file(path), 0);
        if (round)
            ck_assert_int_eq(log_start(STDERR_FILENO, LOG_INFO), 0);
        log_line(SLICE_LIT("{\"n\":1}"));
        if (round) {
            // Only log_stop says that a line was written.
            log_stop();
            ck_assert_int_eq(log_start(STDERR_FILENO, LOG_INFO), 0);
        }
        ck_assert_int_eq(rename(path, moved), 0);
        log_reopen();
        if (round) {
            log_stop();
            ck_assert_int_eq(log_start(STDERR_FILENO, LOG_INFO), 0);
        }
        log_line(SLICE_LIT("{\"n\":2}"));
        log_stop();
        read_file(moved, &out);
        ck_assert(slice_is(buf_slice(&out), "{\"n\":1}\n"));
        read_file(path, &out);
        ck_assert(slice_is(buf_slice(&out), "{\"n\":2}\n"));
        ck_assert_int_eq(log_to_file(NULL), 0);
        unlink(path);
        unlink(moved);
    }
    // A switch while the thread runs; the second replaces the first before or after it took effect.
    ck_assert_int_eq(log_start(STDERR_FILENO, LOG_INFO), 0);
    ck_assert_int_eq(log_to_file(moved), 0);
    ck_assert_int_eq(log_to_file(path), 0);
    log_stop();
    log_line(SLICE_LIT("{\"n\":3}"));
    ck_assert_int_eq(log_to_file(NULL), 0);
    read_file(path, &out);
    ck_assert(slice_is(buf_slice(&out), "{\"n\":3}\n"));
    unlink(path);
    unlink(moved);
    rmdir(dir);
    buf_free(&out);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("log");
    TCase *tc = tcase_create("all");
    tcase_set_timeout(tc, 120);
    tcase_add_test(tc, escapes);
    tcase_add_test(tc, event_text);
    tcase_add_test(tc, secrets_are_replaced);
    tcase_add_test(tc, secrets_are_bounded);
    tcase_add_test(tc, threads_write_in_order);
    tcase_add_test(tc, levels_secrets_and_restart);
    tcase_add_test(tc, blocked_pipe_blocks_no_caller);
    tcase_add_test(tc, a_full_pipe_cuts_no_line);
    tcase_add_test(tc, byte_bound);
    tcase_add_test(tc, closed_pipe_raises_no_signal);
    tcase_add_test(tc, files_and_reopen);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_set_fork_status(runner, CK_NOFORK);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
