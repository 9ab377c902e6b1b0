// moongate: the command line. Each verb is one function; `run` is the gateway itself, all others
// are short-lived and work beside a running gateway.
#include "main/home.h"
#include "main/tool.h"
#include "main/upgrade.h"

#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define MMAP_FROM_BYTES (128 << 10)
#define TRIM_FROM_BYTES (1 << 20)

static const struct {
    const char *name;
    int (*run)(struct tool *tool);
    const char *help;
} VERBS[] = {
    {"run", verb_run, "run                      the gateway, in the foreground"},
    {"check", verb_check, "check                    configuration, plugins, schema version"},
    {"migrate", verb_migrate, "migrate status|up        database migrations"},
    {"config", verb_config, "config dump              effective values and where each came from"},
    {"key", verb_key, "key create --name N [--upstreams a,b] [--json] | key list | key revoke ID"},
    {"upstream", verb_upstream,
     "upstream create --name N --provider P --base-url U [--api-key-env VAR] [--models a,b]\n"
     "                         [--weight N] [--priority N] [--default] | upstream list | upstream "
     "test NAME"},
    {"plugin", verb_plugin, "plugin list | plugin test NAME | plugin docs"},
    {"reload", verb_reload, "reload                   plugins of the running gateway, all or none"},
    {"upgrade", verb_upgrade,
     "upgrade                  a new process of the binary takes over without a dropped request"},
    {"health", verb_health, "health                   exit 0 when the gateway is ready"},
    {"version", verb_version, "version [--json]"},
};

static int usage(FILE *out, int code)
{
    fprintf(out, "usage: moongate VERB [-c FILE] …   (default -c gateway.conf.lua)\n\n");
    for (size_t i = 0; i < sizeof VERBS / sizeof *VERBS; i++)
        fprintf(out, "  %s\n", VERBS[i].help);
    return code;
}

int main(int argc, char **argv)
{
    upgrade_remember(argc, argv);
    // Large buffers go back to the system when they are freed. Left alone, glibc moves its limits
    // up with the first of them, and what a flood of slow readers took stays for ever.
    mallopt(M_MMAP_THRESHOLD, MMAP_FROM_BYTES);
    mallopt(M_TRIM_THRESHOLD, TRIM_FROM_BYTES);
    struct tool tool = {.conf_path = "gateway.conf.lua"};
    if (argc < 2 || strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "help") == 0)
        return usage(argc < 2 ? stderr : stdout, argc < 2 ? 2 : 0);
    tool.args = calloc((size_t)argc, sizeof *tool.args);
    if (!tool.args)
        return 1;
    for (int i = 2; i < argc; i++) {
        if (strcmp(argv[i], "-c") == 0 && i + 1 < argc)
            tool.conf_path = argv[++i];
        else if (strcmp(argv[i], "--help") == 0)
            return usage(stdout, 0);
        else
            tool.args[tool.arg_count++] = argv[i];
    }
    tool.is_json = tool_has_flag(&tool, "--json");
    umask(077);
    int code = -1;
    for (size_t i = 0; i < sizeof VERBS / sizeof *VERBS && code < 0; i++) {
        if (strcmp(argv[1], VERBS[i].name) != 0)
            continue;
        if (strcmp(argv[1], "version") != 0)
            home_find();
        code = VERBS[i].run(&tool);
    }
    if (code < 0) {
        fprintf(stderr, "moongate: unknown verb '%s'\n\n", argv[1]);
        code = usage(stderr, 2);
    }
    conf_free(tool.conf);
    free(tool.args);
    return code;
}
