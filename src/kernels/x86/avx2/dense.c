/* AVX2 products of dense weights: f32, f16 or bf16 weights by f32 activations, bf16 by bf16. Every element is
 * widened to f32 exactly.
 *
 * Decode: the weights pass by as one sequential stream, read once for two activation rows; an output has
 * CHAINS accumulators of 8 lanes, to which the columns are dealt in turn, then a fixed tree. Prefill: columns
 * in blocks of BLOCK; within a block one chain of FMAs per output in column order, the blocks summed in
 * order. Both are the same for any number of rows. */
#include "base/memory.h"
#include "kernels/table.h"
#include "kernels/x86/avx2/tile_f32.h"

#include "kernels/x86/avx2/load_dense.h"

#define BLOCK 256        /* prefill: columns per panel */
#define PANEL_OUTPUTS 96 /* prefill: outputs whose panels share the L2: 96 * 256 * 4 = 98 KB */
#define CHAINS 4         /* decode: accumulators of an output */
#define PREFETCH 4096    /* decode: bytes ahead */

/* How the elements of one side are stored. */
struct element {
    load_8 *load;
    size_t width;
};

/* --- decode --- */

/* Output r by `rows` activation rows, constant, from i on. */
INLINE void decode_output(const struct element weight, const struct element activation, const unsigned rows,
                          const struct walsh_product_part *p, size_t r, size_t i)
{
    const size_t cols = p->weights->cols, a_bytes = p->a->stride * activation.width;
    const char *a = (const char *)p->a->data + i * a_bytes;
    const char *w = (const char *)p->weights->data + r * cols * weight.width;
    __m256 sum[CHAINS][2];
#pragma GCC unroll 4
    for (unsigned n = 0; n < CHAINS; n++) {
#pragma GCC unroll 2
        for (unsigned m = 0; m < rows; m++) sum[n][m] = _mm256_setzero_ps();
    }
    size_t k = 0;
    for (; k + 8 * CHAINS <= cols; k += 8 * CHAINS) {
        for (unsigned line = 0; line < 8 * CHAINS * weight.width; line += 64)
            _mm_prefetch(w + k * weight.width + PREFETCH + line, _MM_HINT_T0);
#pragma GCC unroll 4
        for (unsigned n = 0; n < CHAINS; n++) {
            __m256 v = weight.load(w, k + 8 * n, 8);
#pragma GCC unroll 2
            for (unsigned m = 0; m < rows; m++)
                sum[n][m] = _mm256_fmadd_ps(v, activation.load(a + m * a_bytes, k + 8 * n, 8), sum[n][m]);
        }
    }
#pragma GCC unroll 4
    for (unsigned n = 0; n < CHAINS; n++) {
        if (k + 8 * n >= cols) break;
        __m256 v = weight.load(w, k + 8 * n, cols - k - 8 * n);
#pragma GCC unroll 2
        for (unsigned m = 0; m < rows; m++)
            sum[n][m] = _mm256_fmadd_ps(v, activation.load(a + m * a_bytes, k + 8 * n, 8), sum[n][m]);
    }
#pragma GCC unroll 2
    for (unsigned m = 0; m < rows; m++) {
        __m256 pair = _mm256_add_ps(sum[0][m], sum[1][m]), other = _mm256_add_ps(sum[2][m], sum[3][m]);
        p->y[(i + m) * p->ldy + r] = sum_lanes_ps(_mm256_add_ps(pair, other));
    }
}

INLINE void decode(const struct element weight, const struct element activation,
                   const struct walsh_product_part *p)
{
    const size_t rows = p->a->rows;
    for (size_t r = p->begin; r < p->end; r++) {
        size_t i = 0;
        for (; i + 2 <= rows; i += 2) decode_output(weight, activation, 2, p, r, i);
        if (i < rows) decode_output(weight, activation, 1, p, r, i);
    }
}

static const struct element f32 = {load_f32, 4};
static const struct element f16 = {load_f16, 2};
static const struct element bf16 = {load_bf16, 2};

void walsh_product_dense_decode_avx2(const struct walsh_product_part *p)
{
    switch (p->weights->format) {
    case WALSH_FORMAT_F32:
        decode(f32, f32, p);
        break;
    case WALSH_FORMAT_F16:
        decode(f16, f32, p);
        break;
    default:
        decode(bf16, f32, p);
    }
}

void walsh_product_bf16_decode_avx2(const struct walsh_product_part *p)
{
    decode(bf16, bf16, p);
}

/* --- prefill --- */

INLINE __m256i panel_f32(const void *from, size_t row, size_t k, size_t count)
{
    const struct walsh_weights *w = from;
    return _mm256_castps_si256(load_f32((const float *)w->data + row * w->cols, k, count));
}

INLINE __m256i panel_f16(const void *from, size_t row, size_t k, size_t count)
{
    const struct walsh_weights *w = from;
    return _mm256_castps_si256(load_f16((const uint16_t *)w->data + row * w->cols, k, count));
}

INLINE __m256i panel_bf16(const void *from, size_t row, size_t k, size_t count)
{
    const struct walsh_weights *w = from;
    return _mm256_castps_si256(load_bf16((const uint16_t *)w->data + row * w->cols, k, count));
}

static size_t pack(const struct walsh_weights *w, size_t row, size_t outputs, size_t k, size_t cols,
                   uint32_t *panels)
{
    switch (w->format) {
    case WALSH_FORMAT_F32:
        return panel_pack(panel_f32, w, row, outputs, k, cols, panels);
    case WALSH_FORMAT_F16:
        return panel_pack(panel_f16, w, row, outputs, k, cols, panels);
    default:
        return panel_pack(panel_bf16, w, row, outputs, k, cols, panels);
    }
}

void walsh_product_dense_prefill_avx2(const struct walsh_product_part *p)
{
    const struct walsh_weights *w = p->weights;
    uint32_t *panels = p->scratch;
    for (size_t r = p->begin; r < p->end; r += PANEL_OUTPUTS) {
        size_t outputs = walsh_min(PANEL_OUTPUTS, p->end - r);
        for (size_t k = 0; k < w->cols; k += BLOCK) {
            size_t steps = pack(w, r, outputs, k, walsh_min(BLOCK, w->cols - k), panels);
            struct tile_rows a = {(const float *)p->a->data + k, p->a->stride * sizeof(float), p->a->rows};
            multiply_block(p, 0, panels, &a, steps, r, outputs, k == 0);
        }
    }
}

/* bf16 activations: widened, TILE_ROWS rows of a block at a time. */
void walsh_product_bf16_prefill_avx2(const struct walsh_product_part *p)
{
    const struct walsh_weights *w = p->weights;
    uint32_t *panels = p->scratch;
    float *wide = (float *)p->scratch + (size_t)PANEL_OUTPUTS * BLOCK;
    for (size_t r = p->begin; r < p->end; r += PANEL_OUTPUTS) {
        size_t outputs = walsh_min(PANEL_OUTPUTS, p->end - r);
        for (size_t k = 0; k < w->cols; k += BLOCK) {
            size_t steps = pack(w, r, outputs, k, walsh_min(BLOCK, w->cols - k), panels);
            for (size_t i = 0; i < p->a->rows; i += TILE_ROWS) {
                size_t rows = walsh_min(TILE_ROWS, p->a->rows - i);
                const uint16_t *a = (const uint16_t *)p->a->data + i * p->a->stride + k;
                for (size_t m = 0; m < rows; m++) {
                    for (size_t n = 0; n < steps; n += 8)
                        _mm256_store_ps(wide + m * BLOCK + n, load_bf16(a + m * p->a->stride, n, 8));
                }
                struct tile_rows x = {wide, BLOCK * sizeof(float), rows};
                multiply_block(p, i, panels, &x, steps, r, outputs, k == 0);
            }
        }
    }
}
