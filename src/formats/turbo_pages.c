#include "formats/turbo_pages.h"

#include <string.h>

#include "formats/turbo.h"

#define ROW 64   /* bytes */
#define LANES 16 /* words of a row */
#define GROUP 32 /* codes of a lane */

unsigned walsh_turbo_planes(unsigned bits, struct walsh_turbo_plane planes[3])
{
    if (bits == 8) {
        planes[0] = (struct walsh_turbo_plane){8, 0};
        return 1;
    }
    unsigned count = 0, low = 0;
    for (unsigned width = 4; width > 0; low += bits & width, width /= 2)
        if (bits & width) planes[count++] = (struct walsh_turbo_plane){width, low};
    return count;
}

/* Bytes before token `slot`'s block or group, and between blocks of value elements. */
static size_t key_block(uint32_t dim, unsigned bits, uint32_t slot)
{
    return (size_t)(slot / LANES) * LANES * dim * bits / 8;
}

static size_t value_group(unsigned bits, uint32_t slot)
{
    return (size_t)(slot / GROUP) * bits * ROW;
}

static uint32_t mask_of(struct walsh_turbo_plane plane)
{
    return (1u << plane.width) - 1;
}

/* The word of row `row` of a plane for one lane: codes[0..) are the lane's, of a group. */
static uint32_t word_of(struct walsh_turbo_plane plane, unsigned row, const uint8_t *codes)
{
    uint32_t word = 0, mask = mask_of(plane);
    const uint8_t *pair = codes + row * 2 * (16 / plane.width);
    for (unsigned shift = 0; shift < 16; shift += plane.width, pair += 2)
        word |= ((pair[0] >> plane.low & mask) | (pair[1] >> plane.low & mask) << 16) << shift;
    return word;
}

static void codes_of(struct walsh_turbo_plane plane, unsigned row, uint32_t word, uint8_t *codes)
{
    uint32_t mask = mask_of(plane);
    uint8_t *pair = codes + row * 2 * (16 / plane.width);
    for (unsigned shift = 0; shift < 16; shift += plane.width, pair += 2) {
        pair[0] |= (uint8_t)((word >> shift & mask) << plane.low);
        pair[1] |= (uint8_t)((word >> shift >> 16 & mask) << plane.low);
    }
}

/* The half group's plane of width 1: its 8 pairs in 16 bits. */
static uint16_t half_word_of(struct walsh_turbo_plane plane, const uint8_t *codes)
{
    unsigned word = 0;
    for (unsigned i = 0; i < 8; i++)
        word |= (codes[2 * i] >> plane.low & 1u) << i | (codes[2 * i + 1] >> plane.low & 1u) << (8 + i);
    return (uint16_t)word;
}

static void codes_of_half_word(struct walsh_turbo_plane plane, uint16_t word, uint8_t *codes)
{
    for (unsigned i = 0; i < 8; i++) {
        codes[2 * i] |= (uint8_t)((word >> i & 1) << plane.low);
        codes[2 * i + 1] |= (uint8_t)((word >> (8 + i) & 1) << plane.low);
    }
}

static void store_key(uint32_t dim, unsigned bits, uint8_t *at, unsigned lane, const uint8_t *codes)
{
    struct walsh_turbo_plane planes[3];
    const unsigned count = walsh_turbo_planes(bits, planes);
    for (; dim >= GROUP; dim -= GROUP, codes += GROUP, at += (size_t)bits * ROW)
        for (unsigned p = 0; p < count; p++)
            for (unsigned row = 0; row < planes[p].width; row++) {
                uint32_t word = word_of(planes[p], row, codes);
                memcpy(at + (planes[p].low + row) * ROW + lane * sizeof word, &word, sizeof word);
            }
    for (unsigned p = 0; p < count && dim > 0; p++) {
        uint8_t *rows = at + planes[p].low / 2 * ROW;
        for (unsigned row = 0; row < planes[p].width / 2; row++) {
            uint32_t word = word_of(planes[p], row, codes);
            memcpy(rows + row * ROW + lane * sizeof word, &word, sizeof word);
        }
        if (planes[p].width > 1) continue;
        uint16_t word = half_word_of(planes[p], codes);
        memcpy(rows + lane * sizeof word, &word, sizeof word);
    }
}

void walsh_turbo_load_key(uint32_t dim, unsigned bits, const uint8_t *at, uint32_t slot, uint8_t *codes)
{
    struct walsh_turbo_plane planes[3];
    const unsigned count = walsh_turbo_planes(bits, planes), lane = slot % LANES;
    at += key_block(dim, bits, slot);
    memset(codes, 0, dim);
    for (; dim >= GROUP; dim -= GROUP, codes += GROUP, at += (size_t)bits * ROW)
        for (unsigned p = 0; p < count; p++)
            for (unsigned row = 0; row < planes[p].width; row++) {
                uint32_t word;
                memcpy(&word, at + (planes[p].low + row) * ROW + lane * sizeof word, sizeof word);
                codes_of(planes[p], row, word, codes);
            }
    for (unsigned p = 0; p < count && dim > 0; p++) {
        const uint8_t *rows = at + planes[p].low / 2 * ROW;
        for (unsigned row = 0; row < planes[p].width / 2; row++) {
            uint32_t word;
            memcpy(&word, rows + row * ROW + lane * sizeof word, sizeof word);
            codes_of(planes[p], row, word, codes);
        }
        if (planes[p].width > 1) continue;
        uint16_t word;
        memcpy(&word, rows + lane * sizeof word, sizeof word);
        codes_of_half_word(planes[p], word, codes);
    }
}

/* Where a token's bits of a plane stand in a value page: the row of its group and the shift in the words. */
static unsigned value_row(struct walsh_turbo_plane plane, uint32_t slot)
{
    return plane.low + slot % GROUP / 2 / (16 / plane.width);
}

static unsigned value_shift(struct walsh_turbo_plane plane, uint32_t slot)
{
    return slot % GROUP / 2 % (16 / plane.width) * plane.width + slot % 2 * 16;
}

static void store_value(uint32_t dim, unsigned bits, uint8_t *at, size_t stride, uint32_t slot,
                        const uint8_t *codes)
{
    struct walsh_turbo_plane planes[3];
    const unsigned count = walsh_turbo_planes(bits, planes);
    for (unsigned p = 0; p < count; p++) {
        const unsigned shift = value_shift(planes[p], slot), low = planes[p].low;
        const uint32_t mask = mask_of(planes[p]);
        uint8_t *row = at + value_row(planes[p], slot) * ROW;
        for (uint32_t d = 0; d < dim; d += LANES, row += stride) {
            uint32_t words[LANES];
            memcpy(words, row, ROW);
            for (unsigned l = 0; l < LANES; l++)
                words[l] = (words[l] & ~(mask << shift)) | (codes[d + l] >> low & mask) << shift;
            memcpy(row, words, ROW);
        }
    }
}

void walsh_turbo_load_value(uint32_t dim, unsigned bits, const uint8_t *at, size_t stride, uint32_t slot,
                            uint8_t *codes)
{
    struct walsh_turbo_plane planes[3];
    const unsigned count = walsh_turbo_planes(bits, planes);
    at += value_group(bits, slot);
    memset(codes, 0, dim);
    for (unsigned p = 0; p < count; p++) {
        const unsigned shift = value_shift(planes[p], slot), low = planes[p].low;
        const uint32_t mask = mask_of(planes[p]);
        const uint8_t *row = at + value_row(planes[p], slot) * ROW;
        for (uint32_t d = 0; d < dim; d += LANES, row += stride) {
            uint32_t words[LANES];
            memcpy(words, row, ROW);
            for (unsigned l = 0; l < LANES; l++) codes[d + l] |= (uint8_t)((words[l] >> shift & mask) << low);
        }
    }
}

void walsh_turbo_store(enum walsh_turbo_side side, uint32_t dim, unsigned bits, void *head,
                       uint32_t page_tokens, uint32_t slot, const uint8_t *codes, uint16_t norm)
{
    uint8_t *at = head;
    if (side == WALSH_TURBO_KEY)
        store_key(dim, bits, at + key_block(dim, bits, slot), slot % LANES, codes);
    else
        store_value(dim, bits, at + value_group(bits, slot), walsh_turbo_value_stride(bits, page_tokens),
                    slot, codes);
    memcpy(at + walsh_turbo_code_bytes(dim, bits, page_tokens) + slot * sizeof norm, &norm, sizeof norm);
}

void walsh_turbo_load(enum walsh_turbo_side side, uint32_t dim, unsigned bits, const void *head,
                      uint32_t page_tokens, uint32_t slot, uint8_t *codes, uint16_t *norm)
{
    const uint8_t *at = head;
    if (side == WALSH_TURBO_KEY)
        walsh_turbo_load_key(dim, bits, at, slot, codes);
    else
        walsh_turbo_load_value(dim, bits, at, walsh_turbo_value_stride(bits, page_tokens), slot, codes);
    memcpy(norm, at + walsh_turbo_code_bytes(dim, bits, page_tokens) + slot * sizeof *norm, sizeof *norm);
}

void walsh_turbo_clear(enum walsh_turbo_side side, uint32_t dim, unsigned bits, void *head,
                       uint32_t page_tokens, uint32_t slot)
{
    static const uint8_t zero[WALSH_TURBO_MAX_DIM];
    const bool key = side == WALSH_TURBO_KEY;
    const size_t code_bytes = walsh_turbo_code_bytes(dim, bits, page_tokens);
    uint8_t *at = head;
    /* one by one those that share words or rows with tokens that stay */
    for (; slot < page_tokens && slot % (key ? LANES : GROUP) != 0; slot++)
        walsh_turbo_store(side, dim, bits, head, page_tokens, slot, zero, 0);
    if (slot == page_tokens) return;
    if (key) {
        const size_t kept = key_block(dim, bits, slot);
        memset(at + kept, 0, code_bytes - kept);
    } else {
        const size_t stride = walsh_turbo_value_stride(bits, page_tokens), kept = value_group(bits, slot);
        for (size_t block = 0; block < code_bytes; block += stride)
            memset(at + block + kept, 0, stride - kept);
    }
    memset(at + code_bytes + slot * sizeof(uint16_t), 0, (page_tokens - slot) * sizeof(uint16_t));
}
