// Fernet: 0x80 ‖ 8 bytes of big-endian seconds ‖ 16 bytes IV ‖ AES-128-CBC, PKCS#7 ‖ HMAC-SHA256
// over all before it; base64url with padding. The HMAC is checked before anything is decrypted.
#include "codec/fernet.h"
#include "base/clock.h"
#include "codec/secret.h"
#include <openssl/evp.h>
#include <pthread.h>
#include <stdlib.h>

#define KEYS_MAX 16
#define KEY_TEXT_LEN 44
#define HEAD_LEN 25 // version, time, IV
#define MAC_LEN 32
#define BLOCK_LEN 16
#define TOKEN_MIN (HEAD_LEN + BLOCK_LEN + MAC_LEN)
#define PLAIN_MAX (1 << 20)
#define TOKEN_TEXT_MAX (2 << 20)
#define SKEW_S 60

struct fernet_key {
    char sign[16];
    char encrypt[16];
};

struct fernet {
    size_t count;
    struct fernet_key keys[KEYS_MAX];
};

static pthread_once_t fetch_once = PTHREAD_ONCE_INIT;
static EVP_CIPHER *cipher_algorithm;
static pthread_key_t context_key;
static __thread EVP_CIPHER_CTX *thread_context;

static void free_context(void *arg)
{
    EVP_CIPHER_CTX_free(arg);
}

static void fetch_algorithm(void)
{
    cipher_algorithm = EVP_CIPHER_fetch(NULL, "AES-128-CBC", NULL);
    gw_require(pthread_key_create(&context_key, free_context) == 0);
}

static EVP_CIPHER_CTX *get_context(void)
{
    if (thread_context)
        return thread_context;
    pthread_once(&fetch_once, fetch_algorithm);
    EVP_CIPHER_CTX *context = cipher_algorithm ? EVP_CIPHER_CTX_new() : NULL;
    if (context && pthread_setspecific(context_key, context) != 0) {
        EVP_CIPHER_CTX_free(context);
        context = NULL;
    }
    thread_context = context;
    return context;
}

static int add_raw(struct fernet *fernet, const char bytes[32])
{
    if (fernet->count == KEYS_MAX)
        return GW_EFULL;
    struct fernet_key *key = &fernet->keys[fernet->count++];
    memcpy(key->sign, bytes, 16);
    memcpy(key->encrypt, bytes + 16, 16);
    return 0;
}

static int add_text(struct fernet *fernet, struct slice text)
{
    if (text.len != KEY_TEXT_LEN || text.ptr[KEY_TEXT_LEN - 1] != '=')
        return GW_EINVAL;
    // Other implementations take a key whose last character has bits left over; so does this one,
    // or values that such a key has encrypted could not be read.
    static const char alphabet[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    char copy[KEY_TEXT_LEN];
    memcpy(copy, text.ptr, KEY_TEXT_LEN);
    const char *last = copy[42] ? strchr(alphabet, copy[42]) : NULL;
    if (!last)
        return GW_EINVAL;
    copy[42] = alphabet[(last - alphabet) & ~3];
    struct buf raw = BUF_INIT(0);
    int err = secret_base64url_decode(slice_of(copy, KEY_TEXT_LEN), true, &raw);
    if (err == 0)
        err = raw.len == 32 ? add_raw(fernet, buf_slice(&raw).ptr) : GW_EINVAL;
    buf_wipe(&raw);
    secret_zero(copy, sizeof(copy));
    return err;
}

int fernet_new(struct slice keys, struct fernet **out, const char **why)
{
    const char *reason = NULL;
    int err = 0;
    struct fernet *fernet = calloc(1, sizeof(*fernet));
    if (!fernet) {
        err = GW_ENOMEM;
        reason = "out of memory";
    }
    while (err == 0) {
        const char *comma = keys.len ? memchr(keys.ptr, ',', keys.len) : NULL;
        struct slice key = comma ? slice_of(keys.ptr, (size_t)(comma - keys.ptr)) : keys;
        err = add_text(fernet, slice_trim(key));
        if (err == GW_EINVAL)
            reason = "a Fernet key is 44 characters of base64url that stand for 32 bytes";
        else if (err == GW_EFULL)
            reason = "a key ring holds at most 16 keys";
        else if (err)
            reason = "out of memory";
        if (!comma)
            break;
        keys = slice_from(keys, key.len + 1);
    }
    if (why)
        *why = reason;
    if (err) {
        fernet_free(fernet);
        return err;
    }
    *out = fernet;
    return 0;
}

void fernet_free(struct fernet *fernet)
{
    if (!fernet)
        return;
    secret_zero(fernet, sizeof(*fernet));
    free(fernet);
}

int fernet_add_key(struct fernet *fernet, struct slice key, bool is_hashed)
{
    if (!is_hashed)
        return add_text(fernet, slice_trim(key));
    struct sha256 hash;
    int err = secret_sha256(key, &hash);
    if (err == 0)
        err = add_raw(fernet, (const char *)hash.bytes);
    secret_zero(&hash, sizeof(hash));
    return err;
}

int fernet_generate(struct buf *out)
{
    char bytes[32];
    int err = clock_random(bytes, sizeof(bytes));
    if (err == 0)
        err = secret_base64url_encode(slice_of(bytes, sizeof(bytes)), true, out);
    secret_zero(bytes, sizeof(bytes));
    return err;
}

int fernet_encrypt(const struct fernet *fernet, struct slice plain, struct buf *out)
{
    uint8_t iv[16];
    int err = clock_random(iv, sizeof(iv));
    return err ? err : fernet_encrypt_at(fernet, plain, clock_wall_ms() / 1000, iv, out);
}

int fernet_encrypt_at(const struct fernet *fernet, struct slice plain, int64_t now_s,
                      const uint8_t iv[16], struct buf *out)
{
    if (plain.len > PLAIN_MAX)
        return GW_ETOOBIG;
    EVP_CIPHER_CTX *context = get_context();
    if (!context)
        return GW_ENOMEM;
    const struct fernet_key *key = &fernet->keys[0];
    struct buf raw = BUF_INIT(0);
    unsigned char *to = (unsigned char *)buf_room(&raw, TOKEN_MIN + plain.len + BLOCK_LEN);
    if (!to)
        return GW_ENOMEM;
    to[0] = 0x80;
    for (int i = 0; i < 8; i++)
        to[1 + i] = (unsigned char)((uint64_t)now_s >> (56 - 8 * i));
    memcpy(to + 9, iv, 16);
    int body = 0, tail = 0, err = 0;
    struct sha256 mac;
    if (!EVP_EncryptInit_ex2(context, cipher_algorithm, (const unsigned char *)key->encrypt, iv,
                             NULL) ||
        !EVP_EncryptUpdate(context, to + HEAD_LEN, &body,
                           (const unsigned char *)(plain.len ? plain.ptr : ""), (int)plain.len) ||
        !EVP_EncryptFinal_ex(context, to + HEAD_LEN + body, &tail))
        err = GW_EINTERNAL;
    size_t len = HEAD_LEN + (size_t)body + (size_t)tail;
    if (err == 0)
        err = secret_hmac_sha256(slice_of(key->sign, sizeof(key->sign)),
                                 slice_of((const char *)to, len), &mac);
    if (err == 0) {
        memcpy(to + len, mac.bytes, MAC_LEN);
        err = secret_base64url_encode(slice_of((const char *)to, len + MAC_LEN), true, out);
    }
    EVP_CIPHER_CTX_reset(context); // the key schedule does not stay behind
    buf_free(&raw);
    return err;
}

// raw is a token whose HMAC holds under key.
static int decrypt_body(const struct fernet_key *key, struct slice raw, struct buf *out)
{
    EVP_CIPHER_CTX *context = get_context();
    if (!context)
        return GW_ENOMEM;
    size_t len = raw.len - HEAD_LEN - MAC_LEN;
    unsigned char *to = (unsigned char *)buf_room(out, len + BLOCK_LEN);
    if (!to)
        return GW_ENOMEM;
    int body = 0, tail = 0, err = 0;
    const unsigned char *iv = (const unsigned char *)raw.ptr + 9;
    if (!EVP_DecryptInit_ex2(context, cipher_algorithm, (const unsigned char *)key->encrypt, iv,
                             NULL) ||
        !EVP_DecryptUpdate(context, to, &body, (const unsigned char *)raw.ptr + HEAD_LEN, (int)len))
        err = GW_EINTERNAL;
    else if (!EVP_DecryptFinal_ex(context, to + body, &tail))
        err = GW_EINVAL; // padding
    EVP_CIPHER_CTX_reset(context);
    if (err)
        secret_zero(to, len + BLOCK_LEN);
    else
        buf_grew(out, (size_t)body + (size_t)tail);
    return err;
}

int fernet_decrypt(const struct fernet *fernet, struct slice token, int64_t ttl_s, int64_t now_s,
                   struct buf *out)
{
    if (token.len > TOKEN_TEXT_MAX)
        return GW_EINVAL;
    struct buf decoded = BUF_INIT(0);
    int err = secret_base64url_decode(token, true, &decoded);
    if (err)
        goto out;
    struct slice raw = buf_slice(&decoded);
    err = GW_EINVAL;
    if (raw.len < TOKEN_MIN || (raw.len - HEAD_LEN - MAC_LEN) % BLOCK_LEN ||
        (unsigned char)raw.ptr[0] != 0x80)
        goto out;
    uint64_t time = 0;
    for (int i = 1; i <= 8; i++)
        time = time << 8 | (unsigned char)raw.ptr[i];
    struct slice signed_part = slice_of(raw.ptr, raw.len - MAC_LEN);
    struct slice mac = slice_from(raw, raw.len - MAC_LEN);
    const struct fernet_key *key = NULL;
    for (size_t i = 0; i < fernet->count && !key; i++) {
        struct sha256 expected;
        err = secret_hmac_sha256(slice_of(fernet->keys[i].sign, 16), signed_part, &expected);
        if (err)
            goto out;
        if (secret_equal(mac, slice_of((const char *)expected.bytes, MAC_LEN)))
            key = &fernet->keys[i];
    }
    err = GW_EDENIED;
    if (!key)
        goto out;
    // The time is trusted only now that the HMAC holds.
    if (ttl_s >= 0 &&
        (time > INT64_MAX || (int64_t)time < now_s - ttl_s || (int64_t)time > now_s + SKEW_S))
        goto out;
    err = decrypt_body(key, raw, out);
out:
    buf_free(&decoded);
    return err;
}
