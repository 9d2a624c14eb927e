/* The rotated low-bit linear against its formula in double precision, from GLQ files that the test writes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "unit/temporary.h"

#include "unit/checkpoint_files.h"

#include <math.h>

#include "base/random.h"
#include "checkpoint/glq.h"
#include "formats/e8p.h"
#include "model/linear.h"
#include "model/model.h"
#include "model/workspace.h"

#define ROWS 3
#define MODULE "model.layers.0.mlp.up_proj"

/* One GLQ linear in plain numbers. */
struct stored {
    uint32_t in, out, n_pad, m_pad;
    struct walsh_e8p_plan plan;
    uint16_t *codes[WALSH_MAX_STAGES]; /* [m_pad][n_pad/8] */
    uint16_t *su, *sv;                 /* f16 */
    float wscale;
    float *bias;
};

static const struct walsh_split whole = {false, 1};
static struct walsh_queue queue;
static struct walsh_pool *pool;

static void *allocate(size_t count, size_t size)
{
    void *p;
    if (walsh_alloc_zero(count, size, "test data", &p, NULL) != WALSH_OK) fail_msg("out of memory");
    return p;
}

static void make(struct stored *s, uint32_t in, uint32_t out, bool legacy, unsigned bits, uint64_t seed)
{
    struct walsh_random r;
    struct walsh_blocks columns, rows;
    walsh_random_seed(&r, seed);
    *s = (struct stored){.in = in, .out = out, .wscale = 0.037f};
    assert_int_equal(walsh_e8p_plan_bits(bits, &s->plan, NULL), WALSH_OK);
    if (legacy) {
        walsh_blocks_pow2(in, WALSH_MIN_BLOCK_COLUMNS, &columns, NULL);
        walsh_blocks_pow2(out, WALSH_MIN_BLOCK_ROWS, &rows, NULL);
    } else {
        walsh_blocks_binary(in, WALSH_MIN_BLOCK_COLUMNS, &columns, NULL);
        walsh_blocks_binary(out, WALSH_MIN_BLOCK_ROWS, &rows, NULL);
    }
    s->n_pad = columns.padded;
    s->m_pad = rows.padded;
    size_t count = (size_t)s->m_pad * (s->n_pad / 8);
    for (unsigned k = 0; k < s->plan.stages; k++) {
        s->codes[k] = allocate(count, sizeof *s->codes[k]);
        for (size_t i = 0; i < count; i++)
            s->codes[k][i] =
                (uint16_t)(walsh_random_u64(&r) & (s->plan.kind[k] == WALSH_STAGE_E8P ? 0xffffu : 0xffu));
    }
    s->su = allocate(s->m_pad, sizeof *s->su);
    s->sv = allocate(s->n_pad, sizeof *s->sv);
    /* signs with a scale beside them, as the layout allows */
    for (uint32_t i = 0; i < s->m_pad; i++)
        s->su[i] = walsh_f16_from_f32((walsh_random_u64(&r) & 1 ? 1.0f : -1.0f) * (i % 3 ? 1.0f : 0.75f));
    for (uint32_t i = 0; i < s->n_pad; i++)
        s->sv[i] = walsh_f16_from_f32((walsh_random_u64(&r) & 1 ? 1.0f : -1.0f) * (i % 5 ? 1.0f : 1.25f));
    s->bias = allocate(out, sizeof *s->bias);
    for (uint32_t i = 0; i < out; i++) s->bias[i] = (float)walsh_random_normal(&r);
}

static void clear(struct stored *s)
{
    for (unsigned k = 0; k < s->plan.stages; k++) walsh_free(s->codes[k]);
    walsh_free(s->su);
    walsh_free(s->sv);
    walsh_free(s->bias);
}

/* Write the linear as the only file of a model directory, its names below `module`. */
static void write_linear(const struct stored *s, const char *directory, const char *module)
{
    struct planned tensors[16];
    char names[16][100];
    size_t n = 0, count = (size_t)s->m_pad * (s->n_pad / 8);
    void *packed[WALSH_MAX_STAGES];
    mkdir(directory, 0700);
    for (unsigned k = 0; k < s->plan.stages; k++) {
        walsh_glq_codes_name(module, k, s->plan.kind[k], names[n], sizeof names[n]);
        if (s->plan.kind[k] == WALSH_STAGE_E8P) {
            packed[k] = allocate(count, 2);
            walsh_glq_pack_e8p(s->codes[k], s->m_pad, s->n_pad, packed[k]);
            tensors[n] =
                (struct planned){names[n], WALSH_I64, 4, {s->m_pad / 16, s->n_pad / 64, 8, 4}, packed[k]};
        } else {
            uint8_t *bytes = allocate(count, 1);
            for (size_t i = 0; i < count; i++) bytes[i] = (uint8_t)s->codes[k][i];
            packed[k] = bytes;
            tensors[n] = (struct planned){names[n], WALSH_I64, 2, {s->m_pad, s->n_pad / 64}, packed[k]};
        }
        n++;
        if (k == 0) continue;
        walsh_glq_scale_name(module, k, names[n], sizeof names[n]);
        tensors[n] = (struct planned){names[n], WALSH_F32, 0, {0}, &s->plan.cumulative_inverse[k]};
        n++;
    }
    snprintf(names[n], sizeof names[n], "%s.SU", module);
    tensors[n] = (struct planned){names[n], WALSH_F16, 1, {s->m_pad}, s->su};
    n++;
    snprintf(names[n], sizeof names[n], "%s.SV", module);
    tensors[n] = (struct planned){names[n], WALSH_F16, 1, {s->n_pad}, s->sv};
    n++;
    snprintf(names[n], sizeof names[n], "%s.Wscale", module);
    tensors[n] = (struct planned){names[n], WALSH_F32, 0, {0}, &s->wscale};
    n++;
    snprintf(names[n], sizeof names[n], "%s.bias", module);
    tensors[n] = (struct planned){names[n], WALSH_F32, 1, {s->out}, s->bias};
    n++;
    char path[600];
    snprintf(path, sizeof path, "%s/model.safetensors", directory);
    put_tensors(path, tensors, n);
    snprintf(path, sizeof path, "%s/config.json", directory);
    put_text(path, SMALL_CONFIG);
    for (unsigned k = 0; k < s->plan.stages; k++) walsh_free(packed[k]);
}

/* y[out] by the formula: crop(su * H(W^ · H(sv * pad(x)))) + bias, every sum in double. */
static void formula(const struct stored *s, const float *x, double *y)
{
    struct walsh_rotation in = {.kind = WALSH_ROTATION_BLOCKS, .size = s->in},
                          out = {.kind = WALSH_ROTATION_BLOCKS, .size = s->out};
    float *sv = allocate(s->n_pad, sizeof *sv), *su = allocate(s->m_pad, sizeof *su);
    double *x64 = allocate(s->in, sizeof *x64), *a = allocate(s->n_pad, sizeof *a),
           *z = allocate(s->m_pad, sizeof *z);
    for (uint32_t i = 0; i < s->n_pad; i++) sv[i] = walsh_f32_from_f16(s->sv[i]);
    for (uint32_t i = 0; i < s->m_pad; i++) su[i] = walsh_f32_from_f16(s->su[i]);
    for (uint32_t i = 0; i < s->in; i++) x64[i] = (double)x[i];
    in.signs = sv;
    out.signs = su;
    walsh_blocks_binary(s->n_pad, WALSH_MIN_BLOCK_COLUMNS, &in.blocks, NULL);
    walsh_blocks_binary(s->m_pad, WALSH_MIN_BLOCK_ROWS, &out.blocks, NULL);
    walsh_rotate_forward_f64(&in, x64, a);
    for (uint32_t r = 0; r < s->m_pad; r++) {
        z[r] = 0;
        for (uint32_t g = 0; g < s->n_pad / 8; g++) {
            for (unsigned k = 0; k < s->plan.stages; k++) {
                float w[8];
                uint16_t code = s->codes[k][(size_t)r * (s->n_pad / 8) + g];
                if (s->plan.kind[k] == WALSH_STAGE_E8P)
                    walsh_e8p_decode(code, w);
                else
                    walsh_e81b_decode((uint8_t)code, w);
                for (unsigned i = 0; i < 8; i++)
                    z[r] += (double)s->wscale * (double)s->plan.cumulative_inverse[k] * (double)w[i] *
                            a[8 * g + i];
            }
        }
    }
    walsh_rotate_inverse_f64(&out, z, y);
    for (uint32_t i = 0; i < s->out; i++) y[i] += (double)s->bias[i];
    walsh_free(sv);
    walsh_free(su);
    walsh_free(x64);
    walsh_free(a);
    walsh_free(z);
}

static struct walsh_workspace *open_workspace(uint32_t in, uint32_t out)
{
    struct walsh_error err;
    struct walsh_workspace *ws;
    const struct walsh_model_graph graph = {
        .config = {.hidden = in, .intermediate = out, .heads = 1, .kv_heads = 1, .head_dim = 64}};
    if (walsh_workspace_open(&graph, &queue, ROWS, &ws, &err) != WALSH_OK) fail_msg("%s", err.message);
    return ws;
}

/* Relative error of the result, in the norm over a row; the largest over the rows. */
static double error_of(const struct stored *s, const float *x, size_t ldx, const float *y)
{
    double *expected = allocate(s->out, sizeof *expected), worst = 0;
    for (size_t row = 0; row < ROWS; row++) {
        double difference = 0, norm = 0;
        formula(s, x + row * ldx, expected);
        for (uint32_t i = 0; i < s->out; i++) {
            double d = (double)y[row * s->out + i] - expected[i];
            difference += d * d;
            norm += expected[i] * expected[i];
        }
        worst = fmax(worst, sqrt(difference / norm));
    }
    walsh_free(expected);
    return worst;
}

static void check_one(uint32_t in, uint32_t out, bool legacy, unsigned bits, enum walsh_activation_type type,
                      enum walsh_role role, double bound)
{
    struct walsh_error err = {0};
    struct stored s;
    uint64_t seed = in * 1000003u + out * 101u + bits;
    make(&s, in, out, legacy, bits, seed);
    char directory[64];
    snprintf(directory, sizeof directory, "glq-%u-%u-%u-%d", in, out, bits, legacy);
    const char *path = temporary_path(directory);
    write_linear(&s, path, MODULE);

    struct walsh_checkpoint ck;
    struct walsh_arena arena = {0};
    struct walsh_linear linear;
    if (walsh_checkpoint_open(path, true, &ck, &err) != WALSH_OK ||
        walsh_linear_load(&linear, &ck, MODULE, NULL, &whole, in, out, true, type, WALSH_ACTIVATION_BF16,
                          pool, &arena, &err) != WALSH_OK ||
        walsh_checkpoint_all_used(&ck, &err) != WALSH_OK)
        fail_msg("%s", err.message);
    assert_int_equal(linear.activation, type);
    struct walsh_workspace *ws = open_workspace(in, out);
    float *x = allocate(ROWS * (in + 3), sizeof *x), *y = allocate(ROWS * out, sizeof *y);
    struct walsh_random r;
    walsh_random_seed(&r, seed + 1);
    for (size_t i = 0; i < ROWS * (in + 3); i++) x[i] = (float)walsh_random_normal(&r);
    const struct walsh_linear_call call = {&linear, y, out};
    walsh_linear_apply(&queue, ws, &call, 1, x, in + 3, ROWS, role, NULL);
    double error = error_of(&s, x, in + 3, y);
    if (!(error <= bound))
        fail_msg("%u -> %u, %u bits, legacy %d, type %d, role %d: relative error %g, at most %g", in, out,
                 bits, legacy, type, role, error, bound);
    walsh_free(x);
    walsh_free(y);
    walsh_workspace_close(&ws);
    walsh_arena_close(&arena);
    walsh_checkpoint_close(&ck);
    clear(&s);
}

static void rotated_linears_follow_the_formula(void **state)
{
    (void)state;
    /* 576 = 512+64; 100 -> 128; 80 -> 128 = one block; 40 -> 48 = 32+16; 1100 -> 1104 = 1024+64+16 */
    static const uint32_t sizes[][2] = {{576, 40}, {100, 1100}, {80, 16}, {64, 576}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        for (unsigned bits = 2; bits <= 8; bits += i == 0 ? 1 : 3)
            for (unsigned role = 0; role < 2; role++) {
                check_one(sizes[i][0], sizes[i][1], false, bits, WALSH_ACTIVATION_F32, (enum walsh_role)role,
                          1e-5);
                check_one(sizes[i][0], sizes[i][1], false, bits, WALSH_ACTIVATION_INT8, (enum walsh_role)role,
                          0.02);
                check_one(sizes[i][0], sizes[i][1], true, bits, WALSH_ACTIVATION_F32, (enum walsh_role)role,
                          1e-5);
            }
}

/* Three linears of one list: two share their input's signs, one has others; one more is dense. Each gives the
 * bits that it gives alone. */
static void a_list_gives_the_bits_of_single_calls(void **state)
{
    (void)state;
    enum { IN = 576, OUT = 80 };
    struct walsh_error err = {0};
    struct walsh_checkpoint ck[3];
    struct walsh_arena arena = {0};
    struct walsh_linear linear[4];
    struct stored s[3];
    for (unsigned i = 0; i < 3; i++) {
        make(&s[i], IN, OUT, false, 2 + i, 50 + i);
        if (i == 1) memcpy(s[1].sv, s[0].sv, s[0].n_pad * sizeof *s[0].sv);
        char directory[32];
        snprintf(directory, sizeof directory, "list-%u", i);
        write_linear(&s[i], temporary_path(directory), MODULE);
        if (walsh_checkpoint_open(temporary_path(directory), true, &ck[i], &err) != WALSH_OK ||
            walsh_linear_load(&linear[i], &ck[i], MODULE, NULL, &whole, IN, OUT, true, WALSH_ACTIVATION_INT8,
                              WALSH_ACTIVATION_F32, pool, &arena, &err) != WALSH_OK)
            fail_msg("%s", err.message);
    }
    assert_true(walsh_rotation_equal(&linear[0].in_rotation, &linear[1].in_rotation));
    assert_false(walsh_rotation_equal(&linear[0].in_rotation, &linear[2].in_rotation));
    float *dense = allocate(IN * OUT, sizeof *dense), *x = allocate(ROWS * 768, sizeof *x);
    struct walsh_random r;
    walsh_random_seed(&r, 99);
    for (size_t i = 0; i < IN * OUT; i++) dense[i] = (float)walsh_random_normal(&r);
    linear[3] =
        (struct walsh_linear){.name = "dense",
                              .in = IN,
                              .out = OUT,
                              .in_rotation = {.size = IN, .blocks = {.padded = IN}},
                              .out_rotation = {.size = OUT, .blocks = {.padded = OUT}},
                              .weights = {.format = WALSH_FORMAT_F32, .rows = OUT, .cols = IN, .data = dense},
                              .bias = s[0].bias,
                              .activation = WALSH_ACTIVATION_F32};
    /* rows at the stride of activations, zero behind their end: the dense product reads them in place */
    size_t ldx = walsh_activations_stride(IN);
    assert_int_equal(ldx, 768);
    for (size_t row = 0; row < ROWS; row++)
        for (size_t i = 0; i < IN; i++) x[row * ldx + i] = (float)walsh_random_normal(&r);
    struct walsh_workspace *ws = open_workspace(IN, OUT);
    float *together = allocate(4 * ROWS * OUT, sizeof *together),
          *alone = allocate(ROWS * OUT, sizeof *alone);
    struct walsh_linear_call calls[4];
    for (size_t i = 0; i < 4; i++)
        calls[i] = (struct walsh_linear_call){&linear[i], together + i * ROWS * OUT, OUT};
    walsh_linear_apply(&queue, ws, calls, 4, x, ldx, ROWS, WALSH_DECODE, NULL);
    for (size_t i = 0; i < 4; i++) {
        const struct walsh_linear_call call = {&linear[i], alone, OUT};
        walsh_linear_apply(&queue, ws, &call, 1, x, ldx, ROWS, WALSH_DECODE, NULL);
        assert_memory_equal(alone, together + i * ROWS * OUT, ROWS * OUT * sizeof *alone);
        if (i < 3) assert_true(error_of(&s[i], x, ldx, alone) < 0.02);
    }
    /* the dense one against plain arithmetic, from a copy of x that it cannot read in place */
    float *copy = allocate(ROWS * (IN + 1), sizeof *copy);
    for (size_t row = 0; row < ROWS; row++) memcpy(copy + row * (IN + 1), x + row * ldx, IN * sizeof *x);
    const struct walsh_linear_call call = {&linear[3], alone, OUT};
    walsh_linear_apply(&queue, ws, &call, 1, copy, IN + 1, ROWS, WALSH_DECODE, NULL);
    assert_memory_equal(alone, together + 3 * ROWS * OUT, ROWS * OUT * sizeof *alone);
    for (size_t row = 0; row < ROWS; row++) {
        for (size_t o = 0; o < OUT; o++) {
            double y = (double)s[0].bias[o];
            for (size_t i = 0; i < IN; i++) y += (double)dense[o * IN + i] * (double)x[row * ldx + i];
            assert_true(fabs(y - (double)alone[row * OUT + o]) < 1e-3);
        }
    }
    walsh_free(copy);
    walsh_free(together);
    walsh_free(alone);
    walsh_free(dense);
    walsh_free(x);
    walsh_workspace_close(&ws);
    walsh_arena_close(&arena);
    for (unsigned i = 0; i < 3; i++) {
        walsh_checkpoint_close(&ck[i]);
        clear(&s[i]);
    }
}

/* More calls than share a dispatch, and more rotated outputs than the workspace holds at once. */
static void long_lists_run_in_parts(void **state)
{
    (void)state;
    enum { IN = 64, OUT = 64, CALLS = WALSH_LINEAR_CALLS + 9 };
    struct walsh_error err = {0};
    struct walsh_checkpoint ck;
    struct walsh_arena arena = {0};
    struct walsh_linear linear;
    struct stored s;
    make(&s, IN, OUT, false, 2, 5);
    write_linear(&s, temporary_path("long"), MODULE);
    if (walsh_checkpoint_open(temporary_path("long"), true, &ck, &err) != WALSH_OK ||
        walsh_linear_load(&linear, &ck, MODULE, NULL, &whole, IN, OUT, true, WALSH_ACTIVATION_F32,
                          WALSH_ACTIVATION_F32, pool, &arena, &err) != WALSH_OK)
        fail_msg("%s", err.message);
    struct walsh_workspace *ws = open_workspace(IN, OUT);
    assert_true(ws->z_elements < (size_t)CALLS * ROWS * OUT);
    float x[ROWS * IN], y[CALLS][ROWS * OUT];
    for (size_t i = 0; i < ROWS * IN; i++) x[i] = (float)(i % 13) - 6;
    struct walsh_linear_call calls[CALLS];
    for (size_t i = 0; i < CALLS; i++) calls[i] = (struct walsh_linear_call){&linear, y[i], OUT};
    walsh_linear_apply(&queue, ws, calls, CALLS, x, IN, ROWS, WALSH_PREFILL, NULL);
    for (size_t i = 0; i < CALLS; i++) assert_memory_equal(y[i], y[0], sizeof y[0]);
    assert_true(error_of(&s, x, IN, y[0]) < 1e-5);
    walsh_workspace_close(&ws);
    walsh_arena_close(&arena);
    walsh_checkpoint_close(&ck);
    clear(&s);
}

static void a_scale_that_is_not_a_number_is_refused(void **state)
{
    (void)state;
    struct walsh_error err = {0};
    struct walsh_checkpoint ck;
    struct walsh_arena arena = {0};
    struct walsh_linear linear;
    struct stored s;
    make(&s, 64, 32, false, 2, 6);
    s.wscale = NAN;
    write_linear(&s, temporary_path("nan"), MODULE);
    assert_int_equal(walsh_checkpoint_open(temporary_path("nan"), true, &ck, &err), WALSH_OK);
    assert_int_equal(walsh_linear_load(&linear, &ck, MODULE, NULL, &whole, 64, 32, true,
                                       WALSH_ACTIVATION_INT8, WALSH_ACTIVATION_F32, pool, &arena, &err),
                     WALSH_E_FORMAT);
    assert_string_equal(without_directory(err.message), "DIR/nan/model.safetensors: tensor " MODULE
                                                        ".Wscale: is nan, expected a finite number");
    walsh_arena_close(&arena);
    walsh_checkpoint_close(&ck);
    clear(&s);
}

static int open_queue(void **state)
{
    if (temporary_make(state) != 0 || walsh_pool_open(2, &pool, NULL) != WALSH_OK) return -1;
    return walsh_queue_open(WALSH_CPU_BEST, pool, &queue, NULL) == WALSH_OK ? 0 : -1;
}

static int close_queue(void **state)
{
    walsh_queue_close(&queue);
    walsh_pool_close(&pool);
    return temporary_remove(state);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rotated_linears_follow_the_formula),
        cmocka_unit_test(a_list_gives_the_bits_of_single_calls),
        cmocka_unit_test(long_lists_run_in_parts),
        cmocka_unit_test(a_scale_that_is_not_a_number_is_refused),
    };
    return cmocka_run_group_tests(tests, open_queue, close_queue);
}
