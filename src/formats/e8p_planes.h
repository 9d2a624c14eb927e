/* formats/e8p_planes: the run-time layouts of E8P and E81B code matrices, repacked once at load.
 *
 * A weight is stored as bit planes so that a vector kernel turns 64 codes into 512 nibbles with a few table
 * lookups and one 8x8 bit transpose per 8 codes. The nibble u of a weight is
 *   E8P:   u = (4w + 15)/2 in 2..13, so 4w = 2u - 15
 *   E81B:  u = 2w + 4 in 0..8, so 2w = u - 4
 * and a product with integers q is  sum 4w q = 2 sum u q - 15 sum q,  sum 2w q = sum u q - 4 sum q.
 *
 * Codes of a pair of rows and 256 columns (32 groups of 8) make a block: 64 label bytes, and for E8P 64 sign
 * bytes T behind them. Group g of the pair's row r stands at byte 16*((g>>1)&3) + 4*(g>>3) + 2*(g&1) + (r
 * even ? 1 : 0) of either, which is the order that the kernels' interleaving undoes for free. Blocks of a
 * pair follow one another, then the next pair's. A last block that is narrower is padded with code 0; the
 * product's activations are zero there.
 *
 * E8P label: the magnitudes |v| - 1/2 in {0, 1, 2} of one of 256 patterns. 64 patterns have one 2 (at i) and
 * at most one 1 (at j; j = i where there is none), zeros elsewhere: label 8 | i | j << 4. The other 192 are
 * plain sets of ones and take the remaining labels. With a and b the planes (8 bits, one per coordinate) of
 * the ones and the twos: b = 1 << i for labels with bit 7 clear and bit 3 set, else 0;   a = ones[label] &
 * ~b. E8P signs: with s the plane of the negative coordinates, s ^ a always has even parity (the lattice's
 * points have an even sum). T is s ^ a with bit 0 flipped where the code's quarter shift is -1/4; p, the
 * parity of T, gives it back: u's bits 3..0 = (not s, s ^ b, s ^ a, not p).
 *
 * E81B label: bit 7 set: all coordinates ±1/2; bits 0-6 the signs of coordinates 0-6, coordinate 7 has their
 * parity. Bit 7 clear: the 128 sparse points in the order of their codes; u's bits 3, 2, 1 by table, bit 0 is
 * clear. */
#ifndef WALSH_FORMATS_E8P_PLANES_H
#define WALSH_FORMATS_E8P_PLANES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "formats/e8p.h"
#include "formats/weights.h"

#define WALSH_PLANE_COLUMNS                                                                                  \
    256 /* columns of a block; activations of a product are padded with zeros to this */
/* The most columns of a stage whose int8 product fits int32 in every kernel: two rows' nibbles in one byte,
 * at most 13*17, times |q| <= 127. A loader refuses more. */
#define WALSH_STAGE_MAX_COLUMNS 65536u

/* What decoding a label needs. Plane bytes: bit i belongs to coordinate i. Constant. */
struct walsh_plane_tables {
    _Alignas(64) uint8_t ones[256];    /* E8P: a = ones[label] & ~b */
    _Alignas(64) uint8_t e81b[3][128]; /* E81B, labels below 128: planes of u's bits 1, 2, 3 */
    _Alignas(64) uint8_t
        nibbles[256][8]; /* E8P: (8 + 2 m) ^ (14 where m == 1): xor 14 where s ^ a, or 1 where not p */
    _Alignas(64) uint8_t e81b_nibbles[256][8]; /* E81B: u of each coordinate */
    uint8_t label[256], pattern[256];          /* E8P: abs byte -> label and back */
    uint8_t e81b_label[256], e81b_code[256];
};
/* Built once (thread-safe). */
const struct walsh_plane_tables *walsh_plane_tables(void);

/* Place of group g (0..31 within its block) of a row in the 64 bytes of a block. */
static inline unsigned walsh_plane_position(unsigned g, unsigned row)
{
    return 16 * ((g >> 1) & 3) + 4 * (g >> 3) + 2 * (g & 1) + (row & 1 ? 0 : 1);
}
/* Bytes of one block; blocks of a row pair. */
static inline size_t walsh_stage_block(enum walsh_stage_kind kind)
{
    return kind == WALSH_STAGE_E8P ? 128 : 64;
}
static inline size_t walsh_stage_blocks(size_t cols)
{
    return (cols + WALSH_PLANE_COLUMNS - 1) / WALSH_PLANE_COLUMNS;
}

/* Bytes of the run-time layout of [rows][cols] weights; rows a multiple of 2, cols of 8. */
size_t walsh_stage_bytes(enum walsh_stage_kind kind, uint32_t rows, uint32_t cols);
/* Plain row-major codes -> run-time layout. E8P: codes u16 [rows][cols/8]; E81B: codes u8 [rows][cols/8].
 * Rows [row_begin, row_end) only, both even, so that threads can share the work. `packed` is the whole stage,
 * 64-byte aligned. */
void walsh_e8p_pack(uint32_t cols, const uint16_t *codes, uint32_t row_begin, uint32_t row_end, void *packed);
void walsh_e81b_pack(uint32_t cols, const uint8_t *codes, uint32_t row_begin, uint32_t row_end, void *packed);
/* The code of row r, group g (8 columns), back from the layout: the scalar reference reads weights through
 * these. */
uint16_t walsh_e8p_unpack(uint32_t cols, const void *packed, uint32_t r, uint32_t g);
uint8_t walsh_e81b_unpack(uint32_t cols, const void *packed, uint32_t r, uint32_t g);

/* Two stages as one plane of int8, for products of many rows: with v0 = 4 w0 and v1 = 4 w1 (E81B: 2 w1) the
 * integers of the stages, W = scale (8 v0 + 8 r v1) exactly, r the ratio of the stages' steps, and the plane is
 * p = 8 v0 + second[u1], second[u] = rint(8 r v1). Its error, 1/28 of a step of the first stage (uniform), is
 * 0.8% of the weights' deviation, where 4 bits leave 7% of quantization error; |p| <= 127. */
struct walsh_merged_stages {
    int8_t second[16]; /* by the nibble u1; 0 where a nibble does not occur */
    float scale;       /* of p: stage 0's scale times 1/32 */
};
/* False where W is not two stages of which the second is so much finer that p fits. */
bool walsh_stages_merge(const struct walsh_weights *w, struct walsh_merged_stages *out);

#endif
