// Weights of E8P as numbers, bit for bit as walsh_weights_decode_f32 and _bf16 (formats/weights.h) give them.
#include "e8p.cuh"
#include "launch_train.h"

namespace {

constexpr int THREADS = 256;

// A thread decodes eight columns of an output: the stages' sum in double, rounded once.
__global__ void __launch_bounds__(THREADS) decode_kernel(const __grid_constant__ cuda_e8p w, bool bf16, void *out)
{
    const size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x, eights = w.cols / 8;
    if (i >= w.outs * eights) return;
    const uint32_t row = (uint32_t)(i / eights), column = (uint32_t)(i % eights) * 8;
    const uint32_t slot = row % CUDA_E8P_ROWS / 8, lane = row % 8 * 4 + column % 32 / 8; // e8p.cuh, the layout
    double sum[8] = {};
    for (uint32_t k = 0; k < w.stages; k++) {
        const bool narrow = w.stage[k].narrow != 0;
        const uint32_t step = narrow ? column / 128 : column / 64, part = narrow ? column % 128 / 64 : column % 64 / 32;
        const size_t at = ((size_t)(row / CUDA_E8P_ROWS) * steps_of(w.cols, narrow) + step) * 32 + lane;
        const uint32_t word = static_cast<const uint32_t *>(w.stage[k].data)[at * 4 + slot / 2 * 2 + part];
        const uint32_t bits = narrow ? word >> (column % 64 / 32 * 16 + slot % 2 * 8) : word >> slot % 2 * 16;
        const uint32_t nibbles =
            narrow ? w.tables[512 + (bits & 255)] : w.tables[bits & 255] ^ w.tables[256 + (bits >> 8 & 255)];
        const double unit = (double)w.stage[k].scale * (narrow ? 0.5 : 0.25);
#pragma unroll
        for (int j = 0; j < 8; j++) {
            const int u = (int)(nibbles >> 4 * j & 15);
            sum[j] = __dadd_rn(sum[j], __dmul_rn(unit, (double)(narrow ? u - 4 : 2 * u - 15)));
        }
    }
    const size_t to = (size_t)row * w.cols + column;
#pragma unroll
    for (int j = 0; j < 8; j++) {
        const float x = (float)sum[j];
        if (bf16)
            static_cast<uint16_t *>(out)[to + j] = bf16_from_f32(x);
        else
            static_cast<float *>(out)[to + j] = x;
    }
}

} // namespace

void cuda_decode_e8p(cudaStream_t stream, const struct cuda_e8p *w, enum cuda_type type, void *out)
{
    const size_t count = (size_t)w->outs * (w->cols / 8);
    if (count > 0) launch_behind(stream, decode_kernel, dim3(div_up(count, THREADS)), THREADS, 0, *w, type == CUDA_TYPE_BF16, out);
}
