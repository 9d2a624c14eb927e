/* The canonical form against the unfused formula in double precision, for the three conventions, and what the
 * test sees when a fold is wrong. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/random.h"
#include "model/adapter.h"

enum rotation { NONE, BLOCKS, POW2, SCALED, ROTATIONS }; /* SCALED: blocks, and signs that are not ±1 */
static const char *const rotation_names[] = {"none", "blocks", "pow2", "scaled"};
static const uint32_t ranks[] = {1, 3, 8, 16, 17, 64, 256};
enum { RANKS = sizeof ranks / sizeof *ranks };
static const double share = 0.25; /* of the delta's norm in the base output's: far above every tolerance */

/* A linear with random rotated weights, an input, and y = inverse_out(W~ forward_in(x)). */
struct bench {
    struct walsh_random random;
    struct walsh_linear linear;
    float *in_signs, *out_signs;
    double *x, *rotated, *z, *y; /* [in], [in padded], [out padded], [out] */
    float *a, *a_rotated, *b;    /* sources' A for x and for forward_in(x), and B; for rank 256 */
    float *b_scaled;             /* the B of the last source */
    struct walsh_arena arena;
};

static double *draw(struct bench *t, size_t n)
{
    double *v = calloc(n, sizeof *v);
    for (size_t i = 0; i < n; i++) v[i] = walsh_random_normal(&t->random);
    return v;
}

static float *make_rotation(struct bench *t, enum rotation kind, uint32_t n, uint32_t min_block,
                            const char *name, struct walsh_rotation *r)
{
    *r = (struct walsh_rotation){.kind = WALSH_ROTATION_NONE, .size = n, .blocks = {.padded = n}};
    if (kind == NONE) return NULL;
    r->kind = WALSH_ROTATION_BLOCKS;
    assert_int_equal((kind == POW2 ? walsh_blocks_pow2 : walsh_blocks_binary)(n, min_block, &r->blocks, NULL),
                     WALSH_OK);
    float *signs = calloc(r->blocks.padded, sizeof *signs);
    walsh_random_signs(walsh_random_u64(&t->random), name, signs, r->blocks.padded);
    for (uint32_t i = 0; kind == SCALED && i < r->blocks.padded; i++)
        signs[i] *= (float)(0.5 + walsh_random_uniform(&t->random));
    r->signs = signs;
    return signs;
}

static void bench_open(struct bench *t, enum rotation kind, uint32_t in, uint32_t out, uint64_t seed)
{
    memset(t, 0, sizeof *t);
    walsh_random_seed(&t->random, seed);
    t->linear = (struct walsh_linear){.name = "model.layers.0.self_attn.q_proj", .in = in, .out = out};
    t->in_signs = make_rotation(t, kind, in, WALSH_MIN_BLOCK_COLUMNS, "in", &t->linear.in_rotation);
    t->out_signs = make_rotation(t, kind, out, WALSH_MIN_BLOCK_ROWS, "out", &t->linear.out_rotation);
    const size_t inputs = t->linear.in_rotation.blocks.padded, outputs = t->linear.out_rotation.blocks.padded;
    t->x = draw(t, in);
    t->rotated = calloc(inputs, sizeof *t->rotated);
    t->z = calloc(outputs, sizeof *t->z);
    t->y = calloc(out, sizeof *t->y);
    walsh_rotate_forward_f64(&t->linear.in_rotation, t->x, t->rotated);
    for (size_t o = 0; o < outputs; o++)
        for (size_t i = 0; i < inputs; i++)
            t->z[o] += walsh_random_normal(&t->random) / sqrt((double)inputs) * t->rotated[i];
    double *z = malloc(outputs * sizeof *z);
    memcpy(z, t->z, outputs * sizeof *z);
    walsh_rotate_inverse_f64(&t->linear.out_rotation, z, t->y);
    free(z);
    /* A leans towards its input: a sum A x that cancels to nothing would measure the storage type, not the
     * fold. */
    t->a = malloc(256 * in * sizeof *t->a);
    t->a_rotated = malloc(256 * inputs * sizeof *t->a);
    t->b = malloc(256 * outputs * sizeof *t->b);
    t->b_scaled = malloc(256 * outputs * sizeof *t->b);
    for (size_t j = 0; j < 256; j++) {
        const double lean = j % 3 == 0 ? -0.5 : 0.5;
        for (size_t i = 0; i < in; i++)
            t->a[j * in + i] = (float)(walsh_random_normal(&t->random) + lean * t->x[i]);
        for (size_t i = 0; i < inputs; i++)
            t->a_rotated[j * inputs + i] = (float)(walsh_random_normal(&t->random) + lean * t->rotated[i]);
    }
    for (size_t i = 0; i < 256 * outputs; i++) t->b[i] = (float)walsh_random_normal(&t->random);
}

static void bench_close(struct bench *t)
{
    free(t->in_signs), free(t->out_signs);
    free(t->x), free(t->rotated), free(t->z), free(t->y);
    free(t->a), free(t->a_rotated), free(t->b), free(t->b_scaled);
    walsh_arena_close(&t->arena);
}

static double norm(const double *v, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += v[i] * v[i];
    return sqrt(sum);
}

/* delta [out] = the update's share of y by the definition of its convention. */
static void unfused_delta(const struct bench *t, const struct walsh_adapter_source *s, double *delta)
{
    const struct walsh_rotation *in = &t->linear.in_rotation, *out = &t->linear.out_rotation;
    const bool rotated = s->convention == WALSH_ADAPTER_ROTATED_INPUT,
               late = s->convention == WALSH_ADAPTER_ROTATED_OUTPUT;
    const size_t columns = rotated ? in->blocks.padded : in->size,
                 rows = late ? out->blocks.padded : out->size;
    double h[256] = {0}, *z = calloc(out->blocks.padded, sizeof *z);
    for (size_t j = 0; j < s->rank; j++)
        for (size_t i = 0; i < columns; i++)
            h[j] += (double)s->a[j * columns + i] * (rotated ? t->rotated[i] : t->x[i]);
    for (size_t o = 0; o < rows; o++)
        for (size_t j = 0; j < s->rank; j++) z[o] += s->scale * (double)s->b[o * s->rank + j] * h[j];
    if (late)
        walsh_rotate_inverse_f64(out, z, delta);
    else
        memcpy(delta, z, rows * sizeof *z);
    free(z);
}

/* Relative error of inverse_out(z + B'(A x)) against y + delta, with B' times `factor`. */
static double fused_error(const struct bench *t, const struct walsh_adapter_linear *l, const double *delta,
                          double factor)
{
    const struct walsh_rotation *out = &t->linear.out_rotation;
    double h[256] = {0}, *z = malloc(out->blocks.padded * sizeof *z), *y = malloc(out->size * sizeof *y),
           *want;
    for (size_t j = 0; j < l->rank; j++)
        for (size_t i = 0; i < l->in; i++) h[j] += (double)walsh_adapter_a(l, j, i) * t->x[i];
    for (size_t o = 0; o < l->out; o++) {
        z[o] = t->z[o];
        for (size_t j = 0; j < l->rank; j++) z[o] += factor * (double)walsh_adapter_b(l, o, j) * h[j];
    }
    walsh_rotate_inverse_f64(out, z, y);
    want = z;
    for (size_t o = 0; o < out->size; o++) {
        want[o] = t->y[o] + delta[o];
        y[o] -= want[o];
    }
    const double error = norm(y, out->size) / norm(want, out->size);
    free(z), free(y);
    return error;
}

/* The source of a rank whose delta is `share` of y. */
static struct walsh_adapter_source make_source(struct bench *t, enum walsh_adapter_convention convention,
                                               uint32_t rank, double *delta)
{
    struct walsh_adapter_source s = {.convention = convention,
                                     .rank = rank,
                                     .scale = 1,
                                     .a = convention == WALSH_ADAPTER_ROTATED_INPUT ? t->a_rotated : t->a,
                                     .b = t->b};
    unfused_delta(t, &s, delta);
    s.scale = 4;
    const double factor = share * norm(t->y, t->linear.out) / norm(delta, t->linear.out) / s.scale;
    for (size_t i = 0; i < (size_t)rank * t->linear.out_rotation.blocks.padded; i++)
        t->b_scaled[i] = (float)(factor * (double)t->b[i]);
    s.b = t->b_scaled;
    unfused_delta(t, &s, delta);
    return s;
}

/* Every place of the two matrices that is not an element of A or B is zero. */
static void check_padding(const struct walsh_adapter_linear *l)
{
    const size_t element = l->storage == WALSH_FORMAT_F32 ? 4 : 2;
    const size_t a_size = walsh_low_rank_a_size(l->rank, l->in),
                 b_size = walsh_low_rank_b_size(l->storage, l->rank, l->out);
    assert_int_equal((uintptr_t)l->a % 64, 0);
    assert_int_equal((uintptr_t)l->b % 64, 0);
    assert_int_equal(a_size * element % 64, 0);
    assert_int_equal(b_size * element % 64, 0);
    char *used = calloc(a_size + b_size, 1);
    for (size_t j = 0; j < l->rank; j++) {
        for (size_t i = 0; i < l->in; i++) used[walsh_low_rank_a_at(l->storage, l->in, j, i)]++;
        for (size_t o = 0; o < l->out; o++) used[a_size + walsh_low_rank_b_at(l->storage, l->rank, o, j)]++;
    }
    for (size_t i = 0; i < a_size; i++) {
        assert_true(used[i] <= 1);
        if (!used[i]) assert_true(walsh_low_rank_get(l->storage, l->a, i) == 0);
    }
    for (size_t i = 0; i < b_size; i++) {
        assert_true(used[a_size + i] <= 1);
        if (!used[a_size + i]) assert_true(walsh_low_rank_get(l->storage, l->b, i) == 0);
    }
    free(used);
}

static void check_case(struct bench *t, enum rotation kind, enum walsh_adapter_convention convention,
                       uint32_t rank, enum walsh_format storage)
{
    struct walsh_error err = {0};
    struct walsh_adapter_linear built;
    double *delta = calloc(t->linear.out, sizeof *delta);
    const struct walsh_adapter_source s = make_source(t, convention, rank, delta);
    if (walsh_adapter_linear_build(&t->linear, &s, storage, &t->arena, &built, &err) != WALSH_OK)
        fail_msg("%s", err.message);
    check_padding(&built);
    const double error = fused_error(t, &built, delta, 1);
    const double tolerance = storage == WALSH_FORMAT_F32 ? 1e-6 : 1e-3;
    if (!(error < tolerance))
        fail_msg("%s, convention %d, rank %u, %u -> %u, %s: error %g", rotation_names[kind], (int)convention,
                 rank, t->linear.in, t->linear.out, walsh_format_name(storage), error);
    /* A missing scale is another scale; it must not pass for rounding. */
    assert_true(fused_error(t, &built, delta, 1 / s.scale) > 100 * tolerance);
    assert_true(fused_error(t, &built, delta, 0) > 100 * tolerance);
    free(delta);
}

static void test_conventions(void **state)
{
    (void)state;
    static const uint32_t shapes[][2] = {{576, 320}, {320, 96}, {1536, 80}, {80, 576}, {65, 17}};
    const uint64_t seed = 20250811;
    print_message("seed %llu\n", (unsigned long long)seed);
    for (enum rotation kind = 0; kind < ROTATIONS; kind++)
        for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
            struct bench t;
            bench_open(&t, kind, shapes[s][0], shapes[s][1], seed + 16 * kind + s);
            for (enum walsh_adapter_convention c = WALSH_ADAPTER_PEFT; c <= WALSH_ADAPTER_ROTATED_OUTPUT; c++)
                for (size_t r = 0; r < RANKS; r++) {
                    check_case(&t, kind, c, ranks[r], WALSH_FORMAT_F32);
                    check_case(&t, kind, c, ranks[r], WALSH_FORMAT_BF16);
                }
            bench_close(&t);
        }
}

/* Error of an f32 fold that a bug made: `a` [rank][in] and `b` [out padded][rank] replace the canonical ones.
 */
static double planted_error(const struct bench *t, uint32_t rank, const float *a, const float *b,
                            const double *delta)
{
    const uint32_t in = t->linear.in_rotation.size, outs = t->linear.out_rotation.blocks.padded;
    const enum walsh_format f32 = WALSH_FORMAT_F32;
    float *a_packed = calloc(walsh_low_rank_a_size(rank, in), sizeof *a_packed);
    float *b_packed = calloc(walsh_low_rank_b_size(f32, rank, outs), sizeof *b_packed);
    for (size_t j = 0; j < rank; j++) {
        for (size_t i = 0; i < in; i++)
            walsh_low_rank_put(f32, a_packed, walsh_low_rank_a_at(f32, in, j, i), a[j * in + i]);
        for (size_t o = 0; o < outs; o++)
            walsh_low_rank_put(f32, b_packed, walsh_low_rank_b_at(f32, rank, o, j), b[o * rank + j]);
    }
    const struct walsh_adapter_linear wrong = {
        .rank = rank, .in = in, .out = outs, .storage = f32, .a = a_packed, .b = b_packed};
    const double error = fused_error(t, &wrong, delta, 1);
    free(a_packed), free(b_packed);
    return error;
}

/* The order of the other direction: A's rows by signs then butterfly, B's columns by butterfly then signs. */
static void test_wrong_order(void **state)
{
    (void)state;
    const uint32_t rank = 16;
    for (enum rotation kind = BLOCKS; kind <= SCALED; kind++) {
        struct bench t;
        bench_open(&t, kind, 576, 320, 7 + kind);
        const struct walsh_rotation *in = &t.linear.in_rotation, *out = &t.linear.out_rotation;
        const size_t inputs = in->blocks.padded, outputs = out->blocks.padded;
        double *delta = calloc(out->size, sizeof *delta), *row = calloc(inputs + outputs, sizeof *row);
        float *a = calloc(rank * inputs, sizeof *a), *b = calloc(rank * outputs, sizeof *b);

        struct walsh_adapter_source s = make_source(&t, WALSH_ADAPTER_PEFT, rank, delta);
        struct walsh_adapter_linear right;
        assert_int_equal(walsh_adapter_linear_build(&t.linear, &s, WALSH_FORMAT_F32, &t.arena, &right, NULL),
                         WALSH_OK);
        for (size_t j = 0; j < rank; j++) { /* B's column j through the inverse's order */
            memset(row, 0, outputs * sizeof *row);
            for (size_t o = 0; o < out->size; o++) row[o] = s.scale * (double)s.b[o * rank + j];
            walsh_rotate_inverse_f64(out, row, row);
            for (size_t o = 0; o < out->size; o++) b[o * rank + j] = (float)row[o];
            for (size_t i = 0; i < in->size; i++) a[j * in->size + i] = walsh_adapter_a(&right, j, i);
        }
        assert_true(planted_error(&t, rank, a, b, delta) > 0.2);

        s = make_source(&t, WALSH_ADAPTER_ROTATED_INPUT, rank, delta);
        assert_int_equal(walsh_adapter_linear_build(&t.linear, &s, WALSH_FORMAT_F32, &t.arena, &right, NULL),
                         WALSH_OK);
        for (size_t j = 0; j < rank; j++) { /* A's row j through the forward order */
            for (size_t i = 0; i < in->size; i++) row[i] = (double)s.a[j * inputs + i];
            walsh_rotate_forward_f64(in, row, row);
            for (size_t i = 0; i < in->size; i++) a[j * in->size + i] = (float)row[i];
            for (size_t o = 0; o < outputs; o++) b[o * rank + j] = walsh_adapter_b(&right, o, j);
        }
        assert_true(planted_error(&t, rank, a, b, delta) > 0.2);
        free(delta), free(row), free(a), free(b);
        bench_close(&t);
    }
}

/* Signs that carry a scale: B' needs their reciprocals. */
static void test_scaled_signs(void **state)
{
    (void)state;
    const uint32_t rank = 8;
    struct bench t;
    bench_open(&t, SCALED, 320, 576, 99);
    const size_t outputs = t.linear.out_rotation.blocks.padded;
    double *delta = calloc(t.linear.out, sizeof *delta);
    float *b = calloc(outputs * rank, sizeof *b), *scaled = calloc(t.linear.out * rank, sizeof *scaled);
    const struct walsh_adapter_source s = make_source(&t, WALSH_ADAPTER_PEFT, rank, delta);
    for (size_t i = 0; i < t.linear.out * rank; i++) scaled[i] = (float)s.scale * s.b[i];
    assert_int_equal(walsh_fold_columns(&t.linear.out_rotation, scaled, rank, b, NULL), WALSH_OK);
    assert_true(planted_error(&t, rank, s.a, b, delta) > 0.02);
    free(delta), free(b), free(scaled);

    struct walsh_error err = {0};
    struct walsh_adapter_linear built;
    t.out_signs[3] = 0;
    assert_int_equal(walsh_adapter_linear_build(&t.linear, &s, WALSH_FORMAT_F32, &t.arena, &built, &err),
                     WALSH_E_UNSUPPORTED);
    assert_string_equal(
        err.message, "model.layers.0.self_attn.q_proj: output sign 3 is 0: no adapter can reach that output");
    bench_close(&t);
}

static void test_refused(void **state)
{
    (void)state;
    struct bench t;
    struct walsh_error err = {0};
    struct walsh_adapter_linear built, other;
    bench_open(&t, BLOCKS, 80, 80, 3);
    struct walsh_adapter_source s = {.rank = 0, .scale = 1, .a = t.a, .b = t.b};
    assert_int_equal(walsh_adapter_linear_build(&t.linear, &s, WALSH_FORMAT_F32, &t.arena, &built, &err),
                     WALSH_E_ARGUMENT);
    assert_string_equal(err.message,
                        "model.layers.0.self_attn.q_proj: an adapter of rank 0, expected 1 to 256");
    s.rank = 257;
    assert_int_equal(walsh_adapter_linear_build(&t.linear, &s, WALSH_FORMAT_F32, &t.arena, &built, &err),
                     WALSH_E_ARGUMENT);
    assert_string_equal(err.message,
                        "model.layers.0.self_attn.q_proj: an adapter of rank 257, expected 1 to 256");
    s.rank = 4;
    assert_int_equal(walsh_adapter_linear_build(&t.linear, &s, WALSH_FORMAT_F16, &t.arena, &built, &err),
                     WALSH_E_ARGUMENT);
    assert_string_equal(err.message,
                        "model.layers.0.self_attn.q_proj: an adapter stored as f16, expected f32 or bf16");
    s.scale = 1e39;
    assert_int_equal(walsh_adapter_linear_build(&t.linear, &s, WALSH_FORMAT_F32, &t.arena, &built, &err),
                     WALSH_E_FORMAT);
    assert_string_equal(
        err.message,
        "model.layers.0.self_attn.q_proj: the adapter's B times its scale 1e+39 holds NaN or Inf");
    s.scale = 1;
    const float finite = t.a[5];
    t.a[5] = 3.4e38f; /* finite in f32, beyond bf16 */
    assert_int_equal(walsh_adapter_linear_build(&t.linear, &s, WALSH_FORMAT_F32, &t.arena, &built, &err),
                     WALSH_OK);
    assert_int_equal(walsh_adapter_linear_build(&t.linear, &s, WALSH_FORMAT_BF16, &t.arena, &other, &err),
                     WALSH_E_FORMAT);
    assert_string_equal(err.message, "model.layers.0.self_attn.q_proj: the adapter's A holds NaN or Inf");
    t.a[5] = finite;

    /* an A may be shared by linears of the same inputs only */
    struct walsh_adapter_source shared = {.rank = 4, .scale = 1, .b = t.b, .same_a = &built};
    assert_int_equal(walsh_adapter_linear_build(&t.linear, &shared, WALSH_FORMAT_F32, &t.arena, &other, &err),
                     WALSH_OK);
    assert_ptr_equal(other.a, built.a);
    assert_ptr_not_equal(other.b, built.b);
    assert_int_equal(
        walsh_adapter_linear_build(&t.linear, &shared, WALSH_FORMAT_BF16, &t.arena, &other, &err),
        WALSH_E_INTERNAL);
    assert_string_equal(err.message, "model.layers.0.self_attn.q_proj: its A is not another linear's");
    bench_close(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_conventions),
        cmocka_unit_test(test_wrong_order),
        cmocka_unit_test(test_scaled_signs),
        cmocka_unit_test(test_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
