// What the kernels share: conversions as base/scalar.h defines them, reductions in a fixed order, launches.
#ifndef WALSH_KERNELS_CUDA_COMMON_CUH
#define WALSH_KERNELS_CUDA_COMMON_CUH

#include <cuda_fp16.h>

#include "launch.h"

// Round to nearest, ties to even; NaN stays NaN (quiet).
static __device__ __forceinline__ uint16_t bf16_from_f32(float f)
{
    uint32_t u = __float_as_uint(f);
    if ((u & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((u >> 16) | 0x40u);
    return (uint16_t)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}
static __device__ __forceinline__ float f32_from_bf16(uint32_t low16)
{
    return __uint_as_float(low16 << 16);
}
static __device__ __forceinline__ float f32_from_f16(uint16_t h)
{
    return __half2float(__ushort_as_half(h));
}
// Saturating at the largest finite value; NaN stays NaN.
static __device__ __forceinline__ uint16_t f16_from_f32(float f)
{
    f = f > 65504.0f ? 65504.0f : f < -65504.0f ? -65504.0f : f;
    return __half_as_ushort(__float2half_rn(f));
}
// Two of them: low in the low half.
static __device__ __forceinline__ uint32_t f16_pair(float low, float high)
{
    uint32_t pair;
    asm("cvt.rn.satfinite.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

static __device__ __forceinline__ float warp_sum(float x)
{
#pragma unroll
    for (int lane = 16; lane > 0; lane >>= 1) x += __shfl_xor_sync(0xffffffffu, x, lane);
    return x;
}

static inline unsigned div_up(size_t n, size_t d)
{
    return (unsigned)((n + d - 1) / d);
}

// Programmatic dependent launch (sm_90): a kernel may start while the one before it in the stream drains. Whatever
// reads what that one wrote comes behind wait_for_previous(); elsewhere both are nothing.
static __device__ __forceinline__ void wait_for_previous()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
static __device__ __forceinline__ void let_next_start()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

#endif
