#pragma once
// Readers of the written forms that schemas know: times, durations, UUIDs, patterns. Pure; any
// thread. For schema*.c and their tests.
#include "base/err.h"
#include "base/slice.h"
#include "codec/schema.h"
#include <stdbool.h>
#include <stdint.h>

// "2024-05-06", "2024-05-06T07:08:09.123+02:00", "2024-05-06 07:08Z" → ms since 1970; without a
// zone it is UTC. Years 1970 to 9999.
GW_MUSTCHECK int schema_read_time(struct slice text, int64_t *ms);
// "2024-05-06T05:08:09.123Z" (milliseconds only when there are any); size ≥ 32. Gives the length.
size_t schema_format_time(int64_t ms, char *out, size_t size);
// "1.5" (seconds) or with a unit ms, s, m, h, d; not negative, to the millisecond.
GW_MUSTCHECK int schema_read_duration(struct slice text, int64_t *ms);
// 8-4-4-4-12 hex digits; out gets them in lower case.
GW_MUSTCHECK int schema_read_uuid(struct slice text, char out[37]);
bool schema_is_utf8(struct slice text);
size_t schema_count_chars(struct slice text); // of UTF-8
bool schema_match(const struct schema_pattern *pattern, struct slice text);
