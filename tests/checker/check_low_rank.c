/* Cases of the low-rank kernels: every common rank and odd ones, tails in every dimension, pieces, and a
 * row's bits alone and in a batch. */
#include <math.h>
#include <string.h>

#include "checker.h"

static const enum walsh_format formats[] = {WALSH_FORMAT_F32, WALSH_FORMAT_BF16};
static const size_t batch[] = {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 26};

static size_t element_bytes(enum walsh_format format)
{
    return format == WALSH_FORMAT_F32 ? 4 : 2;
}

/* A zeroed matrix of `size` elements that ends at a guard. */
static void *matrix(struct check *c, enum walsh_format format, size_t size)
{
    void *m = check_alloc(c, size * element_bytes(format), 0);
    memset(m, 0, size * element_bytes(format));
    return m;
}

static float *floats(struct check *c, size_t n)
{
    return check_alloc(c, n * sizeof(float), check_misalign(c, sizeof(float)));
}

/* Normal numbers, of which one is NaN or Inf in the last round. */
static float *numbers(struct check *c, size_t n)
{
    float *x = floats(c, n);
    check_fill_normal(c, x, n);
    if (c->round == CHECK_ROUNDS - 1) x[check_below(c, n)] = check_below(c, 2) ? NAN : INFINITY;
    return x;
}

static size_t next_batch(struct check *c, size_t n)
{
    return batch[(n + c->round * 5) % (sizeof batch / sizeof batch[0])];
}

static void check_down(struct check *c, walsh_kernel_low_rank_down *reference,
                       walsh_kernel_low_rank_down *candidate, enum walsh_format format, size_t cols,
                       size_t rows)
{
    const size_t n = rows * WALSH_LOW_RANK_CHUNK, ranks = 1 + check_below(c, WALSH_LOW_RANK_CHUNK);
    void *a = matrix(c, format, walsh_low_rank_a_size(ranks, cols));
    void *absolute = matrix(c, WALSH_FORMAT_F32, walsh_low_rank_a_size(ranks, cols));
    for (size_t j = 0; j < ranks; j++)
        for (size_t k = 0; k < cols; k++) {
            const size_t at = walsh_low_rank_a_at(format, cols, j, k);
            walsh_low_rank_put(format, a, at, check_normal(c));
            walsh_low_rank_put(WALSH_FORMAT_F32, absolute, walsh_low_rank_a_at(WALSH_FORMAT_F32, cols, j, k),
                               fabsf(walsh_low_rank_get(format, a, at)));
        }
    /* rows of x end where they must: the last at a guard, the others before numbers that are not theirs */
    const size_t ldx = cols + check_below(c, 9), ldh = WALSH_LOW_RANK_CHUNK + 8 * check_below(c, 3);
    float *x = numbers(c, (rows - 1) * ldx + cols), *positive = floats(c, (rows - 1) * ldx + cols);
    for (size_t i = 0; i < (rows - 1) * ldx + cols; i++) positive[i] = fabsf(x[i]);
    float *expected = floats(c, n), *got = floats(c, n), *magnitude = floats(c, n);
    struct walsh_low_rank_down_part p = {.format = format,
                                         .a = a,
                                         .cols = cols,
                                         .end = cols,
                                         .x = x,
                                         .ldx = ldx,
                                         .rows = rows,
                                         .h = expected,
                                         .ldh = WALSH_LOW_RANK_CHUNK};
    reference(&p);
    p.h = got;
    candidate(&p);
    struct walsh_low_rank_down_part m = p;
    m.format = WALSH_FORMAT_F32;
    m.a = absolute;
    m.x = positive;
    m.h = magnitude;
    walsh_low_rank_down_reference(&m);
    check_close_f32(c, "h", expected, got, magnitude, n, 4);

    /* block by block, in wider rows: the sums of the blocks are the sum */
    float *wide = floats(c, rows * ldh), *sum = floats(c, n),
          *untouched = check_alloc(c, ldh * sizeof(float), 0);
    p.h = wide;
    p.ldh = ldh;
    for (p.begin = 0; p.begin < cols; p.begin += WALSH_LOW_RANK_BLOCK) {
        p.end = p.begin + WALSH_LOW_RANK_BLOCK < cols ? p.begin + WALSH_LOW_RANK_BLOCK : cols;
        candidate(&p);
        for (size_t i = 0; i < n; i++) {
            const float h = wide[i / WALSH_LOW_RANK_CHUNK * ldh + i % WALSH_LOW_RANK_CHUNK];
            sum[i] = p.begin == 0 ? h : sum[i] + h;
        }
    }
    if (candidate != walsh_low_rank_down_reference) check_exact_f32(c, "h in blocks", got, sum, n);
    for (size_t i = 0; i + 1 < rows; i++)
        check_exact_bytes(c, "the gap between rows of h", untouched, wide + i * ldh + WALSH_LOW_RANK_CHUNK,
                          (ldh - WALSH_LOW_RANK_CHUNK) * sizeof(float));

    const size_t i = check_below(c, rows);
    float alone[WALSH_LOW_RANK_CHUNK];
    p = (struct walsh_low_rank_down_part){.format = format,
                                          .a = a,
                                          .cols = cols,
                                          .end = cols,
                                          .x = x + i * ldx,
                                          .ldx = ldx,
                                          .rows = 1,
                                          .h = alone};
    candidate(&p);
    check_exact_f32(c, "h of a row alone", got + i * WALSH_LOW_RANK_CHUNK, alone, WALSH_LOW_RANK_CHUNK);
}

void check_low_rank_down(struct check *c, walsh_kernel_low_rank_down *reference,
                         walsh_kernel_low_rank_down *candidate)
{
    static const size_t cols[] = {1,   15,  16,   17,   31,   32,   47,   64,
                                  100, 576, 1023, 1024, 1025, 1056, 2200, 3072};
    for (size_t f = 0; f < 2; f++)
        for (size_t n = 0; n < sizeof cols / sizeof cols[0]; n++)
            check_down(c, reference, candidate, formats[f], cols[n], next_batch(c, n));
}

static void check_up(struct check *c, walsh_kernel_low_rank_up *reference,
                     walsh_kernel_low_rank_up *candidate, enum walsh_format format, size_t rank, size_t outs,
                     size_t rows)
{
    void *b = matrix(c, format, walsh_low_rank_b_size(format, rank, outs));
    for (size_t o = 0; o < outs; o++)
        for (size_t j = 0; j < rank; j++)
            walsh_low_rank_put(format, b, walsh_low_rank_b_at(format, rank, o, j), check_normal(c));
    const size_t ldh = rank + check_below(c, 9), ldy = outs + check_below(c, 9), n = rows * ldy;
    float *h = numbers(c, (rows - 1) * ldh + rank), *y = floats(c, n);
    check_fill_normal(c, y, n);
    float *expected = floats(c, n), *got = floats(c, n), *magnitude = floats(c, n), *pieces = floats(c, n);
    memcpy(expected, y, n * sizeof *y);
    memcpy(got, y, n * sizeof *y);
    memcpy(pieces, y, n * sizeof *y);
    struct walsh_low_rank_up_part p = {.format = format,
                                       .b = b,
                                       .rank = rank,
                                       .end = outs,
                                       .scale = check_normal(c),
                                       .h = h,
                                       .ldh = ldh,
                                       .rows = rows,
                                       .y = expected,
                                       .ldy = ldy};
    reference(&p);
    p.y = got;
    candidate(&p);
    for (size_t i = 0; i < rows; i++)
        for (size_t o = 0; o < ldy; o++) {
            double m = fabs((double)y[i * ldy + o]);
            for (size_t j = 0; o < outs && j < rank; j++)
                m += fabs((double)p.scale * (double)h[i * ldh + j] *
                          (double)walsh_low_rank_get(format, b, walsh_low_rank_b_at(format, rank, o, j)));
            magnitude[i * ldy + o] = (float)m;
        }
    check_close_f32(c, "y", expected, got, magnitude, n, 4);

    /* in two pieces: the same bits, and nothing written between the rows or behind the outputs */
    p.y = pieces;
    p.begin = check_below(c, outs / WALSH_LOW_RANK_PANEL + 1) * WALSH_LOW_RANK_PANEL;
    if (p.begin < outs) candidate(&p);
    p.end = p.begin;
    p.begin = 0;
    if (p.end > 0) candidate(&p);
    check_exact_f32(c, "y in pieces", got, pieces, n);
    for (size_t i = 0; i < rows; i++)
        check_exact_f32(c, "the gap between rows of y", y + i * ldy + outs, got + i * ldy + outs, ldy - outs);

    const size_t i = check_below(c, rows);
    float *alone = floats(c, outs);
    memcpy(alone, y + i * ldy, outs * sizeof *y);
    p = (struct walsh_low_rank_up_part){.format = format,
                                        .b = b,
                                        .rank = rank,
                                        .end = outs,
                                        .scale = p.scale,
                                        .h = h + i * ldh,
                                        .ldh = ldh,
                                        .rows = 1,
                                        .y = alone,
                                        .ldy = ldy};
    candidate(&p);
    check_exact_f32(c, "y of a row alone", got + i * ldy, alone, outs);
}

static void check_ups(struct check *c, walsh_kernel_low_rank_up *reference,
                      walsh_kernel_low_rank_up *candidate)
{
    static const size_t ranks[] = {1, 2, 3, 8, 15, 16, 17, 32, 33, 64, 100, 256};
    static const size_t outs[] = {1, 16, 17, 31, 48, 64, 70, 128, 208};
    for (size_t f = 0; f < 2; f++)
        for (size_t n = 0; n < sizeof ranks / sizeof ranks[0]; n++)
            check_up(c, reference, candidate, formats[f], ranks[n],
                     outs[(n + c->round * 2) % (sizeof outs / sizeof outs[0])], next_batch(c, n));
}

void check_low_rank_up(struct check *c, walsh_kernel_low_rank_up *reference,
                       walsh_kernel_low_rank_up *candidate)
{
    check_ups(c, reference, candidate);
}

void check_low_rank_up_prefill(struct check *c, walsh_kernel_low_rank_up_prefill *reference,
                               walsh_kernel_low_rank_up_prefill *candidate)
{
    check_ups(c, reference, candidate);
}

/* All chunks at once: h of each, of a row alone, and nothing behind the chunks. */
static void check_down_prefill(struct check *c, walsh_kernel_low_rank_down_prefill *reference,
                               walsh_kernel_low_rank_down_prefill *candidate, enum walsh_format format,
                               size_t rank, size_t cols, size_t rows)
{
    const size_t chunks = walsh_div_up(rank, WALSH_LOW_RANK_CHUNK), padded = chunks * WALSH_LOW_RANK_CHUNK;
    void *a = matrix(c, format, walsh_low_rank_a_size(rank, cols));
    void *absolute = matrix(c, WALSH_FORMAT_F32, walsh_low_rank_a_size(rank, cols));
    for (size_t j = 0; j < rank; j++)
        for (size_t k = 0; k < cols; k++) {
            const size_t at = walsh_low_rank_a_at(format, cols, j, k);
            walsh_low_rank_put(format, a, at, check_normal(c));
            walsh_low_rank_put(WALSH_FORMAT_F32, absolute, walsh_low_rank_a_at(WALSH_FORMAT_F32, cols, j, k),
                               fabsf(walsh_low_rank_get(format, a, at)));
        }
    const size_t ldx = cols + check_below(c, 9), ldh = padded + check_below(c, 9), n = rows * ldh;
    float *x = numbers(c, (rows - 1) * ldx + cols), *positive = floats(c, (rows - 1) * ldx + cols);
    for (size_t i = 0; i < (rows - 1) * ldx + cols; i++) positive[i] = fabsf(x[i]);
    float *expected = floats(c, n), *got = floats(c, n), *magnitude = floats(c, n);
    memset(expected, 0, n * sizeof *expected);
    memset(got, 0, n * sizeof *got);
    memset(magnitude, 0, n * sizeof *magnitude);
    struct walsh_low_rank_down_part p = {.format = format,
                                         .a = a,
                                         .cols = cols,
                                         .end = cols,
                                         .x = x,
                                         .ldx = ldx,
                                         .rows = rows,
                                         .h = expected,
                                         .ldh = ldh,
                                         .chunks = chunks};
    reference(&p);
    p.h = got;
    candidate(&p);
    struct walsh_low_rank_down_part m = p;
    m.format = WALSH_FORMAT_F32;
    m.a = absolute;
    m.x = positive;
    m.h = magnitude;
    walsh_low_rank_down_prefill_reference(&m);
    check_close_f32(c, "h", expected, got, magnitude, n, 4);

    const size_t i = check_below(c, rows);
    float *alone = floats(c, padded);
    p.x = x + i * ldx;
    p.rows = 1;
    p.h = alone;
    p.ldh = padded;
    candidate(&p);
    check_exact_f32(c, "h of a row alone", got + i * ldh, alone, padded);
}

void check_low_rank_down_prefill(struct check *c, walsh_kernel_low_rank_down_prefill *reference,
                                 walsh_kernel_low_rank_down_prefill *candidate)
{
    static const size_t cols[] = {1, 16, 31, 32, 47, 64, 100, 576, 1024, 1056, 2200};
    static const size_t ranks[] = {1, 8, 9, 16, 17, 24, 32, 40};
    for (size_t f = 0; f < 2; f++)
        for (size_t n = 0; n < sizeof cols / sizeof cols[0]; n++)
            check_down_prefill(c, reference, candidate, formats[f],
                               ranks[(n + c->round * 3) % (sizeof ranks / sizeof ranks[0])], cols[n],
                               n % 3 == 0 ? 33 + 16 * (n % 2) : next_batch(c, n));
}
