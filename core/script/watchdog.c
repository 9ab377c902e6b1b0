// The watchdog's thread, its slots and the signal that makes a worker look at its budget.
#include "script/watchdog.h"
#include "base/log.h"
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define LOOK_MS 20
#define MAX_SLOTS 1024 // five generations of each worker, with room to spare
#define MAX_NAMES 4096

static pthread_mutex_t life = PTHREAD_MUTEX_INITIALIZER; // of the thread: start and stop
static struct {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    pthread_t thread;
    unsigned users;
    bool is_ending;
    struct watchdog_options options;
    struct watchdog_slot *slots[MAX_SLOTS]; // made when first taken, kept for ever
    size_t count;
    char *names[MAX_NAMES];
    size_t name_count;
    void (*end)(const char *message);
    void (*urge)(void);
} g = {.mutex = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

// ---- looking

// Not clock.h's: tests that set the clock do not move this one, nor does a suspended machine.
static uint64_t monotonic_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static uint64_t cpu_of(pthread_t thread)
{
    clockid_t clock;
    struct timespec now;
    if (pthread_getcpuclockid(thread, &clock) != 0 || clock_gettime(clock, &now) != 0)
        return 0;
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

struct finding { // said after the mutex was given back: the log may wait
    const char *plugin, *what;
    uint64_t ms;
    bool is_end;
};

// Looks at one slot; true when there is something to say.
static bool look_at(struct watchdog_slot *slot, uint64_t passed_ns, struct finding *finding)
{
    uint64_t entry = atomic_load_explicit(&slot->entry, memory_order_acquire);
    if (entry % 2 == 0) {
        slot->seen = entry;
        return false;
    }
    if (entry != slot->seen) {
        slot->seen = entry;
        slot->stuck_ns = 0;
        slot->cpu_ns = cpu_of(slot->thread);
        slot->is_named = false;
        return false;
    }
    slot->stuck_ns += passed_ns;
    if (slot->budget_ms &&
        cpu_of(slot->thread) - slot->cpu_ns >= (uint64_t)slot->budget_ms * 1000000u) {
        atomic_store_explicit(&slot->urged, entry, memory_order_relaxed);
        pthread_kill(slot->thread, SIGURG);
    }
    struct watchdog_work work = watchdog_work_of(slot);
    *finding = (struct finding){.plugin = work.plugin ? work.plugin : "",
                                .what = work.what ? work.what : "",
                                .ms = slot->stuck_ns / 1000000u};
    finding->is_end = g.options.stuck_ms > 0 && finding->ms >= (uint64_t)g.options.stuck_ms;
    bool is_slow =
        g.options.slow_ms > 0 && finding->ms >= (uint64_t)g.options.slow_ms && !slot->is_named;
    slot->is_named = slot->is_named || is_slow;
    return is_slow || finding->is_end;
}

static void end_process(const char *message)
{
    size_t len = strlen(message);
    while (len > 0) {
        ssize_t written = write(STDERR_FILENO, message, len);
        if (written < 0 && errno != EINTR)
            break;
        if (written > 0) {
            message += written;
            len -= (size_t)written;
        }
    }
    abort();
}

static void say(const struct finding *finding, void (*end)(const char *message))
{
    if (!finding->is_end) {
        log_event(LOG_WARN, "plugin_stuck", LOG_STR("plugin", finding->plugin),
                  LOG_STR("in", finding->what), LOG_INT("ms", finding->ms));
        return;
    }
    char message[300];
    snprintf(message, sizeof message,
             "moongate: the plugin \"%s\" has been stuck in %s for %llu ms and cannot be ended "
             "alone; the process ends (lua.stuck_ms)\n",
             finding->plugin, *finding->what ? finding->what : "?",
             (unsigned long long)finding->ms);
    log_event(LOG_ERROR, "plugin_stuck_end", LOG_STR("plugin", finding->plugin),
              LOG_STR("in", finding->what), LOG_INT("ms", finding->ms));
    if (!end)
        log_stop(); // at most a second
    (end ? end : end_process)(message);
}

static void *watch(void *arg)
{
    (void)arg;
    pthread_setname_np(pthread_self(), "watchdog");
    uint64_t last = monotonic_ns();
    pthread_mutex_lock(&g.mutex);
    while (!g.is_ending) {
        struct timespec until;
        clock_gettime(CLOCK_MONOTONIC, &until); // a wall clock set back would stop it for so long
        until.tv_nsec += LOOK_MS * 1000000;
        if (until.tv_nsec >= 1000000000) {
            until.tv_nsec -= 1000000000;
            until.tv_sec++;
        }
        pthread_cond_clockwait(&g.changed, &g.mutex, CLOCK_MONOTONIC, &until);
        uint64_t now = monotonic_ns(), passed = now - last;
        last = now;
        if (passed > 5 * LOOK_MS * 1000000u) // we did not run, so maybe nobody did
            passed = 5 * LOOK_MS * 1000000u;
        for (size_t i = 0; i < g.count && !g.is_ending; i++) {
            struct finding finding;
            if (!g.slots[i]->is_taken || !look_at(g.slots[i], passed, &finding))
                continue;
            void (*end)(const char *) = g.end;
            pthread_mutex_unlock(&g.mutex);
            say(&finding, end);
            pthread_mutex_lock(&g.mutex);
        }
    }
    pthread_mutex_unlock(&g.mutex);
    return NULL;
}

// ---- the signal

static void on_urge(int number)
{
    int saved = errno;
    (void)number;
    if (g.urge)
        g.urge();
    errno = saved;
}

static void allow_urge(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGURG);
    pthread_sigmask(SIG_UNBLOCK, &set, NULL);
}

// ---- public

int watchdog_start(const struct watchdog_options *options)
{
    int err = 0;
    pthread_mutex_lock(&life);
    pthread_mutex_lock(&g.mutex);
    g.options = *options;
    if (g.users == 0) {
        struct sigaction action = {.sa_handler = on_urge, .sa_flags = SA_RESTART};
        sigemptyset(&action.sa_mask);
        (void)sigaction(SIGURG, &action, NULL);
        sigset_t all, before;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        g.is_ending = false;
        if (pthread_create(&g.thread, NULL, watch, NULL) != 0)
            err = GW_ENOMEM;
        pthread_sigmask(SIG_SETMASK, &before, NULL);
    }
    g.users += err == 0;
    pthread_mutex_unlock(&g.mutex);
    pthread_mutex_unlock(&life);
    return err;
}

void watchdog_stop(void)
{
    pthread_mutex_lock(&life);
    pthread_mutex_lock(&g.mutex);
    bool is_last = g.users > 0 && --g.users == 0;
    pthread_t thread = g.thread;
    g.is_ending = g.is_ending || is_last;
    pthread_cond_broadcast(&g.changed);
    pthread_mutex_unlock(&g.mutex);
    if (is_last)
        pthread_join(thread, NULL);
    pthread_mutex_unlock(&life);
}

struct watchdog_slot *watchdog_slot_take(uint32_t budget_ms)
{
    struct watchdog_slot *slot = NULL;
    pthread_mutex_lock(&g.mutex);
    for (size_t i = 0; i < g.count && !slot; i++)
        if (!g.slots[i]->is_taken)
            slot = g.slots[i];
    if (!slot && g.count < MAX_SLOTS && (slot = calloc(1, sizeof *slot)))
        g.slots[g.count++] = slot;
    if (slot) {
        watchdog_set_work(slot, (struct watchdog_work){NULL, NULL});
        slot->thread = pthread_self();
        slot->budget_ms = budget_ms;
        slot->is_taken = true;
    }
    pthread_mutex_unlock(&g.mutex);
    if (slot)
        allow_urge();
    return slot;
}

void watchdog_slot_drop(struct watchdog_slot *slot)
{
    if (!slot)
        return;
    pthread_mutex_lock(&g.mutex);
    slot->is_taken = false;
    pthread_mutex_unlock(&g.mutex);
}

const char *watchdog_name(const char *plugin)
{
    const char *found = NULL;
    pthread_mutex_lock(&g.mutex);
    for (size_t i = 0; i < g.name_count && !found; i++)
        if (strcmp(g.names[i], plugin) == 0)
            found = g.names[i];
    if (!found && g.name_count < MAX_NAMES && (g.names[g.name_count] = strdup(plugin)))
        found = g.names[g.name_count++];
    pthread_mutex_unlock(&g.mutex);
    return found;
}

void watchdog_set_end(void (*end)(const char *message))
{
    pthread_mutex_lock(&g.mutex);
    g.end = end;
    pthread_mutex_unlock(&g.mutex);
}

void watchdog_set_urge(void (*urge)(void))
{
    g.urge = urge;
}
