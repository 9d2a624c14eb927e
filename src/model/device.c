/* A graph on a device: everything that ops read is copied there, and the graph's pointers then name the
 * copies. */
#include <string.h>

#include "base/machine.h"
#include "kernels/device.h"
#include "model/adapter.h"
#include "model/build.h"

#define SHARED 8      /* vectors of the last linears that a further one may share */
#define ALIGNMENT 256 /* of what is placed in the graph's device memory */

/* One walk over the graph is done twice: it counts the bytes, and, when there is room for them all, fills it. */
struct upload {
    struct walsh_model_graph *graph;
    const struct walsh_queue *queue;
    uint8_t *room; /* NULL: count */
    size_t bytes;  /* so far */
    struct {
        const float *host, *device;
    } signs[SHARED]; /* equal signs are one vector in the graph, and stay one */
    size_t next;
    struct {
        const void *host, *device;
    } own; /* the last A of a low-rank part */
    struct walsh_error *err;
};

/* The place of the next `bytes`. */
static enum walsh_status take(struct upload *u, size_t bytes, void **out)
{
    *out = u->room ? u->room + u->bytes : NULL;
    if (bytes <= SIZE_MAX - ALIGNMENT && walsh_add(u->bytes, walsh_round_up(bytes, ALIGNMENT), &u->bytes))
        return WALSH_OK;
    return walsh_fail(u->err, WALSH_E_MEMORY, "the model's device memory does not fit a size");
}

/* *values: [n] f32. NULL stays NULL. */
static enum walsh_status upload_vector(struct upload *u, const float **values, size_t n)
{
    void *device;
    if (!*values) return WALSH_OK;
    WALSH_TRY(take(u, n * sizeof **values, &device));
    if (!u->room) return WALSH_OK;
    WALSH_TRY(walsh_queue_upload(u->queue, device, *values, n * sizeof **values, u->err));
    *values = device;
    return WALSH_OK;
}

static enum walsh_status upload_weights(struct upload *u, struct walsh_weights *weights, const char *what)
{
    void *device;
    if (weights->rows == 0) return WALSH_OK; /* a layer has experts instead */
    const size_t bytes = u->queue->memory->weights_bytes(u->queue, weights);
    if (bytes == 0)
        return walsh_fail(u->err, WALSH_E_UNSUPPORTED,
                          "%s: weights of format %s have no kernels on this device", what,
                          walsh_format_name(weights->format));
    WALSH_TRY(take(u, bytes, &device));
    if (!u->room) return WALSH_OK;
    struct walsh_weights placed;
    WALSH_TRY(u->queue->memory->place_weights(u->queue, weights, what, device, &placed, u->err));
    *weights = placed;
    return WALSH_OK;
}

static enum walsh_status upload_rotation(struct upload *u, struct walsh_rotation *rotation, const char *what)
{
    if (rotation->kind == WALSH_ROTATION_NONE) return WALSH_OK;
    const struct walsh_memory *memory = u->queue->memory;
    for (size_t i = 0; i < SHARED; i++)
        if (u->signs[i].host == rotation->signs) {
            if (u->room) rotation->signs = u->signs[i].device;
            return WALSH_OK;
        }
    size_t bytes;
    void *device;
    struct walsh_rotation placed = *rotation;
    WALSH_TRY(memory->rotation_bytes(u->queue, rotation, what, &bytes, u->err));
    WALSH_TRY(take(u, bytes, &device));
    if (u->room) WALSH_TRY(memory->place_rotation(u->queue, rotation, what, device, &placed, u->err));
    u->signs[u->next].host = rotation->signs;
    u->signs[u->next].device = placed.signs;
    u->next = (u->next + 1) % SHARED;
    *rotation = placed;
    return WALSH_OK;
}

/* The low-rank part of the weights themselves, whose A several linears share. */
static enum walsh_status upload_own(struct upload *u, const struct walsh_linear *linear)
{
    struct walsh_adapter_linear *own =
        (struct walsh_adapter_linear *)(uintptr_t)linear->own; /* of the graph's arena */
    if (!own) return WALSH_OK;
    const size_t element = own->storage == WALSH_FORMAT_F32 ? sizeof(float) : sizeof(uint16_t),
                 a = walsh_low_rank_a_size(own->rank, own->in) * element,
                 b = walsh_low_rank_b_size(own->storage, own->rank, own->out) * element;
    void *device;
    if (own->a != u->own.host) {
        WALSH_TRY(take(u, a, &device));
        if (u->room) WALSH_TRY(walsh_queue_upload(u->queue, device, own->a, a, u->err));
        u->own.host = own->a;
        u->own.device = device;
    }
    WALSH_TRY(take(u, b, &device));
    if (!u->room) return WALSH_OK;
    WALSH_TRY(walsh_queue_upload(u->queue, device, own->b, b, u->err));
    own->a = u->own.device;
    own->b = device;
    return WALSH_OK;
}

static enum walsh_status upload_linear(struct upload *u, struct walsh_linear *linear)
{
    WALSH_TRY(upload_weights(u, &linear->weights, linear->name));
    if (u->room) { /* the graph's arena stays */
        linear->host_in_signs = linear->in_rotation.signs;
        linear->host_out_signs = linear->out_rotation.signs;
    }
    WALSH_TRY(upload_rotation(u, &linear->in_rotation, linear->name));
    WALSH_TRY(upload_rotation(u, &linear->out_rotation, linear->name));
    WALSH_TRY(upload_own(u, linear));
    return upload_vector(u, &linear->bias, linear->out);
}

typedef const struct walsh_linear *linear_of(const struct walsh_expert *expert);
static const struct walsh_linear *gate_of(const struct walsh_expert *expert)
{
    return &expert->gate;
}
static const struct walsh_linear *up_of(const struct walsh_expert *expert)
{
    return &expert->up;
}
static const struct walsh_linear *down_of(const struct walsh_expert *expert)
{
    return &expert->down;
}

/* Do all experts have such a matrix of one size, as the ops over the router's answer know them? */
static bool fit_together(const struct upload *u, const struct walsh_layer *layer, linear_of *of)
{
    const struct walsh_linear *first = of(&layer->experts[0]);
    for (uint32_t e = 0; e < u->graph->config.experts; e++) {
        const struct walsh_linear *l = of(&layer->experts[e]);
        if (l->in_rotation.kind != WALSH_ROTATION_NONE || l->out_rotation.kind != WALSH_ROTATION_NONE ||
            l->own || l->weights.rows != first->weights.rows || l->weights.cols != first->weights.cols ||
            l->activation != first->activation || !l->bias != !first->bias ||
            !u->queue->memory->experts->fits(u->queue, &l->weights, WALSH_DECODE))
            return false;
    }
    return true;
}

static enum walsh_status upload_table(struct upload *u, const struct walsh_layer *layer, linear_of *of,
                                      struct walsh_expert_matrices *out)
{
    const struct walsh_expert_ops *ops = u->queue->memory->experts;
    const uint32_t experts = u->graph->config.experts;
    void *room;
    WALSH_TRY(take(u, ops->table_bytes(u->queue, experts), &room));
    if (!u->room) return WALSH_OK;
    const struct walsh_weights **weights;
    const float **biases;
    WALSH_TRY(walsh_alloc(experts, sizeof *weights, "the experts", &weights, u->err));
    enum walsh_status status = walsh_alloc(experts, sizeof *biases, "the experts", &biases, u->err);
    for (uint32_t e = 0; status == WALSH_OK && e < experts; e++) {
        weights[e] = &of(&layer->experts[e])->weights;
        biases[e] = of(&layer->experts[e])->bias;
    }
    if (status == WALSH_OK) {
        status = ops->place(u->queue, weights, biases[0] ? biases : NULL, experts, room, out, u->err);
        walsh_free((void *)biases);
    }
    walsh_free((void *)weights);
    return status;
}

/* Behind the experts themselves. */
static enum walsh_status upload_tables(struct upload *u, struct walsh_layer *layer)
{
    if (!layer->experts || !u->queue->memory->experts || !fit_together(u, layer, gate_of) ||
        !fit_together(u, layer, up_of) || !fit_together(u, layer, down_of))
        return WALSH_OK;
    WALSH_TRY(upload_table(u, layer, gate_of, &layer->all_gates));
    WALSH_TRY(upload_table(u, layer, up_of, &layer->all_ups));
    return upload_table(u, layer, down_of, &layer->all_downs);
}

static enum walsh_status upload_layer(struct upload *u, struct walsh_layer *layer)
{
    const struct walsh_config *c = &u->graph->config;
    struct walsh_linear *const linears[] = {&layer->q,    &layer->k,  &layer->v,   &layer->o,
                                            &layer->gate, &layer->up, &layer->down};
    for (size_t i = 0; i < sizeof linears / sizeof *linears; i++) WALSH_TRY(upload_linear(u, linears[i]));
    if (c->experts) WALSH_TRY(upload_linear(u, &layer->router));
    for (uint32_t e = 0; e < c->experts; e++) {
        WALSH_TRY(upload_linear(u, &layer->experts[e].gate));
        WALSH_TRY(upload_linear(u, &layer->experts[e].up));
        WALSH_TRY(upload_linear(u, &layer->experts[e].down));
    }
    WALSH_TRY(upload_tables(u, layer));
    WALSH_TRY(upload_vector(u, &layer->input_norm, c->hidden));
    WALSH_TRY(upload_vector(u, &layer->mlp_norm, c->hidden));
    WALSH_TRY(upload_vector(u, &layer->attention_output_norm, c->hidden));
    WALSH_TRY(upload_vector(u, &layer->mlp_output_norm, c->hidden));
    WALSH_TRY(upload_vector(u, &layer->sinks, c->heads));
    WALSH_TRY(upload_vector(u, &layer->conv_weight, (size_t)c->conv_taps * c->hidden));
    WALSH_TRY(upload_vector(u, &layer->conv_bias, c->hidden));
    WALSH_TRY(upload_vector(u, &layer->q_norm, c->head_dim));
    return upload_vector(u, &layer->k_norm, c->head_dim);
}

static enum walsh_status upload_rope(struct upload *u, struct walsh_rope_table *rope)
{
    const size_t angles = (size_t)rope->rows * (rope->dim / 2);
    const float *cosine = rope->cosine, *sine = rope->sine;
    WALSH_TRY(upload_vector(u, &cosine, angles));
    WALSH_TRY(upload_vector(u, &sine, angles));
    rope->cosine = (float *)(uintptr_t)cosine;
    rope->sine = (float *)(uintptr_t)sine;
    return WALSH_OK;
}

/* The embedding, the last norm, the head and the tables of positions. */
static enum walsh_status upload_ends(struct upload *u)
{
    struct walsh_model_graph *g = u->graph;
    const bool tied = g->config.tied_embeddings;
    WALSH_TRY(upload_weights(u, &g->embedding, "the embedding"));
    WALSH_TRY(upload_vector(u, &g->final_norm, g->config.hidden));
    if (!tied)
        WALSH_TRY(upload_linear(u, &g->head));
    else if (u->room)
        g->head.weights = g->embedding;
    WALSH_TRY(upload_rope(u, &g->rope));
    return upload_rope(u, &g->local_rope);
}

static enum walsh_status upload_graph(struct upload *u)
{
    WALSH_TRY(upload_ends(u));
    for (uint32_t i = 0; i < u->graph->config.layers; i++) WALSH_TRY(upload_layer(u, &u->graph->layers[i]));
    return WALSH_OK;
}

/* Refused before anything is copied: what has no kernels. */
static enum walsh_status check(const struct upload *u)
{
    const struct walsh_model_graph *g = u->graph;
    const char *where = g->checkpoint.directory ? g->checkpoint.directory : "shape";
    if (g->embedding.format >= WALSH_FORMAT_E8P)
        return walsh_fail(u->err, WALSH_E_UNSUPPORTED, "%s: an embedding of format %s runs on the CPU only",
                          where, walsh_format_name(g->embedding.format));
    return WALSH_OK;
}

/* One block for all of it, so that a model that does not fit is refused before the first byte is read. */
static enum walsh_status reserve(struct upload *u)
{
    struct walsh_model_graph *g = u->graph;
    size_t available, total;
    u->queue->memory->figures(u->queue, &available, &total);
    if (u->bytes > available)
        return walsh_fail(u->err, WALSH_E_MEMORY,
                          "%s: the model takes %.2f GB on the device, %.2f of %.2f GB are free",
                          g->checkpoint.directory ? g->checkpoint.directory : "shape", (double)u->bytes / 1e9,
                          (double)available / 1e9, (double)total / 1e9);
    WALSH_TRY(walsh_queue_alloc(u->queue, u->bytes, "the model", &g->device_memory, u->err));
    g->device = u->queue;
    g->device_bytes = u->bytes;
    return WALSH_OK;
}

enum walsh_status walsh_graph_upload(struct walsh_model_graph *graph, const struct walsh_queue *queue,
                                     struct walsh_error *err)
{
    if (!queue->memory) return WALSH_OK;
    struct upload count = {.graph = graph, .queue = queue, .err = err};
    WALSH_TRY(check(&count));
    WALSH_TRY(upload_graph(&count));
    WALSH_TRY(reserve(&count));
    struct upload fill = {.graph = graph, .queue = queue, .room = graph->device_memory, .err = err};
    const enum walsh_status status = upload_graph(&fill);
    if (status == WALSH_OK) return queue->memory->synchronize(queue, err);
    struct walsh_error later;
    (void)queue->memory->synchronize(queue, &later); /* what waits to be read reads the graph */
    return status;
}

static enum walsh_status upload_matrix(struct walsh_adapter *adapter, const void **matrix, size_t bytes,
                                       struct walsh_error *err)
{
    const struct walsh_queue *q = adapter->device;
    void *device;
    WALSH_TRY(walsh_queue_alloc(q, bytes, "an adapter", &device, err));
    adapter->device_blocks[adapter->device_block_count++] = device;
    WALSH_TRY(walsh_queue_upload(q, device, *matrix, bytes, err));
    *matrix = device;
    return WALSH_OK;
}

enum walsh_status walsh_adapter_upload(struct walsh_adapter *adapter, const struct walsh_queue *queue,
                                       struct walsh_error *err)
{
    if (!queue->memory || adapter->device) return WALSH_OK;
    WALSH_TRY(walsh_alloc(adapter->count, 2 * sizeof *adapter->device_blocks, "an adapter's device memory",
                          &adapter->device_blocks, err));
    adapter->device = queue;
    const void **shared; /* [count] the host's A of each update, for those that share it */
    WALSH_TRY(walsh_alloc(adapter->count, sizeof *shared, "an adapter's device memory", &shared, err));
    enum walsh_status status = WALSH_OK;
    for (size_t i = 0; i < adapter->count && status == WALSH_OK; i++) {
        struct walsh_adapter_linear *u = &adapter->updates[i];
        const size_t element = u->storage == WALSH_FORMAT_F32 ? sizeof(float) : sizeof(uint16_t);
        size_t same = 0;
        shared[i] = u->a;
        while (same < i && shared[same] != u->a) same++;
        if (same < i)
            u->a = adapter->updates[same].a;
        else
            status = upload_matrix(adapter, &u->a, walsh_low_rank_a_size(u->rank, u->in) * element, err);
        if (status == WALSH_OK)
            status = upload_matrix(adapter, &u->b,
                                   walsh_low_rank_b_size(u->storage, u->rank, u->out) * element, err);
    }
    walsh_free((void *)shared);
    return status;
}
