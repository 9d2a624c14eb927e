/* kv_append and attention as ops: against the definition in double, equal bits for any pool and any batch. */
#include <math.h>
#include <string.h>

#include "attention_data.h"
#include "kernels/cpu/cpu_ops.h"

static float *row(struct check *c, size_t n)
{
    return check_alloc(c, n * sizeof(float), check_misalign(c, sizeof(float)));
}

/* A cache whose pages hold poison until a row is stored. */
static struct walsh_kv_view empty_cache(struct check *c, enum walsh_kv_type type, uint32_t page_tokens,
                                        uint32_t tokens, const struct walsh_attention_shape *shape)
{
    uint32_t pages = (tokens + page_tokens - 1) / page_tokens;
    size_t bytes = (size_t)shape->kv_heads * page_tokens * shape->head_dim * (type == WALSH_KV_F32 ? 4 : 2);
    void **k = check_alloc_private(c, pages * sizeof *k), **v = check_alloc_private(c, pages * sizeof *v);
    for (uint32_t p = 0; p < pages; p++) {
        k[p] = check_alloc(c, bytes, 0);
        v[p] = check_alloc(c, bytes, 0);
        memset(k[p], 0xff, bytes); /* NaN */
        memset(v[p], 0xff, bytes);
    }
    return (struct walsh_kv_view){.type = type, .page_tokens = page_tokens, .k_pages = k, .v_pages = v};
}

#define FACTOR 8
/* Prompts of f16 caches where both products are of bf16: queries, keys, weights and values each round to 8 bits. */
#define FACTOR_BF16 (1 << 14)

struct setting {
    struct walsh_attention_shape shape;
    struct walsh_kv_view kv;
    uint32_t tokens;
    float *k, *v, *query; /* [tokens][...] */
    size_t ldq;
};

static struct setting make_setting(struct check *c, const struct walsh_queue *q,
                                   struct walsh_attention_shape shape, uint32_t tokens,
                                   enum walsh_kv_type type)
{
    struct setting s = {.shape = shape, .tokens = tokens};
    size_t ld = (size_t)shape.kv_heads * shape.head_dim;
    s.ldq = (size_t)shape.heads * shape.head_dim + 8;
    s.kv = empty_cache(c, type, c->round % 2 ? 256 : 48, tokens, &shape);
    s.k = row(c, tokens * ld);
    s.v = row(c, tokens * ld);
    s.query = row(c, tokens * s.ldq);
    check_fill_normal(c, s.k, tokens * ld);
    check_fill_normal(c, s.v, tokens * ld);
    check_fill_normal(c, s.query, tokens * s.ldq);
    struct walsh_attention_row *rows = check_alloc_private(c, tokens * sizeof *rows);
    for (uint32_t i = 0; i < tokens; i++) rows[i] = (struct walsh_attention_row){&s.kv, i};
    q->ops->kv_append(q, rows, tokens, s.k, s.v, ld, &shape);
    return s;
}

/* A few rows of `out` against the definition; row i is that of position first + i. */
static void compare_rows(struct check *c, const struct setting *s, const float *out, uint32_t first,
                         uint32_t count, double factor)
{
    uint32_t dim = s->shape.head_dim;
    float *expected = row(c, dim), *magnitude = row(c, dim);
    double *weight = check_alloc_private(c, s->tokens * sizeof *weight);
    for (uint32_t n = 0; n < 6; n++) {
        uint32_t i = n == 0 ? 0 : n == 1 ? count - 1 : (uint32_t)check_below(c, count);
        uint32_t h = (uint32_t)check_below(c, s->shape.heads);
        attention_define(&s->shape, s->query + (first + i) * s->ldq + (size_t)h * dim, s->k, s->v, h,
                         first + i, s->kv.type == WALSH_KV_F16, weight, expected, magnitude);
        check_close_f32(c, "attention", expected, out + i * s->ldq + (size_t)h * dim, magnitude, dim, factor);
    }
}

static void check_prefill(struct check *c, const struct check_queues *queues, const struct setting *s)
{
    uint32_t first = (uint32_t)check_below(c, s->tokens), count = s->tokens - first;
    struct walsh_attention_row *rows = check_alloc_private(c, count * sizeof *rows);
    for (uint32_t i = 0; i < count; i++) rows[i] = (struct walsh_attention_row){&s->kv, first + i};
    float *out[3];
    for (unsigned t = 0; t < 3; t++) {
        const struct walsh_queue *q = &queues->best[t];
        out[t] = row(c, count * s->ldq);
        q->ops->attention(q, out[t], s->ldq, s->query + first * s->ldq, s->ldq, rows, count, &s->shape,
                          WALSH_PREFILL);
        check_exact_f32(c, "prefill with another pool", out[0], out[t], count * s->ldq);
    }
    const bool narrow =
        s->shape.narrow && s->kv.type == WALSH_KV_F16 && walsh_queue_has_bf16(&queues->best[0]);
    compare_rows(c, s, out[0], first, count, narrow ? FACTOR_BF16 : FACTOR);
    /* a part of the rows has the bits that it has among all */
    uint32_t from = (uint32_t)check_below(c, count), part = (uint32_t)check_below(c, count - from) + 1;
    size_t used = (size_t)s->shape.heads * s->shape.head_dim;
    float *some = row(c, part * s->ldq);
    queues->best[1].ops->attention(&queues->best[1], some, s->ldq, s->query + (first + from) * s->ldq, s->ldq,
                                   rows + from, part, &s->shape, WALSH_PREFILL);
    for (uint32_t i = 0; i < part; i++)
        check_exact_f32(c, "prefill of a part", out[0] + (from + i) * s->ldq, some + i * s->ldq, used);
}

/* Rows of several sequences in one call have the bits that they have in calls of their own. The last begins
 * at the position where the one before it ends: positions alone do not tell them apart. */
static void check_prefills(struct check *c, const struct check_queues *queues, const struct setting *s)
{
    enum { SEQUENCES = 4 };
    struct setting all[SEQUENCES] = {*s};
    uint32_t first[SEQUENCES], count[SEQUENCES], total = 0;
    for (unsigned i = 0; i < SEQUENCES; i++) {
        if (i > 0)
            all[i] =
                make_setting(c, &queues->best[1], s->shape, 400 + (uint32_t)check_below(c, 100), s->kv.type);
        count[i] = i == 2 ? 70 : (uint32_t)check_below(c, walsh_min(all[i].tokens, 150)) + 1;
        first[i] = i == 3   ? first[2] + count[2]
                   : i == 2 ? (uint32_t)check_below(c, 150)
                            : (uint32_t)check_below(c, all[i].tokens - count[i] + 1);
        total += count[i];
    }
    const size_t ldq = s->ldq, used = (size_t)s->shape.heads * s->shape.head_dim;
    struct walsh_attention_row *rows = check_alloc_private(c, total * sizeof *rows);
    float *query = row(c, total * ldq), *alone = row(c, total * ldq), *together = row(c, total * ldq);
    for (uint32_t i = 0, at = 0; i < SEQUENCES; at += count[i++]) {
        for (uint32_t j = 0; j < count[i]; j++)
            rows[at + j] = (struct walsh_attention_row){&all[i].kv, first[i] + j};
        memcpy(query + at * ldq, all[i].query + first[i] * ldq, count[i] * ldq * sizeof *query);
        queues->best[0].ops->attention(&queues->best[0], alone + at * ldq, ldq, query + at * ldq, ldq,
                                       rows + at, count[i], &s->shape, WALSH_PREFILL);
    }
    const struct walsh_queue *q = &queues->best[c->round % 3];
    q->ops->attention(q, together, ldq, query, ldq, rows, total, &s->shape, WALSH_PREFILL);
    for (uint32_t i = 0; i < total; i++)
        check_exact_f32(c, "prefill beside others", alone + i * ldq, together + i * ldq, used);
}

/* Rows at scattered positions: in one batch on 1, 2, 3 threads, one by one, two by two; and one by one with
 * so little scratch for partial results that a row takes several waves of chunks. */
static void check_decode(struct check *c, const struct check_queues *queues, const struct setting *s)
{
    enum { BATCH = 5, WAYS = 6 };
    struct walsh_queue narrow = queues->best[2];
    narrow.scratch_bytes = WALSH_SCRATCH_BYTES / 2 + 2816; /* one or two results per thread */
    const struct walsh_queue *queue[WAYS] = {&queues->best[0], &queues->best[1], &queues->best[2],
                                             &queues->best[1], &queues->best[2], &narrow};
    const uint32_t batch[WAYS] = {BATCH, BATCH, BATCH, 1, 2, 1};
    struct walsh_attention_row rows[BATCH];
    size_t used = (size_t)s->shape.heads * s->shape.head_dim;
    float *query = row(c, BATCH * s->ldq), *out[WAYS];
    for (uint32_t b = 0; b < BATCH; b++) {
        uint32_t position = b == 0 ? s->tokens - 1 : (uint32_t)check_below(c, s->tokens);
        rows[b] = (struct walsh_attention_row){&s->kv, position};
        memcpy(query + b * s->ldq, s->query + position * s->ldq, s->ldq * sizeof *query);
    }
    for (unsigned w = 0; w < WAYS; w++) {
        out[w] = row(c, BATCH * s->ldq);
        for (uint32_t b = 0, n = 0; b < BATCH; b += n) {
            n = batch[w] < BATCH - b ? batch[w] : BATCH - b;
            queue[w]->ops->attention(queue[w], out[w] + b * s->ldq, s->ldq, query + b * s->ldq, s->ldq,
                                     rows + b, n, &s->shape, WALSH_DECODE);
        }
        for (uint32_t b = 0; b < BATCH; b++)
            check_exact_f32(c, "decode with another pool or batch", out[0] + b * s->ldq, out[w] + b * s->ldq,
                            used);
    }
    for (uint32_t b = 0; b < BATCH; b++) compare_rows(c, s, out[0] + b * s->ldq, rows[b].position, 1, FACTOR);
}

/* Sinks about as large as a score, and each time one that takes all and one that takes nothing. */
static const float *sinks(struct check *c, uint32_t heads)
{
    float *sink = row(c, heads);
    check_fill_normal(c, sink, heads);
    sink[0] = 200;
    sink[heads - 1] = -200;
    return sink;
}

void check_op_attention(struct check *c, const struct check_queues *queues)
{
    static const struct walsh_attention_shape shapes[] = {
        {.heads = 4, .kv_heads = 4, .head_dim = 64},
        {.heads = 4, .kv_heads = 1, .head_dim = 128, .window = 200, .soft_cap = 0.5f},
        {.heads = 20, .kv_heads = 1, .head_dim = 40},
        {.heads = 7, .kv_heads = 1, .head_dim = 80, .window = 1},
        {.heads = 2, .kv_heads = 2, .head_dim = 320, .window = 600},
    };
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        if (!check_part(c)) continue;
        struct walsh_attention_shape shape = shapes[i];
        shape.scale = 1.0f / sqrtf((float)shape.head_dim);
        if ((i + c->round) % 2) shape.sinks = sinks(c, shape.heads);
        shape.narrow = check_below(c, 2);
        uint32_t tokens = (i + c->round) % 3 == 0 ? 1700 : (uint32_t)check_below(c, 600) + 1;
        struct setting s = make_setting(c, &queues->best[c->round % 3], shape, tokens,
                                        check_below(c, 2) ? WALSH_KV_F16 : WALSH_KV_F32);
        check_decode(c, queues, &s);
        check_prefill(c, queues, &s);
        check_prefills(c, queues, &s);
    }
}
