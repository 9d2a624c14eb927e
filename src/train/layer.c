#include "train/layer.h"

#include <math.h>
#include <string.h>

#include "base/memory.h"
#include "kernels/device.h"
#include "kernels/table.h"
#include "train/device.h"
#include "train/gradients.h"
#include "train/rows.h"
#include "train/short_conv.h"

/* --- memory --- */

static size_t slots_per_row(const struct walsh_config *c)
{
    return c->experts > 0 ? c->experts_per_token : 1;
}

/* Lists of linears that run together. */
static size_t sites_of(const struct walsh_config *c)
{
    return c->experts > 0 ? c->experts : 1;
}

static size_t wide_of(const struct walsh_config *c)
{
    return c->experts > 0 ? c->expert_intermediate : c->intermediate;
}

static struct walsh_attention_shape attention_shape(const struct walsh_config *c,
                                                    const struct walsh_layer *layer)
{
    return (struct walsh_attention_shape){
        .heads = c->heads,
        .kv_heads = c->kv_heads,
        .head_dim = c->head_dim,
        .scale = (float)(1 / sqrt(c->query_scalar != 0 ? c->query_scalar : (double)c->head_dim)),
        .window = layer ? layer->window : 0,
        .soft_cap = (float)c->score_cap,
        .sinks = layer ? layer->sinks : NULL};
}

/* A walk over the buffers of a struct: measured where there is neither an arena nor a device's block, else allocated. */
struct room {
    struct walsh_arena *arena;
    uint8_t *device;
    size_t bytes;
    enum walsh_status status;
    struct walsh_error *err;
};

#define DEVICE_ALIGNMENT 256 /* of what the kernels read 16 bytes at a time; the host's is less */

static void *take(struct room *room, size_t count, size_t size, const char *what)
{
    void *p = room->device ? room->device + room->bytes : NULL;
    room->bytes += walsh_round_up(count * size, DEVICE_ALIGNMENT);
    if (room->arena && room->status == WALSH_OK)
        room->status = walsh_arena_alloc_uninitialised(room->arena, count, size, what, &p, room->err);
    return p;
}

static float *floats(struct room *room, size_t rows, size_t n)
{
    return take(room, rows * n, sizeof(float), "activations of training");
}

/* A layer that attends, if any does: all that do have the same parts. */
static const struct walsh_layer *attending(const struct walsh_model_graph *graph)
{
    uint32_t i = 0;
    while (i + 1 < graph->config.layers && graph->layers[i].conv_weight) i++;
    return &graph->layers[i];
}

/* Elements of what o reads. */
static size_t mixed_width(const struct walsh_model_graph *graph)
{
    const struct walsh_config *c = &graph->config;
    const size_t q_width = (size_t)c->heads * c->head_dim;
    return graph->conv ? walsh_max(q_width, c->hidden) : q_width;
}

static struct walsh_tape tape_of(struct room *room, const struct walsh_model_graph *graph,
                                 const struct walsh_layers_options *o)
{
    const struct walsh_config *c = &graph->config;
    const size_t rows = o->max_rows;
    const struct walsh_layer *layer = attending(graph);
    const size_t q_width = (size_t)c->heads * c->head_dim, kv_width = (size_t)c->kv_heads * c->head_dim;
    const size_t slots = rows * slots_per_row(c);
    struct walsh_tape t = {
        .query = floats(room, rows, q_width),
        .key = floats(room, rows, kv_width),
        .value = floats(room, rows, kv_width),
        .attention = floats(room, rows, mixed_width(graph)),
        .lse = floats(room, rows, c->heads),
        .middle = floats(room, rows, c->hidden),
        .gate = floats(room, slots, wide_of(c)),
        .up = floats(room, slots, wide_of(c)),
    };
    if (graph->conv) t.mixed = floats(room, rows, 3 * (size_t)c->hidden);
    if (layer->q_norm) t.raw_query = floats(room, rows, q_width);
    if (layer->k_norm) t.raw_key = floats(room, rows, kv_width);
    if (layer->attention_output_norm) t.attention_delta = floats(room, rows, c->hidden);
    if (layer->mlp_output_norm) t.mlp_delta = floats(room, rows, c->hidden);
    if (c->experts > 0) {
        t.router_logits = floats(room, rows, c->experts);
        t.expert_index = take(room, slots, sizeof *t.expert_index, "activations of training");
        t.expert_weight = floats(room, slots, 1);
        t.expert_output = floats(room, slots, c->hidden);
    }
    static const size_t lists[WALSH_TAPE_LISTS] = {3, 1, 2, 1}; /* linears of each */
    const size_t in[WALSH_TAPE_LISTS] = {c->hidden, mixed_width(graph), c->hidden, wide_of(c)};
    for (size_t i = 0; o->narrow && i < WALSH_TAPE_LISTS; i++) {
        const bool wide = i == WALSH_LIST_GATE_UP || i == WALSH_LIST_DOWN;
        /* a device keeps those of all experts at their own width */
        const uint32_t rank =
            wide && c->experts > 0 ? (uint32_t)walsh_max(o->max_rank, WALSH_EXPERT_RANK) : o->max_rank;
        t.inner[i] = take(room, lists[i] * walsh_lora_kept(rank, wide ? slots : rows, wide ? sites_of(c) : 1),
                          sizeof(uint16_t), "activations of training");
        t.inputs[i] = take(room, (wide ? slots : rows) * walsh_activations_stride(in[i]), sizeof(uint16_t),
                           "activations of training");
    }
    return t;
}

enum walsh_status walsh_tape_open(const struct walsh_model_graph *graph, const struct walsh_queue *queue,
                                  const struct walsh_layers_options *options, struct walsh_arena *arena,
                                  struct walsh_tape *out, struct walsh_error *err)
{
    struct room room = {.arena = arena, .err = err};
    *out = (struct walsh_tape){0};
    if (queue->memory) {
        room.arena = NULL;
        WALSH_TRY(walsh_queue_alloc(queue, walsh_tape_bytes(graph, options), "activations of training",
                                    &room.device, err));
    }
    void *block = room.device;
    *out = tape_of(&room, graph, options);
    out->device_block = block;
    return room.status;
}

void walsh_tape_close(const struct walsh_queue *queue, struct walsh_tape *tape)
{
    if (tape->device_block) walsh_queue_free(queue, tape->device_block);
    tape->device_block = NULL;
}

size_t walsh_tape_bytes(const struct walsh_model_graph *graph, const struct walsh_layers_options *options)
{
    struct room room = {.arena = NULL};
    tape_of(&room, graph, options);
    return room.bytes;
}

/* Of the widest gradient that comes back to a linear. */
static size_t rounded_stride(const struct walsh_model_graph *graph)
{
    const struct walsh_config *c = &graph->config;
    const size_t in = graph->conv ? 3 * (size_t)c->hidden : (size_t)c->heads * c->head_dim;
    return walsh_activations_stride(walsh_max(walsh_max(c->hidden, in), wide_of(c)));
}

static void buffers_of(struct room *room, struct walsh_layers *l)
{
    const struct walsh_config *c = &l->graph->config;
    const size_t q_width = (size_t)c->heads * c->head_dim, kv_width = (size_t)c->kv_heads * c->head_dim;
    const size_t rows = l->max_rows, slots = rows * slots_per_row(c);
    l->normed = floats(room, rows, c->hidden);
    l->dnormed = floats(room, rows, c->hidden);
    l->delta = floats(room, rows, c->hidden);
    l->dquery = floats(room, rows, q_width);
    l->dkey = floats(room, rows, kv_width);
    l->dvalue = floats(room, rows, kv_width);
    l->dattention = floats(room, rows, mixed_width(l->graph));
    if (l->graph->conv) l->dmixed = floats(room, rows, 3 * (size_t)c->hidden);
    l->wide = floats(room, slots, wide_of(c));
    l->dgate = floats(room, slots, wide_of(c));
    l->dup = floats(room, slots, wide_of(c));
    if (c->experts > 0) {
        l->gathered = floats(room, slots, c->hidden);
        l->dgathered = floats(room, slots, c->hidden);
        l->dweight = floats(room, slots, 1);
        l->dlogits = floats(room, rows, c->experts);
        if (l->queue->memory) l->slots.device = take(room, 2 * slots, sizeof(uint32_t), "slots");
        if (l->queue->memory && l->queue->memory->experts)
            l->sorted_slots =
                take(room, l->queue->memory->experts->slots_bytes(l->queue, slots, c->experts), 1, "slots");
    }
    for (size_t i = 0; l->narrow && i < sizeof l->rounded / sizeof *l->rounded; i++)
        l->rounded[i] =
            take(room, slots * rounded_stride(l->graph), sizeof(uint16_t), "activations of training");
    const struct walsh_attention_shape shape = attention_shape(c, NULL);
    l->scratch = floats(room, 1,
                        walsh_max(walsh_attention_scratch(&shape, rows),
                                  3 * walsh_lora_scratch(l->max_rank, slots, sites_of(c))));
}

/* What stays with the host. */
static void lists_of(struct room *room, struct walsh_layers *l)
{
    const struct walsh_config *c = &l->graph->config;
    l->sites = take(room, sites_of(c), sizeof *l->sites, "lists of linears");
    l->updates = take(room, sites_of(c), sizeof *l->updates, "lists of linears");
    if (c->experts == 0) return;
    const size_t slots = l->max_rows * slots_per_row(c);
    l->slots.begin = take(room, (size_t)c->experts + 1, sizeof(uint32_t), "slots");
    l->slots.row = take(room, slots, sizeof(uint32_t), "slots");
    l->slots.of_row = take(room, slots, sizeof(uint32_t), "slots");
    if (l->queue->memory) l->slots.index = take(room, slots, sizeof(int32_t), "slots");
}

static struct walsh_products_options products_options(const struct walsh_model_graph *graph,
                                                      const struct walsh_layers_options *o)
{
    return (struct walsh_products_options){.compute = o->compute,
                                           .strategy = o->strategy,
                                           .panels = o->panels,
                                           .max_rows = o->max_rows * slots_per_row(&graph->config)};
}

size_t walsh_layers_bytes(const struct walsh_model_graph *graph, const struct walsh_queue *queue,
                          const struct walsh_layers_options *options)
{
    struct walsh_layers l = {.graph = graph,
                             .queue = queue,
                             .max_rows = options->max_rows,
                             .max_rank = options->max_rank,
                             .narrow = options->narrow};
    struct room room = {.arena = NULL};
    buffers_of(&room, &l);
    lists_of(&room, &l);
    const struct walsh_products_options products = products_options(graph, options);
    return room.bytes + walsh_products_bytes(graph, queue, &products);
}

/* Sines of the positions of one sequence, negated. */
static enum walsh_status negate_sines(struct walsh_layers *l, const struct walsh_rope_table *table,
                                      size_t positions, float **out, struct walsh_error *err)
{
    const size_t n = walsh_min(positions, l->graph->config.max_positions) * (table->dim / 2);
    WALSH_TRY(walsh_queue_alloc(l->queue, n * sizeof **out, "sines", out, err));
    walsh_queue_copy(l->queue, *out, table->sine, n * sizeof **out);
    l->queue->ops->scale(l->queue, *out, -1, n);
    return WALSH_OK;
}

/* The buffers: in the arena, or in one block of a device. */
static enum walsh_status allocate(struct walsh_layers *l, struct walsh_error *err)
{
    struct room buffers = {.arena = &l->arena, .err = err}, lists = buffers;
    if (l->queue->memory) {
        struct room measured = {.arena = NULL};
        buffers_of(&measured, l);
        WALSH_TRY(
            walsh_queue_alloc(l->queue, measured.bytes, "activations of training", &l->device_block, err));
        buffers = (struct room){.device = l->device_block, .err = err};
    }
    buffers_of(&buffers, l);
    if (buffers.status == WALSH_OK) lists_of(&lists, l);
    return buffers.status != WALSH_OK ? buffers.status : lists.status;
}

enum walsh_status walsh_layers_open(const struct walsh_model_graph *graph, const struct walsh_queue *queue,
                                    const struct walsh_layers_options *options, struct walsh_layers *out,
                                    struct walsh_error *err)
{
    *out = (struct walsh_layers){.graph = graph,
                                 .queue = queue,
                                 .loras = options->loras,
                                 .max_rows = options->max_rows,
                                 .max_rank = options->max_rank,
                                 .narrow = options->narrow};
    const struct walsh_products_options products = products_options(graph, options);
    enum walsh_status status = allocate(out, err);
    if (status == WALSH_OK) status = negate_sines(out, &graph->rope, options->max_rows, &out->sine[0], err);
    if (status == WALSH_OK && graph->config.has_local_rope)
        status = negate_sines(out, &graph->local_rope, options->max_rows, &out->sine[1], err);
    if (status == WALSH_OK) status = walsh_products_open(graph, queue, &products, &out->products, err);
    if (status != WALSH_OK) walsh_layers_close(out);
    return status;
}

void walsh_layers_close(struct walsh_layers *l)
{
    walsh_products_close(&l->products);
    for (int i = 0; i < 2; i++) walsh_queue_free(l->queue, l->sine[i]);
    if (l->device_block) walsh_queue_free(l->queue, l->device_block);
    walsh_arena_close(&l->arena);
    *l = (struct walsh_layers){0};
}

/* --- pieces that dense layers and experts share --- */

/* The updates of the sites' linears; returns how many there are. */
static size_t updates_of(const struct walsh_layers *l, const struct walsh_frozen_site *sites, size_t count)
{
    size_t used = 0;
    for (size_t i = 0; i < count; i++) {
        struct walsh_lora_site *to = &l->updates[i];
        *to =
            (struct walsh_lora_site){.count = sites[i].count, .begin = sites[i].begin, .rows = sites[i].rows};
        for (size_t c = 0; c < sites[i].count; c++) {
            const struct walsh_frozen_call *call = &sites[i].calls[c];
            const struct walsh_lora *lora = l->loras[call->linear->index];
            to->calls[c] = (struct walsh_lora_call){
                .lora = lora, .y = call->y, .ldy = call->ldy, .dy = call->rows, .ld_dy = call->ld_rows};
            used += lora != NULL;
        }
    }
    return used;
}

/* Where the rows go that the linears of a list read: to the tape, where they are rounded there, and in f32 to `y` for whom
 * takes nothing else. */
static struct walsh_row_output input_of(const struct walsh_layers *l, const struct walsh_tape *tape,
                                        enum walsh_tape_list list, float *y,
                                        const struct walsh_linear *const linears[], size_t count)
{
    const size_t n = linears[0]->in;
    struct walsh_row_output to = {.y = y, .ldy = n};
    if (!l->narrow) return to;
    to.rounded = tape->inputs[list];
    to.ld_rounded = walsh_activations_stride(n);
    bool taken = true;
    for (size_t i = 0; i < count; i++)
        taken = taken && walsh_products_take_rows(&l->products, linears[i], false);
    if (taken) to.y = NULL;
    return to;
}

/* The same for what comes back to call number `call` of a list. */
static struct walsh_row_output gradient_of(const struct walsh_layers *l, size_t call, float *y,
                                           const struct walsh_linear *linear)
{
    struct walsh_row_output to = {.y = y, .ldy = linear->out};
    if (!l->narrow) return to;
    to.rounded = l->rounded[call];
    to.ld_rounded = walsh_activations_stride(linear->out);
    if (walsh_products_take_rows(&l->products, linear, true)) to.y = NULL;
    return to;
}

void walsh_train_round_input(const struct walsh_layers *l, const struct walsh_tape *tape,
                             enum walsh_tape_list list, const float *x, size_t rows, size_t n)
{
    const struct walsh_row_output to = {.rounded = tape->inputs[list],
                                        .ld_rounded = walsh_activations_stride(n)};
    if (l->narrow) walsh_rows_round(l->queue, &to, x, n, rows, n);
}

void walsh_train_round_gradient(const struct walsh_layers *l, const float *d, size_t rows)
{
    const size_t n = l->graph->config.hidden;
    const struct walsh_row_output to = {.rounded = l->rounded[0], .ld_rounded = walsh_activations_stride(n)};
    if (l->narrow) walsh_rows_round(l->queue, &to, d, n, rows, n);
}

static size_t rows_of(const struct walsh_frozen_site *sites, size_t count)
{
    return sites[count - 1].begin + sites[count - 1].rows;
}

/* The inputs of all sites, as the tape has them or will have them. */
static void name_inputs(struct walsh_frozen_site *sites, size_t count, const uint16_t *rows)
{
    const size_t stride = walsh_activations_stride(sites[0].calls[0].linear->in);
    for (size_t i = 0; i < count; i++) {
        sites[i].inputs = rows + sites[i].begin * stride;
        sites[i].ld_rows = stride;
    }
}

/* What comes back to each call, rounded, unless its caller has seen to that. */
static void round_gradients(const struct walsh_layers *l, struct walsh_frozen_site *sites, size_t count)
{
    for (size_t c = 0; c < sites[0].count; c++) {
        const struct walsh_frozen_call *call = &sites[0].calls[c];
        const size_t stride = walsh_activations_stride(call->linear->out);
        const struct walsh_row_output to = {.rounded = l->rounded[c], .ld_rounded = stride};
        if (!call->rows)
            walsh_rows_round(l->queue, &to, call->y - sites[0].begin * call->ldy, call->ldy,
                             rows_of(sites, count), call->linear->out);
        for (size_t i = 0; i < count; i++) {
            sites[i].calls[c].rows = l->rounded[c] + sites[i].begin * stride;
            sites[i].calls[c].ld_rows = stride;
        }
    }
}

void walsh_join_updates(struct walsh_frozen_site *sites, const struct walsh_lora_site *updates, size_t count,
                        bool back)
{
    for (size_t i = 0; i < count; i++)
        for (size_t c = 0; c < sites[i].count; c++) {
            const struct walsh_lora_call *call = &updates[i].calls[c];
            const struct walsh_lora *lora = call->lora;
            bool first = lora != NULL;
            for (size_t d = 0; back && first && d < c; d++)
                first = !updates[i].calls[d].lora || updates[i].calls[d].lora->a != lora->a;
            if (!first) continue;
            sites[i].calls[c].update = (struct walsh_frozen_update){
                .matrix = back ? walsh_lora_matrix(lora->a_pairs, lora->rank, lora->in)
                               : walsh_lora_matrix(lora->b_pairs, lora->rank, lora->out),
                .inner = call->inner,
                .rank = lora->rank,
                .ld = walsh_lora_inner_width(lora->rank)};
        }
}

void walsh_train_linears(struct walsh_layers *l, struct walsh_frozen_site *sites, size_t count,
                         const float *x, size_t ldx, struct walsh_tape *tape, enum walsh_tape_list list)
{
    if (count == 0) return;
    const bool updated = updates_of(l, sites, count) > 0;
    if (l->narrow) name_inputs(sites, count, tape->inputs[list]);
    if (updated && l->narrow) {
        walsh_lora_inner(l->queue, l->updates, count, tape->inputs[list], sites[0].ld_rows, tape->inner[list],
                         l->scratch);
        walsh_join_updates(sites, l->updates, count, false);
    }
    walsh_frozen_forward(&l->products, sites, count, x, ldx);
    if (updated && !l->narrow) walsh_lora_forward(l->queue, l->updates, count, x, ldx, l->scratch);
}

void walsh_train_linears_backward(struct walsh_layers *l, struct walsh_frozen_site *sites, size_t count,
                                  const float *x, size_t ldx, float *dx, size_t lddx, struct walsh_tape *tape,
                                  enum walsh_tape_list list)
{
    if (count == 0) return;
    if (l->narrow) round_gradients(l, sites, count);
    const bool updated = updates_of(l, sites, count) > 0;
    if (updated && l->narrow) {
        walsh_lora_inner_backward(l->queue, l->updates, count, tape->inner[list], l->scratch);
        walsh_join_updates(sites, l->updates, count, true);
    }
    if (dx) walsh_frozen_backward(&l->products, sites, count, dx, lddx, false);
    if (!updated) return;
    if (!l->narrow) {
        walsh_lora_backward(l->queue, l->updates, count, x, ldx, dx, lddx, l->scratch);
        return;
    }
    name_inputs(sites, count, tape->inputs[list]);
    walsh_lora_gradients(l->queue, l->updates, count, tape->inputs[list], sites[0].ld_rows);
}

void walsh_train_gate(struct walsh_layers *l, const struct walsh_tape *tape,
                      const struct walsh_row_output *to, size_t slots, size_t n)
{
    walsh_rows_gate(l->queue, to, &l->graph->config, tape->gate, tape->up, slots, n);
}

static void norm(const struct walsh_layers *l, float *y, const float *x, const float *weight, size_t rows,
                 size_t n)
{
    const struct walsh_queue *q = l->queue;
    q->ops->rms_norm(q, y, n, x, n, weight, rows, n, (float)l->graph->config.rms_epsilon);
}

static void norm_back(const struct walsh_layers *l, float *dx, const float *dy, const float *x,
                      const float *weight, size_t rows, size_t n, bool add)
{
    walsh_rms_norm_backward(l->queue, dx, n, dy, n, x, n, weight, rows, n,
                            (float)l->graph->config.rms_epsilon, add);
}

struct sum {
    const struct walsh_kernels *kernels;
    float *y;
    const float *x, *d;
    size_t n;
};

#define SUM_ELEMENTS 8192 /* of a piece */
#define SUM_PART 2048     /* which the L1 holds three times */

static void sum_pieces(void *argument, size_t begin, size_t end, unsigned worker)
{
    (void)worker;
    const struct sum *t = argument;
    for (size_t at = begin * SUM_ELEMENTS; at < walsh_min(end * SUM_ELEMENTS, t->n); at += SUM_PART) {
        const size_t n = walsh_min(SUM_PART, t->n - at);
        memcpy(t->y + at, t->x + at, n * sizeof *t->y);
        t->kernels->add_f32(t->y + at, t->d + at, n);
    }
}

/* y = x + d. */
static void sum_of(const struct walsh_layers *l, float *y, const float *x, const float *d, size_t n)
{
    if (walsh_train_device(l->queue)) {
        l->queue->ops->train->add_rows(l->queue, y, n, x, n, d, n, 1, n);
        return;
    }
    struct sum t = {l->queue->kernels, y, x, d, n};
    walsh_pool_run_near(l->queue->pool, walsh_div_up(n, SUM_ELEMENTS), 1, sum_pieces, &t);
}

/* to = the norm of x, or of *sum = x + d. */
static void norm_into(const struct walsh_layers *l, const struct walsh_row_output *to, float *sum,
                      const float *x, const float *d, const float *weight, size_t rows)
{
    const struct walsh_config *c = &l->graph->config;
    walsh_rows_norm(l->queue, to, sum, x, d, weight, rows, c->hidden, (float)c->rms_epsilon);
}

/* to = the norm that a layer begins with, of x or, with `middle`, of x = middle + what the layer before added to that. */
static void input_norm(const struct walsh_layers *l, const struct walsh_row_output *to, float *x,
                       const float *middle, const struct walsh_layer *layer, size_t rows)
{
    norm_into(l, to, x, middle ? middle : x, middle ? l->delta : NULL, layer->input_norm, rows);
}

/* d += what comes back through a norm of x, kept rounded as what comes back to the next linear. */
static void add_norm_back(const struct walsh_layers *l, float *d, const float *x, const float *weight,
                          size_t rows)
{
    const struct walsh_config *c = &l->graph->config;
    walsh_rows_norm_backward(l->queue, l->narrow ? l->rounded[0] : NULL, walsh_activations_stride(c->hidden),
                             d, l->dnormed, x, weight, rows, c->hidden, (float)c->rms_epsilon);
}

static bool attention_is_narrow(const struct walsh_layers *l, const struct walsh_attention_shape *shape)
{
    return l->products.compute == WALSH_ACTIVATION_BF16 && walsh_attention_narrow(l->queue, shape);
}

/* --- forward --- */

static void attention_forward(struct walsh_layers *l, const struct walsh_layer *layer,
                              const struct walsh_train_rows *rows, float *x, const float *middle,
                              struct walsh_tape *t)
{
    const struct walsh_config *c = &l->graph->config;
    const struct walsh_queue *q = l->queue;
    const size_t n = rows->count, q_width = (size_t)c->heads * c->head_dim,
                 kv_width = (size_t)c->kv_heads * c->head_dim;
    const struct walsh_attention_shape shape = attention_shape(c, layer);
    const struct walsh_row_output input =
        input_of(l, t, WALSH_LIST_QKV, l->normed,
                 (const struct walsh_linear *const[]){&layer->q, &layer->k, &layer->v}, 3);
    input_norm(l, &input, x, middle, layer, n);
    struct walsh_frozen_site projections = {
        .calls = {walsh_frozen(&layer->q, t->raw_query ? t->raw_query : t->query, q_width),
                  walsh_frozen(&layer->k, t->raw_key ? t->raw_key : t->key, kv_width),
                  walsh_frozen(&layer->v, t->value, kv_width)},
        .count = 3,
        .rows = n};
    walsh_train_linears(l, &projections, 1, l->normed, c->hidden, t, WALSH_LIST_QKV);
    if (t->raw_query) norm(l, t->query, t->raw_query, layer->q_norm, n * c->heads, c->head_dim);
    if (t->raw_key) norm(l, t->key, t->raw_key, layer->k_norm, n * c->kv_heads, c->head_dim);
    if (layer->rope) {
        const struct walsh_rope_table *r = layer->rope;
        q->ops->rope(q, t->query, q_width, rows->positions, n, c->heads, c->head_dim, r->dim, r->cosine,
                     r->sine);
        q->ops->rope(q, t->key, kv_width, rows->positions, n, c->kv_heads, c->head_dim, r->dim, r->cosine,
                     r->sine);
    }
    walsh_attention_forward(q, &shape, &rows->documents, attention_is_narrow(l, &shape), t->query, t->key,
                            t->value, t->attention, t->lse, l->scratch);
    struct walsh_frozen_site output = {
        .calls = {walsh_frozen(&layer->o, t->attention_delta ? t->attention_delta : l->delta, c->hidden)},
        .count = 1,
        .rows = n};
    walsh_train_round_input(l, t, WALSH_LIST_OUT, t->attention, n, q_width);
    walsh_train_linears(l, &output, 1, t->attention, q_width, t, WALSH_LIST_OUT);
    if (t->attention_delta) norm(l, l->delta, t->attention_delta, layer->attention_output_norm, n, c->hidden);
}

static struct walsh_conv_shape conv_shape(const struct walsh_layers *l, const struct walsh_layer *layer)
{
    const struct walsh_config *c = &l->graph->config;
    return (struct walsh_conv_shape){c->conv_taps, c->hidden, layer->conv_weight, layer->conv_bias};
}

static void conv_forward(struct walsh_layers *l, const struct walsh_layer *layer,
                         const struct walsh_train_rows *rows, float *x, const float *middle,
                         struct walsh_tape *t)
{
    const size_t n = rows->count, width = l->graph->config.hidden;
    const struct walsh_conv_shape shape = conv_shape(l, layer);
    const struct walsh_row_output normed =
        input_of(l, t, WALSH_LIST_QKV, l->normed, (const struct walsh_linear *const[]){&layer->q}, 1);
    input_norm(l, &normed, x, middle, layer, n);
    struct walsh_frozen_site input = {
        .calls = {walsh_frozen(&layer->q, t->mixed, 3 * width)}, .count = 1, .rows = n};
    walsh_train_linears(l, &input, 1, l->normed, width, t, WALSH_LIST_QKV);
    walsh_short_conv_forward(l->queue, &shape, &rows->documents, t->mixed, t->attention);
    struct walsh_frozen_site output = {
        .calls = {walsh_frozen(&layer->o, l->delta, width)}, .count = 1, .rows = n};
    walsh_train_round_input(l, t, WALSH_LIST_OUT, t->attention, n, width);
    walsh_train_linears(l, &output, 1, t->attention, width, t, WALSH_LIST_OUT);
}

void walsh_train_layer_forward(struct walsh_layers *l, const struct walsh_layer *layer,
                               const struct walsh_train_rows *rows, float *x, const float *middle,
                               struct walsh_tape *t)
{
    const struct walsh_config *c = &l->graph->config;
    const size_t n = rows->count, wide = wide_of(c);
    float *delta = t->mlp_delta ? t->mlp_delta : l->delta;
    if (layer->conv_weight)
        conv_forward(l, layer, rows, x, middle, t);
    else
        attention_forward(l, layer, rows, x, middle, t);
    if (layer->experts) {
        const struct walsh_row_output all = {.y = l->normed, .ldy = c->hidden};
        norm_into(l, &all, t->middle, x, l->delta, layer->mlp_norm, n);
        walsh_train_experts_forward(l, layer, n, l->normed, t, delta);
    } else {
        const struct walsh_row_output input = input_of(
                                          l, t, WALSH_LIST_GATE_UP, l->normed,
                                          (const struct walsh_linear *const[]){&layer->gate, &layer->up}, 2),
                                      gated = input_of(l, t, WALSH_LIST_DOWN, l->wide,
                                                       (const struct walsh_linear *const[]){&layer->down}, 1);
        norm_into(l, &input, t->middle, x, l->delta, layer->mlp_norm, n);
        struct walsh_frozen_site gate_up = {
            .calls = {walsh_frozen(&layer->gate, t->gate, wide), walsh_frozen(&layer->up, t->up, wide)},
            .count = 2,
            .rows = n};
        walsh_train_linears(l, &gate_up, 1, l->normed, c->hidden, t, WALSH_LIST_GATE_UP);
        walsh_train_gate(l, t, &gated, n, wide);
        struct walsh_frozen_site down = {
            .calls = {walsh_frozen(&layer->down, delta, c->hidden)}, .count = 1, .rows = n};
        walsh_train_linears(l, &down, 1, l->wide, wide, t, WALSH_LIST_DOWN);
    }
    if (t->mlp_delta) norm(l, l->delta, t->mlp_delta, layer->mlp_output_norm, n, c->hidden);
}

void walsh_train_layer_sum(const struct walsh_layers *l, const struct walsh_tape *tape, size_t rows, float *y)
{
    sum_of(l, y, tape->middle, l->delta, rows * l->graph->config.hidden);
}

/* --- backward --- */

/* d becomes the gradient of tape->middle. */
static void mlp_backward(struct walsh_layers *l, const struct walsh_layer *layer, size_t n,
                         struct walsh_tape *t, float *d)
{
    const struct walsh_config *c = &l->graph->config;
    const size_t wide = wide_of(c);
    float *dy = d;
    if (t->mlp_delta) {
        dy = l->delta;
        norm_back(l, dy, d, t->mlp_delta, layer->mlp_output_norm, n, c->hidden, false);
    }
    if (!l->narrow) norm(l, l->normed, t->middle, layer->mlp_norm, n, c->hidden);
    if (layer->experts) {
        walsh_train_experts_backward(l, layer, n, l->normed, t, dy, l->dnormed);
    } else {
        struct walsh_frozen_site down = {
            .calls = {walsh_frozen(&layer->down, dy, c->hidden)}, .count = 1, .rows = n};
        if (l->narrow && dy == d) down.calls[0].rows = l->rounded[0];
        if (!l->narrow) {
            const struct walsh_row_output gated = {.y = l->wide, .ldy = wide};
            walsh_train_gate(l, t, &gated, n, wide);
        }
        walsh_train_linears_backward(l, &down, 1, l->wide, wide, l->dgate, wide, t, WALSH_LIST_DOWN);
        const struct walsh_row_output dgate = gradient_of(l, 0, l->dgate, &layer->gate),
                                      dup = gradient_of(l, 1, l->dup, &layer->up);
        walsh_rows_gate_backward(l->queue, &dgate, &dup, c, l->dgate, t->gate, t->up, n, wide);
        struct walsh_frozen_site gate_up = {
            .calls = {walsh_frozen(&layer->gate, l->dgate, wide), walsh_frozen(&layer->up, l->dup, wide)},
            .count = 2,
            .rows = n};
        gate_up.calls[0].rows = dgate.rounded;
        gate_up.calls[1].rows = dup.rounded;
        walsh_train_linears_backward(l, &gate_up, 1, l->normed, c->hidden, l->dnormed, c->hidden, t,
                                     WALSH_LIST_GATE_UP);
    }
    add_norm_back(l, d, t->middle, layer->mlp_norm, n);
}

static const float *negated_sine(const struct walsh_layers *l, const struct walsh_layer *layer)
{
    return l->sine[layer->rope == &l->graph->local_rope];
}

/* dquery and dkey of what attention read become those of q's and k's outputs. */
static void position_backward(struct walsh_layers *l, const struct walsh_layer *layer,
                              const struct walsh_train_rows *rows, const struct walsh_tape *t)
{
    const struct walsh_config *c = &l->graph->config;
    const size_t n = rows->count, q_width = (size_t)c->heads * c->head_dim,
                 kv_width = (size_t)c->kv_heads * c->head_dim;
    if (layer->rope) {
        const struct walsh_rope_table *r = layer->rope;
        const float *sine = negated_sine(l, layer);
        walsh_rope_backward(l->queue, l->dquery, q_width, rows->positions, n, c->heads, c->head_dim, r->dim,
                            r->cosine, sine);
        walsh_rope_backward(l->queue, l->dkey, kv_width, rows->positions, n, c->kv_heads, c->head_dim, r->dim,
                            r->cosine, sine);
    }
    if (t->raw_query)
        norm_back(l, l->dquery, l->dquery, t->raw_query, layer->q_norm, n * c->heads, c->head_dim, false);
    if (t->raw_key)
        norm_back(l, l->dkey, l->dkey, t->raw_key, layer->k_norm, n * c->kv_heads, c->head_dim, false);
}

static void conv_backward(struct walsh_layers *l, const struct walsh_layer *layer,
                          const struct walsh_train_rows *rows, const float *x, struct walsh_tape *t, float *d,
                          bool last)
{
    const size_t n = rows->count, width = l->graph->config.hidden;
    const struct walsh_conv_shape shape = conv_shape(l, layer);
    struct walsh_frozen_site output = {.calls = {walsh_frozen(&layer->o, d, width)}, .count = 1, .rows = n};
    if (l->narrow) output.calls[0].rows = l->rounded[0];
    walsh_train_linears_backward(l, &output, 1, t->attention, width, l->dattention, width, t, WALSH_LIST_OUT);
    walsh_short_conv_backward(l->queue, &shape, &rows->documents, t->mixed, l->dattention, l->dmixed);
    if (!l->narrow) norm(l, l->normed, x, layer->input_norm, n, width);
    struct walsh_frozen_site input = {
        .calls = {walsh_frozen(&layer->q, l->dmixed, 3 * width)}, .count = 1, .rows = n};
    walsh_train_linears_backward(l, &input, 1, l->normed, width, last ? NULL : l->dnormed, width, t,
                                 WALSH_LIST_QKV);
    if (!last) add_norm_back(l, d, x, layer->input_norm, n);
}

/* d, the gradient of tape->middle, becomes that of x. */
static void attention_backward(struct walsh_layers *l, const struct walsh_layer *layer,
                               const struct walsh_train_rows *rows, const float *x, struct walsh_tape *t,
                               float *d, bool last)
{
    const struct walsh_config *c = &l->graph->config;
    const size_t n = rows->count, q_width = (size_t)c->heads * c->head_dim,
                 kv_width = (size_t)c->kv_heads * c->head_dim;
    const struct walsh_attention_shape shape = attention_shape(c, layer);
    float *dy = d;
    if (t->attention_delta) {
        dy = l->delta;
        norm_back(l, dy, d, t->attention_delta, layer->attention_output_norm, n, c->hidden, false);
    }
    struct walsh_frozen_site output = {
        .calls = {walsh_frozen(&layer->o, dy, c->hidden)}, .count = 1, .rows = n};
    if (l->narrow && dy == d) output.calls[0].rows = l->rounded[0];
    walsh_train_linears_backward(l, &output, 1, t->attention, q_width, l->dattention, q_width, t,
                                 WALSH_LIST_OUT);
    walsh_attention_backward(l->queue, &shape, &rows->documents, attention_is_narrow(l, &shape), t->query,
                             t->key, t->value, t->attention, t->lse, l->dattention, l->dquery, l->dkey,
                             l->dvalue, l->scratch);
    position_backward(l, layer, rows, t);
    if (!l->narrow) norm(l, l->normed, x, layer->input_norm, n, c->hidden);
    struct walsh_frozen_site projections = {.calls = {walsh_frozen(&layer->q, l->dquery, q_width),
                                                      walsh_frozen(&layer->k, l->dkey, kv_width),
                                                      walsh_frozen(&layer->v, l->dvalue, kv_width)},
                                            .count = 3,
                                            .rows = n};
    walsh_train_linears_backward(l, &projections, 1, l->normed, c->hidden, last ? NULL : l->dnormed,
                                 c->hidden, t, WALSH_LIST_QKV);
    if (!last) add_norm_back(l, d, x, layer->input_norm, n);
}

void walsh_train_layer_backward(struct walsh_layers *l, const struct walsh_layer *layer,
                                const struct walsh_train_rows *rows, const float *x, struct walsh_tape *t,
                                float *d, bool last)
{
    mlp_backward(l, layer, rows->count, t, d);
    if (layer->conv_weight)
        conv_backward(l, layer, rows, x, t, d, last);
    else
        attention_backward(l, layer, rows, x, t, d, last);
}
