/* The Prod codec: an unbiased estimate of inner products at the price of a larger error. */
#include <math.h>
#include <string.h>

#include "base/memory.h"
#include "base/random.h"
#include "base/scalar.h"
#include "formats/turbo.h"

/* Rows orthogonal to those before them (Gram and Schmidt, twice for the rounding), of length sqrt(dim). */
static void orthogonalise(float *p, uint32_t dim)
{
    for (uint32_t row = 0; row < dim; row++) {
        float *x = p + (size_t)row * dim;
        double squares = 0;
        for (uint32_t k = 0; k < 2 * row; k++) {
            const float *y = p + (size_t)(k % row) * dim;
            double dot = 0;
            for (uint32_t i = 0; i < dim; i++) dot += (double)x[i] * (double)y[i];
            for (uint32_t i = 0; i < dim; i++) x[i] -= (float)(dot / dim) * y[i];
        }
        for (uint32_t i = 0; i < dim; i++) squares += (double)x[i] * (double)x[i];
        for (uint32_t i = 0; i < dim; i++) x[i] *= (float)sqrt(dim / squares);
    }
}

enum walsh_status walsh_turbo_prod_open(uint32_t dim, unsigned bits, uint64_t seed, bool orthogonal,
                                        struct walsh_turbo_prod **out, struct walsh_error *err)
{
    *out = NULL;
    if (bits < 2 || bits > WALSH_TURBO_MAX_BITS)
        return walsh_fail(err, WALSH_E_ARGUMENT,
                          "turbo cache: the Prod codec takes 2 to %u bits (one is the projection's), not %u",
                          WALSH_TURBO_MAX_BITS, bits);
    const struct walsh_turbo_options options = {
        .dim = dim, .bits = bits - 1, .seed = seed, .stream = "key", .no_correction = true};
    struct walsh_turbo_codec *codec;
    WALSH_TRY(walsh_turbo_codec_open(&options, &codec, err));
    const size_t head = walsh_round_up(sizeof **out, WALSH_ALIGNMENT);
    uint8_t *block;
    enum walsh_status status =
        walsh_alloc(head + (size_t)dim * dim * sizeof(float), 1, "the Prod codec's projection", &block, err);
    if (status != WALSH_OK) {
        walsh_turbo_codec_close(&codec);
        return status;
    }
    struct walsh_turbo_prod *prod = (struct walsh_turbo_prod *)(void *)block;
    *prod = (struct walsh_turbo_prod){codec, (float *)(void *)(block + head)};
    struct walsh_random random;
    walsh_random_seed(&random, walsh_mix64(seed) + dim);
    for (size_t i = 0; i < (size_t)dim * dim; i++) prod->projection[i] = (float)walsh_random_normal(&random);
    if (orthogonal) orthogonalise(prod->projection, dim);
    *out = prod;
    return WALSH_OK;
}

void walsh_turbo_prod_close(struct walsh_turbo_prod **prod)
{
    if (!prod || !*prod) return;
    walsh_turbo_codec_close(&(*prod)->codec);
    walsh_free(*prod);
    *prod = NULL;
}

/* Row `row` of P times x. */
static double project(const struct walsh_turbo_prod *prod, uint32_t row, const double *x)
{
    const uint32_t dim = prod->codec->book.dim;
    const float *p = prod->projection + (size_t)row * dim;
    double sum = 0;
    for (uint32_t i = 0; i < dim; i++) sum += (double)p[i] * x[i];
    return sum;
}

bool walsh_turbo_prod_encode(const struct walsh_turbo_prod *prod, const float *x, uint8_t *codes,
                             uint8_t *signs, uint16_t *norm, uint16_t *residual)
{
    const struct walsh_turbo_codebook *book = &prod->codec->book;
    bool saturated = walsh_turbo_encode(prod->codec, x, codes, norm);
    double r[WALSH_TURBO_MAX_DIM], g = 0, squares = 0;
    for (uint32_t i = 0; i < book->dim; i++) {
        r[i] = (double)x[i];
        g += r[i] * r[i];
    }
    g = fmax(sqrt(g), 1e-6);
    walsh_rotate_forward_f64(&prod->codec->rotation, r, r);
    for (uint32_t i = 0; i < book->dim; i++) {
        r[i] = r[i] / g - (double)book->scale * book->value[codes[i]];
        squares += r[i] * r[i];
    }
    for (uint32_t i = 0; i < book->dim; i++) signs[i] = project(prod, i, r) > 0;
    *residual = walsh_f16_from_f32((float)sqrt(squares));
    return saturated;
}

void walsh_turbo_prod_project(const struct walsh_turbo_prod *prod, const float *y, float *projected)
{
    const uint32_t dim = prod->codec->book.dim;
    double x[WALSH_TURBO_MAX_DIM];
    for (uint32_t i = 0; i < dim; i++) x[i] = (double)y[i];
    for (uint32_t i = 0; i < dim; i++) projected[i] = (float)project(prod, i, x);
}

void walsh_turbo_prod_add(const struct walsh_turbo_prod *prod, const uint8_t *signs, float length, float *y)
{
    const uint32_t dim = prod->codec->book.dim;
    const float factor = (float)(WALSH_TURBO_PROD_ROOT / dim) * length;
    for (uint32_t row = 0; row < dim; row++) {
        const float *p = prod->projection + (size_t)row * dim, f = signs[row] ? factor : -factor;
        for (uint32_t i = 0; i < dim; i++) y[i] += f * p[i];
    }
}

double walsh_turbo_prod_dot(const struct walsh_turbo_prod *prod, const float *q, const uint8_t *codes,
                            const uint8_t *signs, uint16_t norm, uint16_t residual)
{
    const struct walsh_turbo_codebook *book = &prod->codec->book;
    double y[WALSH_TURBO_MAX_DIM], coarse = 0, fine = 0;
    for (uint32_t i = 0; i < book->dim; i++) y[i] = (double)q[i];
    walsh_rotate_forward_f64(&prod->codec->rotation, y, y);
    for (uint32_t i = 0; i < book->dim; i++) {
        coarse += y[i] * book->value[codes[i]];
        double p = project(prod, i, y);
        fine += signs[i] ? p : -p;
    }
    const double root = WALSH_TURBO_PROD_ROOT;
    return (double)walsh_f32_from_f16(norm) *
           (coarse * (double)book->scale + root / book->dim * (double)walsh_f32_from_f16(residual) * fine);
}
