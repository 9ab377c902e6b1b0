// Written forms of times, durations, UUIDs and patterns.
#include "codec/schema_text.h"
#include "base/money.h"
#include <ctype.h>
#include <regex.h>
#include <stdio.h>

#define MS_PER_DAY INT64_C(86400000)
#define MAX_REPEATS 4096 // product of all counts in braces: what the compiled form grows with

// ---- times

struct reader {
    struct slice rest;
    bool is_bad;
};

static int64_t take_digits(struct reader *reader, size_t count)
{
    int64_t value = 0;
    if (reader->rest.len < count) {
        reader->is_bad = true;
        return 0;
    }
    for (size_t i = 0; i < count; i++) {
        char c = reader->rest.ptr[i];
        if (c < '0' || c > '9')
            reader->is_bad = true;
        value = value * 10 + (c - '0');
    }
    reader->rest = slice_from(reader->rest, count);
    return reader->is_bad ? 0 : value;
}

static bool take_one(struct reader *reader, const char *any_of)
{
    if (reader->rest.len == 0 || !reader->rest.ptr[0] || !strchr(any_of, reader->rest.ptr[0]))
        return false;
    reader->rest = slice_from(reader->rest, 1);
    return true;
}

static int64_t days_before_year(int64_t year)
{
    int64_t y = year - 1;
    return y * 365 + y / 4 - y / 100 + y / 400;
}

static bool is_leap(int64_t year)
{
    return (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
}

static int month_days(int64_t year, int64_t month)
{
    static const int days[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
    return days[month - 1] + (month == 2 && is_leap(year));
}

static int64_t take_fraction_ms(struct reader *reader)
{
    int64_t ms = 0, unit = 100;
    size_t count = 0;
    while (reader->rest.len && isdigit((unsigned char)reader->rest.ptr[0]) && count < 9) {
        ms += (reader->rest.ptr[0] - '0') * unit;
        unit /= 10;
        count++;
        reader->rest = slice_from(reader->rest, 1);
    }
    if (count == 0)
        reader->is_bad = true;
    return ms;
}

int schema_read_time(struct slice text, int64_t *ms)
{
    struct reader reader = {text, false};
    int64_t year = take_digits(&reader, 4);
    bool has_dash = take_one(&reader, "-");
    int64_t month = take_digits(&reader, 2);
    has_dash = take_one(&reader, "-") && has_dash;
    int64_t day = take_digits(&reader, 2);
    if (reader.is_bad || !has_dash || year < 1970 || month < 1 || month > 12 || day < 1 ||
        day > month_days(year, month))
        return GW_EINVAL;
    int64_t days = days_before_year(year) - days_before_year(1970) + day - 1;
    for (int64_t m = 1; m < month; m++)
        days += month_days(year, m);
    int64_t hour = 0, minute = 0, second = 0, fraction = 0, offset = 0;
    if (reader.rest.len) {
        if (!take_one(&reader, "Tt "))
            return GW_EINVAL;
        hour = take_digits(&reader, 2);
        if (!take_one(&reader, ":"))
            return GW_EINVAL;
        minute = take_digits(&reader, 2);
        if (take_one(&reader, ":")) {
            second = take_digits(&reader, 2);
            if (take_one(&reader, ".,"))
                fraction = take_fraction_ms(&reader);
        }
        if (!take_one(&reader, "Zz") && reader.rest.len) {
            // A '+' that a query did not encode arrives as a space.
            bool is_west = reader.rest.ptr[0] == '-';
            if (!take_one(&reader, "+- "))
                return GW_EINVAL;
            int64_t hours = take_digits(&reader, 2);
            take_one(&reader, ":");
            int64_t minutes = reader.rest.len ? take_digits(&reader, 2) : 0;
            if (hours > 23 || minutes > 59)
                return GW_EINVAL;
            offset = (hours * 60 + minutes) * (is_west ? -60000 : 60000);
        }
    }
    if (reader.is_bad || reader.rest.len || hour > 23 || minute > 59 || second > 59)
        return GW_EINVAL;
    int64_t value =
        days * MS_PER_DAY + hour * 3600000 + minute * 60000 + second * 1000 + fraction - offset;
    if (value < 0)
        return GW_EINVAL;
    *ms = value;
    return 0;
}

size_t schema_format_time(int64_t ms, char *out, size_t size)
{
    if (ms < 0)
        ms = 0;
    int64_t days = ms / MS_PER_DAY, rest = ms % MS_PER_DAY;
    int64_t year = 1970 + days / 366; // never too late
    while (days_before_year(year + 1) - days_before_year(1970) <= days)
        year++;
    days -= days_before_year(year) - days_before_year(1970);
    int64_t month = 1;
    while (days >= month_days(year, month))
        days -= month_days(year, month++);
    int len = snprintf(out, size, "%04lld-%02d-%02dT%02d:%02d:%02d", (long long)year, (int)month,
                       (int)days + 1, (int)(rest / 3600000), (int)(rest / 60000 % 60),
                       (int)(rest / 1000 % 60));
    if (rest % 1000)
        len += snprintf(out + len, size - (size_t)len, ".%03d", (int)(rest % 1000));
    len += snprintf(out + len, size - (size_t)len, "Z");
    return (size_t)len;
}

int schema_read_duration(struct slice text, int64_t *ms)
{
    static const struct {
        const char *unit;
        int64_t ms;
    } units[] = {{"ms", 1},      {"s", 1000},       {"m", 60000},
                 {"h", 3600000}, {"d", MS_PER_DAY}, {"", 1000}};
    int64_t nano = 0;
    for (size_t i = 0; i < sizeof units / sizeof units[0]; i++) {
        if (!slice_ends(text, units[i].unit))
            continue;
        struct slice number = slice_of(text.ptr, text.len - strlen(units[i].unit));
        if (number.len == 0 || money_parse(number, &nano) != 0)
            return GW_EINVAL;
        __int128 value = (__int128)nano * units[i].ms;
        if (value < 0 || value % 1000000000 || value / 1000000000 > INT64_C(9000000000000))
            return GW_EINVAL;
        *ms = (int64_t)(value / 1000000000);
        return 0;
    }
    return GW_EINVAL;
}

// ---- small ones

int schema_read_uuid(struct slice text, char out[37])
{
    if (text.len != 36)
        return GW_EINVAL;
    for (size_t i = 0; i < 36; i++) {
        char c = text.ptr[i];
        bool is_dash = i == 8 || i == 13 || i == 18 || i == 23;
        if (is_dash ? c != '-' : !isxdigit((unsigned char)c))
            return GW_EINVAL;
        out[i] = c >= 'A' && c <= 'F' ? (char)(c + 32) : c;
    }
    out[36] = '\0';
    return 0;
}

bool schema_is_utf8(struct slice text)
{
    const unsigned char *p = (const unsigned char *)text.ptr, *end = p + text.len;
    while (p < end) {
        if (*p < 0x80) {
            p++;
            continue;
        }
        size_t more = *p >= 0xf0 ? 3 : *p >= 0xe0 ? 2 : 1;
        if (*p < 0xc2 || *p > 0xf4 || (size_t)(end - p) <= more)
            return false;
        if ((p[0] == 0xe0 && p[1] < 0xa0) || (p[0] == 0xed && p[1] > 0x9f) ||
            (p[0] == 0xf0 && p[1] < 0x90) || (p[0] == 0xf4 && p[1] > 0x8f))
            return false;
        for (size_t i = 1; i <= more; i++)
            if ((p[i] & 0xc0) != 0x80)
                return false;
        p += more + 1;
    }
    return true;
}

size_t schema_count_chars(struct slice text)
{
    size_t count = 0;
    for (size_t i = 0; i < text.len; i++)
        count += (text.ptr[i] & 0xc0) != 0x80;
    return count;
}

size_t schema_distance(struct slice a, struct slice b)
{
    size_t row[64];
    if (a.len > 63 || b.len > 63)
        return SIZE_MAX;
    for (size_t j = 0; j <= b.len; j++)
        row[j] = j;
    for (size_t i = 1; i <= a.len; i++) {
        size_t diagonal = row[0];
        row[0] = i;
        for (size_t j = 1; j <= b.len; j++) {
            size_t best = diagonal + (tolower((unsigned char)a.ptr[i - 1]) !=
                                      tolower((unsigned char)b.ptr[j - 1]));
            if (row[j] + 1 < best)
                best = row[j] + 1;
            if (row[j - 1] + 1 < best)
                best = row[j - 1] + 1;
            diagonal = row[j];
            row[j] = best;
        }
    }
    return row[b.len];
}

// ---- patterns

struct schema_pattern {
    regex_t regex;
};

static void free_pattern(void *arg)
{
    struct schema_pattern *pattern = arg;
    regfree(&pattern->regex);
}

// The product of the counts in braces, so that nested ones cannot ask for megabytes.
static const char *check_pattern(struct slice pattern)
{
    uint64_t product = 1;
    bool is_class = false;
    for (size_t i = 0; i < pattern.len; i++) {
        char c = pattern.ptr[i];
        if (c == '\0')
            return "must not hold a NUL byte";
        if (c == '\\' && !is_class) {
            if (++i < pattern.len && isalnum((unsigned char)pattern.ptr[i]))
                return "a backslash may only stand before punctuation (no \\d, \\w, \\1)";
        } else if (c == '[') {
            if (is_class && i + 1 < pattern.len && strchr(":.=", pattern.ptr[i + 1]))
                return "classes by name are not known; write [0-9A-Za-z]";
            is_class = true;
            if (i + 1 < pattern.len && pattern.ptr[i + 1] == '^')
                i++;
            if (i + 1 < pattern.len && pattern.ptr[i + 1] == ']')
                i++;
        } else if (c == ']') {
            is_class = false;
        } else if (c == '{' && !is_class) {
            uint64_t count = 0, largest = 1;
            for (i++; i < pattern.len && pattern.ptr[i] != '}'; i++) {
                if (pattern.ptr[i] == ',') {
                    count = 0;
                    continue;
                }
                if (!isdigit((unsigned char)pattern.ptr[i]))
                    return "a brace must hold counts; write \\{ for the character";
                count = count * 10 + (uint64_t)(pattern.ptr[i] - '0');
                if (count > 255)
                    return "a count is above 255";
                largest = count > largest ? count : largest;
            }
            product *= largest;
            if (product > MAX_REPEATS)
                return "the counts multiply to too much";
        }
    }
    return NULL;
}

int schema_set_pattern(struct schema *schema, struct slice pattern, struct arena *arena,
                       const char **why)
{
    *why = "too long";
    if (pattern.len > SCHEMA_MAX_PATTERN)
        return GW_EINVAL;
    *why = check_pattern(pattern);
    if (*why)
        return GW_EINVAL;
    *why = "not a regular expression";
    char source[SCHEMA_MAX_PATTERN + 8];
    snprintf(source, sizeof source, "^(%.*s)$", SLICE_FMT(pattern));
    struct schema_pattern *compiled = arena_zalloc(arena, sizeof *compiled);
    schema->pattern = arena_copy(arena, pattern);
    if (!compiled || !schema->pattern.ptr)
        return GW_ENOMEM;
    if (regcomp(&compiled->regex, source, REG_EXTENDED | REG_NOSUB) != 0)
        return GW_EINVAL;
    int err = arena_on_free(arena, free_pattern, compiled);
    if (err) {
        regfree(&compiled->regex);
        return err;
    }
    schema->compiled = compiled;
    return 0;
}

bool schema_match(const struct schema_pattern *pattern, struct slice text)
{
    char copy[SCHEMA_MAX_MATCHED + 1];
    if (text.len > SCHEMA_MAX_MATCHED || (text.len && memchr(text.ptr, '\0', text.len)))
        return false;
    if (text.len)
        memcpy(copy, text.ptr, text.len);
    copy[text.len] = '\0';
    return regexec(&pattern->regex, copy, 0, NULL, 0) == 0;
}
