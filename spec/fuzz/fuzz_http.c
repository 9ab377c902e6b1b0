// Fuzz target for the HTTP/1.1 server. Each input is run three ways:
//  - through the parser whole, in pieces and byte by byte, and with a stop after each piece of a
//    body: what comes out must be the same (refusals count as equal whatever their status);
//  - through a connection on a socket pair, under a handler that answers, pauses, aborts and limits
//    as the first bytes say: on_close must come exactly once for every on_request.
// Input: 4 bytes of control, then what the client sends.
#include "base/clock.h"
#include "io/http1_internal.h"

#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

// Small limits, so that short inputs reach them.
static const struct http1_limits limits = {
    .target_bytes = 64,
    .header_bytes = 512,
    .header_count = 8,
    .chunk_extension_bytes = 16,
    .chunk_extension_total_bytes = 40,
    .body_bytes = 200,
    .pipelined_bytes = 4096,
    .header_ms = 10,
    .body_idle_ms = 10,
    .keep_alive_ms = 20,
    .write_stall_ms = 20,
    .linger_ms = 5,
    .high_water_bytes = 4096,
    .low_water_bytes = 1024,
    .max_connections = 4,
    .max_per_ip = 4,
};

// ---- the parser alone

struct trace {
    struct buf events;
    bool stops;
};

static void note(struct trace *trace, struct slice text)
{
    gw_require(buf_append(&trace->events, text) == 0);
}

static bool trace_body(void *user, struct slice bytes)
{
    struct trace *trace = user;
    note(trace, bytes);
    return !trace->stops;
}

static void trace_head(struct trace *trace, const struct http1_request *request)
{
    note(trace, SLICE_LIT("\nHEAD "));
    note(trace, request->method_text);
    note(trace, request->target);
    for (size_t i = 0; i < request->header_count; i++) {
        note(trace, SLICE_LIT("\n"));
        note(trace, request->headers[i].name);
        note(trace, SLICE_LIT("="));
        note(trace, request->headers[i].value);
    }
    gw_require(buf_printf(&trace->events, "\n%lld %d%d%d%d\n", (long long)request->content_length,
                          request->has_body, request->is_http10, request->is_keep_alive,
                          request->is_websocket_upgrade) == 0);
    gw_require(request->header_count <= limits.header_count);
    gw_require(request->target.len > 0 && request->target.len <= limits.target_bytes);
    gw_require(request->content_length <= (int64_t)limits.body_bytes);
}

// Parses pieces of `step` bytes (0: all at once) until the end or a refusal.
static void run_parser(struct trace *trace, const char *data, size_t len, size_t step)
{
    struct http1_parser parser;
    struct http1_request request = {0};
    struct arena *arena = arena_new(1024);
    bool is_refused = false, continues, expects_continue;
    gw_require(arena != NULL);
    http1_parser_start(&parser, &limits, arena, trace_body, trace);
    size_t at = 0;
    while (at < len && !is_refused) {
        size_t end = step && step < len - at ? at + step : len;
        // A copy of exactly this piece, so that reading past it is seen.
        size_t piece_len = end - at;
        char *piece = malloc(piece_len);
        gw_require(piece != NULL);
        memcpy(piece, data + at, piece_len);
        size_t used_all = 0;
        do {
            size_t used;
            enum http1_parsed event =
                http1_parser_feed(&parser, piece + used_all, piece_len - used_all, &used, &request);
            used_all += used;
            gw_require(used_all <= piece_len);
            bool is_done = event == HTTP1_PARSED_COMPLETE;
            if (event == HTTP1_PARSED_HEAD) {
                if (http1_check_head(&parser, &request, &expects_continue) != 0) {
                    event = HTTP1_PARSED_REFUSED;
                } else {
                    trace_head(trace, &request);
                    is_done = !request.has_body;
                }
            }
            if (event == HTTP1_PARSED_REFUSED) {
                gw_require(parser.status >= 400 && parser.message);
                http1_parser_partial(&parser, &request);
                is_refused = true;
            }
            if (is_done) {
                note(trace, SLICE_LIT("\nDONE\n"));
                arena_reset(arena);
                http1_parser_start(&parser, &limits, arena, trace_body, trace);
            }
            gw_require(event != HTTP1_PARSED_MORE || used_all == piece_len || is_refused);
            continues = parser.may_continue;
        } while (!is_refused && (used_all < piece_len || continues));
        free(piece);
        at = end;
    }
    if (is_refused)
        note(trace, SLICE_LIT("\nREFUSED"));
    arena_free(arena);
}

static void compare(const char *data, size_t len, size_t step)
{
    struct trace whole = {.events = BUF_INIT(0)}, pieces = {.events = BUF_INIT(0)};
    run_parser(&whole, data, len, 0);
    run_parser(&pieces, data, len, step);
    gw_require(slice_eq(buf_slice(&whole.events), buf_slice(&pieces.events)));
    buf_clear(&pieces.events);
    pieces.stops = true;
    run_parser(&pieces, data, len, step);
    gw_require(slice_eq(buf_slice(&whole.events), buf_slice(&pieces.events)));
    buf_free(&whole.events);
    buf_free(&pieces.events);
}

// ---- a whole connection

static struct loop *loop;
static struct http1_server *server;
static uint64_t now_ms = 1000;
static const uint8_t *control;
static int open_streams;
static struct http1_stream *live;

static uint64_t fake_boot_ns(void)
{
    return now_ms * 1000000u;
}

static int64_t fake_wall_ms(void)
{
    return 1789000000000;
}

static int fake_random(void *out, size_t len)
{
    memset(out, 1, len);
    return 0;
}

static const struct clock_source fake_clock = {
    .wall_ms = fake_wall_ms, .boot_ns = fake_boot_ns, .random = fake_random};

static void act(struct http1_stream *stream, uint8_t what)
{
    static const char text[6000] = "text";
    int ignored = 0;
    switch (what % 12u) {
    case 0: ignored = http1_respond(stream, 200, NULL, 0, SLICE_LIT("ok")); break;
    case 1: ignored = http1_respond_head(stream, 200, NULL, 0, -1); break;
    case 2: ignored = http1_write(stream, SLICE_LIT("some")); break;
    case 3: ignored = http1_write(stream, slice_of(text, sizeof text)); break;
    case 4: http1_end(stream); break;
    case 5: http1_pause_body(stream); break;
    case 6: http1_resume_body(stream); break;
    case 7: http1_limit_body(stream, what); break;
    case 8: http1_abort(stream, "fuzz"); break;
    case 9: ignored = http1_respond_head(stream, 200, NULL, 0, 8); break;
    case 10: ignored = http1_respond(stream, 204, NULL, 0, SLICE_NONE); break;
    default: break;
    }
    (void)ignored;
}

static void on_request(void *user, struct http1_stream *stream)
{
    (void)user;
    gw_require(!live);
    open_streams++;
    live = stream;
    act(stream, control[0]);
}

static void on_bytes(void *user, struct slice bytes)
{
    (void)user;
    gw_require(bytes.len > 0 && live);
    act(live, control[1]);
}

static void on_complete(void *user)
{
    (void)user;
    gw_require(live);
    act(live, control[2]);
}

static void on_writable(void *user)
{
    (void)user;
    gw_require(live);
}

static void on_close(void *user, int err, const char *reason)
{
    (void)user;
    (void)err;
    gw_require(reason && live);
    act(live, control[3]);
    live = NULL;
    open_streams--;
}

static const struct http1_handler handler = {.on_request = on_request,
                                             .on_body = on_bytes,
                                             .on_complete = on_complete,
                                             .on_writable = on_writable,
                                             .on_close = on_close};

static void turn(void)
{
    for (int i = 0; i < 40 && loop_turn(loop); i++)
        continue;
}

static void swallow(int fd)
{
    char bytes[16384];
    while (recv(fd, bytes, sizeof bytes, 0) > 0)
        continue;
}

static void run_connection(const char *data, size_t len, size_t step)
{
    int pair[2], accepted;
    gw_require(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair) == 0);
    accepted = http1_accept_fd(server, pair[0], true, "", 0);
    gw_require(accepted == 0);
    for (size_t at = 0; at < len;) {
        size_t piece = step && step < len - at ? step : len - at;
        ssize_t sent = send(pair[1], data + at, piece, MSG_NOSIGNAL);
        if (sent <= 0)
            break;
        at += (size_t)sent;
        turn();
        if (live && at % 3u == 0)
            act(live, control[at % 4u]);
        if (at % 2u)
            swallow(pair[1]);
    }
    if (live) {
        act(live, 6);
        turn();
    }
    if (control[3] & 1u) {
        now_ms += 25; // every timer
        turn();
    }
    if (control[3] & 2u)
        swallow(pair[1]);
    turn();
    close(pair[1]);
    turn();
    now_ms += 25;
    turn();
    gw_require(open_streams == 0 && http1_server_counters(server)->open == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 5 || size > 8192)
        return 0;
    if (!loop) {
        clock_use(&fake_clock);
        gw_require(loop_new(NULL, &loop) == 0);
        int err = http1_server_new(loop, &limits, &handler, NULL, NULL, &server);
        gw_require(err == 0);
    }
    control = data;
    const char *bytes = (const char *)data + 4;
    size_t len = size - 4;
    compare(bytes, len, 1);
    compare(bytes, len, 2u + data[0] % 61u);
    run_connection(bytes, len, 0);
    run_connection(bytes, len, 1u + data[1] % 97u);
    return 0;
}
