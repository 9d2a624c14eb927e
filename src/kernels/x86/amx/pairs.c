/* Products of bf16 pairs by TDPBF16PS: 32 rows by 32 columns at a time. */
#include <stdbool.h>

#include <immintrin.h>

#include "base/memory.h"
#include "kernels/table.h"
#include "kernels/x86/amx/tiles.h"
#include "kernels/x86/avx512/gemm_lanes.h"

#define GROUP 32 /* rows, columns: two tiles each */
#define STEPS 16 /* of a tile */
#define TILE_BYTES 1024

/* A group of C: tiles 0 to 3 are its sums, 4 and 5 rows of A, 6 and 7 columns of B. */
static struct tile_config shapes(size_t rows, size_t cols)
{
    struct tile_config c = tile_shapes(walsh_min(rows, 16), rows > 16 ? rows - 16 : 0);
    const uint16_t left = (uint16_t)(4 * walsh_min(cols, 16)),
                   right = (uint16_t)(cols > 16 ? 4 * (cols - 16) : 64);
    c.row_bytes[0] = c.row_bytes[2] = c.row_bytes[6] = left;
    c.row_bytes[1] = c.row_bytes[3] = c.row_bytes[7] = right;
    return c;
}

/* C of rows [i, i + rows) and columns [j, j + cols) times keep. */
static void keep_group(const struct walsh_pairs_product *p, size_t i, size_t rows, size_t j, size_t cols)
{
    for (size_t v = 0; v < cols; v += 16) {
        const __mmask16 mask = first_lanes(cols - v);
        const __m512 keep = _mm512_maskz_loadu_ps(mask, p->keep + j + v);
        for (size_t m = 0; m < rows; m++) {
            float *c = p->c + (i + m) * p->ldc + j + v;
            _mm512_mask_storeu_ps(c, mask, _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, c), keep));
        }
    }
}

/* Steps beyond the last whole tile, with zeros behind them: A's as two tiles, B's too. */
struct last {
    _Alignas(64) uint8_t a[2 * TILE_BYTES], b[2 * TILE_BYTES];
};

static void last_rows(const struct walsh_pairs_product *p, size_t step, size_t i, size_t rows,
                      struct last *last)
{
    for (size_t m = 0; m < rows; m++)
        memcpy(last->a + 64 * m, p->a + (i + m) * p->lda + 2 * step, 4 * (p->steps - step));
}

static void last_columns(const struct walsh_pairs_product *p, size_t step, size_t j, size_t cols,
                         struct last *last)
{
    for (size_t s = step; s < p->steps; s++)
        for (size_t v = 0; v < cols; v += 16)
            memcpy(last->b + v / 16 * TILE_BYTES + 64 * (s - step), p->b + s * p->ldb + j + v,
                   4 * walsh_min(cols - v, 16));
}

static inline __attribute__((always_inline)) void add_step(struct tiles *t, const void *a, const void *a1,
                                                           size_t lda, const void *b, const void *b1,
                                                           size_t ldb, bool two_rows, bool two_columns)
{
    (void)t;
    TILE_LOAD(t, 4, a, lda);
    TILE_LOAD(t, 6, b, ldb);
    TILE_DOT_BF16(t, 0, 4, 6);
    if (two_rows) TILE_LOAD(t, 5, a1, lda);
    if (two_rows) TILE_DOT_BF16(t, 2, 5, 6);
    if (!two_columns) return;
    TILE_LOAD(t, 7, b1, ldb);
    TILE_DOT_BF16(t, 1, 4, 7);
    if (two_rows) TILE_DOT_BF16(t, 3, 5, 7);
}

/* The group of C that begins at row i and column j; `last`: its steps beyond `whole`. */
static inline __attribute__((always_inline)) void group(struct tiles *t, const struct walsh_pairs_product *p,
                                                        size_t i, size_t j, size_t whole,
                                                        const struct last *last, bool two_rows,
                                                        bool two_columns)
{
    float *c = p->c + i * p->ldc + j, *c1 = c + 16 * p->ldc;
    const size_t ldc = 4 * p->ldc, lda = 2 * p->lda, ldb = 4 * p->ldb;
    const uint16_t *a = p->a + i * p->lda, *a1 = a + 16 * p->lda;
    TILE_ZERO(t, 0);
    TILE_ZERO(t, 1);
    TILE_ZERO(t, 2);
    TILE_ZERO(t, 3);
    if (p->add) {
        TILE_LOAD(t, 0, c, ldc);
        if (two_columns) TILE_LOAD(t, 1, c + 16, ldc);
        if (two_rows) TILE_LOAD(t, 2, c1, ldc);
        if (two_rows && two_columns) TILE_LOAD(t, 3, c1 + 16, ldc);
    }
    const uint32_t *b = p->b + j;
    for (size_t s = 0; s < whole; s += STEPS, b += STEPS * p->ldb)
        add_step(t, a + 2 * s, a1 + 2 * s, lda, b, b + 16, ldb, two_rows, two_columns);
    if (whole < p->steps)
        add_step(t, last->a, last->a + TILE_BYTES, 64, last->b, last->b + TILE_BYTES, 64, two_rows,
                 two_columns);
    TILE_STORE(t, 0, c, ldc);
    if (two_columns) TILE_STORE(t, 1, c + 16, ldc);
    if (two_rows) TILE_STORE(t, 2, c1, ldc);
    if (two_rows && two_columns) TILE_STORE(t, 3, c1 + 16, ldc);
}

void walsh_multiply_pairs_bf16_amx(const struct walsh_pairs_product *p)
{
    const size_t whole = p->steps / STEPS * STEPS;
    struct tiles t;
    struct last last;
    size_t shaped_rows = 0, shaped_cols = 0;
    if (whole < p->steps) memset(&last, 0, sizeof last);
    for (size_t j = 0; j < p->n; j += GROUP) {
        const size_t cols = walsh_min(p->n - j, GROUP);
        if (whole < p->steps) last_columns(p, whole, j, cols, &last);
        for (size_t i = 0; i < p->m; i += GROUP) {
            const size_t rows = walsh_min(p->m - i, GROUP);
            if (rows != shaped_rows || cols != shaped_cols) {
                const struct tile_config config = shapes(rows, cols);
                tiles_open(&t, &config);
                shaped_rows = rows;
                shaped_cols = cols;
            }
            if (p->add && p->keep) keep_group(p, i, rows, j, cols);
            if (whole < p->steps) last_rows(p, whole, i, rows, &last);
            if (rows > 16 && cols > 16)
                group(&t, p, i, j, whole, &last, true, true);
            else
                group(&t, p, i, j, whole, &last, rows > 16, cols > 16);
        }
    }
    if (shaped_rows != 0) tiles_close(&t);
}
