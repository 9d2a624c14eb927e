/* quantize/rotate: rotations of whole matrices on the pool. Private to quantize/.
 *
 * `signs` stand in for the rotation's own: SV, or its reciprocals. Everything is f32 with the exact
 * butterfly, so that bits do not depend on threads or instruction sets. */
#ifndef WALSH_QUANTIZE_ROTATE_H
#define WALSH_QUANTIZE_ROTATE_H

#include "kernels/kernels.h"

/* y[rows][padded] = forward of each row of x[rows][size]. y and x do not overlap. */
void walsh_rotate_rows(const struct walsh_queue *q, const struct walsh_rotation *r, const float *signs,
                       const float *x, size_t rows, float *y);
/* x[rows][size] = inverse of each row of y[rows][padded], which is overwritten. */
void walsh_unrotate_rows(const struct walsh_queue *q, const struct walsh_rotation *r, const float *signs,
                         float *y, size_t rows, float *x);
/* y[cols][rows] = transpose of x[rows][cols]. */
void walsh_transpose(const struct walsh_queue *q, const float *x, size_t rows, size_t cols, float *y);

#endif
