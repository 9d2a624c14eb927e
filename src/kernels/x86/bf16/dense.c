/* bf16 weights by bf16 activations with VDPBF16PS, which adds two products to each of 16 f32 lanes (round to
 * nearest even, subnormals as zero).
 *
 * Decode: each output has one accumulator of 16 lanes over column pairs in order, then a fixed tree. Prefill:
 * one chain per output over all columns in pairs, in blocks of BLOCK columns that are summed in order.
 * Transposed: the same over rows. */
#include "base/memory.h"
#include "kernels/table.h"
#include "kernels/x86/bf16/tile.h"

#define OUTPUTS 4     /* decode: outputs at once; streams that the machine prefetches better alone */
#define PREFETCH 4096 /* decode of one row: one output at a time, this far ahead */

/* The 32 elements from x[k] on, of which `count` exist. */
INLINE __m512i load(const uint16_t *x, size_t k, size_t count)
{
    if (count >= 32) return _mm512_loadu_si512(x + k);
    return _mm512_maskz_loadu_epi16((__mmask32)((1u << count) - 1), x + k);
}

/* --- decode --- */

INLINE void decode_block(const unsigned rows, const unsigned outputs, const struct walsh_product_part *p,
                         size_t r, size_t exist, size_t i)
{
    const size_t cols = p->weights->cols, stride = p->a->stride;
    const uint16_t *a = (const uint16_t *)p->a->data + i * stride, *w[OUTPUTS];
    __m512 sum[OUTPUTS][4];
#pragma GCC unroll 4
    for (unsigned n = 0; n < outputs; n++) {
        size_t row = r + (n < exist ? n : exist - 1); /* beyond the last: read it again, store nothing */
        w[n] = (const uint16_t *)p->weights->data + row * cols;
#pragma GCC unroll 4
        for (unsigned m = 0; m < rows; m++) sum[n][m] = tile_zero();
    }
    size_t k = 0;
    for (; k + 32 <= cols; k += 32) {
        __m512i x[4];
#pragma GCC unroll 4
        for (unsigned m = 0; m < rows; m++) x[m] = load(a + m * stride, k, 32);
#pragma GCC unroll 4
        for (unsigned n = 0; n < outputs; n++) {
            if (outputs == 1) _mm_prefetch((const char *)(w[n] + k) + PREFETCH, _MM_HINT_T0);
            __m512i v = load(w[n], k, 32);
#pragma GCC unroll 4
            for (unsigned m = 0; m < rows; m++) sum[n][m] = tile_step(sum[n][m], v, x[m]);
        }
    }
#pragma GCC unroll 4
    for (unsigned n = 0; n < outputs; n++) {
        if (n >= exist) continue;
        __m512i v = k < cols ? load(w[n], k, cols - k) : _mm512_setzero_si512();
#pragma GCC unroll 4
        for (unsigned m = 0; m < rows; m++) {
            if (k < cols) sum[n][m] = tile_step(sum[n][m], v, load(a + m * stride, k, 32));
            p->y[(i + m) * p->ldy + r + n] = _mm512_reduce_add_ps(sum[n][m]);
        }
    }
}

void walsh_product_bf16_decode_bf16(const struct walsh_product_part *p)
{
    const size_t rows = p->a->rows;
    for (size_t r = p->begin; rows == 1 && r < p->end; r++) decode_block(1, 1, p, r, 1, 0);
    if (rows == 1) return;
    for (size_t r = p->begin; r < p->end; r += OUTPUTS) {
        size_t exist = walsh_min(OUTPUTS, p->end - r);
        for (size_t i = 0; i < rows; i += 4) {
            switch (rows - i) {
            case 1:
                decode_block(1, OUTPUTS, p, r, exist, i);
                break;
            case 2:
                decode_block(2, OUTPUTS, p, r, exist, i);
                break;
            case 3:
                decode_block(3, OUTPUTS, p, r, exist, i);
                break;
            default:
                decode_block(4, OUTPUTS, p, r, exist, i);
            }
        }
    }
}

/* --- prefill --- */

struct panel_source {
    const struct walsh_weights *weights;
    size_t first, cols; /* the block's columns */
};

/* 16 pairs of columns; an odd last column gets a zero beside it. */
INLINE __m512i panel_pairs(const void *from, size_t row, size_t step, size_t count)
{
    const struct panel_source *s = from;
    const uint16_t *w = (const uint16_t *)s->weights->data + row * s->weights->cols + s->first;
    (void)count;
    return load(w, 2 * step, s->cols - 2 * step);
}

void walsh_product_bf16_prefill_bf16(const struct walsh_product_part *p)
{
    const struct walsh_weights *w = p->weights;
    uint32_t *panels = p->scratch;
    for (size_t r = p->begin; r < p->end; r += PANEL_OUTPUTS) {
        size_t outputs = walsh_min(PANEL_OUTPUTS, p->end - r);
        for (size_t k = 0; k < w->cols; k += BLOCK) {
            struct panel_source source = {w, k, walsh_min(BLOCK, w->cols - k)};
            size_t steps = panel_pack(panel_pairs, &source, r, outputs, 0, (source.cols + 1) / 2, panels);
            struct tile_rows a = {(const uint16_t *)p->a->data + k, p->a->stride * sizeof(uint16_t),
                                  p->a->rows};
            multiply_block(p, 0, panels, &a, steps, r, outputs, k == 0 && !p->add);
        }
    }
}

/* --- transposed --- */

/* Rows [first, first + rows) of w in pairs, outputs (columns) [c, c + outputs), as panels: a step holds both
 * rows of a pair, side by side for each output. An odd last row gets zeros beside it. */
static void pack_pairs(const struct walsh_weights *w, size_t first, size_t rows, size_t c, size_t outputs,
                       uint32_t *panels)
{
    const size_t steps = (rows + 1) / 2;
    for (size_t done = 0; done < outputs; done += TILE_OUTPUTS) {
        const size_t vectors = panel_vectors(done, outputs), exist = outputs - done;
        uint32_t *to = panels + done * steps;
        const uint16_t *row = (const uint16_t *)w->data + first * w->cols + c + done;
        for (size_t s = 0; s < steps; s++, row += 2 * (size_t)w->cols) {
            for (size_t v = 0; v < vectors; v++, to += 16) {
                const __mmask16 mask = first_lanes(exist - 16 * v);
                __m512i pair = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, row + 16 * v));
                if (2 * s + 1 < rows) {
                    const __m256i other = _mm256_maskz_loadu_epi16(mask, row + w->cols + 16 * v);
                    pair = _mm512_or_si512(pair, _mm512_slli_epi32(_mm512_cvtepu16_epi32(other), 16));
                }
                _mm512_store_si512(to, pair);
            }
        }
    }
}

void walsh_product_bf16_transposed_bf16(const struct walsh_product_part *p)
{
    const struct walsh_weights *w = p->weights;
    uint32_t *panels = p->scratch;
    for (size_t c = p->begin; c < p->end; c += PANEL_OUTPUTS) {
        const size_t outputs = walsh_min(PANEL_OUTPUTS, p->end - c);
        for (size_t k = 0; k < w->rows; k += BLOCK) {
            const size_t rows = walsh_min(BLOCK, w->rows - k);
            pack_pairs(w, k, rows, c, outputs, panels);
            const struct tile_rows a = {(const uint16_t *)p->a->data + k, p->a->stride * sizeof(uint16_t),
                                        p->a->rows};
            multiply_block(p, 0, panels, &a, (rows + 1) / 2, c, outputs, k == 0 && !p->add);
        }
    }
}
