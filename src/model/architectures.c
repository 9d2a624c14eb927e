#include "model/architectures.h"

/* What all of them call the same. */
#define COMMON                                                                                               \
    .embedding = "model.embed_tokens", .final_norm = "model.norm", .head = "lm_head",                        \
    .layers = "model.layers", .input_norm = "input_layernorm", .q = "self_attn.q_proj",                      \
    .k = "self_attn.k_proj", .v = "self_attn.v_proj", .o = "self_attn.o_proj"
#define DENSE .gate = "mlp.gate_proj", .up = "mlp.up_proj", .down = "mlp.down_proj"
#define LLAMA_NORM .mlp_norm = "post_attention_layernorm"
#define GEMMA_NORMS                                                                                          \
    .attention_output_norm = "post_attention_layernorm", .mlp_norm = "pre_feedforward_layernorm",            \
    .mlp_output_norm = "post_feedforward_layernorm"
#define HEAD_NORMS .q_norm = "self_attn.q_norm", .k_norm = "self_attn.k_norm"

const struct walsh_architecture_names walsh_architecture_names[WALSH_ARCH_COUNT] = {
    [WALSH_ARCH_LLAMA] = {COMMON, LLAMA_NORM, DENSE},
    [WALSH_ARCH_MISTRAL] = {COMMON, LLAMA_NORM, DENSE},
    [WALSH_ARCH_MIXTRAL] = {COMMON, LLAMA_NORM, .router = "block_sparse_moe.gate",
                            .experts = "block_sparse_moe.experts", .router_module = "mlp.gate",
                            .experts_module = "mlp.experts", .expert_gate = "w1", .expert_up = "w3",
                            .expert_down = "w2"},
    [WALSH_ARCH_QWEN2] = {COMMON, LLAMA_NORM, DENSE},
    [WALSH_ARCH_QWEN3] = {COMMON, LLAMA_NORM, HEAD_NORMS, DENSE},
    [WALSH_ARCH_QWEN3_MOE] = {COMMON, LLAMA_NORM, HEAD_NORMS, .router = "mlp.gate", .experts = "mlp.experts",
                              .expert_gate = "gate_proj", .expert_up = "up_proj", .expert_down = "down_proj"},
    [WALSH_ARCH_GPT_OSS] = {COMMON, LLAMA_NORM, .router = "mlp.router", .experts = "mlp.experts",
                            .expert_gate = "gate_proj", .expert_up = "up_proj", .expert_down = "down_proj",
                            .stacked_gate_up = "mlp.experts.gate_up_proj",
                            .stacked_down = "mlp.experts.down_proj", .sinks = "self_attn.sinks"},
    [WALSH_ARCH_SMOLLM3] = {COMMON, LLAMA_NORM, DENSE},
    [WALSH_ARCH_GEMMA2] = {COMMON, GEMMA_NORMS, DENSE},
    [WALSH_ARCH_GEMMA3] = {COMMON, GEMMA_NORMS, HEAD_NORMS, DENSE},
    [WALSH_ARCH_PHI3] = {COMMON, LLAMA_NORM, DENSE, .qkv = "self_attn.qkv_proj",
                         .gate_up = "mlp.gate_up_proj"},
    [WALSH_ARCH_LFM2] = {.embedding = "model.embed_tokens",
                         .final_norm = "model.embedding_norm",
                         .head = "lm_head",
                         .layers = "model.layers",
                         .input_norm = "operator_norm",
                         .mlp_norm = "ffn_norm",
                         .q = "self_attn.q_proj",
                         .k = "self_attn.k_proj",
                         .v = "self_attn.v_proj",
                         .o = "self_attn.out_proj",
                         .q_norm = "self_attn.q_layernorm",
                         .k_norm = "self_attn.k_layernorm",
                         .conv = "conv.conv",
                         .conv_in = "conv.in_proj",
                         .conv_out = "conv.out_proj",
                         .gate = "feed_forward.w1",
                         .up = "feed_forward.w3",
                         .down = "feed_forward.w2"},
    [WALSH_ARCH_LALAMO] = {.embedding = "decoder.embedding.input_embedding",
                           .final_norm = "decoder.transformer.output_norm",
                           .head = "decoder.embedding.output_embedding",
                           .layers = "decoder.transformer.layers",
                           .input_norm = "pre_mixer_norm",
                           .attention_output_norm = "post_mixer_norm",
                           .mlp_norm = "pre_mlp_norm",
                           .mlp_output_norm = "post_mlp_norm",
                           .q = "mixer.q",
                           .k = "mixer.k",
                           .v = "mixer.v",
                           .qkv = "mixer.qkvg_projection",
                           .o = "mixer.out_projection",
                           .q_norm = "mixer.query_norm",
                           .k_norm = "mixer.key_norm",
                           .conv = "mixer.conv",
                           .conv_in = "mixer.in_projection",
                           .conv_out = "mixer.out_projection",
                           .gate = "mlp.gate",
                           .up = "mlp.up",
                           .gate_up = "mlp.up_projection",
                           .up_first = true,
                           .down = "mlp.down_projection"},
};
