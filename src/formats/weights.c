#include "formats/weights.h"

#include <string.h>

#include "formats/blocks.h"
#include "formats/e8p_planes.h"

const char *walsh_format_name(enum walsh_format format)
{
    static const char *const names[WALSH_FORMAT_COUNT] = {"f32",   "f16",   "bf16", "e8p",  "mxfp4",
                                                          "nvfp4", "mxfp8", "fp8",  "int8", "int4"};
    return (unsigned)format < WALSH_FORMAT_COUNT ? names[format] : "unknown";
}

size_t walsh_weights_bytes(const struct walsh_weights *w)
{
    size_t elements = (size_t)w->rows * w->cols, bytes = 0;
    switch (w->format) {
    case WALSH_FORMAT_F32:
        return elements * 4;
    case WALSH_FORMAT_F16:
    case WALSH_FORMAT_BF16:
        return elements * 2;
    case WALSH_FORMAT_E8P:
        for (unsigned k = 0; k < w->stages; k++)
            bytes += walsh_stage_bytes(w->stage[k].kind, w->rows, w->cols);
        return bytes;
    case WALSH_FORMAT_MXFP4:
    case WALSH_FORMAT_NVFP4:
    case WALSH_FORMAT_MXFP8:
    case WALSH_FORMAT_FP8:
    case WALSH_FORMAT_INT8:
    case WALSH_FORMAT_INT4:
        return walsh_block_data_words(w) * 4 +
               walsh_block_scale_count(w) * (walsh_scale_bytes(w->block.scale) + (w->zeros ? 1 : 0));
    case WALSH_FORMAT_COUNT:
        break;
    }
    return 0;
}

/* The 8 weights of group g of row r of an E8P matrix: the stages' sum in double, rounded once. */
static void decode_e8p(const struct walsh_weights *w, size_t r, size_t g, float out[8])
{
    double sum[8] = {0};
    for (unsigned k = 0; k < w->stages; k++) {
        int8_t v[8];
        double unit = .25;
        if (w->stage[k].kind == WALSH_STAGE_E81B) {
            unit = .5;
            memcpy(v,
                   walsh_e8p_tables()
                       ->e81b_x2[walsh_e81b_unpack(w->cols, w->stage[k].data, (uint32_t)r, (uint32_t)g)],
                   8);
        } else {
            walsh_e8p_decode_x4(walsh_e8p_unpack(w->cols, w->stage[k].data, (uint32_t)r, (uint32_t)g), v);
        }
        for (unsigned n = 0; n < 8; n++) sum[n] += (double)w->stage[k].scale * unit * v[n];
    }
    for (unsigned n = 0; n < 8; n++) out[n] = (float)sum[n];
}

/* As walsh_block_weight, word by word. k is a multiple of 8. */
static void decode_blocks(const struct walsh_weights *w, size_t r, size_t k, size_t n, float *out)
{
    const size_t columns = walsh_block_word_columns(w);
    const uint32_t *words = (const uint32_t *)w->data +
                            r / WALSH_BLOCK_ROWS * walsh_block_words(w) * WALSH_BLOCK_ROWS +
                            r % WALSH_BLOCK_ROWS;
    float table[16], scale = 0, zero = 0;
    for (unsigned code = 0; code < 16; code++) table[code] = walsh_code_value(w->block.code, (uint8_t)code);
    size_t group = SIZE_MAX;
    for (size_t i = 0; i < n; i++) {
        if (walsh_block_group_of(w, k + i) != group) {
            group = walsh_block_group_of(w, k + i);
            scale = walsh_block_scale(w, r, group);
            zero = (float)walsh_block_zero(w, r, group);
        }
        const uint32_t word = words[(k + i) / columns * WALSH_BLOCK_ROWS];
        const unsigned c = (unsigned)((k + i) % columns);
        const float value = columns == 8 ? table[word >> (c < 4 ? 8 * c : 8 * (c - 4) + 4) & 15u]
                                         : walsh_code_value(w->block.code, (uint8_t)(word >> 8 * c));
        out[i] = (value - zero) * scale * w->tensor_scale;
    }
}

#define SPAN 256 /* columns that are rounded to bf16 at a time; a multiple of 8 */

/* Columns [k, k + n) of row r; k is a multiple of 8, and n of an E8P matrix too. */
static void decode_span(const struct walsh_weights *w, size_t r, size_t k, size_t n, float *out)
{
    const char *dense = (const char *)w->data; /* maybe unaligned */
    const size_t at = r * w->cols + k;
    if (w->format == WALSH_FORMAT_E8P) {
        for (size_t g = 0; g < n / 8; g++) decode_e8p(w, r, k / 8 + g, out + 8 * g);
    } else if (w->format == WALSH_FORMAT_F32) {
        memcpy(out, dense + at * 4, n * 4);
    } else if (walsh_format_is_block(w->format)) {
        decode_blocks(w, r, k, n, out);
    } else {
        for (size_t i = 0; i < n; i++) {
            uint16_t half;
            memcpy(&half, dense + (at + i) * 2, 2);
            out[i] = w->format == WALSH_FORMAT_F16 ? walsh_f32_from_f16(half) : walsh_f32_from_bf16(half);
        }
    }
}

void walsh_weights_decode_part_f32(const struct walsh_weights *w, size_t row, size_t rows, size_t col,
                                   size_t cols, float *out, size_t ld)
{
    for (size_t r = 0; r < rows; r++) decode_span(w, row + r, col, cols, out + r * ld);
}

void walsh_weights_decode_part_bf16(const struct walsh_weights *w, size_t row, size_t rows, size_t col,
                                    size_t cols, uint16_t *out, size_t ld)
{
    float wide[SPAN];
    for (size_t r = 0; r < rows; r++) {
        for (size_t k = 0; k < cols; k += SPAN) {
            const size_t n = walsh_min(SPAN, cols - k);
            decode_span(w, row + r, col + k, n, wide);
            for (size_t i = 0; i < n; i++) out[r * ld + k + i] = walsh_bf16_from_f32(wide[i]);
        }
    }
}

void walsh_weights_decode_f32(const struct walsh_weights *w, size_t row, size_t rows, float *out, size_t ld)
{
    walsh_weights_decode_part_f32(w, row, rows, 0, w->cols, out, ld);
}

void walsh_weights_decode_bf16(const struct walsh_weights *w, size_t row, size_t rows, uint16_t *out,
                               size_t ld)
{
    walsh_weights_decode_part_bf16(w, row, rows, 0, w->cols, out, ld);
}
