// `.env` files and look-up of variables.
#include "script/confload_env.h"
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#define MAX_PAIRS 1024
#define MAX_NAME 128

static bool is_name(struct slice name)
{
    if (name.len == 0 || name.len > MAX_NAME || isdigit((unsigned char)name.ptr[0]))
        return false;
    for (size_t i = 0; i < name.len; i++)
        if (!isalnum((unsigned char)name.ptr[i]) && name.ptr[i] != '_')
            return false;
    return true;
}

// The inside of a quoted value; *rest gets what follows the closing quote. ptr NULL: not closed.
static struct slice unquote(struct slice text, struct arena *arena, struct slice *rest)
{
    char quote = text.ptr[0];
    char *out = arena_alloc(arena, text.len + 1);
    size_t len = 0, i = 1;
    for (; out && i < text.len && text.ptr[i] != quote; i++) {
        char c = text.ptr[i];
        if (quote == '"' && c == '\\' && i + 1 < text.len) {
            c = text.ptr[++i];
            c = c == 'n' ? '\n' : c == 't' ? '\t' : c == 'r' ? '\r' : c;
        }
        out[len++] = c;
    }
    if (!out || i >= text.len)
        return SLICE_NONE;
    *rest = slice_from(text, i + 1);
    return slice_of(out, len);
}

// NULL, or what is wrong with the line.
static const char *parse_line(struct slice line, struct arena *arena, struct env_pair *pair,
                              bool *is_pair)
{
    *is_pair = false;
    line = slice_trim(line);
    if (line.len == 0 || line.ptr[0] == '#')
        return NULL;
    if (slice_starts(line, "export ") || slice_starts(line, "export\t"))
        line = slice_trim(slice_from(line, 7));
    const char *equals = memchr(line.ptr, '=', line.len);
    if (!equals)
        return "NAME=value expected";
    pair->name = slice_trim(slice_of(line.ptr, (size_t)(equals - line.ptr)));
    if (!is_name(pair->name))
        return "not a name of a variable";
    struct slice value = slice_trim(slice_from(line, (size_t)(equals - line.ptr) + 1));
    if (value.len && (value.ptr[0] == '"' || value.ptr[0] == '\'')) {
        struct slice rest = SLICE_NONE;
        value = unquote(value, arena, &rest);
        rest = value.ptr ? slice_trim(rest) : rest;
        if (!value.ptr)
            return "the quote is not closed";
        if (rest.len && rest.ptr[0] != '#')
            return "something follows the closing quote";
    } else {
        // A comment begins at a # after white space; a # inside a value stays.
        for (size_t i = 0; i < value.len; i++) {
            if (value.ptr[i] == '#' && (i == 0 || isspace((unsigned char)value.ptr[i - 1]))) {
                value = slice_trim(slice_of(value.ptr, i));
                break;
            }
        }
    }
    if (value.len && memchr(value.ptr, '\0', value.len))
        return "the value holds a NUL byte";
    pair->value = value;
    *is_pair = true;
    return NULL;
}

int env_file_parse(struct slice text, const char *label, struct arena *arena, struct env_file *out,
                   struct buf *problems)
{
    struct slice copy = arena_copy(arena, text);
    int err = 0;
    size_t line_number = 0;
    *out = (struct env_file){arena_alloc(arena, MAX_PAIRS * sizeof *out->pairs), 0};
    if (!out->pairs || !copy.ptr)
        return GW_ENOMEM;
    if (slice_starts(copy, "\xef\xbb\xbf"))
        copy = slice_from(copy, 3);
    while (copy.len) {
        const char *end = memchr(copy.ptr, '\n', copy.len);
        struct slice line = end ? slice_of(copy.ptr, (size_t)(end - copy.ptr)) : copy;
        copy = slice_from(copy, line.len + 1);
        line_number++;
        struct env_pair pair;
        bool is_pair;
        const char *why = parse_line(line, arena, &pair, &is_pair);
        if (!why && is_pair && out->count == MAX_PAIRS) {
            why = "too many variables";
            is_pair = false;
            copy = SLICE_NONE;
        }
        if (is_pair)
            out->pairs[out->count++] = pair;
        if (why) {
            err = GW_EINVAL;
            if (problems && buf_printf(problems, "%s:%zu: %s\n", label, line_number, why) != 0)
                return GW_ENOMEM;
        }
    }
    return err;
}

int env_file_load(const char *path, struct arena *arena, struct env_file *out, struct buf *problems)
{
    *out = (struct env_file){NULL, 0};
    FILE *in = fopen(path, "re");
    if (!in) {
        if (errno == ENOENT || errno == ENOTDIR)
            return 0;
        if (problems &&
            buf_printf(problems, "%s: cannot be read: %s\n", path, strerror(errno)) != 0)
            return GW_ENOMEM;
        return GW_EIO;
    }
    char *text = malloc(ENV_FILE_MAX);
    size_t len = text ? fread(text, 1, ENV_FILE_MAX, in) : 0;
    bool is_whole = text && !ferror(in) && len < ENV_FILE_MAX;
    fclose(in);
    int err = text ? 0 : GW_ENOMEM;
    if (text && !is_whole) {
        err = GW_EIO;
        if (problems && buf_printf(problems, "%s: cannot be read as a whole\n", path) != 0)
            err = GW_ENOMEM;
    }
    if (!err)
        err = env_file_parse(slice_of(text, len), path, arena, out, problems);
    free(text);
    return err;
}

struct slice env_get(const struct env_file *file, struct slice name, const char **source)
{
    char copy[MAX_NAME + 1];
    if (!is_name(name))
        return SLICE_NONE;
    memcpy(copy, name.ptr, name.len);
    copy[name.len] = '\0';
    const char *value = getenv(copy);
    if (value) {
        if (source)
            *source = "env";
        return *value ? slice_str(value) : SLICE_NONE;
    }
    // The last line wins, as in a shell.
    for (size_t i = file ? file->count : 0; i > 0; i--) {
        if (slice_eq(file->pairs[i - 1].name, name)) {
            if (source)
                *source = ".env";
            struct slice found = file->pairs[i - 1].value;
            return found.len ? found : SLICE_NONE;
        }
    }
    return SLICE_NONE;
}
