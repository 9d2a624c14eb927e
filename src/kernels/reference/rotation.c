/* The rotation's kernels, as rotation/ defines them. */
#include "kernels/table.h"

void walsh_hadamard_f32_reference(float *x, size_t n)
{
    walsh_hadamard(x, n);
}
