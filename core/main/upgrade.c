#include "main/upgrade.h"

#include "base/clock.h"
#include "base/log.h"
#include "main/notify.h"
#include "main/worker.h"

#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHANNEL_FD 3 // in the successor
#define END_GRACE_MS 1000
#define GIVEN "given "

struct upgrade_caller {
    struct loop_message message;
    struct process *process;
    struct loop *loop;
    upgrade_done_cb done;
    void *arg;
    int err;
    char text[HANDOVER_TEXT];
};

extern char **environ;

// How this process was started: a successor is started the same way.
static struct {
    char binary[PATH_MAX];
    char **argv, **environment;
} started;

// ---- how it was started

static bool is_program(const char *path)
{
    return access(path, X_OK) == 0;
}

// The name it was called by, made absolute but with its links as they are: a link that is switched
// to a new release leads to that one. /proc/self/exe would lead to this one for ever.
static void find_binary(const char *name)
{
    char cwd[PATH_MAX / 2];
    const char *path = getenv("PATH");
    if (name[0] == '/') {
        snprintf(started.binary, sizeof started.binary, "%s", name);
    } else if (strchr(name, '/') && getcwd(cwd, sizeof cwd)) {
        snprintf(started.binary, sizeof started.binary, "%.2000s/%.2000s", cwd, name);
    } else {
        while (path && *path) {
            size_t len = strcspn(path, ":");
            snprintf(started.binary, sizeof started.binary, "%.*s/%.2000s",
                     (int)(len > 2000 ? 2000 : len), path, name);
            if (started.binary[0] == '/' && is_program(started.binary))
                return;
            path += len + (path[len] == ':');
        }
        started.binary[0] = '\0';
    }
    if (started.binary[0] && is_program(started.binary))
        return;
    ssize_t len = readlink("/proc/self/exe", started.binary, sizeof started.binary - 1);
    started.binary[len > 0 ? len : 0] = '\0';
}

void upgrade_remember(int argc, char **argv)
{
    size_t count = 0;
    (void)argc;
    while (environ && environ[count])
        count++;
    // The texts stay where they are: what is set later gets memory of its own.
    started.argv = argv;
    started.environment = calloc(count + 2, sizeof *started.environment);
    find_binary(argv[0]);
    size_t kept = 0;
    for (size_t i = 0; started.environment && i < count; i++) {
        static const char *const OWN[] = {HANDOVER_ENV "=",
                                          "LISTEN_PID=", "LISTEN_FDS=", "LISTEN_FDNAMES="};
        bool is_own = false;
        for (size_t k = 0; k < sizeof OWN / sizeof *OWN; k++)
            is_own = is_own || strncmp(environ[i], OWN[k], strlen(OWN[k])) == 0;
        if (!is_own)
            started.environment[kept++] = environ[i];
    }
}

// ---- the successor's side

int upgrade_begin(struct process *process, char *error, size_t error_size)
{
    struct upgrade *upgrade = &process->upgrade;
    pthread_mutex_init(&upgrade->lock, NULL);
    upgrade->channel = -1;
    upgrade->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    int channel = handover_inherited();
    if (channel < 0)
        return GW_OK;
    upgrade->predecessors[0].channel = channel;
    upgrade->predecessor_count = 1;
    int err =
        handover_receive(channel, &process->handed, &process->handed_count, error, error_size);
    for (size_t i = 0; i < process->handed_count; i++) {
        struct handover_item *item = &process->handed[i];
        if (item->kind == HANDOVER_CONTROL && strncmp(item->name, GIVEN, strlen(GIVEN)) == 0) {
            item->is_given = true;
            memmove(item->name, item->name + strlen(GIVEN), strlen(item->name + strlen(GIVEN)) + 1);
        }
        if (item->kind != HANDOVER_PREDECESSOR)
            continue;
        int64_t owner = strtoll(item->name, NULL, 10);
        if (item->fd >= 0 && upgrade->predecessor_count < UPGRADE_PREDECESSORS) {
            upgrade->predecessors[upgrade->predecessor_count].channel = item->fd;
            upgrade->predecessors[upgrade->predecessor_count++].owner = owner;
            item->fd = -1;
        }
    }
    return err;
}

int upgrade_take_lock(struct process *process)
{
    int fd = -1;
    for (size_t i = 0; i < process->handed_count; i++) {
        struct handover_item *item = &process->handed[i];
        if (item->kind != HANDOVER_LOCK)
            continue;
        // Its name is the number of the owner that hands it over.
        process->upgrade.predecessors[0].owner = strtoll(item->name, NULL, 10);
        fd = item->fd;
        item->fd = -1;
    }
    return fd;
}

static void drop_handed(struct process *process)
{
    for (size_t i = 0; i < process->handed_count; i++) {
        if (process->handed[i].fd >= 0)
            close(process->handed[i].fd);
    }
    free(process->handed);
    process->handed = NULL;
    process->handed_count = 0;
}

void upgrade_tell_ready(struct process *process)
{
    struct upgrade *upgrade = &process->upgrade;
    char text[HANDOVER_ITEMS + 16] = "ready ";
    size_t len = strlen(text);
    if (upgrade->predecessor_count == 0)
        return;
    for (size_t i = 0; i < process->handed_count; i++)
        text[len++] = process->handed[i].is_used ? '1' : '0';
    text[len] = '\0';
    // A predecessor that died meanwhile is noticed by its end of the channel.
    (void)!handover_tell(upgrade->predecessors[0].channel, text);
    for (size_t i = 0; i < process->socket_count; i++)
        process->sockets[i].is_ours = true;
    drop_handed(process);
}

void upgrade_tell_failure(struct process *process, const char *error)
{
    char text[HANDOVER_TEXT];
    if (process->upgrade.predecessor_count == 0)
        return;
    snprintf(text, sizeof text, "failed %.8000s", error);
    (void)!handover_tell(process->upgrade.predecessors[0].channel, text);
}

static void close_predecessor(struct process *process, size_t i)
{
    struct upgrade *upgrade = &process->upgrade;
    close(upgrade->predecessors[i].channel);
    upgrade->predecessors[i] = upgrade->predecessors[--upgrade->predecessor_count];
}

static bool has_others(const struct process *process)
{
    return process->upgrade.predecessor_count > 0 || process->upgrade.pid > 0;
}

static void look_at_predecessors(struct process *process)
{
    struct upgrade *upgrade = &process->upgrade;
    size_t before = upgrade->predecessor_count;
    for (size_t i = upgrade->predecessor_count; i-- > 0;) {
        char text[64];
        if (handover_read(upgrade->predecessors[i].channel, text, sizeof text) != GW_ERESET)
            continue;
        int64_t owner = upgrade->predecessors[i].owner;
        close_predecessor(process, i);
        store_owner_ended(process->store, owner);
        log_event(LOG_INFO, "predecessor_ended", LOG_INT("owner_epoch", owner),
                  LOG_INT("left", upgrade->predecessor_count));
    }
    if (before > 0 && !has_others(process))
        store_set_shared(process->store, false);
}

// ---- the running process's side

static void on_delivered(struct loop_message *message)
{
    struct upgrade_caller *caller =
        (struct upgrade_caller *)((char *)message - offsetof(struct upgrade_caller, message));
    struct worker *worker = process_worker_of(caller->process, caller->loop);
    if (worker)
        worker->reloads--;
    caller->done(caller->arg, caller->err, slice_str(caller->text));
    free(caller);
}

static void answer(struct upgrade_caller *caller, int err, const char *text)
{
    if (!caller)
        return;
    caller->err = err;
    snprintf(caller->text, sizeof caller->text, "%s", text);
    caller->message.deliver = on_delivered;
    loop_post(caller->loop, &caller->message);
}

int upgrade_ask(struct flow_shared *shared, struct loop *loop, upgrade_done_cb done, void *arg)
{
    struct process *process = shared->main;
    struct upgrade *upgrade = &process->upgrade;
    struct upgrade_caller *caller = calloc(1, sizeof *caller);
    if (!caller)
        return GW_ENOMEM;
    *caller = (struct upgrade_caller){.process = process, .loop = loop, .done = done, .arg = arg};
    pthread_mutex_lock(&upgrade->lock);
    bool is_busy = upgrade->is_busy;
    if (!is_busy) {
        upgrade->is_busy = true;
        upgrade->asked = caller;
    }
    pthread_mutex_unlock(&upgrade->lock);
    if (is_busy) {
        free(caller);
        return GW_EBUSY;
    }
    struct worker *worker = process_worker_of(process, loop);
    if (worker)
        worker->reloads++;
    uint64_t one = 1;
    (void)!write(upgrade->wake_fd, &one, sizeof one);
    return GW_OK;
}

static void set_busy(struct process *process, bool is_busy)
{
    pthread_mutex_lock(&process->upgrade.lock);
    process->upgrade.is_busy = is_busy;
    pthread_mutex_unlock(&process->upgrade.lock);
}

// It gets a moment to end by itself.
static void end_child(pid_t pid, uint32_t grace_ms)
{
    for (uint32_t ms = 0; ms <= grace_ms; ms += 10) {
        if (waitpid(pid, NULL, WNOHANG) != 0)
            return;
        if (ms < grace_ms)
            (void)poll(NULL, 0, 10);
    }
    (void)kill(pid, SIGKILL);
    (void)waitpid(pid, NULL, 0);
}

// The successor is not, or no more: this process goes on as if nothing had been.
static void give_up(struct process *process, int err, const char *text, bool is_final)
{
    struct upgrade *upgrade = &process->upgrade;
    struct upgrade_caller *caller = upgrade->caller;
    if (upgrade->pid > 0)
        end_child(upgrade->pid, err == GW_EINVAL || err == GW_ERESET ? END_GRACE_MS : 0);
    if (upgrade->channel >= 0)
        close(upgrade->channel);
    upgrade->pid = 0;
    upgrade->channel = -1;
    upgrade->caller = NULL;
    log_event(LOG_ERROR, "upgrade_failed", LOG_STR("reason", text));
    if (upgrade->predecessor_count == 0)
        store_set_shared(process->store, false);
    if (!is_final) {
        notify_ready();
        set_busy(process, false);
    }
    answer(caller, err, text);
}

static int spawn(struct process *process, int channel, char *error, size_t size)
{
    posix_spawn_file_actions_t actions;
    char number[] = HANDOVER_ENV "=" /* CHANNEL_FD */ "3";
    size_t count = 0;
    if (!started.environment || !started.binary[0]) {
        snprintf(error, size, "it is not known how this process was started");
        return GW_EINTERNAL;
    }
    while (started.environment[count])
        count++;
    started.environment[count] = number; // calloc left room
    int code = posix_spawn_file_actions_init(&actions);
    if (code == 0)
        code = posix_spawn_file_actions_adddup2(&actions, channel, CHANNEL_FD);
    if (code == 0)
        code = posix_spawn_file_actions_addclosefrom_np(&actions, CHANNEL_FD + 1);
    // Signals stay blocked across the start: those that come early wait for process_wait.
    if (code == 0)
        code = posix_spawn(&process->upgrade.pid, started.binary, &actions, NULL, started.argv,
                           started.environment);
    posix_spawn_file_actions_destroy(&actions);
    started.environment[count] = NULL;
    if (code == 0)
        return GW_OK;
    process->upgrade.pid = 0;
    snprintf(error, size, "%s cannot be started: %s", started.binary, strerror(code));
    return GW_EIO;
}

static int hand_items(struct process *process)
{
    struct upgrade *upgrade = &process->upgrade;
    size_t count = 0;
    struct handover_item *items =
        calloc(process->socket_count + upgrade->predecessor_count + 1, sizeof *items);
    if (!items)
        return GW_ENOMEM;
    for (size_t i = 0; i < process->socket_count; i++, count++) { // first: see take_ready
        items[count].kind = process->sockets[i].kind;
        items[count].fd = process->sockets[i].fd;
        snprintf(items[count].name, HANDOVER_NAME, "%s%.500s",
                 process->sockets[i].is_given && items[count].kind == HANDOVER_CONTROL ? GIVEN : "",
                 process->sockets[i].name);
    }
    items[count].kind = HANDOVER_LOCK;
    items[count].fd = store_lock_fd(process->store);
    snprintf(items[count++].name, HANDOVER_NAME, "%lld",
             (long long)store_owner_epoch(process->store));
    for (size_t i = 0; i < upgrade->predecessor_count; i++, count++) {
        items[count].kind = HANDOVER_PREDECESSOR;
        items[count].fd = upgrade->predecessors[i].channel;
        snprintf(items[count].name, HANDOVER_NAME, "%lld",
                 (long long)upgrade->predecessors[i].owner);
    }
    int err = count > HANDOVER_ITEMS ? GW_EFULL : handover_send(upgrade->channel, items, count);
    free(items);
    return err;
}

static void start(struct process *process)
{
    struct upgrade *upgrade = &process->upgrade;
    char error[PATH_MAX + 256] = "";
    int others = -1;
    if (upgrade->predecessor_count >= UPGRADE_PREDECESSORS - 1) {
        give_up(process, GW_EFULL, "too many processes still drain", false);
        return;
    }
    notify_reloading();
    log_event(LOG_INFO, "upgrade_started", LOG_STR("binary", started.binary));
    // From now on: the successor may write before this process knows that it is ready.
    store_set_shared(process->store, true);
    int err = handover_pair(&upgrade->channel, &others);
    if (!err)
        err = spawn(process, others, error, sizeof error);
    if (others >= 0)
        close(others);
    if (!err)
        err = hand_items(process);
    upgrade->deadline_ms = clock_boot_ms() + (uint64_t)process->conf->upgrade_timeout_ms;
    if (err == GW_ERESET) // it has ended already; it may have said why
        return;
    if (err)
        give_up(process, err, error[0] ? error : gw_err_name(err), false);
}

void upgrade_by_signal(struct process *process)
{
    pthread_mutex_lock(&process->upgrade.lock);
    bool is_busy = process->upgrade.is_busy;
    process->upgrade.is_busy = true;
    pthread_mutex_unlock(&process->upgrade.lock);
    if (is_busy)
        log_event(LOG_WARN, "upgrade_refused",
                  LOG_STR("reason", "one is under way, or this process drains"));
    else
        start(process);
}

// "ready 1101": the successor listens. Only now this process stops to.
static void take_ready(struct process *process, const char *used)
{
    struct upgrade *upgrade = &process->upgrade;
    struct upgrade_caller *caller = upgrade->caller;
    char text[32];
    for (size_t i = 0; i < process->socket_count && i < strlen(used); i++)
        process->sockets[i].is_handed = used[i] == '1';
    upgrade->is_handed_over = true;
    upgrade->caller = NULL;
    store_hand_over(process->store);
    log_event(LOG_INFO, "handed_over", LOG_INT("pid", upgrade->pid),
              LOG_INT("exchanges", process->shared.exchanges));
    // First the drain, then the answer: whoever reads it finds the successor behind the sockets.
    process_hand_over(process);
    notify_successor(upgrade->pid);
    snprintf(text, sizeof text, "%ld", (long)upgrade->pid);
    answer(caller, GW_OK, text);
}

static void look_at_successor(struct process *process)
{
    struct upgrade *upgrade = &process->upgrade;
    char text[HANDOVER_TEXT];
    if (upgrade->channel < 0)
        return;
    int err = handover_read(upgrade->channel, text, sizeof text);
    if (upgrade->is_handed_over) {
        if (err != GW_ERESET)
            return;
        // It died while this process drains: nothing listens any more, a supervisor must start one.
        log_event(LOG_ERROR, "successor_ended", LOG_INT("pid", upgrade->pid));
        end_child(upgrade->pid, END_GRACE_MS);
        close(upgrade->channel);
        upgrade->channel = -1;
        return;
    }
    if (!err && strncmp(text, "ready ", 6) == 0)
        take_ready(process, text + 6);
    else if (!err && strncmp(text, "failed ", 7) == 0)
        give_up(process, GW_EINVAL, text + 7, false);
    else if (err == GW_ERESET)
        give_up(process, GW_ERESET, "the new process ended before it was ready; see the log",
                false);
    else if (clock_boot_ms() >= upgrade->deadline_ms)
        give_up(process, GW_ETIMEOUT, "the new process was not ready in time", false);
}

void upgrade_refuse(struct process *process)
{
    struct upgrade *upgrade = &process->upgrade;
    pthread_mutex_lock(&upgrade->lock);
    upgrade->is_busy = true;
    struct upgrade_caller *asked = upgrade->asked;
    upgrade->asked = NULL;
    pthread_mutex_unlock(&upgrade->lock);
    answer(asked, GW_ECANCELLED, "the gateway stops");
    if (upgrade->channel >= 0 && !upgrade->is_handed_over)
        give_up(process, GW_ECANCELLED, "the gateway stops", true);
}

size_t upgrade_polls(struct process *process, struct pollfd *fds, int *timeout_ms)
{
    struct upgrade *upgrade = &process->upgrade;
    size_t count = 0;
    fds[count++] = (struct pollfd){.fd = upgrade->wake_fd, .events = POLLIN};
    if (upgrade->channel >= 0)
        fds[count++] = (struct pollfd){.fd = upgrade->channel, .events = POLLIN};
    for (size_t i = 0; i < upgrade->predecessor_count; i++)
        fds[count++] = (struct pollfd){.fd = upgrade->predecessors[i].channel, .events = POLLIN};
    if (upgrade->channel >= 0 && !upgrade->is_handed_over) {
        uint64_t now_ms = clock_boot_ms();
        uint64_t left = upgrade->deadline_ms > now_ms ? upgrade->deadline_ms - now_ms : 0;
        if (*timeout_ms < 0 || left < (uint64_t)*timeout_ms)
            *timeout_ms = (int)left;
    }
    return count;
}

void upgrade_look(struct process *process)
{
    struct upgrade *upgrade = &process->upgrade;
    uint64_t count;
    (void)!read(upgrade->wake_fd, &count, sizeof count);
    look_at_successor(process);
    look_at_predecessors(process);
    pthread_mutex_lock(&upgrade->lock);
    struct upgrade_caller *asked = upgrade->asked;
    upgrade->asked = NULL;
    pthread_mutex_unlock(&upgrade->lock);
    if (asked) {
        upgrade->caller = asked;
        start(process);
    }
}

void upgrade_end(struct process *process)
{
    struct upgrade *upgrade = &process->upgrade;
    drop_handed(process);
    if (upgrade->channel >= 0)
        close(upgrade->channel);
    while (upgrade->predecessor_count > 0)
        close_predecessor(process, upgrade->predecessor_count - 1);
    if (upgrade->wake_fd >= 0)
        close(upgrade->wake_fd);
    pthread_mutex_destroy(&upgrade->lock);
}
