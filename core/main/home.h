#pragma once
// Where the files that belong to the binary lie: lua/, plugins/, schema/. In order: the variable
// MOONGATE_HOME, the folder above the binary's (a checkout: build/moongate), and
// ../share/moongate (an installation). Main thread, at start.

// Finds it; aborts with a message when there is none. Sets MOONGATE_HOME for the whole process.
void home_find(void);
// A path below it; constant for the process's life (at most 16 different names).
const char *home_path(const char *name);
