/* formats/mx: the encoders of the floating-point block formats: MXFP4 and MXFP8 (OCP Microscaling
 * Formats 1.0), NVFP4, and FP8 with a scale per row. Scalar and exact: their bytes are torchao's and, of FP8
 * rows, compressed-tensors'. Inputs are finite; whoever reads weights checks that. Pure functions. */
#ifndef WALSH_FORMATS_MX_H
#define WALSH_FORMATS_MX_H

#include <stddef.h>
#include <stdint.h>

#include "formats/weights.h"

#define WALSH_MX_GROUP 32
#define WALSH_NVFP4_GROUP 16

/* How the power of two that a group is divided by comes from its amax, the largest magnitude. With the
 * largest element M = m 2^e of the code (6, 448, 57344):
 *   FLOOR  2^(floor(log2 amax) - e)
 *   CEIL   2^(ceil(log2 amax) - e)
 *   EVEN   as FLOOR, of amax rounded to the code's mantissa bits (ties away from zero)
 *   RCEIL  2^ceil(log2(amax / M)): the smallest one that saturates nothing */
enum walsh_mx_rounding { WALSH_MX_FLOOR, WALSH_MX_CEIL, WALSH_MX_EVEN, WALSH_MX_RCEIL };

/* Nearest code of E2M1, ties to the even code, saturating at 6; the sign of -0 stays. */
uint8_t walsh_e2m1_from_f32(float f);

/* The E8M0 byte of a group, 0..254. code: E2M1, E4M3 or E5M2. */
uint8_t walsh_mx_scale(float amax, enum walsh_code code, enum walsh_mx_rounding rounding);
/* codes[n] of a group of n values: one code per byte. Returns the scale's byte. */
uint8_t walsh_mx_encode(const float *x, size_t n, enum walsh_code code, enum walsh_mx_rounding rounding,
                        uint8_t *codes);

/* NVFP4: w = code * scale * tensor_scale, with tensor_scale = amax of the tensor / (448 * 6), and
 * scale = E4M3(clamp(amax / 6 / tensor_scale, 2^-6, 448)). A tensor of zeros: 1. */
float walsh_nvfp4_tensor_scale(float amax);
uint8_t walsh_nvfp4_encode(const float *x, size_t n, float tensor_scale, uint8_t *codes);

/* E4M3 codes of a row divided by *scale = amax / 448 (a row of zeros: FLT_EPSILON). */
void walsh_fp8_encode(const float *x, size_t n, uint8_t *codes, float *scale);

#endif
