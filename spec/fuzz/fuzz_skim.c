// skim against yyjson, and against itself for other splits. The first byte chooses the split and
// the mode, the rest is the text.
#include "codec/skim.h"
#include "fuzz/skim_check.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0)
        return 0;
    const char *text = (const char *)data + 1;
    const char *wrong = skim_check(text, size - 1, data[0] & 1, size <= 64, data[0] >> 1);
    if (wrong) {
        fprintf(stderr, "skim: %s\n", wrong);
        abort();
    }
    return 0;
}
