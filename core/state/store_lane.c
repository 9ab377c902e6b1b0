// Lanes: one thread and one connection each, jobs in order. On the write lanes a job is one
// transaction; what it noted in the changes feed is published before its `done`.
#include "base/log.h"
#include "state/store_impl.h"
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define IDLE_MS 1000
#define SHARED_LOOK_MS 20 // the writer, while another process may change what is in memory here

int store_submit(struct store *store, struct store_job *job)
{
    if ((unsigned)job->lane >= STORE_LANES)
        return GW_EINVAL;
    struct lane *lane = &store->lanes[job->lane];
    if (!lane->is_started)
        return GW_EBUSY; // another process writes
    int err = 0;
    pthread_mutex_lock(&lane->mutex);
    if (lane->is_stopping) {
        err = GW_ECANCELLED;
    } else if (lane->count >= STORE_QUEUE_MAX) {
        err = GW_EFULL;
    } else {
        job->next = NULL;
        job->err = 0;
        job->error[0] = '\0';
        if (lane->last)
            lane->last->next = job;
        else
            lane->first = job;
        lane->last = job;
        if (lane->count++ == 0)
            pthread_cond_signal(&lane->wake);
    }
    pthread_mutex_unlock(&lane->mutex);
    return err;
}

static bool is_writer(const struct lane *lane)
{
    return lane->id == STORE_WRITE || lane->id == STORE_WRITE_LOGS;
}

static void publish(struct lane *lane)
{
    int err = store_publish(lane->store, lane->db);
    lane->store->is_unpublished = err != 0;
    if (err)
        log_event(LOG_ERROR, "publication_failed", LOG_STR("reason", gw_err_name(err)),
                  LOG_STR("error", db_error(lane->db)));
}

static void note_error(struct lane *lane, struct store_job *job)
{
    if (job->err && !job->error[0]) {
        const char *text = db_error(lane->db);
        snprintf(job->error, sizeof(job->error), "%s", text[0] ? text : gw_err_name(job->err));
    }
}

static void run_write(struct lane *lane, struct store_job *job)
{
    struct store *store = lane->store;
    pthread_mutex_t *mutex = lane->id == STORE_WRITE ? &store->main_mutex : &store->logs_mutex;
    bool is_commit_error = false;
    pthread_mutex_lock(mutex);
    job->err = db_begin(lane->db, true);
    if (job->err == 0)
        job->err = job->run(lane->db, job);
    db_restrict(lane->db, SLICE_NONE, 0);
    if (job->err == 0) {
        job->err = db_commit(lane->db);
        is_commit_error = job->err != 0;
    }
    note_error(lane, job);
    if (job->err)
        db_rollback(lane->db);
    pthread_mutex_unlock(mutex);
    if (job->err == GW_EIO || job->err == GW_EFULL || job->err == GW_ECORRUPT || is_commit_error)
        atomic_store(&store->write_err, job->err);
    else if (job->err == 0)
        atomic_store(&store->write_err, 0);
    if (job->err == 0 && lane->id == STORE_WRITE)
        publish(lane);
}

static void run_read(struct lane *lane, struct store_job *job)
{
    job->err = job->run(lane->db, job);
    db_restrict(lane->db, SLICE_NONE, 0);
    note_error(lane, job);
    db_rollback(lane->db); // a transaction that the job left open
}

static void tick(struct lane *lane)
{
    if (lane->id != STORE_WRITE)
        return;
    bool must_look = atomic_exchange(&lane->store->must_look, false);
    if (lane->store->is_unpublished || must_look || atomic_load(&lane->store->is_shared))
        publish(lane);
    (void)epoch_reclaim(lane->store->epoch);
}

static struct store_job *next_job(struct lane *lane, bool *is_idle)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    bool is_looking = lane->id == STORE_WRITE && atomic_load(&lane->store->is_shared);
    until.tv_nsec += (is_looking ? SHARED_LOOK_MS : IDLE_MS) % 1000 * 1000000L;
    until.tv_sec += is_looking ? 0 : IDLE_MS / 1000;
    if (until.tv_nsec >= 1000000000L) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000L;
    }
    *is_idle = false;
    pthread_mutex_lock(&lane->mutex);
    // Woken without a job: the lane is to look how long it may wait.
    if (!lane->first && !lane->is_stopping) {
        (void)pthread_cond_timedwait(&lane->wake, &lane->mutex, &until);
        *is_idle = !lane->is_stopping;
    }
    struct store_job *job = lane->first;
    if (job) {
        lane->first = job->next;
        if (!lane->first)
            lane->last = NULL;
        lane->count--;
        *is_idle = false;
    }
    pthread_mutex_unlock(&lane->mutex);
    return job;
}

static void *lane_run(void *arg)
{
    struct lane *lane = arg;
    for (;;) {
        bool is_idle = false;
        struct store_job *job = next_job(lane, &is_idle);
        if (!job && !is_idle)
            break; // stopping, and all is done
        if (!job) {
            tick(lane);
            continue;
        }
        if (is_writer(lane))
            run_write(lane, job);
        else
            run_read(lane, job);
        job->done(job);
    }
    return NULL;
}

static int open_lane(struct store *store, struct lane *lane, char *error, size_t error_size)
{
    bool is_logs = lane->id == STORE_READ_LOGS || lane->id == STORE_WRITE_LOGS;
    int flags = is_writer(lane) ? store_db_flags(store) : DB_OPEN_READONLY;
    int err = db_open(store->paths[is_logs ? STORE_LOGS : STORE_MAIN], flags, &lane->db, error,
                      error_size);
    // Log rows hold numbers of keys and upstreams; their readers see main.db as `state`.
    if (err == 0 && lane->id == STORE_READ_LOGS) {
        struct db_value args[] = {DB_TEXT_VALUE(slice_str(store->paths[STORE_MAIN]))};
        err = db_run(lane->db, SLICE_LIT("ATTACH DATABASE ? AS state"), args, 1, NULL, 0, NULL);
        if (err)
            snprintf(error, error_size, "%s: %s", store->paths[STORE_MAIN], db_error(lane->db));
    }
    return err;
}

int store_start_lanes(struct store *store, char *error, size_t error_size)
{
    for (int i = 0; i < STORE_LANES; i++) {
        struct lane *lane = &store->lanes[i];
        pthread_condattr_t attributes;
        lane->store = store;
        lane->id = (enum store_lane)i;
        if (store->is_readonly && is_writer(lane))
            continue;
        int err = open_lane(store, lane, error, error_size);
        if (err)
            return err;
        pthread_condattr_init(&attributes);
        pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
        pthread_cond_init(&lane->wake, &attributes);
        pthread_condattr_destroy(&attributes);
        pthread_mutex_init(&lane->mutex, NULL);
        if (pthread_create(&lane->thread, NULL, lane_run, lane) != 0) {
            pthread_cond_destroy(&lane->wake);
            pthread_mutex_destroy(&lane->mutex);
            snprintf(error, error_size, "cannot start a thread");
            return GW_ENOMEM;
        }
        lane->is_started = true;
    }
    return 0;
}

void store_stop_lanes(struct store *store)
{
    for (int i = 0; i < STORE_LANES; i++) {
        struct lane *lane = &store->lanes[i];
        if (lane->is_started) {
            pthread_mutex_lock(&lane->mutex);
            lane->is_stopping = true;
            pthread_cond_signal(&lane->wake);
            pthread_mutex_unlock(&lane->mutex);
            pthread_join(lane->thread, NULL);
            pthread_cond_destroy(&lane->wake);
            pthread_mutex_destroy(&lane->mutex);
            lane->is_started = false;
        }
        db_close(lane->db);
        lane->db = NULL;
    }
}
