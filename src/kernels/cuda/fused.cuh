// What the fused row kernels share: a row of f32 in shared memory, put there from a product's output and rotated back, taken
// from there by the forward rotation and the rounding of a product's input. A block of threads does one row; every thread
// calls every function. The arithmetic is that of the parts (inverse_kernel, rms_norm_kernel, gate_kernel, forward_kernel), so
// that the bits are theirs; the code is not: between two products of a step these kernels run once for a row or a few, where
// short loops over many threads take half the time of straight code that few threads go through once.
#ifndef WALSH_KERNELS_CUDA_FUSED_CUH
#define WALSH_KERNELS_CUDA_FUSED_CUH

#include "rotation.cuh"

namespace {

// Where element i of a row stands in shared memory: a word of padding behind every eight.
__device__ __forceinline__ int place_of(int i)
{
    return i + (i >> 3);
}
inline size_t row_floats(size_t elements)
{
    return (elements + 7) / 8 * 9;
}

// row <- H row, scaled: each block of r; a thread does four stages of sixteen elements at a time.
__device__ __forceinline__ void hadamard(const cuda_rotation &r, float *row, int t, int threads)
{
    const int groups = (int)r.padded / 16;
#pragma unroll 1
    for (int bit = 0; bit < (int)r.log2[0]; bit += 4) { // blocks are in descending order
        __syncthreads();
#pragma unroll 1
        for (int g = t; g < groups; g += threads) {
            int block = 0;
            while (block + 1 < (int)r.count && g * 16 >= (int)r.begin[block + 1]) block++;
            const int log2 = r.log2[block];
            if (bit >= log2) continue;
            // a last pass of fewer stages looks at sixteen elements too, and skips the stages that are done
            const int low = min(bit, log2 - 4), done = bit - low, within = g - (int)r.begin[block] / 16;
            const int base = (int)r.begin[block] + (within & ((1 << low) - 1)) + (within >> low << (low + 4));
            float *p = row;
            float v[16];
            if (low >= 3 || low == 0) { // strides of 8 and more keep the padding even; of 1 a half is in one eighth
                p += place_of(base);
                const int step = low == 0 ? 1 : (1 << low) + (1 << low) / 8, more = low == 0 ? 9 - 8 : 0;
#pragma unroll
                for (int e = 0; e < 16; e++) v[e] = p[e * step + (e >> 3) * more];
#pragma unroll
                for (int s = 0; s < 4; s++) {
                    if (s < done) continue;
#pragma unroll
                    for (int e = 0; e < 16; e++)
                        if ((e >> s & 1) == 0) {
                            const float a = v[e], b = v[e | 1 << s];
                            v[e] = __fadd_rn(a, b);
                            v[e | 1 << s] = __fsub_rn(a, b);
                        }
                }
                    if (bit + 4 >= log2) {
                    const float scale = r.scale[block];
#pragma unroll
                    for (int e = 0; e < 16; e++) v[e] = __fmul_rn(v[e], scale);
                }
#pragma unroll
                for (int e = 0; e < 16; e++) p[e * step + (e >> 3) * more] = v[e];
            } else { // the last one or two stages of a block of 32 or 64
                const float scale = r.scale[block];
#pragma unroll 1
                for (int s = done; s < 4; s++)
#pragma unroll 1
                    for (int e = 0; e < 16; e++)
                        if ((e >> s & 1) == 0) {
                            float *pa = row + place_of(base + (e << low)), *pb = row + place_of(base + ((e | 1 << s) << low));
                            const float a = *pa, b = *pb, unit = s == 3 ? scale : 1.0f;
                            *pa = __fmul_rn(__fadd_rn(a, b), unit);
                            *pb = __fmul_rn(__fsub_rn(a, b), unit);
                        }
            }
        }
    }
    __syncthreads();
}

// A product's output [rows][ld] and its inverse rotation (count 0: none).
struct unrotated {
    cuda_rotation r;
    const float *z, *bias;
    size_t ld;
    bool wide;
};

inline unrotated unrotated_of(const cuda_unrotated &from)
{
    const bool wide = (uintptr_t)from.z % 16 == 0 && from.ld % 4 == 0 && from.rotation.padded % 4 == 0;
    return unrotated{from.rotation, from.z, from.bias, from.ld, wide};
}

// row <- H z of a row; thread t of those that work on it. The signs and the bias come with output_of.
__device__ __forceinline__ void unrotate_into(const unrotated &u, size_t index, int t, int threads, float *row)
{
    const float *z = u.z + index * u.ld;
    const int n = (int)u.r.padded;
    if (u.wide) {
#pragma unroll 4
        for (int i = 4 * t; i < n; i += 4 * threads) {
            const float4 f = *reinterpret_cast<const float4 *>(z + i);
            float *p = row + place_of(i);
            p[0] = f.x, p[1] = f.y, p[2] = f.z, p[3] = f.w;
        }
    } else {
#pragma unroll 4
        for (int i = t; i < n; i += threads) row[place_of(i)] = z[i];
    }
    if (u.r.count > 0)
        hadamard(u.r, row, t, threads);
    else
        __syncthreads();
}

// The words behind a rotation's signs (launch.h) into shared memory: before anything else, they are constant.
__device__ __forceinline__ void stage_signs(const cuda_rotation &r, uint32_t *words)
{
    if (r.count == 0) return;
    const uint32_t *from = unit_signs(r);
#pragma unroll 1
    for (int i = (int)threadIdx.x; i < (int)CUDA_SIGN_WORDS(r.padded); i += (int)blockDim.x) words[i] = __ldg(from + i);
}
inline size_t sign_bytes(const cuda_rotation &r)
{
    return r.count == 0 ? 0 : CUDA_SIGN_WORDS(r.padded) * sizeof(uint32_t);
}
// v times sign i.
__device__ __forceinline__ float with_sign(const cuda_rotation &r, const uint32_t *words, int i, float v)
{
    if (words[0] == 0) return __fmul_rn(__ldg(r.signs + i), v);
    return __uint_as_float(__float_as_uint(v) ^ (words[1 + i / 32] << (31 - i % 32) & 0x80000000u));
}

// Output i from H z's element; words: of the rotation's signs.
__device__ __forceinline__ float output_of(const unrotated &u, const uint32_t *words, int i, float v)
{
    if (u.r.count > 0) v = with_sign(u.r, words, i, v);
    return u.bias ? __fadd_rn(v, __ldg(u.bias + i)) : v;
}

// The sum of the squares of n numbers of a row, the same for every thread, in rms_norm_kernel's order; part: [8] in shared
// memory, free again behind the caller's next barrier.
__device__ __forceinline__ float sum_of_squares(const float *row, int n, float *part)
{
    float squares = 0.0f;
    if (threadIdx.x < 256)
#pragma unroll 4
        for (int i = (int)threadIdx.x; i < n; i += 256) squares = fmaf(row[place_of(i)], row[place_of(i)], squares);
    squares = warp_sum(squares);
    if (threadIdx.x < 256 && threadIdx.x % 32 == 0) part[threadIdx.x / 32] = squares;
    __syncthreads();
    return warp_sum(threadIdx.x % 32 < 8 ? part[threadIdx.x % 32] : 0.0f);
}

// Where a product's input goes; count 0: rounded without a rotation.
struct prepared {
    cuda_rotation r;
    void *data;
    float *scale;
    int32_t *sum;
    size_t stride;
};

inline prepared prepared_of(const cuda_prepared &to)
{
    return prepared{to.rotation, to.data, to.scale, to.sum, to.stride};
}

// What stands in the row for element i of the input, before prepare_from.
__device__ __forceinline__ float input_of(const prepared &f, const uint32_t *words, int i, float v)
{
    return f.r.count > 0 ? with_sign(f.r, words, i, v) : v;
}

// data = round(forward(row)), of a row whose first f.r.size elements are from input_of. reduce: [2] in shared memory, zero.
// Begins with a barrier.
template <typename Out>
__device__ __forceinline__ void prepare_from(const prepared &f, size_t index, float *row, uint32_t *reduce)
{
    const int t = (int)threadIdx.x, threads = (int)blockDim.x, padded = (int)f.r.padded;
    Out *data = static_cast<Out *>(f.data) + index * f.stride;
#pragma unroll 1
    for (int i = (int)f.r.size + t; i < padded; i += threads) row[place_of(i)] = 0.0f;
    if (f.r.count > 0)
        hadamard(f.r, row, t, threads);
    else
        __syncthreads();
    if constexpr (sizeof(Out) == 1) {
        uint32_t most = 0;
#pragma unroll 4
        for (int i = t; i < padded; i += threads) most = max(most, __float_as_uint(row[place_of(i)]) & 0x7fffffffu);
        row_max(most, true, true, reduce);
        __syncthreads();
        float inverse = 0.0f;
        const float scale = i8_scale(reduce[0], &inverse);
        int sum = 0;
#pragma unroll 2
        for (int i = 4 * t; i < (int)f.stride; i += 4 * threads) { // blocks are multiples of 16
            uint32_t word = 0;
            if (i < padded && inverse != 0.0f) {
                const float *p = row + place_of(i);
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    const int q = __float2int_rn(__fmul_rn(p[e], inverse));
                    sum += q;
                    word |= ((uint32_t)q & 0xffu) << (8 * e);
                }
            }
            *reinterpret_cast<uint32_t *>(data + i) = word;
        }
        row_sum(sum, true, true, reinterpret_cast<int *>(reduce + 1));
        __syncthreads();
        if (t == 0) f.scale[index] = scale, f.sum[index] = (int32_t)reduce[1];
    } else {
#pragma unroll 4
        for (int i = t; i < (int)f.stride; i += threads) {
            const float v = i < padded ? row[place_of(i)] : 0.0f;
            store_run<Out, 1>(data + i, &v);
        }
    }
}

} // namespace

#endif
