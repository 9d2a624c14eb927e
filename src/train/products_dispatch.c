#include "train/products_parts.h"

#include "base/memory.h"
#include "formats/blocks.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/product.h"
#include "kernels/table.h"

#define PIECE_OUTPUTS 192 /* of a product: a multiple of the widest tile, as in prefill */
#define TILE_OUTPUTS 48
#define AMX_OUTPUTS 384 /* the same where tiles are 32 by 32, in pairs, and fast */
#define AMX_TILE 64
#define PIECE_ROWS 128 /* at least, where rows are cut too: each piece makes its panels again */
#define KEPT_ROWS 64   /* where panels are kept, of whose products 64 rows are computed at a time */
#define KEPT_BYTES ((size_t)512 << 10) /* of their panels, beside which the L2 has rows and results */
#define AMX_KEPT_OUTPUTS 96            /* the same where an L2 has 2 MB and tiles want pairs of 16 outputs */
#define AMX_KEPT_BYTES ((size_t)1 << 20)
#define PIECES_PER_THREAD 8

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
    const size_t step =
        d->transposed ? walsh_products_scratch_columns(w, part->a->type) : walsh_max(fit, WALSH_BLOCK_ROWS);
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
    else if (walsh_products_has_panels(k, item->stored, a.type))
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
        scratch += walsh_products_panel_room(p.end - p.begin, u->rank);
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
    const bool amx = (d->queue->kernels->isa & WALSH_ISA_amx) != 0;
    const size_t tile = amx ? AMX_KEPT_OUTPUTS : TILE_OUTPUTS, bytes = amx ? AMX_KEPT_BYTES : KEPT_BYTES;
    size_t depth = 0;
    for (; item; item = item->next ? &d->items[item->next] : NULL) depth += item->a.cols;
    const size_t fit = bytes / (depth * sizeof(uint16_t)) / tile * tile;
    return walsh_min(walsh_max(fit, tile), PIECE_OUTPUTS);
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

void walsh_products_multiply(struct walsh_products *p, size_t heads, size_t count, bool transposed)
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
        if (walsh_products_dense(w->format)) continue;
        item->fused = walsh_products_choose(p->strategy, p->queue, w, item->a.type, rows / count);
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
