/* Products of MXFP4 experts with rank-16 updates, forward and dX, by both strategies and as chosen,
 * alternately.
 *
 *   experts_bench [--threads N] [--rounds N] [--most ROWS] [--json]
 *
 * 32 experts of [1024][2048], all active with T rows each, T = 1, 4, 16, 64, 256, 1024; then 256 experts with
 * 10 of them per token and 256 to 16384 rows (slots). A: the active experts' matrices decoded, then
 * multiplied; B: decoded inside the product. Figures: the median milliseconds of a forward and of a dX, the
 * share of the machine's bf16 rate (all threads, measured in this process; useful operations: 2 rows K N of
 * each product, and its updates'), and the share of the read bandwidth at which the forward takes the codes
 * and scales. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/memory.h"
#include "base/random.h"
#include "formats/blocks.h"
#include "kernels/bench.h"
#include "train/layer.h"

enum { K = 2048, N = 1024, RANK = 16, MATRICES = 32, MOST_EXPERTS = 256, MOST_ROUNDS = 64 };
#define SWEEP_BYTES ((size_t)96 << 20)

static struct walsh_error error;
static struct walsh_arena arena;

static void need(enum walsh_status status)
{
    if (status == WALSH_OK) return;
    fprintf(stderr, "experts_bench: %s\n", error.message);
    exit(1);
}

static void *memory(size_t count, size_t size)
{
    void *p;
    need(walsh_arena_alloc(&arena, count, size, "a benchmark's data", &p, &error));
    return p;
}

static float *numbers(size_t n)
{
    float *x = memory(n, sizeof *x);
    for (size_t i = 0; i < n; i++) x[i] = (float)(walsh_mix64(i) >> 40) * 0x1p-23f - 1;
    return x;
}

static struct walsh_weights random_mxfp4(uint64_t seed)
{
    struct walsh_weights w = {.format = WALSH_FORMAT_MXFP4,
                              .rows = N,
                              .cols = K,
                              .block = {WALSH_CODE_E2M1, WALSH_SCALE_E8M0, 32},
                              .tensor_scale = 1};
    uint32_t *data = memory(walsh_block_data_words(&w), sizeof *data);
    uint8_t *scales = memory(walsh_block_scale_count(&w), 1);
    for (size_t i = 0; i < walsh_block_data_words(&w); i++) data[i] = (uint32_t)walsh_mix64(seed << 32 | i);
    for (size_t i = 0; i < walsh_block_scale_count(&w); i++) scales[i] = (uint8_t)(116 + i % 8);
    w.data = data;
    w.scales = scales;
    return w;
}

struct bench {
    struct walsh_queue *queue;
    struct walsh_model_graph graph;
    struct walsh_layer layer;
    struct walsh_expert experts[MOST_EXPERTS];
    struct walsh_lora lora[MATRICES];
    struct walsh_frozen_site sites[MOST_EXPERTS];
    struct walsh_lora_site updates[MOST_EXPERTS];
    size_t active, rows;
    float *x, *y, *dx, *scratch;
    uint16_t *rounded, *inner; /* x in bf16; inner values */
    uint64_t *sweep;
};

static void make_experts(struct bench *b)
{
    struct walsh_weights w[MATRICES];
    for (unsigned i = 0; i < MATRICES; i++) w[i] = random_mxfp4(i + 1);
    for (unsigned e = 0; e < MOST_EXPERTS; e++) {
        const struct walsh_linear linear = {.name = "expert",
                                            .in = K,
                                            .out = N,
                                            .in_rotation = {.size = K, .blocks = {.padded = K}},
                                            .out_rotation = {.size = N, .blocks = {.padded = N}},
                                            .weights = w[e % MATRICES],
                                            .activation = WALSH_ACTIVATION_BF16};
        b->experts[e] = (struct walsh_expert){linear, linear, linear};
    }
    for (unsigned i = 0; i < MATRICES; i++)
        b->lora[i] = (struct walsh_lora){.rank = RANK,
                                         .in = K,
                                         .out = N,
                                         .scale = 2,
                                         .a = numbers((size_t)RANK * K),
                                         .b = numbers((size_t)RANK * N),
                                         .grad_a = numbers((size_t)RANK * K),
                                         .grad_b = numbers((size_t)RANK * N)};
    for (unsigned i = 0; i < MATRICES; i++) {
        struct walsh_lora *l = &b->lora[i];
        uint32_t *pairs = malloc((walsh_lora_pairs(RANK, K) + walsh_lora_pairs(RANK, N)) * sizeof *pairs);
        if (!pairs) exit(1);
        l->a_pairs = pairs;
        l->b_pairs = pairs + walsh_lora_pairs(RANK, K);
        walsh_lora_pack(b->queue, pairs, l->a, RANK, K);
        walsh_lora_pack(b->queue, pairs + walsh_lora_pairs(RANK, K), l->b, RANK, N);
    }
    b->layer.experts = b->experts;
    b->graph.layers = &b->layer;
    b->graph.config.layers = 1;
    b->graph.config.experts = MOST_EXPERTS;
}

/* counts[e] rows for expert e. */
static void set_rows(struct bench *b, const size_t *counts, unsigned experts)
{
    b->active = b->rows = 0;
    for (unsigned e = 0; e < experts; e++) {
        if (counts[e] == 0) continue;
        b->sites[b->active] =
            (struct walsh_frozen_site){.calls = {walsh_frozen(&b->experts[e].gate, b->y + b->rows * N, N)},
                                       .count = 1,
                                       .begin = b->rows,
                                       .rows = counts[e]};
        b->updates[b->active++] = (struct walsh_lora_site){
            .calls = {{.lora = &b->lora[e % MATRICES]}}, .count = 1, .begin = b->rows, .rows = counts[e]};
        b->rows += counts[e];
    }
}

static int compare(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *x, size_t n)
{
    qsort(x, n, sizeof *x, compare);
    return x[n / 2];
}

struct figures {
    double forward[3], back[3]; /* seconds by strategy: chosen, A, B */
    bool fused;                 /* what was chosen */
};

/* The inner values of the updates, from x rounded once for them and for the products. */
static void add_updates(struct bench *b)
{
    const size_t stride = walsh_activations_stride(K);
    const struct walsh_rotation none = {.size = K, .blocks = {.padded = K}};
    struct walsh_activations a = {
        .type = WALSH_ACTIVATION_BF16, .rows = b->rows, .cols = K, .stride = stride, .data = b->rounded};
    b->queue->ops->prepare(b->queue, &a, b->x, K, &none);
    walsh_lora_inner(b->queue, b->updates, b->active, b->rounded, stride, b->inner, b->scratch);
    for (size_t i = 0; i < b->active; i++) {
        b->sites[i].inputs = b->rounded + b->sites[i].begin * stride;
        b->sites[i].ld_rows = stride;
    }
    walsh_join_updates(b->sites, b->updates, b->active, false);
}

static void drop_updates(struct bench *b)
{
    for (size_t i = 0; i < b->active; i++) {
        b->sites[i].inputs = NULL;
        b->sites[i].calls[0].update.rank = 0;
    }
}

/* Read so much else that no cache holds weights, and nothing that is still to be written: whoever runs first or behind the
 * decoding strategy has what the others have. */
static void sweep(void *argument, size_t begin, size_t end, unsigned worker)
{
    const uint64_t *from = argument;
    volatile uint64_t sink;
    uint64_t sum = worker;
    for (size_t i = begin; i < end; i += 8) sum += from[i];
    sink = sum;
    (void)sink;
}

static void evict(const struct bench *b)
{
    walsh_pool_run(b->queue->pool, SWEEP_BYTES / sizeof *b->sweep, 1 << 16, sweep, b->sweep);
}

/* With updates: the forward adds them; dX alone of the backward's updates is what a frozen product has. */
static struct figures measure(struct bench *b, size_t rounds, bool updates)
{
    struct walsh_products p[3];
    struct figures f;
    double forward[3][MOST_ROUNDS], back[3][MOST_ROUNDS];
    static const enum walsh_strategy strategies[] = {WALSH_STRATEGY_AUTO, WALSH_STRATEGY_DECODED,
                                                     WALSH_STRATEGY_FUSED};
    for (unsigned s = 0; s < 3; s++) {
        const struct walsh_products_options options = {
            .compute = WALSH_ACTIVATION_BF16, .strategy = strategies[s], .max_rows = b->rows};
        need(walsh_products_open(&b->graph, b->queue, &options, &p[s], &error));
    }
    for (size_t round = 0; round < rounds + 1; round++)
        for (unsigned s = 0; s < 3; s++) {
            evict(b);
            double start = walsh_now();
            if (updates) add_updates(b);
            walsh_frozen_forward(&p[s], b->sites, b->active, b->x, K);
            if (round > 0) forward[s][round - 1] = walsh_now() - start;
            drop_updates(b);
            evict(b);
            start = walsh_now();
            walsh_frozen_backward(&p[s], b->sites, b->active, b->dx, K, false);
            if (round > 0) back[s][round - 1] = walsh_now() - start;
        }
    f.fused = p[0].fused > 0;
    for (unsigned s = 0; s < 3; s++) {
        f.forward[s] = median(forward[s], rounds);
        f.back[s] = median(back[s], rounds);
        walsh_products_close(&p[s]);
    }
    return f;
}

static void report(const struct bench *b, const struct figures *f, const struct walsh_roofline *roofline,
                   const char *what, bool updates, bool json, bool *first)
{
    const double product = 2.0 * (double)b->rows * K * N, update = 2.0 * (double)b->rows * RANK * (K + N),
                 forward = product + (updates ? update : 0);
    const double rate = roofline->all.bf16,
                 bytes = (double)walsh_weights_bytes(&b->experts[0].gate.weights) * (double)b->active;
    const double of_rate = (forward + product) / (f->forward[0] + f->back[0]) / rate,
                 of_read = bytes / f->forward[0] / roofline->read_bandwidth;
    const double best = f->forward[1] + f->back[1] < f->forward[2] + f->back[2] ? f->forward[1] + f->back[1]
                                                                                : f->forward[2] + f->back[2];
    const double over = (f->forward[0] + f->back[0]) / best - 1;
    if (json)
        printf(
            "%s\n  {\"case\": \"%s\", \"updates\": %s, \"rows\": %zu, \"active\": %zu, \"chosen\": \"%s\", "
            "\"forward_ms\": [%.3f, %.3f, %.3f], \"dx_ms\": [%.3f, %.3f, %.3f], \"of_bf16_rate\": %.3f, "
            "\"of_read_bandwidth\": %.3f, \"over_better\": %.3f}",
            *first ? "" : ",", what, updates ? "true" : "false", b->rows, b->active, f->fused ? "B" : "A",
            f->forward[0] * 1e3, f->forward[1] * 1e3, f->forward[2] * 1e3, f->back[0] * 1e3, f->back[1] * 1e3,
            f->back[2] * 1e3, of_rate, of_read, over);
    else
        printf("%-18s %-8s %6zu rows %4zu experts  %s  forward %9.3f (A %9.3f, B %9.3f) ms  dX %9.3f (A "
               "%9.3f, B "
               "%9.3f) ms  %5.1f%% of bf16 rate  %5.1f%% of read  %+5.1f%% to the better\n",
               what, updates ? "rank 16" : "frozen", b->rows, b->active, f->fused ? "B" : "A",
               f->forward[0] * 1e3, f->forward[1] * 1e3, f->forward[2] * 1e3, f->back[0] * 1e3,
               f->back[1] * 1e3, f->back[2] * 1e3, of_rate * 100, of_read * 100, over * 100);
    fflush(stdout);
    *first = false;
}

int main(int argc, char **argv)
{
    static struct bench b;
    unsigned threads = 2;
    size_t rounds = 7, most_rows = SIZE_MAX; /* per expert; the cases with more are left out */
    bool json = false, first = true;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--threads") == 0 && i + 1 < argc)
            threads = (unsigned)atoi(argv[++i]);
        else if (strcmp(argv[i], "--rounds") == 0 && i + 1 < argc)
            rounds = walsh_min((size_t)atoi(argv[++i]), MOST_ROUNDS);
        else if (strcmp(argv[i], "--most") == 0 && i + 1 < argc)
            most_rows = (size_t)atoi(argv[++i]);
        else if (strcmp(argv[i], "--json") == 0)
            json = true;
        else
            return fprintf(stderr,
                           "usage: experts_bench [--threads N] [--rounds N] [--most ROWS] [--json]\n"),
                   2;
    }
    struct walsh_pool *pool;
    struct walsh_queue queue;
    need(walsh_pool_open(threads, &pool, &error));
    need(walsh_queue_open(WALSH_CPU_BEST, pool, &queue, &error));
    if (!walsh_queue_has_bf16(&queue))
        return fprintf(stderr, "experts_bench: this machine has no bf16 products\n"), 1;
    struct walsh_roofline roofline;
    walsh_roofline_measure(&queue, &roofline);
    const size_t most = 32 * 1024;
    b.queue = &queue;
    make_experts(&b);
    b.x = numbers(most * K);
    b.y = numbers(most * N);
    b.dx = numbers(most * K);
    b.sweep = memory(SWEEP_BYTES, 1);
    memset(b.sweep, 1, SWEEP_BYTES);
    b.rounded = memory(most * walsh_activations_stride(K), sizeof *b.rounded);
    b.inner = memory(walsh_lora_kept(RANK, most, MOST_EXPERTS), sizeof *b.inner);
    b.scratch = memory(walsh_lora_scratch(RANK, most, MOST_EXPERTS), sizeof *b.scratch);
    printf(json ? "{\"threads\": %u, \"bf16_gflops\": %.1f, \"read_gbs\": %.2f, \"experts\": ["
                : "%u threads, %.1f Gflop/s of bf16, %.2f GB/s read\n",
           threads, roofline.all.bf16 / 1e9, roofline.read_bandwidth / 1e9);
    size_t counts[MOST_EXPERTS];
    char what[32];
    for (unsigned updates = 0; updates < 2; updates++)
        for (size_t t = 1; t <= walsh_min(1024, most_rows); t *= 4) {
            for (unsigned e = 0; e < 32; e++) counts[e] = t;
            set_rows(&b, counts, 32);
            const struct figures f = measure(&b, t > 64 ? walsh_min(rounds, 5) : rounds, updates);
            snprintf(what, sizeof what, "E=32 T=%zu", t);
            report(&b, &f, &roofline, what, updates, json, &first);
        }
    for (size_t slots = 256; slots <= walsh_min(16384, most_rows);
         slots *= 4) { /* tokens with 10 of 256 experts each */
        memset(counts, 0, sizeof counts);
        for (size_t i = 0; i < slots; i++) counts[walsh_mix64(i * 7 + slots) % MOST_EXPERTS]++;
        set_rows(&b, counts, MOST_EXPERTS);
        const struct figures f = measure(&b, walsh_min(rounds, 5), true);
        snprintf(what, sizeof what, "E=256, %zu", slots);
        report(&b, &f, &roofline, what, true, json, &first);
    }
    if (json) printf("]}\n");
    walsh_queue_close(&queue);
    walsh_pool_close(&pool);
    walsh_arena_close(&arena);
    return 0;
}
