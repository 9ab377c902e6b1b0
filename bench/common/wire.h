#pragma once
// A non-blocking connection, plain or TLS, and the sockets' beginnings. One thread. Errors are
// negative errno values; -EAGAIN: later.
#include <openssl/ssl.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

struct wire {
    int fd; // -1: none
    SSL *ssl;
    bool reads_to_write; // a TLS write waits for the peer: no interest in EPOLLOUT
};

// A listener on host:port (0 chooses; *port is set). Ends the program with a message on failure.
int wire_listen(const char *host, uint16_t *port, int backlog);
// Begins to connect; source NULL: any. Negative errno.
int wire_connect(struct wire *wire, uint32_t host, uint16_t port, uint32_t source, int receive_size,
                 SSL_CTX *tls);
int wire_accept(struct wire *wire, int listener, SSL_CTX *tls);
ssize_t wire_read(struct wire *wire, char *into, size_t size); // 0: the peer closed
ssize_t wire_write(struct wire *wire, const char *bytes, size_t len);
void wire_close(struct wire *wire, bool with_reset);

SSL_CTX *wire_tls_server(const char *cert, const char *key);
SSL_CTX *wire_tls_client(void); // verifies nothing: it measures
// As many descriptors as the machine allows; gives the number.
uint64_t wire_raise_files(void);
