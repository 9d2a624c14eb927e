// Rows in the registers of 256 threads: what fused.cuh does in shared memory, for rotations whose blocks are of 256 elements or
// more. Thread t has elements t + 256 e, so that strides of 256 and more need no exchange, those up to 16 are the lanes' of a
// warp, and rms_norm_kernel's order of sums is each thread's own. The arithmetic is that of fused.cuh, and so are the bits.
#ifndef WALSH_KERNELS_CUDA_HELD_CUH
#define WALSH_KERNELS_CUDA_HELD_CUH

#include "fused.cuh"

namespace {

constexpr int HELD_THREADS = 256, HELD_MOST = 32; // elements of a thread at most

// A rotation of blocks of 256 to 8192. stages[s]: a bit for each e whose block has the stage of stride 256 << s.
struct held_rotation {
    const float *signs;
    uint32_t stages[5], units; // units: of 256 elements
    float scale[HELD_MOST];
};

inline bool held_fits(const cuda_rotation &r, size_t n)
{
    if (r.count == 0 || r.size != n || r.padded != n || n > (size_t)HELD_THREADS * HELD_MOST) return false;
    for (uint32_t b = 0; b < r.count; b++)
        if (r.log2[b] < 8) return false;
    return true;
}
inline held_rotation held_of(const cuda_rotation &r)
{
    held_rotation h = {};
    h.signs = r.signs, h.units = r.padded / HELD_THREADS;
    for (uint32_t b = 0; b < r.count; b++)
        for (uint32_t e = r.begin[b] / HELD_THREADS; e < (r.begin[b] + (1u << r.log2[b])) / HELD_THREADS; e++) {
            h.scale[e] = r.scale[b];
            for (int s = 0; s + 8 < r.log2[b]; s++) h.stages[s] |= 1u << e;
        }
    return h;
}

// Four words of padding behind every 32: eight consecutive elements of a thread, and one of each lane, meet all banks.
__device__ __forceinline__ int held_at(int i)
{
    return i + (i >> 5) * 4;
}
inline size_t held_floats(uint32_t units)
{
    return (size_t)units * HELD_THREADS / 32 * 36;
}

template <int N> __device__ __forceinline__ void stages_in(float (&v)[N], int first, int count)
{
#pragma unroll
    for (int bit = first; bit < first + count; bit++)
#pragma unroll
        for (int e = 0; e < N; e++)
            if ((e >> bit & 1) == 0) {
                const float a = v[e], b = v[e | 1 << bit];
                v[e] = __fadd_rn(a, b);
                v[e | 1 << bit] = __fsub_rn(a, b);
            }
}
// Stages between lanes: strides 1 to 16 of their numbers.
template <int N> __device__ __forceinline__ void stages_of_lanes(float (&v)[N])
{
#pragma unroll
    for (int bit = 1; bit < 32; bit *= 2) {
        const float sign = threadIdx.x & (unsigned)bit ? -1.0f : 1.0f; // a product with it is exact: one rounding, as of a sum
#pragma unroll
        for (int e = 0; e < N; e++) v[e] = fmaf(v[e], sign, __shfl_xor_sync(0xffffffffu, v[e], bit));
    }
}
// The stages of strides 256 and more, and the scale.
template <int E> __device__ __forceinline__ void far_stages(const held_rotation &r, float (&v)[E])
{
#pragma unroll
    for (int s = 0; 1 << s < E; s++)
#pragma unroll
        for (int e = 0; e < E; e++)
            if ((e >> s & 1) == 0) {
                const bool on = r.stages[s] >> e & 1;
                const float a = v[e], b = v[e | 1 << s];
                v[e] = on ? __fadd_rn(a, b) : a;
                v[e | 1 << s] = on ? __fsub_rn(a, b) : b;
            }
#pragma unroll
    for (int e = 0; e < E; e++) v[e] = __fmul_rn(v[e], r.scale[e]);
}

// v = H z; from(unit): the 256 elements of a unit. room: held_floats.
template <int E, typename From>
__device__ __forceinline__ void held_inverse(const held_rotation &r, float *room, float (&v)[E], const From &from)
{
    const int t = (int)threadIdx.x, n = (int)r.units * HELD_THREADS;
    constexpr int CHUNKS = (E + 7) / 8;
    float w[CHUNKS][8];
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
        const int i = c * 2048 + 8 * t;
        float4 a = make_float4(0.0f, 0.0f, 0.0f, 0.0f), b = a;
        if (i < n) {
            const float4 *z = reinterpret_cast<const float4 *>(from(i / HELD_THREADS) + i % HELD_THREADS);
            a = z[0], b = z[1];
        }
        w[c][0] = a.x, w[c][1] = a.y, w[c][2] = a.z, w[c][3] = a.w, w[c][4] = b.x, w[c][5] = b.y, w[c][6] = b.z, w[c][7] = b.w;
    }
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
        const int i = c * 2048 + 8 * t;
        if (i >= n) break; // the same for a warp
        stages_in(w[c], 0, 3);
        stages_of_lanes(w[c]);
        float4 *to = reinterpret_cast<float4 *>(room + held_at(i));
        to[0] = make_float4(w[c][0], w[c][1], w[c][2], w[c][3]);
        to[1] = make_float4(w[c][4], w[c][5], w[c][6], w[c][7]);
    }
    __syncthreads();
#pragma unroll
    for (int e = 0; e < E; e++) v[e] = e < (int)r.units ? room[held_at(t + HELD_THREADS * e)] : 0.0f;
    far_stages(r, v);
}

// v = H v. room: held_floats, which nobody reads any more.
template <int E> __device__ __forceinline__ void held_forward(const held_rotation &r, float *room, float (&v)[E])
{
    const int t = (int)threadIdx.x;
    stages_of_lanes(v);
#pragma unroll
    for (int e = 0; e < E; e++)
        if (e < (int)r.units) room[held_at(t + HELD_THREADS * e)] = v[e];
    __syncthreads();
#pragma unroll 1
    for (int unit = t / 32; unit < (int)r.units; unit += HELD_THREADS / 32) { // strides 32, 64, 128: a warp has 256 elements
        float w[8], *at = room + held_at(unit * HELD_THREADS + t % 32);
#pragma unroll
        for (int k = 0; k < 8; k++) w[k] = at[36 * k];
        stages_in(w, 0, 3);
#pragma unroll
        for (int k = 0; k < 8; k++) at[36 * k] = w[k];
    }
    __syncthreads();
#pragma unroll
    for (int e = 0; e < E; e++) v[e] = e < (int)r.units ? room[held_at(t + HELD_THREADS * e)] : 0.0f;
    far_stages(r, v);
}

// A bit for each of the thread's elements, set where its sign is -1; *units: whether all signs are +-1.
template <int E> __device__ __forceinline__ uint32_t held_signs(const held_rotation &r, bool *units)
{
    const uint32_t *words = reinterpret_cast<const uint32_t *>(r.signs + r.units * HELD_THREADS);
    *units = __ldg(words) != 0;
    uint32_t negative = 0;
#pragma unroll
    for (int e = 0; e < E; e++)
        if (e < (int)r.units) negative |= (__ldg(words + 1 + threadIdx.x / 32 + 8 * e) >> (threadIdx.x % 32) & 1u) << e;
    return negative;
}
__device__ __forceinline__ float held_turned(const held_rotation &r, bool units, uint32_t negative, int e, float v)
{
    if (!units) return __fmul_rn(__ldg(r.signs + threadIdx.x + (unsigned)(HELD_THREADS * e)), v);
    return __uint_as_float(__float_as_uint(v) ^ (negative << (31 - e) & 0x80000000u));
}

// sum_of_squares of fused.cuh; part: [8], free again behind the caller's next barrier.
template <int E> __device__ __forceinline__ float held_squares(const float (&v)[E], uint32_t units, float *part)
{
    float squares = 0.0f;
#pragma unroll
    for (int e = 0; e < E; e++)
        if (e < (int)units) squares = fmaf(v[e], v[e], squares);
    squares = warp_sum(squares);
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = squares;
    __syncthreads();
    float sum = part[threadIdx.x % 8]; // warp_sum of eight numbers and zeros
#pragma unroll
    for (int lane = 4; lane > 0; lane >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, lane);
    return sum;
}

// The row to int8, as prepare_from. reduce: [2] in shared memory, zero.
template <int E>
__device__ __forceinline__ void held_round(const prepared &f, uint32_t units, size_t index, const float (&v)[E], uint32_t *reduce)
{
    int8_t *data = static_cast<int8_t *>(f.data) + index * f.stride;
    uint32_t most = 0;
#pragma unroll
    for (int e = 0; e < E; e++)
        if (e < (int)units) most = max(most, __float_as_uint(v[e]) & 0x7fffffffu);
    row_max(most, true, true, reduce);
    __syncthreads();
    float inverse = 0.0f;
    const float scale = i8_scale(reduce[0], &inverse);
    int sum = 0;
#pragma unroll
    for (int e = 0; e < E; e++) {
        if (e >= (int)units) break;
        const int q = inverse == 0.0f ? 0 : __float2int_rn(__fmul_rn(v[e], inverse));
        sum += q;
        data[threadIdx.x + HELD_THREADS * e] = (int8_t)q;
    }
    for (size_t i = units * HELD_THREADS + threadIdx.x; i < f.stride; i += HELD_THREADS) data[i] = 0;
    row_sum(sum, true, true, reinterpret_cast<int *>(reduce + 1));
    __syncthreads();
    if (threadIdx.x == 0) f.scale[index] = scale, f.sum[index] = (int32_t)reduce[1];
}

} // namespace

#endif
