// The catalogue's look-ups and its swappable pointer.
#include "state/catalogue.h"
#include <stdatomic.h>
#include <stdlib.h>

#define SYNC_MS 1000

struct catalogue_ref {
    struct epoch *epoch;
    _Atomic(struct catalogue *) current;
};

struct catalogue_ref *catalogue_ref_new(struct epoch *epoch)
{
    struct catalogue_ref *ref = calloc(1, sizeof(*ref));
    struct arena *arena = arena_new(256);
    struct catalogue *empty = arena ? arena_zalloc(arena, sizeof(*empty)) : NULL;
    if (!ref || !empty) {
        free(ref);
        arena_free(arena);
        return NULL;
    }
    empty->arena = arena;
    ref->epoch = epoch;
    atomic_init(&ref->current, empty);
    return ref;
}

void catalogue_free(struct catalogue *catalogue)
{
    // Its keys' references are dropped by the arena's own callbacks.
    if (catalogue)
        arena_free(catalogue->arena);
}

void catalogue_ref_free(struct catalogue_ref *ref)
{
    if (!ref)
        return;
    catalogue_free(atomic_load(&ref->current));
    free(ref);
}

const struct catalogue *catalogue_get(const struct catalogue_ref *ref)
{
    return atomic_load_explicit(&ref->current, memory_order_acquire);
}

static void free_catalogue(void *catalogue)
{
    catalogue_free(catalogue);
}

int catalogue_swap(struct catalogue_ref *ref, struct catalogue *next)
{
    struct catalogue *old = atomic_exchange(&ref->current, next);
    if (epoch_retire(ref->epoch, old, free_catalogue) == 0)
        return 0;
    // No memory for the queue: wait for the readers instead. The new one stands either way.
    if (epoch_synchronize(ref->epoch, SYNC_MS) != 0)
        return GW_ENOMEM;
    catalogue_free(old);
    return 0;
}

const struct upstream *catalogue_upstream(const struct catalogue *catalogue, int64_t id)
{
    // In order of id.
    size_t low = 0, high = catalogue->upstream_count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (catalogue->upstreams[middle].id < id)
            low = middle + 1;
        else
            high = middle;
    }
    bool is_found = low < catalogue->upstream_count && catalogue->upstreams[low].id == id;
    return is_found ? &catalogue->upstreams[low] : NULL;
}

const struct upstream *catalogue_upstream_named(const struct catalogue *catalogue,
                                                struct slice name)
{
    for (size_t i = 0; i < catalogue->upstream_count; i++)
        if (slice_eq(catalogue->upstreams[i].name, name))
            return &catalogue->upstreams[i];
    return NULL;
}

// Goes back only to the last '*' seen: never worse than pattern × text.
bool catalogue_matches(struct slice pattern, struct slice text)
{
    size_t p = 0, t = 0, star = SIZE_MAX, from = 0;
    while (t < text.len) {
        if (p < pattern.len && pattern.ptr[p] == '*') {
            star = p++;
            from = t;
        } else if (p < pattern.len && pattern.ptr[p] == text.ptr[t]) {
            p++;
            t++;
        } else if (star != SIZE_MAX) {
            p = star + 1;
            t = ++from;
        } else {
            return false;
        }
    }
    while (p < pattern.len && pattern.ptr[p] == '*')
        p++;
    return p == pattern.len;
}

static size_t literal_len(struct slice pattern)
{
    size_t len = 0;
    for (size_t i = 0; i < pattern.len; i++)
        len += pattern.ptr[i] != '*';
    return len;
}

static const char *star_of(struct slice text)
{
    return text.len ? memchr(text.ptr, '*', text.len) : NULL;
}

// What the first '*' of a pattern that matches stands for: the shortest that lets the rest match.
static struct slice first_match(struct slice pattern, struct slice text)
{
    const char *star = star_of(pattern);
    if (!star)
        return slice_of(text.ptr, 0);
    size_t before = (size_t)(star - pattern.ptr);
    struct slice rest = slice_from(pattern, before + 1);
    for (size_t len = 0; before + len <= text.len; len++)
        if (catalogue_matches(rest, slice_from(text, before + len)))
            return slice_of(text.ptr + before, len);
    return slice_of(text.ptr, 0);
}

struct slice catalogue_model_for(const struct upstream *upstream, struct slice model,
                                 struct arena *arena)
{
    bool is_demo = slice_is(model, "demo");
    if (upstream->model_count == 0)
        return is_demo ? SLICE_NONE : model;
    const struct upstream_model *best = NULL;
    size_t best_len = 0;
    for (size_t i = 0; i < upstream->model_count; i++) {
        const struct upstream_model *entry = &upstream->models[i];
        if (slice_eq(entry->public_name, model)) {
            best = entry;
            break;
        }
        if (is_demo || !star_of(entry->public_name))
            continue;
        size_t len = literal_len(entry->public_name);
        if ((!best || len > best_len) && catalogue_matches(entry->public_name, model)) {
            best = entry;
            best_len = len;
        }
    }
    if (!best)
        return SLICE_NONE;
    if (best->upstream_name.len == 0)
        return model;
    const char *star = star_of(best->upstream_name);
    if (!star || !star_of(best->public_name))
        return best->upstream_name;
    size_t before = (size_t)(star - best->upstream_name.ptr);
    struct slice part = first_match(best->public_name, model);
    return arena_printf(arena, "%.*s%.*s%.*s", (int)before, best->upstream_name.ptr,
                        SLICE_FMT(part), SLICE_FMT(slice_from(best->upstream_name, before + 1)));
}

const struct price *catalogue_price(const struct catalogue *catalogue, struct slice model)
{
    const struct price *best = NULL;
    size_t best_len = 0;
    for (size_t i = 0; i < catalogue->price_count; i++) {
        const struct price *price = &catalogue->prices[i];
        if (slice_eq(price->model, model))
            return price;
        size_t len = literal_len(price->model);
        if ((!best || len > best_len) && star_of(price->model) &&
            catalogue_matches(price->model, model)) {
            best = price;
            best_len = len;
        }
    }
    return best;
}
