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
    bool narrow;       // some stage is E81B
};

// A run is what a warp does of one stage in one slab of one set of groups: its steps warp, warp + WARPS, ... How many.
template <int WARPS> __device__ __forceinline__ int run_steps(const decode_product &p, int column, int stage, int warp)
{
    const int width = p.w.stage[stage].narrow != 0 ? 128 : 64, last = min((int)p.w.cols, column + p.slab);
    const int first = column / width + warp, end = (last + width - 1) / width;
    return first < end ? (end - first + WARPS - 1) / WARPS : 0;
}

// Where a warp loads: it walks the same runs as what is computed, ahead of it.
template <int GROUPS, int WARPS> struct cursor {
    const uint4 *at;
    int left, set, column, stage;
    uint32_t group_stride; // 16-byte words between adjacent groups

    __device__ __forceinline__ void enter(const decode_product &p, int warp, int lane)
    {
        const bool narrow = p.w.stage[stage].narrow != 0;
        left = run_steps<WARPS>(p, column, stage, warp);
        const uint32_t steps = steps_of(p.w.cols, narrow), first = (uint32_t)(column / (narrow ? 128 : 64) + warp);
        group_stride = steps * 32;
        at = static_cast<const uint4 *>(p.w.stage[stage].data) + (size_t)(set * GROUPS) * group_stride + first * 32 + lane;
    }
    // On to the next run; false behind the last.
    __device__ __forceinline__ bool advance(const decode_product &p, int sets, int warp, int lane)
    {
        if (++stage == (int)p.w.stages) {
            stage = 0;
            column += p.slab;
            if (column >= (int)p.w.cols) {
                column = 0;
                set += (int)gridDim.x;
                if (set >= sets) return false;
            }
        }
        enter(p, warp, lane);
        return true;
    }
};

constexpr int PADDING = 32; // bytes behind a slab's row: eight rows then are in different banks

template <int ROWS, int GROUPS, int WARPS, int DEPTH>
__global__ void __launch_bounds__(WARPS * 32, 1) decode_kernel(const __grid_constant__ decode_product p)
{
    extern __shared__ __align__(1024) uint8_t shared[];
    constexpr int OUTS = GROUPS * CUDA_E8P_ROWS, THREADS = WARPS * 32;
    uint8_t *tables = shared;
    int *total = reinterpret_cast<int *>(shared + (p.narrow ? 2 : 1) * PAIR_BYTES); // [stage][OUTS][ROWS]
    int8_t *x = reinterpret_cast<int8_t *>(total + CUDA_MAX_STAGES * OUTS * ROWS);
    const int x_stride = p.slab + PADDING;
    const int lane = (int)threadIdx.x & 31, warp = (int)threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
    const uint32_t lane4 = (uint32_t)lane * 4;
    const int sets = (p.groups + GROUPS - 1) / GROUPS;

    // Loads run ahead of what is computed by DEPTH steps, across stages, slabs and sets.
    cursor<GROUPS, WARPS> load;
    load.set = (int)blockIdx.x, load.column = 0, load.stage = 0;
    load.enter(p, warp, lane);
    uint4 ahead[DEPTH][GROUPS];
    auto fetch = [&](uint4(&to)[GROUPS]) {
        while (load.left == 0)
            if (!load.advance(p, sets, warp, lane)) {
                load.left = -1; // behind the last: nothing more to load
                return;
            }
        if (load.left < 0) return;
#pragma unroll
        for (int i = 0; i < GROUPS; i++) // an odd number of groups ends with one alone
            to[i] = stream16(i == 0 || load.set * GROUPS + i < p.groups ? load.at + (size_t)i * load.group_stride : load.at);
        load.at += WARPS * 32;
        load.left--;
    };
#pragma unroll
    for (int d = 0; d < DEPTH; d++) fetch(ahead[d]);

    let_next_start();
    fill_tables(tables, p.w.tables, p.narrow);
    for (int i = (int)threadIdx.x; i < CUDA_MAX_STAGES * OUTS * ROWS; i += THREADS) total[i] = 0;
    wait_for_previous();

    int sum[GROUPS][2][2][4]; // [group][tile][low, high]
    auto clear = [&] {
#pragma unroll
        for (int i = 0; i < GROUPS; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) sum[i][0][0][j] = sum[i][0][1][j] = sum[i][1][0][j] = sum[i][1][1][j] = 0;
    };
    auto flush = [&](int stage) { // what this warp has of a stage
#pragma unroll
        for (int i = 0; i < GROUPS; i++)
#pragma unroll
            for (int tile = 0; tile < 2; tile++)
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    const int v = sum[i][tile][0][j] + (sum[i][tile][1][j] >> 4); // exact: a multiple of 16
                    const int out = i * CUDA_E8P_ROWS + tile * 16 + g + (j >> 1) * 8, row = t * 2 + (j & 1);
                    if (row < ROWS) atomicAdd(total + (stage * OUTS + out) * ROWS + row, v);
                }
        clear();
    };
    clear();

    for (int set = (int)blockIdx.x; set < sets; set += (int)gridDim.x) {
        for (int column = 0; column < (int)p.w.cols; column += p.slab) {
            const int width = min(p.slab, (int)(steps_of(p.w.cols, true) * 128) - column);
            if (set == (int)blockIdx.x || p.slab < (int)p.w.cols) {
                if (set != (int)blockIdx.x || column > 0) __syncthreads(); // the slab before is in use till here
                for (int i = (int)threadIdx.x; i < p.rows * (width / 16); i += THREADS) {
                    const int row = i / (width / 16), at = i % (width / 16) * 16;
                    copy_async16(x + row * x_stride + at, p.q + (size_t)row * p.stride + column + at);
                }
                copies_done();
                __syncthreads();
            }
            const int8_t *mine = x + (ROWS == 1 ? 0 : g * x_stride);
            for (int stage = 0; stage < (int)p.w.stages; stage++) {
                const bool narrow = p.w.stage[stage].narrow != 0;
                const int8_t *columns_at = mine + warp * (narrow ? 128 : 64);
                int left = run_steps<WARPS>(p, column, stage, warp);
                while (left > 0) {
#pragma unroll
                    for (int d = 0; d < DEPTH; d++) {
                        if (left == 0) break;
                        uint4 word[GROUPS];
#pragma unroll
                        for (int i = 0; i < GROUPS; i++) word[i] = ahead[0][i];
                        // a queue in registers: constant numbers only, the compiler renames what it can
#pragma unroll
                        for (int e = 0; e + 1 < DEPTH; e++)
#pragma unroll
                            for (int i = 0; i < GROUPS; i++) ahead[e][i] = ahead[e + 1][i];
                        fetch(ahead[DEPTH - 1]);
                        uint32_t low[4], high[4];
                        if (!narrow) {
                            const columns c = load_columns(columns_at, t);
#pragma unroll
                            for (int i = 0; i < GROUPS; i++) {
                                decode_wide(tables, lane4, word[i].x, word[i].y, low, high);
                                multiply(sum[i][0][0], low, c.even_x, c.even_y);
                                multiply(sum[i][0][1], high, c.odd_x, c.odd_y);
                                decode_wide(tables, lane4, word[i].z, word[i].w, low, high);
                                multiply(sum[i][1][0], low, c.even_x, c.even_y);
                                multiply(sum[i][1][1], high, c.odd_x, c.odd_y);
                            }
                        } else {
#pragma unroll
                            for (int half = 0; half < 2; half++) {
                                const columns c = load_columns(columns_at + half * 64, t);
#pragma unroll
                                for (int i = 0; i < GROUPS; i++) {
                                    decode_narrow(tables + PAIR_BYTES, lane4, half ? word[i].y : word[i].x, low, high);
                                    multiply(sum[i][0][0], low, c.even_x, c.even_y);
                                    multiply(sum[i][0][1], high, c.odd_x, c.odd_y);
                                    decode_narrow(tables + PAIR_BYTES, lane4, half ? word[i].w : word[i].z, low, high);
                                    multiply(sum[i][1][0], low, c.even_x, c.even_y);
                                    multiply(sum[i][1][1], high, c.odd_x, c.odd_y);
                                }
                            }
                        }
                        columns_at += WARPS * (narrow ? 128 : 64);
                        left--;
                    }
                }
                flush(stage);
            }
        }
        __syncthreads();
        for (int i = (int)threadIdx.x; i < OUTS * ROWS; i += THREADS) {
            const int out = i / ROWS, row = i % ROWS, at = set * OUTS + out;
            float y = 0.0f;
            for (int stage = 0; stage < (int)p.w.stages; stage++) {
                const bool narrow = p.w.stage[stage].narrow != 0;
                int *v = total + (stage * OUTS + out) * ROWS + row;
                const float term =
                    row < p.rows ? stage_term(narrow, p.w.stage[stage].scale, stage_dot(narrow, *v, p.sum[row])) : 0.0f;
                y = stage == 0 ? term : __fadd_rn(y, term);
                *v = 0;
            }
            if (at < (int)p.w.outs && row < p.rows) p.y[(size_t)row * p.ldy + (size_t)at] = __fmul_rn(y, p.scale[row]);
        }
        if (set + (int)gridDim.x < sets) __syncthreads();
    }
}

constexpr int SHARED_LIMIT = 227 << 10;

template <int ROWS, int GROUPS, int WARPS, int DEPTH>
void launch(cudaStream_t stream, decode_product p, int processors)
{
    auto kernel = decode_kernel<ROWS, GROUPS, WARPS, DEPTH>;
    const int fixed = (p.narrow ? 2 : 1) * PAIR_BYTES + CUDA_MAX_STAGES * GROUPS * CUDA_E8P_ROWS * ROWS * 4;
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

} // namespace

void cuda_product_e8p_decode(cudaStream_t stream, const struct cuda_e8p *w, const int8_t *q, size_t stride, const float *scale,
                             const int32_t *sum, size_t rows, float *y, size_t ldy, int processors)
{
    decode_product p = {*w, q, scale, sum, y, stride, ldy, (int)rows, (int)div_up(w->outs, CUDA_E8P_ROWS), 0, false};
    for (uint32_t k = 0; k < w->stages; k++) p.narrow = p.narrow || w->stage[k].narrow;
    const bool tall = p.groups * 2 > 3 * processors; // two groups at once halve the reads of the activations
    if (rows == 1)
        tall ? launch<1, 2, 16, 4>(stream, p, processors) : launch<1, 1, 28, 5>(stream, p, processors);
    else
        tall ? launch<8, 2, 16, 4>(stream, p, processors) : launch<8, 1, 28, 5>(stream, p, processors);
}
