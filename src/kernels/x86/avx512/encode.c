/* Sixteen vectors at once; the algorithm is in x86/encode_lanes.h. */
#include <immintrin.h>

#include "formats/e8p.h"
#include "kernels/table.h"

enum { LANES = 16 };
typedef __m512i lanes;
typedef __mmask16 mask;

static inline lanes lanes_set(int x)
{
    return _mm512_set1_epi32(x);
}
static inline lanes lanes_add(lanes a, lanes b)
{
    return _mm512_add_epi32(a, b);
}
static inline lanes lanes_sub(lanes a, lanes b)
{
    return _mm512_sub_epi32(a, b);
}
static inline lanes lanes_abs(lanes a)
{
    return _mm512_abs_epi32(a);
}
static inline lanes lanes_min(lanes a, lanes b)
{
    return _mm512_min_epi32(a, b);
}
static inline lanes lanes_max(lanes a, lanes b)
{
    return _mm512_max_epi32(a, b);
}
static inline lanes lanes_and(lanes a, lanes b)
{
    return _mm512_and_si512(a, b);
}
static inline lanes lanes_or(lanes a, lanes b)
{
    return _mm512_or_si512(a, b);
}
static inline lanes lanes_xor(lanes a, lanes b)
{
    return _mm512_xor_si512(a, b);
}
static inline lanes lanes_left(lanes a, int n)
{
    return _mm512_sll_epi32(a, _mm_cvtsi32_si128(n));
}
static inline lanes lanes_right(lanes a, int n)
{
    return _mm512_srl_epi32(a, _mm_cvtsi32_si128(n));
}
static inline lanes lanes_right_signed(lanes a, int n)
{
    return _mm512_sra_epi32(a, _mm_cvtsi32_si128(n));
}
static inline lanes lanes_select(mask m, lanes a, lanes b)
{
    return _mm512_mask_blend_epi32(m, b, a);
}
static inline lanes lanes_keep(mask m, lanes a)
{
    return _mm512_maskz_mov_epi32(m, a);
}
static inline mask lanes_less(lanes a, lanes b)
{
    return _mm512_cmplt_epi32_mask(a, b);
}
static inline mask lanes_equal(lanes a, lanes b)
{
    return _mm512_cmpeq_epi32_mask(a, b);
}
static inline mask lanes_nonzero(lanes a)
{
    return _mm512_test_epi32_mask(a, a);
}
/* The 32 bits at byte offset index[lane] of table. */
static inline lanes lanes_gather(const void *table, lanes index)
{
    return _mm512_i32gather_epi32(index, table, 1);
}

static inline mask mask_none(void)
{
    return 0;
}
static inline mask mask_all(void)
{
    return 0xffff;
}
static inline mask mask_and(mask a, mask b)
{
    return _kand_mask16(a, b);
}
static inline mask mask_or(mask a, mask b)
{
    return _kor_mask16(a, b);
}
static inline mask mask_xor(mask a, mask b)
{
    return _kxor_mask16(a, b);
}
static inline mask mask_andnot(mask a, mask b)
{
    return _kandn_mask16(b, a);
} /* a and not b */
static inline mask mask_select(mask m, mask a, mask b)
{
    return mask_or(mask_and(m, a), mask_andnot(b, m));
}
static inline unsigned mask_bits(mask m)
{
    return _cvtmask16_u32(m);
}

/* Four vectors' registers to columns: out[c] has in lane 4q+j element c of 128-bit part q of r[j]. */
static inline void transpose4(const __m512 r[4], __m512 out[4])
{
    __m512 a = _mm512_unpacklo_ps(r[0], r[1]), b = _mm512_unpackhi_ps(r[0], r[1]);
    __m512 c = _mm512_unpacklo_ps(r[2], r[3]), d = _mm512_unpackhi_ps(r[2], r[3]);
    out[0] = _mm512_shuffle_ps(a, c, 0x44);
    out[1] = _mm512_shuffle_ps(a, c, 0xee);
    out[2] = _mm512_shuffle_ps(b, d, 0x44);
    out[3] = _mm512_shuffle_ps(b, d, 0xee);
}

/* u[i] = coordinate i of sixteen vectors on the grid; returns the lanes that are beyond it. */
static inline mask lanes_load_transposed(const float *x, lanes u[8])
{
    __m512 r[8], low[4], high[4];
    for (int j = 0; j < 8; j++) { /* vectors j and j+4, then 8+j and 12+j, so that lanes come out in order */
        const float *first = x + 8 * (j < 4 ? j : j + 4);
        r[j] = _mm512_insertf32x8(_mm512_castps256_ps512(_mm256_loadu_ps(first)), _mm256_loadu_ps(first + 32),
                                  1);
    }
    transpose4(r, low);
    transpose4(r + 4, high);
    const __m512 limit = _mm512_set1_ps(WALSH_E8P_GRID_LIMIT),
                 scale = _mm512_set1_ps(1 << WALSH_E8P_GRID_BITS);
    mask near = mask_all();
    for (int c = 0; c < 8; c++) {
        __m512 v = c < 4 ? _mm512_shuffle_f32x4(low[c], high[c], 0x88)
                         : _mm512_shuffle_f32x4(low[c - 4], high[c - 4], 0xdd);
        near = _mm512_mask_cmp_ps_mask(near, _mm512_abs_ps(v), limit, _CMP_LE_OQ);
        u[c] =
            _mm512_cvt_roundps_epi32(_mm512_mul_ps(v, scale), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    }
    return _knot_mask16(near);
}

/* w = sixteen vectors from their coordinates, times scale. */
static inline void lanes_store_transposed(float *w, const lanes v[8], float scale)
{
    __m512 f[8], low[4], high[4];
    for (int c = 0; c < 8; c++) f[c] = _mm512_mul_ps(_mm512_cvtepi32_ps(v[c]), _mm512_set1_ps(scale));
    transpose4(f, low); /* lane 4q+c of low[j]: coordinate c of vector 4q+j */
    transpose4(f + 4, high);
    for (int j = 0; j < 4; j++) {
        __m512 first = _mm512_shuffle_f32x4(low[j], high[j], 0x44),
               second = _mm512_shuffle_f32x4(low[j], high[j], 0xee);
        first = _mm512_shuffle_f32x4(first, first, 0xd8); /* vector j, then 4+j */
        second = _mm512_shuffle_f32x4(second, second, 0xd8);
        _mm256_storeu_ps(w + 8 * j, _mm512_castps512_ps256(first));
        _mm256_storeu_ps(w + 8 * (j + 4), _mm512_extractf32x8_ps(first, 1));
        _mm256_storeu_ps(w + 8 * (j + 8), _mm512_castps512_ps256(second));
        _mm256_storeu_ps(w + 8 * (j + 12), _mm512_extractf32x8_ps(second, 1));
    }
}

static inline void lanes_store_u16(uint16_t *out, lanes v)
{
    _mm256_storeu_si256((__m256i *)(void *)out, _mm512_cvtepi32_epi16(v));
}

static inline void lanes_store_u8(uint8_t *out, lanes v)
{
    _mm_storeu_si128((__m128i *)(void *)out, _mm512_cvtepi32_epi8(v));
}

#include "kernels/x86/encode_lanes.h"

void walsh_e8p_encode_f32_avx512(uint16_t *codes, float *w, const float *x, size_t count)
{
    e8p_encode(codes, w, x, count);
}

void walsh_e81b_encode_f32_avx512(uint8_t *codes, float *w, const float *x, size_t count)
{
    e81b_encode(codes, w, x, count);
}
