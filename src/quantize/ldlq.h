/* quantize/ldlq: codes for one linear by block LDLQ and coordinate descent. May use model and below.
 *
 * Given W [m][n], the Hessian H = X^T X / tokens of its input and the multipliers SU [m_pad], SV [n_pad] of
 * its rotations, find codes and Wscale so that W^ = Wscale * sum over stages of cumulative inverse *
 * decode(codes) minimises the proxy tr(E H~ E^T),  E = W~ - W^, W~ = H_m diag(1/SU) W diag(1/SV) H_n
 * (zero-padded),  H~ = H_n diag(SV) H diag(SV) H_n. (Chee et al. 2023, "QuIP"; Tseng et al. 2024, "QuIP#".)
 * Then y = SU ∘ H_m (W^ H_n (SV ∘ x)) is near W x. SU and SV are signs, or signs times scales, exact in f16.
 */
#ifndef WALSH_QUANTIZE_LDLQ_H
#define WALSH_QUANTIZE_LDLQ_H

#include <stdbool.h>

#include "base/hooks.h"
#include "formats/e8p.h"
#include "kernels/kernels.h"
#include "rotation/rotation.h"

/* The input side of a linear, shared by those that read the same x with the same SV. */
struct walsh_ldlq_input {
    struct walsh_rotation rotation; /* kind BLOCKS; signs = SV, borrowed */
    uint32_t n;                     /* padded */
    float *hessian;                 /* H~ [n][n], damped, symmetric */
    float *factor;  /* [n][n] unit block lower triangular L with H~ = L D L^T, blocks of 8; NULL: identity */
    float *inverse; /* [n/8][8][8]: inverses of H~'s diagonal blocks */
    float *reciprocal; /* [n]: 1/SV */
    bool identity;     /* no Hessian, or its factorization failed */
};
/* hessian: f32 [size][size] of the unrotated input, or NULL for the identity. It is damped by 1% of its mean
 * diagonal before and after the rotation; where Cholesky fails all the same, 10% more, then the identity,
 * each with a warning that names `name`. Free with walsh_ldlq_input_close. */
enum walsh_status walsh_ldlq_input_open(const struct walsh_queue *q, const struct walsh_rotation *rotation,
                                        const float *hessian, const char *name,
                                        const struct walsh_hooks *hooks, struct walsh_ldlq_input *out,
                                        struct walsh_error *err);
void walsh_ldlq_input_close(struct walsh_ldlq_input *input);

struct walsh_ldlq_options {
    unsigned bits;   /* 2..8 */
    unsigned passes; /* of coordinate descent, at most: a tile of rows that a pass does not change is done */
    bool tune; /* search Wscale and use residual scales that measure better; else Wscale = rms(W~)/1.03 and
                  GLQ's residual scales */
    const struct walsh_queue *device; /* one with walsh_ops.quantize searches the codes; NULL: the CPU does */
};
/* Passes that `--passes` unset means: more gain less than 0.1% of the proxy. */
#define WALSH_LDLQ_PASSES 10

struct walsh_ldlq_result {
    uint32_t m, n; /* padded */
    struct walsh_e8p_plan plan;
    void *codes[WALSH_MAX_STAGES]; /* row-major [m][n/8]: uint16_t (E8P) or uint8_t (E81B); owned */
    float wscale;                  /* 0 where W is */
    float cumulative_inverse[WALSH_MAX_STAGES]; /* [0] is 1 */
    double proxy;                               /* tr(E H~ E^T) / tr(W~ H~ W~^T) */
};
/* Codes of w, f32 [out.size][in.size]. decoded (NULL: not wanted): what walsh_ldlq_decode makes of them; may
 * be w. Bits do not depend on the number of threads. Errors: bits, memory, W that is not finite. */
enum walsh_status walsh_ldlq_quantize(const struct walsh_queue *q, const struct walsh_ldlq_input *input,
                                      const struct walsh_rotation *out_rotation, const float *w,
                                      const struct walsh_ldlq_options *options, struct walsh_ldlq_result *out,
                                      float *decoded, struct walsh_error *err);
/* w [out.size][in.size] = diag(SU) H_m W^ H_n diag(SV), cropped: what the quantized linear computes with. */
enum walsh_status walsh_ldlq_decode(const struct walsh_queue *q, const struct walsh_rotation *in_rotation,
                                    const struct walsh_rotation *out_rotation,
                                    const struct walsh_ldlq_result *result, float *w,
                                    struct walsh_error *err);
void walsh_ldlq_result_close(struct walsh_ldlq_result *result);

#endif
