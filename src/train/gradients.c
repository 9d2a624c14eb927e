#include "train/gradients.h"

#include <math.h>
#include <string.h>

#include "base/memory.h"
#include "kernels/table.h"
#include "train/device.h"

#define PIECE_ELEMENTS 16384

static void run_rows(const struct walsh_queue *q, size_t rows, size_t n, walsh_task *task, void *argument)
{
    walsh_pool_run_near(q->pool, rows, walsh_max(1, PIECE_ELEMENTS / walsh_max(n, 1)), task, argument);
}

/* --- norm --- */

struct norm {
    const struct walsh_kernels *kernels;
    float *dx;
    const float *dy, *x, *weight;
    size_t lddx, lddy, ldx, n;
    float eps;
    bool add;
};

static void norm_rows(void *argument, size_t begin, size_t end, unsigned worker)
{
    (void)worker;
    const struct norm *t = argument;
    for (size_t r = begin; r < end; r++)
        t->kernels->rms_norm_backward_f32(t->dx + r * t->lddx, t->dy + r * t->lddy, t->x + r * t->ldx,
                                          t->weight, t->n, t->eps, t->add);
}

void walsh_rms_norm_backward(const struct walsh_queue *q, float *dx, size_t lddx, const float *dy,
                             size_t lddy, const float *x, size_t ldx, const float *weight, size_t rows,
                             size_t n, float eps, bool add)
{
    if (walsh_train_device(q)) {
        q->ops->train->rms_norm_backward(q, dx, lddx, dy, lddy, x, ldx, weight, rows, n, eps, add);
        return;
    }
    struct norm t = {q->kernels, dx, dy, x, weight, lddx, lddy, ldx, n, eps, add};
    run_rows(q, rows, n, norm_rows, &t);
}

/* --- gate --- */

struct gate {
    const struct walsh_kernels *kernels;
    float *dgate, *dup;
    const float *dy, *g, *u;
    size_t n;
    const struct walsh_config *config;
};

#define PART 1024 /* elements whose exponentials are taken at once */

/* e[i] = exp(-|x[i]|) by the kernel of softmax, whose maximum is 0 then. */
static void exp_minus(const struct walsh_kernels *k, float *e, size_t n)
{
    float maximum = 0, sum = 0;
    for (size_t i = 0; i < n; i++) e[i] = -fabsf(e[i]);
    k->softmax_step_f32(e, n, 1, &maximum, &sum);
}

static float sigmoid(float x, float e) /* e = exp(-|x|) */
{
    return (x >= 0 ? 1.0f : e) / (1 + e);
}

/* gelu(g) = g s(2 v) with v = sqrt(2/pi) (g + 0.044715 g^3): its slope is s + 2 g s (1 - s) v'. */
static void gelu_part(const struct gate *t, size_t at, size_t n)
{
    const float root = 0.79788456080286535588f, cubic = 0.044715f;
    float e[PART];
    for (size_t i = 0; i < n; i++) {
        const float g = t->g[at + i];
        e[i] = 2 * root * (g + cubic * g * g * g);
    }
    exp_minus(t->kernels, e, n);
    for (size_t i = 0; i < n; i++) {
        const float g = t->g[at + i], u = t->u[at + i], dy = t->dy[at + i], s = sigmoid(g, e[i]);
        t->dgate[at + i] = dy * u * (s + 2 * g * s * (1 - s) * root * (1 + 3 * cubic * g * g));
        t->dup[at + i] = dy * g * s;
    }
}

/* y = g s (u + 1) with s = 1 / (1 + exp(-alpha g)), g and u clamped: the slope by g is s (1 + alpha g (1 - s)). */
static void clamped_part(const struct gate *t, size_t at, size_t n)
{
    const float alpha = (float)t->config->gate_alpha, limit = (float)t->config->gate_limit;
    float e[PART];
    for (size_t i = 0; i < n; i++) e[i] = alpha * fminf(t->g[at + i], limit);
    exp_minus(t->kernels, e, n);
    for (size_t i = 0; i < n; i++) {
        const float raw_g = t->g[at + i], raw_u = t->u[at + i], dy = t->dy[at + i], g = fminf(raw_g, limit),
                    u = fmaxf(fminf(raw_u, limit), -limit), s = sigmoid(g, e[i]);
        t->dgate[at + i] = raw_g <= limit ? dy * (u + 1) * s * (1 + alpha * g * (1 - s)) : 0;
        t->dup[at + i] = fabsf(raw_u) <= limit ? dy * g * s : 0;
    }
}

void walsh_gate_backward_row(const struct walsh_kernels *kernels, const struct walsh_config *config,
                             float *dgate, float *dup, const float *dy, const float *g, const float *u,
                             size_t n)
{
    const struct gate t = {kernels, dgate, dup, dy, g, u, n, config};
    for (size_t at = 0; at < n; at += PART) {
        const size_t part = walsh_min(PART, n - at);
        if (config->gate == WALSH_GATE_CLAMPED)
            clamped_part(&t, at, part);
        else if (config->gate == WALSH_GATE_GELU_TANH)
            gelu_part(&t, at, part);
        else
            kernels->swiglu_backward_f32(dgate + at, dup + at, dy + at, g + at, u + at, part);
    }
}

static void gate_rows(void *argument, size_t begin, size_t end, unsigned worker)
{
    (void)worker;
    const struct gate *t = argument;
    const size_t at = begin * t->n;
    walsh_gate_backward_row(t->kernels, t->config, t->dgate + at, t->dup + at, t->dy + at, t->g + at,
                            t->u + at, (end - begin) * t->n);
}

void walsh_gate_backward(const struct walsh_queue *q, const struct walsh_config *config, float *dgate,
                         float *dup, const float *dy, const float *g, const float *u, size_t rows, size_t n)
{
    if (walsh_train_device(q)) {
        const enum walsh_train_gate kind = config->gate == WALSH_GATE_CLAMPED     ? WALSH_TRAIN_CLAMPED
                                           : config->gate == WALSH_GATE_GELU_TANH ? WALSH_TRAIN_GEGLU
                                                                                  : WALSH_TRAIN_SWIGLU;
        q->ops->train->gate_backward(q, kind, (float)config->gate_alpha, (float)config->gate_limit, dgate,
                                     dup, dy, g, u, rows * n);
        return;
    }
    struct gate t = {q->kernels, dgate, dup, dy, g, u, n, config};
    run_rows(q, rows, n, gate_rows, &t);
}

/* --- positions --- */

void walsh_rope_backward(const struct walsh_queue *q, float *dx, size_t ldx, const uint32_t *positions,
                         size_t rows, uint32_t heads, uint32_t head_dim, uint32_t rotated,
                         const float *cosine, const float *sine_negated)
{
    q->ops->rope(q, dx, ldx, positions, rows, heads, head_dim, rotated, cosine, sine_negated);
}

/* --- loss --- */

struct cross_entropy {
    const struct walsh_kernels *kernels;
    float *logits;
    const int32_t *targets;
    size_t vocab;
    float weight, cap;
    bool gradient;
    double *loss;
    uint16_t *rounded;
    size_t ld_rounded;
};

static void round_row(const struct cross_entropy *t, size_t r, const float *x)
{
    if (!t->rounded) return;
    uint16_t *to = t->rounded + r * t->ld_rounded;
    t->kernels->bf16_from_f32(to, x, t->vocab);
    memset(to + t->vocab, 0, (t->ld_rounded - t->vocab) * sizeof *to);
}

static void cross_entropy_rows(void *argument, size_t begin, size_t end, unsigned worker)
{
    (void)worker;
    const struct cross_entropy *t = argument;
    for (size_t r = begin; r < end; r++) {
        float *x = t->logits + r * t->vocab, maximum = -INFINITY, sum = 0;
        const size_t target = (size_t)t->targets[r];
        const float wanted = x[target];
        if (t->cap != 0 && t->gradient) {
            /* the cap's slope needs the logits after their exponentials are taken: 1 - (y / cap)^2 */
            float top = x[0];
            for (size_t j = 1; j < t->vocab; j++) top = fmaxf(top, x[j]);
            double total = 0;
            for (size_t j = 0; j < t->vocab; j++) total += exp((double)x[j] - (double)top);
            t->loss[r] = log(total) + (double)top - (double)wanted;
            for (size_t j = 0; j < t->vocab; j++) {
                const double y = (double)x[j], p = exp(y - (double)top) / total - (j == target ? 1 : 0);
                x[j] = (float)((double)t->weight * p * (1 - y / (double)t->cap * (y / (double)t->cap)));
            }
            round_row(t, r, x);
            continue;
        }
        t->kernels->softmax_step_f32(x, t->vocab, 1, &maximum, &sum);
        t->loss[r] = log((double)sum) + (double)maximum - (double)wanted;
        if (!t->gradient) continue;
        t->kernels->scale_f32(x, t->weight / sum, t->vocab);
        x[target] -= t->weight;
        round_row(t, r, x);
    }
}

void walsh_cross_entropy(const struct walsh_queue *q, float *logits, const int32_t *targets, size_t rows,
                         size_t vocab, float weight, float cap, bool gradient, double *loss,
                         uint16_t *rounded, size_t ld_rounded)
{
    if (walsh_train_device(q)) {
        q->ops->train->cross_entropy(q, logits, targets, rows, vocab, weight, cap, gradient, loss);
        return;
    }
    struct cross_entropy t = {q->kernels, logits,   targets, vocab,   weight,
                              cap,        gradient, loss,    rounded, ld_rounded};
    run_rows(q, rows, vocab, cross_entropy_rows, &t);
}

/* --- routing --- */

struct route {
    float *dlogits;
    const float *dweight, *logits, *weight;
    const int32_t *index;
    uint32_t experts, k;
    bool normalize;
};

static void route_row(const struct route *t, float *dlogits, const float *dweight, const float *logits,
                      const float *weight, const int32_t *index)
{
    double mean = 0; /* of the weights' gradients under the weights */
    for (uint32_t j = 0; j < t->k; j++) mean += (double)weight[j] * (double)dweight[j];
    if (t->normalize) { /* a softmax over the chosen logits alone */
        memset(dlogits, 0, t->experts * sizeof *dlogits);
        for (uint32_t j = 0; j < t->k; j++)
            dlogits[index[j]] = (float)((double)weight[j] * ((double)dweight[j] - mean));
        return;
    }
    float largest =
        -INFINITY; /* in f32, as the logits are: gcc 12 for aarch64 breaks on a wider maximum here */
    double sum = 0;
    for (uint32_t e = 0; e < t->experts; e++) largest = fmaxf(largest, logits[e]);
    const double top = (double)largest;
    for (uint32_t e = 0; e < t->experts; e++) sum += exp((double)logits[e] - top);
    for (uint32_t e = 0; e < t->experts; e++)
        dlogits[e] = (float)(-exp((double)logits[e] - top) / sum * mean);
    for (uint32_t j = 0; j < t->k; j++) dlogits[index[j]] += weight[j] * dweight[j];
}

static void route_rows(void *argument, size_t begin, size_t end, unsigned worker)
{
    (void)worker;
    const struct route *t = argument;
    for (size_t r = begin; r < end; r++)
        route_row(t, t->dlogits + r * t->experts, t->dweight + r * t->k, t->logits + r * t->experts,
                  t->weight + r * t->k, t->index + r * t->k);
}

void walsh_route_backward(const struct walsh_queue *q, float *dlogits, const float *dweight,
                          const float *logits, const int32_t *index, const float *weight, size_t rows,
                          uint32_t experts, uint32_t k, bool normalize)
{
    if (walsh_train_device(q)) {
        q->ops->train->route_backward(q, dlogits, dweight, logits, index, weight, rows, experts, k,
                                      normalize);
        return;
    }
    struct route t = {dlogits, dweight, logits, weight, index, experts, k, normalize};
    run_rows(q, rows, experts, route_rows, &t);
}
