// E8P products of many rows of int8 activations on the tensor cores of sm_90a: integers, so that the bits are those of the other
// kernels. Two groups of four warps have 64 outputs each, by 256 rows: a lane's codes decode into what wgmma takes from
// registers, while the products of the chunk before run; a further warp has the activations brought.
#include "e8p.cuh"
#include "wgmma.cuh"

namespace {

constexpr int CONSUMERS = 2, OUTS = 64 * CONSUMERS, THREADS = (CONSUMERS + 1) * 128, DEPTH = 4;

struct many_rows {
    cuda_e8p w;
    const uint8_t *x; // arranged: even columns of a chunk of 64, then its odd ones
    const float *scale;
    const int32_t *sum;
    float *y;
    size_t ldy, rows;
    uint32_t groups;
    int pieces; // of a row
    bool narrow;
};

// x [rows / 256, rounded up][pieces][PIECE_BYTES] from q [rows][stride], zero rows beyond; a thread does 32 columns.
__global__ void __launch_bounds__(256) arrange_kernel(uint8_t *x, const int8_t *q, size_t stride, size_t rows, int pieces)
{
    const size_t row = blockIdx.y * (size_t)8 + threadIdx.x / 32; // eight rows of a piece are 1024 bytes
    const int part = (int)(blockIdx.x * 32 + threadIdx.x % 32), piece = part / 4, c = part % 4 / 2 * 4 + part % 2;
    wait_for_previous();
    if (piece >= pieces) return;
    uint4 low = make_uint4(0, 0, 0, 0), high = low;
    const size_t column = (size_t)part * 32;
    if (row < rows && column < stride) { // a row's stride is a multiple of 32
        low = *reinterpret_cast<const uint4 *>(q + row * stride + column);
        high = *reinterpret_cast<const uint4 *>(q + row * stride + column + 16);
    }
    uint8_t *to = x + (row / PIECE_ROWS * (size_t)pieces + (size_t)piece) * PIECE_BYTES;
    const int n = (int)(row % PIECE_ROWS);
    *reinterpret_cast<uint4 *>(to + piece_at(n, c)) = make_uint4(permute(low.x, low.y, 0x6420u), permute(low.z, low.w, 0x6420u),
                                                                  permute(high.x, high.y, 0x6420u), permute(high.z, high.w, 0x6420u));
    *reinterpret_cast<uint4 *>(to + piece_at(n, c + 2)) = make_uint4(permute(low.x, low.y, 0x7531u), permute(low.z, low.w, 0x7531u),
                                                                      permute(high.x, high.y, 0x7531u), permute(high.z, high.w, 0x7531u));
}

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

struct work {
    uint8_t *tables, *x;
    uint64_t *full, *empty;
};

// One stage of this warp's 16 outputs by 256 rows: sum u q. `turn` counts the pieces of all stages. MERGED: both stages as one plane, of which
// NARROW and `seconds` are the second's: sum (p + 128) q.
template <bool NARROW, bool MERGED>
__device__ __forceinline__ void stage_sums(const many_rows &p, const work &s, const uint2 *codes, const uint2 *seconds, int *turn,
                                           int (&d)[128])
{
    const int lane = (int)threadIdx.x & 31;
    const uint32_t lane4 = (uint32_t)lane * 4;
    constexpr bool SHORT = NARROW && !MERGED;
    const int steps = (int)steps_of(p.w.cols, SHORT), second_steps = (int)steps_of(p.w.cols, NARROW), chunks = 2 * p.pieces;
    // the words of a chunk; what lies beyond the last meets activations that are zero
    auto words = [&](int chunk) { return __ldg(codes + (size_t)min(SHORT ? chunk / 2 : chunk, steps - 1) * 64); };
    auto second_words = [&](int chunk) {
        return MERGED ? __ldg(seconds + (size_t)min(NARROW ? chunk / 2 : chunk, second_steps - 1) * 64) : make_uint2(0, 0);
    };
    uint32_t even[2][4], odd[2][4];
    auto decode = [&](int buffer, const uint2 &w, const uint2 &v, int half) {
        if constexpr (MERGED) {
            decode_merged(s.tables, lane4, NARROW, p.w.merged.second, w.x, w.y, NARROW && half ? v.y : v.x, v.y, even[buffer], odd[buffer]);
            return;
        }
        if constexpr (NARROW)
            decode_narrow(s.tables + PAIR_BYTES, lane4, half ? w.y : w.x, even[buffer], odd[buffer]);
        else
            decode_wide(s.tables, lane4, w.x, w.y, even[buffer], odd[buffer]);
#pragma unroll
        for (int i = 0; i < 4; i++) odd[buffer][i] >>= 4;
    };
    uint2 ahead[DEPTH], second[DEPTH];
#pragma unroll
    for (int i = 0; i < DEPTH; i++) ahead[i] = words(i), second[i] = second_words(i);
    decode(0, ahead[0], second[0], 0);
    ahead[0] = words(DEPTH), second[0] = second_words(DEPTH);
    for (int first = 0; first < chunks; first += DEPTH) {
#pragma unroll
        for (int i = 0; i < DEPTH; i++) {
            const int chunk = first + i;
            if (chunk >= chunks) break;
            const int at = *turn % DEPTH;
            if ((i & 1) == 0) barrier_wait(s.full + at, *turn / DEPTH & 1);
            const uint8_t *piece = s.x + at * PIECE_BYTES;
            wgmma_begin();
            wgmma_u8(d, even[i & 1], piece_slice(piece, 2 * (i & 1)), chunk > 0);
            wgmma_u8(d, odd[i & 1], piece_slice(piece, 2 * (i & 1) + 1), 1);
            wgmma_end();
            const int next = (i + 1) % DEPTH; // its words, while the products run
            decode((i + 1) & 1, ahead[next], second[next], (i + 1) & 1);
            ahead[next] = words(chunk + 1 + DEPTH), second[next] = second_words(chunk + 1 + DEPTH);
            wgmma_wait();
            if ((i & 1) == 1) {
                if (threadIdx.x % 128 == 0) barrier_arrive(s.empty + at);
                ++*turn;
            }
        }
    }
}

// How often the activations are read.
__device__ __forceinline__ int planes_of(const many_rows &p)
{
    return p.w.merged.on ? 1 : (int)p.w.stages;
}

__device__ __forceinline__ void bring_pieces(const many_rows &p, const work &s)
{
    const uint8_t *from = p.x + (size_t)blockIdx.x * (size_t)p.pieces * PIECE_BYTES;
    for (int i = 0; i < planes_of(p) * p.pieces; i++) {
        const int at = i % DEPTH;
        if (i >= DEPTH) barrier_wait(s.empty + at, (i / DEPTH - 1) & 1);
        bring_piece(s.x + at * PIECE_BYTES, from + (size_t)(i % p.pieces) * PIECE_BYTES, s.full + at);
    }
}

__device__ __forceinline__ void multiply_pieces(const many_rows &p, const work &s)
{
    const int warp = (int)threadIdx.x >> 5, lane = (int)threadIdx.x & 31, g = lane >> 2, t = lane & 3, stages = planes_of(p);
    const uint32_t group = blockIdx.y * (OUTS / CUDA_E8P_ROWS) + (uint32_t)(warp / 2), tile = (uint32_t)warp & 1;
    const uint32_t out = group * CUDA_E8P_ROWS + tile * 16 + (uint32_t)g;
    const size_t first_row = blockIdx.x * (size_t)PIECE_ROWS;
    auto codes_of = [&](int stage) {
        return static_cast<const uint2 *>(p.w.stage[stage].data) +
               ((size_t)min(group, p.groups - 1) * steps_of(p.w.cols, p.w.stage[stage].narrow != 0) * 32 + (size_t)lane) * 2 + tile;
    };
    int turn = 0, d[128];
    for (int stage = 0; stage < stages; stage++) {
        const bool narrow = p.w.stage[stage].narrow != 0;
        const uint2 *codes = codes_of(stage);
        if (p.w.merged.on && p.w.stage[1].narrow)
            stage_sums<true, true>(p, s, codes, codes_of(1), &turn, d);
        else if (p.w.merged.on)
            stage_sums<false, true>(p, s, codes, codes_of(1), &turn, d);
        else if (narrow)
            stage_sums<true, false>(p, s, codes, codes, &turn, d);
        else
            stage_sums<false, false>(p, s, codes, codes, &turn, d);
        // a stage's terms wait in y for the next one's
#pragma unroll
        for (int j = 0; j < 64; j++) {
            const size_t row = first_row + (size_t)(j / 2 * 8 + 2 * t + j % 2);
            if (row >= p.rows) continue;
            const int q = __ldg(p.sum + row);
            const float scale = stage + 1 == stages ? __ldg(p.scale + row) : 1.0f;
#pragma unroll
            for (int i = 0; i < 2; i++) {
                if (out + (uint32_t)(8 * i) >= p.w.outs) continue;
                float *to = p.y + row * p.ldy + out + 8 * i;
                const int dot = d[j / 2 * 4 + 2 * i + j % 2];
                float term = p.w.merged.on ? merged_term(p.w.merged.scale, dot, q)
                                           : stage_term(narrow, p.w.stage[stage].scale, stage_dot(narrow, dot, q));
                if (stage > 0) term = __fadd_rn(*to, term);
                *to = stage + 1 == stages ? __fmul_rn(term, scale) : term;
            }
        }
    }
}

__global__ void __launch_bounds__(THREADS, 1) many_rows_kernel(const __grid_constant__ many_rows p)
{
    extern __shared__ __align__(1024) uint8_t shared[];
    __shared__ uint64_t full[DEPTH], empty[DEPTH];
    const work s = {shared, shared + PAIR_BYTES + (p.narrow ? NARROW_BYTES : 0), full, empty};
    if (threadIdx.x == 0) {
        for (int i = 0; i < DEPTH; i++) barrier_init(full + i, 1), barrier_init(empty + i, CONSUMERS);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    fill_tables(shared, p.w.tables, p.narrow);
    __syncthreads();
    wait_for_previous();
    if (threadIdx.x >= CONSUMERS * 128) {
        fewer_registers();
        if (threadIdx.x == CONSUMERS * 128) bring_pieces(p, s);
    } else {
        more_registers();
        multiply_pieces(p, s);
    }
}

#else

__global__ void many_rows_kernel(const __grid_constant__ many_rows)
{
}

#endif

} // namespace

size_t cuda_product_e8p_wgmma_rows(uint32_t cols, size_t scratch_bytes)
{
    int device = 0, major = 0;
    if (cudaGetDevice(&device) != cudaSuccess || cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) != cudaSuccess)
        return 0;
    return major == 9 ? scratch_bytes / (PIECE_ROWS * (size_t)div_up(cols, PIECE_WIDTH) * PIECE_WIDTH) * PIECE_ROWS : 0;
}

void cuda_product_e8p_wgmma(cudaStream_t stream, const struct cuda_e8p *w, const int8_t *q, size_t stride, const float *scale,
                            const int32_t *sum, size_t rows, float *y, size_t ldy, void *scratch)
{
    many_rows p = {*w, static_cast<const uint8_t *>(scratch), scale, sum, y, ldy, rows, div_up(w->outs, CUDA_E8P_ROWS),
                   (int)div_up(w->cols, PIECE_WIDTH), false};
    for (uint32_t k = 0; k < w->stages; k++) p.narrow |= w->stage[k].narrow != 0;
    const size_t padded = div_up(rows, PIECE_ROWS) * (size_t)PIECE_ROWS;
    launch_early(stream, arrange_kernel, dim3(div_up((size_t)p.pieces * 4, 32), (unsigned)(padded / 8)), 256, 0,
                 static_cast<uint8_t *>(scratch), q, stride, rows, p.pieces);
    const size_t shared = PAIR_BYTES + (p.narrow ? NARROW_BYTES : 0) + DEPTH * PIECE_BYTES;
    launch_early(stream, many_rows_kernel, dim3((unsigned)(padded / PIECE_ROWS), div_up(w->outs, OUTS)), THREADS, shared, p);
}
