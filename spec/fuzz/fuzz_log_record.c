// Any bytes as a log record of the journal: an error or a record, which then encodes again.
#include "base/arena.h"
#include "base/buf.h"
#include "state/journal.h"
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct log_record record, again;
    struct arena *arena = arena_new(4096);
    struct buf bytes = BUF_INIT(0);
    if (arena && log_record_decode(slice_of((const char *)data, size), arena, &record) == 0) {
        if (log_record_encode(&record, &bytes) != 0 ||
            log_record_decode(buf_slice(&bytes), arena, &again) != 0)
            abort();
        if (again.created_ms != record.created_ms || again.status != record.status ||
            again.attempt_count != record.attempt_count ||
            again.usage.output != record.usage.output)
            abort();
    }
    buf_free(&bytes);
    arena_free(arena);
    return 0;
}
