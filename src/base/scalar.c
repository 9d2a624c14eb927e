#include "base/scalar.h"

float walsh_f32_from_f16(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16;
    uint32_t exponent = (h >> 10) & 31u, mantissa = h & 0x3ffu;
    if (exponent == 31) return walsh_float_from_bits(sign | 0x7f800000u | (mantissa << 13));
    if (exponent != 0) return walsh_float_from_bits(sign | ((exponent + 112) << 23) | (mantissa << 13));
    float magnitude = (float)mantissa * 0x1p-24f; /* zero or subnormal: exact in binary32 */
    return walsh_float_from_bits(sign | walsh_bits_from_float(magnitude));
}

/* value >> shift, rounded to nearest, ties to even; shift 1..31 and no overflow of the sum */
static uint32_t shift_round_even(uint32_t value, unsigned shift)
{
    return (value + (1u << (shift - 1)) - 1 + ((value >> shift) & 1u)) >> shift;
}

uint16_t walsh_f16_from_f32(float f)
{
    uint32_t u = walsh_bits_from_float(f);
    uint32_t sign = (u >> 16) & 0x8000u, a = u & 0x7fffffffu;
    if (a > 0x7f800000u)
        return (uint16_t)(sign | 0x7e00u | ((a >> 13) & 0x3ffu)); /* quiet, payload's top bits kept */
    if (a >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u);      /* 65520 is half way to 2^16 */
    /* Normal: move the bias from 127 to 15; a carry out of the mantissa rightly bumps the exponent. */
    if (a >= 0x38800000u) return (uint16_t)(sign | shift_round_even(a - (112u << 23), 13));
    if (a < 0x33000000u) return (uint16_t)sign; /* below 2^-25 */
    /* Subnormal: the value is m x 2^(e-150); count in units of 2^-24. */
    uint32_t m = (a & 0x7fffffu) | 0x800000u;
    return (uint16_t)(sign | shift_round_even(m, 126 - (a >> 23)));
}

float walsh_f32_from_e4m3(uint8_t b)
{
    uint32_t sign = (uint32_t)(b & 0x80u) << 24;
    uint32_t exponent = (b >> 3) & 15u, mantissa = b & 7u;
    if ((b & 0x7fu) == 0x7fu) return walsh_float_from_bits(sign | 0x7fc00000u);
    if (exponent != 0) return walsh_float_from_bits(sign | ((exponent + 120) << 23) | (mantissa << 20));
    return walsh_float_from_bits(sign | walsh_bits_from_float((float)mantissa * 0x1p-9f));
}

uint8_t walsh_e4m3_from_f32(float f)
{
    uint32_t u = walsh_bits_from_float(f);
    uint32_t sign = (u >> 24) & 0x80u, a = u & 0x7fffffffu;
    if (a > 0x7f800000u) return (uint8_t)(sign | 0x7fu);
    if (a >= 0x43e00000u) return (uint8_t)(sign | 0x7eu); /* 448, the largest */
    /* Normal; 0x7e is reached by rounding at most, because a < 448. */
    if (a >= 0x3c800000u) return (uint8_t)(sign | shift_round_even(a - (120u << 23), 20));
    if (a < 0x3a800000u) return (uint8_t)sign; /* below 2^-10 */
    uint32_t m = (a & 0x7fffffu) | 0x800000u;  /* in units of 2^-9 */
    return (uint8_t)(sign | shift_round_even(m, 141 - (a >> 23)));
}

/* E5M2 is the upper byte of a binary16. */
float walsh_f32_from_e5m2(uint8_t b)
{
    return walsh_f32_from_f16((uint16_t)((unsigned)b << 8));
}

uint8_t walsh_e5m2_from_f32(float f)
{
    uint32_t u = walsh_bits_from_float(f);
    uint32_t sign = (u >> 24) & 0x80u, a = u & 0x7fffffffu;
    if (a > 0x7f800000u) return (uint8_t)(sign | 0x7eu);
    if (a >= 0x47600000u) return (uint8_t)(sign | 0x7bu); /* 57344, the largest */
    /* Normal; 0x7b is reached by rounding at most, because a < 57344. */
    if (a >= 0x38800000u) return (uint8_t)(sign | shift_round_even(a - (112u << 23), 21));
    if (a < 0x37000000u) return (uint8_t)sign; /* below 2^-17 */
    uint32_t m = (a & 0x7fffffu) | 0x800000u;  /* in units of 2^-16 */
    return (uint8_t)(sign | shift_round_even(m, 134 - (a >> 23)));
}

float walsh_f32_from_e8m0(uint8_t b)
{
    if (b == 255) return walsh_float_from_bits(0x7fc00000u);
    if (b == 0) return 0x1p-127f; /* subnormal in binary32 */
    return walsh_float_from_bits((uint32_t)b << 23);
}
