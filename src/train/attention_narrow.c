/* Attention by products of bf16 pairs (kernels/pairs.h). Queries are columns throughout:
 *
 *   forward   S^T = K Q^T,   O^T += V^T P^T
 *   backward  S^T = K Q^T,  dP^T = V dO^T,  dV += P^T dO,  dK += dS^T Q,  dQ^T += K^T dS^T
 *
 * so that the softmax of a query runs down a lane, and no tile of scores is ever transposed. Every operand of
 * a product is packed once per call, before it; a document's pairs begin at a place of their own. */
#include <math.h>
#include <string.h>

#include "base/memory.h"
#include "kernels/cpu/attention.h"
#include "kernels/table.h"
#include "train/attention_tiles.h"

#define SIDE WALSH_TILE_QUERIES /* queries of a tile, and keys */
#define HALF (SIDE / 2)
#define MAX_DIM WALSH_NARROW_HEAD_DIM
#define PARTS 2 /* of a head's keys: more units than heads; their shares of dquery are added in order */

/* A worker's scratch. */
struct tiles {
    float scores[SIDE * SIDE], slopes[SIDE * SIDE];
    uint16_t p[SIDE * SIDE], ds[SIDE * SIDE];
    uint32_t pairs[SIDE * SIDE / 2];
    uint32_t query[MAX_DIM / 2 * SIDE];
    float out[MAX_DIM * SIDE]; /* forward: [head_dim][SIDE] */
    float maximum[SIDE], sum[SIDE], keep[SIDE];
};

struct narrow {
    const struct walsh_attention *t;
    size_t dim, group, units;
    size_t ldp, ldr;                      /* pairs of keys, and queries, of a row of what is turned */
    uint16_t *key_rows, *value_rows;      /* [rows][kv_width] */
    uint32_t *turned;                     /* [kv_width][ldp]: of the values (backward: keys) */
    uint32_t *query_turned, *dout_turned; /* [width / 2][ldr] */
    uint32_t *query_pairs, *dout_pairs;   /* [pairs][width] */
    float *dquery_turned[PARTS];          /* [width][ldr] */
};

/* --- memory --- */

static void *take(float **scratch, size_t elements, size_t size)
{
    void *p = *scratch;
    *scratch += walsh_round_up(elements * size, WALSH_ALIGNMENT) / sizeof(float);
    return p;
}

/* Where pairs of document d begin: those of the documents before it take no more. */
static size_t pairs_begin(const struct walsh_documents *d, size_t i)
{
    return (d->begin[i] + i) / 2;
}

/* Lay everything out from *scratch on, for `documents` documents. */
static void lay_out(struct narrow *n, const struct walsh_attention_shape *shape, size_t rows,
                    size_t documents, float **scratch)
{
    const size_t width = (size_t)shape->heads * shape->head_dim,
                 kv_width = (size_t)shape->kv_heads * shape->head_dim, pairs = (rows + documents) / 2 + 1;
    n->dim = shape->head_dim;
    n->group = shape->heads / shape->kv_heads;
    n->ldp = walsh_round_up(pairs, 16) + 16; /* not a power of two */
    n->ldr = walsh_round_up(rows, 16) + 16;
    n->key_rows = take(scratch, rows * kv_width, sizeof *n->key_rows);
    n->value_rows = take(scratch, rows * kv_width, sizeof *n->value_rows);
    n->turned = take(scratch, kv_width * n->ldp, sizeof *n->turned);
    n->query_turned = take(scratch, width / 2 * n->ldr, sizeof *n->query_turned);
    n->dout_turned = take(scratch, width / 2 * n->ldr, sizeof *n->dout_turned);
    n->query_pairs = take(scratch, pairs * width, sizeof *n->query_pairs);
    n->dout_pairs = take(scratch, pairs * width, sizeof *n->dout_pairs);
    for (int i = 0; i < PARTS; i++) n->dquery_turned[i] = take(scratch, width * n->ldr, sizeof(float));
}

size_t walsh_attention_narrow_scratch(const struct walsh_attention_shape *shape, size_t rows)
{
    struct narrow n;
    static float origin;
    float *end = &origin;
    lay_out(&n, shape, rows, rows / 2 + 1, &end);
    return (size_t)(end - &origin);
}

bool walsh_attention_narrow(const struct walsh_queue *q, const struct walsh_attention_shape *shape)
{
    return shape->head_dim % 2 == 0 && shape->head_dim <= MAX_DIM && shape->soft_cap == 0 &&
           strcmp(q->kernels->chosen[WALSH_KERNEL_ID_multiply_pairs_bf16], "reference") != 0;
}

/* --- units --- */

/* Rows [row, row + n) of document d, which begins at row `begin` of the batch and has `rows`. */
struct place {
    size_t document, begin, rows, row, n;
};

static struct place place_at(const struct walsh_documents *d, size_t document, size_t row)
{
    const size_t begin = d->begin[document], rows = d->begin[document + 1] - begin;
    return (struct place){document, begin, rows, row, walsh_min(SIDE, rows - row)};
}

/* Tile number `tile` of all documents'. */
static struct place place_of(const struct walsh_documents *d, size_t tile)
{
    for (size_t i = 0;; i++) {
        const size_t tiles = walsh_div_up(d->begin[i + 1] - d->begin[i], SIDE);
        if (tile < tiles) return place_at(d, i, tile * SIDE);
        tile -= tiles;
    }
}

static size_t tile_count(const struct walsh_documents *d)
{
    size_t tiles = 0;
    for (size_t i = 0; i < d->count; i++) tiles += walsh_div_up(d->begin[i + 1] - d->begin[i], SIDE);
    return tiles;
}

/* --- packing --- */

static void to_bf16(const struct walsh_kernels *k, uint16_t *to, const float *from, size_t n)
{
    k->bf16_from_f32(to, from, n);
}

/* The operands of the keys and values of a tile of rows. */
static void pack_keys(const struct narrow *n, const struct place *p, const float *turned, bool values)
{
    const struct walsh_attention *t = n->t;
    const struct walsh_kernels *k = t->q->kernels;
    const size_t at = (p->begin + p->row) * t->kv_width, count = p->n * t->kv_width;
    to_bf16(k, n->key_rows + at, t->key + at, count);
    if (values) to_bf16(k, n->value_rows + at, t->value + at, count);
    k->pair_rows_turned_bf16(n->turned + pairs_begin(t->documents, p->document) + p->row / 2, n->ldp,
                             turned + at, t->kv_width, p->n, t->kv_width);
}

static void pack_forward(void *argument, size_t begin, size_t end, unsigned worker)
{
    (void)worker;
    const struct narrow *n = argument;
    for (size_t i = begin; i < end; i++) {
        const struct place p = place_of(n->t->documents, i);
        pack_keys(n, &p, n->t->value, false);
    }
}

static void pack_backward(void *argument, size_t begin, size_t end, unsigned worker)
{
    (void)worker;
    const struct narrow *n = argument;
    const struct walsh_attention *t = n->t;
    const struct walsh_kernels *k = t->q->kernels;
    for (size_t i = begin; i < end; i++) {
        const struct place p = place_of(t->documents, i);
        const size_t row = p.begin + p.row, at = row * t->width,
                     pairs = (pairs_begin(t->documents, p.document) + p.row / 2) * t->width;
        pack_keys(n, &p, t->key, true);
        k->pair_columns_turned_bf16(n->query_turned + row, n->ldr, t->query + at, t->width, p.n, t->width);
        k->pair_columns_turned_bf16(n->dout_turned + row, n->ldr, t->dout + at, t->width, p.n, t->width);
        k->pair_rows_bf16(n->query_pairs + pairs, t->width, t->query + at, t->width, p.n, t->width);
        k->pair_rows_bf16(n->dout_pairs + pairs, t->width, t->dout + at, t->width, p.n, t->width);
        for (size_t r = row; r < row + p.n; r++)
            for (uint32_t h = 0; h < t->shape->heads; h++)
                t->delta[h * t->rows + r] = walsh_attention_delta(
                    t->out + r * t->width + h * n->dim, t->dout + r * t->width + h * n->dim, n->dim);
    }
}

/* --- tiles --- */

/* The first half of a tile's queries sees nothing of its second half of keys. */
static bool on_diagonal(const struct place *p, size_t from, size_t keys)
{
    return p->row == from && walsh_min(keys, p->n) > HALF;
}

/* S^T or dP^T: keys [from, from + keys) of document `p` by the queries of `p`. What no query sees may be left as it was. */
static void score_tile(const struct narrow *n, const struct place *p, const uint16_t *rows, size_t from,
                       size_t keys, uint32_t h, const uint32_t *queries, size_t ldq, float *to)
{
    struct walsh_pairs_product product = {.c = to,
                                          .ldc = SIDE,
                                          .a = rows + (p->begin + from) * n->t->kv_width +
                                               h / n->group * n->dim,
                                          .lda = n->t->kv_width,
                                          .b = queries,
                                          .ldb = ldq,
                                          .m = keys,
                                          .n = p->n,
                                          .steps = n->dim / 2};
    if (on_diagonal(p, from, keys)) {
        product.m = product.n = HALF;
        n->t->q->kernels->multiply_pairs_bf16(&product);
        product.c += HALF;
        product.b += HALF;
        product.m = keys;
        product.n = p->n - HALF;
    }
    n->t->q->kernels->multiply_pairs_bf16(&product);
}

static struct walsh_tile_scores scores_of(const struct narrow *n, const struct place *p, size_t from,
                                          size_t keys, const float *s)
{
    return (struct walsh_tile_scores){.s = s,
                                      .lds = SIDE,
                                      .keys = keys,
                                      .queries = p->n,
                                      .diagonal = (ptrdiff_t)p->row - (ptrdiff_t)from,
                                      .window = n->t->shape->window,
                                      .scale = n->t->shape->scale};
}

/* C = keep C + A B, or A B where not `add`, A of head h's rows of what is turned: keys from `from` on. */
static void add_turned(const struct narrow *n, const struct place *p, size_t from, size_t keys, uint32_t h,
                       const uint32_t *pairs, float *c, size_t ldc, bool add, const float *keep)
{
    const uint32_t *a =
        n->turned + h / n->group * n->dim * n->ldp + pairs_begin(n->t->documents, p->document) + from / 2;
    struct walsh_pairs_product product = {.c = c,
                                          .ldc = ldc,
                                          .a = (const uint16_t *)(const void *)a,
                                          .lda = 2 * n->ldp,
                                          .b = pairs,
                                          .ldb = SIDE,
                                          .m = n->dim,
                                          .n = p->n,
                                          .steps = walsh_div_up(keys, 2),
                                          .add = add,
                                          .keep = keep};
    if (on_diagonal(p, from, keys)) {
        product.n = HALF;
        product.steps = HALF / 2;
        n->t->q->kernels->multiply_pairs_bf16(&product);
        product.c += HALF;
        product.b += HALF;
        if (keep) product.keep += HALF;
        product.n = p->n - HALF;
        product.steps = walsh_div_up(keys, 2);
    }
    n->t->q->kernels->multiply_pairs_bf16(&product);
}

/* --- forward --- */

static void forward_tile(const struct narrow *n, struct tiles *s, const struct place *p, uint32_t h)
{
    const struct walsh_attention *t = n->t;
    const struct walsh_kernels *k = t->q->kernels;
    const size_t row = p->begin + p->row, at = row * t->width + h * n->dim, window = t->shape->window;
    const size_t first = window && p->row + 1 > window ? (p->row + 1 - window) / SIDE * SIDE : 0;
    k->pair_columns_turned_bf16(s->query, SIDE, t->query + at, t->width, p->n, n->dim);
    for (size_t i = 0; i < SIDE; i++) {
        s->maximum[i] = -INFINITY;
        s->sum[i] = s->keep[i] = 0;
    }
    for (size_t from = first; from < p->row + p->n; from += SIDE) {
        const size_t keys = walsh_min(SIDE, p->rows - from);
        score_tile(n, p, n->key_rows, from, keys, h, s->query, SIDE, s->scores);
        const struct walsh_tile_softmax softmax = {
            scores_of(n, p, from, keys, s->scores), s->pairs, SIDE, s->maximum, s->sum, s->keep};
        k->softmax_columns_bf16(&softmax);
        add_turned(n, p, from, keys, h, s->pairs, s->out, SIDE, from > first, s->keep);
    }
    k->transpose_f32(t->out + at, t->width, s->out, SIDE, n->dim, p->n);
    for (size_t i = 0; i < p->n; i++) {
        const float sum = walsh_add_sink(t->shape, h, s->maximum[i], s->sum[i]);
        k->scale_f32(t->out + at + i * t->width, 1.0f / sum, n->dim);
        t->lse[h * t->rows + row + i] = s->maximum[i] + logf(sum);
    }
}

static void forward_units(void *argument, size_t begin, size_t end, unsigned worker)
{
    const struct narrow *n = argument;
    struct tiles *s = (struct tiles *)(void *)n->t->q->scratch[worker];
    for (size_t unit = begin; unit < end; unit++) {
        const uint32_t heads = n->t->shape->heads;
        const struct place p = place_of(n->t->documents, unit / heads);
        forward_tile(n, s, &p, (uint32_t)(unit % heads));
    }
}

void walsh_attention_forward_narrow(const struct walsh_attention *t, float *scratch)
{
    struct narrow n = {.t = t};
    lay_out(&n, t->shape, t->rows, t->documents->count, &scratch);
    const size_t tiles = tile_count(t->documents);
    _Static_assert(sizeof(struct tiles) <= WALSH_SCRATCH_BYTES, "a worker's scratch");
    walsh_pool_run_near(t->q->pool, tiles, 1, pack_forward, &n);
    walsh_pool_run_near(t->q->pool, tiles * t->shape->heads, 1, forward_units, &n);
}

/* --- backward --- */

/* The first query behind those that see keys before `end`. */
static size_t last_query(const struct narrow *n, size_t rows, size_t end)
{
    const size_t window = n->t->shape->window;
    return window ? walsh_min(rows, end - 1 + window) : rows;
}

/* Where the second part of a document's keys begins: about half of all tiles lie before it. Documents of few
 * tiles have one part. */
static size_t second_part(const struct narrow *n, size_t rows)
{
    size_t all = 0, before = 0, from = 0;
    for (size_t i = 0; i < rows; i += SIDE) all += last_query(n, rows, walsh_min(i + SIDE, rows)) - i;
    if (rows <= 4 * SIDE) return rows;
    for (; 2 * before < all; from += SIDE) before += last_query(n, rows, walsh_min(from + SIDE, rows)) - from;
    return from;
}

/* The product of a tile's keys from `from` on, as rows, with its queries. */
static void add_rows(const struct narrow *n, const struct place *p, size_t from,
                     struct walsh_pairs_product product)
{
    if (on_diagonal(p, from, product.m)) {
        const size_t keys = product.m;
        product.m = HALF;
        n->t->q->kernels->multiply_pairs_bf16(&product);
        product.c += HALF * product.ldc;
        product.a += HALF * product.lda + HALF;
        product.b += HALF / 2 * product.ldb;
        product.m = keys - HALF;
        product.steps -= HALF / 2;
    }
    n->t->q->kernels->multiply_pairs_bf16(&product);
}

/* A tile of keys, [from, from + keys), and of the queries of `p`: their parts of all three gradients, that of dquery added to what
 * is there unless they are the first. */
static void backward_tile(const struct narrow *n, struct tiles *s, const struct place *p, size_t from,
                          size_t keys, uint32_t h, float *dquery, bool first)
{
    const struct walsh_attention *t = n->t;
    const struct walsh_kernels *k = t->q->kernels;
    const size_t row = p->begin + p->row, head = h * n->dim, to = (p->begin + from) * t->width + head,
                 pairs = (pairs_begin(t->documents, p->document) + p->row / 2) * t->width + head;
    score_tile(n, p, n->key_rows, from, keys, h, n->query_turned + head / 2 * n->ldr + row, n->ldr,
               s->scores);
    score_tile(n, p, n->value_rows, from, keys, h, n->dout_turned + head / 2 * n->ldr + row, n->ldr,
               s->slopes);
    const struct walsh_tile_slopes slopes = {.scores = scores_of(n, p, from, keys, s->scores),
                                             .dp = s->slopes,
                                             .lse = t->lse + h * t->rows + row,
                                             .delta = t->delta + h * t->rows + row,
                                             .p_rows = s->p,
                                             .ds_rows = s->ds,
                                             .ds_pairs = s->pairs,
                                             .ld_rows = SIDE,
                                             .ld_pairs = SIDE};
    k->slope_columns_bf16(&slopes);
    struct walsh_pairs_product product = {.c = t->dvalue + to,
                                          .ldc = t->width,
                                          .a = s->p,
                                          .lda = SIDE,
                                          .b = n->dout_pairs + pairs,
                                          .ldb = t->width,
                                          .m = keys,
                                          .n = n->dim,
                                          .steps = walsh_div_up(p->n, 2),
                                          .add = p->row > from};
    add_rows(n, p, from, product);
    product.c = t->dkey + to;
    product.a = s->ds;
    product.b = n->query_pairs + pairs;
    add_rows(n, p, from, product);
    add_turned(n, p, from, keys, h, s->pairs, dquery + head * n->ldr + row, n->ldr, !first, NULL);
}

/* Keys [from, from + keys) of document d, head h. */
static void backward_keys(const struct narrow *n, struct tiles *s, size_t d, size_t from, uint32_t h,
                          float *dquery, bool first)
{
    struct place p = place_at(n->t->documents, d, from);
    const size_t keys = p.n, end = last_query(n, p.rows, from + keys);
    for (size_t row = from; row < end; row += SIDE) {
        p = place_at(n->t->documents, d, row);
        backward_tile(n, s, &p, from, keys, h, dquery, first);
    }
}

/* Unit: a part of the keys of a head of a document. */
static void backward_units(void *argument, size_t first, size_t last, unsigned worker)
{
    const struct narrow *n = argument;
    const struct walsh_attention *t = n->t;
    struct tiles *s = (struct tiles *)(void *)t->q->scratch[worker];
    for (size_t unit = first; unit < last; unit++) {
        const size_t part = unit % PARTS, d = unit / PARTS / t->shape->heads, begin = t->documents->begin[d],
                     rows = t->documents->begin[d + 1] - begin, second = second_part(n, rows);
        const uint32_t h = (uint32_t)(unit / PARTS % t->shape->heads);
        const size_t from = part == 0 ? 0 : second, end = part == 0 ? second : rows;
        /* without a window the first tile of keys is seen by all queries behind it */
        for (size_t i = h * n->dim; t->shape->window && i < (h + 1) * n->dim; i++)
            memset(n->dquery_turned[part] + i * n->ldr + begin + from, 0, (rows - from) * sizeof(float));
        for (size_t key = from; key < end; key += SIDE)
            backward_keys(n, s, d, key, h, n->dquery_turned[part], !t->shape->window && key == from);
    }
}

/* dquery of a tile of rows: the parts' sum, turned back. */
static void finish_queries(void *argument, size_t begin, size_t end, unsigned worker)
{
    (void)worker;
    const struct narrow *n = argument;
    const struct walsh_attention *t = n->t;
    for (size_t i = begin; i < end; i++) {
        const struct place p = place_of(t->documents, i);
        const size_t row = p.begin + p.row;
        if (p.row >= second_part(n, p.rows))
            for (size_t d = 0; d < t->width; d++)
                t->q->kernels->add_f32(n->dquery_turned[0] + d * n->ldr + row,
                                       n->dquery_turned[1] + d * n->ldr + row, p.n);
        t->q->kernels->transpose_f32(t->dquery + row * t->width, t->width, n->dquery_turned[0] + row, n->ldr,
                                     t->width, p.n);
    }
}

void walsh_attention_backward_narrow(const struct walsh_attention *t, float *scratch)
{
    struct narrow n = {.t = t};
    lay_out(&n, t->shape, t->rows, t->documents->count, &scratch);
    const size_t tiles = tile_count(t->documents);
    walsh_pool_run_near(t->q->pool, tiles, 1, pack_backward, &n);
    walsh_pool_run_near(t->q->pool, t->documents->count * t->shape->heads * PARTS, 1, backward_units, &n);
    walsh_pool_run_near(t->q->pool, tiles, 1, finish_queries, &n);
}
