#include "train/device.h"

/* --- frozen linears --- */

/* Rows as a product reads them. */
struct side {
    const void *data;
    size_t ld;
    enum walsh_format type;
};

static enum walsh_format format_of(enum walsh_activation_type type)
{
    return type == WALSH_ACTIVATION_BF16 ? WALSH_FORMAT_BF16 : WALSH_FORMAT_F32;
}

/* `rows` rows of x, rotated and rounded as `linear` wants them; `rounded`: the same rows in bf16, where the caller has them. */
static struct side prepare(struct walsh_products *p, enum walsh_activation_type type,
                           const struct walsh_rotation *rotation, const float *x, size_t ldx,
                           const uint16_t *rounded, size_t ld_rounded, size_t rows)
{
    if (rotation->kind == WALSH_ROTATION_NONE && type == WALSH_ACTIVATION_F32)
        return (struct side){x, ldx, WALSH_FORMAT_F32};
    if (rotation->kind == WALSH_ROTATION_NONE && rounded)
        return (struct side){rounded, ld_rounded, WALSH_FORMAT_BF16};
    struct walsh_activations a = {.type = type,
                                  .rows = rows,
                                  .cols = rotation->blocks.padded,
                                  .stride = walsh_activations_stride(rotation->blocks.padded),
                                  .data = p->activations};
    p->queue->ops->prepare(p->queue, &a, x, ldx, rotation);
    return (struct side){a.data, a.stride, format_of(type)};
}

/* The weights as numbers: as they are, or decoded into the one buffer, which the product before has read by then. */
static struct side numbers(struct walsh_products *p, const struct walsh_weights *w,
                           enum walsh_activation_type type)
{
    if (w->format == WALSH_FORMAT_F32 || w->format == WALSH_FORMAT_F16 || w->format == WALSH_FORMAT_BF16)
        return (struct side){w->data, w->cols, w->format};
    p->queue->ops->train->decode(p->queue, w, format_of(type), p->dense);
    p->decoded++;
    return (struct side){p->dense, w->cols, format_of(type)};
}

/* y += inner matrix. */
static void add_update(const struct walsh_queue *q, const struct walsh_frozen_update *u, float *y, size_t ldy,
                       size_t rows, size_t outputs)
{
    if (u->rank == 0) return;
    q->ops->train->multiply(q, &(struct walsh_matrix_product){.a_type = WALSH_FORMAT_BF16,
                                                              .b_type = WALSH_FORMAT_BF16,
                                                              .c_type = WALSH_FORMAT_F32,
                                                              .a = u->inner,
                                                              .b = u->matrix,
                                                              .c = y,
                                                              .m = rows,
                                                              .n = outputs,
                                                              .k = u->rank,
                                                              .lda = u->ld,
                                                              .ldb = outputs,
                                                              .ldc = ldy,
                                                              .add = true,
                                                              .alpha = 1});
}

/* Signs on a device cannot be compared here: equal ones are one vector (walsh_graph_upload). */
static bool same_vector(const struct walsh_rotation *a, const struct walsh_rotation *b)
{
    return a->kind == b->kind && a->signs == b->signs && a->blocks.padded == b->blocks.padded;
}

void walsh_device_forward(struct walsh_products *p, const struct walsh_frozen_site *site, const float *x,
                          size_t ldx)
{
    const struct walsh_queue *q = p->queue;
    const struct walsh_linear *before = NULL;
    struct side in = {0};
    if (site->rows == 0) return;
    for (size_t c = 0; c < site->count; c++) {
        const struct walsh_frozen_call *call = &site->calls[c];
        const struct walsh_linear *linear = call->linear;
        const enum walsh_activation_type type = walsh_frozen_type(p->compute, linear);
        const bool rotated = linear->out_rotation.kind != WALSH_ROTATION_NONE;
        if (!before || walsh_frozen_type(p->compute, before) != type ||
            !same_vector(&before->in_rotation, &linear->in_rotation))
            in = prepare(p, type, &linear->in_rotation, x + site->begin * ldx, ldx, site->inputs,
                         site->ld_rows, site->rows);
        before = linear;
        const struct side w = numbers(p, &linear->weights, type);
        float *y = rotated ? p->z : call->y;
        const size_t ldy = rotated ? p->widest : call->ldy;
        q->ops->train->multiply(q, &(struct walsh_matrix_product){.a_type = in.type,
                                                                  .b_type = w.type,
                                                                  .c_type = WALSH_FORMAT_F32,
                                                                  .a = in.data,
                                                                  .b = w.data,
                                                                  .c = y,
                                                                  .m = site->rows,
                                                                  .n = linear->weights.rows,
                                                                  .k = linear->weights.cols,
                                                                  .lda = in.ld,
                                                                  .ldb = w.ld,
                                                                  .ldc = ldy,
                                                                  .b_turned = true,
                                                                  .alpha = 1});
        q->ops->unrotate(q, call->y, call->ldy, y, ldy, &linear->out_rotation, linear->bias, site->rows);
        add_update(q, &call->update, call->y, call->ldy, site->rows, linear->out);
    }
}

void walsh_device_backward(struct walsh_products *p, const struct walsh_frozen_site *site, float *dx,
                           size_t lddx, bool add)
{
    const struct walsh_queue *q = p->queue;
    if (site->rows == 0) return;
    dx += site->begin * lddx;
    for (size_t c = 0; c < site->count; c++, add = true) {
        const struct walsh_frozen_call *call = &site->calls[c];
        const struct walsh_linear *linear = call->linear;
        const enum walsh_activation_type type = walsh_frozen_type(p->compute, linear);
        const bool rotated = linear->in_rotation.kind != WALSH_ROTATION_NONE;
        const struct side dy = prepare(p, type, &linear->out_rotation, call->y, call->ldy, call->rows,
                                       call->ld_rows, site->rows);
        const struct side w = numbers(p, &linear->weights, type);
        float *to = rotated ? p->z : dx;
        const size_t ldto = rotated ? p->widest : lddx;
        q->ops->train->multiply(q, &(struct walsh_matrix_product){.a_type = dy.type,
                                                                  .b_type = w.type,
                                                                  .c_type = WALSH_FORMAT_F32,
                                                                  .a = dy.data,
                                                                  .b = w.data,
                                                                  .c = to,
                                                                  .m = site->rows,
                                                                  .n = linear->weights.cols,
                                                                  .k = linear->weights.rows,
                                                                  .lda = dy.ld,
                                                                  .ldb = w.ld,
                                                                  .ldc = ldto,
                                                                  .add = add && !rotated,
                                                                  .alpha = 1});
        if (!rotated) continue;
        float *back = add ? p->extra : dx;
        const size_t ldback = add ? linear->in : lddx;
        q->ops->unrotate(q, back, ldback, to, ldto, &linear->in_rotation, NULL, site->rows);
        if (add) q->ops->train->add_rows(q, dx, lddx, dx, lddx, back, ldback, site->rows, linear->in);
    }
    for (size_t c = 0; c < site->count; c++)
        add_update(q, &site->calls[c].update, dx, lddx, site->rows, site->calls[c].linear->in);
}

/* --- updates --- */

/* The first call of a site with the A of call i. */
static size_t first_of(const struct walsh_lora_site *s, size_t i)
{
    size_t same = 0;
    while (!s->calls[same].lora || s->calls[same].lora->a != s->calls[i].lora->a) same++;
    return same;
}

/* to [rows][ldto] = or += s x [rows][cols] by the transpose of a matrix [rank][cols]. */
static void into_rank(const struct walsh_queue *q, const struct walsh_lora *l, enum walsh_format type,
                      const void *x, size_t ldx, size_t rows, const void *matrix, size_t cols,
                      enum walsh_format to_type, void *to, size_t ldto, bool add)
{
    q->ops->train->multiply(q, &(struct walsh_matrix_product){.a_type = type,
                                                              .b_type = type,
                                                              .c_type = to_type,
                                                              .a = x,
                                                              .b = matrix,
                                                              .c = to,
                                                              .m = rows,
                                                              .n = l->rank,
                                                              .k = cols,
                                                              .lda = ldx,
                                                              .ldb = cols,
                                                              .ldc = ldto,
                                                              .b_turned = true,
                                                              .add = add,
                                                              .alpha = l->scale});
}

/* y [rows][cols] += inner [rows][rank] matrix [rank][cols], in f32. */
static void out_of_rank(const struct walsh_queue *q, const struct walsh_lora *l, const float *inner,
                        size_t rows, const float *matrix, size_t cols, float *y, size_t ldy)
{
    q->ops->train->multiply(q, &(struct walsh_matrix_product){.a_type = WALSH_FORMAT_F32,
                                                              .b_type = WALSH_FORMAT_F32,
                                                              .c_type = WALSH_FORMAT_F32,
                                                              .a = inner,
                                                              .b = matrix,
                                                              .c = y,
                                                              .m = rows,
                                                              .n = cols,
                                                              .k = l->rank,
                                                              .lda = l->rank,
                                                              .ldb = cols,
                                                              .ldc = ldy,
                                                              .add = true,
                                                              .alpha = 1});
}

/* gradient [rank][cols] += the transpose of inner [rows][rank] by x [rows][cols]. */
static void add_gradient(const struct walsh_queue *q, const struct walsh_lora *l, enum walsh_format type,
                         const void *inner, size_t ld, const void *x, size_t ldx, size_t rows,
                         float *gradient, size_t cols)
{
    q->ops->train->multiply(q, &(struct walsh_matrix_product){.a_type = type,
                                                              .b_type = type,
                                                              .c_type = WALSH_FORMAT_F32,
                                                              .a = inner,
                                                              .b = x,
                                                              .c = gradient,
                                                              .m = l->rank,
                                                              .n = cols,
                                                              .k = rows,
                                                              .lda = ld,
                                                              .ldb = ldx,
                                                              .ldc = cols,
                                                              .a_turned = true,
                                                              .add = true,
                                                              .alpha = 1});
}

void walsh_device_lora_forward(const struct walsh_queue *q, const struct walsh_lora_site *s, const float *x,
                               size_t ldx, float *inner)
{
    for (size_t i = 0; i < s->count; i++) {
        const struct walsh_lora_call *call = &s->calls[i];
        const struct walsh_lora *l = call->lora;
        if (!l) continue;
        const struct walsh_lora *before = i > 0 ? s->calls[i - 1].lora : NULL;
        if (!before || before->a != l->a)
            into_rank(q, l, WALSH_FORMAT_F32, x + s->begin * ldx, ldx, s->rows, l->a, l->in, WALSH_FORMAT_F32,
                      inner, l->rank, false);
        out_of_rank(q, l, inner, s->rows, l->b, l->out, call->y, call->ldy);
    }
}

/* g [rows][rank] in f32 = s B^T dy, over all calls of the A of call i. */
static void back_into_rank(const struct walsh_queue *q, const struct walsh_lora_site *s, size_t i, float *g)
{
    for (size_t j = i; j < s->count; j++) {
        const struct walsh_lora_call *call = &s->calls[j];
        const struct walsh_lora *l = call->lora;
        if (!l || l->a != s->calls[i].lora->a) continue;
        if (l->b_pairs)
            into_rank(q, l, WALSH_FORMAT_BF16, call->dy, call->ld_dy, s->rows,
                      walsh_lora_matrix(l->b_pairs, l->rank, l->out), l->out, WALSH_FORMAT_F32, g, l->rank,
                      j > i);
        else
            into_rank(q, l, WALSH_FORMAT_F32, call->y, call->ldy, s->rows, l->b, l->out, WALSH_FORMAT_F32, g,
                      l->rank, j > i);
    }
}

void walsh_device_lora_backward(const struct walsh_queue *q, const struct walsh_lora_site *s, const float *x,
                                size_t ldx, float *dx, size_t lddx, float *inner)
{
    for (size_t i = 0; i < s->count; i++) {
        const struct walsh_lora *l = s->calls[i].lora;
        if (!l || first_of(s, i) != i) continue;
        const float *rows = x + s->begin * ldx;
        float *h = inner, *g = inner + s->rows * l->rank;
        into_rank(q, l, WALSH_FORMAT_F32, rows, ldx, s->rows, l->a, l->in, WALSH_FORMAT_F32, h, l->rank,
                  false);
        back_into_rank(q, s, i, g);
        if (dx) out_of_rank(q, l, g, s->rows, l->a, l->in, dx + s->begin * lddx, lddx);
        add_gradient(q, l, WALSH_FORMAT_F32, g, l->rank, rows, ldx, s->rows, l->grad_a, l->in);
        for (size_t j = i; j < s->count; j++) {
            const struct walsh_lora_call *call = &s->calls[j];
            if (call->lora && call->lora->a == l->a)
                add_gradient(q, l, WALSH_FORMAT_F32, h, l->rank, call->y, call->ldy, s->rows,
                             call->lora->grad_b, call->lora->out);
        }
    }
}

void walsh_device_lora_inner(const struct walsh_queue *q, const struct walsh_lora_site *s, const uint16_t *x,
                             size_t ldx)
{
    for (size_t i = 0; i < s->count; i++) {
        const struct walsh_lora *l = s->calls[i].lora;
        if (l && first_of(s, i) == i)
            into_rank(q, l, WALSH_FORMAT_BF16, x + s->begin * ldx, ldx, s->rows,
                      walsh_lora_matrix(l->a_pairs, l->rank, l->in), l->in, WALSH_FORMAT_BF16,
                      s->calls[i].inner, walsh_lora_inner_width(l->rank), false);
    }
}

void walsh_device_lora_inner_backward(const struct walsh_queue *q, const struct walsh_lora_site *s,
                                      float *sums)
{
    for (size_t i = 0; i < s->count; i++) {
        const struct walsh_lora *l = s->calls[i].lora;
        if (!l || first_of(s, i) != i) continue;
        back_into_rank(q, s, i, sums);
        q->memory->convert(q, WALSH_FORMAT_BF16, s->calls[i].inner, walsh_lora_inner_width(l->rank),
                           WALSH_FORMAT_F32, sums, l->rank, s->rows, l->rank);
    }
}

void walsh_device_lora_gradients(const struct walsh_queue *q, const struct walsh_lora_site *s,
                                 const uint16_t *x, size_t ldx)
{
    for (size_t i = 0; i < s->count; i++) {
        const struct walsh_lora_call *call = &s->calls[i];
        const struct walsh_lora *l = call->lora;
        if (!l) continue;
        const size_t same = first_of(s, i), width = walsh_lora_inner_width(l->rank);
        if (same == i)
            add_gradient(q, l, WALSH_FORMAT_BF16, call->inner, width, x + s->begin * ldx, ldx, s->rows,
                         l->grad_a, l->in);
        add_gradient(q, l, WALSH_FORMAT_BF16, s->kept[same], width, call->dy, call->ld_dy, s->rows, l->grad_b,
                     l->out);
    }
}
