/* Products of experts, packed weights decoded before (A) and inside (B) the product: A has the bits of the
 * same products with bf16 matrices, forward, dX, dA and dB; B those of A in the forward and, against double,
 * at most four times A's error elsewhere. Random dY; empty experts, one expert with all rows, one expert,
 * ragged tiles.
 */
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
#include "formats/blocks.h"
#include "formats/e8p_planes.h"
#include "kernels/table.h"
#include "train/layer.h"

enum { RANK = 16, MATRICES = 3, MOST_EXPERTS = 32 };

static struct walsh_queue queue;
static struct walsh_pool *pool;
static struct walsh_random rng;
static struct walsh_arena arena; /* of one case */

static void *memory(size_t count, size_t size)
{
    void *p;
    assert_int_equal(walsh_arena_alloc(&arena, count, size, "a test", &p, NULL), WALSH_OK);
    return p;
}

static float *normal(size_t n)
{
    float *x = memory(n, sizeof *x);
    for (size_t i = 0; i < n; i++) x[i] = (float)walsh_random_normal(&rng);
    return x;
}

static struct walsh_weights mxfp4(uint32_t rows, uint32_t cols)
{
    struct walsh_weights w = {.format = WALSH_FORMAT_MXFP4,
                              .rows = rows,
                              .cols = cols,
                              .block = {WALSH_CODE_E2M1, WALSH_SCALE_E8M0, 32},
                              .tensor_scale = 1};
    uint32_t *data = memory(walsh_block_data_words(&w), sizeof *data);
    uint8_t *scales = memory(walsh_block_scale_count(&w), 1);
    uint8_t *codes = memory(WALSH_BLOCK_ROWS, cols / 2);
    for (size_t tile = 0; tile < walsh_block_tiles(&w); tile++) {
        for (size_t i = 0; i < WALSH_BLOCK_ROWS * cols / 2; i++) codes[i] = (uint8_t)walsh_random_u64(&rng);
        walsh_block_pack_codes(&w, tile, codes, cols / 2, 0, data);
    }
    for (size_t r = 0; r < rows; r++) /* some beyond what is exact by the exponent alone */
        for (size_t g = 0; g < walsh_block_groups(&w); g++)
            walsh_block_put_scale(&w, r, g, (uint32_t)((r + g) % 97 ? 120 + walsh_random_u64(&rng) % 6 : 1),
                                  scales);
    w.data = data;
    w.scales = scales;
    return w;
}

static struct walsh_weights e8p(uint32_t rows, uint32_t cols)
{
    struct walsh_weights w = {.format = WALSH_FORMAT_E8P, .rows = rows, .cols = cols, .stages = 2};
    const size_t groups = (size_t)rows * cols / 8;
    for (unsigned k = 0; k < 2; k++) {
        uint16_t *codes = memory(groups, sizeof *codes);
        void *packed = memory(walsh_stage_bytes(WALSH_STAGE_E8P, rows, cols), 1);
        for (size_t i = 0; i < groups; i++) codes[i] = (uint16_t)walsh_random_u64(&rng);
        walsh_e8p_pack(cols, codes, 0, rows, packed);
        w.stage[k].kind = WALSH_STAGE_E8P;
        w.stage[k].data = packed;
        w.stage[k].scale = k ? 0.11f : 0.9f;
    }
    return w;
}

/* The experts of one layer: gate and up, [n][k]. Several share a matrix. */
struct subject {
    struct walsh_model_graph graph;
    struct walsh_layer layer;
    struct walsh_expert experts[MOST_EXPERTS];
    struct walsh_weights dense[MATRICES]; /* of the stored ones */
    uint32_t count, k, n;
    size_t rows, begin[MOST_EXPERTS + 1];
    struct walsh_lora lora[2 * MOST_EXPERTS];
    const float *x, *dy[2];
    const uint16_t *x_rows, *dy_rows[2]; /* the same in bf16 */
};

struct outcome {
    float *y[2], *dx, *gradients; /* dA and dB of all */
    size_t gradient_count, decoded, fused;
    bool has_dense;
};

/* Rows of n in bf16, zeros behind them. */
static uint16_t *rounded(const float *x, size_t rows, size_t n)
{
    const size_t stride = walsh_activations_stride(n);
    uint16_t *y = memory(rows * stride, sizeof *y);
    memset(y, 0, rows * stride * sizeof *y);
    for (size_t i = 0; i < rows; i++) queue.kernels->bf16_from_f32(y + i * stride, x + i * n, n);
    return y;
}

static struct walsh_linear linear(const struct walsh_weights *w)
{
    return (struct walsh_linear){.name = "expert",
                                 .in = w->cols,
                                 .out = w->rows,
                                 .in_rotation = {.size = w->cols, .blocks = {.padded = w->cols}},
                                 .out_rotation = {.size = w->rows, .blocks = {.padded = w->rows}},
                                 .weights = *w,
                                 .activation = WALSH_ACTIVATION_BF16};
}

static void set_up(struct subject *s, enum walsh_format format, uint32_t experts, uint32_t k, uint32_t n,
                   const uint32_t *rows)
{
    struct walsh_weights stored[MATRICES];
    memset(s, 0, sizeof *s);
    s->count = experts;
    s->k = k;
    s->n = n;
    for (unsigned i = 0; i < MATRICES; i++) {
        stored[i] = format == WALSH_FORMAT_E8P ? e8p(n, k) : mxfp4(n, k);
        uint16_t *decoded = memory((size_t)n * k, sizeof *decoded);
        walsh_weights_decode_bf16(&stored[i], 0, n, decoded, k);
        s->dense[i] =
            (struct walsh_weights){.format = WALSH_FORMAT_BF16, .rows = n, .cols = k, .data = decoded};
    }
    for (uint32_t e = 0; e < experts; e++) {
        s->experts[e].gate = linear(&stored[2 * e % MATRICES]);
        s->experts[e].up = linear(&stored[(2 * e + 1) % MATRICES]);
        s->experts[e].down = s->experts[e].gate;
        s->begin[e + 1] = s->begin[e] + rows[e];
        for (unsigned i = 0; i < 2; i++)
            s->lora[2 * e + i] = (struct walsh_lora){.rank = RANK, .in = k, .out = n, .scale = 2};
    }
    s->rows = s->begin[experts];
    s->layer.experts = s->experts;
    s->graph.layers = &s->layer;
    s->graph.config.layers = 1;
    s->graph.config.experts = experts;
    s->x = normal(s->rows * k);
    for (unsigned i = 0; i < 2; i++) s->dy[i] = normal(s->rows * n);
    s->x_rows = rounded(s->x, s->rows, k);
    for (unsigned i = 0; i < 2; i++) s->dy_rows[i] = rounded(s->dy[i], s->rows, n);
    for (uint32_t e = 0; e < 2 * experts; e++) {
        struct walsh_lora *l = &s->lora[e];
        uint32_t *a = memory(walsh_lora_pairs(RANK, k), sizeof *a),
                 *b = memory(walsh_lora_pairs(RANK, n), sizeof *b);
        l->a = normal((size_t)RANK * k);
        l->b = normal((size_t)RANK * n);
        walsh_lora_pack(&queue, a, l->a, RANK, k);
        walsh_lora_pack(&queue, b, l->b, RANK, n);
        l->a_pairs = a;
        l->b_pairs = b;
    }
}

/* Forward and back with all experts that have rows. `dense`: with the bf16 matrices in the place of the
 * codes. */
static struct outcome run(struct subject *s, enum walsh_strategy strategy, bool dense)
{
    struct outcome o = {.gradient_count = (size_t)2 * s->count * RANK * (s->k + s->n)};
    struct walsh_expert kept[MOST_EXPERTS];
    memcpy(kept, s->experts, sizeof kept);
    for (uint32_t e = 0; dense && e < s->count; e++) {
        s->experts[e].gate = linear(&s->dense[2 * e % MATRICES]);
        s->experts[e].up = linear(&s->dense[(2 * e + 1) % MATRICES]);
    }
    for (unsigned i = 0; i < 2; i++) o.y[i] = memory(s->rows * s->n, sizeof(float));
    o.dx = memory(s->rows * s->k, sizeof(float));
    o.gradients = memory(o.gradient_count, sizeof(float));
    const struct walsh_products_options options = {
        .compute = WALSH_ACTIVATION_BF16, .strategy = strategy, .max_rows = s->rows};
    struct walsh_products p;
    assert_int_equal(walsh_products_open(&s->graph, &queue, &options, &p, NULL), WALSH_OK);
    o.has_dense = p.dense != NULL;
    struct walsh_frozen_site sites[MOST_EXPERTS];
    struct walsh_lora_site updates[MOST_EXPERTS];
    float *scratch = memory(2 * walsh_lora_scratch(RANK, s->rows, s->count), sizeof *scratch),
          *at = o.gradients;
    uint16_t *inner = memory(2 * walsh_lora_kept(RANK, s->rows, s->count), sizeof *inner);
    const size_t ldx = walsh_activations_stride(s->k), ldy = walsh_activations_stride(s->n);
    for (unsigned back = 0; back < 2; back++) {
        size_t active = 0;
        for (uint32_t e = 0; e < s->count; e++) {
            const size_t begin = s->begin[e], rows = s->begin[e + 1] - begin;
            struct walsh_frozen_site *site = &sites[active];
            if (rows == 0) continue;
            *site = (struct walsh_frozen_site){
                .count = 2, .begin = begin, .rows = rows, .inputs = s->x_rows + begin * ldx, .ld_rows = ldx};
            updates[active] = (struct walsh_lora_site){.count = 2, .begin = begin, .rows = rows};
            for (unsigned i = 0; i < 2; i++) {
                float *y = back ? (float *)(uintptr_t)s->dy[i] : o.y[i];
                struct walsh_lora *l = &s->lora[2 * e + i];
                if (!back) {
                    l->grad_a = at;
                    l->grad_b = at + (size_t)RANK * s->k;
                    at += (size_t)RANK * (s->k + s->n);
                }
                site->calls[i] =
                    walsh_frozen(i ? &s->experts[e].up : &s->experts[e].gate, y + begin * s->n, s->n);
                site->calls[i].rows = s->dy_rows[i] + begin * ldy;
                site->calls[i].ld_rows = ldy;
                updates[active].calls[i] =
                    (struct walsh_lora_call){.lora = l, .dy = site->calls[i].rows, .ld_dy = ldy};
            }
            active++;
        }
        if (!back) {
            walsh_lora_inner(&queue, updates, active, s->x_rows, ldx, inner, scratch);
            walsh_join_updates(sites, updates, active, false);
            walsh_frozen_forward(&p, sites, active, s->x, s->k);
        } else {
            walsh_lora_inner_backward(&queue, updates, active, inner, scratch);
            walsh_join_updates(sites, updates, active, true);
            walsh_frozen_backward(&p, sites, active, o.dx, s->k, false);
            walsh_lora_gradients(&queue, updates, active, s->x_rows, ldx);
        }
    }
    o.decoded = p.decoded;
    o.fused = p.fused;
    walsh_products_close(&p);
    memcpy(s->experts, kept, sizeof kept);
    return o;
}

static void same(const struct subject *s, const struct outcome *a, const struct outcome *b, bool forward_only)
{
    for (unsigned i = 0; i < 2; i++) assert_memory_equal(a->y[i], b->y[i], s->rows * s->n * sizeof(float));
    if (forward_only) return;
    assert_memory_equal(a->dx, b->dx, s->rows * s->k * sizeof(float));
    assert_memory_equal(a->gradients, b->gradients, a->gradient_count * sizeof(float));
}

/* y of gate (`back` false), or dX, of one row in double; nothing is rounded but the weights. */
static void oracle(const struct subject *s, size_t row, bool back, double *want)
{
    uint32_t e = 0;
    while (s->begin[e + 1] <= row) e++;
    memset(want, 0, (back ? s->k : s->n) * sizeof *want);
    for (unsigned i = 0; i < (back ? 2 : 1); i++) {
        float *w = malloc((size_t)s->k * sizeof *w);
        const struct walsh_weights *stored = i ? &s->experts[e].up.weights : &s->experts[e].gate.weights;
        const struct walsh_lora *l = &s->lora[2 * e + i];
        double inner[RANK] = {0};
        for (size_t o = 0; o < s->n; o++) {
            walsh_weights_decode_f32(stored, o, 1, w, s->k);
            for (size_t c = 0; c < s->k; c++)
                if (back)
                    want[c] += (double)w[c] * (double)s->dy[i][row * s->n + o];
                else
                    want[o] += (double)w[c] * (double)s->x[row * s->k + c];
        }
        for (unsigned r = 0; r < RANK; r++) {
            if (back)
                for (size_t o = 0; o < s->n; o++)
                    inner[r] += (double)l->b[r * s->n + o] * (double)s->dy[i][row * s->n + o];
            else
                for (size_t c = 0; c < s->k; c++)
                    inner[r] += (double)l->a[r * s->k + c] * (double)s->x[row * s->k + c];
            for (size_t c = 0; c < (back ? s->k : s->n); c++)
                want[c] +=
                    (double)l->scale * inner[r] * (double)(back ? l->a[r * s->k + c] : l->b[r * s->n + c]);
        }
        free(w);
    }
}

/* B against double: its error within four times A's, its mean ratio to it 1. */
static void check_oracle(const struct subject *s, const struct outcome *a, const struct outcome *b,
                         size_t step)
{
    for (unsigned back = 0; back < 2; back++) {
        const size_t n = back ? s->k : s->n;
        double *want = malloc(n * sizeof *want), largest = 0, of_a = 0, of_b = 0, ratio = 0;
        size_t counted = 0;
        for (unsigned pass = 0; pass < 2; pass++)
            for (size_t row = 0; row < s->rows; row += step) {
                oracle(s, row, back, want);
                const float *got_a = back ? a->dx + row * n : a->y[0] + row * n,
                            *got_b = back ? b->dx + row * n : b->y[0] + row * n;
                for (size_t i = 0; i < n; i++) {
                    largest = fmax(largest, fabs(want[i]));
                    if (pass == 0) continue;
                    of_a = fmax(of_a, fabs((double)got_a[i] - want[i]));
                    of_b = fmax(of_b, fabs((double)got_b[i] - want[i]));
                    if (fabs(want[i]) < .01 * largest) continue;
                    ratio += (double)got_b[i] / want[i];
                    counted++;
                }
            }
        ratio /= (double)counted;
        printf("  %s: error of A %.2g, of B %.2g of the largest; mean ratio %.6f\n", back ? "dX" : "y",
               of_a / largest, of_b / largest, ratio);
        assert_true(of_b <= 4 * of_a);
        assert_true(fabs(ratio - 1) < 1e-3);
        assert_true(of_a / largest < 2e-2);
        assert_true(of_a / largest > 1e-6); /* bf16 was on */
        free(want);
    }
}

static void check_case(enum walsh_format format, uint32_t experts, uint32_t k, uint32_t n,
                       const uint32_t *rows, size_t step)
{
    static struct subject s;
    if (!walsh_queue_has_bf16(&queue)) skip();
    set_up(&s, format, experts, k, n, rows);
    printf("%s E%u K%u N%u, %zu rows\n", walsh_format_name(format), experts, k, n, s.rows);
    size_t active = 0;
    for (uint32_t e = 0; e < experts; e++) active += rows[e] > 0;
    const struct outcome dense = run(&s, WALSH_STRATEGY_AUTO, true),
                         a = run(&s, WALSH_STRATEGY_DECODED, false), b = run(&s, WALSH_STRATEGY_FUSED, false),
                         chosen = run(&s, WALSH_STRATEGY_AUTO, false);
    /* each weight once forward and once back, and only those of active experts */
    assert_int_equal(dense.decoded + dense.fused, 0);
    assert_int_equal(a.decoded, 4 * active);
    assert_int_equal(a.fused, 0);
    assert_int_equal(b.fused, 4 * active);
    assert_int_equal(b.decoded, 0);
    assert_true(a.has_dense && !b.has_dense);
    assert_int_equal(chosen.decoded + chosen.fused, 4 * active);
    assert_true(chosen.decoded == 0 || chosen.fused == 0);
    same(&s, &dense, &a, false);
    same(&s, &a, &b, true);
    same(&s, &a, &chosen, true);
    if (step) check_oracle(&s, &a, &b, step);
    walsh_arena_close(&arena);
}

static void test_ragged(void **state)
{
    (void)state;
    static const uint32_t rows[8] = {5, 0, 17, 1, 0, 33, 9, 3}, all[8] = {0, 0, 0, 70, 0, 0, 0, 0}, one = 13,
                          ones[8] = {1, 1, 1, 1, 1, 1, 1, 1};
    check_case(WALSH_FORMAT_MXFP4, 8, 128, 256, rows, 1);
    check_case(WALSH_FORMAT_MXFP4, 8, 128, 256, all, 1);
    check_case(WALSH_FORMAT_MXFP4, 8, 160, 200, rows, 1);
    check_case(WALSH_FORMAT_MXFP4, 1, 96, 56, &one, 1);
    check_case(WALSH_FORMAT_MXFP4, 8, 128, 256, ones, 1);
    check_case(WALSH_FORMAT_E8P, 8, 128, 256, rows, 1);
}

static void test_large(void **state)
{
    (void)state;
    uint32_t rows[32] = {0};
    rows[3] = 40;
    rows[7] = 2;
    rows[31] = 11;
    check_case(WALSH_FORMAT_MXFP4, 32, 2048, 1024, rows, 17);
}

/* The bits do not depend on the threads, and a row's not on the rows beside it. */
static void test_company(void **state)
{
    (void)state;
    static struct subject s;
    static const uint32_t rows[8] = {5, 0, 300, 1, 0, 33, 9, 3};
    if (!walsh_queue_has_bf16(&queue)) skip();
    set_up(&s, WALSH_FORMAT_MXFP4, 8, 128, 256, rows);
    const struct outcome two = run(&s, WALSH_STRATEGY_AUTO, false);
    struct walsh_pool *kept = queue.pool;
    queue.pool = NULL;
    const struct outcome alone = run(&s, WALSH_STRATEGY_AUTO, false);
    queue.pool = kept;
    same(&s, &two, &alone, false);

    const size_t row = s.begin[5]; /* expert 5's first, without all others */
    struct subject t = s;
    for (uint32_t e = 0; e <= 8; e++) t.begin[e] = e > 5;
    t.rows = 1;
    t.x = s.x + row * s.k;
    t.x_rows = s.x_rows + row * walsh_activations_stride(s.k);
    for (unsigned i = 0; i < 2; i++) {
        t.dy[i] = s.dy[i] + row * s.n;
        t.dy_rows[i] = s.dy_rows[i] + row * walsh_activations_stride(s.n);
    }
    t.layer.experts = t.experts;
    t.graph.layers = &t.layer;
    const struct outcome single = run(&t, WALSH_STRATEGY_FUSED, false);
    assert_memory_equal(single.y[0], two.y[0] + row * s.n, s.n * sizeof(float));
    assert_memory_equal(single.dx, two.dx + row * s.k, s.k * sizeof(float));
    walsh_arena_close(&arena);
}

static int setup(void **state)
{
    (void)state;
    const uint64_t seed = 11;
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
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_ragged), cmocka_unit_test(test_large),
                                       cmocka_unit_test(test_company)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
