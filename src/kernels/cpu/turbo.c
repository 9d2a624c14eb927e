#include "kernels/cpu/turbo.h"

#include <math.h>
#include <string.h>

#include "base/scalar.h"
#include "kernels/cpu/split.h"

_Static_assert(WALSH_TURBO_MAX_DIM <= WALSH_MAX_HEAD_DIM, "a head's scratch");
_Static_assert(WALSH_ATTEND_CHUNK % WALSH_TURBO_SPAN == 0, "a chunk is made of spans");

/* --- rotations on the queue's kernels: the bits of walsh_rotate_forward and walsh_rotate_inverse --- */

static void rotate_forward(const struct walsh_kernels *k, const struct walsh_rotation *r, const float *x,
                           float *y)
{
    const uint32_t n = r->size, block = r->blocks.block[0];
    if (r->kind == WALSH_ROTATION_NONE) {
        memcpy(y, x, n * sizeof *y);
        return;
    }
    k->rotate_forward_f32(y, x, r->signs, block, block);
    if (r->kind == WALSH_ROTATION_BLOCKS) return;
    for (uint32_t i = block; i < n; i++) y[i] = r->signs[i] * x[i];
    for (uint32_t i = 0; i < n; i++) y[i] *= r->signs[n + i];
    k->hadamard_f32(y + (n - block), block);
}

static void rotate_inverse(const struct walsh_kernels *k, const struct walsh_rotation *r, float *x)
{
    const uint32_t n = r->size, block = r->blocks.block[0];
    if (r->kind == WALSH_ROTATION_NONE) return;
    if (r->kind == WALSH_ROTATION_OVERLAP) {
        k->hadamard_f32(x + (n - block), block);
        for (uint32_t i = 0; i < n; i++) x[i] *= r->signs[n + i];
        for (uint32_t i = block; i < n; i++) x[i] *= r->signs[i];
    }
    k->rotate_inverse_f32(x, x, r->signs, block, block);
}

/* --- queries --- */

#define TINY 0x1p-100f /* a largest element below it counts as 0 */

/* The largest sum of squares among the segments of y, in double with eight sums. */
static double largest_square(const float *y, uint32_t dim, uint32_t segment)
{
    double most = 0;
    for (uint32_t begin = 0; begin < dim; begin += segment) {
        double sum[8] = {0};
        for (uint32_t i = begin; i < dim && i < begin + segment; i += 8)
            for (uint32_t l = 0; l < 8; l++) sum[l] += (double)y[i + l] * (double)y[i + l];
        for (uint32_t l = 1; l < 8; l++) sum[0] += sum[l];
        if (!(sum[0] <= most)) most = sum[0]; /* NaN stays */
        if (isnan(most)) return most;
    }
    return most;
}

/* y as int16, so large as 16 bits and the sums of a segment (kernels/turbo.h) admit: by Cauchy and Schwarz a
 * sum is below the length of the segment's query times that of its levels, sqrt(elements) * limit. Returns
 * the factor of a score. */
static float round_query(const struct walsh_turbo_codebook *book, const float *y, int16_t *query)
{
    const uint32_t dim = book->dim, segment = walsh_turbo_segment(book);
    float most = 0;
    for (uint32_t i = 0; i < dim; i++) most = fabsf(y[i]) > most ? fabsf(y[i]) : most;
    double square = largest_square(y, dim, segment), elements = dim < segment ? dim : segment;
    memset(query, 0, dim * sizeof *query);
    if (!isfinite(square)) return NAN;
    if (most < TINY) return 0;
    /* half a unit of rounding per element lengthens the query by at most sqrt(elements) / 2 */
    double admitted = 0x1p31 / (sqrt(elements) * book->limit) - sqrt(elements);
    float scale = (float)fmin(32767 / (double)most, admitted / sqrt(square));
    for (uint32_t i = 0; i < dim; i++) query[i] = (int16_t)lrintf(y[i] * scale);
    return book->scale / scale;
}

void walsh_turbo_rotate_queries(const struct walsh_queue *q, const struct walsh_turbo_codecs *codecs,
                                const float *query, uint32_t group, struct walsh_turbo_queries *out)
{
    const struct walsh_turbo_codec *key = codecs->key;
    const uint32_t dim = key->book.dim;
    for (uint32_t g = 0; g < group; g++) {
        float *y = out->rotated + (size_t)g * dim;
        rotate_forward(q->kernels, &key->rotation, query + (size_t)g * dim, y);
        out->factor[g] = round_query(&key->book, y, out->query + (size_t)g * dim);
        if (!codecs->prod) continue;
        float projected[WALSH_TURBO_MAX_DIM];
        const struct walsh_turbo_codebook *signs = codecs->signs;
        walsh_turbo_prod_project(codecs->prod, y, projected);
        /* signs are +-1, not +-limit * scale */
        out->sign_factor[g] = round_query(signs, projected, out->projected + (size_t)g * dim) *
                              (float)(WALSH_TURBO_PROD_ROOT / dim / (signs->limit * (double)signs->scale));
    }
}

void walsh_turbo_unrotate(const struct walsh_queue *q, const struct walsh_turbo_codec *value, float *x,
                          uint32_t group)
{
    for (uint32_t g = 0; g < group; g++)
        rotate_inverse(q->kernels, &value->rotation, x + (size_t)g * value->book.dim);
}

/* --- a chunk --- */

/* What stands in a head's part of a page, in this order for keys; SIGNS: of Prod keys. */
enum part { KEYS, VALUES, SIGNS };

/* Tokens of one page from a multiple of the span on. */
struct run {
    const uint8_t *codes;
    const uint16_t *norms;
    uint32_t tokens;
};

static const struct walsh_turbo_codebook *book_of(const struct walsh_kv_view *kv, enum part part)
{
    return part == KEYS ? &kv->turbo->key->book : part == VALUES ? &kv->turbo->value->book : kv->turbo->signs;
}

static struct run run_at(const struct walsh_kv_view *kv, enum part part, uint32_t kv_head, uint32_t token,
                         uint32_t end)
{
    const bool key = part != VALUES;
    const struct walsh_turbo_codebook *book = book_of(kv, part);
    const uint32_t dim = book->dim, bits = book->bits, slot = token % kv->page_tokens;
    const uint8_t *page = (key ? kv->k_pages : kv->v_pages)[token / kv->page_tokens];
    const uint8_t *head =
        page + kv_head * walsh_turbo_page_head_bytes(kv->turbo, key ? WALSH_TURBO_KEY : WALSH_TURBO_VALUE,
                                                     kv->page_tokens);
    if (part == SIGNS) head += walsh_turbo_head_bytes(dim, kv->turbo->key->book.bits, kv->page_tokens);
    const uint8_t *norms = head + walsh_turbo_code_bytes(dim, bits, kv->page_tokens);
    return (struct run){
        .codes = head + (size_t)slot * bits * (key ? dim / 8 : 2),
        .norms = (const uint16_t *)(const void *)norms + slot,
        .tokens = (uint32_t)walsh_min(end - token, kv->page_tokens - slot),
    };
}

/* The run behind `token` of a side, its norms fetched; its codes are fetched by the kernels. */
static const uint8_t *fetch_run(const struct walsh_attend_chunk *c, enum part part, uint32_t token,
                                uint32_t end)
{
    struct run run = run_at(c->kv, part, c->kv_head, token, end);
    for (uint32_t i = 0; i < run.tokens; i += WALSH_ALIGNMENT / sizeof *run.norms)
        __builtin_prefetch(run.norms + i);
    return run.codes;
}

/* Scores of one part of the keys of [first, end); the values from `first` on come next. */
static void score_part(const struct walsh_queue *q, const struct walsh_attend_chunk *c, enum part part,
                       uint32_t first, uint32_t end, const struct walsh_turbo_queries *queries, float *out)
{
    for (uint32_t token = first, next; token < end; token = next) {
        struct run run = run_at(c->kv, part, c->kv_head, token, end);
        next = token + run.tokens;
        const struct walsh_turbo_scores scores = {
            .book = book_of(c->kv, part),
            .codes = run.codes,
            .next = next < end ? fetch_run(c, part, next, end) : fetch_run(c, VALUES, first, end),
            .norms = run.norms,
            .tokens = run.tokens,
            .group = c->group,
            .ld = WALSH_ATTEND_CHUNK,
            .query = part == SIGNS ? queries->projected : queries->query,
            .factor = part == SIGNS ? queries->sign_factor : queries->factor,
            .scores = out + (token - first),
        };
        q->kernels->turbo_scores(&scores);
    }
}

static void score_tokens(const struct walsh_queue *q, const struct walsh_attend_chunk *c, uint32_t first,
                         uint32_t end, const struct walsh_turbo_queries *queries,
                         struct walsh_turbo_scratch *scratch)
{
    score_part(q, c, KEYS, first, end, queries, c->scores);
    if (!c->kv->turbo->prod) return;
    score_part(q, c, SIGNS, first, end, queries, scratch->sign_scores);
    for (uint32_t g = 0; g < c->group; g++)
        for (uint32_t t = 0; t < end - first; t++)
            c->scores[(size_t)g * WALSH_ATTEND_CHUNK + t] +=
                scratch->sign_scores[(size_t)g * WALSH_ATTEND_CHUNK + t];
}

/* Values of [first, end), then the keys of the next chunk. */
static void sum_values(const struct walsh_queue *q, const struct walsh_attend_chunk *c, uint32_t first,
                       uint32_t end, uint32_t last, struct walsh_turbo_scratch *scratch)
{
    const struct walsh_turbo_codebook *book = &c->kv->turbo->value->book;
    enum { SPANS = WALSH_ATTEND_CHUNK / WALSH_TURBO_SPAN };
    memset(c->out, 0, (size_t)c->group * book->dim * sizeof *c->out);
    for (uint32_t token = first, next; token < end; token = next) {
        struct run run = run_at(c->kv, VALUES, c->kv_head, token, end);
        next = token + run.tokens;
        for (uint32_t g = 0; g < c->group; g++) {
            const struct walsh_turbo_weights weights = {
                .weight = c->scores + (size_t)g * WALSH_ATTEND_CHUNK + (token - first),
                .norms = run.norms,
                .tokens = run.tokens,
                .unit = book->scale / WALSH_TURBO_LARGEST_WEIGHT,
                .scaled = scratch->weights + (size_t)g * WALSH_ATTEND_CHUNK,
                .factor = scratch->factor + (size_t)g * SPANS,
            };
            q->kernels->turbo_weights(&weights);
        }
        const struct walsh_turbo_values values = {
            .book = book,
            .codes = run.codes,
            .next = next < end    ? fetch_run(c, VALUES, next, end)
                    : next < last ? fetch_run(c, KEYS, next, last)
                                  : NULL,
            .stride = walsh_turbo_value_stride(book->bits, c->kv->page_tokens),
            .tokens = run.tokens,
            .group = c->group,
            .ld = WALSH_ATTEND_CHUNK,
            .ld_factor = SPANS,
            .weights = scratch->weights,
            .factor = scratch->factor,
            .out = c->out,
        };
        q->kernels->turbo_values(&values);
    }
}

void walsh_turbo_attend_chunk(const struct walsh_queue *q, const struct walsh_attend_chunk *c, uint32_t last,
                              const struct walsh_turbo_queries *queries, struct walsh_turbo_scratch *scratch)
{
    /* whole spans; what is outside of [begin, end) gets the weight 0 */
    const uint32_t first = c->begin / WALSH_TURBO_SPAN * WALSH_TURBO_SPAN;
    const uint32_t end = (uint32_t)walsh_round_up(c->end, WALSH_TURBO_SPAN);
    score_tokens(q, c, first, end, queries, scratch);
    for (uint32_t g = 0; g < c->group; g++) {
        float *score = c->scores + (size_t)g * WALSH_ATTEND_CHUNK;
        c->maximum[g] = -INFINITY;
        c->sum[g] = 0;
        float scale = c->scale;
        if (c->soft_cap != 0) {
            q->kernels->soft_cap_f32(score + (c->begin - first), c->end - c->begin, scale, c->soft_cap);
            scale = 1;
        }
        q->kernels->softmax_step_f32(score + (c->begin - first), c->end - c->begin, scale, &c->maximum[g],
                                     &c->sum[g]);
        memset(score, 0, (c->begin - first) * sizeof *score);
        memset(score + (c->end - first), 0, (end - c->end) * sizeof *score);
    }
    sum_values(q, c, first, end, last, scratch);
}

/* --- tokens as they were --- */

/* The signs' part of a Prod key in rotated space. */
static void add_signs(const struct walsh_kv_view *kv, uint32_t kv_head, uint32_t token, float *y)
{
    const struct walsh_turbo_codebook *book = &kv->turbo->key->book;
    uint8_t signs[WALSH_TURBO_MAX_DIM];
    uint16_t length;
    const uint8_t *head = kv->k_pages[token / kv->page_tokens];
    head += kv_head * walsh_turbo_page_head_bytes(kv->turbo, WALSH_TURBO_KEY, kv->page_tokens) +
            walsh_turbo_head_bytes(book->dim, book->bits, kv->page_tokens);
    walsh_turbo_load(WALSH_TURBO_KEY, book->dim, 1, head, kv->page_tokens, token % kv->page_tokens, signs,
                     &length);
    walsh_turbo_prod_add(kv->turbo->prod, signs, walsh_f32_from_f16(length), y);
}

/* Span by span: what a page holds is decoded whole, keys with tokens as columns. */
void walsh_turbo_load_tokens(const struct walsh_queue *q, const struct walsh_kv_view *kv,
                             enum walsh_turbo_side side, uint32_t kv_head, uint32_t from, uint32_t n,
                             float *span, float *out)
{
    const bool key = side == WALSH_TURBO_KEY;
    const struct walsh_turbo_codec *codec = key ? kv->turbo->key : kv->turbo->value;
    const uint32_t dim = codec->book.dim, end = from + n;
    for (uint32_t token = from; token < end;) {
        const uint32_t first = token / WALSH_TURBO_SPAN * WALSH_TURBO_SPAN,
                       last = (uint32_t)walsh_min(end, first + WALSH_TURBO_SPAN);
        const struct run run = run_at(kv, key ? KEYS : VALUES, kv_head, first, first + WALSH_TURBO_SPAN);
        const struct walsh_turbo_decoded decoded = {
            .book = &codec->book,
            .side = side,
            .codes = run.codes,
            .stride = walsh_turbo_value_stride(codec->book.bits, kv->page_tokens),
            .norms = run.norms,
            .tokens = WALSH_TURBO_SPAN,
            .ld = key ? WALSH_TURBO_SPAN : dim,
            .out = span,
        };
        q->kernels->turbo_decode_f32(&decoded);
        if (key)
            q->kernels->transpose_f32(out, dim, span + (token - first), WALSH_TURBO_SPAN, dim, last - token);
        else
            memcpy(out, span + (size_t)(token - first) * dim, (size_t)(last - token) * dim * sizeof *out);
        for (; token < last; token++, out += dim) {
            if (key && kv->turbo->prod) add_signs(kv, kv_head, token, out);
            rotate_inverse(q->kernels, &codec->rotation, out);
        }
    }
}

/* --- append --- */

enum { ROWS = 16, WORK = 16 }; /* rows encoded at once; the cost of an element against a light op's */

struct append {
    const struct walsh_queue *q;
    const struct walsh_attention_row *rows;
    size_t count;
    const float *x[2]; /* keys, values */
    size_t ld;
    const struct walsh_attention_shape *shape;
};

/* One vector, rotated, among the recent tokens. */
static void append_recent(const struct append *t, enum walsh_turbo_side side, uint32_t head, size_t row,
                          const struct walsh_rotation *rotation, const float *x)
{
    const struct walsh_kv_view *recent = t->rows[row].kv->recent;
    const uint32_t position = t->rows[row].position;
    uint16_t *page =
        (side == WALSH_TURBO_KEY ? recent->k_pages : recent->v_pages)[position / recent->page_tokens];
    float y[WALSH_TURBO_MAX_DIM];
    rotate_forward(t->q->kernels, rotation, x, y);
    t->q->kernels->f16_from_f32(page + walsh_kv_offset(recent, head, position, rotation->size), y,
                                rotation->size);
}

/* A head's part of the page with token `position`. */
static uint8_t *head_at(const struct walsh_kv_view *kv, enum walsh_turbo_side side, uint32_t head,
                        uint32_t position)
{
    uint8_t *page = (side == WALSH_TURBO_KEY ? kv->k_pages : kv->v_pages)[position / kv->page_tokens];
    return page + head * walsh_turbo_page_head_bytes(kv->turbo, side, kv->page_tokens);
}

/* The codes and norm of a Prod key; its signs are stored at once. True where a norm saturated. */
static bool append_prod(const struct append *t, uint32_t head, size_t row, const float *x, uint8_t *codes,
                        uint16_t *norm)
{
    const struct walsh_kv_view *kv = t->rows[row].kv;
    const struct walsh_turbo_codebook *book = &kv->turbo->key->book;
    const uint32_t position = t->rows[row].position;
    uint8_t signs[WALSH_TURBO_MAX_DIM];
    uint16_t residual, length;
    const bool saturated = walsh_turbo_prod_encode(kv->turbo->prod, x, codes, signs, norm, &residual);
    const float product = walsh_f32_from_f16(*norm) * walsh_f32_from_f16(residual);
    t->q->kernels->f16_from_f32(&length, &product, 1);
    walsh_turbo_store(WALSH_TURBO_KEY, book->dim, 1,
                      head_at(kv, WALSH_TURBO_KEY, head, position) +
                          walsh_turbo_head_bytes(book->dim, book->bits, kv->page_tokens),
                      kv->page_tokens, position % kv->page_tokens, signs, length);
    return saturated;
}

/* Rows of one side with equal codecs, one head. */
static void append_rows(const struct append *t, enum walsh_turbo_side side, uint32_t head, size_t row,
                        size_t count)
{
    struct walsh_turbo_codecs *codecs = t->rows[row].kv->turbo;
    const struct walsh_turbo_codec *codec = side == WALSH_TURBO_KEY ? codecs->key : codecs->value;
    const uint32_t dim = codec->book.dim, bits = codec->book.bits;
    uint8_t codes[ROWS * WALSH_TURBO_MAX_DIM];
    uint16_t norms[ROWS];
    const float *x = t->x[side] + row * t->ld + (size_t)head * dim;
    const bool prod = side == WALSH_TURBO_KEY && codecs->prod;
    size_t saturated = prod ? 0 : t->q->kernels->turbo_encode_f32(codec, x, t->ld, count, codes, norms);
    for (size_t i = 0; prod && i < count; i++)
        saturated += append_prod(t, head, row + i, x + i * t->ld, codes + i * dim, &norms[i]);
    if (saturated != 0) atomic_fetch_add(&codecs->saturated, saturated);
    for (size_t i = 0; i < count; i++) {
        const struct walsh_kv_view *kv = t->rows[row + i].kv;
        uint32_t position = t->rows[row + i].position;
        walsh_turbo_store(side, dim, bits, head_at(kv, side, head, position), kv->page_tokens,
                          position % kv->page_tokens, codes + i * dim, norms[i]);
        if (kv->recent) append_recent(t, side, head, row + i, &codec->rotation, x + i * t->ld);
    }
}

/* A unit is one head of keys or of values, of all rows: tokens share words of a page. */
static void append_units(void *argument, size_t begin, size_t end, unsigned worker)
{
    (void)worker;
    const struct append *t = argument;
    for (size_t unit = begin; unit < end; unit++)
        for (size_t row = 0, n; row < t->count; row += n) {
            const struct walsh_turbo_codecs *codecs = t->rows[row].kv->turbo;
            n = 1;
            if (t->rows[row].kv->type != WALSH_KV_TURBO) continue;
            while (n < ROWS && row + n < t->count && t->rows[row + n].kv->type == WALSH_KV_TURBO &&
                   t->rows[row + n].kv->turbo == codecs)
                n++;
            append_rows(t, (enum walsh_turbo_side)(unit % 2), (uint32_t)(unit / 2), row, n);
        }
}

void walsh_turbo_append(const struct walsh_queue *q, const struct walsh_attention_row *rows, size_t count,
                        const float *k, const float *v, size_t ld, const struct walsh_attention_shape *shape)
{
    size_t packed = 0;
    for (size_t r = 0; r < count; r++) packed += rows[r].kv->type == WALSH_KV_TURBO;
    if (packed == 0) return;
    struct append t = {q, rows, count, {k, v}, ld, shape};
    walsh_run_rows(q, (size_t)shape->kv_heads * 2, packed * shape->head_dim * WORK, append_units, &t);
}
