// SSE: the events, offsets and borders of a table of texts, each at every 2-way split and byte by
// byte and against a plain parser; seeded random texts; limits; stopping; recordings when present.
#include "codec/sse.h"
#include "fuzz/sse_check.h"
#include <check.h>
#include <dirent.h>
#include <sys/stat.h>

static const struct {
    struct slice text;
    const char *events;
} CASES[] = {
#define T(text)                                                                                    \
    {                                                                                              \
        "" text, sizeof(text) - 1                                                                  \
    }
    {T(""), ""},
    {T("data: a\n\n"), "[0,9) 1 |a\n"},
    {T("data: a\n\ndata: b\n\n"), "[0,9) 1 |a\n[9,18) 1 |b\n"},
    {T("data: a\r\n\r\ndata: b\r\n\r\n"), "[0,11) 1 |a\n[11,22) 1 |b\n"},
    {T("data: a\r\rdata: b\r\r"), "[0,9) 1 |a\n[9,18) 1 |b\n"},
    {T("event: x\ndata: {\"a\":1}\n\n"), "[0,24) 1 x|{\"a\":1}\n"},
    {T("data: {\"a\":1}\nevent: x\n\n"), "[0,24) 1 x|{\"a\":1}\n"},
    {T("event: x\nevent: y\ndata:1\n\n"), "[0,26) 1 y|1\n"},
    {T("event: x\nevent\ndata:1\n\n"), "[0,23) 1 |1\n"},
    // Several data lines; an empty one; no space; only the first space goes.
    {T("data: a\ndata: b\ndata:c\n\n"), "[0,24) 1 |a\nb\nc\n"},
    {T("data\n\n"), "[0,6) 1 |\n"},
    {T("data:\n\n"), "[0,7) 1 |\n"},
    {T("data:\ndata:\n\n"), "[0,13) 1 |\n\n"},
    {T("data:  a \n\n"), "[0,11) 1 | a \n"},
    {T("data:a:b\n\n"), "[0,10) 1 |a:b\n"},
    {T("data: a\revent: e\ndata: b\r\n\r\n"), "[0,28) 1 e|a\nb\n"},
    // Unknown fields, fields without colon, names that only begin like ours.
    {T("id: 1\nretry: 5\nfoo: bar\nbaz\ndata: a\n\n"), "[0,37) 1 |a\n"},
    {T("id: 1\n\n"), "[0,7) 0 |\n"},
    {T("event: ping\n\n"), "[0,13) 0 ping|\n"},
    {T("datax: a\ndat: b\nData: c\n data: d\n\n"), "[0,34) 0 |\n"},
    // Comments and blank lines between events belong to none; inside they do.
    {T(": hi\n\ndata: a\n\n"), "[6,15) 1 |a\n"},
    {T(": hi\ndata: a\n: x\n\n"), "[5,18) 1 |a\n"},
    {T(":\n:\n\n\n\ndata: a\n\n\n\n: x\n\n"), "[7,16) 1 |a\n"},
    {T(": a\r\n\r\n: b\r\n\r\ndata: a\r\n\r\n"), "[14,25) 1 |a\n"},
    {T(": a\r: b\r\rdata: a\r\r"), "[9,18) 1 |a\n"},
    {T("data: a\n:data: b\n\n"), "[0,18) 1 |a\n"},
    // Mixed line ends. A blank line's LF belongs to the event unless the line before had a bare CR.
    {T("data: a\n\r\ndata: b\n\n"), "[0,10) 1 |a\n[10,19) 1 |b\n"},
    {T("data: a\r\n\ndata: b\n\n"), "[0,10) 1 |a\n[10,19) 1 |b\n"},
    {T("data: a\r\r\ndata: b\n\n"), "[0,9) 1 |a\n[10,19) 1 |b\n"},
    {T("data: a\n\rdata: b\n\n"), "[0,9) 1 |a\n[9,18) 1 |b\n"},
    {T("data: a\r\n\rdata: b\n\n"), "[0,10) 1 |a\n[10,19) 1 |b\n"},
    // The end of the stream.
    {T("data: a"), "[0,7) 1 |a\n"},
    {T("data: a\n"), "[0,8) 1 |a\n"},
    {T("data: a\r"), "[0,8) 1 |a\n"},
    {T("data: a\r\n"), "[0,9) 1 |a\n"},
    {T("data: a\r\n\r"), "[0,10) 1 |a\n"},
    {T("data: a\n\ndat"), "[0,9) 1 |a\n[9,12) 0 |\n"},
    {T("data: a\n\ndata: [DONE]"), "[0,9) 1 |a\n[9,21) 1 |[DONE]\n"},
    {T("data: a\n\n: bye"), "[0,9) 1 |a\n"},
    {T("data: a\n\n\n\n"), "[0,9) 1 |a\n"},
    // BOM: once, at the very beginning, whole.
    {T("\xef\xbb\xbf"
       "data: a\n\n"),
     "[3,12) 1 |a\n"},
    {T("\xef\xbb\xbf\n\n: x\ndata: a\n\n"), "[9,18) 1 |a\n"},
    {T("\xef\xbb\xbf"), ""},
    {T("\xef\xbb\xbf\xef\xbb\xbf"
       "data: a\n\n"),
     "[3,15) 0 |\n"},
    {T("\xef\xbb"
       "data: a\n\n"),
     "[0,11) 0 |\n"},
    {T("\xef\xbb"), "[0,2) 0 |\n"},
    {T("\xef\xbb\n\ndata: a\n\n"), "[0,4) 0 |\n[4,13) 1 |a\n"},
    {T("data: a\n\n\xef\xbb\xbf"
       "data: b\n\n"),
     "[0,9) 1 |a\n[9,21) 0 |\n"},
    // Bytes are bytes.
    {T("data: \0\xff\xe2\x80\xa8\n\n"), NULL},
    {T("data: [DONE] \r\n\r\n"), "[0,17) 1 |[DONE] \n"},
#undef T
};

static void check_text(struct slice text, bool all_splits, size_t seed)
{
    const char *wrong = sse_check(text.ptr, text.len, all_splits, seed);
    ck_assert_msg(!wrong, "%s: %.*s", wrong, SLICE_FMT(text));
}

START_TEST(test_table)
{
    for (size_t i = 0; i < sizeof(CASES) / sizeof(CASES[0]); i++) {
        check_text(CASES[i].text, true, i);
        if (!CASES[i].events)
            continue;
        struct sse_check_log log = {BUF_INIT(0)};
        ck_assert_int_eq(
            sse_check_feed(CASES[i].text.ptr, CASES[i].text.len, 0, CASES[i].text.len, &log), 0);
        ck_assert_msg(slice_is(buf_slice(&log.text), CASES[i].events), "%s gives %.*s",
                      CASES[i].text.ptr, SLICE_FMT(buf_slice(&log.text)));
        buf_free(&log.text);
    }
}
END_TEST

START_TEST(test_random)
{
    static const char *const PIECES[] = {
        "data", ":",     " ",       "\n",       "\r",           "\r\n", "event", "a",       "id",
        "\n\n", ": c\n", "data: x", "\r\n\r\n", "\xef\xbb\xbf", "\xef", "\r\r",  "retry: 1"};
    uint64_t state = 88172645463325252u;
    char text[256];
    for (int round = 0; round < 30000; round++) {
        size_t len = 0;
        for (int n = 0; n < 14; n++) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            const char *piece = PIECES[(state >> 13) % (sizeof(PIECES) / sizeof(PIECES[0]))];
            memcpy(text + len, piece, strlen(piece));
            len += strlen(piece);
        }
        check_text(slice_of(text, len), round % 8 == 0, (size_t)(state >> 40));
    }
}
END_TEST

START_TEST(test_borders)
{
    // B: at a border after this byte; the digit is sse_pending.
    static const struct {
        const char *text, *borders;
    } TEXTS[] = {
        {"data:\n\ndata", "123456B1234"}, {"data:\r\n\r\nd", "12345678B1"},
        {"data:\r\rd", "123456B1"},       {"data:\r\r\nd", "123456BB1"},
        {": c\n: d\n\nd", "123B123BB1"},  {":c\r\n:d\r\rd", "12BB12BB1"},
        {"d\n:c\n\n:", "12345B1"},        {"\n\n\r\r\n:", "BBBBB1"},
        {"\xef\xbb\xbf:c\nd", "12B12B1"}, {"\xef\xbb:", "123"},
    };
    for (size_t i = 0; i < sizeof(TEXTS) / sizeof(TEXTS[0]); i++) {
        struct sse sse;
        struct sse_check_log log = {BUF_INIT(0)};
        sse_init(&sse, 0);
        ck_assert(sse_is_at_border(&sse));
        for (size_t k = 0; TEXTS[i].text[k]; k++) {
            ck_assert_int_eq(
                sse_feed(&sse, slice_of(TEXTS[i].text + k, 1), sse_check_on_event, &log), 0);
            char want = TEXTS[i].borders[k];
            ck_assert_msg(sse_is_at_border(&sse) == (want == 'B'), "%zu at %zu", i, k);
            ck_assert_msg(sse_pending(&sse) == (want == 'B' ? 0u : (unsigned)(want - '0')),
                          "%zu at %zu", i, k);
        }
        sse_free(&sse);
        buf_free(&log.text);
    }
}
END_TEST

static int on_nothing(void *user, const struct sse_event *event)
{
    (void)event;
    ++*(size_t *)user;
    return 0;
}

START_TEST(test_limit)
{
    // 20 bytes are allowed: "data: 0123456789ab\n\n".
    static const char FITS[] = "data: 0123456789ab\n\n", TOO_BIG[] = "data: 0123456789abc\n\n";
    for (size_t split = 1; split < sizeof(TOO_BIG) - 1; split++) {
        struct sse sse;
        size_t count = 0;
        sse_init(&sse, 20);
        for (int i = 0; i < 3; i++)
            ck_assert_int_eq(sse_feed(&sse, slice_str(FITS), on_nothing, &count), 0);
        int err = sse_feed(&sse, slice_of(TOO_BIG, split), on_nothing, &count);
        if (!err)
            err = sse_feed(&sse, slice_str(TOO_BIG + split), on_nothing, &count);
        ck_assert_int_eq(err, GW_ETOOBIG);
        ck_assert_int_eq(sse_feed(&sse, slice_str(FITS), on_nothing, &count), GW_ETOOBIG);
        ck_assert_int_eq(sse_finish(&sse, on_nothing, &count), GW_ETOOBIG);
        ck_assert_uint_eq(count, 3);
        sse_free(&sse);
    }
    // Comments between events are not kept, however long.
    struct sse sse;
    size_t count = 0;
    sse_init(&sse, 20);
    for (int i = 0; i < 100; i++)
        ck_assert_int_eq(sse_feed(&sse, SLICE_LIT(":::::::::::"), on_nothing, &count), 0);
    ck_assert_uint_eq(sse.partial.len, 0);
    ck_assert_uint_eq(sse_pending(&sse), 1100);
    ck_assert_int_eq(sse_feed(&sse, SLICE_LIT("\ndata: a\n\n"), on_nothing, &count), 0);
    ck_assert_uint_eq(count, 1);
    sse_free(&sse);
}
END_TEST

static int on_stop(void *user, const struct sse_event *event)
{
    struct sse_check_log *log = user;
    sse_check_on_event(log, event);
    return slice_is(event->data, "stop") ? GW_ECANCELLED : 0;
}

START_TEST(test_stop)
{
    static const char TEXT[] = "data: a\r\n\r\ndata: stop\r\n\r\ndata: stop\n\ndata: b\n\n";
    for (size_t split = 0; split < sizeof(TEXT) - 1; split++) {
        struct sse sse;
        struct sse_check_log log = {BUF_INIT(0)};
        sse_init(&sse, 0);
        size_t stops = 0, at = 0, len = sizeof(TEXT) - 1;
        while (at < len) {
            size_t end = at < split ? split : len;
            int err = sse_feed(&sse, slice_of(TEXT + at, end - at), on_stop, &log);
            ck_assert(err == 0 || err == GW_ECANCELLED);
            stops += err != 0;
            at = (size_t)sse.offset; // goes on behind the event that stopped it
        }
        ck_assert_uint_eq(stops, 2);
        ck_assert(slice_is(buf_slice(&log.text), "[0,11) 1 |a\n[11,25) 1 |stop\n"
                                                 "[25,37) 1 |stop\n[37,46) 1 |b\n"));
        sse_free(&sse);
        buf_free(&log.text);
    }
}
END_TEST

static int on_zero_copy(void *user, const struct sse_event *event)
{
    const struct slice *fed = user;
    ck_assert(event->data.ptr >= fed->ptr &&
              event->data.ptr + event->data.len <= fed->ptr + fed->len);
    return 0;
}

START_TEST(test_zero_copy)
{
    struct slice text = SLICE_LIT("event: x\ndata: abc\n\ndata: d\r\n\r\n");
    struct sse sse;
    sse_init(&sse, 0);
    ck_assert_int_eq(sse_feed(&sse, text, on_zero_copy, &text), 0);
    ck_assert_ptr_null(sse.partial.mem);
    sse_free(&sse);
}
END_TEST

// Every recorded stream below a folder, read in place.
static size_t check_recordings(const char *folder, int depth)
{
    size_t count = 0;
    DIR *dir = opendir(folder);
    if (!dir)
        return 0;
    for (struct dirent *entry; (entry = readdir(dir));) {
        if (entry->d_name[0] == '.')
            continue;
        char path[1024];
        struct stat info;
        if (snprintf(path, sizeof(path), "%s/%s", folder, entry->d_name) >= (int)sizeof(path) ||
            stat(path, &info) != 0)
            continue;
        if (S_ISDIR(info.st_mode)) {
            count += depth < 6 ? check_recordings(path, depth + 1) : 0;
            continue;
        }
        if (!slice_ends(slice_str(entry->d_name), ".sse") || info.st_size > (1 << 20))
            continue;
        FILE *file = fopen(path, "rb");
        ck_assert_ptr_nonnull(file);
        char *text = malloc((size_t)info.st_size + 1);
        size_t len = fread(text, 1, (size_t)info.st_size, file);
        fclose(file);
        const char *wrong = sse_check(text, len, len < 1500, len * 31);
        ck_assert_msg(!wrong, "%s: %s", wrong, path);
        free(text);
        count++;
    }
    closedir(dir);
    return count;
}

START_TEST(test_recordings)
{
    const char *shared = getenv("MOONGATE_SHARED");
    char folder[512];
    snprintf(folder, sizeof(folder), "%s/fixtures", shared ? shared : "../shared");
    size_t count = check_recordings(folder, 0);
    if (count)
        printf("recordings: %zu streams checked\n", count);
    else
        printf("recordings: none below %s, 1 test skipped\n", folder);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("sse");
    TCase *tcase = tcase_create("sse");
    tcase_set_timeout(tcase, 240);
    tcase_add_test(tcase, test_table);
    tcase_add_test(tcase, test_random);
    tcase_add_test(tcase, test_borders);
    tcase_add_test(tcase, test_limit);
    tcase_add_test(tcase, test_stop);
    tcase_add_test(tcase, test_zero_copy);
    tcase_add_test(tcase, test_recordings);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_set_fork_status(runner, CK_NOFORK);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? 1 : 0;
}
