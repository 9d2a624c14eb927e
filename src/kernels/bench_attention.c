/* Benchmark rows of attention's kernels. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "kernels/bench.h"

enum { HEADS = 8, DIM = 128, PAGE = 256, GROUP_MOST = 8 };

/* Decode of one row over the heads of a whole cache: 8 heads of 8192 tokens stream from DRAM in f16. */
struct decode_case {
    walsh_kernel_attend_chunk *f;
    struct walsh_kv_view kv;
    uint32_t tokens, heads, group;
    float *query, *scores, *out;
};

static void run_decode(void *argument)
{
    const struct decode_case *t = argument;
    float maximum[GROUP_MOST], sum[GROUP_MOST];
    for (uint32_t h = 0; h < t->heads; h++)
        for (uint32_t begin = 0; begin < t->tokens; begin += WALSH_ATTEND_CHUNK) {
            struct walsh_attend_chunk c = {
                .kv = &t->kv,
                .kv_head = h,
                .begin = begin,
                .end = t->tokens - begin < WALSH_ATTEND_CHUNK ? t->tokens : begin + WALSH_ATTEND_CHUNK,
                .group = t->group,
                .head_dim = DIM,
                .scale = 0.088f,
                .query = t->query,
                .scores = t->scores,
                .maximum = maximum,
                .sum = sum,
                .out = t->out,
            };
            t->f(&c);
        }
}

/* Pages of finite numbers: f16 0x3c00 + small, or random f32. */
static void **pages(struct walsh_bench *b, enum walsh_kv_type type, uint32_t count)
{
    size_t elements = (size_t)HEADS * PAGE * DIM;
    void **list = walsh_bench_alloc(b, count * sizeof *list);
    for (uint32_t p = 0; list != NULL && p < count; p++) {
        if (type == WALSH_KV_F32) {
            list[p] = walsh_bench_normal(b, elements);
        } else {
            uint16_t *x = list[p] = walsh_bench_alloc(b, elements * sizeof *x);
            for (size_t i = 0; x != NULL && i < elements; i++) x[i] = (uint16_t)(0x3000 + (i * 37 & 0x8fff));
        }
        if (list[p] == NULL) return NULL;
    }
    return list;
}

void walsh_bench_attend_chunk(struct walsh_bench *b, walsh_kernel_attend_chunk *f)
{
    static const struct {
        uint32_t tokens, heads, group;
        enum walsh_kv_type type;
    } cases[] = {{512, 1, 4, WALSH_KV_F16},      {512, 1, 1, WALSH_KV_F16},
                 {512, 1, 7, WALSH_KV_F16},      {512, 1, 4, WALSH_KV_F32},
                 {8192, HEADS, 4, WALSH_KV_F16}, {8192, HEADS, 1, WALSH_KV_F16},
                 {4096, HEADS, 4, WALSH_KV_F32}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        uint32_t count = (cases[i].tokens + PAGE - 1) / PAGE;
        void **k = pages(b, cases[i].type, count), **v = pages(b, cases[i].type, count);
        struct decode_case t = {
            .f = f,
            .kv = {.type = cases[i].type, .page_tokens = PAGE, .k_pages = k, .v_pages = v},
            .tokens = cases[i].tokens,
            .heads = cases[i].heads,
            .group = cases[i].group,
            .query = walsh_bench_normal(b, GROUP_MOST * DIM),
            .scores = walsh_bench_alloc(b, GROUP_MOST * WALSH_ATTEND_CHUNK * sizeof(float)),
            .out = walsh_bench_alloc(b, GROUP_MOST * DIM * sizeof(float))};
        if (k == NULL || v == NULL || t.query == NULL || t.scores == NULL || t.out == NULL) return;
        char size[64];
        snprintf(size, sizeof size, "tokens=%u heads=%ux%u dim=%d %s", t.tokens, t.heads, t.group, DIM,
                 t.kv.type == WALSH_KV_F16 ? "f16" : "f32");
        double elements = 2.0 * t.tokens * t.heads * DIM;
        walsh_bench_run(b, size, elements * (t.kv.type == WALSH_KV_F16 ? 2 : 4), elements * t.group * 2,
                        WALSH_CEILING_F32, run_decode, &t);
    }
}

struct tile_case {
    walsh_kernel_multiply_tile_f32 *multiply;
    walsh_kernel_multiply_tile_bf16 *multiply_bf16;
    walsh_kernel_transpose_f32 *transpose;
    walsh_kernel_softmax_step_f32 *softmax;
    size_t m, n, k;
    float *a, *b, *c;
};

static void run_multiply(void *argument)
{
    const struct tile_case *t = argument;
    t->multiply(t->c, t->n, NULL, t->a, t->k, t->b, t->n, t->m, t->n, t->k);
}
static void run_multiply_bf16(void *argument) /* any numbers of moderate size: bytes of f32 */
{
    const struct tile_case *t = argument;
    t->multiply_bf16(t->c, t->n, NULL, (const uint16_t *)(const void *)t->a, t->k,
                     (const uint32_t *)(const void *)t->b, t->n, t->m, t->n, t->k);
}
static void run_transpose(void *argument)
{
    const struct tile_case *t = argument;
    t->transpose(t->c, t->m, t->a, t->n, t->m, t->n);
}
static void run_softmax(void *argument)
{
    const struct tile_case *t = argument;
    for (size_t i = 0; i < t->m; i++) {
        float maximum = -INFINITY, sum = 0;
        memcpy(t->c, t->a, t->n * sizeof *t->c);
        t->softmax(t->c, t->n, 0.1f, &maximum, &sum);
    }
}

static void run_tile(struct walsh_bench *b, struct tile_case t, double bytes, double operations,
                     void (*call)(void *))
{
    t.a = walsh_bench_normal(b, t.m * (t.k > t.n ? t.k : t.n));
    t.b = walsh_bench_normal(b, t.k * t.n + 1);
    t.c = walsh_bench_alloc(b, t.m * t.n * sizeof(float));
    if (t.a == NULL || t.b == NULL || t.c == NULL) return;
    char size[48];
    snprintf(size, sizeof size, t.k > 0 ? "%zux%zux%zu" : "%zux%zu", t.m, t.n, t.k);
    walsh_bench_run(b, size, bytes, operations, t.multiply_bf16 ? WALSH_CEILING_BF16 : WALSH_CEILING_F32,
                    call, &t);
}

void walsh_bench_multiply_tile_bf16(struct walsh_bench *b, walsh_kernel_multiply_tile_bf16 *f)
{
    run_tile(b, (struct tile_case){.multiply_bf16 = f, .m = 64, .n = 128, .k = 128}, 6.0 * 128 * 128,
             2.0 * 64 * 128 * 128, run_multiply_bf16);
}

void walsh_bench_multiply_tile_f32(struct walsh_bench *b, walsh_kernel_multiply_tile_f32 *f)
{
    static const size_t shapes[][3] = {{64, 128, 128}, {64, 128, 64}, {64, 64, 128}, {64, 80, 128}};
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        size_t m = shapes[i][0], n = shapes[i][1], k = shapes[i][2];
        run_tile(b, (struct tile_case){.multiply = f, .m = m, .n = n, .k = k},
                 4.0 * (double)(m * n + n * k + m * k), 2.0 * (double)(m * n * k), run_multiply);
    }
}

void walsh_bench_transpose_f32(struct walsh_bench *b, walsh_kernel_transpose_f32 *f)
{
    run_tile(b, (struct tile_case){.transpose = f, .m = 128, .n = 128}, 8.0 * 128 * 128, 0, run_transpose);
}

void walsh_bench_softmax_step_f32(struct walsh_bench *b, walsh_kernel_softmax_step_f32 *f)
{
    run_tile(b, (struct tile_case){.softmax = f, .m = 64, .n = 128}, 8.0 * 64 * 128, 20.0 * 64 * 128,
             run_softmax);
}
