/* Cases of the product kernels: every format and stage count, tails in every dimension, pieces, and a row's
 * bits alone and in a batch. */
#include <math.h>
#include <string.h>

#include "base/memory.h"
#include "block_data.h"
#include "checker.h"
#include "formats/e8p_planes.h"
#include "kernels/product.h"
#include "product_data.h"

typedef void product_kernel(const struct walsh_product_part *);

struct product_case {
    product_kernel *reference, *candidate;
    enum walsh_activation_type type;
    double factor;   /* 0: EXACT */
    bool transposed; /* y = W^T a */
    bool adds;       /* the kernel knows `add` */
    bool tiles;      /* the candidate also reads activations as tiles */
};

/* A prompt's kernel: those of AMX read tiles. */
static struct product_case prefill_case(const struct check *c, product_kernel *reference,
                                        product_kernel *candidate, enum walsh_activation_type type,
                                        double factor, bool adds)
{
    const bool tiles = strcmp(c->implementation, "amx") == 0;
    return (struct product_case){reference, candidate, type, factor, false, adds, tiles};
}

/* The same activations as tiles: kernels.h has the place of each byte. */
static struct walsh_activations as_tiles(struct check *c, const struct walsh_activations *a)
{
    const size_t bytes = a->stride * walsh_activation_size(a->type);
    struct walsh_activations tiled = *a;
    uint8_t *to = check_alloc(c, a->rows * bytes, 0);
    const uint8_t *from = a->data;
    for (size_t r = 0; r < a->rows; r++) {
        const size_t group = r / 16 * 16, n = walsh_min(16, a->rows - group);
        for (size_t b = 0; b < bytes; b++)
            to[group * bytes + b / 64 * 64 * n + (r - group) * 64 + b % 64] = from[r * bytes + b];
    }
    tiled.data = to;
    tiled.tiled = true;
    return tiled;
}

/* Outputs of W, and what they sum over. */
static size_t outputs_of(const struct product_case *t, const struct walsh_weights *w)
{
    return t->transposed ? w->cols : w->rows;
}

static const size_t batch[] = {1, 2, 3, 4, 5, 7, 8, 9, 13, 16, 17, 23};

static float *outputs(struct check *c, size_t n)
{
    return check_alloc(c, n * sizeof(float), check_misalign(c, sizeof(float)));
}

static void multiply(product_kernel *kernel, const struct walsh_weights *w, const struct walsh_activations *a,
                     size_t begin, size_t end, float *y, size_t ldy, void *scratch)
{
    const struct walsh_product_part part = {w, a, begin, end, y, ldy, scratch, false};
    kernel(&part);
}

static void compare(struct check *c, const struct product_case *t, const struct walsh_weights *w,
                    const struct walsh_activations *a, const float *expected, const float *got, void *scratch)
{
    const size_t outs = outputs_of(t, w), n = a->rows * outs;
    if (t->factor == 0) {
        check_exact_f32(c, "y", expected, got, n);
        return;
    }
    struct walsh_weights absolute_w = product_magnitudes(c, w);
    struct walsh_activations absolute_a = product_absolute(c, a);
    float *magnitude = check_alloc(c, n * sizeof(float), 0);
    multiply(t->transposed ? walsh_product_dense_transposed_reference : walsh_product_dense_decode_reference,
             &absolute_w, &absolute_a, 0, outs, magnitude, outs, scratch);
    check_close_f32(c, "y", expected, got, magnitude, n, t->factor);
}

/* y += the product: near what the reference makes of the same y. */
static void check_add(struct check *c, const struct product_case *t, const struct walsh_weights *w,
                      const struct walsh_activations *a, void *scratch)
{
    const size_t outs = outputs_of(t, w), n = a->rows * outs;
    const struct walsh_weights absolute_w = product_magnitudes(c, w);
    const struct walsh_activations absolute_a = product_absolute(c, a);
    float *expected = outputs(c, n), *got = outputs(c, n), *magnitude = check_alloc(c, n * sizeof(float), 0);
    for (size_t i = 0; i < n; i++) {
        expected[i] = got[i] = 3 * check_normal(c);
        magnitude[i] = fabsf(got[i]);
    }
    (t->transposed ? walsh_product_dense_transposed_reference : walsh_product_dense_prefill_reference)(
        &(struct walsh_product_part){&absolute_w, &absolute_a, 0, outs, magnitude, outs, scratch, true});
    t->reference(&(struct walsh_product_part){w, a, 0, outs, expected, outs, scratch, true});
    t->candidate(&(struct walsh_product_part){w, a, 0, outs, got, outs, scratch, true});
    check_close_f32(c, "y +=", expected, got, magnitude, n, t->factor);
}

static void check_shape(struct check *c, const struct product_case *t, const struct product_shape *shape,
                        size_t rows, void *scratch)
{
    struct walsh_weights w = product_weights(c, shape);
    const size_t outs = outputs_of(t, &w), inner = t->transposed ? shape->rows : shape->cols;
    struct walsh_activations a =
        product_activations(c, t->type, rows, inner, shape->format != WALSH_FORMAT_E8P);
    float *expected = outputs(c, rows * outs), *got = outputs(c, rows * outs);
    multiply(t->reference, &w, &a, 0, outs, expected, outs, scratch);
    multiply(t->candidate, &w, &a, 0, outs, got, outs, scratch);
    compare(c, t, &w, &a, expected, got, scratch);

    if (t->tiles) {
        const struct walsh_activations tiled = as_tiles(c, &a);
        float *y = outputs(c, rows * outs);
        multiply(t->candidate, &w, &tiled, 0, outs, y, outs, scratch);
        check_exact_f32(c, "y of tiles", got, y, rows * outs);
    }

    /* in two pieces, into wider rows: the same bits, and nothing written between the rows */
    size_t ldy = outs + 1 + check_below(c, 20);
    size_t cut = check_below(c, outs / WALSH_PRODUCT_ROWS + 1) * WALSH_PRODUCT_ROWS;
    float *wide = outputs(c, rows * ldy), *untouched = check_alloc(c, ldy * sizeof(float), 0);
    if (cut < outs) multiply(t->candidate, &w, &a, cut, outs, wide, ldy, scratch);
    if (cut > 0) multiply(t->candidate, &w, &a, 0, cut, wide, ldy, scratch);
    for (size_t i = 0; i < rows; i++) {
        check_exact_f32(c, "y in pieces", got + i * outs, wide + i * ldy, outs);
        check_exact_bytes(c, "the gap between rows of y", untouched, wide + i * ldy + outs,
                          (ldy - outs) * sizeof(float));
    }

    if (t->adds) check_add(c, t, &w, &a, scratch);

    /* a row alone */
    size_t i = check_below(c, rows);
    struct walsh_activations one = product_row(&a, i);
    float *alone = outputs(c, outs);
    multiply(t->candidate, &w, &one, 0, outs, alone, outs, scratch);
    check_exact_f32(c, "y of a row alone", got + i * outs, alone, outs);
}

static size_t next_batch(struct check *c, size_t n)
{
    return batch[(n + c->round * 5) % (sizeof batch / sizeof batch[0])];
}

static void check_dense(struct check *c, const struct product_case *t, const enum walsh_format *formats,
                        size_t count)
{
    static const size_t shapes[][2] = {{1, 1},   {5, 7},     {16, 16},   {33, 31}, {50, 100},
                                       {64, 64}, {100, 513}, {37, 1055}, {200, 40}};
    void *scratch = check_alloc_private(c, WALSH_PRODUCT_SCRATCH);
    for (size_t f = 0; f < count; f++) {
        for (size_t s = 0; s < sizeof shapes / sizeof shapes[0]; s++) {
            struct product_shape shape = {formats[f], "", shapes[s][0], shapes[s][1]};
            check_shape(c, t, &shape, next_batch(c, f + s), scratch);
        }
    }
}

static void check_stages(struct check *c, const struct product_case *t)
{
    static const char *const stages[] = {"P", "PB", "PP", "PPB", "PPPP", "B"};
    static const size_t shapes[][2] = {{16, 8}, {32, 248}, {16, 256}, {48, 264}, {80, 576}, {208, 64}};
    void *scratch = check_alloc_private(c, WALSH_PRODUCT_SCRATCH);
    for (size_t k = 0; k < sizeof stages / sizeof stages[0]; k++) {
        for (size_t s = 0; s < sizeof shapes / sizeof shapes[0]; s++) {
            struct product_shape shape = {WALSH_FORMAT_E8P, stages[k], shapes[s][0], shapes[s][1]};
            check_shape(c, t, &shape, next_batch(c, k + s), scratch);
        }
    }
}

/* The largest sums that the formats admit: the code of the largest sum of coordinates, all activations 127 or
 * -127. */
static void check_largest(struct check *c, const struct product_case *t, size_t rows)
{
    const uint32_t outs = 16, cols = WALSH_STAGE_MAX_COLUMNS, groups = cols / 8;
    uint16_t largest = 0;
    for (int code = 0, best = 0; code < 65536; code++) {
        int8_t x4[8];
        int sum = 0;
        walsh_e8p_decode_x4((uint16_t)code, x4);
        for (int i = 0; i < 8; i++) sum += x4[i];
        if (sum > best) {
            best = sum;
            largest = (uint16_t)code;
        }
    }
    uint16_t *codes = check_alloc(c, (size_t)outs * groups * sizeof *codes, 0);
    for (size_t i = 0; i < (size_t)outs * groups; i++) codes[i] = largest;
    void *packed = check_alloc(c, walsh_stage_bytes(WALSH_STAGE_E8P, outs, cols), 0);
    walsh_e8p_pack(cols, codes, 0, outs, packed);
    struct walsh_weights w = {.format = WALSH_FORMAT_E8P, .rows = outs, .cols = cols, .stages = 1};
    w.stage[0].kind = WALSH_STAGE_E8P;
    w.stage[0].data = packed;
    w.stage[0].scale = 1;
    struct walsh_activations a = product_activations(c, WALSH_ACTIVATION_INT8, rows, cols, false);
    for (size_t i = 0; i < rows; i++) {
        memset((int8_t *)a.data + i * a.stride, i % 2 == 0 ? 127 : -127, cols);
        a.sum[i] = (i % 2 == 0 ? 127 : -127) * (int32_t)cols;
    }
    void *scratch = check_alloc_private(c, WALSH_PRODUCT_SCRATCH);
    float *expected = outputs(c, rows * outs), *got = outputs(c, rows * outs);
    multiply(t->reference, &w, &a, 0, outs, expected, outs, scratch);
    multiply(t->candidate, &w, &a, 0, outs, got, outs, scratch);
    check_exact_f32(c, "the largest sums", expected, got, rows * outs);
}

static const enum walsh_format dense_formats[] = {WALSH_FORMAT_F32, WALSH_FORMAT_F16, WALSH_FORMAT_BF16};
static const enum walsh_format bf16_format[] = {WALSH_FORMAT_BF16};

/* More rows than the tiles of a step hold. */
static void check_many_rows(struct check *c, const struct product_case *t, const struct product_shape *shape)
{
    static const size_t rows[] = {32, 33, 49, 71};
    check_shape(c, t, shape, rows[c->round % 4], check_alloc_private(c, WALSH_PRODUCT_SCRATCH));
}

void check_product_dense_decode(struct check *c, product_kernel *reference, product_kernel *candidate)
{
    check_dense(c, &(struct product_case){reference, candidate, WALSH_ACTIVATION_F32, 4, false, false, false},
                dense_formats, 3);
}

void check_product_dense_prefill(struct check *c, product_kernel *reference, product_kernel *candidate)
{
    check_dense(c, &(struct product_case){reference, candidate, WALSH_ACTIVATION_F32, 4, false, true, false},
                dense_formats, 3);
}

void check_product_bf16_decode(struct check *c, product_kernel *reference, product_kernel *candidate)
{
    check_dense(c,
                &(struct product_case){reference, candidate, WALSH_ACTIVATION_BF16, 4, false, false, false},
                bf16_format, 1);
}

/* AMX's kernel by the codes of block formats and by what they decode to: the same bits. */
static void check_codes(struct check *c, product_kernel *candidate)
{
    static const size_t shapes[][2] = {{16, 32}, {37, 40}, {70, 130}, {96, 1024}, {5, 16}};
    void *scratch = check_alloc_private(c, WALSH_PRODUCT_SCRATCH);
    for (size_t k = 0; k < BLOCK_KINDS; k++)
        for (size_t s = 0; s < sizeof shapes / sizeof shapes[0]; s++) {
            const struct walsh_weights w = block_weights(c, &block_kinds[k], shapes[s][0], shapes[s][1]);
            const size_t rows = next_batch(c, k + s), outs = w.rows;
            uint16_t *decoded = check_alloc(c, outs * w.cols * sizeof *decoded, 0);
            walsh_decode_weights_bf16_reference(&w, 0, outs, 0, w.cols, decoded, w.cols);
            const struct walsh_weights dense = {
                .format = WALSH_FORMAT_BF16, .rows = w.rows, .cols = w.cols, .data = decoded};
            const struct walsh_activations a =
                product_activations(c, WALSH_ACTIVATION_BF16, rows, w.cols, false);
            float *expected = outputs(c, rows * outs), *got = outputs(c, rows * outs);
            multiply(candidate, &dense, &a, 0, outs, expected, outs, scratch);
            multiply(candidate, &w, &a, 0, outs, got, outs, scratch);
            check_exact_f32(c, block_kinds[k].name, expected, got, rows * outs);
        }
}

void check_product_bf16_prefill(struct check *c, product_kernel *reference, product_kernel *candidate)
{
    const struct product_case t = prefill_case(c, reference, candidate, WALSH_ACTIVATION_BF16, 4, true);
    check_dense(c, &t, bf16_format, 1);
    check_many_rows(c, &t, &(struct product_shape){WALSH_FORMAT_BF16, "", 70, 1100});
    if (t.tiles) check_codes(c, candidate);
}

void check_product_dense_transposed(struct check *c, product_kernel *reference, product_kernel *candidate)
{
    check_dense(c, &(struct product_case){reference, candidate, WALSH_ACTIVATION_F32, 4, true, true, false},
                dense_formats, 3);
}

void check_product_bf16_transposed(struct check *c, product_kernel *reference, product_kernel *candidate)
{
    check_dense(c, &(struct product_case){reference, candidate, WALSH_ACTIVATION_BF16, 4, true, true, false},
                bf16_format, 1);
}

void check_product_e8p_decode(struct check *c, product_kernel *reference, product_kernel *candidate)
{
    check_stages(c,
                 &(struct product_case){reference, candidate, WALSH_ACTIVATION_F32, 4, false, false, false});
}

void check_product_e8p_prefill(struct check *c, product_kernel *reference, product_kernel *candidate)
{
    check_stages(c,
                 &(struct product_case){reference, candidate, WALSH_ACTIVATION_F32, 4, false, false, false});
}

void check_product_int8_decode(struct check *c, product_kernel *reference, product_kernel *candidate)
{
    const struct product_case t = {reference, candidate, WALSH_ACTIVATION_INT8, 0, false, false, false};
    check_stages(c, &t);
    check_largest(c, &t, 1 + c->round * 3);
}

void check_product_int8_prefill(struct check *c, product_kernel *reference, product_kernel *candidate)
{
    const struct product_case t = prefill_case(c, reference, candidate, WALSH_ACTIVATION_INT8, 0, false);
    check_stages(c, &t);
    check_many_rows(c, &t, &(struct product_shape){WALSH_FORMAT_E8P, "PB", 80, 1544});
    check_largest(c, &t, 1 + c->round * 3);
}
