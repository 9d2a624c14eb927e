/* Models: opening, and what they say about themselves. */
#include <stdio.h>
#include <string.h>

#include "api/api.h"
#include "api/shapes.h"
#include "base/machine.h"
#include "formats/e8p.h"
#include "formats/turbo.h"

#define DEFAULT_KV_BITS 4

/* The rule behind `activations`. Products of E8P know f32 and int8 (one scale per row), those of MXFP4,
 * NVFP4, int8 and int4 weights f32, bf16 and int8 (a scale per group), those of bf16, MXFP8 and FP8 weights
 * f32 and bf16, all others f32; a type that a format lacks becomes the best one that it has. */
static enum walsh_status choose_activations(const struct walsh_queue *queue,
                                            enum walsh_activation_mode wanted,
                                            struct walsh_load_options *load, struct walsh_error *err)
{
    enum walsh_activation_type dense =
        walsh_queue_has_bf16(queue) ? WALSH_ACTIVATION_BF16 : WALSH_ACTIVATION_F32;
    switch (wanted) {
    case WALSH_ACTIVATIONS_AUTO:
    case WALSH_ACTIVATIONS_INT8:
        load->rotated = WALSH_ACTIVATION_INT8;
        load->dense = dense;
        return WALSH_OK;
    case WALSH_ACTIVATIONS_F32:
        load->rotated = load->dense = WALSH_ACTIVATION_F32;
        return WALSH_OK;
    case WALSH_ACTIVATIONS_BF16:
        load->rotated = WALSH_ACTIVATION_F32;
        load->dense = WALSH_ACTIVATION_BF16;
        return WALSH_OK;
    }
    return walsh_fail(err, WALSH_E_ARGUMENT, "activations is %d, expected auto, f32, bf16 or int8",
                      (int)wanted);
}

static enum walsh_status read_options(const struct walsh_context *context,
                                      const struct walsh_model_options *options,
                                      struct walsh_model_options *o, struct walsh_load_options *load,
                                      struct walsh_error *err)
{
    *o = (struct walsh_model_options)WALSH_MODEL_OPTIONS;
    WALSH_TRY(walsh_options_read(o, sizeof *o, options, "walsh_model_options", err));
    *load = (struct walsh_load_options){
        .use_mmap = !o->no_mmap, .tokenizer = true, .tokenizer_optional = o->tokenizer_optional};
    return choose_activations(&context->queue, o->activations, load, err);
}

static enum walsh_activation_mode public_activations(enum walsh_activation_type type)
{
    switch (type) {
    case WALSH_ACTIVATION_F32:
        return WALSH_ACTIVATIONS_F32;
    case WALSH_ACTIVATION_BF16:
        return WALSH_ACTIVATIONS_BF16;
    case WALSH_ACTIVATION_INT8:
    case WALSH_ACTIVATION_INT8_GROUPS:
        return WALSH_ACTIVATIONS_INT8;
    }
    return WALSH_ACTIVATIONS_AUTO;
}

/* Say so where the linears use another type than the one asked for, because their format does not know it. */
static void log_activations(const struct walsh_context *context, enum walsh_activation_mode requested,
                            const struct walsh_model_graph *graph)
{
    static const char *const names[] = {"auto", "f32", "bf16", "int8"};
    const struct walsh_linear *linear = &graph->layers[0].q;
    const enum walsh_activation_mode used = public_activations(linear->activation);
    if (requested == WALSH_ACTIVATIONS_AUTO || requested == used) return;
    walsh_log(&context->hooks, WALSH_LOG_INFO, "%s weights know no %s activations: %s is used",
              walsh_format_name(linear->weights.format), names[requested], names[used]);
}

/* Takes the graph over, on failure too. */
static enum walsh_status wrap(struct walsh_context *context, const struct walsh_model_options *o,
                              struct walsh_model_graph *graph, struct walsh_model **out,
                              struct walsh_error *err)
{
    struct walsh_model *model;
    enum walsh_status status = walsh_alloc_zero(1, sizeof *model, "a model", &model, err);
    if (status != WALSH_OK) {
        walsh_graph_close(&graph);
        return status;
    }
    model->context = context;
    model->graph = graph;
    model->requested = o->activations;
    model->in_memory = o->no_mmap;
    log_activations(context, o->activations, graph);
    status = walsh_alloc_zero(1, sizeof *model->tokens, "a model", &model->tokens, err);
    if (status == WALSH_OK) {
        pthread_mutex_init(&model->tokens->lock, NULL);
        status = walsh_runner_open(graph, &context->queue, &context->hooks, &model->runner, err);
    }
    if (status != WALSH_OK) {
        walsh_model_close(&model);
        return status;
    }
    *out = model;
    return WALSH_OK;
}

enum walsh_status walsh_model_open(struct walsh_context *context, const char *path,
                                   const struct walsh_model_options *options, struct walsh_model **out,
                                   struct walsh_error *err)
{
    *out = NULL;
    struct walsh_model_options o;
    struct walsh_load_options load;
    WALSH_TRY(read_options(context, options, &o, &load, err));
    struct walsh_model_graph *graph;
    WALSH_TRY(walsh_graph_open(path, &load, &context->queue, &graph, err));
    return wrap(context, &o, graph, out, err);
}

void walsh_model_close(struct walsh_model **model)
{
    if (!model || !*model) return;
    walsh_runner_close(&(*model)->runner);
    if ((*model)->tokens) {
        walsh_token_bytes_close(&(*model)->tokens->bytes);
        pthread_mutex_destroy(&(*model)->tokens->lock);
        walsh_free((*model)->tokens);
    }
    walsh_graph_close(&(*model)->graph);
    walsh_free(*model);
    *model = NULL;
}

/* A synthetic model's format; *bits: what a weight takes, about. */
static enum walsh_status find_format(const char *name, enum walsh_format *format, unsigned *bits,
                                     struct walsh_error *err)
{
    for (unsigned f = WALSH_FORMAT_BF16; f < WALSH_FORMAT_COUNT; f++) {
        *format = (enum walsh_format)f;
        if (strcmp(name, walsh_format_name(*format)) != 0) continue;
        if (*format == WALSH_FORMAT_E8P) {
            struct walsh_e8p_plan plan;
            return walsh_e8p_plan_bits(*bits, &plan, err);
        }
        const bool narrow =
            *format == WALSH_FORMAT_MXFP4 || *format == WALSH_FORMAT_NVFP4 || *format == WALSH_FORMAT_INT4;
        *bits = *format == WALSH_FORMAT_BF16 ? 0 : narrow ? 5 : 9;
        return WALSH_OK;
    }
    return walsh_fail(
        err, WALSH_E_ARGUMENT,
        "format is \"%s\"; synthetic models know: bf16, e8p, mxfp4, nvfp4, mxfp8, fp8, int8, int4", name);
}

enum walsh_status walsh_model_synthesize(struct walsh_context *context, const struct walsh_shape *shape,
                                         const char *format, unsigned bits, uint64_t seed,
                                         const struct walsh_model_options *options, struct walsh_model **out,
                                         struct walsh_error *err)
{
    *out = NULL;
    struct walsh_model_options o;
    struct walsh_load_options load;
    WALSH_TRY(read_options(context, options, &o, &load, err));
    struct walsh_config config;
    struct walsh_shape s = WALSH_SHAPE;
    WALSH_TRY(walsh_shape_config(shape, &config, err));
    WALSH_TRY(walsh_options_read(&s, sizeof s, shape, "walsh_shape", err));
    enum walsh_format weights;
    WALSH_TRY(find_format(format, &weights, &bits, err));
    char what[200];
    snprintf(what, sizeof what, "a synthetic %.80s in %.20s", shape->name ? shape->name : "model", format);
    WALSH_TRY(walsh_memory_check(what, walsh_shape_bytes(&config, bits), err));
    struct walsh_model_graph *graph;
    WALSH_TRY(walsh_graph_synthesize(&config, weights, bits, s.head_int8, seed, &load, &context->queue,
                                     &graph, err));
    o.no_mmap = false; /* it has no files */
    return wrap(context, &o, graph, out, err);
}

/* What stands behind `type` is meaningless without TURBO: a caller who sets it is told. */
static enum walsh_status plain_policy(const struct walsh_kv_options *o, enum walsh_kv_type type,
                                      struct walsh_kv_policy *out, struct walsh_error *err)
{
    if (o->key_bits || o->value_bits || o->skip || o->recent || o->key_codec || o->no_rotation ||
        o->no_correction)
        return walsh_fail(
            err, WALSH_E_ARGUMENT,
            "bits, skipped layers, recent tokens and codecs of the KV cache need its type turbo");
    *out = (struct walsh_kv_policy){.type = type};
    return WALSH_OK;
}

enum walsh_status walsh_model_kv_policy(const struct walsh_model *model, const struct walsh_kv_options *o,
                                        struct walsh_kv_policy *out, struct walsh_error *err)
{
    switch (o->type) {
    case WALSH_KV_CACHE_AUTO:
        return plain_policy(o, model->requested == WALSH_ACTIVATIONS_F32 ? WALSH_KV_F32 : WALSH_KV_F16, out,
                            err);
    case WALSH_KV_CACHE_F16:
        return plain_policy(o, WALSH_KV_F16, out, err);
    case WALSH_KV_CACHE_F32:
        return plain_policy(o, WALSH_KV_F32, out, err);
    case WALSH_KV_CACHE_TURBO:
        if (o->key_codec != WALSH_KV_KEYS_MSE && o->key_codec != WALSH_KV_KEYS_PROD)
            return walsh_fail(err, WALSH_E_ARGUMENT, "kv key_codec is %d, expected mse or prod",
                              (int)o->key_codec);
        *out = (struct walsh_kv_policy){.type = WALSH_KV_TURBO,
                                        .key_bits = o->key_bits ? o->key_bits : DEFAULT_KV_BITS,
                                        .value_bits = o->value_bits ? o->value_bits : DEFAULT_KV_BITS,
                                        .skip = o->skip,
                                        .recent = o->recent,
                                        .seed = o->seed,
                                        .prod_keys = o->key_codec == WALSH_KV_KEYS_PROD,
                                        .no_rotation = o->no_rotation,
                                        .no_correction = o->no_correction};
        return WALSH_OK;
    }
    return walsh_fail(err, WALSH_E_ARGUMENT, "kv is %d, expected auto, f16, f32 or turbo", (int)o->type);
}

bool walsh_kv_split_bits(double total, unsigned *key_bits, unsigned *value_bits)
{
    return walsh_turbo_split_bits(total, key_bits, value_bits);
}

void walsh_model_get_info(const struct walsh_model *model, struct walsh_model_info *info)
{
    const struct walsh_model_graph *g = model->graph;
    const struct walsh_config *c = &g->config;
    const struct walsh_linear *first = &g->layers[0].q;
    const struct walsh_model_info result = {
        .struct_size = sizeof result,
        .architecture = c->architecture_name,
        .format = walsh_format_name(first->weights.format),
        .bits_per_weight = g->totals.linear_bits / (double)g->totals.linear_parameters,
        .hidden = c->hidden,
        .intermediate = c->experts ? c->expert_intermediate : c->intermediate,
        .layers = c->layers,
        .heads = c->heads,
        .kv_heads = c->kv_heads,
        .head_dim = c->head_dim,
        .vocab = c->vocab,
        .max_positions = c->max_positions,
        .experts = c->experts,
        .experts_per_token = c->experts_per_token,
        .parameters = g->totals.parameters,
        .linear_parameters = g->totals.linear_parameters,
        .checkpoint_bytes = g->checkpoint.bytes,
        .memory_bytes = g->arena.bytes + (model->in_memory ? g->checkpoint.bytes : 0),
        .decode_bytes = g->totals.decode_bytes,
        .decode_weights = g->totals.decode_weights,
        .head_weights = g->totals.head_weights,
        .load_seconds = g->load_seconds,
        .activations = public_activations(first->activation),
        .has_tokenizer = g->tokenizer != NULL,
    };
    walsh_result_write(info, &result, sizeof result);
}

/* "512+64" behind `side`, appended to text. */
static void append_blocks(char *text, size_t size, const char *side, const struct walsh_rotation *rotation)
{
    if (rotation->kind == WALSH_ROTATION_NONE) return;
    size_t used = strlen(text);
    snprintf(text + used, size - used, "%s%s", used ? ", " : "", side);
    used = strlen(text);
    if (rotation->blocks.uniform) {
        snprintf(text + used, size - used, " %u of %u", rotation->blocks.count, rotation->blocks.uniform);
        return;
    }
    for (uint32_t i = 0; i < rotation->blocks.count; i++) {
        used = strlen(text);
        snprintf(text + used, size - used, "%s%u", i ? "+" : " ", rotation->blocks.block[i]);
    }
}

bool walsh_model_tensor(const struct walsh_model *model, size_t i, struct walsh_tensor_info *info)
{
    if (i >= model->graph->tensor_count) return false;
    const struct walsh_graph_tensor *t = &model->graph->tensors[i];
    struct walsh_tensor_info result = {
        .struct_size = sizeof result,
        .rows = t->rows,
        .cols = t->cols,
        .bytes = t->weights ? walsh_weights_bytes(t->weights) : (uint64_t)t->rows * t->cols * sizeof(float),
        .part = t->part,
    };
    result.bits_per_weight = t->bits / ((double)t->rows * t->cols);
    snprintf(result.name, sizeof result.name, "%s", t->name);
    snprintf(result.format, sizeof result.format, "%s",
             walsh_format_name(t->weights ? t->weights->format : WALSH_FORMAT_F32));
    if (t->linear) {
        append_blocks(result.rotation, sizeof result.rotation, "in", &t->linear->in_rotation);
        append_blocks(result.rotation, sizeof result.rotation, "out", &t->linear->out_rotation);
    }
    walsh_result_write(info, &result, sizeof result);
    return true;
}

bool walsh_model_is_eos(const struct walsh_model *model, int32_t id)
{
    return walsh_graph_is_eos(model->graph, id);
}
