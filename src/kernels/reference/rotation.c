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
