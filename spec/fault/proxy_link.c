// A link: the client's socket, the server's, and the two directions between them. Bytes are read
// into pieces with a due time, and written when they are due and the rules let them pass.
#include "proxy.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define QUEUE_MAX (64u << 10) // a slow direction stops reading its source
#define READ_BYTES (16u << 10)
#define LEAVE_US 1000000 // a clean close reads on for so long

static struct link *links;

// ---- ends

static void release(struct end *end, bool is_reset)
{
    struct linger now = {1, 0};
    if (end->fd < 0)
        return;
    if (is_reset)
        setsockopt(end->fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
    close(end->fd);
    end->fd = -1;
}

// Freed at the end of the turn: events of this turn may still name it.
static void drop(struct link *link, const char *why, bool is_reset)
{
    char line[200];
    if (link->dies)
        return;
    link->dies = true;
    release(&link->client, is_reset);
    release(&link->server, is_reset);
    link->gate->open--;
    int len = snprintf(line, sizeof line, "%llu %s up=%llu down=%llu ms=%llu\n",
                       (unsigned long long)link->number, why, (unsigned long long)link->up.passed,
                       (unsigned long long)link->down.passed,
                       (unsigned long long)((proxy_now_us() - link->began_us) / 1000));
    gate_log(link->gate, line, (size_t)len);
}

// Both sides get our FIN; what they still send is read and dropped, so that none gets a reset.
static void leave(struct link *link)
{
    if (link->leave_us || link->dies)
        return;
    link->leave_us = proxy_now_us() + LEAVE_US;
    shutdown(link->client.fd, SHUT_WR);
    if (!link->has_server || shutdown(link->server.fd, SHUT_WR) != 0)
        release(&link->server, false);
}

// ---- one direction

static void enqueue(struct flow *flow, const char *bytes, size_t len, uint64_t due_us)
{
    if (len == 0)
        return;
    struct piece *piece = proxy_must(malloc(sizeof *piece + len));
    *piece = (struct piece){.due_us = due_us, .len = len};
    memcpy(piece->bytes, bytes, len);
    if (flow->tail)
        flow->tail->next = piece;
    else
        flow->head = piece;
    flow->tail = piece;
    flow->queued += len;
}

static void drop_head(struct flow *flow)
{
    struct piece *piece = flow->head;
    flow->head = piece->next;
    if (!flow->head)
        flow->tail = NULL;
    free(piece);
}

static void take(struct link *link, struct flow *flow, char *bytes, size_t len)
{
    const struct fault_rules *rules = flow->rules;
    uint64_t due_us = proxy_now_us() + (uint64_t)rules->latency_ms * 1000;
    if (rules->jitter_ms) {
        uint64_t span = (uint64_t)rules->jitter_ms * 2000;
        uint64_t shift = fault_random(&link->random) % (span + 1);
        due_us = due_us + shift > span / 2 ? due_us + shift - span / 2 : due_us;
    }
    if (flow->tail && due_us < flow->tail->due_us)
        due_us = flow->tail->due_us; // bytes do not overtake
    for (size_t i = 0; i < len; i++) {
        uint64_t at = flow->taken + i;
        if (at >= rules->flip_at && at - rules->flip_at < rules->flip_count)
            bytes[i] = (char)~bytes[i];
    }
    bool inserts = (rules->insert.len || rules->garbage_count) && rules->insert_at >= flow->taken &&
                   rules->insert_at - flow->taken < len;
    size_t first = inserts ? (size_t)(rules->insert_at - flow->taken) : len;
    enqueue(flow, bytes, first, due_us);
    if (inserts && rules->insert.len)
        enqueue(flow, rules->insert.bytes, rules->insert.len, due_us);
    for (uint64_t i = 0; inserts && i < rules->garbage_count; i++) {
        char byte = (char)fault_random(&link->random);
        enqueue(flow, &byte, 1, due_us);
    }
    enqueue(flow, bytes + first, len - first, due_us);
    flow->taken += len;
}

static void end_direction(struct link *link, struct flow *flow)
{
    switch (flow->rules->end) {
    case FAULT_RESET: drop(link, "reset", true); return;
    case FAULT_CLOSE: leave(link); return;
    case FAULT_HALF:
        if (!flow->is_shut)
            shutdown(flow->to->fd, SHUT_WR);
        flow->is_shut = flow->is_hung = true;
        while (flow->head)
            drop_head(flow);
        flow->queued = 0;
        return;
    case FAULT_HANG:
    case FAULT_NONE: flow->is_hung = true; return;
    }
}

// True when the ending stands at this place of the direction, with a byte seen.
static bool is_at_end(const struct flow *flow)
{
    const struct fault_rules *rules = flow->rules;
    return rules->end != FAULT_NONE && flow->passed >= rules->end_at &&
           (flow->head || flow->passed > 0);
}

static size_t allowed(const struct flow *flow)
{
    const struct fault_rules *rules = flow->rules;
    size_t len = flow->head->len - flow->head->at;
    if (rules->slice && len > rules->slice)
        len = rules->slice;
    if (rules->bytes_per_second) {
        uint64_t quantum = rules->bytes_per_second / 50 + 1;
        len = len > quantum ? (size_t)quantum : len;
    }
    if (rules->end != FAULT_NONE && len > rules->end_at - flow->passed)
        len = (size_t)(rules->end_at - flow->passed);
    return len;
}

static void pass_eof(struct link *link, struct flow *flow, uint64_t now)
{
    uint64_t wait_us = (uint64_t)flow->rules->slow_close_ms * 1000;
    if (!flow->eof_us || flow->is_shut || now < flow->eof_us + wait_us)
        return;
    flow->is_shut = true;
    shutdown(flow->to->fd, SHUT_WR);
    if (link->up.is_shut && link->down.is_shut)
        drop(link, "closed", false);
}

static void pump(struct link *link, struct flow *flow)
{
    while (!link->dies && !link->leave_us && !flow->is_hung) {
        uint64_t now = proxy_now_us();
        if (is_at_end(flow)) {
            if (!flow->end_us)
                flow->end_us = now + (uint64_t)flow->rules->end_ms * 1000;
            if (now >= flow->end_us)
                end_direction(link, flow);
            return;
        }
        if (!flow->head) {
            pass_eof(link, flow, now);
            return;
        }
        if (link->is_connecting || flow->is_shut || flow->head->due_us > now || flow->next_us > now)
            return;
        struct piece *piece = flow->head;
        ssize_t sent = send(flow->to->fd, piece->bytes + piece->at, allowed(flow), MSG_NOSIGNAL);
        flow->is_blocked = sent < 0 && errno == EAGAIN;
        if (flow->is_blocked)
            return;
        if (sent < 0) {
            drop(link, "peer_gone", true);
            return;
        }
        piece->at += (size_t)sent;
        flow->passed += (uint64_t)sent;
        flow->queued -= (size_t)sent;
        if (piece->at == piece->len)
            drop_head(flow);
        if (flow->rules->bytes_per_second)
            flow->next_us = now + (uint64_t)sent * 1000000 / flow->rules->bytes_per_second;
        if (flow->rules->slice) { // the next piece: not before the next turn of the loop
            uint64_t next_us = now + (uint64_t)flow->rules->slice_ms * 1000 + 1;
            flow->next_us = next_us > flow->next_us ? next_us : flow->next_us;
        }
    }
}

static uint64_t flow_due(const struct link *link, const struct flow *flow)
{
    if (flow->is_hung || link->leave_us)
        return UINT64_MAX;
    if (flow->end_us)
        return flow->end_us;
    if (flow->head) {
        if (flow->is_blocked || link->is_connecting || flow->is_shut)
            return UINT64_MAX;
        return flow->head->due_us > flow->next_us ? flow->head->due_us : flow->next_us;
    }
    if (flow->eof_us && !flow->is_shut)
        return flow->eof_us + (uint64_t)flow->rules->slow_close_ms * 1000;
    return UINT64_MAX;
}

// ---- events

static void watch(struct end *end, uint32_t events)
{
    if (end->fd < 0 || (end->is_watched && end->events == events))
        return;
    struct epoll_event event = {.events = events, .data.ptr = &end->watched};
    epoll_ctl(proxy_epoll, end->is_watched ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, end->fd, &event);
    end->is_watched = true;
    end->events = events;
}

static bool may_read(const struct link *link, const struct flow *flow)
{
    if (flow->eof_us || link->dies)
        return false;
    if (link->leave_us)
        return true;
    if (flow->is_hung)
        return flow->is_shut; // half closed: read and dropped
    return flow->queued < QUEUE_MAX;
}

static void update(struct link *link)
{
    if (link->dies)
        return;
    uint32_t client = may_read(link, &link->up) ? EPOLLIN : 0;
    uint32_t server = may_read(link, &link->down) ? EPOLLIN : 0;
    if (link->down.is_blocked)
        client |= EPOLLOUT;
    if (link->up.is_blocked || link->is_connecting)
        server |= EPOLLOUT;
    watch(&link->client, client);
    watch(&link->server, server);
}

// The client's first bytes have come to a link that answers by itself.
static void answer(struct link *link)
{
    if (link->plan.server != FAULT_ANSWER || link->is_answered)
        return;
    link->is_answered = true;
    const struct fault_bytes *text = &link->plan.answer;
    if (text->len)
        (void)!send(link->client.fd, text->bytes, text->len, MSG_NOSIGNAL);
    link->down.passed = text->len;
    if (link->plan.answer_end == FAULT_RESET)
        drop(link, "reset", true);
    else if (link->plan.answer_end == FAULT_CLOSE)
        leave(link);
}

static void on_readable(struct link *link, struct flow *flow)
{
    char bytes[READ_BYTES];
    ssize_t got = recv(flow->from->fd, bytes, sizeof bytes, 0);
    if (got < 0 && errno == EAGAIN)
        return;
    if (got < 0) {
        drop(link, "peer_reset", true);
        return;
    }
    if (got == 0) {
        flow->eof_us = proxy_now_us();
        bool both = link->up.eof_us && (link->down.eof_us || link->server.fd < 0);
        if (link->leave_us ? both : both && (link->up.is_hung || link->down.is_hung))
            drop(link, link->leave_us ? "limit" : "closed", false);
        else if (!link->has_server)
            drop(link, "client_left", false);
        return;
    }
    if (link->leave_us || flow->is_hung)
        return;
    if (link->has_server)
        take(link, flow, bytes, (size_t)got);
    else
        flow->passed += (uint64_t)got;
}

void link_on_event(struct end *end, uint32_t events)
{
    struct link *link = end->link;
    if (link->dies)
        return;
    struct flow *from = end == &link->client ? &link->up : &link->down;
    struct flow *to = end == &link->client ? &link->down : &link->up;
    if (link->is_connecting && end == &link->server) {
        int err = 0;
        socklen_t len = sizeof err;
        getsockopt(end->fd, SOL_SOCKET, SO_ERROR, &err, &len);
        if (err || events & (EPOLLERR | EPOLLHUP)) {
            drop(link, "server_refused", true);
            return;
        }
        link->is_connecting = false;
    }
    if (events & EPOLLOUT)
        to->is_blocked = false;
    if (events & EPOLLIN) {
        on_readable(link, from);
        if (!link->dies && from == &link->up)
            answer(link);
    } else if (events & (EPOLLERR | EPOLLHUP)) { // nothing is left to be read from it
        drop(link, events & EPOLLERR ? "peer_reset" : "closed", true);
    }
    if (link->dies)
        return;
    pump(link, &link->up);
    pump(link, &link->down);
    update(link);
}

// ---- life

static bool reach_server(struct link *link)
{
    const struct gate *gate = link->gate;
    int on = 1;
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons((uint16_t)gate->server_port)};
    inet_pton(AF_INET, gate->server_host, &address.sin_addr);
    link->server.fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (link->server.fd < 0)
        return false;
    setsockopt(link->server.fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    link->has_server = true;
    link->is_connecting = true;
    return connect(link->server.fd, (struct sockaddr *)&address, sizeof address) == 0 ||
           errno == EINPROGRESS;
}

void link_accept(struct gate *gate, int fd)
{
    int on = 1;
    struct link *link = proxy_must(calloc(1, sizeof *link));
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    link->gate = gate;
    link->plan = gate->plan;
    if (gate->next_count) {
        link->plan = *gate->next_plans[0];
        free(gate->next_plans[0]);
        memmove(gate->next_plans, gate->next_plans + 1,
                --gate->next_count * sizeof *gate->next_plans);
    }
    link->number = ++gate->accepted;
    link->random = link->plan.seed + link->number;
    link->began_us = proxy_now_us();
    link->client = (struct end){.watched = {WATCH_LINK}, .link = link, .fd = fd};
    link->server = (struct end){.watched = {WATCH_LINK}, .link = link, .fd = -1};
    link->up = (struct flow){.rules = &link->plan.up, .from = &link->client, .to = &link->server};
    link->down =
        (struct flow){.rules = &link->plan.down, .from = &link->server, .to = &link->client};
    link->next = links;
    links = link;
    gate->open++;
    switch (link->plan.server) {
    case FAULT_SERVER_ASKED:
        if (!reach_server(link))
            drop(link, "server_refused", true);
        break;
    case FAULT_DROP: drop(link, "drop", false); break;
    case FAULT_RST: drop(link, "rst", true); break;
    case FAULT_MUTE:
    case FAULT_ANSWER: break;
    }
    update(link);
}

void link_cut_all(const struct gate *gate)
{
    for (struct link *link = links; link; link = link->next) {
        if (link->gate == gate)
            drop(link, "cut", false);
    }
}

uint64_t links_due_us(void)
{
    uint64_t best = UINT64_MAX;
    for (const struct link *link = links; link; link = link->next) {
        uint64_t up = flow_due(link, &link->up), down = flow_due(link, &link->down);
        uint64_t due = link->leave_us ? link->leave_us : up < down ? up : down;
        if (!link->dies && due < best)
            best = due;
    }
    return best;
}

void links_end_turn(void)
{
    uint64_t now = proxy_now_us();
    for (struct link **at = &links; *at;) {
        struct link *link = *at;
        if (!link->dies && link->leave_us && link->leave_us <= now)
            drop(link, "limit", false);
        if (!link->dies) {
            if (flow_due(link, &link->up) <= now)
                pump(link, &link->up);
            if (!link->dies && flow_due(link, &link->down) <= now)
                pump(link, &link->down);
            update(link);
        }
        if (!link->dies) {
            at = &link->next;
            continue;
        }
        *at = link->next;
        while (link->up.head)
            drop_head(&link->up);
        while (link->down.head)
            drop_head(&link->down);
        free(link);
    }
}
