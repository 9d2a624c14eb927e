// The matrix products of training (kernels/train.h): forward y = x W^T, back dx = dy W, and the gradients of updates, whose long
// side is the rows. bf16 by bf16 on the tensor cores, anything else converted to f32.
#include "launch_train.h"
#include "tensor.cuh"

namespace {

constexpr int THREADS = 256;

struct product {
    const void *a, *b;
    void *c;
    size_t m, n, k, lda, ldb, ldc;
    cuda_type a_type, b_type, c_type;
    bool a_turned, b_turned, add;
    float alpha;
    float *parts; // where not NULL: [parts of k][m][n], sums of each part, without alpha
    size_t part;  // of k
};

__device__ __forceinline__ void store(const product &p, size_t row, size_t col, float x)
{
    if (row >= p.m || col >= p.n) return;
    if (p.parts) {
        p.parts[(blockIdx.z * p.m + row) * p.n + col] = x;
        return;
    }
    x = __fmul_rn(x, p.alpha);
    if (p.c_type == CUDA_TYPE_BF16) {
        static_cast<uint16_t *>(p.c)[row * p.ldc + col] = bf16_from_f32(x);
        return;
    }
    float *c = static_cast<float *>(p.c) + row * p.ldc + col;
    *c = p.add ? __fadd_rn(*c, x) : x;
}

// The sums of the parts, in their order.
__global__ void __launch_bounds__(THREADS) sum_parts_kernel(const __grid_constant__ product p, int parts)
{
    const size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x;
    if (i >= p.m * p.n) return;
    float sum = p.parts[i];
    for (int part = 1; part < parts; part++) sum = __fadd_rn(sum, p.parts[part * p.m * p.n + i]);
    product whole = p;
    whole.parts = nullptr;
    store(whole, i / p.n, i % p.n, sum);
}

// --- tensor cores ---

constexpr int STEP = 32, STAGES = 3, PAD = 8; // columns of k at a time; how many such are under way; of a row in shared memory

// Rows [outer, outer + OUTER) by INNER numbers from `inner` on of a matrix whose rows end at outer_end and inner_end; 0 beyond.
// ALIGNED: 16 bytes at a time.
template <int OUTER, int INNER, bool ALIGNED>
__device__ __forceinline__ void load_panel(uint16_t *to, const uint16_t *from, size_t ld, size_t outer, size_t outer_end, size_t inner,
                                           size_t inner_end)
{
    constexpr int WIDE = INNER / 8;
    for (int i = (int)threadIdx.x; i < OUTER * WIDE; i += THREADS) {
        const int row = i / WIDE, at = i % WIDE * 8;
        const size_t r = outer + (size_t)row, c = inner + (size_t)at;
        const int valid = r < outer_end && c < inner_end ? (int)min(inner_end - c, (size_t)8) : 0;
        uint16_t *shared = to + row * (INNER + PAD) + at;
        const uint16_t *global = valid > 0 ? from + r * ld + c : from;
        if (ALIGNED) {
            copy_async(shared, global, valid * 2);
        } else {
#pragma unroll
            for (int j = 0; j < 8; j++) shared[j] = j < valid ? global[j] : (uint16_t)0;
        }
    }
}

// A block of ROWS by COLUMNS of C by 8 warps, DOWN of them one below the other.
template <int ROWS, int COLUMNS, int DOWN, bool A_TURNED, bool B_TURNED, bool ALIGNED>
__global__ void __launch_bounds__(THREADS) tensor_kernel(const __grid_constant__ product p)
{
    constexpr int A_OUTER = A_TURNED ? STEP : ROWS, A_INNER = A_TURNED ? ROWS : STEP;
    constexpr int B_OUTER = B_TURNED ? COLUMNS : STEP, B_INNER = B_TURNED ? STEP : COLUMNS;
    constexpr int A_SIZE = A_OUTER * (A_INNER + PAD), B_SIZE = B_OUTER * (B_INNER + PAD);
    constexpr int WARP_ROWS = ROWS / DOWN, WARP_COLUMNS = COLUMNS / (8 / DOWN), TILES = WARP_ROWS / 16, EIGHTS = WARP_COLUMNS / 8;
    static_assert(TILES >= 1 && EIGHTS % 2 == 0, "fragments of B come in pairs");
    extern __shared__ __align__(16) uint16_t tiles[]; // [STAGES][A_SIZE + B_SIZE]
    const int lane = (int)threadIdx.x & 31, warp = (int)threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
    const int warp_row = warp % DOWN * WARP_ROWS, warp_column = warp / DOWN * WARP_COLUMNS;
    const size_t row = (size_t)blockIdx.y * ROWS, column = (size_t)blockIdx.x * COLUMNS;
    const size_t begin = blockIdx.z * p.part, end = min(begin + p.part, p.k);
    const int steps = (int)((end - begin + STEP - 1) / STEP);
    const uint16_t *a = static_cast<const uint16_t *>(p.a), *b = static_cast<const uint16_t *>(p.b);
    auto fetch = [&](int step) {
        if (step < steps) {
            uint16_t *to = tiles + step % STAGES * (A_SIZE + B_SIZE);
            const size_t k = begin + (size_t)step * STEP;
            if (A_TURNED)
                load_panel<A_OUTER, A_INNER, ALIGNED>(to, a, p.lda, k, end, row, p.m);
            else
                load_panel<A_OUTER, A_INNER, ALIGNED>(to, a, p.lda, row, p.m, k, end);
            if (B_TURNED)
                load_panel<B_OUTER, B_INNER, ALIGNED>(to + A_SIZE, b, p.ldb, column, p.n, k, end);
            else
                load_panel<B_OUTER, B_INNER, ALIGNED>(to + A_SIZE, b, p.ldb, k, end, column, p.n);
        }
        copies_commit();
    };
    float c[TILES][EIGHTS][4];
#pragma unroll
    for (int i = 0; i < TILES * EIGHTS * 4; i++) c[i / (EIGHTS * 4)][i / 4 % EIGHTS][i % 4] = 0.0f;
    for (int i = 0; i < STAGES - 1; i++) fetch(i);
    for (int step = 0; step < steps; step++) {
        copies_wait<STAGES - 2>();
        __syncthreads();
        fetch(step + STAGES - 1);
        const uint16_t *x = tiles + step % STAGES * (A_SIZE + B_SIZE), *y = x + A_SIZE;
#pragma unroll
        for (int k = 0; k < STEP; k += 16) {
            uint32_t fa[TILES][4], fb[EIGHTS / 2][4];
            const int in8 = lane % 8, second = lane / 8 % 2, upper = lane / 16;
#pragma unroll
            for (int i = 0; i < TILES; i++) {
                const int at = warp_row + i * 16;
                if (A_TURNED)
                    load_matrices_turned(fa[i], x + (k + upper * 8 + in8) * (A_INNER + PAD) + at + second * 8);
                else
                    load_matrices(fa[i], x + (at + second * 8 + in8) * (A_INNER + PAD) + k + upper * 8);
            }
#pragma unroll
            for (int j = 0; j < EIGHTS / 2; j++) {
                const int at = warp_column + j * 16;
                if (B_TURNED)
                    load_matrices(fb[j], y + (at + upper * 8 + in8) * (B_INNER + PAD) + k + second * 8);
                else
                    load_matrices_turned(fb[j], y + (k + second * 8 + in8) * (B_INNER + PAD) + at + upper * 8);
            }
#pragma unroll
            for (int i = 0; i < TILES; i++)
#pragma unroll
                for (int j = 0; j < EIGHTS; j++) multiply_bf16(c[i][j], fa[i], fb[j / 2][j % 2 * 2], fb[j / 2][j % 2 * 2 + 1]);
        }
    }
#pragma unroll
    for (int i = 0; i < TILES; i++)
#pragma unroll
        for (int j = 0; j < EIGHTS; j++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                store(p, row + (size_t)(warp_row + i * 16 + g + e / 2 * 8), column + (size_t)(warp_column + j * 8 + 2 * t + e % 2), c[i][j][e]);
}

template <int ROWS, int COLUMNS, int DOWN, bool A_TURNED, bool B_TURNED> void start_tensor(cudaStream_t stream, const product &p, unsigned parts)
{
    constexpr size_t A_SIZE = A_TURNED ? STEP * (ROWS + PAD) : ROWS * (STEP + PAD);
    constexpr size_t B_SIZE = B_TURNED ? COLUMNS * (STEP + PAD) : STEP * (COLUMNS + PAD);
    const dim3 grid(div_up(p.n, COLUMNS), div_up(p.m, ROWS), parts);
    const bool aligned = p.lda % 8 == 0 && p.ldb % 8 == 0 && (reinterpret_cast<uintptr_t>(p.a) | reinterpret_cast<uintptr_t>(p.b)) % 16 == 0;
    const size_t shared = STAGES * (A_SIZE + B_SIZE) * sizeof(uint16_t);
    if (aligned)
        launch_behind(stream, tensor_kernel<ROWS, COLUMNS, DOWN, A_TURNED, B_TURNED, true>, grid, THREADS, shared, p);
    else
        launch_behind(stream, tensor_kernel<ROWS, COLUMNS, DOWN, A_TURNED, B_TURNED, false>, grid, THREADS, shared, p);
}

// --- f32 ---

constexpr int TILE = 64, DEPTH = 16;

__device__ __forceinline__ float number(cuda_type type, const void *p, size_t i)
{
    if (type == CUDA_TYPE_F32) return static_cast<const float *>(p)[i];
    const uint16_t bits = static_cast<const uint16_t *>(p)[i];
    return type == CUDA_TYPE_F16 ? f32_from_f16(bits) : f32_from_bf16(bits);
}

// to [DEPTH][TILE] of a matrix whose element (i, p) stands at i * ld + p, or p * ld + i where `turned`.
__device__ __forceinline__ void load_tile(float (*to)[TILE + 4], cuda_type type, const void *from, size_t ld, bool turned, size_t first,
                                          size_t last, size_t k, size_t end)
{
#pragma unroll
    for (int j = 0; j < TILE * DEPTH / THREADS; j++) {
        const int at = (int)threadIdx.x + j * THREADS, i = turned ? at % TILE : at / DEPTH, d = turned ? at / TILE : at % DEPTH;
        const size_t r = first + (size_t)i, c = k + (size_t)d;
        to[d][i] = r < last && c < end ? number(type, from, turned ? c * ld + r : r * ld + c) : 0.0f;
    }
}

// A thread computes four rows by four columns; an element is one chain of fused multiply-adds.
__global__ void __launch_bounds__(THREADS) plain_kernel(const __grid_constant__ product p)
{
    __shared__ __align__(16) float a[DEPTH][TILE + 4], b[DEPTH][TILE + 4];
    const int x = (int)threadIdx.x % 16 * 4, y = (int)threadIdx.x / 16 * 4;
    const size_t row = (size_t)blockIdx.y * TILE, column = (size_t)blockIdx.x * TILE;
    const size_t begin = blockIdx.z * p.part, end = min(begin + p.part, p.k);
    float c[4][4];
#pragma unroll
    for (int i = 0; i < 16; i++) c[i / 4][i % 4] = 0.0f;
    for (size_t k = begin; k < end; k += DEPTH) {
        load_tile(a, p.a_type, p.a, p.lda, p.a_turned, row, p.m, k, end);
        load_tile(b, p.b_type, p.b, p.ldb, !p.b_turned, column, p.n, k, end);
        __syncthreads();
#pragma unroll
        for (int d = 0; d < DEPTH; d++) {
            const float4 u = *reinterpret_cast<const float4 *>(&a[d][y]), v = *reinterpret_cast<const float4 *>(&b[d][x]);
            const float us[4] = {u.x, u.y, u.z, u.w}, vs[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
            for (int i = 0; i < 16; i++) c[i / 4][i % 4] = fmaf(us[i / 4], vs[i % 4], c[i / 4][i % 4]);
        }
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < 16; i++) store(p, row + (size_t)(y + i / 4), column + (size_t)(x + i % 4), c[i / 4][i % 4]);
}

constexpr size_t PART = 512, MOST_PARTS = 64; // of k; blocks of a grid in z

} // namespace

void cuda_multiply(cudaStream_t stream, const struct cuda_matrix_product *q, float *scratch, size_t scratch_bytes)
{
    if (q->m == 0 || q->n == 0) return;
    product p = {q->a, q->b, q->c, q->m, q->n, q->k, q->lda, q->ldb, q->ldc, q->a_type, q->b_type, q->c_type, q->a_turned, q->b_turned,
                 q->add, q->alpha, nullptr, q->k};
    unsigned parts = 1;
    if (p.a_turned && p.k > PART) { // few outputs, long sums
        const size_t fit = scratch_bytes / (p.m * p.n * sizeof(float)), wanted = div_up(p.k, PART);
        const size_t most = fit < MOST_PARTS ? fit : MOST_PARTS, count = wanted < most ? wanted : most;
        if (count > 1) {
            p.part = div_up(div_up(p.k, count), STEP) * (size_t)STEP;
            parts = div_up(p.k, p.part);
            p.parts = scratch;
        }
    }
    if (p.a_type != CUDA_TYPE_BF16 || p.b_type != CUDA_TYPE_BF16)
        launch_behind(stream, plain_kernel, dim3(div_up(p.n, TILE), div_up(p.m, TILE), parts), THREADS, 0, p);
    else if (p.a_turned && p.m <= 32)
        start_tensor<32, 128, 2, true, false>(stream, p, parts);
    else if (p.a_turned)
        start_tensor<128, 128, 4, true, false>(stream, p, parts);
    else if (p.b_turned && p.n <= 32)
        start_tensor<128, 32, 8, false, true>(stream, p, parts);
    else if (p.b_turned)
        start_tensor<128, 128, 4, false, true>(stream, p, parts);
    else
        start_tensor<128, 128, 4, false, false>(stream, p, parts);
    if (p.parts) launch_behind(stream, sum_parts_kernel, dim3(div_up(p.m * p.n, THREADS)), THREADS, 0, p, (int)parts);
}
