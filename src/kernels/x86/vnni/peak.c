/* The ceiling of int8 products: VPDPBUSD in registers. */
#include <immintrin.h>

#include "kernels/table.h"

enum { CHAINS = 12, OPERATIONS = 16 * 4 * 2 };

double walsh_peak_int8_vnni(size_t rounds)
{
    __m512i sum[CHAINS], x = _mm512_set1_epi8(1);
    for (int i = 0; i < CHAINS; i++) sum[i] = _mm512_set1_epi32(i);
    for (size_t r = 0; r < rounds; r++)
        for (int i = 0; i < CHAINS; i++) sum[i] = _mm512_dpbusd_epi32(sum[i], x, x);
    for (int i = 0; i < CHAINS; i++) __asm__ volatile("" : : "v"(sum[i])); /* the sums are wanted */
    return (double)rounds * CHAINS * OPERATIONS;
}
