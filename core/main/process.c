#include "main/process.h"

#include "base/clock.h"
#include "base/log.h"
#include "flow/overload.h"
#include "main/certificates.h"
#include "main/notify.h"
#include "main/worker.h"
#include "script/confload.h"

#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <unistd.h>

#define KV_BYTES (64u << 20)
#define HELPER_THREADS 2
#define SIGNAL_LOOK_MS 50

static int fail(char *error, size_t size, int err, const char *what)
{
    if (!error[0])
        snprintf(error, size, "%s: %s", what, gw_err_name(err));
    return err;
}

// As many descriptors as the machine allows.
static void raise_limits(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        limit.rlim_cur = limit.rlim_max;
        (void)setrlimit(RLIMIT_NOFILE, &limit);
    }
    struct rlimit none = {0, 0}; // secrets do not belong in core files
    (void)setrlimit(RLIMIT_CORE, &none);
}

static uint64_t count_descriptors(void)
{
    uint64_t count = 0;
    DIR *dir = opendir("/proc/self/fd");
    while (dir && readdir(dir))
        count++;
    if (dir)
        closedir(dir);
    return count;
}

// How many connections clients may have: a limit below what the configuration wants is told, not
// hidden (PROMISES §0). After the files and sockets are open, before the workers start.
static void share_descriptors(struct process *process)
{
    const struct conf *conf = process->conf;
    struct rlimit limit = {RLIM_INFINITY, RLIM_INFINITY};
    (void)getrlimit(RLIMIT_NOFILE, &limit);
    uint64_t most = limit.rlim_cur == RLIM_INFINITY ? UINT32_MAX : limit.rlim_cur;
    uint64_t operators = most / 32 < 4 ? 4 : most / 32;
    if (operators > (uint64_t)conf->operator_connections)
        operators = (uint64_t)conf->operator_connections;
    const struct overload_descriptors have = {
        .limit = most,
        .used = count_descriptors(),
        .workers = process->worker_count,
        .wanted = (uint64_t)conf->connections,
        .for_operators = operators,
    };
    process->client_connections = (uint32_t)overload_client_share(&have);
    process->operator_connections = (uint32_t)operators;
    if (process->client_connections < (uint64_t)conf->connections)
        log_event(LOG_WARN, "few_descriptors", LOG_INT("limit", most),
                  LOG_INT("wanted", conf->connections),
                  LOG_INT("connections", process->client_connections));
}

static int watch_memory(struct process *process)
{
    uint64_t cap = pressure_cap((uint64_t)process->conf->memory_bytes);
    int err = pressure_new(cap, NULL, &process->shared.pressure);
    if (!err)
        err = pressure_start(process->shared.pressure);
    return err;
}

static uint32_t count_workers(const struct conf *conf)
{
    if (conf->workers > 0)
        return (uint32_t)conf->workers;
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    return cores < 1 ? 1 : cores > PROCESS_MAX_WORKERS ? PROCESS_MAX_WORKERS : (uint32_t)cores;
}

static enum log_level level_of(struct slice name)
{
    if (slice_is(name, "debug"))
        return LOG_DEBUG;
    if (slice_is(name, "warn"))
        return LOG_WARN;
    return slice_is(name, "error") ? LOG_ERROR : LOG_INFO;
}

// Everything that secrets must not appear in is told of them first.
static void hide_secrets(const struct conf *conf)
{
    const struct secret *secrets[] = {conf->encryption_key,    conf->plugin_api_encryption_key,
                                      conf->token_encrypt_key, conf->secret_key,
                                      conf->admin_token,       conf->admin_password,
                                      conf->upstream_api_key};
    for (size_t i = 0; i < sizeof secrets / sizeof *secrets; i++) {
        if (secrets[i] && secret_reveal(secrets[i]).len >= 8)
            (void)!log_hide_secret(secret_reveal(secrets[i]));
    }
}

static void tell_problems(const struct buf *problems, char *error, size_t size)
{
    struct slice text = buf_slice(problems);
    while (text.len > 0 && text.ptr[text.len - 1] == '\n')
        text.len--;
    snprintf(error, size, "%.*s", (int)(text.len < size - 1 ? text.len : size - 1), text.ptr);
}

static int load_conf(struct process *process, char *error, size_t size)
{
    struct buf problems = BUF_INIT(64u << 10);
    int err = confload_file(process->conf_path, &process->conf, &problems);
    if (err)
        tell_problems(&problems, error, size);
    buf_free(&problems);
    if (err)
        return fail(error, size, err, process->conf_path);
    return conf_check(process->conf, error, size);
}

static int load_plugins(struct process *process, char *error, size_t size)
{
    struct buf problems = BUF_INIT(64u << 10);
    int err = plugin_set_load(process->conf, &process->set, &problems);
    if (!err)
        err = plugin_set_migrate(process->set, process->store, &problems);
    if (err)
        tell_problems(&problems, error, size);
    else if (problems.len)
        log_event(LOG_WARN, "plugin_warnings", LOG_SLICE("text", buf_slice(&problems)));
    buf_free(&problems);
    return err ? fail(error, size, err, "plugins") : GW_OK;
}

static int open_state(struct process *process, char *error, size_t size)
{
    int err = conf_make_fernet(process->conf, &process->fernet, error, size);
    if (err)
        return err;
    process->epoch = epoch_new(process->worker_count + 16);
    process->kv = kv_new(KV_BYTES);
    process->stats = stats_new(process->worker_count + 1);
    process->ips = http1_ips_new();
    process->resolver = resolver_new(2, NULL);
    process->pool = pool_new("helper", HELPER_THREADS, 1024);
    if (!process->epoch || !process->kv || !process->stats || !process->ips || !process->resolver ||
        !process->pool)
        return fail(error, size, GW_ENOMEM, "start");
    int lock_fd = upgrade_take_lock(process);
    struct store_options options = {
        .conf = process->conf,
        .fernet = process->fernet,
        .epoch = process->epoch,
        .migrations_dir = home_path("schema"),
        .lock_fd = lock_fd >= 0 ? &lock_fd : NULL,
    };
    err = store_open(&options, &process->store, error, size);
    if (err)
        return fail(error, size, err, "database");
    err = flow_metrics_register(process->stats, &process->metrics);
    return err ? fail(error, size, err, "metrics") : GW_OK;
}

static int start_workers(struct process *process, char *error, size_t size)
{
    for (uint32_t i = 0; i < process->worker_count; i++) {
        struct worker *worker = &process->workers[i];
        worker->process = process;
        worker->index = i;
        int err = worker_start(worker);
        if (err) {
            snprintf(error, size, "%s", worker->error);
            return fail(error, size, err, "worker");
        }
    }
    // Only when nothing else can fail: a connection that is accepted is to be served.
    for (uint32_t i = 0; i < process->worker_count; i++) {
        int err = worker_command(&process->workers[i], WORKER_LISTEN, NULL, NULL);
        if (err)
            return fail(error, size, err, "listener");
    }
    return GW_OK;
}

static void block_signals(sigset_t *set)
{
    sigemptyset(set);
    sigaddset(set, SIGHUP);
    sigaddset(set, SIGTERM);
    sigaddset(set, SIGINT);
    sigaddset(set, SIGUSR1);
    sigaddset(set, SIGUSR2);
    pthread_sigmask(SIG_BLOCK, set, NULL);
    signal(SIGPIPE, SIG_IGN);
}

int process_start(struct process *process, const char *conf_path, char *error, size_t size)
{
    memset(process, 0, sizeof *process);
    error[0] = '\0';
    process->conf_path = conf_path;
    pthread_mutex_init(&process->reload_lock, NULL);
    umask(077);
    sigset_t signals;
    block_signals(&signals);
    int err = upgrade_begin(process, error, size);
    if (!err)
        err = load_conf(process, error, size);
    if (err)
        return err;
    if (process->conf->log_file.len) {
        char path[512];
        snprintf(path, sizeof path, "%.*s", SLICE_FMT(process->conf->log_file));
        err = log_to_file(path);
        if (err)
            return fail(error, size, err, "log file");
    }
    err = log_start(2, level_of(process->conf->log_level));
    if (err)
        return fail(error, size, err, "log");
    hide_secrets(process->conf);
    raise_limits();
    process->worker_count = count_workers(process->conf);
    process->workers = calloc(process->worker_count, sizeof *process->workers);
    process->shared.started_wall_ms = clock_wall_ms();
    process->shared.reload = process_reload_from_flow;
    process->shared.upgrade = upgrade_ask;
    process->shared.main = process;
    err = process->workers ? fetch_global_init() : GW_ENOMEM;
    if (err)
        return fail(error, size, err, "start");
    err = open_state(process, error, size);
    if (!err)
        err = load_plugins(process, error, size);
    if (!err)
        err = certificates_open(process->conf, &process->tls, error, size);
    if (!err)
        err = sockets_open(process, error, size);
    if (!err) {
        share_descriptors(process);
        http1_ips_exempt(process->ips, process->conf->trusted_proxies.items,
                         process->conf->trusted_proxies.count);
        process->shared.ips = process->ips;
        err = watch_memory(process);
        if (err)
            return fail(error, size, err, "memory watch");
    }
    if (!err)
        err = start_workers(process, error, size);
    if (err)
        return err;
    process->has_started = true;
    log_event(LOG_INFO, "started", LOG_STR("version", MOONGATE_VERSION),
              LOG_SLICE("host", process->conf->host), LOG_INT("port", process->port),
              LOG_INT("admin_port", process->admin_port), LOG_INT("workers", process->worker_count),
              LOG_INT("plugins", plugin_set_count(process->set)));
    upgrade_tell_ready(process);
    notify_ready();
    return GW_OK;
}

struct worker *process_worker_of(struct process *process, const struct loop *loop)
{
    for (uint32_t i = 0; i < process->worker_count; i++) {
        if (process->workers[i].loop == loop)
            return &process->workers[i];
    }
    return NULL;
}

static void command_all(struct process *process, enum worker_command command)
{
    for (uint32_t i = 0; i < process->worker_count; i++) {
        if (process->workers[i].is_started)
            (void)!worker_command(&process->workers[i], command, NULL, NULL);
    }
}

static bool all_stopped(struct process *process)
{
    for (uint32_t i = 0; i < process->worker_count; i++) {
        if (!worker_has_stopped(&process->workers[i]))
            return false;
    }
    return true;
}

static void on_terminate(struct process *process, int *count)
{
    (*count)++;
    if (*count == 1) {
        log_event(LOG_INFO, "draining", LOG_INT("exchanges", process->shared.exchanges));
        upgrade_refuse(process);
        // Who has a successor is not the service any more.
        if (!process->upgrade.is_handed_over) {
            atomic_store(&process->shared.is_draining, true);
            notify_stopping();
        }
        command_all(process, WORKER_DRAIN);
    } else if (*count == 2) {
        log_event(LOG_WARN, "stopping_now", LOG_INT("exchanges", process->shared.exchanges));
        command_all(process, WORKER_STOP);
    }
}

void process_hand_over(struct process *process)
{
    command_all(process, WORKER_HAND_OVER);
}

static void on_signal(struct process *process, uint32_t number, int *terminations)
{
    switch (number) {
    case SIGHUP:
        if (process_reload(process, NULL, NULL, NULL) == GW_EBUSY)
            log_event(LOG_WARN, "reload_busy",
                      LOG_STR("hint", "another one is under way, or this process drains"));
        break;
    case SIGUSR1: log_reopen(); break;
    case SIGUSR2: upgrade_by_signal(process); break;
    case SIGTERM:
    case SIGINT: on_terminate(process, terminations); break;
    default: break;
    }
}

int process_wait(struct process *process)
{
    sigset_t signals;
    block_signals(&signals);
    int terminations = 0;
    int signal_fd = signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK);
    if (signal_fd < 0) {
        log_event(LOG_ERROR, "no_signals", LOG_STR("reason", strerror(errno)));
        return 1;
    }
    while ((terminations == 0 && !process->upgrade.is_handed_over) || !all_stopped(process)) {
        struct pollfd fds[UPGRADE_POLLS + 1] = {{.fd = signal_fd, .events = POLLIN}};
        struct signalfd_siginfo info;
        bool is_draining = terminations > 0 || process->upgrade.is_handed_over;
        int timeout_ms = is_draining ? SIGNAL_LOOK_MS : -1;
        size_t count = upgrade_polls(process, fds + 1, &timeout_ms);
        (void)poll(fds, count + 1, timeout_ms);
        while (read(signal_fd, &info, sizeof info) == (ssize_t)sizeof info)
            on_signal(process, info.ssi_signo, &terminations);
        upgrade_look(process);
    }
    close(signal_fd);
    return 0;
}

void process_stop(struct process *process)
{
    if (process->workers) {
        upgrade_refuse(process);
        command_all(process, WORKER_STOP);
        for (uint32_t i = 0; i < process->worker_count; i++)
            worker_join(&process->workers[i]);
    }
    if (process->pool)
        pool_destroy(process->pool); // a reload under way finds no worker any more
    for (uint32_t i = 0; process->workers && i < process->worker_count; i++)
        worker_dispose(&process->workers[i]);
    if (process->resolver)
        resolver_free(process->resolver);
    if (process->set)
        plugin_set_unref(process->set);
    if (process->store)
        store_close(process->store);
    sockets_close(process);
    pressure_free(process->shared.pressure);
    kv_free(process->kv);
    stats_free(process->stats);
    flow_metrics_free(process->metrics);
    http1_ips_free(process->ips);
    tls_server_free(process->tls);
    if (process->epoch)
        epoch_destroy(process->epoch);
    fernet_free(process->fernet);
    free(process->workers);
    fetch_global_cleanup();
    if (process->has_started)
        log_event(LOG_INFO, "stopped", LOG_INT("log_lines_dropped", log_dropped()));
    log_stop();
    conf_free(process->conf);
    upgrade_end(process); // last: until now the successor takes this process for alive
    pthread_mutex_destroy(&process->reload_lock);
}
