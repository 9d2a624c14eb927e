// The gated short convolution of training (kernels/train.h), forward and back: a thread has one element of a row.
#include "common.cuh"
#include "launch_train.h"

namespace {

constexpr int CONV_THREADS = 256;

// The sum that C multiplies, of column i of a row.
__device__ __forceinline__ float bracket(const cuda_train_conv &t, size_t row, uint32_t i)
{
    const size_t width = t.width, position = row - t.first[row];
    const float *x = t.x + row * 3 * width + i;
    float sum = t.bias ? t.bias[i] : 0.0f;
    for (uint32_t j = 0; j < t.taps; j++) {
        const size_t back = t.taps - 1 - j;
        if (back > position) continue;
        const float *from = x - back * 3 * width;
        sum = __fadd_rn(sum, __fmul_rn(t.weight[j * width + i], __fmul_rn(from[0], from[2 * width])));
    }
    return sum;
}

__global__ void __launch_bounds__(CONV_THREADS) forward_kernel(const __grid_constant__ cuda_train_conv t)
{
    const uint32_t i = blockIdx.y * CONV_THREADS + threadIdx.x;
    const size_t row = blockIdx.x, width = t.width;
    if (i < t.width) t.out[row * width + i] = __fmul_rn(t.x[row * 3 * width + width + i], bracket(t, row, i));
}

__global__ void __launch_bounds__(CONV_THREADS) backward_kernel(const __grid_constant__ cuda_train_conv t)
{
    const uint32_t i = blockIdx.y * CONV_THREADS + threadIdx.x;
    const size_t row = blockIdx.x, width = t.width;
    if (i >= t.width) return;
    const size_t left = t.end[row] - row;
    const float *x = t.x + row * 3 * width + i, *dout = t.dout + row * width + i;
    float du = 0.0f;
    for (uint32_t j = 0; j < t.taps; j++) {
        const size_t ahead = t.taps - 1 - j;
        if (ahead >= left) continue;
        du = __fadd_rn(du, __fmul_rn(t.weight[j * width + i], __fmul_rn(dout[ahead * width], x[ahead * 3 * width + width])));
    }
    float *dx = t.dx + row * 3 * width + i;
    dx[0] = __fmul_rn(du, x[2 * width]);
    dx[width] = __fmul_rn(dout[0], bracket(t, row, i));
    dx[2 * width] = __fmul_rn(du, x[0]);
}

dim3 grid_of(const cuda_train_conv &t)
{
    return dim3((unsigned)t.rows, div_up(t.width, CONV_THREADS));
}

} // namespace

void cuda_train_conv_forward(cudaStream_t stream, const struct cuda_train_conv *t)
{
    if (t->rows > 0) forward_kernel<<<grid_of(*t), CONV_THREADS, 0, stream>>>(*t);
}

void cuda_train_conv_backward(cudaStream_t stream, const struct cuda_train_conv *t)
{
    if (t->rows > 0) backward_kernel<<<grid_of(*t), CONV_THREADS, 0, stream>>>(*t);
}
