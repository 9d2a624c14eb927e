#include "train/products.h"

#include <string.h>

#include "base/memory.h"
#include "formats/blocks.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/product.h"
#include "kernels/table.h"
#include "model/sites.h"
#include "train/device.h"

#define PIECE_OUTPUTS 192 /* of a product: a multiple of the widest tile, as in prefill */
#define TILE_OUTPUTS 48
#define AMX_OUTPUTS 384 /* the same where tiles are 32 by 32, in pairs, and fast */
#define AMX_TILE 64
#define PIECE_ROWS 128 /* at least, where rows are cut too: each piece makes its panels again */
#define KEPT_ROWS 64   /* where panels are kept, of whose products 64 rows are computed at a time */
#define KEPT_BYTES ((size_t)512 << 10) /* of their panels, beside which the L2 has rows and results */
#define PIECES_PER_THREAD 8
#define DECODED_BYTES ((size_t)128 << 20) /* of several experts' decoded weights together, at most */

/* One product of a dispatch. */
struct walsh_products_item {
    const struct walsh_weights *stored; /* NULL: the update alone */
    const uint32_t *panels;             /* of it; NULL: none are kept */
    struct walsh_weights dense;         /* stored, or its decoded copy */
    struct walsh_activations a;
    float *y;
    size_t ldy, rows, outputs;
    size_t piece_outputs, piece_rows, first; /* number of its first piece */
    bool decoded, fused;                     /* neither: the weights are dense */
    bool add;                                /* to what y holds */
    struct walsh_frozen_update update;
    size_t next; /* item whose product and update are added to this one's, in the same pieces; 0: none */
};

static bool is_dense(enum walsh_format format)
{
    return format == WALSH_FORMAT_F32 || format == WALSH_FORMAT_F16 || format == WALSH_FORMAT_BF16;
}

/* How the other side of a product with this linear is rounded. A router's input never is: its activation type
 * says F32 whatever the format. */
enum walsh_activation_type walsh_frozen_type(enum walsh_activation_type compute,
                                             const struct walsh_linear *linear)
{
    if (compute != WALSH_ACTIVATION_BF16) return WALSH_ACTIVATION_F32;
    if (is_dense(linear->weights.format)) return linear->activation;
    return WALSH_ACTIVATION_BF16;
}

/* --- the choice --- */

/* MXFP4 goes straight into panels, where the kernels that do it are those of the dense products. */
static bool has_panels(const struct walsh_kernels *k, const struct walsh_weights *w,
                       enum walsh_activation_type type)
{
    const char *dense = k->chosen[WALSH_KERNEL_ID_product_bf16_prefill],
               *panels = k->chosen[WALSH_KERNEL_ID_product_mxfp4_prefill];
    return type == WALSH_ACTIVATION_BF16 && w->format == WALSH_FORMAT_MXFP4 && w->tensor_scale == 1 &&
           strcmp(dense, panels) == 0;
}

/* Columns of all rows that fit into a worker's scratch, decoded. */
static size_t scratch_columns(const struct walsh_weights *w, enum walsh_activation_type type)
{
    return (WALSH_SCRATCH_BYTES - WALSH_PANEL_SCRATCH) / (w->rows * walsh_activation_size(type)) / 16 * 16;
}

static bool can_fuse(const struct walsh_kernels *k, const struct walsh_weights *w,
                     enum walsh_activation_type type)
{
    return has_panels(k, w, type) || scratch_columns(w, type) > 0;
}

/* Measured by bench/experts.c (docs/performance.md): panels of MXFP4 cost what packing a dense matrix costs,
 * so that fused wins at any number of rows. Elsewhere a weight that meets many rows is cut into several
 * pieces of rows, each of which would decode it again; where that begins to lose was not measured. */
#define FUSED_ROWS 512
bool walsh_products_fused(const struct walsh_queue *queue, enum walsh_activation_type compute,
                          const struct walsh_weights *w, size_t rows)
{
    if (queue->memory || is_dense(w->format) || !can_fuse(queue->kernels, w, compute)) return false;
    return has_panels(queue->kernels, w, compute) || rows <= FUSED_ROWS;
}

static bool choose(enum walsh_strategy strategy, const struct walsh_queue *q, const struct walsh_weights *w,
                   enum walsh_activation_type type, size_t rows)
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

/* Pairs of one matrix's panels, whole cache lines. */
static size_t panel_room(size_t outputs, size_t depth)
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
                need.panels += panel_room(w->rows, w->cols) + panel_room(w->cols, w->rows);
            need.widest = walsh_max(need.widest, walsh_max(w->rows, w->cols));
            if (!is_dense(w->format) &&
                !choose(o->strategy, queue, w, walsh_frozen_type(o->compute, linear), o->max_rows))
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
            p->panels[2 * linear->index + 1] = room + panel_room(w->rows, w->cols);
            room += panel_room(w->rows, w->cols) + panel_room(w->cols, w->rows);
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

/* --- a dispatch --- */

struct dispatch {
    const struct walsh_queue *queue;
    struct walsh_products_item *items;
    size_t count, pieces;
    size_t across; /* pieces of the same rows, of all items; 0: item behind item */
    bool transposed;
};

/* The item that piece number `piece` belongs to. */
static const struct walsh_products_item *item_of(const struct dispatch *d, size_t piece)
{
    size_t low = 0, high = d->count - 1;
    while (low < high) {
        const size_t middle = (low + high + 1) / 2;
        if (d->items[middle].first <= piece)
            low = middle;
        else
            high = middle - 1;
    }
    return &d->items[low];
}

static void decode(const struct walsh_kernels *k, const struct walsh_weights *w, bool narrow, size_t row,
                   size_t rows, size_t col, size_t cols, void *out)
{
    if (narrow)
        k->decode_weights_bf16(w, row, rows, col, cols, out, cols);
    else
        k->decode_weights_f32(w, row, rows, col, cols, out, cols);
}

/* Piece: 16 rows of a weight. */
static void decode_pieces(void *argument, size_t begin, size_t end, unsigned worker)
{
    (void)worker;
    const struct dispatch *d = argument;
    for (size_t i = begin; i < end; i++) {
        const struct walsh_products_item *item = item_of(d, i);
        const struct walsh_weights *w = item->stored;
        const bool narrow = item->dense.format == WALSH_FORMAT_BF16;
        const size_t row = (i - item->first) * WALSH_BLOCK_ROWS, at = row * w->cols;
        uint8_t *to =
            (uint8_t *)(uintptr_t)item->dense.data + at * (narrow ? sizeof(uint16_t) : sizeof(float));
        decode(d->queue->kernels, w, narrow, row, walsh_min(WALSH_BLOCK_ROWS, w->rows - row), 0, w->cols, to);
    }
}

typedef void product_kernel(const struct walsh_product_part *);

static product_kernel *dense_kernel(const struct walsh_kernels *k, enum walsh_activation_type type,
                                    bool transposed)
{
    if (type == WALSH_ACTIVATION_BF16)
        return transposed ? k->product_bf16_transposed : k->product_bf16_prefill;
    return transposed ? k->product_dense_transposed : k->product_dense_prefill;
}

/* Rows of W, or columns where `transposed`, are decoded into the scratch and meet the activations there. */
static void run_slabs(const struct dispatch *d, const struct walsh_product_part *part)
{
    const struct walsh_weights *w = part->weights;
    const struct walsh_kernels *k = d->queue->kernels;
    const bool narrow = part->a->type == WALSH_ACTIVATION_BF16;
    void *slab = (uint8_t *)part->scratch + WALSH_PANEL_SCRATCH;
    const size_t fit = (WALSH_SCRATCH_BYTES - WALSH_PANEL_SCRATCH) /
                       (w->cols * walsh_activation_size(part->a->type)) / WALSH_BLOCK_ROWS * WALSH_BLOCK_ROWS;
    const size_t step = d->transposed ? scratch_columns(w, part->a->type) : walsh_max(fit, WALSH_BLOCK_ROWS);
    for (size_t at = part->begin; at < part->end; at += step) {
        const size_t n = walsh_min(step, part->end - at);
        struct walsh_weights dense = {.format = narrow ? WALSH_FORMAT_BF16 : WALSH_FORMAT_F32,
                                      .rows = d->transposed ? w->rows : (uint32_t)n,
                                      .cols = d->transposed ? (uint32_t)n : w->cols,
                                      .data = slab};
        if (d->transposed)
            decode(k, w, narrow, 0, w->rows, at, n, slab);
        else
            decode(k, w, narrow, at, n, 0, w->cols, slab);
        struct walsh_product_part piece = *part;
        piece.weights = &dense;
        piece.begin = 0;
        piece.end = n;
        piece.y = part->y + at;
        dense_kernel(k, part->a->type, d->transposed)(&piece);
    }
}

/* Rows [row, row + rows) of an item by its weights: to `part`, which names outputs and y. */
static void weight_piece(const struct dispatch *d, const struct walsh_products_item *item, size_t row,
                         size_t rows, struct walsh_product_part part)
{
    const struct walsh_kernels *k = d->queue->kernels;
    struct walsh_activations a = item->a;
    a.rows = rows;
    a.data = (uint8_t *)item->a.data + row * a.stride * walsh_activation_size(a.type);
    part.a = &a;
    part.weights = item->fused ? item->stored : &item->dense;
    if (!item->fused)
        dense_kernel(k, a.type, d->transposed)(&part);
    else if (has_panels(k, item->stored, a.type))
        (d->transposed ? k->product_mxfp4_transposed : k->product_mxfp4_prefill)(&part);
    else
        run_slabs(d, &part);
}

static void update_piece(const struct dispatch *d, const struct walsh_products_item *item, size_t row,
                         size_t rows, struct walsh_product_part part)
{
    const struct walsh_frozen_update *u = &item->update;
    const struct walsh_activations a = {.type = WALSH_ACTIVATION_BF16,
                                        .rows = rows,
                                        .cols = u->rank,
                                        .stride = u->ld,
                                        .data = (uint16_t *)(uintptr_t)u->inner + row * u->ld};
    const struct walsh_weights w = {.format = WALSH_FORMAT_BF16,
                                    .rows = (uint32_t)u->rank,
                                    .cols = (uint32_t)item->outputs,
                                    .data = u->matrix};
    part.a = &a;
    part.weights = &w;
    part.add = true;
    d->queue->kernels->product_bf16_transposed(&part);
}

/* Rows [row, row + rows) of an item and of those that are added to it, by panels that are kept. */
static void panels_piece(const struct dispatch *d, const struct walsh_products_item *head, size_t row,
                         size_t rows, const struct walsh_product_part *part)
{
    struct walsh_panel_term terms[2 * WALSH_SITE_CALLS];
    struct walsh_panels_product p = {.terms = terms,
                                     .rows = rows,
                                     .begin = part->begin,
                                     .end = part->end,
                                     .y = part->y,
                                     .ldy = part->ldy,
                                     .add = part->add};
    const struct walsh_products_item *item;
    for (item = head; item; item = item->next ? &d->items[item->next] : NULL)
        terms[p.count++] =
            (struct walsh_panel_term){.panels = item->panels,
                                      .outputs = item->outputs,
                                      .depth = item->a.cols,
                                      .a = (const uint16_t *)item->a.data + row * item->a.stride,
                                      .lda = item->a.stride};
    uint32_t *scratch = part->scratch;
    for (item = head; item; item = item->next ? &d->items[item->next] : NULL) {
        const struct walsh_frozen_update *u = &item->update;
        if (u->rank == 0) continue;
        const struct walsh_weights w = {.format = WALSH_FORMAT_BF16,
                                        .rows = (uint32_t)u->rank,
                                        .cols = (uint32_t)item->outputs,
                                        .data = u->matrix};
        d->queue->kernels->pack_panels_bf16(&w, true, p.begin, p.end, scratch);
        terms[p.count++] = (struct walsh_panel_term){.panels = scratch,
                                                     .outputs = p.end - p.begin,
                                                     .depth = u->rank,
                                                     .shift = p.begin,
                                                     .a = u->inner + row * u->ld,
                                                     .lda = u->ld};
        scratch += panel_room(p.end - p.begin, u->rank);
    }
    d->queue->kernels->product_panels_bf16(&p);
}

/* Have an item and all that are added to it panels? */
static bool all_kept(const struct dispatch *d, const struct walsh_products_item *item)
{
    for (; item; item = item->next ? &d->items[item->next] : NULL)
        if (!item->panels) return false;
    return true;
}

static void product_pieces(void *argument, size_t begin, size_t end, unsigned worker)
{
    const struct dispatch *d = argument;
    for (size_t i = begin; i < end; i++) {
        const struct walsh_products_item *head = item_of(d, d->across ? i % d->across : i), *item;
        const size_t wide = walsh_div_up(head->outputs, head->piece_outputs),
                     number = (d->across ? i % d->across : i) - head->first,
                     row = (d->across ? i / d->across : number / wide) * head->piece_rows,
                     rows = walsh_min(head->piece_rows, head->rows - row);
        struct walsh_product_part part = {.begin = number % wide * head->piece_outputs,
                                          .y = head->y + row * head->ldy,
                                          .ldy = head->ldy,
                                          .scratch = d->queue->scratch[worker],
                                          .add = head->add};
        part.end = walsh_min(part.begin + head->piece_outputs, head->outputs);
        if (all_kept(d, head)) {
            panels_piece(d, head, row, rows, &part);
            continue;
        }
        for (item = head; item; item = item->next ? &d->items[item->next] : NULL, part.add = true)
            if (item->stored) weight_piece(d, item, row, rows, part);
        for (item = head; item; item = item->next ? &d->items[item->next] : NULL)
            if (item->update.rank > 0) update_piece(d, item, row, rows, part);
    }
}

/* Outputs of a piece whose panels stay in the L2 while its rows pass by. */
static size_t kept_outputs(const struct dispatch *d, const struct walsh_products_item *item)
{
    size_t depth = 0;
    for (; item; item = item->next ? &d->items[item->next] : NULL) depth += item->a.cols;
    const size_t fit = KEPT_BYTES / (depth * sizeof(uint16_t)) / TILE_OUTPUTS * TILE_OUTPUTS;
    return walsh_min(walsh_max(fit, TILE_OUTPUTS), PIECE_OUTPUTS);
}

/* Where all items have kept panels and the same rows, pieces go row by row: a thread's share are rows then, whose inputs it made
 * and whose outputs it will read. */
static void cut_across(struct dispatch *d, size_t target)
{
    size_t across = 0, most = 0;
    for (size_t i = 0; i < d->count; i++) {
        if (!all_kept(d, &d->items[i]) || d->items[i].rows != d->items[0].rows) return;
        most = walsh_max(most, d->items[i].piece_outputs);
    }
    const size_t rows = walsh_max(walsh_round_up(target / most, KEPT_ROWS), PIECE_ROWS);
    for (size_t i = 0; i < d->count; i++) {
        d->items[i].piece_rows = rows;
        d->items[i].first = across;
        across += walsh_div_up(d->items[i].outputs, d->items[i].piece_outputs);
    }
    d->across = across;
    d->pieces = across * walsh_div_up(d->items[0].rows, rows);
}

/* Cut every item into pieces of about the same work, first along its outputs, then along its rows: enough for
 * all threads, few enough that making panels (and decoding) stays a small share. Where panels are kept it is
 * along the rows that nothing is lost: each piece reads its rows once for as many outputs as it can. */
static void cut(struct dispatch *d)
{
    const size_t threads = walsh_pool_threads(d->queue->pool);
    const bool amx = (d->queue->kernels->isa & WALSH_ISA_amx) != 0;
    const size_t tile = amx ? AMX_TILE : TILE_OUTPUTS, most = amx ? AMX_OUTPUTS : PIECE_OUTPUTS;
    size_t work = 0;
    for (size_t i = 0; i < d->count; i++) work += d->items[i].rows * d->items[i].outputs;
    const size_t target = work / (threads * PIECES_PER_THREAD) + 1;
    d->pieces = 0;
    for (size_t i = 0; i < d->count; i++) {
        struct walsh_products_item *item = &d->items[i];
        const size_t rows = item->rows;
        item->piece_outputs = walsh_min(walsh_round_up(walsh_max(target / rows, 1), tile), most);
        item->piece_rows = rows;
        if (all_kept(d, item)) {
            item->piece_outputs = kept_outputs(d, item);
            item->piece_rows = walsh_max(walsh_round_up(target / item->piece_outputs, KEPT_ROWS), PIECE_ROWS);
        } else if (item->piece_outputs == tile && tile * rows > 2 * target)
            item->piece_rows = walsh_max(walsh_round_up(2 * target / tile, 32), PIECE_ROWS);
        item->first = d->pieces;
        d->pieces += walsh_div_up(item->outputs, item->piece_outputs) * walsh_div_up(rows, item->piece_rows);
    }
    cut_across(d, target);
}

static void run_items(struct walsh_products *p, struct walsh_products_item *items, size_t count,
                      bool transposed)
{
    struct dispatch d = {.queue = p->queue, .items = items, .count = count, .transposed = transposed};
    size_t tiles = 0;
    for (size_t i = 0; i < count; i++) {
        items[i].first = tiles;
        if (items[i].decoded) tiles += walsh_block_tiles(items[i].stored);
    }
    if (tiles > 0) walsh_pool_run(p->queue->pool, tiles, 1, decode_pieces, &d);
    cut(&d);
    walsh_pool_run_near(p->queue->pool, d.pieces, 1, product_pieces, &d);
}

/* Decode what is not fused, as much at a time as the buffer holds, and multiply. The first `heads` of `count` items have pieces:
 * the others, none of which is decoded, are added to them. */
static void multiply(struct walsh_products *p, size_t heads, size_t count, bool transposed)
{
    size_t rows = 0, begin = 0, used = 0;
    for (size_t i = 0; i < count; i++) rows += p->items[i].rows;
    for (size_t i = 0; i < count; i++) {
        struct walsh_products_item *item = &p->items[i];
        const struct walsh_weights *w = item->stored;
        item->decoded = item->fused = false;
        if (!w) continue;
        item->outputs = transposed ? w->cols : w->rows;
        item->dense = *w;
        if (is_dense(w->format)) continue;
        item->fused = choose(p->strategy, p->queue, w, item->a.type, rows / count);
        if (item->fused) {
            p->fused++;
            continue;
        }
        const size_t elements = (size_t)w->rows * w->cols, size = walsh_activation_size(item->a.type);
        if (used + elements > p->dense_elements) {
            run_items(p, p->items + begin, i - begin, transposed);
            begin = i;
            used = 0;
        }
        item->dense = (struct walsh_weights){
            .format = item->a.type == WALSH_ACTIVATION_BF16 ? WALSH_FORMAT_BF16 : WALSH_FORMAT_F32,
            .rows = w->rows,
            .cols = w->cols,
            .data = (uint8_t *)p->dense + used * size};
        item->decoded = true;
        used += elements;
        p->decoded++;
    }
    if (heads > begin) run_items(p, p->items + begin, heads - begin, transposed);
}

/* --- around it --- */

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
    if (used > 0) multiply(p, used, used, transposed);
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
        multiply(p, run * count, run * count, false);
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
            if (!is_dense(w->format) &&
                !choose(p->strategy, p->queue, w, WALSH_ACTIVATION_BF16, rows / count))
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
    multiply(p, count, calls * count, true);
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
    multiply(p, count, count, true);
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
