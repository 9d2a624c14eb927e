/* kernels/quantize: what the quantizer asks of a device (walsh_ops.quantize). On the CPU its searches are its own
 * (quantize/ldlq_tile.c), by the microkernels. All pointers are the queue's memory; calls only enqueue. */
#ifndef WALSH_KERNELS_QUANTIZE_H
#define WALSH_KERNELS_QUANTIZE_H

#include "formats/weights.h"
#include "kernels/kernels.h"

/* Rows of a linear under way (quantize/ldlq_tile.h): of every step-th tile of 32 rows, `rows` in all; row i is row
 * i / 32 * step * 32 + i % 32 of the matrices [m][n]. n is a multiple of 64. */
struct walsh_ldlq_rows {
    uint32_t n, rows, step;
    const float *target;           /* [m][n] */
    const float *hessian, *factor; /* [n][n]; factor NULL: the identity */
    const float *inverse;          /* [n/8][8][8] */
    float *error;                  /* [m][n]: target - decoded */
    float *panel;                  /* [rows][64], scratch */
    unsigned stages;
    struct {
        enum walsh_stage_kind kind;
        void *codes; /* [m][n/8] */
        float scale; /* decoded = sum of scale * decode(codes) */
    } stage[WALSH_MAX_STAGES];
    uint32_t *changed; /* of a pass: += blocks that it changed */
};

struct walsh_quantize_ops {
    /* sum [n][n] += X^T X on and above the diagonal, of x [rows][ldx], n columns used; in f32, the rows in their order. */
    void (*hessian_add)(const struct walsh_queue *q, float *sum, uint32_t n, const float *x, size_t ldx,
                        size_t rows);
    /* walsh_ldlq_sweep, walsh_ldlq_pass: the nearest codes are those of formats/e8p.h, sums have an order of their own. */
    void (*sweep)(const struct walsh_queue *q, const struct walsh_ldlq_rows *rows);
    void (*pass)(const struct walsh_queue *q, const struct walsh_ldlq_rows *rows);
    /* sums[i] = e H e^T of row i, of e [m][n]. */
    void (*trace)(const struct walsh_queue *q, const struct walsh_ldlq_rows *rows, const float *e,
                  double *sums);
};

#endif
