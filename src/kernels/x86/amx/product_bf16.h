/* What products of bf16 by tiles share: TDPBF16PS gives the even and the odd columns of a tile a sum each and
 * adds both to the output's, in f32 (round to nearest even, subnormals as zero). One chain per output over
 * all columns. */
#ifndef WALSH_KERNELS_X86_AMX_PRODUCT_BF16_H
#define WALSH_KERNELS_X86_AMX_PRODUCT_BF16_H

#include "base/memory.h"
#include "kernels/table.h"
#include "kernels/x86/avx512/tile_f32.h"

#define TILE_DOT TILE_DOT_BF16
#include "kernels/x86/amx/gemm.h"

#define STEP 32 /* columns of a tile; transposed: rows */
_Static_assert(AMX_SCRATCH <= WALSH_PANEL_SCRATCH, "sums and panels");

INLINE void store_row(const void *to, size_t i, size_t r, __mmask16 mask, __m512i sum)
{
    const struct walsh_product_part *p = to;
    float *y = p->y + i * p->ldy + r;
    __m512 v = _mm512_castsi512_ps(sum);
    if (p->add) v = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, y), v);
    _mm512_mask_storeu_ps(y, mask, v);
}

/* A piece whose outputs are sums of `inner` products. */
INLINE void product_bf16(amx_pack *pack, const struct walsh_product_part *p, size_t inner)
{
    const struct amx_rows a = {p->a->data, p->a->stride * sizeof(uint16_t), p->a->rows, p->a->tiled,
                               p->a->tiled ? 0 : inner % STEP * sizeof(uint16_t)};
    for (size_t r = p->begin; r < p->end; r += MOST_OUTPUTS)
        amx_all(pack, p->weights, store_row, p, p->scratch, &a, walsh_div_up(inner, STEP), r,
                walsh_min(MOST_OUTPUTS, p->end - r));
}

#endif
