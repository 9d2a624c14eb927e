/* Where the f32 sums of a block of columns go: the first block writes y, the later ones add to it. Included
 * behind the definitions that gemm.h wants, with __m512 sums. */
#ifndef WALSH_KERNELS_X86_AVX512_STORE_F32_H
#define WALSH_KERNELS_X86_AVX512_STORE_F32_H

#include <stdbool.h>

#include "kernels/product.h"
#include "kernels/x86/avx512/gemm.h"

struct block_output {
    float *y;
    size_t ldy;
    bool first; /* block of columns */
};

INLINE void store_block(const void *to, size_t i, size_t r, __mmask16 mask, __m512 sum)
{
    const struct block_output *o = to;
    float *y = o->y + i * o->ldy + r;
    if (!o->first) sum = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, y), sum);
    _mm512_mask_storeu_ps(y, mask, sum);
}

/* The panels of a block of columns by all rows of `a`, into y of `p` from its row i on. */
static inline void multiply_block(const struct walsh_product_part *p, size_t i, const uint32_t *panels,
                                  const struct tile_rows *a, size_t steps, size_t output, size_t outputs,
                                  bool first)
{
    struct block_output to = {p->y + i * p->ldy, p->ldy, first};
    tile_all(store_block, &to, panels, a, steps, output, outputs);
}

#endif
