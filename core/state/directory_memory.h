#pragma once
// Memory of the directory: slabs by size for its many small entries, without a header for each;
// what is larger, and all of it under AddressSanitizer, comes from malloc. What was retired to an
// epoch may be freed after the directory has gone: the slabs live until then. Any thread.
#include "base/epoch.h"
#include <stddef.h>

struct directory_memory;

struct directory_memory *directory_memory_new(void);
// Ends it; slabs go with the last retired piece.
void directory_memory_close(struct directory_memory *memory);
void *directory_memory_take(struct directory_memory *memory, size_t size); // NULL: no memory
void directory_memory_give(struct directory_memory *memory, void *piece, size_t size);
// Gives it back when no reader of the epoch can see it any more. Without memory to note that, it
// stays until the end.
void directory_memory_retire(struct directory_memory *memory, struct epoch *epoch, void *piece,
                             size_t size);
