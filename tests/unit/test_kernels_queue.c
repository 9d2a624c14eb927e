/* Queues: which implementations a level admits, what is said where it cannot be had, scratch. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "kernels/cpu/cpu_ops.h"
#include "kernels/table.h"

static void test_reference_level(void **state)
{
    (void)state;
    struct walsh_queue q;
    assert_int_equal(walsh_queue_open(WALSH_CPU_REFERENCE, NULL, &q, NULL), WALSH_OK);
    const char *kernel, *implementation;
    size_t n = 0;
    while (walsh_queue_kernel(&q, n, &kernel, &implementation)) {
        assert_string_equal(implementation, "reference");
        assert_non_null(kernel);
        n++;
    }
    assert_int_equal(n, WALSH_KERNEL_COUNT);
    assert_false(walsh_queue_has_bf16(&q));
    assert_ptr_equal(q.kernels->hadamard_f32, walsh_hadamard_f32_reference);
    walsh_queue_close(&q);
    walsh_queue_close(&q); /* of a closed one */
}

static const char *chosen(const struct walsh_queue *q, const char *name)
{
    const char *kernel, *implementation;
    for (size_t i = 0; walsh_queue_kernel(q, i, &kernel, &implementation); i++)
        if (strcmp(kernel, name) == 0) return implementation;
    return "";
}

/* A level the machine has is taken as asked, one that it lacks is refused by name. */
static void test_levels(void **state)
{
    (void)state;
    unsigned have = walsh_cpu_isa();
    struct walsh_queue q;
    struct walsh_error err;
    enum walsh_status status = walsh_queue_open(WALSH_CPU_AVX2, NULL, &q, &err);
    if (have & WALSH_ISA_avx2) {
        assert_int_equal(status, WALSH_OK);
        assert_string_equal(chosen(&q, "hadamard_f32"), "avx2");
        assert_int_equal(q.kernels->isa, WALSH_ISA_avx2);
        walsh_queue_close(&q);
    } else {
        assert_int_equal(status, WALSH_E_UNSUPPORTED);
        assert_non_null(strstr(err.message, "avx2"));
    }
    status = walsh_queue_open(WALSH_CPU_AVX512, NULL, &q, &err);
    if (have & WALSH_ISA_avx512) {
        assert_int_equal(status, WALSH_OK);
        assert_string_equal(chosen(&q, "hadamard_f32"), "avx512");
        assert_int_equal(walsh_queue_has_bf16(&q), (have & WALSH_ISA_bf16) != 0);
        walsh_queue_close(&q);
    } else {
        assert_int_equal(status, WALSH_E_UNSUPPORTED);
    }
    status = walsh_queue_open(WALSH_CPU_AMX, NULL, &q, &err);
    if (have & WALSH_ISA_amx) {
        assert_int_equal(status, WALSH_OK);
        assert_string_equal(chosen(&q, "product_int8_prefill"), "amx");
        walsh_queue_close(&q);
    } else {
        assert_int_equal(status, WALSH_E_UNSUPPORTED);
        assert_non_null(strstr(err.message, "amx"));
        assert_non_null(strstr(err.message, "reference"));
    }
    assert_int_equal(walsh_queue_open((enum walsh_cpu_level)99, NULL, &q, &err), WALSH_E_ARGUMENT);
    assert_int_equal(walsh_queue_open(WALSH_CPU_BEST, NULL, &q, &err), WALSH_OK);
    assert_int_equal(q.kernels->isa, have);
    walsh_queue_close(&q);
}

/* Higher sets are detected only with what they build on. */
static void test_detected_sets_are_nested(void **state)
{
    (void)state;
    unsigned have = walsh_cpu_isa();
    if (have & (WALSH_ISA_vnni | WALSH_ISA_bf16)) assert_true(have & WALSH_ISA_avx512);
    if (have & WALSH_ISA_avx512) assert_true(have & WALSH_ISA_avx2);
    if (have & WALSH_ISA_avx2) assert_non_null(strstr(walsh_cpu_features(), "avx2 fma f16c"));
}

static void test_scratch(void **state)
{
    (void)state;
    struct walsh_pool *pool;
    struct walsh_queue q;
    assert_int_equal(walsh_pool_open(3, &pool, NULL), WALSH_OK);
    assert_int_equal(walsh_queue_open(WALSH_CPU_BEST, pool, &q, NULL), WALSH_OK);
    for (size_t i = 0; i < 3; i++) {
        assert_int_equal((uintptr_t)q.scratch[i] % 64, 0);
        memset(q.scratch[i], (int)i, q.scratch_bytes);
    }
    for (size_t i = 0; i < 3; i++) {
        assert_int_equal(q.scratch[i][0], i);
        assert_int_equal(q.scratch[i][q.scratch_bytes - 1], i);
    }
    assert_ptr_equal(q.kernels->hadamard_f32 == NULL, 0); /* the table lies before the scratch */
    walsh_queue_close(&q);
    walsh_pool_close(&pool);
}

static void test_names(void **state)
{
    (void)state;
    assert_string_equal(walsh_kernel_name(WALSH_KERNEL_ID_quantize_i8), "quantize_i8");
    assert_null(walsh_kernel_name(WALSH_KERNEL_COUNT));
}

static void test_activations(void **state)
{
    (void)state;
    assert_int_equal(walsh_activations_stride(1), 256);
    assert_int_equal(walsh_activations_stride(256), 256);
    assert_int_equal(walsh_activations_stride(257), 512);
    assert_int_equal(walsh_activations_stride(1000), 1280);
    assert_int_equal(walsh_activations_stride(4096), 4352);
    assert_int_equal(walsh_activation_size(WALSH_ACTIVATION_F32), 4);
    assert_int_equal(walsh_activation_size(WALSH_ACTIVATION_BF16), 2);
    assert_int_equal(walsh_activation_size(WALSH_ACTIVATION_INT8), 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reference_level),
        cmocka_unit_test(test_levels),
        cmocka_unit_test(test_detected_sets_are_nested),
        cmocka_unit_test(test_scratch),
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_activations),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
