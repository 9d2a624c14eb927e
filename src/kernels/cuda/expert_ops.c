/* The ops of a mixture's experts on CUDA: descriptors into launches. */
#include "base/memory.h"
#include "kernels/cuda/backend.h"
#include "kernels/cuda/launch_experts.h"
#include "kernels/experts.h"

_Static_assert(WALSH_EXPERT_LIST == CUDA_EXPERT_LIST && WALSH_EXPERT_SOURCES == CUDA_EXPERT_SOURCES &&
                   WALSH_EXPERT_RANK == CUDA_EXPERT_RANK,
               "the kernels' lists and rank");

#define MOST_SLOTS 65535 /* of a launch of few rows */

/* The device of q, current for this thread. */
static struct cuda_device *enter(const struct walsh_queue *q)
{
    struct cuda_device *d = cuda_device_of(q);
    cudaSetDevice(d->number);
    return d;
}

static bool fits(const struct walsh_queue *q, const struct walsh_weights *w, enum walsh_role role)
{
    enter(q);
    if (w->format != WALSH_FORMAT_MXFP4 || w->block.code != WALSH_CODE_E2M1 ||
        w->block.scale != WALSH_SCALE_E8M0 || w->block.group != WALSH_ACTIVATION_GROUP)
        return false;
    if (role == WALSH_DECODE) return cuda_route_experts_fits(w->cols);
    return w->rows % 32 == 0 && w->cols % 32 == 0 && cuda_multiply_experts_fits();
}

static size_t table_bytes(const struct walsh_queue *q, uint32_t experts)
{
    (void)q;
    return experts * sizeof(struct cuda_expert);
}

static enum walsh_status place(const struct walsh_queue *q, const struct walsh_weights *const *w,
                               const float *const *bias, uint32_t experts, void *room,
                               struct walsh_expert_matrices *out, struct walsh_error *err)
{
    struct cuda_expert *table;
    WALSH_TRY(walsh_alloc(experts, sizeof *table, "a table of experts", &table, err));
    for (uint32_t e = 0; e < experts; e++)
        table[e] = (struct cuda_expert){w[e]->data, w[e]->scales, bias ? bias[e] : NULL};
    const enum walsh_status status = q->memory->upload(q, room, table, experts * sizeof *table, err);
    walsh_free(table);
    *out = (struct walsh_expert_matrices){
        .experts = experts, .outs = w[0]->rows, .cols = w[0]->cols, .biased = bias != NULL, .table = room};
    return status;
}

static void routed(const struct walsh_queue *q, const struct walsh_expert_product *list, size_t count,
                   const int32_t *index, const int32_t *order, size_t slots, uint32_t per_row,
                   const struct walsh_activations *a)
{
    struct cuda_device *d = enter(q);
    const struct walsh_expert_matrices *m = list[0].matrices;
    const size_t scales = a->stride / WALSH_ACTIVATION_GROUP, sums = a->stride / WALSH_ACTIVATION_SUM,
                 most = MOST_SLOTS / per_row * per_row;
    for (size_t at = 0, n; at < slots; at += n) {
        struct cuda_routed some[CUDA_EXPERT_LIST];
        const size_t first = order ? 0 : at, row = first / per_row; /* an order names all slots */
        n = walsh_min(slots - at, most);
        for (size_t i = 0; i < count; i++)
            some[i] =
                (struct cuda_routed){list[i].matrices->table, list[i].y + first * list[i].ldy, list[i].ldy};
        cuda_route_experts(d->stream, some, count, index + first, order ? order + at : NULL, n, per_row,
                           m->outs, m->cols, (const int8_t *)a->data + row * a->stride, a->stride,
                           a->scale + row * scales, a->sum + row * sums);
    }
    cuda_note(d, "experts");
}

/* The arrays of slots, one behind the other, 256-byte aligned; NULL: only their bytes. */
static size_t lay_out(uint8_t *room, size_t slots, uint32_t k, uint32_t experts,
                      struct walsh_expert_slots *out)
{
    const size_t bytes[] = {slots * sizeof(int32_t),
                            slots * sizeof(int32_t),
                            slots * sizeof(int32_t),
                            ((size_t)experts + 1) * sizeof(int32_t),
                            cuda_expert_tiles(slots, experts) * sizeof(struct cuda_expert_tile),
                            sizeof(int32_t)};
    void *at[sizeof bytes / sizeof *bytes];
    size_t used = 0;
    for (size_t i = 0; i < sizeof bytes / sizeof *bytes; i++) {
        at[i] = room ? room + used : NULL;
        used += walsh_round_up(bytes[i], 256);
    }
    *out = (struct walsh_expert_slots){slots, k, experts, at[0], at[1], at[2], at[3], at[4], at[5]};
    return used;
}

static size_t slots_bytes(const struct walsh_queue *q, size_t slots, uint32_t experts)
{
    struct walsh_expert_slots none;
    (void)q;
    return lay_out(NULL, slots, 1, experts, &none);
}

static struct walsh_expert_slots slots_in(const struct walsh_queue *q, void *room, size_t rows, uint32_t k,
                                          uint32_t experts)
{
    struct walsh_expert_slots out;
    (void)q;
    lay_out(room, rows * k, k, experts, &out);
    return out;
}

static struct cuda_slots slots_of(const struct walsh_expert_slots *s)
{
    return (struct cuda_slots){.order = s->order,
                               .place = (int32_t *)s->place,
                               .row = (int32_t *)s->row,
                               .begin = s->begin,
                               .tiles = s->tiles,
                               .count = s->tile_count};
}

static void sort(const struct walsh_queue *q, const int32_t *index, const struct walsh_expert_slots *slots)
{
    struct cuda_device *d = enter(q);
    const struct cuda_slots to = slots_of(slots);
    if (slots->experts > CUDA_EXPERTS) {
        cuda_refuse(d, "experts", "more than 4096 of them have no kernels");
        return;
    }
    cuda_sort_slots(d->stream, index, slots->count, slots->k, slots->experts, &to);
    cuda_note(d, "experts' sort");
}

static void arrange(const struct walsh_queue *q, uint16_t *to, enum walsh_format type, const void *x,
                    size_t ldx, size_t rows, size_t cols)
{
    struct cuda_device *d = enter(q);
    if (type == WALSH_FORMAT_BF16)
        cuda_expert_columns(d->stream, to, x, ldx, rows, (uint32_t)cols);
    else
        cuda_expert_round(d->stream, to, x, ldx, rows, (uint32_t)cols);
    cuda_note(d, "experts' rows");
}

static void sorted(const struct walsh_queue *q, const struct walsh_expert_product *list, size_t count,
                   const struct walsh_expert_slots *slots, uint32_t per_row, const uint16_t *x)
{
    struct cuda_device *d = enter(q);
    const struct cuda_slots s = slots_of(slots);
    for (size_t i = 0; i < count; i++) {
        const struct walsh_expert_matrices *m = list[i].matrices;
        const struct cuda_expert_product p = {.experts = m->table,
                                              .slots = &s,
                                              .rows = {x, m->cols, per_row},
                                              .outs = m->outs,
                                              .cols = m->cols,
                                              .type = CUDA_TYPE_F32,
                                              .y = list[i].y,
                                              .ldy = list[i].ldy};
        cuda_multiply_experts(d->stream, &p, d->processors);
        if (m->biased)
            cuda_expert_biases(d->stream, m->table, &s, slots->count, m->experts, m->outs, list[i].y,
                               list[i].ldy);
    }
    cuda_note(d, "experts");
}

/* --- training --- */

static void pass(const struct walsh_queue *q, const struct walsh_expert_pass *p)
{
    struct cuda_device *d = enter(q);
    const struct cuda_slots s = slots_of(p->slots);
    const struct walsh_expert_matrices *m = p->matrices;
    const struct cuda_expert_product product = {.experts = m->table,
                                                .slots = &s,
                                                .rows = {p->x, p->ldx, 0},
                                                .outs = m->outs,
                                                .cols = m->cols,
                                                .back = p->back,
                                                .type = CUDA_TYPE_F32,
                                                .y = p->y,
                                                .ldy = p->ldy,
                                                .add = p->add,
                                                .h = p->update.inner,
                                                .matrix = p->update.matrix,
                                                .step = p->update.step,
                                                .rank = p->update.rank};
    cuda_multiply_experts(d->stream, &product, d->processors);
    if (!p->back && m->biased)
        cuda_expert_biases(d->stream, m->table, &s, p->slots->count, m->experts, m->outs, p->y, p->ldy);
    cuda_note(d, "experts in training");
}

static void into_rank(const struct walsh_queue *q, const struct walsh_expert_slots *slots,
                      const struct walsh_expert_source *list, size_t count, uint32_t rank, float scale,
                      uint16_t *inner)
{
    struct cuda_device *d = enter(q);
    const struct cuda_slots s = slots_of(slots);
    struct cuda_expert_source sources[CUDA_EXPERT_SOURCES];
    for (size_t i = 0; i < count; i++)
        sources[i] = (struct cuda_expert_source){
            {list[i].x, list[i].ldx, 0}, (uint32_t)list[i].cols, list[i].matrix, list[i].step};
    cuda_expert_into_rank(d->stream, &s, slots->count, slots->experts, sources, count, rank, scale, inner);
    cuda_note(d, "experts' inner values");
}

static void gradient(const struct walsh_queue *q, const struct walsh_expert_slots *slots, const uint16_t *x,
                     size_t ldx, size_t cols, const uint16_t *inner, uint32_t rank, float *to, size_t step)
{
    struct cuda_device *d = enter(q);
    const struct cuda_slots s = slots_of(slots);
    const struct cuda_expert_rows rows = {x, ldx, 0};
    cuda_expert_gradient(d->stream, &s, slots->experts, &rows, (uint32_t)cols, inner, rank, to, step, true);
    cuda_note(d, "experts' gradients");
}

const struct walsh_expert_ops cuda_expert_ops = {
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
