#include "train/short_conv.h"

#include "base/memory.h"
#include "train/device.h"

#define PIECE_ELEMENTS 16384

struct conv {
    const struct walsh_conv_shape *shape;
    const struct walsh_documents *documents;
    const float *x, *dout;
    float *to;
};

/* The document of row `row`. */
static size_t document_of(const struct walsh_documents *d, size_t row)
{
    size_t low = 0, high = d->count - 1;
    while (low < high) {
        const size_t middle = (low + high + 1) / 2;
        if (d->begin[middle] <= row)
            low = middle;
        else
            high = middle - 1;
    }
    return low;
}

/* The bracket of column i of a row that is number `position` of its document. */
static float bracket(const struct walsh_conv_shape *s, const float *x, size_t position, size_t i)
{
    const size_t width = s->width, row = 3 * width;
    float sum = s->bias ? s->bias[i] : 0;
    for (size_t j = 0; j < s->taps; j++) {
        const size_t back = s->taps - 1 - j;
        if (back > position) continue;
        const float *from = x - back * row;
        sum += s->weight[j * width + i] * (from[i] * from[2 * width + i]);
    }
    return sum;
}

static void forward_rows(void *argument, size_t begin, size_t end, unsigned worker)
{
    (void)worker;
    const struct conv *t = argument;
    const size_t width = t->shape->width;
    for (size_t r = begin; r < end; r++) {
        const size_t position = r - t->documents->begin[document_of(t->documents, r)];
        const float *x = t->x + r * 3 * width;
        for (size_t i = 0; i < width; i++)
            t->to[r * width + i] = x[width + i] * bracket(t->shape, x, position, i);
    }
}

static void backward_rows(void *argument, size_t begin, size_t end, unsigned worker)
{
    (void)worker;
    const struct conv *t = argument;
    const struct walsh_conv_shape *s = t->shape;
    const size_t width = s->width, row = 3 * width;
    for (size_t r = begin; r < end; r++) {
        const size_t d = document_of(t->documents, r), position = r - t->documents->begin[d],
                     left = t->documents->begin[d + 1] - r;
        const float *x = t->x + r * row, *dout = t->dout + r * width;
        float *dx = t->to + r * row;
        for (size_t i = 0; i < width; i++) {
            float du = 0;
            for (size_t j = 0; j < s->taps; j++) {
                const size_t ahead = s->taps - 1 - j;
                if (ahead >= left) continue;
                du += s->weight[j * width + i] * (dout[ahead * width + i] * x[ahead * row + width + i]);
            }
            dx[i] = du * x[2 * width + i];
            dx[width + i] = dout[i] * bracket(s, x, position, i);
            dx[2 * width + i] = du * x[i];
        }
    }
}

static struct walsh_train_conv of_device(const struct conv *t)
{
    const struct walsh_documents *d = t->documents;
    return (struct walsh_train_conv){.rows = d->begin[d->count],
                                     .taps = t->shape->taps,
                                     .width = t->shape->width,
                                     .first = d->row_begin,
                                     .end = d->row_end,
                                     .weight = t->shape->weight,
                                     .bias = t->shape->bias,
                                     .x = t->x,
                                     .dout = t->dout};
}

static void run(const struct walsh_queue *q, struct conv *t, walsh_task *task)
{
    walsh_pool_run(q->pool, t->documents->begin[t->documents->count],
                   walsh_max(1, PIECE_ELEMENTS / (t->shape->width * t->shape->taps)), task, t);
}

void walsh_short_conv_forward(const struct walsh_queue *q, const struct walsh_conv_shape *shape,
                              const struct walsh_documents *documents, const float *x, float *out)
{
    struct conv t = {shape, documents, x, NULL, out};
    if (walsh_train_device(q)) {
        struct walsh_train_conv c = of_device(&t);
        c.out = out;
        q->ops->train->short_conv_forward(q, &c);
        return;
    }
    run(q, &t, forward_rows);
}

void walsh_short_conv_backward(const struct walsh_queue *q, const struct walsh_conv_shape *shape,
                               const struct walsh_documents *documents, const float *x, const float *dout,
                               float *dx)
{
    struct conv t = {shape, documents, x, dout, dx};
    if (walsh_train_device(q)) {
        struct walsh_train_conv c = of_device(&t);
        c.dx = dx;
        q->ops->train->short_conv_backward(q, &c);
        return;
    }
    run(q, &t, backward_rows);
}
