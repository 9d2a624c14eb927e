/* quantize/scales: the multipliers SU and SV of a rotated linear: random signs times scales, exact in f16.
 *
 * A low-bit code spends the same bits on every weight, so the rotated matrix should have one variance
 * everywhere and its error should fall where it costs least. Scaling input j by d_j (W_j / d_j, H_jj d_j^2)
 * and output i by s_i moves error between channels. With D the error per unit of scale, sum of d_j^2 H_jj
 * times sum of |W_j|^2 / d_j^2 is least at d_j^4 = |W_j|^2 / H_jj (Chee et al. 2023, section B.1); a block
 * Hadamard already shares most of it, and half of that exponent measures best on real models. Outputs weigh
 * equally: s_i^2 = |W_i|, times what gives each rotation block the same variance (a scale per block commutes
 * with its Hadamard). */
#ifndef WALSH_QUANTIZE_SCALES_H
#define WALSH_QUANTIZE_SCALES_H

#include "rotation/rotation.h"

/* Scale the first `size` of `signs` (±1, in and out) of an input shared by `count` linears w[i]
 * [rows[i]][size]; diagonal: of the Hessian [size], NULL for the identity. Errors: memory. */
enum walsh_status walsh_scale_inputs(uint32_t size, const float *const *w, const uint32_t *rows, size_t count,
                                     const float *diagonal, float *signs, struct walsh_error *err);
/* Scale the first `size` of `signs` (±1) of the outputs of w [size][cols], whose rotation is r (signs aside).
 * Errors: memory. */
enum walsh_status walsh_scale_outputs(const struct walsh_rotation *r, const float *w, uint32_t cols,
                                      float *signs, struct walsh_error *err);

#endif
