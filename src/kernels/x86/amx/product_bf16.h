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

#define STEP 32                      /* columns of a tile; transposed: rows */
#define SUMS_BYTES ((size_t)1 << 20) /* of the scratch */
#define FEW_ROWS 64
#define FEW_ROWS_BYTES ((size_t)256 << 10)
_Static_assert(SUMS_BYTES + WALSH_PANEL_BYTES <= WALSH_PANEL_SCRATCH, "sums and panels");

INLINE void store_row(const void *to, size_t i, size_t r, __mmask16 mask, __m512i sum)
{
    const struct walsh_product_part *p = to;
    float *y = p->y + i * p->ldy + r;
    __m512 v = _mm512_castsi512_ps(sum);
    if (p->add) v = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, y), v);
    _mm512_mask_storeu_ps(y, mask, v);
}

/* Outputs [first, first + outputs) of w as panels of `steps` steps. */
typedef void pack_panels(const struct walsh_weights *w, size_t first, size_t outputs, size_t steps,
                         uint8_t *panels);

/* A piece whose outputs are sums of `inner` products. */
INLINE void product_bf16(pack_panels *pack, const struct walsh_product_part *p, size_t inner)
{
    const size_t steps = walsh_div_up(inner, STEP);
    /* the panels of few rows meet them as soon as they are there */
    const size_t bytes = p->a->rows > FEW_ROWS ? WALSH_PANEL_BYTES : FEW_ROWS_BYTES;
    const size_t most = walsh_max(bytes / (steps * 64) / GROUP_OUTPUTS, 1) * GROUP_OUTPUTS;
    const struct amx_rows a = {p->a->data, p->a->stride * sizeof(uint16_t), p->a->rows, p->a->tiled,
                               p->a->tiled ? 0 : inner % STEP * sizeof(uint16_t)};
    uint32_t *sums = p->scratch;
    uint8_t *panels = (uint8_t *)p->scratch + SUMS_BYTES;
    for (size_t r = p->begin; r < p->end; r += most) {
        const size_t outputs = walsh_min(most, p->end - r);
        pack(p->weights, r, outputs, steps, panels);
        amx_all(store_row, p, panels, sums, &a, steps, r, outputs);
    }
}

#endif
