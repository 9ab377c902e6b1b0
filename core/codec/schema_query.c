// Query strings: split, decoded, checked as pairs.
#include "codec/schema.h"
#include "codec/schema_text.h"

#define MAX_PAIRS 256

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

// Decodes %XX and '+'; a '%' without two digits stays as it is.
static struct slice decode_pair(struct slice text, struct arena *arena)
{
    char *out = arena_alloc(arena, text.len + 1);
    size_t len = 0;
    if (!out)
        return SLICE_NONE;
    for (size_t i = 0; i < text.len; i++) {
        char c = text.ptr[i];
        if (c == '+') {
            c = ' ';
        } else if (c == '%' && i + 2 < text.len && hex_digit(text.ptr[i + 1]) >= 0 &&
                   hex_digit(text.ptr[i + 2]) >= 0) {
            c = (char)(hex_digit(text.ptr[i + 1]) * 16 + hex_digit(text.ptr[i + 2]));
            i += 2;
        }
        out[len++] = c;
    }
    return slice_of(out, len);
}

int schema_check_query(const struct schema *record, struct slice query, const char *prefix,
                       struct arena *arena, struct schema_result *result)
{
    struct schema_pair *pairs = arena_alloc(arena, MAX_PAIRS * sizeof *pairs);
    size_t count = 0;
    *result = (struct schema_result){.problem_count = 0};
    if (!pairs)
        return GW_ENOMEM;
    while (query.len) {
        const char *end = memchr(query.ptr, '&', query.len);
        struct slice part = end ? slice_of(query.ptr, (size_t)(end - query.ptr)) : query;
        query = slice_from(query, part.len + 1);
        if (part.len == 0)
            continue;
        if (count == MAX_PAIRS) {
            result->problems = arena_alloc(arena, sizeof *result->problems);
            if (!result->problems)
                return GW_ENOMEM;
            result->problems[0] = (struct schema_problem){slice_str(prefix), "length",
                                                          SLICE_LIT("has too many parameters")};
            result->problem_count = 1;
            return GW_EINVAL;
        }
        const char *equals = memchr(part.ptr, '=', part.len);
        size_t name_len = equals ? (size_t)(equals - part.ptr) : part.len;
        pairs[count].name = decode_pair(slice_of(part.ptr, name_len), arena);
        pairs[count].text = decode_pair(slice_from(part, name_len + 1), arena);
        if (!pairs[count].name.ptr || !pairs[count].text.ptr)
            return GW_ENOMEM;
        if (!schema_is_utf8(pairs[count].name))
            pairs[count].name = SLICE_LIT("?");
        count++;
    }
    return schema_check_pairs(record, pairs, count, prefix, arena, result);
}
