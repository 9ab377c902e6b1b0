// Memory pressure: the levels with a driven reading, the cap from made-up control groups.
#include "base/pressure.h"

#include "base/log.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#define MIB (1024u * 1024u)

struct reading {
    int64_t resident, after_give_back; // < 0: as before
    int gives;
};

static int64_t resident_bytes(void *user)
{
    return ((struct reading *)user)->resident;
}

static void give_back(void *user)
{
    struct reading *reading = user;
    reading->gives++;
    if (reading->after_give_back >= 0)
        reading->resident = reading->after_give_back;
}

START_TEST(levels_with_hysteresis)
{
    static const struct {
        int64_t mib;
        bool is_high;
    } steps[] = {{500, false}, {949, false}, {950, true},  {940, true},  {901, true},
                 {900, true},  {899, false}, {949, false}, {2000, true}, {-1, true},
                 {910, true},  {0, false},   {-1, false}};
    struct reading reading = {0, -1, 0};
    const struct pressure_source source = {resident_bytes, give_back, &reading};
    struct pressure *pressure;
    ck_assert_int_eq(pressure_new(1000 * (uint64_t)MIB, &source, &pressure), 0);
    for (size_t i = 0; i < sizeof steps / sizeof *steps; i++) {
        reading.resident = steps[i].mib < 0 ? -1 : steps[i].mib * (int64_t)MIB;
        pressure_sample(pressure);
        ck_assert_msg(pressure_is_high(pressure) == steps[i].is_high, "step %zu", i);
    }
    struct pressure_view view;
    pressure_read(pressure, &view);
    ck_assert_uint_eq(view.changes, 2);
    ck_assert_uint_eq(view.cap_bytes, 1000 * (uint64_t)MIB);
    pressure_free(pressure);
}
END_TEST

START_TEST(free_pages_are_given_back_first)
{
    struct reading reading = {960, 500, 0};
    const struct pressure_source source = {resident_bytes, give_back, &reading};
    struct pressure *pressure;
    ck_assert_int_eq(pressure_new(1000, &source, &pressure), 0);
    ck_assert_int_eq(reading.gives, 1);
    ck_assert(!pressure_is_high(pressure)); // most of it was free already
    // It stays high: pages are given back now and then, not with each sample.
    reading = (struct reading){990, -1, 0};
    for (int i = 0; i < 17; i++)
        pressure_sample(pressure);
    ck_assert(pressure_is_high(pressure));
    ck_assert_int_ge(reading.gives, 2);
    ck_assert_int_le(reading.gives, 4);
    // …and then it is over by that alone.
    reading.after_give_back = 100;
    for (int i = 0; i < 8; i++)
        pressure_sample(pressure);
    ck_assert(!pressure_is_high(pressure));
    pressure_free(pressure);
}
END_TEST

START_TEST(what_a_crowd_left_is_given_back_below_the_cap)
{
    struct reading reading = {20 * (int64_t)MIB, -1, 0};
    const struct pressure_source source = {resident_bytes, give_back, &reading};
    struct pressure *pressure;
    ck_assert_int_eq(pressure_new(100000 * (uint64_t)MIB, &source, &pressure), 0);
    for (int i = 0; i < 1000; i++)
        pressure_sample(pressure);
    ck_assert_int_eq(reading.gives, 0); // small: nothing to give
    // It comes, and is trimmed in vain; it goes, and the size says nothing of that.
    reading.resident = 200 * (int64_t)MIB;
    for (int i = 0; i < 480; i++)
        pressure_sample(pressure);
    ck_assert_int_ge(reading.gives, 1);
    ck_assert_int_le(reading.gives, 3);
    reading.after_give_back = 24 * (int64_t)MIB;
    for (int i = 0; i < 240; i++)
        pressure_sample(pressure);
    ck_assert_int_eq(reading.resident, 24 * (int64_t)MIB);
    int gives = reading.gives;
    for (int i = 0; i < 1000; i++)
        pressure_sample(pressure);
    ck_assert_int_eq(reading.gives, gives);
    pressure_free(pressure);
}
END_TEST

START_TEST(without_a_cap_it_is_never_high)
{
    struct reading reading = {INT64_C(1) << 40, -1, 0};
    const struct pressure_source source = {resident_bytes, give_back, &reading};
    struct pressure *pressure;
    ck_assert_int_eq(pressure_new(0, &source, &pressure), 0);
    ck_assert(!pressure_is_high(pressure));
    ck_assert(!pressure_is_high(NULL));
    pressure_free(pressure);
    pressure_free(NULL);
}
END_TEST

START_TEST(the_thread_samples)
{
    struct pressure *pressure;
    struct pressure_view view;
    ck_assert_int_eq(pressure_new(UINT64_C(1) << 50, NULL, &pressure), 0);
    pressure_read(pressure, &view);
    ck_assert_uint_gt(view.resident_bytes, 100000);
    ck_assert_int_eq(pressure_start(pressure), 0);
    // Memory that is touched shows within a few samples.
    size_t size = 64 * (size_t)MIB;
    volatile char *mem = malloc(size);
    ck_assert_ptr_nonnull((void *)(uintptr_t)mem);
    for (size_t i = 0; i < size; i += 4096)
        mem[i] = 1;
    uint64_t before = view.resident_bytes;
    for (int i = 0; i < 400 && view.resident_bytes < before + size / 2; i++) {
        usleep(25000);
        pressure_read(pressure, &view);
    }
    ck_assert_uint_ge(view.resident_bytes, before + size / 2);
    free((void *)(uintptr_t)mem);
    pressure_free(pressure); // ends the thread
}
END_TEST

// ---- the cap

static char root[64];

static void put(const char *path, const char *text)
{
    char full[512];
    snprintf(full, sizeof full, "%s%s", root, path);
    for (char *at = full + strlen(root) + 1; (at = strchr(at, '/')); at++) {
        *at = '\0';
        (void)mkdir(full, 0700);
        *at = '/';
    }
    FILE *out = fopen(full, "w");
    ck_assert_ptr_nonnull(out);
    fputs(text, out);
    fclose(out);
}

static void new_root(void)
{
    snprintf(root, sizeof root, "/tmp/test-pressure-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(root));
}

static void drop_root(void)
{
    char command[128];
    snprintf(command, sizeof command, "rm -r %s", root);
    ck_assert_int_eq(system(command), 0);
}

START_TEST(control_groups_of_version_2)
{
    new_root();
    ck_assert_uint_eq(pressure_cgroup_limit(root), 0); // nothing there
    put("/proc/self/cgroup", "0::/a.slice/b.service\n");
    ck_assert_uint_eq(pressure_cgroup_limit(root), 0);
    put("/sys/fs/cgroup/a.slice/b.service/memory.max", "max\n");
    ck_assert_uint_eq(pressure_cgroup_limit(root), 0);
    put("/sys/fs/cgroup/a.slice/memory.max", "2147483648\n");
    ck_assert_uint_eq(pressure_cgroup_limit(root), 2147483648u); // of a group above
    put("/sys/fs/cgroup/a.slice/b.service/memory.max", "1073741824\n");
    ck_assert_uint_eq(pressure_cgroup_limit(root), 1073741824u);
    put("/sys/fs/cgroup/memory.max", "536870912\n"); // a container's own mount
    ck_assert_uint_eq(pressure_cgroup_limit(root), 536870912u);
    drop_root();
    new_root();
    put("/proc/self/cgroup", "0::/\n");
    put("/sys/fs/cgroup/memory.max", "12345678\n");
    ck_assert_uint_eq(pressure_cgroup_limit(root), 12345678u);
    drop_root();
}
END_TEST

START_TEST(control_groups_of_version_1)
{
    new_root();
    put("/proc/self/cgroup", "12:pids:/x\n7:cpu,memory:/docker/abc\n1:name=systemd:/x\n0::/\n");
    put("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"); // none
    ck_assert_uint_eq(pressure_cgroup_limit(root), 0);
    put("/sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes", "268435456\n");
    ck_assert_uint_eq(pressure_cgroup_limit(root), 268435456u);
    drop_root();
}
END_TEST

START_TEST(the_cap)
{
    ck_assert_uint_eq(pressure_cap(12345), 12345);
    ck_assert_uint_gt(pressure_cap(0), 16 * MIB); // of this machine
}
END_TEST

int main(void)
{
    log_set_level(LOG_ERROR + 1); // the changes are told as errors
    Suite *suite = suite_create("pressure");
    TCase *tcase = tcase_create("pressure");
    tcase_set_timeout(tcase, 60);
    tcase_add_test(tcase, levels_with_hysteresis);
    tcase_add_test(tcase, free_pages_are_given_back_first);
    tcase_add_test(tcase, what_a_crowd_left_is_given_back_below_the_cap);
    tcase_add_test(tcase, without_a_cap_it_is_never_high);
    tcase_add_test(tcase, the_thread_samples);
    tcase_add_test(tcase, control_groups_of_version_2);
    tcase_add_test(tcase, control_groups_of_version_1);
    tcase_add_test(tcase, the_cap);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_set_fork_status(runner, CK_NOFORK);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
