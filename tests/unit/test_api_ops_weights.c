/* walsh_ops.h: linears of numbers and block formats, grouped products, routing and experts, against their formulas in
 * double precision; what is NULL is refused. */
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
    return ops_open(2, 20261123, &context, &queue, &random_state);
}

static int close_queue(void **state)
{
    (void)state;
    return ops_close(&context, &queue);
}

#define OPS_REFUSES(call, text) OPS_REFUSED(call, WALSH_E_ARGUMENT, text)

/* ---------------------------------------------------------------------------------------- a matrix */

/* Weights of a format, as a caller has them, and what they stand for. */
struct matrix {
    struct walsh_ops_weights weights;
    struct ops_tensor dense;
    uint8_t *codes, *zeros;
    void *scales;
    double *w; /* [rows][cols] */
};

static double e2m1(unsigned code)
{
    static const double magnitude[] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};
    return code & 8 ? -magnitude[code & 7] : magnitude[code & 7];
}

static double e4m3(unsigned code)
{
    const int exponent = (int)(code >> 3 & 15);
    const double mantissa = (double)(code & 7) / 8;
    const double value = exponent ? ldexp(1 + mantissa, exponent - 7) : ldexp(mantissa, -6);
    return code & 128 ? -value : value;
}

/* A random code's byte of a format, and its value before scale and zero. */
static double draw_code(enum walsh_ops_format format, unsigned *code)
{
    *code = (unsigned)(walsh_random_u64(&random_state) & 255);
    switch (format) {
    case WALSH_OPS_MXFP4:
    case WALSH_OPS_NVFP4:
        *code &= 15;
        return e2m1(*code);
    case WALSH_OPS_MXFP8:
    case WALSH_OPS_FP8:
        *code &= 0xbf; /* no NaN, nothing large */
        return e4m3(*code);
    case WALSH_OPS_INT4:
        *code &= 15;
        return *code;
    default:
        return *code;
    }
}

/* A random scale at `at`, about 2^-6 for E2M1 and what gives the others such weights. */
static double draw_scale(struct matrix *m, size_t at)
{
    const enum walsh_ops_format format = m->weights.format;
    const unsigned r = (unsigned)(walsh_random_u64(&random_state) % 5);
    uint8_t *byte = (uint8_t *)m->scales + at;
    if (format == WALSH_OPS_MXFP4 || format == WALSH_OPS_MXFP8) {
        *byte = (uint8_t)(119 + r);
        return ldexp(1, (int)*byte - 127);
    }
    if (format == WALSH_OPS_NVFP4) {
        *byte = (uint8_t)(40 + 9 * r);
        return e4m3(*byte);
    }
    const float scale = (float)(1 + r) / (format == WALSH_OPS_INT8 ? 2000 : 100);
    if (m->weights.scales.element == WALSH_ELEMENT_F32) {
        ((float *)m->scales)[at] = scale;
        return (double)scale;
    }
    const bool half = m->weights.scales.element == WALSH_ELEMENT_F16;
    const uint16_t bits = half ? walsh_f16_from_f32(scale) : walsh_bf16_from_f32(scale);
    ((uint16_t *)m->scales)[at] = bits;
    return (double)(half ? walsh_f32_from_f16(bits) : walsh_f32_from_bf16(bits));
}

static void make_dense(struct matrix *m, enum walsh_element element, uint32_t rows, uint32_t cols)
{
    memset(m, 0, sizeof *m);
    m->weights = (struct walsh_ops_weights)WALSH_OPS_WEIGHTS;
    m->weights.rows = rows;
    m->weights.cols = cols;
    m->dense = ops_tensor(element, rows, cols, cols);
    ops_fill(&m->dense, &random_state);
    m->weights.data = m->dense.view;
    m->w = malloc((size_t)rows * cols * sizeof *m->w);
    for (size_t i = 0; i < (size_t)rows * cols; i++) m->w[i] = ops_get(&m->dense, i / cols, i % cols);
}

/* group 0: one for all columns, where the format leaves it free. */
static void make_blocks(struct matrix *m, enum walsh_ops_format format, enum walsh_element scales,
                        uint32_t rows, uint32_t cols, uint32_t group, bool zeros)
{
    const bool narrow = format == WALSH_OPS_MXFP4 || format == WALSH_OPS_NVFP4 || format == WALSH_OPS_INT4;
    const bool affine = format == WALSH_OPS_INT4 || format == WALSH_OPS_INT8;
    const uint32_t width = group ? group : cols, groups = cols / width;
    const int64_t codes[] = {rows, narrow ? cols / 2 : cols}, few[] = {rows, groups};
    memset(m, 0, sizeof *m);
    m->weights = (struct walsh_ops_weights)WALSH_OPS_WEIGHTS;
    m->weights.format = format;
    m->weights.rows = rows;
    m->weights.cols = cols;
    if (format == WALSH_OPS_NVFP4) m->weights.tensor_scale = 0.03f;
    m->codes = calloc(rows, (size_t)codes[1]);
    m->scales = calloc((size_t)rows * groups, 4);
    m->zeros = calloc(rows, groups);
    m->w = malloc((size_t)rows * cols * sizeof *m->w);
    m->weights.data = walsh_view_dense(m->codes, WALSH_ELEMENT_U8, 2, codes);
    m->weights.scales = walsh_view_dense(m->scales, scales, 2, few);
    if (zeros) m->weights.zeros = walsh_view_dense(m->zeros, WALSH_ELEMENT_U8, 2, few);
    for (size_t r = 0; r < rows; r++)
        for (size_t g = 0; g < groups; g++) {
            const double scale = draw_scale(m, r * groups + g);
            const unsigned middle = format == WALSH_OPS_INT8 ? 128 : 8;
            const unsigned zero =
                zeros ? middle - 3 + (unsigned)(walsh_random_u64(&random_state) % 7) : middle;
            m->zeros[r * groups + g] = (uint8_t)zero;
            for (size_t c = g * width; c < (g + 1) * width; c++) {
                unsigned code;
                const double value = draw_code(format, &code);
                if (narrow)
                    m->codes[r * cols / 2 + c / 2] |= (uint8_t)(code << 4 * (c % 2));
                else
                    m->codes[r * cols + c] = (uint8_t)code;
                m->w[r * cols + c] =
                    (double)m->weights.tensor_scale * scale * (value - (affine ? (double)zero : 0));
            }
        }
}

static void free_matrix(struct matrix *m)
{
    if (m->dense.block) ops_free(&m->dense);
    free(m->codes);
    free(m->zeros);
    free(m->scales);
    free(m->w);
}

static struct walsh_ops_rotation *open_rotation(uint32_t size, uint32_t min_block, const char *name)
{
    struct walsh_ops_rotation_options o = WALSH_OPS_ROTATION_OPTIONS;
    struct walsh_ops_rotation *r;
    o.size = size;
    o.min_block = min_block;
    o.seed = 3;
    o.name = name;
    OPS_WORKS(walsh_ops_rotation_open(queue, &o, &r, &err));
    return r;
}

/* y [out] = inverse_out(W forward_in(x)), x [in]; rotations NULL: none. */
static void formula(const struct matrix *m, const struct walsh_ops_rotation *in,
                    const struct walsh_ops_rotation *out, const double *x, double *y)
{
    const uint32_t rows = m->weights.rows, cols = m->weights.cols;
    double *v = calloc(cols, sizeof *v), *z = calloc(rows, sizeof *z);
    struct ops_reference from = {0}, to = {0};
    if (in) from = ops_reference(in);
    if (out) to = ops_reference(out);
    memcpy(v, x, (in ? from.info.size : cols) * sizeof *v);
    if (in) ops_forward(&from, v);
    for (size_t r = 0; r < rows; r++)
        for (size_t c = 0; c < cols; c++) z[r] += m->w[r * cols + c] * v[c];
    if (out) ops_inverse(&to, z);
    memcpy(y, z, (out ? to.info.size : rows) * sizeof *y);
    free(from.signs);
    free(to.signs);
    free(v);
    free(z);
}

static struct walsh_ops_linear *open_linear(const struct matrix *m, const struct walsh_ops_rotation *in,
                                            const struct walsh_ops_rotation *out,
                                            const struct ops_tensor *bias,
                                            enum walsh_activation_mode activations)
{
    struct walsh_ops_linear_options o = WALSH_OPS_LINEAR_OPTIONS;
    struct walsh_ops_linear *linear;
    o.in = in;
    o.out = out;
    o.activations = activations;
    if (bias) {
        const int64_t shape[] = {(int64_t)bias->cols};
        o.bias = walsh_view_dense(bias->view.data, bias->view.element, 1, shape);
    }
    OPS_WORKS(walsh_ops_linear_open_weights(queue, &m->weights, &o, &linear, &err));
    return linear;
}

static void apply(const struct walsh_ops_linear *linear, const struct ops_tensor *x,
                  const struct ops_tensor *y, enum walsh_ops_role role)
{
    struct walsh_ops_call call = WALSH_OPS_CALL;
    call.role = role;
    call.workspace_size = walsh_ops_linear_workspace(linear, x->rows, NULL, 0);
    call.workspace = ops_aligned(call.workspace_size);
    OPS_WORKS(walsh_ops_linear_apply(queue, linear, &x->view, &y->view, &call, &err));
    free(call.workspace);
}

/* ---------------------------------------------------------------------------------------- linears */

static const struct form {
    enum walsh_ops_format format;
    enum walsh_element element; /* of dense weights, or of scales */
    uint32_t group;
    bool zeros;
    double rounded; /* what AUTO may be off, of |x| times a row's norm over its root of columns */
} forms[] = {
    {WALSH_OPS_DENSE, WALSH_ELEMENT_F32, 0, false, 1e-5},
    {WALSH_OPS_DENSE, WALSH_ELEMENT_F16, 0, false, 1e-5},
    {WALSH_OPS_DENSE, WALSH_ELEMENT_BF16, 0, false, 0.02},
    {WALSH_OPS_MXFP4, WALSH_ELEMENT_U8, 32, false, 0.05},
    {WALSH_OPS_NVFP4, WALSH_ELEMENT_U8, 16, false, 0.05},
    {WALSH_OPS_MXFP8, WALSH_ELEMENT_U8, 32, false, 0.02},
    {WALSH_OPS_FP8, WALSH_ELEMENT_F32, 0, false, 0.02},
    {WALSH_OPS_FP8, WALSH_ELEMENT_BF16, 64, false, 0.02},
    {WALSH_OPS_INT8, WALSH_ELEMENT_BF16, 0, false, 0.05},
    {WALSH_OPS_INT8, WALSH_ELEMENT_F16, 32, true, 0.05},
    {WALSH_OPS_INT4, WALSH_ELEMENT_F32, 64, true, 0.05},
    {WALSH_OPS_INT4, WALSH_ELEMENT_BF16, 32, false, 0.05},
};
#define FORMS (sizeof forms / sizeof *forms)

static void make_form(struct matrix *m, const struct form *f, uint32_t rows, uint32_t cols)
{
    if (f->format == WALSH_OPS_DENSE)
        make_dense(m, f->element, rows, cols);
    else
        make_blocks(m, f->format, f->element, rows, cols, f->group, f->zeros);
}

/* |y - expected| of a row of W is at most `most` times |x| |W_r| / sqrt(cols), one output's natural size. */
static void check_form(const struct form *f, const struct matrix *m, const struct walsh_ops_rotation *in,
                       const struct walsh_ops_rotation *out, size_t rows, enum walsh_element element,
                       enum walsh_activation_mode mode)
{
    const struct ops_reference none = {.info = {.size = 0}};
    struct ops_reference from = in ? ops_reference(in) : none, to = out ? ops_reference(out) : none;
    const size_t size_in = in ? from.info.size : m->weights.cols,
                 size_out = out ? to.info.size : m->weights.rows;
    struct ops_tensor bias = ops_tensor(WALSH_ELEMENT_F32, 1, size_out, size_out),
                      x = ops_tensor(element, rows, size_in, size_in + 3),
                      y = ops_tensor(element, rows, size_out, size_out + 5);
    ops_fill(&bias, &random_state);
    ops_fill(&x, &random_state);
    struct walsh_ops_linear *linear = open_linear(m, in, out, &bias, mode);
    apply(linear, &x, &y, rows > 4 ? WALSH_OPS_PREFILL : WALSH_OPS_DECODE);
    double total = 0, *v = malloc(size_in * sizeof *v), *expected = malloc(size_out * sizeof *expected);
    for (size_t i = 0; i < (size_t)m->weights.rows * m->weights.cols; i++) total += m->w[i] * m->w[i];
    const double weight = sqrt(total / m->weights.rows / m->weights.cols);
    for (size_t row = 0; row < rows; row++) {
        double norm = 0;
        for (size_t c = 0; c < size_in; c++) {
            v[c] = ops_get(&x, row, c);
            norm += v[c] * v[c];
        }
        formula(m, in, out, v, expected);
        const double most = (mode == WALSH_ACTIVATIONS_F32 ? 1e-5 : f->rounded) * sqrt(norm) * weight;
        for (size_t r = 0; r < size_out; r++) {
            const double want = expected[r] + ops_get(&bias, 0, r);
            if (!(fabs(ops_get(&y, row, r) - want) <= most + ops_rounding(element, want)))
                fail_msg("format %d, element %d, %s, mode %d: y[%zu][%zu] is %g, expected %g within %g",
                         f->format, f->element, in ? "rotated" : "plain", mode, row, r, ops_get(&y, row, r),
                         want, most);
        }
    }
    ops_check_guards(&x);
    ops_check_guards(&y);
    ops_free(&bias), ops_free(&x), ops_free(&y);
    free(v), free(expected);
    free(from.signs), free(to.signs);
    walsh_ops_linear_close(&linear);
}

static void weights_are_their_formula(void **state)
{
    (void)state;
    struct walsh_ops_rotation *in = open_rotation(180, 64, "in"), *out = open_rotation(40, 16, "out");
    for (size_t i = 0; i < FORMS; i++) {
        struct matrix plain, rotated;
        make_form(&plain, &forms[i], 37, 192);
        make_form(&rotated, &forms[i], 48, 192); /* the padded sizes of 40 and 180 */
        for (unsigned mode = 0; mode < 4; mode++) {
            const enum walsh_element element = (enum walsh_element)((i + mode) % 3);
            check_form(&forms[i], &plain, NULL, NULL, mode % 2 ? 20 : 3, element,
                       (enum walsh_activation_mode)mode);
            check_form(&forms[i], &rotated, in, out, mode % 2 ? 3 : 20, element,
                       (enum walsh_activation_mode)mode);
        }
        free_matrix(&plain);
        free_matrix(&rotated);
    }
    walsh_ops_rotation_close(&in);
    walsh_ops_rotation_close(&out);
}

/* AUTO rounds x on the formats that know int8, and on no f32 weights. */
static void rounding_is_on(void **state)
{
    (void)state;
    for (size_t i = 0; i < FORMS; i++) {
        struct matrix m;
        make_form(&m, &forms[i], 32, 128);
        struct walsh_ops_linear *exact = open_linear(&m, NULL, NULL, NULL, WALSH_ACTIVATIONS_F32),
                                *rounded = open_linear(&m, NULL, NULL, NULL, WALSH_ACTIVATIONS_AUTO);
        struct ops_tensor x = ops_tensor(WALSH_ELEMENT_F32, 1, 128, 128),
                          a = ops_tensor(WALSH_ELEMENT_F32, 1, 32, 32),
                          b = ops_tensor(WALSH_ELEMENT_F32, 1, 32, 32);
        ops_fill(&x, &random_state);
        apply(exact, &x, &a, WALSH_OPS_DECODE);
        apply(rounded, &x, &b, WALSH_OPS_DECODE);
        const bool differ = memcmp(a.block, b.block, a.bytes) != 0;
        if (forms[i].rounded == 0.05) assert_true(differ);
        if (forms[i].rounded == 1e-5) assert_false(differ);
        ops_free(&x), ops_free(&a), ops_free(&b);
        walsh_ops_linear_close(&exact);
        walsh_ops_linear_close(&rounded);
        free_matrix(&m);
    }
}

/* ---------------------------------------------------------------------------------------- groups */

#define GROUPS 40

/* The bits of each group's linear alone, with one rotation for all, one each, and none; more groups than a dispatch
 * has products. */
static void groups_are_their_linears(void **state)
{
    (void)state;
    static const enum walsh_element elements[] = {WALSH_ELEMENT_F32, WALSH_ELEMENT_BF16, WALSH_ELEMENT_F16};
    for (unsigned kind = 0; kind < 3; kind++) {
        struct matrix m[GROUPS];
        struct walsh_ops_rotation *in[GROUPS] = {NULL}, *out[GROUPS] = {NULL};
        struct walsh_ops_linear *linears[GROUPS];
        struct walsh_ops_group groups[GROUPS];
        struct ops_tensor bias = ops_tensor(WALSH_ELEMENT_F32, 1, 48, 48);
        size_t rows = 0;
        ops_fill(&bias, &random_state);
        for (size_t g = 0; g < GROUPS; g++) {
            make_form(&m[g], &forms[g % 2 ? 3 : 10], 48, 128);
            if (kind > 0) {
                char name[8];
                snprintf(name, sizeof name, "%u", kind == 1 ? 0u : (unsigned)g);
                in[g] = kind == 1 && g > 0 ? in[0] : open_rotation(128, 64, name);
                out[g] = open_rotation(48, 16, name);
            }
            linears[g] = open_linear(&m[g], in[g], out[g], g % 3 ? &bias : NULL, WALSH_ACTIVATIONS_AUTO);
            groups[g] = (struct walsh_ops_group){linears[g], g % 5 == 2 ? 0 : 1 + g % 3};
            rows += groups[g].rows;
        }
        const enum walsh_ops_role role = kind == 2 ? WALSH_OPS_PREFILL : WALSH_OPS_DECODE;
        struct ops_tensor x = ops_tensor(elements[kind], rows, 128, 130),
                          y = ops_tensor(elements[kind], rows, 48, 49);
        ops_fill(&x, &random_state);
        struct walsh_ops_call call = WALSH_OPS_CALL;
        call.role = role;
        call.workspace_size = walsh_ops_groups_workspace(groups, GROUPS);
        call.workspace = ops_aligned(call.workspace_size);
        OPS_WORKS(walsh_ops_linear_apply_groups(queue, groups, GROUPS, &x.view, &y.view, &call, &err));
        ops_check_guards(&y);
        for (size_t g = 0, at = 0; g < GROUPS; at += groups[g++].rows) {
            if (groups[g].rows == 0) continue;
            struct ops_tensor part = x, alone = ops_tensor(elements[kind], groups[g].rows, 48, 48);
            part.rows = groups[g].rows;
            part.view.shape[0] = (int64_t)part.rows;
            part.view.data = ops_at(&x, at, 0);
            apply(linears[g], &part, &alone, role);
            for (size_t r = 0; r < part.rows; r++)
                assert_memory_equal(ops_at(&alone, r, 0), ops_at(&y, at + r, 0),
                                    48 * ops_element_bytes(elements[kind]));
            ops_free(&alone);
        }
        groups[3].rows++;
        OPS_REFUSES(walsh_ops_linear_apply_groups(queue, groups, GROUPS, &x.view, &y.view, &call, &err),
                    "as the groups");
        free(call.workspace);
        ops_free(&x), ops_free(&y), ops_free(&bias);
        for (size_t g = 0; g < GROUPS; g++) {
            walsh_ops_linear_close(&linears[g]);
            if (g == 0 || kind == 2) walsh_ops_rotation_close(&in[g]);
            walsh_ops_rotation_close(&out[g]);
            free_matrix(&m[g]);
        }
    }
}

/* ---------------------------------------------------------------------------------------- experts */

#define EXPERTS 6
#define CHOSEN 2
#define ROWS 9
#define HIDDEN 96
#define MIDDLE 64

static void softmax(const struct ops_tensor *logits, size_t row, double *p)
{
    double sum = 0;
    for (size_t e = 0; e < logits->cols; e++) sum += p[e] = exp(ops_get(logits, row, e));
    for (size_t e = 0; e < logits->cols; e++) p[e] /= sum;
}

static void route_is_its_formula(void **state)
{
    (void)state;
    int32_t index[ROWS][CHOSEN];
    float weight[ROWS][CHOSEN];
    const int64_t shape[] = {ROWS, CHOSEN};
    const struct walsh_view places = walsh_view_dense(index, WALSH_ELEMENT_I32, 2, shape),
                            weights = walsh_view_dense(weight, WALSH_ELEMENT_F32, 2, shape);
    struct ops_tensor logits = ops_tensor(WALSH_ELEMENT_F32, ROWS, EXPERTS, EXPERTS);
    ops_fill(&logits, &random_state);
    ops_put(&logits, 4, 1, 3), ops_put(&logits, 4, 5, 3); /* a tie */
    for (int normalize = 0; normalize < 2; normalize++) {
        OPS_WORKS(walsh_ops_route(queue, &logits.view, normalize, &places, &weights, &err));
        assert_true(index[4][0] == 1 && index[4][1] == 5);
        for (size_t row = 0; row < ROWS; row++) {
            double p[EXPERTS];
            softmax(&logits, row, p);
            const double first = p[index[row][0]], second = p[index[row][1]],
                         sum = normalize ? first + second : 1;
            for (int e = 0; e < EXPERTS; e++)
                assert_true(p[e] <= first && (e == index[row][0] || p[e] <= second));
            assert_true(fabs((double)weight[row][0] - first / sum) < 1e-6);
            assert_true(fabs((double)weight[row][1] - second / sum) < 1e-6);
        }
    }
    struct walsh_view wide = places;
    wide.shape[1] = EXPERTS + 1;
    wide.strides[0] = EXPERTS + 1;
    OPS_REFUSES(walsh_ops_route(queue, &logits.view, true, &wide, &weights, &err), "7 of 6 experts");
    ops_free(&logits);
}

static double gate_formula(enum walsh_ops_gate gate, double g, double u)
{
    if (gate == WALSH_OPS_SWIGLU) return g / (1 + exp(-g)) * u;
    if (gate == WALSH_OPS_GEGLU) return g / 2 * (1 + tanh(sqrt(2 / M_PI) * (g + 0.044715 * g * g * g))) * u;
    const double limit = 1.25;
    g = fmin(g, limit);
    u = fmax(fmin(u, limit), -limit);
    return g / (1 + exp(-1.702 * g)) * (u + 1);
}

struct experts {
    struct matrix m[EXPERTS][3];
    struct walsh_ops_rotation *rotations[EXPERTS][4]; /* gate's in, up's in, down's in; out of down */
    struct walsh_ops_linear *linears[EXPERTS][3];
    struct walsh_ops_expert list[EXPERTS];
};

/* kind 0: plain; 1: gate and up share a rotation; 2: they have their own. */
static void open_experts(struct experts *x, unsigned kind, const struct form *f)
{
    memset(x, 0, sizeof *x);
    for (size_t e = 0; e < EXPERTS; e++) {
        char name[16];
        if (kind > 0) {
            for (unsigned i = 0; i < 4; i++) {
                snprintf(name, sizeof name, "%zu %u", e, i);
                if (i != 1 || kind == 2)
                    x->rotations[e][i] = open_rotation(i == 2 ? MIDDLE : HIDDEN,
                                                       i == 3   ? 16
                                                       : i == 2 ? 64
                                                                : 32,
                                                       name);
            }
            if (kind == 1) x->rotations[e][1] = x->rotations[e][0];
        }
        make_form(&x->m[e][0], f, MIDDLE, HIDDEN);
        make_form(&x->m[e][1], f, MIDDLE, HIDDEN);
        make_form(&x->m[e][2], f, HIDDEN, MIDDLE);
        for (unsigned i = 0; i < 3; i++)
            x->linears[e][i] = open_linear(&x->m[e][i], x->rotations[e][i],
                                           i == 2 ? x->rotations[e][3] : NULL, NULL, WALSH_ACTIVATIONS_F32);
        x->list[e] = (struct walsh_ops_expert){x->linears[e][0], x->linears[e][1], x->linears[e][2]};
    }
}

static void close_experts(struct experts *x)
{
    for (size_t e = 0; e < EXPERTS; e++) {
        if (x->rotations[e][1] == x->rotations[e][0]) x->rotations[e][1] = NULL;
        for (unsigned i = 0; i < 3; i++) {
            walsh_ops_linear_close(&x->linears[e][i]);
            free_matrix(&x->m[e][i]);
        }
        for (unsigned i = 0; i < 4; i++) walsh_ops_rotation_close(&x->rotations[e][i]);
    }
}

static void expert_formula(const struct experts *x, size_t e, enum walsh_ops_gate gate, const double *v,
                           double *y)
{
    double g[MIDDLE], u[MIDDLE];
    formula(&x->m[e][0], x->rotations[e][0], NULL, v, g);
    formula(&x->m[e][1], x->rotations[e][1], NULL, v, u);
    for (size_t i = 0; i < MIDDLE; i++) g[i] = gate_formula(gate, g[i], u[i]);
    formula(&x->m[e][2], x->rotations[e][2], x->rotations[e][3], g, y);
}

static enum walsh_status run_experts(const struct experts *x, const struct ops_tensor *in,
                                     const struct walsh_view *index, const struct walsh_view *weight,
                                     const struct ops_tensor *out, enum walsh_ops_gate gate)
{
    struct walsh_ops_experts_call call = WALSH_OPS_EXPERTS_CALL;
    call.gate = gate;
    call.limit = 1.25f;
    call.workspace_size = walsh_ops_experts_workspace(x->list, EXPERTS, in->rows, CHOSEN);
    call.workspace = ops_aligned(call.workspace_size);
    const enum walsh_status status =
        walsh_ops_experts_apply(queue, x->list, EXPERTS, &in->view, index, weight, &out->view, &call, &err);
    free(call.workspace);
    return status;
}

static void experts_are_their_formula(void **state)
{
    (void)state;
    static const size_t form[] = {3, 0, 2};
    for (unsigned kind = 0; kind < 3; kind++) {
        const enum walsh_ops_gate gate = (enum walsh_ops_gate)kind;
        struct experts x;
        int32_t index[ROWS][CHOSEN];
        const int64_t shape[] = {ROWS, CHOSEN}, one[] = {1, CHOSEN};
        open_experts(&x, kind, &forms[form[kind]]);
        struct ops_tensor in = ops_tensor((enum walsh_element)kind, ROWS, HIDDEN, HIDDEN + 1),
                          out = ops_tensor((enum walsh_element)kind, ROWS, HIDDEN, HIDDEN + 2),
                          weight = ops_tensor(WALSH_ELEMENT_F16, ROWS, CHOSEN, CHOSEN + 1);
        for (size_t row = 0; row < ROWS; row++) /* expert 5 stays without rows; row 3 has one twice */
            for (size_t j = 0; j < CHOSEN; j++) index[row][j] = (int32_t)((row * 3 + (row == 3 ? 0 : j)) % 5);
        ops_fill(&in, &random_state);
        ops_fill(&weight, &random_state);
        struct walsh_view places = walsh_view_dense(index, WALSH_ELEMENT_I32, 2, shape);
        OPS_WORKS(run_experts(&x, &in, &places, &weight.view, &out, gate));
        double largest = 0;
        for (size_t row = 0; row < ROWS; row++) {
            double v[HIDDEN], y[HIDDEN], expected[HIDDEN] = {0}, norm = 0;
            for (size_t c = 0; c < HIDDEN; c++) v[c] = ops_get(&in, row, c);
            for (size_t j = 0; j < CHOSEN; j++) {
                expert_formula(&x, (size_t)index[row][j], gate, v, y);
                for (size_t c = 0; c < HIDDEN; c++) expected[c] += ops_get(&weight, row, j) * y[c];
            }
            for (size_t c = 0; c < HIDDEN; c++) norm = fmax(norm, fabs(expected[c]));
            largest = fmax(largest, norm);
            for (size_t c = 0; c < HIDDEN; c++)
                if (!(fabs(ops_get(&out, row, c) - expected[c]) <=
                      2e-5 * norm + ops_rounding((enum walsh_element)kind, expected[c])))
                    fail_msg("kind %u: y[%zu][%zu] is %g, expected %g", kind, row, c, ops_get(&out, row, c),
                             expected[c]);
        }
        assert_true(largest > 0.01);
        ops_check_guards(&out);

        /* a row alone has the bits that it has among others */
        for (size_t row = 0; row < ROWS; row++) {
            struct ops_tensor part = in, alone = ops_tensor((enum walsh_element)kind, 1, HIDDEN, HIDDEN);
            struct walsh_view w = weight.view, i = walsh_view_dense(index[row], WALSH_ELEMENT_I32, 2, one);
            part.rows = 1;
            part.view.shape[0] = w.shape[0] = 1;
            part.view.data = ops_at(&in, row, 0);
            w.data = ops_at(&weight, row, 0);
            OPS_WORKS(run_experts(&x, &part, &i, &w, &alone, gate));
            assert_memory_equal(ops_at(&alone, 0, 0), ops_at(&out, row, 0),
                                HIDDEN * ops_element_bytes((enum walsh_element)kind));
            ops_free(&alone);
        }
        index[2][1] = EXPERTS;
        OPS_REFUSES(run_experts(&x, &in, &places, &weight.view, &out, gate),
                    "index[2][1] is 6, expected 0 to 5");
        ops_free(&in), ops_free(&out), ops_free(&weight);
        close_experts(&x);
    }
}

/* ---------------------------------------------------------------------------------------- refusals */

#define OPENS_NOT(text) OPS_REFUSES(walsh_ops_linear_open_weights(queue, &w, NULL, &linear, &err), text)

static void weights_are_refused(void **state)
{
    (void)state;
    struct walsh_ops_linear *linear;
    struct matrix m;
    make_blocks(&m, WALSH_OPS_INT4, WALSH_ELEMENT_F32, 16, 64, 32, true);
    struct walsh_ops_weights w = m.weights;
    m.zeros[3] = 16;
    OPENS_NOT("zeros: element 3 is 16, expected 0 to 15");
    m.zeros[3] = 15;
    ((float *)m.scales)[5] = NAN;
    OPENS_NOT("the scale of row 2, group 1 is no number");
    ((float *)m.scales)[5] = 1;
    OPS_WORKS(walsh_ops_linear_open_weights(queue, &w, NULL, &linear, &err));
    walsh_ops_linear_close(&linear);
    w.format = WALSH_OPS_MXFP4;
    OPENS_NOT("scales: element is f32, expected u8");
    w.format = WALSH_OPS_FP8;
    OPENS_NOT("data: shape is [16, 32], expected [16, 64]");
    w.format = (enum walsh_ops_format)7;
    OPENS_NOT("format is 7, expected 0 to 6");
    w = m.weights;
    w.scales.shape[1] = 3;
    OPENS_NOT("3 groups of 64 columns");
    w = m.weights;
    w.tensor_scale = 2;
    OPENS_NOT("tensor_scale is 2, expected 1 but for NVFP4");
    w = m.weights;
    w.rows = 0;
    OPENS_NOT("0 x 64 weights");
    w = m.weights;
    w.format = WALSH_OPS_DENSE;
    OPENS_NOT("dense weights have no scales");
    w = m.weights;
    w.struct_size = 4;
    OPENS_NOT("struct_size is 4");
    free_matrix(&m);

    make_blocks(&m, WALSH_OPS_FP8, WALSH_ELEMENT_F32, 16, 64, 0, false);
    w = m.weights;
    m.codes[100] = 0x7f;
    OPENS_NOT("row 1 holds NaN or Inf");
    w.zeros = w.data;
    OPENS_NOT("only int8 and int4 have zero points");
    free_matrix(&m);
}

/* Every call names what is NULL; sizes are 0, closing does nothing. */
static void null_is_refused(void **state)
{
    (void)state;
    float x[64] = {0};
    const int64_t shape[] = {1, 64};
    const struct walsh_view v = walsh_view_dense(x, WALSH_ELEMENT_F32, 2, shape);
    struct walsh_ops_rotation *rotation;
    struct walsh_ops_queue *q;
    struct walsh_ops_linear *linear = NULL;
    struct walsh_ops_adapter *adapter = NULL;
    struct walsh_ops_kv_codec *codec = NULL;
    struct walsh_ops_weights weights = WALSH_OPS_WEIGHTS;
    struct walsh_ops_codes codes = {0};
    struct walsh_ops_rotation_options o = WALSH_OPS_ROTATION_OPTIONS;
    struct walsh_ops_kv_codec_options k = WALSH_OPS_KV_CODEC_OPTIONS;
    struct walsh_ops_kv kv = {0};
    const struct walsh_ops_group group = {0};
    const struct walsh_ops_expert expert = {0};
    enum walsh_element elements[WALSH_OPS_STAGES];
    uint32_t stages;
    o.size = 64;
    k.head_dim = 64;

    OPS_REFUSES(walsh_view_from_dlpack(NULL, &(struct walsh_view){0}, &err), "tensor is NULL");
    OPS_REFUSES(walsh_view_from_dlpack(x, NULL, &err), "out is NULL");
    OPS_REFUSES(walsh_view_to_dlpack(NULL, x, &err), "view is NULL");
    OPS_REFUSES(walsh_view_to_dlpack((struct walsh_view *)(uintptr_t)&v, NULL, &err), "tensor is NULL");
    assert_int_equal(walsh_view_dense(x, WALSH_ELEMENT_F32, 2, NULL).rank, 0);
    OPS_REFUSES(walsh_ops_queue_open(NULL, NULL, &q, &err), "context is NULL");
    OPS_REFUSES(walsh_ops_queue_open(context, NULL, NULL, &err), "out is NULL");
    OPS_REFUSES(walsh_ops_rotation_open(NULL, &o, &rotation, &err), "queue is NULL");
    assert_null(rotation);
    OPS_REFUSES(walsh_ops_rotation_open(queue, &o, NULL, &err), "out is NULL");
    rotation = open_rotation(64, 64, "");
    struct walsh_ops_rotation_info info = {.struct_size = sizeof info, .size = 7};
    walsh_ops_rotation_get_info(NULL, &info);
    assert_int_equal(info.size, 0);
    walsh_ops_rotation_get_info(rotation, NULL);
    OPS_REFUSES(walsh_ops_rotation_get_signs(NULL, &v, &err), "rotation is NULL");
    OPS_REFUSES(walsh_ops_rotation_get_signs(rotation, NULL, &err), "signs is NULL");
    OPS_REFUSES(walsh_ops_rotate(NULL, rotation, &v, &v, &err), "queue is NULL");
    OPS_REFUSES(walsh_ops_rotate(queue, NULL, &v, &v, &err), "rotation is NULL");
    OPS_REFUSES(walsh_ops_rotate(queue, rotation, NULL, &v, &err), "x is NULL");
    OPS_REFUSES(walsh_ops_rotate(queue, rotation, &v, NULL, &err), "y is NULL");
    OPS_REFUSES(walsh_ops_unrotate(queue, NULL, &v, &v, &err), "rotation is NULL");
    OPS_REFUSES(walsh_ops_fold_rows(NULL, rotation, &v, &v, &err), "queue is NULL");
    OPS_REFUSES(walsh_ops_fold_columns(queue, NULL, &v, &v, &err), "rotation is NULL");
    OPS_REFUSES(walsh_ops_code_stages(2, NULL, elements, &err), "stages is NULL");
    OPS_REFUSES(walsh_ops_code_stages(2, &stages, NULL, &err), "elements is NULL");
    OPS_REFUSES(walsh_ops_encode(NULL, rotation, rotation, &v, NULL, &codes, NULL, &err), "queue is NULL");
    OPS_REFUSES(walsh_ops_encode(queue, rotation, rotation, &v, NULL, NULL, NULL, &err), "codes is NULL");
    OPS_REFUSES(walsh_ops_encode(queue, NULL, rotation, &v, NULL, &codes, NULL, &err), "in is NULL");
    OPS_REFUSES(walsh_ops_decode(NULL, NULL, NULL, &codes, &v, &err), "queue is NULL");
    OPS_REFUSES(walsh_ops_decode(queue, NULL, NULL, NULL, &v, &err), "codes is NULL");
    OPS_REFUSES(walsh_ops_codes_from_glq(NULL, &v, &err), "is NULL");
    OPS_REFUSES(walsh_ops_codes_to_glq(&v, NULL, &err), "is NULL");
    OPS_REFUSES(walsh_ops_linear_open(NULL, &codes, NULL, &linear, &err), "queue is NULL");
    OPS_REFUSES(walsh_ops_linear_open(queue, NULL, NULL, &linear, &err), "codes is NULL");
    OPS_REFUSES(walsh_ops_linear_open(queue, &codes, NULL, NULL, &err), "out is NULL");
    OPS_REFUSES(walsh_ops_linear_open_weights(NULL, &weights, NULL, &linear, &err), "queue is NULL");
    OPS_REFUSES(walsh_ops_linear_open_weights(queue, NULL, NULL, &linear, &err), "weights is NULL");
    OPS_REFUSES(walsh_ops_linear_open_weights(queue, &weights, NULL, NULL, &err), "out is NULL");
    OPS_REFUSES(walsh_ops_adapter_open(NULL, &v, &v, 1, WALSH_ADAPTER_AUTO, &adapter, &err),
                "linear is NULL");
    OPS_REFUSES(walsh_ops_linear_apply(queue, NULL, &v, &v, NULL, &err), "linear is NULL");
    OPS_REFUSES(walsh_ops_linear_apply_groups(NULL, &group, 1, &v, &v, NULL, &err), "queue is NULL");
    OPS_REFUSES(walsh_ops_linear_apply_groups(queue, NULL, 1, &v, &v, NULL, &err), "groups is NULL");
    OPS_REFUSES(walsh_ops_linear_apply_groups(queue, &group, 1, &v, &v, NULL, &err),
                "groups[0].linear is NULL");
    OPS_REFUSES(walsh_ops_route(NULL, &v, true, &v, &v, &err), "queue is NULL");
    OPS_REFUSES(walsh_ops_route(queue, &v, true, NULL, &v, &err), "index is NULL");
    OPS_REFUSES(walsh_ops_experts_apply(queue, NULL, 1, &v, &v, &v, &v, NULL, &err), "experts is NULL");
    OPS_REFUSES(walsh_ops_experts_apply(queue, &expert, 1, &v, &v, &v, &v, NULL, &err),
                "experts[0].gate is NULL");
    OPS_REFUSES(walsh_ops_kv_codec_open(NULL, &k, &codec, &err), "queue is NULL");
    OPS_REFUSES(walsh_ops_kv_codec_open(queue, &k, NULL, &err), "out is NULL");
    OPS_REFUSES(walsh_ops_kv_append(NULL, &kv, NULL, 1, &v, &v, NULL, &err), "queue is NULL");
    OPS_REFUSES(walsh_ops_kv_append(queue, NULL, NULL, 1, &v, &v, NULL, &err), "kv is NULL");
    OPS_REFUSES(walsh_ops_attention(queue, NULL, NULL, 1, &v, &v, NULL, &err), "kv is NULL");

    assert_int_equal(walsh_ops_linear_workspace(NULL, 1, NULL, 0), 0);
    assert_int_equal(walsh_ops_groups_workspace(NULL, 1), 0);
    assert_int_equal(walsh_ops_groups_workspace(&group, 1), 0);
    assert_int_equal(walsh_ops_experts_workspace(NULL, 1, 1, 1), 0);
    assert_int_equal(walsh_ops_experts_workspace(&expert, 1, 1, 1), 0);
    assert_int_equal(walsh_ops_kv_page_bytes(NULL, false, 1, 64), 0);
    assert_int_equal(walsh_ops_attention_workspace(NULL, 1, 1, 1), 0);
    walsh_ops_rotation_close(&rotation);
    for (int twice = 0; twice < 2; twice++) {
        walsh_ops_rotation_close(twice ? NULL : &rotation);
        walsh_ops_linear_close(twice ? NULL : &linear);
        walsh_ops_adapter_close(twice ? NULL : &adapter);
        walsh_ops_kv_codec_close(twice ? NULL : &codec);
        q = NULL;
        walsh_ops_queue_close(twice ? NULL : &q);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(weights_are_their_formula), cmocka_unit_test(rounding_is_on),
        cmocka_unit_test(groups_are_their_linears),  cmocka_unit_test(route_is_its_formula),
        cmocka_unit_test(experts_are_their_formula), cmocka_unit_test(weights_are_refused),
        cmocka_unit_test(null_is_refused),
    };
    return cmocka_run_group_tests(tests, open_queue, close_queue);
}
