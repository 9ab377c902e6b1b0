// Any token text: never a crash, and what does not open leaves nothing behind. With the first byte
// 'E' the rest is encrypted and must come back.
#include "codec/fernet.h"
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct fernet *fernet;
    if (!fernet &&
        fernet_new(SLICE_LIT("cw_0x689RpI-jtRR7oE8h_eQsKImvJapLeSbXpwF4e4="), &fernet, NULL) != 0)
        abort();
    struct slice input = slice_of((const char *)data, size);
    struct buf out = BUF_INIT(0), back = BUF_INIT(0);
    if (slice_starts(input, "E")) {
        input = slice_from(input, 1);
        if (fernet_encrypt(fernet, input, &out) == 0 &&
            (fernet_decrypt(fernet, buf_slice(&out), -1, 0, &back) != 0 ||
             !slice_eq(buf_slice(&back), input)))
            abort();
    } else if (fernet_decrypt(fernet, input, 60, 499162800, &out) != 0 && out.len) {
        abort();
    }
    buf_free(&out);
    buf_free(&back);
    struct fernet *other = NULL;
    if (size < 200 && fernet_new(input, &other, NULL) == 0)
        fernet_free(other);
    return 0;
}
