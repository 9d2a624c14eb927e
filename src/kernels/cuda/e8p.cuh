// E8P and E81B codes on the device: layout, decoding, the tensor cores' fragments.
//
// Outputs are in groups of 32 (two tiles of 16), columns in chunks of 64. A lane of a warp, with g = lane / 4 and
// t = lane % 4, holds what it needs of the A fragments of mma.m16n8k32: of either tile the rows g and g + 8, the columns
// X = 8t..8t+7 and Y = 32 + 8t..: eight codes, 16 bytes of 16-bit codes:
//   word 2 * tile + (X: 0, Y: 1) = code of row g | code of row g + 8 << 16, a code its pattern's byte | its signs' << 8.
// Of 8-bit codes 16 bytes are two chunks: word 2 * tile + chunk = X(g) | X(g + 8) << 8 | Y(g) << 16 | Y(g + 8) << 24.
// A matrix is [group][step][lane] of these 16 bytes: every step of a warp is one read of 512 bytes.
//
// A code byte looks up eight nibbles, coordinate i at bits 4i (launch.h). The even coordinates are the low nibbles of the
// bytes, the odd ones the high nibbles: two products of u8 by s8, the second 16 times too large, and no unpacking at all.
#ifndef WALSH_KERNELS_CUDA_E8P_CUH
#define WALSH_KERNELS_CUDA_E8P_CUH

#include "common.cuh"

constexpr uint32_t LOW = 0x0f0f0f0fu, HIGH = 0xf0f0f0f0u;

static __device__ __forceinline__ uint32_t permute(uint32_t a, uint32_t b, uint32_t selector)
{
    return __byte_perm(a, b, selector);
}
static __device__ __forceinline__ void multiply(int (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1)
{
    asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// 16 bytes that are read once.
static __device__ __forceinline__ uint4 stream16(const uint4 *p)
{
    uint4 r;
    asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w)
                 : "l"(p));
    return r;
}
static __device__ __forceinline__ void copy_async16(void *shared, const void *global)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"((uint32_t)__cvta_generic_to_shared(shared)), "l"(global)
                 : "memory");
}
static __device__ __forceinline__ void copies_done()
{
    asm volatile("cp.async.wait_all;" ::: "memory");
}

// Tables in shared memory, each entry 32 times, so that no two lanes meet in a bank: entry e of table h at byte
// 256e + 128h + 4 lane. Tables 0 and 1 are E8P's magnitudes and signs; E81B's stands 64 KB behind, entry e at 128e + 4 lane.
constexpr int PAIR_BYTES = 65536, NARROW_BYTES = 32768;

static __device__ __forceinline__ void fill_tables(uint8_t *shared, const uint32_t *tables, bool narrow)
{
    for (int i = (int)threadIdx.x; i < 4096; i += (int)blockDim.x) {
        const int entry = i >> 3, part = i & 7, e = entry & 255, h = entry >> 8;
        const uint32_t v = __ldg(tables + entry);
        reinterpret_cast<uint4 *>(shared)[e * 16 + h * 8 + part] = make_uint4(v, v, v, v);
        if (!narrow || h) continue;
        const uint32_t u = __ldg(tables + 512 + e);
        reinterpret_cast<uint4 *>(shared + PAIR_BYTES)[e * 8 + part] = make_uint4(u, u, u, u);
    }
}

static __device__ __forceinline__ uint32_t entry(const uint8_t *table, uint32_t at)
{
    return *reinterpret_cast<const uint32_t *>(table + at);
}

// The fragments of one tile of a chunk from its two words of 16-bit codes. low, high: even and odd coordinates, the
// latter 16 times too large. lane4 = 4 * lane.
static __device__ __forceinline__ void decode_wide(const uint8_t *shared, uint32_t lane4, uint32_t x, uint32_t y,
                                                   uint32_t (&low)[4], uint32_t (&high)[4])
{
#pragma unroll
    for (int c = 0; c < 4; c++) { // X(g), X(g + 8), Y(g), Y(g + 8)
        const uint32_t word = c < 2 ? x : y;
        const uint32_t o = (uint32_t)(c & 1) * 2;
        const uint32_t magnitude = entry(shared, permute(word, lane4, 0x5504u | o << 4));
        const uint32_t sign = entry(shared + 128, permute(word, lane4, 0x5504u | (o + 1) << 4));
        low[c] = (magnitude ^ sign) & LOW;
        high[c] = (magnitude ^ sign) & HIGH;
    }
}

// The same of one word of 8-bit codes; `shared` is E81B's table.
static __device__ __forceinline__ void decode_narrow(const uint8_t *shared, uint32_t lane4, uint32_t word, uint32_t (&low)[4],
                                                     uint32_t (&high)[4])
{
#pragma unroll
    for (int c = 0; c < 4; c++) {
        const uint32_t both = entry(shared, permute(word, lane4 * 2, 0x5504u | (uint32_t)c << 4) >> 1);
        low[c] = both & LOW;
        high[c] = both & HIGH;
    }
}

// A selector's nibble: a byte of high:low; with bit 3 that byte's sign eight times.
static __device__ __forceinline__ uint32_t pick(uint32_t low, uint32_t high, uint32_t selectors)
{
    uint32_t r;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(r) : "r"(low), "r"(high), "r"(selectors));
    return r;
}
// Bytes of a table of sixteen by four nibbles, bits 0 to 15; no byte has its bit 7.
static __device__ __forceinline__ uint32_t map_four(const uint32_t (&table)[4], uint32_t nibbles)
{
    const uint32_t at = nibbles & 0x7777u, upper = pick(0x80808080u, 0x80808080u, nibbles); // 0xff from 8 on, else 0x80
    return (pick(table[2], table[3], at) & upper) | (pick(table[0], table[1], at) & ~upper);
}
// The nibbles of code c of decode_wide and of decode_narrow.
static __device__ __forceinline__ uint32_t wide_nibbles(const uint8_t *shared, uint32_t lane4, uint32_t x, uint32_t y, int c)
{
    const uint32_t word = c < 2 ? x : y, o = (uint32_t)(c & 1) * 2;
    return entry(shared, permute(word, lane4, 0x5504u | o << 4)) ^ entry(shared + 128, permute(word, lane4, 0x5504u | (o + 1) << 4));
}
static __device__ __forceinline__ uint32_t narrow_nibbles(const uint8_t *shared, uint32_t lane4, uint32_t word, int c)
{
    return entry(shared, permute(word, lane4 * 2, 0x5504u | (uint32_t)c << 4) >> 1);
}
// What a merged second stage adds to a product: second[u] + CUDA_E8P_SECOND of the even and the odd coordinates. x, y: its words
// of 16-bit codes; x: its word of 8-bit ones.
static __device__ __forceinline__ void decode_second(const uint8_t *shared, uint32_t lane4, bool narrow, const uint32_t (&second)[4],
                                                     uint32_t x, uint32_t y, uint32_t (&even)[4], uint32_t (&odd)[4])
{
#pragma unroll
    for (int c = 0; c < 4; c++) {
        const uint32_t n = narrow ? narrow_nibbles(shared + PAIR_BYTES, lane4, x, c) : wide_nibbles(shared, lane4, x, y, c);
        const uint32_t first = map_four(second, n), last = map_four(second, n >> 16);
        even[c] = permute(first, last, 0x6420u);
        odd[c] = permute(first, last, 0x7531u);
    }
}
// The merged plane p as p + 128 = 16 u0 + 8 + second[u1]: of x0 and y0, the first stage's words, and of the second's.
constexpr int PLANE_BIAS = 128;
static __device__ __forceinline__ void decode_merged(const uint8_t *shared, uint32_t lane4, bool narrow, const uint32_t (&second)[4],
                                                     uint32_t x0, uint32_t y0, uint32_t x1, uint32_t y1, uint32_t (&even)[4],
                                                     uint32_t (&odd)[4])
{
    constexpr uint32_t UNIT = 0x01010101u * (CUDA_E8P_SECOND - 8); // bytes overflow on the way, sums of words do not
    decode_second(shared, lane4, narrow, second, x1, y1, even, odd);
#pragma unroll
    for (int c = 0; c < 4; c++) {
        const uint32_t n = wide_nibbles(shared, lane4, x0, y0, c);
        even[c] += (n << 4 & HIGH) - UNIT;
        odd[c] += (n & HIGH) - UNIT;
    }
}
// kernels.def, product_int8_prefill, of sum (p + 128) q.
static __device__ __forceinline__ float merged_term(float scale, int dot, int q)
{
    return __fmul_rn(scale, (float)(dot - PLANE_BIAS * q));
}

// The B fragments of a chunk from a row of plain int8 in shared memory: even and odd columns of X and of Y.
struct columns {
    uint32_t even_x, even_y, odd_x, odd_y;
};
static __device__ __forceinline__ columns load_columns(const int8_t *row, int t)
{
    const uint2 x = *reinterpret_cast<const uint2 *>(row + 8 * t), y = *reinterpret_cast<const uint2 *>(row + 32 + 8 * t);
    return columns{permute(x.x, x.y, 0x6420u), permute(y.x, y.y, 0x6420u), permute(x.x, x.y, 0x7531u),
                   permute(y.x, y.y, 0x7531u)};
}

// sum (4w) q of an E8P stage or sum (2w) q of an E81B one, from sum u q.
static __device__ __forceinline__ int stage_dot(bool narrow, int uq, int q)
{
    return narrow ? uq - 4 * q : 2 * uq - 15 * q;
}
// kernels.def, product_int8: the term of a stage.
static __device__ __forceinline__ float stage_term(bool narrow, float scale, int dot)
{
    return __fmul_rn(__fmul_rn(scale, narrow ? 0.5f : 0.25f), (float)dot);
}

static __host__ __device__ __forceinline__ uint32_t steps_of(uint32_t cols, bool narrow)
{
    return narrow ? (cols + 127) / 128 : (cols + 63) / 64;
}

#endif
