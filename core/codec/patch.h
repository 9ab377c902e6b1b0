#pragma once
// Splices into an immutable body: a list of {offset, length, replacement}. Nothing else of the body
// changes. The result is a list of pieces that share the original's memory. Arena memory; one
// thread at a time.
//
// Which comma goes with a removed member, and whether an added one needs a comma, is settled when
// the edits are applied: members of one object may be added and removed in any number and order.
#include "base/arena.h"
#include "base/err.h"
#include "base/slice.h"
#include "codec/skim.h"

enum patch_kind { PATCH_REPLACE, PATCH_ADD_MEMBER, PATCH_REMOVE_MEMBER };

struct patch_edit {
    uint64_t start, length;
    struct slice with; // arena or longer
    enum patch_kind kind;
};
struct patch {
    struct arena *arena;
    struct patch_edit *edits; // sorted by start, not overlapping
    size_t count, capacity;
};

void patch_init(struct patch *patch, struct arena *arena);
// GW_EINVAL: overlaps an earlier edit. Two insertions at one place keep their order.
GW_MUSTCHECK int patch_replace(struct patch *patch, uint64_t start, uint64_t length,
                               struct slice with);
// Replaces the value of a span by JSON text; removes a member with its comma; inserts a member at
// the front of the object whose '{' is at object_start (is_empty: it has no members).
GW_MUSTCHECK int patch_set_value(struct patch *patch, const struct skim_span *span,
                                 struct slice json);
GW_MUSTCHECK int patch_remove_member(struct patch *patch, struct slice body,
                                     const struct skim_span *span);
GW_MUSTCHECK int patch_add_member(struct patch *patch, uint64_t object_start, bool is_empty,
                                  struct slice name, struct slice json);
// Length of the result.
// `body` is the text the spans were found in, here and below.
uint64_t patch_length(const struct patch *patch, struct slice body);
// The result as pieces (arena), none empty. A body without edits is one piece. GW_EINVAL: an edit
// lies outside the body.
GW_MUSTCHECK int patch_pieces(const struct patch *patch, struct slice body, struct slice **pieces,
                              size_t *count);
// The result as one run of bytes (arena).
GW_MUSTCHECK int patch_apply(const struct patch *patch, struct slice body, struct slice *out);
