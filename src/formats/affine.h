/* formats/affine: int8 and int4 in groups, w = scale * (q - zero): the encoder, whose numbers are those of
 * compressed-tensors. Pure functions. */
#ifndef WALSH_FORMATS_AFFINE_H
#define WALSH_FORMATS_AFFINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct walsh_affine {
    float scale;
    int8_t zero;
};
/* The scale and zero point of values between `least` and `most`, with `bits` 4 or 8 of two's complement:
 *   symmetric   scale = max(|least|, |most|) / ((2^bits - 1) / 2), zero 0
 *   else        scale = (most - least) / (2^bits - 1), zero = rint(-2^(bits-1) - least / scale), where 0 is
 *               counted among the values, so that it is represented exactly
 * bf16_scale: the scale is rounded to bf16 before it is used. A scale of 0 becomes FLT_EPSILON, zero 0. */
struct walsh_affine walsh_affine_scale(float least, float most, unsigned bits, bool symmetric,
                                       bool bf16_scale);
/* q[i] = clamp(rint(x[i] / scale + zero)). */
void walsh_affine_encode(const float *x, size_t n, unsigned bits, const struct walsh_affine *a, int8_t *q);

#endif
