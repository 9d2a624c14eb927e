/* Few rows by MXFP4 in f32 vectors, with the sums of TDPBF16PS: of 32 columns the even and the odd ones have a chain each, whose sum is
 * added to the output's. Codes become f32 by one permutation for 16 weights; a group of 32 columns is a tile's step, so that its
 * scale multiplies that sum. VDPBF16PS would not do: it has another order, and Intel's takes four times as long as AMD's. */
#include "kernels/x86/amx/few_rows.h"

#include <immintrin.h>
#include <string.h>

#include "base/memory.h"
#include "kernels/table.h"
#include "kernels/x86/bf16/mxfp4_units.h"

#define FEW_ROWS 4
#define TILES 4       /* of 16 outputs, side by side, for one row: chains that hide each other's latency */
#define PREFETCH 2048 /* bytes ahead, */
#define PREFETCH_FAR 6144 /* and into the L2 */

/* `tiles` tiles of outputs from row r on by `rows` rows, both constant. x: [rows][ldx], 0 behind the last column. */
INLINE void block(const struct walsh_product_part *p, const float *x, size_t ldx, const unsigned rows,
                  const unsigned tiles, size_t r)
{
    const __m512 values = _mm512_setr_ps(0, .5f, 1, 1.5f, 2, 3, 4, 6, -0.0f, -.5f, -1, -1.5f, -2, -3, -4, -6);
    const struct walsh_weights *w = p->weights;
    const size_t groups = walsh_block_groups(w), tile = r / WALSH_BLOCK_ROWS,
                 tile_words = walsh_block_words(w) * WALSH_BLOCK_ROWS,
                 tile_scales = groups * WALSH_BLOCK_ROWS;
    const uint32_t *word = group_words(w, tile, 0);
    const uint8_t *scale = group_scales(w, tile, 0);
    __m512 sum[FEW_ROWS][TILES];
#pragma GCC unroll 4
    for (unsigned m = 0; m < rows; m++) {
#pragma GCC unroll 4
        for (unsigned t = 0; t < tiles; t++) sum[m][t] = _mm512_setzero_ps();
    }
    for (size_t g = 0; g < groups; g++, scale += WALSH_BLOCK_ROWS) {
        __m512 part[2][FEW_ROWS][TILES];
#pragma GCC unroll 4
        for (unsigned m = 0; m < rows; m++) {
#pragma GCC unroll 4
            for (unsigned t = 0; t < tiles; t++) part[0][m][t] = part[1][m][t] = _mm512_setzero_ps();
        }
        for (unsigned n = 0; n < 4; n++, word += WALSH_BLOCK_ROWS, x += 8) {
            __m512i v[TILES];
#pragma GCC unroll 4
            for (unsigned t = 0; t < tiles; t++) {
                v[t] = _mm512_load_si512(word + t * tile_words);
                _mm_prefetch((const char *)(word + t * tile_words) + PREFETCH, _MM_HINT_T0);
                _mm_prefetch((const char *)(word + t * tile_words) + PREFETCH_FAR, _MM_HINT_T1);
            }
#pragma GCC unroll 8
            for (unsigned c = 0; c < 8; c++) /* columns are nibbles 0, 2, 4, 6, 1, 3, 5, 7 of a word */
#pragma GCC unroll 4
                for (unsigned t = 0; t < tiles; t++) {
                    const __m512i code = _mm512_srli_epi32(v[t], c % 4 * 8 + c / 4 * 4);
                    const __m512 value = _mm512_permutexvar_ps(code, values);
#pragma GCC unroll 4
                    for (unsigned m = 0; m < rows; m++)
                        part[c % 2][m][t] =
                            _mm512_fmadd_ps(value, _mm512_set1_ps(x[m * ldx + c]), part[c % 2][m][t]);
                }
        }
#pragma GCC unroll 4
        for (unsigned t = 0; t < tiles; t++) {
            const __m128i bytes = _mm_load_si128((const __m128i *)(const void *)(scale + t * tile_scales));
            const __m512 factor = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu8_epi32(bytes), 23));
#pragma GCC unroll 4
            for (unsigned m = 0; m < rows; m++)
                sum[m][t] = _mm512_fmadd_ps(_mm512_add_ps(part[0][m][t], part[1][m][t]), factor, sum[m][t]);
        }
    }
#pragma GCC unroll 4
    for (unsigned m = 0; m < rows; m++) {
#pragma GCC unroll 4
        for (unsigned t = 0; t < tiles; t++) {
            const size_t output = r + t * WALSH_BLOCK_ROWS;
            if (output >= p->end) continue;
            const __mmask16 mask = first_lanes(p->end - output);
            float *y = p->y + m * p->ldy + output;
            __m512 v = sum[m][t];
            if (p->add) v = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, y), v);
            _mm512_mask_storeu_ps(y, mask, v);
        }
    }
}

INLINE void blocks(const struct walsh_product_part *p, const float *x, size_t ldx, const unsigned rows,
                   const unsigned most)
{
    size_t r = p->begin;
    for (; r + (most - 1) * WALSH_BLOCK_ROWS < p->end; r += most * WALSH_BLOCK_ROWS)
        block(p, x, ldx, rows, most, r);
    for (; r < p->end; r += WALSH_BLOCK_ROWS) block(p, x, ldx, rows, 1, r);
}

/* The activations as f32, 0 behind the last column. */
static void widen(const struct walsh_activations *a, size_t cols, size_t ldx, float *x)
{
    for (size_t m = 0; m < a->rows; m++)
        for (size_t k = 0; k < ldx; k += 16) {
            const __mmask16 mask = first_lanes(k < cols ? cols - k : 0);
            const __m256i v = _mm256_maskz_loadu_epi16(mask, (const uint16_t *)a->data + m * a->stride + k);
            _mm512_store_si512(x + m * ldx + k, _mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16));
        }
}

bool walsh_amx_mxfp4_few_rows(const struct walsh_product_part *p)
{
    const struct walsh_weights *w = p->weights;
    const size_t groups = walsh_block_groups(w), first = p->begin / WALSH_BLOCK_ROWS;
    const size_t tiles = walsh_div_up(p->end, WALSH_BLOCK_ROWS) - first, ldx = groups * GROUP;
    if (p->a->rows > FEW_ROWS || p->a->tiled || !activations_fit(p->a) ||
        !scales_fit(w, first, tiles, 0, groups))
        return false;
    float *x = p->scratch;
    widen(p->a, w->cols, ldx, x);
    switch (p->a->rows) {
    case 1:
        blocks(p, x, ldx, 1, 4);
        break;
    case 2:
        blocks(p, x, ldx, 2, 2);
        break;
    case 3:
        blocks(p, x, ldx, 3, 1);
        break;
    default:
        blocks(p, x, ldx, 4, 1);
    }
    return true;
}
