/* The ops of training on a device (kernels/train.h) against plain loops in double. The CPU's queue has none: its training is
 * checked in tests/unit/test_train_*.c. */
#include <math.h>
#include <string.h>

#include "base/memory.h"
#include "base/scalar.h"
#include "block_data.h"
#include "checker.h"
#include "kernels/train.h"
#include "product_data.h"

static float *normals(struct check *c, size_t n)
{
    float *x = check_alloc(c, n * sizeof *x, check_misalign(c, sizeof *x));
    check_fill_normal(c, x, n);
    return x;
}

static float *copy(struct check *c, const float *x, size_t n)
{
    float *y = check_alloc_private(c, n * sizeof *y);
    memcpy(y, x, n * sizeof *y);
    return y;
}

/* Numbers of a type, and what they are; 16-byte aligned in even rounds. */
struct numbers {
    enum walsh_format type;
    void *data;
    float *value;
};
static struct numbers numbers(struct check *c, enum walsh_format type, size_t n)
{
    struct numbers x = {type, NULL, check_alloc_private(c, n * sizeof(float))};
    check_fill_normal(c, x.value, n);
    if (type == WALSH_FORMAT_F32) {
        x.data = check_alloc(c, n * sizeof(float), check_misalign(c, sizeof(float)));
        memcpy(x.data, x.value, n * sizeof(float));
        return x;
    }
    uint16_t *half = x.data = check_alloc(c, n * sizeof *half, check_misalign(c, sizeof *half));
    for (size_t i = 0; i < n; i++) {
        half[i] = type == WALSH_FORMAT_F16 ? walsh_f16_from_f32(x.value[i]) : walsh_bf16_from_f32(x.value[i]);
        x.value[i] = type == WALSH_FORMAT_F16 ? walsh_f32_from_f16(half[i]) : walsh_f32_from_bf16(half[i]);
    }
    return x;
}

/* --- products --- */

static double element(const struct numbers *x, bool turned, size_t ld, size_t i, size_t k)
{
    return (double)x->value[turned ? k * ld + i : i * ld + k];
}

/* kind 0: b turned, 1: neither, 2: a turned */
static void check_multiply(struct check *c, const struct walsh_queue *q, int kind, bool narrow, size_t m,
                           size_t n, size_t k)
{
    static const enum walsh_format types[] = {WALSH_FORMAT_F32, WALSH_FORMAT_F16, WALSH_FORMAT_BF16};
    struct walsh_matrix_product p = {.m = m,
                                     .n = n,
                                     .k = k,
                                     .a_turned = kind == 2,
                                     .b_turned = kind == 0,
                                     .alpha = c->round % 2 ? 0.37f : 1};
    p.lda = walsh_round_up(p.a_turned ? m : k, 8) + (c->round % 2 ? 3 : 0);
    p.ldb = walsh_round_up(p.b_turned ? k : n, 8);
    p.ldc = n + 1;
    p.a_type = narrow ? WALSH_FORMAT_BF16 : WALSH_FORMAT_F32;
    p.b_type = narrow ? WALSH_FORMAT_BF16 : types[check_below(c, 3)];
    p.add = c->round >= 2;
    p.c_type = !p.add && check_below(c, 2) ? WALSH_FORMAT_BF16 : WALSH_FORMAT_F32;
    const struct numbers a = numbers(c, p.a_type, (p.a_turned ? k : m) * p.lda),
                         b = numbers(c, p.b_type, (p.b_turned ? n : k) * p.ldb),
                         y = numbers(c, p.c_type, m * p.ldc);
    const size_t bytes = m * p.ldc * (p.c_type == WALSH_FORMAT_F32 ? 4 : 2);
    void *first = check_alloc_private(c, bytes);
    memcpy(first, y.data, bytes);
    p.a = a.data, p.b = b.data, p.c = y.data;
    float *want = check_alloc_private(c, n * sizeof *want),
          *magnitude = check_alloc_private(c, n * sizeof *want),
          *got = check_alloc_private(c, n * sizeof *got);
    q->ops->train->multiply(q, &p);
    for (size_t i = 0; i < m; i++) {
        for (size_t j = 0; j < n; j++) {
            double sum = 0, absolute = 0;
            for (size_t d = 0; d < k; d++) {
                const double t = element(&a, p.a_turned, p.lda, i, d) * element(&b, !p.b_turned, p.ldb, j, d);
                sum += t, absolute += fabs(t);
            }
            const double before = p.add ? (double)y.value[i * p.ldc + j] : 0;
            want[j] = (float)(before + (double)p.alpha * sum);
            magnitude[j] = (float)(fabs(before) + (double)p.alpha * absolute);
            if (p.c_type == WALSH_FORMAT_BF16) magnitude[j] += fabsf(want[j]) * 0x1p14f;
            got[j] = p.c_type == WALSH_FORMAT_F32 ? ((float *)y.data)[i * p.ldc + j]
                                                  : walsh_f32_from_bf16(((uint16_t *)y.data)[i * p.ldc + j]);
        }
        check_close_f32(c, "multiply", want, got, magnitude, n, 8);
    }
    if (p.a_turned || m < 2) return;
    /* the first rows alone have the same bits */
    void *whole = check_alloc_private(c, bytes);
    memcpy(whole, y.data, bytes);
    memcpy(y.data, first, bytes);
    p.m = m / 2;
    q->ops->train->multiply(q, &p);
    check_exact_bytes(c, "rows of a product", whole, y.data, bytes / m * p.m);
}

static void check_decode(struct check *c, const struct walsh_queue *q, const struct walsh_weights *w)
{
    const size_t n = (size_t)w->rows * w->cols;
    float *want = check_alloc_private(c, n * sizeof *want), *got = check_alloc(c, n * sizeof *got, 0);
    uint16_t *want_narrow = check_alloc_private(c, n * sizeof *want_narrow),
             *got_narrow = check_alloc(c, n * sizeof *got_narrow, 0);
    walsh_weights_decode_f32(w, 0, w->rows, want, w->cols);
    walsh_weights_decode_bf16(w, 0, w->rows, want_narrow, w->cols);
    q->ops->train->decode(q, w, WALSH_FORMAT_F32, got);
    q->ops->train->decode(q, w, WALSH_FORMAT_BF16, got_narrow);
    check_exact_f32(c, "decode", want, got, n);
    check_exact_bytes(c, "decode to bf16", want_narrow, got_narrow, n * sizeof *want_narrow);
}

static void check_decodes(struct check *c, const struct walsh_queue *q)
{
    static const struct product_shape shapes[] = {{WALSH_FORMAT_E8P, "P", 96, 256},
                                                  {WALSH_FORMAT_E8P, "PB", 80, 320},
                                                  {WALSH_FORMAT_E8P, "PP", 16, 1024},
                                                  {WALSH_FORMAT_E8P, "PPPB", 48, 128}};
    const struct walsh_weights w = product_weights(c, &shapes[c->round % 4]);
    check_decode(c, q, &w);
    for (size_t i = 0; i < BLOCK_KINDS; i++) {
        const struct walsh_weights b = block_weights(c, &block_kinds[i], 35 + check_below(c, 20), 256);
        check_decode(c, q, &b);
    }
}

/* --- rows --- */

static void check_norm(struct check *c, const struct walsh_queue *q, size_t rows, size_t n, bool add,
                       bool in_place)
{
    const size_t ld = n + 3, total = rows * ld;
    float *x = normals(c, total), *dy = normals(c, total), *weight = normals(c, n),
          *dx = in_place ? dy : normals(c, total), *given = copy(c, dy, total), *before = copy(c, dx, total);
    float *want = copy(c, dx, total), *magnitude = copy(c, dx, total);
    q->ops->train->rms_norm_backward(q, dx, ld, in_place ? dx : dy, ld, x, ld, weight, rows, n, 1e-5f, add);
    for (size_t r = 0; r < rows; r++) {
        double squares = 0, dot = 0;
        for (size_t i = r * ld; i < r * ld + n; i++) {
            squares += (double)x[i] * (double)x[i];
            dot += (double)weight[i - r * ld] * (double)given[i] * (double)x[i];
        }
        const double scale = 1 / sqrt(squares / (double)n + (double)1e-5f);
        for (size_t i = r * ld; i < r * ld + n; i++) {
            const double direct = scale * (double)weight[i - r * ld] * (double)given[i],
                         along = scale * scale * scale * dot / (double)n * (double)x[i];
            want[i] = (float)((add ? (double)before[i] : 0) + direct - along);
            magnitude[i] = (float)(fabs((double)before[i]) + fabs(direct) + 4 * fabs(along) + 1);
        }
        check_close_f32(c, "rms_norm_backward", want + r * ld, dx + r * ld, magnitude + r * ld, n, 8);
    }
}

static void check_gate(struct check *c, const struct walsh_queue *q, enum walsh_train_gate kind, size_t n)
{
    const double limit = 1.5, alpha = kind == WALSH_TRAIN_CLAMPED ? (double)1.702f : 1;
    float *g = normals(c, n), *u = normals(c, n), *dy = normals(c, n), *dgate = normals(c, n),
          *dup = normals(c, n);
    float *want[2] = {copy(c, g, n), copy(c, g, n)}, *magnitude = copy(c, g, n);
    q->ops->train->gate_backward(q, kind, 1.702f, 1.5f, dgate, dup, dy, g, u, n);
    for (size_t i = 0; i < n; i++) {
        const bool clamped = kind == WALSH_TRAIN_CLAMPED;
        const double a = clamped ? fmin((double)g[i], limit) : (double)g[i],
                     b = clamped ? 1 + fmax(fmin((double)u[i], limit), -limit) : (double)u[i];
        const double root = sqrt(2 / 3.14159265358979323846), v = root * (a + .044715 * a * a * a);
        const bool gelu = kind == WALSH_TRAIN_GEGLU;
        const double s = 1 / (1 + exp(gelu ? -2 * v : -alpha * a));
        const double slope =
            gelu ? s + 2 * a * s * (1 - s) * root * (1 + 3 * .044715 * a * a) : s * (1 + alpha * a * (1 - s));
        want[0][i] = (float)(clamped && (double)g[i] > limit ? 0 : (double)dy[i] * b * slope);
        want[1][i] = (float)(clamped && fabs((double)u[i]) > limit ? 0 : (double)dy[i] * a * s);
        magnitude[i] = fabsf(dy[i]) * (float)(1 + a * a) * (float)(1 + fabs(b));
    }
    check_close_f32(c, "a gate's gradient", want[0], dgate, magnitude, n, 16);
    check_close_f32(c, "the gradient beside a gate", want[1], dup, magnitude, n, 16);
}

static void check_moves(struct check *c, const struct walsh_queue *q)
{
    enum { ROWS = 9, N = 300, LD = 305 };
    float *to = normals(c, ROWS * LD), *from = normals(c, ROWS * N), *want = copy(c, to, ROWS * LD),
          *y = normals(c, ROWS * LD);
    uint32_t index[ROWS];
    for (uint32_t i = 0; i < ROWS; i++) index[i] = (i * 4 + c->round) % ROWS;
    for (size_t i = 0; i < ROWS; i++)
        for (size_t j = 0; j < N; j++) want[index[i] * LD + j] = c->round % 2 ? 0 : from[i * N + j];
    q->ops->train->scatter(q, to, LD, c->round % 2 ? NULL : from, N, index, ROWS, N);
    check_exact_f32(c, "scatter", want, to, ROWS * LD);
    for (size_t i = 0; i < ROWS; i++)
        for (size_t j = 0; j < N; j++)
            want[i * LD + j] = (float)((double)y[i * LD + j] + (double)from[i * N + j]);
    q->ops->train->add_rows(q, y, LD, y, LD, from, N, ROWS, N);
    for (size_t i = 0; i < ROWS; i++) check_exact_f32(c, "add_rows", want + i * LD, y + i * LD, N);
}

static void check_loss(struct check *c, const struct walsh_queue *q, size_t vocab, bool gradient, float cap)
{
    enum { ROWS = 5 };
    float *logits = normals(c, ROWS * vocab), *before = copy(c, logits, ROWS * vocab),
          *want = copy(c, logits, ROWS * vocab), *magnitude = copy(c, logits, ROWS * vocab);
    double loss[ROWS];
    int32_t targets[ROWS];
    for (size_t r = 0; r < ROWS; r++) targets[r] = (int32_t)check_below(c, vocab);
    q->ops->train->cross_entropy(q, logits, targets, ROWS, vocab, 0.125f, cap, gradient, loss);
    for (size_t r = 0; r < ROWS; r++) {
        double top = -INFINITY, sum = 0;
        for (size_t j = 0; j < vocab; j++) top = fmax(top, (double)before[r * vocab + j]);
        for (size_t j = 0; j < vocab; j++) sum += exp((double)before[r * vocab + j] - top);
        const double expected = log(sum) + top - (double)before[r * vocab + (size_t)targets[r]];
        if (!(fabs(loss[r] - expected) <= 1e-6 * (fabs(top) + 4)))
            check_fail(c, "row %zu of %zu: loss %.9g, expected %.9g", r, vocab, loss[r], expected);
        for (size_t j = 0; j < vocab; j++) {
            const double y = (double)before[r * vocab + j], p = exp(y - top) / sum;
            const bool target = j == (size_t)targets[r];
            want[r * vocab + j] =
                (float)(.125 * (p - target) * (cap != 0 ? 1 - y / (double)cap * (y / (double)cap) : 1));
            magnitude[r * vocab + j] = (float)(.125 * (p + target));
        }
    }
    if (gradient) check_close_f32(c, "cross_entropy", want, logits, magnitude, ROWS * vocab, 32);
}

static void check_adamw(struct check *c, const struct walsh_queue *q, size_t n, bool finite)
{
    float *values = normals(c, n), *m = normals(c, n), *v = normals(c, n), *g = normals(c, n);
    for (size_t i = 0; i < n; i++) v[i] = fabsf(v[i]);
    if (!finite) g[n / 2] = NAN;
    float *want[3] = {copy(c, values, n), copy(c, m, n), copy(c, v, n)};
    double length = -1, squares = 0;
    const struct walsh_adamw_update u = {values,
                                         m,
                                         v,
                                         g,
                                         n,
                                         1e-3,
                                         .9,
                                         .999,
                                         1e-8,
                                         .01,
                                         c->round % 2 ? .5 : 0,
                                         1 / (1 - pow(.9, 3)),
                                         1 / (1 - pow(.999, 3)),
                                         &length};
    q->ops->train->adamw(q, &u);
    for (size_t i = 0; i < n; i++) squares += (double)g[i] * (double)g[i];
    if (finite ? !(fabs(length - sqrt(squares)) <= 1e-12 * length) : isfinite(length))
        check_fail(c, "adamw: a norm of %.17g, expected %.17g", length, sqrt(squares));
    const double factor = u.clip > 0 && length > u.clip ? u.clip / length : 1;
    for (size_t i = 0; finite && i < n; i++) { /* each operation rounded, as train/optimizer.c has it */
        const double gradient = factor * (double)g[i];
        const double mean = u.beta1 * (double)want[1][i] + (1 - u.beta1) * gradient;
        const double square = u.beta2 * (double)want[2][i] + (1 - u.beta2) * gradient * gradient;
        const double value = (double)want[0][i] * (1 - u.rate * u.weight_decay);
        want[1][i] = (float)mean;
        want[2][i] = (float)square;
        want[0][i] =
            (float)(value - u.rate * (mean * u.correction1) / (sqrt(square * u.correction2) + u.epsilon));
    }
    check_exact_f32(c, "adamw: values", want[0], values, n);
    check_exact_f32(c, "adamw: m", want[1], m, n);
    check_exact_f32(c, "adamw: v", want[2], v, n);
}

/* --- mixtures of experts --- */

static void check_slots(struct check *c, const struct walsh_queue *q)
{
    enum { ROWS = 13, K = 3, ALL = ROWS * K };
    const size_t n = 1 + check_below(c, 700);
    uint32_t slot[ALL];
    for (uint32_t i = 0; i < ALL; i++) slot[i] = (i * 7 + c->round) % ALL;
    const struct walsh_train_slots s = {slot, ROWS, K, n};
    float *d = normals(c, ROWS * n), *y = normals(c, ALL * n), *weight = normals(c, ALL),
          *to = normals(c, ALL * n), *dweight = normals(c, ALL), *sum = normals(c, ROWS * n),
          *want = copy(c, to, ALL * n), *dots = copy(c, weight, ALL), *magnitude = copy(c, weight, ALL);
    q->ops->train->spread(q, &s, to, dweight, d, y, weight);
    for (size_t i = 0; i < ALL; i++) {
        double dot = 0, absolute = 0;
        for (size_t j = 0; j < n; j++) {
            const double t = (double)d[i / K * n + j] * (double)y[slot[i] * n + j];
            dot += t, absolute += fabs(t);
            want[slot[i] * n + j] = weight[i] * d[i / K * n + j];
        }
        dots[i] = (float)dot, magnitude[i] = (float)absolute;
    }
    check_exact_f32(c, "spread", want, to, ALL * n);
    check_close_f32(c, "a weight's gradient", dots, dweight, magnitude, ALL, 8);
    for (int weighted = 0; weighted < 2; weighted++) {
        q->ops->train->collect(q, &s, sum, y, weighted ? weight : NULL);
        for (size_t r = 0; r < ROWS; r++)
            for (size_t j = 0; j < n; j++) {
                float total = 0;
                for (size_t i = r * K; i < (r + 1) * K; i++) {
                    const float t = weighted ? weight[i] * y[slot[i] * n + j] : y[slot[i] * n + j];
                    total = i == r * K ? t : total + t;
                }
                want[r * n + j] = total;
            }
        check_exact_f32(c, "collect", want, sum, ROWS * n);
    }
}

static void check_route_backward(struct check *c, const struct walsh_queue *q, bool normalize)
{
    enum { ROWS = 40, EXPERTS = 17, K = 4 };
    float *logits = normals(c, ROWS * EXPERTS), *dweight = normals(c, ROWS * K),
          *weight = normals(c, ROWS * K), *dlogits = normals(c, ROWS * EXPERTS),
          *want = copy(c, dlogits, ROWS * EXPERTS), *magnitude = copy(c, dlogits, ROWS * EXPERTS);
    int32_t *index = check_alloc(c, ROWS * K * 4, 0);
    for (size_t r = 0; r < ROWS; r++) {
        double sum = 0, chosen = 0, mean = 0;
        for (size_t e = 0; e < EXPERTS; e++) sum += exp((double)logits[r * EXPERTS + e]);
        for (size_t j = 0; j < K; j++) { /* any experts will do */
            index[r * K + j] = (int32_t)((r + 4 * j) % EXPERTS);
            chosen += exp((double)logits[r * EXPERTS + (size_t)index[r * K + j]]);
        }
        for (size_t j = 0; j < K; j++) {
            const double own = exp((double)logits[r * EXPERTS + (size_t)index[r * K + j]]);
            weight[r * K + j] = (float)(own / (normalize ? chosen : sum));
            mean += (double)weight[r * K + j] * (double)dweight[r * K + j];
        }
        for (size_t e = 0; e < EXPERTS; e++) {
            want[r * EXPERTS + e] =
                (float)(normalize ? 0 : -exp((double)logits[r * EXPERTS + e]) / sum * mean);
            magnitude[r * EXPERTS + e] = 4;
        }
        for (size_t j = 0; j < K; j++)
            want[r * EXPERTS + (size_t)index[r * K + j]] +=
                (float)((double)weight[r * K + j] * ((double)dweight[r * K + j] - (normalize ? mean : 0)));
    }
    q->ops->train->route_backward(q, dlogits, dweight, logits, index, weight, ROWS, EXPERTS, K, normalize);
    check_close_f32(c, "route_backward", want, dlogits, magnitude, ROWS * EXPERTS, 2);
}

/* --- attention --- */

struct attention {
    struct walsh_attention_shape shape;
    struct walsh_train_attention t;
    size_t width, kv_width;
    double *dquery, *dkey, *dvalue;
    struct check *c;
};

/* One row of one head, forward and back; true unless the forward is wrong. */
static void attend(struct attention *a, size_t h, size_t i, double *p, double *score)
{
    const struct walsh_attention_shape *s = &a->shape;
    const struct walsh_train_attention *t = &a->t;
    const size_t dim = s->head_dim, kv = h / (s->heads / s->kv_heads) * dim, at = i * a->width + h * dim;
    const size_t low = s->window && i + 1 > t->first[i] + s->window ? i + 1 - s->window : t->first[i];
    const double cap = (double)s->soft_cap;
    double top = s->sinks ? (double)s->sinks[h] : -INFINITY, sum = 0, along = 0;
    for (size_t j = low; j <= i; j++) {
        score[j] = 0;
        for (size_t d = 0; d < dim; d++)
            score[j] += (double)t->query[at + d] * (double)t->key[j * a->kv_width + kv + d];
        score[j] *= (double)s->scale;
        if (cap != 0) score[j] = cap * tanh(score[j] / cap);
        top = fmax(top, score[j]);
    }
    for (size_t j = low; j <= i; j++) sum += p[j] = exp(score[j] - top);
    if (s->sinks) sum += exp((double)s->sinks[h] - top);
    if (!(fabs((double)t->lse[h * t->rows + i] - top - log(sum)) <= 2e-6 * (fabs(top) + 1)))
        check_fail(a->c, "attention: lse %g of row %zu, expected %g", (double)t->lse[h * t->rows + i], i,
                   top + log(sum));
    for (size_t d = 0; d < dim; d++) {
        double out = 0;
        for (size_t j = low; j <= i; j++) out += p[j] / sum * (double)t->value[j * a->kv_width + kv + d];
        if (!(fabs(out - (double)t->out[at + d]) <= 1e-5))
            check_fail(a->c, "attention: %g of row %zu, expected %g", (double)t->out[at + d], i, out);
        along += out * (double)t->dout[at + d];
    }
    for (size_t j = low; j <= i; j++) {
        double back = 0;
        p[j] /= sum;
        for (size_t d = 0; d < dim; d++) {
            back += (double)t->dout[at + d] * (double)t->value[j * a->kv_width + kv + d];
            a->dvalue[j * a->kv_width + kv + d] += p[j] * (double)t->dout[at + d];
        }
        const double damping = cap != 0 ? 1 - score[j] / cap * (score[j] / cap) : 1,
                     slope = p[j] * (back - along) * (double)s->scale * damping;
        for (size_t d = 0; d < dim; d++) {
            a->dquery[at + d] += slope * (double)t->key[j * a->kv_width + kv + d];
            a->dkey[j * a->kv_width + kv + d] += slope * (double)t->query[at + d];
        }
    }
}

static double *zeros(struct check *c, size_t n)
{
    double *x = check_alloc_private(c, n * sizeof *x);
    memset(x, 0, n * sizeof *x);
    return x;
}

static void compare(struct check *c, const char *what, const double *want, const float *got, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (!(fabs(want[i] - (double)got[i]) <= 5e-5)) {
            check_fail(c, "%s: %g at %zu, expected %g", what, (double)got[i], i, want[i]);
            return;
        }
}

static void check_attention(struct check *c, const struct walsh_queue *q, uint32_t dim, size_t rows)
{
    const uint32_t kv_heads = 1 + (uint32_t)check_below(c, 2),
                   heads = kv_heads * (1 + (uint32_t)check_below(c, 3));
    struct attention a = {.c = c,
                          .shape = {.heads = heads,
                                    .kv_heads = kv_heads,
                                    .head_dim = dim,
                                    .scale = (float)(1 / sqrt(dim)),
                                    .window = c->round == 1 ? 1 + (uint32_t)check_below(c, 80) : 0,
                                    .soft_cap = c->round == 2 ? 5 : 0,
                                    .sinks = c->round == 3 ? normals(c, heads) : NULL},
                          .width = (size_t)heads * dim,
                          .kv_width = (size_t)kv_heads * dim};
    uint32_t *first = check_alloc(c, rows * 4, 0), *end = check_alloc(c, rows * 4, 0);
    for (size_t i = 0; i < rows;) {
        const size_t n = walsh_min(1 + check_below(c, 100), rows - i);
        for (size_t j = i; j < i + n; j++) first[j] = (uint32_t)i, end[j] = (uint32_t)(i + n);
        i += n;
    }
    const size_t wide = rows * a.width, narrow = rows * a.kv_width;
    a.t = (struct walsh_train_attention){.shape = &a.shape,
                                         .rows = rows,
                                         .first = first,
                                         .end = end,
                                         .query = normals(c, wide),
                                         .key = normals(c, narrow),
                                         .value = normals(c, narrow),
                                         .out = normals(c, wide),
                                         .lse = normals(c, rows * heads),
                                         .dout = normals(c, wide),
                                         .delta = normals(c, rows * heads),
                                         .dquery = normals(c, wide),
                                         .dkey = normals(c, narrow),
                                         .dvalue = normals(c, narrow)};
    q->ops->train->attention_forward(q, &a.t);
    q->ops->train->attention_backward(q, &a.t);
    a.dquery = zeros(c, wide), a.dkey = zeros(c, narrow), a.dvalue = zeros(c, narrow);
    double *p = zeros(c, rows), *score = zeros(c, rows);
    for (size_t h = 0; h < heads; h++)
        for (size_t i = 0; i < rows; i++) attend(&a, h, i, p, score);
    compare(c, "attention's dquery", a.dquery, a.t.dquery, wide);
    compare(c, "attention's dkey", a.dkey, a.t.dkey, narrow);
    compare(c, "attention's dvalue", a.dvalue, a.t.dvalue, narrow);
}

/* Against the formulas in double, over documents of which some are shorter than the taps. */
static void check_conv(struct check *c, const struct walsh_queue *q, uint32_t width, size_t rows)
{
    enum { TAPS = 3 };
    uint32_t *first = check_alloc(c, rows * 4, 0), *end = check_alloc(c, rows * 4, 0);
    for (size_t i = 0; i < rows;) {
        const size_t n = walsh_min(1 + check_below(c, 20), rows - i);
        for (size_t j = i; j < i + n; j++) first[j] = (uint32_t)i, end[j] = (uint32_t)(i + n);
        i += n;
    }
    const struct walsh_train_conv t = {.rows = rows,
                                       .taps = TAPS,
                                       .width = width,
                                       .first = first,
                                       .end = end,
                                       .weight = normals(c, TAPS * (size_t)width),
                                       .bias = c->round % 2 ? normals(c, width) : NULL,
                                       .x = normals(c, rows * 3 * width),
                                       .out = normals(c, rows * width),
                                       .dout = normals(c, rows * width),
                                       .dx = normals(c, rows * 3 * width)};
    q->ops->train->short_conv_forward(q, &t);
    q->ops->train->short_conv_backward(q, &t);
    double *out = zeros(c, rows * width), *dx = zeros(c, rows * 3 * width);
    for (size_t r = 0; r < rows; r++)
        for (size_t i = 0; i < width; i++) {
            const size_t at = r * 3 * width + i;
            const double dout = (double)t.dout[r * width + i];
            double sum = t.bias ? (double)t.bias[i] : 0;
            for (size_t back = 0; back < TAPS && back <= r - first[r]; back++) {
                const size_t from = at - back * 3 * width;
                const double w = (double)t.weight[(TAPS - 1 - back) * width + i], b = (double)t.x[from],
                             v = (double)t.x[from + 2 * width], du = w * dout * (double)t.x[at + width];
                sum += w * b * v;
                dx[from] += du * v;
                dx[from + 2 * width] += du * b;
            }
            out[r * width + i] = (double)t.x[at + width] * sum;
            dx[at + width] += dout * sum;
        }
    compare(c, "the convolution", out, t.out, rows * width);
    compare(c, "the convolution's gradient", dx, t.dx, rows * 3 * width);
}

void check_op_train(struct check *c, const struct check_queues *queues)
{
    const struct walsh_queue *q = &queues->best[0];
    if (!q->ops->train) return;
    for (int kind = 0; kind < 3; kind++)
        for (int narrow = 0; narrow < 2; narrow++) {
            check_multiply(c, q, kind, narrow, 1 + check_below(c, 150), 1 + check_below(c, 200),
                           1 + check_below(c, 200));
            check_multiply(c, q, kind, narrow, 1 + check_below(c, 30), 1 + check_below(c, 30),
                           1 + check_below(c, 90));
        }
    for (int narrow = 0; narrow < 2; narrow++) check_multiply(c, q, 2, narrow, 16, 70, 1500);
    check_decodes(c, q);
    check_norm(c, q, 7, 1 + check_below(c, 3000), c->round % 2, false);
    check_norm(c, q, 30, 64, false, true);
    for (int kind = 0; kind < 3; kind++)
        check_gate(c, q, (enum walsh_train_gate)kind, 1 + check_below(c, 2000));
    check_moves(c, q);
    check_loss(c, q, 1 + check_below(c, 5000), true, 0);
    check_loss(c, q, 1 + check_below(c, 500), c->round % 2, 30);
    check_slots(c, q);
    check_route_backward(c, q, c->round % 2);
    check_adamw(c, q, 1 + check_below(c, 70000), c->round != 3);
    check_conv(c, q, 1 + (uint32_t)check_below(c, 700), 1 + check_below(c, 90));
    static const uint32_t dims[CHECK_ROUNDS] = {64, 20, 128, 200};
    check_attention(c, q, dims[c->round], 1 + check_below(c, 180));
}
