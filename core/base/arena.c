// Arena: a chain of blocks, newest first, whose capacities double from the first block's to 64 KiB.
// What is larger than 16 KiB gets memory of its own. Freed blocks stay in a small cache per thread,
// so that a request normally costs no malloc; under AddressSanitizer there is no cache and unused
// bytes are poisoned.
#include "base/arena.h"
#include "base/poison.h"
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ALIGN 16u
#define MIN_BLOCK ((size_t)1024)
#define MAX_BLOCK ((size_t)64 * 1024)
#define MAX_FIRST ((size_t)64 * 1024 * 1024)
#define LARGE_SIZE ((size_t)16 * 1024)
#define DEFAULT_CAP ((size_t)64 * 1024 * 1024)
#define INLINE_HOOKS 4
#define CACHE_CLASSES 7 // 1 KiB … 64 KiB
#define CACHE_BYTES ((size_t)1024 * 1024)

#ifdef GW_HAS_ASAN
#define RED_ZONE 16u
#else
#define RED_ZONE 0u
#endif

struct block {
    struct block *prev;
    size_t capacity;
};

struct large {
    struct large *prev;
    size_t size;
};

struct hook {
    struct hook *prev;
    void (*fn)(void *arg);
    void *arg;
};

struct arena {
    char *next, *end; // free part of the current block
    struct block *block, *first;
    struct large *large;
    struct hook *hooks;
    size_t used, cap;
    bool is_wiped; // bytes are zeroed before they are given back
    unsigned inline_used;
    struct hook inline_hooks[INLINE_HOOKS];
};

// Every block has room for the arena itself, which lives in the first one, so that blocks of one
// capacity are interchangeable.
struct block_head {
    struct block block;
    struct arena arena;
};
#define HEAD_SIZE ((sizeof(struct block_head) + ALIGN - 1) & ~(size_t)(ALIGN - 1))
#define LARGE_HEAD ((sizeof(struct large) + ALIGN - 1) & ~(size_t)(ALIGN - 1))

static char *block_start(struct block *block)
{
    return (char *)block + HEAD_SIZE;
}

#ifndef GW_HAS_ASAN
struct cache {
    struct block *blocks[CACHE_CLASSES];
    size_t bytes;
    bool is_known; // the thread's destructor is set
};
static _Thread_local struct cache cache;
static pthread_key_t cache_key;
static pthread_once_t cache_once = PTHREAD_ONCE_INIT;
static bool has_cache_key;

static void cache_release(void *arg)
{
    struct cache *own = arg;
    for (int i = 0; i < CACHE_CLASSES; i++) {
        while (own->blocks[i]) {
            struct block *block = own->blocks[i];
            own->blocks[i] = block->prev;
            free(block);
        }
    }
    own->bytes = 0;
    own->is_known = false;
}

static void cache_make_key(void)
{
    has_cache_key = pthread_key_create(&cache_key, cache_release) == 0;
}

static int cache_class(size_t capacity)
{
    if (capacity < MIN_BLOCK || capacity > MAX_BLOCK)
        return -1;
    return __builtin_ctzl(capacity / MIN_BLOCK);
}
#endif

static struct block *block_new(size_t capacity)
{
    struct block *block = NULL;
#ifndef GW_HAS_ASAN
    int class = cache_class(capacity);
    if (class >= 0 && cache.blocks[class]) {
        block = cache.blocks[class];
        cache.blocks[class] = block->prev;
        cache.bytes -= capacity;
    }
#endif
    if (!block)
        block = malloc(HEAD_SIZE + capacity);
    if (!block)
        return NULL;
    block->prev = NULL;
    block->capacity = capacity;
    GW_POISON(block_start(block), capacity);
    return block;
}

static void block_free(struct block *block)
{
#ifndef GW_HAS_ASAN
    int class = cache_class(block->capacity);
    if (class >= 0 && cache.bytes + block->capacity <= CACHE_BYTES) {
        if (!cache.is_known) {
            pthread_once(&cache_once, cache_make_key);
            cache.is_known = has_cache_key && pthread_setspecific(cache_key, &cache) == 0;
        }
        if (cache.is_known) {
            block->prev = cache.blocks[class];
            cache.blocks[class] = block;
            cache.bytes += block->capacity;
            return;
        }
    }
#endif
    GW_UNPOISON(block_start(block), block->capacity);
    free(block);
}

// The power of two that holds size, from MIN_BLOCK on.
static size_t round_capacity(size_t size)
{
    size_t capacity = MIN_BLOCK;
    while (capacity < size)
        capacity *= 2;
    return capacity;
}

static void use_block(struct arena *arena, struct block *block, char *next)
{
    arena->block = block;
    arena->next = next;
    arena->end = block_start(block) + block->capacity;
}

struct arena *arena_new(size_t first_size)
{
    if (first_size > MAX_FIRST)
        return NULL;
    struct block *block = block_new(round_capacity(first_size));
    if (!block)
        return NULL;
    struct arena *arena = &((struct block_head *)block)->arena;
    memset(arena, 0, sizeof(*arena));
    arena->first = block;
    arena->cap = DEFAULT_CAP;
    use_block(arena, block, block_start(block));
    return arena;
}

static void run_hooks(struct arena *arena)
{
    while (arena->hooks) {
        struct hook hook = *arena->hooks;
        struct hook *old = arena->hooks;
        bool is_inline = old >= arena->inline_hooks && old < arena->inline_hooks + INLINE_HOOKS;
        arena->hooks = old->prev;
        if (!is_inline)
            free(old);
        hook.fn(hook.arg);
    }
    arena->inline_used = 0;
}

static void wipe(const struct arena *arena, char *from, const char *to)
{
    if (!arena->is_wiped || from >= to)
        return;
    GW_UNPOISON(from, (size_t)(to - from));
    explicit_bzero(from, (size_t)(to - from));
}

static void release_large(struct arena *arena, struct large *until)
{
    while (arena->large != until) {
        struct large *old = arena->large;
        gw_require(old != NULL);
        arena->large = old->prev;
        wipe(arena, (char *)old + LARGE_HEAD, (char *)old + LARGE_HEAD + old->size);
        free(old);
    }
}

static void release_blocks(struct arena *arena, struct block *until)
{
    while (arena->block != until) {
        struct block *old = arena->block;
        gw_require(old->prev != NULL);
        bool is_current = arena->next >= block_start(old) && arena->next <= arena->end &&
                          arena->end == block_start(old) + old->capacity;
        wipe(arena, block_start(old), is_current ? arena->next : block_start(old) + old->capacity);
        arena->block = old->prev;
        block_free(old);
    }
}

void arena_reset(struct arena *arena)
{
    run_hooks(arena);
    release_large(arena, NULL);
    bool is_first = arena->block == arena->first;
    release_blocks(arena, arena->first);
    wipe(arena, block_start(arena->first),
         is_first ? arena->next : block_start(arena->first) + arena->first->capacity);
    use_block(arena, arena->first, block_start(arena->first));
    GW_POISON(arena->next, arena->first->capacity);
    arena->used = 0;
}

void arena_free(struct arena *arena)
{
    if (!arena)
        return;
    arena_reset(arena);
    block_free(arena->first);
}

void arena_set_wiped(struct arena *arena)
{
    arena->is_wiped = true;
}

void arena_set_cap(struct arena *arena, size_t bytes)
{
    arena->cap = bytes;
}

size_t arena_used(const struct arena *arena)
{
    return arena->used;
}

static void *alloc_large(struct arena *arena, size_t size, size_t rounded)
{
    struct large *large = malloc(LARGE_HEAD + size);
    if (!large)
        return NULL;
    large->prev = arena->large;
    large->size = size;
    arena->large = large;
    arena->used += rounded;
    return (char *)large + LARGE_HEAD;
}

void *arena_alloc(struct arena *arena, size_t size)
{
    if (size > arena->cap)
        return NULL;
    size_t rounded = size ? (size + ALIGN - 1) & ~(size_t)(ALIGN - 1) : ALIGN;
    if (rounded < size || arena->used > arena->cap || rounded > arena->cap - arena->used)
        return NULL;
    size_t step = rounded + RED_ZONE;
    if (step > (size_t)(arena->end - arena->next)) {
        if (rounded > LARGE_SIZE)
            return alloc_large(arena, size, rounded);
        size_t capacity = arena->block->capacity * 2;
        if (capacity > MAX_BLOCK)
            capacity = MAX_BLOCK;
        struct block *block = block_new(capacity < step ? round_capacity(step) : capacity);
        if (!block)
            return NULL;
        block->prev = arena->block;
        use_block(arena, block, block_start(block));
    }
    char *out = arena->next;
    arena->next += step;
    arena->used += rounded;
    GW_UNPOISON(out, size);
    return out;
}

void *arena_zalloc(struct arena *arena, size_t size)
{
    void *out = arena_alloc(arena, size);
    if (out)
        memset(out, 0, size);
    return out;
}

struct slice arena_copy(struct arena *arena, struct slice src)
{
    char *out = arena_alloc(arena, src.len);
    if (!out)
        return SLICE_NONE;
    if (src.len)
        memcpy(out, src.ptr, src.len);
    return slice_of(out, src.len);
}

char *arena_copyz(struct arena *arena, struct slice src)
{
    if (src.len == SIZE_MAX)
        return NULL;
    char *out = arena_alloc(arena, src.len + 1);
    if (!out)
        return NULL;
    if (src.len)
        memcpy(out, src.ptr, src.len);
    out[src.len] = '\0';
    return out;
}

struct slice arena_join(struct arena *arena, const struct slice *parts, size_t count)
{
    size_t len = 0;
    for (size_t i = 0; i < count; i++) {
        if (__builtin_add_overflow(len, parts[i].len, &len))
            return SLICE_NONE;
    }
    char *out = arena_alloc(arena, len);
    if (!out)
        return SLICE_NONE;
    char *at = out;
    for (size_t i = 0; i < count; i++) {
        if (parts[i].len)
            memcpy(at, parts[i].ptr, parts[i].len);
        at += parts[i].len;
    }
    return slice_of(out, len);
}

struct slice arena_vprintf(struct arena *arena, const char *format, va_list args)
{
    va_list again;
    va_copy(again, args);
    struct slice out = SLICE_NONE;
    int len = vsnprintf(NULL, 0, format, args);
    char *text = len < 0 ? NULL : arena_alloc(arena, (size_t)len + 1);
    if (text) {
        vsnprintf(text, (size_t)len + 1, format, again);
        out = slice_of(text, (size_t)len);
    }
    va_end(again);
    return out;
}

struct slice arena_printf(struct arena *arena, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    struct slice out = arena_vprintf(arena, format, args);
    va_end(args);
    return out;
}

int arena_on_free(struct arena *arena, void (*fn)(void *arg), void *arg)
{
    // Not in the arena's own memory, which a rewind would take back.
    struct hook *hook = arena->inline_used < INLINE_HOOKS
                            ? &arena->inline_hooks[arena->inline_used++]
                            : malloc(sizeof(*hook));
    if (!hook)
        return GW_ENOMEM;
    *hook = (struct hook){arena->hooks, fn, arg};
    arena->hooks = hook;
    return 0;
}

struct arena_mark arena_mark(struct arena *arena)
{
    return (struct arena_mark){arena->block, arena->next, arena->large, arena->used};
}

void arena_rewind(struct arena *arena, struct arena_mark mark)
{
    bool is_same = arena->block == mark.block;
    const char *top = arena->next;
    release_large(arena, mark.large);
    release_blocks(arena, mark.block);
    wipe(arena, mark.next, is_same ? top : block_start(arena->block) + arena->block->capacity);
    use_block(arena, arena->block, mark.next);
    GW_POISON(arena->next, (size_t)(arena->end - arena->next));
    arena->used = mark.used;
}
