#include "main/control_client.h"

#include <errno.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define ANSWER_BYTES (64u << 20)

static int open_socket(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof address.sun_path)
        return GW_EINVAL;
    memcpy(address.sun_path, path, strlen(path) + 1);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return GW_EIO;
    if (connect(fd, (struct sockaddr *)&address, sizeof address) != 0) {
        close(fd);
        return GW_ECONNECT;
    }
    return fd;
}

static int send_all(int fd, struct slice bytes)
{
    while (bytes.len > 0) {
        ssize_t sent = send(fd, bytes.ptr, bytes.len, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent <= 0)
            return GW_ERESET;
        bytes = slice_from(bytes, (size_t)sent);
    }
    return GW_OK;
}

static int read_all(int fd, struct buf *in)
{
    for (;;) {
        char *room = buf_room(in, 64u << 10);
        if (!room)
            return GW_ENOMEM;
        ssize_t got = recv(fd, room, 64u << 10, 0);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return GW_ERESET;
        if (got == 0)
            return GW_OK;
        buf_grew(in, (size_t)got);
    }
}

// "HTTP/1.1 200 …", head, body up to the connection's end: the gateway answers whole bodies.
static int parse_answer(struct slice in, int *status, struct buf *answer)
{
    unsigned long long code;
    long head_end = slice_find(in, SLICE_LIT("\r\n\r\n"));
    if (head_end < 0 || in.len < 12 || slice_to_u64(slice_of(in.ptr + 9, 3), 599, &code) != GW_OK)
        return GW_EPROTO;
    *status = (int)code;
    return buf_append(answer, slice_from(in, (size_t)head_end + 4));
}

int control_ask(const char *socket_path, const char *verb, struct slice body, int *status,
                struct buf *answer)
{
    int fd = open_socket(socket_path);
    if (fd < 0)
        return fd;
    struct buf out = BUF_INIT(0), in = BUF_INIT(ANSWER_BYTES);
    int err = buf_printf(&out,
                         "POST /control/v1/%s HTTP/1.1\r\nhost: control\r\nconnection: close\r\n"
                         "content-type: application/json\r\ncontent-length: %zu\r\n\r\n",
                         verb, body.len);
    if (!err)
        err = buf_append(&out, body);
    if (!err)
        err = send_all(fd, buf_slice(&out));
    if (!err)
        err = read_all(fd, &in);
    if (!err)
        err = parse_answer(buf_slice(&in), status, answer);
    close(fd);
    buf_wipe(&out);
    buf_wipe(&in);
    return err;
}
