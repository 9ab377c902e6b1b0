#include "main/worker.h"

#include "base/log.h"
#include "io/listener.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define DRAIN_LOOK_MS 20
#define DRAIN_GRACE_MS 5000 // for last errors to be flushed
#define FINISH_WAIT_MS 2000 // for finish hooks that wait

struct command_message {
    struct loop_message message;
    struct worker *worker;
    enum worker_command command;
    struct plugin_set *set;
    struct buf *problems;
    bool is_waited_for;
    int err;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool is_done;
};

struct worker_listener {
    struct listener *listener;
    const struct process_socket *socket;
};

static void close_listeners(struct worker *worker)
{
    for (size_t i = 0; i < worker->listener_count; i++) {
        if (worker->listeners[i].socket->is_handed)
            listener_leave(worker->listeners[i].listener);
        else
            listener_close(worker->listeners[i].listener);
    }
    worker->listener_count = 0;
}

static void on_drain_timer(struct loop_timer *timer)
{
    struct worker *worker = (struct worker *)((char *)timer - offsetof(struct worker, drain_timer));
    uint64_t now = loop_now_ms(worker->loop);
    bool is_empty =
        flow_exchange_count(worker->flow) == 0 && http1_server_counters(worker->server)->open == 0;
    if (is_empty) {
        loop_stop(worker->loop);
        return;
    }
    if (now >= worker->drain_until_ms && !worker->is_ended) {
        worker->is_ended = true;
        http1_server_drain_within(worker->server, 0);
        flow_end_all(worker->flow, "The gateway shuts down; retry the request.");
    }
    if (now >= worker->drain_until_ms + DRAIN_GRACE_MS) {
        http1_server_abort_all(worker->server, "drain time is over");
        flow_end_all(worker->flow, ""); // those that would be read on for their usage
    }
    loop_timer_start(timer, DRAIN_LOOK_MS);
}

// idle_ms: at most so long a connection without a request is kept.
static void start_drain(struct worker *worker, uint64_t idle_ms)
{
    uint64_t timeout_ms = (uint64_t)worker->process->conf->drain_timeout_ms;
    if (!worker->is_draining) {
        worker->is_draining = true;
        worker->drain_until_ms = loop_now_ms(worker->loop) + timeout_ms;
        close_listeners(worker);
        loop_timer_start(&worker->drain_timer, DRAIN_LOOK_MS);
    }
    http1_server_drain_within(worker->server,
                              (uint32_t)(idle_ms < timeout_ms ? idle_ms : timeout_ms));
}

static int open_listeners(struct worker *worker)
{
    static const uint32_t TAGS[] = {[HANDOVER_PUBLIC] = FLOW_LISTENER_PUBLIC,
                                    [HANDOVER_ADMIN] = FLOW_LISTENER_ADMIN,
                                    [HANDOVER_CONTROL] = FLOW_LISTENER_CONTROL};
    struct process *process = worker->process;
    for (size_t i = 0; i < process->socket_count; i++) {
        struct process_socket *socket = &process->sockets[i];
        if (socket->worker != worker->index)
            continue;
        struct worker_listener *listener = &worker->listeners[worker->listener_count];
        socket->is_taken = true;
        listener->socket = socket;
        int err = listener_open(worker->loop, socket->fd, socket->kind == HANDOVER_CONTROL,
                                TAGS[socket->kind], worker->server, &listener->listener);
        if (err)
            return err;
        worker->listener_count++;
    }
    return GW_OK;
}

static int run_command(struct command_message *command)
{
    struct worker *worker = command->worker;
    switch (command->command) {
    case WORKER_PREPARE: return script_prepare(worker->script, command->set, command->problems);
    case WORKER_FLIP:
        script_flip(worker->script);
        script_turn_end(worker->script); // older generations go also when nobody calls
        return GW_OK;
    case WORKER_DISCARD: script_discard(worker->script); return GW_OK;
    case WORKER_LISTEN: return open_listeners(worker);
    case WORKER_HAND_OVER:
        script_stop_tasks(worker->script);
        start_drain(worker, UINT32_MAX);
        return GW_OK;
    case WORKER_DRAIN: start_drain(worker, HTTP1_DRAIN_IDLE_MS); return GW_OK;
    case WORKER_END_ALL: worker->drain_until_ms = 0; return GW_OK;
    case WORKER_STOP:
        close_listeners(worker);
        http1_server_abort_all(worker->server, "stopped");
        loop_stop(worker->loop);
        return GW_OK;
    }
    return GW_EINVAL;
}

static void on_command(struct loop_message *message)
{
    struct command_message *command = (struct command_message *)message;
    int err = run_command(command);
    if (!command->is_waited_for) {
        free(command);
        return;
    }
    pthread_mutex_lock(&command->lock);
    command->err = err;
    command->is_done = true;
    pthread_cond_signal(&command->changed);
    pthread_mutex_unlock(&command->lock);
}

int worker_command(struct worker *worker, enum worker_command command, struct plugin_set *set,
                   struct buf *problems)
{
    bool waits = command == WORKER_LISTEN || command == WORKER_PREPARE || command == WORKER_FLIP ||
                 command == WORKER_DISCARD;
    struct command_message *message = calloc(1, sizeof *message);
    if (!message)
        return GW_ENOMEM;
    message->message.deliver = on_command;
    message->worker = worker;
    message->command = command;
    message->set = set;
    message->problems = problems;
    message->is_waited_for = waits;
    pthread_mutex_init(&message->lock, NULL);
    pthread_cond_init(&message->changed, NULL);
    pthread_mutex_lock(&worker->lock); // its loop must not go while we post
    bool is_posted = worker->takes_commands;
    if (is_posted)
        loop_post(worker->loop, &message->message);
    pthread_mutex_unlock(&worker->lock);
    if (!is_posted) {
        free(message);
        return GW_ECANCELLED;
    }
    if (!waits)
        return GW_OK;
    pthread_mutex_lock(&message->lock);
    while (!message->is_done)
        pthread_cond_wait(&message->changed, &message->lock);
    int err = message->err;
    pthread_mutex_unlock(&message->lock);
    pthread_mutex_destroy(&message->lock);
    pthread_cond_destroy(&message->changed);
    free(message);
    return err;
}

static void fill_limits(const struct process *process, struct http1_limits *limits)
{
    const struct conf *conf = process->conf;
    http1_limits_default(limits);
    limits->target_bytes = (uint32_t)conf->target_bytes;
    limits->header_bytes = (uint32_t)conf->header_bytes;
    limits->header_count = (uint32_t)conf->header_count;
    limits->body_bytes = (uint64_t)conf->body_bytes;
    limits->header_ms = (uint32_t)conf->header_timeout_ms;
    limits->body_idle_ms = (uint32_t)conf->body_idle_ms;
    limits->keep_alive_ms = (uint32_t)conf->client_keep_alive_ms;
    limits->write_stall_ms = (uint32_t)conf->write_stall_ms;
    limits->max_connections = process->client_connections;
    limits->max_per_ip = (uint32_t)conf->connections_per_ip;
    limits->max_operators = process->operator_connections;
    limits->operator_tags = 1u << FLOW_LISTENER_ADMIN | 1u << FLOW_LISTENER_CONTROL;
}

static int fail(struct worker *worker, int err, const char *what)
{
    if (!worker->error[0])
        snprintf(worker->error, sizeof worker->error, "worker %u: %s: %s", worker->index, what,
                 gw_err_name(err));
    return err;
}

static int open_script(struct worker *worker)
{
    struct process *process = worker->process;
    struct script_options options = {
        .conf = process->conf,
        .loop = worker->loop,
        .fetcher = worker->fetcher,
        .store = process->store,
        .kv = process->kv,
        .stats = process->stats,
        .shard = stats_shard_of(process->stats, worker->index),
        .worker = worker->index,
        .worker_count = process->worker_count,
        .host = flow_host(),
        .host_user = worker->flow,
    };
    int err = script_new(&options, &worker->script);
    if (err)
        return fail(worker, err, "plugin host");
    struct buf problems = BUF_INIT(64u << 10);
    err = script_prepare(worker->script, process->set, &problems);
    if (err)
        snprintf(worker->error, sizeof worker->error, "%.*s",
                 (int)(problems.len < 500 ? problems.len : 500), buf_slice(&problems).ptr);
    buf_free(&problems);
    if (err)
        return fail(worker, err, "plugins");
    script_flip(worker->script);
    flow_set_script(worker->flow, worker->script);
    return GW_OK;
}

static int open_all(struct worker *worker)
{
    struct process *process = worker->process;
    int err = loop_new(worker->reader, &worker->loop);
    if (err)
        return fail(worker, err, "event loop");
    err = fetcher_new(worker->loop, process->resolver, &worker->fetcher);
    if (err)
        return fail(worker, err, "fetcher");
    struct flow_options options = {
        .conf = process->conf,
        .loop = worker->loop,
        .fetcher = worker->fetcher,
        .store = process->store,
        .stats = process->stats,
        .shard = stats_shard_of(process->stats, worker->index),
        .metrics = process->metrics,
        .shared = &process->shared,
        .worker = worker->index,
    };
    err = flow_new(&options, &worker->flow);
    if (err)
        return fail(worker, err, "flow");
    err = open_script(worker);
    if (err)
        return err;
    struct http1_limits limits;
    fill_limits(process, &limits);
    err = http1_server_new(worker->loop, &limits, flow_handler(), worker->flow, process->ips,
                           &worker->server);
    if (err)
        return fail(worker, err, "HTTP server");
    if (process->tls)
        err = http1_server_use_tls(worker->server, FLOW_LISTENER_PUBLIC, process->tls);
    if (!err && process->tls && process->conf->admin_tls)
        err = http1_server_use_tls(worker->server, FLOW_LISTENER_ADMIN, process->tls);
    if (err)
        return fail(worker, err, "TLS");
    flow_set_server(worker->flow, worker->server);
    loop_timer_init(worker->loop, &worker->drain_timer, on_drain_timer);
    // No more than all sockets of the process.
    worker->listeners = calloc(process->socket_count + 1, sizeof *worker->listeners);
    return worker->listeners ? GW_OK : fail(worker, GW_ENOMEM, "listeners");
}

static void turn_and_wait(struct worker *worker)
{
    if (!loop_turn(worker->loop))
        usleep(1000);
}

static void close_all(struct worker *worker)
{
    if (worker->loop && worker->server) {
        close_listeners(worker);
        http1_server_abort_all(worker->server, "stopped");
        loop_timer_stop(&worker->drain_timer);
        // Finish hooks may still write; after a while they are dropped.
        (void)loop_turn(worker->loop);
        flow_end_all(worker->flow, "");
        for (int i = 0; i < FINISH_WAIT_MS && flow_exchange_count(worker->flow) > 0; i++)
            turn_and_wait(worker);
        flow_drop_all(worker->flow);
        // Others hold memory of ours: what they post must find the loop.
        while (flow_is_awaited(worker->flow) || worker->reloads > 0)
            turn_and_wait(worker);
    }
    script_free(worker->script);
    if (worker->fetcher)
        fetcher_free(worker->fetcher);
    if (worker->server)
        http1_server_free(worker->server);
    flow_free(worker->flow);
    if (worker->loop)
        loop_free(worker->loop);
    free(worker->listeners);
}

static void announce(struct worker *worker, int err)
{
    pthread_mutex_lock(&worker->lock);
    worker->is_ready = true;
    worker->takes_commands = err == GW_OK;
    worker->start_err = err;
    pthread_cond_signal(&worker->changed);
    pthread_mutex_unlock(&worker->lock);
}

static void *worker_main(void *arg)
{
    struct worker *worker = arg;
    char name[16];
    snprintf(name, sizeof name, "worker-%u", worker->index);
    pthread_setname_np(pthread_self(), name);
    worker->reader = epoch_register(worker->process->epoch);
    int err = worker->reader ? GW_OK : fail(worker, GW_EFULL, "epoch");
    if (!err) {
        epoch_enter(worker->reader); // init hooks may read the catalogue
        err = open_all(worker);
        epoch_leave(worker->reader);
    }
    announce(worker, err);
    if (!err)
        loop_run(worker->loop);
    pthread_setname_np(pthread_self(), "closing"); // serves nobody any more: it may wait
    pthread_mutex_lock(&worker->lock);
    worker->takes_commands = false; // close_all delivers what was posted before
    pthread_mutex_unlock(&worker->lock);
    if (worker->reader)
        epoch_enter(worker->reader);
    close_all(worker);
    if (worker->reader) {
        epoch_leave(worker->reader);
        epoch_unregister(worker->reader);
    }
    pthread_mutex_lock(&worker->lock);
    worker->has_stopped = true;
    pthread_mutex_unlock(&worker->lock);
    return NULL;
}

int worker_start(struct worker *worker)
{
    pthread_mutex_init(&worker->lock, NULL);
    pthread_cond_init(&worker->changed, NULL);
    if (pthread_create(&worker->thread, NULL, worker_main, worker) != 0)
        return fail(worker, GW_ENOMEM, "thread");
    worker->is_started = true;
    pthread_mutex_lock(&worker->lock);
    while (!worker->is_ready)
        pthread_cond_wait(&worker->changed, &worker->lock);
    int err = worker->start_err;
    pthread_mutex_unlock(&worker->lock);
    return err;
}

void worker_join(struct worker *worker)
{
    if (!worker->is_started)
        return;
    pthread_join(worker->thread, NULL);
    worker->is_started = false;
    worker->has_ended = true;
}

void worker_dispose(struct worker *worker)
{
    if (!worker->has_ended)
        return;
    pthread_mutex_destroy(&worker->lock);
    pthread_cond_destroy(&worker->changed);
}

bool worker_has_stopped(struct worker *worker)
{
    pthread_mutex_lock(&worker->lock);
    bool has_stopped = worker->has_stopped;
    pthread_mutex_unlock(&worker->lock);
    return has_stopped;
}
