// Rotations of rows as kernels of their own: forward with rounding, inverse with bias; and rounding without a rotation.
#include "rotation.cuh"

namespace {

struct forward {
    cuda_rotation r;
    cut c;
    const void *x;
    void *data;
    float *scale;
    int32_t *sum;
    size_t ldx, stride, rows;
    bool wide;
};

template <typename In, typename Out> __global__ void __launch_bounds__(1024) forward_kernel(const __grid_constant__ forward f)
{
    extern __shared__ float shared[];
    const int slot = (int)threadIdx.x / f.c.threads, t = (int)threadIdx.x % f.c.threads, at = t * HELD;
    const size_t row = (size_t)blockIdx.x * (size_t)f.c.rows + (size_t)slot;
    const bool active = slot < f.c.rows && row < f.rows;
    uint32_t *largest = reinterpret_cast<uint32_t *>(shared + (size_t)f.c.rows * f.c.shared);
    int *sums = reinterpret_cast<int *>(largest + f.c.rows);
    if constexpr (sizeof(Out) == 1) {
        if (active && t == 0) largest[slot] = 0, sums[slot] = 0;
        if (f.c.passes == 1) __syncthreads();
    }
    let_next_start();
    wait_for_previous();
    float v[HELD];
    const uint32_t *units = unit_signs(f.r);
    const uint32_t all_units = units[0], negative = active ? units[1 + at / HELD] : 0;
    const In *x = static_cast<const In *>(f.x) + row * f.ldx;
    fetch_row(x, f.c, f.wide, active, t, (int)f.r.size, shared + (size_t)slot * f.c.shared, v);
    if (all_units != 0) {
#pragma unroll
        for (int e = 0; e < HELD; e++)
            v[e] = __uint_as_float(__float_as_uint(v[e]) ^ (negative << (31 - e) & 0x80000000u));
        if (f.r.size != f.r.padded) { // the padding is +0
#pragma unroll
            for (int e = 0; e < HELD; e++)
                if (at + e >= (int)f.r.size) v[e] = 0.0f;
        }
    } else if (active) {
#pragma unroll
        for (int e = 0; e < HELD; e++)
            if (at + e < (int)f.r.size) v[e] = __fmul_rn(f.r.signs[at + e], v[e]);
    }
    place p;
    transform(f.r, f.c.passes, active, at, shared + (size_t)slot * f.c.shared, v, &p);
    const bool whole = f.c.threads % 32 == 0;
    const bool half = active && p.width == 5 && p.base + HELD > (int)f.r.padded; // 16 elements only
    if constexpr (sizeof(Out) == 1) {
        uint32_t most = 0;
#pragma unroll
        for (int e = 0; e < HELD; e++)
            if (active && (e < 16 || !half)) most = max(most, __float_as_uint(v[e]) & 0x7fffffffu);
        row_max(most, whole, active, largest + slot);
        __syncthreads();
        float inverse = 0.0f, scale = 0.0f;
        if (active) scale = i8_scale(largest[slot], &inverse);
        int sum = 0;
#pragma unroll
        for (int e = 0; e < HELD; e++) {
            v[e] = inverse == 0.0f ? 0.0f : __fmul_rn(v[e], inverse);
            if (active && (e < 16 || !half)) sum += __float2int_rn(v[e]);
        }
        row_sum(sum, whole, active, sums + slot);
        __syncthreads();
        if (active && t == 0) f.scale[row] = scale, f.sum[row] = sums[slot];
    }
    if (!active) return;
    Out *data = static_cast<Out *>(f.data) + row * f.stride;
    store_row(data, p, (int)f.r.padded, v);
    for (size_t i = f.r.padded + (size_t)t; i < f.stride; i += (size_t)f.c.threads) {
        const float zero = 0.0f;
        store_run<Out, 1>(data + i, &zero);
    }
}

struct inverse {
    cuda_rotation r;
    cut c;
    const float *z;
    float *y;
    const float *bias;
    size_t ldz, ldy, rows;
    bool wide;
};

__global__ void __launch_bounds__(1024) inverse_kernel(const __grid_constant__ inverse f)
{
    extern __shared__ float shared[];
    const int slot = (int)threadIdx.x / f.c.threads, t = (int)threadIdx.x % f.c.threads, at = t * HELD;
    const size_t row = (size_t)blockIdx.x * (size_t)f.c.rows + (size_t)slot;
    const bool active = slot < f.c.rows && row < f.rows;
    let_next_start();
    wait_for_previous();
    float v[HELD];
    fetch_row(f.z + row * f.ldz, f.c, f.wide, active, t, (int)f.r.padded, shared + (size_t)slot * f.c.shared, v);
    place p;
    transform(f.r, f.c.passes, active, at, shared + (size_t)slot * f.c.shared, v, &p);
    if (!active) return;
    float *y = f.y + row * f.ldy;
    const int run = 1 << p.width, size = (int)f.r.size;
#pragma unroll
    for (int e = 0; e < HELD; e++) {
        const int i = p.base + (e & (run - 1)) + (e >> p.width) * p.step;
        if (i >= size) continue;
        float out = __fmul_rn(f.r.signs[i], v[e]);
        if (f.bias) out = __fadd_rn(out, f.bias[i]);
        y[i] = out;
    }
}

template <typename K, typename P> void launch(cudaStream_t stream, K kernel, const cut &c, size_t rows, bool reduces, const P &p)
{
    const size_t shared = (size_t)c.rows * (c.shared * sizeof(float) + (reduces ? 8 : 0));
    launch_early(stream, kernel, dim3(div_up(rows, (size_t)c.rows)), (unsigned)((c.threads * c.rows + 31) / 32 * 32), shared, p);
}

template <typename In> void forward_of(cudaStream_t stream, const forward &f, enum cuda_type out)
{
    switch (out) {
    case CUDA_TYPE_F32: launch(stream, forward_kernel<In, float>, f.c, f.rows, false, f); break;
    case CUDA_TYPE_F16: launch(stream, forward_kernel<In, half_bits<false>>, f.c, f.rows, false, f); break;
    case CUDA_TYPE_BF16: launch(stream, forward_kernel<In, half_bits<true>>, f.c, f.rows, false, f); break;
    case CUDA_TYPE_I8: launch(stream, forward_kernel<In, int8_t>, f.c, f.rows, true, f); break;
    }
}

// --- without a rotation ---

constexpr int ROUND_THREADS = 256;

template <typename Out> __global__ void __launch_bounds__(ROUND_THREADS)
    round_kernel(const float *x, size_t ldx, size_t cols, Out *data, size_t stride, float *scale, int32_t *sum)
{
    __shared__ uint32_t largest;
    __shared__ int total;
    wait_for_previous();
    x += blockIdx.x * ldx;
    data += blockIdx.x * stride;
    float inverse = 1.0f, row_scale = 0.0f;
    if constexpr (sizeof(Out) == 1) {
        if (threadIdx.x == 0) largest = 0, total = 0;
        __syncthreads();
        uint32_t most = 0;
        for (size_t i = threadIdx.x; i < cols; i += ROUND_THREADS) most = max(most, __float_as_uint(x[i]) & 0x7fffffffu);
        row_max(most, true, true, &largest);
        __syncthreads();
        row_scale = i8_scale(largest, &inverse);
    }
    int part = 0;
    for (size_t i = threadIdx.x; i < stride; i += ROUND_THREADS) {
        float v = i < cols ? x[i] : 0.0f;
        if constexpr (sizeof(Out) == 1) {
            v = inverse == 0.0f ? 0.0f : __fmul_rn(v, inverse);
            part += __float2int_rn(v);
        }
        store_run<Out, 1>(data + i, &v);
    }
    if constexpr (sizeof(Out) == 1) {
        row_sum(part, true, true, &total);
        __syncthreads();
        if (threadIdx.x == 0) scale[blockIdx.x] = row_scale, sum[blockIdx.x] = total;
    }
}

} // namespace

void cuda_rotate_forward(cudaStream_t stream, const struct cuda_rotation *rotation, enum cuda_type in, const void *x,
                         size_t ldx, size_t rows, enum cuda_type out, void *data, size_t stride, float *scale, int32_t *sum)
{
    if (rows == 0) return;
    if (rotation->any) {
        cuda_rotate_any_forward(stream, rotation, in, x, ldx, rows, out, data, stride, scale, sum);
        return;
    }
    if (cuda_rotate_wide_fits(rotation, in, x, ldx, out, stride)) {
        cuda_rotate_wide(stream, rotation, in, x, ldx, rows, data, stride);
        return;
    }
    const size_t element = in == CUDA_TYPE_F32 ? 4 : 2;
    forward f = {*rotation, cut_rows(rotation, rows), x, data, scale, sum, ldx, stride, rows, false};
    f.wide = (uintptr_t)x % 16 == 0 && ldx * element % 16 == 0;
    if (in == CUDA_TYPE_F32) forward_of<float>(stream, f, out);
    if (in == CUDA_TYPE_F16) forward_of<half_bits<false>>(stream, f, out);
    if (in == CUDA_TYPE_BF16) forward_of<half_bits<true>>(stream, f, out);
}

void cuda_round_rows(cudaStream_t stream, const float *x, size_t ldx, size_t cols, size_t rows, enum cuda_type out,
                     void *data, size_t stride, float *scale, int32_t *sum)
{
    if (rows == 0) return;
    const unsigned grid = (unsigned)rows;
    switch (out) {
    case CUDA_TYPE_F32:
        round_kernel<<<grid, ROUND_THREADS, 0, stream>>>(x, ldx, cols, static_cast<float *>(data), stride, scale, sum);
        break;
    case CUDA_TYPE_BF16:
        round_kernel<<<grid, ROUND_THREADS, 0, stream>>>(x, ldx, cols, static_cast<half_bits<true> *>(data), stride, scale, sum);
        break;
    case CUDA_TYPE_F16:
        round_kernel<<<grid, ROUND_THREADS, 0, stream>>>(x, ldx, cols, static_cast<half_bits<false> *>(data), stride, scale, sum);
        break;
    case CUDA_TYPE_I8:
        round_kernel<<<grid, ROUND_THREADS, 0, stream>>>(x, ldx, cols, static_cast<int8_t *>(data), stride, scale, sum);
        break;
    }
}

void cuda_rotate_inverse(cudaStream_t stream, const struct cuda_rotation *rotation, const float *z, size_t ldz, float *y,
                         size_t ldy, const float *bias, size_t rows)
{
    if (rows == 0) return;
    if (rotation->any) {
        cuda_rotate_any_inverse(stream, rotation, z, ldz, y, ldy, bias, rows);
        return;
    }
    inverse f = {*rotation, cut_rows(rotation, rows), z, y, bias, ldz, ldy, rows, false};
    f.wide = (uintptr_t)z % 16 == 0 && ldz % 4 == 0;
    launch(stream, inverse_kernel, f.c, rows, false, f);
}
