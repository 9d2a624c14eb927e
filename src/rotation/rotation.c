#include "rotation/rotation.h"

#include <math.h>
#include <string.h>

#include "base/memory.h"
#include "base/random.h"
#include "rotation/overlap.h"

#define MAX_DIMENSION (1u << 24)

static enum walsh_status check_dimension(uint32_t n, uint32_t min_block, struct walsh_error *err)
{
    if (n == 0 || n > MAX_DIMENSION)
        return walsh_fail(err, WALSH_E_ARGUMENT, "a rotation of %u elements: expected 1 to %u", n,
                          MAX_DIMENSION);
    if (min_block == 0 || min_block > MAX_DIMENSION || (min_block & (min_block - 1)) != 0)
        return walsh_fail(err, WALSH_E_ARGUMENT,
                          "smallest Hadamard block %u: expected a power of two up to %u", min_block,
                          MAX_DIMENSION);
    return WALSH_OK;
}

enum walsh_status walsh_blocks_binary(uint32_t n, uint32_t min_block, struct walsh_blocks *out,
                                      struct walsh_error *err)
{
    WALSH_TRY(check_dimension(n, min_block, err));
    memset(out, 0, sizeof *out);
    out->padded = (n + min_block - 1) & ~(min_block - 1);
    for (uint32_t bit = MAX_DIMENSION; bit > 0; bit >>= 1)
        if (out->padded & bit) out->block[out->count++] = bit;
    return WALSH_OK;
}

enum walsh_status walsh_blocks_pow2(uint32_t n, uint32_t min_block, struct walsh_blocks *out,
                                    struct walsh_error *err)
{
    WALSH_TRY(check_dimension(n, min_block, err));
    memset(out, 0, sizeof *out);
    uint32_t block = min_block;
    while (block < n) block <<= 1;
    out->padded = block;
    out->count = 1;
    out->block[0] = block;
    return WALSH_OK;
}

enum walsh_status walsh_blocks_parts(uint32_t n, uint32_t min_block, uint32_t parts, struct walsh_blocks *out,
                                     struct walsh_error *err)
{
    struct walsh_blocks part;
    if (n % parts != 0 || n / parts % min_block != 0)
        return walsh_fail(err, WALSH_E_UNSUPPORTED, "%u elements are not %u parts of a multiple of %u", n,
                          parts, min_block);
    WALSH_TRY(walsh_blocks_binary(n / parts, min_block, &part, err));
    if (part.count * parts > WALSH_MAX_BLOCKS)
        return walsh_fail(err, WALSH_E_UNSUPPORTED,
                          "%u parts of %u elements take %u Hadamard blocks, at most %d", parts, n / parts,
                          part.count * parts, WALSH_MAX_BLOCKS);
    *out = (struct walsh_blocks){.padded = n, .count = part.count * parts};
    for (uint32_t b = 0; b < out->count; b++) out->block[b] = part.block[b % part.count];
    return WALSH_OK;
}

enum walsh_status walsh_blocks_uniform(uint32_t n, uint32_t block, struct walsh_blocks *out,
                                       struct walsh_error *err)
{
    WALSH_TRY(check_dimension(n, block, err));
    if (n % block != 0)
        return walsh_fail(err, WALSH_E_UNSUPPORTED, "%u elements are no multiple of Hadamard blocks of %u", n,
                          block);
    *out = (struct walsh_blocks){.padded = n, .count = n / block, .uniform = block};
    return WALSH_OK;
}

static bool same_blocks(const struct walsh_blocks *a, const struct walsh_blocks *b)
{
    if (a->padded != b->padded || a->count != b->count) return false;
    if (a->uniform && b->uniform) return a->uniform == b->uniform;
    for (uint32_t i = 0; i < a->count; i++)
        if (walsh_block_size(a, i) != walsh_block_size(b, i)) return false;
    return true;
}

bool walsh_rotation_equal(const struct walsh_rotation *a, const struct walsh_rotation *b)
{
    if (a->kind != b->kind || a->size != b->size) return false;
    if (a->kind == WALSH_ROTATION_NONE) return true;
    if (!same_blocks(&a->blocks, &b->blocks)) return false;
    return memcmp(a->signs, b->signs, walsh_rotation_signs(a) * sizeof *a->signs) == 0;
}

void walsh_random_signs(uint64_t seed, const char *name, float *signs, uint32_t n)
{
    /* FNV-1a of the name, mixed with the seed: the stream's key. Each 64 elements take one mixed counter. */
    uint64_t key = 0xcbf29ce484222325u;
    for (const char *c = name; *c; c++) key = (key ^ (uint8_t)*c) * 0x100000001b3u;
    key = walsh_mix64(key ^ walsh_mix64(seed));
    uint64_t bits = 0;
    for (uint32_t i = 0; i < n; i++) {
        if (i % 64 == 0) bits = walsh_mix64(key + i / 64);
        signs[i] = (bits >> (i % 64)) & 1 ? -1.0f : 1.0f;
    }
}

void walsh_hadamard(float *x, size_t n)
{
    for (size_t stride = 1; stride < n; stride *= 2)
        for (size_t base = 0; base < n; base += 2 * stride)
            for (size_t i = base; i < base + stride; i++) {
                float a = x[i], b = x[i + stride];
                x[i] = a + b;
                x[i + stride] = a - b;
            }
    float scale = (float)(1.0 / sqrt((double)n));
    for (size_t i = 0; i < n; i++) x[i] *= scale;
}

/* The butterfly on `width` interleaved vectors of n elements, x[n][width]. */
static void hadamard_wide_f64(double *x, size_t n, size_t width)
{
    for (size_t stride = 1; stride < n; stride *= 2)
        for (size_t base = 0; base < n; base += 2 * stride)
            for (size_t i = base * width; i < (base + stride) * width; i++) {
                double a = x[i], b = x[i + stride * width];
                x[i] = a + b;
                x[i + stride * width] = a - b;
            }
    double scale = 1.0 / sqrt((double)n);
    for (size_t i = 0; i < n * width; i++) x[i] *= scale;
}

void walsh_hadamard_f64(double *x, size_t n)
{
    hadamard_wide_f64(x, n, 1);
}

static void hadamard_blocks(const struct walsh_blocks *blocks, float *y)
{
    for (uint32_t b = 0; b < blocks->count; y += walsh_block_size(blocks, b++))
        walsh_hadamard(y, walsh_block_size(blocks, b));
}

static void hadamard_blocks_f64(const struct walsh_blocks *blocks, double *y, size_t width)
{
    for (uint32_t b = 0; b < blocks->count; y += walsh_block_size(blocks, b++) * width)
        hadamard_wide_f64(y, walsh_block_size(blocks, b), width);
}

void walsh_rotate_forward(const struct walsh_rotation *r, const float *x, float *y)
{
    if (r->kind == WALSH_ROTATION_NONE) {
        memcpy(y, x, r->size * sizeof *y);
        return;
    }
    if (r->kind == WALSH_ROTATION_OVERLAP) {
        walsh_overlap_forward(r, x, y);
        return;
    }
    for (uint32_t i = 0; i < r->size; i++) y[i] = r->signs[i] * x[i];
    memset(y + r->size, 0, (r->blocks.padded - r->size) * sizeof *y);
    hadamard_blocks(&r->blocks, y);
}

void walsh_rotate_inverse(const struct walsh_rotation *r, float *y, float *x)
{
    if (r->kind == WALSH_ROTATION_NONE) {
        if (x != y) memcpy(x, y, r->size * sizeof *x);
        return;
    }
    if (r->kind == WALSH_ROTATION_OVERLAP) {
        walsh_overlap_inverse(r, y, x);
        return;
    }
    hadamard_blocks(&r->blocks, y);
    for (uint32_t i = 0; i < r->size; i++) x[i] = r->signs[i] * y[i];
}

void walsh_rotate_forward_f64(const struct walsh_rotation *r, const double *x, double *y)
{
    if (r->kind == WALSH_ROTATION_NONE) {
        memcpy(y, x, r->size * sizeof *y);
        return;
    }
    if (r->kind == WALSH_ROTATION_OVERLAP) {
        walsh_overlap_forward_f64(r, x, y);
        return;
    }
    for (uint32_t i = 0; i < r->size; i++) y[i] = (double)r->signs[i] * x[i];
    memset(y + r->size, 0, (r->blocks.padded - r->size) * sizeof *y);
    hadamard_blocks_f64(&r->blocks, y, 1);
}

void walsh_rotate_inverse_f64(const struct walsh_rotation *r, double *y, double *x)
{
    if (r->kind == WALSH_ROTATION_NONE) {
        if (x != y) memcpy(x, y, r->size * sizeof *x);
        return;
    }
    if (r->kind == WALSH_ROTATION_OVERLAP) {
        walsh_overlap_inverse_f64(r, y, x);
        return;
    }
    hadamard_blocks_f64(&r->blocks, y, 1);
    for (uint32_t i = 0; i < r->size; i++) x[i] = (double)r->signs[i] * y[i];
}

enum walsh_status walsh_fold_rows(const struct walsh_rotation *r, const float *a, size_t rows, float *out,
                                  struct walsh_error *err)
{
    if (r->kind == WALSH_ROTATION_NONE) {
        memcpy(out, a, rows * r->size * sizeof *out);
        return WALSH_OK;
    }
    double *y = NULL;
    WALSH_TRY(walsh_alloc(r->blocks.padded, sizeof *y, "a row to fold a rotation into", &y, err));
    for (size_t row = 0; row < rows; row++, a += r->blocks.padded, out += r->size) {
        for (uint32_t i = 0; i < r->blocks.padded; i++) y[i] = (double)a[i];
        walsh_rotate_inverse_f64(r, y, y);
        for (uint32_t i = 0; i < r->size; i++) out[i] = (float)y[i];
    }
    walsh_free(y);
    return WALSH_OK;
}

enum walsh_status walsh_fold_columns(const struct walsh_rotation *r, const float *b, size_t cols, float *out,
                                     struct walsh_error *err)
{
    if (r->kind == WALSH_ROTATION_NONE) {
        if (out != b) memcpy(out, b, r->size * cols * sizeof *out);
        return WALSH_OK;
    }
    if (r->kind == WALSH_ROTATION_OVERLAP) return walsh_overlap_fold_columns(r, b, cols, out, err);
    /* Columns go through the butterfly sixteen at a time: a cache line of the source each. */
    enum { WIDTH = 16 };
    const size_t padded = r->blocks.padded;
    double *y = NULL;
    WALSH_TRY(walsh_alloc(padded * WIDTH, sizeof *y, "columns to fold a rotation into", &y, err));
    for (size_t begin = 0; begin < cols; begin += WIDTH) {
        const size_t width = walsh_min(WIDTH, cols - begin);
        for (size_t i = 0; i < r->size; i++)
            for (size_t j = 0; j < width; j++)
                y[i * width + j] = (double)r->signs[i] * (double)b[i * cols + begin + j];
        memset(y + r->size * width, 0, (padded - r->size) * width * sizeof *y);
        hadamard_blocks_f64(&r->blocks, y, width);
        for (size_t i = 0; i < padded; i++)
            for (size_t j = 0; j < width; j++) out[i * cols + begin + j] = (float)y[i * width + j];
    }
    walsh_free(y);
    return WALSH_OK;
}

enum walsh_status walsh_rotate_matrix(const struct walsh_rotation *out_rotation,
                                      const struct walsh_rotation *in_rotation, const float *w, float *wt,
                                      struct walsh_error *err)
{
    const size_t rows = out_rotation->size, cols = in_rotation->size, padded = in_rotation->blocks.padded;
    double *x = NULL;
    WALSH_TRY(walsh_alloc(cols + padded, sizeof *x, "a row to rotate", &x, err));
    double *y = x + cols;
    for (size_t row = 0; row < rows; row++) {
        for (size_t i = 0; i < cols; i++) x[i] = (double)w[row * cols + i];
        walsh_rotate_forward_f64(in_rotation, x, y);
        for (size_t i = 0; i < padded; i++) wt[row * padded + i] = (float)y[i];
    }
    walsh_free(x);
    return walsh_fold_columns(out_rotation, wt, padded, wt, err);
}
