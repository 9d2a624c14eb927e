/* Tiles of attention in bf16 by TDPBF16PS: 32 rows by 32 columns at a time, whose sums start from what C
 * holds. */
#include <stdbool.h>

#include <immintrin.h>

#include "kernels/table.h"
#include "kernels/x86/amx/tiles.h"

#define GROUP 32 /* rows, columns: two tiles each */
#define STEP 32  /* k of a tile */

static void scale_rows(float *c, size_t ldc, const float *keep, size_t m, size_t n)
{
    for (size_t i = 0; i < m; i++)
        for (size_t j = 0; j < n; j += 16) {
            float *at = c + i * ldc + j;
            _mm512_storeu_ps(at, _mm512_mul_ps(_mm512_set1_ps(keep[i]), _mm512_loadu_ps(at)));
        }
}

static inline __attribute__((always_inline)) void group(struct tiles *t, float *c, size_t ldc, bool add,
                                                        const uint16_t *a, size_t lda, const uint32_t *b,
                                                        size_t ldb, size_t k, bool two_rows, bool two_columns)
{
    float *c1 = c + 16 * ldc;
    (void)t;
    TILE_ZERO(t, 0);
    TILE_ZERO(t, 1);
    TILE_ZERO(t, 2);
    TILE_ZERO(t, 3);
    if (add) TILE_LOAD(t, 0, c, 4 * ldc);
    if (add && two_columns) TILE_LOAD(t, 1, c + 16, 4 * ldc);
    if (add && two_rows) TILE_LOAD(t, 2, c1, 4 * ldc);
    if (add && two_rows && two_columns) TILE_LOAD(t, 3, c1 + 16, 4 * ldc);
    for (size_t p = 0; p < k; p += STEP, b += STEP / 2 * ldb) {
        TILE_LOAD(t, 4, a + p, 2 * lda);
        TILE_LOAD(t, 6, b, 4 * ldb);
        TILE_DOT_BF16(t, 0, 4, 6);
        if (two_rows) TILE_LOAD(t, 5, a + 16 * lda + p, 2 * lda);
        if (two_rows) TILE_DOT_BF16(t, 2, 5, 6);
        if (!two_columns) continue;
        TILE_LOAD(t, 7, b + 16, 4 * ldb);
        TILE_DOT_BF16(t, 1, 4, 7);
        if (two_rows) TILE_DOT_BF16(t, 3, 5, 7);
    }
    TILE_STORE(t, 0, c, 4 * ldc);
    if (two_columns) TILE_STORE(t, 1, c + 16, 4 * ldc);
    if (two_rows) TILE_STORE(t, 2, c1, 4 * ldc);
    if (two_rows && two_columns) TILE_STORE(t, 3, c1 + 16, 4 * ldc);
}

void walsh_multiply_tile_bf16_amx(float *c, size_t ldc, const float *keep, const uint16_t *a, size_t lda,
                                  const uint32_t *b, size_t ldb, size_t m, size_t n, size_t k)
{
    struct tiles t;
    size_t shaped = 0;
    if (m == 0) return;
    if (keep != NULL) scale_rows(c, ldc, keep, m, n);
    for (size_t i = 0; i < m; i += GROUP) {
        const size_t rows = m - i < GROUP ? m - i : GROUP;
        if (rows != shaped) {
            const struct tile_config config = tile_shapes(rows < 16 ? rows : 16, rows > 16 ? rows - 16 : 0);
            tiles_open(&t, &config);
            shaped = rows;
        }
        for (size_t j = 0; j < n; j += GROUP) {
            float *to = c + i * ldc + j;
            if (rows > 16 && n - j > 16)
                group(&t, to, ldc, keep != NULL, a + i * lda, lda, b + j, ldb, k, true, true);
            else
                group(&t, to, ldc, keep != NULL, a + i * lda, lda, b + j, ldb, k, rows > 16, n - j > 16);
        }
    }
    tiles_close(&t);
}
