/* A graph on a device: everything that ops read is copied there, and the graph's pointers then name the
 * copies. */
#include <string.h>

#include "base/machine.h"
#include "kernels/device.h"
#include "model/adapter.h"
#include "model/build.h"

#define SHARED 8 /* vectors of the last linears that a further one may share */

struct upload {
    struct walsh_model_graph *graph;
    const struct walsh_queue *queue;
    size_t capacity; /* of graph->device_blocks */
    struct {
        const float *host, *device;
    } signs[SHARED]; /* equal signs are one vector in the graph, and stay one */
    size_t next;
    struct walsh_error *err;
};

static void keep(struct upload *u, const void *block)
{
    if (block) u->graph->device_blocks[u->graph->device_block_count++] = (void *)(uintptr_t)block;
}

/* *values: [n] f32. NULL stays NULL. */
static enum walsh_status upload_vector(struct upload *u, const float **values, size_t n, const char *what)
{
    if (!*values) return WALSH_OK;
    float *device;
    WALSH_TRY(walsh_queue_alloc(u->queue, n * sizeof *device, what, &device, u->err));
    keep(u, device);
    WALSH_TRY(walsh_queue_upload(u->queue, device, *values, n * sizeof *device, u->err));
    *values = device;
    return WALSH_OK;
}

static enum walsh_status upload_weights(struct upload *u, struct walsh_weights *weights, const char *what)
{
    struct walsh_weights device;
    WALSH_TRY(u->queue->memory->upload_weights(u->queue, weights, what, &device, u->err));
    keep(u, device.data);
    keep(u, device.scales);
    keep(u, device.zeros);
    for (unsigned k = 0; k < device.stages; k++) keep(u, device.stage[k].data);
    *weights = device;
    return WALSH_OK;
}

static enum walsh_status upload_rotation(struct upload *u, struct walsh_rotation *rotation, const char *what)
{
    if (rotation->kind == WALSH_ROTATION_NONE) return WALSH_OK;
    for (size_t i = 0; i < SHARED; i++)
        if (u->signs[i].host == rotation->signs) {
            rotation->signs = u->signs[i].device;
            return WALSH_OK;
        }
    struct walsh_rotation device;
    WALSH_TRY(u->queue->memory->upload_rotation(u->queue, rotation, what, &device, u->err));
    keep(u, device.signs);
    u->signs[u->next].host = rotation->signs;
    u->signs[u->next].device = device.signs;
    u->next = (u->next + 1) % SHARED;
    *rotation = device;
    return WALSH_OK;
}

static enum walsh_status upload_linear(struct upload *u, struct walsh_linear *linear)
{
    WALSH_TRY(upload_weights(u, &linear->weights, linear->name));
    linear->host_in_signs = linear->in_rotation.signs; /* the graph's arena stays */
    linear->host_out_signs = linear->out_rotation.signs;
    WALSH_TRY(upload_rotation(u, &linear->in_rotation, linear->name));
    WALSH_TRY(upload_rotation(u, &linear->out_rotation, linear->name));
    return upload_vector(u, &linear->bias, linear->out, linear->name);
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
    WALSH_TRY(upload_vector(u, &layer->input_norm, c->hidden, "a norm"));
    WALSH_TRY(upload_vector(u, &layer->mlp_norm, c->hidden, "a norm"));
    WALSH_TRY(upload_vector(u, &layer->attention_output_norm, c->hidden, "a norm"));
    WALSH_TRY(upload_vector(u, &layer->mlp_output_norm, c->hidden, "a norm"));
    WALSH_TRY(upload_vector(u, &layer->sinks, c->heads, "attention sinks"));
    WALSH_TRY(upload_vector(u, &layer->q_norm, c->head_dim, "a norm"));
    return upload_vector(u, &layer->k_norm, c->head_dim, "a norm");
}

static enum walsh_status upload_rope(struct upload *u, struct walsh_rope_table *rope)
{
    const size_t angles = (size_t)rope->rows * (rope->dim / 2);
    const float *cosine = rope->cosine, *sine = rope->sine;
    WALSH_TRY(upload_vector(u, &cosine, angles, "the rope tables"));
    WALSH_TRY(upload_vector(u, &sine, angles, "the rope tables"));
    rope->cosine = (float *)(uintptr_t)cosine;
    rope->sine = (float *)(uintptr_t)sine;
    return WALSH_OK;
}

/* The embedding, the last norm, the head and the tables of positions. */
static enum walsh_status upload_ends(struct upload *u)
{
    struct walsh_model_graph *g = u->graph;
    const bool tied = g->head.weights.data && g->head.weights.data == g->embedding.data;
    WALSH_TRY(upload_weights(u, &g->embedding, "the embedding"));
    WALSH_TRY(upload_vector(u, &g->final_norm, g->config.hidden, "a norm"));
    if (tied)
        g->head.weights = g->embedding;
    else
        WALSH_TRY(upload_linear(u, &g->head));
    WALSH_TRY(upload_rope(u, &g->rope));
    return upload_rope(u, &g->local_rope);
}

/* Refused before anything is copied: what has no kernels, and what does not fit. */
static enum walsh_status check(const struct upload *u)
{
    const struct walsh_model_graph *g = u->graph;
    if (g->config.conv_taps)
        return walsh_fail(u->err, WALSH_E_UNSUPPORTED, "%s: short convolutions run on the CPU only",
                          g->checkpoint.directory ? g->checkpoint.directory : "shape");
    if (g->config.architecture == WALSH_ARCH_LALAMO)
        return walsh_fail(u->err, WALSH_E_UNSUPPORTED, "%s: checkpoints of lalamo run on the CPU only",
                          g->checkpoint.directory);
    if (g->rope.short_positions)
        return walsh_fail(u->err, WALSH_E_UNSUPPORTED, "%s: longrope runs on the CPU only",
                          g->checkpoint.directory ? g->checkpoint.directory : "shape");
    double bytes = 4.0 * g->config.max_positions * (g->config.head_dim / 2) * sizeof(float);
    for (size_t i = 0; i < g->tensor_count; i++) {
        const struct walsh_graph_tensor *t = &g->tensors[i];
        if (t->weights && t->weights == &g->head.weights && g->config.tied_embeddings) continue;
        bytes +=
            t->weights ? (double)walsh_weights_bytes(t->weights) : (double)t->rows * t->cols * sizeof(float);
    }
    size_t available, total;
    u->queue->memory->figures(u->queue, &available, &total);
    if (bytes <= (double)available) return WALSH_OK;
    return walsh_fail(u->err, WALSH_E_MEMORY,
                      "the model takes %.2f GB on the device, %.2f of %.2f GB are free", bytes / 1e9,
                      (double)available / 1e9, (double)total / 1e9);
}

enum walsh_status walsh_graph_upload(struct walsh_model_graph *graph, const struct walsh_queue *queue,
                                     struct walsh_error *err)
{
    if (!queue->memory) return WALSH_OK;
    struct upload u = {.graph = graph, .queue = queue, .err = err};
    WALSH_TRY(check(&u));
    /* of a layer: linears with stages, two vectors of signs and a bias each, 6 norms and the sinks */
    const size_t linears = 7 + 1 + 3 * (size_t)graph->config.experts; /* of a layer, with the router */
    u.capacity =
        graph->config.layers * (linears * (WALSH_MAX_STAGES + 4) + 7) + 2 * (WALSH_MAX_STAGES + 4) + 8;
    WALSH_TRY(walsh_alloc(u.capacity, sizeof *graph->device_blocks, "the model's device memory",
                          &graph->device_blocks, err));
    graph->device = queue;
    WALSH_TRY(upload_ends(&u));
    for (uint32_t i = 0; i < graph->config.layers; i++) WALSH_TRY(upload_layer(&u, &graph->layers[i]));
    return queue->memory->synchronize(queue, err);
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
