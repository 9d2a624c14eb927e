/* quantize/hessian: X^T X / tokens of a linear's input, accumulated over blocks of rows. May use model and
 * below. */
#ifndef WALSH_QUANTIZE_HESSIAN_H
#define WALSH_QUANTIZE_HESSIAN_H

#include "kernels/kernels.h"

struct walsh_hessian {
    uint32_t n;
    float *sum;      /* [n][n]; before walsh_hessian_finish only tiles on and above the diagonal hold sums */
    uint64_t tokens; /* rows so far */
    /* where walsh_hessian_place put it: `there` [n][n] has the sums until walsh_hessian_fetch */
    const struct walsh_queue *device;
    float *there, *rows;
    size_t room; /* numbers of `rows`, which x goes up to */
    struct walsh_error failure;
};
enum walsh_status walsh_hessian_open(uint32_t n, struct walsh_hessian *out, struct walsh_error *err);
void walsh_hessian_close(struct walsh_hessian *h); /* safe on a zeroed one */
/* Before anything is added: the sums are made on a device (one with walsh_ops.quantize). */
enum walsh_status walsh_hessian_place(struct walsh_hessian *h, const struct walsh_queue *device,
                                      struct walsh_error *err);
/* Behind all that is added: the sums come back. Nothing where they are on the host. */
enum walsh_status walsh_hessian_fetch(struct walsh_hessian *h, struct walsh_error *err);
/* sum += X^T X of x [rows][ldx], n columns used, in f32. Bits depend on how the rows are cut into calls, not
 * on threads. */
void walsh_hessian_add(const struct walsh_queue *q, struct walsh_hessian *h, const float *x, size_t ldx,
                       size_t rows);
/* sum /= tokens (where there are any), and the lower triangle from the upper. */
void walsh_hessian_finish(struct walsh_hessian *h);

#endif
