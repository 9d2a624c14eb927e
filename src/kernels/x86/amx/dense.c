/* bf16 weights by bf16 activations on AMX, prefill: TDPBF16PS, which gives the even and the odd columns of a tile
 * a sum each and adds both to the output's, in f32 (round to nearest even, subnormals as zero). One chain per
 * output over all columns. */
#include "base/memory.h"
#include "kernels/table.h"
#include "kernels/x86/avx512/tile_f32.h"

#define TILE_DOT TILE_DOT_BF16
#include "kernels/x86/amx/gemm.h"

#define STEP 32                      /* columns of a tile */
#define SUMS_BYTES ((size_t)1 << 20) /* of the scratch */

/* Rows [row, row + outputs) of w as panels of `steps` steps. */
static void pack_rows(const struct walsh_weights *w, size_t row, size_t outputs, size_t steps,
                      uint8_t *panels)
{
    for (size_t done = 0; done < outputs; done += 16) {
        const uint16_t *from = (const uint16_t *)w->data + (row + done) * w->cols;
        for (size_t k = 0; k < steps; k++, panels += TILE_BYTES) {
            const __mmask32 mask = _bzhi_u32(0xffffffffu, (unsigned)walsh_min(w->cols - k * STEP, STEP));
            __m512i r[16];
#pragma GCC unroll 16
            for (size_t n = 0; n < 16; n++)
                r[n] = done + n < outputs ? _mm512_maskz_loadu_epi16(mask, from + n * w->cols + k * STEP)
                                          : _mm512_setzero_si512();
            transpose_16x16(r);
#pragma GCC unroll 16
            for (size_t n = 0; n < 16; n++) _mm512_store_si512(panels + 64 * n, r[n]);
        }
    }
}

INLINE void store_row(const void *to, size_t i, size_t r, __mmask16 mask, __m512i sum)
{
    const struct walsh_product_part *p = to;
    float *y = p->y + i * p->ldy + r;
    __m512 v = _mm512_castsi512_ps(sum);
    if (p->add) v = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, y), v);
    _mm512_mask_storeu_ps(y, mask, v);
}

void walsh_product_bf16_prefill_amx(const struct walsh_product_part *p)
{
    const struct walsh_weights *w = p->weights;
    const size_t steps = walsh_div_up(w->cols, STEP);
    if (w->cols > WALSH_TILED_MAX_BF16_COLUMNS) { /* the scratch holds no panel of a group */
        walsh_product_bf16_prefill_bf16(p);
        return;
    }
    const size_t most = walsh_max(WALSH_PANEL_BYTES / (steps * 64) / GROUP_OUTPUTS, 1) * GROUP_OUTPUTS;
    const struct amx_rows a = {p->a->data, p->a->stride * sizeof(uint16_t), p->a->rows, p->a->tiled};
    uint32_t *sums = p->scratch;
    uint8_t *panels = (uint8_t *)p->scratch + SUMS_BYTES;
    for (size_t r = p->begin; r < p->end; r += most) {
        const size_t outputs = walsh_min(most, p->end - r);
        pack_rows(w, r, outputs, steps, panels);
        amx_all(store_row, p, panels, sums, &a, steps, r, outputs);
    }
}
