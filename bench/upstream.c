// bench_upstream PORT: answers model calls as fast as it can, one thread, keep-alive. A body with
// "stream":true gets 100 events of about 200 bytes, as one write ("burst" in the body) or one write
// per event; any other gets 1 KB of JSON. Only for measuring.
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define MAX_REQUEST (1u << 20)
#define EVENTS 100

struct conn {
    int fd;
    size_t len;
    char in[MAX_REQUEST];
};

static char unary[2048];
static size_t unary_len;
static char stream_parts[EVENTS + 2][512];
static char burst[EVENTS * 512];
static size_t burst_len;

static void make_answers(void)
{
    char content[1024], body[1500];
    memset(content, 'x', sizeof content);
    content[700] = '\0';
    snprintf(body, sizeof body,
             "{\"id\":\"chatcmpl-bench\",\"object\":\"chat.completion\",\"created\":1,\"model\":"
             "\"bench\",\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":"
             "\"%s\"},\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":100,"
             "\"completion_tokens\":200,\"total_tokens\":300}}",
             content);
    unary_len = (size_t)snprintf(unary, sizeof unary,
                                 "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
                                 "content-length: %zu\r\n\r\n%s",
                                 strlen(body), body);
    int part = 0;
    snprintf(stream_parts[part++], 512,
             "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
             "transfer-encoding: chunked\r\n\r\n");
    for (int i = 0; i < EVENTS; i++) {
        char event[400];
        snprintf(event, sizeof event,
                 "data: {\"id\":\"chatcmpl-bench\",\"object\":\"chat.completion.chunk\","
                 "\"created\":1,\"model\":\"bench\",\"choices\":[{\"index\":0,\"delta\":"
                 "{\"content\":\"%04d some words of the answer, as models send them\"},"
                 "\"finish_reason\":null}]}\n\n",
                 i);
        if (i == EVENTS - 1)
            snprintf(event, sizeof event,
                     "data: {\"id\":\"chatcmpl-bench\",\"object\":\"chat.completion.chunk\","
                     "\"created\":1,\"model\":\"bench\",\"choices\":[{\"index\":0,\"delta\":{},"
                     "\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n");
        snprintf(stream_parts[part++], 512, "%zx\r\n%s\r\n", strlen(event), event);
    }
    snprintf(stream_parts[part++], 512, "0\r\n\r\n");
    for (int i = 0; i < part; i++) {
        memcpy(burst + burst_len, stream_parts[i], strlen(stream_parts[i]));
        burst_len += strlen(stream_parts[i]);
    }
}

static void send_all(int fd, const char *bytes, size_t len)
{
    while (len > 0) {
        ssize_t sent = send(fd, bytes, len, MSG_NOSIGNAL);
        if (sent < 0 && (errno == EAGAIN || errno == EINTR))
            continue; // a measuring tool may spin
        if (sent <= 0)
            return;
        bytes += sent;
        len -= (size_t)sent;
    }
}

static bool contains(const char *body, size_t len, const char *text)
{
    return memmem(body, len, text, strlen(text)) != NULL;
}

static void answer(int fd, const char *body, size_t len)
{
    if (!contains(body, len, "\"stream\":true")) {
        send_all(fd, unary, unary_len);
    } else if (contains(body, len, "burst")) {
        send_all(fd, burst, burst_len);
    } else {
        for (int i = 0; i < EVENTS + 2; i++)
            send_all(fd, stream_parts[i], strlen(stream_parts[i]));
    }
}

// Serves all whole requests in the buffer; false when the connection is of no more use.
static bool serve(struct conn *conn)
{
    for (;;) {
        char *end = memmem(conn->in, conn->len, "\r\n\r\n", 4);
        if (!end)
            return conn->len < MAX_REQUEST;
        size_t head = (size_t)(end - conn->in) + 4, length = 0;
        for (char *line = conn->in; line < end; line++) {
            if (strncasecmp(line, "\ncontent-length:", 16) == 0)
                length = strtoul(line + 16, NULL, 10);
        }
        if (head + length > MAX_REQUEST)
            return false;
        if (conn->len < head + length)
            return true;
        answer(conn->fd, conn->in + head, length);
        memmove(conn->in, conn->in + head + length, conn->len - head - length);
        conn->len -= head + length;
    }
}

int main(int argc, char **argv)
{
    int one = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
                                  .sin_port = htons((uint16_t)(argc > 1 ? atoi(argv[1]) : 0))};
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 1024)) {
        perror("bench_upstream");
        return 1;
    }
    make_answers();
    int poll = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL}, events[256];
    epoll_ctl(poll, EPOLL_CTL_ADD, listener, &event);
    for (;;) {
        int count = epoll_wait(poll, events, 256, -1);
        for (int i = 0; i < count; i++) {
            struct conn *conn = events[i].data.ptr;
            if (!conn) {
                int fd;
                while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
                    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                    conn = malloc(sizeof *conn);
                    if (!conn)
                        return 1;
                    conn->fd = fd;
                    conn->len = 0;
                    struct epoll_event add = {.events = EPOLLIN, .data.ptr = conn};
                    epoll_ctl(poll, EPOLL_CTL_ADD, fd, &add);
                }
                continue;
            }
            ssize_t got = recv(conn->fd, conn->in + conn->len, MAX_REQUEST - conn->len, 0);
            if (got > 0)
                conn->len += (size_t)got;
            if (got == 0 || (got < 0 && errno != EAGAIN) || !serve(conn)) {
                close(conn->fd);
                free(conn);
            }
        }
    }
}
