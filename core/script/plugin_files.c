// Plugin folders: found by path or by name in plugin_dirs, their Lua texts read, places in them
// named for messages.
#include "script/plugin_internal.h"
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

#define MAX_LEVELS 4
#define MAX_FOUND 8192 // bytes of a path

void plugin_problem(struct buf *problems, const struct plugin_def *def, const char *find,
                    const char *format, ...)
{
    char place[256];
    size_t before = problems->len;
    plugin_locate(def, find, place, sizeof place);
    va_list args;
    va_start(args, format);
    int err = buf_printf(problems, "%s: ", place);
    if (!err)
        err = buf_vprintf(problems, format, args);
    if (!err)
        err = buf_append_char(problems, '\n');
    va_end(args);
    if (err)
        buf_truncate(problems, before);
}

// ---- places

static bool is_word(char c)
{
    return isalnum((unsigned char)c) || c == '_';
}

int plugin_find_line(struct slice text, struct slice word, bool must_be_set)
{
    int line_number = 0;
    while (text.len) {
        const char *end = memchr(text.ptr, '\n', text.len);
        struct slice line = end ? slice_of(text.ptr, (size_t)(end - text.ptr)) : text;
        text = slice_from(text, line.len + 1);
        line_number++;
        if (slice_starts(slice_trim(line), "--"))
            continue;
        for (size_t at = 0; at + word.len <= line.len; at++) {
            if (memcmp(line.ptr + at, word.ptr, word.len) != 0)
                continue;
            struct slice rest = slice_from(line, at + word.len);
            if ((at && is_word(line.ptr[at - 1]) && is_word(word.ptr[0])) ||
                (rest.len && is_word(rest.ptr[0]) && is_word(word.ptr[word.len - 1])))
                continue;
            rest = slice_trim(rest);
            if (!must_be_set || (slice_starts(rest, "=") && !slice_starts(rest, "==")))
                return line_number;
        }
    }
    return 0;
}

static int last_return(struct slice text)
{
    int line_number = 0, found = 0;
    while (text.len) {
        const char *end = memchr(text.ptr, '\n', text.len);
        struct slice line = end ? slice_of(text.ptr, (size_t)(end - text.ptr)) : text;
        text = slice_from(text, line.len + 1);
        line_number++;
        if (slice_starts(line, "return"))
            found = line_number;
    }
    return found;
}

void plugin_locate(const struct plugin_def *def, const char *find, char *out, size_t size)
{
    if (def->file_count == 0) {
        snprintf(out, size, "plugin %s", def->name);
        return;
    }
    struct slice word = slice_str(find);
    if (word.len && strcmp(find, "return") != 0) {
        for (int pass = 0; pass < 2; pass++) {
            for (size_t i = 0; i < def->file_count; i++) {
                int line = plugin_find_line(def->files[i].text, word, pass == 0);
                if (line) {
                    snprintf(out, size, "%s:%d", def->files[i].chunk + 1, line);
                    return;
                }
            }
        }
    }
    int line = last_return(def->files[0].text);
    snprintf(out, size, line ? "%s:%d" : "%s", def->files[0].chunk + 1, line);
}

// ---- folders

static bool has_init(const char *dir)
{
    char path[MAX_FOUND];
    struct stat info;
    return snprintf(path, sizeof path, "%s/init.lua", dir) < (int)sizeof path &&
           stat(path, &info) == 0 && S_ISREG(info.st_mode);
}

static int find_folder(const struct conf *conf, const struct conf_plugin *plugin,
                       struct arena *arena, struct plugin_def *def, struct buf *problems)
{
    struct slice dir;
    if (plugin->path.len) {
        int err = conf_path(conf, plugin->path, &dir);
        if (err)
            return err;
        def->dir = arena_copyz(arena, dir);
        if (!def->dir)
            return GW_ENOMEM;
        if (has_init(def->dir))
            return 0;
        err = buf_printf(problems, "%.*s: plugin %s: no init.lua in %s\n", SLICE_FMT(conf->file),
                         def->name, def->dir);
        return err ? err : GW_ENOTFOUND;
    }
    for (size_t i = 0; i < conf->plugin_dirs.count; i++) {
        int err = conf_path(conf, conf->plugin_dirs.items[i], &dir);
        if (err)
            return err;
        struct slice path = arena_printf(arena, "%.*s/%s%c", SLICE_FMT(dir), def->name, '\0');
        if (!path.ptr)
            return GW_ENOMEM;
        def->dir = path.ptr;
        if (has_init(def->dir))
            return 0;
    }
    int err =
        buf_printf(problems, "%.*s: plugin %s: not found in", SLICE_FMT(conf->file), def->name);
    for (size_t i = 0; i < conf->plugin_dirs.count && !err; i++)
        err = buf_printf(problems, " %.*s", SLICE_FMT(conf->plugin_dirs.items[i]));
    if (!err)
        err = buf_append_str(problems, conf->plugin_dirs.count ? "\n" : " plugin_dirs (empty)\n");
    return err ? err : GW_ENOTFOUND;
}

struct folder_reader {
    struct arena *arena;
    struct plugin_def *def;
    struct plugin_file *files;
    size_t count;
    struct buf *problems;
    char parent[64]; // name of the folder above the plugin's, for messages
};

static int read_file(struct folder_reader *reader, const char *path, const char *relative)
{
    FILE *in = fopen(path, "re");
    struct slice text = SLICE_NONE;
    char *room = in ? malloc(PLUGIN_MAX_TEXT + 1) : NULL;
    if (room) {
        size_t len = fread(room, 1, PLUGIN_MAX_TEXT + 1, in);
        if (!ferror(in) && len <= PLUGIN_MAX_TEXT)
            text = arena_copy(reader->arena, slice_of(room, len));
    }
    free(room);
    if (in)
        fclose(in);
    if (!text.ptr) {
        int err = buf_printf(reader->problems, "%s: cannot be read (or is above 1 MiB)\n", path);
        return err ? err : GW_EIO;
    }
    struct slice chunk = arena_printf(reader->arena, "@%s/%s/%s%c", reader->parent,
                                      reader->def->name, relative, '\0');
    struct slice name =
        arena_printf(reader->arena, "./%.*s", (int)(strlen(relative) - 4), relative);
    if (!chunk.ptr || !name.ptr)
        return GW_ENOMEM;
    if (reader->count == PLUGIN_MAX_FILES) {
        int err = buf_printf(reader->problems, "%s: more than %d Lua files\n", reader->def->dir,
                             PLUGIN_MAX_FILES);
        return err ? err : GW_ETOOBIG;
    }
    reader->files[reader->count++] = (struct plugin_file){name, text, chunk.ptr};
    return 0;
}

static int by_name(const struct dirent **a, const struct dirent **b)
{
    return strcmp((*a)->d_name, (*b)->d_name);
}

static int is_visible(const struct dirent *entry)
{
    return entry->d_name[0] != '.';
}

static int read_level(struct folder_reader *reader, const char *relative_dir, int level)
{
    char path[MAX_FOUND], relative[1024];
    struct dirent **entries = NULL;
    snprintf(path, sizeof path, "%s/%s", reader->def->dir, relative_dir);
    int count = scandir(path, &entries, is_visible, by_name);
    int err = 0;
    for (int i = 0; i < count; i++) {
        const char *name = entries[i]->d_name;
        size_t len = strlen(name);
        struct stat info;
        bool fits =
            snprintf(relative, sizeof relative, "%s%s%s", relative_dir, *relative_dir ? "/" : "",
                     name) < (int)sizeof relative &&
            snprintf(path, sizeof path, "%s/%s", reader->def->dir, relative) < (int)sizeof path;
        if (!err && fits && stat(path, &info) == 0) {
            bool is_lua = len > 4 && strcmp(name + len - 4, ".lua") == 0;
            if (S_ISDIR(info.st_mode) && level < MAX_LEVELS && strcmp(name, "spec") != 0)
                err = read_level(reader, relative, level + 1);
            else if (S_ISREG(info.st_mode) && is_lua && strcmp(relative, "init.lua") != 0)
                err = read_file(reader, path, relative);
        }
        free(entries[i]);
    }
    free(entries);
    return err;
}

// The last part of the folder above dir: "plugins" for /srv/plugins/demo.
static void name_parent(const char *dir, char *out, size_t size)
{
    struct slice path = slice_str(dir);
    while (path.len > 1 && path.ptr[path.len - 1] == '/')
        path.len--;
    while (path.len && path.ptr[path.len - 1] != '/')
        path.len--;
    while (path.len && path.ptr[path.len - 1] == '/')
        path.len--;
    size_t start = path.len;
    while (start && path.ptr[start - 1] != '/')
        start--;
    path = slice_from(path, start);
    if (path.len == 0 || path.len > 12) // Lua shows 60 bytes of a chunk's name
        path = SLICE_LIT("plugins");
    snprintf(out, size, "%.*s", SLICE_FMT(path));
}

int plugin_read_folder(const struct conf *conf, const struct conf_plugin *plugin,
                       struct arena *arena, struct plugin_def *def, struct buf *problems)
{
    int err = find_folder(conf, plugin, arena, def, problems);
    if (err)
        return err;
    struct folder_reader reader = {.arena = arena, .def = def, .problems = problems};
    reader.files = arena_zalloc(arena, PLUGIN_MAX_FILES * sizeof *reader.files);
    if (!reader.files)
        return GW_ENOMEM;
    name_parent(def->dir, reader.parent, sizeof reader.parent);
    char path[MAX_FOUND];
    snprintf(path, sizeof path, "%s/init.lua", def->dir);
    err = read_file(&reader, path, "init.lua");
    if (!err)
        err = read_level(&reader, "", 0);
    def->files = reader.files;
    def->file_count = err ? 0 : reader.count;
    return err;
}
