// Weights from the layout of files to that of the products, while they are loaded (weights.c).
#include "e8p.cuh"

namespace {

constexpr int THREADS = 256;

// --- E8P (e8p.cuh) ---

// Bits 0, 4, ..., 28 of x.
__device__ uint32_t every_fourth(uint32_t x)
{
    x &= 0x11111111u;
    x = (x | x >> 3) & 0x03030303u;
    x = (x | x >> 6) & 0x000f000fu;
    return (x | x >> 12) & 0xffu;
}

// Code i of a stored word: its pattern's byte | its signs' << 8.
__device__ uint32_t stored_code(uint2 word, uint32_t i)
{
    return (word.x >> 8 * i & 255u) | every_fourth(word.y >> i) << 8;
}

__global__ void __launch_bounds__(THREADS) wide_kernel(const uint2 *stored, uint32_t tiles, uint32_t steps, uint4 *data,
                                                       size_t count)
{
    const size_t at = (size_t)blockIdx.x * THREADS + threadIdx.x;
    if (at >= count) return;
    const uint32_t lane = (uint32_t)(at % 32), g = lane / 4, t = lane % 4, step = (uint32_t)(at / 32 % steps);
    const uint32_t first = (uint32_t)(at / 32 / steps) * 2, i = (g & 1) | (t & 1) << 1;
    uint32_t word[4] = {0, 0, 0, 0};
    for (uint32_t tile = 0; tile < 2 && first + tile < tiles; tile++) {
        const uint2 *words = stored + ((size_t)(first + tile) * steps + step) * 32; // [8][4]
        for (uint32_t part = 0; part < 2; part++) {
            const uint32_t c = (part * 4 + t) / 2;
            word[tile * 2 + part] =
                stored_code(words[g / 2 * 4 + c], i) | stored_code(words[(g / 2 + 4) * 4 + c], i) << 16;
        }
    }
    data[at] = make_uint4(word[0], word[1], word[2], word[3]);
}

__global__ void __launch_bounds__(THREADS) narrow_kernel(const uint8_t *stored, uint32_t tiles, uint32_t groups, uint32_t steps,
                                                         uint4 *data, size_t count)
{
    const size_t at = (size_t)blockIdx.x * THREADS + threadIdx.x;
    if (at >= count) return;
    const uint32_t lane = (uint32_t)(at % 32), g = lane / 4, t = lane % 4, step = (uint32_t)(at / 32 % steps);
    const uint32_t first = (uint32_t)(at / 32 / steps) * 2;
    uint32_t word[4] = {0, 0, 0, 0};
    for (uint32_t tile = 0; tile < 2 && first + tile < tiles; tile++)
        for (uint32_t part = 0; part < 2; part++)
            for (uint32_t c = 0; c < 4; c++) {
                const uint32_t group = step * 16 + part * 8 + (c >> 1) * 4 + t;
                const size_t row = (size_t)(first + tile) * 16 + g + (c & 1) * 8;
                if (group < groups) word[tile * 2 + part] |= (uint32_t)stored[row * groups + group] << 8 * c;
            }
    data[at] = make_uint4(word[0], word[1], word[2], word[3]);
}

// --- block formats (formats/blocks.h) ---

// Eight nibbles in the order of their columns: 0..3 to the low halves of the bytes, 4..7 to the high ones.
__device__ uint32_t interleave(uint32_t v)
{
    uint32_t low = v & 0xffffu, high = v >> 16;
    low = (low | low << 8) & 0x00ff00ffu;
    high = (high | high << 8) & 0x00ff00ffu;
    low = (low | low << 4) & 0x0f0f0f0fu;
    high = (high | high << 4) & 0x0f0f0f0fu;
    return low | high << 4;
}

// A thread makes a word; 16 words of a tile's rows stand together.
__global__ void __launch_bounds__(THREADS) codes_kernel(const uint8_t *stored, bool nibbles, uint32_t outs, uint32_t cols,
                                                        uint32_t bytes, uint32_t words, uint32_t flips, uint32_t *data,
                                                        size_t count)
{
    const size_t at = (size_t)blockIdx.x * THREADS + threadIdx.x;
    if (at >= count) return;
    const uint32_t n = (uint32_t)(at / 16 % words), row = (uint32_t)(at / 16 / words) * 16 + (uint32_t)(at % 16);
    uint32_t v = 0;
    if (row < outs && 4 * n < bytes) {
        const uint8_t *from = stored + (size_t)row * bytes + 4 * n;
        const uint32_t exist = min(bytes - 4 * n, 4u);
        if (bytes % 4 == 0)
            v = *reinterpret_cast<const uint32_t *>(from);
        else
            for (uint32_t b = 0; b < exist; b++) v |= (uint32_t)from[b] << 8 * b;
        v ^= flips;
        if (exist < 4) v &= (1u << 8 * exist) - 1;
        if (nibbles && 8 * (n + 1) > cols) v &= (uint32_t)((1ull << 4 * (cols - 8 * n)) - 1); // half a byte at the end
    }
    data[at] = nibbles ? interleave(v) : v;
}

} // namespace

void cuda_lay_out_stage(cudaStream_t stream, uint32_t outs, uint32_t cols, bool narrow, const void *stored, void *data)
{
    const size_t count = cuda_e8p_stage_bytes(outs, cols, narrow) / 16;
    const uint32_t steps = steps_of(cols, narrow), tiles = outs / 16;
    if (count == 0) return;
    if (narrow)
        narrow_kernel<<<div_up(count, THREADS), THREADS, 0, stream>>>(static_cast<const uint8_t *>(stored), tiles, cols / 8, steps,
                                                                       static_cast<uint4 *>(data), count);
    else
        wide_kernel<<<div_up(count, THREADS), THREADS, 0, stream>>>(static_cast<const uint2 *>(stored), tiles, steps,
                                                                     static_cast<uint4 *>(data), count);
}

void cuda_lay_out_codes(cudaStream_t stream, unsigned bits, uint32_t outs, uint32_t cols, uint8_t flip, const void *stored,
                        void *data)
{
    const uint32_t bytes = bits == 4 ? (cols + 1) / 2 : cols, words = (cols + 31) / 32 * 32 / (32 / bits);
    const size_t count = (size_t)div_up(outs, 16) * words * 16;
    if (count == 0) return;
    codes_kernel<<<div_up(count, THREADS), THREADS, 0, stream>>>(static_cast<const uint8_t *>(stored), bits == 4, outs, cols,
                                                                 bytes, words, flip * 0x01010101u, static_cast<uint32_t *>(data),
                                                                 count);
}
