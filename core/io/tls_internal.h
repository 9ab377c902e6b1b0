#pragma once
// What the parts of the TLS module share; nobody else includes this. tls_context.c makes contexts
// and reads files, tls_ticket.c keeps the keys of session tickets, tls_pipe.c moves bytes.
#include "io/tls.h"

#include <openssl/ssl.h>
#include <stdatomic.h>
#include <stdint.h>

struct tls_tickets; // counted, because a context may outlive its server

struct tls_context {
    _Atomic uint32_t refs;
    SSL_CTX *ssl;
    struct tls_tickets *tickets; // NULL: a client's
};

// What concerns pipes of either side: the message callback, which bounds key updates.
void tls_pipe_prepare(SSL_CTX *ssl);

struct tls_tickets *tls_tickets_new(void); // NULL: no memory, or no randomness
struct tls_tickets *tls_tickets_ref(struct tls_tickets *tickets);
void tls_tickets_unref(struct tls_tickets *tickets);
// Lets a server context make and take tickets under these keys; borrows tickets.
GW_MUSTCHECK int tls_tickets_use(struct tls_tickets *tickets, SSL_CTX *ssl);

// The context at hand, with a reference for the caller.
struct tls_context *tls_server_context(struct tls_server *server);
