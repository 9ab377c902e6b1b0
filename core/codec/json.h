#pragma once
// JSON out: a small writer onto a buf, exact for integers and money, and JSON in: yyjson under a
// memory cap (for REST bodies, configuration and conversion; never on the passthrough path).
// Numbers are kept as source text (raw), so decimals stay exact. One thread at a time.
#include "base/buf.h"
#include "base/err.h"
#include "base/slice.h"
#include <yyjson.h>

// Writer: commas are placed by the writer; errors stick and json_end gives the first one
// (GW_EINTERNAL: an object or array is still open, or closed once too often).
struct json_out {
    struct buf *buf; // kept
    int err;
    uint32_t depth;
    uint64_t has_items; // bit per depth: a comma is due (depth ≤ 63)
    bool after_key;
};
void json_begin(struct json_out *out, struct buf *buf);
GW_MUSTCHECK int json_end(struct json_out *out);
void json_object(struct json_out *out);
void json_object_end(struct json_out *out);
void json_array(struct json_out *out);
void json_array_end(struct json_out *out);
void json_key(struct json_out *out, const char *name);
void json_key_slice(struct json_out *out, struct slice name);
void json_text(struct json_out *out, struct slice text); // invalid UTF-8 becomes U+FFFD
void json_str(struct json_out *out, const char *text);   // NULL: null
void json_i64(struct json_out *out, int64_t value);
void json_u64(struct json_out *out, uint64_t value);
void json_bool(struct json_out *out, bool value);
void json_null(struct json_out *out);
void json_raw(struct json_out *out, struct slice json); // text that is JSON
void json_money(struct json_out *out, int64_t nano);    // exact decimal number of USD
void json_double(struct json_out *out, double value);   // round trips; NaN: null; not for money
// A quoted, escaped JSON string onto buf; on failure buf is as before.
GW_MUSTCHECK int json_quote(struct buf *buf, struct slice text);

// Parses with numbers as raw text. The document's memory may not pass memory_cap bytes
// (GW_ENOMEM); depth ≤ 64 (GW_ETOOBIG). *error gets a constant text, *error_at the offset. Gives a
// document to be freed by json_doc_free.
struct json_doc;
GW_MUSTCHECK int json_parse(struct slice text, size_t memory_cap, struct json_doc **doc,
                            const char **error, size_t *error_at);
yyjson_val *json_root(const struct json_doc *doc);
void json_doc_free(struct json_doc *doc);
// The source text of a (raw) number, empty for other types.
struct slice json_number_text(yyjson_val *val);
struct slice json_string_slice(yyjson_val *val); // ptr NULL unless a string
// Exact integer of a raw number ("12.0" and "1.2e1" are 12, as in skim_u64); GW_EINVAL when it is
// none, GW_ETOOBIG out of range.
GW_MUSTCHECK int json_get_i64(yyjson_val *val, int64_t *out);
