/* The ops of the quantizer on CUDA (kernels/quantize.h). */
#include "kernels/cuda/backend.h"
#include "kernels/quantize.h"

/* The device of q, current for this thread. */
static struct cuda_device *enter(const struct walsh_queue *q)
{
    struct cuda_device *d = cuda_device_of(q);
    cudaSetDevice(d->number);
    return d;
}

static void hessian_add(const struct walsh_queue *q, float *sum, uint32_t n, const float *x, size_t ldx,
                        size_t rows)
{
    struct cuda_device *d = enter(q);
    cuda_hessian_add(d->stream, sum, n, x, ldx, rows);
    cuda_note(d, "hessian_add");
}

static struct cuda_ldlq ldlq_of(const struct cuda_device *d, const struct walsh_ldlq_rows *rows)
{
    struct cuda_ldlq p = {.n = rows->n,
                          .rows = rows->rows,
                          .step = rows->step,
                          .stages = rows->stages,
                          .target = rows->target,
                          .hessian = rows->hessian,
                          .factor = rows->factor,
                          .inverse = rows->inverse,
                          .error = rows->error,
                          .panel = rows->panel,
                          .changed = rows->changed,
                          .tables = d->e8p_tables};
    for (unsigned k = 0; k < rows->stages; k++) {
        p.stage[k].codes = rows->stage[k].codes;
        p.stage[k].narrow = rows->stage[k].kind == WALSH_STAGE_E81B;
        p.stage[k].scale = rows->stage[k].scale;
    }
    return p;
}

static void ldlq_sweep(const struct walsh_queue *q, const struct walsh_ldlq_rows *rows)
{
    struct cuda_device *d = enter(q);
    const struct cuda_ldlq p = ldlq_of(d, rows);
    cuda_ldlq_sweep(d->stream, &p);
    cuda_note(d, "ldlq_sweep");
}

static void ldlq_pass(const struct walsh_queue *q, const struct walsh_ldlq_rows *rows)
{
    struct cuda_device *d = enter(q);
    const struct cuda_ldlq p = ldlq_of(d, rows);
    cuda_ldlq_pass(d->stream, &p);
    cuda_note(d, "ldlq_pass");
}

static void ldlq_trace(const struct walsh_queue *q, const struct walsh_ldlq_rows *rows, const float *e,
                       double *sums)
{
    struct cuda_device *d = enter(q);
    const struct cuda_ldlq p = ldlq_of(d, rows);
    cuda_ldlq_trace(d->stream, &p, e, sums);
    cuda_note(d, "ldlq_trace");
}

const struct walsh_quantize_ops cuda_quantize_ops = {
    .hessian_add = hessian_add, .sweep = ldlq_sweep, .pass = ldlq_pass, .trace = ldlq_trace};
