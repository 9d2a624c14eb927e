// Packed caches: keys and values as codes, appended by five warps for each vector, one for each stretch (formats/turbo.h, bit for
// bit).
#include "turbo.cuh"

namespace {

constexpr int STRETCHES = 5, APPEND_THREADS = 32 * STRETCHES;
__constant__ const float stretches[STRETCHES] = {1.0f, 0.95f, 1.05f, 0.9f, 1.1f};

// What an encoder reads of a codec, in shared memory.
struct book {
    float tree[256], value[256];
};

// Sixteen sums of a[i] * b[i] with equal i % 16, folded by halves, in lanes 0..15; another pair of vectors in lanes 16..31.
// The result in lanes 0 and 16.
__device__ __forceinline__ float dot16(const float *a, const float *b, uint32_t dim)
{
    float s = 0.0f;
    for (uint32_t i = threadIdx.x % 16; i < dim; i += 16) s = __fadd_rn(s, __fmul_rn(a[i], b[i]));
#pragma unroll
    for (int width = 8; width > 0; width /= 2) s = __fadd_rn(s, __shfl_down_sync(0xffffffffu, s, width));
    return s;
}

// codes[dim] of y * stretch by a warp; how well they point the way of y. value [dim] is scratch.
__device__ __forceinline__ float find_codes(const cuda_turbo_codec &c, const book &b, const float *y, float stretch, uint8_t *codes,
                                            float *value)
{
    const uint32_t lane = threadIdx.x % 32;
    __syncwarp();
    for (uint32_t i = lane; i < c.dim; i += 32) {
        const float v = __fmul_rn(y[i], stretch);
        uint32_t node = 1;
        while (node < c.levels) node = 2 * node + (b.tree[node] < v);
        codes[i] = (uint8_t)(node - c.levels);
        value[i] = b.value[node - c.levels];
    }
    __syncwarp();
    const float s = dot16(lane < 16 ? y : value, value, c.dim);
    const float along = __shfl_sync(0xffffffffu, s, 0), squares = __shfl_sync(0xffffffffu, s, 16);
    return __fdiv_rn(along, __fsqrt_rn(squares));
}

// walsh_turbo_norm, by a warp.
__device__ __forceinline__ uint16_t norm_of(const cuda_turbo_codec &c, float g, const uint8_t *codes, bool *saturated)
{
    if (c.correction) {
        unsigned long long squares = 0;
        for (uint32_t i = threadIdx.x % 32; i < c.dim; i += 32) {
            const int value = c.value[codes[i]];
            squares += (unsigned)(value * value);
        }
#pragma unroll
        for (int lane = 16; lane > 0; lane >>= 1) squares += __shfl_xor_sync(0xffffffffu, squares, lane);
        g = __fdiv_rn(g, __fmul_rn(c.scale, __fsqrt_rn(__ull2float_rn(squares))));
    }
    *saturated = g > 65504.0f;
    return isnan(g) ? 0x7e00 : f16_from_f32(g);
}

// The word of row `row` of a plane, codes [32] or [16] of a lane's group.
__device__ __forceinline__ uint32_t word_from(plane p, unsigned row, const uint8_t *codes)
{
    const uint32_t mask = (1u << p.width) - 1;
    uint32_t word = 0;
    codes += row * 2 * (16 / p.width);
    for (unsigned shift = 0; shift < 16; shift += p.width, codes += 2)
        word |= ((codes[0] >> p.low & mask) | (codes[1] >> p.low & mask) << 16) << shift;
    return word;
}

__device__ __forceinline__ void store_key(const cuda_turbo_codec &c, uint8_t *head, uint32_t slot, const uint8_t *codes)
{
    uint8_t *at = head + (size_t)(slot / 16) * 2 * c.dim * c.bits;
    const uint32_t lane = slot % 16, groups = c.dim / 32;
    for (uint32_t w = threadIdx.x; w < groups * c.bits; w += APPEND_THREADS) {
        const plane p = plane_of(c.bits, w % c.bits);
        reinterpret_cast<uint32_t *>(at + (size_t)w * 64)[lane] = word_from(p, w % c.bits - p.low, codes + w / c.bits * 32);
    }
    if (c.dim % 32 == 0 || threadIdx.x >= c.bits) return;
    at += (size_t)groups * c.bits * 64;
    codes += groups * 32;
    const plane p = plane_of(c.bits, threadIdx.x);
    const unsigned row = threadIdx.x - p.low;
    at += p.low / 2 * 64;
    if (p.width > 1) {
        if (row < p.width / 2) reinterpret_cast<uint32_t *>(at + row * 64)[lane] = word_from(p, row, codes);
        return;
    }
    uint32_t word = 0;
    for (unsigned i = 0; i < 8; i++) word |= (codes[2 * i] >> p.low & 1u) << i | (codes[2 * i + 1] >> p.low & 1u) << (8 + i);
    reinterpret_cast<uint16_t *>(at)[lane] = (uint16_t)word;
}

// Other blocks may write other tokens' bits of the same words: the old bits are this token's alone, so their difference is.
__device__ __forceinline__ void store_value(const cuda_turbo_codec &c, uint8_t *head, uint32_t page_tokens, uint32_t slot,
                                            const uint8_t *codes)
{
    uint8_t *at = head + (size_t)(slot / 32) * c.bits * 64;
    const size_t stride = value_stride(c.bits, page_tokens);
    const uint32_t i = slot % 32 / 2;
    for (unsigned low = 0; low < c.bits;) {
        const plane p = plane_of(c.bits, low);
        const unsigned shift = i % (16 / p.width) * p.width + slot % 2 * 16;
        const uint32_t mask = (1u << p.width) - 1;
        uint8_t *row = at + (low + i / (16 / p.width)) * 64;
        for (uint32_t d = threadIdx.x; d < c.dim; d += APPEND_THREADS) {
            uint32_t *word = reinterpret_cast<uint32_t *>(row + d / 16 * stride) + d % 16;
            const uint32_t old = *reinterpret_cast<volatile uint32_t *>(word);
            const uint32_t change = ((old >> shift) ^ (codes[d] >> low)) & mask;
            if (change) atomicXor(word, change << shift);
        }
        low += p.width;
    }
}

struct append {
    const cuda_attention_row *rows;
    const float *k, *v;
    size_t ld;
    uint32_t dim, layer;
    cuda_own own;
};

// Whether a later row of the call is to stand in the ring where this one would (rows of a cache stand together, in their order): the
// blocks of either run at the same time, and the later token is the one that stays.
__device__ __forceinline__ bool overtaken(const append &p, const cuda_attention_row &row, const cuda_kv_view &recent)
{
    const uint32_t tokens = recent.page_tokens;
    for (uint32_t later = tokens; blockIdx.x + later < gridDim.x; later += tokens) {
        const cuda_attention_row other = p.rows[blockIdx.x + later];
        if (other.kv != row.kv) return false;
        if (recent.k_pages[other.position / tokens] == recent.k_pages[row.position / tokens]) return true;
    }
    return false;
}

// One vector: blockIdx.x the row, y the head, z the side.
__global__ void __launch_bounds__(APPEND_THREADS) turbo_append_kernel(const __grid_constant__ append p)
{
    extern __shared__ __align__(16) float room[]; // y, then scratch of each warp, then codes of each
    __shared__ book levels;
    __shared__ float fit[STRETCHES], length;
    let_next_start();
    wait_for_previous();
    const cuda_attention_row row = p.rows[blockIdx.x];
    const cuda_kv_view kv = row.kv[p.layer];
    if (kv.type != PACKED) return;
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, head = blockIdx.y, dim = p.dim,
                   page = row.position / kv.page_tokens;
    const bool key = blockIdx.z == 0;
    const cuda_turbo_codec &c = key ? kv.turbo->key : kv.turbo->value;
    const float *x = (key ? p.k : p.v) + blockIdx.x * p.ld + (size_t)head * dim;
    float *y = room, *value = y + (1 + warp) * dim;
    uint8_t *all_codes = reinterpret_cast<uint8_t *>(y + (1 + STRETCHES) * dim), *codes = all_codes + warp * dim;

    if (warp == 0) {
        for (uint32_t i = lane; i < dim; i += 32) y[i] = x[i];
        __syncwarp();
        const float g = __fsqrt_rn(__shfl_sync(0xffffffffu, dot16(y, y, dim), 0));
        const float inverse = __fdiv_rn(1.0f, g > 1e-6f ? g : 1e-6f);
        for (uint32_t i = lane; i < dim; i += 32) y[i] = __fmul_rn(y[i], inverse);
        warp_rotate(y, c);
        if (lane == 0) length = g;
    } else {
        for (uint32_t i = threadIdx.x - 32; i < c.levels; i += APPEND_THREADS - 32)
            levels.tree[i] = c.tree[i], levels.value[i] = (float)c.value[i];
    }
    __syncthreads();
    const uint32_t tries = c.correction && c.bits > 1 ? STRETCHES : 1;
    if (warp < tries) {
        const float mine = find_codes(c, levels, y, stretches[warp], codes, value);
        if (lane == 0) fit[warp] = mine;
    }
    __syncthreads();
    uint32_t best = 0;
    for (uint32_t k = 1; k < tries; k++)
        if (fit[k] > fit[best]) best = k;
    codes = all_codes + best * dim;

    uint8_t *at = static_cast<uint8_t *>((key ? kv.k_pages : kv.v_pages)[page]) + head * packed_head_bytes(c, kv.page_tokens);
    const uint32_t slot = row.position % kv.page_tokens;
    if (key)
        store_key(c, at, slot, codes);
    else
        store_value(c, at, kv.page_tokens, slot, codes);
    if (warp == 0) {
        bool saturated;
        const uint16_t norm = norm_of(c, length, codes, &saturated);
        if (lane == 0) reinterpret_cast<uint16_t *>(at + code_bytes(c, kv.page_tokens))[slot] = norm;
        if (lane == 0 && saturated) atomicAdd(&kv.turbo->saturated, 1ull);
    }

    void *const own = key ? p.own.k : p.own.v;
    if (warp != STRETCHES - 1 || (!kv.recent && !own)) return;
    for (uint32_t i = lane; i < dim; i += 32) value[i] = x[i];
    warp_rotate(value, c);
    __syncwarp();
    if (kv.recent && !overtaken(p, row, *kv.recent)) {
        const cuda_kv_view recent = *kv.recent;
        uint16_t *to = static_cast<uint16_t *>((key ? recent.k_pages : recent.v_pages)[row.position / recent.page_tokens]) +
                       ((size_t)head * recent.page_tokens + row.position % recent.page_tokens) * dim;
        for (uint32_t i = lane; i < dim; i += 32) to[i] = f16_from_f32(value[i]);
    }
    if (own) {
        uint16_t *to = static_cast<uint16_t *>(own) + ((size_t)head * p.own.tokens + row.position % p.own.tokens) * dim;
        for (uint32_t i = lane; i < dim; i += 32) to[i] = f16_from_f32(value[i]);
    }
}

} // namespace

void cuda_turbo_append(cudaStream_t stream, const struct cuda_attention_row *rows, size_t count, const float *k, const float *v,
                       size_t ld, uint32_t layer, const struct cuda_attention_shape *shape)
{
    if (count == 0) return;
    const append p = {rows, k, v, ld, shape->head_dim, layer, shape->own};
    launch_early(stream, turbo_append_kernel, dim3((unsigned)count, shape->kv_heads, 2), APPEND_THREADS,
                 shape->head_dim * ((1 + STRETCHES) * sizeof(float) + STRETCHES), p);
}
