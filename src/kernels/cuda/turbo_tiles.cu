// Packed pages with heads of 64 and 128 on the tensor cores. A team of four warps does a piece, each warp tiles of 32 tokens,
// every fourth one. Tokens are the rows of the product with the queries, whose columns are four heads, each as its f16 part and
// what that leaves of it; elements are the rows of the product with the weights, whose columns are as those. Codes become
// operands by a table of levels in shared memory, once for each lane, so that no two lanes meet in a bank; of up to 4 bits an
// entry is two codes, and the byte of a word that holds them becomes the address by one PRMT.
//
// A lane (g = lane / 4, t = lane % 4) reads 16 bytes of codes at a time: elements 8t.. of a group of 32 of tokens 4g..4g + 3 of
// the tile, and of values tokens 8t.. of elements 4g..4g + 3 of a group: the rows g and g + 8 of two products. Scores are then
// those of head t and tokens 4g.., and a transposition makes columns of their weights.
//
// One block of threads fills a multiprocessor, with one table for three teams (168 registers a thread; with four they are spilled),
// which share the pieces of all rows evenly, in
// their order: which team does a piece changes nothing in it.
#include "turbo_pieces.cuh"

namespace {

constexpr int TOKENS = 32, PART = 4; // tokens of a tile; heads of a team
constexpr int TEAM = 128, TEAMS = 3, ALL = TEAM * TEAMS;
constexpr int ENTRY = 256; // bytes: lanes' words of keys, then of values
constexpr uint32_t ROWS_AT_ONCE = 512;

// How codes are looked up: two of 4 bits, two of up to 4 bits that are spread to 4 before, or one of up to 8.
enum kind { FOUR, NARROW, WIDE };

struct tiles_call {
    const float *query;
    size_t ldq;
    const cuda_attention_row *rows;
    uint32_t count, layer;
    cuda_attention_shape shape;
    const cuda_attention_row *first; // the row that the call begins with
    float *scratch;
};

template <int DIM> struct team_room {
    static constexpr int WIDTH = DIM + 8; // keeps the lanes of a store in different banks
    float query[PART][DIM], unit[PART];
    float maximum[2][4][PART], sum[2][4][PART];
    float out[2][4][PART][WIDTH];
};
template <int DIM> struct room {
    uint8_t table[256 * ENTRY];
    team_room<DIM> team[TEAMS];
    uint32_t start[ROWS_AT_ONCE + 1]; // packed pieces of the rows before
    uint32_t next;
};

__device__ __forceinline__ void team_barrier(int team)
{
    asm volatile("bar.sync %0, 128;" ::"r"(team + 1) : "memory");
}
// Of 8x8 numbers in f16, two of row g a lane's.
__device__ __forceinline__ uint32_t transpose(uint32_t x)
{
    uint32_t y;
    asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
    return y;
}
__device__ __forceinline__ float exp2_fast(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
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
template <kind KIND> __device__ __forceinline__ uint32_t entry_of(const cuda_turbo_codec &c, uint32_t e)
{
    if (KIND == WIDE) return e < c.levels ? level_word(c.value[e]) : 0;
    const uint32_t low = e & 15, high = e >> 4;
    return (low < c.levels ? f16_bits((float)c.value[low]) : 0) | (high < c.levels ? f16_bits((float)c.value[high]) : 0) << 16;
}
template <kind KIND> __device__ __forceinline__ void fill_table(const cuda_turbo &turbo, uint8_t *table)
{
    for (uint32_t i = threadIdx.x; i < 256 * 16; i += ALL) { // 16 bytes at a time
        const uint32_t e = i / 16, word = entry_of<KIND>(i % 16 < 8 ? turbo.key : turbo.value, e);
        reinterpret_cast<uint4 *>(table)[i] = make_uint4(word, word, word, word);
    }
}

// 32 codes of each of 4 tokens or elements, the lane's 8 of them, as they are stored.
struct code_words {
    uint4 a, b, c, d; // 8 bits: a, b; planes of 4, 2, 1 bits: a, c, d
};
template <kind KIND> __device__ __forceinline__ code_words load_words(const uint8_t *group, unsigned bits, int t)
{
    code_words w = {};
    auto row = [&](unsigned r) { return read_once(reinterpret_cast<const uint16_t *>(group + r * 64)); };
    if (KIND == FOUR) {
        w.a = row((unsigned)t);
    } else if (KIND == WIDE && bits == 8) {
        w.a = row(2 * (unsigned)t), w.b = row(2 * (unsigned)t + 1);
    } else {
        if (bits & 4) w.a = row((unsigned)t);
        if (bits & 2) w.c = row((bits & 4) + (unsigned)t / 2);
        if (bits & 1) w.d = row(bits & 6);
    }
    return w;
}
// Of one token or element: nibbles of codes 0, 2, 4, 6 in the low half, 1, 3, 5, 7 in the high half; WIDE: bytes of 0, 2 and 1, 3
// in low, of the others in high.
struct eight_codes {
    uint32_t low, high;
};
__device__ __forceinline__ uint32_t nibbles_to_bytes(uint32_t x)
{
    return (x & 0x000f000fu) | (x & 0x00f000f0u) << 4;
}
template <kind KIND> __device__ __forceinline__ eight_codes codes_of(const code_words &w, int i, unsigned bits, int t)
{
    const uint32_t a = word_of(w.a, i);
    if (KIND == FOUR) return {a, 0};
    if (KIND == WIDE && bits == 8) return {a, word_of(w.b, i)};
    uint32_t few = 0; // of the planes of 2 bits and 1
    if (bits & 2) {
        uint32_t x = word_of(w.c, i) >> (8 * (t & 1)) & 0x00ff00ffu;
        x = (x | x << 4) & 0x0f0f0f0fu;
        few = (x | x << 2) & 0x33333333u;
    }
    if (bits & 1) {
        uint32_t x = word_of(w.d, i) >> (4 * t) & 0x000f000fu;
        x = (x | x << 6) & 0x03030303u;
        few |= ((x | x << 3) & 0x11111111u) << (bits & 2);
    }
    if (KIND == NARROW) return {bits & 4 ? a : few, 0};
    if (!(bits & 4)) return {nibbles_to_bytes(few), nibbles_to_bytes(few >> 8)};
    return {nibbles_to_bytes(a) | nibbles_to_bytes(few) << 4, nibbles_to_bytes(a >> 8) | nibbles_to_bytes(few >> 8) << 4};
}
// Codes (0, 2), (4, 6), (1, 3), (5, 7) as pair 0..3 of an operand; rest: what the f16 leave of the levels.
struct level_pair {
    uint32_t level, rest;
};
template <kind KIND>
__device__ __forceinline__ level_pair levels_of(const eight_codes &c, int pair, const uint8_t *table, uint32_t lane4)
{
    auto entry = [&](uint32_t word, int byte) {
        return *reinterpret_cast<const uint32_t *>(table + __byte_perm(word, lane4, 0x5504u | (uint32_t)byte << 4));
    };
    if (KIND != WIDE) return {entry(c.low, pair), 0};
    const uint32_t word = pair & 1 ? c.high : c.low, x = entry(word, pair & 2), y = entry(word, (pair & 2) + 1);
    return {__byte_perm(x, y, 0x5410u), __byte_perm(x, y, 0x7632u)};
}

// Two products of a step with codes as rows: words 2m and 2m + 1 are rows g and g + 8 of product m.
template <kind KIND>
__device__ __forceinline__ void multiply_codes(float (&sum)[2][4], const eight_codes (&c)[4], int step, unsigned bits, uint32_t b0,
                                               uint32_t b1, const uint8_t *table, uint32_t lane4)
{
#pragma unroll
    for (int m = 0; m < 2; m++) {
        const level_pair a0 = levels_of<KIND>(c[2 * m], 2 * step, table, lane4),
                         a1 = levels_of<KIND>(c[2 * m + 1], 2 * step, table, lane4),
                         a2 = levels_of<KIND>(c[2 * m], 2 * step + 1, table, lane4),
                         a3 = levels_of<KIND>(c[2 * m + 1], 2 * step + 1, table, lane4);
        multiply(sum[m], a0.level, a1.level, a2.level, a3.level, b0, b1);
        if (KIND == WIDE && bits == 8) multiply(sum[m], a0.rest, a1.rest, a2.rest, a3.rest, b0, b1);
    }
}

// A run of pieces of one row and PART heads.
struct run {
    cuda_kv_view kv;
    packed_span keys;
    uint32_t kv_head, first, heads;
    float *mine; // the row's scratch
};
__device__ __forceinline__ uint32_t begin_of(const run &r, uint32_t z)
{
    return r.keys.begin + z * r.keys.chunk;
}
__device__ __forceinline__ uint32_t end_of(const run &r, uint32_t z)
{
    return min(begin_of(r, z) + r.keys.chunk, r.keys.split);
}
__device__ __forceinline__ uint32_t first_tile(const run &r, uint32_t z, int warp)
{
    return begin_of(r, z) / TOKENS * TOKENS + (uint32_t)warp * TOKENS;
}

// The pages that hold a tile, and where this lane's codes and norms stand in them.
struct page_pair {
    const uint8_t *k, *v;
    uint32_t slot;
};
__device__ __forceinline__ page_pair pages_of(const cuda_kv_view &kv, uint32_t tile)
{
    const uint32_t T = kv.page_tokens, page = (T & (T - 1)) == 0 ? tile >> (__ffs((int)T) - 1) : tile / T;
    return {static_cast<const uint8_t *>(kv.k_pages[page]), static_cast<const uint8_t *>(kv.v_pages[page]), tile - page * T};
}
// Where this lane's codes of a tile begin, and its norms.
struct codes_at {
    const uint8_t *codes, *norms;
    uint32_t step; // bytes from a group to the next
};
template <int DIM> __device__ __forceinline__ codes_at keys_at(const run &r, const uint8_t *page, uint32_t slot, unsigned bits)
{
    const uint32_t g = threadIdx.x % 32 >> 2, T = r.kv.page_tokens, codes = T * (DIM / 8) * bits;
    const uint8_t *head = page + (size_t)r.kv_head * (codes + 2 * T);
    return {head + (slot / 16 + g / 4) * (2 * DIM) * bits + g % 4 * 16, head + codes + 2 * (slot + 4 * g), 64 * bits};
}
template <int DIM> __device__ __forceinline__ codes_at values_at(const run &r, const uint8_t *page, uint32_t slot, unsigned bits)
{
    const uint32_t g = threadIdx.x % 32 >> 2, T = r.kv.page_tokens, codes = T * (DIM / 8) * bits;
    const uint8_t *head = page + (size_t)r.kv_head * (codes + 2 * T);
    return {head + (slot / 32 * 64 + g / 4 * T * 2) * bits + g % 4 * 16, head + codes + 2 * (slot + 4 * g), T * 4 * bits};
}
__device__ __forceinline__ float norm_at(const uint2 &norms, int i)
{
    return f32_from_f16((uint16_t)((i < 2 ? norms.x : norms.y) >> (i % 2 * 16)));
}

// What a warp has of its tiles, of head t: the largest score, to base 2; this lane's sum of weights; of elements 32j + 4g + 2m
// and the one behind it out[j][m] as (f16 part, rest) twice, times WEIGHT_UNIT / unit.
template <int DIM> struct tile_state {
    float maximum, sum, unit; // unit: a power of two, not below any norm of a value
    float out[DIM / 32][2][4];
};
template <int DIM> __device__ __forceinline__ void clear(tile_state<DIM> &s)
{
    s.maximum = -INFINITY, s.sum = 0.0f, s.unit = 0x1p-24f;
#pragma unroll
    for (int i = 0; i < DIM / 4; i++) s.out[i / 8][i / 4 % 2][i % 4] = 0.0f;
}
template <int DIM> __device__ __forceinline__ void raise(tile_state<DIM> &s, float most, float largest)
{
    if (!__any_sync(0xffffffffu, most > s.maximum || largest > s.unit)) return;
#pragma unroll
    for (int i = 4; i < 32; i *= 2) {
        most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, i));
        largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, i));
    }
    const float maximum = fmaxf(s.maximum, most), keep = exp2_fast(s.maximum - maximum);
    float factor = keep;
    if (largest > s.unit) { // the next power of two
        const float unit = __uint_as_float((__float_as_uint(largest) & 0x7f800000u) + 0x00800000u);
        factor *= s.unit / unit;
        s.unit = unit;
    }
    s.maximum = maximum;
    s.sum *= keep;
#pragma unroll
    for (int i = 0; i < DIM / 4; i++) s.out[i / 8][i / 4 % 2][i % 4] *= factor;
}

// B fragments of the weights from those of head t and tokens 4g + i of the tile.
__device__ __forceinline__ void columns_of(const float (&weight)[4], uint32_t (&b)[2][2])
{
    uint32_t pair[4]; // of tokens 8t + i and 8t + 4 + i
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const float high = __half2float(__float2half_rn(weight[i]));
        const __half2 both = __floats2half2_rn(high, weight[i] - high);
        pair[i] = transpose(*reinterpret_cast<const uint32_t *>(&both));
    }
#pragma unroll
    for (int step = 0; step < 2; step++) {
        b[step][0] = __byte_perm(pair[step], pair[step + 2], 0x5410u);
        b[step][1] = __byte_perm(pair[step], pair[step + 2], 0x7632u);
    }
}

template <int DIM> struct constants {
    uint32_t b[DIM / 16][2]; // the queries' B fragments
    float unit;              // of head t's scores
    unsigned kb, vb;
};

// The queries of a run: rotated, and cut into fragments.
template <int DIM>
__device__ __forceinline__ void take_queries(const float *query, const run &r, const cuda_attention_shape &shape, team_room<DIM> &s,
                                             constants<DIM> &q)
{
    const int team = (int)threadIdx.x / TEAM, warp = (int)threadIdx.x / 32 % 4, lane = (int)threadIdx.x % 32, g = lane >> 2,
              t = lane & 3;
    const cuda_turbo_codec &key = r.kv.turbo->key;
    float *mine = s.query[warp], most = 0.0f;
    for (int i = lane; i < DIM; i += 32)
        mine[i] = (uint32_t)warp < r.heads ? query[(r.first + (uint32_t)warp) * DIM + (uint32_t)i] : 0.0f;
    if ((uint32_t)warp < r.heads) warp_rotate(mine, key);
    __syncwarp();
    for (int i = lane; i < DIM; i += 32) most = fmaxf(most, fabsf(mine[i]));
    for (int i = 16; i > 0; i >>= 1) most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, i));
    int exponent = 0; // the largest element becomes about 1
    if (most > 0.0f && most < INFINITY) frexpf(most, &exponent);
    exponent = max(-100, min(100, exponent));
    if (lane == 0) s.unit[warp] = __uint_as_float((uint32_t)(127 + exponent) << 23);
    team_barrier(team);
    const float down = 1.0f / s.unit[g / 2];
#pragma unroll
    for (int step = 0; step < DIM / 16; step++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const float *from = s.query[g / 2] + step / 2 * 32 + 8 * t + step % 2 + 4 * i;
            uint32_t high, low;
            split_pair(from[0] * down, from[2] * down, &high, &low);
            q.b[step][i] = g % 2 ? low : high;
        }
    q.kb = key.bits, q.vb = r.kv.turbo->value.bits;
    q.unit = shape.scale * s.unit[t] * key.scale;
}

// A piece's part of the warps becomes the piece's, in the order of the warps.
template <int DIM>
__device__ __forceinline__ void write_piece(const tile_state<DIM> &state, const run &r, uint32_t z,
                                            const cuda_attention_shape &shape, team_room<DIM> &s)
{
    const int team = (int)threadIdx.x / TEAM, warp = (int)threadIdx.x / 32 % 4, lane = (int)threadIdx.x % 32, g = lane >> 2,
              t = lane & 3;
    const uint32_t half = z & 1; // the other half may still be read
    float sum = state.sum;
#pragma unroll
    for (int i = 4; i < 32; i *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, i);
    if (g == 0) s.maximum[half][warp][t] = state.maximum, s.sum[half][warp][t] = sum;
    const float unit = state.unit * (1.0f / WEIGHT_UNIT) * r.kv.turbo->value.scale;
#pragma unroll
    for (int j = 0; j < DIM / 32; j++) {
        const float(&o)[2][4] = state.out[j];
        *reinterpret_cast<float4 *>(&s.out[half][warp][t][32 * j + 4 * g]) = make_float4(
            (o[0][0] + o[0][1]) * unit, (o[0][2] + o[0][3]) * unit, (o[1][0] + o[1][1]) * unit, (o[1][2] + o[1][3]) * unit);
    }
    team_barrier(team);
    if ((uint32_t)warp >= r.heads) return;
    float factor[4], largest = s.maximum[half][0][warp], all = 0.0f;
#pragma unroll
    for (int w = 1; w < 4; w++) largest = fmaxf(largest, s.maximum[half][w][warp]);
#pragma unroll
    for (int w = 0; w < 4; w++) {
        factor[w] = exp2_fast(s.maximum[half][w][warp] - largest);
        all = fmaf(s.sum[half][w][warp], factor[w], all);
    }
    const uint32_t head = r.first + (uint32_t)warp;
    float *to = r.mine + (size_t)shape.heads * CHUNKS * 2 + ((size_t)head * CHUNKS + z) * DIM;
    for (int d = 4 * lane; d < DIM; d += 128) {
        float4 v = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
        for (int w = 0; w < 4; w++) {
            const float4 x = *reinterpret_cast<const float4 *>(&s.out[half][w][warp][d]);
            v.x = fmaf(x.x, factor[w], v.x), v.y = fmaf(x.y, factor[w], v.y), v.z = fmaf(x.z, factor[w], v.z),
            v.w = fmaf(x.w, factor[w], v.w);
        }
        *reinterpret_cast<float4 *>(to + d) = v;
    }
    if (lane == 0) {
        r.mine[(size_t)head * CHUNKS + z] = largest * 0.693147181f;
        r.mine[(size_t)(shape.heads + head) * CHUNKS + z] = all;
    }
}

// Weights of a tile's scores in their place; norms of tokens outside are 0.
template <int DIM> __device__ __forceinline__ void weights_of(float (&score)[4], const float (&norm)[4], tile_state<DIM> &state)
{
    raise(state, fmaxf(fmaxf(score[0], score[1]), fmaxf(score[2], score[3])),
          fmaxf(fmaxf(norm[0], norm[1]), fmaxf(norm[2], norm[3])));
    const float scale = __uint_as_float((254u + 11u << 23) - __float_as_uint(state.unit)); // WEIGHT_UNIT / unit
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const float weight = exp2_fast(score[i] - state.maximum);
        state.sum += weight;
        score[i] = weight * (norm[i] * scale);
    }
}

// The codes of a tile's keys or values: FOUR has all of them ahead, the others a group.
template <int DIM, kind KIND> struct tile_codes {
    static constexpr int AHEAD = KIND == FOUR ? DIM / 32 : 1;
    code_words words[AHEAD];
    uint2 norm;
    codes_at at;
    __device__ __forceinline__ void load(const codes_at &from, unsigned bits, int t)
    {
        at = from;
#pragma unroll
        for (int j = 0; j < AHEAD; j++) words[j] = load_words<KIND>(at.codes + (uint32_t)j * at.step, bits, t);
        norm = __ldg(reinterpret_cast<const uint2 *>(at.norms));
    }
    // VALUES: each group has sums of its own, and all have the columns of the tile; else each has columns, and all have one sum.
    template <bool VALUES>
    __device__ __forceinline__ void multiply_all(float (*sums)[2][4], const uint32_t (*columns)[2], unsigned bits, int t,
                                                 const uint8_t *table, uint32_t lane4)
    {
        code_words now = words[0], next = now;
#pragma unroll
        for (int j = 0; j < DIM / 32; j++) {
            if (KIND == FOUR)
                now = words[j % AHEAD];
            else if (j + 1 < DIM / 32)
                next = load_words<KIND>(at.codes + (uint32_t)(j + 1) * at.step, bits, t);
            eight_codes c[4];
#pragma unroll
            for (int i = 0; i < 4; i++) c[i] = codes_of<KIND>(now, i, bits, t);
#pragma unroll
            for (int step = 0; step < 2; step++) {
                const uint32_t(&b)[2] = columns[VALUES ? step : 2 * j + step];
                multiply_codes<KIND>(sums[VALUES ? j : 0], c, step, bits, b[0], b[1], table, lane4);
            }
            now = next;
        }
    }
};

constexpr uint32_t NONE = 0xffffffffu;

// Pieces [z, end) of a run.
template <int DIM, kind KIND>
__device__ __forceinline__ void attend_run(const run &r, uint32_t z, uint32_t end, const constants<DIM> &q,
                                           const cuda_attention_shape &shape, const uint8_t *table, team_room<DIM> &s)
{
    const int warp = (int)threadIdx.x / 32 % 4, lane = (int)threadIdx.x % 32, g = lane >> 2, t = lane & 3;
    const uint32_t lane4 = (uint32_t)lane * 4;
    tile_codes<DIM, KIND> k, v;
    page_pair pages = {};               // of tile `paged`
    uint32_t held = NONE, paged = NONE; // the tile whose codes are in k and v
    auto turn_to = [&](uint32_t tile) {
        if (paged != tile) pages = pages_of(r.kv, tile);
        paged = tile;
    };
    for (; z < end; z++) {
        const uint32_t first = begin_of(r, z), last = end_of(r, z);
        tile_state<DIM> state;
        clear(state);
        for (uint32_t tile = first_tile(r, z, warp), next; tile < last; tile = next) {
            next = tile + 4 * TOKENS;
            uint32_t ahead = next; // the warp's tile behind this one, in this piece or the next
            if (next >= last) {
                ahead = first_tile(r, z + 1, warp);
                if (z + 1 >= end || ahead >= end_of(r, z + 1)) ahead = NONE;
            }
            if (held != tile) {
                turn_to(tile);
                k.load(keys_at<DIM>(r, pages.k, pages.slot, q.kb), q.kb, t);
                v.load(values_at<DIM>(r, pages.v, pages.slot, q.vb), q.vb, t);
            }
            float dots[1][2][4] = {}, score[4], norm[4];
            const float(&dot)[2][4] = dots[0];
            k.template multiply_all<false>(dots, q.b, q.kb, t, table, lane4);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float x = (dot[i / 2][i % 2 * 2] + dot[i / 2][i % 2 * 2 + 1]) * (q.unit * norm_at(k.norm, i));
                score[i] = (shape.soft_cap != 0.0f ? shape.soft_cap * tanhf(x / shape.soft_cap) : x) * 1.44269504f;
                norm[i] = norm_at(v.norm, i);
            }
            if (ahead != NONE) {
                turn_to(ahead);
                k.load(keys_at<DIM>(r, pages.k, pages.slot, q.kb), q.kb, t);
            }
            if (tile < first || tile + TOKENS > last) { // what stands there may be NaN
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const uint32_t token = tile + (uint32_t)(4 * g + i);
                    if (token < first || token >= last) score[i] = -INFINITY, norm[i] = 0.0f;
                }
            }
            uint32_t b[2][2];
            weights_of<DIM>(score, norm, state);
            columns_of(score, b);
            v.template multiply_all<true>(state.out, b, q.vb, t, table + ENTRY / 2, lane4);
            if (ahead != NONE) {
                v.load(values_at<DIM>(r, pages.v, pages.slot, q.vb), q.vb, t);
                held = ahead;
                if (ahead + 4 * TOKENS < last) turn_to(ahead + 4 * TOKENS); // its address is a load of its own
            }
        }
        write_piece<DIM>(state, r, z, shape, s);
    }
}

// start[i]: packed pieces of the rows before i, of one head, where their bits are `widths`; next: the least ones beyond.
template <int DIM> __device__ __forceinline__ void count_pieces(const tiles_call &c, room<DIM> &s, uint32_t widths)
{
    for (uint32_t i = threadIdx.x; i < c.count; i += ALL) {
        const cuda_attention_row row = c.rows[i];
        const cuda_kv_view kv = row.kv[c.layer];
        s.start[i + 1] = 0;
        if (kv.type != PACKED) continue;
        const uint32_t mine = kv.turbo->key.bits * 16 + kv.turbo->value.bits;
        if (mine == widths) s.start[i + 1] = packed_span_of(row, kv, c.shape, c.first).packed;
        if (mine > widths) atomicMin(&s.next, mine);
    }
    if (threadIdx.x == 0) s.start[0] = 0;
    __syncthreads();
    if (threadIdx.x < 32) {
        uint32_t before = 0;
        for (uint32_t from = 1; from <= c.count; from += 32) {
            const uint32_t i = from + threadIdx.x;
            uint32_t n = i <= c.count ? s.start[i] : 0;
#pragma unroll
            for (int d = 1; d < 32; d *= 2) {
                const uint32_t other = __shfl_up_sync(0xffffffffu, n, d);
                if ((int)threadIdx.x >= d) n += other;
            }
            if (i <= c.count) s.start[i] = before + n;
            before += __shfl_sync(0xffffffffu, n, 31);
        }
    }
    __syncthreads();
}

// The runs of a team among the pieces that were counted.
template <int DIM, kind KIND> __device__ __forceinline__ void attend_counted(const tiles_call &c, room<DIM> &s)
{
    const uint32_t team = threadIdx.x / TEAM, group = c.shape.heads / c.shape.kv_heads, parts = (group + PART - 1) / PART,
                   each = c.shape.kv_heads * parts;
    const uint64_t total = (uint64_t)s.start[c.count] * each, teams = (uint64_t)gridDim.x * TEAMS,
                   mine = blockIdx.x + gridDim.x * team;
    const uint32_t stop = (uint32_t)(total * (mine + 1) / teams);
    constants<DIM> q;
    for (uint32_t at = (uint32_t)(total * mine / teams), row = 0; at < stop;) {
        while (s.start[row + 1] * each <= at) row++;
        const uint32_t pieces = s.start[row + 1] - s.start[row], within = at - s.start[row] * each, part = within / pieces,
                       z = within - part * pieces, end = min(pieces, z + (stop - at));
        run r;
        const cuda_attention_row from = c.rows[row];
        r.kv = from.kv[c.layer];
        r.keys = packed_span_of(from, r.kv, c.shape, c.first);
        r.kv_head = part / parts;
        r.first = r.kv_head * group + part % parts * PART;
        r.heads = min((uint32_t)PART, group - part % parts * PART);
        r.mine = c.scratch + row * row_scratch(c.shape);
        take_queries<DIM>(c.query + row * c.ldq, r, c.shape, s.team[team], q);
        attend_run<DIM, KIND>(r, z, end, q, c.shape, s.table, s.team[team]);
        at += end - z;
    }
}

// A codebook follows from dimension and bits, so that rows of equal bits share the table whichever their codecs are; others follow.
template <int DIM, bool ALL_FOUR>
__global__ void __launch_bounds__(ALL, 1) packed_tiles_kernel(const __grid_constant__ tiles_call c)
{
    extern __shared__ __align__(128) uint8_t shared[];
    room<DIM> &s = *reinterpret_cast<room<DIM> *>(shared);
    let_next_start();
    wait_for_previous();
    uint32_t widths = ALL_FOUR ? 0x44 : 0;
    while (widths != NONE) {
        if (threadIdx.x == 0) s.next = NONE;
        __syncthreads();
        count_pieces<DIM>(c, s, widths);
        const uint32_t next = s.next;
        const uint32_t most = max(widths / 16, widths % 16);
        if (s.start[c.count] > 0) {
            uint32_t row = 0;
            while (s.start[row + 1] == 0) row++;
            const cuda_turbo &turbo = *c.rows[row].kv[c.layer].turbo;
            if (ALL_FOUR || most <= 4)
                fill_table<NARROW>(turbo, s.table);
            else
                fill_table<WIDE>(turbo, s.table);
            __syncthreads();
            if (ALL_FOUR || widths == 0x44)
                attend_counted<DIM, FOUR>(c, s);
            else if (most <= 4)
                attend_counted<DIM, NARROW>(c, s);
            else
                attend_counted<DIM, WIDE>(c, s);
        }
        widths = ALL_FOUR ? NONE : next;
        __syncthreads(); // next is read
    }
}

template <int DIM> void start_tiles(cudaStream_t stream, const tiles_call &c, unsigned blocks)
{
    auto start = [&](auto kernel) { launch_early(stream, kernel, dim3(blocks), ALL, sizeof(room<DIM>), c); };
    c.shape.four ? start(packed_tiles_kernel<DIM, true>) : start(packed_tiles_kernel<DIM, false>);
}

} // namespace

bool cuda_turbo_tiles_fit(uint32_t head_dim)
{
    int device = 0, most = 0;
    if (head_dim != 64 && head_dim != 128) return false;
    cudaGetDevice(&device);
    cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    return (size_t)most >= (head_dim == 64 ? sizeof(room<64>) : sizeof(room<128>));
}

void cuda_turbo_tiles(cudaStream_t stream, const float *query, size_t ldq, const struct cuda_attention_row *rows, size_t count,
                      uint32_t layer, const struct cuda_attention_shape *shape, const struct cuda_attention_row *first,
                      void *scratch)
{
    float *scratch_of = static_cast<float *>(scratch);
    int device = 0, blocks = 0;
    cudaGetDevice(&device);
    cudaDeviceGetAttribute(&blocks, cudaDevAttrMultiProcessorCount, device);
    for (size_t at = 0, n; at < count; at += n) {
        n = count - at < ROWS_AT_ONCE ? count - at : ROWS_AT_ONCE;
        const tiles_call c = {
            query + at * ldq, ldq, rows + at, (uint32_t)n, layer, *shape, first, scratch_of + at * (row_scratch(*shape))};
        shape->head_dim == 128 ? start_tiles<128>(stream, c, (unsigned)blocks) : start_tiles<64>(stream, c, (unsigned)blocks);
    }
}
