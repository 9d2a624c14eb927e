/* AVX-512 products of dense weights: f32, f16 or bf16 weights by f32 activations, and by bf16 activations
 * where the machine has no bf16 arithmetic. Every element is widened to f32 exactly.
 *
 * Decode: the weights pass by as one sequential stream (two for a batch); an output has CHAINS accumulators
 * of 16 lanes, to which the columns are dealt in turn, then a fixed tree, the same for any number of rows.
 * Prefill is in x86/dense.inc. */
#include "base/memory.h"
#include "kernels/table.h"
#include "kernels/x86/avx512/tile_f32.h"

#include "kernels/x86/avx512/load_dense.h"

#define BLOCK 512         /* prefill: columns per panel */
#define PANEL_OUTPUTS 192 /* prefill: outputs whose panels share the L2: 192 * 512 * 4 = 393 KB */
#define CHAINS 4          /* decode: accumulators of an output */
#define PREFETCH 4096     /* decode: bytes ahead */

/* How the elements of one side are stored. */
struct element {
    load_16 *load;
    size_t width;
};

/* --- decode --- */

/* `outputs` outputs from r on by `rows` activation rows from i on, both constant, 1 or 2. */
INLINE void decode_block(const struct element weight, const struct element activation, const unsigned outputs,
                         const unsigned rows, const struct walsh_product_part *p, size_t r, size_t i)
{
    const size_t cols = p->weights->cols, a_bytes = p->a->stride * activation.width,
                 w_bytes = cols * weight.width;
    const char *a = (const char *)p->a->data + i * a_bytes;
    const char *w = (const char *)p->weights->data + r * w_bytes;
    __m512 sum[CHAINS][2][2];
#pragma GCC unroll 4
    for (unsigned n = 0; n < CHAINS; n++) {
#pragma GCC unroll 2
        for (unsigned o = 0; o < outputs; o++) {
#pragma GCC unroll 2
            for (unsigned m = 0; m < rows; m++) sum[n][o][m] = _mm512_setzero_ps();
        }
    }
    size_t k = 0;
    for (; k + 16 * CHAINS <= cols; k += 16 * CHAINS) {
        for (unsigned line = 0; line < 16 * CHAINS * weight.width; line += 64) {
#pragma GCC unroll 2
            for (unsigned o = 0; o < outputs; o++)
                _mm_prefetch(w + o * w_bytes + k * weight.width + PREFETCH + line, _MM_HINT_T0);
        }
#pragma GCC unroll 4
        for (unsigned n = 0; n < CHAINS; n++) {
            __m512 x[2];
#pragma GCC unroll 2
            for (unsigned m = 0; m < rows; m++) x[m] = activation.load(a + m * a_bytes, k + 16 * n, 16);
#pragma GCC unroll 2
            for (unsigned o = 0; o < outputs; o++) {
                __m512 v = weight.load(w + o * w_bytes, k + 16 * n, 16);
#pragma GCC unroll 2
                for (unsigned m = 0; m < rows; m++) sum[n][o][m] = _mm512_fmadd_ps(v, x[m], sum[n][o][m]);
            }
        }
    }
#pragma GCC unroll 4
    for (unsigned n = 0; n < CHAINS; n++) {
        if (k + 16 * n >= cols) break;
#pragma GCC unroll 2
        for (unsigned o = 0; o < outputs; o++) {
            __m512 v = weight.load(w + o * w_bytes, k + 16 * n, cols - k - 16 * n);
#pragma GCC unroll 2
            for (unsigned m = 0; m < rows; m++)
                sum[n][o][m] =
                    _mm512_fmadd_ps(v, activation.load(a + m * a_bytes, k + 16 * n, 16), sum[n][o][m]);
        }
    }
#pragma GCC unroll 2
    for (unsigned o = 0; o < outputs; o++) {
#pragma GCC unroll 2
        for (unsigned m = 0; m < rows; m++) {
            __m512 pair = _mm512_add_ps(sum[0][o][m], sum[1][o][m]);
            __m512 other = _mm512_add_ps(sum[2][o][m], sum[3][o][m]);
            p->y[(i + m) * p->ldy + r + o] = _mm512_reduce_add_ps(_mm512_add_ps(pair, other));
        }
    }
}

/* One row of activations: one output after the other. More: 2 x 2, where activations are loaded half as
 * often. */
INLINE void decode(const struct element weight, const struct element activation,
                   const struct walsh_product_part *p)
{
    const size_t rows = p->a->rows, step = rows == 1 ? 1 : 2;
    for (size_t r = p->begin; r < p->end; r += step) {
        size_t outputs = walsh_min(step, p->end - r), i = 0;
        for (; i + 2 <= rows; i += 2) {
            if (outputs == 2)
                decode_block(weight, activation, 2, 2, p, r, i);
            else
                decode_block(weight, activation, 1, 2, p, r, i);
        }
        for (size_t o = 0; i < rows && o < outputs; o++) decode_block(weight, activation, 1, 1, p, r + o, i);
    }
}

#define LANES 16
#define WIDE __m512i
#define WIDE_BITS _mm512_castps_si512
#define WIDE_STORE _mm512_store_ps
#define NAME(name) name##_avx512

#include "kernels/x86/dense.inc"
