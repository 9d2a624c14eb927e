/* api: linears of walsh_ops.h, for the files that open and run them. */
#ifndef WALSH_API_OPS_LINEAR_H
#define WALSH_API_OPS_LINEAR_H

#include "api/ops_codes.h"
#include "model/linear.h"

struct walsh_ops_linear {
    struct walsh_linear linear;
    struct walsh_arena arena; /* packed weights, bias */
    const struct walsh_queue
        *holder; /* of a device: weights, bias and the rotations' signs are there; NULL */
};

/* What both ways of opening a linear do around their weights: `fill` sets linear.weights, with the queue
 * held. in and out of the rotations, activations and bias are set already; padded sizes have been compared
 * with rows and cols. */
struct walsh_ops_linear_plan {
    const char *call;
    uint32_t rows, cols; /* padded */
    enum walsh_format format;
    enum walsh_status (*fill)(const struct walsh_queue *host, const void *source, struct walsh_ops_linear *l,
                              struct walsh_error *err);
    const void *source;
};
enum walsh_status walsh_ops_linear_make(struct walsh_ops_queue *queue,
                                        const struct walsh_ops_linear_plan *plan,
                                        const struct walsh_ops_linear_options *options,
                                        struct walsh_ops_linear **out, struct walsh_error *err);

/* Row stride of a product's output in the workspace: rows do not share sets of a cache. */
static inline size_t walsh_ops_linear_stride(const struct walsh_linear *l)
{
    return (size_t)l->weights.rows + WALSH_ALIGNMENT / sizeof(float);
}
/* Prepared activations of `rows` rows for this linear, of the workspace. */
void walsh_ops_take_activations(const struct walsh_linear *l, size_t rows, struct walsh_ops_workspace *w,
                                struct walsh_activations *a);

#endif
