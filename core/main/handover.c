#include "main/handover.h"

#include "base/slice.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define FDS_PER_MESSAGE 32
#define RECEIVE_MS 10000

static const char *const KINDS[] = {"public", "admin", "control", "lock", "predecessor"};
#define KIND_COUNT (sizeof KINDS / sizeof *KINDS)

int handover_pair(int *own, int *others)
{
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0)
        return GW_EIO;
    (void)fcntl(pair[0], F_SETFL, O_NONBLOCK);
    *own = pair[0];
    *others = pair[1];
    return GW_OK;
}

static int send_message(int channel, const char *text, size_t len, const int *fds, size_t count)
{
    union {
        char bytes[CMSG_SPACE(sizeof(int) * FDS_PER_MESSAGE)];
        struct cmsghdr align;
    } control;
    struct iovec piece = {(void *)(uintptr_t)text, len};
    struct msghdr message = {.msg_iov = &piece, .msg_iovlen = 1};
    if (count) {
        memset(&control, 0, sizeof control);
        message.msg_control = control.bytes;
        message.msg_controllen = CMSG_SPACE(sizeof(int) * count);
        struct cmsghdr *head = CMSG_FIRSTHDR(&message);
        head->cmsg_level = SOL_SOCKET;
        head->cmsg_type = SCM_RIGHTS;
        head->cmsg_len = CMSG_LEN(sizeof(int) * count);
        memcpy(CMSG_DATA(head), fds, sizeof(int) * count);
    }
    ssize_t sent;
    do
        sent = sendmsg(channel, &message, MSG_NOSIGNAL);
    while (sent < 0 && errno == EINTR);
    return sent == (ssize_t)len ? GW_OK : GW_ERESET;
}

int handover_tell(int channel, const char *text)
{
    return send_message(channel, text, strlen(text), NULL, 0);
}

// One line "kind name" for each descriptor of the message, in order.
int handover_send(int channel, const struct handover_item *items, size_t count)
{
    char text[FDS_PER_MESSAGE * (HANDOVER_NAME + 16)];
    int fds[FDS_PER_MESSAGE], err = GW_OK;
    for (size_t at = 0; at < count && !err;) {
        size_t len = 0, in_message = 0;
        for (; at < count && in_message < FDS_PER_MESSAGE; at++, in_message++) {
            len += (size_t)snprintf(text + len, sizeof text - len, "%s %s\n", KINDS[items[at].kind],
                                    items[at].name);
            fds[in_message] = items[at].fd;
        }
        err = send_message(channel, text, len, fds, in_message);
    }
    return err ? err : handover_tell(channel, "end");
}

// Reads one message; *fd_count descriptors come with it.
static int receive_message(int channel, char *text, size_t size, int *fds, size_t *fd_count)
{
    union {
        char bytes[CMSG_SPACE(sizeof(int) * FDS_PER_MESSAGE)];
        struct cmsghdr align;
    } control;
    struct iovec piece = {text, size - 1};
    struct msghdr message = {.msg_iov = &piece,
                             .msg_iovlen = 1,
                             .msg_control = control.bytes,
                             .msg_controllen = sizeof control.bytes};
    ssize_t got;
    *fd_count = 0;
    do
        got = recvmsg(channel, &message, MSG_CMSG_CLOEXEC);
    while (got < 0 && errno == EINTR);
    if (got < 0)
        return errno == EAGAIN || errno == EWOULDBLOCK ? GW_EAGAIN : GW_ERESET;
    for (struct cmsghdr *head = CMSG_FIRSTHDR(&message); head; head = CMSG_NXTHDR(&message, head)) {
        if (head->cmsg_level != SOL_SOCKET || head->cmsg_type != SCM_RIGHTS)
            continue;
        *fd_count = (head->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        memcpy(fds, CMSG_DATA(head), *fd_count * sizeof(int));
    }
    text[got] = '\0';
    if (got == 0)
        return GW_ERESET;
    return message.msg_flags & (MSG_TRUNC | MSG_CTRUNC) ? GW_EPROTO : GW_OK;
}

int handover_read(int channel, char *text, size_t size)
{
    int fds[FDS_PER_MESSAGE];
    size_t count;
    int err = receive_message(channel, text, size, fds, &count);
    while (count > 0)
        close(fds[--count]);
    return err;
}

static int add_items(char *text, const int *fds, size_t fd_count, struct handover_item *items,
                     size_t *count)
{
    size_t taken = 0;
    for (char *line = text, *end; *line && taken < fd_count; line = end) {
        end = line + strcspn(line, "\n");
        if (*end)
            *end++ = '\0';
        char *name = strchr(line, ' ');
        if (!name || strlen(name + 1) >= HANDOVER_NAME || *count == HANDOVER_ITEMS)
            return GW_EPROTO;
        *name++ = '\0';
        size_t kind = 0;
        while (kind < KIND_COUNT && strcmp(KINDS[kind], line) != 0)
            kind++;
        if (kind == KIND_COUNT) { // of a newer version
            close(fds[taken++]);
            continue;
        }
        struct handover_item *item = &items[(*count)++];
        item->kind = (enum handover_kind)kind;
        item->fd = fds[taken++];
        memcpy(item->name, name, strlen(name) + 1);
    }
    return taken == fd_count ? GW_OK : GW_EPROTO;
}

static int receive_all(int channel, struct handover_item *items, size_t *count)
{
    static char text[FDS_PER_MESSAGE * (HANDOVER_NAME + 16) + 1];
    for (;;) {
        int fds[FDS_PER_MESSAGE];
        size_t fd_count;
        struct pollfd ready = {.fd = channel, .events = POLLIN};
        int polled = poll(&ready, 1, RECEIVE_MS);
        if (polled < 0 && errno == EINTR)
            continue;
        if (polled <= 0)
            return GW_ETIMEOUT;
        int err = receive_message(channel, text, sizeof text, fds, &fd_count);
        if (err == GW_EAGAIN)
            continue;
        if (err)
            return err;
        if (strcmp(text, "end") == 0)
            return GW_OK;
        err = add_items(text, fds, fd_count, items, count);
        if (err)
            return err;
    }
}

int handover_receive(int channel, struct handover_item **items, size_t *count, char *error,
                     size_t error_size)
{
    *count = 0;
    *items = calloc(HANDOVER_ITEMS, sizeof **items);
    int err = *items ? receive_all(channel, *items, count) : GW_ENOMEM;
    if (!err)
        return GW_OK;
    while (*count > 0)
        close((*items)[--*count].fd);
    free(*items);
    *items = NULL;
    snprintf(error, error_size, "the running process did not hand over its sockets: %s",
             gw_err_name(err));
    return err;
}

int handover_inherited(void)
{
    const char *text = getenv(HANDOVER_ENV);
    unsigned long long fd;
    int type = 0;
    socklen_t len = sizeof type;
    bool is_number = text && slice_to_u64(slice_str(text), 1u << 20, &fd) == GW_OK;
    unsetenv(HANDOVER_ENV); // not for whom this one starts
    if (!is_number || getsockopt((int)fd, SOL_SOCKET, SO_TYPE, &type, &len) != 0 ||
        type != SOCK_SEQPACKET)
        return -1;
    (void)fcntl((int)fd, F_SETFD, FD_CLOEXEC);
    (void)fcntl((int)fd, F_SETFL, O_NONBLOCK);
    return (int)fd;
}
