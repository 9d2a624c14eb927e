/* The staged ops of quantizing: staged.h. */
#include "kernels/quantize.h"

#include "staged.h"

static const struct walsh_quantize_ops *quantize_of(const struct staged *s)
{
    return s->device.ops->quantize;
}

static void hessian_add(const struct walsh_queue *q, float *sum, uint32_t n, const float *x, size_t ldx,
                        size_t rows)
{
    struct staged *s = staged_of(q);
    quantize_of(s)->hessian_add(&s->device, staged_out(s, sum, (size_t)n * n * 4), n,
                                staged_in(s, x, staged_span(rows, ldx, n, 4)), ldx, rows);
    staged_finish(s);
}

/* The matrices have as many rows as the last one that is chosen needs. */
static size_t matrix_rows(const struct walsh_ldlq_rows *r)
{
    const size_t last = r->rows - 1;
    return last / 32 * r->step * 32 + last % 32 + 1;
}

static struct walsh_ldlq_rows stage_rows(struct staged *s, const struct walsh_ldlq_rows *r)
{
    struct walsh_ldlq_rows d = *r;
    const size_t m = matrix_rows(r), matrix = m * r->n * 4, square = (size_t)r->n * r->n * 4;
    d.target = staged_in(s, r->target, matrix);
    d.hessian = staged_in(s, r->hessian, square);
    d.factor = staged_in(s, r->factor, square);
    d.inverse = staged_in(s, r->inverse, (size_t)r->n * 8 * 4);
    d.error = staged_out(s, r->error, matrix);
    d.panel = staged_out(s, r->panel, (size_t)r->rows * 64 * 4);
    d.changed = staged_out(s, r->changed, sizeof *r->changed);
    for (unsigned k = 0; k < r->stages; k++)
        d.stage[k].codes =
            staged_out(s, r->stage[k].codes, m * (r->n / 8) * (r->stage[k].kind == WALSH_STAGE_E8P ? 2 : 1));
    return d;
}

static void sweep(const struct walsh_queue *q, const struct walsh_ldlq_rows *rows)
{
    struct staged *s = staged_of(q);
    const struct walsh_ldlq_rows d = stage_rows(s, rows);
    quantize_of(s)->sweep(&s->device, &d);
    staged_finish(s);
}

static void pass(const struct walsh_queue *q, const struct walsh_ldlq_rows *rows)
{
    struct staged *s = staged_of(q);
    const struct walsh_ldlq_rows d = stage_rows(s, rows);
    quantize_of(s)->pass(&s->device, &d);
    staged_finish(s);
}

static void trace(const struct walsh_queue *q, const struct walsh_ldlq_rows *rows, const float *e,
                  double *sums)
{
    struct staged *s = staged_of(q);
    const struct walsh_ldlq_rows d = stage_rows(s, rows);
    quantize_of(s)->trace(&s->device, &d, staged_in(s, e, matrix_rows(rows) * rows->n * 4),
                          staged_out(s, sums, rows->rows * sizeof *sums));
    staged_finish(s);
}

const struct walsh_quantize_ops staged_quantize_ops = {hessian_add, sweep, pass, trace};
