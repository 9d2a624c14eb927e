/* AVX-512 products of dense weights: f32, f16 or bf16 weights by f32 activations, and by bf16 activations
 * where the machine has no bf16 arithmetic. Every element is widened to f32 exactly.
 *
 * Decode: the weights pass by as one sequential stream (two for a batch); an output has CHAINS accumulators
 * of 16 lanes, to which the columns are dealt in turn, then a fixed tree. Prefill: columns in blocks of
 * BLOCK; within a block one chain of FMAs per output in column order, the blocks summed in order. Both are
 * the same for any number of rows. */
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

static const struct element f32 = {load_f32, 4};
static const struct element f16 = {load_f16, 2};
static const struct element bf16 = {load_bf16, 2};

void walsh_product_dense_decode_avx512(const struct walsh_product_part *p)
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

void walsh_product_bf16_decode_avx512(const struct walsh_product_part *p)
{
    decode(bf16, bf16, p);
}

/* --- prefill --- */

INLINE __m512i panel_f32(const void *from, size_t row, size_t k, size_t count)
{
    const struct walsh_weights *w = from;
    return _mm512_castps_si512(load_f32((const float *)w->data + row * w->cols, k, count));
}

INLINE __m512i panel_f16(const void *from, size_t row, size_t k, size_t count)
{
    const struct walsh_weights *w = from;
    return _mm512_castps_si512(load_f16((const uint16_t *)w->data + row * w->cols, k, count));
}

INLINE __m512i panel_bf16(const void *from, size_t row, size_t k, size_t count)
{
    const struct walsh_weights *w = from;
    return _mm512_castps_si512(load_bf16((const uint16_t *)w->data + row * w->cols, k, count));
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

void walsh_product_dense_prefill_avx512(const struct walsh_product_part *p)
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
void walsh_product_bf16_prefill_avx512(const struct walsh_product_part *p)
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
                    for (size_t n = 0; n < steps; n += 16)
                        _mm512_store_ps(wide + m * BLOCK + n, load_bf16(a + m * p->a->stride, n, 16));
                }
                struct tile_rows x = {wide, BLOCK * sizeof(float), rows};
                multiply_block(p, i, panels, &x, steps, r, outputs, k == 0);
            }
        }
    }
}
