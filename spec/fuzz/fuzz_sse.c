// The SSE parser against a plain one, and against itself for other splits. The first byte chooses
// the split, the rest is the stream.
#include "codec/sse.h"
#include "fuzz/sse_check.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0)
        return 0;
    const char *wrong = sse_check((const char *)data + 1, size - 1, size <= 64, data[0]);
    if (wrong) {
        fprintf(stderr, "sse: %s\n", wrong);
        abort();
    }
    return 0;
}
