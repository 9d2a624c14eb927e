/* train/rows: what stands between two products of training, row by row: a row goes through all of it while it
 * is in the L1, where op behind op would write and read f32 of all rows each time. The bits are those of the
 * ops, because each of them treats rows one by one. On a device they are its ops, one behind the other, which
 * need all rows in f32: no y may be NULL there. May use model and below. */
#ifndef WALSH_TRAIN_ROWS_H
#define WALSH_TRAIN_ROWS_H

#include "checkpoint/config.h"
#include "kernels/kernels.h"

/* Where rows go that linears read: in f32 (y NULL: nobody reads that), and rounded to bf16, 0 up to their
 * stride ld_rounded (rounded NULL: not wanted). Both at once or either. */
struct walsh_row_output {
    float *y;
    size_t ldy;
    uint16_t *rounded;
    size_t ld_rounded;
};

/* Rows x[n] rounded; to->y is not written. */
void walsh_rows_round(const struct walsh_queue *q, const struct walsh_row_output *to, const float *x,
                      size_t ldx, size_t rows, size_t n);

/* rms_norm of rows x[n], dense; with d, of sum = x + d, which is written (sum may be x). */
void walsh_rows_norm(const struct walsh_queue *q, const struct walsh_row_output *to, float *sum,
                     const float *x, const float *d, const float *weight, size_t rows, size_t n, float eps);

/* gate(g) * u as the config says, rows of n, dense. */
void walsh_rows_gate(const struct walsh_queue *q, const struct walsh_row_output *to,
                     const struct walsh_config *config, const float *g, const float *u, size_t rows,
                     size_t n);

/* walsh_gate_backward of rows of n, dense, to dgate and dup. */
void walsh_rows_gate_backward(const struct walsh_queue *q, const struct walsh_row_output *dgate,
                              const struct walsh_row_output *dup, const struct walsh_config *config,
                              const float *dy, const float *g, const float *u, size_t rows, size_t n);

/* dx += the gradient of rms_norm of rows x[n], dense, back from dy; the sum goes to `rounded` too, where not
 * NULL. */
void walsh_rows_norm_backward(const struct walsh_queue *q, uint16_t *rounded, size_t ld_rounded, float *dx,
                              const float *dy, const float *x, const float *weight, size_t rows, size_t n,
                              float eps);

#endif
