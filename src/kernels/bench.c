/* The benchmark's frame: the walk over kernels.def, timing, and the comparison with the reference and the
 * roofline. */
#include "kernels/bench.h"

#include <stdlib.h>
#include <string.h>

#include "base/clock.h"

#define CASES 24 /* of one kernel; later ones have no ratio */
#define BATCHES 9
#define BATCH_SECONDS 1e-3

struct walsh_bench {
    const char *kernel, *implementation;
    const struct walsh_roofline *roofline;
    walsh_bench_callback *callback;
    void *user;
    struct walsh_arena arena;
    struct walsh_random random;
    bool first;              /* of an op: the variant that the others are held against */
    size_t cases;            /* of this implementation so far */
    double reference[CASES]; /* the reference's seconds */
};

void *walsh_bench_alloc(struct walsh_bench *b, size_t bytes)
{
    void *p;
    return walsh_arena_alloc(&b->arena, bytes, 1, "a benchmark's data", &p, NULL) == WALSH_OK ? p : NULL;
}

float *walsh_bench_normal(struct walsh_bench *b, size_t n)
{
    float *x = walsh_bench_alloc(b, n * sizeof *x);
    for (size_t i = 0; x != NULL && i < n; i++) x[i] = (float)walsh_random_normal(&b->random);
    return x;
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The median over batches of about BATCH_SECONDS, after one run that warms up. */
static double median_seconds(void (*run)(void *argument), void *argument)
{
    run(argument);
    double batch[BATCHES], start = walsh_now();
    run(argument);
    double once = walsh_now() - start;
    size_t calls = once >= BATCH_SECONDS ? 1 : (size_t)(BATCH_SECONDS / (once > 1e-8 ? once : 1e-8)) + 1;
    int batches = once > 0.05 ? 1 : BATCHES; /* a slow reference is timed once */
    for (int i = 0; i < batches; i++) {
        start = walsh_now();
        for (size_t c = 0; c < calls; c++) run(argument);
        batch[i] = (walsh_now() - start) / (double)calls;
    }
    qsort(batch, (size_t)batches, sizeof *batch, compare);
    return batch[batches / 2];
}

/* The least seconds that the machine's ceilings admit. */
static double least_seconds(const struct walsh_roofline *r, double bytes, double operations,
                            enum walsh_ceiling ceiling)
{
    double rate = ceiling == WALSH_CEILING_INT8   ? r->one.int8
                  : ceiling == WALSH_CEILING_BF16 ? r->one.bf16
                                                  : r->one.f32;
    double bandwidth = bytes <= (double)(32 << 10)    ? r->l1_bandwidth
                       : bytes <= (double)(768 << 10) ? r->l2_bandwidth
                                                      : r->core_bandwidth;
    double compute = rate > 0 ? operations / rate : 0, memory = bandwidth > 0 ? bytes / bandwidth : 0;
    return compute > memory ? compute : memory;
}

/* Report a case of `seconds`, of which the machine needs `least`; `reference`: others are held against it. */
static void report(struct walsh_bench *b, const char *size, double bytes, double operations, double seconds,
                   double least, bool reference)
{
    double ratio = 0;
    if (b->cases < CASES) {
        if (reference) b->reference[b->cases] = seconds;
        ratio = b->reference[b->cases] / seconds;
    }
    b->cases++;
    const struct walsh_bench_result result = {
        .kernel = b->kernel,
        .implementation = b->implementation,
        .size = size,
        .seconds = seconds,
        .bytes = bytes,
        .operations = operations,
        .ratio = ratio,
        .roofline = least / seconds,
    };
    b->callback(b->user, &result);
}

void walsh_bench_run(struct walsh_bench *b, const char *size, double bytes, double operations,
                     enum walsh_ceiling ceiling, void (*run)(void *argument), void *argument)
{
    report(b, size, bytes, operations, median_seconds(run, argument),
           least_seconds(b->roofline, bytes, operations, ceiling),
           strcmp(b->implementation, "reference") == 0);
}

void walsh_bench_run_op(struct walsh_bench *b, const char *size, double bytes, void (*run)(void *argument),
                        void *argument)
{
    const double bandwidth = b->roofline->read_bandwidth;
    report(b, size, bytes, 0, median_seconds(run, argument), bandwidth > 0 ? bytes / bandwidth : 0, b->first);
}

/* The next implementation starts: of another kernel without its predecessor's figures. */
static void begin(struct walsh_bench *b, const char *kernel, const char *implementation)
{
    if (b->kernel == NULL || strcmp(b->kernel, kernel) != 0) memset(b->reference, 0, sizeof b->reference);
    b->kernel = kernel;
    b->implementation = implementation;
    b->cases = 0;
    walsh_random_seed(&b->random, 1);
}

void walsh_bench_begin_op(struct walsh_bench *b, const char *op, const char *implementation, bool first)
{
    walsh_arena_close(&b->arena);
    begin(b, op, implementation);
    b->first = first;
}

void walsh_queue_bench(const struct walsh_queue *q, const char *pattern, struct walsh_roofline *roofline,
                       walsh_bench_callback *callback, void *user)
{
    walsh_roofline_measure(q, roofline);
    struct walsh_bench b = {.roofline = roofline, .callback = callback, .user = user};
#define WALSH_KERNEL(name, result, parameters, comparison)
#define WALSH_IMPL(kernel, set)                                                                              \
    if ((pattern == NULL || strstr(#kernel, pattern) != NULL) &&                                             \
        (WALSH_ISA_##set & ~q->kernels->isa) == 0) {                                                         \
        begin(&b, #kernel, #set);                                                                            \
        walsh_bench_##kernel(&b, walsh_##kernel##_##set);                                                    \
        walsh_arena_close(&b.arena);                                                                         \
    }
#include "kernels/kernels.def"
    if (pattern != NULL && strstr("op_attention", pattern) != NULL) {
        walsh_bench_op_attention(&b, q);
        walsh_arena_close(&b.arena);
    }
}
