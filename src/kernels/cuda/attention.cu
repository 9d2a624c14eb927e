// The cache and attention over its pages. A row's keys are cut into up to CHUNKS pieces whose length depends on the row's
// own number of keys alone; a block of threads does one piece for some of the query heads that share a head of keys, and
// the pieces are merged in ascending order: a row's bits do not depend on the rows beside it.
#include "common.cuh"

namespace {

constexpr int CHUNKS = 64, LEAST = 256; // pieces at most, tokens of one at least
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
__device__ void attend(const cuda_kv_view &kv, uint32_t kv_head, uint32_t begin, uint32_t end, uint32_t dim, uint32_t heads,
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

// Scratch of a row: maximum and sum [heads][CHUNKS], then out [heads][CHUNKS][dim].
__host__ __device__ __forceinline__ size_t row_scratch(const cuda_attention_shape &shape)
{
    return (size_t)shape.heads * CHUNKS * (shape.head_dim + 2);
}

template <int HELD>
__global__ void __launch_bounds__(THREADS) chunk_kernel(const float *query, size_t ldq, const cuda_attention_row *rows,
                                                        cuda_attention_shape shape, float *scratch)
{
    extern __shared__ __align__(16) float q[]; // [HEADS][dim]
    __shared__ shared_part s;
    const cuda_attention_row row = rows[blockIdx.x];
    const span keys = span_of(row.position, shape.window);
    const uint32_t begin = keys.begin + blockIdx.z * keys.chunk;
    if (begin >= keys.end) return;
    const uint32_t end = min(keys.end, begin + keys.chunk), dim = shape.head_dim;
    const uint32_t group = shape.heads / shape.kv_heads, parts = (group + HEADS - 1) / HEADS;
    const uint32_t kv_head = blockIdx.y / parts, part = blockIdx.y % parts;
    const uint32_t first = kv_head * group + part * HEADS, heads = min((uint32_t)HEADS, group - part * HEADS);
    const float *from = query + blockIdx.x * ldq + (size_t)first * dim;
    for (uint32_t i = threadIdx.x; i < HEADS * dim; i += THREADS) q[i] = i < heads * dim ? from[i] : 0.0f;
    float *mine = scratch + blockIdx.x * row_scratch(shape);
    chunk_out to;
    to.maximum = mine + (size_t)first * CHUNKS + blockIdx.z;
    to.sum = to.maximum + (size_t)shape.heads * CHUNKS;
    to.out = mine + (size_t)shape.heads * CHUNKS * 2 + ((size_t)first * CHUNKS + blockIdx.z) * dim;
    const cuda_kv_view kv = *row.kv;
    if (kv.type == 1)
        attend<true, HELD>(kv, kv_head, begin, end, dim, heads, shape, q, s, to);
    else
        attend<false, HELD>(kv, kv_head, begin, end, dim, heads, shape, q, s, to);
}

__global__ void __launch_bounds__(THREADS)
    merge_kernel(float *out, size_t ldo, const cuda_attention_row *rows, cuda_attention_shape shape, const float *scratch)
{
    const span keys = span_of(rows[blockIdx.x].position, shape.window);
    const uint32_t chunks = (keys.end - keys.begin + keys.chunk - 1) / keys.chunk, head = blockIdx.y, dim = shape.head_dim;
    const float *mine = scratch + blockIdx.x * row_scratch(shape);
    const float *maximum = mine + (size_t)head * CHUNKS, *sum = maximum + (size_t)shape.heads * CHUNKS;
    const float *part = mine + (size_t)shape.heads * CHUNKS * 2 + (size_t)head * CHUNKS * dim;
    float largest = -INFINITY, total = 0.0f;
    if (shape.sinks) largest = shape.sinks[head];
    for (uint32_t c = 0; c < chunks; c++) largest = fmaxf(largest, maximum[c]);
    if (shape.sinks) total = expf(shape.sinks[head] - largest);
    for (uint32_t c = 0; c < chunks; c++) total = fmaf(sum[c], expf(maximum[c] - largest), total);
    for (uint32_t d = threadIdx.x; d < dim; d += THREADS) {
        float v = 0.0f;
        for (uint32_t c = 0; c < chunks; c++) v = fmaf(part[(size_t)c * dim + d], expf(maximum[c] - largest), v);
        out[blockIdx.x * ldo + (size_t)head * dim + d] = v / total;
    }
}

__global__ void rows_kernel(cuda_attention_row *out, const cuda_kv_view *const *kv, const uint32_t *positions, size_t count,
                            uint32_t layer)
{
    const size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) out[i] = cuda_attention_row{kv[i] + layer, positions[i]};
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

void cuda_attention(cudaStream_t stream, float *out, size_t ldo, const float *query, size_t ldq,
                    const struct cuda_attention_row *rows, size_t count, const struct cuda_attention_shape *shape, void *scratch,
                    size_t scratch_bytes)
{
    const uint32_t group = shape->heads / shape->kv_heads, parts = div_up(group, HEADS);
    const size_t at_once = scratch_bytes / cuda_attention_scratch(shape, 1), shared = HEADS * shape->head_dim * sizeof(float);
    float *room = static_cast<float *>(scratch);
    for (size_t at = 0, n; at < count; at += n) {
        n = count - at < at_once ? count - at : at_once;
        const dim3 grid((unsigned)n, shape->kv_heads * parts, CHUNKS);
        const float *q = query + at * ldq;
        if (shape->head_dim <= THREADS)
            chunk_kernel<1><<<grid, THREADS, shared, stream>>>(q, ldq, rows + at, *shape, room);
        else if (shape->head_dim <= 2 * THREADS)
            chunk_kernel<2><<<grid, THREADS, shared, stream>>>(q, ldq, rows + at, *shape, room);
        else
            chunk_kernel<DIMS><<<grid, THREADS, shared, stream>>>(q, ldq, rows + at, *shape, room);
        merge_kernel<<<dim3((unsigned)n, shape->heads), THREADS, 0, stream>>>(out + at * ldo, ldo, rows + at, *shape, room);
    }
}
