/* Cases of the kernels of packed keys and values. Their results are exact whatever the implementation. */
#include <math.h>
#include <string.h>

#include "base/scalar.h"
#include "checker.h"

static const uint32_t dims[] = {16, 64, 80, 96, 128, 192, 256, 320, 512, 576};
enum { DIMS = sizeof dims / sizeof dims[0] };

static void *bytes(struct check *c, size_t n, size_t element)
{
    return check_alloc(c, n * element, check_misalign(c, element));
}

static void fill_random(struct check *c, void *data, size_t n)
{
    uint8_t *p = data;
    for (size_t i = 0; i < n; i++) p[i] = (uint8_t)(walsh_random_u64(&c->random) >> 24);
}

/* Norms of about 1; in the last round some are NaN, Inf, 0 or tiny. */
static uint16_t *random_norms(struct check *c, size_t n)
{
    static const uint16_t special[] = {0x7e00, 0x7c00, 0x0000, 0x0001, 0x7bff, 0xfc00, 0xbc00};
    uint16_t *norms = bytes(c, n, sizeof *norms);
    for (size_t i = 0; i < n; i++) norms[i] = walsh_f16_from_f32(fabsf(check_normal(c)) + 0.25f);
    for (size_t i = 0; i < n / 9 && c->round == CHECK_ROUNDS - 1; i++)
        norms[check_below(c, n)] = special[check_below(c, sizeof special / sizeof special[0])];
    return norms;
}

static struct walsh_turbo_codec *open_codec(struct check *c, uint32_t dim, unsigned bits)
{
    const struct walsh_turbo_options options = {.dim = dim,
                                                .bits = bits,
                                                .seed = c->round,
                                                .stream = "key",
                                                .no_rotation = bits == 2 && c->round == 1,
                                                .no_correction = c->round == 2};
    struct walsh_turbo_codec *codec;
    struct walsh_error err;
    if (walsh_turbo_codec_open(&options, &codec, &err) != WALSH_OK) check_fail(c, "%s", err.message);
    return codec;
}

void check_turbo_encode_f32(struct check *c, walsh_kernel_turbo_encode_f32 *reference,
                            walsh_kernel_turbo_encode_f32 *candidate)
{
    for (size_t k = 0; k < DIMS; k++)
        for (unsigned bits = 1 + (unsigned)(k + c->round) % 2; bits <= 8; bits += 2) {
            const uint32_t dim = dims[k];
            const size_t rows = 1 + check_below(c, 6), ld = dim + check_below(c, 9);
            struct walsh_turbo_codec *codec = open_codec(c, dim, bits);
            if (!codec) return;
            float *x = bytes(c, (rows - 1) * ld + dim, sizeof *x);
            check_fill_special(c, x, (rows - 1) * ld + dim);
            for (size_t i = 0; i < dim; i++) { /* the first row: of any scale, on midpoints, zero */
                if (c->round == 0) x[i] *= 1e-7f;
                if (c->round == 1) x[i] *= 30000.0f;
                if (c->round == 2 && bits == 3) x[i] = 0;
            }
            uint8_t *expected = bytes(c, rows * dim, 1), *codes = bytes(c, rows * dim, 1);
            uint16_t *norm = bytes(c, rows, 2), *norm2 = bytes(c, rows, 2);
            size_t count = reference(codec, x, ld, rows, expected, norm);
            size_t count2 = candidate(codec, x, ld, rows, codes, norm2);
            check_exact_bytes(c, "codes", expected, codes, rows * dim);
            check_exact_f16(c, "norms", norm, norm2, rows);
            if (count != count2) check_fail(c, "%zu norms saturated, expected %zu", count2, count);
            walsh_turbo_codec_close(&codec);
        }
}

/* Numbers of at most `most` that keep every sum of `count` products with levels within int32. */
static int16_t *random_i16(struct check *c, size_t n, int most)
{
    int16_t *x = bytes(c, n, sizeof *x);
    for (size_t i = 0; i < n; i++) x[i] = (int16_t)((int)check_below(c, (size_t)(2 * most + 1)) - most);
    return x;
}

static float *random_f32(struct check *c, size_t n)
{
    float *x = bytes(c, n, sizeof *x);
    check_fill_normal(c, x, n);
    return x;
}

void check_turbo_scores(struct check *c, walsh_kernel_turbo_scores *reference,
                        walsh_kernel_turbo_scores *candidate)
{
    static struct walsh_turbo_codebook book;
    for (size_t k = 0; k < DIMS; k++)
        for (unsigned bits = 1 + (unsigned)(k + c->round) % 2; bits <= 8; bits += 2) {
            const uint32_t dim = dims[k];
            const size_t group = 1 + check_below(c, 9), tokens = WALSH_TURBO_SPAN * (1 + check_below(c, 3));
            walsh_turbo_codebook_build(dim, bits, &book, NULL);
            const size_t code_bytes = tokens * dim * bits / 8;
            struct walsh_turbo_scores t = {.book = &book, .tokens = tokens, .group = group};
            uint8_t *codes = check_alloc(c, code_bytes, 0);
            fill_random(c, codes, code_bytes);
            t.codes = codes;
            t.norms = random_norms(c, tokens);
            t.query = random_i16(c, group * dim, 8000);
            t.factor = random_f32(c, group);
            t.ld = tokens + check_below(c, 7);
            const size_t n = (group - 1) * t.ld + tokens;
            float *expected = bytes(c, n, sizeof *expected), *got = bytes(c, n, sizeof *got);
            t.scores = expected;
            reference(&t);
            t.scores = got;
            candidate(&t);
            check_exact_f32(c, "scores", expected, got, n);
        }
}

void check_turbo_weights(struct check *c, walsh_kernel_turbo_weights *reference,
                         walsh_kernel_turbo_weights *candidate)
{
    for (size_t part = 0; part < 12; part++) {
        const size_t spans = 1 + check_below(c, 8), tokens = spans * WALSH_TURBO_SPAN;
        float *weight = random_f32(c, tokens), scale = part % 3 == 0 ? 1e-30f : 1;
        for (size_t i = 0; i < tokens; i++) weight[i] = check_below(c, 3) ? fabsf(weight[i]) * scale : 0;
        if (part % 4 == 1) memset(weight, 0, WALSH_TURBO_SPAN * sizeof *weight);
        if (c->round == CHECK_ROUNDS - 1) weight[check_below(c, tokens)] = part % 2 ? NAN : INFINITY;
        struct walsh_turbo_weights t = {
            .weight = weight, .norms = random_norms(c, tokens), .tokens = tokens, .unit = 1.25f / 32767};
        int16_t *expected = bytes(c, tokens, 2), *got = bytes(c, tokens, 2);
        float *factor = bytes(c, spans, 4), *factor2 = bytes(c, spans, 4);
        t.scaled = expected;
        t.factor = factor;
        reference(&t);
        t.scaled = got;
        t.factor = factor2;
        candidate(&t);
        check_exact_bytes(c, "weights", expected, got, tokens * sizeof *got);
        check_exact_f32(c, "factors", factor, factor2, spans);
    }
}

void check_turbo_values(struct check *c, walsh_kernel_turbo_values *reference,
                        walsh_kernel_turbo_values *candidate)
{
    static struct walsh_turbo_codebook book;
    for (size_t k = 0; k < DIMS; k++)
        for (unsigned bits = 1 + (unsigned)(k + c->round) % 2; bits <= 8; bits += 2) {
            const uint32_t dim = dims[k], page_tokens = WALSH_TURBO_SPAN * (uint32_t)(1 + check_below(c, 4));
            const size_t group = 1 + check_below(c, 9),
                         spans = 1 + check_below(c, page_tokens / WALSH_TURBO_SPAN),
                         first = check_below(c, page_tokens / WALSH_TURBO_SPAN - spans + 1);
            walsh_turbo_codebook_build(dim, bits, &book, NULL);
            const size_t code_bytes = walsh_turbo_code_bytes(dim, bits, page_tokens);
            struct walsh_turbo_values t = {.book = &book, .tokens = spans * WALSH_TURBO_SPAN, .group = group};
            uint8_t *codes = check_alloc(c, code_bytes, 0);
            fill_random(c, codes, code_bytes);
            t.codes = codes + first * 2 * bits * 64;
            t.stride = walsh_turbo_value_stride(bits, page_tokens);
            t.ld = t.tokens + check_below(c, 7);
            t.ld_factor = spans + check_below(c, 3);
            t.weights = random_i16(c, (group - 1) * t.ld + t.tokens, WALSH_TURBO_LARGEST_WEIGHT);
            t.factor = random_f32(c, (group - 1) * t.ld_factor + spans);
            float *expected = random_f32(c, group * dim), *got = bytes(c, group * dim, sizeof *got);
            memcpy(got, expected, group * dim * sizeof *got);
            t.out = expected;
            reference(&t);
            t.out = got;
            candidate(&t);
            check_exact_f32(c, "out", expected, got, group * dim);
        }
}

void check_turbo_decode_f32(struct check *c, walsh_kernel_turbo_decode_f32 *reference,
                            walsh_kernel_turbo_decode_f32 *candidate)
{
    static struct walsh_turbo_codebook book;
    for (size_t k = 0; k < DIMS; k++)
        for (unsigned bits = 1 + (unsigned)(k + c->round) % 2; bits <= 8; bits += 2) {
            const bool key = check_below(c, 2);
            const uint32_t dim = dims[k], page_tokens = WALSH_TURBO_SPAN * (uint32_t)(1 + check_below(c, 4));
            const size_t tokens = WALSH_TURBO_SPAN * (1 + check_below(c, page_tokens / WALSH_TURBO_SPAN)),
                         rows = key ? dim : tokens, width = key ? tokens : dim;
            walsh_turbo_codebook_build(dim, bits, &book, NULL);
            const size_t code_bytes = walsh_turbo_code_bytes(dim, bits, page_tokens);
            uint8_t *codes = check_alloc(c, code_bytes, 0);
            fill_random(c, codes, code_bytes);
            struct walsh_turbo_decoded t = {.book = &book,
                                            .side = key ? WALSH_TURBO_KEY : WALSH_TURBO_VALUE,
                                            .codes = codes,
                                            .stride = walsh_turbo_value_stride(bits, page_tokens),
                                            .norms = random_norms(c, tokens),
                                            .tokens = tokens,
                                            .ld = width + check_below(c, 7)};
            const size_t n = (rows - 1) * t.ld + width;
            float *expected = bytes(c, n, sizeof *expected), *got = bytes(c, n, sizeof *got);
            memset(expected, 0x5a, n * sizeof *expected);
            memset(got, 0x5a, n * sizeof *got);
            t.out = expected;
            reference(&t);
            t.out = got;
            candidate(&t);
            check_exact_f32(c, "out", expected, got, n);
        }
}
