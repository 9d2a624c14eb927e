// sum += X^T X in f32: a block of threads has 64 by 64 sums on or above the diagonal, rows are added in their order.
#include "common.cuh"

namespace {

constexpr int SIDE = 64, DEPTH = 16, THREADS = 256; // 4 by 4 sums a thread

__global__ void __launch_bounds__(THREADS) hessian_kernel(float *sum, uint32_t n, const float *x, size_t ldx, size_t rows)
{
    __shared__ float a[DEPTH][SIDE], b[DEPTH][SIDE];
    if (blockIdx.x < blockIdx.y) return; // below the diagonal
    const uint32_t first = blockIdx.y * SIDE, other = blockIdx.x * SIDE;
    const uint32_t i0 = threadIdx.x / 16 * 4, j0 = threadIdx.x % 16 * 4;
    float part[4][4] = {};
    for (size_t r = 0; r < rows; r += DEPTH) {
        __syncthreads();
        for (uint32_t i = threadIdx.x; i < DEPTH * SIDE; i += THREADS) {
            const uint32_t d = i / SIDE, c = i % SIDE;
            const bool exists = r + d < rows;
            a[d][c] = exists && first + c < n ? x[(r + d) * ldx + first + c] : 0.0f;
            b[d][c] = exists && other + c < n ? x[(r + d) * ldx + other + c] : 0.0f;
        }
        __syncthreads();
#pragma unroll
        for (int d = 0; d < DEPTH; d++)
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int j = 0; j < 4; j++) part[i][j] = fmaf(a[d][i0 + i], b[d][j0 + j], part[i][j]);
    }
    for (uint32_t i = 0; i < 4 && first + i0 + i < n; i++)
        for (uint32_t j = 0; j < 4 && other + j0 + j < n; j++)
            sum[(size_t)(first + i0 + i) * n + other + j0 + j] += part[i][j];
}

} // namespace

void cuda_hessian_add(cudaStream_t stream, float *sum, uint32_t n, const float *x, size_t ldx, size_t rows)
{
    const unsigned tiles = div_up(n, SIDE);
    if (rows > 0) hessian_kernel<<<dim3(tiles, tiles), THREADS, 0, stream>>>(sum, n, x, ldx, rows);
}
