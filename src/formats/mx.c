#include "formats/mx.h"

#include <float.h>
#include <math.h>

#include "base/scalar.h"

#define LARGEST_E2M1 6.0f
#define LARGEST_E4M3 448.0f
#define LARGEST_E5M2 57344.0f

uint8_t walsh_e2m1_from_f32(float f)
{
    /* halfway between codes n and n + 1 */
    static const float middle[7] = {.25f, .75f, 1.25f, 1.75f, 2.5f, 3.5f, 5};
    const uint32_t u = walsh_bits_from_float(f);
    const float a = walsh_float_from_bits(u & 0x7fffffffu);
    unsigned code = 0;
    for (unsigned n = 0; n < 7; n++) /* upwards out of an odd code's tie, never out of an even one's */
        if (n % 2 ? a >= middle[n] : a > middle[n]) code = n + 1;
    return (uint8_t)(code | (u >> 28 & 8u));
}

/* What an element format adds to the rules: its largest value and that one's exponent, its mantissa bits. */
struct element {
    float largest;
    int exponent;
    unsigned mantissa;
};

static struct element element_of(enum walsh_code code)
{
    if (code == WALSH_CODE_E2M1) return (struct element){LARGEST_E2M1, 2, 1};
    if (code == WALSH_CODE_E4M3) return (struct element){LARGEST_E4M3, 8, 3};
    return (struct element){LARGEST_E5M2, 15, 2};
}

/* ceil(log2 x) of a positive number. */
static int ceil_log2(float x)
{
    int exponent;
    return frexpf(x, &exponent) == .5f ? exponent - 1 : exponent; /* x = [.5, 1) 2^exponent */
}

uint8_t walsh_mx_scale(float amax, enum walsh_code code, enum walsh_mx_rounding rounding)
{
    const struct element e = element_of(code);
    uint32_t u = walsh_bits_from_float(amax);
    int power;
    if (rounding == WALSH_MX_RCEIL) {
        const float quotient = amax / e.largest;
        power = quotient == 0 ? -127 : ceil_log2(quotient);
    } else {
        if (rounding == WALSH_MX_EVEN) u += 1u << (22 - e.mantissa);
        power = (int)(u >> 23) - 127 - e.exponent;
        if (rounding == WALSH_MX_CEIL && (u & 0x7fffffu) != 0) power++;
    }
    power = power < -127 ? -127 : power > 127 ? 127 : power;
    return (uint8_t)(power + 127);
}

static uint8_t encode_element(enum walsh_code code, float x)
{
    return code == WALSH_CODE_E2M1   ? walsh_e2m1_from_f32(x)
           : code == WALSH_CODE_E4M3 ? walsh_e4m3_from_f32(x)
                                     : walsh_e5m2_from_f32(x);
}

static float largest_magnitude(const float *x, size_t n)
{
    float amax = 0;
    for (size_t i = 0; i < n; i++) amax = fmaxf(amax, fabsf(x[i]));
    return amax;
}

uint8_t walsh_mx_encode(const float *x, size_t n, enum walsh_code code, enum walsh_mx_rounding rounding,
                        uint8_t *codes)
{
    const uint8_t byte = walsh_mx_scale(largest_magnitude(x, n), code, rounding);
    /* The smallest scale, 2^-127, is no normal f32: torchao divides by 2^-126 instead, and does not scale at
     * all with RCEIL. Nothing but zeros and values below 2^-123 gets there. */
    const float divisor = byte != 0 ? walsh_f32_from_e8m0(byte) : rounding == WALSH_MX_RCEIL ? 1 : 0x1p-126f;
    for (size_t i = 0; i < n; i++) codes[i] = encode_element(code, x[i] / divisor);
    return byte;
}

float walsh_nvfp4_tensor_scale(float amax)
{
    return amax == 0 ? 1 : amax / (LARGEST_E4M3 * LARGEST_E2M1);
}

uint8_t walsh_nvfp4_encode(const float *x, size_t n, float tensor_scale, uint8_t *codes)
{
    const float wanted = largest_magnitude(x, n) / LARGEST_E2M1 / tensor_scale;
    const uint8_t byte = walsh_e4m3_from_f32(fminf(fmaxf(wanted, 0x1p-6f), LARGEST_E4M3));
    const float factor = 1 / tensor_scale / walsh_f32_from_e4m3(byte);
    for (size_t i = 0; i < n; i++) codes[i] = walsh_e2m1_from_f32(x[i] * factor);
    return byte;
}

void walsh_fp8_encode(const float *x, size_t n, uint8_t *codes, float *scale)
{
    const float amax = largest_magnitude(x, n);
    *scale = amax / LARGEST_E4M3;
    if (*scale == 0) *scale = FLT_EPSILON;
    for (size_t i = 0; i < n; i++) codes[i] = walsh_e4m3_from_f32(x[i] / *scale);
}
