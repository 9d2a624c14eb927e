// The slots of a mixture sorted by expert, and the tiles of their rows, in one launch: a block for each expert counts all slots, so
// that it knows where its own begin, then places them in ascending order. Integers throughout: the order has no freedom.
#include "common.cuh"
#include "launch_experts.h"

namespace {

constexpr int THREADS = 1024, WARPS = THREADS / 32, EACH = 4; // slots of a thread at a time

__device__ __forceinline__ int4 four_slots(const int32_t *expert, int at, int slots)
{
    if (at + EACH <= slots) return *reinterpret_cast<const int4 *>(expert + at);
    return make_int4(at < slots ? expert[at] : -1, at + 1 < slots ? expert[at + 1] : -1, at + 2 < slots ? expert[at + 2] : -1, -1);
}

struct sums {
    int slots, tiles, all;
};

__device__ __forceinline__ sums sum_of_warp(sums s)
{
#pragma unroll
    for (int k = 16; k > 0; k >>= 1) {
        s.slots += __shfl_xor_sync(0xffffffffu, s.slots, k);
        s.tiles += __shfl_xor_sync(0xffffffffu, s.tiles, k);
        s.all += __shfl_xor_sync(0xffffffffu, s.all, k);
    }
    return s;
}
static_assert(WARPS == 32, "a lane has a warp's sums");

__global__ void __launch_bounds__(THREADS) sort_kernel(cuda_slots to, const int32_t *expert, int slots, int of_row, int experts)
{
    extern __shared__ int counts[]; // [experts]
    __shared__ sums parts[WARPS];
    __shared__ int hits[2][WARPS];
    const int self = (int)blockIdx.x, thread = (int)threadIdx.x, lane = thread & 31, warp = thread >> 5;
    for (int i = thread; i < experts; i += THREADS) counts[i] = 0;
    __syncthreads();
    wait_for_previous();
    for (int at = thread * EACH; at < slots; at += THREADS * EACH) {
        const int4 e = four_slots(expert, at, slots);
        atomicAdd(counts + e.x, 1);
        if (e.y >= 0) atomicAdd(counts + e.y, 1);
        if (e.z >= 0) atomicAdd(counts + e.z, 1);
        if (e.w >= 0) atomicAdd(counts + e.w, 1);
    }
    __syncthreads();
    sums s = {0, 0, 0};
    for (int i = thread; i < experts; i += THREADS) {
        const int tiles = (counts[i] + CUDA_EXPERT_TILE_ROWS - 1) / CUDA_EXPERT_TILE_ROWS;
        if (i < self) s.slots += counts[i], s.tiles += tiles;
        s.all += tiles;
    }
    s = sum_of_warp(s);
    if (lane == 0) parts[warp] = s;
    __syncthreads();
    s = sum_of_warp(parts[lane]);
    const int own = counts[self], tiles = (own + CUDA_EXPERT_TILE_ROWS - 1) / CUDA_EXPERT_TILE_ROWS;
    if (thread == 0) {
        to.begin[self] = s.slots;
        if (self == 0) *to.count = s.all;
        if (self == experts - 1) to.begin[experts] = s.slots + own;
    }
    if (own == 0) return;
    const int rows = ((own + tiles - 1) / tiles + 15) / 16 * 16; // even tiles: an expert's last one is no remainder
    for (int i = thread; i < tiles; i += THREADS) to.tiles[s.tiles + i] = {self, s.slots + i * rows, min(rows, own - i * rows), 0};
    int next = s.slots, turn = 0;
    for (int base = 0; base < slots; base += THREADS * EACH, turn ^= 1) {
        const int at = base + thread * EACH;
        const int4 e = four_slots(expert, at, slots);
        const bool hit[EACH] = {e.x == self, e.y == self, e.z == self, e.w == self};
        int before = 0, all = 0;
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            const unsigned mask = __ballot_sync(0xffffffffu, hit[i]);
            before += __popc(mask & ((1u << lane) - 1)), all += __popc(mask);
        }
        if (lane == 0) hits[turn][warp] = all;
        __syncthreads();
        int sum = hits[turn][lane]; // one for each warp
        const int mine = sum;
#pragma unroll
        for (int k = 1; k < 32; k <<= 1) {
            const int other = __shfl_up_sync(0xffffffffu, sum, k);
            if (lane >= k) sum += other;
        }
        int place = next + __shfl_sync(0xffffffffu, sum - mine, warp) + before;
        next += __shfl_sync(0xffffffffu, sum, 31);
#pragma unroll
        for (int i = 0; i < EACH; i++)
            if (hit[i]) {
                to.order[place] = at + i;
                if (to.place) to.place[at + i] = place;
                if (to.row) to.row[place] = (at + i) / of_row;
                place++;
            }
    }
}

} // namespace

size_t cuda_expert_tiles(size_t slots, uint32_t experts)
{
    return (slots < experts ? slots : experts) + slots / CUDA_EXPERT_TILE_ROWS;
}

void cuda_sort_slots(cudaStream_t stream, const int32_t *expert, size_t slots, uint32_t k, uint32_t experts,
                     const struct cuda_slots *to)
{
    launch_early(stream, sort_kernel, dim3(experts), THREADS, experts * sizeof(int), *to, expert, (int)slots, (int)k, (int)experts);
}
