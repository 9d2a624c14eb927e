/* walsh_ops.h: rotations, folds, codes and linears against their formulas in double precision. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "unit/ops_data.h"

static struct walsh_context *context;
static struct walsh_ops_queue *queue;
static struct walsh_error err;
static struct walsh_random random_state;

static int open_queue(void **state)
{
    (void)state;
    return ops_open(2, 20261122, &context, &queue, &random_state);
}

static int close_queue(void **state)
{
    (void)state;
    return ops_close(&context, &queue);
}

static struct walsh_ops_rotation *open_rotation(const char *kind, uint32_t size, uint32_t min_block,
                                                uint32_t parts, bool scaled)
{
    struct walsh_ops_rotation *r, *plain;
    struct walsh_ops_rotation_options o = WALSH_OPS_ROTATION_OPTIONS;
    o.size = size;
    o.kind = kind;
    o.min_block = min_block;
    o.parts = parts;
    o.seed = 7;
    o.name = "test";
    OPS_WORKS(walsh_ops_rotation_open(queue, &o, &r, &err));
    if (!scaled) return r;
    /* signs times scales, in f16, as checkpoints have them */
    struct ops_reference reference = ops_reference(r);
    const size_t count = (size_t)reference.info.padded * reference.info.sign_vectors;
    struct ops_tensor signs = ops_tensor(WALSH_ELEMENT_F16, 1, count, count);
    for (size_t i = 0; i < count; i++) ops_put(&signs, 0, i, reference.signs[i] * (i % 3 ? 1 : 0.75));
    const int64_t shape[] = {2, reference.info.padded};
    const bool two = reference.info.sign_vectors == 2;
    o.signs = walsh_view_dense(signs.view.data, WALSH_ELEMENT_F16, two ? 2 : 1, two ? shape : shape + 1);
    plain = r;
    OPS_WORKS(walsh_ops_rotation_open(queue, &o, &r, &err));
    walsh_ops_rotation_close(&plain);
    ops_free(&signs);
    free(reference.signs);
    return r;
}

/* ---------------------------------------------------------------------------------------- rotations */

static const struct shape {
    const char *kind;
    uint32_t size, min_block, parts, padded;
    bool scaled;
} shapes[] = {
    {NULL, 96, 0, 0, 128, false},     {"block", 192, 64, 0, 192, true}, {"block", 100, 16, 0, 112, false},
    {"pow2", 96, 64, 0, 128, true},   {"overlap", 96, 16, 0, 96, true}, {"overlap", 200, 64, 0, 256, false},
    {"block", 384, 64, 2, 384, true}, {"block", 1, 1, 0, 1, false},     {"overlap", 704, 64, 0, 704, false}};
#define SHAPES (sizeof shapes / sizeof *shapes)

/* forward and inverse of every kind, from and to every element, rows apart, against the definition. */
static void rotation_is_its_formula(void **state)
{
    (void)state;
    for (size_t i = 0; i < SHAPES; i++) {
        struct walsh_ops_rotation *r = open_rotation(shapes[i].kind, shapes[i].size, shapes[i].min_block,
                                                     shapes[i].parts, shapes[i].scaled);
        struct ops_reference reference = ops_reference(r);
        const uint32_t size = shapes[i].size, padded = reference.info.padded;
        assert_int_equal(padded, shapes[i].padded);
        double *v = malloc(padded * sizeof *v);
        for (unsigned elements = 0; elements < 9; elements++) {
            const enum walsh_element from = (enum walsh_element)(elements % 3),
                                     to = (enum walsh_element)(elements / 3);
            struct ops_tensor x = ops_tensor(from, 3, size, size + 5),
                              y = ops_tensor(to, 3, padded, padded + 3),
                              back = ops_tensor(from, 3, size, size);
            ops_fill(&x, &random_state);
            OPS_WORKS(walsh_ops_rotate(queue, r, &x.view, &y.view, &err));
            OPS_WORKS(walsh_ops_unrotate(queue, r, &y.view, &back.view, &err));
            for (size_t row = 0; row < 3; row++) {
                double norm = 0;
                for (uint32_t c = 0; c < size; c++) {
                    v[c] = ops_get(&x, row, c);
                    norm += v[c] * v[c];
                }
                const double tolerance = 1e-6 * sqrt(norm);
                ops_forward(&reference, v);
                for (uint32_t c = 0; c < padded; c++)
                    if (!(fabs(ops_get(&y, row, c) - v[c]) <= tolerance + ops_rounding(to, v[c])))
                        fail_msg("shape %zu, %s to %s: y[%zu][%u] is %g, expected %g", i,
                                 ops_element_names[from], ops_element_names[to], row, c, ops_get(&y, row, c),
                                 v[c]);
                for (uint32_t c = 0; c < padded; c++) v[c] = ops_get(&y, row, c);
                ops_inverse(&reference, v);
                for (uint32_t c = 0; c < size; c++)
                    if (!(fabs(ops_get(&back, row, c) - v[c]) <= tolerance + ops_rounding(from, v[c])))
                        fail_msg("shape %zu, %s to %s: x[%zu][%u] is %g, expected %g", i,
                                 ops_element_names[to], ops_element_names[from], row, c,
                                 ops_get(&back, row, c), v[c]);
            }
            ops_check_guards(&x);
            ops_check_guards(&y);
            ops_check_guards(&back);
            ops_free(&x);
            ops_free(&y);
            ops_free(&back);
        }
        free(v);
        free(reference.signs);
        walsh_ops_rotation_close(&r);
    }
}

/* In place, leading dimensions that are one run of rows, and column slices of one matrix. */
static void rotation_of_views(void **state)
{
    (void)state;
    struct walsh_ops_rotation *r = open_rotation("block", 64, 64, 0, false);
    struct ops_tensor x = ops_tensor(WALSH_ELEMENT_F32, 6, 64, 64),
                      y = ops_tensor(WALSH_ELEMENT_F32, 6, 64, 64),
                      both = ops_tensor(WALSH_ELEMENT_F32, 6, 128, 130);
    ops_fill(&x, &random_state);
    OPS_WORKS(walsh_ops_rotate(queue, r, &x.view, &y.view, &err));

    struct walsh_view deep = x.view; /* [2, 3, 64] */
    deep.rank = 3;
    deep.shape[0] = 2, deep.shape[1] = 3, deep.shape[2] = 64;
    deep.strides[0] = 192, deep.strides[1] = 64, deep.strides[2] = 1;
    struct walsh_view left = both.view, right = both.view;
    left.shape[1] = right.shape[1] = 64;
    right.data = ops_at(&both, 0, 64);
    OPS_WORKS(walsh_ops_rotate(queue, r, &deep, &right, &err));
    OPS_WORKS(walsh_ops_rotate(queue, r, &right, &left, &err)); /* between each other */
    for (size_t row = 0; row < 6; row++) {
        assert_memory_equal(ops_at(&both, row, 64), ops_at(&y, row, 0), 64 * sizeof(float));
        for (size_t c = 0; c < 64;
             c++) /* twice without the signs between them is no identity: compare with y rotated */
            assert_true(isfinite(ops_get(&both, row, c)));
    }
    OPS_WORKS(walsh_ops_rotate(queue, r, &y.view, &y.view, &err));
    for (size_t row = 0; row < 6; row++)
        assert_memory_equal(ops_at(&both, row, 0), ops_at(&y, row, 0), 64 * sizeof(float));
    OPS_WORKS(walsh_ops_unrotate(queue, r, &y.view, &y.view, &err));
    OPS_WORKS(walsh_ops_unrotate(queue, r, &y.view, &y.view, &err));
    for (size_t row = 0; row < 6; row++)
        for (size_t c = 0; c < 64; c++) assert_true(fabs(ops_get(&y, row, c) - ops_get(&x, row, c)) < 2e-6);
    ops_check_guards(&both);
    ops_free(&x);
    ops_free(&y);
    ops_free(&both);
    walsh_ops_rotation_close(&r);
}

/* folded x = a forward(x), and folded h = forward(b h), from their definitions. */
static void folds_are_their_formulas(void **state)
{
    (void)state;
    for (size_t i = 0; i < SHAPES; i++) {
        struct walsh_ops_rotation *r = open_rotation(shapes[i].kind, shapes[i].size, shapes[i].min_block,
                                                     shapes[i].parts, shapes[i].scaled);
        struct ops_reference reference = ops_reference(r);
        const uint32_t size = shapes[i].size, padded = reference.info.padded;
        const enum walsh_element from = (enum walsh_element)(i % 3), to = (enum walsh_element)(i / 3 % 3);
        struct ops_tensor a = ops_tensor(from, 2, padded, padded + 1),
                          folded = ops_tensor(to, 2, size, size + 2), b = ops_tensor(from, size, 3, 4),
                          wide = ops_tensor(to, padded, 3, 3);
        double *v = malloc(padded * sizeof *v);
        ops_fill(&a, &random_state);
        ops_fill(&b, &random_state);
        OPS_WORKS(walsh_ops_fold_rows(queue, r, &a.view, &folded.view, &err));
        OPS_WORKS(walsh_ops_fold_columns(queue, r, &b.view, &wide.view, &err));
        for (size_t row = 0; row < 2; row++) {
            double sum = 0, expected = 0, scale = 0; /* both sides applied to a random x */
            for (uint32_t c = 0; c < padded; c++) v[c] = c < size ? walsh_random_normal(&random_state) : 0;
            for (uint32_t c = 0; c < size; c++) {
                sum += ops_get(&folded, row, c) * v[c];
                scale += fabs(ops_get(&folded, row, c) * v[c]);
            }
            ops_forward(&reference, v);
            for (uint32_t c = 0; c < padded; c++) expected += ops_get(&a, row, c) * v[c];
            if (!(fabs(sum - expected) <= scale * (to == WALSH_ELEMENT_F32 ? 1e-6 : 0x1p-8) + 1e-6))
                fail_msg("shape %zu: a folded row gives %g, expected %g", i, sum, expected);
        }
        for (size_t c = 0; c < 3; c++) {
            for (uint32_t j = 0; j < padded; j++) v[j] = j < size ? ops_get(&b, j, c) : 0;
            ops_forward(&reference, v);
            for (uint32_t j = 0; j < padded; j++)
                if (!(fabs(ops_get(&wide, j, c) - v[j]) <= 1e-6 + ops_rounding(to, v[j])))
                    fail_msg("shape %zu: folded[%u][%zu] is %g, expected %g", i, j, c, ops_get(&wide, j, c),
                             v[j]);
        }
        ops_check_guards(&folded);
        ops_check_guards(&wide);
        ops_free(&a), ops_free(&folded), ops_free(&b), ops_free(&wide);
        free(v);
        free(reference.signs);
        walsh_ops_rotation_close(&r);
    }
}

/* ---------------------------------------------------------------------------------------- codes and linears
 */

#define IN 100 /* padded 128 */
#define OUT 40 /* padded 48 */
#define N_PAD 128
#define M_PAD 48

/* A quantized matrix with everything that a caller keeps. */
struct matrix {
    struct walsh_ops_rotation *in, *out;
    struct ops_tensor w;
    struct walsh_ops_codes codes;
    double error;
};

static void make_matrix(struct matrix *m, unsigned bits, bool overlap, bool with_hessian)
{
    enum walsh_element elements[WALSH_OPS_STAGES];
    uint32_t stages;
    const int64_t shape[] = {M_PAD, N_PAD / 8}, square[] = {IN, IN};
    memset(m, 0, sizeof *m);
    m->in = open_rotation(overlap ? "overlap" : "block", IN, 64, 0, true);
    m->out = open_rotation("block", OUT, 16, 0, true);
    m->w = ops_tensor(WALSH_ELEMENT_F32, OUT, IN, IN + 1);
    ops_fill(&m->w, &random_state);
    OPS_WORKS(walsh_ops_code_stages(bits, &stages, elements, &err));
    for (uint32_t k = 0; k < stages; k++)
        m->codes.codes[k] = walsh_view_dense(calloc(M_PAD * N_PAD / 8, ops_element_bytes(elements[k])),
                                             elements[k], 2, shape);
    struct walsh_ops_encode_options o = WALSH_OPS_ENCODE_OPTIONS;
    o.bits = bits;
    float *hessian = calloc(IN * IN, sizeof *hessian);
    for (size_t i = 0; i < IN; i++)
        for (size_t j = 0; j < IN; j++)
            hessian[i * IN + j] = (i == j ? 1.0f : 0.9f) / (float)(1 + (i > j ? i - j : j - i));
    if (with_hessian) o.hessian = walsh_view_dense(hessian, WALSH_ELEMENT_F32, 2, square);
    OPS_WORKS(walsh_ops_encode(queue, m->in, m->out, &m->w.view, &o, &m->codes, &m->error, &err));
    assert_int_equal(m->codes.stages, stages);
    free(hessian);
}

static void free_matrix(struct matrix *m)
{
    for (uint32_t k = 0; k < m->codes.stages; k++) free(m->codes.codes[k].data);
    ops_free(&m->w);
    walsh_ops_rotation_close(&m->in);
    walsh_ops_rotation_close(&m->out);
}

/* W^ [M_PAD][N_PAD] as the call decodes it. */
static double *decoded(const struct matrix *m)
{
    struct ops_tensor w = ops_tensor(WALSH_ELEMENT_F32, M_PAD, N_PAD, N_PAD);
    double *out = malloc(M_PAD * N_PAD * sizeof *out);
    OPS_WORKS(walsh_ops_decode(queue, NULL, NULL, &m->codes, &w.view, &err));
    for (size_t i = 0; i < M_PAD * N_PAD; i++) out[i] = ops_get(&w, i / N_PAD, i % N_PAD);
    ops_free(&w);
    return out;
}

/* y = inverse_out(W^ forward_in(x)) in double precision. */
static void linear_reference(const struct matrix *m, const double *w, const double *x, double y[M_PAD])
{
    struct ops_reference in = ops_reference(m->in), out = ops_reference(m->out);
    double v[N_PAD] = {0};
    memcpy(v, x, IN * sizeof *v);
    ops_forward(&in, v);
    for (size_t r = 0; r < M_PAD; r++) {
        y[r] = 0;
        for (size_t c = 0; c < N_PAD; c++) y[r] += w[r * N_PAD + c] * v[c];
    }
    ops_inverse(&out, y);
    free(in.signs);
    free(out.signs);
}

/* Codes decode to what the lattice says, to the weights that were encoded, and go through GLQ's order and
 * back. */
static void codes_come_back(void **state)
{
    (void)state;
    double last = 1;
    for (unsigned bits = 2; bits <= 6; bits++) {
        struct matrix m;
        make_matrix(&m, bits, bits == 4, bits % 2 == 0);
        print_message("%u bits: relative error %.5f\n", bits, m.error);
        assert_true(m.error > 0 && m.error < last);
        last = m.error;
        assert_true(bits != 2 || m.error < 0.15);

        /* the linear's weights are near the ones that were given, by as much as the error says */
        struct ops_tensor w = ops_tensor(WALSH_ELEMENT_F32, OUT, IN, IN + 3),
                          half = ops_tensor(WALSH_ELEMENT_F16, OUT, IN, IN);
        OPS_WORKS(walsh_ops_decode(queue, m.in, m.out, &m.codes, &w.view, &err));
        OPS_WORKS(walsh_ops_decode(queue, m.in, m.out, &m.codes, &half.view, &err));
        double distance = 0, norm = 0;
        for (size_t r = 0; r < OUT; r++)
            for (size_t c = 0; c < IN; c++) {
                const double d = ops_get(&w, r, c) - ops_get(&m.w, r, c);
                distance += d * d;
                norm += ops_get(&m.w, r, c) * ops_get(&m.w, r, c);
                assert_true(fabs(ops_get(&half, r, c) - ops_get(&w, r, c)) <=
                            ops_rounding(WALSH_ELEMENT_F16, ops_get(&w, r, c)));
            }
        assert_true(distance / norm < (m.error < 0.02 ? 4 : 2.5) * m.error + 0.01);
        ops_check_guards(&w);

        /* W^ x of a unit vector by the formula is a column of it */
        double *rotated = decoded(&m), x[IN] = {0}, y[M_PAD];
        x[17] = 1;
        linear_reference(&m, rotated, x, y);
        for (size_t r = 0; r < OUT; r++) assert_true(fabs(y[r] - ops_get(&w, r, 17)) < 1e-5);
        free(rotated);

        for (uint32_t k = 0; k < m.codes.stages; k++) {
            const bool e8p = m.codes.codes[k].element == WALSH_ELEMENT_U16;
            const int64_t tiled[] = {M_PAD / 16, N_PAD / 64, 8, 4}, plain[] = {M_PAD, N_PAD / 64};
            const size_t bytes = M_PAD * N_PAD / 8 * (e8p ? 2 : 1);
            struct walsh_view stored =
                walsh_view_dense(calloc(1, bytes), WALSH_ELEMENT_I64, e8p ? 4 : 2, e8p ? tiled : plain);
            struct walsh_view again = m.codes.codes[k];
            again.data = calloc(1, bytes);
            OPS_WORKS(walsh_ops_codes_to_glq(&m.codes.codes[k], &stored, &err));
            OPS_WORKS(walsh_ops_codes_from_glq(&stored, &again, &err));
            assert_memory_equal(again.data, m.codes.codes[k].data, bytes);
            assert_true(!e8p || memcmp(stored.data, again.data, bytes) != 0);
            free(stored.data);
            free(again.data);
        }
        ops_free(&w);
        ops_free(&half);
        free_matrix(&m);
    }
}

/* Every activation mode, element and role, with a bias and without rotations, with adapters. */
static void linear_is_its_formula(void **state)
{
    (void)state;
    struct matrix m;
    make_matrix(&m, 3, false, false);
    double *w = decoded(&m), x[IN], y[M_PAD];
    struct ops_tensor bias = ops_tensor(WALSH_ELEMENT_BF16, 1, OUT, OUT),
                      a = ops_tensor(WALSH_ELEMENT_F32, 5, IN, IN),
                      b = ops_tensor(WALSH_ELEMENT_F16, OUT, 5, 7);
    ops_fill(&bias, &random_state);
    ops_fill(&a, &random_state);
    ops_fill(&b, &random_state);
    for (unsigned mode = 0; mode < 12; mode++) {
        const bool rounded = mode % 2, adapted = mode / 2 % 2;
        const enum walsh_element from = (enum walsh_element)(mode / 4),
                                 to = (enum walsh_element)((mode / 2 + 1) % 3);
        struct walsh_ops_linear_options o = WALSH_OPS_LINEAR_OPTIONS;
        struct walsh_ops_linear *linear;
        struct walsh_ops_adapter *adapter = NULL;
        const int64_t out[] = {OUT};
        o.in = m.in;
        o.out = m.out;
        o.bias = walsh_view_dense(bias.view.data, WALSH_ELEMENT_BF16, 1, out);
        o.activations = rounded ? WALSH_ACTIVATIONS_AUTO : WALSH_ACTIVATIONS_F32;
        OPS_WORKS(walsh_ops_linear_open(queue, &m.codes, &o, &linear, &err));
        if (adapted)
            OPS_WORKS(
                walsh_ops_adapter_open(linear, &a.view, &b.view, 0.5f, WALSH_ADAPTER_F32, &adapter, &err));
        const struct walsh_ops_adapter *list[] = {adapter, adapter};
        const size_t rows = mode % 3 ? 3 : 20;
        struct ops_tensor in = ops_tensor(from, rows, IN, IN + 2),
                          result = ops_tensor(to, rows, OUT, OUT + 1);
        ops_fill(&in, &random_state);
        struct walsh_ops_call call = WALSH_OPS_CALL;
        call.role = rows > 3 ? WALSH_OPS_PREFILL : WALSH_OPS_DECODE;
        call.adapters = list;
        call.adapter_count = adapted ? 2 : 0;
        call.workspace_size = walsh_ops_linear_workspace(linear, rows, list, call.adapter_count);
        call.workspace = ops_aligned(call.workspace_size);
        OPS_WORKS(walsh_ops_linear_apply(queue, linear, &in.view, &result.view, &call, &err));
        double squares = 0, norms = 0;
        for (size_t row = 0; row < rows; row++) {
            double norm = 0;
            for (size_t c = 0; c < IN; c++) {
                x[c] = ops_get(&in, row, c);
                norm += x[c] * x[c];
            }
            linear_reference(&m, w, x, y);
            for (size_t r = 0; r < OUT; r++) {
                double expected = y[r] + ops_get(&bias, 0, r), h;
                for (size_t j = 0; adapted && j < 5; j++) {
                    h = 0;
                    for (size_t c = 0; c < IN; c++) h += ops_get(&a, j, c) * x[c];
                    expected += 2 * 0.5 * ops_get(&b, r, j) * h;
                }
                /* int8: an error of amax / 127 / sqrt(12) per input, of which as many come together as W has
                 * columns: four of its standard deviations, and below by the mean square */
                const double tolerance = (rounded ? 0.04 : 1e-5) * sqrt(norm) + ops_rounding(to, expected);
                if (!(fabs(ops_get(&result, row, r) - expected) <= tolerance))
                    fail_msg("mode %u: y[%zu][%zu] is %g, expected %g within %g", mode, row, r,
                             ops_get(&result, row, r), expected, tolerance);
                squares += (ops_get(&result, row, r) - expected) * (ops_get(&result, row, r) - expected);
            }
            norms += norm;
        }
        if (!(sqrt(squares / OUT / norms) < 0.012))
            fail_msg("mode %u: %g of |x|", mode, sqrt(squares / OUT / norms));
        ops_check_guards(&in);
        ops_check_guards(&result);
        free(call.workspace);
        ops_free(&in);
        ops_free(&result);
        walsh_ops_adapter_close(&adapter);
        walsh_ops_linear_close(&linear);
    }
    ops_free(&bias), ops_free(&a), ops_free(&b);
    free(w);
    free_matrix(&m);
}

/* W^ by itself, without rotations. */
static void linear_without_rotations(void **state)
{
    (void)state;
    struct matrix m;
    make_matrix(&m, 4, false, false);
    double *w = decoded(&m);
    struct walsh_ops_linear *linear;
    struct walsh_ops_linear_options o = WALSH_OPS_LINEAR_OPTIONS;
    o.activations = WALSH_ACTIVATIONS_F32;
    OPS_WORKS(walsh_ops_linear_open(queue, &m.codes, &o, &linear, &err));
    struct ops_tensor x = ops_tensor(WALSH_ELEMENT_F32, 2, N_PAD, N_PAD),
                      y = ops_tensor(WALSH_ELEMENT_F32, 2, M_PAD, M_PAD);
    ops_fill(&x, &random_state);
    struct walsh_ops_call call = WALSH_OPS_CALL;
    call.workspace_size = walsh_ops_linear_workspace(linear, 2, NULL, 0);
    call.workspace = ops_aligned(call.workspace_size);
    OPS_WORKS(walsh_ops_linear_apply(queue, linear, &x.view, &y.view, &call, &err));
    for (size_t row = 0; row < 2; row++)
        for (size_t r = 0; r < M_PAD; r++) {
            double expected = 0;
            for (size_t c = 0; c < N_PAD; c++) expected += w[r * N_PAD + c] * ops_get(&x, row, c);
            assert_true(fabs(ops_get(&y, row, r) - expected) < 1e-4);
        }
    free(call.workspace);
    free(w);
    ops_free(&x), ops_free(&y);
    walsh_ops_linear_close(&linear);
    free_matrix(&m);
}

/* ---------------------------------------------------------------------------------------- threads */

#define CALLS 300

struct caller {
    const struct walsh_ops_linear *linear;
    struct ops_tensor x, y, expected;
    unsigned calls, differ;
};

static void *call_often(void *argument)
{
    struct caller *c = argument;
    struct walsh_ops_call call = WALSH_OPS_CALL;
    call.workspace_size = walsh_ops_linear_workspace(c->linear, c->x.rows, NULL, 0);
    call.workspace = aligned_alloc(64, (call.workspace_size + 63) / 64 * 64);
    for (c->calls = 0; c->calls < CALLS; c->calls++) {
        if (walsh_ops_linear_apply(queue, c->linear, &c->x.view, &c->y.view, &call, NULL) != WALSH_OK) break;
        c->differ += memcmp(c->y.block, c->expected.block, c->y.bytes) != 0;
    }
    free(call.workspace);
    return NULL;
}

/* Three threads on one queue take turns, and each gets the bits that it gets alone, every time. */
static void threads_share_a_queue(void **state)
{
    (void)state;
    struct matrix m;
    make_matrix(&m, 2, false, false);
    struct walsh_ops_linear *linear;
    struct walsh_ops_linear_options o = WALSH_OPS_LINEAR_OPTIONS;
    o.in = m.in;
    o.out = m.out;
    OPS_WORKS(walsh_ops_linear_open(queue, &m.codes, &o, &linear, &err));
    struct caller callers[3];
    pthread_t threads[3];
    for (size_t i = 0; i < 3; i++) {
        struct caller *c = &callers[i];
        *c = (struct caller){.linear = linear,
                             .x = ops_tensor(WALSH_ELEMENT_F16, 64, IN, IN),
                             .y = ops_tensor(WALSH_ELEMENT_BF16, 64, OUT, OUT),
                             .expected = ops_tensor(WALSH_ELEMENT_BF16, 64, OUT, OUT)};
        ops_fill(&c->x, &random_state);
        struct walsh_ops_call call = WALSH_OPS_CALL;
        call.workspace_size = walsh_ops_linear_workspace(linear, 64, NULL, 0);
        call.workspace = ops_aligned(call.workspace_size);
        OPS_WORKS(walsh_ops_linear_apply(queue, linear, &c->x.view, &c->expected.view, &call, &err));
        free(call.workspace);
    }
    for (size_t i = 0; i < 3; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, call_often, &callers[i]), 0);
    for (size_t i = 0; i < 3; i++) pthread_join(threads[i], NULL);
    for (size_t i = 0; i < 3; i++) {
        assert_int_equal(callers[i].calls, CALLS);
        assert_int_equal(callers[i].differ, 0);
        ops_free(&callers[i].x), ops_free(&callers[i].y), ops_free(&callers[i].expected);
    }
    walsh_ops_linear_close(&linear);
    free_matrix(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rotation_is_its_formula),  cmocka_unit_test(rotation_of_views),
        cmocka_unit_test(folds_are_their_formulas), cmocka_unit_test(codes_come_back),
        cmocka_unit_test(linear_is_its_formula),    cmocka_unit_test(linear_without_rotations),
        cmocka_unit_test(threads_share_a_queue),
    };
    return cmocka_run_group_tests(tests, open_queue, close_queue);
}
