// Codecs of packed keys and values (formats/turbo.h) on a device: rotations by one warp, and where codes stand in a page
// (formats/turbo_pages.h).
#ifndef WALSH_KERNELS_CUDA_TURBO_CUH
#define WALSH_KERNELS_CUDA_TURBO_CUH

#include "common.cuh"

namespace {

constexpr uint32_t PACKED = 2; // walsh_kv_type

__device__ __forceinline__ size_t code_bytes(const cuda_turbo_codec &c, uint32_t page_tokens)
{
    return (size_t)page_tokens * c.dim * c.bits / 8;
}
__device__ __forceinline__ size_t packed_head_bytes(const cuda_turbo_codec &c, uint32_t page_tokens)
{
    return code_bytes(c, page_tokens) + (size_t)page_tokens * 2;
}
__device__ __forceinline__ size_t value_stride(unsigned bits, uint32_t page_tokens)
{
    return (size_t)page_tokens * bits * 2;
}

// The plane of row `row` of a group: planes of widths 4, 2, 1, the first from bit 0 of a code on; 8 bits are one.
struct plane {
    unsigned width, low;
};
__device__ __forceinline__ plane plane_of(unsigned bits, unsigned row)
{
    if (bits == 8) return {8, 0};
    unsigned low = 0;
    for (unsigned width = 4; width > 1; width /= 2) {
        if (!(bits & width)) continue;
        if (row < low + width) return {width, low};
        low += width;
    }
    return {1, low};
}

// x <- H x of n elements in shared memory by one warp, bit for bit that of rotation/rotation.h.
__device__ __forceinline__ void warp_hadamard(float *x, uint32_t n, float scale)
{
    const uint32_t lane = threadIdx.x % 32;
    __syncwarp();
    for (uint32_t stride = 1; stride < n; stride *= 2) {
        for (uint32_t p = lane; p < n / 2; p += 32) {
            const uint32_t i = (p & ~(stride - 1)) << 1 | (p & (stride - 1));
            const float a = x[i], b = x[i + stride];
            x[i] = __fadd_rn(a, b);
            x[i + stride] = __fsub_rn(a, b);
        }
        __syncwarp();
    }
    for (uint32_t i = lane; i < n; i += 32) x[i] = __fmul_rn(x[i], scale);
    __syncwarp();
}
__device__ __forceinline__ void warp_signs(float *x, uint32_t n, const float *signs)
{
    __syncwarp();
    for (uint32_t i = threadIdx.x % 32; i < n; i += 32) x[i] = __fmul_rn(signs[i], x[i]);
    __syncwarp();
}
// The same of n = 32 * E elements, lane + 32 * e a lane's: strides below 32 go from lane to lane.
template <int E> __device__ __forceinline__ void lanes_hadamard(float (&v)[E], float scale)
{
    const uint32_t lane = threadIdx.x % 32;
#pragma unroll
    for (uint32_t stride = 1; stride < 32; stride *= 2)
#pragma unroll
        for (int e = 0; e < E; e++) {
            const float other = __shfl_xor_sync(0xffffffffu, v[e], (int)stride);
            v[e] = __fadd_rn(other, lane & stride ? -v[e] : v[e]);
        }
#pragma unroll
    for (int stride = 1; stride < E; stride *= 2)
#pragma unroll
        for (int e = 0; e < E; e++) {
            if (e & stride) continue;
            const float a = v[e], b = v[e + stride];
            v[e] = __fadd_rn(a, b);
            v[e + stride] = __fsub_rn(a, b);
        }
#pragma unroll
    for (int e = 0; e < E; e++) v[e] = __fmul_rn(v[e], scale);
}
// One block of 32 * E elements: signs before the Hadamard, or behind it.
template <int E, bool BACK> __device__ __forceinline__ void turn_block(float *x, const cuda_turbo_codec &c)
{
    const uint32_t lane = threadIdx.x % 32;
    float v[E], sign[E];
#pragma unroll
    for (int e = 0; e < E; e++) sign[e] = c.signs[lane + 32 * e];
    __syncwarp();
#pragma unroll
    for (int e = 0; e < E; e++) v[e] = BACK ? x[lane + 32 * e] : __fmul_rn(sign[e], x[lane + 32 * e]);
    lanes_hadamard<E>(v, c.block_scale);
#pragma unroll
    for (int e = 0; e < E; e++) x[lane + 32 * e] = BACK ? __fmul_rn(sign[e], v[e]) : v[e];
    __syncwarp();
}
template <bool BACK> __device__ __forceinline__ bool turned_block(float *x, const cuda_turbo_codec &c)
{
    if (c.block != c.dim) return false;
    if (c.dim == 64)
        turn_block<2, BACK>(x, c);
    else if (c.dim == 128)
        turn_block<4, BACK>(x, c);
    else if (c.dim == 256)
        turn_block<8, BACK>(x, c);
    else
        return false;
    return true;
}
__device__ __noinline__ void warp_rotate(float *x, const cuda_turbo_codec &c)
{
    if (c.block == 0 || turned_block<false>(x, c)) return;
    warp_signs(x, c.dim, c.signs);
    warp_hadamard(x, c.block, c.block_scale);
    if (c.block == c.dim) return;
    warp_signs(x, c.dim, c.signs + c.dim);
    warp_hadamard(x + (c.dim - c.block), c.block, c.block_scale);
}
__device__ __noinline__ void warp_unrotate(float *x, const cuda_turbo_codec &c)
{
    if (c.block == 0 || turned_block<true>(x, c)) return;
    if (c.block != c.dim) {
        warp_hadamard(x + (c.dim - c.block), c.block, c.block_scale);
        warp_signs(x, c.dim, c.signs + c.dim);
    }
    warp_hadamard(x, c.block, c.block_scale);
    warp_signs(x, c.dim, c.signs);
}

// One code of a head's part of a page.
__device__ __forceinline__ uint32_t key_code(const cuda_turbo_codec &c, const uint8_t *head, uint32_t slot, uint32_t d)
{
    const uint8_t *at = head + (size_t)(slot / 16) * 2 * c.dim * c.bits + (size_t)(d / 32) * c.bits * 64;
    const uint32_t lane = slot % 16, i = d % 32 / 2, high = d % 2;
    const bool half = c.dim - d / 32 * 32 < 32;
    uint32_t code = 0;
    for (unsigned low = 0; low < c.bits;) {
        const plane p = plane_of(c.bits, low);
        const uint32_t shift = i % (16 / p.width) * p.width, row = i / (16 / p.width);
        if (half && p.width == 1) {
            code |= (reinterpret_cast<const uint16_t *>(at + low / 2 * 64)[lane] >> (i + 8 * high) & 1u) << low;
        } else {
            const uint32_t word = reinterpret_cast<const uint32_t *>(at + ((half ? low / 2 : low) + row) * 64)[lane];
            code |= (word >> (shift + 16 * high) & ((1u << p.width) - 1)) << low;
        }
        low += p.width;
    }
    return code;
}
__device__ __forceinline__ uint32_t value_code(const cuda_turbo_codec &c, const uint8_t *head, uint32_t page_tokens, uint32_t slot,
                                               uint32_t d)
{
    const uint8_t *at = head + (size_t)(slot / 32) * c.bits * 64 + d / 16 * value_stride(c.bits, page_tokens);
    const uint32_t i = slot % 32 / 2, high = slot % 2;
    uint32_t code = 0;
    for (unsigned low = 0; low < c.bits;) {
        const plane p = plane_of(c.bits, low);
        const uint32_t word = reinterpret_cast<const uint32_t *>(at + (low + i / (16 / p.width)) * 64)[d % 16];
        code |= (word >> (i % (16 / p.width) * p.width + 16 * high) & ((1u << p.width) - 1)) << low;
        low += p.width;
    }
    return code;
}

} // namespace

#endif
