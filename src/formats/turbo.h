/* formats/turbo: the TurboQuant codec of keys and values (Zandieh et al. 2025, "TurboQuant: Online Vector
 * Quantization with Near-optimal Distortion Rate") under the randomized Hadamard transform. May use base,
 * rotation.
 *
 * A vector x of `dim` elements is stored as its length and one code of `bits` bits per element of the rotated
 * unit vector: g = |x|, y = R x / max(g, 1e-6), code_j = the number of midpoints strictly below y_j, c_j =
 * value[code_j] * scale; x^ = norm * R^-1 c  with  norm = g / |c|  (or g without norm correction). R pads
 * nothing: one Hadamard block, or the overlap rotation where dim is no power of two. The levels are the
 * optimal scalar quantizer of a coordinate of a random unit vector, whose density is (1 - t^2)^((dim - 3)/2):
 * they follow from (dim, bits) alone. They are kept as integers times one scale, so that sums over codes are
 * exact in integers in any order; that costs less than 0.3% of the distortion. The norm is binary16; beyond
 * 65504 it saturates.
 *
 * The arithmetic of an encoder is fixed bit for bit (walsh_turbo_encode), so that every implementation gives
 * the same bytes. */
#ifndef WALSH_FORMATS_TURBO_H
#define WALSH_FORMATS_TURBO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "rotation/rotation.h"

#define WALSH_TURBO_MAX_BITS 8
#define WALSH_TURBO_MAX_LEVELS 256
#define WALSH_TURBO_DIM_STEP 16  /* head dimensions are multiples of this ... */
#define WALSH_TURBO_MAX_DIM 1024 /* ... up to this */

struct walsh_turbo_codebook {
    uint32_t dim, levels;
    unsigned bits;
    int16_t value[WALSH_TURBO_MAX_LEVELS]; /* [levels] ascending, value[levels - 1 - i] == -value[i] */
    int16_t limit;                         /* value[levels - 1], the largest: 1023 to 4095 */
    float scale;
    float midpoint[WALSH_TURBO_MAX_LEVELS]; /* [levels - 1] ascending, between neighbouring levels */
    /* The midpoints in the order of a binary search: node k >= 1 has the children 2k (not above) and 2k + 1
     * (above), and a path of `bits` steps from node 1 ends at node levels + code. */
    float tree[WALSH_TURBO_MAX_LEVELS];
    double optimum[WALSH_TURBO_MAX_LEVELS]; /* [levels] before the rounding to integers */
    double distortion; /* E|x - x^|^2 of a random unit vector by the levels as kept, norm uncorrected */
};
/* The optimum by Newton's method on the conditions of Lloyd and Max (each level the centroid of its cell), to
 * 1e-12 of a standard deviation. Takes about a millisecond. Errors: dim not a multiple of 16 up to 1024, bits
 * not 1..8: WALSH_E_ARGUMENT. */
enum walsh_status walsh_turbo_codebook_build(uint32_t dim, unsigned bits, struct walsh_turbo_codebook *out,
                                             struct walsh_error *err);

struct walsh_turbo_options {
    uint32_t dim;
    unsigned bits;
    uint64_t seed;
    const char *stream; /* names the signs' random stream: "key", "value" */
    bool no_rotation;   /* for measurements */
    bool no_correction; /* store g instead of g/|c|; for measurements and for the Prod codec */
};
/* All that encoding and decoding need. Constant once open; may be shared by threads. */
struct walsh_turbo_codec {
    struct walsh_turbo_codebook book;
    struct walsh_rotation rotation; /* of dim elements; signs owned by the codec */
    bool norm_correction;
};
enum walsh_status walsh_turbo_codec_open(const struct walsh_turbo_options *options,
                                         struct walsh_turbo_codec **out, struct walsh_error *err);
void walsh_turbo_codec_close(struct walsh_turbo_codec **codec);

/* With norm correction only the direction of c counts, so that a vector may be stretched before its elements
 * are rounded: of the codes of y and of y times each of these, those are kept whose <y, c>/|c| is largest,
 * the first where equal. That takes 2, 7 and 15% off the distortion at 2, 3 and 4 bits (dim 64; 1, 4 and 11%
 * of 128), for nothing but time. One bit knows no length. */
static const float walsh_turbo_stretch[] = {0.95f, 1.05f, 0.9f, 1.1f};
static inline unsigned walsh_turbo_stretches(const struct walsh_turbo_codec *codec)
{
    return codec->norm_correction && codec->book.bits > 1
               ? sizeof walsh_turbo_stretch / sizeof *walsh_turbo_stretch
               : 0;
}

/* codes[dim] and *norm (binary16) of x[dim]. True where the norm saturated. Every operation rounded to f32:
 * |x|^2: sixteen sums s_l over x_i^2 with i % 16 == l in the order of i, then s_l += s_(l+8), s_(l+4),
 * s_(l+2), s_(l+1); u = x * (1 / max(sqrt(|x|^2), 1e-6)); y = forward(u) as rotation.h fixes it; <y, c> and
 * |c| for the choice above by the same sums, of the levels' integers as floats: fit = <y, value> /
 * sqrt(|value|^2); |c| of the norm = scale * sqrt((float)sum of value^2). A zero vector has norm 0. NaN in x:
 * norm 0x7e00 and codes 0. Inf, or a length beyond the range of f32: a saturated norm. */
bool walsh_turbo_encode(const struct walsh_turbo_codec *codec, const float *x, uint8_t *codes,
                        uint16_t *norm);
/* The norm to be stored for codes of a vector of length g; *saturated as above. */
uint16_t walsh_turbo_norm(const struct walsh_turbo_codec *codec, float g, const uint8_t *codes,
                          bool *saturated);
/* x[dim] = norm * R^-1 c. */
void walsh_turbo_decode(const struct walsh_turbo_codec *codec, const uint8_t *codes, uint16_t norm, float *x);

/* One vector by itself: dim codes, code i at bits [i * bits, (i + 1) * bits), least significant first, then
 * the norm. (Pages hold the same bits in an order of their own: formats/turbo_pages.h.) */
static inline size_t walsh_turbo_bytes(uint32_t dim, unsigned bits)
{
    return (size_t)dim * bits / 8 + 2;
}
void walsh_turbo_pack(const uint8_t *codes, uint32_t dim, unsigned bits, uint16_t norm, uint8_t *packed);
void walsh_turbo_unpack(const uint8_t *packed, uint32_t dim, unsigned bits, uint8_t *codes, uint16_t *norm);

/* Total bits per element in steps of 1/2: the key takes the floor, the value the ceiling (3.5: 3 and 4).
 * False where `total` is no multiple of 1/2 in [1, 8]. */
bool walsh_turbo_split_bits(double total, unsigned *key, unsigned *value);

/* The Prod codec for keys, experimental: bits - 1 bits of the codec above without norm correction, and the
 * signs of a random projection of what is left. With r = y - c and P a seeded Gaussian matrix [dim][dim]: <q,
 * x> ~ g (<Rq, c> + sqrt(pi/2)/dim |r| <P Rq, sign(P r)>), which is unbiased over P. `orthogonal`: P's rows
 * orthogonalised, of length sqrt(dim) each; a third of the error. */
struct walsh_turbo_prod {
    struct walsh_turbo_codec *codec;
    float *projection; /* [dim][dim] */
};
enum walsh_status walsh_turbo_prod_open(uint32_t dim, unsigned bits, uint64_t seed, bool orthogonal,
                                        struct walsh_turbo_prod **out, struct walsh_error *err);
void walsh_turbo_prod_close(struct walsh_turbo_prod **prod);
static inline size_t walsh_turbo_prod_bytes(uint32_t dim, unsigned bits)
{
    return (size_t)dim * bits / 8 + 4;
}
/* codes[dim], signs[dim] of 0 (negative) or 1, the norm and |r|, both binary16. True where the norm
 * saturated. */
bool walsh_turbo_prod_encode(const struct walsh_turbo_prod *prod, const float *x, uint8_t *codes,
                             uint8_t *signs, uint16_t *norm, uint16_t *residual);
/* projected[dim] = P y of a rotated vector. */
void walsh_turbo_prod_project(const struct walsh_turbo_prod *prod, const float *y, float *projected);
/* y[dim] += sqrt(pi/2)/dim * length * P^T sign: what the signs add to norm * c in rotated space, with length
 * = norm * |r|. */
void walsh_turbo_prod_add(const struct walsh_turbo_prod *prod, const uint8_t *signs, float length, float *y);
#define WALSH_TURBO_PROD_ROOT 1.2533141373155003 /* sqrt(pi/2) */
/* The estimate of <q, x>, in double precision. */
double walsh_turbo_prod_dot(const struct walsh_turbo_prod *prod, const float *q, const uint8_t *codes,
                            const uint8_t *signs, uint16_t norm, uint16_t residual);

#endif
