/* kernels/train: the ops of training that run on a device (walsh_ops.train). On the CPU src/train computes the same by
 * microkernels. All pointers are memory of the queue, f32 unless said; sums have a fixed order, which no other work changes. */
#ifndef WALSH_KERNELS_TRAIN_H
#define WALSH_KERNELS_TRAIN_H

#include "kernels/kernels.h"

/* C [m][n] = or, with `add`, += alpha A B. A is [m][k], or stored as [k][m] where a_turned; B is [k][n], or stored as [n][k]
 * where b_turned; not both turned at once. ld*: row strides of what is stored. Where A and B are BF16, their products are
 * summed in f32 by the tensor cores, else converted to f32 first. C is F32, or BF16 without `add`. An element of C has the
 * same bits for any m, but where a_turned. */
struct walsh_matrix_product {
    enum walsh_format a_type, b_type, c_type; /* F32, F16 or BF16 */
    const void *a, *b;
    void *c;
    size_t m, n, k, lda, ldb, ldc;
    bool a_turned, b_turned, add;
    float alpha;
};

/* Attention over packed documents: row i, of document [first[i], end[i]), attends to the rows of its document up to itself,
 * within shape->window. query, out, dout, dquery [rows][heads * head_dim]; key, value, dkey, dvalue [rows][kv_heads * head_dim]. */
#define WALSH_TRAIN_HEAD_DIM 256 /* at most */
struct walsh_train_attention {
    const struct walsh_attention_shape *shape; /* `own` and `narrow` are not read */
    size_t rows;
    const uint32_t *first, *end; /* [rows], ascending */
    const float *query, *key, *value;
    float *out,
        *lse; /* lse [heads][rows]: the logarithm of the sum that a row's weights were divided by; back: read */
    const float *dout;
    float *delta; /* [heads][rows], scratch of the backward */
    float *dquery, *dkey, *dvalue;
};

enum walsh_train_gate { WALSH_TRAIN_SWIGLU, WALSH_TRAIN_GEGLU, WALSH_TRAIN_CLAMPED };

/* One step of AdamW (train/optimizer.h), element by element in double; with the gradient's norm, *length, before clipping.
 * Where that is not finite, nothing else is written. */
struct walsh_adamw_update {
    float *values, *m, *v;
    const float *gradients;
    size_t count;
    double rate, beta1, beta2, epsilon, weight_decay, clip; /* clip 0: any */
    double correction1, correction2;                        /* 1 / (1 - beta^step) */
    double *length;
};

/* The slots of a mixture of experts: k of each row, [rows][k], slot[i] the place of number i among all. */
struct walsh_train_slots {
    const uint32_t *slot;
    size_t rows, k, n; /* n: of a row of numbers */
};

/* The gated short convolution of train/short_conv.h; rows' documents as in struct walsh_train_attention. */
struct walsh_train_conv {
    size_t rows;
    uint32_t taps, width;
    const uint32_t *first, *end;
    const float *weight, *bias; /* [taps][width]; [width] or NULL */
    const float *x;             /* [rows][3 width] */
    float *out;                 /* [rows][width] */
    const float *dout;          /* the gradient of out */
    float *dx;                  /* that of x */
};

struct walsh_train_ops {
    void (*multiply)(const struct walsh_queue *q, const struct walsh_matrix_product *p);
    /* out [w->rows][w->cols] of F32 or BF16: decode_weights_f32 and decode_weights_bf16 (kernels.def). */
    void (*decode)(const struct walsh_queue *q, const struct walsh_weights *w, enum walsh_format type,
                   void *out);
    /* y = x + d, rows of n; y may be x or d. */
    void (*add_rows)(const struct walsh_queue *q, float *y, size_t ldy, const float *x, size_t ldx,
                     const float *d, size_t ldd, size_t rows, size_t n);
    /* to[index[i]][0..n) = from[i][0..n), or 0 where from is NULL; no index stands twice. */
    void (*scatter)(const struct walsh_queue *q, float *to, size_t ldto, const float *from, size_t ldfrom,
                    const uint32_t *index, size_t rows, size_t n);
    /* rms_norm_backward_f32 (kernels.def), row by row. */
    void (*rms_norm_backward)(const struct walsh_queue *q, float *dx, size_t lddx, const float *dy,
                              size_t lddy, const float *x, size_t ldx, const float *weight, size_t rows,
                              size_t n, float eps, bool add);
    /* The gradients of y = gate(g) * u of n elements (train/gradients.h); dgate and dup may be g, u or dy. */
    void (*gate_backward)(const struct walsh_queue *q, enum walsh_train_gate kind, float alpha, float limit,
                          float *dgate, float *dup, const float *dy, const float *g, const float *u,
                          size_t n);
    void (*attention_forward)(const struct walsh_queue *q, const struct walsh_train_attention *t);
    void (*attention_backward)(const struct walsh_queue *q, const struct walsh_train_attention *t);
    /* Element by element with the operations of train/short_conv.c. */
    void (*short_conv_forward)(const struct walsh_queue *q, const struct walsh_train_conv *t);
    void (*short_conv_backward)(const struct walsh_queue *q, const struct walsh_train_conv *t);
    /* train/gradients.h, walsh_cross_entropy. */
    void (*cross_entropy)(const struct walsh_queue *q, float *logits, const int32_t *targets, size_t rows,
                          size_t vocab, float weight, float cap, bool gradient, double *loss);
    void (*adamw)(const struct walsh_queue *q, const struct walsh_adamw_update *u);
    /* to[slot] = weight[i] d[row], and dweight[i] = d[row] y[slot], of every i = row * k + j. */
    void (*spread)(const struct walsh_queue *q, const struct walsh_train_slots *s, float *to, float *dweight,
                   const float *d, const float *y, const float *weight);
    /* to[row] = the sum over j, from the left, of from[slot], or, where weight, of weight[i] from[slot]. */
    void (*collect)(const struct walsh_queue *q, const struct walsh_train_slots *s, float *to,
                    const float *from, const float *weight);
    /* train/gradients.h, walsh_route_backward. */
    void (*route_backward)(const struct walsh_queue *q, float *dlogits, const float *dweight,
                           const float *logits, const int32_t *index, const float *weight, size_t rows,
                           uint32_t experts, uint32_t k, bool normalize);
};

#endif
