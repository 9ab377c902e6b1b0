#include "load/load.h"

static void put_hist(FILE *to, const char *name, const struct hist *hist)
{
    if (hist->count == 0)
        return;
    fprintf(to,
            ",\"%s_us\":{\"count\":%llu,\"mean\":%.1f,\"p50\":%.1f,\"p90\":%.1f,\"p95\":%.1f,"
            "\"p99\":%.1f,\"p999\":%.1f,\"max\":%.1f}",
            name, (unsigned long long)hist->count, (double)hist->sum / (double)hist->count / 1e3,
            hist_us(hist, 0.5), hist_us(hist, 0.9), hist_us(hist, 0.95), hist_us(hist, 0.99),
            hist_us(hist, 0.999), (double)hist->max / 1e3);
}

static uint64_t put_job(FILE *to, const struct job *job, double seconds)
{
    uint64_t failed = 0;
    fprintf(to, "{\"name\":\"%s\",\"done\":%llu,\"rps\":%.1f", job->name,
            (unsigned long long)job->done, (double)job->done / seconds);
    fprintf(to,
            ",\"refused\":%llu,\"aborted\":%llu,\"events\":%llu,\"bytes\":%llu,\"misread\":%llu",
            (unsigned long long)job->refused, (unsigned long long)job->aborted,
            (unsigned long long)job->events, (unsigned long long)job->bytes,
            (unsigned long long)job->misread);
    fputs(",\"failures\":{", to);
    const char *comma = "";
    for (int i = 0; i < FAIL_COUNT; i++) {
        failed += job->failures[i];
        if (job->failures[i] == 0)
            continue;
        fprintf(to, "%s\"%s\":%llu", comma, failure_names[i], (unsigned long long)job->failures[i]);
        comma = ",";
    }
    fputs("}", to);
    put_hist(to, "latency", &job->latency);
    put_hist(to, "first_byte", &job->first_byte);
    put_hist(to, "relay", &job->relay);
    put_hist(to, "gap", &job->gap);
    put_hist(to, "refusal", &job->refusal);
    fputs("}", to);
    return failed;
}

void report_print(FILE *to, double seconds, const struct watch *before, const struct watch *after)
{
    uint64_t done = 0, events = 0, failed = 0, refused = 0, aborted = 0;
    fprintf(to, "{\"seconds\":%.3f,\"connections\":%u,\"jobs\":[", seconds, load.conn_count);
    for (uint32_t i = 0; i < load.job_count; i++) {
        const struct job *job = load.jobs[i];
        fputs(i ? "," : "", to);
        failed += put_job(to, job, seconds);
        done += job->done;
        events += job->events;
        refused += job->refused;
        aborted += job->aborted;
    }
    fprintf(to,
            "],\"done\":%llu,\"rps\":%.1f,\"events\":%llu,\"refused\":%llu,\"aborted\":%llu,"
            "\"failed\":%llu",
            (unsigned long long)done, (double)done / seconds, (unsigned long long)events,
            (unsigned long long)refused, (unsigned long long)aborted, (unsigned long long)failed);
    if (load.mode == MODE_OPEN)
        fprintf(to, ",\"late\":%llu,\"queue_peak\":%zu", (unsigned long long)load.late,
                load.wait_peak);
    if (load.mode == MODE_HOLD)
        fprintf(to, ",\"held\":%llu,\"lost\":%llu", (unsigned long long)load.held,
                (unsigned long long)load.lost);
    if (load.watched) {
        struct watch_sum sums[WATCH_THREADS];
        uint64_t total = 0;
        size_t count = watch_diff(before, after, sums, WATCH_THREADS, &total);
        uint64_t events_all = load.drain > 0 ? load.all_events : events;
        fprintf(to, ",\"cpu_calls\":%llu,\"cpu_events\":%llu",
                (unsigned long long)(load.drain > 0 ? load.answered : done),
                (unsigned long long)events_all);
        fprintf(to,
                ",\"cpu_us\":%.1f,\"cores\":%.3f,\"rss_before_kb\":%llu,\"rss_kb\":%llu,"
                "\"rss_peak_kb\":%llu,\"files\":%u,\"threads_us\":{",
                (double)total / 1e3, (double)total / 1e9 / seconds,
                (unsigned long long)before->rss_kb, (unsigned long long)after->rss_kb,
                (unsigned long long)after->peak_kb, after->files);
        for (size_t i = 0; i < count; i++)
            fprintf(to, "%s\"%s\":%.1f", i ? "," : "", sums[i].name, (double)sums[i].ns / 1e3);
        fputs("}", to);
    }
    fputs("}\n", to);
    fflush(to);
}
