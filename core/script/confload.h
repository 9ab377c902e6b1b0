#pragma once
// gateway.conf.lua → struct conf. The file runs in a restricted state: it may call env(name[,
// default]), file(path), secret(name), include(glob) and the pure libraries, and returns a plain
// table. Unknown keys are errors with a suggestion and, where Lua can tell, file:line. `.env`
// beside the file is read first when present; the process environment wins over it. Start-up and
// helper threads only.
#include "base/buf.h"
#include "base/err.h"
#include "base/slice.h"
#include "state/conf.h"

// problems gets one "file:line: what" per line. Gives a conf.
GW_MUSTCHECK int confload_file(const char *path, struct conf **out, struct buf *problems);
// Effective values and where each came from ("default", "file", "env PORT"), secrets masked.
GW_MUSTCHECK int confload_dump(const char *path, struct buf *out, struct buf *problems);
