#include "main/sockets.h"

#include "io/listener.h"
#include "main/notify.h"
#include "main/process.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static int fail(char *error, size_t size, int err, const char *what)
{
    if (!error[0])
        snprintf(error, size, "%s: %s", what, gw_err_name(err));
    return err;
}

static struct process_socket *add(struct process *process, enum handover_kind kind,
                                  const char *name, int fd)
{
    struct process_socket *socket = &process->sockets[process->socket_count++];
    *socket = (struct process_socket){.kind = kind, .fd = fd, .is_ours = true};
    snprintf(socket->name, sizeof socket->name, "%s", name);
    return socket;
}

static uint32_t count_kind(const struct process *process, enum handover_kind kind)
{
    uint32_t count = 0;
    for (size_t i = 0; i < process->socket_count; i++)
        count += process->sockets[i].kind == kind;
    return count;
}

static int family_of(int fd)
{
    int family = 0;
    socklen_t len = sizeof family;
    return getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &family, &len) == 0 ? family : 0;
}

static bool is_listening(int fd)
{
    int type = 0, is_so = 0;
    socklen_t len = sizeof type;
    if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &len) != 0 || type != SOCK_STREAM)
        return false;
    len = sizeof is_so;
    return getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &is_so, &len) == 0 && is_so;
}

static uint16_t port_of(int fd)
{
    struct sockaddr_storage name;
    socklen_t len = sizeof name;
    if (getsockname(fd, (struct sockaddr *)&name, &len) != 0)
        return 0;
    if (name.ss_family == AF_INET6)
        return ntohs(((struct sockaddr_in6 *)&name)->sin6_port);
    return name.ss_family == AF_INET ? ntohs(((struct sockaddr_in *)&name)->sin_port) : 0;
}

// "host:port" means the same socket when the host is the same and the port is, or was chosen.
static bool is_same(const struct handover_item *item, const char *name)
{
    const char *colon = strrchr(name, ':'), *other = strrchr(item->name, ':');
    char port[16];
    if (strcmp(item->name, name) == 0)
        return true;
    if (item->kind == HANDOVER_CONTROL || !colon || !other || colon - name != other - item->name ||
        memcmp(name, item->name, (size_t)(colon - name)) != 0)
        return false;
    snprintf(port, sizeof port, "%u", port_of(item->fd));
    return strcmp(colon + 1, port) == 0;
}

static void adopt(struct process *process, enum handover_kind kind, const char *name)
{
    for (size_t i = 0; i < process->handed_count; i++) {
        struct handover_item *item = &process->handed[i];
        if (item->kind == kind && item->fd >= 0 && is_listening(item->fd) && is_same(item, name)) {
            // The path is the predecessor's until this process says that it serves.
            struct process_socket *socket = add(process, kind, name, item->fd);
            socket->is_ours = false;
            socket->is_given = item->is_given;
            item->is_used = true;
            item->fd = -1;
        }
    }
}

// What a service manager has bound: a unix socket is the control socket, the admin listener is
// known by its port, all else is public. Their addresses are the manager's business.
static void adopt_listen_fds(struct process *process, const char *public, const char *admin,
                             const char *control)
{
    int count = notify_listen_fds();
    const char *colon = strrchr(admin, ':');
    for (int fd = NOTIFY_FIRST_FD; fd < NOTIFY_FIRST_FD + count; fd++) {
        char port[16];
        snprintf(port, sizeof port, "%u", port_of(fd));
        if (!is_listening(fd) || process->socket_count >= PROCESS_MAX_GIVEN)
            close(fd);
        else if (family_of(fd) == AF_UNIX)
            add(process, HANDOVER_CONTROL, control, fd)->is_given = true;
        else if (colon && strcmp(colon + 1, port) == 0)
            (void)add(process, HANDOVER_ADMIN, admin, fd);
        else
            (void)add(process, HANDOVER_PUBLIC, public, fd);
    }
}

// Sockets with SO_REUSEPORT share a port with any other process of ours: one without it, bound for
// a moment, tells whether the port is free.
static int probe_port(const char *host, uint16_t port, char *error, size_t size)
{
    int fd;
    uint16_t bound;
    int err = port ? listener_bind_tcp(host, port, false, &fd, &bound, error, size) : GW_OK;
    if (!err && port)
        close(fd);
    return err;
}

static int open_public(struct process *process, const char *name, char *error, size_t size)
{
    char host[256];
    uint16_t port = (uint16_t)process->conf->port;
    int err = GW_OK;
    snprintf(host, sizeof host, "%.*s", SLICE_FMT(process->conf->host));
    uint32_t given = count_kind(process, HANDOVER_PUBLIC);
    if (given == 0)
        err = probe_port(host, port, error, size);
    for (size_t i = 0; i < process->socket_count && given > 0; i++) {
        if (process->sockets[i].kind == HANDOVER_PUBLIC && port_of(process->sockets[i].fd))
            port = port_of(process->sockets[i].fd);
    }
    for (uint32_t count = given; count < process->worker_count && !err; count++) {
        int fd = -1;
        err = listener_bind_tcp(host, port, true, &fd, &port, error, size);
        if (err && given > 0) {
            // Bound by somebody else or without SO_REUSEPORT: several workers listen on one.
            const struct process_socket *shared = process->sockets;
            for (uint32_t seen = 0; seen <= count % given; shared++)
                seen += shared->kind == HANDOVER_PUBLIC;
            fd = fcntl(shared[-1].fd, F_DUPFD_CLOEXEC, 0);
            err = fd < 0 ? GW_EFULL : GW_OK;
            error[0] = '\0';
        }
        if (!err)
            (void)add(process, HANDOVER_PUBLIC, name, fd);
    }
    if (err)
        return fail(error, size, err, "listen");
    process->port = port;
    return GW_OK;
}

static int open_admin(struct process *process, const char *name, char *error, size_t size)
{
    char host[256];
    for (size_t i = 0; i < process->socket_count; i++) {
        if (process->sockets[i].kind == HANDOVER_ADMIN)
            process->admin_port = port_of(process->sockets[i].fd);
    }
    if (!name[0] || count_kind(process, HANDOVER_ADMIN) > 0)
        return GW_OK;
    snprintf(host, sizeof host, "%s", name);
    char *colon = strrchr(host, ':');
    unsigned long long port = 0;
    if (!colon || slice_to_u64(slice_str(colon + 1), 65535, &port) != GW_OK) {
        snprintf(error, size, "ADMIN_LISTEN must be host:port");
        return GW_EINVAL;
    }
    *colon = '\0';
    int fd;
    int err =
        listener_bind_tcp(host, (uint16_t)port, false, &fd, &process->admin_port, error, size);
    if (err)
        return fail(error, size, err, "ADMIN_LISTEN");
    (void)add(process, HANDOVER_ADMIN, name, fd);
    return GW_OK;
}

static int open_control(struct process *process, const char *path, char *error, size_t size)
{
    int fd;
    if (!path[0] || count_kind(process, HANDOVER_CONTROL) > 0)
        return GW_OK;
    int err = listener_bind_unix(path, &fd, error, size);
    if (err)
        return fail(error, size, err, "control socket");
    (void)add(process, HANDOVER_CONTROL, path, fd);
    return GW_OK;
}

int sockets_open(struct process *process, char *error, size_t size)
{
    const struct conf *conf = process->conf;
    char public[HANDOVER_NAME], admin[256], control[HANDOVER_NAME];
    snprintf(public, sizeof public, "%.*s:%lld", (int)(conf->host.len > 255 ? 255 : conf->host.len),
             conf->host.ptr, (long long)conf->port);
    snprintf(admin, sizeof admin, "%.*s", SLICE_FMT(conf->admin_listen));
    snprintf(control, sizeof control, "%.*s", SLICE_FMT(conf->control_path));
    process->sockets = calloc(process->handed_count + PROCESS_MAX_GIVEN + process->worker_count + 2,
                              sizeof *process->sockets);
    if (!process->sockets)
        return fail(error, size, GW_ENOMEM, "listen");
    adopt(process, HANDOVER_PUBLIC, public);
    adopt(process, HANDOVER_ADMIN, admin);
    adopt(process, HANDOVER_CONTROL, control);
    if (process->socket_count == 0)
        adopt_listen_fds(process, public, admin, control);
    int err = open_public(process, public, error, size);
    if (!err)
        err = open_admin(process, admin, error, size);
    if (!err)
        err = open_control(process, control, error, size);
    uint32_t next = 0;
    for (size_t i = 0; i < process->socket_count; i++) {
        struct process_socket *socket = &process->sockets[i];
        socket->worker = socket->kind == HANDOVER_PUBLIC ? next++ % process->worker_count : 0;
    }
    return err;
}

void sockets_close(struct process *process)
{
    for (size_t i = 0; i < process->socket_count; i++) {
        struct process_socket *socket = &process->sockets[i];
        if (!socket->is_taken)
            close(socket->fd);
        if (socket->kind == HANDOVER_CONTROL && socket->is_ours && !socket->is_given &&
            !socket->is_handed)
            unlink(socket->name);
    }
    free(process->sockets);
    process->sockets = NULL;
    process->socket_count = 0;
}
