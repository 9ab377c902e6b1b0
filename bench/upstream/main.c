// bench_upstream: answers model calls as it is told by each request (see --help). One thread,
// epoll, small memory per connection, TLS when given a certificate. Ends on SIGTERM and SIGINT.
#include "common/clock.h"
#include "common/wire.h"
#include "upstream/plan.h"

#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#define LOOK 4096                  // bytes of a body that are searched for an order
#define LONGEST_WAIT_NS 500000000u // a signal may come just before the wait

struct conn {
    struct timer timer; // delay, gap, hold
    struct wire wire;
    struct http_in in;
    const struct plan *plan; // NULL: no answer is due
    char *look;              // begin of the body, while it comes
    uint32_t look_len;
    bool is_get, is_stats, is_ordered; // of the request
    bool is_whole;                     // between two requests
    enum plan_dialect dialect;
    bool is_dead, waits; // waits: for the timer
    uint64_t next;       // piece: 0 head, 1… events, then tail
    uint64_t sent;       // of the piece
    char *left_over;     // rest of a stamped event
    uint32_t left_over_len;
    uint32_t interest;
    struct conn *next_dead, *previous_open, *next_open;
};

static struct {
    int poll, listener, reserve;
    SSL_CTX *tls;
    struct timers timers;
    struct conn *dead, *open_list;
    const struct plan *always;
    bool is_quiet;
    uint64_t accepted, open, peak, requests, answered, cut, failed, bytes_in, bytes_out;
} g;
static volatile sig_atomic_t is_stopping;

static void pump(struct conn *conn);

static void drop_by(struct conn *conn, bool with_reset)
{
    if (conn->is_dead)
        return;
    conn->is_dead = true;
    if (conn->plan || conn->look)
        g.cut++; // the peer went before its answer was whole
    g.open--;
    timer_stop(&g.timers, &conn->timer);
    wire_close(&conn->wire, with_reset);
    if (conn->previous_open)
        conn->previous_open->next_open = conn->next_open;
    else
        g.open_list = conn->next_open;
    if (conn->next_open)
        conn->next_open->previous_open = conn->previous_open;
    conn->next_dead = g.dead; // freed at the end of the turn: events of it may still wait
    g.dead = conn;
}

static void drop(struct conn *conn)
{
    drop_by(conn, false);
}

static void free_dead(void)
{
    while (g.dead) {
        struct conn *conn = g.dead;
        g.dead = conn->next_dead;
        http_in_free(&conn->in);
        free(conn->look);
        free(conn->left_over);
        free(conn);
    }
}

static void want(struct conn *conn, uint32_t events)
{
    if (conn->interest == events || conn->is_dead)
        return;
    struct epoll_event event = {.events = events, .data.ptr = conn};
    epoll_ctl(g.poll, conn->interest ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, conn->wire.fd, &event);
    conn->interest = events;
}

// ---- answers -----------------------------------------------------------------------------------

static void answer_done(struct conn *conn)
{
    bool closes = conn->plan->closes;
    conn->plan = NULL;
    conn->is_whole = true;
    g.answered++;
    want(conn, EPOLLIN);
    if (closes)
        drop(conn);
}

static void wait_until(struct conn *conn, uint64_t wait_ns)
{
    conn->waits = true;
    timer_start(&g.timers, &conn->timer, clock_ns() + wait_ns);
}

static void on_timer(struct timer *timer)
{
    struct conn *conn = (struct conn *)timer;
    conn->waits = false;
    pump(conn);
}

// 1: all sent, 0: later, -1: dropped
static int send_bytes(struct conn *conn, const char *bytes, size_t len)
{
    while (conn->sent < len) {
        ssize_t sent = wire_write(&conn->wire, bytes + conn->sent, len - conn->sent);
        if (sent == -EAGAIN) {
            want(conn, conn->wire.reads_to_write ? EPOLLIN : EPOLLIN | EPOLLOUT);
            return 0;
        }
        if (sent < 0) {
            drop(conn);
            return -1;
        }
        conn->sent += (uint64_t)sent;
        g.bytes_out += (uint64_t)sent;
    }
    conn->sent = 0;
    return 1;
}

static int send_event(struct conn *conn, const struct plan_event *event)
{
    static char scratch[1 << 16];
    if (!event->stamp_at || event->len > sizeof scratch)
        return send_bytes(conn, event->bytes, event->len);
    if (conn->left_over) {
        int result = send_bytes(conn, conn->left_over, conn->left_over_len);
        if (result > 0) {
            free(conn->left_over);
            conn->left_over = NULL;
        }
        return result;
    }
    char digits[PLAN_STAMP_DIGITS + 1];
    memcpy(scratch, event->bytes, event->len);
    snprintf(digits, sizeof digits, "%0*llu", PLAN_STAMP_DIGITS, (unsigned long long)clock_ns());
    memcpy(scratch + event->stamp_at, digits, PLAN_STAMP_DIGITS);
    int result = send_bytes(conn, scratch, event->len);
    if (result == 0) {
        conn->left_over = malloc(event->len);
        if (!conn->left_over) {
            drop(conn);
            return -1;
        }
        memcpy(conn->left_over, scratch, event->len);
        conn->left_over_len = event->len;
    }
    return result;
}

// Drips a whole answer.
static int send_dripped(struct conn *conn, const struct plan *plan)
{
    size_t from = conn->next * plan->piece_bytes, len = plan->piece_bytes;
    if (len > plan->head_len - from)
        len = plan->head_len - from;
    int result = send_bytes(conn, plan->head + from, len);
    if (result <= 0)
        return result;
    conn->next++;
    if (from + len == plan->head_len) {
        answer_done(conn);
        return -1;
    }
    return 1;
}

// Writes until the plan waits or the socket is full.
static void pump(struct conn *conn)
{
    const struct plan *plan;
    while (!conn->is_dead && !conn->waits && (plan = conn->plan) != NULL) {
        int result;
        if (plan->kind == PLAN_HANG)
            break;
        if (plan->kind == PLAN_UNARY && plan->piece_bytes) {
            if ((result = send_dripped(conn, plan)) <= 0)
                break;
            wait_until(conn, plan->gap_ns);
            continue;
        }
        if (plan->kind == PLAN_RESET && conn->next == (plan->events ? plan->events + 1 : 0)) {
            drop_by(conn, true);
            break;
        }
        if (conn->next == 0) {
            if ((result = send_bytes(conn, plan->head, plan->head_len)) <= 0)
                break;
            conn->next = 1;
            if (plan->kind == PLAN_UNARY || plan->kind == PLAN_BURST)
                answer_done(conn);
            continue;
        }
        if (conn->next <= plan->events) {
            if ((result = send_event(conn, &plan->list[(conn->next - 1) % plan->distinct])) <= 0)
                break;
            conn->next++;
            if (plan->kind == PLAN_IDLE) {
                conn->waits = true;
                if (plan->hold_ns)
                    wait_until(conn, plan->hold_ns);
            } else if (plan->gap_ns && conn->next <= plan->events) {
                wait_until(conn, plan->gap_ns);
            }
            continue;
        }
        if ((result = send_bytes(conn, plan->tail, plan->tail_len)) <= 0)
            break;
        answer_done(conn);
    }
}

static void send_stats(struct conn *conn)
{
    char body[512], head[700];
    uint64_t busy = 0;
    for (const struct conn *one = g.open_list; one; one = one->next_open)
        busy += one->plan != NULL;
    int len = snprintf(
        body, sizeof body,
        "{\"accepted\":%llu,\"open\":%llu,\"peak\":%llu,\"requests\":%llu,\"answered\":%llu,"
        "\"busy\":%llu,\"cut\":%llu,\"failed\":%llu,\"bytes_in\":%llu,\"bytes_out\":%llu}\n",
        (unsigned long long)g.accepted, (unsigned long long)g.open, (unsigned long long)g.peak,
        (unsigned long long)g.requests, (unsigned long long)g.answered, (unsigned long long)busy,
        (unsigned long long)g.cut, (unsigned long long)g.failed, (unsigned long long)g.bytes_in,
        (unsigned long long)g.bytes_out);
    len = snprintf(head, sizeof head,
                   "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
                   "%s",
                   len, body);
    if (wire_write(&conn->wire, head, (size_t)len) != len)
        drop(conn);
}

// ---- requests ----------------------------------------------------------------------------------

// An upstream that changes its mind: all orders are this one, until it is taken back.
static void always(struct span target)
{
    const char *query = memmem(target.ptr, target.len, "bench=", 6);
    g.always = NULL;
    if (query) {
        query += 6;
        struct span order = {query, (size_t)(target.ptr + target.len - query)};
        g.always = plan_find(order, PLAN_CHAT);
    }
}

// Closes those that are between two requests.
static void close_idle(const struct conn *except)
{
    for (struct conn *conn = g.open_list, *next; conn; conn = next) {
        next = conn->next_open;
        if (conn != except && conn->is_whole)
            drop(conn);
    }
}

static void order_by(struct conn *conn, struct span order)
{
    conn->plan = g.always ? g.always : plan_find(order, conn->dialect);
    conn->is_ordered = true;
    if (!conn->plan && !g.is_quiet)
        fprintf(stderr, "bench_upstream: cannot read the order '%.*s'\n", (int)order.len,
                order.ptr);
}

static void on_head(struct conn *conn, struct span head)
{
    const char *target = memchr(head.ptr, ' ', head.len);
    const char *line_end = memchr(head.ptr, '\r', head.len);
    size_t len = target && line_end > target ? (size_t)(line_end - target) : 0;
    g.requests++;
    conn->plan = NULL;
    conn->is_ordered = conn->is_stats = conn->is_whole = false;
    conn->look_len = 0;
    conn->is_get = memcmp(head.ptr, "GET ", 4) == 0;
    conn->dialect = len && memmem(target, len, "/messages", 9) ? PLAN_MESSAGES : PLAN_CHAT;
    struct span order = http_header(head, "x-bench");
    const char *query = len ? memmem(target, len, "bench=", 6) : NULL;
    struct span path = {target, len};
    if (conn->is_get && len && memmem(target, len, "/bench/always", 13)) {
        if (memchr(target + 1, ' ', len - 1))
            path.len = (size_t)((const char *)memchr(target + 1, ' ', len - 1) - target);
        always(path);
        conn->is_stats = true;
    } else if (conn->is_get && len && memmem(target, len, "/bench/close", 12)) {
        close_idle(conn);
        conn->is_stats = true;
    } else if (order.len) {
        order_by(conn, order);
    } else if (query) {
        const char *from = query + 6, *to = from;
        while (to < line_end && *to != ' ' && *to != '&')
            to++;
        order_by(conn, (struct span){from, (size_t)(to - from)});
    } else if (conn->is_get) {
        conn->is_stats = len && memmem(target, len, "/bench/stats", 12) != NULL;
    }
}

static void look_into(struct conn *conn, struct span body)
{
    if (conn->is_ordered)
        return;
    const char *at = memmem(body.ptr, body.len, "bench:", 6);
    const char *end = at ? memchr(at, ';', body.len - (size_t)(at - body.ptr)) : NULL;
    if (end)
        order_by(conn, (struct span){at + 6, (size_t)(end - at - 6)});
}

// The order stands at the front; what comes later is only counted.
static void on_body(struct conn *conn, struct span body)
{
    if (conn->is_ordered || conn->look_len >= LOOK)
        return;
    if (conn->look_len == 0) {
        look_into(conn, (struct span){body.ptr, body.len < LOOK ? body.len : LOOK});
        if (conn->is_ordered)
            return;
    }
    if (!conn->look && !(conn->look = malloc(LOOK)))
        return;
    uint32_t take = LOOK - conn->look_len;
    if (take > body.len)
        take = (uint32_t)body.len;
    memcpy(conn->look + conn->look_len, body.ptr, take);
    conn->look_len += take;
    look_into(conn, (struct span){conn->look, conn->look_len});
}

static void on_request(struct conn *conn)
{
    if (!conn->is_ordered && !conn->is_stats) {
        bool is_stream =
            conn->look && memmem(conn->look, conn->look_len, "\"stream\":true", 13) != NULL;
        const char *order = is_stream ? "kind=burst" : conn->is_get ? "bytes=100" : "kind=unary";
        conn->plan =
            g.always ? g.always : plan_find((struct span){order, strlen(order)}, conn->dialect);
    }
    free(conn->look);
    conn->look = NULL;
    if (conn->is_stats) {
        send_stats(conn);
        return;
    }
    if (!conn->plan) {
        g.failed++;
        drop(conn);
        return;
    }
    conn->next = conn->sent = 0;
    if (conn->plan->delay_ns)
        wait_until(conn, conn->plan->delay_ns);
    else
        pump(conn);
}

static void take_input(struct conn *conn, struct span input)
{
    struct span out;
    while (!conn->is_dead) {
        switch (http_in_next(&conn->in, &input, &out)) {
        case HTTP_MORE: return;
        case HTTP_HEAD:
            if (conn->plan) { // pipelined: nobody here does that
                g.failed++;
                drop(conn);
                return;
            }
            on_head(conn, out);
            break;
        case HTTP_BODY: on_body(conn, out); break;
        case HTTP_END: on_request(conn); break;
        case HTTP_BAD:
            g.failed++;
            drop(conn);
            return;
        }
    }
}

static void on_ready(struct conn *conn)
{
    static char input[256 << 10];
    while (!conn->is_dead) {
        ssize_t got = wire_read(&conn->wire, input, sizeof input);
        if (got == -EAGAIN)
            break;
        if (got <= 0) {
            drop(conn);
            return;
        }
        g.bytes_in += (uint64_t)got;
        take_input(conn, (struct span){input, (size_t)got});
        if ((size_t)got < sizeof input && !conn->wire.ssl)
            break;
    }
    if (!conn->is_dead && !conn->waits && conn->plan && conn->interest != EPOLLIN) {
        want(conn, EPOLLIN);
        pump(conn);
    } else if (!conn->is_dead && conn->wire.reads_to_write && conn->plan && !conn->waits) {
        conn->wire.reads_to_write = false;
        pump(conn);
    }
}

static void on_connections(void)
{
    for (int i = 0; i < 256; i++) {
        struct conn *conn = calloc(1, sizeof *conn);
        if (!conn)
            return;
        int err = wire_accept(&conn->wire, g.listener, g.tls);
        if (err) {
            free(conn);
            if (err == -EMFILE || err == -ENFILE) { // take the caller off the queue
                close(g.reserve);
                int fd = accept(g.listener, NULL, NULL);
                if (fd >= 0)
                    close(fd);
                g.reserve = dup(0);
                g.failed++;
            }
            return;
        }
        http_in_init(&conn->in, false);
        conn->timer.fire = on_timer;
        conn->next_open = g.open_list;
        if (g.open_list)
            g.open_list->previous_open = conn;
        g.open_list = conn;
        g.accepted++;
        if (++g.open > g.peak)
            g.peak = g.open;
        want(conn, EPOLLIN);
    }
}

static void on_signal(int number)
{
    (void)number;
    is_stopping = 1;
}

static void usage(FILE *to)
{
    fprintf(
        to,
        "usage: bench_upstream [--host 127.0.0.1] [--port 0] [--cert FILE --key FILE] [--quiet]\n"
        "Prints `port N` when it listens. GET /bench/stats gives its counters (busy: answers that\n"
        "are due or under way; cut: the peer left before its answer was whole). GET /bench/close\n"
        "closes all connections that are between two requests. GET /bench/always?bench=ORDER: "
        "from\n"
        "now on each answer is this one (without an order: as asked again).\n\n%s",
        plan_help);
}

int main(int argc, char **argv)
{
    static const struct option options[] = {
        {"host", required_argument, NULL, 'h'},
        {"port", required_argument, NULL, 'p'},
        {"cert", required_argument, NULL, 'c'},
        {"key", required_argument, NULL, 'k'},
        {"quiet", no_argument, NULL, 'q'},
        {"help", no_argument, NULL, '?'},
        {NULL, 0, NULL, 0},
    };
    const char *host = "127.0.0.1", *cert = NULL, *key = NULL;
    uint16_t port = 0;
    for (int option; (option = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        switch (option) {
        case 'h': host = optarg; break;
        case 'p': port = (uint16_t)atoi(optarg); break;
        case 'c': cert = optarg; break;
        case 'k': key = optarg; break;
        case 'q': g.is_quiet = true; break;
        default: usage(stdout); return argc == 2 ? 0 : 2;
        }
    }
    if (optind < argc || !cert != !key) {
        usage(stderr);
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    struct sigaction stop = {.sa_handler = on_signal};
    sigaction(SIGTERM, &stop, NULL);
    sigaction(SIGINT, &stop, NULL);
    prctl(PR_SET_TIMERSLACK, 1UL); // paced events shall come when they are due
    wire_raise_files();
    if (cert)
        g.tls = wire_tls_server(cert, key);
    g.listener = wire_listen(host, &port, 16384);
    g.reserve = dup(0);
    g.poll = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event events[512] = {{.events = EPOLLIN}};
    epoll_ctl(g.poll, EPOLL_CTL_ADD, g.listener, &events[0]);
    printf("port %u\n", port);
    fflush(stdout);
    while (!is_stopping) {
        uint64_t wait_ns = timers_run(&g.timers);
        if (wait_ns > LONGEST_WAIT_NS)
            wait_ns = LONGEST_WAIT_NS;
        int count = clock_wait(g.poll, events, 512, wait_ns);
        for (int i = 0; i < count; i++) {
            struct conn *conn = events[i].data.ptr;
            if (!conn)
                on_connections();
            else if (!conn->is_dead)
                on_ready(conn);
        }
        free_dead();
    }
    while (g.open_list)
        drop(g.open_list);
    free_dead();
    timers_free(&g.timers);
    plan_free_all();
    if (g.tls)
        SSL_CTX_free(g.tls);
    close(g.listener);
    close(g.reserve);
    close(g.poll);
    return 0;
}
