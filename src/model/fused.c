/* The layers of a dense graph by fused ops: what stands between two products is one op, and the end of a
 * layer is one with the beginning of the next. The bits are those of walsh_layer_forward. */
#include "model/layer.h"

static struct walsh_unrotated output_of(const struct walsh_linear *linear)
{
    return (struct walsh_unrotated){.rotation = &linear->out_rotation, .bias = linear->bias};
}

/* One preparation serves q, k, v and one gate, up; the ops have kernels for the shapes; no prompt is to be packed, whose
 * rows attend to one another unpacked. */
static bool layer_fits(const struct walsh_model_graph *graph, const struct walsh_queue *q,
                       const struct walsh_layer *l, uint32_t index, const struct walsh_rows *rows)
{
    if (l->experts || l->conv_weight || (l->rope && l->rope->short_positions && rows->rope_mixed) ||
        graph->config.gate == WALSH_GATE_CLAMPED || !walsh_linear_same_input(q, &l->q, &l->k) ||
        !walsh_linear_same_input(q, &l->q, &l->v) || !walsh_linear_same_input(q, &l->gate, &l->up))
        return false;
    struct walsh_attention_shape shape = walsh_attention_shape_of(&graph->config, l);
    shape.kinds = walsh_rows_kinds(rows, index);
    if (shape.kinds.packed && rows->role == WALSH_PREFILL) return false;
    const struct walsh_fused_layer fused = {
        .hidden = graph->config.hidden,
        .attention = &shape,
        .in = {{&l->q.in_rotation, walsh_linear_reads(q, &l->q, rows->role)},
               {&l->o.in_rotation, walsh_linear_reads(q, &l->o, rows->role)},
               {&l->gate.in_rotation, walsh_linear_reads(q, &l->gate, rows->role)},
               {&l->down.in_rotation, walsh_linear_reads(q, &l->down, rows->role)}},
        .q = output_of(&l->q),
        .k = output_of(&l->k),
        .v = output_of(&l->v),
        .o = output_of(&l->o),
        .gate = output_of(&l->gate),
        .up = output_of(&l->up),
        .down = output_of(&l->down)};
    return q->ops->fused->fits(q, &fused);
}

struct pass {
    const struct walsh_model_graph *graph;
    const struct walsh_queue *q;
    const struct walsh_rows *rows;
    struct walsh_workspace *ws;
    float *x;
    bool host; /* attention's rows name their layer, and its output is always kept */
    bool keep; /* low-rank updates read the inputs of products as they are before they are prepared */
};

static struct walsh_activations input_of(const struct pass *p, const struct walsh_linear *linear)
{
    return walsh_linear_input(p->q, p->ws, linear, p->rows->count, p->rows->role);
}

/* x += d, normed for and prepared as the input of `next`. */
static struct walsh_activations enter(const struct pass *p, const struct walsh_unrotated *d,
                                      const float *d_norm, const float *norm, const struct walsh_linear *next)
{
    const struct walsh_config *c = &p->graph->config;
    struct walsh_activations a = input_of(p, next);
    p->q->ops->fused->residual(p->q, p->x, c->hidden, d, d_norm, norm, (float)c->rms_epsilon,
                               p->keep ? p->ws->normed : NULL, p->ws->normed_ld, &a, &next->in_rotation);
    return a;
}

static void products(const struct pass *p, const struct walsh_linear_call *calls, size_t count,
                     const struct walsh_activations *a, const float *x, size_t ldx,
                     struct walsh_unrotated *out)
{
    const struct walsh_linear_call *list[3];
    for (size_t i = 0; i < count; i++) list[i] = &calls[i];
    walsh_linear_products(p->q, p->ws, list, count, a, x, ldx, p->rows->role, &p->rows->sets, out);
}

/* q, k, v, attention and o of the prepared `a`; *out: o's output. */
static void attention(const struct pass *p, const struct walsh_layer *l, uint32_t index,
                      const struct walsh_activations *a, struct walsh_unrotated *out)
{
    const struct walsh_config *c = &p->graph->config;
    struct walsh_workspace *ws = p->ws;
    const size_t width = (size_t)c->heads * c->head_dim, kv_width = (size_t)c->kv_heads * c->head_dim;
    struct walsh_attention_shape shape = walsh_attention_shape_of(c, l);
    shape.kinds = walsh_rows_kinds(p->rows, index);
    const struct walsh_linear_call calls[] = {
        {&l->q, ws->attention, ws->attention_ld}, {&l->k, ws->key, kv_width}, {&l->v, ws->value, kv_width}};
    struct walsh_unrotated z[3];
    products(p, calls, 3, a, ws->normed, ws->normed_ld, z);
    const struct walsh_rope_table *rope = l->rope;
    const size_t angles = rope && rope->short_positions ? (size_t)p->rows->rope_offset * (rope->dim / 2) : 0;
    const struct walsh_projections to = {.q = z[0],
                                         .k = z[1],
                                         .v = z[2],
                                         .q_norm = l->q_norm,
                                         .k_norm = l->k_norm,
                                         .eps = (float)c->rms_epsilon,
                                         .rotated = rope ? rope->dim : 0,
                                         .cosine = rope ? rope->cosine + angles : NULL,
                                         .sine = rope ? rope->sine + angles : NULL,
                                         .rows = ws->rows,
                                         .layer = p->host ? 0 : index,
                                         .query = ws->query,
                                         .key = ws->key,
                                         .value = ws->value};
    if (p->host)
        p->q->ops->attention_rows(p->q, ws->rows, p->rows->kv, p->rows->positions, p->rows->count, index);
    struct walsh_activations b = input_of(p, &l->o);
    float *kept = p->keep || p->host ? ws->attention : NULL;
    const struct walsh_fused_ops *ops = p->q->ops->fused;
    if (!ops->attend || p->rows->role != WALSH_DECODE ||
        !ops->attend(p->q, &to, &shape, &b, &l->o.in_rotation, kept, ws->attention_ld)) {
        ops->project(p->q, &to, p->rows->count, &shape);
        ops->attention(p->q, &b, &l->o.in_rotation, kept, ws->attention_ld, ws->query, width, ws->rows,
                       p->host ? 0 : index, &shape, p->rows->role);
    }
    const struct walsh_linear_call o = {&l->o, ws->delta, c->hidden};
    products(p, &o, 1, &b, ws->attention, ws->attention_ld, out);
}

/* gate, up and down of the prepared `a`; *out: down's output. */
static void mlp(const struct pass *p, const struct walsh_layer *l, const struct walsh_activations *a,
                struct walsh_unrotated *out)
{
    const struct walsh_config *c = &p->graph->config;
    struct walsh_workspace *ws = p->ws;
    const struct walsh_linear_call calls[] = {{&l->gate, ws->gate, ws->gate_ld},
                                              {&l->up, ws->up, ws->gate_ld}};
    struct walsh_unrotated z[2];
    products(p, calls, 2, a, ws->normed, ws->normed_ld, z);
    struct walsh_activations b = input_of(p, &l->down);
    p->q->ops->fused->gated(p->q, &b, &l->down.in_rotation, p->keep ? ws->gate : NULL, ws->gate_ld, &z[0],
                            &z[1], l->gate.out, c->gate == WALSH_GATE_GELU_TANH);
    const struct walsh_linear_call down = {&l->down, ws->delta, c->hidden};
    products(p, &down, 1, &b, ws->gate, ws->gate_ld, out);
}

/* Low-rank parts of the weights themselves read what adapters read. */
static bool reads_inputs(const struct walsh_model_graph *graph)
{
    for (uint32_t i = 0; i < graph->config.layers; i++) {
        const struct walsh_layer *l = &graph->layers[i];
        if (l->q.own || l->k.own || l->v.own || l->o.own || l->gate.own || l->up.own || l->down.own)
            return true;
    }
    return false;
}

bool walsh_layers_fused(const struct walsh_model_graph *graph, const struct walsh_queue *q, float *x,
                        const struct walsh_rows *rows, struct walsh_workspace *ws)
{
    const uint32_t layers = graph->config.layers;
    if (!q->ops->fused) return false;
    for (uint32_t i = 0; i < layers; i++)
        if (!layer_fits(graph, q, &graph->layers[i], i, rows)) return false;
    const struct pass p = {
        graph, q, rows, ws, x, q->memory == NULL, rows->sets.count > 0 || reads_inputs(graph)};
    if (!p.host)
        q->ops->attention_rows(q, ws->rows, rows->op_kv ? rows->op_kv : rows->kv, rows->positions,
                               rows->count, 0);
    struct walsh_activations a = enter(&p, NULL, NULL, graph->layers[0].input_norm, &graph->layers[0].q);
    for (uint32_t i = 0; i < layers; i++) {
        const struct walsh_layer *l = &graph->layers[i], *next = i + 1 < layers ? l + 1 : NULL;
        struct walsh_unrotated d;
        attention(&p, l, i, &a, &d);
        a = enter(&p, &d, l->attention_output_norm, l->mlp_norm, &l->gate);
        mlp(&p, l, &a, &d);
        a = enter(&p, &d, l->mlp_output_norm, next ? next->input_norm : NULL, next ? &next->q : &l->q);
    }
    return true;
}
