/* Sizes of prepared activations. */
#include "base/memory.h"
#include "kernels/kernels.h"

#define STRIDE_ELEMENTS 256
/* Rows so far apart, of any type, would share few sets of an L1 of 4 KB ways. */
#define SET_ELEMENTS 1024

size_t walsh_activations_stride(size_t cols)
{
    const size_t stride = walsh_round_up(cols, STRIDE_ELEMENTS);
    return stride % SET_ELEMENTS == 0 ? stride + STRIDE_ELEMENTS : stride;
}

size_t walsh_activation_size(enum walsh_activation_type type)
{
    return type == WALSH_ACTIVATION_F32 ? 4 : type == WALSH_ACTIVATION_BF16 ? 2 : 1;
}

size_t walsh_activation_scales(enum walsh_activation_type type, size_t stride)
{
    return type == WALSH_ACTIVATION_INT8_GROUPS ? stride / WALSH_ACTIVATION_GROUP
           : type == WALSH_ACTIVATION_INT8      ? 1
                                                : 0;
}

size_t walsh_activation_sums(enum walsh_activation_type type, size_t stride)
{
    return type == WALSH_ACTIVATION_INT8_GROUPS ? stride / WALSH_ACTIVATION_SUM
           : type == WALSH_ACTIVATION_INT8      ? 1
                                                : 0;
}

struct walsh_activations walsh_activation_rows(const struct walsh_activations *a, size_t first, size_t rows)
{
    struct walsh_activations part = *a;
    part.rows = rows;
    part.data = (uint8_t *)a->data + first * a->stride * walsh_activation_size(a->type);
    if (part.scale) part.scale += first * walsh_activation_scales(a->type, a->stride);
    if (part.sum) part.sum += first * walsh_activation_sums(a->type, a->stride);
    return part;
}
