#include "kernels/x86/avx512/vector.h"

#include "kernels/draw.h"

_Static_assert(LANES <= WALSH_REACH_LANES, "stores of a whole vector");

/* walsh_smaller */
static inline vec bits_smaller(vec a, vec b)
{
    const __m512i magnitude = _mm512_and_si512(_mm512_castps_si512(a), _mm512_set1_epi32(INT32_MAX));
    return _mm512_castsi512_ps(_mm512_min_epi32(magnitude, _mm512_castps_si512(b)));
}

static inline vec power_of_two(vec k)
{
    return _mm512_castsi512_ps(
        _mm512_slli_epi32(_mm512_add_epi32(_mm512_cvttps_epi32(k), _mm512_set1_epi32(127)), 23));
}

struct mass_sum {
    __m512i low, high;
};

static inline struct mass_sum sum_of_none(void)
{
    return (struct mass_sum){_mm512_setzero_si512(), _mm512_setzero_si512()};
}

static inline void sum_add(struct mass_sum *sum, vec decay)
{
    const vec mass = _mm512_mul_ps(decay, _mm512_set1_ps((float)WALSH_WHOLE_MASS));
    sum->low = _mm512_add_epi64(sum->low, _mm512_cvttps_epi64(_mm512_castps512_ps256(mass)));
    sum->high = _mm512_add_epi64(sum->high, _mm512_cvttps_epi64(_mm512_extractf32x8_ps(mass, 1)));
}

static inline uint64_t sum_whole(const struct mass_sum *sum)
{
    return (uint64_t)_mm512_reduce_add_epi64(_mm512_add_epi64(sum->low, sum->high));
}

static inline unsigned lanes_up_to(vec depth, vec limit)
{
    return _mm512_cmp_ps_mask(depth, limit, _CMP_LE_OQ);
}

static inline size_t keep_lanes(struct walsh_reach *out, size_t count, size_t first, unsigned lanes,
                                vec depth, vec decay)
{
    if (lanes == 0) return count;
    const __m512i ids =
        _mm512_add_epi32(_mm512_set1_epi32((int32_t)first),
                         _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
    const __mmask16 m = (__mmask16)lanes;
    _mm512_storeu_si512(out->ids + count, _mm512_maskz_compress_epi32(m, ids));
    _mm512_storeu_ps(out->depth + count, _mm512_maskz_compress_ps(m, depth));
    _mm512_storeu_ps(out->decay + count, _mm512_maskz_compress_ps(m, decay));
    return count + (size_t)__builtin_popcount(lanes);
}

#include "kernels/x86/draw.inc"

/* walsh_logit_order */
static inline __m512i order_of(vec logits)
{
    const __m512i bits = _mm512_castps_si512(_mm512_add_ps(logits, _mm512_setzero_ps()));
    return _mm512_xor_si512(bits, _mm512_srli_epi32(_mm512_srai_epi32(bits, 31), 1));
}

void walsh_logit_range_avx512(const float *logits, size_t n, int32_t *most, int32_t *least)
{
    __m512i high = _mm512_set1_epi32(INT32_MIN), low = _mm512_set1_epi32(INT32_MAX);
    size_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        const __m512i order = order_of(vec_load(logits + i));
        high = _mm512_max_epi32(high, order);
        low = _mm512_min_epi32(low, order);
    }
    if (i < n) {
        const __mmask16 m = first_lanes(n - i);
        const __m512i order = order_of(vec_load_part(logits + i, n - i));
        high = _mm512_mask_max_epi32(high, m, high, order);
        low = _mm512_mask_min_epi32(low, m, low, order);
    }
    *most = _mm512_reduce_max_epi32(high);
    *least = _mm512_reduce_min_epi32(low);
}
