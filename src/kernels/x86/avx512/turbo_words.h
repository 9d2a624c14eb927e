/* x86/avx512: 16 words of 32 bits, each a pair of 16-bit numbers, as x86/turbo.inc and x86/turbo_encode.inc
 * use them. Also compiled for VNNI and VBMI, which have a multiply-add and byte tables of their own. */
#ifndef WALSH_KERNELS_X86_AVX512_TURBO_WORDS_H
#define WALSH_KERNELS_X86_AVX512_TURBO_WORDS_H

#include <string.h>

#include "formats/turbo.h"
#include "kernels/x86/avx512/vector.h"

typedef __m512i words;
typedef uint16_t halves __attribute__((vector_size(64)));
/* Rows at once: as many as registers hold, to hide the latency of the multiply-adds and to share broadcast
 * operands; tables of more than 5 bits take registers too. */
enum { MOST_BLOCKS = 4 };
static inline int blocks_at_once(unsigned bits)
{
    return bits <= 4 ? 4 : 2;
}

static inline words words_zero(void)
{
    return _mm512_setzero_si512();
}
static inline words words_load(const uint8_t *p)
{
    return _mm512_loadu_si512(p);
}
/* Words from LANES 16-bit halves: the upper half starts at the half's bit 8. */
static inline words words_load_half(const uint8_t *p)
{
    __m512i x = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)p));
    return _mm512_or_si512(x, _mm512_slli_epi32(x, 8));
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
    return _mm512_srl_epi16(x, _mm_cvtsi32_si128((int)n));
}
/* Each half: the bits of a where mask is set, else those of b. */
static inline words words_select(int mask, words a, words b)
{
    return _mm512_ternarylogic_epi32(_mm512_set1_epi16((short)mask), a, b, 0xca);
}
/* The pair at p in every word. */
static inline words words_pair(const int16_t *p)
{
    int32_t pair;
    memcpy(&pair, p, sizeof pair);
    return _mm512_set1_epi32(pair);
}
/* sum + a.low * b.low + a.high * b.high */
static inline words words_dot(words sum, words a, words b)
{
#ifdef __AVX512VNNI__
    return _mm512_dpwssd_epi32(sum, a, b);
#else
    return _mm512_add_epi32(sum, _mm512_madd_epi16(a, b));
#endif
}
static inline vec words_to_f32(words x)
{
    return _mm512_cvtepi32_ps(x);
}
/* The low or the high halves, signed. */
static inline vec words_low_f32(words x)
{
    return _mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(x, 16), 16));
}
static inline vec words_high_f32(words x)
{
    return _mm512_cvtepi32_ps(_mm512_srai_epi32(x, 16));
}

/* The levels of a codebook. Up to 7 bits: 16-bit entries, repeated where a table has more than the codebook,
 * so that a code's garbage bits above do not matter. 8 bits: with VBMI the low bytes of all levels and the
 * high ones. */
struct levels {
    __m512i table[8];
};
static inline void levels_load(struct levels *t, const struct walsh_turbo_codebook *book, unsigned bits)
{
    const int tables = bits <= 5 ? 1 : bits == 6 ? 2 : bits == 7 ? 4 : 8;
    int16_t value[256];
    for (int i = 0; i < 32 * tables; i++) value[i] = book->value[i & ((1 << bits) - 1)];
#ifdef __AVX512VBMI__
    if (bits == 8) {
        uint8_t byte[2][256];
        for (int i = 0; i < 256; i++) {
            byte[0][i] = (uint8_t)value[i];
            byte[1][i] = (uint8_t)((uint16_t)value[i] >> 8);
        }
        for (int i = 0; i < 8; i++) t->table[i] = _mm512_loadu_si512(byte[i / 4] + i % 4 * 64);
        return;
    }
#endif
    for (int i = 0; i < tables; i++) t->table[i] = _mm512_loadu_si512(value + 32 * i);
}
/* The levels of codes in the low bits of each half. */
static inline words levels_find(const struct levels *t, words code, unsigned bits)
{
    if (bits <= 5) return _mm512_permutexvar_epi16(code, t->table[0]);
    words x = _mm512_permutex2var_epi16(t->table[0], code, t->table[1]);
    if (bits == 6) return x;
    const __mmask32 second = _mm512_test_epi16_mask(code, _mm512_set1_epi16(64));
    x = _mm512_mask_mov_epi16(x, second, _mm512_permutex2var_epi16(t->table[2], code, t->table[3]));
    if (bits == 7) return x;
    words y = _mm512_permutex2var_epi16(t->table[4], code, t->table[5]);
    y = _mm512_mask_mov_epi16(y, second, _mm512_permutex2var_epi16(t->table[6], code, t->table[7]));
    return _mm512_mask_mov_epi16(x, _mm512_test_epi16_mask(code, _mm512_set1_epi16(128)), y);
}
/* 8 bits: of the low (0) or the high (1) byte of each half. */
static inline words levels_find_byte(const struct levels *t, words codes, unsigned which)
{
#ifdef __AVX512VBMI__
    const __mmask64 upper = _mm512_movepi8_mask(codes), odd = 0xaaaaaaaaaaaaaaaa;
    __m512i low = _mm512_permutex2var_epi8(t->table[0], codes, t->table[1]);
    low = _mm512_mask_mov_epi8(low, upper, _mm512_permutex2var_epi8(t->table[2], codes, t->table[3]));
    __m512i high = _mm512_permutex2var_epi8(t->table[4], codes, t->table[5]);
    high = _mm512_mask_mov_epi8(high, upper, _mm512_permutex2var_epi8(t->table[6], codes, t->table[7]));
    return which == 0 ? _mm512_mask_mov_epi8(low, odd, _mm512_slli_epi16(high, 8))
                      : _mm512_mask_mov_epi8(_mm512_srli_epi16(low, 8), odd, high);
#else
    return levels_find(t, which == 0 ? codes : _mm512_srli_epi16(codes, 8), 8);
#endif
}

/* weight * norm where weight is not 0 and the product is finite, else 0; *wrong gathers whether one was not
 * finite. */
static inline vec scaled_weight(vec weight, vec norm, int *wrong)
{
    __mmask16 some = _mm512_cmp_ps_mask(weight, _mm512_setzero_ps(), _CMP_NEQ_UQ);
    vec u = _mm512_maskz_mul_ps(some, weight, norm);
    __mmask16 infinite = _mm512_fpclass_ps_mask(u, 0x99); /* NaN, infinities */
    *wrong |= infinite;
    return _mm512_mask_mov_ps(u, infinite, _mm512_setzero_ps());
}
static inline vec vec_absolute(vec x)
{
    return _mm512_abs_ps(x);
}
static inline void store_i16(int16_t *p, vec x)
{
    _mm256_storeu_si256((__m256i *)(void *)p, _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(x)));
}

/* The codes of LANES elements: `bits` steps down the codebook's tree. */
static inline words find_code(const struct walsh_turbo_codebook *book, vec y, unsigned bits)
{
    const float *tree = book->tree;
    __m512i node = _mm512_set1_epi32(1);
    for (unsigned depth = 0; depth < bits; depth++) {
        vec middle;
        if (depth < 4) {
            middle = _mm512_permutexvar_ps(node, _mm512_loadu_ps(tree));
        } else if (depth == 4) {
            middle = _mm512_permutexvar_ps(node, _mm512_loadu_ps(tree + 16));
        } else {
            const float *level = tree + (1u << depth);
            middle = _mm512_permutex2var_ps(_mm512_loadu_ps(level), node, _mm512_loadu_ps(level + 16));
            for (unsigned part = 1; part < 1u << (depth - 5); part++) {
                vec other = _mm512_permutex2var_ps(_mm512_loadu_ps(level + 32 * part), node,
                                                   _mm512_loadu_ps(level + 32 * part + 16));
                __mmask16 here = _mm512_cmpeq_epi32_mask(
                    _mm512_srli_epi32(node, 5), _mm512_set1_epi32((int)((1u << (depth - 5)) + part)));
                middle = _mm512_mask_mov_ps(middle, here, other);
            }
        }
        __mmask16 above = _mm512_cmp_ps_mask(middle, y, _CMP_LT_OQ);
        node = _mm512_add_epi32(node, node);
        node = _mm512_mask_add_epi32(node, above, node, _mm512_set1_epi32(1));
    }
    return _mm512_sub_epi32(node, _mm512_set1_epi32(1 << bits));
}
static inline void store_codes(uint8_t *p, words code)
{
    _mm_storeu_si128((__m128i *)(void *)p, _mm512_cvtepi32_epi8(code));
}
/* The codes' entries of a table of 2^bits, at least 32, numbers. */
static inline vec look_up(const float *table, words code, unsigned bits)
{
    if (bits <= 4) return _mm512_permutexvar_ps(code, _mm512_loadu_ps(table));
    if (bits == 5) return _mm512_permutex2var_ps(_mm512_loadu_ps(table), code, _mm512_loadu_ps(table + 16));
    return _mm512_i32gather_ps(code, table, 4);
}

#endif
