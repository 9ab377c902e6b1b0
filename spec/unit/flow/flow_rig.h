#pragma once
// The whole path of a call in one thread: the real flow with its HTTP server, plugin host, fetcher
// and store (in a fresh folder), two scripted upstreams and raw client sockets, all moved forward
// by rig_turn. Time is the real one plus what rig_advance added.
#include "base/clock.h"
#include "base/epoch.h"
#include "base/log.h"
#include "flow/flow.h"
#include "io/fetch.h"
#include "io/http1.h"
#include "io/listener.h"
#include "io/resolver.h"
#include "script/script.h"
#include "state/catalogue.h"
#include "state/health.h"
#include "state/kv.h"
#include "unit/state/store_test.h"
#include <arpa/inet.h>
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define RIG_UPSTREAMS 2
#define RIG_CONNS 8
#define RIG_PIECES 64

enum rig_end { RIG_CLOSE, RIG_RESET, RIG_STAY };

struct rig_conn {
    int fd; // -1: free
    struct buf in;
    struct slice pieces[RIG_PIECES];
    size_t piece, offset;
    bool is_answering;
};

// What an upstream answers: pieces, each written in a turn of its own, then an end.
struct rig_upstream {
    int listen_fd;
    uint16_t port;
    struct rig_conn conns[RIG_CONNS];
    struct slice pieces[RIG_PIECES];
    size_t piece_count;
    size_t allowed; // pieces that may be sent now
    enum rig_end end;
    bool answers_early; // after the head, the body unread
    bool reads_nothing; // not even the request
    int requests;       // begun to be answered
    int gone;           // connections that the gateway closed
    struct buf last;    // the last request, raw
};

struct rig_client {
    int fd;
    struct buf in, out;
    bool is_over, is_reset, reads_nothing;
    size_t read_max; // of one turn; 0: all
};

static struct {
    struct test_store store;
    struct conf_plugin plugins[4];
    char upstreams_json[2048], plugin_dir[200];
    struct epoch_reader *reader;
    struct loop *loop;
    struct resolver *resolver;
    struct fetcher *fetcher;
    struct kv *kv;
    struct stats *stats;
    struct flow_metrics *metrics;
    struct flow_shared shared;
    struct flow *flow;
    struct script *script;
    struct http1_server *server;
    struct listener *listener;
    uint16_t port;
    struct rig_upstream up[RIG_UPSTREAMS];
    struct rig_client client;
    struct http1_limits limits;
    bool is_up;
} rig;

// ---- time

static atomic_uint_fast64_t rig_skipped_ns;

static int64_t rig_wall_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000 +
           (int64_t)(atomic_load(&rig_skipped_ns) / 1000000u);
}

static uint64_t rig_boot_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_BOOTTIME, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec +
           atomic_load(&rig_skipped_ns);
}

static int rig_random(void *out, size_t len)
{
    FILE *file = fopen("/dev/urandom", "r");
    size_t got = file ? fread(out, 1, len, file) : 0;
    if (file)
        fclose(file);
    return got == len ? 0 : GW_EIO;
}

static inline void rig_advance(uint64_t ms)
{
    atomic_fetch_add(&rig_skipped_ns, ms * 1000000u);
}

// ---- upstreams

static inline int rig_listen(uint16_t *port)
{
    struct sockaddr_in name = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof name;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    ck_assert_int_ge(fd, 0);
    ck_assert_int_eq(bind(fd, (struct sockaddr *)&name, len), 0);
    ck_assert_int_eq(listen(fd, 64), 0);
    ck_assert_int_eq(getsockname(fd, (struct sockaddr *)&name, &len), 0);
    *port = ntohs(name.sin_port);
    return fd;
}

static inline void rig_conn_close(struct rig_conn *conn, bool with_reset)
{
    struct linger linger = {.l_onoff = 1, .l_linger = 0};
    if (with_reset)
        (void)setsockopt(conn->fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
    close(conn->fd);
    conn->fd = -1;
    buf_free(&conn->in);
}

static inline bool rig_request_is_complete(struct rig_upstream *up, struct rig_conn *conn)
{
    struct slice bytes = buf_slice(&conn->in);
    long end = slice_find(bytes, SLICE_LIT("\r\n\r\n"));
    if (end < 0)
        return false;
    if (up->answers_early)
        return true;
    struct slice head = slice_of(bytes.ptr, (size_t)end), body = slice_from(bytes, (size_t)end + 4);
    char text[4096];
    snprintf(text, sizeof text, "%.*s", SLICE_FMT(head));
    char *length = strcasestr(text, "content-length: ");
    if (length)
        return body.len >= strtoul(length + 16, NULL, 10);
    return !strcasestr(text, "transfer-encoding: chunked") ||
           slice_find(bytes, SLICE_LIT("\r\n0\r\n\r\n")) >= 0;
}

static inline void rig_conn_step(struct rig_upstream *up, struct rig_conn *conn)
{
    static char bytes[65536];
    ssize_t got = 0;
    while (!up->reads_nothing && (got = recv(conn->fd, bytes, sizeof bytes, 0)) > 0)
        ck_assert_int_eq(buf_append(&conn->in, slice_of(bytes, (size_t)got)), 0);
    if (!up->reads_nothing && (got == 0 || (errno != EAGAIN && errno != EWOULDBLOCK))) {
        up->gone++;
        rig_conn_close(conn, false);
        return;
    }
    if (!conn->is_answering && rig_request_is_complete(up, conn)) {
        conn->is_answering = true;
        conn->piece = conn->offset = 0;
        up->requests++;
        buf_clear(&up->last);
        ck_assert_int_eq(buf_append(&up->last, buf_slice(&conn->in)), 0);
    }
    if (!conn->is_answering)
        return;
    if (conn->piece < up->piece_count && conn->piece < up->allowed) {
        struct slice left = slice_from(up->pieces[conn->piece], conn->offset);
        ssize_t sent = left.len ? send(conn->fd, left.ptr, left.len, MSG_NOSIGNAL) : 0;
        if (sent > 0)
            conn->offset += (size_t)sent;
        if (conn->offset == up->pieces[conn->piece].len) {
            conn->piece++;
            conn->offset = 0;
        }
        return;
    }
    if (conn->piece >= up->piece_count && up->end != RIG_STAY)
        rig_conn_close(conn, up->end == RIG_RESET);
}

static inline void rig_upstream_step(struct rig_upstream *up)
{
    int fd;
    while ((fd = accept4(up->listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        struct rig_conn *conn = up->conns;
        while (conn->fd >= 0)
            conn++;
        ck_assert(conn < up->conns + RIG_CONNS);
        memset(conn, 0, sizeof *conn);
        conn->fd = fd;
        buf_init(&conn->in, 0);
        int small = 65536; // so that a pause of the gateway is felt
        (void)setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &small, sizeof small);
    }
    for (size_t i = 0; i < RIG_CONNS; i++) {
        if (up->conns[i].fd >= 0)
            rig_conn_step(up, &up->conns[i]);
    }
}

static inline void rig_says(size_t index, enum rig_end end, size_t count,
                            const struct slice *pieces)
{
    struct rig_upstream *up = &rig.up[index];
    ck_assert_uint_le(count, RIG_PIECES);
    memcpy(up->pieces, pieces, count * sizeof *pieces);
    up->piece_count = count;
    up->allowed = SIZE_MAX;
    up->end = end;
}
// Texts, NULL-terminated list; each is one piece.
#define RIG_SAYS(index, end, ...)                                                                  \
    do {                                                                                           \
        const char *const texts_[] = {__VA_ARGS__};                                                \
        struct slice pieces_[RIG_PIECES];                                                          \
        size_t count_ = sizeof texts_ / sizeof *texts_;                                            \
        for (size_t i_ = 0; i_ < count_; i_++)                                                     \
            pieces_[i_] = slice_str(texts_[i_]);                                                   \
        rig_says(index, end, count_, pieces_);                                                     \
    } while (0)

// ---- the client

static inline void rig_client_open(void)
{
    struct sockaddr_in name = {.sin_family = AF_INET,
                               .sin_port = htons(rig.port),
                               .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct rig_client *client = &rig.client;
    ck_assert_int_lt(client->fd, 0);
    memset(client, 0, sizeof *client);
    client->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int small = 16384; // so that a client that does not read is felt soon
    (void)setsockopt(client->fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
    ck_assert_int_eq(connect(client->fd, (struct sockaddr *)&name, sizeof name), 0);
    (void)fcntl(client->fd, F_SETFL, O_NONBLOCK);
    buf_init(&client->in, 0);
    buf_init(&client->out, 0);
}

static inline void rig_client_close(void)
{
    struct rig_client *client = &rig.client;
    if (client->fd >= 0)
        close(client->fd);
    client->fd = -1;
    buf_free(&client->in);
    buf_free(&client->out);
}

static inline void rig_client_step(void)
{
    static char bytes[65536];
    struct rig_client *client = &rig.client;
    if (client->fd < 0)
        return;
    if (client->out.len) {
        ssize_t sent = send(client->fd, buf_slice(&client->out).ptr, client->out.len, MSG_NOSIGNAL);
        if (sent > 0)
            buf_consume(&client->out, (size_t)sent);
    }
    while (!client->reads_nothing && !client->is_over) {
        size_t max = client->read_max ? client->read_max : sizeof bytes;
        ssize_t got = recv(client->fd, bytes, max, 0);
        if (got > 0)
            ck_assert_int_eq(buf_append(&client->in, slice_of(bytes, (size_t)got)), 0);
        else if (got == 0 || (errno != EAGAIN && errno != EWOULDBLOCK))
            client->is_over = true, client->is_reset = got < 0;
        else
            break;
        if (client->read_max)
            break;
    }
}

static inline void rig_send(struct slice bytes)
{
    ck_assert_int_eq(buf_append(&rig.client.out, bytes), 0);
}

// POST of a JSON body on a fresh connection that closes after the answer. headers: whole lines.
static inline void rig_post_with(const char *path, const char *headers, const char *body)
{
    char head[1024];
    rig_client_open();
    snprintf(
        head, sizeof head,
        "POST %s HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n"
        "%scontent-length: %zu\r\n\r\n",
        path, headers, strlen(body));
    rig_send(slice_str(head));
    rig_send(slice_str(body));
}

static inline void rig_post(const char *path, const char *body)
{
    rig_post_with(path, "", body);
}

// What the client has got, as a text.
static inline const char *rig_got(void)
{
    static char text[4000]; // Check takes no longer messages
    snprintf(text, sizeof text, "%.*s", SLICE_FMT(buf_slice(&rig.client.in)));
    return text;
}

static inline bool rig_has(const char *text)
{
    return slice_find(buf_slice(&rig.client.in), slice_str(text)) >= 0;
}

// The body of the answer without its chunks; is_whole: the last chunk came.
static inline struct slice rig_body(bool *is_whole)
{
    static char *body;
    struct slice in = buf_slice(&rig.client.in);
    long end = slice_find(in, SLICE_LIT("\r\n\r\n"));
    *is_whole = false;
    if (end < 0)
        return SLICE_LIT("");
    bool is_chunked =
        slice_find(slice_of(in.ptr, (size_t)end), SLICE_LIT("transfer-encoding: chunked")) >= 0;
    struct slice rest = slice_from(in, (size_t)end + 4);
    if (!is_chunked) {
        *is_whole = rig.client.is_over;
        return rest;
    }
    free(body);
    body = malloc(rest.len + 1);
    size_t len = 0;
    while (rest.len) {
        long line = slice_find(rest, SLICE_LIT("\r\n"));
        if (line < 0)
            break;
        size_t size = strtoul(rest.ptr, NULL, 16);
        rest = slice_from(rest, (size_t)line + 2);
        if (size == 0) {
            *is_whole = rest.len == 2;
            break;
        }
        size_t part = size < rest.len ? size : rest.len;
        memcpy(body + len, rest.ptr, part);
        len += part;
        rest = slice_from(rest, size + 2 < rest.len ? size + 2 : rest.len);
    }
    return slice_of(body, len);
}

// ---- turns

static inline void rig_turn(void)
{
    rig_client_step();
    for (size_t i = 0; i < RIG_UPSTREAMS; i++)
        rig_upstream_step(&rig.up[i]);
    (void)loop_turn(rig.loop);
}

static inline void rig_turns(int count)
{
    for (int i = 0; i < count; i++)
        rig_turn();
}

// Turns until the condition holds (some seconds at most).
#define RIG_WAIT(condition)                                                                        \
    do {                                                                                           \
        int left_ = 20000;                                                                         \
        while (!(condition) && left_-- > 0) {                                                      \
            rig_turn();                                                                            \
            if (left_ < 19900)                                                                     \
                usleep(200);                                                                       \
        }                                                                                          \
        ck_assert_msg(condition, "waited in vain for " #condition "; the client has: %s",          \
                      rig_got());                                                                  \
    } while (0)

// Until the client's connection has ended and the exchange with it.
#define RIG_FINISH()                                                                               \
    do {                                                                                           \
        RIG_WAIT(rig.client.is_over);                                                              \
        RIG_WAIT(flow_exchange_count(rig.flow) == 0);                                              \
    } while (0)

// ---- rows and counters

static inline int64_t rig_rows(const char *where)
{
    char sql[512];
    ck_assert_int_eq(journal_flush(store_journal(rig.store.store), 10000), 0);
    snprintf(sql, sizeof sql, "SELECT count(*) FROM request_logs WHERE %s", where);
    return test_query(&rig.store, "main-logs.db", sql);
}

static inline struct health_view rig_health(size_t index)
{
    struct health_view view;
    char name[4];
    epoch_enter(rig.reader);
    snprintf(name, sizeof name, "u%zu", index);
    const struct catalogue *catalogue = catalogue_get(store_catalogue(rig.store.store));
    const struct upstream *upstream = catalogue_upstream_named(catalogue, slice_str(name));
    ck_assert_ptr_nonnull(upstream);
    health_read(upstream->health, loop_now_ms(rig.loop), &view);
    epoch_leave(rig.reader);
    return view;
}

// Nothing is left of any call: no exchange, no bytes counted, nothing in flight.
static inline void rig_check_clean(void)
{
    ck_assert_uint_eq(flow_exchange_count(rig.flow), 0);
    ck_assert_int_eq(atomic_load(&rig.shared.body_bytes), 0);
    ck_assert_uint_eq(atomic_load(&rig.shared.exchanges), 0);
    for (size_t i = 0; i < RIG_UPSTREAMS; i++)
        ck_assert_uint_eq(rig_health(i).in_flight, 0);
    rig_turns(2);
    ck_assert_uint_eq(fetcher_counters(rig.fetcher)->active, 0);
}

// ---- up and down

static inline void rig_write_plugin(const char *top, const char *fields, const char *hooks)
{
    static const char FORMAT[] =
        "local gw\n%s\n"
        "return { name = 'p', version = '1.0.0', api = 1, about = 'A test.',\n"
        "needs = { upstreams = 'read' }, init = function(g) gw = g end, %s\n"
        "hooks = {\n"
        "identify = function(ctx) ctx:identify{ name = 't' } return true end,\n"
        "select = function(ctx) if ctx.attempt > 1 then return nil end\n"
        "  local v = gw.upstreams.candidates(ctx)\n"
        "  table.sort(v, function(a, b) return a.priority > b.priority end) return v end,\n"
        "%s } }\n";
    char path[300];
    snprintf(path, sizeof path, "%s/p", rig.store.dir.path);
    (void)mkdir(path, 0700);
    snprintf(path, sizeof path, "%s/p/init.lua", rig.store.dir.path);
    FILE *out = fopen(path, "w");
    ck_assert_ptr_nonnull(out);
    fprintf(out, FORMAT, top, fields, hooks);
    fclose(out);
}

static inline void rig_flip(void)
{
    struct plugin_set *set;
    struct buf problems = BUF_INIT(65536);
    int err = plugin_set_load(rig.store.conf, &set, &problems);
    ck_assert_msg(err == 0, "%.*s", SLICE_FMT(buf_slice(&problems)));
    epoch_enter(rig.reader);
    err = script_prepare(rig.script, set, &problems);
    ck_assert_msg(err == 0, "%.*s", SLICE_FMT(buf_slice(&problems)));
    script_flip(rig.script);
    script_turn_end(rig.script);
    epoch_leave(rig.reader);
    plugin_set_unref(set);
    buf_free(&problems);
}

// The failover that most tests want.
#define RIG_RETRY                                                                                  \
    "reply = function(ctx) if ctx.error and ctx.error.kind and ctx.can_retry then "                \
    "return 'retry' end end,"

static inline void rig_prepare(void)
{
    memset(&rig, 0, sizeof rig);
    rig.client.fd = -1;
    static const struct clock_source source = {rig_wall_ms, rig_boot_ns, rig_random};
    clock_use(&source);
    log_set_level(LOG_ERROR);
    setenv("MOONGATE_LUA_DIR", MOONGATE_SOURCE_DIR "/lua", 1);
    test_store_prepare(&rig.store);
    struct conf *conf = rig.store.conf;
    char *at = rig.upstreams_json, *end = at + sizeof rig.upstreams_json;
    at += snprintf(at, (size_t)(end - at), "[");
    for (size_t i = 0; i < RIG_UPSTREAMS; i++) {
        for (size_t k = 0; k < RIG_CONNS; k++)
            rig.up[i].conns[k].fd = -1;
        rig.up[i].listen_fd = rig_listen(&rig.up[i].port);
        rig.up[i].allowed = SIZE_MAX;
        buf_init(&rig.up[i].last, 0);
        at += snprintf(at, (size_t)(end - at),
                       "%s{\"name\":\"u%zu\",\"provider\":\"openai\",\"base_url\":"
                       "\"http://127.0.0.1:%u\",\"api_key\":\"sk-upstream-key-%zu\",\"formats\":"
                       "[\"openai\",\"responses\",\"claude\"],\"priority\":%zu}",
                       i ? "," : "", i, rig.up[i].port, i, 10 - i);
    }
    snprintf(at, (size_t)(end - at), "]");
    conf->upstreams_json = slice_str(rig.upstreams_json);
    snprintf(rig.plugin_dir, sizeof rig.plugin_dir, "%s,%s/plugins", rig.store.dir.path,
             MOONGATE_SOURCE_DIR);
    test_conf_set(conf, "plugin_dirs", rig.plugin_dir);
    test_conf_set(conf, "log.access", "false");
    rig.plugins[0] = (struct conf_plugin){.name = SLICE_LIT("provider_openai"),
                                          .settings_json = SLICE_LIT("{}")};
    rig.plugins[1] = (struct conf_plugin){.name = SLICE_LIT("p"), .settings_json = SLICE_LIT("{}")};
    conf->plugins = rig.plugins;
    conf->plugin_count = 2;
    http1_limits_default(&rig.limits);
}

static inline void rig_start(const char *top, const char *fields, const char *hooks)
{
    char error[256] = "";
    test_store_open(&rig.store);
    rig_write_plugin(top, fields, hooks);
    rig.reader = epoch_register(rig.store.epoch);
    ck_assert_int_eq(loop_new(rig.reader, &rig.loop), 0);
    ck_assert_int_eq(fetch_global_init(), 0);
    rig.resolver = resolver_new(1, NULL);
    ck_assert_int_eq(fetcher_new(rig.loop, rig.resolver, &rig.fetcher), 0);
    rig.kv = kv_new(1 << 20);
    rig.stats = stats_new(2);
    ck_assert_int_eq(flow_metrics_register(rig.stats, &rig.metrics), 0);
    const struct flow_options options = {
        .conf = rig.store.conf,
        .loop = rig.loop,
        .fetcher = rig.fetcher,
        .store = rig.store.store,
        .stats = rig.stats,
        .shard = stats_shard_of(rig.stats, 0),
        .metrics = rig.metrics,
        .shared = &rig.shared,
    };
    ck_assert_int_eq(flow_new(&options, &rig.flow), 0);
    const struct script_options script_options = {
        .conf = rig.store.conf,
        .loop = rig.loop,
        .fetcher = rig.fetcher,
        .store = rig.store.store,
        .kv = rig.kv,
        .stats = rig.stats,
        .shard = stats_shard_of(rig.stats, 0),
        .worker_count = 1,
        .host = flow_host(),
        .host_user = rig.flow,
    };
    ck_assert_int_eq(script_new(&script_options, &rig.script), 0);
    rig_flip();
    flow_set_script(rig.flow, rig.script);
    ck_assert_int_eq(
        http1_server_new(rig.loop, &rig.limits, flow_handler(), rig.flow, NULL, &rig.server), 0);
    flow_set_server(rig.flow, rig.server);
    int fd;
    ck_assert_int_eq(listener_bind_tcp("127.0.0.1", 0, false, &fd, &rig.port, error, sizeof error),
                     0);
    ck_assert_int_eq(
        listener_open(rig.loop, fd, false, FLOW_LISTENER_PUBLIC, rig.server, &rig.listener), 0);
    rig.is_up = true;
}

// The usual start: hooks are added to (or replace) those of rig_write_plugin.
static inline void rig_up(const char *hooks)
{
    rig_prepare();
    rig_start("", "", hooks);
}

static inline void rig_down(void)
{
    if (!rig.is_up)
        return;
    rig.is_up = false;
    rig_client_close();
    listener_close(rig.listener);
    http1_server_abort_all(rig.server, "test is over");
    rig_turns(5);
    epoch_enter(rig.reader);
    flow_drop_all(rig.flow);
    script_free(rig.script);
    fetcher_free(rig.fetcher);
    http1_server_free(rig.server);
    flow_free(rig.flow);
    epoch_leave(rig.reader);
    loop_free(rig.loop);
    resolver_free(rig.resolver);
    stats_free(rig.stats);
    flow_metrics_free(rig.metrics);
    kv_free(rig.kv);
    epoch_unregister(rig.reader);
    test_store_end(&rig.store);
    fetch_global_cleanup();
    for (size_t i = 0; i < RIG_UPSTREAMS; i++) {
        for (size_t k = 0; k < RIG_CONNS; k++) {
            if (rig.up[i].conns[k].fd >= 0)
                rig_conn_close(&rig.up[i].conns[k], false);
        }
        buf_free(&rig.up[i].last);
        close(rig.up[i].listen_fd);
    }
    clock_use(NULL);
}

static inline int rig_main(const char *name, const TTest *const *tests, size_t count)
{
    Suite *suite = suite_create(name);
    for (size_t i = 0; i < count; i++) { // a case each, so that CK_RUN_CASE runs one of them
        TCase *one = tcase_create(tests[i]->name);
        tcase_add_checked_fixture(one, NULL, rig_down);
        tcase_set_timeout(one, 120);
        tcase_add_test(one, tests[i]);
        suite_add_tcase(suite, one);
    }
    SRunner *runner = srunner_create(suite);
    srunner_set_fork_status(runner, CK_NOFORK);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}

// ---- bodies

#define RIG_EVENTS_HEAD                                                                            \
    "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
#define RIG_JSON_HEAD(status)                                                                      \
    "HTTP/1.1 " status "\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n"
#define RIG_ROLE                                                                                   \
    "data: {\"id\":\"c1\",\"object\":\"chat.completion.chunk\",\"model\":\"m\",\"choices\":"       \
    "[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n"
#define RIG_TEXT(text)                                                                             \
    "data: {\"id\":\"c1\",\"object\":\"chat.completion.chunk\",\"model\":\"m\",\"choices\":"       \
    "[{\"index\":0,\"delta\":{\"content\":\"" text "\"}}]}\n\n"
#define RIG_STOP                                                                                   \
    "data: {\"id\":\"c1\",\"object\":\"chat.completion.chunk\",\"model\":\"m\",\"choices\":"       \
    "[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n"
#define RIG_USAGE                                                                                  \
    "data: {\"id\":\"c1\",\"object\":\"chat.completion.chunk\",\"model\":\"m\",\"choices\":[],"    \
    "\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":3,\"total_tokens\":10}}\n\n"
#define RIG_DONE "data: [DONE]\n\n"
#define RIG_CHAT                                                                                   \
    "{\"model\":\"m\",\"stream\":true,\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]}"
#define RIG_CHAT_WHOLE "{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]}"
#define RIG_CHAT_USAGE                                                                             \
    "{\"model\":\"m\",\"stream\":true,\"stream_options\":{\"include_usage\":true},"                \
    "\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]}"
#define RIG_ANSWER                                                                                 \
    "{\"id\":\"c1\",\"object\":\"chat.completion\",\"model\":\"m\",\"choices\":[{\"index\":0,"     \
    "\"message\":{\"role\":\"assistant\",\"content\":\"yes\"},\"finish_reason\":\"stop\"}],"       \
    "\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":3,\"total_tokens\":10}}"
#define RIG_CHAT_PATH "/v1/chat/completions"
