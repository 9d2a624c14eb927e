/* Benchmarks of bf16 pairs and of attention's tiles over them. */
#include <stdio.h>

#include "kernels/bench.h"

enum { SIDE = 64 }; /* of a tile */

struct pack_case {
    walsh_kernel_pair_rows_bf16 *pack; /* all three have its type */
    const float *x;
    uint32_t *y;
};

static void run_pack(void *argument)
{
    const struct pack_case *t = argument;
    t->pack(t->y, SIDE, t->x, SIDE, SIDE, SIDE);
}

static void bench_pack(struct walsh_bench *b, walsh_kernel_pair_rows_bf16 *pack)
{
    struct pack_case t = {pack, walsh_bench_normal(b, SIDE * SIDE),
                          walsh_bench_alloc(b, SIDE * SIDE * sizeof(uint32_t))};
    if (t.x == NULL || t.y == NULL) return;
    walsh_bench_run(b, "64x64", 6.0 * SIDE * SIDE, 0, WALSH_CEILING_F32, run_pack, &t);
}

void walsh_bench_pair_rows_bf16(struct walsh_bench *b, walsh_kernel_pair_rows_bf16 *f)
{
    bench_pack(b, f);
}
struct narrow_case {
    walsh_kernel_pair_narrow_rows_bf16 *pack;
    const uint16_t *x;
    uint32_t *y;
};

static void run_narrow(void *argument)
{
    const struct narrow_case *t = argument;
    t->pack(t->y, SIDE, t->x, SIDE, SIDE, SIDE);
}

void walsh_bench_pair_narrow_rows_bf16(struct walsh_bench *b, walsh_kernel_pair_narrow_rows_bf16 *f)
{
    struct narrow_case t = {f, walsh_bench_alloc(b, SIDE * SIDE * sizeof *t.x),
                            walsh_bench_alloc(b, SIDE * SIDE * sizeof *t.y)};
    if (t.x == NULL || t.y == NULL) return;
    walsh_bench_run(b, "64x64", 4.0 * SIDE * SIDE, 0, WALSH_CEILING_F32, run_narrow, &t);
}

void walsh_bench_pair_rows_turned_bf16(struct walsh_bench *b, walsh_kernel_pair_rows_turned_bf16 *f)
{
    bench_pack(b, f);
}
void walsh_bench_pair_columns_turned_bf16(struct walsh_bench *b, walsh_kernel_pair_columns_turned_bf16 *f)
{
    bench_pack(b, f);
}

struct product_case {
    walsh_kernel_multiply_pairs_bf16 *multiply;
    struct walsh_pairs_product p;
};

static void run_product(void *argument)
{
    const struct product_case *t = argument;
    t->multiply(&t->p);
}

void walsh_bench_multiply_pairs_bf16(struct walsh_bench *b, walsh_kernel_multiply_pairs_bf16 *f)
{
    static const size_t shapes[][3] = {{64, 64, 64}, {64, 16, 576}, {64, 576, 16}, {16, 64, 256}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        const size_t m = shapes[i][0], n = shapes[i][1], k = shapes[i][2];
        uint16_t *a = walsh_bench_alloc(b, m * k * sizeof *a);
        uint32_t *pairs = walsh_bench_alloc(b, k / 2 * n * sizeof *pairs);
        float *c = walsh_bench_alloc(b, m * n * sizeof *c);
        if (a == NULL || pairs == NULL || c == NULL) return;
        for (size_t j = 0; j < m * k; j++) a[j] = 0x3f80; /* ones */
        for (size_t j = 0; j < k / 2 * n; j++) pairs[j] = 0x3f803f80;
        struct product_case t = {
            f, {.c = c, .a = a, .b = pairs, .ldc = n, .lda = k, .ldb = n, .m = m, .n = n, .steps = k / 2}};
        char size[48];
        snprintf(size, sizeof size, "%zux%zux%zu", m, n, k);
        walsh_bench_run(b, size, (double)(2 * m * k + 2 * k * n + 4 * m * n), 2.0 * (double)(m * n * k),
                        WALSH_CEILING_BF16, run_product, &t);
    }
}

struct panels_case {
    walsh_kernel_pack_panels_bf16 *pack;
    walsh_kernel_product_panels_bf16 *product;
    struct walsh_weights weights;
    struct walsh_panel_term term;
    struct walsh_panels_product p;
    uint32_t *panels;
};

static void run_pack_panels(void *argument)
{
    const struct panels_case *t = argument;
    t->pack(&t->weights, true, 0, t->weights.cols, t->panels);
}
static void run_product_panels(void *argument)
{
    struct panels_case *t = argument;
    t->p.terms = &t->term;
    t->product(&t->p);
}

static void bench_panels(struct walsh_bench *b, struct panels_case t)
{
    enum { OUTPUTS = 192, DEPTH = 1024, ROWS = 512 };
    const size_t pairs = walsh_panel_pairs(OUTPUTS, DEPTH);
    uint16_t *w = walsh_bench_alloc(b, (size_t)OUTPUTS * DEPTH * sizeof *w),
             *a = walsh_bench_alloc(b, (size_t)ROWS * DEPTH * sizeof *a);
    float *y = walsh_bench_alloc(b, (size_t)ROWS * OUTPUTS * sizeof *y);
    t.panels = walsh_bench_alloc(b, pairs * sizeof *t.panels);
    if (w == NULL || a == NULL || y == NULL || t.panels == NULL) return;
    for (size_t i = 0; i < (size_t)OUTPUTS * DEPTH; i++) w[i] = 0x3f80; /* ones */
    for (size_t i = 0; i < (size_t)ROWS * DEPTH; i++) a[i] = 0x3f80;
    for (size_t i = 0; i < pairs; i++) t.panels[i] = 0x3f803f80;
    t.weights =
        (struct walsh_weights){.format = WALSH_FORMAT_BF16, .rows = DEPTH, .cols = OUTPUTS, .data = w};
    t.term = (struct walsh_panel_term){t.panels, OUTPUTS, DEPTH, 0, a, DEPTH};
    t.p = (struct walsh_panels_product){
        .count = 1, .rows = t.product ? ROWS : 0, .end = OUTPUTS, .y = y, .ldy = OUTPUTS};
    walsh_bench_run(b, t.product ? "192x1024 rows=512" : "1024x192",
                    t.product ? 2.0 * DEPTH * (OUTPUTS + ROWS) + 4.0 * ROWS * OUTPUTS : 4.0 * DEPTH * OUTPUTS,
                    t.product ? 2.0 * ROWS * DEPTH * OUTPUTS : 0, WALSH_CEILING_BF16,
                    t.product ? run_product_panels : run_pack_panels, &t);
}

void walsh_bench_pack_panels_bf16(struct walsh_bench *b, walsh_kernel_pack_panels_bf16 *f)
{
    bench_panels(b, (struct panels_case){.pack = f});
}
void walsh_bench_product_panels_bf16(struct walsh_bench *b, walsh_kernel_product_panels_bf16 *f)
{
    bench_panels(b, (struct panels_case){.product = f});
}

struct tile_case {
    walsh_kernel_softmax_columns_bf16 *softmax;
    walsh_kernel_slope_columns_bf16 *slopes;
    struct walsh_tile_softmax s;
    struct walsh_tile_slopes g;
};

static void run_softmax(void *argument)
{
    const struct tile_case *t = argument;
    t->softmax(&t->s);
}
static void run_slopes(void *argument)
{
    const struct tile_case *t = argument;
    t->slopes(&t->g);
}

static void bench_tile(struct walsh_bench *b, struct tile_case t)
{
    const struct walsh_tile_scores scores = {
        walsh_bench_normal(b, SIDE * SIDE), SIDE, SIDE, SIDE, SIDE, 0, 0.125f};
    float *state = walsh_bench_alloc(b, 3 * SIDE * sizeof *state);
    uint32_t *pairs = walsh_bench_alloc(b, SIDE * SIDE / 2 * sizeof *pairs);
    uint16_t *rows = walsh_bench_alloc(b, 2 * SIDE * SIDE * sizeof *rows);
    if (scores.s == NULL || state == NULL || pairs == NULL || rows == NULL) return;
    t.s = (struct walsh_tile_softmax){scores, pairs, SIDE, state, state + SIDE, state + 2 * SIDE};
    t.g = (struct walsh_tile_slopes){scores, scores.s, state, state, rows, rows + SIDE * SIDE,
                                     pairs,  SIDE,     SIDE};
    walsh_bench_run(b, "64x64", (t.softmax ? 10.0 : 14.0) * SIDE * SIDE, 20.0 * SIDE * SIDE,
                    WALSH_CEILING_F32, t.softmax ? run_softmax : run_slopes, &t);
}

void walsh_bench_softmax_columns_bf16(struct walsh_bench *b, walsh_kernel_softmax_columns_bf16 *f)
{
    bench_tile(b, (struct tile_case){.softmax = f});
}
void walsh_bench_slope_columns_bf16(struct walsh_bench *b, walsh_kernel_slope_columns_bf16 *f)
{
    bench_tile(b, (struct tile_case){.slopes = f});
}
