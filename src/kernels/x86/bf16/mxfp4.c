/* MXFP4 weights by bf16 activations, decoded inside the product: codes go straight into the panels of the
 * VDPBF16PS tile, whose lanes are rows as the layout's are. The bits are those of the product with the matrix
 * that decode_weights_bf16 gives: the same values in the same panels. */
#include <string.h>

#include "base/memory.h"
#include "kernels/table.h"
#include "kernels/x86/bf16/mxfp4_pairs.h"
#include "kernels/x86/bf16/mxfp4_units.h"
#include "kernels/x86/bf16/tile.h"

#define TILES 4       /* of few rows, side by side */
#define PREFETCH 2048 /* bytes ahead, of few rows */

/* Outputs [row, row + outputs), columns [k, k + cols), as panels; returns the steps. */
static size_t pack(const struct walsh_weights *w, size_t row, size_t outputs, size_t k, size_t cols,
                   uint32_t *panels)
{
    const size_t groups = walsh_div_up(cols, GROUP), steps = groups * (GROUP / 2);
    for (size_t done = 0; done < outputs; done += WALSH_BLOCK_ROWS) {
        const size_t within = done % TILE_OUTPUTS, width = panel_vectors(done, outputs) * 16;
        uint32_t *to = panels + (done - within) * steps + within;
        for (size_t g = 0; g < groups; g++) {
            const size_t tile = (row + done) / WALSH_BLOCK_ROWS, group = k / GROUP + g;
            __m512i pairs[16];
            group_pairs(group_words(w, tile, group), group_scales(w, tile, group), pairs);
#pragma GCC unroll 16
            for (int p = 0; p < 16; p++, to += width) _mm512_store_si512(to, pairs[p]);
        }
    }
    return steps;
}

/* Few rows: `tiles` tiles of outputs from row r on by `rows` rows, both constant, groups [first, end),
 * without panels. A tile's chain of products waits for itself, so that several go on side by side. */
INLINE void direct_block(const struct walsh_product_part *p, const unsigned rows, const unsigned tiles,
                         size_t r, size_t first, size_t end)
{
    const struct walsh_weights *w = p->weights;
    const size_t tile = r / WALSH_BLOCK_ROWS;
    const struct block_output to = {p->y, p->ldy, first == 0 && !p->add};
    __m512 sum[3][TILES];
#pragma GCC unroll 3
    for (unsigned m = 0; m < rows; m++) {
#pragma GCC unroll 4
        for (unsigned t = 0; t < tiles; t++) sum[m][t] = tile_zero();
    }
    const size_t groups = walsh_block_groups(w),
                 tile_bytes = walsh_block_words(w) * WALSH_BLOCK_ROWS * sizeof(uint32_t);
    for (size_t g = first; g < end; g++) {
        /* behind a tile's end are those beside it, which are being read: the next ones' begin behind them
         * all */
        const size_t ahead =
            PREFETCH +
            (g + PREFETCH / (WALSH_BLOCK_ROWS * GROUP / 2) < groups ? 0 : (tiles - 1) * tile_bytes);
#pragma GCC unroll 4
        for (unsigned t = 0; t < tiles; t++) {
            __m512i pairs[16];
            const uint32_t *words = group_words(w, tile + t, g);
#pragma GCC unroll 4
            for (unsigned line = 0; line < 4; line++)
                _mm_prefetch((const char *)(words + line * 16) + ahead, _MM_HINT_T0);
            group_pairs(words, group_scales(w, tile + t, g), pairs);
#pragma GCC unroll 3
            for (unsigned m = 0; m < rows; m++) {
                const uint16_t *a = (const uint16_t *)p->a->data + m * p->a->stride + g * GROUP;
#pragma GCC unroll 16
                for (unsigned n = 0; n < 16; n++) {
                    int32_t element;
                    memcpy(&element, a + 2 * n, sizeof element);
                    sum[m][t] = tile_step(sum[m][t], pairs[n], _mm512_set1_epi32(element));
                }
            }
        }
    }
#pragma GCC unroll 3
    for (unsigned m = 0; m < rows; m++) {
#pragma GCC unroll 4
        for (unsigned t = 0; t < tiles; t++) {
            const size_t output = r + t * WALSH_BLOCK_ROWS;
            store_block(&to, m, output, first_lanes(p->end - output), sum[m][t]);
        }
    }
}

/* The same with scales out of the loop: sums are kept in units of the scale of the group being added, to
 * which they are brought by a power of two before it. */
INLINE void unscaled_block(const struct walsh_product_part *p, const unsigned rows, const unsigned tiles,
                           size_t r, size_t first, size_t end)
{
    const __m512i values = _mm512_set_epi16(
        (short)0xc0c0, (short)0xc080, (short)0xc040, (short)0xc000, (short)0xbfc0, (short)0xbf80,
        (short)0xbf00, (short)0x8000, 0x40c0, 0x4080, 0x4040, 0x4000, 0x3fc0, 0x3f80, 0x3f00, 0,
        (short)0xc0c0, (short)0xc080, (short)0xc040, (short)0xc000, (short)0xbfc0, (short)0xbf80,
        (short)0xbf00, (short)0x8000, 0x40c0, 0x4080, 0x4040, 0x4000, 0x3fc0, 0x3f80, 0x3f00, 0);
    const __m512i order =
        _mm512_broadcast_i32x4(_mm_setr_epi8(0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15));
    const struct walsh_weights *w = p->weights;
    const size_t tile = r / WALSH_BLOCK_ROWS, groups = walsh_block_groups(w),
                 tile_words = walsh_block_words(w) * WALSH_BLOCK_ROWS,
                 tile_bytes = tile_words * sizeof(uint32_t), tile_scales = groups * WALSH_BLOCK_ROWS;
    const struct block_output to = {p->y, p->ldy, first == 0 && !p->add};
    const __m512i one = _mm512_set1_epi32(127 << 23);
    __m512 sum[3][TILES];
    __m512i unit[TILES]; /* bits of the scale that sums are in */
#pragma GCC unroll 4
    for (unsigned t = 0; t < tiles; t++) {
        unit[t] = one;
#pragma GCC unroll 3
        for (unsigned m = 0; m < rows; m++) sum[m][t] = tile_zero();
    }
    const uint32_t *word = group_words(w, tile, first);
    const uint8_t *scale = group_scales(w, tile, first);
    const uint16_t *a = (const uint16_t *)p->a->data + first * GROUP;
    for (size_t g = first; g < end; g++, scale += WALSH_BLOCK_ROWS) {
        const size_t ahead =
            PREFETCH +
            (g + PREFETCH / (WALSH_BLOCK_ROWS * GROUP / 2) < groups ? 0 : (tiles - 1) * tile_bytes);
#pragma GCC unroll 4
        for (unsigned t = 0; t < tiles; t++) {
            const __m128i bytes = _mm_load_si128((const __m128i *)(const void *)(scale + t * tile_scales));
            const __m512i next = _mm512_slli_epi32(_mm512_cvtepu8_epi32(bytes), 23);
            const __m512 ratio = _mm512_castsi512_ps(_mm512_add_epi32(_mm512_sub_epi32(unit[t], next), one));
            unit[t] = next;
#pragma GCC unroll 3
            for (unsigned m = 0; m < rows; m++) sum[m][t] = _mm512_mul_ps(sum[m][t], ratio);
        }
        for (unsigned n = 0; n < 4; n++, word += WALSH_BLOCK_ROWS, a += 8) {
            __m512i x[3][4];
#pragma GCC unroll 3
            for (unsigned m = 0; m < rows; m++) {
#pragma GCC unroll 4
                for (unsigned i = 0; i < 4; i++) {
                    int32_t element;
                    memcpy(&element, a + m * p->a->stride + 2 * i, sizeof element);
                    x[m][i] = _mm512_set1_epi32(element);
                }
            }
#pragma GCC unroll 4
            for (unsigned t = 0; t < tiles; t++) {
                _mm_prefetch((const char *)(word + t * tile_words) + ahead, _MM_HINT_T0);
                /* bytes 0, 2, 1, 3: a shift puts both nibbles of a pair of columns to the bottom of their
                 * halves */
                const __m512i v = _mm512_shuffle_epi8(_mm512_load_si512(word + t * tile_words), order);
                const __m512i pairs[4] = {_mm512_permutexvar_epi16(v, values),
                                          _mm512_permutexvar_epi16(_mm512_srli_epi32(v, 8), values),
                                          _mm512_permutexvar_epi16(_mm512_srli_epi32(v, 4), values),
                                          _mm512_permutexvar_epi16(_mm512_srli_epi32(v, 12), values)};
#pragma GCC unroll 4
                for (unsigned i = 0; i < 4; i++) {
#pragma GCC unroll 3
                    for (unsigned m = 0; m < rows; m++) sum[m][t] = tile_step(sum[m][t], pairs[i], x[m][i]);
                }
            }
        }
    }
#pragma GCC unroll 3
    for (unsigned m = 0; m < rows; m++) {
#pragma GCC unroll 4
        for (unsigned t = 0; t < tiles; t++) {
            const size_t output = r + t * WALSH_BLOCK_ROWS;
            store_block(&to, m, output, first_lanes(p->end - output),
                        _mm512_mul_ps(sum[m][t], _mm512_castsi512_ps(unit[t])));
        }
    }
}

INLINE void direct(const struct walsh_product_part *p, const unsigned rows)
{
    const size_t groups = walsh_block_groups(p->weights), step = BLOCK / GROUP, most = TILES;
    const bool fit = activations_fit(p->a);
    for (size_t r = p->begin, next; r < p->end; r = next) {
        const bool several = r + most * WALSH_BLOCK_ROWS <= p->end;
        next = r + (several ? most : 1) * WALSH_BLOCK_ROWS;
        for (size_t g = 0; g < groups; g += step) {
            const size_t end = walsh_min(g + step, groups);
            if (!several)
                direct_block(p, rows, 1, r, g, end);
            else if (fit && scales_fit(p->weights, r / WALSH_BLOCK_ROWS, TILES, g, end))
                unscaled_block(p, rows, TILES, r, g, end);
            else
                direct_block(p, rows, TILES, r, g, end);
        }
    }
}

void walsh_product_mxfp4_prefill_bf16(const struct walsh_product_part *p)
{
    const struct walsh_weights *w = p->weights;
    switch (p->a->rows) {
    case 1:
        direct(p, 1);
        return;
    case 2:
        direct(p, 2);
        return;
    case 3:
        direct(p, 3);
        return;
    default:
        break;
    }
    uint32_t *panels = p->scratch;
    for (size_t r = p->begin; r < p->end; r += PANEL_OUTPUTS) {
        const size_t outputs = walsh_min(PANEL_OUTPUTS, p->end - r);
        for (size_t k = 0; k < w->cols; k += BLOCK) {
            const size_t steps = pack(w, r, outputs, k, walsh_min(BLOCK, w->cols - k), panels);
            const struct tile_rows a = {(const uint16_t *)p->a->data + k, p->a->stride * sizeof(uint16_t),
                                        p->a->rows};
            multiply_block(p, 0, panels, &a, steps, r, outputs, k == 0 && !p->add);
        }
    }
}

/* Rows [first, first + rows) in pairs, outputs (columns) [c, c + outputs), as panels. */
static void pack_transposed(const struct walsh_weights *w, size_t first, size_t rows, size_t c,
                            size_t outputs, uint32_t *panels)
{
    const size_t steps = (rows + 1) / 2;
    for (size_t r = 0; r < rows; r += WALSH_BLOCK_ROWS)
        for (size_t group = c / GROUP; group * GROUP < c + outputs; group++) {
            const size_t tile = (first + r) / WALSH_BLOCK_ROWS;
            __m512i row[16];
            group_rows(group_words(w, tile, group), group_scales(w, tile, group), row);
#pragma GCC unroll 2
            for (size_t half = 0; half < 2; half++) {
                const size_t col = group * GROUP + half * 16, done = col - c;
                if (col < c || done >= outputs) continue;
                const size_t within = done % TILE_OUTPUTS, width = panel_vectors(done, outputs) * 16;
                uint32_t *to = panels + (done - within) * steps + r / 2 * width + within;
                const size_t exist = walsh_min(8, steps - r / 2);
#pragma GCC unroll 8
                for (size_t s = 0; s < 8; s++)
                    if (s < exist)
                        _mm512_store_si512(to + s * width,
                                           half ? _mm512_unpackhi_epi16(row[2 * s], row[2 * s + 1])
                                                : _mm512_unpacklo_epi16(row[2 * s], row[2 * s + 1]));
            }
        }
}

#define NEAR_GROUPS                                                                                          \
    2 /* of a tile, side by side: 512 bytes in a row, and as many chains as hide each other's latency */
#define TILES_AHEAD 3

INLINE void clear_columns(const unsigned rows, const unsigned groups, __m512 sum[3][2 * NEAR_GROUPS])
{
#pragma GCC unroll 3
    for (unsigned m = 0; m < rows; m++) {
#pragma GCC unroll 4
        for (unsigned v = 0; v < 2 * groups; v++) sum[m][v] = tile_zero();
    }
}

/* The sums of `groups` groups of columns from `group` on, as far as the part goes. */
INLINE void store_columns(const struct walsh_product_part *p, const unsigned rows, const unsigned groups,
                          size_t group, bool first, __m512 sum[3][2 * NEAR_GROUPS])
{
    const struct block_output to = {p->y, p->ldy, first};
#pragma GCC unroll 3
    for (unsigned m = 0; m < rows; m++) {
#pragma GCC unroll 4
        for (unsigned v = 0; v < 2 * groups; v++) {
            const size_t col = group * GROUP + 16 * v;
            if (col >= p->begin && col < p->end)
                store_block(&to, m, col, first_lanes(p->end - col), sum[m][v]);
        }
    }
}

/* Few rows: `groups` groups of columns from `group` on by `rows` rows, both constant, rows [first, end) of W,
 * without panels. */
INLINE void direct_columns(const struct walsh_product_part *p, const unsigned rows, const unsigned groups,
                           size_t group, size_t first, size_t end)
{
    const struct walsh_weights *w = p->weights;
    const size_t tile_bytes = walsh_block_words(w) * WALSH_BLOCK_ROWS * sizeof(uint32_t);
    __m512 sum[3][2 * NEAR_GROUPS];
    clear_columns(rows, groups, sum);
    for (size_t r = first; r < end; r += WALSH_BLOCK_ROWS) {
        const size_t steps = walsh_min(WALSH_BLOCK_ROWS / 2, (end - r + 1) / 2);
#pragma GCC unroll 2
        for (unsigned g = 0; g < groups; g++) {
            __m512i row[16];
            const uint32_t *words = group_words(w, r / WALSH_BLOCK_ROWS, group + g);
#pragma GCC unroll 4
            for (unsigned line = 0; line < 4; line++)
                _mm_prefetch((const char *)(words + line * 16) + TILES_AHEAD * tile_bytes, _MM_HINT_T0);
            group_rows(words, group_scales(w, r / WALSH_BLOCK_ROWS, group + g), row);
#pragma GCC unroll 8
            for (size_t s = 0; s < 8; s++) {
                if (s >= steps) continue;
                const __m512i low = _mm512_unpacklo_epi16(row[2 * s], row[2 * s + 1]),
                              high = _mm512_unpackhi_epi16(row[2 * s], row[2 * s + 1]);
#pragma GCC unroll 3
                for (unsigned m = 0; m < rows; m++) {
                    int32_t element;
                    memcpy(&element, (const uint16_t *)p->a->data + m * p->a->stride + r + 2 * s,
                           sizeof element);
                    const __m512i x = _mm512_set1_epi32(element);
                    sum[m][2 * g] = tile_step(sum[m][2 * g], low, x);
                    sum[m][2 * g + 1] = tile_step(sum[m][2 * g + 1], high, x);
                }
            }
        }
    }
    store_columns(p, rows, groups, group, first == 0 && !p->add, sum);
}

/* Row m of the activations, 16 elements from r on, by the scales of 16 rows of W: exact within the bounds
 * above. */
INLINE void scale_rows(const struct walsh_product_part *p, unsigned m, size_t r, const uint8_t *scales,
                       int32_t out[8])
{
    const __m256i x = _mm256_loadu_si256(
        (const __m256i *)(const void *)((const uint16_t *)p->a->data + m * p->a->stride + r));
    const __m256i add = _mm256_slli_epi16(
        _mm256_sub_epi16(_mm256_cvtepu8_epi16(_mm_load_si128((const __m128i *)(const void *)scales)),
                         _mm256_set1_epi16(127)),
        7);
    const __mmask16 some = _mm256_test_epi16_mask(x, _mm256_set1_epi16(0x7fff));
    _mm256_store_si256((__m256i *)(void *)out, _mm256_mask_add_epi16(x, some, x, add));
}

/* The same with the scales at the activations, which are fewer. Codes are brought into the order of the
 * products before they become values: a VPERMI2W fetches the bytes of 16 columns of two rows, a shift puts
 * the wanted nibbles to the bottom. */
INLINE void unscaled_columns(const struct walsh_product_part *p, const unsigned rows, const unsigned groups,
                             size_t group, size_t first, size_t end)
{
    const __m512i values = _mm512_set_epi16(
        (short)0xc0c0, (short)0xc080, (short)0xc040, (short)0xc000, (short)0xbfc0, (short)0xbf80,
        (short)0xbf00, (short)0x8000, 0x40c0, 0x4080, 0x4040, 0x4000, 0x3fc0, 0x3f80, 0x3f00, 0,
        (short)0xc0c0, (short)0xc080, (short)0xc040, (short)0xc000, (short)0xbfc0, (short)0xbf80,
        (short)0xbf00, (short)0x8000, 0x40c0, 0x4080, 0x4040, 0x4000, 0x3fc0, 0x3f80, 0x3f00, 0);
    /* column j of row q of a pair: bytes j % 4 / 2 of lane q, of the first word or (+ 32) the second, there
     * nibble j % 2 * 2 + j % 8 / 4 */
    const __m512i columns = _mm512_setr_epi32(0x20000, 0x20000, 0x30001, 0x30001, 0x20000, 0x20000, 0x30001,
                                              0x30001, 0x220020, 0x220020, 0x230021, 0x230021, 0x220020,
                                              0x220020, 0x230021, 0x230021),
                  shift = _mm512_setr_epi32(0, 0x80008, 0, 0x80008, 0x40004, 0xc000c, 0x40004, 0xc000c, 0,
                                            0x80008, 0, 0x80008, 0x40004, 0xc000c, 0x40004, 0xc000c);
    const struct walsh_weights *w = p->weights;
    const size_t tile_bytes = walsh_block_words(w) * WALSH_BLOCK_ROWS * sizeof(uint32_t);
    __m512 sum[3][2 * NEAR_GROUPS];
    clear_columns(rows, groups, sum);
    for (size_t r = first; r < end; r += WALSH_BLOCK_ROWS) {
#pragma GCC unroll 2
        for (unsigned g = 0; g < groups; g++) {
            _Alignas(32) int32_t x[3][8];
            const uint32_t *words = group_words(w, r / WALSH_BLOCK_ROWS, group + g);
            __m512i line[4];
#pragma GCC unroll 4
            for (unsigned n = 0; n < 4; n++) {
                line[n] = _mm512_load_si512(words + n * 16);
                _mm_prefetch((const char *)(words + n * 16) + TILES_AHEAD * tile_bytes, _MM_HINT_T0);
            }
#pragma GCC unroll 3
            for (unsigned m = 0; m < rows; m++)
                scale_rows(p, m, r, group_scales(w, r / WALSH_BLOCK_ROWS, group + g), x[m]);
#pragma GCC unroll 8
            for (unsigned s = 0; s < 8; s++) {
                const __m512i from = _mm512_add_epi16(columns, _mm512_set1_epi16((short)(4 * s)));
                const __m512i low = _mm512_permutexvar_epi16(
                                  _mm512_srlv_epi16(_mm512_permutex2var_epi16(line[0], from, line[1]), shift),
                                  values),
                              high = _mm512_permutexvar_epi16(
                                  _mm512_srlv_epi16(_mm512_permutex2var_epi16(line[2], from, line[3]), shift),
                                  values);
#pragma GCC unroll 3
                for (unsigned m = 0; m < rows; m++) {
                    const __m512i pair = _mm512_set1_epi32(x[m][s]);
                    sum[m][2 * g] = tile_step(sum[m][2 * g], low, pair);
                    sum[m][2 * g + 1] = tile_step(sum[m][2 * g + 1], high, pair);
                }
            }
        }
    }
    store_columns(p, rows, groups, group, first == 0 && !p->add, sum);
}

INLINE void direct_transposed(const struct walsh_product_part *p, const unsigned rows)
{
    const struct walsh_weights *w = p->weights;
    const size_t depth = w->rows, groups = walsh_div_up(p->end, GROUP);
    const bool fit = depth % WALSH_BLOCK_ROWS == 0 && activations_fit(p->a);
    for (size_t k = 0; k < depth; k += BLOCK) {
        const size_t end = walsh_min(k + BLOCK, depth);
        size_t g = p->begin / GROUP;
        const bool unscaled =
            fit && scales_fit(w, k / WALSH_BLOCK_ROWS, (end - k) / WALSH_BLOCK_ROWS, g, groups);
        for (; unscaled && g + NEAR_GROUPS <= groups; g += NEAR_GROUPS)
            unscaled_columns(p, rows, NEAR_GROUPS, g, k, end);
        for (; g + NEAR_GROUPS <= groups; g += NEAR_GROUPS) direct_columns(p, rows, NEAR_GROUPS, g, k, end);
        for (; g < groups; g++) direct_columns(p, rows, 1, g, k, end);
    }
}

void walsh_product_mxfp4_transposed_bf16(const struct walsh_product_part *p)
{
    const struct walsh_weights *w = p->weights;
    switch (p->a->rows) {
    case 1:
        direct_transposed(p, 1);
        return;
    case 2:
        direct_transposed(p, 2);
        return;
    case 3:
        direct_transposed(p, 3);
        return;
    default:
        break;
    }
    uint32_t *panels = p->scratch;
    for (size_t c = p->begin; c < p->end; c += PANEL_OUTPUTS) {
        const size_t outputs = walsh_min(PANEL_OUTPUTS, p->end - c);
        for (size_t k = 0; k < w->rows; k += BLOCK) {
            const size_t rows = walsh_min(BLOCK, w->rows - k);
            pack_transposed(w, k, rows, c, outputs, panels);
            const struct tile_rows a = {(const uint16_t *)p->a->data + k, p->a->stride * sizeof(uint16_t),
                                        p->a->rows};
            multiply_block(p, 0, panels, &a, (rows + 1) / 2, c, outputs, k == 0 && !p->add);
        }
    }
}
