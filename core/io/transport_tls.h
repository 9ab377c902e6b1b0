#pragma once
// The certificates that upstreams are checked against. libcurl would read and parse the system's
// bundle again for each of its multis, some 140 certificates on the loop; here it is read once per
// process and shared. Private to fetch.c and transport*.c.
#include "base/err.h"
#include <openssl/ssl.h>

// Once per process; a machine without a bundle is no error here: its handshakes fail.
GW_MUSTCHECK int transport_tls_init(void);
void transport_tls_cleanup(void);
// The system's store, or that of one PEM file (read now). Gives a reference; NULL: unreadable.
X509_STORE *transport_tls_store(const char *ca_file);
// Sets up a client context that libcurl is about to use.
void transport_tls_prepare(SSL_CTX *context, X509_STORE *store);
// Whether the peer said close_notify: libcurl takes any end of the stream for a good one, and where
// only the end delimits a body that would make a cut look complete.
bool transport_tls_was_closed(const SSL *ssl);
