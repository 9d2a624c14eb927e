/* The ops of training on CUDA: descriptors into launches. */
#include "formats/blocks.h"
#include "kernels/cuda/backend.h"
#include "kernels/cuda/launch_train.h"
#include "kernels/train.h"

_Static_assert((int)WALSH_TRAIN_SWIGLU == CUDA_GATE_SWIGLU && (int)WALSH_TRAIN_GEGLU == CUDA_GATE_GEGLU &&
                   (int)WALSH_TRAIN_CLAMPED == CUDA_GATE_CLAMPED &&
                   WALSH_TRAIN_HEAD_DIM == CUDA_TRAIN_HEAD_DIM,
               "the kernels' gates and heads");

/* The device of q, current for this thread. */
static struct cuda_device *enter(const struct walsh_queue *q)
{
    struct cuda_device *d = cuda_device_of(q);
    cudaSetDevice(d->number);
    return d;
}

static enum cuda_type type_of(enum walsh_format format)
{
    return format == WALSH_FORMAT_F32   ? CUDA_TYPE_F32
           : format == WALSH_FORMAT_F16 ? CUDA_TYPE_F16
                                        : CUDA_TYPE_BF16;
}

static void multiply(const struct walsh_queue *q, const struct walsh_matrix_product *p)
{
    struct cuda_device *d = enter(q);
    const struct cuda_matrix_product product = {.a = p->a,
                                                .b = p->b,
                                                .c = p->c,
                                                .m = p->m,
                                                .n = p->n,
                                                .k = p->k,
                                                .lda = p->lda,
                                                .ldb = p->ldb,
                                                .ldc = p->ldc,
                                                .a_type = type_of(p->a_type),
                                                .b_type = type_of(p->b_type),
                                                .c_type = type_of(p->c_type),
                                                .a_turned = p->a_turned,
                                                .b_turned = p->b_turned,
                                                .add = p->add,
                                                .alpha = p->alpha};
    cuda_multiply(d->stream, &product, d->scratch, CUDA_SCRATCH_BYTES);
    cuda_note(d, "multiply");
}

static void decode(const struct walsh_queue *q, const struct walsh_weights *w, enum walsh_format type,
                   void *out)
{
    struct cuda_device *d = enter(q);
    if (w->format == WALSH_FORMAT_E8P) {
        const struct cuda_e8p e8p = cuda_e8p_of(d, w);
        cuda_decode_e8p(d->stream, &e8p, type_of(type), out);
    } else if (walsh_format_is_block(w->format)) {
        const struct cuda_blocks blocks = cuda_blocks_of(w);
        cuda_decode_blocks(d->stream, &blocks, 0, w->rows, type_of(type), out);
    } else {
        cuda_convert(d->stream, type_of(type), out, w->cols, type_of(w->format), w->data, w->cols, w->rows,
                     w->cols);
    }
    cuda_note(d, "decode");
}

static void add_rows(const struct walsh_queue *q, float *y, size_t ldy, const float *x, size_t ldx,
                     const float *delta, size_t ldd, size_t rows, size_t n)
{
    struct cuda_device *d = enter(q);
    cuda_add_rows(d->stream, y, ldy, x, ldx, delta, ldd, rows, n);
    cuda_note(d, "add_rows");
}

static void scatter(const struct walsh_queue *q, float *to, size_t ldto, const float *from, size_t ldfrom,
                    const uint32_t *index, size_t rows, size_t n)
{
    struct cuda_device *d = enter(q);
    cuda_scatter(d->stream, to, ldto, from, ldfrom, index, rows, n);
    cuda_note(d, "scatter");
}

static void rms_norm_backward(const struct walsh_queue *q, float *dx, size_t lddx, const float *dy,
                              size_t lddy, const float *x, size_t ldx, const float *weight, size_t rows,
                              size_t n, float eps, bool add)
{
    struct cuda_device *d = enter(q);
    cuda_rms_norm_backward(d->stream, dx, lddx, dy, lddy, x, ldx, weight, rows, n, eps, add);
    cuda_note(d, "rms_norm_backward");
}

static void gate_backward(const struct walsh_queue *q, enum walsh_train_gate kind, float alpha, float limit,
                          float *dgate, float *dup, const float *dy, const float *g, const float *u, size_t n)
{
    struct cuda_device *d = enter(q);
    cuda_gate_backward(d->stream, (enum cuda_gate)kind, alpha, limit, dgate, dup, dy, g, u, n);
    cuda_note(d, "gate_backward");
}

static struct cuda_train_attention attention_of(const struct walsh_train_attention *t)
{
    const struct walsh_attention_shape *s = t->shape;
    return (struct cuda_train_attention){.shape = {.heads = s->heads,
                                                   .kv_heads = s->kv_heads,
                                                   .head_dim = s->head_dim,
                                                   .window = s->window,
                                                   .scale = s->scale,
                                                   .soft_cap = s->soft_cap,
                                                   .sinks = s->sinks},
                                         .rows = t->rows,
                                         .first = t->first,
                                         .end = t->end,
                                         .query = t->query,
                                         .key = t->key,
                                         .value = t->value,
                                         .out = t->out,
                                         .lse = t->lse,
                                         .dout = t->dout,
                                         .delta = t->delta,
                                         .dquery = t->dquery,
                                         .dkey = t->dkey,
                                         .dvalue = t->dvalue};
}

static void attention_forward(const struct walsh_queue *q, const struct walsh_train_attention *t)
{
    struct cuda_device *d = enter(q);
    const struct cuda_train_attention a = attention_of(t);
    if (a.shape.head_dim > CUDA_TRAIN_HEAD_DIM) {
        cuda_refuse(d, "attention of training", "heads of more than 256 numbers have no kernels");
        return;
    }
    cuda_train_attention_forward(d->stream, &a);
    cuda_note(d, "attention of training");
}

static void attention_backward(const struct walsh_queue *q, const struct walsh_train_attention *t)
{
    struct cuda_device *d = enter(q);
    const struct cuda_train_attention a = attention_of(t);
    if (a.shape.head_dim > CUDA_TRAIN_HEAD_DIM) {
        cuda_refuse(d, "attention's gradient", "heads of more than 256 numbers have no kernels");
        return;
    }
    cuda_train_attention_backward(d->stream, &a);
    cuda_note(d, "attention's gradient");
}

static struct cuda_train_conv conv_of(const struct walsh_train_conv *t)
{
    return (struct cuda_train_conv){.rows = t->rows,
                                    .taps = t->taps,
                                    .width = t->width,
                                    .first = t->first,
                                    .end = t->end,
                                    .weight = t->weight,
                                    .bias = t->bias,
                                    .x = t->x,
                                    .out = t->out,
                                    .dout = t->dout,
                                    .dx = t->dx};
}

static void short_conv_forward(const struct walsh_queue *q, const struct walsh_train_conv *t)
{
    struct cuda_device *d = enter(q);
    const struct cuda_train_conv c = conv_of(t);
    cuda_train_conv_forward(d->stream, &c);
    cuda_note(d, "a convolution of training");
}

static void short_conv_backward(const struct walsh_queue *q, const struct walsh_train_conv *t)
{
    struct cuda_device *d = enter(q);
    const struct cuda_train_conv c = conv_of(t);
    cuda_train_conv_backward(d->stream, &c);
    cuda_note(d, "a convolution's gradient");
}

static void cross_entropy(const struct walsh_queue *q, float *logits, const int32_t *targets, size_t rows,
                          size_t vocab, float weight, float cap, bool gradient, double *loss)
{
    struct cuda_device *d = enter(q);
    cuda_cross_entropy(d->stream, logits, targets, rows, vocab, weight, cap, gradient, loss);
    cuda_note(d, "cross_entropy");
}

static void adamw(const struct walsh_queue *q, const struct walsh_adamw_update *u)
{
    struct cuda_device *d = enter(q);
    const struct cuda_adamw a = {.values = u->values,
                                 .m = u->m,
                                 .v = u->v,
                                 .gradients = u->gradients,
                                 .count = u->count,
                                 .rate = u->rate,
                                 .beta1 = u->beta1,
                                 .beta2 = u->beta2,
                                 .epsilon = u->epsilon,
                                 .weight_decay = u->weight_decay,
                                 .clip = u->clip,
                                 .correction1 = u->correction1,
                                 .correction2 = u->correction2,
                                 .length = u->length};
    if (cuda_adamw_scratch(u->count) > CUDA_SCRATCH_BYTES) {
        cuda_refuse(d, "adamw", "so many values do not fit its scratch");
        return;
    }
    cuda_adamw_step(d->stream, &a, d->scratch);
    cuda_note(d, "adamw");
}

static void spread(const struct walsh_queue *q, const struct walsh_train_slots *s, float *to, float *dweight,
                   const float *rows, const float *y, const float *weight)
{
    struct cuda_device *d = enter(q);
    cuda_spread(d->stream, s->slot, s->rows, s->k, s->n, to, dweight, rows, y, weight);
    cuda_note(d, "spread");
}

static void collect(const struct walsh_queue *q, const struct walsh_train_slots *s, float *to,
                    const float *from, const float *weight)
{
    struct cuda_device *d = enter(q);
    cuda_collect(d->stream, s->slot, s->rows, s->k, s->n, to, from, weight);
    cuda_note(d, "collect");
}

static void route_backward(const struct walsh_queue *q, float *dlogits, const float *dweight,
                           const float *logits, const int32_t *index, const float *weight, size_t rows,
                           uint32_t experts, uint32_t k, bool normalize)
{
    struct cuda_device *d = enter(q);
    cuda_route_backward(d->stream, dlogits, dweight, logits, index, weight, rows, experts, k, normalize);
    cuda_note(d, "route_backward");
}

const struct walsh_train_ops cuda_train_ops = {
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
