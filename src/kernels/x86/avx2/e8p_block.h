/* Decode a block of a stage (formats/e8p_planes.h: a pair of rows by 256 columns) into bytes of nibbles,
 * without GFNI: the magnitudes of a code come from a table of 8 bytes per label, its sign byte is spread to 8
 * bytes by a shuffle. */
#ifndef WALSH_KERNELS_X86_AVX2_E8P_BLOCK_H
#define WALSH_KERNELS_X86_AVX2_E8P_BLOCK_H

#include <immintrin.h>
#include <string.h>

#include "formats/e8p_planes.h"

#ifndef INLINE
#define INLINE static inline __attribute__((always_inline))
#endif

INLINE long long table_entry(const uint8_t table[256][8], uint8_t label)
{
    long long entry;
    memcpy(&entry, table[label], sizeof entry);
    return entry;
}

/* The table's bytes of four codes that follow one another in a row: two in each of two words. */
INLINE __m256i table_entries(const uint8_t table[256][8], const uint8_t *first, const uint8_t *second)
{
    return _mm256_set_epi64x(table_entry(table, second[2]), table_entry(table, second[0]),
                             table_entry(table, first[2]), table_entry(table, first[0]));
}

/* The words at first and second, one in each half. */
INLINE __m256i two_words(const uint8_t *first, const uint8_t *second)
{
    int32_t a, b;
    memcpy(&a, first, sizeof a);
    memcpy(&b, second, sizeof b);
    return _mm256_set_m128i(_mm_cvtsi32_si128(b), _mm_cvtsi32_si128(a));
}

/* 64 sign bytes T -> s ^ a, and 1 where not p. */
INLINE void split_signs(const uint8_t *signs, uint8_t even[64], uint8_t not_p[64])
{
    const __m256i low = _mm256_set1_epi8(15), one = _mm256_set1_epi8(1);
    const __m256i parity =
        _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 1, 0, 1, 0, 0, 1, 1, 0, 0, 1, 0, 1, 1, 0));
    for (int half = 0; half < 64; half += 32) {
        __m256i t = _mm256_load_si256((const __m256i *)(const void *)(signs + half));
        __m256i p =
            _mm256_xor_si256(_mm256_shuffle_epi8(parity, _mm256_and_si256(t, low)),
                             _mm256_shuffle_epi8(parity, _mm256_and_si256(_mm256_srli_epi16(t, 4), low)));
        _mm256_store_si256((__m256i *)(void *)(even + half), _mm256_xor_si256(t, p));
        _mm256_store_si256((__m256i *)(void *)(not_p + half), _mm256_xor_si256(p, one));
    }
}

/* Nibbles of the even row, 256 bytes, at `even_row`, of the odd row at odd_row. 32-byte aligned. */
INLINE void stage_block(enum walsh_stage_kind kind, const struct walsh_plane_tables *t, const uint8_t *block,
                        uint8_t *even_row, uint8_t *odd_row)
{
    _Alignas(32) uint8_t even[64], not_p[64];
    const __m256i bits = _mm256_set1_epi64x((long long)0x8040201008040201u), flip = _mm256_set1_epi8(14);
    if (kind == WALSH_STAGE_E8P) split_signs(block + 64, even, not_p);
    for (unsigned n = 0; n < 8; n++) { /* 4 groups, 32 columns */
        unsigned first = 32 * (n & 1) + 4 * (n >> 1), second = first + 16;
        for (unsigned row = 0; row < 2; row++) {
            unsigned at = 1 - row; /* walsh_plane_position */
            uint8_t *to = (row == 0 ? even_row : odd_row) + 32 * n;
            if (kind == WALSH_STAGE_E81B) {
                __m256i u = table_entries(t->e81b_nibbles, block + first + at, block + second + at);
                _mm256_store_si256((__m256i *)(void *)to, u);
                continue;
            }
            const __m256i spread = _mm256_add_epi8(
                _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 2, 2, 2, 2, 2, 2, 2, 2)),
                _mm256_set1_epi8((char)at));
            __m256i u = table_entries(t->nibbles, block + first + at, block + second + at);
            __m256i sign = _mm256_shuffle_epi8(two_words(even + first, even + second), spread);
            __m256i coset = _mm256_shuffle_epi8(two_words(not_p + first, not_p + second), spread);
            sign = _mm256_cmpeq_epi8(_mm256_and_si256(sign, bits), bits);
            u = _mm256_or_si256(_mm256_xor_si256(u, _mm256_and_si256(sign, flip)), coset);
            _mm256_store_si256((__m256i *)(void *)to, u);
        }
    }
}

/* Rows [row, row + 16) of plane block `block`: tile[16][256]. */
INLINE void stage_tile(enum walsh_stage_kind kind, const struct walsh_plane_tables *t, const uint8_t *data,
                       size_t blocks, size_t row, size_t block, uint8_t *tile)
{
    for (size_t pair = 0; pair < 8; pair++) {
        uint8_t *to = tile + 2 * pair * WALSH_PLANE_COLUMNS;
        stage_block(kind, t, data + ((row / 2 + pair) * blocks + block) * walsh_stage_block(kind), to,
                    to + WALSH_PLANE_COLUMNS);
    }
}

#endif
