#include "common/wire.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

int wire_listen(const char *host, uint16_t *port, int backlog)
{
    int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(*port)};
    socklen_t size = sizeof address;
    if (inet_pton(AF_INET, host, &address.sin_addr) != 1) {
        fprintf(stderr, "not an IPv4 address: %s\n", host);
        exit(2);
    }
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof address) || listen(fd, backlog) ||
        getsockname(fd, (struct sockaddr *)&address, &size)) {
        perror("listen");
        exit(1);
    }
    *port = ntohs(address.sin_port);
    return fd;
}

static int begin_tls(struct wire *wire, SSL_CTX *tls, bool is_server)
{
    wire->ssl = NULL;
    wire->reads_to_write = false;
    if (!tls)
        return 0;
    wire->ssl = SSL_new(tls);
    if (!wire->ssl || !SSL_set_fd(wire->ssl, wire->fd)) {
        wire_close(wire, false);
        return -ENOMEM;
    }
    if (is_server)
        SSL_set_accept_state(wire->ssl);
    else
        SSL_set_connect_state(wire->ssl);
    return 0;
}

int wire_connect(struct wire *wire, uint32_t host, uint16_t port, uint32_t source, int receive_size,
                 SSL_CTX *tls)
{
    int one = 1;
    struct sockaddr_in to = {
        .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(host)};
    struct sockaddr_in from = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(source)};
    wire->ssl = NULL;
    wire->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (wire->fd < 0)
        return -errno;
    setsockopt(wire->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (receive_size)
        setsockopt(wire->fd, SOL_SOCKET, SO_RCVBUF, &receive_size, sizeof receive_size);
    if (source) {
        setsockopt(wire->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
        if (bind(wire->fd, (struct sockaddr *)&from, sizeof from)) {
            int err = -errno;
            wire_close(wire, false);
            return err;
        }
    }
    if (connect(wire->fd, (struct sockaddr *)&to, sizeof to) && errno != EINPROGRESS) {
        int err = -errno;
        wire_close(wire, false);
        return err;
    }
    return begin_tls(wire, tls, false);
}

int wire_accept(struct wire *wire, int listener, SSL_CTX *tls)
{
    int one = 1;
    wire->ssl = NULL;
    wire->fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (wire->fd < 0)
        return -errno;
    setsockopt(wire->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    return begin_tls(wire, tls, true);
}

static ssize_t tls_error(struct wire *wire, int result, bool is_write)
{
    int kind = SSL_get_error(wire->ssl, result);
    int err = errno;
    ERR_clear_error();
    if (kind == SSL_ERROR_WANT_READ || kind == SSL_ERROR_WANT_WRITE) {
        if (is_write)
            wire->reads_to_write = kind == SSL_ERROR_WANT_READ;
        return -EAGAIN;
    }
    if (kind == SSL_ERROR_ZERO_RETURN)
        return 0;
    return kind == SSL_ERROR_SYSCALL && err ? -err : -EPROTO;
}

ssize_t wire_read(struct wire *wire, char *into, size_t size)
{
    if (!wire->ssl) {
        ssize_t got = recv(wire->fd, into, size, 0);
        return got < 0 ? (errno == EINTR ? -EAGAIN : -errno) : got;
    }
    errno = 0;
    int got = SSL_read(wire->ssl, into, size > 1 << 20 ? 1 << 20 : (int)size);
    return got > 0 ? got : tls_error(wire, got, false);
}

ssize_t wire_write(struct wire *wire, const char *bytes, size_t len)
{
    if (!wire->ssl) {
        ssize_t sent = send(wire->fd, bytes, len, MSG_NOSIGNAL);
        if (sent >= 0)
            return sent;
        return errno == EINTR || errno == ENOTCONN ? -EAGAIN : -errno;
    }
    errno = 0;
    int sent = SSL_write(wire->ssl, bytes, len > 1 << 20 ? 1 << 20 : (int)len);
    if (sent > 0)
        return sent;
    ssize_t err = tls_error(wire, sent, true);
    return err == 0 ? -EPIPE : err;
}

void wire_close(struct wire *wire, bool with_reset)
{
    if (wire->ssl)
        SSL_free(wire->ssl);
    wire->ssl = NULL;
    if (wire->fd < 0)
        return;
    if (with_reset) {
        struct linger none = {.l_onoff = 1, .l_linger = 0};
        setsockopt(wire->fd, SOL_SOCKET, SO_LINGER, &none, sizeof none);
    }
    close(wire->fd);
    wire->fd = -1;
}

static SSL_CTX *tls_common(const SSL_METHOD *method)
{
    SSL_CTX *tls = SSL_CTX_new(method);
    if (!tls) {
        fprintf(stderr, "no TLS context\n");
        exit(1);
    }
    SSL_CTX_set_mode(tls, SSL_MODE_RELEASE_BUFFERS | SSL_MODE_ENABLE_PARTIAL_WRITE |
                              SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    return tls;
}

SSL_CTX *wire_tls_server(const char *cert, const char *key)
{
    SSL_CTX *tls = tls_common(TLS_server_method());
    if (SSL_CTX_use_certificate_chain_file(tls, cert) != 1 ||
        SSL_CTX_use_PrivateKey_file(tls, key, SSL_FILETYPE_PEM) != 1) {
        ERR_print_errors_fp(stderr);
        exit(2);
    }
    return tls;
}

SSL_CTX *wire_tls_client(void)
{
    return tls_common(TLS_client_method());
}

uint64_t wire_raise_files(void)
{
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    return limit.rlim_cur;
}
