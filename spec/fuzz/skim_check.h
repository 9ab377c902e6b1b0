#pragma once
// Compares skim with yyjson on one text: same verdict, same values at the declared paths, same
// duplicates and twins; and skim with itself for several splits of the input. Used by the unit test
// and by the fuzz target. Gives NULL or what is wrong. Any thread.
#include "codec/skim.h"
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <yyjson.h>

static const char *const SKIM_CHECK_PATHS[] = {
    "model",
    "stream",
    "stream_options",
    "stream_options.include_usage",
    "n",
    "a",
    "a.b",
    "a.b.c",
    "a.0",
    "a.0.b",
    "a.1",
    "choices.0.delta.content",
    "usage",
    "usage.total",
    "0",
    "b",
    "\xc3\xa9",
    "\xef\xbf\xbd",
    "",
    "Model",
    "a",
};
#define SKIM_CHECK_COUNT (sizeof(SKIM_CHECK_PATHS) / sizeof(SKIM_CHECK_PATHS[0]))

// The value of a \uXXXX escape at a place, or -1.
static inline int skim_check_unit(const char *text, size_t len, size_t at)
{
    if (at + 6 > len || text[at] != '\\' || text[at + 1] != 'u')
        return -1;
    int unit = 0;
    for (size_t i = at + 2; i < at + 6; i++) {
        char c = text[i];
        int digit = c >= '0' && c <= '9'   ? c - '0'
                    : c >= 'a' && c <= 'f' ? c - 'a' + 10
                    : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                           : -1;
        if (digit < 0)
            return -1;
        unit = unit << 4 | digit;
    }
    return unit;
}

// In the lenient mode lone surrogate escapes pass skim but not yyjson: they become \ufffd here,
// which has the same length and is what skim takes them for.
static inline void skim_check_repair(char *text, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        if (text[i] != '\\')
            continue;
        int unit = skim_check_unit(text, len, i);
        if (unit < 0) {
            i++; // another escape, or a wrong one
            continue;
        }
        int next = skim_check_unit(text, len, i + 6);
        if ((unit & 0xfc00) == 0xd800 && next >= 0 && (next & 0xfc00) == 0xdc00) {
            i += 11;
            continue;
        }
        if ((unit & 0xf800) == 0xd800)
            memcpy(text + i, "\\ufffd", 6);
        i += 5;
    }
}

static inline yyjson_doc *skim_check_read(const char *text, size_t len, bool is_lenient)
{
    yyjson_read_flag flags = YYJSON_READ_NUMBER_AS_RAW;
    if (is_lenient)
        flags |= YYJSON_READ_ALLOW_INVALID_UNICODE;
    return len ? yyjson_read_opts((char *)(uintptr_t)text, len, flags, NULL, NULL) : NULL;
}

static inline bool skim_check_equal(yyjson_val *a, yyjson_val *b)
{
    if (yyjson_get_type(a) != yyjson_get_type(b) || yyjson_get_subtype(a) != yyjson_get_subtype(b))
        return false;
    size_t i, max;
    yyjson_val *key, *val;
    if (yyjson_is_arr(a)) {
        if (yyjson_arr_size(a) != yyjson_arr_size(b))
            return false;
        yyjson_arr_iter other = yyjson_arr_iter_with(b);
        yyjson_arr_foreach(a, i, max, val)
        {
            if (!skim_check_equal(val, yyjson_arr_iter_next(&other)))
                return false;
        }
    } else if (yyjson_is_obj(a)) {
        if (yyjson_obj_size(a) != yyjson_obj_size(b))
            return false;
        yyjson_obj_iter other = yyjson_obj_iter_with(b);
        yyjson_obj_foreach(a, i, max, key, val)
        {
            yyjson_val *other_key = yyjson_obj_iter_next(&other);
            if (!skim_check_equal(key, other_key) ||
                !skim_check_equal(val, yyjson_obj_iter_get_val(other_key)))
                return false;
        }
    } else if (yyjson_is_raw(a) || yyjson_is_str(a)) {
        return yyjson_get_len(a) == yyjson_get_len(b) &&
               memcmp(a->uni.str, b->uni.str, yyjson_get_len(a)) == 0;
    }
    return true;
}

struct skim_check_want {
    yyjson_val *value;
    bool is_duplicate, has_case_twin;
};

static inline bool skim_check_is_twin(const char *a, const char *b, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        char x = a[i], y = b[i];
        if (x >= 'A' && x <= 'Z')
            x = (char)(x + 32);
        if (y >= 'A' && y <= 'Z')
            y = (char)(y + 32);
        if (x != y)
            return false;
    }
    return true;
}

// What a path means in yyjson's tree: the last of duplicates counts, flags come from all.
static inline void skim_check_find(yyjson_val *val, const char *path, struct skim_check_want *want)
{
    size_t len = strcspn(path, ".");
    const char *rest = path[len] ? path + len + 1 : NULL;
    size_t i, max;
    yyjson_val *key, *item;
    if (yyjson_is_arr(val)) {
        bool is_index =
            len > 0 && len < 9 && (path[0] != '0' || len == 1) && strspn(path, "0123456789") >= len;
        item = is_index ? yyjson_arr_get(val, (size_t)atoi(path)) : NULL;
        if (item && rest)
            skim_check_find(item, rest, want);
        else
            want->value = item;
        return;
    }
    bool is_found = false;
    want->value = NULL;
    if (!yyjson_is_obj(val))
        return;
    yyjson_obj_foreach(val, i, max, key, item)
    {
        if (yyjson_get_len(key) != len)
            continue;
        if (memcmp(yyjson_get_str(key), path, len) == 0) {
            want->is_duplicate |= is_found;
            is_found = true;
            if (rest)
                skim_check_find(item, rest, want);
            else
                want->value = item;
        } else if (skim_check_is_twin(yyjson_get_str(key), path, len)) {
            want->has_case_twin = true;
        }
    }
}

static inline enum skim_type skim_check_type(yyjson_val *val)
{
    if (!val)
        return SKIM_ABSENT;
    if (yyjson_is_null(val))
        return SKIM_NULL;
    if (yyjson_is_bool(val))
        return yyjson_is_true(val) ? SKIM_TRUE : SKIM_FALSE;
    if (yyjson_is_raw(val))
        return SKIM_NUMBER;
    if (yyjson_is_str(val))
        return SKIM_STRING;
    return yyjson_is_arr(val) ? SKIM_ARRAY : SKIM_OBJECT;
}

// The name at key_start has to be the path's last component.
static inline bool skim_check_key(const char *text, const struct skim_span *span, const char *path)
{
    const char *dot = strrchr(path, '.');
    const char *last = dot ? dot + 1 : path;
    if (span->key_start == SKIM_NO_KEY)
        return last[0] >= '0' && last[0] <= '9';
    if (span->key_start >= span->start || text[span->key_start] != '"')
        return false;
    struct skim_span key = {SKIM_STRING, .start = span->key_start};
    for (key.end = key.start + 1; text[key.end] != '"'; key.end++)
        key.end += text[key.end] == '\\';
    key.end++;
    char name[128];
    size_t len;
    return key.end < span->start &&
           skim_string(slice_of(text, span->start), &key, name, sizeof(name), &len) == 0 &&
           len == strlen(last) && memcmp(name, last, len) == 0;
}

static inline const char *skim_check_values(const struct skim *skim, const char *text, size_t len,
                                            yyjson_doc *doc, bool is_lenient)
{
    yyjson_val *root = yyjson_doc_get_root(doc);
    if (skim->root_type != skim_check_type(root))
        return "type of the root";
    for (size_t i = 0; i < SKIM_CHECK_COUNT; i++) {
        const struct skim_span *span = &skim->spans[i];
        struct skim_check_want want = {0};
        skim_check_find(root, SKIM_CHECK_PATHS[i], &want);
        if (span->is_duplicate != want.is_duplicate)
            return "is_duplicate";
        if (span->has_case_twin != want.has_case_twin)
            return "has_case_twin";
        if (span->type != skim_check_type(want.value))
            return "type at a path";
        if (!want.value)
            continue;
        if (span->end > len || span->start >= span->end)
            return "span out of range";
        if (!skim_check_key(text, span, SKIM_CHECK_PATHS[i]))
            return "key_start";
        if (span->child_count != (yyjson_is_ctn(want.value) ? yyjson_get_len(want.value) : 0))
            return "child_count";
        size_t size = (size_t)(span->end - span->start);
        bool has_escapes =
            span->type == SKIM_STRING && memchr(text + span->start, '\\', size) != NULL;
        if (span->has_escapes != has_escapes)
            return "has_escapes";
        yyjson_doc *part = skim_check_read(text + span->start, size, is_lenient);
        bool is_equal = part && skim_check_equal(yyjson_doc_get_root(part), want.value);
        yyjson_doc_free(part);
        if (!is_equal)
            return "value at a path";
        if (span->type == SKIM_STRING) {
            char *out = malloc(size);
            size_t out_len;
            int err = skim_string(slice_of(text, len), span, out, size, &out_len);
            is_equal = !err && out_len == yyjson_get_len(want.value) &&
                       memcmp(out, yyjson_get_str(want.value), out_len) == 0;
            free(out);
            if (!is_equal)
                return "skim_string";
        }
    }
    return NULL;
}

static inline bool skim_check_same(const struct skim *a, const struct skim *b)
{
    if (a->err != b->err || a->err_offset != b->err_offset || a->err_text != b->err_text ||
        a->root_type != b->root_type || a->root_start != b->root_start ||
        a->root_end != b->root_end)
        return false;
    for (size_t i = 0; i < SKIM_CHECK_COUNT; i++) {
        const struct skim_span *x = &a->spans[i], *y = &b->spans[i];
        if (x->type != y->type || x->has_escapes != y->has_escapes ||
            x->is_duplicate != y->is_duplicate || x->has_case_twin != y->has_case_twin ||
            x->key_start != y->key_start || x->start != y->start || x->end != y->end ||
            x->child_count != y->child_count)
            return false;
    }
    return true;
}

// Feeds the text in pieces of `step` bytes, the first one of `first` bytes (0: of step). Each piece
// is copied, so that a sanitizer sees reads beyond it.
static inline const char *skim_check_split(const struct skim_spec *spec, const struct skim *whole,
                                           const char *text, size_t len, size_t first, size_t step)
{
    struct skim part;
    skim_init(&part, spec);
    size_t at = 0;
    int err = 0;
    while (at < len) {
        size_t piece = at == 0 && first ? first : step;
        if (piece > len - at)
            piece = len - at;
        char *copy = malloc(piece);
        memcpy(copy, text + at, piece);
        err = skim_feed(&part, slice_of(copy, piece));
        free(copy);
        at += piece;
        if (err)
            break;
    }
    if (!err)
        err = skim_finish(&part);
    return err == whole->err && skim_check_same(&part, whole) ? NULL : "a split changes the result";
}

static inline bool skim_check_is_deep(const char *text, size_t len)
{
    size_t depth = 0;
    for (size_t i = 0; i < len; i++)
        if ((text[i] == '{' || text[i] == '[') && ++depth > SKIM_MAX_DEPTH)
            return true;
    return false;
}

// All checks of one text in one mode. seed chooses the splits; all_splits tries each 2-way split.
static inline const char *skim_check(const char *text, size_t len, bool is_lenient, bool all_splits,
                                     size_t seed)
{
    static const struct skim_spec SPEC[2] = {
        {.paths = SKIM_CHECK_PATHS, .path_count = SKIM_CHECK_COUNT},
        {.paths = SKIM_CHECK_PATHS, .path_count = SKIM_CHECK_COUNT, .is_lenient = true},
    };
    struct skim whole;
    int err = skim_whole(&whole, &SPEC[is_lenient], slice_of(text, len));

    char *repaired = malloc(len + 1);
    memcpy(repaired, text, len);
    if (is_lenient)
        skim_check_repair(repaired, len);
    yyjson_doc *doc = skim_check_read(repaired, len, is_lenient);
    const char *wrong = NULL;
    if (err == GW_ETOOBIG)
        wrong = skim_check_is_deep(text, len) ? NULL : "too big without reason";
    else if ((err == 0) != (doc != NULL))
        wrong = err ? "refused, yyjson accepts" : "accepted, yyjson refuses";
    else if (!err && (whole.offset != len || whole.root_end > len))
        wrong = "offsets";
    else if (doc)
        wrong = skim_check_values(&whole, repaired, len, doc, is_lenient);
    yyjson_doc_free(doc);
    free(repaired);

    if (!wrong && len)
        wrong = skim_check_split(&SPEC[is_lenient], &whole, text, len, 0, 1);
    if (!wrong && len)
        wrong =
            skim_check_split(&SPEC[is_lenient], &whole, text, len, seed % len, 1 + seed / 7 % 40);
    for (size_t i = 1; all_splits && !wrong && i < len; i++)
        wrong = skim_check_split(&SPEC[is_lenient], &whole, text, len, i, len);
    return wrong;
}
