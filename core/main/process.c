#include "main/process.h"

#include "base/clock.h"
#include "base/log.h"
#include "io/listener.h"
#include "main/worker.h"
#include "script/confload.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
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

// As many descriptors as the machine allows; a hard limit below what the configuration wants is
// told, not hidden (PROMISES §0).
static void raise_descriptor_limit(const struct conf *conf)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0)
        return;
    limit.rlim_cur = limit.rlim_max;
    (void)setrlimit(RLIMIT_NOFILE, &limit);
    if (limit.rlim_cur != RLIM_INFINITY && limit.rlim_cur < 2 * (rlim_t)conf->connections)
        log_event(LOG_WARN, "few_descriptors", LOG_INT("limit", limit.rlim_cur),
                  LOG_INT("connections", conf->connections));
    struct rlimit none = {0, 0}; // secrets do not belong in core files
    (void)setrlimit(RLIMIT_CORE, &none);
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
    struct store_options options = {
        .conf = process->conf,
        .fernet = process->fernet,
        .epoch = process->epoch,
        .migrations_dir = home_path("schema"),
    };
    err = store_open(&options, &process->store, error, size);
    if (err)
        return fail(error, size, err, "database");
    err = flow_metrics_register(process->stats, &process->metrics);
    return err ? fail(error, size, err, "metrics") : GW_OK;
}

static int bind_sockets(struct process *process, char *error, size_t size)
{
    const struct conf *conf = process->conf;
    char host[256];
    snprintf(host, sizeof host, "%.*s", SLICE_FMT(conf->host));
    uint16_t port = (uint16_t)conf->port;
    for (uint32_t i = 0; i < process->worker_count; i++) {
        int *fds = process->workers[i].fds;
        fds[0] = fds[1] = fds[2] = -1;
    }
    // Sockets with SO_REUSEPORT share a port with any other process of ours: one without it, bound
    // for a moment, tells whether the port is free.
    if (port && process->worker_count > 1) {
        int fd;
        uint16_t bound;
        int err = listener_bind_tcp(host, port, false, &fd, &bound, error, size);
        if (err)
            return fail(error, size, err, "listen");
        close(fd);
    }
    bool is_shared = process->worker_count > 1;
    for (uint32_t i = 0; i < process->worker_count; i++) {
        int err = listener_bind_tcp(host, port, is_shared, &process->workers[i].fds[0], &port,
                                    error, size);
        if (err)
            return fail(error, size, err, "listen");
    }
    process->port = port;
    if (conf->admin_listen.len) {
        char admin[256];
        snprintf(admin, sizeof admin, "%.*s", SLICE_FMT(conf->admin_listen));
        char *colon = strrchr(admin, ':');
        unsigned long long admin_port = 0;
        if (!colon || slice_to_u64(slice_str(colon + 1), 65535, &admin_port) != GW_OK) {
            snprintf(error, size, "ADMIN_LISTEN must be host:port");
            return GW_EINVAL;
        }
        *colon = '\0';
        int err = listener_bind_tcp(admin, (uint16_t)admin_port, false, &process->workers[0].fds[1],
                                    &process->admin_port, error, size);
        if (err)
            return fail(error, size, err, "ADMIN_LISTEN");
    }
    if (conf->control_path.len) {
        char path[512];
        snprintf(path, sizeof path, "%.*s", SLICE_FMT(conf->control_path));
        int err = listener_bind_unix(path, &process->workers[0].fds[2], error, size);
        if (err)
            return fail(error, size, err, "control socket");
        process->has_control_socket = true;
    }
    return GW_OK;
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
    return GW_OK;
}

static void block_signals(sigset_t *set)
{
    sigemptyset(set);
    sigaddset(set, SIGHUP);
    sigaddset(set, SIGTERM);
    sigaddset(set, SIGINT);
    sigaddset(set, SIGUSR1);
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
    int err = load_conf(process, error, size);
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
    raise_descriptor_limit(process->conf);
    process->worker_count = count_workers(process->conf);
    process->workers = calloc(process->worker_count, sizeof *process->workers);
    process->shared.started_wall_ms = clock_wall_ms();
    process->shared.reload = process_reload_from_flow;
    process->shared.main = process;
    err = process->workers ? fetch_global_init() : GW_ENOMEM;
    if (err)
        return fail(error, size, err, "start");
    err = open_state(process, error, size);
    if (!err)
        err = load_plugins(process, error, size);
    if (!err)
        err = bind_sockets(process, error, size);
    if (!err)
        err = start_workers(process, error, size);
    if (err)
        return err;
    process->has_started = true;
    log_event(LOG_INFO, "started", LOG_STR("version", MOONGATE_VERSION),
              LOG_SLICE("host", process->conf->host), LOG_INT("port", process->port),
              LOG_INT("admin_port", process->admin_port), LOG_INT("workers", process->worker_count),
              LOG_INT("plugins", plugin_set_count(process->set)));
    return GW_OK;
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
        atomic_store(&process->shared.is_draining, true);
        command_all(process, WORKER_DRAIN);
    } else if (*count == 2) {
        log_event(LOG_WARN, "stopping_now", LOG_INT("exchanges", process->shared.exchanges));
        command_all(process, WORKER_STOP);
    }
}

int process_wait(struct process *process)
{
    sigset_t signals;
    block_signals(&signals);
    int terminations = 0;
    struct timespec look = {0, SIGNAL_LOOK_MS * 1000000L};
    while (terminations == 0 || !all_stopped(process)) {
        int number =
            terminations ? sigtimedwait(&signals, NULL, &look) : sigwaitinfo(&signals, NULL);
        switch (number) {
        case SIGHUP:
            if (process_reload(process, NULL, NULL, NULL) == GW_EBUSY)
                log_event(LOG_WARN, "reload_busy", LOG_STR("hint", "another one is under way"));
            break;
        case SIGUSR1: log_reopen(); break;
        case SIGTERM:
        case SIGINT: on_terminate(process, &terminations); break;
        default: break;
        }
    }
    return 0;
}

void process_stop(struct process *process)
{
    if (process->workers) {
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
    if (process->has_control_socket) {
        char path[512];
        snprintf(path, sizeof path, "%.*s", SLICE_FMT(process->conf->control_path));
        unlink(path);
    }
    kv_free(process->kv);
    stats_free(process->stats);
    flow_metrics_free(process->metrics);
    http1_ips_free(process->ips);
    if (process->epoch)
        epoch_destroy(process->epoch);
    fernet_free(process->fernet);
    free(process->workers);
    fetch_global_cleanup();
    if (process->has_started)
        log_event(LOG_INFO, "stopped", LOG_INT("log_lines_dropped", log_dropped()));
    log_stop();
    conf_free(process->conf);
    pthread_mutex_destroy(&process->reload_lock);
}
