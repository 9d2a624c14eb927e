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

// --- heads of 64 and 128 on the tensor cores ---

// A warp does tiles of 32 tokens, every fourth one of the piece. A lane (g = lane / 4, t = lane % 4) reads 16 bytes of codes at a
// time: dimensions 8t.. of a group of 32 of tokens 16 * (g / 4) + 4 * (g % 4) + 0..3 of the tile, and of values tokens 8t.. of
// elements 16 * (g / 4) + 4 * (g % 4) + 0..3 of 32. Its scores are then those of tokens 8t.., which are its weights in the product
// with values. Levels come from a table in shared memory, once for each lane, so that no two lanes meet in a bank: of 4 bits an
// entry is two codes, whose byte of the word one PRMT makes the address.
constexpr int TILE_CODES = 32, ENTRY = 256; // tokens; bytes of an entry: lanes' words of keys, then of values

// Of 4 bits keys and values have one codebook: the other half of each entry holds what a block shares else.
template <int DIM> struct code_room {
    static constexpr size_t QUERY = 0, UNIT = DIM / 16 * 32 * 16, MAXIMUM = UNIT + HEADS * 4, SUM = MAXIMUM + WARPS * HEADS * 4,
                            OUT = (SUM + WARPS * HEADS * 4 + 127) / 128 * 128, BYTES = OUT + (size_t)WARPS * HEADS * DIM * 4;
};
template <bool FOUR> __device__ __forceinline__ uint8_t *shared_at(uint8_t *room, size_t byte)
{
    return FOUR ? room + byte / 128 * ENTRY + 128 + byte % 128 : room + 256 * ENTRY + byte;
}
template <typename T, bool FOUR> __device__ __forceinline__ T &shared_of(uint8_t *room, size_t base, size_t i)
{
    return *reinterpret_cast<T *>(shared_at<FOUR>(room, base + i * sizeof(T)));
}

__device__ __forceinline__ uint32_t f16_bits(float x)
{
    return __half_as_ushort(__float2half_rn(x));
}
// The f16 of a level, and of what that leaves of it (8 bits: levels of 12).
__device__ __forceinline__ uint32_t level_word(int value)
{
    const float high = __half2float(__float2half_rn((float)value));
    return f16_bits(high) | f16_bits((float)value - high) << 16;
}

template <bool FOUR> __device__ __forceinline__ void fill_table(const cuda_turbo &turbo, uint8_t *room)
{
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    for (uint32_t first = warp * 32; first < 256; first += THREADS) { // a lane makes an entry, all lanes write it
        const uint32_t e = first + lane;
        uint32_t key = 0, value = 0;
        if (FOUR) {
            key = f16_bits((float)turbo.key.value[e & 15]) | f16_bits((float)turbo.key.value[e >> 4]) << 16;
        } else {
            if (e < turbo.key.levels) key = level_word(turbo.key.value[e]);
            if (e < turbo.value.levels) value = level_word(turbo.value.value[e]);
        }
        for (uint32_t i = 0; i < 32; i++) {
            uint32_t *to = reinterpret_cast<uint32_t *>(room + (first + i) * ENTRY);
            to[lane] = __shfl_sync(0xffffffffu, key, (int)i);
            if (!FOUR) to[32 + lane] = __shfl_sync(0xffffffffu, value, (int)i);
        }
    }
}

// q [HEADS][DIM] as A fragments in the order of the codes: rows 0..7 f16, rows 8..15 what that leaves.
template <int DIM, bool FOUR> __device__ __forceinline__ void split_rotated(const float *q, uint8_t *room)
{
    typedef code_room<DIM> R;
    const int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32, g = lane >> 2, t = lane & 3;
    for (int h = warp; h < HEADS; h += WARPS) { // the largest element becomes about 1
        float most = 0.0f;
        for (int d = lane; d < DIM; d += 32) most = fmaxf(most, fabsf(q[h * DIM + d]));
        for (int i = 16; i > 0; i >>= 1) most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, i));
        int exponent = 0;
        if (most > 0.0f && most < INFINITY) frexpf(most, &exponent);
        exponent = max(-100, min(100, exponent));
        if (lane == 0) shared_of<float, FOUR>(room, R::UNIT, (size_t)h) = __uint_as_float((uint32_t)(127 + exponent) << 23);
    }
    __syncthreads();
    const float down = 1.0f / shared_of<float, FOUR>(room, R::UNIT, (size_t)g);
    for (int step = warp; step < DIM / 16; step += WARPS) {
        const float *from = q + g * DIM + step / 2 * 32 + 8 * t + step % 2;
        uint4 a;
        split_pair(from[0] * down, from[2] * down, &a.x, &a.y);
        split_pair(from[4] * down, from[6] * down, &a.z, &a.w);
        shared_of<uint4, FOUR>(room, R::QUERY, (size_t)(step * 32 + lane)) = a;
    }
    __syncthreads();
}

// Codes of one group: 32 codes of each of 4 tokens or elements, the lane's 8 of them.
struct code_words {
    uint4 a, b, c, d; // 8 bits: a, b; planes of 4, 2, 1 bits: a, c, d
};
__device__ __forceinline__ code_words load_words(const uint8_t *group, unsigned bits, int t)
{
    code_words w = {};
    auto row = [&](unsigned r) { return read_once(reinterpret_cast<const uint16_t *>(group + r * 64)); };
    if (bits == 8) {
        w.a = row(2 * (unsigned)t), w.b = row(2 * (unsigned)t + 1);
        return w;
    }
    if (bits & 4) w.a = row((unsigned)t);
    if (bits & 2) w.c = row((bits & 4) + (unsigned)t / 2);
    if (bits & 1) w.d = row(bits & 6);
    return w;
}

// Two levels as the half of a B fragment: pair p of word i, codes (0, 2), (4, 6), (1, 3), (5, 7) of the lane's eight.
struct level_pair {
    uint32_t level, rest;
};
template <bool FOUR>
__device__ __forceinline__ level_pair levels_of(const code_words &w, int i, int p, unsigned bits, const uint8_t *table, uint32_t lane4)
{
    if (FOUR) {
        const uint32_t at = __byte_perm(word_of(w.a, i), lane4, 0x5504u | (uint32_t)p << 4);
        return {*reinterpret_cast<const uint32_t *>(table + at), 0};
    }
    const int t = (int)(lane4 >> 2) & 3, high = p >> 1 << 4; // codes of odd number are in the high halves
    uint32_t entry[2];
#pragma unroll
    for (int e = 0; e < 2; e++) {
        const int n = (p & 1) * 2 + e; // the code's pair among the lane's four
        uint32_t code;
        if (bits == 8) {
            code = word_of(n < 2 ? w.a : w.b, i) >> (high + 8 * (n & 1)) & 255u;
        } else {
            code = word_of(w.a, i) >> (high + 4 * n) & (bits & 4 ? 15u : 0u);
            if (bits & 2) code |= (word_of(w.c, i) >> (8 * (t & 1)) >> (high + 2 * n) & 3u) << (bits & 4);
            if (bits & 1) code |= (word_of(w.d, i) >> (4 * t) >> (high + n) & 1u) << (bits & 6);
        }
        entry[e] = *reinterpret_cast<const uint32_t *>(table + code * ENTRY + lane4);
    }
    return {__byte_perm(entry[0], entry[1], 0x5410u), __byte_perm(entry[0], entry[1], 0x7632u)};
}

// Where a tile's codes and norms stand for this lane.
struct tile_place {
    const uint8_t *key, *value;                   // of the first group
    const uint16_t *key_norm, *value_norm; // of the lane's tokens
};
template <int DIM>
__device__ __forceinline__ tile_place place_of_tile(const cuda_kv_view &kv, uint32_t kv_head, uint32_t tile, unsigned kb, unsigned vb)
{
    const int lane = (int)threadIdx.x % 32, g = lane >> 2, t = lane & 3;
    const uint32_t page = tile / kv.page_tokens, slot = tile % kv.page_tokens, T = kv.page_tokens;
    const size_t kc = (size_t)T * DIM / 8 * kb, vc = (size_t)T * DIM / 8 * vb;
    const uint8_t *k = static_cast<const uint8_t *>(kv.k_pages[page]) + kv_head * (kc + 2 * T);
    const uint8_t *v = static_cast<const uint8_t *>(kv.v_pages[page]) + kv_head * (vc + 2 * T);
    tile_place p;
    p.key = k + (size_t)(slot / 16 + (uint32_t)g / 4) * (2 * DIM) * kb + g % 4 * 16;
    p.value = v + (size_t)(slot / 32) * 64 * vb + (size_t)(g / 4) * T * 2 * vb + g % 4 * 16;
    p.key_norm = reinterpret_cast<const uint16_t *>(k + kc) + slot + 8 * t;
    p.value_norm = reinterpret_cast<const uint16_t *>(v + vc) + slot + 8 * t;
    return p;
}

template <int DIM> struct tile_codes {
    code_words k[DIM / 32], v[DIM / 32];
    uint4 key_norm, value_norm;
};
template <int DIM> __device__ __forceinline__ void load_tile_keys(const tile_place &p, unsigned bits, tile_codes<DIM> &w)
{
    const int t = (int)threadIdx.x & 3;
#pragma unroll
    for (int j = 0; j < DIM / 32; j++) w.k[j] = load_words(p.key + (size_t)j * 64 * bits, bits, t);
    w.key_norm = read_once(p.key_norm);
}
template <int DIM>
__device__ __forceinline__ void load_tile_values(const tile_place &p, uint32_t page_tokens, unsigned bits, tile_codes<DIM> &w)
{
    const int t = (int)threadIdx.x & 3;
#pragma unroll
    for (int j = 0; j < DIM / 32; j++) w.v[j] = load_words(p.value + (size_t)j * page_tokens * 4 * bits, bits, t);
    w.value_norm = read_once(p.value_norm);
}
__device__ __forceinline__ float norm_at(const uint4 &norms, int i)
{
    return f32_from_f16((uint16_t)(word_of(norms, i / 2) >> (i % 2 * 16)));
}

template <int DIM> struct codes_state {
    tiles_state<DIM> sums; // out times WEIGHT_UNIT / unit
    float unit;            // a power of two, not below any norm of a value
};

// Scores [4 * column + i], the lane's tokens, become weights; norms of tokens outside are 0.
template <int DIM>
__device__ __forceinline__ void weights_of(float (&score)[8], const float (&norm)[8], codes_state<DIM> &state)
{
    float most = -INFINITY, largest = 0.0f, add = 0.0f;
#pragma unroll
    for (int i = 0; i < 8; i++) most = fmaxf(most, score[i]), largest = fmaxf(largest, norm[i]);
#pragma unroll
    for (int i = 1; i < 4; i *= 2) {
        most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, i));
        largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, i));
    }
    const float maximum = fmaxf(state.sums.maximum, most), keep = expf(state.sums.maximum - maximum);
    float shrink = 1.0f;
    if (largest > state.unit) { // the next power of two
        const float unit = __uint_as_float((__float_as_uint(largest) & 0x7f800000u) + 0x00800000u);
        shrink = state.unit / unit;
        state.unit = unit;
    }
    const float scale = WEIGHT_UNIT / state.unit;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const float weight = expf(score[i] - maximum);
        add += weight;
        score[i] = norm[i] == 0.0f ? 0.0f : weight * (norm[i] * scale);
    }
    state.sums.sum = fmaf(state.sums.sum, keep, add);
    state.sums.maximum = maximum;
    if (__any_sync(0xffffffffu, keep * shrink != 1.0f)) {
#pragma unroll
        for (int i = 0; i < DIM / 8 * 4; i++) state.sums.out[i / 4][i % 4] *= keep * shrink;
    }
}

template <int DIM, bool FOUR>
__device__ __forceinline__ void attend_codes(const packed_job &j, const piece &tokens, const cuda_attention_shape &shape, uint8_t *room,
                                             codes_state<DIM> &state)
{
    typedef code_room<DIM> R;
    const int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32, g = lane >> 2, t = lane & 3;
    const uint32_t lane4 = (uint32_t)lane * 4;
    const unsigned kb = FOUR ? 4 : j.kv.turbo->key.bits, vb = FOUR ? 4 : j.kv.turbo->value.bits;
    const uint8_t *const values = FOUR ? room : room + ENTRY / 2;
    uint32_t tile = tokens.begin / TILE_CODES * TILE_CODES + (uint32_t)warp * TILE_CODES;
    if (tile >= tokens.end) return;
    tile_codes<DIM> w;
    tile_place place = place_of_tile<DIM>(j.kv, j.kv_head, tile, kb, vb);
    if (FOUR) {
        load_tile_keys<DIM>(place, kb, w);
        load_tile_values<DIM>(place, j.kv.page_tokens, vb, w);
    }
    const float unit = shape.scale * shared_of<float, FOUR>(room, R::UNIT, (size_t)g) * j.kv.turbo->key.scale;
    while (true) {
        const uint32_t next = tile + WARPS * TILE_CODES;
        if (!FOUR) load_tile_keys<DIM>(place, kb, w);
        float dot[4][4];
#pragma unroll
        for (int i = 0; i < 16; i++) dot[i / 4][i % 4] = 0.0f;
#pragma unroll
        for (int k = 0; k < DIM / 32; k++)
#pragma unroll
            for (int step = 0; step < 2; step++) {
                const uint4 a = shared_of<uint4, FOUR>(room, R::QUERY, (size_t)((2 * k + step) * 32 + lane));
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const level_pair b0 = levels_of<FOUR>(w.k[k], i, 2 * step, kb, room, lane4),
                                     b1 = levels_of<FOUR>(w.k[k], i, 2 * step + 1, kb, room, lane4);
                    multiply(dot[i], a.x, a.y, a.z, a.w, b0.level, b1.level);
                    if (!FOUR && kb == 8) multiply(dot[i], a.x, a.y, a.z, a.w, b0.rest, b1.rest);
                }
            }
        float score[8], norm[8];
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const uint32_t token = tile + (uint32_t)(8 * t + i);
            const float (&d)[4] = dot[i % 4];
            float x = (d[i / 4] + d[2 + i / 4]) * (unit * norm_at(w.key_norm, i));
            if (shape.soft_cap != 0.0f) x = shape.soft_cap * tanhf(x / shape.soft_cap);
            score[i] = token >= tokens.begin && token < tokens.end ? x : -INFINITY;
        }
        tile_place ahead = place;
        if (next < tokens.end) ahead = place_of_tile<DIM>(j.kv, j.kv_head, next, kb, vb);
        if (FOUR && next < tokens.end) load_tile_keys<DIM>(ahead, kb, w);
        if (!FOUR) load_tile_values<DIM>(place, j.kv.page_tokens, vb, w);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const uint32_t token = tile + (uint32_t)(8 * t + i);
            norm[i] = token >= tokens.begin && token < tokens.end ? norm_at(w.value_norm, i) : 0.0f;
        }
        weights_of<DIM>(score, norm, state);
        uint32_t a[2][4]; // of tokens (0, 2, 4, 6) and (1, 3, 5, 7)
#pragma unroll
        for (int step = 0; step < 2; step++) {
            split_pair(score[step], score[step + 2], &a[step][0], &a[step][1]);
            split_pair(score[step + 4], score[step + 6], &a[step][2], &a[step][3]);
        }
#pragma unroll
        for (int k = 0; k < DIM / 32; k++)
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int step = 0; step < 2; step++) {
                    const level_pair b0 = levels_of<FOUR>(w.v[k], i, 2 * step, vb, values, lane4),
                                     b1 = levels_of<FOUR>(w.v[k], i, 2 * step + 1, vb, values, lane4);
                    float(&out)[4] = state.sums.out[4 * k + i];
                    multiply(out, a[step][0], a[step][1], a[step][2], a[step][3], b0.level, b1.level);
                    if (!FOUR && vb == 8) multiply(out, a[step][0], a[step][1], a[step][2], a[step][3], b0.rest, b1.rest);
                }
        if (next >= tokens.end) return;
        if (FOUR) load_tile_values<DIM>(ahead, j.kv.page_tokens, vb, w);
        place = ahead;
        tile = next;
    }
}

// The warps' parts become the piece's, in the order of the warps.
template <int DIM, bool FOUR>
__device__ __forceinline__ void merge_codes(codes_state<DIM> &state, int heads, float value_scale, uint8_t *room, const chunk_out &to)
{
    typedef code_room<DIM> R;
    const int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32, g = lane >> 2, t = lane & 3;
    float sum = state.sums.sum;
    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
    sum += __shfl_xor_sync(0xffffffffu, sum, 2);
    __syncthreads(); // the piece before is read
    auto out = [&](int w, int h, int d) -> float & { return shared_of<float, FOUR>(room, R::OUT, (size_t)((w * HEADS + h) * DIM + d)); };
    auto maximum = [&](int w, int h) -> float & { return shared_of<float, FOUR>(room, R::MAXIMUM, (size_t)(w * HEADS + h)); };
    auto total = [&](int w, int h) -> float & { return shared_of<float, FOUR>(room, R::SUM, (size_t)(w * HEADS + h)); };
    if (t == 0) maximum(warp, g) = state.sums.maximum, total(warp, g) = sum;
    const float unit = state.unit * (1.0f / WEIGHT_UNIT) * value_scale;
    if (g < heads) {
#pragma unroll
        for (int n = 0; n < DIM / 8; n++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const int column = 2 * t + i;
                out(warp, g, n / 4 * 32 + column / 4 * 16 + column % 4 * 4 + n % 4) = (state.sums.out[n][i] + state.sums.out[n][2 + i]) * unit;
            }
    }
    __syncthreads();
    for (int i = (int)threadIdx.x; i < heads * DIM; i += THREADS) {
        const int h = i / DIM, d = i % DIM;
        float largest = maximum(0, h), value = 0.0f, all = 0.0f;
#pragma unroll
        for (int w = 1; w < WARPS; w++) largest = fmaxf(largest, maximum(w, h));
#pragma unroll
        for (int w = 0; w < WARPS; w++) {
            const float factor = expf(maximum(w, h) - largest);
            value = fmaf(out(w, h, d), factor, value);
            all = fmaf(total(w, h), factor, all);
        }
        to.out[(size_t)h * CHUNKS * DIM + d] = value;
        if (d == 0) to.maximum[h * CHUNKS] = largest, to.sum[h * CHUNKS] = all;
    }
}

template <int DIM, bool FOUR> __global__ void __launch_bounds__(THREADS, FOUR ? 3 : 2) packed_tiles_kernel(const __grid_constant__ call c)
{
    extern __shared__ __align__(128) uint8_t room[];
    let_next_start();
    wait_for_previous();
    packed_job j;
    if (!packed_job_of(c, &j) || blockIdx.z >= j.keys.packed) return;
    static_assert(code_room<DIM>::BYTES <= 192 * (ENTRY - 128) && HEADS * DIM * 4 <= 64 * ENTRY, "the halves of the entries");
    float *const q = reinterpret_cast<float *>(room + 192 * ENTRY); // the table comes later
    rotate_queries(c, j, q);
    split_rotated<DIM, FOUR>(q, room);
    fill_table<FOUR>(*j.kv.turbo, room);
    __syncthreads();
    for (uint32_t z = blockIdx.z; z < j.keys.packed; z += gridDim.z) {
        codes_state<DIM> state;
        state.sums.maximum = -INFINITY, state.sums.sum = 0.0f, state.unit = 0x1p-24f;
#pragma unroll
        for (int i = 0; i < DIM / 8 * 4; i++) state.sums.out[i / 4][i % 4] = 0.0f;
        attend_codes<DIM, FOUR>(j, piece_at(j.keys, z), c.shape, room, state);
        merge_codes<DIM, FOUR>(state, (int)j.heads, j.kv.turbo->value.scale, room, chunk_of(j, c.shape, z));
    }
}

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
    const float total = merge_factors(mine, c.shape, head, pieces, factor, threadIdx.x, THREADS);
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
    const bool tiles = (shape.head_dim == 64 || shape.head_dim == 128) && (!shape.own.k || shape.own.tokens % TILE_TOKENS == 0);
    auto start = [&](auto kernel, size_t bytes) { launch_early(stream, kernel, grid, THREADS, bytes, c); };
    if (tiles && shape.head_dim == 128) {
        if (shape.four)
            start(packed_tiles_kernel<128, true>, 256 * ENTRY);
        else
            start(packed_tiles_kernel<128, false>, 256 * ENTRY + code_room<128>::BYTES);
        if (shape.recent || shape.own.k) start(recent_tiles_kernel<128>, sizeof(shared_tiles<128>));
    } else if (tiles) {
        if (shape.four)
            start(packed_tiles_kernel<64, true>, 256 * ENTRY);
        else
            start(packed_tiles_kernel<64, false>, 256 * ENTRY + code_room<64>::BYTES);
        if (shape.recent || shape.own.k) start(recent_tiles_kernel<64>, sizeof(shared_tiles<64>));
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
