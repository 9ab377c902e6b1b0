// Log: callers format a line into memory of its own and push it onto a bounded lock-free queue; one
// thread hides secrets, gathers lines into large writes and alone waits for the descriptor. Without
// the thread (before log_start, after log_stop) the caller writes under the mutex.
#include "base/log.h"
#include "base/log_parts.h"
#include "base/mpsc.h"
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

// Lines gather so long, or until they are so many: a gateway that writes a few lines a second, or
// thousands, wakes this thread at most 50 times a second.
#define GATHER_NS 20000000L
#define HURRY_BYTES ((size_t)256 * 1024)
#define HURRY_LINES ((size_t)2048)
#define QUEUE_BYTES ((size_t)8 * 1024 * 1024)
#define QUEUE_LINES ((size_t)16384)
#define BATCH_BYTES ((size_t)256 * 1024)
#define PIPE_CHUNK ((size_t)4096) // what a writable pipe takes without blocking (PIPE_BUF)
#define STOP_MS 1000
#define POLL_MS 50

struct log_node {
    struct mpsc_node node;
    size_t len; // of the text behind
};

enum log_state { LOG_DIRECT, LOG_RUNNING, LOG_WEDGED };

enum sink_kind { SINK_OTHER, SINK_FILE, SINK_PIPE, SINK_SOCKET };

// Where lines go. Belongs to the log thread while it runs, else to the holder of the mutex.
struct sink {
    int fd;      // descriptor given to log_start, else 2
    int file_fd; // -1: none
    char *path;
    enum sink_kind kind; // what is written to now
    size_t pipe_size;
};

static struct {
    pthread_mutex_t mutex;
    pthread_cond_t ended_cond;
    pthread_t thread;
    enum log_state state; // under mutex
    bool has_ended;
    bool has_change; // log_to_file to be taken over by the log thread
    int change_fd;
    char *change_path;

    atomic_bool is_queued; // lines go to the queue
    atomic_int level;
    atomic_bool wants_reopen;
    _Atomic uint64_t stop_at_ms; // 0: not stopping
    _Atomic uint64_t dropped;
    atomic_size_t queued_bytes, queued_lines;
    struct mpsc queue;
    sem_t wake;
    sem_t hurry; // no more gathering
    struct sink sink;
} g = {
    .mutex = PTHREAD_MUTEX_INITIALIZER,
    .level = LOG_INFO,
    .sink = {.fd = STDERR_FILENO, .file_fd = -1},
};
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void init_once(void)
{
    pthread_condattr_t attr;
    mpsc_init(&g.queue);
    gw_require(sem_init(&g.wake, 0, 0) == 0);
    gw_require(sem_init(&g.hurry, 0, 0) == 0);
    gw_require(pthread_condattr_init(&attr) == 0);
    gw_require(pthread_condattr_setclock(&attr, CLOCK_MONOTONIC) == 0);
    gw_require(pthread_cond_init(&g.ended_cond, &attr) == 0);
    pthread_condattr_destroy(&attr);
}

// Real time even under a test's clock: it bounds waits for a descriptor.
static uint64_t monotonic_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

static bool is_past_stop(void)
{
    uint64_t stop_at = atomic_load(&g.stop_at_ms);
    return stop_at && monotonic_ms() >= stop_at;
}

// ---- the sink

static int sink_current(const struct sink *sink)
{
    return sink->file_fd >= 0 ? sink->file_fd : sink->fd;
}

static void sink_look(struct sink *sink)
{
    struct stat info;
    int fd = sink_current(sink), size = 0;
    sink->kind = SINK_OTHER;
    if (fstat(fd, &info) != 0)
        return;
    if (S_ISREG(info.st_mode))
        sink->kind = SINK_FILE;
    else if (S_ISSOCK(info.st_mode))
        sink->kind = SINK_SOCKET;
    else if (S_ISFIFO(info.st_mode) && (size = fcntl(fd, F_GETPIPE_SZ)) > 0)
        sink->kind = SINK_PIPE;
    sink->pipe_size = (size_t)size;
}

// What a descriptor that polls as writable takes without blocking. A pipe has room in pages, of
// which up to two may be filled in part.
static size_t room_of(const struct sink *sink, int fd)
{
    int queued = 0;
    if (sink->kind == SINK_SOCKET)
        return BATCH_BYTES; // is asked not to block
    if (sink->kind != SINK_PIPE || ioctl(fd, FIONREAD, &queued) != 0 || queued < 0)
        return PIPE_CHUNK;
    size_t used = queued ? ((size_t)queued / PIPE_CHUNK + 2) * PIPE_CHUNK : 0;
    return used + PIPE_CHUNK < sink->pipe_size ? sink->pipe_size - used : PIPE_CHUNK;
}

static int open_file(const char *path)
{
    return open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0640);
}

// Takes fd and path.
static void sink_use_file(struct sink *sink, int fd, char *path)
{
    if (sink->file_fd >= 0)
        close(sink->file_fd);
    free(sink->path);
    sink->file_fd = fd;
    sink->path = path;
    sink_look(sink);
}

// As many whole lines as fit: another process may write to the same pipe (the successor, while this
// one drains), and a line must not begin in one write and end in a later one. A line that does not
// fit is cut all the same.
static size_t whole_lines(const char *bytes, size_t room)
{
    const char *last = memrchr(bytes, '\n', room);
    return last ? (size_t)(last + 1 - bytes) : room;
}

// Writes all; gives what could not be written. Past the deadline of log_stop nothing is waited for.
static struct slice sink_write(struct sink *sink, struct slice bytes)
{
    int fd = sink_current(sink);
    while (bytes.len > 0) {
        size_t size = bytes.len;
        if (sink->kind != SINK_FILE) {
            struct pollfd ready = {.fd = fd, .events = POLLOUT};
            bool is_late = is_past_stop();
            int count = poll(&ready, 1, is_late ? 0 : POLL_MS);
            if (count < 0 && errno != EINTR)
                return bytes;
            if (count <= 0) {
                if (is_late)
                    return bytes;
                continue;
            }
            size_t room = room_of(sink, fd);
            if (size > room)
                size = whole_lines(bytes.ptr, room);
        }
        ssize_t done = sink->kind == SINK_SOCKET
                           ? send(fd, bytes.ptr, size, MSG_DONTWAIT | MSG_NOSIGNAL)
                           : write(fd, bytes.ptr, size);
        if (done < 0) {
            if (errno == EINTR || (errno == EAGAIN && !is_past_stop()))
                continue;
            return bytes;
        }
        bytes = slice_from(bytes, (size_t)done);
    }
    return bytes;
}

// ---- the log thread

struct batch {
    struct buf text;
};

static void batch_flush(struct batch *batch)
{
    struct slice rest = sink_write(&g.sink, buf_slice(&batch->text));
    // A line has one newline, its last byte: those left over are the lines lost, cut ones included.
    uint64_t lost = 0;
    for (size_t i = 0; i < rest.len; i++)
        lost += rest.ptr[i] == '\n';
    if (lost)
        atomic_fetch_add(&g.dropped, lost);
    if (batch->text.capacity > 4 * BATCH_BYTES)
        buf_free(&batch->text);
    else
        buf_clear(&batch->text);
}

static void batch_add(struct batch *batch, struct slice line)
{
    if (log_hide_in(line, &batch->text) != 0)
        atomic_fetch_add(&g.dropped, 1);
    if (batch->text.len >= BATCH_BYTES)
        batch_flush(batch);
}

static void batch_add_event(struct batch *batch, enum log_level level, const char *event,
                            const struct log_field *fields)
{
    struct buf line = BUF_INIT(0);
    if (log_format_event(&line, level, event, fields) == 0)
        batch_add(batch, buf_slice(&line));
    buf_free(&line);
}

// Carries out log_to_file and log_reopen. The caller owns the sink.
static void take_changes(struct batch *batch, bool has_mutex)
{
    if (!has_mutex)
        pthread_mutex_lock(&g.mutex);
    bool has_change = g.has_change;
    int fd = g.change_fd;
    char *path = g.change_path;
    g.has_change = false;
    g.change_path = NULL;
    if (!has_mutex)
        pthread_mutex_unlock(&g.mutex);
    if (has_change)
        sink_use_file(&g.sink, fd, path);
    if (!atomic_exchange(&g.wants_reopen, false) || !g.sink.path)
        return;
    fd = open_file(g.sink.path);
    if (fd < 0) {
        // The old file stays in use.
        const struct log_field fields[] = {LOG_STR("path", g.sink.path),
                                           LOG_INT("errno", errno),
                                           {LOG_KIND_END, NULL, SLICE_NONE, 0}};
        batch_add_event(batch, LOG_ERROR, "log_reopen_failed", fields);
        return;
    }
    close(g.sink.file_fd);
    g.sink.file_fd = fd;
    sink_look(&g.sink);
}

// Writes what is queued, but at most one queue full, so that changes and log_stop get their turn.
static void drain_queue(struct batch *batch)
{
    for (size_t i = 0; i < QUEUE_LINES; i++) {
        struct mpsc_node *node = mpsc_pop(&g.queue);
        if (!node)
            break;
        struct log_node *line = (struct log_node *)node;
        batch_add(batch, slice_of((const char *)(line + 1), line->len));
        atomic_fetch_sub(&g.queued_bytes, line->len);
        atomic_fetch_sub(&g.queued_lines, 1);
        free(line);
    }
    batch_flush(batch);
}

// Waits for more lines, unless somebody is in a hurry.
static void gather(void)
{
    struct timespec until;
    if (atomic_load(&g.stop_at_ms) != 0)
        return;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += GATHER_NS;
    if (until.tv_nsec >= 1000000000L) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000L;
    }
    (void)sem_clockwait(&g.hurry, CLOCK_MONOTONIC, &until);
    while (sem_trywait(&g.hurry) == 0)
        continue;
}

static void *log_main(void *arg)
{
    struct batch batch = {.text = BUF_INIT(0)};
    uint64_t told = atomic_load(&g.dropped);
    (void)arg;
    for (;;) {
        // Read before the drain: what was pushed before log_stop is then written.
        bool is_stopping = atomic_load(&g.stop_at_ms) != 0;
        take_changes(&batch, false);
        drain_queue(&batch);
        uint64_t dropped = atomic_load(&g.dropped);
        if (dropped != told && !is_past_stop()) {
            const struct log_field fields[] = {LOG_INT("count", dropped - told),
                                               {LOG_KIND_END, NULL, SLICE_NONE, 0}};
            batch_add_event(&batch, LOG_WARN, "log_dropped", fields);
            // A failure to write this very line is no news.
            (void)sink_write(&g.sink, buf_slice(&batch.text));
            buf_clear(&batch.text);
            told = dropped;
        }
        if (is_stopping)
            break;
        if (mpsc_sleep(&g.queue)) {
            while (sem_wait(&g.wake) != 0)
                continue;
            gather();
        }
    }
    buf_free(&batch.text);
    pthread_mutex_lock(&g.mutex);
    g.has_ended = true;
    pthread_cond_signal(&g.ended_cond);
    pthread_mutex_unlock(&g.mutex);
    return NULL;
}

int log_start(int fd, enum log_level level)
{
    pthread_once(&once, init_once);
    int err = 0;
    pthread_mutex_lock(&g.mutex);
    if (g.state != LOG_DIRECT) {
        err = GW_EBUSY;
        goto unlock;
    }
    g.sink.fd = fd;
    sink_look(&g.sink);
    g.has_ended = false;
    atomic_store(&g.stop_at_ms, 0);
    atomic_store(&g.level, (int)level);
    // Signals belong to the main thread, and a closed pipe is to be an error, not SIGPIPE.
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int failed = pthread_create(&g.thread, NULL, log_main, NULL);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (failed) {
        g.sink.fd = STDERR_FILENO;
        err = GW_ENOMEM;
        goto unlock;
    }
    pthread_setname_np(g.thread, "log");
    g.state = LOG_RUNNING;
    atomic_store(&g.is_queued, true);
unlock:
    pthread_mutex_unlock(&g.mutex);
    return err;
}

void log_stop(void)
{
    pthread_mutex_lock(&g.mutex);
    if (g.state != LOG_RUNNING || atomic_load(&g.stop_at_ms) != 0) {
        pthread_mutex_unlock(&g.mutex);
        return;
    }
    uint64_t stop_at = monotonic_ms() + STOP_MS;
    atomic_store(&g.stop_at_ms, stop_at);
    sem_post(&g.hurry);
    sem_post(&g.wake);
    // The thread polls, so it ends soon after its time; but a terminal or a disk may hold it in
    // write() for good. Then it is left behind, and lines go on into its queue until that is full.
    uint64_t give_up = stop_at + STOP_MS / 2;
    struct timespec until = {(time_t)(give_up / 1000), (long)(give_up % 1000) * 1000000};
    int waited = 0;
    while (!g.has_ended && waited == 0)
        waited = pthread_cond_timedwait(&g.ended_cond, &g.mutex, &until);
    if (!g.has_ended) {
        g.state = LOG_WEDGED;
        pthread_detach(g.thread);
        pthread_mutex_unlock(&g.mutex);
        return;
    }
    pthread_join(g.thread, NULL);
    atomic_store(&g.is_queued, false);
    // Lines pushed while the thread ended; past the deadline they are dropped, not waited for.
    struct batch batch = {.text = BUF_INIT(0)};
    take_changes(&batch, true);
    drain_queue(&batch);
    buf_free(&batch.text);
    g.sink.fd = STDERR_FILENO; // the given descriptor may be closed now and its number reused
    g.state = LOG_DIRECT;
    atomic_store(&g.stop_at_ms, 0);
    pthread_mutex_unlock(&g.mutex);
}

// ---- settings

void log_set_level(enum log_level level)
{
    atomic_store(&g.level, (int)level);
}

enum log_level log_level_get(void)
{
    return (enum log_level)atomic_load_explicit(&g.level, memory_order_relaxed);
}

bool log_is_on(enum log_level level)
{
    return (int)level >= atomic_load_explicit(&g.level, memory_order_relaxed);
}

uint64_t log_dropped(void)
{
    return atomic_load(&g.dropped);
}

int log_to_file(const char *path)
{
    int fd = -1;
    char *copy = NULL;
    pthread_once(&once, init_once);
    if (path) {
        copy = strdup(path);
        if (!copy)
            return GW_ENOMEM;
        fd = open_file(path);
        if (fd < 0) {
            free(copy);
            return GW_EIO;
        }
    }
    pthread_mutex_lock(&g.mutex);
    if (g.state == LOG_DIRECT) {
        sink_use_file(&g.sink, fd, copy);
    } else {
        if (g.has_change) {
            if (g.change_fd >= 0)
                close(g.change_fd);
            free(g.change_path);
        }
        g.has_change = true;
        g.change_fd = fd;
        g.change_path = copy;
        sem_post(&g.wake);
    }
    pthread_mutex_unlock(&g.mutex);
    return 0;
}

void log_reopen(void)
{
    int saved = errno;
    atomic_store(&g.wants_reopen, true);
    if (atomic_load(&g.is_queued))
        sem_post(&g.wake);
    errno = saved;
}

// ---- callers

// Writes on the caller's thread, without letting a closed pipe raise SIGPIPE in it. False when the
// log thread has been started meanwhile.
static bool write_direct(struct slice line)
{
    struct batch batch = {.text = BUF_INIT(0)};
    sigset_t pipe_only, before, pending;
    pthread_once(&once, init_once);
    pthread_mutex_lock(&g.mutex);
    bool is_direct = g.state == LOG_DIRECT;
    if (is_direct) {
        sigemptyset(&pipe_only);
        sigaddset(&pipe_only, SIGPIPE);
        pthread_sigmask(SIG_BLOCK, &pipe_only, &before);
        sigpending(&pending);
        bool was_pending = sigismember(&pending, SIGPIPE) == 1;
        take_changes(&batch, true);
        sink_look(&g.sink);
        // A caller that was overtaken by log_stop may have left lines here.
        drain_queue(&batch);
        batch_add(&batch, line);
        batch_flush(&batch);
        if (!was_pending)
            sigtimedwait(&pipe_only, NULL, &(struct timespec){0, 0});
        pthread_sigmask(SIG_SETMASK, &before, NULL);
    }
    pthread_mutex_unlock(&g.mutex);
    buf_free(&batch.text);
    return is_direct;
}

// Counts a line in, unless the queue is full.
static bool take_place(size_t len)
{
    size_t lines = atomic_fetch_add(&g.queued_lines, 1), bytes = 0;
    bool has_lines = lines < QUEUE_LINES;
    if (has_lines && (bytes = atomic_fetch_add(&g.queued_bytes, len)) + len <= QUEUE_BYTES) {
        if (lines == HURRY_LINES || (bytes < HURRY_BYTES && bytes + len >= HURRY_BYTES))
            sem_post(&g.hurry);
        return true;
    }
    if (has_lines)
        atomic_fetch_sub(&g.queued_bytes, len);
    atomic_fetch_sub(&g.queued_lines, 1);
    return false;
}

// line holds a log_node and its text. Takes the memory.
static void submit(struct buf *line, int err)
{
    size_t len = err ? 0 : line->len - sizeof(struct log_node);
    bool is_queued = atomic_load_explicit(&g.is_queued, memory_order_acquire);
    if (err) {
        atomic_fetch_add(&g.dropped, 1);
    } else if (!is_queued && write_direct(slice_of(line->mem + sizeof(struct log_node), len))) {
        // Written.
    } else if (!take_place(len)) {
        atomic_fetch_add(&g.dropped, 1);
    } else {
        struct log_node *node = (struct log_node *)(void *)line->mem;
        node->len = len;
        if (mpsc_push(&g.queue, &node->node))
            sem_post(&g.wake);
        return;
    }
    buf_free(line);
}

// Makes room for the node and a text of about size bytes, so that a line is one allocation.
static int begin(struct buf *line, size_t size)
{
    buf_init(line, 0);
    if (!buf_room(line, sizeof(struct log_node) + size))
        return GW_ENOMEM;
    buf_grew(line, sizeof(struct log_node));
    return 0;
}

void log_write(enum log_level level, const char *event, const struct log_field *fields)
{
    if (!log_is_on(level))
        return;
    struct buf line;
    int err = begin(&line, 480);
    if (!err)
        err = log_format_event(&line, level, event, fields);
    submit(&line, err);
}

void log_line(struct slice json)
{
    struct buf line;
    int err = json.len > LOG_LINE_MAX ? GW_ETOOBIG : 0;
    if (err)
        buf_init(&line, 0);
    else
        err = begin(&line, json.len + 1);
    if (!err)
        err = log_format_line(&line, json);
    submit(&line, err);
}
