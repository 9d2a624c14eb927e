/* checkpoint/blocks: linears whose weights share scales in groups, as other programs store them, on their way
 * to the run-time layout of formats/blocks.h. May use base, formats.
 *
 * Of a linear MODULE with weight [out][in], by what is there:
 *   compressed-tensors  weight_packed U8 [out][in/2] and weight_scale: U8 or F8_E8M0 [out][in/32] (MXFP4), or
 *                       F8_E4M3 [out][in/16] with weight_global_scale F32 [1] = 1 / tensor_scale (NVFP4);
 *                       weight_packed I32 [out][in * bits / 32] with weight_scale [out][in/group] (int4, int8; U4
 *                       and U8 codes), weight_shape and, of asymmetric ones, weight_zero_point I32
 *                       [out * bits / 32][in/group];
 *                       weight I8 [out][in] with weight_scale and maybe weight_zero_point I8 (int8);
 *                       weight F8_E4M3 or F8_E5M2 with weight_scale [out][1], [out], [1] or [] (FP8), or U8 or
 *                       F8_E8M0 [out][in/32] (MXFP8)
 *   ModelOpt            weight U8 [out][in/2] with weight_scale F8_E4M3 and weight_scale_2 F32 [] = tensor_scale
 *                       (NVFP4), weight F8_E4M3 with weight_scale [] (FP8)
 *   DeepSeek            weight I8 [out][in/2] with scale F8_E8M0 [out][in/32] (V4's experts), weight F8_E4M3 with
 *                       scale F8_E8M0 or weight_scale_inv F32 or BF16 [out/128][in/128]
 *   gpt-oss             a stack of matrices, MODULE_blocks U8 [stack][rows][in/32][16] and MODULE_scales U8
 *                       [stack][rows][in/32]
 * Static scales of activations (input_scale, input_global_scale) are of no use here and passed over. A scale of
 * one element holds for every row. */
#ifndef WALSH_CHECKPOINT_BLOCKS_H
#define WALSH_CHECKPOINT_BLOCKS_H

#include "checkpoint/checkpoint.h"
#include "formats/stored.h"

/* One stored linear; the tensors are borrowed from the checkpoint. */
struct walsh_block_source {
    enum walsh_format format;
    struct walsh_block_type block;
    float tensor_scale;
    uint32_t rows, cols;
    const struct walsh_tensor *codes, *scales, *zeros; /* zeros: NULL where there are none */
    /* row r of the linear is row first + step * r of the matrix, and of matrix number `matrix` of a stack */
    uint32_t first, step, matrix, matrix_rows;
    size_t row_bytes;    /* of codes */
    uint8_t flip;        /* 0x80 where codes are signed bytes */
    bool zeros_in_words; /* I32, along the rows */
    /* lalamo: lines of zeros hold `zero_bytes` bytes, two of 4 bits in each; 0: not so. by_group: a line of
     * zeros, and of scales, is a group's, not a row's */
    size_t zero_bytes;
    bool by_group;
    /* row m of the matrix has its scales in row m / scale_rows of [..][scale_ld] */
    uint32_t scale_rows, scale_ld;
};

/* The mapped files of its tensors (NULL: memory), and where walsh_file_copy says why one cannot be read. */
struct walsh_block_files {
    const struct walsh_file *codes, *scales;
    atomic_int *codes_why, *scales_why;
};

/* Rows that a linear takes of a stored matrix: row, row + step, ... */
struct walsh_block_rows {
    uint32_t row, step; /* step 0: 1 */
    uint32_t rows;      /* of the stored matrix; 0: the linear's own */
    uint32_t stack;     /* gpt-oss: matrices in the tensor; 0: a matrix of its own */
    uint32_t matrix;
};

/* Is `module` stored in one of these layouts (a stack: gpt-oss's)? */
bool walsh_blocks_present(const struct walsh_checkpoint *ck, const char *module, bool stack);

/* Find, validate and mark used all tensors of a linear of `rows` x `cols` weights. part: what of the matrix
 * it is; NULL: all. Missing tensors, other dtypes or shapes, a group that is no power of two of at least 16:
 * errors that name the tensor. */
enum walsh_status walsh_blocks_take(const struct walsh_checkpoint *ck, const char *module, uint32_t rows,
                                    uint32_t cols, const struct walsh_block_rows *part,
                                    struct walsh_block_source *out, struct walsh_error *err);

/* The descriptor of what tiles are packed into: data, scales and zeros unset. */
struct walsh_weights walsh_blocks_weights(const struct walsh_block_source *s);
/* Tiles [begin, end) into the run-time arrays, of walsh_block_data_words, walsh_block_scale_count elements
 * (zeros: NULL where the source has none). Returns false where a scale or a code is no number. */
bool walsh_blocks_pack(const struct walsh_block_source *s, size_t begin, size_t end, uint32_t *data,
                       void *scales, uint8_t *zeros);
/* The same rows as formats/stored.h cuts them into units: the codes as they are stored, [16][walsh_stored_row_bytes] of a
 * unit; scales, or zero points, in the run-time layout. False as well where files (NULL: all is memory) cannot be read. */
bool walsh_blocks_read(const struct walsh_block_source *s, const struct walsh_block_files *files,
                       unsigned array, size_t begin, size_t end, void *to);
/* The error for that: names the tensor, the place and what stands there. */
enum walsh_status walsh_blocks_fail(const struct walsh_block_source *s, struct walsh_error *err);

/* Take back that the tensors of a linear, or of a stack, are used, but for its biases: they will be replaced.
 */
void walsh_blocks_release(const struct walsh_checkpoint *ck, const char *module, bool stack);

#endif
