#pragma once
// A dialect: one wire format of model calls as a table of functions, one file each
// (openai_chat.c: Chat Completions, completions, embeddings; openai_responses.c; anthropic.c).
// Pure: bytes in, bytes out; no I/O. One thread at a time per state object.
//
// For a passthrough the relay needs to know of each event what it is (inspect); for its own answers
// it renders errors; for answers made by plugins it emits neutral events (event.h).
#include "base/arena.h"
#include "base/buf.h"
#include "base/err.h"
#include "codec/event.h"
#include "codec/shape.h"
#include "codec/skim.h"
#include "codec/sse.h"
#include "codec/usage.h"

enum dialect_id {
    DIALECT_NONE,
    DIALECT_OPENAI,    // /v1/chat/completions, /v1/completions, /v1/embeddings and OpenAI's others
    DIALECT_RESPONSES, // /v1/responses
    DIALECT_ANTHROPIC, // /v1/messages
};
#define DIALECT_COUNT 4

// Which call of a dialect (names in logs, and what a stream looks like).
enum dialect_op {
    DIALECT_OP_OTHER,
    DIALECT_OP_CHAT,
    DIALECT_OP_COMPLETIONS,
    DIALECT_OP_EMBEDDINGS,
    DIALECT_OP_RESPONSES,
    DIALECT_OP_MESSAGES,
    DIALECT_OP_COUNT_TOKENS,
};

// An error as the client shall see it. All slices borrowed.
struct dialect_error {
    int status;           // HTTP status (also used in a stream to choose the type)
    struct slice code;    // our stable code: "invalid_api_key", "model_not_found", …
    struct slice type;    // dialect's type; empty: derived from status and code
    struct slice message; // a sentence that tells the reader what to do next
    struct slice param;   // OpenAI's param; empty: null
    struct slice request_id;
    int64_t retry_after_ms; // < 0: none
    bool should_retry;      // x-should-retry
};

// What one event of an upstream stream means to the relay.
enum dialect_class {
    DIALECT_EVENT_NOISE,    // comments, pings, role-only or filter chunks: liveness only
    DIALECT_EVENT_PREAMBLE, // opens the message but commits nothing (message_start,
                            // response.created)
    DIALECT_EVENT_CONTENT,  // semantic: text, thinking, tool call, finish: after it no failover
    DIALECT_EVENT_USAGE,    // OpenAI: `choices: []` and a usage object (the one removable chunk)
    DIALECT_EVENT_END,      // the stream's proper end ([DONE], message_stop, response.completed…)
    DIALECT_EVENT_ERROR,    // an error inside a 200 stream
};

struct dialect_info {
    enum dialect_class class;
    enum event_block block; // of text, when has_text
    bool has_text;          // the event carries one visible text/thinking/arguments piece
    bool text_has_escapes;
    size_t text_start, text_end; // the JSON string's span in event->data, quotes included
    uint32_t index;              // block or choice index
    // Set by inspect when the reader took nothing from this event but the text, the index and maybe
    // the sequence number: others of the same shape need no scan. The spans are of the JSON values;
    // start == end: absent.
    bool is_plain;
    size_t number_start, number_end; // the sequence number
    size_t pad_start, pad_end;       // a string that means nothing (obfuscation)
    struct dialect_error
        error; // class ERROR: status (best guess), type, code, message in `scratch`
};

// Follows one upstream stream or reads one whole body.
struct dialect_reader {
    const struct dialect *dialect;
    enum dialect_op op;
    struct usage_meter meter;
    uint64_t text_bytes; // decoded bytes of visible output so far (for estimates)
    uint64_t sequence;   // Responses: last sequence_number seen
    bool has_preamble, has_content, has_finish, has_end, has_error;
    bool is_openai_error; // scratch for renderers
    char model[128];      // as reported by the upstream, truncated
    char finish[48];      // finish/stop reason as reported, truncated
    char response_id[80]; // Responses: for response.failed
    int64_t created_at;   // Responses: likewise; 0 when unknown
    char error_message[513], error_type[64], error_code[64], error_param[64];
    // Of the last plain event, with what it told and the text bytes outside of its hole.
    struct dialect_info plain;
    uint64_t plain_rest;
    struct event_shape shape;
};

struct dialect_writer;

struct dialect {
    enum dialect_id id;
    const char *name; // "openai" "responses" "claude"
    enum usage_rule usage_rule;

    // Classifies one event and takes its usage, model and finish reason into the reader. Bad JSON
    // in an event is NOISE (the relay passes what it does not understand). Call dialect_inspect,
    // which is the same and quicker.
    void (*inspect)(struct dialect_reader *reader, const struct sse_event *event,
                    struct dialect_info *info);
    // Reads a whole JSON answer: usage, model, finish; is_error when it is an error object although
    // the status said 200 (info->error filled).
    void (*inspect_body)(struct dialect_reader *reader, struct slice body,
                         struct dialect_info *info, bool *is_error);
    // True when the stream may end here without being called cut (PROTOCOLS §4.9). Also true after
    // an error event, which is an end of its own: whether all went well is has_error's to say.
    bool (*may_end)(const struct dialect_reader *reader);
    // True when an upstream error body already has this dialect's shape and may pass unchanged.
    bool (*is_error_shape)(struct slice body);
    // An error as a whole body, and as the events that end a stream (never a clean end). The reader
    // tells what the *client* has got of the stream so far (Responses: has_preamble, sequence,
    // response_id, model); NULL: nothing.
    int (*render_error)(const struct dialect_error *error, struct buf *out);
    int (*render_stream_error)(const struct dialect_reader *reader,
                               const struct dialect_error *error, struct buf *out);
    // Neutral events to this dialect's stream; the same events to one whole body. `writer` is
    // zeroed by dialect_writer_init. GW_EINVAL: events out of order (event.h), or something the
    // call cannot carry (tools in completions, anything in embeddings); nothing is written then.
    // An ERROR event in emit_whole gives the error body.
    int (*emit)(struct dialect_writer *writer, const struct event *event, struct buf *out);
    int (*emit_whole)(struct dialect_writer *writer, const struct event *events, size_t count,
                      struct buf *out);
};

// State of an answer made here.
struct dialect_writer {
    const struct dialect *dialect;
    enum dialect_op op;
    struct arena *arena; // keeps
    bool include_usage;  // OpenAI streams: the client asked for the usage chunk
    int64_t created_s;
    char id[64], model[128];
    uint64_t sequence; // Responses
    bool has_started, has_open_block, has_finished;
    enum event_block open_block;
    uint32_t index, tool_count;
    struct usage usage;
    enum event_finish finish;
    bool is_whole;        // emit_whole is at work: only the parts of the body are kept
    bool has_refusal;     // a refusal block was there
    uint64_t block_bytes; // text bytes of the open block
    struct buf items;     // finished output items' (blocks') JSON; freed by dialect_writer_free
    struct buf text;      // of the open block
    struct slice tool_id, tool_name;
};

const struct dialect *dialect_get(enum dialect_id id); // NULL for NONE
// The dialect's inspect, but events that are alike except for their text are scanned only once.
void dialect_inspect(struct dialect_reader *reader, const struct sse_event *event,
                     struct dialect_info *info);
const struct dialect *dialect_by_name(struct slice name);
void dialect_reader_init(struct dialect_reader *reader, enum dialect_id id, enum dialect_op op);
void dialect_writer_init(struct dialect_writer *writer, enum dialect_id id, enum dialect_op op,
                         struct arena *arena);
void dialect_writer_free(struct dialect_writer *writer);
// Reads an upstream's error body of any shape (OpenAI, Claude, FastAPI's detail, Gemini's array,
// Mistral, HTML, empty) into error: message (arena, ≤ 512 bytes, no markup), type, code.
void dialect_read_error(struct slice body, int status, struct arena *arena,
                        struct dialect_error *error);
// Default Anthropic/OpenAI error type of a status.
struct slice dialect_error_type(enum dialect_id id, int status, struct slice code);
// HTTP status that the words of an error (type, code, Google's status) stand for; 0 when unknown.
int dialect_error_status(struct slice word);

// The rest is for the dialects' own files.

extern const struct dialect dialect_openai, dialect_responses, dialect_anthropic;
// openai_chat_emit.c and openai_responses_emit.c.
int openai_chat_render_error(const struct dialect_error *error, struct buf *out);
int openai_chat_render_stream_error(const struct dialect_reader *reader,
                                    const struct dialect_error *error, struct buf *out);
int openai_chat_emit(struct dialect_writer *writer, const struct event *event, struct buf *out);
int openai_chat_emit_whole(struct dialect_writer *writer, const struct event *events, size_t count,
                           struct buf *out);
int responses_render_error(const struct dialect_error *error, struct buf *out);
int responses_render_stream_error(const struct dialect_reader *reader,
                                  const struct dialect_error *error, struct buf *out);
int responses_emit(struct dialect_writer *writer, const struct event *event, struct buf *out);
int responses_emit_whole(struct dialect_writer *writer, const struct event *events, size_t count,
                         struct buf *out);

// The longest length ≤ len that does not cut a UTF-8 character of the text.
size_t dialect_cut(const char *text, size_t len);
// Decodes the inside of a JSON string (escapes resolved, lone surrogates to U+FFFD) into out, cut
// at a character's border so that it fits with its NUL. Gives the length.
size_t dialect_decode(struct slice inside, char *out, size_t size);
// Scans an event's data; false when it is no JSON object.
bool dialect_scan(struct skim *skim, const struct skim_spec *spec, struct slice data);
// Tells of a string that means nothing where it stands in the event.
void dialect_note_pad(const struct skim_span *span, struct dialect_info *info);
// Length of a string span when decoded; 0 for other types.
uint64_t dialect_text_bytes(struct slice text, const struct skim_span *span);
// Copies a non-empty string span, cut to size; leaves out alone otherwise. True when copied.
bool dialect_copy_string(struct slice text, const struct skim_span *span, char *out, size_t size);
// Fills the reader's error scratch and info->error from an error's JSON (the whole event or body:
// any shape dialect_read_error knows) and sets class ERROR and has_error.
void dialect_take_error(struct dialect_reader *reader, struct slice json,
                        struct dialect_info *info);
// {"message","type","param","code"}: the OpenAI error object.
struct json_out;
void dialect_openai_error(struct json_out *out, const struct dialect_error *error);
// First bytes of every emit: the order of events. GW_EINVAL when event may not come now.
GW_MUSTCHECK int dialect_check_order(const struct dialect_writer *writer,
                                     const struct event *event);
// Applies what all dialects keep of an event (id, model, usage, open block, counts). Called after
// the event's bytes were written.
void dialect_note_event(struct dialect_writer *writer, const struct event *event);
// Takes id and model of START.
void dialect_note_start(struct dialect_writer *writer, const struct event *event,
                        const char *id_prefix);
