/* kernels/low_rank: the pieces of a low-rank update y += scale * B (A x) that one thread does. Layouts:
 * formats/low_rank.h. */
#ifndef WALSH_KERNELS_LOW_RANK_H
#define WALSH_KERNELS_LOW_RANK_H

#include <stddef.h>

#include "formats/low_rank.h"

/* Columns whose products are summed before they join the sum of the columns before them: what makes h the
 * same bits however the columns are shared out. */
#define WALSH_LOW_RANK_BLOCK 1024

/* h[i * ldh + j] = sum over the columns [begin, end) of A[j][column] x[i * ldx + column], for `rows` rows i
 * and the 8 ranks j of one chunk of A. begin is a multiple of WALSH_LOW_RANK_BLOCK, end one or cols; blocks
 * are summed in ascending order. x is read within [begin, end) only. */
struct walsh_low_rank_down_part {
    enum walsh_format format; /* F32 or BF16 */
    const void *a;            /* the chunk, 64-byte aligned */
    size_t cols, begin, end;
    const float *x;
    size_t ldx, rows;
    float *h;
    size_t ldh;
    size_t chunks; /* low_rank_down_prefill: of A, from `a` on; begin is 0 and end cols */
};

/* y[i * ldy + o] = scale * (sum over j < rank of B[o][j] h[i * ldh + j]) + y[i * ldy + o], the sum one chain
 * of fused multiply-adds from rank 0 on, for `rows` rows i and the outputs o of [begin, end): begin a
 * multiple of 16. */
struct walsh_low_rank_up_part {
    enum walsh_format format; /* F32 or BF16 */
    const void *b;            /* the whole matrix, 64-byte aligned */
    size_t rank, begin, end;
    float scale;
    const float *h;
    size_t ldh, rows;
    float *y;
    size_t ldy;
};

#endif
