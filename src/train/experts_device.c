/* The mixture of a layer in training by products of all its experts (kernels/experts.h): the device sorts the slots, and nobody
 * waits for it. Updates are computed in bf16, as train/lora.h has them. */
#include "train/experts.h"

#include "kernels/device.h"
#include "train/device.h"
#include "train/gradients.h"
#include "train/rows.h"

/* The updates of one projection of all experts. */
struct together {
    const struct walsh_expert_matrices *matrices;
    uint32_t rank; /* 0: none */
    float scale;
    const uint16_t *a, *b;
    float *grad_a, *grad_b;
    size_t a_step, b_step, grad_a_step, grad_b_step;
    uint32_t in, out;
};

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

static struct together one_of(const struct walsh_lora *u)
{
    return (struct together){.rank = u->rank,
                             .scale = u->scale,
                             .a = walsh_lora_matrix(u->a_pairs, u->rank, u->in),
                             .b = walsh_lora_matrix(u->b_pairs, u->rank, u->out),
                             .grad_a = u->grad_a,
                             .grad_b = u->grad_b};
}

static bool aligned(const uint16_t *matrix, size_t step)
{
    return (uintptr_t)matrix % 16 == 0 && step % 8 == 0;
}

/* Do the matrices of all experts stand the same step apart, as the kernels read them? */
static bool evenly(const struct walsh_layers *l, const struct walsh_layer *layer, linear_of *of,
                   struct together *t)
{
    const uint32_t experts = l->graph->config.experts;
    const struct walsh_lora *first = l->loras[of(&layer->experts[0])->index];
    for (uint32_t e = 0; e < experts; e++) {
        const struct walsh_lora *u = l->loras[of(&layer->experts[e])->index];
        if (!u != !first) return false;
        if (!u) continue;
        if (!u->a_pairs || u->rank != first->rank || u->rank > WALSH_EXPERT_RANK) return false;
        const struct together now = one_of(u);
        if (e == 0) {
            *t = now;
        } else if (e == 1) {
            t->a_step = (size_t)(now.a - t->a), t->b_step = (size_t)(now.b - t->b);
            t->grad_a_step = (size_t)(now.grad_a - t->grad_a),
            t->grad_b_step = (size_t)(now.grad_b - t->grad_b);
        } else if (now.a != t->a + e * t->a_step || now.b != t->b + e * t->b_step ||
                   now.grad_a != t->grad_a + e * t->grad_a_step ||
                   now.grad_b != t->grad_b + e * t->grad_b_step) {
            return false;
        }
    }
    return !first || (aligned(t->a, t->a_step) && aligned(t->b, t->b_step) && (uintptr_t)t->grad_a % 8 == 0 &&
                      (uintptr_t)t->grad_b % 8 == 0 && t->grad_a_step % 2 == 0 && t->grad_b_step % 2 == 0);
}

static bool together_of(const struct walsh_layers *l, const struct walsh_layer *layer, linear_of *of,
                        const struct walsh_expert_matrices *matrices, struct together *out)
{
    const struct walsh_linear *linear = of(&layer->experts[0]);
    *out = (struct together){0};
    if (walsh_frozen_type(l->products.compute, linear) != WALSH_ACTIVATION_BF16 ||
        !l->queue->memory->experts->fits(l->queue, &linear->weights, WALSH_PREFILL) ||
        !evenly(l, layer, of, out))
        return false;
    out->matrices = matrices;
    out->in = linear->in, out->out = linear->out;
    return true;
}

/* gate and up, which may share A, then down. */
struct parts {
    struct together gate_up[2], down;
};
static bool parts_of(const struct walsh_layers *l, const struct walsh_layer *layer, struct parts *out)
{
    return l->queue->memory && l->queue->memory->experts && l->narrow && layer->all_gates.table &&
           together_of(l, layer, gate_of, &layer->all_gates, &out->gate_up[0]) &&
           together_of(l, layer, up_of, &layer->all_ups, &out->gate_up[1]) &&
           together_of(l, layer, down_of, &layer->all_downs, &out->down);
}

bool walsh_experts_train_together(const struct walsh_layers *l, const struct walsh_layer *layer)
{
    struct parts parts;
    return parts_of(l, layer, &parts);
}

static struct walsh_expert_slots sort(const struct walsh_layers *l, const struct walsh_tape *t, size_t rows)
{
    const struct walsh_config *c = &l->graph->config;
    const struct walsh_expert_ops *ops = l->queue->memory->experts;
    const struct walsh_expert_slots s =
        ops->slots_in(l->queue, l->sorted_slots, rows, c->experts_per_token, c->experts);
    ops->sort(l->queue, t->expert_index, &s);
    return s;
}

/* Inner values of call number i of a list; calls that share A share them. */
static uint16_t *inner_of(const struct together *list, size_t i, uint16_t *room, size_t slots)
{
    return room + (i > 0 && list[i].a != list[0].a ? slots * WALSH_EXPERT_RANK : 0);
}

/* y[i] [slots][out] of what the tape holds rounded. */
static void forward(struct walsh_layers *l, const struct walsh_expert_slots *s, const struct together *list,
                    size_t count, const struct walsh_tape *t, enum walsh_tape_list which, float *const y[])
{
    const struct walsh_queue *q = l->queue;
    const struct walsh_expert_ops *ops = q->memory->experts;
    const size_t in = list[0].in, ld = walsh_activations_stride(in);
    uint16_t *arranged = l->rounded[0]; /* which nobody reads before the backward */
    ops->arrange(q, arranged, WALSH_FORMAT_BF16, t->inputs[which], ld, s->count, in);
    for (size_t i = 0; i < count; i++) {
        const struct together *p = &list[i];
        uint16_t *inner = p->rank > 0 ? inner_of(list, i, t->inner[which], s->count) : NULL;
        const struct walsh_expert_source x = {t->inputs[which], p->a, ld, in, p->a_step};
        if (inner && (i == 0 || p->a != list[0].a)) ops->into_rank(q, s, &x, 1, p->rank, p->scale, inner);
        ops->pass(q, &(struct walsh_expert_pass){.matrices = p->matrices,
                                                 .slots = s,
                                                 .x = arranged,
                                                 .ldx = in,
                                                 .y = y[i],
                                                 .ldy = p->out,
                                                 .update = {p->b, inner, p->b_step, p->rank}});
    }
}

void walsh_experts_forward_together(struct walsh_layers *l, const struct walsh_layer *layer, size_t rows,
                                    const float *normed, struct walsh_tape *t, float *delta)
{
    const struct walsh_config *c = &l->graph->config;
    const struct walsh_queue *q = l->queue;
    const size_t wide = c->expert_intermediate, hidden = c->hidden;
    const struct walsh_expert_slots s = sort(l, t, rows);
    struct parts parts;
    parts_of(l, layer, &parts);
    q->ops->gather(q, l->gathered, hidden, normed, hidden, s.row, s.count, hidden);
    walsh_train_round_input(l, t, WALSH_LIST_GATE_UP, l->gathered, s.count, hidden);
    forward(l, &s, parts.gate_up, 2, t, WALSH_LIST_GATE_UP, (float *const[]){t->gate, t->up});
    const struct walsh_row_output gated = {.y = l->wide,
                                           .ldy = wide,
                                           .rounded = t->inputs[WALSH_LIST_DOWN],
                                           .ld_rounded = walsh_activations_stride(wide)};
    walsh_train_gate(l, t, &gated, s.count, wide);
    forward(l, &s, &parts.down, 1, t, WALSH_LIST_DOWN, &t->expert_output);
    const struct walsh_train_slots collected = {s.place, rows, c->experts_per_token, hidden};
    q->ops->train->collect(q, &collected, delta, t->expert_output, t->expert_weight);
}

/* dx [slots][in] = the sum over the calls of what comes back of dy[i], and the gradients of their updates. */
static void backward(struct walsh_layers *l, const struct walsh_expert_slots *s, const struct together *list,
                     size_t count, const struct walsh_tape *t, enum walsh_tape_list which,
                     const float *const dy[], float *dx)
{
    const struct walsh_queue *q = l->queue;
    const struct walsh_expert_ops *ops = q->memory->experts;
    const size_t in = list[0].in, out = list[0].out, ld_x = walsh_activations_stride(in),
                 ld = walsh_activations_stride(out);
    const bool shared = count > 1 && list[1].a == list[0].a;
    uint16_t *room = (uint16_t *)(void *)l->gathered; /* which nobody reads before the next forward */
    struct walsh_expert_source back[WALSH_EXPERT_SOURCES];
    for (size_t i = 0; i < count; i++) {
        const struct walsh_row_output to = {.rounded = l->rounded[i], .ld_rounded = ld};
        walsh_rows_round(q, &to, dy[i], out, s->count, out);
        back[i] = (struct walsh_expert_source){l->rounded[i], list[i].b, ld, out, list[i].b_step};
    }
    for (size_t i = 0; i < count; i++) {
        const struct together *p = &list[i];
        const bool first = i == 0 || !shared; /* with its A */
        uint16_t *inner = p->rank > 0 && first ? inner_of(list, i, room, s->count) : NULL;
        if (inner) ops->into_rank(q, s, &back[i], shared ? count : 1, p->rank, p->scale, inner);
        ops->pass(q, &(struct walsh_expert_pass){.matrices = p->matrices,
                                                 .slots = s,
                                                 .back = true,
                                                 .add = i > 0,
                                                 .x = l->rounded[i],
                                                 .ldx = ld,
                                                 .y = dx,
                                                 .ldy = in,
                                                 .update = {p->a, inner, p->a_step, p->rank}});
        if (p->rank == 0) continue;
        if (inner) ops->gradient(q, s, t->inputs[which], ld_x, in, inner, p->rank, p->grad_a, p->grad_a_step);
        ops->gradient(q, s, l->rounded[i], ld, out, inner_of(list, i, t->inner[which], s->count), p->rank,
                      p->grad_b, p->grad_b_step);
    }
}

void walsh_experts_backward_together(struct walsh_layers *l, const struct walsh_layer *layer, size_t rows,
                                     struct walsh_tape *t, const float *d, float *dnormed)
{
    const struct walsh_config *c = &l->graph->config;
    const struct walsh_queue *q = l->queue;
    const size_t wide = c->expert_intermediate, hidden = c->hidden;
    const struct walsh_expert_slots s = sort(l, t, rows);
    const struct walsh_train_slots slots = {s.place, rows, c->experts_per_token, hidden};
    struct parts parts;
    parts_of(l, layer, &parts);
    q->ops->train->spread(q, &slots, l->dgathered, l->dweight, d, t->expert_output, t->expert_weight);
    backward(l, &s, &parts.down, 1, t, WALSH_LIST_DOWN, (const float *const[]){l->dgathered}, l->dgate);
    walsh_gate_backward(q, c, l->dgate, l->dup, l->dgate, t->gate, t->up, s.count, wide);
    backward(l, &s, parts.gate_up, 2, t, WALSH_LIST_GATE_UP, (const float *const[]){l->dgate, l->dup},
             l->dgathered);
    q->ops->train->collect(q, &slots, dnormed, l->dgathered, NULL);
}
