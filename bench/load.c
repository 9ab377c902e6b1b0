// bench_load PORT CONNECTIONS SECONDS KIND [KEY]: a closed loop of model calls over keep-alive
// connections. KIND: unary, stream (one write per event upstream), burst. Prints one line:
// "requests N errors N rps N p50_us N p99_us N". Only for measuring.
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define BUCKETS 2000000 // one per microsecond, up to 2 s

struct conn {
    int fd;
    uint64_t started_ns;
    size_t len, need; // need: whole length when known by content-length
    bool is_chunked;
    char tail[8];
    char in[1u << 16];
};

static char request[4096];
static size_t request_len;
static uint32_t *buckets;
static uint64_t done, errors;

static uint64_t now_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static void make_request(const char *kind, const char *key)
{
    char text[1024], body[2048];
    memset(text, 'q', sizeof text);
    text[880] = '\0';
    bool is_stream = strcmp(kind, "unary") != 0;
    snprintf(body, sizeof body,
             "{\"model\":\"bench\",\"messages\":[{\"role\":\"user\",\"content\":\"%s %s\"}]%s}",
             kind, text, is_stream ? ",\"stream\":true" : "");
    request_len = (size_t)snprintf(request, sizeof request,
                                   "POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\n"
                                   "content-type: application/json\r\nauthorization: Bearer %s\r\n"
                                   "content-length: %zu\r\n\r\n%s",
                                   key, strlen(body), body);
}

static void start(struct conn *conn)
{
    conn->len = conn->need = 0;
    conn->is_chunked = false;
    memset(conn->tail, 0, sizeof conn->tail);
    conn->started_ns = now_ns();
    if (send(conn->fd, request, request_len, MSG_NOSIGNAL) != (ssize_t)request_len)
        errors++;
}

static void finish(struct conn *conn)
{
    uint64_t us = (now_ns() - conn->started_ns) / 1000;
    buckets[us < BUCKETS ? us : BUCKETS - 1]++;
    done++;
    start(conn);
}

// Remembers the last bytes: a chunked answer ends with "0\r\n\r\n".
static void keep_tail(struct conn *conn, const char *bytes, size_t len)
{
    for (size_t i = len > 5 ? len - 5 : 0; i < len; i++) {
        memmove(conn->tail, conn->tail + 1, 4);
        conn->tail[4] = bytes[i];
    }
}

static void on_bytes(struct conn *conn, const char *bytes, size_t len)
{
    if (conn->len == 0) { // the head comes in one piece on loopback
        const char *end = memmem(bytes, len, "\r\n\r\n", 4);
        if (!end || strncmp(bytes, "HTTP/1.1 200", 12) != 0) {
            errors++;
            if (errors < 3)
                fprintf(stderr, "%.*s\n", (int)(len < 400 ? len : 400), bytes);
        }
        const char *length = end ? strcasestr(bytes, "content-length:") : NULL;
        if (length && length < end)
            conn->need = (size_t)(end - bytes) + 4 + strtoul(length + 15, NULL, 10);
        else
            conn->is_chunked = true;
    }
    conn->len += len;
    keep_tail(conn, bytes, len);
    if (conn->is_chunked ? memcmp(conn->tail, "0\r\n\r\n", 5) == 0 : conn->len >= conn->need)
        finish(conn);
}

static uint64_t percentile(double share)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < BUCKETS; i++) {
        sum += buckets[i];
        if ((double)sum >= share * (double)done)
            return i;
    }
    return BUCKETS;
}

int main(int argc, char **argv)
{
    if (argc < 5) {
        fprintf(stderr, "usage: bench_load PORT CONNECTIONS SECONDS unary|stream|burst [KEY]\n");
        return 2;
    }
    int count = atoi(argv[2]);
    double seconds = atof(argv[3]);
    make_request(argv[4], argc > 5 ? argv[5] : "none");
    buckets = calloc(BUCKETS, sizeof *buckets);
    int poll = epoll_create1(0), one = 1;
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
                                  .sin_port = htons((uint16_t)atoi(argv[1]))};
    for (int i = 0; i < count; i++) {
        struct conn *conn = calloc(1, sizeof *conn);
        conn->fd = socket(AF_INET, SOCK_STREAM, 0);
        if (connect(conn->fd, (struct sockaddr *)&address, sizeof address)) {
            perror("bench_load");
            return 1;
        }
        setsockopt(conn->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        fcntl(conn->fd, F_SETFL, O_NONBLOCK);
        struct epoll_event add = {.events = EPOLLIN, .data.ptr = conn};
        epoll_ctl(poll, EPOLL_CTL_ADD, conn->fd, &add);
        start(conn);
    }
    uint64_t begin = now_ns(), end = begin + (uint64_t)(seconds * 1e9);
    struct epoll_event events[256];
    while (now_ns() < end) {
        int ready = epoll_wait(poll, events, 256, 100);
        for (int i = 0; i < ready; i++) {
            struct conn *conn = events[i].data.ptr;
            ssize_t got = recv(conn->fd, conn->in, sizeof conn->in - 1, 0);
            if (got > 0) {
                conn->in[got] = '\0';
                on_bytes(conn, conn->in, (size_t)got);
            } else if (got == 0 || errno != EAGAIN) {
                fprintf(stderr, "bench_load: connection closed\n");
                return 1;
            }
        }
    }
    double took = (double)(now_ns() - begin) / 1e9;
    printf("requests %llu errors %llu rps %.0f p50_us %llu p99_us %llu\n", (unsigned long long)done,
           (unsigned long long)errors, (double)done / took, (unsigned long long)percentile(0.5),
           (unsigned long long)percentile(0.99));
    return errors ? 1 : 0;
}
