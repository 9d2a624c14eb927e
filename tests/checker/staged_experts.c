/* The staged ops of experts: staged.h. A table names the host's matrices here, and goes up with them for each op. */
#include "kernels/experts.h"

#include <stdlib.h>
#include <string.h>

#include "staged.h"

struct table {
    const struct walsh_weights *const *w;
    const float *const *bias;
};

static const struct walsh_expert_ops *experts_of(const struct walsh_queue *q)
{
    return staged_of(q)->device.memory->experts;
}

static bool fits(const struct walsh_queue *q, const struct walsh_weights *w, enum walsh_role role)
{
    return experts_of(q)->fits(&staged_of(q)->device, w, role);
}

static size_t table_bytes(const struct walsh_queue *q, uint32_t experts)
{
    (void)q;
    (void)experts;
    return sizeof(struct table);
}

static enum walsh_status place(const struct walsh_queue *q, const struct walsh_weights *const *w,
                               const float *const *bias, uint32_t experts, void *room,
                               struct walsh_expert_matrices *out, struct walsh_error *err)
{
    (void)q;
    (void)err;
    const struct table table = {w, bias};
    memcpy(room, &table, sizeof table);
    *out = (struct walsh_expert_matrices){
        .experts = experts, .outs = w[0]->rows, .cols = w[0]->cols, .biased = bias != NULL, .table = room};
    return WALSH_OK;
}

/* A list on the device. */
struct list {
    struct walsh_expert_product product[WALSH_EXPERT_LIST];
    struct walsh_expert_matrices matrices[WALSH_EXPERT_LIST];
    struct walsh_weights *weights[WALSH_EXPERT_LIST];
    size_t count;
};

static void stage_matrices(struct staged *s, const struct walsh_expert_matrices *m,
                           struct walsh_weights *weights, struct walsh_expert_matrices *out)
{
    struct walsh_error err;
    struct table host;
    memcpy(&host, m->table, sizeof host);
    const struct walsh_weights **names = malloc(m->experts * sizeof *names);
    const float **biases = malloc(m->experts * sizeof *biases);
    for (uint32_t e = 0; e < m->experts; e++) {
        staged_must(s->device.memory->upload_weights(&s->device, host.w[e], "an expert", &weights[e], &err),
                    &err);
        names[e] = &weights[e];
        biases[e] = host.bias ? staged_in(s, host.bias[e], m->outs * sizeof(float)) : NULL;
    }
    /* a copy of the pointers goes up first, which the op's own table then replaces */
    const size_t bytes = s->device.memory->experts->table_bytes(&s->device, m->experts);
    void *zeros = calloc(1, bytes), *room = (void *)(uintptr_t)staged_in(s, zeros, bytes);
    staged_must(s->device.memory->experts->place(&s->device, names, host.bias ? biases : NULL, m->experts,
                                                 room, out, &err),
                &err);
    free(zeros);
    free((void *)names);
    free((void *)biases);
}

static void stage_list(struct staged *s, const struct walsh_expert_product *list, size_t count, size_t slots,
                       struct list *to)
{
    to->count = count;
    for (size_t i = 0; i < count; i++) {
        const struct walsh_expert_matrices *m = list[i].matrices;
        to->weights[i] = malloc(m->experts * sizeof *to->weights[i]);
        stage_matrices(s, m, to->weights[i], &to->matrices[i]);
        to->product[i] = (struct walsh_expert_product){
            &to->matrices[i], staged_out(s, list[i].y, staged_span(slots, list[i].ldy, m->outs, 4)),
            list[i].ldy};
    }
}

static void free_list(struct staged *s, struct list *l)
{
    for (size_t i = 0; i < l->count; i++) {
        for (uint32_t e = 0; e < l->matrices[i].experts; e++)
            s->device.memory->free_weights(&s->device, &l->weights[i][e]);
        free(l->weights[i]);
    }
}

static void routed(const struct walsh_queue *q, const struct walsh_expert_product *list, size_t count,
                   const int32_t *index, const int32_t *order, size_t slots, uint32_t per_row,
                   const struct walsh_activations *a)
{
    struct staged *s = staged_of(q);
    struct list l;
    struct walsh_activations da = *a;
    da.data = (void *)(uintptr_t)staged_in(s, a->data, a->rows * a->stride);
    da.scale =
        (float *)(uintptr_t)staged_in(s, a->scale, a->rows * walsh_activation_scales(a->type, a->stride) * 4);
    da.sum =
        (int32_t *)(uintptr_t)staged_in(s, a->sum, a->rows * walsh_activation_sums(a->type, a->stride) * 4);
    stage_list(s, list, count, slots, &l);
    experts_of(q)->routed(&s->device, l.product, count, staged_in(s, index, slots * sizeof *index),
                          staged_in(s, order, slots * sizeof *order), slots, per_row, &da);
    staged_finish(s);
    free_list(s, &l);
}

static size_t slots_bytes(const struct walsh_queue *q, size_t slots, uint32_t experts)
{
    return experts_of(q)->slots_bytes(&staged_of(q)->device, slots, experts);
}

static struct walsh_expert_slots slots_in(const struct walsh_queue *q, void *room, size_t rows, uint32_t k,
                                          uint32_t experts)
{
    return experts_of(q)->slots_in(&staged_of(q)->device, room, rows, k, experts);
}

/* The slots' room, which begins with `order`, on the device. */
static struct walsh_expert_slots stage_slots(const struct walsh_queue *q,
                                             const struct walsh_expert_slots *slots)
{
    struct staged *s = staged_of(q);
    return slots_in(q, staged_out(s, slots->order, slots_bytes(q, slots->count, slots->experts)),
                    slots->count / slots->k, slots->k, slots->experts);
}

static void sort(const struct walsh_queue *q, const int32_t *index, const struct walsh_expert_slots *slots)
{
    struct staged *s = staged_of(q);
    const struct walsh_expert_slots d = stage_slots(q, slots);
    experts_of(q)->sort(&s->device, staged_in(s, index, slots->count * sizeof *index), &d);
    staged_finish(s);
}

static void arrange(const struct walsh_queue *q, uint16_t *to, enum walsh_format type, const void *x,
                    size_t ldx, size_t rows, size_t cols)
{
    struct staged *s = staged_of(q);
    experts_of(q)->arrange(&s->device, staged_out(s, to, rows * cols * sizeof *to), type,
                           staged_in(s, x, staged_span(rows, ldx, cols, type == WALSH_FORMAT_BF16 ? 2 : 4)),
                           ldx, rows, cols);
    staged_finish(s);
}

static void sorted(const struct walsh_queue *q, const struct walsh_expert_product *list, size_t count,
                   const struct walsh_expert_slots *slots, uint32_t per_row, const uint16_t *x)
{
    struct staged *s = staged_of(q);
    struct list l;
    const struct walsh_expert_slots d = stage_slots(q, slots);
    const size_t rows = per_row ? slots->count / per_row : slots->count;
    stage_list(s, list, count, slots->count, &l);
    experts_of(q)->sorted(&s->device, l.product, count, &d, per_row,
                          staged_in(s, x, rows * list[0].matrices->cols * sizeof *x));
    staged_finish(s);
    free_list(s, &l);
}

/* --- training --- */

static size_t inner_bytes(const struct walsh_expert_slots *slots)
{
    return slots->count * WALSH_EXPERT_RANK * sizeof(uint16_t);
}
/* Matrices of updates of all experts, of n columns. */
static size_t steps(const struct walsh_expert_slots *slots, size_t step, uint32_t rank, size_t n)
{
    return (slots->experts - 1) * step + rank * n;
}

static void pass(const struct walsh_queue *q, const struct walsh_expert_pass *p)
{
    struct staged *s = staged_of(q);
    struct walsh_expert_pass d = *p;
    struct list l;
    const struct walsh_expert_slots slots = stage_slots(q, p->slots);
    const size_t in = p->back ? p->matrices->outs : p->matrices->cols,
                 out = p->back ? p->matrices->cols : p->matrices->outs;
    /* y has the width of what goes back, so it is staged here and not with the list */
    stage_list(s, &(struct walsh_expert_product){p->matrices, NULL, 0}, 1, 0, &l);
    d.matrices = &l.matrices[0];
    d.slots = &slots;
    d.x = staged_in(s, p->x, staged_span(p->slots->count, p->ldx, in, 2));
    d.y = staged_out(s, p->y, staged_span(p->slots->count, p->ldy, out, 4));
    d.update.inner = staged_in(s, p->update.inner, inner_bytes(p->slots));
    d.update.matrix =
        staged_in(s, p->update.matrix, steps(p->slots, p->update.step, p->update.rank, out) * 2);
    experts_of(q)->pass(&s->device, &d);
    staged_finish(s);
    free_list(s, &l);
}

static void into_rank(const struct walsh_queue *q, const struct walsh_expert_slots *slots,
                      const struct walsh_expert_source *list, size_t count, uint32_t rank, float scale,
                      uint16_t *inner)
{
    struct staged *s = staged_of(q);
    struct walsh_expert_source sources[WALSH_EXPERT_SOURCES];
    const struct walsh_expert_slots d = stage_slots(q, slots);
    for (size_t i = 0; i < count; i++) {
        sources[i] = list[i];
        sources[i].x = staged_in(s, list[i].x, staged_span(slots->count, list[i].ldx, list[i].cols, 2));
        sources[i].matrix = staged_in(s, list[i].matrix, steps(slots, list[i].step, rank, list[i].cols) * 2);
    }
    experts_of(q)->into_rank(&s->device, &d, sources, count, rank, scale,
                             staged_out(s, inner, inner_bytes(slots)));
    staged_finish(s);
}

static void gradient(const struct walsh_queue *q, const struct walsh_expert_slots *slots, const uint16_t *x,
                     size_t ldx, size_t cols, const uint16_t *inner, uint32_t rank, float *to, size_t step)
{
    struct staged *s = staged_of(q);
    const struct walsh_expert_slots d = stage_slots(q, slots);
    experts_of(q)->gradient(&s->device, &d, staged_in(s, x, staged_span(slots->count, ldx, cols, 2)), ldx,
                            cols, staged_in(s, inner, inner_bytes(slots)), rank,
                            staged_out(s, to, steps(slots, step, rank, cols) * 4), step);
    staged_finish(s);
}

static const struct walsh_expert_ops staged_ops = {
    .fits = fits,
    .table_bytes = table_bytes,
    .place = place,
    .routed = routed,
    .slots_bytes = slots_bytes,
    .slots_in = slots_in,
    .sort = sort,
    .arrange = arrange,
    .sorted = sorted,
    .pass = pass,
    .into_rank = into_rank,
    .gradient = gradient,
};

const struct walsh_expert_ops *staged_experts(const struct walsh_queue *q)
{
    return q->device && experts_of(q) ? &staged_ops : NULL;
}
