// MXFP4 weights by many rows of bf16 activations on the tensor cores of sm_90a (kernels.def, product_mxfp4_prefill): codes
// decode into what wgmma takes from registers while the products of the step before run.
#include "wgmma.cuh"

namespace {

constexpr int CONSUMERS = 2, OUTS = 64 * CONSUMERS, THREADS = (CONSUMERS + 1) * 128, DEPTH = 6, STEP = 32; // columns of a step
constexpr int PIECE_COLUMNS = PIECE_WIDTH / 2;

struct many_rows {
    const uint32_t *data;
    const uint8_t *scales;
    const uint8_t *x; // arranged
    float *y;
    size_t ldy, rows;
    int outs, steps, pieces; // pieces of a row
};

// x [rows / 256, rounded up][pieces][PIECE_BYTES] from bf16 rows, zero rows beyond; a thread does a step's 32 columns. Of a
// step, wgmma's first 16 are the columns 8t, 8t + 2, then 8t + 1, 8t + 3 (t in 0..3), the others four further on.
__global__ void __launch_bounds__(256) arrange_kernel(uint8_t *x, const uint16_t *from, size_t stride, size_t rows, int pieces)
{
    const size_t row = blockIdx.y * (size_t)8 + threadIdx.x / 32; // eight rows of a piece are 1024 bytes
    const int step = (int)(blockIdx.x * 32 + threadIdx.x % 32), piece = step / 2, n = (int)(row % PIECE_ROWS);
    wait_for_previous();
    if (piece >= pieces) return;
    const size_t column = (size_t)step * STEP;
    uint32_t out[4][4] = {};
    if (row < rows && column < stride) { // a row's stride is a multiple of 32
        const uint4 *at = reinterpret_cast<const uint4 *>(from + row * stride + column);
#pragma unroll
        for (int t = 0; t < 4; t++) {
            const uint4 v = at[t];
            out[0][t] = __byte_perm(v.x, v.y, 0x5410u), out[1][t] = __byte_perm(v.x, v.y, 0x7632u);
            out[2][t] = __byte_perm(v.z, v.w, 0x5410u), out[3][t] = __byte_perm(v.z, v.w, 0x7632u);
        }
    }
    uint8_t *to = x + (row / PIECE_ROWS * (size_t)pieces + (size_t)piece) * PIECE_BYTES;
#pragma unroll
    for (int c = 0; c < 4; c++)
        *reinterpret_cast<uint4 *>(to + piece_at(n, step % 2 * 4 + c)) = make_uint4(out[c][0], out[c][1], out[c][2], out[c][3]);
}

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

constexpr int TILE = 16, WORDS = 4, AHEAD = 4; // outputs of a tile, words of an output in a step, steps under way

__device__ __forceinline__ uint32_t times(uint32_t a, uint32_t b)
{
    uint32_t r;
    asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
    return r;
}
// 2^(b - 127), twice.
__device__ __forceinline__ uint32_t scale_pair(uint32_t b)
{
    const uint32_t one = b == 0 ? 0x40u : b == 255 ? 0x7fc0u : b << 7;
    return one << 16 | one;
}
// The nibbles 3 and 7 of v as bf16, times 2^126, then `scale`: where the sign is in its place and exponent and mantissa six bits
// too high, they are the value times 2^-126, a subnormal number where the exponent is 0.
__device__ __forceinline__ uint32_t decode_pair(uint32_t v, uint32_t scale)
{
    return times(times((v & 0x80008000u) | (v >> 6 & 0x01c001c0u), 0x7e807e80u), scale);
}

// What a lane has under way of a step: words and scales of the outputs g and g + 8.
struct slot {
    uint32_t word[2], scale[2];
};

__device__ __forceinline__ void multiply_pieces(const many_rows &p, uint8_t *x, uint64_t *full, uint64_t *empty)
{
    const int warp = (int)threadIdx.x >> 5, lane = (int)threadIdx.x & 31, g = lane >> 2, t = lane & 3;
    const int out = (int)blockIdx.y * OUTS + warp * TILE + g;
    const size_t tile = (size_t)min((int)blockIdx.y * (OUTS / TILE) + warp, (p.outs - 1) / TILE);
    const uint32_t *data = p.data + tile * (size_t)p.steps * WORDS * TILE + t * TILE + g;
    const uint8_t *scales = p.scales + tile * (size_t)p.steps * TILE + g;
    auto fetch = [&](slot &to, int step) { // what lies beyond the last meets activations that are zero
        step = min(step, p.steps - 1);
#pragma unroll
        for (int i = 0; i < 2; i++) {
            to.word[i] = __ldg(data + (size_t)step * WORDS * TILE + 8 * i);
            to.scale[i] = __ldg(scales + (size_t)step * TILE + 8 * i);
        }
    };
    uint32_t first[2][4], second[2][4];
    auto decode = [&](int buffer, const slot &s) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const uint32_t scale = scale_pair(s.scale[i]), v = s.word[i];
            first[buffer][i] = decode_pair(v << 12, scale), first[buffer][2 + i] = decode_pair(v << 4, scale);
            second[buffer][i] = decode_pair(v << 8, scale), second[buffer][2 + i] = decode_pair(v, scale);
        }
    };
    slot ahead[AHEAD];
    float d[128];
#pragma unroll
    for (int i = 0; i < AHEAD; i++) fetch(ahead[i], i);
    decode(0, ahead[0]);
    fetch(ahead[0], AHEAD);
    int at = 0, parity = 0;
    for (int begin = 0; begin < 2 * p.pieces; begin += AHEAD) {
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            const int step = begin + i;
            if (step >= 2 * p.pieces) break;
            if ((i & 1) == 0) barrier_wait(full + at, parity);
            const uint8_t *piece = x + at * PIECE_BYTES;
            wgmma_begin();
            wgmma_bf16(d, first[i & 1], piece_slice(piece, 2 * (i & 1)), step > 0);
            wgmma_bf16(d, second[i & 1], piece_slice(piece, 2 * (i & 1) + 1), 1);
            wgmma_end();
            const int next = (i + 1) % AHEAD;
            decode((i + 1) & 1, ahead[next]);
            fetch(ahead[next], step + 1 + AHEAD);
            wgmma_wait();
            if ((i & 1) == 1) {
                if (threadIdx.x % 128 == 0) barrier_arrive(empty + at);
                if (++at == DEPTH) at = 0, parity ^= 1;
            }
        }
    }
    const size_t first_row = blockIdx.x * (size_t)PIECE_ROWS;
#pragma unroll
    for (int j = 0; j < 64; j++) {
        const size_t row = first_row + (size_t)(j / 2 * 8 + 2 * t + j % 2);
        if (row >= p.rows) continue;
#pragma unroll
        for (int i = 0; i < 2; i++)
            if (out + 8 * i < p.outs) p.y[row * p.ldy + (size_t)(out + 8 * i)] = d[j / 2 * 4 + 2 * i + j % 2];
    }
}

__global__ void __launch_bounds__(THREADS, 1) many_rows_kernel(const __grid_constant__ many_rows p)
{
    extern __shared__ __align__(1024) uint8_t x[];
    __shared__ uint64_t full[DEPTH], empty[DEPTH];
    if (threadIdx.x == 0) {
        for (int i = 0; i < DEPTH; i++) barrier_init(full + i, 1), barrier_init(empty + i, CONSUMERS);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncthreads();
    wait_for_previous();
    if (threadIdx.x >= CONSUMERS * 128) {
        fewer_registers();
        const uint8_t *from = p.x + (size_t)blockIdx.x * (size_t)p.pieces * PIECE_BYTES;
        if (threadIdx.x == CONSUMERS * 128)
            for (int i = 0; i < p.pieces; i++) {
                const int at = i % DEPTH;
                if (i >= DEPTH) barrier_wait(empty + at, (i / DEPTH - 1) & 1);
                bring_piece(x + at * PIECE_BYTES, from + (size_t)i * PIECE_BYTES, full + at);
            }
    } else {
        more_registers();
        multiply_pieces(p, x, full, empty);
    }
}

#else

__global__ void many_rows_kernel(const __grid_constant__ many_rows)
{
}

#endif

} // namespace

size_t cuda_product_mxfp4_wgmma_rows(uint32_t cols, size_t scratch_bytes)
{
    int device = 0, major = 0;
    if (cudaGetDevice(&device) != cudaSuccess || cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) != cudaSuccess)
        return 0;
    return major == 9 ? scratch_bytes / (PIECE_ROWS * (size_t)div_up(cols, PIECE_COLUMNS) * PIECE_WIDTH) * PIECE_ROWS : 0;
}

void cuda_product_mxfp4_wgmma(cudaStream_t stream, const struct cuda_blocks *w, const void *a, size_t stride, size_t rows, float *y,
                              size_t ldy, void *scratch)
{
    const many_rows p = {w->data, static_cast<const uint8_t *>(w->scales), static_cast<const uint8_t *>(scratch), y, ldy, rows,
                         (int)w->outs, (int)div_up(w->cols, STEP), (int)div_up(w->cols, PIECE_COLUMNS)};
    const size_t padded = div_up(rows, PIECE_ROWS) * (size_t)PIECE_ROWS;
    launch_early(stream, arrange_kernel, dim3(div_up((size_t)p.pieces * 2, 32), (unsigned)(padded / 8)), 256, 0,
                 static_cast<uint8_t *>(scratch), static_cast<const uint16_t *>(a), stride, rows, p.pieces);
    launch_early(stream, many_rows_kernel, dim3((unsigned)(padded / PIECE_ROWS), div_up(w->outs, OUTS)), THREADS, DEPTH * PIECE_BYTES, p);
}
