/* quantize/blocks: one linear in a block format: rounded to the nearest, in the layout that other programs
 * read (checkpoint/blocks.h): compressed-tensors', of gpt-oss's stacks of experts its own. Private to
 * quantize/. */
#ifndef WALSH_QUANTIZE_BLOCKS_H
#define WALSH_QUANTIZE_BLOCKS_H

#include "formats/mx.h"
#include "model/linear.h"
#include "quantize/output.h"

struct walsh_block_writer {
    enum walsh_format format;
    uint32_t group;                  /* of INT8, INT4; others have their own */
    enum walsh_mx_rounding rounding; /* of MXFP4, MXFP8 */
};

/* Is this linear written into gpt-oss's stack (unrotated MXFP4 of one of its experts)? */
bool walsh_block_is_stacked(const struct walsh_block_writer *b, const struct walsh_linear *linear,
                            bool rotated);

/* Declare the tensors of a linear whose stored matrix is [rows][cols] (padded where it is rotated); a stack
 * is declared by its first part. *bytes: those of this linear. Columns that the format's groups do not
 * divide: WALSH_E_UNSUPPORTED. */
enum walsh_status walsh_block_plan(const struct walsh_block_writer *b, const struct walsh_linear *linear,
                                   uint32_t rows, uint32_t cols, bool stacked,
                                   struct walsh_safetensors_plan *plan, uint64_t *bytes,
                                   struct walsh_error *err);

/* Encode w [rows][cols] and write it. *error: the square of what is lost over that of w. NaN or Inf in w:
 * WALSH_E_FORMAT. */
enum walsh_status walsh_block_write(const struct walsh_block_writer *b, struct walsh_pool *pool,
                                    struct walsh_output *output, const struct walsh_linear *linear,
                                    const float *w, uint32_t rows, uint32_t cols, bool stacked, double *error,
                                    struct walsh_error *err);

/* The quantization_config of such a model: compressed-tensors', gpt-oss's, or walsh's own where `ours`
 * (rotations, parts of matrices). NULL: no memory. */
json_t *walsh_block_config(const struct walsh_block_writer *b, bool stacked, bool ours, const char *rotation,
                           uint32_t tensor_parallel);

#endif
