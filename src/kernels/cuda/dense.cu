// Products of dense weights: f32, f16 or bf16 by f32 or bf16 activations, summed in f32. A warp owns an output row and
// up to 8 activation rows; a lane's chain of fused multiply-adds and the tree behind it depend on the column alone, so
// that a row has the same bits whatever is beside it.
#include "common.cuh"

namespace {

constexpr int WARPS = 4, LANE_COLUMNS = 8;

template <typename T> __device__ __forceinline__ float number(T x);
template <> __device__ __forceinline__ float number(float x)
{
    return x;
}
struct f16 {
    uint16_t bits;
};
struct bf16 {
    uint16_t bits;
};
template <> __device__ __forceinline__ float number(f16 x)
{
    return f32_from_f16(x.bits);
}
template <> __device__ __forceinline__ float number(bf16 x)
{
    return f32_from_bf16(x.bits);
}

// Eight numbers from k on, zero from `cols` on; `wide`: 16-byte aligned and all there.
template <typename T> __device__ __forceinline__ void fetch(const T *p, size_t k, size_t cols, bool wide, float (&v)[LANE_COLUMNS])
{
    if (!wide) {
#pragma unroll
        for (int i = 0; i < LANE_COLUMNS; i++) v[i] = k + i < cols ? number(p[k + i]) : 0.0f;
        return;
    }
    alignas(16) T raw[LANE_COLUMNS];
#pragma unroll
    for (int i = 0; i < (int)(LANE_COLUMNS * sizeof(T)) / 16; i++)
        reinterpret_cast<uint4 *>(raw)[i] = reinterpret_cast<const uint4 *>(p + k)[i];
#pragma unroll
    for (int i = 0; i < LANE_COLUMNS; i++) v[i] = number(raw[i]);
}

template <typename W, typename A, int ROWS>
__global__ void __launch_bounds__(32 * WARPS)
    product_kernel(const W *w, size_t outs, size_t cols, const A *a, size_t stride, float *y, size_t ldy)
{
    const int lane = threadIdx.x % 32;
    const size_t out = (size_t)blockIdx.x * WARPS + threadIdx.x / 32;
    if (out >= outs) return;
    w += out * cols;
    const bool wide = cols % LANE_COLUMNS == 0; // rows then are 16-byte aligned: uploads are 256-byte aligned
    float sum[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; r++) sum[r] = 0.0f;
    for (size_t k = (size_t)lane * LANE_COLUMNS; k < cols; k += 32 * LANE_COLUMNS) {
        float x[LANE_COLUMNS];
        fetch(w, k, cols, wide, x);
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            float v[LANE_COLUMNS];
            fetch(a + r * stride, k, cols, true, v); // zero to the stride, a multiple of 256
#pragma unroll
            for (int i = 0; i < LANE_COLUMNS; i++) sum[r] = fmaf(x[i], v[i], sum[r]);
        }
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        const float total = warp_sum(sum[r]);
        if (lane == 0) y[r * ldy + out] = total;
    }
}

template <typename W, typename A>
void run(cudaStream_t stream, const void *w, size_t outs, size_t cols, const void *a, size_t stride, size_t rows, float *y,
         size_t ldy)
{
    const W *weights = static_cast<const W *>(w);
    const A *x = static_cast<const A *>(a);
    const unsigned grid = div_up(outs, WARPS), threads = 32 * WARPS;
    while (rows > 0) {
        const size_t part = rows >= 8 ? 8 : rows >= 4 ? 4 : rows >= 2 ? 2 : 1;
        switch (part) {
        case 8: product_kernel<W, A, 8><<<grid, threads, 0, stream>>>(weights, outs, cols, x, stride, y, ldy); break;
        case 4: product_kernel<W, A, 4><<<grid, threads, 0, stream>>>(weights, outs, cols, x, stride, y, ldy); break;
        case 2: product_kernel<W, A, 2><<<grid, threads, 0, stream>>>(weights, outs, cols, x, stride, y, ldy); break;
        default: product_kernel<W, A, 1><<<grid, threads, 0, stream>>>(weights, outs, cols, x, stride, y, ldy); break;
        }
        rows -= part;
        x += part * stride;
        y += part * ldy;
    }
}

template <typename A>
void run_type(cudaStream_t stream, enum cuda_type type, const void *w, size_t outs, size_t cols, const void *a, size_t stride,
              size_t rows, float *y, size_t ldy)
{
    if (type == CUDA_TYPE_F32) run<float, A>(stream, w, outs, cols, a, stride, rows, y, ldy);
    if (type == CUDA_TYPE_F16) run<f16, A>(stream, w, outs, cols, a, stride, rows, y, ldy);
    if (type == CUDA_TYPE_BF16) run<bf16, A>(stream, w, outs, cols, a, stride, rows, y, ldy);
}

} // namespace

void cuda_product_dense(cudaStream_t stream, enum cuda_type type, const void *w, size_t outs, size_t cols,
                        enum cuda_type a_type, const void *a, size_t stride, size_t rows, float *y, size_t ldy)
{
    if (outs == 0) return;
    if (a_type == CUDA_TYPE_BF16)
        run_type<bf16>(stream, type, w, outs, cols, a, stride, rows, y, ldy);
    else
        run_type<float>(stream, type, w, outs, cols, a, stride, rows, y, ldy);
}
