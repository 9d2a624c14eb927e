/* model/linear_parts: what the loaders of the foreign layouts share with model/linear.c. Private to model/.
 */
#ifndef WALSH_MODEL_LINEAR_PARTS_H
#define WALSH_MODEL_LINEAR_PARTS_H

#include "checkpoint/blocks.h"
#include "checkpoint/glq.h"
#include "model/linear.h"

/* The blocks follow from the stored, padded size: its binary expansion (of each part), which for a power of
 * two is one block; two vectors of signs are those of an overlap. */
enum walsh_status walsh_linear_load_rotation(struct walsh_rotation *rotation,
                                             const struct walsh_tensor *signs, uint32_t size, uint32_t stored,
                                             uint32_t min_block, uint32_t parts, struct walsh_arena *arena,
                                             struct walsh_error *err);

/* Bring codes, scales and zero points of a source to the run-time layout, into `arena`: linear->weights. */
enum walsh_status walsh_linear_repack_blocks(struct walsh_linear *linear,
                                             const struct walsh_block_source *source, struct walsh_pool *pool,
                                             struct walsh_arena *arena, struct walsh_error *err);

/* Room in `arena` for a matrix of a block format of which format, rows, cols and block are set: data, scales
 * and, where `zeros` is not NULL, zero points. */
enum walsh_status walsh_linear_alloc_blocks(struct walsh_linear *linear, struct walsh_arena *arena,
                                            uint32_t **data, void **scales, uint8_t **zeros,
                                            struct walsh_error *err);

/* linear->weights of which everything is set but the data: weights.stored reads it from the checkpoint's files. */
enum walsh_status walsh_linear_store_glq(struct walsh_linear *linear, const struct walsh_glq_linear *glq,
                                         const struct walsh_checkpoint *ck, struct walsh_arena *arena,
                                         struct walsh_error *err);
enum walsh_status walsh_linear_store_blocks(struct walsh_linear *linear,
                                            const struct walsh_block_source *source,
                                            const struct walsh_checkpoint *ck, struct walsh_arena *arena,
                                            struct walsh_error *err);
/* Rows of dense weights from `data` on: element (r, k) stands at r * row_step + k * col_step elements. */
enum walsh_status walsh_linear_store_dense(struct walsh_linear *linear, const void *data, size_t row_step,
                                           size_t col_step, const struct walsh_checkpoint *ck,
                                           struct walsh_arena *arena, struct walsh_error *err);

/* checkpoint/shell.h: to the narrowest format that holds the sums of a linear's stages exactly: int4, int8,
 * or else, rounded, f16. `stored`: only described, as above. */
enum walsh_status walsh_linear_load_shell(struct walsh_linear *linear, const struct walsh_checkpoint *ck,
                                          bool stored, struct walsh_pool *pool, struct walsh_arena *arena,
                                          struct walsh_error *err);

#endif
