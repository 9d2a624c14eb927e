#include "model/adapter_products.h"

#include "model/sites.h"

/* The rows of one call use at least one row each, but an expert's gate and up of one row come for several
 * experts at once. */
#define LEAST_ROWS WALSH_LINEAR_CALLS

/* Room for that many updates and elements of h. */
static enum walsh_status reserve(struct walsh_workspace *ws, size_t updates, size_t elements,
                                 struct walsh_error *err)
{
    const size_t rows = walsh_max(ws->max_rows, LEAST_ROWS);
    updates = walsh_max(updates, ws->updates);
    elements = walsh_max(elements, ws->h_elements);
    if (updates == ws->updates && elements == ws->h_elements) return WALSH_OK;
    struct walsh_low_rank_down *down = NULL;
    struct walsh_low_rank_up *up = NULL;
    float *h = NULL;
    struct walsh_row_set *expert_sets = NULL;
    enum walsh_status status = walsh_alloc(updates, sizeof *down, "a call's updates", &down, err);
    if (status == WALSH_OK) status = walsh_alloc(updates, sizeof *up, "a call's updates", &up, err);
    if (status == WALSH_OK)
        status = walsh_queue_alloc(ws->queue, elements * sizeof *h, "the inner values of adapters", &h, err);
    if (status == WALSH_OK)
        status = walsh_alloc(rows, sizeof *expert_sets, "the rows of an expert", &expert_sets, err);
    if (status != WALSH_OK) {
        walsh_free(down);
        walsh_free(up);
        if (h) walsh_queue_free(ws->queue, h);
        walsh_free(expert_sets);
        return status;
    }
    walsh_free(ws->downs);
    walsh_free(ws->ups);
    if (ws->h) walsh_queue_free(ws->queue, ws->h);
    walsh_free(ws->expert_sets);
    ws->downs = down;
    ws->ups = up;
    ws->h = h;
    ws->expert_sets = expert_sets;
    ws->updates = updates;
    ws->h_elements = elements;
    return WALSH_OK;
}

enum walsh_status walsh_workspace_reserve(struct walsh_workspace *ws, const struct walsh_adapter_set *set,
                                          struct walsh_error *err)
{
    const size_t rows = walsh_max(ws->max_rows, LEAST_ROWS);
    return reserve(ws, ws->own_updates + rows * set->row_updates, ws->own_elements + rows * set->row_elements,
                   err);
}

/* A linear's own part is one update of all rows of a call. */
enum walsh_status walsh_workspace_reserve_own(struct walsh_workspace *ws,
                                              const struct walsh_model_graph *graph, struct walsh_error *err)
{
    struct walsh_site_walk walk = {.graph = graph};
    struct walsh_site site;
    while (graph->layers && walsh_site_next(&walk, &site)) {
        size_t updates = 0, elements = 0;
        for (unsigned i = 0; i < site.count; i++) {
            const struct walsh_linear *linear = site.linears[i];
            if (!linear->own) continue;
            updates++;
            elements +=
                walsh_max(walsh_low_rank_scratch(linear->own->rank, linear->in, ws->max_rows, WALSH_DECODE),
                          walsh_low_rank_scratch(linear->own->rank, linear->in, ws->max_rows, WALSH_PREFILL));
        }
        ws->own_updates = walsh_max(ws->own_updates, updates);
        ws->own_elements = walsh_max(ws->own_elements, elements);
    }
    return reserve(ws, ws->own_updates, ws->own_elements, err);
}

struct walsh_row_sets walsh_row_sets_slice(const struct walsh_row_sets *sets, size_t begin, size_t count,
                                           struct walsh_row_set *room)
{
    struct walsh_row_sets slice = {room, 0};
    for (size_t i = 0; i < sets->count; i++) {
        const struct walsh_row_set *s = &sets->list[i];
        const size_t first = walsh_max(s->begin, begin), end = walsh_min(s->end, begin + count);
        if (first < end) room[slice.count++] = (struct walsh_row_set){s->set, first - begin, end - begin};
    }
    return slice;
}

/* What is filled so far. */
struct products {
    struct walsh_workspace *ws;
    enum walsh_role role;
    struct walsh_low_rank_input *input;
    size_t ups, elements;
};

/* The place of A x of these rows: that of another linear with the same A, or a new one. */
static uint32_t find_down(struct products *p, const struct walsh_adapter_linear *update,
                          const struct walsh_row_set *rows)
{
    struct walsh_low_rank_input *in = p->input;
    for (size_t i = 0; update->shared_a && i < in->count; i++)
        if (in->down[i].a == update->a && in->down[i].row_begin == rows->begin) return (uint32_t)i;
    struct walsh_low_rank_down *down = &in->down[in->count];
    down->format = update->storage;
    down->rank = update->rank;
    down->a = update->a;
    down->row_begin = rows->begin;
    down->row_end = rows->end;
    down->h = p->ws->h + p->elements;
    p->elements += walsh_low_rank_scratch(update->rank, in->cols, rows->end - rows->begin, p->role);
    return (uint32_t)in->count++;
}

static void add_update(struct products *p, const struct walsh_adapter_linear *update, float scale,
                       const struct walsh_row_set *rows)
{
    p->ws->ups[p->ups++] =
        (struct walsh_low_rank_up){.down = find_down(p, update, rows), .scale = scale, .b = update->b};
}

static void add_terms(struct products *p, const struct walsh_linear *linear, const struct walsh_row_set *rows)
{
    const struct walsh_adapter_set *set = rows->set;
    for (uint32_t t = set->first[linear->index]; t < set->first[linear->index + 1]; t++) {
        const struct walsh_adapter_term *term = &set->terms[t];
        add_update(p, term->update, term->scale, rows);
    }
}

const struct walsh_low_rank_input *
walsh_adapter_products(struct walsh_workspace *ws, const struct walsh_linear_call *const *calls, size_t count,
                       const float *x, size_t ldx, size_t rows, const struct walsh_row_sets *sets,
                       enum walsh_role role, struct walsh_product *list, struct walsh_low_rank_input *input)
{
    bool any = sets && sets->count > 0;
    for (size_t i = 0; i < count && !any; i++) any = calls[i]->linear->own != NULL;
    if (!any) return NULL;
    const struct walsh_row_set all = {NULL, 0, rows};
    *input =
        (struct walsh_low_rank_input){.x = x, .ldx = ldx, .cols = calls[0]->linear->in, .down = ws->downs};
    struct products p = {ws, role, input, 0, 0};
    for (size_t i = 0; i < count; i++) {
        list[i].up = ws->ups + p.ups;
        const size_t before = p.ups;
        const struct walsh_adapter_linear *own = calls[i]->linear->own;
        if (own) add_update(&p, own, 1, &all);
        for (size_t s = 0; sets && s < sets->count; s++) add_terms(&p, calls[i]->linear, &sets->list[s]);
        list[i].up_count = p.ups - before;
    }
    return input->count ? input : NULL;
}
