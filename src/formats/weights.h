/* formats/weights: a weight matrix as the product kernels read it. May use base, rotation. */
#ifndef WALSH_FORMATS_WEIGHTS_H
#define WALSH_FORMATS_WEIGHTS_H

#include <stddef.h>
#include <stdint.h>

enum walsh_format {
    WALSH_FORMAT_F32,
    WALSH_FORMAT_F16,
    WALSH_FORMAT_BF16,
    WALSH_FORMAT_E8P,
    WALSH_FORMAT_COUNT
};

#define WALSH_MAX_STAGES 4

enum walsh_stage_kind { WALSH_STAGE_E8P, WALSH_STAGE_E81B };

/* W[rows][cols], `rows` outputs by `cols` inputs, both already padded as the rotations want them.
 * F32, F16, BF16: `data` is row-major, maybe unaligned (mapped file).
 * E8P: W = sum over stages k of scale[k] * decode(stage[k]); stage[k].data is the run-time layout that
 * formats/e8p_planes.h (E8P) or formats/e81b.h (E81B) defines, 64-byte aligned. */
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
};

const char *walsh_format_name(enum walsh_format format);   /* "bf16", "e8p" */
size_t walsh_weights_bytes(const struct walsh_weights *w); /* what a decode step reads of it */

#endif
