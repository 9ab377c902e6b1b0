// Fuzz target for the TLS pipes, both roles, without sockets. By the first byte an input is
//  - fed to a fresh server or client, or used to spoil a real ClientHello, whole and in pieces: the
//    outcome must be the same, and no plaintext may come of it;
//  - a script for an established pair: one side writes, its ciphertext is spoiled or not and
//    delivered in pieces of any size: what arrives must be what was written, or its beginning, and
//    the goodbye only at its end.
#include "io/tls.h"

#include <openssl/ec.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define READ_BYTES 65536u

static struct tls_server *server;
static struct tls_context *client;
static char plain[TLS_PLAIN_ROOM(READ_BYTES)];

// A certificate for "localhost" that is its own authority.
static void start(void)
{
    char cert_path[] = "/tmp/moongate-fuzz-XXXXXX", key_path[] = "/tmp/moongate-fuzz-XXXXXX";
    char error[512];
    EVP_PKEY *key = EVP_EC_gen("P-256");
    X509 *cert = X509_new();
    gw_require(key != NULL && cert != NULL);
    X509_set_version(cert, 2);
    ASN1_INTEGER_set(X509_get_serialNumber(cert), 1);
    X509_gmtime_adj(X509_getm_notBefore(cert), -3600);
    X509_gmtime_adj(X509_getm_notAfter(cert), 30L * 86400);
    X509_set_pubkey(cert, key);
    X509_NAME *name = X509_get_subject_name(cert);
    X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_ASC, (const unsigned char *)"localhost", -1, -1,
                               0);
    X509_set_issuer_name(cert, name);
    gw_require(X509_sign(cert, key, EVP_sha256()) > 0);
    FILE *cert_file = fdopen(mkstemp(cert_path), "w"), *key_file = fdopen(mkstemp(key_path), "w");
    gw_require(cert_file != NULL && key_file != NULL);
    PEM_write_X509(cert_file, cert);
    PEM_write_PrivateKey(key_file, key, NULL, NULL, 0, NULL, NULL);
    fclose(cert_file);
    fclose(key_file);
    gw_require(tls_server_new(cert_path, key_path, &server, error, sizeof error) == 0);
    gw_require(tls_context_new_client(cert_path, &client, error, sizeof error) == 0);
    unlink(cert_path);
    unlink(key_path);
    X509_free(cert);
    EVP_PKEY_free(key);
}

// Gives bytes to the pipe in pieces of step and gathers what comes out. The pipe's last word.
static int feed(struct tls_pipe *pipe, struct slice bytes, size_t step, struct buf *got,
                struct buf *out)
{
    int err = 0;
    while (bytes.len > 0) {
        struct slice piece = slice_of(bytes.ptr, bytes.len < step ? bytes.len : step);
        size_t len;
        bytes = slice_from(bytes, piece.len);
        err = tls_pipe_read(pipe, &piece, plain, sizeof plain, &len, out);
        gw_require(len <= sizeof plain && (err != 0) == (tls_pipe_error(pipe)[0] != '\0'));
        gw_require(err != 0 || piece.len == 0); // there was room for all
        if (got != NULL)
            gw_require(buf_append(got, slice_of(plain, len)) == 0);
        else
            gw_require(len == 0);
    }
    return err;
}

static struct tls_pipe *new_pipe(bool is_client, struct buf *out)
{
    struct tls_pipe *pipe;
    if (!is_client) {
        gw_require(tls_pipe_new_server(server, &pipe) == 0);
        return pipe;
    }
    gw_require(tls_pipe_new_client(client, "localhost", &pipe) == 0);
    gw_require(tls_pipe_start(pipe, out) == 0 && out->len > 0);
    return pipe;
}

static void run_fresh(bool is_client, struct slice bytes, size_t step)
{
    struct buf out[2] = {BUF_INIT(1u << 20), BUF_INIT(1u << 20)};
    struct tls_pipe *whole = new_pipe(is_client, &out[0]), *split = new_pipe(is_client, &out[1]);
    int errs[2] = {feed(whole, bytes, READ_BYTES, NULL, &out[0]),
                   feed(split, bytes, step, NULL, &out[1])};
    gw_require(errs[0] == errs[1]);
    gw_require(strcmp(tls_pipe_error(whole), tls_pipe_error(split)) == 0);
    gw_require(tls_pipe_is_closed(whole) == tls_pipe_is_closed(split));
    gw_require(!tls_pipe_is_established(whole) && !tls_pipe_is_established(split));
    gw_require((out[0].len > 0) == (out[1].len > 0));
    tls_pipe_free(whole);
    tls_pipe_free(split);
    buf_free(&out[0]);
    buf_free(&out[1]);
}

// Each three bytes of the script: where, and by what.
static void spoil(struct buf *bytes, const uint8_t *script, size_t len)
{
    for (; len >= 3 && bytes->len > 0; script += 3, len -= 3)
        bytes->mem[bytes->off + (script[0] | script[1] << 8) % bytes->len] ^= (char)script[2];
}

static void run_hello(const uint8_t *script, size_t len, size_t step)
{
    struct buf hello = BUF_INIT(1u << 20);
    struct tls_pipe *pipe = new_pipe(true, &hello);
    spoil(&hello, script, len);
    run_fresh(false, buf_slice(&hello), step);
    tls_pipe_free(pipe);
    buf_free(&hello);
}

// Until neither has anything to say.
static void shake(struct tls_pipe *ends[2], struct buf out[2], size_t step)
{
    struct buf none = BUF_INIT(1u << 20);
    for (int turn = 0; out[0].len + out[1].len > 0; turn ^= 1) {
        struct buf bytes = out[turn];
        buf_init(&out[turn], 1u << 20);
        gw_require(feed(ends[!turn], buf_slice(&bytes), step, &none, &out[!turn]) == 0);
        buf_free(&bytes);
    }
    gw_require(tls_pipe_is_established(ends[0]) && tls_pipe_is_established(ends[1]));
    gw_require(none.len == 0);
    buf_free(&none);
}

static void run_pair(int writer, const uint8_t *script, size_t len, size_t step)
{
    static char bytes[70000];
    struct buf out[2] = {BUF_INIT(1u << 20), BUF_INIT(1u << 20)};
    struct buf sent = BUF_INIT(0), got = BUF_INIT(0);
    struct tls_pipe *ends[2] = {new_pipe(true, &out[0]), new_pipe(false, &out[1])};
    shake(ends, out, 1 + step * 7);
    bool is_spoiled = false;
    int err = 0;
    for (; len >= 4; script += 4, len -= 4) {
        struct buf *wire = &out[writer];
        size_t count = script[0] & 128u ? (script[1] | script[2] << 8) % sizeof bytes : script[1];
        memset(bytes, script[3], count);
        int written = tls_pipe_write(ends[writer], slice_of(bytes, count), wire);
        gw_require((written != 0) == tls_pipe_is_close_sent(ends[writer]));
        if (written == 0)
            gw_require(buf_append(&sent, slice_of(bytes, count)) == 0);
        if (script[0] & 1u)
            tls_pipe_close(ends[writer], wire);
        if (script[0] & 2u && wire->len > 0 && script[3] != 0) {
            spoil(wire, script + 1, 3);
            is_spoiled = true;
        }
        if (script[0] & 4u && wire->len > 0) {
            buf_truncate(wire, wire->len - 1 - script[2] % wire->len);
            is_spoiled = true;
        }
        err = feed(ends[!writer], buf_slice(wire), 1 + script[0] / 8u % 16u * step * step, &got,
                   &out[!writer]);
        buf_clear(wire);
        gw_require(got.len <= sent.len &&
                   memcmp(buf_slice(&got).ptr ? buf_slice(&got).ptr : "",
                          buf_slice(&sent).ptr ? buf_slice(&sent).ptr : "", got.len) == 0);
        if (!is_spoiled) {
            gw_require(err == 0 && got.len == sent.len);
            gw_require(tls_pipe_is_closed(ends[!writer]) == tls_pipe_is_close_sent(ends[writer]));
        }
        if (tls_pipe_is_closed(ends[!writer]))
            gw_require(got.len == sent.len && tls_pipe_is_close_sent(ends[writer]));
    }
    for (int i = 0; i < 2; i++) {
        tls_pipe_close(ends[i], &out[i]);
        tls_pipe_free(ends[i]);
        buf_free(&out[i]);
    }
    buf_free(&sent);
    buf_free(&got);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 2 || size > 8192)
        return 0;
    if (server == NULL)
        start();
    size_t step = 1u + data[1] % 61u, len = size - 2;
    const uint8_t *rest = data + 2;
    switch (data[0] % 5u) {
    case 0: run_fresh(false, slice_of((const char *)rest, len), step); break;
    case 1: run_fresh(true, slice_of((const char *)rest, len), step); break;
    case 2: run_hello(rest, len, step); break;
    default: run_pair(data[0] % 5u == 3, rest, len < 64 ? len : 64, step); break;
    }
    return 0;
}
