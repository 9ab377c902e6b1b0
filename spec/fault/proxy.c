// The fault proxy's gates and its loop. See proxy.h.
#include "proxy.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define LOG_MAX (64u << 10) // the oldest lines are forgotten beyond
#define EVENTS 256

int proxy_epoll;
static struct gate *gates, *closed_gates;

uint64_t proxy_now_us(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

void *proxy_must(void *memory)
{
    if (!memory) {
        fputs("fault_proxy: out of memory\n", stderr);
        exit(1);
    }
    return memory;
}

int proxy_listen(int *port, int backlog)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), on = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)*port)};
    socklen_t len = sizeof address;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof address) != 0 ||
        listen(fd, backlog) != 0 || getsockname(fd, (struct sockaddr *)&address, &len) != 0) {
        if (fd >= 0)
            close(fd);
        return -1;
    }
    *port = ntohs(address.sin_port);
    return fd;
}

// ---- gates

static void watch_gate(struct gate *gate, bool is_watched)
{
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = gate};
    epoll_ctl(proxy_epoll, is_watched ? EPOLL_CTL_ADD : EPOLL_CTL_DEL, gate->listener, &event);
}

struct gate *gate_open(const char *host, int server_port, int port)
{
    struct gate *gate = proxy_must(calloc(1, sizeof *gate));
    gate->watched.kind = WATCH_GATE;
    gate->port = port;
    gate->server_port = server_port;
    snprintf(gate->server_host, sizeof gate->server_host, "%s", host);
    fault_plan_read("", &gate->plan);
    for (int i = 0; i < GATE_FILLERS; i++)
        gate->fillers[i] = -1;
    gate->listener = proxy_listen(&gate->port, 1024);
    if (gate->listener < 0) {
        free(gate);
        return NULL;
    }
    watch_gate(gate, true);
    gate->next = gates;
    gates = gate;
    return gate;
}

// Connections of our own take the only places of the queue: further ones get no answer.
static void fill(struct gate *gate)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)gate->port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    listen(gate->listener, 0);
    for (int i = 0; i < GATE_FILLERS; i++) {
        gate->fillers[i] = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        (void)!connect(gate->fillers[i], (struct sockaddr *)&address, sizeof address);
    }
}

const char *gate_set_state(struct gate *gate, enum gate_state state)
{
    if (gate->listener >= 0)
        close(gate->listener); // also leaves epoll
    gate->listener = -1;
    for (int i = 0; i < GATE_FILLERS; i++) {
        if (gate->fillers[i] >= 0)
            close(gate->fillers[i]);
        gate->fillers[i] = -1;
    }
    gate->state = state;
    if (state == GATE_DOWN)
        return NULL;
    gate->listener = proxy_listen(&gate->port, 1024);
    if (gate->listener < 0)
        return "the port is taken";
    if (state == GATE_FULL)
        fill(gate);
    if (state == GATE_OPEN)
        watch_gate(gate, true);
    return NULL;
}

struct gate *gate_find(int port)
{
    struct gate *gate = gates;
    while (gate && gate->port != port)
        gate = gate->next;
    return gate;
}

// Its memory stays: events of this turn and links may still name it.
void gate_close(struct gate *gate)
{
    (void)gate_set_state(gate, GATE_DOWN);
    link_cut_all(gate);
    while (gate->next_count)
        free(gate->next_plans[--gate->next_count]);
    for (struct gate **at = &gates; *at; at = &(*at)->next) {
        if (*at != gate)
            continue;
        *at = gate->next;
        break;
    }
    gate->next = closed_gates;
    closed_gates = gate;
}

void gate_log(struct gate *gate, const char *line, size_t len)
{
    if (len == 0)
        return;
    if (!gate->log)
        gate->log = proxy_must(malloc(LOG_MAX));
    while (gate->log_len + len > LOG_MAX) {
        char *end = memchr(gate->log, '\n', gate->log_len);
        size_t first = end ? (size_t)(end - gate->log) + 1 : gate->log_len;
        memmove(gate->log, gate->log + first, gate->log_len - first);
        gate->log_len -= first;
    }
    memcpy(gate->log + gate->log_len, line, len);
    gate->log_len += len;
}

static void accept_all(struct gate *gate)
{
    while (gate->listener >= 0) {
        int fd = accept4(gate->listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0)
            return;
        link_accept(gate, fd);
    }
}

// ---- the loop

static void dispatch(const struct epoll_event *event)
{
    struct watched *watched = event->data.ptr;
    switch (watched->kind) {
    case WATCH_GATE: accept_all((struct gate *)watched); return;
    case WATCH_LINK: link_on_event((struct end *)watched, event->events); return;
    case WATCH_CONTROL_PORT:
    case WATCH_CONTROL: control_on_event(watched, event->events); return;
    }
}

static int next_wait_ms(void)
{
    uint64_t due = links_due_us(), now = proxy_now_us();
    if (due == UINT64_MAX)
        return -1;
    return due <= now ? 0 : (int)((due - now + 999) / 1000);
}

static void turn(void)
{
    struct epoll_event events[EVENTS];
    int count = epoll_wait(proxy_epoll, events, EVENTS, next_wait_ms());
    for (int i = 0; i < count; i++)
        dispatch(&events[i]);
    links_end_turn();
    control_end_turn();
}

static int usage(const char *why)
{
    fprintf(stderr, "fault_proxy: %s\n", why);
    return 2;
}

int main(int argc, char **argv)
{
    const char *to = NULL, *rules = "";
    int port = 0, control_port = 0, server_port = 0;
    char host[64];
    for (int i = 1; i < argc; i += 2) {
        if (i + 1 == argc)
            return usage("an option has no value");
        if (strcmp(argv[i], "--to") == 0)
            to = argv[i + 1];
        else if (strcmp(argv[i], "--rules") == 0)
            rules = argv[i + 1];
        else if (strcmp(argv[i], "--port") == 0)
            port = atoi(argv[i + 1]);
        else if (strcmp(argv[i], "--control-port") == 0)
            control_port = atoi(argv[i + 1]);
        else
            return usage("an option is not known");
    }
    signal(SIGPIPE, SIG_IGN);
    prctl(PR_SET_PDEATHSIG, SIGTERM); // a test that crashed leaves nothing behind
    proxy_epoll = epoll_create1(EPOLL_CLOEXEC);
    if (control_open(control_port) != 0)
        return usage("the control port is taken");
    if (to) {
        if (sscanf(to, "%63[^:]:%d", host, &server_port) != 2)
            return usage("--to takes HOST:PORT");
        struct gate *gate = gate_open(host, server_port, port);
        if (!gate)
            return usage("the port is taken");
        const char *why = fault_plan_read(rules, &gate->plan);
        if (why)
            return usage(why);
        printf("port %d\n", gate->port);
    }
    fflush(stdout);
    for (;;)
        turn();
}
