#include "train/products_parts.h"

#include <string.h>

#include "base/memory.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/device.h"
#include "kernels/table.h"
#include "model/sites.h"

#define DECODED_BYTES ((size_t)128 << 20) /* of several experts' decoded weights together, at most */

/* How the other side of a product with this linear is rounded. A router's input never is: its activation type
 * says F32 whatever the format. */
enum walsh_activation_type walsh_frozen_type(enum walsh_activation_type compute,
                                             const struct walsh_linear *linear)
{
    if (compute != WALSH_ACTIVATION_BF16) return WALSH_ACTIVATION_F32;
    if (walsh_products_dense(linear->weights.format)) return linear->activation;
    return WALSH_ACTIVATION_BF16;
}

/* --- the choice --- */

bool walsh_products_has_panels(const struct walsh_kernels *k, const struct walsh_weights *w,
                               enum walsh_activation_type type)
{
    const char *dense = k->chosen[WALSH_KERNEL_ID_product_bf16_prefill],
               *panels = k->chosen[WALSH_KERNEL_ID_product_mxfp4_prefill];
    return type == WALSH_ACTIVATION_BF16 && w->format == WALSH_FORMAT_MXFP4 && w->tensor_scale == 1 &&
           strcmp(dense, panels) == 0;
}

size_t walsh_products_scratch_columns(const struct walsh_weights *w, enum walsh_activation_type type)
{
    return (WALSH_SCRATCH_BYTES - WALSH_PANEL_SCRATCH) / (w->rows * walsh_activation_size(type)) / 16 * 16;
}

static bool can_fuse(const struct walsh_kernels *k, const struct walsh_weights *w,
                     enum walsh_activation_type type)
{
    return walsh_products_has_panels(k, w, type) || walsh_products_scratch_columns(w, type) > 0;
}

/* Measured by bench/experts.c (docs/performance.md): panels of MXFP4 cost what packing a dense matrix costs,
 * so that fused wins at any number of rows. Elsewhere a weight that meets many rows is cut into several
 * pieces of rows, each of which would decode it again; where that begins to lose was not measured. */
#define FUSED_ROWS 512
bool walsh_products_fused(const struct walsh_queue *queue, enum walsh_activation_type compute,
                          const struct walsh_weights *w, size_t rows)
{
    if (queue->memory || walsh_products_dense(w->format) || !can_fuse(queue->kernels, w, compute))
        return false;
    return walsh_products_has_panels(queue->kernels, w, compute) || rows <= FUSED_ROWS;
}

bool walsh_products_choose(enum walsh_strategy strategy, const struct walsh_queue *q,
                           const struct walsh_weights *w, enum walsh_activation_type type, size_t rows)
{
    if (q->memory) return false;
    if (strategy == WALSH_STRATEGY_AUTO) return walsh_products_fused(q, type, w, rows);
    return strategy == WALSH_STRATEGY_FUSED && can_fuse(q->kernels, w, type);
}

/* --- memory --- */

/* Are panels of this linear kept, where that is wanted? Their products are then those of `product_bf16_prefill` and
 * `product_bf16_transposed`, which a device has its own of. */
static bool keeps_panels(const struct walsh_queue *queue, const struct walsh_products_options *o,
                         const struct walsh_linear *linear)
{
    const struct walsh_kernels *k = queue->kernels;
    if (!o->panels || queue->memory) return false;
    const char *panels = k->chosen[WALSH_KERNEL_ID_product_panels_bf16];
    return linear->weights.format == WALSH_FORMAT_BF16 &&
           walsh_max(linear->weights.rows, linear->weights.cols) <= WALSH_TILED_MAX_BF16_COLUMNS &&
           walsh_frozen_type(o->compute, linear) == WALSH_ACTIVATION_BF16 &&
           strcmp(panels, "reference") != 0 &&
           strcmp(panels, k->chosen[WALSH_KERNEL_ID_product_bf16_prefill]) == 0 &&
           strcmp(panels, k->chosen[WALSH_KERNEL_ID_product_bf16_transposed]) == 0;
}

/* What the linears of the layers, or the head, need. */
struct need {
    size_t panels;   /* pairs of all panels that are kept */
    size_t linears;  /* of the graph */
    size_t widest;   /* padded dimension */
    size_t largest;  /* elements of the largest weight that may have to be decoded */
    size_t together; /* of those of a layer's experts that one dispatch may meet */
    bool rotated;
};

size_t walsh_products_panel_room(size_t outputs, size_t depth)
{
    return walsh_round_up(walsh_panel_pairs(outputs, depth), WALSH_ALIGNMENT / sizeof(uint32_t));
}

static struct need measure(const struct walsh_model_graph *graph, const struct walsh_queue *queue,
                           const struct walsh_products_options *o)
{
    struct need need = {0};
    struct walsh_site_walk walk = {.graph = graph};
    struct walsh_site site;
    while (walsh_site_next(&walk, &site))
        for (unsigned i = 0; i < site.count; i++) {
            const struct walsh_linear *linear = site.linears[i];
            const struct walsh_weights *w = &linear->weights;
            need.linears++;
            if ((linear == &graph->head) != o->head) continue;
            if (keeps_panels(queue, o, linear))
                need.panels +=
                    walsh_products_panel_room(w->rows, w->cols) + walsh_products_panel_room(w->cols, w->rows);
            need.widest = walsh_max(need.widest, walsh_max(w->rows, w->cols));
            if (!walsh_products_dense(w->format) &&
                !walsh_products_choose(o->strategy, queue, w, walsh_frozen_type(o->compute, linear),
                                       o->max_rows))
                need.largest = walsh_max(need.largest, (size_t)w->rows * w->cols);
            need.rotated = need.rotated || linear->in_rotation.kind != WALSH_ROTATION_NONE ||
                           linear->out_rotation.kind != WALSH_ROTATION_NONE;
        }
    const size_t experts = o->head ? 0 : 2 * (size_t)graph->config.experts;
    need.together = walsh_max(
        need.largest, walsh_min(need.largest * experts, DECODED_BYTES / walsh_activation_size(o->compute)));
    return need;
}

/* f32 elements of a row of all buffers. */
static size_t row_elements(const struct need *need, bool head)
{
    return walsh_activations_stride(need->widest) + (need->rotated ? need->widest : 0) +
           (head ? 0 : need->widest);
}

static size_t most_items(const struct walsh_model_graph *graph)
{
    return WALSH_SITE_CALLS * walsh_max((size_t)graph->config.experts, 1);
}

size_t walsh_products_bytes(const struct walsh_model_graph *graph, const struct walsh_queue *queue,
                            const struct walsh_products_options *o)
{
    const struct need need = measure(graph, queue, o);
    return o->max_rows * row_elements(&need, o->head) * sizeof(float) +
           need.together * walsh_activation_size(o->compute) + need.panels * sizeof(uint32_t) +
           most_items(graph) * sizeof(struct walsh_products_item);
}

struct pack {
    const struct walsh_queue *queue;
    const struct walsh_linear *const *linears;
    uint32_t *const *panels;
};

/* Piece: one matrix, one way. */
static void pack_pieces(void *argument, size_t begin, size_t end, unsigned worker)
{
    (void)worker;
    const struct pack *t = argument;
    for (size_t i = begin; i < end; i++) {
        const struct walsh_weights *w = t->linears[i / 2] ? &t->linears[i / 2]->weights : NULL;
        if (t->panels[i])
            t->queue->kernels->pack_panels_bf16(w, i % 2 == 1, 0, i % 2 == 1 ? w->cols : w->rows,
                                                t->panels[i]);
    }
}

static enum walsh_status keep_panels(const struct walsh_model_graph *graph,
                                     const struct walsh_products_options *o, const struct need *need,
                                     struct walsh_products *p, struct walsh_error *err)
{
    static const char what[] = "panels of the weights";
    const struct walsh_linear **linears;
    uint32_t *room;
    p->linears = need->linears;
    WALSH_TRY(walsh_arena_alloc(&p->arena, 2 * need->linears, sizeof *p->panels, what, &p->panels, err));
    WALSH_TRY(walsh_arena_alloc(&p->arena, need->linears, sizeof *linears, what, &linears, err));
    WALSH_TRY(walsh_arena_alloc_uninitialised(&p->arena, need->panels, sizeof *room, what, &room, err));
    struct walsh_site_walk walk = {.graph = graph};
    struct walsh_site site;
    while (walsh_site_next(&walk, &site))
        for (unsigned i = 0; i < site.count; i++) {
            const struct walsh_linear *linear = site.linears[i];
            const struct walsh_weights *w = &linear->weights;
            if ((linear == &graph->head) != o->head || !keeps_panels(p->queue, o, linear)) continue;
            linears[linear->index] = linear;
            p->panels[2 * linear->index] = room;
            p->panels[2 * linear->index + 1] = room + walsh_products_panel_room(w->rows, w->cols);
            room += walsh_products_panel_room(w->rows, w->cols) + walsh_products_panel_room(w->cols, w->rows);
            p->kept++;
        }
    struct pack t = {p->queue, linears, p->panels};
    walsh_pool_run(p->queue->pool, 2 * need->linears, 1, pack_pieces, &t);
    return WALSH_OK;
}

enum walsh_status walsh_products_open(const struct walsh_model_graph *graph, const struct walsh_queue *queue,
                                      const struct walsh_products_options *o, struct walsh_products *out,
                                      struct walsh_error *err)
{
    const struct need need = measure(graph, queue, o);
    *out = (struct walsh_products){.queue = queue,
                                   .compute = o->compute,
                                   .strategy = o->strategy,
                                   .max_rows = o->max_rows,
                                   .widest = need.widest,
                                   .dense_elements = need.together,
                                   .max_items = most_items(graph)};
    size_t all;
    if (!walsh_mul(o->max_rows, row_elements(&need, o->head), &all))
        return walsh_fail(err, WALSH_E_MEMORY, "%zu rows of a product do not fit", o->max_rows);
    const size_t rows = o->max_rows * sizeof(float);
    enum walsh_status status = walsh_queue_alloc(queue, rows * walsh_activations_stride(need.widest),
                                                 "prepared activations", &out->activations, err);
    if (status == WALSH_OK && need.rotated)
        status = walsh_queue_alloc(queue, rows * need.widest, "rotated products", &out->z, err);
    if (status == WALSH_OK && !o->head)
        status = walsh_queue_alloc(queue, rows * need.widest, "a gradient", &out->extra, err);
    if (status == WALSH_OK && need.together > 0)
        status = walsh_queue_alloc(queue, need.together * walsh_activation_size(o->compute),
                                   "decoded weights", &out->dense, err);
    if (status == WALSH_OK)
        status = walsh_alloc_zero(out->max_items, sizeof *out->items, "products", &out->items, err);
    if (status == WALSH_OK && need.panels > 0) status = keep_panels(graph, o, &need, out, err);
    if (status != WALSH_OK) walsh_products_close(out);
    return status;
}

void walsh_products_close(struct walsh_products *p)
{
    walsh_queue_free(p->queue, p->activations);
    walsh_queue_free(p->queue, p->z);
    walsh_queue_free(p->queue, p->extra);
    walsh_queue_free(p->queue, p->dense);
    walsh_free(p->items);
    walsh_arena_close(&p->arena);
    *p = (struct walsh_products){0};
}
