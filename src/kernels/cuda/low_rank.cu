// Low-rank updates y += scale * B (A x) of rows that adapters name; layouts of A and B: formats/low_rank.h.
#include "common.cuh"

namespace {

constexpr int CHUNK = 8, GROUP = 32, PANEL = 16; // ranks and columns of A, outputs of B
constexpr int THREADS = 128;

// A warp sums one rank of one row; its lanes are the columns of a group.
template <bool BF16>
__global__ void __launch_bounds__(CHUNK * 32)
    down_kernel(const void *a, const float *x, size_t ldx, size_t cols, uint32_t rank, float *h, size_t ldh)
{
    const size_t groups = (cols + GROUP - 1) / GROUP;
    const int lane = (int)threadIdx.x & 31, rank_in_chunk = (int)threadIdx.x >> 5;
    const int column = BF16 ? (lane & 1) * 16 + (lane >> 1) : lane; // which one stands at this place
    const size_t first = (size_t)blockIdx.x * groups * CHUNK * GROUP + (size_t)(rank_in_chunk * GROUP + lane);
    x += blockIdx.y * ldx;
    float sum = 0.0f;
    for (size_t g = 0; g < groups; g++) {
        const size_t at = first + g * CHUNK * GROUP, k = g * GROUP + (size_t)column;
        const float w = BF16 ? f32_from_bf16(static_cast<const uint16_t *>(a)[at]) : static_cast<const float *>(a)[at];
        if (k < cols) sum = fmaf(w, x[k], sum);
    }
    sum = warp_sum(sum);
    const uint32_t j = blockIdx.x * CHUNK + (uint32_t)rank_in_chunk;
    if (lane == 0) h[blockIdx.y * ldh + j] = j < rank ? sum : 0.0f;
}

template <bool BF16>
__global__ void __launch_bounds__(THREADS)
    up_kernel(const void *b, const float *h, size_t ldh, uint32_t rank, float scale, float *y, size_t ldy, size_t outs)
{
    const size_t o = (size_t)blockIdx.x * THREADS + threadIdx.x, panel = o / PANEL, lane = o % PANEL;
    if (o >= outs) return;
    h += blockIdx.y * ldh;
    float sum = 0.0f;
    for (uint32_t j = 0; j < rank; j++) {
        const size_t at = BF16 ? ((panel * ((rank + 1) / 2) + j / 2) * PANEL + lane) * 2 + j % 2 : (panel * rank + j) * PANEL + lane;
        const float w = BF16 ? f32_from_bf16(static_cast<const uint16_t *>(b)[at]) : static_cast<const float *>(b)[at];
        sum = fmaf(w, h[j], sum);
    }
    float *to = y + blockIdx.y * ldy + o;
    *to = fmaf(scale, sum, *to);
}

constexpr size_t MOST_ROWS = 32768; // of a grid

} // namespace

void cuda_low_rank_down(cudaStream_t stream, bool bf16, const void *a, uint32_t rank, const float *x, size_t ldx, size_t cols,
                        size_t rows, float *h)
{
    const size_t ldh = ((size_t)rank + CHUNK - 1) / CHUNK * CHUNK;
    for (size_t at = 0; at < rows; at += MOST_ROWS) {
        const dim3 grid((unsigned)(ldh / CHUNK), (unsigned)(rows - at < MOST_ROWS ? rows - at : MOST_ROWS));
        if (bf16)
            down_kernel<true><<<grid, CHUNK * 32, 0, stream>>>(a, x + at * ldx, ldx, cols, rank, h + at * ldh, ldh);
        else
            down_kernel<false><<<grid, CHUNK * 32, 0, stream>>>(a, x + at * ldx, ldx, cols, rank, h + at * ldh, ldh);
    }
}

void cuda_low_rank_up(cudaStream_t stream, bool bf16, const void *b, uint32_t rank, float scale, const float *h, float *y,
                      size_t ldy, size_t outs, size_t rows)
{
    const size_t ldh = ((size_t)rank + CHUNK - 1) / CHUNK * CHUNK;
    for (size_t at = 0; at < rows; at += MOST_ROWS) {
        const dim3 grid(div_up(outs, THREADS), (unsigned)(rows - at < MOST_ROWS ? rows - at : MOST_ROWS));
        if (bf16)
            up_kernel<true><<<grid, THREADS, 0, stream>>>(b, h + at * ldh, ldh, rank, scale, y + at * ldy, ldy, outs);
        else
            up_kernel<false><<<grid, THREADS, 0, stream>>>(b, h + at * ldh, ldh, rank, scale, y + at * ldy, ldy, outs);
    }
}
