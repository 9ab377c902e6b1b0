#pragma once
// The parts log.c is made of, for it and the tests alone: text of a line (log_text.c) and hiding of
// secrets (log_secret.c). Any thread.
#include "base/buf.h"
#include "base/log.h"

#define LOG_EVENT_MAX ((size_t)64 * 1024)
#define LOG_LINE_MAX ((size_t)256 * 1024)
#define LOG_SECRET_MIN ((size_t)8)
#define LOG_SECRET_MAX ((size_t)64 * 1024)
#define LOG_SECRET_COUNT ((size_t)4096)

// Appends text as the inside of a JSON string. Control bytes (C0, DEL, C1) become escapes, each
// maximal invalid UTF-8 run \ufffd.
GW_MUSTCHECK int log_escape(struct buf *out, struct slice text);
// Appends one event line with its newline. Raises out's cap as needed.
GW_MUSTCHECK int log_format_event(struct buf *out, enum log_level level, const char *event,
                                  const struct log_field *fields);
// Appends a finished line with its newline; control bytes in it become spaces. GW_ETOOBIG.
GW_MUSTCHECK int log_format_line(struct buf *out, struct slice json);
// Appends line with every registered secret replaced.
GW_MUSTCHECK int log_hide_in(struct slice line, struct buf *out);
