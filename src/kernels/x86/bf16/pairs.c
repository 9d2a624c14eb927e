/* Products of bf16 pairs by VDPBF16PS, and what packs them. */
#include <immintrin.h>
#include <stdbool.h>

#include "base/memory.h"
#include "kernels/table.h"
#include "kernels/x86/avx512/gemm_lanes.h"
#include "kernels/x86/bf16/pairs.h"

#define ROWS 8
#define VECTORS 2
#define AHEAD 16 /* rows: of few columns, which no machine prefetches alone */

/* --- packing --- */

/* 16 pairs of rows `low` and `high` (NULL: zero), of which `mask` exist. */
INLINE __m512i pair_of_rows(const float *low, const float *high, __mmask16 mask)
{
    const __m512 a = _mm512_maskz_loadu_ps(mask, low),
                 b = high ? _mm512_maskz_loadu_ps(mask, high) : _mm512_setzero_ps();
    return pair_lanes(a, b);
}

void walsh_pair_rows_bf16_bf16(uint32_t *y, size_t ldy, const float *x, size_t ldx, size_t rows, size_t cols)
{
    for (size_t i = 0; i < rows; i += 2, x += 2 * ldx, y += ldy) {
        const float *high = i + 1 < rows ? x + ldx : NULL;
        if (i + AHEAD + 2 <= rows)
            for (size_t j = 0; j < cols; j += 16) {
                _mm_prefetch((const char *)(x + AHEAD * ldx + j), _MM_HINT_T0);
                _mm_prefetch((const char *)(x + (AHEAD + 1) * ldx + j), _MM_HINT_T0);
            }
        for (size_t j = 0; j < cols; j += 16) {
            const __mmask16 mask = first_lanes(cols - j);
            _mm512_mask_storeu_epi32(y + j, mask, pair_of_rows(x + j, high ? high + j : NULL, mask));
        }
    }
}

void walsh_pair_narrow_rows_bf16_bf16(uint32_t *y, size_t ldy, const uint16_t *x, size_t ldx, size_t rows,
                                      size_t cols)
{
    for (size_t i = 0; i < rows; i += 2, x += 2 * ldx, y += ldy) {
        const bool pair = i + 1 < rows;
        if (i + AHEAD + 2 <= rows)
            for (size_t j = 0; j < cols; j += 32) {
                _mm_prefetch((const char *)(x + AHEAD * ldx + j), _MM_HINT_T0);
                _mm_prefetch((const char *)(x + (AHEAD + 1) * ldx + j), _MM_HINT_T0);
            }
        for (size_t j = 0; j < cols; j += 16) {
            const __mmask16 mask = first_lanes(cols - j);
            const __m256i low = _mm256_maskz_loadu_epi16(mask, x + j),
                          high = pair ? _mm256_maskz_loadu_epi16(mask, x + ldx + j) : _mm256_setzero_si256();
            _mm512_mask_storeu_epi32(y + j, mask,
                                     _mm512_or_si512(_mm512_cvtepu16_epi32(low),
                                                     _mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16)));
        }
    }
}

/* Store rows r[n] of `count` lanes each, for n < exist. */
INLINE void store_rows(uint32_t *y, size_t ldy, const __m512i r[16], size_t exist, size_t count)
{
    const __mmask16 mask = first_lanes(count);
    if (exist >= 16)
#pragma GCC unroll 16
        for (size_t n = 0; n < 16; n++) _mm512_mask_storeu_epi32(y + n * ldy, mask, r[n]);
    else
#pragma GCC unroll 16
        for (size_t n = 0; n < 16; n++)
            if (n < exist) _mm512_mask_storeu_epi32(y + n * ldy, mask, r[n]);
}

void walsh_pair_rows_turned_bf16_bf16(uint32_t *y, size_t ldy, const float *x, size_t ldx, size_t rows,
                                      size_t cols)
{
    for (size_t i = 0; i < rows; i += 32)
        for (size_t j = 0; j < cols; j += 16) {
            const __mmask16 mask = first_lanes(cols - j);
            __m512i r[16];
#pragma GCC unroll 16
            for (size_t n = 0; n < 16; n++) {
                const size_t low = i + 2 * n;
                const float *from = x + low * ldx + j;
                r[n] = low < rows ? pair_of_rows(from, low + 1 < rows ? from + ldx : NULL, mask)
                                  : _mm512_setzero_si512();
            }
            transpose_16x16(r);
            store_rows(y + j * ldy + i / 2, ldy, r, cols - j, (rows - i + 1) / 2);
        }
}

/* 32 elements from x on, of which `count` exist, as 16 pairs. */
INLINE __m512i pair_of_columns(const float *x, size_t count)
{
    const __m512 a = _mm512_maskz_loadu_ps(first_lanes(count), x),
                 b = count > 16 ? _mm512_maskz_loadu_ps(first_lanes(count - 16), x + 16)
                                : _mm512_setzero_ps();
    return (__m512i)_mm512_cvtne2ps_pbh(b, a);
}

void walsh_pair_columns_turned_bf16_bf16(uint32_t *y, size_t ldy, const float *x, size_t ldx, size_t rows,
                                         size_t cols)
{
    for (size_t i = 0; i < rows; i += 16)
        for (size_t j = 0; j < cols; j += 32) {
            __m512i r[16];
#pragma GCC unroll 16
            for (size_t n = 0; n < 16; n++)
                r[n] =
                    i + n < rows ? pair_of_columns(x + (i + n) * ldx + j, cols - j) : _mm512_setzero_si512();
            transpose_16x16(r);
            store_rows(y + j / 2 * ldy + i, ldy, r, (cols - j + 1) / 2, rows - i);
        }
}

/* --- product --- */

INLINE __m512 step(__m512 sum, const uint16_t *a, __m512i b)
{
    int32_t pair;
    __builtin_memcpy(&pair, a, sizeof pair);
    return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_epi32(pair), (__m512bh)b);
}

/* What a sum of row i and columns [j, j + 16) starts from. */
INLINE __m512 start(const struct walsh_pairs_product *p, size_t i, size_t j, __mmask16 mask)
{
    if (!p->add) return _mm512_setzero_ps();
    const __m512 c = _mm512_maskz_loadu_ps(mask, p->c + i * p->ldc + j);
    return p->keep ? _mm512_mul_ps(c, _mm512_maskz_loadu_ps(mask, p->keep + j)) : c;
}

/* Rows [i, i + rows) by 32 columns from j on. */
INLINE void block(const struct walsh_pairs_product *p, size_t i, size_t j, const size_t rows)
{
    __m512 sum[ROWS][VECTORS];
#pragma GCC unroll 8
    for (size_t r = 0; r < rows; r++)
#pragma GCC unroll 2
        for (size_t v = 0; v < VECTORS; v++) sum[r][v] = start(p, i + r, j + 16 * v, 0xffff);
    const uint16_t *a = p->a + i * p->lda;
    const uint32_t *b = p->b + j;
    const size_t lda = p->lda;
    for (size_t s = 0; s < p->steps; s++, a += 2, b += p->ldb) {
        const __m512i b0 = _mm512_loadu_si512(b), b1 = _mm512_loadu_si512(b + 16);
#pragma GCC unroll 8
        for (size_t r = 0; r < rows; r++) {
            sum[r][0] = step(sum[r][0], a + r * lda, b0);
            sum[r][1] = step(sum[r][1], a + r * lda, b1);
        }
    }
#pragma GCC unroll 8
    for (size_t r = 0; r < rows; r++)
#pragma GCC unroll 2
        for (size_t v = 0; v < VECTORS; v++)
            _mm512_storeu_ps(p->c + (i + r) * p->ldc + j + 16 * v, sum[r][v]);
}

/* Rows [i, i + rows) by the columns of `mask` from j on: two chains, of even and odd steps. */
INLINE void narrow_block(const struct walsh_pairs_product *p, size_t i, size_t j, const size_t rows,
                         __mmask16 mask)
{
    __m512 even[ROWS], odd[ROWS];
#pragma GCC unroll 8
    for (size_t r = 0; r < rows; r++) {
        even[r] = start(p, i + r, j, mask);
        odd[r] = _mm512_setzero_ps();
    }
    const uint16_t *a = p->a + i * p->lda;
    const uint32_t *b = p->b + j;
    const size_t lda = p->lda;
    size_t s = 0;
    for (; s + 2 <= p->steps; s += 2, a += 4, b += 2 * p->ldb) {
        const __m512i b0 = _mm512_maskz_loadu_epi32(mask, b), b1 = _mm512_maskz_loadu_epi32(mask, b + p->ldb);
#pragma GCC unroll 8
        for (size_t r = 0; r < rows; r++) {
            even[r] = step(even[r], a + r * lda, b0);
            odd[r] = step(odd[r], a + r * lda + 2, b1);
        }
    }
    const __m512i last = s < p->steps ? _mm512_maskz_loadu_epi32(mask, b) : _mm512_setzero_si512();
#pragma GCC unroll 8
    for (size_t r = 0; r < rows; r++) {
        if (s < p->steps) even[r] = step(even[r], a + r * lda, last);
        _mm512_mask_storeu_ps(p->c + (i + r) * p->ldc + j, mask, _mm512_add_ps(even[r], odd[r]));
    }
}

void walsh_multiply_pairs_bf16_bf16(const struct walsh_pairs_product *p)
{
    size_t j = 0;
    for (; j + 16 * VECTORS <= p->n; j += 16 * VECTORS) {
        size_t i = 0;
        for (; i + ROWS <= p->m; i += ROWS) block(p, i, j, ROWS);
        for (; i + 4 <= p->m; i += 4) block(p, i, j, 4);
        for (; i < p->m; i++) block(p, i, j, 1);
    }
    for (; j < p->n; j += 16) {
        const __mmask16 mask = first_lanes(p->n - j);
        size_t i = 0;
        for (; i + ROWS <= p->m; i += ROWS) narrow_block(p, i, j, ROWS, mask);
        for (; i + 4 <= p->m; i += 4) narrow_block(p, i, j, 4, mask);
        for (; i < p->m; i++) narrow_block(p, i, j, 1, mask);
    }
}
