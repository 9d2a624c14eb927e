// Codes by block LDLQ and coordinate descent (quantize/ldlq_tile.c): a warp has a row of weights, whose groups of eight
// columns are found one after the other; the feedback of the panels behind is a product of all rows at once.
#include "quantize.cuh"

namespace {

constexpr int PANEL = 64, WARPS = 8; // columns of a panel; rows of a block of threads
constexpr int TILE = 32;             // rows that stand together, as the CPU's tiles

__device__ __forceinline__ size_t row_of(const cuda_ldlq &p, uint32_t i)
{
    return (size_t)(i / TILE) * p.step * TILE + i % TILE;
}

// --- products: panel [rows][PANEL] = e[row][begin..n) matrix[begin..n)[at..at + PANEL) ---

constexpr int DEPTH = 32, MULTIPLY_THREADS = 128; // 32 rows by 64 columns, 4 by 4 a thread

__global__ void __launch_bounds__(MULTIPLY_THREADS)
    multiply_kernel(const __grid_constant__ cuda_ldlq p, const float *e, const float *matrix, uint32_t begin, uint32_t at)
{
    __shared__ float a[DEPTH][TILE + 1], b[DEPTH][PANEL];
    const uint32_t first = blockIdx.x * TILE, thread = threadIdx.x, row = thread / 16 * 4, col = thread % 16 * 4;
    float sum[4][4] = {};
    for (uint32_t k = begin; k < p.n; k += DEPTH) {
        __syncthreads();
        for (uint32_t i = thread; i < DEPTH * TILE; i += MULTIPLY_THREADS) {
            const uint32_t r = first + i / DEPTH;
            a[i % DEPTH][i / DEPTH] = r < p.rows ? e[row_of(p, r) * p.n + k + i % DEPTH] : 0.0f;
        }
        for (uint32_t i = thread; i < DEPTH * PANEL; i += MULTIPLY_THREADS)
            b[i / PANEL][i % PANEL] = matrix[(size_t)(k + i / PANEL) * p.n + at + i % PANEL];
        __syncthreads();
#pragma unroll 8
        for (int d = 0; d < DEPTH; d++)
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int j = 0; j < 4; j++) sum[i][j] = fmaf(a[d][row + i], b[d][col + j], sum[i][j]);
    }
    for (uint32_t i = 0; i < 4 && first + row + i < p.rows; i++)
        for (uint32_t j = 0; j < 4; j++) p.panel[(size_t)(first + row + i) * PANEL + col + j] = sum[i][j];
}

// --- one panel of all rows ---

struct found {
    uint32_t code[CUDA_MAX_STAGES];
    float value; // of coordinate `lane` in lanes 0 to 7
};

// All stages, each on what the ones before left.
__device__ found encode(const cuda_ldlq &p, nearest *n, float target, uint32_t lane)
{
    found f = {};
    for (uint32_t k = 0; k < p.stages; k++) {
        const float scale = p.stage[k].scale, rest = __fdiv_rn(__fsub_rn(target, f.value), scale);
        const bool narrow = p.stage[k].narrow != 0;
        f.code[k] = narrow ? encode_narrow(n, p.tables, rest, lane) : encode_wide(n, p.tables, rest, lane);
        if (lane < 8) f.value = __fadd_rn(f.value, __fmul_rn(scale, decoded(p.tables, narrow, f.code[k], lane)));
    }
    return f;
}

__device__ void store(const cuda_ldlq &p, const found &f, size_t row, uint32_t at)
{
    const size_t place = row * (p.n / 8) + at / 8;
    for (uint32_t k = 0; k < p.stages; k++) {
        if (p.stage[k].narrow)
            static_cast<uint8_t *>(p.stage[k].codes)[place] = (uint8_t)f.code[k];
        else
            static_cast<uint16_t *>(p.stage[k].codes)[place] = (uint16_t)f.code[k];
    }
}

// sums[0..width) += the vector whose element i lane i has, times rows at.. of the matrix.
__device__ void add_rank8(float *sums, float x, const float *matrix, size_t n, uint32_t width, uint32_t lane)
{
    for (uint32_t i = 0; i < 8; i++) {
        const float xi = __shfl_sync(0xffffffffu, x, (int)i);
        for (uint32_t j = lane; j < width; j += 32) sums[j] = fmaf(xi, matrix[i * n + j], sums[j]);
    }
    __syncwarp();
}

// d h d^T of an 8 x 8 block; d in lanes 0 to 7, the sum in all.
__device__ float quadratic(float d, const float *h, size_t n, uint32_t lane)
{
    float row = 0.0f, sum = 0.0f;
    for (uint32_t j = 0; j < 8; j++) {
        const float dj = __shfl_sync(0xffffffffu, d, (int)j);
        if (lane < 8) row = fmaf(h[lane * n + j], dj, row);
    }
    const float part = d * row;
    for (int i = 0; i < 8; i++) sum += __shfl_sync(0xffffffffu, part, i);
    return sum;
}

// First codes, from the panel's last group to its first. feedback: there is some from the panels behind.
__global__ void __launch_bounds__(WARPS * 32) sweep_kernel(const __grid_constant__ cuda_ldlq p, uint32_t panel, bool feedback)
{
    __shared__ nearest vectors[WARPS];
    __shared__ float sums[WARPS][PANEL];
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, i = blockIdx.x * WARPS + warp;
    if (i >= p.rows) return;
    const size_t row = row_of(p, i);
    for (uint32_t j = lane; j < PANEL; j += 32) sums[warp][j] = feedback ? p.panel[(size_t)i * PANEL + j] : 0.0f;
    __syncwarp();
    for (uint32_t column = PANEL; column > 0;) {
        column -= 8;
        const uint32_t at = panel + column;
        const float wanted = lane < 8 ? p.target[row * p.n + at + lane] : 0.0f;
        const found f = encode(p, &vectors[warp], lane < 8 ? wanted + sums[warp][column + lane] : 0.0f, lane);
        const float error = wanted - f.value;
        if (lane < 8) p.error[row * p.n + at + lane] = error;
        if (lane == 0) store(p, f, row, at);
        if (p.factor) add_rank8(sums[warp], error, p.factor + (size_t)at * p.n + panel, p.n, column, lane);
    }
}

// One step of coordinate descent of each group: kept where it lowers the row's error.
__global__ void __launch_bounds__(WARPS * 32) pass_kernel(const __grid_constant__ cuda_ldlq p, uint32_t panel)
{
    __shared__ nearest vectors[WARPS];
    __shared__ float sums[WARPS][PANEL];
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, i = blockIdx.x * WARPS + warp;
    if (i >= p.rows) return;
    const size_t row = row_of(p, i);
    uint32_t changed = 0;
    for (uint32_t j = lane; j < PANEL; j += 32) sums[warp][j] = p.panel[(size_t)i * PANEL + j];
    __syncwarp();
    for (uint32_t column = PANEL; column > 0;) {
        column -= 8;
        const uint32_t at = panel + column;
        float error = 0.0f, value = 0.0f, step = 0.0f;
        if (lane < 8) {
            error = p.error[row * p.n + at + lane];
            value = p.target[row * p.n + at + lane] - error;
            for (uint32_t j = 0; j < 8; j++) step = fmaf(sums[warp][column + j], p.inverse[(size_t)at * 8 + j * 8 + lane], step);
        }
        const float best = value + step;
        const found f = encode(p, &vectors[warp], best, lane);
        const float before = lane < 8 ? best - value : 0.0f, after = lane < 8 ? best - f.value : 0.0f,
                    change = lane < 8 ? value - f.value : 0.0f;
        const float *block = p.hessian + (size_t)at * p.n + at;
        if (quadratic(after, block, p.n, lane) >= quadratic(before, block, p.n, lane)) continue;
        if (lane < 8) p.error[row * p.n + at + lane] = error + change;
        if (lane == 0) store(p, f, row, at);
        add_rank8(sums[warp], change, p.hessian + (size_t)at * p.n + panel, p.n, PANEL, lane);
        changed++;
    }
    if (lane == 0 && changed > 0) atomicAdd(p.changed, changed);
}

// sums[row] += the panel's part of e H e^T.
__global__ void __launch_bounds__(WARPS * 32) trace_kernel(const __grid_constant__ cuda_ldlq p, const float *e, uint32_t panel,
                                                           bool first, double *sums)
{
    const uint32_t lane = threadIdx.x % 32, i = blockIdx.x * WARPS + threadIdx.x / 32;
    if (i >= p.rows) return;
    double sum = 0.0;
    for (uint32_t j = lane; j < PANEL; j += 32)
        sum += (double)p.panel[(size_t)i * PANEL + j] * (double)e[row_of(p, i) * p.n + panel + j];
    for (int other = 16; other > 0; other >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, other);
    if (lane == 0) sums[i] = first ? sum : sums[i] + sum;
}

void multiply(cudaStream_t stream, const cuda_ldlq &p, const float *e, const float *matrix, uint32_t begin, uint32_t at)
{
    multiply_kernel<<<div_up(p.rows, TILE), MULTIPLY_THREADS, 0, stream>>>(p, e, matrix, begin, at);
}

} // namespace

void cuda_ldlq_sweep(cudaStream_t stream, const struct cuda_ldlq *p)
{
    for (uint32_t panel = p->n; panel > 0;) {
        panel -= PANEL;
        const bool feedback = p->factor && panel + PANEL < p->n;
        if (feedback) multiply(stream, *p, p->error, p->factor, panel + PANEL, panel);
        sweep_kernel<<<div_up(p->rows, WARPS), WARPS * 32, 0, stream>>>(*p, panel, feedback);
    }
}

void cuda_ldlq_pass(cudaStream_t stream, const struct cuda_ldlq *p)
{
    for (uint32_t panel = p->n; panel > 0;) {
        panel -= PANEL;
        multiply(stream, *p, p->error, p->hessian, 0, panel);
        pass_kernel<<<div_up(p->rows, WARPS), WARPS * 32, 0, stream>>>(*p, panel);
    }
}

void cuda_ldlq_trace(cudaStream_t stream, const struct cuda_ldlq *p, const float *e, double *sums)
{
    for (uint32_t panel = 0; panel < p->n; panel += PANEL) {
        multiply(stream, *p, e, p->hessian, 0, panel);
        trace_kernel<<<div_up(p->rows, WARPS), WARPS * 32, 0, stream>>>(*p, e, panel, panel == 0, sums);
    }
}
