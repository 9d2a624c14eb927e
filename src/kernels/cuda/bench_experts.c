/* The experts of a mixture, measured: MXFP4 matrices of 1024 outputs and 2048 columns, of which calls take turns. A row's size says
 * how many experts there are, how many have rows, and how many rows all have together. */
#include <math.h>
#include <stdio.h>

#include "base/memory.h"
#include "kernels/cuda/bench.h"
#include "kernels/cuda/launch_experts.h"

enum { OUTS = 1024, COLS = 2048, PER_ROW = 8, MOST_EXPERTS = 256, CALLS = 4 };
#define WORD_BYTES ((size_t)OUTS * COLS / 2)
#define SCALE_BYTES ((size_t)OUTS * COLS / 32)

/* How rows choose: as independent draws, as draws that share a strong preference, or one that is weak. */
enum routing { DRAWN, SPARSE, BALANCED };
struct mixture {
    uint32_t experts, active;
    size_t rows, slots;
    size_t sets; /* of experts that calls take turns with */
    const struct cuda_expert *table;
    int32_t *index;
    struct cuda_slots sorted;
    uint16_t *x, *arranged, *dy, *y, *a, *b, *h, *g;
    float *gradient_a, *gradient_b;
};

static double uniform(uint64_t *state)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return ((double)(*state >> 11) + 0.5) * 0x1p-53;
}
static double normal(uint64_t *state)
{
    const double radius = sqrt(-2 * log(uniform(state)));
    return radius * cos(6.283185307179586 * uniform(state));
}

/* Each row's PER_ROW largest logits; returns how many experts have rows. */
static uint32_t choose(const struct mixture *m, enum routing routing, int32_t *index)
{
    uint64_t state = 1;
    double bias[MOST_EXPERTS], logit[MOST_EXPERTS];
    bool used[MOST_EXPERTS] = {false};
    uint32_t active = 0;
    for (uint32_t e = 0; e < m->experts; e++)
        bias[e] = normal(&state) * (routing == SPARSE ? 5 : routing == BALANCED ? 0.5 : 0);
    for (size_t row = 0; row < m->rows; row++) {
        for (uint32_t e = 0; e < m->experts; e++)
            logit[e] = bias[e] + normal(&state) * (routing == SPARSE ? 0.1 : 1);
        for (size_t j = 0; j < PER_ROW; j++) {
            uint32_t best = 0;
            for (uint32_t e = 1; e < m->experts; e++)
                if (logit[e] > logit[best]) best = e;
            logit[best] = -INFINITY;
            index[row * PER_ROW + j] = (int32_t)best;
            active += !used[best];
            used[best] = true;
        }
    }
    return active;
}

/* Cuts 256-byte aligned arrays out of the scratch. */
static void *take(uint8_t **at, size_t bytes)
{
    void *p = *at;
    *at += walsh_round_up(bytes, 256);
    return p;
}

static enum walsh_status upload_table(const struct bench *b, struct mixture *m, struct cuda_expert *to)
{
    const size_t matrices = ROOM / (WORD_BYTES + SCALE_BYTES) / m->experts * m->experts;
    struct cuda_expert *table;
    m->sets = matrices / m->experts;
    WALSH_TRY(walsh_alloc(matrices, sizeof *table, "experts to measure", &table, b->err));
    for (size_t i = 0; i < matrices; i++)
        table[i] = (struct cuda_expert){(const uint32_t *)(const void *)(b->room + i * WORD_BYTES),
                                        b->room + matrices * WORD_BYTES + i * SCALE_BYTES, NULL};
    cudaMemsetAsync(b->room + matrices * WORD_BYTES, 0x78, matrices * SCALE_BYTES, b->d->stream); /* 2^-7 */
    const enum walsh_status status = cuda_memory.upload(b->q, to, table, matrices * sizeof *table, b->err);
    walsh_free(table);
    m->table = to;
    return status;
}

static enum walsh_status open_mixture(const struct bench *b, uint32_t experts, size_t rows,
                                      enum routing routing, struct mixture *m)
{
    *m = (struct mixture){.experts = experts, .rows = rows, .slots = rows * PER_ROW};
    uint8_t *at = b->scratch;
    const size_t slots = m->slots, rank = (size_t)experts * CUDA_EXPERT_RANK;
    struct cuda_expert *table = take(&at, ROOM / WORD_BYTES * sizeof *table);
    m->index = take(&at, slots * sizeof *m->index);
    m->sorted.order = take(&at, slots * sizeof *m->sorted.order);
    m->sorted.place = take(&at, slots * sizeof *m->sorted.place);
    m->sorted.begin = take(&at, (experts + 1) * sizeof *m->sorted.begin);
    m->sorted.tiles = take(&at, cuda_expert_tiles(slots, experts) * sizeof *m->sorted.tiles);
    m->sorted.count = take(&at, sizeof *m->sorted.count);
    m->gradient_a = take(&at, rank * COLS * sizeof *m->gradient_a);
    m->gradient_b = take(&at, rank * OUTS * sizeof *m->gradient_b);
    m->x = take(&at, rows * COLS * 2);
    m->arranged = take(&at, rows * COLS * 2);
    m->dy = take(&at, slots * OUTS * 2);
    m->y = take(&at, slots * COLS * 2);
    m->a = take(&at, rank * COLS * 2);
    m->b = take(&at, rank * OUTS * 2);
    m->h = take(&at, slots * CUDA_EXPERT_RANK * 2);
    m->g = take(&at, slots * CUDA_EXPERT_RANK * 2);
    if ((size_t)(at - b->scratch) > BENCH_SCRATCH)
        return walsh_fail(b->err, WALSH_E_MEMORY,
                          "a mixture of %u experts and %zu rows is too large to measure", experts, rows);
    WALSH_TRY(upload_table(b, m, table));
    int32_t *index;
    WALSH_TRY(walsh_alloc(slots, sizeof *index, "slots to measure", &index, b->err));
    m->active = choose(m, routing, index);
    const enum walsh_status status = cuda_memory.upload(b->q, m->index, index, slots * sizeof *index, b->err);
    walsh_free(index);
    WALSH_TRY(status);
    cuda_fill_normal(b->d->stream, CUDA_TYPE_BF16, m->x, rows * COLS, 11);
    cuda_fill_normal(b->d->stream, CUDA_TYPE_BF16, m->dy, slots * OUTS, 12);
    cuda_fill_normal(b->d->stream, CUDA_TYPE_BF16, m->a, rank * COLS, 13);
    cuda_fill_normal(b->d->stream, CUDA_TYPE_BF16, m->b, rank * OUTS, 14);
    cuda_sort_slots(b->d->stream, m->index, slots, PER_ROW, experts, &m->sorted);
    return cuda_memory.synchronize(b->q, b->err);
}

/* --- calls --- */

static void call_sort(const struct bench *b, const void *argument, unsigned i)
{
    const struct mixture *m = argument;
    (void)i;
    cuda_sort_slots(b->d->stream, m->index, m->slots, PER_ROW, m->experts, &m->sorted);
}

static void multiply(const struct bench *b, const struct mixture *m, unsigned i, bool back, bool update)
{
    const struct cuda_expert_product p = {
        .experts = m->table + i % m->sets * m->experts,
        .slots = &m->sorted,
        .rows = back ? (struct cuda_expert_rows){m->dy, OUTS, 0}
                     : (struct cuda_expert_rows){m->arranged, COLS, PER_ROW},
        .outs = OUTS,
        .cols = COLS,
        .back = back,
        .type = CUDA_TYPE_BF16,
        .y = m->y,
        .ldy = back ? COLS : OUTS,
        .h = !update ? NULL
             : back  ? m->g
                     : m->h,
        .matrix = back ? m->a : m->b,
        .step = (size_t)CUDA_EXPERT_RANK * (back ? COLS : OUTS),
        .rank = CUDA_EXPERT_RANK,
    };
    cuda_multiply_experts(b->d->stream, &p, b->d->processors);
}

static void call_forward(const struct bench *b, const void *argument, unsigned i)
{
    const struct mixture *m = argument;
    cuda_expert_columns(b->d->stream, m->arranged, m->x, COLS, m->rows, COLS);
    multiply(b, m, i, false, false);
}

static void call_back(const struct bench *b, const void *argument, unsigned i)
{
    multiply(b, argument, i, true, false);
}

/* A step of training of one projection: forward, the gradients of its input and of its update. */
static void call_update(const struct bench *b, const void *argument, unsigned i)
{
    const struct mixture *m = argument;
    const size_t a_step = (size_t)CUDA_EXPERT_RANK * COLS, b_step = (size_t)CUDA_EXPERT_RANK * OUTS;
    const struct cuda_expert_source x = {{m->x, COLS, PER_ROW}, COLS, m->a, a_step},
                                    dy = {{m->dy, OUTS, 0}, OUTS, m->b, b_step};
    const cudaStream_t stream = b->d->stream;
    cuda_sort_slots(stream, m->index, m->slots, PER_ROW, m->experts, &m->sorted);
    cuda_expert_columns(stream, m->arranged, m->x, COLS, m->rows, COLS);
    cuda_expert_into_rank(stream, &m->sorted, m->slots, m->experts, &x, 1, CUDA_EXPERT_RANK, 0.01f, m->h);
    multiply(b, m, i, false, true);
    cuda_expert_into_rank(stream, &m->sorted, m->slots, m->experts, &dy, 1, CUDA_EXPERT_RANK, 0.01f, m->g);
    multiply(b, m, i, true, true);
    cuda_expert_gradient(stream, &m->sorted, m->experts, &x.rows, COLS, m->g, CUDA_EXPERT_RANK, m->gradient_a,
                         a_step, false);
    cuda_expert_gradient(stream, &m->sorted, m->experts, &dy.rows, OUTS, m->h, CUDA_EXPERT_RANK,
                         m->gradient_b, b_step, false);
}

/* --- one row --- */

struct routed {
    const struct cuda_expert *table;
    size_t sets;
    const int32_t *index;
    const int8_t *q;
    const float *scale;
    const int32_t *sum;
    float *y;
};

static void call_route(const struct bench *b, const void *argument, unsigned i)
{
    const struct routed *r = argument;
    const struct cuda_routed list = {r->table + i % r->sets * MOST_EXPERTS, r->y, OUTS};
    cuda_route_experts(b->d->stream, &list, 1, r->index, NULL, PER_ROW, PER_ROW, OUTS, COLS, r->q, COLS,
                       r->scale, r->sum);
}

/* One token, of whose experts each has one row: a graph of many calls. */
static enum walsh_status bench_row(const struct bench *b)
{
    enum { ROW_CALLS = 64 };
    if (!wanted(b, "experts_row")) return WALSH_OK;
    struct mixture m;
    WALSH_TRY(open_mixture(b, MOST_EXPERTS, 1, DRAWN, &m));
    /* the arrays of training are not needed */
    int8_t *q = (int8_t *)m.dy;
    float *scale = m.gradient_a, *x = m.gradient_b;
    int32_t *sum = (int32_t *)(void *)(scale + COLS);
    cuda_fill_normal(b->d->stream, CUDA_TYPE_F32, x, COLS, 15);
    cuda_round_groups(b->d->stream, x, COLS, COLS, 1, q, COLS, scale, sum);
    const struct routed r = {m.table, m.sets, m.index, q, scale, sum, x};
    struct walsh_device_bench_row row = {.kernel = "experts_row",
                                         .bytes = (double)(WORD_BYTES + SCALE_BYTES) * PER_ROW,
                                         .operations = 2.0 * OUTS * COLS * PER_ROW};
    snprintf(row.size, sizeof row.size, "%dx%d experts=%u/%u rows=1x%d", OUTS, COLS, m.active, m.experts,
             PER_ROW);
    WALSH_TRY(cuda_bench_measure(b, ROW_CALLS, call_route, &r, &row.seconds));
    row.roofline = row.bytes / row.seconds / b->ceilings->read_bandwidth;
    if (b->row) b->row(b->user, &row);
    return WALSH_OK;
}

/* --- rows --- */

static enum walsh_status report(const struct bench *b, const char *kernel, const struct mixture *m,
                                double bytes, double operations, bench_call *call)
{
    if (!wanted(b, kernel)) return WALSH_OK;
    struct walsh_device_bench_row row = {.kernel = kernel, .bytes = bytes, .operations = operations};
    snprintf(row.size, sizeof row.size, "%dx%d experts=%u/%u rows=%zux%d", OUTS, COLS, m->active, m->experts,
             m->rows, PER_ROW);
    WALSH_TRY(cuda_bench_measure(b, CALLS, call, m, &row.seconds));
    row.roofline = bytes / row.seconds / b->ceilings->read_bandwidth;
    if (b->row) b->row(b->user, &row);
    return WALSH_OK;
}

static enum walsh_status bench_mixture(const struct bench *b, uint32_t experts, size_t rows,
                                       enum routing routing)
{
    struct mixture m;
    WALSH_TRY(open_mixture(b, experts, rows, routing, &m));
    const double slots = (double)m.slots, weights = (double)m.active * (double)(WORD_BYTES + SCALE_BYTES);
    const double operations = 2.0 * OUTS * COLS * slots;
    const double x = 2.0 * COLS * (double)rows, dy = 2.0 * OUTS * slots, dx = 2.0 * COLS * slots;
    const double update = (double)m.active * CUDA_EXPERT_RANK * (OUTS + COLS);
    WALSH_TRY(report(b, "experts_sort", &m, 12.0 * slots, 0, call_sort));
    WALSH_TRY(report(b, "experts_forward", &m, weights + x + dy, operations, call_forward));
    WALSH_TRY(report(b, "experts_dx", &m, weights + dy + dx, operations, call_back));
    return report(b, "experts_lora", &m, 2 * weights + 2 * x + 3 * dy + dx + 6 * update,
                  2 * operations + 6.0 * CUDA_EXPERT_RANK * (OUTS + COLS) * slots, call_update);
}

enum walsh_status cuda_bench_experts(const struct bench *b)
{
    static const char *const names[] = {"experts_row", "experts_sort", "experts_forward", "experts_dx",
                                        "experts_lora"};
    bool any = false;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) any = any || wanted(b, names[i]);
    if (!any) return WALSH_OK;
    WALSH_TRY(bench_row(b));
    if (!cuda_multiply_experts_fits()) return WALSH_OK;
    WALSH_TRY(bench_mixture(b, 128, 4096, DRAWN));
    WALSH_TRY(bench_mixture(b, 256, 4096, SPARSE));
    for (size_t rows = 256; rows <= 16384; rows *= 4) WALSH_TRY(bench_mixture(b, 256, rows, BALANCED));
    cuda_fill_random(b->d->stream, b->room, ROOM, 7);
    cuda_fill_normal(b->d->stream, CUDA_TYPE_BF16, b->scratch, BENCH_SCRATCH / 2, 9);
    return WALSH_OK;
}
