// mpsc, epoch, pool under real threads; meant to run under the thread sanitizer too. Nothing sleeps
// to make something likely: each test counts until what it checks has happened.
#include "base/epoch.h"
#include "base/mpsc.h"
#include "base/pool.h"
#include <check.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdlib.h>

// ---- mpsc

struct message {
    struct mpsc_node node;
    int producer, number;
};

START_TEST(mpsc_alone)
{
    struct mpsc queue;
    struct message messages[3];
    mpsc_init(&queue);
    ck_assert_ptr_null(mpsc_pop(&queue));
    for (int round = 0; round < 4; round++) {
        // A consumer that goes to sleep is woken once, by the first push.
        if (round > 0)
            ck_assert(mpsc_sleep(&queue));
        for (int i = 0; i < 3; i++) {
            messages[i].number = i;
            ck_assert(mpsc_push(&queue, &messages[i].node) == (i == 0));
        }
        ck_assert(!mpsc_sleep(&queue));
        for (int i = 0; i < 3; i++) {
            ck_assert(!mpsc_sleep(&queue));
            ck_assert_ptr_eq(mpsc_pop(&queue), &messages[i].node);
        }
        ck_assert_ptr_null(mpsc_pop(&queue));
    }
}
END_TEST

START_TEST(mpsc_half_done_push)
{
    // What a producer does, stopped between its two steps.
    struct mpsc queue;
    struct message first, second;
    mpsc_init(&queue);
    struct mpsc_node *prev;
    atomic_store(&first.node.next, NULL);
    prev = atomic_exchange(&queue.head, &first.node);
    ck_assert_ptr_null(mpsc_pop(&queue));
    ck_assert(mpsc_sleep(&queue));
    // A later push wakes in vain: the consumer sleeps again and the first producer finds it idle.
    ck_assert(mpsc_push(&queue, &second.node));
    ck_assert_ptr_null(mpsc_pop(&queue));
    ck_assert(mpsc_sleep(&queue));
    atomic_store(&prev->next, &first.node);
    ck_assert(atomic_load(&queue.is_idle));
    ck_assert(!mpsc_sleep(&queue));
    ck_assert_ptr_eq(mpsc_pop(&queue), &first.node);
    ck_assert_ptr_eq(mpsc_pop(&queue), &second.node);
    ck_assert_ptr_null(mpsc_pop(&queue));
}
END_TEST

enum { PRODUCERS = 4, MESSAGES = 20000, BURST = 4 };
static struct mpsc shared_queue;
static sem_t queue_wake, permits; // a permit lets one producer push a burst

static void *produce(void *arg)
{
    struct message *messages = arg;
    for (int i = 0; i < MESSAGES; i++) {
        if (i % BURST == 0)
            sem_wait(&permits);
        if (mpsc_push(&shared_queue, &messages[i].node))
            sem_post(&queue_wake);
    }
    return NULL;
}

static void permit_bursts(void)
{
    for (int p = 0; p < PRODUCERS; p++)
        sem_post(&permits);
}

START_TEST(mpsc_many_producers)
{
    // Each time the consumer runs dry it lets every producer push one burst: in turn just before
    // mpsc_sleep, so that they race with it, and just after. A lost wake-up would leave the
    // consumer in sem_wait for good: the test would time out.
    static struct message messages[PRODUCERS][MESSAGES];
    pthread_t threads[PRODUCERS];
    int next[PRODUCERS] = {0}, received = 0, slept = 0;
    bool is_racing = false;
    mpsc_init(&shared_queue);
    ck_assert_int_eq(sem_init(&queue_wake, 0, 0), 0);
    ck_assert_int_eq(sem_init(&permits, 0, 0), 0);
    for (int p = 0; p < PRODUCERS; p++) {
        for (int i = 0; i < MESSAGES; i++) {
            messages[p][i].producer = p;
            messages[p][i].number = i;
        }
        ck_assert_int_eq(pthread_create(&threads[p], NULL, produce, messages[p]), 0);
    }
    while (received < PRODUCERS * MESSAGES) {
        struct mpsc_node *node;
        while ((node = mpsc_pop(&shared_queue)) != NULL) {
            struct message *message = (struct message *)node;
            ck_assert_int_eq(message->number, next[message->producer]);
            next[message->producer]++;
            received++;
        }
        if (received == PRODUCERS * MESSAGES)
            break;
        bool was_racing = is_racing;
        if (was_racing) {
            permit_bursts();
            is_racing = false;
        }
        if (!mpsc_sleep(&shared_queue))
            continue;
        if (!was_racing) {
            permit_bursts();
            is_racing = true;
        }
        slept++;
        while (sem_wait(&queue_wake) != 0)
            continue;
    }
    for (int p = 0; p < PRODUCERS; p++)
        pthread_join(threads[p], NULL);
    ck_assert_ptr_null(mpsc_pop(&shared_queue));
    // Every second round of permits is given asleep.
    ck_assert_int_ge(slept, MESSAGES / BURST / 2);
    sem_destroy(&queue_wake);
    sem_destroy(&permits);
}
END_TEST

// ---- epoch

static int freed;
static void count_free(void *object)
{
    free(object);
    freed++;
}

START_TEST(epoch_alone)
{
    struct epoch *epoch = epoch_new(2);
    freed = 0;
    struct epoch_reader *a = epoch_register(epoch), *b = epoch_register(epoch);
    ck_assert(a && b && a != b);
    ck_assert_ptr_null(epoch_register(epoch));
    // Nobody inside: freed at once.
    ck_assert_int_eq(epoch_retire(epoch, malloc(8), count_free), 0);
    ck_assert_uint_eq(epoch_reclaim(epoch), 0);
    ck_assert_int_eq(freed, 1);
    // Nested turns end with the outermost leave.
    epoch_enter(a);
    epoch_enter(a);
    ck_assert_int_eq(epoch_retire(epoch, malloc(8), count_free), 0);
    ck_assert_uint_eq(epoch_reclaim(epoch), 1);
    epoch_leave(a);
    ck_assert_uint_eq(epoch_reclaim(epoch), 1);
    // A reader that entered later does not hold it back, one that entered before does.
    epoch_enter(b);
    ck_assert_int_eq(epoch_retire(epoch, malloc(8), count_free), 0);
    epoch_leave(a);
    ck_assert_uint_eq(epoch_reclaim(epoch), 1);
    ck_assert_int_eq(freed, 2);
    epoch_enter(a);
    ck_assert_int_eq(epoch_synchronize(epoch, 2), GW_ETIMEOUT);
    epoch_leave(b);
    ck_assert_uint_eq(epoch_reclaim(epoch), 0);
    ck_assert_int_eq(freed, 3);
    epoch_leave(a);
    ck_assert_int_eq(epoch_synchronize(epoch, 1000), 0);
    epoch_unregister(a);
    ck_assert_ptr_eq(epoch_register(epoch), a);
    epoch_unregister(a);
    epoch_unregister(b);
    ck_assert_int_eq(epoch_retire(epoch, malloc(8), count_free), 0);
    epoch_destroy(epoch);
    ck_assert_int_eq(freed, 4);
    epoch_destroy(NULL);
}
END_TEST

struct chained {
    struct epoch *epoch;
    struct chained *child;
};

static void free_chained(void *object)
{
    struct chained *self = object;
    if (self->child)
        ck_assert_int_eq(epoch_retire(self->epoch, self->child, free_chained), 0);
    free(self);
    freed++;
}

START_TEST(epoch_free_retires)
{
    struct epoch *epoch = epoch_new(1);
    freed = 0;
    for (int round = 0; round < 2; round++) {
        struct chained *child = calloc(1, sizeof(*child)), *parent = calloc(1, sizeof(*parent));
        *parent = (struct chained){epoch, child};
        ck_assert_int_eq(epoch_retire(epoch, parent, free_chained), 0);
        if (round == 0) {
            epoch_reclaim(epoch);
            ck_assert_uint_eq(epoch_reclaim(epoch), 0);
            ck_assert_int_eq(freed, 2);
        }
    }
    epoch_destroy(epoch);
    ck_assert_int_eq(freed, 4);
}
END_TEST

enum { READERS = 3, SLOTS = 4, WRITERS = 2, SWAPS = 15000, RECLAIM_EVERY = 8, MAX_EXTRA = 500000 };
#define ALIVE UINT64_C(0xa11ce5eed)

struct entry {
    uint64_t magic;
    uint64_t value, inverse;
};

static _Atomic(struct entry *) entries[SLOTS];
static struct epoch *shared_epoch;
static atomic_int writers_left;
static atomic_ulong entries_freed, reads_done;
static atomic_int bad_reads;

static void free_entry(void *object)
{
    // Plain stores: a reader still inside is a race for TSan and wrong magic for everybody.
    struct entry *entry = object;
    entry->magic = 0;
    entry->inverse = 0;
    free(entry);
    atomic_fetch_add(&entries_freed, 1);
}

static struct entry *entry_new(uint64_t value)
{
    struct entry *entry = malloc(sizeof(*entry));
    if (!entry)
        abort();
    *entry = (struct entry){ALIVE, value, ~value};
    return entry;
}

static void *read_entries(void *arg)
{
    struct epoch_reader *reader = epoch_register(shared_epoch);
    unsigned turn = 0;
    (void)arg;
    if (!reader)
        abort();
    while (atomic_load(&writers_left) > 0) {
        struct entry *seen[SLOTS];
        epoch_enter(reader);
        for (int i = 0; i < SLOTS; i++)
            seen[i] = atomic_load_explicit(&entries[i], memory_order_acquire);
        if (turn % 3 == 0) {
            epoch_enter(reader);
            sched_yield();
            epoch_leave(reader);
        }
        for (int i = 0; i < SLOTS; i++) {
            if (seen[i]->magic != ALIVE || seen[i]->inverse != ~seen[i]->value)
                atomic_fetch_add(&bad_reads, 1);
        }
        epoch_leave(reader);
        atomic_fetch_add_explicit(&reads_done, 1, memory_order_relaxed);
        // Registrations come and go, as workers do.
        if (++turn % 64 == 0) {
            epoch_unregister(reader);
            reader = epoch_register(shared_epoch);
            if (!reader)
                abort();
        }
    }
    epoch_unregister(reader);
    return NULL;
}

static void *swap_entries(void *arg)
{
    uint64_t base = (uint64_t)(uintptr_t)arg << 32;
    int extra = 0;
    for (uint64_t n = 0; n < SWAPS; n++) {
        struct entry *old = atomic_exchange_explicit(&entries[n % SLOTS], entry_new(base + n),
                                                     memory_order_acq_rel);
        if (epoch_retire(shared_epoch, old, free_entry) != 0)
            abort();
        if (n % RECLAIM_EVERY == 0)
            epoch_reclaim(shared_epoch);
        // A reader preempted inside its turn rightly holds back all that follows, perhaps for
        // longer than all these swaps take. They go on until the test has seen both sides work.
        bool is_proven = atomic_load(&reads_done) >= 1000 && atomic_load(&entries_freed) > 0;
        if (n == SWAPS - 1 && !is_proven && extra++ < MAX_EXTRA) {
            n -= RECLAIM_EVERY;
            sched_yield();
        }
    }
    atomic_fetch_sub(&writers_left, 1);
    return NULL;
}

START_TEST(epoch_stress)
{
    pthread_t readers[READERS], writers[WRITERS];
    shared_epoch = epoch_new(READERS);
    atomic_store(&writers_left, WRITERS);
    for (int i = 0; i < SLOTS; i++)
        atomic_store(&entries[i], entry_new((uint64_t)i));
    for (int i = 0; i < READERS; i++)
        ck_assert_int_eq(pthread_create(&readers[i], NULL, read_entries, NULL), 0);
    for (int i = 0; i < WRITERS; i++)
        ck_assert_int_eq(
            pthread_create(&writers[i], NULL, swap_entries, (void *)(uintptr_t)(i + 1)), 0);
    for (int i = 0; i < WRITERS; i++)
        pthread_join(writers[i], NULL);
    // Reclamation went on while readers came and went, not only at the end.
    ck_assert_uint_gt(atomic_load(&entries_freed), 0);
    for (int i = 0; i < READERS; i++)
        pthread_join(readers[i], NULL);
    ck_assert_int_eq(atomic_load(&bad_reads), 0);
    ck_assert_int_eq(epoch_synchronize(shared_epoch, 1000), 0);
    ck_assert_uint_eq(epoch_reclaim(shared_epoch), 0);
    ck_assert_uint_ge(atomic_load(&entries_freed), (unsigned long)WRITERS * SWAPS);
    for (int i = 0; i < SLOTS; i++)
        free(atomic_load(&entries[i]));
    epoch_destroy(shared_epoch);
}
END_TEST

static sem_t is_inside, may_leave;
static atomic_bool has_left;

static void *stay_inside(void *arg)
{
    struct epoch_reader *reader = arg;
    epoch_enter(reader);
    sem_post(&is_inside);
    sem_wait(&may_leave);
    atomic_store(&has_left, true);
    epoch_leave(reader);
    return NULL;
}

START_TEST(epoch_synchronize_waits)
{
    struct epoch *epoch = epoch_new(1);
    pthread_t thread;
    sem_init(&is_inside, 0, 0);
    sem_init(&may_leave, 0, 0);
    ck_assert_int_eq(pthread_create(&thread, NULL, stay_inside, epoch_register(epoch)), 0);
    sem_wait(&is_inside);
    ck_assert_int_eq(epoch_synchronize(epoch, 3), GW_ETIMEOUT);
    sem_post(&may_leave);
    ck_assert_int_eq(epoch_synchronize(epoch, 20000), 0);
    ck_assert(atomic_load(&has_left));
    pthread_join(thread, NULL);
    epoch_destroy(epoch);
}
END_TEST

// ---- pool

struct job {
    struct pool_job job;
    struct pool *pool;
    int number;
};
static atomic_int ran, done_count;
static int order[8];
static sem_t job_started, job_may_end;

static void run_job(struct pool_job *job)
{
    (void)job;
    atomic_fetch_add(&ran, 1);
}
static void free_job(struct pool_job *job)
{
    atomic_fetch_add(&done_count, 1);
    free(job);
}
static void run_blocked(struct pool_job *job)
{
    (void)job;
    sem_post(&job_started);
    sem_wait(&job_may_end);
}
static void run_noting(struct pool_job *job)
{
    order[atomic_fetch_add(&ran, 1)] = ((struct job *)job)->number;
}

START_TEST(pool_runs_all)
{
    enum { COUNT = 5000 };
    struct pool *pool = pool_new("a name that is too long", 3, COUNT);
    ck_assert_ptr_nonnull(pool);
    atomic_store(&ran, 0);
    atomic_store(&done_count, 0);
    for (int i = 0; i < COUNT; i++) {
        struct pool_job *job = calloc(1, sizeof(*job));
        *job = (struct pool_job){run_job, free_job, NULL};
        ck_assert_int_eq(pool_submit(pool, job), 0);
    }
    // Destroying runs what is queued before it joins.
    pool_destroy(pool);
    ck_assert_int_eq(atomic_load(&ran), COUNT);
    ck_assert_int_eq(atomic_load(&done_count), COUNT);
    ck_assert_ptr_null(pool_new("none", 0, 1));
    pool_destroy(NULL);
}
END_TEST

START_TEST(pool_is_bounded_and_fifo)
{
    struct pool *pool = pool_new("pool", 1, 3);
    struct job blocked = {.job = {run_blocked, NULL, NULL}}, jobs[4];
    sem_init(&job_started, 0, 0);
    sem_init(&job_may_end, 0, 0);
    atomic_store(&ran, 0);
    ck_assert_int_eq(pool_submit(pool, &blocked.job), 0);
    sem_wait(&job_started);
    for (int i = 0; i < 4; i++) {
        jobs[i] = (struct job){.job = {run_noting, NULL, NULL}, .number = i};
        ck_assert_int_eq(pool_submit(pool, &jobs[i].job), i < 3 ? 0 : GW_EFULL);
    }
    sem_post(&job_may_end);
    pool_destroy(pool);
    ck_assert_int_eq(atomic_load(&ran), 3);
    for (int i = 0; i < 3; i++)
        ck_assert_int_eq(order[i], i);
}
END_TEST

static int late_err;
static void submit_late(struct pool_job *job)
{
    // Runs during pool_destroy at the latest; submits until the pool refuses.
    struct job *self = (struct job *)job;
    do {
        struct pool_job *more = calloc(1, sizeof(*more));
        *more = (struct pool_job){run_job, free_job, NULL};
        late_err = pool_submit(self->pool, more);
        if (late_err)
            free(more);
        sched_yield();
    } while (late_err == 0 || late_err == GW_EFULL);
}

START_TEST(pool_refuses_while_destroyed)
{
    struct job job = {.job = {submit_late, NULL, NULL}};
    job.pool = pool_new("pool", 2, 100);
    ck_assert_int_eq(pool_submit(job.pool, &job.job), 0);
    pool_destroy(job.pool);
    ck_assert_int_eq(late_err, GW_ECANCELLED);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("threads");
    TCase *tc = tcase_create("all");
    tcase_set_timeout(tc, 120);
    tcase_add_test(tc, mpsc_alone);
    tcase_add_test(tc, mpsc_half_done_push);
    tcase_add_test(tc, mpsc_many_producers);
    tcase_add_test(tc, epoch_alone);
    tcase_add_test(tc, epoch_free_retires);
    tcase_add_test(tc, epoch_stress);
    tcase_add_test(tc, epoch_synchronize_waits);
    tcase_add_test(tc, pool_runs_all);
    tcase_add_test(tc, pool_is_bounded_and_fifo);
    tcase_add_test(tc, pool_refuses_while_destroyed);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_set_fork_status(runner, CK_NOFORK);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
