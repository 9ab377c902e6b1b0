#pragma once
// What the state floor's tests share: a fresh folder under /tmp, removed at the end.
#include "base/log.h"
#include <check.h>
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct test_dir {
    char path[64];
};

static inline void test_dir_make(struct test_dir *dir)
{
    snprintf(dir->path, sizeof(dir->path), "/tmp/moongate-test-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(dir->path));
}

static inline const char *test_dir_file(const struct test_dir *dir, const char *name)
{
    static __thread char path[4][512];
    static __thread unsigned turn;
    char *out = path[turn++ % 4];
    snprintf(out, sizeof(path[0]), "%s/%s", dir->path, name);
    return out;
}

static inline void test_dir_clear(const char *path)
{
    DIR *dir = opendir(path);
    struct dirent *entry;
    while (dir && (entry = readdir(dir))) {
        char name[512];
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        int len = snprintf(name, sizeof(name), "%s/%s", path, entry->d_name);
        ck_assert_int_lt(len, (int)sizeof(name));
        if (unlink(name) != 0)
            test_dir_clear(name);
    }
    if (dir)
        closedir(dir);
    rmdir(path);
}

static inline void test_write_file(const char *path, const char *text)
{
    FILE *file = fopen(path, "w");
    ck_assert_ptr_nonnull(file);
    fputs(text, file);
    fclose(file);
}

static inline int test_main(const char *name, const TTest *const *tests, size_t count,
                            enum fork_status fork_status)
{
    log_set_level(LOG_ERROR); // expected errors are still shown
    Suite *suite = suite_create(name);
    TCase *cases = tcase_create(name);
    tcase_set_timeout(cases, 240);
    for (size_t i = 0; i < count; i++)
        tcase_add_test(cases, tests[i]);
    suite_add_tcase(suite, cases);
    SRunner *runner = srunner_create(suite);
    srunner_set_fork_status(runner, fork_status);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? 1 : 0;
}
#define TEST_MAIN(name, ...)                                                                       \
    int main(void)                                                                                 \
    {                                                                                              \
        const TTest *const tests[] = {__VA_ARGS__};                                                \
        return test_main(name, tests, sizeof(tests) / sizeof(tests[0]), CK_NOFORK);                \
    }
