// The cache and attention over its pages. A row's keys are cut into up to CHUNKS pieces whose length depends on the row's
// own number of keys alone; a block of threads does one piece for some of the query heads that share a head of keys, and
// the pieces are merged in ascending order: a row's bits do not depend on the rows beside it.
#include "turbo_pieces.cuh"

namespace {

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

// MIXED: some rows are packed, which turbo_attention.cu merges.
template <bool MIXED>
__global__ void __launch_bounds__(THREADS) merge_kernel(float *out, size_t ldo, const cuda_attention_row *rows, uint32_t layer,
                                                        cuda_attention_shape shape, const float *scratch)
{
    __shared__ float factor[CHUNKS];
    let_next_start();
    wait_for_previous();
    if (MIXED && rows[blockIdx.x].kv[layer].type == 2) return;
    const span keys = span_of(rows[blockIdx.x].position, shape.window);
    const uint32_t chunks = (keys.end - keys.begin + keys.chunk - 1) / keys.chunk, head = blockIdx.y, dim = shape.head_dim;
    const float *mine = scratch + blockIdx.x * row_scratch(shape);
    const float *part = mine + (size_t)shape.heads * CHUNKS * 2 + (size_t)head * CHUNKS * dim;
    const float total = merge_factors(mine, shape, head, chunks, threadIdx.x < 32 ? factor : nullptr);
    __syncthreads();
    for (uint32_t d = threadIdx.x; d < dim; d += THREADS)
        out[blockIdx.x * ldo + (size_t)head * dim + d] = merged(part + d, dim, chunks, factor, total);
}

// The same of all heads of a row, prepared for the product behind it.
constexpr int ROW_THREADS = 512, MOST_HEADS = 64;

struct merge_row {
    cuda_attention_shape shape;
    const cuda_attention_row *rows;
    uint32_t layer;
    const float *scratch;
    float *out; // NULL: not wanted
    size_t ldo, floats, sign_words; // of the row in shared memory, and behind it
    prepared to;
};

// PACKED: some rows are, and have heads to be rotated back before.
template <typename Out, bool PACKED>
__global__ void __launch_bounds__(ROW_THREADS) merge_row_kernel(const __grid_constant__ merge_row p)
{
    extern __shared__ __align__(16) float row[];
    __shared__ float factor[MOST_HEADS][CHUNKS], total[MOST_HEADS];
    __shared__ uint32_t reduce[2];
    uint32_t *words = reinterpret_cast<uint32_t *>(row + p.floats);
    if (threadIdx.x < 2) reduce[threadIdx.x] = 0;
    stage_signs(p.to.r, words);
    let_next_start();
    wait_for_previous();
    const cuda_attention_row at = p.rows[blockIdx.x];
    const span keys = span_of(at.position, p.shape.window);
    const uint32_t dim = p.shape.head_dim;
    uint32_t chunks = (keys.end - keys.begin + keys.chunk - 1) / keys.chunk;
    const cuda_turbo_codec *turned = nullptr;
    if (PACKED) {
        const cuda_kv_view kv = at.kv[p.layer];
        if (kv.type == 2) {
            chunks = packed_span_of(at, kv, p.shape, nullptr).pieces;
            turned = &kv.turbo->value;
        }
    }
    float *heads = row + p.floats + p.sign_words; // of a packed row, by themselves
    const float *mine = p.scratch + blockIdx.x * row_scratch(p.shape);
    for (uint32_t h = threadIdx.x / 32; h < p.shape.heads; h += ROW_THREADS / 32) {
        const float sum = merge_factors(mine, p.shape, h, chunks, factor[h]);
        if (threadIdx.x % 32 == 0) total[h] = sum;
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
            if (PACKED && turned) {
                heads[i] = v[e];
                continue;
            }
            row[place_of((int)i)] = input_of(p.to, words, (int)i, v[e]);
            if (p.out) p.out[blockIdx.x * p.ldo + i] = v[e];
        }
    }
    if (PACKED && turned) {
        __syncthreads();
        for (uint32_t h = threadIdx.x / 32; h < p.shape.heads; h += ROW_THREADS / 32) {
            warp_unrotate(heads + h * dim, *turned);
            for (uint32_t i = h * dim + threadIdx.x % 32; i < (h + 1) * dim; i += 32) {
                row[place_of((int)i)] = input_of(p.to, words, (int)i, heads[i]);
                if (p.out) p.out[blockIdx.x * p.ldo + i] = heads[i];
            }
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
    view.type = p.type, view.page_tokens = p.page_tokens, view.k_pages = k, view.v_pages = v, view.turbo = p.turbo;
    p.views[row] = view;
    p.rows[row] = cuda_attention_row{p.views + row, (uint32_t)p.positions[row]};
}

__global__ void __launch_bounds__(THREADS)
    append_kernel(const cuda_attention_row *rows, const float *k, const float *v, size_t ld, uint32_t kv_heads, uint32_t dim)
{
    const cuda_attention_row row = rows[blockIdx.x];
    const cuda_kv_view kv = *row.kv;
    if (kv.type == 2) return;
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
        launch_early(stream, shape->mixed ? merge_kernel<true> : merge_kernel<false>, dim3((unsigned)n, shape->heads), THREADS, 0,
                     out + at * ldo, ldo, rows + at, layer, *shape, (const float *)room);
    }
}

bool cuda_attention_prepared_fits(const struct cuda_attention_shape *shape, const struct cuda_prepared *to, size_t rows,
                                  size_t scratch_bytes)
{
    const size_t width = (size_t)shape->heads * shape->head_dim;
    if (to->rotation.count == 0 && to->type == CUDA_TYPE_I8) return false;
    const size_t most = to->rotation.padded > width ? to->rotation.padded : width;
    const size_t heads = shape->packed ? width * sizeof(float) : 0;
    return shape->heads <= MOST_HEADS && row_floats(most) * sizeof(float) + sign_bytes(to->rotation) + heads <= (160 << 10) &&
           cuda_attention_scratch(shape, rows) <= scratch_bytes;
}

void cuda_attention_prepared(cudaStream_t stream, float *out, size_t ldo, const float *query, size_t ldq,
                             const struct cuda_attention_row *rows, size_t count, uint32_t layer,
                             const struct cuda_attention_shape *shape, void *scratch, const struct cuda_prepared *to)
{
    if (count == 0) return;
    float *room = static_cast<float *>(scratch);
    if (!shape->packed || shape->mixed) attend_pieces(stream, query, ldq, rows, count, layer, *shape, room);
    if (shape->packed) cuda_turbo_pieces(stream, query, ldq, rows, count, layer, shape, room);
    const size_t width = (size_t)shape->heads * shape->head_dim, most = to->rotation.padded > width ? to->rotation.padded : width;
    merge_row p = {*shape, rows, layer, room, out, ldo, row_floats(most), 0, prepared_of(*to)};
    p.sign_words = sign_bytes(p.to.r) / sizeof(uint32_t);
    const size_t shared = (p.floats + p.sign_words + (shape->packed ? width : 0)) * sizeof(float);
    const dim3 grid((unsigned)count);
    auto start = [&](auto kernel) { launch_early(stream, kernel, grid, ROW_THREADS, shared, p); };
    switch (to->type) {
    case CUDA_TYPE_I8: shape->packed ? start(merge_row_kernel<int8_t, true>) : start(merge_row_kernel<int8_t, false>); break;
    case CUDA_TYPE_BF16:
        shape->packed ? start(merge_row_kernel<half_bits<true>, true>) : start(merge_row_kernel<half_bits<true>, false>);
        break;
    default: shape->packed ? start(merge_row_kernel<float, true>) : start(merge_row_kernel<float, false>); break;
    }
}
