/* The ceiling of bfloat16 products: VDPBF16PS in registers. */
#include <immintrin.h>

#include "kernels/table.h"

enum { CHAINS = 12, OPERATIONS = 16 * 2 * 2 };

double walsh_peak_bf16_bf16(size_t rounds)
{
    __m512 sum[CHAINS];
    __m512bh x = _mm512_cvtne2ps_pbh(_mm512_set1_ps(1.0f), _mm512_set1_ps(0.5f));
    for (int i = 0; i < CHAINS; i++) sum[i] = _mm512_set1_ps((float)i);
    for (size_t r = 0; r < rounds; r++)
        for (int i = 0; i < CHAINS; i++) sum[i] = _mm512_dpbf16_ps(sum[i], x, x);
    for (int i = 0; i < CHAINS; i++) __asm__ volatile("" : : "v"(sum[i])); /* the sums are wanted */
    return (double)rounds * CHAINS * OPERATIONS;
}
