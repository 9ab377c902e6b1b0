// The HTTP/1.1 server of one worker: its limits, drain and abort, and the life of streams. What
// moves bytes stands in http1_conn.c.
#include "io/http1_internal.h"

#include <stdlib.h>

#define ARENA_FIRST 4096u

static void run_free(struct loop_task *task);

// ---- server

void http1_limits_default(struct http1_limits *limits)
{
    *limits = (struct http1_limits){
        .target_bytes = 8u * 1024u,
        .header_bytes = 32u * 1024u,
        .header_count = 100,
        .chunk_extension_bytes = 256,
        .chunk_extension_total_bytes = 16u * 1024u,
        .body_bytes = 32u * 1024u * 1024u,
        .pipelined_bytes = 64u * 1024u,
        .header_ms = 10000,
        .body_idle_ms = 30000,
        .body_window_bytes = 1024,
        .keep_alive_ms = 75000,
        .write_stall_ms = 60000,
        .linger_ms = 2000,
        .high_water_bytes = 64u * 1024u,
        .low_water_bytes = 32u * 1024u,
        .max_connections = 20000,
        .max_per_ip = 1000,
        .max_operators = 64,
    };
}

int http1_server_new(struct loop *loop, const struct http1_limits *limits,
                     const struct http1_handler *handler, void *user, struct http1_ips *shared_ips,
                     struct http1_server **out)
{
    struct http1_server *server = calloc(1, sizeof *server);
    if (!server)
        return GW_ENOMEM;
    server->read_buf = malloc(HTTP1_READ_BYTES);
    if (!server->read_buf) {
        free(server);
        return GW_ENOMEM;
    }
    server->loop = loop;
    server->limits = *limits;
    server->handler = handler;
    server->user = user;
    server->ips = shared_ips;
    server->date_second = -1;
    list_init(&server->conns);
    list_init(&server->dirty);
    list_init(&server->freed);
    http1_refused_init(server);
    loop_task_init(&server->service_task, http1_run_service);
    loop_task_init(&server->free_task, run_free);
    *out = server;
    return 0;
}

void http1_server_free(struct http1_server *server)
{
    if (!server)
        return;
    gw_require(list_is_empty(&server->conns));
    http1_refused_close(server);
    run_free(&server->free_task);
    loop_task_cancel(&server->service_task);
    loop_task_cancel(&server->free_task);
    while (server->arena_count)
        arena_free(server->arenas[--server->arena_count]);
    free(server->read_buf);
    free(server->plain_buf);
    free(server);
}

const struct http1_counters *http1_server_counters(const struct http1_server *server)
{
    return &server->counters;
}

void http1_server_drain_within(struct http1_server *server, uint32_t idle_ms)
{
    server->is_draining = true;
    server->drain_idle_ms = idle_ms;
    uint64_t until_ms = loop_now_ms(server->loop) + idle_ms;
    struct list *node;
    list_each(node, &server->conns)
    {
        struct http1_conn *conn = list_entry(node, struct http1_conn, node);
        if (conn->phase == HTTP1_IDLE &&
            (!loop_timer_is_running(&conn->timer) || conn->timer.deadline_ms > until_ms))
            loop_timer_start(&conn->timer, idle_ms);
    }
}

void http1_server_drain(struct http1_server *server)
{
    http1_server_drain_within(server, HTTP1_DRAIN_IDLE_MS);
}

void http1_server_abort_all(struct http1_server *server, const char *reason)
{
    // on_close may abort others, so the walk holds no place in the list but its head.
    struct list batch, *node;
    list_init(&batch);
    list_insert_before(&server->conns, &batch);
    list_remove(&server->conns);
    while ((node = list_pop_front(&batch))) {
        list_push_back(&server->conns, node);
        struct http1_conn *conn = list_entry(node, struct http1_conn, node);
        if (conn->stream && conn->stream->is_live)
            http1_abort(conn->stream, reason);
        else if (!conn->busy)
            http1_conn_close(conn, false);
    }
}

// ---- streams

struct http1_stream *http1_stream_new(struct http1_conn *conn)
{
    struct http1_server *server = conn->server;
    struct arena *arena =
        server->arena_count ? server->arenas[--server->arena_count] : arena_new(ARENA_FIRST);
    if (!arena)
        return NULL;
    arena_set_wiped(arena); // it holds the client's credential
    struct http1_stream *stream = arena_zalloc(arena, sizeof *stream);
    if (!stream) {
        arena_free(arena);
        return NULL;
    }
    list_init(&stream->node);
    stream->server = server;
    stream->conn = conn;
    struct http1_request *request = &stream->request;
    request->arena = arena;
    request->path = request->target = request->method_text = SLICE_LIT("");
    memcpy(request->peer_ip, conn->peer_ip, sizeof request->peer_ip);
    request->is_unix = conn->is_unix;
    request->is_tls = conn->is_tls;
    request->listener_tag = conn->tag;
    request->received_ms = loop_now_ms(server->loop);
    return stream;
}

static void stream_bury(struct http1_stream *stream)
{
    list_push_back(&stream->server->freed, &stream->node);
    loop_defer(stream->server->loop, &stream->server->free_task);
}

void http1_hold(struct http1_stream *stream)
{
    stream->is_held = true;
}

void http1_release(struct http1_stream *stream)
{
    gw_require(stream->is_held);
    stream->is_held = false;
    if (!stream->conn)
        stream_bury(stream);
}

// The memory goes at the end of the turn: whoever still holds the stream in this turn finds it
// closed, not gone.
void http1_stream_close(struct http1_stream *stream, int err, const char *reason)
{
    struct http1_server *server = stream->server;
    stream->conn = NULL;
    if (!stream->is_held)
        stream_bury(stream);
    if (stream->is_live) {
        stream->is_live = false;
        server->handler->on_close(stream->user, err, reason);
    }
}

static void run_free(struct loop_task *task)
{
    struct http1_server *server = list_entry(task, struct http1_server, free_task);
    struct list *node;
    while ((node = list_pop_front(&server->freed))) {
        struct arena *arena = list_entry(node, struct http1_stream, node)->request.arena;
        if (server->arena_count < HTTP1_ARENA_POOL) {
            arena_reset(arena);
            server->arenas[server->arena_count++] = arena;
        } else {
            arena_free(arena);
        }
    }
}

const struct http1_request *http1_request(const struct http1_stream *stream)
{
    return &stream->request;
}

void http1_set_user(struct http1_stream *stream, void *stream_user)
{
    stream->user = stream_user;
}

struct loop *http1_loop(const struct http1_stream *stream)
{
    return stream->server->loop;
}

struct slice http1_header(const struct http1_request *request, const char *name)
{
    for (size_t i = 0; i < request->header_count; i++)
        if (slice_is(request->headers[i].name, name))
            return request->headers[i].value;
    return SLICE_NONE;
}

size_t http1_header_count(const struct http1_request *request, const char *name)
{
    size_t count = 0;
    for (size_t i = 0; i < request->header_count; i++)
        count += slice_is(request->headers[i].name, name);
    return count;
}

void http1_pause_body(struct http1_stream *stream)
{
    if (stream->conn && !stream->is_paused) {
        stream->is_paused = true;
        http1_conn_dirty(stream->conn);
    }
}

void http1_resume_body(struct http1_stream *stream)
{
    if (stream->conn && stream->is_paused) {
        stream->is_paused = false;
        http1_conn_dirty(stream->conn);
    }
}

void http1_limit_body(struct http1_stream *stream, uint64_t bytes)
{
    struct http1_conn *conn = stream->conn;
    if (!conn || conn->phase != HTTP1_BODY || bytes >= conn->parser.body_limit)
        return;
    conn->parser.body_limit = bytes;
    if (stream->received > bytes ||
        (stream->request.content_length > 0 && (uint64_t)stream->request.content_length > bytes)) {
        stream->refuse_status = 413;
        stream->refuse_message = "request body too large";
        http1_conn_dirty(conn);
    }
}

void http1_abort(struct http1_stream *stream, const char *reason)
{
    struct http1_conn *conn = stream->conn;
    if (!conn || stream->abort_err)
        return;
    stream->abort_err = GW_ECANCELLED;
    stream->abort_reason = reason;
    if (conn->busy)
        http1_conn_dirty(conn);
    else
        http1_conn_fail(conn, GW_ECANCELLED, reason, false);
}
