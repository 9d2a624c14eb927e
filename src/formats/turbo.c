#include "formats/turbo.h"

#include <math.h>
#include <string.h>

#include "base/memory.h"
#include "base/scalar.h"

#define SMALLEST_NORM 1e-6f
#define LARGEST_F16 65504.0f
#define QUIET_NAN_F16 0x7e00

enum walsh_status walsh_turbo_codec_open(const struct walsh_turbo_options *options,
                                         struct walsh_turbo_codec **out, struct walsh_error *err)
{
    *out = NULL;
    const uint32_t dim = options->dim;
    struct walsh_turbo_codec codec = {.norm_correction = !options->no_correction};
    WALSH_TRY(walsh_turbo_codebook_build(dim, options->bits, &codec.book, err));
    /* One block: the codec, then its signs. */
    const size_t head = walsh_round_up(sizeof codec, WALSH_ALIGNMENT);
    uint8_t *block;
    WALSH_TRY(walsh_alloc(head + 2 * dim * sizeof(float), 1, "a codec of the KV cache", &block, err));
    float *signs = (float *)(void *)(block + head);
    walsh_random_signs(options->seed, options->stream, signs, 2 * dim);
    if (options->no_rotation)
        codec.rotation = (struct walsh_rotation){
            .kind = WALSH_ROTATION_NONE, .size = dim, .blocks = {.padded = dim}, .signs = signs};
    else
        WALSH_TRY(walsh_rotation_overlap(dim, signs, &codec.rotation, err)); /* dim was checked */
    *out = (struct walsh_turbo_codec *)(void *)block;
    **out = codec;
    return WALSH_OK;
}

void walsh_turbo_codec_close(struct walsh_turbo_codec **codec)
{
    if (!codec) return;
    walsh_free(*codec);
    *codec = NULL;
}

/* <a, b> as turbo.h fixes it: sixteen sums, folded by halves. */
static float dot(const float *a, const float *b, uint32_t dim)
{
    float s[16] = {0};
    for (uint32_t i = 0; i < dim; i += 16)
        for (uint32_t l = 0; l < 16; l++) s[l] += a[i + l] * b[i + l];
    for (uint32_t width = 8; width > 0; width /= 2)
        for (uint32_t l = 0; l < width; l++) s[l] += s[l + width];
    return s[0];
}

/* codes[dim] of y * stretch; how well they point the way of y: <y, value> / |value|. */
static float find_codes(const struct walsh_turbo_codebook *book, const float *y, float stretch,
                        uint8_t *codes)
{
    float value[WALSH_TURBO_MAX_DIM];
    for (uint32_t i = 0; i < book->dim; i++) {
        const float v = y[i] * stretch;
        uint32_t node = 1;
        while (node < book->levels) node = 2 * node + (book->tree[node] < v);
        codes[i] = (uint8_t)(node - book->levels);
        value[i] = (float)book->value[codes[i]];
    }
    return dot(y, value, book->dim) / sqrtf(dot(value, value, book->dim));
}

uint16_t walsh_turbo_norm(const struct walsh_turbo_codec *codec, float g, const uint8_t *codes,
                          bool *saturated)
{
    if (codec->norm_correction) {
        const struct walsh_turbo_codebook *book = &codec->book;
        uint64_t squares = 0; /* at most 1024 * 4095^2 */
        for (uint32_t i = 0; i < book->dim; i++) {
            int32_t value = book->value[codes[i]];
            squares += (uint32_t)(value * value);
        }
        g /= book->scale * sqrtf((float)squares);
    }
    *saturated = g > LARGEST_F16;
    if (isnan(g)) return QUIET_NAN_F16;
    return walsh_f16_from_f32(*saturated ? LARGEST_F16 : g);
}

bool walsh_turbo_encode(const struct walsh_turbo_codec *codec, const float *x, uint8_t *codes, uint16_t *norm)
{
    const struct walsh_turbo_codebook *book = &codec->book;
    float u[WALSH_TURBO_MAX_DIM], y[WALSH_TURBO_MAX_DIM];
    const float g = sqrtf(dot(x, x, book->dim)), inverse = 1.0f / (g > SMALLEST_NORM ? g : SMALLEST_NORM);
    for (uint32_t i = 0; i < book->dim; i++) u[i] = x[i] * inverse;
    walsh_rotate_forward(&codec->rotation, u, y);
    float best = find_codes(book, y, 1, codes);
    for (unsigned k = 0; k < walsh_turbo_stretches(codec); k++) {
        uint8_t other[WALSH_TURBO_MAX_DIM];
        const float fit = find_codes(book, y, walsh_turbo_stretch[k], other);
        if (!(fit > best)) continue;
        best = fit;
        memcpy(codes, other, book->dim);
    }
    bool saturated;
    *norm = walsh_turbo_norm(codec, g, codes, &saturated);
    return saturated;
}

void walsh_turbo_decode(const struct walsh_turbo_codec *codec, const uint8_t *codes, uint16_t norm, float *x)
{
    const struct walsh_turbo_codebook *book = &codec->book;
    float y[WALSH_TURBO_MAX_DIM], factor = walsh_f32_from_f16(norm) * book->scale;
    for (uint32_t i = 0; i < book->dim; i++) y[i] = factor * (float)book->value[codes[i]];
    walsh_rotate_inverse(&codec->rotation, y, x);
}

void walsh_turbo_pack(const uint8_t *codes, uint32_t dim, unsigned bits, uint16_t norm, uint8_t *packed)
{
    uint32_t pending = 0, held = 0;
    for (uint32_t i = 0; i < dim; i++) {
        pending |= (uint32_t)codes[i] << held;
        for (held += bits; held >= 8; held -= 8) {
            *packed++ = (uint8_t)pending;
            pending >>= 8;
        }
    }
    packed[0] = (uint8_t)norm;
    packed[1] = (uint8_t)(norm >> 8);
}

void walsh_turbo_unpack(const uint8_t *packed, uint32_t dim, unsigned bits, uint8_t *codes, uint16_t *norm)
{
    uint32_t pending = 0, held = 0;
    for (uint32_t i = 0; i < dim; i++) {
        if (held < bits) {
            pending |= (uint32_t)*packed++ << held;
            held += 8;
        }
        codes[i] = (uint8_t)(pending & ((1u << bits) - 1));
        pending >>= bits;
        held -= bits;
    }
    *norm = (uint16_t)(packed[0] | packed[1] << 8);
}

bool walsh_turbo_split_bits(double total, unsigned *key, unsigned *value)
{
    if (!(total >= 1 && total <= WALSH_TURBO_MAX_BITS) || floor(2 * total) != 2 * total) return false;
    *key = (unsigned)floor(total);
    *value = (unsigned)ceil(total);
    return true;
}
