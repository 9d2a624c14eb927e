/* The staged ops of training: staged.h. */
#include "kernels/train.h"

#include "staged.h"

static const struct walsh_train_ops *train_of(const struct staged *s)
{
    return s->device.ops->train;
}

static size_t element(enum walsh_format format)
{
    return format == WALSH_FORMAT_F32 ? 4 : 2;
}

static void multiply(const struct walsh_queue *q, const struct walsh_matrix_product *p)
{
    struct staged *s = staged_of(q);
    struct walsh_matrix_product d = *p;
    d.a = staged_in(s, p->a,
                    p->a_turned ? staged_span(p->k, p->lda, p->m, element(p->a_type))
                                : staged_span(p->m, p->lda, p->k, element(p->a_type)));
    d.b = staged_in(s, p->b,
                    p->b_turned ? staged_span(p->n, p->ldb, p->k, element(p->b_type))
                                : staged_span(p->k, p->ldb, p->n, element(p->b_type)));
    d.c = staged_out(s, p->c, staged_span(p->m, p->ldc, p->n, element(p->c_type)));
    train_of(s)->multiply(&s->device, &d);
    staged_finish(s);
}

static void decode(const struct walsh_queue *q, const struct walsh_weights *w, enum walsh_format type,
                   void *out)
{
    struct staged *s = staged_of(q);
    struct walsh_weights on_device;
    struct walsh_error err;
    staged_must(s->device.memory->upload_weights(&s->device, w, "weights", &on_device, &err), &err);
    train_of(s)->decode(&s->device, &on_device, type,
                        staged_out(s, out, (size_t)w->rows * w->cols * element(type)));
    staged_finish(s);
    s->device.memory->free_weights(&s->device, &on_device);
}

static void add_rows(const struct walsh_queue *q, float *y, size_t ldy, const float *x, size_t ldx,
                     const float *d, size_t ldd, size_t rows, size_t n)
{
    struct staged *s = staged_of(q);
    float *to = staged_out(s, y, staged_span(rows, ldy, n, 4));
    train_of(s)->add_rows(&s->device, to, ldy, x == y ? to : staged_in(s, x, staged_span(rows, ldx, n, 4)),
                          ldx, staged_in(s, d, staged_span(rows, ldd, n, 4)), ldd, rows, n);
    staged_finish(s);
}

static void scatter(const struct walsh_queue *q, float *to, size_t ldto, const float *from, size_t ldfrom,
                    const uint32_t *index, size_t rows, size_t n)
{
    struct staged *s = staged_of(q);
    size_t last = 0;
    for (size_t i = 0; i < rows; i++) last = index[i] > last ? index[i] : last;
    train_of(s)->scatter(&s->device, staged_out(s, to, staged_span(last + 1, ldto, n, 4)), ldto,
                         staged_in(s, from, staged_span(rows, ldfrom, n, 4)), ldfrom,
                         staged_in(s, index, rows * 4), rows, n);
    staged_finish(s);
}

static void rms_norm_backward(const struct walsh_queue *q, float *dx, size_t lddx, const float *dy,
                              size_t lddy, const float *x, size_t ldx, const float *weight, size_t rows,
                              size_t n, float eps, bool add)
{
    struct staged *s = staged_of(q);
    float *to = staged_out(s, dx, staged_span(rows, lddx, n, 4));
    train_of(s)->rms_norm_backward(
        &s->device, to, lddx, dx == dy ? to : staged_in(s, dy, staged_span(rows, lddy, n, 4)), lddy,
        staged_in(s, x, staged_span(rows, ldx, n, 4)), ldx, staged_in(s, weight, n * 4), rows, n, eps, add);
    staged_finish(s);
}

static void gate_backward(const struct walsh_queue *q, enum walsh_train_gate kind, float alpha, float limit,
                          float *dgate, float *dup, const float *dy, const float *g, const float *u, size_t n)
{
    struct staged *s = staged_of(q);
    float *to = staged_out(s, dgate, n * 4), *up = staged_out(s, dup, n * 4);
    train_of(s)->gate_backward(&s->device, kind, alpha, limit, to, up,
                               dy == dgate ? to : staged_in(s, dy, n * 4), staged_in(s, g, n * 4),
                               staged_in(s, u, n * 4), n);
    staged_finish(s);
}

static struct walsh_train_attention stage_attention(struct staged *s, const struct walsh_train_attention *t,
                                                    struct walsh_attention_shape *shape)
{
    struct walsh_train_attention d = *t;
    const size_t wide = t->rows * shape->heads * shape->head_dim * 4,
                 narrow = t->rows * shape->kv_heads * shape->head_dim * 4;
    shape->sinks = staged_in(s, shape->sinks, shape->heads * 4);
    d.shape = shape;
    d.first = staged_in(s, t->first, t->rows * 4);
    d.end = staged_in(s, t->end, t->rows * 4);
    d.query = staged_in(s, t->query, wide);
    d.key = staged_in(s, t->key, narrow);
    d.value = staged_in(s, t->value, narrow);
    d.out = staged_out(s, t->out, wide);
    d.lse = staged_out(s, t->lse, t->rows * shape->heads * 4);
    d.dout = staged_in(s, t->dout, wide);
    d.delta = staged_out(s, t->delta, t->rows * shape->heads * 4);
    d.dquery = staged_out(s, t->dquery, wide);
    d.dkey = staged_out(s, t->dkey, narrow);
    d.dvalue = staged_out(s, t->dvalue, narrow);
    return d;
}

static void attention_forward(const struct walsh_queue *q, const struct walsh_train_attention *t)
{
    struct staged *s = staged_of(q);
    struct walsh_attention_shape shape = *t->shape;
    const struct walsh_train_attention d = stage_attention(s, t, &shape);
    train_of(s)->attention_forward(&s->device, &d);
    staged_finish(s);
}

static void attention_backward(const struct walsh_queue *q, const struct walsh_train_attention *t)
{
    struct staged *s = staged_of(q);
    struct walsh_attention_shape shape = *t->shape;
    const struct walsh_train_attention d = stage_attention(s, t, &shape);
    train_of(s)->attention_backward(&s->device, &d);
    staged_finish(s);
}

static struct walsh_train_conv stage_conv(struct staged *s, const struct walsh_train_conv *t)
{
    const size_t row = (size_t)t->width * 4, rows = t->rows * row;
    struct walsh_train_conv d = *t;
    d.first = staged_in(s, t->first, t->rows * 4);
    d.end = staged_in(s, t->end, t->rows * 4);
    d.weight = staged_in(s, t->weight, t->taps * row);
    d.bias = staged_in(s, t->bias, row);
    d.x = staged_in(s, t->x, 3 * rows);
    d.out = staged_out(s, t->out, rows);
    d.dout = staged_in(s, t->dout, rows);
    d.dx = staged_out(s, t->dx, 3 * rows);
    return d;
}

static void short_conv_forward(const struct walsh_queue *q, const struct walsh_train_conv *t)
{
    struct staged *s = staged_of(q);
    const struct walsh_train_conv d = stage_conv(s, t);
    train_of(s)->short_conv_forward(&s->device, &d);
    staged_finish(s);
}

static void short_conv_backward(const struct walsh_queue *q, const struct walsh_train_conv *t)
{
    struct staged *s = staged_of(q);
    const struct walsh_train_conv d = stage_conv(s, t);
    train_of(s)->short_conv_backward(&s->device, &d);
    staged_finish(s);
}

static void cross_entropy(const struct walsh_queue *q, float *logits, const int32_t *targets, size_t rows,
                          size_t vocab, float weight, float cap, bool gradient, double *loss)
{
    struct staged *s = staged_of(q);
    train_of(s)->cross_entropy(&s->device, staged_out(s, logits, rows * vocab * 4),
                               staged_in(s, targets, rows * 4), rows, vocab, weight, cap, gradient,
                               staged_out(s, loss, rows * 8));
    staged_finish(s);
}

static void adamw(const struct walsh_queue *q, const struct walsh_adamw_update *u)
{
    struct staged *s = staged_of(q);
    struct walsh_adamw_update d = *u;
    d.values = staged_out(s, u->values, u->count * 4);
    d.m = staged_out(s, u->m, u->count * 4);
    d.v = staged_out(s, u->v, u->count * 4);
    d.gradients = staged_in(s, u->gradients, u->count * 4);
    d.length = staged_out(s, u->length, 8);
    train_of(s)->adamw(&s->device, &d);
    staged_finish(s);
}

static struct walsh_train_slots stage_slots(struct staged *s, const struct walsh_train_slots *slots)
{
    struct walsh_train_slots d = *slots;
    d.slot = staged_in(s, slots->slot, slots->rows * slots->k * 4);
    return d;
}

static void spread(const struct walsh_queue *q, const struct walsh_train_slots *slots, float *to,
                   float *dweight, const float *d, const float *y, const float *weight)
{
    struct staged *s = staged_of(q);
    const struct walsh_train_slots on_device = stage_slots(s, slots);
    const size_t all = slots->rows * slots->k;
    train_of(s)->spread(&s->device, &on_device, staged_out(s, to, all * slots->n * 4),
                        staged_out(s, dweight, all * 4), staged_in(s, d, slots->rows * slots->n * 4),
                        staged_in(s, y, all * slots->n * 4), staged_in(s, weight, all * 4));
    staged_finish(s);
}

static void collect(const struct walsh_queue *q, const struct walsh_train_slots *slots, float *to,
                    const float *from, const float *weight)
{
    struct staged *s = staged_of(q);
    const struct walsh_train_slots on_device = stage_slots(s, slots);
    const size_t all = slots->rows * slots->k;
    train_of(s)->collect(&s->device, &on_device, staged_out(s, to, slots->rows * slots->n * 4),
                         staged_in(s, from, all * slots->n * 4), staged_in(s, weight, all * 4));
    staged_finish(s);
}

static void route_backward(const struct walsh_queue *q, float *dlogits, const float *dweight,
                           const float *logits, const int32_t *index, const float *weight, size_t rows,
                           uint32_t experts, uint32_t k, bool normalize)
{
    struct staged *s = staged_of(q);
    train_of(s)->route_backward(&s->device, staged_out(s, dlogits, rows * experts * 4),
                                staged_in(s, dweight, rows * k * 4), staged_in(s, logits, rows * experts * 4),
                                staged_in(s, index, rows * k * 4), staged_in(s, weight, rows * k * 4), rows,
                                experts, k, normalize);
    staged_finish(s);
}

const struct walsh_train_ops staged_train_ops = {
    .multiply = multiply,
    .decode = decode,
    .add_rows = add_rows,
    .scatter = scatter,
    .rms_norm_backward = rms_norm_backward,
    .gate_backward = gate_backward,
    .attention_forward = attention_forward,
    .attention_backward = attention_backward,
    .short_conv_forward = short_conv_forward,
    .short_conv_backward = short_conv_backward,
    .cross_entropy = cross_entropy,
    .adamw = adamw,
    .spread = spread,
    .collect = collect,
    .route_backward = route_backward,
};
