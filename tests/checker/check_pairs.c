/* Cases of bf16 pairs and of attention's tiles over them. */
#include <math.h>
#include <string.h>

#include "base/scalar.h"
#include "checker.h"

static float *row(struct check *c, size_t n)
{
    return check_alloc(c, n * sizeof(float), check_misalign(c, sizeof(float)));
}

static float wide(uint32_t bits)
{
    return walsh_float_from_bits(bits << 16);
}

typedef void pack(uint32_t *y, size_t ldy, const float *x, size_t ldx, size_t rows, size_t cols);

static void check_pack(struct check *c, pack *reference, pack *candidate, bool pair_columns, bool turned)
{
    for (size_t shape = 0; shape < 8; shape++) {
        const size_t rows = check_below(c, 80) + 1, cols = check_below(c, 80) + 1;
        const size_t y_rows = pair_columns ? (cols + 1) / 2
                              : turned     ? cols
                                           : (rows + 1) / 2,
                     y_cols = pair_columns ? rows
                              : turned     ? (rows + 1) / 2
                                           : cols;
        const size_t ldx = cols + check_below(c, 5), ldy = y_cols + check_below(c, 5);
        const size_t in = (rows - 1) * ldx + cols,
                     out = (y_rows - 1) * ldy + y_cols; /* no slack behind the last */
        float *x = row(c, in);
        uint32_t *expected = check_alloc(c, out * sizeof *expected, 0),
                 *got = check_alloc(c, out * sizeof *got, check_misalign(c, sizeof *got));
        check_fill_special(c, x, in);
        memset(expected, 0, out * sizeof *expected);
        memset(got, 0, out * sizeof *got);
        reference(expected, ldy, x, ldx, rows, cols);
        candidate(got, ldy, x, ldx, rows, cols);
        check_exact_bytes(c, "y", expected, got, out * sizeof *got);
    }
}

void check_pair_rows_bf16(struct check *c, walsh_kernel_pair_rows_bf16 *reference,
                          walsh_kernel_pair_rows_bf16 *candidate)
{
    check_pack(c, reference, candidate, false, false);
}
void check_pair_narrow_rows_bf16(struct check *c, walsh_kernel_pair_narrow_rows_bf16 *reference,
                                 walsh_kernel_pair_narrow_rows_bf16 *candidate)
{
    for (size_t shape = 0; shape < 8; shape++) {
        const size_t rows = check_below(c, 80) + 1, cols = check_below(c, 80) + 1;
        const size_t ldx = cols + check_below(c, 5), ldy = cols + check_below(c, 5);
        const size_t in = (rows - 1) * ldx + cols, out = ((rows + 1) / 2 - 1) * ldy + cols;
        uint16_t *x = check_alloc(c, in * sizeof *x, check_misalign(c, sizeof *x));
        uint32_t *expected = check_alloc(c, out * sizeof *expected, 0),
                 *got = check_alloc(c, out * sizeof *got, check_misalign(c, sizeof *got));
        for (size_t i = 0; i < in; i++) x[i] = (uint16_t)check_below(c, 65536);
        memset(expected, 0, out * sizeof *expected);
        memset(got, 0, out * sizeof *got);
        reference(expected, ldy, x, ldx, rows, cols);
        candidate(got, ldy, x, ldx, rows, cols);
        check_exact_bytes(c, "y", expected, got, out * sizeof *got);
    }
}
void check_pair_rows_turned_bf16(struct check *c, walsh_kernel_pair_rows_turned_bf16 *reference,
                                 walsh_kernel_pair_rows_turned_bf16 *candidate)
{
    check_pack(c, reference, candidate, false, true);
}
void check_pair_columns_turned_bf16(struct check *c, walsh_kernel_pair_columns_turned_bf16 *reference,
                                    walsh_kernel_pair_columns_turned_bf16 *candidate)
{
    check_pack(c, reference, candidate, true, true);
}

/* n random bf16, and their absolute values. */
static uint16_t *narrow(struct check *c, size_t n, uint16_t **absolute)
{
    uint16_t *x = check_alloc(c, n * sizeof *x, check_misalign(c, sizeof *x));
    *absolute = check_alloc(c, n * sizeof *x, 0);
    for (size_t i = 0; i < n; i++) {
        x[i] = walsh_bf16_from_f32(check_normal(c));
        (*absolute)[i] = x[i] & 0x7fff;
    }
    return x;
}

void check_multiply_pairs_bf16(struct check *c, walsh_kernel_multiply_pairs_bf16 *reference,
                               walsh_kernel_multiply_pairs_bf16 *candidate)
{
    for (size_t shape = 0; shape < 8; shape++) {
        size_t m = check_below(c, 20) + 1, n = check_below(c, 100) + 1, steps = check_below(c, 70) + 1;
        if (shape == 0) m = 64, n = 64, steps = 32;
        if (shape == 1) n = 16;
        const size_t lda = 2 * steps + check_below(c, 9), ldb = n + check_below(c, 9),
                     ldc = n + check_below(c, 9);
        const size_t na = (m - 1) * lda + 2 * steps, nb = (steps - 1) * ldb + n, nc = (m - 1) * ldc + n;
        uint16_t *absolute_a, *a = narrow(c, na, &absolute_a);
        uint32_t *b = check_alloc(c, nb * sizeof *b, check_misalign(c, sizeof *b)),
                 *absolute_b = check_alloc(c, nb * sizeof *b, 0);
        for (size_t i = 0; i < nb; i++) {
            b[i] = walsh_bf16_from_f32(check_normal(c)) | (uint32_t)walsh_bf16_from_f32(check_normal(c))
                                                              << 16;
            absolute_b[i] = b[i] & 0x7fff7fff;
        }
        float *expected = row(c, nc), *got = row(c, nc), *magnitude = row(c, nc);
        const bool add = check_below(c, 2);
        for (size_t i = 0; i < nc; i++) expected[i] = add ? check_normal(c) : NAN; /* must not matter */
        memcpy(got, expected, nc * sizeof *got);
        for (size_t i = 0; i < nc; i++) magnitude[i] = fabsf(expected[i]);
        float *keep = row(c, n);
        for (size_t i = 0; i < n; i++) keep[i] = fabsf(check_normal(c));
        struct walsh_pairs_product p = {magnitude,
                                        absolute_a,
                                        absolute_b,
                                        ldc,
                                        lda,
                                        ldb,
                                        m,
                                        n,
                                        steps,
                                        add,
                                        check_below(c, 2) ? keep : NULL};
        walsh_multiply_pairs_bf16_reference(&p);
        p.a = a;
        p.b = b;
        p.c = expected;
        reference(&p);
        p.c = got;
        candidate(&p);
        check_close_f32(c, "C", expected, got, magnitude, nc, 12);
        if (add) continue; /* a row alone has the same bits */
        const size_t r = check_below(c, m);
        float *alone = row(c, n);
        p.c = alone;
        p.a = a + r * lda;
        p.m = 1;
        candidate(&p);
        check_exact_f32(c, "a row alone", got + r * ldc, alone, n);
    }
}

/* A random matrix of bf16 in `w`, rows * cols elements. */
static void random_matrix(struct check *c, struct walsh_weights *w, size_t rows, size_t cols, bool positive)
{
    uint16_t *x = check_alloc(c, rows * cols * sizeof *x, check_misalign(c, sizeof *x));
    for (size_t i = 0; i < rows * cols; i++) {
        x[i] = walsh_bf16_from_f32(check_normal(c));
        if (positive) x[i] &= 0x7fff;
    }
    *w = (struct walsh_weights){
        .format = WALSH_FORMAT_BF16, .rows = (uint32_t)rows, .cols = (uint32_t)cols, .data = x};
}

/* Sizes of panels: several blocks of the depth, ends of all widths. */
static size_t random_depth(struct check *c)
{
    return check_below(c, 4) == 0 ? WALSH_PANEL_DEPTH + check_below(c, 1200) + 1 : check_below(c, 90) + 1;
}

void check_pack_panels_bf16(struct check *c, walsh_kernel_pack_panels_bf16 *reference,
                            walsh_kernel_pack_panels_bf16 *candidate)
{
    for (size_t shape = 0; shape < 6; shape++) {
        const bool transposed = shape % 2;
        const size_t outputs = check_below(c, 130) + 1, depth = random_depth(c),
                     begin = check_below(c, outputs), end = begin + check_below(c, outputs - begin) + 1,
                     pairs = walsh_panel_pairs(end - begin, depth);
        struct walsh_weights w;
        random_matrix(c, &w, transposed ? depth : outputs, transposed ? outputs : depth, false);
        uint32_t *expected = check_alloc(c, pairs * sizeof *expected, 0),
                 *got = check_alloc(c, pairs * sizeof *got, 0);
        memset(expected, 1, pairs * sizeof *expected);
        memset(got, 2, pairs * sizeof *got);
        reference(&w, transposed, begin, end, expected);
        candidate(&w, transposed, begin, end, got);
        check_exact_bytes(c, "panels", expected, got, pairs * sizeof *got);
    }
}

void check_product_panels_bf16(struct check *c, walsh_kernel_product_panels_bf16 *reference,
                               walsh_kernel_product_panels_bf16 *candidate)
{
    for (size_t shape = 0; shape < 6; shape++) {
        const size_t outputs = check_below(c, 130) + 1, rows = check_below(c, 150) + 1,
                     begin = check_below(c, (outputs + 47) / 48) * 48, whole = (outputs - begin) / 48,
                     end =
                         whole > 0 && check_below(c, 2) ? begin + 48 * (check_below(c, whole) + 1) : outputs,
                     ldy = outputs + check_below(c, 5), size = (rows - 1) * ldy + outputs;
        struct walsh_panel_term terms[3], absolute[3];
        const size_t count = check_below(c, 3) + 1;
        size_t depths = 0;
        for (size_t n = 0; n < count; n++) {
            /* the last as an update: a matrix of the wanted outputs alone */
            const bool part = n == 2;
            const size_t depth = random_depth(c), lda = depth + depth % 2 + 2 * check_below(c, 3),
                         own = part ? end - begin : outputs, pairs = walsh_panel_pairs(own, depth),
                         na = (rows - 1) * lda + depth + depth % 2;
            struct walsh_weights w;
            random_matrix(c, &w, own, depth, false);
            uint32_t *panels = check_alloc(c, pairs * sizeof *panels, 0),
                     *panels_absolute = check_alloc(c, pairs * sizeof *panels, 0);
            walsh_pack_panels_bf16_reference(&w, false, 0, own, panels);
            for (size_t i = 0; i < pairs; i++) panels_absolute[i] = panels[i] & 0x7fff7fff;
            uint16_t *a_absolute, *a = narrow(c, na, &a_absolute);
            for (size_t i = 0; depth % 2 && i < rows; i++)
                a[i * lda + depth] = a_absolute[i * lda + depth] = 0;
            terms[n] = (struct walsh_panel_term){panels, own, depth, part ? begin : 0, a, lda};
            absolute[n] = terms[n];
            absolute[n].panels = panels_absolute;
            absolute[n].a = a_absolute;
            depths += depth;
        }
        float *expected = row(c, size), *got = row(c, size), *magnitude = row(c, size);
        struct walsh_panels_product p = {absolute, count,     rows, begin,
                                         end,      magnitude, ldy,  check_below(c, 2)};
        for (size_t i = 0; i < size; i++) {
            expected[i] = got[i] = check_normal(c);
            magnitude[i] = fabsf(expected[i]);
        }
        walsh_product_panels_bf16_reference(&p);
        p.terms = terms;
        p.y = expected;
        reference(&p);
        p.y = got;
        candidate(&p);
        check_close_f32(c, "y", expected, got, magnitude, size, 12 + (double)depths / 64);
    }
}

/* A random tile: sizes, the place of the diagonal, a window. */
static struct walsh_tile_scores random_scores(struct check *c, size_t *padded)
{
    struct walsh_tile_scores t = {.keys = check_below(c, 64) + 1,
                                  .queries = check_below(c, 64) + 1,
                                  .diagonal = (ptrdiff_t)check_below(c, 140) - 10,
                                  .window = check_below(c, 2) ? check_below(c, 90) + 1 : 0,
                                  .scale = 0.125f};
    *padded = (t.queries + 15) / 16 * 16;
    t.lds = *padded + check_below(c, 5);
    float *s = row(c, t.keys * t.lds);
    for (size_t i = 0; i < t.keys * t.lds; i++) s[i] = check_normal(c) * (c->round == 1 ? 400.0f : 10.0f);
    t.s = s;
    return t;
}

/* bf16 of values that agree to 1e-5 of their magnitude's unit are one step apart at most. */
static void check_near(struct check *c, const char *what, const uint16_t *expected, const uint16_t *got,
                       size_t n, const float *magnitude)
{
    for (size_t i = 0; i < n; i++) {
        const float x = wide(expected[i]), y = wide(got[i]);
        if (!(fabsf(x - y) <= 0.00785f * fabsf(x) + 2e-5f * magnitude[i]))
            check_fail(c, "%s: element %zu is %g, expected %g", what, i, (double)y, (double)x);
    }
}

static void fill(float *x, size_t n, float value)
{
    for (size_t i = 0; i < n; i++) x[i] = value;
}

void check_softmax_columns_bf16(struct check *c, walsh_kernel_softmax_columns_bf16 *reference,
                                walsh_kernel_softmax_columns_bf16 *candidate)
{
    for (size_t shape = 0; shape < 12; shape++) {
        size_t padded;
        struct walsh_tile_softmax t[2] = {{.scores = random_scores(c, &padded)}};
        t[1] = t[0];
        const size_t pairs = (t[0].scores.keys + 1) / 2;
        float *state[2];
        for (int i = 0; i < 2; i++) {
            t[i].ldp = padded;
            t[i].p = check_alloc(c, pairs * padded * sizeof *t[i].p, 0);
            t[i].maximum = state[i] = row(c, 3 * padded);
            t[i].sum = state[i] + padded;
            t[i].keep = state[i] + 2 * padded;
        }
        for (size_t i = 0; i < padded; i++) {
            const bool fresh = check_below(c, 2);
            state[0][i] = state[1][i] = fresh ? -INFINITY : 3 * check_normal(c);
            t[0].sum[i] = t[1].sum[i] = fresh ? 0 : 1 + fabsf(check_normal(c));
        }
        reference(&t[0]);
        candidate(&t[1]);
        float *unit = row(c, 2 * pairs * padded);
        fill(unit, 2 * pairs * padded, 1);
        check_near(c, "p", (const uint16_t *)t[0].p, (const uint16_t *)t[1].p, 2 * pairs * padded, unit);
        for (size_t i = 0; i < padded; i++) {
            /* the exponent's own rounding: units of |maximum| */
            const float of_score = 1 + (isinf(t[0].maximum[i]) ? 0 : fabsf(t[0].maximum[i]));
            const float of_sum = of_score * t[0].sum[i];
            check_close_f32(c, "maximum", &t[0].maximum[i], &t[1].maximum[i], &of_score, 1, 1);
            check_close_f32(c, "keep", &t[0].keep[i], &t[1].keep[i], &of_score, 1, 6);
            check_close_f32(c, "sum", &t[0].sum[i], &t[1].sum[i], &of_sum, 1, 20);
        }
    }
}

void check_slope_columns_bf16(struct check *c, walsh_kernel_slope_columns_bf16 *reference,
                              walsh_kernel_slope_columns_bf16 *candidate)
{
    for (size_t shape = 0; shape < 12; shape++) {
        size_t padded;
        struct walsh_tile_slopes t[2] = {{.scores = random_scores(c, &padded)}};
        const struct walsh_tile_scores *s = &t[0].scores;
        float *dp = row(c, s->keys * s->lds), *lse = row(c, s->queries), *delta = row(c, s->queries);
        check_fill_normal(c, dp, s->keys * s->lds);
        check_fill_normal(c, delta, s->queries);
        for (size_t i = 0; i < s->queries; i++) {
            lse[i] = 0;
            for (size_t j = 0; j < s->keys; j++) lse[i] = fmaxf(lse[i], s->scale * s->s[j * s->lds + i]);
        }
        t[0].dp = dp;
        t[0].lse = lse;
        t[0].delta = delta;
        t[0].ld_rows = t[0].ld_pairs = padded;
        t[1] = t[0];
        const size_t pairs = (s->keys + 1) / 2, rows = s->keys * padded;
        for (int i = 0; i < 2; i++) {
            t[i].p_rows = check_alloc(c, rows * sizeof *t[i].p_rows, 0);
            t[i].ds_rows = check_alloc(c, rows * sizeof *t[i].ds_rows, 0);
            t[i].ds_pairs = check_alloc(c, pairs * padded * sizeof *t[i].ds_pairs, 0);
        }
        reference(&t[0]);
        candidate(&t[1]);
        float *unit = row(c, 2 * pairs * padded);
        fill(unit, 2 * pairs * padded, 4);
        check_near(c, "p", t[0].p_rows, t[1].p_rows, rows, unit);
        check_near(c, "dS", t[0].ds_rows, t[1].ds_rows, rows, unit);
        check_near(c, "pairs of dS", (const uint16_t *)t[0].ds_pairs, (const uint16_t *)t[1].ds_pairs,
                   2 * pairs * padded, unit);
    }
}
