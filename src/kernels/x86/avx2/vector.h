/* x86/avx2: the vector of 8 floats that the files x86/NAME.inc are written on. */
#ifndef WALSH_KERNELS_X86_AVX2_VECTOR_H
#define WALSH_KERNELS_X86_AVX2_VECTOR_H

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define VECTOR_NAME(kernel) walsh_##kernel##_avx2

typedef __m256 vec;
enum { LANES = 8, LANES_LOG = 3, REGISTERS = 16 };

/* All bits in the first n <= 8 lanes. */
static inline __m256i first_lanes(size_t n)
{
    static const int32_t window[16] = {-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0};
    return _mm256_loadu_si256((const __m256i *)(const void *)(window + 8 - n));
}

static inline vec vec_zero(void)
{
    return _mm256_setzero_ps();
}
static inline vec vec_set(float x)
{
    return _mm256_set1_ps(x);
}
static inline vec vec_load(const float *p)
{
    return _mm256_loadu_ps(p);
}
static inline vec vec_load_part(const float *p, size_t n)
{
    return _mm256_maskload_ps(p, first_lanes(n));
}
static inline void vec_store(float *p, vec x)
{
    _mm256_storeu_ps(p, x);
}
static inline void vec_store_part(float *p, size_t n, vec x)
{
    _mm256_maskstore_ps(p, first_lanes(n), x);
}
/* Lanes from n on become y's. */
static inline vec vec_keep(vec x, size_t n, vec y)
{
    return _mm256_blendv_ps(y, x, _mm256_castsi256_ps(first_lanes(n)));
}

/* 8 binary16 numbers at any address; the first n < 8 of them. */
static inline vec vec_load_f16(const void *p)
{
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
}
static inline vec vec_load_part_f16(const void *p, size_t n)
{
    uint16_t part[8] = {0};
    memcpy(part, p, n * sizeof *part);
    return vec_load_f16(part);
}

/* 8 pairs of bfloat16 numbers: the first and the second of each. */
static inline void vec_load_bf16_pairs(const void *p, vec *first, vec *second)
{
    const __m256i w = _mm256_loadu_si256((const __m256i *)p);
    *first = _mm256_castsi256_ps(_mm256_slli_epi32(w, 16));
    *second = _mm256_castsi256_ps(_mm256_and_si256(w, _mm256_set1_epi32((int)0xffff0000u)));
}

static inline vec vec_add(vec a, vec b)
{
    return _mm256_add_ps(a, b);
}
static inline vec vec_sub(vec a, vec b)
{
    return _mm256_sub_ps(a, b);
}
static inline vec vec_mul(vec a, vec b)
{
    return _mm256_mul_ps(a, b);
}
static inline vec vec_div(vec a, vec b)
{
    return _mm256_div_ps(a, b);
}
static inline vec vec_fma(vec a, vec b, vec c)
{
    return _mm256_fmadd_ps(a, b, c);
}
/* The larger; b where a is NaN. */
static inline vec vec_max(vec a, vec b)
{
    return _mm256_max_ps(a, b);
}
static inline vec vec_min(vec a, vec b)
{
    return _mm256_min_ps(a, b);
}
static inline vec vec_round(vec x)
{
    return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
/* x * 2^n for integral n in [-250, 250], in two exact-or-last factors, so that results below 2^-126 do not
 * vanish. */
static inline vec vec_scale(vec x, vec n)
{
    __m256i whole = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(whole, 1),
            rest = _mm256_sub_epi32(whole, half);
    const __m256i bias = _mm256_set1_epi32(127);
    vec a = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, bias), 23));
    vec b = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23));
    return vec_mul(vec_mul(x, a), b);
}

static inline float vec_sum(vec x)
{
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
static inline float vec_largest(vec x)
{
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}

/* Bits of magnitudes, which order like them, with Inf and NaN on top. */
typedef __m256i vec_bits;
static inline vec_bits vec_bits_zero(void)
{
    return _mm256_setzero_si256();
}
/* The larger of m and |x|, lane by lane. */
static inline vec_bits vec_bits_larger(vec_bits m, vec x)
{
    return _mm256_max_epu32(m, _mm256_and_si256(_mm256_set1_epi32(0x7fffffff), _mm256_castps_si256(x)));
}
static inline uint32_t vec_bits_largest(vec_bits v)
{
    __m128i m = _mm_max_epu32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    m = _mm_max_epu32(m, _mm_shuffle_epi32(m, 0x4e));
    m = _mm_max_epu32(m, _mm_shuffle_epi32(m, 0xb1));
    return (uint32_t)_mm_cvtsi128_si32(m);
}

/* quantize_i8 behind its first half: `largest` are the bits of the largest |x|. */
float walsh_round_i8_avx2(int8_t *q, int32_t *sum, const float *x, size_t n, uint32_t largest);

/* Butterflies of stride 1, 2, 4 within the register: x * (+1 or -1 in the upper lanes) + the partner, which
 * is exactly (a + b, a - b) in one rounding. */
static inline vec vec_butterfly_lanes(vec x)
{
    const vec s1 = _mm256_setr_ps(1, -1, 1, -1, 1, -1, 1, -1);
    const vec s2 = _mm256_setr_ps(1, 1, -1, -1, 1, 1, -1, -1);
    const vec s4 = _mm256_setr_ps(1, 1, 1, 1, -1, -1, -1, -1);
    x = _mm256_fmadd_ps(x, s1, _mm256_permute_ps(x, 0xb1));
    x = _mm256_fmadd_ps(x, s2, _mm256_permute_ps(x, 0x4e));
    return _mm256_fmadd_ps(x, s4, _mm256_permute2f128_ps(x, x, 1));
}

/* Lane i: the sum of v[i]'s lanes, by the same tree of additions for every i. */
static inline vec vec_sums(const vec v[8])
{
    vec two[4], four[2];
    for (int i = 0; i < 4; i++)
        two[i] = _mm256_add_ps(_mm256_unpacklo_ps(v[2 * i], v[2 * i + 1]),
                               _mm256_unpackhi_ps(v[2 * i], v[2 * i + 1]));
    for (int i = 0; i < 2; i++) {
        __m256d a = _mm256_castps_pd(two[2 * i]), b = _mm256_castps_pd(two[2 * i + 1]);
        four[i] = _mm256_add_ps(_mm256_castpd_ps(_mm256_unpacklo_pd(a, b)),
                                _mm256_castpd_ps(_mm256_unpackhi_pd(a, b)));
    }
    return _mm256_add_ps(_mm256_permute2f128_ps(four[0], four[1], 0x20),
                         _mm256_permute2f128_ps(four[0], four[1], 0x31));
}

#endif
