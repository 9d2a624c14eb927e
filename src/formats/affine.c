#include "formats/affine.h"

#include <float.h>
#include <math.h>

#include "base/scalar.h"

struct walsh_affine walsh_affine_scale(float least, float most, unsigned bits, bool symmetric,
                                       bool bf16_scale)
{
    const float low = -(float)(1 << (bits - 1)), range = (float)((1 << bits) - 1);
    struct walsh_affine a = {0, 0};
    least = fminf(least, 0);
    most = fmaxf(most, 0);
    a.scale = symmetric ? fmaxf(-least, most) / (range / 2) : (most - least) / range;
    if (bf16_scale) a.scale = walsh_f32_from_bf16(walsh_bf16_from_f32(a.scale));
    if (a.scale == 0) {
        a.scale = FLT_EPSILON;
        return a;
    }
    if (!symmetric) a.zero = (int8_t)rintf(fminf(fmaxf(low - least / a.scale, low), low + range));
    return a;
}

void walsh_affine_encode(const float *x, size_t n, unsigned bits, const struct walsh_affine *a, int8_t *q)
{
    const float low = -(float)(1 << (bits - 1)), high = (float)((1 << (bits - 1)) - 1);
    for (size_t i = 0; i < n; i++)
        q[i] = (int8_t)rintf(fminf(fmaxf(x[i] / a->scale + (float)a->zero, low), high));
}
