// What stands between the grouped products of experts: rows as they read them, and biases.
#include "common.cuh"
#include "launch_experts.h"

namespace {

constexpr int THREADS = 256, STEP = 32;

// A thread has 8 of 32 columns, which are two in each eighth of the order of columns (experts_wgmma.cu).
__global__ void __launch_bounds__(THREADS) round_kernel(uint32_t *to, const float *from, size_t stride, size_t eights, unsigned of_row)
{
    const size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x;
    wait_for_previous();
    let_next_start();
    if (i >= eights) return;
    const float4 *at = reinterpret_cast<const float4 *>(from + i / of_row * stride + i % of_row * 8);
    const float4 a = at[0], b = at[1];
    const uint32_t out[4] = {(uint32_t)bf16_from_f32(a.x) | (uint32_t)bf16_from_f32(a.z) << 16,
                             (uint32_t)bf16_from_f32(a.y) | (uint32_t)bf16_from_f32(a.w) << 16,
                             (uint32_t)bf16_from_f32(b.x) | (uint32_t)bf16_from_f32(b.z) << 16,
                             (uint32_t)bf16_from_f32(b.y) | (uint32_t)bf16_from_f32(b.w) << 16};
#pragma unroll
    for (int c = 0; c < 4; c++) to[i / 4 * (STEP / 2) + (size_t)c * 4 + i % 4] = out[c];
}

__global__ void __launch_bounds__(THREADS) biases_kernel(const cuda_expert *experts, const cuda_expert_tile *tiles, const int32_t *count,
                                                         unsigned outs, float *y, size_t ldy)
{
    const unsigned out = blockIdx.y * THREADS + threadIdx.x;
    wait_for_previous();
    if ((int)blockIdx.x >= *count || out >= outs) return;
    const cuda_expert_tile tile = tiles[blockIdx.x];
    const float bias = experts[tile.expert].bias[out];
    y += (size_t)tile.first * ldy + out;
    for (int row = 0; row < tile.rows; row++, y += ldy) *y += bias;
}

} // namespace

void cuda_expert_round(cudaStream_t stream, uint16_t *to, const float *from, size_t stride, size_t rows, uint32_t cols)
{
    const size_t eights = rows * (cols / 8);
    launch_early(stream, round_kernel, dim3(div_up(eights, THREADS)), THREADS, 0, reinterpret_cast<uint32_t *>(to), from, stride, eights,
                 (unsigned)(cols / 8));
}

void cuda_expert_biases(cudaStream_t stream, const struct cuda_expert *experts, const struct cuda_slots *slots, size_t count,
                        uint32_t experts_count, uint32_t outs, float *y, size_t ldy)
{
    launch_early(stream, biases_kernel, dim3((unsigned)cuda_expert_tiles(count, experts_count), div_up(outs, THREADS)), THREADS, 0, experts,
                 (const cuda_expert_tile *)slots->tiles, (const int32_t *)slots->count, outs, y, ldy);
}
