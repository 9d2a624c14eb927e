/* quantize/ldlq_tile: the searches of block LDLQ on a tile of rows. Rows do not depend on each other; tiles
 * are fixed, so that bits do not depend on who works on them. Private to quantize/. */
#ifndef WALSH_QUANTIZE_LDLQ_TILE_H
#define WALSH_QUANTIZE_LDLQ_TILE_H

#include "quantize/ldlq.h"

#define WALSH_LDLQ_TILE 32 /* rows */
#define WALSH_LDLQ_PANEL                                                                                     \
    64 /* columns whose feedback is kept up to date between products; divides every padded n */

/* A linear under way. */
struct walsh_ldlq_state {
    const struct walsh_kernels *kernels;
    const struct walsh_ldlq_input *input;
    const struct walsh_e8p_plan *plan;
    size_t m, n;
    const float *target;           /* [m][n]: W~ */
    float *error;                  /* [m][n]: target - decoded */
    void *codes[WALSH_MAX_STAGES]; /* [m][n/8] */
    float scale[WALSH_MAX_STAGES]; /* decoded = sum of scale[k] * decode(codes[k]) */
};

/* One sweep over the column blocks of rows [row, row + rows), last to first: first codes. */
void walsh_ldlq_sweep(const struct walsh_ldlq_state *s, size_t row, size_t rows);
/* One pass of coordinate descent: each block is encoded against the target that is best given all the others,
 * and kept where that lowers tr(E H~ E^T). Returns how many blocks changed. */
size_t walsh_ldlq_pass(const struct walsh_ldlq_state *s, size_t row, size_t rows);
/* tr(E H~ E^T) of those rows, for any e [m][n]. */
double walsh_ldlq_trace(const struct walsh_ldlq_input *input, const float *e, size_t row, size_t rows);

#endif
