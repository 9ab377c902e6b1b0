// Helper threads around one bounded list under a mutex: jobs are long compared with the lock.
#include "base/pool.h"
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>

#define MAX_THREADS 256

struct pool {
    pthread_mutex_t mutex;
    pthread_cond_t has_work;
    struct pool_job *first, **last;
    size_t queued, max_queued;
    bool is_stopping;
    size_t thread_count;
    pthread_t threads[];
};

static void *pool_main(void *arg)
{
    struct pool *pool = arg;
    pthread_mutex_lock(&pool->mutex);
    for (;;) {
        struct pool_job *job = pool->first;
        if (job) {
            pool->first = job->next;
            if (!pool->first)
                pool->last = &pool->first;
            pool->queued--;
            job->next = NULL;
            pthread_mutex_unlock(&pool->mutex);
            // run may not free the job, done may: nothing is read from it afterwards.
            void (*done)(struct pool_job *) = job->done;
            job->run(job);
            if (done)
                done(job);
            pthread_mutex_lock(&pool->mutex);
        } else if (pool->is_stopping) {
            break;
        } else {
            pthread_cond_wait(&pool->has_work, &pool->mutex);
        }
    }
    pthread_mutex_unlock(&pool->mutex);
    return NULL;
}

struct pool *pool_new(const char *name, size_t threads, size_t max_queued)
{
    if (threads == 0 || threads > MAX_THREADS)
        return NULL;
    struct pool *pool = calloc(1, sizeof(*pool) + threads * sizeof(pool->threads[0]));
    if (!pool)
        return NULL;
    pool->last = &pool->first;
    pool->max_queued = max_queued;
    if (pthread_mutex_init(&pool->mutex, NULL) != 0) {
        free(pool);
        return NULL;
    }
    if (pthread_cond_init(&pool->has_work, NULL) != 0) {
        pthread_mutex_destroy(&pool->mutex);
        free(pool);
        return NULL;
    }
    // Signals belong to the main thread.
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    for (; pool->thread_count < threads; pool->thread_count++) {
        pthread_t *thread = &pool->threads[pool->thread_count];
        char title[16];
        if (pthread_create(thread, NULL, pool_main, pool) != 0)
            break;
        snprintf(title, sizeof(title), "%.12s", name ? name : "pool");
        pthread_setname_np(*thread, title);
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (pool->thread_count < threads) {
        pool_destroy(pool);
        return NULL;
    }
    return pool;
}

void pool_destroy(struct pool *pool)
{
    if (!pool)
        return;
    pthread_mutex_lock(&pool->mutex);
    pool->is_stopping = true;
    pthread_cond_broadcast(&pool->has_work);
    pthread_mutex_unlock(&pool->mutex);
    for (size_t i = 0; i < pool->thread_count; i++)
        pthread_join(pool->threads[i], NULL);
    pthread_cond_destroy(&pool->has_work);
    pthread_mutex_destroy(&pool->mutex);
    free(pool);
}

int pool_submit(struct pool *pool, struct pool_job *job)
{
    int err = 0;
    pthread_mutex_lock(&pool->mutex);
    if (pool->is_stopping) {
        err = GW_ECANCELLED;
    } else if (pool->queued >= pool->max_queued) {
        err = GW_EFULL;
    } else {
        job->next = NULL;
        *pool->last = job;
        pool->last = &job->next;
        pool->queued++;
        pthread_cond_signal(&pool->has_work);
    }
    pthread_mutex_unlock(&pool->mutex);
    return err;
}
