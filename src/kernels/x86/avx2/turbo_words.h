/* x86/avx2: 8 words of 32 bits, each a pair of 16-bit numbers, as x86/turbo.inc and x86/turbo_encode.inc use
 * them. */
#ifndef WALSH_KERNELS_X86_AVX2_TURBO_WORDS_H
#define WALSH_KERNELS_X86_AVX2_TURBO_WORDS_H

#include <string.h>

#include "formats/turbo.h"
#include "kernels/x86/avx2/vector.h"

typedef __m256i words;
typedef uint16_t halves __attribute__((vector_size(32)));
enum { MOST_BLOCKS = 1 }; /* rows at once */
static inline int blocks_at_once(unsigned bits)
{
    (void)bits;
    return 1;
}

static inline words words_zero(void)
{
    return _mm256_setzero_si256();
}
static inline words words_load(const uint8_t *p)
{
    return _mm256_loadu_si256((const __m256i *)(const void *)p);
}
/* Words from LANES 16-bit halves: the upper half starts at the half's bit 8. */
static inline words words_load_half(const uint8_t *p)
{
    __m256i x = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(const void *)p));
    return _mm256_or_si256(x, _mm256_slli_epi32(x, 8));
}
/* Both halves of each word shifted, without crossing. */
static inline words words_right(words x, unsigned n)
{
    return (words)((halves)x >> (uint16_t)n);
}
static inline words words_left(words x, unsigned n)
{
    return (words)((halves)x << (uint16_t)n);
}
static inline words words_down(words x, unsigned n)
{
    return _mm256_srl_epi16(x, _mm_cvtsi32_si128((int)n));
}
/* Each half: the bits of a where mask is set, else those of b. */
static inline words words_select(int mask, words a, words b)
{
    const __m256i m = _mm256_set1_epi16((short)mask);
    return _mm256_or_si256(_mm256_and_si256(m, a), _mm256_andnot_si256(m, b));
}
/* The pair at p in every word. */
static inline words words_pair(const int16_t *p)
{
    int32_t pair;
    memcpy(&pair, p, sizeof pair);
    return _mm256_set1_epi32(pair);
}
/* sum + a.low * b.low + a.high * b.high */
static inline words words_dot(words sum, words a, words b)
{
    return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b));
}
static inline vec words_to_f32(words x)
{
    return _mm256_cvtepi32_ps(x);
}
/* The low or the high halves, signed. */
static inline vec words_low_f32(words x)
{
    return _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(x, 16), 16));
}
static inline vec words_high_f32(words x)
{
    return _mm256_cvtepi32_ps(_mm256_srai_epi32(x, 16));
}

/* The levels of a codebook. Up to 4 bits: the low and the high bytes of 16 entries, repeated where the
 * codebook has fewer, so that a code's garbage bits above do not matter. Beyond: gathered from the codebook.
 */
struct levels {
    __m256i low, high;
    const int16_t *value;
    int mask;
};
static inline void levels_load(struct levels *t, const struct walsh_turbo_codebook *book, unsigned bits)
{
    (void)bits;
    uint8_t low[16], high[16];
    for (int i = 0; i < 16; i++) {
        int16_t value = book->value[i & (int)(book->levels - 1)];
        low[i] = (uint8_t)value;
        high[i] = (uint8_t)((uint16_t)value >> 8);
    }
    t->low = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)low));
    t->high = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)high));
    t->value = book->value;
    t->mask = (int)(book->levels - 1);
}
/* The levels of codes in the low bits of each half. */
static inline words levels_find(const struct levels *t, words code, unsigned bits)
{
    if (bits <= 4) { /* an index with its top bit set gives 0 */
        words x = _mm256_and_si256(code, _mm256_set1_epi16(15));
        words low = _mm256_shuffle_epi8(t->low, _mm256_or_si256(x, _mm256_set1_epi16((short)0x8000)));
        x = _mm256_or_si256(_mm256_slli_epi16(x, 8), _mm256_set1_epi16(0x0080));
        return _mm256_or_si256(low, _mm256_shuffle_epi8(t->high, x));
    }
    const __m256i mask = _mm256_set1_epi32(t->mask);
    /* 32 bits from each entry on: two bytes beyond the last one are still the codebook's */
    const int *table = (const int *)(const void *)t->value;
    __m256i low = _mm256_i32gather_epi32(table, _mm256_and_si256(code, mask), 2);
    __m256i high = _mm256_i32gather_epi32(table, _mm256_and_si256(_mm256_srli_epi32(code, 16), mask), 2);
    return _mm256_blend_epi16(low, _mm256_slli_epi32(high, 16), 0xaa);
}
/* 8 bits: of the low (0) or the high (1) byte of each half. */
static inline words levels_find_byte(const struct levels *t, words codes, unsigned which)
{
    return levels_find(t, which == 0 ? codes : _mm256_srli_epi16(codes, 8), 8);
}

/* weight * norm where weight is not 0 and the product is finite, else 0; *wrong gathers whether one was not
 * finite. */
static inline vec scaled_weight(vec weight, vec norm, int *wrong)
{
    vec some = _mm256_cmp_ps(weight, _mm256_setzero_ps(), _CMP_NEQ_UQ);
    vec u = _mm256_and_ps(_mm256_mul_ps(weight, norm), some);
    vec finite = _mm256_cmp_ps(_mm256_sub_ps(u, u), _mm256_setzero_ps(), _CMP_EQ_OQ);
    *wrong |= _mm256_movemask_ps(finite) ^ 0xff;
    return _mm256_and_ps(u, finite);
}
static inline vec vec_absolute(vec x)
{
    return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x);
}
static inline void store_i16(int16_t *p, vec x)
{
    __m256i i = _mm256_cvtps_epi32(x);
    _mm_storeu_si128((__m128i *)(void *)p,
                     _mm_packs_epi32(_mm256_castsi256_si128(i), _mm256_extracti128_si256(i, 1)));
}

/* The codes of LANES elements: `bits` steps down the codebook's tree. */
static inline words find_code(const struct walsh_turbo_codebook *book, vec y, unsigned bits)
{
    __m256i node = _mm256_set1_epi32(1);
    for (unsigned depth = 0; depth < bits; depth++) {
        vec above = _mm256_cmp_ps(_mm256_i32gather_ps(book->tree, node, 4), y, _CMP_LT_OQ);
        node = _mm256_sub_epi32(_mm256_add_epi32(node, node), _mm256_castps_si256(above));
    }
    return _mm256_sub_epi32(node, _mm256_set1_epi32((int)book->levels));
}
static inline void store_codes(uint8_t *p, words code)
{
    __m128i half = _mm_packs_epi32(_mm256_castsi256_si128(code), _mm256_extracti128_si256(code, 1));
    _mm_storel_epi64((__m128i *)(void *)p, _mm_packus_epi16(half, half));
}
/* The codes' entries of a table of 2^bits, at least 32, numbers. */
static inline vec look_up(const float *table, words code, unsigned bits)
{
    if (bits <= 3) return _mm256_permutevar8x32_ps(_mm256_loadu_ps(table), code);
    return _mm256_i32gather_ps(table, code, 4);
}

#endif
