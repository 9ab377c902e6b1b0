#pragma once
// Structured logs: one JSON object per line. Callers never wait for the disk or a blocked pipe: a
// line goes into a bounded queue that one log thread writes; when it is full the line is dropped
// and counted. Control bytes are escaped. Secrets have no way in: there is no field type for them.
//
//     log_event(LOG_WARN, "upstream_failed", LOG_STR("upstream", name), LOG_INT("status", 502));
//
// Any thread.
#include "base/err.h"
#include "base/slice.h"
#include <stdint.h>

enum log_level { LOG_DEBUG, LOG_INFO, LOG_WARN, LOG_ERROR };

enum log_kind { LOG_KIND_END, LOG_KIND_TEXT, LOG_KIND_INT, LOG_KIND_BOOL, LOG_KIND_RAW };
struct log_field {
    enum log_kind kind;
    const char *name;
    struct slice text;
    int64_t number;
};

#define LOG_STR(key, value) ((struct log_field){LOG_KIND_TEXT, (key), slice_str(value), 0})
#define LOG_SLICE(key, value) ((struct log_field){LOG_KIND_TEXT, (key), (value), 0})
#define LOG_INT(key, value) ((struct log_field){LOG_KIND_INT, (key), SLICE_NONE, (int64_t)(value)})
#define LOG_BOOL(key, value) ((struct log_field){LOG_KIND_BOOL, (key), SLICE_NONE, (value) ? 1 : 0})
// Text that already is JSON.
#define LOG_JSON(key, value) ((struct log_field){LOG_KIND_RAW, (key), (value), 0})
#define log_event(level, event, ...)                                                               \
    log_write((level), (event),                                                                    \
              (const struct log_field[]){__VA_ARGS__, {LOG_KIND_END, NULL, {NULL, 0}, 0}})

// Starts the log thread on a descriptor (normally 2). Before it, lines are written directly.
GW_MUSTCHECK int log_start(int fd, enum log_level level);
void log_stop(void); // writes what is queued (at most 1 s), joins the thread
void log_set_level(enum log_level level);
enum log_level log_level_get(void);
bool log_is_on(enum log_level level);
// Sends the lines to a file; opened again at log_reopen (SIGUSR1). NULL path: back to the fd. Opens
// the file on the calling thread, to be able to say that it failed: not for an event loop's thread.
// log_reopen only asks the log thread and may be called in a signal handler.
GW_MUSTCHECK int log_to_file(const char *path);
void log_reopen(void);
// fields ends with LOG_KIND_END; ts, level and event are added.
void log_write(enum log_level level, const char *event, const struct log_field *fields);
// A finished JSON line (access log): written as it is plus a newline. At most 256 KiB. Fields that
// would make a line of log_write longer than 64 KiB are left out ("truncated":true).
void log_line(struct slice json);
uint64_t log_dropped(void); // lines lost to a full queue or a failed write since start
// Registers bytes (a provider key, a secret) that must never appear in a line: each occurrence is
// replaced by "[secret]" when the line is written, also in its JSON-escaped form. Registered twice
// it needs log_forget_secret twice. GW_EINVAL: under 8 bytes or over 64 KiB; GW_EFULL: 4,096 are
// kept.
GW_MUSTCHECK int log_hide_secret(struct slice secret);
void log_forget_secret(struct slice secret);
