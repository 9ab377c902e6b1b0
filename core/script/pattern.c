#include "script/pattern.h"
#include <ctype.h>
#include <string.h>

#define OPEN (-1)     // len of a capture that is not closed yet
#define MAX_DEPTH 200 // of recursion

void pattern_init(struct pattern *state, struct slice subject, struct slice pattern, uint64_t steps)
{
    state->subject = subject.ptr;
    state->subject_end = subject.ptr + subject.len;
    state->pattern_end = pattern.ptr + pattern.len;
    state->steps = steps;
    state->error = NULL;
    state->level = state->depth = 0;
}

static const char *fail(struct pattern *state, const char *text)
{
    if (!state->error)
        state->error = text;
    return NULL;
}

// Takes one step; false when none is left.
static bool step(struct pattern *state)
{
    if (state->steps == 0) {
        fail(state, "pattern too complex");
        return false;
    }
    state->steps--;
    return true;
}

// The same for work that grows with a length.
static bool step_by(struct pattern *state, ptrdiff_t len)
{
    uint64_t cost = (uint64_t)len / 8u;
    state->steps -= cost < state->steps ? cost : state->steps;
    return step(state);
}

// End of the single-character class that starts at p.
static const char *class_end(struct pattern *state, const char *p)
{
    char first = *p++;
    if (first == '%') {
        if (p == state->pattern_end)
            return fail(state, "malformed pattern (ends with '%')");
        return p + 1;
    }
    if (first != '[')
        return p;
    if (p < state->pattern_end && *p == '^')
        p++;
    do { // a ']' right behind the bracket stands for itself
        if (p == state->pattern_end)
            return fail(state, "malformed pattern (missing ']')");
        char byte = *p++;
        if (byte == '%') {
            if (p == state->pattern_end)
                return fail(state, "malformed pattern (missing ']')");
            p++;
        }
    } while (p == state->pattern_end || *p != ']');
    return p + 1;
}

static bool in_class(unsigned char byte, unsigned char class)
{
    bool is_in;
    switch (tolower(class)) {
    case 'a': is_in = isalpha(byte); break;
    case 'c': is_in = iscntrl(byte); break;
    case 'd': is_in = isdigit(byte); break;
    case 'g': is_in = isgraph(byte); break;
    case 'l': is_in = islower(byte); break;
    case 'p': is_in = ispunct(byte); break;
    case 's': is_in = isspace(byte); break;
    case 'u': is_in = isupper(byte); break;
    case 'w': is_in = isalnum(byte); break;
    case 'x': is_in = isxdigit(byte); break;
    case 'z': is_in = byte == 0; break;
    default: return class == byte;
    }
    return isupper(class) ? !is_in : is_in;
}

// set: "[…]", last points at its closing bracket.
static bool in_set(unsigned char byte, const char *set, const char *last)
{
    bool wanted = true;
    set++;
    if (*set == '^') {
        wanted = false;
        set++;
    }
    while (set < last) {
        if (*set == '%') {
            if (in_class(byte, (unsigned char)set[1]))
                return wanted;
            set += 2;
        } else if (set + 2 < last && set[1] == '-') {
            if ((unsigned char)set[0] <= byte && byte <= (unsigned char)set[2])
                return wanted;
            set += 3;
        } else {
            if ((unsigned char)*set == byte)
                return wanted;
            set++;
        }
    }
    return !wanted;
}

static bool matches_one(struct pattern *state, const char *s, const char *p, const char *end)
{
    if (s >= state->subject_end)
        return false;
    unsigned char byte = (unsigned char)*s;
    switch (*p) {
    case '.': return true;
    case '%': return in_class(byte, (unsigned char)p[1]);
    case '[': return step_by(state, end - p) && in_set(byte, p, end - 1);
    default: return (unsigned char)*p == byte;
    }
}

static const char *match_balance(struct pattern *state, const char *s, const char *p)
{
    if (state->pattern_end - p < 2)
        return fail(state, "unbalanced pattern");
    if (s >= state->subject_end || *s != p[0])
        return NULL;
    size_t open = 1;
    for (const char *at = s + 1; at < state->subject_end; at++) {
        if (!step(state))
            return NULL;
        if (*at == p[1]) {
            if (--open == 0)
                return at + 1;
        } else if (*at == p[0]) {
            open++;
        }
    }
    return NULL;
}

static const char *match_greedy(struct pattern *state, const char *s, const char *p,
                                const char *end)
{
    ptrdiff_t count = 0;
    while (matches_one(state, s + count, p, end)) {
        if (!step(state))
            return NULL;
        count++;
    }
    for (; count >= 0; count--) {
        const char *rest = pattern_match(state, s + count, end + 1);
        if (rest || state->error)
            return rest;
    }
    return NULL;
}

static const char *match_lazy(struct pattern *state, const char *s, const char *p, const char *end)
{
    for (;; s++) {
        const char *rest = pattern_match(state, s, end + 1);
        if (rest || state->error)
            return rest;
        if (!step(state) || !matches_one(state, s, p, end))
            return NULL;
    }
}

static const char *open_capture(struct pattern *state, const char *s, const char *p, ptrdiff_t len)
{
    if (state->level >= PATTERN_MAX_CAPTURES)
        return fail(state, "too many captures");
    state->captures[state->level].start = s;
    state->captures[state->level].len = len;
    state->level++;
    const char *rest = pattern_match(state, s, p);
    if (!rest)
        state->level--;
    return rest;
}

static const char *close_capture(struct pattern *state, const char *s, const char *p)
{
    int index = state->level - 1;
    while (index >= 0 && state->captures[index].len != OPEN)
        index--;
    if (index < 0)
        return fail(state, "invalid pattern capture");
    state->captures[index].len = s - state->captures[index].start;
    const char *rest = pattern_match(state, s, p);
    if (!rest)
        state->captures[index].len = OPEN;
    return rest;
}

static const char *match_back(struct pattern *state, const char *s, char digit)
{
    int index = digit - '1';
    if (index < 0 || index >= state->level || state->captures[index].len == OPEN)
        return fail(state, "invalid capture index");
    ptrdiff_t len = state->captures[index].len;
    if (len == PATTERN_POSITION)
        len = 0;
    if (state->subject_end - s < len)
        return NULL;
    state->steps -= (uint64_t)len / 16u < state->steps ? (uint64_t)len / 16u : state->steps;
    return memcmp(state->captures[index].start, s, (size_t)len) == 0 ? s + len : NULL;
}

static const char *match_here(struct pattern *state, const char *s, const char *p)
{
    for (;;) {
        if (!step(state))
            return NULL;
        if (p == state->pattern_end)
            return s;
        if (*p == '(') {
            if (p + 1 < state->pattern_end && p[1] == ')')
                return open_capture(state, s, p + 2, PATTERN_POSITION);
            return open_capture(state, s, p + 1, OPEN);
        }
        if (*p == ')')
            return close_capture(state, s, p + 1);
        if (*p == '$' && p + 1 == state->pattern_end)
            return s == state->subject_end ? s : NULL;
        if (*p == '%' && p + 1 < state->pattern_end) {
            if (p[1] == 'b') {
                s = match_balance(state, s, p + 2);
                if (!s)
                    return NULL;
                p += 4;
                continue;
            }
            if (p[1] == 'f') {
                const char *set = p + 2;
                if (set == state->pattern_end || *set != '[')
                    return fail(state, "missing '[' after '%f' in pattern");
                const char *end = class_end(state, set);
                if (!end || !step_by(state, 3 * (end - set)))
                    return NULL;
                unsigned char before = s == state->subject ? 0 : (unsigned char)s[-1];
                unsigned char now = s == state->subject_end ? 0 : (unsigned char)*s;
                if (in_set(before, set, end - 1) || !in_set(now, set, end - 1))
                    return NULL;
                p = end;
                continue;
            }
            if (isdigit((unsigned char)p[1])) {
                s = match_back(state, s, p[1]);
                if (!s)
                    return NULL;
                p += 2;
                continue;
            }
        }
        const char *end = class_end(state, p);
        if (!end || (end - p > 8 && !step_by(state, end - p)))
            return NULL;
        char suffix = end < state->pattern_end ? *end : '\0';
        if (suffix == '?') {
            if (matches_one(state, s, p, end)) {
                const char *rest = pattern_match(state, s + 1, end + 1);
                if (rest || state->error)
                    return rest;
            }
            p = end + 1;
        } else if (suffix == '*') {
            return match_greedy(state, s, p, end);
        } else if (suffix == '+') {
            return matches_one(state, s, p, end) ? match_greedy(state, s + 1, p, end) : NULL;
        } else if (suffix == '-') {
            return match_lazy(state, s, p, end);
        } else {
            if (!matches_one(state, s, p, end))
                return NULL;
            s++;
            p = end;
        }
    }
}

const char *pattern_match(struct pattern *state, const char *at, const char *pattern)
{
    if (++state->depth > MAX_DEPTH) {
        state->depth--;
        return fail(state, "pattern too complex");
    }
    const char *end = match_here(state, at, pattern);
    state->depth--;
    return end;
}
