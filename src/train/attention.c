#include "train/attention.h"

#include <math.h>
#include <string.h>

#include "base/memory.h"
#include "kernels/cpu/attention.h"
#include "kernels/table.h"
#include "train/attention_tiles.h"
#include "train/device.h"

#define QUERIES 64 /* rows of a tile */
#define KEYS 64    /* keys of a tile: with QUERIES, so that a tile is on the diagonal or wholly below it */
#define MAX_DIM WALSH_MAX_HEAD_DIM

/* A worker's scratch. */
struct tiles {
    float scores[QUERIES * KEYS], slopes[QUERIES * KEYS], turned[QUERIES * KEYS];
    float keys[KEYS * MAX_DIM], values[KEYS * MAX_DIM]; /* transposed: [head_dim][KEYS] */
    float dkeys[KEYS * MAX_DIM], dvalues[KEYS * MAX_DIM];
    float keep[QUERIES], maximum[QUERIES], sum[QUERIES];
};

static const float ones[QUERIES] = {[0 ... QUERIES - 1] = 1};

/* Keys of the tile from `from` that position `position` of a document sees: [*low, *high) of `keys`. */
static void visible(const struct walsh_attention *t, size_t position, size_t from, size_t keys, size_t *low,
                    size_t *high)
{
    const size_t window = t->shape->window,
                 first = window && position + 1 > window ? position + 1 - window : 0;
    *high = position + 1 > from ? walsh_min(position + 1 - from, keys) : 0;
    *low = first > from ? walsh_min(first - from, *high) : 0;
}

/* First tile of keys that any of the rows from position `position` on sees. */
static size_t first_tile(const struct walsh_attention *t, size_t position)
{
    const size_t window = t->shape->window;
    return window && position + 1 > window ? (position + 1 - window) / KEYS * KEYS : 0;
}

/* --- forward --- */

/* One row of scores joins its running softmax; keys that it does not see get the weight 0. */
static void softmax_row(const struct walsh_attention *t, struct tiles *s, size_t i, size_t position,
                        size_t from, size_t keys)
{
    float *score = s->scores + i * KEYS, scale = t->shape->scale;
    size_t low, high;
    visible(t, position, from, keys, &low, &high);
    memset(score, 0, low * sizeof *score);
    memset(score + high, 0, (keys - high) * sizeof *score);
    if (t->shape->soft_cap != 0) {
        t->q->kernels->soft_cap_f32(score + low, high - low, scale, t->shape->soft_cap);
        scale = 1;
    }
    s->keep[i] = t->q->kernels->softmax_step_f32(score + low, high - low, scale, &s->maximum[i], &s->sum[i]);
}

/* Rows [row, row + n) of the document that begins at row `begin`, head h. */
static void forward_tile(const struct walsh_attention *t, struct tiles *s, size_t begin, size_t row, size_t n,
                         uint32_t h)
{
    const struct walsh_kernels *k = t->q->kernels;
    const size_t dim = t->shape->head_dim, kv_head = h / (t->shape->heads / t->shape->kv_heads);
    const float *key = t->key + begin * t->kv_width + kv_head * dim,
                *value = t->value + begin * t->kv_width + kv_head * dim;
    float *out = t->out + (begin + row) * t->width + h * dim;
    for (size_t i = 0; i < n; i++) {
        s->maximum[i] = -INFINITY;
        s->sum[i] = 0;
    }
    const size_t first = first_tile(t, row);
    for (size_t from = first; from < row + n; from += KEYS) {
        const size_t keys = walsh_min(KEYS, row + n - from);
        k->transpose_f32(s->keys, KEYS, key + from * t->kv_width, t->kv_width, keys, dim);
        k->multiply_tile_f32(s->scores, KEYS, NULL, t->query + (begin + row) * t->width + h * dim, t->width,
                             s->keys, KEYS, n, keys, dim);
        for (size_t i = 0; i < n; i++) softmax_row(t, s, i, row + i, from, keys);
        k->multiply_tile_f32(out, t->width, from == first ? NULL : s->keep, s->scores, KEYS,
                             value + from * t->kv_width, t->kv_width, n, dim, keys);
    }
    for (size_t i = 0; i < n; i++) {
        const float sum = walsh_add_sink(t->shape, h, s->maximum[i], s->sum[i]);
        k->scale_f32(out + i * t->width, 1.0f / sum, dim);
        t->lse[h * t->rows + begin + row + i] = s->maximum[i] + logf(sum);
    }
}

/* Unit u: a tile of rows of a document and a head; documents in order, the heads of a tile together. */
static void forward_units(void *argument, size_t first, size_t last, unsigned worker)
{
    const struct walsh_attention *t = argument;
    struct tiles *s = (struct tiles *)(void *)t->q->scratch[worker];
    size_t unit = 0;
    for (size_t d = 0; d < t->documents->count; d++) {
        const size_t begin = t->documents->begin[d], rows = t->documents->begin[d + 1] - begin;
        for (size_t row = 0; row < rows; row += QUERIES)
            for (uint32_t h = 0; h < t->shape->heads; h++, unit++)
                if (unit >= first && unit < last)
                    forward_tile(t, s, begin, row, walsh_min(QUERIES, rows - row), h);
    }
}

static struct walsh_attention describe(const struct walsh_queue *q, const struct walsh_attention_shape *shape,
                                       const struct walsh_documents *documents, const float *query,
                                       const float *key, const float *value)
{
    return (struct walsh_attention){.q = q,
                                    .shape = shape,
                                    .documents = documents,
                                    .query = query,
                                    .key = key,
                                    .value = value,
                                    .width = (size_t)shape->heads * shape->head_dim,
                                    .kv_width = (size_t)shape->kv_heads * shape->head_dim,
                                    .rows = documents->begin[documents->count]};
}

/* The same for a device's op, which computes in f32. */
static struct walsh_train_attention of_device(const struct walsh_attention *t)
{
    return (struct walsh_train_attention){.shape = t->shape,
                                          .rows = t->rows,
                                          .first = t->documents->row_begin,
                                          .end = t->documents->row_end,
                                          .query = t->query,
                                          .key = t->key,
                                          .value = t->value,
                                          .out = t->out,
                                          .lse = t->lse,
                                          .dout = t->dout,
                                          .dquery = t->dquery};
}

void walsh_attention_forward(const struct walsh_queue *q, const struct walsh_attention_shape *shape,
                             const struct walsh_documents *documents, bool narrow, const float *query,
                             const float *key, const float *value, float *out, float *lse, float *scratch)
{
    struct walsh_attention t = describe(q, shape, documents, query, key, value);
    t.out = out;
    t.lse = lse;
    if (walsh_train_device(q)) {
        const struct walsh_train_attention a = of_device(&t);
        q->ops->train->attention_forward(q, &a);
        return;
    }
    if (narrow) {
        walsh_attention_forward_narrow(&t, scratch);
        return;
    }
    size_t units = 0;
    for (size_t d = 0; d < documents->count; d++)
        units += walsh_div_up(documents->begin[d + 1] - documents->begin[d], QUERIES) * shape->heads;
    _Static_assert(sizeof(struct tiles) <= WALSH_SCRATCH_BYTES, "a worker's scratch");
    walsh_pool_run_near(q->pool, units, 1, forward_units, &t);
}

/* --- backward --- */

/* The tile's scores become weights P, its slopes (dout · V^T) the gradient dS of the scores before their
 * scale. With P = exp(s - lse) and O = P V: dS = P ∘ (dO V^T - rowsum(dO ∘ O)); a cap s = c tanh(x / c)
 * multiplies by 1 - (s / c)^2. */
static void gradient_row(const struct walsh_attention *t, struct tiles *s, size_t i, size_t position,
                         size_t from, size_t keys, float lse, float delta)
{
    float *p = s->scores + i * KEYS, *slope = s->slopes + i * KEYS, scale = t->shape->scale;
    float *damping = s->turned + i * KEYS;
    const float cap = t->shape->soft_cap;
    size_t low, high;
    visible(t, position, from, keys, &low, &high);
    memset(p, 0, low * sizeof *p);
    memset(slope, 0, low * sizeof *slope);
    memset(p + high, 0, (keys - high) * sizeof *p);
    memset(slope + high, 0, (keys - high) * sizeof *slope);
    if (cap != 0) {
        t->q->kernels->soft_cap_f32(p + low, high - low, scale, cap);
        for (size_t j = low; j < high; j++) damping[j] = 1 - (p[j] / cap) * (p[j] / cap);
        scale = 1;
    }
    float maximum = lse, sum = 0; /* no score is above lse: the step only takes the exponentials */
    t->q->kernels->softmax_step_f32(p + low, high - low, scale, &maximum, &sum);
    for (size_t j = low; j < high; j++) slope[j] = p[j] * (slope[j] - delta) * t->shape->scale;
    if (cap != 0)
        for (size_t j = low; j < high; j++) slope[j] *= damping[j];
}

/* Keys [from, from + keys) of a document's head: their gradients, and their part of dquery. */
static void backward_keys(const struct walsh_attention *t, struct tiles *s, size_t begin, size_t rows,
                          size_t from, uint32_t h)
{
    const struct walsh_kernels *k = t->q->kernels;
    const size_t dim = t->shape->head_dim, kv_head = h / (t->shape->heads / t->shape->kv_heads);
    const size_t keys = walsh_min(KEYS, rows - from), at = begin + from, window = t->shape->window;
    const float *key = t->key + at * t->kv_width + kv_head * dim,
                *value = t->value + at * t->kv_width + kv_head * dim;
    const size_t end = window ? walsh_min(rows, from + keys - 1 + window) : rows;
    k->transpose_f32(s->keys, KEYS, key, t->kv_width, keys, dim);
    k->transpose_f32(s->values, KEYS, value, t->kv_width, keys, dim);
    memset(s->dkeys, 0, keys * dim * sizeof *s->dkeys);
    memset(s->dvalues, 0, keys * dim * sizeof *s->dvalues);
    for (size_t row = from; row < end; row += QUERIES) {
        const size_t n = walsh_min(QUERIES, end - row), offset = (begin + row) * t->width + h * dim;
        const float *lse = t->lse + h * t->rows + begin + row, *delta = t->delta + h * t->rows + begin + row;
        k->multiply_tile_f32(s->scores, KEYS, NULL, t->query + offset, t->width, s->keys, KEYS, n, keys, dim);
        k->multiply_tile_f32(s->slopes, KEYS, NULL, t->dout + offset, t->width, s->values, KEYS, n, keys,
                             dim);
        for (size_t i = 0; i < n; i++) gradient_row(t, s, i, row + i, from, keys, lse[i], delta[i]);
        k->multiply_tile_f32(t->dquery + offset, t->width, ones, s->slopes, KEYS, key, t->kv_width, n, dim,
                             keys);
        k->transpose_f32(s->turned, QUERIES, s->slopes, KEYS, n, keys);
        k->multiply_tile_f32(s->dkeys, dim, ones, s->turned, QUERIES, t->query + offset, t->width, keys, dim,
                             n);
        k->transpose_f32(s->turned, QUERIES, s->scores, KEYS, n, keys);
        k->multiply_tile_f32(s->dvalues, dim, ones, s->turned, QUERIES, t->dout + offset, t->width, keys, dim,
                             n);
    }
    for (size_t j = 0; j < keys; j++) {
        memcpy(t->dkey + (at + j) * t->width + h * dim, s->dkeys + j * dim, dim * sizeof *s->dkeys);
        memcpy(t->dvalue + (at + j) * t->width + h * dim, s->dvalues + j * dim, dim * sizeof *s->dvalues);
    }
}

float walsh_attention_delta(const float *out, const float *dout, size_t dim)
{
    double lane[8] = {0}, sum = 0;
    size_t j = 0;
    for (; j + 8 <= dim; j += 8)
        for (size_t i = 0; i < 8; i++) lane[i] += (double)out[j + i] * (double)dout[j + i];
    for (; j < dim; j++) sum += (double)out[j] * (double)dout[j];
    for (size_t i = 0; i < 8; i++) sum += lane[i];
    return (float)sum;
}

/* Unit u: a head of a document, whose tiles of keys add to dquery in their order. */
static void backward_units(void *argument, size_t first, size_t last, unsigned worker)
{
    const struct walsh_attention *t = argument;
    struct tiles *s = (struct tiles *)(void *)t->q->scratch[worker];
    const size_t dim = t->shape->head_dim;
    for (size_t unit = first; unit < last; unit++) {
        const size_t d = unit / t->shape->heads, begin = t->documents->begin[d],
                     rows = t->documents->begin[d + 1] - begin;
        const uint32_t h = (uint32_t)(unit % t->shape->heads);
        for (size_t i = begin; i < begin + rows; i++) {
            const float *out = t->out + i * t->width + h * dim, *dout = t->dout + i * t->width + h * dim;
            t->delta[h * t->rows + i] = walsh_attention_delta(out, dout, dim);
            memset(t->dquery + i * t->width + h * dim, 0, dim * sizeof *t->dquery);
        }
        for (size_t from = 0; from < rows; from += KEYS) backward_keys(t, s, begin, rows, from, h);
    }
}

/* Where several query heads share one of keys and values: the sum of their gradients, in their order. */
struct reduce {
    const struct walsh_kernels *kernels;
    const float *from;
    float *to;
    size_t group, kv_heads, dim;
};

static void reduce_rows(void *argument, size_t begin, size_t end, unsigned worker)
{
    (void)worker;
    const struct reduce *t = argument;
    for (size_t i = begin; i < end; i++)
        for (size_t head = 0; head < t->kv_heads; head++) {
            float *to = t->to + (i * t->kv_heads + head) * t->dim;
            const float *from = t->from + (i * t->kv_heads + head) * t->group * t->dim;
            memcpy(to, from, t->dim * sizeof *to);
            for (size_t g = 1; g < t->group; g++) t->kernels->add_f32(to, from + g * t->dim, t->dim);
        }
}

size_t walsh_attention_scratch(const struct walsh_attention_shape *shape, size_t rows)
{
    return walsh_round_up(rows * shape->heads * (2 * (size_t)shape->head_dim + 1),
                          WALSH_ALIGNMENT / sizeof(float)) +
           walsh_attention_narrow_scratch(shape, rows);
}

void walsh_attention_backward(const struct walsh_queue *q, const struct walsh_attention_shape *shape,
                              const struct walsh_documents *documents, bool narrow, const float *query,
                              const float *key, const float *value, const float *out, const float *lse,
                              const float *dout, float *dquery, float *dkey, float *dvalue, float *scratch)
{
    struct walsh_attention t = describe(q, shape, documents, query, key, value);
    t.out = (float *)(uintptr_t)out; /* both are only read here */
    t.lse = (float *)(uintptr_t)lse;
    t.dout = dout;
    t.dquery = dquery;
    if (walsh_train_device(q)) {
        struct walsh_train_attention a = of_device(&t);
        a.delta = scratch;
        a.dkey = dkey;
        a.dvalue = dvalue;
        q->ops->train->attention_backward(q, &a);
        return;
    }
    t.dkey = scratch;
    t.dvalue = scratch + t.rows * t.width;
    t.delta = t.dvalue + t.rows * t.width;
    scratch += walsh_round_up(t.rows * shape->heads * (2 * (size_t)shape->head_dim + 1),
                              WALSH_ALIGNMENT / sizeof(float));
    if (narrow)
        walsh_attention_backward_narrow(&t, scratch);
    else
        walsh_pool_run_near(q->pool, documents->count * shape->heads, 1, backward_units, &t);
    struct reduce r = {q->kernels,      t.dkey,         dkey, shape->heads / shape->kv_heads,
                       shape->kv_heads, shape->head_dim};
    walsh_pool_run_near(q->pool, t.rows, 16, reduce_rows, &r);
    r.from = t.dvalue;
    r.to = dvalue;
    walsh_pool_run_near(q->pool, t.rows, 16, reduce_rows, &r);
}
