// The cache and attention over its pages. A row's keys are cut into up to CHUNKS pieces whose length depends on the row's
// own number of keys alone; a block of threads does one piece for some of the query heads that share a head of keys, and
// the pieces are merged in ascending order: a row's bits do not depend on the rows beside it.
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
__device__ __forceinline__ uint4 read_once(const uint16_t *p)
{
    uint4 r;
    asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0,%1,%2,%3}, [%4];"
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
    for (int h = warp; h < HEADS; h += WARPS) { // the largest element becomes about 1
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
    for (int step = warp; step < DIM / 16; step += WARPS) {
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

template <int DIM>
__device__ __forceinline__ void load_keys(const cuda_kv_view &kv, uint32_t kv_head, uint32_t tile, uint4 (&k)[2][DIM / 32])
{
    const int lane = (int)threadIdx.x % 32, g = lane >> 2, t = lane & 3;
    const uint16_t *page = static_cast<const uint16_t *>(kv.k_pages[tile / kv.page_tokens]) + kv_offset(kv, kv_head, tile, DIM) + 8 * t;
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int s = 0; s < DIM / 32; s++) k[i][s] = read_once(page + (i * 8 + g) * DIM + s * 32);
}
template <int DIM>
__device__ __forceinline__ void load_values(const cuda_kv_view &kv, uint32_t kv_head, uint32_t tile, uint4 (&v)[4][DIM / 64])
{
    const int lane = (int)threadIdx.x % 32, g = lane >> 2, t = lane & 3;
    const uint16_t *page = static_cast<const uint16_t *>(kv.v_pages[tile / kv.page_tokens]) + kv_offset(kv, kv_head, tile, DIM) + 8 * g;
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int h = 0; h < DIM / 64; h++) v[i][h] = read_once(page + (2 * t + (i & 1) + (i >> 1) * 8) * DIM + h * 64);
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

template <int DIM>
__device__ __forceinline__ void attend_tiles(const cuda_kv_view &kv, uint32_t kv_head, const piece &tokens,
                                             const cuda_attention_shape &shape, const shared_tiles<DIM> &s, tiles_state<DIM> &state)
{
    const int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32, g = lane >> 2, t = lane & 3;
    uint32_t tile = tokens.begin / TILE_TOKENS * TILE_TOKENS + (uint32_t)warp * TILE_TOKENS;
    if (tile >= tokens.end) return;
    uint4 k[2][DIM / 32], v[4][DIM / 64];
    load_keys<DIM>(kv, kv_head, tile, k);
    load_values<DIM>(kv, kv_head, tile, v);
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
        if (next < tokens.end) load_keys<DIM>(kv, kv_head, next, k);
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
        load_values<DIM>(kv, kv_head, next, v);
        tile = next;
    }
}

// The warps' parts become the piece's, in the order of the warps.
template <int DIM>
__device__ __forceinline__ void merge_warps(tiles_state<DIM> &state, int heads, shared_tiles<DIM> &s, const chunk_out &to)
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
    __syncthreads();
    for (int i = (int)threadIdx.x; i < heads * DIM; i += THREADS) {
        const int h = i / DIM, d = i % DIM;
        float largest = s.maximum[0][h], value = 0.0f, total = 0.0f;
#pragma unroll
        for (int w = 1; w < WARPS; w++) largest = fmaxf(largest, s.maximum[w][h]);
#pragma unroll
        for (int w = 0; w < WARPS; w++) {
            const float factor = expf(s.maximum[w][h] - largest);
            value = fmaf(s.out[w][h][d], factor, value);
            total = fmaf(s.sum[w][h], factor, total);
        }
        to.out[(size_t)h * CHUNKS * DIM + d] = value;
        if (d == 0) to.maximum[h * CHUNKS] = largest, to.sum[h * CHUNKS] = total;
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
    return true;
}

template <int HELD> __device__ __forceinline__ void attend_any(const job &j, const cuda_attention_shape &shape, const float *q)
{
    __shared__ shared_part s;
    if (j.kv.type == 1)
        attend<true, HELD>(j.kv, j.kv_head, j.tokens.begin, j.tokens.end, shape.head_dim, j.heads, shape, q, s, j.to);
    else
        attend<false, HELD>(j.kv, j.kv_head, j.tokens.begin, j.tokens.end, shape.head_dim, j.heads, shape, q, s, j.to);
}

template <int HELD>
__global__ void __launch_bounds__(THREADS) chunk_kernel(const float *query, size_t ldq, const cuda_attention_row *rows,
                                                        uint32_t layer, cuda_attention_shape shape, float *scratch)
{
    extern __shared__ __align__(16) float q[]; // [HEADS][dim]
    let_next_start();
    wait_for_previous();
    job j;
    if (!job_of(query, ldq, rows, layer, shape, scratch, &j)) return;
    const uint32_t dim = shape.head_dim;
    for (uint32_t i = threadIdx.x; i < HEADS * dim; i += THREADS) q[i] = i < j.heads * dim ? j.query[i] : 0.0f;
    attend_any<HELD>(j, shape, q);
}

// F16 pages of a multiple of 16 tokens by tiles, whatever else as above.
template <int DIM>
__global__ void __launch_bounds__(THREADS) tiles_kernel(const float *query, size_t ldq, const cuda_attention_row *rows,
                                                        uint32_t layer, cuda_attention_shape shape, float *scratch)
{
    __shared__ __align__(16) float q[HEADS * DIM];
    extern __shared__ __align__(16) uint8_t room[];
    let_next_start();
    wait_for_previous();
    job j;
    if (!job_of(query, ldq, rows, layer, shape, scratch, &j)) return;
    for (uint32_t i = threadIdx.x; i < HEADS * DIM; i += THREADS) q[i] = i < j.heads * DIM ? j.query[i] : 0.0f;
    __syncthreads();
    if (j.kv.type != 1 || j.kv.page_tokens % TILE_TOKENS != 0) {
        attend_any<1>(j, shape, q);
        return;
    }
    shared_tiles<DIM> &s = *reinterpret_cast<shared_tiles<DIM> *>(room);
    split_query<DIM>(q, s);
    __syncthreads();
    tiles_state<DIM> state;
    state.maximum = -INFINITY, state.sum = 0.0f;
#pragma unroll
    for (int i = 0; i < DIM / 8 * 4; i++) state.out[i / 4][i % 4] = 0.0f;
    attend_tiles<DIM>(j.kv, j.kv_head, j.tokens, shape, s, state);
    merge_warps<DIM>(state, (int)j.heads, s, j.to);
}

// The pieces of a row, in ascending order: factor [chunks] of a head and what its values are to be divided by.
__device__ __forceinline__ float merge_factors(const float *mine, const cuda_attention_shape &shape, uint32_t head, uint32_t chunks,
                                               float *factor, uint32_t first, uint32_t step)
{
    const float *maximum = mine + (size_t)head * CHUNKS, *sum = maximum + (size_t)shape.heads * CHUNKS;
    float largest = -INFINITY, total = 0.0f;
    if (shape.sinks) largest = shape.sinks[head];
    for (uint32_t c = 0; c < chunks; c++) largest = fmaxf(largest, maximum[c]);
    if (shape.sinks) total = expf(shape.sinks[head] - largest);
    for (uint32_t c = 0; c < chunks; c++) total = fmaf(sum[c], expf(maximum[c] - largest), total);
    for (uint32_t c = first; c < chunks; c += step) factor[c] = expf(maximum[c] - largest);
    return total;
}

__device__ __forceinline__ float merged(const float *part, uint32_t dim, uint32_t chunks, const float *factor, float total)
{
    float v = 0.0f;
#pragma unroll 4
    for (uint32_t c = 0; c < chunks; c++) v = fmaf(part[(size_t)c * dim], factor[c], v);
    return v / total;
}

__global__ void __launch_bounds__(THREADS)
    merge_kernel(float *out, size_t ldo, const cuda_attention_row *rows, cuda_attention_shape shape, const float *scratch)
{
    __shared__ float factor[CHUNKS];
    let_next_start();
    wait_for_previous();
    const span keys = span_of(rows[blockIdx.x].position, shape.window);
    const uint32_t chunks = (keys.end - keys.begin + keys.chunk - 1) / keys.chunk, head = blockIdx.y, dim = shape.head_dim;
    const float *mine = scratch + blockIdx.x * row_scratch(shape);
    const float *part = mine + (size_t)shape.heads * CHUNKS * 2 + (size_t)head * CHUNKS * dim;
    const float total = merge_factors(mine, shape, head, chunks, factor, threadIdx.x, THREADS);
    __syncthreads();
    for (uint32_t d = threadIdx.x; d < dim; d += THREADS)
        out[blockIdx.x * ldo + (size_t)head * dim + d] = merged(part + d, dim, chunks, factor, total);
}

// The same of all heads of a row, prepared for the product behind it.
constexpr int ROW_THREADS = 512, MOST_HEADS = 64;

struct merge_row {
    cuda_attention_shape shape;
    const cuda_attention_row *rows;
    const float *scratch;
    float *out; // NULL: not wanted
    size_t ldo, floats; // floats of the row in shared memory
    prepared to;
};

template <typename Out> __global__ void __launch_bounds__(ROW_THREADS) merge_row_kernel(const __grid_constant__ merge_row p)
{
    extern __shared__ __align__(16) float row[];
    __shared__ float factor[MOST_HEADS][CHUNKS], total[MOST_HEADS];
    __shared__ uint32_t reduce[2];
    uint32_t *words = reinterpret_cast<uint32_t *>(row + p.floats);
    if (threadIdx.x < 2) reduce[threadIdx.x] = 0;
    stage_signs(p.to.r, words);
    let_next_start();
    wait_for_previous();
    const span keys = span_of(p.rows[blockIdx.x].position, p.shape.window);
    const uint32_t chunks = (keys.end - keys.begin + keys.chunk - 1) / keys.chunk, dim = p.shape.head_dim;
    const float *mine = p.scratch + blockIdx.x * row_scratch(p.shape);
    for (uint32_t h = threadIdx.x / 8; h < p.shape.heads; h += ROW_THREADS / 8) {
        const float sum = merge_factors(mine, p.shape, h, chunks, factor[h], threadIdx.x % 8, 8);
        if (threadIdx.x % 8 == 0) total[h] = sum;
    }
    __syncthreads();
    for (uint32_t first = threadIdx.x; first < p.shape.heads * dim; first += 4 * ROW_THREADS) {
        float v[4];
#pragma unroll
        for (uint32_t e = 0; e < 4; e++) { // all are read before any is written
            const uint32_t i = first + e * ROW_THREADS, h = i / dim, d = i % dim;
            if (i < p.shape.heads * dim)
                v[e] = merged(mine + (size_t)p.shape.heads * CHUNKS * 2 + (size_t)h * CHUNKS * dim + d, dim, chunks, factor[h], total[h]);
        }
#pragma unroll
        for (uint32_t e = 0; e < 4; e++) {
            const uint32_t i = first + e * ROW_THREADS;
            if (i >= p.shape.heads * dim) break;
            row[place_of((int)i)] = input_of(p.to, words, (int)i, v[e]);
            if (p.out) p.out[blockIdx.x * p.ldo + i] = v[e];
        }
    }
    prepare_from<Out>(p.to, blockIdx.x, row, reduce);
}

__global__ void rows_kernel(cuda_attention_row *out, const cuda_kv_view *const *kv, const uint32_t *positions, size_t count,
                            uint32_t layer)
{
    const size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) out[i] = cuda_attention_row{kv[i] + layer, positions[i]};
}

// One block for each row.
__global__ void __launch_bounds__(THREADS) page_tables_kernel(const __grid_constant__ cuda_paged_rows p)
{
    const size_t row = blockIdx.x;
    void **k = p.tables + row * 2 * p.page_count, **v = k + p.page_count;
    for (uint32_t i = threadIdx.x; i < p.page_count; i += THREADS) {
        const size_t page = (size_t)p.pages[row * p.ld + i];
        k[i] = static_cast<uint8_t *>(p.keys) + page * p.key_stride;
        v[i] = static_cast<uint8_t *>(p.values) + page * p.value_stride;
    }
    if (threadIdx.x != 0) return;
    cuda_kv_view view = {};
    view.type = p.type, view.page_tokens = p.page_tokens, view.k_pages = k, view.v_pages = v;
    p.views[row] = view;
    p.rows[row] = cuda_attention_row{p.views + row, (uint32_t)p.positions[row]};
}

__global__ void __launch_bounds__(THREADS)
    append_kernel(const cuda_attention_row *rows, const float *k, const float *v, size_t ld, uint32_t kv_heads, uint32_t dim)
{
    const cuda_attention_row row = rows[blockIdx.x];
    const cuda_kv_view kv = *row.kv;
    void *k_page = kv.k_pages[row.position / kv.page_tokens], *v_page = kv.v_pages[row.position / kv.page_tokens];
    for (uint32_t i = threadIdx.x; i < kv_heads * dim; i += THREADS) {
        const size_t to = kv_offset(kv, i / dim, row.position, dim) + i % dim;
        const float key = k[blockIdx.x * ld + i], value = v[blockIdx.x * ld + i];
        if (kv.type == 1) {
            static_cast<uint16_t *>(k_page)[to] = f16_from_f32(key);
            static_cast<uint16_t *>(v_page)[to] = f16_from_f32(value);
        } else {
            static_cast<float *>(k_page)[to] = key;
            static_cast<float *>(v_page)[to] = value;
        }
    }
}

} // namespace

void cuda_attention_rows(cudaStream_t stream, struct cuda_attention_row *out, const struct cuda_kv_view *const *kv,
                         const uint32_t *positions, size_t count, uint32_t layer)
{
    if (count > 0) rows_kernel<<<div_up(count, 128), 128, 0, stream>>>(out, kv, positions, count, layer);
}

void cuda_page_tables(cudaStream_t stream, const struct cuda_paged_rows *p)
{
    if (p->count > 0) page_tables_kernel<<<(unsigned)p->count, THREADS, 0, stream>>>(*p);
}

void cuda_kv_append(cudaStream_t stream, const struct cuda_attention_row *rows, size_t count, const float *k, const float *v,
                    size_t ld, const struct cuda_attention_shape *shape)
{
    if (count > 0)
        append_kernel<<<(unsigned)count, THREADS, 0, stream>>>(rows, k, v, ld, shape->kv_heads, shape->head_dim);
}

size_t cuda_attention_scratch(const struct cuda_attention_shape *shape, size_t rows)
{
    return rows * row_scratch(*shape) * sizeof(float);
}

namespace {

// The pieces of `n` rows into the scratch.
void attend_pieces(cudaStream_t stream, const float *query, size_t ldq, const struct cuda_attention_row *rows, size_t n,
                   uint32_t layer, const struct cuda_attention_shape &shape, float *scratch)
{
    const uint32_t group = shape.heads / shape.kv_heads, parts = div_up(group, HEADS);
    const dim3 grid((unsigned)n, shape.kv_heads * parts, CHUNKS);
    const size_t shared = HEADS * shape.head_dim * sizeof(float);
    auto start = [&](auto kernel, size_t bytes) { launch_early(stream, kernel, grid, THREADS, bytes, query, ldq, rows, layer, shape, scratch); };
    if (shape.head_dim == 128)
        start(tiles_kernel<128>, sizeof(shared_tiles<128>));
    else if (shape.head_dim == 64)
        start(tiles_kernel<64>, sizeof(shared_tiles<64>));
    else if (shape.head_dim <= THREADS)
        start(chunk_kernel<1>, shared);
    else if (shape.head_dim <= 2 * THREADS)
        start(chunk_kernel<2>, shared);
    else
        start(chunk_kernel<DIMS>, shared);
}

} // namespace

void cuda_attention(cudaStream_t stream, float *out, size_t ldo, const float *query, size_t ldq,
                    const struct cuda_attention_row *rows, size_t count, uint32_t layer, const struct cuda_attention_shape *shape,
                    void *scratch, size_t scratch_bytes)
{
    const size_t at_once = scratch_bytes / cuda_attention_scratch(shape, 1);
    float *room = static_cast<float *>(scratch);
    for (size_t at = 0, n; at < count; at += n) {
        n = count - at < at_once ? count - at : at_once;
        attend_pieces(stream, query + at * ldq, ldq, rows + at, n, layer, *shape, room);
        launch_early(stream, merge_kernel, dim3((unsigned)n, shape->heads), THREADS, 0, out + at * ldo, ldo, rows + at, *shape,
                     (const float *)room);
    }
}

bool cuda_attention_prepared_fits(const struct cuda_attention_shape *shape, const struct cuda_prepared *to, size_t rows,
                                  size_t scratch_bytes)
{
    const size_t width = (size_t)shape->heads * shape->head_dim;
    if (to->rotation.count == 0 && to->type == CUDA_TYPE_I8) return false;
    const size_t most = to->rotation.padded > width ? to->rotation.padded : width;
    return shape->heads <= MOST_HEADS && row_floats(most) * sizeof(float) + sign_bytes(to->rotation) <= (160 << 10) &&
           cuda_attention_scratch(shape, rows) <= scratch_bytes;
}

void cuda_attention_prepared(cudaStream_t stream, float *out, size_t ldo, const float *query, size_t ldq,
                             const struct cuda_attention_row *rows, size_t count, uint32_t layer,
                             const struct cuda_attention_shape *shape, void *scratch, const struct cuda_prepared *to)
{
    if (count == 0) return;
    float *room = static_cast<float *>(scratch);
    attend_pieces(stream, query, ldq, rows, count, layer, *shape, room);
    const size_t width = (size_t)shape->heads * shape->head_dim, most = to->rotation.padded > width ? to->rotation.padded : width;
    const merge_row p = {*shape, rows, room, out, ldo, row_floats(most), prepared_of(*to)};
    const size_t shared = p.floats * sizeof(float) + sign_bytes(p.to.r);
    const dim3 grid((unsigned)count);
    auto start = [&](auto kernel) { launch_early(stream, kernel, grid, ROW_THREADS, shared, p); };
    switch (to->type) {
    case CUDA_TYPE_I8: start(merge_row_kernel<int8_t>); break;
    case CUDA_TYPE_BF16: start(merge_row_kernel<half_bits<true>>); break;
    default: start(merge_row_kernel<float>); break;
    }
}
