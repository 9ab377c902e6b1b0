// What an access log line costs: pushes lines at a steady rate and prints the CPU time per line of
// the pushing thread and of the log thread. The lines go to standard error: a file or a pipe.
//
//   bench_log [LINES=100000] [RATE=20000] [BYTES=700] 2>FILE
#include "base/clock.h"
#include "base/log.h"
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define TICK_MS 1

// Run time in ns of this process's thread of a name.
static double thread_ns(const char *name)
{
    double sum = 0;
    DIR *dir = opendir("/proc/self/task");
    for (struct dirent *entry; dir && (entry = readdir(dir));) {
        char path[320], text[64] = "";
        double ns = 0;
        snprintf(path, sizeof path, "/proc/self/task/%s/comm", entry->d_name);
        FILE *file = fopen(path, "r");
        bool is_it = file && fscanf(file, "%63s", text) == 1 && strcmp(text, name) == 0;
        if (file)
            fclose(file);
        snprintf(path, sizeof path, "/proc/self/task/%s/schedstat", entry->d_name);
        file = is_it ? fopen(path, "r") : NULL;
        if (file && fscanf(file, "%lf", &ns) == 1)
            sum += ns;
        if (file)
            fclose(file);
    }
    if (dir)
        closedir(dir);
    return sum;
}

int main(int argc, char **argv)
{
    long lines = argc > 1 ? atol(argv[1]) : 100000, rate = argc > 2 ? atol(argv[2]) : 20000;
    size_t size = argc > 3 ? (size_t)atol(argv[3]) : 700;
    static char line[65536];
    if (lines < 1 || rate < 1 || size < 16 || size > sizeof line || log_start(2, LOG_INFO) != 0)
        return 2;
    memset(line, 'x', sizeof line);
    memcpy(line, "{\"a\":\"", 6);
    memcpy(line + size - 2, "\"}", 2);
    uint64_t start = clock_boot_ms();
    clock_t before = clock();
    double pushed_ns = 0;
    for (long i = 0; i < lines;) {
        long due = (long)(clock_boot_ms() - start + TICK_MS) * rate / 1000;
        struct timespec from, to;
        clock_gettime(CLOCK_THREAD_CPUTIME_ID, &from);
        for (; i < lines && i < due; i++)
            log_line(slice_of(line, size));
        clock_gettime(CLOCK_THREAD_CPUTIME_ID, &to);
        pushed_ns += (double)(to.tv_sec - from.tv_sec) * 1e9 + (double)(to.tv_nsec - from.tv_nsec);
        nanosleep(&(struct timespec){0, TICK_MS * 1000000L}, NULL);
    }
    double log_ns = thread_ns("log");
    log_stop();
    printf("%ld lines of %zu bytes: push %.2f us, log thread %.2f us CPU per line; %llu dropped; "
           "process %.2f us\n",
           lines, size, pushed_ns / 1e3 / (double)lines, log_ns / 1e3 / (double)lines,
           (unsigned long long)log_dropped(),
           (double)(clock() - before) * 1e6 / CLOCKS_PER_SEC / (double)lines);
    return 0;
}
