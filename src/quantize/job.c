#include "quantize/job.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <xxhash.h>

#include "base/clock.h"
#include "checkpoint/blocks.h"
#include "checkpoint/glq.h"
#include "kernels/table.h"
#include "quantize/blocks.h"
#include "quantize/head.h"
#include "quantize/calibration.h"
#include "quantize/ldlq.h"
#include "quantize/output.h"
#include "quantize/rotate.h"
#include "quantize/scales.h"

#define NAME_SIZE 320

static const char *const rotation_names[] = {"block", "pow2", "overlap", "none"};

/* Shares of a layer's time, for the progress bar only. */
static const double observe_share = 0.35, encode_share = 0.35;

/* One of the directories that a job writes. */
struct target {
    unsigned bits;
    struct walsh_e8p_plan stages;
    struct walsh_safetensors_plan plan; /* until the output takes it */
    struct walsh_output output;
    struct walsh_job_report *report;
    struct walsh_job_linear *rows; /* of the layer at hand */
};

struct job {
    const struct walsh_queue *queue;  /* the CPU's: the forward pass, rotations, factors */
    const struct walsh_queue *device; /* of Hessians and searches; NULL: the CPU */
    const struct walsh_hooks *hooks;
    const struct walsh_job_options *options;
    struct walsh_block_writer blocks; /* of a block format */
    bool stacked;                     /* experts go into gpt-oss's stacks, everything else stays */
    struct walsh_model_graph *graph;
    struct walsh_calibration calibration;
    bool calibrated;
    bool ours;                                     /* it has what GLQ or compressed-tensors do not know */
    struct target targets[WALSH_JOB_OUTPUTS], *to; /* the one that is worked on */
    /* the layer at hand */
    uint32_t layer;
    double share_begin, share; /* of its progress */
};

static void show_progress(void *user, double done)
{
    const struct job *job = user;
    walsh_progress(job->hooks, "quantize", job->layer + job->share_begin + job->share * done,
                   job->graph->config.layers, "layers");
}

static void begin_share(struct job *job, double begin, double share)
{
    job->share_begin = begin;
    job->share = share;
}

/* --- what will be written --- */

/* The rotation of a linear's inputs or outputs, without its signs. */
static enum walsh_status plan_rotation(const struct job *job, const struct walsh_linear *linear, bool inputs,
                                       struct walsh_rotation *out, struct walsh_error *err)
{
    const struct walsh_job_options *o = job->options;
    const uint32_t n = inputs ? linear->in : linear->out,
                   min_block = inputs ? WALSH_MIN_BLOCK_COLUMNS : WALSH_MIN_BLOCK_ROWS;
    if (o->rotation == WALSH_JOB_OVERLAP) return walsh_rotation_overlap_padded(n, min_block, NULL, out, err);
    *out = (struct walsh_rotation){.kind = WALSH_ROTATION_BLOCKS, .size = n};
    if (o->rotation == WALSH_JOB_NONE) {
        out->kind = WALSH_ROTATION_NONE;
        out->blocks.padded = n;
        return WALSH_OK;
    }
    if (o->rotation == WALSH_JOB_POW2) return walsh_blocks_pow2(n, min_block, &out->blocks, err);
    if (o->tensor_parallel == 1 || linear->split.inputs != inputs)
        return walsh_blocks_binary(n, min_block, &out->blocks, err);
    const enum walsh_status status = walsh_blocks_parts(n, min_block, o->tensor_parallel, &out->blocks, err);
    return status == WALSH_OK ? status
                              : walsh_fail_within(err, status, "%s of %s",
                                                  inputs ? "the inputs" : "the outputs", linear->name);
}

static uint64_t linear_bytes(const struct job *job, const struct walsh_rotation *out,
                             const struct walsh_rotation *in)
{
    const uint64_t m = out->blocks.padded, n = in->blocks.padded;
    uint64_t bytes = (walsh_rotation_signs(out) + walsh_rotation_signs(in)) * 2 + 4;
    for (unsigned k = 0; k < job->to->stages.stages; k++) {
        bytes += m * (n / 8) * (job->to->stages.kind[k] == WALSH_STAGE_E8P ? 2 : 1);
        if (k > 0) bytes += 4;
    }
    return bytes;
}

static bool is_block(const struct job *job)
{
    return job->options->format != WALSH_FORMAT_E8P;
}

static bool is_rotated(const struct job *job)
{
    return job->options->rotation != WALSH_JOB_NONE;
}

/* The tensor of one side's signs: [padded], of an overlap [2][padded]. */
static enum walsh_status plan_signs(struct walsh_safetensors_plan *plan, const char *linear,
                                    const char *which, const struct walsh_rotation *r, uint64_t *bytes,
                                    struct walsh_error *err)
{
    char name[NAME_SIZE];
    const uint64_t padded = r->blocks.padded;
    snprintf(name, sizeof name, "%s.%s", linear, which);
    *bytes += 2 * walsh_rotation_signs(r);
    if (r->kind == WALSH_ROTATION_OVERLAP)
        return walsh_plan_add(plan, name, WALSH_F16, 2, (const uint64_t[]){2, padded}, err);
    return walsh_plan_add(plan, name, WALSH_F16, 1, &padded, err);
}

static enum walsh_status plan_block_linear(struct job *job, struct walsh_safetensors_plan *plan,
                                           const struct walsh_linear *linear,
                                           const struct walsh_rotation *out, const struct walsh_rotation *in,
                                           uint64_t *bytes, struct walsh_error *err)
{
    WALSH_TRY(walsh_block_plan(&job->blocks, linear, out->blocks.padded, in->blocks.padded, job->stacked,
                               plan, bytes, err));
    if ((linear->fusion.name && !job->stacked) || is_rotated(job)) job->ours = true;
    if (!is_rotated(job)) return WALSH_OK;
    WALSH_TRY(plan_signs(plan, linear->name, "SV", in, bytes, err));
    return plan_signs(plan, linear->name, "SU", out, bytes, err);
}

static enum walsh_status plan_linear(struct job *job, struct walsh_safetensors_plan *plan,
                                     const struct walsh_linear *linear, struct walsh_error *err)
{
    struct walsh_rotation in, out;
    uint64_t bytes;
    if (linear->weights.format == WALSH_FORMAT_E8P || linear->in_rotation.kind != WALSH_ROTATION_NONE)
        return walsh_fail(err, WALSH_E_ARGUMENT,
                          "%s: %s is quantized already; quantize the original checkpoint",
                          job->graph->checkpoint.directory, linear->name);
    WALSH_TRY(plan_rotation(job, linear, true, &in, err));
    WALSH_TRY(plan_rotation(job, linear, false, &out, err));
    if (is_block(job)) {
        WALSH_TRY(plan_block_linear(job, plan, linear, &out, &in, &bytes, err));
    } else {
        WALSH_TRY(
            walsh_glq_plan(plan, linear->name, &out, &in, job->to->stages.stages, job->to->stages.kind, err));
        bytes = linear_bytes(job, &out, &in);
        if (linear->bias || linear->fusion.name) job->ours = true;
    }
    struct walsh_job_linear *row = &job->to->report->linears[job->to->report->linear_count++];
    *row = (struct walsh_job_linear){.rows = linear->out, .cols = linear->in, .bytes = bytes};
    snprintf(row->name, sizeof row->name, "%s", linear->name);
    return WALSH_OK;
}

/* The groups of a layer that are quantized: all, but for gpt-oss in its own layout the experts' only. */
static enum walsh_status layer_groups(const struct job *job, struct walsh_layer *layer,
                                      struct walsh_input_group **groups, size_t *count,
                                      struct walsh_error *err)
{
    size_t all, kept = 0;
    WALSH_TRY(walsh_layer_groups(job->graph, layer, groups, &all, err));
    for (size_t g = 0; g < all; g++)
        if (!job->stacked || (*groups)[g].linears[0]->fusion.stack) (*groups)[kept++] = (*groups)[g];
    *count = kept;
    return WALSH_OK;
}

/* Every linear of the layers that is quantized. */
typedef enum walsh_status visit_linear(struct job *job, struct walsh_safetensors_plan *plan,
                                       const struct walsh_linear *linear, struct walsh_error *err);

static enum walsh_status visit_linears(struct job *job, struct walsh_safetensors_plan *plan,
                                       visit_linear *visit, struct walsh_error *err)
{
    for (uint32_t i = 0; i < job->graph->config.layers; i++) {
        struct walsh_input_group *groups;
        size_t count;
        WALSH_TRY(layer_groups(job, &job->graph->layers[i], &groups, &count, err));
        enum walsh_status status = WALSH_OK;
        for (size_t g = 0; g < count; g++)
            for (unsigned l = 0; l < groups[g].count && status == WALSH_OK; l++)
                status = visit(job, plan, groups[g].linears[l], err);
        walsh_free(groups);
        if (status != WALSH_OK) return status;
    }
    return WALSH_OK;
}

/* Replaced, not copied. Behind all plans, as a stack is replaced once. */
static enum walsh_status release_linear(struct job *job, struct walsh_safetensors_plan *plan,
                                        const struct walsh_linear *linear, struct walsh_error *err)
{
    const struct walsh_fusion *f = &linear->fusion;
    (void)plan, (void)err;
    walsh_blocks_release(&job->graph->checkpoint, f->name ? f->name : linear->name, f->stack != 0);
    return WALSH_OK;
}

/* The default of --group-size: what divides the columns of all. */
static enum walsh_status divide_group(struct job *job, struct walsh_safetensors_plan *plan,
                                      const struct walsh_linear *linear, struct walsh_error *err)
{
    struct walsh_rotation in;
    (void)plan;
    WALSH_TRY(plan_rotation(job, linear, true, &in, err));
    while (job->blocks.group > 32 && in.blocks.padded % job->blocks.group != 0) job->blocks.group /= 2;
    return WALSH_OK;
}

static enum walsh_status choose_blocks(struct job *job, struct walsh_error *err)
{
    const struct walsh_job_options *o = job->options;
    job->blocks = (struct walsh_block_writer){o->format, o->group ? o->group : 128, o->rounding};
    if (!is_block(job)) return WALSH_OK;
    const struct walsh_layer *first = &job->graph->layers[0];
    job->stacked =
        first->experts && walsh_block_is_stacked(&job->blocks, &first->experts[0].gate, is_rotated(job));
    return o->group ? WALSH_OK : visit_linears(job, NULL, divide_group, err);
}

static size_t count_linears(const struct walsh_model_graph *graph)
{
    size_t count = 0;
    for (uint32_t i = 0; i < graph->config.layers; i++)
        count += 4 + 3 * (size_t)(graph->layers[i].experts ? graph->config.experts : 1);
    return count;
}

/* Embeddings, head, norms and router are kept in bf16; a bias, which costs nothing, as it is. */
static enum walsh_dtype kept_dtype(const struct walsh_tensor *t)
{
    static const char bias[] = "bias"; /* ".bias", "_bias" */
    size_t size = strlen(t->name), end = sizeof bias - 1;
    bool is_bias = size > end && strcmp(t->name + size - end, bias) == 0;
    bool is_float = t->dtype == WALSH_F32 || t->dtype == WALSH_F16;
    return is_bias || !is_float ? t->dtype : WALSH_BF16;
}

/* Every quantized linear in its layout, everything else in bf16. */
static enum walsh_status plan_output(struct job *job, struct walsh_safetensors_plan *plan,
                                     struct walsh_error *err)
{
    struct walsh_model_graph *graph = job->graph;
    WALSH_TRY(walsh_alloc_zero(count_linears(graph), sizeof *job->to->report->linears, "the report",
                               &job->to->report->linears, err));
    WALSH_TRY(choose_blocks(job, err));
    WALSH_TRY(visit_linears(job, plan, plan_linear, err));
    WALSH_TRY(visit_linears(job, plan, release_linear, err));
    if (job->options->head_int8) WALSH_TRY(walsh_head_plan(graph, plan, err));
    for (size_t i = 0; i < graph->checkpoint.tensor_count; i++) {
        const struct walsh_tensor *t = graph->checkpoint.tensors[i];
        if (t->used) WALSH_TRY(walsh_plan_add(plan, t->name, kept_dtype(t), t->rank, t->shape, err));
    }
    WALSH_TRY(walsh_plan_finish(plan, err));
    job->to->report->bytes_predicted = plan->file_bytes;
    return WALSH_OK;
}

/* What makes two jobs the same: options, calibration tokens, samples of the source's bytes, and the
 * instruction sets, on which the bits of float sums depend. */
static void describe(const struct job *job, uint64_t calibration, char *out, size_t size)
{
    const struct walsh_job_options *o = job->options;
    const struct walsh_checkpoint *ck = &job->graph->checkpoint;
    uint64_t source = XXH64(ck->config_json, ck->config_size, 0);
    for (size_t i = 0; i < ck->tensor_count; i++) {
        const struct walsh_tensor *t = ck->tensors[i];
        source = XXH64(t->name, strlen(t->name), source + t->bytes);
        source = XXH64(t->data, walsh_min(t->bytes, 4096), source);
        source =
            XXH64((const uint8_t *)t->data + t->bytes / 2, walsh_min(t->bytes - t->bytes / 2, 4096), source);
    }
    const char *head = o->head_int8 ? "int8" : "bf16";
    if (is_block(job)) {
        snprintf(out, size,
                 "walsh %s, %s, head %s, groups of %u, rounding %d, %s, seed %" PRIu64 ", source %016" PRIx64,
                 WALSH_VERSION, walsh_format_name(o->format), head, job->blocks.group, (int)o->rounding,
                 rotation_names[o->rotation], o->seed, source);
        return;
    }
    snprintf(out, size,
             "walsh %s, e8p %u bits, head %s, %s in %u parts, %u x %u calibration tokens %016" PRIx64
             ", %u passes, %s, seed %" PRIu64 ", source %016" PRIx64 ", kernels %x%s",
             WALSH_VERSION, job->to->bits, head, rotation_names[o->rotation], o->tensor_parallel,
             job->calibration.samples, job->calibration.tokens, calibration, o->passes,
             o->tune ? "tuned" : "plain", o->seed, source, job->queue->kernels->isa,
             job->device ? ", searched on a device" : "");
}

/* --- one linear --- */

struct widening {
    const struct walsh_kernels *kernels;
    const struct walsh_weights *weights;
    float *out;
};

static void widen_rows(void *argument, size_t begin, size_t end, unsigned worker)
{
    const struct widening *t = argument;
    const struct walsh_weights *w = t->weights;
    (void)worker;
    for (size_t tile = begin; tile < end; tile++) {
        const size_t row = tile * WALSH_BLOCK_ROWS;
        t->kernels->decode_weights_f32(w, row, walsh_min(WALSH_BLOCK_ROWS, w->rows - row), 0, w->cols,
                                       t->out + row * w->cols, w->cols);
    }
}

/* f32 [rows][cols] of weights in any format. */
static enum walsh_status weights_to_f32(const struct job *job, const struct walsh_linear *linear, float **out,
                                        struct walsh_error *err)
{
    const struct walsh_weights *w = &linear->weights;
    WALSH_TRY(walsh_alloc((size_t)w->rows * w->cols, sizeof **out, linear->name, out, err));
    struct widening t = {job->queue->kernels, w, *out};
    walsh_pool_run(job->queue->pool, walsh_div_up(w->rows, WALSH_BLOCK_ROWS), 1, widen_rows, &t);
    return WALSH_OK;
}

/* The rotation of a linear's inputs or outputs with signs of its own, walsh_free. */
static enum walsh_status new_rotation(const struct job *job, const struct walsh_linear *linear, bool inputs,
                                      struct walsh_rotation *out, float **signs, struct walsh_error *err)
{
    char name[NAME_SIZE];
    WALSH_TRY(plan_rotation(job, linear, inputs, out, err));
    const size_t count = walsh_rotation_signs(out);
    WALSH_TRY(walsh_alloc(count, sizeof **signs, "signs", signs, err));
    snprintf(name, sizeof name, "%s.%s", linear->name, inputs ? "SV" : "SU");
    walsh_random_signs(job->options->seed, name, *signs, (uint32_t)count);
    out->signs = *signs;
    return WALSH_OK;
}

static enum walsh_status write_f16(struct job *job, const char *linear, const char *which,
                                   const float *values, size_t n, struct walsh_error *err)
{
    char name[NAME_SIZE];
    uint16_t *half;
    WALSH_TRY(walsh_alloc(n, sizeof *half, "signs", &half, err));
    for (size_t i = 0; i < n; i++) half[i] = walsh_f16_from_f32(values[i]);
    snprintf(name, sizeof name, "%s.%s", linear, which);
    enum walsh_status status = walsh_output_write(&job->to->output, name, half, n * sizeof *half, err);
    walsh_free(half);
    return status;
}

static enum walsh_status write_linear(struct job *job, const char *linear, const struct walsh_rotation *in,
                                      const struct walsh_rotation *out, const struct walsh_ldlq_result *r,
                                      struct walsh_error *err)
{
    char name[NAME_SIZE];
    uint8_t *stored;
    size_t codes = (size_t)r->m * (r->n / 8);
    WALSH_TRY(walsh_alloc(codes, sizeof(uint16_t), "packed codes", &stored, err));
    enum walsh_status status = WALSH_OK;
    for (unsigned k = 0; k < r->plan.stages && status == WALSH_OK; k++) {
        bool e8p = r->plan.kind[k] == WALSH_STAGE_E8P;
        if (e8p)
            walsh_glq_pack_e8p(r->codes[k], r->m, r->n, stored);
        else
            walsh_glq_pack_e81b(r->codes[k], r->m, r->n, stored);
        walsh_glq_codes_name(linear, k, r->plan.kind[k], name, sizeof name);
        status = walsh_output_write(&job->to->output, name, stored, codes * (e8p ? 2 : 1), err);
        if (status != WALSH_OK || k == 0) continue;
        walsh_glq_scale_name(linear, k, name, sizeof name);
        status = walsh_output_write(&job->to->output, name, &r->cumulative_inverse[k], sizeof(float), err);
    }
    walsh_free(stored);
    if (status != WALSH_OK) return status;
    snprintf(name, sizeof name, "%s.Wscale", linear);
    WALSH_TRY(walsh_output_write(&job->to->output, name, &r->wscale, sizeof r->wscale, err));
    WALSH_TRY(write_f16(job, linear, "SV", in->signs, walsh_rotation_signs(in), err));
    return write_f16(job, linear, "SU", out->signs, walsh_rotation_signs(out), err);
}

static enum walsh_status quantize_linear(struct job *job, const struct walsh_ldlq_input *input,
                                         const struct walsh_linear *linear, const float *w,
                                         struct walsh_job_linear *row, struct walsh_error *err)
{
    struct walsh_rotation rotation;
    float *signs = NULL;
    struct walsh_ldlq_result result = {0};
    double start = walsh_now();
    WALSH_TRY(walsh_check_abort(job->hooks, err));
    enum walsh_status status = new_rotation(job, linear, false, &rotation, &signs, err);
    if (status == WALSH_OK && job->options->tune)
        status = walsh_scale_outputs(&rotation, w, linear->in, signs, err);
    const struct walsh_ldlq_options options = {.bits = job->to->bits,
                                               .passes = job->options->passes,
                                               .tune = job->options->tune,
                                               .device = job->device};
    if (status == WALSH_OK)
        status = walsh_ldlq_quantize(job->queue, input, &rotation, w, &options, &result, NULL, err);
    if (status == WALSH_OK)
        status = write_linear(job, linear->name, &input->rotation, &rotation, &result, err);
    row->proxy = result.proxy;
    row->seconds = walsh_now() - start;
    walsh_ldlq_result_close(&result);
    walsh_free(signs);
    return status;
}

/* --- one linear in a block format --- */

/* w~ [out padded][in padded] = forward_out w forward_in^T. */
static enum walsh_status rotate_weights(const struct job *job, const struct walsh_linear *linear,
                                        const struct walsh_rotation *in, const struct walsh_rotation *out,
                                        const float *w, float **rotated, struct walsh_error *err)
{
    const size_t rows = linear->out, cols = in->blocks.padded, padded = out->blocks.padded;
    float *across;
    WALSH_TRY(walsh_alloc(padded * cols, 2 * sizeof **rotated, linear->name, rotated, err));
    across = *rotated + padded * cols;
    walsh_rotate_rows(job->queue, in, in->signs, w, rows, *rotated);
    walsh_transpose(job->queue, *rotated, rows, cols, across);
    walsh_rotate_rows(job->queue, out, out->signs, across, cols, *rotated);
    memcpy(across, *rotated, padded * cols * sizeof **rotated);
    walsh_transpose(job->queue, across, cols, padded, *rotated);
    return WALSH_OK;
}

/* in: NULL where nothing is rotated. */
static enum walsh_status quantize_block_linear(struct job *job, const struct walsh_linear *linear,
                                               const struct walsh_rotation *in, struct walsh_job_linear *row,
                                               struct walsh_error *err)
{
    float *w = NULL, *rotated = NULL, *signs = NULL;
    struct walsh_rotation out;
    const double start = walsh_now();
    WALSH_TRY(walsh_check_abort(job->hooks, err));
    enum walsh_status status = weights_to_f32(job, linear, &w, err);
    if (status == WALSH_OK && in) {
        status = new_rotation(job, linear, false, &out, &signs, err);
        if (status == WALSH_OK) status = rotate_weights(job, linear, in, &out, w, &rotated, err);
        if (status == WALSH_OK)
            status = write_f16(job, linear->name, "SV", in->signs, walsh_rotation_signs(in), err);
        if (status == WALSH_OK)
            status = write_f16(job, linear->name, "SU", out.signs, walsh_rotation_signs(&out), err);
    }
    if (status == WALSH_OK)
        status = walsh_block_write(&job->blocks, job->queue->pool, &job->to->output, linear, in ? rotated : w,
                                   in ? out.blocks.padded : linear->out, in ? in->blocks.padded : linear->in,
                                   job->stacked, &row->proxy, err);
    row->seconds = walsh_now() - start;
    walsh_free(w);
    walsh_free(rotated);
    walsh_free(signs);
    return status;
}

/* Linears of one input share its signs. */
static enum walsh_status quantize_block_group(struct job *job, const struct walsh_input_group *g,
                                              struct walsh_job_linear *rows, struct walsh_error *err)
{
    float *signs = NULL;
    struct walsh_rotation in;
    if (is_rotated(job)) WALSH_TRY(new_rotation(job, g->linears[0], true, &in, &signs, err));
    enum walsh_status status = WALSH_OK;
    for (unsigned l = 0; l < g->count && status == WALSH_OK; l++)
        status = quantize_block_linear(job, g->linears[l], is_rotated(job) ? &in : NULL, &rows[l], err);
    walsh_free(signs);
    return status;
}

/* --- one input: its linears share SV and the Hessian --- */

/* The Hessian of a group, or NULL for the identity. */
static const float *group_hessian(const struct job *job, const struct walsh_input_group *g)
{
    if (!job->calibrated) return NULL;
    if (g->hessian.tokens > 0) return g->hessian.sum;
    walsh_log(job->hooks, WALSH_LOG_WARNING,
              "%s: no calibration token was routed to it; the identity stands in for its Hessian",
              g->linears[0]->name);
    return NULL;
}

static enum walsh_status scale_inputs(const struct walsh_input_group *g, float *const *w,
                                      const float *hessian, float *signs, struct walsh_error *err)
{
    uint32_t n = g->linears[0]->in, rows[3];
    const float *weights[3];
    float *diagonal = NULL;
    for (unsigned l = 0; l < g->count; l++) {
        rows[l] = g->linears[l]->out;
        weights[l] = w[l];
    }
    if (hessian) {
        WALSH_TRY(walsh_alloc(n, sizeof *diagonal, "a Hessian's diagonal", &diagonal, err));
        for (size_t i = 0; i < n; i++) diagonal[i] = hessian[i * n + i];
    }
    enum walsh_status status = walsh_scale_inputs(n, weights, rows, g->count, diagonal, signs, err);
    walsh_free(diagonal);
    return status;
}

/* Does the target lack the layer at hand? A stopped job may have left some of them a layer behind. */
static bool lacks_layer(const struct job *job, const struct target *t)
{
    return job->layer >= t->output.layers_done;
}

/* One linear in every width; `at`: its place among the layer's. */
static enum walsh_status quantize_widths(struct job *job, const struct walsh_ldlq_input *input,
                                         const struct walsh_linear *linear, const float *w, size_t at,
                                         struct walsh_error *err)
{
    for (size_t i = 0; i < job->options->outputs; i++) {
        job->to = &job->targets[i];
        if (lacks_layer(job, job->to))
            WALSH_TRY(quantize_linear(job, input, linear, w, &job->to->rows[at], err));
    }
    return WALSH_OK;
}

static enum walsh_status quantize_group(struct job *job, struct walsh_input_group *g, size_t at,
                                        struct walsh_error *err)
{
    float *w[3] = {0}, *signs = NULL;
    struct walsh_rotation rotation;
    struct walsh_ldlq_input input = {0};
    const float *hessian = group_hessian(job, g);
    enum walsh_status status = WALSH_OK;
    for (unsigned l = 0; l < g->count && status == WALSH_OK; l++)
        status = weights_to_f32(job, g->linears[l], &w[l], err);
    if (status == WALSH_OK) status = new_rotation(job, g->linears[0], true, &rotation, &signs, err);
    if (status == WALSH_OK && job->options->tune) status = scale_inputs(g, w, hessian, signs, err);
    if (status == WALSH_OK)
        status = walsh_ldlq_input_open(job->queue, &rotation, hessian, g->linears[0]->name, job->hooks,
                                       &input, err);
    walsh_hessian_close(&g->hessian);
    for (unsigned l = 0; l < g->count && status == WALSH_OK; l++)
        status = quantize_widths(job, &input, g->linears[l], w[l], at + l, err);
    walsh_ldlq_input_close(&input);
    for (unsigned l = 0; l < g->count; l++) walsh_free(w[l]);
    walsh_free(signs);
    return status;
}

/* --- one layer --- */

static enum walsh_status quantize_layer(struct job *job, struct walsh_input_group *groups, size_t count,
                                        size_t linears, struct walsh_error *err)
{
    struct walsh_layer *layer = &job->graph->layers[job->layer];
    if (job->calibrated) {
        begin_share(job, 0, observe_share);
        WALSH_TRY(
            walsh_calibration_observe(&job->calibration, layer, groups, count, show_progress, job, err));
    }
    begin_share(job, job->calibrated ? observe_share : 0, job->calibrated ? encode_share : 1);
    double start = walsh_now();
    for (size_t g = 0, row = 0; g < count; row += groups[g++].count) {
        WALSH_TRY(is_block(job) ? quantize_block_group(job, &groups[g], job->to->rows + row, err)
                                : quantize_group(job, &groups[g], row, err));
        show_progress(job, (double)(g + 1) / (double)count);
    }
    job->targets[0].report->encode_seconds += walsh_now() - start;
    for (size_t i = 0; i < job->options->outputs; i++)
        if (lacks_layer(job, &job->targets[i]))
            WALSH_TRY(walsh_output_layer_done(&job->targets[i].output, job->targets[i].rows, linears, err));
    return WALSH_OK;
}

/* The layer as it was written: its linears from the output, norms and router from the source. */
static enum walsh_status reload(struct job *job, const struct walsh_checkpoint *written,
                                struct walsh_layer *layer, struct walsh_arena *arena, struct walsh_error *err)
{
    struct walsh_input_group *groups;
    size_t count;
    if (layer->experts) {
        struct walsh_expert *experts;
        WALSH_TRY(
            walsh_arena_alloc(arena, job->graph->config.experts, sizeof *experts, "experts", &experts, err));
        memcpy(experts, layer->experts, job->graph->config.experts * sizeof *experts);
        layer->experts = experts;
    }
    WALSH_TRY(walsh_layer_groups(job->graph, layer, &groups, &count, err));
    enum walsh_status status = WALSH_OK;
    for (size_t g = 0; g < count; g++)
        for (unsigned l = 0; l < groups[g].count && status == WALSH_OK; l++) {
            struct walsh_linear *linear = groups[g].linears[l], quantized;
            status = walsh_linear_load(
                &quantized, written, linear->name, NULL,
                &(struct walsh_split){linear->split.inputs, job->options->tensor_parallel}, linear->in,
                linear->out, false, WALSH_ACTIVATION_F32, WALSH_ACTIVATION_F32, job->queue->pool, arena, err);
            quantized.bias = linear->bias;
            if (status == WALSH_OK) *linear = quantized;
        }
    walsh_free(groups);
    return status;
}

static enum walsh_status advance(struct job *job, struct walsh_error *err)
{
    struct walsh_output_view written;
    struct walsh_arena arena = {0};
    struct walsh_layer layer = job->graph->layers[job->layer];
    begin_share(job, observe_share + encode_share, 1 - observe_share - encode_share);
    /* the widest is nearest to the model that all of them stand for */
    const struct target *widest = &job->targets[job->options->outputs - 1];
    WALSH_TRY(walsh_output_view_open(&widest->output, &written, err));
    enum walsh_status status = reload(job, &written.checkpoint, &layer, &arena, err);
    if (status == WALSH_OK)
        status = walsh_calibration_advance(&job->calibration, &layer, show_progress, job, err);
    walsh_arena_close(&arena);
    walsh_output_view_close(&written);
    return status;
}

static enum walsh_status run_layer(struct job *job, struct walsh_error *err)
{
    struct walsh_input_group *groups;
    size_t count;
    WALSH_TRY(layer_groups(job, &job->graph->layers[job->layer], &groups, &count, err));
    size_t linears = 0;
    bool any = false;
    enum walsh_status status = WALSH_OK;
    for (size_t g = 0; g < count; g++) linears += groups[g].count;
    for (size_t i = 0; i < job->options->outputs && status == WALSH_OK; i++) {
        struct target *t = &job->targets[i];
        if (lacks_layer(job, t))
            any = true;
        else
            status = walsh_output_check_layer(&t->output, job->layer, t->rows, linears, err);
    }
    job->to = &job->targets[0];
    if (any && status == WALSH_OK) status = quantize_layer(job, groups, count, linears, err);
    for (size_t i = 0; i < job->options->outputs; i++) job->targets[i].rows += linears;
    walsh_groups_close_hessians(groups, count);
    walsh_free(groups);
    if (status == WALSH_OK && job->calibrated && job->layer + 1 < job->graph->config.layers)
        status = advance(job, err);
    return status;
}

/* --- the job --- */

/* GLQ drops the biases of quantized linears, and it does not know the parts of a matrix that holds several,
 * overlaps, or blocks that are not a binary expansion: what has one of these is marked as ours, so that GLQ
 * refuses it. */
static json_t *quantization_config(const struct job *job)
{
    const struct walsh_job_options *o = job->options;
    if (is_block(job))
        return walsh_block_config(&job->blocks, job->stacked, job->ours, rotation_names[o->rotation],
                                  o->tensor_parallel);
    json_t *config = json_pack("{s:{s:s, s:s, s:b, s:i, s:i}}", "quantization_config", "quant_method",
                               job->ours ? "walsh" : "glq", "codebook", "e8p", "block_diagonal",
                               o->rotation != WALSH_JOB_POW2, "codesz", 8, "bpw", (int)job->to->bits);
    json_t *inner = json_object_get(config, "quantization_config");
    if (config && job->ours &&
        (json_object_set_new(inner, "version", json_integer(1)) != 0 ||
         json_object_set_new(inner, "rotation", json_string(rotation_names[o->rotation])) != 0 ||
         json_object_set_new(inner, "tensor_parallel", json_integer((json_int_t)o->tensor_parallel)) != 0)) {
        json_decref(config);
        return NULL;
    }
    return config;
}

/* Everything behind the layers of one target. */
static enum walsh_status finish_output(struct job *job, struct walsh_error *err)
{
    if (job->options->head_int8)
        WALSH_TRY(walsh_head_write(job->queue, job->graph, job->options->seed, &job->to->output, err));
    json_t *quantization = quantization_config(job);
    if (quantization && job->options->head_int8 &&
        json_object_set_new(quantization, "tie_word_embeddings", json_false()) != 0) {
        json_decref(quantization);
        quantization = NULL;
    }
    if (!quantization) return walsh_fail(err, WALSH_E_MEMORY, "no memory for the quantization config");
    enum walsh_status status = walsh_output_finish(&job->to->output, quantization, err);
    json_decref(quantization);
    if (status == WALSH_OK) job->to->report->bytes_written = job->to->report->bytes_predicted;
    return status;
}

static enum walsh_status write_outputs(struct job *job, const char *const *destinations, uint64_t fingerprint,
                                       struct walsh_error *err)
{
    char description[400];
    for (size_t i = 0; i < job->options->outputs; i++) {
        struct target *t = job->to = &job->targets[i];
        describe(job, fingerprint, description, sizeof description);
        WALSH_TRY(walsh_output_open(&job->graph->checkpoint, destinations[i], &t->plan, description,
                                    job->options->resume, &t->output, err));
        if (t->output.layers_done == 0) WALSH_TRY(walsh_output_copy_tensors(&t->output, job->hooks, err));
        t->rows = t->report->linears;
    }
    for (job->layer = 0; job->layer < job->graph->config.layers; job->layer++) {
        begin_share(job, 0, 1);
        show_progress(job, 0);
        WALSH_TRY(run_layer(job, err));
    }
    begin_share(job, 0, 0);
    show_progress(job, 0);
    for (size_t i = 0; i < job->options->outputs; i++) {
        job->to = &job->targets[i];
        WALSH_TRY(finish_output(job, err));
    }
    return WALSH_OK;
}

static enum walsh_status run(struct job *job, const char *source, const char *const *destinations,
                             struct walsh_error *err)
{
    const struct walsh_job_options *o = job->options;
    const struct walsh_load_options load = {.use_mmap = o->use_mmap,
                                            .tokenizer = o->calibration && !o->dry_run,
                                            .rotated = WALSH_ACTIVATION_F32,
                                            .dense = WALSH_ACTIVATION_F32};
    uint64_t fingerprint = 0;
    job->ours = o->rotation == WALSH_JOB_OVERLAP || o->tensor_parallel > 1 || o->head_int8;
    for (size_t i = 0; i < o->outputs && !is_block(job); i++)
        WALSH_TRY(walsh_e8p_plan_bits(job->targets[i].bits, &job->targets[i].stages, err));
    WALSH_TRY(walsh_graph_open(source, &load, job->queue, &job->graph, err));
    if (job->graph->config.architecture == WALSH_ARCH_LALAMO)
        return walsh_fail(err, WALSH_E_UNSUPPORTED,
                          "%s: a checkpoint of lalamo is not quantized; take the original checkpoint",
                          source);
    uint32_t most = job->graph->config.max_positions;
    uint32_t tokens = o->sample_tokens ? o->sample_tokens : most < 1024 ? most : 1024;
    if (tokens < 2 || tokens > most)
        return walsh_fail(err, WALSH_E_ARGUMENT, "%s: calibration sequences of %u tokens; expected 2..%u",
                          source, tokens, most);
    enum walsh_status status = WALSH_OK;
    for (size_t i = 0; i < o->outputs && status == WALSH_OK; i++) {
        job->to = &job->targets[i];
        status = plan_output(job, &job->to->plan, err);
    }
    if (status == WALSH_OK && !o->dry_run) {
        if (o->calibration) {
            status = walsh_calibration_open(job->graph, job->queue, job->hooks, o->calibration, o->samples,
                                            tokens, &job->calibration, &fingerprint, err);
            job->calibrated = status == WALSH_OK;
            job->calibration.device = job->device;
        }
        if (status == WALSH_OK) status = write_outputs(job, destinations, fingerprint, err);
    }
    return status;
}

/* *device: the queue that searches codes; NULL: the CPU's. Formats that only round are the host's, with the bytes of
 * a job without a device. */
static enum walsh_status choose_device(const struct walsh_queue *q, const struct walsh_hooks *hooks,
                                       const struct walsh_job_options *o, const struct walsh_queue **device,
                                       struct walsh_error *err)
{
    *device = NULL;
    if (!q->memory) return WALSH_OK;
    if (o->format != WALSH_FORMAT_E8P) {
        walsh_log(hooks, WALSH_LOG_INFO, "rounding to %s is done on the CPU: the device has no part in it",
                  walsh_format_name(o->format));
        return WALSH_OK;
    }
    if (!q->ops->quantize)
        return walsh_fail(err, WALSH_E_UNSUPPORTED, "quantize: this device has no searches of codes");
    *device = q;
    return WALSH_OK;
}

enum walsh_status walsh_quantize_job(const struct walsh_queue *q, const struct walsh_hooks *hooks,
                                     const char *source, const char *const *destinations,
                                     const struct walsh_job_options *options,
                                     struct walsh_job_report *reports, struct walsh_error *err)
{
    const struct walsh_queue host = walsh_queue_host(q);
    struct job job = {.queue = &host, .hooks = hooks, .options = options};
    const size_t outputs = options->outputs;
    WALSH_TRY(choose_device(q, hooks, options, &job.device, err));
    double start = walsh_now();
    for (size_t i = 0; i < outputs; i++) {
        reports[i] = (struct walsh_job_report){0};
        job.targets[i] = (struct target){
            .bits = options->bits[i], .output = {.fd = -1, .lock = -1}, .report = &reports[i]};
    }
    enum walsh_status status = run(&job, source, destinations, err);
    reports[0].forward_seconds = job.calibration.forward_seconds;
    reports[0].hessian_seconds = job.calibration.hessian_seconds;
    for (size_t i = 0; i < outputs; i++) { /* all outputs take their time together */
        reports[i].seconds = walsh_now() - start;
        reports[i].encode_seconds = reports[0].encode_seconds;
        reports[i].forward_seconds = reports[0].forward_seconds;
        reports[i].hessian_seconds = reports[0].hessian_seconds;
        walsh_plan_close(&job.targets[i].plan);
        walsh_output_close(&job.targets[i].output);
    }
    walsh_calibration_close(&job.calibration);
    walsh_graph_close(&job.graph);
    for (size_t i = 0; i < outputs && status != WALSH_OK; i++) {
        walsh_free(reports[i].linears);
        reports[i] = (struct walsh_job_report){0};
    }
    return status;
}
