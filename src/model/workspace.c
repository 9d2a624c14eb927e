#include "model/workspace.h"

#include <string.h>

/* The largest padding that a rotation may give a dimension: the next power of two. A dense graph is sized for
 * it too, because the quantizer runs rotated layers in the place of dense ones. */
static size_t padded(size_t n)
{
    size_t p = WALSH_MIN_BLOCK_COLUMNS;
    while (p < n) p *= 2;
    return p;
}

/* rows x cols elements of the queue's memory, of the host's where q is NULL. Zeroed only where `zero`: a
 * large buffer that a short prompt never touches then takes no memory. */
static enum walsh_status buffer(const struct walsh_queue *q, size_t rows, size_t cols, size_t element,
                                bool zero, void *out, struct walsh_error *err)
{
    size_t count, bytes;
    if (!walsh_mul(rows, cols, &count) || !walsh_mul(count, element, &bytes))
        return walsh_fail(err, WALSH_E_MEMORY, "workspace: %zu rows of %zu elements do not fit", rows, cols);
    if (!q || !q->memory)
        return zero ? walsh_alloc_zero(count, element, "the workspace", out, err)
                    : walsh_alloc(count, element, "the workspace", out, err);
    WALSH_TRY(walsh_queue_alloc(q, bytes, "the workspace", out, err));
    void *data;
    memcpy(&data, out, sizeof data);
    if (zero) walsh_queue_zero(q, data, bytes);
    return WALSH_OK;
}

/* A buffer that products may read in place: [rows][stride(cols)] with zero tails. */
static enum walsh_status input_buffer(const struct walsh_queue *q, size_t rows, size_t cols, float **out,
                                      size_t *ld, struct walsh_error *err)
{
    *ld = walsh_activations_stride(cols);
    return buffer(q, rows, *ld, sizeof(float), *ld != cols, out, err);
}

/* What experts need whose products find the router's answer themselves. */
static enum walsh_status allocate_enqueued(struct walsh_workspace *ws, const struct walsh_config *c,
                                           size_t slots, struct walsh_error *err)
{
    const struct walsh_queue *q = ws->queue;
    const size_t stride = walsh_activations_stride(c->expert_intermediate);
    WALSH_TRY(buffer(q, slots, stride, sizeof(uint16_t), false, &ws->slot_data, err));
    WALSH_TRY(buffer(q, slots, walsh_activation_scales(WALSH_ACTIVATION_INT8_GROUPS, stride), sizeof(float),
                     false, &ws->slot_scale, err));
    WALSH_TRY(buffer(q, slots, walsh_activation_sums(WALSH_ACTIVATION_INT8_GROUPS, stride), sizeof(int32_t),
                     false, &ws->slot_sum, err));
    WALSH_TRY(buffer(q, q->memory->experts->slots_bytes(q, slots, c->experts), 1, 1, false, &ws->sorted_slots,
                     err));
    WALSH_TRY(buffer(q, slots, 1, sizeof(uint32_t), false, &ws->slots_in_order, err));
    for (size_t i = 0; i < slots; i++) ws->slot_row[i] = (uint32_t)i; /* set again before it is read */
    return walsh_queue_upload(q, ws->slots_in_order, ws->slot_row, slots * sizeof *ws->slot_row, err);
}

static enum walsh_status allocate_experts(struct walsh_workspace *ws, const struct walsh_config *c,
                                          size_t rows, size_t slots, struct walsh_error *err)
{
    size_t ld;
    WALSH_TRY(input_buffer(ws->queue, rows, c->hidden, &ws->gathered, &ld, err));
    WALSH_TRY(buffer(ws->queue, rows, c->experts, sizeof(float), false, &ws->router_logits, err));
    WALSH_TRY(buffer(ws->queue, slots, 1, sizeof(int32_t), false, &ws->expert_index, err));
    WALSH_TRY(buffer(ws->queue, slots, 1, sizeof(float), false, &ws->expert_weight, err));
    WALSH_TRY(buffer(NULL, slots, 1, sizeof(uint32_t), false, &ws->slot_row, err));
    WALSH_TRY(buffer(NULL, c->experts, 1, sizeof *ws->groups, false, &ws->groups, err));
    WALSH_TRY(buffer(NULL, c->experts, WALSH_GROUP_CALLS, sizeof *ws->expert_products, false,
                     &ws->expert_products, err));
    WALSH_TRY(buffer(NULL, slots, 1, sizeof(uint32_t), false, &ws->row_slot, err));
    ws->chosen = ws->expert_index;
    ws->op_slot_row = ws->slot_row;
    ws->op_row_slot = ws->row_slot;
    if (ws->queue->memory) {
        ws->chosen = NULL;
        ws->op_slot_row = ws->op_row_slot = NULL;
        WALSH_TRY(buffer(NULL, slots, 1, sizeof(int32_t), false, &ws->chosen, err));
        WALSH_TRY(buffer(ws->queue, slots, 1, sizeof(uint32_t), false, &ws->op_slot_row, err));
        WALSH_TRY(buffer(ws->queue, slots, 1, sizeof(uint32_t), false, &ws->op_row_slot, err));
        if (ws->queue->memory->experts) WALSH_TRY(allocate_enqueued(ws, c, slots, err));
    }
    return buffer(NULL, (size_t)c->experts + 1, 1, sizeof(uint32_t), false, &ws->expert_begin, err);
}

static enum walsh_status allocate(struct walsh_workspace *ws, const struct walsh_config *c, size_t rows,
                                  struct walsh_error *err)
{
    size_t heads = (size_t)c->heads * c->head_dim, kv = (size_t)c->kv_heads * c->head_dim;
    const size_t mixed = 3 * (size_t)c->hidden;
    bool sparse = c->experts > 0;
    size_t wide = sparse ? c->expert_intermediate : c->intermediate;
    size_t slots = rows;
    if (sparse && !walsh_mul(rows, c->experts_per_token, &slots))
        return walsh_fail(err, WALSH_E_MEMORY, "workspace: %zu rows x %u experts do not fit", rows,
                          c->experts_per_token);

    WALSH_TRY(input_buffer(ws->queue, rows, c->hidden, &ws->normed, &ws->normed_ld, err));
    WALSH_TRY(buffer(ws->queue, rows, heads, sizeof(float), false, &ws->query, err));
    if (c->conv_taps) WALSH_TRY(buffer(ws->queue, rows, mixed, sizeof(float), false, &ws->mixed, err));
    WALSH_TRY(buffer(ws->queue, rows, kv, sizeof(float), false, &ws->key, err));
    WALSH_TRY(buffer(ws->queue, rows, kv, sizeof(float), false, &ws->value, err));
    WALSH_TRY(input_buffer(ws->queue, rows, heads, &ws->attention, &ws->attention_ld, err));
    WALSH_TRY(input_buffer(ws->queue, slots, wide, &ws->gate, &ws->gate_ld, err));
    WALSH_TRY(buffer(ws->queue, slots, ws->gate_ld, sizeof(float), false, &ws->up, err));
    WALSH_TRY(buffer(ws->queue, slots, c->hidden, sizeof(float), false, &ws->delta, err));
    WALSH_TRY(buffer(ws->queue, rows, 1, sizeof *ws->rows, false, &ws->rows, err));
    WALSH_TRY(buffer(ws->queue, rows, kv, sizeof(uint16_t), false, &ws->own_pages[0], err));
    WALSH_TRY(buffer(ws->queue, rows, kv, sizeof(uint16_t), false, &ws->own_pages[1], err));
    ws->own = (struct walsh_kv_view){.type = WALSH_KV_F16,
                                     .page_tokens = (uint32_t)rows,
                                     .k_pages = &ws->own_pages[0],
                                     .v_pages = &ws->own_pages[1]};

    size_t in = walsh_max(walsh_max(padded(c->hidden), padded(heads)), padded(wide));
    WALSH_TRY(
        buffer(ws->queue, rows, walsh_activations_stride(in), sizeof(float), false, &ws->activations, err));
    const size_t stride = walsh_activations_stride(in);
    WALSH_TRY(buffer(ws->queue, rows, walsh_activation_scales(WALSH_ACTIVATION_INT8_GROUPS, stride),
                     sizeof(float), false, &ws->scale, err));
    WALSH_TRY(buffer(ws->queue, rows, walsh_activation_sums(WALSH_ACTIVATION_INT8_GROUPS, stride),
                     sizeof(int32_t), false, &ws->sum, err));

    size_t z = walsh_z_stride(padded(heads)) + 2 * walsh_z_stride(padded(kv));
    z = walsh_max(walsh_max(z, 2 * walsh_z_stride(padded(wide))), walsh_z_stride(padded(c->hidden)));
    if (c->conv_taps) z = walsh_max(z, walsh_z_stride(padded(mixed)));
    z = walsh_max(z, c->experts); /* a router is never rotated today, but it is a linear like all others */
    if (!walsh_mul(rows, z, &ws->z_elements))
        return walsh_fail(err, WALSH_E_MEMORY, "workspace: %zu rows of %zu elements do not fit", rows, z);
    WALSH_TRY(buffer(ws->queue, rows, z, sizeof(float), false, &ws->z, err));
    return sparse ? allocate_experts(ws, c, rows, slots, err) : WALSH_OK;
}

enum walsh_status walsh_workspace_open(const struct walsh_model_graph *graph, const struct walsh_queue *queue,
                                       size_t max_rows, struct walsh_workspace **out, struct walsh_error *err)
{
    *out = NULL;
    struct walsh_workspace *ws;
    WALSH_TRY(walsh_alloc_zero(1, sizeof *ws, "the workspace", &ws, err));
    ws->max_rows = max_rows;
    ws->queue = queue;
    enum walsh_status status = allocate(ws, &graph->config, max_rows, err);
    if (status == WALSH_OK) status = walsh_workspace_reserve_own(ws, graph, err);
    if (status != WALSH_OK) {
        walsh_workspace_close(&ws);
        return status;
    }
    *out = ws;
    return WALSH_OK;
}

enum walsh_status walsh_workspace_check(struct walsh_workspace *ws, struct walsh_error *err)
{
    const struct walsh_error failure = ws->failure;
    if (failure.status == WALSH_OK) return WALSH_OK;
    memset(&ws->failure, 0, sizeof ws->failure);
    return walsh_fail(err, failure.status, "%s", failure.message);
}

void walsh_workspace_close(struct walsh_workspace **ws)
{
    if (!ws || !*ws) return;
    struct walsh_workspace *w = *ws;
    void *const of_queue[] = {w->mixed,
                              w->normed,
                              w->query,
                              w->key,
                              w->value,
                              w->attention,
                              w->gate,
                              w->up,
                              w->delta,
                              w->rows,
                              w->own_pages[0],
                              w->own_pages[1],
                              w->activations,
                              w->scale,
                              w->sum,
                              w->z,
                              w->gathered,
                              w->router_logits,
                              w->expert_index,
                              w->expert_weight,
                              w->h,
                              w->slot_data,
                              w->slot_scale,
                              w->slot_sum,
                              w->slots_in_order,
                              w->sorted_slots};
    void *const of_host[] = {w->expert_begin, w->slot_row,    w->row_slot, w->downs,
                             w->ups,          w->expert_sets, w->groups,   w->expert_products};
    if (w->queue->memory) {
        walsh_free(w->chosen);
        walsh_queue_free(w->queue, w->op_slot_row);
        walsh_queue_free(w->queue, w->op_row_slot);
    }
    for (size_t i = 0; i < sizeof of_queue / sizeof *of_queue; i++) walsh_queue_free(w->queue, of_queue[i]);
    for (size_t i = 0; i < sizeof of_host / sizeof *of_host; i++) walsh_free(of_host[i]);
    walsh_free(w);
    *ws = NULL;
}
