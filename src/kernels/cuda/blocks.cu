// Products of block formats (formats/blocks.h) by int8 activations in groups, exactly as kernels.def, product_block_decode, has
// them. A warp owns a tile of 16 outputs over all columns, because the chain of a row's groups has one order; eight rows of
// activations are the other side of mma.m16n8k32. Words go from memory into fragments as they are: a word's low nibbles are four
// consecutive columns, its high nibbles the next four.
#include "blocks.cuh"

namespace {

constexpr int WARPS = 4, ROWS = 8;
constexpr size_t MOST_FEW = 32; // rows of the kernel for few (blocks_decode.cu)

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

// --- decoded ---

// An FP8 number of EXPONENT bits; where the exponent is all ones: of E5M2 Inf or NaN, of E4M3 NaN if the mantissa is too.
template <int EXPONENT> __device__ float f32_from_fp8(uint32_t b)
{
    constexpr uint32_t MANTISSA = 7 - EXPONENT, BIAS = (1u << (EXPONENT - 1)) - 1, MOST = (1u << EXPONENT) - 1;
    const uint32_t magnitude = b & 0x7fu, exponent = magnitude >> MANTISSA, sign = (b & 0x80u) << 24;
    if (EXPONENT == 5 && exponent == MOST)
        return __uint_as_float(sign | 0x7f800000u | (magnitude & ((1u << MANTISSA) - 1) ? 0x400000u : 0));
    if (EXPONENT == 4 && magnitude == 0x7f) return __uint_as_float(sign | 0x7fc00000u);
    const uint32_t bits = exponent ? (magnitude << (23 - MANTISSA)) + ((127 - BIAS) << 23)
                                   : __float_as_uint((float)magnitude * __uint_as_float((128 - BIAS - MANTISSA) << 23));
    return __uint_as_float(sign | bits);
}

__device__ float code_value(cuda_code code, uint32_t b, int zero)
{
    switch (code) {
    case CUDA_CODE_E2M1: {
        const uint32_t m = b & 7;
        const float v = m < 2 ? 0.5f * (float)m : __uint_as_float((m << 22) + (126u << 23));
        return b & 8 ? -v : v;
    }
    case CUDA_CODE_E4M3: return f32_from_fp8<4>(b);
    case CUDA_CODE_E5M2: return f32_from_fp8<5>(b);
    default: return (float)((int)b - zero);
    }
}

// A thread decodes a word: walsh_block_weight of four or eight columns of output row + o into out [outs][cols].
__global__ void __launch_bounds__(256) decode_kernel(const __grid_constant__ cuda_blocks w, uint32_t row, uint32_t outs, bool bf16, void *out)
{
    const bool nibbles = w.code == CUDA_CODE_E2M1 || w.code == CUDA_CODE_U4;
    const uint32_t columns = nibbles ? 8 : 4, words = (w.cols + STEP - 1) / STEP * STEP / columns;
    const size_t i = (size_t)blockIdx.x * 256 + threadIdx.x;
    const uint32_t lane = (uint32_t)(i % TILE), word = (uint32_t)(i / TILE % words), tile = (uint32_t)(i / TILE / words);
    const uint32_t o = tile * TILE + lane;
    if (o >= outs) return;
    const size_t stored = row / TILE + tile;
    const uint32_t v = w.data[(stored * words + word) * TILE + lane];
    for (uint32_t k = 0; k < columns; k++) {
        const uint32_t column = word * columns + k;
        if (column >= w.cols) break;
        const size_t at = (stored * w.groups + (w.group ? column / w.group : 0)) * TILE + lane;
        const int zero = w.zeros ? w.zeros[at] : w.code == CUDA_CODE_U4 ? 8 : 128;
        const uint32_t b = nibbles ? v >> (k < 4 ? 8 * k : 8 * (k - 4) + 4) & 15 : v >> (8 * k) & 255;
        const float x = __fmul_rn(w.tensor_scale, __fmul_rn(scale_at(w.scale, w.scales, at), code_value(w.code, b, zero)));
        if (bf16)
            static_cast<uint16_t *>(out)[(size_t)o * w.cols + column] = bf16_from_f32(x);
        else
            static_cast<float *>(out)[(size_t)o * w.cols + column] = x;
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

void cuda_decode_blocks(cudaStream_t stream, const struct cuda_blocks *w, uint32_t row, uint32_t outs, enum cuda_type type, void *out)
{
    const uint32_t columns = w->code == CUDA_CODE_E2M1 || w->code == CUDA_CODE_U4 ? 8 : 4;
    const size_t words = (size_t)div_up(w->cols, STEP) * STEP / columns;
    decode_kernel<<<div_up(div_up(outs, TILE) * words * TILE, 256), 256, 0, stream>>>(*w, row, outs, type == CUDA_TYPE_BF16, out);
}

void cuda_product_blocks(cudaStream_t stream, const struct cuda_blocks *w, const int8_t *q, size_t stride, const float *scale,
                         const int32_t *sum, size_t rows, float *y, size_t ldy)
{
    if (rows == 0 || w->outs == 0) return;
    if (rows <= MOST_FEW && cuda_product_blocks_few_fits(w)) {
        cuda_product_blocks_few(stream, w, q, stride, scale, sum, rows, y, ldy);
        return;
    }
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
