// Products of block formats (formats/blocks.h) by int8 activations in groups, exactly as kernels.def, product_block_decode, has
// them. A warp owns a tile of 16 outputs over all columns, because the chain of a row's groups has one order; eight rows of
// activations are the other side of mma.m16n8k32. Words go from memory into fragments as they are: a word's low nibbles are four
// consecutive columns, its high nibbles the next four.
#include "rotation.cuh"

namespace {

constexpr int WARPS = 4, ROWS = 8, STEP = 32, TILE = 16;
constexpr uint32_t NIBBLES = 0x0f0f0f0fu;

__device__ __forceinline__ void multiply(int (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1)
{
    asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// Twice the value of four E2M1 codes plus 12, a code in each nibble of the selectors' low half: where a nibble's top bit, which is
// the sign, is set, the result is the top bit of the byte repeated, which is 0 in both tables.
__device__ __forceinline__ uint32_t select_four(uint32_t low, uint32_t high, uint32_t selectors)
{
    uint32_t r;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(r) : "r"(low), "r"(high), "r"(selectors));
    return r;
}
__device__ __forceinline__ uint32_t e2m1_four(uint32_t selectors)
{
    return select_four(0x0f0e0d0cu, 0x18141210u, selectors) | select_four(0x090a0b0cu, 0x00040608u, selectors ^ 0x8888u);
}

// The two A registers of a word of 4-bit codes. Of E2M1 they are the columns 0, 4, 1, 5 and 2, 6, 3, 7.
template <cuda_code CODE> __device__ __forceinline__ void decode(uint32_t word, uint32_t *first, uint32_t *second)
{
    if (CODE == CUDA_CODE_E2M1)
        *first = e2m1_four(word), *second = e2m1_four(word >> 16);
    else
        *first = word & NIBBLES, *second = word >> 4 & NIBBLES;
}

__device__ __forceinline__ float scale_at(cuda_scale_type type, const void *scales, size_t at)
{
    switch (type) {
    case CUDA_SCALE_E8M0: {
        const uint32_t b = static_cast<const uint8_t *>(scales)[at];
        return __uint_as_float(b == 0 ? 0x00400000u : b == 255 ? 0x7fc00000u : b << 23);
    }
    case CUDA_SCALE_E4M3: {
        const uint32_t b = static_cast<const uint8_t *>(scales)[at], magnitude = b & 0x7fu;
        const float v = magnitude >= 8 ? __uint_as_float((magnitude << 20) + (120u << 23)) : (float)magnitude * 0x1p-9f;
        return magnitude == 0x7f ? __uint_as_float(0x7fc00000u) : b & 0x80u ? -v : v;
    }
    case CUDA_SCALE_BF16: return f32_from_bf16(static_cast<const uint16_t *>(scales)[at]);
    default: return static_cast<const float *>(scales)[at];
    }
}

struct block_product {
    cuda_blocks w;
    const int8_t *q;
    const float *scale;
    const int32_t *sum;
    float *y;
    size_t stride, ldy;
    int rows;
};

// One group of columns of a step joins the chains: c of this lane is outputs g and g + 8 by rows 2t and 2t + 1.
struct chains {
    float v[4];

    __device__ __forceinline__ void add(const int (&c)[4], const float (&w)[2], const int (&zero)[2], const float (&x)[2], const int (&sum)[2])
    {
#pragma unroll
        for (int i = 0; i < 4; i++)
            v[i] = fmaf((float)(c[i] - zero[i >> 1] * sum[i & 1]), __fmul_rn(w[i >> 1], x[i & 1]), v[i]);
    }
};

template <cuda_code CODE, bool HALVES> __global__ void __launch_bounds__(32 * WARPS) block_kernel(const __grid_constant__ block_product p)
{
    const int lane = (int)threadIdx.x & 31, g = lane >> 2, t = lane & 3;
    const size_t tile = (size_t)blockIdx.x * WARPS + (threadIdx.x >> 5);
    const int first_row = (int)blockIdx.y * ROWS, steps = (int)((p.w.cols + STEP - 1) / STEP);
    let_next_start();
    if (tile * TILE >= p.w.outs) return;
    constexpr int WORDS = CODE == CUDA_CODE_U8 ? 8 : 4; // of a row in a step
    const uint32_t *data = p.w.data + tile * (size_t)steps * WORDS * TILE + t * TILE + g;
    const size_t groups = p.w.groups, scales = tile * groups * TILE + (size_t)g;
    const float unit = CODE == CUDA_CODE_E2M1 ? 0.5f : 1.0f;
    // an absent row's activations are another's: what it becomes is not stored
    const int8_t *q = p.q + (size_t)min(first_row + g, p.rows - 1) * p.stride + (CODE == CUDA_CODE_U8 ? 4 : 8) * t;
    const int own[2] = {min(first_row + 2 * t, p.rows - 1), min(first_row + 2 * t + 1, p.rows - 1)};
    const size_t stride_scale = p.stride / STEP;
    wait_for_previous();
    chains chain = {{0.0f, 0.0f, 0.0f, 0.0f}};
#pragma unroll 4
    for (int k = 0; k < steps; k++, data += WORDS * TILE) {
        uint32_t a[4], b0, b1;
        if (CODE == CUDA_CODE_U8) {
            a[0] = __ldg(data), a[1] = __ldg(data + 8), a[2] = __ldg(data + 4 * TILE), a[3] = __ldg(data + 4 * TILE + 8);
            b0 = *reinterpret_cast<const uint32_t *>(q + k * STEP), b1 = *reinterpret_cast<const uint32_t *>(q + k * STEP + 16);
        } else {
            decode<CODE>(__ldg(data), &a[0], &a[2]);
            decode<CODE>(__ldg(data + 8), &a[1], &a[3]);
            const uint2 x = *reinterpret_cast<const uint2 *>(q + k * STEP);
            b0 = CODE == CUDA_CODE_E2M1 ? __byte_perm(x.x, x.y, 0x5140u) : x.x;
            b1 = CODE == CUDA_CODE_E2M1 ? __byte_perm(x.x, x.y, 0x7362u) : x.y;
        }
        const float x[2] = {p.scale[own[0] * stride_scale + k], p.scale[own[1] * stride_scale + k]};
        int sum[2][2]; // [row][half]
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const int2 s = *reinterpret_cast<const int2 *>(p.sum + own[r] * 2 * stride_scale + 2 * k);
            sum[r][0] = s.x, sum[r][1] = s.y;
        }
#pragma unroll
        for (int half = 0; half < (HALVES ? 2 : 1); half++) {
            const size_t group = HALVES ? (size_t)(2 * k + half) : p.w.group ? (size_t)k * STEP / p.w.group : 0;
            float weight[2];
            int zero[2] = {12, 12}, c[4] = {0, 0, 0, 0};
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const size_t at = scales + min(group, groups - 1) * TILE + (size_t)(8 * i);
                weight[i] = __fmul_rn(scale_at(p.w.scale, p.w.scales, at), unit);
                if (CODE != CUDA_CODE_E2M1) zero[i] = p.w.zeros ? p.w.zeros[at] : CODE == CUDA_CODE_U4 ? 8 : 128;
            }
            // of 16 columns the others' activations are zero: words 0 and 1 of 4-bit codes, 0 to 3 of 8-bit ones are the first half
            bool here0 = true, here1 = true;
            if (HALVES) here0 = CODE == CUDA_CODE_U8 ? half == 0 : t / 2 == half, here1 = CODE == CUDA_CODE_U8 ? half == 1 : here0;
            multiply(c, a[0], a[1], a[2], a[3], here0 ? b0 : 0, here1 ? b1 : 0);
            const int of_group[2] = {HALVES ? sum[0][half] : sum[0][0] + sum[0][1], HALVES ? sum[1][half] : sum[1][0] + sum[1][1]};
            if (!HALVES || group < groups) chain.add(c, weight, zero, x, of_group);
        }
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const size_t out = tile * TILE + (size_t)(g + (i >> 1) * 8);
        const int row = first_row + 2 * t + (i & 1);
        if (row < p.rows && out < p.w.outs) p.y[(size_t)row * p.ldy + out] = __fmul_rn(chain.v[i], p.w.tensor_scale);
    }
}

// A warp does 32 elements of a row: kernels.def, quantize_groups_i8.
__global__ void __launch_bounds__(256) groups_kernel(const float *x, size_t ldx, int cols, int8_t *q, size_t stride, float *scale, int32_t *sum)
{
    const int lane = (int)threadIdx.x & 31, group = (int)(blockIdx.x * 8 + (threadIdx.x >> 5));
    const size_t row = blockIdx.y, groups = stride / STEP;
    if ((size_t)group >= groups) return;
    const int i = group * STEP + lane;
    const float v = i < cols ? x[row * ldx + (size_t)i] : 0.0f;
    float inverse;
    const float step = i8_scale(__reduce_max_sync(0xffffffffu, __float_as_uint(v) & 0x7fffffffu), &inverse);
    const int code = inverse != 0.0f ? __float2int_rn(__fmul_rn(v, inverse)) : 0;
    q[row * stride + (size_t)i] = (int8_t)code;
    int half = code;
#pragma unroll
    for (int bit = 1; bit < 16; bit <<= 1) half += __shfl_xor_sync(0xffffffffu, half, bit);
    if (lane == 0) scale[row * groups + (size_t)group] = step;
    if (lane % 16 == 0) sum[(row * groups + (size_t)group) * 2 + (size_t)(lane / 16)] = half;
}

} // namespace

void cuda_round_groups(cudaStream_t stream, const float *x, size_t ldx, size_t cols, size_t rows, int8_t *q, size_t stride, float *scale,
                       int32_t *sum)
{
    for (size_t at = 0, n; at < rows; at += n) { // a grid has at most 65535 in y
        n = rows - at < 32768 ? rows - at : 32768;
        groups_kernel<<<dim3(div_up(stride / STEP, 8), (unsigned)n), 256, 0, stream>>>(
            x + at * ldx, ldx, (int)cols, q + at * stride, stride, scale + at * (stride / STEP), sum + at * (stride / STEP) * 2);
    }
}

void cuda_product_blocks(cudaStream_t stream, const struct cuda_blocks *w, const int8_t *q, size_t stride, const float *scale,
                         const int32_t *sum, size_t rows, float *y, size_t ldy)
{
    if (rows == 0 || w->outs == 0) return;
    const block_product p = {*w, q, scale, sum, y, stride, ldy, (int)rows};
    const dim3 grid(div_up(div_up(w->outs, TILE), WARPS), div_up(rows, ROWS));
    auto start = [&](auto kernel) { launch_early(stream, kernel, grid, 32 * WARPS, 0, p); };
    const bool halves = w->group != 0 && w->group < (uint32_t)STEP;
    switch (w->code) {
    case CUDA_CODE_E2M1: halves ? start(block_kernel<CUDA_CODE_E2M1, true>) : start(block_kernel<CUDA_CODE_E2M1, false>); break;
    case CUDA_CODE_U4: halves ? start(block_kernel<CUDA_CODE_U4, true>) : start(block_kernel<CUDA_CODE_U4, false>); break;
    default: halves ? start(block_kernel<CUDA_CODE_U8, true>) : start(block_kernel<CUDA_CODE_U8, false>); break;
    }
}
