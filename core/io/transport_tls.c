#include "io/transport_tls.h"

#include <openssl/err.h>
#include <openssl/x509_vfy.h>
#include <stdlib.h>

#define SYSTEM_BUNDLE "/etc/ssl/certs/ca-certificates.crt" // Debian's ca-certificates

// Both are set before threads start; the store counts its references by itself.
static X509_STORE *system_store;
static int closed_index = -1; // of the connection's flag: close_notify was read

static X509_STORE *read_store(const char *path)
{
    X509_STORE *store = X509_STORE_new();
    if (store == NULL)
        return NULL;
    // As libcurl does: a trusted intermediate ends a chain.
    X509_STORE_set_flags(store, X509_V_FLAG_TRUSTED_FIRST | X509_V_FLAG_PARTIAL_CHAIN);
    if (path != NULL && X509_STORE_load_file(store, path) != 1) {
        X509_STORE_free(store);
        store = NULL;
    }
    ERR_clear_error();
    return store;
}

int transport_tls_init(void)
{
    const char *path = getenv("SSL_CERT_FILE"); // OpenSSL's own name for it
    if (path == NULL || *path == '\0')
        path = SYSTEM_BUNDLE;
    system_store = read_store(path);
    if (system_store == NULL)
        system_store = read_store(NULL);
    if (closed_index < 0)
        closed_index = SSL_get_ex_new_index(0, NULL, NULL, NULL, NULL);
    return system_store != NULL && closed_index >= 0 ? 0 : GW_ENOMEM;
}

void transport_tls_cleanup(void)
{
    X509_STORE_free(system_store);
    system_store = NULL;
}

X509_STORE *transport_tls_store(const char *ca_file)
{
    if (ca_file != NULL)
        return read_store(ca_file);
    if (system_store != NULL)
        X509_STORE_up_ref(system_store);
    return system_store;
}

static void on_info(const SSL *ssl, int where, int alert)
{
    if (where == SSL_CB_READ_ALERT && (alert & 0xff) == SSL_AD_CLOSE_NOTIFY)
        SSL_set_ex_data((SSL *)ssl, closed_index, (void *)&closed_index);
}

bool transport_tls_was_closed(const SSL *ssl)
{
    return SSL_get_ex_data(ssl, closed_index) != NULL;
}

void transport_tls_prepare(SSL_CTX *context, X509_STORE *store)
{
    SSL_CTX_set1_cert_store(context, store);
    SSL_CTX_set_info_callback(context, on_info);
    SSL_CTX_set_mode(context, SSL_MODE_RELEASE_BUFFERS);
}
