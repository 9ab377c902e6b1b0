#pragma once
// Secrets: bytes that cannot be printed by accident, are zeroed when freed, and compared in
// constant time. Hashes, random tokens and masks for credentials. Pure; any thread.
#include "base/buf.h"
#include "base/err.h"
#include "base/slice.h"
#include <stdint.h>

struct secret; // opaque, reference-counted (atomic)

struct secret *secret_new(struct slice bytes); // copies; NULL: no memory
struct secret *secret_ref(struct secret *secret);
void secret_unref(struct secret *secret); // NULL allowed; zeroed with the last reference
// The only way to the bytes: borrow them for the call that needs them; never store or log.
struct slice secret_reveal(const struct secret *secret);

void secret_zero(void *mem, size_t len);           // not optimised away
bool secret_equal(struct slice a, struct slice b); // constant time for equal lengths

struct sha256 {
    uint8_t bytes[32];
};
// SHA-256 with a prefetched digest and a reused per-thread context.
GW_MUSTCHECK int secret_sha256(struct slice bytes, struct sha256 *out);
GW_MUSTCHECK int secret_hmac_sha256(struct slice key, struct slice bytes, struct sha256 *out);
GW_MUSTCHECK int secret_hkdf_sha256(struct slice key, const char *purpose, struct sha256 *out);

enum secret_scheme { SECRET_KEY_AUTO, SECRET_KEY_SK, SECRET_KEY_AHG }; // SURFACES §2.2, §1.1, §5.2
// A new client key as text: "sk-auto-" + 43 base64url, "sk-" + 48 hex, "ahg_" + 48 hex.
GW_MUSTCHECK int secret_new_key(enum secret_scheme scheme, struct buf *out);
// count random bytes as base64url without padding, or as lower-case hex.
GW_MUSTCHECK int secret_random_base64url(size_t count, struct buf *out);
GW_MUSTCHECK int secret_random_hex(size_t count, struct buf *out);
// "sk-***7890" (SURFACES §2.2 rule for upstream keys): ≤ 7 → "***".
GW_MUSTCHECK int secret_mask_upstream_key(struct slice key, struct buf *out);
// First 4 characters and "****" (§1.1).
GW_MUSTCHECK int secret_mask_short(struct slice key, struct buf *out);

// base64url and base64, strict (no whitespace, canonical padding rules by flag).
GW_MUSTCHECK int secret_base64url_encode(struct slice bytes, bool is_padded, struct buf *out);
GW_MUSTCHECK int secret_base64url_decode(struct slice text, bool is_padded, struct buf *out);
