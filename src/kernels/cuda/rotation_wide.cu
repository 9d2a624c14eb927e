// The forward rotation of rows of 16-bit numbers that are one block of 8192 or 16384, in one exchange: a thread holds 128 elements, the
// stages 1..64 need no other, and one pass through shared memory brings it those of stride 128, which have the rest. Shared
// memory is what limits rotations (performance.md), and the kernels for any row go through it once more. A block of threads
// does one row after another; the next one is on its way meanwhile.
#include "rotation.cuh"

namespace {

constexpr int MANY = 128, CHUNKS = MANY / 8; // elements of a thread, 16-byte words of them

struct wide {
    cuda_rotation r;
    const void *x;
    void *data;
    size_t ldx, stride, rows;
};

// v <- stages on the bits [FROM, 7) of a register's number.
template <int FROM> __device__ __forceinline__ void stages(float (&v)[MANY])
{
#pragma unroll
    for (int bit = FROM; bit < 7; bit++)
#pragma unroll
        for (int e = 0; e < MANY; e++)
            if ((e >> bit & 1) == 0) {
                const float a = v[e], b = v[e | 1 << bit];
                v[e] = __fadd_rn(a, b);
                v[e | 1 << bit] = __fsub_rn(a, b);
            }
}

// The second pass of 2^(14 - WIDTH) elements by thread t: register e is element t + (e >> WIDTH) * 128 + (e & (2^WIDTH - 1)) *
// (128 >> WIDTH): lanes that are neighbours have neighbouring elements. A word of padding stands behind every 128.
template <bool BF16, int WIDTH>
__device__ __forceinline__ void second(const float *p, int t, float scale, uint16_t *data, float (&v)[MANY])
{
    p += t;
    constexpr int RUN = 1 << WIDTH, STEP = 128 >> WIDTH;
#pragma unroll
    for (int e = 0; e < MANY; e++) v[e] = p[(e >> WIDTH) * (MANY + 1) + (e & (RUN - 1)) * STEP];
    stages<WIDTH>(v);
    uint16_t *to = data + t;
#pragma unroll
    for (int e = 0; e < MANY; e += 2) {
        const float a = __fmul_rn(v[e], scale), b = __fmul_rn(v[e + 1], scale);
        const uint32_t pair = BF16 ? bf16_pair(a, b) : f16_pair(a, b);
        to[(e >> WIDTH) * MANY + (e & (RUN - 1)) * STEP] = (uint16_t)pair;
        to[((e + 1) >> WIDTH) * MANY + ((e + 1) & (RUN - 1)) * STEP] = (uint16_t)(pair >> 16);
    }
}

// Bit 2i of x at i, bit 2i + 1 at 16 + i: a pair's signs are then 16 bits apart.
__device__ __forceinline__ uint32_t apart(uint32_t x)
{
    uint32_t y = 0;
#pragma unroll
    for (int i = 0; i < 16; i++) y |= (x >> (2 * i) & 1) << i | (x >> (2 * i + 1) & 1) << (16 + i);
    return y;
}

__host__ __device__ inline size_t row_bytes(const cuda_rotation &r)
{
    return ((size_t)r.padded / MANY * (MANY + 1) * sizeof(float) + 15) / 16 * 16;
}

// A row is 64 or 128 threads'.
template <bool BF16> __global__ void __launch_bounds__(128, 2) wide_kernel(const __grid_constant__ wide f)
{
    extern __shared__ __align__(16) uint8_t shared[];
    const int t = (int)threadIdx.x, at = t * MANY, threads = (int)blockDim.x;
    float *row = reinterpret_cast<float *>(shared);
    uint8_t *next = shared + row_bytes(f.r); // [threads][CHUNKS] words of 16 bytes, swapped by the thread
    let_next_start();
    uint32_t negative[4] = {}; // 32 bits of signs for each 32 elements
    const uint32_t *units = unit_signs(f.r);
    const bool all_units = units[0] != 0;
#pragma unroll
    for (int i = 0; i < 4; i++)
        if (all_units) negative[i] = apart(units[1 + at / 32 + i]);
    wait_for_previous();
    auto bring = [&](size_t r) {
        const uint8_t *from = static_cast<const uint8_t *>(f.x) + r * f.ldx * 2;
        for (int i = t; i < threads * CHUNKS; i += threads)
            asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"((uint32_t)__cvta_generic_to_shared(next + ((i ^ (i / CHUNKS & 7)) << 4))),
                         "l"(from + (size_t)i * 16)
                         : "memory");
    };
    if (blockIdx.x < f.rows) bring(blockIdx.x);
    for (size_t r = blockIdx.x; r < f.rows; r += gridDim.x) {
        asm volatile("cp.async.wait_all;" ::: "memory");
        __syncthreads(); // the row is there; the one before is read to its end
        float v[MANY];
#pragma unroll
        for (int c = 0; c < CHUNKS; c++) {
            const uint4 w = *reinterpret_cast<const uint4 *>(next + ((t * CHUNKS + (c ^ (t & 7))) << 4));
            const uint32_t word[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const int pair = (c * 4 + j) % 16;
                const uint32_t turned = word[j] ^ (negative[c / 4] << (15 - pair) & 0x80008000u);
                const half_bits<BF16> low = {(uint16_t)turned}, high = {(uint16_t)(turned >> 16)};
                v[c * 8 + 2 * j] = load(&low), v[c * 8 + 2 * j + 1] = load(&high);
            }
        }
        if (!all_units) {
#pragma unroll
            for (int e = 0; e < MANY; e++) v[e] = __fmul_rn(f.r.signs[at + e], v[e]);
        }
        stages<0>(v);
#pragma unroll
        for (int e = 0; e < MANY; e++) row[t * (MANY + 1) + e] = v[e];
        __syncthreads();
        if (r + gridDim.x < f.rows) bring(r + gridDim.x);
        uint16_t *data = static_cast<uint16_t *>(f.data) + r * f.stride;
        if (threads == 128)
            second<BF16, 0>(row, t, f.r.scale[0], data, v);
        else
            second<BF16, 1>(row, t, f.r.scale[0], data, v);
    }
}

} // namespace

bool cuda_rotate_wide_fits(const struct cuda_rotation *r, enum cuda_type in, const void *x, size_t ldx, enum cuda_type out, size_t stride)
{
    if (in != out || (in != CUDA_TYPE_F16 && in != CUDA_TYPE_BF16)) return false;
    if (r->count != 1 || r->log2[0] < 13 || r->log2[0] > 14 || r->size != r->padded || r->padded != stride) return false;
    return (uintptr_t)x % 16 == 0 && ldx % 8 == 0;
}

void cuda_rotate_wide(cudaStream_t stream, const struct cuda_rotation *rotation, enum cuda_type type, const void *x, size_t ldx,
                      size_t rows, void *data, size_t stride)
{
    const wide f = {*rotation, x, data, ldx, stride, rows};
    const size_t shared = row_bytes(*rotation) + (size_t)rotation->padded * 2;
    const unsigned threads = rotation->padded / MANY;
    int device = 0, processors = 1;
    cudaGetDevice(&device);
    cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
    const unsigned by_registers = 65536 / (256 * threads), by_shared = (unsigned)((227u << 10) / (shared + 1024));
    const unsigned most = (unsigned)processors * (by_registers < by_shared ? by_registers : by_shared);
    const dim3 grid(rows < most ? (unsigned)rows : most);
    if (type == CUDA_TYPE_BF16)
        launch_early(stream, wide_kernel<true>, grid, threads, shared, f);
    else
        launch_early(stream, wide_kernel<false>, grid, threads, shared, f);
}
