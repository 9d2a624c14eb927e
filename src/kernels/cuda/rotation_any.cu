// Rotations that the other kernels do not know, bit for bit as rotation/rotation.h fixes them: two overlapping Hadamards, many
// blocks of one size, blocks below 16 or one of 16 before others, and rows of more than 32768 elements. A block of threads holds a row
// in shared memory and does three stages at a time in registers.
#include "rotation.cuh"

namespace {

constexpr int ANY_THREADS = 1024;

struct general {
    cuda_rotation r;
    const void *x;
    void *y;
    float *scale; // int8
    int32_t *sum;
    const float *bias;
    size_t ldx, ldy;
};

// WIDTH stages from stride 2^shift on of elements [begin, begin + count), and then times `factor`.
template <int WIDTH> __device__ __forceinline__ void stages(float *row, int begin, int count, int shift, float factor)
{
    constexpr int HAS = 1 << WIDTH;
    for (int g = (int)threadIdx.x; g < count >> WIDTH; g += (int)blockDim.x) {
        const int low = g & ((1 << shift) - 1), at = begin + low + ((g - low) << WIDTH);
        float v[HAS];
#pragma unroll
        for (int e = 0; e < HAS; e++) v[e] = row[padded_at(at + (e << shift))];
#pragma unroll
        for (int bit = 0; bit < WIDTH; bit++)
#pragma unroll
            for (int e = 0; e < HAS; e++)
                if ((e >> bit & 1) == 0) {
                    const float a = v[e], b = v[e | 1 << bit];
                    v[e] = __fadd_rn(a, b);
                    v[e | 1 << bit] = __fsub_rn(a, b);
                }
#pragma unroll
        for (int e = 0; e < HAS; e++) row[padded_at(at + (e << shift))] = __fmul_rn(v[e], factor);
    }
    __syncthreads();
}

// H of region b; the row is in its place before and after.
__device__ void transform_region(const cuda_rotation &r, int b, float *row)
{
    const int log2 = r.log2[b], begin = (int)r.begin[b], count = r.uniform ? (int)r.padded : 1 << log2;
    const int rest = log2 % 3;
    int shift = 0;
    for (; shift + 3 <= log2; shift += 3) stages<3>(row, begin, count, shift, shift + 3 == log2 ? r.scale[b] : 1.0f);
    if (rest == 2) stages<2>(row, begin, count, shift, r.scale[b]);
    if (rest == 1) stages<1>(row, begin, count, shift, r.scale[b]);
}

__device__ void transform_row(const cuda_rotation &r, bool back, float *row)
{
    const int count = (int)r.count;
    for (int b = 0; b < count; b++) {
        transform_region(r, back ? count - 1 - b : b, row);
        if (!r.overlap || b > 0) continue;
        const float *between = r.signs + r.padded;
        for (int i = (int)threadIdx.x; i < (int)r.padded; i += (int)blockDim.x)
            row[padded_at(i)] = __fmul_rn(row[padded_at(i)], between[i]);
        __syncthreads();
    }
}

template <typename In, typename Out> __global__ void __launch_bounds__(ANY_THREADS) any_forward_kernel(const __grid_constant__ general f)
{
    extern __shared__ float row[];
    __shared__ uint32_t largest;
    __shared__ int total;
    const int t = (int)threadIdx.x, threads = (int)blockDim.x, padded = (int)f.r.padded;
    const In *x = static_cast<const In *>(f.x) + blockIdx.x * f.ldx;
    if (t == 0) largest = 0, total = 0;
    for (int i = t; i < padded; i += threads) row[padded_at(i)] = i < (int)f.r.size ? __fmul_rn(f.r.signs[i], load(x + i)) : 0.0f;
    __syncthreads();
    transform_row(f.r, false, row);
    float inverse = 1.0f, scale = 0.0f;
    if constexpr (sizeof(Out) == 1) {
        uint32_t most = 0;
        for (int i = t; i < padded; i += threads) most = max(most, __float_as_uint(row[padded_at(i)]) & 0x7fffffffu);
        row_max(most, true, true, &largest);
        __syncthreads();
        scale = i8_scale(largest, &inverse);
    }
    Out *y = static_cast<Out *>(f.y) + blockIdx.x * f.ldy;
    int part = 0;
    for (size_t i = (size_t)t; i < f.ldy; i += (size_t)threads) {
        float v = i < f.r.padded ? row[padded_at((int)i)] : 0.0f;
        if constexpr (sizeof(Out) == 1) {
            v = inverse == 0.0f ? 0.0f : __fmul_rn(v, inverse);
            part += __float2int_rn(v);
        }
        store_run<Out, 1>(y + i, &v);
    }
    if constexpr (sizeof(Out) == 1) {
        row_sum(part, true, true, &total);
        __syncthreads();
        if (t == 0) f.scale[blockIdx.x] = scale, f.sum[blockIdx.x] = total;
    }
}

__global__ void __launch_bounds__(ANY_THREADS) any_inverse_kernel(const __grid_constant__ general f)
{
    extern __shared__ float row[];
    const int t = (int)threadIdx.x, threads = (int)blockDim.x, padded = (int)f.r.padded;
    const float *z = static_cast<const float *>(f.x) + blockIdx.x * f.ldx;
    for (int i = t; i < padded; i += threads) row[padded_at(i)] = z[i];
    __syncthreads();
    transform_row(f.r, true, row);
    float *y = static_cast<float *>(f.y) + blockIdx.x * f.ldy;
    for (int i = t; i < (int)f.r.size; i += threads) {
        const float v = __fmul_rn(f.r.signs[i], row[padded_at(i)]);
        y[i] = f.bias ? __fadd_rn(v, f.bias[i]) : v;
    }
}

size_t shared_bytes(size_t padded)
{
    return (padded + padded / 32) * sizeof(float);
}

// As many threads as have a group of eight elements each, in whole warps.
unsigned threads_of(const cuda_rotation &r)
{
    const unsigned wanted = div_up(r.padded, 8 * 32) * 32;
    return wanted < ANY_THREADS ? wanted : ANY_THREADS;
}

template <typename In> void forward_of(cudaStream_t stream, const general &f, size_t rows, enum cuda_type out)
{
    const unsigned threads = threads_of(f.r);
    const size_t shared = shared_bytes(f.r.padded);
    const dim3 grid((unsigned)rows);
    switch (out) {
    case CUDA_TYPE_F32: launch_behind(stream, any_forward_kernel<In, float>, grid, threads, shared, f); break;
    case CUDA_TYPE_F16: launch_behind(stream, any_forward_kernel<In, half_bits<false>>, grid, threads, shared, f); break;
    case CUDA_TYPE_BF16: launch_behind(stream, any_forward_kernel<In, half_bits<true>>, grid, threads, shared, f); break;
    case CUDA_TYPE_I8: launch_behind(stream, any_forward_kernel<In, int8_t>, grid, threads, shared, f); break;
    }
}

} // namespace

uint32_t cuda_rotate_any_most(int device)
{
    int shared = 0;
    cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    const size_t words = (size_t)(shared > 1024 ? shared - 1024 : 0) / sizeof(float);
    return (uint32_t)(words / 33 * 32);
}

void cuda_rotate_any_forward(cudaStream_t stream, const struct cuda_rotation *rotation, enum cuda_type in, const void *x, size_t ldx,
                             size_t rows, enum cuda_type out, void *data, size_t stride, float *scale, int32_t *sum)
{
    const general f = {*rotation, x, data, scale, sum, NULL, ldx, stride};
    if (in == CUDA_TYPE_F32) forward_of<float>(stream, f, rows, out);
    if (in == CUDA_TYPE_F16) forward_of<half_bits<false>>(stream, f, rows, out);
    if (in == CUDA_TYPE_BF16) forward_of<half_bits<true>>(stream, f, rows, out);
}

void cuda_rotate_any_inverse(cudaStream_t stream, const struct cuda_rotation *rotation, const float *z, size_t ldz, float *y,
                             size_t ldy, const float *bias, size_t rows)
{
    const general f = {*rotation, z, y, NULL, NULL, bias, ldz, ldy};
    launch_behind(stream, any_inverse_kernel, dim3((unsigned)rows), threads_of(*rotation), shared_bytes(rotation->padded), f);
}
