/* rotation/overlap: the overlap rotation behind the functions of rotation.h. Private to rotation/. */
#ifndef WALSH_ROTATION_OVERLAP_H
#define WALSH_ROTATION_OVERLAP_H

#include "rotation/rotation.h"

/* x and y as in rotation.h: forward x[size] -> y[padded], inverse y[padded] (overwritten) -> x[size]; x may
 * be y. */
void walsh_overlap_forward(const struct walsh_rotation *r, const float *x, float *y);
void walsh_overlap_inverse(const struct walsh_rotation *r, float *y, float *x);
void walsh_overlap_forward_f64(const struct walsh_rotation *r, const double *x, double *y);
void walsh_overlap_inverse_f64(const struct walsh_rotation *r, double *y, double *x);
/* walsh_fold_columns: out[padded][cols] from b[size][cols]. */
enum walsh_status walsh_overlap_fold_columns(const struct walsh_rotation *r, const float *b, size_t cols,
                                             float *out, struct walsh_error *err);

#endif
