#pragma once
// Digests that codec/secret.h has no use for: MD5 (signatures of old payment gateways only) and
// lower-case hex. Pure; any thread.
#include "base/err.h"
#include "base/slice.h"
#include <stdint.h>

GW_MUSTCHECK int digest_md5(struct slice bytes, uint8_t out[16]);
// Writes 2 × len characters and a NUL.
void digest_hex(const uint8_t *bytes, size_t len, char *out);
