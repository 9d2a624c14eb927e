/* Cases of attention's kernels. */
#include <math.h>
#include <string.h>

#include "base/scalar.h"
#include "checker.h"

static float *row(struct check *c, size_t n)
{
    return check_alloc(c, n * sizeof(float), check_misalign(c, sizeof(float)));
}

/* Pages of random keys or values. Returns the page list. */
static void **random_pages(struct check *c, enum walsh_kv_type type, size_t pages, size_t elements)
{
    void **list = check_alloc_private(c, pages * sizeof *list);
    size_t size = type == WALSH_KV_F32 ? 4 : 2;
    for (size_t p = 0; p < pages; p++) {
        list[p] = check_alloc(c, elements * size, 0);
        for (size_t i = 0; i < elements; i++) {
            float x = check_normal(c);
            uint16_t half = walsh_f16_from_f32(x);
            memcpy((uint8_t *)list[p] + i * size, type == WALSH_KV_F32 ? (void *)&x : (void *)&half, size);
        }
    }
    return list;
}

static float kv_element(const struct walsh_attend_chunk *t, void *const *pages, uint32_t token, uint32_t d)
{
    size_t at = walsh_kv_offset(t->kv, t->kv_head, token, t->head_dim) + d;
    const uint8_t *page = pages[token / t->kv->page_tokens];
    float f;
    uint16_t h;
    if (t->kv->type == WALSH_KV_F32) {
        memcpy(&f, page + at * 4, sizeof f);
        return f;
    }
    memcpy(&h, page + at * 2, sizeof h);
    return walsh_f32_from_f16(h);
}

/* The largest scale * sum |q||k| of query g: the error of a score in units, hence of every weight,
 * relatively. */
static double score_magnitude(const struct walsh_attend_chunk *t, uint32_t g)
{
    double largest = 0;
    for (uint32_t j = t->begin; j < t->end; j++) {
        double sum = 0;
        for (uint32_t d = 0; d < t->head_dim; d++)
            sum += fabs((double)t->query[g * t->head_dim + d] * (double)kv_element(t, t->kv->k_pages, j, d));
        largest = fmax(largest, sum * (double)fabsf(t->scale));
    }
    return largest + (double)t->soft_cap;
}

/* Sums of up to 512 terms in f32 with several accumulators, on weights whose relative error is a few score
 * units. */
#define ATTEND_FACTOR 8

static void compare_chunk(struct check *c, walsh_kernel_attend_chunk *reference,
                          walsh_kernel_attend_chunk *candidate, struct walsh_attend_chunk t,
                          bool poisoned_scores)
{
    size_t outs = (size_t)t.group * t.head_dim;
    struct walsh_attend_chunk t2 = t;
    t.out = row(c, outs);
    t.maximum = row(c, t.group);
    t.sum = row(c, t.group);
    t.scores = row(c, (size_t)t.group * WALSH_ATTEND_CHUNK);
    t2.out = row(c, outs);
    t2.maximum = row(c, t.group);
    t2.sum = row(c, t.group);
    t2.scores = row(c, (size_t)t.group * WALSH_ATTEND_CHUNK);
    reference(&t);
    candidate(&t2);
    float *magnitude = row(c, outs > t.group ? outs : t.group);
    double *unit = check_alloc(c, t.group * sizeof *unit, 0);
    for (uint32_t g = 0; g < t.group; g++) {
        unit[g] = poisoned_scores ? 1 : 1 + score_magnitude(&t, g);
        magnitude[g] = (float)unit[g];
    }
    check_close_f32(c, "maximum", t.maximum, t2.maximum, magnitude, t.group, ATTEND_FACTOR);
    for (uint32_t g = 0; g < t.group; g++) magnitude[g] = (float)(unit[g] * (double)t.sum[g]);
    check_close_f32(c, "sum", t.sum, t2.sum, magnitude, t.group, ATTEND_FACTOR);
    for (uint32_t g = 0; g < t.group; g++)
        for (uint32_t d = 0; d < t.head_dim; d++) {
            double sum = 0;
            for (uint32_t j = t.begin; j < t.end; j++)
                sum += (double)(t.scores[(size_t)g * WALSH_ATTEND_CHUNK + (j - t.begin)] *
                                fabsf(kv_element(&t, t.kv->v_pages, j, d)));
            magnitude[g * t.head_dim + d] = (float)(unit[g] * sum);
        }
    check_close_f32(c, "out", t.out, t2.out, magnitude, outs, ATTEND_FACTOR);
}

void check_attend_chunk(struct check *c, walsh_kernel_attend_chunk *reference,
                        walsh_kernel_attend_chunk *candidate)
{
    static const uint32_t dims[] = {1, 8, 20, 64, 80, 128, 256};
    static const uint32_t groups[] = {1, 2, 3, 4, 7, 8, 12};
    for (size_t i = 0; i < sizeof dims / sizeof dims[0]; i++) {
        uint32_t page_tokens = c->round % 2 ? 48 : 256, pages = c->round == 0 ? 4 : 3, heads = 2;
        uint32_t dim = dims[i], group = groups[(i + c->round) % 7], tokens = page_tokens * pages;
        enum walsh_kv_type type = check_below(c, 2) ? WALSH_KV_F16 : WALSH_KV_F32;
        size_t elements = (size_t)heads * page_tokens * dim;
        void **k = random_pages(c, type, pages, elements), **v = random_pages(c, type, pages, elements);
        struct walsh_kv_view kv = {.type = type, .page_tokens = page_tokens, .k_pages = k, .v_pages = v};
        float *query = row(c, (size_t)group * dim);
        check_fill_normal(c, query, (size_t)group * dim);
        uint32_t begin = c->round == 0 ? 512 : (uint32_t)check_below(c, tokens);
        uint32_t most = tokens - begin < WALSH_ATTEND_CHUNK ? tokens - begin : WALSH_ATTEND_CHUNK;
        uint32_t end = begin + (c->round == 0 ? most : (uint32_t)check_below(c, most) + 1);
        bool poisoned = c->round == CHECK_ROUNDS - 1 && i % 2;
        if (poisoned) query[check_below(c, (size_t)group * dim)] = NAN;
        struct walsh_attend_chunk t = {.kv = &kv,
                                       .kv_head = (uint32_t)check_below(c, heads),
                                       .begin = begin,
                                       .end = end,
                                       .group = group,
                                       .head_dim = dim,
                                       .scale = 1.0f / sqrtf((float)dim),
                                       .soft_cap = c->round % 3 == 1 ? 0.5f : 0,
                                       .query = query};
        compare_chunk(c, reference, candidate, t, poisoned);
    }
}

void check_softmax_step_f32(struct check *c, walsh_kernel_softmax_step_f32 *reference,
                            walsh_kernel_softmax_step_f32 *candidate)
{
    float maximum[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0}, scale = 0.125f;
    for (size_t step = 0; step < 12; step++) {
        size_t n = step == 0 ? 128 : check_below(c, 130);
        float *s = row(c, n), *s2 = row(c, n), *magnitude = row(c, n);
        for (size_t i = 0; i < n; i++) s[i] = s2[i] = check_normal(c) * (c->round == 1 ? 400.0f : 10.0f);
        if (c->round == CHECK_ROUNDS - 1 && step == 11 && n > 0) s[n / 2] = s2[n / 2] = NAN;
        float keep[2] = {reference(s, n, scale, &maximum[0], &sum[0]),
                         candidate(s2, n, scale, &maximum[1], &sum[1])};
        /* the exponent's own rounding: half a unit of |scale s| + |m| */
        float unit = 1 + fabsf(maximum[0]);
        for (size_t i = 0; i < n; i++) magnitude[i] = s[i] * (unit + fabsf(logf(s[i] + 1e-38f)));
        check_close_f32(c, "s", s, s2, magnitude, n, 3);
        check_close_f32(c, "keep", &keep[0], &keep[1], &unit, 1, 3);
        check_close_f32(c, "maximum", &maximum[0], &maximum[1], &unit, 1, 1);
        float sum_unit = unit * sum[0];
        check_close_f32(c, "sum", &sum[0], &sum[1], &sum_unit, 1, 20);
    }
}

static void fill_absolute(float *y, const float *x, size_t n)
{
    for (size_t i = 0; i < n; i++) y[i] = fabsf(x[i]);
}

void check_multiply_tile_f32(struct check *c, walsh_kernel_multiply_tile_f32 *reference,
                             walsh_kernel_multiply_tile_f32 *candidate)
{
    for (size_t shape = 0; shape < 8; shape++) {
        size_t m = check_below(c, 20) + 1, n = check_below(c, 150) + 1, k = check_below(c, 140) + 1;
        if (shape == 0) m = 64, n = 128, k = 128;
        size_t ldc = n + check_below(c, 9), lda = k + check_below(c, 9), ldb = n + check_below(c, 9);
        size_t nc = (m - 1) * ldc + n, na = (m - 1) * lda + k,
               nb = (k - 1) * ldb + n; /* no slack at the end */
        float *a = row(c, na), *b = row(c, nb), *keep = row(c, m);
        float *expected = row(c, nc), *got = row(c, nc), *magnitude = row(c, nc);
        float *absolute_a = row(c, na), *absolute_b = row(c, nb), *absolute_keep = row(c, m);
        check_fill_normal(c, a, na);
        check_fill_normal(c, b, nb);
        check_fill_normal(c, keep, m);
        check_fill_normal(c, expected, nc);
        const float *kept = check_below(c, 2) ? keep : NULL;
        for (size_t i = 0; i < nc && kept == NULL; i++) expected[i] = NAN; /* what C held must not matter */
        memcpy(got, expected, nc * sizeof *got);
        fill_absolute(magnitude, expected, nc);
        fill_absolute(absolute_a, a, na);
        fill_absolute(absolute_b, b, nb);
        fill_absolute(absolute_keep, keep, m);
        walsh_multiply_tile_f32_reference(magnitude, ldc, kept != NULL ? absolute_keep : NULL, absolute_a,
                                          lda, absolute_b, ldb, m, n, k);
        reference(expected, ldc, kept, a, lda, b, ldb, m, n, k);
        candidate(got, ldc, kept, a, lda, b, ldb, m, n, k);
        /* a chain of k additions: its error grows like sqrt(k); 140 terms stay below 10 units */
        check_close_f32(c, "C", expected, got, magnitude, nc, 10);
        /* a row alone has the same bits */
        if (kept != NULL) continue;
        size_t r = check_below(c, m);
        float *alone = row(c, n);
        candidate(alone, n, NULL, a + r * lda, lda, b, ldb, 1, n, k);
        check_exact_f32(c, "a row alone", got + r * ldc, alone, n);
    }
}

void check_transpose_f32(struct check *c, walsh_kernel_transpose_f32 *reference,
                         walsh_kernel_transpose_f32 *candidate)
{
    for (size_t shape = 0; shape < 8; shape++) {
        size_t rows = check_below(c, 70) + 1, cols = check_below(c, 70) + 1;
        size_t ldx = cols + check_below(c, 5), ldy = rows + check_below(c, 5);
        /* no slack behind the last element */
        size_t in = (rows - 1) * ldx + cols, out = (cols - 1) * ldy + rows;
        float *x = row(c, in), *expected = row(c, out), *got = row(c, out);
        check_fill_special(c, x, in);
        memset(expected, 0, out * sizeof *expected);
        memset(got, 0, out * sizeof *got);
        reference(expected, ldy, x, ldx, rows, cols);
        candidate(got, ldy, x, ldx, rows, cols);
        check_exact_f32(c, "y", expected, got, out);
    }
}

/* n numbers as bf16, and as f32 what those are. */
static void fill_bf16(struct check *c, uint16_t *narrow, float *wide, size_t n)
{
    check_fill_normal(c, wide, n);
    for (size_t i = 0; i < n; i++) {
        narrow[i] = walsh_bf16_from_f32(wide[i]);
        wide[i] = walsh_f32_from_bf16(narrow[i]);
    }
}

void check_multiply_tile_bf16(struct check *c, walsh_kernel_multiply_tile_bf16 *reference,
                              walsh_kernel_multiply_tile_bf16 *candidate)
{
    for (size_t shape = 0; shape < 8; shape++) {
        size_t m = check_below(c, 70) + 1, n = 16 * (check_below(c, 9) + 1), k = 32 * (check_below(c, 5) + 1);
        if (shape == 0) m = 64, n = 128, k = 128;
        const size_t ldc = n + check_below(c, 9), lda = k + check_below(c, 9), ldb = n + check_below(c, 9);
        const size_t nc = (m - 1) * ldc + n, na = (m - 1) * lda + k, nb = (k / 2 - 1) * ldb + n;
        uint16_t *a = check_alloc(c, na * sizeof *a, check_misalign(c, sizeof *a));
        uint32_t *b = check_alloc(c, nb * sizeof *b, check_misalign(c, sizeof *b));
        float *wide_a = row(c, na), *wide_b = row(c, 2 * nb), *keep = row(c, m), *alone = row(c, n);
        float *expected = row(c, nc), *got = row(c, nc), *magnitude = row(c, nc);
        fill_bf16(c, a, wide_a, na);
        uint16_t *pairs = check_alloc(c, 2 * nb * sizeof *pairs, 0);
        fill_bf16(c, pairs, wide_b, 2 * nb);
        memcpy(b, pairs, nb * sizeof *b);
        check_fill_normal(c, keep, m);
        check_fill_normal(c, expected, nc);
        const float *kept = check_below(c, 2) ? keep : NULL;
        for (size_t i = 0; i < nc && kept == NULL; i++) expected[i] = NAN; /* what C held must not matter */
        memcpy(got, expected, nc * sizeof *got);
        for (size_t i = 0; i < m; i++)
            for (size_t j = 0; j < n; j++) {
                double sum = kept != NULL ? fabs((double)keep[i] * (double)expected[i * ldc + j]) : 0;
                for (size_t p = 0; p < k; p++)
                    sum += fabs((double)wide_a[i * lda + p] * (double)wide_b[2 * (p / 2 * ldb + j) + p % 2]);
                magnitude[i * ldc + j] = (float)sum;
            }
        reference(expected, ldc, kept, a, lda, b, ldb, m, n, k);
        candidate(got, ldc, kept, a, lda, b, ldb, m, n, k);
        for (size_t i = 0; i < m; i++)
            check_close_f32(c, "C", expected + i * ldc, got + i * ldc, magnitude + i * ldc, n, 10);
        if (kept != NULL) continue;
        const size_t r = check_below(c, m);
        candidate(alone, n, NULL, a + r * lda, lda, b, ldb, 1, n, k);
        check_exact_f32(c, "a row alone", got + r * ldc, alone, n);
    }
}
