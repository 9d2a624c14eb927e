/* One decoder layer: x += o(attention(norm(x))), then x += mlp(norm(x)); and the two ends of the model,
 * embedding and head. (Touvron et al. 2023, "LLaMA"; per-head q/k norm as in Qwen3; norms of what is added,
 * soft caps and the embedding's scale as in Gemma 2.) */
#include "kernels/turbo.h"
#include "model/layer.h"

#include <math.h>

void walsh_tap_input(const struct walsh_tap *tap, enum walsh_tap_point point, uint32_t expert, const float *x,
                     size_t ldx, size_t rows, size_t cols)
{
    if (tap && tap->input) tap->input(tap->user, point, expert, x, ldx, rows, cols);
}

void walsh_gate(const struct walsh_config *config, const struct walsh_queue *q, struct walsh_workspace *ws,
                size_t rows, size_t n)
{
    if (config->gate == WALSH_GATE_CLAMPED)
        q->ops->clamped_swiglu(q, ws->gate, ws->gate_ld, ws->gate, ws->up, ws->gate_ld, rows, n,
                               (float)config->gate_alpha, (float)config->gate_limit);
    else if (config->gate == WALSH_GATE_GELU_TANH)
        q->ops->geglu(q, ws->gate, ws->gate_ld, ws->gate, ws->up, ws->gate_ld, rows, n);
    else
        q->ops->swiglu(q, ws->gate, ws->gate_ld, ws->gate, ws->up, ws->gate_ld, rows, n);
}

/* Norm of each head of [rows][heads * head_dim], in place. */
static void norm_heads(const struct walsh_model_graph *graph, const struct walsh_queue *q, float *x,
                       const float *weight, size_t heads)
{
    size_t n = graph->config.head_dim;
    q->ops->rms_norm(q, x, n, x, n, weight, heads, n, (float)graph->config.rms_epsilon);
}

/* x += ws->delta, through the norm where there is one. */
static void add_output(const struct walsh_config *c, const struct walsh_queue *q, const float *norm, float *x,
                       size_t n, struct walsh_workspace *ws)
{
    if (norm)
        q->ops->rms_norm(q, ws->delta, c->hidden, ws->delta, c->hidden, norm, n, c->hidden,
                         (float)c->rms_epsilon);
    q->ops->add(q, x, ws->delta, n * c->hidden);
}

struct walsh_attention_shape walsh_attention_shape_of(const struct walsh_config *c,
                                                      const struct walsh_layer *layer)
{
    return (struct walsh_attention_shape){
        .heads = c->heads,
        .kv_heads = c->kv_heads,
        .head_dim = c->head_dim,
        .scale = (float)(1 / sqrt(c->query_scalar != 0 ? c->query_scalar : (double)c->head_dim)),
        .window = layer->window,
        .soft_cap = (float)c->score_cap,
        .sinks = layer->sinks,
        .narrow = layer->q.activation != WALSH_ACTIVATION_F32};
}

struct walsh_kv_kinds walsh_rows_kinds(const struct walsh_rows *rows, uint32_t layer)
{
    struct walsh_kv_kinds kinds = {.four = true, .tiles = true};
    size_t packed = 0;
    if (rows->most_tokens > 0)
        for (kinds.most_tokens = 128; kinds.most_tokens < rows->most_tokens;) kinds.most_tokens *= 2;
    for (size_t i = 0; i < rows->count; i++) {
        const struct walsh_kv_view *kv = &rows->kv[i][layer];
        kinds.tiles &= kv->type == WALSH_KV_F16 && kv->page_tokens % 16 == 0;
        if (kv->type != WALSH_KV_TURBO) continue;
        packed++;
        kinds.four &= kv->turbo->key->book.bits == 4 && kv->turbo->value->book.bits == 4;
        kinds.recent |= kv->recent != NULL;
    }
    kinds.packed = packed > 0;
    kinds.mixed = packed > 0 && packed < rows->count;
    kinds.four &= packed > 0;
    return kinds;
}

/* ws->attention of ws->query, ws->key and ws->value. A prompt's chunk attends to its own tokens in f16 as in
 * an unpacked cache, and is packed once: decode reads what it left. */
static void attend(const struct walsh_model_graph *graph, const struct walsh_queue *q,
                   const struct walsh_layer *layer, uint32_t kv_layer, const struct walsh_rows *rows,
                   struct walsh_workspace *ws)
{
    const struct walsh_config *c = &graph->config;
    const size_t n = rows->count, kv_width = (size_t)c->kv_heads * c->head_dim;
    struct walsh_attention_shape shape = walsh_attention_shape_of(c, layer);
    shape.kinds = walsh_rows_kinds(rows, kv_layer);
    if (rows->role == WALSH_PREFILL && rows->kv[0][kv_layer].type == WALSH_KV_TURBO) shape.own = &ws->own;
    q->ops->attention_rows(q, ws->rows, rows->op_kv ? rows->op_kv : rows->kv, rows->positions, n, kv_layer);
    q->ops->kv_append(q, ws->rows, n, ws->key, ws->value, kv_width, &shape);
    q->ops->attention(q, ws->attention, ws->attention_ld, ws->query, (size_t)c->heads * c->head_dim, ws->rows,
                      n, &shape, rows->role);
}

static void attention_block(const struct walsh_model_graph *graph, const struct walsh_queue *q,
                            const struct walsh_layer *layer, uint32_t kv_layer, float *x,
                            const struct walsh_rows *rows, struct walsh_workspace *ws,
                            const struct walsh_tap *tap)
{
    const struct walsh_config *c = &graph->config;
    size_t n = rows->count, q_width = (size_t)c->heads * c->head_dim,
           kv_width = (size_t)c->kv_heads * c->head_dim;

    q->ops->rms_norm(q, ws->normed, ws->normed_ld, x, c->hidden, layer->input_norm, n, c->hidden,
                     (float)c->rms_epsilon);
    walsh_tap_input(tap, WALSH_TAP_ATTENTION, 0, ws->normed, ws->normed_ld, n, c->hidden);
    const struct walsh_linear_call projections[] = {
        {&layer->q, ws->query, q_width}, {&layer->k, ws->key, kv_width}, {&layer->v, ws->value, kv_width}};
    walsh_linear_apply(q, ws, projections, 3, ws->normed, ws->normed_ld, n, rows->role, &rows->sets);
    if (layer->q_norm) norm_heads(graph, q, ws->query, layer->q_norm, n * c->heads);
    if (layer->k_norm) norm_heads(graph, q, ws->key, layer->k_norm, n * c->kv_heads);
    if (layer->rope) {
        const struct walsh_rope_table *rope = layer->rope;
        const uint32_t *at = rows->rope_rows && rope->short_positions ? rows->rope_rows : rows->positions;
        q->ops->rope(q, ws->query, q_width, at, n, c->heads, c->head_dim, rope->dim, rope->cosine,
                     rope->sine);
        q->ops->rope(q, ws->key, kv_width, at, n, c->kv_heads, c->head_dim, rope->dim, rope->cosine,
                     rope->sine);
    }

    attend(graph, q, layer, kv_layer, rows, ws);
    walsh_tap_input(tap, WALSH_TAP_OUTPUT, 0, ws->attention, ws->attention_ld, n, q_width);
    const struct walsh_linear_call output = {&layer->o, ws->delta, c->hidden};
    walsh_linear_apply(q, ws, &output, 1, ws->attention, ws->attention_ld, n, rows->role, &rows->sets);
    add_output(c, q, layer->attention_output_norm, x, n, ws);
}

/* Of a prompt the rows follow one another in one cache, of a step each has its own. */
static void conv_block(const struct walsh_model_graph *graph, const struct walsh_queue *q,
                       const struct walsh_layer *layer, uint32_t kv_layer, float *x,
                       const struct walsh_rows *rows, struct walsh_workspace *ws, const struct walsh_tap *tap)
{
    const struct walsh_config *c = &graph->config;
    const size_t n = rows->count, width = c->hidden;
    q->ops->rms_norm(q, ws->normed, ws->normed_ld, x, width, layer->input_norm, n, width,
                     (float)c->rms_epsilon);
    walsh_tap_input(tap, WALSH_TAP_ATTENTION, 0, ws->normed, ws->normed_ld, n, width);
    const struct walsh_linear_call input = {&layer->q, ws->mixed, 3 * width};
    walsh_linear_apply(q, ws, &input, 1, ws->normed, ws->normed_ld, n, rows->role, &rows->sets);
    q->ops->attention_rows(q, ws->rows, rows->op_kv ? rows->op_kv : rows->kv, rows->positions, n, kv_layer);
    q->ops->short_conv(q, ws->attention, ws->attention_ld, ws->mixed, 3 * width, ws->rows, n,
                       layer->conv_weight, layer->conv_bias, c->conv_taps, c->hidden);
    walsh_tap_input(tap, WALSH_TAP_OUTPUT, 0, ws->attention, ws->attention_ld, n, width);
    const struct walsh_linear_call output = {&layer->o, ws->delta, width};
    walsh_linear_apply(q, ws, &output, 1, ws->attention, ws->attention_ld, n, rows->role, &rows->sets);
    add_output(c, q, layer->attention_output_norm, x, n, ws);
}

static void dense_block(const struct walsh_model_graph *graph, const struct walsh_queue *q,
                        const struct walsh_layer *layer, float *x, const struct walsh_rows *rows,
                        struct walsh_workspace *ws, const struct walsh_tap *tap)
{
    size_t n = rows->count, hidden = graph->config.hidden, wide = layer->gate.out;
    walsh_tap_input(tap, WALSH_TAP_MLP, 0, ws->normed, ws->normed_ld, n, hidden);
    const struct walsh_linear_call gate_up[] = {{&layer->gate, ws->gate, ws->gate_ld},
                                                {&layer->up, ws->up, ws->gate_ld}};
    walsh_linear_apply(q, ws, gate_up, 2, ws->normed, ws->normed_ld, n, rows->role, &rows->sets);
    walsh_gate(&graph->config, q, ws, n, wide);

    walsh_tap_input(tap, WALSH_TAP_DOWN, 0, ws->gate, ws->gate_ld, n, wide);
    if (tap && tap->skip_last) return;
    const struct walsh_linear_call down = {&layer->down, ws->delta, hidden};
    walsh_linear_apply(q, ws, &down, 1, ws->gate, ws->gate_ld, n, rows->role, &rows->sets);
    add_output(&graph->config, q, layer->mlp_output_norm, x, n, ws);
}

void walsh_layer_forward(const struct walsh_model_graph *graph, const struct walsh_queue *q,
                         const struct walsh_layer *layer, uint32_t kv_layer, float *x,
                         const struct walsh_rows *rows, struct walsh_workspace *ws,
                         const struct walsh_tap *tap)
{
    const struct walsh_config *c = &graph->config;
    if (layer->conv_weight)
        conv_block(graph, q, layer, kv_layer, x, rows, ws, tap);
    else
        attention_block(graph, q, layer, kv_layer, x, rows, ws, tap);
    q->ops->rms_norm(q, ws->normed, ws->normed_ld, x, c->hidden, layer->mlp_norm, rows->count, c->hidden,
                     (float)c->rms_epsilon);
    if (layer->experts)
        walsh_experts_block(graph, q, layer, x, rows, ws, tap);
    else
        dense_block(graph, q, layer, x, rows, ws, tap);
}

void walsh_layers_forward(const struct walsh_model_graph *graph, const struct walsh_queue *q, float *x,
                          const struct walsh_rows *rows, struct walsh_workspace *ws)
{
    if (walsh_layers_fused(graph, q, x, rows, ws)) return;
    for (uint32_t i = 0; i < graph->config.layers; i++)
        walsh_layer_forward(graph, q, &graph->layers[i], i, x, rows, ws, NULL);
}

void walsh_embed(const struct walsh_model_graph *graph, const struct walsh_queue *q, const int32_t *ids,
                 size_t count, float *x)
{
    const size_t hidden = graph->config.hidden;
    q->ops->embed(q, x, &graph->embedding, ids, count);
    if (graph->config.scaled_embeddings) q->ops->scale(q, x, (float)sqrt((double)hidden), count * hidden);
}

void walsh_logits(const struct walsh_model_graph *graph, const struct walsh_queue *q, float *x, size_t count,
                  enum walsh_role role, const struct walsh_row_sets *sets, struct walsh_workspace *ws,
                  float *logits)
{
    size_t hidden = graph->config.hidden;
    q->ops->rms_norm(q, x, hidden, x, hidden, graph->final_norm, count, hidden,
                     (float)graph->config.rms_epsilon);
    const struct walsh_linear_call head = {&graph->head, logits, graph->config.vocab};
    walsh_linear_apply(q, ws, &head, 1, x, hidden, count, role, sets);
    if (graph->config.logit_cap != 0)
        q->ops->soft_cap(q, logits, (float)graph->config.logit_cap, count * graph->config.vocab);
}
