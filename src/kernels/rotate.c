#include "kernels/rotate.h"

#include "base/memory.h"
#include "kernels/table.h"

/* Padding may be a whole block where it stands for more than the smallest one. */
static size_t present(size_t size, size_t begin, size_t length)
{
    return begin >= size ? 0 : walsh_min(length, size - begin);
}

static void overlap_forward(const struct walsh_kernels *k, const struct walsh_rotation *r, const float *signs,
                            const float *x, float *y)
{
    const size_t size = r->size, n = r->blocks.padded, block = r->blocks.block[0];
    k->rotate_forward_f32(y, x, signs, walsh_min(size, block), block);
    for (size_t i = block; i < size; i++) y[i] = signs[i] * x[i];
    for (size_t i = walsh_max(size, block); i < n; i++) y[i] = 0;
    for (size_t i = 0; i < n; i++) y[i] *= signs[n + i];
    k->hadamard_f32(y + (n - block), block);
}

static void overlap_inverse(const struct walsh_kernels *k, const struct walsh_rotation *r, const float *signs,
                            float *y, float *x)
{
    const size_t size = r->size, n = r->blocks.padded, block = r->blocks.block[0];
    k->hadamard_f32(y + (n - block), block);
    for (size_t i = 0; i < n; i++) y[i] *= signs[n + i];
    k->rotate_inverse_f32(x, y, signs, walsh_min(size, block), block);
    for (size_t i = block; i < size; i++) x[i] = signs[i] * y[i];
}

void walsh_kernels_rotate(const struct walsh_kernels *k, const struct walsh_rotation *r, const float *signs,
                          const float *x, float *y)
{
    if (r->kind == WALSH_ROTATION_OVERLAP) {
        overlap_forward(k, r, signs, x, y);
        return;
    }
    size_t at = 0;
    for (uint32_t b = 0; b < r->blocks.count; at += walsh_block_size(&r->blocks, b++))
        k->rotate_forward_f32(y + at, x + walsh_min(at, r->size), signs + at,
                              present(r->size, at, walsh_block_size(&r->blocks, b)),
                              walsh_block_size(&r->blocks, b));
}

void walsh_kernels_unrotate(const struct walsh_kernels *k, const struct walsh_rotation *r, const float *signs,
                            float *y, float *x)
{
    if (r->kind == WALSH_ROTATION_OVERLAP) {
        overlap_inverse(k, r, signs, y, x);
        return;
    }
    size_t at = 0;
    for (uint32_t b = 0; b < r->blocks.count && at < r->size; at += walsh_block_size(&r->blocks, b++))
        k->rotate_inverse_f32(x + at, y + at, signs + at,
                              present(r->size, at, walsh_block_size(&r->blocks, b)),
                              walsh_block_size(&r->blocks, b));
}
