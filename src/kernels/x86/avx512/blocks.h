/* Tiles of the block formats (formats/blocks.h): 16 rows are the lanes of a vector. Included behind gemm.h.
 */
#ifndef WALSH_KERNELS_X86_AVX512_BLOCKS_H
#define WALSH_KERNELS_X86_AVX512_BLOCKS_H

#include "formats/blocks.h"

/* 16 scales from number `at` on. E8M0's byte 0 is 2^-127, a subnormal: bits 0x00400000. */
INLINE __m512 block_scales(enum walsh_scale type, const void *scales, size_t at)
{
    const uint8_t *bytes = (const uint8_t *)scales + at;
    __m512i v;
    switch (type) {
    case WALSH_SCALE_E8M0:
        v = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)bytes));
        return _mm512_castsi512_ps(_mm512_mask_mov_epi32(
            _mm512_slli_epi32(v, 23), _mm512_testn_epi32_mask(v, v), _mm512_set1_epi32(0x00400000)));
    case WALSH_SCALE_E4M3:
        v = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)bytes));
        return _mm512_or_ps(
            _mm512_mul_ps(
                _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_and_si512(v, _mm512_set1_epi32(0x7f)), 20)),
                _mm512_set1_ps(0x1p120f)),
            _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_and_si512(v, _mm512_set1_epi32(0x80)), 24)));
    case WALSH_SCALE_BF16:
        return _mm512_castsi512_ps(_mm512_slli_epi32(
            _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)scales + at / 16)), 16));
    case WALSH_SCALE_F32:
        break;
    }
    return _mm512_loadu_ps((const float *)scales + at);
}

/* 16 zero points from number `at` on, as integers. */
INLINE __m512i block_zeros(enum walsh_code code, const uint8_t *zeros, size_t at)
{
    if (zeros) return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)(zeros + at)));
    return _mm512_set1_epi32(code == WALSH_CODE_U4 ? 8 : 128);
}

/* An 8-bit float in bits 7..0 of each lane (whatever stands above): its magnitude's bits moved to those of an
 * f32 are its value times 2^-120 (E4M3) or 2^-112 (E5M2), subnormals included. */
INLINE __m512 small_floats(enum walsh_code code, __m512i byte)
{
    const int up = code == WALSH_CODE_E4M3 ? 20 : 21;
    const __m512 bias = _mm512_set1_ps(code == WALSH_CODE_E4M3 ? 0x1p120f : 0x1p112f);
    const __m512i magnitude =
        _mm512_slli_epi32(_mm512_and_si512(byte, _mm512_set1_epi32(0x7f)), (unsigned)up);
    const __m512i sign = _mm512_slli_epi32(_mm512_and_si512(byte, _mm512_set1_epi32(0x80)), 24);
    return _mm512_or_ps(_mm512_mul_ps(_mm512_castsi512_ps(magnitude), bias), _mm512_castsi512_ps(sign));
}

/* Values (code - zero) of 16 columns of a tile from its word row `words` on (2 rows of words of 4 bits, 4 of
 * 8 bits): v[c] holds column c of the 16 rows. `code` is a constant. */
INLINE void block_values(enum walsh_code code, const uint32_t *words, __m512i zeros, __m512 v[16])
{
    if (walsh_code_bits(code) == 4) {
        const __m512 e2m1 =
            _mm512_setr_ps(0, .5f, 1, 1.5f, 2, 3, 4, 6, -0.0f, -.5f, -1, -1.5f, -2, -3, -4, -6);
#pragma GCC unroll 2
        for (unsigned n = 0; n < 2; n++) {
            const __m512i word = _mm512_load_si512(words + 16 * n);
#pragma GCC unroll 8
            for (unsigned c = 0; c < 8; c++) {
                const __m512i code_bits = _mm512_srli_epi32(word, c < 4 ? 8 * c : 8 * (c - 4) + 4);
                v[8 * n + c] = code == WALSH_CODE_E2M1
                                   ? _mm512_permutexvar_ps(code_bits, e2m1)
                                   : _mm512_cvtepi32_ps(_mm512_sub_epi32(
                                         _mm512_and_si512(code_bits, _mm512_set1_epi32(15)), zeros));
            }
        }
        return;
    }
#pragma GCC unroll 4
    for (unsigned n = 0; n < 4; n++) {
        const __m512i word = _mm512_load_si512(words + 16 * n);
#pragma GCC unroll 4
        for (unsigned c = 0; c < 4; c++) {
            const __m512i byte = _mm512_srli_epi32(word, 8 * c);
            v[4 * n + c] = code == WALSH_CODE_U8 ? _mm512_cvtepi32_ps(_mm512_sub_epi32(
                                                       _mm512_and_si512(byte, _mm512_set1_epi32(255)), zeros))
                                                 : small_floats(code, byte);
        }
    }
}

#endif
