/* Cases of the block formats' kernels: EXACT, every kind of code, scale and group, tails in every dimension.
 */
#include <math.h>
#include <string.h>

#include "block_data.h"
#include "product_data.h"

typedef void product_kernel(const struct walsh_product_part *);

static const size_t shapes[][2] = {{16, 32},  {1, 1},    {17, 33},   {48, 256}, {35, 161},
                                   {64, 576}, {80, 264}, {33, 1056}, {208, 96}};
#define SHAPES (sizeof shapes / sizeof shapes[0])

static float *outputs(struct check *c, size_t n)
{
    return check_alloc(c, n * sizeof(float), check_misalign(c, sizeof(float)));
}

static void check_shape(struct check *c, product_kernel *reference, product_kernel *candidate,
                        const struct walsh_weights *w, size_t rows)
{
    const struct walsh_activations a = block_activations(c, rows, w->cols);
    const size_t outs = w->rows, ldy = outs + 1 + check_below(c, 20);
    const size_t cut = check_below(c, outs / WALSH_PRODUCT_ROWS + 1) * WALSH_PRODUCT_ROWS;
    void *scratch = check_alloc_private(c, WALSH_PRODUCT_SCRATCH);
    float *expected = outputs(c, rows * outs), *got = outputs(c, rows * outs), *wide = outputs(c, rows * ldy),
          *untouched = check_alloc(c, ldy * sizeof(float), 0), *alone = outputs(c, outs);
    reference(&(struct walsh_product_part){w, &a, 0, outs, expected, outs, scratch, false});
    candidate(&(struct walsh_product_part){w, &a, 0, outs, got, outs, scratch, false});
    check_exact_f32(c, "y", expected, got, rows * outs);
    if (cut < outs) candidate(&(struct walsh_product_part){w, &a, cut, outs, wide, ldy, scratch, false});
    if (cut > 0) candidate(&(struct walsh_product_part){w, &a, 0, cut, wide, ldy, scratch, false});
    for (size_t i = 0; i < rows; i++) {
        check_exact_f32(c, "y in pieces", got + i * outs, wide + i * ldy, outs);
        check_exact_bytes(c, "the gap between rows of y", untouched, wide + i * ldy + outs,
                          (ldy - outs) * sizeof(float));
    }
    const size_t i = check_below(c, rows);
    struct walsh_activations one = a;
    one.rows = 1;
    one.data = (int8_t *)a.data + i * a.stride;
    one.scale = a.scale + i * (a.stride / WALSH_ACTIVATION_GROUP);
    one.sum = a.sum + i * (a.stride / WALSH_ACTIVATION_SUM);
    candidate(&(struct walsh_product_part){w, &one, 0, outs, alone, outs, scratch, false});
    check_exact_f32(c, "y of a row alone", got + i * outs, alone, outs);
}

static void check_product(struct check *c, product_kernel *reference, product_kernel *candidate)
{
    static const size_t batch[] = {1, 2, 3, 4, 5, 7, 8, 9, 13};
    for (size_t k = 0; k < BLOCK_INTEGER_KINDS; k++) {
        for (size_t s = 0; s < SHAPES; s++) {
            const struct walsh_weights w = block_weights(c, &block_kinds[k], shapes[s][0], shapes[s][1]);
            check_shape(c, reference, candidate, &w, batch[(k + s + 5 * c->round) % 9]);
        }
    }
}

void check_product_block_decode(struct check *c, product_kernel *reference, product_kernel *candidate)
{
    check_product(c, reference, candidate);
}

void check_product_block_prefill(struct check *c, product_kernel *reference, product_kernel *candidate)
{
    check_product(c, reference, candidate);
}

/* MXFP4 decoded inside the product: close to the definition, and the very bits of the dense kernel with the
 * decoded matrix. */
static void check_mxfp4(struct check *c, product_kernel *reference, product_kernel *candidate,
                        product_kernel *dense, bool transposed)
{
    static const size_t batch[] = {1, 3, 4, 8, 13, 16};
    void *scratch = check_alloc_private(c, WALSH_PRODUCT_SCRATCH);
    for (size_t s = 0; s < SHAPES; s++) {
        const struct walsh_weights w = block_weights(c, &block_kinds[0], shapes[s][0], shapes[s][1]);
        const size_t inner = transposed ? w.rows : w.cols, outs = transposed ? w.cols : w.rows,
                     rows = batch[(s + c->round) % 6], cut = outs / 2 / 16 * 16;
        const struct walsh_activations a = product_activations(c, WALSH_ACTIVATION_BF16, rows, inner, false),
                                       one = product_row(&a, rows - 1);
        uint16_t *decoded = check_alloc(c, (size_t)w.rows * w.cols * sizeof *decoded, 0);
        walsh_weights_decode_bf16(&w, 0, w.rows, decoded, w.cols);
        const struct walsh_weights plain = {
            .format = WALSH_FORMAT_BF16, .rows = w.rows, .cols = w.cols, .data = decoded};
        float *expected = outputs(c, rows * outs), *got = outputs(c, rows * outs),
              *of_dense = outputs(c, rows * outs),
              *magnitude = check_alloc(c, rows * outs * sizeof(float), 0);
        const struct walsh_weights absolute = product_magnitudes(c, &plain);
        const struct walsh_activations absolute_a = product_absolute(c, &a);
        (transposed ? walsh_product_dense_transposed_reference : walsh_product_dense_prefill_reference)(
            &(struct walsh_product_part){&absolute, &absolute_a, 0, outs, magnitude, outs, scratch, false});
        reference(&(struct walsh_product_part){&w, &a, 0, outs, expected, outs, scratch, false});
        candidate(&(struct walsh_product_part){&w, &a, cut, outs, got, outs, scratch, false});
        if (cut > 0) candidate(&(struct walsh_product_part){&w, &a, 0, cut, got, outs, scratch, false});
        /* Scales span 2^20, so that what follows a large group is rounded in its units, addition by addition.
         * Extreme scales in odd rounds: subnormal weights count as zero in hardware. */
        if (c->round % 2 == 0) check_close_f32(c, "y", expected, got, magnitude, rows * outs, 16);
        dense(&(struct walsh_product_part){&plain, &a, 0, outs, of_dense, outs, scratch, false});
        check_exact_f32(c, "y of the decoded matrix", of_dense, got, rows * outs);
        candidate(&(struct walsh_product_part){&w, &one, 0, outs, of_dense, outs, scratch, false});
        check_exact_f32(c, "y of a row alone", got + (rows - 1) * outs, of_dense, outs);
        /* a row whose products are subnormal, or nearly */
        for (size_t k = 0; k < inner; k++) {
            uint16_t *v = (uint16_t *)one.data + k;
            *v = (uint16_t)((*v & 0x807f) | (8 + (unsigned)check_below(c, 8)) << 7);
        }
        candidate(&(struct walsh_product_part){&w, &one, 0, outs, of_dense, outs, scratch, false});
        dense(&(struct walsh_product_part){&plain, &one, 0, outs, magnitude, outs, scratch, false});
        check_exact_f32(c, "y of a row of tiny numbers", magnitude, of_dense, outs);
        memcpy(of_dense, got, rows * outs * sizeof *got);
        dense(&(struct walsh_product_part){&plain, &a, 0, outs, of_dense, outs, scratch, true});
        candidate(&(struct walsh_product_part){&w, &a, 0, outs, got, outs, scratch, true});
        check_exact_f32(c, "y += of the decoded matrix", of_dense, got, rows * outs);
    }
}

/* The dense kernel that the bits are those of. */
static product_kernel *dense_of(product_kernel *candidate, bool transposed)
{
#if WALSH_X86
    if (candidate == walsh_product_mxfp4_prefill_bf16) return walsh_product_bf16_prefill_bf16;
    if (candidate == walsh_product_mxfp4_transposed_bf16) return walsh_product_bf16_transposed_bf16;
    if (candidate == walsh_product_mxfp4_prefill_amx) return walsh_product_bf16_prefill_amx;
    if (candidate == walsh_product_mxfp4_transposed_amx) return walsh_product_bf16_transposed_amx;
#endif
    (void)candidate;
    return transposed ? walsh_product_bf16_transposed_reference : walsh_product_bf16_prefill_reference;
}

void check_product_mxfp4_prefill(struct check *c, product_kernel *reference, product_kernel *candidate)
{
    check_mxfp4(c, reference, candidate, dense_of(candidate, false), false);
}

void check_product_mxfp4_transposed(struct check *c, product_kernel *reference, product_kernel *candidate)
{
    check_mxfp4(c, reference, candidate, dense_of(candidate, true), true);
}

/* The reference and the candidate, of one of the two kernels. */
struct decoders {
    walsh_kernel_decode_weights_f32 *f32[2];
    walsh_kernel_decode_weights_bf16 *bf16[2];
};

/* A part of a matrix, into wider rows. */
static void check_rows(struct check *c, const struct walsh_weights *w, const struct decoders *d)
{
    const size_t row = check_below(c, (w->rows + 15) / 16) * 16, rows = 1 + check_below(c, w->rows - row);
    const size_t col = check_below(c, (w->cols + 15) / 16) * 16, left = w->cols - col,
                 part = (1 + check_below(c, (left + 15) / 16)) * 16, cols = part < left ? part : left;
    const size_t ld = cols + check_below(c, 20), n = rows * ld,
                 size = d->f32[0] ? sizeof(float) : sizeof(uint16_t);
    void *expected = check_alloc(c, n * size, check_misalign(c, size)),
         *got = check_alloc(c, n * size, check_misalign(c, size));
    for (unsigned i = 0; i < 2; i++) {
        if (d->f32[0])
            d->f32[i](w, row, rows, col, cols, i ? got : expected, ld);
        else
            d->bf16[i](w, row, rows, col, cols, i ? got : expected, ld);
    }
    check_exact_bytes(c, "decoded rows", expected, got, n * size);
}

static void check_decode(struct check *c, const struct decoders *d)
{
    static const char *const stages[] = {"P", "PB", "PP", "BB"};
    for (size_t k = 0; k < BLOCK_KINDS; k++) {
        for (size_t s = 0; s < SHAPES; s++) {
            const struct walsh_weights w = block_weights(c, &block_kinds[k], shapes[s][0], shapes[s][1]);
            check_rows(c, &w, d);
        }
    }
    for (size_t k = 0; k < 4; k++)
        for (size_t s = 0; s < 3; s++) {
            const struct product_shape shape = {WALSH_FORMAT_E8P, stages[k], 16 + 32 * s, 64 + 216 * s};
            const struct walsh_weights w = product_weights(c, &shape);
            check_rows(c, &w, d);
        }
}

void check_decode_weights_f32(struct check *c, walsh_kernel_decode_weights_f32 *reference,
                              walsh_kernel_decode_weights_f32 *candidate)
{
    check_decode(c, &(struct decoders){.f32 = {reference, candidate}});
}

void check_decode_weights_bf16(struct check *c, walsh_kernel_decode_weights_bf16 *reference,
                               walsh_kernel_decode_weights_bf16 *candidate)
{
    check_decode(c, &(struct decoders){.bf16 = {reference, candidate}});
}

static void compare_groups(struct check *c, walsh_kernel_quantize_groups_i8 *reference,
                           walsh_kernel_quantize_groups_i8 *candidate, const float *x, size_t n)
{
    int8_t *expected = check_alloc(c, n, check_misalign(c, 1)),
           *got = check_alloc(c, n, check_misalign(c, 1));
    float *scale[2];
    int32_t *sum[2];
    for (unsigned i = 0; i < 2; i++) {
        scale[i] = check_alloc(c, n / WALSH_ACTIVATION_GROUP * sizeof(float), 0);
        sum[i] = check_alloc(c, n / WALSH_ACTIVATION_SUM * sizeof(int32_t), 0);
    }
    reference(expected, scale[0], sum[0], x, n);
    candidate(got, scale[1], sum[1], x, n);
    check_exact_bytes(c, "q", expected, got, n);
    check_exact_f32(c, "scale", scale[0], scale[1], n / WALSH_ACTIVATION_GROUP);
    check_exact_bytes(c, "sum", sum[0], sum[1], n / WALSH_ACTIVATION_SUM * sizeof(int32_t));
}

void check_quantize_groups_i8(struct check *c, walsh_kernel_quantize_groups_i8 *reference,
                              walsh_kernel_quantize_groups_i8 *candidate)
{
    static const float scales[] = {1, 0x1p-119f, 0x1p-118f, 0x1p-140f, 0x1p127f, 0};
    for (size_t n = 0; n <= 256; n += n < 64 ? 32 : 96) {
        float *x = check_alloc(c, n * sizeof *x, check_misalign(c, sizeof *x));
        check_fill_normal(c, x, n);
        compare_groups(c, reference, candidate, x, n);
        for (size_t i = 0; i < n; i++) {
            const float scale = scales[i / WALSH_ACTIVATION_GROUP % 6];
            x[i] = (float)((int)check_below(c, 509) - 254) / 256 * scale;
            if (i % WALSH_ACTIVATION_GROUP == 7 && scale != 0) x[i] = -scale;
        }
        compare_groups(c, reference, candidate, x, n);
        for (size_t i = 0; i < n; i++) x[i] = (float)((int)check_below(c, 509) - 254) * .5f; /* ties */
        if (n > 0) x[check_below(c, n)] = -127;
        if (n > 32) x[check_below(c, n)] = c->round % 2 ? -INFINITY : NAN;
        compare_groups(c, reference, candidate, x, n);
    }
}
