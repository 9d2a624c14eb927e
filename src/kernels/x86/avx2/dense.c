/* AVX2 products of dense weights: f32, f16 or bf16 weights by f32 activations, bf16 by bf16. Every element is
 * widened to f32 exactly.
 *
 * Decode: the weights pass by as one sequential stream, read once for two activation rows; an output has
 * CHAINS accumulators of 8 lanes, to which the columns are dealt in turn, then a fixed tree, the same for
 * any number of rows. Prefill is in x86/dense.inc. */
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

#define LANES 8
#define WIDE __m256i
#define WIDE_BITS _mm256_castps_si256
#define WIDE_STORE _mm256_store_ps
#define NAME(name) name##_avx2

#include "kernels/x86/dense.inc"
