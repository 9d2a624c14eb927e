/* train/products: products of frozen linears over many rows, forward and back.
 *
 *   forward   y  = inverse_out(W^ · forward_in(x)) + bias
 *   backward  dx = forward_in^T(W^^T · inverse_out^T(dy))
 *
 * A rotation is its own pair of transposes: the transpose of inverse(z) = crop(s ∘ H z) is H (s ∘ pad(.)) =
 * forward, and that of forward is inverse, with any s. So a gradient passes through the same `prepare` and
 * `unrotate`, their roles exchanged.
 *
 * Weights in a packed format take one of two ways. *Decoded*: the weights that a dispatch needs, of active
 * experts only, are decoded into one buffer, then multiplied by the kernels of dense weights. *Fused*: each
 * piece of a product decodes what it reads, MXFP4 straight into the panels of the bf16 tile, other formats as
 * rows or columns in the thread's scratch; nothing is expanded in memory. Both give the same bits, forward
 * and back, because a decoded value is the same wherever it is decoded, and an output's chain of sums depends
 * on its own row (or column) of W alone. Which one runs follows from the rows that an active weight meets
 * (walsh_products_fused). May use model and below. */
#ifndef WALSH_TRAIN_PRODUCTS_H
#define WALSH_TRAIN_PRODUCTS_H

#include "kernels/kernels.h"
#include "model/model.h"

enum walsh_strategy { WALSH_STRATEGY_AUTO, WALSH_STRATEGY_DECODED, WALSH_STRATEGY_FUSED };

/* The second half of a trained update, in bf16: rows [rows][ld] of its inner values times `matrix` [rank][outputs] are added to
 * y, or to dx. ld is even, and an odd last column stands beside 0. */
struct walsh_frozen_update {
    const uint16_t *matrix, *inner;
    size_t rank, ld; /* rank 0: none */
};
/* y[rows][ldy] of one of the linears that read the same x. */
struct walsh_frozen_call {
    const struct walsh_linear *linear;
    float *y;
    size_t ldy;
    const uint16_t *rows; /* back: dy rounded, as those of a site */
    size_t ld_rows;
    struct walsh_frozen_update update; /* of y, in the unrotated space; back: of dx */
};
static inline struct walsh_frozen_call walsh_frozen(const struct walsh_linear *linear, float *y, size_t ldy)
{
    return (struct walsh_frozen_call){.linear = linear, .y = y, .ldy = ldy};
}
#define WALSH_SITE_CALLS 4
/* Linears that read rows [begin, begin + rows) of the same x: those of a layer, or of one of its experts. */
struct walsh_frozen_site {
    struct walsh_frozen_call calls[WALSH_SITE_CALLS];
    size_t count, begin, rows;
    /* The site's rows of x rounded to bf16, 0 up to their stride ld_rows (walsh_activations_stride): read where a linear
     * wants nothing else, so that x is rounded once for all who read it. NULL: rounded from x. */
    const uint16_t *inputs;
    size_t ld_rows;
};

struct walsh_products_options {
    enum walsh_activation_type
        compute; /* F32; or BF16: both sides of a product with weights that bf16 holds are bf16 */
    enum walsh_strategy strategy; /* of packed weights; one that cannot be fused is decoded anyway */
    size_t max_rows;
    bool head; /* the graph's head alone; else the linears of the layers */
    /* Keep panels (kernels/pairs.h) of the bf16 weights, both ways: as much memory again as they take, twice. Where the kernels
     * have none this does nothing. The bits are the same. */
    bool panels;
};
struct walsh_products {
    const struct walsh_queue *queue; /* borrowed */
    enum walsh_activation_type compute;
    enum walsh_strategy strategy;
    size_t max_rows;
    void *activations; /* one set of prepared activations */
    float *z;          /* [max_rows][widest]: what a rotation still has to undo; NULL: no linear is rotated */
    float *extra;      /* [max_rows][widest]: a dx that is added to another */
    void *dense;       /* decoded weights; NULL: every packed one is fused */
    uint32_t **panels; /* [2 * linear.index + back], NULL: none of this one; NULL: none at all */
    size_t linears;
    struct walsh_arena arena;
    size_t widest, dense_elements, max_items;
    struct walsh_products_item *items; /* of a dispatch */
    size_t decoded, fused;             /* packed weights that went either way so far, for tests */
    size_t kept;                       /* matrices whose panels are kept */
};
/* Room for max_rows rows of any linear. compute BF16 needs a queue that has it (walsh_queue_has_bf16). */
enum walsh_status walsh_products_open(const struct walsh_model_graph *graph, const struct walsh_queue *queue,
                                      const struct walsh_products_options *options,
                                      struct walsh_products *out, struct walsh_error *err);
void walsh_products_close(struct walsh_products *p); /* safe on a zeroed struct */
/* Bytes that walsh_products_open will allocate. */
size_t walsh_products_bytes(const struct walsh_model_graph *graph, const struct walsh_queue *queue,
                            const struct walsh_products_options *options);

/* Does a product with this linear read rows that its caller rounded to bf16, so that nobody needs them in f32? transposed: dy
 * of its gradient. On a device never. */
bool walsh_products_take_rows(const struct walsh_products *p, const struct walsh_linear *linear,
                              bool transposed);

/* How the other side of a product with this linear is rounded where products are computed in `compute`. */
enum walsh_activation_type walsh_frozen_type(enum walsh_activation_type compute,
                                             const struct walsh_linear *linear);
/* True where `auto` decodes packed weights of which each meets `rows` rows inside the product; on a device
 * never. */
bool walsh_products_fused(const struct walsh_queue *queue, enum walsh_activation_type compute,
                          const struct walsh_weights *w, size_t rows);

/* y_i = linear_i(x[.][ldx]) + its update for all calls of all sites, whose rows are disjoint, ascending and without gaps,
 * and whose calls have the same shapes: in one dispatch, its pieces cut out of the sites' rows and outputs.
 * Neighbouring calls with equal input rotations share one preparation of x. */
void walsh_frozen_forward(struct walsh_products *p, const struct walsh_frozen_site *sites, size_t count,
                          const float *x, size_t ldx);
/* The same back: y of a call is its dy, and those of the sites are rows of one matrix. dx [.][lddx] = or,
 * with `add`, += the sum of W^T dy over a site's calls, and of their updates behind them; a bias has no part in it. */
void walsh_frozen_backward(struct walsh_products *p, const struct walsh_frozen_site *sites, size_t count,
                           float *dx, size_t lddx, bool add);

#endif
