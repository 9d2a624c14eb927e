/* The register-blocked product that every AVX-512 prefill kernel shares. Its element is 32 bits: one f32, a
 * pair of bf16, or four 8-bit integers, and a `step` multiplies 16 elements of weights by one of activations:
 * FMA, VDPBF16PS, VPDPBUSD.
 *
 * Weights come as a panel [steps][16 * vectors] of elements: one step holds the same columns of up to 48
 * outputs (3 vectors), transposed from the rows by panel_pack. Activations are read in place, one element
 * broadcast to all lanes. A tile of 8 rows by 3 vectors keeps 24 accumulators, enough to cover the latency of
 * two FMA units, and needs 11 loads for 24 FMAs. 8 rows rather than 12 or 14, because rows whose stride is a
 * multiple of 4096 bytes share one set of a 12-way L1.
 *
 * A template: the including file first defines
 *   typedef ... tile_sum;                                                 __m512 or __m512i: 16 running sums
 *   static inline tile_sum tile_zero(void);
 *   static inline tile_sum tile_step(tile_sum sum, __m512i weights, __m512i activation);
 * (a common type with casts instead costs gcc 12 a register move per product, half the speed). */
#ifndef WALSH_KERNELS_X86_AVX512_GEMM_H
#define WALSH_KERNELS_X86_AVX512_GEMM_H

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/x86/avx512/gemm_lanes.h"

#define TILE_ROWS 8
#define TILE_VECTORS 3
#define TILE_OUTPUTS (16 * TILE_VECTORS)

/* Where a finished vector of 16 outputs goes: row i, outputs [output, output + 16) of which `mask` exist. */
typedef void tile_store(const void *to, size_t i, size_t output, __mmask16 mask, tile_sum sum);

struct tile_rows {
    const void *data; /* activation row 0 at the first step */
    size_t stride;    /* bytes between rows */
    size_t rows;
};

/* rows x vectors accumulators over `steps` steps. The loops over rows and vectors are constant and unrolled.
 */
INLINE void tile_run(tile_store *store, const void *to, const unsigned rows, const unsigned vectors,
                     const uint32_t *panel, const char *a, size_t stride, size_t steps, size_t i,
                     size_t output, size_t outputs)
{
    tile_sum sum[TILE_ROWS][TILE_VECTORS];
#pragma GCC unroll 8
    for (unsigned m = 0; m < rows; m++) {
#pragma GCC unroll 3
        for (unsigned v = 0; v < vectors; v++) sum[m][v] = tile_zero();
    }
    for (size_t k = 0; k < steps; k++) {
        __m512i w[TILE_VECTORS];
#pragma GCC unroll 3
        for (unsigned v = 0; v < vectors; v++) w[v] = _mm512_load_si512(panel + (k * vectors + v) * 16);
#pragma GCC unroll 8
        for (unsigned m = 0; m < rows; m++) {
            int32_t element;
            __builtin_memcpy(&element, a + m * stride + 4 * k, sizeof element);
            __m512i x = _mm512_set1_epi32(element);
#pragma GCC unroll 3
            for (unsigned v = 0; v < vectors; v++) sum[m][v] = tile_step(sum[m][v], w[v], x);
        }
    }
#pragma GCC unroll 8
    for (unsigned m = 0; m < rows; m++) {
#pragma GCC unroll 3
        for (unsigned v = 0; v < vectors; v++) {
            __mmask16 mask = first_lanes(outputs - 16 * v); /* outputs > 16 * (vectors - 1) */
            store(to, i + m, output + 16 * v, mask, sum[m][v]);
        }
    }
}

INLINE void tile_rows_of(tile_store *store, const void *to, const unsigned vectors, const uint32_t *panel,
                         const struct tile_rows *a, size_t steps, size_t i, size_t output, size_t outputs)
{
    const char *row = (const char *)a->data + i * a->stride;
    size_t left = a->rows - i;
    if (left >= 8) {
        tile_run(store, to, 8, vectors, panel, row, a->stride, steps, i, output, outputs);
        return;
    }
    size_t m = 0;
    if (left >= 4) {
        tile_run(store, to, 4, vectors, panel, row, a->stride, steps, i, output, outputs);
        m = 4;
    }
    for (; m < left; m++)
        tile_run(store, to, 1, vectors, panel, row + m * a->stride, a->stride, steps, i + m, output, outputs);
}

/* All rows of `a` by the panels of `outputs` outputs, the first of which is number `output`. Panel p of
 * TILE_OUTPUTS outputs is at panels + p * TILE_OUTPUTS * steps. A group of rows stays in L1 while the panels
 * pass by from L2. */
INLINE void tile_all(tile_store *store, const void *to, const uint32_t *panels, const struct tile_rows *a,
                     size_t steps, size_t output, size_t outputs)
{
    for (size_t i = 0; i < a->rows; i += TILE_ROWS) {
        for (size_t done = 0; done < outputs; done += TILE_OUTPUTS) {
            const uint32_t *panel = panels + done * steps;
            size_t left = outputs - done;
            if (left > 32)
                tile_rows_of(store, to, 3, panel, a, steps, i, output + done, left);
            else if (left > 16)
                tile_rows_of(store, to, 2, panel, a, steps, i, output + done, left);
            else
                tile_rows_of(store, to, 1, panel, a, steps, i, output + done, left);
        }
    }
}

/* 16 elements of row `row` from step `step` on; `count` >= 1 of them exist, the rest must come as 0. */
typedef __m512i panel_load(const void *from, size_t row, size_t step, size_t count);

/* The vectors of a step in the panel that holds output number `done` of `outputs`. */
INLINE size_t panel_vectors(size_t done, size_t outputs)
{
    size_t left = outputs - done / TILE_OUTPUTS * TILE_OUTPUTS;
    return left >= TILE_OUTPUTS ? TILE_VECTORS : (left + 15) / 16;
}

/* Rows [row, row + 16) of `from`, of which `exist`, 16 steps from `step` on, of which `count`: transposed
 * into the panels of `outputs` outputs and `steps` steps, as outputs from `done` on (a multiple of 16) and
 * steps from `at` on. */
INLINE void panel_block(panel_load *load, const void *from, size_t row, size_t exist, size_t step,
                        size_t count, uint32_t *panels, size_t outputs, size_t steps, size_t done, size_t at)
{
    __m512i r[16];
#pragma GCC unroll 16
    for (unsigned n = 0; n < 16; n++)
        r[n] = n < exist ? load(from, row + n, step, count) : _mm512_setzero_si512();
    transpose_16x16(r);
    size_t within = done % TILE_OUTPUTS, vectors = panel_vectors(done, outputs);
    uint32_t *to = panels + (done - within) * steps + at * vectors * 16 + within;
#pragma GCC unroll 16
    for (unsigned n = 0; n < 16; n++) _mm512_store_si512(to + n * vectors * 16, r[n]);
}

/* Rows [row, row + outputs) of `from`, steps [first, first + steps), as panels for tile_all; steps is rounded
 * up to 16 with zeros. Returns the rounded number of steps. */
INLINE size_t panel_pack(panel_load *load, const void *from, size_t row, size_t outputs, size_t first,
                         size_t steps, uint32_t *panels)
{
    size_t rounded = (steps + 15) / 16 * 16;
    for (size_t done = 0; done < outputs; done += 16) {
        for (size_t k = 0; k < steps; k += 16)
            panel_block(load, from, row + done, outputs - done, first + k, steps - k, panels, outputs,
                        rounded, done, k);
    }
    return rounded;
}

#endif
