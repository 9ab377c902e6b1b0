#pragma once
// Token usage in disjoint buckets, and the per-dialect rules that fill them (DESIGN §6,
// PROTOCOLS §5). Buckets are never negative and their sum is the total; what an upstream reports
// inconsistently is clamped and flagged. Pure; any thread.
#include "base/err.h"
#include "base/slice.h"
#include <stdint.h>

enum usage_flag {
    USAGE_REPORTED = 1,       // the upstream gave a usage object
    USAGE_ESTIMATED = 2,      // made from bytes (estimate.h)
    USAGE_CLAMPED = 4,        // a part was larger than its whole, or negative
    USAGE_PARTIAL = 8,        // the stream ended before its final usage
    USAGE_TOTAL_DIFFERS = 16, // the reported total differs from the sum (hidden thinking: see rule)
    USAGE_ABSURD = 32,        // not a number, above 2^40, or of a wrong type: ignored
};

struct usage {
    uint64_t input; // uncached text input
    uint64_t cache_read;
    uint64_t cache_write_5m;
    uint64_t cache_write_1h;
    uint64_t audio_in;     // not in input
    uint64_t image_in;     // not in input
    uint64_t output;       // visible output
    uint64_t reasoning;    // not in output
    uint64_t audio_out;    // not in output
    uint64_t server_calls; // web searches and the like; not tokens
    uint32_t flags;        // enum usage_flag
};

uint64_t usage_prompt(const struct usage *usage);     // all input incl. caches
uint64_t usage_completion(const struct usage *usage); // all output incl. reasoning
uint64_t usage_total(const struct usage *usage);

// Which rule reads a usage object (PROTOCOLS §5).
enum usage_rule {
    USAGE_RULE_OPENAI, // cached ⊂ prompt, reasoning ⊂ completion; chat, completions, embeddings
    USAGE_RULE_OPENAI_EXCLUSIVE, // xAI chat, Gemini: reasoning outside completion_tokens
    USAGE_RULE_RESPONSES,        // input_tokens / output_tokens with details
    USAGE_RULE_ANTHROPIC,        // input_tokens excludes caches
};

// Accumulates the usage objects of one exchange. Last value present wins per field, nothing is
// summed (message_start then message_delta; usage in every chunk).
struct usage_meter {
    enum usage_rule rule;
    uint32_t flags;
    uint32_t seen;    // bit per raw field
    uint64_t raw[24]; // usage.c's: raw fields as reported
};
void usage_meter_init(struct usage_meter *meter, enum usage_rule rule);
// Takes a usage object's JSON text (lenient: unknown members are ignored, null is nothing).
void usage_meter_take(struct usage_meter *meter, struct slice object);
// Buckets so far; false when nothing was reported. With hidden thinking (total above the sum under
// the exclusive rule, or Gemini's difference) the difference goes to reasoning.
bool usage_meter_result(const struct usage_meter *meter, struct usage *out);
