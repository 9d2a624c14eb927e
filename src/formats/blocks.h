/* formats/blocks: the run-time layout of weights whose columns share scales in groups (MXFP4, NVFP4, MXFP8,
 * FP8, int8, int4), and the scalar access to it. May use base, rotation.
 *
 * Rows come in tiles of 16, so that a vector lane is an output: a product needs no sum across lanes, and a
 * vector of scales serves a group. Within a tile, columns follow one another; a word of 32 bits holds a row's
 * next 8 codes of 4 bits or 4 codes of 8 bits:
 *   data    [tiles][padded cols / 8 or 4][16 rows] words, 64-byte aligned. 4 bits: nibble 2b of a word is its
 *           column b, nibble 2b + 1 its column 4 + b (b in 0..3), so that the low nibbles of the bytes are four
 *           consecutive columns, and the high nibbles the next four. 8 bits: byte b is column b.
 *   scales  [tiles][groups][16 rows], elements of block.scale, 64-byte aligned
 *   zeros   [tiles][groups][16 rows] bytes, 64-byte aligned
 * Rows are padded to 16, columns to 32 (WALSH_BLOCK_COLUMNS) with code 0 and scale 0 (E8M0: byte 0); products
 * multiply padding columns by activations that are zero. groups = cols / group, rounded up; group 0: 1. */
#ifndef WALSH_FORMATS_BLOCKS_H
#define WALSH_FORMATS_BLOCKS_H

#include "base/memory.h"
#include "base/scalar.h"
#include "formats/weights.h"

#define WALSH_BLOCK_ROWS 16
#define WALSH_BLOCK_COLUMNS 32
/* The most columns of a matrix: a decoded tile fits the scratch of the products. A loader refuses more. */
#define WALSH_BLOCK_MAX_COLUMNS 49152u

static inline unsigned walsh_code_bits(enum walsh_code code)
{
    return code == WALSH_CODE_E2M1 || code == WALSH_CODE_U4 ? 4 : 8;
}
static inline size_t walsh_scale_bytes(enum walsh_scale scale)
{
    return scale == WALSH_SCALE_F32 ? 4 : scale == WALSH_SCALE_BF16 ? 2 : 1;
}
static inline size_t walsh_block_tiles(const struct walsh_weights *w)
{
    return walsh_div_up(w->rows, WALSH_BLOCK_ROWS);
}
static inline size_t walsh_block_groups(const struct walsh_weights *w)
{
    return w->block.group ? walsh_div_up(w->cols, w->block.group) : 1;
}
/* Columns of a word; words of a tile's row. */
static inline size_t walsh_block_word_columns(const struct walsh_weights *w)
{
    return 32 / walsh_code_bits(w->block.code);
}
static inline size_t walsh_block_words(const struct walsh_weights *w)
{
    return walsh_round_up(w->cols, WALSH_BLOCK_COLUMNS) / walsh_block_word_columns(w);
}
/* Elements of data in words, of scales, and of zeros. */
static inline size_t walsh_block_data_words(const struct walsh_weights *w)
{
    return walsh_block_tiles(w) * walsh_block_words(w) * WALSH_BLOCK_ROWS;
}
static inline size_t walsh_block_scale_count(const struct walsh_weights *w)
{
    return walsh_block_tiles(w) * walsh_block_groups(w) * WALSH_BLOCK_ROWS;
}
/* Place of a row's group among the scales and zeros. */
static inline size_t walsh_block_group_at(const struct walsh_weights *w, size_t row, size_t group)
{
    return (row / WALSH_BLOCK_ROWS * walsh_block_groups(w) + group) * WALSH_BLOCK_ROWS +
           row % WALSH_BLOCK_ROWS;
}
static inline size_t walsh_block_group_of(const struct walsh_weights *w, size_t col)
{
    return w->block.group ? col / w->block.group : 0;
}

/* --- the loader's side --- */

/* Rows of one tile, from the way that checkpoints store codes, into `data`: code [r] of the tile's rows
 * stands at codes + r * row_bytes; two codes of 4 bits per byte, the low nibble first, or a byte each. Every
 * byte is XORed with `flip` (0x80 turns signed integers into U8 with zero 128; else 0). Rows beyond w->rows
 * and columns beyond w->cols become 0. Only format, rows, cols and block of w are read. */
void walsh_block_pack_codes(const struct walsh_weights *w, size_t tile, const uint8_t *codes,
                            size_t row_bytes, uint8_t flip, uint32_t *data);
/* One scale or zero point into its place; `bits` as the scale's type stores it. */
void walsh_block_put_scale(const struct walsh_weights *w, size_t row, size_t group, uint32_t bits,
                           void *scales);

/* --- reading back: the scalar definition of every kernel --- */

uint8_t walsh_block_code(const struct walsh_weights *w, size_t row, size_t col);
float walsh_block_scale(const struct walsh_weights *w, size_t row, size_t group);
int walsh_block_zero(const struct walsh_weights *w, size_t row, size_t group); /* 0 of the float codes */
/* What a code stands for; of U4 and U8 the integer before the zero point. */
float walsh_code_value(enum walsh_code code, uint8_t bits);
/* tensor_scale * (scale * (code - zero)), each operation rounded to f32. */
float walsh_block_weight(const struct walsh_weights *w, size_t row, size_t col);

/* The scales' value from its bits; is it a number (E8M0 255 and NaNs are not, Inf is not)? */
float walsh_scale_value(enum walsh_scale type, uint32_t bits);
bool walsh_scale_is_number(enum walsh_scale type, uint32_t bits);
/* Is a code a number? E4M3 and E5M2 have NaN, E5M2 Inf. */
bool walsh_code_is_number(enum walsh_code code, uint8_t bits);

#endif
