// Token usage: raw fields are gathered as reported (last value present wins), and one function
// turns them into disjoint buckets. Keeping the raw fields apart from the buckets is what makes the
// order of usage objects irrelevant: message_start and message_delta, a usage in every chunk,
// Groq's two.
#include "codec/usage.h"
#include "codec/skim.h"

#define USAGE_MAX_VALUE (UINT64_C(1) << 40)

// Raw fields. Several spellings may feed one field; within one object the later entry of a table
// wins, so detailed spellings stand after flat ones.
enum raw_field {
    RAW_PROMPT,
    RAW_COMPLETION,
    RAW_TOTAL,
    RAW_CACHED,      // prompt_tokens_details.cached_tokens, cache_read_input_tokens (Claude)
    RAW_CACHED_FLAT, // cached_tokens, num_cached_tokens, prompt_cache_hit_tokens
    RAW_CACHE_MISS,  // prompt_cache_miss_tokens
    RAW_CACHE_WRITE, // cache_write_tokens, cache_creation_input_tokens
    RAW_CACHE_5M,
    RAW_CACHE_1H,
    RAW_REASONING,
    RAW_REASONING_FLAT,
    RAW_AUDIO_IN,
    RAW_AUDIO_SECONDS, // Mistral: input audio whose tokens are only in the total
    RAW_IMAGE_IN,
    RAW_AUDIO_OUT,
    RAW_SERVER_CALLS,
    RAW_COUNT,
};

#define USAGE_MAX_FIELDS SKIM_MAX_PATHS

struct usage_table {
    const char *const *paths;
    const uint8_t *fields;
    size_t count;
};

static const char *const OPENAI_PATHS[] = {
    "input_tokens",
    "prompt_tokens",
    "output_tokens",
    "completion_tokens",
    "total_tokens",
    "cached_tokens",
    "num_cached_tokens",
    "prompt_cache_hit_tokens",
    "cache_read_input_tokens",
    "input_tokens_details.cached_tokens",
    "prompt_tokens_details.cached_tokens",
    "prompt_cache_miss_tokens",
    "cache_creation_input_tokens",
    "input_tokens_details.cache_write_tokens",
    "prompt_tokens_details.cache_write_tokens",
    "reasoning_tokens",
    "output_tokens_details.reasoning_tokens",
    "completion_tokens_details.reasoning_tokens",
    "input_token_details.audio_tokens",
    "input_tokens_details.audio_tokens",
    "prompt_tokens_details.audio_tokens",
    "prompt_audio_seconds",
    "input_tokens_details.image_tokens",
    "prompt_tokens_details.image_tokens",
    "output_tokens_details.audio_tokens",
    "completion_tokens_details.audio_tokens",
    "num_server_side_tools_used",
    "server_tool_use.web_search_requests",
    "server_tool_use_details.web_search_requests",
};
static const uint8_t OPENAI_FIELDS[] = {
    RAW_PROMPT,         RAW_PROMPT,        RAW_COMPLETION,   RAW_COMPLETION,   RAW_TOTAL,
    RAW_CACHED_FLAT,    RAW_CACHED_FLAT,   RAW_CACHED_FLAT,  RAW_CACHED_FLAT,  RAW_CACHED,
    RAW_CACHED,         RAW_CACHE_MISS,    RAW_CACHE_WRITE,  RAW_CACHE_WRITE,  RAW_CACHE_WRITE,
    RAW_REASONING_FLAT, RAW_REASONING,     RAW_REASONING,    RAW_AUDIO_IN,     RAW_AUDIO_IN,
    RAW_AUDIO_IN,       RAW_AUDIO_SECONDS, RAW_IMAGE_IN,     RAW_IMAGE_IN,     RAW_AUDIO_OUT,
    RAW_AUDIO_OUT,      RAW_SERVER_CALLS,  RAW_SERVER_CALLS, RAW_SERVER_CALLS,
};
_Static_assert(sizeof(OPENAI_PATHS) / sizeof(OPENAI_PATHS[0]) == sizeof(OPENAI_FIELDS),
               "one field per path");
_Static_assert(sizeof(OPENAI_FIELDS) <= USAGE_MAX_FIELDS, "skim takes that many paths");

static const char *const ANTHROPIC_PATHS[] = {
    "input_tokens",
    "output_tokens",
    "cache_read_input_tokens",
    "cache_creation_input_tokens",
    "cache_creation.ephemeral_5m_input_tokens",
    "cache_creation.ephemeral_1h_input_tokens",
    "output_tokens_details.thinking_tokens",
    "server_tool_use.web_search_requests",
};
static const uint8_t ANTHROPIC_FIELDS[] = {
    RAW_PROMPT,   RAW_COMPLETION, RAW_CACHED,    RAW_CACHE_WRITE,
    RAW_CACHE_5M, RAW_CACHE_1H,   RAW_REASONING, RAW_SERVER_CALLS,
};
_Static_assert(sizeof(ANTHROPIC_PATHS) / sizeof(ANTHROPIC_PATHS[0]) == sizeof(ANTHROPIC_FIELDS),
               "one field per path");

static const struct usage_table OPENAI_TABLE = {OPENAI_PATHS, OPENAI_FIELDS, sizeof(OPENAI_FIELDS)};
static const struct usage_table ANTHROPIC_TABLE = {ANTHROPIC_PATHS, ANTHROPIC_FIELDS,
                                                   sizeof(ANTHROPIC_FIELDS)};

_Static_assert(RAW_COUNT <= sizeof(((struct usage_meter *)0)->raw) / sizeof(uint64_t),
               "the meter has room for every raw field");

uint64_t usage_prompt(const struct usage *usage)
{
    return usage->input + usage->cache_read + usage->cache_write_5m + usage->cache_write_1h +
           usage->audio_in + usage->image_in;
}

uint64_t usage_completion(const struct usage *usage)
{
    return usage->output + usage->reasoning + usage->audio_out;
}

uint64_t usage_total(const struct usage *usage)
{
    return usage_prompt(usage) + usage_completion(usage);
}

void usage_meter_init(struct usage_meter *meter, enum usage_rule rule)
{
    *meter = (struct usage_meter){.rule = rule};
}

static bool has_raw(const struct usage_meter *meter, enum raw_field field)
{
    return (meter->seen >> field & 1) != 0;
}

static uint64_t get_raw(const struct usage_meter *meter, enum raw_field field)
{
    return has_raw(meter, field) ? meter->raw[field] : 0;
}

void usage_meter_take(struct usage_meter *meter, struct slice object)
{
    const struct usage_table *table =
        meter->rule == USAGE_RULE_ANTHROPIC ? &ANTHROPIC_TABLE : &OPENAI_TABLE;
    struct skim skim;
    struct skim_spec spec = {.paths = table->paths, .path_count = table->count, .is_lenient = true};
    if (skim_whole(&skim, &spec, object) != 0 || skim.root_type != SKIM_OBJECT)
        return;
    for (size_t i = 0; i < table->count; i++) {
        const struct skim_span *span = &skim.spans[i];
        if (span->type == SKIM_ABSENT || span->type == SKIM_NULL)
            continue;
        // Mistral reports seconds here, as a fraction; only its presence matters.
        if (table->fields[i] == RAW_AUDIO_SECONDS) {
            if (span->type == SKIM_NUMBER && object.ptr[span->start] != '-') {
                meter->raw[RAW_AUDIO_SECONDS] = 1;
                meter->seen |= 1u << RAW_AUDIO_SECONDS;
            }
            continue;
        }
        uint64_t value;
        if (span->type == SKIM_NUMBER && object.ptr[span->start] == '-') {
            meter->flags |= USAGE_CLAMPED;
            continue;
        }
        if (span->type != SKIM_NUMBER || skim_u64(object, span, &value) != 0 ||
            value > USAGE_MAX_VALUE) {
            meter->flags |= USAGE_ABSURD;
            continue;
        }
        meter->raw[table->fields[i]] = value;
        meter->seen |= 1u << table->fields[i];
    }
}

// Takes at most *rest from it; a part larger than its whole is cut and flagged.
static uint64_t take_part(uint64_t part, uint64_t *rest, uint32_t *flags)
{
    if (part > *rest) {
        part = *rest;
        *flags |= USAGE_CLAMPED;
    }
    *rest -= part;
    return part;
}

static void fill_anthropic(const struct usage_meter *meter, struct usage *out)
{
    out->input = get_raw(meter, RAW_PROMPT);
    out->cache_read = get_raw(meter, RAW_CACHED);
    uint64_t written = get_raw(meter, RAW_CACHE_WRITE);
    uint64_t hour = get_raw(meter, RAW_CACHE_1H);
    if (!has_raw(meter, RAW_CACHE_WRITE))
        written = hour + get_raw(meter, RAW_CACHE_5M);
    // The split may come from message_start and the sum from a later message_delta that has none:
    // the sum is the newer fact, so the split yields without a flag.
    out->cache_write_1h = hour < written ? hour : written;
    out->cache_write_5m = written - out->cache_write_1h;
    uint64_t rest = get_raw(meter, RAW_COMPLETION);
    out->reasoning = take_part(get_raw(meter, RAW_REASONING), &rest, &out->flags);
    out->output = rest;
    out->server_calls = get_raw(meter, RAW_SERVER_CALLS);
}

// How reasoning relates to completion_tokens is told by the numbers where there is a total, and by
// the rule where there is none (PROTOCOLS §5): inside for OpenAI, outside for xAI chat; Gemini
// shows hidden thinking only as the difference between the total and the parts.
static void fill_openai(const struct usage_meter *meter, struct usage *out)
{
    uint64_t total = get_raw(meter, RAW_TOTAL);
    uint64_t prompt = get_raw(meter, RAW_PROMPT);
    uint64_t completion = get_raw(meter, RAW_COMPLETION);
    uint64_t cached = get_raw(meter, RAW_CACHED);
    uint64_t reasoning = get_raw(meter, RAW_REASONING);
    uint64_t hidden_audio = 0;
    if (cached == 0)
        cached = get_raw(meter, RAW_CACHED_FLAT);
    if (reasoning == 0)
        reasoning = get_raw(meter, RAW_REASONING_FLAT);
    if (!has_raw(meter, RAW_PROMPT)) {
        if (has_raw(meter, RAW_CACHE_MISS))
            prompt = cached + get_raw(meter, RAW_CACHE_MISS);
        else if (total > completion) // rerank and the like report a bare total
            prompt = total - completion;
    }
    if (!has_raw(meter, RAW_COMPLETION) && total > prompt)
        completion = total - prompt;

    bool is_exclusive = meter->rule == USAGE_RULE_OPENAI_EXCLUSIVE;
    if (!has_raw(meter, RAW_TOTAL)) {
        if (is_exclusive)
            completion += reasoning;
    } else if (total == prompt + completion) {
        // Part of the completion, whatever the rule; unless it cannot be.
        if (is_exclusive && reasoning > completion) {
            completion += reasoning;
            out->flags |= USAGE_TOTAL_DIFFERS;
        }
    } else if (total == prompt + completion + reasoning) {
        completion += reasoning;
    } else if (total > prompt + completion) {
        uint64_t hidden = total - prompt - completion;
        out->flags |= USAGE_TOTAL_DIFFERS;
        if (has_raw(meter, RAW_AUDIO_SECONDS)) {
            hidden_audio = hidden;
            prompt += hidden;
        } else {
            reasoning = reasoning > completion ? (reasoning > hidden ? reasoning : hidden)
                                               : reasoning + hidden;
            completion += hidden;
        }
    } else {
        out->flags |= USAGE_TOTAL_DIFFERS;
    }

    uint64_t rest = prompt;
    out->cache_read = take_part(cached, &rest, &out->flags);
    out->cache_write_5m = take_part(get_raw(meter, RAW_CACHE_WRITE), &rest, &out->flags);
    out->audio_in = take_part(get_raw(meter, RAW_AUDIO_IN) + hidden_audio, &rest, &out->flags);
    out->image_in = take_part(get_raw(meter, RAW_IMAGE_IN), &rest, &out->flags);
    out->input = rest;
    rest = completion;
    out->reasoning = take_part(reasoning, &rest, &out->flags);
    out->audio_out = take_part(get_raw(meter, RAW_AUDIO_OUT), &rest, &out->flags);
    out->output = rest;
    out->server_calls = get_raw(meter, RAW_SERVER_CALLS);
}

bool usage_meter_result(const struct usage_meter *meter, struct usage *out)
{
    const uint32_t sums = 1u << RAW_PROMPT | 1u << RAW_COMPLETION | 1u << RAW_TOTAL |
                          1u << RAW_CACHE_MISS | 1u << RAW_CACHED | 1u << RAW_CACHE_WRITE;
    *out = (struct usage){.flags = meter->flags};
    if ((meter->seen & sums) == 0)
        return false;
    out->flags |= USAGE_REPORTED;
    if (meter->rule == USAGE_RULE_ANTHROPIC)
        fill_anthropic(meter, out);
    else
        fill_openai(meter, out);
    return true;
}
