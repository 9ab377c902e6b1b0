// What a service manager does, for the tests.
//
//   manager notify PATH              binds the datagram socket and prints each message on one line,
//                                    line ends as " | "
//   manager activate PORT COMMAND…   binds a listening socket on PORT (0: any), prints "port N" on
//                                    standard error, and becomes COMMAND with it as descriptor 3
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static int notify(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_DGRAM, 0);
    snprintf(address.sun_path, sizeof address.sun_path, "%s", path);
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof address) != 0) {
        perror(path);
        return 1;
    }
    printf("ready\n");
    for (;;) {
        char text[4096];
        fflush(stdout);
        ssize_t got = recv(fd, text, sizeof text - 1, 0);
        if (got < 0)
            return 1;
        text[got] = '\0';
        for (char *at = text; *at; at++) {
            if (*at == '\n')
                printf(" | ");
            else
                putchar(*at);
        }
        putchar('\n');
    }
}

static int activate(const char *port, char **command)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(port))};
    socklen_t size = sizeof address;
    char pid[32];
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, size) != 0 || listen(fd, 128) != 0 ||
        getsockname(fd, (struct sockaddr *)&address, &size) != 0) {
        perror("socket");
        return 1;
    }
    if (fd != 3 && dup2(fd, 3) != 3)
        return 1;
    fprintf(stderr, "port %u\n", ntohs(address.sin_port));
    snprintf(pid, sizeof pid, "%ld", (long)getpid());
    setenv("LISTEN_PID", pid, 1);
    setenv("LISTEN_FDS", "1", 1);
    execv(command[0], command);
    perror(command[0]);
    return 1;
}

int main(int argc, char **argv)
{
    if (argc == 3 && strcmp(argv[1], "notify") == 0)
        return notify(argv[2]);
    if (argc >= 4 && strcmp(argv[1], "activate") == 0)
        return activate(argv[2], argv + 3);
    fprintf(stderr, "usage: manager notify PATH | activate PORT COMMAND…\n");
    return 2;
}
