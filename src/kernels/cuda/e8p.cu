// E8P matrices: from the CPU's layout to the device's, products of many rows, products with f32 activations.
#include "e8p.cuh"

namespace {

// --- layout ---

// The code of row r, group of columns g, from the planes (formats/e8p_planes.h): pattern | signs << 8, or an E81B code.
__device__ uint32_t plane_code(const cuda_plane_tables &tables, const uint8_t *planes, uint32_t outs, uint32_t cols, bool narrow,
                               uint32_t r, uint32_t g)
{
    const uint32_t blocks = (cols + 255) / 256;
    if (r >= outs || g >= blocks * 32) return 0;
    const uint32_t within = g % 32;
    const uint8_t *at = planes + ((size_t)(r / 2) * blocks + g / 32) * (narrow ? 64 : 128) +
                        (16 * (within >> 1 & 3) + 4 * (within >> 3) + 2 * (within & 1) + (r & 1 ? 0 : 1));
    const uint32_t label = at[0];
    if (narrow) return tables.e81b_code[label];
    const uint32_t turned = at[64], p = (uint32_t)__popc(turned) & 1, pattern = tables.pattern[label];
    const uint32_t twos = (label & 0x88u) == 0x08u ? 1u << (label & 7u) : 0;
    const uint32_t signs = turned ^ p ^ (tables.ones[label] & ~twos) ^ (uint32_t)tables.odd[pattern] << 7;
    return pattern | (tables.sign_byte[signs & 255] ^ p) << 8;
}

__global__ void __launch_bounds__(256) repack_kernel(const cuda_plane_tables *tables, uint32_t outs, uint32_t cols, bool narrow,
                                                     const uint8_t *planes, uint4 *data, size_t count)
{
    const size_t i = (size_t)blockIdx.x * 256 + threadIdx.x;
    if (i >= count) return;
    const uint32_t steps = steps_of(cols, narrow), lane = (uint32_t)(i % 32), g = lane / 4, t = lane % 4;
    const uint32_t step = (uint32_t)(i / 32 % steps), row = (uint32_t)(i / 32 / steps) * CUDA_E8P_ROWS + g;
    uint32_t word[4];
    for (uint32_t tile = 0; tile < 2; tile++)
        for (uint32_t part = 0; part < 2; part++) { // X and Y, or the chunks
            uint32_t v = 0;
            for (uint32_t c = 0; c < (narrow ? 4u : 2u); c++) {
                const uint32_t r = row + tile * 16 + (c & 1) * 8;
                const uint32_t group = narrow ? step * 16 + part * 8 + (c >> 1) * 4 + t : step * 8 + part * 4 + t;
                v |= plane_code(*tables, planes, outs, cols, narrow, r, group) << (narrow ? 8 * c : 16 * c);
            }
            word[tile * 2 + part] = v;
        }
    data[i] = make_uint4(word[0], word[1], word[2], word[3]);
}

// --- many rows: int8 activations ---

// A block of threads computes 128 outputs of 64 rows: 4 warps of outputs by 2 of rows; a warp 32 outputs of 32 rows.
constexpr int TILE_ROWS = 64, TILE_GROUPS = 4, TILE_WARPS = 8, TILE_COLUMNS = 256;
constexpr int TILE_STRIDE = TILE_COLUMNS + 32; // bytes of a row of activations; the padding keeps eight rows in different banks

struct tile_product {
    cuda_e8p w;
    const int8_t *q;
    const float *scale;
    const int32_t *sum;
    float *y;
    size_t stride, ldy, rows;
    uint32_t groups;
    bool narrow;
};

__global__ void __launch_bounds__(TILE_WARPS * 32, 1) tile_kernel(const __grid_constant__ tile_product p)
{
    extern __shared__ __align__(1024) uint8_t shared[];
    uint8_t *tables = shared;
    int8_t *x = reinterpret_cast<int8_t *>(shared + PAIR_BYTES + (p.narrow ? NARROW_BYTES : 0)); // [2][TILE_ROWS][TILE_STRIDE]
    const int lane = (int)threadIdx.x & 31, warp = (int)threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
    const uint32_t lane4 = (uint32_t)lane * 4;
    const uint32_t group = min(blockIdx.x * TILE_GROUPS + (uint32_t)(warp & 3), p.groups - 1);
    const size_t first_row = (size_t)blockIdx.y * TILE_ROWS;
    const int half = warp >> 2, slabs = (int)((p.w.cols + TILE_COLUMNS - 1) / TILE_COLUMNS);

    auto load_slab = [&](int slab, int buffer) {
        for (int i = (int)threadIdx.x; i < TILE_ROWS * (TILE_COLUMNS / 16); i += TILE_WARPS * 32) {
            const int row = i / (TILE_COLUMNS / 16), at = i % (TILE_COLUMNS / 16) * 16;
            int8_t *to = x + (buffer * TILE_ROWS + row) * TILE_STRIDE + at;
            if (first_row + (size_t)row < p.rows)
                copy_async16(to, p.q + (first_row + (size_t)row) * p.stride + (size_t)slab * TILE_COLUMNS + at);
            else
                *reinterpret_cast<uint4 *>(to) = make_uint4(0, 0, 0, 0);
        }
    };
    fill_tables(tables, p.w.tables, p.narrow);
    wait_for_previous();

    float y[2][4][4]; // [tile][eight rows][fragment]: the terms so far
    const bool merged = p.w.merged.on != 0;
    const uint4 *second = static_cast<const uint4 *>(p.w.stage[1].data) + lane;
    if (merged) second += (size_t)group * steps_of(p.w.cols, p.w.stage[1].narrow) * 32;
    for (int stage = 0; stage < (merged ? 1 : (int)p.w.stages); stage++) {
        const bool narrow = p.w.stage[stage].narrow != 0;
        const uint32_t steps = steps_of(p.w.cols, narrow);
        const uint4 *codes = static_cast<const uint4 *>(p.w.stage[stage].data) + (size_t)group * steps * 32 + lane;
        int sum[2][4][4];
#pragma unroll
        for (int i = 0; i < 32; i++) sum[i >> 4][i >> 2 & 3][i & 3] = 0;
        auto chunk = [&](const uint32_t(&low)[2][4], const uint32_t(&high)[2][4], const int8_t *columns_at) {
#pragma unroll
            for (int n = 0; n < 4; n++) {
                const columns c = load_columns(columns_at + n * 8 * TILE_STRIDE, t);
#pragma unroll
                for (int tile = 0; tile < 2; tile++) {
                    multiply(sum[tile][n], low[tile], c.even_x, c.even_y);
                    multiply(sum[tile][n], high[tile], c.odd_x, c.odd_y);
                }
            }
        };
        __syncthreads(); // the buffers are free
        load_slab(0, 0);
        uint4 next = stream16(codes);
        for (int slab = 0; slab < slabs; slab++) {
            copies_done();
            __syncthreads();
            if (slab + 1 < slabs) load_slab(slab + 1, (slab + 1) & 1);
            const int8_t *mine = x + ((slab & 1) * TILE_ROWS + half * 32 + g) * TILE_STRIDE;
            const uint32_t per_slab = narrow ? 2 : 4;
            for (uint32_t s = 0; s < per_slab && (uint32_t)slab * per_slab + s < steps; s++) {
                const uint32_t step = (uint32_t)slab * per_slab + s;
                const uint4 word = next;
                if (step + 1 < steps) next = stream16(codes + (size_t)(step + 1) * 32);
                uint32_t low[2][4], high[2][4];
                if (merged) {
                    const bool half_words = p.w.stage[1].narrow != 0;
                    const uint4 v = stream16(second + (size_t)(half_words ? step / 2 : step) * 32);
                    const uint32_t first = half_words && step % 2 ? v.y : v.x, other = half_words && step % 2 ? v.w : v.z;
                    decode_merged(tables, lane4, half_words, p.w.merged.second, word.x, word.y, first, v.y, low[0], high[0]);
                    decode_merged(tables, lane4, half_words, p.w.merged.second, word.z, word.w, other, v.w, low[1], high[1]);
                    chunk(low, high, mine + s * 64);
                } else if (!narrow) {
                    decode_wide(tables, lane4, word.x, word.y, low[0], high[0]);
                    decode_wide(tables, lane4, word.z, word.w, low[1], high[1]);
#pragma unroll
                    for (int i = 0; i < 8; i++) high[i >> 2][i & 3] >>= 4; // here one sum serves both
                    chunk(low, high, mine + s * 64);
                } else {
#pragma unroll
                    for (int part = 0; part < 2; part++) {
                        decode_narrow(tables + PAIR_BYTES, lane4, part ? word.y : word.x, low[0], high[0]);
                        decode_narrow(tables + PAIR_BYTES, lane4, part ? word.w : word.z, low[1], high[1]);
#pragma unroll
                        for (int i = 0; i < 8; i++) high[i >> 2][i & 3] >>= 4;
                        chunk(low, high, mine + s * 128 + part * 64);
                    }
                }
            }
        }
#pragma unroll
        for (int i = 0; i < 32; i++) {
            const int tile = i >> 4, n = i >> 2 & 3, j = i & 3;
            const size_t row = first_row + (size_t)(half * 32 + n * 8 + t * 2 + (j & 1));
            const int q = row < p.rows ? p.sum[row] : 0;
            const float term = merged ? merged_term(p.w.merged.scale, sum[tile][n][j], q)
                                      : stage_term(narrow, p.w.stage[stage].scale, stage_dot(narrow, sum[tile][n][j], q));
            y[tile][n][j] = stage == 0 ? term : __fadd_rn(y[tile][n][j], term);
        }
    }
    if (blockIdx.x * TILE_GROUPS + (uint32_t)(warp & 3) >= p.groups) return;
#pragma unroll
    for (int i = 0; i < 32; i++) {
        const int tile = i >> 4, n = i >> 2 & 3, j = i & 3;
        const size_t row = first_row + (size_t)(half * 32 + n * 8 + t * 2 + (j & 1));
        const size_t out = (size_t)group * CUDA_E8P_ROWS + (size_t)(tile * 16 + g + (j >> 1) * 8);
        if (row < p.rows && out < p.w.outs) p.y[row * p.ldy + out] = __fmul_rn(y[tile][n][j], p.scale[row]);
    }
}

// --- f32 activations ---

// A block of threads owns 32 outputs; its 8 warps share the columns, and their sums are added in the order of the warps.
constexpr int PLAIN_WARPS = 8;

// sum[row g, g + 8, g + 16, g + 24 of the group][r] += u x over one step of codes.
template <int ROWS, bool NARROW>
__device__ __forceinline__ void plain_step(const uint32_t *tables, const uint4 &code, const float *x, size_t stride,
                                           float (&sum)[4][ROWS])
{
    const uint32_t word[4] = {code.x, code.y, code.z, code.w};
    constexpr int CODES = NARROW ? 4 : 2; // of a word
#pragma unroll
    for (int i = 0; i < 4 * CODES; i++) {
        const int at = i / CODES, c = i % CODES, slot = at / 2 * 2 + (c & 1);
        const uint32_t bits = word[at] >> (NARROW ? 8 * c : 16 * c);
        const uint32_t nibbles =
            NARROW ? __ldg(tables + 512 + (bits & 255)) : __ldg(tables + (bits & 255)) ^ __ldg(tables + 256 + (bits >> 8 & 255));
        const int column = NARROW ? at % 2 * 64 + c / 2 * 32 : at % 2 * 32;
#pragma unroll
        for (int j = 0; j < 8; j++) {
            const int u = (int)(nibbles >> (4 * j) & 15);
            const float v = (float)(NARROW ? u - 4 : 2 * u - 15);
#pragma unroll
            for (int r = 0; r < ROWS; r++) sum[slot][r] = fmaf(v, __ldg(x + r * stride + column + j), sum[slot][r]);
        }
    }
}

template <int ROWS>
__global__ void __launch_bounds__(PLAIN_WARPS * 32)
    plain_kernel(const __grid_constant__ cuda_e8p w, const float *x, size_t stride, float *y, size_t ldy)
{
    __shared__ float part[PLAIN_WARPS][CUDA_E8P_ROWS][ROWS];
    const int lane = (int)threadIdx.x & 31, warp = (int)threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
    float total[4][ROWS]; // rows g, g + 8, g + 16, g + 24 of the group
#pragma unroll
    for (int i = 0; i < 4 * ROWS; i++) total[i / ROWS][i % ROWS] = 0.0f;
    for (uint32_t stage = 0; stage < w.stages; stage++) {
        const bool narrow = w.stage[stage].narrow != 0;
        const uint32_t steps = steps_of(w.cols, narrow);
        const uint4 *codes = static_cast<const uint4 *>(w.stage[stage].data) + (size_t)blockIdx.x * steps * 32 + lane;
        float sum[4][ROWS];
#pragma unroll
        for (int i = 0; i < 4 * ROWS; i++) sum[i / ROWS][i % ROWS] = 0.0f;
        for (uint32_t step = (uint32_t)warp; step < steps; step += PLAIN_WARPS) {
            const uint4 code = codes[(size_t)step * 32];
            if (narrow)
                plain_step<ROWS, true>(w.tables, code, x + step * 128 + 8 * t, stride, sum);
            else
                plain_step<ROWS, false>(w.tables, code, x + step * 64 + 8 * t, stride, sum);
        }
        const float unit = w.stage[stage].scale * (narrow ? 0.5f : 0.25f);
#pragma unroll
        for (int i = 0; i < 4 * ROWS; i++) total[i / ROWS][i % ROWS] = fmaf(unit, sum[i / ROWS][i % ROWS], total[i / ROWS][i % ROWS]);
    }
#pragma unroll
    for (int i = 0; i < 4 * ROWS; i++) {
        float v = total[i / ROWS][i % ROWS];
        v += __shfl_xor_sync(0xffffffffu, v, 1);
        v += __shfl_xor_sync(0xffffffffu, v, 2);
        if (t == 0) part[warp][g + 8 * (i / ROWS)][i % ROWS] = v;
    }
    __syncthreads();
    for (int i = (int)threadIdx.x; i < CUDA_E8P_ROWS * ROWS; i += PLAIN_WARPS * 32) {
        const int out = i / ROWS, r = i % ROWS;
        float v = 0.0f;
        for (int n = 0; n < PLAIN_WARPS; n++) v += part[n][out][r];
        const uint32_t at = blockIdx.x * CUDA_E8P_ROWS + (uint32_t)out;
        if (at < w.outs) y[(size_t)r * ldy + at] = v;
    }
}

} // namespace

size_t cuda_e8p_stage_bytes(uint32_t outs, uint32_t cols, bool narrow)
{
    return (size_t)div_up(outs, CUDA_E8P_ROWS) * steps_of(cols, narrow) * CUDA_E8P_STEP;
}

void cuda_repack_stage(cudaStream_t stream, const struct cuda_plane_tables *tables, uint32_t outs, uint32_t cols, bool narrow,
                       const void *planes, void *data)
{
    const size_t count = cuda_e8p_stage_bytes(outs, cols, narrow) / 16;
    if (count == 0) return;
    repack_kernel<<<div_up(count, 256), 256, 0, stream>>>(tables, outs, cols, narrow, static_cast<const uint8_t *>(planes),
                                                           static_cast<uint4 *>(data), count);
}

void cuda_product_e8p_tile(cudaStream_t stream, const struct cuda_e8p *w, const int8_t *q, size_t stride, const float *scale,
                           const int32_t *sum, size_t rows, float *y, size_t ldy)
{
    tile_product p = {*w, q, scale, sum, y, stride, ldy, rows, div_up(w->outs, CUDA_E8P_ROWS), false};
    for (uint32_t k = 0; k < w->stages; k++) p.narrow = p.narrow || w->stage[k].narrow;
    const int shared = PAIR_BYTES + (p.narrow ? NARROW_BYTES : 0) + 2 * TILE_ROWS * TILE_STRIDE;
    cudaFuncSetAttribute(tile_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
    const dim3 grid(div_up(p.groups, TILE_GROUPS), div_up(rows, TILE_ROWS));
    tile_kernel<<<grid, TILE_WARPS * 32, shared, stream>>>(p);
}

void cuda_product_e8p_f32(cudaStream_t stream, const struct cuda_e8p *w, const float *x, size_t stride, size_t rows, float *y,
                          size_t ldy)
{
    const unsigned grid = div_up(w->outs, CUDA_E8P_ROWS), threads = PLAIN_WARPS * 32;
    while (rows > 0) {
        const size_t part = rows >= 4 ? 4 : rows >= 2 ? 2 : 1;
        if (part == 4) plain_kernel<4><<<grid, threads, 0, stream>>>(*w, x, stride, y, ldy);
        if (part == 2) plain_kernel<2><<<grid, threads, 0, stream>>>(*w, x, stride, y, ldy);
        if (part == 1) plain_kernel<1><<<grid, threads, 0, stream>>>(*w, x, stride, y, ldy);
        rows -= part;
        x += part * stride;
        y += part * ldy;
    }
}
