// Listening sockets. A listener out of descriptors must neither spin (the socket stays readable)
// nor leave clients hanging: it gives up its reserve descriptor to accept and refuse what waits,
// then looks away for 100 ms.
#include "io/listener.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>
#include <uv.h>

#define ACCEPTS_PER_TURN 1024 // what waits in the kernel's queue is seen by no rule of ours
#define ACCEPTS_AT_CLOSE 65536
#define REFUSALS_PER_PAUSE 64
#define PAUSE_MS 100
#define BACKLOG 4096
#define UNSENT_BYTES (128 << 10)

struct listener {
    uv_poll_t poll;
    struct loop *loop;
    struct loop_timer pause;
    struct http1_server *server;
    int fd;
    int reserve_fd;
    uint32_t tag;
    bool is_unix;
};

static _Atomic uint64_t emfile_count;
static listener_accept_fn accept_one = accept4;

static void on_readable(uv_poll_t *poll, int status, int events);

uint64_t listener_emfile_count(void)
{
    return atomic_load_explicit(&emfile_count, memory_order_relaxed);
}

static int fail(char *error, size_t error_size, int err, const char *what, const char *where)
{
    snprintf(error, error_size, "%s %s: %s", what, where, strerror(errno));
    return err;
}

static int bind_one(const struct addrinfo *address, bool reuse_port, const char *where, int *out,
                    char *error, size_t error_size)
{
    int fd = socket(address->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return fail(error, error_size, GW_EIO, "cannot make a socket for", where);
    int on = 1, off = 0;
    (void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (address->ai_family == AF_INET6)
        (void)setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off);
    int err = 0;
    if (reuse_port && setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &on, sizeof on) != 0)
        err = fail(error, error_size, GW_EIO, "no SO_REUSEPORT for", where);
    else if (bind(fd, address->ai_addr, address->ai_addrlen) != 0)
        err =
            fail(error, error_size, errno == EADDRINUSE ? GW_EBUSY : GW_EIO, "cannot bind", where);
    else if (!reuse_port && listen(fd, BACKLOG) != 0) // else listener_open does
        err = fail(error, error_size, errno == EADDRINUSE ? GW_EBUSY : GW_EIO, "cannot listen on",
                   where);
    if (err)
        close(fd);
    else
        *out = fd;
    return err;
}

int listener_bind_tcp(const char *host, uint16_t port, bool reuse_port, int *fd,
                      uint16_t *bound_port, char *error, size_t error_size)
{
    char where[300], service[8];
    snprintf(where, sizeof where, "%s:%u", host, port);
    snprintf(service, sizeof service, "%u", port);
    struct addrinfo hints = {.ai_family = AF_UNSPEC,
                             .ai_socktype = SOCK_STREAM,
                             .ai_flags = AI_PASSIVE | AI_NUMERICSERV};
    struct addrinfo *addresses = NULL;
    int found = getaddrinfo(host, service, &hints, &addresses);
    if (found != 0) {
        snprintf(error, error_size, "cannot resolve %s: %s", host, gai_strerror(found));
        return GW_EDNS;
    }
    int err = GW_EDNS;
    for (struct addrinfo *one = addresses; one; one = one->ai_next) {
        err = bind_one(one, reuse_port, where, fd, error, error_size);
        if (err == 0 || err == GW_EBUSY)
            break;
    }
    freeaddrinfo(addresses);
    if (err)
        return err;
    struct sockaddr_storage name;
    socklen_t len = sizeof name;
    if (getsockname(*fd, (struct sockaddr *)&name, &len) != 0) {
        err = fail(error, error_size, GW_EIO, "cannot read the port of", where);
        close(*fd);
        return err;
    }
    *bound_port = ntohs(name.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&name)->sin6_port
                                                   : ((struct sockaddr_in *)&name)->sin_port);
    return 0;
}

// A socket file nobody answers at is left over from a process that died.
static int clear_stale(const struct sockaddr_un *name, char *error, size_t error_size)
{
    struct stat info;
    if (lstat(name->sun_path, &info) != 0)
        return errno == ENOENT ? 0
                               : fail(error, error_size, GW_EIO, "cannot look at", name->sun_path);
    if (!S_ISSOCK(info.st_mode)) {
        snprintf(error, error_size, "%s exists and is no socket", name->sun_path);
        return GW_EEXISTS;
    }
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return fail(error, error_size, GW_EIO, "cannot make a socket for", name->sun_path);
    int connected = connect(fd, (const struct sockaddr *)name, sizeof *name);
    int reason = errno;
    close(fd);
    if (connected == 0 || reason != ECONNREFUSED) {
        snprintf(error, error_size, "%s is in use by another process", name->sun_path);
        return GW_EBUSY;
    }
    if (unlink(name->sun_path) != 0 && errno != ENOENT)
        return fail(error, error_size, GW_EIO, "cannot remove", name->sun_path);
    return 0;
}

int listener_bind_unix(const char *path, int *fd, char *error, size_t error_size)
{
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    size_t len = strlen(path);
    if (len == 0 || len >= sizeof name.sun_path) {
        snprintf(error, error_size, "socket path must have 1 to %zu bytes",
                 sizeof name.sun_path - 1);
        return GW_EINVAL;
    }
    memcpy(name.sun_path, path, len);
    int err = clear_stale(&name, error, error_size);
    if (err)
        return err;
    int sock = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (sock < 0)
        return fail(error, error_size, GW_EIO, "cannot make a socket for", path);
    // Until listen() nobody can connect, so the mode is in force from the first connection on.
    if (bind(sock, (struct sockaddr *)&name, sizeof name) != 0)
        err = fail(error, error_size, errno == EADDRINUSE ? GW_EBUSY : GW_EIO, "cannot bind", path);
    else if (chmod(path, 0600) != 0)
        err = fail(error, error_size, GW_EIO, "cannot set the mode of", path);
    else if (listen(sock, BACKLOG) != 0)
        err = fail(error, error_size, GW_EIO, "cannot listen on", path);
    if (err)
        close(sock);
    else
        *fd = sock;
    return err;
}

// A worker opens no files, not even /dev/null.
static int open_reserve(void)
{
    return eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
}

void listener_use_accept(listener_accept_fn accept)
{
    accept_one = accept ? accept : accept4;
}

static void format_peer(const struct sockaddr_storage *peer, char out[46])
{
    out[0] = '\0';
    if (peer->ss_family == AF_INET) {
        inet_ntop(AF_INET, &((const struct sockaddr_in *)peer)->sin_addr, out, 46);
    } else if (peer->ss_family == AF_INET6) {
        const struct in6_addr *six = &((const struct sockaddr_in6 *)peer)->sin6_addr;
        if (IN6_IS_ADDR_V4MAPPED(six))
            inet_ntop(AF_INET, six->s6_addr + 12, out, 46);
        else
            inet_ntop(AF_INET6, six, out, 46);
    }
}

static void on_pause_over(struct loop_timer *timer)
{
    struct listener *listener = list_entry(timer, struct listener, pause);
    if (listener->reserve_fd < 0)
        listener->reserve_fd = open_reserve();
    int err = uv_poll_start(&listener->poll, UV_READABLE, on_readable);
    if (gw_unexpected(err != 0))
        loop_timer_start(timer, PAUSE_MS);
}

// Refuses what waits, one at a time through the reserve descriptor.
static void refuse_waiting(struct listener *listener)
{
    for (int i = 0; i < REFUSALS_PER_PAUSE && listener->reserve_fd >= 0; i++) {
        close(listener->reserve_fd);
        int fd = accept_one(listener->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd >= 0) {
            atomic_fetch_add_explicit(&emfile_count, 1, memory_order_relaxed);
            http1_refuse_fd(listener->server, listener->tag, fd);
        }
        listener->reserve_fd = open_reserve();
        if (fd < 0)
            return;
    }
}

static void accept_some(struct listener *listener, int max)
{
    for (int i = 0; i < max; i++) {
        struct sockaddr_storage peer = {0};
        socklen_t len = sizeof peer;
        int fd =
            accept_one(listener->fd, (struct sockaddr *)&peer, &len, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd >= 0) {
            char peer_ip[46];
            format_peer(&peer, peer_ip);
            // A refusal is counted and answered there.
            (void)!http1_accept_fd(listener->server, fd, listener->is_unix, peer_ip, listener->tag);
            continue;
        }
        if (errno == EAGAIN || errno == EWOULDBLOCK)
            return;
        if (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS) {
            if (errno == EMFILE || errno == ENFILE)
                refuse_waiting(listener);
            uv_poll_stop(&listener->poll);
            loop_timer_start(&listener->pause, PAUSE_MS);
            return;
        }
        // All else (ECONNABORTED, EINTR, network errors of the new connection) concerns one peer.
    }
    loop_note_backlog(listener->loop);
}

static void on_readable(uv_poll_t *poll, int status, int events)
{
    struct listener *listener = poll->data;
    (void)events;
    if (status < 0) { // uv has stopped the poll
        loop_timer_start(&listener->pause, PAUSE_MS);
        return;
    }
    accept_some(listener, ACCEPTS_PER_TURN);
}

int listener_open(struct loop *loop, int fd, bool is_unix, uint32_t tag,
                  struct http1_server *server, struct listener **out)
{
    struct listener *listener = calloc(1, sizeof *listener);
    if (!listener || uv_poll_init(loop_uv(loop), &listener->poll, fd) != 0) {
        free(listener);
        close(fd);
        return GW_ENOMEM;
    }
    listener->poll.data = listener;
    listener->loop = loop;
    listener->server = server;
    listener->fd = fd;
    listener->reserve_fd = open_reserve();
    listener->tag = tag;
    listener->is_unix = is_unix;
    // What the kernel takes for a client ahead of what can be on its way; connections inherit it.
    // Without it a thousand slow readers fill all memory that the machine has for TCP.
    int unsent = UNSENT_BYTES;
    if (!is_unix)
        (void)setsockopt(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &unsent, sizeof unsent);
    loop_timer_init(loop, &listener->pause, on_pause_over);
    // Further sockets of a port listen only now: the kernel shares out connections from that
    // moment.
    if (listen(fd, BACKLOG) != 0 || uv_poll_start(&listener->poll, UV_READABLE, on_readable) != 0) {
        listener_leave(listener);
        return GW_EIO;
    }
    *out = listener;
    return 0;
}

static void free_listener(uv_handle_t *handle)
{
    free(handle->data);
}

void listener_close(struct listener *listener)
{
    // A connection the kernel has completed is a client that got through: serve it.
    if (listener)
        accept_some(listener, ACCEPTS_AT_CLOSE);
    listener_leave(listener);
}

void listener_leave(struct listener *listener)
{
    if (!listener)
        return;
    loop_timer_stop(&listener->pause);
    uv_close((uv_handle_t *)&listener->poll, free_listener);
    close(listener->fd);
    if (listener->reserve_fd >= 0)
        close(listener->reserve_fd);
}
