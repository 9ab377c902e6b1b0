// The scanner is one state machine over bytes; each state can be left at the end of a feed and
// entered again at the next. String bodies, the bulk of any request, are skipped 16 bytes at a
// time. The declared paths are a small tree of names: each open container knows the node it stands
// for (or none), so that names are looked at only where a path can go on.
#include "codec/skim.h"
#include <assert.h>
#include <string.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

enum state {
    STATE_VALUE,        // a value must come
    STATE_ARRAY_FIRST,  // a value or ]
    STATE_OBJECT_FIRST, // a name or }
    STATE_NAME,         // a name must come
    STATE_COLON,
    STATE_AFTER, // a value has ended
    STATE_STRING,
    STATE_UTF8,     // inside a character of several bytes
    STATE_ESCAPE,   // after a backslash
    STATE_HEX,      // inside \uXXXX
    STATE_LOW,      // after a high surrogate
    STATE_LOW_U,    // after a high surrogate and a backslash
    STATE_LITERAL,  // inside true, false, null
    STATE_MINUS,    // after -
    STATE_ZERO,     // after a leading 0
    STATE_INTEGER,  // in 1…
    STATE_POINT,    // after .
    STATE_FRACTION, // in the digits after it
    STATE_E,        // after e
    STATE_E_SIGN,   // after its sign
    STATE_EXPONENT, // in its digits
};

#define NODE_NONE 0
#define NODE_ROOT 1
#define INDEX_NONE UINT32_MAX

struct node {
    const char *name;
    uint32_t index; // as an array index
    uint32_t paths; // bit per declared path that ends here
    uint32_t below; // bit per declared path that ends here or further down
    uint8_t len;
    uint8_t first_child, next;
    bool is_seen; // in the object now open
};

struct machine {
    uint64_t objects; // bit per depth: an object, not an array
    uint64_t key_start;
    const char *literal;  // what must still come of it
    uint32_t value_paths; // of the scalar being read
    uint32_t members, max_members;
    uint32_t hex, high;
    uint8_t state, depth, max_depth, hex_left;
    uint8_t node; // of the value being read or due
    uint8_t utf8_left, utf8_min, utf8_max;
    uint8_t node_count;
    bool is_lenient, is_name, wants_name, has_escapes, is_name_cut;
    uint8_t name_len;
    char name[SKIM_MAX_NAME];
    uint8_t nodes_at[SKIM_MAX_DEPTH];
    uint32_t counts[SKIM_MAX_DEPTH];
    struct node nodes[SKIM_MAX_NODES];
};
static_assert(sizeof(struct machine) <= sizeof((struct skim){0}.opaque), "opaque is too small");
static_assert(SKIM_MAX_DEPTH <= 64, "objects has a bit per depth");
static_assert(SKIM_MAX_NODES < 256 && SKIM_MAX_PATHS <= 32, "nodes are bytes, paths are bits");

static inline struct machine *machine_of(struct skim *skim)
{
    return (struct machine *)(void *)skim->opaque;
}

// ---- The tree of paths ----

static uint32_t parse_index(const char *name, size_t len)
{
    if (len == 0 || len > 9 || (len > 1 && name[0] == '0'))
        return INDEX_NONE;
    uint32_t index = 0;
    for (size_t i = 0; i < len; i++) {
        if (name[i] < '0' || name[i] > '9')
            return INDEX_NONE;
        index = index * 10 + (uint32_t)(name[i] - '0');
    }
    return index;
}

static uint8_t node_child(struct machine *m, uint8_t parent, const char *name, size_t len)
{
    uint8_t *link = &m->nodes[parent].first_child;
    for (; *link != NODE_NONE; link = &m->nodes[*link].next)
        if (m->nodes[*link].len == len && memcmp(m->nodes[*link].name, name, len) == 0)
            return *link;
    gw_require(m->node_count < SKIM_MAX_NODES && len <= SKIM_MAX_NAME);
    uint8_t id = m->node_count++;
    *link = id;
    m->nodes[id] =
        (struct node){.name = name, .len = (uint8_t)len, .index = parse_index(name, len)};
    return id;
}

static void add_path(struct machine *m, const char *path, size_t at)
{
    uint32_t bit = (uint32_t)1 << at;
    uint8_t node = NODE_ROOT;
    for (;;) {
        const char *dot = strchr(path, '.');
        size_t len = dot ? (size_t)(dot - path) : strlen(path);
        node = node_child(m, node, path, len);
        m->nodes[node].below |= bit;
        if (!dot)
            break;
        path = dot + 1;
    }
    m->nodes[node].paths |= bit;
}

void skim_reset(struct skim *skim)
{
    struct machine *m = machine_of(skim);
    memset(skim->spans, 0, sizeof(skim->spans[0]) * skim->spec.path_count);
    skim->root_type = SKIM_ABSENT;
    skim->root_start = skim->root_end = skim->offset = skim->err_offset = 0;
    skim->err = 0;
    skim->err_text = NULL;
    // Everything else is set before it is read.
    m->state = STATE_VALUE;
    m->depth = 0;
    m->members = 0;
    m->value_paths = 0;
    m->high = 0;
    m->wants_name = false;
}

void skim_init(struct skim *skim, const struct skim_spec *spec)
{
    gw_require(spec->path_count <= SKIM_MAX_PATHS);
    struct machine *m = machine_of(skim);
    skim->spec = *spec;
    memset(m, 0, offsetof(struct machine, name));
    m->is_lenient = spec->is_lenient;
    m->max_depth = spec->max_depth && spec->max_depth < SKIM_MAX_DEPTH ? (uint8_t)spec->max_depth
                                                                       : SKIM_MAX_DEPTH;
    m->max_members = spec->max_members ? spec->max_members : 100000;
    m->nodes[NODE_NONE] = m->nodes[NODE_ROOT] = (struct node){.index = INDEX_NONE};
    m->node_count = NODE_ROOT + 1;
    for (size_t i = 0; i < spec->path_count; i++)
        add_path(m, spec->paths[i], i);
    skim_reset(skim);
}

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
        struct node *node = &m->nodes[id];
        if (node->len != len || (len && ((name[0] ^ node->name[0]) & ~0x20)))
            continue;
        if (memcmp(node->name, name, len) == 0) {
            found = id;
            if (node->is_seen) {
                EACH_SPAN(skim, node->below, span)
                {
                    *span = (struct skim_span){.is_duplicate = true,
                                               .has_case_twin = span->has_case_twin};
                }
            }
            node->is_seen = true;
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
    m->state = STATE_AFTER;
}

static inline void open_container(struct machine *m, bool is_object)
{
    uint64_t bit = (uint64_t)1 << m->depth;
    m->objects = is_object ? m->objects | bit : m->objects & ~bit;
    m->counts[m->depth] = 0;
    m->nodes_at[m->depth++] = m->node;
    if (is_object)
        for (uint8_t id = m->nodes[m->node].first_child; id; id = m->nodes[id].next)
            m->nodes[id].is_seen = false;
    m->state = is_object ? STATE_OBJECT_FIRST : STATE_ARRAY_FIRST;
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
    m->state = STATE_AFTER;
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

static size_t encode_utf8(uint32_t code, char out[4])
{
    if (code < 0x80) {
        out[0] = (char)code;
        return 1;
    }
    if (code < 0x800) {
        out[0] = (char)(0xc0 | code >> 6);
        out[1] = (char)(0x80 | (code & 0x3f));
        return 2;
    }
    if (code < 0x10000) {
        out[0] = (char)(0xe0 | code >> 12);
        out[1] = (char)(0x80 | (code >> 6 & 0x3f));
        out[2] = (char)(0x80 | (code & 0x3f));
        return 3;
    }
    out[0] = (char)(0xf0 | code >> 18);
    out[1] = (char)(0x80 | (code >> 12 & 0x3f));
    out[2] = (char)(0x80 | (code >> 6 & 0x3f));
    out[3] = (char)(0x80 | (code & 0x3f));
    return 4;
}

static void name_append_code(struct machine *m, uint32_t code)
{
    char bytes[4];
    name_append(m, bytes, encode_utf8(code, bytes));
}

// What an escape's letter stands for; 0: no such escape. 'u' is its own case.
static char escape_of(unsigned char c)
{
    switch (c) {
    case '"': return '"';
    case '\\': return '\\';
    case '/': return '/';
    case 'b': return '\b';
    case 'f': return '\f';
    case 'n': return '\n';
    case 'r': return '\r';
    case 't': return '\t';
    default: return 0;
    }
}

static int hex_of(unsigned char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c |= 0x20;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

static inline bool is_high(uint32_t unit)
{
    return (unit & 0xfffffc00u) == 0xd800;
}

static inline bool is_low(uint32_t unit)
{
    return (unit & 0xfffffc00u) == 0xdc00;
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

static inline bool is_digit(unsigned char c)
{
    return (unsigned char)(c - '0') <= 9;
}

#define AT(ptr) (base + (uint64_t)((ptr)-from))
#define FAIL(text) return fail(skim, GW_EINVAL, AT(p), (text))
#define SKIP_SPACE()                                                                               \
    do {                                                                                           \
        while (p < end && is_space(*p))                                                            \
            p++;                                                                                   \
        if (p == end)                                                                              \
            goto out;                                                                              \
    } while (0)
#define SKIP_DIGITS()                                                                              \
    do {                                                                                           \
        while (p < end && is_digit(*p))                                                            \
            p++;                                                                                   \
        if (p == end)                                                                              \
            goto out;                                                                              \
    } while (0)

static int scan(struct skim *skim, struct machine *m, const unsigned char *from,
                const unsigned char *end)
{
    const uint64_t base = skim->offset;
    const unsigned char *p = from;
    const unsigned char *run = from; // raw bytes of the string body not yet copied to m->name
    const bool is_lenient = m->is_lenient;

    while (p < end) {
        switch ((enum state)m->state) {
        case STATE_ARRAY_FIRST:
            SKIP_SPACE();
            if (*p == ']') {
                close_container(skim, m, AT(++p));
                break;
            }
            m->state = STATE_VALUE;
            goto value;

        case STATE_VALUE:
        value:
            SKIP_SPACE();
            switch (*p) {
            case '"':
                begin_value(skim, m, SKIM_STRING, AT(p));
                m->is_name = m->wants_name = m->has_escapes = false;
                run = ++p;
                m->state = STATE_STRING;
                break;
            case '{':
            case '[':
                if (m->depth >= m->max_depth)
                    return fail(skim, GW_ETOOBIG, AT(p), "nested too deeply");
                begin_value(skim, m, *p == '{' ? SKIM_OBJECT : SKIM_ARRAY, AT(p));
                open_container(m, *p++ == '{');
                break;
            case 't':
                begin_value(skim, m, SKIM_TRUE, AT(p));
                m->literal = "rue";
                p++;
                m->state = STATE_LITERAL;
                break;
            case 'f':
                begin_value(skim, m, SKIM_FALSE, AT(p));
                m->literal = "alse";
                p++;
                m->state = STATE_LITERAL;
                break;
            case 'n':
                begin_value(skim, m, SKIM_NULL, AT(p));
                m->literal = "ull";
                p++;
                m->state = STATE_LITERAL;
                break;
            case '-':
                begin_value(skim, m, SKIM_NUMBER, AT(p++));
                m->state = STATE_MINUS;
                break;
            default:
                if (!is_digit(*p))
                    FAIL("a value is expected");
                begin_value(skim, m, SKIM_NUMBER, AT(p));
                m->state = *p++ == '0' ? STATE_ZERO : STATE_INTEGER;
            }
            break;

        case STATE_OBJECT_FIRST:
            SKIP_SPACE();
            if (*p == '}') {
                close_container(skim, m, AT(++p));
                break;
            }
            m->state = STATE_NAME;
            goto name;

        case STATE_NAME:
        name:
            SKIP_SPACE();
            if (*p != '"')
                FAIL("a member name in quotes is expected");
            if (m->members >= m->max_members)
                return fail(skim, GW_ETOOBIG, AT(p), "too many members");
            m->members++;
            m->counts[m->depth - 1]++;
            m->key_start = AT(p);
            m->is_name = true;
            m->wants_name = m->nodes[m->nodes_at[m->depth - 1]].first_child != NODE_NONE;
            m->has_escapes = m->is_name_cut = false;
            m->name_len = 0;
            m->node = NODE_NONE;
            run = ++p;
            m->state = STATE_STRING;
            break;

        case STATE_COLON:
            SKIP_SPACE();
            if (*p != ':')
                FAIL("a colon is expected");
            p++;
            m->state = STATE_VALUE;
            if (p < end)
                goto value;
            break;

        case STATE_AFTER:
        after:
            SKIP_SPACE();
            if (m->depth == 0)
                FAIL("unexpected content after the value");
            if (*p == ',') {
                p++;
                if (in_object(m)) {
                    m->state = STATE_NAME;
                    if (p < end)
                        goto name;
                } else {
                    m->state = STATE_VALUE;
                    if (p < end)
                        goto value;
                }
                break;
            }
            if (*p != (in_object(m) ? '}' : ']'))
                FAIL(in_object(m) ? "a comma or } is expected" : "a comma or ] is expected");
            close_container(skim, m, AT(++p));
            break;

        case STATE_STRING:
        string:
            p = skip_plain(p, end, is_lenient);
            while (p < end && *p >= 0x80) {
                // Only in strict mode. First whole characters, then what may be cut.
                p = skip_wide(p, end);
                if (p == end || *p < 0x80)
                    break;
                if (!begin_utf8(m, *p))
                    FAIL("invalid UTF-8");
                p++;
                m->state = STATE_UTF8;
                goto utf8;
            }
            if (p == end)
                goto out;
            if (!is_stop(*p, is_lenient))
                goto string;
            if (*p == '"') {
                if (!m->is_name) {
                    if (m->has_escapes)
                        EACH_SPAN(skim, m->value_paths, span)
                        {
                            span->has_escapes = true;
                        }
                    end_scalar(skim, m, AT(++p));
                    break;
                }
                if (m->wants_name) {
                    if (!m->has_escapes && m->name_len == 0 && !m->is_name_cut) {
                        match_name(skim, m, (const char *)run, (size_t)(p - run));
                    } else {
                        name_append(m, run, (size_t)(p - run));
                        if (!m->is_name_cut)
                            match_name(skim, m, m->name, m->name_len);
                    }
                    m->wants_name = false;
                }
                p++;
                m->state = STATE_COLON;
                break;
            }
            if (*p != '\\')
                FAIL("a control character in a string");
            if (m->wants_name)
                name_append(m, run, (size_t)(p - run));
            m->has_escapes = true;
            p++;
            m->state = STATE_ESCAPE;
            break;

        case STATE_UTF8:
        utf8:
            while (m->utf8_left && p < end) {
                if (*p < m->utf8_min || *p > m->utf8_max)
                    FAIL("invalid UTF-8");
                m->utf8_min = 0x80;
                m->utf8_max = 0xbf;
                m->utf8_left--;
                p++;
            }
            if (m->utf8_left)
                goto out;
            m->state = STATE_STRING;
            break;

        case STATE_ESCAPE: {
            if (*p == 'u') {
                m->hex = 0;
                m->hex_left = 4;
                p++;
                m->state = STATE_HEX;
                break;
            }
            char c = escape_of(*p);
            if (!c)
                FAIL("an invalid escape");
            if (m->wants_name)
                name_append(m, &c, 1);
            run = ++p;
            m->state = STATE_STRING;
            break;
        }

        case STATE_HEX:
            for (; m->hex_left && p < end; p++, m->hex_left--) {
                int digit = hex_of(*p);
                if (digit < 0)
                    FAIL("an invalid escape");
                m->hex = m->hex << 4 | (uint32_t)digit;
            }
            if (m->hex_left == 0) {
                int next = take_unit(m, m->hex);
                if (next < 0)
                    FAIL("a lone surrogate in a string");
                run = p;
                m->state = (uint8_t)next;
            }
            break;

        case STATE_LOW:
            if (*p == '\\') {
                p++;
                m->state = STATE_LOW_U;
                break;
            }
            if (!is_lenient)
                FAIL("a lone surrogate in a string");
            if (m->wants_name)
                name_append_code(m, 0xfffd);
            m->high = 0;
            run = p;
            m->state = STATE_STRING;
            break;

        case STATE_LOW_U:
            if (*p != 'u') {
                if (!is_lenient)
                    FAIL("a lone surrogate in a string");
                if (m->wants_name)
                    name_append_code(m, 0xfffd);
                m->high = 0;
                m->state = STATE_ESCAPE;
                break;
            }
            m->hex = 0;
            m->hex_left = 4;
            p++;
            m->state = STATE_HEX;
            break;

        case STATE_LITERAL:
            while (*m->literal && p < end) {
                if (*p != (unsigned char)*m->literal)
                    FAIL("a value is expected");
                m->literal++;
                p++;
            }
            if (!*m->literal)
                end_scalar(skim, m, AT(p));
            break;

        case STATE_MINUS:
            if (!is_digit(*p))
                FAIL("a digit is expected");
            m->state = *p++ == '0' ? STATE_ZERO : STATE_INTEGER;
            break;

        case STATE_ZERO:
            if (is_digit(*p))
                FAIL("a number with a leading zero");
            goto point;

        case STATE_INTEGER:
            SKIP_DIGITS();
        point:
            if (*p == '.') {
                p++;
                m->state = STATE_POINT;
                break;
            }
            goto exponent;

        case STATE_POINT:
            if (!is_digit(*p))
                FAIL("a digit is expected");
            m->state = STATE_FRACTION;
            break;

        case STATE_FRACTION:
            SKIP_DIGITS();
        exponent:
            if ((*p | 0x20) == 'e') {
                p++;
                m->state = STATE_E;
                break;
            }
            end_scalar(skim, m, AT(p));
            goto after;

        case STATE_E:
            m->state = STATE_E_SIGN;
            if (*p == '+' || *p == '-')
                p++;
            break;

        case STATE_E_SIGN:
            if (!is_digit(*p))
                FAIL("a digit is expected");
            m->state = STATE_EXPONENT;
            break;

        case STATE_EXPONENT:
            SKIP_DIGITS();
            end_scalar(skim, m, AT(p));
            goto after;
        }
    }
out:
    if (m->wants_name && (m->state == STATE_STRING || m->state == STATE_UTF8))
        name_append(m, run, (size_t)(end - run));
    return 0;
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
        m->state == STATE_EXPONENT)
        end_scalar(skim, m, skim->offset);
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

// ---- Reading values ----

static bool is_inside(struct slice text, const struct skim_span *span)
{
    return span->start <= span->end && span->end <= text.len;
}

static uint32_t read_unit(const unsigned char *p)
{
    uint32_t unit = 0;
    for (int i = 0; i < 4; i++) {
        int digit = hex_of(p[i]);
        if (digit < 0)
            return UINT32_MAX;
        unit = unit << 4 | (uint32_t)digit;
    }
    return unit;
}

int skim_string(struct slice text, const struct skim_span *span, char *out, size_t size,
                size_t *len)
{
    *len = 0;
    if (span->type != SKIM_STRING || !is_inside(text, span) || span->end - span->start < 2)
        return GW_EINVAL;
    const unsigned char *p = (const unsigned char *)text.ptr + span->start + 1;
    const unsigned char *end = (const unsigned char *)text.ptr + span->end - 1;
    size_t at = 0;
    while (p < end) {
        const unsigned char *slash = memchr(p, '\\', (size_t)(end - p));
        size_t plain = (size_t)((slash ? slash : end) - p);
        if (plain > size - at)
            return GW_ETOOBIG;
        if (plain)
            memcpy(out + at, p, plain);
        at += plain;
        p += plain;
        if (!slash)
            break;
        if (end - p < 2)
            return GW_EINVAL;
        char code[4];
        size_t code_len = 1;
        if (p[1] != 'u') {
            code[0] = escape_of(p[1]);
            if (!code[0])
                return GW_EINVAL;
            p += 2;
        } else {
            uint32_t unit = end - p >= 6 ? read_unit(p + 2) : UINT32_MAX;
            if (unit == UINT32_MAX)
                return GW_EINVAL;
            p += 6;
            if (is_high(unit)) {
                uint32_t low =
                    end - p >= 6 && p[0] == '\\' && p[1] == 'u' ? read_unit(p + 2) : UINT32_MAX;
                if (low != UINT32_MAX && is_low(low)) {
                    unit = 0x10000 + ((unit - 0xd800) << 10) + (low - 0xdc00);
                    p += 6;
                } else {
                    unit = 0xfffd;
                }
            } else if (is_low(unit)) {
                unit = 0xfffd;
            }
            code_len = encode_utf8(unit, code);
        }
        if (code_len > size - at)
            return GW_ETOOBIG;
        memcpy(out + at, code, code_len);
        at += code_len;
    }
    if (at < size)
        out[at] = 0;
    *len = at;
    return 0;
}

int skim_u64(struct slice text, const struct skim_span *span, uint64_t *out)
{
    *out = 0;
    if (span->type != SKIM_NUMBER || !is_inside(text, span) || span->start == span->end)
        return GW_EINVAL;
    const char *p = text.ptr + span->start, *end = text.ptr + span->end;
    bool is_negative = *p == '-';
    p += is_negative;
    const char *digits = p;
    int64_t exponent = 0;
    bool is_fraction = false;
    const char *last = NULL; // the last digit that is not zero
    int64_t last_scale = 0;  // the power of ten of that digit, before the exponent
    for (; p < end && (is_digit((unsigned char)*p) || *p == '.'); p++) {
        if (*p == '.') {
            is_fraction = true;
            continue;
        }
        if (is_fraction)
            exponent--;
        if (*p != '0') {
            last = p;
            last_scale = exponent;
        } else if (!is_fraction && last) {
            last_scale++;
        }
    }
    if (!last)
        return p > digits ? 0 : GW_EINVAL; // zero, also -0 and 0e9
    if (is_negative)
        return GW_EINVAL;
    if (p < end) {
        // The scanner has checked that this is e, a sign and digits.
        p++;
        bool is_down = p < end && *p == '-';
        p += p < end && (*p == '-' || *p == '+');
        int64_t value = 0;
        for (; p < end && is_digit((unsigned char)*p); p++)
            if (value < INT64_C(1000000000000))
                value = value * 10 + (*p - '0');
        last_scale += is_down ? -value : value;
    }
    if (last_scale < 0)
        return GW_EINVAL;
    uint64_t value = 0;
    for (const char *d = digits; d <= last; d++) {
        if (*d == '.')
            continue;
        if (__builtin_mul_overflow(value, (uint64_t)10, &value) ||
            __builtin_add_overflow(value, (uint64_t)(*d - '0'), &value))
            return GW_ETOOBIG;
    }
    for (; last_scale > 0; last_scale--)
        if (__builtin_mul_overflow(value, (uint64_t)10, &value))
            return GW_ETOOBIG;
    *out = value;
    return 0;
}
