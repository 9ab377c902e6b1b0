#include "common/hist.h"

double hist_us(const struct hist *hist, double share)
{
    uint64_t wanted = (uint64_t)(share * (double)hist->count), sum = 0;
    if (hist->count == 0)
        return 0;
    if (wanted >= hist->count)
        return (double)hist->max / 1e3;
    for (uint64_t i = 0; i < HIST_SIZE; i++) {
        sum += hist->buckets[i];
        if (sum <= wanted)
            continue;
        if (i < HIST_STEPS)
            return (double)i / 1e3;
        uint64_t top = i / HIST_STEPS + HIST_BITS - 1;
        double low = (double)((HIST_STEPS + i % HIST_STEPS) << (top - HIST_BITS));
        return (low + (double)(UINT64_C(1) << (top - HIST_BITS)) / 2) / 1e3;
    }
    return (double)hist->max / 1e3;
}
