/* The scalar kernels on inputs whose results are known, and the error of the vectors' exponential. The
 * checker holds every other implementation against these. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/scalar.h"
#include "kernels/table.h"

static void assert_near(double got, double expected, double tolerance)
{
    if (fabs(got - expected) <= tolerance) return;
    fail_msg("%.9g, expected %.9g", got, expected);
}

static void test_quantize(void **state)
{
    (void)state;
    const float x[6] = {-127, 126.5f, 125.5f, 0.5f, -0.5f, 1.4f};
    int8_t q[6];
    int32_t sum;
    assert_near((double)walsh_quantize_i8_reference(q, &sum, x, 6), 1, 0);
    const int8_t expected[6] = {-127, 126, 126, 0, 0, 1}; /* ties to even */
    assert_memory_equal(q, expected, sizeof q);
    assert_int_equal(sum, 126);
    const float zero[2] = {0, -0.0f}, infinite[2] = {1, -INFINITY}, tiny[2] = {0x1p-119f, 0};
    assert_near((double)walsh_quantize_i8_reference(q, &sum, zero, 2), 0, 0);
    assert_int_equal(sum, 0);
    assert_true(isnan(walsh_quantize_i8_reference(q, &sum, infinite, 2)));
    assert_int_equal(q[0], 0);
    assert_near((double)walsh_quantize_i8_reference(q, &sum, tiny, 2), 0, 0);
}

static void test_f16_saturates(void **state)
{
    (void)state;
    const float x[6] = {65504, 65519, 1e30f, -INFINITY, NAN, 1};
    uint16_t y[6];
    walsh_f16_from_f32_reference(y, x, 6);
    assert_int_equal(y[0], 0x7bff);
    assert_int_equal(y[1], 0x7bff);
    assert_int_equal(y[2], 0x7bff);
    assert_int_equal(y[3], 0xfbff);
    assert_true((y[4] & 0x7c00) == 0x7c00 && (y[4] & 0x3ff) != 0);
    assert_int_equal(y[5], 0x3c00);
}

static void test_rms_norm(void **state)
{
    (void)state;
    const float x[4] = {1, -1, 3, 5}, weight[4] = {1, 2, 1, 0.5f}; /* mean of squares 9 */
    float y[4];
    walsh_rms_norm_f32_reference(y, x, weight, 4, 0);
    assert_near((double)y[0], 1.0 / 3, 1e-7);
    assert_near((double)y[1], -2.0 / 3, 1e-7);
    assert_near((double)y[3], 2.5 / 3, 1e-7);
    walsh_rms_norm_f32_reference(y, x, weight, 4, 7); /* 1/sqrt(9 + 7) */
    assert_near((double)y[2], 0.75, 0);
}

static void test_rope(void **state)
{
    (void)state;
    float x[8] = {1, 2, 3, 4, 5, 6, 7, 8}; /* two heads of 4: pairs (0, 2), (1, 3) */
    const float cosine[2] = {0, 1}, sine[2] = {1, 0};
    walsh_rope_f32_reference(x, 2, 2, cosine, sine);
    const float expected[8] = {-3, 2, 1, 4, -7, 6, 5, 8};
    assert_memory_equal(x, expected, sizeof x);
}

static void test_swiglu(void **state)
{
    (void)state;
    const float gate[4] = {0, 1, -200, 200}, up[4] = {5, 2, 1, 3};
    float y[4];
    walsh_swiglu_f32_reference(y, gate, up, 4);
    assert_near((double)y[0], 0, 0);
    assert_near((double)y[1], 2 / (1 + exp(-1)), 1e-7);
    assert_near((double)y[2], 0, 0);
    assert_near((double)y[3], 600, 0);
}

static void test_route(void **state)
{
    (void)state;
    const float logits[6] = {1, 3, 2, 3, NAN, -1};
    int32_t index[6];
    float weight[6];
    double sum = exp(-2) + 1 + exp(-1) + 1 + exp(-4);
    walsh_route_f32_reference(index, weight, logits, 6, 3, false);
    const int32_t expected[6] = {1, 3, 2, 0, 5, 4};
    assert_memory_equal(index, expected, 3 * sizeof *index);
    assert_near((double)weight[0], 1 / sum, 1e-7);
    assert_near((double)weight[1], 1 / sum, 1e-7);
    assert_near((double)weight[2], exp(-1) / sum, 1e-7);
    walsh_route_f32_reference(index, weight, logits, 6, 3, true);
    assert_near((double)(weight[0] + weight[1] + weight[2]), 1, 1e-6);
    assert_near((double)weight[2], exp(-1) / (2 + exp(-1)), 1e-7);
    walsh_route_f32_reference(index, weight, logits, 6, 6, false);
    assert_memory_equal(index, expected, sizeof index);
    assert_near((double)weight[5], 0, 0);
}

/* One query head, two tokens, the second of weight e^-1. */
static void test_attend_chunk(void **state)
{
    (void)state;
    float k[4] = {2, 0, 0, 0}, v[4] = {1, 10, 3, 20}, query[2] = {1, 1}, scores[WALSH_ATTEND_CHUNK], out[2],
          maximum, sum;
    void *k_pages[1] = {k}, *v_pages[1] = {v};
    struct walsh_kv_view kv = {
        .type = WALSH_KV_F32, .page_tokens = 2, .k_pages = k_pages, .v_pages = v_pages};
    struct walsh_attend_chunk t = {.kv = &kv,
                                   .begin = 0,
                                   .end = 2,
                                   .group = 1,
                                   .head_dim = 2,
                                   .scale = 0.5f,
                                   .query = query,
                                   .scores = scores,
                                   .maximum = &maximum,
                                   .sum = &sum,
                                   .out = out};
    walsh_attend_chunk_reference(&t);
    assert_near((double)maximum, 1, 0);
    assert_near((double)sum, 1 + exp(-1), 1e-6);
    assert_near((double)out[0], 1 + 3 * exp(-1), 1e-6);
    assert_near((double)out[1], 10 + 20 * exp(-1), 1e-5);
}

/* softmax_step from a maximum of 0 is the exponential of x <= 0. Its relative error, in units of 2^-24. */
static double worst_exponential(walsh_kernel_softmax_step_f32 *step)
{
    enum { N = 512 };
    double worst = 0;
    uint32_t bits = walsh_bits_from_float(-1e-9f), end = walsh_bits_from_float(-87.3f);
    while (bits < end) {
        float x[N], y[N], maximum = 0, sum = 0;
        for (size_t i = 0; i < N; i++, bits += 211)
            x[i] = y[i] = walsh_float_from_bits(bits < end ? bits : end);
        step(y, N, 1.0f, &maximum, &sum);
        for (size_t i = 0; i < N; i++) {
            double exact = exp((double)x[i]), error = fabs((double)y[i] - exact) / exact * 0x1p24;
            if (error > worst) worst = error;
        }
    }
    return worst;
}

static void test_exponential(void **state)
{
    (void)state;
    unsigned have = walsh_cpu_isa();
    (void)have;
#if WALSH_X86
    if (have & WALSH_ISA_avx2) {
        double worst = worst_exponential(walsh_softmax_step_f32_avx2);
        printf("avx2: %.3f units of 2^-24\n", worst);
        assert_true(worst < 2.0);
    }
    if (have & WALSH_ISA_avx512) {
        double worst = worst_exponential(walsh_softmax_step_f32_avx512);
        printf("avx512: %.3f units of 2^-24\n", worst);
        assert_true(worst < 2.0);
    }
#endif
    assert_true(worst_exponential(walsh_softmax_step_f32_reference) < 1.01);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_quantize),     cmocka_unit_test(test_f16_saturates),
        cmocka_unit_test(test_rms_norm),     cmocka_unit_test(test_rope),
        cmocka_unit_test(test_swiglu),       cmocka_unit_test(test_route),
        cmocka_unit_test(test_attend_chunk), cmocka_unit_test(test_exponential),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
