/* The tile of f32 products: gemm.h with FMA as its step. */
#ifndef WALSH_KERNELS_X86_AVX512_TILE_F32_H
#define WALSH_KERNELS_X86_AVX512_TILE_F32_H

#include <immintrin.h>

typedef __m512 tile_sum;

static inline __m512 tile_zero(void)
{
    return _mm512_setzero_ps();
}

static inline __m512 tile_step(__m512 sum, __m512i weights, __m512i activation)
{
    return _mm512_fmadd_ps(_mm512_castsi512_ps(weights), _mm512_castsi512_ps(activation), sum);
}

#include "kernels/x86/avx512/store_f32.h"

#endif
