/* x86/avx512: the vector of 16 floats that the files x86/NAME.inc are written on. */
#ifndef WALSH_KERNELS_X86_AVX512_VECTOR_H
#define WALSH_KERNELS_X86_AVX512_VECTOR_H

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

#define VECTOR_NAME(kernel) walsh_##kernel##_avx512

typedef __m512 vec;
enum { LANES = 16, LANES_LOG = 4, REGISTERS = 32 };

/* The first n <= 16 lanes. */
static inline __mmask16 first_lanes(size_t n)
{
    return (__mmask16)((1u << n) - 1); /* of 16: all */
}

static inline vec vec_zero(void)
{
    return _mm512_setzero_ps();
}
static inline vec vec_set(float x)
{
    return _mm512_set1_ps(x);
}
static inline vec vec_load(const float *p)
{
    return _mm512_loadu_ps(p);
}
static inline vec vec_load_part(const float *p, size_t n)
{
    return _mm512_maskz_loadu_ps(first_lanes(n), p);
}
static inline void vec_store(float *p, vec x)
{
    _mm512_storeu_ps(p, x);
}
static inline void vec_store_part(float *p, size_t n, vec x)
{
    _mm512_mask_storeu_ps(p, first_lanes(n), x);
}
/* Lanes from n on become y's. */
static inline vec vec_keep(vec x, size_t n, vec y)
{
    return _mm512_mask_mov_ps(y, first_lanes(n), x);
}

/* 16 binary16 numbers at any address; the first n < 16 of them. */
static inline vec vec_load_f16(const void *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}
static inline vec vec_load_part_f16(const void *p, size_t n)
{
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first_lanes(n), p));
}

/* 16 pairs of bfloat16 numbers: the first and the second of each. */
static inline void vec_load_bf16_pairs(const void *p, vec *first, vec *second)
{
    const __m512i w = _mm512_loadu_si512(p);
    *first = _mm512_castsi512_ps(_mm512_slli_epi32(w, 16));
    *second = _mm512_castsi512_ps(_mm512_and_si512(w, _mm512_set1_epi32((int)0xffff0000u)));
}

static inline vec vec_add(vec a, vec b)
{
    return _mm512_add_ps(a, b);
}
static inline vec vec_sub(vec a, vec b)
{
    return _mm512_sub_ps(a, b);
}
static inline vec vec_mul(vec a, vec b)
{
    return _mm512_mul_ps(a, b);
}
static inline vec vec_div(vec a, vec b)
{
    return _mm512_div_ps(a, b);
}
static inline vec vec_fma(vec a, vec b, vec c)
{
    return _mm512_fmadd_ps(a, b, c);
}
/* The larger; b where a is NaN. */
static inline vec vec_max(vec a, vec b)
{
    return _mm512_max_ps(a, b);
}
static inline vec vec_min(vec a, vec b)
{
    return _mm512_min_ps(a, b);
}
static inline vec vec_round(vec x)
{
    return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
/* x * 2^n for integral n, rounded once. */
static inline vec vec_scale(vec x, vec n)
{
    return _mm512_scalef_ps(x, n);
}

static inline float vec_sum(vec x)
{
    return _mm512_reduce_add_ps(x);
}
static inline float vec_largest(vec x)
{
    return _mm512_reduce_max_ps(x);
}

/* Bits of magnitudes, which order like them, with Inf and NaN on top. */
typedef __m512i vec_bits;
static inline vec_bits vec_bits_zero(void)
{
    return _mm512_setzero_si512();
}
/* The larger of m and |x|, lane by lane. */
static inline vec_bits vec_bits_larger(vec_bits m, vec x)
{
    return _mm512_max_epu32(m, _mm512_and_si512(_mm512_set1_epi32(0x7fffffff), _mm512_castps_si512(x)));
}
static inline uint32_t vec_bits_largest(vec_bits m)
{
    return _mm512_reduce_max_epu32(m);
}

/* quantize_i8 behind its first half: `largest` are the bits of the largest |x|. */
float walsh_round_i8_avx512(int8_t *q, int32_t *sum, const float *x, size_t n, uint32_t largest);

/* Butterflies of stride 1, 2, 4, 8 within the register: x * (+1 or -1 in the upper lanes) + the partner,
 * which is exactly (a + b, a - b) in one rounding. */
static inline vec vec_butterfly_later_lanes(vec x) /* 2, 4, 8 */
{
    const vec s2 = _mm512_setr_ps(1, 1, -1, -1, 1, 1, -1, -1, 1, 1, -1, -1, 1, 1, -1, -1);
    const vec s4 = _mm512_setr_ps(1, 1, 1, 1, -1, -1, -1, -1, 1, 1, 1, 1, -1, -1, -1, -1);
    const vec s8 = _mm512_setr_ps(1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1, -1, -1, -1);
    x = _mm512_fmadd_ps(x, s2, _mm512_permute_ps(x, 0x4e));
    x = _mm512_fmadd_ps(x, s4, _mm512_shuffle_f32x4(x, x, 0xb1));
    return _mm512_fmadd_ps(x, s8, _mm512_shuffle_f32x4(x, x, 0x4e));
}
static inline vec vec_butterfly_lanes(vec x)
{
    const vec s1 = _mm512_setr_ps(1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1);
    return vec_butterfly_later_lanes(_mm512_fmadd_ps(x, s1, _mm512_permute_ps(x, 0xb1)));
}

/* Lane i: the sum of v[i]'s lanes, by the same tree of additions for every i. */
static inline vec vec_sums(const vec v[16])
{
    vec two[8], four[4];
    for (int i = 0; i < 8; i++)
        two[i] = _mm512_add_ps(_mm512_unpacklo_ps(v[2 * i], v[2 * i + 1]),
                               _mm512_unpackhi_ps(v[2 * i], v[2 * i + 1]));
    for (int i = 0; i < 4; i++) {
        __m512d a = _mm512_castps_pd(two[2 * i]), b = _mm512_castps_pd(two[2 * i + 1]);
        four[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)),
                                _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
    }
    vec low = _mm512_add_ps(_mm512_shuffle_f32x4(four[0], four[1], 0x88),
                            _mm512_shuffle_f32x4(four[0], four[1], 0xdd));
    vec high = _mm512_add_ps(_mm512_shuffle_f32x4(four[2], four[3], 0x88),
                             _mm512_shuffle_f32x4(four[2], four[3], 0xdd));
    return _mm512_add_ps(_mm512_shuffle_f32x4(low, high, 0x88), _mm512_shuffle_f32x4(low, high, 0xdd));
}

#endif
