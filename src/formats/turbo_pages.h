/* formats/turbo_pages: where the codes and norms of a head's keys or values stand in a page of the cache, in
 * the order that the vector kernels read without unpacking to memory. May use base.
 *
 * A page of T tokens (a multiple of WALSH_TURBO_SPAN) holds for each head of one side T * dim * bits / 8
 * bytes of codes, then T binary16 norms: walsh_turbo_head_bytes, a multiple of 64. The size is that of the
 * single vectors, to the byte.
 *
 * Codes stand in rows of 64 bytes, 16 little-endian words of 32 bits, one per lane. A group of 32 codes per
 * lane takes `bits` rows. In a key page a lane is one of 16 tokens and a group 32 consecutive elements; in a
 * value page a lane is one of 16 consecutive elements and a group 32 consecutive tokens. So a kernel adds up
 * a key's elements, or a value's tokens, without leaving the lane. keys:   [T/16 blocks of tokens][dim/32
 * groups of elements] rows;  where dim is an odd multiple of 16, a half group last values: [dim/16 blocks of
 * elements][T/32 groups of tokens] rows Within a group the code's bits are split into planes of widths that
 * divide 16: 8 = 8, 7 = 4 + 2 + 1, 6 = 4 + 2, 5 = 4 + 1, 3 = 2 + 1; the first takes the code's low bits. A
 * plane of width w takes w rows; codes 2i and 2i + 1 of a group have its bits (i % (16/w)) * w of the low and
 * of the high half of the words in row i / (16/w), so that one shift of a row leaves a pair of neighbours in
 * each word: the operands of a 16-bit multiply-add. A half group (16 codes) takes w/2 rows of a plane; its
 * plane of width 1 is 16 words of 16 bits instead, with code 2i at bit i and code 2i + 1 at bit 8 + i. */
#ifndef WALSH_FORMATS_TURBO_PAGES_H
#define WALSH_FORMATS_TURBO_PAGES_H

#include <stddef.h>
#include <stdint.h>

#define WALSH_TURBO_SPAN                                                                                     \
    64 /* tokens: pages hold a multiple, and value sums are taken over so many at once                       \
        */

enum walsh_turbo_side { WALSH_TURBO_KEY, WALSH_TURBO_VALUE };

/* One plane of a code: `width` bits of it from bit `low` on, which is also the number of rows before it in a
 * group. */
struct walsh_turbo_plane {
    unsigned width, low;
};
/* The planes of 1..8 bits; returns their number. */
unsigned walsh_turbo_planes(unsigned bits, struct walsh_turbo_plane planes[3]);

static inline size_t walsh_turbo_code_bytes(uint32_t dim, unsigned bits, uint32_t page_tokens)
{
    return (size_t)page_tokens * dim * bits / 8;
}
static inline size_t walsh_turbo_head_bytes(uint32_t dim, unsigned bits, uint32_t page_tokens)
{
    return walsh_turbo_code_bytes(dim, bits, page_tokens) + (size_t)page_tokens * 2;
}

/* Put one vector at token `slot` of a head's part of a page, or read it back. Nothing but its own bits
 * change. Storing a value touches words that it shares with the 31 other tokens of its group: one thread per
 * head. */
void walsh_turbo_store(enum walsh_turbo_side side, uint32_t dim, unsigned bits, void *head,
                       uint32_t page_tokens, uint32_t slot, const uint8_t *codes, uint16_t norm);
void walsh_turbo_load(enum walsh_turbo_side side, uint32_t dim, unsigned bits, const void *head,
                      uint32_t page_tokens, uint32_t slot, uint8_t *codes, uint16_t *norm);

/* Codes and norms of tokens [slot, page_tokens) become 0, which is what a new page holds there. */
void walsh_turbo_clear(enum walsh_turbo_side side, uint32_t dim, unsigned bits, void *head,
                       uint32_t page_tokens, uint32_t slot);

/* Bytes from one block of 16 elements to the next in a value page. */
static inline size_t walsh_turbo_value_stride(unsigned bits, uint32_t page_tokens)
{
    return (size_t)page_tokens * bits * 2;
}
/* The codes alone, from the first of a page's code bytes or from those of a later block: `slot` counts from
 * there. */
void walsh_turbo_load_key(uint32_t dim, unsigned bits, const uint8_t *at, uint32_t slot, uint8_t *codes);
void walsh_turbo_load_value(uint32_t dim, unsigned bits, const uint8_t *at, size_t stride, uint32_t slot,
                            uint8_t *codes);

#endif
