/* What turns a sum of nibbles u times int8 activations q into a stage's term of the product:
 * scale * (float)(factor * sum - offset * sum q), each operation rounded to f32. */
#ifndef WALSH_KERNELS_X86_STAGE_TERM_H
#define WALSH_KERNELS_X86_STAGE_TERM_H

#include "formats/weights.h"

struct stage_term {
    int32_t factor, offset;
    float scale;
};

static inline struct stage_term stage_term(const struct walsh_weights *w, unsigned stage)
{
    if (w->stage[stage].kind == WALSH_STAGE_E8P)
        return (struct stage_term){2, 15, w->stage[stage].scale * 0.25f};
    return (struct stage_term){1, 4, w->stage[stage].scale * 0.5f};
}

/* y after stage number `stage`: the terms are summed from the left. */
static inline float stage_add(float y, unsigned stage, const struct stage_term *t, int32_t dot, int32_t sum)
{
    float term = t->scale * (float)(t->factor * dot - t->offset * sum);
    return stage == 0 ? term : y + term;
}

#endif
