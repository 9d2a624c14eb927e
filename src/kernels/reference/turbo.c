/* Packed keys and values as formulas. */
#include <math.h>

#include "base/scalar.h"
#include "kernels/table.h"

size_t walsh_turbo_encode_f32_reference(const struct walsh_turbo_codec *codec, const float *x, size_t ldx,
                                        size_t rows, uint8_t *codes, uint16_t *norms)
{
    size_t saturated = 0;
    for (size_t i = 0; i < rows; i++)
        saturated += walsh_turbo_encode(codec, x + i * ldx, codes + i * codec->book.dim, norms + i);
    return saturated;
}

void walsh_turbo_scores_reference(const struct walsh_turbo_scores *t)
{
    const struct walsh_turbo_codebook *book = t->book;
    const uint32_t dim = book->dim, segment = walsh_turbo_segment(book);
    uint8_t codes[WALSH_TURBO_MAX_DIM];
    for (size_t token = 0; token < t->tokens; token++) {
        walsh_turbo_load_key(dim, book->bits, t->codes, (uint32_t)token, codes);
        for (size_t g = 0; g < t->group; g++) {
            const int16_t *query = t->query + g * dim;
            float sum = 0;
            for (uint32_t begin = 0; begin < dim; begin += segment) {
                int64_t dot = 0;
                for (uint32_t i = begin; i < dim && i < begin + segment; i++)
                    dot += query[i] * book->value[codes[i]];
                sum = begin == 0 ? (float)dot : sum + (float)dot;
            }
            t->scores[g * t->ld + token] = sum * t->factor[g] * walsh_f32_from_f16(t->norms[token]);
        }
    }
}

void walsh_turbo_weights_reference(const struct walsh_turbo_weights *t)
{
    for (size_t span = 0; span < t->tokens / WALSH_TURBO_SPAN; span++) {
        const size_t begin = span * WALSH_TURBO_SPAN;
        float u[WALSH_TURBO_SPAN], most = 0;
        bool finite = true;
        for (size_t i = 0; i < WALSH_TURBO_SPAN; i++) {
            float weight = t->weight[begin + i];
            u[i] = weight == 0 ? 0 : weight * walsh_f32_from_f16(t->norms[begin + i]);
            if (!isfinite(u[i])) {
                finite = false;
                u[i] = 0;
            }
            most = fmaxf(most, fabsf(u[i]));
        }
        float inverse = most < 0x1p-100f ? 0 : WALSH_TURBO_LARGEST_WEIGHT / most;
        for (size_t i = 0; i < WALSH_TURBO_SPAN; i++) t->scaled[begin + i] = (int16_t)lrintf(u[i] * inverse);
        t->factor[span] = !finite ? NAN : most < 0x1p-100f ? 0 : most * t->unit;
    }
}

void walsh_turbo_values_reference(const struct walsh_turbo_values *t)
{
    const struct walsh_turbo_codebook *book = t->book;
    const uint32_t dim = book->dim, run = walsh_turbo_run(book);
    uint8_t codes[WALSH_TURBO_SPAN][WALSH_TURBO_MAX_DIM];
    for (size_t begin = 0; begin < t->tokens; begin += WALSH_TURBO_SPAN) {
        for (size_t i = 0; i < WALSH_TURBO_SPAN; i++)
            walsh_turbo_load_value(dim, book->bits, t->codes, t->stride, (uint32_t)(begin + i), codes[i]);
        for (size_t g = 0; g < t->group; g++)
            for (uint32_t j = 0; j < dim; j++) {
                float total = 0;
                for (size_t from = 0; from < WALSH_TURBO_SPAN; from += run) {
                    int64_t sum = 0;
                    for (size_t i = from; i < from + run; i++)
                        sum += t->weights[g * t->ld + begin + i] * book->value[codes[i][j]];
                    total = from == 0 ? (float)sum : total + (float)sum;
                }
                float *out = t->out + g * dim + j;
                *out = *out + total * t->factor[g * t->ld_factor + begin / WALSH_TURBO_SPAN];
            }
    }
}

void walsh_turbo_decode_f32_reference(const struct walsh_turbo_decoded *t)
{
    const struct walsh_turbo_codebook *book = t->book;
    const bool key = t->side == WALSH_TURBO_KEY;
    uint8_t codes[WALSH_TURBO_MAX_DIM];
    for (size_t token = 0; token < t->tokens; token++) {
        const float factor = walsh_f32_from_f16(t->norms[token]) * book->scale;
        if (key)
            walsh_turbo_load_key(book->dim, book->bits, t->codes, (uint32_t)token, codes);
        else
            walsh_turbo_load_value(book->dim, book->bits, t->codes, t->stride, (uint32_t)token, codes);
        for (uint32_t i = 0; i < book->dim; i++)
            t->out[key ? i * t->ld + token : token * t->ld + i] = (float)book->value[codes[i]] * factor;
    }
}
