// Random edits of one object: sets, removals and additions, in any order. The result has to parse
// to what the same edits make of the members, counted one by one. The first eight bytes choose the
// edits, the rest is the text.
#include "codec/patch.h"
#include <stdio.h>
#include <stdlib.h>
#include <yyjson.h>

#define NAMES 6
static const char *const PATHS[NAMES] = {"a", "b", "c", "d", "o.a", "o.b"};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void die(const char *why, struct slice body, struct slice result)
{
    fprintf(stderr, "patch: %s\n  body   %.*s\n  result %.*s\n", why, SLICE_FMT(body),
            SLICE_FMT(result));
    abort();
}

static bool same(yyjson_val *a, yyjson_val *b)
{
    char *x = yyjson_val_write(a, YYJSON_WRITE_ALLOW_INVALID_UNICODE, NULL);
    char *y = yyjson_val_write(b, YYJSON_WRITE_ALLOW_INVALID_UNICODE, NULL);
    bool is_same = x && y && strcmp(x, y) == 0;
    free(x);
    free(y);
    return is_same;
}

// Compares the members of one object before and after: `level` is "" or "o.".
static void check_object(yyjson_val *old, yyjson_val *new, const char *level, uint32_t set,
                         uint32_t removed, unsigned added, struct slice body, struct slice result)
{
    yyjson_obj_iter it = yyjson_obj_iter_with(new);
    for (unsigned i = 0; i < added; i++) {
        yyjson_val *key = yyjson_obj_iter_next(&it);
        if (!yyjson_equals_str(key, i == 0 ? "x\"1" : "x2") ||
            !yyjson_equals_str(yyjson_obj_iter_get_val(key), "added"))
            die("an added member is not there", body, result);
    }
    size_t i, max;
    yyjson_val *key, *val;
    yyjson_obj_foreach(old, i, max, key, val)
    {
        int at = -1;
        for (int k = 0; k < NAMES; k++)
            if (strncmp(PATHS[k], level, strlen(level)) == 0 &&
                yyjson_equals_str(key, PATHS[k] + strlen(level)))
                at = k;
        if (at >= 0 && (removed >> at & 1))
            continue;
        yyjson_val *got = yyjson_obj_iter_next(&it);
        if (!got || !yyjson_equals_strn(got, yyjson_get_str(key), yyjson_get_len(key)))
            die("a member is missing", body, result);
        yyjson_val *value = yyjson_obj_iter_get_val(got);
        if (at >= 0 && (set >> at & 1)) {
            if (!yyjson_equals_str(value, "set"))
                die("a value is not set", body, result);
        } else if (!*level && yyjson_equals_str(key, "o") && yyjson_is_obj(val)) {
            check_object(val, value, "o.", set, removed, 0, body, result);
        } else if (!same(val, value)) {
            die("another member changed", body, result);
        }
    }
    if (yyjson_obj_iter_next(&it))
        die("a member too many", body, result);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 9)
        return 0;
    struct slice body = slice_of((const char *)data + 8, size - 8);
    static const char *const ALL[NAMES + 1] = {"a", "b", "c", "d", "o.a", "o.b", "o"};
    struct skim skim;
    if (skim_whole(&skim, &(struct skim_spec){.paths = ALL, .path_count = NAMES + 1}, body) != 0 ||
        skim.root_type != SKIM_OBJECT)
        return 0;
    for (int i = 0; i <= NAMES; i++)
        if (skim.spans[i].is_duplicate)
            return 0;

    struct arena *arena = arena_new(1024);
    struct patch patch;
    patch_init(&patch, arena);
    uint32_t set = 0, removed = 0;
    unsigned added = 0;
    for (int i = 0; i < 8; i++) {
        unsigned at = data[i] % 8;
        if (at >= NAMES) {
            if (data[i] & 0x80 && added < 2) {
                struct slice name = added++ ? SLICE_LIT("x2") : SLICE_LIT("x\"1");
                if (patch_add_member(&patch, skim.root_start, false, name,
                                     SLICE_LIT("\"added\"")) != 0)
                    die("an addition is refused", body, body);
            }
            continue;
        }
        const struct skim_span *span = &skim.spans[at];
        bool is_removal = data[i] & 0x80;
        int err = is_removal ? patch_remove_member(&patch, body, span)
                             : patch_set_value(&patch, span, SLICE_LIT("\"set\""));
        bool is_free = span->type != SKIM_ABSENT && !((set | removed) >> at & 1);
        if ((err == 0) != is_free)
            die("an edit is refused or taken wrongly", body, body);
        if (!err)
            *(is_removal ? &removed : &set) |= 1u << at;
    }

    struct slice result, *pieces;
    size_t count, at = 0;
    if (patch_apply(&patch, body, &result) != 0 || patch_pieces(&patch, body, &pieces, &count) != 0)
        abort();
    if (patch_length(&patch, body) != result.len)
        die("patch_length", body, result);
    for (size_t i = 0; i < count; at += pieces[i++].len)
        if (pieces[i].len == 0 || pieces[i].len > result.len - at ||
            memcmp(pieces[i].ptr, result.ptr + at, pieces[i].len) != 0)
            die("pieces differ", body, result);
    if (at != result.len)
        die("pieces end early", body, result);

    yyjson_doc *old = yyjson_read(body.ptr, body.len, YYJSON_READ_NUMBER_AS_RAW);
    yyjson_doc *new = yyjson_read(result.ptr, result.len, YYJSON_READ_NUMBER_AS_RAW);
    if (!old || !new)
        die("the result is no JSON", body, result);
    check_object(yyjson_doc_get_root(old), yyjson_doc_get_root(new), "", set, removed, added, body,
                 result);
    yyjson_doc_free(old);
    yyjson_doc_free(new);
    arena_free(arena);
    return 0;
}
