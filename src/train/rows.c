#include "train/rows.h"

#include <string.h>

#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/split.h"
#include "kernels/table.h"
#include "train/device.h"
#include "train/gradients.h"

/* A worker's scratch: two rows that nobody wants in f32. */
#define ROW_BYTES (WALSH_MAX_COLUMNS * sizeof(float))
_Static_assert(2 * ROW_BYTES <= WALSH_SCRATCH_BYTES, "the rows of a worker");

struct rows {
    const struct walsh_queue *q;
    struct walsh_row_output to, second;
    const struct walsh_config *config;
    float *sum;
    const float *x, *d, *weight, *u;
    size_t ldx, n;
    float eps;
};

static float *scratch_row(const struct rows *t, unsigned worker, size_t which)
{
    return (float *)(void *)(t->q->scratch[worker] + which * ROW_BYTES);
}

/* Where row r is computed in f32. */
static float *place(const struct walsh_row_output *to, size_t r, float *scratch)
{
    return to->y ? to->y + r * to->ldy : scratch;
}

static void finish(const struct walsh_kernels *k, const struct walsh_row_output *to, size_t r, const float *x,
                   size_t n)
{
    if (!to->rounded) return;
    uint16_t *rounded = to->rounded + r * to->ld_rounded;
    k->bf16_from_f32(rounded, x, n);
    memset(rounded + n, 0, (to->ld_rounded - n) * sizeof *rounded);
}

/* On a device, op behind op: rows that stand in f32 there are rounded as products round them. */
static void finish_on_device(const struct walsh_queue *q, const struct walsh_row_output *to, const float *x,
                             size_t ldx, size_t rows, size_t n)
{
    const struct walsh_rotation none = {.size = (uint32_t)n, .blocks = {.padded = (uint32_t)n}};
    struct walsh_activations a = {.type = WALSH_ACTIVATION_BF16,
                                  .rows = rows,
                                  .cols = n,
                                  .stride = to->ld_rounded,
                                  .data = to->rounded};
    if (to->rounded) q->ops->prepare(q, &a, x, ldx, &none);
}

static void round_rows(void *argument, size_t begin, size_t end, unsigned worker)
{
    (void)worker;
    const struct rows *t = argument;
    for (size_t r = begin; r < end; r++) finish(t->q->kernels, &t->to, r, t->x + r * t->ldx, t->n);
}

void walsh_rows_round(const struct walsh_queue *q, const struct walsh_row_output *to, const float *x,
                      size_t ldx, size_t rows, size_t n)
{
    struct rows t = {.q = q, .to = *to, .x = x, .ldx = ldx, .n = n};
    if (walsh_train_device(q)) {
        finish_on_device(q, to, x, ldx, rows, n);
        return;
    }
    walsh_run_rows(q, rows, n, round_rows, &t);
}

static void norm_rows(void *argument, size_t begin, size_t end, unsigned worker)
{
    const struct rows *t = argument;
    const struct walsh_kernels *k = t->q->kernels;
    for (size_t r = begin; r < end; r++) {
        const float *x = t->x + r * t->n;
        float *y = place(&t->to, r, scratch_row(t, worker, 0));
        if (t->d) {
            float *sum = t->sum + r * t->n;
            if (sum != x) memcpy(sum, x, t->n * sizeof *sum);
            k->add_f32(sum, t->d + r * t->n, t->n);
            x = sum;
        }
        k->rms_norm_f32(y, x, t->weight, t->n, t->eps);
        finish(k, &t->to, r, y, t->n);
    }
}

void walsh_rows_norm(const struct walsh_queue *q, const struct walsh_row_output *to, float *sum,
                     const float *x, const float *d, const float *weight, size_t rows, size_t n, float eps)
{
    struct rows t = {.q = q, .to = *to, .sum = sum, .x = x, .d = d, .weight = weight, .n = n, .eps = eps};
    if (walsh_train_device(q)) {
        if (d) q->ops->train->add_rows(q, sum, n, x, n, d, n, rows, n);
        q->ops->rms_norm(q, to->y, to->ldy, d ? sum : x, n, weight, rows, n, eps);
        finish_on_device(q, to, to->y, to->ldy, rows, n);
        return;
    }
    walsh_run_rows(q, rows, 2 * n, norm_rows, &t);
}

static void gate_rows(void *argument, size_t begin, size_t end, unsigned worker)
{
    const struct rows *t = argument;
    const struct walsh_kernels *k = t->q->kernels;
    const struct walsh_config *c = t->config;
    for (size_t r = begin; r < end; r++) {
        const float *g = t->x + r * t->n, *u = t->u + r * t->n;
        float *y = place(&t->to, r, scratch_row(t, worker, 0));
        if (c->gate == WALSH_GATE_CLAMPED)
            k->clamped_swiglu_f32(y, g, u, t->n, (float)c->gate_alpha, (float)c->gate_limit);
        else if (c->gate == WALSH_GATE_GELU_TANH)
            k->geglu_f32(y, g, u, t->n);
        else
            k->swiglu_f32(y, g, u, t->n);
        finish(k, &t->to, r, y, t->n);
    }
}

static void gate_on_device(const struct walsh_queue *q, const struct walsh_row_output *to,
                           const struct walsh_config *c, const float *g, const float *u, size_t rows,
                           size_t n)
{
    if (c->gate == WALSH_GATE_CLAMPED)
        q->ops->clamped_swiglu(q, to->y, to->ldy, g, u, n, rows, n, (float)c->gate_alpha,
                               (float)c->gate_limit);
    else if (c->gate == WALSH_GATE_GELU_TANH)
        q->ops->geglu(q, to->y, to->ldy, g, u, n, rows, n);
    else
        q->ops->swiglu(q, to->y, to->ldy, g, u, n, rows, n);
    finish_on_device(q, to, to->y, to->ldy, rows, n);
}

void walsh_rows_gate(const struct walsh_queue *q, const struct walsh_row_output *to,
                     const struct walsh_config *config, const float *g, const float *u, size_t rows, size_t n)
{
    if (walsh_train_device(q)) {
        gate_on_device(q, to, config, g, u, rows, n);
        return;
    }
    struct rows t = {.q = q, .to = *to, .config = config, .x = g, .u = u, .n = n};
    walsh_run_rows(q, rows, 2 * n, gate_rows, &t);
}

static void gate_back_rows(void *argument, size_t begin, size_t end, unsigned worker)
{
    const struct rows *t = argument;
    const struct walsh_kernels *k = t->q->kernels;
    for (size_t r = begin; r < end; r++) {
        const size_t at = r * t->n;
        float *dgate = place(&t->to, r, scratch_row(t, worker, 0)),
              *dup = place(&t->second, r, scratch_row(t, worker, 1));
        walsh_gate_backward_row(k, t->config, dgate, dup, t->d + at, t->x + at, t->u + at, t->n);
        finish(k, &t->to, r, dgate, t->n);
        finish(k, &t->second, r, dup, t->n);
    }
}

void walsh_rows_gate_backward(const struct walsh_queue *q, const struct walsh_row_output *dgate,
                              const struct walsh_row_output *dup, const struct walsh_config *config,
                              const float *dy, const float *g, const float *u, size_t rows, size_t n)
{
    struct rows t = {.q = q, .to = *dgate, .second = *dup, .config = config, .x = g, .d = dy, .u = u, .n = n};
    if (walsh_train_device(q)) {
        walsh_gate_backward(q, config, dgate->y, dup->y, dy, g, u, rows, n);
        finish_on_device(q, dgate, dgate->y, dgate->ldy, rows, n);
        finish_on_device(q, dup, dup->y, dup->ldy, rows, n);
        return;
    }
    walsh_run_rows(q, rows, 4 * n, gate_back_rows, &t);
}

static void norm_back_rows(void *argument, size_t begin, size_t end, unsigned worker)
{
    (void)worker;
    const struct rows *t = argument;
    const struct walsh_kernels *k = t->q->kernels;
    for (size_t r = begin; r < end; r++) {
        float *dx = t->sum + r * t->n;
        k->rms_norm_backward_f32(dx, t->d + r * t->n, t->x + r * t->n, t->weight, t->n, t->eps, true);
        finish(k, &t->to, r, dx, t->n);
    }
}

void walsh_rows_norm_backward(const struct walsh_queue *q, uint16_t *rounded, size_t ld_rounded, float *dx,
                              const float *dy, const float *x, const float *weight, size_t rows, size_t n,
                              float eps)
{
    struct rows t = {.q = q,
                     .to = {.rounded = rounded, .ld_rounded = ld_rounded},
                     .sum = dx,
                     .x = x,
                     .d = dy,
                     .weight = weight,
                     .n = n,
                     .eps = eps};
    if (walsh_train_device(q)) {
        walsh_rms_norm_backward(q, dx, n, dy, n, x, n, weight, rows, n, eps, true);
        finish_on_device(q, &t.to, dx, n, rows, n);
        return;
    }
    walsh_run_rows(q, rows, 2 * n, norm_back_rows, &t);
}
