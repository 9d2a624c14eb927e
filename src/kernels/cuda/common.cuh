// What the kernels share: conversions as base/scalar.h defines them, reductions in a fixed order, launches.
#ifndef WALSH_KERNELS_CUDA_COMMON_CUH
#define WALSH_KERNELS_CUDA_COMMON_CUH

#include <cuda_fp16.h>
#include <cuda_runtime.h>

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
// The same of bf16; NaN is the one NaN of the instruction.
static __device__ __forceinline__ uint32_t bf16_pair(float low, float high)
{
    uint32_t pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

static __device__ __forceinline__ float warp_sum(float x)
{
#pragma unroll
    for (int lane = 16; lane > 0; lane >>= 1) x += __shfl_xor_sync(0xffffffffu, x, lane);
    return x;
}

// The multiplier of a norm from the sum of the squares.
static __device__ __forceinline__ float norm_scale(float squares, size_t n, float eps)
{
    return 1.0f / sqrtf(squares / (float)n + eps);
}
// exp(x) in few instructions, to two units in the last place: what the product with log2 e loses is put back.
static __device__ __forceinline__ float exp_fast(float x)
{
    const float t = x * 1.44269502f, lost = fmaf(x, 1.92596303e-8f, fmaf(x, 1.44269502f, -t));
    float y;
    asm("ex2.approx.f32 %0, %1;" : "=f"(y) : "f"(t));
    return fabsf(t) < 126.0f ? fmaf(y, lost * 0.693147182f, y) : y;
}
// What a gate's value becomes, times up: silu, or GELU by tanh (kernels.def, swiglu_f32 and geglu_f32).
template <bool GELU> static __device__ __forceinline__ float gate_value(float g, float up)
{
    const float exponent = GELU ? g * fmaf(g * g, -0.071354816f, -1.5957691f) : -g;
    return __fdividef(g, 1.0f + exp_fast(exponent)) * up;
}

// r = 16 bytes that are read once, where `wanted`. Not a read of constants, which the compiler would put off to the end of a loop
// whose next round needs it: __syncwarp() holds it in its place.
static __device__ __forceinline__ void stream16_if(uint4 &r, const void *p, bool wanted)
{
    asm volatile("{\n.reg .pred q;\nsetp.ne.u32 q, %5, 0;\n@q ld.global.L1::no_allocate.L2::256B.v4.u32 {%0,%1,%2,%3}, [%4];\n}"
                 : "+r"(r.x), "+r"(r.y), "+r"(r.z), "+r"(r.w)
                 : "l"(p), "r"((uint32_t)wanted)
                 : "memory");
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

template <typename... Parameters, typename... Arguments>
static inline void launch(cudaStream_t stream, bool early, void (*kernel)(Parameters...), dim3 grid, unsigned threads,
                          size_t shared, Arguments &&...arguments)
{
    if (shared > 48 << 10) cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared);
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = dim3(threads);
    config.dynamicSmemBytes = shared;
    config.stream = stream;
    config.attrs = &attribute;
    config.numAttrs = early ? 1 : 0;
    cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...);
}
// A launch that may start early.
template <typename... Parameters, typename... Arguments>
static inline void launch_early(cudaStream_t stream, void (*kernel)(Parameters...), dim3 grid, unsigned threads, size_t shared,
                                Arguments &&...arguments)
{
    launch(stream, true, kernel, grid, threads, shared, arguments...);
}
// One behind all that stands before it in the stream, whatever that is.
template <typename... Parameters, typename... Arguments>
static inline void launch_behind(cudaStream_t stream, void (*kernel)(Parameters...), dim3 grid, unsigned threads, size_t shared,
                                 Arguments &&...arguments)
{
    launch(stream, false, kernel, grid, threads, shared, arguments...);
}

#endif
