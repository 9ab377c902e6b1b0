#include "load/load.h"

#include <stdlib.h>
#include <string.h>

const char job_help[] =
    "--job is a comma list (several --job: chosen by weight):\n"
    "  name=TEXT weight=1\n"
    "  dialect=chat|messages   path and body; or path=/… (with method=GET: no body)\n"
    "  body=1024               bytes of the request's body\n"
    "  model=NAME              default: bench\n"
    "  read=N                  a slow reader: N bytes per second\n"
    "  stall=1                 reads no more after the first bytes of the answer\n"
    "  drip_ms=N               a slow writer: the request goes out a byte each N ms\n"
    "  abort=connect|head|body|sent|first|mid|end|any   gives up there, by RST (fin=1: by FIN)\n"
    "  abort_ms=N abort_bytes=N   … so much later; mid: after so many bytes of the body\n"
    "  all other words go to the upstream: kind=unary,delay_ms=20 … (bench_upstream --help)\n";

struct words {
    char order[256];
    size_t order_len;
    const char *dialect, *path, *method, *model;
    size_t body;
    bool is_stream, has_kind;
};

static void fail(const char *what, const char *text)
{
    fprintf(stderr, "bench_load: %s: %s\n", what, text);
    exit(2);
}

static enum stage stage_of(const char *name)
{
    static const char *const names[] = {"none",  "connect", "head", "body", "sent",
                                        "first", "mid",     "end",  "any"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(name, names[i]) == 0)
            return (enum stage)i;
    fail("no such stage", name);
    return STAGE_NONE;
}

// A word of our own; false: the upstream's.
static bool take_word(struct job *job, struct words *words, const char *name, const char *value)
{
    if (strcmp(name, "name") == 0)
        snprintf(job->name, sizeof job->name, "%s", value);
    else if (strcmp(name, "weight") == 0)
        job->weight = (uint32_t)atoi(value);
    else if (strcmp(name, "dialect") == 0)
        words->dialect = value;
    else if (strcmp(name, "path") == 0)
        words->path = value;
    else if (strcmp(name, "method") == 0)
        words->method = value;
    else if (strcmp(name, "model") == 0)
        words->model = value;
    else if (strcmp(name, "body") == 0)
        words->body = strtoull(value, NULL, 10);
    else if (strcmp(name, "read") == 0)
        job->read_rate = strtoull(value, NULL, 10);
    else if (strcmp(name, "drip_ms") == 0)
        job->drip_ns = strtoull(value, NULL, 10) * 1000000;
    else if (strcmp(name, "stall") == 0)
        job->stalls = atoi(value) != 0;
    else if (strcmp(name, "abort") == 0)
        job->abort_at = stage_of(value);
    else if (strcmp(name, "fin") == 0)
        job->aborts_with_fin = atoi(value) != 0;
    else if (strcmp(name, "abort_ms") == 0)
        job->abort_wait_ns = strtoull(value, NULL, 10) * 1000000;
    else if (strcmp(name, "abort_bytes") == 0)
        job->abort_bytes = strtoull(value, NULL, 10);
    else
        return false;
    return true;
}

static void read_words(struct job *job, struct words *words, char *text)
{
    char *rest = text, *word;
    while ((word = strsep(&rest, ",")) != NULL) {
        char *value = strchr(word, '=');
        if (!value)
            fail("a word without '='", word);
        *value++ = '\0';
        if (take_word(job, words, word, value))
            continue;
        if (strcmp(word, "kind") == 0) {
            words->is_stream = strcmp(value, "unary") != 0 && strcmp(value, "hang") != 0;
            words->has_kind = true;
            if (!*job->name)
                snprintf(job->name, sizeof job->name, "%s", value);
        }
        int len = snprintf(words->order + words->order_len, sizeof words->order - words->order_len,
                           "%s%s=%s", words->order_len ? "," : "", word, value);
        words->order_len += (size_t)len;
        if (words->order_len >= sizeof words->order)
            fail("too long", word);
    }
}

static char *make_body(const struct words *words, size_t *len_out)
{
    char head[512];
    size_t head_len = (size_t)snprintf(
        head, sizeof head,
        "{\"model\":\"%s\",%s%s\"messages\":[{\"role\":\"user\",\"content\":\"bench:%s; ",
        words->model, strcmp(words->dialect, "messages") == 0 ? "\"max_tokens\":1000," : "",
        words->is_stream ? "\"stream\":true," : "", words->order);
    const char tail[] = "\"}]}";
    size_t len = head_len + sizeof tail - 1;
    if (len < words->body)
        len = words->body;
    char *body = malloc(len + 1);
    if (!body)
        fail("no memory for the body", words->order);
    memset(body, 'q', len);
    for (size_t i = head_len + 7; i < len; i += 8)
        body[i] = ' ';
    memcpy(body, head, head_len);
    memcpy(body + len - (sizeof tail - 1), tail, sizeof tail);
    *len_out = len;
    return body;
}

struct job *job_read(const char *text, const char *key, const char *const *headers,
                     size_t header_count, const char *host)
{
    struct words words = {.dialect = "chat", .method = "POST", .model = "bench", .body = 1024};
    struct job *job = calloc(1, sizeof *job);
    char *copy = strdup(text), *body = NULL;
    size_t body_len = 0;
    if (!job || !copy)
        fail("no memory", text);
    job->weight = 1;
    read_words(job, &words, copy);
    if (!words.has_kind)
        snprintf(words.order, sizeof words.order, "kind=unary");
    if (!*job->name)
        snprintf(job->name, sizeof job->name, "%s", words.has_kind ? "job" : "unary");
    if (!words.path)
        words.path =
            strcmp(words.dialect, "messages") == 0 ? "/v1/messages" : "/v1/chat/completions";
    bool is_get = strcmp(words.method, "GET") == 0;
    if (!is_get)
        body = make_body(&words, &body_len);
    char *out = NULL;
    size_t size = 0;
    FILE *file = open_memstream(&out, &size);
    if (!file)
        fail("no memory", text);
    fprintf(file, "%s %s HTTP/1.1\r\nhost: %s\r\n", words.method, words.path, host);
    if (key)
        fprintf(file, "authorization: Bearer %s\r\n", key);
    for (size_t i = 0; i < header_count; i++)
        fprintf(file, "%s\r\n", headers[i]);
    if (!is_get)
        fprintf(file, "content-type: application/json\r\ncontent-length: %zu\r\n", body_len);
    fputs("\r\n", file);
    fflush(file);
    job->head_len = size;
    if (body)
        fwrite(body, 1, body_len, file);
    fclose(file);
    job->request = out;
    job->request_len = size;
    free(body);
    free(copy);
    return job;
}

void job_reset(struct job *job)
{
    job->done = job->refused = job->aborted = job->events = job->bytes = job->misread = 0;
    memset(job->failures, 0, sizeof job->failures);
    memset(&job->latency, 0, sizeof job->latency);
    memset(&job->first_byte, 0, sizeof job->first_byte);
    memset(&job->relay, 0, sizeof job->relay);
    memset(&job->gap, 0, sizeof job->gap);
    memset(&job->refusal, 0, sizeof job->refusal);
}

void job_free(struct job *job)
{
    free(job->request);
    free(job);
}
