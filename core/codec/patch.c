// Edits are kept sorted as they were asked for; a walk over them and the body (struct walk) widens
// removals by their comma and drops the comma of an addition to an object that is or gets empty.
// Length, pieces and bytes all come from this one walk.
#include "codec/patch.h"
#include <string.h>

void patch_init(struct patch *patch, struct arena *arena)
{
    *patch = (struct patch){.arena = arena};
}

static int add_edit(struct patch *patch, struct patch_edit edit)
{
    if (edit.start > UINT64_MAX - edit.length)
        return GW_EINVAL;
    uint64_t end = edit.start + edit.length;
    // Edits mostly come in order: look from the back for the place.
    size_t at = patch->count;
    while (at > 0) {
        const struct patch_edit *other = &patch->edits[at - 1];
        // An insertion stands before a replacement that begins at the same place.
        if (other->start < edit.start ||
            (other->start == edit.start && (other->length == 0 || edit.length > 0)))
            break;
        at--;
    }
    if (at > 0) {
        const struct patch_edit *prev = &patch->edits[at - 1];
        if (prev->length && prev->start + prev->length > edit.start)
            return GW_EINVAL;
    }
    if (at < patch->count && edit.length && patch->edits[at].start < end)
        return GW_EINVAL;
    if (patch->count == patch->capacity) {
        size_t capacity = patch->capacity ? patch->capacity * 2 : 8;
        struct patch_edit *edits = arena_alloc(patch->arena, capacity * sizeof(*edits));
        if (!edits)
            return GW_ENOMEM;
        if (patch->count)
            memcpy(edits, patch->edits, patch->count * sizeof(*edits));
        patch->edits = edits;
        patch->capacity = capacity;
    }
    memmove(patch->edits + at + 1, patch->edits + at, (patch->count - at) * sizeof(edit));
    patch->edits[at] = edit;
    patch->count++;
    return 0;
}

int patch_replace(struct patch *patch, uint64_t start, uint64_t length, struct slice with)
{
    return add_edit(patch, (struct patch_edit){start, length, with, PATCH_REPLACE});
}

int patch_set_value(struct patch *patch, const struct skim_span *span, struct slice json)
{
    if (span->type == SKIM_ABSENT || span->end < span->start)
        return GW_EINVAL;
    return patch_replace(patch, span->start, span->end - span->start, json);
}

int patch_remove_member(struct patch *patch, struct slice body, const struct skim_span *span)
{
    if (span->type == SKIM_ABSENT || span->key_start >= span->start || span->end < span->start ||
        span->end > body.len || body.ptr[span->key_start] != '"')
        return GW_EINVAL;
    return add_edit(patch, (struct patch_edit){span->key_start, span->end - span->key_start,
                                               SLICE_NONE, PATCH_REMOVE_MEMBER});
}

int patch_add_member(struct patch *patch, uint64_t object_start, bool is_empty, struct slice name,
                     struct slice json)
{
    // The comma is always made; the walk, which sees the body, drops it where none is due.
    (void)is_empty;
    if (object_start == UINT64_MAX || name.len > UINT32_MAX || json.len > UINT32_MAX)
        return GW_EINVAL;
    static const char HEX[] = "0123456789abcdef";
    char *text = arena_alloc(patch->arena, name.len * 6 + json.len + 4);
    if (!text)
        return GW_ENOMEM;
    size_t len = 0;
    text[len++] = '"';
    for (size_t i = 0; i < name.len; i++) {
        unsigned char c = (unsigned char)name.ptr[i];
        if (c < 0x20) {
            memcpy(text + len, "\\u00", 4);
            text[len + 4] = HEX[c >> 4];
            text[len + 5] = HEX[c & 15];
            len += 6;
            continue;
        }
        if (c == '"' || c == '\\')
            text[len++] = '\\';
        text[len++] = (char)c;
    }
    text[len++] = '"';
    text[len++] = ':';
    if (json.len)
        memcpy(text + len, json.ptr, json.len);
    len += json.len;
    text[len++] = ',';
    return add_edit(
        patch, (struct patch_edit){object_start + 1, 0, slice_of(text, len), PATCH_ADD_MEMBER});
}

// ---- The walk ----

struct walk {
    const struct patch *patch;
    struct slice body;
    size_t at;     // next edit
    uint64_t done; // bytes of the body that are settled
};
// One step: body bytes [from, to) stay, then `with` comes; the body goes on at `walk.done`.
struct step {
    struct slice keep, with;
};

static bool is_space(char c)
{
    return c == ' ' || c == '\n' || c == '\t' || c == '\r';
}

static uint64_t space_end(struct slice body, uint64_t at)
{
    while (at < body.len && is_space(body.ptr[at]))
        at++;
    return at;
}

static uint64_t space_start(struct slice body, uint64_t at)
{
    while (at > 0 && is_space(body.ptr[at - 1]))
        at--;
    return at;
}

// Gives the end of the run of removed neighbours that begins at edit `first`: the index past it and
// whether a member stays behind it, whose name then begins at *next_key.
static size_t removal_run(const struct walk *walk, size_t first, bool *has_next, uint64_t *next_key)
{
    const struct patch *patch = walk->patch;
    size_t at = first;
    for (;;) {
        uint64_t end = patch->edits[at].start + patch->edits[at].length;
        uint64_t comma = space_end(walk->body, end);
        at++;
        *has_next = comma < walk->body.len && walk->body.ptr[comma] == ',';
        if (!*has_next)
            return at;
        *next_key = space_end(walk->body, comma + 1);
        // Insertions of callers may stand in between.
        size_t next = at;
        while (next < patch->count && patch->edits[next].start <= *next_key &&
               patch->edits[next].kind != PATCH_REMOVE_MEMBER)
            next++;
        if (next != at || next == patch->count || patch->edits[next].start != *next_key ||
            patch->edits[next].kind != PATCH_REMOVE_MEMBER)
            return at;
    }
}

// True when the object whose '{' stands before `inside` has no member left; `at` is the first edit
// behind the additions.
static bool gets_empty(const struct walk *walk, uint64_t inside, size_t at)
{
    uint64_t first = space_end(walk->body, inside);
    if (first < walk->body.len && walk->body.ptr[first] == '}')
        return true;
    const struct patch *patch = walk->patch;
    if (at >= patch->count || patch->edits[at].kind != PATCH_REMOVE_MEMBER ||
        patch->edits[at].start != first)
        return false;
    bool has_next;
    uint64_t next_key;
    (void)removal_run(walk, at, &has_next, &next_key);
    return !has_next;
}

static bool walk_next(struct walk *walk, struct step *step)
{
    const struct patch *patch = walk->patch;
    struct slice body = walk->body;
    if (walk->at >= patch->count) {
        step->keep = slice_of(body.ptr + walk->done, (size_t)(body.len - walk->done));
        step->with = SLICE_NONE;
        walk->done = body.len;
        return false;
    }
    const struct patch_edit *edit = &patch->edits[walk->at];
    uint64_t start = edit->start, end = edit->start + edit->length;
    step->with = edit->with;
    walk->at++;
    if (edit->kind == PATCH_ADD_MEMBER) {
        bool is_last = walk->at == patch->count || patch->edits[walk->at].start != edit->start ||
                       patch->edits[walk->at].kind != PATCH_ADD_MEMBER;
        if (is_last && gets_empty(walk, edit->start, walk->at))
            step->with.len--;
    } else if (edit->kind == PATCH_REMOVE_MEMBER) {
        bool has_next;
        uint64_t next_key = 0;
        walk->at = removal_run(walk, walk->at - 1, &has_next, &next_key);
        const struct patch_edit *last = &patch->edits[walk->at - 1];
        end = last->start + last->length;
        if (has_next) {
            end = next_key;
        } else {
            uint64_t before = space_start(body, start);
            if (before > 0 && body.ptr[before - 1] == ',')
                start = before - 1;
        }
    }
    if (start < walk->done)
        start = walk->done;
    if (end < start)
        end = start;
    step->keep = slice_of(body.ptr + walk->done, (size_t)(start - walk->done));
    walk->done = end;
    return true;
}

static bool fits(const struct patch *patch, struct slice body)
{
    if (patch->count == 0)
        return true;
    const struct patch_edit *last = &patch->edits[patch->count - 1];
    return last->start + last->length <= body.len;
}

uint64_t patch_length(const struct patch *patch, struct slice body)
{
    if (!fits(patch, body))
        return body.len;
    struct walk walk = {.patch = patch, .body = body};
    struct step step;
    uint64_t length = 0;
    bool is_more;
    do {
        is_more = walk_next(&walk, &step);
        length += step.keep.len + step.with.len;
    } while (is_more);
    return length;
}

int patch_pieces(const struct patch *patch, struct slice body, struct slice **pieces, size_t *count)
{
    *pieces = NULL;
    *count = 0;
    if (!fits(patch, body))
        return GW_EINVAL;
    struct slice *out = arena_alloc(patch->arena, (patch->count * 2 + 1) * sizeof(*out));
    if (!out)
        return GW_ENOMEM;
    struct walk walk = {.patch = patch, .body = body};
    struct step step;
    bool is_more;
    do {
        is_more = walk_next(&walk, &step);
        if (step.keep.len)
            out[(*count)++] = step.keep;
        if (step.with.len)
            out[(*count)++] = step.with;
    } while (is_more);
    *pieces = out;
    return 0;
}

int patch_apply(const struct patch *patch, struct slice body, struct slice *out)
{
    *out = SLICE_NONE;
    if (!fits(patch, body))
        return GW_EINVAL;
    uint64_t length = patch_length(patch, body);
    char *text = arena_alloc(patch->arena, length ? (size_t)length : 1);
    if (!text)
        return GW_ENOMEM;
    struct walk walk = {.patch = patch, .body = body};
    struct step step;
    size_t at = 0;
    bool is_more;
    do {
        is_more = walk_next(&walk, &step);
        if (step.keep.len)
            memcpy(text + at, step.keep.ptr, step.keep.len);
        at += step.keep.len;
        if (step.with.len)
            memcpy(text + at, step.with.ptr, step.with.len);
        at += step.with.len;
    } while (is_more);
    *out = slice_of(text, at);
    return 0;
}
