// What training does row by row or number by number (kernels/train.h), and AdamW.
#include "common.cuh"
#include "launch_train.h"

namespace {

constexpr int THREADS = 256;

struct larger {
    __device__ float operator()(float a, float b) const
    {
        return fmaxf(a, b);
    }
};
struct plus {
    template <typename T> __device__ T operator()(T a, T b) const
    {
        return a + b;
    }
};
// x of all threads of the block, the same for each, in an order that depends on the number of threads alone. `part` is shared by
// calls that a barrier stands between.
template <typename T, typename F> __device__ T block_all(T x, T none, F join, T (&part)[32])
{
#pragma unroll
    for (int lane = 16; lane > 0; lane >>= 1) x = join(x, __shfl_xor_sync(0xffffffffu, x, lane));
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = x;
    __syncthreads();
    x = threadIdx.x % 32 < blockDim.x / 32 ? part[threadIdx.x % 32] : none;
#pragma unroll
    for (int lane = 16; lane > 0; lane >>= 1) x = join(x, __shfl_xor_sync(0xffffffffu, x, lane));
    return x;
}

__global__ void __launch_bounds__(THREADS)
    add_rows_kernel(float *y, size_t ldy, const float *x, size_t ldx, const float *d, size_t ldd, size_t rows, size_t n)
{
    const size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x;
    if (i >= n) return;
    for (size_t row = blockIdx.y; row < rows; row += gridDim.y) y[row * ldy + i] = __fadd_rn(x[row * ldx + i], d[row * ldd + i]);
}

__global__ void __launch_bounds__(THREADS)
    scatter_kernel(float *to, size_t ldto, const float *from, size_t ldfrom, const uint32_t *index, size_t rows, size_t n)
{
    const size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x;
    if (i >= n) return;
    for (size_t row = blockIdx.y; row < rows; row += gridDim.y) to[index[row] * ldto + i] = from ? from[row * ldfrom + i] : 0.0f;
}

// A row's threads read and write the same places: dx may be dy.
__global__ void __launch_bounds__(THREADS) norm_backward_kernel(float *dx, size_t lddx, const float *dy, size_t lddy, const float *x,
                                                                size_t ldx, const float *weight, size_t n, float eps, bool add)
{
    __shared__ float part[2][32];
    dx += blockIdx.x * lddx, dy += blockIdx.x * lddy, x += blockIdx.x * ldx;
    float squares = 0.0f, dot = 0.0f;
    for (size_t i = threadIdx.x; i < n; i += blockDim.x) {
        squares = fmaf(x[i], x[i], squares);
        dot = fmaf(weight[i] * dy[i], x[i], dot);
    }
    squares = block_all(squares, 0.0f, plus(), part[0]);
    dot = block_all(dot, 0.0f, plus(), part[1]);
    const float scale = norm_scale(squares, n, eps), along = scale * scale * scale * (dot / (float)n);
    for (size_t i = threadIdx.x; i < n; i += blockDim.x) {
        const float d = scale * weight[i] * dy[i] - along * x[i];
        dx[i] = add ? dx[i] + d : d;
    }
}

__device__ __forceinline__ float sigmoid(float x)
{
    return 1.0f / (1.0f + expf(-x));
}

// train/gradients.c has the derivations.
__global__ void __launch_bounds__(THREADS) gate_backward_kernel(cuda_gate kind, float alpha, float limit, float *dgate, float *dup,
                                                                const float *dy, const float *gate, const float *up, size_t n)
{
    const size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x;
    if (i >= n) return;
    const float g = gate[i], u = up[i], d = dy[i];
    if (kind == CUDA_GATE_SWIGLU) {
        const float s = sigmoid(g);
        dgate[i] = d * u * s * (1.0f + g * (1.0f - s));
        dup[i] = d * g * s;
    } else if (kind == CUDA_GATE_GEGLU) {
        const float root = 0.79788456f, cubic = 0.044715f, s = sigmoid(2.0f * root * (g + cubic * g * g * g));
        dgate[i] = d * u * (s + 2.0f * g * s * (1.0f - s) * root * (1.0f + 3.0f * cubic * g * g));
        dup[i] = d * g * s;
    } else {
        const float a = fminf(g, limit), b = fmaxf(fminf(u, limit), -limit), s = sigmoid(alpha * a);
        dgate[i] = g <= limit ? d * (b + 1.0f) * s * (1.0f + alpha * a * (1.0f - s)) : 0.0f;
        dup[i] = fabsf(u) <= limit ? d * a * s : 0.0f;
    }
}

// A block of threads a row.
__global__ void __launch_bounds__(THREADS) cross_entropy_kernel(float *logits, const int32_t *targets, size_t vocab, float weight, float cap,
                                                                bool gradient, double *loss)
{
    __shared__ float part[2][32];
    float *x = logits + blockIdx.x * vocab;
    const size_t target = (size_t)targets[blockIdx.x];
    float top = -INFINITY, sum = 0.0f;
    for (size_t i = threadIdx.x; i < vocab; i += THREADS) top = fmaxf(top, x[i]);
    top = block_all(top, -INFINITY, larger(), part[0]);
    for (size_t i = threadIdx.x; i < vocab; i += THREADS) sum += expf(x[i] - top);
    sum = block_all(sum, 0.0f, plus(), part[1]);
    if (threadIdx.x == 0) loss[blockIdx.x] = log((double)sum) + (double)top - (double)x[target];
    if (!gradient) return;
    __syncthreads(); // the target's logit is read
    const float factor = weight / sum;
    for (size_t i = threadIdx.x; i < vocab; i += THREADS) {
        const float y = x[i];
        float d = expf(y - top) * factor;
        if (i == target) d -= weight;
        if (cap != 0.0f) d *= 1.0f - y / cap * (y / cap);
        x[i] = d;
    }
}

// --- mixtures of experts ---

// A block of threads a slot.
__global__ void __launch_bounds__(THREADS) spread_kernel(const uint32_t *slot, size_t k, size_t n, float *to, float *dweight, const float *d,
                                                         const float *y, const float *weight)
{
    __shared__ float part[32];
    const size_t i = blockIdx.x, at = slot[i] * n;
    const float w = weight[i];
    d += i / k * n;
    float dot = 0.0f;
    for (size_t j = threadIdx.x; j < n; j += THREADS) {
        dot = fmaf(d[j], y[at + j], dot);
        to[at + j] = __fmul_rn(w, d[j]);
    }
    dot = block_all(dot, 0.0f, plus(), part);
    if (threadIdx.x == 0) dweight[i] = dot;
}

__global__ void __launch_bounds__(THREADS)
    collect_kernel(const uint32_t *slot, size_t rows, size_t k, size_t n, float *to, const float *from, const float *weight)
{
    const size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x;
    if (i >= n) return;
    for (size_t row = blockIdx.y; row < rows; row += gridDim.y) {
        float sum = 0.0f;
        for (size_t j = row * k; j < (row + 1) * k; j++) {
            const float x = from[slot[j] * n + i], y = weight ? __fmul_rn(weight[j], x) : x;
            sum = j == row * k ? y : __fadd_rn(sum, y);
        }
        to[row * n + i] = sum;
    }
}

// One thread a row: train/gradients.c, route_row.
__global__ void __launch_bounds__(THREADS)
    route_backward_kernel(float *dlogits, const float *dweight, const float *logits, const int32_t *index, const float *weight, size_t rows,
                          uint32_t experts, uint32_t k, bool normalize)
{
    const size_t row = (size_t)blockIdx.x * THREADS + threadIdx.x;
    if (row >= rows) return;
    dlogits += row * experts, logits += row * experts, dweight += row * k, weight += row * k, index += row * k;
    double mean = 0.0, sum = 0.0;
    float top = -INFINITY;
    for (uint32_t j = 0; j < k; j++) mean += (double)weight[j] * (double)dweight[j];
    for (uint32_t e = 0; e < experts; e++) top = fmaxf(top, logits[e]);
    for (uint32_t e = 0; !normalize && e < experts; e++) sum += exp((double)logits[e] - (double)top);
    for (uint32_t e = 0; e < experts; e++) dlogits[e] = normalize ? 0.0f : (float)(-exp((double)logits[e] - (double)top) / sum * mean);
    for (uint32_t j = 0; j < k; j++) {
        const double own = (double)weight[j] * (normalize ? (double)dweight[j] - mean : (double)dweight[j]);
        dlogits[index[j]] += (float)own;
    }
}

// --- AdamW ---

constexpr size_t PIECE = 16384; // numbers whose squares a block of threads adds up

__global__ void __launch_bounds__(THREADS) squares_kernel(double *sums, const float *x, size_t n)
{
    __shared__ double part[32];
    const size_t begin = blockIdx.x * PIECE, end = min(begin + PIECE, n);
    double sum = 0.0;
    for (size_t i = begin + threadIdx.x; i < end; i += THREADS) sum += (double)x[i] * (double)x[i];
    sum = block_all(sum, 0.0, plus(), part);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

__global__ void length_kernel(double *length, const double *sums, size_t count)
{
    double sum = 0.0;
    for (size_t i = 0; i < count; i++) sum += sums[i];
    *length = sqrt(sum);
}

// train/optimizer.c's operations in their order, each rounded.
__global__ void __launch_bounds__(THREADS) adamw_kernel(const __grid_constant__ cuda_adamw u)
{
    const size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x;
    const double length = *u.length;
    if (i >= u.count || !isfinite(length)) return;
    const double factor = u.clip > 0.0 && length > u.clip ? __ddiv_rn(u.clip, length) : 1.0, g = __dmul_rn(factor, (double)u.gradients[i]);
    const double m = __dadd_rn(__dmul_rn(u.beta1, (double)u.m[i]), __dmul_rn(__dsub_rn(1.0, u.beta1), g));
    const double v = __dadd_rn(__dmul_rn(u.beta2, (double)u.v[i]), __dmul_rn(__dmul_rn(__dsub_rn(1.0, u.beta2), g), g));
    const double value = __dmul_rn((double)u.values[i], __dsub_rn(1.0, __dmul_rn(u.rate, u.weight_decay)));
    const double step = __dmul_rn(u.rate, __dmul_rn(m, u.correction1));
    u.m[i] = (float)m;
    u.v[i] = (float)v;
    u.values[i] = (float)__dsub_rn(value, __ddiv_rn(step, __dadd_rn(sqrt(__dmul_rn(v, u.correction2)), u.epsilon)));
}

dim3 grid_of(size_t rows, size_t n)
{
    return dim3(div_up(n, THREADS), (unsigned)(rows < 32768 ? rows : 32768));
}

} // namespace

void cuda_add_rows(cudaStream_t stream, float *y, size_t ldy, const float *x, size_t ldx, const float *d, size_t ldd, size_t rows, size_t n)
{
    if (rows > 0 && n > 0) launch_behind(stream, add_rows_kernel, grid_of(rows, n), THREADS, 0, y, ldy, x, ldx, d, ldd, rows, n);
}

void cuda_scatter(cudaStream_t stream, float *to, size_t ldto, const float *from, size_t ldfrom, const uint32_t *index, size_t rows, size_t n)
{
    if (rows > 0 && n > 0) launch_behind(stream, scatter_kernel, grid_of(rows, n), THREADS, 0, to, ldto, from, ldfrom, index, rows, n);
}

void cuda_rms_norm_backward(cudaStream_t stream, float *dx, size_t lddx, const float *dy, size_t lddy, const float *x, size_t ldx,
                            const float *weight, size_t rows, size_t n, float eps, bool add)
{
    if (rows == 0) return;
    const unsigned threads = n >= THREADS ? THREADS : (unsigned)((n + 31) / 32 * 32);
    launch_behind(stream, norm_backward_kernel, dim3((unsigned)rows), threads, 0, dx, lddx, dy, lddy, x, ldx, weight, n, eps, add);
}

void cuda_gate_backward(cudaStream_t stream, enum cuda_gate kind, float alpha, float limit, float *dgate, float *dup, const float *dy,
                        const float *g, const float *u, size_t n)
{
    if (n > 0)
        launch_behind(stream, gate_backward_kernel, dim3(div_up(n, THREADS)), THREADS, 0, kind, alpha, limit, dgate, dup, dy, g, u, n);
}

void cuda_cross_entropy(cudaStream_t stream, float *logits, const int32_t *targets, size_t rows, size_t vocab, float weight, float cap,
                        bool gradient, double *loss)
{
    if (rows > 0)
        launch_behind(stream, cross_entropy_kernel, dim3((unsigned)rows), THREADS, 0, logits, targets, vocab, weight, cap, gradient, loss);
}

void cuda_spread(cudaStream_t stream, const uint32_t *slot, size_t rows, size_t k, size_t n, float *to, float *dweight, const float *d,
                 const float *y, const float *weight)
{
    if (rows > 0) launch_behind(stream, spread_kernel, dim3((unsigned)(rows * k)), THREADS, 0, slot, k, n, to, dweight, d, y, weight);
}

void cuda_collect(cudaStream_t stream, const uint32_t *slot, size_t rows, size_t k, size_t n, float *to, const float *from, const float *weight)
{
    if (rows > 0 && n > 0) launch_behind(stream, collect_kernel, grid_of(rows, n), THREADS, 0, slot, rows, k, n, to, from, weight);
}

void cuda_route_backward(cudaStream_t stream, float *dlogits, const float *dweight, const float *logits, const int32_t *index,
                         const float *weight, size_t rows, uint32_t experts, uint32_t k, bool normalize)
{
    if (rows > 0)
        launch_behind(stream, route_backward_kernel, dim3(div_up(rows, THREADS)), THREADS, 0, dlogits, dweight, logits, index, weight, rows,
                      experts, k, normalize);
}

size_t cuda_adamw_scratch(size_t count)
{
    return div_up(count, PIECE) * sizeof(double);
}

void cuda_adamw_step(cudaStream_t stream, const struct cuda_adamw *u, double *scratch)
{
    if (u->count == 0) return;
    const unsigned pieces = div_up(u->count, PIECE);
    launch_behind(stream, squares_kernel, dim3(pieces), THREADS, 0, scratch, u->gradients, u->count);
    launch_behind(stream, length_kernel, dim3(1), 1, 0, u->length, (const double *)scratch, (size_t)pieces);
    launch_behind(stream, adamw_kernel, dim3(div_up(u->count, THREADS)), THREADS, 0, *u);
}
