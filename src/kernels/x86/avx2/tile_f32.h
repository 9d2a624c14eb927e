/* The tile of f32 products: gemm.h with FMA as its step. */
#ifndef WALSH_KERNELS_X86_AVX2_TILE_F32_H
#define WALSH_KERNELS_X86_AVX2_TILE_F32_H

#include <immintrin.h>

typedef __m256 tile_sum;

static inline __m256 tile_zero(void)
{
    return _mm256_setzero_ps();
}

static inline __m256 tile_step(__m256 sum, __m256i weights, __m256i activation)
{
    return _mm256_fmadd_ps(_mm256_castsi256_ps(weights), _mm256_castsi256_ps(activation), sum);
}

#include "kernels/product.h"
#include "kernels/x86/avx2/gemm.h"

/* Where the sums of a block of columns go: the first block writes y, the later ones add to it. */
INLINE void store_first(const void *to, size_t i, size_t r, size_t count, __m256 sum)
{
    const struct walsh_product_part *p = to;
    _mm256_maskstore_ps(p->y + i * p->ldy + r, first_lanes(count), sum);
}

INLINE void store_next(const void *to, size_t i, size_t r, size_t count, __m256 sum)
{
    const struct walsh_product_part *p = to;
    float *y = p->y + i * p->ldy + r;
    __m256i mask = first_lanes(count);
    _mm256_maskstore_ps(y, mask, _mm256_add_ps(_mm256_maskload_ps(y, mask), sum));
}

#endif
