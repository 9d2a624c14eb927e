/* The gradients of training's ops against central differences of the same ops' definitions, in double. Each
 * op's f32 forward, where training has one of its own, is held against that definition too. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/random.h"
#include "kernels/kernels.h"
#include "kernels/product.h"
#include "kernels/table.h"
#include "train/attention.h"
#include "train/gradients.h"
#include "train/lora.h"
#include "train/short_conv.h"

static struct walsh_queue queue;
static struct walsh_pool *pool;
static struct walsh_random rng;

static float *normals(size_t n, double scale)
{
    float *x = malloc(n * sizeof *x);
    for (size_t i = 0; i < n; i++) x[i] = (float)(scale * walsh_random_normal(&rng));
    return x;
}

/* A scalar function of several arrays, in double: sum over outputs of dy * y. */
typedef double objective_function(const void *user, const double *const *in);

#define INPUTS 6
struct problem {
    objective_function *f;
    const void *user;
    const float *in[INPUTS];
    size_t size[INPUTS], count;
};

/* Central differences of input `which` at up to 60 places against `gradient`, relative to the gradient's
 * largest element. */
static void check(const struct problem *p, size_t which, const float *gradient, const char *what)
{
    double *in[INPUTS], largest = 0, worst = 0;
    for (size_t i = 0; i < p->count; i++) {
        in[i] = malloc(p->size[i] * sizeof(double));
        for (size_t j = 0; j < p->size[i]; j++) in[i][j] = (double)p->in[i][j];
    }
    for (size_t j = 0; j < p->size[which]; j++) largest = fmax(largest, fabs((double)gradient[j]));
    assert_true(largest > 0);
    for (size_t k = 0; k < 60; k++) {
        const size_t j = (size_t)(walsh_random_u64(&rng) % p->size[which]);
        const double x = in[which][j], h = 1e-5 * fmax(1, fabs(x));
        in[which][j] = x + h;
        const double high = p->f(p->user, (const double *const *)in);
        in[which][j] = x - h;
        const double low = p->f(p->user, (const double *const *)in);
        in[which][j] = x;
        worst = fmax(worst, fabs((high - low) / (2 * h) - (double)gradient[j]) / largest);
    }
    if (worst > 2e-5) printf("%s: %.3g\n", what, worst);
    assert_true(worst <= 2e-5);
    for (size_t i = 0; i < p->count; i++) free(in[i]);
}

/* --- norm --- */

struct norm_case {
    size_t rows, n;
    const float *weight, *dy;
};

static double norm_objective(const void *user, const double *const *in)
{
    const struct norm_case *t = user;
    double sum = 0;
    for (size_t r = 0; r < t->rows; r++) {
        const double *x = in[0] + r * t->n;
        double squares = 0;
        for (size_t j = 0; j < t->n; j++) squares += x[j] * x[j];
        const double scale = 1 / sqrt(squares / (double)t->n + 1e-5);
        for (size_t j = 0; j < t->n; j++)
            sum += (double)t->dy[r * t->n + j] * x[j] * scale * (double)t->weight[j];
    }
    return sum;
}

static void test_norm(void **state)
{
    (void)state;
    const size_t rows = 3, n = 37;
    float *x = normals(rows * n, 1), *w = normals(n, 1), *dy = normals(rows * n, 1),
          *dx = normals(rows * n, 1);
    float *before = malloc(rows * n * sizeof *before);
    struct norm_case t = {rows, n, w, dy};
    struct problem p = {norm_objective, &t, {x}, {rows * n}, 1};
    memcpy(before, dx, rows * n * sizeof *dx);
    walsh_rms_norm_backward(&queue, dx, n, dy, n, x, n, w, rows, n, 1e-5f, true);
    for (size_t i = 0; i < rows * n; i++) dx[i] -= before[i];
    check(&p, 0, dx, "norm, added");
    walsh_rms_norm_backward(&queue, dx, n, dy, n, x, n, w, rows, n, 1e-5f, false);
    check(&p, 0, dx, "norm");
    free(x), free(w), free(dy), free(dx), free(before);
}

/* --- gate --- */

struct gate_case {
    const struct walsh_config *config;
    size_t n;
    const float *dy;
};

static double gate_objective(const void *user, const double *const *in)
{
    const struct gate_case *t = user;
    double sum = 0;
    for (size_t i = 0; i < t->n; i++) {
        double g = in[0][i], u = in[1][i], alpha = 1;
        const double v = sqrt(2 / 3.14159265358979323846) * (g + 0.044715 * g * g * g);
        if (t->config->gate == WALSH_GATE_CLAMPED) {
            g = fmin(g, t->config->gate_limit);
            u = 1 + fmax(fmin(u, t->config->gate_limit), -t->config->gate_limit);
            alpha = t->config->gate_alpha;
        }
        const double y =
            t->config->gate == WALSH_GATE_GELU_TANH ? g / 2 * (1 + tanh(v)) : g / (1 + exp(-alpha * g));
        sum += (double)t->dy[i] * y * u;
    }
    return sum;
}

static void test_gate(void **state)
{
    (void)state;
    const size_t rows = 3, n = 701;
    for (int kind = 0; kind < 3; kind++) {
        float *g = normals(rows * n, 3), *u = normals(rows * n, 1), *dy = normals(rows * n, 1);
        float *dg = normals(rows * n, 1), *du = normals(rows * n, 1);
        g[0] = 0;
        const struct walsh_config config = {
            .gate = (enum walsh_gate)kind, .gate_alpha = 1.702, .gate_limit = 1.5};
        struct gate_case t = {&config, rows * n, dy};
        struct problem p = {gate_objective, &t, {g, u}, {rows * n, rows * n}, 2};
        walsh_gate_backward(&queue, &config, dg, du, dy, g, u, rows, n);
        check(&p, 0, dg, "gate");
        check(&p, 1, du, "up");
        free(g), free(u), free(dy), free(dg), free(du);
    }
}

/* --- rope --- */

struct rope_case {
    size_t rows, heads, dim, rotated;
    const uint32_t *positions;
    const float *cosine, *sine, *dy;
};

static double rope_objective(const void *user, const double *const *in)
{
    const struct rope_case *t = user;
    const size_t half = t->rotated / 2;
    double sum = 0;
    for (size_t r = 0; r < t->rows; r++)
        for (size_t h = 0; h < t->heads; h++) {
            const size_t at = (r * t->heads + h) * t->dim;
            const double *x = in[0] + at;
            const float *c = t->cosine + t->positions[r] * half, *s = t->sine + t->positions[r] * half,
                        *dy = t->dy + at;
            for (size_t i = 0; i < half; i++)
                sum += (double)dy[i] * (x[i] * (double)c[i] - x[i + half] * (double)s[i]) +
                       (double)dy[i + half] * (x[i + half] * (double)c[i] + x[i] * (double)s[i]);
            for (size_t i = t->rotated; i < t->dim; i++) sum += (double)dy[i] * x[i];
        }
    return sum;
}

static void test_rope(void **state)
{
    (void)state;
    const size_t rows = 4, heads = 2, dim = 16, n = rows * heads * dim;
    const uint32_t positions[] = {0, 1, 0, 2};
    for (size_t rotated = 8; rotated <= dim; rotated += 8) {
        float cosine[3 * 8], sine[3 * 8], minus[3 * 8];
        for (size_t i = 0; i < 3 * rotated / 2; i++) {
            const double angle = 6 * walsh_random_uniform(&rng);
            cosine[i] = (float)(1.2 * cos(angle)); /* YaRN scales both */
            sine[i] = (float)(1.2 * sin(angle));
            minus[i] = -sine[i];
        }
        float *x = normals(n, 1), *dy = normals(n, 1), *dx = malloc(n * sizeof *dx);
        struct rope_case t = {rows, heads, dim, rotated, positions, cosine, sine, dy};
        struct problem p = {rope_objective, &t, {x}, {n}, 1};
        memcpy(dx, dy, n * sizeof *dx);
        walsh_rope_backward(&queue, dx, heads * dim, positions, rows, heads, dim, (uint32_t)rotated, cosine,
                            minus);
        check(&p, 0, dx, "rope");
        free(x), free(dy), free(dx);
    }
}

/* --- attention --- */

struct attention_case {
    struct walsh_attention_shape shape;
    struct walsh_documents documents;
    const float *dy;
    double *out; /* NULL, or where the outputs go */
};

static double attend(const struct attention_case *t, const double *const *in, size_t begin, size_t row,
                     size_t h)
{
    const struct walsh_attention_shape *s = &t->shape;
    const size_t dim = s->head_dim, width = s->heads * dim, kv_width = s->kv_heads * dim,
                 kv = h / (s->heads / s->kv_heads);
    double score[512], top = s->sinks ? (double)s->sinks[h] : -INFINITY, sum = 0, objective = 0;
    const size_t first = s->window && row + 1 > begin + s->window ? row + 1 - s->window : begin;
    for (size_t j = first; j <= row; j++) {
        score[j] = 0;
        for (size_t d = 0; d < dim; d++)
            score[j] += in[0][row * width + h * dim + d] * in[1][j * kv_width + kv * dim + d];
        score[j] *= (double)s->scale;
        if (s->soft_cap != 0) score[j] = (double)s->soft_cap * tanh(score[j] / (double)s->soft_cap);
        top = fmax(top, score[j]);
    }
    for (size_t j = first; j <= row; j++) sum += score[j] = exp(score[j] - top);
    if (s->sinks) sum += exp((double)s->sinks[h] - top);
    for (size_t d = 0; d < dim; d++) {
        double y = 0;
        for (size_t j = first; j <= row; j++) y += score[j] / sum * in[2][j * kv_width + kv * dim + d];
        if (t->out) t->out[row * width + h * dim + d] = y;
        objective += (double)t->dy[row * width + h * dim + d] * y;
    }
    return objective;
}

static double attention_objective(const void *user, const double *const *in)
{
    const struct attention_case *t = user;
    double sum = 0;
    for (size_t d = 0; d < t->documents.count; d++)
        for (size_t row = t->documents.begin[d]; row < t->documents.begin[d + 1]; row++)
            for (size_t h = 0; h < t->shape.heads; h++) sum += attend(t, in, t->documents.begin[d], row, h);
    return sum;
}

static void attention_forward_matches(struct attention_case *t, const float *const *in, const float *out,
                                      size_t rows)
{
    const size_t width = t->shape.heads * t->shape.head_dim, kv_width = t->shape.kv_heads * t->shape.head_dim;
    const size_t size[] = {rows * width, rows * kv_width, rows * kv_width};
    double *wide[3];
    for (int i = 0; i < 3; i++) {
        wide[i] = malloc(size[i] * sizeof(double));
        for (size_t j = 0; j < size[i]; j++) wide[i][j] = (double)in[i][j];
    }
    t->out = malloc(rows * width * sizeof(double));
    attention_objective(t, (const double *const *)wide);
    for (size_t j = 0; j < rows * width; j++) assert_true(fabs(t->out[j] - (double)out[j]) < 2e-5);
    for (int i = 0; i < 3; i++) free(wide[i]);
    free(t->out);
    t->out = NULL;
}

/* bf16 is near f32, and is not f32. */
static void near_in_norm(const char *what, const float *wide, const float *narrow, size_t n)
{
    double difference = 0, norm = 0;
    for (size_t i = 0; i < n; i++) {
        difference += pow((double)wide[i] - (double)narrow[i], 2);
        norm += pow((double)wide[i], 2);
    }
    const double ratio = sqrt(difference / norm);
    if (!(ratio > 1e-5 && ratio < 0.01)) fail_msg("%s in bf16: %g of its norm away from f32", what, ratio);
}

/* The same in bf16, on one and three threads. */
static void attention_narrow(const struct attention_case *t, const float *const in[3],
                             const float *const wide[5], const size_t n[5])
{
    if (!walsh_attention_narrow(&queue, &t->shape)) return;
    const size_t rows = t->documents.begin[t->documents.count];
    float *got[2][5], *scratch = normals(walsh_attention_scratch(&t->shape, rows), 1);
    struct walsh_queue single = queue;
    single.pool = NULL;
    for (int i = 0; i < 2; i++) {
        for (int j = 0; j < 5; j++) got[i][j] = normals(n[j], 1);
        const struct walsh_queue *q = i ? &single : &queue;
        walsh_attention_forward(q, &t->shape, &t->documents, true, in[0], in[1], in[2], got[i][0], got[i][1],
                                scratch);
        walsh_attention_backward(q, &t->shape, &t->documents, true, in[0], in[1], in[2], got[i][0], got[i][1],
                                 t->dy, got[i][2], got[i][3], got[i][4], scratch);
    }
    static const char *const what[] = {"attention", "lse", "dquery", "dkey", "dvalue"};
    for (int j = 0; j < 5; j++) {
        near_in_norm(what[j], wide[j], got[0][j], n[j]);
        assert_memory_equal(got[0][j], got[1][j], n[j] * sizeof(float));
        free(got[0][j]), free(got[1][j]);
    }
    free(scratch);
}

static void test_attention(void **state)
{
    (void)state;
    static const float sinks[] = {0.5f, -1, 2, 0, 1, -0.5f};
    const struct {
        uint32_t heads, kv_heads, dim, window;
        float cap;
        const float *sinks;
        uint32_t begin[4];
        size_t documents;
    } cases[] = {
        {2, 1, 16, 0, 0, NULL, {0, 150}, 1},        /* several tiles */
        {6, 2, 8, 0, 0, NULL, {0, 70, 71, 150}, 3}, /* packed documents, one of a single row, groups of 3 */
        {2, 2, 20, 33, 0, NULL, {0, 131}, 1},       /* a window that starts within tiles */
        {2, 1, 16, 64, 5, NULL, {0, 64, 129, 200}, 3}, /* at their edges, with a cap */
        {6, 3, 8, 0, 3, sinks, {0, 90, 100}, 2},       {6, 6, 8, 1, 0, sinks, {0, 70}, 1},
        {2, 1, 8, 0, 0, NULL, {0, 3, 340}, 2}, /* long enough for two parts of keys; pairs that begin at odd rows */
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const size_t rows = cases[i].begin[cases[i].documents], width = cases[i].heads * cases[i].dim,
                     kv_width = cases[i].kv_heads * cases[i].dim;
        float *q = normals(rows * width, 1.5), *k = normals(rows * kv_width, 1.5),
              *v = normals(rows * kv_width, 1), *dy = normals(rows * width, 1),
              *out = normals(rows * width, 1), *lse = normals(rows * cases[i].heads, 1),
              *dq = normals(rows * width, 1), *dk = normals(rows * kv_width, 1),
              *dv = normals(rows * kv_width, 1);
        struct attention_case t = {.shape = {.heads = cases[i].heads,
                                             .kv_heads = cases[i].kv_heads,
                                             .head_dim = cases[i].dim,
                                             .scale = 0.3f,
                                             .window = cases[i].window,
                                             .soft_cap = cases[i].cap,
                                             .sinks = cases[i].sinks},
                                   .documents = {.begin = cases[i].begin, .count = cases[i].documents},
                                   .dy = dy};
        const float *const in[] = {q, k, v};
        struct problem p = {
            attention_objective, &t, {q, k, v}, {rows * width, rows * kv_width, rows * kv_width}, 3};
        float *scratch = normals(walsh_attention_scratch(&t.shape, rows), 1);
        walsh_attention_forward(&queue, &t.shape, &t.documents, false, q, k, v, out, lse, scratch);
        attention_forward_matches(&t, in, out, rows);
        walsh_attention_backward(&queue, &t.shape, &t.documents, false, q, k, v, out, lse, dy, dq, dk, dv,
                                 scratch);
        check(&p, 0, dq, "attention, queries");
        check(&p, 1, dk, "attention, keys");
        check(&p, 2, dv, "attention, values");
        attention_narrow(&t, in, (const float *const[]){out, lse, dq, dk, dv},
                         (const size_t[]){rows * width, rows * cases[i].heads, rows * width, rows * kv_width,
                                          rows * kv_width});
        free(q), free(k), free(v), free(dy), free(out), free(lse), free(dq), free(dk), free(dv),
            free(scratch);
    }
}

/* --- loss --- */

struct loss_case {
    size_t rows, vocab;
    const int32_t *targets;
    double weight, cap;
};

/* Of logits before the cap. */
static double loss_objective(const void *user, const double *const *in)
{
    const struct loss_case *t = user;
    double loss = 0;
    for (size_t r = 0; r < t->rows; r++) {
        double sum = 0, wanted = 0;
        for (size_t j = 0; j < t->vocab; j++) {
            double x = in[0][r * t->vocab + j];
            if (t->cap != 0) x = t->cap * tanh(x / t->cap);
            sum += exp(x);
            if ((int32_t)j == t->targets[r]) wanted = x;
        }
        loss += log(sum) - wanted;
    }
    return t->weight * loss;
}

static void test_loss(void **state)
{
    (void)state;
    const size_t rows = 5, vocab = 300, stride = 320;
    const int32_t targets[] = {0, 299, 17, 17, 100};
    for (int kind = 0; kind < 2; kind++) {
        const float cap = kind ? 4 : 0;
        float *x = normals(rows * vocab, 3), *logits = malloc(rows * vocab * sizeof *logits);
        double losses[5], sum = 0;
        struct loss_case t = {rows, vocab, targets, 0.25, (double)cap};
        struct problem p = {loss_objective, &t, {x}, {rows * vocab}, 1};
        memcpy(logits, x, rows * vocab * sizeof *x);
        if (cap != 0) queue.ops->soft_cap(&queue, logits, cap, rows * vocab);
        uint16_t *rounded = malloc(rows * stride * sizeof *rounded),
                 *expected = malloc(vocab * sizeof *expected);
        memset(rounded, 0xff, rows * stride * sizeof *rounded);
        walsh_cross_entropy(&queue, logits, targets, rows, vocab, 0.25f, cap, true, losses, rounded, stride);
        for (size_t r = 0; r < rows; r++) sum += losses[r];
        double *wide = malloc(rows * vocab * sizeof *wide);
        for (size_t i = 0; i < rows * vocab; i++) wide[i] = (double)x[i];
        const double *const in[] = {wide};
        assert_true(fabs(sum * t.weight - loss_objective(&t, in)) < 1e-5);
        check(&p, 0, logits, "loss");
        for (size_t r = 0; r < rows; r++) {
            queue.kernels->bf16_from_f32(expected, logits + r * vocab, vocab);
            assert_memory_equal(rounded + r * stride, expected, vocab * sizeof *expected);
            for (size_t j = vocab; j < stride; j++) assert_int_equal(rounded[r * stride + j], 0);
        }
        free(rounded), free(expected);
        free(x), free(logits), free(wide);
    }
}

/* --- routing --- */

struct route_case {
    size_t rows, experts, k;
    bool normalize;
    const int32_t *index;
    const float *dweight;
};

static double route_objective(const void *user, const double *const *in)
{
    const struct route_case *t = user;
    double objective = 0;
    for (size_t r = 0; r < t->rows; r++) {
        const double *x = in[0] + r * t->experts;
        double all = 0, chosen = 0;
        for (size_t e = 0; e < t->experts; e++) all += exp(x[e]);
        for (size_t j = 0; j < t->k; j++) chosen += exp(x[t->index[r * t->k + j]]);
        for (size_t j = 0; j < t->k; j++)
            objective += (double)t->dweight[r * t->k + j] * exp(x[t->index[r * t->k + j]]) /
                         (t->normalize ? chosen : all);
    }
    return objective;
}

static void test_route(void **state)
{
    (void)state;
    const size_t rows = 7, experts = 6, k = 3;
    for (int normalize = 0; normalize < 2; normalize++) {
        float *logits = normals(rows * experts, 2), *dweight = normals(rows * k, 1),
              *dlogits = normals(rows * experts, 1);
        float weight[7 * 3];
        int32_t index[7 * 3];
        queue.ops->route(&queue, index, weight, logits, rows, 6, 3, normalize);
        struct route_case t = {rows, experts, k, normalize, index, dweight};
        struct problem p = {route_objective, &t, {logits}, {rows * experts}, 1};
        walsh_route_backward(&queue, dlogits, dweight, logits, index, weight, rows, 6, 3, normalize);
        check(&p, 0, dlogits, "route");
        free(logits), free(dweight), free(dlogits);
    }
}

/* --- short convolution, over documents --- */

struct conv_case {
    const struct walsh_documents *documents;
    const struct walsh_conv_shape *shape;
    const float *dy;
};

static double conv_objective(const void *user, const double *const *in)
{
    const struct conv_case *t = user;
    const size_t width = t->shape->width;
    double objective = 0;
    for (size_t d = 0; d < t->documents->count; d++)
        for (size_t r = t->documents->begin[d]; r < t->documents->begin[d + 1]; r++)
            for (size_t i = 0; i < width; i++) {
                double sum = t->shape->bias ? (double)t->shape->bias[i] : 0;
                for (size_t j = 0; j < t->shape->taps; j++) {
                    const size_t back = t->shape->taps - 1 - j;
                    if (r < t->documents->begin[d] + back) continue;
                    const double *x = in[0] + (r - back) * 3 * width;
                    sum += (double)t->shape->weight[j * width + i] * x[i] * x[2 * width + i];
                }
                objective += (double)t->dy[r * width + i] * in[0][r * 3 * width + width + i] * sum;
            }
    return objective;
}

static void test_short_conv(void **state)
{
    (void)state;
    static const uint32_t begin[] = {0, 7, 8, 10, 31};
    const struct walsh_documents documents = {.begin = begin, .count = 4};
    const size_t rows = 31, width = 19;
    float *x = normals(rows * 3 * width, 1), *weight = normals(4 * width, 1), *bias = normals(width, 1),
          *dy = normals(rows * width, 1), *dx = normals(rows * 3 * width, 1), *y = normals(rows * width, 1);
    for (uint32_t taps = 3; taps <= 4; taps++) {
        const struct walsh_conv_shape shape = {taps, (uint32_t)width, weight, taps == 3 ? bias : NULL};
        const struct conv_case t = {&documents, &shape, dy};
        struct problem p = {conv_objective, &t, {x}, {rows * 3 * width}, 1};
        walsh_short_conv_backward(&queue, &shape, &documents, x, dy, dx);
        check(&p, 0, dx, "short convolution");
        walsh_short_conv_forward(&queue, &shape, &documents, x, y);
        double got = 0, *in = malloc(rows * 3 * width * sizeof *in);
        for (size_t i = 0; i < rows * width; i++) got += (double)y[i] * (double)dy[i];
        for (size_t i = 0; i < rows * 3 * width; i++) in[i] = (double)x[i];
        assert_true(fabs(got - conv_objective(&t, (const double *const[]){in})) < 1e-4);
        free(in);
    }
    free(x), free(weight), free(bias), free(dy), free(dx), free(y);
}

/* --- low-rank updates: inputs x, A1, A2, B1, B2, B3; the first and the third linear share A1 --- */

struct lora_case {
    size_t rows, in, rank[3], out[3];
    double scale[3];
    const float *dy[3];
};

static double lora_objective(const void *user, const double *const *in)
{
    const struct lora_case *t = user;
    double objective = 0;
    for (size_t r = 0; r < t->rows; r++)
        for (size_t l = 0; l < 3; l++) {
            const double *a = in[l == 1 ? 2 : 1], *b = in[3 + l];
            for (size_t j = 0; j < t->rank[l]; j++) {
                double h = 0;
                for (size_t i = 0; i < t->in; i++) h += a[j * t->in + i] * in[0][r * t->in + i];
                for (size_t o = 0; o < t->out[l]; o++)
                    objective += (double)t->dy[l][r * t->out[l] + o] * t->scale[l] * h * b[j * t->out[l] + o];
            }
        }
    return objective;
}

static float *turn(const float *x, size_t rows, size_t cols)
{
    float *y = malloc(rows * cols * sizeof *y);
    for (size_t i = 0; i < rows; i++)
        for (size_t j = 0; j < cols; j++) y[j * rows + i] = x[i * cols + j];
    return y;
}

/* y[rows][n] += inner by a matrix of an update, as pieces of the frozen products do it. */
static void add_update(const struct walsh_queue *q, const struct walsh_lora_call *call, const uint32_t *pairs,
                       size_t n, size_t rows, float *y)
{
    const uint32_t rank = call->lora->rank;
    const struct walsh_activations a = {.type = WALSH_ACTIVATION_BF16,
                                        .rows = rows,
                                        .cols = rank,
                                        .stride = walsh_lora_inner_width(rank),
                                        .data = call->inner};
    const struct walsh_weights w = {.format = WALSH_FORMAT_BF16,
                                    .rows = rank,
                                    .cols = (uint32_t)n,
                                    .data = walsh_lora_matrix(pairs, rank, n)};
    const struct walsh_product_part part = {&w, &a, 0, n, y, n, q->scratch[0], true};
    q->kernels->product_bf16_transposed(&part);
}

/* Rows of n, rounded, with zeros behind them. */
static uint16_t *rounded(const float *x, size_t rows, size_t n, size_t *stride)
{
    *stride = walsh_activations_stride(n);
    uint16_t *y = calloc(rows * *stride, sizeof *y);
    for (size_t i = 0; i < rows; i++) queue.kernels->bf16_from_f32(y + i * *stride, x + i * n, n);
    return y;
}

/* The same with pairs of A and B, on one and more threads: site's gradients and a forward, near those in f32. */
static void lora_narrow(struct walsh_lora_site *site, const float *x, size_t n, const float *dx,
                        const float *y)
{
    if (!walsh_lora_narrow(&queue)) return;
    const size_t rows = site->rows;
    struct walsh_queue single = queue;
    single.pool = NULL;
    size_t ldx;
    uint16_t *x_rows = rounded(x, rows, n, &ldx),
             *kept = calloc(3 * walsh_lora_kept(16, rows, 1), sizeof *kept);
    float *got_dx[2], *got_y[2], *scratch = malloc(3 * walsh_lora_scratch(16, rows, 1) * sizeof *scratch);
    for (int run = 0; run < 2; run++) {
        const struct walsh_queue *q = run ? &single : &queue;
        struct walsh_lora loras[4];
        struct walsh_lora_site narrow = *site;
        float *grad_a = NULL;
        for (size_t i = 0; i < site->count; i++) {
            const struct walsh_lora *l = site->calls[i].lora;
            if (!l) continue;
            uint32_t *pairs =
                malloc((walsh_lora_pairs(l->rank, n) + walsh_lora_pairs(l->rank, l->out)) * sizeof *pairs);
            loras[i] = *l;
            loras[i].a_pairs = pairs;
            loras[i].b_pairs = pairs + walsh_lora_pairs(l->rank, n);
            walsh_lora_pack(q, pairs, l->a, l->rank, n);
            walsh_lora_pack(q, pairs + walsh_lora_pairs(l->rank, n), l->b, l->rank, l->out);
            const bool shared = i > 0 && l->a == site->calls[0].lora->a;
            loras[i].grad_a = shared ? grad_a : calloc(l->rank * n, sizeof(float));
            loras[i].grad_b = calloc((size_t)l->rank * l->out, sizeof(float));
            if (i == 0) grad_a = loras[i].grad_a;
            narrow.calls[i].lora = &loras[i];
            narrow.calls[i].dy = rounded(narrow.calls[i].y, rows, l->out, &narrow.calls[i].ld_dy);
        }
        got_dx[run] = calloc(rows * n, sizeof(float));
        got_y[run] = calloc(rows * loras[0].out, sizeof(float));
        walsh_lora_inner(q, &narrow, 1, x_rows, ldx, kept, scratch);
        add_update(q, &narrow.calls[0], loras[0].b_pairs, loras[0].out, rows, got_y[run]);
        walsh_lora_inner_backward(q, &narrow, 1, kept, scratch);
        add_update(q, &narrow.calls[0], loras[0].a_pairs, n, rows, got_dx[run]);
        add_update(q, &narrow.calls[2], loras[2].a_pairs, n, rows, got_dx[run]);
        walsh_lora_gradients(q, &narrow, 1, x_rows, ldx);
        for (size_t i = 0; i < site->count; i++) {
            const struct walsh_lora *l = site->calls[i].lora;
            if (!l) continue;
            near_in_norm("dA", l->grad_a, loras[i].grad_a, l->rank * n);
            near_in_norm("dB", l->grad_b, loras[i].grad_b, (size_t)l->rank * l->out);
        }
        near_in_norm("dx", dx, got_dx[run], rows * n);
        near_in_norm("y", y, got_y[run], rows * loras[0].out);
        for (size_t i = 0; i < site->count; i++) {
            if (!site->calls[i].lora) continue;
            free((void *)(uintptr_t)loras[i].a_pairs), free(loras[i].grad_b);
            free((void *)(uintptr_t)narrow.calls[i].dy);
            if (i == 0 || loras[i].grad_a != grad_a) free(loras[i].grad_a);
        }
    }
    assert_memory_equal(got_dx[0], got_dx[1], rows * n * sizeof(float));
    assert_memory_equal(got_y[0], got_y[1], rows * site->calls[0].lora->out * sizeof(float));
    for (int run = 0; run < 2; run++) free(got_dx[run]), free(got_y[run]);
    free(scratch), free(x_rows), free(kept);
}

static void test_lora(void **state)
{
    (void)state;
    const size_t rows = 300, n = 70;
    struct lora_case t = {rows, n, {5, 16, 5}, {90, 33, 65}, {0.5, 2, 0.5}, {NULL}};
    float *x = normals(rows * n, 1), *a[3] = {normals(5 * n, 1), normals(16 * n, 1)}, *b[3], *a_t[3], *b_t[3],
          *dy[3];
    float *grad_a[3] = {calloc(5 * n, sizeof(float)), calloc(16 * n, sizeof(float))}, *grad_b[3];
    float *dx = calloc(rows * n, sizeof(float)), *y = calloc(rows * 90, sizeof(float));
    a[2] = a[0];
    grad_a[2] = grad_a[0];
    struct walsh_lora loras[3];
    struct walsh_lora_site site = {.count = 4, .rows = rows};
    struct walsh_lora_call *calls = site.calls;
    for (size_t l = 0; l < 3; l++) {
        b[l] = normals(t.rank[l] * t.out[l], 1);
        a_t[l] = turn(a[l], t.rank[l], n);
        b_t[l] = turn(b[l], t.rank[l], t.out[l]);
        t.dy[l] = dy[l] = normals(rows * t.out[l], 1);
        grad_b[l] = calloc(t.rank[l] * t.out[l], sizeof(float));
        loras[l] = (struct walsh_lora){(uint32_t)t.rank[l],
                                       (uint32_t)n,
                                       (uint32_t)t.out[l],
                                       (float)t.scale[l],
                                       a[l],
                                       b[l],
                                       a_t[l],
                                       b_t[l],
                                       grad_a[l],
                                       grad_b[l],
                                       NULL,
                                       NULL};
    }
    calls[0] = (struct walsh_lora_call){.lora = &loras[0], .y = dy[0], .ldy = t.out[0]};
    calls[2] = (struct walsh_lora_call){.lora = &loras[1], .y = dy[1], .ldy = t.out[1]};
    calls[3] = (struct walsh_lora_call){.lora = &loras[2], .y = dy[2], .ldy = t.out[2]};
    float *scratch = malloc(3 * walsh_lora_scratch(16, rows, 1) * sizeof *scratch);
    walsh_lora_backward(&queue, &site, 1, x, n, dx, n, scratch);
    struct problem p = {lora_objective,
                        &t,
                        {x, a[0], a[1], b[0], b[1], b[2]},
                        {rows * n, 5 * n, 16 * n, 5 * t.out[0], 16 * t.out[1], 5 * t.out[2]},
                        6};
    check(&p, 0, dx, "lora, x");
    check(&p, 1, grad_a[0], "lora, shared A");
    check(&p, 2, grad_a[1], "lora, A");
    for (size_t l = 0; l < 3; l++) check(&p, 3 + l, grad_b[l], "lora, B");

    struct walsh_lora_site forward = {
        .calls = {{.lora = &loras[0], .y = y, .ldy = t.out[0]}}, .count = 1, .rows = rows};
    walsh_lora_forward(&queue, &forward, 1, x, n, NULL);
    for (size_t i = 0; i < 50; i++) {
        const size_t r = (size_t)(walsh_random_u64(&rng) % rows),
                     o = (size_t)(walsh_random_u64(&rng) % t.out[0]);
        double want = 0;
        for (size_t j = 0; j < 5; j++)
            for (size_t m = 0; m < n; m++)
                want += t.scale[0] * (double)x[r * n + m] * (double)a[0][j * n + m] *
                        (double)b[0][j * t.out[0] + o];
        assert_true(fabs(want - (double)y[r * t.out[0] + o]) < 1e-3);
    }
    lora_narrow(&site, x, n, dx, y);
    free(x), free(dx), free(y), free(scratch), free(a[0]), free(a[1]), free(grad_a[0]), free(grad_a[1]);
    for (size_t l = 0; l < 3; l++) free(b[l]), free(a_t[l]), free(b_t[l]), free(dy[l]), free(grad_b[l]);
}

static int setup(void **state)
{
    (void)state;
    const uint64_t seed = 20260101;
    printf("seed %llu\n", (unsigned long long)seed);
    walsh_random_seed(&rng, seed);
    return walsh_pool_open(2, &pool, NULL) != WALSH_OK ||
           walsh_queue_open(WALSH_CPU_BEST, pool, &queue, NULL) != WALSH_OK;
}

static int teardown(void **state)
{
    (void)state;
    walsh_queue_close(&queue);
    walsh_pool_close(&pool);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_norm),      cmocka_unit_test(test_gate),       cmocka_unit_test(test_rope),
        cmocka_unit_test(test_attention), cmocka_unit_test(test_loss),       cmocka_unit_test(test_route),
        cmocka_unit_test(test_lora),      cmocka_unit_test(test_short_conv),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
