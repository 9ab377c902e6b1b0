// One TLS connection between two runs of bytes. OpenSSL reads through a BIO that looks at the
// caller's ciphertext where it lies and writes through the same BIO into the caller's queue; both
// are set for the length of one call only.
#include "io/tls_internal.h"

#include <arpa/inet.h>
#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/x509v3.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

// What one side may send before the handshake is over: a server sends certificates, a client only
// its hello (1 to 2 KiB with post-quantum key shares).
#define CLIENT_HANDSHAKE_BYTES (32u * 1024u)
#define SERVER_HANDSHAKE_BYTES (256u * 1024u)
#define KEY_UPDATES_MAX 256 // each costs a few bytes of the peer's and two key derivations of ours

struct tls_pipe {
    SSL *ssl;
    struct tls_context *context;
    struct slice in; // the caller's, during a call
    struct buf *out; // the caller's, during a call
    const char *error;
    uint32_t handshake_bytes;
    uint32_t key_updates;
    bool is_client, is_established, is_closed, is_close_sent, is_out_full;
};

// ---- the BIO

static int bio_write(BIO *bio, const char *bytes, int len)
{
    struct tls_pipe *pipe = BIO_get_data(bio);
    BIO_clear_retry_flags(bio);
    if (!pipe->out || len < 0 || buf_append(pipe->out, slice_of(bytes, (size_t)len)) != 0) {
        pipe->is_out_full = true;
        return -1;
    }
    return len;
}

static int bio_read(BIO *bio, char *bytes, int size)
{
    struct tls_pipe *pipe = BIO_get_data(bio);
    BIO_clear_retry_flags(bio);
    if (pipe->key_updates > KEY_UPDATES_MAX)
        return -1;
    size_t len = pipe->in.len < (size_t)size ? pipe->in.len : (size_t)size;
    if (len == 0) {
        BIO_set_retry_read(bio);
        return -1;
    }
    memcpy(bytes, pipe->in.ptr, len);
    pipe->in = slice_from(pipe->in, len);
    return (int)len;
}

static long bio_control(BIO *bio, int command, long number, void *pointer)
{
    (void)bio;
    (void)number;
    (void)pointer;
    return command == BIO_CTRL_FLUSH ? 1 : 0;
}

static BIO_METHOD *method; // shared by all pipes, for the life of the process

static void make_method(void)
{
    BIO_METHOD *fresh = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "moongate");
    if (fresh && BIO_meth_set_write(fresh, bio_write) == 1 &&
        BIO_meth_set_read(fresh, bio_read) == 1 && BIO_meth_set_ctrl(fresh, bio_control) == 1)
        method = fresh;
}

static void on_message(int is_sent, int version, int type, const void *bytes, size_t len, SSL *ssl,
                       void *arg)
{
    (void)version;
    (void)arg;
    if (type == SSL3_RT_HANDSHAKE && !is_sent && len > 0 &&
        *(const unsigned char *)bytes == SSL3_MT_KEY_UPDATE) {
        struct tls_pipe *pipe = SSL_get_app_data(ssl);
        pipe->key_updates++;
    }
}

void tls_pipe_prepare(SSL_CTX *ssl)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, make_method);
    SSL_CTX_set_msg_callback(ssl, on_message);
}

// ---- life

// Takes context also on failure.
static int pipe_new(struct tls_context *context, struct tls_pipe **out)
{
    struct tls_pipe *pipe = calloc(1, sizeof *pipe);
    BIO *bio = pipe && method ? BIO_new(method) : NULL;
    SSL *ssl = bio ? SSL_new(context->ssl) : NULL;
    if (!ssl) {
        BIO_free(bio);
        free(pipe);
        tls_context_unref(context);
        ERR_clear_error();
        return GW_ENOMEM;
    }
    BIO_set_data(bio, pipe);
    BIO_set_init(bio, 1);
    SSL_set_bio(ssl, bio, bio);
    SSL_set_app_data(ssl, pipe);
    pipe->ssl = ssl;
    pipe->context = context;
    *out = pipe;
    return 0;
}

int tls_pipe_new_server(struct tls_server *server, struct tls_pipe **out)
{
    int err = pipe_new(tls_server_context(server), out);
    if (!err)
        SSL_set_accept_state((*out)->ssl);
    return err;
}

static bool is_address(const char *host)
{
    unsigned char bytes[16];
    return inet_pton(AF_INET, host, bytes) == 1 || inet_pton(AF_INET6, host, bytes) == 1;
}

int tls_pipe_new_client(struct tls_context *context, const char *host, struct tls_pipe **out)
{
    struct tls_pipe *pipe;
    int err = pipe_new(tls_context_ref(context), &pipe);
    if (err)
        return err;
    pipe->is_client = true;
    SSL_set_connect_state(pipe->ssl);
    bool is_set;
    if (is_address(host)) {
        is_set = X509_VERIFY_PARAM_set1_ip_asc(SSL_get0_param(pipe->ssl), host) == 1;
    } else {
        SSL_set_hostflags(pipe->ssl, X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS);
        is_set =
            SSL_set1_host(pipe->ssl, host) == 1 && SSL_set_tlsext_host_name(pipe->ssl, host) == 1;
    }
    if (!is_set || host[0] == '\0') {
        tls_pipe_free(pipe);
        ERR_clear_error();
        return GW_EINVAL;
    }
    *out = pipe;
    return 0;
}

void tls_pipe_free(struct tls_pipe *pipe)
{
    if (!pipe)
        return;
    SSL_free(pipe->ssl);
    tls_context_unref(pipe->context);
    free(pipe);
}

// ---- bytes

static void call_begin(struct tls_pipe *pipe, struct slice in, struct buf *out)
{
    pipe->in = in;
    pipe->out = out;
    ERR_clear_error(); // the thread's queue is shared with libcurl's connections
}

static void call_end(struct tls_pipe *pipe)
{
    pipe->in = SLICE_NONE;
    pipe->out = NULL;
    ERR_clear_error();
}

static int pipe_fail(struct tls_pipe *pipe, const char *text)
{
    long verified = SSL_get_verify_result(pipe->ssl);
    if (!text && pipe->is_out_full)
        text = "the peer does not read";
    if (!text && pipe->key_updates > KEY_UPDATES_MAX)
        text = "too many key updates";
    if (!text && pipe->is_client && verified != X509_V_OK)
        text = X509_verify_cert_error_string(verified);
    if (!text)
        text = ERR_reason_error_string(ERR_peek_error());
    pipe->error = text ? text : "TLS failed";
    return GW_ETLS;
}

static int handshake(struct tls_pipe *pipe)
{
    size_t before = pipe->in.len;
    int done = SSL_do_handshake(pipe->ssl);
    pipe->handshake_bytes += (uint32_t)(before - pipe->in.len);
    if (done == 1) {
        struct slice alpn = tls_pipe_alpn(pipe);
        if (alpn.len > 0 && !slice_is(alpn, "http/1.1"))
            return pipe_fail(pipe, "the peer chose another protocol than http/1.1");
        pipe->is_established = true;
        return 0;
    }
    if (SSL_get_error(pipe->ssl, done) != SSL_ERROR_WANT_READ)
        return pipe_fail(pipe, NULL);
    if (pipe->handshake_bytes > (pipe->is_client ? SERVER_HANDSHAKE_BYTES : CLIENT_HANDSHAKE_BYTES))
        return pipe_fail(pipe, "the handshake is too long");
    return 0;
}

int tls_pipe_start(struct tls_pipe *pipe, struct buf *out)
{
    if (pipe->error)
        return GW_ETLS;
    call_begin(pipe, SLICE_NONE, out);
    int err = handshake(pipe);
    call_end(pipe);
    return err;
}

int tls_pipe_read(struct tls_pipe *pipe, struct slice *cipher, char *plain, size_t size,
                  size_t *got, struct buf *out)
{
    *got = 0;
    if (pipe->error)
        return GW_ETLS;
    if (pipe->is_closed) { // whatever comes after the goodbye is not the peer's
        *cipher = slice_from(*cipher, cipher->len);
        return 0;
    }
    call_begin(pipe, *cipher, out);
    int err = pipe->is_established ? 0 : handshake(pipe);
    while (!err && pipe->is_established && *got < size) {
        size_t len = 0;
        int done = SSL_read_ex(pipe->ssl, plain + *got, size - *got, &len);
        if (done == 1) {
            *got += len;
            continue;
        }
        int why = SSL_get_error(pipe->ssl, done);
        if (why == SSL_ERROR_WANT_READ)
            break;
        if (why == SSL_ERROR_ZERO_RETURN) {
            pipe->is_closed = true;
            pipe->in = slice_from(pipe->in, pipe->in.len);
            break;
        }
        err = pipe_fail(pipe, NULL);
    }
    *cipher = pipe->in;
    call_end(pipe);
    return err;
}

int tls_pipe_write(struct tls_pipe *pipe, struct slice plain, struct buf *out)
{
    if (pipe->error || pipe->is_close_sent)
        return GW_ETLS;
    if (!pipe->is_established)
        return GW_EAGAIN;
    if (plain.len == 0)
        return 0;
    call_begin(pipe, SLICE_NONE, out);
    size_t len = 0;
    int err = SSL_write_ex(pipe->ssl, plain.ptr, plain.len, &len) == 1 && len == plain.len
                  ? 0
                  : pipe_fail(pipe, NULL);
    call_end(pipe);
    return err;
}

void tls_pipe_close(struct tls_pipe *pipe, struct buf *out)
{
    if (pipe->error || pipe->is_close_sent || !pipe->is_established)
        return;
    pipe->is_close_sent = true;
    call_begin(pipe, SLICE_NONE, out);
    if (SSL_shutdown(pipe->ssl) < 0)
        (void)!pipe_fail(pipe, NULL);
    call_end(pipe);
}

bool tls_pipe_is_established(const struct tls_pipe *pipe)
{
    return pipe->is_established;
}

bool tls_pipe_is_closed(const struct tls_pipe *pipe)
{
    return pipe->is_closed;
}

bool tls_pipe_is_close_sent(const struct tls_pipe *pipe)
{
    return pipe->is_close_sent;
}

bool tls_pipe_is_resumed(const struct tls_pipe *pipe)
{
    return SSL_session_reused(pipe->ssl) == 1;
}

struct slice tls_pipe_alpn(const struct tls_pipe *pipe)
{
    const unsigned char *name = NULL;
    unsigned int len = 0;
    SSL_get0_alpn_selected(pipe->ssl, &name, &len);
    return name ? slice_of((const char *)name, len) : SLICE_LIT("");
}

const char *tls_pipe_version(const struct tls_pipe *pipe)
{
    return SSL_get_version(pipe->ssl);
}

const char *tls_pipe_error(const struct tls_pipe *pipe)
{
    return pipe->error ? pipe->error : "";
}
