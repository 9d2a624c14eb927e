/* formats/weights: a weight matrix as the product kernels read it. May use base, rotation. */
#ifndef WALSH_FORMATS_WEIGHTS_H
#define WALSH_FORMATS_WEIGHTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum walsh_format {
    WALSH_FORMAT_F32,
    WALSH_FORMAT_F16,
    WALSH_FORMAT_BF16,
    WALSH_FORMAT_E8P,
    WALSH_FORMAT_MXFP4, /* this and those below: "block formats", formats/blocks.h */
    WALSH_FORMAT_NVFP4,
    WALSH_FORMAT_MXFP8,
    WALSH_FORMAT_FP8,
    WALSH_FORMAT_INT8,
    WALSH_FORMAT_INT4,
    WALSH_FORMAT_COUNT
};

#define WALSH_MAX_STAGES 4

enum walsh_stage_kind { WALSH_STAGE_E8P, WALSH_STAGE_E81B };

/* Elements of the block formats: E2M1 (0, .5, 1, 1.5, 2, 3, 4, 6 and a sign), unsigned integers of 4 and 8
 * bits that a zero point is taken from, and the 8-bit floats of base/scalar.h. */
enum walsh_code { WALSH_CODE_E2M1, WALSH_CODE_U4, WALSH_CODE_U8, WALSH_CODE_E4M3, WALSH_CODE_E5M2 };
/* Their scales. */
enum walsh_scale { WALSH_SCALE_E8M0, WALSH_SCALE_E4M3, WALSH_SCALE_BF16, WALSH_SCALE_F32 };

/* What a block format is made of. */
struct walsh_block_type {
    enum walsh_code code;
    enum walsh_scale scale;
    uint32_t group; /* columns that share a scale: a power of two, at least 16; 0: all of a row's */
};

struct walsh_stored_weights; /* formats/stored.h */

/* W[rows][cols], `rows` outputs by `cols` inputs, both already padded as the rotations want them.
 * F32, F16, BF16: `data` is row-major, maybe unaligned (mapped file).
 * E8P: W = sum over stages k of scale[k] * decode(stage[k]); stage[k].data is the run-time layout that
 * formats/e8p_planes.h (E8P) or formats/e81b.h (E81B) defines, 64-byte aligned.
 * Block formats: W = tensor_scale * scale of the group * (code - zero), laid out as formats/blocks.h says. */
struct walsh_weights {
    enum walsh_format format;
    uint32_t rows, cols;
    const void *data;
    unsigned stages;
    struct {
        enum walsh_stage_kind kind;
        const void *data;
        float scale; /* Wscale times the stage's cumulative inverse residual scale */
    } stage[WALSH_MAX_STAGES];
    /* block formats only */
    struct walsh_block_type block;
    const void *scales;
    const uint8_t *zeros; /* NULL: 8 of U4, 128 of U8 */
    float tensor_scale;
    /* not NULL: on its way to a device. data, scales and the stages' data are not there, but in a file: formats/stored.h.
     * zeros says whether there are any. */
    const struct walsh_stored_weights *stored;
};

/* Is it one of the block formats? */
static inline bool walsh_format_is_block(enum walsh_format format)
{
    return format >= WALSH_FORMAT_MXFP4 && format < WALSH_FORMAT_COUNT;
}

const char *walsh_format_name(enum walsh_format format);   /* "bf16", "e8p" */
size_t walsh_weights_bytes(const struct walsh_weights *w); /* what a decode step reads of it */

/* Rows [row, row + rows) of any format, each of `cols` values, row stride ld elements: what the products mean
 * by W, in the space that the rotations lead to. F32: one rounding of the exact value at most (two where a
 * tensor_scale is not a power of two); BF16: that, rounded to nearest even. The scalar definition of the
 * kernels decode_weights_f32 and decode_weights_bf16, which are the fast way. */
void walsh_weights_decode_f32(const struct walsh_weights *w, size_t row, size_t rows, float *out, size_t ld);
void walsh_weights_decode_bf16(const struct walsh_weights *w, size_t row, size_t rows, uint16_t *out,
                               size_t ld);
/* Columns [col, col + cols) of them alone; col is a multiple of 16, and col + cols one or w->cols. */
void walsh_weights_decode_part_f32(const struct walsh_weights *w, size_t row, size_t rows, size_t col,
                                   size_t cols, float *out, size_t ld);
void walsh_weights_decode_part_bf16(const struct walsh_weights *w, size_t row, size_t rows, size_t col,
                                    size_t cols, uint16_t *out, size_t ld);

#endif
