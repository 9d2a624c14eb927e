// A gated short convolution over sequences (kernels.h, short_conv) in one launch: what a row reads of the call's own rows is
// computed again, not read from the pages that other blocks write.
#include "common.cuh"

namespace {

constexpr int CONV_THREADS = 256;

struct conv {
    float *out;
    const float *x;
    size_t ldo, ldx;
    const cuda_attention_row *rows;
    const float *weight, *bias;
    uint32_t taps, width;
};

// Element i of the token at `position` in its page.
__device__ __forceinline__ size_t place_of(const cuda_kv_view &kv, uint32_t position, uint32_t width, uint32_t i)
{
    return (size_t)(position % kv.page_tokens) * width + i;
}

// u of a row of the call, as its page stores it.
__device__ __forceinline__ float own(const conv &c, uint32_t type, size_t row, uint32_t i)
{
    const float *x = c.x + row * c.ldx + i;
    const float u = __fmul_rn(x[0], x[2 * (size_t)c.width]);
    return type == 1 ? f32_from_f16(f16_from_f32(u)) : u;
}

__global__ void __launch_bounds__(CONV_THREADS) conv_kernel(const __grid_constant__ conv c)
{
    const uint32_t i = blockIdx.y * CONV_THREADS + threadIdx.x;
    const size_t row = blockIdx.x;
    if (i >= c.width) return;
    const cuda_attention_row at = c.rows[row];
    const cuda_kv_view kv = *at.kv;
    const float u = own(c, kv.type, row, i);
    void *page = kv.k_pages[at.position / kv.page_tokens];
    const size_t to = place_of(kv, at.position, c.width, i);
    if (kv.type == 1)
        static_cast<uint16_t *>(page)[to] = f16_from_f32(u);
    else
        static_cast<float *>(page)[to] = u;
    float sum = c.bias ? c.bias[i] : 0.0f;
    for (uint32_t j = 0; j < c.taps; j++) {
        const uint32_t back = c.taps - 1 - j;
        if (back > at.position) continue;
        float past = u;
        if (back > 0) {
            const uint32_t position = at.position - back;
            if (row >= back && c.rows[row - back].kv == at.kv && c.rows[row - back].position == position) {
                past = own(c, kv.type, row - back, i);
            } else {
                const void *from = kv.k_pages[position / kv.page_tokens];
                const size_t e = place_of(kv, position, c.width, i);
                past = kv.type == 1 ? f32_from_f16(static_cast<const uint16_t *>(from)[e]) : static_cast<const float *>(from)[e];
            }
        }
        sum = __fadd_rn(sum, __fmul_rn(c.weight[(size_t)j * c.width + i], past));
    }
    c.out[row * c.ldo + i] = __fmul_rn(c.x[row * c.ldx + c.width + i], sum);
}

} // namespace

void cuda_short_conv(cudaStream_t stream, float *out, size_t ldo, const float *x, size_t ldx, const struct cuda_attention_row *rows,
                     size_t count, const float *weight, const float *bias, uint32_t taps, uint32_t width)
{
    if (count == 0) return;
    const conv c = {out, x, ldo, ldx, rows, weight, bias, taps, width};
    conv_kernel<<<dim3((unsigned)count, div_up(width, CONV_THREADS)), CONV_THREADS, 0, stream>>>(c);
}
