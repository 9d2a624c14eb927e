#include "model/adapter_products.h"

/* The rows of one call use at least one row each, but an expert's gate and up of one row come for several
 * experts at once. */
#define LEAST_ROWS WALSH_LINEAR_CALLS

enum walsh_status walsh_workspace_reserve(struct walsh_workspace *ws, const struct walsh_adapter_set *set,
                                          struct walsh_error *err)
{
    const size_t rows = walsh_max(ws->max_rows, LEAST_ROWS);
    const size_t updates = walsh_max(rows * set->row_updates, ws->updates);
    const size_t elements = walsh_max(rows * set->row_elements, ws->h_elements);
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

static void add_terms(struct products *p, const struct walsh_linear *linear, const struct walsh_row_set *rows)
{
    const struct walsh_adapter_set *set = rows->set;
    for (uint32_t t = set->first[linear->index]; t < set->first[linear->index + 1]; t++) {
        const struct walsh_adapter_term *term = &set->terms[t];
        p->ws->ups[p->ups++] = (struct walsh_low_rank_up){
            .down = find_down(p, term->update, rows), .scale = term->scale, .b = term->update->b};
    }
}

const struct walsh_low_rank_input *
walsh_adapter_products(struct walsh_workspace *ws, const struct walsh_linear_call *const *calls, size_t count,
                       const float *x, size_t ldx, const struct walsh_row_sets *sets, enum walsh_role role,
                       struct walsh_product *list, struct walsh_low_rank_input *input)
{
    if (!sets || sets->count == 0) return NULL;
    *input =
        (struct walsh_low_rank_input){.x = x, .ldx = ldx, .cols = calls[0]->linear->in, .down = ws->downs};
    struct products p = {ws, role, input, 0, 0};
    for (size_t i = 0; i < count; i++) {
        list[i].up = ws->ups + p.ups;
        const size_t before = p.ups;
        for (size_t s = 0; s < sets->count; s++) add_terms(&p, calls[i]->linear, &sets->list[s]);
        list[i].up_count = p.ups - before;
    }
    return input->count ? input : NULL;
}
