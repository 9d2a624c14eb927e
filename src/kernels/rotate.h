/* kernels/rotate: one vector through a rotation by a table's kernels; the bits of walsh_rotate_forward and
 * walsh_rotate_inverse. Of the CPU. */
#ifndef WALSH_KERNELS_ROTATE_H
#define WALSH_KERNELS_ROTATE_H

#include "kernels/kernels.h"

/* y[padded] = forward(x[size]), inverse: x[size] from y[padded], which is overwritten; `signs` stand in for
 * r's own (walsh_rotation_signs(r) of them). r is not NONE. Forward: x and y do not overlap; inverse: x may
 * be y. */
void walsh_kernels_rotate(const struct walsh_kernels *k, const struct walsh_rotation *r, const float *signs,
                          const float *x, float *y);
void walsh_kernels_unrotate(const struct walsh_kernels *k, const struct walsh_rotation *r, const float *signs,
                            float *y, float *x);

#endif
