/* Cases of the rotation's kernels: EXACT for every block size. */
#include <math.h>
#include <string.h>

#include "checker.h"

#define LARGEST_LOG 15

static float *copy(struct check *c, const float *x, size_t n)
{
    float *p = check_alloc(c, n * sizeof *p, check_misalign(c, sizeof *p));
    if (x != NULL) memcpy(p, x, n * sizeof *p);
    return p;
}

void check_hadamard_f32(struct check *c, walsh_kernel_hadamard_f32 *reference,
                        walsh_kernel_hadamard_f32 *candidate)
{
    for (unsigned log = 0; log <= LARGEST_LOG; log++) {
        size_t n = (size_t)1 << log;
        float *expected = copy(c, NULL, n);
        check_fill_special(c, expected, n);
        float *got = copy(c, expected, n);
        reference(expected, n);
        candidate(got, n);
        check_exact_f32(c, "x", expected, got, n);
    }
}

static void random_signs(struct check *c, float *signs, size_t n)
{
    /* +-1, in one round with a scale: the kernels must not take the signs' shape for granted. */
    for (size_t i = 0; i < n; i++)
        signs[i] = (check_below(c, 2) ? 1.0f : -1.0f) * (c->round == 1 ? 0.3f + (float)i : 1.0f);
}

void check_rotate_forward_f32(struct check *c, walsh_kernel_rotate_forward_f32 *reference,
                              walsh_kernel_rotate_forward_f32 *candidate)
{
    for (unsigned log = 0; log <= LARGEST_LOG; log++) {
        size_t n = (size_t)1 << log, size = c->round == 0 ? n : check_below(c, n) + 1;
        float *x = copy(c, NULL, size), *signs = copy(c, NULL, size);
        float *expected = copy(c, NULL, n), *got = copy(c, NULL, n);
        check_fill_special(c, x, size);
        random_signs(c, signs, size);
        reference(expected, x, signs, size, n);
        candidate(got, x, signs, size, n);
        check_exact_f32(c, "y", expected, got, n);
    }
}

void check_rotate_inverse_f32(struct check *c, walsh_kernel_rotate_inverse_f32 *reference,
                              walsh_kernel_rotate_inverse_f32 *candidate)
{
    for (unsigned log = 0; log <= LARGEST_LOG; log++) {
        size_t n = (size_t)1 << log, size = c->round == 0 ? n : check_below(c, n) + 1;
        float *z = copy(c, NULL, n), *signs = copy(c, NULL, size), *expected = copy(c, NULL, size);
        check_fill_special(c, z, n);
        random_signs(c, signs, size);
        float *z2 = copy(c, z, n), *got = copy(c, NULL, size);
        float *in_place = copy(c, z, n);
        reference(expected, z, signs, size, n);
        candidate(got, z2, signs, size, n);
        candidate(in_place, in_place, signs, size, n);
        check_exact_f32(c, "y", expected, got, size);
        check_exact_f32(c, "y in place", expected, in_place, size);
    }
}

/* A row of several blocks, whole or cut, with and without a norm's weight. */
static void compare_rotate_i8(struct check *c, walsh_kernel_rotate_i8 *reference,
                              walsh_kernel_rotate_i8 *candidate, struct walsh_rotation *r, const float *x,
                              const float *weight)
{
    const size_t n = r->blocks.padded;
    const float factor = 0.3f + (float)check_below(c, 8);
    int8_t *expected = check_alloc(c, n, check_misalign(c, 1)),
           *got = check_alloc(c, n, check_misalign(c, 1));
    int32_t sum[2] = {-1, -2};
    float scale[2];
    scale[0] = reference(expected, &sum[0], copy(c, NULL, n), x, weight, factor, r);
    scale[1] = candidate(got, &sum[1], copy(c, NULL, n), x, weight, factor, r);
    check_exact_bytes(c, "q", expected, got, n);
    check_exact_f32(c, "scale", &scale[0], &scale[1], 1);
    if (sum[0] != sum[1]) check_fail(c, "the sum of %zu is %d, expected %d", n, sum[1], sum[0]);
}

void check_rotate_i8(struct check *c, walsh_kernel_rotate_i8 *reference, walsh_kernel_rotate_i8 *candidate)
{
    static const uint32_t sizes[][2] = {{1, 8},     {100, 4},   {64, 64},   {65, 64},  {200, 64},
                                        {3000, 64}, {4096, 64}, {5000, 64}, {3072, 0}, {640, 0}};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        struct walsh_rotation r = {.kind = WALSH_ROTATION_BLOCKS, .size = sizes[i][0]};
        struct walsh_error err;
        const enum walsh_status status =
            sizes[i][1] != 0 ? walsh_blocks_binary(r.size, sizes[i][1], &r.blocks, &err)
                             : walsh_blocks_uniform(r.size, r.size & -r.size, &r.blocks, &err);
        if (status != WALSH_OK) {
            check_fail(c, "blocks of %u: %s", r.size, err.message);
            continue;
        }
        float *x = copy(c, NULL, r.size), *weight = copy(c, NULL, r.size),
              *signs = copy(c, NULL, r.blocks.padded);
        check_fill_special(c, x, r.size);
        check_fill_normal(c, weight, r.size);
        random_signs(c, signs, r.blocks.padded);
        r.signs = signs;
        compare_rotate_i8(c, reference, candidate, &r, x, NULL);
        compare_rotate_i8(c, reference, candidate, &r, x, weight);
        x[check_below(c, r.size)] = c->round % 2 ? -INFINITY : NAN;
        compare_rotate_i8(c, reference, candidate, &r, x, weight);
        memset(x, 0, r.size * sizeof *x);
        compare_rotate_i8(c, reference, candidate, &r, x, weight);
    }
}
