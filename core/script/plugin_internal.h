#pragma once
// Shared by plugin*.c. Start-up and helper threads, but for plugin_run (any thread that owns the
// state).
#include "script/confload_env.h"
#include "script/plugin.h"

#define PLUGIN_MAX_FILES 64
#define PLUGIN_MAX_TEXT ((size_t)1 << 20) // of one file

// ---- plugin_files.c
// Finds the folder of a configured plugin and reads its Lua files. Problems are appended.
GW_MUSTCHECK int plugin_read_folder(const struct conf *conf, const struct conf_plugin *plugin,
                                    struct arena *arena, struct plugin_def *def,
                                    struct buf *problems);
// "plugins/x/init.lua:12" of the first line where the text stands (as a word, best before '=');
// the chunk's name alone when it is nowhere. find NULL or "return": the line of the last return.
void plugin_locate(const struct plugin_def *def, const char *find, char *out, size_t size);
// The line of the first place where the word stands (must_be_set: before a '='); 0: nowhere.
int plugin_find_line(struct slice text, struct slice word, bool must_be_set);
// Appends "place: what" as a line; place by plugin_locate.
__attribute__((format(printf, 4, 5))) void plugin_problem(struct buf *problems,
                                                          const struct plugin_def *def,
                                                          const char *find, const char *format,
                                                          ...);

// ---- plugin_run.c
// plugin_load_into with all problems.
GW_MUSTCHECK int plugin_run(struct lua_env *env, lua_State *L, const struct plugin_def *def,
                            struct buf *problems);

// ---- plugin_read.c
// The normalised table at index to def (arena). Inside protect. GW_EINVAL: problems were appended.
GW_MUSTCHECK int plugin_read_table(lua_State *L, int index, struct arena *arena,
                                   struct plugin_def *def, struct buf *problems);

// ---- plugin_quirk.c
// {provider: {…}} → quirks.
GW_MUSTCHECK int plugin_read_quirks(yyjson_val *quirks, struct arena *arena, struct plugin_def *def,
                                    struct buf *problems);
extern const struct quirk plugin_generic_quirk;

// ---- plugin_check.c
// Settings against the schema, secrets; def->config and the like are set.
GW_MUSTCHECK int plugin_check_settings(const struct conf_plugin *plugin, struct arena *arena,
                                       struct plugin_def *def, struct buf *problems);
GW_MUSTCHECK int plugin_resolve_secrets(const struct conf *conf, const struct env_file *env,
                                        struct arena *arena, struct plugin_def *def,
                                        struct buf *problems);
// Names, order, routes, models across the set. GW_EINVAL: problems were appended.
GW_MUSTCHECK int plugin_check_set(const struct plugin_set *set, struct buf *problems);
void plugin_warn_unsafe(const struct plugin_set *set, struct buf *problems);
