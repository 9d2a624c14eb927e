// Ops on rows: embedding, norm, residual, position, gate, routing.
#include "common.cuh"

namespace {

constexpr int THREADS = 256;

// The sum of x over the block, the same for every thread, in an order that depends on the number of threads alone.
__device__ float block_sum(float x)
{
    __shared__ float part[32];
    x = warp_sum(x);
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = x;
    __syncthreads();
    x = threadIdx.x % 32 < blockDim.x / 32 ? part[threadIdx.x % 32] : 0.0f;
    return warp_sum(x);
}

__global__ void __launch_bounds__(THREADS)
    embed_kernel(float *out, cuda_type type, const void *table, size_t cols, const int32_t *ids)
{
    const size_t from = (size_t)ids[blockIdx.x] * cols;
    out += blockIdx.x * cols;
    for (size_t i = threadIdx.x; i < cols; i += THREADS) {
        float x;
        if (type == CUDA_TYPE_F32)
            x = static_cast<const float *>(table)[from + i];
        else if (type == CUDA_TYPE_F16)
            x = f32_from_f16(static_cast<const uint16_t *>(table)[from + i]);
        else
            x = f32_from_bf16(static_cast<const uint16_t *>(table)[from + i]);
        out[i] = x;
    }
}

__device__ __forceinline__ float number(cuda_type type, const void *p, size_t i)
{
    if (type == CUDA_TYPE_F32) return static_cast<const float *>(p)[i];
    const uint16_t bits = static_cast<const uint16_t *>(p)[i];
    return type == CUDA_TYPE_F16 ? f32_from_f16(bits) : f32_from_bf16(bits);
}

__global__ void __launch_bounds__(THREADS) convert_kernel(cuda_type to_type, void *to, size_t ld_to, cuda_type from_type,
                                                          const void *from, size_t ld_from, size_t rows, size_t cols)
{
    const size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x;
    if (i >= cols) return;
    for (size_t row = blockIdx.y; row < rows; row += gridDim.y) {
        const float x = number(from_type, from, row * ld_from + i);
        if (to_type == CUDA_TYPE_F32)
            static_cast<float *>(to)[row * ld_to + i] = x;
        else
            static_cast<uint16_t *>(to)[row * ld_to + i] = to_type == CUDA_TYPE_F16 ? f16_from_f32(x) : bf16_from_f32(x);
    }
}

__global__ void __launch_bounds__(THREADS)
    rms_norm_kernel(float *y, size_t ldy, const float *x, size_t ldx, const float *weight, size_t n, float eps)
{
    x += blockIdx.x * ldx;
    y += blockIdx.x * ldy;
    float squares = 0.0f;
    for (size_t i = threadIdx.x; i < n; i += blockDim.x) squares = fmaf(x[i], x[i], squares);
    const float scale = norm_scale(block_sum(squares), n, eps);
    for (size_t i = threadIdx.x; i < n; i += blockDim.x) y[i] = x[i] * scale * weight[i];
}

__global__ void __launch_bounds__(THREADS) add_kernel(float *x, const float *d, size_t n)
{
    const size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x;
    if (i < n) x[i] = __fadd_rn(x[i], d[i]);
}

__global__ void __launch_bounds__(THREADS)
    bias_kernel(float *y, size_t ldy, const float *x, size_t ldx, const float *bias, size_t n)
{
    for (size_t i = threadIdx.x; i < n; i += THREADS) {
        const float v = x[blockIdx.x * ldx + i];
        y[blockIdx.x * ldy + i] = bias ? __fadd_rn(v, bias[i]) : v;
    }
}

// Every product and the sum rounded: kernels.def, rope_f32.
__global__ void __launch_bounds__(THREADS) rope_kernel(float *x, size_t ldx, const uint32_t *positions, uint32_t heads,
                                                       uint32_t head_dim, uint32_t half, const float *cosine,
                                                       const float *sine)
{
    x += blockIdx.x * ldx;
    const size_t angle = (size_t)positions[blockIdx.x] * half;
    for (uint32_t i = threadIdx.x; i < heads * half; i += THREADS) {
        const uint32_t head = i / half, at = i % half;
        float *p = x + (size_t)head * head_dim + at;
        const float a = p[0], b = p[half], c = cosine[angle + at], s = sine[angle + at];
        p[0] = __fsub_rn(__fmul_rn(a, c), __fmul_rn(b, s));
        p[half] = __fadd_rn(__fmul_rn(b, c), __fmul_rn(a, s));
    }
}

template <bool GELU>
__global__ void __launch_bounds__(THREADS)
    gate_kernel(float *y, size_t ldy, const float *gate, const float *up, size_t ld, size_t n)
{
    const size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x, row = blockIdx.y;
    if (i >= n) return;
    y[row * ldy + i] = gate_value<GELU>(gate[row * ld + i], up[row * ld + i]);
}

template <bool GELU>
void gate_rows(cudaStream_t stream, float *y, size_t ldy, const float *gate, const float *up, size_t ld, size_t rows,
               size_t n)
{
    // a grid has at most 65535 in y
    for (size_t at = 0; at < rows; at += 32768) {
        const size_t part = rows - at < 32768 ? rows - at : 32768;
        gate_kernel<GELU><<<dim3(div_up(n, THREADS), (unsigned)part), THREADS, 0, stream>>>(
            y + at * ldy, ldy, gate + at * ld, up + at * ld, ld, n);
    }
}

__global__ void __launch_bounds__(THREADS) scale_kernel(float *x, float factor, size_t n)
{
    const size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x;
    if (i < n) x[i] *= factor;
}

__global__ void __launch_bounds__(THREADS) soft_cap_kernel(float *x, float cap, size_t n)
{
    const size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x;
    if (i < n) x[i] = cap * tanhf(x[i] / cap);
}

// One thread a row: the definition of kernels.def, route_f32.
__global__ void __launch_bounds__(THREADS)
    route_kernel(int32_t *index, float *weight, const float *logits, size_t rows, uint32_t experts, uint32_t k, bool normalize)
{
    const size_t row = (size_t)blockIdx.x * THREADS + threadIdx.x;
    if (row >= rows) return;
    index += row * k;
    weight += row * k;
    logits += row * experts;
    uint32_t found = 0;
    for (uint32_t e = 0; e < experts; e++) {
        const float x = isnan(logits[e]) ? -INFINITY : logits[e];
        uint32_t at = found < k ? found++ : k;
        while (at > 0 && weight[at - 1] < x) at--;
        if (at == k) continue;
        for (uint32_t j = found - 1; j > at; j--) {
            weight[j] = weight[j - 1];
            index[j] = index[j - 1];
        }
        weight[at] = x;
        index[at] = (int32_t)e;
    }
    const double top = k > 0 ? (double)weight[0] : 0;
    double sum = 0, chosen = 0;
    for (uint32_t e = 0; e < experts; e++)
        if (!isnan(logits[e])) sum += exp((double)logits[e] - top);
    for (uint32_t j = 0; j < k; j++) chosen += exp((double)weight[j] - top);
    for (uint32_t j = 0; j < k; j++) weight[j] = (float)(exp((double)weight[j] - top) / (normalize ? chosen : sum));
}

// A thread walks down the grid's column of blocks: any number of rows.
__global__ void __launch_bounds__(THREADS)
    clamped_kernel(float *y, size_t ldy, const float *gate, const float *up, size_t ld, size_t rows, size_t n, float alpha, float limit)
{
    const size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x;
    if (i >= n) return;
    for (size_t row = blockIdx.y; row < rows; row += gridDim.y) {
        const float raw = gate[row * ld + i], before = up[row * ld + i];
        const float g = raw > limit ? limit : raw, u = before > limit ? limit : before < -limit ? -limit : before; // NaN stays
        y[row * ldy + i] = g / (1.0f + expf(-alpha * g)) * (u + 1.0f);
    }
}

__global__ void __launch_bounds__(THREADS)
    gather_kernel(float *out, size_t ldo, const float *x, size_t ldx, const uint32_t *index, size_t rows, size_t n)
{
    const size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x;
    if (i >= n) return;
    for (size_t row = blockIdx.y; row < rows; row += gridDim.y) out[row * ldo + i] = x[index[row] * ldx + i];
}

__global__ void __launch_bounds__(THREADS)
    combine_kernel(float *x, size_t n, const float *y, const uint32_t *slot, const float *weight, size_t rows, uint32_t k)
{
    const size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x;
    if (i >= n) return;
    for (size_t row = blockIdx.y; row < rows; row += gridDim.y) {
        float sum = __fmul_rn(weight[row * k], y[slot[row * k] * n + i]);
        for (uint32_t j = 1; j < k; j++) sum = __fadd_rn(sum, __fmul_rn(weight[row * k + j], y[slot[row * k + j] * n + i]));
        x[row * n + i] = __fadd_rn(x[row * n + i], sum);
    }
}

dim3 grid_of(size_t rows, size_t n)
{
    return dim3(div_up(n, THREADS), (unsigned)(rows < 32768 ? rows : 32768));
}

} // namespace

void cuda_embed(cudaStream_t stream, float *out, enum cuda_type type, const void *table, size_t cols, const int32_t *ids,
                size_t rows)
{
    if (rows > 0) embed_kernel<<<(unsigned)rows, THREADS, 0, stream>>>(out, type, table, cols, ids);
}

void cuda_convert(cudaStream_t stream, enum cuda_type to_type, void *to, size_t ld_to, enum cuda_type from_type, const void *from,
                  size_t ld_from, size_t rows, size_t cols)
{
    if (rows > 0 && cols > 0)
        convert_kernel<<<grid_of(rows, cols), THREADS, 0, stream>>>(to_type, to, ld_to, from_type, from, ld_from, rows, cols);
}

void cuda_rms_norm(cudaStream_t stream, float *y, size_t ldy, const float *x, size_t ldx, const float *weight, size_t rows,
                   size_t n, float eps)
{
    if (rows == 0) return;
    const unsigned threads = n >= THREADS ? THREADS : (unsigned)((n + 31) / 32 * 32);
    rms_norm_kernel<<<(unsigned)rows, threads, 0, stream>>>(y, ldy, x, ldx, weight, n, eps);
}

void cuda_add(cudaStream_t stream, float *x, const float *d, size_t n)
{
    if (n > 0) add_kernel<<<div_up(n, THREADS), THREADS, 0, stream>>>(x, d, n);
}

void cuda_add_bias(cudaStream_t stream, float *y, size_t ldy, const float *x, size_t ldx, const float *bias, size_t rows,
                   size_t n)
{
    if (rows > 0) bias_kernel<<<(unsigned)rows, THREADS, 0, stream>>>(y, ldy, x, ldx, bias, n);
}

void cuda_rope(cudaStream_t stream, float *x, size_t ldx, const uint32_t *positions, size_t rows, uint32_t heads,
               uint32_t head_dim, uint32_t rotated, const float *cosine, const float *sine)
{
    if (rows > 0)
        rope_kernel<<<(unsigned)rows, THREADS, 0, stream>>>(x, ldx, positions, heads, head_dim, rotated / 2, cosine, sine);
}

void cuda_swiglu(cudaStream_t stream, float *y, size_t ldy, const float *gate, const float *up, size_t ld, size_t rows,
                 size_t n)
{
    gate_rows<false>(stream, y, ldy, gate, up, ld, rows, n);
}

void cuda_geglu(cudaStream_t stream, float *y, size_t ldy, const float *gate, const float *up, size_t ld, size_t rows,
                size_t n)
{
    gate_rows<true>(stream, y, ldy, gate, up, ld, rows, n);
}

void cuda_scale(cudaStream_t stream, float *x, float factor, size_t n)
{
    if (n > 0) scale_kernel<<<div_up(n, THREADS), THREADS, 0, stream>>>(x, factor, n);
}

void cuda_soft_cap(cudaStream_t stream, float *x, float cap, size_t n)
{
    if (n > 0) soft_cap_kernel<<<div_up(n, THREADS), THREADS, 0, stream>>>(x, cap, n);
}

void cuda_route(cudaStream_t stream, int32_t *index, float *weight, const float *logits, size_t rows, uint32_t experts,
                uint32_t k, bool normalize)
{
    if (rows > 0)
        route_kernel<<<div_up(rows, THREADS), THREADS, 0, stream>>>(index, weight, logits, rows, experts, k, normalize);
}

void cuda_clamped_swiglu(cudaStream_t stream, float *y, size_t ldy, const float *gate, const float *up, size_t ld, size_t rows,
                         size_t n, float alpha, float limit)
{
    if (rows > 0 && n > 0) clamped_kernel<<<grid_of(rows, n), THREADS, 0, stream>>>(y, ldy, gate, up, ld, rows, n, alpha, limit);
}

void cuda_gather(cudaStream_t stream, float *out, size_t ldo, const float *x, size_t ldx, const uint32_t *index, size_t rows, size_t n)
{
    if (rows > 0 && n > 0) gather_kernel<<<grid_of(rows, n), THREADS, 0, stream>>>(out, ldo, x, ldx, index, rows, n);
}

void cuda_combine(cudaStream_t stream, float *x, size_t n, const float *y, const uint32_t *slot, const float *weight, size_t rows,
                  uint32_t k)
{
    if (rows > 0 && n > 0) combine_kernel<<<grid_of(rows, n), THREADS, 0, stream>>>(x, n, y, slot, weight, rows, k);
}
