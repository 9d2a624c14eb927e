/* Benchmark rows of a draw's passes over the vocabulary. */
#include <stdio.h>

#include "kernels/bench.h"

struct draw_case {
    walsh_kernel_logit_range *range;
    walsh_kernel_sum_masses *sum;
    const float *logits;
    size_t n;
    float best;
    struct walsh_reach reach;
    uint64_t whole;
    int32_t orders[2];
};

static void run_range(void *argument)
{
    struct draw_case *t = argument;
    t->range(t->logits, t->n, &t->orders[0], &t->orders[1]);
}

static void run_sum(void *argument)
{
    struct draw_case *t = argument;
    t->whole = t->sum(t->logits, t->n, t->best, 1.25f, 9, &t->reach);
}

/* Logits of deviation 3, as a model's are at most places: a tenth of them within reach. */
static void run(struct walsh_bench *b, struct draw_case t, double operations, void (*call)(void *))
{
    static const size_t sizes[] = {8192, 131072};
    for (size_t s = 0; s < sizeof sizes / sizeof sizes[0]; s++) {
        const size_t n = sizes[s]; /* a multiple of WALSH_REACH_LANES */
        char size[32];
        float *logits = walsh_bench_normal(b, n);
        t.reach = (struct walsh_reach){.ids = walsh_bench_alloc(b, n * sizeof(int32_t)),
                                       .depth = walsh_bench_alloc(b, n * sizeof(float)),
                                       .decay = walsh_bench_alloc(b, n * sizeof(float))};
        if (!logits || !t.reach.ids || !t.reach.depth || !t.reach.decay) return;
        t.best = logits[0] *= 3;
        for (size_t i = 1; i < n; i++) {
            logits[i] *= 3;
            t.best = logits[i] > t.best ? logits[i] : t.best;
        }
        t.logits = logits;
        t.n = n;
        snprintf(size, sizeof size, "n=%zu", n);
        walsh_bench_run(b, size, 4 * (double)n, operations * (double)n, WALSH_CEILING_F32, call, &t);
    }
}

void walsh_bench_logit_range(struct walsh_bench *b, walsh_kernel_logit_range *f)
{
    run(b, (struct draw_case){.range = f}, 1, run_range);
}

void walsh_bench_sum_masses(struct walsh_bench *b, walsh_kernel_sum_masses *f)
{
    run(b, (struct draw_case){.sum = f}, 20, run_sum);
}
