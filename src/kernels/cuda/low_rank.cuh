// B of a low-rank update, for the launch of its own and for the end of a product.
#ifndef WALSH_KERNELS_CUDA_LOW_RANK_CUH
#define WALSH_KERNELS_CUDA_LOW_RANK_CUH

#include "common.cuh"

constexpr int LOW_RANK_CHUNK = 8, LOW_RANK_GROUP = 32, LOW_RANK_PANEL = 16; // ranks and columns of A, outputs of B

// B[o][2 pair + half].
static __device__ __forceinline__ float low_rank_b(const cuda_low_rank_up &e, size_t o, uint32_t pair, int half)
{
    const size_t panel = o / LOW_RANK_PANEL, lane = o % LOW_RANK_PANEL;
    if (!e.bf16) return static_cast<const float *>(e.b)[(panel * e.rank + 2 * pair + half) * LOW_RANK_PANEL + lane];
    const uint32_t word = static_cast<const uint32_t *>(e.b)[(panel * ((e.rank + 1) / 2) + pair) * LOW_RANK_PANEL + lane];
    return __uint_as_float(half ? word & 0xffff0000u : word << 16);
}

// Have what output o needs of B in the L2: 16 outputs share one piece, of which each asks for a line.
static __device__ __forceinline__ void low_rank_fetch(const cuda_low_rank_up &e, size_t o)
{
    const size_t panel = o / LOW_RANK_PANEL, line = o % LOW_RANK_PANEL * 128;
    const size_t bytes = (e.bf16 ? (e.rank + 1) / 2 : e.rank) * (size_t)(LOW_RANK_PANEL * 4);
    if (line < bytes) asm volatile("prefetch.global.L2 [%0];" ::"l"(static_cast<const uint8_t *>(e.b) + panel * bytes + line));
}

// h of a row that the update has.
static __device__ __forceinline__ const float *low_rank_h(const cuda_low_rank_up &e, uint32_t row)
{
    return e.h + (size_t)(row - e.row_begin) * ((e.rank + LOW_RANK_CHUNK - 1) / LOW_RANK_CHUNK * LOW_RANK_CHUNK);
}

#endif
