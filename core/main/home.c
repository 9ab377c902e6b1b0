#include "main/home.h"

#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static bool is_home(const char *dir)
{
    char path[PATH_MAX + 32];
    snprintf(path, sizeof path, "%s/schema/main", dir);
    return access(path, R_OK) == 0;
}

// The script floor finds lua/ by itself; it is told, so that both mean the same folder.
static void use(const char *home)
{
    char lua[PATH_MAX + 8];
    setenv("MOONGATE_HOME", home, 1);
    snprintf(lua, sizeof lua, "%s/lua", home);
    setenv("MOONGATE_LUA_DIR", lua, 0);
}

void home_find(void)
{
    const char *given = getenv("MOONGATE_HOME");
    if (given && given[0]) {
        if (is_home(given)) {
            use(given);
            return;
        }
        fprintf(stderr, "moongate: MOONGATE_HOME has no schema/main folder\n");
        exit(1);
    }
    char binary[PATH_MAX];
    ssize_t len = readlink("/proc/self/exe", binary, sizeof binary - 1);
    if (len > 0) {
        static const char *const PLACES[] = {"..", "../..", "../share/moongate"};
        binary[len] = '\0';
        char *slash = strrchr(binary, '/');
        *slash = '\0';
        for (size_t i = 0; i < sizeof PLACES / sizeof *PLACES; i++) {
            char place[PATH_MAX + 32], real[PATH_MAX];
            snprintf(place, sizeof place, "%s/%s", binary, PLACES[i]);
            if (realpath(place, real) && is_home(real)) {
                use(real);
                return;
            }
        }
    }
    fprintf(stderr, "moongate: the folder with lua/, plugins/ and schema/ was not found; set "
                    "MOONGATE_HOME\n");
    exit(1);
}

const char *home_path(const char *name)
{
    static char paths[16][PATH_MAX];
    static size_t count;
    const char *home = getenv("MOONGATE_HOME");
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%.3000s/%.900s", home ? home : ".", name);
    for (size_t i = 0; i < count; i++) {
        if (strcmp(paths[i], path) == 0)
            return paths[i];
    }
    if (count == 16)
        abort();
    memcpy(paths[count], path, sizeof path);
    return paths[count++];
}
