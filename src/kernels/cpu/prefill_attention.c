/* Attention of prefill rows, in tiles: QUERIES rows by a tile of keys at fixed absolute positions, each row
 * with a running softmax (Dao et al. 2022, "FlashAttention"; Milakov and Gimelshein 2018, "Online normalizer
 * calculation for softmax"). A tile of keys and values is widened once for all query heads that share it. A
 * row's arithmetic follows from its own position, not from the rows of other sequences in the call: keys that
 * it may not see carry the weight 0 (so a NaN or Inf in a later row of the same chunk reaches it, and nothing
 * else of that row does). Where the CPU multiplies bf16, both products of f16 and packed caches are of bf16,
 * summed in f32. */
#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "kernels/cpu/attention.h"
#include "kernels/cpu/split.h"
#include "kernels/cpu/turbo.h"

#define QUERIES 64     /* rows of a tile */
#define WIDE_KEYS 128  /* keys of a tile up to head_dim 256 */
#define NARROW_KEYS 32 /* beyond */
#define PAIR_KEYS 32   /* bf16: the tile's keys are padded to a multiple of it */
#define BF16_DIM 256   /* bf16: the largest head_dim, a multiple of 32, */
#define BF16_ROWS 2048 /* and the most elements of a query's heads that share keys */

struct prefill {
    const struct walsh_queue *q;
    const struct walsh_attention_shape *shape;
    const struct walsh_attention_row *rows;
    size_t count, ldq, ldo, tiles;
    const float *query;
    float *out;
};

/* Rows of one sequence that follow one another. */
struct run {
    const struct walsh_kv_view *kv;
    size_t row, count;
    uint32_t first; /* position of `row` */
    bool narrow;    /* products in bf16 */
};

/* A worker's scratch. */
struct tiles {
    float scores[QUERIES * WIDE_KEYS];
    float keys[WIDE_KEYS * 256];                       /* [head_dim][keys]: transposed */
    float values[WIDE_KEYS * 256];                     /* [keys][head_dim] */
    float span[WALSH_TURBO_SPAN * WALSH_MAX_HEAD_DIM]; /* of packed tokens */
    float keep[QUERIES];
    float maximum[WALSH_MAX_HEAD_GROUP][QUERIES], sum[WALSH_MAX_HEAD_GROUP][QUERIES];
    /* bf16: the queries [row][group x head_dim], weights [row][keys], and pairs of rows of keys and values */
    uint16_t query[QUERIES * BF16_ROWS], weights[QUERIES * WIDE_KEYS];
    uint32_t key_pairs[WIDE_KEYS * BF16_DIM / 2], value_pairs[WIDE_KEYS * BF16_DIM / 2];
};
_Static_assert(sizeof(struct tiles) <= WALSH_SCRATCH_BYTES, "a worker's scratch");
_Static_assert(NARROW_KEYS *WALSH_MAX_HEAD_DIM <= WIDE_KEYS * 256, "the tiles of keys and values");

/* out[n][head_dim] = f32 of tokens [from, from + n) of a head in a view that is not packed. */
static void load_plain(const struct prefill *t, const struct walsh_kv_view *kv, enum walsh_turbo_side side,
                       uint32_t kv_head, uint32_t from, uint32_t n, float *out)
{
    uint32_t dim = t->shape->head_dim, page_tokens = kv->page_tokens;
    void *const *pages = side == WALSH_TURBO_KEY ? kv->k_pages : kv->v_pages;
    for (uint32_t i = 0; i < n;) {
        uint32_t token = from + i, run = page_tokens - token % page_tokens;
        if (run > n - i) run = n - i;
        const void *page = pages[token / page_tokens];
        size_t at = walsh_kv_offset(kv, kv_head, token, dim), elements = (size_t)run * dim;
        if (kv->type == WALSH_KV_F32)
            memcpy(out, (const float *)page + at, elements * sizeof *out);
        else
            t->q->kernels->f32_from_f16(out, (const uint16_t *)page + at, elements);
        out += elements;
        i += run;
    }
}

/* The same of any view: of a packed one the call's own tokens as they were. */
static void load_tokens(const struct prefill *t, const struct run *run, struct tiles *s,
                        enum walsh_turbo_side side, uint32_t kv_head, uint32_t from, uint32_t n, float *out)
{
    if (run->kv->type != WALSH_KV_TURBO) {
        load_plain(t, run->kv, side, kv_head, from, n, out);
        return;
    }
    const uint32_t packed = from < run->first ? (uint32_t)walsh_min(n, run->first - from) : 0;
    walsh_turbo_load_tokens(t->q, run->kv, side, kv_head, from, packed, s->span, out);
    if (packed < n)
        load_plain(t, t->shape->own, side, kv_head, (from + packed) % t->shape->own->page_tokens, n - packed,
                   out + (size_t)packed * t->shape->head_dim);
}

/* The scores of one head, of rows from position `first` on, become weights; s->keep what its rows' earlier
 * values are multiplied by. */
static void softmax_rows(const struct prefill *t, struct tiles *s, uint32_t head, uint32_t first, size_t rows,
                         uint32_t from, uint32_t keys)
{
    for (size_t i = 0; i < rows; i++) {
        uint32_t position = first + (uint32_t)i, begin = walsh_first_key(t->shape, position);
        uint32_t low = begin > from ? begin - from : 0, high = position + 1 > from ? position + 1 - from : 0;
        if (high > keys) high = keys;
        if (low > high) low = high;
        float *score = s->scores + i * keys;
        memset(score, 0, low * sizeof *score);
        memset(score + high, 0, (keys - high) * sizeof *score);
        float scale = t->shape->scale;
        if (t->shape->soft_cap != 0) {
            t->q->kernels->soft_cap_f32(score + low, high - low, scale, t->shape->soft_cap);
            scale = 1;
        }
        s->keep[i] = t->q->kernels->softmax_step_f32(score + low, high - low, scale, &s->maximum[head][i],
                                                     &s->sum[head][i]);
    }
}

/* The values of a tile as f32, and its keys transposed; in bf16 as pairs of rows, `padded` keys with zeros. */
static void load_tile(const struct prefill *t, const struct run *run, struct tiles *s, uint32_t kv_head,
                      uint32_t from, uint32_t keys, uint32_t padded)
{
    const struct walsh_kernels *k = t->q->kernels;
    const uint32_t dim = t->shape->head_dim;
    const size_t missing = (size_t)(padded - keys) * dim * sizeof(float);
    load_tokens(t, run, s, WALSH_TURBO_KEY, kv_head, from, keys, s->values);
    memset(s->values + (size_t)keys * dim, 0, missing);
    k->transpose_f32(s->keys, padded, s->values, dim, padded, dim);
    if (run->narrow) k->pair_rows_bf16(s->key_pairs, padded, s->keys, padded, dim, padded);
    load_tokens(t, run, s, WALSH_TURBO_VALUE, kv_head, from, keys, s->values);
    memset(s->values + (size_t)keys * dim, 0, missing);
    if (run->narrow) k->pair_rows_bf16(s->value_pairs, dim, s->values, dim, padded, dim);
}

/* Scores of one head's rows. */
static void score(const struct prefill *t, const struct run *run, struct tiles *s, const float *query,
                  uint32_t g, size_t rows, uint32_t padded)
{
    const struct walsh_kernels *k = t->q->kernels;
    const uint32_t dim = t->shape->head_dim, wide = t->shape->heads / t->shape->kv_heads * dim;
    if (run->narrow)
        k->multiply_tile_bf16(s->scores, padded, NULL, s->query + (size_t)g * dim, wide, s->key_pairs, padded,
                              rows, padded, dim);
    else
        k->multiply_tile_f32(s->scores, padded, NULL, query + (size_t)g * dim, t->ldq, s->keys, padded, rows,
                             padded, dim);
}

/* out = weights times values + keep * out. */
static void weigh(const struct prefill *t, const struct run *run, struct tiles *s, float *out,
                  const float *keep, size_t rows, uint32_t padded)
{
    const struct walsh_kernels *k = t->q->kernels;
    const uint32_t dim = t->shape->head_dim;
    if (!run->narrow) {
        k->multiply_tile_f32(out, t->ldo, keep, s->scores, padded, s->values, dim, rows, dim, padded);
        return;
    }
    k->bf16_from_f32(s->weights, s->scores, rows * padded);
    k->multiply_tile_bf16(out, t->ldo, keep, s->weights, padded, s->value_pairs, dim, rows, dim, padded);
}

/* Rows [row, row + rows) of a run, of all query heads of one head of keys and values. */
static void attend(const struct prefill *t, const struct run *run, struct tiles *s, uint32_t kv_head,
                   size_t row, size_t rows)
{
    const struct walsh_attention_shape *shape = t->shape;
    uint32_t group = shape->heads / shape->kv_heads, dim = shape->head_dim;
    uint32_t tile = dim <= 256 ? WIDE_KEYS : NARROW_KEYS;
    uint32_t first = run->first + (uint32_t)(row - run->row), end = first + (uint32_t)rows;
    uint32_t first_tile = walsh_first_key(shape, first) / tile * tile;
    float *out = t->out + row * t->ldo + (size_t)kv_head * group * dim;
    const float *query = t->query + row * t->ldq + (size_t)kv_head * group * dim;
    for (uint32_t g = 0; g < group; g++)
        for (size_t i = 0; i < rows; i++) {
            s->maximum[g][i] = -INFINITY;
            s->sum[g][i] = 0;
        }
    for (size_t i = 0; run->narrow && i < rows; i++)
        t->q->kernels->bf16_from_f32(s->query + i * group * dim, query + i * t->ldq, group * dim);
    for (uint32_t from = first_tile; from < end; from += tile) {
        const uint32_t keys = end - from < tile ? end - from : tile;
        const uint32_t padded = run->narrow ? (uint32_t)walsh_round_up(keys, PAIR_KEYS) : keys;
        load_tile(t, run, s, kv_head, from, keys, padded);
        for (uint32_t g = 0; g < group; g++) {
            score(t, run, s, query, g, rows, padded);
            softmax_rows(t, s, g, first, rows, from, padded);
            weigh(t, run, s, out + (size_t)g * dim, from == first_tile ? NULL : s->keep, rows, padded);
        }
    }
    for (uint32_t g = 0; g < group; g++)
        for (size_t i = 0; i < rows; i++) {
            float sum = walsh_add_sink(shape, kv_head * group + g, s->maximum[g][i], s->sum[g][i]);
            float *y = out + i * t->ldo + (size_t)g * dim, inverse = 1.0f / sum;
            for (uint32_t d = 0; d < dim; d++) y[d] *= inverse;
        }
}

/* The run that begins with `row`. */
static struct run run_at(const struct prefill *t, size_t row)
{
    const struct walsh_attention_shape *shape = t->shape;
    const struct walsh_attention_row *first = t->rows + row;
    size_t count = 1;
    while (row + count < t->count && first[count].kv == first->kv &&
           first[count].position == first->position + count)
        count++;
    return (struct run){
        .kv = first->kv,
        .row = row,
        .count = count,
        .first = first->position,
        .narrow = shape->narrow && first->kv->type != WALSH_KV_F32 && walsh_queue_has_bf16(t->q) &&
                  shape->head_dim % PAIR_KEYS == 0 && shape->head_dim <= BF16_DIM &&
                  (size_t)shape->heads / shape->kv_heads * shape->head_dim <= BF16_ROWS,
    };
}

/* Units count down from the last rows: of a sequence those see the most keys, and a long unit must not come
 * last. */
static void attend_units(void *argument, size_t begin, size_t end, unsigned worker)
{
    const struct prefill *t = argument;
    for (size_t i = begin; i < end; i++) {
        size_t tile = t->tiles - 1 - i / t->shape->kv_heads;
        struct run run = run_at(t, 0);
        for (size_t n; tile >= (n = walsh_div_up(run.count, QUERIES)); tile -= n)
            run = run_at(t, run.row + run.count);
        const size_t row = run.row + tile * QUERIES;
        attend(t, &run, (struct tiles *)(void *)t->q->scratch[worker], (uint32_t)(i % t->shape->kv_heads),
               row, walsh_min(QUERIES, run.row + run.count - row));
    }
}

void walsh_cpu_prefill_attention(const struct walsh_queue *q, float *out, size_t ldo, const float *query,
                                 size_t ldq, const struct walsh_attention_row *rows, size_t count,
                                 const struct walsh_attention_shape *shape)
{
    struct prefill t = {q, shape, rows, count, ldq, ldo, 0, query, out};
    for (size_t row = 0, n; row < count; row += n) {
        n = run_at(&t, row).count;
        t.tiles += walsh_div_up(n, QUERIES);
    }
    walsh_pool_run(q->pool, t.tiles * shape->kv_heads, 1, attend_units, &t);
}
