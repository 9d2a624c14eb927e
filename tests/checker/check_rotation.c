/* Cases of the rotation's kernels: EXACT for every block size. */
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
