#pragma once
// Fernet tokens (github.com/fernet/spec): AES-128-CBC and HMAC-SHA256, checked before decryption,
// in constant time. A key ring: the first key encrypts, all decrypt. At rest no TTL is applied: a
// clock jump must not lock out provider keys. Immutable after creation; any thread.
#include "base/buf.h"
#include "base/err.h"
#include "base/slice.h"
#include <stdint.h>

struct fernet;

// keys: comma list of 44-character Fernet keys. *why gets a constant text. Gives a ring.
GW_MUSTCHECK int fernet_new(struct slice keys, struct fernet **out, const char **why);
void fernet_free(struct fernet *fernet); // zeroes
// Adds a decrypt-only key: a Fernet key, or (is_hashed) base64url(SHA-256(text)) (SURFACES §1.1).
GW_MUSTCHECK int fernet_add_key(struct fernet *fernet, struct slice key, bool is_hashed);
// A new random key's 44 characters.
GW_MUSTCHECK int fernet_generate(struct buf *out);

GW_MUSTCHECK int fernet_encrypt(const struct fernet *fernet, struct slice plain, struct buf *out);
// GW_EDENIED: no key of the ring opens it; GW_EINVAL: not a token. out is wiped on failure.
// ttl_s < 0: none. now_s is used only with a TTL (max clock skew 60 s).
GW_MUSTCHECK int fernet_decrypt(const struct fernet *fernet, struct slice token, int64_t ttl_s,
                                int64_t now_s, struct buf *out);
// With given time and IV, for the official vectors.
GW_MUSTCHECK int fernet_encrypt_at(const struct fernet *fernet, struct slice plain, int64_t now_s,
                                   const uint8_t iv[16], struct buf *out);
