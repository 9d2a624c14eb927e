// Attention of training (kernels/train.h), forward and back, in f32: tiles of scores are computed again where they are needed
// (Dao et al. 2022, "FlashAttention"). Back, one kernel owns keys and values and one owns queries, each adding up in one order: no
// atomics.
#include "launch_train.h"
#include "tensor.cuh"

namespace {

constexpr int THREADS = 256, SIDE = 16; // threads are SIDE by SIDE

// Tiles of TILE rows of up to DIM numbers. A thread has the scores of rows y + SIDE i by columns x + SIDE j, and of a tile of
// outputs the rows y + SIDE i by numbers 4x + 64j + 0..3.
template <int TILE, int DIM> struct shape {
    static constexpr int LD = DIM + 4, SCORES = TILE + 1, OWN = TILE / SIDE, WIDE = DIM / 64;
    static constexpr int TILE_FLOATS = TILE * LD, SCORE_FLOATS = TILE * SCORES;
};

// Rows [row, row + TILE) of one head's numbers; 0 beyond the rows and the head.
template <int TILE, int DIM>
__device__ __forceinline__ void load_tile(float *to, const float *from, size_t ld, size_t row, size_t rows, int dim)
{
    for (int i = (int)threadIdx.x; i < TILE * DIM; i += THREADS) {
        const int r = i / DIM, d = i % DIM;
        to[r * shape<TILE, DIM>::LD + d] = row + (size_t)r < rows && d < dim ? from[(row + (size_t)r) * ld + d] : 0.0f;
    }
}

// s[i][j] = a[y + SIDE i] b[x + SIDE j], over all numbers of the rows.
template <int TILE, int DIM> __device__ __forceinline__ void dot_tiles(float (&s)[TILE / SIDE][TILE / SIDE], const float *a, const float *b)
{
    constexpr int OWN = TILE / SIDE, LD = shape<TILE, DIM>::LD;
    const int x = (int)threadIdx.x % SIDE, y = (int)threadIdx.x / SIDE;
#pragma unroll
    for (int i = 0; i < OWN * OWN; i++) s[i / OWN][i % OWN] = 0.0f;
#pragma unroll 4
    for (int d = 0; d < DIM; d += 4) {
        float4 u[OWN], v[OWN];
#pragma unroll
        for (int i = 0; i < OWN; i++) {
            u[i] = *reinterpret_cast<const float4 *>(a + (y + SIDE * i) * LD + d);
            v[i] = *reinterpret_cast<const float4 *>(b + (x + SIDE * i) * LD + d);
        }
#pragma unroll
        for (int i = 0; i < OWN * OWN; i++) {
            const float4 &p = u[i / OWN], &q = v[i % OWN];
            s[i / OWN][i % OWN] = fmaf(p.w, q.w, fmaf(p.z, q.z, fmaf(p.y, q.y, fmaf(p.x, q.x, s[i / OWN][i % OWN]))));
        }
    }
}

// c[i] += sum over k of w[y + SIDE i][k] b[k], or of w[k][y + SIDE i] where TURNED.
template <int TILE, int DIM, bool TURNED>
__device__ __forceinline__ void add_rows(float (&c)[TILE / SIDE][DIM / 64][4], const float *w, const float *b)
{
    using s = shape<TILE, DIM>;
    const int x = (int)threadIdx.x % SIDE, y = (int)threadIdx.x / SIDE;
#pragma unroll 4
    for (int k = 0; k < TILE; k++) {
        float p[s::OWN];
#pragma unroll
        for (int i = 0; i < s::OWN; i++) p[i] = TURNED ? w[k * s::SCORES + y + SIDE * i] : w[(y + SIDE * i) * s::SCORES + k];
#pragma unroll
        for (int j = 0; j < s::WIDE; j++) {
            const float4 v = *reinterpret_cast<const float4 *>(b + k * s::LD + 4 * x + 64 * j);
#pragma unroll
            for (int i = 0; i < s::OWN; i++) {
                c[i][j][0] = fmaf(p[i], v.x, c[i][j][0]), c[i][j][1] = fmaf(p[i], v.y, c[i][j][1]);
                c[i][j][2] = fmaf(p[i], v.z, c[i][j][2]), c[i][j][3] = fmaf(p[i], v.w, c[i][j][3]);
            }
        }
    }
}

template <int OWN, int WIDE> __device__ __forceinline__ void clear(float (&c)[OWN][WIDE][4])
{
#pragma unroll
    for (int i = 0; i < OWN * WIDE * 4; i++) c[i / (WIDE * 4)][i / 4 % WIDE][i % 4] = 0.0f;
}

template <int OWN, int WIDE>
__device__ __forceinline__ void store_rows(float *to, size_t ld, size_t row, size_t rows, int dim, const float (&c)[OWN][WIDE][4],
                                           const float (&factor)[OWN])
{
    const int x = (int)threadIdx.x % SIDE, y = (int)threadIdx.x / SIDE;
#pragma unroll
    for (int i = 0; i < OWN; i++)
#pragma unroll
        for (int e = 0; e < WIDE * 4; e++) {
            const size_t r = row + (size_t)(y + SIDE * i);
            const int d = 4 * x + 64 * (e / 4) + e % 4;
            if (r < rows && d < dim) to[r * ld + d] = c[i][e / 4][e % 4] * factor[i];
        }
}

// Does row i attend to row j?
__device__ __forceinline__ bool sees(const cuda_train_attention &t, size_t i, size_t j)
{
    return i < t.rows && j <= i && j >= t.first[i] && (t.shape.window == 0 || i - j < t.shape.window);
}
// First key, rounded down to a tile, that any of the rows from `row` on attends to.
template <int TILE> __device__ __forceinline__ size_t first_key(const cuda_train_attention &t, size_t row)
{
    size_t key = t.first[row];
    if (t.shape.window && row + 1 > key + t.shape.window) key = row + 1 - t.shape.window;
    return key / TILE * TILE;
}
__device__ __forceinline__ float capped(const cuda_attention_shape &s, float score)
{
    score *= s.scale;
    return s.soft_cap != 0.0f ? s.soft_cap * tanhf(score / s.soft_cap) : score;
}

// A block of threads: TILE rows of a head.
template <int TILE, int DIM> __global__ void __launch_bounds__(THREADS) forward_kernel(const __grid_constant__ cuda_train_attention t)
{
    using s = shape<TILE, DIM>;
    constexpr int SHARE = THREADS / TILE; // threads of a row of scores, neighbours in a warp
    extern __shared__ __align__(16) float memory[];
    float *query = memory, *other = query + s::TILE_FLOATS, *scores = other + s::TILE_FLOATS, *keep = scores + s::SCORE_FLOATS;
    float *maximum = keep + TILE, *sum = maximum + TILE;
    const int x = (int)threadIdx.x % SIDE, y = (int)threadIdx.x / SIDE, dim = (int)t.shape.head_dim;
    const size_t row = (size_t)blockIdx.x * TILE, head = blockIdx.y, kv_head = head / (t.shape.heads / t.shape.kv_heads);
    const size_t width = (size_t)t.shape.heads * dim, kv_width = (size_t)t.shape.kv_heads * dim, last = min(row + TILE, t.rows);
    load_tile<TILE, DIM>(query, t.query + head * dim, width, row, t.rows, dim);
    if (threadIdx.x < TILE) maximum[threadIdx.x] = -INFINITY, sum[threadIdx.x] = 0.0f;
    float c[s::OWN][s::WIDE][4];
    clear(c);
    for (size_t from = first_key<TILE>(t, row); from < last; from += TILE) {
        load_tile<TILE, DIM>(other, t.key + kv_head * dim, kv_width, from, t.rows, dim);
        __syncthreads();
        float score[s::OWN][s::OWN];
        dot_tiles<TILE, DIM>(score, query, other);
#pragma unroll
        for (int i = 0; i < s::OWN * s::OWN; i++) {
            const int r = y + SIDE * (i / s::OWN), k = x + SIDE * (i % s::OWN);
            scores[r * s::SCORES + k] =
                sees(t, row + (size_t)r, from + (size_t)k) ? capped(t.shape, score[i / s::OWN][i % s::OWN]) : -INFINITY;
        }
        __syncthreads();
        load_tile<TILE, DIM>(other, t.value + kv_head * dim, kv_width, from, t.rows, dim);
        const int r = (int)threadIdx.x / SHARE, part = (int)threadIdx.x % SHARE;
        float top = maximum[r];
        for (int k = part; k < TILE; k += SHARE) top = fmaxf(top, scores[r * s::SCORES + k]);
        for (int lane = SHARE / 2; lane > 0; lane /= 2) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, lane));
        float total = 0.0f;
        for (int k = part; k < TILE; k += SHARE) {
            const float v = scores[r * s::SCORES + k], p = v == -INFINITY ? 0.0f : expf(v - top);
            scores[r * s::SCORES + k] = p;
            total += p;
        }
        for (int lane = SHARE / 2; lane > 0; lane /= 2) total += __shfl_xor_sync(0xffffffffu, total, lane);
        __syncwarp();
        if (part == 0) {
            const float factor = maximum[r] == -INFINITY ? 0.0f : expf(maximum[r] - top);
            keep[r] = factor;
            sum[r] = fmaf(sum[r], factor, total);
            maximum[r] = top;
        }
        __syncthreads();
#pragma unroll
        for (int i = 0; i < s::OWN * s::WIDE * 4; i++) c[i / (s::WIDE * 4)][i / 4 % s::WIDE][i % 4] *= keep[y + SIDE * (i / (s::WIDE * 4))];
        add_rows<TILE, DIM, false>(c, scores, other);
        __syncthreads();
    }
    float factor[s::OWN];
#pragma unroll
    for (int i = 0; i < s::OWN; i++) {
        const int r = y + SIDE * i;
        const float all = t.shape.sinks ? sum[r] + expf(t.shape.sinks[head] - maximum[r]) : sum[r];
        factor[i] = 1.0f / all;
        if (x == 0 && row + (size_t)r < t.rows) t.lse[head * t.rows + row + (size_t)r] = maximum[r] + logf(all);
    }
    store_rows(t.out + head * dim, width, row, t.rows, dim, c, factor);
}

// delta[head][row] = out dout: a warp each.
__global__ void __launch_bounds__(THREADS) delta_kernel(const __grid_constant__ cuda_train_attention t)
{
    const size_t i = (size_t)blockIdx.x * (THREADS / 32) + threadIdx.x / 32, row = i / t.shape.heads, head = i % t.shape.heads;
    if (row >= t.rows) return;
    const size_t at = i * t.shape.head_dim;
    float sum = 0.0f;
    for (uint32_t d = threadIdx.x % 32; d < t.shape.head_dim; d += 32) sum = fmaf(t.out[at + d], t.dout[at + d], sum);
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) t.delta[head * t.rows + row] = sum;
}

// The weights of a tile of scores, p, and the gradients of the scores before their scale, from the raw scores and dout value.
template <int TILE>
__device__ __forceinline__ void weight_tile(const cuda_train_attention &t, size_t head, size_t row, size_t from,
                                            const float (&score)[TILE / SIDE][TILE / SIDE], float (&p)[TILE / SIDE][TILE / SIDE])
{
    constexpr int OWN = TILE / SIDE;
    const int x = (int)threadIdx.x % SIDE, y = (int)threadIdx.x / SIDE;
#pragma unroll
    for (int i = 0; i < OWN * OWN; i++) {
        const size_t r = row + (size_t)(y + SIDE * (i / OWN)), k = from + (size_t)(x + SIDE * (i % OWN));
        p[i / OWN][i % OWN] = sees(t, r, k) ? expf(capped(t.shape, score[i / OWN][i % OWN]) - t.lse[head * t.rows + r]) : 0.0f;
    }
}
template <int TILE>
__device__ __forceinline__ void slope_tile(const cuda_train_attention &t, size_t head, size_t row, float *slopes, int ld,
                                           const float (&score)[TILE / SIDE][TILE / SIDE], const float (&p)[TILE / SIDE][TILE / SIDE],
                                           const float (&back)[TILE / SIDE][TILE / SIDE])
{
    constexpr int OWN = TILE / SIDE;
    const int x = (int)threadIdx.x % SIDE, y = (int)threadIdx.x / SIDE;
#pragma unroll
    for (int i = 0; i < OWN * OWN; i++) {
        const int r = y + SIDE * (i / OWN), k = x + SIDE * (i % OWN);
        const float w = p[i / OWN][i % OWN], delta = row + (size_t)r < t.rows ? t.delta[head * t.rows + row + (size_t)r] : 0.0f;
        float slope = w * (back[i / OWN][i % OWN] - delta) * t.shape.scale;
        if (t.shape.soft_cap != 0.0f) {
            const float share = capped(t.shape, score[i / OWN][i % OWN]) / t.shape.soft_cap;
            slope *= 1.0f - share * share;
        }
        slopes[r * ld + k] = w == 0.0f ? 0.0f : slope;
    }
}

// A block of threads: TILE keys and values of a head of keys, from all rows and heads that attend to them.
template <int TILE, int DIM> __global__ void __launch_bounds__(THREADS) keys_kernel(const __grid_constant__ cuda_train_attention t)
{
    using s = shape<TILE, DIM>;
    extern __shared__ __align__(16) float memory[];
    float *key = memory, *value = key + s::TILE_FLOATS, *query = value + s::TILE_FLOATS, *dout = query + s::TILE_FLOATS;
    float *scores = dout + s::TILE_FLOATS;
    const int x = (int)threadIdx.x % SIDE, y = (int)threadIdx.x / SIDE, dim = (int)t.shape.head_dim;
    const size_t from = (size_t)blockIdx.x * TILE, kv_head = blockIdx.y, group = t.shape.heads / t.shape.kv_heads;
    const size_t width = (size_t)t.shape.heads * dim, kv_width = (size_t)t.shape.kv_heads * dim;
    const size_t last = min(from + TILE, t.rows) - 1;
    size_t end = t.end[last];
    if (t.shape.window) end = min(end, last + t.shape.window);
    load_tile<TILE, DIM>(key, t.key + kv_head * dim, kv_width, from, t.rows, dim);
    load_tile<TILE, DIM>(value, t.value + kv_head * dim, kv_width, from, t.rows, dim);
    float dkey[s::OWN][s::WIDE][4], dvalue[s::OWN][s::WIDE][4], one[s::OWN];
    clear(dkey), clear(dvalue);
#pragma unroll
    for (int i = 0; i < s::OWN; i++) one[i] = 1.0f;
    for (size_t head = kv_head * group; head < (kv_head + 1) * group; head++)
        for (size_t row = from; row < end; row += TILE) {
            load_tile<TILE, DIM>(query, t.query + head * dim, width, row, t.rows, dim);
            load_tile<TILE, DIM>(dout, t.dout + head * dim, width, row, t.rows, dim);
            __syncthreads();
            float score[s::OWN][s::OWN], p[s::OWN][s::OWN], back[s::OWN][s::OWN];
            dot_tiles<TILE, DIM>(score, query, key);
            weight_tile<TILE>(t, head, row, from, score, p);
#pragma unroll
            for (int i = 0; i < s::OWN * s::OWN; i++)
                scores[(y + SIDE * (i / s::OWN)) * s::SCORES + x + SIDE * (i % s::OWN)] = p[i / s::OWN][i % s::OWN];
            __syncthreads();
            add_rows<TILE, DIM, true>(dvalue, scores, dout);
            dot_tiles<TILE, DIM>(back, dout, value);
            __syncthreads();
            slope_tile<TILE>(t, head, row, scores, s::SCORES, score, p, back);
            __syncthreads();
            add_rows<TILE, DIM, true>(dkey, scores, query);
            __syncthreads();
        }
    store_rows(t.dkey + kv_head * dim, kv_width, from, t.rows, dim, dkey, one);
    store_rows(t.dvalue + kv_head * dim, kv_width, from, t.rows, dim, dvalue, one);
}

// A block of threads: TILE rows of a head.
template <int TILE, int DIM> __global__ void __launch_bounds__(THREADS) queries_kernel(const __grid_constant__ cuda_train_attention t)
{
    using s = shape<TILE, DIM>;
    extern __shared__ __align__(16) float memory[];
    float *query = memory, *dout = query + s::TILE_FLOATS, *key = dout + s::TILE_FLOATS, *value = key + s::TILE_FLOATS;
    float *scores = value + s::TILE_FLOATS;
    const int dim = (int)t.shape.head_dim;
    const size_t row = (size_t)blockIdx.x * TILE, head = blockIdx.y, kv_head = head / (t.shape.heads / t.shape.kv_heads);
    const size_t width = (size_t)t.shape.heads * dim, kv_width = (size_t)t.shape.kv_heads * dim, last = min(row + TILE, t.rows);
    load_tile<TILE, DIM>(query, t.query + head * dim, width, row, t.rows, dim);
    load_tile<TILE, DIM>(dout, t.dout + head * dim, width, row, t.rows, dim);
    float dquery[s::OWN][s::WIDE][4], one[s::OWN];
    clear(dquery);
#pragma unroll
    for (int i = 0; i < s::OWN; i++) one[i] = 1.0f;
    for (size_t from = first_key<TILE>(t, row); from < last; from += TILE) {
        load_tile<TILE, DIM>(key, t.key + kv_head * dim, kv_width, from, t.rows, dim);
        load_tile<TILE, DIM>(value, t.value + kv_head * dim, kv_width, from, t.rows, dim);
        __syncthreads();
        float score[s::OWN][s::OWN], p[s::OWN][s::OWN], back[s::OWN][s::OWN];
        dot_tiles<TILE, DIM>(score, query, key);
        weight_tile<TILE>(t, head, row, from, score, p);
        dot_tiles<TILE, DIM>(back, dout, value);
        slope_tile<TILE>(t, head, row, scores, s::SCORES, score, p, back);
        __syncthreads();
        add_rows<TILE, DIM, false>(dquery, scores, key);
        __syncthreads();
    }
    store_rows(t.dquery + head * dim, width, row, t.rows, dim, dquery, one);
}

template <int TILE, int DIM> void forward(cudaStream_t stream, const cuda_train_attention &t)
{
    using s = shape<TILE, DIM>;
    const size_t shared = (2 * s::TILE_FLOATS + s::SCORE_FLOATS + 3 * TILE) * sizeof(float);
    launch_behind(stream, forward_kernel<TILE, DIM>, dim3(div_up(t.rows, TILE), t.shape.heads), THREADS, shared, t);
}

template <int TILE, int DIM> void backward(cudaStream_t stream, const cuda_train_attention &t)
{
    using s = shape<TILE, DIM>;
    const size_t shared = (4 * s::TILE_FLOATS + s::SCORE_FLOATS) * sizeof(float);
    launch_behind(stream, delta_kernel, dim3(div_up(t.rows * t.shape.heads, THREADS / 32)), THREADS, 0, t);
    launch_behind(stream, keys_kernel<TILE, DIM>, dim3(div_up(t.rows, TILE), t.shape.kv_heads), THREADS, shared, t);
    launch_behind(stream, queries_kernel<TILE, DIM>, dim3(div_up(t.rows, TILE), t.shape.heads), THREADS, shared, t);
}

} // namespace

void cuda_train_attention_forward(cudaStream_t stream, const struct cuda_train_attention *t)
{
    if (t->rows == 0) return;
    if (t->shape.head_dim <= 64)
        forward<64, 64>(stream, *t);
    else if (t->shape.head_dim <= 128)
        forward<32, 128>(stream, *t);
    else
        forward<32, 256>(stream, *t);
}

void cuda_train_attention_backward(cudaStream_t stream, const struct cuda_train_attention *t)
{
    if (t->rows == 0) return;
    if (t->shape.head_dim <= 64)
        backward<64, 64>(stream, *t);
    else if (t->shape.head_dim <= 128)
        backward<32, 128>(stream, *t);
    else
        backward<32, 256>(stream, *t);
}
