#include "main/notify.h"

#include "base/log.h"
#include "base/slice.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define LISTEN_FDS_MAX 512

static void send_text(const char *text)
{
    const char *path = getenv("NOTIFY_SOCKET");
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    size_t len = path ? strlen(path) : 0;
    if (len < 2 || len >= sizeof address.sun_path || (path[0] != '/' && path[0] != '@'))
        return;
    memcpy(address.sun_path, path, len);
    if (path[0] == '@') // the abstract name space
        address.sun_path[0] = '\0';
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    socklen_t size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + len);
    if (fd < 0 ||
        sendto(fd, text, strlen(text), MSG_NOSIGNAL, (const struct sockaddr *)&address, size) < 0)
        log_event(LOG_WARN, "notify_failed", LOG_STR("reason", strerror(errno)));
    if (fd >= 0)
        close(fd);
}

void notify_ready(void)
{
    send_text("READY=1");
}

void notify_reloading(void)
{
    char text[80];
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    snprintf(text, sizeof text, "RELOADING=1\nMONOTONIC_USEC=%llu",
             (unsigned long long)now.tv_sec * 1000000u + (unsigned long long)now.tv_nsec / 1000u);
    send_text(text);
}

void notify_stopping(void)
{
    send_text("STOPPING=1");
}

void notify_successor(pid_t main_pid)
{
    char text[64];
    snprintf(text, sizeof text, "MAINPID=%ld\nREADY=1", (long)main_pid);
    send_text(text);
}

static long number_of(const char *name)
{
    const char *text = getenv(name);
    unsigned long long number;
    if (!text || slice_to_u64(slice_str(text), 1u << 30, &number) != GW_OK)
        return -1;
    return (long)number;
}

int notify_listen_fds(void)
{
    long pid = number_of("LISTEN_PID"), count = number_of("LISTEN_FDS");
    unsetenv("LISTEN_PID");
    unsetenv("LISTEN_FDS");
    unsetenv("LISTEN_FDNAMES");
    if (pid != (long)getpid() || count <= 0 || count > LISTEN_FDS_MAX)
        return 0;
    for (int fd = NOTIFY_FIRST_FD; fd < NOTIFY_FIRST_FD + (int)count; fd++) {
        (void)fcntl(fd, F_SETFD, FD_CLOEXEC);
        (void)fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
    }
    return (int)count;
}
