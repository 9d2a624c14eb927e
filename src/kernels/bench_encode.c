/* Benchmark rows of the nearest-code searches. Their "operations" are vectors searched, so the rate is in
 * codes/s; no arithmetic ceiling applies to them. */
#include "kernels/bench.h"

enum { VECTORS = 4096 };

struct encode_case {
    walsh_kernel_e8p_encode_f32 *e8p;
    walsh_kernel_e81b_encode_f32 *e81b;
    void *codes;
    float *w;
    const float *x;
};

static void run_e8p(void *argument)
{
    struct encode_case *t = argument;
    t->e8p(t->codes, t->w, t->x, VECTORS);
}

static void run_e81b(void *argument)
{
    struct encode_case *t = argument;
    t->e81b(t->codes, t->w, t->x, VECTORS);
}

static void run(struct walsh_bench *b, struct encode_case t, double code_bytes)
{
    t.codes = walsh_bench_alloc(b, VECTORS * sizeof(uint16_t));
    t.w = walsh_bench_alloc(b, 8 * VECTORS * sizeof(float));
    t.x = walsh_bench_normal(b, 8 * VECTORS);
    if (!t.codes || !t.w || !t.x) return;
    walsh_bench_run(b, "vectors=4096", VECTORS * (8 * 4 + 8 * 4 + code_bytes), VECTORS, WALSH_CEILING_F32,
                    t.e8p ? run_e8p : run_e81b, &t);
}

void walsh_bench_e8p_encode_f32(struct walsh_bench *b, walsh_kernel_e8p_encode_f32 *f)
{
    run(b, (struct encode_case){.e8p = f}, 2);
}

void walsh_bench_e81b_encode_f32(struct walsh_bench *b, walsh_kernel_e81b_encode_f32 *f)
{
    run(b, (struct encode_case){.e81b = f}, 1);
}
