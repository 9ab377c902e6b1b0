#include "common/watch.h"

#include <dirent.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static size_t read_text(const char *path, char *text, size_t size)
{
    FILE *file = fopen(path, "re");
    size_t len = file ? fread(text, 1, size - 1, file) : 0;
    if (file)
        fclose(file);
    text[len] = '\0';
    return len;
}

static uint64_t field_kb(const char *status, const char *name)
{
    const char *at = strstr(status, name);
    return at ? strtoull(at + strlen(name), NULL, 10) : 0;
}

static void read_process(pid_t pid, struct watch *watch)
{
    char path[300], text[4096];
    snprintf(path, sizeof path, "/proc/%d/status", (int)pid);
    if (read_text(path, text, sizeof text) == 0)
        return;
    watch->rss_kb += field_kb(text, "VmRSS:");
    watch->peak_kb += field_kb(text, "VmHWM:");
    snprintf(path, sizeof path, "/proc/%d/task", (int)pid);
    DIR *tasks = opendir(path);
    for (struct dirent *entry; tasks && (entry = readdir(tasks)) != NULL;) {
        if (entry->d_name[0] == '.' || watch->count == WATCH_THREADS)
            continue;
        struct watch_thread *thread = &watch->threads[watch->count];
        snprintf(path, sizeof path, "/proc/%d/task/%s/schedstat", (int)pid, entry->d_name);
        if (read_text(path, text, sizeof text) == 0)
            continue;
        thread->pid = pid;
        thread->tid = atoi(entry->d_name);
        thread->ns = strtoull(text, NULL, 10);
        snprintf(path, sizeof path, "/proc/%d/task/%s/comm", (int)pid, entry->d_name);
        read_text(path, text, sizeof text);
        text[strcspn(text, "\n")] = '\0';
        snprintf(thread->name, sizeof thread->name, "%.15s", text);
        watch->count++;
    }
    if (tasks)
        closedir(tasks);
}

static uint32_t count_files(pid_t pid)
{
    char path[64];
    uint32_t count = 0;
    snprintf(path, sizeof path, "/proc/%d/fd", (int)pid);
    DIR *files = opendir(path);
    for (struct dirent *entry; files && (entry = readdir(files)) != NULL;)
        count += entry->d_name[0] != '.';
    if (files)
        closedir(files);
    return count;
}

static pid_t parent_of(pid_t pid)
{
    char path[64], text[512];
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    read_text(path, text, sizeof text);
    const char *end = strrchr(text, ')'); // the name may hold anything
    int parent = 0;
    if (!end || sscanf(end, ") %*c %d", &parent) != 1)
        return 0;
    return parent;
}

void watch_read(pid_t pid, struct watch *watch)
{
    pid_t family[256] = {pid};
    size_t count = 1;
    memset(watch, 0, sizeof *watch);
    read_process(pid, watch);
    watch->files = count_files(pid);
    // /proc is in the order of numbers; a child may have a smaller one than its parent.
    for (bool is_grown = true; is_grown;) {
        is_grown = false;
        DIR *all = opendir("/proc");
        for (struct dirent *entry; all && (entry = readdir(all)) != NULL;) {
            pid_t child = atoi(entry->d_name);
            pid_t parent = child > 0 ? parent_of(child) : 0;
            bool is_ours = false, is_known = false;
            for (size_t i = 0; i < count; i++) {
                is_ours |= family[i] == parent;
                is_known |= family[i] == child;
            }
            if (parent > 0 && is_ours && !is_known && count < 256) {
                family[count++] = child;
                read_process(child, watch);
                is_grown = true;
            }
        }
        if (all)
            closedir(all);
    }
}

static int by_ns(const void *a, const void *b)
{
    uint64_t left = ((const struct watch_sum *)a)->ns, right = ((const struct watch_sum *)b)->ns;
    return left < right ? 1 : left > right ? -1 : 0;
}

size_t watch_diff(const struct watch *before, const struct watch *after, struct watch_sum *sums,
                  size_t max, uint64_t *total_ns)
{
    size_t count = 0;
    *total_ns = 0;
    for (size_t i = 0; i < after->count; i++) {
        const struct watch_thread *now = &after->threads[i];
        uint64_t ns = now->ns;
        for (size_t k = 0; k < before->count; k++)
            if (before->threads[k].tid == now->tid && before->threads[k].ns <= now->ns)
                ns = now->ns - before->threads[k].ns;
        *total_ns += ns;
        size_t at = 0;
        while (at < count && strcmp(sums[at].name, now->name) != 0)
            at++;
        if (at == count && count == max)
            continue;
        if (at == count) {
            sums[count].ns = 0;
            memcpy(sums[count++].name, now->name, sizeof now->name);
        }
        sums[at].ns += ns;
    }
    qsort(sums, count, sizeof *sums, by_ns);
    return count;
}
