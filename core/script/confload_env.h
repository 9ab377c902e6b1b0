#pragma once
// The environment as configuration sees it: `.env` beside the file, and the process's own, which
// wins. Lines of `.env`: NAME=value, maybe after `export`, '…' or "…" around the value (with
// backslash escapes in double quotes), # comments; nothing is expanded. Start-up and helper threads
// only.
#include "base/arena.h"
#include "base/buf.h"
#include "base/err.h"
#include "base/slice.h"

#define ENV_FILE_MAX ((size_t)1 << 20)

struct env_pair {
    struct slice name, value;
};
struct env_file {
    struct env_pair *pairs;
    size_t count;
};

// Text to pairs (arena). GW_EINVAL: problems (may be NULL) gets "label:line: what" per bad line;
// the good ones are there nevertheless.
GW_MUSTCHECK int env_file_parse(struct slice text, const char *label, struct arena *arena,
                                struct env_file *out, struct buf *problems);
// The same from a file; an absent one is empty.
GW_MUSTCHECK int env_file_load(const char *path, struct arena *arena, struct env_file *out,
                               struct buf *problems);
// The value of a variable; ptr NULL when unset or empty. source (may be NULL) gets "env" or ".env".
struct slice env_get(const struct env_file *file, struct slice name, const char **source);
