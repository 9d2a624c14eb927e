// What the kernels of attention share: how a row's keys are cut, f16 pages on the tensor cores, and the merge of warps.
#ifndef WALSH_KERNELS_CUDA_ATTENTION_CUH
#define WALSH_KERNELS_CUDA_ATTENTION_CUH

#include "fused.cuh"

namespace {

constexpr int CHUNKS = 64, LEAST = 128; // pieces at most, tokens of one at least
constexpr int TILE = 64;                // tokens of a step
constexpr int HEADS = 8;                // query heads of a block
constexpr int THREADS = 128;
constexpr int DIMS = 8; // dimensions of a thread at most: head_dim <= DIMS * THREADS

struct span {
    uint32_t begin, end, chunk; // tokens [begin, end), in pieces of `chunk`
};
__device__ __forceinline__ span span_of(uint32_t position, uint32_t window)
{
    span s;
    s.begin = window != 0 && position >= window ? position + 1 - window : 0;
    s.end = position + 1;
    const uint32_t even = (s.end - s.begin + CHUNKS - 1) / CHUNKS;
    s.chunk = even > LEAST ? (even + TILE - 1) / TILE * TILE : LEAST;
    return s;
}

__device__ __forceinline__ size_t kv_offset(const cuda_kv_view &kv, uint32_t head, uint32_t token, uint32_t dim)
{
    return ((size_t)head * kv.page_tokens + token % kv.page_tokens) * dim;
}

template <bool HALF> struct element;
template <> struct element<true> {
    typedef uint16_t type;
    static __device__ __forceinline__ float value(uint16_t x) { return f32_from_f16(x); }
};
template <> struct element<false> {
    typedef float type;
    static __device__ __forceinline__ float value(float x) { return x; }
};

// q·k of `count` query heads (q [HEADS][dim] in shared memory) and one token.
template <bool HALF>
__device__ __forceinline__ void scores_of(const float *q, const typename element<HALF>::type *k, uint32_t dim, float (&dot)[HEADS])
{
    constexpr int PIECE = HALF ? 8 : 4;
#pragma unroll
    for (int h = 0; h < HEADS; h++) dot[h] = 0.0f;
    uint32_t d = 0;
    if (dim % PIECE == 0) {
        for (; d < dim; d += PIECE) {
            alignas(16) typename element<HALF>::type raw[PIECE];
            *reinterpret_cast<uint4 *>(raw) = *reinterpret_cast<const uint4 *>(k + d);
#pragma unroll
            for (int h = 0; h < HEADS; h++)
#pragma unroll
                for (int i = 0; i < PIECE; i += 4) {
                    const float4 x = *reinterpret_cast<const float4 *>(q + h * dim + d + i);
                    dot[h] = fmaf(x.x, element<HALF>::value(raw[i]), dot[h]);
                    dot[h] = fmaf(x.y, element<HALF>::value(raw[i + 1]), dot[h]);
                    dot[h] = fmaf(x.z, element<HALF>::value(raw[i + 2]), dot[h]);
                    dot[h] = fmaf(x.w, element<HALF>::value(raw[i + 3]), dot[h]);
                }
        }
        return;
    }
    for (; d < dim; d++) {
        const float x = element<HALF>::value(k[d]);
#pragma unroll
        for (int h = 0; h < HEADS; h++) dot[h] = fmaf(q[h * dim + d], x, dot[h]);
    }
}

struct shared_part {
    float score[HEADS][TILE]; // then weights
    float keep[HEADS];        // what earlier tiles are to be multiplied by
    float maximum[HEADS], sum[HEADS];
};

struct chunk_out {
    float *maximum, *sum; // [head of this block's]
    float *out;           // [head][dim], pieces CHUNKS * dim apart
};

// Tokens [begin, end) for `heads` query heads; q is in shared memory.
template <bool HALF, int HELD>
__device__ __noinline__ void attend(const cuda_kv_view &kv, uint32_t kv_head, uint32_t begin, uint32_t end, uint32_t dim, uint32_t heads,
                       const cuda_attention_shape &shape, const float *q, shared_part &s, const chunk_out &to)
{
    typedef typename element<HALF>::type T;
    const uint32_t tid = threadIdx.x, warp = tid / 32, lane = tid % 32;
    float sum[HEADS][HELD];
#pragma unroll
    for (int i = 0; i < HEADS * HELD; i++) sum[i / HELD][i % HELD] = 0.0f;
    if (tid < HEADS) s.maximum[tid] = -INFINITY, s.sum[tid] = 0.0f;
    for (uint32_t tile = begin; tile < end; tile += TILE) {
        const uint32_t tokens = min((uint32_t)TILE, end - tile);
        __syncthreads(); // q is there, the tile before is done
        if (tid < tokens) {
            const uint32_t token = tile + tid;
            const T *k = static_cast<const T *>(kv.k_pages[token / kv.page_tokens]) + kv_offset(kv, kv_head, token, dim);
            float dot[HEADS];
            scores_of<HALF>(q, k, dim, dot);
#pragma unroll
            for (int h = 0; h < HEADS; h++) {
                float score = shape.scale * dot[h];
                if (shape.soft_cap != 0.0f) score = shape.soft_cap * tanhf(score / shape.soft_cap);
                s.score[h][tid] = score;
            }
        }
        __syncthreads();
        for (uint32_t h = warp; h < heads; h += THREADS / 32) {
            float x[TILE / 32], largest = -INFINITY, add = 0.0f;
#pragma unroll
            for (int i = 0; i < TILE / 32; i++) {
                const uint32_t at = lane + 32 * i;
                x[i] = at < tokens ? s.score[h][at] : -INFINITY;
                largest = fmaxf(largest, x[i]);
            }
#pragma unroll
            for (int i = 16; i > 0; i >>= 1) largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, i));
            const float maximum = fmaxf(s.maximum[h], largest);
#pragma unroll
            for (int i = 0; i < TILE / 32; i++) {
                const uint32_t at = lane + 32 * i;
                const float weight = at < tokens ? expf(x[i] - maximum) : 0.0f;
                s.score[h][at] = weight;
                add += weight;
            }
            add = warp_sum(add);
            __syncwarp();
            if (lane == 0) {
                const float keep = expf(s.maximum[h] - maximum);
                s.keep[h] = keep;
                s.sum[h] = fmaf(s.sum[h], keep, add);
                s.maximum[h] = maximum;
            }
        }
        __syncthreads();
#pragma unroll
        for (int i = 0; i < HEADS * HELD; i++)
            if (i / HELD < (int)heads) sum[i / HELD][i % HELD] *= s.keep[i / HELD];
        for (uint32_t j = 0; j < tokens; j++) {
            const uint32_t token = tile + j;
            const T *v = static_cast<const T *>(kv.v_pages[token / kv.page_tokens]) + kv_offset(kv, kv_head, token, dim);
            float x[HELD];
#pragma unroll
            for (int i = 0; i < HELD; i++) x[i] = tid + i * THREADS < dim ? element<HALF>::value(v[tid + i * THREADS]) : 0.0f;
#pragma unroll
            for (int h = 0; h < HEADS; h++)
                if (h < (int)heads) {
                    const float weight = s.score[h][j];
#pragma unroll
                    for (int i = 0; i < HELD; i++) sum[h][i] = fmaf(weight, x[i], sum[h][i]);
                }
        }
    }
    __syncthreads();
    if (tid < heads) {
        to.maximum[tid * CHUNKS] = s.maximum[tid];
        to.sum[tid * CHUNKS] = s.sum[tid];
    }
#pragma unroll
    for (int h = 0; h < HEADS; h++)
#pragma unroll
        for (int i = 0; i < HELD; i++)
            if (h < (int)heads && tid + i * THREADS < dim)
                to.out[(size_t)h * CHUNKS * dim + tid + i * THREADS] = sum[h][i];
}

// --- f16 pages on the tensor cores ---

// A warp does tiles of 16 tokens, every fourth one of the piece. Scores are Q K^T with the heads as rows: rows 0..7 hold the
// f16 part of each query, rows 8..15 what that leaves of it, so that the sum of both has the precision of f32; so do the
// weights in the product with V. A lane (g = lane / 4, t = lane % 4) reads 16 bytes of a key at dimension 32s + 8t of token
// g, and of a value at 64h + 8g of tokens 2t, 2t + 1, 2t + 8, 2t + 9: whatever order that gives k within a product, both
// of its operands have it.
constexpr int TILE_TOKENS = 16, WARPS = THREADS / 32;
constexpr float WEIGHT_UNIT = 2048.0f; // of the weights in f16, so that small ones keep their bits

__device__ __forceinline__ void multiply(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1)
{
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
// FRESH: some of it was written by this kernel.
template <bool FRESH = false> __device__ __forceinline__ uint4 read_once(const uint16_t *p)
{
    uint4 r;
    if (FRESH)
        asm volatile("ld.global.L1::no_allocate.L2::128B.v4.u32 {%0,%1,%2,%3}, [%4];"
                     : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w)
                     : "l"(p)
                     : "memory");
    else
        asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0,%1,%2,%3}, [%4];"
                     : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w)
                     : "l"(p));
    return r;
}
// Two numbers in f16, and two of what is left of them.
__device__ __forceinline__ void split_pair(float x, float y, uint32_t *high, uint32_t *low)
{
    const __half2 h = __floats2half2_rn(x, y);
    const float2 back = __half22float2(h);
    const __half2 l = __floats2half2_rn(x - back.x, y - back.y);
    *high = *reinterpret_cast<const uint32_t *>(&h);
    *low = *reinterpret_cast<const uint32_t *>(&l);
}
__device__ __forceinline__ uint32_t word_of(const uint4 &v, int i)
{
    return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

template <int DIM> struct shared_tiles {
    uint4 query[DIM / 16][32]; // the A fragments of a step
    float unit[HEADS];         // a query is unit times what is in them
    float maximum[WARPS][HEADS], sum[WARPS][HEADS];
    float out[WARPS][HEADS][DIM];
};

// q [heads][DIM] in shared memory, f32, zero for heads beyond `heads`.
template <int DIM> __device__ __forceinline__ void split_query(const float *q, shared_tiles<DIM> &s)
{
    const int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32, g = lane >> 2, t = lane & 3;
    const int warps = (int)blockDim.x / 32;
    for (int h = warp; h < HEADS; h += warps) { // the largest element becomes about 1
        float most = 0.0f;
        for (int d = lane; d < DIM; d += 32) most = fmaxf(most, fabsf(q[h * DIM + d]));
        for (int i = 16; i > 0; i >>= 1) most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, i));
        int exponent = 0;
        if (most > 0.0f && most < INFINITY) frexpf(most, &exponent);
        exponent = max(-100, min(100, exponent));
        if (lane == 0) s.unit[h] = __uint_as_float((uint32_t)(127 + exponent) << 23);
    }
    __syncthreads();
    const float down = 1.0f / s.unit[g];
    for (int step = warp; step < DIM / 16; step += warps) {
        const float *from = q + g * DIM + step / 2 * 32 + 8 * t + step % 2 * 4;
        uint4 a;
        split_pair(from[0] * down, from[1] * down, &a.x, &a.y);
        split_pair(from[2] * down, from[3] * down, &a.z, &a.w);
        s.query[step][lane] = a;
    }
}

struct piece {
    uint32_t begin, end; // tokens
};

template <int DIM, bool FRESH>
__device__ __forceinline__ void load_keys(const cuda_kv_view &kv, uint32_t kv_head, uint32_t tile, uint4 (&k)[2][DIM / 32])
{
    const int lane = (int)threadIdx.x % 32, g = lane >> 2, t = lane & 3;
    const uint16_t *page = static_cast<const uint16_t *>(kv.k_pages[tile / kv.page_tokens]) + kv_offset(kv, kv_head, tile, DIM) + 8 * t;
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int s = 0; s < DIM / 32; s++) k[i][s] = read_once<FRESH>(page + (i * 8 + g) * DIM + s * 32);
}
template <int DIM, bool FRESH>
__device__ __forceinline__ void load_values(const cuda_kv_view &kv, uint32_t kv_head, uint32_t tile, uint4 (&v)[4][DIM / 64])
{
    const int lane = (int)threadIdx.x % 32, g = lane >> 2, t = lane & 3;
    const uint16_t *page = static_cast<const uint16_t *>(kv.v_pages[tile / kv.page_tokens]) + kv_offset(kv, kv_head, tile, DIM) + 8 * g;
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int h = 0; h < DIM / 64; h++) v[i][h] = read_once<FRESH>(page + (2 * t + (i & 1) + (i >> 1) * 8) * DIM + h * 64);
}

// What a warp has of its tiles: of head g the largest score and this lane's sum of weights; out as fragments, rows 0..7 and
// 8..15 to be added.
template <int DIM> struct tiles_state {
    float maximum, sum;
    float out[DIM / 8][4];
};

// Weights of a tile from its scores: token 8 * i + 2t + j of head g at [2 * i + j].
template <int DIM>
__device__ __forceinline__ void softmax_step(float (&score)[4], tiles_state<DIM> &state)
{
    float most = fmaxf(fmaxf(score[0], score[1]), fmaxf(score[2], score[3]));
    most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 1));
    most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 2));
    const float maximum = fmaxf(state.maximum, most), keep = expf(state.maximum - maximum);
    float add = 0.0f;
#pragma unroll
    for (int i = 0; i < 4; i++) add += score[i] = expf(score[i] - maximum);
    state.sum = fmaf(state.sum, keep, add);
    state.maximum = maximum;
    if (__any_sync(0xffffffffu, keep != 1.0f)) {
#pragma unroll
        for (int i = 0; i < DIM / 8 * 4; i++) state.out[i / 4][i % 4] *= keep;
    }
}

template <int DIM>
__device__ __forceinline__ void add_values(const float (&weight)[4], const uint4 (&v)[4][DIM / 64], tiles_state<DIM> &state)
{
    uint32_t a0, a1, a2, a3;
    split_pair(weight[0] * WEIGHT_UNIT, weight[1] * WEIGHT_UNIT, &a0, &a1);
    split_pair(weight[2] * WEIGHT_UNIT, weight[3] * WEIGHT_UNIT, &a2, &a3);
#pragma unroll
    for (int h = 0; h < DIM / 64; h++)
#pragma unroll
        for (int j = 0; j < 8; j++) {
            const uint32_t pick = j & 1 ? 0x7632u : 0x5410u;
            const uint32_t b0 = __byte_perm(word_of(v[0][h], j / 2), word_of(v[1][h], j / 2), pick);
            const uint32_t b1 = __byte_perm(word_of(v[2][h], j / 2), word_of(v[3][h], j / 2), pick);
            multiply(state.out[h * 8 + j], a0, a1, a2, a3, b0, b1);
        }
}

template <int DIM, bool FRESH = false>
__device__ __forceinline__ void attend_tiles(const cuda_kv_view &kv, uint32_t kv_head, const piece &tokens,
                                             const cuda_attention_shape &shape, const shared_tiles<DIM> &s, tiles_state<DIM> &state)
{
    const int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32, g = lane >> 2, t = lane & 3;
    uint32_t tile = tokens.begin / TILE_TOKENS * TILE_TOKENS + (uint32_t)warp * TILE_TOKENS;
    if (tile >= tokens.end) return;
    uint4 k[2][DIM / 32], v[4][DIM / 64];
    load_keys<DIM, FRESH>(kv, kv_head, tile, k);
    load_values<DIM, FRESH>(kv, kv_head, tile, v);
    const float unit = shape.scale * s.unit[g];
    while (true) {
        const uint32_t next = tile + WARPS * TILE_TOKENS;
        float dot[2][4] = {{0.0f, 0.0f, 0.0f, 0.0f}, {0.0f, 0.0f, 0.0f, 0.0f}};
#pragma unroll
        for (int step = 0; step < DIM / 16; step++) {
            const uint4 a = s.query[step][lane];
#pragma unroll
            for (int i = 0; i < 2; i++)
                multiply(dot[i], a.x, a.y, a.z, a.w, word_of(k[i][step / 2], step % 2 * 2), word_of(k[i][step / 2], step % 2 * 2 + 1));
        }
        if (next < tokens.end) load_keys<DIM, FRESH>(kv, kv_head, next, k);
        float score[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const uint32_t token = tile + (uint32_t)(i / 2 * 8 + 2 * t + (i & 1));
            float x = (dot[i / 2][i & 1] + dot[i / 2][2 + (i & 1)]) * unit;
            if (shape.soft_cap != 0.0f) x = shape.soft_cap * tanhf(x / shape.soft_cap);
            score[i] = token >= tokens.begin && token < tokens.end ? x : -INFINITY;
        }
        softmax_step<DIM>(score, state);
        if (tile < tokens.begin || tile + TILE_TOKENS > tokens.end) { // what stands there may be NaN
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const uint32_t token = tile + (uint32_t)(2 * t + (i & 1) + (i >> 1) * 8);
                if (token >= tokens.begin && token < tokens.end) continue;
#pragma unroll
                for (int h = 0; h < DIM / 64; h++) v[i][h] = make_uint4(0, 0, 0, 0);
            }
        }
        add_values<DIM>(score, v, state);
        if (next >= tokens.end) return;
        load_values<DIM, FRESH>(kv, kv_head, next, v);
        tile = next;
    }
}

// What a warp has, for the others.
template <int DIM> __device__ __forceinline__ void share_warp(tiles_state<DIM> &state, int heads, shared_tiles<DIM> &s)
{
    const int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32, g = lane >> 2, t = lane & 3;
    float sum = state.sum;
    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
    sum += __shfl_xor_sync(0xffffffffu, sum, 2);
    if (t == 0) s.maximum[warp][g] = state.maximum, s.sum[warp][g] = sum;
    if (g < heads) {
#pragma unroll
        for (int n = 0; n < DIM / 8; n++)
#pragma unroll
            for (int i = 0; i < 2; i++)
                s.out[warp][g][n / 8 * 64 + 8 * (2 * t + i) + n % 8] = (state.out[n][i] + state.out[n][2 + i]) * (1.0f / WEIGHT_UNIT);
    }
}

// Dimension d of head h of the piece from the warps' parts, in the order of the warps.
struct merged_warps {
    float maximum, sum, value;
};
template <int DIM> __device__ __forceinline__ merged_warps merge_of(const shared_tiles<DIM> &s, int h, int d)
{
    merged_warps m = {s.maximum[0][h], 0.0f, 0.0f};
#pragma unroll
    for (int w = 1; w < WARPS; w++) m.maximum = fmaxf(m.maximum, s.maximum[w][h]);
#pragma unroll
    for (int w = 0; w < WARPS; w++) {
        const float factor = expf(s.maximum[w][h] - m.maximum);
        m.value = fmaf(s.out[w][h][d], factor, m.value);
        m.sum = fmaf(s.sum[w][h], factor, m.sum);
    }
    return m;
}

// The warps' parts become the piece's.
template <int DIM>
__device__ __forceinline__ void merge_warps(tiles_state<DIM> &state, int heads, shared_tiles<DIM> &s, const chunk_out &to)
{
    share_warp<DIM>(state, heads, s);
    __syncthreads();
    for (int i = (int)threadIdx.x; i < heads * DIM; i += THREADS) {
        const int h = i / DIM, d = i % DIM;
        const merged_warps m = merge_of<DIM>(s, h, d);
        to.out[(size_t)h * CHUNKS * DIM + d] = m.value;
        if (d == 0) to.maximum[h * CHUNKS] = m.maximum, to.sum[h * CHUNKS] = m.sum;
    }
}

// Scratch of a row: maximum and sum [heads][CHUNKS], then out [heads][CHUNKS][dim].
__host__ __device__ __forceinline__ size_t row_scratch(const cuda_attention_shape &shape)
{
    return (size_t)shape.heads * CHUNKS * (shape.head_dim + 2);
}

// What a block of threads of either kernel does: a piece of the keys of a row for some of the heads that share them.
struct job {
    cuda_kv_view kv;
    piece tokens;
    uint32_t kv_head, heads;
    const float *query; // [heads][dim]
    chunk_out to;
};
__device__ __forceinline__ bool job_of(const float *query, size_t ldq, const cuda_attention_row *rows, uint32_t layer,
                                       const cuda_attention_shape &shape, float *scratch, job *j)
{
    const cuda_attention_row row = rows[blockIdx.x];
    const span keys = span_of(row.position, shape.window);
    j->tokens.begin = keys.begin + blockIdx.z * keys.chunk;
    if (j->tokens.begin >= keys.end) return false;
    j->tokens.end = min(keys.end, j->tokens.begin + keys.chunk);
    const uint32_t dim = shape.head_dim, group = shape.heads / shape.kv_heads, parts = (group + HEADS - 1) / HEADS;
    const uint32_t part = blockIdx.y % parts;
    j->kv_head = blockIdx.y / parts;
    const uint32_t first = j->kv_head * group + part * HEADS;
    j->heads = min((uint32_t)HEADS, group - part * HEADS);
    j->query = query + blockIdx.x * ldq + (size_t)first * dim;
    float *mine = scratch + blockIdx.x * row_scratch(shape);
    j->to.maximum = mine + (size_t)first * CHUNKS + blockIdx.z;
    j->to.sum = j->to.maximum + (size_t)shape.heads * CHUNKS;
    j->to.out = mine + (size_t)shape.heads * CHUNKS * 2 + ((size_t)first * CHUNKS + blockIdx.z) * dim;
    j->kv = row.kv[layer];
    return j->kv.type != 2;
}

// By a warp: factor [chunks] of a head's pieces (NULL: another warp's), and what their sum is to be divided by.
__device__ __forceinline__ float merge_factors(const float *mine, const cuda_attention_shape &shape, uint32_t head, uint32_t chunks,
                                               float *factor)
{
    static_assert(CHUNKS == 64, "two pieces a lane");
    const uint32_t lane = threadIdx.x % 32;
    const float *maximum = mine + (size_t)head * CHUNKS, *sum = maximum + (size_t)shape.heads * CHUNKS;
    float most[2], weight[2], largest = shape.sinks ? shape.sinks[head] : -INFINITY;
#pragma unroll
    for (uint32_t i = 0; i < 2; i++) {
        const uint32_t c = lane + 32 * i;
        most[i] = c < chunks ? maximum[c] : -INFINITY;
        weight[i] = c < chunks ? sum[c] : 0.0f;
        largest = fmaxf(largest, most[i]);
    }
#pragma unroll
    for (int i = 16; i > 0; i >>= 1) largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, i));
    float total = 0.0f;
#pragma unroll
    for (uint32_t i = 0; i < 2; i++) {
        const float f = expf(most[i] - largest);
        if (factor && lane + 32 * i < chunks) factor[lane + 32 * i] = f;
        total = fmaf(weight[i], f, total);
    }
    total = warp_sum(total);
    return shape.sinks ? total + expf(shape.sinks[head] - largest) : total;
}

__device__ __forceinline__ float merged(const float *part, uint32_t dim, uint32_t chunks, const float *factor, float total)
{
    float v = 0.0f;
#pragma unroll 16
    for (uint32_t c = 0; c < chunks; c++) v = fmaf(part[(size_t)c * dim], factor[c], v);
    return v / total;
}

} // namespace

#endif
