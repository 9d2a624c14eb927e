/* Tiles of attention in bf16: VDPBF16PS, an element's sum over the pairs of rows in their order. */
#include <immintrin.h>

#include "kernels/table.h"

#define INLINE static inline __attribute__((always_inline))
#define TILE_ROWS 8
#define TILE_VECTORS 2

/* rows x vectors accumulators; both are constant. */
INLINE void tile(float *c, size_t ldc, const float *keep, const uint16_t *a, size_t lda, const uint32_t *b,
                 size_t ldb, size_t k, const unsigned rows, const unsigned vectors)
{
    __m512 sum[TILE_ROWS][TILE_VECTORS];
#pragma GCC unroll 8
    for (unsigned r = 0; r < rows; r++) {
#pragma GCC unroll 2
        for (unsigned v = 0; v < vectors; v++)
            sum[r][v] = keep != NULL
                            ? _mm512_mul_ps(_mm512_set1_ps(keep[r]), _mm512_loadu_ps(c + r * ldc + 16 * v))
                            : _mm512_setzero_ps();
    }
    for (size_t p = 0; p < k / 2; p++) {
        __m512bh w[TILE_VECTORS];
#pragma GCC unroll 2
        for (unsigned v = 0; v < vectors; v++) w[v] = (__m512bh)_mm512_loadu_si512(b + p * ldb + 16 * v);
#pragma GCC unroll 8
        for (unsigned r = 0; r < rows; r++) {
            int32_t pair;
            __builtin_memcpy(&pair, a + r * lda + 2 * p, sizeof pair);
            const __m512bh x = (__m512bh)_mm512_set1_epi32(pair);
#pragma GCC unroll 2
            for (unsigned v = 0; v < vectors; v++) sum[r][v] = _mm512_dpbf16_ps(sum[r][v], w[v], x);
        }
    }
#pragma GCC unroll 8
    for (unsigned r = 0; r < rows; r++) {
#pragma GCC unroll 2
        for (unsigned v = 0; v < vectors; v++) _mm512_storeu_ps(c + r * ldc + 16 * v, sum[r][v]);
    }
}

/* All m rows of 16 * vectors columns. */
INLINE void columns(float *c, size_t ldc, const float *keep, const uint16_t *a, size_t lda, const uint32_t *b,
                    size_t ldb, size_t m, size_t k, const unsigned vectors)
{
    size_t i = 0;
    for (; i + TILE_ROWS <= m; i += TILE_ROWS)
        tile(c + i * ldc, ldc, keep != NULL ? keep + i : NULL, a + i * lda, lda, b, ldb, k, TILE_ROWS,
             vectors);
    for (; i < m; i++)
        tile(c + i * ldc, ldc, keep != NULL ? keep + i : NULL, a + i * lda, lda, b, ldb, k, 1, vectors);
}

void walsh_multiply_tile_bf16_bf16(float *c, size_t ldc, const float *keep, const uint16_t *a, size_t lda,
                                   const uint32_t *b, size_t ldb, size_t m, size_t n, size_t k)
{
    size_t j = 0;
    for (; j + 32 <= n; j += 32) columns(c + j, ldc, keep, a, lda, b + j, ldb, m, k, 2);
    if (j < n) columns(c + j, ldc, keep, a, lda, b + j, ldb, m, k, 1);
}
