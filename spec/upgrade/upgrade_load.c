// Load for the proof of upgrades and reloads: an open loop of model calls over keep-alive
// connections, a share of them paced streams. Every failure that a client could see is counted:
// refused, reset, closed without an answer, cut, not 200. At the end the gateway's log database is
// read: each answered call must be there exactly once.
//
//   upgrade_load upstream            the upstream; prints "port N", runs until it is killed
//   upgrade_load load PORT KEY PREFIX RATE SECONDS CONNECTIONS STREAM_PERMILLE
//       calls at RATE per second until SECONDS have passed or standard input is closed; prints one
//       JSON line
//   upgrade_load count LOGS_DB PREFIX N
//       holds the rows of PREFIX against N calls (waits for them, 20 s); prints one JSON line
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <sqlite3.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define CONNS_MAX 20000
#define IN_BYTES 8192
#define EVENTS 20 // of a stream
#define EVENT_MS 100
#define LATENCIES 20000 // tenths of a millisecond

static uint64_t now_us(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000u + (uint64_t)ts.tv_nsec / 1000u;
}

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static void add_to_epoll(int epoll, int fd, uint32_t events, void *conn)
{
    struct epoll_event event = {.events = events, .data.ptr = conn};
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) != 0)
        die("epoll_ctl");
}

static void no_delay(int fd)
{
    int on = 1;
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

// ---- upstream

struct served {
    int fd, sent; // events of the stream
    bool is_stream;
    uint64_t due_us;
    size_t len;
    struct served *next;
    char in[IN_BYTES];
};

static struct served *streams; // that have events to send

static void put(struct served *conn, const char *text, size_t len)
{
    (void)!send(conn->fd, text, len, MSG_NOSIGNAL); // small: it fits the socket's buffer
}

static void put_chunk(struct served *conn, const char *text)
{
    char chunk[1024];
    int len = snprintf(chunk, sizeof chunk, "%zx\r\n%s\r\n", strlen(text), text);
    put(conn, chunk, (size_t)len);
}

static void answer_unary(struct served *conn)
{
    static const char body[] =
        "{\"id\":\"c\",\"object\":\"chat.completion\",\"created\":1790000000,\"model\":\"up\","
        "\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"Hello.\"},"
        "\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":2,"
        "\"total_tokens\":11}}";
    char text[1024];
    int len = snprintf(text, sizeof text,
                       "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
                       "content-length: %zu\r\n\r\n%s",
                       sizeof body - 1, body);
    put(conn, text, (size_t)len);
}

static void send_event(struct served *conn, uint64_t now)
{
    if (conn->sent < EVENTS) {
        put_chunk(conn,
                  "data: {\"id\":\"c\",\"object\":\"chat.completion.chunk\",\"created\":1790000000,"
                  "\"model\":\"up\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"x\"},"
                  "\"finish_reason\":null}]}\n\n");
        conn->sent++;
        conn->due_us = now + EVENT_MS * 1000;
        return;
    }
    put_chunk(conn,
              "data: {\"id\":\"c\",\"object\":\"chat.completion.chunk\",\"created\":1790000000,"
              "\"model\":\"up\",\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":"
              "\"stop\"}]}\n\ndata: [DONE]\n\n");
    put(conn, "0\r\n\r\n", 5);
    conn->is_stream = false;
}

static void start_stream(struct served *conn)
{
    static const char head[] = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
                               "transfer-encoding: chunked\r\n\r\n";
    put(conn, head, sizeof head - 1);
    conn->is_stream = true;
    conn->sent = 0;
    conn->due_us = now_us();
    conn->next = streams;
    streams = conn;
}

static void forget_stream(struct served *gone)
{
    for (struct served **at = &streams; *at; at = &(*at)->next) {
        if (*at == gone) {
            *at = gone->next;
            return;
        }
    }
}

static bool serve(struct served *conn)
{
    ssize_t got = recv(conn->fd, conn->in + conn->len, sizeof conn->in - 1 - conn->len, 0);
    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return true;
    if (got <= 0)
        return false;
    conn->len += (size_t)got;
    conn->in[conn->len] = '\0';
    char *end = strstr(conn->in, "\r\n\r\n");
    const char *length = end ? strcasestr(conn->in, "\r\ncontent-length:") : NULL;
    size_t need = end ? (size_t)(end + 4 - conn->in) +
                            (length && length < end ? strtoul(length + 17, NULL, 10) : 0)
                      : 0;
    if (!end || conn->len < need)
        return conn->len < sizeof conn->in - 1;
    conn->len = 0;
    if (strstr(end, "\"stream\":true"))
        start_stream(conn);
    else
        answer_unary(conn);
    return true;
}

_Noreturn static void run_upstream(void)
{
    struct sockaddr_in address = {.sin_family = AF_INET};
    socklen_t size = sizeof address;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), epoll = epoll_create1(0);
    if (listener < 0 || bind(listener, (struct sockaddr *)&address, size) != 0 ||
        listen(listener, 4096) != 0 ||
        getsockname(listener, (struct sockaddr *)&address, &size) != 0)
        die("upstream");
    printf("port %u\n", ntohs(address.sin_port));
    fflush(stdout);
    add_to_epoll(epoll, listener, EPOLLIN, NULL);
    for (;;) {
        struct epoll_event events[256];
        int count = epoll_wait(epoll, events, 256, streams ? 5 : -1);
        for (int i = 0; i < count; i++) {
            struct served *conn = events[i].data.ptr;
            if (!conn) {
                int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
                if (fd < 0)
                    continue;
                conn = calloc(1, sizeof *conn);
                if (!conn)
                    die("memory");
                conn->fd = fd;
                no_delay(fd);
                add_to_epoll(epoll, fd, EPOLLIN, conn);
            } else if (!serve(conn)) {
                forget_stream(conn);
                close(conn->fd);
                free(conn);
            }
        }
        uint64_t now = now_us();
        for (struct served **at = &streams; *at;) {
            struct served *conn = *at;
            if (conn->due_us <= now)
                send_event(conn, now);
            if (conn->is_stream)
                at = &conn->next;
            else
                *at = conn->next;
        }
    }
}

// ---- load

enum state { CONNECTING, IDLE, BUSY };

struct call {
    int fd;
    enum state state;
    bool is_stream, is_chunked, is_last, has_head;
    uint32_t number;
    uint64_t due_us;
    size_t len, need, body; // len: bytes in `in`; need: whole length; body: bytes beyond the head
    char tail[16];          // of the body
    struct call *next;      // idle
    char in[IN_BYTES];
};

static struct {
    uint64_t started, answered, streams, refused, reset, unanswered, cut, bad_status, bad_body;
    uint64_t opened, closed_idle, said_close, late;
    uint32_t latencies[LATENCIES];
} tally;

static struct call *idle_first, *idle_last;
static size_t open_count, busy_count;
static int load_epoll;
static struct sockaddr_in gateway;
static const char *key, *prefix;
static unsigned permille;

static void drop(struct call *call)
{
    if (call->state == BUSY)
        busy_count--;
    close(call->fd);
    open_count--;
    free(call);
}

static void fail_call(struct call *call, uint64_t *counter, const char *what)
{
    if ((*counter)++ < 5)
        fprintf(stderr, "call %s-%u: %s (%.*s)\n", prefix, call->number, what,
                (int)(call->len > 300 ? 300 : call->len), call->in);
    drop(call);
}

static void send_call(struct call *call)
{
    char body[512], text[1024];
    call->is_stream = call->number * 37u % 1000 < permille; // spread
    int len = snprintf(body, sizeof body,
                       "{\"model\":\"load\",\"messages\":[{\"role\":\"user\",\"content\":"
                       "\"Hello\"}]%s}",
                       call->is_stream ? ",\"stream\":true" : "");
    len =
        snprintf(text, sizeof text,
                 "POST /v1/chat/completions HTTP/1.1\r\nhost: load\r\nauthorization: Bearer %s\r\n"
                 "x-request-id: %s-%u\r\ncontent-type: application/json\r\n"
                 "content-length: %d\r\n\r\n%s",
                 key, prefix, call->number, len, body);
    call->state = BUSY;
    call->len = call->need = call->body = 0;
    call->has_head = call->is_chunked = call->is_last = false;
    memset(call->tail, 0, sizeof call->tail);
    if (send(call->fd, text, (size_t)len, MSG_NOSIGNAL) != len)
        fail_call(call, &tally.reset, "send");
}

static void begin(uint32_t number, uint64_t due_us, size_t max)
{
    struct call *call = idle_first;
    tally.started++;
    busy_count++;
    if (call) {
        idle_first = call->next;
        if (!idle_first)
            idle_last = NULL;
        call->number = number;
        call->due_us = due_us;
        send_call(call);
        return;
    }
    call = calloc(1, sizeof *call);
    if (!call || open_count >= max)
        die("too many connections are busy");
    call->number = number;
    call->due_us = due_us;
    call->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    call->state = BUSY;
    if (call->fd < 0)
        die("socket");
    no_delay(call->fd);
    open_count++;
    tally.opened++;
    if (connect(call->fd, (struct sockaddr *)&gateway, sizeof gateway) != 0 &&
        errno != EINPROGRESS) {
        fail_call(call, &tally.refused, strerror(errno));
        return;
    }
    call->state = CONNECTING;
    add_to_epoll(load_epoll, call->fd, EPOLLIN | EPOLLOUT, call);
}

static void finish(struct call *call)
{
    uint64_t tenths = (now_us() - call->due_us) / 100;
    if (call->is_stream && (call->body < 100 || !memmem(call->tail, 16, "[DONE]", 6))) {
        fail_call(call, &tally.bad_body, "the stream did not end as it should");
        return;
    }
    if (call->is_stream)
        tally.streams++;
    else
        tally.latencies[tenths < LATENCIES ? tenths : LATENCIES - 1]++;
    tally.answered++;
    if (call->is_last) {
        tally.said_close++;
        drop(call);
        return;
    }
    busy_count--;
    call->state = IDLE;
    call->len = 0;
    call->next = NULL;
    if (idle_last)
        idle_last->next = call;
    else
        idle_first = call;
    idle_last = call;
}

static void keep_tail(struct call *call, const char *bytes, size_t len)
{
    call->body += len;
    if (len >= sizeof call->tail) {
        memcpy(call->tail, bytes + len - sizeof call->tail, sizeof call->tail);
    } else {
        memmove(call->tail, call->tail + len, sizeof call->tail - len);
        memcpy(call->tail + sizeof call->tail - len, bytes, len);
    }
}

// The end of a stream in the client's dialect and framing: "data: [DONE]\n\n", "0\r\n\r\n".
static void on_bytes(struct call *call)
{
    if (!call->has_head) {
        call->in[call->len] = '\0';
        char *end = strstr(call->in, "\r\n\r\n");
        if (!end)
            return;
        *end = '\0';
        if (strncmp(call->in, "HTTP/1.1 200 ", 13) != 0) {
            *end = '\r';
            fail_call(call, &tally.bad_status, "status");
            return;
        }
        const char *length = strcasestr(call->in, "\r\ncontent-length:");
        call->has_head = true;
        call->is_last = strcasestr(call->in, "\r\nconnection: close") != NULL;
        call->is_chunked = !length;
        call->need = length ? strtoul(length + 17, NULL, 10) : 0;
        size_t head = (size_t)(end + 4 - call->in);
        keep_tail(call, end + 4, call->len - head);
    } else {
        keep_tail(call, call->in, call->len);
    }
    call->len = 0;
    if (call->is_chunked ? memcmp(call->tail + 11, "0\r\n\r\n", 5) == 0 : call->body >= call->need)
        finish(call);
}

static void forget_idle(struct call *gone)
{
    struct call *before = NULL;
    for (struct call **at = &idle_first; *at; before = *at, at = &(*at)->next) {
        if (*at != gone)
            continue;
        *at = gone->next;
        if (idle_last == gone)
            idle_last = before;
        return;
    }
}

static void on_event(struct call *call, uint32_t events)
{
    if (call->state == CONNECTING) {
        int err = 0;
        socklen_t len = sizeof err;
        (void)getsockopt(call->fd, SOL_SOCKET, SO_ERROR, &err, &len);
        if (err) {
            call->state = BUSY;
            fail_call(call, &tally.refused, strerror(err));
            return;
        }
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = call};
        (void)epoll_ctl(load_epoll, EPOLL_CTL_MOD, call->fd, &event);
        send_call(call);
        return;
    }
    if (!(events & (EPOLLIN | EPOLLHUP | EPOLLERR)))
        return;
    ssize_t got = recv(call->fd, call->in + call->len, sizeof call->in - 1 - call->len, 0);
    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (got > 0 && call->state == BUSY) {
        call->len += (size_t)got;
        on_bytes(call);
    } else if (call->state == IDLE) { // between two calls a server may close
        tally.closed_idle++;
        forget_idle(call);
        drop(call);
    } else if (got < 0) {
        fail_call(call, &tally.reset, strerror(errno));
    } else if (call->has_head || call->len) {
        fail_call(call, &tally.cut, "cut");
    } else {
        fail_call(call, &tally.unanswered, "closed without an answer");
    }
}

static double percentile(double share)
{
    uint64_t all = 0, sum = 0;
    for (size_t i = 0; i < LATENCIES; i++)
        all += tally.latencies[i];
    for (size_t i = 0; i < LATENCIES; i++) {
        sum += tally.latencies[i];
        if ((double)sum >= share * (double)all)
            return (double)i / 10;
    }
    return 0;
}

static int run_load(char **args)
{
    gateway.sin_family = AF_INET;
    gateway.sin_port = htons((uint16_t)atoi(args[0]));
    gateway.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    key = args[1];
    prefix = args[2];
    double rate = atof(args[3]);
    uint64_t began = now_us(), until = began + (uint64_t)(atof(args[4]) * 1e6);
    size_t max = (size_t)atoi(args[5]);
    permille = (unsigned)atoi(args[6]);
    load_epoll = epoll_create1(0);
    (void)fcntl(0, F_SETFL, O_NONBLOCK);
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        limit.rlim_cur = limit.rlim_max;
        (void)setrlimit(RLIMIT_NOFILE, &limit);
    }
    uint32_t number = 0;
    bool is_over = false;
    while (!is_over || busy_count > 0) {
        char byte;
        uint64_t now = now_us();
        is_over = is_over || now >= until || read(0, &byte, 1) == 0;
        while (!is_over && (double)number < (double)(now - began) * rate / 1e6) {
            uint64_t due = began + (uint64_t)((double)number * 1e6 / rate);
            tally.late += now - due > 100000;
            begin(number++, due, max);
        }
        if (is_over && now > until + 60000000) {
            fprintf(stderr, "%zu calls were never answered\n", busy_count);
            tally.unanswered += busy_count;
            break;
        }
        struct epoll_event events[256];
        int count = epoll_wait(load_epoll, events, 256, 1);
        for (int i = 0; i < count; i++)
            on_event(events[i].data.ptr, events[i].events);
    }
    double seconds = (double)(now_us() - began) / 1e6;
    uint64_t failed = tally.refused + tally.reset + tally.unanswered + tally.cut +
                      tally.bad_status + tally.bad_body;
    printf("{\"started\":%lu,\"answered\":%lu,\"streams\":%lu,\"failed\":%lu,\"refused\":%lu,"
           "\"reset\":%lu,\"unanswered\":%lu,\"cut\":%lu,\"bad_status\":%lu,\"bad_stream\":%lu,"
           "\"connections\":%lu,\"closed_idle\":%lu,\"said_close\":%lu,\"late\":%lu,"
           "\"seconds\":%.1f,\"p50_ms\":%.1f,\"p99_ms\":%.1f,\"p999_ms\":%.1f}\n",
           tally.started, tally.answered, tally.streams, failed, tally.refused, tally.reset,
           tally.unanswered, tally.cut, tally.bad_status, tally.bad_body, tally.opened,
           tally.closed_idle, tally.said_close, tally.late, seconds, percentile(0.5),
           percentile(0.99), percentile(0.999));
    return failed ? 1 : 0;
}

// ---- rows

static long long query(sqlite3 *db, const char *sql, const char *like)
{
    sqlite3_stmt *statement = NULL;
    long long number = -1;
    if (sqlite3_prepare_v2(db, sql, -1, &statement, NULL) == SQLITE_OK) {
        sqlite3_bind_text(statement, 1, like, -1, SQLITE_STATIC);
        if (sqlite3_step(statement) == SQLITE_ROW)
            number = sqlite3_column_int64(statement, 0);
    }
    sqlite3_finalize(statement);
    return number;
}

static int run_count(char **args)
{
    sqlite3 *db = NULL;
    char like[128];
    long long wanted = atoll(args[2]), rows = 0, distinct, good;
    snprintf(like, sizeof like, "%s-%%", args[1]);
    if (sqlite3_open_v2(args[0], &db, SQLITE_OPEN_READONLY, NULL) != SQLITE_OK) {
        fprintf(stderr, "%s: %s\n", args[0], sqlite3_errmsg(db));
        return 1;
    }
    sqlite3_busy_timeout(db, 5000);
    for (int i = 0; i < 200; i++) {
        rows = query(db, "SELECT count(*) FROM request_logs WHERE request_id LIKE ?", like);
        if (rows >= wanted)
            break;
        (void)usleep(100000);
    }
    (void)usleep(500000); // one too many would come now
    rows = query(db, "SELECT count(*) FROM request_logs WHERE request_id LIKE ?", like);
    distinct = query(
        db, "SELECT count(DISTINCT request_id) FROM request_logs WHERE request_id LIKE ?", like);
    good = query(db,
                 "SELECT count(*) FROM request_logs WHERE request_id LIKE ? AND is_success = 1 "
                 "AND status = 200",
                 like);
    sqlite3_close(db);
    printf("{\"rows\":%lld,\"distinct\":%lld,\"good\":%lld}\n", rows, distinct, good);
    return rows == wanted && distinct == wanted && good == wanted ? 0 : 1;
}

int main(int argc, char **argv)
{
    (void)signal(SIGPIPE, SIG_IGN);
    if (argc == 2 && strcmp(argv[1], "upstream") == 0)
        run_upstream();
    if (argc == 9 && strcmp(argv[1], "load") == 0)
        return run_load(argv + 2);
    if (argc == 5 && strcmp(argv[1], "count") == 0)
        return run_count(argv + 2);
    fprintf(stderr, "usage: upgrade_load upstream | load PORT KEY PREFIX RATE SECONDS CONNECTIONS "
                    "STREAM_PERMILLE | count LOGS_DB PREFIX N\n");
    return 2;
}
