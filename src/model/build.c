#include "model/build.h"

#include <stdio.h>

#include "checkpoint/architectures.h"
#include "model/rope.h"
#include "model/sites.h"

#define NAME_SIZE 256   /* of a module path; those of the table of architectures are far shorter */
#define MODULE_SIZE 128 /* of its part below a layer */

struct builder {
    struct walsh_model_graph *graph;
    struct walsh_source *source;
    const struct walsh_architecture_names *names;
    struct walsh_error *err;
};

/* "LAYERS.layer.module" */
static const char *layer_path(const struct builder *b, char *name, uint32_t layer, const char *module)
{
    snprintf(name, NAME_SIZE, "%s.%u.%s", b->names->layers, layer, module);
    return name;
}

static enum walsh_status layer_linear(const struct builder *b, uint32_t layer, const char *module,
                                      enum walsh_linear_role role, uint32_t in, uint32_t out, bool bias,
                                      struct walsh_linear *linear)
{
    char name[NAME_SIZE];
    return b->source->linear(b->source, layer_path(b, name, layer, module), NULL, role, in, out, bias, linear,
                             b->err);
}

/* A projection of x that has its rows in module `fused`; NULL: a matrix of its own. */
static enum walsh_status layer_part(const struct builder *b, uint32_t layer, const char *module,
                                    const char *fused, uint32_t row, uint32_t rows, bool bias, uint32_t out,
                                    struct walsh_linear *linear)
{
    const uint32_t in = b->graph->config.hidden;
    if (!fused) return layer_linear(b, layer, module, WALSH_LINEAR_LAYER, in, out, bias, linear);
    char name[NAME_SIZE], fused_name[NAME_SIZE];
    const struct walsh_fusion fusion = {
        .name = layer_path(b, fused_name, layer, fused), .row = row, .rows = rows};
    return b->source->linear(b->source, layer_path(b, name, layer, module), &fusion, WALSH_LINEAR_LAYER, in,
                             out, bias, linear, b->err);
}

/* The multipliers of an RMSNorm. */
static enum walsh_status norm(const struct builder *b, const char *name, uint32_t n, const float **values)
{
    float *weight;
    char tensor[NAME_SIZE + 8];
    snprintf(tensor, sizeof tensor, "%s.weight", name);
    WALSH_TRY(b->source->vector(b->source, tensor, n, &weight, b->err));
    for (uint32_t i = 0; b->graph->config.norm_offset && i < n; i++) weight[i] += 1;
    *values = weight;
    return WALSH_OK;
}

/* Nothing where the architecture has no such module. */
static enum walsh_status layer_norm(const struct builder *b, uint32_t layer, const char *module, uint32_t n,
                                    const float **values)
{
    if (!module) return WALSH_OK;
    char name[NAME_SIZE];
    return norm(b, layer_path(b, name, layer, module), n, values);
}

/* Equal signs become one vector, so that an apply sees by the pointer that two linears share their input's
 * rotation. */
static void share_signs(const struct walsh_linear *first, struct walsh_linear *other)
{
    if (walsh_rotation_equal(&first->in_rotation, &other->in_rotation))
        other->in_rotation.signs = first->in_rotation.signs;
}

static enum walsh_status build_attention(const struct builder *b, uint32_t i, struct walsh_layer *layer)
{
    const struct walsh_architecture_names *n = b->names;
    const struct walsh_config *c = &b->graph->config;
    uint32_t heads = c->heads * c->head_dim, kv = c->kv_heads * c->head_dim;
    bool bias = c->attention_bias;
    const uint32_t all = heads + 2 * kv;
    WALSH_TRY(layer_part(b, i, n->q, n->qkv, 0, all, bias, heads, &layer->q));
    WALSH_TRY(layer_part(b, i, n->k, n->qkv, heads, all, bias, kv, &layer->k));
    WALSH_TRY(layer_part(b, i, n->v, n->qkv, heads + kv, all, bias, kv, &layer->v));
    WALSH_TRY(layer_linear(b, i, n->o, WALSH_LINEAR_OUTPUT, heads, c->hidden, c->output_bias, &layer->o));
    share_signs(&layer->q, &layer->k);
    share_signs(&layer->q, &layer->v);
    if (n->sinks) {
        char name[NAME_SIZE];
        float *sinks;
        WALSH_TRY(b->source->vector(b->source, layer_path(b, name, i, n->sinks), c->heads, &sinks, b->err));
        layer->sinks = sinks;
    }
    if (!c->qk_norm) return WALSH_OK;
    WALSH_TRY(layer_norm(b, i, n->q_norm, c->head_dim, &layer->q_norm));
    return layer_norm(b, i, n->k_norm, c->head_dim, &layer->k_norm);
}

/* x is projected to B, C and v, and C conv(B v) back. */
static enum walsh_status build_conv(const struct builder *b, uint32_t i, struct walsh_layer *layer)
{
    const struct walsh_architecture_names *n = b->names;
    const struct walsh_config *c = &b->graph->config;
    char name[NAME_SIZE];
    if (!b->source->conv) return walsh_fail(b->err, WALSH_E_UNSUPPORTED, "no convolutions of random weights");
    WALSH_TRY(layer_linear(b, i, n->conv_in, WALSH_LINEAR_LAYER, c->hidden, 3 * c->hidden, c->conv_bias,
                           &layer->q));
    WALSH_TRY(
        layer_linear(b, i, n->conv_out, WALSH_LINEAR_OUTPUT, c->hidden, c->hidden, c->conv_bias, &layer->o));
    return b->source->conv(b->source, layer_path(b, name, i, n->conv), c->hidden, c->conv_taps, c->conv_bias,
                           &layer->conv_weight, &layer->conv_bias, b->err);
}

static enum walsh_status build_norms(const struct builder *b, uint32_t i, struct walsh_layer *layer)
{
    const struct walsh_architecture_names *n = b->names;
    const uint32_t hidden = b->graph->config.hidden;
    WALSH_TRY(layer_norm(b, i, n->input_norm, hidden, &layer->input_norm));
    WALSH_TRY(layer_norm(b, i, n->mlp_norm, hidden, &layer->mlp_norm));
    if (!b->graph->config.output_norms) return WALSH_OK;
    WALSH_TRY(layer_norm(b, i, n->attention_output_norm, hidden, &layer->attention_output_norm));
    return layer_norm(b, i, n->mlp_output_norm, hidden, &layer->mlp_output_norm);
}

/* What config.layer_flags says of a layer. */
static void set_flags(struct walsh_model_graph *graph, uint32_t i, struct walsh_layer *layer)
{
    const struct walsh_config *c = &graph->config;
    const bool windowed = c->layer_flags[i] & WALSH_LAYER_WINDOWED;
    layer->window = windowed ? c->window : 0;
    layer->rope = windowed && c->has_local_rope ? &graph->local_rope : &graph->rope;
    if (c->layer_flags[i] & WALSH_LAYER_NO_ROPE) layer->rope = NULL;
    if (graph->windowed) graph->windowed[i] = windowed;
    if (graph->conv) graph->conv[i] = c->layer_flags[i] & WALSH_LAYER_CONV;
}

static enum walsh_status build_ropes(const struct builder *b, struct walsh_pool *pool)
{
    struct walsh_model_graph *g = b->graph;
    const struct walsh_config *c = &g->config;
    const uint32_t dim = c->rotary_dim ? c->rotary_dim : c->head_dim;
    WALSH_TRY(walsh_rope_fill(&c->rope, dim, c->max_positions, pool, &g->arena, &g->rope, b->err));
    if (!c->has_local_rope) return WALSH_OK;
    return walsh_rope_fill(&c->local_rope, dim, c->max_positions, pool, &g->arena, &g->local_rope, b->err);
}

static enum walsh_status build_dense(const struct builder *b, uint32_t i, struct walsh_layer *layer)
{
    const struct walsh_architecture_names *n = b->names;
    const struct walsh_config *c = &b->graph->config;
    const uint32_t wide = c->intermediate, both = 2 * wide;
    const uint32_t gate = n->up_first ? wide : 0, up = n->up_first ? 0 : wide;
    WALSH_TRY(layer_part(b, i, n->gate, n->gate_up, gate, both, c->mlp_bias, wide, &layer->gate));
    WALSH_TRY(layer_part(b, i, n->up, n->gate_up, up, both, c->mlp_bias, wide, &layer->up));
    WALSH_TRY(layer_linear(b, i, n->down, WALSH_LINEAR_OUTPUT, wide, c->hidden, c->mlp_bias, &layer->down));
    share_signs(&layer->gate, &layer->up);
    return WALSH_OK;
}

static enum walsh_status build_experts(const struct builder *b, uint32_t i, struct walsh_layer *layer)
{
    const struct walsh_architecture_names *n = b->names;
    const struct walsh_config *c = &b->graph->config;
    WALSH_TRY(layer_linear(b, i, n->router, WALSH_LINEAR_ROUTER, c->hidden, c->experts, c->expert_bias,
                           &layer->router));
    WALSH_TRY(walsh_arena_alloc(&b->graph->arena, c->experts, sizeof *layer->experts, "the experts",
                                &layer->experts, b->err));
    for (uint32_t e = 0; e < c->experts; e++) {
        struct walsh_expert *expert = &layer->experts[e];
        const struct {
            const char *name, *stack;
            uint32_t in, out, row, step;
            struct walsh_linear *linear;
        } parts[] = {
            {n->expert_gate, n->stacked_gate_up, c->hidden, c->expert_intermediate, 0, 2, &expert->gate},
            {n->expert_up, n->stacked_gate_up, c->hidden, c->expert_intermediate, 1, 2, &expert->up},
            {n->expert_down, n->stacked_down, c->expert_intermediate, c->hidden, 0, 1, &expert->down}};
        for (size_t p = 0; p < sizeof parts / sizeof *parts; p++) {
            char module[MODULE_SIZE];
            snprintf(module, sizeof module, "%s.%u.%s", n->experts, e, parts[p].name);
            const enum walsh_linear_role role = p == 2 ? WALSH_LINEAR_OUTPUT : WALSH_LINEAR_LAYER;
            if (!parts[p].stack) {
                WALSH_TRY(layer_linear(b, i, module, role, parts[p].in, parts[p].out, c->expert_bias,
                                       parts[p].linear));
                continue;
            }
            char name[NAME_SIZE], stack[NAME_SIZE];
            const struct walsh_fusion fusion = {.name = layer_path(b, stack, i, parts[p].stack),
                                                .row = parts[p].row,
                                                .rows = parts[p].out * parts[p].step,
                                                .step = parts[p].step,
                                                .stack = c->experts,
                                                .matrix = e};
            WALSH_TRY(b->source->linear(b->source, layer_path(b, name, i, module), &fusion, role, parts[p].in,
                                        parts[p].out, c->expert_bias, parts[p].linear, b->err));
        }
        share_signs(&expert->gate, &expert->up);
        share_signs(&layer->experts[0].gate, &expert->gate);
        share_signs(&layer->experts[0].gate, &expert->up);
    }
    return WALSH_OK;
}

/* Tied embeddings: the table is the head's weight too. */
static enum walsh_status build_head(const struct builder *b, enum walsh_activation_type dense)
{
    struct walsh_model_graph *g = b->graph;
    const struct walsh_config *c = &g->config;
    if (!c->tied_embeddings)
        return b->source->linear(b->source, b->names->head, NULL, WALSH_LINEAR_HEAD, c->hidden, c->vocab,
                                 false, &g->head, b->err);
    g->head = (struct walsh_linear){
        .name = b->names->head,
        .in = c->hidden,
        .out = c->vocab,
        .in_rotation = {.size = c->hidden, .blocks = {.padded = c->hidden}},
        .out_rotation = {.size = c->vocab, .blocks = {.padded = c->vocab}},
        .weights = g->embedding,
        .activation = walsh_linear_activation(g->embedding.format, dense, dense),
    };
    return WALSH_OK;
}

/* The kernels' scratch has fixed sizes; a configuration beyond them is refused before anything is built. */
static enum walsh_status check_limits(const struct walsh_model_graph *graph, struct walsh_error *err)
{
    const struct walsh_config *c = &graph->config;
    const char *where = graph->checkpoint.directory ? graph->checkpoint.directory : "shape";
    if (c->head_dim > WALSH_MAX_HEAD_DIM)
        return walsh_fail(err, WALSH_E_UNSUPPORTED, "%s: head_dim is %u, expected at most %d", where,
                          c->head_dim, WALSH_MAX_HEAD_DIM);
    if (c->heads / c->kv_heads > WALSH_MAX_HEAD_GROUP)
        return walsh_fail(
            err, WALSH_E_UNSUPPORTED,
            "%s: %u attention heads for %u key-value heads are %u for each, expected at most %d", where,
            c->heads, c->kv_heads, c->heads / c->kv_heads, WALSH_MAX_HEAD_GROUP);
    const struct {
        const char *what;
        uint32_t columns;
    } inputs[] = {{"hidden size", c->hidden},
                  {"heads times head_dim", c->heads * c->head_dim},
                  {"intermediate size", c->experts ? c->expert_intermediate : c->intermediate}};
    for (size_t i = 0; i < sizeof inputs / sizeof *inputs; i++)
        if (inputs[i].columns > WALSH_MAX_COLUMNS)
            return walsh_fail(err, WALSH_E_UNSUPPORTED, "%s: %s is %u, expected at most %u", where,
                              inputs[i].what, inputs[i].columns, WALSH_MAX_COLUMNS);
    return WALSH_OK;
}

enum walsh_status walsh_graph_build(struct walsh_model_graph *graph, struct walsh_source *source,
                                    enum walsh_activation_type dense, struct walsh_pool *pool,
                                    struct walsh_error *err)
{
    const struct walsh_config *c = &graph->config;
    WALSH_TRY(check_limits(graph, err));
    graph->config.max_positions = (uint32_t)walsh_min(c->max_positions, WALSH_MAX_POSITIONS);
    const struct builder b = {graph, source, &walsh_architectures[c->architecture].names, err};
    WALSH_TRY(source->table(source, b.names->embedding, c->vocab, c->hidden, &graph->embedding, err));
    WALSH_TRY(walsh_arena_alloc(&graph->arena, c->layers, sizeof *graph->layers, "the layers", &graph->layers,
                                err));
    if (c->window != 0)
        WALSH_TRY(walsh_arena_alloc(&graph->arena, c->layers, sizeof *graph->windowed, "the layers",
                                    &graph->windowed, err));
    if (c->conv_taps != 0)
        WALSH_TRY(walsh_arena_alloc(&graph->arena, c->layers, sizeof *graph->conv, "the layers", &graph->conv,
                                    err));
    for (uint32_t i = 0; i < c->layers; i++) {
        struct walsh_layer *layer = &graph->layers[i];
        set_flags(graph, i, layer);
        WALSH_TRY(build_norms(&b, i, layer));
        WALSH_TRY(graph->conv && graph->conv[i] ? build_conv(&b, i, layer) : build_attention(&b, i, layer));
        WALSH_TRY(c->experts ? build_experts(&b, i, layer) : build_dense(&b, i, layer));
    }
    WALSH_TRY(norm(&b, b.names->final_norm, c->hidden, &graph->final_norm));
    WALSH_TRY(build_head(&b, dense));
    WALSH_TRY(build_ropes(&b, pool));
    walsh_graph_number(graph);
    return walsh_graph_list(graph, err);
}
