/* A mixture on a device that finds the router's answer where it stands (kernels/experts.h): a layer only enqueues. Few rows
 * read the weights of their experts slot by slot, in the order of the slots; the rows of a prompt are sorted by expert. */
#include "kernels/device.h"
#include "model/adapter.h"
#include "model/layer.h"

/* Has some row an update of one of the layer's experts? Their linears are numbered one behind the other. */
static bool updated(const struct walsh_layer *layer, uint32_t experts, const struct walsh_row_sets *sets)
{
    const uint32_t first = layer->experts[0].gate.index, last = layer->experts[experts - 1].down.index;
    for (size_t i = 0; i < sets->count; i++)
        if (sets->list[i].set->first[last + 1] > sets->list[i].set->first[first]) return true;
    return false;
}

bool walsh_experts_enqueue(const struct walsh_model_graph *graph, const struct walsh_queue *q,
                           const struct walsh_layer *layer, enum walsh_role role,
                           const struct walsh_row_sets *sets)
{
    const struct walsh_expert_ops *ops = q->memory ? q->memory->experts : NULL;
    if (!ops || !layer->all_gates.table) return false;
    const struct walsh_linear *const linears[] = {&layer->experts[0].gate, &layer->experts[0].up,
                                                  &layer->experts[0].down};
    for (size_t i = 0; i < sizeof linears / sizeof *linears; i++)
        if (linears[i]->activation != WALSH_ACTIVATION_INT8_GROUPS ||
            !ops->fits(q, &linears[i]->weights, role))
            return false;
    return !updated(layer, graph->config.experts, sets);
}

bool walsh_layers_enqueue(const struct walsh_model_graph *graph, const struct walsh_queue *q,
                          enum walsh_role role, const struct walsh_row_sets *sets)
{
    for (uint32_t i = 0; i < graph->config.layers; i++)
        if (graph->layers[i].experts && !walsh_experts_enqueue(graph, q, &graph->layers[i], role, sets))
            return false;
    return true;
}

/* Every slot by itself; returns where each stands. */
static const uint32_t *few(const struct walsh_config *c, const struct walsh_queue *q,
                           const struct walsh_layer *layer, const struct walsh_rows *rows,
                           struct walsh_workspace *ws)
{
    const struct walsh_expert_ops *ops = q->memory->experts;
    const struct walsh_expert *one = &layer->experts[0];
    const size_t k = c->experts_per_token, slots = rows->count * k, wide = c->expert_intermediate;
    const struct walsh_expert_product gate_up[] = {{&layer->all_gates, ws->gate, ws->gate_ld},
                                                   {&layer->all_ups, ws->up, ws->gate_ld}},
                                      down = {&layer->all_downs, ws->delta, c->hidden};
    const int32_t *order = NULL;
    if (slots >= c->experts) { /* most experts have several: one reads its weights once */
        const struct walsh_expert_slots sorted =
            ops->slots_in(q, ws->sorted_slots, rows->count, (uint32_t)k, c->experts);
        ops->sort(q, ws->expert_index, &sorted);
        order = sorted.order;
    }
    struct walsh_activations a = walsh_linear_input(q, ws, &one->gate, rows->count, rows->role);
    q->ops->prepare(q, &a, ws->normed, ws->normed_ld, &one->gate.in_rotation);
    ops->routed(q, gate_up, 2, ws->expert_index, order, slots, (uint32_t)k, &a);
    walsh_gate(c, q, ws, slots, wide);
    struct walsh_activations gated = {.type = WALSH_ACTIVATION_INT8_GROUPS,
                                      .rows = slots,
                                      .cols = wide,
                                      .stride = walsh_activations_stride(wide),
                                      .data = ws->slot_data,
                                      .scale = ws->slot_scale,
                                      .sum = ws->slot_sum};
    q->ops->prepare(q, &gated, ws->gate, ws->gate_ld, &one->down.in_rotation);
    ops->routed(q, &down, 1, ws->expert_index, order, slots, 1, &gated);
    return ws->slots_in_order;
}

/* Sorted by expert. */
static const uint32_t *many(const struct walsh_config *c, const struct walsh_queue *q,
                            const struct walsh_layer *layer, const struct walsh_rows *rows,
                            struct walsh_workspace *ws)
{
    const struct walsh_expert_ops *ops = q->memory->experts;
    const uint32_t k = c->experts_per_token;
    const size_t slots = rows->count * k, wide = c->expert_intermediate;
    const struct walsh_expert_product gate_up[] = {{&layer->all_gates, ws->gate, ws->gate_ld},
                                                   {&layer->all_ups, ws->up, ws->gate_ld}},
                                      down = {&layer->all_downs, ws->delta, c->hidden};
    const struct walsh_expert_slots sorted = ops->slots_in(q, ws->sorted_slots, rows->count, k, c->experts);
    ops->sort(q, ws->expert_index, &sorted);
    ops->arrange(q, ws->activations, WALSH_FORMAT_F32, ws->normed, ws->normed_ld, rows->count, c->hidden);
    ops->sorted(q, gate_up, 2, &sorted, k, ws->activations);
    walsh_gate(c, q, ws, slots, wide);
    ops->arrange(q, ws->slot_data, WALSH_FORMAT_F32, ws->gate, ws->gate_ld, slots, wide);
    ops->sorted(q, &down, 1, &sorted, 0, ws->slot_data);
    return sorted.place;
}

void walsh_experts_enqueued(const struct walsh_model_graph *graph, const struct walsh_queue *q,
                            const struct walsh_layer *layer, float *x, const struct walsh_rows *rows,
                            struct walsh_workspace *ws)
{
    const struct walsh_config *c = &graph->config;
    const uint32_t *slot = (rows->role == WALSH_DECODE ? few : many)(c, q, layer, rows, ws);
    q->ops->combine(q, x, c->hidden, ws->delta, slot, ws->expert_weight, rows->count, c->experts_per_token);
}
