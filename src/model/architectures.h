/* model/architectures: where each architecture keeps its tensors. Private to model/.
 *
 * To add an architecture: an enumerator and a line in checkpoint/config (its name there, the flags that its
 * config.json implies) and an entry here. What the arithmetic shares with the others needs nothing else; a
 * new operation goes into layer.c behind a flag of walsh_config. */
#ifndef WALSH_MODEL_ARCHITECTURES_H
#define WALSH_MODEL_ARCHITECTURES_H

#include "checkpoint/config.h"

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

extern const struct walsh_architecture_names walsh_architecture_names[WALSH_ARCH_COUNT];

#endif
