/* Random weights and activations of products, for the kernels' and the op's cases. */
#ifndef WALSH_TESTS_CHECKER_PRODUCT_DATA_H
#define WALSH_TESTS_CHECKER_PRODUCT_DATA_H

#include "checker.h"

/* What one weight matrix is: dense formats ignore `stages`, a string of 'P' (E8P) and 'B' (E81B). */
struct product_shape {
    enum walsh_format format;
    const char *stages;
    size_t rows, cols;
};

/* Dense data is misaligned by elements in odd rounds and ends at a guard. */
struct walsh_weights product_weights(struct check *c, const struct product_shape *shape);
/* |W|, as f32. */
struct walsh_weights product_magnitudes(struct check *c, const struct walsh_weights *w);

/* Normal numbers; int8: mostly in +-127/3, with the extremes. In the last round one row has a NaN (or Inf
 * where `infinite`). */
struct walsh_activations product_activations(struct check *c, enum walsh_activation_type type, size_t rows,
                                             size_t cols, bool infinite);
/* |a|, as f32. */
struct walsh_activations product_absolute(struct check *c, const struct walsh_activations *a);
/* Row i of a alone. */
struct walsh_activations product_row(const struct walsh_activations *a, size_t i);

#endif
