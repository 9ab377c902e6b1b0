// The control port: plain lines, as proxy.h tells them.
#include "proxy.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define LINE_MAX_BYTES 32768

struct talker {
    struct watched watched;
    int fd;
    size_t len;
    bool dies;
    struct talker *next;
    char line[LINE_MAX_BYTES];
};

static struct watched port_watched = {WATCH_CONTROL_PORT};
static int port_fd;
static struct talker *talkers;

int control_open(int port)
{
    port_fd = proxy_listen(&port, 64);
    if (port_fd < 0)
        return port_fd;
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = &port_watched};
    epoll_ctl(proxy_epoll, EPOLL_CTL_ADD, port_fd, &event);
    printf("control %d\n", port);
    return 0;
}

__attribute__((format(printf, 2, 3))) static void say(struct talker *talker, const char *format,
                                                      ...)
{
    char text[512];
    va_list args;
    va_start(args, format);
    int len = vsnprintf(text, sizeof text, format, args);
    va_end(args);
    (void)!send(talker->fd, text, (size_t)len, MSG_NOSIGNAL);
}

static void open_gate(struct talker *talker, const char *rest)
{
    char host[64];
    int port;
    struct gate *gate =
        sscanf(rest, "%63[^:]:%d", host, &port) == 2 ? gate_open(host, port, 0) : NULL;
    if (gate)
        say(talker, "ok %d\n", gate->port);
    else
        say(talker, "err no gate could be opened\n");
}

static void set_rules(struct talker *talker, struct gate *gate, const char *rules, bool is_next)
{
    struct fault_plan *plan = proxy_must(malloc(sizeof *plan));
    const char *why = fault_plan_read(rules, plan);
    if (!why && is_next && gate->next_count == GATE_NEXT_MAX)
        why = "too many are queued";
    if (!why && is_next) {
        gate->next_plans[gate->next_count++] = plan;
        plan = NULL;
    } else if (!why) {
        gate->plan = *plan;
    }
    free(plan);
    if (why)
        say(talker, "err %s\n", why);
    else
        say(talker, "ok\n");
}

static void set_state(struct talker *talker, struct gate *gate, const char *name)
{
    static const char *const NAMES[] = {"open", "down", "deaf", "full"};
    for (int i = 0; i < 4; i++) {
        if (strcmp(NAMES[i], name) != 0)
            continue;
        const char *why = gate_set_state(gate, (enum gate_state)i);
        if (why)
            say(talker, "err %s\n", why);
        else
            say(talker, "ok\n");
        return;
    }
    say(talker, "err no such state\n");
}

static void obey(struct talker *talker, char *line)
{
    char verb[16] = "";
    int port = 0, used = 0;
    if (sscanf(line, "%15s", verb) == 1 && strcmp(verb, "open") == 0) {
        open_gate(talker, line + 5);
        return;
    }
    struct gate *gate = sscanf(line, "%15s %d%n", verb, &port, &used) == 2 ? gate_find(port) : NULL;
    char *rest = line + used;
    while (*rest == ' ')
        rest++;
    if (!gate) {
        say(talker, "err no such gate\n");
    } else if (strcmp(verb, "set") == 0 || strcmp(verb, "next") == 0) {
        set_rules(talker, gate, rest, verb[0] == 'n');
    } else if (strcmp(verb, "state") == 0) {
        set_state(talker, gate, rest);
    } else if (strcmp(verb, "stats") == 0) {
        say(talker, "ok accepted=%llu open=%llu\n", (unsigned long long)gate->accepted,
            (unsigned long long)gate->open);
    } else if (strcmp(verb, "log") == 0) {
        if (gate->log_len)
            (void)!send(talker->fd, gate->log, gate->log_len, MSG_NOSIGNAL);
        say(talker, "ok\n");
    } else if (strcmp(verb, "cut") == 0) {
        link_cut_all(gate);
        say(talker, "ok\n");
    } else if (strcmp(verb, "close") == 0) {
        gate_close(gate);
        say(talker, "ok\n");
    } else {
        say(talker, "err no such verb\n");
    }
}

static void on_talker(struct talker *talker)
{
    for (;;) {
        ssize_t got =
            recv(talker->fd, talker->line + talker->len, LINE_MAX_BYTES - 1 - talker->len, 0);
        if (got < 0 && errno == EAGAIN)
            return;
        if (got <= 0) {
            talker->dies = true;
            return;
        }
        talker->len += (size_t)got;
        char *end;
        while ((end = memchr(talker->line, '\n', talker->len)) != NULL) {
            *end = '\0';
            if (end > talker->line && end[-1] == '\r')
                end[-1] = '\0';
            size_t used = (size_t)(end - talker->line) + 1;
            obey(talker, talker->line);
            memmove(talker->line, talker->line + used, talker->len - used);
            talker->len -= used;
        }
        if (talker->len == LINE_MAX_BYTES - 1)
            talker->dies = true;
    }
}

void control_on_event(struct watched *watched, uint32_t events)
{
    (void)events;
    if (watched->kind == WATCH_CONTROL) {
        struct talker *talker = (struct talker *)watched;
        if (!talker->dies)
            on_talker(talker);
        return;
    }
    int fd = accept4(port_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0)
        return;
    struct talker *talker = proxy_must(calloc(1, sizeof *talker));
    talker->watched.kind = WATCH_CONTROL;
    talker->fd = fd;
    talker->next = talkers;
    talkers = talker;
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = talker};
    epoll_ctl(proxy_epoll, EPOLL_CTL_ADD, fd, &event);
}

void control_end_turn(void)
{
    for (struct talker **at = &talkers; *at;) {
        struct talker *talker = *at;
        if (!talker->dies) {
            at = &talker->next;
            continue;
        }
        *at = talker->next;
        close(talker->fd);
        free(talker);
    }
}
