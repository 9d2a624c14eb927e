/* Conversions between f32 and the narrow types. */
#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "base/scalar.h"
#include "kernels/table.h"
#include "kernels/x86/avx512/vector.h"

float walsh_quantize_i8_avx512(int8_t *q, int32_t *sum, const float *x, size_t n)
{
    vec_bits a = vec_bits_zero(), b = a;
    size_t i = 0;
    for (; i + 2 * LANES <= n; i += 2 * LANES) {
        a = vec_bits_larger(a, vec_load(x + i));
        b = vec_bits_larger(b, vec_load(x + i + LANES));
    }
    for (; i + LANES <= n; i += LANES) a = vec_bits_larger(a, vec_load(x + i));
    if (i < n) a = vec_bits_larger(a, vec_load_part(x + i, n - i));
    return walsh_round_i8_avx512(q, sum, x, n, vec_bits_largest(_mm512_max_epu32(a, b)));
}

static inline __m512i whole(vec x, vec inverse)
{
    return _mm512_cvtps_epi32(vec_mul(x, inverse));
}

/* Four vectors become bytes by packs within 128 bits and one permutation, which takes half of what four
 * narrowing stores would; the sum of 64 bytes is that of their pairs and fours. */
float walsh_round_i8_avx512(int8_t *q, int32_t *sum, const float *x, size_t n, uint32_t largest)
{
    const float amax = walsh_float_from_bits(largest);
    *sum = 0;
    if (!(amax >= 0x1p-118f) || isinf(amax)) {
        memset(q, 0, n);
        return amax < 1 ? 0.0f : NAN;
    }
    const vec inverse = vec_set(127.0f / amax);
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15),
                  bytes = _mm512_set1_epi8(1), words = _mm512_set1_epi16(1);
    __m512i sums = _mm512_setzero_si512();
    size_t i = 0;
    for (; i + 4 * LANES <= n; i += 4 * LANES) {
        const __m512i low = _mm512_packs_epi32(whole(vec_load(x + i), inverse),
                                               whole(vec_load(x + i + LANES), inverse)),
                      high = _mm512_packs_epi32(whole(vec_load(x + i + 2 * LANES), inverse),
                                                whole(vec_load(x + i + 3 * LANES), inverse)),
                      packed = _mm512_packs_epi16(low, high);
        _mm512_storeu_si512(q + i, _mm512_permutexvar_epi32(order, packed));
        sums = _mm512_add_epi32(sums, _mm512_madd_epi16(_mm512_maddubs_epi16(bytes, packed), words));
    }
    for (; i < n; i += LANES) {
        const size_t left = n - i;
        const __mmask16 lanes = left < LANES ? first_lanes(left) : 0xffff;
        const __m512i v = whole(_mm512_maskz_loadu_ps(lanes, x + i), inverse);
        sums = _mm512_add_epi32(sums, v);
        _mm512_mask_cvtepi32_storeu_epi8(q + i, lanes, v);
    }
    *sum = _mm512_reduce_add_epi32(sums);
    return amax / 127.0f;
}

/* Two vectors are a group. */
void walsh_quantize_groups_i8_avx512(int8_t *q, float *scale, int32_t *sum, const float *x, size_t n)
{
    const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
    for (size_t k = 0; k < n; k += WALSH_ACTIVATION_GROUP) {
        const vec low = vec_load(x + k), high = vec_load(x + k + LANES);
        const __m512i largest = _mm512_max_epu32(_mm512_and_si512(magnitude, _mm512_castps_si512(low)),
                                                 _mm512_and_si512(magnitude, _mm512_castps_si512(high)));
        const uint32_t bits = _mm512_reduce_max_epu32(largest);
        float amax;
        memcpy(&amax, &bits, sizeof amax);
        const bool number = amax >= 0x1p-118f && !isinf(amax);
        const vec inverse = vec_set(number ? 127.0f / amax : 0);
        const __mmask16 lanes = number ? 0xffff : 0; /* NaN and Inf times 0 are not 0 */
        const __m512i a = _mm512_maskz_cvtps_epi32(lanes, vec_mul(low, inverse)),
                      b = _mm512_maskz_cvtps_epi32(lanes, vec_mul(high, inverse));
        _mm_storeu_si128((__m128i *)(void *)(q + k), _mm512_cvtepi32_epi8(a));
        _mm_storeu_si128((__m128i *)(void *)(q + k + LANES), _mm512_cvtepi32_epi8(b));
        sum[k / WALSH_ACTIVATION_SUM] = _mm512_reduce_add_epi32(a);
        sum[k / WALSH_ACTIVATION_SUM + 1] = _mm512_reduce_add_epi32(b);
        scale[k / WALSH_ACTIVATION_GROUP] = number ? amax / 127.0f : amax < 1 ? 0.0f : NAN;
    }
}

/* As walsh_bf16_from_f32: the bits plus 0x7fff plus the last bit that stays; a NaN keeps its upper half, made
 * quiet. */
static inline __m256i bf16(vec x)
{
    __m512i bits = _mm512_castps_si512(x), upper = _mm512_srli_epi32(bits, 16);
    __m512i round =
        _mm512_add_epi32(_mm512_and_si512(upper, _mm512_set1_epi32(1)), _mm512_set1_epi32(0x7fff));
    __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, round), 16);
    __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    return _mm512_cvtepi32_epi16(_mm512_mask_or_epi32(rounded, nan, upper, _mm512_set1_epi32(0x40)));
}

void walsh_bf16_from_f32_avx512(uint16_t *y, const float *x, size_t n)
{
    size_t i = 0;
    for (; i + LANES <= n; i += LANES) _mm256_storeu_si256((__m256i *)(void *)(y + i), bf16(vec_load(x + i)));
    if (i < n) _mm256_mask_storeu_epi16(y + i, first_lanes(n - i), bf16(vec_load_part(x + i, n - i)));
}

/* min and max return their second operand for a NaN. */
static inline __m256i f16(vec x)
{
    x = _mm512_max_ps(vec_set(-65504.0f), _mm512_min_ps(vec_set(65504.0f), x));
    return _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

void walsh_f16_from_f32_avx512(uint16_t *y, const float *x, size_t n)
{
    size_t i = 0;
    for (; i + LANES <= n; i += LANES) _mm256_storeu_si256((__m256i *)(void *)(y + i), f16(vec_load(x + i)));
    if (i < n) _mm256_mask_storeu_epi16(y + i, first_lanes(n - i), f16(vec_load_part(x + i, n - i)));
}

static inline vec from_bf16(__m256i bits)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

void walsh_f32_from_bf16_avx512(float *y, const void *x, size_t n)
{
    const uint8_t *from = x;
    size_t i = 0;
    for (; i + LANES <= n; i += LANES)
        vec_store(y + i, from_bf16(_mm256_loadu_si256((const __m256i *)(const void *)(from + 2 * i))));
    if (i < n)
        vec_store_part(y + i, n - i, from_bf16(_mm256_maskz_loadu_epi16(first_lanes(n - i), from + 2 * i)));
}

void walsh_f32_from_f16_avx512(float *y, const void *x, size_t n)
{
    const uint8_t *from = x;
    size_t i = 0;
    for (; i + LANES <= n; i += LANES) vec_store(y + i, vec_load_f16(from + 2 * i));
    if (i < n) vec_store_part(y + i, n - i, vec_load_part_f16(from + 2 * i, n - i));
}
