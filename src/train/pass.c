#include "train/pass.h"

#include <string.h>

#include "base/memory.h"
#include "train/device.h"
#include "train/gradients.h"

/* What a batch is to a device, in its memory. */
struct walsh_pass_device {
    int32_t *ids, *targets;         /* [max_rows]; of the selected rows */
    uint32_t *positions, *selected; /* [max_rows] */
    uint32_t *others;               /* [max_rows] rows without a target */
    uint32_t *row_begin, *row_end;  /* [max_rows] documents of the rows */
    double *losses;                 /* [max_rows] */
    uint32_t *host;                 /* [max_rows] the host's, for what is brought there */
    void *block;
};
#define DEVICE_WORDS 9 /* of a row in the block: seven arrays of words and one of doubles */

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
           rows * (2 * sizeof(uint32_t) + sizeof(int32_t) + sizeof(double)) +
           (queue->memory ? DEVICE_WORDS * rows * sizeof(uint32_t) : 0);
}

static enum walsh_status allocate_device(struct walsh_pass *p, size_t rows, struct walsh_error *err)
{
    struct walsh_pass_device *d;
    WALSH_TRY(walsh_arena_alloc(&p->arena, 1, sizeof *d, "a device's batch", &d, err));
    WALSH_TRY(walsh_arena_alloc(&p->arena, rows, sizeof *d->host, "a device's batch", &d->host, err));
    WALSH_TRY(walsh_queue_alloc(p->queue, DEVICE_WORDS * rows * sizeof(uint32_t), "a batch", &d->block, err));
    p->device = d;
    d->losses = d->block;
    uint32_t *words = (uint32_t *)d->block + 2 * rows;
    d->ids = (int32_t *)words;
    d->targets = (int32_t *)(words + rows);
    d->positions = words + 2 * rows;
    d->selected = words + 3 * rows;
    d->others = words + 4 * rows;
    d->row_begin = words + 5 * rows;
    d->row_end = words + 6 * rows;
    return WALSH_OK;
}

/* Activations of the pass itself: in the arena, or the device's. */
static enum walsh_status floats(struct walsh_pass *p, size_t rows, size_t n, const char *what, float **out,
                                struct walsh_error *err)
{
    *out = NULL;
    if (p->queue->memory) return walsh_queue_alloc(p->queue, rows * n * sizeof **out, what, out, err);
    return walsh_arena_alloc_uninitialised(&p->arena, rows * n, sizeof **out, what, out, err);
}

static enum walsh_status allocate(struct walsh_pass *p, const struct walsh_pass_options *o,
                                  struct walsh_error *err)
{
    static const char what[] = "activations of training";
    const size_t rows = o->layers.max_rows, hidden = p->graph->config.hidden,
                 layers = p->graph->config.layers;
    struct walsh_arena *arena = &p->arena;
    const size_t states = state_count(p->graph, o), tapes = tape_count(p->graph, o);
    WALSH_TRY(walsh_arena_alloc(arena, layers, sizeof *p->tapes, what, &p->tapes, err));
    for (size_t i = 0; i < layers; i++) {
        if (i >= tapes) {
            p->tapes[i] = p->tapes[0];
            continue;
        }
        WALSH_TRY(walsh_tape_open(p->graph, p->queue, &o->layers, arena, &p->tapes[i], err));
        p->tape_count++;
    }
    WALSH_TRY(walsh_arena_alloc(arena, layers + 1, sizeof *p->states, what, &p->states, err));
    for (size_t i = 0; i <= layers; i++) {
        if (i >= states) {
            p->states[i] = p->states[i % states];
            continue;
        }
        WALSH_TRY(floats(p, rows, hidden, what, &p->states[i], err));
        p->state_count++;
    }
    WALSH_TRY(floats(p, p->head_rows, hidden, what, &p->last, err));
    WALSH_TRY(floats(p, p->head_rows, hidden, what, &p->normed, err));
    WALSH_TRY(floats(p, p->head_rows, p->graph->config.vocab, "logits", &p->logits, err));
    if (p->queue->memory) WALSH_TRY(allocate_device(p, rows, err));
    WALSH_TRY(walsh_arena_alloc(arena, rows, sizeof *p->positions, what, &p->positions, err));
    WALSH_TRY(walsh_arena_alloc(arena, rows, sizeof *p->selected, what, &p->selected, err));
    WALSH_TRY(walsh_arena_alloc(arena, rows, sizeof *p->targets, what, &p->targets, err));
    return walsh_arena_alloc(arena, rows, sizeof *p->losses, what, &p->losses, err);
}

enum walsh_status walsh_pass_open(const struct walsh_model_graph *graph, const struct walsh_queue *queue,
                                  const struct walsh_pass_options *o, struct walsh_pass *out,
                                  struct walsh_error *err)
{
    WALSH_TRY(walsh_pass_check(graph, queue, err));
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
    for (size_t i = 0; i < p->tape_count; i++) walsh_tape_close(p->queue, &p->tapes[i]);
    if (p->queue && p->queue->memory) {
        for (size_t i = 0; i < p->state_count; i++) walsh_queue_free(p->queue, p->states[i]);
        walsh_queue_free(p->queue, p->last);
        walsh_queue_free(p->queue, p->normed);
        walsh_queue_free(p->queue, p->logits);
        if (p->device) walsh_queue_free(p->queue, p->device->block);
    }
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

/* What the ops read of the batch goes to the device. */
static enum walsh_status send(struct walsh_pass *p, const struct walsh_train_batch *batch, size_t selected,
                              struct walsh_error *err)
{
    const struct walsh_queue *q = p->queue;
    const struct walsh_pass_device *d = p->device;
    const size_t rows = batch->rows, bytes = rows * sizeof(uint32_t);
    const struct walsh_documents *documents = &batch->documents;
    WALSH_TRY(walsh_queue_upload(q, d->ids, batch->ids, bytes, err));
    WALSH_TRY(walsh_queue_upload(q, d->targets, p->targets, selected * sizeof(int32_t), err));
    WALSH_TRY(walsh_queue_upload(q, d->selected, p->selected, selected * sizeof(uint32_t), err));
    WALSH_TRY(walsh_queue_upload(q, d->positions, p->positions, bytes, err));
    size_t others = 0;
    for (size_t i = 0; i < rows; i++)
        if (batch->targets[i] < 0) d->host[others++] = (uint32_t)i;
    WALSH_TRY(walsh_queue_upload(q, d->others, d->host, others * sizeof(uint32_t), err));
    for (size_t side = 0; side < 2; side++) {
        for (size_t k = 0; k < documents->count; k++)
            for (uint32_t i = documents->begin[k]; i < documents->begin[k + 1]; i++)
                d->host[i] = documents->begin[k + side];
        WALSH_TRY(walsh_queue_upload(q, side ? d->row_end : d->row_begin, d->host, bytes, err));
    }
    return WALSH_OK;
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

/* to[rows[i]] = from[i] for `count` rows of n. */
static void scatter(const struct walsh_queue *q, float *to, const float *from, const uint32_t *rows,
                    size_t count, size_t n)
{
    struct scatter t = {to, from, rows, n};
    if (walsh_train_device(q))
        q->ops->train->scatter(q, to, n, from, n, rows, count, n);
    else
        walsh_pool_run_near(q->pool, count, 64, scatter_rows, &t);
}

/* Final norm, head and loss of `count` selected rows, whose states become the gradients of the loss. */
static void head_block(struct walsh_pass *p, size_t first, size_t count, float *states, float weight)
{
    const struct walsh_config *c = &p->graph->config;
    const struct walsh_queue *q = p->queue;
    const size_t hidden = c->hidden;
    const float eps = (float)c->rms_epsilon, *norm = p->graph->final_norm;
    const uint32_t *selected = (p->device ? p->device->selected : p->selected) + first;
    const int32_t *targets = (p->device ? p->device->targets : p->targets) + first;
    double *losses = (p->device ? p->device->losses : p->losses) + first;
    q->ops->gather(q, p->last, hidden, states, hidden, selected, count, hidden);
    q->ops->rms_norm(q, p->normed, hidden, p->last, hidden, norm, count, hidden, eps);
    struct walsh_frozen_site head = {
        .calls = {walsh_frozen(&p->graph->head, p->logits, c->vocab)}, .count = 1, .rows = count};
    /* the gradient is rounded row by row, to where the product would prepare it */
    struct walsh_frozen_call *call = &head.calls[0];
    uint16_t *rounded = walsh_products_take_rows(&p->head, call->linear, true) ? p->head.activations : NULL;
    walsh_frozen_forward(&p->head, &head, 1, p->normed, hidden);
    if (c->logit_cap != 0) q->ops->soft_cap(q, p->logits, (float)c->logit_cap, count * c->vocab);
    walsh_cross_entropy(q, p->logits, targets, count, c->vocab, weight, (float)c->logit_cap, !p->forward_only,
                        losses, rounded, walsh_activations_stride(c->vocab));
    if (p->forward_only) return;
    call->rows = rounded;
    call->ld_rows = walsh_activations_stride(c->vocab);
    walsh_frozen_backward(&p->head, &head, 1, p->normed, hidden, false);
    walsh_rms_norm_backward(q, p->normed, hidden, p->normed, hidden, p->last, hidden, norm, count, hidden,
                            eps, false);
    scatter(q, states, p->normed, selected, count, hidden);
}

/* The states of the last layer become the gradients of the loss: zero where a row has no target. */
static void head_gradient(struct walsh_pass *p, const struct walsh_train_batch *batch, size_t selected,
                          float weight)
{
    const size_t hidden = p->graph->config.hidden;
    float *states = p->states[p->graph->config.layers];
    for (size_t first = 0; first < selected; first += p->head_rows)
        head_block(p, first, walsh_min(p->head_rows, selected - first), states, weight);
    if (p->device) {
        scatter(p->queue, states, NULL, p->device->others, batch->rows - selected, hidden);
        return;
    }
    for (size_t i = 0; i < batch->rows; i++)
        if (batch->targets[i] < 0) memset(states + i * hidden, 0, hidden * sizeof *states);
}

enum walsh_status walsh_pass_run(struct walsh_pass *p, const struct walsh_train_batch *batch, float weight,
                                 double *loss, size_t *count, struct walsh_error *err)
{
    const struct walsh_layer *layers = p->graph->layers;
    const uint32_t layer_count = p->graph->config.layers;
    const struct walsh_pass_device *d = p->device;
    struct walsh_train_rows rows = {batch->rows, p->positions, batch->documents};
    *count = lay_out(p, batch);
    if (d) {
        WALSH_TRY(send(p, batch, *count, err));
        rows.positions = d->positions;
        rows.documents.row_begin = d->row_begin;
        rows.documents.row_end = d->row_end;
    }
    walsh_embed(p->graph, p->queue, d ? d->ids : batch->ids, batch->rows, p->states[0]);
    for (uint32_t i = 0; i < layer_count; i++)
        walsh_train_layer_forward(&p->layers, &layers[i], &rows, p->states[i],
                                  i > 0 ? p->tapes[i - 1].middle : NULL, &p->tapes[i]);
    walsh_train_layer_sum(&p->layers, &p->tapes[layer_count - 1], batch->rows, p->states[layer_count]);
    head_gradient(p, batch, *count, weight);
    float *gradient = p->states[layer_count];
    if (!p->forward_only) walsh_train_round_gradient(&p->layers, gradient, batch->rows);
    for (uint32_t i = layer_count; !p->forward_only && i-- > 0;) {
        if (p->checkpoint && i + 1 < layer_count) /* the tape still holds the last layer's forward */
            walsh_train_layer_forward(&p->layers, &layers[i], &rows, p->states[i], NULL, &p->tapes[i]);
        walsh_train_layer_backward(&p->layers, &layers[i], &rows, p->states[i], &p->tapes[i], gradient,
                                   i == 0);
    }
    if (p->layers.status != WALSH_OK) {
        *err = p->layers.error;
        return p->layers.status;
    }
    if (d) WALSH_TRY(walsh_queue_download(p->queue, p->losses, d->losses, *count * sizeof *p->losses, err));
    *loss = 0;
    for (size_t i = 0; i < *count; i++) *loss += p->losses[i];
    return WALSH_OK;
}

enum walsh_status walsh_pass_check(const struct walsh_model_graph *graph, const struct walsh_queue *queue,
                                   struct walsh_error *err)
{
    const struct walsh_config *c = &graph->config;
    if (!queue->memory) return WALSH_OK;
    if (!queue->ops->train)
        return walsh_fail(err, WALSH_E_UNSUPPORTED, "this device has no kernels for training");
    if (c->head_dim > WALSH_TRAIN_HEAD_DIM)
        return walsh_fail(err, WALSH_E_UNSUPPORTED,
                          "%s: heads of %u numbers; training on a device knows up to %d",
                          graph->checkpoint.directory, c->head_dim, WALSH_TRAIN_HEAD_DIM);
    return WALSH_OK;
}
