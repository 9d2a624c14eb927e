/* kv_append and attention over packed caches as ops. Appending: byte for byte the reference's pages and rings.
 * Attention: against the definition in double over what the codes mean, equal bits for any pool and any
 * batch, also beside rows of other widths and of plain caches. */
#include <math.h>
#include <string.h>

#include "attention_data.h"
#include "base/scalar.h"
#include "kernels/turbo.h"

/* The CPU rounds queries and weights to int16, a device cuts them into two f16: kernels/turbo.h. */
#define FACTOR 1024
/* A prompt's own rows are f16, as they come or rotated. */
#define FACTOR_OWN 4096

enum { CACHES = 3, RING_PAGE = 16, RING_PAGES = 8, OWN_TOKENS = 128, PROMPT = 40 };
enum { MOST_APPENDED = 2 * RING_PAGE * RING_PAGES + 40 };

struct cache {
    struct walsh_turbo_codec *key, *value; /* NULL: a plain F16 cache */
    struct walsh_turbo_codecs codecs;
    struct walsh_kv_view kv, recent;
    uint32_t tokens;
    float *k, *v;               /* [tokens][kv_heads][head_dim] as they came */
    float *packed[2], *late[2]; /* the same as the codes and as the ring's f16 have them */
};

struct setting {
    struct walsh_attention_shape shape;
    struct cache cache[CACHES];
    size_t ld, ldq;
};

static uint32_t smaller(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

static float *row(struct check *c, size_t n)
{
    return check_alloc(c, n * sizeof(float), check_misalign(c, sizeof(float)));
}

/* `count` pages; the table names them round and round. New pages hold zeros, a ring may hold anything. */
static void *const *page_table(struct check *c, size_t entries, size_t count, size_t bytes, int fill)
{
    void **table = check_alloc_private(c, entries * sizeof *table);
    for (size_t i = 0; i < entries; i++) {
        table[i] = i < count ? check_alloc(c, bytes, 0) : table[i - count];
        if (i < count) memset(table[i], fill, bytes);
    }
    return table;
}

static void make_pages(struct check *c, struct cache *to, const struct walsh_attention_shape *shape,
                       uint32_t page_tokens, uint32_t recent_tokens)
{
    const size_t pages = (to->tokens + page_tokens - 1) / page_tokens,
                 ring = (to->tokens + RING_PAGE - 1) / RING_PAGE,
                 plain = (size_t)shape->kv_heads * shape->head_dim * 2;
    to->kv = (struct walsh_kv_view){.type = WALSH_KV_F16, .page_tokens = page_tokens};
    size_t key = plain * page_tokens, value = key;
    if (to->key) {
        to->kv.type = WALSH_KV_TURBO;
        to->kv.turbo = &to->codecs;
        key = shape->kv_heads * walsh_turbo_page_head_bytes(&to->codecs, WALSH_TURBO_KEY, page_tokens);
        value = shape->kv_heads * walsh_turbo_page_head_bytes(&to->codecs, WALSH_TURBO_VALUE, page_tokens);
    }
    to->kv.k_pages = page_table(c, pages, pages, key, 0);
    to->kv.v_pages = page_table(c, pages, pages, value, 0);
    if (recent_tokens == 0 || !to->key) return;
    to->recent = (struct walsh_kv_view){.type = WALSH_KV_F16, .page_tokens = RING_PAGE};
    to->recent.k_pages = page_table(c, ring, RING_PAGES, plain * RING_PAGE, 0xff); /* NaN */
    to->recent.v_pages = page_table(c, ring, RING_PAGES, plain * RING_PAGE, 0xff);
    to->kv.recent = &to->recent;
    to->kv.recent_tokens = recent_tokens;
    to->kv.recent_begin = (uint32_t)check_below(c, 4) ? 0 : (uint32_t)check_below(c, to->tokens + 1);
}

static bool open_codecs(struct check *c, struct cache *to, uint32_t dim, unsigned key_bits,
                        unsigned value_bits)
{
    struct walsh_error err;
    struct walsh_turbo_options options = {.dim = dim,
                                          .bits = key_bits,
                                          .seed = c->round,
                                          .stream = "key",
                                          .no_rotation = check_below(c, 8) == 0,
                                          .no_correction = check_below(c, 4) == 0};
    if (walsh_turbo_codec_open(&options, &to->key, &err) != WALSH_OK) {
        check_fail(c, "%s", err.message);
        return false;
    }
    options.bits = value_bits;
    options.stream = "value";
    if (walsh_turbo_codec_open(&options, &to->value, &err) != WALSH_OK) {
        check_fail(c, "%s", err.message);
        walsh_turbo_codec_close(&to->key);
        return false;
    }
    to->codecs.key = to->key;
    to->codecs.value = to->value;
    return true;
}

/* Of keys (side 0) or values: what attention reads in their place. */
static void fill_meant(struct check *c, struct cache *to, const struct walsh_attention_shape *shape, int side)
{
    const struct walsh_turbo_codec *codec = side == 0 ? to->key : to->value;
    const float *x = side == 0 ? to->k : to->v;
    const uint32_t dim = shape->head_dim;
    const size_t vectors = (size_t)to->tokens * shape->kv_heads;
    float *packed = row(c, vectors * dim), *late = row(c, vectors * dim), y[WALSH_TURBO_MAX_DIM];
    uint8_t codes[WALSH_TURBO_MAX_DIM];
    uint16_t norm;
    to->packed[side] = packed;
    to->late[side] = late;
    for (size_t i = 0; i < vectors; i++) {
        walsh_turbo_encode(codec, x + i * dim, codes, &norm);
        walsh_turbo_decode(codec, codes, norm, packed + i * dim);
        walsh_rotate_forward(&codec->rotation, x + i * dim, y);
        for (uint32_t d = 0; d < dim; d++) y[d] = walsh_f32_from_f16(walsh_f16_from_f32(y[d]));
        walsh_rotate_inverse(&codec->rotation, y, late + i * dim);
    }
}

static struct walsh_attention_shape kinds_of(const struct walsh_attention_shape *shape,
                                             const struct walsh_attention_row *rows, size_t count)
{
    struct walsh_attention_shape s = *shape;
    bool plain = false;
    s.kinds = (struct walsh_kv_kinds){.four = true};
    for (size_t i = 0; i < count; i++) {
        const struct walsh_kv_view *kv = rows[i].kv;
        if (kv->type != WALSH_KV_TURBO) {
            plain = true;
            continue;
        }
        s.kinds.packed = true;
        s.kinds.four = s.kinds.four && kv->turbo->key->book.bits == 4 && kv->turbo->value->book.bits == 4;
        s.kinds.recent = s.kinds.recent || kv->recent;
    }
    s.kinds.mixed = s.kinds.packed && plain;
    s.kinds.four = s.kinds.four && s.kinds.packed;
    return s;
}

/* All but the last token in pieces, then the last of all caches in one call. */
static void append_all(struct check *c, const struct walsh_queue *q, struct setting *s)
{
    struct walsh_attention_row last[CACHES];
    float *k = row(c, CACHES * s->ld), *v = row(c, CACHES * s->ld);
    for (unsigned i = 0; i < CACHES; i++) {
        struct cache *to = &s->cache[i];
        const uint32_t end = to->tokens - 1;
        struct walsh_attention_row rows[MOST_APPENDED];
        for (uint32_t at = 0, n; at < end;
             at += n) { /* of a piece longer than the ring, the last tokens stay there */
            n = (uint32_t)check_below(c, MOST_APPENDED) + 1;
            n = smaller(n, end - at);
            for (uint32_t j = 0; j < n; j++) rows[j] = (struct walsh_attention_row){&to->kv, at + j};
            const struct walsh_attention_shape shape = kinds_of(&s->shape, rows, n);
            q->ops->kv_append(q, rows, n, to->k + at * s->ld, to->v + at * s->ld, s->ld, &shape);
        }
        last[i] = (struct walsh_attention_row){&to->kv, end};
        memcpy(k + i * s->ld, to->k + end * s->ld, s->ld * sizeof *k);
        memcpy(v + i * s->ld, to->v + end * s->ld, s->ld * sizeof *v);
    }
    const struct walsh_attention_shape shape = kinds_of(&s->shape, last, CACHES);
    q->ops->kv_append(q, last, CACHES, k, v, s->ld, &shape);
}

static void compare_pages(struct check *c, const char *what, const struct walsh_kv_view *expected,
                          const struct walsh_kv_view *got, size_t pages, size_t key_bytes, size_t value_bytes)
{
    for (size_t p = 0; p < pages; p++) {
        check_exact_bytes(c, what, expected->k_pages[p], got->k_pages[p], key_bytes);
        check_exact_bytes(c, what, expected->v_pages[p], got->v_pages[p], value_bytes);
    }
}

/* The caches of `s` hold what the best table stored; another set holds what the reference did. */
static void check_append(struct check *c, const struct check_queues *queues, struct setting *s)
{
    struct setting reference = *s;
    for (unsigned i = 0; i < CACHES; i++) {
        struct cache *to = &reference.cache[i];
        make_pages(c, to, &s->shape, to->kv.page_tokens, to->kv.recent_tokens);
    }
    append_all(c, &queues->reference, &reference);
    append_all(c, &queues->best[c->round % 3], s);
    for (unsigned i = 0; i < CACHES; i++) {
        const struct cache *e = &reference.cache[i], *g = &s->cache[i];
        const uint32_t pages = (g->tokens + g->kv.page_tokens - 1) / g->kv.page_tokens;
        const size_t plain = s->ld * 2;
        if (!g->key) {
            compare_pages(c, "plain pages", &e->kv, &g->kv, pages, plain * g->kv.page_tokens,
                          plain * g->kv.page_tokens);
            continue;
        }
        compare_pages(c, "packed pages", &e->kv, &g->kv, pages,
                      s->shape.kv_heads *
                          walsh_turbo_page_head_bytes(&g->codecs, WALSH_TURBO_KEY, g->kv.page_tokens),
                      s->shape.kv_heads *
                          walsh_turbo_page_head_bytes(&g->codecs, WALSH_TURBO_VALUE, g->kv.page_tokens));
        if (g->kv.recent)
            compare_pages(c, "a ring", &e->recent, &g->recent,
                          walsh_min((g->tokens + RING_PAGE - 1) / RING_PAGE, RING_PAGES), plain * RING_PAGE,
                          plain * RING_PAGE);
        if (e->codecs.saturated != g->codecs.saturated)
            check_fail(c, "%llu norms saturated, expected %llu", (unsigned long long)g->codecs.saturated,
                       (unsigned long long)e->codecs.saturated);
    }
}

/* Sums are taken of rotated values: turned back, an error is spread over the head, whatever an element's size. */
static void spread(float *magnitude, uint32_t dim)
{
    double squares = 0;
    for (uint32_t d = 0; d < dim; d++) squares += (double)magnitude[d] * (double)magnitude[d];
    for (uint32_t d = 0; d < dim; d++) magnitude[d] = (float)sqrt(squares / dim);
}

/* What the row at `position` reads: tokens from `split` on late, those before packed. */
static void compare(struct check *c, const struct setting *s, const struct cache *from, const float *query,
                    const float *out, uint32_t position, uint32_t split, const float *const late[2],
                    double factor)
{
    const uint32_t dim = s->shape.head_dim;
    const size_t before = split * s->ld, all = ((size_t)position + 1) * s->ld;
    float *expected = row(c, dim), *magnitude = row(c, dim), *k = row(c, all), *v = row(c, all);
    double *weight = check_alloc_private(c, ((size_t)position + 1) * sizeof *weight);
    memcpy(k, from->packed[0], before * sizeof *k);
    memcpy(v, from->packed[1], before * sizeof *v);
    memcpy(k + before, late[0] + before, (all - before) * sizeof *k);
    memcpy(v + before, late[1] + before, (all - before) * sizeof *v);
    for (uint32_t h = 0; h < s->shape.heads; h++) {
        attention_define(&s->shape, query + (size_t)h * dim, k, v, h, position, from->key == NULL, weight,
                         expected, magnitude);
        if (from->key) spread(magnitude, dim);
        check_close_f32(c, "attention", expected, out + (size_t)h * dim, magnitude, dim, factor);
    }
}

/* Rows of all caches: together on every pool, one by one, two by two. */
static void check_decode(struct check *c, const struct check_queues *queues, const struct setting *s)
{
    enum { BATCH = CACHES + 2, WAYS = 5 };
    const struct walsh_queue *queue[WAYS] = {&queues->best[0], &queues->best[1], &queues->best[2],
                                             &queues->best[1], &queues->best[2]};
    const uint32_t batch[WAYS] = {BATCH, BATCH, BATCH, 1, 2};
    const bool device = queues->best[0].device != NULL; /* whose pools are one */
    struct walsh_attention_row rows[BATCH];
    const struct cache *from[BATCH];
    const size_t used = (size_t)s->shape.heads * s->shape.head_dim;
    float *query = row(c, BATCH * s->ldq), *out[WAYS];
    check_fill_normal(c, query, BATCH * s->ldq);
    for (uint32_t b = 0; b < BATCH; b++) {
        from[b] = &s->cache[b % CACHES];
        const uint32_t end = from[b]->tokens, least = from[b]->kv.recent ? end - 1 : 0;
        rows[b] = (struct walsh_attention_row){&from[b]->kv, least + (uint32_t)check_below(c, end - least)};
        if (b < CACHES) rows[b].position = end - 1;
    }
    for (unsigned w = 0; w < WAYS; w++) {
        if (device && w == 2) continue;
        out[w] = row(c, BATCH * s->ldq);
        for (uint32_t b = 0, n; b < BATCH; b += n) {
            n = smaller(batch[w], BATCH - b);
            const struct walsh_attention_shape shape = kinds_of(&s->shape, rows + b, n);
            queue[w]->ops->attention(queue[w], out[w] + b * s->ldq, s->ldq, query + b * s->ldq, s->ldq,
                                     rows + b, n, &shape, WALSH_DECODE);
        }
        for (uint32_t b = 0; b < BATCH; b++)
            check_exact_f32(c, "decode with another pool or batch", out[0] + b * s->ldq, out[w] + b * s->ldq,
                            used);
    }
    for (uint32_t b = 0; b < BATCH; b++) {
        const uint32_t position = rows[b].position;
        const struct walsh_kv_view *kv = rows[b].kv;
        uint32_t split = position + 1;
        if (kv->recent) {
            const uint32_t newest = split > kv->recent_tokens ? split - kv->recent_tokens : 0;
            split = smaller(split, newest > kv->recent_begin ? newest : kv->recent_begin);
        }
        const float *const late[2] = {from[b]->late[0], from[b]->late[1]};
        compare(c, s, from[b], query + b * s->ldq, out[0] + b * s->ldq, position, split, late, FACTOR);
    }
}

/* A prompt's rows with their own keys and values in f16 behind the packed ones, and (no ring) without. */
static void check_prompt(struct check *c, const struct check_queues *queues, const struct setting *s,
                         const struct cache *from, bool keeps_own)
{
    const struct walsh_queue *q = &queues->best[c->round % 3];
    const size_t bytes = s->ld * OWN_TOKENS * 2;
    void *const *pages = page_table(c, 2, 2, bytes, 0xff);
    const struct walsh_kv_view own = {
        .type = WALSH_KV_F16, .page_tokens = OWN_TOKENS, .k_pages = pages, .v_pages = pages + 1};
    const uint32_t first = (uint32_t)check_below(c, from->tokens),
                   room = smaller(OWN_TOKENS - first % OWN_TOKENS, from->tokens - first),
                   count = smaller(room, (uint32_t)check_below(c, PROMPT) + 1);
    struct walsh_attention_row rows[PROMPT];
    for (uint32_t i = 0; i < count; i++) rows[i] = (struct walsh_attention_row){&from->kv, first + i};
    struct walsh_attention_shape shape = kinds_of(&s->shape, rows, count);
    float *query = row(c, count * s->ldq), *out = row(c, count * s->ldq);
    check_fill_normal(c, query, count * s->ldq);
    if (keeps_own) {
        shape.own = &own;
        q->ops->kv_append(q, rows, count, from->k + first * s->ld, from->v + first * s->ld, s->ld, &shape);
    }
    q->ops->attention(q, out, s->ldq, query, s->ldq, rows, count, &shape, WALSH_PREFILL);
    const float *const late[2] = {keeps_own ? from->k : from->packed[0],
                                  keeps_own ? from->v : from->packed[1]};
    for (unsigned n = 0; n < 3; n++) {
        const uint32_t i = n == 0 ? 0 : n == 1 ? count - 1 : (uint32_t)check_below(c, count);
        compare(c, s, from, query + i * s->ldq, out + i * s->ldq, first + i, first, late,
                keeps_own ? FACTOR_OWN : FACTOR);
    }
}

static const float *sinks(struct check *c, uint32_t heads)
{
    float *sink = row(c, heads);
    check_fill_normal(c, sink, heads);
    sink[0] = 20;
    sink[heads - 1] = -20;
    return sink;
}

/* One cache of 4 bits, one of any widths with a ring or without, a plain one; of different lengths. */
static bool make_setting(struct check *c, struct setting *s, unsigned key_bits, unsigned value_bits)
{
    s->ld = (size_t)s->shape.kv_heads * s->shape.head_dim;
    s->ldq = (size_t)s->shape.heads * s->shape.head_dim + 8;
    for (unsigned i = 0; i < CACHES; i++) {
        struct cache *to = &s->cache[i];
        to->tokens = i == c->round % CACHES ? 330 : (uint32_t)check_below(c, 200) + 1;
        if (i < 2 && !open_codecs(c, to, s->shape.head_dim, i ? key_bits : 4, i ? value_bits : 4))
            return false;
        make_pages(c, to, &s->shape, check_below(c, 2) ? 64 : 128,
                   check_below(c, 2) ? 1 + (uint32_t)check_below(c, RING_PAGE * (RING_PAGES - 1)) : 0);
        to->k = row(c, to->tokens * s->ld);
        to->v = row(c, to->tokens * s->ld);
        check_fill_normal(c, to->k, to->tokens * s->ld);
        check_fill_normal(c, to->v, to->tokens * s->ld);
        for (int side = 0; side < 2; side++)
            if (to->key)
                fill_meant(c, to, &s->shape, side);
            else
                to->packed[side] = to->late[side] = side == 0 ? to->k : to->v;
    }
    return true;
}

static void close_setting(struct setting *s)
{
    for (unsigned i = 0; i < CACHES; i++) {
        walsh_turbo_codec_close(&s->cache[i].key);
        walsh_turbo_codec_close(&s->cache[i].value);
    }
}

/* Special numbers, a zero vector, norms beyond f16: their codes and norms; attention to them has no tolerance. */
static void check_append_special(struct check *c, const struct check_queues *queues, struct setting *s)
{
    for (unsigned i = 0; i < CACHES; i++) {
        struct cache *to = &s->cache[i];
        to->tokens = smaller(to->tokens, 70);
        make_pages(c, to, &s->shape, to->kv.page_tokens, 0);
        if (to->key == NULL) continue; /* NaN of plain caches: op_attention's matter */
        check_fill_special(c, to->k, to->tokens * s->ld);
        check_fill_special(c, to->v, to->tokens * s->ld);
        memset(to->k, 0, s->ld * sizeof *to->k);
        for (size_t j = 0; j < s->ld; j++) to->v[(to->tokens - 1) * s->ld + j] *= 1e6f;
    }
    check_append(c, queues, s);
}

void check_op_turbo(struct check *c, const struct check_queues *queues)
{
    static const struct walsh_attention_shape shapes[] = {
        {.heads = 2, .kv_heads = 2, .head_dim = 64},
        {.heads = 8, .kv_heads = 2, .head_dim = 128, .window = 150},
        {.heads = 8, .kv_heads = 1, .head_dim = 64, .soft_cap = 2},
        {.heads = 4, .kv_heads = 1, .head_dim = 128, .soft_cap = 0.5f},
        {.heads = 4, .kv_heads = 1, .head_dim = 256, .window = 40},
        {.heads = 10, .kv_heads = 1, .head_dim = 128},
        {.heads = 2, .kv_heads = 1, .head_dim = 80},
    };
    enum { SHAPES = sizeof shapes / sizeof shapes[0] };
    for (unsigned i = 0; i < SHAPES; i++) {
        if (!check_part(c)) continue;
        /* Keys and values of 2 to 8 bits: every width of either with most shapes in four rounds. */
        const unsigned n = c->round * 2 + i, key_bits = 2 + n % 7,
                       value_bits = 2 + (n * 3 + c->round + 1) % 7;
        struct setting s = {.shape = shapes[i]};
        s.shape.scale = 1.0f / sqrtf((float)s.shape.head_dim);
        if ((i + c->round) % 2) s.shape.sinks = sinks(c, s.shape.heads);
        if (make_setting(c, &s, key_bits, value_bits)) {
            check_append(c, queues, &s);
            check_decode(c, queues, &s);
            check_prompt(c, queues, &s, &s.cache[i % 2], true);
            if (!s.cache[1].kv.recent) check_prompt(c, queues, &s, &s.cache[1], false);
            check_append_special(c, queues, &s);
        }
        close_setting(&s);
    }
}
