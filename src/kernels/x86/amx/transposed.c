/* bf16 and MXFP4 weights by bf16 activations on AMX, transposed: a step is 32 rows of W, in pairs. */
#include "kernels/x86/amx/product_bf16.h"
#include "kernels/x86/bf16/mxfp4_pairs.h"

/* 32 elements of row r from column `c` on, of which `mask` exist; zeros beyond the last row. */
INLINE __m512i load_row(const struct walsh_weights *w, size_t r, size_t c, __mmask32 mask)
{
    if (r >= w->rows) return _mm512_setzero_si512();
    return _mm512_maskz_loadu_epi16(mask, (const uint16_t *)w->data + r * w->cols + c);
}

/* Two tiles of outputs at a time, which are a line of W. */
static void pack_dense(const void *weights, size_t c, size_t outputs, size_t first, size_t steps,
                       uint8_t *panels)
{
    const struct walsh_weights *w = weights;
    const __m512i order[2] = {_mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8,
                                               39, 7, 38, 6, 37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0),
                              _mm512_set_epi16(63, 31, 62, 30, 61, 29, 60, 28, 59, 27, 58, 26, 57, 25, 56, 24,
                                               55, 23, 54, 22, 53, 21, 52, 20, 51, 19, 50, 18, 49, 17, 48,
                                               16)};
    for (size_t done = 0; done < outputs; done += 32) {
        const __mmask32 mask = _bzhi_u32(0xffffffffu, (unsigned)walsh_min(outputs - done, 32));
        uint8_t *to = panels + done / 16 * steps * TILE_BYTES;
        for (size_t pair = first * (STEP / 2); pair < (first + steps) * (STEP / 2); pair++, to += 64) {
            const __m512i low = load_row(w, 2 * pair, c + done, mask),
                          high = load_row(w, 2 * pair + 1, c + done, mask);
            _mm512_store_si512(to, _mm512_permutex2var_epi16(low, order[0], high));
            if (outputs - done <= 16) continue;
            _mm512_store_si512(to + steps * TILE_BYTES, _mm512_permutex2var_epi16(low, order[1], high));
        }
    }
}

/* Half a step, 16 rows of W: the eight pairs of each of 32 columns, those of the panels among them. */
static void pack_mxfp4(const void *weights, size_t c, size_t outputs, size_t first, size_t steps,
                       uint8_t *panels)
{
    const struct walsh_weights *w = weights;
    const size_t tiles = walsh_div_up(w->rows, WALSH_BLOCK_ROWS);
    for (size_t group = c / GROUP; group * GROUP < c + outputs; group++)
        for (size_t tile = 2 * first; tile < 2 * (first + steps); tile++) {
            __m512i row[16] = {_mm512_setzero_si512()};
            if (tile < tiles) group_rows(group_words(w, tile, group), group_scales(w, tile, group), row);
#pragma GCC unroll 2
            for (size_t half = 0; half < 2; half++) {
                const size_t col = group * GROUP + half * 16, done = col - c;
                if (col < c || done >= outputs) continue;
                uint8_t *to = panels + done / 16 * steps * TILE_BYTES + (tile - 2 * first) * (TILE_BYTES / 2);
#pragma GCC unroll 8
                for (size_t s = 0; s < 8; s++)
                    _mm512_store_si512(to + 64 * s, half ? _mm512_unpackhi_epi16(row[2 * s], row[2 * s + 1])
                                                         : _mm512_unpacklo_epi16(row[2 * s], row[2 * s + 1]));
            }
        }
}

void walsh_product_bf16_transposed_amx(const struct walsh_product_part *p)
{
    if (p->weights->rows > WALSH_TILED_MAX_BF16_COLUMNS) /* the scratch holds no panel of a group */
        walsh_product_bf16_transposed_bf16(p);
    else
        product_bf16(pack_dense, p, p->weights->rows);
}

void walsh_product_mxfp4_transposed_amx(const struct walsh_product_part *p)
{
    if (p->weights->rows > WALSH_TILED_MAX_BF16_COLUMNS)
        walsh_product_mxfp4_transposed_bf16(p);
    else
        product_bf16(pack_mxfp4, p, p->weights->rows);
}
