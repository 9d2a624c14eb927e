/* The tile of f32 products: gemm.h with FMA as its step. */
#ifndef WALSH_KERNELS_X86_AVX2_TILE_F32_H
#define WALSH_KERNELS_X86_AVX2_TILE_F32_H

#include <immintrin.h>
#include <stdbool.h>

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
struct block_output {
    float *y;
    size_t ldy;
    bool first; /* block of columns */
};

INLINE void store_block(const void *to, size_t i, size_t r, size_t count, __m256 sum)
{
    const struct block_output *o = to;
    float *y = o->y + i * o->ldy + r;
    __m256i mask = first_lanes(count);
    if (!o->first) sum = _mm256_add_ps(_mm256_maskload_ps(y, mask), sum);
    _mm256_maskstore_ps(y, mask, sum);
}

/* The panels of a block of columns by all rows of `a`, into y of `p` from its row i on. */
static inline void multiply_block(const struct walsh_product_part *p, size_t i, const uint32_t *panels,
                                  const struct tile_rows *a, size_t steps, size_t output, size_t outputs,
                                  bool first)
{
    struct block_output to = {p->y + i * p->ldy, p->ldy, first};
    tile_all(store_block, &to, panels, a, steps, output, outputs);
}

#endif
