/* The randomized Hadamard transform against its formulas in double precision. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "base/random.h"
#include "rotation/rotation.h"

#define SEED 20240611u

static struct walsh_random start(void)
{
    struct walsh_random r;
    print_message("seed %u\n", SEED);
    walsh_random_seed(&r, SEED);
    return r;
}

static float *random_f32(struct walsh_random *r, size_t n)
{
    float *x;
    assert_int_equal(walsh_alloc(n, sizeof *x, "test", &x, NULL), WALSH_OK);
    for (size_t i = 0; i < n; i++) x[i] = (float)walsh_random_normal(r);
    return x;
}

/* A rotation of n elements with random signs; free .signs. */
static struct walsh_rotation random_rotation(uint32_t n, uint32_t min_block, bool pow2, const char *name)
{
    struct walsh_rotation r = {.kind = WALSH_ROTATION_BLOCKS, .size = n};
    assert_int_equal((pow2 ? walsh_blocks_pow2 : walsh_blocks_binary)(n, min_block, &r.blocks, NULL),
                     WALSH_OK);
    float *signs;
    assert_int_equal(walsh_alloc(r.blocks.padded, sizeof *signs, "test", &signs, NULL), WALSH_OK);
    walsh_random_signs(SEED, name, signs, r.blocks.padded);
    r.signs = signs;
    return r;
}

/* Entry (i, j) of the block-diagonal Hadamard matrix, by its definition (-1)^popcount(i & j). */
static double hadamard_entry(const struct walsh_blocks *blocks, uint32_t i, uint32_t j)
{
    uint32_t begin = 0;
    for (uint32_t b = 0; b < blocks->count; begin += blocks->block[b++]) {
        uint32_t n = blocks->block[b];
        if (i >= begin + n) continue;
        if (j < begin || j >= begin + n) return 0;
        double sign = __builtin_popcount((i - begin) & (j - begin)) & 1 ? -1 : 1;
        return sign / sqrt((double)n);
    }
    return 0;
}

static void test_block_table(void **state)
{
    (void)state;
    static const struct {
        uint32_t n, min_block, padded;
        uint32_t blocks[5];
    } table[] = {
        {576, 64, 576, {512, 64}},
        {960, 64, 960, {512, 256, 128, 64}},
        {1536, 64, 1536, {1024, 512}},
        {2560, 64, 2560, {2048, 512}},
        {5376, 64, 5376, {4096, 1024, 256}},
        {11008, 64, 11008, {8192, 2048, 512, 256}},
        {21504, 64, 21504, {16384, 4096, 1024}},
        {2080, 64, 2112, {2048, 64}},
        {2080, 16, 2080, {2048, 32}},
        {320, 64, 320, {256, 64}},
        {896, 64, 896, {512, 256, 128}},
        {192, 16, 192, {128, 64}},
        {1, 64, 64, {64}},
        {1, 16, 16, {16}},
        {4096, 64, 4096, {4096}},
        {1u << 24, 64, 1u << 24, {1u << 24}},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        struct walsh_blocks b;
        assert_int_equal(walsh_blocks_binary(table[i].n, table[i].min_block, &b, NULL), WALSH_OK);
        assert_int_equal(b.padded, table[i].padded);
        uint32_t sum = 0;
        for (uint32_t k = 0; k < b.count; sum += b.block[k++])
            assert_int_equal(b.block[k], table[i].blocks[k]);
        assert_int_equal(sum, b.padded);
    }
    struct walsh_blocks b;
    static const uint32_t legacy[][2] = {{576, 1024}, {1536, 2048}, {2048, 2048}, {11008, 16384}, {5, 64}};
    for (size_t i = 0; i < sizeof legacy / sizeof *legacy; i++) {
        assert_int_equal(walsh_blocks_pow2(legacy[i][0], 64, &b, NULL), WALSH_OK);
        assert_int_equal(b.padded, legacy[i][1]);
        assert_int_equal(b.count, 1);
        assert_int_equal(b.block[0], legacy[i][1]);
    }
    struct walsh_error err;
    assert_int_equal(walsh_blocks_binary(0, 64, &b, &err), WALSH_E_ARGUMENT);
    assert_string_equal(err.message, "a rotation of 0 elements: expected 1 to 16777216");
    assert_int_equal(walsh_blocks_binary((1u << 24) + 1, 64, &b, &err), WALSH_E_ARGUMENT);
    assert_int_equal(walsh_blocks_pow2(0, 64, &b, &err), WALSH_E_ARGUMENT);
    assert_int_equal(walsh_blocks_binary(64, 48, &b, &err), WALSH_E_ARGUMENT);
}

/* forward and inverse against the matrices H·diag(s) and diag(s)·H, cropped dimensions included. */
static void test_matches_matrix(void **state)
{
    (void)state;
    struct walsh_random random = start();
    static const struct {
        uint32_t n, min_block;
        bool pow2;
    } cases[] = {{576, 64, false}, {100, 16, false}, {1, 16, false},
                 {70, 64, false},  {90, 16, true},   {320, 64, true}};
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        const uint32_t n = cases[c].n;
        struct walsh_rotation r = random_rotation(n, cases[c].min_block, cases[c].pow2, "matrix");
        const uint32_t padded = r.blocks.padded;
        float *x = random_f32(&random, padded), *y = random_f32(&random, padded),
              *back = random_f32(&random, n);
        walsh_rotate_forward(&r, x, y);
        for (uint32_t i = 0; i < padded; i++) {
            double sum = 0;
            for (uint32_t j = 0; j < n; j++)
                sum += hadamard_entry(&r.blocks, i, j) * (double)r.signs[j] * (double)x[j];
            assert_true(fabs(sum - (double)y[i]) < 2e-6);
        }
        float *z = random_f32(&random, padded), *zh = random_f32(&random, padded);
        memcpy(zh, z, padded * sizeof *z);
        walsh_rotate_inverse(&r, zh, back);
        for (uint32_t i = 0; i < n; i++) {
            double sum = 0;
            for (uint32_t j = 0; j < padded; j++) sum += hadamard_entry(&r.blocks, i, j) * (double)z[j];
            assert_true(fabs(sum * (double)r.signs[i] - (double)back[i]) < 2e-6);
        }
        walsh_free(x), walsh_free(y), walsh_free(back), walsh_free(z), walsh_free(zh);
        walsh_free((void *)r.signs);
    }
}

static void test_inverse_and_orthogonality(void **state)
{
    (void)state;
    struct walsh_random random = start();
    static const uint32_t sizes[] = {576, 960, 1536, 2560, 5376, 11008, 2080};
    for (size_t c = 0; c < sizeof sizes / sizeof *sizes; c++) {
        const uint32_t n = sizes[c];
        struct walsh_rotation r = random_rotation(n, 64, false, "inverse");
        float *x = random_f32(&random, n), *back = random_f32(&random, n);
        float *y = random_f32(&random, r.blocks.padded), *twice = random_f32(&random, r.blocks.padded);
        walsh_rotate_forward(&r, x, y);
        double norm_x = 0, norm_y = 0;
        for (uint32_t i = 0; i < n; i++) norm_x += (double)x[i] * (double)x[i];
        for (uint32_t i = 0; i < r.blocks.padded; i++) norm_y += (double)y[i] * (double)y[i];
        assert_true(fabs(norm_y / norm_x - 1) < 1e-6);

        /* forward is not its own inverse: where the padding is none, forward(forward(x)) is far from x */
        walsh_rotate_forward(&r, y, twice);
        double self = 0, error = 0;
        walsh_rotate_inverse(&r, y, back);
        for (uint32_t i = 0; i < n; i++) {
            self += pow((double)twice[i] - (double)x[i], 2);
            error = fmax(error, fabs((double)back[i] - (double)x[i]));
        }
        assert_true(self > norm_x);
        assert_true(error < 5e-6);

        /* inner products survive */
        float *other = random_f32(&random, n);
        double before = 0, after = 0;
        for (uint32_t i = 0; i < n; i++) before += (double)x[i] * (double)other[i];
        walsh_rotate_forward(&r, x, y);
        walsh_rotate_forward(&r, other, twice);
        for (uint32_t i = 0; i < r.blocks.padded; i++) after += (double)y[i] * (double)twice[i];
        assert_true(fabs(after - before) < 1e-6 * norm_x);
        walsh_free(x), walsh_free(back), walsh_free(y), walsh_free(twice), walsh_free(other);
        walsh_free((void *)r.signs);
    }
}

/* The fp32 butterfly bit for bit: an independent recursion over the last stage first gives the same stages in
 * the same order, since the two halves do not meet before it. */
static void butterfly_recursive(float *x, size_t n)
{
    if (n == 1) return;
    butterfly_recursive(x, n / 2);
    butterfly_recursive(x + n / 2, n / 2);
    for (size_t i = 0; i < n / 2; i++) {
        volatile float sum = x[i] + x[i + n / 2], difference = x[i] - x[i + n / 2];
        x[i] = sum;
        x[i + n / 2] = difference;
    }
}

static void test_butterfly_bits(void **state)
{
    (void)state;
    struct walsh_random random = start();
    for (size_t n = 1; n <= 4096; n *= 2) {
        float *x = random_f32(&random, n), *y = random_f32(&random, n);
        memcpy(y, x, n * sizeof *x);
        walsh_hadamard(x, n);
        butterfly_recursive(y, n);
        float scale = (float)(1.0 / sqrt((double)n));
        for (size_t i = 0; i < n; i++) y[i] *= scale;
        assert_memory_equal(x, y, n * sizeof *x);
        walsh_free(x), walsh_free(y);
    }
}

/* A scale inside the signs vector: the formulas still hold, with s as given. */
static void test_scaled_signs(void **state)
{
    (void)state;
    struct walsh_random random = start();
    struct walsh_rotation r = random_rotation(576, 64, false, "scaled");
    float *signs = (float *)r.signs;
    for (uint32_t i = 0; i < 576; i++) signs[i] *= i < 512 ? 1.25f : 0.5f;
    double x[576], y[576], back[576];
    float xf[576], yf[576], backf[576];
    for (uint32_t i = 0; i < 576; i++) x[i] = (double)(xf[i] = (float)walsh_random_normal(&random));
    walsh_rotate_forward_f64(&r, x, y);
    walsh_rotate_forward(&r, xf, yf);
    for (uint32_t i = 0; i < 576; i++) {
        double sum = 0;
        for (uint32_t j = 0; j < 576; j++) sum += hadamard_entry(&r.blocks, i, j) * (double)signs[j] * x[j];
        assert_true(fabs(sum - y[i]) < 1e-12);
        assert_true(fabs(sum - (double)yf[i]) < 2e-6);
    }
    /* inverse(forward(x)) = s^2 x */
    walsh_rotate_inverse_f64(&r, y, back);
    walsh_rotate_inverse(&r, yf, backf);
    for (uint32_t i = 0; i < 576; i++) {
        double s = (double)signs[i];
        assert_true(fabs(back[i] - s * s * x[i]) < 1e-12);
        assert_true(fabs((double)backf[i] - s * s * x[i]) < 5e-6);
    }
    walsh_free(signs);
}

/* A'·x == A·forward(x), B'·h == forward(B·h), inverse_out(W~·forward_in(x)) == W·x; in the wrong order they
 * are far off. */
static void test_folding(void **state)
{
    (void)state;
    struct walsh_random random = start();
    enum { M = 100, N = 200, RANK = 7 };
    struct walsh_rotation in = random_rotation(N, 64, false, "in"),
                          out = random_rotation(M, 16, false, "out");
    const uint32_t np = in.blocks.padded, mp = out.blocks.padded;
    assert_true(np > N && mp > M);
    float *a = random_f32(&random, (size_t)RANK * np), *fa = random_f32(&random, (size_t)RANK * N);
    float *b = random_f32(&random, (size_t)M * RANK), *fb = random_f32(&random, (size_t)mp * RANK);
    float *w = random_f32(&random, (size_t)M * N), *wt = random_f32(&random, (size_t)mp * np);
    double x[N], h[RANK], t[512], u[512], v[512];
    for (int i = 0; i < N; i++) x[i] = walsh_random_normal(&random);
    for (int i = 0; i < RANK; i++) h[i] = walsh_random_normal(&random);

    assert_int_equal(walsh_fold_rows(&in, a, RANK, fa, NULL), WALSH_OK);
    walsh_rotate_forward_f64(&in, x, t);
    double wrong = 0;
    for (int k = 0; k < RANK; k++) {
        double left = 0, right = 0, forward_order = 0;
        for (int i = 0; i < N; i++) left += (double)fa[k * N + i] * x[i];
        for (uint32_t i = 0; i < np; i++) right += (double)a[(size_t)k * np + i] * t[i];
        assert_true(fabs(left - right) < 2e-5);
        for (uint32_t i = 0; i < np; i++) u[i] = (double)in.signs[i] * (double)a[(size_t)k * np + i];
        for (uint32_t i = 0, done = 0; i < in.blocks.count; done += in.blocks.block[i++])
            walsh_hadamard_f64(u + done, in.blocks.block[i]);
        for (int i = 0; i < N; i++) forward_order += u[i] * x[i];
        wrong = fmax(wrong, fabs(forward_order - right));
    }
    assert_true(wrong > 1); /* the classic bug would not go unseen */

    assert_int_equal(walsh_fold_columns(&out, b, RANK, fb, NULL), WALSH_OK);
    for (int i = 0; i < M; i++) {
        u[i] = 0;
        for (int k = 0; k < RANK; k++) u[i] += (double)b[i * RANK + k] * h[k];
    }
    walsh_rotate_forward_f64(&out, u, v);
    for (uint32_t i = 0; i < mp; i++) {
        double left = 0;
        for (int k = 0; k < RANK; k++) left += (double)fb[i * RANK + (uint32_t)k] * h[k];
        assert_true(fabs(left - v[i]) < 5e-6);
    }

    assert_int_equal(walsh_rotate_matrix(&out, &in, w, wt, NULL), WALSH_OK);
    for (uint32_t i = 0; i < mp; i++) {
        u[i] = 0;
        for (uint32_t j = 0; j < np; j++) u[i] += (double)wt[(size_t)i * np + j] * t[j];
    }
    walsh_rotate_inverse_f64(&out, u, v);
    for (int i = 0; i < M; i++) {
        double y = 0;
        for (int j = 0; j < N; j++) y += (double)w[i * N + j] * x[j];
        assert_true(fabs(y - v[i]) < 5e-5);
    }
    walsh_free(a), walsh_free(fa), walsh_free(b), walsh_free(fb), walsh_free(w), walsh_free(wt);
    walsh_free((void *)in.signs), walsh_free((void *)out.signs);
}

static void test_none_and_equal(void **state)
{
    (void)state;
    float x[5] = {1, 2, 3, 4, 5}, y[5], z[5];
    struct walsh_rotation none = {.kind = WALSH_ROTATION_NONE, .size = 5, .blocks = {.padded = 5}};
    walsh_rotate_forward(&none, x, y);
    assert_memory_equal(x, y, sizeof x);
    walsh_rotate_inverse(&none, y, z);
    assert_memory_equal(x, z, sizeof x);
    assert_true(walsh_rotation_equal(&none, &none));

    struct walsh_rotation a = random_rotation(70, 64, false, "a"), b = random_rotation(70, 64, false, "a"),
                          c = random_rotation(70, 64, false, "c");
    assert_true(walsh_rotation_equal(&a, &b));
    assert_false(walsh_rotation_equal(&a, &c));
    assert_false(walsh_rotation_equal(&a, &none));
    b.size = 69;
    assert_false(walsh_rotation_equal(&a, &b));
    b.size = 70;
    ((float *)b.signs)[100] *= -1;
    assert_false(walsh_rotation_equal(&a, &b));
    walsh_free((void *)a.signs), walsh_free((void *)b.signs), walsh_free((void *)c.signs);
}

/* Reproducible, dependent on seed and name, a prefix of a longer vector, and balanced. */
static void test_random_signs(void **state)
{
    (void)state;
    enum { N = 1000 };
    float a[N], b[N];
    walsh_random_signs(1, "model.layers.0.self_attn.q_proj", a, N);
    int sum = 0;
    for (int i = 0; i < N; i++) {
        assert_true(a[i] == 1 || a[i] == -1);
        sum += (int)a[i];
    }
    assert_true(abs(sum) < 150);
    walsh_random_signs(1, "model.layers.0.self_attn.q_proj", b, 77);
    assert_memory_equal(a, b, 77 * sizeof *a);
    for (int other = 0; other < 2; other++) {
        walsh_random_signs(other ? 2 : 1, other ? "model.layers.0.self_attn.q_proj" : "model.layers.0.mlp", b,
                           N);
        int same = 0;
        for (int i = 0; i < N; i++) same += a[i] == b[i];
        assert_true(same > 400 && same < 600);
    }
    static const float first[8] = {-1, -1, -1, 1, 1, 1, 1, 1};
    walsh_random_signs(0, "x", b, 8);
    assert_memory_equal(b, first, sizeof first);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_block_table),    cmocka_unit_test(test_matches_matrix),
        cmocka_unit_test(test_butterfly_bits), cmocka_unit_test(test_inverse_and_orthogonality),
        cmocka_unit_test(test_scaled_signs),   cmocka_unit_test(test_folding),
        cmocka_unit_test(test_none_and_equal), cmocka_unit_test(test_random_signs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
