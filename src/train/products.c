#include "train/products_parts.h"

#include "kernels/table.h"
#include "train/device.h"

static const struct walsh_rotation *side(const struct walsh_frozen_site *site, size_t call, bool transposed)
{
    const struct walsh_linear *linear = site->calls[call].linear;
    return transposed ? &linear->out_rotation : &linear->in_rotation;
}

/* Do call `c` of site `a` and call `d` of site `b` want the same preparation of the same rows? */
static bool same_input(const struct walsh_products *p, const struct walsh_frozen_site *a, size_t c,
                       const struct walsh_frozen_site *b, size_t d, bool transposed)
{
    return walsh_frozen_type(p->compute, a->calls[c].linear) ==
               walsh_frozen_type(p->compute, b->calls[d].linear) &&
           walsh_rotation_equal(side(a, c, transposed), side(b, d, transposed));
}

bool walsh_products_take_rows(const struct walsh_products *p, const struct walsh_linear *linear,
                              bool transposed)
{
    if (p->queue->memory) return false;
    const struct walsh_rotation *rotation = transposed ? &linear->out_rotation : &linear->in_rotation;
    return walsh_frozen_type(p->compute, linear) == WALSH_ACTIVATION_BF16 &&
           rotation->kind == WALSH_ROTATION_NONE;
}

/* Are the rows that the caller rounded what call `c` of all sites reads? They become its activations. */
static bool take_rounded(struct walsh_products *p, const struct walsh_frozen_site *sites, size_t count,
                         size_t c, size_t item, bool transposed)
{
    for (size_t i = 0; i < count; i++) {
        const struct walsh_frozen_call *call = &sites[i].calls[c];
        const uint16_t *rows = transposed ? call->rows : sites[i].inputs;
        if (!rows || !walsh_products_take_rows(p, call->linear, transposed)) return false;
        p->items[item + i].a =
            (struct walsh_activations){.type = WALSH_ACTIVATION_BF16,
                                       .rows = sites[i].rows,
                                       .cols = transposed ? call->linear->out : call->linear->in,
                                       .stride = transposed ? call->ld_rows : sites[i].ld_rows,
                                       .data = (uint16_t *)(uintptr_t)rows};
    }
    return true;
}

/* Prepare what call `c` of every site reads, rows x + begin * ldx, into the items of their numbers. */
static void prepare(struct walsh_products *p, const struct walsh_frozen_site *sites, size_t count, size_t c,
                    const float *x, size_t ldx, bool transposed)
{
    size_t widest = 0, last = count - 1;
    bool together = true;
    for (size_t i = 0; i < count; i++) {
        widest = walsh_max(widest, side(&sites[i], c, transposed)->blocks.padded);
        together = together && same_input(p, &sites[0], c, &sites[i], c, transposed);
    }
    const size_t stride = walsh_activations_stride(widest), first = sites[0].begin;
    for (size_t i = 0; i < count; i++) {
        const enum walsh_activation_type type = walsh_frozen_type(p->compute, sites[i].calls[c].linear);
        const size_t element = together ? walsh_activation_size(type) : sizeof(float);
        p->items[i].a = (struct walsh_activations){.type = type,
                                                   .rows = sites[i].rows,
                                                   .cols = side(&sites[i], c, transposed)->blocks.padded,
                                                   .stride = stride,
                                                   .data = (uint8_t *)p->activations +
                                                           (sites[i].begin - first) * stride * element};
    }
    for (size_t i = 0; i < (together ? 1 : count); i++) {
        struct walsh_activations a = p->items[i].a;
        if (together) a.rows = sites[last].begin + sites[last].rows - first;
        p->queue->ops->prepare(p->queue, &a, x + sites[i].begin * ldx, ldx, side(&sites[i], c, transposed));
    }
}

/* Describe the product of call `c` of site `i`; its result is `to`, or still rotated in z. */
static void describe(struct walsh_products *p, const struct walsh_frozen_site *sites, size_t i, size_t c,
                     struct walsh_products_item *item, float *to, size_t ldto, bool transposed)
{
    const struct walsh_linear *linear = sites[i].calls[c].linear;
    const struct walsh_rotation *rotation = transposed ? &linear->in_rotation : &linear->out_rotation;
    const bool rotated = rotation->kind != WALSH_ROTATION_NONE;
    item->stored = &linear->weights;
    item->panels = p->panels ? p->panels[2 * linear->index + transposed] : NULL;
    item->rows = sites[i].rows;
    item->add = false;
    item->next = 0;
    item->update = rotated ? (struct walsh_frozen_update){.rank = 0} : sites[i].calls[c].update;
    item->y = rotated ? p->z + (sites[i].begin - sites[0].begin) * p->widest : to;
    item->ldy = rotated ? p->widest : ldto;
}

static void unrotate(struct walsh_products *p, const struct walsh_frozen_site *site, size_t c,
                     const struct walsh_products_item *item, float *to, size_t ldto, bool transposed)
{
    const struct walsh_linear *linear = site->calls[c].linear;
    p->queue->ops->unrotate(p->queue, to, ldto, item->y, item->ldy,
                            transposed ? &linear->in_rotation : &linear->out_rotation,
                            transposed ? NULL : linear->bias, site->rows);
}

/* How many calls from `c` on can share a dispatch: the same input, and outputs that need no z. */
static size_t run_of(const struct walsh_products *p, const struct walsh_frozen_site *sites, size_t count,
                     size_t c)
{
    size_t end = c;
    for (; end < sites[0].count; end++)
        for (size_t i = 0; i < count; i++) {
            const bool rotated = sites[i].calls[end].linear->out_rotation.kind != WALSH_ROTATION_NONE;
            if (end > c && (rotated || !same_input(p, &sites[i], c, &sites[i], end, false))) return end - c;
            if (rotated) return 1;
        }
    return end - c;
}

/* The updates of call `c` of all sites alone, where the product had to be rotated back first. dx: of sites[0], back. */
static void add_updates(struct walsh_products *p, const struct walsh_frozen_site *sites, size_t count,
                        size_t c, float *dx, size_t lddx, bool transposed)
{
    size_t used = 0;
    for (size_t i = 0; i < count; i++) {
        const struct walsh_frozen_call *call = &sites[i].calls[c];
        if (call->update.rank == 0) continue;
        struct walsh_products_item *item = &p->items[used++];
        item->stored = NULL;
        item->panels = NULL;
        item->rows = sites[i].rows;
        item->outputs = transposed ? call->linear->in : call->linear->out;
        item->y = transposed ? dx + (sites[i].begin - sites[0].begin) * lddx : call->y;
        item->ldy = transposed ? lddx : call->ldy;
        item->add = true;
        item->next = 0;
        item->update = call->update;
    }
    if (used > 0) walsh_products_multiply(p, used, used, transposed);
}

void walsh_frozen_forward(struct walsh_products *p, const struct walsh_frozen_site *sites, size_t count,
                          const float *x, size_t ldx)
{
    if (walsh_train_device(p->queue)) {
        for (size_t i = 0; i < count; i++) walsh_device_forward(p, &sites[i], x, ldx);
        return;
    }
    if (count == 0) return;
    for (size_t c = 0, run; c < sites[0].count; c += run) {
        bool ready = c > 0;
        for (size_t i = 0; ready && i < count; i++)
            ready = same_input(p, &sites[i], c - 1, &sites[i], c, false);
        if (!ready && !take_rounded(p, sites, count, c, 0, false)) prepare(p, sites, count, c, x, ldx, false);
        run = run_of(p, sites, count, c);
        for (size_t n = 0; n < run; n++)
            for (size_t i = 0; i < count; i++) {
                const struct walsh_frozen_call *call = &sites[i].calls[c + n];
                p->items[n * count + i].a = p->items[i].a;
                describe(p, sites, i, c + n, &p->items[n * count + i], call->y, call->ldy, false);
            }
        walsh_products_multiply(p, run * count, run * count, false);
        for (size_t n = 0; n < run; n++)
            for (size_t i = 0; i < count; i++) {
                const struct walsh_frozen_call *call = &sites[i].calls[c + n];
                unrotate(p, &sites[i], c + n, &p->items[n * count + i], call->y, call->ldy, false);
            }
        if (sites[0].calls[c].linear->out_rotation.kind != WALSH_ROTATION_NONE)
            add_updates(p, sites, count, c, NULL, 0, false);
    }
}

struct add_rows {
    const struct walsh_kernels *kernels;
    float *to;
    const float *from;
    size_t ldto, ldfrom, n;
};

static void add_rows(void *argument, size_t begin, size_t end, unsigned worker)
{
    (void)worker;
    const struct add_rows *t = argument;
    for (size_t r = begin; r < end; r++)
        t->kernels->add_f32(t->to + r * t->ldto, t->from + r * t->ldfrom, t->n);
}

static bool rotated_inputs(const struct walsh_frozen_site *sites, size_t count)
{
    for (size_t i = 0; i < count; i++)
        for (size_t c = 0; c < sites[i].count; c++)
            if (sites[i].calls[c].linear->in_rotation.kind != WALSH_ROTATION_NONE) return true;
    return false;
}

/* The sum over the calls in one dispatch, as the items of call c at c * count: possible where all of dy is rounded already, nothing
 * is rotated and no weight is decoded first. */
static bool sum_at_once(struct walsh_products *p, const struct walsh_frozen_site *sites, size_t count,
                        float *dx, size_t lddx, bool add)
{
    const size_t calls = sites[0].count;
    size_t rows = 0;
    for (size_t i = 0; i < count; i++) rows += sites[i].rows;
    for (size_t c = 0; c < calls; c++) {
        for (size_t i = 0; i < count; i++) {
            const struct walsh_weights *w = &sites[i].calls[c].linear->weights;
            if (!walsh_products_dense(w->format) &&
                !walsh_products_choose(p->strategy, p->queue, w, WALSH_ACTIVATION_BF16, rows / count))
                return false;
        }
        if (!take_rounded(p, sites, count, c, c * count, true)) return false;
    }
    for (size_t c = 0; c < calls; c++)
        for (size_t i = 0; i < count; i++) {
            struct walsh_products_item *item = &p->items[c * count + i];
            describe(p, sites, i, c, item, dx + (sites[i].begin - sites[0].begin) * lddx, lddx, true);
            item->add = add;
            item->next = c + 1 < calls ? (c + 1) * count + i : 0;
        }
    walsh_products_multiply(p, count, calls * count, true);
    return true;
}

/* dx = or += what call `c` of all sites gives, without its updates. */
static void back_call(struct walsh_products *p, const struct walsh_frozen_site *sites, size_t count, size_t c,
                      float *dx, size_t lddx, bool add)
{
    const struct walsh_frozen_site *last = &sites[count - 1];
    const struct walsh_frozen_call *call = &sites[0].calls[c];
    const size_t first = sites[0].begin, in = call->linear->in;
    const bool through_extra = add && rotated_inputs(sites, count);
    float *to = through_extra ? p->extra : dx;
    const size_t ldto = through_extra ? in : lddx;
    if (!take_rounded(p, sites, count, c, 0, true)) /* the sites' dy are rows of one matrix */
        prepare(p, sites, count, c, call->y - first * call->ldy, call->ldy, true);
    for (size_t i = 0; i < count; i++) {
        describe(p, sites, i, c, &p->items[i], to + (sites[i].begin - first) * ldto, ldto, true);
        p->items[i].update.rank = 0;
        p->items[i].add = add && !through_extra;
    }
    walsh_products_multiply(p, count, count, true);
    for (size_t i = 0; i < count; i++)
        unrotate(p, &sites[i], c, &p->items[i], to + (sites[i].begin - first) * ldto, ldto, true);
    if (!through_extra) return;
    struct add_rows t = {p->queue->kernels, dx, to, lddx, ldto, in};
    walsh_pool_run(p->queue->pool, last->begin + last->rows - first, 16, add_rows, &t);
}

void walsh_frozen_backward(struct walsh_products *p, const struct walsh_frozen_site *sites, size_t count,
                           float *dx, size_t lddx, bool add)
{
    if (walsh_train_device(p->queue)) {
        for (size_t i = 0; i < count; i++) walsh_device_backward(p, &sites[i], dx, lddx, add);
        return;
    }
    if (count == 0) return;
    dx += sites[0].begin * lddx;
    if (!rotated_inputs(sites, count) && sum_at_once(p, sites, count, dx, lddx, add)) return;
    for (size_t c = 0; c < sites[0].count; c++) back_call(p, sites, count, c, dx, lddx, add || c > 0);
    for (size_t c = 0; c < sites[0].count; c++) add_updates(p, sites, count, c, dx, lddx, true);
}
