/* checkpoint/checkpoint: a Hugging Face model directory: config.json, generation_config.json, one or many
 * safetensors files (model.safetensors, or model.safetensors.index.json and its shards). May use base,
 * formats. */
#ifndef WALSH_CHECKPOINT_CHECKPOINT_H
#define WALSH_CHECKPOINT_CHECKPOINT_H

#include "checkpoint/config.h"
#include "checkpoint/safetensors.h"

/* The points of GLQ's codebook e8_shell, times two: small integers, of one point all even or all odd. */
struct walsh_shell_points {
    uint32_t count; /* 1..65536; 0: none */
    int most;       /* the largest magnitude of a coordinate, 0..127 */
    int8_t (*twice)[8];
};

struct walsh_checkpoint {
    char *directory;
    char *config_json; /* the text of config.json, NUL-terminated: what a quantized copy of the model starts
                          from */
    size_t config_size;
    struct walsh_config config;
    struct walsh_generation_config generation;
    struct walsh_safetensors *files;
    size_t file_count;
    struct walsh_tensor **tensors; /* of all files, sorted by name; each points into its file's table */
    size_t tensor_count;
    uint64_t bytes;                  /* of all safetensors files */
    struct walsh_shell_points shell; /* of codebook e8_shell; checkpoint/shell.h */
};
/* Open and validate all of it. A GGUF file, a directory without config.json, a shard that is missing, a
 * tensor in two shards or not where the index says: errors that say what to do. */
enum walsh_status walsh_checkpoint_open(const char *directory, bool use_mmap, struct walsh_checkpoint *out,
                                        struct walsh_error *err);
void walsh_checkpoint_close(struct walsh_checkpoint *ck); /* safe on a zeroed struct */

/* NULL where absent. Does not mark it used. */
struct walsh_tensor *walsh_checkpoint_find(const struct walsh_checkpoint *ck, const char *name);
/* The tensor with exactly this shape and a dtype of the `dtypes` set (bit 1 << dtype), marked used; else an
 * error that names file, tensor, found and expected. */
enum walsh_status walsh_checkpoint_take(const struct walsh_checkpoint *ck, const char *name, unsigned dtypes,
                                        unsigned rank, const uint64_t *shape, const struct walsh_tensor **out,
                                        struct walsh_error *err);
/* As walsh_checkpoint_take where the caller does not know the shape: rank only. */
enum walsh_status walsh_checkpoint_take_rank(const struct walsh_checkpoint *ck, const char *name,
                                             unsigned dtypes, unsigned rank, const struct walsh_tensor **out,
                                             struct walsh_error *err);
/* Every tensor used? Else an error that names the first and counts the rest. rotary_emb.inv_freq, which old
 * checkpoints hold and everybody computes, may be left over. */
enum walsh_status walsh_checkpoint_all_used(const struct walsh_checkpoint *ck, struct walsh_error *err);

/* The dtypes of plain weights, for walsh_checkpoint_take */
#define WALSH_FLOAT_DTYPES (1u << WALSH_F32 | 1u << WALSH_F16 | 1u << WALSH_BF16)
/* Elements of an F32, F16 or BF16 tensor as f32 into out[elements]. */
void walsh_tensor_to_f32(const struct walsh_tensor *t, float *out);
/* Element i of such a tensor. */
float walsh_tensor_element(const struct walsh_tensor *t, size_t i);

#endif
