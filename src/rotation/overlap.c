/* The overlap rotation: two Hadamards of one size, on the first and on the last elements of a dimension that
 * is no power of two. Where blocks would keep the energy of a small block within it, the overlap carries it
 * over. */
#include "rotation/overlap.h"

#include "base/memory.h"

enum walsh_status walsh_rotation_overlap_padded(uint32_t n, uint32_t min_block, const float *signs,
                                                struct walsh_rotation *out, struct walsh_error *err)
{
    struct walsh_blocks binary;
    WALSH_TRY(walsh_blocks_binary(n, min_block, &binary, err));
    *out = (struct walsh_rotation){
        .kind = binary.count == 1 ? WALSH_ROTATION_BLOCKS : WALSH_ROTATION_OVERLAP,
        .size = n,
        .blocks = {.padded = binary.padded, .count = 1, .block = {binary.block[0]}},
        .signs = signs,
    };
    return WALSH_OK;
}

enum walsh_status walsh_rotation_overlap(uint32_t n, const float *signs, struct walsh_rotation *out,
                                         struct walsh_error *err)
{
    return walsh_rotation_overlap_padded(n, 1, signs, out, err);
}

void walsh_overlap_forward(const struct walsh_rotation *r, const float *x, float *y)
{
    const uint32_t n = r->blocks.padded, block = r->blocks.block[0];
    for (uint32_t i = 0; i < r->size; i++) y[i] = r->signs[i] * x[i];
    for (uint32_t i = r->size; i < n; i++) y[i] = 0;
    walsh_hadamard(y, block);
    for (uint32_t i = 0; i < n; i++) y[i] *= r->signs[n + i];
    walsh_hadamard(y + (n - block), block);
}

void walsh_overlap_inverse(const struct walsh_rotation *r, float *y, float *x)
{
    const uint32_t n = r->blocks.padded, block = r->blocks.block[0];
    walsh_hadamard(y + (n - block), block);
    for (uint32_t i = 0; i < n; i++) y[i] *= r->signs[n + i];
    walsh_hadamard(y, block);
    for (uint32_t i = 0; i < r->size; i++) x[i] = r->signs[i] * y[i];
}

void walsh_overlap_forward_f64(const struct walsh_rotation *r, const double *x, double *y)
{
    const uint32_t n = r->blocks.padded, block = r->blocks.block[0];
    for (uint32_t i = 0; i < r->size; i++) y[i] = (double)r->signs[i] * x[i];
    for (uint32_t i = r->size; i < n; i++) y[i] = 0;
    walsh_hadamard_f64(y, block);
    for (uint32_t i = 0; i < n; i++) y[i] *= (double)r->signs[n + i];
    walsh_hadamard_f64(y + (n - block), block);
}

void walsh_overlap_inverse_f64(const struct walsh_rotation *r, double *y, double *x)
{
    const uint32_t n = r->blocks.padded, block = r->blocks.block[0];
    walsh_hadamard_f64(y + (n - block), block);
    for (uint32_t i = 0; i < n; i++) y[i] *= (double)r->signs[n + i];
    walsh_hadamard_f64(y, block);
    for (uint32_t i = 0; i < r->size; i++) x[i] = (double)r->signs[i] * y[i];
}

enum walsh_status walsh_overlap_fold_columns(const struct walsh_rotation *r, const float *b, size_t cols,
                                             float *out, struct walsh_error *err)
{
    const size_t padded = r->blocks.padded;
    double *y = NULL;
    WALSH_TRY(walsh_alloc(padded, sizeof *y, "a column to fold a rotation into", &y, err));
    for (size_t j = 0; j < cols; j++) {
        for (size_t i = 0; i < r->size; i++) y[i] = (double)b[i * cols + j];
        walsh_overlap_forward_f64(r, y, y);
        for (size_t i = 0; i < padded; i++) out[i * cols + j] = (float)y[i];
    }
    walsh_free(y);
    return WALSH_OK;
}
