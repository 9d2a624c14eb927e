/* Rope frequencies and tables against their formulas. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "model/rope.h"

static void close_to(double found, double expected)
{
    if (!(fabs(found - expected) <= 1e-12 * fabs(expected)))
        fail_msg("%.17g, expected %.17g", found, expected);
}

static void plain_and_linear(void **state)
{
    (void)state;
    double f[4];
    struct walsh_rope_config rope = {.type = WALSH_ROPE_DEFAULT, .theta = 10000, .factor = 1};
    walsh_rope_frequencies(&rope, 8, false, f);
    close_to(f[0], 1);
    close_to(f[1], 0.1);
    close_to(f[2], 0.01);
    close_to(f[3], 0.001);
    rope.type = WALSH_ROPE_LINEAR;
    rope.factor = 4;
    walsh_rope_frequencies(&rope, 8, false, f);
    close_to(f[0], 0.25);
    close_to(f[3], 0.00025);
}

/* Llama 3.1's values: factor 8, low 1, high 4, original 8192, theta 500000, head_dim 128. */
static void llama3(void **state)
{
    (void)state;
    double f[64];
    const struct walsh_rope_config rope = {.type = WALSH_ROPE_LLAMA3,
                                           .theta = 500000,
                                           .factor = 8,
                                           .low_frequency_factor = 1,
                                           .high_frequency_factor = 4,
                                           .original_max_positions = 8192};
    walsh_rope_frequencies(&rope, 128, false, f);
    unsigned kept = 0, slowed = 0, mixed = 0;
    for (unsigned i = 0; i < 64; i++) {
        double plain = pow(500000, -2.0 * i / 128), wavelength = 2 * acos(-1) / plain;
        if (wavelength < 8192.0 / 4) {
            close_to(f[i], plain);
            kept++;
        } else if (wavelength > 8192.0) {
            close_to(f[i], plain / 8);
            slowed++;
        } else {
            double smooth = (8192 / wavelength - 1) / 3;
            close_to(f[i], (1 - smooth) * plain / 8 + smooth * plain);
            mixed++;
        }
    }
    assert_int_equal(kept, 29);
    assert_int_equal(mixed, 6);
    assert_int_equal(slowed, 29);
}

/* Factor 4 of 32 positions at theta 1000, 16 elements: pairs of more than 4 turns keep their frequency, those
 * of less than one have a quarter of it; the bounds are rounded outwards to the pairs 0 and 2. */
static void yarn(void **state)
{
    (void)state;
    double f[8];
    const struct walsh_rope_config rope = {.type = WALSH_ROPE_YARN,
                                           .theta = 1000,
                                           .factor = 4,
                                           .original_max_positions = 32,
                                           .beta_fast = 4,
                                           .beta_slow = 1,
                                           .truncate = true};
    walsh_rope_frequencies(&rope, 16, false, f);
    close_to(f[0], 1);
    close_to(f[1], pow(1000, -0.125) * (0.5 + 0.125));
    for (unsigned i = 2; i < 8; i++) close_to(f[i], pow(1000, -0.125 * i) / 4);
}

static void tables(void **state)
{
    (void)state;
    struct walsh_arena arena = {0};
    struct walsh_pool *pool;
    struct walsh_rope_table table;
    const struct walsh_rope_config rope = {.type = WALSH_ROPE_DEFAULT, .theta = 10000, .factor = 1};
    assert_int_equal(walsh_pool_open(2, &pool, NULL), WALSH_OK);
    assert_int_equal(walsh_rope_fill(&rope, 8, 1000, pool, &arena, &table, NULL), WALSH_OK);
    assert_int_equal(table.dim, 8);
    for (uint32_t position = 0; position < 1000; position++) {
        for (uint32_t i = 0; i < 4; i++) {
            double angle = position * pow(10000, -0.25 * i);
            assert_true(fabs((double)table.cosine[position * 4 + i] - cos(angle)) < 1e-7);
            assert_true(fabs((double)table.sine[position * 4 + i] - sin(angle)) < 1e-7);
        }
    }
    walsh_pool_close(&pool);
    walsh_arena_close(&arena);
}

/* Two sets of rows, and which of them a session of a capacity uses. */
static void longrope(void **state)
{
    (void)state;
    struct walsh_arena arena = {0};
    struct walsh_pool *pool;
    struct walsh_model_graph graph = {.config.max_positions = 100};
    const struct walsh_rope_config rope = {.type = WALSH_ROPE_LONGROPE,
                                           .theta = 10000,
                                           .original_max_positions = 32,
                                           .attention_factor = 1.25,
                                           .short_factor = {1, 2},
                                           .long_factor = {4, 8}};
    assert_int_equal(walsh_pool_open(2, &pool, NULL), WALSH_OK);
    assert_int_equal(walsh_rope_fill(&rope, 4, 100, pool, &arena, &graph.rope, NULL), WALSH_OK);
    assert_int_equal(graph.rope.rows, 200);
    for (uint32_t row = 0; row < 200; row++) {
        for (uint32_t i = 0; i < 2; i++) {
            const float *factor = row < 100 ? rope.short_factor : rope.long_factor;
            double angle = row % 100 * pow(10000, -0.5 * i) / (double)factor[i];
            assert_true(fabs((double)graph.rope.cosine[row * 2 + i] - 1.25 * cos(angle)) < 1e-6);
            assert_true(fabs((double)graph.rope.sine[row * 2 + i] - 1.25 * sin(angle)) < 1e-6);
        }
    }
    assert_int_equal(walsh_graph_rope_offset(&graph, 32), 0);
    assert_int_equal(walsh_graph_rope_offset(&graph, 33), 100);
    graph.rope.short_positions = 0;
    assert_int_equal(walsh_graph_rope_offset(&graph, 100), 0);
    walsh_pool_close(&pool);
    walsh_arena_close(&arena);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(plain_and_linear), cmocka_unit_test(llama3),   cmocka_unit_test(yarn),
        cmocka_unit_test(tables),           cmocka_unit_test(longrope),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
