#pragma once
// What a recording should give, computed the plain way: lines split by hand, every event parsed
// into a yyjson tree and walked. Shares no code with the readers under test.
#include "codec/dialect.h"

struct oracle {
    size_t event_count; // events that have data
    enum dialect_class classes[65536];
    bool has_usage;
    bool is_odd; // values the plain walk does not judge; the recording's expect.json does
    struct usage usage;
    bool has_total;
    uint64_t total; // as reported
    char finish[64], model[128];
    char *texts[4]; // by enum event_block, as far as events show it; malloc'd
    size_t text_lens[4];
    uint64_t text_bytes;
    bool has_error, has_end;
    bool has_text; // of the event at hand: only its first piece is shown
};

void oracle_stream(struct oracle *oracle, enum dialect_id id, const char *bytes, size_t len);
void oracle_body(struct oracle *oracle, enum dialect_id id, const char *bytes, size_t len);
void oracle_free(struct oracle *oracle);
