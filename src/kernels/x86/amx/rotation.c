/* Rotations on the machines that have AMX, Intel's: their load ports double even or odd lanes, and one port alone shuffles. So the first
 * stage takes two loads in the place of a load and a shuffle; the bits are the same. Zen 5 is 6% slower by it. */
#include "kernels/x86/avx512/vector.h"

#undef VECTOR_NAME
#define VECTOR_NAME(kernel) walsh_##kernel##_amx
#define DOUBLED_LOADS butterfly_lanes_at

/* vec_butterfly_lanes of 16 numbers in memory. The compiler would load them once and shuffle. */
static inline vec butterfly_lanes_at(const float *x)
{
    typedef float numbers __attribute__((vector_size(64), aligned(4), may_alias));
    const numbers *from = (const numbers *)(const void *)x;
    const vec s1 = _mm512_setr_ps(1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1);
    vec even, odd;
    __asm__("vmovsldup %1, %0" : "=v"(even) : "m"(*from));
    __asm__("vmovshdup %1, %0" : "=v"(odd) : "m"(*from));
    return vec_butterfly_later_lanes(_mm512_fmadd_ps(odd, s1, even));
}

#include "kernels/x86/rotation.inc"
