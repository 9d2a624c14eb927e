/* checkpoint/lalamo: checkpoints as lalamo saves them for the engine uzu: a config.json of nested
 * configuration objects, one safetensors file whose __metadata__ says under MODULE.spec how a matrix is
 * stored, tokenizer.json. May use base, formats.
 *
 * Specs, of a matrix MODULE with `rows` outputs by `cols` inputs:
 *   FullPrecisionSpec  MODULE.weights [rows][cols]
 *   IntSpec            bits 4 or 8, group_size: MODULE.weights U8 [rows][cols * bits / 8], of 4 bits the low half
 *                      first; MODULE.scales, and where it is not symmetric MODULE.zero_points U8, packed like the
 *                      weights: [rows][groups] (before 0.17, and of embeddings), or [groups][rows up to a multiple
 *                      of 4] (since). w = (q - z) * s, z = 2^(bits - 1) where it is symmetric
 *   HybridSpec         quantization_spec, one of those two, at MODULE.quantized; adapter_spec null or
 *                      LowRankSpec{rank}, at MODULE.adapter: down_projection [rank][cols], up_projection
 *                      [rows][rank]; incoherence_block_size b, incoherence_signs.input_signs, output_signs I32 of
 *                      1 and -1:
 *                        y = D_out H_b (W H_b D_in x + up (down x)),
 *                      H_b orthonormal Hadamard blocks of b on the diagonal
 * An embedding has the layout input_output and is stored [vocabulary][hidden]; its output is a row. */
#ifndef WALSH_CHECKPOINT_LALAMO_H
#define WALSH_CHECKPOINT_LALAMO_H

#include "checkpoint/blocks.h"
#include "checkpoint/json.h"

/* Is this config.json lalamo's? */
bool walsh_lalamo_is_config(const struct walsh_json_object *root);
/* All of walsh_config. Every member that walsh does not know must be off (null, false, empty): an error that
 * names it otherwise. */
enum walsh_status walsh_lalamo_read_config(const struct walsh_json_object *root, struct walsh_config *out,
                                           struct walsh_error *err);
/* generation_config of the same file; *out has the defaults. */
enum walsh_status walsh_lalamo_read_generation(const char *path, const char *json, size_t size,
                                               struct walsh_generation_config *out, struct walsh_error *err);

/* What a matrix is for: a linear, an embedding's table, or a head that reads an embedding's table. */
enum walsh_lalamo_use { WALSH_LALAMO_LINEAR, WALSH_LALAMO_TABLE, WALSH_LALAMO_TIED_HEAD };
/* A matrix, or rows of it; tensors are borrowed from the checkpoint. */
struct walsh_lalamo_matrix {
    const struct walsh_tensor *dense;                    /* [all rows][cols], or NULL: */
    struct walsh_block_source codes;                     /* of the rows */
    uint32_t block;                                      /* of the Hadamard blocks; 0: no rotation */
    const struct walsh_tensor *column_signs, *row_signs; /* I32 [cols], [all rows]; NULL: not rotated there */
    uint32_t rank;                                       /* 0: no adapter */
    const struct walsh_tensor *down, *up;                /* [rank][cols], [all rows][rank] */
};
bool walsh_lalamo_present(const struct walsh_checkpoint *ck, const char *module);
/* Find, validate and mark used the tensors of `module`, [all][cols], and describe rows [first, first + rows).
 * A spec that walsh does not know is refused by its name. */
enum walsh_status walsh_lalamo_take(const struct walsh_checkpoint *ck, const char *module,
                                    enum walsh_lalamo_use use, uint32_t all, uint32_t cols, uint32_t first,
                                    uint32_t rows, struct walsh_lalamo_matrix *out, struct walsh_error *err);

#endif
