#include "quantize/hessian.h"

#include <string.h>

#include "base/memory.h"
#include "kernels/device.h"
#include "kernels/quantize.h"
#include "quantize/blas.h"

enum { TILE = 192 }; /* columns on each side; fixed, so that no bit depends on the threads */

enum walsh_status walsh_hessian_open(uint32_t n, struct walsh_hessian *out, struct walsh_error *err)
{
    walsh_blas_one_thread();
    *out = (struct walsh_hessian){.n = n};
    return walsh_alloc_zero((size_t)n * n, sizeof *out->sum, "a Hessian", &out->sum, err);
}

void walsh_hessian_close(struct walsh_hessian *h)
{
    walsh_free(h->sum);
    if (h->device) {
        walsh_queue_free(h->device, h->there);
        walsh_queue_free(h->device, h->rows);
    }
    memset(h, 0, sizeof *h);
}

enum walsh_status walsh_hessian_place(struct walsh_hessian *h, const struct walsh_queue *device,
                                      struct walsh_error *err)
{
    const size_t bytes = (size_t)h->n * h->n * sizeof *h->there;
    h->device = device;
    WALSH_TRY(walsh_queue_alloc(device, bytes, "a Hessian", &h->there, err));
    walsh_queue_zero(device, h->there, bytes);
    return WALSH_OK;
}

/* x goes up whole, in rows of ldx. */
static enum walsh_status add_there(struct walsh_hessian *h, const float *x, size_t ldx, size_t rows)
{
    const size_t count = (rows - 1) * ldx + h->n;
    if (count > h->room) {
        walsh_queue_free(h->device, h->rows);
        h->rows = NULL;
        h->room = 0;
        WALSH_TRY(
            walsh_queue_alloc(h->device, count * sizeof *x, "a linear's inputs", &h->rows, &h->failure));
        h->room = count;
    }
    WALSH_TRY(walsh_queue_upload(h->device, h->rows, x, count * sizeof *x, &h->failure));
    h->device->ops->quantize->hessian_add(h->device, h->there, h->n, h->rows, ldx, rows);
    return WALSH_OK;
}

enum walsh_status walsh_hessian_fetch(struct walsh_hessian *h, struct walsh_error *err)
{
    if (!h->device) return WALSH_OK;
    if (h->failure.message[0]) return walsh_fail(err, h->failure.status, "%s", h->failure.message);
    return walsh_queue_download(h->device, h->sum, h->there, (size_t)h->n * h->n * sizeof *h->sum, err);
}

struct accumulation {
    struct walsh_hessian *h;
    const float *x;
    size_t ldx, rows;
};

/* Tile number t of those on and above the diagonal, row by row of tiles. */
static void accumulate_task(void *argument, size_t begin, size_t end, unsigned worker)
{
    (void)worker;
    const struct accumulation *a = argument;
    const size_t n = a->h->n, tiles = walsh_div_up(n, TILE);
    for (size_t t = begin; t < end; t++) {
        size_t i = 0, rest = t;
        while (rest >= tiles - i) rest -= tiles - i++;
        const size_t row = i * TILE, column = (i + rest) * TILE;
        cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, (blasint)walsh_min(TILE, n - row),
                    (blasint)walsh_min(TILE, n - column), (blasint)a->rows, 1.0f, a->x + row, (blasint)a->ldx,
                    a->x + column, (blasint)a->ldx, 1.0f, a->h->sum + row * n + column, (blasint)n);
    }
}

void walsh_hessian_add(const struct walsh_queue *q, struct walsh_hessian *h, const float *x, size_t ldx,
                       size_t rows)
{
    if (rows == 0) return;
    if (h->device) {
        if (h->failure.message[0] == 0 && add_there(h, x, ldx, rows) == WALSH_OK) h->tokens += rows;
        return;
    }
    const size_t tiles = walsh_div_up(h->n, TILE);
    struct accumulation a = {h, x, ldx, rows};
    walsh_pool_run(q->pool, tiles * (tiles + 1) / 2, 1, accumulate_task, &a);
    h->tokens += rows;
}

void walsh_hessian_finish(struct walsh_hessian *h)
{
    const size_t n = h->n;
    const double tokens = h->tokens > 0 ? (double)h->tokens : 1;
    for (size_t i = 0; i < n; i++)
        for (size_t j = i; j < n; j++) {
            h->sum[i * n + j] = (float)((double)h->sum[i * n + j] / tokens);
            h->sum[j * n + i] = h->sum[i * n + j];
        }
}
