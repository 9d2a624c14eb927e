/* checkpoint/architectures: the table of architectures, one entry each.
 *
 * To add one: an enumerator in checkpoint/config.h and an entry in architectures.c. What the arithmetic shares with the
 * others needs nothing else; keys of its own in config.json are a flag here that config.c reads, and a new operation
 * goes into model/layer.c behind a flag of walsh_config. */
#ifndef WALSH_CHECKPOINT_ARCHITECTURES_H
#define WALSH_CHECKPOINT_ARCHITECTURES_H

#include "checkpoint/config.h"

/* Which layers attend within a window. `layer_types` says so itself where the file has it. */
enum walsh_window_rule {
    WALSH_WINDOWS_NONE,     /* the architecture has none; sliding_window must be null */
    WALSH_WINDOWS_ALL,      /* every layer, where sliding_window is a number */
    WALSH_WINDOWS_LATE,     /* the layers from max_window_layers on */
    WALSH_WINDOWS_NO_ROPE,  /* the layers without rope */
    WALSH_WINDOWS_ALTERNATE /* all but every n-th: sliding_window_pattern, or the table's `pattern` */
};

/* Module paths. A layer's are below `layers`.N, an expert's below those of its layer and `experts`.E; a
 * tensor is the path with ".weight" or ".bias". NULL: the architecture has no such module. */
struct walsh_architecture_names {
    const char *embedding, *final_norm, *head;
    const char *layers; /* "model.layers" */
    const char *input_norm, *mlp_norm;
    const char *attention_output_norm, *mlp_output_norm;
    const char *q, *k, *v, *o;
    const char *q_norm, *k_norm;
    const char *conv, *conv_in, *conv_out; /* a short convolution and its projections */
    const char *gate, *up, *down;          /* dense */
    const char *qkv, *gate_up;    /* one matrix with the rows of q, k and v, of gate and up; else NULL */
    bool up_first;                /* of gate_up: the rows of up come before those of gate */
    const char *router, *experts; /* mixture of experts */
    /* what the classes of Hugging Face's library call the last two, where checkpoints have other names;
     * PEFT's names follow the classes */
    const char *router_module, *experts_module;
    const char *expert_gate, *expert_up, *expert_down;
    /* stacks of all experts' matrices (gpt-oss): rows of gate and up by turns, and down; else NULL */
    const char *stacked_gate_up, *stacked_down;
    const char *sinks; /* a tensor: without ".weight" */
};

/* The table of architectures: name in config.json, what its checkpoints hold, and the values of keys that
 * config.json may leave out (the defaults of Hugging Face's configuration classes). */
struct walsh_architecture_info {
    const char *name; /* "LlamaForCausalLM" */
    bool qk_norm, moe;
    bool bias_keys;      /* attention_bias and mlp_bias say which linears have a bias */
    bool qkv_bias;       /* q, k and v always have one */
    bool gemma;          /* norm_offset, scaled_embeddings, query_pre_attn_scalar, the soft caps */
    bool no_rope_layers; /* the key */
    bool partial_rotary; /* partial_rotary_factor */
    bool gpt_oss;    /* biases of everything, attention sinks, its gate; YaRN where the file says nothing */
    bool local_rope; /* windowed layers have a rope of their own */
    bool phi3;       /* "su" and "yarn" are older names of its longrope; original_max_position_embeddings */
    bool lfm2;       /* convolutions, and the keys that are spelt otherwise */
    enum walsh_window_rule windows;
    bool window_switch; /* windows are only on where use_sliding_window is true */
    uint32_t window, pattern;
    bool tied;
    double rope_theta, rms_epsilon;
    double score_cap, logit_cap;
    struct walsh_architecture_names names;
};
extern const struct walsh_architecture_info walsh_architectures[WALSH_ARCH_COUNT];

#endif
