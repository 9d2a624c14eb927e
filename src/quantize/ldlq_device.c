#include "quantize/ldlq_device.h"

#include <string.h>

#include "base/memory.h"
#include "kernels/device.h"

enum { GROUP = 8, TILE = WALSH_LDLQ_TILE, PANEL = WALSH_LDLQ_PANEL, ALIGNMENT = 256 };

/* The next part of the block of memory; NULL base: only counted. */
static void *take(uint8_t *base, size_t *used, size_t bytes)
{
    void *p = base ? base + *used : NULL;
    *used += walsh_round_up(bytes, ALIGNMENT);
    return p;
}

static size_t code_bytes(const struct walsh_ldlq_state *s, unsigned k)
{
    return s->m * (s->n / GROUP) * (s->plan->kind[k] == WALSH_STAGE_E8P ? 2 : 1);
}

/* Places of everything in `base`; returns the bytes. */
static size_t place(struct walsh_ldlq_device *d, const struct walsh_ldlq_state *s, uint8_t *base)
{
    struct walsh_ldlq_rows *r = &d->rows;
    const size_t matrix = s->m * s->n * sizeof(float), square = s->n * s->n * sizeof(float);
    size_t used = 0;
    r->target = take(base, &used, matrix);
    r->error = take(base, &used, matrix);
    r->hessian = take(base, &used, square);
    r->factor = s->input->factor ? take(base, &used, square) : NULL;
    r->inverse = take(base, &used, s->n * GROUP * sizeof(float));
    r->panel = take(base, &used, s->m * PANEL * sizeof(float));
    r->changed = take(base, &used, sizeof *r->changed);
    d->sums = take(base, &used, s->m * sizeof *d->sums);
    r->stages = s->plan->stages;
    for (unsigned k = 0; k < r->stages; k++) {
        r->stage[k].kind = s->plan->kind[k];
        r->stage[k].codes = take(base, &used, code_bytes(s, k));
    }
    return used;
}

enum walsh_status walsh_ldlq_device_open(const struct walsh_queue *q, const struct walsh_ldlq_state *s,
                                         struct walsh_ldlq_device *out, struct walsh_error *err)
{
    *out = (struct walsh_ldlq_device){.m = s->m};
    const size_t square = s->n * s->n * sizeof(float);
    WALSH_TRY(walsh_queue_alloc(q, place(out, s, NULL), "a linear to quantize", &out->memory, err));
    out->queue = q;
    place(out, s, out->memory);
    out->rows.n = (uint32_t)s->n;
    const struct {
        const float *to, *from;
        size_t bytes;
    } parts[] = {{out->rows.target, s->target, s->m * s->n * sizeof(float)},
                 {out->rows.hessian, s->input->hessian, square},
                 {out->rows.factor, s->input->factor, square},
                 {out->rows.inverse, s->input->inverse, s->n * GROUP * sizeof(float)}};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        if (parts[i].from)
            WALSH_TRY(
                walsh_queue_upload(q, (void *)(uintptr_t)parts[i].to, parts[i].from, parts[i].bytes, err));
    return WALSH_OK;
}

void walsh_ldlq_device_close(struct walsh_ldlq_device *d)
{
    if (d->queue) walsh_queue_free(d->queue, d->memory);
    memset(d, 0, sizeof *d);
}

/* Rows of every step-th tile. */
static void choose_rows(struct walsh_ldlq_device *d, size_t step)
{
    const size_t tiles = walsh_div_up(walsh_div_up(d->m, TILE), step), last = (tiles - 1) * step * TILE;
    d->rows.step = (uint32_t)step;
    d->rows.rows = (uint32_t)((tiles - 1) * TILE + walsh_min(TILE, d->m - last));
}

enum walsh_status walsh_ldlq_device_search(struct walsh_ldlq_device *d, const struct walsh_ldlq_state *s,
                                           size_t step, unsigned passes, struct walsh_error *err)
{
    const struct walsh_queue *q = d->queue;
    choose_rows(d, step);
    for (unsigned k = 0; k < d->rows.stages; k++) d->rows.stage[k].scale = s->scale[k];
    q->ops->quantize->sweep(q, &d->rows);
    for (unsigned pass = 0; pass < passes; pass++) {
        uint32_t changed;
        walsh_queue_zero(q, d->rows.changed, sizeof changed);
        q->ops->quantize->pass(q, &d->rows);
        WALSH_TRY(walsh_queue_download(q, &changed, d->rows.changed, sizeof changed, err));
        if (changed == 0) break;
    }
    return WALSH_OK;
}

enum walsh_status walsh_ldlq_device_trace(struct walsh_ldlq_device *d, size_t step, bool of_target,
                                          double *out, struct walsh_error *err)
{
    const struct walsh_queue *q = d->queue;
    double *sums;
    choose_rows(d, step);
    WALSH_TRY(walsh_alloc(d->rows.rows, sizeof *sums, "traces", &sums, err));
    q->ops->quantize->trace(q, &d->rows, of_target ? d->rows.target : d->rows.error, d->sums);
    const enum walsh_status status = walsh_queue_download(q, sums, d->sums, d->rows.rows * sizeof *sums, err);
    *out = 0;
    for (size_t i = 0; i < d->rows.rows && status == WALSH_OK; i++) *out += sums[i];
    walsh_free(sums);
    return status;
}

enum walsh_status walsh_ldlq_device_fetch(struct walsh_ldlq_device *d, const struct walsh_ldlq_state *s,
                                          struct walsh_error *err)
{
    for (unsigned k = 0; k < d->rows.stages; k++)
        WALSH_TRY(walsh_queue_download(d->queue, s->codes[k], d->rows.stage[k].codes, code_bytes(s, k), err));
    return WALSH_OK;
}
