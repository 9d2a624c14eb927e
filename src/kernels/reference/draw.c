/* The passes of a draw over the vocabulary, and a draw by sorting everything. */
#include "kernels/table.h"

void walsh_logit_range_reference(const float *logits, size_t n, int32_t *most, int32_t *least)
{
    *most = *least = walsh_logit_order(logits[0]);
    for (size_t i = 1; i < n; i++) {
        const int32_t order = walsh_logit_order(logits[i]);
        if (order > *most) *most = order;
        if (order < *least) *least = order;
    }
}

uint64_t walsh_sum_masses_reference(const float *logits, size_t n, float best, float per_temperature,
                                    float deepest, struct walsh_reach *out)
{
    uint64_t sum = 0;
    out->count = 0;
    for (size_t i = 0; i < n; i++) {
        const float depth = walsh_logit_depth(best, logits[i], per_temperature), decay = walsh_decay(depth);
        sum += walsh_mass_of_decay(decay);
        if (!(depth <= deepest)) continue;
        out->ids[out->count] = (int32_t)i;
        out->depth[out->count] = depth;
        out->decay[out->count++] = decay;
    }
    return sum;
}

/* a stands before b. */
static bool before(const float *logits, int32_t a, int32_t b)
{
    const int32_t x = walsh_logit_order(logits[a]), y = walsh_logit_order(logits[b]);
    return x > y || (x == y && a < b);
}

/* By merging runs of doubling length. */
static void sort(const float *logits, int32_t *ids, int32_t *room, uint32_t n)
{
    for (uint32_t run = 1; run < n; run *= 2) {
        for (uint32_t begin = 0; begin < n; begin += 2 * run) {
            const uint32_t middle = n - begin < run ? n : begin + run;
            const uint32_t end = n - begin < 2 * run ? n : begin + 2 * run;
            uint32_t a = begin, b = middle;
            for (uint32_t i = begin; i < end; i++)
                room[i] = a < middle && (b == end || before(logits, ids[a], ids[b])) ? ids[a++] : ids[b++];
        }
        memcpy(ids, room, n * sizeof *ids);
    }
}

int32_t walsh_draw_reference(const struct walsh_draw *d, float *logits, uint32_t vocab, int32_t *room)
{
    int32_t *ids = room + vocab;
    walsh_edit_logits(d, logits);
    for (uint32_t i = 0; i < vocab; i++) {
        if (d->mask && !(d->mask[i / 64] >> i % 64 & 1)) logits[i] = -INFINITY;
        if (isnan(logits[i]) || logits[i] == INFINITY) return -1;
        ids[i] = (int32_t)i;
    }
    sort(logits, ids, room, vocab);
    const float best = logits[ids[0]];
    if (best == -INFINITY) return -1;
    if (d->greedy) return ids[0];

    uint64_t whole = 0, total = 0, sum = 0;
    const uint32_t most = d->top_k < vocab ? d->top_k : vocab;
#define MASS(i) walsh_mass_of_decay(walsh_decay(walsh_logit_depth(best, logits[ids[i]], d->per_temperature)))
    for (uint32_t i = 0; i < most; i++) whole += MASS(i);
    const uint64_t enough = d->top_p < 1 ? walsh_top_p_mass(d->top_p, whole) : UINT64_MAX;
    uint32_t kept = 0;
    for (; kept < most && total < enough && (kept == 0 || MASS(kept) >= d->least); kept++)
        total += MASS(kept);
    const uint64_t point = walsh_drawn_mass(d->share, total);
    for (uint32_t i = 0; i < kept; i++)
        if ((sum += MASS(i)) > point) return ids[i];
#undef MASS
    return -1;
}
