/* The rotation's kernels, as rotation/ defines them. */
#include <string.h>

#include "kernels/table.h"

void walsh_hadamard_f32_reference(float *x, size_t n)
{
    walsh_hadamard(x, n);
}

void walsh_rotate_forward_f32_reference(float *y, const float *x, const float *signs, size_t size, size_t n)
{
    for (size_t i = 0; i < size; i++) y[i] = signs[i] * x[i];
    memset(y + size, 0, (n - size) * sizeof *y);
    walsh_hadamard(y, n);
}

void walsh_rotate_inverse_f32_reference(float *y, float *z, const float *signs, size_t size, size_t n)
{
    walsh_hadamard(z, n);
    for (size_t i = 0; i < size; i++) y[i] = signs[i] * z[i];
}

float walsh_rotate_i8_reference(int8_t *q, int32_t *sum, float *y, const float *x, const float *weight,
                                float factor, const struct walsh_rotation *r)
{
    for (size_t i = 0; i < r->size; i++)
        y[i] = r->signs[i] * (weight == NULL ? x[i] : x[i] * factor * weight[i]);
    memset(y + r->size, 0, (r->blocks.padded - r->size) * sizeof *y);
    for (size_t at = 0, b = 0; b < r->blocks.count; at += walsh_block_size(&r->blocks, (uint32_t)b), b++)
        walsh_hadamard(y + at, walsh_block_size(&r->blocks, (uint32_t)b));
    return walsh_quantize_i8_reference(q, sum, y, r->blocks.padded);
}
