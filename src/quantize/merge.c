#include "quantize/merge.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "formats/blocks.h"
#include "kernels/table.h"
#include "model/sites.h"
#include "quantize/output.h"
#include "quantize/rotate.h"

#define NAME_SIZE 320

struct merge {
    const struct walsh_queue *queue;
    const struct walsh_hooks *hooks;
    const struct walsh_merging *merging;
    const struct walsh_linear **linears; /* of the graph, by name */
    size_t linear_count;
    struct walsh_output output;
    struct walsh_arena arena;
};

static int compare_names(const void *a, const void *b)
{
    return strcmp((*(const struct walsh_linear *const *)a)->name,
                  (*(const struct walsh_linear *const *)b)->name);
}

static enum walsh_status list_linears(struct merge *m, struct walsh_error *err)
{
    struct walsh_site_walk walk = {.graph = m->merging->graph};
    struct walsh_site site;
    size_t count = 0;
    while (walsh_site_next(&walk, &site)) count += site.count;
    WALSH_TRY(
        walsh_arena_alloc(&m->arena, count, sizeof *m->linears, "the model's linears", &m->linears, err));
    walk = (struct walsh_site_walk){.graph = m->merging->graph};
    while (walsh_site_next(&walk, &site))
        for (unsigned i = 0; i < site.count; i++) m->linears[m->linear_count++] = site.linears[i];
    qsort((void *)m->linears, m->linear_count, sizeof *m->linears, compare_names);
    return WALSH_OK;
}

/* The linear of tensor "MODULE.suffix", and where its suffix begins; NULL: of none. */
static const struct walsh_linear *find_linear(const struct merge *m, const char *tensor, const char **suffix)
{
    char module[NAME_SIZE];
    const char *dot = strrchr(tensor, '.');
    if (!dot || (size_t)(dot - tensor) >= sizeof module) return NULL;
    memcpy(module, tensor, (size_t)(dot - tensor));
    module[dot - tensor] = 0;
    *suffix = dot + 1;
    const struct walsh_linear key = {.name = module}, *wanted = &key;
    const struct walsh_linear **found = bsearch((const void *)&wanted, (const void *)m->linears,
                                                m->linear_count, sizeof *m->linears, compare_names);
    return found ? *found : NULL;
}

/* What stands behind the name of the matrix that this linear is a part of; NULL: of none, or another. */
static const char *part_suffix(const struct walsh_linear *l, const char *tensor)
{
    const size_t size = l->fusion.name ? strlen(l->fusion.name) : 0;
    return size > 0 && strncmp(tensor, l->fusion.name, size) == 0 ? tensor + size : NULL;
}

/* Is tensor "MODULE.weight", of a stack "MODULE", a matrix of which this linear is a part? */
static bool is_part(const struct walsh_linear *l, const char *tensor)
{
    const char *suffix = part_suffix(l, tensor);
    return suffix && strcmp(suffix, l->fusion.stack ? "" : ".weight") == 0;
}

/* Is it stored as codes, which are decoded? */
static bool is_packed(const struct walsh_linear *l)
{
    return l->weights.format == WALSH_FORMAT_E8P || walsh_format_is_block(l->weights.format);
}

static bool is_float(enum walsh_dtype dtype)
{
    return dtype == WALSH_F32 || dtype == WALSH_F16 || dtype == WALSH_BF16;
}

static enum walsh_dtype written_dtype(const struct merge *m, const struct walsh_tensor *t)
{
    return is_float(t->dtype) ? m->merging->dtype : t->dtype;
}

/* A tensor that a quantized linear is made of: its place is taken by the decoded weight. */
static bool is_code(const struct merge *m, const struct walsh_tensor *t)
{
    const char *suffix;
    const struct walsh_linear *l = find_linear(m, t->name, &suffix);
    if (l) return is_packed(l) && strcmp(suffix, "bias") != 0;
    if (is_float(t->dtype)) return false; /* a stack's biases */
    for (size_t i = 0; i < m->linear_count; i++)
        if (is_packed(m->linears[i]) && part_suffix(m->linears[i], t->name)) return true;
    return false;
}

static enum walsh_status plan(const struct merge *m, struct walsh_safetensors_plan *out,
                              struct walsh_error *err)
{
    const struct walsh_checkpoint *ck = &m->merging->graph->checkpoint;
    for (size_t i = 0; i < ck->tensor_count; i++) {
        const struct walsh_tensor *t = ck->tensors[i];
        if (t->used && !is_code(m, t))
            WALSH_TRY(walsh_plan_add(out, t->name, written_dtype(m, t), t->rank, t->shape, err));
    }
    for (size_t i = 0; i < m->linear_count; i++) {
        const struct walsh_linear *l = m->linears[i];
        if (!is_packed(l)) continue;
        char name[NAME_SIZE];
        const struct walsh_fusion *fusion = &l->fusion;
        if (fusion->name && (fusion->row > 0 || fusion->matrix > 0))
            continue; /* the first part stands for all */
        if (fusion->stack) {
            const uint64_t stack[] = {fusion->stack, l->in, fusion->rows};
            WALSH_TRY(walsh_plan_add(out, fusion->name, m->merging->dtype, 3, stack, err));
            continue;
        }
        const uint64_t shape[] = {fusion->name ? fusion->rows : l->out, l->in};
        snprintf(name, sizeof name, "%s.weight", fusion->name ? fusion->name : l->name);
        WALSH_TRY(walsh_plan_add(out, name, m->merging->dtype, 2, shape, err));
    }
    return walsh_plan_finish(out, err);
}

/* Write n values as the type of the job. */
static enum walsh_status write_values(struct merge *m, const char *name, const float *values, size_t n,
                                      struct walsh_error *err)
{
    if (m->merging->dtype == WALSH_F32)
        return walsh_output_write(&m->output, name, values, n * sizeof *values, err);
    uint16_t *half;
    WALSH_TRY(walsh_alloc(n, sizeof *half, name, &half, err));
    for (size_t i = 0; i < n; i++) half[i] = walsh_bf16_from_f32(values[i]);
    const enum walsh_status status = walsh_output_write(&m->output, name, half, n * sizeof *half, err);
    walsh_free(half);
    return status;
}

static enum walsh_status copy_tensor(struct merge *m, const struct walsh_tensor *t, struct walsh_error *err)
{
    if (written_dtype(m, t) == t->dtype)
        return walsh_output_write(&m->output, t->name, t->data, t->bytes, err);
    const size_t n = walsh_tensor_elements(t);
    float *values;
    WALSH_TRY(walsh_alloc(n, sizeof *values, t->name, &values, err));
    walsh_tensor_to_f32(t, values);
    const enum walsh_status status = write_values(m, t->name, values, n, err);
    walsh_free(values);
    return status;
}

/* --- one linear --- */

static bool has_updates(const struct merge *m, const struct walsh_linear *l)
{
    const struct walsh_adapter_set *set = m->merging->set;
    return set && set->first[l->index] < set->first[l->index + 1];
}

/* Rows of W~ from the layout that the kernels read, a tile each. */
struct decoding {
    const struct walsh_kernels *kernels;
    const struct walsh_weights *weights;
    float *out; /* [rows][cols] */
};

static void decode_rows(void *argument, size_t begin, size_t end, unsigned worker)
{
    (void)worker;
    const struct decoding *t = argument;
    const struct walsh_weights *w = t->weights;
    for (size_t row = begin * WALSH_BLOCK_ROWS; row < walsh_min(end * WALSH_BLOCK_ROWS, w->rows);
         row += WALSH_BLOCK_ROWS)
        t->kernels->decode_weights_f32(w, row, walsh_min(WALSH_BLOCK_ROWS, w->rows - row), 0, w->cols,
                                       t->out + row * w->cols, w->cols);
}

static void decode(const struct merge *m, const struct walsh_weights *weights, float *out)
{
    struct decoding t = {m->queue->kernels, weights, out};
    walsh_pool_run(m->queue->pool, walsh_div_up(weights->rows, WALSH_BLOCK_ROWS), 1, decode_rows, &t);
}

/* w [out][in] = crop(inverse_out W~ forward_in); an int8 head is rotated on its input side only. */
static enum walsh_status decode_rotated(const struct merge *m, const struct walsh_linear *l, float *w,
                                        struct walsh_error *err)
{
    const size_t rows = l->weights.rows, cols = l->weights.cols, in = l->in;
    float *rotated, *narrow, *across;
    WALSH_TRY(walsh_alloc(rows * cols + 2 * rows * in, sizeof *rotated, l->name, &rotated, err));
    narrow = rotated + rows * cols;
    across = narrow + rows * in;
    decode(m, &l->weights, rotated);
    walsh_unrotate_rows(m->queue, &l->in_rotation, l->in_rotation.signs, rotated, rows, narrow);
    if (l->out_rotation.kind == WALSH_ROTATION_NONE) {
        memcpy(w, narrow, l->out * in * sizeof *w);
        walsh_free(rotated);
        return WALSH_OK;
    }
    walsh_transpose(m->queue, narrow, rows, in, across);
    walsh_unrotate_rows(m->queue, &l->out_rotation, l->out_rotation.signs, across, in, narrow);
    walsh_transpose(m->queue, narrow, in, l->out, w);
    walsh_free(rotated);
    return WALSH_OK;
}

/* An update in the linear's original space, its scale in B: A [rank][in], B [out][rank]. */
struct plain_update {
    size_t rank;
    double *a, *b;
};

static enum walsh_status open_update(const struct walsh_linear *l, const struct walsh_adapter_term *term,
                                     struct plain_update *out, struct walsh_error *err)
{
    const struct walsh_adapter_linear *u = term->update;
    const size_t rank = u->rank, in = l->in;
    double *values;
    WALSH_TRY(walsh_alloc(rank * (in + l->out) + u->out + l->out, sizeof *values, "an adapter's weights",
                          &values, err));
    *out = (struct plain_update){rank, values, values + rank * in};
    double *column = out->b + rank * l->out, *original = column + u->out;
    for (size_t j = 0; j < rank; j++) {
        for (size_t i = 0; i < in; i++) out->a[j * in + i] = (double)walsh_adapter_a(u, j, i);
        for (size_t o = 0; o < u->out; o++)
            column[o] = (double)term->scale * (double)walsh_adapter_b(u, o, j);
        walsh_rotate_inverse_f64(&l->out_rotation, column, original);
        for (size_t o = 0; o < l->out; o++) out->b[o * rank + j] = original[o];
    }
    return WALSH_OK;
}

/* Rows of w += B A of all updates. */
struct adding {
    size_t in, count;
    struct plain_update updates[WALSH_MAX_ADAPTERS];
    float *w;
    double *sums; /* [threads][in] */
};

static void add_rows(void *argument, size_t begin, size_t end, unsigned worker)
{
    const struct adding *t = argument;
    const size_t in = t->in;
    double *sum = t->sums + worker * in;
    for (size_t o = begin; o < end; o++) {
        for (size_t i = 0; i < in; i++) sum[i] = (double)t->w[o * in + i];
        for (size_t n = 0; n < t->count; n++) {
            const struct plain_update *u = &t->updates[n];
            for (size_t j = 0; j < u->rank; j++) {
                const double b = u->b[o * u->rank + j], *a = u->a + j * in;
                for (size_t i = 0; i < in; i++) sum[i] += b * a[i];
            }
        }
        for (size_t i = 0; i < in; i++) t->w[o * in + i] = (float)sum[i];
    }
}

static enum walsh_status add_updates(const struct merge *m, const struct walsh_linear *l, float *w,
                                     struct walsh_error *err)
{
    const struct walsh_adapter_set *set = m->merging->set;
    struct adding adding = {.in = l->in, .w = w};
    if (!has_updates(m, l)) return WALSH_OK;
    enum walsh_status status = walsh_alloc((size_t)walsh_pool_threads(m->queue->pool) * l->in,
                                           sizeof *adding.sums, "sums of a merge", &adding.sums, err);
    for (uint32_t t = set->first[l->index]; t < set->first[l->index + 1] && status == WALSH_OK; t++) {
        status = open_update(l, &set->terms[t], &adding.updates[adding.count], err);
        if (status == WALSH_OK) adding.count++;
    }
    if (status == WALSH_OK) walsh_pool_run(m->queue->pool, l->out, 8, add_rows, &adding);
    for (size_t n = 0; n < adding.count; n++) walsh_free(adding.updates[n].a);
    walsh_free(adding.sums);
    return status;
}

/* w [out][in] of the linear with its updates. */
static enum walsh_status merged_weight(const struct merge *m, const struct walsh_linear *l, float *w,
                                       struct walsh_error *err)
{
    if (l->in_rotation.kind != WALSH_ROTATION_NONE)
        WALSH_TRY(decode_rotated(m, l, w, err));
    else
        decode(m, &l->weights, w);
    return add_updates(m, l, w, err);
}

/* A linear's part of a stack [stack][in][rows]. */
static enum walsh_status merge_stacked(const struct merge *m, const struct walsh_linear *l, float *stack,
                                       struct walsh_error *err)
{
    const struct walsh_fusion *f = &l->fusion;
    const size_t step = f->step ? f->step : 1, in = l->in;
    float *w, *to = stack + (size_t)f->matrix * in * f->rows + f->row;
    WALSH_TRY(walsh_alloc((size_t)l->out * in, sizeof *w, l->name, &w, err));
    const enum walsh_status status = merged_weight(m, l, w, err);
    for (size_t k = 0; k < in && status == WALSH_OK; k++)
        for (size_t r = 0; r < l->out; r++) to[k * f->rows + r * step] = w[r * in + k];
    walsh_free(w);
    return status;
}

/* The tensor of one linear, or of all those that are parts of it. */
static enum walsh_status write_weight(struct merge *m, const char *name, const struct walsh_linear *only,
                                      size_t elements, struct walsh_error *err)
{
    float *w;
    WALSH_TRY(walsh_alloc(elements, sizeof *w, name, &w, err));
    enum walsh_status status = only ? merged_weight(m, only, w, err) : WALSH_OK;
    for (size_t i = 0; !only && i < m->linear_count && status == WALSH_OK; i++) {
        const struct walsh_linear *l = m->linears[i];
        if (!is_part(l, name)) continue;
        status = l->fusion.stack ? merge_stacked(m, l, w, err)
                                 : merged_weight(m, l, w + (size_t)l->fusion.row * l->in, err);
    }
    if (status == WALSH_OK) status = write_values(m, name, w, elements, err);
    walsh_free(w);
    return status;
}

/* Is a linear, or one of the parts of a matrix, changed by an adapter? */
static bool is_updated(const struct merge *m, const char *tensor, const struct walsh_linear *only)
{
    if (only) return has_updates(m, only);
    for (size_t i = 0; i < m->linear_count; i++)
        if (is_part(m->linears[i], tensor) && has_updates(m, m->linears[i])) return true;
    return false;
}

/* --- the job --- */

static enum walsh_status write_tensors(struct merge *m, struct walsh_error *err)
{
    const struct walsh_checkpoint *ck = &m->merging->graph->checkpoint;
    const struct walsh_safetensors_plan *p = &m->output.plan;
    for (size_t i = 0; i < p->count; i++) {
        WALSH_TRY(walsh_check_abort(m->hooks, err));
        const struct walsh_tensor *source = walsh_checkpoint_find(ck, p->tensors[i].name);
        const char *suffix = "";
        const struct walsh_linear *l = find_linear(m, p->tensors[i].name, &suffix);
        if (l && strcmp(suffix, "weight") != 0) l = NULL;
        /* codes may stand under the name that the floats get */
        if (!source || is_code(m, source) || is_updated(m, p->tensors[i].name, l))
            WALSH_TRY(write_weight(m, p->tensors[i].name, l, walsh_tensor_elements(&p->tensors[i]), err));
        else
            WALSH_TRY(copy_tensor(m, source, err));
        walsh_progress(m->hooks, "merge", (double)(i + 1), (double)p->count, "tensors");
    }
    return WALSH_OK;
}

/* What differs in config.json. */
static enum walsh_status config_changes(const struct merge *m, json_t **out, struct walsh_error *err)
{
    const struct walsh_checkpoint *ck = &m->merging->graph->checkpoint;
    const char *type = m->merging->dtype == WALSH_F32 ? "float32" : "bfloat16";
    json_t *config = json_loadb(ck->config_json, ck->config_size, JSON_REJECT_DUPLICATES, NULL);
    if (!config) return walsh_fail(err, WALSH_E_MEMORY, "no memory for config.json");
    const bool renamed = json_object_get(config, "dtype"); /* as newer writers call it */
    json_decref(config);
    *out = json_pack("{s:n, s:s}", "quantization_config", renamed ? "dtype" : "torch_dtype", type);
    return *out ? WALSH_OK : walsh_fail(err, WALSH_E_MEMORY, "no memory for config.json");
}

static enum walsh_status run(struct merge *m, const char *destination, uint64_t *bytes,
                             struct walsh_error *err)
{
    const struct walsh_model_graph *graph = m->merging->graph;
    struct walsh_safetensors_plan written = {0};
    if (!graph->checkpoint.directory)
        return walsh_fail(err, WALSH_E_ARGUMENT, "a synthetic model has no directory to merge into");
    if (walsh_path_exists(destination))
        return walsh_fail(err, WALSH_E_EXISTS, "%s exists; merge writes a new directory", destination);
    if (graph->config.tied_embeddings && has_updates(m, &graph->head))
        return walsh_fail(err, WALSH_E_UNSUPPORTED,
                          "an adapter updates %s, whose weights are the embedding's too: it cannot be merged",
                          graph->head.name);
    WALSH_TRY(list_linears(m, err));
    enum walsh_status status = plan(m, &written, err);
    if (status == WALSH_OK)
        status =
            walsh_output_open(&graph->checkpoint, destination, &written, "merge", false, &m->output, err);
    walsh_plan_close(&written);
    if (status == WALSH_OK) status = write_tensors(m, err);
    json_t *changes = NULL;
    if (status == WALSH_OK) status = config_changes(m, &changes, err);
    if (status == WALSH_OK) *bytes = m->output.plan.file_bytes;
    if (status == WALSH_OK) status = walsh_output_finish(&m->output, changes, err);
    json_decref(changes);
    if (status != WALSH_OK) walsh_output_discard(&m->output);
    return status;
}

enum walsh_status walsh_merge_job(const struct walsh_queue *q, const struct walsh_hooks *hooks,
                                  const struct walsh_merging *merging, const char *destination,
                                  uint64_t *bytes, struct walsh_error *err)
{
    struct merge m = {.queue = q, .hooks = hooks, .merging = merging, .output = {.fd = -1, .lock = -1}};
    const enum walsh_status status = run(&m, destination, bytes, err);
    walsh_output_close(&m.output);
    walsh_arena_close(&m.arena);
    return status;
}
