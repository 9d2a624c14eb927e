/* kernels/pairs: what the products of bf16 pairs work on, and attention's tiles around them. A *pair* is two
 * bf16 in 32 bits, the lower index in the lower half; VDPBF16PS multiplies 16 pairs at once. In tiles of
 * attention's gradient queries are columns, so that what belongs to a query (maximum, sum, delta) is a
 * lane. */
#ifndef WALSH_KERNELS_PAIRS_H
#define WALSH_KERNELS_PAIRS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* C[m][n] = A B or, with `add`, keep[column] * C + A B (keep NULL: C + A B): a [m][2 steps] bf16, rows lda
 * apart; b [steps][n] pairs; c f32. A and B in row i and column j meet as a[i][2s] b[s][j].low + a[i][2s + 1]
 * b[s][j].high. */
struct walsh_pairs_product {
    float *c;
    const uint16_t *a;
    const uint32_t *b;
    size_t ldc, lda, ldb, m, n, steps;
    bool add;
    const float *keep;
};

/* Panels of a matrix M [outputs][depth] in bf16, as products with many rows read it: blocks of
 * WALSH_PANEL_DEPTH columns; in a block panels of WALSH_PANEL_OUTPUTS outputs, the last one perhaps of fewer
 * (a multiple of 16, 0 behind the last output); in a panel step by step a pair of columns of each output. The
 * steps of a block are a multiple of 16, 0 behind the last column. */
#define WALSH_PANEL_DEPTH 1024
#define WALSH_PANEL_OUTPUTS 48

static inline size_t walsh_panel_steps(size_t depth)
{
    return (depth + 31) / 32 * 16;
}
/* Pairs of all panels. */
static inline size_t walsh_panel_pairs(size_t outputs, size_t depth)
{
    return (outputs + 15) / 16 * 16 * walsh_panel_steps(depth);
}
/* Where the panel of `output` begins in the block of columns from `column` on. */
static inline size_t walsh_panel_at(size_t outputs, size_t depth, size_t column, size_t output)
{
    const size_t left = depth - column;
    return (outputs + 15) / 16 * 16 * (column / 2) +
           output * walsh_panel_steps(left < WALSH_PANEL_DEPTH ? left : WALSH_PANEL_DEPTH);
}

/* One matrix of a sum of products: rows a [rows][lda] bf16, 0 behind an odd depth. Output o of the product is
 * its output o - shift, a multiple of WALSH_PANEL_OUTPUTS. */
struct walsh_panel_term {
    const uint32_t *panels;
    size_t outputs, depth; /* of the matrix */
    size_t shift;
    const uint16_t *a;
    size_t lda;
};
/* y[i * ldy + o] = or, with `add`, += the terms' products for rows i and outputs o in [begin, end), begin a
 * multiple of WALSH_PANEL_OUTPUTS and end one or the last: term by term and block by block in their order, a
 * block's chain over its pairs of columns by itself, as the products of dense weights in bf16 have it. */
struct walsh_panels_product {
    const struct walsh_panel_term *terms;
    size_t count, rows, begin, end;
    float *y;
    size_t ldy;
    bool add;
};

#define WALSH_TILE_QUERIES 64 /* columns of a tile at most */

/* A tile [keys][queries] of scores. Key j is visible to query i where j <= i + diagonal and, with a window,
 * j + window > i + diagonal: diagonal is the place of query 0 minus that of key 0 in their sequence. */
struct walsh_tile_scores {
    const float *s; /* [keys][lds], before their scale */
    size_t lds, keys, queries;
    ptrdiff_t diagonal;
    size_t window; /* 0: none */
    float scale;   /* > 0 */
};
/* A further tile of keys joins its queries' running softmax: with m = max(maximum, scale * largest visible
 * s), p = exp(scale * s - m), 0 where not visible, in pairs of keys [keys / 2, rounded up][ldp] (a last key
 * that is odd beside 0); keep = exp(maximum - m); maximum = m, sum = sum * keep + sum of p before it was
 * rounded. Starts from maximum -Inf, sum 0. The columns beyond `queries` up to a multiple of 16 are written
 * too, as 0. */
struct walsh_tile_softmax {
    struct walsh_tile_scores scores;
    uint32_t *p;
    size_t ldp;
    float *maximum, *sum, *keep; /* [queries rounded up to 16] */
};
/* The same tile when its gradient is wanted: p = exp(scale * s - lse), ds = scale * p (dp - delta), both 0
 * where not visible: p_rows and ds_rows [keys][ld_rows] bf16, ds_pairs [keys / 2, rounded up][ld_pairs] pairs
 * of keys; columns as above. */
struct walsh_tile_slopes {
    struct walsh_tile_scores scores;
    const float *dp;          /* [keys][lds] */
    const float *lse, *delta; /* [queries] */
    uint16_t *p_rows, *ds_rows;
    uint32_t *ds_pairs;
    size_t ld_rows, ld_pairs;
};

#endif
