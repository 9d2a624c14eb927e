/* Mixture of experts: every row picks k experts (Shazeer et al. 2017, top-k of a softmax as in Qwen3Moe). A
 * *slot* is one (row, expert) pair; slots are sorted by expert, so that an expert computes its rows together,
 * and the products of several experts are one dispatch.
 * A row's result is summed in the order of its own k, so that its bits never depend on the rows beside it. */
#include <string.h>

#include "model/layer.h"

/* Where the queue is a device's, the experts that it chose come back, and the slots go up. */
static enum walsh_status fetch_choice(const struct walsh_queue *q, struct walsh_workspace *ws, size_t slots)
{
    if (!q->memory) return WALSH_OK;
    return walsh_queue_download(q, ws->chosen, ws->expert_index, slots * sizeof *ws->chosen, &ws->failure);
}
static enum walsh_status send_slots(const struct walsh_queue *q, struct walsh_workspace *ws, size_t slots)
{
    if (!q->memory) return WALSH_OK;
    WALSH_TRY(
        walsh_queue_upload(q, ws->op_slot_row, ws->slot_row, slots * sizeof *ws->slot_row, &ws->failure));
    return walsh_queue_upload(q, ws->op_row_slot, ws->row_slot, slots * sizeof *ws->row_slot, &ws->failure);
}

static void route(const struct walsh_config *c, const struct walsh_queue *q, const struct walsh_layer *layer,
                  const struct walsh_rows *rows, struct walsh_workspace *ws)
{
    const struct walsh_linear_call router = {&layer->router, ws->router_logits, c->experts};
    walsh_linear_apply(q, ws, &router, 1, ws->normed, ws->normed_ld, rows->count, rows->role, &rows->sets);
    q->ops->route(q, ws->expert_index, ws->expert_weight, ws->router_logits, rows->count, c->experts,
                  c->experts_per_token, c->normalize_topk);
}

/* Sort the slots by expert, rows ascending within one. */
static enum walsh_status sort_slots(const struct walsh_config *c, const struct walsh_queue *q,
                                    const struct walsh_rows *rows, struct walsh_workspace *ws)
{
    const uint32_t k = c->experts_per_token;
    const size_t slots = rows->count * k;
    WALSH_TRY(fetch_choice(q, ws, slots));
    memset(ws->expert_begin, 0, ((size_t)c->experts + 1) * sizeof *ws->expert_begin);
    for (size_t i = 0; i < slots; i++) ws->expert_begin[ws->chosen[i] + 1]++;
    for (uint32_t e = 0; e < c->experts; e++) ws->expert_begin[e + 1] += ws->expert_begin[e];
    for (size_t i = 0; i < slots; i++) { /* begin[e] runs ahead to begin[e + 1] ... */
        uint32_t slot = ws->expert_begin[ws->chosen[i]]++;
        ws->slot_row[slot] = (uint32_t)(i / k);
        ws->row_slot[i] = slot;
    }
    for (uint32_t e = c->experts; e > 0; e--)
        ws->expert_begin[e] = ws->expert_begin[e - 1]; /* ... and back */
    ws->expert_begin[0] = 0;
    return send_slots(q, ws, slots);
}

/* The adapters of the slots [begin, begin + n) of an expert: their rows ascend, so that those of a set stay
 * together. */
static struct walsh_row_sets slot_sets(const struct walsh_rows *rows, struct walsh_workspace *ws,
                                       size_t begin, size_t n)
{
    struct walsh_row_sets sets = {ws->expert_sets, 0};
    size_t slot = 0;
    for (size_t i = 0; i < rows->sets.count; i++) {
        const struct walsh_row_set *of_rows = &rows->sets.list[i];
        while (slot < n && ws->slot_row[begin + slot] < of_rows->begin) slot++;
        const size_t first = slot;
        while (slot < n && ws->slot_row[begin + slot] < of_rows->end) slot++;
        if (slot > first) ws->expert_sets[sets.count++] = (struct walsh_row_set){of_rows->set, first, slot};
    }
    return sets;
}

/* gate and up of a single row's experts: they read the same x, so that those with equal input rotations share
 * its preparation and one dispatch. Without rotation these are all of them; the quantizer gives each expert
 * signs of its own, which only its gate and up share. */
static void gate_up_one_row(const struct walsh_queue *q, const struct walsh_layer *layer,
                            const struct walsh_rows *rows, const struct walsh_config *c,
                            struct walsh_workspace *ws)
{
    struct walsh_linear_call calls[WALSH_LINEAR_CALLS];
    size_t count = 0;
    for (uint32_t k = 0; k < c->experts_per_token; k++) {
        const struct walsh_expert *expert = &layer->experts[ws->chosen[k]];
        size_t at = ws->row_slot[k] * ws->gate_ld;
        calls[count++] = (struct walsh_linear_call){&expert->gate, ws->gate + at, ws->gate_ld};
        calls[count++] = (struct walsh_linear_call){&expert->up, ws->up + at, ws->gate_ld};
        if (count + 2 <= WALSH_LINEAR_CALLS && k + 1 < c->experts_per_token) continue;
        walsh_linear_apply(q, ws, calls, count, ws->normed, ws->normed_ld, 1, rows->role, &rows->sets);
        count = 0;
    }
}

/* The next experts from *e on that may run together: whole ones, of as many rows as the workspace has.
 * Returns how many are in ws->groups; *e is then behind them. */
static size_t next_groups(const struct walsh_config *c, struct walsh_workspace *ws, uint32_t *e)
{
    size_t count = 0, rows = 0;
    for (; *e < c->experts; (*e)++) {
        const size_t begin = ws->expert_begin[*e], n = ws->expert_begin[*e + 1] - begin;
        if (rows + n > ws->max_rows) break;
        if (n > 0) ws->groups[count++] = (struct walsh_linear_group){.begin = begin, .rows = n, .expert = *e};
        rows += n;
    }
    return count;
}

/* Compute the calls of ws->groups, of which x[.][ldx] is the first row: together, or expert by expert where
 * somebody watches, rows have adapters, or linears differ. */
static void run_groups(const struct walsh_queue *q, const struct walsh_rows *rows, struct walsh_workspace *ws,
                       size_t count, size_t calls, const float *x, size_t ldx)
{
    if (rows->sets.count == 0 && walsh_linear_groups_fit(q, ws->groups, count, calls)) {
        walsh_linear_apply_groups(q, ws, ws->groups, count, calls, x, ldx, rows->role, ws->expert_products);
        return;
    }
    for (size_t g = 0; g < count; g++) {
        const struct walsh_linear_group *group = &ws->groups[g];
        const struct walsh_row_sets sets = slot_sets(rows, ws, group->begin, group->rows);
        walsh_linear_apply(q, ws, group->calls, calls, x + (group->begin - ws->groups[0].begin) * ldx, ldx,
                           group->rows, rows->role, &sets);
    }
}

static void gate_up(const struct walsh_config *c, const struct walsh_queue *q,
                    const struct walsh_layer *layer, const struct walsh_rows *rows,
                    struct walsh_workspace *ws, const struct walsh_tap *tap)
{
    if (rows->count == 1 && !tap) {
        gate_up_one_row(q, layer, rows, c, ws);
        return;
    }
    for (uint32_t e = 0; e < c->experts;) {
        const size_t count = next_groups(c, ws, &e);
        for (size_t g = 0; g < count; g++) {
            struct walsh_linear_group *group = &ws->groups[g];
            const struct walsh_expert *expert = &layer->experts[group->expert];
            const size_t at = group->begin * ws->gate_ld, row = group->begin - ws->groups[0].begin;
            float *x = ws->gathered + row * ws->normed_ld;
            group->calls[0] = (struct walsh_linear_call){&expert->gate, ws->gate + at, ws->gate_ld};
            group->calls[1] = (struct walsh_linear_call){&expert->up, ws->up + at, ws->gate_ld};
            q->ops->gather(q, x, ws->normed_ld, ws->normed, ws->normed_ld, ws->op_slot_row + group->begin,
                           group->rows, c->hidden);
            walsh_tap_input(tap, WALSH_TAP_EXPERT, group->expert, x, ws->normed_ld, group->rows, c->hidden);
        }
        if (count > 0) run_groups(q, rows, ws, count, 2, ws->gathered, ws->normed_ld);
    }
}

static void down(const struct walsh_config *c, const struct walsh_queue *q, const struct walsh_layer *layer,
                 const struct walsh_rows *rows, struct walsh_workspace *ws, const struct walsh_tap *tap)
{
    for (uint32_t e = 0; e < c->experts;) {
        const size_t count = next_groups(c, ws, &e);
        for (size_t g = 0; g < count; g++) {
            struct walsh_linear_group *group = &ws->groups[g];
            group->calls[0] = (struct walsh_linear_call){&layer->experts[group->expert].down,
                                                         ws->delta + group->begin * c->hidden, c->hidden};
            walsh_tap_input(tap, WALSH_TAP_EXPERT_DOWN, group->expert, ws->gate + group->begin * ws->gate_ld,
                            ws->gate_ld, group->rows, c->expert_intermediate);
        }
        if ((tap && tap->skip_last) || count == 0) continue;
        run_groups(q, rows, ws, count, 1, ws->gate + ws->groups[0].begin * ws->gate_ld, ws->gate_ld);
    }
}

void walsh_experts_block(const struct walsh_model_graph *graph, const struct walsh_queue *q,
                         const struct walsh_layer *layer, float *x, const struct walsh_rows *rows,
                         struct walsh_workspace *ws, const struct walsh_tap *tap)
{
    const struct walsh_config *c = &graph->config;
    const uint32_t k = c->experts_per_token;
    if (ws->failure.status != WALSH_OK) return;
    route(c, q, layer, rows, ws);
    if (!tap && walsh_experts_enqueue(graph, q, layer, rows->role, &rows->sets)) {
        walsh_experts_enqueued(graph, q, layer, x, rows, ws);
        return;
    }
    if (sort_slots(c, q, rows, ws) != WALSH_OK) return;
    gate_up(c, q, layer, rows, ws, tap);
    walsh_gate(c, q, ws, rows->count * k, c->expert_intermediate);

    down(c, q, layer, rows, ws, tap);
    if (tap && tap->skip_last) return;
    q->ops->combine(q, x, c->hidden, ws->delta, ws->op_row_slot, ws->expert_weight, rows->count, k);
}
