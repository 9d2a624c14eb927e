/* The tile of bf16 products: gemm.h with VDPBF16PS as its step. */
#ifndef WALSH_KERNELS_X86_BF16_TILE_H
#define WALSH_KERNELS_X86_BF16_TILE_H

#include <immintrin.h>

typedef __m512 tile_sum;

static inline __m512 tile_zero(void)
{
    return _mm512_setzero_ps();
}

static inline __m512 tile_step(__m512 sum, __m512i weights, __m512i activation)
{
    return _mm512_dpbf16_ps(sum, (__m512bh)weights, (__m512bh)activation);
}

#include "kernels/x86/avx512/store_f32.h"

#define BLOCK 1024        /* columns per panel (transposed: rows) */
#define PANEL_OUTPUTS 192 /* outputs whose panels share the L2: 192 * 1024 * 2 = 393 KB */

#endif
