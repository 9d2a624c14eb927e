// E8P products of up to 8 rows of int8 activations: decode. Memory-bound: a block of threads owns whole outputs, its warps
// share the columns, each with several reads in flight. Integer sums, so that their order does not matter.
#include "e8p.cuh"

namespace {

struct decode_product {
    cuda_e8p w;
    const int8_t *q;
    const float *scale;
    const int32_t *sum;
    float *y;
    size_t stride, ldy;
    int rows;          // up to ROWS
    int groups;        // of CUDA_E8P_ROWS outputs
    int slab;          // columns of the activations in shared memory at once, a multiple of 128
};

// A run is what a warp does of one stage in one slab of one set of groups: steps warp, warp + WARPS, ... of 512 bytes.
struct run {
    const uint4 *at;       // this lane's of the first
    int steps;             // of this warp
    uint32_t group_stride; // 16-byte words between adjacent groups
};

template <int GROUPS, int WARPS>
__device__ __forceinline__ run run_of(const decode_product &p, int set, int column, int stage, int warp, int lane)
{
    const bool narrow = p.w.stage[stage].narrow != 0;
    const int width = narrow ? 128 : 64, first = column / width + warp;
    const int end = (min((int)p.w.cols, column + p.slab) + width - 1) / width;
    run r;
    r.group_stride = steps_of(p.w.cols, narrow) * 32;
    r.at = static_cast<const uint4 *>(p.w.stage[stage].data) + (size_t)(set * GROUPS) * r.group_stride + first * 32 + lane;
    r.steps = first < end ? (end - first + WARPS - 1) / WARPS : 0;
    return r;
}

// Activations in shared memory are B fragments: of each chunk of 64 columns, for t of 0..3, 16 bytes: even columns of X, even
// ones of Y, odd ones of X, odd ones of Y. The padding keeps eight rows in different banks.
constexpr int PADDING = 64;

// Piece number `piece` of a row: the 16 bytes of chunk piece / 4 and t = piece % 4.
__device__ __forceinline__ uint4 piece_of(const int8_t *row, int piece)
{
    const int8_t *from = row + piece / 4 * 64 + piece % 4 * 8;
    const uint2 x = *reinterpret_cast<const uint2 *>(from), y = *reinterpret_cast<const uint2 *>(from + 32);
    return make_uint4(permute(x.x, x.y, 0x6420u), permute(y.x, y.y, 0x6420u), permute(x.x, x.y, 0x7531u),
                      permute(y.x, y.y, 0x7531u));
}

template <int ROWS, int GROUPS, int WARPS, int DEPTH, bool NARROW>
__global__ void __launch_bounds__(WARPS * 32, 1) decode_kernel(const __grid_constant__ decode_product p)
{
    extern __shared__ __align__(1024) uint8_t shared[];
    constexpr int OUTS = GROUPS * CUDA_E8P_ROWS, THREADS = WARPS * 32;
    static_assert(THREADS % ROWS == 0, "a thread's outputs are of one row");
    uint8_t *tables = shared;
    int *total = reinterpret_cast<int *>(shared + (NARROW ? 2 : 1) * PAIR_BYTES); // [stage][OUTS][ROWS]
    uint8_t *x = reinterpret_cast<uint8_t *>(total + CUDA_MAX_STAGES * OUTS * ROWS);
    const int x_stride = p.slab + PADDING;
    const int lane = (int)threadIdx.x & 31, warp = (int)threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
    const uint32_t lane4 = (uint32_t)lane * 4;
    const int sets = (p.groups + GROUPS - 1) / GROUPS;

    // Loads run ahead of what is computed by DEPTH steps, from one run into the next.
    uint4 ahead[DEPTH][GROUPS];
    auto fetch = [&](uint4(&to)[GROUPS], const run &r, int set, int step) {
#pragma unroll
        for (int i = 0; i < GROUPS; i++) { // an odd number of groups ends with one alone
            const uint32_t group = i == 0 || set * GROUPS + i < p.groups ? (uint32_t)i * r.group_stride : 0;
            to[i] = stream16(r.at + step * (WARPS * 32) + group);
        }
    };
    run now = run_of<GROUPS, WARPS>(p, (int)blockIdx.x, 0, 0, warp, lane);
#pragma unroll
    for (int d = 0; d < DEPTH; d++)
        if (d < now.steps) fetch(ahead[d], now, (int)blockIdx.x, d);

    let_next_start();
    fill_tables(tables, p.w.tables, NARROW);
    for (int i = (int)threadIdx.x; i < CUDA_MAX_STAGES * OUTS * ROWS; i += THREADS) total[i] = 0;
    wait_for_previous();
    // what the end needs of this thread's row, which is the same for all of its outputs
    const int my_row = (int)threadIdx.x % ROWS;
    const float my_scale = my_row < p.rows ? p.scale[my_row] : 0.0f;
    const int my_sum = my_row < p.rows ? p.sum[my_row] : 0;

    int sum[GROUPS][2][2][4]; // [group][tile][low, high]
#pragma unroll
    for (int i = 0; i < GROUPS * 16; i++) sum[i >> 4][i >> 3 & 1][i >> 2 & 1][i & 3] = 0;
    for (int set = (int)blockIdx.x; set < sets; set += (int)gridDim.x) {
        for (int column = 0; column < (int)p.w.cols; column += p.slab) {
            if (set == (int)blockIdx.x || p.slab < (int)p.w.cols) {
                const int pieces = min(p.slab, (int)(steps_of(p.w.cols, true) * 128) - column) / 16;
                if (set != (int)blockIdx.x || column > 0) __syncthreads(); // the slab before is in use till here
                for (int row = 0; row < p.rows; row++)
                    for (int i = (int)threadIdx.x; i < pieces; i += THREADS)
                        reinterpret_cast<uint4 *>(x + row * x_stride)[i] = piece_of(p.q + (size_t)row * p.stride + column, i);
                __syncthreads();
            }
            for (int stage = 0; stage < (int)p.w.stages; stage++) {
                // the run behind this one
                int next_set = set, next_column = column, next_stage = stage + 1;
                if (next_stage == (int)p.w.stages) {
                    next_stage = 0;
                    next_column += p.slab;
                    if (next_column >= (int)p.w.cols) next_column = 0, next_set += (int)gridDim.x;
                }
                run next = {nullptr, 0, 0};
                if (next_set < sets) next = run_of<GROUPS, WARPS>(p, next_set, next_column, next_stage, warp, lane);

                const bool narrow = NARROW && p.w.stage[stage].narrow != 0;
                const uint8_t *fragment = x + (ROWS == 1 ? 0 : g * x_stride) + warp * (narrow ? 128 : 64) + t * 16;
                for (int i = 0; i == 0 || i < now.steps; i += DEPTH) {
#pragma unroll
                    for (int d = 0; d < DEPTH; d++) {
                        uint4 word[GROUPS];
#pragma unroll
                        for (int j = 0; j < GROUPS; j++) word[j] = ahead[d][j];
                        const bool here = i + d < now.steps;
                        if (i + d + DEPTH < now.steps)
                            fetch(ahead[d], now, set, i + d + DEPTH);
                        else if ((here || i == 0) && d < next.steps)
                            fetch(ahead[d], next, next_set, d);
                        if (!here) continue;
                        uint32_t low[4], high[4];
                        if (!narrow) {
                            const uint4 c = *reinterpret_cast<const uint4 *>(fragment);
#pragma unroll
                            for (int j = 0; j < GROUPS; j++) {
                                decode_wide(tables, lane4, word[j].x, word[j].y, low, high);
                                multiply(sum[j][0][0], low, c.x, c.y);
                                multiply(sum[j][0][1], high, c.z, c.w);
                                decode_wide(tables, lane4, word[j].z, word[j].w, low, high);
                                multiply(sum[j][1][0], low, c.x, c.y);
                                multiply(sum[j][1][1], high, c.z, c.w);
                            }
                            fragment += WARPS * 64;
                        } else {
#pragma unroll
                            for (int half = 0; half < 2; half++) {
                                const uint4 c = *reinterpret_cast<const uint4 *>(fragment + half * 64);
#pragma unroll
                                for (int j = 0; j < GROUPS; j++) {
                                    decode_narrow(tables + PAIR_BYTES, lane4, half ? word[j].y : word[j].x, low, high);
                                    multiply(sum[j][0][0], low, c.x, c.y);
                                    multiply(sum[j][0][1], high, c.z, c.w);
                                    decode_narrow(tables + PAIR_BYTES, lane4, half ? word[j].w : word[j].z, low, high);
                                    multiply(sum[j][1][0], low, c.x, c.y);
                                    multiply(sum[j][1][1], high, c.z, c.w);
                                }
                            }
                            fragment += WARPS * 128;
                        }
                    }
                }
                // what this warp has of the stage joins the others'
#pragma unroll
                for (int i = 0; i < GROUPS * 8; i++) {
                    const int j = i >> 3, tile = i >> 2 & 1, k = i & 3;
                    const int v = sum[j][tile][0][k] + (sum[j][tile][1][k] >> 4); // exact: a multiple of 16
                    const int out = j * CUDA_E8P_ROWS + tile * 16 + g + (k >> 1) * 8, row = t * 2 + (k & 1);
                    if (row < ROWS && now.steps > 0) atomicAdd(total + (stage * OUTS + out) * ROWS + row, v);
                    sum[j][tile][0][k] = sum[j][tile][1][k] = 0;
                }
                now = next;
            }
        }
        __syncthreads();
        for (int i = (int)threadIdx.x; i < OUTS * ROWS; i += THREADS) {
            const int out = i / ROWS, at = set * OUTS + out;
            float y = 0.0f;
            for (int stage = 0; stage < (int)p.w.stages; stage++) {
                const bool narrow = NARROW && p.w.stage[stage].narrow != 0;
                int *v = total + (stage * OUTS + out) * ROWS + my_row;
                const float term = stage_term(narrow, p.w.stage[stage].scale, stage_dot(narrow, *v, my_sum));
                y = stage == 0 ? term : __fadd_rn(y, term);
                *v = 0;
            }
            if (at < (int)p.w.outs && my_row < p.rows) p.y[(size_t)my_row * p.ldy + (size_t)at] = __fmul_rn(y, my_scale);
        }
        if (set + (int)gridDim.x < sets) __syncthreads();
    }
}

constexpr int SHARED_LIMIT = 227 << 10;

template <int ROWS, int GROUPS, int WARPS, int DEPTH, bool NARROW>
void launch(cudaStream_t stream, decode_product p, int processors)
{
    auto kernel = decode_kernel<ROWS, GROUPS, WARPS, DEPTH, NARROW>;
    const int fixed = (NARROW ? 2 : 1) * PAIR_BYTES + CUDA_MAX_STAGES * GROUPS * CUDA_E8P_ROWS * ROWS * 4;
    const int whole = (int)steps_of(p.w.cols, true) * 128, most = ((SHARED_LIMIT - fixed) / ROWS - PADDING) / 128 * 128;
    const int slabs = (whole + most - 1) / most;
    p.slab = ((whole / 128 + slabs - 1) / slabs) * 128;
    const int shared = fixed + ROWS * (p.slab + PADDING), sets = (p.groups + GROUPS - 1) / GROUPS;
    // as many rounds as the sets need, equally long
    const int rounds = (sets + processors - 1) / processors, grid = (sets + rounds - 1) / rounds;
    cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3((unsigned)grid);
    config.blockDim = dim3(WARPS * 32);
    config.dynamicSmemBytes = (size_t)shared;
    config.stream = stream;
    config.attrs = &attribute;
    config.numAttrs = 1;
    cudaLaunchKernelEx(&config, kernel, p);
}

// Two groups at once halve the reads of the activations, where there are groups enough for all multiprocessors.
template <bool NARROW> void choose(cudaStream_t stream, const decode_product &p, int processors)
{
    const bool tall = p.groups * 2 > 3 * processors;
    if (p.rows == 1)
        tall ? launch<1, 2, 16, 4, NARROW>(stream, p, processors) : launch<1, 1, 28, 5, NARROW>(stream, p, processors);
    else
        tall ? launch<8, 2, 16, 4, NARROW>(stream, p, processors) : launch<8, 1, 28, 5, NARROW>(stream, p, processors);
}

} // namespace

void cuda_product_e8p_decode(cudaStream_t stream, const struct cuda_e8p *w, const int8_t *q, size_t stride, const float *scale,
                             const int32_t *sum, size_t rows, float *y, size_t ldy, int processors)
{
    const decode_product p = {*w, q, scale, sum, y, stride, ldy, (int)rows, (int)div_up(w->outs, CUDA_E8P_ROWS), 0};
    bool narrow = false;
    for (uint32_t k = 0; k < w->stages; k++) narrow = narrow || w->stage[k].narrow;
    if (narrow)
        choose<true>(stream, p, processors);
    else
        choose<false>(stream, p, processors);
}
