/* The register-blocked product that every AVX2 prefill kernel shares; as avx512/gemm.h, with tiles of 6 rows
 * by 2 vectors of 8: 12 accumulators in 16 registers. An element is 32 bits: one f32 or four 8-bit integers.
 *
 * A template: the including file first defines
 *   typedef ... tile_sum;                                                 __m256 or __m256i: 8 running sums
 *   static inline tile_sum tile_zero(void);
 *   static inline tile_sum tile_step(tile_sum sum, __m256i weights, __m256i activation); */
#ifndef WALSH_KERNELS_X86_AVX2_GEMM_H
#define WALSH_KERNELS_X86_AVX2_GEMM_H

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

#ifndef INLINE
#define INLINE static inline __attribute__((always_inline))
#endif

#define TILE_ROWS 6
#define TILE_OUTPUTS 16

/* Where 8 finished outputs from `output` on go, of row i; `count` >= 1 of them exist. */
typedef void tile_store(const void *to, size_t i, size_t output, size_t count, tile_sum sum);

struct tile_rows {
    const void *data; /* activation row 0 at the first step */
    size_t stride;    /* bytes between rows */
    size_t rows;
};

/* `rows` rows, constant, by 16 outputs, of which `outputs` exist. */
INLINE void tile_run(tile_store *store, const void *to, const unsigned rows, const uint32_t *panel,
                     const char *a, size_t stride, size_t steps, size_t i, size_t output, size_t outputs)
{
    tile_sum sum[TILE_ROWS][2];
#pragma GCC unroll 6
    for (unsigned m = 0; m < rows; m++) sum[m][0] = sum[m][1] = tile_zero();
    for (size_t k = 0; k < steps; k++) {
        const __m256i *w = (const __m256i *)(const void *)(panel + k * TILE_OUTPUTS);
        __m256i w0 = _mm256_load_si256(w), w1 = _mm256_load_si256(w + 1);
#pragma GCC unroll 6
        for (unsigned m = 0; m < rows; m++) {
            int32_t element;
            __builtin_memcpy(&element, a + m * stride + 4 * k, sizeof element);
            __m256i x = _mm256_set1_epi32(element);
            sum[m][0] = tile_step(sum[m][0], w0, x);
            sum[m][1] = tile_step(sum[m][1], w1, x);
        }
    }
#pragma GCC unroll 6
    for (unsigned m = 0; m < rows; m++) {
        store(to, i + m, output, outputs, sum[m][0]);
        if (outputs > 8) store(to, i + m, output + 8, outputs - 8, sum[m][1]);
    }
}

/* All rows of `a` by the panels of `outputs` outputs, the first of which is number `output`. Panel p of 16
 * outputs is at panels + p * 16 * steps. */
INLINE void tile_all(tile_store *store, const void *to, const uint32_t *panels, const struct tile_rows *a,
                     size_t steps, size_t output, size_t outputs)
{
    for (size_t i = 0; i < a->rows;) {
        const char *row = (const char *)a->data + i * a->stride;
        size_t left = a->rows - i, rows = left >= 6 ? 6 : left >= 2 ? 2 : 1;
        for (size_t done = 0; done < outputs; done += TILE_OUTPUTS) {
            const uint32_t *panel = panels + done * steps;
            size_t at = output + done, exist = outputs - done;
            if (rows == 6)
                tile_run(store, to, 6, panel, row, a->stride, steps, i, at, exist);
            else if (rows == 2)
                tile_run(store, to, 2, panel, row, a->stride, steps, i, at, exist);
            else
                tile_run(store, to, 1, panel, row, a->stride, steps, i, at, exist);
        }
        i += rows;
    }
}

/* Transpose 8 x 8 elements of 32 bits in place. */
INLINE void transpose_8x8(__m256i r[8])
{
    __m256i t[8];
#pragma GCC unroll 4
    for (unsigned n = 0; n < 4; n++) {
        t[2 * n] = _mm256_unpacklo_epi32(r[2 * n], r[2 * n + 1]);
        t[2 * n + 1] = _mm256_unpackhi_epi32(r[2 * n], r[2 * n + 1]);
    }
#pragma GCC unroll 2
    for (unsigned n = 0; n < 2; n++) { /* r[4n + c]: column c of each 4 x 4 block of rows 4n..4n+3 */
        r[4 * n] = _mm256_unpacklo_epi64(t[4 * n], t[4 * n + 2]);
        r[4 * n + 1] = _mm256_unpackhi_epi64(t[4 * n], t[4 * n + 2]);
        r[4 * n + 2] = _mm256_unpacklo_epi64(t[4 * n + 1], t[4 * n + 3]);
        r[4 * n + 3] = _mm256_unpackhi_epi64(t[4 * n + 1], t[4 * n + 3]);
    }
#pragma GCC unroll 4
    for (unsigned c = 0; c < 4; c++) {
        t[c] = _mm256_permute2x128_si256(r[c], r[4 + c], 0x20);
        t[4 + c] = _mm256_permute2x128_si256(r[c], r[4 + c], 0x31);
    }
#pragma GCC unroll 8
    for (unsigned n = 0; n < 8; n++) r[n] = t[n];
}

/* 8 elements of row `row` from step `step` on; `count` >= 1 of them exist, the rest must come as 0. */
typedef __m256i panel_load(const void *from, size_t row, size_t step, size_t count);

/* Rows [row, row + 8) of `from`, of which `exist`, 8 steps from `step` on, of which `count`: transposed into
 * panels of `steps` steps, as outputs from `done` on (a multiple of 8) and steps from `at` on. */
INLINE void panel_block(panel_load *load, const void *from, size_t row, size_t exist, size_t step,
                        size_t count, uint32_t *panels, size_t steps, size_t done, size_t at)
{
    __m256i r[8];
#pragma GCC unroll 8
    for (unsigned n = 0; n < 8; n++)
        r[n] = n < exist ? load(from, row + n, step, count) : _mm256_setzero_si256();
    transpose_8x8(r);
    size_t within = done % TILE_OUTPUTS;
    uint32_t *to = panels + (done - within) * steps + at * TILE_OUTPUTS + within;
#pragma GCC unroll 8
    for (unsigned n = 0; n < 8; n++) _mm256_store_si256((__m256i *)(void *)(to + n * TILE_OUTPUTS), r[n]);
}

/* Rows [row, row + outputs) of `from`, steps [first, first + steps), as panels for tile_all; steps is rounded
 * up to 8 and outputs to 16 with zeros. Returns the rounded number of steps. */
INLINE size_t panel_pack(panel_load *load, const void *from, size_t row, size_t outputs, size_t first,
                         size_t steps, uint32_t *panels)
{
    size_t rounded = (steps + 7) / 8 * 8, padded = (outputs + TILE_OUTPUTS - 1) / TILE_OUTPUTS * TILE_OUTPUTS;
    for (size_t done = 0; done < padded; done += 8) {
        size_t exist = done < outputs ? outputs - done : 0;
        for (size_t k = 0; k < steps; k += 8)
            panel_block(load, from, row + done, exist, first + k, steps - k, panels, rounded, done, k);
    }
    return rounded;
}

/* The lanes below `count` all ones, for masked loads and stores of f32. */
INLINE __m256i first_lanes(size_t count)
{
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(count < 8 ? (int32_t)count : 8), lane);
}

INLINE float sum_lanes_ps(__m256 v)
{
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

#endif
