/* The linears of the model for which tools/peft_fixtures.py writes adapters: a dense layer 0, a layer 1 of
 * experts. */
#ifndef WALSH_TESTS_PEFT_MODEL_H
#define WALSH_TESTS_PEFT_MODEL_H

#include <stdio.h>

#include "checkpoint/peft.h"

#define PEFT_MODEL_LINEARS 22

static inline size_t peft_model(struct walsh_peft_linear linears[PEFT_MODEL_LINEARS])
{
    static char names[PEFT_MODEL_LINEARS][64];
    enum { HIDDEN = 24, QUERY = 40, KEY = 16, INTER = 36, EXPERT_INTER = 20, EXPERTS = 3, VOCAB = 50 };
    static const struct {
        const char *name;
        uint32_t in, out;
    } attention[] = {{"q_proj", HIDDEN, QUERY},
                     {"k_proj", HIDDEN, KEY},
                     {"v_proj", HIDDEN, KEY},
                     {"o_proj", QUERY, HIDDEN}},
      mlp[] = {{"gate_proj", HIDDEN, INTER}, {"up_proj", HIDDEN, INTER}, {"down_proj", INTER, HIDDEN}},
      expert[] = {{"gate_proj", HIDDEN, EXPERT_INTER},
                  {"up_proj", HIDDEN, EXPERT_INTER},
                  {"down_proj", EXPERT_INTER, HIDDEN}};
    size_t n = 0;
    for (unsigned layer = 0; layer < 2; layer++)
        for (unsigned i = 0; i < 4; i++, n++) {
            snprintf(names[n], sizeof names[n], "model.layers.%u.self_attn.%s", layer, attention[i].name);
            linears[n] =
                (struct walsh_peft_linear){.name = names[n], .in = attention[i].in, .out = attention[i].out};
        }
    for (unsigned i = 0; i < 3; i++, n++) {
        snprintf(names[n], sizeof names[n], "model.layers.0.mlp.%s", mlp[i].name);
        linears[n] = (struct walsh_peft_linear){.name = names[n], .in = mlp[i].in, .out = mlp[i].out};
    }
    for (unsigned e = 0; e < EXPERTS; e++)
        for (unsigned i = 0; i < 3; i++, n++) {
            snprintf(names[n], sizeof names[n], "model.layers.1.mlp.experts.%u.%s", e, expert[i].name);
            linears[n] = (struct walsh_peft_linear){.name = names[n],
                                                    .in = expert[i].in,
                                                    .out = expert[i].out,
                                                    .stack = i < 2 ? "model.layers.1.mlp.experts.gate_up_proj"
                                                                   : "model.layers.1.mlp.experts.down_proj",
                                                    .expert = e,
                                                    .experts = EXPERTS,
                                                    .stack_out = i < 2 ? 2 * EXPERT_INTER : HIDDEN,
                                                    .stack_row = i == 1 ? EXPERT_INTER : 0,
                                                    .stack_step = 1};
        }
    linears[n++] = (struct walsh_peft_linear){
        .name = "model.layers.1.mlp.gate", .in = HIDDEN, .out = EXPERTS, .often_absent = true};
    linears[n++] =
        (struct walsh_peft_linear){.name = "lm_head", .in = HIDDEN, .out = VOCAB, .often_absent = true};
    return n;
}

#endif
