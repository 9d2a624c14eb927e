// The randomized Hadamard transform on rows, bit for bit as rotation/rotation.h fixes it: stages of stride 1, 2, 4, ...,
// every sum rounded, one multiplication at the end. A thread holds 32 elements in registers, so that five stages need no
// exchange; rows go through shared memory between the stages 1..16, 32..512 and 1024..16384.
#ifndef WALSH_KERNELS_CUDA_ROTATION_CUH
#define WALSH_KERNELS_CUDA_ROTATION_CUH

#include <type_traits>

#include "common.cuh"

namespace {

constexpr int HELD = 32; // elements of a thread

// Stages on the bits [FROM, 5) of a register's number.
template <int FROM> __device__ __forceinline__ void butterfly(float (&v)[HELD])
{
#pragma unroll
    for (int bit = FROM; bit < 5; bit++)
#pragma unroll
        for (int e = 0; e < HELD; e++)
            if ((e >> bit & 1) == 0) {
                float a = v[e], b = v[e | 1 << bit];
                v[e] = __fadd_rn(a, b);
                v[e | 1 << bit] = __fsub_rn(a, b);
            }
}

// Which elements of its row a thread holds: register e is element base + (e & (run - 1)) + (e >> log2(run)) * step, where
// run = 1 << width.
struct place {
    int base, width, step;
};

// Shared memory has a word of padding behind every 32, which makes all accesses below free of bank conflicts for blocks
// of 512 and more.
__device__ __forceinline__ int padded_at(int i)
{
    return i + (i >> 5);
}

// The stages of element bits SHIFT.. of a block: fetch, butterfly, and put back where `back`.
template <int SHIFT, int WIDTH> __device__ __forceinline__ void pass(float *row, int base, bool back, float (&v)[HELD])
{
    float *p = row + padded_at(base);
#pragma unroll
    for (int e = 0; e < HELD; e++)
        v[e] = p[(e & ((1 << WIDTH) - 1)) + (e >> WIDTH) * ((1 << SHIFT) + (1 << SHIFT) / 32)];
    butterfly<WIDTH>(v);
    if (!back) return;
#pragma unroll
    for (int e = 0; e < HELD; e++)
        p[(e & ((1 << WIDTH) - 1)) + (e >> WIDTH) * ((1 << SHIFT) + (1 << SHIFT) / 32)] = v[e];
}

template <int SHIFT> __device__ __forceinline__ void pass_of(int width, float *row, int base, bool back, float (&v)[HELD])
{
    switch (width) {
    case 0: pass<SHIFT, 0>(row, base, back, v); break;
    case 1: pass<SHIFT, 1>(row, base, back, v); break;
    case 2: pass<SHIFT, 2>(row, base, back, v); break;
    case 3: pass<SHIFT, 3>(row, base, back, v); break;
    default: pass<SHIFT, 4>(row, base, back, v); break;
    }
}

// H of the block that holds v: elements [at, at + 32) of a row, in. On return v holds the elements of *out, scaled.
// Every thread of the block of threads calls it; `active` says whether it holds any.
__device__ __forceinline__ void transform(const cuda_rotation &r, int passes, bool active, int at, float *row, float (&v)[HELD],
                                          place *out)
{
    int block = 0;
    while (block + 1 < (int)r.count && at >= (int)r.begin[block + 1]) block++;
    const int log2 = r.log2[block], begin = (int)r.begin[block], t = (at - begin) / HELD;
    *out = place{at, 5, 0};
    if (log2 >= 5) {
        butterfly<0>(v);
    } else { // 16: the last block of a row
#pragma unroll
        for (int bit = 0; bit < 4; bit++)
#pragma unroll
            for (int e = 0; e < 16; e++)
                if ((e >> bit & 1) == 0) {
                    float a = v[e], b = v[e | 1 << bit];
                    v[e] = __fadd_rn(a, b);
                    v[e | 1 << bit] = __fsub_rn(a, b);
                }
    }
    if (passes > 1) {
        if (active && log2 > 5) {
#pragma unroll
            for (int e = 0; e < HELD; e++) row[padded_at(at) + e] = v[e];
        }
        __syncthreads();
        if (active && log2 > 5) {
            const int bits = min(5, log2 - 5), width = 5 - bits;
            const int base = begin + ((t & ((1 << bits) - 1)) << width) + ((t >> bits) << (5 + bits));
            pass_of<5>(width, row, base, log2 > 10, v);
            *out = place{base, width, 32};
        }
    }
    if (passes > 2) {
        __syncthreads();
        if (active && log2 > 10) {
            const int width = 15 - log2, base = begin + (t << width);
            pass_of<10>(width, row, base, false, v);
            *out = place{base, width, 1024};
        }
    }
    const float scale = r.scale[block];
#pragma unroll
    for (int e = 0; e < HELD; e++) v[e] = __fmul_rn(v[e], scale);
}

// --- the two ends ---

__device__ __forceinline__ float load(const float *x)
{
    return *x;
}
template <bool BF16> struct half_bits {
    uint16_t bits;
};
__device__ __forceinline__ float load(const half_bits<false> *x)
{
    return f32_from_f16(x->bits);
}
__device__ __forceinline__ float load(const half_bits<true> *x)
{
    return f32_from_bf16(x->bits);
}

__device__ __forceinline__ void load_wide(const float *x, float (&v)[HELD])
{
#pragma unroll
    for (int i = 0; i < HELD / 4; i++) {
        float4 f = reinterpret_cast<const float4 *>(x)[i];
        v[4 * i] = f.x, v[4 * i + 1] = f.y, v[4 * i + 2] = f.z, v[4 * i + 3] = f.w;
    }
}
template <bool BF16> __device__ __forceinline__ void load_wide(const half_bits<BF16> *x, float (&v)[HELD])
{
#pragma unroll
    for (int i = 0; i < HELD / 8; i++) {
        uint4 u = reinterpret_cast<const uint4 *>(x)[i];
        const uint32_t word[4] = {u.x, u.y, u.z, u.w};
#pragma unroll
        for (int j = 0; j < 4; j++) {
            half_bits<BF16> low = {(uint16_t)word[j]}, high = {(uint16_t)(word[j] >> 16)};
            v[8 * i + 2 * j] = load(&low);
            v[8 * i + 2 * j + 1] = load(&high);
        }
    }
}

// v = elements [at, at + 32) of x, zero from `size` on; `wide`: x's rows are 16-byte aligned.
template <typename T> __device__ __forceinline__ void load_row(const T *x, int at, int size, bool wide, float (&v)[HELD])
{
    if (wide && at + HELD <= size) {
        load_wide(x + at, v);
        return;
    }
#pragma unroll
    for (int e = 0; e < HELD; e++) v[e] = at + e < size ? load(x + at + e) : 0.0f;
}

// Behind the signs on the device stands whether all are +-1, and then a bit for each, set where it is -1 (launch.h).
__device__ __forceinline__ const uint32_t *unit_signs(const cuda_rotation &r)
{
    return reinterpret_cast<const uint32_t *>(r.signs + r.padded);
}

// How a launch cuts rows: `threads` of a row, `rows` of a block of threads.
struct cut {
    int threads, rows, passes;
    size_t shared; // floats of a row
};

// A thread's 32 elements of row x. Rows of f32 go through shared memory, so that a warp reads whole lines: 32 lanes that each
// read 16 bytes of their own 128 would take 32 cycles of the L1 for a line's worth. Every thread of the block calls it.
template <typename T>
__device__ __forceinline__ void fetch_row(const T *x, const cut &c, bool wide, bool active, int t, int size, float *row,
                                          float (&v)[HELD])
{
    if (sizeof(T) == 4 && c.passes > 1 && wide && size % 4 == 0) { // the same for all threads
#pragma unroll
        for (int i = 0; i < HELD / 4; i++) {
            const int at = (i * c.threads + t) * 4;
            if (!active) break;
            const float4 f = at < size ? *reinterpret_cast<const float4 *>(x + at) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            float *to = row + padded_at(at);
            to[0] = f.x, to[1] = f.y, to[2] = f.z, to[3] = f.w;
        }
        __syncthreads();
#pragma unroll
        for (int e = 0; e < HELD; e++) v[e] = active ? row[padded_at(t * HELD) + e] : 0.0f;
        return;
    }
    if (active) {
        load_row(x, t * HELD, size, wide, v);
    } else {
#pragma unroll
        for (int e = 0; e < HELD; e++) v[e] = 0.0f;
    }
}

// Bytes of a number that is written as T.
template <typename T> struct writer;
template <> struct writer<float> {
    static __device__ __forceinline__ uint32_t bits(float x) { return __float_as_uint(x); }
};
template <> struct writer<half_bits<false>> {
    static __device__ __forceinline__ uint32_t bits(float x) { return f16_from_f32(x); }
};
template <> struct writer<half_bits<true>> {
    static __device__ __forceinline__ uint32_t bits(float x) { return bf16_pair(x, 0.0f); }
};
template <> struct writer<int8_t> {
    static __device__ __forceinline__ uint32_t bits(float x) { return (uint32_t)__float2int_rn(x) & 0xffu; }
};

// COUNT values (a power of two up to 32) to consecutive places of `to`, which is aligned to their bytes up to 16.
template <typename T, int COUNT> __device__ __forceinline__ void store_run(T *to, const float *v)
{
    constexpr int BYTES = COUNT * (int)sizeof(T), PER_WORD = 4 / (int)sizeof(T);
    if constexpr (BYTES > 16) {
        store_run<T, COUNT / 2>(to, v);
        store_run<T, COUNT / 2>(to + COUNT / 2, v + COUNT / 2);
    } else if constexpr (BYTES >= 4) {
        uint32_t word[BYTES / 4];
#pragma unroll
        for (int i = 0; i < BYTES / 4; i++) {
            word[i] = 0;
            if constexpr (std::is_same<T, half_bits<false>>::value) {
                word[i] = f16_pair(v[2 * i], v[2 * i + 1]);
            } else if constexpr (std::is_same<T, half_bits<true>>::value) {
                word[i] = bf16_pair(v[2 * i], v[2 * i + 1]);
            } else {
#pragma unroll
                for (int j = 0; j < PER_WORD; j++) word[i] |= writer<T>::bits(v[PER_WORD * i + j]) << (8 * (int)sizeof(T) * j);
            }
        }
        if constexpr (BYTES == 16) *reinterpret_cast<uint4 *>(to) = make_uint4(word[0], word[1], word[2], word[3]);
        if constexpr (BYTES == 8) *reinterpret_cast<uint2 *>(to) = make_uint2(word[0], word[1]);
        if constexpr (BYTES == 4) *reinterpret_cast<uint32_t *>(to) = word[0];
    } else {
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            uint32_t bits = writer<T>::bits(v[i]);
            if constexpr (sizeof(T) == 1) *reinterpret_cast<uint8_t *>(to + i) = (uint8_t)bits;
            if constexpr (sizeof(T) == 2) *reinterpret_cast<uint16_t *>(to + i) = (uint16_t)bits;
        }
    }
}

template <typename T, int WIDTH> __device__ __forceinline__ void store_runs(T *row, const place &p, const float (&v)[HELD])
{
#pragma unroll
    for (int e = 0; e < HELD; e += 1 << WIDTH) store_run<T, 1 << WIDTH>(row + p.base + (e >> WIDTH) * p.step, v + e);
}

template <typename T> __device__ __forceinline__ void store_row(T *row, const place &p, int padded, const float (&v)[HELD])
{
    if (p.width == 5 && p.base + HELD > padded) { // a last block of 16
        store_run<T, 16>(row + p.base, v);
        return;
    }
    switch (p.width) {
    case 0: store_runs<T, 0>(row, p, v); break;
    case 1: store_runs<T, 1>(row, p, v); break;
    case 2: store_runs<T, 2>(row, p, v); break;
    case 3: store_runs<T, 3>(row, p, v); break;
    case 4: store_runs<T, 4>(row, p, v); break;
    default: store_runs<T, 5>(row, p, v); break;
    }
}

// int8 rounding of a row: kernels.def, quantize_i8. *inverse is what to multiply by, 0 where all becomes 0.
__device__ __forceinline__ float i8_scale(uint32_t largest, float *inverse)
{
    const float amax = __uint_as_float(largest);
    *inverse = 0.0f;
    if (!(amax >= 0x1p-118f) || isinf(amax)) return amax < 1.0f ? 0.0f : __uint_as_float(0x7fc00000u);
    *inverse = __fdiv_rn(127.0f, amax);
    return __fdiv_rn(amax, 127.0f);
}

// The largest of `largest` over the threads of a row, all of the warp where `whole`, into shared[slot].
__device__ __forceinline__ void row_max(uint32_t largest, bool whole, bool active, uint32_t *shared)
{
    if (whole) {
        largest = __reduce_max_sync(0xffffffffu, largest);
        if (active && threadIdx.x % 32 == 0) atomicMax(shared, largest);
    } else if (active) {
        atomicMax(shared, largest);
    }
}
__device__ __forceinline__ void row_sum(int sum, bool whole, bool active, int *shared)
{
    if (whole) {
        sum = __reduce_add_sync(0xffffffffu, sum);
        if (active && threadIdx.x % 32 == 0) atomicAdd(shared, sum);
    } else if (active) {
        atomicAdd(shared, sum);
    }
}

inline cut cut_rows(const cuda_rotation *r, size_t rows)
{
    cut c;
    c.threads = (int)div_up(r->padded, HELD);
    c.rows = c.threads >= 128 ? 1 : 128 / c.threads;
    if ((size_t)c.rows > rows) c.rows = (int)rows;
    const int log2 = r->log2[0]; // descending
    c.passes = log2 > 10 ? 3 : log2 > 5 ? 2 : 1;
    c.shared = c.passes > 1 ? (size_t)c.threads * (HELD + 1) : 0;
    return c;
}

} // namespace

#endif
