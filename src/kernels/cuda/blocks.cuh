// What the products of block formats share: codes into fragments of mma.m16n8k32, scales.
#ifndef WALSH_KERNELS_CUDA_BLOCKS_CUH
#define WALSH_KERNELS_CUDA_BLOCKS_CUH

#include "rotation.cuh"

namespace {

constexpr int STEP = 32, TILE = 16; // columns of a step of a chain, outputs of a tile
constexpr uint32_t NIBBLES = 0x0f0f0f0fu;

__device__ __forceinline__ void multiply(int (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1)
{
    asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// Twice the value of four E2M1 codes plus 12, a code in each nibble of the selectors' low half: where a nibble's top bit, which is
// the sign, is set, the result is the top bit of the byte repeated, which is 0 in both tables.
__device__ __forceinline__ uint32_t select_four(uint32_t low, uint32_t high, uint32_t selectors)
{
    uint32_t r;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(r) : "r"(low), "r"(high), "r"(selectors));
    return r;
}
__device__ __forceinline__ uint32_t e2m1_four(uint32_t selectors)
{
    return select_four(0x0f0e0d0cu, 0x18141210u, selectors) | select_four(0x090a0b0cu, 0x00040608u, selectors ^ 0x8888u);
}

// The two A registers of a word of 4-bit codes. Of E2M1 they are the columns 0, 4, 1, 5 and 2, 6, 3, 7.
template <cuda_code CODE> __device__ __forceinline__ void decode(uint32_t word, uint32_t *first, uint32_t *second)
{
    if (CODE == CUDA_CODE_E2M1)
        *first = e2m1_four(word), *second = e2m1_four(word >> 16);
    else
        *first = word & NIBBLES, *second = word >> 4 & NIBBLES;
}

__device__ __forceinline__ float scale_at(cuda_scale_type type, const void *scales, size_t at)
{
    switch (type) {
    case CUDA_SCALE_E8M0: {
        const uint32_t b = static_cast<const uint8_t *>(scales)[at];
        return __uint_as_float(b == 0 ? 0x00400000u : b == 255 ? 0x7fc00000u : b << 23);
    }
    case CUDA_SCALE_E4M3: {
        const uint32_t b = static_cast<const uint8_t *>(scales)[at], magnitude = b & 0x7fu;
        const float v = magnitude >= 8 ? __uint_as_float((magnitude << 20) + (120u << 23)) : (float)magnitude * 0x1p-9f;
        return magnitude == 0x7f ? __uint_as_float(0x7fc00000u) : b & 0x80u ? -v : v;
    }
    case CUDA_SCALE_BF16: return f32_from_bf16(static_cast<const uint16_t *>(scales)[at]);
    default: return static_cast<const float *>(scales)[at];
    }
}

} // namespace

#endif
