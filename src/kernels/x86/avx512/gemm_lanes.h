/* Lanes of vectors of 32 bits: what the register-blocked products and their packing share. */
#ifndef WALSH_KERNELS_X86_AVX512_GEMM_LANES_H
#define WALSH_KERNELS_X86_AVX512_GEMM_LANES_H

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

#ifndef INLINE
#define INLINE static inline __attribute__((always_inline))
#endif

/* The first `count` of 16 lanes; all where there are more. */
INLINE __mmask16 first_lanes(size_t count)
{
    return (__mmask16)_bzhi_u32(0xffffu, count < 16 ? (unsigned)count : 16);
}

/* Transpose 16 x 16 elements of 32 bits in place. */
INLINE void transpose_16x16(__m512i r[16])
{
    __m512i t[16];
#pragma GCC unroll 8
    for (unsigned n = 0; n < 8; n++) {
        t[2 * n] = _mm512_unpacklo_epi32(r[2 * n], r[2 * n + 1]);
        t[2 * n + 1] = _mm512_unpackhi_epi32(r[2 * n], r[2 * n + 1]);
    }
#pragma GCC unroll 4
    for (unsigned n = 0; n < 4; n++) { /* r[4n + c]: column c of each 4 x 4 block of rows 4n..4n+3 */
        r[4 * n] = _mm512_unpacklo_epi64(t[4 * n], t[4 * n + 2]);
        r[4 * n + 1] = _mm512_unpackhi_epi64(t[4 * n], t[4 * n + 2]);
        r[4 * n + 2] = _mm512_unpacklo_epi64(t[4 * n + 1], t[4 * n + 3]);
        r[4 * n + 3] = _mm512_unpackhi_epi64(t[4 * n + 1], t[4 * n + 3]);
    }
#pragma GCC unroll 4
    for (unsigned c = 0; c < 4; c++) {
        __m512i low01 = _mm512_shuffle_i32x4(r[c], r[4 + c], 0x88),
                high01 = _mm512_shuffle_i32x4(r[c], r[4 + c], 0xdd);
        __m512i low23 = _mm512_shuffle_i32x4(r[8 + c], r[12 + c], 0x88);
        __m512i high23 = _mm512_shuffle_i32x4(r[8 + c], r[12 + c], 0xdd);
        t[c] = _mm512_shuffle_i32x4(low01, low23, 0x88);
        t[8 + c] = _mm512_shuffle_i32x4(low01, low23, 0xdd);
        t[4 + c] = _mm512_shuffle_i32x4(high01, high23, 0x88);
        t[12 + c] = _mm512_shuffle_i32x4(high01, high23, 0xdd);
    }
#pragma GCC unroll 16
    for (unsigned n = 0; n < 16; n++) r[n] = t[n];
}

#endif
