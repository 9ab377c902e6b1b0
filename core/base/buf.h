#pragma once
// A growable byte queue: append at the end, consume at the front. Its cap bounds what a peer can
// make it hold. Not thread-safe. All appends are all-or-nothing: GW_ETOOBIG past the cap,
// GW_ENOMEM when out of memory, and the content is then unchanged.
#include "base/err.h"
#include "base/slice.h"
#include <stdarg.h>
#include <stdint.h>
#include <string.h>

struct buf {
    char *mem;
    size_t off;      // first byte not consumed
    size_t len;      // bytes from off
    size_t capacity; // of mem
    size_t cap;      // limit on len; 0 = none
};

#define BUF_INIT(limit) ((struct buf){NULL, 0, 0, 0, (limit)})

void buf_init(struct buf *buf, size_t cap);
void buf_free(struct buf *buf); // releases the memory; the buf may be used again
// Zeroes the memory, then releases it. Outgrown memory was not zeroed: for a secret make room
// first.
void buf_wipe(struct buf *buf);
void buf_clear(struct buf *buf); // keeps the memory

static inline struct slice buf_slice(const struct buf *buf)
{
    return (struct slice){buf->mem ? buf->mem + buf->off : "", buf->len};
}

GW_MUSTCHECK int buf_append_slow(struct buf *buf, struct slice bytes); // buf_append's rare case
GW_MUSTCHECK static inline int buf_append(struct buf *buf, struct slice bytes)
{
    size_t used = buf->off + buf->len; // ≤ capacity
    if (bytes.len == 0 || bytes.len > buf->capacity - used ||
        (buf->cap && bytes.len + buf->len > buf->cap))
        return buf_append_slow(buf, bytes);
    memcpy(buf->mem + used, bytes.ptr, bytes.len);
    buf->len += bytes.len;
    return 0;
}
GW_MUSTCHECK int buf_append_str(struct buf *buf, const char *text);
GW_MUSTCHECK int buf_append_char(struct buf *buf, char byte);
GW_MUSTCHECK int buf_append_u64(struct buf *buf, uint64_t value); // decimal
GW_MUSTCHECK int buf_append_i64(struct buf *buf, int64_t value);  // decimal
GW_MUSTCHECK int buf_printf(struct buf *buf, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
GW_MUSTCHECK int buf_vprintf(struct buf *buf, const char *format, va_list args);
// Makes room for at least size more bytes and gives the place to write them; buf_grew then says
// how many were written. NULL on failure.
char *buf_room(struct buf *buf, size_t size);
void buf_grew(struct buf *buf, size_t size);
// Drops size bytes from the front (size ≤ len).
void buf_consume(struct buf *buf, size_t size);
// Drops bytes from the end so that len remain.
void buf_truncate(struct buf *buf, size_t len);
// Gives memory back when much more is held than used (called when a queue has drained).
void buf_shrink(struct buf *buf);
