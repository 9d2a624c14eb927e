/* Eight vectors at once; the algorithm is in x86/encode_lanes.h. */
#include <immintrin.h>

#include "formats/e8p.h"
#include "kernels/table.h"

enum { LANES = 8 };
typedef __m256i lanes;
typedef __m256i mask; /* all bits of a lane or none */

static inline lanes lanes_set(int x)
{
    return _mm256_set1_epi32(x);
}
static inline lanes lanes_add(lanes a, lanes b)
{
    return _mm256_add_epi32(a, b);
}
static inline lanes lanes_sub(lanes a, lanes b)
{
    return _mm256_sub_epi32(a, b);
}
static inline lanes lanes_abs(lanes a)
{
    return _mm256_abs_epi32(a);
}
static inline lanes lanes_min(lanes a, lanes b)
{
    return _mm256_min_epi32(a, b);
}
static inline lanes lanes_max(lanes a, lanes b)
{
    return _mm256_max_epi32(a, b);
}
static inline lanes lanes_and(lanes a, lanes b)
{
    return _mm256_and_si256(a, b);
}
static inline lanes lanes_or(lanes a, lanes b)
{
    return _mm256_or_si256(a, b);
}
static inline lanes lanes_xor(lanes a, lanes b)
{
    return _mm256_xor_si256(a, b);
}
static inline lanes lanes_left(lanes a, int n)
{
    return _mm256_sll_epi32(a, _mm_cvtsi32_si128(n));
}
static inline lanes lanes_right(lanes a, int n)
{
    return _mm256_srl_epi32(a, _mm_cvtsi32_si128(n));
}
static inline lanes lanes_right_signed(lanes a, int n)
{
    return _mm256_sra_epi32(a, _mm_cvtsi32_si128(n));
}
static inline lanes lanes_select(mask m, lanes a, lanes b)
{
    return _mm256_blendv_epi8(b, a, m);
}
static inline lanes lanes_keep(mask m, lanes a)
{
    return _mm256_and_si256(m, a);
}
static inline mask lanes_less(lanes a, lanes b)
{
    return _mm256_cmpgt_epi32(b, a);
}
static inline mask lanes_equal(lanes a, lanes b)
{
    return _mm256_cmpeq_epi32(a, b);
}
/* The 32 bits at byte offset index[lane] of table. */
static inline lanes lanes_gather(const void *table, lanes index)
{
    return _mm256_i32gather_epi32(table, index, 1);
}

static inline mask mask_none(void)
{
    return _mm256_setzero_si256();
}
static inline mask mask_all(void)
{
    return _mm256_set1_epi32(-1);
}
static inline mask mask_and(mask a, mask b)
{
    return _mm256_and_si256(a, b);
}
static inline mask mask_or(mask a, mask b)
{
    return _mm256_or_si256(a, b);
}
static inline mask mask_xor(mask a, mask b)
{
    return _mm256_xor_si256(a, b);
}
static inline mask mask_andnot(mask a, mask b)
{
    return _mm256_andnot_si256(b, a);
} /* a and not b */
static inline mask mask_select(mask m, mask a, mask b)
{
    return _mm256_blendv_epi8(b, a, m);
}
static inline unsigned mask_bits(mask m)
{
    return (unsigned)_mm256_movemask_ps(_mm256_castsi256_ps(m));
}
static inline mask lanes_nonzero(lanes a)
{
    return mask_andnot(mask_all(), lanes_equal(a, lanes_set(0)));
}

/* r[i] lane j <- r[j] lane i. */
static inline void transpose8(__m256 r[8])
{
    __m256 t[8], u[8];
    for (int i = 0; i < 4; i++) {
        t[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
    }
    for (int i = 0; i < 8; i += 4)
        for (int k = 0; k < 2; k++) {
            u[i + 2 * k] = _mm256_shuffle_ps(t[i + k], t[i + k + 2], 0x44);
            u[i + 2 * k + 1] = _mm256_shuffle_ps(t[i + k], t[i + k + 2], 0xee);
        }
    for (int i = 0; i < 4; i++) {
        r[i] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x20);
        r[i + 4] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x31);
    }
}

/* u[i] = coordinate i of eight vectors on the grid; returns the lanes that are beyond it. */
static inline mask lanes_load_transposed(const float *x, lanes u[8])
{
    __m256 r[8];
    for (int j = 0; j < 8; j++) r[j] = _mm256_loadu_ps(x + 8 * j);
    transpose8(r);
    const __m256 limit = _mm256_set1_ps(WALSH_E8P_GRID_LIMIT),
                 scale = _mm256_set1_ps(1 << WALSH_E8P_GRID_BITS);
    const __m256 sign = _mm256_set1_ps(-0.0f);
    mask near = mask_all();
    for (int c = 0; c < 8; c++) {
        __m256 within = _mm256_cmp_ps(_mm256_andnot_ps(sign, r[c]), limit, _CMP_LE_OQ);
        near = mask_and(near, _mm256_castps_si256(within));
        __m256 rounded =
            _mm256_round_ps(_mm256_mul_ps(r[c], scale), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        u[c] = _mm256_cvtps_epi32(rounded);
    }
    return mask_andnot(mask_all(), near);
}

/* w = eight vectors from their coordinates, times scale. */
static inline void lanes_store_transposed(float *w, const lanes v[8], float scale)
{
    __m256 r[8];
    for (int c = 0; c < 8; c++) r[c] = _mm256_mul_ps(_mm256_cvtepi32_ps(v[c]), _mm256_set1_ps(scale));
    transpose8(r);
    for (int j = 0; j < 8; j++) _mm256_storeu_ps(w + 8 * j, r[j]);
}

static inline __m128i narrow16(lanes v)
{
    return _mm_packus_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
}

static inline void lanes_store_u16(uint16_t *out, lanes v)
{
    _mm_storeu_si128((__m128i *)(void *)out, narrow16(v));
}

static inline void lanes_store_u8(uint8_t *out, lanes v)
{
    __m128i half = narrow16(v);
    _mm_storel_epi64((__m128i *)(void *)out, _mm_packus_epi16(half, half));
}

#include "kernels/x86/encode_lanes.h"

void walsh_e8p_encode_f32_avx2(uint16_t *codes, float *w, const float *x, size_t count)
{
    e8p_encode(codes, w, x, count);
}

void walsh_e81b_encode_f32_avx2(uint8_t *codes, float *w, const float *x, size_t count)
{
    e81b_encode(codes, w, x, count);
}
