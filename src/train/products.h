/* train/products: products of frozen linears over many rows, forward and back.
 *
 *   forward   y  = inverse_out(W^ · forward_in(x)) + bias
 *   backward  dx = forward_in^T(W^^T · inverse_out^T(dy))
 *
 * A rotation is its own pair of transposes: the transpose of inverse(z) = crop(s ∘ H z) is H (s ∘ pad(.)) =
 * forward, and that of forward is inverse, with any s. So a gradient passes through the same `prepare` and
 * `unrotate`, their roles exchanged.
 *
 * A weight in a packed format is first decoded, whole, into one buffer that all linears use in turn (Strategy
 * A: its cost is shared by all rows of the call), and multiplied by the kernels of dense weights. May use
 * model and below. */
#ifndef WALSH_TRAIN_PRODUCTS_H
#define WALSH_TRAIN_PRODUCTS_H

#include "kernels/kernels.h"
#include "model/model.h"

struct walsh_products {
    const struct walsh_queue *queue; /* the CPU's; borrowed */
    enum walsh_activation_type
        compute; /* F32; or BF16: both sides of a product with weights that bf16 holds are bf16 */
    size_t max_rows;
    void *activations; /* one set of prepared activations */
    float *z;          /* [max_rows][widest]: what a rotation still has to undo; NULL: no linear is rotated */
    float *extra;      /* [max_rows][widest]: a dx that is added to another */
    void *dense;       /* a decoded weight; NULL: no linear needs it */
};
/* Room for max_rows rows of any linear of the layers of the graph or, with `head`, of its head. compute BF16
 * needs a queue that has it (walsh_queue_has_bf16). */
enum walsh_status walsh_products_open(const struct walsh_model_graph *graph, bool head,
                                      const struct walsh_queue *queue, enum walsh_activation_type compute,
                                      size_t max_rows, struct walsh_products *out, struct walsh_error *err);
void walsh_products_close(struct walsh_products *p); /* safe on a zeroed struct */
/* Bytes that walsh_products_open will allocate. */
size_t walsh_products_bytes(const struct walsh_model_graph *graph, bool head,
                            enum walsh_activation_type compute, size_t max_rows);

/* y[rows][ldy] of one of the linears that read the same x. */
struct walsh_frozen_call {
    const struct walsh_linear *linear;
    float *y;
    size_t ldy;
};
/* y_i = linear_i(x[rows][ldx]) for each of the list. Neighbours with equal input rotations share one
 * preparation of x. */
void walsh_frozen_forward(struct walsh_products *p, const struct walsh_frozen_call *calls, size_t count,
                          const float *x, size_t ldx, size_t rows);
/* dx[rows][lddx] = or, with `add`, += W^T dy; the bias has no part in it. */
void walsh_frozen_backward(struct walsh_products *p, const struct walsh_linear *linear, const float *dy,
                           size_t lddy, size_t rows, float *dx, size_t lddx, bool add);

#endif
