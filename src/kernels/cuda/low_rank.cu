// Low-rank updates y += scale * B (A x) of rows that adapters name; layouts of A and B: formats/low_rank.h. What belongs to one list of
// products is one launch of A x and one of B h, whatever it holds; either reads its matrix before it waits for the kernel before.
#include "low_rank.cuh"

namespace {

constexpr int CHUNK = LOW_RANK_CHUNK, GROUP = LOW_RANK_GROUP;
constexpr int WARPS = 32;                        // of A x: they share the groups of columns
constexpr int AHEAD = 4;                         // groups of a warp that are read at once
constexpr int THREADS = 128, PAIRS = 8;          // outputs of a block of B h, pairs of ranks read ahead
constexpr uint32_t MOST_ROWS = 32768;            // of a grid

struct downs {
    cuda_low_rank_down entry[CUDA_LOW_RANK_LIST];
};
struct ups {
    cuda_low_rank_output output[CUDA_LOW_RANK_LIST];
    cuda_low_rank_up entry[CUDA_LOW_RANK_LIST];
};

// Eight numbers of a rank of A, of a lane's columns: BF16 4q.. and 16 + 4q.. of the group by turns, F32 8q.. in order.
struct eight {
    uint4 low, high; // high: F32 only
};

// The columns of x that go with them; `whole`: all are there, at 16 bytes.
__device__ __forceinline__ float dot(const eight &w, bool bf16, const float *x, size_t cols, bool whole, int q)
{
    const uint32_t word[8] = {w.low.x, w.low.y, w.low.z, w.low.w, w.high.x, w.high.y, w.high.z, w.high.w};
    float sum = 0.0f;
    if (bf16 && whole) {
        const float4 a = reinterpret_cast<const float4 *>(x)[q], b = reinterpret_cast<const float4 *>(x)[4 + q];
        const float v[8] = {a.x, b.x, a.y, b.y, a.z, b.z, a.w, b.w};
#pragma unroll
        for (int i = 0; i < 8; i++) sum = fmaf(__uint_as_float(i % 2 ? word[i / 2] & 0xffff0000u : word[i / 2] << 16), v[i], sum);
        return sum;
    }
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const size_t column = bf16 ? (size_t)(i % 2 * 16 + 4 * q + i / 2) : (size_t)(8 * q + i);
        const float a = bf16 ? __uint_as_float(i % 2 ? word[i / 2] & 0xffff0000u : word[i / 2] << 16) : __uint_as_float(word[i]);
        if (column < cols) sum = fmaf(a, x[column], sum);
    }
    return sum;
}

// A block has the eight ranks of a chunk for one row; four lanes have a rank.
__global__ void __launch_bounds__(WARPS * 32) down_kernel(downs list, const float *x, size_t ldx, size_t cols, uint32_t first_row)
{
    __shared__ float part[WARPS][CHUNK];
    const cuda_low_rank_down &e = list.entry[blockIdx.z];
    const uint32_t row = first_row + blockIdx.y, ldh = (e.rank + CHUNK - 1) / CHUNK * CHUNK;
    if (row >= e.row_end - e.row_begin || blockIdx.x * CHUNK >= e.rank) return;
    const int lane = (int)threadIdx.x & 31, warp = (int)threadIdx.x >> 5, rank = lane / 4, q = lane % 4;
    const size_t groups = (cols + GROUP - 1) / GROUP, first = (size_t)blockIdx.x * groups;
    x += ((size_t)e.row_begin + row) * ldx;
    const bool aligned = reinterpret_cast<uintptr_t>(x) % 16 == 0;
    float sum = 0.0f;
    let_next_start();
    bool waits = true;
    for (size_t g = (size_t)warp; g < groups || waits; g += WARPS * AHEAD) {
        eight w[AHEAD];
#pragma unroll
        for (int k = 0; k < AHEAD; k++) {
            const size_t group = g + (size_t)(k * WARPS);
            if (group >= groups) continue;
            const size_t at = ((first + group) * CHUNK + (size_t)rank) * GROUP + (size_t)(8 * q);
            if (e.bf16) {
                w[k].low = *reinterpret_cast<const uint4 *>(static_cast<const uint16_t *>(e.a) + at);
                w[k].high = make_uint4(0, 0, 0, 0);
            } else {
                w[k].low = reinterpret_cast<const uint4 *>(static_cast<const float *>(e.a) + at)[0];
                w[k].high = reinterpret_cast<const uint4 *>(static_cast<const float *>(e.a) + at)[1];
            }
        }
        if (waits) wait_for_previous();
        waits = false;
#pragma unroll
        for (int k = 0; k < AHEAD; k++) {
            const size_t group = g + (size_t)(k * WARPS);
            if (group >= groups) continue;
            const size_t left = cols - group * GROUP;
            sum += dot(w[k], e.bf16, x + group * GROUP, left, aligned && left >= GROUP, q);
        }
    }
    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
    sum += __shfl_xor_sync(0xffffffffu, sum, 2);
    if (q == 0) part[warp][rank] = sum;
    __syncthreads();
    if (threadIdx.x >= CHUNK) return;
    sum = 0.0f;
#pragma unroll
    for (int v = 0; v < WARPS; v++) sum += part[v][threadIdx.x];
    const uint32_t j = blockIdx.x * CHUNK + threadIdx.x;
    e.h[(size_t)row * ldh + j] = j < e.rank ? sum : 0.0f;
}

// A thread has an output of one row, and all updates of it in their order.
__global__ void __launch_bounds__(THREADS) up_kernel(ups list, uint32_t first_row)
{
    const cuda_low_rank_output &out = list.output[blockIdx.z];
    const size_t o = (size_t)blockIdx.x * THREADS + threadIdx.x;
    const uint32_t row = first_row + blockIdx.y;
    if (o >= out.outs) return;
    float y = 0.0f;
    bool waits = true;
    float *to = out.y + (size_t)row * out.ldy + o;
    for (uint32_t u = out.first; u < out.first + out.count; u++) {
        const cuda_low_rank_up &e = list.entry[u];
        if (row < e.row_begin || row >= e.row_end) continue;
        const float *h = low_rank_h(e, row);
        float sum = 0.0f;
        for (uint32_t p = 0; 2 * p < e.rank; p += PAIRS) {
            float w[2 * PAIRS];
#pragma unroll
            for (int i = 0; i < 2 * PAIRS; i++) w[i] = 2 * p + i < e.rank ? low_rank_b(e, o, p + i / 2, i % 2) : 0.0f;
            if (waits) {
                wait_for_previous();
                y = *to;
            }
            waits = false;
#pragma unroll
            for (int i = 0; i < 2 * PAIRS; i++)
                if (2 * p + i < e.rank) sum = fmaf(w[i], h[2 * p + i], sum);
        }
        y = fmaf(e.scale, sum, y);
    }
    if (!waits) *to = y; // else no update is of this row
}

uint32_t larger(uint32_t a, uint32_t b)
{
    return a > b ? a : b;
}

} // namespace

void cuda_low_rank_downs(cudaStream_t stream, const struct cuda_low_rank_down *list, size_t count, const float *x, size_t ldx,
                         size_t cols)
{
    downs some = {};
    uint32_t rank = 1, rows = 0;
    for (size_t i = 0; i < count; i++) {
        some.entry[i] = list[i];
        rank = larger(rank, list[i].rank);
        rows = larger(rows, list[i].row_end - list[i].row_begin);
    }
    for (uint32_t row = 0; row < rows; row += MOST_ROWS) {
        const unsigned most = rows - row < MOST_ROWS ? rows - row : MOST_ROWS;
        launch_early(stream, down_kernel, dim3(div_up(rank, CHUNK), most, (unsigned)count), WARPS * 32, 0, some, x, ldx, cols, row);
    }
}

void cuda_low_rank_ups(cudaStream_t stream, const struct cuda_low_rank_output *outputs, size_t count,
                       const struct cuda_low_rank_up *list)
{
    ups some = {};
    uint32_t outs = 0, rows = 0;
    for (size_t i = 0; i < count; i++) {
        some.output[i] = outputs[i];
        outs = larger(outs, outputs[i].outs);
        for (uint32_t u = outputs[i].first; u < outputs[i].first + outputs[i].count; u++) {
            some.entry[u] = list[u];
            rows = larger(rows, list[u].row_end);
        }
    }
    for (uint32_t row = 0; row < rows; row += MOST_ROWS) {
        const unsigned most = rows - row < MOST_ROWS ? rows - row : MOST_ROWS;
        launch_early(stream, up_kernel, dim3(div_up(outs, THREADS), most, (unsigned)count), THREADS, 0, some, row);
    }
}
