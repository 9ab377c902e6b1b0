// Secrets and the small cryptography around them. OpenSSL's algorithm look-up takes locks and costs
// more than hashing a client key, so the algorithms are fetched once and each thread keeps its
// contexts; a thread-specific destructor frees them.
#include "codec/secret.h"
#include "base/clock.h"
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/params.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#define RANDOM_MAX 1024 // bytes of one random token

struct secret {
    atomic_size_t refs;
    size_t len;
    char bytes[];
};

struct contexts {
    EVP_MD_CTX *digest;
    EVP_MAC_CTX *mac;
};

static pthread_once_t fetch_once = PTHREAD_ONCE_INIT;
static EVP_MD *sha256_algorithm;
static EVP_MAC *hmac_algorithm;
static pthread_key_t contexts_key;
static __thread struct contexts *thread_contexts;

static void free_contexts(void *arg)
{
    struct contexts *contexts = arg;
    EVP_MD_CTX_free(contexts->digest);
    EVP_MAC_CTX_free(contexts->mac);
    free(contexts);
}

static void fetch_algorithms(void)
{
    sha256_algorithm = EVP_MD_fetch(NULL, "SHA256", NULL);
    hmac_algorithm = EVP_MAC_fetch(NULL, "HMAC", NULL);
    gw_require(pthread_key_create(&contexts_key, free_contexts) == 0);
}

static struct contexts *get_contexts(void)
{
    if (thread_contexts)
        return thread_contexts;
    pthread_once(&fetch_once, fetch_algorithms);
    if (!sha256_algorithm || !hmac_algorithm)
        return NULL;
    struct contexts *contexts = calloc(1, sizeof(*contexts));
    if (!contexts)
        return NULL;
    char digest_name[] = "SHA256";
    OSSL_PARAM params[] = {
        OSSL_PARAM_construct_utf8_string("digest", digest_name, 0),
        OSSL_PARAM_construct_end(),
    };
    contexts->digest = EVP_MD_CTX_new();
    contexts->mac = EVP_MAC_CTX_new(hmac_algorithm);
    if (!contexts->digest || !contexts->mac || !EVP_MAC_CTX_set_params(contexts->mac, params) ||
        pthread_setspecific(contexts_key, contexts) != 0) {
        free_contexts(contexts);
        return NULL;
    }
    thread_contexts = contexts;
    return contexts;
}

struct secret *secret_new(struct slice bytes)
{
    struct secret *secret = malloc(sizeof(*secret) + bytes.len + 1);
    if (!secret)
        return NULL;
    atomic_init(&secret->refs, 1);
    secret->len = bytes.len;
    if (bytes.len)
        memcpy(secret->bytes, bytes.ptr, bytes.len);
    secret->bytes[bytes.len] = '\0';
    return secret;
}

struct secret *secret_ref(struct secret *secret)
{
    if (secret)
        atomic_fetch_add_explicit(&secret->refs, 1, memory_order_relaxed);
    return secret;
}

void secret_unref(struct secret *secret)
{
    if (!secret || atomic_fetch_sub_explicit(&secret->refs, 1, memory_order_acq_rel) != 1)
        return;
    secret_zero(secret->bytes, secret->len);
    free(secret);
}

struct slice secret_reveal(const struct secret *secret)
{
    return secret ? slice_of(secret->bytes, secret->len) : SLICE_LIT("");
}

void secret_zero(void *mem, size_t len)
{
    if (mem && len)
        OPENSSL_cleanse(mem, len);
}

bool secret_equal(struct slice a, struct slice b)
{
    return a.len == b.len && (a.len == 0 || CRYPTO_memcmp(a.ptr, b.ptr, a.len) == 0);
}

int secret_sha256(struct slice bytes, struct sha256 *out)
{
    struct contexts *contexts = get_contexts();
    if (!contexts)
        return GW_ENOMEM;
    unsigned int len = 0;
    if (!EVP_DigestInit_ex(contexts->digest, sha256_algorithm, NULL) ||
        !EVP_DigestUpdate(contexts->digest, bytes.len ? bytes.ptr : "", bytes.len) ||
        !EVP_DigestFinal_ex(contexts->digest, out->bytes, &len) || len != sizeof(out->bytes))
        return GW_EINTERNAL;
    return 0;
}

int secret_hmac_sha256(struct slice key, struct slice bytes, struct sha256 *out)
{
    struct contexts *contexts = get_contexts();
    if (!contexts)
        return GW_ENOMEM;
    size_t len = 0;
    const unsigned char *key_bytes = (const unsigned char *)(key.len ? key.ptr : "");
    const unsigned char *data = (const unsigned char *)(bytes.len ? bytes.ptr : "");
    if (!EVP_MAC_init(contexts->mac, key_bytes, key.len, NULL) ||
        !EVP_MAC_update(contexts->mac, data, bytes.len) ||
        !EVP_MAC_final(contexts->mac, out->bytes, &len, sizeof(out->bytes)) ||
        len != sizeof(out->bytes))
        return GW_EINTERNAL;
    return 0;
}

// RFC 5869 with an empty salt and one block of output.
int secret_hkdf_sha256(struct slice key, const char *purpose, struct sha256 *out)
{
    static const char no_salt[32];
    char info[257];
    size_t len = strlen(purpose);
    if (len >= sizeof(info))
        return GW_ETOOBIG;
    memcpy(info, purpose, len);
    info[len] = 1;
    struct sha256 extracted;
    int err = secret_hmac_sha256(slice_of(no_salt, sizeof(no_salt)), key, &extracted);
    if (err == 0)
        err = secret_hmac_sha256(slice_of((const char *)extracted.bytes, sizeof(extracted.bytes)),
                                 slice_of(info, len + 1), out);
    secret_zero(&extracted, sizeof(extracted));
    return err;
}

int secret_random_base64url(size_t count, struct buf *out)
{
    char bytes[RANDOM_MAX];
    if (count > sizeof(bytes))
        return GW_ETOOBIG;
    int err = clock_random(bytes, count);
    if (err == 0)
        err = secret_base64url_encode(slice_of(bytes, count), false, out);
    secret_zero(bytes, count);
    return err;
}

int secret_random_hex(size_t count, struct buf *out)
{
    static const char digits[] = "0123456789abcdef";
    unsigned char bytes[RANDOM_MAX];
    if (count > sizeof(bytes))
        return GW_ETOOBIG;
    char *room = buf_room(out, count * 2);
    if (!room)
        return GW_ENOMEM;
    int err = clock_random(bytes, count);
    if (err == 0) {
        for (size_t i = 0; i < count; i++) {
            room[i * 2] = digits[bytes[i] >> 4];
            room[i * 2 + 1] = digits[bytes[i] & 15];
        }
        buf_grew(out, count * 2);
    }
    secret_zero(bytes, count);
    return err;
}

int secret_new_key(enum secret_scheme scheme, struct buf *out)
{
    size_t before = out->len;
    // Room for the whole first: memory outgrown by a buf is not zeroed.
    if (!buf_room(out, 64))
        return GW_ENOMEM;
    int err = GW_EINVAL;
    switch (scheme) {
    case SECRET_KEY_AUTO:
        if ((err = buf_append_str(out, "sk-auto-")) == 0)
            err = secret_random_base64url(32, out);
        break;
    case SECRET_KEY_SK:
        if ((err = buf_append_str(out, "sk-")) == 0)
            err = secret_random_hex(24, out);
        break;
    case SECRET_KEY_AHG:
        if ((err = buf_append_str(out, "ahg_")) == 0)
            err = secret_random_hex(24, out);
        break;
    }
    if (err)
        buf_truncate(out, before);
    return err;
}

int secret_mask_upstream_key(struct slice key, struct buf *out)
{
    if (key.len <= 7)
        return buf_append_str(out, "***");
    size_t shown = slice_starts(key, "sk-") ? 3 : 2;
    return buf_printf(out, "%.*s***%.*s", (int)shown, key.ptr, 4, key.ptr + key.len - 4);
}

int secret_mask_short(struct slice key, struct buf *out)
{
    if (key.len < 4)
        return buf_append_str(out, "****");
    return buf_printf(out, "%.4s****", key.ptr);
}

int secret_base64url_encode(struct slice bytes, bool is_padded, struct buf *out)
{
    static const char alphabet[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    const unsigned char *in = (const unsigned char *)bytes.ptr;
    if (bytes.len > SIZE_MAX / 2)
        return GW_ETOOBIG;
    size_t size = (bytes.len + 2) / 3 * 4;
    char *start = buf_room(out, size), *to = start;
    if (!start)
        return GW_ENOMEM;
    size_t i = 0;
    for (; i + 3 <= bytes.len; i += 3) {
        uint32_t group = (uint32_t)in[i] << 16 | (uint32_t)in[i + 1] << 8 | in[i + 2];
        *to++ = alphabet[group >> 18];
        *to++ = alphabet[group >> 12 & 63];
        *to++ = alphabet[group >> 6 & 63];
        *to++ = alphabet[group & 63];
    }
    if (i < bytes.len) {
        bool has_two = i + 2 == bytes.len;
        uint32_t group = (uint32_t)in[i] << 16 | (has_two ? (uint32_t)in[i + 1] << 8 : 0);
        *to++ = alphabet[group >> 18];
        *to++ = alphabet[group >> 12 & 63];
        if (has_two)
            *to++ = alphabet[group >> 6 & 63];
        for (int pad = has_two ? 1 : 2; is_padded && pad > 0; pad--)
            *to++ = '=';
    }
    buf_grew(out, (size_t)(to - start));
    return 0;
}

// -1: not of the alphabet.
static int sextet(unsigned char c)
{
    if (c >= 'A' && c <= 'Z')
        return c - 'A';
    if (c >= 'a' && c <= 'z')
        return c - 'a' + 26;
    if (c >= '0' && c <= '9')
        return c - '0' + 52;
    return c == '-' ? 62 : c == '_' ? 63 : -1;
}

int secret_base64url_decode(struct slice text, bool is_padded, struct buf *out)
{
    if (is_padded) {
        if (text.len % 4)
            return GW_EINVAL;
        for (int pad = 0; pad < 2 && text.len && text.ptr[text.len - 1] == '='; pad++)
            text.len--;
    }
    if (text.len % 4 == 1)
        return GW_EINVAL;
    if (text.len == 0)
        return 0;
    char *start = buf_room(out, text.len / 4 * 3 + 2), *to = start;
    if (!start)
        return GW_ENOMEM;
    uint32_t group = 0;
    int bits = 0;
    for (size_t i = 0; i < text.len; i++) {
        int value = sextet((unsigned char)text.ptr[i]);
        if (value < 0)
            goto bad;
        group = group << 6 | (uint32_t)value;
        bits += 6;
        if (bits >= 8) {
            bits -= 8;
            *to++ = (char)(group >> bits);
            group &= (1u << bits) - 1;
        }
    }
    // One value has one text: bits that are left over must be zero.
    if (group)
        goto bad;
    buf_grew(out, (size_t)(to - start));
    return 0;
bad:
    secret_zero(start, (size_t)(to - start));
    return GW_EINVAL;
}
