/* Attention over packed keys and values as an op: against the truth in double precision from the same codes,
 * with the bugs that such code had elsewhere planted in the truth. Test groups of the KV cache's design: 1,
 * 2, 3, 5, 6. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/pool.h"
#include "base/random.h"
#include "base/scalar.h"
#include "kernels/cpu/turbo.h"
#include "kernels/kernels.h"
#include "unit/share.h"

#define SEED 20250121u
#define PAGE 128u
#define TOLERANCE 1e-4

static struct walsh_random random_state;

static struct walsh_random *start(void)
{
    print_message("seed %u\n", SEED);
    walsh_random_seed(&random_state, SEED);
    return &random_state;
}

static void *get(size_t bytes)
{
    void *p = malloc(bytes + 64);
    assert_non_null(p);
    return p;
}

/* A sequence: its cache and what was appended. Pages start as poison: NaN norms and ones. */
struct sequence {
    struct walsh_kv_view view;
    struct walsh_turbo_codecs codecs;
    struct walsh_turbo_codec *key, *value;
    void **pages; /* keys, then values */
    uint32_t page_count, tokens, heads;
    size_t page_bytes[2];
};

static struct walsh_turbo_codec *open_codec(uint32_t dim, unsigned bits, const char *stream)
{
    const struct walsh_turbo_options options = {.dim = dim, .bits = bits, .seed = SEED, .stream = stream};
    struct walsh_turbo_codec *codec;
    assert_int_equal(walsh_turbo_codec_open(&options, &codec, NULL), WALSH_OK);
    return codec;
}

static void open_sequence(struct sequence *s, uint32_t dim, unsigned key_bits, unsigned value_bits,
                          uint32_t heads, uint32_t tokens)
{
    memset(s, 0, sizeof *s);
    s->key = open_codec(dim, key_bits, "key");
    s->value = open_codec(dim, value_bits, "value");
    s->codecs.key = s->key;
    s->codecs.value = s->value;
    s->heads = heads;
    s->tokens = tokens;
    s->page_count = (tokens + PAGE - 1) / PAGE;
    s->page_bytes[0] = heads * walsh_turbo_head_bytes(dim, key_bits, PAGE);
    s->page_bytes[1] = heads * walsh_turbo_head_bytes(dim, value_bits, PAGE);
    s->pages = get(2 * s->page_count * sizeof *s->pages);
    for (uint32_t i = 0; i < 2 * s->page_count; i++) {
        size_t bytes = s->page_bytes[i / s->page_count];
        s->pages[i] = get(bytes);
        memset(s->pages[i], 0xff, bytes);
    }
    s->view = (struct walsh_kv_view){.type = WALSH_KV_TURBO,
                                     .page_tokens = PAGE,
                                     .k_pages = s->pages,
                                     .v_pages = s->pages + s->page_count,
                                     .turbo = &s->codecs};
}

static void close_sequence(struct sequence *s)
{
    for (uint32_t i = 0; i < 2 * s->page_count; i++) free(s->pages[i]);
    free(s->pages);
    walsh_turbo_codec_close(&s->key);
    walsh_turbo_codec_close(&s->value);
}

static float *normal(struct walsh_random *r, size_t n, double scale)
{
    float *x = get(n * sizeof *x);
    for (size_t i = 0; i < n; i++) x[i] = (float)(scale * walsh_random_normal(r));
    return x;
}

static struct walsh_attention_shape shape_of(uint32_t heads, uint32_t group, uint32_t dim, uint32_t window)
{
    return (struct walsh_attention_shape){.heads = heads * group,
                                          .kv_heads = heads,
                                          .head_dim = dim,
                                          .scale = (float)(1 / sqrt((double)dim)),
                                          .window = window};
}

static void append(const struct walsh_queue *q, struct sequence *s, uint32_t first, uint32_t count,
                   const float *k, const float *v, const struct walsh_attention_shape *shape)
{
    size_t ld = (size_t)shape->kv_heads * shape->head_dim;
    struct walsh_attention_row *rows = get(count * sizeof *rows);
    for (uint32_t i = 0; i < count; i++) rows[i] = (struct walsh_attention_row){&s->view, first + i};
    q->ops->kv_append(q, rows, count, k + first * ld, v + first * ld, ld, shape);
    free(rows);
}

/* What goes wrong in the truth, on purpose. */
enum bug {
    NO_BUG,
    DENSE_INVERSE, /* the forward matrix where the inverse belongs */
    NO_INVERSE,
    ONE_TOO_FEW, /* the query's own token is masked */
    ONE_TOO_MANY,
    NO_WINDOW
};

/* Dequantized in double: the value's last rotation is left out, as attention leaves it to the end. */
static void dequantize(const struct sequence *s, enum walsh_turbo_side side, uint32_t head, uint32_t token,
                       double *x)
{
    const struct walsh_turbo_codec *codec = side == WALSH_TURBO_KEY ? s->key : s->value;
    const uint32_t dim = codec->book.dim;
    uint8_t codes[WALSH_TURBO_MAX_DIM];
    uint16_t norm;
    const uint8_t *page = s->pages[side * s->page_count + token / PAGE];
    walsh_turbo_load(side, dim, codec->book.bits,
                     page + head * walsh_turbo_head_bytes(dim, codec->book.bits, PAGE), PAGE, token % PAGE,
                     codes, &norm);
    for (uint32_t i = 0; i < dim; i++)
        x[i] = (double)walsh_f32_from_f16(norm) * (double)codec->book.scale * codec->book.value[codes[i]];
}

/* out[head_dim] of one query head. */
static void truth(const struct sequence *s, uint32_t head, const float *query, uint32_t position,
                  uint32_t window, enum bug bug, double *out)
{
    const uint32_t dim = s->key->book.dim;
    uint32_t begin = window != 0 && bug != NO_WINDOW && position >= window ? position + 1 - window : 0;
    uint32_t end = position + 1 + (bug == ONE_TOO_MANY) - (bug == ONE_TOO_FEW);
    double *score = get(s->tokens * sizeof *score), x[WALSH_TURBO_MAX_DIM], most = -INFINITY, sum = 0;
    double y[WALSH_TURBO_MAX_DIM] = {0};
    for (uint32_t j = begin; j < end; j++) {
        dequantize(s, WALSH_TURBO_KEY, head, j, x);
        walsh_rotate_inverse_f64(&s->key->rotation, x, x);
        score[j] = 0;
        for (uint32_t i = 0; i < dim; i++) score[j] += (double)query[i] * x[i] / sqrt((double)dim);
        most = fmax(most, score[j]);
    }
    for (uint32_t j = begin; j < end; j++) sum += exp(score[j] - most);
    for (uint32_t j = begin; j < end; j++) {
        dequantize(s, WALSH_TURBO_VALUE, head, j, x);
        for (uint32_t i = 0; i < dim; i++) y[i] += exp(score[j] - most) / sum * x[i];
    }
    if (bug == DENSE_INVERSE)
        walsh_rotate_forward_f64(&s->value->rotation, y, out);
    else if (bug == NO_INVERSE)
        memcpy(out, y, dim * sizeof *out);
    else
        walsh_rotate_inverse_f64(&s->value->rotation, y, out);
    free(score);
}

/* |got - expected| / |expected| in length. */
static double distance(const float *got, const double *expected, uint32_t n)
{
    double error = 0, size = 0;
    for (uint32_t i = 0; i < n; i++) {
        error += pow((double)got[i] - expected[i], 2);
        size += expected[i] * expected[i];
    }
    return sqrt(error / size);
}

struct queues {
    struct walsh_pool *pool;
    struct walsh_queue q[4]; /* reference, AVX2 or reference, best on one thread, best on three */
};

static int open_queues(void **state)
{
    struct queues *t = get(sizeof *t);
    assert_int_equal(walsh_pool_open(3, &t->pool, NULL), WALSH_OK);
    assert_int_equal(walsh_queue_open(WALSH_CPU_REFERENCE, NULL, &t->q[0], NULL), WALSH_OK);
    if (walsh_queue_open(WALSH_CPU_AVX2, NULL, &t->q[1], NULL) != WALSH_OK)
        assert_int_equal(walsh_queue_open(WALSH_CPU_REFERENCE, NULL, &t->q[1], NULL), WALSH_OK);
    assert_int_equal(walsh_queue_open(WALSH_CPU_BEST, NULL, &t->q[2], NULL), WALSH_OK);
    assert_int_equal(walsh_queue_open(WALSH_CPU_BEST, t->pool, &t->q[3], NULL), WALSH_OK);
    *state = t;
    return 0;
}

static int close_queues(void **state)
{
    struct queues *t = *state;
    for (int i = 0; i < 4; i++) walsh_queue_close(&t->q[i]);
    walsh_pool_close(&t->pool);
    free(t);
    return 0;
}

/* --- the truth --- */

struct truth_case {
    uint32_t dim, group, window;
    unsigned bits;
};

static void check_truth(const struct queues *queues, struct walsh_random *random, struct truth_case c,
                        double *worst)
{
    enum { HEADS = 2 };
    const uint32_t tokens = test_small() ? 260 : 700;
    const struct walsh_attention_shape shape = shape_of(HEADS, c.group, c.dim, c.window);
    const size_t width = (size_t)shape.heads * c.dim, ld = (size_t)HEADS * c.dim;
    struct sequence s;
    open_sequence(&s, c.dim, c.bits, c.bits, HEADS, tokens);
    float *k = normal(random, tokens * ld, 1), *v = normal(random, tokens * ld, 1);
    float *query = normal(random, width, 1), *out = get(width * sizeof *out);
    /* the last tokens matter to the first head, so that it shows whether they are seen */
    for (uint32_t t = tokens - 2; t < tokens; t++)
        for (uint32_t i = 0; i < c.dim; i++) k[t * ld + i] = 0.3f * query[i];
    append(&queues->q[2], &s, 0, tokens, k, v, &shape);
    const struct walsh_attention_row row = {&s.view, tokens - 2};
    double expected[WALSH_TURBO_MAX_DIM];
    for (int i = 0; i < 4; i++) {
        const struct walsh_queue *q = &queues->q[i];
        q->ops->attention(q, out, width, query, width, &row, 1, &shape, WALSH_DECODE);
        for (uint32_t h = 0; h < shape.heads; h += i == 0 ? 1 : shape.heads - 1 + (shape.heads == 1)) {
            const float *got = out + (size_t)h * c.dim;
            truth(&s, h / c.group, query + (size_t)h * c.dim, row.position, c.window, NO_BUG, expected);
            double error = distance(got, expected, c.dim);
            if (error > *worst) *worst = error;
            if (!(error < TOLERANCE))
                print_message("dim %u, %u bits, group %u, window %u, queue %d: %g\n", c.dim, c.bits, c.group,
                              c.window, i, error);
            assert_true(error < TOLERANCE);
        }
    }
    /* the planted bugs are seen: each is far beyond the tolerance */
    for (enum bug bug = DENSE_INVERSE; bug <= NO_WINDOW; bug++) {
        if (bug == NO_WINDOW && c.window == 0) continue;
        truth(&s, 0, query, row.position, c.window, bug, expected);
        assert_true(distance(out, expected, c.dim) > 20 * TOLERANCE);
    }
    free(k), free(v), free(query), free(out);
    close_sequence(&s);
}

static void test_group_5_truth_from_the_same_codes(void **state)
{
    struct walsh_random *random = start();
    static const uint32_t dims[] = {64, 80, 128, 192, 256}, groups[] = {1, 4};
    static const unsigned bits[] = {2, 3, 4, 8};
    double worst = 0;
    /* each dimension, group and width is among every third too */
    for (size_t i = 0; i < 40; i += test_small() ? 3 : 1)
        check_truth(*state, random, (struct truth_case){dims[i / 8], groups[i / 4 % 2], 0, bits[i % 4]},
                    &worst);
    print_message("largest error %.2g\n", worst);
}

static void test_group_5_other_shapes(void **state)
{
    struct walsh_random *random = start();
    static const struct truth_case cases[] = {{96, 3, 0, 1},     {320, 2, 0, 5},  {512, 1, 0, 6},
                                              {576, 4, 0, 7},    {64, 7, 200, 4}, {80, 5, 1, 3},
                                              {128, 20, 130, 8}, {80, 1, 65, 5}};
    double worst = 0;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) check_truth(*state, random, cases[i], &worst);
    print_message("largest error %.2g\n", worst);
}

/* One token dominates, scores are large, values differ in size by powers of ten: what an attention sink does.
 */
static void test_group_6_sinks(void **state)
{
    const struct queues *queues = *state;
    struct walsh_random *random = start();
    enum { DIM = 128, TOKENS = 600 };
    const struct walsh_attention_shape shape = shape_of(1, 4, DIM, 0);
    for (unsigned bits = 2; bits <= 8; bits += 2) {
        struct sequence s;
        open_sequence(&s, DIM, bits, bits, 1, TOKENS);
        float *k = normal(random, TOKENS * DIM, 1), *v = normal(random, TOKENS * DIM, 1);
        float *query = normal(random, 4 * DIM, 1), out[4 * DIM];
        for (int i = 0; i < DIM; i++) {
            k[i] = 4 * query[i];        /* token 0: a score of about 45 for head 0 */
            v[i] *= 0.001f;             /* with next to nothing in it */
            v[599 * DIM + i] *= 100.0f; /* and the last token's value is large */
        }
        append(&queues->q[2], &s, 0, TOKENS, k, v, &shape);
        const struct walsh_attention_row row = {&s.view, TOKENS - 1};
        for (int i = 0; i < 4; i++) {
            const struct walsh_queue *q = &queues->q[i];
            q->ops->attention(q, out, 4 * DIM, query, 4 * DIM, &row, 1, &shape, WALSH_DECODE);
            for (uint32_t h = 0; h < 4; h++) {
                double expected[DIM];
                truth(&s, 0, query + h * DIM, TOKENS - 1, 0, NO_BUG, expected);
                double error = distance(out + h * DIM, expected, DIM);
                if (!(error < TOLERANCE))
                    print_message("%u bits, queue %d, head %u: %g\n", bits, i, h, error);
                assert_true(error < TOLERANCE);
            }
        }
        free(k), free(v), free(query);
        close_sequence(&s);
    }
}

/* --- bytes --- */

static void assert_equal_tokens(const struct sequence *a, const struct sequence *b)
{
    for (uint32_t i = 0; i < 2 * a->page_count; i++)
        assert_memory_equal(a->pages[i], b->pages[i], a->page_bytes[i / a->page_count]);
}

static void test_group_1_equal_bytes_in_one_chunk_or_token_by_token(void **state)
{
    const struct queues *queues = *state;
    struct walsh_random *random = start();
    static const uint32_t dims[] = {64, 80, 128, 192, 576};
    for (size_t d = 0; d < 5; d++)
        for (unsigned bits = 1; bits <= 8; bits++) {
            enum { HEADS = 3, TOKENS = 150 };
            if (test_small() && (8 * d + bits) % 3 != 0) continue;
            const struct walsh_attention_shape shape = shape_of(HEADS, 1, dims[d], 0);
            struct sequence s[3];
            for (int i = 0; i < 3; i++) open_sequence(&s[i], dims[d], bits, 9 - bits, HEADS, TOKENS);
            float *k = normal(random, (size_t)TOKENS * HEADS * dims[d], 1);
            float *v = normal(random, (size_t)TOKENS * HEADS * dims[d], 1);
            append(&queues->q[3], &s[0], 0, TOKENS, k, v, &shape);
            for (uint32_t t = 0; t < TOKENS; t++) append(&queues->q[2], &s[1], t, 1, k, v, &shape);
            assert_equal_tokens(&s[0], &s[1]);
            /* the slow encoder, in uneven chunks, over what other tokens left */
            append(&queues->q[0], &s[2], 0, TOKENS, v, k, &shape);
            for (uint32_t t = 0, n; t < TOKENS; t += n) {
                n = 1 + (uint32_t)(walsh_random_u64(random) % 40);
                if (n > TOKENS - t) n = TOKENS - t;
                append(&queues->q[0], &s[2], t, n, k, v, &shape);
            }
            assert_equal_tokens(&s[0], &s[2]);
            free(k), free(v);
            for (int i = 0; i < 3; i++) close_sequence(&s[i]);
        }
}

static void test_group_6_saturated_norms_are_counted(void **state)
{
    const struct queues *queues = *state;
    struct walsh_random *random = start();
    enum { DIM = 64, TOKENS = 40 };
    const struct walsh_attention_shape shape = shape_of(2, 1, DIM, 0);
    struct sequence s;
    open_sequence(&s, DIM, 4, 3, 2, TOKENS);
    float *k = normal(random, TOKENS * 2 * DIM, 1), *v = normal(random, TOKENS * 2 * DIM, 1);
    for (int i = 0; i < DIM; i++) {
        k[7 * 2 * DIM + i] *= 1e5f;       /* token 7, head 0 */
        v[9 * 2 * DIM + DIM + i] *= 1e6f; /* token 9, head 1 */
        v[39 * 2 * DIM + i] *= 1e7f;
    }
    append(&queues->q[3], &s, 0, TOKENS, k, v, &shape);
    assert_int_equal(atomic_load(&s.codecs.saturated), 3);
    double x[DIM], largest = 0;
    dequantize(&s, WALSH_TURBO_VALUE, 1, 9, x);
    for (int i = 0; i < DIM; i++) largest = fmax(largest, fabs(x[i]));
    assert_true(isfinite(largest) && largest > 1000);
    free(k), free(v);
    close_sequence(&s);
}

/* --- rows --- */

/* NaN in a visible key or value reaches the result; in an invisible token, or in what was never stored, it
 * does not. */
static void test_group_6_nan_and_stale_tokens(void **state)
{
    const struct queues *queues = *state;
    struct walsh_random *random = start();
    enum { DIM = 80, TOKENS = 100 };
    const struct walsh_attention_shape shape = shape_of(1, 2, DIM, 0);
    for (int side = 0; side < 2; side++)
        for (int i = 0; i < 4; i++) {
            const struct walsh_queue *q = &queues->q[i];
            struct sequence s;
            open_sequence(&s, DIM, 3, 3, 1, TOKENS);
            float *k = normal(random, TOKENS * DIM, 1), *v = normal(random, TOKENS * DIM, 1);
            float *query = normal(random, 2 * DIM, 1), out[2 * DIM];
            (side == 0 ? k : v)[50 * DIM + 3] = NAN;
            append(q, &s, 0, TOKENS - 20, k, v, &shape);
            struct walsh_attention_row row = {&s.view, 49};
            q->ops->attention(q, out, 2 * DIM, query, 2 * DIM, &row, 1, &shape, WALSH_DECODE);
            for (int j = 0; j < 2 * DIM; j++) assert_true(isfinite(out[j]));
            row.position = 50;
            q->ops->attention(q, out, 2 * DIM, query, 2 * DIM, &row, 1, &shape, WALSH_DECODE);
            for (int j = 0; j < 2 * DIM; j++) assert_true(isnan(out[j]));
            /* a query with NaN spoils its own head only */
            row.position = 49;
            query[5] = NAN;
            q->ops->attention(q, out, 2 * DIM, query, 2 * DIM, &row, 1, &shape, WALSH_DECODE);
            for (int j = 0; j < 2 * DIM; j++) assert_true(isnan(out[j]) == (j < DIM));
            free(k), free(v), free(query);
            close_sequence(&s);
        }
}

/* Zero vectors: a zero query averages the values, zero keys too, zero values give zero. */
static void test_group_6_zero_vectors(void **state)
{
    const struct queues *queues = *state;
    struct walsh_random *random = start();
    enum { DIM = 96, TOKENS = 20 };
    const struct walsh_attention_shape shape = shape_of(1, 1, DIM, 0);
    struct sequence s;
    open_sequence(&s, DIM, 4, 8, 1, TOKENS);
    float *v = normal(random, TOKENS * DIM, 1), zero[TOKENS * DIM] = {0}, out[DIM];
    for (int i = 0; i < 4; i++) {
        const struct walsh_queue *q = &queues->q[i];
        const struct walsh_attention_row row = {&s.view, TOKENS - 1};
        double expected[DIM] = {0}, x[DIM];
        append(q, &s, 0, TOKENS, zero, v, &shape);
        for (uint32_t t = 0; t < TOKENS; t++) {
            dequantize(&s, WALSH_TURBO_VALUE, 0, t, x);
            for (int j = 0; j < DIM; j++) expected[j] += x[j] / TOKENS;
        }
        walsh_rotate_inverse_f64(&s.value->rotation, expected, expected);
        q->ops->attention(q, out, DIM, zero, DIM, &row, 1, &shape, WALSH_DECODE);
        assert_true(distance(out, expected, DIM) < TOLERANCE);
        q->ops->attention(q, out, DIM, v, DIM, &row, 1, &shape, WALSH_DECODE);
        assert_true(distance(out, expected, DIM) < TOLERANCE);
        append(q, &s, 0, TOKENS, v, zero, &shape);
        q->ops->attention(q, out, DIM, v, DIM, &row, 1, &shape, WALSH_DECODE);
        for (int j = 0; j < DIM; j++) assert_true(out[j] == 0);
    }
    free(v);
    close_sequence(&s);
}

/* Rows of sequences of different lengths and kinds: each has the bits of its single run, on any pool; a row
 * that reads its neighbour's cache or length would not. */
static void test_group_3_ragged_batch_equals_single(void **state)
{
    const struct queues *queues = *state;
    struct walsh_random *random = start();
    enum { DIM = 128, HEADS = 2, GROUP = 4, ROWS = 5, WIDTH = HEADS * GROUP * DIM };
    static const uint32_t lengths[ROWS] = {1700, 3, 513, 64, 512};
    const struct walsh_attention_shape shape = shape_of(HEADS, GROUP, DIM, 0);
    struct sequence s[ROWS];
    struct walsh_attention_row rows[ROWS];
    for (int r = 0; r < ROWS; r++) {
        open_sequence(&s[r], DIM, r % 2 ? 3 : 4, 4, HEADS, lengths[r]);
        float *k = normal(random, (size_t)lengths[r] * HEADS * DIM, 1);
        float *v = normal(random, (size_t)lengths[r] * HEADS * DIM, 1);
        append(&queues->q[2], &s[r], 0, lengths[r], k, v, &shape);
        rows[r] = (struct walsh_attention_row){&s[r].view, lengths[r] - 1};
        free(k), free(v);
    }
    /* an f16 sequence among them */
    static uint16_t half[2][HEADS * PAGE * DIM];
    for (size_t i = 0; i < sizeof half[0] / 2; i++)
        half[0][i] = half[1][i] = walsh_f16_from_f32((float)(i % 7) - 3);
    void *pages[] = {half[0], half[1]};
    const struct walsh_kv_view plain = {
        .type = WALSH_KV_F16, .page_tokens = PAGE, .k_pages = pages, .v_pages = pages + 1};
    rows[3] = (struct walsh_attention_row){&plain, 99};

    float *query = normal(random, ROWS * WIDTH, 1), *single = get(ROWS * WIDTH * sizeof *single);
    float *batch = get(ROWS * WIDTH * sizeof *batch);
    for (int r = 0; r < ROWS; r++)
        queues->q[2].ops->attention(&queues->q[2], single + r * WIDTH, WIDTH, query + r * WIDTH, WIDTH,
                                    rows + r, 1, &shape, WALSH_DECODE);
    for (int i = 2; i < 4; i++)
        for (int n = 1; n <= ROWS; n++) {
            memset(batch, 0, ROWS * WIDTH * sizeof *batch);
            queues->q[i].ops->attention(&queues->q[i], batch, WIDTH, query, WIDTH, rows, (size_t)n, &shape,
                                        WALSH_DECODE);
            assert_memory_equal(single, batch, (size_t)n * WIDTH * sizeof *batch);
        }
    /* one long row on three threads goes in waves */
    queues->q[3].ops->attention(&queues->q[3], batch, WIDTH, query, WIDTH, rows, 1, &shape, WALSH_DECODE);
    assert_memory_equal(single, batch, WIDTH * sizeof *batch);
    /* the planted bug: row 1 with row 0's length or cache */
    double expected[DIM];
    truth(&s[2], 0, query + 2 * WIDTH, lengths[2] - 1, 0, NO_BUG, expected);
    assert_true(distance(single + 2 * WIDTH, expected, DIM) < TOLERANCE);
    truth(&s[0], 0, query + 2 * WIDTH, lengths[2] - 1, 0, NO_BUG, expected);
    assert_true(distance(single + 2 * WIDTH, expected, DIM) > 20 * TOLERANCE);
    truth(&s[2], 0, query + 2 * WIDTH, lengths[1] - 1, 0, NO_BUG, expected);
    assert_true(distance(single + 2 * WIDTH, expected, DIM) > 20 * TOLERANCE);
    free(query), free(single), free(batch);
    for (int r = 0; r < ROWS; r++) close_sequence(&s[r]);
}

/* Rows of one sequence at consecutive positions, appended at once, as decode would have run them one after
 * the other: this is how an evaluation measures what decode computes. The prefill role gives the same. */
static void test_group_3_teacher_forced_rows(void **state)
{
    const struct queues *queues = *state;
    struct walsh_random *random = start();
    enum { DIM = 64, HEADS = 2, GROUP = 2, TOKENS = 200, WIDTH = HEADS * GROUP * DIM, LD = HEADS * DIM };
    const struct walsh_attention_shape shape = shape_of(HEADS, GROUP, DIM, 0);
    const struct walsh_queue *q = &queues->q[3];
    struct sequence s[2];
    for (int i = 0; i < 2; i++) open_sequence(&s[i], DIM, 4, 3, HEADS, TOKENS);
    float *k = normal(random, TOKENS * LD, 1), *v = normal(random, TOKENS * LD, 1);
    float *query = normal(random, TOKENS * WIDTH, 1), *at_once = get(TOKENS * WIDTH * sizeof(float)),
          one[WIDTH];
    struct walsh_attention_row rows[TOKENS];
    for (uint32_t t = 0; t < TOKENS; t++) rows[t] = (struct walsh_attention_row){&s[0].view, t};
    append(q, &s[0], 0, TOKENS, k, v, &shape);
    for (int role = 0; role < 2; role++) {
        q->ops->attention(q, at_once, WIDTH, query, WIDTH, rows, TOKENS, &shape,
                          role ? WALSH_PREFILL : WALSH_DECODE);
        for (uint32_t t = 0; t < TOKENS; t++) {
            const struct walsh_attention_row row = {&s[1].view, t};
            append(q, &s[1], t, 1, k, v, &shape);
            q->ops->attention(q, one, WIDTH, query + t * WIDTH, WIDTH, &row, 1, &shape, WALSH_DECODE);
            assert_memory_equal(one, at_once + t * WIDTH, sizeof one);
        }
    }
    free(k), free(v), free(query), free(at_once);
    for (int i = 0; i < 2; i++) close_sequence(&s[i]);
}

/* Key and value dimensions of their own, in one chunk. */
static void test_group_5_key_and_value_dimensions_differ(void **state)
{
    const struct queues *queues = *state;
    struct walsh_random *random = start();
    enum { KEY = 192, VALUE = 80, GROUP = 3, TOKENS = 97 };
    struct walsh_turbo_codec *key = open_codec(KEY, 3, "key"), *value = open_codec(VALUE, 4, "value");
    struct walsh_turbo_codecs codecs = {.key = key, .value = value};
    void *k_page = get(walsh_turbo_head_bytes(KEY, 3, PAGE)),
         *v_page = get(walsh_turbo_head_bytes(VALUE, 4, PAGE));
    memset(k_page, 0xff, walsh_turbo_head_bytes(KEY, 3, PAGE));
    memset(v_page, 0xff, walsh_turbo_head_bytes(VALUE, 4, PAGE));
    const struct walsh_kv_view view = {.type = WALSH_KV_TURBO,
                                       .page_tokens = PAGE,
                                       .k_pages = &k_page,
                                       .v_pages = &v_page,
                                       .turbo = &codecs};
    float *query = normal(random, GROUP * KEY, 1), *x = normal(random, TOKENS * KEY, 1),
          *y = normal(random, TOKENS * VALUE, 1);
    for (uint32_t t = 0; t < TOKENS; t++) {
        uint8_t codes[KEY];
        uint16_t norm;
        walsh_turbo_encode(key, x + t * KEY, codes, &norm);
        walsh_turbo_store(WALSH_TURBO_KEY, KEY, 3, k_page, PAGE, t, codes, norm);
        walsh_turbo_decode(key, codes, norm, x + t * KEY);
        walsh_turbo_encode(value, y + t * VALUE, codes, &norm);
        walsh_turbo_store(WALSH_TURBO_VALUE, VALUE, 4, v_page, PAGE, t, codes, norm);
        walsh_turbo_decode(value, codes, norm, y + t * VALUE);
    }
    for (int i = 0; i < 4; i++) {
        static struct walsh_turbo_queries queries;
        static struct walsh_turbo_scratch scratch;
        static float scores[GROUP * WALSH_ATTEND_CHUNK];
        float maximum[GROUP], sum[GROUP], out[GROUP * VALUE];
        const struct walsh_attend_chunk c = {.kv = &view,
                                             .begin = 5,
                                             .end = TOKENS,
                                             .group = GROUP,
                                             .scale = 0.1f,
                                             .scores = scores,
                                             .maximum = maximum,
                                             .sum = sum,
                                             .out = out};
        walsh_turbo_rotate_queries(&queues->q[i], &codecs, query, GROUP, &queries);
        walsh_turbo_attend_chunk(&queues->q[i], &c, TOKENS, &queries, &scratch);
        walsh_turbo_unrotate(&queues->q[i], value, out, GROUP);
        for (int g = 0; g < GROUP; g++) {
            double score[TOKENS], expected[VALUE] = {0}, most = -INFINITY, total = 0;
            for (int t = 5; t < TOKENS; t++) {
                score[t] = 0;
                for (int j = 0; j < KEY; j++)
                    score[t] += 0.1 * (double)query[g * KEY + j] * (double)x[t * KEY + j];
                most = fmax(most, score[t]);
            }
            assert_true(fabs((double)maximum[g] - most) < 1e-3);
            for (int t = 5; t < TOKENS; t++) {
                total += exp(score[t] - (double)maximum[g]);
                for (int j = 0; j < VALUE; j++)
                    expected[j] += exp(score[t] - (double)maximum[g]) * (double)y[t * VALUE + j];
            }
            assert_true(fabs((double)sum[g] / total - 1) < TOLERANCE);
            assert_true(distance(out + g * VALUE, expected, VALUE) < TOLERANCE);
        }
    }
    free(query), free(x), free(y), free(k_page), free(v_page);
    walsh_turbo_codec_close(&key);
    walsh_turbo_codec_close(&value);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_group_5_truth_from_the_same_codes),
        cmocka_unit_test(test_group_5_other_shapes),
        cmocka_unit_test(test_group_6_sinks),
        cmocka_unit_test(test_group_1_equal_bytes_in_one_chunk_or_token_by_token),
        cmocka_unit_test(test_group_6_saturated_norms_are_counted),
        cmocka_unit_test(test_group_6_nan_and_stale_tokens),
        cmocka_unit_test(test_group_6_zero_vectors),
        cmocka_unit_test(test_group_3_ragged_batch_equals_single),
        cmocka_unit_test(test_group_3_teacher_forced_rows),
        cmocka_unit_test(test_group_5_key_and_value_dimensions_differ),
    };
    return cmocka_run_group_tests(tests, open_queues, close_queues);
}
