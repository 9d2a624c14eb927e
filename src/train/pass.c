#include "train/pass.h"

#include <string.h>

#include "train/gradients.h"

#define LOGITS_BYTES ((size_t)16 << 20) /* of the logits that exist at a time, about */
#define LEAST_HEAD_ROWS 64

static size_t head_rows_of(const struct walsh_model_graph *graph, size_t max_rows)
{
    const size_t fit = LOGITS_BYTES / ((size_t)graph->config.vocab * sizeof(float));
    return walsh_min(max_rows, walsh_max(fit / LEAST_HEAD_ROWS * LEAST_HEAD_ROWS, LEAST_HEAD_ROWS));
}

static struct walsh_products_options head_options(const struct walsh_pass_options *o, size_t rows)
{
    return (struct walsh_products_options){.compute = o->layers.compute,
                                           .strategy = o->layers.strategy,
                                           .panels = o->layers.panels,
                                           .max_rows = rows,
                                           .head = true};
}

static size_t tape_count(const struct walsh_model_graph *graph, const struct walsh_pass_options *o)
{
    return o->checkpoint || o->forward_only ? 1 : graph->config.layers;
}

static size_t state_count(const struct walsh_model_graph *graph, const struct walsh_pass_options *o)
{
    return o->forward_only ? 2 : graph->config.layers + (size_t)1;
}

size_t walsh_pass_bytes(const struct walsh_model_graph *graph, const struct walsh_queue *queue,
                        const struct walsh_pass_options *o)
{
    const size_t rows = o->layers.max_rows, hidden = graph->config.hidden,
                 head_rows = head_rows_of(graph, rows);
    const struct walsh_products_options head = head_options(o, head_rows);
    return walsh_layers_bytes(graph, queue, &o->layers) +
           tape_count(graph, o) * walsh_tape_bytes(graph, &o->layers) +
           state_count(graph, o) * rows * hidden * sizeof(float) + walsh_products_bytes(graph, queue, &head) +
           head_rows * (2 * hidden + graph->config.vocab) * sizeof(float) +
           rows * (2 * sizeof(uint32_t) + sizeof(int32_t) + sizeof(double));
}

static enum walsh_status allocate(struct walsh_pass *p, const struct walsh_pass_options *o,
                                  struct walsh_error *err)
{
    static const char what[] = "activations of training";
    const size_t rows = o->layers.max_rows, hidden = p->graph->config.hidden,
                 layers = p->graph->config.layers;
    struct walsh_arena *arena = &p->arena;
    const size_t tapes = tape_count(p->graph, o), states = state_count(p->graph, o);
    WALSH_TRY(walsh_arena_alloc(arena, layers, sizeof *p->tapes, what, &p->tapes, err));
    for (size_t i = 0; i < layers; i++) {
        if (i < tapes)
            WALSH_TRY(walsh_tape_open(p->graph, &o->layers, arena, &p->tapes[i], err));
        else
            p->tapes[i] = p->tapes[0];
    }
    WALSH_TRY(walsh_arena_alloc(arena, layers + 1, sizeof *p->states, what, &p->states, err));
    for (size_t i = 0; i <= layers; i++) {
        if (i < states)
            WALSH_TRY(walsh_arena_alloc_uninitialised(arena, rows * hidden, sizeof(float), what,
                                                      &p->states[i], err));
        else
            p->states[i] = p->states[i % states];
    }
    WALSH_TRY(walsh_arena_alloc(arena, p->head_rows * hidden, sizeof(float), what, &p->last, err));
    WALSH_TRY(walsh_arena_alloc(arena, p->head_rows * hidden, sizeof(float), what, &p->normed, err));
    WALSH_TRY(walsh_arena_alloc_uninitialised(arena, p->head_rows * p->graph->config.vocab, sizeof(float),
                                              "logits", &p->logits, err));
    WALSH_TRY(walsh_arena_alloc(arena, rows, sizeof *p->positions, what, &p->positions, err));
    WALSH_TRY(walsh_arena_alloc(arena, rows, sizeof *p->selected, what, &p->selected, err));
    WALSH_TRY(walsh_arena_alloc(arena, rows, sizeof *p->targets, what, &p->targets, err));
    return walsh_arena_alloc(arena, rows, sizeof *p->losses, what, &p->losses, err);
}

enum walsh_status walsh_pass_open(const struct walsh_model_graph *graph, const struct walsh_queue *queue,
                                  const struct walsh_pass_options *o, struct walsh_pass *out,
                                  struct walsh_error *err)
{
    *out = (struct walsh_pass){.graph = graph,
                               .queue = queue,
                               .checkpoint = o->checkpoint,
                               .forward_only = o->forward_only,
                               .head_rows = head_rows_of(graph, o->layers.max_rows)};
    const struct walsh_products_options head = head_options(o, out->head_rows);
    enum walsh_status status = walsh_layers_open(graph, queue, &o->layers, &out->layers, err);
    if (status == WALSH_OK) status = walsh_products_open(graph, queue, &head, &out->head, err);
    if (status == WALSH_OK) status = allocate(out, o, err);
    if (status != WALSH_OK) walsh_pass_close(out);
    return status;
}

void walsh_pass_close(struct walsh_pass *p)
{
    walsh_layers_close(&p->layers);
    walsh_products_close(&p->head);
    walsh_arena_close(&p->arena);
    *p = (struct walsh_pass){0};
}

/* Positions from 0 in each document; the rows that have a target, and those targets. */
static size_t lay_out(struct walsh_pass *p, const struct walsh_train_batch *batch)
{
    size_t selected = 0;
    for (size_t d = 0; d < batch->documents.count; d++)
        for (uint32_t i = batch->documents.begin[d]; i < batch->documents.begin[d + 1]; i++)
            p->positions[i] = i - batch->documents.begin[d];
    for (size_t i = 0; i < batch->rows; i++) {
        if (batch->targets[i] < 0) continue;
        p->targets[selected] = batch->targets[i];
        p->selected[selected++] = (uint32_t)i;
    }
    return selected;
}

struct scatter {
    float *to;
    const float *from;
    const uint32_t *rows;
    size_t n;
};

static void scatter_rows(void *argument, size_t begin, size_t end, unsigned worker)
{
    (void)worker;
    const struct scatter *t = argument;
    for (size_t i = begin; i < end; i++)
        memcpy(t->to + t->rows[i] * t->n, t->from + i * t->n, t->n * sizeof *t->to);
}

/* Final norm, head and loss of `count` selected rows, whose states become the gradients of the loss. */
static void head_block(struct walsh_pass *p, size_t first, size_t count, float *states, float weight)
{
    const struct walsh_config *c = &p->graph->config;
    const struct walsh_queue *q = p->queue;
    const size_t hidden = c->hidden;
    const float eps = (float)c->rms_epsilon, *norm = p->graph->final_norm;
    q->ops->gather(q, p->last, hidden, states, hidden, p->selected + first, count, hidden);
    q->ops->rms_norm(q, p->normed, hidden, p->last, hidden, norm, count, hidden, eps);
    const struct walsh_frozen_site head = {
        .calls = {walsh_frozen(&p->graph->head, p->logits, c->vocab)}, .count = 1, .rows = count};
    walsh_frozen_forward(&p->head, &head, 1, p->normed, hidden);
    if (c->logit_cap != 0) q->ops->soft_cap(q, p->logits, (float)c->logit_cap, count * c->vocab);
    walsh_cross_entropy(q, p->logits, p->targets + first, count, c->vocab, weight, (float)c->logit_cap,
                        !p->forward_only, p->losses + first);
    if (p->forward_only) return;
    walsh_frozen_backward(&p->head, &head, 1, p->normed, hidden, false);
    walsh_rms_norm_backward(q, p->normed, hidden, p->normed, hidden, p->last, hidden, norm, count, hidden,
                            eps, false);
    struct scatter t = {states, p->normed, p->selected + first, hidden};
    walsh_pool_run(q->pool, count, 64, scatter_rows, &t);
}

/* The states of the last layer become the gradients of the loss: zero where a row has no target. */
static double head_gradient(struct walsh_pass *p, const struct walsh_train_batch *batch, size_t selected,
                            float weight)
{
    const size_t hidden = p->graph->config.hidden;
    float *states = p->states[p->graph->config.layers];
    double loss = 0;
    for (size_t first = 0; first < selected; first += p->head_rows)
        head_block(p, first, walsh_min(p->head_rows, selected - first), states, weight);
    for (size_t i = 0; i < selected; i++) loss += p->losses[i];
    for (size_t i = 0; i < batch->rows; i++)
        if (batch->targets[i] < 0) memset(states + i * hidden, 0, hidden * sizeof *states);
    return loss;
}

void walsh_pass_run(struct walsh_pass *p, const struct walsh_train_batch *batch, float weight, double *loss,
                    size_t *count)
{
    const struct walsh_layer *layers = p->graph->layers;
    const uint32_t layer_count = p->graph->config.layers;
    const struct walsh_train_rows rows = {batch->rows, p->positions, batch->documents};
    *count = lay_out(p, batch);
    walsh_embed(p->graph, p->queue, batch->ids, batch->rows, p->states[0]);
    for (uint32_t i = 0; i < layer_count; i++)
        walsh_train_layer_forward(&p->layers, &layers[i], &rows, p->states[i], &p->tapes[i],
                                  p->states[i + 1]);
    *loss = head_gradient(p, batch, *count, weight);
    float *gradient = p->states[layer_count], *unused = p->layers.dnormed;
    if (!p->forward_only) walsh_train_round_gradient(&p->layers, gradient, batch->rows);
    for (uint32_t i = layer_count; !p->forward_only && i-- > 0;) {
        if (p->checkpoint && i + 1 < layer_count) /* the tape still holds the last layer's forward */
            walsh_train_layer_forward(&p->layers, &layers[i], &rows, p->states[i], &p->tapes[i], unused);
        walsh_train_layer_backward(&p->layers, &layers[i], &rows, p->states[i], &p->tapes[i], gradient,
                                   i == 0);
    }
}
