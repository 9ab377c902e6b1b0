#include "codec/digest.h"
#include <openssl/evp.h>

int digest_md5(struct slice bytes, uint8_t out[16])
{
    unsigned len = 0;
    if (EVP_Digest(bytes.ptr, bytes.len, out, &len, EVP_md5(), NULL) != 1 || len != 16)
        return GW_EINTERNAL; // a FIPS provider has no MD5
    return 0;
}

void digest_hex(const uint8_t *bytes, size_t len, char *out)
{
    static const char HEX[] = "0123456789abcdef";
    for (size_t i = 0; i < len; i++) {
        *out++ = HEX[bytes[i] >> 4];
        *out++ = HEX[bytes[i] & 15];
    }
    *out = '\0';
}
