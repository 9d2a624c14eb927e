/* The benchmark's frame: a row for each admitted implementation, with figures that fit together. No time is
 * asserted. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <string.h>

#include "kernels/bench.h"

struct rows {
    size_t count, reference;
};

static void collect(void *user, const struct walsh_bench_result *r)
{
    struct rows *rows = user;
    assert_string_equal(r->kernel, "add_f32");
    assert_string_equal(r->size, "n=4096");
    assert_true(r->seconds > 0 && isfinite(r->seconds));
    assert_true(r->bytes == 12.0 * 4096 && r->operations == 4096);
    assert_true(r->ratio > 0 && isfinite(r->ratio));
    assert_true(r->roofline > 0 && isfinite(r->roofline));
    if (strcmp(r->implementation, "reference") == 0) {
        assert_true(r->ratio == 1.0);
        assert_int_equal(rows->count, 0); /* first: the others are held against it */
        rows->reference++;
    }
    rows->count++;
}

static size_t rows_at(enum walsh_cpu_level level)
{
    struct walsh_queue q;
    struct walsh_roofline roofline;
    struct rows rows = {0, 0};
    assert_int_equal(walsh_queue_open(level, NULL, &q, NULL), WALSH_OK);
    walsh_queue_bench(&q, "add_f32", &roofline, collect, &rows);
    assert_int_equal(rows.reference, 1);
    assert_true(roofline.one.f32 > 0 && roofline.all.f32 > 0 && roofline.l1_bandwidth > 0 &&
                roofline.l2_bandwidth > 0);
    assert_true(roofline.core_bandwidth > 0 && roofline.read_bandwidth >= roofline.core_bandwidth);
    assert_int_equal(roofline.one.int8 > 0, (q.kernels->isa & WALSH_ISA_vnni) != 0);
    walsh_queue_close(&q);
    return rows.count;
}

static void test_rows(void **state)
{
    (void)state;
    size_t expected = 1;
    if (walsh_cpu_isa() & WALSH_ISA_avx2) expected++;
    if (walsh_cpu_isa() & WALSH_ISA_avx512) expected++;
    assert_int_equal(rows_at(WALSH_CPU_BEST), expected);
    assert_int_equal(rows_at(WALSH_CPU_REFERENCE), 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_rows)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
