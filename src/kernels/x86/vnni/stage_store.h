/* What becomes of 16 sums of a stage, u q, in a prefill product. Included behind the definitions that gemm.h
 * wants, with tile_sum of 32-bit integers. */
#ifndef WALSH_KERNELS_X86_VNNI_STAGE_STORE_H
#define WALSH_KERNELS_X86_VNNI_STAGE_STORE_H

#include <stdbool.h>

#include "kernels/product.h"
#include "kernels/x86/avx512/gemm.h"
#include "kernels/x86/stage_term.h"

/* Where a stage's sums go: y = (y + term) * scale, without y in the first stage, without the scale but in the
 * last. */
struct stage_output {
    const struct walsh_product_part *part;
    struct stage_term term;
    bool first, last;
};

INLINE void store_stage(const void *to, size_t i, size_t r, __mmask16 mask, tile_sum sum)
{
    const struct stage_output *s = to;
    const struct walsh_activations *a = s->part->a;
    float *y = s->part->y + i * s->part->ldy + r;
    __m512i dot = _mm512_mullo_epi32((__m512i)sum, _mm512_set1_epi32(s->term.factor));
    dot = _mm512_sub_epi32(dot, _mm512_set1_epi32(s->term.offset * a->sum[i]));
    __m512 term = _mm512_mul_ps(_mm512_set1_ps(s->term.scale), _mm512_cvtepi32_ps(dot));
    if (!s->first) term = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, y), term);
    if (s->last) term = _mm512_mul_ps(term, _mm512_set1_ps(a->scale[i]));
    _mm512_mask_storeu_ps(y, mask, term);
}

#endif
