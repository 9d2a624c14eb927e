/* Pairs of bf16 in a vector. */
#ifndef WALSH_KERNELS_X86_BF16_PAIRS_H
#define WALSH_KERNELS_X86_BF16_PAIRS_H

#include <immintrin.h>

/* Lane i: bf16 of low[i] below bf16 of high[i]. */
static inline __attribute__((always_inline)) __m512i pair_lanes(__m512 low, __m512 high)
{
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23,
                                           7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return _mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh(high, low));
}

#endif
