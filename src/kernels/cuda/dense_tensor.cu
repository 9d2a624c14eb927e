// Products of bf16 weights by bf16 activations on the tensor cores, of any number of rows, summed in f32. A block of threads
// computes 16 outputs; its warps share the columns in a fixed way and their sums are added in the order of the warps, so
// that a row's bits depend neither on the rows beside it nor on their number.
#include "common.cuh"

namespace {

constexpr int WARPS = 8, OUTS = 16, STEP = 32; // columns of a step: two products of k = 16
constexpr int AHEAD = 4;                       // steps whose weights are in flight

__device__ __forceinline__ void multiply(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1)
{
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

__device__ __forceinline__ uint4 read_once(const uint16_t *p)
{
    uint4 r;
    asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w)
                 : "l"(p));
    return r;
}

// A lane (g = lane / 4, t = lane % 4) reads 16 bytes of a row at column 8t of a step, of weights and activations alike: which
// column stands where in a fragment does not matter as long as it is the same for both.
template <int EIGHTS>
__global__ void __launch_bounds__(WARPS * 32) tensor_kernel(const uint16_t *w, size_t outs, size_t cols, const uint16_t *a,
                                                            size_t stride, int rows, float *y, size_t ldy)
{
    __shared__ float part[WARPS][EIGHTS * 8][OUTS + 1];
    const int lane = (int)threadIdx.x & 31, warp = (int)threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
    const size_t out = (size_t)blockIdx.x * OUTS;
    const size_t top = min(out + (size_t)g, outs - 1), bottom = min(out + (size_t)g + 8, outs - 1);
    const uint16_t *w0 = w + top * cols + t * 8, *w1 = w + bottom * cols + t * 8;
    const int steps = (int)((cols + STEP - 1) / STEP);
    const uint4 zero = make_uint4(0, 0, 0, 0);
    uint4 ahead[AHEAD][2];
    auto fetch = [&](int slot, int step) {
        const size_t k = (size_t)step * STEP;
        const bool there = step < steps && k + (size_t)t * 8 < cols; // cols is a multiple of 8
        ahead[slot][0] = there ? read_once(w0 + k) : zero;
        ahead[slot][1] = there ? read_once(w1 + k) : zero;
    };
#pragma unroll
    for (int i = 0; i < AHEAD; i++) fetch(i, warp + i * WARPS);
    let_next_start();
    wait_for_previous();
    float sum[EIGHTS][4];
#pragma unroll
    for (int i = 0; i < EIGHTS * 4; i++) sum[i / 4][i % 4] = 0.0f;
    for (int first = warp; first < steps; first += AHEAD * WARPS) {
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            const int step = first + i * WARPS;
            const uint4 u = ahead[i][0], v = ahead[i][1];
            fetch(i, step + AHEAD * WARPS);
            if (step >= steps) continue;
#pragma unroll
            for (int n = 0; n < EIGHTS; n++) {
                const int row = n * 8 + g; // activations are zero to their stride, a multiple of 256
                const uint4 x = row < rows ? *reinterpret_cast<const uint4 *>(a + (size_t)row * stride + (size_t)step * STEP + t * 8) : zero;
                multiply(sum[n], u.x, v.x, u.y, v.y, x.x, x.y);
                multiply(sum[n], u.z, v.z, u.w, v.w, x.z, x.w);
            }
        }
    }
#pragma unroll
    for (int n = 0; n < EIGHTS; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) part[warp][n * 8 + t * 2 + (i & 1)][g + (i >> 1) * 8] = sum[n][i];
    __syncthreads();
    for (int i = (int)threadIdx.x; i < EIGHTS * 8 * OUTS; i += WARPS * 32) {
        const int row = i / OUTS, at = i % OUTS;
        float total = part[0][row][at];
#pragma unroll
        for (int k = 1; k < WARPS; k++) total = __fadd_rn(total, part[k][row][at]);
        if (row < rows && out + (size_t)at < outs) y[(size_t)row * ldy + out + (size_t)at] = total;
    }
}

} // namespace

void cuda_product_bf16(cudaStream_t stream, const void *w, size_t outs, size_t cols, const void *a, size_t stride, size_t rows,
                       float *y, size_t ldy, bool fresh)
{
    const uint16_t *weights = static_cast<const uint16_t *>(w), *x = static_cast<const uint16_t *>(a);
    const dim3 grid(div_up(outs, OUTS));
    for (size_t at = 0, n; at < rows; at += n) {
        n = rows - at < 32 ? rows - at : 32;
        auto start = [&](auto kernel) {
            launch(stream, !fresh || at > 0, kernel, grid, WARPS * 32, 0, weights, outs, cols, x + at * stride, stride, (int)n, y + at * ldy,
                   ldy);
        };
        if (n <= 8)
            start(tensor_kernel<1>);
        else if (n <= 16)
            start(tensor_kernel<2>);
        else
            start(tensor_kernel<4>);
    }
}
