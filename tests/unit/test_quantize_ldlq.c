/* LDLQ, coordinate descent, scales and Hessians against their formulas in double precision. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/memory.h"
#include "base/random.h"
#include "base/scalar.h"
#include "quantize/hessian.h"
#include "quantize/ldlq.h"
#include "quantize/scales.h"
#include "unit/share.h"

#define SEED 1729u

struct log {
    int warnings;
    char last[300];
};

static void keep_line(void *user, enum walsh_log_level level, const char *line)
{
    struct log *log = user;
    if (level != WALSH_LOG_WARNING) return;
    log->warnings++;
    snprintf(log->last, sizeof log->last, "%s", line);
}

/* A linear with a correlated input, and everything around it. */
struct problem {
    uint32_t m, n;
    float *w, *h, *x;
    struct walsh_rotation in, out;
};

enum { TOKENS = 400 };

static struct walsh_queue queue_of(struct walsh_pool *pool)
{
    struct walsh_queue q;
    assert_int_equal(walsh_queue_open(WALSH_CPU_BEST, pool, &q, NULL), WALSH_OK);
    return q;
}

static void *room(size_t count, size_t size)
{
    void *p;
    assert_int_equal(walsh_alloc_zero(count, size, "test", &p, NULL), WALSH_OK);
    return p;
}

static struct walsh_rotation random_rotation(uint32_t n, uint32_t min_block, const char *name)
{
    struct walsh_rotation r = {.kind = WALSH_ROTATION_BLOCKS, .size = n};
    assert_int_equal(walsh_blocks_binary(n, min_block, &r.blocks, NULL), WALSH_OK);
    float *signs = room(r.blocks.padded, sizeof *signs);
    walsh_random_signs(SEED, name, signs, r.blocks.padded);
    r.signs = signs;
    return r;
}

/* x = z A with a few strong directions; W normal with uneven rows. */
static struct problem make_problem(uint32_t m, uint32_t n)
{
    struct problem p = {.m = m, .n = n};
    struct walsh_random r;
    walsh_random_seed(&r, SEED + m * 31 + n);
    p.w = room((size_t)m * n, sizeof(float));
    p.h = room((size_t)n * n, sizeof(float));
    p.x = room((size_t)TOKENS * n, sizeof(float));
    for (uint32_t i = 0; i < m; i++)
        for (uint32_t j = 0; j < n; j++)
            p.w[i * n + j] = (float)(walsh_random_normal(&r) * 0.05 * (1 + 2.0 * (i % 7 == 0)));
    for (int t = 0; t < TOKENS; t++) {
        double shared[6];
        for (int k = 0; k < 6; k++) shared[k] = walsh_random_normal(&r);
        for (uint32_t j = 0; j < n; j++) {
            double v = 0.5 * walsh_random_normal(&r);
            for (int k = 0; k < 6; k++) v += shared[k] * sin(0.37 * (k + 1) * (j + 1));
            p.x[(size_t)t * n + j] = (float)(v * (j % 11 == 0 ? 3 : 1));
        }
    }
    struct walsh_queue q = queue_of(NULL);
    struct walsh_hessian h;
    assert_int_equal(walsh_hessian_open(n, &h, NULL), WALSH_OK);
    walsh_hessian_add(&q, &h, p.x, n, TOKENS);
    walsh_hessian_finish(&h);
    memcpy(p.h, h.sum, (size_t)n * n * sizeof(float));
    walsh_hessian_close(&h);
    walsh_queue_close(&q);
    p.in = random_rotation(n, WALSH_MIN_BLOCK_COLUMNS, "in");
    p.out = random_rotation(m, WALSH_MIN_BLOCK_ROWS, "out");
    return p;
}

static void free_problem(struct problem *p)
{
    walsh_free(p->w), walsh_free(p->h), walsh_free(p->x);
    walsh_free((void *)(uintptr_t)p->in.signs), walsh_free((void *)(uintptr_t)p->out.signs);
}

/* tr(E H E^T) / tr(W H W^T) in double, E = W - d, on the Hessian as given. */
static double proxy_of(const struct problem *p, const float *d)
{
    double error = 0, whole = 0;
    for (uint32_t i = 0; i < p->m; i++)
        for (int t = 0; t < TOKENS; t++) {
            double e = 0, y = 0;
            for (uint32_t j = 0; j < p->n; j++) {
                double x = (double)p->x[(size_t)t * p->n + j], w = (double)p->w[i * p->n + j];
                y += w * x;
                e += (w - (double)d[i * p->n + j]) * x;
            }
            error += e * e;
            whole += y * y;
        }
    return error / whole;
}

static double run(const struct problem *p, struct walsh_pool *pool, const float *h,
                  struct walsh_ldlq_options options, struct walsh_ldlq_result *result, float *decoded)
{
    struct walsh_queue q = queue_of(pool);
    struct walsh_ldlq_input input;
    assert_int_equal(walsh_ldlq_input_open(&q, &p->in, h, "test", NULL, &input, NULL), WALSH_OK);
    assert_int_equal(walsh_ldlq_quantize(&q, &input, &p->out, p->w, &options, result, decoded, NULL),
                     WALSH_OK);
    walsh_ldlq_input_close(&input);
    walsh_queue_close(&q);
    return result->proxy;
}

/* Codes, Wscale and multipliers give the decoded matrix, by the formulas of formats and rotation in double.
 */
static void check_decoded(const struct problem *p, const struct walsh_ldlq_result *r, const float *decoded)
{
    const size_t m = r->m, n = r->n;
    double *y = room(m * n, sizeof *y), *column = room(m, sizeof *column);
    for (size_t i = 0; i < m; i++) {
        for (size_t g = 0; g < n / 8; g++)
            for (unsigned k = 0; k < r->plan.stages; k++) {
                float v[8];
                if (r->plan.kind[k] == WALSH_STAGE_E8P)
                    walsh_e8p_decode(((const uint16_t *)r->codes[k])[i * (n / 8) + g], v);
                else
                    walsh_e81b_decode(((const uint8_t *)r->codes[k])[i * (n / 8) + g], v);
                for (size_t j = 0; j < 8; j++)
                    y[i * n + 8 * g + j] +=
                        (double)r->wscale * (double)r->cumulative_inverse[k] * (double)v[j];
            }
        walsh_rotate_inverse_f64(&p->in, y + i * n, y + i * n);
    }
    for (size_t j = 0; j < p->n; j++) {
        for (size_t i = 0; i < m; i++) column[i] = y[i * n + j];
        walsh_rotate_inverse_f64(&p->out, column, column);
        for (size_t i = 0; i < p->m; i++) {
            double got = (double)decoded[i * p->n + j];
            assert_true(fabs(column[i] - got) < 2e-6);
        }
    }
    walsh_free(y), walsh_free(column);
}

static void test_better_than_nearest(void **state)
{
    (void)state;
    print_message("seed %u\n", SEED);
    static const uint32_t shapes[][2] = {
        {96, 192}, {40, 100}, {16, 64}}; /* the second is padded on both sides */
    for (size_t s = 0; s < 3; s++) {
        if (test_small() && s == 0) continue; /* the largest */
        struct problem p = make_problem(shapes[s][0], shapes[s][1]);
        float *d = room((size_t)p.m * p.n, sizeof *d);
        double last = 1;
        for (unsigned bits = 2; bits <= 8; bits += test_small() ? 3 : 1) {
            struct walsh_ldlq_result nearest, sweep, passes;
            run(&p, NULL, NULL, (struct walsh_ldlq_options){bits, 0, false, NULL}, &nearest, d);
            check_decoded(&p, &nearest, d);
            const double plain = proxy_of(&p, d);
            run(&p, NULL, p.h, (struct walsh_ldlq_options){bits, 0, false, NULL}, &sweep, d);
            check_decoded(&p, &sweep, d);
            const double ldlq = proxy_of(&p, d);
            run(&p, NULL, p.h, (struct walsh_ldlq_options){bits, 10, true, NULL}, &passes, d);
            check_decoded(&p, &passes, d);
            const double best = proxy_of(&p, d);
            assert_true(ldlq < 0.75 * plain);
            assert_true(best < 0.97 * ldlq);
            assert_true(best < last);
            last = best;
            walsh_ldlq_result_close(&nearest), walsh_ldlq_result_close(&sweep),
                walsh_ldlq_result_close(&passes);
        }
        walsh_free(d);
        free_problem(&p);
    }
}

/* The proxy that is reported is that of the decoded matrix under the damped Hessian; passes never raise it.
 */
static void test_proxy(void **state)
{
    (void)state;
    struct problem p =
        make_problem(64, 128); /* no padding and plain signs: damping commutes with the rotation */
    float *d = room((size_t)p.m * p.n, sizeof *d);
    double mean = 0;
    for (uint32_t i = 0; i < p.n; i++) mean += (double)p.h[i * p.n + i] / p.n;
    double last = 1;
    for (unsigned passes = 0; passes < 6; passes++) {
        struct walsh_ldlq_result r;
        double reported = run(&p, NULL, p.h, (struct walsh_ldlq_options){3, passes, false, NULL}, &r, d);
        double error = 0, whole = 0;
        for (uint32_t i = 0; i < p.m; i++)
            for (uint32_t j = 0; j < p.n; j++)
                for (uint32_t k = 0; k < p.n; k++) {
                    double h = (double)p.h[j * p.n + k] + (j == k ? mean * (1.01 * 1.01 - 1) : 0);
                    double wj = (double)p.w[i * p.n + j], wk = (double)p.w[i * p.n + k];
                    error += (wj - (double)d[i * p.n + j]) * h * (wk - (double)d[i * p.n + k]);
                    whole += wj * h * wk;
                }
        assert_true(fabs(reported / (error / whole) - 1) < 1e-3);
        assert_true(reported <= last);
        if (passes == 1) assert_true(reported < 0.99 * last);
        last = reported;
        walsh_ldlq_result_close(&r);
    }
    walsh_free(d);
    free_problem(&p);
}

/* The sweep against a naive one in double: H = C C^T, L = C diag(C_kk)^-1, targets W_k + sum_{j>k} E_j L_jk.
 */
static void test_sweep_matches_formula(void **state)
{
    (void)state;
    enum { M = 24, N = 192, GROUPS = N / 8 }; /* three panels */
    struct problem p = make_problem(M, N);
    struct walsh_queue q = queue_of(NULL);
    struct walsh_ldlq_input input;
    assert_int_equal(walsh_ldlq_input_open(&q, &p.in, p.h, "test", NULL, &input, NULL), WALSH_OK);
    struct walsh_ldlq_result r;
    const struct walsh_ldlq_options options = {2, 0, false, NULL};
    assert_int_equal(walsh_ldlq_quantize(&q, &input, &p.out, p.w, &options, &r, NULL, NULL), WALSH_OK);

    double *c = room(N * N, sizeof *c), *l = room(N * N, sizeof *l), *e = room(r.m * N, sizeof *e);
    float *w = room(r.m * N, sizeof *w);
    assert_int_equal(walsh_rotate_matrix(&p.out, &p.in, p.w, w, NULL), WALSH_OK);
    for (size_t j = 0; j < N; j++) /* Cholesky, column by column */
        for (size_t i = j; i < N; i++) {
            double sum = (double)input.hessian[i * N + j];
            for (size_t k = 0; k < j; k++) sum -= c[i * N + k] * c[j * N + k];
            c[i * N + j] = i == j ? sqrt(sum) : sum / c[j * N + j];
        }
    for (size_t k = 0; k < GROUPS; k++) /* X C_kk = C_ik by back substitution */
        for (size_t i = 8 * k + 8; i < N; i++)
            for (size_t b = 8; b-- > 0;) {
                double sum = c[i * N + 8 * k + b];
                for (size_t a = b + 1; a < 8; a++)
                    sum -= l[i * N + 8 * k + a] * c[(8 * k + a) * N + 8 * k + b];
                l[i * N + 8 * k + b] = sum / c[(8 * k + b) * N + 8 * k + b];
            }
    size_t same = 0;
    double error = 0;
    for (size_t row = 0; row < r.m; row++)
        for (size_t k = GROUPS; k-- > 0;) {
            float x[8], v[8];
            for (size_t b = 0; b < 8; b++) {
                double target = (double)w[row * N + 8 * k + b];
                for (size_t j = 8 * k + 8; j < N; j++) target += e[row * N + j] * l[j * N + 8 * k + b];
                x[b] = (float)(target / (double)r.wscale);
            }
            same += walsh_e8p_encode(x, v) == ((const uint16_t *)r.codes[0])[row * GROUPS + k];
            for (size_t b = 0; b < 8; b++)
                e[row * N + 8 * k + b] = (double)w[row * N + 8 * k + b] - (double)r.wscale * (double)v[b];
        }
    double whole = 0;
    for (size_t row = 0; row < r.m; row++)
        for (size_t i = 0; i < N; i++)
            for (size_t j = 0; j < N; j++) {
                double h = (double)input.hessian[i * N + j];
                error += e[row * N + i] * h * e[row * N + j];
                whole += (double)w[row * N + i] * h * (double)w[row * N + j];
            }
    print_message("%zu of %zu codes as in double\n", same, (size_t)r.m * GROUPS);
    assert_true(same > (size_t)r.m * GROUPS * 95 / 100); /* one rounding apart may part a row's later codes */
    assert_true(fabs(r.proxy / (error / whole) - 1) < 0.01);
    walsh_free(c), walsh_free(l), walsh_free(e), walsh_free(w);
    walsh_ldlq_result_close(&r);
    walsh_ldlq_input_close(&input);
    walsh_queue_close(&q);
    free_problem(&p);
}

/* Feedback changes the spread of the targets; the search for Wscale follows it. */
static void test_wscale_search(void **state)
{
    (void)state;
    struct problem p = make_problem(96, 192);
    double squares = 0;
    for (uint32_t i = 0; i < p.m * p.n; i++) squares += (double)p.w[i] * (double)p.w[i];
    const double rms = sqrt(squares / (p.m * p.n));
    for (uint32_t i = 0; i < p.n; i++) /* neighbours that all but repeat each other */
        for (uint32_t j = 0; j < p.n; j++) p.h[i * p.n + j] = powf(0.99f, fabsf((float)i - (float)j));
    struct walsh_ldlq_result tuned, plain, free_of_feedback;
    run(&p, NULL, p.h, (struct walsh_ldlq_options){4, 2, true, NULL}, &tuned, NULL);
    run(&p, NULL, p.h, (struct walsh_ldlq_options){4, 2, false, NULL}, &plain, NULL);
    run(&p, NULL, NULL, (struct walsh_ldlq_options){4, 2, true, NULL}, &free_of_feedback, NULL);
    assert_true(fabs((double)plain.wscale * 1.03 / rms - 1) < 1e-4);
    assert_true(fabsf(tuned.wscale / free_of_feedback.wscale - 1) > 0.02f);
    assert_true(tuned.proxy < 0.97 * plain.proxy);
    walsh_ldlq_result_close(&tuned), walsh_ldlq_result_close(&plain),
        walsh_ldlq_result_close(&free_of_feedback);
    free_problem(&p);
}

static void test_threads(void **state)
{
    (void)state;
    struct problem p = test_small() ? make_problem(72, 128) : make_problem(200, 192);
    struct walsh_ldlq_result first, other;
    float *d = room((size_t)p.m * p.n, sizeof *d), *e = room((size_t)p.m * p.n, sizeof *e);
    run(&p, NULL, p.h, (struct walsh_ldlq_options){3, 4, true, NULL}, &first, d);
    for (unsigned threads = 2; threads <= 3; threads++) {
        struct walsh_pool *pool;
        assert_int_equal(walsh_pool_open(threads, &pool, NULL), WALSH_OK);
        run(&p, pool, p.h, (struct walsh_ldlq_options){3, 4, true, NULL}, &other, e);
        assert_true(first.wscale == other.wscale && first.proxy == other.proxy);
        const size_t groups = (size_t)first.m * first.n / 8;
        assert_memory_equal(first.codes[0], other.codes[0], groups * 2);
        assert_memory_equal(first.codes[1], other.codes[1], groups);
        assert_memory_equal(d, e, (size_t)p.m * p.n * sizeof *d);

        struct walsh_queue q = queue_of(pool);
        struct walsh_hessian h;
        assert_int_equal(walsh_hessian_open(p.n, &h, NULL), WALSH_OK);
        walsh_hessian_add(&q, &h, p.x, p.n, TOKENS);
        walsh_hessian_finish(&h);
        assert_memory_equal(h.sum, p.h, (size_t)p.n * p.n * sizeof(float));
        walsh_hessian_close(&h);
        walsh_queue_close(&q);
        walsh_ldlq_result_close(&other);
        walsh_pool_close(&pool);
    }
    walsh_ldlq_result_close(&first);
    walsh_free(d), walsh_free(e);
    free_problem(&p);
}

/* What cannot be factored falls back to the identity and says so. */
static void test_identity_fallback(void **state)
{
    (void)state;
    struct problem p = make_problem(32, 64);
    float *bad = room(64 * 64, sizeof *bad);
    for (int kind = 0; kind < 4; kind++) {
        for (size_t i = 0; i < 64 * 64; i++) bad[i] = 0;
        for (size_t i = 0; i < 64; i++) bad[i * 64 + i] = kind == 0 ? 0 : 1;
        if (kind == 1) bad[5 * 64 + 5] = NAN;
        if (kind == 2) bad[3 * 64 + 4] = bad[4 * 64 + 3] = 40;    /* an eigenvalue of -39 */
        if (kind == 3) bad[3 * 64 + 4] = bad[4 * 64 + 3] = 1.06f; /* -0.06: 10% more cures it */
        struct log log = {0};
        struct walsh_hooks hooks = {.user = &log, .log = keep_line};
        struct walsh_queue q = queue_of(NULL);
        struct walsh_ldlq_input input;
        assert_int_equal(walsh_ldlq_input_open(&q, &p.in, bad, "layer.x", &hooks, &input, NULL), WALSH_OK);
        assert_int_equal(input.identity, kind != 3);
        static const char *const lines[4] = {
            "layer.x: the Hessian is zero (no calibration token came here); using the identity",
            "layer.x: the Hessian is not finite; using the identity",
            "layer.x: the Hessian cannot be factored; using the identity",
            "layer.x: the Hessian is not positive definite; damping it by 10% more"};
        assert_string_equal(log.last, lines[kind]);
        assert_int_equal(log.warnings, kind == 2 ? 2 : 1);
        if (kind != 3) { /* the same codes as without a Hessian */
            struct walsh_ldlq_result a, b;
            struct walsh_ldlq_options options = {2, 4, false, NULL};
            assert_int_equal(walsh_ldlq_quantize(&q, &input, &p.out, p.w, &options, &a, NULL, NULL),
                             WALSH_OK);
            run(&p, NULL, NULL, options, &b, NULL);
            assert_memory_equal(a.codes[0], b.codes[0], (size_t)a.m * a.n / 8 * 2);
            walsh_ldlq_result_close(&a), walsh_ldlq_result_close(&b);
        }
        walsh_ldlq_input_close(&input);
        walsh_queue_close(&q);
    }
    walsh_free(bad);
    free_problem(&p);
}

static void test_degenerate_weights(void **state)
{
    (void)state;
    struct problem p = make_problem(32, 64);
    float *d = room((size_t)p.m * p.n, sizeof *d);
    struct walsh_ldlq_result r;
    struct walsh_error err;
    memset(p.w, 0, (size_t)p.m * p.n * sizeof *p.w);
    run(&p, NULL, p.h, (struct walsh_ldlq_options){4, 2, true, NULL}, &r, d);
    assert_true(r.wscale == 0 && r.proxy == 0);
    for (size_t i = 0; i < (size_t)p.m * p.n; i++) assert_true(d[i] == 0);
    walsh_ldlq_result_close(&r);

    p.w[77] = NAN;
    struct walsh_queue q = queue_of(NULL);
    struct walsh_ldlq_input input;
    assert_int_equal(walsh_ldlq_input_open(&q, &p.in, p.h, "test", NULL, &input, NULL), WALSH_OK);
    struct walsh_ldlq_options options = {4, 2, true, NULL};
    assert_int_equal(walsh_ldlq_quantize(&q, &input, &p.out, p.w, &options, &r, d, &err), WALSH_E_FORMAT);
    assert_string_equal(err.message, "the weights hold NaN or Inf");
    options.bits = 9;
    assert_int_equal(walsh_ldlq_quantize(&q, &input, &p.out, p.w, &options, &r, d, &err), WALSH_E_ARGUMENT);
    walsh_ldlq_input_close(&input);
    walsh_queue_close(&q);
    walsh_free(d);
    free_problem(&p);
}

/* Scales in SU and SV: the proxy falls, the decoded matrix is still the formula's. */
static void test_scales(void **state)
{
    (void)state;
    struct problem p = make_problem(96, 192);
    for (uint32_t j = 0; j < p.n; j++) /* columns of uneven energy, as real layers have them */
        for (uint32_t i = 0; i < p.m; i++) p.w[i * p.n + j] *= j % 11 == 0 ? 0.4f : 1;
    float *d = room((size_t)p.m * p.n, sizeof *d), *diagonal = room(p.n, sizeof *diagonal);
    struct walsh_ldlq_result r;
    run(&p, NULL, p.h, (struct walsh_ldlq_options){2, 3, true, NULL}, &r, d);
    const double before = proxy_of(&p, d);
    walsh_ldlq_result_close(&r);

    for (uint32_t i = 0; i < p.n; i++) diagonal[i] = p.h[i * p.n + i];
    const float *list[1] = {p.w};
    float *sv = (float *)(uintptr_t)p.in.signs, *su = (float *)(uintptr_t)p.out.signs;
    assert_int_equal(walsh_scale_inputs(p.n, list, &p.m, 1, diagonal, sv, NULL), WALSH_OK);
    assert_int_equal(walsh_scale_outputs(&p.out, p.w, p.n, su, NULL), WALSH_OK);
    double mean = 0;
    for (uint32_t i = 0; i < p.n; i++) {
        assert_true(walsh_f32_from_f16(walsh_f16_from_f32(sv[i])) == sv[i]);
        mean += log(fabs((double)sv[i])) / p.n;
        if (i % 11 == 0) assert_true(fabsf(sv[i]) < fabsf(sv[i + 1]));
    }
    assert_true(fabs(mean) < 1e-3);
    run(&p, NULL, p.h, (struct walsh_ldlq_options){2, 3, true, NULL}, &r, d);
    check_decoded(&p, &r, d);
    assert_true(proxy_of(&p, d) < 0.98 * before);
    walsh_ldlq_result_close(&r);
    walsh_free(d), walsh_free(diagonal);
    free_problem(&p);
}

/* Even channels get no scale; each rotation block of outputs gets its own. */
static void test_scale_rules(void **state)
{
    (void)state;
    enum { M = 48, N = 64 };
    float w[M * N], sv[N], su[M];
    struct walsh_rotation r = {.kind = WALSH_ROTATION_BLOCKS, .size = M};
    assert_int_equal(walsh_blocks_binary(M, 16, &r.blocks, NULL), WALSH_OK);
    for (int i = 0; i < M * N; i++) w[i] = i % 2 ? 0.5f : -0.5f;
    for (int i = 0; i < N; i++) sv[i] = i % 3 ? 1 : -1;
    for (int i = 0; i < M; i++) su[i] = i % 3 ? 1 : -1;
    const float *list[1] = {w};
    const uint32_t rows = M;
    assert_int_equal(walsh_scale_inputs(N, list, &rows, 1, NULL, sv, NULL), WALSH_OK);
    assert_int_equal(walsh_scale_outputs(&r, w, N, su, NULL), WALSH_OK);
    for (int i = 0; i < N; i++) assert_true(sv[i] == (i % 3 ? 1 : -1));
    for (int i = 0; i < M; i++) assert_true(su[i] == (i % 3 ? 1 : -1));

    for (int i = 32 * N; i < M * N; i++) w[i] *= 4; /* the second block */
    memset(w + 5 * N, 0, N * sizeof *w);            /* a dead output */
    assert_int_equal(walsh_scale_outputs(&r, w, N, su, NULL), WALSH_OK);
    assert_true(fabsf(fabsf(su[40] / su[1]) / 4 - 1) < 0.05f);
    assert_true(isfinite(su[5]) && su[5] != 0);
}

static void test_hessian(void **state)
{
    (void)state;
    struct problem p = make_problem(16, 330); /* two tiles, the second cut */
    struct walsh_queue q = queue_of(NULL);
    struct walsh_hessian h;
    assert_int_equal(walsh_hessian_open(p.n, &h, NULL), WALSH_OK);
    for (size_t t = 0; t < TOKENS; t += 150)
        walsh_hessian_add(&q, &h, p.x + t * p.n, p.n, walsh_min(150, TOKENS - t));
    walsh_hessian_add(&q, &h, p.x, p.n, 0);
    assert_int_equal(h.tokens, TOKENS);
    walsh_hessian_finish(&h);
    for (uint32_t i = 0; i < p.n; i++)
        for (uint32_t j = 0; j < p.n; j++) {
            double sum = 0;
            for (int t = 0; t < TOKENS; t++)
                sum += (double)p.x[(size_t)t * p.n + i] * (double)p.x[(size_t)t * p.n + j];
            assert_true(fabs(sum / TOKENS - (double)h.sum[i * p.n + j]) < 1e-4);
        }
    walsh_hessian_close(&h);
    walsh_queue_close(&q);
    free_problem(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_hessian),
        cmocka_unit_test(test_sweep_matches_formula),
        cmocka_unit_test(test_wscale_search),
        cmocka_unit_test(test_better_than_nearest),
        cmocka_unit_test(test_proxy),
        cmocka_unit_test(test_threads),
        cmocka_unit_test(test_scales),
        cmocka_unit_test(test_scale_rules),
        cmocka_unit_test(test_degenerate_weights),
        cmocka_unit_test(test_identity_fallback),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
