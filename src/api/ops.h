/* api: what the files that implement walsh_ops.h share: checked views as rows, their way from and to f32,
 * workspaces. */
#ifndef WALSH_API_OPS_H
#define WALSH_API_OPS_H

#include "walsh_ops.h"

#include "api/api.h"
#include "kernels/table.h"

struct walsh_ops_queue {
    struct walsh_context *context;
    /* What ops run on, over the caller's stream where there is one, and what work of the host runs on: the same
     * on the CPU. */
    struct walsh_queue run, host;
    bool opened; /* run is a queue of its own, to be closed */
    enum walsh_view_device device;
    int32_t device_id;
    float *staged; /* of a device: rows of rotations in f32, WALSH_OPS_STAGED of them */
};
#define WALSH_OPS_STAGED ((size_t)1 << 22)

/* Signs and weights on a device belong to `holder`, the queue of their context; NULL: the CPU's. */
struct walsh_ops_rotation {
    struct walsh_rotation rotation; /* its signs stand behind it */
    struct walsh_rotation device;   /* the same, there */
    const struct walsh_queue *holder;
};

/* The queue of the ops, with the context's lock held until walsh_ops_leave. */
const struct walsh_queue *walsh_ops_enter(struct walsh_ops_queue *queue);
void walsh_ops_leave(struct walsh_ops_queue *queue);
/* The same for work on host memory. */
const struct walsh_queue *walsh_ops_enter_host(struct walsh_ops_queue *queue);
/* Leave; what an op could not enqueue is this call's failure. */
enum walsh_status walsh_ops_finish(struct walsh_ops_queue *queue, const char *call, struct walsh_error *err);
/* NULL, or what holds device memory of handles that are opened with this queue. */
const struct walsh_queue *walsh_ops_holder(const struct walsh_ops_queue *queue);
/* WALSH_E_ARGUMENT where a handle lies on another device than the queue's. */
enum walsh_status walsh_ops_placed(const struct walsh_ops_queue *queue, const char *call, const char *name,
                                   const struct walsh_queue *holder, struct walsh_error *err);

/* An argument of a call, for messages. */
struct walsh_ops_argument {
    const char *call, *name; /* "walsh_ops_rotate", "x" */
    const struct walsh_view *view;
    const struct walsh_ops_queue *queue; /* the view is memory of its device; NULL: the host's */
};
/* WALSH_E_ARGUMENT where an argument that the call needs is NULL. */
enum walsh_status walsh_ops_need(const char *call, const char *name, const void *argument,
                                 struct walsh_error *err);
#define WALSH_OPS_FLOATS (1u << WALSH_ELEMENT_F32 | 1u << WALSH_ELEMENT_F16 | 1u << WALSH_ELEMENT_BF16)
size_t walsh_element_size(enum walsh_element element);

/* A view as [rows][cols], row i at data + i * ld elements. */
struct walsh_ops_rows {
    uint8_t *data;
    enum walsh_element element;
    size_t rows, cols, ld;
};
/* The last `inner` dimensions are one dense run of `cols` elements; those in front of them, which may be
 * none, have one stride. `elements`: the bits of the enumerators that are allowed. */
enum walsh_status walsh_ops_rows(const struct walsh_ops_argument *argument, unsigned elements, uint32_t inner,
                                 size_t cols, struct walsh_ops_rows *out, struct walsh_error *err);
/* Exactly this shape, dense. */
enum walsh_status walsh_ops_dense(const struct walsh_ops_argument *argument, unsigned elements, uint32_t rank,
                                  const int64_t *shape, struct walsh_ops_rows *out, struct walsh_error *err);
/* WALSH_E_ARGUMENT where the memory of two views overlaps; `same` allows the same rows. */
enum walsh_status walsh_ops_apart(const struct walsh_ops_argument *a, const struct walsh_ops_rows *rows_a,
                                  const struct walsh_ops_argument *b, const struct walsh_ops_rows *rows_b,
                                  bool same, struct walsh_error *err);
static inline bool walsh_ops_given(const struct walsh_view *view)
{
    return view->data != NULL;
}

static inline uint8_t *walsh_ops_row(const struct walsh_ops_rows *r, size_t row)
{
    return r->data + row * r->ld * walsh_element_size(r->element);
}
/* n elements from and to f32. */
void walsh_ops_load(const struct walsh_kernels *k, enum walsh_element element, const void *from, float *to,
                    size_t n);
void walsh_ops_store(const struct walsh_kernels *k, enum walsh_element element, const float *from, void *to,
                     size_t n);
enum walsh_format walsh_ops_format(enum walsh_element element); /* of F32, F16, BF16 */
/* All rows, on the pool or the device; `x` [rows][ld]. */
void walsh_ops_load_rows(const struct walsh_queue *q, const struct walsh_ops_rows *from, float *x, size_t ld);
void walsh_ops_store_rows(const struct walsh_queue *q, const float *x, size_t ld,
                          const struct walsh_ops_rows *to);

/* The caller's workspace, given out in aligned pieces. With data NULL it only counts. */
struct walsh_ops_workspace {
    uint8_t *data;
    size_t used;
    bool overflow;
};
void *walsh_ops_take(struct walsh_ops_workspace *w, size_t count, size_t size);
/* WALSH_E_ARGUMENT where `data` is not aligned or smaller than `needed`. */
enum walsh_status walsh_ops_check_workspace(const char *call, const void *data, size_t size, size_t needed,
                                            struct walsh_error *err);

/* The rotation's own as the host reads it, or one that does nothing to `size` elements. */
struct walsh_rotation walsh_ops_rotation_of(const struct walsh_ops_rotation *rotation, uint32_t size);

#endif
