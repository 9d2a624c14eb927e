/* Products of frozen linears in every kind of base, forward and back, against double precision on the decoded
 * weights; and that the backward is the forward's adjoint, whatever the rotations' signs. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/random.h"
#include "base/scalar.h"
#include "formats/blocks.h"
#include "formats/e8p_planes.h"
#include "kernels/table.h"
#include "train/products.h"

enum { IN = 160, OUT = 112, ROWS = 37 };

static struct walsh_queue queue;
static struct walsh_pool *pool;
static struct walsh_random rng;

/* Lives until the end of the program. */
static struct walsh_arena arena;

static void *memory(size_t bytes)
{
    void *p;
    assert_int_equal(walsh_arena_alloc(&arena, bytes, 1, "a test", &p, NULL), WALSH_OK);
    return p;
}

static struct walsh_rotation rotation(uint32_t n, uint32_t least)
{
    struct walsh_rotation r = {.kind = WALSH_ROTATION_BLOCKS, .size = n};
    assert_int_equal(walsh_blocks_binary(n, least, &r.blocks, NULL), WALSH_OK);
    float *signs = memory(r.blocks.padded * sizeof *signs);
    for (uint32_t i = 0; i < r.blocks.padded; i++) /* signs that carry a scale */
        signs[i] = (float)((walsh_random_u64(&rng) & 1 ? 1 : -1) * (0.5 + walsh_random_uniform(&rng)));
    r.signs = signs;
    return r;
}

static struct walsh_weights bf16_weights(uint32_t rows, uint32_t cols)
{
    uint16_t *data = memory((size_t)rows * cols * sizeof *data);
    for (size_t i = 0; i < (size_t)rows * cols; i++)
        data[i] = walsh_bf16_from_f32((float)walsh_random_normal(&rng));
    return (struct walsh_weights){.format = WALSH_FORMAT_BF16, .rows = rows, .cols = cols, .data = data};
}

static struct walsh_weights e8p_weights(uint32_t rows, uint32_t cols)
{
    struct walsh_weights w = {.format = WALSH_FORMAT_E8P, .rows = rows, .cols = cols, .stages = 2};
    const size_t groups = (size_t)rows * cols / 8;
    uint16_t *codes = memory(groups * sizeof *codes);
    for (unsigned k = 0; k < 2; k++) {
        void *packed = memory(walsh_stage_bytes(WALSH_STAGE_E8P, rows, cols));
        for (size_t i = 0; i < groups; i++) codes[i] = (uint16_t)walsh_random_u64(&rng);
        walsh_e8p_pack(cols, codes, 0, rows, packed);
        w.stage[k].kind = WALSH_STAGE_E8P;
        w.stage[k].data = packed;
        w.stage[k].scale = k ? 0.11f : 0.9f;
    }
    return w;
}

static struct walsh_weights mxfp4_weights(uint32_t rows, uint32_t cols)
{
    struct walsh_weights w = {.format = WALSH_FORMAT_MXFP4,
                              .rows = rows,
                              .cols = cols,
                              .block = {WALSH_CODE_E2M1, WALSH_SCALE_E8M0, 32},
                              .tensor_scale = 1};
    uint32_t *data = memory(walsh_block_data_words(&w) * sizeof *data);
    uint8_t *scales = memory(walsh_block_scale_count(&w)), codes[16 * IN / 2];
    for (size_t tile = 0; tile < walsh_block_tiles(&w); tile++) {
        for (size_t i = 0; i < sizeof codes; i++) codes[i] = (uint8_t)walsh_random_u64(&rng);
        walsh_block_pack_codes(&w, tile, codes, cols / 2, 0, data);
    }
    for (size_t r = 0; r < rows; r++)
        for (size_t g = 0; g < walsh_block_groups(&w); g++)
            walsh_block_put_scale(&w, r, g, (uint32_t)(120 + walsh_random_u64(&rng) % 6), scales);
    w.data = data;
    w.scales = scales;
    return w;
}

/* y of one row in double: inverse_out(W forward_in(x)). */
static void reference(const struct walsh_linear *l, const float *w, const float *x, double *y)
{
    const size_t rows = l->weights.rows, cols = l->weights.cols;
    double in[IN], rotated[512], z[512];
    for (size_t i = 0; i < IN; i++) in[i] = (double)x[i];
    memcpy(rotated, in, sizeof in);
    if (l->in_rotation.kind != WALSH_ROTATION_NONE) walsh_rotate_forward_f64(&l->in_rotation, in, rotated);
    for (size_t r = 0; r < rows; r++) {
        z[r] = 0;
        for (size_t c = 0; c < cols; c++) z[r] += (double)w[r * cols + c] * rotated[c];
    }
    memcpy(y, z, OUT * sizeof *y);
    if (l->out_rotation.kind != WALSH_ROTATION_NONE) walsh_rotate_inverse_f64(&l->out_rotation, z, y);
}

/* The largest error of n numbers, as a share of the largest. */
static double error_of(const float *got, const double *want, size_t n)
{
    double worst = 0, largest = 0;
    for (size_t i = 0; i < n; i++) {
        worst = fmax(worst, fabs((double)got[i] - want[i]));
        largest = fmax(largest, fabs(want[i]));
    }
    return worst / largest;
}

/* dx in double by the matrix of the linear: column j is what it makes of the unit vector j. */
static void reference_back(const struct walsh_linear *l, const float *w, const float *dy, double *dx)
{
    for (size_t j = 0; j < IN; j++) {
        float unit[IN] = {0};
        double column[OUT];
        unit[j] = 1;
        reference(l, w, unit, column);
        for (size_t i = 0; i < ROWS; i++) {
            dx[i * IN + j] = 0;
            for (size_t o = 0; o < OUT; o++) dx[i * IN + j] += (double)dy[i * OUT + o] * column[o];
        }
    }
}

static void check_linear(struct walsh_linear *linear, enum walsh_activation_type compute, const char *what)
{
    static struct walsh_model_graph graph; /* of nothing but a head: all that the products look at */
    const double bound = compute == WALSH_ACTIVATION_BF16 ? 2e-2 : 2e-5;
    memset(&graph, 0, sizeof graph);
    graph.head = *linear;
    linear = &graph.head;
    const size_t size = (size_t)linear->weights.rows * linear->weights.cols;
    float *w = memory(size * sizeof *w), *x = memory(ROWS * IN * sizeof *x),
          *dy = memory(ROWS * OUT * sizeof *dy), *y = memory(ROWS * OUT * sizeof *y),
          *dx = memory(ROWS * IN * sizeof *dx);
    double *want_y = memory(ROWS * OUT * sizeof *want_y), *want_dx = memory(ROWS * IN * sizeof *want_dx);
    walsh_weights_decode_f32(&linear->weights, 0, linear->weights.rows, w, linear->weights.cols);
    for (size_t i = 0; i < ROWS * IN; i++) x[i] = (float)walsh_random_normal(&rng);
    for (size_t i = 0; i < ROWS * OUT; i++) dy[i] = (float)walsh_random_normal(&rng);
    for (size_t i = 0; i < ROWS; i++) reference(linear, w, x + i * IN, want_y + i * OUT);
    reference_back(linear, w, dy, want_dx);

    struct walsh_products products;
    const struct walsh_products_options options = {.compute = compute, .max_rows = ROWS, .head = true};
    assert_int_equal(walsh_products_open(&graph, &queue, &options, &products, NULL), WALSH_OK);
    struct walsh_frozen_site site = {.calls = {walsh_frozen(linear, y, OUT)}, .count = 1, .rows = ROWS};
    walsh_frozen_forward(&products, &site, 1, x, IN);
    site.calls[0].y = dy;
    walsh_frozen_backward(&products, &site, 1, dx, IN, false);
    walsh_products_close(&products);
    const double forward = error_of(y, want_y, ROWS * OUT), backward = error_of(dx, want_dx, ROWS * IN);
    printf("%s: %.2g forward, %.2g back\n", what, forward, backward);
    assert_true(forward < bound);
    assert_true(backward < bound);
    if (compute == WALSH_ACTIVATION_BF16) assert_true(forward > 1e-5); /* bf16 was on */
}

static void check_base(struct walsh_linear linear, const char *what)
{
    linear.name = what;
    linear.in = IN;
    linear.out = OUT;
    check_linear(&linear, WALSH_ACTIVATION_F32, what);
    linear.activation = WALSH_ACTIVATION_BF16;
    if (walsh_queue_has_bf16(&queue)) check_linear(&linear, WALSH_ACTIVATION_BF16, what);
}

static void test_bases(void **state)
{
    (void)state;
    const struct walsh_rotation none_in = {.kind = WALSH_ROTATION_NONE, .size = IN, .blocks = {.padded = IN}},
                                none_out = {
                                    .kind = WALSH_ROTATION_NONE, .size = OUT, .blocks = {.padded = OUT}};
    const struct walsh_rotation in = rotation(IN, WALSH_MIN_BLOCK_COLUMNS),
                                out = rotation(OUT, WALSH_MIN_BLOCK_ROWS);
    check_base((struct walsh_linear){.in_rotation = none_in,
                                     .out_rotation = none_out,
                                     .weights = bf16_weights(OUT, IN)},
               "bf16");
    check_base((struct walsh_linear){.in_rotation = in,
                                     .out_rotation = out,
                                     .weights = e8p_weights(out.blocks.padded, in.blocks.padded)},
               "e8p, rotated");
    check_base((struct walsh_linear){.in_rotation = none_in,
                                     .out_rotation = none_out,
                                     .weights = mxfp4_weights(OUT, IN)},
               "mxfp4");
}

/* Two calls of one matrix with updates of an odd rank, forward and back: y of both behind each other, then dx. */
static size_t run_calls(const struct walsh_model_graph *graph, bool panels, const uint16_t *x,
                        const uint16_t *dy, const uint16_t *matrix, const uint16_t *inner, float *out)
{
    enum { RANK = 5, LD = 6 };
    const size_t in = graph->head.in, outputs = graph->head.out, rows = ROWS;
    struct walsh_products p;
    const struct walsh_products_options options = {
        .compute = WALSH_ACTIVATION_BF16, .max_rows = rows, .head = true, .panels = panels};
    assert_int_equal(walsh_products_open(graph, &queue, &options, &p, NULL), WALSH_OK);
    struct walsh_frozen_site site = {
        .count = 2, .rows = rows, .inputs = x, .ld_rows = walsh_activations_stride(in)};
    for (size_t i = 0; i < 2; i++) {
        site.calls[i] = walsh_frozen(&graph->head, out + i * rows * outputs, outputs);
        site.calls[i].update = (struct walsh_frozen_update){matrix, inner, RANK, LD};
        site.calls[i].rows = dy;
        site.calls[i].ld_rows = walsh_activations_stride(outputs);
    }
    walsh_frozen_forward(&p, &site, 1, NULL, 0);
    walsh_frozen_backward(&p, &site, 1, out + 2 * rows * outputs, in, false);
    const size_t kept = p.kept;
    walsh_products_close(&p);
    return kept;
}

static uint16_t *narrow_rows(size_t rows, size_t n, size_t ld)
{
    uint16_t *x = memory(rows * ld * sizeof *x);
    for (size_t i = 0; i < rows; i++)
        for (size_t j = 0; j < ld; j++)
            x[i * ld + j] = j < n ? walsh_bf16_from_f32((float)walsh_random_normal(&rng)) : 0;
    return x;
}

/* Panels that are kept change no bit: of blocks of the depth, both ways, with ends of all kinds. */
static void test_panels(void **state)
{
    (void)state;
    if (!walsh_queue_has_bf16(&queue)) skip();
    static const uint32_t shapes[][2] = {{112, 160}, {1100, 50}, {49, 2100}, {576, 250}};
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
        const uint32_t outputs = shapes[s][0], in = shapes[s][1];
        static struct walsh_model_graph graph;
        graph.head = (struct walsh_linear){.name = "kept",
                                           .in = in,
                                           .out = outputs,
                                           .in_rotation = {.size = in, .blocks = {.padded = in}},
                                           .out_rotation = {.size = outputs, .blocks = {.padded = outputs}},
                                           .weights = bf16_weights(outputs, in),
                                           .activation = WALSH_ACTIVATION_BF16};
        const size_t size = ROWS * (2 * (size_t)outputs + in);
        const uint16_t *x = narrow_rows(ROWS, in, walsh_activations_stride(in)),
                       *dy = narrow_rows(ROWS, outputs, walsh_activations_stride(outputs)),
                       *matrix = narrow_rows(5, walsh_max(in, outputs), walsh_max(in, outputs)),
                       *inner = narrow_rows(ROWS, 5, 6);
        float *with = memory(size * sizeof *with), *without = memory(size * sizeof *without);
        assert_int_equal(run_calls(&graph, false, x, dy, matrix, inner, without), 0);
        const size_t kept = run_calls(&graph, true, x, dy, matrix, inner, with);
        assert_int_equal(kept, 1);
        assert_memory_equal(with, without, size * sizeof *with);
    }
}

/* A row has the bits that it has among others, however few come with it: with one scale or activation that asks for the other way
 * of computing it too, and where sums are added to what is there. */
static void test_few_rows(void **state)
{
    (void)state;
    enum { MANY = 9 };
    static const uint32_t shapes[][2] = {{112, 160}, {49, 96}, {16, 32}, {96, 128}};
    for (size_t s = 0; s < 4 * (sizeof shapes / sizeof *shapes); s++) {
        const uint32_t outputs = shapes[s / 4][0], in = shapes[s / 4][1];
        struct walsh_weights w = mxfp4_weights(outputs, in);
        const size_t stride = walsh_activations_stride(in), begin = outputs > 48 && s % 2 ? 48 : 0;
        uint16_t *x = narrow_rows(MANY, in, stride);
        if (s % 4 == 2) walsh_block_put_scale(&w, 1, 0, 90, (uint8_t *)(uintptr_t)w.scales);
        if (s % 4 == 3) x[in - 1] = 0x7e00;
        const struct walsh_activations all = {
            .type = WALSH_ACTIVATION_BF16, .rows = MANY, .cols = in, .stride = stride, .data = x};
        float *want = memory(MANY * outputs * sizeof *want), *got = memory(MANY * outputs * sizeof *got);
        struct walsh_product_part p = {.weights = &w,
                                       .a = &all,
                                       .begin = begin,
                                       .end = outputs,
                                       .y = want,
                                       .ldy = outputs,
                                       .scratch = queue.scratch[0],
                                       .add = s % 2 == 1};
        for (size_t i = 0; i < MANY * outputs; i++) want[i] = (float)walsh_random_normal(&rng);
        float *start = memory(MANY * outputs * sizeof *start);
        memcpy(start, want, MANY * outputs * sizeof *start);
        queue.kernels->product_mxfp4_prefill(&p);
        for (size_t few = 1; few < 6; few++)
            for (size_t row = 0; row + few <= MANY; row += few) {
                struct walsh_activations some = all;
                some.rows = few;
                some.data = x + row * stride;
                p.a = &some;
                p.y = got + row * outputs;
                memcpy(p.y, start + row * outputs, few * outputs * sizeof *got);
                queue.kernels->product_mxfp4_prefill(&p);
                assert_memory_equal(p.y, want + row * outputs, few * outputs * sizeof *got);
            }
    }
}

static int setup(void **state)
{
    (void)state;
    const uint64_t seed = 7;
    printf("seed %llu\n", (unsigned long long)seed);
    walsh_random_seed(&rng, seed);
    return walsh_pool_open(2, &pool, NULL) != WALSH_OK ||
           walsh_queue_open(WALSH_CPU_BEST, pool, &queue, NULL) != WALSH_OK;
}

static int teardown(void **state)
{
    (void)state;
    walsh_queue_close(&queue);
    walsh_pool_close(&pool);
    walsh_arena_close(&arena);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_bases), cmocka_unit_test(test_panels),
                                       cmocka_unit_test(test_few_rows)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
