/* Cases of the conversions: EXACT. */
#include <math.h>
#include <string.h>

#include "base/scalar.h"
#include "checker.h"

static const size_t lengths[] = {0, 1, 7, 15, 16, 17, 31, 33, 64, 100, 255, 256, 1000, 4096};
#define LENGTHS (sizeof lengths / sizeof lengths[0])

static float *row(struct check *c, size_t n)
{
    return check_alloc(c, n * sizeof(float), check_misalign(c, sizeof(float)));
}

static void compare_quantized(struct check *c, walsh_kernel_quantize_i8 *reference,
                              walsh_kernel_quantize_i8 *candidate, const float *x, size_t n)
{
    int8_t *expected = check_alloc(c, n, check_misalign(c, 1)),
           *got = check_alloc(c, n, check_misalign(c, 1));
    int32_t sum[2] = {-1, -2};
    float scale[2] = {reference(expected, &sum[0], x, n), candidate(got, &sum[1], x, n)};
    check_exact_bytes(c, "q", expected, got, n);
    check_exact_f32(c, "scale", &scale[0], &scale[1], 1);
    if (sum[0] != sum[1]) check_fail(c, "the sum of %zu is %d, expected %d", n, sum[1], sum[0]);
}

void check_quantize_i8(struct check *c, walsh_kernel_quantize_i8 *reference,
                       walsh_kernel_quantize_i8 *candidate)
{
    for (size_t l = 0; l < LENGTHS; l++) {
        size_t n = lengths[l];
        float *x = row(c, n);
        check_fill_normal(c, x, n);
        compare_quantized(c, reference, candidate, x, n);
        if (n == 0) continue;
        /* ties: amax 127 makes every half an exact tie; tiny and zero rows; one NaN or Inf anywhere */
        for (size_t i = 0; i < n; i++) x[i] = (float)((int)check_below(c, 509) - 254) * 0.5f;
        x[check_below(c, n)] = -127.0f;
        compare_quantized(c, reference, candidate, x, n);
        static const float scale[] = {0x1p-119f, 0x1p-118f, 0x1p-140f, 0x1p127f, 0.0f};
        for (size_t s = 0; s < 5; s++) {
            for (size_t i = 0; i < n; i++) x[i] = (float)walsh_random_uniform(&c->random) * scale[s];
            x[check_below(c, n)] = -scale[s];
            compare_quantized(c, reference, candidate, x, n);
        }
        check_fill_normal(c, x, n);
        x[check_below(c, n)] = c->round % 2 ? -INFINITY : NAN;
        compare_quantized(c, reference, candidate, x, n);
    }
}

/* f32 bit patterns: any, or (every other one) near the rounding ties and ends of the narrow type. */
static void fill_bits(struct check *c, float *x, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        uint32_t bits = (uint32_t)walsh_random_u64(&c->random);
        if (i % 4 == 1)
            bits = (bits & 0x80ffe000u) | (check_below(c, 2) ? 0x38001000u : 0x38000fffu);     /* f16 */
        if (i % 4 == 2) bits = (bits & 0xffff0000u) | (0x7fffu + (uint32_t)check_below(c, 3)); /* bf16 */
        if (i % 4 == 3)
            bits = (bits & 0x80000000u) | (0x477fe000u - 3 + (uint32_t)check_below(c, 0x2006)); /* 65504.. */
        x[i] = walsh_float_from_bits(bits);
    }
    check_normal(c);
}

void check_bf16_from_f32(struct check *c, walsh_kernel_bf16_from_f32 *reference,
                         walsh_kernel_bf16_from_f32 *candidate)
{
    for (size_t l = 0; l < LENGTHS; l++) {
        size_t n = lengths[l];
        float *x = row(c, n);
        uint16_t *expected = check_alloc(c, n * 2, check_misalign(c, 2)),
                 *got = check_alloc(c, n * 2, check_misalign(c, 2));
        if (c->round % 2)
            fill_bits(c, x, n);
        else
            check_fill_special(c, x, n);
        reference(expected, x, n);
        candidate(got, x, n);
        check_exact_bytes(c, "y", expected, got, n * 2);
    }
}

void check_f16_from_f32(struct check *c, walsh_kernel_f16_from_f32 *reference,
                        walsh_kernel_f16_from_f32 *candidate)
{
    for (size_t l = 0; l < LENGTHS; l++) {
        size_t n = lengths[l];
        float *x = row(c, n);
        uint16_t *expected = check_alloc(c, n * 2, check_misalign(c, 2)),
                 *got = check_alloc(c, n * 2, check_misalign(c, 2));
        if (c->round % 2)
            fill_bits(c, x, n);
        else
            check_fill_special(c, x, n);
        reference(expected, x, n);
        candidate(got, x, n);
        check_exact_f16(c, "y", expected, got, n);
    }
}

/* All 65536 values, then tails. */
static void check_widen(struct check *c, void (*reference)(float *, const void *, size_t),
                        void (*candidate)(float *, const void *, size_t))
{
    uint16_t *x = check_alloc(c, 65536 * 2, check_misalign(c, 2));
    for (size_t i = 0; i < 65536; i++) x[i] = (uint16_t)i;
    for (size_t l = 0; l <= LENGTHS; l++) {
        size_t n = l < LENGTHS ? lengths[l] : 65536, from = l < LENGTHS ? check_below(c, 65536 - n) : 0;
        float *expected = row(c, n), *got = row(c, n);
        uint8_t *part =
            check_alloc(c, n * 2, check_misalign(c, 1)); /* its own buffer, for reads behind its end */
        memcpy(part, x + from, n * 2);
        reference(expected, part, n);
        candidate(got, part, n);
        check_exact_f32(c, "y", expected, got, n);
    }
}

void check_f32_from_bf16(struct check *c, walsh_kernel_f32_from_bf16 *reference,
                         walsh_kernel_f32_from_bf16 *candidate)
{
    check_widen(c, reference, candidate);
}

void check_f32_from_f16(struct check *c, walsh_kernel_f32_from_f16 *reference,
                        walsh_kernel_f32_from_f16 *candidate)
{
    check_widen(c, reference, candidate);
}
