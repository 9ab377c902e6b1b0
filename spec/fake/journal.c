// What was served, in order: the tests' evidence of what left the gateway and of how calls ended.
#include "fake.h"

#include <stdlib.h>
#include <string.h>

#define ENTRIES 8192
#define BODY_BYTES (1u << 20)

struct entry {
    uint64_t number, connection, began_ms, ended_ms, sent;
    char *script, *method, *target, *headers, *body;
    size_t body_len, body_kept;
    const char *how; // static text
};

static struct entry entries[ENTRIES];
static uint64_t last, forgotten;

static void forget(struct entry *entry)
{
    free(entry->script);
    free(entry->method);
    free(entry->target);
    free(entry->headers);
    free(entry->body);
    memset(entry, 0, sizeof *entry);
}

uint64_t journal_open(const struct request *request, const char *script, uint64_t connection,
                      uint64_t now_ms)
{
    struct entry *entry = &entries[++last % ENTRIES];
    forget(entry);
    entry->number = last;
    entry->connection = connection;
    entry->began_ms = now_ms;
    entry->script = must(strdup(script));
    entry->method = must(strdup(request->method));
    entry->target = must(strdup(request->target));
    entry->headers = must(strdup(request->headers));
    entry->body_len = request->body_len;
    entry->body_kept = request->body_len < BODY_BYTES ? request->body_len : BODY_BYTES;
    entry->body = must(malloc(entry->body_kept + 1));
    memcpy(entry->body, request->body, entry->body_kept);
    entry->how = "open";
    return last;
}

void journal_close(uint64_t number, const char *how, uint64_t sent, uint64_t now_ms)
{
    struct entry *entry = &entries[number % ENTRIES];
    if (number == 0 || entry->number != number)
        return;
    entry->how = how;
    entry->sent = sent;
    entry->ended_ms = now_ms;
}

void journal_clear(void)
{
    forgotten = last;
}

static void render_headers(const char *headers, struct text *out)
{
    text_addf(out, "[");
    for (const char *line = headers; *line;) {
        const char *end = strchr(line, '\n'), *colon = strchr(line, ':');
        text_addf(out, line == headers ? "[" : ",[");
        text_json(out, line, (size_t)(colon - line));
        text_addf(out, ",");
        text_json(out, colon + 2, (size_t)(end - colon - 2));
        text_addf(out, "]");
        line = end + 1;
    }
    text_addf(out, "]");
}

void journal_render(uint64_t after, struct text *out)
{
    uint64_t from = after > forgotten ? after : forgotten;
    if (last > ENTRIES && from < last - ENTRIES)
        from = last - ENTRIES;
    text_addf(out, "{\"last\":%llu,\"requests\":[", (unsigned long long)last);
    for (uint64_t number = from + 1; number <= last; number++) {
        const struct entry *entry = &entries[number % ENTRIES];
        text_addf(out,
                  "%s{\"n\":%llu,\"connection\":%llu,\"script\":", number == from + 1 ? "" : ",",
                  (unsigned long long)number, (unsigned long long)entry->connection);
        text_json(out, entry->script, strlen(entry->script));
        text_addf(out, ",\"method\":");
        text_json(out, entry->method, strlen(entry->method));
        text_addf(out, ",\"target\":");
        text_json(out, entry->target, strlen(entry->target));
        text_addf(out, ",\"headers\":");
        render_headers(entry->headers, out);
        text_addf(out, ",\"body\":");
        text_json(out, entry->body, entry->body_kept);
        text_addf(out,
                  ",\"body_len\":%zu,\"how\":\"%s\",\"peer_closed\":%s,\"sent\":%llu,"
                  "\"began_ms\":%llu,\"ended_ms\":%llu}",
                  entry->body_len, entry->how,
                  strcmp(entry->how, "peer_closed") == 0 ? "true" : "false",
                  (unsigned long long)entry->sent, (unsigned long long)entry->began_ms,
                  (unsigned long long)entry->ended_ms);
    }
    text_addf(out, "]}");
}
