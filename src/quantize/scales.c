#include "quantize/scales.h"

#include <math.h>
#include <string.h>

#include "base/memory.h"
#include "base/scalar.h"

/* Scales stay within this factor of their geometric mean: a dead channel must not take all the range of f16.
 */
static const double widest = 16;

/* signs[i] *= scale[i] / geometric mean, rounded to f16; the padding keeps the mean, which is 1. */
static void apply(const double *scale, uint32_t size, float *signs)
{
    double sum = 0;
    uint32_t live = 0;
    for (uint32_t i = 0; i < size; i++)
        if (scale[i] > 0) {
            sum += log(scale[i]);
            live++;
        }
    const double mean = live > 0 ? exp(sum / live) : 1;
    for (uint32_t i = 0; i < size; i++) {
        double s = fmin(fmax(scale[i] / mean, 1 / widest), widest);
        signs[i] = walsh_f32_from_f16(walsh_f16_from_f32((float)((double)signs[i] * s)));
    }
}

enum walsh_status walsh_scale_inputs(uint32_t size, const float *const *w, const uint32_t *rows, size_t count,
                                     const float *diagonal, float *signs, struct walsh_error *err)
{
    double *energy = NULL, *column;
    WALSH_TRY(walsh_alloc_zero((size_t)size * 2, sizeof *energy, "column energies", &energy, err));
    column = energy + size;
    for (size_t k = 0; k < count; k++) { /* each linear counts by the shares of its own energy */
        double total = 0;
        memset(column, 0, size * sizeof *column);
        for (size_t i = 0; i < rows[k]; i++)
            for (size_t j = 0; j < size; j++)
                column[j] += (double)w[k][i * size + j] * (double)w[k][i * size + j];
        for (size_t j = 0; j < size; j++) total += column[j];
        for (size_t j = 0; j < size && total > 0; j++) energy[j] += column[j] / total;
    }
    double mean = 0;
    for (size_t j = 0; diagonal && j < size; j++) mean += (double)diagonal[j] / size;
    for (size_t j = 0; j < size; j++) {
        /* the Hessian's damping counts here too */
        double h = diagonal && mean > 0 ? (double)diagonal[j] / mean + 0.01 : 1;
        energy[j] = pow(energy[j] / h, 0.125);
    }
    apply(energy, size, signs);
    walsh_free(energy);
    return WALSH_OK;
}

enum walsh_status walsh_scale_outputs(const struct walsh_rotation *r, const float *w, uint32_t cols,
                                      float *signs, struct walsh_error *err)
{
    /* the two Hadamards of an overlap mix all rows, as one block would */
    const struct walsh_blocks whole = {.count = 1, .block = {r->blocks.padded}},
                              *blocks = r->kind == WALSH_ROTATION_OVERLAP ? &whole : &r->blocks;
    const uint32_t size = r->size;
    double *scale = NULL;
    WALSH_TRY(walsh_alloc(size, sizeof *scale, "row scales", &scale, err));
    for (uint32_t b = 0, begin = 0; b < blocks->count && begin < size;
         begin += walsh_block_size(blocks, b++)) {
        const uint32_t end = (uint32_t)walsh_min(size, (size_t)begin + walsh_block_size(blocks, b));
        double variance = 0; /* of the block's rows once each is divided by the root of its rms */
        for (uint32_t i = begin; i < end; i++) {
            double square = 0;
            for (size_t j = 0; j < cols; j++)
                square += (double)w[i * (size_t)cols + j] * (double)w[i * (size_t)cols + j];
            scale[i] = sqrt(sqrt(square / cols));
            variance += scale[i] * scale[i];
        }
        variance /= walsh_block_size(blocks, b);
        for (uint32_t i = begin; i < end; i++) scale[i] *= sqrt(variance);
    }
    apply(scale, size, signs);
    walsh_free(scale);
    return WALSH_OK;
}
