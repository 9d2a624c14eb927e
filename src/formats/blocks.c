#include "formats/blocks.h"

#include <math.h>
#include <string.h>

/* --- packing --- */

/* Eight nibbles in the order of their columns -> the order of a word: nibbles 0..3 to the low halves of the
 * bytes, 4..7 to the high ones. */
static uint32_t interleave(uint32_t v)
{
    uint32_t low = v & 0xffffu, high = v >> 16;
    low = (low | low << 8) & 0x00ff00ffu;
    high = (high | high << 8) & 0x00ff00ffu;
    low = (low | low << 4) & 0x0f0f0f0fu;
    high = (high | high << 4) & 0x0f0f0f0fu;
    return low | high << 4;
}

void walsh_block_pack_codes(const struct walsh_weights *w, size_t tile, const uint8_t *codes,
                            size_t row_bytes, uint8_t flip, uint32_t *data)
{
    const size_t words = walsh_block_words(w), exist = walsh_min(w->rows - tile * WALSH_BLOCK_ROWS, 16);
    const bool nibbles = walsh_code_bits(w->block.code) == 4;
    const size_t bytes = nibbles ? walsh_div_up(w->cols, 2) : w->cols, whole = bytes / 4;
    const uint32_t flips = flip * 0x01010101u;
    uint32_t *to = data + tile * words * WALSH_BLOCK_ROWS;
    for (size_t r = 0; r < WALSH_BLOCK_ROWS; r++) {
        const uint8_t *row = codes + r * row_bytes;
        for (size_t n = 0; n < words; n++) {
            uint32_t v = 0;
            if (r < exist && n < whole) {
                memcpy(&v, row + 4 * n, 4);
                v ^= flips;
            } else if (r < exist && 4 * n < bytes) { /* the last, partly filled word */
                memcpy(&v, row + 4 * n, bytes - 4 * n);
                v = (v ^ flips) & ((1u << 8 * (bytes - 4 * n)) - 1);
            }
            if (nibbles && w->cols % 2 && 8 * (n + 1) > w->cols && 8 * n < w->cols)
                v &= (1u << 4 * (w->cols - 8 * n)) - 1;
            to[n * WALSH_BLOCK_ROWS + r] = nibbles ? interleave(v) : v;
        }
    }
}

void walsh_block_put_scale(const struct walsh_weights *w, size_t row, size_t group, uint32_t bits,
                           void *scales)
{
    const size_t at = walsh_block_group_at(w, row, group);
    const uint16_t half = (uint16_t)bits;
    switch (w->block.scale) {
    case WALSH_SCALE_F32:
        memcpy((uint8_t *)scales + 4 * at, &bits, 4);
        break;
    case WALSH_SCALE_BF16:
        memcpy((uint8_t *)scales + 2 * at, &half, 2);
        break;
    default:
        ((uint8_t *)scales)[at] = (uint8_t)bits;
    }
}

/* --- reading --- */

uint8_t walsh_block_code(const struct walsh_weights *w, size_t row, size_t col)
{
    const size_t words = walsh_block_words(w), columns = walsh_block_word_columns(w);
    const size_t at =
        (row / WALSH_BLOCK_ROWS * words + col / columns) * WALSH_BLOCK_ROWS + row % WALSH_BLOCK_ROWS;
    const uint32_t word = ((const uint32_t *)w->data)[at];
    const unsigned within = (unsigned)(col % columns);
    if (columns == 4) return (uint8_t)(word >> 8 * within);
    return word >> (within < 4 ? 8 * within : 8 * (within - 4) + 4) & 15u;
}

float walsh_scale_value(enum walsh_scale type, uint32_t bits)
{
    switch (type) {
    case WALSH_SCALE_E8M0:
        return walsh_f32_from_e8m0((uint8_t)bits);
    case WALSH_SCALE_E4M3:
        return walsh_f32_from_e4m3((uint8_t)bits);
    case WALSH_SCALE_BF16:
        return walsh_f32_from_bf16((uint16_t)bits);
    case WALSH_SCALE_F32:
        break;
    }
    return walsh_float_from_bits(bits);
}

bool walsh_scale_is_number(enum walsh_scale type, uint32_t bits)
{
    return isfinite(walsh_scale_value(type, bits));
}

bool walsh_code_is_number(enum walsh_code code, uint8_t bits)
{
    return code == WALSH_CODE_E4M3   ? (bits & 0x7fu) != 0x7fu
           : code == WALSH_CODE_E5M2 ? (bits & 0x7cu) != 0x7cu
                                     : true;
}

float walsh_block_scale(const struct walsh_weights *w, size_t row, size_t group)
{
    const size_t at = walsh_block_group_at(w, row, group), bytes = walsh_scale_bytes(w->block.scale);
    uint32_t bits = 0;
    memcpy(&bits, (const uint8_t *)w->scales + at * bytes, bytes);
    return walsh_scale_value(w->block.scale, bits);
}

int walsh_block_zero(const struct walsh_weights *w, size_t row, size_t group)
{
    if (w->block.code != WALSH_CODE_U4 && w->block.code != WALSH_CODE_U8) return 0;
    if (w->zeros) return w->zeros[walsh_block_group_at(w, row, group)];
    return w->block.code == WALSH_CODE_U4 ? 8 : 128;
}

float walsh_code_value(enum walsh_code code, uint8_t bits)
{
    static const float e2m1[8] = {0, .5f, 1, 1.5f, 2, 3, 4, 6};
    switch (code) {
    case WALSH_CODE_E2M1:
        return bits & 8u ? -e2m1[bits & 7u] : e2m1[bits & 7u];
    case WALSH_CODE_E4M3:
        return walsh_f32_from_e4m3(bits);
    case WALSH_CODE_E5M2:
        return walsh_f32_from_e5m2(bits);
    case WALSH_CODE_U4:
    case WALSH_CODE_U8:
        break;
    }
    return bits;
}

float walsh_block_weight(const struct walsh_weights *w, size_t row, size_t col)
{
    const size_t group = walsh_block_group_of(w, col);
    const float value = walsh_code_value(w->block.code, walsh_block_code(w, row, col)) -
                        (float)walsh_block_zero(w, row, group);
    return value * walsh_block_scale(w, row, group) * w->tensor_scale;
}
