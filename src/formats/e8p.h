/* formats/e8p: the E8P and E81B codebooks of QuIP# (Tseng et al. 2024, "QuIP#: Even Better LLM Quantization
 * with Hadamard Incoherence and Lattice Codebooks"): tables rebuilt by rule, exact scalar decode and
 * nearest-point encode.
 *
 * An E8P code is 16 bits for 8 weights (2 bpw): high byte = one of 256 absolute patterns, low byte = signs
 * and the ±1/4 coset. 4 x value is an odd integer in [-11, 11]. An E81B code is 8 bits for 8 weights: 2 x
 * value is an integer in
 * [-4, 4]. Bit widths: 2 = [E8P], 3 = [E8P, E81B], 4 = [E8P, E8P], 5..8 continue the pattern. */
#ifndef WALSH_FORMATS_E8P_H
#define WALSH_FORMATS_E8P_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "formats/weights.h"

#define WALSH_E8P_BASE_CRC 0xb1a1a044u /* crc32 of the 256 packed u32 rows, little-endian */
#define WALSH_E8P_GRID_CRC 0x8321b488u /* crc32 of f32-LE [65536][8] */
#define WALSH_E81B_CRC 0xba263438u     /* crc32 of f32-LE [256][8] */

/* Residual scales: stage k quantizes (running residual) x scale into that kind of stage. */
#define WALSH_E8P_RESIDUAL_SCALE 3.45f
#define WALSH_E81B_RESIDUAL_SCALE 2.04f

#define WALSH_E8P_PATTERNS 6561 /* 3^8 */

/* All tables; constant after walsh_e8p_tables() built them once (thread-safe). */
struct walsh_e8p_tables {
    uint32_t packed[256];      /* nibble i = 2v+8 of coordinate P[i] */
    uint8_t magnitude[256][8]; /* |v| - 1/2 in {0, 1, 2} for rows 0..255 (values .5, 1.5, 2.5) */
    uint8_t odd[256];          /* 1 where the row's sum is odd: coordinate 7 is negated */
    int8_t e81b_x2[256][8];    /* 2 x value */
    /* For the encoders, indexed by base-3 numbers whose most significant digit is coordinate 0; the three
     * bytes behind let a 32-bit gather read the last entry. */
    uint8_t row_of_magnitude[WALSH_E8P_PATTERNS + 3]; /* digits = magnitude; 0 where there is no such row */
    uint8_t e81b_of_integer[WALSH_E8P_PATTERNS +
                            3];   /* digits = 1 + value, integer vectors of squared norm <= 2 */
    uint32_t magnitude_bits[256]; /* magnitude of coordinate i at bits 2i */
    uint32_t last29[29];          /* rows 227..: bit i set where coordinate i is .5 */
};
const struct walsh_e8p_tables *walsh_e8p_tables(void);

/* x4[8] = 4 x the weights of an E8P code; exact. */
void walsh_e8p_decode_x4(uint16_t code, int8_t x4[8]);
void walsh_e8p_decode(uint16_t code, float w[8]);
void walsh_e81b_decode(uint8_t code, float w[8]);

/* Nearest code in Euclidean distance; ties go to the smaller code. `w` receives the decoded values (may be
 * NULL).
 *
 * So that every implementation finds the same code whatever its order of arithmetic, x is first rounded to
 * multiples of 2^-21 (to nearest even), where every distance is exact in double and in 32-bit integers. A
 * vector with an element beyond +-16 is not rounded and its distances are those of double arithmetic; NaN
 * counts as 0, +-Inf as +-FLT_MAX. */
#define WALSH_E8P_GRID_BITS 21
#define WALSH_E8P_GRID_LIMIT 16.0f
uint16_t walsh_e8p_encode(const float x[8], float w[8]);
uint8_t walsh_e81b_encode(const float x[8], float w[8]);

/* The stages of a bit width 2..8: count, kinds, residual scale into each stage (1 for the first), and
 * cumulative inverse (decode = sum dec_k x cumulative_inverse[k]). */
struct walsh_e8p_plan {
    unsigned stages;
    enum walsh_stage_kind kind[WALSH_MAX_STAGES];
    float residual_scale[WALSH_MAX_STAGES];
    float cumulative_inverse[WALSH_MAX_STAGES];
};
/* bits outside 2..8: WALSH_E_ARGUMENT, naming the range. */
enum walsh_status walsh_e8p_plan_bits(unsigned bits, struct walsh_e8p_plan *out, struct walsh_error *err);

#endif
