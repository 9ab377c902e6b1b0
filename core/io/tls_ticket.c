// The keys of session tickets: one set for all workers, kept over reloads of the certificate, new
// every 12 hours; the set before still opens tickets, which are then made anew. So a ticket lives
// between 12 and 24 hours and no key longer than a day.
#include "base/clock.h"
#include "io/tls_internal.h"

#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/params.h>
#include <openssl/rand.h>
#include <pthread.h>
#include <stdlib.h>

#define ROTATE_MS (12ull * 3600u * 1000u)
#define NAME_BYTES 16

struct ticket_key {
    unsigned char name[NAME_BYTES];
    unsigned char aes[32];
    unsigned char hmac[32];
    uint64_t made_ms; // 0: none
};

struct tls_tickets {
    _Atomic uint32_t refs;
    pthread_mutex_t lock;      // guards the keys
    struct ticket_key keys[2]; // current, previous
};

static bool make_key(struct ticket_key *key)
{
    key->made_ms = clock_boot_ms() + 1;
    return RAND_bytes(key->name, sizeof key->name) == 1 &&
           RAND_bytes(key->aes, sizeof key->aes) == 1 &&
           RAND_bytes(key->hmac, sizeof key->hmac) == 1;
}

struct tls_tickets *tls_tickets_new(void)
{
    struct tls_tickets *tickets = calloc(1, sizeof *tickets);
    if (!tickets)
        return NULL;
    atomic_init(&tickets->refs, 1);
    pthread_mutex_init(&tickets->lock, NULL);
    if (!make_key(&tickets->keys[0])) {
        tls_tickets_unref(tickets);
        return NULL;
    }
    return tickets;
}

struct tls_tickets *tls_tickets_ref(struct tls_tickets *tickets)
{
    atomic_fetch_add_explicit(&tickets->refs, 1, memory_order_relaxed);
    return tickets;
}

void tls_tickets_unref(struct tls_tickets *tickets)
{
    if (!tickets || atomic_fetch_sub_explicit(&tickets->refs, 1, memory_order_acq_rel) != 1)
        return;
    pthread_mutex_destroy(&tickets->lock);
    OPENSSL_cleanse(tickets->keys, sizeof tickets->keys);
    free(tickets);
}

// By the clock, not by a timer: nobody needs a new key before somebody makes a ticket.
static void rotate(struct tls_tickets *tickets)
{
    uint64_t now = clock_boot_ms() + 1;
    struct ticket_key *current = &tickets->keys[0], *previous = &tickets->keys[1];
    if (previous->made_ms && now - previous->made_ms >= 2 * ROTATE_MS)
        OPENSSL_cleanse(previous, sizeof *previous);
    if (now - current->made_ms < ROTATE_MS)
        return;
    struct ticket_key fresh;
    if (!make_key(&fresh)) // the old key is better than none, and the next ticket tries again
        return;
    if (now - current->made_ms < 2 * ROTATE_MS)
        *previous = *current;
    else
        OPENSSL_cleanse(previous, sizeof *previous);
    *current = fresh;
    OPENSSL_cleanse(&fresh, sizeof fresh);
}

// Copies the key to make a ticket with (name NULL), or the one that made it. 1: found; 2: found,
// but the client should get a new ticket; 0: none.
static int find_key(struct tls_tickets *tickets, const unsigned char *name, struct ticket_key *out)
{
    int found = 0;
    pthread_mutex_lock(&tickets->lock);
    rotate(tickets);
    for (int i = 0; i < 2 && !found; i++) {
        const struct ticket_key *key = &tickets->keys[i];
        if (key->made_ms && (!name || memcmp(key->name, name, NAME_BYTES) == 0)) {
            *out = *key;
            found = i + 1;
        }
    }
    pthread_mutex_unlock(&tickets->lock);
    return found;
}

static int on_ticket(SSL *ssl, unsigned char *name, unsigned char *iv, EVP_CIPHER_CTX *cipher,
                     EVP_MAC_CTX *mac, int is_made)
{
    struct tls_tickets *tickets = SSL_CTX_get_app_data(SSL_get_SSL_CTX(ssl));
    struct ticket_key key;
    int found = find_key(tickets, is_made ? NULL : name, &key);
    if (!found)
        return 0; // a whole handshake, then
    OSSL_PARAM params[] = {
        OSSL_PARAM_construct_octet_string(OSSL_MAC_PARAM_KEY, key.hmac, sizeof key.hmac),
        OSSL_PARAM_construct_utf8_string(OSSL_MAC_PARAM_DIGEST, (char *)"SHA256", 0),
        OSSL_PARAM_construct_end(),
    };
    bool is_good = EVP_MAC_CTX_set_params(mac, params) == 1;
    if (is_good && is_made) {
        memcpy(name, key.name, NAME_BYTES);
        is_good = RAND_bytes(iv, EVP_CIPHER_get_iv_length(EVP_aes_256_cbc())) == 1 &&
                  EVP_EncryptInit_ex(cipher, EVP_aes_256_cbc(), NULL, key.aes, iv) == 1;
    } else if (is_good) {
        is_good = EVP_DecryptInit_ex(cipher, EVP_aes_256_cbc(), NULL, key.aes, iv) == 1;
    }
    OPENSSL_cleanse(&key, sizeof key);
    if (!is_good)
        return -1;
    return is_made ? 1 : found;
}

int tls_tickets_use(struct tls_tickets *tickets, SSL_CTX *ssl)
{
    static const unsigned char purpose[] = "moongate";
    SSL_CTX_set_app_data(ssl, tickets);
    SSL_CTX_set_timeout(ssl, (long)(ROTATE_MS / 1000u));
    SSL_CTX_set_num_tickets(ssl, 1);
    // Sessions live in tickets alone, so that any worker can resume them.
    SSL_CTX_set_session_cache_mode(ssl, SSL_SESS_CACHE_OFF);
    if (SSL_CTX_set_session_id_context(ssl, purpose, sizeof purpose - 1) != 1 ||
        SSL_CTX_set_tlsext_ticket_key_evp_cb(ssl, on_ticket) != 1)
        return GW_ENOMEM;
    return 0;
}
