/* MXFP4 codes to pairs of bf16, in registers.
 *
 * A word of 8 columns of a row becomes four pairs of columns: two bytes are moved to the halves of a lane,
 * VPERMW finds their values by the low four bits (its table holds them twice, for bit 4 is the other
 * nibble's), and the scale's exponent is added where the value is not zero. That is exact for scale bytes 2
 * to 252; groups with others, and a matrix's padding rows, take the arithmetic of the definition. */
#ifndef WALSH_KERNELS_X86_BF16_MXFP4_PAIRS_H
#define WALSH_KERNELS_X86_BF16_MXFP4_PAIRS_H

#include "kernels/x86/avx512/gemm_lanes.h"

#include "kernels/x86/avx512/blocks.h"

#define GROUP 32 /* columns */

/* Round to nearest even, into the upper halves; numbers only. */
INLINE __m512i round_bf16(__m512 x)
{
    const __m512i bits = _mm512_castps_si512(x),
                  odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    return _mm512_add_epi32(_mm512_add_epi32(bits, odd), _mm512_set1_epi32(0x7fff));
}

/* 16 columns by the definition: pairs p of their 8 pairs. */
static void pairs_defined(const uint32_t *words, __m512 scale, __m512i pairs[8])
{
    __m512 v[16];
    block_values(WALSH_CODE_E2M1, words, _mm512_setzero_si512(), v);
    for (int p = 0; p < 8; p++) {
        const __m512i low = round_bf16(_mm512_mul_ps(v[2 * p], scale)),
                      high = round_bf16(_mm512_mul_ps(v[2 * p + 1], scale));
        pairs[p] = _mm512_mask_blend_epi16(0xaaaaaaaau, _mm512_srli_epi32(low, 16), high);
    }
}

/* The 16 pairs of columns of a group of a tile: pairs[p] holds columns 2p and 2p + 1 of the 16 rows. */
INLINE void group_pairs(const uint32_t *words, const uint8_t *scales, __m512i pairs[16])
{
    const __m512i values = _mm512_set_epi16(
        (short)0xc0c0, (short)0xc080, (short)0xc040, (short)0xc000, (short)0xbfc0, (short)0xbf80,
        (short)0xbf00, (short)0x8000, 0x40c0, 0x4080, 0x4040, 0x4000, 0x3fc0, 0x3f80, 0x3f00, 0,
        (short)0xc0c0, (short)0xc080, (short)0xc040, (short)0xc000, (short)0xbfc0, (short)0xbf80,
        (short)0xbf00, (short)0x8000, 0x40c0, 0x4080, 0x4040, 0x4000, 0x3fc0, 0x3f80, 0x3f00, 0);
    const __m128i bytes = _mm_load_si128((const __m128i *)(const void *)scales);
    if (_mm_cmpgt_epu8_mask(_mm_sub_epi8(bytes, _mm_set1_epi8(2)), _mm_set1_epi8((char)250))) {
        const __m512 scale = block_scales(WALSH_SCALE_E8M0, scales, 0);
        pairs_defined(words, scale, pairs);
        pairs_defined(words + 2 * WALSH_BLOCK_ROWS, scale, pairs + 8);
        return;
    }
    const __m512i low = _mm512_broadcast_i32x4(
                      _mm_setr_epi8(0, -1, 1, -1, 4, -1, 5, -1, 8, -1, 9, -1, 12, -1, 13, -1)),
                  high = _mm512_broadcast_i32x4(
                      _mm_setr_epi8(2, -1, 3, -1, 6, -1, 7, -1, 10, -1, 11, -1, 14, -1, 15, -1));
    const __m512i exponent =
        _mm512_slli_epi32(_mm512_sub_epi32(_mm512_cvtepu8_epi32(bytes), _mm512_set1_epi32(127)), 7);
    const __m512i add = _mm512_mask_blend_epi16(0xaaaaaaaau, exponent, _mm512_slli_epi32(exponent, 16));
    const __m512i magnitude = _mm512_set1_epi16(0x7fff);
#pragma GCC unroll 4
    for (int n = 0; n < 4; n++) {
        const __m512i word = _mm512_load_si512(words + n * WALSH_BLOCK_ROWS),
                      above = _mm512_srli_epi32(word, 4);
        const __m512i index[4] = {_mm512_shuffle_epi8(word, low), _mm512_shuffle_epi8(word, high),
                                  _mm512_shuffle_epi8(above, low), _mm512_shuffle_epi8(above, high)};
#pragma GCC unroll 4
        for (int p = 0; p < 4; p++) {
            const __m512i v = _mm512_permutexvar_epi16(index[p], values);
            pairs[4 * n + p] = _mm512_mask_add_epi16(v, _mm512_test_epi16_mask(v, magnitude), v, add);
        }
    }
}

/* Words and scales of group `group` of tile `tile`. */
INLINE const uint32_t *group_words(const struct walsh_weights *w, size_t tile, size_t group)
{
    return (const uint32_t *)w->data + (tile * walsh_block_words(w) + group * (GROUP / 8)) * WALSH_BLOCK_ROWS;
}
INLINE const uint8_t *group_scales(const struct walsh_weights *w, size_t tile, size_t group)
{
    return (const uint8_t *)w->scales + (tile * walsh_block_groups(w) + group) * WALSH_BLOCK_ROWS;
}

/* The 16 rows of a group, transposed: row r's columns come so that the halves of a pair of rows, interleaved
 * within 128 bits, are 16 columns in order. */
INLINE void group_rows(const uint32_t *words, const uint8_t *scales, __m512i rows[16])
{
    __m512i pairs[16];
    group_pairs(words, scales, pairs);
#pragma GCC unroll 16
    for (int n = 0; n < 16; n++) rows[n] = pairs[n % 4 < 2 ? n / 4 * 2 + n % 4 : 8 + n / 4 * 2 + n % 4 - 2];
    transpose_16x16(rows);
}

#endif
