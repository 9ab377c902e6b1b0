#pragma once
// A scripted upstream for test_fetch*.c, on the test's own thread: the test turns the loop until
// the bytes it waits for are there, then answers by hand. Nothing sleeps for luck: every wait is
// for a condition and has a limit. kit_main runs every test over each transport.
#include "base/buf.h"
#include "base/clock.h"
#include "io/transport.h"

#include <arpa/inet.h>
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
#include <uv.h>

// No test uses all of it.
#pragma GCC diagnostic ignored "-Wunused-function"
#pragma GCC diagnostic ignored "-Wunused-variable"

// ---- time that can be moved

static _Atomic uint64_t kit_skipped_ns;

static uint64_t kit_boot_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_BOOTTIME, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec + kit_skipped_ns;
}

static int64_t kit_wall_ms(void)
{
    return 0;
}

static int kit_random(void *out, size_t len)
{
    memset(out, 7, len);
    return 0;
}

static const struct clock_source kit_clock = {kit_wall_ms, kit_boot_ns, kit_random};

static void kit_skip_ms(uint64_t ms)
{
    kit_skipped_ns += ms * 1000000u;
}

// ---- names

static atomic_int kit_lookups, kit_lookup_delay_ms;
static const char *kit_address = "127.0.0.1";

static int kit_look_up(const char *host, struct resolver_result *result)
{
    atomic_fetch_add(&kit_lookups, 1);
    if (kit_lookup_delay_ms)
        poll(NULL, 0, kit_lookup_delay_ms);
    if (strcmp(host, "unknown.test") == 0)
        return GW_EDNS;
    char addresses[64], *rest;
    snprintf(addresses, sizeof addresses, "%s",
             strcmp(host, "metadata.test") == 0 ? "169.254.169.254" : kit_address);
    for (char *address = strtok_r(addresses, " ", &rest); address != NULL;
         address = strtok_r(NULL, " ", &rest)) {
        struct sockaddr_in *v4 = (void *)&result->addresses[result->count++];
        v4->sin_family = AF_INET;
        inet_pton(AF_INET, address, &v4->sin_addr);
    }
    return 0;
}

// ---- the loop

static struct loop *kit_loop;
static struct resolver *kit_resolver;
static struct fetcher *kit_fetcher;

static void kit_turn(void)
{
    struct pollfd ready = {.fd = uv_backend_fd(loop_uv(kit_loop)), .events = POLLIN};
    if (!loop_turn(kit_loop))
        poll(&ready, 1, 1);
}

static void kit_turns(int count)
{
    while (count-- > 0)
        kit_turn();
}

#define KIT_UNTIL(condition)                                                                       \
    do {                                                                                           \
        for (int kit_spins = 0; !(condition) && kit_spins < 8000; kit_spins++)                     \
            kit_turn();                                                                            \
        ck_assert_msg((condition), "never: %s", #condition);                                       \
    } while (0)

// ---- the upstream

static int kit_listener = -1;
static uint16_t kit_port;
static int kit_accepted;

static bool kit_readable(int fd)
{
    struct pollfd ready = {.fd = fd, .events = POLLIN};
    return poll(&ready, 1, 0) == 1;
}

static void kit_listen(void)
{
    struct sockaddr_in address = {.sin_family = AF_INET};
    socklen_t len = sizeof address;
    inet_pton(AF_INET, "127.0.0.1", &address.sin_addr);
    kit_listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    ck_assert_int_eq(bind(kit_listener, (struct sockaddr *)&address, len), 0);
    ck_assert_int_eq(listen(kit_listener, 256), 0);
    ck_assert_int_eq(getsockname(kit_listener, (struct sockaddr *)&address, &len), 0);
    kit_port = ntohs(address.sin_port);
    kit_accepted = 0;
}

struct peer {
    int fd;
    size_t len, used;
    char in[4 * 1024 * 1024];
};

static struct peer *kit_accept(void)
{
    KIT_UNTIL(kit_readable(kit_listener));
    struct peer *peer = malloc(sizeof *peer);
    peer->len = peer->used = 0;
    peer->fd = accept4(kit_listener, NULL, NULL, SOCK_CLOEXEC);
    ck_assert_int_ge(peer->fd, 0);
    int on = 1;
    setsockopt(peer->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    kit_accepted++;
    return peer;
}

static void kit_close(struct peer *peer)
{
    if (peer->fd >= 0)
        close(peer->fd);
    free(peer);
}

static void kit_reset(struct peer *peer)
{
    struct linger linger = {1, 0};
    setsockopt(peer->fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
    close(peer->fd);
    peer->fd = -1;
}

// Takes what has come; false at the end of the stream.
static bool kit_take(struct peer *peer)
{
    while (kit_readable(peer->fd)) {
        ck_assert_uint_lt(peer->len, sizeof peer->in - 1);
        ssize_t got = recv(peer->fd, peer->in + peer->len, sizeof peer->in - 1 - peer->len, 0);
        if (got <= 0)
            return false;
        peer->len += (size_t)got;
    }
    peer->in[peer->len] = '\0';
    return true;
}

static bool kit_has_request(struct peer *peer)
{
    kit_take(peer);
    peer->in[peer->len] = '\0';
    char *from = peer->in + peer->used;
    char *end = strstr(from, "\r\n\r\n");
    if (end == NULL)
        return false;
    char *length = strcasestr(from, "\r\nContent-Length: ");
    char *chunked = strcasestr(from, "\r\nTransfer-Encoding: chunked");
    if (chunked != NULL && chunked < end)
        return memmem(end, peer->len - (size_t)(end - peer->in), "\r\n0\r\n\r\n", 7) != NULL;
    size_t body = length != NULL && length < end ? strtoul(length + 18, NULL, 10) : 0;
    return peer->len >= (size_t)(end - peer->in) + 4 + body;
}

// Waits for the next whole request and gives it as text.
static const char *kit_request(struct peer *peer)
{
    peer->used = 0;
    peer->len = 0;
    KIT_UNTIL(kit_has_request(peer));
    return peer->in;
}

static void kit_send(struct peer *peer, const void *bytes, size_t len)
{
    const char *at = bytes;
    for (int spins = 0; len > 0 && spins < 100000; spins++) {
        ssize_t sent = send(peer->fd, at, len, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent > 0) {
            at += sent;
            len -= (size_t)sent;
        } else {
            ck_assert_int_eq(errno, EAGAIN);
            kit_turn();
        }
    }
    ck_assert_uint_eq(len, 0);
}

static void kit_say(struct peer *peer, const char *text)
{
    kit_send(peer, text, strlen(text));
}

static bool kit_at_end(struct peer *peer)
{
    return !kit_take(peer);
}

// ---- one fetch and what became of it

struct result {
    struct fetch *fetch;
    int heads, status, dones, err, writables;
    char headers[4096];
    struct buf body;
    struct fetch_info info;
    // What the handler shall do.
    int pauses;        // answer this many chunks with FETCH_PAUSE
    size_t pause_from; // once that many bytes have come
    bool pause_all;
    bool cancel_in_head, cancel_in_body, cancel_in_done_of_other;
    struct result *other;
    int bodies, paused;
    bool is_paused;
};

static void kit_on_head(void *user, int status, const struct http1_header *headers, size_t count)
{
    struct result *result = user;
    result->heads++;
    result->status = status;
    size_t at = 0;
    for (size_t i = 0; i < count && at < sizeof result->headers; i++)
        at += (size_t)snprintf(result->headers + at, sizeof result->headers - at, "%.*s=%.*s;",
                               SLICE_FMT(headers[i].name), SLICE_FMT(headers[i].value));
    if (result->cancel_in_head)
        fetch_cancel(result->fetch);
}

static enum fetch_verdict kit_on_body(void *user, struct slice bytes)
{
    struct result *result = user;
    ck_assert_int_eq(result->dones, 0);
    ck_assert_int_eq(result->heads, 1);
    result->bodies++;
    if (result->cancel_in_body) {
        fetch_cancel(result->fetch);
        return FETCH_CONSUMED;
    }
    if (result->pause_all || (result->pauses > 0 && result->body.len >= result->pause_from)) {
        result->pauses--;
        result->paused++;
        result->is_paused = true;
        return FETCH_PAUSE;
    }
    ck_assert_int_eq(buf_append(&result->body, bytes), 0);
    return FETCH_CONSUMED;
}

static void kit_on_writable(void *user)
{
    ((struct result *)user)->writables++;
}

static void kit_on_done(void *user, int err, const struct fetch_info *info)
{
    struct result *result = user;
    result->dones++;
    result->err = err;
    result->info = *info;
    result->fetch = NULL;
    if (result->cancel_in_done_of_other && result->other->fetch != NULL)
        fetch_cancel(result->other->fetch);
}

static const struct fetch_handler kit_handler = {kit_on_head, kit_on_body, kit_on_writable,
                                                 kit_on_done};

static char kit_url_text[256];

static struct slice kit_url(const char *path)
{
    snprintf(kit_url_text, sizeof kit_url_text, "http://upstream.test:%u%s", kit_port, path);
    return slice_str(kit_url_text);
}

static struct fetch_request kit_get(const char *path)
{
    return (struct fetch_request){.method = SLICE_LIT("GET"), .url = kit_url(path)};
}

static struct fetch_request kit_post(const char *path, const struct slice *body, size_t count)
{
    return (struct fetch_request){
        .method = SLICE_LIT("POST"), .url = kit_url(path), .body = body, .body_count = count};
}

static void kit_start(struct result *result, const struct fetch_request *request)
{
    *result = (struct result){0};
    ck_assert_int_eq(fetch_start(kit_fetcher, request, &kit_handler, result, &result->fetch), 0);
    ck_assert_int_eq(result->dones, 0);
    ck_assert_int_eq(result->heads, 0);
}

static bool kit_body_is(const struct result *result, const char *text)
{
    return slice_is(buf_slice(&result->body), text);
}

static void kit_end(struct result *result)
{
    buf_free(&result->body);
}

// A whole GET with its answer on a connection that is kept.
static void kit_exchange(struct peer *peer)
{
    struct result result;
    struct fetch_request request = kit_get("/");
    kit_start(&result, &request);
    kit_request(peer);
    kit_say(peer, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    KIT_UNTIL(result.dones);
    ck_assert_int_eq(result.err, 0);
    ck_assert(kit_body_is(&result, "ok"));
    kit_end(&result);
}

static struct peer *kit_warm(void)
{
    struct result result;
    struct fetch_request request = kit_get("/warm");
    kit_start(&result, &request);
    struct peer *peer = kit_accept();
    kit_request(peer);
    kit_say(peer, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    KIT_UNTIL(result.dones);
    ck_assert_int_eq(result.err, 0);
    ck_assert(!result.info.is_reused);
    kit_end(&result);
    return peer;
}

// Descriptors of this process: every test ends with as many as it began with.
static int kit_count_fds(void)
{
    int count = 0;
    for (int fd = 0; fd < 4096; fd++)
        count += fcntl(fd, F_GETFD) >= 0;
    return count;
}

static int kit_fds;
static bool kit_over_curl;

static void kit_new_fetcher(void)
{
    ck_assert_int_eq(fetcher_new(kit_loop, kit_resolver, &kit_fetcher), 0);
    if (kit_over_curl)
        fetcher_use_curl(kit_fetcher);
}

static void kit_set_up(void)
{
    kit_fds = kit_count_fds();
    kit_lookups = 0;
    kit_lookup_delay_ms = 0;
    kit_address = "127.0.0.1";
    kit_listen();
    ck_assert_int_eq(loop_new(NULL, &kit_loop), 0);
    kit_resolver = resolver_new(2, kit_look_up);
    kit_new_fetcher();
}

static void kit_tear_down(void)
{
    fetcher_free(kit_fetcher);
    loop_free(kit_loop);
    resolver_free(kit_resolver);
    close(kit_listener);
    static bool is_later; // the first test opens what stays open in the libraries
    if (is_later)
        ck_assert_int_eq(kit_count_fds(), kit_fds);
    is_later = true;
}

static void kit_use_http1(void)
{
    kit_over_curl = false;
}

static void kit_use_curl(void)
{
    kit_over_curl = true;
}

// With KIT_HTTP1_ONLY the tests are about our own transport alone.
enum { KIT_BOTH, KIT_HTTP1_ONLY };

static int kit_main(const char *name, void (*add_tests)(TCase *tcase), int transports)
{
    clock_use(&kit_clock);
    gw_require(fetch_global_init() == 0);
    Suite *suite = suite_create(name);
    for (int i = 0; i < (transports == KIT_BOTH ? 2 : 1); i++) {
        TCase *tcase = tcase_create(i ? "curl" : "http1");
        tcase_set_timeout(tcase, 120);
        tcase_add_unchecked_fixture(tcase, i ? kit_use_curl : kit_use_http1, NULL);
        tcase_add_checked_fixture(tcase, kit_set_up, kit_tear_down);
        add_tests(tcase);
        suite_add_tcase(suite, tcase);
    }
    SRunner *runner = srunner_create(suite);
    srunner_set_fork_status(runner, CK_NOFORK);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    fetch_global_cleanup();
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
