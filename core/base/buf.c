// Growable byte queue. Memory grows by doubling, up to twice the cap: then a move to the front
// always follows as many consumed bytes as it copies, and appending stays O(1) per byte.
#include "base/buf.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MIN_CAPACITY ((size_t)256)
#define KEEP_CAPACITY ((size_t)4096)

void buf_init(struct buf *buf, size_t cap)
{
    *buf = BUF_INIT(cap);
}

void buf_free(struct buf *buf)
{
    free(buf->mem);
    *buf = BUF_INIT(buf->cap);
}

void buf_wipe(struct buf *buf)
{
    if (buf->mem)
        explicit_bzero(buf->mem, buf->capacity);
    buf_free(buf);
}

void buf_clear(struct buf *buf)
{
    buf->off = buf->len = 0;
}

static int move_to(struct buf *buf, size_t capacity)
{
    char *mem = malloc(capacity);
    if (!mem)
        return GW_ENOMEM;
    if (buf->len)
        memcpy(mem, buf->mem + buf->off, buf->len);
    free(buf->mem);
    buf->mem = mem;
    buf->off = 0;
    buf->capacity = capacity;
    return 0;
}

// Makes room for size bytes of content and spare bytes behind that do not count.
static int make_room(struct buf *buf, size_t size, size_t spare)
{
    size_t len, need, capacity;
    if (__builtin_add_overflow(buf->len, size, &len) || __builtin_add_overflow(len, spare, &need))
        return GW_ETOOBIG;
    if (buf->cap && len > buf->cap)
        return GW_ETOOBIG;
    if (buf->mem && need <= buf->capacity - buf->off)
        return 0;
    if (buf->mem && need <= buf->capacity && buf->off >= buf->len) {
        memmove(buf->mem, buf->mem + buf->off, buf->len);
        buf->off = 0;
        return 0;
    }
    if (__builtin_mul_overflow(buf->capacity, (size_t)2, &capacity))
        capacity = need;
    if (capacity < MIN_CAPACITY)
        capacity = MIN_CAPACITY;
    if (buf->cap && capacity / 2 > buf->cap)
        capacity = buf->cap * 2;
    if (capacity < need)
        capacity = need;
    return move_to(buf, capacity);
}

int buf_append_slow(struct buf *buf, struct slice bytes)
{
    if (bytes.len == 0)
        return 0;
    int err = make_room(buf, bytes.len, 0);
    if (err)
        return err;
    memcpy(buf->mem + buf->off + buf->len, bytes.ptr, bytes.len);
    buf->len += bytes.len;
    return 0;
}

int buf_append_str(struct buf *buf, const char *text)
{
    return buf_append(buf, slice_str(text));
}

int buf_append_char(struct buf *buf, char byte)
{
    return buf_append(buf, slice_of(&byte, 1));
}

// Writes value's digits so that they end before end; gives their start.
static char *write_digits(char *end, uint64_t value)
{
    do {
        *--end = (char)('0' + value % 10);
        value /= 10;
    } while (value);
    return end;
}

int buf_append_u64(struct buf *buf, uint64_t value)
{
    char text[20];
    char *end = text + sizeof(text);
    char *start = write_digits(end, value);
    return buf_append(buf, slice_of(start, (size_t)(end - start)));
}

int buf_append_i64(struct buf *buf, int64_t value)
{
    char text[20];
    char *end = text + sizeof(text);
    char *start = write_digits(end, value < 0 ? 0 - (uint64_t)value : (uint64_t)value);
    if (value < 0)
        *--start = '-';
    return buf_append(buf, slice_of(start, (size_t)(end - start)));
}

int buf_vprintf(struct buf *buf, const char *format, va_list args)
{
    va_list again;
    va_copy(again, args);
    int len = vsnprintf(NULL, 0, format, args);
    int err = len < 0 ? GW_EINVAL : make_room(buf, (size_t)len, 1);
    if (!err) {
        vsnprintf(buf->mem + buf->off + buf->len, (size_t)len + 1, format, again);
        buf->len += (size_t)len;
    }
    va_end(again);
    return err;
}

int buf_printf(struct buf *buf, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    int err = buf_vprintf(buf, format, args);
    va_end(args);
    return err;
}

char *buf_room(struct buf *buf, size_t size)
{
    return make_room(buf, size, 0) ? NULL : buf->mem + buf->off + buf->len;
}

void buf_grew(struct buf *buf, size_t size)
{
    gw_require(size <= buf->capacity - buf->off - buf->len);
    buf->len += size;
}

void buf_consume(struct buf *buf, size_t size)
{
    gw_require(size <= buf->len);
    buf->off += size;
    buf->len -= size;
    if (buf->len == 0)
        buf->off = 0;
}

void buf_truncate(struct buf *buf, size_t len)
{
    gw_require(len <= buf->len);
    buf->len = len;
    if (len == 0)
        buf->off = 0;
}

void buf_shrink(struct buf *buf)
{
    if (buf->len == 0) {
        buf_free(buf);
    } else if (buf->capacity > KEEP_CAPACITY && buf->len < buf->capacity / 4) {
        // Without memory for the smaller copy the larger one simply stays.
        size_t capacity = buf->len < MIN_CAPACITY ? MIN_CAPACITY : buf->len;
        if (move_to(buf, capacity) != 0)
            return;
    }
}
