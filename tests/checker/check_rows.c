/* Cases of the row kernels. */
#include <math.h>
#include <string.h>

#include "checker.h"

static const size_t lengths[] = {1, 2, 7, 15, 16, 17, 33, 64, 100, 256, 1000, 4096, 11008};
#define LENGTHS (sizeof lengths / sizeof lengths[0])

static float *row(struct check *c, size_t n)
{
    return check_alloc(c, n * sizeof(float), check_misalign(c, sizeof(float)));
}

static float *copy(struct check *c, const float *x, size_t n)
{
    float *p = row(c, n);
    memcpy(p, x, n * sizeof *p);
    return p;
}

void check_add_f32(struct check *c, walsh_kernel_add_f32 *reference, walsh_kernel_add_f32 *candidate)
{
    for (size_t l = 0; l < LENGTHS; l++) {
        size_t n = lengths[l];
        float *x = row(c, n), *d = row(c, n);
        check_fill_special(c, x, n);
        check_fill_special(c, d, n);
        float *y = copy(c, x, n);
        reference(x, d, n);
        candidate(y, d, n);
        check_exact_f32(c, "x", x, y, n);
    }
}

/* The sum of squares has an error below log2(n) units; the root halves it; three roundings follow. */
#define RMS_NORM_FACTOR 8

void check_rms_factor_f32(struct check *c, walsh_kernel_rms_factor_f32 *reference,
                          walsh_kernel_rms_factor_f32 *candidate)
{
    for (size_t l = 0; l < LENGTHS; l++) {
        const size_t n = lengths[l];
        float *x = row(c, n);
        check_fill_normal(c, x, n);
        if (c->round == CHECK_ROUNDS - 1) x[check_below(c, n)] = l % 2 ? NAN : INFINITY;
        const float expected = reference(x, n, 1e-6f), got = candidate(x, n, 1e-6f);
        check_close_f32(c, "factor", &expected, &got, &expected, 1, RMS_NORM_FACTOR);
    }
}

void check_rms_norm_f32(struct check *c, walsh_kernel_rms_norm_f32 *reference,
                        walsh_kernel_rms_norm_f32 *candidate)
{
    for (size_t l = 0; l < LENGTHS; l++) {
        size_t n = lengths[l];
        float *x = row(c, n), *weight = row(c, n), *expected = row(c, n), *got = row(c, n),
              *magnitude = row(c, n);
        check_fill_normal(c, x, n);
        check_fill_normal(c, weight, n);
        if (c->round == CHECK_ROUNDS - 1) x[check_below(c, n)] = NAN;
        float eps = c->round == 1 ? 1e-5f : 1e-6f;
        float *in_place = copy(c, x, n);
        reference(expected, x, weight, n, eps);
        candidate(got, x, weight, n, eps);
        candidate(in_place, in_place, weight, n, eps);
        for (size_t i = 0; i < n; i++) magnitude[i] = fabsf(expected[i]);
        check_close_f32(c, "y", expected, got, magnitude, n, RMS_NORM_FACTOR);
        check_exact_f32(c, "y in place", got, in_place, n);
    }
}

void check_rms_norm_backward_f32(struct check *c, walsh_kernel_rms_norm_backward_f32 *reference,
                                 walsh_kernel_rms_norm_backward_f32 *candidate)
{
    for (size_t l = 0; l < LENGTHS; l++) {
        const size_t n = lengths[l];
        const bool add = l % 2;
        float *x = row(c, n), *dy = row(c, n), *weight = row(c, n), *expected = row(c, n),
              *magnitude = row(c, n);
        check_fill_normal(c, x, n);
        check_fill_normal(c, dy, n);
        check_fill_normal(c, weight, n);
        check_fill_normal(c, expected, n);
        if (c->round == CHECK_ROUNDS - 1) x[check_below(c, n)] = NAN;
        float *got = copy(c, expected, n), *in_place = copy(c, dy, n);
        double squares = 0, products = 0;
        for (size_t i = 0; i < n; i++) {
            squares += (double)x[i] * (double)x[i];
            products += fabs((double)weight[i] * (double)dy[i] * (double)x[i]);
        }
        const double r = 1 / sqrt(squares / (double)n + 1e-5), along = r * r * r * products / (double)n;
        for (size_t i = 0; i < n; i++)
            magnitude[i] = (float)((add ? fabs((double)expected[i]) : 0) +
                                   fabs(r * (double)weight[i] * (double)dy[i]) + fabs(along * (double)x[i]));
        reference(expected, dy, x, weight, n, 1e-5f, add);
        candidate(got, dy, x, weight, n, 1e-5f, add);
        check_close_f32(c, "dx", expected, got, magnitude, n, 12);
        if (add) continue;
        candidate(in_place, in_place, x, weight, n, 1e-5f, false);
        check_exact_f32(c, "dx in place", got, in_place, n);
    }
}

void check_swiglu_backward_f32(struct check *c, walsh_kernel_swiglu_backward_f32 *reference,
                               walsh_kernel_swiglu_backward_f32 *candidate)
{
    for (size_t l = 0; l < LENGTHS; l++) {
        const size_t n = lengths[l];
        float *gate = row(c, n), *up = row(c, n), *dy = row(c, n), *magnitude = row(c, n);
        float *expected[2] = {row(c, n), row(c, n)}, *got[2] = {row(c, n), row(c, n)};
        check_fill_normal(c, gate, n);
        check_fill_normal(c, up, n);
        check_fill_normal(c, dy, n);
        for (size_t i = 0; i < n; i++) gate[i] *= c->round == 1 ? 30.0f : 3.0f;
        if (c->round == CHECK_ROUNDS - 1) gate[check_below(c, n)] = NAN;
        reference(expected[0], expected[1], dy, gate, up, n);
        candidate(got[0], got[1], dy, gate, up, n);
        /* the exponent's rounding is |gate| units of s, which gate multiplies again */
        for (size_t i = 0; i < n; i++)
            magnitude[i] =
                fabsf(dy[i] * up[i]) * (1 + fabsf(gate[i]) * (1 + fabsf(gate[i]))) / (1 + expf(-gate[i]));
        check_close_f32(c, "dgate", expected[0], got[0], magnitude, n, 8);
        for (size_t i = 0; i < n; i++)
            magnitude[i] = fabsf(dy[i] * gate[i]) * (1 + fabsf(gate[i])) / (1 + expf(-gate[i]));
        check_close_f32(c, "dup", expected[1], got[1], magnitude, n, 8);
        float *in_place[2] = {copy(c, gate, n), copy(c, dy, n)};
        candidate(in_place[0], in_place[1], in_place[1], in_place[0], up, n);
        check_exact_f32(c, "dgate in place", got[0], in_place[0], n);
        check_exact_f32(c, "dup in place", got[1], in_place[1], n);
    }
}

void check_rope_f32(struct check *c, walsh_kernel_rope_f32 *reference, walsh_kernel_rope_f32 *candidate)
{
    static const size_t halves[] = {1, 3, 4, 8, 16, 20, 32, 48, 64, 128};
    for (size_t h = 0; h < sizeof halves / sizeof halves[0]; h++) {
        size_t half = halves[h], heads = check_below(c, 5) + 1, n = heads * 2 * half;
        float *x = row(c, n), *cosine = row(c, half), *sine = row(c, half);
        check_fill_special(c, x, n);
        for (size_t i = 0; i < half; i++) {
            double angle = 6.28 * walsh_random_uniform(&c->random);
            cosine[i] = (float)cos(angle);
            sine[i] = (float)sin(angle);
        }
        float *y = copy(c, x, n);
        reference(x, heads, half, cosine, sine);
        candidate(y, heads, half, cosine, sine);
        check_exact_f32(c, "x", x, y, n);
    }
}

typedef void gated(float *y, const float *gate, const float *up, size_t n);

/* Gates are standard normal, in round 1 times `widest`, later times `wide`. The error is held against |gate *
 * up| where `by_input`, else against |y|. */
static void check_gated(struct check *c, gated *reference, gated *candidate, float widest, float wide,
                        bool by_input, double factor)
{
    for (size_t l = 0; l < LENGTHS; l++) {
        size_t n = lengths[l];
        float *gate = row(c, n), *up = row(c, n), *expected = row(c, n), *got = row(c, n),
              *magnitude = row(c, n);
        check_fill_normal(c, gate, n);
        check_fill_normal(c, up, n);
        if (c->round > 0)
            for (size_t i = 0; i < n; i++) gate[i] *= c->round == 1 ? widest : wide;
        if (c->round == CHECK_ROUNDS - 1) {
            gate[check_below(c, n)] = NAN;
            up[check_below(c, n)] = INFINITY;
            gate[check_below(c, n)] = INFINITY;
        }
        float *in_place = copy(c, gate, n);
        reference(expected, gate, up, n);
        candidate(got, gate, up, n);
        candidate(in_place, in_place, up, n);
        /* below 1e-30 the exponential's end of range matters, the result does not */
        for (size_t i = 0; i < n; i++)
            magnitude[i] = by_input ? fabsf(gate[i] * up[i]) : fabsf(expected[i]) + 1e-30f;
        check_close_f32(c, "y", expected, got, magnitude, n, factor);
        check_exact_f32(c, "y in place", got, in_place, n);
    }
}

/* exp within 2 units, then 1 +, /, * with half a unit each. */
#define SWIGLU_FACTOR 4

void check_swiglu_f32(struct check *c, walsh_kernel_swiglu_f32 *reference, walsh_kernel_swiglu_f32 *candidate)
{
    check_gated(c, reference, candidate, 100, 10, false, SWIGLU_FACTOR);
}

/* The exponent's three roundings cost its size in units, and x exp(-x) is below 0.37. */
#define GEGLU_FACTOR 5

void check_geglu_f32(struct check *c, walsh_kernel_geglu_f32 *reference, walsh_kernel_geglu_f32 *candidate)
{
    check_gated(c, reference, candidate, 1e15f, 3, true, GEGLU_FACTOR);
}

/* The error of the exponent grows with alpha g, which is below 12 where the result is not negligible. */
#define CLAMPED_FACTOR 12

void check_clamped_swiglu_f32(struct check *c, walsh_kernel_clamped_swiglu_f32 *reference,
                              walsh_kernel_clamped_swiglu_f32 *candidate)
{
    for (size_t l = 0; l < LENGTHS; l++) {
        const size_t n = lengths[l];
        const float limit = c->round % 2 ? 1.5f : 7, alpha = 1.702f;
        float *gate = row(c, n), *up = row(c, n), *expected = row(c, n), *got = row(c, n),
              *magnitude = row(c, n);
        check_fill_normal(c, gate, n);
        check_fill_normal(c, up, n);
        for (size_t i = 0; i < n; i++) {
            gate[i] *= 4; /* beyond the limits now and then */
            up[i] *= 4;
        }
        if (c->round == CHECK_ROUNDS - 1) {
            gate[check_below(c, n)] = NAN;
            up[check_below(c, n)] = INFINITY;
            up[check_below(c, n)] = NAN;
            gate[check_below(c, n)] = INFINITY;
        }
        float *in_place = copy(c, gate, n);
        reference(expected, gate, up, n, alpha, limit);
        candidate(got, gate, up, n, alpha, limit);
        candidate(in_place, in_place, up, n, alpha, limit);
        for (size_t i = 0; i < n; i++) /* u + 1 cancels near -1 */
            magnitude[i] = fminf(fabsf(gate[i]), limit) * (fminf(fabsf(up[i]), limit) + 1) + 1e-30f;
        check_close_f32(c, "y", expected, got, magnitude, n, CLAMPED_FACTOR);
        check_exact_f32(c, "y in place", got, in_place, n);
    }
}

void check_scale_f32(struct check *c, walsh_kernel_scale_f32 *reference, walsh_kernel_scale_f32 *candidate)
{
    for (size_t l = 0; l < LENGTHS; l++) {
        size_t n = lengths[l];
        float *x = row(c, n), factor = check_normal(c);
        check_fill_special(c, x, n);
        float *y = copy(c, x, n);
        reference(x, factor, n);
        candidate(y, factor, n);
        check_exact_f32(c, "x", x, y, n);
    }
}

void check_soft_cap_f32(struct check *c, walsh_kernel_soft_cap_f32 *reference,
                        walsh_kernel_soft_cap_f32 *candidate)
{
    for (size_t l = 0; l < LENGTHS; l++) {
        size_t n = lengths[l];
        const float cap = c->round % 2 ? 50 : 0.5f, scale = c->round == 1 ? 0.0625f : 1;
        float *x = row(c, n), *magnitude = row(c, n);
        check_fill_normal(c, x, n);
        for (size_t i = 0; i < n; i++) x[i] *= c->round == 0 ? 1e30f : 100.0f;
        if (c->round == CHECK_ROUNDS - 1) {
            x[check_below(c, n)] = NAN;
            x[check_below(c, n)] = -INFINITY;
        }
        float *y = copy(c, x, n);
        reference(x, n, scale, cap);
        candidate(y, n, scale, cap);
        for (size_t i = 0; i < n; i++) magnitude[i] = cap;
        check_close_f32(c, "x", x, y, magnitude, n, 4);
    }
}

void check_route_f32(struct check *c, walsh_kernel_route_f32 *reference, walsh_kernel_route_f32 *candidate)
{
    for (uint32_t experts = 1; experts <= 256; experts = experts * 2 + 1) {
        uint32_t k = (uint32_t)check_below(c, experts < 9 ? experts : 9) + 1;
        if (k > experts) k = experts;
        bool normalize = check_below(c, 2) != 0;
        float *logits = row(c, experts), *expected = row(c, k), *got = row(c, k), *magnitude = row(c, k);
        int32_t *index = check_alloc(c, k * 4, check_misalign(c, 4)),
                *index2 = check_alloc(c, k * 4, check_misalign(c, 4));
        /* few distinct values: ties */
        for (uint32_t e = 0; e < experts; e++)
            logits[e] = c->round % 2 ? check_normal(c) : (float)check_below(c, 4);
        reference(index, expected, logits, experts, k, normalize);
        candidate(index2, got, logits, experts, k, normalize);
        check_exact_bytes(c, "index", index, index2, k * 4);
        for (uint32_t j = 0; j < k; j++) magnitude[j] = fabsf(expected[j]);
        check_close_f32(c, "weight", expected, got, magnitude, k, 4);
    }
}
