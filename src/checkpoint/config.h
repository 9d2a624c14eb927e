/* checkpoint/config: config.json and generation_config.json as plain structs. Integers are range-checked,
 * unknown architectures and quantization methods are errors that list the known ones; unknown keys are
 * ignored, but a key that changes the arithmetic and has a value that walsh does not implement is an error
 * that names key and value. */
#ifndef WALSH_CHECKPOINT_CONFIG_H
#define WALSH_CHECKPOINT_CONFIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

#define WALSH_MAX_EOS 16

enum walsh_architecture { WALSH_ARCH_LLAMA, WALSH_ARCH_QWEN3_MOE, WALSH_ARCH_COUNT };

enum walsh_rope_type { WALSH_ROPE_DEFAULT, WALSH_ROPE_LINEAR, WALSH_ROPE_LLAMA3 };

/* config.json: rope_theta at the top level, rope_scaling {rope_type|type, ...}, or rope_parameters
 * {rope_theta, rope_type, ...}. */
struct walsh_rope_config {
    enum walsh_rope_type type;
    double theta;
    double factor;                                      /* linear, llama3 */
    double low_frequency_factor, high_frequency_factor; /* llama3 */
    uint32_t original_max_positions;                    /* llama3 */
};

enum walsh_quant_method { WALSH_QUANT_NONE, WALSH_QUANT_GLQ, WALSH_QUANT_WALSH };
/* config.json "quantization_config": quant_method "glq" with codebook "e8p", or "walsh" with version 1 */
struct walsh_quant_config {
    enum walsh_quant_method method;
    char codebook[16];   /* "e8p" */
    double bits;         /* bpw; 0: not given */
    bool block_diagonal; /* missing = true */
    uint32_t version;    /* of quant_method walsh; 0 for glq */
};

struct walsh_config {
    enum walsh_architecture architecture;
    char architecture_name[64]; /* "LlamaForCausalLM" */
    char torch_dtype[16];       /* dtype or torch_dtype: "bfloat16"; "": not given */
    uint32_t hidden, intermediate, layers, heads, kv_heads, head_dim, vocab, max_positions;
    double rms_epsilon;
    struct walsh_rope_config rope;
    bool tied_embeddings;
    bool attention_bias, mlp_bias;
    bool qk_norm; /* RMSNorm of each head's q and k */
    /* mixture of experts; experts == 0: dense */
    uint32_t experts, experts_per_token, expert_intermediate;
    bool normalize_topk;
    int32_t bos;                /* -1: none */
    int32_t eos[WALSH_MAX_EOS]; /* number or list */
    uint32_t eos_count;
    struct walsh_quant_config quant;
};
/* Parse `size` bytes of config.json; `path` is for messages. */
enum walsh_status walsh_config_parse(const char *path, const char *json, size_t size,
                                     struct walsh_config *out, struct walsh_error *err);

struct walsh_generation_config { /* generation_config.json; absent keys keep these defaults */
    bool do_sample;              /* false */
    double temperature;          /* 1 */
    uint32_t top_k;              /* 0: off */
    double top_p, min_p;         /* 1, 0 */
    double repetition_penalty;   /* 1 */
    int32_t bos;                 /* -1 */
    int32_t eos[WALSH_MAX_EOS];  /* number or list */
    uint32_t eos_count;
};
/* A NULL `json` (the file is absent) gives the defaults. */
enum walsh_status walsh_generation_config_parse(const char *path, const char *json, size_t size,
                                                struct walsh_generation_config *out, struct walsh_error *err);

/* The table of architectures: name in config.json, and what its checkpoints hold. */
struct walsh_architecture_info {
    const char *name; /* "LlamaForCausalLM" */
    bool qk_norm, moe;
};
extern const struct walsh_architecture_info walsh_architectures[WALSH_ARCH_COUNT];

#endif
