// The system's clocks and randomness, and ISO 8601 text.
#include "base/clock.h"
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

static int64_t system_wall_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static uint64_t system_boot_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_BOOTTIME, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static int system_random(void *out, size_t len)
{
    char *at = out;
    while (len > 0) {
        ssize_t got = getrandom(at, len, 0);
        if (got < 0) {
            if (errno == EINTR)
                continue;
            return GW_EIO;
        }
        at += got;
        len -= (size_t)got;
    }
    return 0;
}

static const struct clock_source system_source = {system_wall_ms, system_boot_ns, system_random};
static const struct clock_source *source = &system_source;
static atomic_uint generation = 1;
static pthread_once_t fork_once = PTHREAD_ONCE_INIT;

static void on_fork_child(void)
{
    atomic_fetch_add(&generation, 1);
}

static void watch_forks(void)
{
    // Without memory for the handler a child would only reuse buffered id bits.
    (void)pthread_atfork(NULL, NULL, on_fork_child);
}

int64_t clock_wall_ms(void)
{
    return source->wall_ms();
}

uint64_t clock_boot_ns(void)
{
    return source->boot_ns();
}

uint64_t clock_coarse_ms(void)
{
    if (source != &system_source)
        return source->boot_ns() / 1000000u;
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    return (uint64_t)now.tv_sec * 1000u + (uint64_t)now.tv_nsec / 1000000u;
}

int clock_random(void *out, size_t len)
{
    return source->random(out, len);
}

void clock_use(const struct clock_source *other)
{
    source = other ? other : &system_source;
    atomic_fetch_add(&generation, 1);
}

uint32_t clock_generation(void)
{
    pthread_once(&fork_once, watch_forks);
    return atomic_load_explicit(&generation, memory_order_relaxed);
}

// Days since 1970-01-01 of a date of the proleptic Gregorian calendar. Years are counted from
// March, so that the leap day is a year's last; 400 years are 146,097 days.
static int64_t days_of(int64_t year, int month, int day)
{
    year -= month <= 2;
    int64_t era = (year >= 0 ? year : year - 399) / 400;
    int64_t in_era = year - era * 400;
    int64_t in_year = (153 * (month + (month > 2 ? -3 : 9)) + 2) / 5 + day - 1;
    return era * 146097 + in_era * 365 + in_era / 4 - in_era / 100 + in_year - 719468;
}

static void date_of(int64_t days, int64_t *year, int *month, int *day)
{
    days += 719468;
    int64_t era = (days >= 0 ? days : days - 146096) / 146097;
    int64_t in_era = days - era * 146097;
    int64_t year_in = (in_era - in_era / 1460 + in_era / 36524 - in_era / 146096) / 365;
    int64_t in_year = in_era - (365 * year_in + year_in / 4 - year_in / 100);
    int64_t from_march = (5 * in_year + 2) / 153;
    *day = (int)(in_year - (153 * from_march + 2) / 5 + 1);
    *month = (int)(from_march < 10 ? from_march + 3 : from_march - 9);
    *year = year_in + era * 400 + (*month <= 2);
}

#define DAY_MS INT64_C(86400000)
#define MIN_MS INT64_C(-62167219200000) // 0000-01-01
#define MAX_MS INT64_C(253402300799999) // 9999-12-31

static void put_digits(char *out, int count, int value)
{
    for (; count > 0; value /= 10)
        out[--count] = (char)('0' + value % 10);
}

void clock_format_iso(int64_t wall_ms, char *out, size_t size)
{
    if (wall_ms < MIN_MS)
        wall_ms = MIN_MS;
    if (wall_ms > MAX_MS)
        wall_ms = MAX_MS;
    int64_t days = wall_ms / DAY_MS - (wall_ms % DAY_MS < 0);
    int64_t rest = wall_ms - days * DAY_MS;
    int64_t year;
    int month, day;
    date_of(days, &year, &month, &day);
    char text[] = "0000-00-00T00:00:00.000Z";
    put_digits(text, 4, (int)year);
    put_digits(text + 5, 2, month);
    put_digits(text + 8, 2, day);
    put_digits(text + 11, 2, (int)(rest / 3600000));
    put_digits(text + 14, 2, (int)(rest / 60000 % 60));
    put_digits(text + 17, 2, (int)(rest / 1000 % 60));
    put_digits(text + 20, 3, (int)(rest % 1000));
    if (size == 0)
        return;
    size_t len = sizeof text - 1 < size ? sizeof text - 1 : size - 1;
    memcpy(out, text, len);
    out[len] = '\0';
}

struct scan {
    const char *at, *end;
};

// Reads exactly count digits.
static bool scan_digits(struct scan *scan, int count, int *out)
{
    *out = 0;
    for (int i = 0; i < count; i++) {
        if (scan->at == scan->end || *scan->at < '0' || *scan->at > '9')
            return false;
        *out = *out * 10 + (*scan->at++ - '0');
    }
    return true;
}

static bool scan_char(struct scan *scan, const char *any, char *out)
{
    if (scan->at == scan->end)
        return false;
    for (; *any; any++) {
        if (*scan->at == *any) {
            if (out)
                *out = *any;
            scan->at++;
            return true;
        }
    }
    return false;
}

static bool scan_date(struct scan *scan, int64_t *days)
{
    static const int month_days[12] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
    int year, month, day;
    if (!scan_digits(scan, 4, &year) || !scan_char(scan, "-", NULL) ||
        !scan_digits(scan, 2, &month) || !scan_char(scan, "-", NULL) || !scan_digits(scan, 2, &day))
        return false;
    if (month < 1 || month > 12 || day < 1)
        return false;
    bool is_leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
    if (day > month_days[month - 1] + (month == 2 && is_leap))
        return false;
    *days = days_of(year, month, day);
    return true;
}

static bool scan_time(struct scan *scan, int64_t *ms)
{
    int hour, minute, second, fraction = 0;
    if (!scan_digits(scan, 2, &hour) || !scan_char(scan, ":", NULL) ||
        !scan_digits(scan, 2, &minute) || !scan_char(scan, ":", NULL) ||
        !scan_digits(scan, 2, &second))
        return false;
    // 60 is a leap second: the start of the next minute.
    if (hour > 23 || minute > 59 || second > 60)
        return false;
    if (scan_char(scan, ".", NULL)) {
        int digit, count = 0;
        for (; scan_digits(scan, 1, &digit); count++) {
            if (count < 3)
                fraction = fraction * 10 + digit;
        }
        if (count == 0)
            return false;
        for (; count < 3; count++)
            fraction *= 10;
    }
    *ms = ((int64_t)hour * 60 + minute) * 60000 + (int64_t)second * 1000 + fraction;
    return true;
}

static bool scan_offset(struct scan *scan, int64_t *ms)
{
    char sign;
    int hour, minute;
    *ms = 0;
    if (scan_char(scan, "Zz", NULL))
        return true;
    if (!scan_char(scan, "+-", &sign) || !scan_digits(scan, 2, &hour) ||
        !scan_char(scan, ":", NULL) || !scan_digits(scan, 2, &minute))
        return false;
    if (hour > 23 || minute > 59)
        return false;
    *ms = (int64_t)(hour * 60 + minute) * 60000 * (sign == '-' ? -1 : 1);
    return true;
}

int clock_parse_iso(const char *text, size_t len, int64_t *wall_ms)
{
    struct scan scan = {text, text + len};
    int64_t days, time = 0, offset = 0;
    if (!text || !scan_date(&scan, &days))
        return GW_EINVAL;
    if (scan.at != scan.end) {
        if (!scan_char(&scan, "Tt ", NULL) || !scan_time(&scan, &time) ||
            !scan_offset(&scan, &offset) || scan.at != scan.end)
            return GW_EINVAL;
    }
    *wall_ms = days * DAY_MS + time - offset;
    return 0;
}
