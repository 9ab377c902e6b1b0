// Scripts: JSON in, steps kept, wire bytes out. A step may hold
//
//   status, headers {name: value | [values]}   (content-type is guessed from the body)
//   body text | any other JSON value; body_base64; body_repeat N; play "DIR"; echo true
//   framing "length" | "chunked" | "close"     (events: chunked, else length)
//   length N                                   the Content-Length that is told
//   split "bytes" | {"at":[…]} | {"random":PIECES,"seed":S} | {"size":N}
//                                              each piece is one write, and one chunk if chunked
//   first_ms, delay_ms, end_ms                 before the first byte, between pieces, before the
//   end end "reset" | "hang" | "close"; at N       after N bytes of the body; -2: before the head
//   final_chunk false                          a chunked body without its end
//   informational N                            103 heads before the answer; -1: without end
//   repeat true                                the pieces of the body without end
//   raw text | raw_base64                      these bytes instead of head and body
//   close true                                 Connection: close
//   times N                                    requests served by this step
#include "fake.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <yyjson.h>

struct script {
    char *name;
    struct step *steps;
    size_t count, at;
    int served; // by the step at hand
    struct script *next;
};

static struct script *scripts;
static char **roots;
static size_t root_count;

void script_roots(char **list, size_t count)
{
    roots = list;
    root_count = count;
}

static void step_init(struct step *step)
{
    memset(step, 0, sizeof *step);
    step->status = 200;
    step->has_final_chunk = true;
    step->end_at = -1;
    step->length = -1;
    step->end_ms = -1;
    step->times = 1;
    step->framing = (enum framing) - 1;
}

static void step_free(struct step *step)
{
    text_free(&step->headers);
    text_free(&step->body);
    text_free(&step->raw);
    free(step->cuts);
    free(step->play);
}

static void free_script(struct script *script)
{
    for (size_t i = 0; i < script->count; i++)
        step_free(&script->steps[i]);
    free(script->steps);
    free(script->name);
    free(script);
}

void script_drop(const char *name)
{
    for (struct script **at = &scripts; *at;) {
        struct script *script = *at;
        if (name && strcmp(script->name, name) != 0) {
            at = &script->next;
            continue;
        }
        *at = script->next;
        free_script(script);
    }
}

static struct script *find_script(const char *name, size_t len)
{
    for (struct script *script = scripts; script; script = script->next) {
        if (strlen(script->name) == len && memcmp(script->name, name, len) == 0)
            return script;
    }
    return NULL;
}

static bool unbase64(const char *text, size_t len, struct text *out)
{
    static const char ALPHABET[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    uint32_t bits = 0;
    int count = 0;
    text_add(out, "", 0);
    for (size_t i = 0; i < len && text[i] != '='; i++) {
        const char *at = strchr(ALPHABET, text[i]);
        if (!at || !*at)
            return false;
        bits = bits << 6 | (uint32_t)(at - ALPHABET);
        count += 6;
        if (count >= 8) {
            count -= 8;
            unsigned char byte = (unsigned char)(bits >> count);
            text_add(out, &byte, 1);
        }
    }
    return true;
}

static int int_of(yyjson_val *object, const char *name, int missing)
{
    yyjson_val *value = yyjson_obj_get(object, name);
    return yyjson_is_int(value) ? (int)yyjson_get_sint(value) : missing;
}

static bool bool_of(yyjson_val *object, const char *name, bool missing)
{
    yyjson_val *value = yyjson_obj_get(object, name);
    return yyjson_is_bool(value) ? yyjson_get_bool(value) : missing;
}

static bool is_known(const char *name)
{
    static const char *const NAMES[] = {
        "status", "headers",    "body",   "body_base64", "body_repeat",   "play",
        "echo",   "framing",    "length", "split",       "first_ms",      "delay_ms",
        "end_ms", "end",        "at",     "final_chunk", "informational", "repeat",
        "raw",    "raw_base64", "close",  "times"};
    for (size_t i = 0; i < sizeof NAMES / sizeof *NAMES; i++) {
        if (strcmp(NAMES[i], name) == 0)
            return true;
    }
    return false;
}

static void read_headers(yyjson_val *headers, struct step *step)
{
    yyjson_obj_iter iter = yyjson_obj_iter_with(headers);
    yyjson_val *key;
    while ((key = yyjson_obj_iter_next(&iter))) {
        yyjson_val *value = yyjson_obj_iter_get_val(key);
        const char *name = yyjson_get_str(key);
        if (!name)
            continue;
        size_t count = yyjson_is_arr(value) ? yyjson_arr_size(value) : 1;
        for (size_t i = 0; i < count; i++) {
            yyjson_val *one = yyjson_is_arr(value) ? yyjson_arr_get(value, i) : value;
            const char *text = yyjson_get_str(one);
            text_addf(&step->headers, "%s: ", name);
            text_add(&step->headers, text ? text : "", yyjson_get_len(one));
            text_addf(&step->headers, "\r\n");
        }
    }
}

static const char *read_split(yyjson_val *split, struct step *step)
{
    if (!split)
        return NULL;
    if (yyjson_is_str(split)) {
        step->split = yyjson_equals_str(split, "bytes") ? SPLIT_BYTES : SPLIT_WHOLE;
        return NULL;
    }
    yyjson_val *at = yyjson_obj_get(split, "at");
    if (yyjson_is_arr(at)) {
        step->split = SPLIT_AT;
        step->cut_count = yyjson_arr_size(at);
        step->cuts = must(calloc(step->cut_count + 1, sizeof *step->cuts));
        for (size_t i = 0; i < step->cut_count; i++)
            step->cuts[i] = (size_t)yyjson_get_uint(yyjson_arr_get(at, i));
        return NULL;
    }
    step->seed = (uint64_t)int_of(split, "seed", 1);
    if (yyjson_obj_get(split, "random")) {
        step->split = SPLIT_RANDOM;
        step->split_count = (size_t)int_of(split, "random", 1);
        return NULL;
    }
    step->split = SPLIT_SIZE;
    step->split_count = (size_t)int_of(split, "size", 0);
    return step->split_count ? NULL : "split has none of at, random, size";
}

static const char *read_body(yyjson_val *object, struct step *step)
{
    yyjson_val *body = yyjson_obj_get(object, "body");
    yyjson_val *base64 = yyjson_obj_get(object, "body_base64");
    if (yyjson_is_str(body)) {
        text_add(&step->body, yyjson_get_str(body), yyjson_get_len(body));
    } else if (body) {
        size_t len;
        char *json = must(yyjson_val_write(body, 0, &len));
        text_add(&step->body, json, len);
        free(json);
    } else if (base64) {
        if (!unbase64(yyjson_get_str(base64), yyjson_get_len(base64), &step->body))
            return "body_base64 is not base64";
    }
    int repeat = int_of(object, "body_repeat", 1);
    size_t len = step->body.len;
    for (int i = 1; i < repeat; i++) {
        struct text copy = {NULL, 0, 0};
        text_add(&copy, step->body.ptr, len);
        text_add(&step->body, copy.ptr, len);
        text_free(&copy);
    }
    yyjson_val *raw = yyjson_obj_get(object, "raw");
    yyjson_val *raw_base64 = yyjson_obj_get(object, "raw_base64");
    step->has_raw = raw || raw_base64;
    if (raw)
        text_add(&step->raw, yyjson_get_str(raw), yyjson_get_len(raw));
    if (raw_base64 && !unbase64(yyjson_get_str(raw_base64), yyjson_get_len(raw_base64), &step->raw))
        return "raw_base64 is not base64";
    yyjson_val *play = yyjson_obj_get(object, "play");
    if (play)
        step->play = must(strdup(yyjson_get_str(play)));
    return NULL;
}

static const char *read_step(yyjson_val *object, struct step *step)
{
    if (!yyjson_is_obj(object))
        return "a step must be an object";
    yyjson_obj_iter iter = yyjson_obj_iter_with(object);
    yyjson_val *key;
    while ((key = yyjson_obj_iter_next(&iter))) {
        if (!is_known(yyjson_get_str(key)))
            return "a step has an unknown member";
    }
    step->status = int_of(object, "status", 200);
    step->length = int_of(object, "length", -1);
    step->first_ms = int_of(object, "first_ms", 0);
    step->delay_ms = int_of(object, "delay_ms", 0);
    step->end_ms = int_of(object, "end_ms", -1);
    step->end_at = int_of(object, "at", -1);
    step->informational = int_of(object, "informational", 0);
    step->times = int_of(object, "times", 1);
    step->is_echo = bool_of(object, "echo", false);
    step->is_close = bool_of(object, "close", false);
    step->repeats = bool_of(object, "repeat", false);
    step->has_final_chunk = bool_of(object, "final_chunk", true);
    yyjson_val *framing = yyjson_obj_get(object, "framing");
    if (framing)
        step->framing = yyjson_equals_str(framing, "chunked") ? FRAMING_CHUNKED
                        : yyjson_equals_str(framing, "close") ? FRAMING_CLOSE
                                                              : FRAMING_LENGTH;
    yyjson_val *end = yyjson_obj_get(object, "end");
    if (end)
        step->ending = yyjson_equals_str(end, "reset")   ? ENDING_RESET
                       : yyjson_equals_str(end, "hang")  ? ENDING_HANG
                       : yyjson_equals_str(end, "close") ? ENDING_CLOSE
                                                         : ENDING_NORMAL;
    read_headers(yyjson_obj_get(object, "headers"), step);
    const char *why = read_split(yyjson_obj_get(object, "split"), step);
    return why ? why : read_body(object, step);
}

const char *script_put(const char *name, const char *json, size_t len)
{
    yyjson_doc *doc = yyjson_read(json, len, 0);
    yyjson_val *root = yyjson_doc_get_root(doc);
    yyjson_val *steps = yyjson_is_obj(root) ? yyjson_obj_get(root, "steps") : root;
    if (!root || (yyjson_is_arr(steps) && yyjson_arr_size(steps) == 0)) {
        yyjson_doc_free(doc);
        return "the script is not JSON, or has no steps";
    }
    bool is_list = yyjson_is_arr(steps);
    struct script *script = must(calloc(1, sizeof *script));
    script->name = must(strdup(name));
    script->count = is_list ? yyjson_arr_size(steps) : 1;
    script->steps = must(calloc(script->count, sizeof *script->steps));
    const char *why = NULL;
    for (size_t i = 0; i < script->count; i++) {
        step_init(&script->steps[i]);
        if (!why)
            why = read_step(is_list ? yyjson_arr_get(steps, i) : root, &script->steps[i]);
    }
    yyjson_doc_free(doc);
    if (why) {
        free_script(script);
        return why;
    }
    script_drop(name);
    script->next = scripts;
    scripts = script;
    return NULL;
}

// --- recordings

static bool read_file(const char *path, struct text *out)
{
    FILE *file = fopen(path, "rb");
    if (!file)
        return false;
    char bytes[65536];
    size_t len;
    while ((len = fread(bytes, 1, sizeof bytes, file)) > 0)
        text_add(out, bytes, len);
    fclose(file);
    return true;
}

// DIR/response.sse or response.json with the status and type of DIR/meta.json.
static bool load_recording(const char *dir, struct step *step)
{
    static const char *const NAMES[] = {"response.sse", "response.json", "response.ndjson"};
    char path[1024];
    bool found = false;
    if (strstr(dir, "..") || dir[0] == '/')
        return false;
    for (size_t i = 0; i < root_count && !found; i++) {
        for (size_t k = 0; k < sizeof NAMES / sizeof *NAMES && !found; k++) {
            snprintf(path, sizeof path, "%s/%s/%s", roots[i], dir, NAMES[k]);
            found = read_file(path, &step->body);
            if (found && k == 0)
                text_addf(&step->headers, "content-type: text/event-stream; charset=utf-8\r\n");
        }
        if (!found)
            continue;
        struct text meta = {NULL, 0, 0};
        snprintf(path, sizeof path, "%s/%s/meta.json", roots[i], dir);
        if (read_file(path, &meta)) {
            yyjson_doc *doc = yyjson_read(meta.ptr, meta.len, 0);
            yyjson_val *root = yyjson_doc_get_root(doc);
            step->status = int_of(root, "status", 200);
            const char *type = yyjson_get_str(
                yyjson_obj_get(yyjson_obj_get(root, "response_headers"), "content-type"));
            if (type && step->headers.len == 0)
                text_addf(&step->headers, "content-type: %s\r\n", type);
            yyjson_doc_free(doc);
        }
        text_free(&meta);
    }
    return found;
}

// play:DIR#bytes | #random=SEED | #pieces=N | #size=N | #delay=MS | #length | #cut=BYTES | #reset
static void play_options(const char *options, struct step *step)
{
    while (options && *options) {
        if (strncmp(options, "bytes", 5) == 0) {
            step->split = SPLIT_BYTES;
        } else if (strncmp(options, "random=", 7) == 0) {
            step->split = SPLIT_RANDOM;
            step->seed = strtoull(options + 7, NULL, 10);
            if (!step->split_count)
                step->split_count = 2 + step->seed % 15;
        } else if (strncmp(options, "pieces=", 7) == 0) {
            step->split_count = strtoul(options + 7, NULL, 10);
        } else if (strncmp(options, "size=", 5) == 0) {
            step->split = SPLIT_SIZE;
            step->split_count = strtoul(options + 5, NULL, 10);
        } else if (strncmp(options, "delay=", 6) == 0) {
            step->delay_ms = atoi(options + 6);
        } else if (strncmp(options, "length", 6) == 0) {
            step->framing = FRAMING_LENGTH;
        } else if (strncmp(options, "cut=", 4) == 0) {
            step->end_at = strtoll(options + 4, NULL, 10);
            step->ending = ENDING_CLOSE;
        } else if (strncmp(options, "reset", 5) == 0) {
            step->ending = ENDING_RESET;
        }
        options = strchr(options, ',');
        options += options != NULL;
    }
}

// --- rendering

static uint64_t next_random(uint64_t *state)
{
    uint64_t z = (*state += UINT64_C(0x9e3779b97f4a7c15));
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

static int by_size(const void *left, const void *right)
{
    size_t a = *(const size_t *)left, b = *(const size_t *)right;
    return (a > b) - (a < b);
}

// Offsets at which the body is cut, ascending, the last one being len.
static size_t *cuts_of(const struct step *step, size_t len, size_t *count)
{
    size_t max = step->split == SPLIT_BYTES    ? len
                 : step->split == SPLIT_AT     ? step->cut_count
                 : step->split == SPLIT_RANDOM ? step->split_count
                 : step->split == SPLIT_SIZE   ? len / step->split_count
                                               : 0;
    size_t *cuts = must(calloc(max + 1, sizeof *cuts));
    uint64_t state = step->seed;
    size_t n = 0;
    for (size_t i = 0; i < max; i++) {
        size_t at = step->split == SPLIT_BYTES  ? i + 1
                    : step->split == SPLIT_AT   ? step->cuts[i]
                    : step->split == SPLIT_SIZE ? (i + 1) * step->split_count
                    : len                       ? next_random(&state) % len
                                                : 0;
        if (at > 0 && at < len)
            cuts[n++] = at;
    }
    qsort(cuts, n, sizeof *cuts, by_size);
    cuts[n++] = len;
    size_t out = 0;
    for (size_t i = 0; i < n; i++) {
        if (out == 0 || cuts[out - 1] != cuts[i])
            cuts[out++] = cuts[i];
    }
    *count = out;
    return cuts;
}

static void add_piece(struct answer *answer, int delay_ms)
{
    if (answer->piece_count == answer->piece_capacity) {
        answer->piece_capacity = answer->piece_capacity ? answer->piece_capacity * 2 : 8;
        answer->pieces =
            must(realloc(answer->pieces, answer->piece_capacity * sizeof *answer->pieces));
    }
    answer->pieces[answer->piece_count++] = (struct piece){answer->wire.len, delay_ms};
}

void answer_free(struct answer *answer)
{
    text_free(&answer->wire);
    free(answer->pieces);
    memset(answer, 0, sizeof *answer);
}

static bool has_header(const struct text *headers, const char *name)
{
    size_t len = strlen(name);
    for (const char *line = headers->ptr; line && *line;) {
        if (strncasecmp(line, name, len) == 0 && line[len] == ':')
            return true;
        line = strstr(line, "\r\n");
        line += line ? 2 : 0;
    }
    return false;
}

static bool looks_like_events(const struct text *body)
{
    return body->len > 5 && (memcmp(body->ptr, "data:", 5) == 0 ||
                             memcmp(body->ptr, "event", 5) == 0 || body->ptr[0] == ':');
}

static void render_head(const struct step *step, enum framing framing, size_t len, bool is_close,
                        struct answer *out)
{
    bool is_events = looks_like_events(&step->body);
    text_addf(&out->wire, "HTTP/1.1 %d Scripted\r\n", step->status);
    if (step->headers.len)
        text_add(&out->wire, step->headers.ptr, step->headers.len);
    if (!has_header(&step->headers, "content-type"))
        text_addf(&out->wire, "content-type: %s\r\n",
                  is_events ? "text/event-stream; charset=utf-8" : "application/json");
    if (framing == FRAMING_CHUNKED)
        text_addf(&out->wire, "transfer-encoding: chunked\r\n");
    else if (framing == FRAMING_LENGTH)
        text_addf(&out->wire, "content-length: %lld\r\n",
                  step->length >= 0 ? (long long)step->length : (long long)len);
    if (is_close)
        text_addf(&out->wire, "connection: close\r\n");
    text_addf(&out->wire, "\r\n");
}

static void render(const struct step *step, bool is_head, struct answer *out)
{
    out->loop_piece = SIZE_MAX;
    out->ending = step->ending;
    out->end_ms = step->end_ms >= 0 ? step->end_ms : step->ending == ENDING_RESET ? 30 : 0;
    out->is_close = step->is_close;
    if (step->informational) {
        int count = step->informational < 0 ? 1 : step->informational;
        for (int i = 0; i < count; i++)
            text_addf(&out->wire, "HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n");
        add_piece(out, step->first_ms);
        if (step->informational < 0) {
            out->loop_piece = 0;
            return;
        }
    }
    if (step->has_raw) {
        text_add(&out->wire, step->raw.ptr, step->raw.len);
        add_piece(out, step->first_ms);
        if (out->ending == ENDING_NORMAL)
            out->ending = ENDING_CLOSE;
        return;
    }
    if (step->end_at == -2) {
        add_piece(out, step->first_ms);
        return;
    }
    enum framing framing = step->framing;
    if ((int)framing == -1)
        framing = looks_like_events(&step->body) ? FRAMING_CHUNKED : FRAMING_LENGTH;
    out->is_close = out->is_close || framing == FRAMING_CLOSE;
    size_t len = step->body.len;
    render_head(step, framing, len, out->is_close, out);
    bool is_delayed = step->delay_ms > 0;
    if (is_head || step->status == 204 || is_delayed || len == 0)
        add_piece(out, step->first_ms);
    if (is_head || step->status == 204)
        return;
    size_t sent = step->end_at >= 0 && (size_t)step->end_at < len ? (size_t)step->end_at : len;
    bool is_cut = sent < len || step->ending != ENDING_NORMAL;
    size_t count, from = 0;
    size_t *cuts = cuts_of(step, sent, &count);
    if (step->repeats) {
        if (out->piece_count == 0)
            add_piece(out, step->first_ms);
        out->loop_piece = out->piece_count;
    }
    for (size_t i = 0; i < count && sent > 0; i++) {
        size_t size = cuts[i] - from;
        if (framing == FRAMING_CHUNKED)
            text_addf(&out->wire, "%zx\r\n", size);
        text_add(&out->wire, step->body.ptr + from, size);
        if (framing == FRAMING_CHUNKED)
            text_addf(&out->wire, "\r\n");
        add_piece(out, out->piece_count == 0 ? step->first_ms : step->delay_ms);
        from = cuts[i];
    }
    free(cuts);
    if (framing == FRAMING_CHUNKED && !is_cut && step->has_final_chunk && !step->repeats) {
        text_addf(&out->wire, "0\r\n\r\n");
        if (is_delayed || out->piece_count == 0)
            add_piece(out, step->delay_ms);
        else
            out->pieces[out->piece_count - 1].end = out->wire.len;
    }
    if (framing == FRAMING_CLOSE && out->ending == ENDING_NORMAL)
        out->ending = ENDING_CLOSE;
    if (framing == FRAMING_CHUNKED && !step->has_final_chunk && out->ending == ENDING_NORMAL)
        out->ending = ENDING_CLOSE;
    if (step->length >= 0 && (size_t)step->length > sent && out->ending == ENDING_NORMAL)
        out->ending = ENDING_CLOSE;
}

static void render_echo(const struct request *request, struct step *step)
{
    struct text *out = &step->body;
    text_addf(out, "{\"method\":");
    text_json(out, request->method, strlen(request->method));
    text_addf(out, ",\"target\":");
    text_json(out, request->target, strlen(request->target));
    text_addf(out, ",\"headers\":{");
    for (const char *line = request->headers; *line;) {
        const char *end = strchr(line, '\n'), *colon = strchr(line, ':');
        text_addf(out, line == request->headers ? "" : ",");
        text_json(out, line, (size_t)(colon - line));
        text_addf(out, ":");
        text_json(out, colon + 2, (size_t)(end - colon - 2));
        line = end + 1;
    }
    text_addf(out, "},\"body\":");
    text_json(out, request->body, request->body_len);
    text_addf(out, "}");
}

// --- choosing

static struct script *by_path(const char *target)
{
    if (strncmp(target, "/s/", 3) != 0)
        return NULL;
    size_t len = strcspn(target + 3, "/?");
    return find_script(target + 3, len);
}

static struct step *current_step(struct script *script)
{
    struct step *step = &script->steps[script->at];
    if (script->served >= step->times && script->at + 1 < script->count) {
        step = &script->steps[++script->at];
        script->served = 0;
    }
    script->served++;
    return step;
}

static void answer_with(const struct step *chosen, const struct request *request,
                        struct answer *out)
{
    struct step step = *chosen; // shares its memory, but for what is made here
    struct text body = {NULL, 0, 0}, headers = {NULL, 0, 0};
    if (chosen->play || chosen->is_echo) {
        step.body = body;
        if (chosen->headers.len)
            text_add(&headers, chosen->headers.ptr, chosen->headers.len);
        step.headers = headers;
        if (chosen->is_echo)
            render_echo(request, &step);
        else if (!load_recording(chosen->play, &step)) {
            step.status = 501;
            text_addf(&step.body, "{\"error\":{\"message\":\"no such recording\"}}");
        }
    }
    render(&step, strcmp(request->method, "HEAD") == 0, out);
    if (chosen->play || chosen->is_echo) {
        text_free(&step.body);
        text_free(&step.headers);
    }
}

static void answer_model(const char *model, const struct request *request, struct answer *out)
{
    struct step step;
    step_init(&step);
    step.is_echo = strcmp(model, "echo") == 0;
    if (strncmp(model, "play:", 5) == 0) {
        step.play = must(strdup(model + 5));
        char *options = strchr(step.play, '#');
        if (options) {
            *options = '\0';
            play_options(options + 1, &step);
        }
    }
    if (!step.is_echo && !step.play) {
        step.status = 404;
        text_addf(&step.body, "{\"error\":{\"message\":\"the fake upstream has no script for "
                              "this\",\"type\":\"invalid_request_error\",\"param\":null,"
                              "\"code\":\"model_not_found\"}}");
    }
    answer_with(&step, request, out);
    step_free(&step);
}

void script_answer(const struct request *request, struct answer *out, char *name, size_t size)
{
    size_t len;
    const char *header = request_header(request, "x-fake-script", &len);
    struct script *script = header ? find_script(header, len) : NULL;
    yyjson_doc *doc = NULL;
    const char *model = NULL;
    memset(out, 0, sizeof *out);
    if (!script)
        script = by_path(request->target);
    if (!script && request->body_len &&
        (request->body[0] == '{' || request->body[0] == ' ' || request->body[0] == '\n')) {
        doc = yyjson_read(request->body, request->body_len, 0);
        model = yyjson_get_str(yyjson_obj_get(yyjson_doc_get_root(doc), "model"));
        script = model ? find_script(model, strlen(model)) : NULL;
    }
    bool is_special = model && (strncmp(model, "play:", 5) == 0 || strcmp(model, "echo") == 0);
    if (!script && !is_special)
        script = find_script("default", 7);
    snprintf(name, size, "%s", script ? script->name : model ? model : "");
    if (script)
        answer_with(current_step(script), request, out);
    else
        answer_model(model ? model : "", request, out);
    yyjson_doc_free(doc);
}
