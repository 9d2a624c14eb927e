#include "model/linear.h"

#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "base/scalar.h"
#include "checkpoint/blocks.h"
#include "checkpoint/glq.h"
#include "checkpoint/shell.h"
#include "formats/e8p_planes.h"
#include "model/adapter_products.h"
#include "model/build.h"
#include "model/linear_parts.h"
#include "model/workspace.h"

#define FLOAT_DTYPES (1u << WALSH_F32 | 1u << WALSH_F16 | 1u << WALSH_BF16)
#define NAME_SIZE 300
#define TILE_ROWS 16 /* rows of a tile of the stored layout */

enum walsh_activation_type walsh_linear_activation(enum walsh_format format,
                                                   enum walsh_activation_type rotated,
                                                   enum walsh_activation_type dense)
{
    if (format == WALSH_FORMAT_E8P) return rotated == WALSH_ACTIVATION_INT8 ? rotated : WALSH_ACTIVATION_F32;
    const bool floats = format == WALSH_FORMAT_MXFP8 || format == WALSH_FORMAT_FP8;
    if (walsh_format_is_block(format) && !floats && rotated == WALSH_ACTIVATION_INT8)
        return WALSH_ACTIVATION_INT8_GROUPS;
    if (format == WALSH_FORMAT_BF16 || walsh_format_is_block(format))
        return dense == WALSH_ACTIVATION_BF16 ? dense : WALSH_ACTIVATION_F32;
    return WALSH_ACTIVATION_F32;
}

static struct walsh_rotation no_rotation(uint32_t size)
{
    return (struct walsh_rotation){.kind = WALSH_ROTATION_NONE, .size = size, .blocks = {.padded = size}};
}

static void set_dense(struct walsh_linear *linear, enum walsh_dtype dtype, const void *data)
{
    linear->weights = (struct walsh_weights){
        .format = dtype == WALSH_F32   ? WALSH_FORMAT_F32
                  : dtype == WALSH_F16 ? WALSH_FORMAT_F16
                                       : WALSH_FORMAT_BF16,
        .rows = linear->out,
        .cols = linear->in,
        .data = data,
    };
    linear->in_rotation = no_rotation(linear->in);
    linear->out_rotation = no_rotation(linear->out);
}

/* How a linear is loaded. */
struct loading {
    const struct walsh_checkpoint *ck;
    struct walsh_pool *pool;
    struct walsh_arena *arena;
    bool stored; /* weights stay in the file, for a device to read */
};

static enum walsh_status load_dense(struct walsh_linear *linear, const struct loading *how, const char *name,
                                    struct walsh_error *err)
{
    char tensor[NAME_SIZE];
    const struct walsh_fusion *fusion = &linear->fusion;
    snprintf(tensor, sizeof tensor, "%s.weight", fusion->name ? fusion->name : name);
    const uint64_t shape[] = {fusion->name ? fusion->rows : linear->out, linear->in};
    const struct walsh_tensor *t;
    WALSH_TRY(walsh_checkpoint_take(how->ck, tensor, FLOAT_DTYPES, 2, shape, &t, err));
    set_dense(linear, t->dtype,
              (const uint8_t *)t->data + (size_t)fusion->row * linear->in * walsh_dtype_size(t->dtype));
    if (!how->stored) return WALSH_OK;
    return walsh_linear_store_dense(linear, linear->weights.data, linear->in, 1, how->ck, how->arena, err);
}

/* One stage, from the stored layout to that of the kernels, tile row by tile row. */
struct repack {
    const uint8_t *stored;
    enum walsh_stage_kind kind;
    uint32_t cols;
    uint16_t *codes; /* [threads][TILE_ROWS][cols/8]: plain codes between the two */
    uint8_t *packed;
};

static void repack_tiles(void *argument, size_t begin, size_t end, unsigned worker)
{
    const struct repack *r = argument;
    size_t tile_codes = (size_t)TILE_ROWS * (r->cols / 8);
    uint16_t *codes = r->codes + worker * tile_codes;
    for (size_t tile = begin; tile < end; tile++) {
        /* pairs of rows follow each other in the packed layout, so that a tile is a small matrix of its own
         */
        uint8_t *packed = r->packed + walsh_stage_bytes(r->kind, (uint32_t)tile * TILE_ROWS, r->cols);
        if (r->kind == WALSH_STAGE_E8P) {
            walsh_glq_unpack_e8p(r->stored + tile * tile_codes * 2, TILE_ROWS, r->cols, codes);
            walsh_e8p_pack(r->cols, codes, 0, TILE_ROWS, packed);
        } else {
            walsh_glq_unpack_e81b(r->stored + tile * tile_codes, TILE_ROWS, r->cols, (uint8_t *)codes);
            walsh_e81b_pack(r->cols, (const uint8_t *)codes, 0, TILE_ROWS, packed);
        }
    }
}

static enum walsh_status repack_stages(struct walsh_linear *linear, const struct walsh_glq_linear *glq,
                                       struct walsh_pool *pool, struct walsh_arena *arena,
                                       struct walsh_error *err)
{
    struct walsh_weights *w = &linear->weights;
    uint16_t *codes;
    WALSH_TRY(walsh_alloc((size_t)walsh_pool_threads(pool) * TILE_ROWS, glq->n_pad / 8 * sizeof *codes,
                          "codes while repacking", &codes, err));
    enum walsh_status status = WALSH_OK;
    for (unsigned k = 0; k < glq->stages && status == WALSH_OK; k++) {
        uint8_t *packed;
        /* a pair of rows fills all bytes of its blocks */
        status = walsh_arena_alloc_uninitialised(
            arena, walsh_stage_bytes(glq->stage[k].kind, w->rows, w->cols), 1, linear->name, &packed, err);
        if (status != WALSH_OK) break;
        struct repack r = {glq->stage[k].codes->data, glq->stage[k].kind, w->cols, codes, packed};
        walsh_pool_run(pool, w->rows / TILE_ROWS, 4, repack_tiles, &r);
        w->stage[k].data = packed;
    }
    walsh_free(codes);
    return status;
}

enum walsh_status walsh_linear_load_rotation(struct walsh_rotation *rotation,
                                             const struct walsh_tensor *signs, uint32_t size, uint32_t stored,
                                             uint32_t min_block, uint32_t parts, struct walsh_arena *arena,
                                             struct walsh_error *err)
{
    *rotation = (struct walsh_rotation){.kind = WALSH_ROTATION_BLOCKS, .size = size};
    const uint64_t elements = walsh_tensor_elements(signs);
    enum walsh_status status = WALSH_OK;
    if (signs->rank == 2)
        status = walsh_rotation_overlap_padded(size, min_block, NULL, rotation, err);
    else
        status = walsh_blocks_parts(stored, min_block, parts, &rotation->blocks, err);
    if (status == WALSH_OK &&
        (rotation->blocks.padded != stored || walsh_rotation_signs(rotation) != elements))
        status =
            walsh_fail(err, WALSH_E_FORMAT, "these are not the signs of a rotation of %u elements", size);
    if (status != WALSH_OK) return walsh_fail_within(err, status, "%s: tensor %s", signs->file, signs->name);
    float *values;
    WALSH_TRY(walsh_arena_alloc(arena, elements, sizeof *values, signs->name, &values, err));
    walsh_tensor_to_f32(signs, values);
    rotation->signs = values;
    return WALSH_OK;
}

static enum walsh_status load_glq(struct walsh_linear *linear, const struct loading *how, const char *name,
                                  struct walsh_error *err)
{
    struct walsh_glq_linear glq;
    struct walsh_arena *arena = how->arena;
    WALSH_TRY(walsh_glq_take(how->ck, name, linear->out, linear->in, &glq, err));
    const uint32_t parts = linear->split.parts;
    WALSH_TRY(walsh_linear_load_rotation(&linear->in_rotation, glq.sv, linear->in, glq.n_pad,
                                         WALSH_MIN_BLOCK_COLUMNS, linear->split.inputs ? parts : 1, arena,
                                         err));
    WALSH_TRY(walsh_linear_load_rotation(&linear->out_rotation, glq.su, linear->out, glq.m_pad,
                                         WALSH_MIN_BLOCK_ROWS, linear->split.inputs ? 1 : parts, arena, err));
    linear->weights = (struct walsh_weights){
        .format = WALSH_FORMAT_E8P, .rows = glq.m_pad, .cols = glq.n_pad, .stages = glq.stages};
    for (unsigned k = 0; k < glq.stages; k++) {
        linear->weights.stage[k].kind = glq.stage[k].kind;
        linear->weights.stage[k].scale = glq.wscale * glq.inv_resid_scale[k];
    }
    if (how->stored) return walsh_linear_store_glq(linear, &glq, how->ck, arena, err);
    return repack_stages(linear, &glq, how->pool, arena, err);
}

/* --- block formats --- */

struct repack_blocks {
    const struct walsh_block_source *source;
    uint32_t *data;
    void *scales;
    uint8_t *zeros;
    atomic_bool broken; /* a scale or code that is no number */
};

static void repack_block_tiles(void *argument, size_t begin, size_t end, unsigned worker)
{
    struct repack_blocks *r = argument;
    (void)worker;
    if (!walsh_blocks_pack(r->source, begin, end, r->data, r->scales, r->zeros))
        atomic_store_explicit(&r->broken, true, memory_order_relaxed);
}

enum walsh_status walsh_linear_alloc_blocks(struct walsh_linear *linear, struct walsh_arena *arena,
                                            uint32_t **data, void **scales, uint8_t **zeros,
                                            struct walsh_error *err)
{
    struct walsh_weights *w = &linear->weights;
    const size_t count = walsh_block_scale_count(w);
    WALSH_TRY(walsh_arena_alloc_uninitialised(arena, walsh_block_data_words(w), sizeof **data, linear->name,
                                              data, err));
    WALSH_TRY(walsh_arena_alloc_uninitialised(arena, count, walsh_scale_bytes(w->block.scale), linear->name,
                                              scales, err));
    if (zeros) WALSH_TRY(walsh_arena_alloc_uninitialised(arena, count, 1, linear->name, zeros, err));
    w->data = *data;
    w->scales = *scales;
    w->zeros = zeros ? *zeros : NULL;
    return WALSH_OK;
}

enum walsh_status walsh_linear_repack_blocks(struct walsh_linear *linear,
                                             const struct walsh_block_source *source, struct walsh_pool *pool,
                                             struct walsh_arena *arena, struct walsh_error *err)
{
    struct repack_blocks r = {.source = source};
    linear->weights = walsh_blocks_weights(source);
    WALSH_TRY(
        walsh_linear_alloc_blocks(linear, arena, &r.data, &r.scales, source->zeros ? &r.zeros : NULL, err));
    walsh_pool_run(pool, walsh_block_tiles(&linear->weights), 4, repack_block_tiles, &r);
    return atomic_load(&r.broken) ? walsh_blocks_fail(source, err) : WALSH_OK;
}

/* One side's signs, MODULE.SV or MODULE.SU, F16 [padded] or [2][padded]; none: no rotation. */
static enum walsh_status load_signs(const struct walsh_checkpoint *ck, const char *name, const char *suffix,
                                    uint32_t size, uint32_t min_block, uint32_t parts,
                                    struct walsh_arena *arena, struct walsh_rotation *out,
                                    struct walsh_error *err)
{
    char tensor[NAME_SIZE];
    const struct walsh_tensor *signs;
    snprintf(tensor, sizeof tensor, "%s.%s", name, suffix);
    *out = no_rotation(size);
    const struct walsh_tensor *found = walsh_checkpoint_find(ck, tensor);
    if (!found) return WALSH_OK;
    const unsigned rank = found->rank == 2 ? 2 : 1;
    WALSH_TRY(walsh_checkpoint_take_rank(ck, tensor, 1u << WALSH_F16, rank, &signs, err));
    const uint64_t stored = signs->shape[rank - 1];
    if (stored < size || stored > UINT32_MAX)
        return walsh_fail(err, WALSH_E_FORMAT, "%s: tensor %s has %llu elements, expected at least %u",
                          signs->file, tensor, (unsigned long long)stored, size);
    WALSH_TRY(walsh_linear_load_rotation(out, signs, size, (uint32_t)stored, min_block, parts, arena, err));
    for (size_t i = 0; i < walsh_rotation_signs(out); i++)
        if (!isfinite(out->signs[i]) || out->signs[i] == 0)
            return walsh_fail(err, WALSH_E_FORMAT, "%s: tensor %s: element %zu is %g, expected a sign",
                              signs->file, tensor, i, (double)out->signs[i]);
    return WALSH_OK;
}

static enum walsh_status load_blocks(struct walsh_linear *linear, const struct loading *how, const char *name,
                                     const struct walsh_block_rows *part, struct walsh_error *err)
{
    struct walsh_block_source source;
    const struct walsh_checkpoint *ck = how->ck;
    struct walsh_arena *arena = how->arena;
    const uint32_t parts = linear->split.parts;
    WALSH_TRY(load_signs(ck, linear->name, "SV", linear->in, WALSH_MIN_BLOCK_COLUMNS,
                         linear->split.inputs ? parts : 1, arena, &linear->in_rotation, err));
    WALSH_TRY(load_signs(ck, linear->name, "SU", linear->out, WALSH_MIN_BLOCK_ROWS,
                         linear->split.inputs ? 1 : parts, arena, &linear->out_rotation, err));
    WALSH_TRY(walsh_blocks_take(ck, name, linear->out_rotation.blocks.padded,
                                linear->in_rotation.blocks.padded, part, &source, err));
    if (how->stored) return walsh_linear_store_blocks(linear, &source, ck, arena, err);
    return walsh_linear_repack_blocks(linear, &source, how->pool, arena, err);
}

/* --- stacks: gpt-oss's experts --- */

/* Matrix number `matrix` of NAME [stack][in][rows], transposed into the arena. */
static enum walsh_status load_stacked(struct walsh_linear *linear, const struct loading *how,
                                      struct walsh_error *err)
{
    const struct walsh_fusion *f = &linear->fusion;
    const uint64_t shape[] = {f->stack, linear->in, f->rows};
    const struct walsh_tensor *t;
    WALSH_TRY(walsh_checkpoint_take(how->ck, f->name, FLOAT_DTYPES, 3, shape, &t, err));
    const size_t size = walsh_dtype_size(t->dtype), step = f->step ? f->step : 1;
    const uint8_t *from = (const uint8_t *)t->data + (size_t)f->matrix * linear->in * f->rows * size;
    uint8_t *to;
    if (how->stored) {
        set_dense(linear, t->dtype, NULL);
        return walsh_linear_store_dense(linear, from + f->row * size, step, f->rows, how->ck, how->arena,
                                        err);
    }
    WALSH_TRY(walsh_arena_alloc_uninitialised(how->arena, (size_t)linear->out * linear->in, size,
                                              linear->name, &to, err));
    for (size_t k = 0; k < linear->in; k++)
        for (size_t r = 0; r < linear->out; r++)
            memcpy(to + (r * linear->in + k) * size, from + (k * f->rows + f->row + r * step) * size, size);
    set_dense(linear, t->dtype, to);
    return WALSH_OK;
}

static enum walsh_status load_stacked_bias(struct walsh_linear *linear, const struct walsh_checkpoint *ck,
                                           struct walsh_arena *arena, struct walsh_error *err)
{
    char tensor[NAME_SIZE];
    const struct walsh_fusion *f = &linear->fusion;
    const uint64_t shape[] = {f->stack, f->rows};
    const struct walsh_tensor *t;
    snprintf(tensor, sizeof tensor, "%s_bias", f->name);
    WALSH_TRY(walsh_checkpoint_take(ck, tensor, FLOAT_DTYPES, 2, shape, &t, err));
    float *bias;
    WALSH_TRY(walsh_arena_alloc(arena, linear->out, sizeof *bias, tensor, &bias, err));
    for (size_t r = 0; r < linear->out; r++)
        bias[r] = walsh_tensor_element(t, (size_t)f->matrix * f->rows + f->row + r * (f->step ? f->step : 1));
    linear->bias = bias;
    return WALSH_OK;
}

static enum walsh_status load_bias(struct walsh_linear *linear, const struct walsh_checkpoint *ck,
                                   struct walsh_arena *arena, struct walsh_error *err)
{
    char tensor[NAME_SIZE];
    snprintf(tensor, sizeof tensor, "%s.bias", linear->name);
    const uint64_t shape[] = {linear->out};
    const struct walsh_tensor *t;
    WALSH_TRY(walsh_checkpoint_take(ck, tensor, FLOAT_DTYPES, 1, shape, &t, err));
    float *bias;
    WALSH_TRY(walsh_arena_alloc(arena, linear->out, sizeof *bias, tensor, &bias, err));
    walsh_tensor_to_f32(t, bias);
    linear->bias = bias;
    return WALSH_OK;
}

/* Under its own name, or as a part of another matrix. */
static enum walsh_status load_weights(struct walsh_linear *linear, const struct loading *how,
                                      struct walsh_error *err)
{
    const struct walsh_fusion *f = &linear->fusion;
    const struct walsh_checkpoint *ck = how->ck;
    if (walsh_glq_present(ck, linear->name)) return load_glq(linear, how, linear->name, err);
    if (walsh_shell_present(ck, linear->name))
        return walsh_linear_load_shell(linear, ck, how->stored, how->pool, how->arena, err);
    if (walsh_blocks_present(ck, linear->name, false))
        return load_blocks(linear, how, linear->name, NULL, err);
    if (f->name && walsh_blocks_present(ck, f->name, f->stack != 0)) {
        const struct walsh_block_rows part = {f->row, f->step, f->rows, f->stack, f->matrix};
        return load_blocks(linear, how, f->name, &part, err);
    }
    return f->stack ? load_stacked(linear, how, err) : load_dense(linear, how, linear->name, err);
}

static bool has_own_bias(const struct walsh_checkpoint *ck, const char *name)
{
    char tensor[NAME_SIZE];
    snprintf(tensor, sizeof tensor, "%s.bias", name);
    return walsh_checkpoint_find(ck, tensor) != NULL;
}

static enum walsh_status load(struct walsh_linear *linear, const struct loading *how, const char *name,
                              const struct walsh_fusion *fusion, const struct walsh_split *split, uint32_t in,
                              uint32_t out, bool has_bias, enum walsh_activation_type rotated,
                              enum walsh_activation_type dense, struct walsh_error *err)
{
    const struct walsh_checkpoint *ck = how->ck;
    *linear = (struct walsh_linear){.in = in, .out = out, .split = *split};
    char *copy;
    WALSH_TRY(walsh_arena_strdup(how->arena, name, &copy, err));
    linear->name = copy;
    if (fusion) {
        if (walsh_glq_present(ck, fusion->name))
            return walsh_fail(err, WALSH_E_UNSUPPORTED,
                              "%s: %s is quantized as one matrix; walsh quantizes its parts one by one",
                              ck->directory, fusion->name);
        linear->fusion = *fusion;
        WALSH_TRY(walsh_arena_strdup(how->arena, fusion->name, &copy, err));
        linear->fusion.name = copy;
    }
    WALSH_TRY(load_weights(linear, how, err));
    linear->activation = walsh_linear_activation(linear->weights.format, rotated, dense);
    if (!has_bias) return WALSH_OK;
    return fusion && fusion->stack && !has_own_bias(ck, name) ? load_stacked_bias(linear, ck, how->arena, err)
                                                              : load_bias(linear, ck, how->arena, err);
}

enum walsh_status walsh_linear_load(struct walsh_linear *linear, const struct walsh_checkpoint *ck,
                                    const char *name, const struct walsh_fusion *fusion,
                                    const struct walsh_split *split, uint32_t in, uint32_t out, bool has_bias,
                                    enum walsh_activation_type rotated, enum walsh_activation_type dense,
                                    struct walsh_pool *pool, struct walsh_arena *arena,
                                    struct walsh_error *err)
{
    const struct loading how = {ck, pool, arena, false};
    return load(linear, &how, name, fusion, split, in, out, has_bias, rotated, dense, err);
}

enum walsh_status walsh_linear_find(struct walsh_linear *linear, const struct walsh_checkpoint *ck,
                                    const char *name, const struct walsh_fusion *fusion,
                                    const struct walsh_split *split, uint32_t in, uint32_t out, bool has_bias,
                                    enum walsh_activation_type rotated, enum walsh_activation_type dense,
                                    struct walsh_arena *arena, struct walsh_error *err)
{
    const struct loading how = {ck, NULL, arena, true};
    return load(linear, &how, name, fusion, split, in, out, has_bias, rotated, dense, err);
}

enum walsh_activation_type walsh_linear_reads(const struct walsh_queue *q, const struct walsh_linear *linear,
                                              enum walsh_role role)
{
    const enum walsh_code code = linear->weights.block.code;
    const bool narrow = code == WALSH_CODE_E2M1 || code == WALSH_CODE_U4;
    if (role == WALSH_PREFILL && linear->activation == WALSH_ACTIVATION_INT8_GROUPS && narrow &&
        walsh_queue_has_bf16_tiles(q))
        return WALSH_ACTIVATION_BF16;
    return linear->activation;
}

struct walsh_activations walsh_linear_input(const struct walsh_queue *q, struct walsh_workspace *ws,
                                            const struct walsh_linear *linear, size_t rows,
                                            enum walsh_role role)
{
    const size_t cols = linear->in_rotation.blocks.padded;
    const enum walsh_activation_type type = walsh_linear_reads(q, linear, role);
    return (struct walsh_activations){.type = type,
                                      .rows = rows,
                                      .cols = cols,
                                      .stride = walsh_activations_stride(cols),
                                      .data = ws->activations,
                                      .scale = ws->scale,
                                      .sum = ws->sum,
                                      .tiled = walsh_queue_tiles(q, type, cols, role)};
}

/* x as the products of `linear` read it: in place, or prepared in the workspace. */
static struct walsh_activations prepare(const struct walsh_queue *q, struct walsh_workspace *ws,
                                        const struct walsh_linear *linear, const float *x, size_t ldx,
                                        size_t rows, enum walsh_role role)
{
    struct walsh_activations a = walsh_linear_input(q, ws, linear, rows, role);
    if (a.type == WALSH_ACTIVATION_F32 && linear->in_rotation.kind == WALSH_ROTATION_NONE &&
        ldx == a.stride && (uintptr_t)x % WALSH_ALIGNMENT == 0)
        a.data = (void *)(uintptr_t)x; /* products only read it */
    else
        q->ops->prepare(q, &a, x, ldx, &linear->in_rotation);
    return a;
}

/* On a device the signs cannot be compared here: there, equal ones are one vector (walsh_graph_upload). */
bool walsh_linear_same_input(const struct walsh_queue *q, const struct walsh_linear *a,
                             const struct walsh_linear *b)
{
    if (a->activation != b->activation ||
        walsh_linear_reads(q, a, WALSH_PREFILL) != walsh_linear_reads(q, b, WALSH_PREFILL))
        return false;
    if (a->in_rotation.signs == b->in_rotation.signs && a->in_rotation.kind == b->in_rotation.kind &&
        a->in_rotation.blocks.padded == b->in_rotation.blocks.padded)
        return true; /* what the graph's builder made one vector */
    return !q->memory && walsh_rotation_equal(&a->in_rotation, &b->in_rotation);
}

void walsh_linear_products(const struct walsh_queue *q, struct walsh_workspace *ws,
                           const struct walsh_linear_call *const *calls, size_t count,
                           const struct walsh_activations *a, const float *x, size_t ldx,
                           enum walsh_role role, const struct walsh_row_sets *sets,
                           struct walsh_unrotated *out)
{
    struct walsh_product list[WALSH_LINEAR_CALLS] = {{0}};
    size_t z = 0;
    for (size_t i = 0; i < count; i++) {
        const struct walsh_linear *linear = calls[i]->linear;
        list[i] = (struct walsh_product){.weights = &linear->weights, .y = calls[i]->y, .ldy = calls[i]->ldy};
        if (linear->out_rotation.kind != WALSH_ROTATION_NONE) {
            list[i].y = ws->z + z;
            list[i].ldy = walsh_z_stride(linear->weights.rows);
            z += a->rows * list[i].ldy;
        }
        out[i] = (struct walsh_unrotated){list[i].y, list[i].ldy, &linear->out_rotation, linear->bias};
    }
    struct walsh_low_rank_input input;
    q->ops->product(q, list, count, a,
                    walsh_adapter_products(ws, calls, count, x, ldx, a->rows, sets, role, list, &input),
                    role);
}

/* The products, then what comes behind each of them. */
static void run_products(const struct walsh_queue *q, struct walsh_workspace *ws,
                         const struct walsh_linear_call *const *calls, size_t count,
                         const struct walsh_activations *a, const float *x, size_t ldx, enum walsh_role role,
                         const struct walsh_row_sets *sets)
{
    struct walsh_unrotated out[WALSH_LINEAR_CALLS];
    walsh_linear_products(q, ws, calls, count, a, x, ldx, role, sets, out);
    for (size_t i = 0; i < count; i++)
        q->ops->unrotate(q, calls[i]->y, calls[i]->ldy, out[i].z, out[i].ld, out[i].rotation, out[i].bias,
                         a->rows);
}

void walsh_linear_apply(const struct walsh_queue *q, struct walsh_workspace *ws,
                        const struct walsh_linear_call *calls, size_t count, const float *x, size_t ldx,
                        size_t rows, enum walsh_role role, const struct walsh_row_sets *sets)
{
    for (; count > WALSH_LINEAR_CALLS; calls += WALSH_LINEAR_CALLS, count -= WALSH_LINEAR_CALLS)
        walsh_linear_apply(q, ws, calls, WALSH_LINEAR_CALLS, x, ldx, rows, role, sets);
    bool done[WALSH_LINEAR_CALLS] = {false};
    for (size_t first = 0; first < count; first++) {
        if (done[first]) continue;
        const struct walsh_activations a = prepare(q, ws, calls[first].linear, x, ldx, rows, role);
        const struct walsh_linear_call *group[WALSH_LINEAR_CALLS];
        size_t members = 0, z = 0;
        for (size_t i = first; i < count; i++) {
            const struct walsh_linear *linear = calls[i].linear;
            if (done[i] || (i != first && !walsh_linear_same_input(q, calls[first].linear, linear))) continue;
            size_t wanted = linear->out_rotation.kind == WALSH_ROTATION_NONE
                                ? 0
                                : rows * walsh_z_stride(linear->weights.rows);
            if (members > 0 && z + wanted > ws->z_elements) { /* one always fits; a list of many may not */
                run_products(q, ws, group, members, &a, x, ldx, role, sets);
                members = z = 0;
            }
            group[members++] = &calls[i];
            z += wanted;
            done[i] = true;
        }
        run_products(q, ws, group, members, &a, x, ldx, role, sets);
    }
}
