#pragma once
// Estimates of tokens from bytes, for holds and for upstreams that report no usage. Documented
// method, always flagged USAGE_ESTIMATED. Pure; any thread.
#include "base/slice.h"
#include <stdint.h>

// Fixed sums of a part, on the high side of what providers count for one large image, a PDF of a
// few pages, a minute of audio.
#define ESTIMATE_IMAGE_TOKENS 1600
#define ESTIMATE_FILE_TOKENS 4000
#define ESTIMATE_AUDIO_TOKENS 2000

// Input of a request body: text bytes / 3 rounded up (bytes of base64 data URIs and of JSON
// punctuation outside strings do not count) plus fixed sums per image, file and audio part.
uint64_t estimate_input_tokens(struct slice body);
// Output from the count of visible text bytes: bytes / 4, rounded up.
uint64_t estimate_output_tokens(uint64_t text_bytes);
