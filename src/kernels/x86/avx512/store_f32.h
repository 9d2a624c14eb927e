/* Where the f32 sums of a block of columns go: the first block writes y, the later ones add to it. Included
 * behind the definitions that gemm.h wants, with __m512 sums. */
#ifndef WALSH_KERNELS_X86_AVX512_STORE_F32_H
#define WALSH_KERNELS_X86_AVX512_STORE_F32_H

#include "kernels/product.h"
#include "kernels/x86/avx512/gemm.h"

INLINE void store_first(const void *to, size_t i, size_t r, __mmask16 mask, __m512 sum)
{
    const struct walsh_product_part *p = to;
    _mm512_mask_storeu_ps(p->y + i * p->ldy + r, mask, sum);
}

INLINE void store_next(const void *to, size_t i, size_t r, __mmask16 mask, __m512 sum)
{
    const struct walsh_product_part *p = to;
    float *y = p->y + i * p->ldy + r;
    _mm512_mask_storeu_ps(y, mask, _mm512_add_ps(_mm512_maskz_loadu_ps(mask, y), sum));
}

#endif
