#include "quantize/rotate.h"

#include <string.h>

#include "base/memory.h"
#include "kernels/rotate.h"
#include "kernels/table.h"

enum { GRAIN = 8 };

struct rotation_job {
    const struct walsh_kernels *kernels;
    const struct walsh_rotation *rotation;
    const float *signs;
    float *padded;
    const float *in;
    float *out;
};

static void forward_task(void *argument, size_t begin, size_t end, unsigned worker)
{
    (void)worker;
    const struct rotation_job *t = argument;
    const struct walsh_rotation *r = t->rotation;
    for (size_t row = begin; row < end; row++)
        walsh_kernels_rotate(t->kernels, r, t->signs, t->in + row * r->size,
                             t->padded + row * r->blocks.padded);
}

void walsh_rotate_rows(const struct walsh_queue *q, const struct walsh_rotation *r, const float *signs,
                       const float *x, size_t rows, float *y)
{
    struct rotation_job t = {q->kernels, r, signs, y, x, NULL};
    walsh_pool_run(q->pool, rows, GRAIN, forward_task, &t);
}

static void inverse_task(void *argument, size_t begin, size_t end, unsigned worker)
{
    (void)worker;
    const struct rotation_job *t = argument;
    const struct walsh_rotation *r = t->rotation;
    for (size_t row = begin; row < end; row++)
        walsh_kernels_unrotate(t->kernels, r, t->signs, t->padded + row * r->blocks.padded,
                               t->out + row * r->size);
}

void walsh_unrotate_rows(const struct walsh_queue *q, const struct walsh_rotation *r, const float *signs,
                         float *y, size_t rows, float *x)
{
    struct rotation_job t = {q->kernels, r, signs, y, NULL, x};
    walsh_pool_run(q->pool, rows, GRAIN, inverse_task, &t);
}

struct transpose_job {
    const struct walsh_kernels *kernels;
    const float *x;
    float *y;
    size_t rows, cols;
};

static void transpose_task(void *argument, size_t begin, size_t end, unsigned worker)
{
    (void)worker;
    enum { BAND = 64 }; /* so that a band of both sides stays in the cache */
    const struct transpose_job *t = argument;
    for (size_t row = 0; row < t->rows; row += BAND)
        t->kernels->transpose_f32(t->y + begin * t->rows + row, t->rows, t->x + row * t->cols + begin,
                                  t->cols, walsh_min(BAND, t->rows - row), end - begin);
}

void walsh_transpose(const struct walsh_queue *q, const float *x, size_t rows, size_t cols, float *y)
{
    struct transpose_job t = {q->kernels, x, y, rows, cols};
    walsh_pool_run(q->pool, cols, 64, transpose_task, &t);
}
