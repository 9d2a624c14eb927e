/* Views: checks, DLPack, f32 and back; queues. */
#include <stdio.h>
#include <string.h>

#include "api/ops.h"
#include "base/memory.h"
#include "kernels/cpu/split.h"

static const struct {
    const char *name;
    size_t size;
} elements_known[] = {
    [WALSH_ELEMENT_F32] = {"f32", 4}, [WALSH_ELEMENT_F16] = {"f16", 2}, [WALSH_ELEMENT_BF16] = {"bf16", 2},
    [WALSH_ELEMENT_U8] = {"u8", 1},   [WALSH_ELEMENT_U16] = {"u16", 2}, [WALSH_ELEMENT_I32] = {"i32", 4},
    [WALSH_ELEMENT_I64] = {"i64", 8}};
#define ELEMENTS (sizeof elements_known / sizeof *elements_known)

size_t walsh_element_size(enum walsh_element element)
{
    return elements_known[element].size;
}

/* ---------------------------------------------------------------------------------------- checks */

#define TEXT 240

/* "[2, 3] with strides [3, 1]" */
static const char *numbers(const int64_t *n, uint32_t rank, char *text)
{
    size_t at = 0;
    at += (size_t)snprintf(text, TEXT, "[");
    for (uint32_t i = 0; i < rank; i++)
        at += (size_t)snprintf(text + at, TEXT - at, "%s%lld", i ? ", " : "", (long long)n[i]);
    snprintf(text + at, TEXT - at, "]");
    return text;
}

static enum walsh_status refuse_strides(const struct walsh_ops_argument *a, const char *expected,
                                        struct walsh_error *err)
{
    char shape[TEXT], strides[TEXT];
    return walsh_fail(err, WALSH_E_ARGUMENT, "%s: %s: strides are %s of shape %s, expected %s", a->call,
                      a->name, numbers(a->view->strides, a->view->rank, strides),
                      numbers(a->view->shape, a->view->rank, shape), expected);
}

enum walsh_status walsh_ops_need(const char *call, const char *name, const void *argument,
                                 struct walsh_error *err)
{
    if (argument) return WALSH_OK;
    return walsh_fail(err, WALSH_E_ARGUMENT, "%s: %s is NULL", call, name);
}

/* "f32 or f16" */
static const char *element_names(unsigned allowed, char *text)
{
    size_t at = 0;
    text[0] = 0;
    for (size_t i = 0; i < ELEMENTS; i++)
        if (allowed >> i & 1)
            at += (size_t)snprintf(text + at, TEXT - at, "%s%s", at ? " or " : "", elements_known[i].name);
    return text;
}

static enum walsh_status check_head(const struct walsh_ops_argument *a, unsigned allowed,
                                    struct walsh_error *err)
{
    char names[TEXT], shape[TEXT];
    const struct walsh_view *v = a->view;
    if (!v) return walsh_fail(err, WALSH_E_ARGUMENT, "%s: %s is NULL, expected a view", a->call, a->name);
    if (v->rank < 1 || v->rank > WALSH_VIEW_RANK)
        return walsh_fail(err, WALSH_E_ARGUMENT, "%s: %s: rank is %u, expected 1 to %d", a->call, a->name,
                          v->rank, WALSH_VIEW_RANK);
    if ((unsigned)v->element >= ELEMENTS || !(allowed >> v->element & 1))
        return walsh_fail(err, WALSH_E_ARGUMENT, "%s: %s: element is %s, expected %s", a->call, a->name,
                          (unsigned)v->element < ELEMENTS ? elements_known[v->element].name : "unknown",
                          element_names(allowed, names));
    const enum walsh_view_device device = a->queue ? a->queue->device : WALSH_VIEW_CPU;
    const int32_t id = a->queue ? a->queue->device_id : 0;
    if (v->device != device || (device != WALSH_VIEW_CPU && v->device_id != id))
        return walsh_fail(err, WALSH_E_ARGUMENT, "%s: %s: device is %d:%d, expected %d:%d, %s", a->call,
                          a->name, (int)v->device, v->device_id, (int)device, id,
                          device != WALSH_VIEW_CPU ? "the queue's"
                          : a->queue               ? "the queue's (the CPU)"
                                                   : "the host's memory (CPU)");
    for (uint32_t i = 0; i < v->rank; i++)
        if (v->shape[i] < 0)
            return walsh_fail(err, WALSH_E_ARGUMENT, "%s: %s: shape is %s, expected no negative size",
                              a->call, a->name, numbers(v->shape, v->rank, shape));
    return WALSH_OK;
}

/* Bytes from the first to behind the last element of rows; false where that does not fit into memory. */
static bool extent_of(const struct walsh_ops_rows *r, size_t *bytes)
{
    size_t elements = 0;
    if (r->rows == 0 || r->cols == 0) {
        *bytes = 0;
        return true;
    }
    return walsh_mul(r->rows - 1, r->ld, &elements) && walsh_add(elements, r->cols, &elements) &&
           walsh_mul(elements, walsh_element_size(r->element), bytes) && *bytes <= PTRDIFF_MAX &&
           *bytes <= UINTPTR_MAX - (uintptr_t)r->data;
}

static enum walsh_status check_memory(const struct walsh_ops_argument *a, const struct walsh_ops_rows *r,
                                      struct walsh_error *err)
{
    char shape[TEXT], strides[TEXT];
    const struct walsh_view *v = a->view;
    size_t bytes;
    if (!extent_of(r, &bytes))
        return walsh_fail(err, WALSH_E_ARGUMENT,
                          "%s: %s: %s of shape %s with strides %s does not fit into memory", a->call, a->name,
                          elements_known[v->element].name, numbers(v->shape, v->rank, shape),
                          numbers(v->strides, v->rank, strides));
    if (!v->data && bytes > 0)
        return walsh_fail(err, WALSH_E_ARGUMENT, "%s: %s: data is NULL, expected %zu bytes", a->call, a->name,
                          bytes);
    if ((uintptr_t)v->data % walsh_element_size(r->element) != 0)
        return walsh_fail(err, WALSH_E_ARGUMENT, "%s: %s: data is at %p, expected a multiple of %zu bytes",
                          a->call, a->name, v->data, walsh_element_size(r->element));
    return WALSH_OK;
}

/* The inner dimensions are one dense run; *cols its length. */
static enum walsh_status check_inner(const struct walsh_ops_argument *a, uint32_t inner, size_t *cols,
                                     struct walsh_error *err)
{
    const struct walsh_view *v = a->view;
    *cols = 1;
    for (uint32_t i = v->rank; i-- > v->rank - inner;) {
        if (v->shape[i] != 1 && (v->strides[i] < 0 || (uint64_t)v->strides[i] != *cols))
            return refuse_strides(
                a, inner == 1 ? "1 for the last dimension" : "the last dimensions to be dense (row-major)",
                err);
        if (!walsh_mul(*cols, (size_t)v->shape[i], cols)) *cols = SIZE_MAX;
    }
    return WALSH_OK;
}

/* The outer ones are rows at one stride. */
static enum walsh_status check_outer(const struct walsh_ops_argument *a, uint32_t outer,
                                     struct walsh_ops_rows *r, struct walsh_error *err)
{
    const struct walsh_view *v = a->view;
    int64_t next = 0; /* stride of the dimension in front of those that were seen */
    r->rows = 1;
    r->ld = r->cols;
    for (uint32_t i = outer; i-- > 0;) {
        if (v->shape[i] == 1) continue;
        if (r->rows == 1) {
            if (v->shape[i] > 0 && (v->strides[i] < 0 || (uint64_t)v->strides[i] < r->cols))
                return refuse_strides(a, "rows that are apart, from the first to the last", err);
            r->ld = (size_t)v->strides[i];
        } else if (v->strides[i] != next) {
            return refuse_strides(
                a, "one stride for all rows: leading dimensions that are dense among themselves", err);
        }
        if (__builtin_mul_overflow(v->strides[i], v->shape[i], &next)) next = -1;
        if (!walsh_mul(r->rows, (size_t)v->shape[i], &r->rows)) r->rows = SIZE_MAX;
        if (r->rows == 0) return WALSH_OK;
    }
    return WALSH_OK;
}

enum walsh_status walsh_ops_rows(const struct walsh_ops_argument *argument, unsigned elements, uint32_t inner,
                                 size_t cols, struct walsh_ops_rows *out, struct walsh_error *err)
{
    char shape[TEXT];
    const struct walsh_view *v = argument->view;
    WALSH_TRY(check_head(argument, elements, err));
    *out = (struct walsh_ops_rows){.data = v->data, .element = v->element};
    const uint32_t dense = inner < v->rank ? inner : v->rank;
    WALSH_TRY(check_inner(argument, dense, &out->cols, err));
    if (out->cols != cols)
        return walsh_fail(err, WALSH_E_ARGUMENT, "%s: %s: shape is %s, expected [.., %zu]", argument->call,
                          argument->name, numbers(v->shape, v->rank, shape), cols);
    WALSH_TRY(check_outer(argument, v->rank - dense, out, err));
    return check_memory(argument, out, err);
}

enum walsh_status walsh_ops_dense(const struct walsh_ops_argument *argument, unsigned elements, uint32_t rank,
                                  const int64_t *shape, struct walsh_ops_rows *out, struct walsh_error *err)
{
    char found[TEXT], expected[TEXT];
    const struct walsh_view *v = argument->view;
    WALSH_TRY(check_head(argument, elements, err));
    if (v->rank != rank || memcmp(v->shape, shape, rank * sizeof *shape) != 0)
        return walsh_fail(err, WALSH_E_ARGUMENT, "%s: %s: shape is %s, expected %s", argument->call,
                          argument->name, numbers(v->shape, v->rank, found), numbers(shape, rank, expected));
    *out = (struct walsh_ops_rows){.data = v->data, .element = v->element, .rows = 1};
    WALSH_TRY(check_inner(argument, rank, &out->cols, err));
    out->ld = out->cols;
    return check_memory(argument, out, err);
}

enum walsh_status walsh_ops_apart(const struct walsh_ops_argument *a, const struct walsh_ops_rows *rows_a,
                                  const struct walsh_ops_argument *b, const struct walsh_ops_rows *rows_b,
                                  bool same, struct walsh_error *err)
{
    size_t bytes_a = 0, bytes_b = 0;
    if (!extent_of(rows_a, &bytes_a) || !extent_of(rows_b, &bytes_b) || bytes_a == 0 || bytes_b == 0)
        return WALSH_OK;
    const uintptr_t at_a = (uintptr_t)rows_a->data, at_b = (uintptr_t)rows_b->data;
    if (at_a + bytes_a <= at_b || at_b + bytes_b <= at_a) return WALSH_OK;
    if (same && at_a == at_b && rows_a->ld == rows_b->ld && rows_a->cols == rows_b->cols &&
        rows_a->element == rows_b->element)
        return WALSH_OK;
    /* slices of the columns of one matrix lie between each other without meeting */
    const size_t size = walsh_element_size(rows_a->element), ld = rows_a->ld * size;
    if (rows_a->ld == rows_b->ld && size == walsh_element_size(rows_b->element) && rows_a->rows > 1 &&
        ld > 0) {
        const size_t first = at_a < at_b ? (at_b - at_a) % ld : (ld - (at_a - at_b) % ld) % ld;
        if (first >= rows_a->cols * size && first + rows_b->cols * size <= ld) return WALSH_OK;
    }
    return walsh_fail(err, WALSH_E_ARGUMENT, "%s: %s and %s overlap in memory, expected %s", a->call, a->name,
                      b->name, same ? "views that are apart, or the same" : "views that are apart");
}

/* ---------------------------------------------------------------------------------------- elements */

void walsh_ops_load(const struct walsh_kernels *k, enum walsh_element element, const void *from, float *to,
                    size_t n)
{
    if (element == WALSH_ELEMENT_F32)
        memcpy(to, from, n * sizeof *to);
    else if (element == WALSH_ELEMENT_F16)
        k->f32_from_f16(to, from, n);
    else
        k->f32_from_bf16(to, from, n);
}

void walsh_ops_store(const struct walsh_kernels *k, enum walsh_element element, const float *from, void *to,
                     size_t n)
{
    if (element == WALSH_ELEMENT_F32)
        memcpy(to, from, n * sizeof *from);
    else if (element == WALSH_ELEMENT_F16)
        k->f16_from_f32(to, from, n);
    else
        k->bf16_from_f32(to, from, n);
}

struct transfer {
    const struct walsh_queue *q;
    const struct walsh_ops_rows *rows;
    float *x;
    size_t ld;
    bool store;
};

static void transfer_rows(void *argument, size_t begin, size_t end, unsigned worker)
{
    const struct transfer *t = argument;
    (void)worker;
    for (size_t r = begin; r < end; r++) {
        if (t->store)
            walsh_ops_store(t->q->kernels, t->rows->element, t->x + r * t->ld, walsh_ops_row(t->rows, r),
                            t->rows->cols);
        else
            walsh_ops_load(t->q->kernels, t->rows->element, walsh_ops_row(t->rows, r), t->x + r * t->ld,
                           t->rows->cols);
    }
}

enum walsh_format walsh_ops_format(enum walsh_element element)
{
    return element == WALSH_ELEMENT_F32   ? WALSH_FORMAT_F32
           : element == WALSH_ELEMENT_F16 ? WALSH_FORMAT_F16
                                          : WALSH_FORMAT_BF16;
}

void walsh_ops_load_rows(const struct walsh_queue *q, const struct walsh_ops_rows *from, float *x, size_t ld)
{
    if (q->memory) {
        q->memory->convert(q, WALSH_FORMAT_F32, x, ld, walsh_ops_format(from->element), from->data, from->ld,
                           from->rows, from->cols);
        return;
    }
    struct transfer t = {q, from, x, ld, false};
    walsh_run_rows(q, from->rows, from->cols, transfer_rows, &t);
}

void walsh_ops_store_rows(const struct walsh_queue *q, const float *x, size_t ld,
                          const struct walsh_ops_rows *to)
{
    if (q->memory) {
        q->memory->convert(q, walsh_ops_format(to->element), to->data, to->ld, WALSH_FORMAT_F32, x, ld,
                           to->rows, to->cols);
        return;
    }
    struct transfer t = {q, to, (float *)(uintptr_t)x, ld, true};
    walsh_run_rows(q, to->rows, to->cols, transfer_rows, &t);
}

/* ---------------------------------------------------------------------------------------- workspaces */

void *walsh_ops_take(struct walsh_ops_workspace *w, size_t count, size_t size)
{
    size_t bytes, end;
    if (!walsh_mul(count, size, &bytes) || !walsh_add(bytes, WALSH_OPS_ALIGNMENT - 1, &bytes)) {
        w->overflow = true;
        return NULL;
    }
    bytes = bytes / WALSH_OPS_ALIGNMENT * WALSH_OPS_ALIGNMENT;
    if (!walsh_add(w->used, bytes, &end)) {
        w->overflow = true;
        return NULL;
    }
    void *p = w->data ? w->data + w->used : NULL;
    w->used = end;
    return p;
}

enum walsh_status walsh_ops_check_workspace(const char *call, const void *data, size_t size, size_t needed,
                                            struct walsh_error *err)
{
    if (needed == 0)
        return walsh_fail(err, WALSH_E_ARGUMENT, "%s: no workspace is large enough for this call", call);
    if (!data || size < needed)
        return walsh_fail(err, WALSH_E_ARGUMENT, "%s: workspace_size is %zu, expected at least %zu bytes",
                          call, data ? size : 0, needed);
    if ((uintptr_t)data % WALSH_OPS_ALIGNMENT != 0)
        return walsh_fail(err, WALSH_E_ARGUMENT, "%s: workspace is at %p, expected a multiple of %d bytes",
                          call, data, WALSH_OPS_ALIGNMENT);
    return WALSH_OK;
}

/* ---------------------------------------------------------------------------------------- dense views and
 * DLPack */

struct walsh_view walsh_view_dense(void *data, enum walsh_element element, uint32_t rank,
                                   const int64_t *shape)
{
    struct walsh_view v = {.data = data, .element = element, .device = WALSH_VIEW_CPU};
    int64_t stride = 1;
    if (rank > WALSH_VIEW_RANK || !shape) return v;
    for (uint32_t i = rank; i-- > 0;) {
        v.shape[i] = shape[i];
        v.strides[i] = stride;
        if (__builtin_mul_overflow(stride, shape[i] > 0 ? shape[i] : 1, &stride)) return v;
    }
    v.rank = rank;
    return v;
}

/* DLTensor of dlpack.h 0.6 to 1.x. */
struct dl_tensor {
    void *data;
    int32_t device_type, device_id;
    int32_t rank;
    uint8_t code, bits;
    uint16_t lanes;
    int64_t *shape, *strides;
    uint64_t byte_offset;
};
enum { DL_CPU = 1, DL_CUDA = 2, DL_CUDA_HOST = 3 };
static const struct {
    uint8_t code, bits;
} dl_types[ELEMENTS] = {
    [WALSH_ELEMENT_F32] = {2, 32}, [WALSH_ELEMENT_F16] = {2, 16}, [WALSH_ELEMENT_BF16] = {4, 16},
    [WALSH_ELEMENT_U8] = {1, 8},   [WALSH_ELEMENT_U16] = {1, 16}, [WALSH_ELEMENT_I32] = {0, 32},
    [WALSH_ELEMENT_I64] = {0, 64}};

enum walsh_status walsh_view_from_dlpack(const void *tensor, struct walsh_view *out, struct walsh_error *err)
{
    static const char call[] = "walsh_view_from_dlpack";
    struct dl_tensor t;
    WALSH_TRY(walsh_ops_need(call, "out", out, err));
    memset(out, 0, sizeof *out);
    WALSH_TRY(walsh_ops_need(call, "tensor", tensor, err));
    memcpy(&t, tensor, sizeof t);
    if (t.rank < 1 || t.rank > WALSH_VIEW_RANK || !t.shape)
        return walsh_fail(err, WALSH_E_UNSUPPORTED, "walsh_view_from_dlpack: ndim is %d, expected 1 to %d",
                          t.rank, WALSH_VIEW_RANK);
    size_t element = 0;
    while (element < ELEMENTS && (dl_types[element].code != t.code || dl_types[element].bits != t.bits))
        element++;
    if (element == ELEMENTS || t.lanes != 1)
        return walsh_fail(
            err, WALSH_E_UNSUPPORTED,
            "walsh_view_from_dlpack: dtype is code %u of %u bits in %u lanes, expected f32, f16, bf16, u8, "
            "u16, i32 or i64 in one",
            t.code, t.bits, t.lanes);
    if (t.device_type != DL_CPU && t.device_type != DL_CUDA && t.device_type != DL_CUDA_HOST)
        return walsh_fail(
            err, WALSH_E_UNSUPPORTED,
            "walsh_view_from_dlpack: device_type is %d, expected 1 (CPU), 2 (CUDA) or 3 (pinned)",
            t.device_type);
    *out = walsh_view_dense(t.data ? (uint8_t *)t.data + t.byte_offset : NULL, (enum walsh_element)element,
                            (uint32_t)t.rank, t.shape);
    if (out->rank == 0)
        return walsh_fail(err, WALSH_E_ARGUMENT,
                          "walsh_view_from_dlpack: the shape does not fit into memory");
    if (t.strides) memcpy(out->strides, t.strides, (size_t)t.rank * sizeof *t.strides);
    out->device = t.device_type == DL_CUDA ? WALSH_VIEW_CUDA : WALSH_VIEW_CPU;
    out->device_id = t.device_type == DL_CUDA ? t.device_id : 0;
    return WALSH_OK;
}

enum walsh_status walsh_view_to_dlpack(struct walsh_view *view, void *tensor, struct walsh_error *err)
{
    WALSH_TRY(walsh_ops_need("walsh_view_to_dlpack", "view", view, err));
    WALSH_TRY(walsh_ops_need("walsh_view_to_dlpack", "tensor", tensor, err));
    if (view->rank < 1 || view->rank > WALSH_VIEW_RANK || (unsigned)view->element >= ELEMENTS)
        return walsh_fail(err, WALSH_E_ARGUMENT, "walsh_view_to_dlpack: a view of rank %u and element %u",
                          view->rank, (unsigned)view->element);
    const struct dl_tensor t = {.data = view->data,
                                .device_type = view->device == WALSH_VIEW_CUDA ? DL_CUDA : DL_CPU,
                                .device_id = view->device_id,
                                .rank = (int32_t)view->rank,
                                .code = dl_types[view->element].code,
                                .bits = dl_types[view->element].bits,
                                .lanes = 1,
                                .shape = view->shape,
                                .strides = view->strides};
    memcpy(tensor, &t, sizeof t);
    return WALSH_OK;
}

/* ---------------------------------------------------------------------------------------- queues */

static enum walsh_status open_on_device(struct walsh_ops_queue *queue, void *stream, struct walsh_error *err)
{
    const struct walsh_context *context = queue->context;
    queue->device = WALSH_VIEW_CUDA;
    queue->device_id = (int32_t)context->device_number;
    if (stream) {
        WALSH_TRY(context->module->open(context->device_number, stream, &queue->run, err));
        queue->opened = true;
    }
    return queue->run.memory->alloc(&queue->run, WALSH_OPS_STAGED * sizeof *queue->staged, "a queue's rows",
                                    &queue->staged, err);
}

enum walsh_status walsh_ops_queue_open(struct walsh_context *context,
                                       const struct walsh_ops_queue_options *options,
                                       struct walsh_ops_queue **out, struct walsh_error *err)
{
    WALSH_TRY(walsh_ops_need("walsh_ops_queue_open", "out", out, err));
    *out = NULL;
    struct walsh_ops_queue_options o = WALSH_OPS_QUEUE_OPTIONS;
    WALSH_TRY(walsh_options_read(&o, sizeof o, options, "walsh_ops_queue_options", err));
    WALSH_TRY(walsh_ops_need("walsh_ops_queue_open", "context", context, err));
    if (o.stream && !context->module)
        return walsh_fail(
            err, WALSH_E_ARGUMENT,
            "walsh_ops_queue_open: a stream was given, expected NULL: the context's device is the CPU");
    struct walsh_ops_queue *queue;
    WALSH_TRY(walsh_alloc_zero(1, sizeof *queue, "a queue", &queue, err));
    queue->context = context;
    queue->device = WALSH_VIEW_CPU;
    queue->run = context->queue;
    queue->host = walsh_queue_host(&context->queue);
    const enum walsh_status status = context->module ? open_on_device(queue, o.stream, err) : WALSH_OK;
    if (status == WALSH_OK)
        *out = queue;
    else
        walsh_ops_queue_close(&queue);
    return status;
}

void walsh_ops_queue_close(struct walsh_ops_queue **queue)
{
    if (!queue || !*queue) return;
    struct walsh_ops_queue *q = *queue;
    if (q->staged) q->run.memory->free(&q->run, q->staged);
    if (q->opened) q->context->module->close(&q->run);
    walsh_free(q);
    *queue = NULL;
}

enum walsh_status walsh_ops_queue_synchronize(struct walsh_ops_queue *queue, struct walsh_error *err)
{
    WALSH_TRY(walsh_ops_need("walsh_ops_queue_synchronize", "queue", queue, err));
    return queue->run.memory ? queue->run.memory->synchronize(&queue->run, err) : WALSH_OK;
}

const struct walsh_queue *walsh_ops_enter(struct walsh_ops_queue *queue)
{
    pthread_mutex_lock(&queue->context->ops_lock);
    return &queue->run;
}

const struct walsh_queue *walsh_ops_enter_host(struct walsh_ops_queue *queue)
{
    pthread_mutex_lock(&queue->context->ops_lock);
    return &queue->host;
}

void walsh_ops_leave(struct walsh_ops_queue *queue)
{
    pthread_mutex_unlock(&queue->context->ops_lock);
}

enum walsh_status walsh_ops_finish(struct walsh_ops_queue *queue, const char *call, struct walsh_error *err)
{
    const struct walsh_queue *q = &queue->run;
    const enum walsh_status status = q->memory ? q->memory->check(q, err) : WALSH_OK;
    walsh_ops_leave(queue);
    return status == WALSH_OK ? WALSH_OK : walsh_fail_within(err, status, "%s", call);
}

const struct walsh_queue *walsh_ops_holder(const struct walsh_ops_queue *queue)
{
    return queue->run.memory ? &queue->context->queue : NULL;
}

enum walsh_status walsh_ops_placed(const struct walsh_ops_queue *queue, const char *call, const char *name,
                                   const struct walsh_queue *holder, struct walsh_error *err)
{
    if (holder == walsh_ops_holder(queue)) return WALSH_OK;
    return walsh_fail(err, WALSH_E_ARGUMENT, "%s: %s was opened with a queue of another device", call, name);
}
