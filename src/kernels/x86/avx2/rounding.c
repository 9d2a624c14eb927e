/* Conversions between f32 and the narrow types. */
#include <math.h>
#include <string.h>

#include "base/scalar.h"
#include "kernels/table.h"
#include "kernels/x86/avx2/vector.h"

static uint32_t largest_magnitude(const float *x, size_t n)
{
    vec_bits largest = vec_bits_zero();
    size_t i = 0;
    for (; i + LANES <= n; i += LANES) largest = vec_bits_larger(largest, vec_load(x + i));
    if (i < n) largest = vec_bits_larger(largest, vec_load_part(x + i, n - i));
    return vec_bits_largest(largest);
}

/* The low bytes of 8 numbers in [-128, 127]. */
static inline __m128i bytes(__m256i whole)
{
    __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
    return _mm_packs_epi16(words, words);
}

float walsh_quantize_i8_avx2(int8_t *q, int32_t *sum, const float *x, size_t n)
{
    return walsh_round_i8_avx2(q, sum, x, n, largest_magnitude(x, n));
}

float walsh_round_i8_avx2(int8_t *q, int32_t *sum, const float *x, size_t n, uint32_t largest)
{
    const float amax = walsh_float_from_bits(largest);
    *sum = 0;
    if (!(amax >= 0x1p-118f) || isinf(amax)) {
        memset(q, 0, n);
        return amax < 1 ? 0.0f : NAN;
    }
    vec inverse = vec_set(127.0f / amax);
    __m256i sums = _mm256_setzero_si256();
    size_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        __m256i whole = _mm256_cvtps_epi32(vec_mul(vec_load(x + i), inverse));
        sums = _mm256_add_epi32(sums, whole);
        _mm_storel_epi64((__m128i *)(void *)(q + i), bytes(whole));
    }
    if (i < n) {
        __m256i whole = _mm256_cvtps_epi32(vec_mul(vec_load_part(x + i, n - i), inverse));
        sums = _mm256_add_epi32(sums, whole);
        __m128i last = bytes(whole);
        memcpy(q + i, &last, n - i);
    }
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1));
    *sum = _mm_cvtsi128_si32(s);
    return amax / 127.0f;
}

/* As walsh_bf16_from_f32: the bits plus 0x7fff plus the last bit that stays; a NaN keeps its upper half, made
 * quiet. */
static inline __m128i bf16(vec x)
{
    __m256i bits = _mm256_castps_si256(x), upper = _mm256_srli_epi32(bits, 16);
    __m256i round =
        _mm256_add_epi32(_mm256_and_si256(upper, _mm256_set1_epi32(1)), _mm256_set1_epi32(0x7fff));
    __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, round), 16);
    __m256i quiet = _mm256_or_si256(upper, _mm256_set1_epi32(0x40));
    __m256i y = _mm256_blendv_epi8(rounded, quiet, _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q)));
    return _mm_packus_epi32(_mm256_castsi256_si128(y), _mm256_extracti128_si256(y, 1));
}

void walsh_bf16_from_f32_avx2(uint16_t *y, const float *x, size_t n)
{
    size_t i = 0;
    for (; i + LANES <= n; i += LANES) _mm_storeu_si128((__m128i *)(void *)(y + i), bf16(vec_load(x + i)));
    if (i < n) {
        __m128i last = bf16(vec_load_part(x + i, n - i));
        memcpy(y + i, &last, (n - i) * sizeof *y);
    }
}

/* min and max return their second operand for a NaN. */
static inline __m128i f16(vec x)
{
    x = _mm256_max_ps(vec_set(-65504.0f), _mm256_min_ps(vec_set(65504.0f), x));
    return _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

void walsh_f16_from_f32_avx2(uint16_t *y, const float *x, size_t n)
{
    size_t i = 0;
    for (; i + LANES <= n; i += LANES) _mm_storeu_si128((__m128i *)(void *)(y + i), f16(vec_load(x + i)));
    if (i < n) {
        __m128i last = f16(vec_load_part(x + i, n - i));
        memcpy(y + i, &last, (n - i) * sizeof *y);
    }
}

static inline vec from_bf16(__m128i bits)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}

void walsh_f32_from_bf16_avx2(float *y, const void *x, size_t n)
{
    const uint8_t *from = x;
    size_t i = 0;
    for (; i + LANES <= n; i += LANES)
        vec_store(y + i, from_bf16(_mm_loadu_si128((const __m128i *)(const void *)(from + 2 * i))));
    if (i < n) {
        __m128i last = _mm_setzero_si128();
        memcpy(&last, from + 2 * i, 2 * (n - i));
        vec_store_part(y + i, n - i, from_bf16(last));
    }
}

void walsh_f32_from_f16_avx2(float *y, const void *x, size_t n)
{
    const uint8_t *from = x;
    size_t i = 0;
    for (; i + LANES <= n; i += LANES) vec_store(y + i, vec_load_f16(from + 2 * i));
    if (i < n) vec_store_part(y + i, n - i, vec_load_part_f16(from + 2 * i, n - i));
}
