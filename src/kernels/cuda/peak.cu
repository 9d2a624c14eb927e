// Ceilings of the device, and data to measure with.
#include "common.cuh"

namespace {

constexpr int THREADS = 512;

__global__ void __launch_bounds__(THREADS) read_kernel(const uint4 *from, size_t n, uint32_t *sink)
{
    const size_t step = (size_t)gridDim.x * THREADS;
    uint32_t x = 0;
    size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x;
    for (; i + 3 * step < n; i += 4 * step) {
        uint4 v[4];
#pragma unroll
        for (int j = 0; j < 4; j++) v[j] = __ldcs(from + i + j * step);
#pragma unroll
        for (int j = 0; j < 4; j++) x ^= v[j].x ^ v[j].y ^ v[j].z ^ v[j].w;
    }
    for (; i < n; i += step) x ^= from[i].x ^ from[i].y ^ from[i].z ^ from[i].w;
    if (x == 0x12345678u) *sink = x; // what keeps the reads
}

__global__ void __launch_bounds__(THREADS) copy_kernel(uint4 *to, const uint4 *from, size_t n)
{
    const size_t step = (size_t)gridDim.x * THREADS;
    size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x;
    for (; i + 3 * step < n; i += 4 * step) {
        uint4 v[4];
#pragma unroll
        for (int j = 0; j < 4; j++) v[j] = __ldcs(from + i + j * step);
#pragma unroll
        for (int j = 0; j < 4; j++) __stcs(to + i + j * step, v[j]);
    }
    for (; i < n; i += step) to[i] = from[i];
}

__device__ uint32_t mix(uint32_t h)
{
    h ^= h >> 16, h *= 0x7feb352du, h ^= h >> 15, h *= 0x846ca68bu;
    return h ^ h >> 16;
}

__global__ void random_kernel(uint32_t *p, size_t n, uint32_t seed)
{
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x)
        p[i] = mix((uint32_t)i * 2654435761u + seed + mix((uint32_t)(i >> 32)));
}

// About standard normal: the sum of four bytes' uniforms.
__global__ void normal_kernel(cuda_type type, void *p, size_t n, uint32_t seed)
{
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x) {
        const uint32_t h = mix((uint32_t)i + seed), g = mix(h);
        const float x = ((float)((h & 0xffff) + (h >> 16) + (g & 0xffff) + (g >> 16)) - 131070.0f) / 37837.0f;
        if (type == CUDA_TYPE_F32) static_cast<float *>(p)[i] = x;
        if (type == CUDA_TYPE_F16) static_cast<uint16_t *>(p)[i] = f16_from_f32(x);
        if (type == CUDA_TYPE_BF16) static_cast<uint16_t *>(p)[i] = bf16_from_f32(x);
        if (type == CUDA_TYPE_I8) static_cast<int8_t *>(p)[i] = (int8_t)__float2int_rn(fminf(fmaxf(x * 32, -127), 127));
    }
}

} // namespace

void cuda_peak_read(cudaStream_t stream, const void *from, size_t bytes, uint32_t *sink)
{
    read_kernel<<<132 * 4, THREADS, 0, stream>>>(static_cast<const uint4 *>(from), bytes / 16, sink);
}

void cuda_peak_copy(cudaStream_t stream, void *to, const void *from, size_t bytes)
{
    copy_kernel<<<132 * 16, THREADS, 0, stream>>>(static_cast<uint4 *>(to), static_cast<const uint4 *>(from), bytes / 16);
}

void cuda_fill_random(cudaStream_t stream, void *p, size_t bytes, uint32_t seed)
{
    random_kernel<<<4096, 256, 0, stream>>>(static_cast<uint32_t *>(p), bytes / 4, seed);
}

void cuda_fill_normal(cudaStream_t stream, enum cuda_type type, void *p, size_t n, uint32_t seed)
{
    normal_kernel<<<4096, 256, 0, stream>>>(type, p, n, seed);
}
