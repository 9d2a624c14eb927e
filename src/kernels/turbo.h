/* kernels/turbo: what the microkernels of packed keys and values compute, on one head's part of a page
 * (formats/turbo_pages.h).
 *
 * A query is rotated once and becomes int16, softmax weights times norms become int16 per span of tokens;
 * levels are integers. So a score and a value sum are exact integer sums and a few float operations in a
 * fixed order, and every implementation gives the same bits. Together the roundings to int16 stay below 1e-4
 * of the result. */
#ifndef WALSH_KERNELS_TURBO_H
#define WALSH_KERNELS_TURBO_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "formats/turbo.h"
#include "formats/turbo_pages.h"

/* The codecs of a cache, for a struct walsh_kv_view; shared by all its layers.
 *
 * With Prod keys `key` is prod->codec, of one bit less, and a head of a key page holds a second part behind
 * the first, laid out alike: codes of one bit, the signs of the projection, and f16 norms times |r|. */
struct walsh_turbo_codecs {
    const struct walsh_turbo_codec *key, *value;
    const struct walsh_turbo_prod *prod;      /* NULL: keys by the MSE codec */
    const struct walsh_turbo_codebook *signs; /* with prod: of one bit */
    atomic_uint_fast64_t saturated;           /* norms stored as 65504 because they were larger */
};

/* Bytes of a head of one side in a page. */
static inline size_t walsh_turbo_page_head_bytes(const struct walsh_turbo_codecs *codecs,
                                                 enum walsh_turbo_side side, uint32_t page_tokens)
{
    const struct walsh_turbo_codebook *book = &(side == WALSH_TURBO_KEY ? codecs->key : codecs->value)->book;
    const size_t bytes = walsh_turbo_head_bytes(book->dim, book->bits, page_tokens);
    return side == WALSH_TURBO_KEY && codecs->prod ? bytes + walsh_turbo_head_bytes(book->dim, 1, page_tokens)
                                                   : bytes;
}

/* Sums in integers are cut so that each is within int32. A dot product of int16 queries and levels is taken
 * in segments of so many elements: who makes the query keeps the length of each segment below 2^31 /
 * (sqrt(elements) * limit). */
static inline uint32_t walsh_turbo_segment(const struct walsh_turbo_codebook *book)
{
    return book->bits <= 6 ? 256 : book->bits == 7 ? 64 : 32;
}
/* A sum of values in runs of so many tokens: times limit times the largest weight it is below 2^31. */
#define WALSH_TURBO_LARGEST_WEIGHT 32767
static inline uint32_t walsh_turbo_run(const struct walsh_turbo_codebook *book)
{
    return book->bits <= 6 ? 64 : book->bits == 7 ? 32 : 16;
}

/* Keys of `tokens` tokens, a multiple of the span, from a multiple of it on. For each query g and token t,
 * with D_s the sum of query * level over segment s in integers: scores[g * ld + t] = ((float)D_0 + (float)D_1
 * + ...) * factor[g] * norm_t, from the left, each operation rounded to f32. */
struct walsh_turbo_scores {
    const struct walsh_turbo_codebook *book;
    const uint8_t *codes; /* of the first token's block */
    const uint8_t *next;  /* codes that are likely read afterwards, to be fetched ahead; NULL: unknown */
    const uint16_t *norms;
    size_t tokens, group, ld;
    const int16_t *query; /* [group][dim] */
    const float *factor;  /* [group]; carries book->scale */
    float *scores;
};

/* Weights of `tokens` tokens, a multiple of the span. For each span: u_t = weight_t * norm_t (0 where
 * weight_t is 0 or u_t is not finite), m = max |u_t|; scaled[t] = rint(u_t * (32767 / m)), factor = m * unit.
 * factor is NaN where some u_t was not finite; m < 2^-100 gives zeros and factor 0. */
struct walsh_turbo_weights {
    const float *weight;
    const uint16_t *norms;
    size_t tokens;
    float unit; /* book->scale / WALSH_TURBO_LARGEST_WEIGHT */
    int16_t *scaled;
    float *factor; /* [tokens / span] */
};

/* Values of `tokens` tokens, a multiple of the span, from a multiple of it on. For each span s in order and
 * each element j, with D_r the sum of weight * level over the span's run r in integers: out[g][j] +=
 * ((float)D_0 + (float)D_1 + ...) * factor[g * ld_factor + s], from the left, each operation rounded to f32.
 */
struct walsh_turbo_values {
    const struct walsh_turbo_codebook *book;
    const uint8_t *codes; /* of the first element block's first group */
    const uint8_t *next;  /* as for the scores */
    size_t stride;        /* bytes from one block of 16 elements to the next */
    size_t tokens, group, ld, ld_factor;
    const int16_t *weights; /* [group][ld] */
    const float *factor;
    float *out; /* [group][dim] */
};

/* `tokens` tokens of one side, a multiple of the span, from a multiple of it on, in rotated space: level *
 * f_t with f_t = norm_t * book->scale, both products rounded to f32. Keys: out[element][token], values:
 * out[token][element], rows of ld. */
struct walsh_turbo_decoded {
    const struct walsh_turbo_codebook *book;
    enum walsh_turbo_side side;
    const uint8_t *codes; /* keys: of the first token's block; values: of the first block's first group */
    size_t stride;        /* values: bytes from one block of 16 elements to the next */
    const uint16_t *norms;
    size_t tokens, ld;
    float *out;
};

#endif
