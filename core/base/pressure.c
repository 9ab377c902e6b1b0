// The sampler of the resident size, see pressure.h.
#include "base/pressure.h"

#include "base/log.h"

#include <errno.h>
#include <malloc.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define HIGH_PERCENT 95u
#define OVER_PERCENT 90u
#define PHYSICAL_PERCENT 80u
// While it is high, free heap pages are handed back this often: they count as resident, and without
// that the size would never fall again.
#define SAMPLES_PER_GIVE_BACK 8u
// Below the cap, too, but seldom: the workers' allocations wait meanwhile. What a crowd has left
// stays resident when it is gone, so the size does not tell when that happened.
#define SAMPLES_BETWEEN_TRIMS 240u
#define TRIM_ABOVE_BYTES (INT64_C(16) << 20)
#define NO_LIMIT (UINT64_C(1) << 60) // what version 1 writes for "none" is larger

struct pressure {
    struct pressure_source source;
    uint64_t cap_bytes;
    _Atomic bool is_high;
    _Atomic uint64_t resident_bytes, changes;
    uint32_t samples_high, samples_since_trim; // the sampler's
    int64_t lowest_bytes;                      // ever resident; 0: not known yet
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool is_running, is_ending; // under lock
};

static int64_t read_statm(void *user)
{
    (void)user;
    unsigned long long size = 0, resident = 0;
    FILE *file = fopen("/proc/self/statm", "re");
    if (!file)
        return -1;
    int count = fscanf(file, "%llu %llu", &size, &resident);
    fclose(file);
    return count == 2 ? (int64_t)resident * sysconf(_SC_PAGESIZE) : -1;
}

static void trim_heap(void *user)
{
    (void)user;
    malloc_trim(0);
}

static void publish(struct pressure *pressure, bool is_high, uint64_t resident)
{
    atomic_store_explicit(&pressure->is_high, is_high, memory_order_relaxed);
    if (is_high)
        atomic_fetch_add_explicit(&pressure->changes, 1, memory_order_relaxed);
    log_event(is_high ? LOG_ERROR : LOG_WARN, is_high ? "memory_pressure" : "memory_pressure_over",
              LOG_INT("resident_bytes", resident), LOG_INT("cap_bytes", pressure->cap_bytes),
              LOG_STR("hint", is_high ? "new calls are refused; see limits.memory_bytes"
                                      : "calls are taken again"));
}

static bool is_above(const struct pressure *pressure, uint64_t resident, unsigned percent)
{
    // The cap is below 2^57, so this cannot overflow; >= so that a cap of nothing is always full.
    return resident * 100u >= pressure->cap_bytes * percent;
}

void pressure_sample(struct pressure *pressure)
{
    int64_t got = pressure->source.resident_bytes(pressure->source.user);
    if (got < 0)
        return;
    bool was_high = atomic_load_explicit(&pressure->is_high, memory_order_relaxed);
    if (pressure->lowest_bytes == 0 || got < pressure->lowest_bytes)
        pressure->lowest_bytes = got;
    bool is_due = ++pressure->samples_since_trim >= SAMPLES_BETWEEN_TRIMS &&
                  got > pressure->lowest_bytes + TRIM_ABOVE_BYTES;
    bool gives_back = was_high ? pressure->samples_high++ % SAMPLES_PER_GIVE_BACK == 0
                               : is_due || is_above(pressure, (uint64_t)got, HIGH_PERCENT);
    if (gives_back && pressure->source.give_back) {
        // Perhaps much of it is free already.
        pressure->source.give_back(pressure->source.user);
        int64_t again = pressure->source.resident_bytes(pressure->source.user);
        got = again < 0 ? got : again;
        pressure->samples_since_trim = 0;
    }
    uint64_t resident = (uint64_t)got;
    atomic_store_explicit(&pressure->resident_bytes, resident, memory_order_relaxed);
    bool is_high = is_above(pressure, resident, was_high ? OVER_PERCENT : HIGH_PERCENT);
    if (is_high == was_high)
        return;
    pressure->samples_high = 0;
    publish(pressure, is_high, resident);
}

static void *run(void *arg)
{
    struct pressure *pressure = arg;
    pthread_setname_np(pthread_self(), "pressure");
    pthread_mutex_lock(&pressure->lock);
    while (!pressure->is_ending) {
        struct timespec until;
        clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_nsec += PRESSURE_SAMPLE_MS * 1000000L;
        until.tv_sec += until.tv_nsec / 1000000000L;
        until.tv_nsec %= 1000000000L;
        if (pthread_cond_timedwait(&pressure->changed, &pressure->lock, &until) != ETIMEDOUT)
            continue;
        pthread_mutex_unlock(&pressure->lock);
        pressure_sample(pressure);
        pthread_mutex_lock(&pressure->lock);
    }
    pthread_mutex_unlock(&pressure->lock);
    return NULL;
}

int pressure_new(uint64_t cap_bytes, const struct pressure_source *source, struct pressure **out)
{
    static const struct pressure_source SYSTEM = {read_statm, trim_heap, NULL};
    struct pressure *pressure = calloc(1, sizeof *pressure);
    if (!pressure)
        return GW_ENOMEM;
    pressure->source = source ? *source : SYSTEM;
    pressure->cap_bytes =
        cap_bytes && cap_bytes < UINT64_C(1) << 57 ? cap_bytes : UINT64_C(1) << 57;
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_mutex_init(&pressure->lock, NULL);
    pthread_cond_init(&pressure->changed, &attributes);
    pthread_condattr_destroy(&attributes);
    pressure_sample(pressure);
    *out = pressure;
    return GW_OK;
}

int pressure_start(struct pressure *pressure)
{
    if (pthread_create(&pressure->thread, NULL, run, pressure) != 0)
        return GW_ENOMEM;
    pressure->is_running = true;
    return GW_OK;
}

void pressure_free(struct pressure *pressure)
{
    if (!pressure)
        return;
    if (pressure->is_running) {
        pthread_mutex_lock(&pressure->lock);
        pressure->is_ending = true;
        pthread_cond_signal(&pressure->changed);
        pthread_mutex_unlock(&pressure->lock);
        pthread_join(pressure->thread, NULL);
    }
    pthread_cond_destroy(&pressure->changed);
    pthread_mutex_destroy(&pressure->lock);
    free(pressure);
}

bool pressure_is_high(const struct pressure *pressure)
{
    return pressure && atomic_load_explicit(&pressure->is_high, memory_order_relaxed);
}

void pressure_read(const struct pressure *pressure, struct pressure_view *view)
{
    *view = (struct pressure_view){0};
    if (!pressure)
        return;
    view->resident_bytes = atomic_load_explicit(&pressure->resident_bytes, memory_order_relaxed);
    view->cap_bytes = pressure->cap_bytes;
    view->changes = atomic_load_explicit(&pressure->changes, memory_order_relaxed);
    view->is_high = pressure_is_high(pressure);
}

// ---- the cap

// The number in a file of one line; 0: no such file, "max", or none that limits anything.
static uint64_t read_limit(const char *path)
{
    unsigned long long value = 0;
    FILE *file = fopen(path, "re");
    if (!file)
        return 0;
    int count = fscanf(file, "%llu", &value);
    fclose(file);
    return count == 1 && value < NO_LIMIT ? value : 0;
}

// The least limit of a group and all above it: each of them counts.
static uint64_t least_limit(const char *mount, const char *group, const char *file)
{
    char dir[1024], path[1200];
    uint64_t least = 0;
    snprintf(dir, sizeof dir, "%s", group);
    for (;;) {
        snprintf(path, sizeof path, "%s%s/%s", mount, strcmp(dir, "/") == 0 ? "" : dir, file);
        uint64_t limit = read_limit(path);
        if (limit && (!least || limit < least))
            least = limit;
        char *slash = strrchr(dir, '/');
        if (!slash)
            return least;
        *slash = '\0';
    }
}

uint64_t pressure_cgroup_limit(const char *root)
{
    char path[1024], line[1024], mount[1024];
    uint64_t least = 0;
    snprintf(path, sizeof path, "%s/proc/self/cgroup", root);
    FILE *file = fopen(path, "re");
    if (!file)
        return 0;
    while (fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = '\0';
        // "0::/group" for version 2, "7:cpu,memory:/group" for version 1
        char *names = strchr(line, ':'), *group = names ? strchr(names + 1, ':') : NULL;
        if (!group)
            continue;
        *group++ = '\0';
        names++;
        uint64_t limit = 0;
        bool is_first = strncmp(names, "memory", 6) == 0 || strstr(names, ",memory");
        if (*names == '\0') {
            snprintf(mount, sizeof mount, "%s/sys/fs/cgroup", root);
            limit = least_limit(mount, group, "memory.max");
        } else if (is_first) {
            snprintf(mount, sizeof mount, "%s/sys/fs/cgroup/memory", root);
            limit = least_limit(mount, group, "memory.limit_in_bytes");
        }
        if (limit && (!least || limit < least))
            least = limit;
    }
    fclose(file);
    return least;
}

uint64_t pressure_cap(uint64_t configured)
{
    if (configured)
        return configured;
    long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
    uint64_t physical = pages > 0 && page > 0 ? (uint64_t)pages * (uint64_t)page : 0;
    uint64_t group = pressure_cgroup_limit("");
    if (group && (!physical || group < physical))
        return group;
    return physical / 100u * PHYSICAL_PERCENT;
}
