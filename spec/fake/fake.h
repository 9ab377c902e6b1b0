#pragma once
// The scripted upstream: one thread, epoll, plain HTTP/1.1 on loopback. What a request gets is
// chosen by the first of these that is there:
//
//   header x-fake-script: NAME        a script by name
//   path /s/NAME/…                    a script by name (as base URL of one of several upstreams)
//   member "model" of a JSON body     a script of that name, or
//                                     play:DIR[#option,…]   a recording
//                                     echo                  what was received, as JSON
//   script "default"
//
// A script is a list of steps; each serves `times` requests (1), the last one all that follow.
// POST /_script/NAME takes {"steps":[…]}, […] or one step; DELETE /_script[/NAME] forgets.
// GET /_requests is the journal of what was served, DELETE empties it; GET /_stats counts
// connections. script.c says what a step may hold.
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct text { // growing bytes, NUL-terminated for convenience
    char *ptr;
    size_t len, capacity;
};
void text_add(struct text *text, const void *bytes, size_t len);
void text_addf(struct text *text, const char *format, ...) __attribute__((format(printf, 2, 3)));
void text_json(struct text *text, const char *bytes, size_t len); // quoted; not UTF-8: latin-1
void text_free(struct text *text);
void *must(void *memory); // exits without memory
// Removes control bytes from nothing; finds CRLFCRLF. -1: none.
long find_bytes(const char *bytes, size_t len, const char *what, size_t what_len);

struct request {
    char *method, *target; // target as received, path and query
    char *headers;         // "name: value\n" lines, names in lower case
    char *body;            // decoded
    size_t body_len, head_len;
    bool is_keep_alive;
};
const char *request_header(const struct request *request, const char *name, size_t *len);
void request_free(struct request *request);
// Parses one request out of bytes: > 0 consumed, 0 incomplete, < 0 malformed. wants_continue: the
// body has not come and 100-continue was asked for.
long request_parse(const char *bytes, size_t len, struct request *out, bool *wants_continue);

enum framing { FRAMING_LENGTH, FRAMING_CHUNKED, FRAMING_CLOSE };
enum ending { ENDING_NORMAL, ENDING_RESET, ENDING_HANG, ENDING_CLOSE };
enum split { SPLIT_WHOLE, SPLIT_BYTES, SPLIT_AT, SPLIT_RANDOM, SPLIT_SIZE };

struct step {
    int status;
    struct text headers; // "Name: value\r\n" lines
    struct text body;
    struct text raw; // sent instead of head and body
    bool has_raw, is_echo, has_final_chunk, is_close, repeats;
    enum framing framing;
    enum ending ending;
    int64_t end_at; // body bytes sent before the ending; -1: all; -2: not even the head
    int64_t length; // told Content-Length; -1: the true one
    enum split split;
    size_t *cuts, cut_count; // SPLIT_AT
    size_t split_count;      // pieces of SPLIT_RANDOM, bytes of SPLIT_SIZE
    uint64_t seed;
    int first_ms, delay_ms, end_ms; // before the first byte, between pieces, before the ending
    int informational;              // 1xx heads before; -1: without end
    int times;
    char *play; // recording instead of body and status
};

struct piece {
    size_t end;   // offset in the wire bytes
    int delay_ms; // before it
};

// What one request gets, in wire bytes.
struct answer {
    struct text wire;
    struct piece *pieces;
    size_t piece_count, piece_capacity;
    enum ending ending;
    int end_ms;
    bool is_close;
    size_t loop_piece; // SIZE_MAX: none; else the pieces from here are sent again without end
};
void answer_free(struct answer *answer);

// script.c
void script_roots(char **roots, size_t count);
// NULL, or why the script is refused (static text).
const char *script_put(const char *name, const char *json, size_t len);
void script_drop(const char *name); // NULL: all
// Chooses and renders; name gets what was chosen (≤ size).
void script_answer(const struct request *request, struct answer *out, char *name, size_t size);

// journal.c: entries are numbered from 1; the oldest are forgotten beyond 8192.
uint64_t journal_open(const struct request *request, const char *script, uint64_t connection,
                      uint64_t now_ms);
void journal_close(uint64_t number, const char *how, uint64_t sent, uint64_t now_ms);
void journal_clear(void);
// Entries with a number above after.
void journal_render(uint64_t after, struct text *out);
