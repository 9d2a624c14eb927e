/* Products of rows with panels that are kept (kernels/pairs.h) by TDPBF16PS: 16 pairs of columns of 16 outputs are a tile, whose
 * rows are as far apart as the panel is wide. An output has one chain over all columns of a term, and terms are added one
 * after the other: the sums of product_bf16.h. */
#include <stdbool.h>

#include <immintrin.h>

#include "base/memory.h"
#include "kernels/table.h"
#include "kernels/x86/amx/tiles.h"
#include "kernels/x86/avx512/gemm_lanes.h"

#define GROUP 32         /* rows, outputs: two tiles each */
#define STEP 32          /* columns of a tile */
#define TILE_FLOATS 256  /* of sums */
#define MOST_OUTPUTS 192 /* whose sums wait for the next steps */
#define NEAR_STEPS 20    /* of 32 rows, which stay in the L1 while the panels pass by */

/* 16 outputs of a block of columns: the first step's tile, pairs between its rows. */
struct panel_tile {
    const uint32_t *at;
    size_t width;
};

static struct panel_tile panel_tile(const struct walsh_panel_term *t, size_t column, size_t output)
{
    const size_t within = output % WALSH_PANEL_OUTPUTS, left = t->outputs - (output - within);
    return (struct panel_tile){t->panels + walsh_panel_at(t->outputs, t->depth, column, output - within) +
                                   within,
                               left < WALSH_PANEL_OUTPUTS ? walsh_round_up(left, 16) : WALSH_PANEL_OUTPUTS};
}

/* `steps` steps of 32 rows or fewer, a step behind the other `next` bytes on, by one or two tiles of outputs. */
INLINE void add_steps(struct tiles *t, const char *a, size_t lda, size_t next, const struct panel_tile *b,
                      size_t steps, bool two_rows, bool two_outputs)
{
    const char *a1 = a + 16 * lda;
    const uint32_t *b0 = b[0].at, *b1 = b[1].at;
    const size_t ldb0 = 4 * b[0].width, ldb1 = 4 * b[1].width;
    (void)t;
    for (size_t k = 0; k < steps; k++, a += next, a1 += next, b0 += 4 * ldb0, b1 += 4 * ldb1) {
        TILE_LOAD(t, 4, a, lda);
        TILE_LOAD_ONCE(t, 6, b0, ldb0);
        if (two_outputs) TILE_LOAD_ONCE(t, 7, b1, ldb1);
        if (two_rows) TILE_LOAD(t, 5, a1, lda);
        TILE_DOT_BF16(t, 0, 4, 6);
        if (two_outputs) TILE_DOT_BF16(t, 1, 4, 7);
        if (two_rows) TILE_DOT_BF16(t, 2, 5, 6);
        if (two_rows && two_outputs) TILE_DOT_BF16(t, 3, 5, 7);
    }
}

/* Steps of a block of columns for 32 rows or fewer. */
struct part {
    const char *a;
    size_t lda, steps;
    const uint8_t
        *last; /* what comes behind them: a step of its own with zeros behind the depth; NULL: nothing */
    bool first, final; /* of the term's parts */
};

INLINE void add_part(struct tiles *t, const struct part *s, const struct panel_tile b[2], bool two_rows,
                     bool two_outputs)
{
    add_steps(t, s->a, s->lda, 2 * STEP, b, s->steps, two_rows, two_outputs);
    if (!s->last) return;
    struct panel_tile end[2] = {b[0], b[1]};
    for (size_t n = 0; n < 2; n++) end[n].at += s->steps * (STEP / 2) * end[n].width;
    add_steps(t, (const char *)s->last, 64, 0, end, 1, two_rows, two_outputs);
}

/* rows x outputs sums of a group: y = or += them. */
INLINE void finish(float *y, size_t ldy, size_t rows, size_t outputs, bool add, const float *sums)
{
    for (size_t m = 0; m < rows; m++)
        for (size_t n = 0; n < outputs; n += 16) {
            const __mmask16 mask = first_lanes(outputs - n);
            float *to = y + m * ldy + n;
            __m512 v = _mm512_load_ps(sums + (m / 16 * 2 + n / 16) * TILE_FLOATS + m % 16 * 16);
            if (add) v = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, to), v);
            _mm512_mask_storeu_ps(to, mask, v);
        }
}

/* Tiles that are not of the group hold what they held; nobody reads it. */
INLINE void store_tiles(struct tiles *t, float *to, float *right, float *below, size_t ld)
{
    (void)t;
    TILE_STORE(t, 0, to, ld);
    if (right) TILE_STORE(t, 1, right, ld);
    if (below) TILE_STORE(t, 2, below, ld);
    if (right && below) TILE_STORE(t, 3, below + (right - to), ld);
}

/* A part of a group of `rows` rows and up to 32 outputs, whose sums so far are in `sums`. */
INLINE void group(struct tiles *t, const struct part *s, const struct panel_tile b[2], float *y, size_t ldy,
                  size_t rows, size_t outputs, bool add, float *sums)
{
    const bool two_rows = rows > 16, two_outputs = outputs > 16;
    if (s->first) {
        TILE_ZERO(t, 0);
        TILE_ZERO(t, 1);
        TILE_ZERO(t, 2);
        TILE_ZERO(t, 3);
    } else {
        TILE_LOAD(t, 0, sums, 64);
        if (two_outputs) TILE_LOAD(t, 1, sums + TILE_FLOATS, 64);
        if (two_rows) TILE_LOAD(t, 2, sums + 2 * TILE_FLOATS, 64);
        if (two_rows && two_outputs) TILE_LOAD(t, 3, sums + 3 * TILE_FLOATS, 64);
    }
    if (two_rows && two_outputs)
        add_part(t, s, b, true, true);
    else
        add_part(t, s, b, two_rows, two_outputs);
    if (s->final && !add && outputs % 16 == 0) {
        store_tiles(t, y, two_outputs ? y + 16 : NULL, two_rows ? y + 16 * ldy : NULL, ldy * sizeof(float));
        return;
    }
    store_tiles(t, sums, two_outputs ? sums + TILE_FLOATS : NULL, two_rows ? sums + 2 * TILE_FLOATS : NULL,
                64);
    if (s->final) finish(y, ldy, rows, outputs, add, sums);
}

/* The columns behind the last whole step of `rows` rows, with zeros behind them. */
static void last_step(const struct walsh_panel_term *t, size_t row, size_t rows, uint8_t *last)
{
    const size_t whole = t->depth / STEP * STEP;
    memset(last, 0, GROUP * 2 * STEP);
    for (size_t m = 0; m < rows; m++)
        memcpy(last + m * 2 * STEP, t->a + (row + m) * t->lda + whole, 2 * (t->depth - whole));
}

/* A term for rows [row, row + rows) and outputs [begin, end): y = or += it. sums: a group's behind the other's. */
static void add_term(struct tiles *tiles, const struct walsh_panels_product *p,
                     const struct walsh_panel_term *t, size_t row, size_t rows, size_t begin, size_t end,
                     bool add, float *sums)
{
    _Alignas(64) uint8_t last[GROUP * 2 * STEP];
    const bool tail = t->depth % STEP != 0;
    if (tail) last_step(t, row, rows, last);
    for (size_t column = 0; column < t->depth; column += WALSH_PANEL_DEPTH) {
        const bool end_block = column + WALSH_PANEL_DEPTH >= t->depth;
        const size_t steps = walsh_min(t->depth - column, WALSH_PANEL_DEPTH) / STEP,
                     parts = walsh_max(walsh_div_up(steps, NEAR_STEPS), 1);
        for (size_t n = 0; n < parts; n++) {
            const size_t from = steps * n / parts;
            const bool final = end_block && n + 1 == parts;
            const struct part s = {.a = (const char *)(t->a + row * t->lda + column + from * STEP),
                                   .lda = t->lda * sizeof *t->a,
                                   .steps = steps * (n + 1) / parts - from,
                                   .last = final && tail ? last : NULL,
                                   .first = column == 0 && n == 0,
                                   .final = final};
            for (size_t o = begin; o < end; o += GROUP) {
                struct panel_tile b[2] = {panel_tile(t, column, o - t->shift)};
                b[1] = o + 16 < end ? panel_tile(t, column, o + 16 - t->shift) : b[0];
                for (size_t i = 0; i < 2; i++) b[i].at += from * (STEP / 2) * b[i].width;
                group(tiles, &s, b, p->y + row * p->ldy + o, p->ldy, rows, walsh_min(end - o, GROUP), add,
                      sums + (o - begin) / GROUP * 4 * TILE_FLOATS);
            }
        }
    }
}

void walsh_product_panels_bf16_amx(const struct walsh_panels_product *p)
{
    _Alignas(64) float sums[MOST_OUTPUTS / GROUP * 4 * TILE_FLOATS];
    struct tiles tiles;
    for (size_t begin = p->begin; begin < p->end; begin += MOST_OUTPUTS) {
        const size_t end = walsh_min(begin + MOST_OUTPUTS, p->end);
        size_t shaped = 0;
        for (size_t row = 0; row < p->rows; row += GROUP) {
            const size_t rows = walsh_min(p->rows - row, GROUP);
            if (rows != shaped) {
                const struct tile_config config = tile_shapes(walsh_min(rows, 16), rows > 16 ? rows - 16 : 0);
                tiles_open(&tiles, &config);
                shaped = rows;
            }
            for (size_t n = 0; n < p->count; n++)
                add_term(&tiles, p, &p->terms[n], row, rows, begin, end, p->add || n > 0, sums);
        }
        tiles_close(&tiles);
    }
}
