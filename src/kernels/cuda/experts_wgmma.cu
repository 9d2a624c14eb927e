// Products of all experts of a mixture in one launch: MXFP4 weights by bf16 rows, and their transposes, on the tensor cores of sm_90a.
// A resident block takes one piece of work after the other: 256 outputs by a tile of one expert's rows. Of its three groups of four
// warps one gathers rows, words and scales into a ring in shared memory, two decode words into the registers that wgmma takes its
// weights from, while the products before run. Weights are a quarter of what activations are, so that a piece has many outputs and few
// rows; how many rows its wgmma has is chosen tile by tile.
//
// Transposed, an output is a column of the weights: what decodes to 8 outputs by 8 columns is turned in registers by movmatrix. So both
// products read the same bytes.
#include "launch_experts.h"
#include "wgmma_rows.cuh"

namespace {

constexpr int CONSUMERS = 2, THREADS = (CONSUMERS + 1) * 128, OUTS = 128 * CONSUMERS; // outputs of a piece
constexpr int STEP = 32, TILE = 16, WORDS = 4; // columns and outputs of a unit of the packed layout, words of an output in it
constexpr int UNITS = OUTS / TILE * 2, UNIT_BYTES = WORDS * TILE * 4; // of a piece's weights: 64 columns of what is reduced
// A stage of the ring: rows, words, scales.
constexpr int MOST = CUDA_EXPERT_TILE_ROWS;
constexpr int WORDS_AT = MOST * PIECE_WIDTH, SCALES_AT = WORDS_AT + UNITS * UNIT_BYTES;
constexpr int RING_BYTES = (SCALES_AT + UNITS * TILE + 1023) / 1024 * 1024, DEPTH = 8; // aligned as wgmma's swizzle wants it

struct grouped {
    const cuda_expert *experts;
    const cuda_expert_tile *tiles;
    const int32_t *count, *order;
    cuda_expert_rows rows;
    void *y;
    size_t ldy;
    bool add;
    const uint16_t *h, *matrix; // of an update, or NULL
    size_t step;                // of matrix, from expert to expert
    int rank;
    int units;                  // of 32 columns, of the weights
    int tiles_of_outs;          // of 16 outputs, of the weights
    int reduced, wide;          // columns of x, numbers of a row of y
    int pieces_wide;            // of OUTS
};

// The columns of 32 as codes decode into fragments: first 0 2 8 10 16 18 24 26, then 1 3 9 11 and so on, 4 6 12 14, 5 7 13 15.
__global__ void __launch_bounds__(256) columns_kernel(uint4 *to, const uint16_t *from, size_t stride, size_t groups, int of_row)
{
    const size_t i = (size_t)blockIdx.x * 256 + threadIdx.x;
    wait_for_previous();
    if (i >= groups) return;
    const uint4 *at = reinterpret_cast<const uint4 *>(from + i / (size_t)of_row * stride + i % (size_t)of_row * STEP);
    uint32_t out[4][4];
#pragma unroll
    for (int t = 0; t < 4; t++) {
        const uint4 v = __ldg(at + t);
        out[0][t] = __byte_perm(v.x, v.y, 0x5410u), out[1][t] = __byte_perm(v.x, v.y, 0x7632u);
        out[2][t] = __byte_perm(v.z, v.w, 0x5410u), out[3][t] = __byte_perm(v.z, v.w, 0x7632u);
    }
#pragma unroll
    for (int c = 0; c < 4; c++) to[4 * i + c] = make_uint4(out[c][0], out[c][1], out[c][2], out[c][3]);
}

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

constexpr int PIECE_COLUMNS = PIECE_WIDTH / 2;
constexpr int SKEW = 2; // pieces that the second group begins later

__device__ __forceinline__ uint32_t times(uint32_t a, uint32_t b)
{
    uint32_t r;
    asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
    return r;
}
// 2^(b - 127), twice.
__device__ __forceinline__ uint32_t scale_pair(uint32_t b)
{
    return max(b << 7, 0x40u) * 0x10001u; // 255, a NaN, is refused where weights are loaded
}
// The nibbles 3 and 7 of v as bf16, as blocks_wgmma.cu decodes them.
__device__ __forceinline__ uint32_t decode_pair(uint32_t v, uint32_t scale)
{
    return times(times((v & 0x80008000u) | (v >> 6 & 0x01c001c0u), 0x7e807e80u), scale);
}
__device__ __forceinline__ uint32_t turned(uint32_t v)
{
    uint32_t r;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(r) : "r"(v));
    return r;
}
__device__ __forceinline__ uint32_t bf16_pair(float low, float high)
{
    uint32_t r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
}

// --- the ring ---

struct ring {
    uint8_t *x;
    uint64_t *full, *empty; // [DEPTH]
};
// Waits for a stage. Rows were written by threads: wgmma sees them behind a fence.
__device__ __forceinline__ void wait_for_stage(uint64_t *full, int parity)
{
    barrier_wait(full, parity);
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
struct place {
    int at, parity;
    __device__ __forceinline__ void next()
    {
        if (++at == DEPTH) at = 0, parity ^= 1;
    }
};

__device__ __forceinline__ void copy16(uint32_t to, const void *from, bool valid)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(valid ? 16 : 0) : "memory");
}

// The group that brings rows and weights: thread 8r + c has the 16-byte word c of the rows r, r + 16, ...; 16u + c has the 16-byte word c
// of the units u, u + 8, ... It is alone on its scheduler, so that what counts is how few instructions depend on each other: all
// addresses are pointers that move on.
template <bool BACK> __device__ __forceinline__ void bring(const grouped &p, const ring &s)
{
    constexpr int EACH = MOST / 16, WORD_PARTS = UNITS / 8;
    const int id = (int)threadIdx.x - CONSUMERS * 128, c = id & 7, r = id >> 3;
    const int pieces = (p.reduced + PIECE_COLUMNS - 1) / PIECE_COLUMNS, jobs = *p.count * p.pieces_wide;
    const uint32_t row_at = (uint32_t)(r * PIECE_WIDTH + ((c ^ (r & 7)) << 4)), words_at = (uint32_t)(WORDS_AT + 16 * id),
                   scales_at = (uint32_t)(SCALES_AT + TILE * id);
    place to = {0, 1};
    auto commit = [&]() { // arrives when this thread's copies are there
        asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(shared_address(s.full + to.at)) : "memory");
        to.next();
    };
    for (int job = (int)blockIdx.x; job < jobs; job += (int)gridDim.x) {
        const cuda_expert_tile tile = p.tiles[job / p.pieces_wide];
        const cuda_expert e = p.experts[tile.expert];
        const int wide = job % p.pieces_wide;
        const uint16_t *from[EACH];
#pragma unroll
        for (int i = 0; i < EACH; i++) { // a row beyond the last is the last again, and goes nowhere
            const int at = tile.first + min(r + 16 * i, tile.rows - 1);
            const size_t row = p.rows.per_row ? (size_t)((uint32_t)p.order[at] / p.rows.per_row) : (size_t)at;
            from[i] = p.rows.x + row * p.rows.stride + 8 * c;
        }
        // A thread's units: forward, tiles of outputs 4 apart, of one of a piece's two steps; back, one of 8 steps of columns, of a piece's
        // four tiles. Outputs beyond the last are the last again, and go nowhere.
        const uint32_t *words[WORD_PARTS];
        const uint8_t *scales;
        if (BACK) {
            const int step = wide * (OUTS / STEP), last = p.units - 1;
#pragma unroll
            for (int i = 0; i < WORD_PARTS; i++)
                words[i] = e.data + ((size_t)i * (size_t)p.units + (size_t)min(step + id / 16, last)) * (WORDS * TILE) + id % 16 * 4;
            scales = e.scales + ((size_t)(id / 8) * (size_t)p.units + (size_t)min(step + id % 8, last)) * TILE;
        } else {
            const int first = wide * (OUTS / TILE), last = p.tiles_of_outs - 1;
#pragma unroll
            for (int i = 0; i < WORD_PARTS; i++)
                words[i] = e.data + ((size_t)min(first + id / 32 + 4 * i, last) * (size_t)p.units + (size_t)(id / 16 % 2)) * (WORDS * TILE) + id % 16 * 4;
            scales = e.scales + ((size_t)min(first + id / 2, last) * (size_t)p.units + (size_t)(id % 2)) * TILE;
        }
        const size_t on = BACK ? 4 * (size_t)p.units : 2; // units of a piece
        for (int piece = 0; piece < pieces; piece++) {
            barrier_wait(s.empty + to.at, to.parity);
            const uint32_t stage = shared_address(s.x) + (uint32_t)(to.at * RING_BYTES);
            const bool valid = piece * PIECE_COLUMNS + 8 * c < p.reduced;
#pragma unroll
            for (int i = 0; i < EACH; i++) {
                if (16 * i < tile.rows) copy16(stage + row_at + (uint32_t)(16 * i * PIECE_WIDTH), from[i], valid);
                from[i] += PIECE_COLUMNS;
            }
#pragma unroll
            for (int i = 0; i < WORD_PARTS; i++) { // what lies beyond the last column is 0, as its rows are
                copy16(stage + words_at + (uint32_t)(8 * i * UNIT_BYTES), words[i], BACK ? 4 * piece + i < p.tiles_of_outs : 2 * piece + id / 16 % 2 < p.units);
                words[i] += on * (WORDS * TILE);
            }
            if (id < UNITS) copy16(stage + scales_at, scales, BACK ? 4 * piece + id / 8 < p.tiles_of_outs : 2 * piece + id % 2 < p.units);
            scales += on * TILE;
            commit();
        }
        if (!p.h) continue;
        barrier_wait(s.empty + to.at, to.parity);
        const uint32_t stage = shared_address(s.x) + (uint32_t)(to.at * RING_BYTES);
#pragma unroll
        for (int i = 0; i < EACH; i++)
            if (16 * i < tile.rows && c < CUDA_EXPERT_RANK / 8)
                copy16(stage + row_at + (uint32_t)(16 * i * PIECE_WIDTH),
                       p.h + (size_t)(tile.first + min(r + 16 * i, tile.rows - 1)) * CUDA_EXPERT_RANK + 8 * c, true);
        commit();
    }
    asm volatile("cp.async.wait_all;" ::: "memory");
}

// --- products ---

// What a lane has of 32 columns of what is reduced: of two units the words and scales of their outputs g and g + 8. Forward they are
// units of two tiles of outputs; back, of the two tiles that are reduced.
struct slot {
    uint32_t word[2][2], scale[2][2];
};
template <bool BACK> __device__ __forceinline__ void read(slot &to, const uint8_t *stage, int step, int group, int warp, int g, int t)
{
#pragma unroll
    for (int m = 0; m < 2; m++) {
        const int unit = BACK ? (2 * step + m) * 8 + group * 4 + warp : (group * 8 + m * 4 + warp) * 2 + step;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            to.word[m][i] = *reinterpret_cast<const uint32_t *>(stage + WORDS_AT + unit * UNIT_BYTES + 4 * (t * TILE + g + 8 * i));
            to.scale[m][i] = stage[SCALES_AT + unit * TILE + g + 8 * i];
        }
    }
}
// The fragments of 16 columns, of both times 64 outputs; half: which 16 of the step.
template <bool BACK> __device__ __forceinline__ void decode(uint32_t (&to)[2][4], const slot &s, int half)
{
    if (BACK) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const uint32_t scale = scale_pair(s.scale[half][i]), w = s.word[half][i];
            to[0][2 * i] = turned(decode_pair(w << 12, scale)), to[0][2 * i + 1] = turned(decode_pair(w << 4, scale));
            to[1][2 * i] = turned(decode_pair(w << 8, scale)), to[1][2 * i + 1] = turned(decode_pair(w, scale));
        }
    } else {
#pragma unroll
        for (int m = 0; m < 2; m++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const uint32_t scale = scale_pair(s.scale[m][i]), w = s.word[m][i];
                to[m][i] = decode_pair(half ? w << 8 : w << 12, scale);
                to[m][2 + i] = decode_pair(half ? w : w << 4, scale);
            }
    }
}
// The output, among those of a row of y, that row g + 8 i of a warp's 16 is, of the m-th 64.
template <bool BACK> __device__ __forceinline__ int output_of(int piece, int group, int warp, int g, int m, int i)
{
    if (BACK) return piece * OUTS + group * 128 + warp * 32 + 8 * (g >> 1) + 4 * m + 2 * (g & 1) + i;
    return piece * OUTS + group * 128 + m * 64 + warp * 16 + g + 8 * i;
}
// An update's fragments: matrix [rank][wide].
template <bool BACK>
__device__ __forceinline__ void update_fragments(uint32_t (&to)[2][4], const grouped &p, int expert, int piece, int group, int warp, int g, int t)
{
    const uint16_t *matrix = p.matrix + (size_t)expert * p.step;
#pragma unroll
    for (int m = 0; m < 2; m++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int rank = 2 * t + i / 2 * 8;
            const uint16_t *at = matrix + (size_t)rank * (size_t)p.wide + min(output_of<BACK>(piece, group, warp, g, m, i % 2), p.wide - 1);
            to[m][i] = rank < p.rank ? __ldg(at) : 0u;
            if (rank + 1 < p.rank) to[m][i] |= (uint32_t)__ldg(at + p.wide) << 16;
        }
}

// Sums into y; a lane has, of the rows 8j + 2t and the next, the outputs of output_of.
template <bool NARROW, int N>
__device__ __forceinline__ void store_back(const grouped &p, const cuda_expert_tile &tile, int piece, int group, int warp, int g, int t,
                                           const float (&d)[2][N / 2])
{
    // an even g has 0, 1 and 4, 5 of eight outputs, the next 2, 3 and 6, 7: they swap, so that each has four neighbours
    const bool odd = g & 1;
    const int out = output_of<true>(piece, group, warp, g & 6, 0, 0) + 4 * (g & 1);
#pragma unroll
    for (int j = 0; j < N / 8; j++)
#pragma unroll
        for (int b = 0; b < 2; b++) {
            const float a0 = d[0][4 * j + b], a1 = d[0][4 * j + 2 + b], c0 = d[1][4 * j + b], c1 = d[1][4 * j + 2 + b];
            const float s0 = __shfl_xor_sync(0xffffffffu, odd ? a0 : c0, 4), s1 = __shfl_xor_sync(0xffffffffu, odd ? a1 : c1, 4);
            const float v0 = odd ? s0 : a0, v1 = odd ? s1 : a1, v2 = odd ? c0 : s0, v3 = odd ? c1 : s1;
            const int row = 8 * j + 2 * t + b;
            if (row >= tile.rows || out >= p.wide) continue;
            const size_t at = (size_t)(tile.first + row) * p.ldy + (size_t)out;
            if (NARROW)
                *reinterpret_cast<uint2 *>(static_cast<uint16_t *>(p.y) + at) = make_uint2(bf16_pair(v0, v1), bf16_pair(v2, v3));
            else {
                float4 *to = reinterpret_cast<float4 *>(static_cast<float *>(p.y) + at), v = make_float4(v0, v1, v2, v3);
                if (p.add) {
                    const float4 before = *to;
                    v.x += before.x, v.y += before.y, v.z += before.z, v.w += before.w;
                }
                *to = v;
            }
        }
}

template <bool NARROW, int N>
__device__ __forceinline__ void store_forward(const grouped &p, const cuda_expert_tile &tile, int piece, int group, int warp, int g, int t,
                                              const float (&d)[2][N / 2])
{
#pragma unroll
    for (int m = 0; m < 2; m++) {
        const int out = output_of<false>(piece, group, warp, 0, m, 0);
#pragma unroll
        for (int j = 0; j < N / 8; j++) {
            if (NARROW) { // turned: lane 4g + t has of row g the outputs 2t and 2t + 1, and 8 further on
                const uint32_t low = turned(bf16_pair(d[m][4 * j], d[m][4 * j + 1])), high = turned(bf16_pair(d[m][4 * j + 2], d[m][4 * j + 3]));
                const int row = 8 * j + g;
                if (row >= tile.rows || out >= p.wide) continue;
                uint16_t *y = static_cast<uint16_t *>(p.y) + (size_t)(tile.first + row) * p.ldy + out + 2 * t;
                *reinterpret_cast<uint32_t *>(y) = low;
                *reinterpret_cast<uint32_t *>(y + 8) = high;
            } else {
#pragma unroll
                for (int b = 0; b < 2; b++) {
                    const int row = 8 * j + 2 * t + b;
                    if (row >= tile.rows || out >= p.wide) continue;
                    float *y = static_cast<float *>(p.y) + (size_t)(tile.first + row) * p.ldy + out + g;
                    y[0] = d[m][4 * j + b], y[8] = d[m][4 * j + 2 + b];
                }
            }
        }
    }
}

template <int N> __device__ __forceinline__ void two_products(float (&d)[2][N / 2], const uint32_t (&a)[2][4], uint64_t rows)
{
    wgmma_begin();
    wgmma_rows(d[0], a[0], rows);
    wgmma_rows(d[1], a[1], rows);
    wgmma_end();
}

// 256 outputs, this group's 128 of them, by a tile of up to N rows.
template <bool BACK, bool NARROW, int N>
__device__ __forceinline__ void multiply(const grouped &p, const ring &s, const cuda_expert_tile &tile, int piece_wide, place &from)
{
    const int group = (int)threadIdx.x >> 7, warp = (int)threadIdx.x >> 5 & 3, lane = (int)threadIdx.x & 31, g = lane >> 2, t = lane & 3;
    uint32_t a[2][2][4]; // of 16 columns and of the 16 before
    float d[2][N / 2];
    // set, not begun by the first product: sums that one tile's code read unset would be alive in the others'
#pragma unroll
    for (int i = 0; i < N / 2; i++) d[0][i] = d[1][i] = 0;
    slot now;
    wait_for_stage(s.full + from.at, from.parity);
    read<BACK>(now, s.x + from.at * RING_BYTES, 0, group, warp, g, t);
    decode<BACK>(a[0], now, 0);
    for (int left = (p.reduced + PIECE_COLUMNS - 1) / PIECE_COLUMNS; left > 0; left--) {
        const uint8_t *stage = s.x + from.at * RING_BYTES;
        uint64_t *done = s.empty + from.at;
        two_products<N>(d, a[0], piece_slice(stage, 0));
        decode<BACK>(a[1], now, 1);
        read<BACK>(now, stage, 1, group, warp, g, t);
        wgmma_wait();
        two_products<N>(d, a[1], piece_slice(stage, 1));
        decode<BACK>(a[0], now, 0);
        wgmma_wait();
        two_products<N>(d, a[0], piece_slice(stage, 2));
        decode<BACK>(a[1], now, 1);
        wgmma_wait();
        two_products<N>(d, a[1], piece_slice(stage, 3));
        from.next();
        if (left > 1) {
            wait_for_stage(s.full + from.at, from.parity);
            read<BACK>(now, s.x + from.at * RING_BYTES, 0, group, warp, g, t);
            decode<BACK>(a[0], now, 0);
        }
        wgmma_wait();
        if (threadIdx.x % 128 == 0) barrier_arrive(done);
    }
    if (p.h) {
        update_fragments<BACK>(a[0], p, tile.expert, piece_wide, group, warp, g, t);
        wait_for_stage(s.full + from.at, from.parity);
        two_products<N>(d, a[0], piece_slice(s.x + from.at * RING_BYTES, 0));
        wgmma_wait();
        if (threadIdx.x % 128 == 0) barrier_arrive(s.empty + from.at);
        from.next();
    }
    if constexpr (BACK)
        store_back<NARROW, N>(p, tile, piece_wide, group, warp, g, t, d);
    else
        store_forward<NARROW, N>(p, tile, piece_wide, group, warp, g, t, d);
}

template <bool BACK, bool NARROW> __device__ __forceinline__ void multiply_tiles(const grouped &p, const ring &s)
{
    const int jobs = *p.count * p.pieces_wide;
    place from = {0, 0};
    // the second group begins later, so that one multiplies while the other stores
    if (SKEW > 0 && threadIdx.x >= 128 && (int)blockIdx.x < jobs && p.reduced > SKEW * PIECE_COLUMNS) barrier_wait(s.full + SKEW, 0);
    cuda_expert_tile next = (int)blockIdx.x < jobs ? p.tiles[(int)blockIdx.x / p.pieces_wide] : cuda_expert_tile();
    for (int job = (int)blockIdx.x; job < jobs; job += (int)gridDim.x) {
        const cuda_expert_tile tile = next;
        const int piece = job % p.pieces_wide;
        if (job + (int)gridDim.x < jobs) next = p.tiles[(job + (int)gridDim.x) / p.pieces_wide];
        switch ((tile.rows + 15) / 16) {
        case 1: multiply<BACK, NARROW, 16>(p, s, tile, piece, from); break;
        case 2: multiply<BACK, NARROW, 32>(p, s, tile, piece, from); break;
        case 3:
        case 4: multiply<BACK, NARROW, 64>(p, s, tile, piece, from); break;
        case 5:
        case 6: multiply<BACK, NARROW, 96>(p, s, tile, piece, from); break;
        case 7: multiply<BACK, NARROW, 112>(p, s, tile, piece, from); break;
        case 8: multiply<BACK, NARROW, 128>(p, s, tile, piece, from); break;
        default: multiply<BACK, NARROW, MOST>(p, s, tile, piece, from); break;
        }
    }
}

template <bool BACK, bool NARROW> __global__ void __launch_bounds__(THREADS, 1) grouped_kernel(const __grid_constant__ grouped p)
{
    extern __shared__ __align__(1024) uint8_t x[];
    __shared__ uint64_t full[DEPTH], empty[DEPTH];
    if (threadIdx.x == 0) {
        for (int i = 0; i < DEPTH; i++) barrier_init(full + i, 128), barrier_init(empty + i, CONSUMERS);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncthreads();
    wait_for_previous();
    const ring s = {x, full, empty};
    if (threadIdx.x >= CONSUMERS * 128) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 56;"); // with 40 its addresses spill: 10%
        bring<BACK>(p, s);
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 224;");
        multiply_tiles<BACK, NARROW>(p, s);
    }
}

#else

template <bool BACK, bool NARROW> __global__ void grouped_kernel(const __grid_constant__ grouped)
{
}

#endif

template <bool BACK, bool NARROW> void start(cudaStream_t stream, const grouped &p, int processors)
{
    launch_early(stream, grouped_kernel<BACK, NARROW>, dim3((unsigned)processors), THREADS, DEPTH * RING_BYTES, p);
}

} // namespace

bool cuda_multiply_experts_fits(void)
{
    int device = 0, major = 0;
    return cudaGetDevice(&device) == cudaSuccess &&
           cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess && major == 9;
}

void cuda_multiply_experts(cudaStream_t stream, const struct cuda_expert_product *p, int processors)
{
    const uint32_t wide = p->back ? p->cols : p->outs;
    const grouped g = {p->experts, p->slots->tiles, p->slots->count, p->slots->order, p->rows, p->y, p->ldy, p->add, p->h, p->matrix, p->step, (int)p->rank,
                       (int)(p->cols / STEP), (int)(p->outs / TILE), (int)(p->back ? p->outs : p->cols), (int)wide, (int)div_up(wide, OUTS)};
    const bool narrow = p->type == CUDA_TYPE_BF16;
    if (p->back)
        narrow ? start<true, true>(stream, g, processors) : start<true, false>(stream, g, processors);
    else
        narrow ? start<false, true>(stream, g, processors) : start<false, false>(stream, g, processors);
}

void cuda_expert_columns(cudaStream_t stream, uint16_t *to, const uint16_t *from, size_t stride, size_t rows, uint32_t cols)
{
    const size_t groups = rows * (cols / STEP);
    launch_early(stream, columns_kernel, dim3(div_up(groups, 256)), 256, 0, reinterpret_cast<uint4 *>(to), from, stride, groups, (int)(cols / STEP));
}
