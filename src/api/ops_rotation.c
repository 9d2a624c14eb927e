/* Rotations of walsh_ops.h. */
#include <math.h>
#include <string.h>

#include "api/ops.h"
#include "base/memory.h"
#include "kernels/cpu/split.h"
#include "kernels/rotate.h"

#define DEFAULT_BLOCK 64
#define LARGEST_BLOCK 65536

_Static_assert(WALSH_OPS_BLOCKS == WALSH_MAX_BLOCKS, "the blocks of a rotation");

struct walsh_rotation walsh_ops_rotation_of(const struct walsh_ops_rotation *rotation, uint32_t size)
{
    if (rotation) return rotation->rotation;
    return (struct walsh_rotation){.kind = WALSH_ROTATION_NONE, .size = size, .blocks = {.padded = size}};
}

/* ---------------------------------------------------------------------------------------- open */

static enum walsh_status choose_blocks(const struct walsh_ops_rotation_options *o, struct walsh_rotation *r,
                                       struct walsh_error *err)
{
    const char *kind = o->kind ? o->kind : "block";
    const uint32_t min_block = o->min_block ? o->min_block : DEFAULT_BLOCK, parts = o->parts ? o->parts : 1;
    if (o->size < 1 || o->size > WALSH_MAX_COLUMNS)
        return walsh_fail(err, WALSH_E_ARGUMENT, "size is %u, expected 1 to %u", o->size, WALSH_MAX_COLUMNS);
    if ((min_block & (min_block - 1)) != 0 || min_block > LARGEST_BLOCK)
        return walsh_fail(err, WALSH_E_ARGUMENT, "min_block is %u, expected a power of two up to %u",
                          min_block, LARGEST_BLOCK);
    if (parts > 1 && strcmp(kind, "block") != 0)
        return walsh_fail(err, WALSH_E_ARGUMENT, "parts is %u with kind \"%.20s\", expected \"block\"", parts,
                          kind);
    *r = (struct walsh_rotation){.kind = WALSH_ROTATION_BLOCKS, .size = o->size};
    if (strcmp(kind, "block") == 0 && parts == 1)
        WALSH_TRY(walsh_blocks_binary(o->size, min_block, &r->blocks, err));
    else if (strcmp(kind, "block") == 0)
        WALSH_TRY(walsh_blocks_parts(o->size, min_block, parts, &r->blocks, err));
    else if (strcmp(kind, "pow2") == 0)
        WALSH_TRY(walsh_blocks_pow2(o->size, min_block, &r->blocks, err));
    else if (strcmp(kind, "overlap") == 0)
        WALSH_TRY(walsh_rotation_overlap_padded(o->size, min_block, NULL, r, err));
    else
        return walsh_fail(err, WALSH_E_ARGUMENT, "kind is \"%.20s\", expected block, pow2 or overlap", kind);
    if (r->blocks.padded > WALSH_MAX_COLUMNS)
        return walsh_fail(err, WALSH_E_ARGUMENT, "size is %u, padded %u, expected at most %u", o->size,
                          r->blocks.padded, WALSH_MAX_COLUMNS);
    return WALSH_OK;
}

/* The signs as [padded] or [2, padded]. */
static enum walsh_status signs_view(const char *call, const struct walsh_rotation *r,
                                    const struct walsh_view *view, struct walsh_ops_rows *out,
                                    struct walsh_error *err)
{
    const struct walsh_ops_argument argument = {call, "signs", view, NULL};
    const int64_t two[] = {2, (int64_t)r->blocks.padded};
    return r->kind == WALSH_ROTATION_OVERLAP
               ? walsh_ops_dense(&argument, WALSH_OPS_FLOATS, 2, two, out, err)
               : walsh_ops_dense(&argument, WALSH_OPS_FLOATS, 1, two + 1, out, err);
}

static enum walsh_status fill_signs(struct walsh_ops_queue *queue, const struct walsh_ops_rotation_options *o,
                                    const struct walsh_rotation *r, float *signs, struct walsh_error *err)
{
    const size_t count = walsh_rotation_signs(r);
    if (!walsh_ops_given(&o->signs)) {
        walsh_random_signs(o->seed, o->name ? o->name : "", signs, (uint32_t)count);
        return WALSH_OK;
    }
    struct walsh_ops_rows rows;
    WALSH_TRY(signs_view("walsh_ops_rotation_open", r, &o->signs, &rows, err));
    walsh_ops_load(queue->context->queue.kernels, rows.element, rows.data, signs, count);
    for (size_t i = 0; i < count; i++)
        if (!isfinite(signs[i]))
            return walsh_fail(err, WALSH_E_ARGUMENT, "signs: element %zu is %g, expected a finite number", i,
                              (double)signs[i]);
    return WALSH_OK;
}

/* The signs, to the queue's device. */
static enum walsh_status upload(struct walsh_ops_queue *queue, struct walsh_ops_rotation *rotation,
                                struct walsh_error *err)
{
    static const char call[] = "walsh_ops_rotation_open";
    const struct walsh_queue *holder = walsh_ops_holder(queue);
    if (!holder) return WALSH_OK;
    walsh_ops_enter_host(queue);
    enum walsh_status status =
        holder->memory->upload_rotation(holder, &rotation->rotation, call, &rotation->device, err);
    if (status == WALSH_OK) {
        rotation->holder = holder;
        status = holder->memory->synchronize(holder, err);
        if (status != WALSH_OK) holder->memory->free(holder, (void *)(uintptr_t)rotation->device.signs);
    }
    walsh_ops_leave(queue);
    return status;
}

enum walsh_status walsh_ops_rotation_open(struct walsh_ops_queue *queue,
                                          const struct walsh_ops_rotation_options *options,
                                          struct walsh_ops_rotation **out, struct walsh_error *err)
{
    WALSH_TRY(walsh_ops_need("walsh_ops_rotation_open", "out", out, err));
    *out = NULL;
    WALSH_TRY(walsh_ops_need("walsh_ops_rotation_open", "queue", queue, err));
    struct walsh_ops_rotation_options o = WALSH_OPS_ROTATION_OPTIONS;
    struct walsh_rotation r;
    WALSH_TRY(walsh_options_read(&o, sizeof o, options, "walsh_ops_rotation_options", err));
    enum walsh_status status = choose_blocks(&o, &r, err);
    if (status != WALSH_OK) return walsh_fail_within(err, status, "walsh_ops_rotation_open");
    const size_t head = walsh_round_up(sizeof(struct walsh_ops_rotation), WALSH_ALIGNMENT);
    uint8_t *block;
    WALSH_TRY(walsh_alloc(head + walsh_rotation_signs(&r) * sizeof(float), 1, "a rotation", &block, err));
    float *signs = (float *)(void *)(block + head);
    status = fill_signs(queue, &o, &r, signs, err);
    if (status != WALSH_OK) {
        walsh_free(block);
        return status;
    }
    r.signs = signs;
    struct walsh_ops_rotation *rotation = (struct walsh_ops_rotation *)(void *)block;
    *rotation = (struct walsh_ops_rotation){.rotation = r};
    status = upload(queue, rotation, err);
    if (status == WALSH_OK)
        *out = rotation;
    else
        walsh_free(rotation);
    return status;
}

void walsh_ops_rotation_close(struct walsh_ops_rotation **rotation)
{
    if (!rotation || !*rotation) return;
    const struct walsh_queue *holder = (*rotation)->holder;
    if (holder) holder->memory->free(holder, (void *)(uintptr_t)(*rotation)->device.signs);
    walsh_free(*rotation);
    *rotation = NULL;
}

void walsh_ops_rotation_get_info(const struct walsh_ops_rotation *rotation,
                                 struct walsh_ops_rotation_info *info)
{
    if (!info) return;
    if (!rotation) {
        const struct walsh_ops_rotation_info none = {0};
        walsh_result_write(info, &none, sizeof none);
        return;
    }
    const struct walsh_rotation *r = &rotation->rotation;
    struct walsh_ops_rotation_info result = {.size = r->size,
                                             .padded = r->blocks.padded,
                                             .sign_vectors = r->kind == WALSH_ROTATION_OVERLAP ? 2 : 1,
                                             .block_count = r->blocks.count};
    memcpy(result.blocks, r->blocks.block, sizeof result.blocks);
    if (r->kind == WALSH_ROTATION_OVERLAP) {
        result.block_count = 2;
        result.blocks[1] = result.blocks[0];
    }
    walsh_result_write(info, &result, sizeof result);
}

enum walsh_status walsh_ops_rotation_get_signs(const struct walsh_ops_rotation *rotation,
                                               const struct walsh_view *signs, struct walsh_error *err)
{
    struct walsh_ops_rows rows;
    struct walsh_kernels plain;
    WALSH_TRY(walsh_ops_need("walsh_ops_rotation_get_signs", "rotation", rotation, err));
    WALSH_TRY(signs_view("walsh_ops_rotation_get_signs", &rotation->rotation, signs, &rows, err));
    walsh_kernels_select(0, &plain);
    walsh_ops_store(&plain, rows.element, rotation->rotation.signs, rows.data, rows.cols);
    return WALSH_OK;
}

/* ---------------------------------------------------------------------------------------- rows */

struct rotate {
    const struct walsh_queue *q;
    const struct walsh_rotation *r;
    struct walsh_ops_rows from, to;
};

/* A worker's scratch holds a row of x and one of forward(x), or, for folding, one in double precision. */
static void rotate_rows(void *argument, size_t begin, size_t end, unsigned worker)
{
    const struct rotate *t = argument;
    const struct walsh_kernels *k = t->q->kernels;
    float *staged = (float *)(void *)t->q->scratch[worker], *rotated = staged + WALSH_MAX_COLUMNS;
    const bool direct_from = t->from.element == WALSH_ELEMENT_F32 && t->from.data != t->to.data;
    for (size_t row = begin; row < end; row++) {
        const float *x = (const float *)(const void *)walsh_ops_row(&t->from, row);
        void *to = walsh_ops_row(&t->to, row);
        float *y = t->to.element == WALSH_ELEMENT_F32 ? to : rotated;
        if (!direct_from) {
            walsh_ops_load(k, t->from.element, walsh_ops_row(&t->from, row), staged, t->from.cols);
            x = staged;
        }
        walsh_kernels_rotate(k, t->r, t->r->signs, x, y);
        if (y == rotated) walsh_ops_store(k, t->to.element, y, to, t->to.cols);
    }
}

static void unrotate_rows(void *argument, size_t begin, size_t end, unsigned worker)
{
    const struct rotate *t = argument;
    const struct walsh_kernels *k = t->q->kernels;
    float *staged = (float *)(void *)t->q->scratch[worker]; /* which the butterfly overwrites */
    for (size_t row = begin; row < end; row++) {
        void *to = walsh_ops_row(&t->to, row);
        float *x = t->to.element == WALSH_ELEMENT_F32 ? to : staged;
        walsh_ops_load(k, t->from.element, walsh_ops_row(&t->from, row), staged, t->from.cols);
        walsh_kernels_unrotate(k, t->r, t->r->signs, staged, x);
        if (x == staged) walsh_ops_store(k, t->to.element, x, to, t->to.cols);
    }
}

static enum walsh_status handles(const char *call, const struct walsh_ops_queue *queue,
                                 const struct walsh_ops_rotation *rotation, struct walsh_error *err)
{
    WALSH_TRY(walsh_ops_need(call, "queue", queue, err));
    return walsh_ops_need(call, "rotation", rotation, err);
}

/* Both views, and that they may be used together; `names`: of `from` and `to`. */
static enum walsh_status rows_of(const char *call, const struct walsh_ops_queue *queue,
                                 const char *const names[2], const struct walsh_view *from, size_t from_cols,
                                 const struct walsh_view *to, size_t to_cols, bool in_place,
                                 struct rotate *out, struct walsh_error *err)
{
    const struct walsh_ops_argument a = {call, names[0], from, queue}, b = {call, names[1], to, queue};
    WALSH_TRY(walsh_ops_rows(&a, WALSH_OPS_FLOATS, 1, from_cols, &out->from, err));
    WALSH_TRY(walsh_ops_rows(&b, WALSH_OPS_FLOATS, 1, to_cols, &out->to, err));
    if (out->from.rows != out->to.rows)
        return walsh_fail(err, WALSH_E_ARGUMENT, "%s: %s has %zu rows, expected %zu, as %s has", call,
                          names[1], out->to.rows, out->from.rows, names[0]);
    return walsh_ops_apart(&a, &out->from, &b, &out->to, in_place, err);
}

static void run(struct walsh_ops_queue *queue, struct rotate *t, walsh_task *task)
{
    t->q = walsh_ops_enter_host(queue);
    walsh_run_rows(t->q, t->from.rows, t->r->blocks.padded, task, t);
    walsh_ops_leave(queue);
}

/* Rows [begin, begin + rows) of r. */
static struct walsh_ops_rows slice(const struct walsh_ops_rows *r, size_t begin, size_t rows)
{
    struct walsh_ops_rows part = *r;
    part.data = walsh_ops_row(r, begin);
    part.rows = rows;
    return part;
}

static bool rotate_at_once(const struct walsh_queue *q, const struct rotate *t,
                           const struct walsh_rotation *rotation)
{
    return q->memory->rotate && t->from.data != t->to.data &&
           q->memory->rotate(q, rotation, walsh_ops_format(t->to.element), t->to.data, t->to.ld,
                             walsh_ops_format(t->from.element), t->from.data, t->from.ld, t->from.rows);
}

/* At once where y's rows are dense; else through the queue's rows in f32, as many at a time as it has: the kernels write padding
 * behind a row, and overwrite what they rotate back. */
static enum walsh_status run_on_device(struct walsh_ops_queue *queue, const char *call,
                                       const struct rotate *t, const struct walsh_rotation *rotation,
                                       bool forward, struct walsh_error *err)
{
    const size_t wide = walsh_round_up(t->from.cols, WALSH_ALIGNMENT),
                 wide_to = walsh_round_up(t->to.cols, WALSH_ALIGNMENT);
    const size_t most = WALSH_OPS_STAGED / (wide + wide_to);
    const struct walsh_queue *q = walsh_ops_enter(queue);
    if (forward && rotate_at_once(q, t, rotation)) return walsh_ops_finish(queue, call, err);
    float *x = queue->staged, *y = x + most * wide;
    for (size_t at = 0, n; at < t->from.rows; at += n) {
        n = walsh_min(t->from.rows - at, most);
        const struct walsh_ops_rows from = slice(&t->from, at, n), to = slice(&t->to, at, n);
        struct walsh_activations a = {.type = WALSH_ACTIVATION_F32,
                                      .rows = n,
                                      .cols = rotation->blocks.padded,
                                      .stride = wide_to,
                                      .data = y};
        walsh_ops_load_rows(q, &from, x, wide);
        if (forward)
            q->ops->prepare(q, &a, x, wide, rotation);
        else
            q->ops->unrotate(q, y, wide_to, x, wide, rotation, NULL, n);
        walsh_ops_store_rows(q, y, wide_to, &to);
    }
    return walsh_ops_finish(queue, call, err);
}

enum walsh_status walsh_ops_rotate(struct walsh_ops_queue *queue, const struct walsh_ops_rotation *rotation,
                                   const struct walsh_view *x, const struct walsh_view *y,
                                   struct walsh_error *err)
{
    static const char *const names[] = {"x", "y"};
    WALSH_TRY(handles("walsh_ops_rotate", queue, rotation, err));
    const struct walsh_rotation *r = &rotation->rotation;
    struct rotate t = {.r = r};
    WALSH_TRY(walsh_ops_placed(queue, "walsh_ops_rotate", "rotation", rotation->holder, err));
    WALSH_TRY(rows_of("walsh_ops_rotate", queue, names, x, r->size, y, r->blocks.padded,
                      r->size == r->blocks.padded, &t, err));
    if (rotation->holder) return run_on_device(queue, "walsh_ops_rotate", &t, &rotation->device, true, err);
    run(queue, &t, rotate_rows);
    return WALSH_OK;
}

enum walsh_status walsh_ops_unrotate(struct walsh_ops_queue *queue, const struct walsh_ops_rotation *rotation,
                                     const struct walsh_view *y, const struct walsh_view *x,
                                     struct walsh_error *err)
{
    static const char *const names[] = {"y", "x"};
    WALSH_TRY(handles("walsh_ops_unrotate", queue, rotation, err));
    const struct walsh_rotation *r = &rotation->rotation;
    struct rotate t = {.r = r};
    WALSH_TRY(walsh_ops_placed(queue, "walsh_ops_unrotate", "rotation", rotation->holder, err));
    WALSH_TRY(rows_of("walsh_ops_unrotate", queue, names, y, r->blocks.padded, x, r->size,
                      r->size == r->blocks.padded, &t, err));
    if (rotation->holder)
        return run_on_device(queue, "walsh_ops_unrotate", &t, &rotation->device, false, err);
    run(queue, &t, unrotate_rows);
    return WALSH_OK;
}

/* ---------------------------------------------------------------------------------------- folding */

static float load_one(const struct walsh_ops_rows *r, size_t row, size_t col, const struct walsh_kernels *k)
{
    float x;
    walsh_ops_load(k, r->element, walsh_ops_row(r, row) + col * walsh_element_size(r->element), &x, 1);
    return x;
}

static void store_one(const struct walsh_ops_rows *r, size_t row, size_t col, double x,
                      const struct walsh_kernels *k)
{
    const float f = (float)x;
    walsh_ops_store(k, r->element, &f, walsh_ops_row(r, row) + col * walsh_element_size(r->element), 1);
}

static void fold_rows(void *argument, size_t begin, size_t end, unsigned worker)
{
    const struct rotate *t = argument;
    double *row = (double *)(void *)t->q->scratch[worker];
    for (size_t i = begin; i < end; i++) {
        for (size_t j = 0; j < t->from.cols; j++) row[j] = load_one(&t->from, i, j, t->q->kernels);
        walsh_rotate_inverse_f64(t->r, row, row);
        for (size_t j = 0; j < t->to.cols; j++) store_one(&t->to, i, j, row[j], t->q->kernels);
    }
}

static void fold_columns(void *argument, size_t begin, size_t end, unsigned worker)
{
    const struct rotate *t = argument;
    double *column = (double *)(void *)t->q->scratch[worker];
    for (size_t j = begin; j < end; j++) {
        for (size_t i = 0; i < t->from.rows; i++) column[i] = load_one(&t->from, i, j, t->q->kernels);
        walsh_rotate_forward_f64(t->r, column, column);
        for (size_t i = 0; i < t->to.rows; i++) store_one(&t->to, i, j, column[i], t->q->kernels);
    }
}

enum walsh_status walsh_ops_fold_rows(struct walsh_ops_queue *queue,
                                      const struct walsh_ops_rotation *rotation, const struct walsh_view *a,
                                      const struct walsh_view *folded, struct walsh_error *err)
{
    static const char *const names[] = {"a", "folded"};
    WALSH_TRY(handles("walsh_ops_fold_rows", queue, rotation, err));
    const struct walsh_rotation *r = &rotation->rotation;
    struct rotate t = {.r = r};
    WALSH_TRY(
        rows_of("walsh_ops_fold_rows", NULL, names, a, r->blocks.padded, folded, r->size, false, &t, err));
    run(queue, &t, fold_rows);
    return WALSH_OK;
}

enum walsh_status walsh_ops_fold_columns(struct walsh_ops_queue *queue,
                                         const struct walsh_ops_rotation *rotation,
                                         const struct walsh_view *b, const struct walsh_view *folded,
                                         struct walsh_error *err)
{
    static const char call[] = "walsh_ops_fold_columns";
    WALSH_TRY(handles(call, queue, rotation, err));
    const struct walsh_rotation *r = &rotation->rotation;
    const struct walsh_ops_argument from = {call, "b", b, NULL}, to = {call, "folded", folded, NULL};
    if (!b || !folded || b->rank != 2 || folded->rank != 2)
        return walsh_fail(err, WALSH_E_ARGUMENT, "%s: b and folded: expected two dimensions each", call);
    const size_t cols = b->shape[1] > 0 ? (size_t)b->shape[1] : 0;
    struct rotate t = {.r = r};
    WALSH_TRY(walsh_ops_rows(&from, WALSH_OPS_FLOATS, 1, cols, &t.from, err));
    WALSH_TRY(walsh_ops_rows(&to, WALSH_OPS_FLOATS, 1, cols, &t.to, err));
    if (t.from.rows != r->size || t.to.rows != r->blocks.padded)
        return walsh_fail(err, WALSH_E_ARGUMENT, "%s: b has %zu rows and folded %zu, expected %u and %u",
                          call, t.from.rows, t.to.rows, r->size, r->blocks.padded);
    WALSH_TRY(walsh_ops_apart(&from, &t.from, &to, &t.to, false, err));
    t.q = walsh_ops_enter_host(queue);
    walsh_run_rows(t.q, cols, r->blocks.padded, fold_columns, &t);
    walsh_ops_leave(queue);
    return WALSH_OK;
}
