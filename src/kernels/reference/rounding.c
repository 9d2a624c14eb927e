/* Conversions between f32 and the narrow types, one element at a time. */
#include <math.h>
#include <string.h>

#include "base/scalar.h"
#include "kernels/table.h"

float walsh_quantize_i8_reference(int8_t *q, int32_t *sum, const float *x, size_t n)
{
    uint32_t largest = 0; /* |x| orders like its bits, with Inf and NaN on top */
    for (size_t i = 0; i < n; i++) {
        uint32_t magnitude = walsh_bits_from_float(x[i]) & 0x7fffffffu;
        if (magnitude > largest) largest = magnitude;
    }
    float amax = walsh_float_from_bits(largest);
    *sum = 0;
    if (!(amax >= 0x1p-118f) || isinf(amax)) {
        memset(q, 0, n);
        return amax < 1 ? 0.0f : NAN;
    }
    float inverse = 127.0f / amax;
    for (size_t i = 0; i < n; i++) {
        q[i] = (int8_t)rintf(x[i] * inverse); /* |x * inverse| < 127.0001 */
        *sum += q[i];
    }
    return amax / 127.0f;
}

void walsh_quantize_groups_i8_reference(int8_t *q, float *scale, int32_t *sum, const float *x, size_t n)
{
    for (size_t k = 0; k < n; k += WALSH_ACTIVATION_GROUP) {
        int32_t whole;
        scale[k / WALSH_ACTIVATION_GROUP] =
            walsh_quantize_i8_reference(q + k, &whole, x + k, WALSH_ACTIVATION_GROUP);
        for (size_t part = k; part < k + WALSH_ACTIVATION_GROUP; part += WALSH_ACTIVATION_SUM) {
            sum[part / WALSH_ACTIVATION_SUM] = 0;
            for (size_t i = part; i < part + WALSH_ACTIVATION_SUM; i++)
                sum[part / WALSH_ACTIVATION_SUM] += q[i];
        }
    }
}

void walsh_bf16_from_f32_reference(uint16_t *y, const float *x, size_t n)
{
    for (size_t i = 0; i < n; i++) y[i] = walsh_bf16_from_f32(x[i]);
}

void walsh_f16_from_f32_reference(uint16_t *y, const float *x, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        float clamped = x[i] > 65504.0f ? 65504.0f : x[i] < -65504.0f ? -65504.0f : x[i];
        y[i] = walsh_f16_from_f32(clamped);
    }
}

static uint16_t load(const void *x, size_t i)
{
    uint16_t u;
    memcpy(&u, (const uint8_t *)x + i * sizeof u, sizeof u);
    return u;
}

void walsh_f32_from_bf16_reference(float *y, const void *x, size_t n)
{
    for (size_t i = 0; i < n; i++) y[i] = walsh_f32_from_bf16(load(x, i));
}

void walsh_f32_from_f16_reference(float *y, const void *x, size_t n)
{
    for (size_t i = 0; i < n; i++) y[i] = walsh_f32_from_f16(load(x, i));
}
