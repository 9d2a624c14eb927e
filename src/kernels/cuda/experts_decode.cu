// Few rows of a mixture in one launch: the experts that a router has chosen, whose number stands in device memory, by int8 activations in
// groups of 32. A block has 32 outputs of one slot: its warps read codes and leave in shared memory, of every step, what the chain of an
// output adds, then one warp follows the chains, in the order that kernels.def gives them (product_block_decode).
#include "blocks.cuh"
#include "launch_experts.h"

namespace {

constexpr int OUTS = 2 * TILE, THREADS = 512, WARPS = THREADS / 32, AHEAD = 4; // steps of a warp under way
constexpr size_t MOST_SHARED = 112 << 10;

struct routed {
    cuda_routed list[CUDA_EXPERT_LIST];
    const int32_t *index, *order;
    const int8_t *q;
    const float *scale;
    const int2 *sum;
    size_t stride;
    int outs, steps;
    unsigned per_row;
};

// A lane reads the words of four outputs: lanes 4g + t with g < 4 have word t of the outputs 4g.. of the first tile of 16, the others of
// the second, so that two mma.m16n8k32 have all 32 outputs of a step. All columns of the product are the one row, so that lane 4g + t has
// its own output among its fragments.
__device__ __forceinline__ int dot_of(const uint4 &word, uint2 q, int t)
{
    const uint32_t b0 = __byte_perm(q.x, q.y, 0x5140u), b1 = __byte_perm(q.x, q.y, 0x7362u), words[4] = {word.x, word.y, word.z, word.w};
    int c[2][4] = {};
#pragma unroll
    for (int i = 0; i < 2; i++) {
        uint32_t a[4];
        decode<CUDA_CODE_E2M1>(words[2 * i], &a[0], &a[2]);
        decode<CUDA_CODE_E2M1>(words[2 * i + 1], &a[1], &a[3]);
        multiply(c[i], a[0], a[1], a[2], a[3], b0, b1);
    }
    const int even = t & 2 ? c[1][0] : c[0][0], odd = t & 2 ? c[1][2] : c[0][2];
    return t & 1 ? odd : even;
}

__global__ void __launch_bounds__(THREADS, 2) routed_kernel(const __grid_constant__ routed p)
{
    extern __shared__ __align__(16) uint8_t shared[];
    float2 *links = reinterpret_cast<float2 *>(shared); // [steps][OUTS]
    const int lane = (int)threadIdx.x & 31, warp = (int)threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
    wait_for_previous();
    let_next_start();
    const unsigned slot = p.order ? (unsigned)__ldg(p.order + blockIdx.y) : blockIdx.y;
    const cuda_routed &to = p.list[blockIdx.z];
    const cuda_expert e = to.experts[p.index[slot]];
    const int last = (p.outs + TILE - 1) / TILE - 1, first = (int)blockIdx.x * 2;
    const uint32_t *data = e.data + (size_t)min(first + (g >> 2), last) * (size_t)p.steps * 4 * TILE + t * TILE + 4 * (g & 3);
    const uint8_t *scales = e.scales + (size_t)min(first + lane / TILE, last) * (size_t)p.steps * TILE + lane % TILE;
    const size_t row = slot / p.per_row, of_row = p.stride / STEP;
    const int8_t *q = p.q + row * p.stride + 8 * t;
    const float *x_scale = p.scale + row * of_row;
    const int2 *x_sum = p.sum + row * of_row;
    for (int begin = warp; begin < p.steps; begin += WARPS * AHEAD) {
        uint4 word[AHEAD];
        uint32_t scale[AHEAD];
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            const int step = min(begin + i * WARPS, p.steps - 1);
            word[i] = __ldg(reinterpret_cast<const uint4 *>(data + (size_t)step * 4 * TILE));
            scale[i] = __ldg(scales + (size_t)step * TILE);
        }
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            const int step = begin + i * WARPS;
            if (step >= p.steps) break;
            const int2 sum = x_sum[step];
            const int dot = dot_of(word[i], *reinterpret_cast<const uint2 *>(q + step * STEP), t);
            const uint8_t b = (uint8_t)scale[i];
            const float factor = __fmul_rn(__fmul_rn(scale_at(CUDA_SCALE_E8M0, &b, 0), 0.5f), x_scale[step]);
            links[step * OUTS + lane] = make_float2((float)(dot - 12 * (sum.x + sum.y)), factor);
        }
    }
    __syncthreads();
    if (warp > 0) return;
    float chain = 0.0f;
#pragma unroll 16
    for (int step = 0; step < p.steps; step++) {
        const float2 link = links[step * OUTS + lane];
        chain = fmaf(link.x, link.y, chain);
    }
    const int out = (int)blockIdx.x * OUTS + lane;
    if (out < p.outs) to.y[(size_t)slot * to.ldy + (size_t)out] = e.bias ? __fadd_rn(chain, __ldg(e.bias + out)) : chain;
}

size_t shared_bytes(uint32_t cols)
{
    return (size_t)div_up(cols, STEP) * OUTS * sizeof(float2);
}

} // namespace

bool cuda_route_experts_fits(uint32_t cols)
{
    return shared_bytes(cols) <= MOST_SHARED;
}

void cuda_route_experts(cudaStream_t stream, const struct cuda_routed *list, size_t count, const int32_t *index, const int32_t *order,
                        size_t slots, uint32_t per_row, uint32_t outs, uint32_t cols, const int8_t *q, size_t stride, const float *scale,
                        const int32_t *sum)
{
    routed p = {{}, index, order, q, scale, reinterpret_cast<const int2 *>(sum), stride, (int)outs, (int)div_up(cols, STEP), per_row};
    for (size_t i = 0; i < count; i++) p.list[i] = list[i];
    launch_early(stream, routed_kernel, dim3(div_up(outs, OUTS), (unsigned)slots, (unsigned)count), THREADS, shared_bytes(cols), p);
}
