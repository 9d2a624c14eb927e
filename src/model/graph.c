/* Graphs from a checkpoint. */
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/file.h"
#include "checkpoint/architectures.h"
#include "kernels/device.h"
#include "model/build.h"
#include "model/lalamo.h"

#define FLOAT_DTYPES (1u << WALSH_F32 | 1u << WALSH_F16 | 1u << WALSH_BF16)

struct checkpoint_source {
    struct walsh_source source;
    struct walsh_model_graph *graph;
    const struct walsh_load_options *options;
    struct walsh_pool *pool;
    bool stored; /* weights go from the files to a device */
};

static enum walsh_status load_linear(struct walsh_source *source, const char *name,
                                     const struct walsh_fusion *fusion, enum walsh_linear_role role,
                                     uint32_t in, uint32_t out, bool bias, struct walsh_linear *linear,
                                     struct walsh_error *err)
{
    const struct checkpoint_source *s = (const struct checkpoint_source *)source;
    enum walsh_activation_type dense = role == WALSH_LINEAR_ROUTER ? WALSH_ACTIVATION_F32 : s->options->dense;
    const struct walsh_split split = {role == WALSH_LINEAR_OUTPUT,
                                      s->graph->checkpoint.config.quant.tensor_parallel};
    if (s->stored)
        return walsh_linear_find(linear, &s->graph->checkpoint, name, fusion, &split, in, out, bias,
                                 s->options->rotated, dense, &s->graph->arena, err);
    return walsh_linear_load(linear, &s->graph->checkpoint, name, fusion, &split, in, out, bias,
                             s->options->rotated, dense, s->pool, &s->graph->arena, err);
}

static enum walsh_status load_vector(struct walsh_source *source, const char *name, uint32_t n,
                                     float **values, struct walsh_error *err)
{
    const struct checkpoint_source *s = (const struct checkpoint_source *)source;
    const uint64_t shape[] = {n};
    const struct walsh_tensor *t;
    WALSH_TRY(walsh_checkpoint_take(&s->graph->checkpoint, name, FLOAT_DTYPES, 1, shape, &t, err));
    float *copy;
    WALSH_TRY(walsh_arena_alloc(&s->graph->arena, n, sizeof *copy, name, &copy, err));
    walsh_tensor_to_f32(t, copy);
    *values = copy;
    return WALSH_OK;
}

static enum walsh_status load_conv(struct walsh_source *source, const char *name, uint32_t channels,
                                   uint32_t taps, bool bias, const float **weight, const float **kernel_bias,
                                   struct walsh_error *err)
{
    const struct checkpoint_source *s = (const struct checkpoint_source *)source;
    const uint64_t shape[] = {channels, 1, taps};
    const struct walsh_tensor *t;
    char tensor[256];
    float *stored, *transposed, *values;
    snprintf(tensor, sizeof tensor, "%s.weight", name);
    WALSH_TRY(walsh_checkpoint_take(&s->graph->checkpoint, tensor, FLOAT_DTYPES, 3, shape, &t, err));
    WALSH_TRY(walsh_arena_alloc(&s->graph->arena, (size_t)channels * taps, sizeof *stored, tensor,
                                &transposed, err));
    WALSH_TRY(walsh_alloc((size_t)channels * taps, sizeof *stored, tensor, &stored, err));
    walsh_tensor_to_f32(t, stored);
    for (uint32_t i = 0; i < channels; i++)
        for (uint32_t j = 0; j < taps; j++)
            transposed[(size_t)j * channels + i] = stored[(size_t)i * taps + j];
    walsh_free(stored);
    *weight = transposed;
    if (!bias) return WALSH_OK;
    snprintf(tensor, sizeof tensor, "%s.bias", name);
    WALSH_TRY(walsh_checkpoint_take(&s->graph->checkpoint, tensor, FLOAT_DTYPES, 1, shape, &t, err));
    WALSH_TRY(walsh_arena_alloc(&s->graph->arena, channels, sizeof *values, tensor, &values, err));
    walsh_tensor_to_f32(t, values);
    *kernel_bias = values;
    return WALSH_OK;
}

static enum walsh_status load_table(struct walsh_source *source, const char *name, uint32_t rows,
                                    uint32_t cols, struct walsh_weights *table, struct walsh_error *err)
{
    struct walsh_linear linear; /* dense, without bias: all that a table is */
    WALSH_TRY(load_linear(source, name, NULL, WALSH_LINEAR_HEAD, cols, rows, false, &linear, err));
    if (linear.in_rotation.kind != WALSH_ROTATION_NONE)
        return walsh_fail(err, WALSH_E_UNSUPPORTED,
                          "%s is quantized; walsh reads embeddings in f32, f16 or bf16 only", name);
    *table = linear.weights;
    return WALSH_OK;
}

/* Tensors that carry nothing: rotary frequencies that old checkpoints store, and a head that repeats the tied
 * embedding. */
static enum walsh_status use_redundant(const struct walsh_model_graph *graph, struct walsh_error *err)
{
    static const char suffix[] = ".rotary_emb.inv_freq";
    const struct walsh_checkpoint *ck = &graph->checkpoint;
    for (size_t i = 0; i < ck->tensor_count; i++) {
        size_t size = strlen(ck->tensors[i]->name);
        if (size >= sizeof suffix && strcmp(ck->tensors[i]->name + size - (sizeof suffix - 1), suffix) == 0)
            ck->tensors[i]->used = true;
    }
    if (!graph->config.tied_embeddings) return WALSH_OK;
    const struct walsh_architecture_names *names = &walsh_architectures[graph->config.architecture].names;
    char head_name[256], table_name[256];
    snprintf(head_name, sizeof head_name, "%s.weight", names->head);
    snprintf(table_name, sizeof table_name, "%s.weight", names->embedding);
    struct walsh_tensor *head = walsh_checkpoint_find(ck, head_name);
    if (!head) return WALSH_OK;
    const struct walsh_tensor *table = walsh_checkpoint_find(ck, table_name);
    if (!table || head->dtype != table->dtype || head->bytes != table->bytes ||
        memcmp(head->data, table->data, head->bytes) != 0)
        return walsh_fail(err, WALSH_E_FORMAT, "%s: %s differs from %s although tie_word_embeddings is true",
                          head->file, head_name, table_name);
    head->used = true;
    return WALSH_OK;
}

static enum walsh_status list_tokenless(struct walsh_model_graph *graph, struct walsh_error *err)
{
    const int32_t vocab = (int32_t)graph->config.vocab; /* below 2^24 */
    size_t count = 0;
    for (int32_t id = 0; id < vocab; id++) count += !walsh_tokenizer_has(graph->tokenizer, id);
    WALSH_TRY(walsh_arena_alloc(&graph->arena, count, sizeof *graph->tokenless, "ids without a token",
                                &graph->tokenless, err));
    for (int32_t id = 0; id < vocab; id++)
        if (!walsh_tokenizer_has(graph->tokenizer, id)) graph->tokenless[graph->tokenless_count++] = id;
    return WALSH_OK;
}

static enum walsh_status open_tokenizer(struct walsh_model_graph *graph, const char *directory,
                                        const struct walsh_load_options *options, struct walsh_error *err)
{
    if (!options->tokenizer) return WALSH_OK;
    char path[4096];
    snprintf(path, sizeof path, "%s/tokenizer.json", directory);
    if (options->tokenizer_optional && !walsh_path_exists(path)) return WALSH_OK;
    WALSH_TRY(walsh_tokenizer_open(directory, &graph->tokenizer, err));
    return list_tokenless(graph, err);
}

static enum walsh_status load(struct walsh_model_graph *graph, const char *directory,
                              const struct walsh_load_options *options, const struct walsh_queue *queue,
                              struct walsh_error *err)
{
    WALSH_TRY(walsh_checkpoint_open(directory, options->use_mmap, &graph->checkpoint, err));
    graph->config = graph->checkpoint.config;
    graph->generation = graph->checkpoint.generation;
    WALSH_TRY(open_tokenizer(graph, directory, options, err));
    if (graph->config.architecture == WALSH_ARCH_LALAMO) {
        WALSH_TRY(walsh_lalamo_build(graph, options, queue->pool, err));
        return walsh_checkpoint_all_used(&graph->checkpoint, err);
    }
    struct checkpoint_source source = {
        .source = {.linear = load_linear, .conv = load_conv, .vector = load_vector, .table = load_table},
        .graph = graph,
        .options = options,
        .pool = queue->pool,
        .stored = queue->memory != NULL};
    WALSH_TRY(walsh_graph_build(graph, &source.source, options->dense, queue->pool, err));
    WALSH_TRY(use_redundant(graph, err));
    return walsh_checkpoint_all_used(&graph->checkpoint, err);
}

/* A backend may lack ops that few architectures need. Who caps scores has the op soft_cap, too. */
static enum walsh_status check_ops(const struct walsh_model_graph *graph, const struct walsh_ops *ops,
                                   struct walsh_error *err)
{
    const struct walsh_config *c = &graph->config;
    const struct {
        const char *name;
        bool needed, there;
    } list[] = {{"geglu", c->gate == WALSH_GATE_GELU_TANH, ops->geglu != NULL},
                {"clamped_swiglu", c->gate == WALSH_GATE_CLAMPED, ops->clamped_swiglu != NULL},
                {"scale", c->scaled_embeddings, ops->scale != NULL},
                {"soft_cap", c->score_cap != 0 || c->logit_cap != 0, ops->soft_cap != NULL}};
    for (size_t i = 0; i < sizeof list / sizeof *list; i++)
        if (list[i].needed && !list[i].there)
            return walsh_fail(err, WALSH_E_UNSUPPORTED, "%s: %s needs the op %s, which this device lacks",
                              graph->checkpoint.directory, c->architecture_name, list[i].name);
    return WALSH_OK;
}

enum walsh_status walsh_graph_open(const char *directory, const struct walsh_load_options *options,
                                   const struct walsh_queue *queue, struct walsh_model_graph **out,
                                   struct walsh_error *err)
{
    *out = NULL;
    double start = walsh_now();
    struct walsh_model_graph *graph;
    WALSH_TRY(walsh_alloc_zero(1, sizeof *graph, "the model", &graph, err));
    enum walsh_status status = load(graph, directory, options, queue, err);
    if (status == WALSH_OK) status = check_ops(graph, queue->ops, err);
    if (status == WALSH_OK) status = walsh_graph_upload(graph, queue, err);
    if (status != WALSH_OK) {
        walsh_graph_close(&graph);
        return status;
    }
    graph->load_seconds = walsh_now() - start;
    *out = graph;
    return WALSH_OK;
}

void walsh_graph_close(struct walsh_model_graph **graph)
{
    if (!graph || !*graph) return;
    if ((*graph)->device) walsh_queue_free((*graph)->device, (*graph)->device_memory);
    walsh_tokenizer_close(&(*graph)->tokenizer);
    walsh_arena_close(&(*graph)->arena);
    walsh_checkpoint_close(&(*graph)->checkpoint);
    walsh_free(*graph);
    *graph = NULL;
}

static bool listed(const int32_t *ids, uint32_t count, int32_t id)
{
    for (uint32_t i = 0; i < count; i++)
        if (ids[i] == id) return true;
    return false;
}

bool walsh_graph_is_eos(const struct walsh_model_graph *graph, int32_t id)
{
    const struct walsh_generation_config *g = &graph->generation;
    const struct walsh_config *c = &graph->config;
    return listed(g->eos, g->eos_count, id) || listed(c->eos, c->eos_count, id);
}
