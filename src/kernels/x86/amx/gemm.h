/* The tiled product that every AMX prefill kernel shares. Its element is 32 bits: four 8-bit integers or a
 * pair of bf16; a tile of weights holds 16 such columns ("a step") of 16 outputs.
 *
 * Activations are read where they are, as rows or as tiles; weights become panels [tile of 16 outputs][step][1
 * KB], BLOCK_STEPS steps of up to MOST_OUTPUTS outputs at a time. These and the sums of MOST_ROWS rows by
 * MOST_OUTPUTS outputs stay in the L2, so that activations, which come from further away, are read once for all of
 * the outputs, however long their rows are. Four sums of 16 x 16 are in registers: two tiles of rows by two of
 * outputs, so that four loads serve four products. A block of 32 rows stays in the L1 while the panels pass by,
 * which are loaded as what is used once.
 *
 * A template: the including file first defines TILE_DOT(t, c, a, b). */
#ifndef WALSH_KERNELS_X86_AMX_GEMM_H
#define WALSH_KERNELS_X86_AMX_GEMM_H

#include "kernels/x86/amx/tiles.h"
#include "kernels/x86/avx512/gemm.h"

#define TILE_BYTES 1024
#define GROUP_ROWS 32
#define GROUP_OUTPUTS 32
#define BLOCK_STEPS 16
#define MOST_ROWS 512
#define MOST_OUTPUTS 512
#define SUMS_BYTES ((size_t)MOST_ROWS * MOST_OUTPUTS * 4)
#define AMX_SCRATCH (SUMS_BYTES + (size_t)MOST_OUTPUTS * BLOCK_STEPS * 64)

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
            TILE_LOAD_ONCE(t, 7, b1 + TILE_BYTES * k, 64);
            TILE_LOAD(t, 5, a1 + next1 * k, lda);
            TILE_DOT(t, 0, 4, 6);
            TILE_DOT(t, 1, 4, 7);
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

/* One block of columns, steps [k, k + steps) of `all`, of rows [begin, begin + rows) by the panels of `outputs` outputs, the first
 * of which is number `output`. */
INLINE void amx_block(amx_store *store, const void *to, const uint8_t *panels, uint32_t *sums,
                      const struct amx_rows *a, size_t begin, size_t end, size_t k, size_t steps, size_t all,
                      size_t output, size_t outputs)
{
    const size_t panel = steps * TILE_BYTES;
    const bool first = k == 0, last = k + steps == all, part = last && a->tail != 0;
    _Alignas(64) uint8_t last_step[GROUP_ROWS * 64];
    struct tiles t;
    size_t shaped = 0;
    for (size_t i = begin; i < end; i += GROUP_ROWS) {
        const size_t rows = end - i < GROUP_ROWS ? end - i : GROUP_ROWS;
        if (rows != shaped) {
            const struct tile_config config = tile_shapes(rows < 16 ? rows : 16, rows > 16 ? rows - 16 : 0);
            tiles_open(&t, &config);
            shaped = rows;
        }
        struct amx_half h0 = amx_half(a, i, k), h1 = amx_half(a, i + 16, k);
        if (part) {
            amx_last_step(a, i, rows, k, last_step);
            h0 = (struct amx_half){(char *)last_step, 64, 0};
            h1 = (struct amx_half){(char *)last_step + TILE_BYTES, 64, 0};
        }
        for (size_t done = 0; done < outputs; done += GROUP_OUTPUTS, sums += 1024) {
            const uint8_t *b = panels + done / 16 * panel;
            if (rows > 16 && outputs - done > 16)
                amx_group(&t, &h0, &h1, b, panel, steps, true, true, sums, first);
            else
                amx_group(&t, &h0, &h1, b, panel, steps, rows > 16, outputs - done > 16, sums, first);
            if (last) amx_finish(store, to, sums, i, rows, output + done, outputs - done);
        }
    }
    if (shaped != 0) tiles_close(&t);
}

/* Outputs [output, output + outputs) of `from`, steps [first, first + steps), as panels. */
typedef void amx_pack(const void *from, size_t output, size_t outputs, size_t first, size_t steps,
                      uint8_t *panels);

/* All rows of `a` by `outputs` <= MOST_OUTPUTS outputs, the first of which is number `output`. scratch: AMX_SCRATCH bytes, 64-byte
 * aligned. */
INLINE void amx_all(amx_pack *pack, const void *from, amx_store *store, const void *to, void *scratch,
                    const struct amx_rows *a, size_t steps, size_t output, size_t outputs)
{
    const size_t whole = a->tail != 0 ? steps - 1 : steps;
    uint8_t *panels = (uint8_t *)scratch + SUMS_BYTES;
    for (size_t begin = 0; begin < a->rows; begin += MOST_ROWS) {
        const size_t end = a->rows - begin < MOST_ROWS ? a->rows : begin + MOST_ROWS;
        for (size_t k = 0, some; k < steps; k += some) {
            some = k >= whole ? 1 : whole - k < BLOCK_STEPS ? whole - k : BLOCK_STEPS;
            pack(from, output, outputs, k, some, panels);
            amx_block(store, to, panels, scratch, a, begin, end, k, some, steps, output, outputs);
        }
    }
}

#endif
