/* The mixture of experts of a layer, forward and back, as model/experts.c computes it: slots sorted by
 * expert, rows ascending within one; a row's sum in the order of its own k. */
#include <string.h>

#include "kernels/table.h"
#include "train/device.h"
#include "train/experts.h"
#include "train/gradients.h"
#include "train/layer.h"

/* Sort the slots of expert_index by expert. */
static void sort_index(const struct walsh_config *c, const int32_t *expert_index, size_t rows,
                       struct walsh_slots *s)
{
    const size_t k = c->experts_per_token, slots = rows * k;
    memset(s->begin, 0, ((size_t)c->experts + 1) * sizeof *s->begin);
    for (size_t i = 0; i < slots; i++) s->begin[expert_index[i] + 1]++;
    for (uint32_t e = 0; e < c->experts; e++) s->begin[e + 1] += s->begin[e];
    for (size_t i = 0; i < slots; i++) { /* begin[e] runs ahead to begin[e + 1] ... */
        const uint32_t slot = s->begin[expert_index[i]]++;
        s->row[slot] = (uint32_t)(i / k);
        s->of_row[i] = slot;
    }
    for (uint32_t e = c->experts; e > 0; e--) s->begin[e] = s->begin[e - 1]; /* ... and back */
    s->begin[0] = 0;
}

/* What a device's slots need: they come to the host to be sorted, because how many rows an expert has decides which products
 * are enqueued. */
static enum walsh_status fetch_slots(struct walsh_layers *l, const struct walsh_tape *t, size_t rows)
{
    const struct walsh_queue *q = l->queue;
    struct walsh_slots *s = &l->slots;
    const size_t slots = rows * l->graph->config.experts_per_token, bytes = slots * sizeof(uint32_t);
    WALSH_TRY(walsh_queue_download(q, s->index, t->expert_index, bytes, &l->error));
    sort_index(&l->graph->config, s->index, rows, s);
    WALSH_TRY(walsh_queue_upload(q, s->device, s->row, bytes, &l->error));
    return walsh_queue_upload(q, s->device + slots, s->of_row, bytes, &l->error);
}

/* Sort the slots of tape->expert_index by expert. After a failure of the device nobody has any. */
static void sort_slots(struct walsh_layers *l, const struct walsh_tape *t, size_t rows)
{
    const struct walsh_config *c = &l->graph->config;
    if (!l->queue->memory) {
        sort_index(c, t->expert_index, rows, &l->slots);
        return;
    }
    if (l->status == WALSH_OK) l->status = fetch_slots(l, t, rows);
    if (l->status != WALSH_OK) memset(l->slots.begin, 0, ((size_t)c->experts + 1) * sizeof *l->slots.begin);
}

/* What the tasks over rows or slots share. */
struct mixture {
    const struct walsh_kernels *kernels;
    const struct walsh_slots *slots;
    const struct walsh_tape *tape;
    const float *from;
    float *to, *dweight;
    size_t hidden, k;
};

static void gather(void *argument, size_t begin, size_t end, unsigned worker)
{
    (void)worker;
    const struct mixture *m = argument;
    for (size_t s = begin; s < end; s++)
        memcpy(m->to + s * m->hidden, m->from + m->slots->row[s] * m->hidden, m->hidden * sizeof *m->to);
}

/* to[row] = sum over k of weight * expert_output[slot]. */
static void combine(void *argument, size_t begin, size_t end, unsigned worker)
{
    (void)worker;
    const struct mixture *m = argument;
    for (size_t row = begin; row < end; row++) {
        float *y = m->to + row * m->hidden;
        for (size_t j = 0; j < m->k; j++) {
            const float *from = m->tape->expert_output + m->slots->of_row[row * m->k + j] * m->hidden;
            const float w = m->tape->expert_weight[row * m->k + j];
            if (j == 0)
                for (size_t i = 0; i < m->hidden; i++) y[i] = w * from[i];
            else
                for (size_t i = 0; i < m->hidden; i++) y[i] += w * from[i];
        }
    }
}

/* to[slot] = weight * d[row], and the weight's gradient d[row] · expert_output[slot]. */
static void spread(void *argument, size_t begin, size_t end, unsigned worker)
{
    (void)worker;
    const struct mixture *m = argument;
    for (size_t row = begin; row < end; row++)
        for (size_t j = 0; j < m->k; j++) {
            const size_t slot = m->slots->of_row[row * m->k + j];
            const float *d = m->from + row * m->hidden, *y = m->tape->expert_output + slot * m->hidden;
            const float w = m->tape->expert_weight[row * m->k + j];
            double dot = 0;
            for (size_t i = 0; i < m->hidden; i++) {
                dot += (double)d[i] * (double)y[i];
                m->to[slot * m->hidden + i] = w * d[i];
            }
            m->dweight[row * m->k + j] = (float)dot;
        }
}

/* to[row] = sum over k of from[slot]. */
static void collect(void *argument, size_t begin, size_t end, unsigned worker)
{
    (void)worker;
    const struct mixture *m = argument;
    for (size_t row = begin; row < end; row++) {
        float *y = m->to + row * m->hidden;
        for (size_t j = 0; j < m->k; j++) {
            const float *from = m->from + m->slots->of_row[row * m->k + j] * m->hidden;
            if (j == 0)
                memcpy(y, from, m->hidden * sizeof *y);
            else
                m->kernels->add_f32(y, from, m->hidden);
        }
    }
}

/* A task over the rows or their slots, or what a device has in its place. */
static void run(const struct walsh_layers *l, walsh_task *task, struct mixture *m, size_t rows)
{
    const struct walsh_queue *q = l->queue;
    const struct walsh_train_ops *ops = walsh_train_device(q);
    if (!ops) {
        walsh_pool_run(q->pool, task == gather ? rows * m->k : rows, task == gather ? 64 : 16, task, m);
        return;
    }
    if (l->status != WALSH_OK) return;
    const struct walsh_train_slots s = {l->slots.device + rows * m->k, rows, m->k, m->hidden};
    if (task == gather)
        q->ops->gather(q, m->to, m->hidden, m->from, m->hidden, l->slots.device, rows * m->k, m->hidden);
    else if (task == spread)
        ops->spread(q, &s, m->to, m->dweight, m->from, m->tape->expert_output, m->tape->expert_weight);
    else if (task == combine)
        ops->collect(q, &s, m->to, m->tape->expert_output, m->tape->expert_weight);
    else
        ops->collect(q, &s, m->to, m->from, NULL);
}

/* One linear of an expert, as a member of struct walsh_expert. */
typedef const struct walsh_linear *linear_of(const struct walsh_expert *expert);
static const struct walsh_linear *gate_of(const struct walsh_expert *expert)
{
    return &expert->gate;
}
static const struct walsh_linear *up_of(const struct walsh_expert *expert)
{
    return &expert->up;
}
static const struct walsh_linear *down_of(const struct walsh_expert *expert)
{
    return &expert->down;
}

/* The sites of the experts that have slots, in l->sites: y of a call is its slots' rows of `y`. */
static size_t active(struct walsh_layers *l, const struct walsh_layer *layer, size_t calls,
                     linear_of *const linear[], float *const y[], size_t ldy)
{
    size_t count = 0;
    for (uint32_t e = 0; e < l->graph->config.experts; e++) {
        const size_t begin = l->slots.begin[e], rows = l->slots.begin[e + 1] - begin;
        if (rows == 0) continue;
        struct walsh_frozen_site *site = &l->sites[count++];
        *site = (struct walsh_frozen_site){.count = calls, .begin = begin, .rows = rows};
        for (size_t i = 0; i < calls; i++)
            site->calls[i] = walsh_frozen(linear[i](&layer->experts[e]), y[i] + begin * ldy, ldy);
    }
    return count;
}

static linear_of *const gate_up[] = {gate_of, up_of}, *const down[] = {down_of};

void walsh_train_experts_forward(struct walsh_layers *l, const struct walsh_layer *layer, size_t rows,
                                 const float *normed, struct walsh_tape *t, float *delta)
{
    const struct walsh_config *c = &l->graph->config;
    const struct walsh_queue *q = l->queue;
    const size_t wide = c->expert_intermediate, hidden = c->hidden;
    const struct walsh_frozen_site router = {
        .calls = {walsh_frozen(&layer->router, t->router_logits, c->experts)}, .count = 1, .rows = rows};
    walsh_frozen_forward(&l->products, &router, 1, normed, hidden);
    q->ops->route(q, t->expert_index, t->expert_weight, t->router_logits, rows, c->experts,
                  c->experts_per_token, c->normalize_topk);
    if (walsh_experts_train_together(l, layer)) {
        walsh_experts_forward_together(l, layer, rows, normed, t, delta);
        return;
    }
    sort_slots(l, t, rows);
    struct mixture m = {q->kernels, &l->slots, t, normed, l->gathered, NULL, hidden, c->experts_per_token};
    run(l, gather, &m, rows);
    size_t sites = active(l, layer, 2, gate_up, (float *const[]){t->gate, t->up}, wide);
    walsh_train_round_input(l, t, WALSH_LIST_GATE_UP, l->gathered, rows * m.k, hidden);
    walsh_train_linears(l, l->sites, sites, l->gathered, hidden, t, WALSH_LIST_GATE_UP);
    struct walsh_row_output gated = {.y = l->wide, .ldy = wide};
    if (l->narrow) {
        gated.rounded = t->inputs[WALSH_LIST_DOWN];
        gated.ld_rounded = walsh_activations_stride(wide);
    }
    walsh_train_gate(l, t, &gated, rows * m.k, wide);
    sites = active(l, layer, 1, down, &t->expert_output, hidden);
    walsh_train_linears(l, l->sites, sites, l->wide, wide, t, WALSH_LIST_DOWN);
    m.to = delta;
    run(l, combine, &m, rows);
}

/* Between the gradient of the mixture's output and dnormed, without the router's part. */
static void backward_one_by_one(struct walsh_layers *l, const struct walsh_layer *layer, size_t rows,
                                const float *normed, struct walsh_tape *t, const float *d, float *dnormed)
{
    const struct walsh_config *c = &l->graph->config;
    const struct walsh_queue *q = l->queue;
    const size_t wide = c->expert_intermediate, hidden = c->hidden;
    sort_slots(l, t, rows);
    struct mixture m = {q->kernels, &l->slots, t, d, l->dgathered, l->dweight, hidden, c->experts_per_token};
    const size_t slots = rows * m.k;
    run(l, spread, &m, rows);
    const struct walsh_row_output gated = {.y = l->wide, .ldy = wide};
    if (!l->narrow) walsh_train_gate(l, t, &gated, slots, wide);
    size_t sites = active(l, layer, 1, down, &l->dgathered, hidden);
    walsh_train_linears_backward(l, l->sites, sites, l->wide, wide, l->dgate, wide, t, WALSH_LIST_DOWN);
    walsh_gate_backward(q, c, l->dgate, l->dup, l->dgate, t->gate, t->up, slots, wide);
    m.from = normed;
    m.to = l->gathered;
    if (!l->narrow) run(l, gather, &m, rows);
    sites = active(l, layer, 2, gate_up, (float *const[]){l->dgate, l->dup}, wide);
    walsh_train_linears_backward(l, l->sites, sites, l->gathered, hidden, l->dgathered, hidden, t,
                                 WALSH_LIST_GATE_UP);
    m.from = l->dgathered;
    m.to = dnormed;
    run(l, collect, &m, rows);
}

void walsh_train_experts_backward(struct walsh_layers *l, const struct walsh_layer *layer, size_t rows,
                                  const float *normed, struct walsh_tape *t, const float *d, float *dnormed)
{
    const struct walsh_config *c = &l->graph->config;
    const struct walsh_queue *q = l->queue;
    const size_t hidden = c->hidden;
    if (walsh_experts_train_together(l, layer))
        walsh_experts_backward_together(l, layer, rows, t, d, dnormed);
    else
        backward_one_by_one(l, layer, rows, normed, t, d, dnormed);
    walsh_route_backward(q, l->dlogits, l->dweight, t->router_logits, t->expert_index, t->expert_weight, rows,
                         c->experts, c->experts_per_token, c->normalize_topk);
    const struct walsh_frozen_site router = {
        .calls = {walsh_frozen(&layer->router, l->dlogits, c->experts)}, .count = 1, .rows = rows};
    walsh_frozen_backward(&l->products, &router, 1, dnormed, hidden, true);
}
