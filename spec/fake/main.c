// fake_upstream [--port N] [--root DIR]…   prints `port N` when it listens. See fake.h.
#include "fake.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MAX_ROOTS 8

struct conn {
    int fd;
    uint64_t number;
    struct text in;
    struct answer answer;
    bool is_answering, is_hanging, was_continued, is_control, dies;
    size_t piece, at; // next piece, next byte
    uint64_t due_ms;  // when the next piece or the ending may go; 0: at once
    uint64_t entry, sent;
    uint32_t events;
    struct conn *next, *prev;
};

static int epoll_fd;
static struct conn conns = {.fd = -1};
static uint64_t accepted, open_count;

static uint64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

static void watch(struct conn *conn, uint32_t events)
{
    if (conn->events == events)
        return;
    conn->events = events;
    struct epoll_event event = {.events = events, .data.ptr = conn};
    epoll_ctl(epoll_fd, EPOLL_CTL_MOD, conn->fd, &event);
}

static void end_answer(struct conn *conn, const char *how)
{
    if (!conn->is_answering)
        return;
    journal_close(conn->entry, how, conn->sent, now_ms());
    answer_free(&conn->answer);
    conn->is_answering = conn->is_hanging = conn->is_control = false;
    conn->due_ms = 0;
}

// Freed at the end of the turn: events of this turn may still name it.
static void drop(struct conn *conn, const char *how)
{
    if (conn->dies)
        return;
    end_answer(conn, how);
    conn->dies = true;
    close(conn->fd);
    open_count--;
}

static void reset(struct conn *conn)
{
    struct linger now = {1, 0};
    setsockopt(conn->fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
    drop(conn, "reset");
}

static void reply(struct conn *conn, int status, const struct text *body)
{
    struct answer *answer = &conn->answer;
    memset(answer, 0, sizeof *answer);
    text_addf(&answer->wire,
              "HTTP/1.1 %d OK\r\ncontent-type: application/json\r\ncontent-length: %zu\r\n\r\n",
              status, body->len);
    text_add(&answer->wire, body->ptr ? body->ptr : "", body->len);
    answer->pieces = must(calloc(1, sizeof *answer->pieces));
    answer->pieces[0].end = answer->wire.len;
    answer->piece_count = 1;
    answer->loop_piece = SIZE_MAX;
    conn->is_control = true;
    conn->entry = 0;
}

// The paths below /_ are ours.
static bool control(struct conn *conn, const struct request *request)
{
    struct text body = {NULL, 0, 0};
    const char *target = request->target;
    bool is_delete = strcmp(request->method, "DELETE") == 0;
    int status = 200;
    if (strncmp(target, "/_", 2) != 0)
        return false;
    if (strncmp(target, "/_requests", 10) == 0) {
        const char *after = strstr(target, "after=");
        if (is_delete)
            journal_clear();
        journal_render(after ? strtoull(after + 6, NULL, 10) : 0, &body);
    } else if (strcmp(target, "/_stats") == 0) {
        text_addf(&body, "{\"accepted\":%llu,\"open\":%llu}", (unsigned long long)accepted,
                  (unsigned long long)open_count - 1);
    } else if (strncmp(target, "/_script", 8) == 0) {
        const char *name = target[8] == '/' ? target + 9 : NULL;
        const char *why = NULL;
        if (is_delete)
            script_drop(name);
        else
            why = name ? script_put(name, request->body, request->body_len) : "no name";
        status = why ? 400 : 200;
        text_addf(&body, "{\"ok\":%s,\"why\":\"%s\"}", why ? "false" : "true", why ? why : "");
    } else {
        status = 404;
        text_addf(&body, "{}");
    }
    reply(conn, status, &body);
    text_free(&body);
    return true;
}

static void pump(struct conn *conn);

static void take_request(struct conn *conn)
{
    struct request request;
    bool wants_continue;
    while (!conn->is_answering && !conn->dies) {
        long used = request_parse(conn->in.ptr ? conn->in.ptr : "", conn->in.len, &request,
                                  &wants_continue);
        if (used < 0) {
            drop(conn, "malformed");
            return;
        }
        if (used == 0) {
            if (wants_continue && !conn->was_continued) {
                static const char TEXT[] = "HTTP/1.1 100 Continue\r\n\r\n";
                conn->was_continued = true;
                (void)!send(conn->fd, TEXT, sizeof TEXT - 1, MSG_NOSIGNAL);
            }
            watch(conn, EPOLLIN);
            return;
        }
        conn->was_continued = false;
        conn->is_answering = true;
        conn->piece = conn->at = 0;
        conn->sent = 0;
        if (!control(conn, &request)) {
            char name[256];
            script_answer(&request, &conn->answer, name, sizeof name);
            conn->entry = journal_open(&request, name, conn->number, now_ms());
            conn->answer.is_close = conn->answer.is_close || !request.is_keep_alive;
        }
        request_free(&request);
        memmove(conn->in.ptr, conn->in.ptr + used, conn->in.len - (size_t)used);
        conn->in.len -= (size_t)used;
        if (conn->answer.piece_count && conn->answer.pieces[0].delay_ms)
            conn->due_ms = now_ms() + (uint64_t)conn->answer.pieces[0].delay_ms;
        pump(conn);
    }
}

static void finish(struct conn *conn)
{
    struct answer *answer = &conn->answer;
    switch (answer->ending) {
    case ENDING_RESET: reset(conn); return;
    case ENDING_CLOSE: drop(conn, "closed"); return;
    case ENDING_HANG:
        conn->is_hanging = true;
        watch(conn, EPOLLIN | EPOLLRDHUP);
        return;
    case ENDING_NORMAL: break;
    }
    if (answer->is_close)
        drop(conn, "done");
    else
        end_answer(conn, "done");
}

// Sends what is due; a piece is one write where the socket takes it.
static void pump(struct conn *conn)
{
    struct answer *answer = &conn->answer;
    while (conn->is_answering && !conn->is_hanging && !conn->dies) {
        if (conn->due_ms > now_ms()) {
            watch(conn, EPOLLIN | EPOLLRDHUP);
            return;
        }
        conn->due_ms = 0;
        if (conn->piece >= answer->piece_count) {
            if (answer->end_ms > 0) {
                conn->due_ms = now_ms() + (uint64_t)answer->end_ms;
                answer->end_ms = 0;
                continue;
            }
            finish(conn);
            continue;
        }
        size_t end = answer->pieces[conn->piece].end;
        while (conn->at < end) {
            ssize_t n = send(conn->fd, answer->wire.ptr + conn->at, end - conn->at, MSG_NOSIGNAL);
            if (n < 0 && errno == EAGAIN) {
                watch(conn, EPOLLIN | EPOLLOUT | EPOLLRDHUP);
                return;
            }
            if (n < 0) {
                drop(conn, "peer_closed");
                return;
            }
            conn->at += (size_t)n;
            conn->sent += (size_t)n;
        }
        conn->piece++;
        if (conn->piece == answer->piece_count && answer->loop_piece != SIZE_MAX) {
            conn->piece = answer->loop_piece;
            conn->at = conn->piece ? answer->pieces[conn->piece - 1].end : 0;
            watch(conn, EPOLLIN | EPOLLOUT | EPOLLRDHUP);
            int wait = answer->pieces[conn->piece].delay_ms;
            conn->due_ms = now_ms() + (uint64_t)(wait ? wait : 1); // others first
            continue;
        }
        if (conn->piece < answer->piece_count && answer->pieces[conn->piece].delay_ms)
            conn->due_ms = now_ms() + (uint64_t)answer->pieces[conn->piece].delay_ms;
    }
}

static void on_readable(struct conn *conn)
{
    char bytes[65536];
    for (;;) {
        ssize_t n = recv(conn->fd, bytes, sizeof bytes, 0);
        if (n > 0) {
            text_add(&conn->in, bytes, (size_t)n);
            continue;
        }
        if (n < 0 && errno == EAGAIN)
            break;
        drop(conn, "peer_closed");
        return;
    }
    take_request(conn);
}

static void accept_all(int listener)
{
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0)
            return;
        int on = 1;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        struct conn *conn = must(calloc(1, sizeof *conn));
        conn->fd = fd;
        conn->number = ++accepted;
        open_count++;
        conn->next = conns.next;
        conn->prev = &conns;
        if (conns.next)
            conns.next->prev = conn;
        conns.next = conn;
        conn->events = EPOLLIN;
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = conn};
        epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event);
    }
}

static int next_wait(void)
{
    uint64_t now = now_ms(), best = UINT64_MAX;
    for (struct conn *conn = conns.next; conn; conn = conn->next) {
        if (conn->due_ms && conn->due_ms < best)
            best = conn->due_ms;
    }
    return best == UINT64_MAX ? -1 : best <= now ? 0 : (int)(best - now);
}

static void end_turn(void)
{
    uint64_t now = now_ms();
    for (struct conn *conn = conns.next, *next; conn; conn = next) {
        next = conn->next;
        if (!conn->dies && conn->due_ms && conn->due_ms <= now) {
            pump(conn);
            take_request(conn);
        }
        if (!conn->dies)
            continue;
        conn->prev->next = conn->next;
        if (conn->next)
            conn->next->prev = conn->prev;
        text_free(&conn->in);
        free(conn);
    }
}

static int listen_on(int port)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), on = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    socklen_t len = sizeof address;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof address) != 0 ||
        listen(fd, 4096) != 0 || getsockname(fd, (struct sockaddr *)&address, &len) != 0) {
        perror("fake_upstream");
        exit(1);
    }
    printf("port %d\n", ntohs(address.sin_port));
    fflush(stdout);
    return fd;
}

int main(int argc, char **argv)
{
    static char *roots[MAX_ROOTS];
    size_t root_count = 0;
    int port = 0;
    for (int i = 1; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "--port") == 0)
            port = atoi(argv[i + 1]);
        else if (strcmp(argv[i], "--root") == 0 && root_count < MAX_ROOTS)
            roots[root_count++] = argv[i + 1];
    }
    script_roots(roots, root_count);
    signal(SIGPIPE, SIG_IGN);
    prctl(PR_SET_PDEATHSIG, SIGTERM); // a test that crashed leaves nothing behind
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    int listener = listen_on(port);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listener, &event);
    for (;;) {
        struct epoll_event events[256];
        int count = epoll_wait(epoll_fd, events, 256, next_wait());
        for (int i = 0; i < count; i++) {
            struct conn *conn = events[i].data.ptr;
            if (!conn) {
                accept_all(listener);
                continue;
            }
            if (!conn->dies && events[i].events & (EPOLLIN | EPOLLRDHUP | EPOLLERR | EPOLLHUP))
                on_readable(conn);
            if (!conn->dies && events[i].events & EPOLLOUT) {
                watch(conn, EPOLLIN | EPOLLRDHUP);
                pump(conn);
                take_request(conn);
            }
        }
        end_turn();
    }
}
