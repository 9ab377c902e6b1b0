#pragma once
// Schemas of REST bodies, queries and plugin settings, and the check of JSON and query text against
// them. A check finds all problems (at most SCHEMA_MAX_PROBLEMS) and gives a normalised value with
// the defaults filled in. A schema is immutable once compiled and may be used by any thread; values
// and problems live in the caller's arena. Pure.
//
//   Kinds      value          written as
//   TEXT       text           string; length in characters
//   INTEGER    integer        12, 12.0
//   NUMBER     number         any JSON number, as a double
//   BOOLEAN    is_true        true, false (in queries also 1, 0, yes, no, on, off)
//   DECIMAL    integer        money, nano-USD: number or string, read exactly
//   RATE       integer        ppm: number or string, read exactly
//   DURATION   integer        milliseconds: seconds (number or "1.5"), or "250ms" "30s" "5m" "2h"
//   "1d" TIME       integer        milliseconds since 1970, UTC: ISO 8601 with or without zone, or
//   a date UUID       text           lower case URL        text           absolute http or https
//   without userinfo SECRET     text           the name of "$NAME" LIST       items          array
//   RECORD     fields         object; unknown fields are problems
//   MAP        fields         object with any names, values of one schema
//   ANY        any            anything
#include "base/arena.h"
#include "base/buf.h"
#include "base/err.h"
#include "base/slice.h"
#include "codec/json.h"
#include <stdint.h>

#define SCHEMA_MAX_PROBLEMS 50
#define SCHEMA_MAX_DEPTH 16 // of schemas and of what they check (ANY may be deeper)
#define SCHEMA_MAX_FIELDS 256
#define SCHEMA_MAX_PATTERN 256
#define SCHEMA_MAX_MATCHED 4096 // bytes of a text that a pattern looks at; longer ones fail

enum schema_kind {
    SCHEMA_TEXT,
    SCHEMA_INTEGER,
    SCHEMA_NUMBER,
    SCHEMA_BOOLEAN,
    SCHEMA_DECIMAL,
    SCHEMA_RATE,
    SCHEMA_DURATION,
    SCHEMA_TIME,
    SCHEMA_UUID,
    SCHEMA_URL,
    SCHEMA_SECRET,
    SCHEMA_LIST,
    SCHEMA_RECORD,
    SCHEMA_MAP,
    SCHEMA_ANY,
    SCHEMA_KIND_COUNT,
};

struct schema_field;
struct schema_pattern;
struct schema {
    enum schema_kind kind;
    bool is_optional;   // may be absent (a default implies it)
    bool is_nullable;   // null is a value
    bool is_trimmed;    // TEXT: white space at both ends is dropped first
    bool is_empty_null; // TEXT: "" (after trimming) becomes null
    bool has_min, has_max;
    int64_t min, max; // characters, items, the value in its unit; NUMBER: see number_*
    double number_min, number_max;
    struct slice about;
    struct slice default_json; // ptr NULL: none
    struct slice pattern;      // as written; see schema_set_pattern
    struct schema_pattern *compiled;
    const struct slice *choices; // TEXT: enum
    size_t choice_count;
    const struct schema *of; // LIST, MAP
    const struct schema_field *fields;
    size_t field_count;
    const struct schema_value *default_value; // of schema_seal
    unsigned depth;                           // likewise: 1 for scalars
};
struct schema_field {
    struct slice name;
    const struct schema *schema;
};

// A pattern is a POSIX extended regular expression that has to match the whole text, without back
// references, classes by name and large repeat counts. Compiled memory belongs to the arena.
// GW_EINVAL: *why says what is wrong (constant text).
GW_MUSTCHECK int schema_set_pattern(struct schema *schema, struct slice pattern,
                                    struct arena *arena, const char **why);
// The last step of building one (its parts are sealed before): checks depth, limits and the
// default, which is read once here. The schema, its parts and default_json live as long as arena.
// why ≥ 160 bytes.
GW_MUSTCHECK int schema_seal(struct schema *schema, struct arena *arena, char *why,
                             size_t why_size);
const char *schema_kind_name(enum schema_kind kind); // "text"
int schema_kind_find(struct slice name);             // an enum schema_kind, or GW_ENOTFOUND
// The nearest field name ("did you mean"); empty when nothing is near.
struct slice schema_suggest(const struct schema *record, struct slice name);
// Levenshtein's distance of two names, case ignored; SIZE_MAX when one is above 63 bytes.
size_t schema_distance(struct slice a, struct slice b);

struct schema_member;
struct schema_value {
    const struct schema *schema; // NULL: an ANY inside
    bool is_null;
    bool is_true;
    int64_t integer;
    double number;
    struct slice text;                   // borrows the document (or its own copy in the arena)
    yyjson_val *any;                     // borrows the document
    const struct schema_value *items;    // LIST
    const struct schema_member *members; // RECORD (present ones), MAP
    size_t count;
};
struct schema_member {
    struct slice name;
    struct schema_value value;
};

struct schema_problem {
    struct slice path;    // "body.models.2.name"
    const char *kind;     // missing unknown type range length pattern enum format json
    struct slice message; // a sentence without the path
};
struct schema_result {
    struct schema_value value; // valid when problem_count is 0
    struct schema_problem *problems;
    size_t problem_count;
};

// 0, or GW_EINVAL with problems, or GW_ENOMEM. prefix ("body") begins every path. value borrows
// from document and schema: keep both.
GW_MUSTCHECK int schema_check(const struct schema *schema, yyjson_val *document, const char *prefix,
                              struct arena *arena, struct schema_result *result);
// A record from texts: query parameters (lists by repetition), path parameters. Values decoded.
struct schema_pair {
    struct slice name, text;
};
GW_MUSTCHECK int schema_check_pairs(const struct schema *record, const struct schema_pair *pairs,
                                    size_t count, const char *prefix, struct arena *arena,
                                    struct schema_result *result);
// Splits a raw query ("a=1&b=x%20y"), decodes it and checks.
GW_MUSTCHECK int schema_check_query(const struct schema *record, struct slice query,
                                    const char *prefix, struct arena *arena,
                                    struct schema_result *result);

// The normalised value as JSON (money as exact decimals, times as ISO 8601 text).
void schema_write_value(const struct schema_value *value, struct json_out *out);
// JSON Schema 2020-12.
void schema_write_json_schema(const struct schema *schema, struct json_out *out);
