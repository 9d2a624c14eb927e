/* Linears of several experts at once: what a mixture needs so that an expert with few rows does not keep all
 * threads. */
#include <string.h>

#include "model/linear.h"
#include "model/workspace.h"

/* Do the linears differ in nothing that the preparation of x depends on, but for signs? */
static bool alike(const struct walsh_queue *q, const struct walsh_linear *a, const struct walsh_linear *b)
{
    return a->activation == b->activation &&
           walsh_linear_reads(q, a, WALSH_PREFILL) == walsh_linear_reads(q, b, WALSH_PREFILL) &&
           a->in == b->in && a->in_rotation.kind == b->in_rotation.kind &&
           a->in_rotation.blocks.padded == b->in_rotation.blocks.padded;
}

bool walsh_linear_groups_fit(const struct walsh_queue *q, const struct walsh_linear_group *groups,
                             size_t count, size_t calls)
{
    if (q->memory) return false;
    for (size_t g = 0; g < count; g++)
        for (size_t i = 0; i < calls; i++) {
            const struct walsh_linear *linear = groups[g].calls[i].linear;
            if (linear->own || !alike(q, groups[0].calls[0].linear, linear) ||
                (i > 0 && !walsh_linear_same_input(q, groups[g].calls[0].linear, linear)))
                return false;
        }
    return true;
}

/* x as the groups' products read it. */
static struct walsh_activations prepare(const struct walsh_queue *q, struct walsh_workspace *ws,
                                        const struct walsh_linear_group *groups, size_t count, const float *x,
                                        size_t ldx, enum walsh_role role)
{
    const struct walsh_linear_group *last = &groups[count - 1];
    const size_t first = groups[0].begin, rows = last->begin + last->rows - first;
    struct walsh_activations a = walsh_linear_input(q, ws, groups[0].calls[0].linear, rows, role);
    a.tiled = false; /* groups begin at any row */
    bool same = true;
    for (size_t g = 1; same && g < count; g++)
        same = walsh_linear_same_input(q, groups[0].calls[0].linear, groups[g].calls[0].linear);
    for (size_t g = 0; g < (same ? 1 : count); g++) {
        struct walsh_activations part =
            same ? a : walsh_activation_rows(&a, groups[g].begin - first, groups[g].rows);
        q->ops->prepare(q, &part, x + (groups[g].begin - first) * ldx, ldx,
                        &groups[g].calls[0].linear->in_rotation);
    }
    return a;
}

void walsh_linear_apply_groups(const struct walsh_queue *q, struct walsh_workspace *ws,
                               const struct walsh_linear_group *groups, size_t count, size_t calls,
                               const float *x, size_t ldx, enum walsh_role role,
                               struct walsh_product *products)
{
    const struct walsh_activations a = prepare(q, ws, groups, count, x, ldx, role);
    size_t z = 0;
    for (size_t g = 0; g < count; g++)
        for (size_t i = 0; i < calls; i++) {
            const struct walsh_linear_call *call = &groups[g].calls[i];
            const struct walsh_linear *linear = call->linear;
            struct walsh_product *p = &products[g * calls + i];
            *p = (struct walsh_product){.weights = &linear->weights,
                                        .y = call->y,
                                        .ldy = call->ldy,
                                        .first_row = groups[g].begin - groups[0].begin,
                                        .rows = groups[g].rows};
            if (linear->out_rotation.kind == WALSH_ROTATION_NONE) continue;
            p->y = ws->z + z;
            p->ldy = walsh_z_stride(linear->weights.rows);
            z += groups[g].rows * p->ldy;
        }
    q->ops->product(q, products, count * calls, &a, NULL, role);
    for (size_t g = 0; g < count; g++)
        for (size_t i = 0; i < calls; i++) {
            const struct walsh_linear_call *call = &groups[g].calls[i];
            const struct walsh_product *p = &products[g * calls + i];
            if (p->y == call->y && !call->linear->bias) continue;
            q->ops->unrotate(q, call->y, call->ldy, p->y, p->ldy, &call->linear->out_rotation,
                             call->linear->bias, groups[g].rows);
        }
}
