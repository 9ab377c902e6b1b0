// Reload of plugins (SIGHUP, REST, control socket): all workers or none. A helper thread reads,
// compiles and validates; each worker builds its generation beside the running one; only when all
// are ready do all flip.
#include "base/log.h"
#include "main/worker.h"
#include "script/confload.h"

#include <stdlib.h>

struct reload_job {
    struct pool_job job;
    struct loop_message message;
    struct process *process;
    struct loop *loop; // asks; NULL: nobody waits
    void (*done)(void *arg, int err, struct slice problems);
    void *arg;
    struct buf problems;
    int err;
};

static void discard(struct process *process, uint32_t prepared)
{
    for (uint32_t i = 0; i < prepared; i++)
        (void)!worker_command(&process->workers[i], WORKER_DISCARD, NULL, NULL);
}

static int flip_all(struct process *process, struct plugin_set *set, struct buf *problems)
{
    for (uint32_t i = 0; i < process->worker_count; i++) {
        int err = worker_command(&process->workers[i], WORKER_PREPARE, set, problems);
        if (err) {
            discard(process, i);
            return err;
        }
    }
    for (uint32_t i = 0; i < process->worker_count; i++)
        (void)!worker_command(&process->workers[i], WORKER_FLIP, NULL, NULL);
    return GW_OK;
}

static void run(struct pool_job *pool_job)
{
    struct reload_job *job = (struct reload_job *)pool_job;
    struct process *process = job->process;
    struct conf *conf = NULL;
    struct plugin_set *set = NULL;
    job->err = confload_file(process->conf_path, &conf, &job->problems);
    if (!job->err)
        job->err = plugin_set_load(conf, &set, &job->problems);
    if (!job->err)
        plugin_set_use_conf(set, process->conf);
    if (!job->err)
        job->err = plugin_set_migrate(set, process->store, &job->problems);
    if (!job->err)
        job->err = flip_all(process, set, &job->problems);
    pthread_mutex_lock(&process->reload_lock);
    if (!job->err) {
        struct plugin_set *old = process->set;
        process->set = set;
        set = old;
    }
    process->is_reloading = false;
    pthread_mutex_unlock(&process->reload_lock);
    if (set)
        plugin_set_unref(set);
    conf_free(conf);
    struct slice problems = buf_slice(&job->problems);
    if (job->err)
        log_event(LOG_ERROR, "reload_failed", LOG_SLICE("problems", problems));
    else
        log_event(LOG_INFO, "reloaded", LOG_INT("plugins", plugin_set_count(process->set)),
                  LOG_SLICE("warnings", problems));
}

static struct worker *worker_of(struct process *process, const struct loop *loop)
{
    for (uint32_t i = 0; i < process->worker_count; i++) {
        if (process->workers[i].loop == loop)
            return &process->workers[i];
    }
    return NULL;
}

static void on_delivered(struct loop_message *message)
{
    struct reload_job *job =
        (struct reload_job *)((char *)message - offsetof(struct reload_job, message));
    struct worker *worker = worker_of(job->process, job->loop);
    if (worker)
        worker->reloads--;
    job->done(job->arg, job->err, buf_slice(&job->problems));
    buf_free(&job->problems);
    free(job);
}

static void done(struct pool_job *pool_job)
{
    struct reload_job *job = (struct reload_job *)pool_job;
    if (job->loop) {
        job->message.deliver = on_delivered;
        loop_post(job->loop, &job->message);
        return;
    }
    buf_free(&job->problems);
    free(job);
}

int process_reload(struct process *process, struct loop *loop,
                   void (*on_done)(void *arg, int err, struct slice problems), void *arg)
{
    pthread_mutex_lock(&process->reload_lock);
    bool is_busy = process->is_reloading;
    process->is_reloading = true;
    pthread_mutex_unlock(&process->reload_lock);
    if (is_busy)
        return GW_EBUSY;
    struct reload_job *job = calloc(1, sizeof *job);
    int err = job ? GW_OK : GW_ENOMEM;
    if (job) {
        job->job.run = run;
        job->job.done = done;
        job->process = process;
        job->loop = loop;
        job->done = on_done;
        job->arg = arg;
        buf_init(&job->problems, 64u << 10);
        struct worker *worker = loop ? worker_of(process, loop) : NULL;
        if (worker)
            worker->reloads++;
        err = pool_submit(process->pool, &job->job);
        if (err && worker)
            worker->reloads--;
    }
    if (err) {
        free(job);
        pthread_mutex_lock(&process->reload_lock);
        process->is_reloading = false;
        pthread_mutex_unlock(&process->reload_lock);
    }
    return err;
}

int process_reload_from_flow(struct flow_shared *shared, struct loop *loop,
                             void (*on_done)(void *arg, int err, struct slice problems), void *arg)
{
    return process_reload(shared->main, loop, on_done, arg);
}
