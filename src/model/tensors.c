/* What a graph holds, as a list and as sums. */
#include <stdio.h>
#include <string.h>

#include "checkpoint/architectures.h"
#include "model/build.h"

struct lister {
    struct walsh_model_graph *graph;
    const struct walsh_architecture_names *names;
    struct walsh_error *err;
};

/* Bits of a weight's codes or values, padding included. */
static double weight_bits(const struct walsh_weights *w)
{
    double elements = (double)w->rows * w->cols, bits = 0;
    if (w->format != WALSH_FORMAT_E8P) return (double)walsh_weights_bytes(w) * 8;
    for (unsigned k = 0; k < w->stages; k++) bits += elements * (w->stage[k].kind == WALSH_STAGE_E8P ? 2 : 1);
    return bits;
}

static enum walsh_status add(struct lister *l, const char *module, const char *suffix,
                             struct walsh_graph_tensor tensor)
{
    char name[300], *copy;
    snprintf(name, sizeof name, "%s.%s", module, suffix);
    WALSH_TRY(walsh_arena_strdup(&l->graph->arena, name, &copy, l->err));
    tensor.name = copy;
    tensor.bits = tensor.weights ? weight_bits(tensor.weights) : (double)tensor.rows * tensor.cols * 32;
    l->graph->tensors[l->graph->tensor_count++] = tensor;
    return WALSH_OK;
}

static enum walsh_status add_linear(struct lister *l, const struct walsh_linear *linear, const char *part)
{
    WALSH_TRY(add(l, linear->name, "weight",
                  (struct walsh_graph_tensor){.part = part,
                                              .rows = linear->out,
                                              .cols = linear->in,
                                              .linear = linear,
                                              .weights = &linear->weights}));
    if (!linear->bias) return WALSH_OK;
    return add(l, linear->name, "bias",
               (struct walsh_graph_tensor){.part = part, .rows = linear->out, .cols = 1});
}

static enum walsh_status add_norm(struct lister *l, uint32_t layer, const char *module, uint32_t n)
{
    if (!module) return WALSH_OK;
    char path[256];
    snprintf(path, sizeof path, "%s.%u.%s", l->names->layers, layer, module);
    return add(l, path, "weight", (struct walsh_graph_tensor){.part = "norm", .rows = n, .cols = 1});
}

static enum walsh_status add_conv(struct lister *l, uint32_t layer, const char *suffix, uint32_t rows,
                                  uint32_t cols)
{
    char path[256];
    snprintf(path, sizeof path, "%s.%u.%s", l->names->layers, layer, l->names->conv);
    return add(l, path, suffix, (struct walsh_graph_tensor){.part = "conv", .rows = rows, .cols = cols});
}

static enum walsh_status add_layer(struct lister *l, uint32_t i)
{
    const struct walsh_config *c = &l->graph->config;
    const struct walsh_layer *layer = &l->graph->layers[i];
    WALSH_TRY(add_norm(l, i, l->names->input_norm, c->hidden));
    const struct walsh_linear *const attention[] = {&layer->q, &layer->k, &layer->v, &layer->o};
    const bool conv = layer->conv_weight != NULL;
    for (size_t j = 0; j < 4; j++)
        if (attention[j]->name) WALSH_TRY(add_linear(l, attention[j], conv ? "conv" : "attention"));
    if (conv) {
        WALSH_TRY(add_conv(l, i, "weight", c->hidden, c->conv_taps));
        if (layer->conv_bias) WALSH_TRY(add_conv(l, i, "bias", c->hidden, 1));
    } else {
        if (layer->q_norm) WALSH_TRY(add_norm(l, i, l->names->q_norm, c->head_dim));
        if (layer->k_norm) WALSH_TRY(add_norm(l, i, l->names->k_norm, c->head_dim));
    }
    if (c->output_norms) WALSH_TRY(add_norm(l, i, l->names->attention_output_norm, c->hidden));
    WALSH_TRY(add_norm(l, i, l->names->mlp_norm, c->hidden));
    if (c->output_norms) WALSH_TRY(add_norm(l, i, l->names->mlp_output_norm, c->hidden));
    if (!layer->experts) {
        const struct walsh_linear *const mlp[] = {&layer->gate, &layer->up, &layer->down};
        for (size_t j = 0; j < 3; j++) WALSH_TRY(add_linear(l, mlp[j], "mlp"));
        return WALSH_OK;
    }
    WALSH_TRY(add_linear(l, &layer->router, "router"));
    for (uint32_t e = 0; e < c->experts; e++) {
        const struct walsh_expert *x = &layer->experts[e];
        const struct walsh_linear *const expert[] = {&x->gate, &x->up, &x->down};
        for (size_t j = 0; j < 3; j++) WALSH_TRY(add_linear(l, expert[j], "experts"));
    }
    return WALSH_OK;
}

static void sum(struct walsh_model_graph *graph)
{
    const struct walsh_config *c = &graph->config;
    struct walsh_graph_totals *t = &graph->totals;
    uint64_t expert_bytes = 0, expert_weights = 0;
    for (size_t i = 0; i < graph->tensor_count; i++) {
        const struct walsh_graph_tensor *x = &graph->tensors[i];
        uint64_t elements = (uint64_t)x->rows * x->cols;
        uint64_t bytes = x->weights ? walsh_weights_bytes(x->weights) : elements * sizeof(float);
        bool head = strcmp(x->part, "head") == 0, embedding = strcmp(x->part, "embedding") == 0;
        if (!(head && c->tied_embeddings)) t->parameters += elements;
        if (x->linear && !head && strcmp(x->part, "router") != 0) {
            t->linear_parameters += elements;
            t->linear_bits += x->bits;
        }
        const bool expert = strcmp(x->part, "experts") == 0;
        if (head) t->head_weights += elements;
        if (x->linear) *(expert ? &expert_weights : &t->decode_weights) += elements;
        if (embedding)
            t->decode_bytes += bytes / x->rows;
        else
            *(expert ? &expert_bytes : &t->decode_bytes) += bytes;
    }
    if (c->experts) t->decode_bytes += expert_bytes / c->experts * c->experts_per_token;
    if (c->experts) t->decode_weights += expert_weights / c->experts * c->experts_per_token;
}

enum walsh_status walsh_graph_list(struct walsh_model_graph *graph, struct walsh_error *err)
{
    const struct walsh_config *c = &graph->config;
    struct lister l = {graph, &walsh_architectures[c->architecture].names, err};
    /* per layer: 6 norms, 4 linears of attention, 3 of an MLP or a router and 3 per expert; each linear may
     * have a bias */
    size_t per_layer = 6 + 2 * (4 + (c->experts ? 1 + 3 * (size_t)c->experts : 3));
    size_t count;
    if (!walsh_mul(per_layer, c->layers, &count) || !walsh_add(count, 3, &count))
        return walsh_fail(err, WALSH_E_MEMORY, "a list of the tensors of %u layers does not fit", c->layers);
    WALSH_TRY(walsh_arena_alloc(&graph->arena, count, sizeof *graph->tensors, "the list of tensors",
                                &graph->tensors, err));
    graph->tensor_count = 0;
    WALSH_TRY(
        add(&l, l.names->embedding, "weight",
            (struct walsh_graph_tensor){
                .part = "embedding", .rows = c->vocab, .cols = c->hidden, .weights = &graph->embedding}));
    for (uint32_t i = 0; i < c->layers; i++) WALSH_TRY(add_layer(&l, i));
    WALSH_TRY(add(&l, l.names->final_norm, "weight",
                  (struct walsh_graph_tensor){.part = "norm", .rows = c->hidden, .cols = 1}));
    WALSH_TRY(add_linear(&l, &graph->head, "head"));
    sum(graph);
    return WALSH_OK;
}
