// Products of block formats with few rows: memory-bound. A chain of a row's groups has one order, but what it adds up has
// none: of a block of threads, which owns 32 outputs, many warps read codes and leave a step's integer dots in shared
// memory, and one warp for each row of activations follows with the chains, an output a lane. For one row the dots' warps
// leave both factors of the chain's next link, so that the chain itself is one instruction a step.
//
// A lane reads the words of four outputs at once: lanes 4g + t with g < 4 have word t of the outputs 4g.. of the first tile
// of 16, the others of the second, so that two mma.m16n8k32 have all 32 outputs of 32 columns.
#include "blocks.cuh"

namespace {

constexpr int OUTS = 2 * TILE;

struct few_rows {
    cuda_blocks w;
    const int8_t *q;
    const float *scale;
    const int32_t *sum;
    float *y;
    size_t stride, ldy;
    int rows;
    int shift; // log2 of the steps of a group
};

__host__ __device__ constexpr int bytes_of_scale(cuda_scale_type type)
{
    return type == CUDA_SCALE_F32 ? 4 : type == CUDA_SCALE_BF16 ? 2 : 1;
}

// How a kernel is cut: one warp of dots does every DOTS-th step, DEPTH of them in a chunk, which is also how many it has
// under way; the chains' warps, one for each row, follow a chunk behind.
template <int ROWS, int SLOT_BYTES> struct division {
    static constexpr int CHAINS = ROWS, DOTS = 8, DEPTH = SLOT_BYTES > 16 ? 4 : 6, CHUNK = DOTS * DEPTH;
    static constexpr int THREADS = 32 * (CHAINS + DOTS);
};

// What the chains need of a chunk, in shared memory.
template <int CHUNK, int ROWS, int SCALE_BYTES> struct staged {
    static constexpr int GROUPS = CHUNK + 1; // a chunk may begin and end within a group
    uint8_t scales[2][GROUPS * TILE * SCALE_BYTES];
    uint8_t zeros[2][GROUPS * TILE];
    float x[ROWS][CHUNK];
    int2 sum[ROWS][CHUNK];
};
template <int CHUNK, int ROWS, int SCALE_BYTES> struct room {
    int dots[2][CHUNK * ROWS * OUTS];
    staged<CHUNK, ROWS, SCALE_BYTES> of[2];
};
// The types of a kernel.
template <cuda_code CODE, cuda_scale_type SCALE, int ROWS> struct kind {
    static constexpr int BYTES = bytes_of_scale(SCALE), WORDS = CODE == CUDA_CODE_U8 ? 8 : 4; // words: of an output in a step
    using cut = division<ROWS, WORDS * 4>;
    using of_chunk = staged<cut::CHUNK, ROWS, BYTES>;
    using shared = room<cut::CHUNK, ROWS, BYTES>;
};

__device__ __forceinline__ void copy16(void *shared, const void *global)
{
    asm volatile("cp.async.ca.shared.global [%0], [%1], 16;" ::"r"((uint32_t)__cvta_generic_to_shared(shared)), "l"(global)
                 : "memory");
}
// Named barriers: `meet` waits, `pass` only counts.
// FIRST is the barrier of buffer 0.
template <int FIRST, int THREADS> __device__ __forceinline__ void meet(int buffer)
{
    if (buffer == 0)
        asm volatile("bar.sync %0, %1;" ::"n"(FIRST), "n"(THREADS) : "memory");
    else
        asm volatile("bar.sync %0, %1;" ::"n"(FIRST + 1), "n"(THREADS) : "memory");
}
template <int FIRST, int THREADS> __device__ __forceinline__ void pass(int buffer)
{
    if (buffer == 0)
        asm volatile("bar.arrive %0, %1;" ::"n"(FIRST), "n"(THREADS) : "memory");
    else
        asm volatile("bar.arrive %0, %1;" ::"n"(FIRST + 1), "n"(THREADS) : "memory");
}
constexpr int FULL = 1, EMPTY = 3, TEAM = 5;

__device__ __forceinline__ uint4 stream_words(const uint32_t *p)
{
    uint4 r;
    asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w)
                 : "l"(p));
    return r;
}

// The codes and activations of a step that a lane of the dots holds.
template <cuda_code CODE> struct slot {
    uint4 word[CODE == CUDA_CODE_U8 ? 2 : 1];
    uint32_t x0, x1;
};

template <cuda_code CODE>
__device__ __forceinline__ void dots_of(const slot<CODE> &s, int *to, int lane)
{
    const int g = lane >> 2, t = lane & 3;
    uint32_t b0 = s.x0, b1 = s.x1;
    if (CODE == CUDA_CODE_E2M1) b0 = __byte_perm(s.x0, s.x1, 0x5140u), b1 = __byte_perm(s.x0, s.x1, 0x7362u);
    int c[2][4] = {};
    const uint32_t word[4] = {s.word[0].x, s.word[0].y, s.word[0].z, s.word[0].w};
#pragma unroll
    for (int i = 0; i < 2; i++) {
        uint32_t a[4];
        if constexpr (CODE == CUDA_CODE_U8) {
            a[0] = word[2 * i], a[1] = word[2 * i + 1];
            a[2] = i ? s.word[1].z : s.word[1].x, a[3] = i ? s.word[1].w : s.word[1].y;
        } else {
            decode<CODE>(word[2 * i], &a[0], &a[2]);
            decode<CODE>(word[2 * i + 1], &a[1], &a[3]);
        }
        multiply(c[i], a[0], a[1], a[2], a[3], b0, b1);
    }
    *reinterpret_cast<int4 *>(to + 2 * t * OUTS + 4 * g) = make_int4(c[0][0], c[0][2], c[1][0], c[1][2]);
    *reinterpret_cast<int4 *>(to + (2 * t + 1) * OUTS + 4 * g) = make_int4(c[0][1], c[0][3], c[1][1], c[1][3]);
}

template <cuda_code CODE, cuda_scale_type SCALE, int ROWS>
__device__ __forceinline__ void follow(const few_rows &p, typename kind<CODE, SCALE, ROWS>::shared &shared, int steps, int row, int lane)
{
    using cut = typename kind<CODE, SCALE, ROWS>::cut;
    using of_chunk = typename kind<CODE, SCALE, ROWS>::of_chunk;
    constexpr int BYTES = bytes_of_scale(SCALE), TEAM_THREADS = 32 * cut::CHAINS;
    const int t = row * 32 + lane, chunks = (steps + cut::CHUNK - 1) / cut::CHUNK, first_row = (int)blockIdx.y * ROWS;
    const int tiles = (int)((p.w.outs + TILE - 1) / TILE), groups = (int)p.w.groups;
    const size_t of_row = p.stride / STEP;
    auto bring = [&](int chunk) {
        of_chunk &to = shared.of[chunk & 1];
        const int begin = chunk * cut::CHUNK, end = min(begin + cut::CHUNK, steps);
        const int first = begin >> p.shift, count = ((end - 1) >> p.shift) + 1 - first;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const size_t at = ((size_t)min((int)blockIdx.x * 2 + i, tiles - 1) * (size_t)groups + (size_t)first) * TILE;
            for (int b = t * 16; b < count * TILE * BYTES; b += TEAM_THREADS * 16)
                copy16(to.scales[i] + b, static_cast<const uint8_t *>(p.w.scales) + at * BYTES + b);
            if (CODE != CUDA_CODE_E2M1 && p.w.zeros)
                for (int b = t * 16; b < count * TILE; b += TEAM_THREADS * 16) copy16(to.zeros[i] + b, p.w.zeros + at + b);
        }
        // each warp its own row's; what lies beyond the last step is the row's too, or is not read
        const size_t from = (size_t)min(first_row + row, p.rows - 1) * of_row + (size_t)begin;
        for (int k = lane; k < end - begin; k += 32) {
            to.x[row][k] = p.scale[from + (size_t)k];
            to.sum[row][k] = reinterpret_cast<const int2 *>(p.sum)[from + (size_t)k];
        }
        asm volatile("cp.async.commit_group;" ::: "memory");
    };
    const float unit = CODE == CUDA_CODE_E2M1 ? 0.5f : 1.0f;
    float chain = 0.0f;
    bring(0);
    for (int chunk = 0; chunk < chunks; chunk++) {
        asm volatile("cp.async.wait_all;" ::: "memory");
        meet<TEAM, TEAM_THREADS>(0); // this chunk's are there, and nobody reads the one before any more
        if (chunk + 1 < chunks) bring(chunk + 1);
        const int buffer = chunk & 1, begin = chunk * cut::CHUNK, count = min(cut::CHUNK, steps - begin);
        const of_chunk &of = shared.of[buffer];
        const uint8_t *scales = of.scales[lane / TILE], *zeros = of.zeros[lane / TILE];
        const int first = begin >> p.shift;
        meet<FULL, cut::THREADS>(buffer);
        const int *dots = shared.dots[buffer] + row * OUTS + lane;
#pragma unroll 6
        for (int k = 0; k < count; k++) {
            const int group = ((begin + k) >> p.shift) - first, at = group * TILE + lane % TILE;
            const float weight = __fmul_rn(scale_at(SCALE, scales, (size_t)at), unit);
            const int zero = CODE == CUDA_CODE_E2M1 ? 12 : p.w.zeros ? zeros[at] : CODE == CUDA_CODE_U4 ? 8 : 128;
            const int2 sum = of.sum[row][k];
            chain = fmaf((float)(dots[k * ROWS * OUTS] - zero * (sum.x + sum.y)), __fmul_rn(weight, of.x[row][k]), chain);
        }
        if (chunk + 2 < chunks) pass<EMPTY, cut::THREADS>(buffer);
    }
    const size_t out = (size_t)blockIdx.x * OUTS + (size_t)lane;
    if (first_row + row < p.rows && out < p.w.outs) p.y[(size_t)(first_row + row) * p.ldy + out] = __fmul_rn(chain, p.w.tensor_scale);
}

template <cuda_code CODE, cuda_scale_type SCALE, int ROWS>
__global__ void __launch_bounds__(kind<CODE, SCALE, ROWS>::cut::THREADS, 2) few_rows_kernel(const __grid_constant__ few_rows p)
{
    extern __shared__ __align__(16) uint8_t bytes[];
    using types = kind<CODE, SCALE, ROWS>;
    using cut = typename types::cut;
    auto &shared = *reinterpret_cast<typename types::shared *>(bytes);
    constexpr int WORDS = types::WORDS;
    const int lane = (int)threadIdx.x & 31, warp = (int)threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
    const int steps = (int)((p.w.cols + STEP - 1) / STEP), tiles = (int)((p.w.outs + TILE - 1) / TILE);
    let_next_start();
    if (warp < cut::CHAINS) {
        wait_for_previous();
        follow<CODE, SCALE, ROWS>(p, shared, steps, warp, lane);
        return;
    }
    const int turn = warp - cut::CHAINS;
    const uint32_t *data = p.w.data + ((size_t)min((int)blockIdx.x * 2 + (g >> 2), tiles - 1) * (size_t)steps) * WORDS * TILE + t * TILE + 4 * (g & 3);
    // an absent row's activations are another's: what it becomes is not stored
    const int8_t *q = p.q + (size_t)min((int)blockIdx.y * ROWS + g, p.rows - 1) * p.stride + (CODE == CUDA_CODE_U8 ? 4 : 8) * t;
    slot<CODE> ahead[cut::DEPTH];
    auto codes = [&](slot<CODE> &to, int step) {
        to.word[0] = stream_words(data + (size_t)step * WORDS * TILE);
        if constexpr (CODE == CUDA_CODE_U8) to.word[1] = stream_words(data + (size_t)step * WORDS * TILE + 4 * TILE);
    };
    auto activations = [&](slot<CODE> &to, int step) {
        if constexpr (CODE == CUDA_CODE_U8) {
            to.x0 = *reinterpret_cast<const uint32_t *>(q + step * STEP);
            to.x1 = *reinterpret_cast<const uint32_t *>(q + step * STEP + 16);
        } else {
            const uint2 x = *reinterpret_cast<const uint2 *>(q + step * STEP);
            to.x0 = x.x, to.x1 = x.y;
        }
    };
#pragma unroll
    for (int d = 0; d < cut::DEPTH; d++)
        if (d * cut::DOTS + turn < steps) codes(ahead[d], d * cut::DOTS + turn);
    wait_for_previous();
#pragma unroll
    for (int d = 0; d < cut::DEPTH; d++)
        if (d * cut::DOTS + turn < steps) activations(ahead[d], d * cut::DOTS + turn);
    for (int chunk = 0; chunk * cut::CHUNK < steps; chunk++) {
        const int buffer = chunk & 1;
        if (chunk >= 2) meet<EMPTY, cut::THREADS>(buffer);
#pragma unroll
        for (int d = 0; d < cut::DEPTH; d++) {
            const int within = d * cut::DOTS + turn, step = chunk * cut::CHUNK + within;
            if (step >= steps) continue;
            dots_of<CODE>(ahead[d], shared.dots[buffer] + within * ROWS * OUTS, lane);
            if (step + cut::CHUNK < steps) codes(ahead[d], step + cut::CHUNK), activations(ahead[d], step + cut::CHUNK);
        }
        pass<FULL, cut::THREADS>(buffer);
    }
}

// --- one row ---
//
// A warp of dots does a bundle of four steps at once. Of the product's eight columns a step has two and zeros in the others, so that
// in one set of sums lane 4g + t has step t of the outputs 4g to 4g + 3. The sums start at a number whose bits, with the sum added,
// are those of a float from which it only has to be subtracted. Of E2M1 there are two products, of twice the positive values and
// of all magnitudes negated: each is one lookup.

constexpr int ROW_DOTS = 15, ROW_THREADS = 32 * (ROW_DOTS + 1), BUNDLE = 4, ROW_CHUNK = ROW_DOTS * BUNDLE;
constexpr int LINK = OUTS + 8; // floats of a step: four steps' lanes then store to different banks
constexpr int MAGIC = 0x4b400000; // 1.5 * 2^23

// Shared memory: dots and factors of two chunks, scales and zeros of both tiles, then scale, sum and numbers of the activations' steps.
struct row_place {
    int scales, zeros, x, sum, q, all;
};
template <cuda_scale_type SCALE> __host__ __device__ inline row_place place_row(uint32_t groups, bool zeros, int steps)
{
    row_place at;
    at.scales = 2 * 2 * ROW_CHUNK * LINK * 4;
    at.zeros = at.scales + 2 * (int)groups * TILE * bytes_of_scale(SCALE);
    at.x = at.zeros + (zeros ? 2 * (int)groups * TILE : 0);
    const int whole = (steps + ROW_CHUNK - 1) / ROW_CHUNK * ROW_CHUNK; // the last chunk's steps too
    at.sum = at.x + whole * 4;
    at.q = at.sum + (zeros ? whole * 4 : 0);
    at.all = at.q + whole * STEP + 16; // zeros behind
    return at;
}

// w >> 16 by the pipe of multiplications: the other one, which shifts and permutes, is what decoding E2M1 waits for.
__device__ __forceinline__ uint32_t upper(uint32_t w)
{
    uint32_t factor;
    uint64_t product;
    asm volatile("mov.u32 %0, 0x10000;" : "=r"(factor)); // not known as a power of two
    asm("mul.wide.u32 %0, %1, %2;" : "=l"(product) : "r"(w), "r"(factor));
    return (uint32_t)(product >> 32);
}

template <bool SIGNED> __device__ __forceinline__ void multiply_add(int (&d)[4], const uint32_t (&a)[4], const uint2 &b, const int (&c)[4])
{
    if (SIGNED)
        asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};"
            : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b.x), "r"(b.y), "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(c[3]));
    else
        asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};"
            : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b.x), "r"(b.y), "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(c[3]));
}

// c += the products of two words a row (of U8 two more in `more`), as the sums count them: 16 (w - 8) of U4, w - 128 of U8.
template <cuda_code CODE>
__device__ __forceinline__ void add_products(int (&c)[4], uint32_t first, uint32_t second, uint32_t first_more, uint32_t second_more,
                                             const uint2 &b)
{
    constexpr uint32_t EIGHTS = 0x88888888u, TOPS = 0xf0f0f0f0u;
    if constexpr (CODE == CUDA_CODE_E2M1) {
        const uint32_t twice[4] = {select_four(0x06040200u, 0x18100c08u, first), select_four(0x06040200u, 0x18100c08u, second),
                                   select_four(0x06040200u, 0x18100c08u, upper(first)), select_four(0x06040200u, 0x18100c08u, upper(second))};
        const uint32_t f = first & ~EIGHTS, s = second & ~EIGHTS;
        const uint32_t all[4] = {select_four(0xfdfeff00u, 0xf4f8fafcu, f), select_four(0xfdfeff00u, 0xf4f8fafcu, s),
                                 select_four(0xfdfeff00u, 0xf4f8fafcu, upper(f)), select_four(0xfdfeff00u, 0xf4f8fafcu, upper(s))};
        multiply_add<false>(c, twice, b, c);
        multiply_add<true>(c, all, b, c);
    } else if constexpr (CODE == CUDA_CODE_U4) {
        const uint32_t a[4] = {(first << 4 ^ EIGHTS) & TOPS, (second << 4 ^ EIGHTS) & TOPS, (first ^ EIGHTS) & TOPS, (second ^ EIGHTS) & TOPS};
        multiply_add<true>(c, a, b, c);
    } else {
        const uint32_t a[4] = {first ^ 0x80808080u, second ^ 0x80808080u, first_more ^ 0x80808080u, second_more ^ 0x80808080u};
        multiply_add<true>(c, a, b, c);
    }
}

// Scale times u of four adjacent outputs.
template <cuda_scale_type SCALE> __device__ __forceinline__ void four_scales(const uint8_t *p, float (&v)[4])
{
    if constexpr (SCALE == CUDA_SCALE_E8M0) {
        const uint32_t word = *reinterpret_cast<const uint32_t *>(p), mask = 0x7f800000u;
        const uint32_t bits[4] = {word << 23 & mask, word << 15 & mask, word << 7 & mask, word >> 1 & mask};
#pragma unroll
        for (int i = 0; i < 4; i++) { // byte 0 is 2^-127; 255, infinite here, becomes NaN
            v[i] = fmaxf(__uint_as_float(bits[i]), 0x1p-127f);
            v[i] = fmaf(v[i], 0.0f, v[i]);
        }
    } else if constexpr (SCALE == CUDA_SCALE_BF16) {
        const uint2 word = *reinterpret_cast<const uint2 *>(p);
        v[0] = __uint_as_float(word.x << 16), v[1] = __uint_as_float(word.x & 0xffff0000u);
        v[2] = __uint_as_float(word.y << 16), v[3] = __uint_as_float(word.y & 0xffff0000u);
    } else {
        const float4 all = *reinterpret_cast<const float4 *>(p);
        v[0] = all.x, v[1] = all.y, v[2] = all.z, v[3] = all.w;
    }
}

template <cuda_code CODE, cuda_scale_type SCALE>
__global__ void __launch_bounds__(ROW_THREADS, 2) row_kernel(const __grid_constant__ few_rows p)
{
    extern __shared__ __align__(16) uint8_t shared[];
    constexpr int BYTES = bytes_of_scale(SCALE), WORDS = CODE == CUDA_CODE_U8 ? 8 : 4;
    const int t = (int)threadIdx.x & 3, lane = (int)threadIdx.x & 31, warp = (int)threadIdx.x >> 5, g = lane >> 2;
    const int steps = (int)((p.w.cols + STEP - 1) / STEP), tiles = (int)((p.w.outs + TILE - 1) / TILE);
    const bool has_zeros = CODE != CUDA_CODE_E2M1 && p.w.zeros;
    const row_place at = place_row<SCALE>(p.w.groups, has_zeros, steps);
    float *dots = reinterpret_cast<float *>(shared), *factors = dots + 2 * ROW_CHUNK * LINK; // [2][ROW_CHUNK][LINK]
    float *x = reinterpret_cast<float *>(shared + at.x), *sum = reinterpret_cast<float *>(shared + at.sum);
    const int tile[2] = {min((int)blockIdx.x * 2, tiles - 1), min((int)blockIdx.x * 2 + 1, tiles - 1)};
    const int turn = warp - 1;
    const uint32_t *data = p.w.data + (size_t)(g >> 2 ? tile[1] : tile[0]) * (size_t)steps * WORDS * TILE + t * TILE + 4 * (g & 3);
    const uint32_t *next = data + (size_t)(turn * BUNDLE) * WORDS * TILE;
    uint4 word[BUNDLE][WORDS / 4] = {}; // each step's words of the next bundle come as soon as this one's are used
    auto fetch = [&](int k, bool wanted) {
#pragma unroll
        for (int i = 0; i < WORDS / 4; i++) stream16_if(word[k][i], next + (k * WORDS + i * 4) * TILE, wanted);
    };
    if (turn >= 0) {
#pragma unroll
        for (int k = 0; k < BUNDLE; k++) fetch(k, turn * BUNDLE < steps);
        next += ROW_CHUNK * WORDS * TILE;
    }
    let_next_start();
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const size_t from = (size_t)tile[i] * p.w.groups * TILE;
        const int count = (int)p.w.groups * TILE;
        for (int b = (int)threadIdx.x * 16; b < count * BYTES; b += ROW_THREADS * 16)
            copy16(shared + at.scales + i * count * BYTES + b, static_cast<const uint8_t *>(p.w.scales) + from * BYTES + b);
        if (has_zeros)
            for (int b = (int)threadIdx.x * 16; b < count; b += ROW_THREADS * 16) copy16(shared + at.zeros + i * count + b, p.w.zeros + from + b);
    }
    wait_for_previous();
    const float unit = CODE == CUDA_CODE_E2M1 ? 0.5f : 1.0f;
    for (int i = (int)threadIdx.x; i < steps * 2; i += ROW_THREADS) { // half a step each
        const uint4 v = reinterpret_cast<const uint4 *>(p.q)[i];
        uint2 *to = reinterpret_cast<uint2 *>(shared + at.q) + i * 2;
        if (CODE == CUDA_CODE_E2M1) {
            to[0] = make_uint2(__byte_perm(v.x, v.y, 0x5140u), __byte_perm(v.x, v.y, 0x7362u));
            to[1] = make_uint2(__byte_perm(v.z, v.w, 0x5140u), __byte_perm(v.z, v.w, 0x7362u));
        } else if (CODE == CUDA_CODE_U4) {
            to[0] = make_uint2(v.x, v.y), to[1] = make_uint2(v.z, v.w);
        } else { // columns 4t of both halves of a step
            uint32_t *one = reinterpret_cast<uint32_t *>(shared + at.q) + i / 2 * 8 + i % 2;
            one[0] = v.x, one[2] = v.y, one[4] = v.z, one[6] = v.w;
        }
    }
    for (int k = (int)threadIdx.x; k < steps; k += ROW_THREADS) {
        x[k] = __fmul_rn(p.scale[k], unit);
        if (has_zeros) {
            const int2 both = reinterpret_cast<const int2 *>(p.sum)[k];
            sum[k] = (float)(both.x + both.y);
        }
    }
    uint2 *zero = reinterpret_cast<uint2 *>(shared + at.all - 16);
    if (threadIdx.x == 0) *zero = make_uint2(0, 0);
    asm volatile("cp.async.wait_all;" ::: "memory");
    __syncthreads();

    if (turn < 0) {
        float chain = 0.0f;
        for (int chunk = 0; chunk * ROW_CHUNK < steps; chunk++) {
            const int buffer = chunk & 1, count = min(ROW_CHUNK, steps - chunk * ROW_CHUNK);
            const float *dot = dots + buffer * ROW_CHUNK * LINK + lane, *factor = factors + buffer * ROW_CHUNK * LINK + lane;
            meet<FULL, ROW_THREADS>(buffer);
            int k = 0;
            for (; k + 12 <= count; k += 12) {
                float d[12], f[12];
#pragma unroll
                for (int i = 0; i < 12; i++) d[i] = dot[(k + i) * LINK], f[i] = factor[(k + i) * LINK];
#pragma unroll
                for (int i = 0; i < 12; i++) chain = fmaf(d[i], f[i], chain);
            }
            for (; k < count; k++) chain = fmaf(dot[k * LINK], factor[k * LINK], chain);
            if ((chunk + 2) * ROW_CHUNK < steps) pass<EMPTY, ROW_THREADS>(buffer);
        }
        const size_t out = (size_t)blockIdx.x * OUTS + (size_t)lane;
        if (out < p.w.outs) p.y[out] = __fmul_rn(chain, p.w.tensor_scale);
        return;
    }
    const uint8_t *scales = shared + at.scales + ((g >> 2) * (int)p.w.groups * TILE + 4 * (g & 3)) * BYTES;
    const uint8_t *zeros = shared + at.zeros + (g >> 2) * (int)p.w.groups * TILE + 4 * (g & 3);
    const uint8_t *q = shared + at.q + 8 * t;
    for (int chunk = 0; chunk * ROW_CHUNK < steps; chunk++) {
        const int buffer = chunk & 1, begin = chunk * ROW_CHUNK + turn * BUNDLE;
        int c[2][4];
#pragma unroll
        for (int i = 0; i < 8; i++) c[i >> 2][i & 3] = MAGIC;
#pragma unroll
        for (int k = 0; k < BUNDLE; k++) {
            const uint2 b = *reinterpret_cast<const uint2 *>(g >> 1 == k ? q + (begin + k) * STEP : reinterpret_cast<const uint8_t *>(zero));
            const uint4 w = word[k][0], more = word[k][WORDS / 4 - 1];
            add_products<CODE>(c[0], w.x, w.y, more.x, more.y, b);
            add_products<CODE>(c[1], w.z, w.w, more.z, more.w, b);
            fetch(k, begin + ROW_CHUNK < steps);
            __syncwarp(); // holds the reads here
        }
        next += ROW_CHUNK * WORDS * TILE;
        const int step = min(begin + t, steps - 1), group = step >> p.shift;
        const float one = x[step], back = CODE == CUDA_CODE_U4 ? 0.0625f : 1.0f;
        float factor[4], dot[4] = {__int_as_float(c[0][0]), __int_as_float(c[0][2]), __int_as_float(c[1][0]), __int_as_float(c[1][2])};
        four_scales<SCALE>(scales + group * TILE * BYTES, factor);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            factor[i] = __fmul_rn(factor[i], one);
            dot[i] = fmaf(dot[i], back, -12582912.0f * back);
        }
        if (has_zeros) {
            const uchar4 four = *reinterpret_cast<const uchar4 *>(zeros + group * TILE);
            const float middle = CODE == CUDA_CODE_U4 ? 8.0f : 128.0f, s = sum[step];
            dot[0] = fmaf(middle - (float)four.x, s, dot[0]), dot[1] = fmaf(middle - (float)four.y, s, dot[1]);
            dot[2] = fmaf(middle - (float)four.z, s, dot[2]), dot[3] = fmaf(middle - (float)four.w, s, dot[3]);
        }
        if (chunk >= 2) meet<EMPTY, ROW_THREADS>(buffer);
        const int to = (buffer * ROW_CHUNK + turn * BUNDLE + t) * LINK + 4 * g;
        *reinterpret_cast<float4 *>(dots + to) = make_float4(dot[0], dot[1], dot[2], dot[3]);
        *reinterpret_cast<float4 *>(factors + to) = make_float4(factor[0], factor[1], factor[2], factor[3]);
        pass<FULL, ROW_THREADS>(buffer);
    }
}

constexpr size_t ROW_SHARED = 112 << 10;

template <cuda_code CODE, cuda_scale_type SCALE> bool start_row(cudaStream_t stream, const few_rows &p)
{
    const bool zeros = CODE != CUDA_CODE_E2M1 && p.w.zeros;
    if (div_up(p.w.cols, STEP) % BUNDLE != 0) return false;
    const size_t shared = (size_t)place_row<SCALE>(p.w.groups, zeros, (int)div_up(p.w.cols, STEP)).all;
    if (shared > ROW_SHARED) return false;
    launch_early(stream, row_kernel<CODE, SCALE>, dim3(div_up(p.w.outs, OUTS)), ROW_THREADS, shared, p);
    return true;
}

// --- launches ---

// --- int8 weights with one scale an output, several rows ---

// A warp has 32 outputs of all rows in registers, chains and all: of a step's two products for each eight rows a lane holds four
// outputs by two rows, whose next links it adds itself. The codes less 128 are signed bytes, so that sums of the activations are
// asked for only where an output's zero point is another; a dot begins at the bits of 1.5 * 2^23, which make it a number by one
// subtraction, and at what the zero point adds.
constexpr int WIDE_WARPS = 8, WIDE_DEPTH = 4;

__device__ __forceinline__ void multiply_signed(int (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1)
{
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

template <int EIGHTS> size_t wide_bytes(size_t steps, bool zeros)
{
    return steps * EIGHTS * (32 * sizeof(uint2) + 8 * sizeof(float) + (zeros ? 8 * sizeof(int) : 0));
}

template <cuda_scale_type SCALE, int EIGHTS, bool ZEROS>
__global__ void __launch_bounds__(32 * WIDE_WARPS, EIGHTS > 1 ? 2 : 3) wide_rows_kernel(const __grid_constant__ few_rows p)
{
    extern __shared__ __align__(16) uint8_t shared[];
    const int lane = (int)threadIdx.x & 31, warp = (int)threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
    const int steps = (int)((p.w.cols + STEP - 1) / STEP), tiles = (int)((p.w.outs + TILE - 1) / TILE), sets = (tiles + 1) / 2;
    uint2 *fragment = reinterpret_cast<uint2 *>(shared); // [steps][EIGHTS][32]: B of a step
    float *x = reinterpret_cast<float *>(fragment + (size_t)steps * EIGHTS * 32); // [steps][8 * EIGHTS]
    int *sums = reinterpret_cast<int *>(x + (size_t)steps * EIGHTS * 8);          // the same, of ZEROS
    const int per_pass = (int)gridDim.x * WIDE_WARPS;
    int set = (int)blockIdx.x * WIDE_WARPS + warp;
    auto data_of = [&](int which) {
        return p.w.data + ((size_t)min(which * 2 + (g >> 2), tiles - 1) * (size_t)steps) * 8 * TILE + t * TILE + 4 * (g & 3);
    };
    const uint32_t *data = data_of(min(set, sets - 1));
    uint4 ahead[WIDE_DEPTH][2];
    auto fetch = [&](int d, int step) {
        ahead[d][0] = stream_words(data + (size_t)step * 8 * TILE);
        ahead[d][1] = stream_words(data + (size_t)step * 8 * TILE + 4 * TILE);
    };
#pragma unroll
    for (int d = 0; d < WIDE_DEPTH; d++)
        if (d < steps) fetch(d, d);
    let_next_start();
    wait_for_previous();
    for (int i = (int)threadIdx.x; i < steps * EIGHTS * 32; i += 32 * WIDE_WARPS) { // absent rows are zero
        const int step = i / (EIGHTS * 32), row = i / 32 % EIGHTS * 8 + (i >> 2 & 7);
        const int8_t *q = p.q + (size_t)row * p.stride + step * STEP + 4 * (i & 3);
        fragment[i] = row < p.rows ? make_uint2(*reinterpret_cast<const uint32_t *>(q), *reinterpret_cast<const uint32_t *>(q + 16)) : make_uint2(0, 0);
    }
    for (int i = (int)threadIdx.x; i < steps * EIGHTS * 8; i += 32 * WIDE_WARPS) {
        const int step = i % steps, row = i / steps;
        const size_t from = (size_t)row * (p.stride / STEP) + (size_t)step;
        x[step * EIGHTS * 8 + row] = row < p.rows ? p.scale[from] : 0.0f;
        if constexpr (ZEROS) {
            const int2 both = row < p.rows ? reinterpret_cast<const int2 *>(p.sum)[from] : make_int2(0, 0);
            sums[step * EIGHTS * 8 + row] = both.x + both.y;
        }
    }
    __syncthreads();
    for (; set < sets; set += per_pass) {
        float weight[4], chain[EIGHTS][2][4];
        int shift[4] = {}; // what a zero point is less than 128
        bool shifted = false;
#pragma unroll
        for (int i = 0; i < 4; i++) { // outputs 4g + i
            const size_t at = (size_t)(min(set * 2 + (g >> 2), tiles - 1) * TILE + 4 * (g & 3) + i);
            weight[i] = scale_at(SCALE, p.w.scales, at);
            if constexpr (ZEROS) shift[i] = 128 - (int)p.w.zeros[at];
        }
        if constexpr (ZEROS) shifted = __any_sync(0xffffffffu, (shift[0] | shift[1] | shift[2] | shift[3]) != 0);
#pragma unroll
        for (int i = 0; i < EIGHTS * 8; i++) chain[i / 8][i / 4 & 1][i & 3] = 0.0f;
        for (int first = 0; first < steps; first += WIDE_DEPTH)
#pragma unroll
            for (int d = 0; d < WIDE_DEPTH; d++) {
                const int step = first + d;
                if (step >= steps) break;
                uint32_t a[8] = {ahead[d][0].x, ahead[d][0].y, ahead[d][0].z, ahead[d][0].w,
                                 ahead[d][1].x, ahead[d][1].y, ahead[d][1].z, ahead[d][1].w};
                if (step + WIDE_DEPTH < steps) {
                    fetch(d, step + WIDE_DEPTH);
                } else if (set + per_pass < sets) { // the next set's first ones
                    if (d == 0 || step + WIDE_DEPTH == steps) data = data_of(set + per_pass);
                    fetch(d, d);
                }
#pragma unroll
                for (int i = 0; i < 8; i++) a[i] ^= 0x80808080u;
#pragma unroll
                for (int n = 0; n < EIGHTS; n++) {
                    const uint2 b = fragment[(step * EIGHTS + n) * 32 + lane];
                    const float2 unit = *reinterpret_cast<const float2 *>(x + (step * EIGHTS + n) * 8 + 2 * t);
                    int2 sum = make_int2(0, 0);
                    if (ZEROS && shifted) sum = *reinterpret_cast<const int2 *>(sums + (step * EIGHTS + n) * 8 + 2 * t);
#pragma unroll
                    for (int i = 0; i < 2; i++) {
                        int c[4] = {MAGIC, MAGIC, MAGIC, MAGIC};
                        if (ZEROS && shifted)
#pragma unroll
                            for (int k = 0; k < 4; k++) c[k] += shift[2 * i + (k >> 1)] * (k & 1 ? sum.y : sum.x);
                        multiply_signed(c, a[2 * i], a[2 * i + 1], a[4 + 2 * i], a[5 + 2 * i], b.x, b.y);
#pragma unroll
                        for (int k = 0; k < 4; k++)
                            chain[n][i][k] = fmaf(__fsub_rn(__int_as_float(c[k]), 12582912.0f),
                                                  __fmul_rn(weight[2 * i + (k >> 1)], k & 1 ? unit.y : unit.x), chain[n][i][k]);
                    }
                }
            }
#pragma unroll
        for (int n = 0; n < EIGHTS; n++)
#pragma unroll
            for (int i = 0; i < 2; i++)
#pragma unroll
                for (int k = 0; k < 4; k++) {
                    const int row = n * 8 + 2 * t + (k & 1);
                    const size_t out = (size_t)set * OUTS + (size_t)(4 * g + 2 * i + (k >> 1));
                    if (row < p.rows && out < p.w.outs) p.y[(size_t)row * p.ldy + out] = __fmul_rn(chain[n][i][k], p.w.tensor_scale);
                }
    }
}

template <cuda_scale_type SCALE, int EIGHTS, bool ZEROS> bool start_wide(cudaStream_t stream, const few_rows &p)
{
    const size_t steps = (p.w.cols + STEP - 1) / STEP, bytes = wide_bytes<EIGHTS>(steps, ZEROS);
    if (bytes > 220 << 10) return false;
    const size_t sets = div_up(p.w.outs, OUTS);
    int device = 0, processors = 0, blocks = 0;
    if (cudaGetDevice(&device) != cudaSuccess || cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device) != cudaSuccess)
        return false;
    if (sets < (size_t)(processors * WIDE_WARPS)) return false; // a warp for each would take as long as for all columns
    cudaFuncSetAttribute(wide_rows_kernel<SCALE, EIGHTS, ZEROS>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
    if (cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, wide_rows_kernel<SCALE, EIGHTS, ZEROS>, 32 * WIDE_WARPS, bytes) != cudaSuccess || blocks == 0)
        return false;
    size_t grid = (size_t)(processors * blocks);
    if (grid > div_up(sets, WIDE_WARPS)) grid = div_up(sets, WIDE_WARPS);
    launch_early(stream, wide_rows_kernel<SCALE, EIGHTS, ZEROS>, dim3((unsigned)grid), 32 * WIDE_WARPS, bytes, p);
    return true;
}
template <cuda_scale_type SCALE, int EIGHTS> bool start_wide(cudaStream_t stream, const few_rows &p)
{
    return p.w.zeros ? start_wide<SCALE, EIGHTS, true>(stream, p) : start_wide<SCALE, EIGHTS, false>(stream, p);
}
template <cuda_scale_type SCALE> bool start_wide(cudaStream_t stream, few_rows p)
{
    const int rows = p.rows;
    for (int at = 0; at < rows; at += 32) { // the first that does not fit is the first of all
        p.rows = rows - at < 32 ? rows - at : 32;
        const bool started = p.rows > 16 ? start_wide<SCALE, 4>(stream, p) : p.rows > 8 ? start_wide<SCALE, 2>(stream, p) : start_wide<SCALE, 1>(stream, p);
        if (!started) return false;
        p.q += 32 * p.stride, p.scale += 32 * (p.stride / STEP), p.sum += 32 * (p.stride / STEP) * 2, p.y += 32 * p.ldy;
    }
    return true;
}

template <cuda_code CODE, cuda_scale_type SCALE, int ROWS> void start_rows(cudaStream_t stream, const few_rows &p)
{
    using types = kind<CODE, SCALE, ROWS>;
    launch_early(stream, few_rows_kernel<CODE, SCALE, ROWS>, dim3(div_up(p.w.outs, OUTS), div_up((size_t)p.rows, ROWS)),
                 types::cut::THREADS, sizeof(typename types::shared), p);
}
template <cuda_code CODE, cuda_scale_type SCALE> void start(cudaStream_t stream, const few_rows &p)
{
    if (p.rows == 1 && start_row<CODE, SCALE>(stream, p)) return;
    if constexpr (CODE == CUDA_CODE_U8)
        if (p.rows > 1 && p.w.groups == 1 && start_wide<SCALE>(stream, p)) return;
    start_rows<CODE, SCALE, 8>(stream, p);
}

} // namespace

bool cuda_product_blocks_few_fits(const struct cuda_blocks *w)
{
    const uint32_t group = w->group;
    if (group != 0 && (group < (uint32_t)STEP || (group & (group - 1)) != 0)) return false;
    return w->code == CUDA_CODE_E2M1 ? w->scale == CUDA_SCALE_E8M0 : w->scale == CUDA_SCALE_BF16 || w->scale == CUDA_SCALE_F32;
}

void cuda_product_blocks_few(cudaStream_t stream, const struct cuda_blocks *w, const int8_t *q, size_t stride, const float *scale,
                             const int32_t *sum, size_t rows, float *y, size_t ldy)
{
    few_rows p = {*w, q, scale, sum, y, stride, ldy, (int)rows, 30};
    if (w->group != 0)
        for (p.shift = 0; (uint32_t)STEP << p.shift < w->group;) p.shift++;
    switch (w->code) {
    case CUDA_CODE_E2M1: start<CUDA_CODE_E2M1, CUDA_SCALE_E8M0>(stream, p); break;
    case CUDA_CODE_U4:
        w->scale == CUDA_SCALE_BF16 ? start<CUDA_CODE_U4, CUDA_SCALE_BF16>(stream, p) : start<CUDA_CODE_U4, CUDA_SCALE_F32>(stream, p);
        break;
    default:
        w->scale == CUDA_SCALE_BF16 ? start<CUDA_CODE_U8, CUDA_SCALE_BF16>(stream, p) : start<CUDA_CODE_U8, CUDA_SCALE_F32>(stream, p);
        break;
    }
}
