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

#define WALSH_MAX_LAYERS 4096
#define WALSH_MAX_CONV_TAPS 16

enum walsh_architecture {
    WALSH_ARCH_LLAMA, /* Llama 2 and 3.x, SmolLM2, and what else calls itself so */
    WALSH_ARCH_MISTRAL,
    WALSH_ARCH_MIXTRAL,
    WALSH_ARCH_QWEN2,
    WALSH_ARCH_QWEN3,
    WALSH_ARCH_QWEN3_MOE,
    WALSH_ARCH_GPT_OSS,
    WALSH_ARCH_SMOLLM3,
    WALSH_ARCH_GEMMA2,
    WALSH_ARCH_GEMMA3, /* text only */
    WALSH_ARCH_PHI3,
    WALSH_ARCH_LFM2,
    WALSH_ARCH_LALAMO, /* whatever lalamo's config.json describes: checkpoint/lalamo.h */
    WALSH_ARCH_COUNT
};

enum walsh_rope_type {
    WALSH_ROPE_DEFAULT,
    WALSH_ROPE_LINEAR,
    WALSH_ROPE_LLAMA3,
    WALSH_ROPE_YARN,
    WALSH_ROPE_LONGROPE
};
#define WALSH_MAX_ROPE_PAIRS 128 /* of a longrope's lists */

/* config.json: rope_theta at the top level, rope_scaling {rope_type|type, ...}, or rope_parameters
 * {rope_theta, rope_type, ...}. */
struct walsh_rope_config {
    enum walsh_rope_type type;
    double theta;
    double factor;                                      /* linear, llama3, yarn */
    double low_frequency_factor, high_frequency_factor; /* llama3 */
    uint32_t original_max_positions;                    /* llama3, yarn, longrope */
    double beta_fast,
        beta_slow;           /* yarn: turns within the original context that keep, that slow a frequency */
    bool truncate;           /* yarn: the pairs where those lie are rounded outwards */
    double attention_factor; /* yarn, longrope: of cosine and sine; 0: 1 */
    /* longrope: what each pair's frequency is divided by in sequences of at most original_max_positions
     * tokens, and in longer ones */
    float short_factor[WALSH_MAX_ROPE_PAIRS], long_factor[WALSH_MAX_ROPE_PAIRS];
};

/* What one layer has that others of the model may not; walsh_config.layer_flags. */
enum walsh_layer_flag {
    WALSH_LAYER_WINDOWED = 1, /* attends to the newest walsh_config.window tokens only */
    WALSH_LAYER_NO_ROPE = 2,  /* queries and keys are not rotated by their positions */
    WALSH_LAYER_CONV = 4,     /* a gated short convolution in the place of attention */
};

/* CLAMPED: gpt-oss's, walsh_ops.clamped_swiglu with gate_alpha and gate_limit */
enum walsh_gate { WALSH_GATE_SILU, WALSH_GATE_GELU_TANH, WALSH_GATE_CLAMPED };

#define WALSH_MAX_TENSOR_PARALLEL 16

/* BLOCKS: compressed-tensors, ModelOpt, gpt-oss's mxfp4, DeepSeek's fp8; the tensors say what a linear is
 * (checkpoint/blocks.h) */
enum walsh_quant_method { WALSH_QUANT_NONE, WALSH_QUANT_GLQ, WALSH_QUANT_WALSH, WALSH_QUANT_BLOCKS };
/* config.json "quantization_config": quant_method "glq" with codebook "e8p" or "e8_shell", "walsh" with
 * version 1 and the codebook "e8p" or a block format's name, or one of those programs' */
struct walsh_quant_config {
    enum walsh_quant_method method;
    char codebook[16];   /* "e8p", "mxfp4"; of BLOCKS "" */
    double bits;         /* bpw; 0: not given */
    bool block_diagonal; /* missing = true */
    uint32_t version;    /* of quant_method walsh; 0 for glq */
    uint32_t
        tensor_parallel; /* walsh: parts that the blocks of split dimensions were decomposed for; else 1 */
};

struct walsh_config {
    enum walsh_architecture architecture;
    char architecture_name[64]; /* "LlamaForCausalLM" */
    char torch_dtype[16];       /* dtype or torch_dtype: "bfloat16"; "": not given */
    uint32_t hidden, intermediate, layers, heads, kv_heads, head_dim, vocab, max_positions;
    double rms_epsilon;
    bool norm_offset; /* RMSNorm multiplies by 1 + its weight */
    struct walsh_rope_config rope;
    bool has_local_rope; /* windowed layers have ... */
    struct walsh_rope_config local_rope;
    uint32_t rotary_dim; /* the first elements of a head, which are rotated; 0: all head_dim */
    uint32_t window;     /* tokens that a windowed layer sees, its own included; 0: no layer is one */
    uint8_t layer_flags[WALSH_MAX_LAYERS]; /* enum walsh_layer_flag */
    bool tied_embeddings;
    bool attention_bias, output_bias, mlp_bias; /* of q, k, v; of o; of gate, up, down */
    bool qk_norm;                               /* RMSNorm of each head's q and k */
    bool output_norms;                          /* RMSNorm of what attention and MLP add */
    enum walsh_gate gate;                       /* down(gate(x) * up(x)) */
    bool scaled_embeddings;                     /* the embedding's rows are multiplied by sqrt(hidden) */
    double query_scalar;                        /* scores are divided by its root; 0: head_dim */
    double score_cap, logit_cap; /* scores, logits become cap * tanh(x / cap); 0: they stay as they are */
    /* mixture of experts; experts == 0: dense */
    uint32_t experts, experts_per_token, expert_intermediate;
    bool normalize_topk;
    bool expert_bias;              /* of the router and of the experts' linears */
    double gate_alpha, gate_limit; /* WALSH_GATE_CLAMPED */
    uint32_t conv_taps; /* tokens that a short convolution reads, its own included; 0: no layer has one */
    bool conv_bias;     /* of its projections and of itself */
    int32_t bos;        /* -1: none */
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

#endif
