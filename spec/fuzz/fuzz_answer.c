// Fuzz target for answers of upstreams. Each input is
//  - read whole, in pieces and byte by byte by the reader of the HTTP/1.1 transport: head, body and
//    end must be the same;
//  - sent by an upstream to a fetch over a real connection, under a handler that pauses and cancels
//    as the first bytes say: it must end exactly once, with the same body as the reader found.
// Input: 2 bytes of control, then what the upstream sends; then it closes.
#include "base/clock.h"
#include "io/transport.h"
#include "io/transport_http1_answer.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>
#include <uv.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

// Small, so that short inputs reach it.
#define MAX_HEAD 256u

// ---- the reader alone

struct trace {
    struct arena *arena;
    struct fetch_head head;
    struct buf told, body;
    struct h1_answer answer;
};

static int trace_line(void *user, struct slice line)
{
    struct trace *trace = user;
    const char *why;
    gw_require(line.len >= 2 && line.ptr[line.len - 1] == '\n' && !trace->head.is_final);
    int err = fetch_head_line(&trace->head, trace->arena, line, &why);
    if (err || !trace->head.is_final)
        return err;
    gw_require(buf_printf(&trace->told, "%d\n", trace->head.status) == 0);
    for (size_t i = 0; i < trace->head.count; i++) {
        gw_require(buf_append(&trace->told, trace->head.headers[i].name) == 0);
        gw_require(buf_append(&trace->told, trace->head.headers[i].value) == 0);
    }
    return 0;
}

static void trace_free(struct trace *trace)
{
    h1_answer_free(&trace->answer);
    buf_free(&trace->told);
    buf_free(&trace->body);
    arena_free(trace->arena);
}

static void run_reader(struct trace *trace, const char *data, size_t len, size_t step, bool is_head)
{
    *trace = (struct trace){.arena = arena_new(1024)};
    gw_require(trace->arena != NULL);
    fetch_head_init(&trace->head, MAX_HEAD);
    h1_answer_start(&trace->answer, is_head, MAX_HEAD, trace_line, trace);
    for (size_t at = 0; at < len && trace->answer.state <= H1_ANSWER_BODY;) {
        size_t piece = step && step < len - at ? step : len - at;
        char *copy = malloc(piece); // reading or writing past it is seen
        gw_require(copy != NULL);
        memcpy(copy, data + at, piece);
        struct slice body = h1_answer_feed(&trace->answer, copy, piece);
        gw_require(body.len == 0 || (body.ptr >= copy && body.ptr + body.len <= copy + piece));
        gw_require(body.len == 0 || trace->head.is_final);
        gw_require(buf_append(&trace->body, body) == 0);
        free(copy);
        at += piece;
    }
    if (trace->answer.state <= H1_ANSWER_BODY)
        h1_answer_end(&trace->answer);
    gw_require(trace->answer.state == H1_ANSWER_DONE || trace->answer.err != 0);
}

static void compare(const char *data, size_t len, size_t step, bool is_head)
{
    struct trace whole, pieces;
    run_reader(&whole, data, len, 0, is_head);
    run_reader(&pieces, data, len, step, is_head);
    gw_require(whole.answer.state == pieces.answer.state);
    gw_require(slice_eq(buf_slice(&whole.told), buf_slice(&pieces.told)));
    gw_require(slice_eq(buf_slice(&whole.body), buf_slice(&pieces.body)));
    trace_free(&whole);
    trace_free(&pieces);
}

// ---- a fetch

static struct loop *loop;
static struct resolver *resolver;
static struct fetcher *fetcher;
static int listener;
static char url[64];
static const uint8_t *control;

struct seen {
    struct fetch *fetch;
    struct buf body;
    int heads, dones, err;
    unsigned bodies;
    bool is_cancelled;
};

static void on_head(void *user, int status, const struct http1_header *headers, size_t count)
{
    struct seen *seen = user;
    (void)headers, (void)count;
    gw_require(status >= 200 && seen->heads++ == 0 && !seen->dones && !seen->is_cancelled);
    if (control[0] % 16u == 1) {
        seen->is_cancelled = true;
        fetch_cancel(seen->fetch);
    }
}

static enum fetch_verdict on_body(void *user, struct slice bytes)
{
    struct seen *seen = user;
    gw_require(bytes.len > 0 && seen->heads == 1 && !seen->dones && !seen->is_cancelled);
    seen->bodies++;
    if (control[0] % 16u == 2 && seen->bodies == 2) {
        seen->is_cancelled = true;
        fetch_cancel(seen->fetch);
        return FETCH_CONSUMED;
    }
    if (control[0] & 16u && seen->bodies % 3u == 1)
        return FETCH_PAUSE;
    gw_require(buf_append(&seen->body, bytes) == 0);
    return FETCH_CONSUMED;
}

static void on_done(void *user, int err, const struct fetch_info *info)
{
    struct seen *seen = user;
    (void)info;
    gw_require(seen->dones++ == 0 && !seen->is_cancelled);
    seen->err = err;
}

static const struct fetch_handler handler = {on_head, on_body, NULL, on_done};

static void turn(struct seen *seen)
{
    struct pollfd ready = {.fd = uv_backend_fd(loop_uv(loop)), .events = POLLIN};
    if (seen->fetch != NULL && !seen->dones && !seen->is_cancelled)
        fetch_resume(seen->fetch);
    if (!loop_turn(loop))
        poll(&ready, 1, 1);
}

static void start(void)
{
    struct sockaddr_in address = {.sin_family = AF_INET};
    socklen_t len = sizeof address;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    gw_require(bind(listener, (struct sockaddr *)&address, len) == 0);
    gw_require(listen(listener, 16) == 0);
    gw_require(getsockname(listener, (struct sockaddr *)&address, &len) == 0);
    snprintf(url, sizeof url, "http://127.0.0.1:%u/", ntohs(address.sin_port));
    gw_require(fetch_global_init() == 0);
    int err = loop_new(NULL, &loop);
    gw_require(err == 0 && (resolver = resolver_new(1, NULL)) != NULL);
    err = fetcher_new(loop, resolver, &fetcher);
    gw_require(err == 0);
}

static void run_fetch(const char *data, size_t len, size_t step)
{
    struct seen seen = {0};
    struct fetch_request request = {.method = SLICE_LIT("GET"), .url = slice_str(url)};
    request.max_header_bytes = MAX_HEAD;
    int err = fetch_start(fetcher, &request, &handler, &seen, &seen.fetch);
    gw_require(err == 0);
    struct pollfd ready = {.fd = listener, .events = POLLIN};
    while (poll(&ready, 1, 0) == 0)
        turn(&seen);
    int peer = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    gw_require(peer >= 0);
    char request_bytes[1024];
    ready.fd = peer;
    while (poll(&ready, 1, 0) == 0)
        turn(&seen);
    gw_require(recv(peer, request_bytes, sizeof request_bytes, 0) > 0);
    for (size_t at = 0; at < len;) {
        size_t piece = step && step < len - at ? step : len - at;
        if (send(peer, data + at, piece, MSG_NOSIGNAL) < 0)
            break;
        at += piece;
        turn(&seen);
    }
    shutdown(peer, SHUT_WR);
    for (int i = 0; i < 2000 && !seen.dones && !seen.is_cancelled; i++)
        turn(&seen);
    gw_require(seen.dones || seen.is_cancelled);
    for (int i = 0; i < 1000 && fetcher_counters(fetcher)->idle_connections > 0; i++)
        turn(&seen); // it sees the end
    gw_require(fetcher_counters(fetcher)->active == 0 || seen.is_cancelled);
    if (seen.dones) {
        struct trace trace;
        run_reader(&trace, data, len, 0, false);
        gw_require((seen.err == 0) == (trace.answer.state == H1_ANSWER_DONE));
        gw_require(seen.heads == (trace.told.len > 0));
        gw_require(slice_eq(buf_slice(&seen.body), buf_slice(&trace.body)));
        trace_free(&trace);
    }
    close(peer);
    turn(&seen);
    turn(&seen);
    gw_require(fetcher_counters(fetcher)->active == 0);
    gw_require(fetcher_counters(fetcher)->idle_connections == 0);
    buf_free(&seen.body);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static unsigned runs;
    if (size < 2 || size > 8192)
        return 0;
    if (loop == NULL)
        start();
    control = data;
    const char *bytes = (const char *)data + 2;
    size_t len = size - 2;
    compare(bytes, len, 1, false);
    compare(bytes, len, 2u + data[1] % 61u, false);
    compare(bytes, len, 1u + data[1] % 7u, true);
    if (data[0] & 32u && runs++ % 16u == 0) // sockets are slow
        run_fetch(bytes, len, data[1] % 4u ? 1u + data[1] % 97u : 0);
    return 0;
}
