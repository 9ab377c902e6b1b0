// Listening sockets over loopback and a unix path: binding, limits of descriptors, closing, and the
// things that only a TCP connection shows (peer address, reset).
#include "io/listener.h"

#include "base/clock.h"
#include "http1_rig.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/un.h>

#define GET "GET /g HTTP/1.1\r\nHost: a\r\n\r\n"

static char why[256];

static int bind_any(uint16_t *port)
{
    int fd = -1;
    ck_assert_int_eq(listener_bind_tcp("127.0.0.1", 0, true, &fd, port, why, sizeof why), 0);
    ck_assert_int_gt(*port, 0);
    return fd;
}

static struct sockaddr_in address_of(uint16_t port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
}

static int dial(uint16_t port)
{
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in address = address_of(port);
    ck_assert_int_ge(fd, 0);
    ck_assert_int_eq(connect(fd, (struct sockaddr *)&address, sizeof address), 0);
    ck_assert_int_eq(fcntl(fd, F_SETFL, O_NONBLOCK), 0);
    return fd;
}

// Runs the loop until the client has something to read (or was closed); at most 5 s.
static void await(struct rig *rig, int fd)
{
    for (int i = 0; i < 5000; i++) {
        rig_turn(rig);
        struct pollfd ready = {.fd = fd, .events = POLLIN};
        if (poll(&ready, 1, 1) == 1)
            return;
    }
    ck_abort_msg("nothing to read after 5 s");
}

static void await_count(struct rig *rig, const int *value, int wanted)
{
    for (int i = 0; i < 5000 && *value < wanted; i++) {
        rig_turn(rig);
        poll(NULL, 0, *value < wanted);
    }
    ck_assert_int_eq(*value, wanted);
}

static void expect_text(struct rig *rig, int fd, const char *start, bool closed)
{
    struct buf got = BUF_INIT(0);
    await(rig, fd);
    bool is_closed = rig_recv(rig, fd, &got);
    for (int i = 0; i < 100 && closed && !is_closed; i++) {
        await(rig, fd);
        is_closed = rig_recv(rig, fd, &got);
    }
    ck_assert_msg(slice_starts(buf_slice(&got), start), "%.*s", SLICE_FMT(buf_slice(&got)));
    ck_assert_int_eq(is_closed, closed);
    buf_free(&got);
}

START_TEST(binding)
{
    uint16_t port, other;
    int fd = -1, twin = -1;
    ck_assert_int_eq(listener_bind_tcp("127.0.0.1", 0, false, &fd, &port, why, sizeof why), 0);
    ck_assert_int_eq(listener_bind_tcp("127.0.0.1", port, false, &twin, &other, why, sizeof why),
                     GW_EBUSY);
    ck_assert_ptr_nonnull(strstr(why, "cannot"));
    ck_assert_ptr_nonnull(strstr(why, "in use"));
    close(fd);
    fd = bind_any(&port);
    ck_assert_int_eq(listener_bind_tcp("127.0.0.1", port, true, &twin, &other, why, sizeof why), 0);
    ck_assert_uint_eq(other, port);
    ck_assert_int_ne(fcntl(fd, F_GETFL) & O_NONBLOCK, 0);
    close(fd);
    close(twin);
    ck_assert_int_eq(listener_bind_tcp("192.0.2.1", 0, true, &fd, &port, why, sizeof why), GW_EIO);
    ck_assert_int_eq(listener_bind_tcp("", 0, true, &fd, &port, why, sizeof why), GW_EDNS);
    ck_assert_int_eq(listener_bind_tcp("localhost", 0, true, &fd, &port, why, sizeof why), 0);
    close(fd);
}
END_TEST

// A process that starts beside one that serves (an upgrade with more workers) takes no connection
// before it can: should it fail, they would be lost.
START_TEST(a_further_socket_gets_nothing_before_it_is_served)
{
    struct rig *rig = rig_new(RIG_ECHO);
    struct listener *listener = NULL;
    uint16_t port, same;
    int first = bind_any(&port), second = -1;
    ck_assert_int_eq(listener_open(rig->loop, first, false, 0, rig->server, &listener), 0);
    ck_assert_int_eq(listener_bind_tcp("127.0.0.1", port, true, &second, &same, why, sizeof why),
                     0);
    struct pollfd waits = {.fd = second, .events = POLLIN};
    for (int i = 0; i < 64; i++) {
        int fd = dial(port);
        rig_turn(rig);
        ck_assert_msg(poll(&waits, 1, 0) == 0 || !(waits.revents & POLLIN), "connection %d", i);
        close(fd);
    }
    close(second);
    listener_close(listener);
    rig_turn(rig);
    rig_free(rig);
}
END_TEST

START_TEST(serving_over_tcp)
{
    struct rig *rig = rig_new(RIG_ECHO);
    struct listener *listener;
    uint16_t port;
    int fd = bind_any(&port);
    ck_assert_int_eq(listener_open(rig->loop, fd, false, 9, rig->server, &listener), 0);
    int clients[100];
    for (int i = 0; i < 100; i++) // more than one turn accepts
        clients[i] = dial(port);
    rig->mode = RIG_MANUAL;
    ck_assert_int_gt((int)send(clients[99], GET, sizeof GET - 1, 0), 0);
    await_count(rig, &rig->stream_count, 1);
    ck_assert_uint_eq(http1_server_counters(rig->server)->open, 100);
    const struct http1_request *request = http1_request(rig->streams[0].stream);
    ck_assert_str_eq(request->peer_ip, "127.0.0.1");
    ck_assert_uint_eq(request->listener_tag, 9);
    ck_assert(!request->is_unix);
    rig_answer(&rig->streams[0]);
    expect_text(rig, clients[99], "HTTP/1.1 200 OK\r\n", false);
    for (int i = 0; i < 100; i++)
        close(clients[i]);
    for (int i = 0; i < 1000 && http1_server_counters(rig->server)->open; i++)
        rig_turn(rig);
    listener_close(listener);
    rig_free(rig);
}
END_TEST

START_TEST(disconnect_and_reset)
{
    struct rig *rig = rig_new(RIG_MANUAL);
    struct listener *listener;
    uint16_t port;
    int fd = bind_any(&port);
    ck_assert_int_eq(listener_open(rig->loop, fd, false, 0, rig->server, &listener), 0);
    // A client that closes, and one that resets, while the answer is pending.
    for (int i = 0; i < 2; i++) {
        int client = dial(port);
        ck_assert_int_gt((int)send(client, GET, sizeof GET - 1, 0), 0);
        await_count(rig, &rig->stream_count, i + 1);
        struct linger linger = {.l_onoff = i, .l_linger = 0};
        ck_assert_int_eq(setsockopt(client, SOL_SOCKET, SO_LINGER, &linger, sizeof linger), 0);
        close(client);
        await_count(rig, &rig->close_count, i + 1);
        ck_assert_int_eq(rig->streams[i].err, GW_ERESET);
    }
    // An answer without a length, cut: the client must not take it for complete.
    int client = dial(port);
    static const char old[] = "GET / HTTP/1.0\r\n\r\n";
    ck_assert_int_gt((int)send(client, old, sizeof old - 1, 0), 0);
    await_count(rig, &rig->stream_count, 3);
    struct http1_stream *stream = rig->streams[2].stream;
    ck_assert_int_eq(http1_respond_head(stream, 200, NULL, 0, -1), 0);
    ck_assert_int_eq(http1_write(stream, SLICE_LIT("part")), 0);
    rig_turn(rig);
    http1_abort(stream, "cut");
    char bytes[1024];
    ssize_t got;
    await(rig, client);
    while ((got = recv(client, bytes, sizeof bytes, 0)) > 0)
        continue;
    ck_assert_int_eq((int)got, -1);
    ck_assert_int_eq(errno, ECONNRESET);
    close(client);
    listener_close(listener);
    rig_free(rig);
}
END_TEST

START_TEST(closing_serves_what_is_queued)
{
    struct rig *rig = rig_new(RIG_ECHO);
    struct listener *listener;
    uint16_t port;
    int fd = bind_any(&port);
    ck_assert_int_eq(listener_open(rig->loop, fd, false, 0, rig->server, &listener), 0);
    int client = dial(port);
    ck_assert_int_gt((int)send(client, GET, sizeof GET - 1, 0), 0);
    // The shutdown order: first the listeners, then the server drains.
    listener_close(listener);
    http1_server_drain(rig->server);
    expect_text(rig, client, "HTTP/1.1 200 OK\r\n", true);
    close(client);
    int late = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in address = address_of(port);
    ck_assert_int_eq(connect(late, (struct sockaddr *)&address, sizeof address), -1);
    ck_assert_int_eq(errno, ECONNREFUSED);
    close(late);
    rig_free(rig);
}
END_TEST

START_TEST(out_of_descriptors)
{
    struct rig *rig = rig_new(RIG_ECHO);
    struct listener *listener;
    uint16_t port;
    int fd = bind_any(&port);
    ck_assert_int_eq(listener_open(rig->loop, fd, false, 0, rig->server, &listener), 0);
    int clients[8];
    for (int i = 0; i < 8; i++)
        clients[i] = dial(port);
    rig_turn(rig);
    while (http1_server_counters(rig->server)->open < 8)
        rig_turn(rig);
    // Three more connect; then no descriptor is left to accept them with.
    int more[3];
    for (int i = 0; i < 3; i++)
        more[i] = dial(port);
    struct rlimit old, none;
    ck_assert_int_eq(getrlimit(RLIMIT_NOFILE, &old), 0);
    none = old;
    int probe = dup(0);
    none.rlim_cur = (rlim_t)probe;
    close(probe);
    ck_assert_int_eq(setrlimit(RLIMIT_NOFILE, &none), 0);
    uint64_t before = listener_emfile_count();
    for (int i = 0; i < 1000 && listener_emfile_count() < before + 3; i++)
        rig_turn(rig);
    ck_assert_uint_eq(listener_emfile_count(), before + 3);
    for (int i = 0; i < 3; i++)
        expect_text(rig, more[i], "HTTP/1.1 503 Service Unavailable\r\n", true);
    // Those that are there are served.
    ck_assert_int_gt((int)send(clients[0], GET, sizeof GET - 1, 0), 0);
    expect_text(rig, clients[0], "HTTP/1.1 200 OK\r\n", false);
    // It looks away: a connection that comes now waits unaccepted, and the loop does not spin.
    uint64_t accepted = http1_server_counters(rig->server)->accepted;
    ck_assert_int_eq(setrlimit(RLIMIT_NOFILE, &old), 0);
    int waiting = dial(port);
    rig_turn(rig);
    ck_assert_uint_eq(http1_server_counters(rig->server)->accepted, accepted);
    ck_assert(!loop_turn(rig->loop));
    rig_pass(rig, 101);
    while (http1_server_counters(rig->server)->accepted == accepted)
        rig_turn(rig);
    ck_assert_int_gt((int)send(waiting, GET, sizeof GET - 1, 0), 0);
    expect_text(rig, waiting, "HTTP/1.1 200 OK\r\n", false);
    for (int i = 0; i < 8; i++)
        close(clients[i]);
    for (int i = 0; i < 3; i++)
        close(more[i]);
    close(waiting);
    listener_close(listener);
    rig_free(rig);
}
END_TEST

static int accept_errno, accept_calls;

static int failing_accept(int fd, struct sockaddr *peer, unsigned *len, int flags)
{
    accept_calls++;
    if (accept_errno == 0)
        return accept4(fd, peer, len, flags);
    errno = accept_errno;
    return -1;
}

// Whatever the kernel is short of: one look in 100 ms, and the client is served afterwards.
START_TEST(short_of_kernel_memory)
{
    static const int ERRORS[] = {ENOMEM, ENOBUFS, ENFILE, EMFILE};
    listener_use_accept(failing_accept);
    for (size_t i = 0; i < sizeof ERRORS / sizeof *ERRORS; i++) {
        struct rig *rig = rig_new(RIG_ECHO);
        struct listener *listener;
        uint16_t port;
        int fd = bind_any(&port);
        ck_assert_int_eq(listener_open(rig->loop, fd, false, 0, rig->server, &listener), 0);
        accept_errno = ERRORS[i];
        accept_calls = 0;
        int client = dial(port);
        for (int k = 0; k < 200 && accept_calls == 0; k++) {
            (void)loop_turn(rig->loop);
            poll(NULL, 0, accept_calls == 0);
        }
        // Out of descriptors it tries once more, through the reserve.
        int most = ERRORS[i] == ENFILE || ERRORS[i] == EMFILE ? 2 : 1;
        ck_assert_int_eq(accept_calls, most);
        for (int k = 0; k < 1000; k++)
            (void)loop_turn(rig->loop);
        ck_assert_int_eq(accept_calls, most); // it looks away
        ck_assert(!loop_turn(rig->loop));
        rig_pass(rig, 101);
        for (int k = 0; k < 200 && accept_calls == most; k++) {
            (void)loop_turn(rig->loop);
            poll(NULL, 0, accept_calls == most);
        }
        ck_assert_int_eq(accept_calls, 2 * most);
        accept_errno = 0;
        rig_pass(rig, 101);
        ck_assert_int_gt((int)send(client, GET, sizeof GET - 1, 0), 0);
        expect_text(rig, client, "HTTP/1.1 200 OK\r\n", false);
        close(client);
        listener_close(listener);
        rig_free(rig);
    }
    listener_use_accept(NULL);
}
END_TEST

START_TEST(unix_socket)
{
    char dir[] = "/tmp/test-listener-XXXXXX", path[64], file[64], deep[256];
    ck_assert_ptr_nonnull(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/control", dir);
    snprintf(file, sizeof file, "%s/file", dir);
    memset(deep, 'a', sizeof deep - 1);
    deep[sizeof deep - 1] = '\0';
    int fd = -1, other = -1;
    ck_assert_int_eq(listener_bind_unix(deep, &fd, why, sizeof why), GW_EINVAL);
    ck_assert_int_eq(listener_bind_unix("", &fd, why, sizeof why), GW_EINVAL);
    ck_assert_int_eq(listener_bind_unix(path, &fd, why, sizeof why), 0);
    struct stat info;
    ck_assert_int_eq(stat(path, &info), 0);
    ck_assert_uint_eq(info.st_mode & 0777u, 0600);
    ck_assert_int_eq(listener_bind_unix(path, &other, why, sizeof why), GW_EBUSY); // alive
    close(fd);
    ck_assert_int_eq(listener_bind_unix(path, &fd, why, sizeof why), 0); // stale
    int plain = open(file, O_CREAT | O_WRONLY, 0600);
    close(plain);
    ck_assert_int_eq(listener_bind_unix(file, &other, why, sizeof why), GW_EEXISTS);

    struct rig *rig = rig_new(RIG_MANUAL);
    struct listener *listener;
    ck_assert_int_eq(listener_open(rig->loop, fd, true, 4, rig->server, &listener), 0);
    int client = socket(AF_UNIX, SOCK_STREAM, 0);
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    memcpy(name.sun_path, path, strlen(path));
    ck_assert_int_eq(connect(client, (struct sockaddr *)&name, sizeof name), 0);
    ck_assert_int_eq(fcntl(client, F_SETFL, O_NONBLOCK), 0);
    ck_assert_int_gt((int)send(client, GET, sizeof GET - 1, 0), 0);
    await_count(rig, &rig->stream_count, 1);
    const struct http1_request *request = http1_request(rig->streams[0].stream);
    ck_assert(request->is_unix);
    ck_assert_str_eq(request->peer_ip, "");
    ck_assert_uint_eq(request->listener_tag, 4);
    rig_answer(&rig->streams[0]);
    expect_text(rig, client, "HTTP/1.1 200 OK\r\n", false);
    close(client);
    listener_close(listener);
    rig_free(rig);
    unlink(path);
    unlink(file);
    rmdir(dir);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("listener");
    TCase *tcase = tcase_create("listener");
    tcase_set_timeout(tcase, 120);
    tcase_add_test(tcase, binding);
    tcase_add_test(tcase, a_further_socket_gets_nothing_before_it_is_served);
    tcase_add_test(tcase, serving_over_tcp);
    tcase_add_test(tcase, disconnect_and_reset);
    tcase_add_test(tcase, closing_serves_what_is_queued);
    tcase_add_test(tcase, out_of_descriptors);
    tcase_add_test(tcase, short_of_kernel_memory);
    tcase_add_test(tcase, unix_socket);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_set_fork_status(runner, CK_NOFORK);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? 1 : 0;
}
