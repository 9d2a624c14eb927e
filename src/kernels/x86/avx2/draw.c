#include "kernels/x86/avx2/vector.h"

#include "kernels/draw.h"

_Static_assert(LANES <= WALSH_REACH_LANES, "stores of a whole vector");

/* walsh_smaller */
static inline vec bits_smaller(vec a, vec b)
{
    const __m256i magnitude = _mm256_and_si256(_mm256_castps_si256(a), _mm256_set1_epi32(INT32_MAX));
    return _mm256_castsi256_ps(_mm256_min_epi32(magnitude, _mm256_castps_si256(b)));
}

static inline vec power_of_two(vec k)
{
    return _mm256_castsi256_ps(
        _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvttps_epi32(k), _mm256_set1_epi32(127)), 23));
}

/* There is no conversion to 64 bits: a mass is 2^16 high + low, both of 32 bits, and 128 of each fit into 32
 * bits. */
struct mass_sum {
    __m256i high, low, whole;
    unsigned added;
};

static inline struct mass_sum sum_of_none(void)
{
    const __m256i zero = _mm256_setzero_si256();
    return (struct mass_sum){zero, zero, zero, 0};
}

static inline __m256i widened(__m256i x)
{
    return _mm256_add_epi64(_mm256_cvtepu32_epi64(_mm256_castsi256_si128(x)),
                            _mm256_cvtepu32_epi64(_mm256_extracti128_si256(x, 1)));
}

static inline void sum_widen(struct mass_sum *sum)
{
    const __m256i mass = _mm256_add_epi64(_mm256_slli_epi64(widened(sum->high), 16), widened(sum->low));
    sum->whole = _mm256_add_epi64(sum->whole, mass);
    sum->high = sum->low = _mm256_setzero_si256();
    sum->added = 0;
}

static inline void sum_add(struct mass_sum *sum, vec decay)
{
    const vec mass = _mm256_mul_ps(decay, _mm256_set1_ps(0x1p23f)); /* of 2^16, at most 2^23 */
    const __m256i high = _mm256_cvttps_epi32(mass);
    const vec rest = _mm256_mul_ps(_mm256_sub_ps(mass, _mm256_cvtepi32_ps(high)), _mm256_set1_ps(0x1p16f));
    sum->high = _mm256_add_epi32(sum->high, high);
    sum->low = _mm256_add_epi32(sum->low, _mm256_cvttps_epi32(rest));
    if (++sum->added == 128) sum_widen(sum);
}

static inline uint64_t sum_whole(struct mass_sum *sum)
{
    uint64_t lanes[4];
    sum_widen(sum);
    _mm256_storeu_si256((__m256i *)(void *)lanes, sum->whole);
    return lanes[0] + lanes[1] + lanes[2] + lanes[3];
}

static inline unsigned lanes_up_to(vec depth, vec limit)
{
    return (unsigned)_mm256_movemask_ps(_mm256_cmp_ps(depth, limit, _CMP_LE_OQ));
}

static inline size_t keep_lanes(struct walsh_reach *out, size_t count, size_t first, unsigned lanes,
                                vec depth, vec decay)
{
    if (lanes == 0) return count;
    const __m256i ids =
        _mm256_add_epi32(_mm256_set1_epi32((int32_t)first), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    /* a byte of ones for each lane takes the numbers of those that stay, which then stand at the front */
    const uint64_t stay = _pdep_u64(lanes, 0x0101010101010101u) * 0xff;
    const __m256i places =
        _mm256_cvtepu8_epi32(_mm_cvtsi64_si128((long long)_pext_u64(0x0706050403020100u, stay)));
    _mm256_storeu_si256((__m256i *)(void *)(out->ids + count), _mm256_permutevar8x32_epi32(ids, places));
    _mm256_storeu_ps(out->depth + count, _mm256_permutevar8x32_ps(depth, places));
    _mm256_storeu_ps(out->decay + count, _mm256_permutevar8x32_ps(decay, places));
    return count + (size_t)__builtin_popcount(lanes);
}

#include "kernels/x86/draw.inc"

/* walsh_logit_order */
static inline __m256i order_of(vec logits)
{
    const __m256i bits = _mm256_castps_si256(_mm256_add_ps(logits, _mm256_setzero_ps()));
    return _mm256_xor_si256(bits, _mm256_srli_epi32(_mm256_srai_epi32(bits, 31), 1));
}

void walsh_logit_range_avx2(const float *logits, size_t n, int32_t *most, int32_t *least)
{
    int32_t orders[2][LANES];
    __m256i high = _mm256_set1_epi32(INT32_MIN), low = _mm256_set1_epi32(INT32_MAX);
    size_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        const __m256i order = order_of(vec_load(logits + i));
        high = _mm256_max_epi32(high, order);
        low = _mm256_min_epi32(low, order);
    }
    _mm256_storeu_si256((__m256i *)(void *)orders[0], high);
    _mm256_storeu_si256((__m256i *)(void *)orders[1], low);
    *most = INT32_MIN;
    *least = INT32_MAX;
    for (size_t lane = 0; lane < LANES; lane++) {
        if (orders[0][lane] > *most) *most = orders[0][lane];
        if (orders[1][lane] < *least) *least = orders[1][lane];
    }
    for (; i < n; i++) {
        const int32_t order = walsh_logit_order(logits[i]);
        if (order > *most) *most = order;
        if (order < *least) *least = order;
    }
}
