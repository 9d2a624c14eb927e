/* E8P and E81B stages by f32 activations on AVX2.
 *
 * Decode: a pair of rows is decoded block by block into bytes; each stage has one accumulator of 8 lanes per
 * output over the columns in order, then a fixed tree; y = sum over the stages of scale * unit * sum, from
 * the left. Prefill: the stages' sum of a block of columns is unpacked to f32 panels, then as the dense
 * kernel. */
#include "base/memory.h"
#include "kernels/table.h"
#include "kernels/x86/avx2/e8p_block.h"
#include "kernels/x86/avx2/tile_f32.h"

#define PANEL_OUTPUTS 96 /* prefill: outputs whose panels of 256 columns share the L2: 98 KB */
#define ROWS 4           /* decode: activation rows that share a decoded block */

/* 8 nibbles of a stage as integers: 4 or 2 times the weights before the scale. */
INLINE __m256 nibble_values(enum walsh_stage_kind kind, const uint8_t *nibbles)
{
    __m256i u = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)nibbles));
    if (kind == WALSH_STAGE_E8P)
        u = _mm256_sub_epi32(_mm256_add_epi32(u, u), _mm256_set1_epi32(15));
    else
        u = _mm256_sub_epi32(u, _mm256_set1_epi32(4));
    return _mm256_cvtepi32_ps(u);
}

static float stage_unit(const struct walsh_weights *w, unsigned stage)
{
    return w->stage[stage].scale * (w->stage[stage].kind == WALSH_STAGE_E8P ? 0.25f : 0.5f);
}

/* --- decode --- */

/* One pair of rows by `rows` activation rows, one stage; kind and rows are constant. */
INLINE void stage_sums(enum walsh_stage_kind kind, const unsigned rows, const uint8_t *data, size_t blocks,
                       const float *x, size_t stride, float sums[2][ROWS])
{
    _Alignas(32) uint8_t nibbles[2][WALSH_PLANE_COLUMNS];
    __m256 sum[2][ROWS];
#pragma GCC unroll 4
    for (unsigned i = 0; i < rows; i++) sum[0][i] = sum[1][i] = _mm256_setzero_ps();
    for (size_t b = 0; b < blocks; b++) {
        stage_block(kind, walsh_plane_tables(), data + b * walsh_stage_block(kind), nibbles[0], nibbles[1]);
        for (size_t k = 0; k < WALSH_PLANE_COLUMNS; k += 8) {
            __m256 even = nibble_values(kind, nibbles[0] + k), odd = nibble_values(kind, nibbles[1] + k);
#pragma GCC unroll 4
            for (unsigned i = 0; i < rows; i++) {
                __m256 a = _mm256_loadu_ps(x + i * stride + b * WALSH_PLANE_COLUMNS + k);
                sum[0][i] = _mm256_fmadd_ps(even, a, sum[0][i]);
                sum[1][i] = _mm256_fmadd_ps(odd, a, sum[1][i]);
            }
        }
    }
#pragma GCC unroll 4
    for (unsigned i = 0; i < rows; i++) {
        sums[0][i] = sum_lanes_ps(sum[0][i]);
        sums[1][i] = sum_lanes_ps(sum[1][i]);
    }
}

INLINE void decode_pair(const unsigned rows, const struct walsh_product_part *p, size_t r, size_t i)
{
    const struct walsh_weights *w = p->weights;
    const size_t blocks = walsh_stage_blocks(w->cols);
    const float *x = (const float *)p->a->data + i * p->a->stride;
    for (unsigned k = 0; k < w->stages; k++) {
        const uint8_t *data =
            (const uint8_t *)w->stage[k].data + r / 2 * blocks * walsh_stage_block(w->stage[k].kind);
        float sums[2][ROWS];
        if (w->stage[k].kind == WALSH_STAGE_E8P)
            stage_sums(WALSH_STAGE_E8P, rows, data, blocks, x, p->a->stride, sums);
        else
            stage_sums(WALSH_STAGE_E81B, rows, data, blocks, x, p->a->stride, sums);
        float scale = stage_unit(w, k);
        for (unsigned n = 0; n < rows; n++) {
            float *y = p->y + (i + n) * p->ldy + r;
            float even = scale * sums[0][n], odd = scale * sums[1][n];
            y[0] = k == 0 ? even : y[0] + even;
            y[1] = k == 0 ? odd : y[1] + odd;
        }
    }
}

void walsh_product_e8p_decode_avx2(const struct walsh_product_part *p)
{
    const size_t rows = p->a->rows;
    for (size_t r = p->begin; r < p->end; r += 2) {
        size_t i = 0;
        for (; i + 4 <= rows; i += 4) decode_pair(4, p, r, i);
        for (; i < rows; i++) decode_pair(1, p, r, i);
    }
}

/* --- prefill --- */

/* 16 rows by 256 columns of every stage. */
struct stage_tiles {
    const struct walsh_weights *weights;
    _Alignas(32) uint8_t nibbles[WALSH_MAX_STAGES][16 * WALSH_PLANE_COLUMNS];
};

INLINE __m256i panel_sum(const void *from, size_t row, size_t step, size_t count)
{
    (void)count; /* whole blocks always */
    const struct stage_tiles *s = from;
    __m256 sum = _mm256_setzero_ps();
    for (unsigned k = 0; k < s->weights->stages; k++) {
        const uint8_t *at = s->nibbles[k] + row * WALSH_PLANE_COLUMNS + step;
        __m256 scale = _mm256_set1_ps(stage_unit(s->weights, k));
        sum = _mm256_add_ps(sum, _mm256_mul_ps(scale, nibble_values(s->weights->stage[k].kind, at)));
    }
    return _mm256_castps_si256(sum);
}

/* Plane block b of outputs [row, row + outputs), a multiple of 16, as panels. */
static void pack(const struct walsh_weights *w, size_t row, size_t outputs, size_t b, uint32_t *panels)
{
    const struct walsh_plane_tables *t = walsh_plane_tables();
    const size_t blocks = walsh_stage_blocks(w->cols);
    struct stage_tiles s;
    s.weights = w;
    for (size_t done = 0; done < outputs; done += 16) {
        for (unsigned k = 0; k < w->stages; k++) {
            if (w->stage[k].kind == WALSH_STAGE_E8P)
                stage_tile(WALSH_STAGE_E8P, t, w->stage[k].data, blocks, row + done, b, s.nibbles[k]);
            else
                stage_tile(WALSH_STAGE_E81B, t, w->stage[k].data, blocks, row + done, b, s.nibbles[k]);
        }
        for (size_t n = 0; n < 16; n += 8) {
            for (size_t k = 0; k < WALSH_PLANE_COLUMNS; k += 8)
                panel_block(panel_sum, &s, n, 8, k, 8, panels, WALSH_PLANE_COLUMNS, done + n, k);
        }
    }
}

void walsh_product_e8p_prefill_avx2(const struct walsh_product_part *p)
{
    const size_t blocks = walsh_stage_blocks(p->weights->cols);
    uint32_t *panels = p->scratch;
    for (size_t r = p->begin; r < p->end; r += PANEL_OUTPUTS) {
        size_t outputs = walsh_min(PANEL_OUTPUTS, p->end - r);
        for (size_t b = 0; b < blocks; b++) {
            pack(p->weights, r, outputs, b, panels);
            struct tile_rows a = {(const float *)p->a->data + b * WALSH_PLANE_COLUMNS,
                                  p->a->stride * sizeof(float), p->a->rows};
            multiply_block(p, 0, panels, &a, WALSH_PLANE_COLUMNS, r, outputs, b == 0);
        }
    }
}
