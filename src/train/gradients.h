/* train/gradients: the gradients of the ops that treat rows one by one. f32, sums in fixed lanes; the pool
 * shares rows. May use model and below. */
#ifndef WALSH_TRAIN_GRADIENTS_H
#define WALSH_TRAIN_GRADIENTS_H

#include "checkpoint/config.h"
#include "kernels/kernels.h"

/* dx = or, with `add`, += of y = x / sqrt(mean(x^2) + eps) * weight, per row of n: with r = 1 /
 * sqrt(mean(x^2) + eps), dx = r (weight dy - x r^2 mean(weight dy x)). dx may be dy where not `add`. ld* are
 * row strides. */
void walsh_rms_norm_backward(const struct walsh_queue *q, float *dx, size_t lddx, const float *dy,
                             size_t lddy, const float *x, size_t ldx, const float *weight, size_t rows,
                             size_t n, float eps, bool add);

/* The gradients of y = gate(g) * u (kernels.h: swiglu, geglu, and clamped_swiglu with the config's gate_alpha
 * and gate_limit), rows of n, all with stride n: dgate and dup may be g and u, or dy. A clamp passes the
 * gradient of values at and within its limits. */
void walsh_gate_backward(const struct walsh_queue *q, const struct walsh_config *config, float *dgate,
                         float *dup, const float *dy, const float *g, const float *u, size_t rows, size_t n);

/* The same of one row. */
void walsh_gate_backward_row(const struct walsh_kernels *kernels, const struct walsh_config *config,
                             float *dgate, float *dup, const float *dy, const float *g, const float *u,
                             size_t n);

/* The rotary rotation backwards: by the negative angle. sine_negated as the op's table, negated. */
void walsh_rope_backward(const struct walsh_queue *q, float *dx, size_t ldx, const uint32_t *positions,
                         size_t rows, uint32_t heads, uint32_t head_dim, uint32_t rotated,
                         const float *cosine, const float *sine_negated);

/* Cross entropy of rows of logits with their targets: logits [rows][vocab] become `weight` times its
 * gradient, weight (softmax(logits) - onehot(target)); *loss [rows] = -log softmax(logits)[target]. `cap` as
 * the logits' soft cap, which the logits have passed already; 0: none. With `gradient` false logits are left
 * as scratch. The gradient goes to `rounded` [rows][ld_rounded] too, in bf16, 0 behind vocab, where not NULL (not on a device). */
void walsh_cross_entropy(const struct walsh_queue *q, float *logits, const int32_t *targets, size_t rows,
                         size_t vocab, float weight, float cap, bool gradient, double *loss,
                         uint16_t *rounded, size_t ld_rounded);

/* Back through a mixture's routing: dlogits [rows][experts] of dweight [rows][k], the gradient of the chosen
 * experts' weights, which are the largest of softmax(logits) and, with `normalize`, divided by their sum.
 * index, weight as `route` gave them. */
void walsh_route_backward(const struct walsh_queue *q, float *dlogits, const float *dweight,
                          const float *logits, const int32_t *index, const float *weight, size_t rows,
                          uint32_t experts, uint32_t k, bool normalize);

#endif
