/* Panels of bf16 matrices that are kept, and products of rows with several of them: the tile and the order of
 * sums are those of dense.c. */
#include "base/memory.h"
#include "kernels/table.h"
#include "kernels/x86/bf16/tile.h"

_Static_assert(BLOCK == WALSH_PANEL_DEPTH && TILE_OUTPUTS == WALSH_PANEL_OUTPUTS, "the panels of pairs.h");

/* --- packing --- */

/* The 32 elements from x on, of which `count` exist. */
INLINE __m512i load(const uint16_t *x, size_t count)
{
    return _mm512_maskz_loadu_epi16(_bzhi_u32(0xffffffffu, count < 32 ? (unsigned)count : 32), x);
}

/* 16 outputs (rows) from `row` on, of which `exist`; columns [column, column + cols) to `to`, a step of
 * `width` pairs. */
INLINE void pack_rows(const struct walsh_weights *w, size_t row, size_t exist, size_t column, size_t cols,
                      uint32_t *to, size_t width)
{
    const uint16_t *from = (const uint16_t *)w->data + row * w->cols + column;
    for (size_t k = 0; k < cols; k += 32) {
        __m512i r[16];
#pragma GCC unroll 16
        for (size_t n = 0; n < 16; n++)
            r[n] = n < exist ? load(from + n * w->cols + k, cols - k) : _mm512_setzero_si512();
        transpose_16x16(r);
#pragma GCC unroll 16
        for (size_t n = 0; n < 16; n++, to += width) _mm512_storeu_si512(to, r[n]);
    }
}

/* 16 outputs (columns) from `output` on; rows [row, row + rows) in `steps` pairs. */
INLINE void pack_columns(const struct walsh_weights *w, size_t output, size_t exist, size_t row, size_t rows,
                         size_t steps, uint32_t *to, size_t width)
{
    const __mmask16 mask = first_lanes(exist);
    const uint16_t *from = (const uint16_t *)w->data + row * w->cols + output;
    for (size_t s = 0; s < steps; s++, from += 2 * (size_t)w->cols, to += width) {
        __m512i pair = _mm512_setzero_si512();
        if (2 * s < rows) pair = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, from));
        if (2 * s + 1 < rows)
            pair = _mm512_or_si512(
                pair,
                _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, from + w->cols)), 16));
        _mm512_storeu_si512(to, pair);
    }
}

void walsh_pack_panels_bf16_bf16(const struct walsh_weights *w, bool transposed, size_t begin, size_t end,
                                 uint32_t *panels)
{
    const size_t outputs = end - begin, depth = transposed ? w->rows : w->cols;
    for (size_t column = 0; column < depth; column += BLOCK) {
        const size_t cols = walsh_min(BLOCK, depth - column), steps = walsh_panel_steps(cols);
        for (size_t o = 0; o < outputs; o += 16) {
            const size_t within = o % TILE_OUTPUTS, width = 16 * panel_vectors(o, outputs);
            uint32_t *to = panels + walsh_panel_at(outputs, depth, column, o - within) + within;
            if (transposed)
                pack_columns(w, begin + o, outputs - o, column, cols, steps, to, width);
            else
                pack_rows(w, begin + o, outputs - o, column, cols, to, width);
        }
    }
}

/* --- product --- */

/* Rows whose results wait in the L1 and L2 for the next term: many where the terms' panels do not fit into
 * the L2 beside them. */
#define FEW_ROWS 64
#define MANY_ROWS 256
#define NEAR_BYTES ((size_t)640 << 10)

static size_t step_of(const struct walsh_panels_product *p)
{
    size_t bytes = 0;
    for (size_t n = 0; n < p->count; n++) bytes += (p->end - p->begin) * p->terms[n].depth * sizeof(uint16_t);
    return bytes <= NEAR_BYTES ? FEW_ROWS : MANY_ROWS;
}

/* Rows of `a` by the block of a term from `column` on. */
INLINE void term_block(const struct walsh_panels_product *p, const struct walsh_panel_term *t, size_t column,
                       const struct tile_rows *a, const struct block_output *to)
{
    const size_t outputs = p->end - p->begin, cols = walsh_min(BLOCK, t->depth - column),
                 steps = (cols + 1) / 2, room = walsh_panel_steps(cols);
    const uint32_t *panels = t->panels + walsh_panel_at(t->outputs, t->depth, column, p->begin - t->shift);
    for (size_t i = 0; i < a->rows; i += TILE_ROWS)
        for (size_t done = 0; done < outputs; done += TILE_OUTPUTS) {
            const uint32_t *panel = panels + done * room;
            const size_t left = outputs - done, output = p->begin + done;
            if (left > 32)
                tile_rows_of(store_block, to, 3, panel, a, steps, i, output, left);
            else if (left > 16)
                tile_rows_of(store_block, to, 2, panel, a, steps, i, output, left);
            else
                tile_rows_of(store_block, to, 1, panel, a, steps, i, output, left);
        }
}

void walsh_product_panels_bf16_bf16(const struct walsh_panels_product *p)
{
    const size_t step = step_of(p);
    for (size_t row = 0; row < p->rows; row += step) {
        struct block_output to = {p->y + row * p->ldy, p->ldy, !p->add};
        for (size_t n = 0; n < p->count; n++) {
            const struct walsh_panel_term *t = &p->terms[n];
            for (size_t column = 0; column < t->depth; column += BLOCK, to.first = false) {
                const struct tile_rows a = {t->a + row * t->lda + column, t->lda * sizeof(uint16_t),
                                            walsh_min(step, p->rows - row)};
                term_block(p, t, column, &a, &to);
            }
        }
    }
}
