// The scanner is one state machine over bytes; each state can be left at the end of a feed and
// entered again at the next. String bodies, the bulk of any request, are skipped 16 bytes at a
// time. The declared paths are a small tree of names: each open container knows the node it stands
// for (or none), so that names are looked at only where a path can go on.
#include "codec/skim.h"
#include "codec/skim_machine.h"
#include "codec/skim_text.h"
#include <string.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

// ---- Names and paths ----

// Calls the statement with `span` at each span of a mask.
#define EACH_SPAN(skim, mask, span)                                                                \
    for (uint32_t bits_ = (mask); bits_; bits_ &= bits_ - 1)                                       \
        for (struct skim_span *span = &(skim)->spans[__builtin_ctz(bits_)]; span; span = NULL)

static bool is_twin(const char *a, const char *b, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        unsigned char x = (unsigned char)a[i], y = (unsigned char)b[i];
        if (x != y && ((x ^ y) != 0x20 || (x | 0x20) < 'a' || (x | 0x20) > 'z'))
            return false;
    }
    return true;
}

// Finds the node of a member name below the object's node, and notes duplicates and twins.
static void match_name(struct skim *skim, struct machine *m, const char *name, size_t len)
{
    uint8_t found = NODE_NONE;
    for (uint8_t id = m->nodes[m->nodes_at[m->depth - 1]].first_child; id; id = m->nodes[id].next) {
        const struct skim_node *node = &m->nodes[id];
        if (node->len != len || (len && ((name[0] ^ node->name[0]) & ~0x20)))
            continue;
        if (memcmp(node->name, name, len) == 0) {
            found = id;
            uint64_t bit = (uint64_t)1 << id % 64;
            if (m->seen[id / 64] & bit) {
                EACH_SPAN(skim, node->below, span)
                {
                    *span = (struct skim_span){.is_duplicate = true,
                                               .has_case_twin = span->has_case_twin};
                }
            }
            m->seen[id / 64] |= bit;
        } else if (is_twin(node->name, name, len)) {
            EACH_SPAN(skim, node->below, span)
            {
                span->has_case_twin = true;
            }
        }
    }
    m->node = found;
}

static uint8_t match_index(const struct machine *m, uint8_t parent, uint32_t index)
{
    for (uint8_t id = m->nodes[parent].first_child; id; id = m->nodes[id].next)
        if (m->nodes[id].index == index)
            return id;
    return NODE_NONE;
}

// ---- Values ----

static inline bool in_object(const struct machine *m)
{
    return m->depth && (m->objects >> (m->depth - 1) & 1);
}

static inline void begin_value(struct skim *skim, struct machine *m, enum skim_type type,
                               uint64_t at)
{
    if (m->depth == 0) {
        skim->root_type = type;
        skim->root_start = at;
        m->node = NODE_ROOT;
    } else if (!in_object(m)) {
        uint8_t parent = m->nodes_at[m->depth - 1];
        uint32_t index = m->counts[m->depth - 1]++;
        m->node = parent ? match_index(m, parent, index) : NODE_NONE;
        m->key_start = SKIM_NO_KEY;
    }
    m->value_paths = m->nodes[m->node].paths;
    EACH_SPAN(skim, m->value_paths, span)
    {
        span->type = type;
        span->has_escapes = false;
        span->key_start = m->key_start;
        span->start = span->end = at;
        span->child_count = 0;
    }
}

static inline void end_scalar(struct skim *skim, struct machine *m, uint64_t at)
{
    EACH_SPAN(skim, m->value_paths, span)
    {
        span->end = at;
    }
    if (m->depth == 0)
        skim->root_end = at;
}

static inline void mark_escapes(struct skim *skim, const struct machine *m)
{
    EACH_SPAN(skim, m->value_paths, span)
    {
        span->has_escapes = true;
    }
}

static inline void open_container(struct machine *m, bool is_object)
{
    uint64_t bit = (uint64_t)1 << m->depth;
    m->objects = is_object ? m->objects | bit : m->objects & ~bit;
    m->counts[m->depth] = 0;
    m->nodes_at[m->depth++] = m->node;
    if (is_object)
        for (uint8_t id = m->nodes[m->node].first_child; id; id = m->nodes[id].next)
            m->seen[id / 64] &= ~((uint64_t)1 << id % 64);
}

static inline void close_container(struct skim *skim, struct machine *m, uint64_t at)
{
    m->depth--;
    uint32_t count = m->counts[m->depth];
    EACH_SPAN(skim, m->nodes[m->nodes_at[m->depth]].paths, span)
    {
        span->end = at;
        span->child_count = count;
    }
    if (m->depth == 0)
        skim->root_end = at;
}

// ---- Strings ----

static void name_append(struct machine *m, const void *bytes, size_t len)
{
    if (len > sizeof(m->name) - m->name_len) {
        // Longer than any component: it matches none.
        m->is_name_cut = true;
        return;
    }
    memcpy(m->name + m->name_len, bytes, len);
    m->name_len = (uint8_t)(m->name_len + len);
}

static void name_append_code(struct machine *m, uint32_t code)
{
    char bytes[4];
    name_append(m, bytes, encode_utf8(code, bytes));
}

static inline bool is_stop(unsigned char c, bool is_lenient)
{
    return c == '"' || c == '\\' || (!is_lenient && (c < 0x20 || c >= 0x80));
}

// The first byte of a string body that needs a look: quote and backslash, and in strict mode
// control bytes and everything beyond ASCII.
static inline const unsigned char *skip_plain(const unsigned char *p, const unsigned char *end,
                                              bool is_lenient)
{
#ifdef __SSE2__
    const __m128i quote = _mm_set1_epi8('"'), slash = _mm_set1_epi8('\\');
    // As signed bytes both the control bytes and those beyond ASCII are below the space.
    const __m128i space = _mm_set1_epi8(is_lenient ? -128 : 0x20);
    while (end - p >= 16) {
        __m128i v = _mm_loadu_si128((const __m128i *)(const void *)p);
        __m128i hit = _mm_or_si128(_mm_or_si128(_mm_cmpeq_epi8(v, quote), _mm_cmpeq_epi8(v, slash)),
                                   _mm_cmplt_epi8(v, space));
        unsigned mask = (unsigned)_mm_movemask_epi8(hit);
        if (mask)
            return p + __builtin_ctz(mask);
        p += 16;
    }
#else
    const uint64_t ones = UINT64_C(0x0101010101010101), tops = ones << 7;
    while (end - p >= 8) {
        uint64_t v;
        memcpy(&v, p, 8);
        uint64_t q = v ^ ones * '"', s = v ^ ones * '\\';
        uint64_t hit = ((q - ones) & ~q) | ((s - ones) & ~s);
        if (!is_lenient)
            hit |= v | ((v - ones * 0x20) & ~v);
        if (hit & tops)
            break; // the loop below finds the place
        p += 8;
    }
#endif
    while (p < end && !is_stop(*p, is_lenient))
        p++;
    return p;
}

// Skips whole characters of several bytes; stops at ASCII, at a wrong one or near the end.
static inline const unsigned char *skip_wide(const unsigned char *p, const unsigned char *end)
{
    while (end - p >= 4) {
        unsigned c = p[0];
        if (c < 0x80)
            break;
        if ((c & 0xf0) == 0xe0) {
            if ((p[1] & 0xc0) != 0x80 || (p[2] & 0xc0) != 0x80 || (c == 0xe0 && p[1] < 0xa0) ||
                (c == 0xed && p[1] >= 0xa0))
                break;
            p += 3;
        } else if ((c & 0xe0) == 0xc0) {
            if (c < 0xc2 || (p[1] & 0xc0) != 0x80)
                break;
            p += 2;
        } else if (c >= 0xf0 && c <= 0xf4) {
            if ((p[1] & 0xc0) != 0x80 || (p[2] & 0xc0) != 0x80 || (p[3] & 0xc0) != 0x80 ||
                (c == 0xf0 && p[1] < 0x90) || (c == 0xf4 && p[1] >= 0x90))
                break;
            p += 4;
        } else {
            break;
        }
    }
    return p;
}

// Takes the first byte of a character of several bytes; false: none begins so.
static bool begin_utf8(struct machine *m, unsigned char c)
{
    m->utf8_min = c == 0xe0 ? 0xa0 : c == 0xf0 ? 0x90 : 0x80;
    m->utf8_max = c == 0xed ? 0x9f : c == 0xf4 ? 0x8f : 0xbf;
    if (c >= 0xc2 && c <= 0xdf)
        m->utf8_left = 1;
    else if (c >= 0xe0 && c <= 0xef)
        m->utf8_left = 2;
    else if (c >= 0xf0 && c <= 0xf4)
        m->utf8_left = 3;
    else
        return false;
    return true;
}

static inline void begin_name(struct machine *m, uint64_t at)
{
    m->members++;
    m->counts[m->depth - 1]++;
    m->key_start = at;
    m->is_name = true;
    m->wants_name = m->nodes[m->nodes_at[m->depth - 1]].first_child != NODE_NONE;
    m->has_escapes = m->is_name_cut = false;
    m->name_len = 0;
    m->node = NODE_NONE;
}

// The name is complete; [run, end) of it is not in m->name yet.
static inline void end_name(struct skim *skim, struct machine *m, const unsigned char *run,
                            const unsigned char *end)
{
    if (!m->has_escapes && m->name_len == 0 && !m->is_name_cut) {
        match_name(skim, m, (const char *)run, (size_t)(end - run));
    } else {
        name_append(m, run, (size_t)(end - run));
        if (!m->is_name_cut)
            match_name(skim, m, m->name, m->name_len);
    }
    m->wants_name = false;
}

// The high surrogate before this place stands alone (lenient mode).
static void drop_high(struct machine *m)
{
    m->high = 0;
    if (m->wants_name)
        name_append_code(m, 0xfffd);
}

// A \uXXXX is complete: gives the state to go on in, or -1 (a lone surrogate in strict mode).
static int take_unit(struct machine *m, uint32_t unit)
{
    if (m->high) {
        uint32_t high = m->high;
        m->high = 0;
        if (is_low(unit)) {
            if (m->wants_name)
                name_append_code(m, 0x10000 + ((high - 0xd800) << 10) + (unit - 0xdc00));
            return STATE_STRING;
        }
        if (!m->is_lenient)
            return -1;
        if (m->wants_name)
            name_append_code(m, 0xfffd);
    }
    if (is_high(unit)) {
        m->high = unit;
        return STATE_LOW;
    }
    if (is_low(unit)) {
        if (!m->is_lenient)
            return -1;
        unit = 0xfffd;
    }
    if (m->wants_name)
        name_append_code(m, unit);
    return STATE_STRING;
}

// ---- The scanner ----

static int fail(struct skim *skim, int err, uint64_t at, const char *text)
{
    skim->err = err;
    skim->err_offset = at;
    skim->err_text = text;
    return err;
}

static inline bool is_space(unsigned char c)
{
    return c == ' ' || c == '\n' || c == '\t' || c == '\r';
}

#define AT(ptr) (base + (uint64_t)((ptr)-from))
#define FAIL(text) return fail(skim, GW_EINVAL, AT(p), (text))
// Leaves the scanner when the input is used up; the next feed goes on in the state given.
#define NEED(state_)                                                                               \
    do {                                                                                           \
        if (p == end) {                                                                            \
            m->state = (state_);                                                                   \
            return 0;                                                                              \
        }                                                                                          \
    } while (0)
#define NEED_TOKEN(state_)                                                                         \
    do {                                                                                           \
        while (p < end && is_space(*p))                                                            \
            p++;                                                                                   \
        NEED(state_);                                                                              \
    } while (0)
#define NEED_NO_DIGIT(state_)                                                                      \
    do {                                                                                           \
        while (p < end && is_digit(*p))                                                            \
            p++;                                                                                   \
        NEED(state_);                                                                              \
    } while (0)

// Runs over [from, end). Each label is a state; `m->state` is written only when the input ends.
static int scan(struct skim *skim, struct machine *m, const unsigned char *from,
                const unsigned char *end)
{
    const uint64_t base = skim->offset;
    const unsigned char *p = from;
    const unsigned char *run = from; // raw bytes of the name not yet copied to m->name
    const bool is_lenient = m->is_lenient;

    switch ((enum state)m->state) {
    case STATE_VALUE: goto value;
    case STATE_ARRAY_FIRST: goto array_first;
    case STATE_OBJECT_FIRST: goto object_first;
    case STATE_NAME: goto name;
    case STATE_COLON: goto colon;
    case STATE_AFTER: goto after;
    case STATE_STRING: goto string;
    case STATE_UTF8: goto utf8;
    case STATE_ESCAPE: goto escape;
    case STATE_HEX: goto hex;
    case STATE_LOW: goto low;
    case STATE_LOW_U: goto low_u;
    case STATE_LITERAL: goto literal;
    case STATE_MINUS: goto minus;
    case STATE_ZERO: goto zero;
    case STATE_INTEGER: goto integer;
    case STATE_POINT: goto point;
    case STATE_FRACTION: goto fraction;
    case STATE_E: goto e;
    case STATE_E_SIGN: goto e_sign;
    case STATE_EXPONENT: goto exponent;
    }

array_first:
    NEED_TOKEN(STATE_ARRAY_FIRST);
    if (*p == ']')
        goto close;
value:
    NEED_TOKEN(STATE_VALUE);
    switch (*p) {
    case '"':
        begin_value(skim, m, SKIM_STRING, AT(p));
        m->is_name = m->wants_name = m->has_escapes = false;
        p++;
        goto string;
    case '{':
        if (m->depth >= m->max_depth)
            goto too_deep;
        begin_value(skim, m, SKIM_OBJECT, AT(p));
        open_container(m, true);
        p++;
        goto object_first;
    case '[':
        if (m->depth >= m->max_depth)
            goto too_deep;
        begin_value(skim, m, SKIM_ARRAY, AT(p));
        open_container(m, false);
        p++;
        goto array_first;
    case 't':
        begin_value(skim, m, SKIM_TRUE, AT(p));
        m->literal = "true";
        goto literal;
    case 'f':
        begin_value(skim, m, SKIM_FALSE, AT(p));
        m->literal = "false";
        goto literal;
    case 'n':
        begin_value(skim, m, SKIM_NULL, AT(p));
        m->literal = "null";
        goto literal;
    case '-':
        begin_value(skim, m, SKIM_NUMBER, AT(p));
        p++;
        goto minus;
    default:
        if (!is_digit(*p))
            FAIL("a value is expected");
        begin_value(skim, m, SKIM_NUMBER, AT(p));
        if (*p++ == '0')
            goto zero;
        goto integer;
    }

object_first:
    NEED_TOKEN(STATE_OBJECT_FIRST);
    if (*p == '}')
        goto close;
name:
    NEED_TOKEN(STATE_NAME);
    if (*p != '"')
        FAIL("a member name in quotes is expected");
    if (m->members >= m->max_members)
        return fail(skim, GW_ETOOBIG, AT(p), "too many members");
    begin_name(m, AT(p));
    run = ++p;
    goto string;

colon:
    NEED_TOKEN(STATE_COLON);
    if (*p != ':')
        FAIL("a colon is expected");
    p++;
    goto value;

after:
    NEED_TOKEN(STATE_AFTER);
    if (m->depth == 0)
        FAIL("unexpected content after the value");
    if (*p == ',') {
        p++;
        if (in_object(m))
            goto name;
        goto value;
    }
    if (*p != (in_object(m) ? '}' : ']'))
        FAIL(in_object(m) ? "a comma or } is expected" : "a comma or ] is expected");
close:
    close_container(skim, m, AT(++p));
    goto after;

too_deep:
    return fail(skim, GW_ETOOBIG, AT(p), "nested too deeply");

string:
    p = skip_plain(p, end, is_lenient);
    if (p < end && *p >= 0x80) {
        // Only in strict mode: whole characters at once, one that may be cut byte by byte.
        p = skip_wide(p, end);
        if (p == end || *p < 0x80)
            goto string;
        if (!begin_utf8(m, *p))
            FAIL("invalid UTF-8");
        p++;
        goto utf8;
    }
    if (p == end) {
        if (m->wants_name)
            name_append(m, run, (size_t)(end - run));
        NEED(STATE_STRING);
    }
    if (*p == '"') {
        p++;
        if (m->is_name) {
            if (m->wants_name)
                end_name(skim, m, run, p - 1);
            goto colon;
        }
        if (m->has_escapes)
            mark_escapes(skim, m);
        end_scalar(skim, m, AT(p));
        goto after;
    }
    if (*p != '\\')
        FAIL("a control character in a string");
    if (m->wants_name)
        name_append(m, run, (size_t)(p - run));
    m->has_escapes = true;
    p++;
    goto escape;

utf8:
    while (m->utf8_left) {
        if (p == end) {
            if (m->wants_name)
                name_append(m, run, (size_t)(end - run));
            NEED(STATE_UTF8);
        }
        if (*p < m->utf8_min || *p > m->utf8_max)
            FAIL("invalid UTF-8");
        m->utf8_min = 0x80;
        m->utf8_max = 0xbf;
        m->utf8_left--;
        p++;
    }
    goto string;

escape:
    NEED(STATE_ESCAPE);
    if (*p != 'u') {
        char c = escape_of(*p);
        if (!c)
            FAIL("an invalid escape");
        if (m->wants_name)
            name_append(m, &c, 1);
        run = ++p;
        goto string;
    }
    p++;
    m->hex = 0;
    m->hex_left = 4;
hex:
    for (; m->hex_left; p++, m->hex_left--) {
        NEED(STATE_HEX);
        int digit = hex_of(*p);
        if (digit < 0)
            FAIL("an invalid escape");
        m->hex = m->hex << 4 | (uint32_t)digit;
    }
    run = p;
    switch (take_unit(m, m->hex)) {
    case STATE_STRING: goto string;
    case STATE_LOW: goto low;
    default: goto lone;
    }

low:
    NEED(STATE_LOW);
    if (*p == '\\') {
        p++;
        goto low_u;
    }
    if (!is_lenient)
        goto lone;
    drop_high(m);
    run = p;
    goto string;

low_u:
    NEED(STATE_LOW_U);
    if (*p == 'u')
        goto escape;
    if (!is_lenient)
        goto lone;
    drop_high(m);
    goto escape;

lone:
    FAIL("a lone surrogate in a string");

literal:
    for (; *m->literal; m->literal++, p++) {
        NEED(STATE_LITERAL);
        if (*p != (unsigned char)*m->literal)
            FAIL("a value is expected");
    }
    end_scalar(skim, m, AT(p));
    goto after;

minus:
    NEED(STATE_MINUS);
    if (!is_digit(*p))
        FAIL("a digit is expected");
    if (*p++ != '0')
        goto integer;
zero:
    NEED(STATE_ZERO);
    if (is_digit(*p))
        FAIL("a number with a leading zero");
integer:
    NEED_NO_DIGIT(STATE_INTEGER);
    if (*p != '.')
        goto may_e;
    p++;
point:
    NEED(STATE_POINT);
    if (!is_digit(*p))
        FAIL("a digit is expected");
fraction:
    NEED_NO_DIGIT(STATE_FRACTION);
may_e:
    if ((*p | 0x20) != 'e')
        goto number_end;
    p++;
e:
    NEED(STATE_E);
    if (*p == '+' || *p == '-')
        p++;
e_sign:
    NEED(STATE_E_SIGN);
    if (!is_digit(*p))
        FAIL("a digit is expected");
exponent:
    NEED_NO_DIGIT(STATE_EXPONENT);
number_end:
    end_scalar(skim, m, AT(p));
    goto after;
}

int skim_feed(struct skim *skim, struct slice bytes)
{
    if (skim->err)
        return skim->err;
    if (bytes.len == 0)
        return 0;
    const unsigned char *from = (const unsigned char *)bytes.ptr;
    int err = scan(skim, machine_of(skim), from, from + bytes.len);
    skim->offset += bytes.len;
    return err;
}

int skim_finish(struct skim *skim)
{
    struct machine *m = machine_of(skim);
    if (skim->err)
        return skim->err;
    // Only its end tells that a number is complete.
    if (m->state == STATE_ZERO || m->state == STATE_INTEGER || m->state == STATE_FRACTION ||
        m->state == STATE_EXPONENT) {
        end_scalar(skim, m, skim->offset);
        m->state = STATE_AFTER;
    }
    if (m->state != STATE_AFTER || m->depth != 0)
        return fail(skim, GW_EINVAL, skim->offset,
                    skim->root_type == SKIM_ABSENT ? "the text is empty"
                                                   : "the text ends too early");
    return 0;
}

int skim_whole(struct skim *skim, const struct skim_spec *spec, struct slice text)
{
    skim_init(skim, spec);
    int err = skim_feed(skim, text);
    return err ? err : skim_finish(skim);
}
