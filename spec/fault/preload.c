// LD_PRELOAD: a worker thread (named worker-*) that has entered its event loop may not open or read
// files, resolve names, run SQL, hash passwords or sleep. What it does is told on stderr with a
// backtrace, and the process aborts. Start-up is exempt: a thread is armed by its first epoll_wait,
// and free again when its name is another.
//
// MOONGATE_GUARD=report only tells. A thread's name is read once per wait, not per call.
#include <dlfcn.h>
#include <execinfo.h>
#include <fcntl.h>
#include <netdb.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static __thread enum { UNKNOWN, FREE, ARMED } state;
static __thread bool is_inside; // our own calls

static void *real(const char *name)
{
    void *function = dlsym(RTLD_NEXT, name);
    if (!function) {
        dprintf(2, "guard: %s is not there\n", name);
        _exit(99);
    }
    return function;
}

#define REAL(name)                                                                                 \
    static __typeof__(name) *original;                                                             \
    if (!original)                                                                                 \
    original = (__typeof__(name) *)real(#name)

static void arm(void)
{
    char name[17] = "";
    if (state != UNKNOWN)
        return;
    prctl(PR_GET_NAME, name);
    if (strncmp(name, "worker", 6) != 0)
        return; // may get its name later
    state = ARMED;
    void *warm[1];
    (void)backtrace(warm, 1); // loads libgcc now, not while it tells of a fault
}

static void forbid(const char *what, const char *detail)
{
    void *frames[48];
    char name[17] = "";
    if (state != ARMED || is_inside)
        return;
    prctl(PR_GET_NAME, name);
    if (strncmp(name, "worker", 6) != 0) {
        state = FREE; // its loop has ended
        return;
    }
    is_inside = true;
    dprintf(2, "guard: thread %s must not wait: %s(%s)\n", name, what, detail ? detail : "");
    backtrace_symbols_fd(frames, backtrace(frames, 48), 2);
    const char *mode = getenv("MOONGATE_GUARD");
    if (!mode || strcmp(mode, "report") != 0) {
        signal(SIGABRT, SIG_DFL);
        abort();
    }
    is_inside = false;
}

static void forbid_path(const char *what, const char *path)
{
    static const char *const FREE_PATHS[] = {"/dev/", "/proc/", "/etc/localtime",
                                             "/usr/share/zoneinfo/"};
    if (state != ARMED)
        return;
    for (size_t i = 0; i < sizeof FREE_PATHS / sizeof *FREE_PATHS; i++) {
        if (path && strncmp(path, FREE_PATHS[i], strlen(FREE_PATHS[i])) == 0)
            return;
    }
    forbid(what, path);
}

static void forbid_file(const char *what, int fd)
{
    struct stat info;
    char detail[32];
    if (state != ARMED || fstat(fd, &info) != 0 || !S_ISREG(info.st_mode))
        return;
    snprintf(detail, sizeof detail, "descriptor %d", fd);
    forbid(what, detail);
}

// --- arming

int epoll_wait(int fd, struct epoll_event *events, int count, int timeout)
{
    REAL(epoll_wait);
    arm();
    return original(fd, events, count, timeout);
}

int epoll_pwait(int fd, struct epoll_event *events, int count, int timeout, const sigset_t *set)
{
    REAL(epoll_pwait);
    arm();
    return original(fd, events, count, timeout, set);
}

// --- files

static mode_t mode_of(int flags, va_list args)
{
    return flags & (O_CREAT | O_TMPFILE) ? (mode_t)va_arg(args, unsigned) : 0;
}

#define OPEN(name)                                                                                 \
    int name(const char *path, int flags, ...)                                                     \
    {                                                                                              \
        REAL(name);                                                                                \
        va_list args;                                                                              \
        va_start(args, flags);                                                                     \
        mode_t mode = mode_of(flags, args);                                                        \
        va_end(args);                                                                              \
        forbid_path(#name, path);                                                                  \
        return original(path, flags, mode);                                                        \
    }
#define OPENAT(name)                                                                               \
    int name(int dir, const char *path, int flags, ...)                                            \
    {                                                                                              \
        REAL(name);                                                                                \
        va_list args;                                                                              \
        va_start(args, flags);                                                                     \
        mode_t mode = mode_of(flags, args);                                                        \
        va_end(args);                                                                              \
        forbid_path(#name, path);                                                                  \
        return original(dir, path, flags, mode);                                                   \
    }
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)

FILE *fopen(const char *path, const char *mode)
{
    REAL(fopen);
    forbid_path("fopen", path);
    return original(path, mode);
}

FILE *fopen64(const char *path, const char *mode)
{
    REAL(fopen64);
    forbid_path("fopen64", path);
    return original(path, mode);
}

ssize_t read(int fd, void *bytes, size_t count)
{
    REAL(read);
    forbid_file("read", fd);
    return original(fd, bytes, count);
}

ssize_t write(int fd, const void *bytes, size_t count)
{
    REAL(write);
    forbid_file("write", fd);
    return original(fd, bytes, count);
}

ssize_t writev(int fd, const struct iovec *pieces, int count)
{
    REAL(writev);
    forbid_file("writev", fd);
    return original(fd, pieces, count);
}

#define POSITIONED(name, pointer, offset)                                                          \
    ssize_t name(int fd, pointer bytes, size_t count, offset at)                                   \
    {                                                                                              \
        REAL(name);                                                                                \
        forbid_file(#name, fd);                                                                    \
        return original(fd, bytes, count, at);                                                     \
    }
POSITIONED(pread, void *, off_t)
POSITIONED(pread64, void *, off64_t)
POSITIONED(pwrite, const void *, off_t)
POSITIONED(pwrite64, const void *, off64_t)

int fsync(int fd)
{
    REAL(fsync);
    forbid("fsync", "");
    return original(fd);
}

int fdatasync(int fd)
{
    REAL(fdatasync);
    forbid("fdatasync", "");
    return original(fd);
}

// --- names

int getaddrinfo(const char *restrict node, const char *restrict service,
                const struct addrinfo *restrict hints, struct addrinfo **restrict out)
{
    REAL(getaddrinfo);
    bool is_numeric = hints && hints->ai_flags & AI_NUMERICHOST; // parses, asks nobody
    if (!is_numeric)
        forbid("getaddrinfo", node);
    return original(node, service, hints, out);
}

int getnameinfo(const struct sockaddr *restrict address, socklen_t len, char *restrict host,
                socklen_t host_len, char *restrict service, socklen_t service_len, int flags)
{
    REAL(getnameinfo);
    if (!(flags & NI_NUMERICHOST))
        forbid("getnameinfo", "");
    return original(address, len, host, host_len, service, service_len, flags);
}

// --- databases and hashes; declared here, so that the shim needs none of their headers

int sqlite3_step(void *statement);
int sqlite3_step(void *statement)
{
    REAL(sqlite3_step);
    forbid("sqlite3_step", "");
    return original(statement);
}

int sqlite3_prepare_v2(void *db, const char *sql, int len, void **out, const char **tail);
int sqlite3_prepare_v2(void *db, const char *sql, int len, void **out, const char **tail)
{
    REAL(sqlite3_prepare_v2);
    forbid("sqlite3_prepare_v2", sql);
    return original(db, sql, len, out, tail);
}

int sqlite3_prepare_v3(void *db, const char *sql, int len, unsigned flags, void **out,
                       const char **tail);
int sqlite3_prepare_v3(void *db, const char *sql, int len, unsigned flags, void **out,
                       const char **tail)
{
    REAL(sqlite3_prepare_v3);
    forbid("sqlite3_prepare_v3", sql);
    return original(db, sql, len, flags, out, tail);
}

int EVP_PBE_scrypt(const char *pass, size_t pass_len, const unsigned char *salt, size_t salt_len,
                   uint64_t n, uint64_t r, uint64_t p, uint64_t max, unsigned char *key,
                   size_t key_len);
int EVP_PBE_scrypt(const char *pass, size_t pass_len, const unsigned char *salt, size_t salt_len,
                   uint64_t n, uint64_t r, uint64_t p, uint64_t max, unsigned char *key,
                   size_t key_len)
{
    REAL(EVP_PBE_scrypt);
    forbid("EVP_PBE_scrypt", "");
    return original(pass, pass_len, salt, salt_len, n, r, p, max, key, key_len);
}

int PKCS5_PBKDF2_HMAC(const char *pass, int pass_len, const unsigned char *salt, int salt_len,
                      int rounds, const void *digest, int key_len, unsigned char *out);
int PKCS5_PBKDF2_HMAC(const char *pass, int pass_len, const unsigned char *salt, int salt_len,
                      int rounds, const void *digest, int key_len, unsigned char *out)
{
    REAL(PKCS5_PBKDF2_HMAC);
    forbid("PKCS5_PBKDF2_HMAC", "");
    return original(pass, pass_len, salt, salt_len, rounds, digest, key_len, out);
}

// --- sleeps

unsigned sleep(unsigned seconds)
{
    REAL(sleep);
    forbid("sleep", "");
    return original(seconds);
}

int usleep(useconds_t us)
{
    REAL(usleep);
    forbid("usleep", "");
    return original(us);
}

int nanosleep(const struct timespec *time, struct timespec *rest)
{
    REAL(nanosleep);
    forbid("nanosleep", "");
    return original(time, rest);
}

int clock_nanosleep(clockid_t clock, int flags, const struct timespec *time, struct timespec *rest)
{
    REAL(clock_nanosleep);
    forbid("clock_nanosleep", "");
    return original(clock, flags, time, rest);
}
