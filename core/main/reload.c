// Reload of plugins and of the listeners' certificate (SIGHUP, REST, control socket): all or
// nothing, on all workers. A helper thread reads, compiles and validates; each worker builds its
// generation beside the running one; only when all are ready do all flip.
#include "base/log.h"
#include "main/certificates.h"
#include "main/notify.h"
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
    bool is_followed;
};

static int submit(struct process *process, struct loop *loop,
                  void (*on_done)(void *arg, int err, struct slice problems), void *arg);

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
    struct tls_context *tls = NULL;
    notify_reloading();
    job->err = confload_file(process->conf_path, &conf, &job->problems);
    if (!job->err)
        job->err = plugin_set_load(conf, &set, &job->problems);
    if (!job->err)
        plugin_set_use_conf(set, process->conf);
    if (!job->err)
        job->err = plugin_set_migrate(set, process->store, &job->problems);
    if (!job->err)
        job->err = certificates_prepare(process->conf, process->tls, &tls, &job->problems);
    if (!job->err)
        job->err = flip_all(process, set, &job->problems);
    if (!job->err)
        certificates_flip(process->conf, process->tls, tls);
    else
        tls_context_unref(tls);
    pthread_mutex_lock(&process->reload_lock);
    if (!job->err) {
        struct plugin_set *old = process->set;
        process->set = set;
        set = old;
    }
    size_t plugins = plugin_set_count(process->set); // now: the next reload may free this set
    job->is_followed = process->wants_reload && !process->upgrade.is_handed_over;
    process->is_reloading = job->is_followed;
    process->wants_reload = false;
    pthread_mutex_unlock(&process->reload_lock);
    if (set)
        plugin_set_unref(set);
    conf_free(conf);
    notify_ready();
    struct slice problems = buf_slice(&job->problems);
    if (job->err)
        log_event(LOG_ERROR, "reload_failed", LOG_SLICE("problems", problems));
    else
        log_event(LOG_INFO, "reloaded", LOG_INT("plugins", plugins),
                  LOG_SLICE("warnings", problems));
}

static void on_delivered(struct loop_message *message)
{
    struct reload_job *job =
        (struct reload_job *)((char *)message - offsetof(struct reload_job, message));
    struct worker *worker = process_worker_of(job->process, job->loop);
    if (worker)
        worker->reloads--;
    job->done(job->arg, job->err, buf_slice(&job->problems));
    buf_free(&job->problems);
    free(job);
}

static void done(struct pool_job *pool_job)
{
    struct reload_job *job = (struct reload_job *)pool_job;
    if (job->is_followed && submit(job->process, NULL, NULL, NULL) != GW_OK)
        log_event(LOG_ERROR, "reload_failed", LOG_STR("problems", "it could not be started"));
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
    // Whoever drains after an upgrade keeps what it has.
    bool is_over = process->upgrade.is_handed_over;
    bool is_busy = process->is_reloading || is_over;
    // Files may have changed after the one under way had read them: whoever sent a signal is told
    // nothing, so its reload follows.
    bool follows = process->is_reloading && !is_over && !on_done;
    process->wants_reload = process->wants_reload || follows;
    process->is_reloading = process->is_reloading || !is_busy;
    pthread_mutex_unlock(&process->reload_lock);
    if (is_busy)
        return follows ? GW_OK : GW_EBUSY;
    return submit(process, loop, on_done, arg);
}

// is_reloading is set.
static int submit(struct process *process, struct loop *loop,
                  void (*on_done)(void *arg, int err, struct slice problems), void *arg)
{
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
        struct worker *worker = loop ? process_worker_of(process, loop) : NULL;
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
