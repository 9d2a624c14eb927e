/* Mixtures of experts of walsh_ops.h: products of several linears over consecutive rows, routing, whole
 * experts. */
#include <math.h>
#include <string.h>

#include "api/ops_linear.h"
#include "base/memory.h"

#define LIST 32 /* products of one dispatch */
#define MAX_EXPERTS 65536u

/* ---------------------------------------------------------------------------------------- groups */

/* The next rows, which are one linear's. */
struct part {
    const struct walsh_linear *linear;
    size_t rows;
};
/* All of them. part(source, i): number i of `count`. */
struct parts {
    struct part (*part)(const void *source, size_t i);
    const void *source;
    size_t count;
    float *z; /* [rows][ldz] */
    size_t ldz;
};

static bool same_rotation(const struct walsh_linear *a, const struct walsh_linear *b)
{
    return a->in_rotation.kind == b->in_rotation.kind &&
           (a->in_rotation.kind == WALSH_ROTATION_NONE || a->in_rotation.signs == b->in_rotation.signs);
}

/* Round x for the parts: at once where they have one rotation. */
static void prepare(const struct walsh_queue *q, const struct parts *p, struct walsh_activations *a,
                    const float *x, size_t ldx)
{
    const struct part first = p->part(p->source, 0);
    bool same = true;
    for (size_t i = 1; same && i < p->count; i++)
        same = same_rotation(first.linear, p->part(p->source, i).linear);
    if (same) {
        q->ops->prepare(q, a, x, ldx, &first.linear->in_rotation);
        return;
    }
    for (size_t i = 0, begin = 0; i < p->count; i++) {
        const struct part part = p->part(p->source, i);
        if (part.rows == 0) continue;
        struct walsh_activations rows = walsh_activation_rows(a, begin, part.rows);
        q->ops->prepare(q, &rows, x + begin * ldx, ldx, &part.linear->in_rotation);
        begin += part.rows;
    }
}

/* The products of the list; a device's op knows no rows of its own. */
static void multiply(const struct walsh_queue *q, const struct walsh_product *list, size_t count,
                     const struct walsh_activations *a, enum walsh_role role)
{
    if (!q->memory) {
        q->ops->product(q, list, count, a, NULL, role);
        return;
    }
    for (size_t i = 0; i < count; i++) {
        const struct walsh_activations rows = walsh_activation_rows(a, list[i].first_row, list[i].rows);
        struct walsh_product one = list[i];
        one.first_row = one.rows = 0;
        q->ops->product(q, &one, 1, &rows, NULL, role);
    }
}

/* Where a product goes: z, to be rotated back, or y itself. */
static float *output_of(const struct parts *p, const struct walsh_linear *l, size_t begin, float *y,
                        size_t ldy, size_t *ld)
{
    const bool direct = l->out_rotation.kind == WALSH_ROTATION_NONE;
    *ld = direct ? ldy : p->ldz;
    return (direct ? y : p->z) + begin * *ld;
}

/* y[.][ldy] = the parts of what was prepared. */
static void run_parts(const struct walsh_queue *q, const struct parts *p, const struct walsh_activations *a,
                      float *y, size_t ldy, enum walsh_role role)
{
    struct walsh_product list[LIST];
    size_t n = 0, ld;
    for (size_t i = 0, begin = 0; i < p->count; i++) {
        const struct part part = p->part(p->source, i);
        if (part.rows == 0) continue;
        if (n == LIST) {
            multiply(q, list, n, a, role);
            n = 0;
        }
        float *to = output_of(p, part.linear, begin, y, ldy, &ld);
        list[n++] = (struct walsh_product){
            .weights = &part.linear->weights, .y = to, .ldy = ld, .first_row = begin, .rows = part.rows};
        begin += part.rows;
    }
    if (n > 0) multiply(q, list, n, a, role);
    for (size_t i = 0, begin = 0; i < p->count; i++) {
        const struct part part = p->part(p->source, i);
        const struct walsh_linear *l = part.linear;
        float *from = output_of(p, l, begin, y, ldy, &ld);
        if (part.rows > 0 && (l->out_rotation.kind != WALSH_ROTATION_NONE || l->bias))
            q->ops->unrotate(q, y + begin * ldy, ldy, from, ld, &l->out_rotation, l->bias, part.rows);
        begin += part.rows;
    }
}

/* Do two linears read and write rows alike? */
static bool alike(const struct walsh_ops_linear *a, const struct walsh_ops_linear *b)
{
    return a->linear.in == b->linear.in && a->linear.out == b->linear.out &&
           a->linear.activation == b->linear.activation &&
           a->linear.in_rotation.blocks.padded == b->linear.in_rotation.blocks.padded &&
           a->linear.weights.rows == b->linear.weights.rows;
}

/* --- a caller's groups --- */

struct group_scratch {
    struct walsh_activations a;
    float *x, *y, *z;
    size_t ldz;
};

static void lay_out_groups(const struct walsh_linear *l, size_t rows, struct walsh_ops_workspace *w,
                           struct group_scratch *s)
{
    size_t elements;
    s->ldz = walsh_ops_linear_stride(l);
    walsh_ops_take_activations(l, rows, w, &s->a);
    if (!walsh_mul(rows, walsh_max(walsh_max(l->in, l->out), s->ldz), &elements)) w->overflow = true;
    if (w->overflow) return;
    s->x = walsh_ops_take(w, rows * l->in, sizeof *s->x);
    s->y = walsh_ops_take(w, rows * l->out, sizeof *s->y);
    s->z = walsh_ops_take(w, rows * s->ldz, sizeof *s->z);
}

static bool count_rows(const struct walsh_ops_group *groups, size_t count, size_t *rows)
{
    *rows = 0;
    for (size_t g = 0; g < count; g++)
        if (!walsh_add(*rows, groups[g].rows, rows)) return false;
    return *rows <= SIZE_MAX / 4096;
}

size_t walsh_ops_groups_workspace(const struct walsh_ops_group *groups, size_t count)
{
    struct walsh_ops_workspace w = {0};
    struct group_scratch s;
    size_t rows = 0;
    if (!groups || count == 0 || !groups[0].linear || !count_rows(groups, count, &rows)) return 0;
    lay_out_groups(&groups[0].linear->linear, rows > 0 ? rows : 1, &w, &s);
    return w.overflow || w.used > PTRDIFF_MAX ? 0 : w.used;
}

static struct part part_of_group(const void *source, size_t i)
{
    const struct walsh_ops_group *groups = source;
    return (struct part){&groups[i].linear->linear, groups[i].rows};
}

static enum walsh_status check_groups(const struct walsh_ops_queue *queue, const char *call,
                                      const struct walsh_ops_group *groups, size_t count, size_t *rows,
                                      struct walsh_error *err)
{
    WALSH_TRY(walsh_ops_need(call, "groups", groups, err));
    if (count == 0) return walsh_fail(err, WALSH_E_ARGUMENT, "%s: count is 0, expected a group", call);
    for (size_t g = 0; g < count; g++) {
        if (!groups[g].linear)
            return walsh_fail(err, WALSH_E_ARGUMENT, "%s: groups[%zu].linear is NULL", call, g);
        WALSH_TRY(walsh_ops_placed(queue, call, "a group's linear", groups[g].linear->holder, err));
        if (!alike(groups[0].linear, groups[g].linear))
            return walsh_fail(err, WALSH_E_ARGUMENT,
                              "%s: groups[%zu] is %u x %u, groups[0] %u x %u: expected the same sizes and "
                              "rounding of x",
                              call, g, groups[g].linear->linear.out, groups[g].linear->linear.in,
                              groups[0].linear->linear.out, groups[0].linear->linear.in);
    }
    if (!count_rows(groups, count, rows))
        return walsh_fail(err, WALSH_E_ARGUMENT, "%s: the groups have too many rows", call);
    return WALSH_OK;
}

static enum walsh_status check_group_call(const char *name, const struct walsh_ops_call *c,
                                          struct walsh_error *err)
{
    if ((unsigned)c->role > WALSH_OPS_PREFILL)
        return walsh_fail(err, WALSH_E_ARGUMENT, "%s: role is %u, expected 0 or 1", name, (unsigned)c->role);
    if (c->adapter_count > 0)
        return walsh_fail(err, WALSH_E_ARGUMENT, "%s: %zu adapters, expected none", name, c->adapter_count);
    return WALSH_OK;
}

static enum walsh_role role_of(enum walsh_ops_role role)
{
    return role == WALSH_OPS_PREFILL ? WALSH_PREFILL : WALSH_DECODE;
}

/* x in f32: where it is, or loaded. */
static const float *in_f32(const struct walsh_queue *q, const struct walsh_ops_rows *x, float *staged,
                           size_t *ldx)
{
    if (x->element == WALSH_ELEMENT_F32) {
        *ldx = x->ld;
        return (const float *)(const void *)x->data;
    }
    walsh_ops_load_rows(q, x, staged, x->cols);
    *ldx = x->cols;
    return staged;
}

enum walsh_status walsh_ops_linear_apply_groups(struct walsh_ops_queue *queue,
                                                const struct walsh_ops_group *groups, size_t count,
                                                const struct walsh_view *x, const struct walsh_view *y,
                                                const struct walsh_ops_call *call, struct walsh_error *err)
{
    static const char name[] = "walsh_ops_linear_apply_groups";
    struct walsh_ops_call c = WALSH_OPS_CALL;
    struct walsh_ops_rows from, to;
    struct group_scratch s;
    size_t rows = 0, ldx;
    WALSH_TRY(walsh_ops_need(name, "queue", queue, err));
    WALSH_TRY(walsh_options_read(&c, sizeof c, call, "walsh_ops_call", err));
    WALSH_TRY(check_group_call(name, &c, err));
    WALSH_TRY(check_groups(queue, name, groups, count, &rows, err));
    const struct walsh_linear *l = &groups[0].linear->linear;
    const struct walsh_ops_argument a = {name, "x", x, queue}, b = {name, "y", y, queue};
    WALSH_TRY(walsh_ops_rows(&a, WALSH_OPS_FLOATS, 1, l->in, &from, err));
    WALSH_TRY(walsh_ops_rows(&b, WALSH_OPS_FLOATS, 1, l->out, &to, err));
    if (from.rows != rows || to.rows != rows)
        return walsh_fail(err, WALSH_E_ARGUMENT, "%s: x has %zu rows and y %zu, expected %zu, as the groups",
                          name, from.rows, to.rows, rows);
    WALSH_TRY(walsh_ops_apart(&a, &from, &b, &to, false, err));
    WALSH_TRY(walsh_ops_check_workspace(name, c.workspace, c.workspace_size,
                                        walsh_ops_groups_workspace(groups, count), err));
    if (rows == 0) return WALSH_OK;
    struct walsh_ops_workspace w = {.data = c.workspace};
    lay_out_groups(l, rows, &w, &s);
    const struct parts parts = {part_of_group, groups, count, s.z, s.ldz};
    const bool direct = to.element == WALSH_ELEMENT_F32;
    const struct walsh_queue *q = walsh_ops_enter(queue);
    const float *input = in_f32(q, &from, s.x, &ldx);
    prepare(q, &parts, &s.a, input, ldx);
    run_parts(q, &parts, &s.a, direct ? (float *)(void *)to.data : s.y, direct ? to.ld : to.cols,
              role_of(c.role));
    if (!direct) walsh_ops_store_rows(q, s.y, to.cols, &to);
    return walsh_ops_finish(queue, name, err);
}

/* ---------------------------------------------------------------------------------------- routing */

enum walsh_status walsh_ops_route(struct walsh_ops_queue *queue, const struct walsh_view *logits,
                                  bool normalize, const struct walsh_view *index,
                                  const struct walsh_view *weight, struct walsh_error *err)
{
    static const char name[] = "walsh_ops_route";
    struct walsh_ops_rows from, places, weights;
    WALSH_TRY(walsh_ops_need(name, "queue", queue, err));
    WALSH_TRY(walsh_ops_need(name, "logits", logits, err));
    WALSH_TRY(walsh_ops_need(name, "index", index, err));
    if (logits->rank < 1 || logits->rank > WALSH_VIEW_RANK || index->rank < 1 ||
        index->rank > WALSH_VIEW_RANK)
        return walsh_fail(err, WALSH_E_ARGUMENT,
                          "%s: logits of rank %u and index of rank %u, expected 1 to %d", name, logits->rank,
                          index->rank, WALSH_VIEW_RANK);
    const int64_t experts = logits->shape[logits->rank - 1], k = index->shape[index->rank - 1];
    if (experts < 1 || experts > MAX_EXPERTS || k < 1 || k > experts)
        return walsh_fail(err, WALSH_E_ARGUMENT, "%s: %lld of %lld experts, expected 1 to all of up to %u",
                          name, (long long)k, (long long)experts, MAX_EXPERTS);
    const struct walsh_ops_argument a = {name, "logits", logits, queue}, b = {name, "index", index, queue},
                                    c = {name, "weight", weight, queue};
    WALSH_TRY(walsh_ops_rows(&a, 1u << WALSH_ELEMENT_F32, 1, (size_t)experts, &from, err));
    WALSH_TRY(walsh_ops_rows(&b, 1u << WALSH_ELEMENT_I32, 1, (size_t)k, &places, err));
    WALSH_TRY(walsh_ops_rows(&c, 1u << WALSH_ELEMENT_F32, 1, (size_t)k, &weights, err));
    if (places.rows != from.rows || weights.rows != from.rows)
        return walsh_fail(err, WALSH_E_ARGUMENT, "%s: %zu rows of logits, %zu of index, %zu of weight", name,
                          from.rows, places.rows, weights.rows);
    if (from.rows > 1 && (from.ld != from.cols || places.ld != places.cols || weights.ld != weights.cols))
        return walsh_fail(err, WALSH_E_ARGUMENT, "%s: rows are apart, expected dense views", name);
    WALSH_TRY(walsh_ops_apart(&a, &from, &b, &places, false, err));
    WALSH_TRY(walsh_ops_apart(&a, &from, &c, &weights, false, err));
    WALSH_TRY(walsh_ops_apart(&b, &places, &c, &weights, false, err));
    if (from.rows == 0) return WALSH_OK;
    const struct walsh_queue *q = walsh_ops_enter(queue);
    q->ops->route(q, (int32_t *)(void *)places.data, (float *)(void *)weights.data,
                  (const float *)(const void *)from.data, from.rows, (uint32_t)experts, (uint32_t)k,
                  normalize);
    return walsh_ops_finish(queue, name, err);
}

/* ---------------------------------------------------------------------------------------- whole experts */

/* A slot is a (row, expert) pair; slots are sorted by expert, rows ascending within one. */
struct expert_scratch {
    struct walsh_activations in, middle;
    float *x, *weight, *gathered, *gate, *up, *down, *sum, *z;
    size_t ldz;
    uint32_t *begin;               /* [count + 1] first slot of each expert */
    uint32_t *slot_row, *row_slot; /* [slots] the row of a slot; the slot of a row's j-th expert */
};

static void lay_out_experts(const struct walsh_ops_expert *experts, size_t count, size_t rows, size_t k,
                            struct walsh_ops_workspace *w, struct expert_scratch *s)
{
    const struct walsh_linear *gate = &experts[0].gate->linear, *down = &experts[0].down->linear;
    size_t slots, elements;
    s->ldz = walsh_max(walsh_ops_linear_stride(gate), walsh_ops_linear_stride(down));
    if (!walsh_mul(rows, k, &slots) || slots > UINT32_MAX ||
        !walsh_mul(slots, walsh_max(walsh_max(gate->in, down->out), walsh_max(gate->out, s->ldz)),
                   &elements)) {
        w->overflow = true;
        return;
    }
    walsh_ops_take_activations(gate, slots, w, &s->in);
    walsh_ops_take_activations(down, slots, w, &s->middle);
    s->x = walsh_ops_take(w, rows * gate->in, sizeof *s->x);
    s->weight = walsh_ops_take(w, slots, sizeof *s->weight);
    s->gathered = walsh_ops_take(w, slots * gate->in, sizeof *s->gathered);
    s->gate = walsh_ops_take(w, slots * gate->out, sizeof *s->gate);
    s->up = walsh_ops_take(w, slots * gate->out, sizeof *s->up);
    s->down = walsh_ops_take(w, slots * down->out, sizeof *s->down);
    s->sum = walsh_ops_take(w, rows * down->out, sizeof *s->sum);
    s->z = walsh_ops_take(w, slots * s->ldz, sizeof *s->z);
    s->begin = walsh_ops_take(w, count + 1, sizeof *s->begin);
    s->slot_row = walsh_ops_take(w, slots, sizeof *s->slot_row);
    s->row_slot = walsh_ops_take(w, slots, sizeof *s->row_slot);
}

/* The same shapes throughout, and each expert's own fit. */
static enum walsh_status check_experts(const char *call, const struct walsh_ops_expert *experts, size_t count,
                                       struct walsh_error *err)
{
    WALSH_TRY(walsh_ops_need(call, "experts", experts, err));
    if (count < 1 || count > MAX_EXPERTS)
        return walsh_fail(err, WALSH_E_ARGUMENT, "%s: %zu experts, expected 1 to %u", call, count,
                          MAX_EXPERTS);
    for (size_t e = 0; e < count; e++) {
        const struct walsh_ops_expert *x = &experts[e];
        if (!x->gate || !x->up || !x->down)
            return walsh_fail(err, WALSH_E_ARGUMENT, "%s: experts[%zu].%s is NULL", call, e,
                              !x->gate ? "gate"
                              : !x->up ? "up"
                                       : "down");
        if (!alike(x->gate, x->up) || x->down->linear.in != x->gate->linear.out ||
            !alike(experts[0].gate, x->gate) || !alike(experts[0].down, x->down))
            return walsh_fail(
                err, WALSH_E_ARGUMENT,
                "%s: experts[%zu]: gate, up and down are %u x %u, %u x %u and %u x %u, expected "
                "gate and up alike, down behind them, and the sizes and rounding of experts[0]",
                call, e, x->gate->linear.out, x->gate->linear.in, x->up->linear.out, x->up->linear.in,
                x->down->linear.out, x->down->linear.in);
    }
    return WALSH_OK;
}

size_t walsh_ops_experts_workspace(const struct walsh_ops_expert *experts, size_t count, size_t rows,
                                   size_t k)
{
    struct walsh_ops_workspace w = {0};
    struct expert_scratch s;
    if (k < 1 || rows > SIZE_MAX / 4096 || check_experts("", experts, count, NULL) != WALSH_OK) return 0;
    lay_out_experts(experts, count, rows > 0 ? rows : 1, k, &w, &s);
    return w.overflow || w.used > PTRDIFF_MAX ? 0 : w.used;
}

/* A member of every expert, over its slots. */
struct expert_source {
    const struct walsh_ops_expert *experts;
    const uint32_t *begin;
};
static struct part part_of(const struct walsh_ops_linear *linear, const struct expert_source *s, size_t e)
{
    return (struct part){&linear->linear, s->begin[e + 1] - s->begin[e]};
}
static struct part gate_of(const void *source, size_t e)
{
    const struct expert_source *s = source;
    return part_of(s->experts[e].gate, s, e);
}
static struct part up_of(const void *source, size_t e)
{
    const struct expert_source *s = source;
    return part_of(s->experts[e].up, s, e);
}
static struct part down_of(const void *source, size_t e)
{
    const struct expert_source *s = source;
    return part_of(s->experts[e].down, s, e);
}

/* Everything of one call, checked. */
struct experts_call {
    struct walsh_ops_experts_call c;
    const struct walsh_ops_expert *experts;
    size_t count, k;
    struct walsh_ops_rows x, y, index, weight;
};

static int32_t chosen(const struct experts_call *t, size_t row, size_t j)
{
    return ((const int32_t *)(const void *)walsh_ops_row(&t->index, row))[j];
}

static void sort_slots(const struct experts_call *t, struct expert_scratch *s)
{
    const size_t k = t->k, rows = t->x.rows;
    memset(s->begin, 0, (t->count + 1) * sizeof *s->begin);
    for (size_t row = 0; row < rows; row++)
        for (size_t j = 0; j < k; j++) s->begin[chosen(t, row, j) + 1]++;
    for (size_t e = 0; e < t->count; e++) s->begin[e + 1] += s->begin[e];
    for (size_t row = 0; row < rows; row++)
        for (size_t j = 0; j < k; j++) { /* begin[e] runs ahead to begin[e + 1] ... */
            const uint32_t slot = s->begin[chosen(t, row, j)]++;
            s->slot_row[slot] = (uint32_t)row;
            s->row_slot[row * k + j] = slot;
        }
    for (size_t e = t->count; e > 0; e--) s->begin[e] = s->begin[e - 1]; /* ... and back */
    s->begin[0] = 0;
}

static void apply_gate(const struct walsh_queue *q, const struct walsh_ops_experts_call *c,
                       struct expert_scratch *s, size_t slots, size_t n)
{
    if (c->gate == WALSH_OPS_SWIGLU)
        q->ops->swiglu(q, s->gate, n, s->gate, s->up, n, slots, n);
    else if (c->gate == WALSH_OPS_GEGLU)
        q->ops->geglu(q, s->gate, n, s->gate, s->up, n, slots, n);
    else
        q->ops->clamped_swiglu(q, s->gate, n, s->gate, s->up, n, slots, n, c->alpha, c->limit);
}

/* gate and up read the same x; with other signs up wants it prepared again. */
static void run_up(const struct walsh_queue *q, const struct experts_call *t, const struct parts *up,
                   struct expert_scratch *s, size_t in, size_t middle)
{
    bool same = true;
    for (size_t e = 0; same && e < t->count; e++)
        same = same_rotation(&t->experts[e].gate->linear, &t->experts[e].up->linear);
    if (!same) prepare(q, up, &s->in, s->gathered, in);
    run_parts(q, up, &s->in, s->up, middle, role_of(t->c.role));
}

static void run_experts(const struct walsh_queue *q, const struct experts_call *t, struct expert_scratch *s)
{
    const size_t in = t->x.cols, out = t->y.cols, middle = t->experts[0].down->linear.in;
    const size_t slots = t->x.rows * t->k;
    size_t ldx;
    const float *x = in_f32(q, &t->x, s->x, &ldx);
    walsh_ops_load_rows(q, &t->weight, s->weight, t->k);
    sort_slots(t, s);
    q->ops->gather(q, s->gathered, in, x, ldx, s->slot_row, slots, in);

    const struct expert_source source = {t->experts, s->begin};
    struct parts parts = {gate_of, &source, t->count, s->z, s->ldz};
    prepare(q, &parts, &s->in, s->gathered, in);
    run_parts(q, &parts, &s->in, s->gate, middle, role_of(t->c.role));
    parts.part = up_of;
    run_up(q, t, &parts, s, in, middle);
    apply_gate(q, &t->c, s, slots, middle);
    parts.part = down_of;
    prepare(q, &parts, &s->middle, s->gate, middle);
    run_parts(q, &parts, &s->middle, s->down, out, role_of(t->c.role));

    memset(s->sum, 0, t->y.rows * out * sizeof *s->sum);
    q->ops->combine(q, s->sum, out, s->down, s->row_slot, s->weight, t->y.rows, (uint32_t)t->k);
    walsh_ops_store_rows(q, s->sum, out, &t->y);
}

static enum walsh_status check_numbers(const char *name, const struct walsh_ops_experts_call *c,
                                       struct walsh_error *err)
{
    if ((unsigned)c->role > WALSH_OPS_PREFILL || (unsigned)c->gate > WALSH_OPS_CLAMPED)
        return walsh_fail(err, WALSH_E_ARGUMENT, "%s: role is %u and gate %u, expected 0 or 1 and 0 to %d",
                          name, (unsigned)c->role, (unsigned)c->gate, WALSH_OPS_CLAMPED);
    if (!isfinite(c->alpha) || !isfinite(c->limit))
        return walsh_fail(err, WALSH_E_ARGUMENT, "%s: alpha is %g and limit %g, expected finite numbers",
                          name, (double)c->alpha, (double)c->limit);
    return WALSH_OK;
}

static enum walsh_status check_routing(const char *name, const struct experts_call *t,
                                       struct walsh_error *err)
{
    for (size_t row = 0; row < t->index.rows; row++)
        for (size_t j = 0; j < t->k; j++)
            if (chosen(t, row, j) < 0 || (size_t)chosen(t, row, j) >= t->count)
                return walsh_fail(err, WALSH_E_ARGUMENT, "%s: index[%zu][%zu] is %d, expected 0 to %zu", name,
                                  row, j, chosen(t, row, j), t->count - 1);
    return WALSH_OK;
}

enum walsh_status walsh_ops_experts_apply(struct walsh_ops_queue *queue,
                                          const struct walsh_ops_expert *experts, size_t count,
                                          const struct walsh_view *x, const struct walsh_view *index,
                                          const struct walsh_view *weight, const struct walsh_view *y,
                                          const struct walsh_ops_experts_call *call, struct walsh_error *err)
{
    static const char name[] = "walsh_ops_experts_apply";
    struct experts_call t = {.c = WALSH_OPS_EXPERTS_CALL, .experts = experts, .count = count};
    struct expert_scratch s;
    WALSH_TRY(walsh_ops_need(name, "queue", queue, err));
    if (walsh_ops_holder(queue))
        return walsh_fail(err, WALSH_E_UNSUPPORTED,
                          "%s: experts run on the CPU only, where their routing is read; "
                          "walsh_ops_linear_apply_groups runs on a device",
                          name);
    WALSH_TRY(walsh_ops_need(name, "index", index, err));
    WALSH_TRY(walsh_options_read(&t.c, sizeof t.c, call, "walsh_ops_experts_call", err));
    WALSH_TRY(check_numbers(name, &t.c, err));
    WALSH_TRY(check_experts(name, experts, count, err));
    if (index->rank < 1 || index->rank > WALSH_VIEW_RANK || index->shape[index->rank - 1] < 1)
        return walsh_fail(err, WALSH_E_ARGUMENT, "%s: index: expected [.., k]", name);
    t.k = (size_t)index->shape[index->rank - 1];
    const struct walsh_ops_argument a = {name, "x", x, queue}, b = {name, "y", y, queue},
                                    i = {name, "index", index, queue}, v = {name, "weight", weight, queue};
    WALSH_TRY(walsh_ops_rows(&a, WALSH_OPS_FLOATS, 1, experts[0].gate->linear.in, &t.x, err));
    WALSH_TRY(walsh_ops_rows(&b, WALSH_OPS_FLOATS, 1, experts[0].down->linear.out, &t.y, err));
    WALSH_TRY(walsh_ops_rows(&i, 1u << WALSH_ELEMENT_I32, 1, t.k, &t.index, err));
    WALSH_TRY(walsh_ops_rows(&v, WALSH_OPS_FLOATS, 1, t.k, &t.weight, err));
    if (t.y.rows != t.x.rows || t.index.rows != t.x.rows || t.weight.rows != t.x.rows)
        return walsh_fail(err, WALSH_E_ARGUMENT, "%s: x has %zu rows, y %zu, index %zu, weight %zu", name,
                          t.x.rows, t.y.rows, t.index.rows, t.weight.rows);
    WALSH_TRY(walsh_ops_apart(&a, &t.x, &b, &t.y, false, err));
    WALSH_TRY(check_routing(name, &t, err));
    WALSH_TRY(walsh_ops_check_workspace(name, t.c.workspace, t.c.workspace_size,
                                        walsh_ops_experts_workspace(experts, count, t.x.rows, t.k), err));
    if (t.x.rows == 0) return WALSH_OK;
    struct walsh_ops_workspace w = {.data = t.c.workspace};
    lay_out_experts(experts, count, t.x.rows, t.k, &w, &s);
    run_experts(walsh_ops_enter(queue), &t, &s);
    walsh_ops_leave(queue);
    return WALSH_OK;
}
