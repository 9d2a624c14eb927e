#include "model/lalamo.h"

#include <stdio.h>
#include <string.h>

#include "base/machine.h"
#include "checkpoint/lalamo.h"
#include "model/adapter.h"
#include "model/linear_parts.h"

#define NAME_SIZE 320
#define PATH_SIZE (NAME_SIZE + 16) /* with a suffix */
#define EMBEDDING "decoder.embedding.input_embedding"
#define TIED_EMBEDDING "decoder.embedding.embedding"

struct lalamo_source {
    struct walsh_source source;
    struct walsh_model_graph *graph;
    const struct walsh_load_options *options;
    struct walsh_pool *pool;
    /* the matrix that the linear before this one is a part of, and its low-rank part, whose A they share */
    char last[PATH_SIZE];
    struct walsh_adapter_linear *last_own;
};

static struct walsh_rotation no_rotation(uint32_t size)
{
    return (struct walsh_rotation){.kind = WALSH_ROTATION_NONE, .size = size, .blocks = {.padded = size}};
}

/* Of n elements from `first` on; signs NULL: none. */
static enum walsh_status make_rotation(const struct walsh_tensor *signs, uint32_t first, uint32_t n,
                                       uint32_t block, struct walsh_arena *arena, struct walsh_rotation *out,
                                       struct walsh_error *err)
{
    float *values;
    *out = no_rotation(n);
    if (!signs) return WALSH_OK;
    WALSH_TRY(walsh_arena_alloc(arena, n, sizeof *values, signs->name, &values, err));
    for (uint32_t i = 0; i < n; i++) {
        int32_t sign;
        memcpy(&sign, (const uint8_t *)signs->data + 4 * (size_t)(first + i), sizeof sign);
        values[i] = (float)sign;
    }
    out->kind = WALSH_ROTATION_BLOCKS;
    out->signs = values;
    return walsh_blocks_uniform(n, block, &out->blocks, err);
}

static void set_dense(struct walsh_weights *w, const struct walsh_tensor *t, uint32_t first, uint32_t rows,
                      uint32_t cols)
{
    *w = (struct walsh_weights){.format = t->dtype == WALSH_F32   ? WALSH_FORMAT_F32
                                          : t->dtype == WALSH_F16 ? WALSH_FORMAT_F16
                                                                  : WALSH_FORMAT_BF16,
                                .rows = rows,
                                .cols = cols,
                                .data = (const uint8_t *)t->data +
                                        (size_t)first * cols * walsh_dtype_size(t->dtype)};
}

/* The low-rank part: B works in rotated outputs, as in the canonical form. */
static enum walsh_status load_own(struct lalamo_source *s, struct walsh_linear *linear, const char *module,
                                  const struct walsh_lalamo_matrix *m, uint32_t first,
                                  struct walsh_error *err)
{
    struct walsh_arena *arena = &s->graph->arena;
    const bool same = s->last_own && strcmp(s->last, module) == 0;
    struct walsh_adapter_linear *own;
    float *values;
    const size_t a = (size_t)m->rank * linear->in, b = (size_t)linear->out * m->rank;
    WALSH_TRY(walsh_arena_alloc(arena, 1, sizeof *own, linear->name, &own, err));
    WALSH_TRY(walsh_alloc(a + b, sizeof *values, linear->name, &values, err));
    walsh_tensor_to_f32(m->down, values);
    for (size_t i = 0; i < b; i++) values[a + i] = walsh_tensor_element(m->up, (size_t)first * m->rank + i);
    const struct walsh_adapter_source source = {.convention = WALSH_ADAPTER_ROTATED_OUTPUT,
                                                .rank = m->rank,
                                                .scale = 1,
                                                .a = same ? NULL : values,
                                                .b = values + a,
                                                .same_a = same ? s->last_own : NULL};
    const bool narrow = m->down->dtype == WALSH_BF16 && m->up->dtype == WALSH_BF16;
    const enum walsh_status status = walsh_adapter_linear_build(
        linear, &source, narrow ? WALSH_FORMAT_BF16 : WALSH_FORMAT_F32, arena, own, err);
    walsh_free(values);
    linear->own = own;
    s->last_own = own;
    snprintf(s->last, sizeof s->last, "%s", module);
    return status == WALSH_OK ? status : walsh_fail_within(err, status, "%s", m->up->file);
}

static enum walsh_status load_bias(const struct lalamo_source *s, struct walsh_linear *linear,
                                   const char *module, uint32_t all, uint32_t first, struct walsh_error *err)
{
    char name[PATH_SIZE];
    const uint64_t shape[] = {all};
    const struct walsh_tensor *t;
    float *bias;
    snprintf(name, sizeof name, "%s.biases", module);
    WALSH_TRY(walsh_checkpoint_take(&s->graph->checkpoint, name, WALSH_FLOAT_DTYPES, 1, shape, &t, err));
    WALSH_TRY(walsh_arena_alloc(&s->graph->arena, linear->out, sizeof *bias, name, &bias, err));
    for (uint32_t i = 0; i < linear->out; i++) bias[i] = walsh_tensor_element(t, first + i);
    linear->bias = bias;
    return WALSH_OK;
}

/* The weights of a matrix, or of rows of it, with its rotations. */
static enum walsh_status load_matrix(struct lalamo_source *s, struct walsh_linear *linear, const char *path,
                                     enum walsh_lalamo_use use, uint32_t all, uint32_t first,
                                     struct walsh_lalamo_matrix *m, struct walsh_error *err)
{
    struct walsh_arena *arena = &s->graph->arena;
    WALSH_TRY(
        walsh_lalamo_take(&s->graph->checkpoint, path, use, all, linear->in, first, linear->out, m, err));
    WALSH_TRY(make_rotation(m->column_signs, 0, linear->in, m->block, arena, &linear->in_rotation, err));
    WALSH_TRY(make_rotation(m->row_signs, first, linear->out, m->block, arena, &linear->out_rotation, err));
    if (!m->dense) return walsh_linear_repack_blocks(linear, &m->codes, s->pool, arena, err);
    set_dense(&linear->weights, m->dense, first, linear->out, linear->in);
    return WALSH_OK;
}

/* Up to 0.15 lalamo had no gates in this matrix, nor in its name. */
static const char *module_name(const struct lalamo_source *s, const char *name, char *path)
{
    static const char now[] = "qkvg_projection";
    const size_t size = strlen(name), tail = sizeof now - 1;
    snprintf(path, NAME_SIZE, "%s.weights", name);
    if (size < tail || strcmp(name + size - tail, now) != 0 ||
        walsh_lalamo_present(&s->graph->checkpoint, path))
        snprintf(path, NAME_SIZE, "%s", name);
    else
        snprintf(path, NAME_SIZE, "%.*sqkv_projection", (int)(size - tail), name);
    return path;
}

static enum walsh_status load_linear(struct walsh_source *source, const char *name,
                                     const struct walsh_fusion *fusion, enum walsh_linear_role role,
                                     uint32_t in, uint32_t out, bool bias, struct walsh_linear *linear,
                                     struct walsh_error *err)
{
    struct lalamo_source *s = (struct lalamo_source *)source;
    char module[NAME_SIZE], path[PATH_SIZE], *copy;
    const uint32_t all = fusion ? fusion->rows : out, first = fusion ? fusion->row : 0;
    const bool head = role == WALSH_LINEAR_HEAD;
    const bool tied = head && walsh_lalamo_present(&s->graph->checkpoint, TIED_EMBEDDING);
    struct walsh_lalamo_matrix m;
    *linear = (struct walsh_linear){.in = in, .out = out, .split = {.parts = 1}};
    WALSH_TRY(walsh_arena_strdup(&s->graph->arena, name, &copy, err));
    linear->name = copy;
    module_name(s, fusion ? fusion->name : name, module);
    snprintf(path, sizeof path, "%s%s", tied ? TIED_EMBEDDING : module, head ? "" : ".weights");
    WALSH_TRY(load_matrix(s, linear, path, tied ? WALSH_LALAMO_TIED_HEAD : WALSH_LALAMO_LINEAR, all, first,
                          &m, err));
    linear->activation =
        walsh_linear_activation(linear->weights.format, s->options->rotated, s->options->dense);
    if (m.rank) WALSH_TRY(load_own(s, linear, path, &m, first, err));
    return bias ? load_bias(s, linear, module, all, first, err) : WALSH_OK;
}

/* A row of a quantized table is decoded here, and rotated back. */
static enum walsh_status decode_table(struct lalamo_source *s, const struct walsh_linear *stored,
                                      struct walsh_weights *table, struct walsh_error *err)
{
    float *values, *row;
    const uint32_t cols = stored->in;
    const size_t count = (size_t)stored->out * cols;
    WALSH_TRY(walsh_memory_check("the embedding in f32", count * sizeof *values, err));
    WALSH_TRY(walsh_arena_alloc_uninitialised(&s->graph->arena, count, sizeof *values, "the embedding",
                                              &values, err));
    WALSH_TRY(walsh_alloc(cols, sizeof *row, "a row of the embedding", &row, err));
    for (size_t r = 0; r < stored->out; r++) {
        walsh_weights_decode_f32(&stored->weights, r, 1, row, cols);
        walsh_rotate_inverse(&stored->in_rotation, row, values + r * cols);
    }
    walsh_free(row);
    *table =
        (struct walsh_weights){.format = WALSH_FORMAT_F32, .rows = stored->out, .cols = cols, .data = values};
    return WALSH_OK;
}

static enum walsh_status load_table(struct walsh_source *source, const char *name, uint32_t rows,
                                    uint32_t cols, struct walsh_weights *table, struct walsh_error *err)
{
    struct lalamo_source *s = (struct lalamo_source *)source;
    const bool tied = walsh_lalamo_present(&s->graph->checkpoint, TIED_EMBEDDING);
    struct walsh_linear stored = {.name = name, .in = cols, .out = rows};
    struct walsh_lalamo_matrix m;
    WALSH_TRY(
        load_matrix(s, &stored, tied ? TIED_EMBEDDING : EMBEDDING, WALSH_LALAMO_TABLE, rows, 0, &m, err));
    if (!m.dense || stored.in_rotation.kind != WALSH_ROTATION_NONE)
        return decode_table(s, &stored, table, err);
    *table = stored.weights;
    return WALSH_OK;
}

/* "NORM.weight" is called "NORM.scales". */
static enum walsh_status load_vector(struct walsh_source *source, const char *name, uint32_t n,
                                     float **values, struct walsh_error *err)
{
    const struct lalamo_source *s = (const struct lalamo_source *)source;
    static const char suffix[] = ".weight";
    char path[NAME_SIZE];
    const uint64_t shape[] = {n};
    const struct walsh_tensor *t;
    const size_t size = strlen(name) - (sizeof suffix - 1);
    snprintf(path, sizeof path, "%.*s.scales", (int)size, name);
    WALSH_TRY(walsh_checkpoint_take(&s->graph->checkpoint, path, WALSH_FLOAT_DTYPES, 1, shape, &t, err));
    WALSH_TRY(walsh_arena_alloc(&s->graph->arena, n, sizeof **values, path, values, err));
    walsh_tensor_to_f32(t, *values);
    return WALSH_OK;
}

static enum walsh_status load_conv(struct walsh_source *source, const char *name, uint32_t channels,
                                   uint32_t taps, bool bias, const float **weight, const float **kernel_bias,
                                   struct walsh_error *err)
{
    const struct lalamo_source *s = (const struct lalamo_source *)source;
    struct walsh_arena *arena = &s->graph->arena;
    char path[NAME_SIZE];
    const uint64_t shape[] = {channels, taps};
    const struct walsh_tensor *t;
    float *transposed, *values;
    snprintf(path, sizeof path, "%s.weights", name);
    WALSH_TRY(walsh_checkpoint_take(&s->graph->checkpoint, path, WALSH_FLOAT_DTYPES, 2, shape, &t, err));
    WALSH_TRY(walsh_arena_alloc(arena, (size_t)channels * taps, sizeof *transposed, path, &transposed, err));
    for (size_t i = 0; i < channels; i++)
        for (size_t j = 0; j < taps; j++)
            transposed[j * channels + i] = walsh_tensor_element(t, i * taps + j);
    *weight = transposed;
    if (!bias) return WALSH_OK;
    snprintf(path, sizeof path, "%s.biases", name);
    WALSH_TRY(walsh_checkpoint_take(&s->graph->checkpoint, path, WALSH_FLOAT_DTYPES, 1, shape, &t, err));
    WALSH_TRY(walsh_arena_alloc(arena, channels, sizeof *values, path, &values, err));
    walsh_tensor_to_f32(t, values);
    *kernel_bias = values;
    return WALSH_OK;
}

enum walsh_status walsh_lalamo_build(struct walsh_model_graph *graph,
                                     const struct walsh_load_options *options, struct walsh_pool *pool,
                                     struct walsh_error *err)
{
    struct lalamo_source source = {
        .source = {.linear = load_linear, .conv = load_conv, .vector = load_vector, .table = load_table},
        .graph = graph,
        .options = options,
        .pool = pool};
    return walsh_graph_build(graph, &source.source, options->dense, pool, err);
}
