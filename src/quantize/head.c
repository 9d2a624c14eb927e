#include "quantize/head.h"

#include <math.h>
#include <stdatomic.h>
#include <stdio.h>

#include "base/memory.h"
#include "kernels/rotate.h"
#include "kernels/table.h"

#define NAME_SIZE 320

static enum walsh_status rotation_of(const struct walsh_model_graph *graph, struct walsh_rotation *out,
                                     struct walsh_error *err)
{
    *out = (struct walsh_rotation){.kind = WALSH_ROTATION_BLOCKS, .size = graph->config.hidden};
    return walsh_blocks_binary(out->size, WALSH_MIN_BLOCK_COLUMNS, &out->blocks, err);
}

static const char *tensor_name(const struct walsh_model_graph *graph, const char *suffix, char *buffer)
{
    snprintf(buffer, NAME_SIZE, "%s.%s", graph->head.name, suffix);
    return buffer;
}

enum walsh_status walsh_head_plan(const struct walsh_model_graph *graph, struct walsh_safetensors_plan *plan,
                                  struct walsh_error *err)
{
    char name[NAME_SIZE];
    struct walsh_rotation r;
    const enum walsh_format format = graph->head.weights.format;
    if (format == WALSH_FORMAT_E8P || walsh_format_is_block(format))
        return walsh_fail(err, WALSH_E_ARGUMENT,
                          "%s: %s is quantized already; quantize the original checkpoint",
                          graph->checkpoint.directory, graph->head.name);
    WALSH_TRY(rotation_of(graph, &r, err));
    struct walsh_tensor *dense =
        walsh_checkpoint_find(&graph->checkpoint, tensor_name(graph, "weight", name));
    if (dense) dense->used = false;
    const uint64_t weight[] = {graph->config.vocab, r.blocks.padded}, scale[] = {graph->config.vocab, 1};
    WALSH_TRY(walsh_plan_add(plan, name, WALSH_I8, 2, weight, err));
    WALSH_TRY(walsh_plan_add(plan, tensor_name(graph, "weight_scale", name), WALSH_F32, 2, scale, err));
    return walsh_plan_add(plan, tensor_name(graph, "SV", name), WALSH_F16, 1, weight + 1, err);
}

struct encoding {
    const struct walsh_queue *q;
    const struct walsh_weights *weights;
    const struct walsh_rotation *rotation;
    float *rows, *rotated; /* [threads][size], [threads][padded] */
    int8_t *codes;
    float *scales;
    atomic_bool broken;
};

static void encode_rows(void *argument, size_t begin, size_t end, unsigned worker)
{
    struct encoding *e = argument;
    const size_t size = e->rotation->size, padded = e->rotation->blocks.padded;
    float *row = e->rows + worker * size, *rotated = e->rotated + worker * padded;
    for (size_t r = begin; r < end; r++) {
        float most = 0;
        bool finite = true;
        walsh_weights_decode_f32(e->weights, r, 1, row, size);
        walsh_kernels_rotate(e->q->kernels, e->rotation, e->rotation->signs, row, rotated);
        for (size_t i = 0; i < padded; i++) {
            finite = finite && isfinite(rotated[i]);
            most = fmaxf(most, fabsf(rotated[i]));
        }
        if (!finite) atomic_store_explicit(&e->broken, true, memory_order_relaxed);
        const float scale = most / 127, inverse = scale > 0 ? 1 / scale : 0;
        for (size_t i = 0; i < padded; i++)
            e->codes[r * padded + i] =
                finite ? (int8_t)fmaxf(-127, fminf(127, rintf(rotated[i] * inverse))) : 0;
        e->scales[r] = scale;
    }
}

static enum walsh_status write_all(const struct walsh_model_graph *graph, const struct encoding *e,
                                   struct walsh_output *output, struct walsh_error *err)
{
    char name[NAME_SIZE];
    const size_t vocab = graph->config.vocab, padded = e->rotation->blocks.padded;
    uint16_t *half;
    WALSH_TRY(walsh_output_write(output, tensor_name(graph, "weight", name), e->codes, vocab * padded, err));
    WALSH_TRY(walsh_output_write(output, tensor_name(graph, "weight_scale", name), e->scales,
                                 vocab * sizeof *e->scales, err));
    WALSH_TRY(walsh_alloc(padded, sizeof *half, "signs", &half, err));
    for (size_t i = 0; i < padded; i++) half[i] = walsh_f16_from_f32(e->rotation->signs[i]);
    const enum walsh_status status =
        walsh_output_write(output, tensor_name(graph, "SV", name), half, padded * sizeof *half, err);
    walsh_free(half);
    return status;
}

enum walsh_status walsh_head_write(const struct walsh_queue *q, const struct walsh_model_graph *graph,
                                   uint64_t seed, struct walsh_output *output, struct walsh_error *err)
{
    char name[NAME_SIZE];
    struct walsh_rotation r;
    WALSH_TRY(rotation_of(graph, &r, err));
    const size_t vocab = graph->config.vocab, padded = r.blocks.padded, threads = walsh_pool_threads(q->pool);
    float *floats = NULL;
    int8_t *codes = NULL;
    enum walsh_status status = walsh_alloc(vocab + padded + threads * (padded + r.size), sizeof *floats,
                                           "the head's scales", &floats, err);
    if (status == WALSH_OK) status = walsh_alloc(vocab, padded, "the head's codes", &codes, err);
    if (status == WALSH_OK) {
        float *signs = floats + vocab;
        walsh_random_signs(seed, tensor_name(graph, "SV", name), signs, (uint32_t)padded);
        r.signs = signs;
        struct encoding e = {.q = q,
                             .weights = &graph->head.weights,
                             .rotation = &r,
                             .rotated = signs + padded,
                             .rows = signs + padded + threads * padded,
                             .codes = codes,
                             .scales = floats};
        walsh_pool_run(q->pool, vocab, 64, encode_rows, &e);
        status = atomic_load(&e.broken) ? walsh_fail(err, WALSH_E_FORMAT, "%s: the head %s holds NaN or Inf",
                                                     graph->checkpoint.directory, graph->head.name)
                                        : write_all(graph, &e, output, err);
    }
    walsh_free(floats);
    walsh_free(codes);
    return status;
}
