// Updates of experts by bf16 with f32 sums: into the rank, and the gradients. No atomics: a sum's order is fixed.
#include "launch_experts.h"
#include "tensor.cuh"

namespace {

constexpr int RANK = CUDA_EXPERT_RANK;

__device__ __forceinline__ size_t row_of(const cuda_expert_rows &rows, const int32_t *order, int place)
{
    return rows.per_row ? (size_t)((uint32_t)order[place] / rows.per_row) : (size_t)place;
}
__device__ __forceinline__ uint32_t bf16_pair(float low, float high)
{
    return (uint32_t)bf16_from_f32(low) | (uint32_t)bf16_from_f32(high) << 16;
}

// --- into the rank ---

// A block has ROWS rows of a tile; its warps a part of the columns each, whose sums are added in the warps' order. The rank is the
// side of 16 of mma, rows of x that of 8: a lane's 16 bytes of x, and of the matrix, are fragments of two steps of 16 columns, in an
// order of the columns that both share.
constexpr int ROWS = 32, EIGHTS = ROWS / 8, PARTS = 8, PIECES = (CUDA_EXPERT_TILE_ROWS + ROWS - 1) / ROWS;

struct into {
    const cuda_expert_tile *tiles;
    const int32_t *count, *order;
    cuda_expert_source list[CUDA_EXPERT_SOURCES];
    int sources, rank;
    uint16_t *h;
    float scale;
};

// Of one source: c += a part of the columns.
__device__ __forceinline__ void add_source(float (&c)[EIGHTS][4], const cuda_expert_source &from, const into &p, const cuda_expert_tile &tile,
                                           int first, int part, int g, int t)
{
    const uint4 none = make_uint4(0, 0, 0, 0);
    const int cols = (int)from.cols;
    const uint4 *a = reinterpret_cast<const uint4 *>(from.matrix + (size_t)tile.expert * from.step + (size_t)g * from.cols) + t;
    const uint4 *below = a + cols; // 8 rows of cols / 8
    const uint4 *x[EIGHTS];
#pragma unroll
    for (int i = 0; i < EIGHTS; i++) { // a row beyond the last is the last again
        const int place = tile.first + min(first + 8 * i + g, tile.rows - 1);
        x[i] = reinterpret_cast<const uint4 *>(from.rows.x + row_of(from.rows, p.order, place) * from.rows.stride) + t;
    }
    const bool has = g < p.rank, has_below = g + 8 < p.rank;
    const int steps = cols / 32, each = (steps + PARTS - 1) / PARTS, end = min((part + 1) * each, steps);
#pragma unroll 4
    for (int step = part * each; step < end; step++) {
        const uint4 up = has ? __ldg(a + 4 * step) : none, down = has_below ? __ldg(below + 4 * step) : none;
        const uint32_t even[4] = {up.x, down.x, up.y, down.y}, odd[4] = {up.z, down.z, up.w, down.w};
#pragma unroll
        for (int i = 0; i < EIGHTS; i++) {
            const uint4 v = __ldg(x[i] + 4 * step);
            multiply_bf16(c[i], even, v.x, v.y);
            multiply_bf16(c[i], odd, v.z, v.w);
        }
    }
}

__global__ void __launch_bounds__(PARTS * 32) into_rank_kernel(const __grid_constant__ into p)
{
    __shared__ float sums[PARTS][ROWS][RANK + 1];
    const int lane = (int)threadIdx.x & 31, part = (int)threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
    wait_for_previous();
    if ((int)blockIdx.x >= *p.count) return;
    const cuda_expert_tile tile = p.tiles[blockIdx.x];
    const int first = (int)blockIdx.y * ROWS;
    if (first >= tile.rows) return;
    float c[EIGHTS][4] = {};
    for (int i = 0; i < p.sources; i++) add_source(c, p.list[i], p, tile, first, part, g, t);
#pragma unroll
    for (int i = 0; i < EIGHTS; i++)
#pragma unroll
        for (int e = 0; e < 4; e++) sums[part][8 * i + 2 * t + e % 2][g + e / 2 * 8] = c[i][e];
    __syncthreads();
    const int row = (int)threadIdx.x / (RANK / 2), at = (int)threadIdx.x % (RANK / 2) * 2;
    static_assert(PARTS * 32 == ROWS * RANK / 2, "a thread has two sums");
    float s[2] = {0, 0};
#pragma unroll
    for (int i = 0; i < PARTS; i++) s[0] += sums[i][row][at], s[1] += sums[i][row][at + 1];
    if (first + row < tile.rows)
        reinterpret_cast<uint32_t *>(p.h)[((size_t)(tile.first + first + row) * RANK + (size_t)at) / 2] = bf16_pair(s[0] * p.scale, s[1] * p.scale);
}

// --- gradients ---

// A block has an expert's COLUMNS columns; its rows come STEP at a time.
constexpr int COLUMNS = 128, STEP = 32, STAGES = 4, PAD = 8, WARPS = COLUMNS / 32;

struct gradients {
    const int32_t *begin, *order;
    cuda_expert_rows rows;
    const uint16_t *h;
    float *to;
    size_t step;
    int cols, rank;
    bool add;
};

__global__ void __launch_bounds__(WARPS * 32) gradient_kernel(const __grid_constant__ gradients p)
{
    __shared__ __align__(16) uint16_t xs[STAGES][STEP][COLUMNS + PAD], hs[STAGES][STEP][RANK + PAD];
    const int lane = (int)threadIdx.x & 31, warp = (int)threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
    const int column = (int)blockIdx.x * COLUMNS, expert = (int)blockIdx.y;
    wait_for_previous();
    const int begin = p.begin[expert], rows = p.begin[expert + 1] - begin;
    if (rows == 0 && p.add) return;
    const int steps = (rows + STEP - 1) / STEP;
    auto fetch = [&](int step) {
        if (step < steps) {
            const int stage = step % STAGES;
            for (int i = (int)threadIdx.x; i < STEP * COLUMNS / 8; i += WARPS * 32) {
                const int r = i / (COLUMNS / 8), c = i % (COLUMNS / 8) * 8, row = step * STEP + r;
                const bool valid = row < rows && column + c < p.cols;
                const uint16_t *from = valid ? p.rows.x + row_of(p.rows, p.order, begin + row) * p.rows.stride + column + c : p.rows.x;
                copy_async(&xs[stage][r][c], from, valid ? 16 : 0);
            }
            for (int i = (int)threadIdx.x; i < STEP * RANK / 8; i += WARPS * 32) {
                const int r = i / (RANK / 8), c = i % (RANK / 8) * 8, row = step * STEP + r;
                copy_async(&hs[stage][r][c], row < rows ? p.h + (size_t)(begin + row) * RANK + c : p.h, row < rows ? 16 : 0);
            }
        }
        copies_commit();
    };
    float c[4][4] = {}; // 16 of the rank by four times 8 columns
    for (int i = 0; i < STAGES - 1; i++) fetch(i);
    for (int step = 0; step < steps; step++) {
        copies_wait<STAGES - 2>();
        __syncthreads();
        fetch(step + STAGES - 1);
        const int stage = step % STAGES, in8 = lane % 8, second = lane / 8 % 2, upper = lane / 16;
#pragma unroll
        for (int k = 0; k < STEP; k += 16) {
            uint32_t a[4], b[4];
            load_matrices_turned(a, &hs[stage][k + upper * 8 + in8][second * 8]);
#pragma unroll
            for (int j = 0; j < 2; j++) {
                load_matrices_turned(b, &xs[stage][k + second * 8 + in8][warp * 32 + j * 16 + upper * 8]);
                multiply_bf16(c[2 * j], a, b[0], b[1]);
                multiply_bf16(c[2 * j + 1], a, b[2], b[3]);
            }
        }
    }
#pragma unroll
    for (int j = 0; j < 4; j++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const int at = column + warp * 32 + j * 8 + 2 * t;
            if (at >= p.cols || g + 8 * i >= p.rank) continue;
            float2 *to = reinterpret_cast<float2 *>(p.to + (size_t)expert * p.step + (size_t)(g + 8 * i) * (size_t)p.cols + at);
            float2 v = make_float2(c[j][2 * i], c[j][2 * i + 1]);
            if (p.add) {
                const float2 before = *to;
                v.x += before.x, v.y += before.y;
            }
            *to = v;
        }
}

} // namespace

void cuda_expert_into_rank(cudaStream_t stream, const struct cuda_slots *slots, size_t count, uint32_t experts,
                           const struct cuda_expert_source *list, size_t sources, uint32_t rank, float scale, uint16_t *h)
{
    into p = {slots->tiles, slots->count, slots->order, {}, (int)sources, (int)rank, h, scale};
    for (size_t i = 0; i < sources; i++) p.list[i] = list[i];
    launch_early(stream, into_rank_kernel, dim3((unsigned)cuda_expert_tiles(count, experts), PIECES), PARTS * 32, 0, p);
}

void cuda_expert_gradient(cudaStream_t stream, const struct cuda_slots *slots, uint32_t experts, const struct cuda_expert_rows *rows,
                          uint32_t cols, const uint16_t *h, uint32_t rank, float *gradient, size_t step, bool add)
{
    const gradients p = {slots->begin, slots->order, *rows, h, gradient, step, (int)cols, (int)rank, add};
    launch_early(stream, gradient_kernel, dim3(div_up(cols, COLUMNS), experts), WARPS * 32, 0, p);
}
