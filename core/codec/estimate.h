#pragma once
// Estimates of tokens from bytes, for holds and for upstreams that report no usage. Documented
// method, always flagged USAGE_ESTIMATED. Pure; any thread.
#include "base/slice.h"
#include <stdint.h>

// Input of a request body: text bytes / 3 rounded up (bytes of base64 data URIs and of JSON
// punctuation outside strings do not count) plus fixed sums per image, file and audio part.
uint64_t estimate_input_tokens(struct slice body);
// Output from the count of visible text bytes: bytes / 4, rounded up.
uint64_t estimate_output_tokens(uint64_t text_bytes);
