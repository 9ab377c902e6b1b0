// Certificates for tests, made when they run: an authority of our own and what it signs, as PEM
// files in a folder that goes at the end. And a pump between a client's and a server's pipe.
#include "base/buf.h"
#include "io/fetch.h"
#include "io/tls.h"

#include <check.h>
#include <openssl/ec.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct tls_kit {
    char dir[64];
    char ca_file[96];
    EVP_PKEY *ca_key;
    X509 *ca;
    long serial;
    int file_count;
    char files[32][96];
};

struct tls_kit_pair {
    char cert[96], key[96];
};

static inline X509 *tls_kit_sign(struct tls_kit *kit, EVP_PKEY *key, const char *name,
                                 const char *alternatives, long from_s, long to_s, bool is_self)
{
    X509 *cert = X509_new();
    ck_assert_ptr_nonnull(cert);
    X509_set_version(cert, 2);
    ASN1_INTEGER_set(X509_get_serialNumber(cert), ++kit->serial);
    X509_gmtime_adj(X509_getm_notBefore(cert), from_s);
    X509_gmtime_adj(X509_getm_notAfter(cert), to_s);
    X509_set_pubkey(cert, key);
    X509_NAME_add_entry_by_txt(X509_get_subject_name(cert), "CN", MBSTRING_ASC,
                               (const unsigned char *)name, -1, -1, 0);
    X509 *issuer = is_self ? cert : kit->ca;
    X509_set_issuer_name(cert, X509_get_subject_name(issuer));
    X509V3_CTX ctx;
    X509V3_set_ctx(&ctx, issuer, cert, NULL, NULL, 0);
    bool is_ca = is_self && !alternatives;
    X509_EXTENSION *extension = X509V3_EXT_conf_nid(NULL, &ctx, NID_basic_constraints,
                                                    is_ca ? "critical,CA:TRUE" : "CA:FALSE");
    ck_assert_ptr_nonnull(extension);
    X509_add_ext(cert, extension, -1);
    X509_EXTENSION_free(extension);
    if (alternatives) {
        extension = X509V3_EXT_conf_nid(NULL, &ctx, NID_subject_alt_name, alternatives);
        ck_assert_ptr_nonnull(extension);
        X509_add_ext(cert, extension, -1);
        X509_EXTENSION_free(extension);
    }
    ck_assert_int_gt(X509_sign(cert, is_self ? key : kit->ca_key, EVP_sha256()), 0);
    return cert;
}

static inline FILE *tls_kit_open(struct tls_kit *kit, const char *name, char path[96])
{
    ck_assert_int_lt(kit->file_count, 32);
    snprintf(path, 96, "%s/%d-%.20s.pem", kit->dir, kit->file_count, name);
    snprintf(kit->files[kit->file_count++], 96, "%s", path);
    FILE *file = fopen(path, "w");
    ck_assert_ptr_nonnull(file);
    ck_assert_int_eq(chmod(path, 0600), 0);
    return file;
}

static inline struct tls_kit *tls_kit_new(void)
{
    ck_assert_int_eq(fetch_global_init(), 0);
    struct tls_kit *kit = calloc(1, sizeof *kit);
    ck_assert_ptr_nonnull(kit);
    snprintf(kit->dir, sizeof kit->dir, "/tmp/moongate-tls-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(kit->dir));
    kit->ca_key = EVP_EC_gen("P-256");
    ck_assert_ptr_nonnull(kit->ca_key);
    kit->ca = tls_kit_sign(kit, kit->ca_key, "test authority", NULL, -3600, 86400, true);
    FILE *file = tls_kit_open(kit, "ca", kit->ca_file);
    PEM_write_X509(file, kit->ca);
    fclose(file);
    return kit;
}

static inline void tls_kit_free(struct tls_kit *kit)
{
    for (int i = 0; i < kit->file_count; i++)
        unlink(kit->files[i]);
    rmdir(kit->dir);
    X509_free(kit->ca);
    EVP_PKEY_free(kit->ca_key);
    free(kit);
    fetch_global_cleanup();
}

static inline struct tls_kit_pair tls_kit_pair_of(struct tls_kit *kit, EVP_PKEY *key,
                                                  const char *name, const char *alternatives,
                                                  long from_s, long to_s, bool is_self)
{
    struct tls_kit_pair pair;
    ck_assert_ptr_nonnull(key);
    X509 *cert = tls_kit_sign(kit, key, name, alternatives, from_s, to_s, is_self);
    FILE *file = tls_kit_open(kit, "cert", pair.cert);
    PEM_write_X509(file, cert);
    fclose(file);
    file = tls_kit_open(kit, "key", pair.key);
    PEM_write_PrivateKey(file, key, NULL, NULL, 0, NULL, NULL);
    fclose(file);
    X509_free(cert);
    EVP_PKEY_free(key);
    return pair;
}

// A good certificate, for these alternative names ("DNS:a,IP:127.0.0.1").
static inline struct tls_kit_pair tls_kit_issue(struct tls_kit *kit, const char *alternatives)
{
    return tls_kit_pair_of(kit, EVP_EC_gen("P-256"), "server", alternatives, -3600, 86400, false);
}

static inline struct tls_server *tls_kit_server(const struct tls_kit_pair *pair)
{
    char error[512];
    struct tls_server *server = NULL;
    ck_assert_msg(tls_server_new(pair->cert, pair->key, &server, error, sizeof error) == 0, "%s",
                  error);
    return server;
}

static inline struct tls_context *tls_kit_client(struct tls_kit *kit)
{
    char error[512];
    struct tls_context *context = NULL;
    ck_assert_msg(tls_context_new_client(kit->ca_file, &context, error, sizeof error) == 0, "%s",
                  error);
    return context;
}
