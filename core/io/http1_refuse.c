// Connections that are not taken up: a short answer, then the end. A socket that is closed while
// bytes of the peer are unread, or still come, is reset, and a reset overtakes the answer; so a few
// refused sockets are kept for a moment, read and thrown away. They are no connections: no parser,
// no watcher, one timer for all.
#include "io/http1_internal.h"

#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#define LOOK_MS 50u
#define KEEP_MS 1000u
#define READS_PER_LOOK 16

#define BODY(type, message)                                                                        \
    "{\"error\":{\"message\":\"" message "\",\"type\":\"" type                                     \
    "\",\"param\":null,\"code\":\"too_many_connections\"}}\n"
#define FULL_BODY BODY("server_error", "The gateway has too many connections.")
#define ADDRESS_BODY BODY("rate_limit_error", "Too many connections from this address.")
#define ANSWER(status, length, body)                                                               \
    "HTTP/1.1 " status "\r\n"                                                                      \
    "content-type: application/json\r\n"                                                           \
    "content-length: " length "\r\n"                                                               \
    "retry-after: 1\r\n"                                                                           \
    "x-should-retry: true\r\n"                                                                     \
    "connection: close\r\n\r\n" body

static const char FULL[] = ANSWER("503 Service Unavailable", "127", FULL_BODY);
static const char ADDRESS[] = ANSWER("429 Too Many Requests", "133", ADDRESS_BODY);
_Static_assert(sizeof FULL_BODY - 1 == 127, "content-length of the 503");
_Static_assert(sizeof ADDRESS_BODY - 1 == 133, "content-length of the 429");

static void say(const struct http1_server *server, uint32_t tag, int fd, enum http1_refusal why)
{
    bool is_address = why == HTTP1_REFUSED_ADDRESS;
    if (tag < HTTP1_TAGS && server->tls[tag])
        http1_tls_refuse_fd(fd);
    else
        (void)send(fd, is_address ? ADDRESS : FULL,
                   is_address ? sizeof ADDRESS - 1 : sizeof FULL - 1, MSG_NOSIGNAL | MSG_DONTWAIT);
    (void)shutdown(fd, SHUT_WR);
}

// True when nothing more is to come, or the peer is gone.
static bool drain(int fd)
{
    char bytes[4096];
    ssize_t got = sizeof bytes;
    for (int i = 0; i < READS_PER_LOOK && got == (ssize_t)sizeof bytes; i++)
        got = recv(fd, bytes, sizeof bytes, MSG_DONTWAIT);
    return got == 0 || (got < 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR);
}

void http1_refuse_fd(struct http1_server *server, uint32_t listener_tag, int fd)
{
    http1_ips_refused(server->ips, HTTP1_REFUSED_DESCRIPTORS);
    say(server, listener_tag, fd, HTTP1_REFUSED_DESCRIPTORS);
    (void)drain(fd);
    close(fd);
}

static void close_first(struct http1_refused *refused)
{
    close(refused->fds[refused->first]);
    refused->first = (refused->first + 1) % HTTP1_REFUSED_MAX;
    refused->count--;
}

static void on_look(struct loop_timer *timer)
{
    struct http1_refused *refused = list_entry(timer, struct http1_refused, timer);
    uint64_t now = loop_now_ms(timer->loop);
    for (size_t left = refused->count; left > 0; left--) {
        size_t at = refused->first;
        int fd = refused->fds[at];
        uint64_t until = refused->until_ms[at];
        refused->first = (at + 1) % HTTP1_REFUSED_MAX;
        refused->count--;
        if (drain(fd) || now >= until) {
            close(fd);
            continue;
        }
        size_t end = (refused->first + refused->count) % HTTP1_REFUSED_MAX; // back in the row
        refused->fds[end] = fd;
        refused->until_ms[end] = until;
        refused->count++;
    }
    if (refused->count)
        loop_timer_start(timer, LOOK_MS);
}

void http1_refused_init(struct http1_server *server)
{
    loop_timer_init(server->loop, &server->refused.timer, on_look);
}

void http1_refused_close(struct http1_server *server)
{
    loop_timer_stop(&server->refused.timer);
    while (server->refused.count)
        close_first(&server->refused);
}

void http1_refuse(struct http1_server *server, uint32_t tag, int fd, enum http1_refusal why)
{
    struct http1_refused *refused = &server->refused;
    server->counters.refused_limit++;
    http1_ips_refused(server->ips, why);
    say(server, tag, fd, why);
    uint32_t max = server->limits.max_connections / 32;
    if (max > HTTP1_REFUSED_MAX)
        max = HTTP1_REFUSED_MAX;
    if (drain(fd) || max == 0) {
        close(fd);
        return;
    }
    if (refused->count >= max)
        close_first(refused);
    size_t end = (refused->first + refused->count) % HTTP1_REFUSED_MAX;
    refused->fds[end] = fd;
    refused->until_ms[end] = loop_now_ms(server->loop) + KEEP_MS;
    refused->count++;
    if (!loop_timer_is_running(&refused->timer))
        loop_timer_start(&refused->timer, LOOK_MS);
}
