#pragma once
// What the command line verbs share: options, configuration, and one way to run an admin verb:
// through the control socket of a running gateway, or, when none runs, on the files themselves
// under the exclusive lock. Main thread.
#include "base/buf.h"
#include "codec/json.h"
#include "state/admin.h"
#include "state/conf.h"

struct tool {
    const char *conf_path;
    int arg_count; // words after the verb
    char **args;
    bool is_json;
    struct conf *conf; // tool_load
};

// Value of "--name VALUE"; NULL when absent. tool_word gives the n-th word that is no option.
const char *tool_option(const struct tool *tool, const char *name);
const char *tool_word(const struct tool *tool, int n);
bool tool_has_flag(const struct tool *tool, const char *name);
// Loads the configuration; prints the problems and exits with 1 when it is bad.
void tool_load(struct tool *tool);
// Runs a verb; answer gets the JSON. False: the error was printed.
bool tool_run(struct tool *tool, const char *verb_name, enum admin_verb verb, struct slice request,
              struct buf *answer);
// Asks the running gateway only. False: the error was printed.
bool tool_ask(struct tool *tool, const char *verb_name, struct slice request, struct buf *answer);
void tool_control_path(const struct tool *tool, char *out, size_t size);

// The verbs; each returns the exit code.
int verb_run(struct tool *tool);
int verb_check(struct tool *tool);
int verb_migrate(struct tool *tool);
int verb_config(struct tool *tool);
int verb_key(struct tool *tool);
int verb_upstream(struct tool *tool);
int verb_plugin(struct tool *tool);
int verb_reload(struct tool *tool);
int verb_upgrade(struct tool *tool);
int verb_health(struct tool *tool);
int verb_version(struct tool *tool);
