// Contexts of both sides: versions, ciphers, certificates, the swap on reload.
#include "io/tls_internal.h"
#include "io/transport_tls.h"

#include <errno.h>
#include <openssl/err.h>
#include <openssl/x509.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

struct tls_server {
    pthread_mutex_t lock; // guards context
    struct tls_context *context;
    struct tls_tickets *tickets;
};

static const unsigned char http11[] = "\x08http/1.1";

// ---- contexts

// Takes ssl also on failure.
static struct tls_context *context_wrap(SSL_CTX *ssl, struct tls_tickets *tickets)
{
    struct tls_context *context = calloc(1, sizeof *context);
    if (!context) {
        SSL_CTX_free(ssl);
        return NULL;
    }
    atomic_init(&context->refs, 1);
    context->ssl = ssl;
    context->tickets = tickets ? tls_tickets_ref(tickets) : NULL;
    return context;
}

struct tls_context *tls_context_ref(struct tls_context *context)
{
    atomic_fetch_add_explicit(&context->refs, 1, memory_order_relaxed);
    return context;
}

void tls_context_unref(struct tls_context *context)
{
    if (!context || atomic_fetch_sub_explicit(&context->refs, 1, memory_order_acq_rel) != 1)
        return;
    SSL_CTX_free(context->ssl);
    tls_tickets_unref(context->tickets);
    free(context);
}

static SSL_CTX *new_ssl(const SSL_METHOD *method, const char *ciphers)
{
    SSL_CTX *ssl = SSL_CTX_new(method);
    if (!ssl)
        return NULL;
    // Buffers only while a record is under way: that is most of an idle connection's memory.
    SSL_CTX_set_mode(ssl, SSL_MODE_RELEASE_BUFFERS);
    SSL_CTX_set_read_ahead(ssl, 0);
    SSL_CTX_set_options(ssl, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION);
    tls_pipe_prepare(ssl);
    if (SSL_CTX_set_min_proto_version(ssl, TLS1_2_VERSION) != 1 ||
        SSL_CTX_set_cipher_list(ssl, ciphers) != 1) {
        SSL_CTX_free(ssl);
        return NULL;
    }
    return ssl;
}

int tls_context_new_client(const char *ca_file, struct tls_context **out, char *error,
                           size_t error_size)
{
    int err = GW_ENOMEM;
    X509_STORE *store = transport_tls_store(ca_file);
    if (!store) {
        if (ca_file)
            snprintf(error, error_size, "cannot read certificates from %s", ca_file);
        else
            snprintf(error, error_size, "the system's certificates are not loaded");
        return GW_EIO;
    }
    SSL_CTX *ssl = new_ssl(TLS_client_method(), "DEFAULT:!aNULL:!eNULL:!PSK:!SRP:!MD5:!3DES");
    if (ssl) {
        SSL_CTX_set1_cert_store(ssl, store);
        SSL_CTX_set_verify(ssl, SSL_VERIFY_PEER, NULL);
        SSL_CTX_set_session_cache_mode(ssl, SSL_SESS_CACHE_OFF);
        if (SSL_CTX_set_alpn_protos(ssl, http11, sizeof http11 - 1) == 0) {
            *out = context_wrap(ssl, NULL);
            ssl = NULL;
            err = *out ? 0 : GW_ENOMEM;
        }
    }
    SSL_CTX_free(ssl);
    X509_STORE_free(store);
    ERR_clear_error();
    if (err)
        snprintf(error, error_size, "cannot set up TLS: %s", gw_err_name(err));
    return err;
}

// ---- server

// A client that names protocols must name ours; one that names none speaks HTTP/1.1.
static int on_alpn(SSL *ssl, const unsigned char **out, unsigned char *out_len,
                   const unsigned char *offered, unsigned int offered_len, void *arg)
{
    (void)ssl;
    (void)arg;
    unsigned char *chosen;
    if (SSL_select_next_proto(&chosen, out_len, http11, sizeof http11 - 1, offered, offered_len) !=
        OPENSSL_NPN_NEGOTIATED)
        return SSL_TLSEXT_ERR_ALERT_FATAL;
    *out = chosen;
    return SSL_TLSEXT_ERR_OK;
}

// The library would ask at the terminal.
static int refuse_passphrase(char *text, int size, int is_written, void *arg)
{
    (void)text;
    (void)size;
    (void)is_written;
    (void)arg;
    return -1;
}

static int fail_file(const char *what, const char *file, const char *why, char *error,
                     size_t error_size)
{
    snprintf(error, error_size, "%s %s: %s", what, file, why);
    ERR_clear_error();
    return GW_EINVAL;
}

static const char *reason(void)
{
    const char *text = ERR_reason_error_string(ERR_peek_last_error());
    return text ? text : "not usable";
}

static int check_readable(const char *what, const char *file, char *error, size_t error_size)
{
    FILE *stream = fopen(file, "re");
    if (!stream)
        return fail_file(what, file, strerror(errno), error, error_size);
    fclose(stream);
    return 0;
}

static int load_files(SSL_CTX *ssl, const char *cert_file, const char *key_file, char *error,
                      size_t error_size)
{
    int err = check_readable("TLS certificate", cert_file, error, error_size);
    if (!err)
        err = check_readable("TLS key", key_file, error, error_size);
    if (err)
        return err;
    SSL_CTX_set_default_passwd_cb(ssl, refuse_passphrase);
    ERR_clear_error();
    if (SSL_CTX_use_certificate_chain_file(ssl, cert_file) != 1)
        return fail_file("TLS certificate", cert_file, reason(), error, error_size);
    if (SSL_CTX_use_PrivateKey_file(ssl, key_file, SSL_FILETYPE_PEM) == 1 &&
        SSL_CTX_check_private_key(ssl) == 1)
        return 0;
    unsigned long code = ERR_peek_last_error();
    if (ERR_GET_LIB(code) == ERR_LIB_X509 && (ERR_GET_REASON(code) == X509_R_KEY_VALUES_MISMATCH ||
                                              ERR_GET_REASON(code) == X509_R_KEY_TYPE_MISMATCH)) {
        snprintf(error, error_size, "TLS key %s does not belong to the certificate %s", key_file,
                 cert_file);
        ERR_clear_error();
        return GW_EINVAL;
    }
    return fail_file("TLS key", key_file, reason(), error, error_size);
}

static int load_context(struct tls_tickets *tickets, const char *cert_file, const char *key_file,
                        struct tls_context **out, char *error, size_t error_size)
{
    SSL_CTX *ssl = new_ssl(TLS_server_method(), "ECDHE+AESGCM:ECDHE+CHACHA20");
    if (!ssl || tls_tickets_use(tickets, ssl) != 0) {
        SSL_CTX_free(ssl);
        snprintf(error, error_size, "cannot set up TLS");
        return GW_ENOMEM;
    }
    // Ours first, but for those without AES in hardware, who ask for ChaCha20 first.
    SSL_CTX_set_options(ssl, SSL_OP_CIPHER_SERVER_PREFERENCE | SSL_OP_PRIORITIZE_CHACHA);
    SSL_CTX_set_alpn_select_cb(ssl, on_alpn, NULL);
    int err = load_files(ssl, cert_file, key_file, error, error_size);
    if (err) {
        SSL_CTX_free(ssl);
        return err;
    }
    *out = context_wrap(ssl, tickets);
    return *out ? 0 : GW_ENOMEM;
}

int tls_server_new(const char *cert_file, const char *key_file, struct tls_server **out,
                   char *error, size_t error_size)
{
    error[0] = '\0';
    struct tls_server *server = calloc(1, sizeof *server);
    if (!server)
        return GW_ENOMEM;
    pthread_mutex_init(&server->lock, NULL);
    server->tickets = tls_tickets_new();
    int err = server->tickets ? load_context(server->tickets, cert_file, key_file, &server->context,
                                             error, error_size)
                              : GW_ENOMEM;
    if (err) {
        tls_server_free(server);
        return err;
    }
    *out = server;
    return 0;
}

int tls_server_prepare(struct tls_server *server, const char *cert_file, const char *key_file,
                       struct tls_context **fresh, char *error, size_t error_size)
{
    error[0] = '\0';
    return load_context(server->tickets, cert_file, key_file, fresh, error, error_size);
}

void tls_server_swap(struct tls_server *server, struct tls_context *fresh)
{
    pthread_mutex_lock(&server->lock);
    struct tls_context *old = server->context;
    server->context = fresh;
    pthread_mutex_unlock(&server->lock);
    tls_context_unref(old);
}

void tls_server_free(struct tls_server *server)
{
    if (!server)
        return;
    tls_context_unref(server->context);
    tls_tickets_unref(server->tickets);
    pthread_mutex_destroy(&server->lock);
    free(server);
}

struct tls_context *tls_server_context(struct tls_server *server)
{
    pthread_mutex_lock(&server->lock);
    struct tls_context *context = tls_context_ref(server->context);
    pthread_mutex_unlock(&server->lock);
    return context;
}

bool tls_is_key_exposed(const char *key_file)
{
    struct stat info;
    return stat(key_file, &info) == 0 && (info.st_mode & (S_IRWXG | S_IRWXO)) != 0;
}

int tls_server_days_left(struct tls_server *server)
{
    struct tls_context *context = tls_server_context(server);
    X509 *certificate = SSL_CTX_get0_certificate(context->ssl);
    int days = 0, seconds = 0;
    if (!certificate || ASN1_TIME_diff(&days, &seconds, NULL, X509_get0_notAfter(certificate)) != 1)
        days = 0;
    else if (days == 0 && seconds < 0)
        days = -1;
    tls_context_unref(context);
    return days;
}
