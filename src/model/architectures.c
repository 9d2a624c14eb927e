#include "model/architectures.h"

const struct walsh_architecture_names walsh_architecture_names[WALSH_ARCH_COUNT] = {
    [WALSH_ARCH_LLAMA] =
        {
            .embedding = "model.embed_tokens",
            .final_norm = "model.norm",
            .head = "lm_head",
            .layers = "model.layers",
            .input_norm = "input_layernorm",
            .post_norm = "post_attention_layernorm",
            .q = "self_attn.q_proj",
            .k = "self_attn.k_proj",
            .v = "self_attn.v_proj",
            .o = "self_attn.o_proj",
            .gate = "mlp.gate_proj",
            .up = "mlp.up_proj",
            .down = "mlp.down_proj",
        },
    [WALSH_ARCH_QWEN3_MOE] =
        {
            .embedding = "model.embed_tokens",
            .final_norm = "model.norm",
            .head = "lm_head",
            .layers = "model.layers",
            .input_norm = "input_layernorm",
            .post_norm = "post_attention_layernorm",
            .q = "self_attn.q_proj",
            .k = "self_attn.k_proj",
            .v = "self_attn.v_proj",
            .o = "self_attn.o_proj",
            .q_norm = "self_attn.q_norm",
            .k_norm = "self_attn.k_norm",
            .router = "mlp.gate",
            .experts = "mlp.experts",
            .expert_gate = "gate_proj",
            .expert_up = "up_proj",
            .expert_down = "down_proj",
        },
};
