// E8P products of up to 8 rows of int8 activations: decode. Memory-bound: a block of threads owns whole outputs, its warps
// share the columns, each with several reads in flight. Integer sums, so that their order does not matter.
#include <type_traits>

#include "e8p.cuh"
#include "low_rank.cuh"

namespace {

// A matrix of the list; its sets of outputs are numbered from `first` on.
struct decode_matrix {
    const void *data[CUDA_MAX_STAGES];
    float scale[CUDA_MAX_STAGES];
    uint32_t narrow; // a bit for each stage
    int stages, outs, groups, first;
    float *y;
    size_t ldy;
};
struct decode_product {
    decode_matrix m[CUDA_E8P_LIST];
    const uint32_t *tables;
    const int8_t *q;
    const float *scale;
    const int32_t *sum;
    size_t stride;
    int cols, count, sets;
    int rows;   // up to ROWS
    int slab;   // columns of the activations in shared memory at once, a multiple of 128
    int split;  // warps that share the columns of a set; a block of threads does WARPS / split sets at a time
    int stages; // of the matrix that has most
};
// Updates that the ends of the outputs add: of matrix m, entry[first[m]] to entry[first[m + 1] - 1].
struct decode_updates {
    cuda_low_rank_up entry[CUDA_LOW_RANK_LIST];
    int first[CUDA_E8P_LIST + 1];
};
struct no_updates {};
// In their place, for prefill: matrices whose two stages are one plane, a bit of `on` for each (launch.h, cuda_e8p.merged).
struct decode_merges {
    uint32_t on, second[CUDA_E8P_LIST][4];
    float scale[CUDA_E8P_LIST];
};

// y with an output's updates of this row, as the launch of their own (low_rank.cu) would add them.
__device__ __forceinline__ float updated(float y, const decode_updates &updates, int m, uint32_t row, size_t o)
{
    for (int u = updates.first[m]; u < updates.first[m + 1]; u++) {
        const cuda_low_rank_up &e = updates.entry[u];
        if (row < e.row_begin || row >= e.row_end) continue;
        const float *h = low_rank_h(e, row);
        float sum = 0.0f;
#pragma unroll 8
        for (uint32_t j = 0; j < e.rank; j++) sum = fmaf(low_rank_b(e, o, j / 2, j % 2), h[j], sum);
        y = fmaf(e.scale, sum, y);
    }
    return y;
}
template <typename NONE> __device__ __forceinline__ float updated(float y, const NONE &, int, uint32_t, size_t)
{
    return y;
}

__device__ __forceinline__ void fetch_updates(const decode_updates &updates, int m, size_t o)
{
    for (int u = updates.first[m]; u < updates.first[m + 1]; u++) low_rank_fetch(updates.entry[u], o);
}

__device__ __forceinline__ int matrix_of(const decode_product &p, int set)
{
    int m = 0;
    while (m + 1 < p.count && set >= p.m[m + 1].first) m++;
    return m;
}

// A run is what a warp does of one stage in one slab of one set of groups: every p.split-th step of 512 bytes.
struct run {
    const uint4 *at;       // this lane's of the first
    int steps;             // of this warp
    uint32_t group_stride; // 16-byte words between adjacent groups
    int groups;            // from this set's first one on
};

template <int GROUPS, bool LIST>
__device__ __forceinline__ run run_of(const decode_product &p, int set, int column, int stage, int turn, int lane)
{
    const decode_matrix &m = p.m[LIST ? matrix_of(p, set) : 0];
    const bool narrow = m.narrow >> stage & 1;
    const int width = narrow ? 128 : 64, first = column / width + turn;
    const int end = (min(p.cols, column + p.slab) + width - 1) / width;
    run r;
    r.group_stride = steps_of((uint32_t)p.cols, narrow) * 32;
    r.at = static_cast<const uint4 *>(m.data[stage]) + (size_t)((set - m.first) * GROUPS) * r.group_stride + first * 32 + lane;
    r.steps = first < end ? (end - first + p.split - 1) / p.split : 0;
    r.groups = m.groups - (set - m.first) * GROUPS;
    return r;
}

// Activations in shared memory are B fragments: of each chunk of 64 columns, for t of 0..3, 16 bytes: even columns of X, even
// ones of Y, odd ones of X, odd ones of Y. The padding keeps eight rows in different banks.
constexpr int PADDING = 64;
__host__ __device__ constexpr int table_bytes(bool narrow)
{
    return PAIR_BYTES + (narrow ? NARROW_BYTES : 0);
}
constexpr int SPREAD = 4; // between rows of sums: the lanes of a warp then add in different banks

// Piece number `piece` of a row: the 16 bytes of chunk piece / 4 and t = piece % 4.
__device__ __forceinline__ uint4 piece_of(const int8_t *row, int piece)
{
    const int8_t *from = row + piece / 4 * 64 + piece % 4 * 8;
    const uint2 x = *reinterpret_cast<const uint2 *>(from), y = *reinterpret_cast<const uint2 *>(from + 32);
    return make_uint4(permute(x.x, x.y, 0x6420u), permute(y.x, y.y, 0x6420u), permute(x.x, x.y, 0x7531u),
                      permute(y.x, y.y, 0x7531u));
}

template <int ROWS, int GROUPS, int WARPS, int DEPTH, bool NARROW, bool LIST, typename UPDATES>
__global__ void __launch_bounds__(WARPS * 32, 1)
    decode_kernel(const __grid_constant__ decode_product p, const __grid_constant__ UPDATES updates)
{
    extern __shared__ __align__(1024) uint8_t shared[];
    constexpr bool MERGES = std::is_same<UPDATES, decode_merges>::value;
    constexpr int OUTS = GROUPS * CUDA_E8P_ROWS, THREADS = WARPS * 32, EIGHTS = ROWS == 1 ? 1 : ROWS / 8;
    uint8_t *tables = shared;
    const int subs = WARPS / p.split, totals = subs * p.stages * ROWS * (OUTS + SPREAD);
    int *total = reinterpret_cast<int *>(shared + table_bytes(NARROW)); // [set at a time][stage][ROWS][OUTS + SPREAD]
    uint8_t *x = reinterpret_cast<uint8_t *>(total + totals);
    const int x_stride = p.slab + PADDING;
    const int lane = (int)threadIdx.x & 31, warp = (int)threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
    const uint32_t lane4 = (uint32_t)lane * 4;
    const int sub = warp / p.split, turn = warp - sub * p.split; // warps that are left over have no set
    const int first_base = (int)blockIdx.x * subs, set_step = (int)gridDim.x * subs;
    const int first_set = sub < subs ? first_base + sub : p.sets;

    // Loads run ahead of what is computed by DEPTH steps, from one run into the next.
    uint4 ahead[DEPTH][GROUPS];
    auto fetch = [&](uint4(&to)[GROUPS], const run &r, int step) {
#pragma unroll
        for (int i = 0; i < GROUPS; i++) { // an odd number of groups ends with one alone
            const uint32_t group = i < r.groups ? (uint32_t)i * r.group_stride : 0;
            to[i] = stream16(r.at + step * (p.split * 32) + group);
        }
    };
    run now = {nullptr, 0, 0, 0};
    if (first_set < p.sets) now = run_of<GROUPS, LIST>(p, first_set, 0, 0, turn, lane);
#pragma unroll
    for (int d = 0; d < DEPTH; d++)
        if (d < now.steps) fetch(ahead[d], now, d);

    let_next_start();
    if constexpr (std::is_same<UPDATES, decode_updates>::value) // B of the first sets' outputs is on its way too
        for (int i = (int)threadIdx.x; i < subs * OUTS && first_base + i / OUTS < p.sets; i += THREADS) {
            const int set = first_base + i / OUTS, matrix = LIST ? matrix_of(p, set) : 0;
            const int at = (set - (LIST ? p.m[matrix].first : 0)) * OUTS + i % OUTS;
            if (at < p.m[matrix].outs) fetch_updates(updates, matrix, (size_t)at);
        }
    fill_tables(tables, p.tables, NARROW);
    for (int i = (int)threadIdx.x; i < totals; i += THREADS) total[i] = 0;
    wait_for_previous();
    __shared__ float row_scale[ROWS]; // what the end needs of the rows
    __shared__ int row_sum[ROWS];
    if ((int)threadIdx.x < p.rows) row_scale[threadIdx.x] = p.scale[threadIdx.x], row_sum[threadIdx.x] = p.sum[threadIdx.x];

    int sum[GROUPS][2][2][EIGHTS][4]; // [group][tile][low, high][eight rows]
#pragma unroll
    for (int i = 0; i < GROUPS * 4 * EIGHTS * 4; i++)
        sum[i / (16 * EIGHTS)][i / (8 * EIGHTS) & 1][i / (4 * EIGHTS) & 1][i / 4 % EIGHTS][i & 3] = 0;
    for (int base = first_base; base < p.sets; base += set_step) {
        const int set = sub < subs ? base + sub : p.sets;
        const int stages = set < p.sets ? p.m[LIST ? matrix_of(p, set) : 0].stages : 0;
        const uint32_t narrows = NARROW && set < p.sets ? p.m[LIST ? matrix_of(p, set) : 0].narrow : 0;
        for (int column = 0; column < p.cols; column += p.slab) {
            if (base == first_base || p.slab < p.cols) {
                const int pieces = (min(column + p.slab, (p.cols + 127) / 128 * 128) - column) / 16;
                if (base != first_base || column > 0) __syncthreads(); // the slab before is in use till here
                // four threads do the pieces of a chunk, so that a row's are read by whole sectors
#pragma unroll 4
                for (int i = (int)threadIdx.x; i < pieces * ROWS; i += THREADS) {
                    const int row = ROWS == 1 ? 0 : i / 4 % ROWS, piece = ROWS == 1 ? i : i / (4 * ROWS) * 4 + i % 4;
                    if (row < p.rows)
                        reinterpret_cast<uint4 *>(x + row * x_stride)[piece] = piece_of(p.q + (size_t)row * p.stride + column, piece);
                }
                __syncthreads();
            }
            for (int stage = 0; stage < stages; stage++) {
                // the run behind this one
                int next_set = set, next_column = column, next_stage = stage + 1;
                if (next_stage == stages) {
                    next_stage = 0;
                    next_column += p.slab;
                    if (next_column >= p.cols) next_column = 0, next_set += set_step;
                }
                run next = {nullptr, 0, 0, 0};
                if (next_set < p.sets) next = run_of<GROUPS, LIST>(p, next_set, next_column, next_stage, turn, lane);

                const bool narrow = NARROW && (narrows >> stage & 1);
                bool second = false; // the second of two stages that are one plane
                uint32_t of_second[4] = {};
                if constexpr (MERGES) {
                    const int matrix = set < p.sets ? matrix_of(p, set) : 0;
                    second = stage == 1 && (updates.on >> matrix & 1);
#pragma unroll
                    for (int i = 0; i < 4; i++) of_second[i] = updates.second[matrix][i];
                }
                const uint8_t *fragment = x + (ROWS == 1 ? 0 : g * x_stride) + turn * (narrow ? 128 : 64) + t * 16;
                for (int i = 0; i == 0 || i < now.steps; i += DEPTH) {
#pragma unroll
                    for (int d = 0; d < DEPTH; d++) {
                        uint4 word[GROUPS];
#pragma unroll
                        for (int j = 0; j < GROUPS; j++) word[j] = ahead[d][j];
                        const bool here = i + d < now.steps;
                        if (i + d + DEPTH < now.steps)
                            fetch(ahead[d], now, i + d + DEPTH);
                        else if ((here || i == 0) && d < next.steps)
                            fetch(ahead[d], next, d);
                        if (!here) continue;
                        const int halves = narrow ? 2 : 1;
                        for (int half = 0; half < halves; half++) {
#pragma unroll
                            for (int j = 0; j < GROUPS; j++)
#pragma unroll
                                for (int tile = 0; tile < 2; tile++) {
                                    uint32_t low[4], high[4];
                                    if (MERGES && second)
                                        decode_second(tables, lane4, narrow, of_second,
                                                      tile ? (half ? word[j].w : word[j].z) : (half ? word[j].y : word[j].x),
                                                      tile ? word[j].w : word[j].y, low, high);
                                    else if (!narrow)
                                        decode_wide(tables, lane4, tile ? word[j].z : word[j].x, tile ? word[j].w : word[j].y,
                                                    low, high);
                                    else
                                        decode_narrow(tables + PAIR_BYTES, lane4,
                                                      half ? (tile ? word[j].w : word[j].y) : (tile ? word[j].z : word[j].x), low,
                                                      high);
#pragma unroll
                                    for (int n = 0; n < EIGHTS; n++) {
                                        const uint4 c = *reinterpret_cast<const uint4 *>(fragment + half * 64 + n * 8 * x_stride);
                                        multiply(sum[j][tile][0][n], low, c.x, c.y);
                                        multiply(sum[j][tile][MERGES && second ? 0 : 1][n], high, c.z, c.w);
                                    }
                                }
                        }
                        fragment += p.split * (narrow ? 128 : 64);
                    }
                }
                // what this warp has of the stage joins the others'
#pragma unroll
                for (int i = 0; i < GROUPS * 2 * EIGHTS * 4; i++) {
                    const int j = i / (8 * EIGHTS), tile = i / (4 * EIGHTS) & 1, n = i / 4 % EIGHTS, k = i & 3;
                    const int v = sum[j][tile][0][n][k] + (sum[j][tile][1][n][k] >> 4); // exact: a multiple of 16
                    const int out = j * CUDA_E8P_ROWS + tile * 16 + g + (k >> 1) * 8, row = n * 8 + t * 2 + (k & 1);
                    if (row < p.rows && now.steps > 0) atomicAdd(total + ((sub * p.stages + stage) * ROWS + row) * (OUTS + SPREAD) + out, v);
                    sum[j][tile][0][n][k] = sum[j][tile][1][n][k] = 0;
                }
                now = next;
            }
        }
        __syncthreads();
        for (int i = (int)threadIdx.x; i < subs * OUTS * ROWS; i += THREADS) {
            const int which = i / (OUTS * ROWS), row = i / OUTS % ROWS, out = i % OUTS;
            if (base + which >= p.sets) break;
            if (row >= p.rows) continue;
            const int matrix = LIST ? matrix_of(p, base + which) : 0;
            const decode_matrix &m = p.m[matrix];
            const int at = (base + which - (LIST ? m.first : 0)) * OUTS + out;
            float y = 0.0f;
            bool merged = false;
            if constexpr (MERGES) {
                merged = updates.on >> matrix & 1;
                if (merged) {
                    int *v = total + (which * p.stages * ROWS + row) * (OUTS + SPREAD) + out, *w = v + ROWS * (OUTS + SPREAD);
                    y = __fmul_rn(updates.scale[matrix],
                                  (float)(8 * stage_dot(false, *v, row_sum[row]) + (*w - CUDA_E8P_SECOND * row_sum[row])));
                    *v = *w = 0;
                }
            }
            for (int stage = 0; stage < m.stages && !merged; stage++) {
                const bool narrow = NARROW && (m.narrow >> stage & 1);
                int *v = total + ((which * p.stages + stage) * ROWS + row) * (OUTS + SPREAD) + out;
                const float term = stage_term(narrow, m.scale[stage], stage_dot(narrow, *v, row_sum[row]));
                y = stage == 0 ? term : __fadd_rn(y, term);
                *v = 0;
            }
            if (at < m.outs)
                m.y[(size_t)row * m.ldy + (size_t)at] =
                    updated(__fmul_rn(y, row_scale[row]), updates, matrix, (uint32_t)row, (size_t)at);
        }
        if (base + set_step < p.sets) __syncthreads();
    }
}

constexpr int SHARED_LIMIT = 226 << 10; // 1 KB is left for what the kernel declares

template <int ROWS, int GROUPS, int WARPS, int DEPTH, bool NARROW, typename UPDATES>
void launch(cudaStream_t stream, decode_product p, const UPDATES &updates, int processors)
{
    p.sets = 0;
    for (int i = 0; i < p.count; i++) {
        p.m[i].first = p.sets;
        p.sets += (p.m[i].groups + GROUPS - 1) / GROUPS;
    }
    const int steps = (int)steps_of((uint32_t)p.cols, false), outputs = (GROUPS * CUDA_E8P_ROWS + SPREAD) * ROWS * 4 * p.stages;
    const int whole = (int)steps_of((uint32_t)p.cols, true) * 128, room = SHARED_LIMIT - table_bytes(NARROW);
    // Few warps to a set leave fewer sums to add up, but more rounds where there are few sets: the least time, counted in
    // steps of a warp, of which what comes behind a set's last costs about four.
    int subs = 1, best = 0;
    for (int candidate = 1; candidate <= WARPS / 2; candidate++) {
        const int split = WARPS / candidate, rounds = (p.sets + candidate * processors - 1) / (candidate * processors);
        const int time = rounds * ((steps + split - 1) / split + 4);
        if (candidate > 1 && (candidate * outputs > room / 2 || time >= best)) continue;
        subs = candidate, best = time;
    }
    p.split = WARPS / subs;
    subs = WARPS / p.split; // as the kernel counts them
    const int fixed = SHARED_LIMIT - room + subs * outputs;
    const int most = ((SHARED_LIMIT - fixed) / ROWS - PADDING) / 128 * 128, slabs = (whole + most - 1) / most;
    p.slab = ((whole / 128 + slabs - 1) / slabs) * 128;
    // as many rounds as the sets need, equally long
    const int bundles = (p.sets + subs - 1) / subs, rounds = (bundles + processors - 1) / processors;
    const int grid = (bundles + rounds - 1) / rounds;
    const size_t shared = (size_t)(fixed + ROWS * (p.slab + PADDING));
    if constexpr (!std::is_same<UPDATES, decode_merges>::value)
        if (p.count == 1) {
            launch_early(stream, decode_kernel<ROWS, GROUPS, WARPS, DEPTH, NARROW, false, UPDATES>, dim3((unsigned)grid), WARPS * 32,
                         shared, p, updates);
            return;
        }
    launch_early(stream, decode_kernel<ROWS, GROUPS, WARPS, DEPTH, NARROW, true, UPDATES>, dim3((unsigned)grid), WARPS * 32, shared, p,
                 updates);
}

// Two groups at once halve the reads of the activations, where there are groups enough for all multiprocessors.
template <bool NARROW, typename UPDATES>
void choose(cudaStream_t stream, const decode_product &p, const UPDATES &updates, int processors)
{
    int groups = 0;
    for (int i = 0; i < p.count; i++) groups += p.m[i].groups;
    const bool tall = groups * 2 > 3 * processors && p.cols >= 8192;
    if (p.rows == 1)
        tall ? launch<1, 2, 16, 4, NARROW>(stream, p, updates, processors) : launch<1, 1, 28, 5, NARROW>(stream, p, updates, processors);
    else if (p.rows <= 8)
        tall ? launch<8, 2, 16, 4, NARROW>(stream, p, updates, processors) : launch<8, 1, 28, 5, NARROW>(stream, p, updates, processors);
    else if (p.rows <= 16)
        launch<16, 1, 16, 4, NARROW>(stream, p, updates, processors);
    else
        launch<32, 1, 16, 4, NARROW>(stream, p, updates, processors);
}

} // namespace

void cuda_product_e8p_decode(cudaStream_t stream, const struct cuda_e8p_output *list, size_t count, const int8_t *q,
                             size_t stride, const float *scale, const int32_t *sum, size_t rows,
                             const struct cuda_low_rank_up *ups, const uint32_t *up_counts, int processors)
{
    decode_product p = {};
    p.tables = list[0].w.tables, p.q = q, p.scale = scale, p.sum = sum, p.stride = stride;
    p.cols = (int)list[0].w.cols, p.count = (int)count, p.rows = (int)rows;
    bool narrow = false;
    for (size_t i = 0; i < count; i++) {
        const cuda_e8p &w = list[i].w;
        decode_matrix &m = p.m[i];
        m.stages = (int)w.stages, m.outs = (int)w.outs, m.groups = (int)div_up(w.outs, CUDA_E8P_ROWS);
        m.y = list[i].y, m.ldy = list[i].ldy;
        if (m.stages > p.stages) p.stages = m.stages;
        for (uint32_t k = 0; k < w.stages; k++) {
            m.data[k] = w.stage[k].data;
            m.scale[k] = w.stage[k].scale;
            if (w.stage[k].narrow) m.narrow |= 1u << k, narrow = true;
        }
    }
    decode_merges merges = {};
    for (size_t i = 0; i < count; i++) {
        if (!list[i].w.merged.on) continue;
        merges.on |= 1u << i;
        for (int k = 0; k < 4; k++) merges.second[i][k] = list[i].w.merged.second[k];
        merges.scale[i] = list[i].w.merged.scale;
    }
    if (merges.on) {
        rows <= 8    ? launch<8, 1, 28, 5, true>(stream, p, merges, processors)
        : rows <= 16 ? launch<16, 1, 16, 4, true>(stream, p, merges, processors)
                     : launch<32, 1, 16, 4, true>(stream, p, merges, processors);
        return;
    }
    if (!ups) {
        narrow ? choose<true>(stream, p, no_updates(), processors) : choose<false>(stream, p, no_updates(), processors);
        return;
    }
    decode_updates updates = {};
    for (size_t i = 0; i < count; i++) updates.first[i + 1] = updates.first[i] + (int)up_counts[i];
    for (int u = 0; u < updates.first[count]; u++) updates.entry[u] = ups[u];
    narrow ? choose<true>(stream, p, updates, processors) : choose<false>(stream, p, updates, processors);
}
