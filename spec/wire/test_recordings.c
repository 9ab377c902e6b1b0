// Every recording through parser and dialect: against the plain walk of oracle.c, against the
// hand-made recordings' expect.json, and the same for every split of the bytes.
//
// A two-way split is not run from the first byte to the last. All state (parser and reader) is kept
// at each event border of the whole run; a split at k starts from the border before the event
// before k and runs until the state equals the whole run's state at a border again: from there on
// both runs are the same run.
#include "codec/sse.h"
#include "wire/oracle.h"
#include <check.h>
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <yyjson.h>

#define MAX_RECORDINGS 2000
#define FULL_SPLIT_LIMIT 16384
#define SEEDED_SPLITS 1000
#define SEEDED_CHOPS 12

struct recording {
    char *dir;
    enum dialect_id id;
    enum dialect_op op;
    bool is_own, has_passed;
};

static struct recording recordings[MAX_RECORDINGS];
// As many as the folder had when this was written: what is missing without it is counted.
#define SHARED_RECORDINGS 439

static int recording_count, shared_count, own_count, skipped_count, stream_count, split_count,
    failed_count, passed_count;

// ---- files ----

static char *read_file(const char *dir, const char *name, size_t *len)
{
    char path[1024];
    snprintf(path, sizeof(path), "%s/%s", dir, name);
    FILE *file = fopen(path, "rb");
    if (file == NULL)
        return NULL;
    fseek(file, 0, SEEK_END);
    long size = ftell(file);
    rewind(file);
    char *bytes = malloc((size_t)size + 1);
    ck_assert_uint_eq(fread(bytes, 1, (size_t)size, file), (size_t)size);
    bytes[size] = '\0';
    *len = (size_t)size;
    fclose(file);
    return bytes;
}

static void add_recording(const char *base, const char *dir, const char *api, bool is_own)
{
    static const struct {
        const char *api;
        enum dialect_id id;
        enum dialect_op op;
    } APIS[] = {{"chat", DIALECT_OPENAI, DIALECT_OP_CHAT},
                {"completions", DIALECT_OPENAI, DIALECT_OP_COMPLETIONS},
                {"embeddings", DIALECT_OPENAI, DIALECT_OP_EMBEDDINGS},
                {"messages", DIALECT_ANTHROPIC, DIALECT_OP_MESSAGES},
                {"count_tokens", DIALECT_ANTHROPIC, DIALECT_OP_COUNT_TOKENS},
                {"responses", DIALECT_RESPONSES, DIALECT_OP_RESPONSES}};
    char path[1024];
    for (size_t i = 0; i < sizeof(APIS) / sizeof(APIS[0]); i++) {
        if (strcmp(api, APIS[i].api) != 0)
            continue;
        gw_require(recording_count < MAX_RECORDINGS);
        snprintf(path, sizeof(path), "%s/%s", base, dir);
        recordings[recording_count++] =
            (struct recording){strdup(path), APIS[i].id, APIS[i].op, is_own, false};
        *(is_own ? &own_count : &shared_count) += 1;
        return;
    }
    skipped_count++; // another API (models, generateContent, …)
}

static void find_shared(void)
{
    const char *shared = getenv("MOONGATE_SHARED");
    char base[512], line[2048];
    snprintf(base, sizeof(base), "%s/fixtures", shared != NULL ? shared : "../shared");
    char index[600];
    snprintf(index, sizeof(index), "%s/INDEX.tsv", base);
    FILE *file = fopen(index, "r");
    if (file == NULL) {
        printf("wire: %d skipped: there are no shared recordings at %s\n", SHARED_RECORDINGS, base);
        return;
    }
    gw_require(fgets(line, sizeof(line), file) != NULL); // head
    while (fgets(line, sizeof(line), file) != NULL) {
        char *save, *dir = strtok_r(line, "\t", &save);
        strtok_r(NULL, "\t", &save);
        char *api = strtok_r(NULL, "\t", &save);
        if (dir != NULL && api != NULL)
            add_recording(base, dir, api, false);
    }
    fclose(file);
}

static void find_own(void)
{
    static const char *const BASE = "spec/fixtures";
    struct dirent **providers, **apis, **names;
    int n = scandir(BASE, &providers, NULL, alphasort);
    for (int i = 0; i < n; i++) {
        char dir[512];
        snprintf(dir, sizeof(dir), "%s/%s", BASE, providers[i]->d_name);
        int m = providers[i]->d_name[0] == '.' ? -1 : scandir(dir, &apis, NULL, alphasort);
        for (int k = 0; k < m; k++) {
            char api_dir[800];
            snprintf(api_dir, sizeof(api_dir), "%s/%s", dir, apis[k]->d_name);
            int c = apis[k]->d_name[0] == '.' ? -1 : scandir(api_dir, &names, NULL, alphasort);
            for (int j = 0; j < c; j++) {
                if (names[j]->d_name[0] != '.')
                    add_recording(api_dir, names[j]->d_name, apis[k]->d_name, true);
                free(names[j]);
            }
            if (c >= 0)
                free(names);
            free(apis[k]);
        }
        if (m >= 0)
            free(apis);
        free(providers[i]);
    }
    if (n >= 0)
        free(providers);
}

// ---- one run ----

struct seen {
    uint64_t start, end, digest; // of name and data
    enum dialect_class class;
    bool has_text, has_data;
    enum event_block block;
    uint32_t index;
    size_t text_start, text_end;
};

struct run {
    struct sse sse;
    struct dialect_reader reader;
    struct seen *events;
    size_t count, capacity;
    struct buf texts[4]; // decoded, by block; only when wanted
    bool wants_text;
    // A partial run is compared with the whole one as it goes.
    const struct run *whole;
    size_t at;
    bool differs;
};

static uint64_t digest(uint64_t hash, struct slice bytes)
{
    uint64_t word;
    for (; bytes.len >= sizeof(word); bytes = slice_from(bytes, sizeof(word))) {
        memcpy(&word, bytes.ptr, sizeof(word));
        hash = (hash ^ word) * UINT64_C(0x9E3779B97F4A7C15);
        hash ^= hash >> 29;
    }
    for (size_t i = 0; i < bytes.len; i++)
        hash = (hash ^ (unsigned char)bytes.ptr[i]) * UINT64_C(1099511628211);
    return hash * 31 + bytes.len;
}

static int on_event(void *user, const struct sse_event *event)
{
    struct run *run = user;
    struct dialect_info info;
    if (run->whole != NULL) // by shapes, against the scan of every event
        dialect_inspect(&run->reader, event, &info);
    else
        run->reader.dialect->inspect(&run->reader, event, &info);
    struct seen seen = {.start = event->start,
                        .end = event->end,
                        .digest = digest(digest(14695981039346656037u, event->name), event->data),
                        .class = info.class,
                        .has_text = info.has_text,
                        .has_data = event->has_data,
                        .block = info.block,
                        .index = info.index,
                        .text_start = info.text_start,
                        .text_end = info.text_end};
    if (info.has_text) {
        ck_assert_uint_lt(info.text_start, info.text_end);
        ck_assert_uint_le(info.text_end, event->data.len);
        ck_assert_int_eq(event->data.ptr[info.text_start], '"');
        ck_assert_int_eq(event->data.ptr[info.text_end - 1], '"');
    }
    if (run->wants_text && info.has_text) {
        struct buf *text = &run->texts[info.block];
        struct slice inside =
            slice_of(event->data.ptr + info.text_start + 1, info.text_end - info.text_start - 2);
        char *out = buf_room(text, inside.len + 1);
        ck_assert_ptr_nonnull(out);
        buf_grew(text, dialect_decode(inside, out, inside.len + 1));
    }
    if (run->whole != NULL) {
        size_t i = run->at++;
        if (i >= run->whole->count ||
            memcmp(&run->whole->events[i].digest, &seen.digest, sizeof(seen.digest)) != 0 ||
            run->whole->events[i].class != seen.class ||
            run->whole->events[i].start != seen.start || run->whole->events[i].end != seen.end ||
            run->whole->events[i].has_text != seen.has_text ||
            run->whole->events[i].has_data != seen.has_data ||
            run->whole->events[i].block != seen.block ||
            run->whole->events[i].index != seen.index ||
            run->whole->events[i].text_start != seen.text_start ||
            run->whole->events[i].text_end != seen.text_end)
            run->differs = true;
        return 0;
    }
    if (run->count == run->capacity) {
        run->capacity = run->capacity ? run->capacity * 2 : 64;
        run->events = realloc(run->events, run->capacity * sizeof(*run->events));
    }
    run->events[run->count++] = seen;
    return 0;
}

static void run_init(struct run *run, const struct recording *recording)
{
    memset(run, 0, sizeof(*run));
    sse_init(&run->sse, 0);
    dialect_reader_init(&run->reader, recording->id, recording->op);
}

static void run_free(struct run *run)
{
    sse_free(&run->sse);
    for (int i = 0; i < 4; i++)
        buf_free(&run->texts[i]);
    free(run->events);
}

static bool same_reader(const struct dialect_reader *a, const struct dialect_reader *b)
{
    return a->text_bytes == b->text_bytes && a->sequence == b->sequence &&
           a->has_preamble == b->has_preamble && a->has_content == b->has_content &&
           a->has_finish == b->has_finish && a->has_end == b->has_end &&
           a->has_error == b->has_error && strcmp(a->model, b->model) == 0 &&
           strcmp(a->finish, b->finish) == 0 && strcmp(a->response_id, b->response_id) == 0 &&
           strcmp(a->error_message, b->error_message) == 0 &&
           strcmp(a->error_code, b->error_code) == 0 && a->meter.seen == b->meter.seen &&
           a->meter.flags == b->meter.flags &&
           memcmp(a->meter.raw, b->meter.raw, sizeof(a->meter.raw)) == 0;
}

static bool same_parser(const struct sse *a, const struct sse *b)
{
    return sse_is_at_border(a) && sse_is_at_border(b) && a->offset == b->offset &&
           a->event_start == b->event_start && a->err == b->err && a->bom == b->bom &&
           a->last_end == b->last_end && a->has_cr == b->has_cr &&
           a->may_skip_lf == b->may_skip_lf && a->may_end_lf == b->may_end_lf;
}

// ---- splits ----

struct border {
    size_t at; // offset in the stream
    struct sse sse;
    struct dialect_reader reader;
    size_t count; // events before
};

struct splitter {
    const struct recording *recording;
    const char *bytes;
    size_t len;
    struct run whole;
    struct border *borders; // [0] is the beginning
    size_t border_count;
    struct run work;
};

static void feed(struct run *run, const char *bytes, size_t len)
{
    ck_assert_int_eq(sse_feed(&run->sse, slice_of(bytes, len), on_event, run), 0);
}

static void keep_border(struct splitter *splitter, const struct run *run, size_t at)
{
    struct border *border = &splitter->borders[splitter->border_count++];
    *border = (struct border){at, run->sse, run->reader, run->at};
    ck_assert_uint_eq(run->sse.partial.len, 0);
    buf_init(&border->sse.partial, 0);
    buf_init(&border->sse.joined, 0);
}

// The whole run and the states at its borders.
static void splitter_init(struct splitter *splitter, const struct recording *recording,
                          const char *bytes, size_t len)
{
    memset(splitter, 0, sizeof(*splitter));
    splitter->recording = recording;
    splitter->bytes = bytes;
    splitter->len = len;
    run_init(&splitter->whole, recording);
    splitter->whole.wants_text = true;
    feed(&splitter->whole, bytes, len);
    ck_assert_int_eq(sse_finish(&splitter->whole.sse, on_event, &splitter->whole), 0);
    splitter->borders = malloc((splitter->whole.count + 2) * sizeof(*splitter->borders));
    struct run run;
    run_init(&run, recording);
    run.whole = &splitter->whole;
    keep_border(splitter, &run, 0);
    size_t at = 0;
    for (size_t i = 0; i < splitter->whole.count; i++) {
        size_t end = (size_t)splitter->whole.events[i].end;
        if (end > len)
            end = len;
        feed(&run, bytes + at, end - at);
        at = end;
        if (sse_is_at_border(&run.sse) && run.sse.partial.len == 0)
            keep_border(splitter, &run, at);
    }
    ck_assert_msg(!run.differs, "fed event by event: events differ");
    run_free(&run);
    run_init(&splitter->work, recording);
    splitter->work.whole = &splitter->whole;
}

static void splitter_free(struct splitter *splitter)
{
    run_free(&splitter->whole);
    run_free(&splitter->work);
    free(splitter->borders);
}

static void start_at(struct splitter *splitter, const struct border *border)
{
    struct run *work = &splitter->work;
    struct buf partial = work->sse.partial, joined = work->sse.joined;
    buf_clear(&partial);
    buf_clear(&joined);
    work->sse = border->sse;
    work->sse.partial = partial;
    work->sse.joined = joined;
    work->reader = border->reader;
    work->at = border->count;
    work->differs = false;
}

static void finish_and_compare(struct splitter *splitter, size_t at)
{
    struct run *work = &splitter->work;
    ck_assert_int_eq(sse_finish(&work->sse, on_event, work), 0);
    ck_assert_msg(!work->differs && work->at == splitter->whole.count,
                  "split at %zu: events differ", at);
    ck_assert_msg(same_reader(&work->reader, &splitter->whole.reader),
                  "split at %zu: the reader's state differs at the end", at);
}

static void split_two(struct splitter *splitter, size_t at)
{
    struct run *work = &splitter->work;
    size_t low = 0, high = splitter->border_count;
    while (high - low > 1) { // the last border ≤ at
        size_t middle = (low + high) / 2;
        if (splitter->borders[middle].at <= at)
            low = middle;
        else
            high = middle;
    }
    const struct border *from = &splitter->borders[low > 0 ? low - 1 : 0];
    start_at(splitter, from);
    feed(work, splitter->bytes + from->at, at - from->at);
    size_t fed = at;
    split_count++;
    for (size_t next = low + 2; next <= splitter->border_count; next++) {
        size_t end = next < splitter->border_count ? splitter->borders[next].at : splitter->len;
        feed(work, splitter->bytes + fed, end - fed);
        fed = end;
        ck_assert_msg(!work->differs, "split at %zu: events differ", at);
        if (next < splitter->border_count &&
            same_parser(&work->sse, &splitter->borders[next].sse) &&
            same_reader(&work->reader, &splitter->borders[next].reader) &&
            work->at == splitter->borders[next].count)
            return;
    }
    feed(work, splitter->bytes + fed, splitter->len - fed);
    finish_and_compare(splitter, at);
}

// The whole stream in pieces of 1..max bytes.
static void chop(struct splitter *splitter, uint64_t *seed, size_t max)
{
    start_at(splitter, &splitter->borders[0]);
    for (size_t at = 0; at < splitter->len;) {
        *seed ^= *seed << 13;
        *seed ^= *seed >> 7;
        *seed ^= *seed << 17;
        size_t step = 1 + (size_t)(*seed % max);
        if (step > splitter->len - at)
            step = splitter->len - at;
        feed(&splitter->work, splitter->bytes + at, step);
        at += step;
    }
    split_count++;
    finish_and_compare(splitter, max);
}

static void try_splits(struct splitter *splitter)
{
    uint64_t seed = UINT64_C(88172645463325252);
    if (splitter->len <= FULL_SPLIT_LIMIT) {
        for (size_t at = 0; at <= splitter->len; at++)
            split_two(splitter, at);
    } else {
        for (size_t i = 0; i < splitter->whole.count; i++)
            for (size_t d = 0; d < 7; d++) {
                size_t at = (size_t)splitter->whole.events[i].end + d;
                if (at >= 3 && at - 3 <= splitter->len)
                    split_two(splitter, at - 3);
            }
        for (int i = 0; i < SEEDED_SPLITS; i++) {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            split_two(splitter, (size_t)(seed % (splitter->len + 1)));
        }
    }
    chop(splitter, &seed, 1); // byte by byte
    for (int i = 0; i < SEEDED_CHOPS; i++)
        chop(splitter, &seed, i % 3 == 0 ? 7 : i % 3 == 1 ? 150 : 1400);
}

// ---- comparisons ----

static void check_usage(const struct usage *got, const struct usage *want)
{
    ck_assert_uint_eq(got->input, want->input);
    ck_assert_uint_eq(got->cache_read, want->cache_read);
    ck_assert_uint_eq(got->cache_write_5m, want->cache_write_5m);
    ck_assert_uint_eq(got->cache_write_1h, want->cache_write_1h);
    ck_assert_uint_eq(got->audio_in, want->audio_in);
    ck_assert_uint_eq(got->image_in, want->image_in);
    ck_assert_uint_eq(got->output, want->output);
    ck_assert_uint_eq(got->reasoning, want->reasoning);
    ck_assert_uint_eq(got->audio_out, want->audio_out);
    ck_assert_uint_eq(got->server_calls, want->server_calls);
}

static void check_oracle(const struct oracle *oracle, const struct dialect_reader *reader)
{
    struct usage usage;
    bool has_usage = usage_meter_result(&reader->meter, &usage);
    if (oracle->is_odd)
        return;
    if (reader->op != DIALECT_OP_COUNT_TOKENS) {
        ck_assert_int_eq(has_usage, oracle->has_usage);
        check_usage(&usage, &oracle->usage);
    }
    if (has_usage && oracle->has_total && (usage.flags & (USAGE_CLAMPED | USAGE_ABSURD)) == 0)
        ck_assert_uint_eq(usage_total(&usage), oracle->total);
    ck_assert_str_eq(reader->model, oracle->model);
    ck_assert_int_eq(reader->has_error, oracle->has_error);
    if (!reader->has_error || reader->has_finish)
        ck_assert_str_eq(reader->finish, oracle->finish);
}

static uint32_t flag_of(const char *name)
{
    static const char *const NAMES[] = {"reported", "estimated",     "clamped",
                                        "partial",  "total_differs", "absurd"};
    for (size_t i = 0; i < 6; i++)
        if (strcmp(name, NAMES[i]) == 0)
            return 1u << i;
    ck_abort_msg("unknown flag %s", name);
    return 0;
}

static const char *const CLASS_NAMES[] = {"noise", "preamble", "content", "usage", "end", "error"};

static void expect_usage(yyjson_val *want, const struct dialect_reader *reader)
{
    struct usage usage, expected = {0};
    uint64_t *const fields[] = {&expected.input,          &expected.cache_read,
                                &expected.cache_write_5m, &expected.cache_write_1h,
                                &expected.audio_in,       &expected.image_in,
                                &expected.output,         &expected.reasoning,
                                &expected.audio_out,      &expected.server_calls};
    static const char *const NAMES[] = {
        "input",    "cache_read", "cache_write_5m", "cache_write_1h", "audio_in",
        "image_in", "output",     "reasoning",      "audio_out",      "server_calls"};
    bool has_usage = usage_meter_result(&reader->meter, &usage);
    ck_assert_int_eq(has_usage, yyjson_is_obj(want));
    if (!has_usage)
        return;
    for (size_t i = 0; i < 10; i++)
        *fields[i] = yyjson_get_uint(yyjson_obj_get(want, NAMES[i]));
    check_usage(&usage, &expected);
    yyjson_val *flags = yyjson_obj_get(want, "flags"), *flag;
    size_t i, count;
    uint32_t bits = USAGE_REPORTED;
    yyjson_arr_foreach(flags, i, count, flag) bits |= flag_of(yyjson_get_str(flag));
    ck_assert_uint_eq(usage.flags, bits);
    if (yyjson_obj_get(want, "total") != NULL)
        ck_assert_uint_eq(usage_total(&usage), yyjson_get_uint(yyjson_obj_get(want, "total")));
}

// Compares with a hand-made recording's expect.json: members that are there are checked.
static void check_expect(const struct recording *recording, const struct run *run,
                         const struct dialect_info *info)
{
    size_t len;
    char *json = read_file(recording->dir, "expect.json", &len);
    ck_assert_msg(json != NULL || !recording->is_own, "no expect.json");
    if (json == NULL)
        return;
    const struct dialect_reader *reader = &run->reader;
    yyjson_doc *doc = yyjson_read(json, len, 0);
    yyjson_val *root = yyjson_doc_get_root(doc), *val;
    ck_assert_msg(yyjson_is_obj(root), "expect.json is no object");
    if ((val = yyjson_obj_get(root, "usage")) != NULL)
        expect_usage(val, reader);
    if ((val = yyjson_obj_get(root, "finish")) != NULL)
        ck_assert_str_eq(reader->finish, yyjson_get_str(val));
    if ((val = yyjson_obj_get(root, "model")) != NULL)
        ck_assert_str_eq(reader->model, yyjson_get_str(val));
    static const char *const TEXTS[] = {"text", "thinking", "tool", "refusal"};
    for (int i = 0; i < 4 && run->wants_text; i++)
        if ((val = yyjson_obj_get(root, TEXTS[i])) != NULL) {
            ck_assert_uint_eq(run->texts[i].len, yyjson_get_len(val));
            ck_assert_mem_eq(buf_slice(&run->texts[i]).ptr, yyjson_get_str(val),
                             yyjson_get_len(val));
        }
    if ((val = yyjson_obj_get(root, "text_bytes")) != NULL)
        ck_assert_uint_eq(reader->text_bytes, yyjson_get_uint(val));
    if ((val = yyjson_obj_get(root, "may_end")) != NULL)
        ck_assert_int_eq(reader->dialect->may_end(reader), yyjson_get_bool(val));
    if ((val = yyjson_obj_get(root, "classes")) != NULL) {
        yyjson_val *name;
        size_t i, count, seen = 0;
        yyjson_arr_foreach(val, i, count, name)
        {
            ck_assert_msg(seen < run->count, "fewer events than classes");
            ck_assert_str_eq(CLASS_NAMES[run->events[seen++].class], yyjson_get_str(name));
        }
        ck_assert_uint_eq(seen, run->count);
    }
    val = yyjson_obj_get(root, "error");
    ck_assert_int_eq(reader->has_error, val != NULL);
    if (val != NULL) {
        ck_assert_str_eq(reader->error_code, yyjson_get_str(yyjson_obj_get(val, "code")));
        ck_assert_str_eq(reader->error_message, yyjson_get_str(yyjson_obj_get(val, "message")));
        if (info != NULL)
            ck_assert_int_eq(info->error.status, yyjson_get_int(yyjson_obj_get(val, "status")));
    }
    yyjson_doc_free(doc);
    free(json);
}

static void check_stream(const struct recording *recording, const char *bytes, size_t len)
{
    struct splitter splitter;
    struct oracle *oracle = calloc(1, sizeof(*oracle));
    splitter_init(&splitter, recording, bytes, len);
    struct run *whole = &splitter.whole;
    oracle_stream(oracle, recording->id, bytes, len);
    check_oracle(oracle, &whole->reader);
    ck_assert_int_eq(whole->reader.has_end, oracle->has_end);
    size_t at = 0;
    for (size_t i = 0; i < whole->count; i++)
        if (whole->events[i].has_data) {
            ck_assert_uint_lt(at, oracle->event_count);
            if (!oracle->is_odd)
                ck_assert_msg(
                    oracle->classes[at] == whole->events[i].class, "event %zu is %s, expected %s",
                    i, CLASS_NAMES[whole->events[i].class], CLASS_NAMES[oracle->classes[at]]);
            at++;
        }
    ck_assert_uint_eq(at, oracle->event_count);
    if (!oracle->is_odd) {
        ck_assert_uint_eq(whole->reader.text_bytes, oracle->text_bytes);
        for (int i = 0; i < 4; i++) {
            ck_assert_uint_eq(whole->texts[i].len, oracle->text_lens[i]);
            ck_assert_mem_eq(buf_slice(&whole->texts[i]).ptr,
                             oracle->texts[i] != NULL ? oracle->texts[i] : "",
                             oracle->text_lens[i]);
        }
    }
    check_expect(recording, whole, NULL);
    try_splits(&splitter);
    stream_count++;
    oracle_free(oracle);
    free(oracle);
    splitter_free(&splitter);
}

static void check_body(const struct recording *recording, const char *bytes, size_t len)
{
    struct oracle *oracle = calloc(1, sizeof(*oracle));
    struct dialect_info info;
    struct run run;
    bool is_error;
    run_init(&run, recording);
    run.reader.dialect->inspect_body(&run.reader, slice_of(bytes, len), &info, &is_error);
    oracle_body(oracle, recording->id, bytes, len);
    check_oracle(oracle, &run.reader);
    ck_assert_int_eq(is_error, oracle->has_error);
    ck_assert_int_eq(is_error, info.class == DIALECT_EVENT_ERROR);
    if (is_error) {
        ck_assert_uint_gt(info.error.message.len, 0);
        ck_assert_int_ge(info.error.status, 400);
    } else if (recording->id == DIALECT_OPENAI && !oracle->is_odd) {
        ck_assert_uint_eq(run.reader.text_bytes, oracle->text_bytes);
    }
    check_expect(recording, &run, &info);
    oracle_free(oracle);
    free(oracle);
    run_free(&run);
}

START_TEST(test_recording)
{
    struct recording *recording = &recordings[_i];
    size_t len;
    failed_count++; // until it is through
    char *bytes = read_file(recording->dir, "response.sse", &len);
    if (bytes != NULL) {
        check_stream(recording, bytes, len);
    } else {
        bytes = read_file(recording->dir, "response.json", &len);
        ck_assert_msg(bytes != NULL, "no response");
        check_body(recording, bytes, len);
    }
    free(bytes);
    failed_count--;
    passed_count++;
    recording->has_passed = true;
}
END_TEST

START_TEST(test_own_recordings_are_there)
{
    ck_assert_int_ge(own_count, 30);
}
END_TEST

int main(void)
{
    find_shared();
    find_own();
    SRunner *runner = srunner_create(NULL);
    // One suite for each recording, so that a failure names it.
    for (int i = 0; i < recording_count; i++) {
        Suite *suite = suite_create(recordings[i].dir);
        TCase *tcase = tcase_create("recording");
        tcase_set_timeout(tcase, 0);
        tcase_add_loop_test(tcase, test_recording, i, i + 1);
        suite_add_tcase(suite, tcase);
        srunner_add_suite(runner, suite);
    }
    Suite *suite = suite_create("own recordings");
    TCase *tcase = tcase_create("present");
    tcase_add_test(tcase, test_own_recordings_are_there);
    suite_add_tcase(suite, tcase);
    srunner_add_suite(runner, suite);
    srunner_set_fork_status(runner, CK_NOFORK);
    // Check names every suite in its normal output: hundreds of lines.
    srunner_run_all(runner, CK_SILENT);
    int failures = srunner_ntests_failed(runner);
    srunner_print(runner, failures > 0 ? CK_NORMAL : CK_MINIMAL);
    for (int i = 0; i < recording_count; i++)
        if (!recordings[i].has_passed)
            printf("wire: FAILED %s\n", recordings[i].dir);
    printf("wire: %d recordings read (%d shared, %d own; %d streams, %d splits): %d passed, "
           "%d failed, %d skipped (other APIs)\n",
           recording_count, shared_count, own_count, stream_count, split_count, passed_count,
           failed_count, skipped_count);
    srunner_free(runner);
    for (int i = 0; i < recording_count; i++)
        free(recordings[i].dir);
    return failures == 0 ? 0 : 1;
}
