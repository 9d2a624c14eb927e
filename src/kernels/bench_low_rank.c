/* Benchmark rows of the low-rank kernels, on the matrices of a wide layer: one row as in decode, 24 or 512 as
 * in prefill. */
#include <stdio.h>

#include "base/scalar.h"
#include "kernels/bench.h"

struct low_rank_case {
    walsh_kernel_low_rank_down *down;
    walsh_kernel_low_rank_up *up;
    struct walsh_low_rank_down_part d;
    struct walsh_low_rank_up_part u;
};

static void run_down(void *argument)
{
    const struct low_rank_case *t = argument;
    t->down(&t->d);
}

static void run_up(void *argument)
{
    const struct low_rank_case *t = argument;
    t->up(&t->u);
}

/* `n` random elements; bf16 where the format says. */
static void *matrix(struct walsh_bench *b, enum walsh_format format, size_t n)
{
    float *values = walsh_bench_normal(b, n);
    uint16_t *narrow =
        values != NULL && format == WALSH_FORMAT_BF16 ? walsh_bench_alloc(b, n * sizeof *narrow) : NULL;
    for (size_t i = 0; narrow != NULL && i < n; i++) narrow[i] = walsh_bf16_from_f32(values[i]);
    return format == WALSH_FORMAT_BF16 ? (void *)narrow : values;
}

static const struct {
    enum walsh_format format;
    size_t rows;
} cases[] = {{WALSH_FORMAT_BF16, 1}, {WALSH_FORMAT_BF16, 24}, {WALSH_FORMAT_F32, 1}, {WALSH_FORMAT_F32, 24}};

static void bench_down(struct walsh_bench *b, walsh_kernel_low_rank_down *f, size_t rank, size_t first)
{
    const size_t cols = 3072;
    for (size_t n = first; n < sizeof cases / sizeof cases[0]; n += first + 1) {
        const size_t rows = cases[n].rows, size = walsh_low_rank_a_size(rank, cols);
        struct low_rank_case t = {.down = f};
        t.d = (struct walsh_low_rank_down_part){.format = cases[n].format,
                                                .a = matrix(b, cases[n].format, size),
                                                .cols = cols,
                                                .end = cols,
                                                .x = walsh_bench_normal(b, rows * cols),
                                                .ldx = cols,
                                                .rows = rows,
                                                .h = walsh_bench_normal(b, rows * rank),
                                                .ldh = rank,
                                                .chunks = rank / WALSH_LOW_RANK_CHUNK};
        if (t.d.a == NULL || t.d.x == NULL || t.d.h == NULL) return;
        const bool narrow = cases[n].format == WALSH_FORMAT_BF16;
        char text[48];
        snprintf(text, sizeof text, "%s %zux%zu rows=%zu", narrow ? "bf16" : "f32", rank, cols, rows);
        walsh_bench_run(b, text, (double)(size * (narrow ? 2 : 4) + rows * cols * 4),
                        2.0 * (double)(rows * size), WALSH_CEILING_F32, run_down, &t);
    }
}

void walsh_bench_low_rank_down(struct walsh_bench *b, walsh_kernel_low_rank_down *f)
{
    bench_down(b, f, WALSH_LOW_RANK_CHUNK, 0);
}

/* Of many rows only. */
void walsh_bench_low_rank_down_prefill(struct walsh_bench *b, walsh_kernel_low_rank_down_prefill *f)
{
    bench_down(b, f, 2 * WALSH_LOW_RANK_CHUNK, 1);
}

static void bench_up(struct walsh_bench *b, walsh_kernel_low_rank_up *f, size_t first)
{
    static const size_t ranks[] = {8, 16, 64};
    const size_t outs = 192;
    for (size_t n = first; n < sizeof cases / sizeof cases[0]; n += first + 1)
        for (size_t r = 0; r < sizeof ranks / sizeof ranks[0]; r++) {
            const size_t rank = ranks[r], rows = cases[n].rows;
            const size_t size = walsh_low_rank_b_size(cases[n].format, rank, outs);
            struct low_rank_case t = {.up = f};
            t.u = (struct walsh_low_rank_up_part){.format = cases[n].format,
                                                  .b = matrix(b, cases[n].format, size),
                                                  .rank = rank,
                                                  .end = outs,
                                                  .scale = 0x1p-20f,
                                                  .h = walsh_bench_normal(b, rows * rank),
                                                  .ldh = rank,
                                                  .rows = rows,
                                                  .y = walsh_bench_normal(b, rows * outs),
                                                  .ldy = outs};
            if (t.u.b == NULL || t.u.h == NULL || t.u.y == NULL) return;
            const bool narrow = cases[n].format == WALSH_FORMAT_BF16;
            char text[48];
            snprintf(text, sizeof text, "%s %zux%zu rows=%zu", narrow ? "bf16" : "f32", outs, rank, rows);
            walsh_bench_run(b, text, (double)(size * (narrow ? 2 : 4) + rows * outs * 8),
                            2.0 * (double)(rows * size), WALSH_CEILING_F32, run_up, &t);
        }
}

void walsh_bench_low_rank_up(struct walsh_bench *b, walsh_kernel_low_rank_up *f)
{
    bench_up(b, f, 0);
}

void walsh_bench_low_rank_up_prefill(struct walsh_bench *b, walsh_kernel_low_rank_up_prefill *f)
{
    bench_up(b, f, 1);
}
