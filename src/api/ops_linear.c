/* Linears of walsh_ops.h, with LoRA updates: opening those in E8P codes (ops_weights.c: all others), calls. */
#include "api/ops_linear.h"

#include <math.h>
#include <string.h>

#include "base/memory.h"
#include "checkpoint/peft.h"
#include "formats/e8p_planes.h"
#include "model/adapter.h"
#include "model/build.h"

#define MAX_ADAPTERS 16

struct walsh_ops_adapter {
    const struct walsh_ops_linear *linear;
    struct walsh_adapter_linear update;
    struct walsh_arena arena;
    float scale;
    void *device[2]; /* A and B there; NULL */
};

/* ---------------------------------------------------------------------------------------- open */

struct pack {
    const struct walsh_ops_matrix *matrix;
    unsigned stage;
    void *packed;
};

static void pack_rows(void *argument, size_t begin, size_t end, unsigned worker)
{
    const struct pack *t = argument;
    const struct walsh_ops_matrix *m = t->matrix;
    (void)worker;
    if (m->kind[t->stage] == WALSH_STAGE_E8P)
        walsh_e8p_pack(m->cols, m->codes[t->stage], (uint32_t)begin * 16, (uint32_t)end * 16, t->packed);
    else
        walsh_e81b_pack(m->cols, m->codes[t->stage], (uint32_t)begin * 16, (uint32_t)end * 16, t->packed);
}

struct coded {
    const struct walsh_ops_codes *codes;
    struct walsh_ops_matrix matrix;
};

static enum walsh_status pack_stages(const struct walsh_queue *host, const void *source,
                                     struct walsh_ops_linear *l, struct walsh_error *err)
{
    const struct coded *coded = source;
    const struct walsh_ops_matrix *matrix = &coded->matrix;
    struct walsh_weights *w = &l->linear.weights;
    *w = (struct walsh_weights){
        .format = WALSH_FORMAT_E8P, .rows = matrix->rows, .cols = matrix->cols, .stages = matrix->stages};
    for (unsigned k = 0; k < matrix->stages; k++) {
        uint8_t *packed;
        /* a pair of rows fills all bytes of its blocks */
        WALSH_TRY(walsh_arena_alloc_uninitialised(
            &l->arena, walsh_stage_bytes(matrix->kind[k], matrix->rows, matrix->cols), 1, "packed codes",
            &packed, err));
        struct pack t = {matrix, k, packed};
        walsh_pool_run(host->pool, matrix->rows / 16, 4, pack_rows, &t);
        w->stage[k].kind = matrix->kind[k];
        w->stage[k].data = packed;
        w->stage[k].scale = coded->codes->scale[k];
    }
    return WALSH_OK;
}

static enum walsh_status load_bias(const struct walsh_queue *host, const char *call,
                                   const struct walsh_view *view, struct walsh_ops_linear *l,
                                   struct walsh_error *err)
{
    if (!walsh_ops_given(view)) return WALSH_OK;
    const struct walsh_ops_argument a = {call, "bias", view, NULL};
    const int64_t shape[] = {(int64_t)l->linear.out};
    struct walsh_ops_rows rows;
    float *bias;
    WALSH_TRY(walsh_ops_dense(&a, WALSH_OPS_FLOATS, 1, shape, &rows, err));
    WALSH_TRY(walsh_arena_alloc(&l->arena, l->linear.out, sizeof *bias, "a bias", &bias, err));
    walsh_ops_load(host->kernels, rows.element, rows.data, bias, rows.cols);
    l->linear.bias = bias;
    return WALSH_OK;
}

/* The rule of walsh_model_options.activations. */
static enum walsh_activation_type activation_of(const struct walsh_queue *q, enum walsh_format format,
                                                enum walsh_activation_mode mode)
{
    const bool rounded = mode == WALSH_ACTIVATIONS_AUTO || mode == WALSH_ACTIVATIONS_INT8;
    const bool narrow = mode == WALSH_ACTIVATIONS_BF16 || (rounded && walsh_queue_has_bf16(q));
    return walsh_linear_activation(format, rounded ? WALSH_ACTIVATION_INT8 : WALSH_ACTIVATION_F32,
                                   narrow ? WALSH_ACTIVATION_BF16 : WALSH_ACTIVATION_F32);
}

static enum walsh_status check_plan(const struct walsh_ops_queue *queue,
                                    const struct walsh_ops_linear_plan *plan,
                                    const struct walsh_ops_linear_options *o, struct walsh_error *err)
{
    const struct walsh_ops_matrix matrix = {.rows = plan->rows, .cols = plan->cols};
    WALSH_TRY(walsh_ops_rotations_check(plan->call, o->in, o->out, &matrix, err));
    if (o->in) WALSH_TRY(walsh_ops_placed(queue, plan->call, "in", o->in->holder, err));
    if (o->out) WALSH_TRY(walsh_ops_placed(queue, plan->call, "out", o->out->holder, err));
    if ((unsigned)o->activations > WALSH_ACTIVATIONS_INT8)
        return walsh_fail(err, WALSH_E_ARGUMENT, "%s: activations is %u, expected 0 to %d", plan->call,
                          (unsigned)o->activations, WALSH_ACTIVATIONS_INT8);
    return WALSH_OK;
}

/* Weights and bias to the device; the rotations are there already. */
static enum walsh_status upload(const struct walsh_queue *holder, const struct walsh_ops_linear_options *o,
                                struct walsh_ops_linear *l, struct walsh_error *err)
{
    struct walsh_linear *linear = &l->linear;
    struct walsh_weights weights;
    const float *bias = linear->bias;
    float *there = NULL;
    linear->bias = NULL;
    WALSH_TRY(holder->memory->upload_weights(holder, &linear->weights, linear->name, &weights, err));
    linear->weights = weights;
    l->holder = holder;
    linear->host_in_signs = linear->in_rotation.signs;
    linear->host_out_signs = linear->out_rotation.signs;
    if (o->in) linear->in_rotation = o->in->device;
    if (o->out) linear->out_rotation = o->out->device;
    if (bias) {
        const size_t bytes = linear->out * sizeof *bias;
        WALSH_TRY(holder->memory->alloc(holder, bytes, "a bias", &there, err));
        linear->bias = there;
        WALSH_TRY(holder->memory->upload(holder, there, bias, bytes, err));
    }
    return holder->memory->synchronize(holder, err);
}

static enum walsh_status fill(const struct walsh_queue *q, const struct walsh_ops_linear_plan *plan,
                              const struct walsh_ops_linear_options *o, struct walsh_ops_linear *l,
                              struct walsh_error *err)
{
    struct walsh_linear *linear = &l->linear;
    linear->name = plan->call; /* of messages */
    linear->in_rotation = walsh_ops_rotation_of(o->in, plan->cols);
    linear->out_rotation = walsh_ops_rotation_of(o->out, plan->rows);
    linear->in = linear->in_rotation.size;
    linear->out = linear->out_rotation.size;
    linear->split.parts = 1;
    WALSH_TRY(load_bias(q, plan->call, &o->bias, l, err));
    return plan->fill(q, plan->source, l, err);
}

enum walsh_status walsh_ops_linear_make(struct walsh_ops_queue *queue,
                                        const struct walsh_ops_linear_plan *plan,
                                        const struct walsh_ops_linear_options *options,
                                        struct walsh_ops_linear **out, struct walsh_error *err)
{
    struct walsh_ops_linear_options o = WALSH_OPS_LINEAR_OPTIONS;
    WALSH_TRY(walsh_options_read(&o, sizeof o, options, "walsh_ops_linear_options", err));
    WALSH_TRY(check_plan(queue, plan, &o, err));
    struct walsh_ops_linear *l;
    WALSH_TRY(walsh_alloc_zero(1, sizeof *l, "a linear", &l, err));
    const struct walsh_queue *holder = walsh_ops_holder(queue);
    l->linear.activation = activation_of(&queue->run, plan->format, o.activations);
    enum walsh_status status = fill(walsh_ops_enter_host(queue), plan, &o, l, err);
    if (status == WALSH_OK && holder) status = upload(holder, &o, l, err);
    walsh_ops_leave(queue);
    if (status == WALSH_OK)
        *out = l;
    else
        walsh_ops_linear_close(&l);
    return status;
}

enum walsh_status walsh_ops_linear_open(struct walsh_ops_queue *queue, const struct walsh_ops_codes *codes,
                                        const struct walsh_ops_linear_options *options,
                                        struct walsh_ops_linear **out, struct walsh_error *err)
{
    static const char call[] = "walsh_ops_linear_open";
    WALSH_TRY(walsh_ops_need(call, "out", out, err));
    *out = NULL;
    WALSH_TRY(walsh_ops_need(call, "queue", queue, err));
    struct coded coded = {.codes = codes};
    WALSH_TRY(walsh_ops_codes_check(call, codes, true, &coded.matrix, err));
    const struct walsh_ops_linear_plan plan = {
        call, coded.matrix.rows, coded.matrix.cols, WALSH_FORMAT_E8P, pack_stages, &coded};
    return walsh_ops_linear_make(queue, &plan, options, out, err);
}

void walsh_ops_linear_close(struct walsh_ops_linear **linear)
{
    if (!linear || !*linear) return;
    struct walsh_ops_linear *l = *linear;
    if (l->holder) {
        l->holder->memory->free_weights(l->holder, &l->linear.weights);
        l->holder->memory->free(l->holder, (void *)(uintptr_t)l->linear.bias);
    }
    walsh_arena_close(&l->arena);
    walsh_free(l);
    *linear = NULL;
}

/* ---------------------------------------------------------------------------------------- adapters */

static enum walsh_status build_adapter(const struct walsh_ops_linear *linear, const struct walsh_ops_rows *a,
                                       const struct walsh_ops_rows *b, enum walsh_format storage,
                                       struct walsh_ops_adapter *out, struct walsh_error *err)
{
    struct walsh_kernels plain;
    const size_t a_size = a->rows * a->cols, b_size = b->rows * b->cols;
    float *both;
    walsh_kernels_select(0, &plain);
    WALSH_TRY(walsh_alloc(a_size + b_size, sizeof *both, "an adapter's matrices", &both, err));
    for (size_t r = 0; r < a->rows; r++)
        walsh_ops_load(&plain, a->element, walsh_ops_row(a, r), both + r * a->cols, a->cols);
    for (size_t r = 0; r < b->rows; r++)
        walsh_ops_load(&plain, b->element, walsh_ops_row(b, r), both + a_size + r * b->cols, b->cols);
    const struct walsh_adapter_source source = {
        .rank = (uint32_t)a->rows, .scale = 1, .a = both, .b = both + a_size};
    const enum walsh_status status =
        walsh_adapter_linear_build(&linear->linear, &source, storage, &out->arena, &out->update, err);
    walsh_free(both);
    return status;
}

static enum walsh_status upload_matrix(const struct walsh_queue *holder, const void **matrix, size_t bytes,
                                       void **there, struct walsh_error *err)
{
    WALSH_TRY(holder->memory->alloc(holder, bytes, "an adapter", there, err));
    WALSH_TRY(holder->memory->upload(holder, *there, *matrix, bytes, err));
    *matrix = *there;
    return WALSH_OK;
}

static enum walsh_status upload_adapter(const struct walsh_queue *holder, struct walsh_ops_adapter *adapter,
                                        struct walsh_error *err)
{
    struct walsh_adapter_linear *u = &adapter->update;
    const size_t element = u->storage == WALSH_FORMAT_F32 ? sizeof(float) : sizeof(uint16_t);
    WALSH_TRY(upload_matrix(holder, &u->a, walsh_low_rank_a_size(u->rank, u->in) * element,
                            &adapter->device[0], err));
    WALSH_TRY(upload_matrix(holder, &u->b, walsh_low_rank_b_size(u->storage, u->rank, u->out) * element,
                            &adapter->device[1], err));
    return holder->memory->synchronize(holder, err);
}

enum walsh_status walsh_ops_adapter_open(const struct walsh_ops_linear *linear, const struct walsh_view *a,
                                         const struct walsh_view *b, float scale,
                                         enum walsh_adapter_storage storage, struct walsh_ops_adapter **out,
                                         struct walsh_error *err)
{
    static const char call[] = "walsh_ops_adapter_open";
    WALSH_TRY(walsh_ops_need(call, "out", out, err));
    *out = NULL;
    WALSH_TRY(walsh_ops_need(call, "linear", linear, err));
    const struct walsh_ops_argument first = {call, "a", a, NULL}, second = {call, "b", b, NULL};
    struct walsh_ops_rows rows_a, rows_b;
    WALSH_TRY(walsh_ops_rows(&first, WALSH_OPS_FLOATS, 1, linear->linear.in, &rows_a, err));
    if (rows_a.rows < 1 || rows_a.rows > WALSH_MAX_LORA_RANK)
        return walsh_fail(err, WALSH_E_ARGUMENT, "%s: a has %zu rows, expected a rank of 1 to %d", call,
                          rows_a.rows, WALSH_MAX_LORA_RANK);
    WALSH_TRY(walsh_ops_rows(&second, WALSH_OPS_FLOATS, 1, rows_a.rows, &rows_b, err));
    if (rows_b.rows != linear->linear.out)
        return walsh_fail(err, WALSH_E_ARGUMENT, "%s: b has %zu rows, expected %u", call, rows_b.rows,
                          linear->linear.out);
    if (!isfinite(scale))
        return walsh_fail(err, WALSH_E_ARGUMENT, "%s: scale is %g, expected a finite number", call,
                          (double)scale);
    if ((unsigned)storage > WALSH_ADAPTER_F32)
        return walsh_fail(err, WALSH_E_ARGUMENT, "%s: storage is %u, expected 0 to %d", call,
                          (unsigned)storage, WALSH_ADAPTER_F32);
    struct walsh_ops_adapter *adapter;
    WALSH_TRY(walsh_alloc_zero(1, sizeof *adapter, "an adapter", &adapter, err));
    adapter->linear = linear;
    adapter->scale = scale;
    enum walsh_status status =
        build_adapter(linear, &rows_a, &rows_b,
                      storage == WALSH_ADAPTER_F32 ? WALSH_FORMAT_F32 : WALSH_FORMAT_BF16, adapter, err);
    if (status == WALSH_E_FORMAT) status = walsh_fail_within(err, WALSH_E_ARGUMENT, "%s", call);
    if (status == WALSH_OK && linear->holder) status = upload_adapter(linear->holder, adapter, err);
    if (status == WALSH_OK)
        *out = adapter;
    else
        walsh_ops_adapter_close(&adapter);
    return status;
}

void walsh_ops_adapter_close(struct walsh_ops_adapter **adapter)
{
    if (!adapter || !*adapter) return;
    const struct walsh_queue *holder = (*adapter)->linear->holder;
    for (size_t i = 0; holder && i < 2; i++) holder->memory->free(holder, (*adapter)->device[i]);
    walsh_arena_close(&(*adapter)->arena);
    walsh_free(*adapter);
    *adapter = NULL;
}

/* ---------------------------------------------------------------------------------------- call */

/* What a call needs besides its arguments: rows in the workspace, descriptors here. */
struct scratch {
    struct walsh_activations a;
    float *x, *z; /* x in f32 (NULL: as it is), the product's output */
    size_t ldz;
    float *h[MAX_ADAPTERS];
    struct walsh_low_rank_down downs[MAX_ADAPTERS];
    struct walsh_low_rank_up ups[MAX_ADAPTERS];
};

void walsh_ops_take_activations(const struct walsh_linear *l, size_t rows, struct walsh_ops_workspace *w,
                                struct walsh_activations *a)
{
    const size_t cols = l->in_rotation.blocks.padded, stride = walsh_activations_stride(cols);
    size_t elements;
    *a = (struct walsh_activations){.type = l->activation, .rows = rows, .cols = cols, .stride = stride};
    if (!walsh_mul(rows, stride, &elements)) w->overflow = true;
    if (w->overflow) return;
    a->data = walsh_ops_take(w, elements, walsh_activation_size(a->type));
    a->scale = walsh_ops_take(w, rows * walsh_activation_scales(a->type, stride), sizeof *a->scale);
    a->sum = walsh_ops_take(w, rows * walsh_activation_sums(a->type, stride), sizeof *a->sum);
}

/* Lay the workspace out for any elements and either role. */
static void lay_out(const struct walsh_ops_linear *linear, size_t rows,
                    const struct walsh_ops_adapter *const *adapters, size_t adapter_count,
                    struct walsh_ops_workspace *w, struct scratch *s)
{
    const struct walsh_linear *l = &linear->linear;
    size_t elements;
    s->ldz = walsh_ops_linear_stride(l);
    walsh_ops_take_activations(l, rows, w, &s->a);
    if (!walsh_mul(rows, walsh_max(l->in, s->ldz), &elements)) w->overflow = true;
    if (w->overflow) return;
    s->x = walsh_ops_take(w, rows * l->in, sizeof *s->x);
    s->z = walsh_ops_take(w, rows * s->ldz, sizeof *s->z);
    for (size_t i = 0; i < adapter_count; i++) {
        const uint32_t rank = adapters[i]->update.rank;
        s->h[i] = walsh_ops_take(w,
                                 walsh_max(walsh_low_rank_scratch(rank, l->in, rows, WALSH_DECODE),
                                           walsh_low_rank_scratch(rank, l->in, rows, WALSH_PREFILL)),
                                 sizeof *s->h[i]);
    }
}

size_t walsh_ops_linear_workspace(const struct walsh_ops_linear *linear, size_t rows,
                                  const struct walsh_ops_adapter *const *adapters, size_t adapter_count)
{
    struct walsh_ops_workspace w = {0};
    struct scratch s;
    if (!linear || adapter_count > MAX_ADAPTERS || (adapter_count > 0 && !adapters) || rows > SIZE_MAX / 4096)
        return 0;
    for (size_t i = 0; i < adapter_count; i++)
        if (!adapters[i]) return 0;
    lay_out(linear, rows > 0 ? rows : 1, adapters, adapter_count, &w, &s);
    return w.overflow || w.used > PTRDIFF_MAX ? 0 : w.used;
}

static const struct walsh_low_rank_input *add_updates(const struct walsh_ops_call *call, struct scratch *s,
                                                      const float *x, size_t ldx, size_t cols, size_t rows,
                                                      struct walsh_product *product,
                                                      struct walsh_low_rank_input *input)
{
    if (call->adapter_count == 0) return NULL;
    *input = (struct walsh_low_rank_input){
        .x = x, .ldx = ldx, .cols = cols, .down = s->downs, .count = call->adapter_count};
    for (size_t i = 0; i < call->adapter_count; i++) {
        const struct walsh_ops_adapter *adapter = call->adapters[i];
        s->downs[i].format = adapter->update.storage;
        s->downs[i].rank = adapter->update.rank;
        s->downs[i].a = adapter->update.a;
        s->downs[i].row_begin = 0;
        s->downs[i].row_end = rows;
        s->downs[i].h = s->h[i];
        s->ups[i] =
            (struct walsh_low_rank_up){.down = (uint32_t)i, .scale = adapter->scale, .b = adapter->update.b};
    }
    product->up = s->ups;
    product->up_count = call->adapter_count;
    return input;
}

/* The queue is held and everything has been checked. */
static void run(const struct walsh_queue *q, const struct walsh_linear *l, const struct walsh_ops_rows *x,
                const struct walsh_ops_rows *y, const struct walsh_ops_call *call, struct scratch *s)
{
    const enum walsh_role role = call->role == WALSH_OPS_PREFILL ? WALSH_PREFILL : WALSH_DECODE;
    const float *input = (const float *)(const void *)x->data;
    size_t ldx = x->ld;
    if (x->element != WALSH_ELEMENT_F32) {
        walsh_ops_load_rows(q, x, s->x, l->in);
        input = s->x;
        ldx = l->in;
    }
    q->ops->prepare(q, &s->a, input, ldx, &l->in_rotation);
    struct walsh_product product = {.weights = &l->weights, .y = s->z, .ldy = s->ldz};
    struct walsh_low_rank_input updates;
    q->ops->product(q, &product, 1, &s->a,
                    add_updates(call, s, input, ldx, l->in, x->rows, &product, &updates), role);
    if (y->element == WALSH_ELEMENT_F32) {
        q->ops->unrotate(q, (float *)(void *)y->data, y->ld, s->z, s->ldz, &l->out_rotation, l->bias,
                         x->rows);
    } else {
        q->ops->unrotate(q, s->z, s->ldz, s->z, s->ldz, &l->out_rotation, l->bias, x->rows);
        walsh_ops_store_rows(q, s->z, s->ldz, y);
    }
}

static enum walsh_status check_call(const struct walsh_ops_linear *linear, const struct walsh_ops_call *call,
                                    struct walsh_error *err)
{
    static const char name[] = "walsh_ops_linear_apply";
    if ((unsigned)call->role > WALSH_OPS_PREFILL)
        return walsh_fail(err, WALSH_E_ARGUMENT, "%s: role is %u, expected 0 or 1", name,
                          (unsigned)call->role);
    if (call->adapter_count > MAX_ADAPTERS || (call->adapter_count > 0 && !call->adapters))
        return walsh_fail(err, WALSH_E_ARGUMENT, "%s: %zu adapters, expected at most %d", name,
                          call->adapter_count, MAX_ADAPTERS);
    for (size_t i = 0; i < call->adapter_count; i++)
        if (!call->adapters[i] || call->adapters[i]->linear != linear)
            return walsh_fail(err, WALSH_E_ARGUMENT, "%s: adapters[%zu] is not of this linear", name, i);
    return WALSH_OK;
}

enum walsh_status walsh_ops_linear_apply(struct walsh_ops_queue *queue, const struct walsh_ops_linear *linear,
                                         const struct walsh_view *x, const struct walsh_view *y,
                                         const struct walsh_ops_call *call, struct walsh_error *err)
{
    static const char name[] = "walsh_ops_linear_apply";
    struct walsh_ops_call c = WALSH_OPS_CALL;
    struct walsh_ops_rows from, to;
    struct scratch s;
    const struct walsh_ops_argument a = {name, "x", x, queue}, b = {name, "y", y, queue};
    WALSH_TRY(walsh_ops_need(name, "queue", queue, err));
    WALSH_TRY(walsh_ops_need(name, "linear", linear, err));
    WALSH_TRY(walsh_ops_placed(queue, name, "linear", linear->holder, err));
    const struct walsh_linear *l = &linear->linear;
    WALSH_TRY(walsh_options_read(&c, sizeof c, call, "walsh_ops_call", err));
    WALSH_TRY(check_call(linear, &c, err));
    WALSH_TRY(walsh_ops_rows(&a, WALSH_OPS_FLOATS, 1, l->in, &from, err));
    WALSH_TRY(walsh_ops_rows(&b, WALSH_OPS_FLOATS, 1, l->out, &to, err));
    if (from.rows != to.rows)
        return walsh_fail(err, WALSH_E_ARGUMENT, "%s: y has %zu rows, expected %zu, as x has", name, to.rows,
                          from.rows);
    WALSH_TRY(walsh_ops_apart(&a, &from, &b, &to, false, err));
    WALSH_TRY(walsh_ops_check_workspace(
        name, c.workspace, c.workspace_size,
        walsh_ops_linear_workspace(linear, from.rows, c.adapters, c.adapter_count), err));
    if (from.rows == 0) return WALSH_OK;
    struct walsh_ops_workspace w = {.data = c.workspace};
    lay_out(linear, from.rows, c.adapters, c.adapter_count, &w, &s);
    run(walsh_ops_enter(queue), l, &from, &to, &c, &s);
    return walsh_ops_finish(queue, name, err);
}
