/* Decode a block of a stage (formats/e8p_planes.h: a pair of rows by 256 columns) into nibbles, in registers.
 *
 * The four bit planes of 64 codes are four vectors, one byte per code. Interleaved so that the 8 plane bytes
 * of an even row's code and of the odd row's code beside it share a quadword, one GF2P8AFFINEQB with the
 * identity as its data transposes each quadword as an 8 x 8 bit matrix: byte i then holds coordinate i of
 * both codes, the even row's nibble low, the odd row's high. */
#ifndef WALSH_KERNELS_X86_VNNI_E8P_BLOCK_H
#define WALSH_KERNELS_X86_VNNI_E8P_BLOCK_H

#include <immintrin.h>

#include <stdbool.h>

#include "formats/e8p_planes.h"
#include "kernels/x86/stage_term.h"

#ifndef INLINE
#define INLINE static inline __attribute__((always_inline))
#endif

/* GF2P8AFFINEQB: bit i of a result byte is the parity of (matrix byte 7-i AND the data byte). */
#define MATRIX_EVEN 0xfe02040810204080u   /* bits 1..7; bit 0 their parity */
#define MATRIX_PARITY 0xffffffffffffffffu /* every bit the byte's parity */
#define MATRIX_SIGNS 0x010204081020407fu  /* bits 0..6; bit 7 their parity */
#define MATRIX_BIT7 0x8080808080808080u   /* every bit the byte's bit 7 */
#define DATA_IDENTITY 0x8040201008040201u /* as data: transposes the matrix that it is applied to */

/* Lookups in registers. */
struct e8p_lookup {
    __m512i ones[4]; /* E8P: 64 labels each */
    __m512i twos;    /* by the low 4 bits, for labels below 128 */
};
struct e81b_lookup {
    __m512i plane[3][2]; /* bits 1, 2 and the complement of bit 3, of labels 0..63 and 64..127 */
};

INLINE __m512i quad(uint64_t x)
{
    return _mm512_set1_epi64((long long)x);
}

INLINE struct e8p_lookup e8p_lookup(const struct walsh_plane_tables *t)
{
    struct e8p_lookup l;
    for (int i = 0; i < 4; i++) l.ones[i] = _mm512_load_si512(t->ones + 64 * i);
    l.twos = _mm512_broadcast_i32x4(_mm_set_epi64x((long long)0x8040201008040201u, 0));
    return l;
}

INLINE struct e81b_lookup e81b_lookup(const struct walsh_plane_tables *t)
{
    struct e81b_lookup l;
    for (int i = 0; i < 3; i++) {
        for (int half = 0; half < 2; half++) l.plane[i][half] = _mm512_load_si512(t->e81b[i] + 64 * half);
    }
    for (int half = 0; half < 2; half++)
        l.plane[2][half] = _mm512_xor_si512(l.plane[2][half], _mm512_set1_epi8(-1));
    return l;
}

/* Planes of the nibble's bits 3..0, bits 3 and 0 complemented -> m[t]: columns 64t..64t+63 in order. */
INLINE void e8p_transpose(__m512i not3, __m512i bit2, __m512i bit1, __m512i not0, __m512i m[4])
{
    const __m512i identity = quad(DATA_IDENTITY);
    __m512i high_low = _mm512_unpacklo_epi8(not3, bit2), high_high = _mm512_unpackhi_epi8(not3, bit2);
    __m512i low_low = _mm512_unpacklo_epi8(bit1, not0), low_high = _mm512_unpackhi_epi8(bit1, not0);
    m[0] = _mm512_gf2p8affine_epi64_epi8(identity, _mm512_unpacklo_epi16(high_low, low_low), 0x99);
    m[1] = _mm512_gf2p8affine_epi64_epi8(identity, _mm512_unpackhi_epi16(high_low, low_low), 0x99);
    m[2] = _mm512_gf2p8affine_epi64_epi8(identity, _mm512_unpacklo_epi16(high_high, low_high), 0x99);
    m[3] = _mm512_gf2p8affine_epi64_epi8(identity, _mm512_unpackhi_epi16(high_high, low_high), 0x99);
}

INLINE void e8p_block(const struct e8p_lookup *l, const uint8_t *block, __m512i m[4])
{
    __m512i label = _mm512_load_si512(block), signs = _mm512_load_si512(block + 64);
    __m512i even = _mm512_gf2p8affine_epi64_epi8(signs, quad(MATRIX_EVEN), 0);
    __m512i parity = _mm512_gf2p8affine_epi64_epi8(signs, quad(MATRIX_PARITY), 0);
    __m512i low = _mm512_permutex2var_epi8(l->ones[0], label, l->ones[1]);
    __m512i high = _mm512_permutex2var_epi8(l->ones[2], label, l->ones[3]);
    __m512i ones = _mm512_mask_mov_epi8(low, _mm512_movepi8_mask(label), high);
    __m512i twos = _mm512_shuffle_epi8(l->twos, label);
    __m512i sign =
        _mm512_ternarylogic_epi64(even, ones, twos, 0xf0 ^ (0xcc & 0x55)); /* even ^ (ones & ~twos) */
    e8p_transpose(sign, _mm512_xor_si512(sign, twos), even, parity, m);
}

INLINE void e81b_block(const struct e81b_lookup *l, const uint8_t *block, __m512i m[4])
{
    __m512i label = _mm512_load_si512(block);
    __mmask64 halves = _mm512_movepi8_mask(label); /* ±1/2: u = 3 or 5 */
    __m512i bit1 = _mm512_gf2p8affine_epi64_epi8(label, quad(MATRIX_SIGNS), 0);
    __m512i bit2 = _mm512_gf2p8affine_epi64_epi8(label, quad(MATRIX_SIGNS), 0xff);
    __m512i not0 = _mm512_gf2p8affine_epi64_epi8(label, quad(MATRIX_BIT7), 0xff);
    __m512i sparse1 = _mm512_permutex2var_epi8(l->plane[0][0], label, l->plane[0][1]);
    __m512i sparse2 = _mm512_permutex2var_epi8(l->plane[1][0], label, l->plane[1][1]);
    __m512i sparse3 = _mm512_permutex2var_epi8(l->plane[2][0], label, l->plane[2][1]);
    e8p_transpose(_mm512_mask_mov_epi8(sparse3, halves, _mm512_set1_epi8(-1)),
                  _mm512_mask_mov_epi8(sparse2, halves, bit2), _mm512_mask_mov_epi8(sparse1, halves, bit1),
                  not0, m);
}

/* Both kinds of stage behind one call; `kind` is constant. */
struct stage_lookup {
    struct e8p_lookup e8p;
    struct e81b_lookup e81b;
};

INLINE struct stage_lookup stage_lookup(enum walsh_stage_kind kind)
{
    const struct walsh_plane_tables *t = walsh_plane_tables();
    if (kind == WALSH_STAGE_E8P) return (struct stage_lookup){.e8p = e8p_lookup(t)};
    return (struct stage_lookup){.e81b = e81b_lookup(t)};
}

INLINE void stage_block(enum walsh_stage_kind kind, const struct stage_lookup *l, const uint8_t *block,
                        __m512i m[4])
{
    if (kind == WALSH_STAGE_E8P)
        e8p_block(&l->e8p, block, m);
    else
        e81b_block(&l->e81b, block, m);
}

/* What a prefill product multiplies by, plane by plane: stages, or two of them as one. Bytes u >= 0 of a plane
 * stand for scale * (factor u - offset). */
struct plane_source {
    enum walsh_stage_kind kind; /* merged: of the second stage */
    const uint8_t *data[2];
    struct stage_term term;
    __m512i second; /* merged: by the second stage's nibble, what is added to 16 u0 modulo 256 */
};
struct prefill_planes {
    unsigned count;
    bool merged;
    struct plane_source plane[WALSH_MAX_STAGES];
};

/* Merged bytes are p + 128 = 16 u0 - 120 + second + 128. */
static inline void prefill_planes(const struct walsh_weights *w, struct prefill_planes *out)
{
    struct walsh_merged_stages merged;
    out->merged = walsh_stages_merge(w, &merged);
    out->count = out->merged ? 1 : w->stages;
    for (unsigned k = 0; k < out->count; k++)
        out->plane[k] = (struct plane_source){
            w->stage[k].kind, {w->stage[k].data, NULL}, stage_term(w, k), _mm512_setzero_si512()};
    if (!out->merged) return;
    const __m128i second = _mm_loadu_si128((const __m128i *)(const void *)merged.second);
    out->plane[0] = (struct plane_source){w->stage[1].kind,
                                          {w->stage[0].data, w->stage[1].data},
                                          {1, 128, merged.scale},
                                          _mm512_broadcast_i32x4(_mm_add_epi8(second, _mm_set1_epi8(8)))};
}

/* Two stages' nibbles of a pair of rows (even low, odd high) -> bytes of the merged plane. */
INLINE __m512i merge_even(const struct plane_source *s, __m512i m0, __m512i m1)
{
    const __m512i low = _mm512_set1_epi8(15), high = _mm512_set1_epi8((char)0xf0);
    return _mm512_add_epi8(_mm512_and_si512(_mm512_slli_epi16(m0, 4), high),
                           _mm512_shuffle_epi8(s->second, _mm512_and_si512(m1, low)));
}

INLINE __m512i merge_odd(const struct plane_source *s, __m512i m0, __m512i m1)
{
    const __m512i low = _mm512_set1_epi8(15), high = _mm512_set1_epi8((char)0xf0);
    return _mm512_add_epi8(_mm512_and_si512(m0, high),
                           _mm512_shuffle_epi8(s->second, _mm512_and_si512(_mm512_srli_epi16(m1, 4), low)));
}

/* Rows [row, row + 16) of plane block `block` as bytes: tile[16][256] nibbles. `exist` rows exist (an even
 * number of them is read), the rest of the tile is left as it is. */
INLINE void stage_tile(enum walsh_stage_kind kind, const struct stage_lookup *l, const uint8_t *data,
                       size_t blocks, size_t row, size_t exist, size_t block, uint8_t *tile)
{
    const __m512i low = _mm512_set1_epi8(15);
    for (size_t pair = 0; 2 * pair < exist; pair++) {
        __m512i m[4];
        stage_block(kind, l, data + ((row / 2 + pair) * blocks + block) * walsh_stage_block(kind), m);
        for (unsigned t = 0; t < 4; t++) {
            _mm512_store_si512(tile + 2 * pair * WALSH_PLANE_COLUMNS + 64 * t, _mm512_and_si512(m[t], low));
            _mm512_store_si512(tile + (2 * pair + 1) * WALSH_PLANE_COLUMNS + 64 * t,
                               _mm512_and_si512(_mm512_srli_epi16(m[t], 4), low));
        }
    }
}

/* The same of two stages merged; `kind` is the second's. */
INLINE void merged_tile(enum walsh_stage_kind kind, const struct stage_lookup *first,
                        const struct stage_lookup *second, const struct plane_source *from, size_t blocks,
                        size_t row, size_t exist, size_t block, uint8_t *tile)
{
    for (size_t pair = 0; 2 * pair < exist; pair++) {
        const size_t at = (row / 2 + pair) * blocks + block;
        __m512i m0[4], m1[4];
        stage_block(WALSH_STAGE_E8P, first, from->data[0] + at * walsh_stage_block(WALSH_STAGE_E8P), m0);
        stage_block(kind, second, from->data[1] + at * walsh_stage_block(kind), m1);
        for (unsigned t = 0; t < 4; t++) {
            uint8_t *to = tile + 2 * pair * WALSH_PLANE_COLUMNS + 64 * t;
            _mm512_store_si512(to, merge_even(from, m0[t], m1[t]));
            _mm512_store_si512(to + WALSH_PLANE_COLUMNS, merge_odd(from, m0[t], m1[t]));
        }
    }
}

#endif
