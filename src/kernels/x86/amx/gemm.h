/* The tiled product that every AMX prefill kernel shares. Its element is 32 bits: four 8-bit integers or a
 * pair of bf16; a tile of weights holds 16 such columns ("a step") of 16 outputs.
 *
 * Weights come as panels [tile of 16 outputs][step][1 KB], activations are read where they are, as rows or as
 * tiles. Four sums of 16 x 16 are in registers: two tiles of rows by two of outputs, so that four loads serve
 * four products. BLOCK_STEPS steps of 32 rows stay in the L1 while the panels pass by from the L2, which are
 * loaded as what is used once; the sums of all outputs wait in `sums` from block to block. The next block of
 * rows, which comes from further away, is fetched into the L2 meanwhile; as rows it lies in many pages, as
 * tiles it is two sequences.
 *
 * A template: the including file first defines TILE_DOT(t, c, a, b). */
#ifndef WALSH_KERNELS_X86_AMX_GEMM_H
#define WALSH_KERNELS_X86_AMX_GEMM_H

#include "kernels/x86/amx/tiles.h"
#include "kernels/x86/avx512/gemm.h"

#define TILE_BYTES 1024
#define GROUP_ROWS 32
#define GROUP_OUTPUTS 32
#ifndef BLOCK_STEPS
#define BLOCK_STEPS 16
#endif

/* 16 outputs of row i, from number `output` on, of which `mask` exist: 16 sums of 32 bits. */
typedef void amx_store(const void *to, size_t i, size_t output, __mmask16 mask, __m512i sum);

/* Where activations are: rows `stride` bytes apart, or tiles as kernels.h says. */
struct amx_rows {
    const void *data;
    size_t stride;
    size_t rows;
    bool tiled;
    size_t tail; /* of rows: bytes of the last step, behind which may stand anything; 0: zeros do */
};

/* 16 rows or less of a block: its first tile, bytes between rows of a tile and between tiles. */
struct amx_half {
    const char *at;
    size_t row, tile;
};

/* Rows from i on, step k. */
INLINE struct amx_half amx_half(const struct amx_rows *a, size_t i, size_t k)
{
    const char *at = (const char *)a->data + i * a->stride;
    if (!a->tiled) return (struct amx_half){at + 64 * k, a->stride, 64};
    const size_t rows = i < a->rows && a->rows - i < 16 ? a->rows - i : 16;
    return (struct amx_half){at + 64 * rows * k, 64, 64 * rows};
}

/* Up to 16 rows h0 and up to 16 rows h1 (two_rows) by one or two tiles of outputs over `steps` steps.
 * sums[4][256]: tiles 0..3 of tile_shapes, read unless `first`. */
INLINE void amx_group(struct tiles *t, const struct amx_half *h0, const struct amx_half *h1, const uint8_t *b,
                      size_t ldb, size_t steps, bool two_rows, bool two_outputs, uint32_t *sums, bool first)
{
    const char *a = h0->at, *a1 = h1->at;
    const size_t lda = h0->row, next = h0->tile, next1 = h1->tile;
    const uint8_t *b1 = b + ldb;
    (void)t;
    if (first) {
        TILE_ZERO(t, 0);
        TILE_ZERO(t, 1);
        TILE_ZERO(t, 2);
        TILE_ZERO(t, 3);
    } else {
        TILE_LOAD(t, 0, sums, 64);
        TILE_LOAD(t, 1, sums + 256, 64);
        TILE_LOAD(t, 2, sums + 512, 64);
        TILE_LOAD(t, 3, sums + 768, 64);
    }
    if (two_rows && two_outputs) {
        for (size_t k = 0; k < steps; k++) {
            TILE_LOAD(t, 4, a + next * k, lda);
            TILE_LOAD_ONCE(t, 6, b + TILE_BYTES * k, 64);
            TILE_DOT(t, 0, 4, 6);
            TILE_LOAD_ONCE(t, 7, b1 + TILE_BYTES * k, 64);
            TILE_DOT(t, 1, 4, 7);
            TILE_LOAD(t, 5, a1 + next1 * k, lda);
            TILE_DOT(t, 2, 5, 6);
            TILE_DOT(t, 3, 5, 7);
        }
    } else {
        for (size_t k = 0; k < steps; k++) {
            TILE_LOAD(t, 4, a + next * k, lda);
            TILE_LOAD_ONCE(t, 6, b + TILE_BYTES * k, 64);
            TILE_DOT(t, 0, 4, 6);
            if (two_rows) TILE_LOAD(t, 5, a1 + next1 * k, lda);
            if (two_rows) TILE_DOT(t, 2, 5, 6);
            if (two_outputs) TILE_LOAD_ONCE(t, 7, b1 + TILE_BYTES * k, 64);
            if (two_outputs) TILE_DOT(t, 1, 4, 7);
        }
    }
    TILE_STORE(t, 0, sums, 64);
    TILE_STORE(t, 1, sums + 256, 64);
    TILE_STORE(t, 2, sums + 512, 64);
    TILE_STORE(t, 3, sums + 768, 64);
}

/* The last step of up to 32 rows from i on, with zeros behind its tail: `last` holds two tiles. */
INLINE void amx_last_step(const struct amx_rows *a, size_t i, size_t rows, size_t k, uint8_t *last)
{
    memset(last, 0, GROUP_ROWS * 64);
    for (size_t m = 0; m < rows; m++)
        memcpy(last + 64 * m, (const char *)a->data + (i + m) * a->stride + 64 * k, a->tail);
}

/* Rows [begin, end) of the block of rows from i on, steps [k, k + steps), into the L2; of tiles, as many
 * lines. */
INLINE void amx_fetch(const struct amx_rows *a, size_t i, size_t k, size_t steps, size_t begin, size_t end)
{
    for (size_t m = begin; m < end; m++) {
        const struct amx_half h = amx_half(a, i + m / 16 * 16, k);
        const char *from = h.at + m % 16 * (a->tiled ? 64 * steps : a->stride);
        for (size_t line = 0; line < 64 * steps; line += 64) _mm_prefetch(from + line, _MM_HINT_T1);
    }
}

/* Hand the finished sums of a group to `store`. */
INLINE void amx_finish(amx_store *store, const void *to, const uint32_t *sums, size_t i, size_t rows,
                       size_t output, size_t outputs)
{
    for (size_t m = 0; m < rows; m++) {
        const uint32_t *row = sums + (m / 16) * 512 + m % 16 * 16;
        store(to, i + m, output, first_lanes(outputs), _mm512_load_si512(row));
        if (outputs > 16)
            store(to, i + m, output + 16, first_lanes(outputs - 16), _mm512_load_si512(row + 256));
    }
}

/* Elements of `sums` for so many outputs. */
static inline size_t amx_sums(size_t outputs)
{
    return (outputs + GROUP_OUTPUTS - 1) / GROUP_OUTPUTS * 1024;
}

/* All rows of `a` by the panels of `outputs` outputs, the first of which is number `output`. sums:
 * amx_sums(outputs) elements, 64-byte aligned. */
INLINE void amx_all(amx_store *store, const void *to, const uint8_t *panels, uint32_t *sums,
                    const struct amx_rows *a, size_t steps, size_t output, size_t outputs)
{
    const size_t panel = steps * TILE_BYTES, whole = a->tail != 0 ? steps - 1 : steps;
    _Alignas(64) uint8_t last_step[GROUP_ROWS * 64];
    struct tiles t;
    size_t shaped = 0;
    for (size_t i = 0; i < a->rows; i += GROUP_ROWS) {
        const size_t rows = a->rows - i < GROUP_ROWS ? a->rows - i : GROUP_ROWS;
        if (rows != shaped) {
            const struct tile_config config = tile_shapes(rows < 16 ? rows : 16, rows > 16 ? rows - 16 : 0);
            tiles_open(&t, &config);
            shaped = rows;
        }
        for (size_t k = 0, some; k < steps; k += some) {
            struct amx_half h0 = amx_half(a, i, k), h1 = amx_half(a, i + 16, k);
            some = k >= whole ? 1 : whole - k < BLOCK_STEPS ? whole - k : BLOCK_STEPS;
            if (k == whole) {
                amx_last_step(a, i, rows, k, last_step);
                h0 = (struct amx_half){(char *)last_step, 64, 0};
                h1 = (struct amx_half){(char *)last_step + TILE_BYTES, 64, 0};
            }
            const bool last = k + some == steps;
            const size_t next_row = last ? i + GROUP_ROWS : i, next_step = last ? 0 : k + some;
            const size_t left = last ? a->rows - i - rows : rows; /* rows of the next block */
            const size_t ahead = left < GROUP_ROWS ? left : GROUP_ROWS,
                         ahead_steps = last ? steps : steps - k - some;
            const size_t share = (ahead * GROUP_OUTPUTS + outputs - 1) / outputs; /* rows per group */
            for (size_t done = 0; done < outputs; done += GROUP_OUTPUTS) {
                const uint8_t *b = panels + done / 16 * panel + k * TILE_BYTES;
                uint32_t *of = sums + done / GROUP_OUTPUTS * 1024;
                const size_t row = done / GROUP_OUTPUTS * share;
                amx_fetch(a, next_row, next_step, ahead_steps < BLOCK_STEPS ? ahead_steps : BLOCK_STEPS, row,
                          row + share < ahead ? row + share : ahead);
                if (rows > 16 && outputs - done > 16)
                    amx_group(&t, &h0, &h1, b, panel, some, true, true, of, k == 0);
                else
                    amx_group(&t, &h0, &h1, b, panel, some, rows > 16, outputs - done > 16, of, k == 0);
                if (last) amx_finish(store, to, of, i, rows, output + done, outputs - done);
            }
        }
    }
    if (shaped != 0) tiles_close(&t);
}

#endif
