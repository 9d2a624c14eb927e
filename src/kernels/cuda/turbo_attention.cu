// Attention over packed pages. A query is rotated once by a block of threads, keys and values never: scores and sums are taken
// of levels, which are integers that f16 holds, and the row's result is rotated back behind the merge of its pieces. Of recent
// tokens (a ring, or a prompt's own rows) f16 copies in the rotated space are read; they are pieces of their own, behind the packed ones.
#include "turbo_pieces.cuh"

namespace {

struct call {
    const float *query;
    size_t ldq;
    const cuda_attention_row *rows, *first; // first: the row that the call begins with
    uint32_t layer;
    cuda_attention_shape shape;
    float *scratch;
};

__device__ __forceinline__ piece piece_at(const packed_span &s, uint32_t z)
{
    const bool packed = z < s.packed;
    const uint32_t begin = packed ? s.begin + z * s.chunk : s.split + (z - s.packed) * s.chunk;
    return {begin, min(begin + s.chunk, packed ? s.split : s.end)};
}

// What a block of threads does: pieces blockIdx.z, + gridDim.z, ... of a row for some of the heads that share keys.
struct packed_job {
    cuda_kv_view kv;
    packed_span keys;
    uint32_t kv_head, first, heads;
    float *mine;
};
__device__ __forceinline__ bool packed_job_of(const call &c, packed_job *j)
{
    const cuda_attention_row row = c.rows[blockIdx.x];
    j->kv = row.kv[c.layer];
    if (j->kv.type != PACKED) return false;
    j->keys = packed_span_of(row, j->kv, c.shape, c.first);
    const uint32_t group = c.shape.heads / c.shape.kv_heads, parts = (group + HEADS - 1) / HEADS, part = blockIdx.y % parts;
    j->kv_head = blockIdx.y / parts;
    j->first = j->kv_head * group + part * HEADS;
    j->heads = min((uint32_t)HEADS, group - part * HEADS);
    j->mine = c.scratch + blockIdx.x * row_scratch(c.shape);
    return true;
}
__device__ __forceinline__ chunk_out chunk_of(const packed_job &j, const cuda_attention_shape &shape, uint32_t z)
{
    chunk_out to;
    to.maximum = j.mine + (size_t)j.first * CHUNKS + z;
    to.sum = to.maximum + (size_t)shape.heads * CHUNKS;
    to.out = j.mine + (size_t)shape.heads * CHUNKS * 2 + ((size_t)j.first * CHUNKS + z) * shape.head_dim;
    return to;
}

// q [HEADS][dim] in shared memory: the rotated queries, zero for heads beyond.
__device__ __forceinline__ void rotate_queries(const call &c, const packed_job &j, float *q)
{
    const uint32_t dim = c.shape.head_dim, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const float *query = c.query + blockIdx.x * c.ldq + (size_t)j.first * dim;
    for (uint32_t h = warp; h < HEADS; h += WARPS) {
        for (uint32_t i = lane; i < dim; i += 32) q[h * dim + i] = h < j.heads ? query[h * dim + i] : 0.0f;
        if (h < j.heads) warp_rotate(q + h * dim, j.kv.turbo->key);
    }
    __syncthreads();
}

// The f16 view of the tokens of a piece behind the packed ones, and the piece as it counts there.
__device__ __forceinline__ cuda_kv_view recent_view(const call &c, const packed_job &j, piece *tokens, void **pages)
{
    if (!c.shape.own.k) return *j.kv.recent;
    const uint32_t before = c.first->position / c.shape.own.tokens * c.shape.own.tokens;
    tokens->begin -= before, tokens->end -= before;
    cuda_kv_view view = {};
    view.type = 1, view.page_tokens = c.shape.own.tokens;
    if (threadIdx.x == 0) pages[0] = c.shape.own.k, pages[1] = c.shape.own.v;
    __syncthreads();
    view.k_pages = pages, view.v_pages = pages + 1;
    return view;
}

// --- any dimension, any bits ---

// Tokens [begin, end) of packed pages for `heads` rotated queries, as attend() of attention.cuh.
template <int HELD>
__device__ __noinline__ void attend_packed(const packed_job &j, const piece &tokens, const cuda_attention_shape &shape, const float *q,
                                           shared_part &s, const chunk_out &to)
{
    const cuda_turbo_codec &kc = j.kv.turbo->key, &vc = j.kv.turbo->value;
    const uint32_t tid = threadIdx.x, warp = tid / 32, lane = tid % 32, dim = shape.head_dim, page_tokens = j.kv.page_tokens;
    const size_t key_head = j.kv_head * packed_head_bytes(kc, page_tokens), value_head = j.kv_head * packed_head_bytes(vc, page_tokens);
    float sum[HEADS][HELD];
#pragma unroll
    for (int i = 0; i < HEADS * HELD; i++) sum[i / HELD][i % HELD] = 0.0f;
    __syncthreads();
    if (tid < HEADS) s.maximum[tid] = -INFINITY, s.sum[tid] = 0.0f;
    for (uint32_t tile = tokens.begin; tile < tokens.end; tile += TILE) {
        const uint32_t count = min((uint32_t)TILE, tokens.end - tile);
        __syncthreads();
        if (tid < count) {
            const uint32_t token = tile + tid, slot = token % page_tokens;
            const uint8_t *head = static_cast<const uint8_t *>(j.kv.k_pages[token / page_tokens]) + key_head;
            const float norm = f32_from_f16(reinterpret_cast<const uint16_t *>(head + code_bytes(kc, page_tokens))[slot]);
            float dot[HEADS];
#pragma unroll
            for (int h = 0; h < HEADS; h++) dot[h] = 0.0f;
            for (uint32_t d = 0; d < dim; d++) {
                const float level = (float)kc.value[key_code(kc, head, slot, d)];
#pragma unroll
                for (int h = 0; h < HEADS; h++) dot[h] = fmaf(q[h * dim + d], level, dot[h]);
            }
#pragma unroll
            for (int h = 0; h < HEADS; h++) {
                float score = shape.scale * (dot[h] * (norm * kc.scale));
                if (shape.soft_cap != 0.0f) score = shape.soft_cap * tanhf(score / shape.soft_cap);
                s.score[h][tid] = score;
            }
        }
        __syncthreads();
        for (uint32_t h = warp; h < j.heads; h += WARPS) {
            float x[TILE / 32], largest = -INFINITY, add = 0.0f;
#pragma unroll
            for (int i = 0; i < TILE / 32; i++) {
                x[i] = lane + 32 * i < count ? s.score[h][lane + 32 * i] : -INFINITY;
                largest = fmaxf(largest, x[i]);
            }
#pragma unroll
            for (int i = 16; i > 0; i >>= 1) largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, i));
            const float maximum = fmaxf(s.maximum[h], largest);
#pragma unroll
            for (int i = 0; i < TILE / 32; i++) {
                const uint32_t at = lane + 32 * i;
                const float weight = at < count ? expf(x[i] - maximum) : 0.0f;
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
            if (i / HELD < (int)j.heads) sum[i / HELD][i % HELD] *= s.keep[i / HELD];
        for (uint32_t t = 0; t < count; t++) {
            const uint32_t token = tile + t, slot = token % page_tokens;
            const uint8_t *head = static_cast<const uint8_t *>(j.kv.v_pages[token / page_tokens]) + value_head;
            const float norm = f32_from_f16(reinterpret_cast<const uint16_t *>(head + code_bytes(vc, page_tokens))[slot]) * vc.scale;
            float x[HELD];
#pragma unroll
            for (int i = 0; i < HELD; i++)
                x[i] = tid + i * THREADS < dim ? (float)vc.value[value_code(vc, head, page_tokens, slot, tid + i * THREADS)] * norm : 0.0f;
#pragma unroll
            for (int h = 0; h < HEADS; h++)
                if (h < (int)j.heads) {
                    const float weight = s.score[h][t];
#pragma unroll
                    for (int i = 0; i < HELD; i++) sum[h][i] = fmaf(weight, x[i], sum[h][i]);
                }
        }
    }
    __syncthreads();
    if (tid < j.heads) to.maximum[tid * CHUNKS] = s.maximum[tid], to.sum[tid * CHUNKS] = s.sum[tid];
#pragma unroll
    for (int h = 0; h < HEADS; h++)
#pragma unroll
        for (int i = 0; i < HELD; i++)
            if (h < (int)j.heads && tid + i * THREADS < dim) to.out[(size_t)h * CHUNKS * dim + tid + i * THREADS] = sum[h][i];
}

template <int HELD> __global__ void __launch_bounds__(THREADS) packed_chunk_kernel(const __grid_constant__ call c)
{
    extern __shared__ __align__(16) float queries[];
    __shared__ shared_part s;
    __shared__ void *pages[2];
    let_next_start();
    wait_for_previous();
    packed_job j;
    if (!packed_job_of(c, &j)) return;
    rotate_queries(c, j, queries);
    for (uint32_t z = blockIdx.z; z < j.keys.pieces; z += gridDim.z) {
        piece tokens = piece_at(j.keys, z);
        const chunk_out to = chunk_of(j, c.shape, z);
        if (z < j.keys.packed) {
            attend_packed<HELD>(j, tokens, c.shape, queries, s, to);
            continue;
        }
        const cuda_kv_view view = recent_view(c, j, &tokens, pages);
        __syncthreads();
        attend<true, HELD>(view, j.kv_head, tokens.begin, tokens.end, c.shape.head_dim, j.heads, c.shape, queries, s, to);
    }
}

// --- heads of 64 and 128: packed pieces by turbo_tiles.cu, the others here ---

// The f16 pieces.
template <int DIM> __global__ void __launch_bounds__(THREADS) recent_tiles_kernel(const __grid_constant__ call c)
{
    __shared__ __align__(16) float q[HEADS * DIM];
    __shared__ void *pages[2];
    extern __shared__ __align__(16) uint8_t tiles[];
    let_next_start();
    wait_for_previous();
    packed_job j;
    if (!packed_job_of(c, &j) || j.keys.packed + blockIdx.z >= j.keys.pieces) return;
    rotate_queries(c, j, q);
    shared_tiles<DIM> &s = *reinterpret_cast<shared_tiles<DIM> *>(tiles);
    split_query<DIM>(q, s);
    __syncthreads();
    for (uint32_t z = j.keys.packed + blockIdx.z; z < j.keys.pieces; z += gridDim.z) {
        piece tokens = piece_at(j.keys, z);
        const cuda_kv_view view = recent_view(c, j, &tokens, pages);
        tiles_state<DIM> state;
        state.maximum = -INFINITY, state.sum = 0.0f;
#pragma unroll
        for (int i = 0; i < DIM / 8 * 4; i++) state.out[i / 4][i % 4] = 0.0f;
        attend_tiles<DIM>(view, j.kv_head, tokens, c.shape, s, state);
        __syncthreads();
        merge_warps<DIM>(state, (int)j.heads, s, chunk_of(j, c.shape, z));
    }
}

// --- the pieces of a row, in ascending order, rotated back ---

__global__ void __launch_bounds__(THREADS) packed_merge_kernel(float *out, size_t ldo, const __grid_constant__ call c)
{
    extern __shared__ __align__(16) float row[]; // [dim]
    __shared__ float factor[CHUNKS];
    let_next_start();
    wait_for_previous();
    const cuda_attention_row r = c.rows[blockIdx.x];
    const cuda_kv_view kv = r.kv[c.layer];
    if (kv.type != PACKED) return;
    const uint32_t head = blockIdx.y, dim = c.shape.head_dim, pieces = packed_span_of(r, kv, c.shape, c.first).pieces;
    const float *mine = c.scratch + blockIdx.x * row_scratch(c.shape);
    const float *part = mine + (size_t)c.shape.heads * CHUNKS * 2 + (size_t)head * CHUNKS * dim;
    const float total = merge_factors(mine, c.shape, head, pieces, threadIdx.x < 32 ? factor : nullptr);
    __syncthreads();
    for (uint32_t d = threadIdx.x; d < dim; d += THREADS) row[d] = merged(part + d, dim, pieces, factor, total);
    __syncthreads();
    if (threadIdx.x >= 32) return;
    warp_unrotate(row, kv.turbo->value);
    for (uint32_t d = threadIdx.x; d < dim; d += 32) out[blockIdx.x * ldo + (size_t)head * dim + d] = row[d];
}

constexpr unsigned ENOUGH = 132 * 3 * 8; // blocks of threads: beyond, one does several pieces

void attend_packed_pieces(cudaStream_t stream, const call &c, size_t n)
{
    const cuda_attention_shape &shape = c.shape;
    const uint32_t group = shape.heads / shape.kv_heads, parts = div_up(group, HEADS);
    const unsigned each = (unsigned)n * shape.kv_heads * parts, most = div_up(ENOUGH, each);
    const dim3 grid((unsigned)n, shape.kv_heads * parts, most < CHUNKS ? most : CHUNKS);
    const bool tiles = cuda_turbo_tiles_fit(shape.head_dim) && (!shape.own.k || shape.own.tokens % TILE_TOKENS == 0);
    auto start = [&](auto kernel, size_t bytes) { launch_early(stream, kernel, grid, THREADS, bytes, c); };
    if (tiles) {
        cuda_turbo_tiles(stream, c.query, c.ldq, c.rows, n, c.layer, &shape, c.first, c.scratch);
        if (!shape.recent && !shape.own.k) return;
        shape.head_dim == 128 ? start(recent_tiles_kernel<128>, sizeof(shared_tiles<128>))
                              : start(recent_tiles_kernel<64>, sizeof(shared_tiles<64>));
    } else {
        const size_t shared = HEADS * shape.head_dim * sizeof(float);
        if (shape.head_dim <= THREADS)
            start(packed_chunk_kernel<1>, shared);
        else if (shape.head_dim <= 2 * THREADS)
            start(packed_chunk_kernel<2>, shared);
        else
            start(packed_chunk_kernel<DIMS>, shared);
    }
}

} // namespace

void cuda_turbo_pieces(cudaStream_t stream, const float *query, size_t ldq, const struct cuda_attention_row *rows, size_t count,
                       uint32_t layer, const struct cuda_attention_shape *shape, void *scratch)
{
    attend_packed_pieces(stream, {query, ldq, rows, rows, layer, *shape, static_cast<float *>(scratch)}, count);
}

void cuda_turbo_attention(cudaStream_t stream, float *out, size_t ldo, const float *query, size_t ldq,
                          const struct cuda_attention_row *rows, size_t count, uint32_t layer,
                          const struct cuda_attention_shape *shape, void *scratch, size_t scratch_bytes)
{
    const size_t at_once = scratch_bytes / cuda_attention_scratch(shape, 1);
    for (size_t at = 0, n; at < count; at += n) {
        n = count - at < at_once ? count - at : at_once;
        const call c = {query + at * ldq, ldq, rows + at, rows, layer, *shape, static_cast<float *>(scratch)};
        attend_packed_pieces(stream, c, n);
        launch_early(stream, packed_merge_kernel, dim3((unsigned)n, shape->heads), THREADS, shape->head_dim * sizeof(float),
                     out + at * ldo, ldo, c);
    }
}
