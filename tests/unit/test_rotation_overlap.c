/* The overlap rotation of dimensions that are no power of two, against its matrices in double precision. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <string.h>

#include "base/random.h"
#include "rotation/rotation.h"

#define SEED 20250118u
#define MOST 576

static const uint32_t sizes[] = {80, 96, 192, 320, 576, 3, 5};
enum { SIZES = sizeof sizes / sizeof *sizes };

static struct walsh_random start(void)
{
    struct walsh_random r;
    print_message("seed %u\n", SEED);
    walsh_random_seed(&r, SEED);
    return r;
}

static struct walsh_rotation rotation(uint32_t n, float *signs)
{
    struct walsh_rotation r;
    walsh_random_signs(SEED, "overlap", signs, 2 * n);
    assert_int_equal(walsh_rotation_overlap(n, signs, &r, NULL), WALSH_OK);
    return r;
}

/* y = M x with M the Hadamard matrix on [at, at + m) and the identity elsewhere, by (-1)^popcount(i & j). */
static void apply_matrix(uint32_t n, uint32_t at, uint32_t m, const double *x, double *y)
{
    for (uint32_t i = 0; i < n; i++) {
        y[i] = i < at || i >= at + m ? x[i] : 0;
        for (uint32_t j = 0; j < m && i >= at && i < at + m; j++)
            y[i] += (__builtin_popcount((i - at) & j) & 1 ? -x[at + j] : x[at + j]) / sqrt((double)m);
    }
}

static void test_shape(void **state)
{
    (void)state;
    static const uint32_t largest[SIZES] = {64, 64, 128, 256, 512, 2, 4};
    static float signs[2 * MOST];
    for (size_t k = 0; k < SIZES; k++) {
        struct walsh_rotation r = rotation(sizes[k], signs);
        assert_int_equal(r.kind, WALSH_ROTATION_OVERLAP);
        assert_int_equal(r.size, sizes[k]);
        assert_int_equal(r.blocks.padded, sizes[k]);
        assert_int_equal(r.blocks.block[0], largest[k]);
    }
    for (uint32_t n = 1; n <= 512; n *= 2) {
        struct walsh_rotation r = rotation(n, signs);
        assert_int_equal(r.kind, WALSH_ROTATION_BLOCKS);
        assert_int_equal(r.blocks.count, 1);
        assert_int_equal(r.blocks.block[0], n);
    }
    struct walsh_rotation r;
    struct walsh_error err;
    assert_int_equal(walsh_rotation_overlap(0, signs, &r, &err), WALSH_E_ARGUMENT);
    assert_string_equal(err.message, "a rotation of 0 elements: expected 1 to 16777216");
}

static void test_matches_matrices(void **state)
{
    (void)state;
    struct walsh_random random = start();
    static float signs[2 * MOST], x[MOST], y[MOST], z[MOST];
    static double a[MOST], b[MOST], exact[MOST];
    for (size_t k = 0; k < SIZES; k++) {
        const uint32_t n = sizes[k];
        struct walsh_rotation r = rotation(n, signs);
        const uint32_t m = r.blocks.block[0];
        for (uint32_t i = 0; i < n; i++) x[i] = (float)walsh_random_normal(&random);

        for (uint32_t i = 0; i < n; i++) a[i] = (double)(signs[i] * x[i]);
        apply_matrix(n, 0, m, a, b);
        for (uint32_t i = 0; i < n; i++) b[i] *= (double)signs[n + i];
        apply_matrix(n, n - m, m, b, exact);
        walsh_rotate_forward(&r, x, y);
        for (uint32_t i = 0; i < n; i++) a[i] = (double)x[i];
        walsh_rotate_forward_f64(&r, a, b);
        for (uint32_t i = 0; i < n; i++) {
            assert_true(fabs(exact[i] - (double)y[i]) < 3e-6);
            assert_true(fabs(exact[i] - b[i]) < 1e-13);
        }

        for (uint32_t i = 0; i < n; i++) a[i] = (double)x[i];
        apply_matrix(n, n - m, m, a, b);
        for (uint32_t i = 0; i < n; i++) b[i] *= (double)signs[n + i];
        apply_matrix(n, 0, m, b, exact);
        memcpy(z, x, n * sizeof *z);
        walsh_rotate_inverse(&r, z, y);
        walsh_rotate_inverse_f64(&r, a, a);
        for (uint32_t i = 0; i < n; i++) {
            assert_true(fabs(exact[i] * (double)signs[i] - (double)y[i]) < 3e-6);
            assert_true(fabs(exact[i] * (double)signs[i] - a[i]) < 1e-13);
        }
    }
}

/* inverse(forward(x)) = x; lengths survive; energy in the small block leaves it. */
static void test_inverse_and_spread(void **state)
{
    (void)state;
    struct walsh_random random = start();
    static float signs[2 * MOST], x[MOST], y[MOST], back[MOST];
    for (size_t k = 0; k < SIZES; k++) {
        const uint32_t n = sizes[k];
        struct walsh_rotation r = rotation(n, signs);
        const uint32_t m = r.blocks.block[0];
        double before = 0, after = 0, outside = 0;
        for (uint32_t i = 0; i < n; i++) {
            x[i] = i < m ? 0 : (float)walsh_random_normal(&random);
            before += (double)x[i] * (double)x[i];
        }
        walsh_rotate_forward(&r, x, y);
        for (uint32_t i = 0; i < n; i++) after += (double)y[i] * (double)y[i];
        for (uint32_t i = 0; i < m; i++) outside += (double)y[i] * (double)y[i];
        assert_true(fabs(after / before - 1) < 1e-5);
        if (n > 16) assert_true(outside > 0.4 * before);
        walsh_rotate_inverse(&r, y, back);
        for (uint32_t i = 0; i < n; i++) assert_true(fabs((double)back[i] - (double)x[i]) < 3e-6);
    }
}

static void test_equal(void **state)
{
    (void)state;
    static float s[160], t[160];
    struct walsh_rotation a = rotation(80, s), b = rotation(80, t);
    assert_true(walsh_rotation_equal(&a, &b));
    t[159] = -t[159]; /* among the second signs */
    assert_false(walsh_rotation_equal(&a, &b));
    t[159] = -t[159];
    b.kind = WALSH_ROTATION_BLOCKS;
    assert_false(walsh_rotation_equal(&a, &b));
}

/* Rows and columns folded: A'·x == A·forward(x), B'·h == forward(B·h). */
static void test_folding(void **state)
{
    (void)state;
    struct walsh_random random = start();
    enum { N = 80, COUNT = 3 };
    static float signs[2 * N], a[COUNT * N], rows[COUNT * N], columns[COUNT * N];
    double x[N], y[N];
    struct walsh_rotation r = rotation(N, signs);
    for (int i = 0; i < COUNT * N; i++) a[i] = (float)walsh_random_normal(&random);
    for (int i = 0; i < N; i++) x[i] = walsh_random_normal(&random);
    assert_int_equal(walsh_fold_rows(&r, a, COUNT, rows, NULL), WALSH_OK);
    walsh_rotate_forward_f64(&r, x, y);
    for (int k = 0; k < COUNT; k++) {
        double left = 0, right = 0;
        for (int i = 0; i < N; i++) left += (double)rows[k * N + i] * x[i];
        for (int i = 0; i < N; i++) right += (double)a[k * N + i] * y[i];
        assert_true(fabs(left - right) < 1e-5);
    }
    assert_int_equal(walsh_fold_columns(&r, a, COUNT, columns, NULL), WALSH_OK);
    for (int k = 0; k < COUNT; k++) {
        for (int i = 0; i < N; i++) x[i] = (double)a[i * COUNT + k];
        walsh_rotate_forward_f64(&r, x, y);
        for (int i = 0; i < N; i++) assert_true(fabs((double)columns[i * COUNT + k] - y[i]) < 1e-6);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_shape),
        cmocka_unit_test(test_matches_matrices),
        cmocka_unit_test(test_inverse_and_spread),
        cmocka_unit_test(test_equal),
        cmocka_unit_test(test_folding),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
