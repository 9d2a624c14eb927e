/* Products of bf16 pairs by VDPBF16PS, and what packs them. */
#include <immintrin.h>
#include <stdbool.h>

#include "base/memory.h"
#include "kernels/table.h"
#include "kernels/x86/avx512/gemm_lanes.h"
#include "kernels/x86/bf16/pairs.h"

#define ROWS 13 /* of a block, at most */
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

/* What the sums of `rows` rows from c on and of the columns of `mask` start from. */
INLINE void start(__m512 *sum, size_t stride, const float *c, size_t ldc, const size_t rows, bool add,
                  const float *keep, __mmask16 mask)
{
    const __m512 factor = keep ? _mm512_maskz_loadu_ps(mask, keep) : _mm512_setzero_ps();
#pragma GCC unroll 13
    for (size_t r = 0; r < rows; r++) {
        __m512 from = add ? _mm512_maskz_loadu_ps(mask, c + r * ldc) : _mm512_setzero_ps();
        sum[r * stride] = keep ? _mm512_mul_ps(from, factor) : from;
    }
}

/* Rows [i, i + rows) by 32 columns from j on; *p is read once, because a sum that is stored might change it for all that the
 * compiler knows. */
INLINE void block(const struct walsh_pairs_product *p, size_t i, size_t j, const size_t rows)
{
    __m512 sum[ROWS][VECTORS];
    const size_t lda = p->lda, ldb = p->ldb, ldc = p->ldc, steps = p->steps;
    float *c = p->c + i * ldc + j;
    const float *keep = p->add ? p->keep : NULL;
    if (keep)
#pragma GCC unroll 2
        for (size_t v = 0; v < VECTORS; v++)
            start(sum[0] + v, VECTORS, c + 16 * v, ldc, rows, true, keep + j + 16 * v, 0xffff);
    else if (p->add)
#pragma GCC unroll 2
        for (size_t v = 0; v < VECTORS; v++)
            start(sum[0] + v, VECTORS, c + 16 * v, ldc, rows, true, NULL, 0xffff);
    else
#pragma GCC unroll 2
        for (size_t v = 0; v < VECTORS; v++) start(sum[0] + v, VECTORS, c, ldc, rows, false, NULL, 0xffff);
    const uint16_t *a = p->a + i * lda;
    const uint32_t *b = p->b + j;
    for (size_t s = 0; s < steps; s++, a += 2, b += ldb) {
        const __m512i b0 = _mm512_loadu_si512(b), b1 = _mm512_loadu_si512(b + 16);
#pragma GCC unroll 13
        for (size_t r = 0; r < rows; r++) {
            sum[r][0] = step(sum[r][0], a + r * lda, b0);
            sum[r][1] = step(sum[r][1], a + r * lda, b1);
        }
    }
#pragma GCC unroll 13
    for (size_t r = 0; r < rows; r++)
#pragma GCC unroll 2
        for (size_t v = 0; v < VECTORS; v++) _mm512_storeu_ps(c + r * ldc + 16 * v, sum[r][v]);
}

/* Rows [i, i + rows) by the columns of `mask` from j on: two chains, of even and odd steps. */
INLINE void narrow_block(const struct walsh_pairs_product *p, size_t i, size_t j, const size_t rows,
                         __mmask16 mask)
{
    __m512 even[ROWS], odd[ROWS];
    const size_t lda = p->lda, ldb = p->ldb, ldc = p->ldc, steps = p->steps;
    float *c = p->c + i * ldc + j;
    start(even, 1, c, ldc, rows, p->add, p->add && p->keep ? p->keep + j : NULL, mask);
#pragma GCC unroll 13
    for (size_t r = 0; r < rows; r++) odd[r] = _mm512_setzero_ps();
    const uint16_t *a = p->a + i * lda;
    const uint32_t *b = p->b + j;
    size_t s = 0;
    for (; s + 2 <= steps; s += 2, a += 4, b += 2 * ldb) {
        const __m512i b0 = _mm512_maskz_loadu_epi32(mask, b), b1 = _mm512_maskz_loadu_epi32(mask, b + ldb);
#pragma GCC unroll 13
        for (size_t r = 0; r < rows; r++) {
            even[r] = step(even[r], a + r * lda, b0);
            odd[r] = step(odd[r], a + r * lda + 2, b1);
        }
    }
    const __m512i last = s < steps ? _mm512_maskz_loadu_epi32(mask, b) : _mm512_setzero_si512();
#pragma GCC unroll 13
    for (size_t r = 0; r < rows; r++) {
        if (s < steps) even[r] = step(even[r], a + r * lda, last);
        _mm512_mask_storeu_ps(c + r * ldc, mask, _mm512_add_ps(even[r], odd[r]));
    }
}

/* Rows of the next block where `left` are left: 13 and 12 as long as they come out even, which covers the latency of the sums and
 * of a block's beginning and end (64 rows: 13, 13, 13, 13, 12); else 8, 4 and 1. */
INLINE size_t rows_of_block(size_t left)
{
    const size_t blocks = left / 12, over = left % 12;
    if (over <= blocks && blocks > 0) return over > 0 ? 13 : 12;
    return left >= 8 ? 8 : left >= 4 ? 4 : 1;
}

void walsh_multiply_pairs_bf16_bf16(const struct walsh_pairs_product *p)
{
    size_t j = 0;
    for (; j + 16 * VECTORS <= p->n; j += 16 * VECTORS)
        for (size_t i = 0, rows; i < p->m; i += rows) {
            rows = rows_of_block(p->m - i);
            switch (rows) {
            case 13:
                block(p, i, j, 13);
                break;
            case 12:
                block(p, i, j, 12);
                break;
            case 8:
                block(p, i, j, 8);
                break;
            case 4:
                block(p, i, j, 4);
                break;
            default:
                block(p, i, j, 1);
            }
        }
    for (; j < p->n; j += 16) {
        const __mmask16 mask = first_lanes(p->n - j);
        for (size_t i = 0, rows; i < p->m; i += rows) {
            rows = rows_of_block(p->m - i);
            switch (rows) {
            case 13:
                narrow_block(p, i, j, 13, mask);
                break;
            case 12:
                narrow_block(p, i, j, 12, mask);
                break;
            case 8:
                narrow_block(p, i, j, 8, mask);
                break;
            case 4:
                narrow_block(p, i, j, 4, mask);
                break;
            default:
                narrow_block(p, i, j, 1, mask);
            }
        }
    }
}
