/* base/scalar: the storage scalars, exact in both directions. Pure functions. */
#ifndef WALSH_BASE_SCALAR_H
#define WALSH_BASE_SCALAR_H

#include <stdint.h>
#include <string.h>

/* Element types of stored tensors, as safetensors names them. */
enum walsh_dtype {
    WALSH_F32,
    WALSH_F16,
    WALSH_BF16,
    WALSH_F64,
    WALSH_I64,
    WALSH_I32,
    WALSH_I16,
    WALSH_I8,
    WALSH_U64,
    WALSH_U32,
    WALSH_U16,
    WALSH_U8,
    WALSH_BOOL,
    WALSH_F8_E4M3,
    WALSH_F8_E5M2,
    WALSH_F8_E8M0,
    WALSH_DTYPE_COUNT
};

static inline float walsh_float_from_bits(uint32_t u)
{
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}
static inline uint32_t walsh_bits_from_float(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}

static inline float walsh_f32_from_bf16(uint16_t b)
{
    return walsh_float_from_bits((uint32_t)b << 16);
}

/* Round to nearest, ties to even; NaN stays NaN (quiet). */
static inline uint16_t walsh_bf16_from_f32(float f)
{
    uint32_t u = walsh_bits_from_float(f);
    if ((u & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((u >> 16) | 0x40u);
    return (uint16_t)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

/* IEEE binary16 <-> binary32: subnormals, Inf and NaN exact; rounding to nearest even, overflow to Inf. */
float walsh_f32_from_f16(uint16_t h);
uint16_t walsh_f16_from_f32(float f);

/* OCP E4M3 (no Inf, 0x7f/0xff NaN), E5M2 and E8M0 (2^(b-127), 255 = NaN). The encoders round to nearest even
 * and saturate. */
float walsh_f32_from_e4m3(uint8_t b);
uint8_t walsh_e4m3_from_f32(float f);
float walsh_f32_from_e5m2(uint8_t b);
uint8_t walsh_e5m2_from_f32(float f);
float walsh_f32_from_e8m0(uint8_t b);

#endif
